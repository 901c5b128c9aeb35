/* cli/bench.h - the parts of `lighter bench`; only for files in cli/.
 *
 *     bench_run.c    runs requests and takes the times
 *     bench_bound.c  what the machine could do at best
 *     bench.c        the command: repeats, medians, output */
#ifndef LIGHTER_CLI_BENCH_H
#define LIGHTER_CLI_BENCH_H

#include <jansson.h>
#include <stdint.h>

#include "base/status.h"
#include "cli/session.h"

struct cli_bench_shape {
    uint32_t prompt_tokens, gen_tokens, batch;
    uint64_t seed;
};

struct cli_bench_phase {
    double seconds;
    uint64_t tokens;  /* prompt tokens of a prefill, generated tokens of a decode */
    json_t *report;   /* the offloader's, of this phase; owned: json_decref */
};

/* How many tokens the first of a batch can be ahead of the last when all are being decoded. */
uint64_t cli_bench_lead(const struct cli_bench_shape *shape, uint32_t step_row_count_max);
/* From the moment that all prompts wait to the first token of the last one. */
enum status cli_bench_prefill(const struct cli_session *session,
                              const struct cli_bench_shape *shape,
                              struct cli_bench_phase *phase_out, struct err *err);
/* From the first token of the last request to its last token, while all of them are decoded. */
enum status cli_bench_decode(const struct cli_session *session,
                             const struct cli_bench_shape *shape,
                             struct cli_bench_phase *phase_out, struct err *err);

/* Bytes that must be read from memory for one step of a batch. */
struct cli_bench_bytes {
    uint64_t weights;           /* all of them */
    uint64_t weights_per_step;  /* that a decode step reads: expected, where a router chooses */
    uint64_t kv_per_step;       /* at half of the generated tokens */
};
void cli_bench_bytes(const struct ckpt *ckpt, const struct model_info *info,
                     const struct cli_bench_shape *shape, struct cli_bench_bytes *bytes_out);
/* What thread_count threads read from memory in a plain loop, bytes per second; the best of some
 * passes over half a gigabyte, or half of the memory that is left. */
enum status cli_bench_read_bandwidth(uint32_t thread_count, double *bytes_per_s_out,
                                     struct err *err);

#endif
