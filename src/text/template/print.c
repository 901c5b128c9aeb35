/* text/template/print.c - values as text: str(), repr() and json.dumps() of Python. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/template/internal.h"

/* The fewest digits that read back as the same number, as repr() has them: with an exponent below
 * 1e-4 and from 1e16 on. */
void tpl__put_float(struct builder *builder, double real, uint8_t origin)
{
    char digits[40];
    char text[64];
    char *exponent;
    int power;
    int precision = 1;
    size_t size;

    if (!isfinite(real)) {
        const char *name = isnan(real) ? "nan" : real < 0 ? "-inf" : "inf";

        tpl__put(builder, name, strlen(name), origin);
        return;
    }
    do {
        snprintf(digits, sizeof(digits), "%.*e", precision - 1, real);
    } while (strtod(digits, NULL) != real && precision++ < 17);
    exponent = strchr(digits, 'e');
    power = (int)strtol(exponent + 1, NULL, 10);
    if (power < -4 || power >= 16) {
        *exponent = '\0';
        snprintf(text, sizeof(text), "%se%c%02d", digits, power < 0 ? '-' : '+', abs(power));
    } else {
        int decimals = precision - 1 - power;

        snprintf(text, sizeof(text), "%.*f", decimals < 1 ? 1 : decimals, real);
    }
    size = strlen(text);
    tpl__put(builder, text, size, origin);
}

static void put_int(struct builder *builder, int64_t integer)
{
    char text[32];

    snprintf(text, sizeof(text), "%" PRId64, integer);
    tpl__put_c(builder, text);
}

static void enter_value(struct builder *builder)
{
    tpl__charge(builder->job, 1);
    tpl__enter(builder->job);
}

/* --- repr ------------------------------------------------------------------------------------- */

