/* text/tokenizer/unicode_normal.c - NFC, NFD, NFKC, NFKD (Unicode Standard Annex #15).
 *
 * Decompositions, combining classes and compositions are utf8proc's. The text is worked on in
 * chunks that end before an ASCII character, which nothing before it can combine with, and around
 * characters that the library does not know. Marks are put in order by a stable merge sort, because
 * utf8proc's own takes a time that is quadratic in their number. */
#include "text/tokenizer/internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/utf8.h"

#define DECOMPOSITION_MAX 32 /* code points; U+FDFA has 18 */

struct chars {
    utf8proc_int32_t *items;
    size_t count, capacity;
};

static enum status reserve(struct chars *chars, size_t more, struct err *err)
{
    size_t capacity = chars->capacity == 0 ? 256 : chars->capacity;
    utf8proc_int32_t *items;

    while (capacity < chars->count + more)
        capacity *= 2;
    if (capacity == chars->capacity)
        return STATUS_OK;
    items = realloc(chars->items, capacity * sizeof(*items));
    if (items == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu characters", capacity);
    chars->items = items;
    chars->capacity = capacity;
    return STATUS_OK;
}

static int combining_class(utf8proc_int32_t code_point)
{
    return utf8proc_get_property(code_point)->combining_class;
}

/* Stable; scratch[count]. */
static void sort_marks(utf8proc_int32_t *marks, size_t count, utf8proc_int32_t *scratch)
{
    const size_t half = count / 2;
    size_t left = 0;
    size_t right = half;

    if (count < 2)
        return;
    assert(scratch != NULL);
    sort_marks(marks, half, scratch);
    sort_marks(marks + half, count - half, scratch);
    if (combining_class(marks[half - 1]) <= combining_class(marks[half]))
        return;
    for (size_t i = 0; i < count; i++) {
        if (right == count || (left < half && combining_class(marks[left]) <=
                                                  combining_class(marks[right])))
            scratch[i] = marks[left++];
        else
            scratch[i] = marks[right++];
    }
    memcpy(marks, scratch, count * sizeof(*marks));
}

/* Canonical ordering: each run of characters with a combining class is sorted by it. */
static void order_marks(struct chars *chars, struct chars *scratch)
{
    size_t i = 0;

    while (i < chars->count) {
        size_t end = i;
        while (end < chars->count && combining_class(chars->items[end]) != 0)
            end++;
        sort_marks(chars->items + i, end - i, scratch->items);
        i = end + 1;
    }
}

static enum status decompose(const char *text, size_t size, bool compatibility,
                             struct chars *chars, struct err *err)
{
    const utf8proc_option_t options =
        UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compatibility ? UTF8PROC_COMPAT : 0);

    for (size_t i = 0; i < size;) {
        uint32_t code_point;
        utf8proc_ssize_t count;
        enum status st = reserve(chars, DECOMPOSITION_MAX, err);

        if (st != STATUS_OK)
            return st;
        i += utf8_decode(text + i, size - i, &code_point, NULL);
        count = utf8proc_decompose_char((utf8proc_int32_t)code_point, chars->items + chars->count,
                                        DECOMPOSITION_MAX, options, NULL);
        if (count < 0 || count > DECOMPOSITION_MAX)
            return err_set(err, STATUS_BAD_INPUT, "U+%04X cannot be normalised", code_point);
        chars->count += (size_t)count;
    }
    return STATUS_OK;
}

static enum status append_chars(const struct chars *chars, struct buf *out, struct err *err)
{
    enum status st = buf_reserve(out, out->size + chars->count, err);

    for (size_t i = 0; i < chars->count && st == STATUS_OK; i++) {
        char bytes[4];
        size_t size;

        assert(chars->items != NULL);
        size = utf8_encode((uint32_t)chars->items[i], bytes);
        st = buf_append(out, bytes, size, err);
    }
    return st;
}

static enum status normalize_chunk(enum normalizer_kind kind, const char *text, size_t size,
                                   struct chars *chars, struct chars *scratch, struct buf *out,
                                   struct err *err)
{
    const bool compatibility = kind == NORMALIZER_NFKC || kind == NORMALIZER_NFKD;
    enum status st;

    chars->count = 0;
    st = decompose(text, size, compatibility, chars, err);
    if (st == STATUS_OK)
        st = reserve(scratch, chars->count, err);
    if (st != STATUS_OK)
        return st;
    order_marks(chars, scratch);
    if (kind == NORMALIZER_NFC || kind == NORMALIZER_NFKC)
        chars->count = (size_t)utf8proc_normalize_utf32(
            chars->items, (utf8proc_ssize_t)chars->count, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    return append_chars(chars, out, err);
}

enum status unicode_normalize(enum normalizer_kind kind, const char *text, size_t size,
                              struct buf *out, struct err *err)
{
    struct chars chars = { 0 };
    struct chars scratch = { 0 };
    enum status st = STATUS_OK;
    size_t i = 0;

    while (i < size && st == STATUS_OK) {
        size_t end = i + 1;
        uint32_t code_point;
        const size_t length = utf8_decode(text + i, size - i, &code_point, NULL);

        if (length > 1 && class_is_untouched(code_point)) {
            st = buf_append(out, text + i, length, err);
            i += length;
            continue;
        }
        /* ASCII that is followed by ASCII or the end is itself. */
        while (end < size && (unsigned char)text[end - 1] < 0x80 && (unsigned char)text[end] < 0x80)
            end++;
        if (end < size)
            end--; /* the last one may take a mark */
        if (end > i && (unsigned char)text[i] < 0x80) {
            st = buf_append(out, text + i, end - i, err);
            i = end;
            continue;
        }
        end = i + length;
        while (end < size && (unsigned char)text[end] >= 0x80) {
            const size_t next = utf8_decode(text + end, size - end, &code_point, NULL);
            if (class_is_untouched(code_point))
                break;
            end += next;
        }
        st = normalize_chunk(kind, text + i, end - i, &chars, &scratch, out, err);
        i = end;
    }
    free(chars.items);
    free(scratch.items);
    return st;
}
