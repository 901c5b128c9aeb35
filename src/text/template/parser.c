/* text/template/parser.c - tokens become nodes.
 *
 * By recursive descent, each rule a function, from the loosest to the tightest:
 *
 *     x if c else y | or | and | not | == != < <= > >= in, not in | + - | ~ | * / // % | ** |
 *     unary - +, then .name [item] (call), then |filter and "is test"
 */
#include <string.h>

#include "text/template/internal.h"

#define MACROS_DEEP_MAX 32

struct parser {
    struct job *job;
    struct template *template;
    const struct token *token; /* the current one */
    struct node *macros[MACROS_DEEP_MAX]; /* those that are open, to note what bodies use */
    size_t macro_count;
};

static struct node *parse_expression(struct parser *parser);
static struct node *parse_or(struct parser *parser);
static struct node *parse_unary(struct parser *parser, bool with_filter);
static struct node *parse_statements(struct parser *parser, const char *const *ends,
                                     const char **end_out);

static struct node *node_new(struct parser *parser, enum node_kind kind)
{
    struct node *node = tpl__alloc(parser->job, sizeof(*node));

    node->kind = kind;
    node->line = parser->token->line;
    return node;
}

static void next(struct parser *parser)
{
    if (parser->token->kind != T_EOF)
        parser->token++;
    parser->job->line = parser->token->line;
}

static bool at_name(const struct parser *parser, const char *name)
{
    return parser->token->kind == T_NAME && tpl__str_is(parser->token->text, name);
}

static bool skip_name(struct parser *parser, const char *name)
{
    if (!at_name(parser, name))
        return false;
    next(parser);
    return true;
}

static bool skip(struct parser *parser, enum token_kind kind)
{
    if (parser->token->kind != kind)
        return false;
    next(parser);
    return true;
}

static void expect(struct parser *parser, enum token_kind kind)
{
    const struct token *token = parser->token;

    if (token->kind == T_NAME && kind != T_NAME)
        tpl__fail(parser->job, "expected token '%s', got '%.*s'", tpl__token_name(kind),
                  (int)(token->text->size > 60 ? 60 : token->text->size), token->text->bytes);
    if (token->kind != kind)
        tpl__fail(parser->job, "expected token '%s', got '%s'", tpl__token_name(kind),
                  tpl__token_name(token->kind));
    next(parser);
}

static struct str *intern(struct parser *parser, const struct str *text)
{
    return tpl__intern(parser->job, &parser->template->names, text->bytes, text->size);
}

static struct str *expect_name(struct parser *parser)
{
    const struct token *token = parser->token;

    expect(parser, T_NAME);
    return intern(parser, token->text);
}

/* --- arguments -------------------------------------------------------------------------------- */

static void append(struct node **first, struct node ***tail, struct node *node)
{
    if (*tail == NULL)
        *tail = first;
    **tail = node;
    *tail = &node->next;
}

static void parse_argument(struct parser *parser, struct node *call, struct node ***tail,
                           bool *named)
{
    if (parser->token->kind == T_MUL && call->rest == NULL && call->rest_named == NULL) {
        next(parser);
        call->rest = parse_expression(parser);
    } else if (parser->token->kind == T_POW && call->rest_named == NULL) {
        next(parser);
        call->rest_named = parse_expression(parser);
    } else if (parser->token->kind == T_NAME && parser->token[1].kind == T_ASSIGN &&
               call->rest_named == NULL) {
        struct node *keyword = node_new(parser, N_KEYWORD);

        keyword->name = expect_name(parser);
        next(parser);
        keyword->a = parse_expression(parser);
        append(&call->list, tail, keyword);
        *named = true;
    } else {
        struct node *holder;

        if (*named || call->rest != NULL || call->rest_named != NULL)
            tpl__fail(parser->job, "invalid syntax for function call expression");
        holder = parse_expression(parser);
        append(&call->list, tail, holder);
    }
}

