/* text/template/template_fuzz.c - hostile templates over a hostile input.
 *
 * Input: a template, a NUL, the variables as JSON; without a NUL the variables are fixed. What
 * renders must be UTF-8 with a mark for each byte, and render again to the same. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/utf8.h"
#include "text/template/template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char usual[] =
    "{\"messages\": [{\"role\": \"user\", \"content\": \"a <b> \\u00e9\"},"
    " {\"role\": \"assistant\", \"content\": null,"
    "  \"tool_calls\": [{\"function\": {\"name\": \"f\", \"arguments\": {\"x\": 1.5}}}]}],"
    " \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\":"
    " {\"type\": \"object\", \"properties\": {\"x\": {\"type\": \"number\"}}}}}],"
    " \"add_generation_prompt\": true, \"n\": 7, \"s\": \"Hello World\"}";

static void require(bool condition)
{
    if (!condition)
        abort();
}

static enum status render(const struct template *template, const json_t *variables,
                          struct template_output *output)
{
    struct template_input input = { .variables = variables, .now = 1700000000 };
    struct err err;
    enum status st = template_render(template, &input, output, &err);

    require(output->text.size == output->marks.size);
    require(st != STATUS_OK || utf8_is_valid(output->text.data != NULL ? output->text.data : "",
                                             output->text.size));
    return st;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    const char *end = size > 0 ? memchr(text, '\0', size) : NULL;
    size_t text_size = end != NULL ? (size_t)(end - text) : size;
    struct template *template = NULL;
    struct template_output first;
    struct template_output second;
    json_t *variables = NULL;
    struct err err;

    if (end != NULL)
        variables = json_loadb(end + 1, size - text_size - 1, JSON_ALLOW_NUL, NULL);
    else
        variables = json_loads(usual, 0, NULL);
    if (!json_is_object(variables) ||
        template_create(text, text_size, "fuzz", &template, &err) != STATUS_OK) {
        json_decref(variables);
        return 0;
    }
    template_output_init(&first);
    template_output_init(&second);
    if (render(template, variables, &first) == STATUS_OK) {
        require(render(template, variables, &second) == STATUS_OK);
        require(first.text.size == second.text.size);
        require(first.text.size == 0 ||
                (memcmp(first.text.data, second.text.data, first.text.size) == 0 &&
                 memcmp(first.marks.data, second.marks.data, first.text.size) == 0));
    }
    template_output_deinit(&first);
    template_output_deinit(&second);
    template_destroy(template);
    json_decref(variables);
    return 0;
}
