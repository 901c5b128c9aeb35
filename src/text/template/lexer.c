/* text/template/lexer.c - a template's text becomes tokens.
 *
 *     text {% block %} text {{ variable }} text {# comment #} text {% raw %} text {% endraw %}
 *
 * Outside of tags, text is data. The newline after a block or comment is dropped (trim_blocks), as
 * are blanks between a line's start and a block or comment (lstrip_blocks); a minus inside a tag's
 * brace takes all white space on that side, a plus keeps it. One newline at the template's end is
 * dropped, and every newline is "\n". */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "text/template/internal.h"

#define BRACES_MAX 512

struct lexer {
    struct job *job;
    const char *text;
    size_t size;
    size_t at;
    int line;
    struct tokens *out;
    char braces[BRACES_MAX]; /* what closes each open one */
    size_t brace_count;
};

static void move_to(struct lexer *lexer, size_t to)
{
    for (; lexer->at < to; lexer->at++)
        lexer->line += lexer->text[lexer->at] == '\n';
    lexer->job->line = lexer->line;
}

static struct token *add(struct lexer *lexer, enum token_kind kind)
{
    struct tokens *out = lexer->out;
    struct token *token;

    out->items = tpl__grow(lexer->job, out->items, out->count, &out->capacity,
                           sizeof(*out->items));
    token = &out->items[out->count++];
    memset(token, 0, sizeof(*token));
    token->kind = kind;
    token->line = lexer->line;
    return token;
}

static void add_data(struct lexer *lexer, size_t from, size_t to)
{
    if (to > from)
        add(lexer, T_DATA)->text = tpl__str(lexer->job, lexer->text + from, to - from, 0);
}

static bool looking_at(const struct lexer *lexer, size_t at, const char *what)
{
    size_t size = strlen(what);

    return at <= lexer->size && lexer->size - at >= size &&
           memcmp(lexer->text + at, what, size) == 0;
}

static size_t skip_space(const struct lexer *lexer, size_t at)
{
    while (at < lexer->size) {
        uint32_t c;
        size_t size = utf8_decode(lexer->text + at, lexer->size - at, &c, NULL);

        if (!tpl__is_space(c))
            break;
        at += size;
    }
    return at;
}

/* The size of data without the white space at its end. */
static size_t size_before_space(const struct str *data)
{
    size_t end = data->size;

    while (end > 0) {
        uint32_t c;
        size_t size = tpl__character_before(data, end, &c);

        if (!tpl__is_space(c))
            break;
        end -= size;
    }
    return end;
}

/* Where the data before a tag ends. */
static size_t data_end(const struct lexer *lexer, size_t tag, char sign, bool is_variable)
{
    struct str data = { .bytes = lexer->text + lexer->at, .size = tag - lexer->at };
    size_t line_start = data.size;

    if (sign == '-')
        return lexer->at + size_before_space(&data);
    if (sign == '+' || is_variable)
        return tag;
    while (line_start > 0 && data.bytes[line_start - 1] != '\n')
        line_start--;
    if (line_start == 0 && lexer->at > 0 && lexer->text[lexer->at - 1] != '\n')
        return tag;
    if (skip_space(lexer, lexer->at + line_start) < tag)
        return tag;
    return lexer->at + line_start;
}

static char sign_at(const struct lexer *lexer, size_t at)
{
    return at < lexer->size && (lexer->text[at] == '-' || lexer->text[at] == '+')
               ? lexer->text[at] : '\0';
}

/* Where a tag's end at `at` stops, with the white space it takes; 0: there is none. */
static size_t tag_end(const struct lexer *lexer, size_t at, const char *end, bool trims,
                      bool takes_plus)
{
    size_t size = strlen(end);

    if (lexer->text[at] == '-' && looking_at(lexer, at + 1, end))
        return skip_space(lexer, at + 1 + size);
    if (takes_plus && lexer->text[at] == '+' && looking_at(lexer, at + 1, end))
        return at + 1 + size;
    if (!looking_at(lexer, at, end))
        return 0;
    at += size;
    return trims && at < lexer->size && lexer->text[at] == '\n' ? at + 1 : at;
}

static void lex_comment(struct lexer *lexer, size_t at)
{
    if (at == lexer->size)
        return; /* jinja2 sees no comment that lacks its end here */
    for (; at < lexer->size; at++) {
        size_t end = tag_end(lexer, at, "#}", true, true);

        if (end != 0) {
            move_to(lexer, end);
            return;
        }
    }
    tpl__fail(lexer->job, "Missing end of comment tag");
}

