/* base/status.c - see status.h. */
#include "base/status.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"

/* A sentence quotes names from files and requests, and may have been cut inside a character:
 * whatever is not printable UTF-8 becomes '?', so that it stays one line and can go into JSON. */
static void clean(char *message)
{
    const size_t size = strlen(message);
    size_t at = 0;

    while (at < size) {
        uint32_t code_point;
        bool valid;
        const size_t used = utf8_decode(message + at, size - at, &code_point, &valid);
        if (!valid || code_point < 0x20 || code_point == 0x7F)
            memset(message + at, '?', used);
        at += used;
    }
}

#undef err_set
#undef err_prefix

enum status err_set(struct err *err, enum status status, const char *format, ...)
{
    va_list args;

    assert(status != STATUS_OK);
    if (err == NULL)
        return status;
    err->status = status;
    va_start(args, format);
    (void)vsnprintf(err->message, sizeof(err->message), format, args);
    va_end(args);
    clean(err->message);
    return status;
}

enum status err_prefix(struct err *err, enum status status, const char *format, ...)
{
    char head[sizeof(err->message)];
    size_t length;
    va_list args;

    assert(status != STATUS_OK);
    if (err == NULL)
        return status;
    va_start(args, format);
    (void)vsnprintf(head, sizeof(head) - 2, format, args);
    va_end(args);
    length = strlen(head);
    memcpy(head + length, ": ", 3);
    length += 2;
    memmove(err->message + length, err->message, sizeof(err->message) - length);
    memcpy(err->message, head, length);
    err->message[sizeof(err->message) - 1] = '\0';
    clean(err->message);
    err->status = status;
    return status;
}

const char *status_name(enum status status)
{
    switch (status) {
    case STATUS_OK: return "ok";
    case STATUS_BAD_INPUT: return "bad input";
    case STATUS_NO_MEMORY: return "no memory";
    case STATUS_UNAVAILABLE: return "unavailable";
    case STATUS_IO: return "input/output error";
    case STATUS_DEVICE: return "device error";
    case STATUS_PEER: return "peer error";
    case STATUS_BUSY: return "busy";
    case STATUS_CANCELED: return "canceled";
    }
    return "unknown";
}
