/* text/tokenizer/stream.c - ids into text, one id at a time.
 *
 * The decoder is a chain of steps over a list of tokens. Here each step is a machine that takes its
 * tokens in fragments and hands on what can no longer change:
 *
 *   id --> token --feed--> step 0 --feed--> step 1 --feed--> ... --> text
 *          then token_end -------> token_end -----> token_end
 *   finish ----------------------> finish --------> finish
 *
 * Fuse and ByteLevel make one token of all, so what follows them sees token_end only at the end. A
 * fragment is always whole characters. What a step must hold back:
 *   ByteLevel     up to three bytes of a character that is not complete
 *   ByteFallback  a run of byte tokens: one bad byte at its end turns all of it into U+FFFD
 *   Replace       the token; behind Fuse what may be the start of a match of a string, and for a
 *                 regular expression all
 *   Strip         characters that may turn out to be the last
 */
#include "text/tokenizer/internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

#define REPLACEMENT "\xEF\xBF\xBD"
#define BYTE_TOKEN_SIZE 6 /* <0x41> */

struct stage {
    struct buf held;        /* of the current token, or of the run of bytes */
    struct buf bytes;       /* ByteFallback: the run of byte tokens */
    struct pattern_scratch search;
    size_t token_index;
    size_t stripped;        /* Strip: characters taken off the start so far */
    size_t held_characters; /* Strip: that may be the last */
    bool is_inside;         /* Strip: something else came; ByteFallback: not a byte token */
};

struct tokenizer_stream {
    const struct tokenizer *tokenizer;
    bool skip_special;
    bool is_finished;
    struct buf *out; /* borrowed during a call */
    struct stage stages[STEPS_MAX];
};

static enum status feed(struct tokenizer_stream *stream, size_t index, const char *bytes,
                        size_t size, struct err *err);
static enum status token_end(struct tokenizer_stream *stream, size_t index, struct err *err);

static const struct decoder *step_of(const struct tokenizer_stream *stream, size_t index)
{
    return &stream->tokenizer->decoders.steps[index];
}

/* Takes the first `size` bytes out of a buf. */
static void drop_front(struct buf *buf, size_t size)
{
    assert(size <= buf->size);
    if (size == 0)
        return;
    memmove(buf->data, buf->data + size, buf->size - size);
    buf->size -= size;
    buf->data[buf->size] = '\0';
}

/* --- Replace ---------------------------------------------------------------------------------- */

/* Replaces in what is held, whole. */
static enum status replace_held(struct tokenizer_stream *stream, size_t index, struct err *err)
{
    const struct decoder *step = step_of(stream, index);
    struct stage *stage = &stream->stages[index];
    const char *text = stage->held.data != NULL ? stage->held.data : "";
    size_t done = 0;
    struct pattern_scan scan;
    enum status st = STATUS_OK;

    if (stage->held.size == 0)
        return STATUS_OK; /* the library does not look into an empty token */
    st = pattern_scan_begin(&scan, step->pattern, text, stage->held.size, &stage->search, err);
    while (st == STATUS_OK) {
        bool found;
        size_t start;
        size_t end;

        st = pattern_scan_next(&scan, &found, &start, &end, err);
        if (st != STATUS_OK || !found)
            break;
        if (start < done)
            start = done;
        st = feed(stream, index + 1, text + done, start - done, err);
        if (st == STATUS_OK)
            st = feed(stream, index + 1, step->content.bytes, step->content.size, err);
        done = end;
    }
    if (st == STATUS_OK)
        st = feed(stream, index + 1, text + done, stage->held.size - done, err);
    buf_clear(&stage->held);
    return st;
}

/* The longest end of text[size] with which the literal starts, less than the whole literal. */
static size_t partial_match(const char *text, size_t size, const char *literal,
                            size_t literal_size)
{
    size_t length = size < literal_size - 1 ? size : literal_size - 1;

    while (length > 0 && memcmp(text + size - length, literal, length) != 0)
        length--;
    return length;
}

/* Replaces a string as far as what has come decides it. */
static enum status replace_literal_stream(struct tokenizer_stream *stream, size_t index,
                                          struct err *err)
{
    const struct decoder *step = step_of(stream, index);
    struct buf *held = &stream->stages[index].held;
    size_t literal_size;
    const char *literal = pattern_literal(step->pattern, &literal_size);
    size_t done = 0;
    size_t kept;
    enum status st = STATUS_OK;