/* After "{%" and its sign: where the data of a raw block begins; 0: it is none. */
static size_t raw_begin(const struct lexer *lexer, size_t at)
{
    at = skip_space(lexer, at);
    if (!looking_at(lexer, at, "raw"))
        return 0;
    at = skip_space(lexer, at + 3);
    return at < lexer->size ? tag_end(lexer, at, "%}", false, false) : 0;
}

static void lex_raw(struct lexer *lexer, size_t data)
{
    move_to(lexer, data);
    if (data == lexer->size)
        return;
    for (size_t tag = data; tag < lexer->size; tag++) {
        size_t at;
        size_t end;
        char sign;

        if (!looking_at(lexer, tag, "{%"))
            continue;
        sign = sign_at(lexer, tag + 2);
        at = skip_space(lexer, tag + 2 + (sign != '\0'));
        if (!looking_at(lexer, at, "endraw"))
            continue;
        at = skip_space(lexer, at + 6);
        end = at < lexer->size ? tag_end(lexer, at, "%}", true, true) : 0;
        if (end == 0)
            continue;
        add_data(lexer, lexer->at, data_end(lexer, tag, sign, false));
        move_to(lexer, end);
        return;
    }
    tpl__fail(lexer->job, "Missing end of raw directive");
}

/* --- what stands inside tags ------------------------------------------------------------------ */

