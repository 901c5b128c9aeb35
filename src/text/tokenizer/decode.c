/* text/tokenizer/decode.c - reading the decoder, and decoding all ids at once.
 *
 * Decoding is done by stream.c alone: all at once is one id after the other, then the end. So the
 * two cannot differ. */
#include "text/tokenizer/internal.h"

#include <string.h>

#include "base/json.h"

static const struct {
    const char *type;
    enum decoder_kind kind;
} decoder_types[] = {
    { "ByteLevel", DECODER_BYTE_LEVEL }, { "Replace", DECODER_REPLACE },
    { "ByteFallback", DECODER_BYTE_FALLBACK }, { "Fuse", DECODER_FUSE },
    { "Strip", DECODER_STRIP }, { "Metaspace", DECODER_METASPACE },
};

static enum status init_strip(struct decoder *step, const json_t *json, const char *what,
                              struct err *err)
{
    int64_t start = 0;
    int64_t stop = 0;
    enum status st = character_read(json, "content", what, step->character,
                                    &step->character_size, err);

    if (st == STATUS_OK)
        st = json_get_int_required(json, "start", what, 0, INT32_MAX, &start, err);
    if (st == STATUS_OK)
        st = json_get_int_required(json, "stop", what, 0, INT32_MAX, &stop, err);
    step->strip_start = (size_t)start;
    step->strip_stop = (size_t)stop;
    return st;
}

static enum status init_step(struct decoder *step, const json_t *json, const char *what,
                             struct err *err)
{
    enum prepend_scheme scheme = PREPEND_ALWAYS;
    bool split = true;
    enum status st = STATUS_OK;

    switch (step->kind) {
    case DECODER_REPLACE:
        st = string_read(json, "content", what, CONTENT_BYTES_MAX, &step->content, err);
        if (st == STATUS_OK)
            st = pattern_create_json(json_object_get(json, "pattern"), what, &step->pattern, err);
        return st;
    case DECODER_STRIP: return init_strip(step, json, what, err);
    case DECODER_METASPACE:
        st = metaspace_read(json, what, step->character, &step->character_size, &scheme, &split,
                            err);
        step->strips_first = scheme != PREPEND_NEVER;
        return st;
    default: return STATUS_OK;
    }
}

static enum status add_decoder(void *context, const json_t *json, const char *type,
                               const char *what, struct err *err)
{
    struct decoders *decoders = context;
    struct decoder *step = &decoders->steps[decoders->count];
    size_t i;

    for (i = 0; i < sizeof(decoder_types) / sizeof(decoder_types[0]); i++)
        if (strcmp(decoder_types[i].type, type) == 0)
            break;
    if (i == sizeof(decoder_types) / sizeof(decoder_types[0]))
        return component_unsupported(what, type, err);
    if (decoders->count == STEPS_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: more than %d steps", what, STEPS_MAX);
    *step = (struct decoder){ .kind = decoder_types[i].kind };
    if (decoders->count > 0)
        step->is_fused = step[-1].is_fused || step[-1].kind == DECODER_FUSE ||
                         step[-1].kind == DECODER_BYTE_LEVEL;
    decoders->count++;
    return init_step(step, json, what, err);
}

enum status decoders_init(struct decoders *decoders, const json_t *json, const char *what,
                          struct err *err)
{
    enum status st = components_walk(json, "decoders", what, add_decoder, decoders, err);

    if (st == STATUS_OK && (json == NULL || json_is_null(json)))
        decoders->steps[decoders->count++] =
            (struct decoder){ .kind = DECODER_JOIN_WITH_SPACES };
    return st;
}

void decoders_deinit(struct decoders *decoders)
{
    for (size_t i = 0; i < decoders->count; i++) {
        pattern_destroy(decoders->steps[i].pattern);
        string_deinit(&decoders->steps[i].content);
    }
    decoders->count = 0;
}

enum status tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, size_t count,
                             bool skip_special, struct buf *text_out, struct err *err)
{
    const size_t size_before = text_out->size;
    struct tokenizer_stream *stream;
    enum status st = tokenizer_stream_create(tokenizer, skip_special, &stream, err);

    if (st != STATUS_OK)
        return st;
    for (size_t i = 0; i < count && st == STATUS_OK; i++)
        st = tokenizer_stream_push(stream, ids[i], text_out, err);
    if (st == STATUS_OK)
        st = tokenizer_stream_finish(stream, text_out, err);
    if (st != STATUS_OK && text_out->data != NULL) {
        text_out->size = size_before;
        text_out->data[size_before] = '\0';
    }
    tokenizer_stream_destroy(stream);
    return st;
}
