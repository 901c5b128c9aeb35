/* text/template/run.c - statements: blocks, loops, macros; and what a rendering begins and ends
 * with. */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "text/template/internal.h"

enum jump { JUMP_NONE, JUMP_BREAK, JUMP_CONTINUE };

static enum jump run_body(struct run *run, const struct node *first);

struct builder *tpl__capture_begin(struct run *run, struct builder *builder)
{
    struct builder *before = run->out;

    tpl__builder_init(builder, &run->job);
    builder->size_limit = TEMPLATE_OUTPUT_BYTES_MAX;
    run->out = builder;
    return before;
}

void tpl__capture_end(struct run *run, struct builder *before)
{
    run->out = before;
}

/* --- assigning -------------------------------------------------------------------------------- */

static void assign(struct run *run, struct scope *scope, const struct node *target,
                   struct value value)
{
    if (target->kind == N_NAME) {
        tpl__bind_name(run, scope, target->name, value);
    } else if (target->kind == N_NSREF) {
        struct node name = { .kind = N_NAME, .line = target->line, .name = target->name };
        struct value object = tpl__eval(run, &name);

        if (object.kind != V_NAMESPACE)
            tpl__fail(&run->job, "cannot assign attribute on non-namespace object");
        if (target->a->name->size > 0 && target->a->name->bytes[0] == '_')
            tpl__fail(&run->job, "Chat templates cannot store underscore-prefixed attributes on "
                      "a namespace");
        tpl__dict_set(&run->job, object.dict, tpl__of_str(target->a->name), value);
    } else {
        const struct seq *items = tpl__iterate(&run->job, value);
        size_t count = 0;

        for (const struct node *item = target->list; item != NULL; item = item->next)
            count++;
        if (items->count != count)
            tpl__fail(&run->job, "%s values to unpack (expected %zu, got %zu)",
                      items->count > count ? "too many" : "not enough", count, items->count);
        count = 0;
        for (const struct node *item = target->list; item != NULL; item = item->next)
            assign(run, scope, item, items->items[count++]);
    }
}

/* --- loops ------------------------------------------------------------------------------------ */

/* The items for which the loop's condition holds. */
static struct seq *filtered(struct run *run, const struct node *node, const struct seq *items)
{
    struct value kept = tpl__seq(&run->job, V_LIST, 0);
    struct scope *outer = run->scope;

    for (size_t i = 0; i < items->count; i++) {
        run->scope = tpl__scope(run, outer);
        assign(run, run->scope, node->a, items->items[i]);
        if (tpl__is_true(&run->job, tpl__eval(run, node->c)))
            tpl__push(&run->job, kept.seq, items->items[i]);
    }
    run->scope = outer;
    return kept.seq;
}

static void run_loop(struct run *run, const struct node *node, struct scope *outer,
                     struct value iterable, unsigned depth0)
{
    static const struct str loop_name = { .bytes = "loop", .size = 4 };
    const struct str *name = tpl__interned(&run->template->names, loop_name.bytes, 4);
    struct value value = { .kind = V_LOOP };
    struct scope *before = run->scope;
    struct seq *items = tpl__iterate(&run->job, iterable);

    run->scope = outer;
    if (node->c != NULL)
        items = filtered(run, node, items);
    value.loop = tpl__alloc(&run->job, sizeof(*value.loop));
    value.loop->items = items;
    value.loop->depth0 = depth0;
    value.loop->changed.kind = V_MISSING;
    value.loop->node = node->op ? node : NULL;
    value.loop->scope = outer;
    for (size_t i = 0; i < items->count; i++) {
        tpl__charge(&run->job, 1);
        value.loop->index = i;
        run->scope = tpl__scope(run, outer);
        assign(run, run->scope, node->a, items->items[i]);
        if (name != NULL)
            tpl__bind_name(run, run->scope, name, value);
        if (run_body(run, node->body) == JUMP_BREAK)
            break;
    }
    if (items->count == 0 && node->orelse != NULL) {
        run->scope = tpl__scope(run, outer);
        run_body(run, node->orelse);
    }
    run->scope = before;
}

struct value tpl__loop_again(struct run *run, const struct loop *loop, struct value items)
{
    struct builder text;
    struct builder *before;

    if (loop->node == NULL)
        tpl__fail(&run->job, "The loop must have the 'recursive' marker to be called recursively.");
    before = tpl__capture_begin(run, &text);
    run_loop(run, loop->node, loop->scope, items, loop->depth0 + 1);
    tpl__capture_end(run, before);
    return tpl__of_str(tpl__built(&text));
}

/* --- macros ----------------------------------------------------------------------------------- */

static const struct value *named(const struct args *args, const struct str *name)
{
    for (size_t i = 0; i < args->named.count; i++) {
        if (tpl__str_equal(args->named.entries[i].key.str, name))
            return &args->named.entries[i].value;
    }
    return NULL;
}

