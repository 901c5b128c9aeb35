/* server/reply.c - what is answered, as JSON text: SGLang's shape of a generated text, and errors.
 *
 *     {"text": "...", "output_ids": [1, 2], "meta_info":
 *      {"id": ..., "finish_reason": {...} or null, "prompt_tokens": ..., ...}, "index": 0}
 *
 * Every event of a stream repeats the text from the start, as SGLang's do, so an answer keeps its
 * text and its ids as JSON text that only grows: a piece is escaped once, when it comes, and an
 * event is a copy. Source: SGLang, python/sglang/srt/managers/tokenizer_manager.py,
 * _handle_batch_output. */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"
#include "server/internal.h"

#define GARBAGE_WARNING                                                                            \
    "the model's weights have no contents (--offload-mode meta): the text means nothing"

enum status server__json_escape(struct buf *out, const char *text, size_t size, struct err *err)
{
    enum status st = buf_reserve(out, out->size + size, err);
    size_t plain = 0; /* where the bytes that need no escape began */

    if (size == 0)
        return st;
    for (size_t at = 0; at < size && st == STATUS_OK;) {
        const unsigned char c = (unsigned char)text[at];
        uint32_t code_point;
        bool valid = true;
        size_t used = 1;
        if (c >= 0x80)
            used = utf8_decode(text + at, size - at, &code_point, &valid);
        if (valid && c >= 0x20 && c != '"' && c != '\\') {
            at += used;
            continue;
        }
        st = buf_append(out, text + plain, at - plain, err);
        if (st == STATUS_OK)
            st = !valid                    ? buf_append(out, "\xEF\xBF\xBD", 3, err)
                 : c == '\n'               ? buf_append(out, "\\n", 2, err)
                 : c == '"' || c == '\\'   ? buf_printf(out, err, "\\%c", c)
                                           : buf_printf(out, err, "\\u%04x", c);
        at += used;
        plain = at;
    }
    return st != STATUS_OK ? st : buf_append(out, text + plain, size - plain, err);
}

/* Takes over what a last piece says beside text and ids. */
static enum status end_answer(struct answer *answer, const struct engine_output *output,
                              struct err *err)
{
    const char *detail = NULL;

    answer->finish = output->finish;
    answer->status = output->status;
    answer->matched_id = output->matched_id;
    if (output->finish == FINISH_STOP)
        detail = output->matched_text;
    else if (output->finish == FINISH_ABORT)
        detail = output->message;
    if (detail == NULL)
        return STATUS_OK;
    return buf_append(&answer->detail, detail, strlen(detail), err);
}

enum status server__answer_append(struct answer *answer, const struct engine_output *output,
                                  struct err *err)
{
    enum status st = STATUS_OK;

    if (output->text_size > 0)
        st = server__json_escape(&answer->text_json, output->text, output->text_size, err);
    for (size_t i = 0; i < output->id_count && st == STATUS_OK; i++)
        st = buf_printf(&answer->ids_json, err, "%s%" PRId32, answer->ids_json.size > 0 ? ", " : "",
                        output->ids[i]);
    answer->prompt_token_count = output->prompt_token_count;
    answer->completion_token_count = output->completion_token_count;
    answer->queue_s = output->queue_s;
    answer->e2e_s = output->e2e_s;
    answer->garbage = output->garbage;
    answer->dp_rank = output->dp_rank;
    if (output->weight_version != NULL)
        (void)snprintf(answer->weight_version, sizeof(answer->weight_version), "%s",
                       output->weight_version);
    answer->news = true;
    if (st == STATUS_OK && output->finish != FINISH_NONE)
        st = end_answer(answer, output, err);
    return st;
}

static enum status write_escaped(struct buf *out, const char *text, struct err *err)
{
    enum status st = buf_append(out, "\"", 1, err);

    if (st == STATUS_OK)
        st = server__json_escape(out, text, strlen(text), err);
    return st != STATUS_OK ? st : buf_append(out, "\"", 1, err);
}

static enum status write_finish_reason(const struct answer *answer, struct buf *out,
                                       struct err *err)
{
    const char *detail = answer->detail.data != NULL ? answer->detail.data : "";
    enum status st = STATUS_OK;

