/* text/template/text.c - what methods of str and filters share. */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "text/template/internal.h"

static bool in_chars(const struct str *chars, uint32_t c)
{
    if (chars == NULL)
        return tpl__is_space(c);
    for (size_t at = 0; at < chars->size;) {
        uint32_t other;

        at += tpl__character(chars, at, &other);
        if (other == c)
            return true;
    }
    return false;
}

/* sides: 1 left, 2 right */
struct str *tpl__strip(struct run *run, const struct str *str, struct value chars, int sides)
{
    const struct str *set = tpl__given(chars) ? tpl__arg_str(run, chars, "chars") : NULL;
    size_t from = 0;
    size_t to = str->size;
    uint32_t c;

    while ((sides & 1) && from < to) {
        size_t size = tpl__character(str, from, &c);

        if (!in_chars(set, c))
            break;
        from += size;
        tpl__charge(&run->job, set != NULL ? set->size / 64 : 0);
    }
    while ((sides & 2) && to > from) {
        size_t size = tpl__character_before(str, to, &c);

        if (!in_chars(set, c))
            break;
        to -= size;
        tpl__charge(&run->job, set != NULL ? set->size / 64 : 0);
    }
    tpl__charge_bytes(&run->job, str->size - (to - from));
    return tpl__sub(&run->job, str, from, to);
}

struct str *tpl__replace(struct run *run, const struct str *str, const struct str *from,
                         const struct str *to, int64_t count_max)
{
    struct builder out;
    struct str *replaced;
    size_t at = 0;

    tpl__builder_init(&out, &run->job);
    for (int64_t count = 0; count_max < 0 || count < count_max; count++) {
        size_t found = tpl__str_find(&run->job, str, from, at);

        if (found == SIZE_MAX)
            break;
        tpl__charge(&run->job, 1);
        tpl__put_part(&out, str, at, found);
        tpl__put_str(&out, to);
        at = found + from->size;
        if (from->size == 0) { /* between all characters, and at both ends */
            uint32_t c;
            size_t size;

            if (at == str->size)
                break;
            size = tpl__character(str, at, &c);
            tpl__put_part(&out, str, at, at + size);
            at += size;
        }
    }
    tpl__put_part(&out, str, at, str->size);
    replaced = tpl__built(&out);
    replaced->markup = str->markup;
    return replaced;
}

/* At runs of white space. */
static void split_space(struct run *run, const struct str *str, int64_t count_max, struct seq *out)
{
    size_t at = 0;
    uint32_t c;

    for (;;) {
        size_t from;

        while (at < str->size) {
            size_t size = tpl__character(str, at, &c);

            if (!tpl__is_space(c))
                break;
            at += size;
        }
        if (at >= str->size)
            return;
        if (count_max >= 0 && (int64_t)out->count >= count_max) {
            tpl__push(&run->job, out, tpl__of_str(tpl__sub(&run->job, str, at, str->size)));
            return;
        }
        from = at;
        while (at < str->size) {
            size_t size = tpl__character(str, at, &c);

            if (tpl__is_space(c))
                break;
            at += size;
        }
        tpl__push(&run->job, out, tpl__of_str(tpl__sub(&run->job, str, from, at)));
    }
}

static void reverse(struct seq *seq)
{
    for (size_t i = 0; i < seq->count / 2; i++) {
        struct value other = seq->items[i];

        seq->items[i] = seq->items[seq->count - 1 - i];
        seq->items[seq->count - 1 - i] = other;
    }
}

static void rsplit_space(struct run *run, const struct str *str, int64_t count_max,
                         struct seq *out)
{
    size_t at = str->size;
    uint32_t c;

    for (;;) {
        size_t to;

        while (at > 0) {
            size_t size = tpl__character_before(str, at, &c);

            if (!tpl__is_space(c))
                break;
            at -= size;
        }
        if (at == 0)
            break;
        if (count_max >= 0 && (int64_t)out->count >= count_max) {
            tpl__push(&run->job, out, tpl__of_str(tpl__sub(&run->job, str, 0, at)));
            break;
        }
        to = at;
        while (at > 0) {
            size_t size = tpl__character_before(str, at, &c);

            if (tpl__is_space(c))
                break;
            at -= size;
        }
        tpl__push(&run->job, out, tpl__of_str(tpl__sub(&run->job, str, at, to)));
    }
    reverse(out);
}

static void split_at(struct run *run, const struct str *str, const struct str *separator,
                     int64_t count_max, bool from_right, struct seq *out)
{
    size_t from = 0;
    size_t to = str->size;

    for (int64_t count = 0; count_max < 0 || count < count_max; count++) {
        size_t found = from_right ? tpl__str_rfind(&run->job, str, separator, to)
                                  : tpl__str_find(&run->job, str, separator, from);

        if (found == SIZE_MAX)
            break;
        if (from_right) {
            tpl__push(&run->job, out,
                      tpl__of_str(tpl__sub(&run->job, str, found + separator->size, to)));
            to = found;
        } else {
            tpl__push(&run->job, out, tpl__of_str(tpl__sub(&run->job, str, from, found)));
            from = found + separator->size;
        }
    }
    tpl__push(&run->job, out, tpl__of_str(tpl__sub(&run->job, str, from, to)));
    if (from_right)
        reverse(out);
}

