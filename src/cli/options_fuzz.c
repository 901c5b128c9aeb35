/* cli/options_fuzz.c - command lines of any bytes: read, refused in a sentence, or shown as JSON.
 *
 * The input's first byte chooses the subcommand; the rest is arguments, one a line. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cli/command.h"
#include "cli/options.h"

#define ARGS_MAX 256

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *args[ARGS_MAX];
    const enum cli_command command =
        (enum cli_command)(size > 0 ? data[0] % CLI_COMMAND_COUNT : 0);
    char *text = malloc(size + 1);
    struct cli_options options;
    struct err err = { .message = "" };
    size_t count = 0;

    if (text == NULL)
        return 0;
    if (size > 0)
        memcpy(text, data, size);
    text[size] = '\0';
    for (char *at = size > 0 ? text + 1 : NULL; at != NULL && count < ARGS_MAX;) {
        args[count++] = at;
        at = strchr(at, '\n');
        if (at != NULL)
            *at++ = '\0';
    }
    cli_options_init(&options);
    if (cli_options_parse(&options, command, args, count, &err) == STATUS_OK) {
        json_t *json = cli_options_json(&options, command);
        if (json == NULL || json_object_size(json) == 0)
            abort();
        json_decref(json);
    } else if (err.message[0] == '\0') {
        abort(); /* a refusal without a sentence */
    }
    cli_options_deinit(&options);
    free(text);
    return 0;
}
