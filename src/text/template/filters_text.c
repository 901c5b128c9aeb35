/* text/template/filters_text.c - filters of text, numbers, and anything. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/template/internal.h"

static struct str *soft(struct run *run, struct value value)
{
    return tpl__to_str(&run->job, value);
}

static struct value filter_trim(struct run *run, struct value self, struct value *args)
{
    return tpl__of_str(tpl__strip(run, soft(run, self), args[0], 3));
}

static struct value filter_upper(struct run *run, struct value self, struct value *args)
{
    (void)args;
    return tpl__of_str(tpl__upper(&run->job, soft(run, self)));
}

static struct value filter_lower(struct run *run, struct value self, struct value *args)
{
    (void)args;
    return tpl__of_str(tpl__lower(&run->job, soft(run, self)));
}

static struct value filter_capitalize(struct run *run, struct value self, struct value *args)
{
    (void)args;
    return tpl__of_str(tpl__capitalize(&run->job, soft(run, self)));
}

/* Unlike str.title(), words begin behind white space and - ( { [ < alone. */
static struct value filter_title(struct run *run, struct value self, struct value *args)
{
    struct str *str = soft(run, self);
    struct builder out;
    size_t at = 0;

    (void)args;
    tpl__builder_init(&out, &run->job);
    while (at < str->size) {
        size_t from;
        size_t first;
        uint32_t c;

        first = tpl__character(str, at, &c);
        tpl__put_str(&out, tpl__upper(&run->job, tpl__sub(&run->job, str, at, at + first)));
        at += first;
        if (tpl__is_space(c) || (c < 0x80 && strchr("-({[<", (char)c) != NULL))
            continue;
        from = at;
        while (at < str->size) {
            size_t size = tpl__character(str, at, &c);

            if (tpl__is_space(c) || (c < 0x80 && strchr("-({[<", (char)c) != NULL))
                break;
            at += size;
        }
        tpl__put_str(&out, tpl__lower(&run->job, tpl__sub(&run->job, str, from, at)));
    }
    return tpl__of_str(tpl__built(&out));
}

static struct value filter_string(struct run *run, struct value self, struct value *args)
{
    (void)args;
    return tpl__of_str(soft(run, self));
}

static struct value filter_replace(struct run *run, struct value self, struct value *args)
{
    struct str *replaced = tpl__replace(run, soft(run, self), soft(run, args[0]),
                                        soft(run, args[1]),
                                        tpl__arg_int(run, args[2], -1, "count"));

    replaced->markup = false;
    return tpl__of_str(replaced);
}

static struct value filter_default(struct run *run, struct value self, struct value *args)
{
    if (self.kind == V_UNDEFINED ||
        (tpl__arg_bool(run, args[1], false) && !tpl__is_true(&run->job, self)))
        return args[0].kind == V_MISSING ? tpl__of_text(&run->job, "") : args[0];
    return self;
}

static struct value filter_safe(struct run *run, struct value self, struct value *args)
{
    struct str *str = soft(run, self);

    (void)args;
    str = tpl__sub(&run->job, str, 0, str->size);
    str->markup = true;
    return tpl__of_str(str);
}

static struct value filter_escape(struct run *run, struct value self, struct value *args)
{
    (void)args;
    return tpl__of_str(tpl__escape(&run->job, soft(run, self)));
}

static struct value filter_forceescape(struct run *run, struct value self, struct value *args)
{
    struct str *str = soft(run, self);

    (void)args;
    str = tpl__sub(&run->job, str, 0, str->size);
    str->markup = false;
    return tpl__of_str(tpl__escape(&run->job, str));
}

static struct value filter_indent(struct run *run, struct value self, struct value *args)
{
    struct str *str = tpl__arg_str(run, self, "s");
    struct value lines;
    struct builder prefix;
    struct builder out;
    bool blank = tpl__arg_bool(run, args[2], false);

