/* text/template/expr.c - expressions, names, attributes, items. */
#include <inttypes.h>
#include <string.h>

#include "text/template/internal.h"

/* --- names ------------------------------------------------------------------------------------ */

struct scope *tpl__scope(struct run *run, struct scope *parent)
{
    struct scope *scope = tpl__alloc(&run->job, sizeof(*scope));

    scope->parent = parent;
    return scope;
}

void tpl__bind_name(struct run *run, struct scope *scope, const struct str *name,
                    struct value value)
{
    for (size_t i = 0; i < scope->count; i++) {
        if (scope->bindings[i].name == name) {
            scope->bindings[i].value = value;
            return;
        }
    }
    scope->bindings = tpl__grow(&run->job, scope->bindings, scope->count, &scope->capacity,
                                sizeof(*scope->bindings));
    scope->bindings[scope->count].name = name;
    scope->bindings[scope->count++].value = value;
}

static struct value lookup(struct run *run, const struct str *name)
{
    struct value found;

    for (const struct scope *scope = run->scope; scope != NULL; scope = scope->parent) {
        tpl__charge(&run->job, scope->count / 32);
        for (size_t i = 0; i < scope->count; i++) {
            if (scope->bindings[i].name == name)
                return scope->bindings[i].value;
        }
    }
    found = tpl__global(run, name);
    return found.kind != V_MISSING ? found : tpl__undefined(&run->job, name, NULL);
}

/* --- attributes and items --------------------------------------------------------------------- */

static bool changes_its_object(struct value object, const struct str *name)
{
    static const char *const of_dicts[] = { "clear", "pop", "popitem", "setdefault", "update" };

    for (size_t i = 0; object.kind == V_DICT && i < sizeof(of_dicts) / sizeof(of_dicts[0]); i++) {
        if (tpl__str_is(name, of_dicts[i]))
            return true;
    }
    return false;
}

static struct value macro_attr(struct run *run, struct value object, const struct str *name)
{
    const struct node *node = object.macro->node;
    struct value names;

    if (tpl__str_is(name, "name"))
        return tpl__of_str(node->name);
    if (tpl__str_is(name, "catch_kwargs"))
        return tpl__bool(node->op & MACRO_USES_KWARGS);
    if (tpl__str_is(name, "catch_varargs"))
        return tpl__bool(node->op & MACRO_USES_VARARGS);
    if (tpl__str_is(name, "caller"))
        return tpl__bool(node->op & MACRO_USES_CALLER);
    if (!tpl__str_is(name, "arguments"))
        return tpl__undefined(&run->job, name, "Macro");
    names = tpl__seq(&run->job, V_TUPLE, 0);
    for (const struct node *parameter = node->list; parameter != NULL; parameter = parameter->next)
        tpl__push(&run->job, names.seq, tpl__of_str(parameter->name));
    return names;
}

/* What getattr() finds; V_MISSING: nothing. */
static struct value own_attr(struct run *run, struct value object, const struct str *name)
{
    struct value missing = { .kind = V_MISSING };
    const struct value *found;

    switch (object.kind) {
    case V_STR:
        return tpl__str_method(run, object, name);
    case V_DICT:
        return tpl__dict_method(run, object, name);
    case V_LIST:
    case V_TUPLE:
    case V_RANGE:
        if (object.seq->label != NULL && tpl__str_is(name, "grouper"))
            return object.seq->items[0];
        if (object.seq->label != NULL && tpl__str_is(name, "list"))
            return object.seq->items[1];
        return tpl__seq_method(run, object, name);
    case V_NAMESPACE:
        found = tpl__dict_find_str(&run->job, object.dict, name);
        return found != NULL ? *found : missing;
    case V_LOOP:
        return tpl__loop_attr(run, object, name);
    case V_CYCLER:
        return tpl__cycler_attr(run, object, name);
    case V_MACRO:
        return macro_attr(run, object, name);
    default:
        return missing;
    }
}

struct value tpl__attr(struct run *run, struct value object, const struct str *name)
{
    struct value found;
    const struct value *entry;

