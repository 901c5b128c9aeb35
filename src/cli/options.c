/* cli/options.c - see options.h. Knows no option by name but those that exclude each other. */
#include "cli/options.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/nearest.h"
#include "base/size.h"
#include "cli/options_table.h"

#define NAME_MAX_PRINTED 64
#define CHOICES_MAX 16
#define CHOICE_SIZE_MAX 32

static const struct {
    const char *name, *help;
} commands[CLI_COMMAND_COUNT] = {
    [CLI_COMMAND_GENERATE] = { "generate", "answers one prompt and reports what moved" },
    [CLI_COMMAND_CHAT] = { "chat", "talks with a model in the terminal" },
    [CLI_COMMAND_SERVE] = { "serve", "answers requests over HTTP until SIGTERM" },
    [CLI_COMMAND_BENCH] = { "bench", "measures prefill and decode against their bounds" },
    [CLI_COMMAND_LOGITS] = { "logits", "writes the logits of every token of a prompt" },
    [CLI_COMMAND_TOKENIZE] = { "tokenize", "turns text into token ids, or ids into text" },
    [CLI_COMMAND_INSPECT] = { "inspect", "tells what a checkpoint holds, whether it will run, "
                                         "and what a device has" },
    [CLI_COMMAND_PLAN] = { "plan", "tells what would live where, and how fast it would run" },
    [CLI_COMMAND_QUANTIZE] = { "quantize", "makes a GGUF file of a model, with its weights in "
                                           "other types" },
    [CLI_COMMAND_SELFTEST] = { "selftest", "checks a device against the CPU: operators, copies" },
};

const char *cli_command_name(enum cli_command command)
{
    return commands[command].name;
}

const char *cli_command_help(enum cli_command command)
{
    return commands[command].help;
}

enum status cli_command_find(const char *name, enum cli_command *command_out, struct err *err)
{
    const char *names[CLI_COMMAND_COUNT];

    for (uint32_t i = 0; i < CLI_COMMAND_COUNT; i++) {
        names[i] = commands[i].name;
        if (strcmp(name, names[i]) == 0) {
            *command_out = (enum cli_command)i;
            return STATUS_OK;
        }
    }
    return err_set(err, STATUS_BAD_INPUT,
                   "there is no command '%.*s'; the nearest is '%s' (lighter --help lists all)",
                   NAME_MAX_PRINTED, name, nearest_name(name, names, CLI_COMMAND_COUNT));
}

bool cli_choice_contains(const char *choices, const char *value)
{
    const size_t length = strlen(value);

    for (const char *at = choices;; at++) {
        const size_t span = strcspn(at, "|");
        if (span == length && strncmp(at, value, length) == 0)
            return true;
        at += span;
        if (*at == '\0')
            return false;
    }
}

static const struct cli_option *option_find(const char *name)
{
    for (size_t i = 0; i < cli_option_count; i++) {
        const struct cli_option *option = &cli_option_table[i];
        if (strcmp(name, option->name) == 0 ||
            (option->alias != NULL && strcmp(name, option->alias) == 0) ||
            (option->also != NULL && cli_choice_contains(option->also, name)))
            return option;
    }
    return NULL;
}

static const struct cli_foreign_flag *foreign_find(const char *name)
{
    for (size_t i = 0; i < cli_foreign_flag_count; i++)
        if (strcmp(name, cli_foreign_flags[i].name) == 0)
            return &cli_foreign_flags[i];
    return NULL;
}

/* The subcommand's own options first: of two that are as near, the first is named. */
static enum status unknown_option(enum cli_command command, const char *name, struct err *err)
{
    const char *names[CLI_FOREIGN_MAX + 128];
    size_t count = 0;

    assert(cli_option_count + cli_foreign_flag_count <= sizeof(names) / sizeof(names[0]));
    for (size_t i = 0; i < cli_option_count; i++)
        if ((cli_option_table[i].commands >> command & 1) != 0)
            names[count++] = cli_option_table[i].name;
    for (size_t i = 0; i < cli_foreign_flag_count; i++)
        names[count++] = cli_foreign_flags[i].name;
    return err_set(err, STATUS_BAD_INPUT, "there is no option --%.*s; the nearest is --%s",
                   NAME_MAX_PRINTED, name, nearest_name(name, names, count));
}