static void put_escape_of(struct builder *out, uint32_t c)
{
    char text[16];

    /* Python reads strings through ASCII with backslash escapes, so that a backslash before a
     * character past ASCII meets the backslash of that one's escape. */
    snprintf(text, sizeof(text), c <= 0xff ? "\\x%02x" : c <= 0xffff ? "\\u%04x" : "\\U%08x", c);
    tpl__put(out, text, strlen(text), 0);
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static size_t put_numeric_escape(struct lexer *lexer, struct builder *out, size_t at, size_t to)
{
    char kind = lexer->text[at];
    size_t digits = kind == 'x' ? 2 : kind == 'u' ? 4 : 8;
    uint32_t c = 0;

    at++;
    for (size_t i = 0; i < digits; i++, at++) {
        int digit = at < to ? hex_digit(lexer->text[at]) : -1;

        if (digit < 0)
            tpl__fail(lexer->job, "truncated \\%cXX escape", kind);
        c = c * 16 + (uint32_t)digit;
    }
    if (c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
        tpl__fail(lexer->job, "\\%c escape of U+%X, which is no character", kind, c);
    tpl__put_char(out, c, 0);
    return at;
}

/* The escape after the backslash at `at` - 1; returns where it ends. */
static size_t put_escape(struct lexer *lexer, struct builder *out, size_t at, size_t to)
{
    static const char letters[] = "\\\\''\"\"a\ab\bf\fn\nr\rt\tv\v";
    char c = lexer->text[at];
    uint32_t code_point;

    for (size_t i = 0; i + 1 < sizeof(letters); i += 2) {
        if (letters[i] == c) {
            tpl__put(out, &letters[i + 1], 1, 0);
            return at + 1;
        }
    }
    if (c == '\n')
        return at + 1;
    if (c >= '0' && c <= '7') {
        uint32_t number = 0;

        for (int i = 0; i < 3 && at < to && lexer->text[at] >= '0' && lexer->text[at] <= '7'; i++)
            number = number * 8 + (uint32_t)(lexer->text[at++] - '0');
        tpl__put_char(out, number, 0);
        return at;
    }
    if (c == 'x' || c == 'u' || c == 'U')
        return put_numeric_escape(lexer, out, at, to);
    if (c == 'N')
        tpl__fail(lexer->job, "\\N escapes are not supported");
    if ((unsigned char)c >= 0x80) {
        size_t size = utf8_decode(lexer->text + at, to - at, &code_point, NULL);

        put_escape_of(out, code_point);
        return at + size;
    }
    tpl__put_c(out, "\\");
    tpl__put(out, &c, 1, 0);
    return at + 1;
}

static bool lex_string(struct lexer *lexer)
{
    size_t begin = lexer->at + 1;
    char quote = lexer->text[lexer->at];
    size_t end = begin;
    struct builder out;
    struct token *token;

    while (end < lexer->size && lexer->text[end] != quote)
        end += lexer->text[end] == '\\' ? 2 : 1;
    if (end >= lexer->size)
        return false;
    tpl__builder_init(&out, lexer->job);
    for (size_t at = begin; at < end;) {
        size_t plain = at;

        while (plain < end && lexer->text[plain] != '\\')
            plain++;
        tpl__put(&out, lexer->text + at, plain - at, 0);
        at = plain < end ? put_escape(lexer, &out, plain + 1, end) : plain;
    }
    token = add(lexer, T_STRING);
    token->text = tpl__built(&out);
    move_to(lexer, end + 1);
    return true;
}

/* The digits from `at`, each with at most one underline before it; appended without them. */
static size_t take_digits(const struct lexer *lexer, size_t at, int base, char *out, size_t *count,
                          size_t count_max)
{
    for (;;) {
        size_t digit = at + (at < lexer->size && lexer->text[at] == '_');
        int value = digit < lexer->size ? hex_digit(lexer->text[digit]) : -1;

        if (value < 0 || value >= base || *count >= count_max)
            return at;
        out[(*count)++] = lexer->text[digit];
        at = digit + 1;
    }
}

/* A number with a fraction or an exponent; 0: there is none here. */
static size_t take_float(const struct lexer *lexer, char *text, size_t text_size)
{
    size_t count = 0;
    size_t at = lexer->at;
    size_t end = take_digits(lexer, at, 10, text, &count, text_size - 8);
    size_t mark;

    if (end == at || (at > 0 && lexer->text[at - 1] == '.'))
        return 0;
    at = end;
    mark = at;
    if (at + 1 < lexer->size && lexer->text[at] == '.' && lexer->text[at + 1] >= '0' &&
        lexer->text[at + 1] <= '9') {
        text[count++] = '.';
        at = take_digits(lexer, at + 1, 10, text, &count, text_size - 8);
    }
    if (at < lexer->size && (lexer->text[at] == 'e' || lexer->text[at] == 'E')) {
        size_t power = at + 1;
        size_t kept = count;

        text[count++] = 'e';
        if (power < lexer->size && (lexer->text[power] == '+' || lexer->text[power] == '-'))
            text[count++] = lexer->text[power++];
        end = power < lexer->size && lexer->text[power] != '_'
                  ? take_digits(lexer, power, 10, text, &count, text_size - 2) : power;
        if (end > power)
            at = end;
        else
            count = kept;
    }
    text[count] = '\0';
    return at == mark ? 0 : at;
}

static void lex_number(struct lexer *lexer)
{
    char text[400];
    size_t count = 0;
    size_t at = take_float(lexer, text, sizeof(text));
    int base = 10;
    struct token *token;

    if (at != 0) {
        token = add(lexer, T_FLOAT);
        token->real = strtod(text, NULL);
        move_to(lexer, at);
        return;
    }
    at = lexer->at;
    if (lexer->text[at] == '0' && at + 1 < lexer->size) {
        char kind = lexer->text[at + 1] | 0x20;

        base = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 10;
        at = base == 10 ? at : take_digits(lexer, at + 2, base, text, &count, sizeof(text) - 1);
        if (base != 10 && count == 0) {
            base = 10;
            at = lexer->at;
        }
    }
    if (base == 10 && lexer->text[at] == '0') {
        while (at < lexer->size && lexer->text[at] == '0')
            at++;
        text[count++] = '0';
    } else if (base == 10) {
        at = take_digits(lexer, at, 10, text, &count, sizeof(text) - 1);
    }
    text[count] = '\0';
    token = add(lexer, T_INTEGER);
    errno = 0;
    token->integer = strtoll(text, NULL, base);
    if (errno != 0)
        tpl__fail(lexer->job, "the integer %.40s needs more than 64 bits", text);
    move_to(lexer, at);
}

static bool lex_name(struct lexer *lexer)
{
    size_t at = lexer->at;

    while (at < lexer->size) {
        uint32_t c;
        size_t size = utf8_decode(lexer->text + at, lexer->size - at, &c, NULL);

        if (!tpl__is_word(c))
            break;
        at += size;
    }
    if (at == lexer->at)
        return false;
    add(lexer, T_NAME)->text = tpl__str(lexer->job, lexer->text + lexer->at, at - lexer->at, 0);
    move_to(lexer, at);
    return true;
}

static const struct {
    const char *text;
    enum token_kind kind;
} operators[] = {
    /* the longest first */
    { "//", T_FLOORDIV }, { "**", T_POW }, { "==", T_EQ }, { "!=", T_NE }, { ">=", T_GE },
    { "<=", T_LE }, { "+", T_ADD }, { "-", T_SUB }, { "*", T_MUL }, { "/", T_DIV }, { "%", T_MOD },
    { "~", T_TILDE }, { "[", T_LBRACKET }, { "]", T_RBRACKET }, { "(", T_LPAREN },
    { ")", T_RPAREN }, { "{", T_LBRACE }, { "}", T_RBRACE }, { ">", T_GT }, { "<", T_LT },
    { "=", T_ASSIGN }, { ".", T_DOT }, { ":", T_COLON }, { "|", T_PIPE }, { ",", T_COMMA },
    { ";", T_SEMICOLON },
};

static void lex_operator(struct lexer *lexer)
{
    for (size_t i = 0; i < sizeof(operators) / sizeof(operators[0]); i++) {
        const char *text = operators[i].text;

        if (!looking_at(lexer, lexer->at, text))
            continue;
        if (strchr("([{", text[0]) != NULL) {
            if (lexer->brace_count == BRACES_MAX)
                tpl__fail(lexer->job, "more than %d open braces", BRACES_MAX);
            lexer->braces[lexer->brace_count++] = text[0] == '(' ? ')' : (char)(text[0] + 2);
        } else if (strchr(")]}", text[0]) != NULL) {
            if (lexer->brace_count == 0)
                tpl__fail(lexer->job, "unexpected '%s'", text);
            if (lexer->braces[--lexer->brace_count] != text[0])
                tpl__fail(lexer->job, "unexpected '%s', expected '%c'", text,
                          lexer->braces[lexer->brace_count]);
        }
        add(lexer, operators[i].kind);
        move_to(lexer, lexer->at + strlen(text));
        return;
    }
    tpl__fail(lexer->job, "unexpected character at byte %zu", lexer->at);
}

const char *tpl__token_name(enum token_kind kind)
{
    static const char *const names[] = {
        [T_EOF] = "end of template", [T_DATA] = "text", [T_BLOCK_BEGIN] = "{%",
        [T_BLOCK_END] = "end of statement block", [T_VARIABLE_BEGIN] = "{{",
        [T_VARIABLE_END] = "end of print statement", [T_NAME] = "a name", [T_STRING] = "a string",
        [T_INTEGER] = "an integer", [T_FLOAT] = "a float",
    };

    for (size_t i = 0; i < sizeof(operators) / sizeof(operators[0]); i++) {
        if (operators[i].kind == kind)
            return operators[i].text;
    }
    return names[kind];
}

static void lex_tag(struct lexer *lexer, bool is_block)
{
    lexer->brace_count = 0;
    for (;;) {
        size_t at = skip_space(lexer, lexer->at);
        size_t end;
        char c;

        move_to(lexer, at);
        if (at >= lexer->size)
            return; /* the parser misses the end */
        end = lexer->brace_count > 0 ? 0
              : is_block ? tag_end(lexer, at, "%}", true, true)
                         : tag_end(lexer, at, "}}", false, false);
        if (end != 0) {
            add(lexer, is_block ? T_BLOCK_END : T_VARIABLE_END);
            move_to(lexer, end);
            return;
        }
        c = lexer->text[at];
        if (c >= '0' && c <= '9')
            lex_number(lexer);
        else if (!lex_name(lexer) && !((c == '\'' || c == '"') && lex_string(lexer)))
            lex_operator(lexer);
    }
}

static void lex_all(struct lexer *lexer)
{
    while (lexer->at < lexer->size) {
        size_t tag = lexer->at;
        size_t raw;
        char sign;
        bool is_variable;

        while (tag < lexer->size && !(lexer->text[tag] == '{' && tag + 1 < lexer->size &&
                                      strchr("%{#", lexer->text[tag + 1]) != NULL &&
                                      lexer->text[tag + 1] != '\0'))
            tag++;
        if (tag >= lexer->size) {
            add_data(lexer, lexer->at, lexer->size);
            move_to(lexer, lexer->size);
            return;
        }
        sign = sign_at(lexer, tag + 2);
        is_variable = lexer->text[tag + 1] == '{';
        raw = lexer->text[tag + 1] == '%' ? raw_begin(lexer, tag + 2 + (sign != '\0')) : 0;
        add_data(lexer, lexer->at, data_end(lexer, tag, sign, is_variable));
        move_to(lexer, tag + 2 + (sign != '\0'));
        if (lexer->text[tag + 1] == '#') {
            lex_comment(lexer, lexer->at);
        } else if (raw != 0) {
            lex_raw(lexer, raw);
        } else {
            add(lexer, is_variable ? T_VARIABLE_BEGIN : T_BLOCK_BEGIN);
            lex_tag(lexer, !is_variable);
        }
    }
}

void tpl__lex(struct job *job, const char *text, size_t size, struct tokens *out)
{
    char *normalized = tpl__alloc(job, size + 1);
    struct lexer *lexer = tpl__alloc(job, sizeof(*lexer));
    size_t count = 0;

    for (size_t i = 0; i < size; i++) {
        if (text[i] == '\r') {
            normalized[count++] = '\n';
            i += i + 1 < size && text[i + 1] == '\n';
        } else {
            normalized[count++] = text[i];
        }
    }
    if (count > 0 && normalized[count - 1] == '\n')
        count--;
    lexer->job = job;
    lexer->text = normalized;
    lexer->size = count;
    lexer->line = 1;
    lexer->out = out;
    job->line = 1;
    lex_all(lexer);
    add(lexer, T_EOF);
}