    if (object.kind == V_UNDEFINED)
        tpl__fail_undefined(&run->job, object);
    if (changes_its_object(object, name))
        return tpl__undefined(&run->job, name, tpl__type_name(object));
    found = own_attr(run, object, name);
    if (found.kind != V_MISSING)
        return found;
    entry = object.kind == V_DICT ? tpl__dict_find_str(&run->job, object.dict, name) : NULL;
    return entry != NULL ? *entry : tpl__undefined(&run->job, name, tpl__type_name(object));
}

/* A bound of a slice; false: nothing that could be one. */
static bool slice_bound(struct value value, int64_t missing, int64_t *out)
{
    if (value.kind == V_NONE) {
        *out = missing;
        return true;
    }
    return tpl__is_int(value, out);
}

static int64_t clamp(int64_t index, int64_t count, int64_t low, int64_t high)
{
    if (index < 0)
        index += count;
    return index < low ? low : index > high ? high : index;
}

static void put_sliced_text(struct run *run, struct builder *out, const struct str *str,
                            int64_t from, int64_t to, int64_t step)
{
    if (step == 1) {
        if (from < to)
            tpl__put_part(out, str, tpl__str_offset(&run->job, str, (size_t)from),
                          tpl__str_offset(&run->job, str, (size_t)to));
        return;
    }
    for (int64_t i = from; step > 0 ? i < to : i > to; i += step) {
        size_t at = tpl__str_offset(&run->job, str, (size_t)i);
        uint32_t c;

        tpl__charge(&run->job, 1);
        tpl__put_part(out, str, at, at + tpl__character(str, at, &c));
        if (step > INT32_MAX || step < INT32_MIN)
            break; /* past any end */
    }
}

static _Noreturn void fail_bounds(struct run *run)
{
    tpl__fail(&run->job, "slice indices must be integers or None");
}

static struct value sliced(struct run *run, struct value object, const struct slice *slice)
{
    int64_t step = 1;
    int64_t from;
    int64_t to;
    int64_t count;
    size_t length;
    struct value out;
    struct builder text;

    if (object.kind != V_STR && object.kind != V_LIST && object.kind != V_TUPLE &&
        object.kind != V_RANGE)
        tpl__fail(&run->job, "a '%s' object can't be sliced", tpl__type_name(object));
    tpl__length(&run->job, object, &length);
    if (!slice_bound(slice->step, 1, &step))
        fail_bounds(run);
    if (step == 0)
        tpl__fail(&run->job, "slice step cannot be zero");
    count = (int64_t)length;
    if (!slice_bound(slice->start, step > 0 ? 0 : INT64_MAX, &from) ||
        !slice_bound(slice->stop, step > 0 ? INT64_MAX : INT64_MIN, &to))
        fail_bounds(run);
    from = clamp(from, count, step > 0 ? 0 : -1, step > 0 ? count : count - 1);
    to = to == INT64_MIN ? -1 : clamp(to, count, step > 0 ? 0 : -1, step > 0 ? count : count - 1);
    if (object.kind == V_STR) {
        tpl__builder_init(&text, &run->job);
        put_sliced_text(run, &text, object.str, from, to, step);
        out = tpl__of_str(tpl__built(&text));
        out.str->markup = object.str->markup;
        return out;
    }
    out = tpl__seq(&run->job, object.kind == V_RANGE ? V_LIST : object.kind, 0);
    for (int64_t i = from; step > 0 ? i < to : i > to; i += step) {
        tpl__charge(&run->job, 1);
        tpl__push(&run->job, out.seq, object.seq->items[i]);
        if (step > INT32_MAX || step < INT32_MIN)
            break;
    }
    return out;
}

static struct value at_index(struct run *run, struct value object, int64_t index)
{
    struct value undefined = tpl__undefined(&run->job, NULL, NULL);
    size_t length;
    size_t at;
    uint32_t c;

    if (object.kind != V_STR && object.kind != V_LIST && object.kind != V_TUPLE &&
        object.kind != V_RANGE)
        return undefined;
    tpl__length(&run->job, object, &length);
    if (index < 0)
        index += (int64_t)length;
    if (index < 0 || (uint64_t)index >= length)
        return undefined;
    if (object.kind != V_STR)
        return object.seq->items[index];
    at = tpl__str_offset(&run->job, object.str, (size_t)index);
    return tpl__of_str(tpl__sub(&run->job, object.str, at,
                                at + tpl__character(object.str, at, &c)));
}

