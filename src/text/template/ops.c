/* text/template/ops.c - operators, as Python's of the same types. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "text/template/internal.h"

void tpl__fail_undefined(struct job *job, struct value value)
{
    const struct undefined *undefined = value.undefined;
    const struct str *name = undefined != NULL ? undefined->name : NULL;
    int size = name == NULL ? 0 : name->size > 80 ? 80 : (int)name->size;

    if (name == NULL)
        tpl__fail(job, "a value is undefined");
    if (undefined->owner == NULL)
        tpl__fail(job, "'%.*s' is undefined", size, name->bytes);
    tpl__fail(job, "'%s object' has no attribute '%.*s'", undefined->owner, size, name->bytes);
}

static void check_defined(struct job *job, struct value a, struct value b)
{
    if (a.kind == V_UNDEFINED)
        tpl__fail_undefined(job, a);
    if (b.kind == V_UNDEFINED)
        tpl__fail_undefined(job, b);
}

/* --- comparing -------------------------------------------------------------------------------- */

static void enter_value(struct job *job)
{
    tpl__charge(job, 1);
    tpl__enter(job);
}

static bool dicts_equal(struct job *job, const struct dict *a, const struct dict *b)
{
    if (a->count != b->count)
        return false;
    for (size_t i = 0; i < a->count; i++) {
        const struct value *other = tpl__dict_find(job, b, a->entries[i].key);

        if (other == NULL || !tpl__equal(job, a->entries[i].value, *other))
            return false;
    }
    return true;
}

static bool seqs_equal(struct job *job, const struct seq *a, const struct seq *b)
{
    if (a->count != b->count)
        return false;
    for (size_t i = 0; i < a->count; i++) {
        if (!tpl__equal(job, a->items[i], b->items[i]))
            return false;
    }
    return true;
}

/* Integers against floats without rounding: a long double holds both, where it has 64 bits. */
static long double exact(struct value value)
{
    int64_t integer = 0;

    return tpl__is_int(value, &integer) ? (long double)integer : (long double)value.real;
}

bool tpl__equal(struct job *job, struct value a, struct value b)
{
    double number;
    bool equal;

    if (tpl__is_number(a, &number) && tpl__is_number(b, &number))
        return exact(a) == exact(b);
    if (a.kind != b.kind)
        return false;
    switch (a.kind) {
    case V_UNDEFINED:
    case V_NONE:
        return true;
    case V_STR:
        tpl__charge_bytes(job, a.str->size);
        return tpl__str_equal(a.str, b.str);
    case V_LIST:
    case V_TUPLE:
    case V_RANGE:
        enter_value(job);
        equal = seqs_equal(job, a.seq, b.seq);
        tpl__leave(job);
        return equal;
    case V_DICT:
        enter_value(job);
        equal = dicts_equal(job, a.dict, b.dict);
        tpl__leave(job);
        return equal;
    case V_FUNCTION:
        return a.function->call == b.function->call && a.function->bound == b.function->bound &&
               tpl__equal(job, a.function->self, b.function->self);
    default:
        return a.seq == b.seq; /* the same object: any of the pointers */
    }
}

bool tpl__less(struct job *job, struct value a, struct value b, const char *sign)
{
    double number;
    bool less;

    check_defined(job, a, b);
    if (tpl__is_number(a, &number) && tpl__is_number(b, &number))
        return exact(a) < exact(b);
    if (a.kind == V_STR && b.kind == V_STR) {
        size_t size = a.str->size < b.str->size ? a.str->size : b.str->size;
        int order = size == 0 ? 0 : memcmp(a.str->bytes, b.str->bytes, size);

        tpl__charge_bytes(job, size);
        return order < 0 || (order == 0 && a.str->size < b.str->size);
    }
    if (a.kind == b.kind && (a.kind == V_LIST || a.kind == V_TUPLE)) {
        size_t i = 0;

        enter_value(job);
        while (i < a.seq->count && i < b.seq->count &&
               tpl__equal(job, a.seq->items[i], b.seq->items[i]))
            i++;
        less = i < a.seq->count && i < b.seq->count
                   ? tpl__less(job, a.seq->items[i], b.seq->items[i], sign)
                   : a.seq->count < b.seq->count;
        tpl__leave(job);
        return less;
    }
    tpl__fail(job, "'%s' not supported between instances of '%s' and '%s'", sign,
              tpl__type_name(a), tpl__type_name(b));
}

bool tpl__contains(struct job *job, struct value item, struct value container)
{
    const struct seq *items;

    if (container.kind == V_STR) {
        if (item.kind == V_UNDEFINED)
            tpl__fail_undefined(job, item);
        if (item.kind != V_STR)
            tpl__fail(job, "'in <string>' requires string as left operand, not %s",
                      tpl__type_name(item));
        return tpl__str_find(job, container.str, item.str, 0) != SIZE_MAX;
    }
    if (container.kind == V_DICT)
        return tpl__dict_find(job, container.dict, item) != NULL;
    if (!tpl__is_iterable(container))
        tpl__fail(job, "argument of type '%s' is not iterable", tpl__type_name(container));
    items = tpl__iterate(job, container);
    for (size_t i = 0; i < items->count; i++) {
        tpl__charge(job, 1);
        if (tpl__equal(job, items->items[i], item))
            return true;
    }
    return false;
}

