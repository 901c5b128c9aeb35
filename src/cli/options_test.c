/* cli/options_test.c - what the command line may say, and what is answered when it says otherwise.
 *
 * Method: the table's own rows are walked where a rule holds for all of them; single options stand
 * for their kinds elsewhere. Messages are checked for the words that a user needs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/size.h"
#include "cli/devices.h"
#include "cli/options.h"
#include "cli/options_table.h"

#define ARGS_MAX 64
#define NAME_SIZE_MAX 64

/* Splits at blanks; the words live in *storage. */
static size_t split(const char *line, char *storage, size_t storage_size, const char **args)
{
    size_t count = 0;

    assert_true(strlen(line) < storage_size);
    memcpy(storage, line, strlen(line) + 1);
    for (char *word = strtok_r(storage, " ", &storage); word != NULL;
         word = strtok_r(NULL, " ", &storage)) {
        assert_true(count < ARGS_MAX);
        args[count++] = word;
    }
    return count;
}

static char words[1024]; /* of the last parse; options borrow from it */

static enum status parse(enum cli_command command, const char *line, struct cli_options *options,
                         struct err *err)
{
    const char *args[ARGS_MAX];
    const size_t count = split(line, words, sizeof(words), args);

    cli_options_init(options);
    return cli_options_parse(options, command, args, count, err);
}

static void accepts(enum cli_command command, const char *line)
{
    struct cli_options options;
    struct err err = { .message = "" };

    if (parse(command, line, &options, &err) != STATUS_OK)
        fail_msg("%s: %s", line, err.message);
    cli_options_deinit(&options);
}

/* Refused, with a sentence that has every one of the words. */
static void refuses(enum cli_command command, const char *line, const char *word1,
                    const char *word2)
{
    struct cli_options options;
    struct err err = { .message = "" };
    const enum status st = parse(command, line, &options, &err);

    cli_options_deinit(&options);
    if (st != STATUS_BAD_INPUT)
        fail_msg("%s: not refused", line);
    if (strstr(err.message, word1) == NULL || strstr(err.message, word2) == NULL)
        fail_msg("%s: \"%s\" lacks '%s' or '%s'", line, err.message, word1, word2);
}

static void values_reach_their_fields(void **state)
{
    struct cli_options options;
    struct err err;

    (void)state;
    assert_int_equal(parse(CLI_COMMAND_GENERATE,
                           "--model-path=m --prompt hi --temperature 0.5 --top-k=7 --threads 3 "
                           "--memory-budget 2GiB --stop a --stop=b --stop-token-ids 4,5 "
                           "--ignore-eos --offload-mode meta --seed 9",
                           &options, &err),
                     STATUS_OK);
    assert_string_equal(options.model, "m");
    assert_string_equal(options.prompt, "hi");
    assert_true(options.temperature == 0.5);
    assert_int_equal(options.top_k, 7);
    assert_int_equal(options.threads, 3);
    assert_true(options.memory_budget_bytes == 2 * GIB);
    assert_int_equal(options.stop.count, 2);
    assert_string_equal(options.stop.items[1], "b");
    assert_int_equal(options.stop_token_ids.count, 2);
    assert_int_equal(options.stop_token_ids.ids[1], 5);
    assert_true(options.ignore_eos);
    assert_string_equal(options.offload_mode, "meta");
    assert_int_equal(options.seed, 9);
    cli_options_deinit(&options);
}

static void defaults_are_those_of_the_help(void **state)
{
    struct cli_options options;

    (void)state;
    cli_options_init(&options);
    assert_int_equal(options.max_new_tokens, -1);
    assert_true(options.temperature == 1.0 && options.top_p == 1.0 && options.min_p == 0.0);
    assert_true(options.repetition_penalty == 1.0);
    assert_int_equal(options.top_k, -1);
    assert_int_equal(options.seed, -1);
    assert_int_equal(options.port, 30000);
    assert_null(options.device);
    assert_string_equal(cli_device_spec(&options), "cpu");
    assert_string_equal(cli_options_offload_mode(&options), "cpu");
    assert_int_equal(options.offload_group_size, -1);
    assert_int_equal(options.offload_prefetch_step, 1);
    cli_options_deinit(&options);
}

