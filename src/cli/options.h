/* cli/options.h - what the user asked for, read from the command line.
 *
 * Every option is a row of one table (options_table.c): its name, kind, range, default, help, the
 * subcommands that have it, and where its value goes in `struct cli_options`. Parsing, range
 * checks, defaults and --help all come from that row. SGLang's launch flags that have no place here
 * are rows of a second table (sglang_flags.c): accepted with a warning, or refused where ignoring
 * them would change what is served.
 *
 * Threads: the options are written by one thread and only read afterwards. */
#ifndef LIGHTER_CLI_OPTIONS_H
#define LIGHTER_CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/log.h"
#include "base/status.h"
#include "engine/engine.h"
#include "text/tokenizer/tokenizer.h"

enum cli_command {
    CLI_COMMAND_GENERATE,
    CLI_COMMAND_CHAT,
    CLI_COMMAND_SERVE,
    CLI_COMMAND_BENCH,
    CLI_COMMAND_LOGITS,
    CLI_COMMAND_TOKENIZE,
    CLI_COMMAND_INSPECT,
    CLI_COMMAND_PLAN,
    CLI_COMMAND_QUANTIZE,
    CLI_COMMAND_SELFTEST,
    CLI_COMMAND_COUNT
};

#define CLI_TEXTS_MAX 16
#define CLI_FOREIGN_MAX 512

struct cli_texts {
    const char *items[CLI_TEXTS_MAX];
    size_t count;
};

/* Texts are borrowed from the arguments. Zero or NULL: not given, unless said otherwise. */
struct cli_options {
    const char *model, *tokenizer_path, *chat_template, *system;
    bool help, json, quiet;
    const char *log_level;

    const char *device;           /* NULL: cli_device_spec says */
    const char *attention_backend;
    uint32_t node_rank;           /* of this process among its node's; set by rank.c */
    int64_t threads;
    uint64_t memory_budget_bytes, host_memory_budget_bytes, split_max_bytes;
    uint64_t free_memory_bytes;   /* a rank's part of what its machine had free; set by rank.c. 0:
                                     what is free now */
    double mem_fraction_static;
    const char *cpu_kernels;
    const char *dtype, *kv_cache_dtype;
    int64_t context_length;

    int64_t max_running_requests, max_queued_requests;
    int64_t chunked_prefill_size; /* -1: whole prompts */
    int64_t max_total_tokens, page_size;
    bool skip_tokenizer_init;
    const char *weight_version;
    int64_t random_seed;          /* -1: none */

    double cpu_offload_gb;
    int64_t offload_group_size;   /* below 1: off */
    int64_t offload_num_in_group, offload_prefetch_step, offload_slots;
    const char *offload_mode;     /* NULL: cli_options_offload_mode says */
    const char *offload_params, *offload_disk;
    const char *offload_cache_dir, *assume;
    bool offload_experts;
    int64_t offload_expert_slots;

    const char *prompt, *prompt_file;
    struct token_ids input_ids;
    bool no_special;

    int64_t max_new_tokens;       /* -1: not said */
    int64_t top_k;
    double temperature, top_p, min_p;
    double frequency_penalty, presence_penalty, repetition_penalty;
    int64_t seed;                 /* -1: none */
    struct cli_texts stop;
    struct token_ids stop_token_ids;
    bool ignore_eos, keep_special, no_stop_trim;

    const char *host, *served_model_name;
    int64_t port, dp_size;

    int64_t prompt_tokens, gen_tokens, batch, repeat;
    const char *out, *type, *pre;
    struct cli_texts tensor_types;
    int64_t chunk;
    struct token_ids decode;
    bool skip_special;
    bool tensors;
    uint32_t trace_rank;          /* set by a rank for itself */
    const char *trace;            /* NULL: nothing is traced */

    bool ignored[CLI_FOREIGN_MAX]; /* flags of SGLang's that were given and have no effect */
};

/* "generate", ...; and what it does, in one line. */
const char *cli_command_name(enum cli_command command);
const char *cli_command_help(enum cli_command command);
/* STATUS_BAD_INPUT names the nearest one. */
enum status cli_command_find(const char *name, enum cli_command *command_out, struct err *err);

/* The defaults. The caller's storage; cli_options_deinit afterwards. */
void cli_options_init(struct cli_options *options);
void cli_options_deinit(struct cli_options *options);

/* Reads args[count], those after the subcommand. What is wrong is one sentence in err. With --help
 * nothing is required. */
enum status cli_options_parse(struct cli_options *options, enum cli_command command,
                              const char *const *args, size_t count, struct err *err);
/* Sets one option by its name without dashes; "true" and "false" for flags. For the library. */
enum status cli_options_set(struct cli_options *options, enum cli_command command,
                            const char *name, const char *value, struct err *err);
/* --offload-mode; where it is left out, what suits the other options. */
const char *cli_options_offload_mode(const struct cli_options *options);
/* A warning for each flag that was given and has no effect. */
void cli_options_warn(const struct cli_options *options, const struct log *log);
/* Refuses options that exclude each other, or lack one that they need. */
enum status cli_options_check(const struct cli_options *options, enum cli_command command,
                              struct err *err);

/* The sampling options as the engine takes them; stop strings stay borrowed. */
enum status cli_options_sampling(const struct cli_options *options,
                                 struct sampling_params *params_out, struct err *err);
/* The lowest level that --log-level and --quiet let through. */
enum log_level cli_options_log_level(const struct cli_options *options);

/* The text of `lighter COMMAND --help`, and the same as JSON. */
void cli_help_write(FILE *out, enum cli_command command);
json_t *cli_help_json(enum cli_command command);
/* A command's options and their values, by SGLang's names ("model_path"); the caller owns it. */
json_t *cli_options_json(const struct cli_options *options, enum cli_command command);
/* The text of `lighter --help`. */
void cli_usage_write(FILE *out);

#endif
