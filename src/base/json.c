/* base/json.c - see json.h. */
#include "base/json.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/buf.h"
#include "base/file.h"

enum status json_read(const char *text, size_t size_bytes, const char *what, json_t **json_out,
                      struct err *err)
{
    json_error_t error;
    json_t *json = json_loadb(text, size_bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);

    if (json == NULL)
        return err_set(err, STATUS_BAD_INPUT, "%s: not valid JSON: line %d, column %d: %s", what,
                       error.line, error.column, error.text);
    *json_out = json;
    return STATUS_OK;
}

enum status json_read_file(const char *path, size_t size_limit, json_t **json_out, struct err *err)
{
    struct buf text;
    enum status st;

    buf_init(&text, size_limit);
    st = file_read_all(path, &text, err);
    if (st == STATUS_OK)
        st = json_read(text.data, text.size, path, json_out, err);
    buf_deinit(&text);
    return st;
}

const char *json_kind(const json_t *value)
{
    if (value == NULL)
        return "nothing";
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a fraction";
    case JSON_TRUE: return "true";
    case JSON_FALSE: return "false";
    case JSON_NULL: return "null";
    }
    return "unknown";
}

static enum status wrong_kind(const json_t *value, const char *key, const char *what,
                              const char *wanted, struct err *err)
{
    return err_set(err, STATUS_BAD_INPUT, "%s: \"%s\" is %s, %s is wanted", what, key,
                   json_kind(value), wanted);
}

enum status json_get_int(const json_t *object, const char *key, const char *what, int64_t min,
                         int64_t max, int64_t *out, struct err *err)
{
    const json_t *value = json_object_get(object, key);
    int64_t number;

    if (value == NULL || json_is_null(value))
        return STATUS_OK;
    if (json_is_integer(value)) {
        number = json_integer_value(value);
    } else if (json_is_real(value) && json_real_value(value) == floor(json_real_value(value)) &&
               fabs(json_real_value(value)) < 0x1p53) {
        number = (int64_t)json_real_value(value);
    } else {
        return wrong_kind(value, key, what, "an integer", err);
    }
    if (number < min || number > max)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: \"%s\" is %" PRId64 ", it must be from %" PRId64 " to %" PRId64, what,
                       key, number, min, max);
    *out = number;
    return STATUS_OK;
}

enum status json_get_int_required(const json_t *object, const char *key, const char *what,
                                  int64_t min, int64_t max, int64_t *out, struct err *err)
{
    const json_t *value = json_object_get(object, key);

    if (value == NULL || json_is_null(value))
        return err_set(err, STATUS_BAD_INPUT, "%s: \"%s\" is missing", what, key);
    return json_get_int(object, key, what, min, max, out, err);
}

enum status json_get_double(const json_t *object, const char *key, const char *what, double min,
                            double max, double *out, struct err *err)
{
    const json_t *value = json_object_get(object, key);
    double number;

    if (value == NULL || json_is_null(value))
        return STATUS_OK;
    if (!json_is_number(value))
        return wrong_kind(value, key, what, "a number", err);
    number = json_number_value(value);
    if (!(number >= min && number <= max))
        return err_set(err, STATUS_BAD_INPUT, "%s: \"%s\" is %g, it must be from %g to %g", what,
                       key, number, min, max);
    *out = number;
    return STATUS_OK;
}

enum status json_get_bool(const json_t *object, const char *key, const char *what, bool *out,
                          struct err *err)
{
    const json_t *value = json_object_get(object, key);

    if (value == NULL || json_is_null(value))
        return STATUS_OK;
    if (!json_is_boolean(value))
        return wrong_kind(value, key, what, "true or false", err);
    *out = json_is_true(value);
    return STATUS_OK;
}

enum status json_get_string(const json_t *object, const char *key, const char *what,
                            const char **out, struct err *err)
{
    const json_t *value = json_object_get(object, key);

    if (value == NULL || json_is_null(value))
        return STATUS_OK;
    if (!json_is_string(value))
        return wrong_kind(value, key, what, "a string", err);
    if (strlen(json_string_value(value)) != json_string_length(value))
        return err_set(err, STATUS_BAD_INPUT, "%s: \"%s\" has a NUL character inside", what, key);
    *out = json_string_value(value);
    return STATUS_OK;
}

enum status json_get_array(const json_t *object, const char *key, const char *what,
                           const json_t **out, struct err *err)
{
    const json_t *value = json_object_get(object, key);

    if (value == NULL || json_is_null(value))
        return STATUS_OK;
    if (!json_is_array(value))
        return wrong_kind(value, key, what, "an array", err);
    *out = value;
    return STATUS_OK;
}

enum status json_get_object(const json_t *object, const char *key, const char *what,
                            const json_t **out, struct err *err)
{
    const json_t *value = json_object_get(object, key);

    if (value == NULL || json_is_null(value))
        return STATUS_OK;
    if (!json_is_object(value))
        return wrong_kind(value, key, what, "an object", err);
    *out = value;
    return STATUS_OK;
}