/* (a, b, c=d, *e, **f) into node->list, ->rest, ->rest_named */
static void parse_call_args(struct parser *parser, struct node *call)
{
    struct node **tail = NULL;
    bool named = false;
    bool comma = false;

    expect(parser, T_LPAREN);
    while (parser->token->kind != T_RPAREN) {
        if (comma) {
            expect(parser, T_COMMA);
            if (parser->token->kind == T_RPAREN)
                break;
        }
        parse_argument(parser, call, &tail, &named);
        comma = true;
    }
    expect(parser, T_RPAREN);
}

/* --- primaries -------------------------------------------------------------------------------- */

static struct node *constant(struct parser *parser, struct value value)
{
    struct node *node = node_new(parser, N_CONST);

    node->constant = value;
    return node;
}

static void note_use(struct parser *parser, const struct str *name)
{
    int uses = tpl__str_is(name, "caller")    ? MACRO_USES_CALLER
               : tpl__str_is(name, "kwargs")  ? MACRO_USES_KWARGS
               : tpl__str_is(name, "varargs") ? MACRO_USES_VARARGS
                                              : 0;

    for (size_t i = 0; uses != 0 && i < parser->macro_count; i++)
        parser->macros[i]->op |= uses;
}

static struct node *parse_name(struct parser *parser, bool with_namespace)
{
    struct node *node;
    const struct str *text = parser->token->text;

    if (tpl__str_is(text, "true") || tpl__str_is(text, "True"))
        node = constant(parser, tpl__bool(true));
    else if (tpl__str_is(text, "false") || tpl__str_is(text, "False"))
        node = constant(parser, tpl__bool(false));
    else if (tpl__str_is(text, "none") || tpl__str_is(text, "None"))
        node = constant(parser, tpl__none());
    else
        node = node_new(parser, N_NAME);
    if (text->size > 0 && (unsigned char)text->bytes[0] < 0x80 && text->bytes[0] >= '0' &&
        text->bytes[0] <= '9')
        tpl__fail(parser->job, "Invalid character in identifier");
    next(parser);
    if (node->kind != N_NAME)
        return node;
    node->name = intern(parser, text);
    note_use(parser, text);
    if (with_namespace && parser->token->kind == T_DOT) {
        next(parser);
        node->kind = N_NSREF;
        node->a = node_new(parser, N_CONST);
        node->a->name = expect_name(parser);
    }
    return node;
}

/* Text of the template itself: kept for template_mentions. */
static struct str *literal(struct parser *parser, const struct str *text)
{
    return tpl__intern(parser->job, &parser->template->literals, text->bytes, text->size);
}

static struct node *parse_string(struct parser *parser)
{
    struct node *node = node_new(parser, N_CONST);
    struct builder text;

    tpl__builder_init(&text, parser->job);
    while (parser->token->kind == T_STRING) {
        tpl__put_str(&text, parser->token->text);
        next(parser);
    }
    node->constant = tpl__of_str(literal(parser, tpl__built(&text)));
    return node;
}

static struct node *parse_list(struct parser *parser)
{
    struct node *node = node_new(parser, N_LIST);
    struct node **tail = NULL;

    expect(parser, T_LBRACKET);
    while (parser->token->kind != T_RBRACKET) {
        if (node->list != NULL)
            expect(parser, T_COMMA);
        if (parser->token->kind == T_RBRACKET)
            break;
        append(&node->list, &tail, parse_expression(parser));
    }
    expect(parser, T_RBRACKET);
    return node;
}

static struct node *parse_dict(struct parser *parser)
{
    struct node *node = node_new(parser, N_DICT);
    struct node **tail = NULL;

    expect(parser, T_LBRACE);
    while (parser->token->kind != T_RBRACE) {
        struct node *pair;

        if (node->list != NULL)
            expect(parser, T_COMMA);
        if (parser->token->kind == T_RBRACE)
            break;
        pair = node_new(parser, N_PAIR);
        pair->a = parse_expression(parser);
        expect(parser, T_COLON);
        pair->b = parse_expression(parser);
        append(&node->list, &tail, pair);
    }
    expect(parser, T_RBRACE);
    return node;
}