/* "generate, bench" into out. */
static void command_list(uint32_t mask, char *out, size_t out_size)
{
    size_t used = 0;

    out[0] = '\0';
    for (uint32_t i = 0; i < CLI_COMMAND_COUNT && used < out_size; i++)
        if ((mask >> i & 1) != 0)
            used += (size_t)snprintf(out + used, out_size - used, "%s%s", used > 0 ? ", " : "",
                                     commands[i].name);
}

static enum status parse_int(const struct cli_option *option, const char *text, int64_t *out,
                             struct err *err)
{
    char *end = NULL;
    long long number;

    errno = 0;
    number = strtoll(text, &end, 10);
    if (end == text || *end != '\0')
        return err_set(err, STATUS_BAD_INPUT, "--%s: '%.*s' is not a whole number", option->name,
                       NAME_MAX_PRINTED, text);
    if (errno == ERANGE || (double)number < option->min || (double)number > option->max)
        return err_set(err, STATUS_BAD_INPUT,
                       "--%s: %.*s is out of range; it must be from %.0f to %.0f", option->name,
                       NAME_MAX_PRINTED, text, option->min, option->max);
    *out = number;
    return STATUS_OK;
}

static enum status parse_real(const struct cli_option *option, const char *text, double *out,
                              struct err *err)
{
    char *end = NULL;
    const double number = strtod(text, &end);

    if (end == text || *end != '\0' || !isfinite(number))
        return err_set(err, STATUS_BAD_INPUT, "--%s: '%.*s' is not a number", option->name,
                       NAME_MAX_PRINTED, text);
    if (number < option->min || number > option->max ||
        (option->above_min && number <= option->min))
        return err_set(err, STATUS_BAD_INPUT,
                       "--%s: %.*s is out of range; it must be %s %g and at most %g", option->name,
                       NAME_MAX_PRINTED, text, option->above_min ? "above" : "at least",
                       option->min, option->max);
    *out = number;
    return STATUS_OK;
}

static enum status parse_ids(const struct cli_option *option, const char *text,
                             struct token_ids *out, struct err *err)
{
    token_ids_deinit(out);
    *out = (struct token_ids){ 0 };
    for (const char *at = text;; at++) {
        char *end = NULL;
        long long id;
        enum status st;

        errno = 0;
        id = strtoll(at, &end, 10);
        if (end == at || errno == ERANGE || id < 0 || id > INT32_MAX ||
            (*end != ',' && *end != '\0'))
            return err_set(err, STATUS_BAD_INPUT,
                           "--%s: '%.*s' at character %zu is not a token id; ids are written "
                           "1,2,3",
                           option->name, 16, at, (size_t)(at - text));
        st = token_ids_push(out, (int32_t)id, err);
        if (st != STATUS_OK)
            return st;
        if (*end == '\0')
            return STATUS_OK;
        at = end;
    }
}

static enum status parse_choice(const struct cli_option *option, const char *text,
                                const char **out, struct err *err)
{
    char copies[CHOICES_MAX][CHOICE_SIZE_MAX];
    const char *names[CHOICES_MAX];
    size_t count = 0;

    if (cli_choice_contains(option->choices, text)) {
        *out = text;
        return STATUS_OK;
    }
    for (const char *at = option->choices; *at != '\0'; count++) {
        const size_t span = strcspn(at, "|");
        assert(count < CHOICES_MAX && span < CHOICE_SIZE_MAX);
        (void)snprintf(copies[count], CHOICE_SIZE_MAX, "%.*s", (int)span, at);
        names[count] = copies[count];
        at += span + (at[span] == '|');
    }
    return err_set(err, STATUS_BAD_INPUT, "--%s: there is no '%.*s'; the nearest is '%s' (of %s)",
                   option->name, NAME_MAX_PRINTED, text, nearest_name(text, names, count),
                   option->choices);
}