    tpl__builder_init(&prefix, &run->job);
    tpl__builder_init(&out, &run->job);
    if (args[0].kind == V_STR) {
        tpl__put_str(&prefix, args[0].str);
    } else {
        int64_t width = tpl__arg_int(run, args[0], 4, "width");

        for (int64_t i = 0; i < width; i++) {
            tpl__charge(&run->job, 1);
            tpl__put_c(&prefix, " ");
        }
    }
    /* With a newline behind it, an empty text and a last empty line count as lines. */
    tpl__put_str(&out, str);
    tpl__put_c(&out, "\n");
    lines = tpl__splitlines(run, tpl__built(&out), false);
    tpl__builder_init(&out, &run->job);
    for (size_t i = 0; i < lines.seq->count; i++) {
        struct str *line = lines.seq->items[i].str;

        if (i > 0)
            tpl__put_c(&out, "\n");
        if (i == 0 ? tpl__arg_bool(run, args[1], false) : blank || line->size > 0)
            tpl__put_str(&out, tpl__built(&prefix));
        tpl__put_str(&out, line);
    }
    return tpl__of_str(tpl__built(&out));
}

static struct value filter_center(struct run *run, struct value self, struct value *args)
{
    return tpl__of_str(tpl__pad(run, soft(run, self), tpl__arg_int(run, args[0], 80, "width"),
                                tpl__none(), 0));
}

static struct value filter_truncate(struct run *run, struct value self, struct value *args)
{
    struct str *str = tpl__arg_str(run, self, "s");
    int64_t length = tpl__arg_int(run, args[0], 255, "length");
    struct str *end = args[2].kind == V_MISSING ? tpl__str_c(&run->job, "...")
                                                : tpl__arg_str(run, args[2], "end");
    int64_t leeway = tpl__arg_int(run, args[3], 5, "leeway");
    int64_t end_count = (int64_t)tpl__str_count(&run->job, end);
    struct builder out;
    size_t cut;

    if (length < end_count || leeway < 0 || length > INT64_MAX - leeway)
        tpl__fail(&run->job, "expected length >= %" PRId64 ", got %" PRId64, end_count, length);
    if ((int64_t)tpl__str_count(&run->job, str) <= length + leeway)
        return self;
    cut = tpl__str_offset(&run->job, str, (size_t)(length - end_count));
    if (!tpl__arg_bool(run, args[1], false)) {
        size_t blank = tpl__str_rfind(&run->job, str, tpl__str_c(&run->job, " "), cut);

        cut = blank == SIZE_MAX ? cut : blank;
    }
    tpl__builder_init(&out, &run->job);
    tpl__put_part(&out, str, 0, cut);
    tpl__put_str(&out, end);
    return tpl__of_str(tpl__built(&out));
}

static struct value filter_wordcount(struct run *run, struct value self, struct value *args)
{
    struct str *str = soft(run, self);
    int64_t count = 0;
    bool inside = false;

    (void)args;
    tpl__charge_bytes(&run->job, str->size * 8);
    for (size_t at = 0; at < str->size;) {
        uint32_t c;

        at += tpl__character(str, at, &c);
        count += tpl__is_word(c) && !inside;
        inside = tpl__is_word(c);
    }
    return tpl__int(count);
}

static struct value filter_urlencode(struct run *run, struct value self, struct value *args)
{
    struct str *str = soft(run, self);
    struct builder out;

    (void)args;
    if (self.kind == V_DICT || self.kind == V_LIST || self.kind == V_TUPLE)
        tpl__fail(&run->job, "urlencode of a %s is not supported", tpl__type_name(self));
    tpl__builder_init(&out, &run->job);
    for (size_t i = 0; i < str->size; i++) {
        unsigned char c = (unsigned char)str->bytes[i];
        char text[4];

        if ((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
            (c != '\0' && strchr("_.-~/", c) != NULL)) {
            tpl__put_part(&out, str, i, i + 1);
        } else {
            snprintf(text, sizeof(text), "%%%02X", c);
            tpl__put(&out, text, 3, tpl__origin_at(str, i));
        }
    }
    return tpl__of_str(tpl__built(&out));
}

static struct value filter_format(struct run *run, struct value self, const struct args *args)
{
    struct value values = tpl__seq(&run->job, V_TUPLE, args->count);
    struct value names = tpl__dict(&run->job);