struct value tpl__item(struct run *run, struct value object, struct value key)
{
    const struct value *entry;
    int64_t index = 0;
    struct value found = { .kind = V_MISSING };

    if (object.kind == V_UNDEFINED)
        tpl__fail_undefined(&run->job, object);
    if (key.kind == V_SLICE)
        return sliced(run, object, key.slice);
    if (object.kind == V_DICT && tpl__hashable(key)) {
        entry = tpl__dict_find(&run->job, object.dict, key);
        if (entry != NULL)
            return *entry;
    } else if (tpl__is_int(key, &index)) {
        return at_index(run, object, index);
    }
    if (key.kind != V_STR)
        return tpl__undefined(&run->job, tpl__str_c(&run->job, "item"), tpl__type_name(object));
    if (!changes_its_object(object, key.str))
        found = own_attr(run, object, key.str);
    return found.kind != V_MISSING ? found
                                   : tpl__undefined(&run->job, key.str, tpl__type_name(object));
}

/* --- arguments -------------------------------------------------------------------------------- */

void tpl__args_push(struct run *run, struct args *args, struct value value)
{
    args->items = tpl__grow(&run->job, args->items, args->count, &args->capacity,
                            sizeof(*args->items));
    args->items[args->count++] = value;
}

static void args_name(struct run *run, struct args *args, struct value name, struct value value)
{
    if (name.kind != V_STR)
        tpl__fail(&run->job, "keywords must be strings");
    if (tpl__dict_find_str(&run->job, &args->named, name.str) != NULL)
        tpl__fail(&run->job, "got multiple values for keyword argument '%.*s'",
                  (int)(name.str->size > 60 ? 60 : name.str->size), name.str->bytes);
    tpl__dict_set(&run->job, &args->named, name, value);
}

void tpl__eval_args(struct run *run, const struct node *node, struct args *out)
{
    memset(out, 0, sizeof(*out));
    for (const struct node *argument = node->list; argument != NULL; argument = argument->next) {
        if (argument->kind == N_KEYWORD)
            args_name(run, out, tpl__of_str(argument->name), tpl__eval(run, argument->a));
        else
            tpl__args_push(run, out, tpl__eval(run, argument));
    }
    if (node->rest != NULL) {
        const struct seq *rest = tpl__iterate(&run->job, tpl__eval(run, node->rest));

        for (size_t i = 0; i < rest->count; i++)
            tpl__args_push(run, out, rest->items[i]);
    }
    if (node->rest_named != NULL) {
        struct value rest = tpl__eval(run, node->rest_named);

        if (rest.kind != V_DICT)
            tpl__fail(&run->job, "argument after ** must be a mapping, not %s",
                      tpl__type_name(rest));
        for (size_t i = 0; i < rest.dict->count; i++)
            args_name(run, out, rest.dict->entries[i].key, rest.dict->entries[i].value);
    }
}

/* --- expressions ------------------------------------------------------------------------------ */

static struct value eval_items(struct run *run, const struct node *node)
{
    struct value list = tpl__seq(&run->job, node->kind == N_LIST ? V_LIST : V_TUPLE, 0);

    for (const struct node *item = node->list; item != NULL; item = item->next)
        tpl__push(&run->job, list.seq, tpl__eval(run, item));
    return list;
}

static struct value eval_dict(struct run *run, const struct node *node)
{
    struct value dict = tpl__dict(&run->job);

    for (const struct node *pair = node->list; pair != NULL; pair = pair->next) {
        struct value key = tpl__eval(run, pair->a);

        tpl__dict_set(&run->job, dict.dict, key, tpl__eval(run, pair->b));
    }
    return dict;
}

static struct value eval_slice(struct run *run, const struct node *node)
{
    struct value value = { .kind = V_SLICE };

    value.slice = tpl__alloc(&run->job, sizeof(*value.slice));
    value.slice->start = node->a != NULL ? tpl__eval(run, node->a) : tpl__none();
    value.slice->stop = node->b != NULL ? tpl__eval(run, node->b) : tpl__none();
    value.slice->step = node->c != NULL ? tpl__eval(run, node->c) : tpl__none();
    return value;
}

