/* text/template/format.c - Python's two ways to format: "%s %.2f" % args and "{} {name}".format().
 *
 * Of format()'s mini-language there is [[fill]align][sign][0][width][,][.precision][type] for
 * strings, integers and floats. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "text/template/internal.h"

#define FIELD_WIDTH_MAX 4096

struct spec {
    uint32_t fill;
    char align, sign, type;
    bool zero, comma, alternate, left;
    int width, precision; /* -1: none */
};

/* Text padded to spec->width; numbers fill to the right of their sign with zeros. */
static void put_padded(struct builder *out, const struct str *text, const struct spec *spec,
                       char align)
{
    struct job *job = out->job;
    int count = (int)tpl__str_count(job, text);
    int pad = spec->width > count ? spec->width - count : 0;
    int left = align == '<' ? 0 : align == '^' ? pad / 2 : pad;
    size_t sign = 0;

    if (align == '=') {
        sign = text->size > 0 && strchr("+- ", text->bytes[0]) != NULL;
        tpl__put_part(out, text, 0, sign);
    }
    for (int i = 0; i < left; i++)
        tpl__put_char(out, spec->fill, 0);
    tpl__put_part(out, text, sign, text->size);
    for (int i = left; i < pad; i++)
        tpl__put_char(out, spec->fill, 0);
}

/* Thousands get commas. */
static struct str *with_commas(struct job *job, const struct str *digits)
{
    struct builder out;
    size_t begin = digits->size > 0 && strchr("+- ", digits->bytes[0]) != NULL;
    size_t end = begin;

    while (end < digits->size && digits->bytes[end] >= '0' && digits->bytes[end] <= '9')
        end++;
    tpl__builder_init(&out, job);
    for (size_t i = 0; i < digits->size; i++) {
        if (i > begin && i < end && (end - i) % 3 == 0)
            tpl__put_c(&out, ",");
        tpl__put_part(&out, digits, i, i + 1);
    }
    return tpl__built(&out);
}

static const char *sign_text(const struct spec *spec, bool negative)
{
    return negative ? "-" : spec->sign == '+' ? "+" : spec->sign == ' ' ? " " : "";
}

static struct str *int_text(struct job *job, int64_t integer, const struct spec *spec)
{
    struct builder out;
    char text[96];
    uint64_t magnitude = integer < 0 ? -(uint64_t)integer : (uint64_t)integer;
    size_t size;

    tpl__builder_init(&out, job);
    tpl__put_c(&out, sign_text(spec, integer < 0));
    if (spec->type == 'b') {
        size_t at = sizeof(text) - 1;

        text[at] = '\0';
        do {
            text[--at] = (char)('0' + (magnitude & 1));
            magnitude >>= 1;
        } while (magnitude != 0);
        memmove(text, text + at, sizeof(text) - at);
    } else {
        snprintf(text, sizeof(text), spec->type == 'x' ? "%" PRIx64
                 : spec->type == 'X' ? "%" PRIX64 : spec->type == 'o' ? "%" PRIo64 : "%" PRIu64,
                 magnitude);
    }
    if (spec->alternate && strchr("xXob", spec->type) != NULL && spec->type != '\0') {
        char prefix[3] = { '0', spec->type, '\0' };

        tpl__put_c(&out, prefix);
    }
    size = strlen(text);
    for (int i = (int)size; i < spec->precision; i++)
        tpl__put_c(&out, "0");
    tpl__put(&out, text, size, 0);
    return tpl__built(&out);
}

static struct str *float_text(struct job *job, double real, const struct spec *spec)
{
    struct builder out;
    char format[16];
    char text[5120];
    int precision = spec->precision < 0 ? 6 : spec->precision;
    char type = spec->type == '%' ? 'f' : spec->type;