    while (st == STATUS_OK) {
        const char *match = memmem(held->data + done, held->size - done, literal, literal_size);
        if (match == NULL)
            break;
        st = feed(stream, index + 1, held->data + done, (size_t)(match - held->data) - done, err);
        if (st == STATUS_OK)
            st = feed(stream, index + 1, step->content.bytes, step->content.size, err);
        done = (size_t)(match - held->data) + literal_size;
    }
    if (st != STATUS_OK)
        return st;
    kept = partial_match(held->data + done, held->size - done, literal, literal_size);
    st = feed(stream, index + 1, held->data + done, held->size - kept - done, err);
    drop_front(held, held->size - kept);
    return st;
}

static enum status feed_replace(struct tokenizer_stream *stream, size_t index, const char *bytes,
                                size_t size, struct err *err)
{
    const struct decoder *step = step_of(stream, index);
    size_t literal_size;
    const char *literal = pattern_literal(step->pattern, &literal_size);
    enum status st = buf_append(&stream->stages[index].held, bytes, size, err);

    if (st == STATUS_OK && step->is_fused && literal != NULL && literal_size > 0)
        st = replace_literal_stream(stream, index, err);
    return st;
}

/* --- ByteFallback ----------------------------------------------------------------------------- */

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The byte of "<0x41>"; -1: not such a token. Rust reads "<0x+A>" as one too. */
static int byte_of_token(const char *token, size_t size)
{
    int high;
    int low;

    if (size != BYTE_TOKEN_SIZE || memcmp(token, "<0x", 3) != 0 || token[5] != '>')
        return -1;
    high = token[3] == '+' ? 0 : hex_digit(token[3]);
    low = hex_digit(token[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* Hands on the run of bytes: as text when it is UTF-8, else U+FFFD for each byte. */
static enum status flush_bytes(struct tokenizer_stream *stream, size_t index, struct err *err)
{
    struct buf *bytes = &stream->stages[index].bytes;
    enum status st = STATUS_OK;

    if (bytes->size == 0)
        return STATUS_OK;
    if (utf8_is_valid(bytes->data, bytes->size)) {
        st = feed(stream, index + 1, bytes->data, bytes->size, err);
        if (st == STATUS_OK)
            st = token_end(stream, index + 1, err);
    } else {
        for (size_t i = 0; i < bytes->size && st == STATUS_OK; i++) {
            st = feed(stream, index + 1, REPLACEMENT, 3, err);
            if (st == STATUS_OK)
                st = token_end(stream, index + 1, err);
        }
    }
    buf_clear(bytes);
    return st;
}

/* The held start of the token is not a byte token: hands it on. */
static enum status pass_held(struct tokenizer_stream *stream, size_t index, struct err *err)
{
    struct stage *stage = &stream->stages[index];
    enum status st = flush_bytes(stream, index, err);

    stage->is_inside = true;
    if (st == STATUS_OK)
        st = feed(stream, index + 1, stage->held.data != NULL ? stage->held.data : "",
                  stage->held.size, err);
    buf_clear(&stage->held);
    return st;
}

static enum status feed_byte_fallback(struct tokenizer_stream *stream, size_t index,
                                      const char *bytes, size_t size, struct err *err)
{
    struct stage *stage = &stream->stages[index];
    enum status st;

    if (stage->is_inside)
        return feed(stream, index + 1, bytes, size, err);
    st = buf_append(&stage->held, bytes, size, err);
    if (st == STATUS_OK && stage->held.size > BYTE_TOKEN_SIZE)
        st = pass_held(stream, index, err);
    return st;
}

static enum status end_byte_fallback(struct tokenizer_stream *stream, size_t index,
                                     struct err *err)
{
    struct stage *stage = &stream->stages[index];
    enum status st = STATUS_OK;

    if (!stage->is_inside) {
        const int byte = byte_of_token(stage->held.data, stage->held.size);

        if (byte >= 0) {
            const char as_char = (char)byte;
            buf_clear(&stage->held);
            return buf_append(&stage->bytes, &as_char, 1, err);
        }
        st = pass_held(stream, index, err);
    }
    stage->is_inside = false;
    return st == STATUS_OK ? token_end(stream, index + 1, err) : st;
}

/* --- ByteLevel -------------------------------------------------------------------------------- */

/* Hands on the characters that are complete; at_end: the rest too, as U+FFFD. */
static enum status emit_characters(struct tokenizer_stream *stream, size_t index, bool at_end,
                                   struct err *err)
{
    struct buf *bytes = &stream->stages[index].bytes;
    const size_t tail = at_end ? 0 : utf8_incomplete_tail(bytes->data, bytes->size);
    const size_t size = bytes->size - tail;
    size_t good_start = 0;
    enum status st = STATUS_OK;

    for (size_t i = 0; i < size && st == STATUS_OK;) {
        uint32_t code_point;
        bool valid;
        const size_t length = utf8_decode(bytes->data + i, size - i, &code_point, &valid);

        if (!valid) {
            st = feed(stream, index + 1, bytes->data + good_start, i - good_start, err);
            if (st == STATUS_OK)
                st = feed(stream, index + 1, REPLACEMENT, 3, err);
            good_start = i + length;
        }
        i += length;
    }
    if (st == STATUS_OK)
        st = feed(stream, index + 1, bytes->data + good_start, size - good_start, err);
    drop_front(bytes, size);
    return st;
}

/* A token all of whose characters stand for bytes gives these bytes, another its own. */
static enum status end_byte_level(struct tokenizer_stream *stream, size_t index, struct err *err)
{
    struct stage *stage = &stream->stages[index];
    const size_t size_before = stage->bytes.size;
    enum status st = buf_reserve(&stage->bytes, size_before + stage->held.size, err);

    for (size_t i = 0; i < stage->held.size && st == STATUS_OK;) {
        uint32_t code_point;
        char byte;

        i += utf8_decode(stage->held.data + i, stage->held.size - i, &code_point, NULL);
        if (byte_level_byte(code_point) < 0) {
            stage->bytes.size = size_before;
            st = buf_append(&stage->bytes, stage->held.data, stage->held.size, err);
            break;
        }
        byte = (char)byte_level_byte(code_point);
        st = buf_append(&stage->bytes, &byte, 1, err);
    }
    buf_clear(&stage->held);
    if (st == STATUS_OK && stage->bytes.size > 0)
        st = emit_characters(stream, index, false, err);
    return st;
}

/* --- Strip and Metaspace ---------------------------------------------------------------------- */

/* Hands on all but the last `kept` of the held characters. */
static enum status release_characters(struct tokenizer_stream *stream, size_t index, size_t kept,
                                      struct err *err)
{
    const struct decoder *step = step_of(stream, index);
    struct stage *stage = &stream->stages[index];
    enum status st = STATUS_OK;

    for (; stage->held_characters > kept && st == STATUS_OK; stage->held_characters--)
        st = feed(stream, index + 1, step->character, step->character_size, err);
    return st;
}

static enum status feed_strip(struct tokenizer_stream *stream, size_t index, const char *bytes,
                              size_t size, struct err *err)
{
    const struct decoder *step = step_of(stream, index);
    struct stage *stage = &stream->stages[index];
    size_t other_start = 0; /* of a run of other characters */
    enum status st = STATUS_OK;

    for (size_t i = 0; i < size && st == STATUS_OK;) {
        uint32_t code_point;
        const size_t length = utf8_decode(bytes + i, size - i, &code_point, NULL);

        if (length != step->character_size || memcmp(bytes + i, step->character, length) != 0) {
            stage->is_inside = true;
            st = release_characters(stream, index, 0, err);
            i += length;
            continue;
        }
        st = feed(stream, index + 1, bytes + other_start, i - other_start, err);
        i += length;
        other_start = i;
        if (!stage->is_inside && stage->stripped < step->strip_start) {
            stage->stripped++;
        } else if (st == STATUS_OK) {
            stage->held_characters++;
            st = release_characters(stream, index, step->strip_stop, err);
        }
    }
    return st == STATUS_OK ? feed(stream, index + 1, bytes + other_start, size - other_start, err)
                           : st;
}

static enum status end_strip(struct tokenizer_stream *stream, size_t index, struct err *err)
{
    struct stage *stage = &stream->stages[index];

    assert(stage->held_characters <= step_of(stream, index)->strip_stop);
    stage->held_characters = 0;
    stage->stripped = 0;
    stage->is_inside = false;
    return token_end(stream, index + 1, err);
}

static enum status feed_metaspace(struct tokenizer_stream *stream, size_t index,
                                  const char *bytes, size_t size, struct err *err)
{
    const struct decoder *step = step_of(stream, index);
    const bool drops = stream->stages[index].token_index == 0 && step->strips_first;
    enum status st = STATUS_OK;
    size_t done = 0;

    while (st == STATUS_OK) {
        const char *match = memmem(bytes + done, size - done, step->character,
                                   step->character_size);
        const size_t start = match == NULL ? size : (size_t)(match - bytes);

        st = feed(stream, index + 1, bytes + done, start - done, err);
        if (st != STATUS_OK || match == NULL)
            break;
        if (!drops)
            st = feed(stream, index + 1, " ", 1, err);
        done = start + step->character_size;
    }
    return st;
}

/* --- the chain -------------------------------------------------------------------------------- */

static enum status feed(struct tokenizer_stream *stream, size_t index, const char *bytes,
                        size_t size, struct err *err)
{
    if (size == 0)
        return STATUS_OK;
    if (index == stream->tokenizer->decoders.count)
        return buf_append(stream->out, bytes, size, err);
    switch (step_of(stream, index)->kind) {
    case DECODER_REPLACE: return feed_replace(stream, index, bytes, size, err);
    case DECODER_BYTE_FALLBACK: return feed_byte_fallback(stream, index, bytes, size, err);
    case DECODER_BYTE_LEVEL: return buf_append(&stream->stages[index].held, bytes, size, err);
    case DECODER_STRIP: return feed_strip(stream, index, bytes, size, err);
    case DECODER_METASPACE: return feed_metaspace(stream, index, bytes, size, err);
    case DECODER_FUSE:
    case DECODER_JOIN_WITH_SPACES: return feed(stream, index + 1, bytes, size, err);
    }
    return STATUS_OK;
}

static enum status token_end(struct tokenizer_stream *stream, size_t index, struct err *err)
{
    enum status st = STATUS_OK;

    if (index == stream->tokenizer->decoders.count)
        return STATUS_OK;
    switch (step_of(stream, index)->kind) {
    case DECODER_REPLACE:
        st = replace_held(stream, index, err);
        return st == STATUS_OK ? token_end(stream, index + 1, err) : st;
    case DECODER_BYTE_FALLBACK: return end_byte_fallback(stream, index, err);
    case DECODER_BYTE_LEVEL: return end_byte_level(stream, index, err);
    case DECODER_STRIP: return end_strip(stream, index, err);
    case DECODER_METASPACE:
        stream->stages[index].token_index++;
        return token_end(stream, index + 1, err);
    case DECODER_FUSE: return STATUS_OK;
    case DECODER_JOIN_WITH_SPACES: return token_end(stream, index + 1, err);
    }
    return STATUS_OK;
}

static enum status finish_stage(struct tokenizer_stream *stream, size_t index, struct err *err)
{
    enum status st = STATUS_OK;

    switch (step_of(stream, index)->kind) {
    case DECODER_BYTE_FALLBACK: return flush_bytes(stream, index, err);
    case DECODER_BYTE_LEVEL:
        if (stream->stages[index].bytes.size > 0)
            st = emit_characters(stream, index, true, err);
        return st == STATUS_OK ? token_end(stream, index + 1, err) : st;
    case DECODER_FUSE: return token_end(stream, index + 1, err);
    default: return STATUS_OK;
    }
}

enum status tokenizer_stream_create(const struct tokenizer *tokenizer, bool skip_special,
                                    struct tokenizer_stream **stream_out, struct err *err)
{
    struct tokenizer_stream *stream = calloc(1, sizeof(*stream));

    if (stream == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to decode");
    stream->tokenizer = tokenizer;
    stream->skip_special = skip_special;
    for (size_t i = 0; i < STEPS_MAX; i++) {
        buf_init(&stream->stages[i].held, TEXT_DECODED_MAX);
        buf_init(&stream->stages[i].bytes, TEXT_DECODED_MAX);
    }
    *stream_out = stream;
    return STATUS_OK;
}

void tokenizer_stream_destroy(struct tokenizer_stream *stream)
{
    if (stream == NULL)
        return;
    for (size_t i = 0; i < STEPS_MAX; i++) {
        buf_deinit(&stream->stages[i].held);
        buf_deinit(&stream->stages[i].bytes);
        pattern_scratch_deinit(&stream->stages[i].search);
    }
    free(stream);
}

enum status tokenizer_stream_push(struct tokenizer_stream *stream, int32_t id,
                                  struct buf *text_out, struct err *err)
{
    const struct added_token *added = added_by_id(&stream->tokenizer->added, id);
    size_t size;
    const char *token = tokenizer_token(stream->tokenizer, id, &size);
    enum status st = STATUS_OK;

    assert(!stream->is_finished);
    if (token == NULL)
        return err_set(err, STATUS_BAD_INPUT, "%s: there is no token with the id %d",
                       stream->tokenizer->what, id);
    if (stream->skip_special && added != NULL && added->is_skipped)
        return STATUS_OK;
    stream->out = text_out;
    if (stream->tokenizer->decoders.count > 0 &&
        step_of(stream, 0)->kind == DECODER_JOIN_WITH_SPACES && stream->stages[0].token_index++ > 0)
        st = feed(stream, 1, " ", 1, err);
    if (st == STATUS_OK)
        st = feed(stream, 0, token, size, err);
    if (st == STATUS_OK)
        st = token_end(stream, 0, err);
    stream->out = NULL;
    return st;
}

enum status tokenizer_stream_finish(struct tokenizer_stream *stream, struct buf *text_out,
                                    struct err *err)
{
    enum status st = STATUS_OK;

    assert(!stream->is_finished);
    stream->is_finished = true;
    stream->out = text_out;
    for (size_t i = 0; i < stream->tokenizer->decoders.count && st == STATUS_OK; i++)
        st = finish_stage(stream, i, err);
    stream->out = NULL;
    return st;
}