enum tuple_flags { TUPLE_SIMPLE = 1, TUPLE_NO_COND = 2, TUPLE_PARENS = 4, TUPLE_NAMESPACE = 8 };

static struct node *parse_tuple(struct parser *parser, int flags, const char *end_name);

static struct node *parse_primary(struct parser *parser, bool with_namespace)
{
    const struct token *token = parser->token;
    struct node *node;

    switch (token->kind) {
    case T_NAME:
        return parse_name(parser, with_namespace);
    case T_STRING:
        return parse_string(parser);
    case T_INTEGER:
    case T_FLOAT:
        node = constant(parser, token->kind == T_INTEGER ? tpl__int(token->integer)
                                                         : tpl__float(token->real));
        next(parser);
        return node;
    case T_LPAREN:
        next(parser);
        node = parse_tuple(parser, TUPLE_PARENS, NULL);
        expect(parser, T_RPAREN);
        return node;
    case T_LBRACKET:
        return parse_list(parser);
    case T_LBRACE:
        return parse_dict(parser);
    default:
        tpl__fail(parser->job, "unexpected '%s'", tpl__token_name(token->kind));
    }
}

static bool is_tuple_end(const struct parser *parser, const char *end_name)
{
    enum token_kind kind = parser->token->kind;

    return kind == T_VARIABLE_END || kind == T_BLOCK_END || kind == T_RPAREN ||
           (end_name != NULL && at_name(parser, end_name));
}

/* One expression, or several with commas between them, which are a tuple. */
static struct node *parse_tuple(struct parser *parser, int flags, const char *end_name)
{
    struct node *tuple = node_new(parser, N_TUPLE);
    struct node **tail = NULL;
    bool is_tuple = false;

    for (;;) {
        struct node *item;

        if (tuple->list != NULL)
            expect(parser, T_COMMA);
        if (is_tuple_end(parser, end_name))
            break;
        if (flags & TUPLE_SIMPLE)
            item = parse_primary(parser, flags & TUPLE_NAMESPACE);
        else if (flags & TUPLE_NO_COND)
            item = parse_or(parser);
        else
            item = parse_expression(parser);
        append(&tuple->list, &tail, item);
        if (parser->token->kind != T_COMMA)
            break;
        is_tuple = true;
    }
    if (is_tuple)
        return tuple;
    if (tuple->list != NULL)
        return tuple->list;
    if (!(flags & TUPLE_PARENS))
        tpl__fail(parser->job, "Expected an expression, got '%s'",
                  tpl__token_name(parser->token->kind));
    return tuple;
}

/* --- what follows a primary ------------------------------------------------------------------- */

static struct node *parse_subscribed(struct parser *parser)
{
    struct node *slice = node_new(parser, N_SLICE);

    if (parser->token->kind != T_COLON) {
        struct node *node = parse_expression(parser);

        if (parser->token->kind != T_COLON)
            return node;
        slice->a = node;
    }
    expect(parser, T_COLON);
    if (parser->token->kind != T_COLON && parser->token->kind != T_RBRACKET &&
        parser->token->kind != T_COMMA)
        slice->b = parse_expression(parser);
    if (skip(parser, T_COLON) && parser->token->kind != T_RBRACKET &&
        parser->token->kind != T_COMMA)
        slice->c = parse_expression(parser);
    return slice;
}

static struct node *parse_subscript(struct parser *parser, struct node *object)
{
    struct node *node = node_new(parser, N_ITEM);
    struct node *tuple;
    struct node **tail = NULL;

