/* text/template/internal.h - the parts of the template language, for the files of this folder.
 *
 *   text --lexer.c--> tokens --parser.c--> nodes           template_create
 *   input --value.c--> values --run.c (statements), expr.c (expressions)--> output  template_render
 *                               filters*.c, tests.c, methods.c: what expressions call
 *                               print.c: values as text; ops.c: operators; string.c: text
 *
 * Parsing and rendering are each a `struct job`: memory that is given back all at once, counters
 * that bound it, and one way out. A failure says its sentence and leaves by longjmp to the
 * template_* function that began the job: nothing here holds anything but the job's memory, so
 * nothing has to be undone on the way, and the code that evaluates stays as short as what it
 * says. Functions of this folder are called inside a job only. */
#ifndef LIGHTER_TEXT_TEMPLATE_INTERNAL_H
#define LIGHTER_TEXT_TEMPLATE_INTERNAL_H

#include <setjmp.h>

#include "text/template/template.h"

/* --- job.c: memory, limits, failure ----------------------------------------------------------- */

struct job_block;

struct job {
    struct job_block *blocks;
    size_t memory_bytes, memory_limit_bytes;
    uint64_t steps_left;
    unsigned depth, depth_max;
    const char *what; /* the template's name, for messages */
    int line;         /* of the node at work; 0: none */
    struct err *err;
    enum status status;
    jmp_buf escape;
};

void tpl__job_init(struct job *job, size_t memory_limit_bytes, unsigned depth_max,
                   const char *what, struct err *err);
/* Frees all memory of the job. */
void tpl__job_deinit(struct job *job);
/* Zeroed memory that lives as long as the job. */
void *tpl__alloc(struct job *job, size_t size);
/* The array grown to hold one more than count items of item_size; *capacity is kept. */
void *tpl__grow(struct job *job, void *items, size_t count, size_t *capacity, size_t item_size);
/* Counts work against the limit. */
void tpl__charge(struct job *job, uint64_t steps);
void tpl__charge_bytes(struct job *job, size_t size);
void tpl__enter(struct job *job);
void tpl__leave(struct job *job);
void tpl__fail(struct job *job, const char *format, ...)
    __attribute__((noreturn, format(printf, 2, 3)));

/* --- values ----------------------------------------------------------------------------------- */

/* Text. Either all of it has one origin, or marks[size] tells of each byte. */
struct str {
    const char *bytes; /* UTF-8, no NUL promised */
    const uint8_t *marks;
    size_t size;
    size_t count;  /* characters; SIZE_MAX: not counted yet */
    uint8_t origin;
    bool markup;   /* of the filters safe and escape: other text is escaped when it is added */
};

enum kind {
    V_UNDEFINED, V_NONE, V_BOOL, V_INT, V_FLOAT, V_STR, V_LIST, V_TUPLE, V_RANGE,
    V_VIEW,      /* of a dict: keys(), values(), items() */
    V_ITERATOR,  /* can be walked once: what map, select, ... return */
    V_DICT, V_NAMESPACE, V_FUNCTION, V_MACRO, V_LOOP, V_CYCLER, V_JOINER,
    V_SLICE,     /* a:b:c between brackets */
    V_MISSING,   /* an argument that was not passed */
};

struct value {
    enum kind kind;
    union {
        bool truth;
        int64_t integer;
        double real;
        struct str *str;
        struct seq *seq;        /* LIST, TUPLE, RANGE, VIEW, ITERATOR */
        struct dict *dict;      /* DICT, NAMESPACE */
        struct function *function;
        struct macro *macro;
        struct loop *loop;
        struct cycler *cycler;  /* CYCLER, JOINER */
        struct slice *slice;
        struct undefined *undefined; /* NULL: nobody's */
    };
};

struct seq {
    struct value *items;
    size_t count, capacity;
    size_t next;       /* of an iterator */
    const char *label; /* of a view: "dict_items"; of a group: "group"; of a range: NULL */
};

struct entry {
    struct value key, value;
};

struct dict {
    struct entry *entries;
    size_t count, capacity;
};

struct undefined {
    const struct str *name;
    const char *owner; /* the type that lacks the attribute; NULL: a variable */
};

struct slice {
    struct value start, stop, step; /* V_NONE: left out */
};

struct cycler {
    struct seq *items;
    size_t next;
    struct str *text; /* a joiner's */
};

/* Arguments of a call. */
struct args {
    struct value *items;
    size_t count, capacity;
    struct dict named;
};

struct run;
typedef struct value (*tpl_call)(struct run *run, struct value self, const struct args *args);

struct function {
    const char *name;
    const char *spec; /* see tpl__bind */
    tpl_call call;
    struct value (*bound)(struct run *run, struct value self, struct value *args);
    struct value self;
};