static enum status value_set(struct cli_options *options, const struct cli_option *option,
                             const char *text, struct err *err)
{
    void *field = (char *)options + option->offset;
    struct cli_texts *texts = field;
    enum status st;

    switch (option->kind) {
    case CLI_OPTION_FLAG:
        *(bool *)field = true;
        return STATUS_OK;
    case CLI_OPTION_TEXT:
        *(const char **)field = text;
        return STATUS_OK;
    case CLI_OPTION_CHOICE:
        return parse_choice(option, text, field, err);
    case CLI_OPTION_INT:
        return parse_int(option, text, field, err);
    case CLI_OPTION_REAL:
        return parse_real(option, text, field, err);
    case CLI_OPTION_SIZE: {
        char what[NAME_MAX_PRINTED];
        (void)snprintf(what, sizeof(what), "--%s", option->name);
        st = size_parse(text, what, field, err);
        if (st == STATUS_OK && *(uint64_t *)field == 0)
            st = err_set(err, STATUS_BAD_INPUT, "--%s: '%s' is nothing; leave it out for no bound",
                         option->name, text);
        return st;
    }
    case CLI_OPTION_IDS:
        return parse_ids(option, text, field, err);
    case CLI_OPTION_TEXTS:
        if (texts->count == CLI_TEXTS_MAX)
            return err_set(err, STATUS_BAD_INPUT, "--%s: given more than %d times", option->name,
                           CLI_TEXTS_MAX);
        texts->items[texts->count++] = text;
        return STATUS_OK;
    }
    assert(false);
    return STATUS_OK;
}

void cli_options_init(struct cli_options *options)
{
    *options = (struct cli_options){ .seed = -1, .random_seed = -1,
                                     .max_new_tokens = -1 };
    for (size_t i = 0; i < cli_option_count; i++) {
        const struct cli_option *option = &cli_option_table[i];
        enum status st = STATUS_OK;

        if (option->fallback != NULL)
            st = value_set(options, option, option->fallback, NULL);
        assert(st == STATUS_OK);
        (void)st;
    }
}

void cli_options_deinit(struct cli_options *options)
{
    for (size_t i = 0; i < cli_option_count; i++) {
        const struct cli_option *option = &cli_option_table[i];
        if (option->kind == CLI_OPTION_IDS)
            token_ids_deinit((struct token_ids *)(void *)((char *)options + option->offset));
    }
    *options = (struct cli_options){ 0 };
}

/* What a flag of SGLang's comes to: nothing, a warning later, or a refusal. value may be NULL. */
static enum status foreign_judge(struct cli_options *options,
                                 const struct cli_foreign_flag *flag, const char *value,
                                 struct err *err)
{
    if (flag->honoured != NULL && value != NULL && cli_choice_contains(flag->honoured, value))
        return STATUS_OK;
    if (!flag->refused) {
        assert(flag - cli_foreign_flags < CLI_FOREIGN_MAX);
        options->ignored[flag - cli_foreign_flags] = true;
        return STATUS_OK;
    }
    if (flag->honoured != NULL && flag->honoured[0] != '\0')
        return err_set(err, STATUS_BAD_INPUT, "--%s %.*s is not built: %s; only %s will do",
                       flag->name, NAME_MAX_PRINTED, value != NULL ? value : "", flag->why,
                       flag->honoured);
    return err_set(err, STATUS_BAD_INPUT, "--%s is not built: %s", flag->name, flag->why);
}

/* Takes the values of a flag of SGLang's, from args[*at] on, and judges it. */
static enum status foreign_parse(struct cli_options *options,
                                 const struct cli_foreign_flag *flag, const char *attached,
                                 const char *const *args, size_t count, size_t *at,
                                 struct err *err)
{
    const char *value = attached;
    size_t taken = 0;

