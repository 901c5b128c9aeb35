/* base/size.c - see size.h. */
#include "base/size.h"

#include <assert.h>
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

bool size_mul(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t product;

    if (__builtin_mul_overflow(a, b, &product))
        return false;
    *out = product;
    return true;
}

bool size_add(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t sum;

    if (__builtin_add_overflow(a, b, &sum))
        return false;
    *out = sum;
    return true;
}

uint64_t size_align_up(uint64_t size, uint64_t alignment)
{
    assert(alignment != 0 && (alignment & (alignment - 1)) == 0);
    assert(size <= UINT64_MAX - (alignment - 1));
    return (size + alignment - 1) & ~(alignment - 1);
}

static const struct {
    const char *name;
    double factor;
} size_units[] = {
    { "", 1 },        { "B", 1 },       { "K", 0x1p10 },  { "KiB", 0x1p10 }, { "KB", 1e3 },
    { "M", 0x1p20 },  { "MiB", 0x1p20 }, { "MB", 1e6 },   { "G", 0x1p30 },   { "GiB", 0x1p30 },
    { "GB", 1e9 },    { "T", 0x1p40 },  { "TiB", 0x1p40 }, { "TB", 1e12 },
};

enum status size_parse(const char *text, const char *what, uint64_t *bytes_out, struct err *err)
{
    char *end = NULL;
    double number;

    if (!isdigit((unsigned char)text[0]) && text[0] != '.')
        return err_set(err, STATUS_BAD_INPUT, "%s: '%s' is not a size such as 512MiB or 2GiB", what,
                       text);
    number = strtod(text, &end);
    while (*end == ' ')
        end++;
    for (size_t i = 0; i < sizeof(size_units) / sizeof(size_units[0]); i++) {
        if (strcasecmp(end, size_units[i].name) != 0)
            continue;
        number *= size_units[i].factor;
        if (!isfinite(number) || number >= 0x1p63)
            return err_set(err, STATUS_BAD_INPUT, "%s: '%s' is too large", what, text);
        *bytes_out = (uint64_t)number;
        return STATUS_OK;
    }
    return err_set(err, STATUS_BAD_INPUT,
                   "%s: '%s' has an unknown unit; use B, KiB, MiB, GiB, TiB, KB, MB, GB or TB",
                   what,
                   text);
}

char *size_format(uint64_t bytes, char *out, size_t out_size)
{
    static const char *const names[] = { "bytes", "KiB", "MiB", "GiB", "TiB", "PiB" };
    double value = (double)bytes;
    size_t unit = 0;

    while (value >= 1024 && unit + 1 < sizeof(names) / sizeof(names[0])) {
        value /= 1024;
        unit++;
    }
    if (bytes == 1)
        (void)snprintf(out, out_size, "1 byte");
    else if (unit == 0 || value >= 100)
        (void)snprintf(out, out_size, "%.0f %s", value, names[unit]);
    else
        (void)snprintf(out, out_size, "%.*f %s", value >= 10 ? 1 : 2, value, names[unit]);
    return out;
}
