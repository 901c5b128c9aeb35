/* text/template/template.c - templates made and rendered; see template.h. */
#include "text/template/template.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "text/template/internal.h"

/* Parses, or leaves through job->escape: apart, so that nothing lives across the setjmp. */
static enum status parse_guarded(struct template *template, const char *text, size_t size)
{
    if (setjmp(template->job.escape) != 0)
        return template->job.status;
    tpl__parse(template, text, size);
    return STATUS_OK;
}

enum status template_create(const char *text, size_t size, const char *what,
                            struct template **template_out, struct err *err)
{
    struct template *template;
    enum status st;

    if (size > TEMPLATE_BYTES_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: a template of %zu bytes, at most %zu", what,
                       size, TEMPLATE_BYTES_MAX);
    if (!utf8_is_valid(text, size))
        return err_set(err, STATUS_BAD_INPUT, "%s: the template is not UTF-8", what);
    template = calloc(1, sizeof(*template));
    if (template == NULL || (template->what = strdup(what)) == NULL) {
        free(template);
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for a template", what);
    }
    tpl__job_init(&template->job, TEMPLATE_PARSED_BYTES_MAX, TEMPLATE_NESTING_MAX, template->what,
                  err);
    st = parse_guarded(template, text, size);
    template->job.err = NULL;
    if (st != STATUS_OK) {
        template_destroy(template);
        return st;
    }
    *template_out = template;
    return STATUS_OK;
}

void template_destroy(struct template *template)
{
    if (template == NULL)
        return;
    tpl__job_deinit(&template->job);
    free(template->what);
    free(template);
}

bool template_mentions(const struct template *template, const char *string, size_t size)
{
    if (size == 0)
        return true;
    for (size_t i = 0; i < template->literals.count; i++) {
        const struct str *text = template->literals.items[i];

        if (memmem(text->bytes, text->size, string, size) != NULL)
            return true;
    }
    return false;
}

void template_output_init(struct template_output *output)
{
    buf_init(&output->text, TEMPLATE_OUTPUT_BYTES_MAX);
    buf_init(&output->marks, TEMPLATE_OUTPUT_BYTES_MAX);
}

void template_output_deinit(struct template_output *output)
{
    buf_deinit(&output->text);
    buf_deinit(&output->marks);
}

/* The variables that the template knows by name. */
static void bind_variables(struct run *run, const json_t *variables, uint8_t origin)
{
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)variables, key, value) {
        const struct str *name = tpl__interned(&run->template->names, key, strlen(key));

        if (name != NULL)
            tpl__bind_name(run, run->root, name, tpl__from_json(&run->job, value, origin));
    }
}

static enum status render_guarded(struct run *run, const struct template_input *input)
{
    if (setjmp(run->job.escape) != 0)
        return run->job.status;
    run->root = tpl__scope(run, NULL);
    if (input->trusted != NULL)
        bind_variables(run, input->trusted, 0);
    bind_variables(run, input->variables, 1);
    tpl__run(run);
    return STATUS_OK;
}

static enum status append(const struct builder *text, struct template_output *output,
                          struct err *err)
{
    size_t size = text->size;
    enum status st = buf_append(&output->text, size > 0 ? text->bytes : "", size, err);

    if (st == STATUS_OK)
        st = buf_reserve(&output->marks, output->marks.size + size, err);
    if (st != STATUS_OK || size == 0)
        return st;
    if (text->marks != NULL)
        return buf_append(&output->marks, text->marks, size, err);
    memset(output->marks.data + output->marks.size, text->origin, size);
    output->marks.size += size;
    output->marks.data[output->marks.size] = '\0';
    return STATUS_OK;
}

enum status template_render(const struct template *template, const struct template_input *input,
                            struct template_output *output, struct err *err)
{
    struct run *run = calloc(1, sizeof(*run));
    struct builder text;
    enum status st;

    if (run == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for a rendering", template->what);
    tpl__job_init(&run->job, TEMPLATE_MEMORY_BYTES_MAX, TEMPLATE_DEPTH_MAX, template->what, err);
    run->template = template;
    run->now = input->now != 0 ? input->now : time(NULL);
    tpl__builder_init(&text, &run->job);
    text.size_limit = TEMPLATE_OUTPUT_BYTES_MAX;
    run->out = &text;
    st = render_guarded(run, input);
    if (st == STATUS_OK)
        st = append(&text, output, err);
    tpl__job_deinit(&run->job);
    free(run);
    return st;
}
