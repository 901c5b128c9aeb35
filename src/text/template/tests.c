/* text/template/tests.c - what may stand behind "is". */
#include <string.h>

#include "text/template/internal.h"

typedef bool (*test_call)(struct run *run, struct value value, struct value *args);

static bool test_defined(struct run *run, struct value value, struct value *args)
{
    (void)run;
    (void)args;
    return value.kind != V_UNDEFINED;
}

static bool test_undefined(struct run *run, struct value value, struct value *args)
{
    (void)run;
    (void)args;
    return value.kind == V_UNDEFINED;
}

static bool test_none(struct run *run, struct value value, struct value *args)
{
    (void)run;
    (void)args;
    return value.kind == V_NONE;
}

static bool test_boolean(struct run *run, struct value value, struct value *args)
{
    (void)run;
    (void)args;
    return value.kind == V_BOOL;
}

static bool test_true(struct run *run, struct value value, struct value *args)
{
    (void)run;
    (void)args;
    return value.kind == V_BOOL && value.truth;
}

static bool test_false(struct run *run, struct value value, struct value *args)
{
    (void)run;
    (void)args;
    return value.kind == V_BOOL && !value.truth;
}

static bool test_integer(struct run *run, struct value value, struct value *args)
{
    (void)run;
    (void)args;
    return value.kind == V_INT;
}

static bool test_float(struct run *run, struct value value, struct value *args)
{
    (void)run;
    (void)args;
    return value.kind == V_FLOAT;
}

static bool test_number(struct run *run, struct value value, struct value *args)
{
    double number;

    (void)run;
    (void)args;
    return tpl__is_number(value, &number);
}

static bool test_string(struct run *run, struct value value, struct value *args)
{
    (void)run;
    (void)args;
    return value.kind == V_STR;
}

static bool test_mapping(struct run *run, struct value value, struct value *args)
{
    (void)run;
    (void)args;
    return value.kind == V_DICT;
}

/* len() and [] are there, as they are of an undefined value. */
static bool test_sequence(struct run *run, struct value value, struct value *args)
{
    (void)run;
    (void)args;
    return value.kind == V_STR || value.kind == V_LIST || value.kind == V_TUPLE ||
           value.kind == V_RANGE || value.kind == V_DICT || value.kind == V_UNDEFINED;
}

static bool test_iterable(struct run *run, struct value value, struct value *args)
{
    (void)run;
    (void)args;
    return tpl__is_iterable(value);
}

static bool test_callable(struct run *run, struct value value, struct value *args)
{
    (void)run;
    (void)args;
    return value.kind == V_FUNCTION || value.kind == V_MACRO || value.kind == V_UNDEFINED ||
           value.kind == V_JOINER || value.kind == V_LOOP;
}

static bool test_sameas(struct run *run, struct value value, struct value *args)
{
    (void)run;
    if (value.kind != args[0].kind)
        return false;
    switch (value.kind) {
    case V_NONE: return true;
    case V_BOOL: return value.truth == args[0].truth;
    case V_INT: return value.integer == args[0].integer && value.integer >= -5 &&
                       value.integer <= 256; /* CPython keeps one of each of these */
    case V_FLOAT: return false;
    default: return value.seq == args[0].seq;
    }
}

static bool test_even(struct run *run, struct value value, struct value *args)
{
    struct value rest = tpl__binary(&run->job, N_MOD, value, tpl__int(2));

    (void)args;
    return tpl__equal(&run->job, rest, tpl__int(0));
}

static bool test_odd(struct run *run, struct value value, struct value *args)
{
    struct value rest = tpl__binary(&run->job, N_MOD, value, tpl__int(2));

    (void)args;
    return tpl__equal(&run->job, rest, tpl__int(1));
}

static bool test_divisibleby(struct run *run, struct value value, struct value *args)
{
    return tpl__equal(&run->job, tpl__binary(&run->job, N_MOD, value, args[0]), tpl__int(0));
}

