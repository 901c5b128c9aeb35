/* text/tokenizer/pattern.c - strings and regular expressions, walked match by match.
 *
 * Regular expressions are Oniguruma's, because the `tokenizers` library uses Oniguruma: classes,
 * look-around and greediness mean the same. A text from outside must not make it run for ever, so
 * every search is first tried with few backtracking steps and, when those don't do, again with
 * more; what the failed tries cost is taken from a budget that grows with the text. Patterns that
 * need a number of steps proportional to the text, as all those of real tokenizers, never come near
 * it.
 *
 * The library brings Oniguruma 6.9.10, whose Unicode is 16; Debian 12 has 6.9.8 with Unicode 14.
 * Two things are done about that. A pattern that asks for classes is not run on the text itself
 * where that has younger characters, but on a copy with an older character of the same class and
 * length in place of each (class_stand_in). And [:punct:], which has the symbols too since 6.9.10,
 * is spelled out. */
#include "text/tokenizer/internal.h"

#include <assert.h>
#include <oniguruma.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/utf8.h"

#define LITERAL_WINDOW_BYTES ((size_t)4096)
#define STEPS_FIRST 256u           /* backtracking steps of the first try */
#define STEPS_GROWTH 16u           /* how much more each further try gets */
#define STEPS_BASE (UINT64_C(1) << 24)
#define STEPS_PER_BYTE 16u         /* of text */
#define STACK_ENTRIES_MAX (16u << 20) /* Oniguruma's stack: about 48 bytes an entry */
#define PARSE_DEPTH_MAX 128u
#define CALLS_MAX 4096u            /* of subexpressions, \g<name> */

/* DeepSeek-V2's. A long run of spaces inside a text makes Oniguruma try each of its places anew,
 * which takes a time that is quadratic in the run; find_spaces_at_end looks at each once. */
#define SPACES_AT_END "\\s+$"

struct pattern {
    regex_t *regex;             /* NULL: a string, or SPACES_AT_END */
    bool is_spaces_at_end;
    struct text_string literal; /* when it is a string */
    bool asks_for_classes;      /* \p{...}, \w, [:...:]: Unicode's version matters */
};

static pthread_once_t onig_started = PTHREAD_ONCE_INIT;

static void start_onig(void)
{
    OnigEncoding encodings[] = { ONIG_ENCODING_UTF8 };

    (void)onig_initialize(encodings, 1);
    (void)onig_set_parse_depth_limit(PARSE_DEPTH_MAX);
    (void)onig_set_subexp_call_limit_in_search(CALLS_MAX);
}

/* Appends the expression with [:punct:] as Oniguruma 6.9.10 reads it. */
static enum status spell_out_punct(const char *bytes, size_t size, struct buf *out,
                                   struct err *err)
{
    static const struct {
        const char *from, *to;
    } classes[] = { { "[:punct:]", "\\p{P}\\p{S}" }, { "[:^punct:]", "[^\\p{P}\\p{S}]" } };
    size_t depth = 0; /* of brackets */
    enum status st = STATUS_OK;

    for (size_t i = 0; i < size && st == STATUS_OK;) {
        size_t length = bytes[i] == '\\' && i + 1 < size ? 2 : 1;

        for (size_t k = 0; depth > 0 && k < 2; k++) {
            const size_t from_size = strlen(classes[k].from);
            if (size - i >= from_size && memcmp(bytes + i, classes[k].from, from_size) == 0) {
                st = buf_append(out, classes[k].to, strlen(classes[k].to), err);
                i += from_size;
                length = 0;
                break;
            }
        }
        if (length == 1 && bytes[i] == '[')
            depth++;
        else if (length == 1 && bytes[i] == ']' && depth > 0)
            depth--;
        if (st == STATUS_OK)
            st = buf_append(out, bytes + i, length, err);
        i += length;
    }
    return st;
}

