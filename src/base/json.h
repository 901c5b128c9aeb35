/* base/json.h - JSON from outside, read with limits and with errors that say where.
 *
 * Parsing, values and writing are Jansson's (json_t, json_loadb, json_dumps): see docs/design.md
 * for why. This adds what every reader of outside JSON needs: duplicate keys refused, the line and
 * column of a syntax error, and typed getters whose messages name the file, the key, what stood
 * there and what was wanted.
 *
 * A getter leaves *out as it was when the key is missing or null, so that a default is what the
 * caller wrote there before; the _required kinds refuse that. `what` names the object for messages:
 * "config.json", "sampling_params". */
#ifndef LIGHTER_BASE_JSON_H
#define LIGHTER_BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* Parses one JSON value (object or array at the top). The caller owns *json_out: json_decref. */
enum status json_read(const char *text, size_t size_bytes, const char *what, json_t **json_out,
                      struct err *err);
/* The same from a file of at most size_limit bytes. */
enum status json_read_file(const char *path, size_t size_limit, json_t **json_out,
                           struct err *err);

/* An integer in [min, max]; 3.0 counts as 3. */
enum status json_get_int(const json_t *object, const char *key, const char *what, int64_t min,
                         int64_t max, int64_t *out, struct err *err);
enum status json_get_int_required(const json_t *object, const char *key, const char *what,
                                  int64_t min, int64_t max, int64_t *out, struct err *err);
/* A number, finite, in [min, max]. */
enum status json_get_double(const json_t *object, const char *key, const char *what, double min,
                            double max, double *out, struct err *err);
enum status json_get_bool(const json_t *object, const char *key, const char *what, bool *out,
                          struct err *err);
/* *out is borrowed from the object; a string with a NUL inside is refused. */
enum status json_get_string(const json_t *object, const char *key, const char *what,
                            const char **out, struct err *err);
/* *out is borrowed from the object. */
enum status json_get_array(const json_t *object, const char *key, const char *what,
                           const json_t **out, struct err *err);
enum status json_get_object(const json_t *object, const char *key, const char *what,
                            const json_t **out, struct err *err);

/* "null", "a string", "an array", ...: what a value is, for messages. */
const char *json_kind(const json_t *value);

#endif