    node->a = object;
    if (skip(parser, T_DOT)) {
        if (parser->token->kind == T_NAME) {
            node->kind = N_ATTR;
            node->name = expect_name(parser);
        } else if (parser->token->kind == T_INTEGER) {
            node->b = constant(parser, tpl__int(parser->token->integer));
            next(parser);
        } else {
            tpl__fail(parser->job, "expected name or number");
        }
        return node;
    }
    expect(parser, T_LBRACKET);
    tuple = node_new(parser, N_TUPLE);
    while (parser->token->kind != T_RBRACKET) {
        if (tuple->list != NULL)
            expect(parser, T_COMMA);
        append(&tuple->list, &tail, parse_subscribed(parser));
    }
    expect(parser, T_RBRACKET);
    node->b = tuple->list != NULL && tuple->list->next == NULL ? tuple->list : tuple;
    return node;
}

static struct node *parse_call(struct parser *parser, struct node *function)
{
    struct node *call = node_new(parser, N_CALL);

    call->a = function;
    parse_call_args(parser, call);
    return call;
}

static struct node *parse_postfix(struct parser *parser, struct node *node)
{
    /* Links are evaluated by recursion, so a chain counts as depth. */
    unsigned depth = parser->job->depth;

    for (;;) {
        if (parser->token->kind == T_DOT || parser->token->kind == T_LBRACKET)
            node = parse_subscript(parser, node);
        else if (parser->token->kind == T_LPAREN)
            node = parse_call(parser, node);
        else
            break;
        tpl__enter(parser->job);
    }
    parser->job->depth = depth;
    return node;
}

/* |name(args)|... behind node, which is NULL in {% filter %} and {% set x | f %}. */
static struct node *parse_filter(struct parser *parser, struct node *node, bool start_inline)
{
    unsigned depth = parser->job->depth;

    while (parser->token->kind == T_PIPE || start_inline) {
        struct node *filter;

        if (!start_inline)
            next(parser);
        start_inline = false;
        filter = node_new(parser, N_FILTER);
        filter->a = node;
        filter->name = expect_name(parser);
        if (parser->token->kind == T_DOT)
            tpl__fail(parser->job, "No filter named '%.*s.'", (int)filter->name->size,
                      filter->name->bytes);
        if (parser->token->kind == T_LPAREN)
            parse_call_args(parser, filter);
        node = filter;
        tpl__enter(parser->job);
    }
    parser->job->depth = depth;
    return node;
}

static bool begins_test_argument(const struct parser *parser)
{
    enum token_kind kind = parser->token->kind;

    if (kind == T_NAME)
        return !at_name(parser, "else") && !at_name(parser, "or") && !at_name(parser, "and");
    return kind == T_STRING || kind == T_INTEGER || kind == T_FLOAT || kind == T_LBRACKET ||
           kind == T_LBRACE;
}

static struct node *parse_test(struct parser *parser, struct node *tested)
{
    struct node *test = node_new(parser, N_TEST);
    struct node *negated = NULL;

    next(parser); /* is */
    if (at_name(parser, "not")) {
        negated = node_new(parser, N_NOT);
        next(parser);
    }
    test->a = tested;
    test->name = expect_name(parser);
    if (parser->token->kind == T_LPAREN) {
        parse_call_args(parser, test);
    } else if (begins_test_argument(parser)) {
        if (at_name(parser, "is"))
            tpl__fail(parser->job, "You cannot chain multiple tests with is");
        test->list = parse_postfix(parser, parse_primary(parser, false));
    }
    if (negated == NULL)
        return test;
    negated->a = test;
    return negated;
}

static struct node *parse_filter_expr(struct parser *parser, struct node *node)
{
    unsigned depth = parser->job->depth;

    for (;;) {
        if (parser->token->kind == T_PIPE)
            node = parse_filter(parser, node, false);
        else if (at_name(parser, "is"))
            node = parse_test(parser, node);
        else if (parser->token->kind == T_LPAREN)
            node = parse_call(parser, node);
        else
            break;
        tpl__enter(parser->job);
    }
    parser->job->depth = depth;
    return node;
}

/* --- operators -------------------------------------------------------------------------------- */

static struct node *parse_unary(struct parser *parser, bool with_filter)
{
    enum token_kind kind = parser->token->kind;
    struct node *node;

