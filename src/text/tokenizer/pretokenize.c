/* text/tokenizer/pretokenize.c - cutting a stretch of text into the pieces that are merged each by
 * itself.
 *
 * Every step takes one piece and hands the pieces it makes of it to the next step, at once and
 * depth first; behind the last step is the model. So there is never a list of all pieces, whatever
 * the text.
 *
 *   piece --step 0--> piece --step 1--> ... --> bpe_encode
 *                 \-> piece --step 1--> ...
 *
 * `lead` (see normalize.c) goes along, for Metaspace with "first". */
#include "text/tokenizer/internal.h"

#include <assert.h>
#include <string.h>

#include "base/json.h"
#include "base/utf8.h"

/* GPT-2's, from OpenAI's gpt-2, src/encoder.py: what ByteLevel cuts with. */
#define GPT2_PATTERN \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

static enum status run_from(struct encoder *encoder, size_t index, const char *text, size_t size,
                            size_t lead, struct err *err);

/* --- cutting at matches ----------------------------------------------------------------------- */

/* Takes a text as matches and the parts between them, in order and without gaps, and puts them
 * together as the behaviour says. At most one piece is held back. */
struct splitter {
    struct encoder *encoder;
    size_t index; /* of the step that splits */
    const char *text;
    size_t lead;
    enum split_behavior behavior;
    size_t held_start, held_end;
    bool is_held;
    bool previous_match;
};

static enum status emit(struct splitter *splitter, size_t start, size_t end, struct err *err)
{
    struct encoder *encoder = splitter->encoder;
    const struct pretokenizer *step = &encoder->tokenizer->pretokenizers.steps[splitter->index];
    const char *text = splitter->text + start;
    size_t size = end - start;
    size_t lead = splitter->lead > start ? splitter->lead - start : 0;

    if (start == end)
        return STATUS_OK;
    if (lead > size)
        lead = size;
    if (step->kind == PRETOKENIZER_BYTE_LEVEL) {
        struct buf *mapped = &encoder->step_mapped[splitter->index];
        enum status st;

        buf_clear(mapped);
        st = byte_level_encode(text, lead, mapped, err);
        text += lead;
        size -= lead;
        lead = mapped->size;
        if (st == STATUS_OK)
            st = byte_level_encode(text, size, mapped, err);
        if (st != STATUS_OK)
            return st;
        text = mapped->data;
        size = mapped->size;
    }
    return run_from(encoder, splitter->index + 1, text, size, lead, err);
}

static enum status emit_held(struct splitter *splitter, struct err *err)
{
    if (!splitter->is_held)
        return STATUS_OK;
    splitter->is_held = false;
    return emit(splitter, splitter->held_start, splitter->held_end, err);
}

/* The next part of the text. */
static enum status part(struct splitter *splitter, size_t start, size_t end, bool is_match,
                        struct err *err)
{
    const bool previous_match = splitter->previous_match;
    bool joins;
    enum status st;

    splitter->previous_match = is_match;
    switch (splitter->behavior) {
    case SPLIT_ISOLATED: return emit(splitter, start, end, err);
    case SPLIT_REMOVED: return is_match ? STATUS_OK : emit(splitter, start, end, err);
    case SPLIT_CONTIGUOUS: joins = is_match == previous_match; break;
    case SPLIT_MERGED_WITH_PREVIOUS: joins = is_match && !previous_match; break;
    case SPLIT_MERGED_WITH_NEXT: joins = previous_match && !is_match; break;
    default: joins = false; break;
    }
    if (joins && splitter->is_held) {
        splitter->held_end = end;
        return STATUS_OK;
    }
    st = emit_held(splitter, err);
    splitter->held_start = start;
    splitter->held_end = end;
    splitter->is_held = true;
    return st;
}

static enum status split_at_pattern(struct splitter *splitter, const struct pattern *pattern,
                                    bool invert, size_t size, struct err *err)
{
    size_t done = 0;
    struct pattern_scan scan;
    enum status st = pattern_scan_begin(&scan, pattern, splitter->text, size,
                                        &splitter->encoder->step_search[splitter->index], err);

    while (st == STATUS_OK) {
        bool found;
        size_t start;
        size_t end;

        st = pattern_scan_next(&scan, &found, &start, &end, err);
        if (st != STATUS_OK || !found)
            break;
        if (start < done) /* \K can make a match start before the last one's end */
            start = done;
        if (done < start)
            st = part(splitter, done, start, invert, err);
        if (st == STATUS_OK)
            st = part(splitter, start, end, !invert, err);
        done = end;
    }
    if (st == STATUS_OK && done < size)
        st = part(splitter, done, size, invert, err);
    return st == STATUS_OK ? emit_held(splitter, err) : st;
}

