/* checkpoint/members.h - walks the members of a large JSON object without building it.
 *
 * A header may be 100 MB, of which Jansson would make gigabytes when it is written to that end. So
 * the object is cut into its members here, and each, which has a size limit, is parsed by Jansson
 * on its own: memory stays that of one member. Cutting needs only strings and brackets; whatever
 * else is wrong inside a piece, Jansson finds. */
#ifndef LIGHTER_CHECKPOINT_MEMBERS_H
#define LIGHTER_CHECKPOINT_MEMBERS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

struct members {
    const char *text; /* borrowed */
    size_t size;
    size_t at;        /* the next byte to look at */
    const char *what; /* borrowed; names the object in messages */
    bool begun, ended;
};

struct member {
    const char *key, *value;       /* pieces of the text; the key has its quotes */
    size_t key_size, value_size;
};

/* The text must be one object from its first byte on, and nothing but white space after it. */
void members_init(struct members *members, const char *text, size_t size, const char *what);

/* The next member; *more_out is false, and *member_out untouched, when there is none left. */
enum status members_next(struct members *members, struct member *member_out, bool *more_out,
                         struct err *err);

/* Parses a key or a string value. The caller owns *string_out. */
enum status members_string(const struct members *members, const char *piece, size_t size,
                           json_t **string_out, struct err *err);

#endif
