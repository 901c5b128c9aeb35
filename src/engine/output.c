/* engine/output.c - from ids to text, up to a stop string.
 *
 * Text comes in pieces of whole characters, and a stop string may begin in one and end in another.
 * Each stop string has a Knuth-Morris-Pratt automaton (SIAM J. Comput. 6, 1977) whose state is how
 * many of its bytes end the text so far. The largest of these states is what must be held back: it
 * could be the beginning of a stop string, and anything before it cannot.
 *
 *     told already | released: may be told | held back
 *                  +---- `text` -----------+- `pending` -
 *
 * The string that is complete first ends the answer; of several that end at the same byte, the
 * longest, so that nothing of them is left in the text. Bytes are looked at one by one, so the
 * result does not depend on how the text was cut into ids. Stop strings and pieces are valid
 * UTF-8, so a held part begins where a character does. */
#include "engine/internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_BYTES_MAX ((size_t)256 << 20) /* of one answer */
#define TEXT_RESERVED_BYTES_MAX ((size_t)64 << 10)
#define TOKEN_RESERVED_BYTES 8 /* a token is 4 bytes of English; more is taken when it is needed */

/* Fills border[size] for text[size]. */
static void find_borders(const char *text, uint32_t size, uint16_t *border)
{
    uint32_t length = 0;

    border[0] = 0;
    for (uint32_t i = 1; i < size; i++) {
        while (length > 0 && text[i] != text[length])
            length = border[length - 1];
        if (text[i] == text[length])
            length++;
        border[i] = (uint16_t)length;
    }
}

enum status engine__output_init(struct engine__output *output,
                                const struct sampling_params *params,
                                const struct tokenizer *tokenizer, struct err *err)
{
    size_t bytes = 0;
    uint16_t *borders;
    char *texts;

    *output = (struct engine__output){ .keep_stop = params->no_stop_trim };
    buf_init(&output->pending, TEXT_BYTES_MAX);
    buf_init(&output->text, TEXT_BYTES_MAX);
    if (params->stop_count == 0)
        return STATUS_OK;
    if (tokenizer == NULL)
        return err_set(err, STATUS_BAD_INPUT,
                       "sampling_params: \"stop\" needs a tokenizer, and this model has none");
    for (size_t i = 0; i < params->stop_count; i++)
        bytes += strlen(params->stop[i]) + 1;
    borders = malloc(bytes * (sizeof(*borders) + 1));
    if (borders == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu stop strings",
                       params->stop_count);
    output->stop_memory = borders;
    texts = (char *)(borders + bytes);
    for (size_t i = 0; i < params->stop_count; i++) {
        const size_t size = strlen(params->stop[i]);
        assert(size > 0 && size <= ENGINE_STOP_STRING_BYTES_MAX);
        memcpy(texts, params->stop[i], size + 1);
        find_borders(texts, (uint32_t)size, borders);
        output->stops[i] = (struct engine__stop){ .text = texts, .border = borders,
                                                  .size = (uint32_t)size };
        texts += size + 1;
        borders += size;
    }
    output->stop_count = params->stop_count;
    return STATUS_OK;
}

void engine__output_deinit(struct engine__output *output)
{
    tokenizer_stream_destroy(output->stream);
    buf_deinit(&output->pending);
    buf_deinit(&output->text);
    free(output->stop_memory);
    *output = (struct engine__output){ 0 };
}

enum status engine__output_start(struct engine__output *output,
                                 const struct sampling_params *params,
                                 const struct tokenizer *tokenizer, bool token_by_token,
                                 struct err *err)
{
    size_t reserved = TEXT_RESERVED_BYTES_MAX;
    enum status st;

    if (tokenizer == NULL)
        return STATUS_OK;
    output->id_limit = (int32_t)tokenizer_id_limit(tokenizer);
    if (token_by_token)
        reserved = ENGINE_STOP_STRING_BYTES_MAX;
    else if (params->max_new_tokens < (int64_t)(reserved / TOKEN_RESERVED_BYTES))
        reserved = (size_t)params->max_new_tokens * TOKEN_RESERVED_BYTES;
    st = buf_reserve(&output->text, reserved, err);
    if (st == STATUS_OK)
        st = buf_reserve(&output->pending, 2 * ENGINE_STOP_STRING_BYTES_MAX, err);
    if (st == STATUS_OK)
        st = tokenizer_stream_create(tokenizer, params->skip_special_tokens, &output->stream, err);
    return st;
}

static void stop_step(struct engine__stop *stop, char byte)
{
    while (stop->matched > 0 && stop->text[stop->matched] != byte)
        stop->matched = stop->border[stop->matched - 1];
    if (stop->text[stop->matched] == byte)
        stop->matched++;
}

/* Moves pending[0..release) to text. */
static enum status release(struct engine__output *output, size_t size, struct err *err)
{
    enum status st = buf_append(&output->text, output->pending.data, size, err);

    if (st != STATUS_OK)
        return st;
    memmove(output->pending.data, output->pending.data + size, output->pending.size - size);
    output->pending.size -= size;
    output->pending.data[output->pending.size] = '\0';
    return STATUS_OK;
}

/* Runs pending[first..) through the stops and releases what can be. */
static enum status match(struct engine__output *output, size_t first, const char **stop_out,
                         struct err *err)
{
    const struct buf *pending = &output->pending;
    size_t held = 0;

    for (size_t i = first; i < pending->size; i++) {
        const struct engine__stop *complete = NULL;

        held = 0;
        for (size_t j = 0; j < output->stop_count; j++) {
            struct engine__stop *stop = &output->stops[j];
            stop_step(stop, pending->data[i]);
            if (stop->matched == stop->size && (complete == NULL || stop->size > complete->size))
                complete = stop;
            if (stop->matched > held)
                held = stop->matched;
        }
        if (complete != NULL) {
            *stop_out = complete->text;
            return release(output, output->keep_stop ? pending->size : i + 1 - complete->size,
                           err);
        }
    }
    if (pending->size == 0)
        return STATUS_OK;
    return release(output, first == pending->size ? 0 : pending->size - held, err);
}

enum status engine__output_push(struct engine__output *output, int32_t id, const char **stop_out,
                                struct err *err)
{
    const size_t first = output->pending.size;
    enum status st;

    *stop_out = NULL;
    /* Models pad their vocabulary; an id that no token has is written as nothing. */
    if (output->stream == NULL || id >= output->id_limit)
        return STATUS_OK;
    st = tokenizer_stream_push(output->stream, id,
                               output->stop_count == 0 ? &output->text : &output->pending, err);
    if (st == STATUS_BAD_INPUT)
        return STATUS_OK; /* a hole in the vocabulary: the same */
    if (st != STATUS_OK)
        return st;
    return match(output, first, stop_out, err);
}

enum status engine__output_finish(struct engine__output *output, const char **stop_out,
                                  struct err *err)
{
    const size_t first = output->pending.size;
    enum status st;

    *stop_out = NULL;
    if (output->stream == NULL || output->finished)
        return STATUS_OK;
    output->finished = true;
    st = tokenizer_stream_finish(output->stream,
                                 output->stop_count == 0 ? &output->text : &output->pending, err);
    if (st == STATUS_OK)
        st = match(output, first, stop_out, err);
    if (st == STATUS_OK && *stop_out == NULL && output->pending.size > 0)
        st = release(output, output->pending.size, err);
    return st;
}
