/* base/utf8.c - see utf8.h. Byte ranges are those of Unicode 15, table 3-7. */
#include "base/utf8.h"

#include <assert.h>

/* The length a lead byte announces (0: not a lead byte), and the range its second byte may have. */
static size_t lead_of(unsigned char lead, unsigned char *second_min, unsigned char *second_max)
{
    *second_min = 0x80;
    *second_max = 0xBF;
    if (lead < 0x80)
        return 1;
    if (lead < 0xC2)
        return 0;
    if (lead < 0xE0)
        return 2;
    if (lead < 0xF0) {
        if (lead == 0xE0)
            *second_min = 0xA0;
        if (lead == 0xED)
            *second_max = 0x9F;
        return 3;
    }
    if (lead < 0xF5) {
        if (lead == 0xF0)
            *second_min = 0x90;
        if (lead == 0xF4)
            *second_max = 0x8F;
        return 4;
    }
    return 0;
}

/* How many of the announced bytes are there and right; `length_out` is what was announced. */
static size_t well_formed_prefix(const unsigned char *at, size_t size, size_t *length_out)
{
    unsigned char min;
    unsigned char max;
    size_t good = 1;

    *length_out = lead_of(at[0], &min, &max);
    while (good < *length_out && good < size && at[good] >= min && at[good] <= max) {
        good++;
        min = 0x80;
        max = 0xBF;
    }
    return good;
}

size_t utf8_decode(const void *bytes, size_t size, uint32_t *code_point_out, bool *valid_out)
{
    const unsigned char *at = bytes;
    size_t length;
    size_t good;
    uint32_t code_point;

    assert(size > 0);
    good = well_formed_prefix(at, size, &length);
    if (good < length || length == 0) {
        *code_point_out = UTF8_REPLACEMENT;
        if (valid_out != NULL)
            *valid_out = false;
        return good;
    }
    code_point = length == 1 ? at[0] : at[0] & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++)
        code_point = code_point << 6 | (at[i] & 0x3Fu);
    *code_point_out = code_point;
    if (valid_out != NULL)
        *valid_out = true;
    return length;
}

size_t utf8_encode(uint32_t code_point, char *out)
{
    assert(code_point <= 0x10FFFF && !(code_point >= 0xD800 && code_point <= 0xDFFF));
    if (code_point < 0x80) {
        out[0] = (char)code_point;
        return 1;
    }
    if (code_point < 0x800) {
        out[0] = (char)(0xC0 | code_point >> 6);
        out[1] = (char)(0x80 | (code_point & 0x3F));
        return 2;
    }
    if (code_point < 0x10000) {
        out[0] = (char)(0xE0 | code_point >> 12);
        out[1] = (char)(0x80 | (code_point >> 6 & 0x3F));
        out[2] = (char)(0x80 | (code_point & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | code_point >> 18);
    out[1] = (char)(0x80 | (code_point >> 12 & 0x3F));
    out[2] = (char)(0x80 | (code_point >> 6 & 0x3F));
    out[3] = (char)(0x80 | (code_point & 0x3F));
    return 4;
}

bool utf8_is_valid(const void *bytes, size_t size)
{
    const char *at = bytes;
    size_t i = 0;

    while (i < size) {
        uint32_t code_point;
        bool valid;
        i += utf8_decode(at + i, size - i, &code_point, &valid);
        if (!valid)
            return false;
    }
    return true;
}

size_t utf8_incomplete_tail(const void *bytes, size_t size)
{
    const unsigned char *at = bytes;

    for (size_t back = 1; back <= 3 && back <= size; back++) {
        size_t length;
        if ((at[size - back] & 0xC0) == 0x80)
            continue; /* a continuation byte: its lead is further back */
        if (well_formed_prefix(at + size - back, back, &length) == back && back < length)
            return back;
        return 0;
    }
    return 0;
}