static bool asks_for_classes(const char *bytes, size_t size)
{
    for (size_t i = 0; i + 1 < size; i++) {
        if (bytes[i] == '[' && bytes[i + 1] == ':')
            return true;
        if (bytes[i] == '\\' && strchr("pPwWdDbBhHX", bytes[++i]) != NULL)
            return true;
    }
    return false;
}

static enum status compile(struct pattern *pattern, const char *bytes, size_t size,
                           const char *what, struct err *err)
{
    OnigUChar message[ONIG_MAX_ERROR_MESSAGE_LEN];
    OnigErrorInfo info = { 0 };
    struct buf text;
    enum status st;
    int code;

    (void)pthread_once(&onig_started, start_onig);
    buf_init(&text, 2 * PATTERN_BYTES_MAX);
    st = buf_reserve(&text, size, err);
    if (st == STATUS_OK)
        st = spell_out_punct(bytes, size, &text, err);
    if (st != STATUS_OK) {
        buf_deinit(&text);
        return st;
    }
    pattern->asks_for_classes = asks_for_classes(bytes, size);
    code = onig_new(&pattern->regex, (const OnigUChar *)text.data,
                    (const OnigUChar *)text.data + text.size, ONIG_OPTION_NONE, ONIG_ENCODING_UTF8,
                    ONIG_SYNTAX_DEFAULT, &info);
    buf_deinit(&text);
    if (code == ONIG_NORMAL)
        return STATUS_OK;
    pattern->regex = NULL;
    if (code == ONIGERR_MEMORY)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for a regular expression", what);
    (void)onig_error_code_to_str(message, code, &info);
    return err_set(err, STATUS_BAD_INPUT, "%s: the regular expression \"%.80s\" is not valid: %s",
                   what, bytes, (const char *)message);
}

enum status pattern_create(enum pattern_kind kind, const char *bytes, size_t size,
                           const char *what, struct pattern **pattern_out, struct err *err)
{
    const size_t size_max = kind == PATTERN_STRING ? CONTENT_BYTES_MAX : PATTERN_BYTES_MAX;
    struct pattern *pattern;
    enum status st = STATUS_OK;

    if (size > size_max)
        return err_set(err, STATUS_BAD_INPUT, "%s: a pattern of %zu bytes, at most %zu are taken",
                       what, size, size_max);
    pattern = calloc(1, sizeof(*pattern));
    if (pattern == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for a pattern", what);
    if (kind == PATTERN_STRING)
        st = string_copy(bytes, size, &pattern->literal, err);
    else if (size == strlen(SPACES_AT_END) && memcmp(bytes, SPACES_AT_END, size) == 0)
        pattern->is_spaces_at_end = true;
    else
        st = compile(pattern, bytes, size, what, err);
    if (st != STATUS_OK) {
        pattern_destroy(pattern);
        return st;
    }
    *pattern_out = pattern;
    return STATUS_OK;
}

enum status pattern_create_json(const json_t *json, const char *what, struct pattern **pattern_out,
                                struct err *err)
{
    const json_t *string = json_object_get(json, "String");
    const json_t *regex = json_object_get(json, "Regex");

    if (json_is_string(string) == json_is_string(regex))
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: \"pattern\" must be {\"String\": ...} or {\"Regex\": ...}", what);
    if (json_is_string(string))
        return pattern_create(PATTERN_STRING, json_string_value(string),
                              json_string_length(string), what, pattern_out, err);
    return pattern_create(PATTERN_REGEX, json_string_value(regex), json_string_length(regex), what,
                          pattern_out, err);
}

void pattern_destroy(struct pattern *pattern)
{
    if (pattern == NULL)
        return;
    if (pattern->regex != NULL)
        onig_free(pattern->regex);
    string_deinit(&pattern->literal);
    free(pattern);
}

const char *pattern_literal(const struct pattern *pattern, size_t *size_out)
{
    *size_out = pattern->literal.size;
    return pattern->literal.bytes;
}

