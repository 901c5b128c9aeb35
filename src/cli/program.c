/* cli/program.c - from arguments to a subcommand to an exit status. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/utf8.h"
#include "cli/command.h"
#include "cli/guard.h"
#include "cli/rank.h"
#include "lighter.h"

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

static enum status (*const runs[CLI_COMMAND_COUNT])(struct cli_context *context,
                                                    struct err *err) = {
    [CLI_COMMAND_GENERATE] = cli_generate, [CLI_COMMAND_SERVE] = cli_serve,
    [CLI_COMMAND_CHAT] = cli_chat,
    [CLI_COMMAND_BENCH] = cli_bench,       [CLI_COMMAND_LOGITS] = cli_logits,
    [CLI_COMMAND_TOKENIZE] = cli_tokenize, [CLI_COMMAND_INSPECT] = cli_inspect,
    [CLI_COMMAND_PLAN] = cli_plan,
    [CLI_COMMAND_QUANTIZE] = cli_quantize,
    [CLI_COMMAND_SELFTEST] = cli_selftest,
};

enum status cli_stdout_flush(struct err *err)
{
    if (fflush(stdout) != 0 || ferror(stdout))
        return err_set(err, STATUS_IO, "standard output: %s", strerror(errno));
    return STATUS_OK;
}

enum status cli_print_json(json_t *json, struct err *err)
{
    int written;

    if (json == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the JSON output");
    written = json_dumpf(json, stdout, JSON_REAL_PRECISION(12));
    json_decref(json);
    if (written != 0)
        return err_set(err, STATUS_IO, "standard output: %s", strerror(errno));
    fputc('\n', stdout);
    return cli_stdout_flush(err);
}

json_t *cli_text_json(const char *text, size_t size)
{
    json_t *json = json_stringn(text, size); /* NULL, too, when it is not UTF-8 */
    struct buf clean;
    enum status st = STATUS_OK;

    if (json != NULL)
        return json;
    buf_init(&clean, size * 3);
    for (size_t at = 0; at < size && st == STATUS_OK;) {
        uint32_t code_point = 0;
        char bytes[4];
        at += utf8_decode(text + at, size - at, &code_point, NULL);
        st = buf_append(&clean, bytes, utf8_encode(code_point, bytes), NULL);
    }
    if (st == STATUS_OK)
        json = json_stringn(clean.data, clean.size);
    buf_deinit(&clean);
    return json;
}

json_t *cli_ids_json(const int32_t *ids, size_t count)
{
    json_t *list = json_array();

    for (size_t i = 0; i < count; i++)
        json_array_append_new(list, json_integer(ids[i]));
    return list;
}

static int fail(const struct cli_console *console, enum status status, const struct err *err,
                bool json, int code)
{
    struct err ignored;

    log_line(&console->log, LOG_ERROR, "%s", err->message);
    if (json)
        (void)cli_print_json(json_pack("{s:{s:o, s:s, s:i}}", "error", "message",
                                       cli_text_json(err->message, strlen(err->message)), "type",
                                       status_name(status), "code", code),
                             &ignored);
    return code;
}

static int run_command(enum cli_command command, struct cli_context *context, struct err *err)
{
    const struct cli_options *options = context->options;
    enum status st;

    if (options->help && options->json) {
        st = cli_print_json(cli_help_json(command), err);
    } else if (options->help) {
        cli_help_write(stdout, command);
        st = cli_stdout_flush(err);
    } else {
        st = runs[command](context, err);
    }
    if (st == STATUS_OK)
        return EXIT_DONE;
    return fail(context->console, st, err, options->json && !context->printed,
                context->bad_usage ? EXIT_USAGE : EXIT_FAILED);
}

/* What stands before any subcommand: --help and --version. -1: neither. */
static int run_plain(const char *word, struct err *err)
{
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0)
        cli_usage_write(stdout);
    else if (strcmp(word, "--version") == 0)
        printf("lighter %s\n", LIGHTER_VERSION);
    else
        return -1;
    return cli_stdout_flush(err) == STATUS_OK ? EXIT_DONE : EXIT_FAILED;
}

static bool wants_json(int argc, const char *const *argv)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--json") == 0)
            return true;
    return false;
}

int cli_main(int argc, const char *const *argv)
{
    const bool json = wants_json(argc, argv);
    struct cli_console console;
    struct cli_options options;
    struct cli_context context = { .options = &options, .console = &console };
    const char *front = getenv(CLI_RANK_FRONT);
    enum cli_command command = CLI_COMMAND_GENERATE;
    struct err err;
    enum status st;
    int code;

    cli_console_init(&console, LOG_INFO);
    if (argc < 2) {
        cli_usage_write(stderr);
        return EXIT_USAGE;
    }
    code = run_plain(argv[1], &err);
    if (code >= 0)
        return code;
    if (front != NULL && strcmp(argv[1], CLI_RANKS_COMMAND) == 0)
        return cli_guard_run(argv + 2, (size_t)argc - 2);
    if (front != NULL && strcmp(argv[1], CLI_RANK_COMMAND) == 0) {
        command = CLI_COMMAND_SERVE; /* whose options it has */
        st = STATUS_OK;
    } else {
        front = NULL;
        st = cli_command_find(argv[1], &command, &err);
    }
    if (st != STATUS_OK)
        return fail(&console, st, &err, json, EXIT_USAGE);
    cli_options_init(&options);
    context.args = argv + 2;
    context.arg_count = (size_t)argc - 2;
    st = cli_options_parse(&options, command, context.args, context.arg_count, &err);
    if (st == STATUS_OK && front != NULL) {
        console.level = cli_options_log_level(&options);
        code = cli_rank_keep(&context, front);
    } else if (st == STATUS_OK) {
        console.level = cli_options_log_level(&options);
        cli_options_warn(&options, &console.log);
        code = run_command(command, &context, &err);
    } else {
        code = fail(&console, st, &err, json, EXIT_USAGE);
    }
    cli_options_deinit(&options);
    return code;
}