    if (args->count > 0 && args->named.count > 0)
        tpl__fail(&run->job, "can't handle positional and keyword arguments at the same time");
    *names.dict = args->named;
    for (size_t i = 0; i < args->count; i++)
        tpl__push(&run->job, values.seq, args->items[i]);
    return tpl__of_str(tpl__percent(&run->job, soft(run, self),
                                    args->named.count > 0 ? names : values));
}

/* --- JSON ------------------------------------------------------------------------------------- */

static struct str *indent_of(struct run *run, struct value value)
{
    int64_t width = 0;
    struct builder out;

    if (value.kind == V_STR)
        return value.str;
    width = tpl__arg_int(run, value, 0, "indent");
    if (width > 256)
        tpl__fail(&run->job, "tojson: an indent of %" PRId64 ", at most 256", width);
    tpl__builder_init(&out, &run->job);
    for (int64_t i = 0; i < width; i++)
        tpl__put_c(&out, " ");
    return tpl__built(&out);
}

static struct value filter_tojson(struct run *run, struct value self, struct value *args)
{
    struct json_style style = { .ensure_ascii = tpl__arg_bool(run, args[0], false),
                                .sort_keys = tpl__arg_bool(run, args[3], false),
                                .has_indent = tpl__given(args[1]) };
    struct builder out;

    style.indent = style.has_indent ? indent_of(run, args[1]) : NULL;
    style.item_separator = tpl__str_c(&run->job, style.has_indent ? "," : ", ");
    style.key_separator = tpl__str_c(&run->job, ": ");
    if (tpl__given(args[2])) {
        const struct seq *pair = tpl__iterate(&run->job, args[2]);

        if (pair->count != 2)
            tpl__fail(&run->job, "tojson: separators are two, not %zu", pair->count);
        style.item_separator = tpl__arg_str(run, pair->items[0], "a separator");
        style.key_separator = tpl__arg_str(run, pair->items[1], "a separator");
    }
    tpl__builder_init(&out, &run->job);
    tpl__put_json(&out, self, &style);
    return tpl__of_str(tpl__built(&out));
}

/* --- numbers ---------------------------------------------------------------------------------- */

static bool int_of_float(double real, int64_t *out)
{
    if (!(fabs(real) < 0x1p63))
        return false;
    *out = (int64_t)real;
    return true;
}

static struct value filter_int(struct run *run, struct value self, struct value *args)
{
    struct value missing = args[0].kind == V_MISSING ? tpl__int(0) : args[0];
    int64_t base = tpl__arg_int(run, args[1], 10, "base");
    int64_t integer = 0;
    double real;

    if (self.kind == V_UNDEFINED)
        tpl__fail_undefined(&run->job, self);
    if (tpl__is_int(self, &integer))
        return tpl__int(integer);
    if (self.kind == V_FLOAT && isfinite(self.real)) {
        if (!int_of_float(self.real, &integer))
            tpl__fail(&run->job, "an integer needs more than 64 bits");
        return tpl__int(integer);
    }
    if (self.kind != V_STR)
        return missing;
    if (tpl__parse_int(self.str, base, &integer))
        return tpl__int(integer);
    if (tpl__parse_float(&run->job, self.str, &real) && isfinite(real)) {
        if (!int_of_float(real, &integer))
            tpl__fail(&run->job, "an integer needs more than 64 bits");
        return tpl__int(integer);
    }
    return missing;
}

static struct value filter_float(struct run *run, struct value self, struct value *args)
{
    double real;

    if (self.kind == V_UNDEFINED)
        tpl__fail_undefined(&run->job, self);
    if (tpl__is_number(self, &real))
        return tpl__float(real);
    if (self.kind == V_STR && tpl__parse_float(&run->job, self.str, &real))
        return tpl__float(real);
    return args[0].kind == V_MISSING ? tpl__float(0.0) : args[0];
}

static struct value filter_abs(struct run *run, struct value self, struct value *args)
{
    int64_t integer = 0;

