/* text/tokenizer/read.c - reading the components of a tokenizer.json. */
#include "text/tokenizer/internal.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/utf8.h"

enum status component_unsupported(const char *what, const char *type, struct err *err)
{
    return err_set(err, STATUS_BAD_INPUT, "%s: the type \"%.64s\" is not supported", what, type);
}

struct walk {
    const char *members_key;
    const char *what;
    enum status (*add)(void *context, const json_t *component, const char *type, const char *what,
                       struct err *err);
    void *context;
};

static enum status walk_one(const struct walk *walk, const json_t *json, int depth,
                            struct err *err)
{
    const json_t *members = NULL;
    const char *type = NULL;
    enum status st;
    size_t i;
    json_t *member;

    if (!json_is_object(json))
        return err_set(err, STATUS_BAD_INPUT, "%s: %s, an object is wanted", walk->what,
                       json_kind(json));
    st = json_get_string(json, "type", walk->what, &type, err);
    if (st != STATUS_OK)
        return st;
    if (type == NULL)
        return err_set(err, STATUS_BAD_INPUT, "%s: \"type\" is missing", walk->what);
    if (strcmp(type, "Sequence") != 0)
        return walk->add(walk->context, json, type, walk->what, err);
    if (depth >= SEQUENCE_DEPTH_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: Sequences nested more than %d deep", walk->what,
                       SEQUENCE_DEPTH_MAX);
    st = json_get_array(json, walk->members_key, walk->what, &members, err);
    if (st != STATUS_OK)
        return st;
    if (members == NULL)
        return err_set(err, STATUS_BAD_INPUT, "%s: the Sequence lacks \"%s\"", walk->what,
                       walk->members_key);
    json_array_foreach((json_t *)members, i, member) {
        st = walk_one(walk, member, depth + 1, err);
        if (st != STATUS_OK)
            return st;
    }
    return STATUS_OK;
}

enum status components_walk(const json_t *json, const char *members_key, const char *what,
                            enum status (*add)(void *context, const json_t *component,
                                               const char *type, const char *what,
                                               struct err *err),
                            void *context, struct err *err)
{
    const struct walk walk = { members_key, what, add, context };

    if (json == NULL || json_is_null(json))
        return STATUS_OK;
    return walk_one(&walk, json, 0, err);
}

enum status string_copy(const char *bytes, size_t size, struct text_string *out, struct err *err)
{
    char *copy = malloc(size + 1);

    if (copy == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a string of %zu bytes", size);
    if (size > 0)
        memcpy(copy, bytes, size);
    copy[size] = '\0';
    out->bytes = copy;
    out->size = size;
    return STATUS_OK;
}

void string_deinit(struct text_string *string)
{
    free(string->bytes);
    *string = (struct text_string){ NULL, 0 };
}

enum status string_read(const json_t *object, const char *key, const char *what, size_t size_max,
                        struct text_string *out, struct err *err)
{
    const json_t *value = json_object_get(object, key);

    if (!json_is_string(value))
        return err_set(err, STATUS_BAD_INPUT, "%s: \"%s\" is %s, a string is wanted", what, key,
                       json_kind(value));
    if (json_string_length(value) > size_max)
        return err_set(err, STATUS_BAD_INPUT, "%s: \"%s\" has %zu bytes, at most %zu are taken",
                       what, key, json_string_length(value), size_max);
    return string_copy(json_string_value(value), json_string_length(value), out, err);
}

enum status character_read(const json_t *object, const char *key, const char *what, char out[4],
                           size_t *size_out, struct err *err)
{
    const json_t *value = json_object_get(object, key);
    const char *bytes = json_string_value(value);
    uint32_t code_point;
    size_t size;

    if (bytes == NULL)
        return err_set(err, STATUS_BAD_INPUT, "%s: \"%s\" is %s, one character is wanted", what,
                       key, json_kind(value));
    size = json_string_length(value);
    if (size == 0 || utf8_decode(bytes, size, &code_point, NULL) != size)
        return err_set(err, STATUS_BAD_INPUT, "%s: \"%s\" is not exactly one character", what, key);
    memcpy(out, bytes, size);
    *size_out = size;
    return STATUS_OK;
}
