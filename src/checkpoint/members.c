/* checkpoint/members.c - see members.h. */
#include "checkpoint/members.h"

#include <assert.h>
#include <string.h>

void members_init(struct members *members, const char *text, size_t size, const char *what)
{
    *members = (struct members){ .text = text, .size = size, .what = what };
}

static void skip_space(struct members *members)
{
    while (members->at < members->size && members->text[members->at] != '\0' &&
           strchr(" \t\r\n", members->text[members->at]) != NULL)
        members->at++;
}

/* The byte at the cursor, or -1 at the end. */
static int peek(const struct members *members)
{
    return members->at < members->size ? (unsigned char)members->text[members->at] : -1;
}

static enum status unexpected(const struct members *members, const char *wanted, struct err *err)
{
    const int byte = peek(members);

    if (byte < 0)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: not valid JSON: it ends at byte %zu, %s is wanted", members->what,
                       members->at, wanted);
    if (byte < 0x20 || byte > 0x7E)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: not valid JSON: byte 0x%02X at %zu, %s is wanted", members->what,
                       (unsigned)byte, members->at, wanted);
    return err_set(err, STATUS_BAD_INPUT, "%s: not valid JSON: '%c' at byte %zu, %s is wanted",
                   members->what, byte, members->at, wanted);
}

/* The cursor stands on a quote; moves behind the closing one. */
static enum status skip_string(struct members *members, struct err *err)
{
    assert(peek(members) == '"');
    for (members->at++; members->at < members->size; members->at++) {
        if (members->text[members->at] == '\\') {
            members->at++;
        } else if (members->text[members->at] == '"') {
            members->at++;
            return STATUS_OK;
        }
    }
    members->at = members->size; /* a backslash may have been the last byte */
    return unexpected(members, "the end of a string", err);
}

/* Moves behind a value: a string, whatever a pair of brackets holds, or a run of other bytes. */
static enum status skip_value(struct members *members, struct err *err)
{
    size_t depth = 0;

    do {
        const int byte = peek(members);
        if (byte < 0)
            return unexpected(members, "the end of a value", err);
        if (byte == '"') {
            const enum status st = skip_string(members, err);
            if (st != STATUS_OK)
                return st;
            continue;
        }
        if (depth == 0 && (byte == ',' || byte == '}' || byte == ']' || byte == ':'))
            return unexpected(members, "a value", err);
        if (byte == '{' || byte == '[')
            depth++;
        if (byte == '}' || byte == ']')
            depth--;
        members->at++;
        if (depth == 0 && byte != '}' && byte != ']') { /* a number, true, false, null */
            while (members->at < members->size && members->text[members->at] != '\0' &&
                   strchr(",}] \t\r\n", members->text[members->at]) == NULL)
                members->at++;
        }
    } while (depth > 0);
    return STATUS_OK;
}

/* Before a member: opens the object or passes the comma; *more_out is false behind the last one. */
static enum status step(struct members *members, bool *more_out, struct err *err)
{
    const bool first = !members->begun;

    *more_out = false;
    if (first && peek(members) != '{')
        return unexpected(members, "'{'", err);
    if (first) {
        members->begun = true;
        members->at++;
    }
    skip_space(members);
    if (peek(members) == '}') {
        members->at++;
        members->ended = true;
        skip_space(members);
        return members->at == members->size ? STATUS_OK
                                            : unexpected(members, "nothing after the object", err);
    }
    if (!first) {
        if (peek(members) != ',')
            return unexpected(members, "',' or '}'", err);
        members->at++;
        skip_space(members);
    }
    *more_out = true;
    return STATUS_OK;
}

enum status members_next(struct members *members, struct member *member_out, bool *more_out,
                         struct err *err)
{
    struct member member;
    size_t from;
    bool more = false;
    enum status st;

    if (!members->ended) {
        st = step(members, &more, err);
        if (st != STATUS_OK)
            return st;
    }
    *more_out = more;
    if (!more)
        return STATUS_OK;
    if (peek(members) != '"')
        return unexpected(members, "a name in quotes", err);
    from = members->at;
    st = skip_string(members, err);
    if (st != STATUS_OK)
        return st;
    member.key = members->text + from;
    member.key_size = members->at - from;
    skip_space(members);
    if (peek(members) != ':')
        return unexpected(members, "':'", err);
    members->at++;
    skip_space(members);
    from = members->at;
    st = skip_value(members, err);
    if (st != STATUS_OK)
        return st;
    member.value = members->text + from;
    member.value_size = members->at - from;
    *member_out = member;
    return STATUS_OK;
}

enum status members_string(const struct members *members, const char *piece, size_t size,
                           json_t **string_out, struct err *err)
{
    json_error_t error;
    json_t *string;

    if (piece[0] != '"')
        return err_set(err, STATUS_BAD_INPUT, "%s: the value at byte %zu is not a string",
                       members->what, (size_t)(piece - members->text));
    string = json_loadb(piece, size, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
    if (string == NULL)
        return err_set(err, STATUS_BAD_INPUT, "%s: not valid JSON: the string at byte %zu: %s",
                       members->what, (size_t)(piece - members->text), error.text);
    assert(json_is_string(string));
    *string_out = string;
    return STATUS_OK;
}