    tpl__builder_init(&out, job);
    tpl__put_c(&out, sign_text(spec, signbit(real) && !isnan(real)));
    real = fabs(real);
    if (spec->type == '\0' && spec->precision < 0) {
        tpl__put_float(&out, real, 0);
        return tpl__built(&out);
    }
    if (!isfinite(real)) {
        tpl__put_c(&out, isnan(real) ? "nan" : "inf");
    } else {
        snprintf(format, sizeof(format), "%%%s.*%c", spec->alternate ? "#" : "",
                 type == '\0' ? 'g' : type);
        /* The format is one of a handful that was just made. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(text, sizeof(text), format, precision, spec->type == '%' ? real * 100 : real);
#pragma GCC diagnostic pop
        tpl__put_c(&out, text);
    }
    if (spec->type == '%')
        tpl__put_c(&out, "%");
    return tpl__built(&out);
}

static int checked_width(struct job *job, int64_t number)
{
    if (number > FIELD_WIDTH_MAX)
        tpl__fail(job, "a field %" PRId64 " wide, at most %d", number, FIELD_WIDTH_MAX);
    return (int)number;
}

static int take_number(struct job *job, const struct str *str, size_t *at)
{
    int64_t number = 0;
    size_t begin = *at;

    while (*at < str->size && str->bytes[*at] >= '0' && str->bytes[*at] <= '9') {
        number = number * 10 + (str->bytes[(*at)++] - '0');
        checked_width(job, number);
    }
    return *at == begin ? -1 : (int)number;
}

/* --- "%s" ------------------------------------------------------------------------------------- */

struct percent_args {
    struct value args;
    size_t next;
    bool is_tuple;
};

static struct value next_arg(struct job *job, struct percent_args *args)
{
    if (args->is_tuple && args->next < args->args.seq->count)
        return args->args.seq->items[args->next++];
    if (args->is_tuple || args->next > 0)
        tpl__fail(job, "not enough arguments for format string");
    args->next = 1;
    return args->args;
}

static int64_t percent_int(struct job *job, struct value value, char type)
{
    int64_t integer = 0;

    if (tpl__is_int(value, &integer))
        return integer;
    if (value.kind != V_FLOAT || strchr("xXoc", type) != NULL)
        tpl__fail(job, "%%%c format: a real number is required, not %s", type,
                  tpl__type_name(value));
    if (!(fabs(value.real) < 0x1p63))
        tpl__fail(job, "an integer needs more than 64 bits");
    return (int64_t)value.real;
}

static void put_percent(struct builder *out, struct value value, struct spec *spec)
{
    struct job *job = out->job;
    struct str *text;
    double number = 0;
    bool numeric = true;

    switch (spec->type) {
    case 's':
    case 'r':
    case 'a':
        if (spec->type == 's') {
            text = tpl__to_str(job, value);
        } else {
            struct builder repr;

            tpl__builder_init(&repr, job);
            tpl__put_repr(&repr, value);
            text = tpl__built(&repr);
        }
        if (spec->precision >= 0)
            text = tpl__sub(job, text, 0, tpl__str_offset(job, text, (size_t)spec->precision));
        numeric = false;
        break;
    case 'c':
        if (value.kind != V_STR || tpl__str_count(job, value.str) != 1)
            tpl__fail(job, "%%c requires int or char");
        text = value.str;
        numeric = false;
        break;
    case 'd':
    case 'i':
    case 'u':
    case 'x':
    case 'X':
    case 'o':
        text = int_text(job, percent_int(job, value, spec->type), spec);
        break;
    case 'e':
    case 'E':
    case 'f':
    case 'F':
    case 'g':
    case 'G':
        if (!tpl__is_number(value, &number))
            tpl__fail(job, "must be real number, not %s", tpl__type_name(value));
        text = float_text(job, number, spec);
        break;
    default:
        tpl__fail(job, "unsupported format character '%c'", spec->type);
    }
    spec->fill = spec->zero && numeric && !spec->left ? '0' : ' ';
    put_padded(out, text, spec, spec->left ? '<' : spec->fill == '0' ? '=' : '>');
}

static void take_flags(const struct str *format, size_t *at, struct spec *spec)
{
    for (; *at < format->size; (*at)++) {
        switch (format->bytes[*at]) {
        case '-': spec->left = true; break;
        case '+': spec->sign = '+'; break;
        case ' ': spec->sign = spec->sign == '+' ? '+' : ' '; break;
        case '0': spec->zero = true; break;
        case '#': spec->alternate = true; break;
        default: return;
        }
    }
}

/* The name in %(name)s; false: there is none. */
static bool take_key(struct job *job, const struct str *format, size_t *at, struct value args,
                     struct value *value_out)
{
    size_t end = *at + 1;
    const struct value *found;

    if (*at >= format->size || format->bytes[*at] != '(')
        return false;
    while (end < format->size && format->bytes[end] != ')')
        end++;
    if (end >= format->size)
        tpl__fail(job, "incomplete format key");
    if (args.kind != V_DICT)
        tpl__fail(job, "format requires a mapping");
    found = tpl__dict_find_str(job, args.dict, tpl__sub(job, format, *at + 1, end));
    if (found == NULL)
        tpl__fail(job, "a key of the format is not among its arguments");
    *value_out = *found;
    *at = end + 1;
    return true;
}

static int take_width(struct job *job, const struct str *format, size_t *at,
                      struct percent_args *args)
{
    int64_t integer = 0;

    if (*at >= format->size || format->bytes[*at] != '*')
        return take_number(job, format, at);
    (*at)++;
    if (!tpl__is_int(next_arg(job, args), &integer) || integer < 0)
        tpl__fail(job, "* wants an int that is not negative");
    return checked_width(job, integer);
}

struct str *tpl__percent(struct job *job, const struct str *format, struct value value)
{
    struct percent_args args = { .args = value, .is_tuple = value.kind == V_TUPLE };
    struct builder out;
    bool named = false;
    size_t at = 0;

    tpl__builder_init(&out, job);
    while (at < format->size) {
        struct spec spec = { .fill = ' ', .width = -1, .precision = -1 };
        struct value item = { .kind = V_MISSING };
        size_t plain = at;

        while (plain < format->size && format->bytes[plain] != '%')
            plain++;
        tpl__put_part(&out, format, at, plain);
        if (plain == format->size)
            break;
        at = plain + 1;
        if (take_key(job, format, &at, value, &item))
            named = true;
        take_flags(format, &at, &spec);
        spec.width = take_width(job, format, &at, &args);
        if (at < format->size && format->bytes[at] == '.') {
            at++;
            spec.precision = take_width(job, format, &at, &args);
            spec.precision = spec.precision < 0 ? 0 : spec.precision;
        }
        if (at >= format->size)
            tpl__fail(job, "incomplete format");
        spec.type = format->bytes[at++];
        if (spec.type == '%') {
            tpl__put_c(&out, "%");
            continue;
        }
        if (item.kind == V_MISSING)
            item = next_arg(job, &args);
        put_percent(&out, item, &spec);
    }
    if (args.is_tuple ? args.next < value.seq->count
                      : !named && args.next == 0 && value.kind != V_DICT && value.kind != V_LIST)
        tpl__fail(job, "not all arguments converted during string formatting");
    return tpl__built(&out);
}

/* --- "{}" ------------------------------------------------------------------------------------- */

static bool is_one_of(const char *letters, char c)
{
    return c != '\0' && strchr(letters, c) != NULL;
}

static void read_spec(struct job *job, const struct str *text, struct spec *spec)
{
    size_t at = 0;
    uint32_t c = 0;
    size_t size = text->size > 0 ? tpl__character(text, 0, &c) : 0;

    if (size > 0 && size < text->size && is_one_of("<>=^", text->bytes[size])) {
        spec->fill = c;
        at = size;
    }
    if (at < text->size && is_one_of("<>=^", text->bytes[at]))
        spec->align = text->bytes[at++];
    if (at < text->size && is_one_of("+- ", text->bytes[at]))
        spec->sign = text->bytes[at++];
    if (at < text->size && text->bytes[at] == '#') {
        spec->alternate = true;
        at++;
    }
    if (at < text->size && text->bytes[at] == '0') {
        at++;
        spec->fill = spec->align == '\0' ? '0' : spec->fill;
        spec->zero = spec->align == '\0';
    }
    spec->width = take_number(job, text, &at);
    if (at < text->size && text->bytes[at] == ',') {
        spec->comma = true;
        at++;
    }
    if (at < text->size && text->bytes[at] == '.') {
        at++;
        spec->precision = take_number(job, text, &at);
        if (spec->precision < 0)
            tpl__fail(job, "Format specifier missing precision");
    }
    if (at < text->size)
        spec->type = text->bytes[at++];
    if (at != text->size || (spec->type != '\0' && strchr("sdbxXoeEfFgG%", spec->type) == NULL))
        tpl__fail(job, "Invalid format specifier");
}

static void put_formatted(struct builder *out, struct value value, const struct str *spec_text)
{
    struct job *job = out->job;
    struct spec spec = { .fill = ' ', .width = -1, .precision = -1 };
    struct str *text;
    double number = 0;
    int64_t integer = 0;
    char align = '>';

    if (spec_text->size == 0) {
        tpl__put_value(out, value);
        return;
    }
    read_spec(job, spec_text, &spec);
    if (value.kind == V_STR && (spec.type == '\0' || spec.type == 's')) {
        text = value.str;
        if (spec.precision >= 0)
            text = tpl__sub(job, text, 0, tpl__str_offset(job, text, (size_t)spec.precision));
        align = '<';
    } else if (tpl__is_int(value, &integer) &&
               (spec.type == '\0' || strchr("dbxXo", spec.type) != NULL)) {
        if (spec.precision >= 0)
            tpl__fail(job, "Precision not allowed in integer format specifier");
        text = int_text(job, integer, &spec);
    } else if (tpl__is_number(value, &number) && strchr("eEfFgG%", spec.type) != NULL) {
        text = float_text(job, number, &spec);
    } else {
        tpl__fail(job, "Unknown format code '%c' for object of type '%s'",
                  spec.type == '\0' ? ' ' : spec.type, tpl__type_name(value));
    }
    if (spec.comma && value.kind != V_STR)
        text = with_commas(job, text);
    put_padded(out, text, &spec, spec.align != '\0' ? spec.align
                                 : spec.zero && value.kind != V_STR ? '=' : align);
}

struct field {
    struct run *run;
    const struct args *args;
    size_t next; /* of {} */
};

/* name.attr[item] of a replacement field */
static struct value field_value(struct field *field, const struct str *name)
{
    struct run *run = field->run;
    struct value value;
    size_t end = 0;
    int64_t index;

    while (end < name->size && name->bytes[end] != '.' && name->bytes[end] != '[')
        end++;
    if (end != name->size)
        tpl__fail(&run->job, "attributes in format fields are not supported");
    if (name->size == 0 || tpl__parse_int(name, 10, &index)) {
        index = name->size == 0 ? (int64_t)field->next++ : index;
        if (index < 0 || (uint64_t)index >= field->args->count)
            tpl__fail(&run->job, "Replacement index %" PRId64 " out of range", index);
        value = field->args->items[index];
    } else {
        const struct value *found = tpl__dict_find_str(&run->job, &field->args->named, name);

        if (found == NULL)
            tpl__fail(&run->job, "format() lacks the argument '%.*s'",
                      (int)(name->size > 60 ? 60 : name->size), name->bytes);
        value = *found;
    }
    return value;
}

static void put_field(struct builder *out, struct field *field, const struct str *inside)
{
    struct job *job = out->job;
    size_t end = 0;
    char conversion = '\0';
    struct value value;

    while (end < inside->size && inside->bytes[end] != '!' && inside->bytes[end] != ':')
        end++;
    value = field_value(field, tpl__sub(job, inside, 0, end));
    if (end < inside->size && inside->bytes[end] == '!') {
        conversion = end + 1 < inside->size ? inside->bytes[end + 1] : '\0';
        end += 2;
        if (strchr("sr", conversion) == NULL || conversion == '\0' ||
            (end < inside->size && inside->bytes[end] != ':'))
            tpl__fail(job, "Unknown conversion specifier in a format");
    }
    if (conversion == 's') {
        value = tpl__of_str(tpl__to_str(job, value));
    } else if (conversion == 'r') {
        struct builder repr;

        tpl__builder_init(&repr, job);
        tpl__put_repr(&repr, value);
        value = tpl__of_str(tpl__built(&repr));
    }
    put_formatted(out, value,
                  tpl__sub(job, inside, end < inside->size ? end + 1 : inside->size,
                           inside->size));
}

struct str *tpl__format(struct run *run, const struct str *str, const struct args *args)
{
    struct field field = { .run = run, .args = args };
    struct builder out;
    struct str *formatted;

    tpl__builder_init(&out, &run->job);
    for (size_t at = 0; at < str->size;) {
        char c = str->bytes[at];
        size_t end = at + 1;

        if (c != '{' && c != '}') {
            tpl__put_part(&out, str, at, at + 1);
            at++;
            continue;
        }
        if (end < str->size && str->bytes[end] == c) {
            tpl__put_part(&out, str, at, at + 1);
            at += 2;
            continue;
        }
        if (c == '}')
            tpl__fail(&run->job, "Single '}' encountered in format string");
        while (end < str->size && str->bytes[end] != '}' && str->bytes[end] != '{')
            end++;
        if (end >= str->size || str->bytes[end] == '{')
            tpl__fail(&run->job, "expected '}' before end of string");
        put_field(&out, &field, tpl__sub(&run->job, str, at + 1, end));
        at = end + 1;
    }
    formatted = tpl__built(&out);
    formatted->markup = str->markup;
    return formatted;
}