/* Each character of the class is a match of its own. */
static enum status split_at_class(struct splitter *splitter, bool (*is_in_class)(uint32_t),
                                  size_t size, struct err *err)
{
    size_t done = 0;
    enum status st = STATUS_OK;

    for (size_t i = 0; i < size && st == STATUS_OK;) {
        uint32_t code_point;
        const size_t length = utf8_decode(splitter->text + i, size - i, &code_point, NULL);

        if (is_in_class(code_point)) {
            if (done < i)
                st = part(splitter, done, i, false, err);
            if (st == STATUS_OK)
                st = part(splitter, i, i + length, true, err);
            done = i + length;
        }
        i += length;
    }
    if (st == STATUS_OK && done < size)
        st = part(splitter, done, size, false, err);
    return st == STATUS_OK ? emit_held(splitter, err) : st;
}

enum word_class { WORD_CLASS_SPACE, WORD_CLASS_WORD, WORD_CLASS_OTHER };

static enum word_class word_class_of(uint32_t code_point)
{
    if (class_is_word(code_point))
        return WORD_CLASS_WORD;
    return class_is_space(code_point) ? WORD_CLASS_SPACE : WORD_CLASS_OTHER;
}

/* Keeps what \w+|[^\w\s]+ matches. */
static enum status split_whitespace(struct splitter *splitter, size_t size, struct err *err)
{
    enum word_class class_of_run = WORD_CLASS_SPACE;
    size_t run_start = 0;
    enum status st = STATUS_OK;

    for (size_t i = 0; i < size && st == STATUS_OK;) {
        uint32_t code_point;
        const size_t length = utf8_decode(splitter->text + i, size - i, &code_point, NULL);
        const enum word_class class_here = word_class_of(code_point);

        if (class_here != class_of_run) {
            if (class_of_run != WORD_CLASS_SPACE)
                st = emit(splitter, run_start, i, err);
            run_start = i;
            class_of_run = class_here;
        }
        i += length;
    }
    if (st == STATUS_OK && class_of_run != WORD_CLASS_SPACE)
        st = emit(splitter, run_start, size, err);
    return st;
}

/* --- the steps -------------------------------------------------------------------------------- */

static enum status run_byte_level(struct splitter *splitter, const struct pretokenizer *step,
                                  size_t size, struct err *err)
{
    struct buf *text = &splitter->encoder->step_text[splitter->index];

    if (step->add_prefix_space && splitter->text[0] != ' ') {
        enum status st;

        buf_clear(text);
        st = buf_append(text, " ", 1, err);
        if (st == STATUS_OK)
            st = buf_append(text, splitter->text, size, err);
        if (st != STATUS_OK)
            return st;
        splitter->text = text->data;
        splitter->lead += splitter->lead > 0;
        size = text->size;
    }
    if (step->pattern == NULL)
        return emit(splitter, 0, size, err);
    splitter->behavior = SPLIT_ISOLATED;
    return split_at_pattern(splitter, step->pattern, false, size, err);
}

/* Puts the replacement for each space, and before the text where the scheme wants it. */
static enum status metaspace_text(struct splitter *splitter, const struct pretokenizer *step,
                                  size_t size, struct buf *out, struct err *err)
{
    const char *text = splitter->text;
    const size_t lead_in = splitter->lead;
    const bool starts = text[0] == ' ' || (size >= step->replacement_size &&
                                           memcmp(text, step->replacement,
                                                  step->replacement_size) == 0);
    const bool prepends = !starts && (step->scheme == PREPEND_ALWAYS ||
                                      (step->scheme == PREPEND_FIRST && lead_in > 0));
    enum status st = STATUS_OK;

    buf_clear(out);
    if (prepends)
        st = buf_append(out, step->replacement, step->replacement_size, err);
    for (size_t i = 0; i < size && st == STATUS_OK;) {
        const char *space = memchr(text + i, ' ', size - i);
        const size_t end = space == NULL ? size : (size_t)(space - text);

        st = buf_append(out, text + i, end - i, err);
        if (i < lead_in)
            splitter->lead = out->size - (end > lead_in ? end - lead_in : 0);
        if (st == STATUS_OK && space != NULL)
            st = buf_append(out, step->replacement, step->replacement_size, err);
        if (end < lead_in)
            splitter->lead = out->size;
        i = end + 1;
    }
    return st;
}