/* --- nodes ------------------------------------------------------------------------------------ */

enum node_kind {
    /* expressions */
    N_CONST, N_NAME, N_LIST, N_TUPLE, N_DICT, N_PAIR, N_ATTR, N_ITEM, N_SLICE, N_CALL, N_FILTER,
    N_TEST, N_KEYWORD, N_COND, N_AND, N_OR, N_NOT, N_NEG, N_POS, N_ADD, N_SUB, N_MUL, N_DIV,
    N_FLOORDIV, N_MOD, N_POW, N_CONCAT, N_COMPARE, N_OPERAND, N_NSREF,
    /* statements */
    N_TEXT, N_PRINT, N_FOR, N_IF, N_SET, N_SET_BLOCK, N_MACRO, N_CALL_BLOCK, N_FILTER_BLOCK,
    N_WITH, N_SCOPE, N_BREAK, N_CONTINUE,
};

enum compare_op { C_EQ, C_NE, C_LT, C_LE, C_GT, C_GE, C_IN, C_NOT_IN };

struct node {
    enum node_kind kind;
    int line;
    int op;                 /* compare_op; of N_FOR: recursive; of macros: what the body uses */
    struct str *name;       /* interned */
    struct value constant;
    struct node *a, *b, *c; /* operands, or target, iterable, condition */
    struct node *list;      /* items, arguments, parameters: linked by next */
    struct node *body, *orelse;
    struct node *rest, *rest_named; /* *args, **kwargs */
    struct node *next;
};

enum { MACRO_USES_CALLER = 1, MACRO_USES_KWARGS = 2, MACRO_USES_VARARGS = 4 };

struct names {
    struct str **items;
    size_t count, capacity;
    size_t *slots; /* index + 1, open addressing */
    size_t slot_count;
};

struct template {
    struct job job;
    char *what;
    struct node *body;
    struct names names;
    struct names literals; /* text and string literals, for template_mentions */
};

/* The one str of this name. */
struct str *tpl__intern(struct job *job, struct names *names, const char *bytes, size_t size);
struct str *tpl__interned(const struct names *names, const char *bytes, size_t size);

/* --- lexer.c ---------------------------------------------------------------------------------- */

enum token_kind {
    T_EOF, T_DATA, T_BLOCK_BEGIN, T_BLOCK_END, T_VARIABLE_BEGIN, T_VARIABLE_END, T_NAME, T_STRING,
    T_INTEGER, T_FLOAT,
    T_ADD, T_SUB, T_MUL, T_DIV, T_FLOORDIV, T_MOD, T_POW, T_TILDE, T_LBRACKET, T_RBRACKET,
    T_LPAREN, T_RPAREN, T_LBRACE, T_RBRACE, T_EQ, T_NE, T_GT, T_GE, T_LT, T_LE, T_ASSIGN, T_DOT,
    T_COLON, T_PIPE, T_COMMA, T_SEMICOLON,
};

struct token {
    enum token_kind kind;
    int line;
    struct str *text; /* of data, names and strings; of others as written */
    int64_t integer;
    double real;
};

struct tokens {
    struct token *items; /* the last is T_EOF */
    size_t count, capacity;
};

void tpl__lex(struct job *job, const char *text, size_t size, struct tokens *out);
const char *tpl__token_name(enum token_kind kind);

/* --- parser.c --------------------------------------------------------------------------------- */

void tpl__parse(struct template *template, const char *text, size_t size);

/* --- string.c: text --------------------------------------------------------------------------- */

struct str *tpl__str(struct job *job, const char *bytes, size_t size, uint8_t origin);
struct str *tpl__str_c(struct job *job, const char *text); /* text is borrowed for good */
struct value tpl__of_str(struct str *str);
struct value tpl__of_text(struct job *job, const char *text);
/* Bytes from..to of a string, sharing them. */
struct str *tpl__sub(struct job *job, const struct str *str, size_t from, size_t to);
size_t tpl__str_count(struct job *job, const struct str *str);
/* The offset of a character, at most str->size. */
size_t tpl__str_offset(struct job *job, const struct str *str, size_t index);
bool tpl__str_equal(const struct str *a, const struct str *b);
bool tpl__str_is(const struct str *a, const char *text);
/* The offset of the first `part` at or after `from`; SIZE_MAX: none. The last one before `to`. */
size_t tpl__str_find(struct job *job, const struct str *str, const struct str *part, size_t from);
size_t tpl__str_rfind(struct job *job, const struct str *str, const struct str *part, size_t to);
size_t tpl__character(const struct str *str, size_t at, uint32_t *code_point_out);
/* The size of the character that ends at `to`. */
size_t tpl__character_before(const struct str *str, size_t to, uint32_t *code_point_out);