    tpl__enter(parser->job);
    if (kind == T_SUB || kind == T_ADD) {
        node = node_new(parser, kind == T_SUB ? N_NEG : N_POS);
        next(parser);
        node->a = parse_unary(parser, false);
    } else {
        node = parse_primary(parser, false);
    }
    node = parse_postfix(parser, node);
    if (with_filter)
        node = parse_filter_expr(parser, node);
    tpl__leave(parser->job);
    return node;
}

struct level {
    struct {
        enum token_kind token;
        enum node_kind node;
    } operators[4];
    size_t count;
};

static const struct level levels[] = {
    { { { T_ADD, N_ADD }, { T_SUB, N_SUB } }, 2 },
    { { { T_TILDE, N_CONCAT } }, 1 },
    { { { T_MUL, N_MUL }, { T_DIV, N_DIV }, { T_FLOORDIV, N_FLOORDIV }, { T_MOD, N_MOD } }, 4 },
    { { { T_POW, N_POW } }, 1 },
};

/* a + b + c and so on; a ~ b ~ c is one node with a list. Long sums lean to the left and are
 * evaluated by recursion: their length counts as depth. */
static struct node *parse_binary(struct parser *parser, size_t level)
{
    unsigned depth = parser->job->depth;
    struct node *left;

    if (level == sizeof(levels) / sizeof(levels[0]))
        return parse_unary(parser, true);
    left = parse_binary(parser, level + 1);
    for (;;) {
        struct node *node = NULL;
        struct node *right;

        for (size_t i = 0; i < levels[level].count; i++) {
            if (levels[level].operators[i].token == parser->token->kind)
                node = node_new(parser, levels[level].operators[i].node);
        }
        if (node == NULL)
            break;
        next(parser);
        right = parse_binary(parser, level + 1);
        if (node->kind == N_CONCAT && left->kind == N_CONCAT && left->c != NULL) {
            left->c->next = right;
            left->c = right;
            continue;
        }
        node->a = left;
        node->b = right;
        if (node->kind == N_CONCAT) {
            node->list = left; /* c is the last, while parsing */
            left->next = right;
            node->c = right;
        } else {
            tpl__enter(parser->job);
        }
        left = node;
    }
    /* What stands in brackets is done: nothing is added to it. */
    if (level == 1 && left->kind == N_CONCAT)
        left->c = NULL;
    parser->job->depth = depth;
    return left;
}

static bool compare_operator(struct parser *parser, int *op_out)
{
    static const struct {
        enum token_kind token;
        enum compare_op op;
    } table[] = {
        { T_EQ, C_EQ }, { T_NE, C_NE }, { T_LT, C_LT }, { T_LE, C_LE }, { T_GT, C_GT },
        { T_GE, C_GE },
    };

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        if (parser->token->kind == table[i].token) {
            *op_out = table[i].op;
            next(parser);
            return true;
        }
    }
    if (skip_name(parser, "in")) {
        *op_out = C_IN;
        return true;
    }
    if (at_name(parser, "not") && parser->token[1].kind == T_NAME &&
        tpl__str_is(parser->token[1].text, "in")) {
        next(parser);
        next(parser);
        *op_out = C_NOT_IN;
        return true;
    }
    return false;
}

static struct node *parse_compare(struct parser *parser)
{
    struct node *compare = node_new(parser, N_COMPARE);
    struct node **tail = NULL;
    int op;

    compare->a = parse_binary(parser, 0);
    while (compare_operator(parser, &op)) {
        struct node *operand = node_new(parser, N_OPERAND);

        operand->op = op;
        operand->a = parse_binary(parser, 0);
        append(&compare->list, &tail, operand);
    }
    return compare->list == NULL ? compare->a : compare;
}

static struct node *parse_not(struct parser *parser)
{
    struct node *node;