static enum status run_metaspace(struct splitter *splitter, const struct pretokenizer *step,
                                 size_t size, struct err *err)
{
    struct buf *text = &splitter->encoder->step_text[splitter->index];
    enum status st = metaspace_text(splitter, step, size, text, err);

    if (st != STATUS_OK)
        return st;
    splitter->text = text->data;
    if (!step->split)
        return emit(splitter, 0, text->size, err);
    splitter->behavior = SPLIT_MERGED_WITH_NEXT;
    return split_at_pattern(splitter, step->pattern, false, text->size, err);
}

static enum status run_from(struct encoder *encoder, size_t index, const char *text, size_t size,
                            size_t lead, struct err *err)
{
    const struct tokenizer *tokenizer = encoder->tokenizer;
    const struct pretokenizer *step = &tokenizer->pretokenizers.steps[index];
    struct splitter splitter = { .encoder = encoder, .index = index, .text = text, .lead = lead };

    assert(size > 0);
    if (index == tokenizer->pretokenizers.count)
        return bpe_encode(&tokenizer->bpe, &encoder->bpe, text, size, encoder->out, err);
    splitter.behavior = step->behavior;
    switch (step->kind) {
    case PRETOKENIZER_BYTE_LEVEL: return run_byte_level(&splitter, step, size, err);
    case PRETOKENIZER_SPLIT:
        return split_at_pattern(&splitter, step->pattern, step->invert, size, err);
    case PRETOKENIZER_DIGITS: return split_at_class(&splitter, class_is_numeric, size, err);
    case PRETOKENIZER_PUNCTUATION:
        return split_at_class(&splitter, class_is_punctuation, size, err);
    case PRETOKENIZER_WHITESPACE: return split_whitespace(&splitter, size, err);
    case PRETOKENIZER_WHITESPACE_SPLIT: return split_at_class(&splitter, class_is_space, size, err);
    case PRETOKENIZER_METASPACE: return run_metaspace(&splitter, step, size, err);
    }
    return STATUS_OK;
}

enum status pretokenizers_run(struct encoder *encoder, const char *text, size_t size, size_t lead,
                              struct err *err)
{
    return size == 0 ? STATUS_OK : run_from(encoder, 0, text, size, lead, err);
}

/* --- opening ---------------------------------------------------------------------------------- */

static enum status read_behavior(const json_t *json, const char *what, enum split_behavior *out,
                                 struct err *err)
{
    static const char *const names[] = { "Removed", "Isolated", "MergedWithPrevious",
                                         "MergedWithNext", "Contiguous" };
    const char *name = NULL;
    enum status st = json_get_string(json, "behavior", what, &name, err);

    if (st != STATUS_OK || name == NULL)
        return st;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(names[i], name) == 0) {
            *out = (enum split_behavior)i;
            return STATUS_OK;
        }
    }
    return err_set(err, STATUS_BAD_INPUT, "%s: the behavior \"%.64s\" is not known", what, name);
}

enum status metaspace_read(const json_t *json, const char *what, char replacement[4],
                           size_t *replacement_size, enum prepend_scheme *scheme, bool *split,
                           struct err *err)
{
    static const char *const names[] = { "always", "first", "never" };
    const char *name = "always";
    bool add_prefix_space = true;
    size_t i;
    enum status st = character_read(json, "replacement", what, replacement, replacement_size, err);

    if (st == STATUS_OK)
        st = json_get_string(json, "prepend_scheme", what, &name, err);
    if (st == STATUS_OK)
        st = json_get_bool(json, "add_prefix_space", what, &add_prefix_space, err);
    if (st == STATUS_OK)
        st = json_get_bool(json, "split", what, split, err);
    if (st != STATUS_OK)
        return st;
    for (i = 0; i < 3; i++)
        if (strcmp(names[i], name) == 0)
            break;
    if (i == 3)
        return err_set(err, STATUS_BAD_INPUT, "%s: the prepend_scheme \"%.64s\" is not known",
                       what, name);
    *scheme = (enum prepend_scheme)i;
    if (add_prefix_space)
        return STATUS_OK;
    if (json_object_get(json, "prepend_scheme") != NULL && *scheme != PREPEND_NEVER)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: \"add_prefix_space\" is false, but \"prepend_scheme\" is \"%s\"", what,
                       name);
    *scheme = PREPEND_NEVER;
    return STATUS_OK;
}

