/* device/ascend/error.c - what CANN says when a call fails, as one sentence.
 *
 * aclGetRecentErrMsg has a text of many lines for the calling thread, which is gone when it was
 * read once or when the thread calls CANN again; so it is read here, at once, and its lines are
 * joined. */
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "device/ascend/internal.h"

#define SAID_BYTES 360 /* of the runtime's text: its first line names the error */

struct known {
    int code;
    const char *name, *meaning;
};

#define KNOWN(value, name, meaning) { value, #name, meaning },
static const struct known known_errors[] = { CANN_ERRORS(KNOWN) };

static const struct known *find(int code)
{
    for (size_t i = 0; i < sizeof(known_errors) / sizeof(known_errors[0]); i++)
        if (known_errors[i].code == code)
            return &known_errors[i];
    return NULL;
}

const char *ascend__error_name(int code)
{
    const struct known *known = find(code);

    return known != NULL ? known->name : NULL;
}

static enum status status_of(int code)
{
    switch (code) {
    case ACL_ERROR_BAD_ALLOC:
    case ACL_ERROR_RT_MEMORY_ALLOCATION:
    case ACL_ERROR_RT_DEVICE_OOM:
    case ACL_ERROR_STORAGE_OVER_LIMIT:
        return STATUS_NO_MEMORY;
    case ACL_ERROR_RT_INVALID_DEVICEID:
    case ACL_ERROR_RT_NO_DEVICE:
    case ACL_ERROR_API_NOT_SUPPORT:
    case ACL_ERROR_RT_FEATURE_NOT_SUPPORT:
    case ACLNN_ERR_INNER_OPP_PATH_NOT_FOUND:
    case ACLNN_ERR_INNER_OPP_KERNEL_PKG_NOT_FOUND:
        return STATUS_UNAVAILABLE;
    default:
        return STATUS_DEVICE;
    }
}

/* Joins the words of the text by single blanks, leaves what does not print out, and ends without a
 * full stop. */
static void join(const char *text, char *out, size_t out_size)
{
    size_t used = 0;

    for (; text != NULL && *text != '\0' && used + 2 < out_size; text++) {
        const unsigned char c = (unsigned char)*text;

        if (isspace(c)) {
            if (used > 0 && out[used - 1] != ' ')
                out[used++] = ' ';
        } else if (c >= 0x20 && c != 0x7f) {
            out[used++] = (char)c;
        }
    }
    while (used > 0 && (out[used - 1] == ' ' || out[used - 1] == '.' || out[used - 1] == '\n'))
        used--;
    out[used] = '\0';
}

enum status ascend__fail(const struct ascend_cann *cann, const char *device_name, int code,
                         struct err *err, const char *what, ...)
{
    const struct known *known = find(code);
    char said[SAID_BYTES], asked[160];
    va_list args;

    join(cann->aclGetRecentErrMsg(), said, sizeof(said));
    va_start(args, what);
    (void)vsnprintf(asked, sizeof(asked), what, args);
    va_end(args);
    return err_set(err, status_of(code), "%s: %s failed with %d%s%s%s%s%s%s", device_name, asked,
                   code, known != NULL ? " " : "", known != NULL ? known->name : "",
                   known != NULL ? ", " : "", known != NULL ? known->meaning : "",
                   said[0] != '\0' ? "; the runtime says: " : "", said);
}
