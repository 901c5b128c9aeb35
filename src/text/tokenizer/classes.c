/* text/tokenizer/classes.c - characters by class.
 *
 * The classes are the library's, written down in unicode_tables.c: the Unicode data of this
 * machine's libraries is of another age, and a character that is a letter here and unassigned there
 * is cut differently. */
#include "text/tokenizer/internal.h"

#include <assert.h>
#include <utf8proc.h>

#include "base/utf8.h"

static bool is_in(const struct unicode_range *ranges, size_t count, uint32_t code_point)
{
    size_t low = 0;
    size_t high = count;

    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (code_point > ranges[middle].last)
            low = middle + 1;
        else if (code_point < ranges[middle].first)
            high = middle;
        else
            return true;
    }
    return false;
}

static const struct unicode_mapping *mapping_of(const struct unicode_mapping *mappings,
                                                size_t count, uint32_t code_point)
{
    size_t low = 0;
    size_t high = count;

    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (code_point > mappings[middle].last)
            low = middle + 1;
        else if (code_point < mappings[middle].first)
            high = middle;
        else
            return &mappings[middle];
    }
    return NULL;
}

/* White_Space, which no version of Unicode changes any more. */
bool class_is_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
           c == 0x205F || c == 0x3000;
}

bool class_is_numeric(uint32_t code_point)
{
    return is_in(unicode_numeric, unicode_numeric_count, code_point);
}

bool class_is_mark(uint32_t code_point)
{
    return is_in(unicode_mark, unicode_mark_count, code_point);
}

bool class_is_word(uint32_t code_point)
{
    return is_in(unicode_word, unicode_word_count, code_point);
}

bool class_is_punctuation(uint32_t code_point)
{
    return is_in(unicode_punctuation, unicode_punctuation_count, code_point);
}

bool class_is_untouched(uint32_t code_point)
{
    return is_in(unicode_untouched, unicode_untouched_count, code_point);
}

uint32_t class_to_lower(uint32_t code_point)
{
    const struct unicode_mapping *mapping =
        mapping_of(unicode_lower, unicode_lower_count, code_point);

    if (mapping != NULL)
        return (uint32_t)((int32_t)code_point + mapping->value);
    return (uint32_t)utf8proc_tolower((utf8proc_int32_t)code_point);
}

uint32_t class_stand_in(uint32_t code_point)
{
    const struct unicode_mapping *mapping =
        mapping_of(unicode_stand_in, unicode_stand_in_count, code_point);

    return mapping != NULL ? (uint32_t)mapping->value : code_point;
}

uint32_t utf8_last(const char *text, size_t size, size_t *length_out)
{
    size_t back = 1;
    uint32_t code_point;

    assert(size > 0);
    while (back < size && back < 4 && ((unsigned char)text[size - back] & 0xC0) == 0x80)
        back++;
    *length_out = utf8_decode(text + size - back, back, &code_point, NULL);
    return code_point;
}