static struct value eval_concat(struct run *run, const struct node *node)
{
    struct builder out;

    tpl__builder_init(&out, &run->job);
    for (const struct node *item = node->list; item != NULL; item = item->next)
        tpl__put_value(&out, tpl__eval(run, item));
    return tpl__of_str(tpl__built(&out));
}

static struct value eval_compare(struct run *run, const struct node *node)
{
    struct value left = tpl__eval(run, node->a);

    for (const struct node *operand = node->list; operand != NULL; operand = operand->next) {
        struct value right = tpl__eval(run, operand->a);

        if (!tpl__compare(&run->job, (enum compare_op)operand->op, left, right))
            return tpl__bool(false);
        left = right;
    }
    return tpl__bool(true);
}

static struct value eval_call(struct run *run, const struct node *node)
{
    struct value function = tpl__eval(run, node->a);
    struct args args;

    tpl__eval_args(run, node, &args);
    run->job.line = node->line;
    return tpl__call(run, function, &args);
}

static struct value eval_filter(struct run *run, const struct node *node)
{
    struct value value = tpl__eval(run, node->a);
    struct args args;

    tpl__eval_args(run, node, &args);
    run->job.line = node->line;
    return tpl__filter(run, node->name, value, &args);
}

static struct value eval_test(struct run *run, const struct node *node)
{
    struct value value = tpl__eval(run, node->a);
    struct args args;

    tpl__eval_args(run, node, &args);
    return tpl__bool(tpl__test(run, node->name, value, &args));
}

static struct value eval_cond(struct run *run, const struct node *node)
{
    if (tpl__is_true(&run->job, tpl__eval(run, node->b)))
        return tpl__eval(run, node->a);
    return node->c != NULL ? tpl__eval(run, node->c)
                           : tpl__undefined(&run->job, tpl__str_c(&run->job, "the inline "
                                            "if-expression without an else"), NULL);
}

static struct value eval_and_or(struct run *run, const struct node *node)
{
    struct value left = tpl__eval(run, node->a);

    return tpl__is_true(&run->job, left) == (node->kind == N_AND) ? tpl__eval(run, node->b) : left;
}

static struct value eval_inner(struct run *run, const struct node *node)
{
    struct value left;
    struct value right;

    switch (node->kind) {
    case N_LIST:
    case N_TUPLE: return eval_items(run, node);
    case N_DICT: return eval_dict(run, node);
    case N_ATTR:
        left = tpl__eval(run, node->a);
        run->job.line = node->line;
        return tpl__attr(run, left, node->name);
    case N_ITEM:
        left = tpl__eval(run, node->a);
        right = tpl__eval(run, node->b);
        run->job.line = node->line;
        return tpl__item(run, left, right);
    case N_SLICE: return eval_slice(run, node);
    case N_CALL: return eval_call(run, node);
    case N_FILTER: return eval_filter(run, node);
    case N_TEST: return eval_test(run, node);
    case N_COND: return eval_cond(run, node);
    case N_AND:
    case N_OR: return eval_and_or(run, node);
    case N_NOT: return tpl__bool(!tpl__is_true(&run->job, tpl__eval(run, node->a)));
    case N_NEG:
    case N_POS: return tpl__negate(&run->job, tpl__eval(run, node->a), node->kind == N_NEG);
    case N_CONCAT: return eval_concat(run, node);
    case N_COMPARE: return eval_compare(run, node);
    default:
        left = tpl__eval(run, node->a);
        right = tpl__eval(run, node->b);
        run->job.line = node->line;
        return tpl__binary(&run->job, node->kind, left, right);
    }
}

struct value tpl__eval(struct run *run, const struct node *node)
{
    struct value value;

    tpl__charge(&run->job, 1);
    run->job.line = node->line;
    if (node->kind == N_CONST)
        return node->constant;
    if (node->kind == N_NAME)
        return lookup(run, node->name);
    tpl__enter(&run->job);
    value = eval_inner(run, node);
    tpl__leave(&run->job);
    return value;
}