    if (flag->arity == CLI_ARITY_NONE && attached != NULL)
        return err_set(err, STATUS_BAD_INPUT, "--%s takes no value", flag->name);
    if (flag->arity != CLI_ARITY_NONE && attached == NULL) {
        while (*at + taken < count && strncmp(args[*at + taken], "--", 2) != 0 &&
               (flag->arity == CLI_ARITY_MANY || taken == 0))
            taken++;
        if (taken == 0 && flag->arity != CLI_ARITY_MAYBE)
            return err_set(err, STATUS_BAD_INPUT, "--%s needs a value", flag->name);
        if (taken > 0)
            value = args[*at];
    }
    *at += taken;
    return foreign_judge(options, flag, value, err);
}

static enum status has_option(enum cli_command command, const struct cli_option *option,
                              struct err *err)
{
    char list[128];

    if ((option->commands >> command & 1) != 0)
        return STATUS_OK;
    command_list(option->commands, list, sizeof(list));
    return err_set(err, STATUS_BAD_INPUT, "'%s' has no option --%s; it belongs to: %s",
                   commands[command].name, option->name, list);
}

/* Takes the option at args[*at] and its value; *at is then past both. */
static enum status option_parse(struct cli_options *options, enum cli_command command,
                                const char *const *args, size_t count, size_t *at,
                                struct err *err)
{
    const char *arg = args[(*at)++];
    const char *equals = strchr(arg, '=');
    const char *value = equals != NULL ? equals + 1 : NULL;
    const struct cli_option *option;
    const struct cli_foreign_flag *flag;
    char name[NAME_MAX_PRINTED + 1];
    enum status st;

    if (strcmp(arg, "-h") == 0)
        arg = "--help";
    if (strncmp(arg, "--", 2) != 0 && command == CLI_COMMAND_INSPECT && options->model == NULL)
        return value_set(options, option_find("model"), arg, err);
    if (strncmp(arg, "--", 2) != 0)
        return err_set(err, STATUS_BAD_INPUT,
                       "'%.*s' belongs to no option; options begin with two dashes, and a model "
                       "is given as --model PATH",
                       NAME_MAX_PRINTED, arg);
    (void)snprintf(name, sizeof(name), "%.*s",
                   (int)(equals != NULL ? equals - arg - 2 : NAME_MAX_PRINTED), arg + 2);
    option = option_find(name);
    if (option == NULL) {
        flag = foreign_find(name);
        if (flag == NULL)
            return unknown_option(command, name, err);
        return foreign_parse(options, flag, value, args, count, at, err);
    }
    st = has_option(command, option, err);
    if (st != STATUS_OK)
        return st;
    if (option->kind == CLI_OPTION_FLAG) {
        if (value != NULL)
            return err_set(err, STATUS_BAD_INPUT, "--%s takes no value", option->name);
    } else if (value == NULL) {
        if (*at == count || strncmp(args[*at], "--", 2) == 0)
            return err_set(err, STATUS_BAD_INPUT,
                           "--%s needs a value: --%s=%s", option->name, option->name,
                           option->value_name);
        value = args[(*at)++];
    }
    return value_set(options, option, value, err);
}

enum status cli_options_parse(struct cli_options *options, enum cli_command command,
                              const char *const *args, size_t count, struct err *err)
{
    for (size_t at = 0; at < count;) {
        const enum status st = option_parse(options, command, args, count, &at, err);
        if (st != STATUS_OK)
            return st;
    }
    return options->help ? STATUS_OK : cli_options_check(options, command, err);
}

enum status cli_options_set(struct cli_options *options, enum cli_command command,
                            const char *name, const char *value, struct err *err)
{
    const struct cli_option *option = option_find(name);
    const struct cli_foreign_flag *flag;
    enum status st;

    if (option == NULL) {
        flag = foreign_find(name);
        if (flag == NULL)
            return unknown_option(command, name, err);
        return foreign_judge(options, flag, value, err);
    }
    st = has_option(command, option, err);
    if (st != STATUS_OK)
        return st;
    if (option->kind != CLI_OPTION_FLAG)
        return value_set(options, option, value, err);
    if (strcmp(value, "true") != 0 && strcmp(value, "false") != 0)
        return err_set(err, STATUS_BAD_INPUT, "--%s: '%.*s' is neither true nor false",
                       option->name, NAME_MAX_PRINTED, value);
    *(bool *)(void *)((char *)options + option->offset) = value[0] == 't';
    return STATUS_OK;
}