/* A budget moves what does not fit, unless something else says what moves. */
static void a_budget_alone_means_auto(void **state)
{
    static const struct {
        const char *line, *mode;
    } cases[] = {
        { "--model m", "cpu" },
        { "--model m --memory-budget 2GiB", "auto" },
        { "--model m --mem-fraction-static 0.5", "cpu" },
        { "--model m --memory-budget 2GiB --offload-mode cpu", "cpu" },
        { "--model m --memory-budget 2GiB --offload-group-size 2", "cpu" },
        { "--model m --memory-budget 2GiB --cpu-offload-gb 1", "cpu" },
        { "--model m --memory-budget 2GiB --offload-experts", "cpu" },
        { "--model m --memory-budget 2GiB --offload-mode disk", "disk" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct cli_options options;
        struct err err;

        assert_int_equal(parse(CLI_COMMAND_PLAN, cases[i].line, &options, &err), STATUS_OK);
        assert_string_equal(cli_options_offload_mode(&options), cases[i].mode);
        cli_options_deinit(&options);
    }
}

static void bad_values_are_refused_with_their_range(void **state)
{
    (void)state;
    refuses(CLI_COMMAND_SERVE, "--model m --port 65536", "--port", "65535");
    refuses(CLI_COMMAND_SERVE, "--model m --port -1", "--port", "from 0");
    refuses(CLI_COMMAND_SERVE, "--model m --port 80x", "'80x'", "whole number");
    refuses(CLI_COMMAND_SERVE, "--model m --port=", "--port", "whole number");
    refuses(CLI_COMMAND_SERVE, "--model m --port 99999999999999999999", "--port", "out of range");
    refuses(CLI_COMMAND_GENERATE, "--model m --prompt p --top-p 0", "--top-p", "above 0");
    refuses(CLI_COMMAND_GENERATE, "--model m --prompt p --top-p nan", "--top-p", "not a number");
    refuses(CLI_COMMAND_GENERATE, "--model m --prompt p --temperature -1", "--temperature",
            "least");
    refuses(CLI_COMMAND_GENERATE, "--model m --input-ids 1,,2", "--input-ids", "character 2");
    refuses(CLI_COMMAND_GENERATE, "--model m --input-ids 1,-2", "--input-ids", "'-2'");
    refuses(CLI_COMMAND_GENERATE, "--model m --input-ids 4294967296", "--input-ids", "4294967296");
    refuses(CLI_COMMAND_GENERATE, "--model m --input-ids 1,2x", "--input-ids", "2x");
    refuses(CLI_COMMAND_SERVE, "--model m --memory-budget 2XB", "--memory-budget", "unit");
    refuses(CLI_COMMAND_SERVE, "--model m --memory-budget 0", "--memory-budget", "leave it out");
    refuses(CLI_COMMAND_SERVE, "--model m --dtype bfloat61", "--dtype", "'bfloat16'");
    refuses(CLI_COMMAND_SERVE, "--model m --mem-fraction-static 1.5", "--mem-fraction-static", "1");
    refuses(CLI_COMMAND_SERVE, "--model m --port", "--port", "needs a value");
    refuses(CLI_COMMAND_SERVE, "--model m --host --port 1", "--host", "needs a value");
    refuses(CLI_COMMAND_SERVE, "--model m --quiet=yes", "--quiet", "takes no value");
    refuses(CLI_COMMAND_SERVE, "--model m stray", "'stray'", "two dashes");
    refuses(CLI_COMMAND_SERVE, "--model m -p 80", "'-p'", "two dashes");
}

static void unknown_options_name_the_nearest(void **state)
{
    (void)state;
    refuses(CLI_COMMAND_SERVE, "--model m --prot 80", "--prot", "--port");
    refuses(CLI_COMMAND_SERVE, "--modle m", "--modle", "--model");
    refuses(CLI_COMMAND_GENERATE, "--model m --prompt p --max-new 3", "--max-new",
            "--max-new-tokens");
    refuses(CLI_COMMAND_SERVE, "--model m --offload-prefetch-steps=1", "steps",
            "--offload-prefetch-step");
    refuses(CLI_COMMAND_SERVE, "--model m --disable-cuda-graf", "graf", "--disable-cuda-graph");
    refuses(CLI_COMMAND_SERVE, "--model m --", "nearest", "--");
}

static void options_of_other_commands_say_whose_they_are(void **state)
{
    (void)state;
    refuses(CLI_COMMAND_TOKENIZE, "--model m --port 80", "--port", "serve");
    refuses(CLI_COMMAND_SERVE, "--model m --prompt hi", "--prompt", "generate");
}

static void sglang_flags_warn_or_refuse(void **state)
{
    struct cli_options options;
    struct err err;
    size_t ignored = 0;

    (void)state;
    assert_int_equal(parse(CLI_COMMAND_SERVE,
                           "--model m --trust-remote-code --disable-cuda-graph --tp-size 1 "
                           "--prefill-attention-backend fa3 --cuda-graph-bs 1 2 4 "
                           "--load-format auto --attention-backend fa3 --dp-size=1",
                           &options, &err),
                     STATUS_OK);
    for (size_t i = 0; i < cli_foreign_flag_count; i++)
        ignored += options.ignored[i];
    assert_int_equal(ignored, 4); /* not --tp-size 1, --dp-size 1, --load-format auto */
    cli_options_deinit(&options);
    refuses(CLI_COMMAND_SERVE, "--model m --tp-size 2", "--tp-size 2", "only 1");
    accepts(CLI_COMMAND_SERVE, "--model m --dp-size 2");
    accepts(CLI_COMMAND_SERVE, "--model m --dp 3");
    accepts(CLI_COMMAND_SERVE, "--model m --data-parallel-size 4");
    refuses(CLI_COMMAND_SERVE, "--model m --dp-size 0", "--dp-size", "from 1 to 64");
    refuses(CLI_COMMAND_GENERATE, "--model m --prompt a --dp-size 2", "--dp-size 2", "'serve'");
    refuses(CLI_COMMAND_SERVE, "--model m --api-key secret", "--api-key", "proxy");
    refuses(CLI_COMMAND_SERVE, "--model m --quantization fp8", "--quantization", "BF16");
    refuses(CLI_COMMAND_SERVE, "--model m --is-embedding", "--is-embedding", "text");
    refuses(CLI_COMMAND_SERVE, "--model m --attention-backend", "--attention-backend", "value");
    refuses(CLI_COMMAND_SERVE, "--model m --disable-cuda-graph=1", "--disable", "takes no value");
}

static void offload_modes_are_those_that_exist(void **state)
{
    (void)state;
    accepts(CLI_COMMAND_SERVE, "--model m --offload-mode cpu");
    accepts(CLI_COMMAND_SERVE, "--model m --offload-mode meta");
    accepts(CLI_COMMAND_BENCH, "--model m --offload-mode disk");
    accepts(CLI_COMMAND_SERVE, "--model m --offload-mode auto");
    accepts(CLI_COMMAND_SERVE, "--model m --offload-mode shm_cpu");
    accepts(CLI_COMMAND_SERVE, "--model m --offload-mode sharded_gpu");
    refuses(CLI_COMMAND_SERVE, "--model m --offload-mode mta", "'mta'", "'meta'");
}

static void a_prompt_is_given_once(void **state)
{
    (void)state;
    refuses(CLI_COMMAND_GENERATE, "--model m", "no prompt", "--input-ids");
    refuses(CLI_COMMAND_LOGITS, "--model m --prompt a --input-ids 1", "2 prompts", "--prompt-file");
    refuses(CLI_COMMAND_GENERATE, "--model m --prompt a --skip-tokenizer-init", "tokenizer",
            "--input-ids");
    refuses(CLI_COMMAND_SERVE, "--port 1", "'serve'", "--model");
    accepts(CLI_COMMAND_GENERATE, "--model m --input-ids 1 --skip-tokenizer-init");
    accepts(CLI_COMMAND_GENERATE, "--help"); /* which needs nothing else */
}

static void too_many_stop_texts_are_refused(void **state)
{
    char line[512] = "--model m --prompt p";

    (void)state;
    for (int i = 0; i < 15; i++)
        strncat(line, " --stop=x", sizeof(line) - strlen(line) - 1);
    accepts(CLI_COMMAND_GENERATE, line);
    strncat(line, " --stop=x --stop=y", sizeof(line) - strlen(line) - 1);
    refuses(CLI_COMMAND_GENERATE, line, "--stop", "16");
}

static void the_library_sets_options_by_name(void **state)
{
    struct cli_options options;
    struct err err;

    (void)state;
    cli_options_init(&options);
    assert_int_equal(cli_options_set(&options, CLI_COMMAND_SERVE, "threads", "2", &err), STATUS_OK);
    assert_int_equal(cli_options_set(&options, CLI_COMMAND_SERVE, "json", "true", &err),
                     STATUS_OK);
    assert_true(options.json);
    assert_int_equal(cli_options_set(&options, CLI_COMMAND_SERVE, "json", "1", &err),
                     STATUS_BAD_INPUT);
    assert_int_equal(cli_options_set(&options, CLI_COMMAND_SERVE, "thread", "2", &err),
                     STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "--threads"));
    assert_int_equal(options.threads, 2);
    cli_options_deinit(&options);
}