static bool has_case(struct run *run, struct value value, bool upper)
{
    struct str *str = tpl__to_str(&run->job, value);
    bool found = false;

    tpl__charge_bytes(&run->job, str->size * 8);
    for (size_t at = 0; at < str->size;) {
        uint32_t c;

        at += tpl__character(str, at, &c);
        if (upper ? tpl__is_upper(c) : tpl__is_lower(c))
            found = true;
        else if (tpl__is_cased(c))
            return false;
    }
    return found;
}

static bool test_upper(struct run *run, struct value value, struct value *args)
{
    (void)args;
    return has_case(run, value, true);
}

static bool test_lower(struct run *run, struct value value, struct value *args)
{
    (void)args;
    return has_case(run, value, false);
}

static bool test_escaped(struct run *run, struct value value, struct value *args)
{
    (void)run;
    (void)args;
    return value.kind == V_STR && value.str->markup;
}

#define COMPARE_TEST(name, op)                                                                     \
    static bool test_##name(struct run *run, struct value value, struct value *args)               \
    {                                                                                              \
        return tpl__compare(&run->job, op, value, args[0]);                                        \
    }
COMPARE_TEST(eq, C_EQ)
COMPARE_TEST(ne, C_NE)
COMPARE_TEST(lt, C_LT)
COMPARE_TEST(le, C_LE)
COMPARE_TEST(gt, C_GT)
COMPARE_TEST(ge, C_GE)
COMPARE_TEST(in, C_IN)

static bool test_filter(struct run *run, struct value value, struct value *args);
static bool test_test(struct run *run, struct value value, struct value *args);

static const struct {
    const char *name;
    const char *spec;
    test_call call;
} rows[] = {
    { "defined", "", test_defined }, { "undefined", "", test_undefined },
    { "none", "", test_none }, { "boolean", "", test_boolean }, { "true", "", test_true },
    { "false", "", test_false }, { "integer", "", test_integer }, { "float", "", test_float },
    { "number", "", test_number }, { "string", "", test_string }, { "mapping", "", test_mapping },
    { "sequence", "", test_sequence }, { "iterable", "", test_iterable },
    { "callable", "", test_callable }, { "sameas", "other", test_sameas },
    { "even", "", test_even }, { "odd", "", test_odd }, { "divisibleby", "num", test_divisibleby },
    { "upper", "", test_upper }, { "lower", "", test_lower }, { "escaped", "", test_escaped },
    { "eq", "b", test_eq }, { "equalto", "b", test_eq }, { "==", "b", test_eq },
    { "ne", "b", test_ne }, { "!=", "b", test_ne }, { "lt", "b", test_lt }, { "<", "b", test_lt },
    { "lessthan", "b", test_lt }, { "le", "b", test_le }, { "<=", "b", test_le },
    { "gt", "b", test_gt }, { ">", "b", test_gt }, { "greaterthan", "b", test_gt },
    { "ge", "b", test_ge }, { ">=", "b", test_ge }, { "in", "seq", test_in },
    { "filter", "", test_filter }, { "test", "", test_test },
};

static bool test_test(struct run *run, struct value value, struct value *args)
{
    const struct str *name = tpl__arg_str(run, value, "a test's name");

    (void)args;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        if (tpl__str_is(name, rows[i].name))
            return true;
    }
    return false;
}

static bool test_filter(struct run *run, struct value value, struct value *args)
{
    const struct str *name = tpl__arg_str(run, value, "a filter's name");

    (void)args;
    for (size_t i = 0; i < tpl__list_filter_count; i++) {
        if (tpl__str_is(name, tpl__list_filters[i].name))
            return true;
    }
    for (size_t i = 0; i < tpl__text_filter_count; i++) {
        if (tpl__str_is(name, tpl__text_filters[i].name))
            return true;
    }
    return false;
}

bool tpl__test(struct run *run, const struct str *name, struct value value,
               const struct args *args)
{
    struct value bound[ARGS_MAX];

    tpl__charge(&run->job, 1);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        if (tpl__str_is(name, rows[i].name)) {
            tpl__bind(run, rows[i].name, rows[i].spec, args, bound);
            return rows[i].call(run, value, bound);
        }
    }
    tpl__fail(&run->job, "No test named '%.*s'.", (int)(name->size > 60 ? 60 : name->size),
              name->bytes);
}