static enum status init_byte_level(struct pretokenizer *step, const json_t *json, const char *what,
                                   struct err *err)
{
    bool use_regex = true;
    enum status st;

    step->add_prefix_space = true;
    st = json_get_bool(json, "add_prefix_space", what, &step->add_prefix_space, err);
    if (st == STATUS_OK)
        st = json_get_bool(json, "use_regex", what, &use_regex, err);
    if (st == STATUS_OK && use_regex)
        st = pattern_create(PATTERN_REGEX, GPT2_PATTERN, strlen(GPT2_PATTERN), what,
                            &step->pattern, err);
    return st;
}

static enum status init_metaspace(struct pretokenizer *step, const json_t *json, const char *what,
                                  struct err *err)
{
    enum status st;

    step->split = true;
    st = metaspace_read(json, what, step->replacement, &step->replacement_size, &step->scheme,
                        &step->split, err);
    if (st == STATUS_OK)
        st = pattern_create(PATTERN_STRING, step->replacement, step->replacement_size, what,
                            &step->pattern, err);
    return st;
}

static enum status init_split(struct pretokenizer *step, const json_t *json, const char *what,
                              struct err *err)
{
    enum status st;

    if (!json_is_string(json_object_get(json, "behavior")))
        return err_set(err, STATUS_BAD_INPUT, "%s: Split lacks \"behavior\"", what);
    st = read_behavior(json, what, &step->behavior, err);
    if (st == STATUS_OK)
        st = json_get_bool(json, "invert", what, &step->invert, err);
    if (st == STATUS_OK)
        st = pattern_create_json(json_object_get(json, "pattern"), what, &step->pattern, err);
    return st;
}

static enum status init_step(struct pretokenizer *step, const json_t *json, const char *what,
                             struct err *err)
{
    bool individual_digits = false;
    enum status st;

    switch (step->kind) {
    case PRETOKENIZER_BYTE_LEVEL: return init_byte_level(step, json, what, err);
    case PRETOKENIZER_METASPACE: return init_metaspace(step, json, what, err);
    case PRETOKENIZER_SPLIT: return init_split(step, json, what, err);
    case PRETOKENIZER_PUNCTUATION:
        step->behavior = SPLIT_ISOLATED;
        return read_behavior(json, what, &step->behavior, err);
    case PRETOKENIZER_DIGITS:
        st = json_get_bool(json, "individual_digits", what, &individual_digits, err);
        step->behavior = individual_digits ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
        return st;
    case PRETOKENIZER_WHITESPACE:
    case PRETOKENIZER_WHITESPACE_SPLIT: step->behavior = SPLIT_REMOVED; return STATUS_OK;
    }
    return STATUS_OK;
}

static enum status add_pretokenizer(void *context, const json_t *json, const char *type,
                                    const char *what, struct err *err)
{
    static const struct {
        const char *type;
        enum pretokenizer_kind kind;
    } types[] = {
        { "ByteLevel", PRETOKENIZER_BYTE_LEVEL },
        { "Split", PRETOKENIZER_SPLIT },
        { "Digits", PRETOKENIZER_DIGITS },
        { "Punctuation", PRETOKENIZER_PUNCTUATION },
        { "Whitespace", PRETOKENIZER_WHITESPACE },
        { "WhitespaceSplit", PRETOKENIZER_WHITESPACE_SPLIT },
        { "Metaspace", PRETOKENIZER_METASPACE },
    };
    struct pretokenizers *pretokenizers = context;
    size_t i;

    for (i = 0; i < sizeof(types) / sizeof(types[0]); i++)
        if (strcmp(types[i].type, type) == 0)
            break;
    if (i == sizeof(types) / sizeof(types[0]))
        return component_unsupported(what, type, err);
    if (pretokenizers->count == STEPS_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: more than %d steps", what, STEPS_MAX);
    pretokenizers->steps[pretokenizers->count] = (struct pretokenizer){ .kind = types[i].kind };
    return init_step(&pretokenizers->steps[pretokenizers->count++], json, what, err);
}

enum status pretokenizers_init(struct pretokenizers *pretokenizers, const json_t *json,
                               const char *what, struct err *err)
{
    return components_walk(json, "pretokenizers", what, add_pretokenizer, pretokenizers, err);
}

void pretokenizers_deinit(struct pretokenizers *pretokenizers)
{
    for (size_t i = 0; i < pretokenizers->count; i++)
        pattern_destroy(pretokenizers->steps[i].pattern);
    pretokenizers->count = 0;
}