static enum status check_prompt(const struct cli_options *options, struct err *err)
{
    const int given = (options->prompt != NULL) + (options->prompt_file != NULL) +
                      (options->input_ids.count > 0);

    if (given == 0)
        return err_set(err, STATUS_BAD_INPUT,
                       "there is no prompt; give --prompt TEXT, --prompt-file FILE or "
                       "--input-ids 1,2,3");
    if (given > 1)
        return err_set(err, STATUS_BAD_INPUT,
                       "there are %d prompts; give one of --prompt, --prompt-file and --input-ids",
                       given);
    if (options->skip_tokenizer_init && options->input_ids.count == 0)
        return err_set(err, STATUS_BAD_INPUT,
                       "--skip-tokenizer-init: a text prompt needs the tokenizer; give "
                       "--input-ids 1,2,3");
    return STATUS_OK;
}

const char *cli_options_offload_mode(const struct cli_options *options)
{
    const bool says_what_moves = options->cpu_offload_gb > 0 || options->offload_group_size > 0 ||
                                 options->offload_params != NULL || options->offload_experts ||
                                 options->offload_expert_slots != 0;

    if (options->offload_mode != NULL)
        return options->offload_mode;
    return options->memory_budget_bytes > 0 && !says_what_moves ? "auto" : "cpu";
}

enum status cli_options_check(const struct cli_options *options, enum cli_command command,
                              struct err *err)
{
    const bool runs = command != CLI_COMMAND_TOKENIZE && command != CLI_COMMAND_INSPECT;
    const char *mode = cli_options_offload_mode(options);
    enum offload_home home;

    if (command == CLI_COMMAND_SELFTEST ||
        (command == CLI_COMMAND_INSPECT && options->model == NULL && options->device != NULL))
        return STATUS_OK; /* the device alone */
    if (options->model == NULL || options->model[0] == '\0')
        return err_set(err, STATUS_BAD_INPUT, "'%s' needs a model: --model PATH",
                       commands[command].name);
    if (runs && strcmp(mode, "auto") != 0 && offload_mode_parse(mode, &home, err) != STATUS_OK)
        return STATUS_BAD_INPUT;
    if (command != CLI_COMMAND_SERVE && options->dp_size > 1)
        return err_set(err, STATUS_BAD_INPUT,
                       "--dp-size %d: '%s' runs one rank; several are for 'serve', which has many "
                       "requests to spread over them", (int)options->dp_size,
                       commands[command].name);
    if (command == CLI_COMMAND_GENERATE || command == CLI_COMMAND_LOGITS)
        return check_prompt(options, err);
    if (command == CLI_COMMAND_QUANTIZE && (options->out == NULL || options->type == NULL))
        return err_set(err, STATUS_BAD_INPUT, "'quantize' needs --%s",
                       options->out == NULL ? "out FILE.gguf" : "type TYPE, such as Q4_K_M");
    if (command == CLI_COMMAND_TOKENIZE && options->skip_special && options->decode.count == 0)
        return err_set(err, STATUS_BAD_INPUT, "--skip-special goes with --decode only");
    return STATUS_OK;
}

void cli_options_warn(const struct cli_options *options, const struct log *log)
{
    for (size_t i = 0; i < cli_foreign_flag_count; i++)
        if (options->ignored[i])
            log_line(log, LOG_WARN, "--%s has no effect here: %s", cli_foreign_flags[i].name,
                     cli_foreign_flags[i].why);
}

enum log_level cli_options_log_level(const struct cli_options *options)
{
    static const struct {
        const char *name;
        enum log_level level;
    } levels[] = { { "debug", LOG_DEBUG },
                   { "info", LOG_INFO },
                   { "warning", LOG_WARN },
                   { "error", LOG_ERROR },
                   { "critical", LOG_ERROR } };
    enum log_level level = LOG_INFO;

    for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++)
        if (strcmp(options->log_level, levels[i].name) == 0)
            level = levels[i].level;
    return options->quiet && level < LOG_WARN ? LOG_WARN : level;
}