static void put_repr_char(struct builder *builder, const struct str *str, size_t at, size_t size,
                          uint32_t c, char quote)
{
    char text[16];

    if (c == (uint32_t)(unsigned char)quote || c == '\\')
        snprintf(text, sizeof(text), "\\%c", (char)c);
    else if (c == '\n' || c == '\r' || c == '\t')
        snprintf(text, sizeof(text), "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
    else if (c == ' ' || tpl__is_printable(c)) {
        tpl__put_part(builder, str, at, at + size);
        return;
    } else
        snprintf(text, sizeof(text), c <= 0xff ? "\\x%02x" : c <= 0xffff ? "\\u%04x" : "\\U%08x",
                 c);
    tpl__put(builder, text, strlen(text), tpl__origin_at(str, at));
}

static void put_repr_str(struct builder *builder, const struct str *str)
{
    bool has_single = memchr(str->bytes, '\'', str->size) != NULL;
    bool has_double = memchr(str->bytes, '"', str->size) != NULL;
    char quote = has_single && !has_double ? '"' : '\'';

    tpl__charge_bytes(builder->job, str->size * 8);
    if (str->markup)
        tpl__put_c(builder, "Markup(");
    tpl__put(builder, &quote, 1, 0);
    for (size_t at = 0; at < str->size;) {
        uint32_t c;
        size_t size = tpl__character(str, at, &c);

        put_repr_char(builder, str, at, size, c, quote);
        at += size;
    }
    tpl__put(builder, &quote, 1, 0);
    if (str->markup)
        tpl__put_c(builder, ")");
}

static void put_repr_items(struct builder *builder, const struct seq *seq)
{
    for (size_t i = 0; i < seq->count; i++) {
        if (i > 0)
            tpl__put_c(builder, ", ");
        tpl__put_repr(builder, seq->items[i]);
    }
}

static void put_repr_seq(struct builder *builder, struct value value)
{
    const struct seq *seq = value.seq;

    enter_value(builder);
    if (value.kind == V_VIEW) {
        tpl__put_c(builder, seq->label);
        tpl__put_c(builder, "([");
        put_repr_items(builder, seq);
        tpl__put_c(builder, "])");
    } else {
        tpl__put_c(builder, value.kind == V_LIST ? "[" : "(");
        put_repr_items(builder, seq);
        tpl__put_c(builder, value.kind == V_LIST ? "]" : seq->count == 1 ? ",)" : ")");
    }
    tpl__leave(builder->job);
}

static void put_repr_dict(struct builder *builder, const struct dict *dict)
{
    enter_value(builder);
    tpl__put_c(builder, "{");
    for (size_t i = 0; i < dict->count; i++) {
        if (i > 0)
            tpl__put_c(builder, ", ");
        tpl__put_repr(builder, dict->entries[i].key);
        tpl__put_c(builder, ": ");
        tpl__put_repr(builder, dict->entries[i].value);
    }
    tpl__put_c(builder, "}");
    tpl__leave(builder->job);
}

/* range(0, 3), from what it holds; its ends are kept behind the items. */
static void put_range(struct builder *builder, const struct seq *seq)
{
    const struct value *ends = seq->items + seq->count;

    tpl__put_c(builder, "range(");
    put_int(builder, ends[0].integer);
    tpl__put_c(builder, ", ");
    put_int(builder, ends[1].integer);
    if (ends[2].integer != 1) {
        tpl__put_c(builder, ", ");
        put_int(builder, ends[2].integer);
    }
    tpl__put_c(builder, ")");
}

void tpl__put_repr(struct builder *builder, struct value value)
{
    char text[80];

    switch (value.kind) {
    case V_UNDEFINED: tpl__put_c(builder, "Undefined"); break;
    case V_NONE: tpl__put_c(builder, "None"); break;
    case V_BOOL: tpl__put_c(builder, value.truth ? "True" : "False"); break;
    case V_INT: put_int(builder, value.integer); break;
    case V_FLOAT: tpl__put_float(builder, value.real, 0); break;
    case V_STR: put_repr_str(builder, value.str); break;
    case V_LIST:
    case V_TUPLE:
    case V_VIEW:
        put_repr_seq(builder, value);
        break;
    case V_RANGE: put_range(builder, value.seq); break;
    case V_DICT: put_repr_dict(builder, value.dict); break;
    case V_NAMESPACE:
        tpl__put_c(builder, "<Namespace ");
        put_repr_dict(builder, value.dict);
        tpl__put_c(builder, ">");
        break;
    case V_LOOP:
        snprintf(text, sizeof(text), "<LoopContext %zu/%zu>", value.loop->index + 1,
                 value.loop->items->count);
        tpl__put_c(builder, text);
        break;
    case V_MACRO:
        tpl__put_c(builder, "<Macro '");
        tpl__put_str(builder, value.macro->node->name);
        tpl__put_c(builder, "'>");
        break;
    default:
        tpl__fail(builder->job, "a '%s' object has no text of its own", tpl__type_name(value));
    }
}

void tpl__put_value(struct builder *builder, struct value value)
{
    if (value.kind == V_STR)
        tpl__put_str(builder, value.str);
    else if (value.kind != V_UNDEFINED)
        tpl__put_repr(builder, value);
}

struct str *tpl__to_str(struct job *job, struct value value)
{
    struct builder builder;

    if (value.kind == V_STR)
        return value.str;
    tpl__builder_init(&builder, job);
    tpl__put_value(&builder, value);
    return tpl__built(&builder);
}

/* --- JSON ------------------------------------------------------------------------------------- */

static void put_json_char(struct builder *builder, const struct str *str, size_t at, size_t size,
                          uint32_t c, bool ensure_ascii)
{
    static const char letters[] = "\"\"\\\\\nn\rr\tt\bb\ff";
    char text[16];

    for (size_t i = 0; i + 1 < sizeof(letters); i += 2) {
        if (c == (uint32_t)letters[i]) {
            snprintf(text, sizeof(text), "\\%c", letters[i + 1]);
            tpl__put(builder, text, 2, tpl__origin_at(str, at));
            return;
        }
    }
    if (c >= 0x20 && (!ensure_ascii || c < 0x7f)) {
        tpl__put_part(builder, str, at, at + size);
        return;
    }
    if (c > 0xffff)
        snprintf(text, sizeof(text), "\\u%04x\\u%04x", 0xd800 + ((c - 0x10000) >> 10),
                 0xdc00 + ((c - 0x10000) & 0x3ff));
    else
        snprintf(text, sizeof(text), "\\u%04x", c);
    tpl__put(builder, text, strlen(text), tpl__origin_at(str, at));
}

static void put_json_str(struct builder *builder, const struct str *str, bool ensure_ascii)
{
    tpl__put_c(builder, "\"");
    tpl__charge_bytes(builder->job, str->size * 8);
    for (size_t at = 0; at < str->size;) {
        uint32_t c;
        size_t size = tpl__character(str, at, &c);

        put_json_char(builder, str, at, size, c, ensure_ascii);
        at += size;
    }
    tpl__put_c(builder, "\"");
}

static void put_line(struct builder *builder, const struct json_style *style, unsigned level)
{
    if (!style->has_indent)
        return;
    tpl__put_c(builder, "\n");
    for (unsigned i = 0; i < level; i++)
        tpl__put_str(builder, style->indent);
}

static void put_json_key(struct builder *builder, struct value key, const struct json_style *style)
{
    if (key.kind == V_STR) {
        put_json_str(builder, key.str, style->ensure_ascii);
    } else if (key.kind <= V_FLOAT && key.kind != V_UNDEFINED) {
        tpl__put_c(builder, "\"");
        tpl__put_json(builder, key, style);
        tpl__put_c(builder, "\"");
    } else {
        tpl__fail(builder->job, "keys must be str, int, float, bool or None, not %s",
                  tpl__type_name(key));
    }
}

static void put_json_at(struct builder *builder, struct value value,
                        const struct json_style *style, unsigned level);

/* The entries in the order of their keys. */
static const struct entry *sorted(struct job *job, const struct dict *dict)
{
    struct entry *entries = tpl__alloc(job, (dict->count + 1) * sizeof(*entries));

    for (size_t i = 0; i < dict->count; i++) {
        size_t at = i;

        tpl__charge(job, i / 4 + 1);
        while (at > 0 && tpl__less(job, dict->entries[i].key, entries[at - 1].key, "<")) {
            entries[at] = entries[at - 1];
            at--;
        }
        entries[at] = dict->entries[i];
    }
    return entries;
}

static void put_json_dict(struct builder *builder, const struct dict *dict,
                          const struct json_style *style, unsigned level)
{
    const struct entry *entries = style->sort_keys ? sorted(builder->job, dict) : dict->entries;

    if (dict->count == 0) {
        tpl__put_c(builder, "{}");
        return;
    }
    enter_value(builder);
    tpl__put_c(builder, "{");
    for (size_t i = 0; i < dict->count; i++) {
        if (i > 0)
            tpl__put_str(builder, style->item_separator);
        put_line(builder, style, level + 1);
        put_json_key(builder, entries[i].key, style);
        tpl__put_str(builder, style->key_separator);
        put_json_at(builder, entries[i].value, style, level + 1);
    }
    put_line(builder, style, level);
    tpl__put_c(builder, "}");
    tpl__leave(builder->job);
}

static void put_json_seq(struct builder *builder, const struct seq *seq,
                         const struct json_style *style, unsigned level)
{
    if (seq->count == 0) {
        tpl__put_c(builder, "[]");
        return;
    }
    enter_value(builder);
    tpl__put_c(builder, "[");
    for (size_t i = 0; i < seq->count; i++) {
        if (i > 0)
            tpl__put_str(builder, style->item_separator);
        put_line(builder, style, level + 1);
        put_json_at(builder, seq->items[i], style, level + 1);
    }
    put_line(builder, style, level);
    tpl__put_c(builder, "]");
    tpl__leave(builder->job);
}

static void put_json_at(struct builder *builder, struct value value,
                        const struct json_style *style, unsigned level)
{
    switch (value.kind) {
    case V_NONE: tpl__put_c(builder, "null"); break;
    case V_BOOL: tpl__put_c(builder, value.truth ? "true" : "false"); break;
    case V_INT: put_int(builder, value.integer); break;
    case V_FLOAT:
        if (isfinite(value.real))
            tpl__put_float(builder, value.real, 0);
        else
            tpl__put_c(builder, isnan(value.real) ? "NaN"
                                : value.real < 0 ? "-Infinity" : "Infinity");
        break;
    case V_STR: put_json_str(builder, value.str, style->ensure_ascii); break;
    case V_LIST:
    case V_TUPLE:
        put_json_seq(builder, value.seq, style, level);
        break;
    case V_DICT: put_json_dict(builder, value.dict, style, level); break;
    default:
        tpl__fail(builder->job, "Object of type %s is not JSON serializable",
                  tpl__type_name(value));
    }
}

void tpl__put_json(struct builder *builder, struct value value, const struct json_style *style)
{
    put_json_at(builder, value, style, 0);
}
