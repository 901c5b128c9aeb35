/* text/tokenizer/normalize.c - rewriting a stretch of text before it is cut into pieces.
 *
 * `lead` follows what the library's alignments say of one thing only: how many bytes at the start
 * of the text belong to the first character of the whole input. What a step puts in before or in
 * place of that character belongs to it too. */
#include "text/tokenizer/internal.h"

#include <string.h>

#include "base/json.h"
#include "base/utf8.h"

/* --- opening ---------------------------------------------------------------------------------- */

static const struct {
    const char *type;
    enum normalizer_kind kind;
} normalizer_types[] = {
    { "Prepend", NORMALIZER_PREPEND },     { "Replace", NORMALIZER_REPLACE },
    { "NFC", NORMALIZER_NFC },             { "NFD", NORMALIZER_NFD },
    { "NFKC", NORMALIZER_NFKC },           { "NFKD", NORMALIZER_NFKD },
    { "Lowercase", NORMALIZER_LOWERCASE }, { "Strip", NORMALIZER_STRIP },
    { "StripAccents", NORMALIZER_STRIP_ACCENTS },
};

static enum status add_normalizer(void *context, const json_t *json, const char *type,
                                  const char *what, struct err *err)
{
    struct normalizers *normalizers = context;
    struct normalizer *step = &normalizers->steps[normalizers->count];
    enum status st = STATUS_OK;
    size_t i;

    for (i = 0; i < sizeof(normalizer_types) / sizeof(normalizer_types[0]); i++)
        if (strcmp(normalizer_types[i].type, type) == 0)
            break;
    if (i == sizeof(normalizer_types) / sizeof(normalizer_types[0]))
        return component_unsupported(what, type, err);
    if (normalizers->count == STEPS_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: more than %d steps", what, STEPS_MAX);
    normalizers->count++;
    *step = (struct normalizer){ .kind = normalizer_types[i].kind };
    switch (step->kind) {
    case NORMALIZER_PREPEND:
        return string_read(json, "prepend", what, CONTENT_BYTES_MAX, &step->content, err);
    case NORMALIZER_REPLACE:
        st = string_read(json, "content", what, CONTENT_BYTES_MAX, &step->content, err);
        if (st == STATUS_OK)
            st = pattern_create_json(json_object_get(json, "pattern"), what, &step->pattern, err);
        return st;
    case NORMALIZER_STRIP:
        step->left = step->right = true;
        st = json_get_bool(json, "strip_left", what, &step->left, err);
        if (st == STATUS_OK)
            st = json_get_bool(json, "strip_right", what, &step->right, err);
        return st;
    default:
        return STATUS_OK;
    }
}

enum status normalizers_init(struct normalizers *normalizers, const json_t *json, const char *what,
                             struct err *err)
{
    return components_walk(json, "normalizers", what, add_normalizer, normalizers, err);
}

void normalizers_deinit(struct normalizers *normalizers)
{
    for (size_t i = 0; i < normalizers->count; i++) {
        pattern_destroy(normalizers->steps[i].pattern);
        string_deinit(&normalizers->steps[i].content);
    }
    normalizers->count = 0;
}

/* --- the steps: from text to out -------------------------------------------------------------- */

static enum status prepend(const struct normalizer *step, const struct buf *text, size_t *lead,
                           struct buf *out, struct err *err)
{
    enum status st = buf_append(out, step->content.bytes, step->content.size, err);

    if (*lead > 0)
        *lead += step->content.size;
    return st == STATUS_OK ? buf_append(out, text->data, text->size, err) : st;
}

/* What comes in for a match belongs to the match's last character. */
static enum status replace(const struct normalizer *step, const struct buf *text, size_t *lead,
                           struct buf *out, struct err *err)
{
    const size_t lead_in = *lead;
    size_t lead_out = 0;
    size_t done = 0;
    struct pattern_scratch search = { 0 };
    struct pattern_scan scan;
    enum status st = pattern_scan_begin(&scan, step->pattern, text->data, text->size, &search, err);

    while (st == STATUS_OK) {
        bool found;
        size_t start;
        size_t end;

        st = pattern_scan_next(&scan, &found, &start, &end, err);
        if (st != STATUS_OK || !found)
            break;
        if (start < done) /* \K can make a match start before the last one's end */
            start = done;
        if (done < lead_in)
            lead_out = out->size + (start < lead_in ? start : lead_in) - done;
        st = buf_append(out, text->data + done, start - done, err);
        if (st == STATUS_OK)
            st = buf_append(out, step->content.bytes, step->content.size, err);
        if (end <= lead_in && lead_in > 0)
            lead_out = out->size;
        done = end;
    }
    pattern_scratch_deinit(&search);
    if (st == STATUS_OK && done < lead_in)
        lead_out = out->size + lead_in - done;
    *lead = lead_out;
    return st == STATUS_OK ? buf_append(out, text->data + done, text->size - done, err) : st;
}

static enum status lowercase(const struct buf *text, size_t *lead, struct buf *out,
                             struct err *err)
{
    const size_t lead_in = *lead;
    enum status st = buf_reserve(out, text->size, err);

    for (size_t i = 0; i < text->size && st == STATUS_OK;) {
        char bytes[4];
        uint32_t code_point;
        size_t size;

        i += utf8_decode(text->data + i, text->size - i, &code_point, NULL);
        if (code_point == 0x130) { /* the one character whose lower case is two */
            st = buf_append(out, "i\xCC\x87", 3, err);
        } else {
            size = utf8_encode(class_to_lower(code_point), bytes);
            st = buf_append(out, bytes, size, err);
        }
        if (i <= lead_in)
            *lead = out->size;
    }
    return st;
}

static enum status strip(const struct normalizer *step, const struct buf *text, size_t *lead,
                         struct buf *out, struct err *err)
{
    size_t start = 0;
    size_t end = text->size;
    size_t length;

    while (step->left && start < end) {
        uint32_t code_point;
        length = utf8_decode(text->data + start, end - start, &code_point, NULL);
        if (!class_is_space(code_point))
            break;
        start += length;
    }
    while (step->right && end > start && class_is_space(utf8_last(text->data, end, &length)))
        end -= length;
    *lead = *lead > start ? *lead - start : 0;
    if (*lead > end - start)
        *lead = end - start;
    return buf_append(out, text->data + start, end - start, err);
}

static enum status strip_accents(const struct buf *text, size_t *lead, struct buf *out,
                                 struct err *err)
{
    const size_t lead_in = *lead;
    enum status st = buf_reserve(out, text->size, err);

    *lead = 0;
    for (size_t i = 0; i < text->size && st == STATUS_OK;) {
        uint32_t code_point;
        const size_t length = utf8_decode(text->data + i, text->size - i, &code_point, NULL);

        if (!class_is_mark(code_point))
            st = buf_append(out, text->data + i, length, err);
        i += length;
        if (i <= lead_in)
            *lead = out->size;
    }
    return st;
}

static enum status normal_form(enum normalizer_kind kind, const struct buf *text, size_t *lead,
                               struct buf *out, struct err *err)
{
    enum status st = STATUS_OK;

    if (*lead > 0) { /* about right: marks that compose with the first character are not its own */
        st = unicode_normalize(kind, text->data, *lead, out, err);
        *lead = out->size;
        buf_clear(out);
    }
    if (st == STATUS_OK)
        st = unicode_normalize(kind, text->data, text->size, out, err);
    if (*lead > out->size)
        *lead = out->size;
    return st;
}

static enum status run_step(const struct normalizer *step, const struct buf *text, size_t *lead,
                            struct buf *out, struct err *err)
{
    switch (step->kind) {
    case NORMALIZER_PREPEND: return prepend(step, text, lead, out, err);
    case NORMALIZER_REPLACE: return replace(step, text, lead, out, err);
    case NORMALIZER_LOWERCASE: return lowercase(text, lead, out, err);
    case NORMALIZER_STRIP: return strip(step, text, lead, out, err);
    case NORMALIZER_STRIP_ACCENTS: return strip_accents(text, lead, out, err);
    case NORMALIZER_NFC:
    case NORMALIZER_NFD:
    case NORMALIZER_NFKC:
    case NORMALIZER_NFKD: return normal_form(step->kind, text, lead, out, err);
    }
    return STATUS_OK;
}

enum status normalizers_run(const struct normalizers *normalizers, struct buf *text, size_t *lead,
                            struct buf *scratch, struct err *err)
{
    for (size_t i = 0; i < normalizers->count && text->size > 0; i++) {
        struct buf swap;
        enum status st;

        buf_clear(scratch);
        st = run_step(&normalizers->steps[i], text, lead, scratch, err);
        if (st != STATUS_OK)
            return err_prefix(err, st, "normalising %zu bytes of text", text->size);
        swap = *text;
        *text = *scratch;
        *scratch = swap;
    }
    return STATUS_OK;
}