struct value tpl__split(struct run *run, const struct str *str, struct value separator,
                        int64_t count_max, bool from_right)
{
    struct value list = tpl__seq(&run->job, V_LIST, 0);

    tpl__charge_bytes(&run->job, str->size);
    if (tpl__given(separator)) {
        const struct str *text = tpl__arg_str(run, separator, "sep");

        if (text->size == 0)
            tpl__fail(&run->job, "empty separator");
        split_at(run, str, text, count_max, from_right, list.seq);
    } else if (from_right) {
        rsplit_space(run, str, count_max, list.seq);
    } else {
        split_space(run, str, count_max, list.seq);
    }
    return list;
}

struct value tpl__splitlines(struct run *run, const struct str *str, bool keep_ends)
{
    struct value list = tpl__seq(&run->job, V_LIST, 0);
    size_t from = 0;

    tpl__charge_bytes(&run->job, str->size);
    for (size_t at = 0; at < str->size;) {
        uint32_t c;
        size_t size = tpl__character(str, at, &c);

        if (!tpl__is_line_end(c)) {
            at += size;
            continue;
        }
        if (c == '\r' && at + 1 < str->size && str->bytes[at + 1] == '\n')
            size = 2;
        tpl__push(&run->job, list.seq,
                  tpl__of_str(tpl__sub(&run->job, str, from, keep_ends ? at + size : at)));
        at += size;
        from = at;
    }
    if (from < str->size)
        tpl__push(&run->job, list.seq, tpl__of_str(tpl__sub(&run->job, str, from, str->size)));
    return list;
}

/* side: 0 centre, 1 left-justified, 2 right-justified */
struct str *tpl__pad(struct run *run, const struct str *str, int64_t width, struct value fill,
                     int side)
{
    const struct str *with = tpl__given(fill) ? tpl__arg_str(run, fill, "fillchar")
                                              : tpl__str_c(&run->job, " ");
    int64_t count = (int64_t)tpl__str_count(&run->job, str);
    int64_t pad = width - count;
    int64_t left;
    struct builder out;
    struct str *padded;

    if (tpl__str_count(&run->job, with) != 1)
        tpl__fail(&run->job, "The fill character must be exactly one character long");
    if (pad <= 0)
        return tpl__sub(&run->job, str, 0, str->size);
    /* Where the odd one goes is CPython's choice. */
    left = side == 1 ? 0 : side == 2 ? pad : pad / 2 + (pad & width & 1);
    tpl__builder_init(&out, &run->job);
    for (int64_t i = 0; i < pad; i++) {
        tpl__charge(&run->job, 1);
        if (i == left)
            tpl__put_str(&out, str);
        tpl__put_str(&out, with);
    }
    if (left == pad)
        tpl__put_str(&out, str);
    padded = tpl__built(&out);
    padded->markup = str->markup;
    return padded;
}

/* --- numbers in text -------------------------------------------------------------------------- */

/* The digits between white space, underlines dropped; false when they can't be a number. */
static bool number_text(const struct str *str, char *out, size_t size)
{
    size_t from = 0;
    size_t to = str->size;
    size_t count = 0;

    while (from < to && isspace((unsigned char)str->bytes[from]))
        from++;
    while (to > from && isspace((unsigned char)str->bytes[to - 1]))
        to--;
    for (size_t i = from; i < to; i++) {
        if (str->bytes[i] == '_') {
            if (i == from || i + 1 == to || !isalnum((unsigned char)str->bytes[i - 1]) ||
                !isalnum((unsigned char)str->bytes[i + 1]))
                return false;
            continue;
        }
        if (count + 1 >= size || str->bytes[i] == '\0' ||
            isspace((unsigned char)str->bytes[i]))
            return false;
        out[count++] = str->bytes[i];
    }
    out[count] = '\0';
    return count > 0;
}

bool tpl__parse_int(const struct str *str, int64_t base, int64_t *out)
{
    char text[128];
    char *digits = text;
    char *end;

    if (!number_text(str, text, sizeof(text)) || base == 1 || base < 0 || base > 36)
        return false;
    if (*digits == '+' || *digits == '-')
        digits++;
    if (base == 0 || base == 2 || base == 8) {
        /* strtoll knows 0x alone, and takes a leading 0 as octal. */
        int64_t prefix = digits[0] != '0' ? 0 : (digits[1] | 0x20) == 'b' ? 2
                         : (digits[1] | 0x20) == 'o' ? 8 : 0;

        if (prefix != 0 && (base == 0 || base == prefix)) {
            base = prefix;
            memmove(digits, digits + 2, strlen(digits + 2) + 1);
        } else if (base == 0 && (digits[1] | 0x20) != 'x') {
            if (digits[0] == '0' && strspn(digits, "0") != strlen(digits))
                return false;
            base = 10;
        }
    }
    if (!isalnum((unsigned char)*digits))
        return false;
    errno = 0;
    *out = strtoll(text, &end, (int)base);
    return *end == '\0' && end != text && errno == 0;
}

bool tpl__parse_float(struct job *job, const struct str *str, double *out)
{
    char text[1024];
    char *end;
    const char *digits = text;

    (void)job;
    if (!number_text(str, text, sizeof(text)))
        return false;
    if (*digits == '+' || *digits == '-')
        digits++;
    if ((digits[0] == '0' && (digits[1] | 0x20) == 'x') || strchr(text, '(') != NULL)
        return false;
    *out = strtod(text, &end);
    return *end == '\0' && end != text;
}