    (void)args;
    if (tpl__is_int(self, &integer))
        return integer < 0 ? tpl__negate(&run->job, tpl__int(integer), true) : tpl__int(integer);
    if (self.kind == V_FLOAT)
        return tpl__float(fabs(self.real));
    if (self.kind == V_UNDEFINED)
        tpl__fail_undefined(&run->job, self);
    tpl__fail(&run->job, "bad operand type for abs(): '%s'", tpl__type_name(self));
}

/* To so many decimals, ties to even on the exact value: what printf does too. */
static double round_to(double real, int64_t precision)
{
    char text[512];

    if (!isfinite(real) || precision > 320)
        return real;
    if (precision < 0) {
        double power = pow(10.0, (double)-precision);

        return isfinite(power) ? nearbyint(real / power) * power : copysign(0.0, real);
    }
    snprintf(text, sizeof(text), "%.*f", (int)precision, real);
    return fabs(real) < 1e100 ? strtod(text, NULL) : real;
}

static struct value filter_round(struct run *run, struct value self, struct value *args)
{
    int64_t precision = tpl__arg_int(run, args[0], 0, "precision");
    const struct str *method = args[1].kind == V_MISSING ? tpl__str_c(&run->job, "common")
                                                         : tpl__arg_str(run, args[1], "method");
    int64_t integer = 0;
    double real;
    double power;

    if (self.kind == V_UNDEFINED)
        tpl__fail_undefined(&run->job, self);
    if (!tpl__is_number(self, &real))
        tpl__fail(&run->job, "type %s doesn't define __round__ method", tpl__type_name(self));
    if (tpl__str_is(method, "common")) {
        if (tpl__is_int(self, &integer) && precision >= 0)
            return tpl__int(integer);
        real = round_to(real, precision);
        return tpl__is_int(self, &integer) ? tpl__int((int64_t)real) : tpl__float(real);
    }
    if (!tpl__str_is(method, "ceil") && !tpl__str_is(method, "floor"))
        tpl__fail(&run->job, "method must be common, ceil or floor");
    power = pow(10.0, (double)precision);
    if (!isfinite(real * power) || power == 0.0)
        tpl__fail(&run->job, "round: a precision of %" PRId64 " is out of range", precision);
    real *= power;
    return tpl__float((tpl__str_is(method, "ceil") ? ceil(real) : floor(real)) / power);
}

static struct value filter_attr(struct run *run, struct value self, struct value *args)
{
    struct str *name = soft(run, args[0]);
    struct value method;

    if (self.kind != V_DICT)
        return tpl__attr(run, self, name);
    method = tpl__dict_method(run, self, name);
    return method.kind == V_MISSING ? tpl__undefined(&run->job, name, "dict") : method;
}

const struct filter_row tpl__text_filters[] = {
    { .name = "tojson", .spec = "ensure_ascii?,indent?,separators?,sort_keys?",
      .call = filter_tojson },
    { .name = "trim", .spec = "chars?", .call = filter_trim },
    { .name = "upper", .spec = "", .call = filter_upper },
    { .name = "lower", .spec = "", .call = filter_lower },
    { .name = "capitalize", .spec = "", .call = filter_capitalize },
    { .name = "title", .spec = "", .call = filter_title },
    { .name = "string", .spec = "", .call = filter_string },
    { .name = "replace", .spec = "old,new,count?", .call = filter_replace },
    { .name = "default", .spec = "default_value?,boolean?", .call = filter_default },
    { .name = "d", .spec = "default_value?,boolean?", .call = filter_default },
    { .name = "safe", .spec = "", .call = filter_safe },
    { .name = "escape", .spec = "", .call = filter_escape },
    { .name = "e", .spec = "", .call = filter_escape },
    { .name = "forceescape", .spec = "", .call = filter_forceescape },
    { .name = "indent", .spec = "width?,first?,blank?", .call = filter_indent },
    { .name = "center", .spec = "width?", .call = filter_center },
    { .name = "truncate", .spec = "length?,killwords?,end?,leeway?", .call = filter_truncate },
    { .name = "wordcount", .spec = "", .call = filter_wordcount },
    { .name = "urlencode", .spec = "", .call = filter_urlencode },
    { .name = "format", .call_raw = filter_format },
    { .name = "int", .spec = "default?,base?", .call = filter_int },
    { .name = "float", .spec = "default?", .call = filter_float },
    { .name = "abs", .spec = "", .call = filter_abs },
    { .name = "round", .spec = "precision?,method?", .call = filter_round },
    { .name = "attr", .spec = "name", .call = filter_attr },
};
const size_t tpl__text_filter_count = sizeof(tpl__text_filters) / sizeof(tpl__text_filters[0]);