    if (!at_name(parser, "not"))
        return parse_compare(parser);
    tpl__enter(parser->job);
    node = node_new(parser, N_NOT);
    next(parser);
    node->a = parse_not(parser);
    tpl__leave(parser->job);
    return node;
}

static struct node *parse_and_or(struct parser *parser, const char *word, enum node_kind kind,
                                 struct node *(*operand)(struct parser *))
{
    unsigned depth = parser->job->depth;
    struct node *left = operand(parser);

    while (at_name(parser, word)) {
        struct node *node = node_new(parser, kind);

        next(parser);
        node->a = left;
        node->b = operand(parser);
        left = node;
        tpl__enter(parser->job);
    }
    parser->job->depth = depth;
    return left;
}

static struct node *parse_and(struct parser *parser)
{
    return parse_and_or(parser, "and", N_AND, parse_not);
}

static struct node *parse_or(struct parser *parser)
{
    return parse_and_or(parser, "or", N_OR, parse_and);
}

static struct node *parse_expression(struct parser *parser)
{
    struct node *node;
    unsigned depth = parser->job->depth;

    tpl__enter(parser->job);
    node = parse_or(parser);
    while (at_name(parser, "if")) {
        struct node *cond = node_new(parser, N_COND);

        next(parser);
        cond->a = node;
        cond->b = parse_or(parser);
        if (skip_name(parser, "else"))
            cond->c = parse_expression(parser);
        node = cond;
        tpl__enter(parser->job);
    }
    parser->job->depth = depth;
    return node;
}

/* --- statements ------------------------------------------------------------------------------- */

static void check_target(struct parser *parser, const struct node *target)
{
    if (target->kind == N_CONST)
        tpl__fail(parser->job, "can't assign to a constant");
    if (target->kind == N_TUPLE) {
        for (const struct node *item = target->list; item != NULL; item = item->next)
            check_target(parser, item);
    } else if (target->kind != N_NAME && target->kind != N_NSREF) {
        tpl__fail(parser->job, "can't assign to what is no name");
    }
}

static struct node *parse_target(struct parser *parser, int flags, const char *end_name)
{
    struct node *target = parse_tuple(parser, TUPLE_SIMPLE | flags, end_name);

    check_target(parser, target);
    return target;
}

static void check_no_loop(struct parser *parser, const struct node *target)
{
    if (target->kind == N_NAME && tpl__str_is(target->name, "loop"))
        tpl__fail(parser->job, "Can't assign to special loop variable in for-loop target");
    for (const struct node *item = target->list; item != NULL; item = item->next)
        check_no_loop(parser, item);
}

static struct node *parse_for(struct parser *parser)
{
    static const char *const ends[] = { "endfor", "else", NULL };
    static const char *const last[] = { "endfor", NULL };
    struct node *node = node_new(parser, N_FOR);
    const char *end;

    next(parser);
    node->a = parse_target(parser, 0, "in");
    check_no_loop(parser, node->a);
    if (!skip_name(parser, "in"))
        tpl__fail(parser->job, "expected 'in' behind the names of a for");
    node->b = parse_tuple(parser, TUPLE_NO_COND, "recursive");
    if (skip_name(parser, "if"))
        node->c = parse_expression(parser);
    node->op = skip_name(parser, "recursive");
    node->body = parse_statements(parser, ends, &end);
    if (strcmp(end, "else") == 0)
        node->orelse = parse_statements(parser, last, NULL);
    return node;
}

static struct node *parse_if(struct parser *parser)
{
    static const char *const ends[] = { "elif", "else", "endif", NULL };
    static const char *const last[] = { "endif", NULL };
    struct node *first = NULL;
    struct node *node = NULL;
    const char *end = "if";

    do {
        struct node *branch = node_new(parser, N_IF);

        if (node == NULL)
            next(parser);
        branch->a = parse_tuple(parser, TUPLE_NO_COND, NULL);
        branch->body = parse_statements(parser, ends, &end);
        if (node == NULL)
            first = branch;
        else
            node->b = branch; /* the next elif */
        node = branch;
    } while (strcmp(end, "elif") == 0);
    if (strcmp(end, "else") == 0)
        node->orelse = parse_statements(parser, last, NULL);
    return first;
}