    switch (answer->finish) {
    case FINISH_NONE: return buf_printf(out, err, "null");
    case FINISH_LENGTH:
        return buf_printf(out, err, "{\"type\": \"length\", \"length\": %" PRIu64 "}",
                          answer->completion_token_count);
    case FINISH_EOS:
        return buf_printf(out, err, "{\"type\": \"stop\", \"matched\": %" PRId32 "}",
                          answer->matched_id);
    case FINISH_STOP:
        st = buf_printf(out, err, "{\"type\": \"stop\", \"matched\": ");
        if (st == STATUS_OK)
            st = write_escaped(out, detail, err);
        return st != STATUS_OK ? st : buf_printf(out, err, "}");
    case FINISH_ABORT:
        st = buf_printf(out, err, "{\"type\": \"abort\", \"message\": ");
        if (st == STATUS_OK)
            st = write_escaped(out, detail, err);
        if (st == STATUS_OK)
            st = buf_printf(out, err, ", \"status_code\": %u}",
                            server__status_code(answer->status));
        return st;
    }
    assert(false);
    return STATUS_OK;
}

static enum status write_meta(const struct answer *answer, struct buf *out, struct err *err)
{
    enum status st = buf_printf(out, err, "{\"id\": ");

    if (st == STATUS_OK)
        st = write_escaped(out, answer->rid, err);
    if (st == STATUS_OK)
        st = buf_printf(out, err, ", \"finish_reason\": ");
    if (st == STATUS_OK)
        st = write_finish_reason(answer, out, err);
    if (st == STATUS_OK)
        st = buf_printf(out, err, ", \"prompt_tokens\": %" PRIu64 ", \"weight_version\": ",
                        answer->prompt_token_count);
    if (st == STATUS_OK)
        st = write_escaped(out, answer->weight_version[0] != '\0' ? answer->weight_version
                                                                  : "default", err);
    if (st == STATUS_OK)
        st = buf_printf(out, err,
                        ", \"completion_tokens\": %" PRIu64 ", \"cached_tokens\": 0"
                        ", \"dp_rank\": %" PRIu32,
                        answer->completion_token_count, answer->dp_rank);
    if (st == STATUS_OK && answer->finish != FINISH_NONE)
        st = buf_printf(out, err, ", \"queue_time\": %.6f, \"e2e_latency\": %.6f", answer->queue_s,
                        answer->e2e_s);
    if (st == STATUS_OK && answer->garbage)
        st = buf_printf(out, err, ", \"garbage\": true, \"warning\": \"" GARBAGE_WARNING "\"");
    return st != STATUS_OK ? st : buf_printf(out, err, "}");
}

enum status server__answer_write(const struct answer *answer, const struct answer_style *style,
                                 struct buf *out, struct err *err)
{
    enum status st = buf_printf(out, err, "{");

    if (st == STATUS_OK && style->has_text) {
        st = buf_printf(out, err, "\"text\": \"");
        if (st == STATUS_OK)
            st = buf_append(out, answer->text_json.data, answer->text_json.size, err);
        if (st == STATUS_OK)
            st = buf_printf(out, err, "\", ");
    }
    if (st == STATUS_OK)
        st = buf_printf(out, err, "\"output_ids\": [");
    if (st == STATUS_OK)
        st = buf_append(out, answer->ids_json.data, answer->ids_json.size, err);
    if (st == STATUS_OK)
        st = buf_printf(out, err, "], \"meta_info\": ");
    if (st == STATUS_OK)
        st = write_meta(answer, out, err);
    if (st == STATUS_OK && style->has_index)
        st = buf_printf(out, err, ", \"index\": %zu", answer->index);
    return st != STATUS_OK ? st : buf_printf(out, err, "}");
}

enum status server__error_write(unsigned code, const char *type, const char *message,
                                struct buf *out, struct err *err)
{
    enum status st = buf_printf(out, err, "{\"error\": {\"message\": ");

    if (st == STATUS_OK)
        st = write_escaped(out, message, err);
    if (st == STATUS_OK)
        st = buf_printf(out, err, ", \"type\": ");
    if (st == STATUS_OK)
        st = write_escaped(out, type, err);
    return st != STATUS_OK ? st : buf_printf(out, err, ", \"code\": %u}}", code);
}

unsigned server__status_code(enum status status)
{
    switch (status) {
    case STATUS_OK: return 200;
    case STATUS_BAD_INPUT: return 400;
    case STATUS_NO_MEMORY:
    case STATUS_UNAVAILABLE:
    case STATUS_BUSY:
    case STATUS_CANCELED: return 503;
    case STATUS_IO:
    case STATUS_DEVICE:
    case STATUS_PEER: return 500;
    }
    return 500;
}