static bool is_parameter(const struct node *macro, const struct str *name)
{
    for (const struct node *parameter = macro->list; parameter != NULL; parameter = parameter->next)
        if (tpl__str_equal(parameter->name, name))
            return true;
    return false;
}

static void bind_special(struct run *run, const char *name, struct value value)
{
    const struct str *interned = tpl__interned(&run->template->names, name, strlen(name));

    if (interned != NULL)
        tpl__bind_name(run, run->scope, interned, value);
}

/* caller, kwargs and varargs, where the body uses them; what nobody wants fails. */
static void bind_rest(struct run *run, const struct node *node, const struct args *args,
                      size_t parameter_count)
{
    struct value rest = tpl__seq(&run->job, V_TUPLE, 0);
    struct value rest_named = tpl__dict(&run->job);
    struct value caller = tpl__undefined(&run->job, tpl__str_c(&run->job, "caller"), NULL);
    const char *name = node->name->bytes;

    for (size_t i = parameter_count; i < args->count; i++)
        tpl__push(&run->job, rest.seq, args->items[i]);
    for (size_t i = 0; i < args->named.count; i++) {
        const struct entry *entry = &args->named.entries[i];

        if (is_parameter(node, entry->key.str))
            continue;
        if ((node->op & MACRO_USES_CALLER) && tpl__str_is(entry->key.str, "caller"))
            caller = entry->value;
        else if (node->op & MACRO_USES_KWARGS)
            tpl__dict_set(&run->job, rest_named.dict, entry->key, entry->value);
        else
            tpl__fail(&run->job, "macro '%s' takes no keyword argument '%.*s'", name,
                      (int)(entry->key.str->size > 60 ? 60 : entry->key.str->size),
                      entry->key.str->bytes);
    }
    if (rest.seq->count > 0 && !(node->op & MACRO_USES_VARARGS))
        tpl__fail(&run->job, "macro '%s' takes not more than %zu argument(s)", name,
                  parameter_count);
    if ((node->op & MACRO_USES_CALLER) && !is_parameter(node, tpl__str_c(&run->job, "caller")))
        bind_special(run, "caller", caller);
    if (node->op & MACRO_USES_KWARGS)
        bind_special(run, "kwargs", rest_named);
    if (node->op & MACRO_USES_VARARGS)
        bind_special(run, "varargs", rest);
}

static struct value call_macro(struct run *run, const struct macro *macro, const struct args *args)
{
    const struct node *node = macro->node;
    struct scope *outer = run->scope;
    struct builder text;
    struct builder *before;
    size_t count = 0;

    tpl__enter(&run->job);
    run->scope = tpl__scope(run, macro->scope);
    for (const struct node *parameter = node->list; parameter != NULL;
         parameter = parameter->next, count++) {
        const struct value *value = named(args, parameter->name);

        if (count < args->count && value != NULL)
            tpl__fail(&run->job, "macro '%s' got multiple values for an argument",
                      node->name->bytes);
        tpl__bind_name(run, run->scope, parameter->name,
                       count < args->count ? args->items[count]
                       : value != NULL ? *value
                                       : tpl__undefined(&run->job, parameter->name, NULL));
    }
    count = 0;
    for (const struct node *parameter = node->list; parameter != NULL;
         parameter = parameter->next, count++) {
        if (count >= args->count && named(args, parameter->name) == NULL && parameter->a != NULL)
            tpl__bind_name(run, run->scope, parameter->name, tpl__eval(run, parameter->a));
    }
    bind_rest(run, node, args, count);
    before = tpl__capture_begin(run, &text);
    run_body(run, node->body);
    tpl__capture_end(run, before);
    run->scope = outer;
    tpl__leave(&run->job);
    return tpl__of_str(tpl__built(&text));
}

static struct value call_joiner(struct run *run, struct cycler *joiner)
{
    bool first = joiner->next == 0;

    joiner->next = 1;
    return first ? tpl__of_text(&run->job, "") : tpl__of_str(joiner->text);
}

struct value tpl__call(struct run *run, struct value function, const struct args *args)
{
    struct value bound[ARGS_MAX];
    struct value result;

    switch (function.kind) {
    case V_FUNCTION:
        if (function.function->call != NULL)
            return function.function->call(run, function.function->self, args);
        tpl__bind(run, function.function->name, function.function->spec, args, bound);
        return function.function->bound(run, function.function->self, bound);
    case V_MACRO:
        return call_macro(run, function.macro, args);
    case V_LOOP:
        if (args->count != 1)
            tpl__fail(&run->job, "loop() takes one argument");
        tpl__enter(&run->job);
        result = tpl__loop_again(run, function.loop, args->items[0]);
        tpl__leave(&run->job);
        return result;
    case V_JOINER:
        return call_joiner(run, function.cycler);
    case V_UNDEFINED:
        tpl__fail_undefined(&run->job, function);
    default:
        tpl__fail(&run->job, "'%s' object is not callable", tpl__type_name(function));
    }
}