bool tpl__compare(struct job *job, enum compare_op op, struct value a, struct value b)
{
    double x;
    double y;

    if (op >= C_LT && op <= C_GE && tpl__is_number(a, &x) && tpl__is_number(b, &y)) {
        long double left = exact(a); /* not by !(b < a): NaN is neither */
        long double right = exact(b);

        return op == C_LT ? left < right : op == C_LE ? left <= right
               : op == C_GT ? left > right : left >= right;
    }
    switch (op) {
    case C_EQ: return tpl__equal(job, a, b);
    case C_NE: return !tpl__equal(job, a, b);
    case C_LT: return tpl__less(job, a, b, "<");
    case C_GT: return tpl__less(job, b, a, ">");
    case C_LE: return !tpl__less(job, b, a, "<=");
    case C_GE: return !tpl__less(job, a, b, ">=");
    case C_IN: return tpl__contains(job, a, b);
    case C_NOT_IN: break;
    }
    return !tpl__contains(job, a, b);
}

/* --- arithmetic ------------------------------------------------------------------------------- */

static _Noreturn void fail_operands(struct job *job, const char *sign, struct value a,
                                    struct value b)
{
    check_defined(job, a, b);
    tpl__fail(job, "unsupported operand type(s) for %s: '%s' and '%s'", sign, tpl__type_name(a),
              tpl__type_name(b));
}

static _Noreturn void fail_overflow(struct job *job)
{
    tpl__fail(job, "an integer needs more than 64 bits");
}

static struct value power_int(struct job *job, int64_t base, int64_t exponent)
{
    int64_t result = 1;

    for (int64_t i = 0; i < exponent; i++) {
        tpl__charge(job, 1);
        if ((base == 0 || base == 1 || base == -1) && i >= 2)
            return tpl__int(base == -1 ? (exponent % 2 == 0 ? 1 : -1) : base);
        if (__builtin_mul_overflow(result, base, &result))
            fail_overflow(job);
    }
    return tpl__int(result);
}

static struct value divide_int(struct job *job, enum node_kind op, int64_t a, int64_t b)
{
    int64_t quotient;
    int64_t rest;

    if (b == 0)
        tpl__fail(job, "division by zero");
    if (op == N_DIV)
        return tpl__float((double)((long double)a / (long double)b));
    if (b == -1 && a == INT64_MIN && op != N_MOD)
        fail_overflow(job);
    if (b == -1)
        return tpl__int(op == N_MOD ? 0 : -a);
    quotient = a / b;
    rest = a % b;
    if (rest != 0 && (rest < 0) != (b < 0)) {
        quotient--;
        rest += b;
    }
    return tpl__int(op == N_MOD ? rest : quotient);
}

static struct value arithmetic_int(struct job *job, enum node_kind op, int64_t a, int64_t b)
{
    int64_t result = 0;
    bool overflow = false;

    switch (op) {
    case N_ADD: overflow = __builtin_add_overflow(a, b, &result); break;
    case N_SUB: overflow = __builtin_sub_overflow(a, b, &result); break;
    case N_MUL: overflow = __builtin_mul_overflow(a, b, &result); break;
    case N_POW:
        if (b >= 0)
            return power_int(job, a, b);
        if (a == 0)
            tpl__fail(job, "0.0 cannot be raised to a negative power");
        return tpl__float(pow((double)a, (double)b));
    default: return divide_int(job, op, a, b);
    }
    if (overflow)
        fail_overflow(job);
    return tpl__int(result);
}

/* float_divmod of CPython: the remainder has the divisor's sign. */
static struct value divide_float(struct job *job, enum node_kind op, double a, double b)
{
    double rest;
    double quotient;

    if (b == 0.0)
        tpl__fail(job, op == N_MOD ? "float modulo" : "float division by zero");
    if (op == N_DIV)
        return tpl__float(a / b);
    rest = fmod(a, b);
    quotient = (a - rest) / b;
    if (rest != 0.0 && (b < 0) != (rest < 0)) {
        rest += b;
        quotient -= 1.0;
    } else if (rest == 0.0) {
        rest = copysign(0.0, b);
    }
    if (op == N_MOD)
        return tpl__float(rest);
    if (quotient == 0.0)
        return tpl__float(copysign(0.0, a / b));
    return tpl__float(quotient - floor(quotient) > 0.5 ? floor(quotient) + 1.0 : floor(quotient));
}

