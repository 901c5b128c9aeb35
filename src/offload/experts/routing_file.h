/* offload/experts/routing_file.h - what routers of a mixture have chosen, kept for the next start.
 *
 * Routers have favourites, and which they are is known only once the model has run. So choices are
 * remembered: how often each expert was chosen, lately counting more, and the last tokens' choices
 * in order, from which a cache of any size can be rehearsed. A file of at most some hundred KB,
 * next to the checkpoint's cache files; in this machine's byte order:
 *
 *     0   "LGHTROUT"
 *     8   u32 version, layers, experts of each, chosen of them, tokens in the trace, 0
 *     32  fingerprint of the checkpoint: 16 bytes
 *     48  XXH3-128 of the whole file with zeros here: 16 bytes
 *     64  u32 counts[layer][expert]
 *     ..  u16 trace[token][layer][choice], oldest token first
 *
 * It is written under a temporary name and renamed. A file that is not as it should be, or of
 * another checkpoint, is as good as none. */
#ifndef LIGHTER_OFFLOAD_EXPERTS_ROUTING_FILE_H
#define LIGHTER_OFFLOAD_EXPERTS_ROUTING_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"
#include "offload/disk/cache_file.h"

#define ROUTING_TRACE_TOKENS 256
#define ROUTING_EXPERTS_MAX 65536    /* of a layer; more are not remembered */
#define ROUTING_COUNTS_MAX (1u << 20) /* in all */

struct routing_data {
    uint32_t layer_count, expert_count, top_k; /* layers with experts; > 0 */
    uint32_t *counts;         /* [layer_count][expert_count] */
    uint64_t count_sum;
    uint16_t *trace;          /* [ROUTING_TRACE_TOKENS][layer_count][top_k], a ring */
    uint32_t trace_count;     /* tokens in it */
    uint32_t trace_next;      /* where the next goes */
};

/* Zeroes; the caller undoes it with deinit, which is fine on a zeroed one. STATUS_UNAVAILABLE: so
 * many are not remembered. */
enum status routing_data_init(struct routing_data *data, uint32_t layer_count,
                              uint32_t expert_count, uint32_t top_k, struct err *err);
void routing_data_deinit(struct routing_data *data);
void routing_data_clear(struct routing_data *data);
uint64_t routing_data_bytes(uint32_t layer_count, uint32_t expert_count, uint32_t top_k);
/* The choices of a token of the trace, [layer_count][top_k]; 0 is the oldest. */
const uint16_t *routing_data_token(const struct routing_data *data, uint32_t index);
/* Adds a token's choices to the trace. */
void routing_data_push(struct routing_data *data, const uint16_t *choices);
/* Counts a choice. Once there are many, all counts are halved: what was long ago matters less. */
void routing_data_count(struct routing_data *data, uint32_t layer, uint32_t expert);

/* Fills data, whose dimensions must be the file's, from the bytes of a file. On failure data is
 * cleared. */
enum status routing_parse(const uint8_t *bytes, size_t size, const struct cache_hash *fingerprint,
                          struct routing_data *data, struct err *err);
enum status routing_format(const struct routing_data *data, const struct cache_hash *fingerprint,
                           struct buf *out, struct err *err);

enum status routing_file_read(const char *path, const struct cache_hash *fingerprint,
                              struct routing_data *data, struct err *err);
/* Creates the folders that are missing. */
enum status routing_file_write(const char *path, const struct cache_hash *fingerprint,
                               const struct routing_data *data, struct err *err);

#endif