static void tables_are_sound(void **state)
{
    (void)state;
    assert_true(cli_foreign_flag_count <= CLI_FOREIGN_MAX);
    for (size_t i = 0; i < cli_option_count; i++) {
        const struct cli_option *option = &cli_option_table[i];
        assert_true(strlen(option->name) <= NAME_SIZE_MAX);
        assert_true(option->commands != 0 && option->help != NULL && option->group != NULL);
        assert_true(option->offset < sizeof(struct cli_options));
        assert_true((option->kind == CLI_OPTION_CHOICE) == (option->choices != NULL));
        assert_true((option->kind == CLI_OPTION_FLAG) == (option->value_name == NULL));
        for (size_t j = 0; j < i; j++)
            assert_true(cli_option_table[j].offset != option->offset);
        for (size_t j = 0; j < cli_foreign_flag_count; j++)
            assert_string_not_equal(cli_foreign_flags[j].name, option->name);
    }
    for (size_t i = 0; i < cli_foreign_flag_count; i++) {
        assert_true(strlen(cli_foreign_flags[i].name) <= NAME_SIZE_MAX);
        for (size_t j = 0; j < i; j++)
            assert_string_not_equal(cli_foreign_flags[j].name, cli_foreign_flags[i].name);
    }
}

static void commands_are_found_or_named(void **state)
{
    enum cli_command command;
    struct err err;

    (void)state;
    assert_int_equal(cli_command_find("bench", &command, &err), STATUS_OK);
    assert_int_equal(command, CLI_COMMAND_BENCH);
    assert_int_equal(cli_command_find("sevre", &command, &err), STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "'serve'"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_reach_their_fields),
        cmocka_unit_test(defaults_are_those_of_the_help),
        cmocka_unit_test(a_budget_alone_means_auto),
        cmocka_unit_test(bad_values_are_refused_with_their_range),
        cmocka_unit_test(unknown_options_name_the_nearest),
        cmocka_unit_test(options_of_other_commands_say_whose_they_are),
        cmocka_unit_test(sglang_flags_warn_or_refuse),
        cmocka_unit_test(offload_modes_are_those_that_exist),
        cmocka_unit_test(a_prompt_is_given_once),
        cmocka_unit_test(too_many_stop_texts_are_refused),
        cmocka_unit_test(the_library_sets_options_by_name),
        cmocka_unit_test(tables_are_sound),
        cmocka_unit_test(commands_are_found_or_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