static struct node *parse_set(struct parser *parser)
{
    static const char *const ends[] = { "endset", NULL };
    struct node *node = node_new(parser, N_SET);

    next(parser);
    node->a = parse_target(parser, TUPLE_NAMESPACE, NULL);
    if (skip(parser, T_ASSIGN)) {
        node->b = parse_tuple(parser, 0, NULL);
        return node;
    }
    node->kind = N_SET_BLOCK;
    node->b = parse_filter(parser, NULL, false);
    node->body = parse_statements(parser, ends, NULL);
    return node;
}

/* (name, name=default, ...) */
static void parse_signature(struct parser *parser, struct node *macro)
{
    struct node **tail = NULL;
    bool defaults = false;

    expect(parser, T_LPAREN);
    while (parser->token->kind != T_RPAREN) {
        struct node *parameter;

        if (macro->list != NULL)
            expect(parser, T_COMMA);
        parameter = node_new(parser, N_NAME);
        parameter->name = expect_name(parser);
        if (skip(parser, T_ASSIGN)) {
            parameter->a = parse_expression(parser);
            defaults = true;
        } else if (defaults) {
            tpl__fail(parser->job, "non-default argument follows default argument");
        }
        append(&macro->list, &tail, parameter);
    }
    expect(parser, T_RPAREN);
}

static void macro_begin(struct parser *parser, struct node *macro)
{
    if (parser->macro_count == MACROS_DEEP_MAX)
        tpl__fail(parser->job, "more than %d macros inside each other", MACROS_DEEP_MAX);
    parser->macros[parser->macro_count++] = macro;
}

static struct node *parse_macro(struct parser *parser)
{
    static const char *const ends[] = { "endmacro", NULL };
    struct node *node = node_new(parser, N_MACRO);

    next(parser);
    node->name = expect_name(parser);
    parse_signature(parser, node);
    macro_begin(parser, node);
    node->body = parse_statements(parser, ends, NULL);
    parser->macro_count--;
    return node;
}

static struct node *parse_call_block(struct parser *parser)
{
    static const char *const ends[] = { "endcall", NULL };
    struct node *node = node_new(parser, N_CALL_BLOCK);

    next(parser);
    node->name = tpl__intern(parser->job, &parser->template->names, "caller", 6);
    if (parser->token->kind == T_LPAREN)
        parse_signature(parser, node);
    node->a = parse_expression(parser);
    if (node->a->kind != N_CALL)
        tpl__fail(parser->job, "expected call");
    macro_begin(parser, node);
    node->body = parse_statements(parser, ends, NULL);
    parser->macro_count--;
    return node;
}

static struct node *parse_with(struct parser *parser)
{
    static const char *const ends[] = { "endwith", NULL };
    struct node *node = node_new(parser, N_WITH);
    struct node **tail = NULL;

    next(parser);
    while (parser->token->kind != T_BLOCK_END) {
        struct node *pair;

        if (node->list != NULL)
            expect(parser, T_COMMA);
        pair = node_new(parser, N_PAIR);
        pair->a = parse_primary(parser, false);
        check_target(parser, pair->a);
        expect(parser, T_ASSIGN);
        pair->b = parse_expression(parser);
        append(&node->list, &tail, pair);
    }
    node->body = parse_statements(parser, ends, NULL);
    return node;
}

static struct node *parse_print(struct parser *parser)
{
    struct node *node = node_new(parser, N_PRINT);
    struct node **tail = NULL;

    next(parser);
    while (parser->token->kind != T_BLOCK_END) {
        if (node->list != NULL)
            expect(parser, T_COMMA);
        append(&node->list, &tail, parse_expression(parser));
    }
    return node;
}

static struct node *parse_filter_block(struct parser *parser)
{
    static const char *const ends[] = { "endfilter", NULL };
    struct node *node = node_new(parser, N_FILTER_BLOCK);