static struct value arithmetic_float(struct job *job, enum node_kind op, double a, double b)
{
    switch (op) {
    case N_ADD: return tpl__float(a + b);
    case N_SUB: return tpl__float(a - b);
    case N_MUL: return tpl__float(a * b);
    case N_POW:
        if (a == 0.0 && b < 0.0)
            tpl__fail(job, "0.0 cannot be raised to a negative power");
        if (a < 0.0 && isfinite(a) && isfinite(b) && b != floor(b))
            tpl__fail(job, "a complex number is no value for a template");
        if (isfinite(a) && isfinite(b) && isinf(pow(a, b)))
            tpl__fail(job, "Numerical result out of range");
        return tpl__float(pow(a, b));
    default: return divide_float(job, op, a, b);
    }
}

/* --- text and lists --------------------------------------------------------------------------- */

static struct value add_text(struct job *job, struct str *a, struct str *b)
{
    bool markup = a->markup || b->markup;
    struct builder out;
    struct str *sum;

    tpl__builder_init(&out, job);
    tpl__put_str(&out, markup ? tpl__escape(job, a) : a);
    tpl__put_str(&out, markup ? tpl__escape(job, b) : b);
    sum = tpl__built(&out);
    sum->markup = markup;
    return tpl__of_str(sum);
}

static struct value add_lists(struct job *job, struct value a, struct value b)
{
    struct value sum = tpl__seq(job, a.kind, a.seq->count + b.seq->count);

    tpl__charge(job, (a.seq->count + b.seq->count) / 4);
    for (size_t i = 0; i < a.seq->count; i++)
        tpl__push(job, sum.seq, a.seq->items[i]);
    for (size_t i = 0; i < b.seq->count; i++)
        tpl__push(job, sum.seq, b.seq->items[i]);
    return sum;
}

static struct value repeat(struct job *job, struct value what, int64_t times)
{
    struct builder out;
    struct value list;

    times = times < 0 ? 0 : times;
    if (what.kind == V_STR) {
        struct str *repeated;

        tpl__builder_init(&out, job);
        for (int64_t i = 0; i < times && what.str->size > 0; i++) {
            tpl__charge(job, 1);
            tpl__put_str(&out, what.str);
        }
        repeated = tpl__built(&out);
        repeated->markup = what.str->markup;
        return tpl__of_str(repeated);
    }
    list = tpl__seq(job, what.kind, 0);
    for (int64_t i = 0; i < times && what.seq->count > 0; i++) {
        for (size_t k = 0; k < what.seq->count; k++) {
            tpl__charge(job, 1);
            tpl__push(job, list.seq, what.seq->items[k]);
        }
    }
    return list;
}

static bool repeats(struct value value)
{
    return value.kind == V_STR || value.kind == V_LIST || value.kind == V_TUPLE;
}

static const char *sign_of(enum node_kind op)
{
    switch (op) {
    case N_ADD: return "+";
    case N_SUB: return "-";
    case N_MUL: return "*";
    case N_DIV: return "/";
    case N_FLOORDIV: return "//";
    case N_MOD: return "%";
    default: return "** or pow()";
    }
}

struct value tpl__binary(struct job *job, enum node_kind op, struct value a, struct value b)
{
    int64_t x = 0;
    int64_t y = 0;
    double left = 0;
    double right = 0;

    if (tpl__is_int(a, &x) && tpl__is_int(b, &y))
        return arithmetic_int(job, op, x, y);
    if (tpl__is_number(a, &left) && tpl__is_number(b, &right))
        return arithmetic_float(job, op, left, right);
    if (op == N_ADD && a.kind == V_STR && b.kind == V_STR)
        return add_text(job, a.str, b.str);
    if (op == N_ADD && a.kind == b.kind && (a.kind == V_LIST || a.kind == V_TUPLE))
        return add_lists(job, a, b);
    if (op == N_MUL && repeats(a) && tpl__is_int(b, &y))
        return repeat(job, a, y);
    if (op == N_MUL && repeats(b) && tpl__is_int(a, &x))
        return repeat(job, b, x);
    if (op == N_MOD && a.kind == V_STR) {
        struct str *text = tpl__percent(job, a.str, b);

        text->markup = a.str->markup;
        return tpl__of_str(text);
    }
    fail_operands(job, sign_of(op), a, b);
}

struct value tpl__negate(struct job *job, struct value value, bool minus)
{
    int64_t integer = 0;

    if (tpl__is_int(value, &integer)) {
        if (minus && integer == INT64_MIN)
            fail_overflow(job);
        return tpl__int(minus ? -integer : integer);
    }
    if (value.kind == V_FLOAT)
        return tpl__float(minus ? -value.real : value.real);
    if (value.kind == V_UNDEFINED)
        tpl__fail_undefined(job, value);
    tpl__fail(job, "bad operand type for unary %c: '%s'", minus ? '-' : '+',
              tpl__type_name(value));
}