/* Puts stand-ins for younger characters into a copy of the text, if there are any. */
static enum status put_stand_ins(struct pattern_scan *scan, struct err *err)
{
    const char *text = scan->text;
    struct buf *copy = &scan->scratch->stand_in;

    for (size_t i = 0; i < scan->size;) {
        uint32_t code_point;
        uint32_t stand_in;
        size_t length;

        if ((unsigned char)text[i] < 0xC0) {
            i++;
            continue;
        }
        length = utf8_decode(text + i, scan->size - i, &code_point, NULL);
        stand_in = class_stand_in(code_point);
        if (stand_in != code_point) {
            if (scan->text == text) {
                enum status st;

                buf_clear(copy);
                st = buf_append(copy, text, scan->size, err);
                if (st != STATUS_OK)
                    return st;
                scan->text = copy->data;
            }
            (void)utf8_encode(stand_in, copy->data + i);
        }
        i += length;
    }
    return STATUS_OK;
}

static enum status prepare_scratch(struct pattern_scratch *scratch, struct err *err)
{
    OnigMatchParam *param;

    if (scratch->match_param != NULL)
        return STATUS_OK;
    scratch->stand_in.size_limit = SIZE_MAX / 4;
    if (scratch->region == NULL)
        scratch->region = onig_region_new();
    param = onig_new_match_param();
    if (scratch->region == NULL || param == NULL) {
        if (param != NULL)
            onig_free_match_param(param);
        return err_set(err, STATUS_NO_MEMORY, "no memory for a search");
    }
    (void)onig_initialize_match_param(param);
    (void)onig_set_match_stack_limit_size_of_match_param(param, STACK_ENTRIES_MAX);
    scratch->match_param = param;
    return STATUS_OK;
}

void pattern_scratch_deinit(struct pattern_scratch *scratch)
{
    if (scratch->region != NULL)
        onig_region_free(scratch->region, 1);
    if (scratch->match_param != NULL)
        onig_free_match_param(scratch->match_param);
    buf_deinit(&scratch->stand_in);
    *scratch = (struct pattern_scratch){ 0 };
}

enum status pattern_scan_begin(struct pattern_scan *scan, const struct pattern *pattern,
                               const char *text, size_t size,
                               struct pattern_scratch *scratch, struct err *err)
{
    enum status st;

    *scan = (struct pattern_scan){
        .pattern = pattern, .text = text, .size = size, .scratch = scratch
    };
    if (pattern->regex == NULL)
        return STATUS_OK;
    scan->budget = STEPS_BASE + (uint64_t)STEPS_PER_BYTE * size;
    st = prepare_scratch(scratch, err);
    if (st == STATUS_OK && pattern->asks_for_classes)
        st = put_stand_ins(scan, err);
    return st;
}

/* Finds the string; an empty one is found everywhere. In windows, because the sanitizers look at
 * all that memmem is given: at the whole rest of the text for each match, it would be quadratic. */
static bool find_literal(const struct pattern_scan *scan, size_t *start_out, size_t *end_out)
{
    const struct text_string *literal = &scan->pattern->literal;
    size_t window = literal->size + LITERAL_WINDOW_BYTES;

    if (literal->size == 0) {
        *start_out = *end_out = scan->next;
        return true;
    }
    for (size_t i = scan->next; scan->size - i >= literal->size; i += window - literal->size + 1) {
        const char *at;

        if (window > scan->size - i)
            window = scan->size - i;
        at = memmem(scan->text + i, window, literal->bytes, literal->size);
        if (at != NULL) {
            *start_out = (size_t)(at - scan->text);
            *end_out = *start_out + literal->size;
            return true;
        }
    }
    return false;
}

/* \s+$: in the first run of spaces that goes to the end of the text, or in which a line ends, the
 * spaces up to there. */