    next(parser);
    node->b = parse_filter(parser, NULL, true);
    node->body = parse_statements(parser, ends, NULL);
    return node;
}

static struct node *parse_generation(struct parser *parser)
{
    static const char *const ends[] = { "endgeneration", NULL };
    struct node *node = node_new(parser, N_SCOPE);

    next(parser);
    node->body = parse_statements(parser, ends, NULL);
    return node;
}

static struct node *parse_jump(struct parser *parser)
{
    struct node *node = node_new(parser, at_name(parser, "break") ? N_BREAK : N_CONTINUE);

    next(parser);
    return node;
}

static struct node *parse_statement(struct parser *parser)
{
    static const struct {
        const char *name;
        struct node *(*parse)(struct parser *parser);
    } table[] = {
        { "if", parse_if }, { "for", parse_for }, { "set", parse_set }, { "macro", parse_macro },
        { "call", parse_call_block }, { "filter", parse_filter_block }, { "with", parse_with },
        { "print", parse_print }, { "generation", parse_generation }, { "break", parse_jump },
        { "continue", parse_jump },
    };
    static const char *const outside[] = { "include", "import", "from", "extends", "block",
                                           "autoescape" };
    const struct token *token = parser->token;

    if (token->kind != T_NAME)
        tpl__fail(parser->job, "tag name expected");
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        if (at_name(parser, table[i].name))
            return table[i].parse(parser);
    }
    for (size_t i = 0; i < sizeof(outside) / sizeof(outside[0]); i++) {
        if (at_name(parser, outside[i]))
            tpl__fail(parser->job, "the tag '%s' is not for chat templates: there are no other "
                      "templates to read", outside[i]);
    }
    tpl__fail(parser->job, "Encountered unknown tag '%.*s'",
              (int)(token->text->size > 60 ? 60 : token->text->size), token->text->bytes);
}

/* Everything until one of the tags in `ends` (NULL: the template's end), which is skipped. */
static struct node *parse_body(struct parser *parser, const char *const *ends,
                               const char **end_out)
{
    struct node *first = NULL;
    struct node **tail = NULL;

    for (;;) {
        struct node *node;

        switch (parser->token->kind) {
        case T_DATA:
            node = node_new(parser, N_TEXT);
            node->constant = tpl__of_str(literal(parser, parser->token->text));
            next(parser);
            break;
        case T_VARIABLE_BEGIN:
            node = node_new(parser, N_PRINT);
            next(parser);
            node->list = parse_tuple(parser, 0, NULL);
            expect(parser, T_VARIABLE_END);
            break;
        case T_BLOCK_BEGIN:
            next(parser);
            for (size_t i = 0; ends != NULL && ends[i] != NULL; i++) {
                if (at_name(parser, ends[i])) {
                    if (end_out != NULL)
                        *end_out = ends[i];
                    next(parser);
                    return first;
                }
            }
            node = parse_statement(parser);
            expect(parser, T_BLOCK_END);
            break;
        default:
            if (ends != NULL)
                tpl__fail(parser->job, "Unexpected end of template: '%s' is missing", ends[0]);
            return first;
        }
        append(&first, &tail, node);
    }
}

/* The end of a tag, then its body. */
static struct node *parse_statements(struct parser *parser, const char *const *ends,
                                     const char **end_out)
{
    struct node *body;

    tpl__enter(parser->job);
    skip(parser, T_COLON);
    expect(parser, T_BLOCK_END);
    body = parse_body(parser, ends, end_out);
    tpl__leave(parser->job);
    return body;
}

void tpl__parse(struct template *template, const char *text, size_t size)
{
    struct tokens tokens = { 0 };
    struct parser parser = { .job = &template->job, .template = template };

    tpl__lex(&template->job, text, size, &tokens);
    parser.token = tokens.items;
    template->body = parse_body(&parser, NULL, NULL);
    template->job.line = 0;
}