/* Text being built. */
struct builder {
    struct job *job;
    char *bytes;
    uint8_t *marks; /* NULL: all of one origin */
    size_t size, capacity, size_limit;
    uint8_t origin;
};
void tpl__builder_init(struct builder *builder, struct job *job);
void tpl__put(struct builder *builder, const char *bytes, size_t size, uint8_t origin);
void tpl__put_c(struct builder *builder, const char *text);
void tpl__put_str(struct builder *builder, const struct str *str);
void tpl__put_part(struct builder *builder, const struct str *str, size_t from, size_t to);
void tpl__put_char(struct builder *builder, uint32_t code_point, uint8_t origin);
struct str *tpl__built(struct builder *builder);
/* The origin of one byte. */
uint8_t tpl__origin_at(const struct str *str, size_t at);
/* HTML's five characters as entities; markup stays as it is. */
struct str *tpl__escape(struct job *job, const struct str *str);

/* unicode.c: Python's ideas of characters */
bool tpl__is_space(uint32_t code_point);
bool tpl__is_line_end(uint32_t code_point);
bool tpl__is_word(uint32_t code_point); /* \w */
bool tpl__is_printable(uint32_t code_point);
bool tpl__is_alpha(uint32_t code_point);
bool tpl__is_digit(uint32_t code_point);
bool tpl__is_decimal(uint32_t code_point);
bool tpl__is_numeric(uint32_t code_point);
bool tpl__is_upper(uint32_t code_point);
bool tpl__is_lower(uint32_t code_point);
bool tpl__is_cased(uint32_t code_point);
struct str *tpl__upper(struct job *job, const struct str *str);
struct str *tpl__lower(struct job *job, const struct str *str);
struct str *tpl__title(struct job *job, const struct str *str);
struct str *tpl__capitalize(struct job *job, const struct str *str);
struct str *tpl__swapcase(struct job *job, const struct str *str);

/* --- value.c ---------------------------------------------------------------------------------- */

struct value tpl__none(void);
struct value tpl__bool(bool truth);
struct value tpl__int(int64_t integer);
struct value tpl__float(double real);
struct value tpl__undefined(struct job *job, const struct str *name, const char *owner);
struct value tpl__seq(struct job *job, enum kind kind, size_t capacity);
void tpl__push(struct job *job, struct seq *seq, struct value value);
struct value tpl__dict(struct job *job);
/* NULL: no such key. Keys that can't be one (lists, dicts) fail. */
struct value *tpl__dict_find(struct job *job, const struct dict *dict, struct value key);
struct value *tpl__dict_find_str(struct job *job, const struct dict *dict, const struct str *key);
void tpl__dict_set(struct job *job, struct dict *dict, struct value key, struct value value);
bool tpl__hashable(struct value value);
struct value tpl__from_json(struct job *job, const json_t *json, uint8_t origin);
/* As Python's type(value).__name__, with jinja2's "object" after it in messages. */
const char *tpl__type_name(struct value value);
bool tpl__is_true(struct job *job, struct value value);
/* The items to walk: fails when it can't be iterated; an iterator is used up. */
struct seq *tpl__iterate(struct job *job, struct value value);
bool tpl__is_iterable(struct value value);
/* len(); false when there is none. */
bool tpl__length(struct job *job, struct value value, size_t *length_out);
bool tpl__is_int(struct value value, int64_t *out); /* bool counts */
bool tpl__is_number(struct value value, double *out);

/* --- ops.c ------------------------------------------------------------------------------------ */

bool tpl__equal(struct job *job, struct value a, struct value b);
bool tpl__less(struct job *job, struct value a, struct value b, const char *sign);
bool tpl__compare(struct job *job, enum compare_op op, struct value a, struct value b);
bool tpl__contains(struct job *job, struct value item, struct value container);
struct value tpl__binary(struct job *job, enum node_kind op, struct value a, struct value b);
struct value tpl__negate(struct job *job, struct value value, bool minus);
/* format % args, Python's. */
struct str *tpl__percent(struct job *job, const struct str *format, struct value args);
_Noreturn void tpl__fail_undefined(struct job *job, struct value value);

/* --- print.c ---------------------------------------------------------------------------------- */

struct str *tpl__to_str(struct job *job, struct value value); /* str() */
void tpl__put_value(struct builder *builder, struct value value);
void tpl__put_repr(struct builder *builder, struct value value);
void tpl__put_float(struct builder *builder, double real, uint8_t origin);

struct json_style {
    bool ensure_ascii, sort_keys, has_indent;
    struct str *indent, *item_separator, *key_separator;
};
void tpl__put_json(struct builder *builder, struct value value, const struct json_style *style);

