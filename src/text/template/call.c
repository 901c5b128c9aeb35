/* text/template/call.c - arguments find their parameters; filters find their functions. */
#include <inttypes.h>
#include <string.h>

#include "text/template/internal.h"

/* The parameter at `at` of a spec: its name's size; *next_out is where the next one begins. */
static size_t parameter(const char *at, bool *optional_out, const char **next_out)
{
    size_t size = strcspn(at, ",?");
    const char *next = at + size;

    *optional_out = *next == '?';
    next += *optional_out;
    *next_out = *next == ',' ? next + 1 : next;
    return size;
}

static const struct value *named(const struct args *args, const char *name, size_t size)
{
    for (size_t i = 0; i < args->named.count; i++) {
        const struct str *key = args->named.entries[i].key.str;

        if (key->size == size && memcmp(key->bytes, name, size) == 0)
            return &args->named.entries[i].value;
    }
    return NULL;
}

void tpl__bind(struct run *run, const char *function, const char *spec, const struct args *args,
               struct value out[ARGS_MAX])
{
    size_t count = 0;
    size_t used = 0;

    for (const char *at = spec; *at != '\0'; count++) {
        const char *next;
        bool optional;
        size_t size = parameter(at, &optional, &next);
        const struct value *value = named(args, at, size);

        out[count].kind = V_MISSING;
        if (count < args->count) {
            if (value != NULL)
                tpl__fail(&run->job, "%s() got multiple values for argument '%.*s'", function,
                          (int)size, at);
            out[count] = args->items[count];
        } else if (value != NULL) {
            out[count] = *value;
            used++;
        } else if (!optional) {
            tpl__fail(&run->job, "%s() misses the argument '%.*s'", function, (int)size, at);
        }
        at = next;
    }
    if (args->count > count)
        tpl__fail(&run->job, "%s() takes at most %zu arguments (%zu given)", function, count,
                  args->count);
    if (used < args->named.count)
        tpl__fail(&run->job, "%s() got an unexpected keyword argument", function);
}

bool tpl__given(struct value value)
{
    return value.kind != V_MISSING && value.kind != V_NONE;
}

struct str *tpl__arg_str(struct run *run, struct value value, const char *what)
{
    if (value.kind == V_UNDEFINED)
        tpl__fail_undefined(&run->job, value);
    if (value.kind != V_STR)
        tpl__fail(&run->job, "%s must be str, not %s", what, tpl__type_name(value));
    return value.str;
}

int64_t tpl__arg_int(struct run *run, struct value value, int64_t missing, const char *what)
{
    int64_t integer = 0;

    if (!tpl__given(value))
        return missing;
    if (value.kind == V_UNDEFINED)
        tpl__fail_undefined(&run->job, value);
    if (!tpl__is_int(value, &integer))
        tpl__fail(&run->job, "%s must be an integer, not %s", what, tpl__type_name(value));
    return integer;
}

bool tpl__arg_bool(struct run *run, struct value value, bool missing)
{
    return value.kind == V_MISSING ? missing : tpl__is_true(&run->job, value);
}

static const struct filter_row *find_filter(const struct str *name)
{
    for (size_t i = 0; i < tpl__list_filter_count; i++) {
        if (tpl__str_is(name, tpl__list_filters[i].name))
            return &tpl__list_filters[i];
    }
    for (size_t i = 0; i < tpl__text_filter_count; i++) {
        if (tpl__str_is(name, tpl__text_filters[i].name))
            return &tpl__text_filters[i];
    }
    return NULL;
}

struct value tpl__filter(struct run *run, const struct str *name, struct value value,
                         const struct args *args)
{
    const struct filter_row *row = find_filter(name);
    struct value bound[ARGS_MAX];

    if (row == NULL)
        tpl__fail(&run->job, "No filter named '%.*s'.", (int)(name->size > 60 ? 60 : name->size),
                  name->bytes);
    tpl__charge(&run->job, 1);
    if (row->call_raw != NULL)
        return row->call_raw(run, value, args);
    tpl__bind(run, row->name, row->spec, args, bound);
    return row->call(run, value, bound);
}