/* --- statements ------------------------------------------------------------------------------- */

/* A body's text, in a scope of its own. */
static struct value captured(struct run *run, const struct node *body)
{
    struct builder text;
    struct builder *before = tpl__capture_begin(run, &text);
    struct scope *outer = run->scope;

    run->scope = tpl__scope(run, outer);
    run_body(run, body);
    run->scope = outer;
    tpl__capture_end(run, before);
    return tpl__of_str(tpl__built(&text));
}

/* |a|b of {% filter %} and {% set %}: the innermost filter has no operand. */
static struct value filter_chain(struct run *run, const struct node *filter, struct value value)
{
    struct args args;

    if (filter == NULL)
        return value;
    tpl__enter(&run->job);
    value = filter_chain(run, filter->a, value);
    tpl__leave(&run->job);
    tpl__eval_args(run, filter, &args);
    return tpl__filter(run, filter->name, value, &args);
}

static struct value macro_of(struct run *run, const struct node *node)
{
    struct value value = { .kind = V_MACRO };

    value.macro = tpl__alloc(&run->job, sizeof(*value.macro));
    value.macro->node = node;
    value.macro->scope = run->scope;
    return value;
}

static void run_call_block(struct run *run, const struct node *node)
{
    struct value function = tpl__eval(run, node->a->a);
    struct args args;
    struct value name = tpl__of_str(node->name);

    tpl__eval_args(run, node->a, &args);
    if (tpl__dict_find(&run->job, &args.named, name) != NULL)
        tpl__fail(&run->job, "got multiple values for keyword argument 'caller'");
    tpl__dict_set(&run->job, &args.named, name, macro_of(run, node));
    tpl__put_value(run->out, tpl__call(run, function, &args));
}

static enum jump run_with(struct run *run, const struct node *node)
{
    struct scope *outer = run->scope;
    struct scope *inner = tpl__scope(run, outer);
    enum jump jump;

    for (const struct node *pair = node->list; pair != NULL; pair = pair->next)
        assign(run, inner, pair->a, tpl__eval(run, pair->b));
    run->scope = inner;
    jump = run_body(run, node->body);
    run->scope = outer;
    return jump;
}

static enum jump run_if(struct run *run, const struct node *node)
{
    for (; node != NULL; node = node->b) {
        if (tpl__is_true(&run->job, tpl__eval(run, node->a)))
            return run_body(run, node->body);
        if (node->b == NULL)
            return run_body(run, node->orelse);
    }
    return JUMP_NONE;
}

static enum jump run_node(struct run *run, const struct node *node)
{
    switch (node->kind) {
    case N_TEXT:
        tpl__put_str(run->out, node->constant.str);
        return JUMP_NONE;
    case N_PRINT:
        for (const struct node *item = node->list; item != NULL; item = item->next)
            tpl__put_value(run->out, tpl__eval(run, item));
        return JUMP_NONE;
    case N_FOR:
        run_loop(run, node, run->scope, tpl__eval(run, node->b), 0);
        return JUMP_NONE;
    case N_IF: return run_if(run, node);
    case N_SET:
        assign(run, run->scope, node->a, tpl__eval(run, node->b));
        return JUMP_NONE;
    case N_SET_BLOCK:
        assign(run, run->scope, node->a, filter_chain(run, node->b, captured(run, node->body)));
        return JUMP_NONE;
    case N_MACRO:
        tpl__bind_name(run, run->scope, node->name, macro_of(run, node));
        return JUMP_NONE;
    case N_CALL_BLOCK:
        run_call_block(run, node);
        return JUMP_NONE;
    case N_FILTER_BLOCK:
        tpl__put_value(run->out, filter_chain(run, node->b, captured(run, node->body)));
        return JUMP_NONE;
    case N_WITH: return run_with(run, node);
    case N_SCOPE:
        tpl__put_value(run->out, captured(run, node->body));
        return JUMP_NONE;
    case N_BREAK: return JUMP_BREAK;
    default: return JUMP_CONTINUE;
    }
}

static enum jump run_body(struct run *run, const struct node *first)
{
    enum jump jump = JUMP_NONE;

    tpl__enter(&run->job);
    for (const struct node *node = first; node != NULL && jump == JUMP_NONE; node = node->next) {
        tpl__charge(&run->job, 1);
        run->job.line = node->line;
        jump = run_node(run, node);
    }
    tpl__leave(&run->job);
    return jump;
}

void tpl__run(struct run *run)
{
    run->scope = run->root;
    run_body(run, run->template->body);
}