/* --- run.c, expr.c, call.c: a rendering ------------------------------------------------------- */

struct binding {
    const struct str *name; /* interned */
    struct value value;
};

struct scope {
    struct scope *parent;
    struct binding *bindings;
    size_t count, capacity;
};

struct macro {
    const struct node *node;
    struct scope *scope; /* where it was defined */
};

struct loop {
    struct seq *items;
    size_t index;
    unsigned depth0;
    struct value changed; /* the last of loop.changed(); V_MISSING: none yet */
    const struct node *node;
    struct scope *scope; /* around the loop, for a recursive one */
};

struct run {
    struct job job;
    const struct template *template;
    struct scope *root;
    struct scope *scope;
    struct builder *out;
    time_t now;
};

void tpl__run(struct run *run);
struct value tpl__eval(struct run *run, const struct node *node);
struct value tpl__call(struct run *run, struct value function, const struct args *args);
struct value tpl__loop_again(struct run *run, const struct loop *loop, struct value items);
void tpl__run_list(struct run *run, const struct node *first);
/* Captures what is written until tpl__capture_end. */
struct builder *tpl__capture_begin(struct run *run, struct builder *builder);
void tpl__capture_end(struct run *run, struct builder *before);
struct scope *tpl__scope(struct run *run, struct scope *parent);
void tpl__bind_name(struct run *run, struct scope *scope, const struct str *name,
                    struct value value);
struct value tpl__attr(struct run *run, struct value object, const struct str *name);
struct value tpl__item(struct run *run, struct value object, struct value key);
/* obj.a.0.b, as the filters' attribute= means it. */
struct value tpl__attr_path(struct run *run, struct value object, struct value path,
                            struct value missing);
void tpl__eval_args(struct run *run, const struct node *node, struct args *out);
void tpl__args_push(struct run *run, struct args *args, struct value value);

/* Sorts arguments to parameters: spec is "first,second?,third?"; a parameter that was not passed
 * is V_MISSING. What does not fit fails. */
#define ARGS_MAX 8
void tpl__bind(struct run *run, const char *function, const char *spec, const struct args *args,
               struct value out[ARGS_MAX]);
struct value tpl__filter(struct run *run, const struct str *name, struct value value,
                         const struct args *args);
bool tpl__test(struct run *run, const struct str *name, struct value value,
               const struct args *args);
/* V_MISSING: no such method. */
struct value tpl__str_method(struct run *run, struct value self, const struct str *name);
struct value tpl__dict_method(struct run *run, struct value self, const struct str *name);
struct value tpl__seq_method(struct run *run, struct value self, const struct str *name);
struct value tpl__loop_attr(struct run *run, struct value self, const struct str *name);
struct value tpl__cycler_attr(struct run *run, struct value self, const struct str *name);
struct value tpl__global(struct run *run, const struct str *name); /* V_MISSING: none */

/* Rows of a table of methods, filters or tests. */
struct function_row {
    const char *name;
    const char *spec;
    struct value (*call)(struct run *run, struct value self, struct value *args);
};
struct value tpl__bound_row(struct run *run, const struct function_row *rows, size_t count,
                            struct value self, const struct str *name);

struct filter_row {
    const char *name;
    const char *spec; /* NULL: takes the arguments as they come */
    struct value (*call)(struct run *run, struct value self, struct value *args);
    tpl_call call_raw;
};
extern const struct filter_row tpl__list_filters[];
extern const size_t tpl__list_filter_count;
extern const struct filter_row tpl__text_filters[];
extern const size_t tpl__text_filter_count;

/* Arguments with their defaults; of a wrong kind they fail. */
struct str *tpl__arg_str(struct run *run, struct value value, const char *what);
int64_t tpl__arg_int(struct run *run, struct value value, int64_t missing, const char *what);
bool tpl__arg_bool(struct run *run, struct value value, bool missing);
bool tpl__given(struct value value); /* neither left out nor none */

/* text.c: what methods and filters share */
struct str *tpl__strip(struct run *run, const struct str *str, struct value chars, int sides);
struct str *tpl__replace(struct run *run, const struct str *str, const struct str *from,
                         const struct str *to, int64_t count_max);
struct value tpl__split(struct run *run, const struct str *str, struct value separator,
                        int64_t count_max, bool from_right);
struct value tpl__splitlines(struct run *run, const struct str *str, bool keep_ends);
struct str *tpl__pad(struct run *run, const struct str *str, int64_t width, struct value fill,
                     int side);
struct str *tpl__format(struct run *run, const struct str *str, const struct args *args);
bool tpl__parse_int(const struct str *str, int64_t base, int64_t *out);
bool tpl__parse_float(struct job *job, const struct str *str, double *out);

#endif