static bool find_spaces_at_end(const struct pattern_scan *scan, size_t *start_out, size_t *end_out)
{
    size_t start = scan->next; /* of the run */
    size_t line_end = 0;       /* the last one in the run, behind its start; 0: none */

    for (size_t i = scan->next; i < scan->size;) {
        uint32_t code_point;
        const size_t length = utf8_decode(scan->text + i, scan->size - i, &code_point, NULL);

        if (!class_is_space(code_point)) {
            if (line_end > 0)
                break;
            start = i + length;
        } else if (code_point == '\n' && i > start) {
            line_end = i;
        }
        i += length;
        if (i == scan->size && start < i)
            line_end = i;
    }
    *start_out = start;
    *end_out = line_end;
    return line_end > 0;
}

static enum status find_regex(struct pattern_scan *scan, bool *found_out, size_t *start_out,
                              size_t *end_out, struct err *err)
{
    const OnigUChar *text = (const OnigUChar *)scan->text;
    OnigRegion *region = scan->scratch->region;
    OnigMatchParam *param = scan->scratch->match_param;
    uint64_t steps = STEPS_FIRST;
    OnigUChar message[ONIG_MAX_ERROR_MESSAGE_LEN];
    int code;

    for (;;) {
        (void)onig_set_retry_limit_in_match_of_match_param(param, steps);
        (void)onig_set_retry_limit_in_search_of_match_param(param, steps);
        code = onig_search_with_param(scan->pattern->regex, text, text + scan->size,
                                      text + scan->next, text + scan->size, region,
                                      ONIG_OPTION_NONE, param);
        if (code != ONIGERR_RETRY_LIMIT_IN_MATCH_OVER && code != ONIGERR_RETRY_LIMIT_IN_SEARCH_OVER)
            break;
        if (steps > scan->budget)
            return err_set(err, STATUS_BAD_INPUT,
                           "a regular expression of the tokenizer takes too many steps on a text "
                           "of %zu bytes", scan->size);
        scan->budget -= steps;
        steps *= STEPS_GROWTH;
    }
    if (code == ONIG_MISMATCH) {
        *found_out = false;
        return STATUS_OK;
    }
    if (code == ONIGERR_MATCH_STACK_LIMIT_OVER)
        return err_set(err, STATUS_BAD_INPUT,
                       "a text of %zu bytes has a stretch without a place to cut that is too long "
                       "for the tokenizer (some %u million characters)",
                       scan->size, STACK_ENTRIES_MAX >> 20);
    if (code < 0) {
        (void)onig_error_code_to_str(message, code);
        return err_set(err, code == ONIGERR_MEMORY ? STATUS_NO_MEMORY : STATUS_BAD_INPUT,
                       "a regular expression of the tokenizer fails on a text of %zu bytes: %s",
                       scan->size, (const char *)message);
    }
    *found_out = true;
    *start_out = (size_t)region->beg[0];
    *end_out = (size_t)region->end[0];
    return STATUS_OK;
}

enum status pattern_scan_next(struct pattern_scan *scan, bool *found_out, size_t *start_out,
                              size_t *end_out, struct err *err)
{
    for (;;) {
        uint32_t code_point;
        enum status st = STATUS_OK;

        *found_out = false;
        if (scan->next > scan->size)
            return STATUS_OK;
        if (scan->pattern->is_spaces_at_end)
            *found_out = find_spaces_at_end(scan, start_out, end_out);
        else if (scan->pattern->regex == NULL)
            *found_out = find_literal(scan, start_out, end_out);
        else
            st = find_regex(scan, found_out, start_out, end_out, err);
        if (st != STATUS_OK || !*found_out)
            return st;
        scan->next = *end_out;
        if (*start_out < *end_out) {
            scan->skip_next_empty = true;
            return STATUS_OK;
        }
        scan->next += *end_out < scan->size ? utf8_decode(scan->text + *end_out,
                                                          scan->size - *end_out, &code_point, NULL)
                                            : 1;
        if (!scan->skip_next_empty)
            return STATUS_OK;
        scan->skip_next_empty = false;
    }
}
