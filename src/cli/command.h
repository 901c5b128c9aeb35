/* cli/command.h - what a subcommand is: a function from options to a status, which prints. */
#ifndef LIGHTER_CLI_COMMAND_H
#define LIGHTER_CLI_COMMAND_H

#include <jansson.h>
#include <stdbool.h>

#include "base/status.h"
#include "cli/console.h"
#include "cli/options.h"

struct cli_context {
    const struct cli_options *options;
    struct cli_console *console;
    const char *const *args; /* [arg_count], what the options were read from */
    size_t arg_count;
    bool bad_usage; /* set by a command that failed for what its options say: exit status 2 */
    bool printed;   /* set by a command that has printed its JSON object though it failed */
};

enum status cli_generate(struct cli_context *context, struct err *err);
enum status cli_chat(struct cli_context *context, struct err *err);
enum status cli_serve(struct cli_context *context, struct err *err);
enum status cli_bench(struct cli_context *context, struct err *err);
enum status cli_logits(struct cli_context *context, struct err *err);
enum status cli_tokenize(struct cli_context *context, struct err *err);
enum status cli_inspect(struct cli_context *context, struct err *err);
enum status cli_plan(struct cli_context *context, struct err *err);
enum status cli_quantize(struct cli_context *context, struct err *err);
enum status cli_selftest(struct cli_context *context, struct err *err);

/* Prints the object and a newline to standard output; takes json, NULL being out of memory. */
enum status cli_print_json(json_t *json, struct err *err);
/* STATUS_IO when what was printed could not be written. */
enum status cli_stdout_flush(struct err *err);
/* A JSON string, with U+FFFD for what is not UTF-8; the caller owns it. */
json_t *cli_text_json(const char *text, size_t size);
/* Ids as a JSON array; the caller owns it. */
json_t *cli_ids_json(const int32_t *ids, size_t count);

/* The program: picks the subcommand, reads its options, runs it. Returns the exit status: 0 done, 1
 * failed, 2 bad usage. Prints one error sentence to standard error; with --json one object to
 * standard output whatever happens. */
int cli_main(int argc, const char *const *argv);

#endif
