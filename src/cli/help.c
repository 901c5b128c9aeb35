/* cli/help.c - --help, and the options as they stand, made from the table of options. */
#include <string.h>

#include "cli/command.h"
#include "cli/options.h"
#include "cli/options_table.h"
#include "device/device.h"

#define HELP_COLUMN 32
#define HELP_WIDTH 100
#define DEVICE_COLUMN 2
#define KEY_SIZE 64

/* Writes text from `column` on, broken between words; `at` is the column reached already. */
static void write_wrapped(FILE *out, const char *text, int at, int column)
{
    while (*text != '\0') {
        const int word = (int)strcspn(text, " ");

        if (at > column && at + 1 + word > HELP_WIDTH) {
            fputc('\n', out);
            at = 0;
        }
        if (at < column) {
            fprintf(out, "%*s", column - at, "");
            at = column;
        } else if (at > column) {
            fputc(' ', out);
            at++;
        }
        fprintf(out, "%.*s", word, text);
        at += word;
        text += word;
        while (*text == ' ')
            text++;
    }
    fputc('\n', out);
}

static void write_option(FILE *out, const struct cli_option *option)
{
    char head[128];
    char text[512];
    int length;

    length = snprintf(head, sizeof(head), "  --%s%s%s", option->name,
                      option->value_name != NULL ? " " : "",
                      option->value_name != NULL ? option->value_name : "");
    if (option->alias != NULL)
        length += snprintf(head + length, sizeof(head) - (size_t)length, ", --%s", option->alias);
    (void)snprintf(text, sizeof(text), "%s%s%s%s%s%s%s", option->help,
                   option->choices != NULL ? " (" : "",
                   option->choices != NULL ? option->choices : "",
                   option->choices != NULL ? ")" : "", option->fallback != NULL ? " [" : "",
                   option->fallback != NULL ? option->fallback : "",
                   option->fallback != NULL ? "]" : "");
    fputs(head, out);
    if (length >= HELP_COLUMN) {
        fputc('\n', out);
        length = 0;
    }
    write_wrapped(out, text, length, HELP_COLUMN);
}

static bool same_group_before(size_t index, enum cli_command command)
{
    for (size_t i = 0; i < index; i++)
        if ((cli_option_table[i].commands >> command & 1) != 0 &&
            strcmp(cli_option_table[i].group, cli_option_table[index].group) == 0)
            return true;
    return false;
}

static bool has_group(enum cli_command command, const char *group)
{
    for (size_t i = 0; i < cli_option_count; i++)
        if ((cli_option_table[i].commands >> command & 1) != 0 &&
            strcmp(cli_option_table[i].group, group) == 0)
            return true;
    return false;
}

void cli_help_write(FILE *out, enum cli_command command)
{
    fprintf(out, "lighter %s: %s.\n\nusage: lighter %s --model PATH [options]\n",
            cli_command_name(command), cli_command_help(command), cli_command_name(command));
    for (size_t i = 0; i < cli_option_count; i++) {
        if ((cli_option_table[i].commands >> command & 1) == 0 || same_group_before(i, command))
            continue;
        fprintf(out, "\n%s:\n", cli_option_table[i].group);
        for (size_t j = i; j < cli_option_count; j++)
            if ((cli_option_table[j].commands >> command & 1) != 0 &&
                strcmp(cli_option_table[j].group, cli_option_table[i].group) == 0)
                write_option(out, &cli_option_table[j]);
    }
    if (has_group(command, "Device")) {
        fputs("\nDevices (--device):\n", out);
        for (const char *const *line = device_help(); *line != NULL; line++)
            write_wrapped(out, *line, 0, DEVICE_COLUMN);
    }
    fputs("\nSizes are written 512MiB, 2GiB or 16GB. Defaults stand in [brackets]. SGLang's launch "
          "flags are\naccepted; one that has no effect says so.\n",
          out);
}

json_t *cli_help_json(enum cli_command command)
{
    json_t *list = json_array();

    for (size_t i = 0; i < cli_option_count; i++) {
        const struct cli_option *option = &cli_option_table[i];
        if ((option->commands >> command & 1) == 0)
            continue;
        json_array_append_new(
            list, json_pack("{s:s, s:s?, s:s?, s:s?, s:s?, s:s}", "name", option->name, "alias",
                            option->alias, "value", option->value_name, "choices",
                            option->choices, "default", option->fallback, "help", option->help));
    }
    return json_pack("{s:s, s:s, s:o}", "command", cli_command_name(command), "help",
                     cli_command_help(command), "options", list);
}

static json_t *value_json(const struct cli_options *options, const struct cli_option *option)
{
    const void *field = (const char *)options + option->offset;
    const struct cli_texts *texts = field;
    json_t *list;

    switch (option->kind) {
    case CLI_OPTION_FLAG: return json_boolean(*(const bool *)field);
    case CLI_OPTION_TEXT:
    case CLI_OPTION_CHOICE: {
        const char *text = *(const char *const *)field;
        return text != NULL ? cli_text_json(text, strlen(text)) : json_null();
    }
    case CLI_OPTION_INT: return json_integer(*(const int64_t *)field);
    case CLI_OPTION_REAL: return json_real(*(const double *)field);
    case CLI_OPTION_SIZE: return json_integer((json_int_t) * (const uint64_t *)field);
    case CLI_OPTION_IDS: {
        const struct token_ids *ids = field;
        return cli_ids_json(ids->ids, ids->count);
    }
    case CLI_OPTION_TEXTS: break;
    }
    list = json_array();
    for (size_t i = 0; i < texts->count; i++)
        json_array_append_new(list, cli_text_json(texts->items[i], strlen(texts->items[i])));
    return list;
}

json_t *cli_options_json(const struct cli_options *options, enum cli_command command)
{
    json_t *json = json_object();

    for (size_t i = 0; i < cli_option_count; i++) {
        const struct cli_option *option = &cli_option_table[i];
        char key[KEY_SIZE];

        if ((option->commands >> command & 1) == 0)
            continue;
        (void)snprintf(key, sizeof(key), "%s",
                       option->alias != NULL ? option->alias : option->name);
        for (char *at = key; *at != '\0'; at++)
            if (*at == '-')
                *at = '_';
        json_object_set_new(json, key, value_json(options, option));
    }
    return json;
}

void cli_usage_write(FILE *out)
{
    fputs("Lighter serves language models whose weights are too big for the accelerator.\n\n"
          "usage: lighter COMMAND --model PATH [options]\n\n",
          out);
    for (uint32_t i = 0; i < CLI_COMMAND_COUNT; i++)
        fprintf(out, "  %-10s %s\n", cli_command_name((enum cli_command)i),
                cli_command_help((enum cli_command)i));
    fputs("\n  lighter COMMAND --help   all options of a command\n"
          "  lighter --version        the version\n\n"
          "Every command takes --json: one JSON object on standard output. Exit status: 0 done,\n"
          "1 failed, 2 bad usage.\n",
          out);
}
