/* server/openai_reply.c - answers in OpenAI's shape.
 *
 *     whole    {"id", "object", "created", "model", "choices": [...], "usage": {...}}
 *     stream   the same with "delta" or "text" for what is new; the last chunk of a choice has its
 *              finish_reason; with include_usage one chunk more, without choices; then [DONE]
 *
 * The text of an answer is kept as JSON text that only grows (reply.c), so a chunk is what came
 * since the last one. Log probabilities are kept the same way: of a chat one list of objects, of a
 * completion four lists. Source: OpenAI's API reference
 * (https://platform.openai.com/docs/api-reference), and what its Python client parses. */
#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "server/internal.h"

#define LOGPROB_MIN (-9999.0) /* OpenAI's for what is hardly possible */

static enum status put(struct buf *out, const char *text, struct err *err)
{
    return buf_append(out, text, strlen(text), err);
}

static enum status put_quoted(struct buf *out, const char *text, size_t size, struct err *err)
{
    enum status st = put(out, "\"", err);

    if (st == STATUS_OK)
        st = server__json_escape(out, text, size, err);
    return st == STATUS_OK ? put(out, "\"", err) : st;
}

/* --- log probabilities ------------------------------------------------------------------------ */

/* The text of one id as it stands inside a text: what a second one of it adds. */
static void token_text(const struct tokenizer *tokenizer, int32_t id, struct buf *out)
{
    const int32_t twice[2] = { id, id };
    size_t once;

    buf_clear(out);
    if (tokenizer_decode(tokenizer, twice, 1, false, out, NULL) != STATUS_OK) {
        buf_clear(out);
        return; /* an id that no token has */
    }
    once = out->size;
    buf_clear(out);
    if (tokenizer_decode(tokenizer, twice, 2, false, out, NULL) != STATUS_OK || out->size < once) {
        buf_clear(out);
        return;
    }
    memmove(out->data, out->data + once, out->size - once);
    out->size -= once;
    out->data[out->size] = '\0';
}

static double shown(float logprob)
{
    return (double)logprob > LOGPROB_MIN ? (double)logprob : LOGPROB_MIN; /* NaN too */
}

/* {"token": ..., "logprob": ..., "bytes": [...] -- the caller closes it */
static enum status put_token(struct buf *out, const struct buf *text, float logprob,
                             struct err *err)
{
    enum status st = put(out, "{\"token\": ", err);

    if (st == STATUS_OK)
        st = put_quoted(out, text->size > 0 ? text->data : "", text->size, err);
    if (st == STATUS_OK)
        st = buf_printf(out, err, ", \"logprob\": %.9g, \"bytes\": [", shown(logprob));
    for (size_t i = 0; i < text->size && st == STATUS_OK; i++)
        st = buf_printf(out, err, "%s%u", i > 0 ? ", " : "", (unsigned char)text->data[i]);
    return st == STATUS_OK ? put(out, "]", err) : st;
}

static enum status put_comma(struct buf *list, struct err *err)
{
    return list->size > 0 ? put(list, ", ", err) : STATUS_OK;
}

static enum status append_chat(struct answer *answer, int32_t id, const struct token_logprobs *said,
                               struct buf *text, struct err *err)
{
    const struct tokenizer *tokenizer = answer->call->tokenizer;
    struct buf *list = &answer->logprobs_json[0];
    enum status st = put_comma(list, err);

    token_text(tokenizer, id, text);
    if (st == STATUS_OK)
        st = put_token(list, text, said->logprob, err);
    if (st == STATUS_OK)
        st = put(list, ", \"top_logprobs\": [", err);
    for (uint32_t i = 0; i < said->top_count && st == STATUS_OK; i++) {
        token_text(tokenizer, said->top[i].id, text);
        if (i > 0)
            st = put(list, ", ", err);
        if (st == STATUS_OK)
            st = put_token(list, text, said->top[i].logprob, err);
        if (st == STATUS_OK)
            st = put(list, "}", err);
    }
    return st == STATUS_OK ? put(list, "]}", err) : st;
}

static size_t character_count(const struct buf *text)
{
    size_t count = 0;

    for (size_t i = 0; i < text->size; i++)
        count += ((unsigned char)text->data[i] & 0xc0) != 0x80;
    return count;
}

/* tokens, token_logprobs, top_logprobs, text_offset */
static enum status append_completion(struct answer *answer, int32_t id,
                                     const struct token_logprobs *said, struct buf *text,
                                     struct err *err)
{
    const struct tokenizer *tokenizer = answer->call->tokenizer;
    struct buf *lists = answer->logprobs_json;
    enum status st = STATUS_OK;
    size_t count;

    for (size_t i = 0; i < SERVER_LOGPROB_LISTS && st == STATUS_OK; i++)
        st = put_comma(&lists[i], err);
    token_text(tokenizer, id, text);
    count = character_count(text);
    if (st == STATUS_OK)
        st = put_quoted(&lists[0], text->size > 0 ? text->data : "", text->size, err);
    if (st == STATUS_OK)
        st = buf_printf(&lists[1], err, "%.9g", shown(said->logprob));
    if (st == STATUS_OK)
        st = put(&lists[2], "{", err);
    for (uint32_t i = 0; i < said->top_count && st == STATUS_OK; i++) {
        if (i > 0)
            st = put(&lists[2], ", ", err);
        token_text(tokenizer, said->top[i].id, text);
        if (st == STATUS_OK)
            st = put_quoted(&lists[2], text->size > 0 ? text->data : "", text->size, err);
        if (st == STATUS_OK)
            st = buf_printf(&lists[2], err, ": %.9g", shown(said->top[i].logprob));
    }
    if (st == STATUS_OK)
        st = put(&lists[2], "}", err);
    if (st == STATUS_OK)
        st = buf_printf(&lists[3], err, "%zu", answer->text_offset);
    answer->text_offset += count;
    return st;
}

enum status server__openai_append(struct answer *answer, const struct engine_output *output,
                                  struct err *err)
{
    /* The id that ended the answer is no part of its text. */
    const size_t count = output->id_count - (output->finish == FINISH_EOS && output->id_count > 0);
    struct buf text;
    enum status st = STATUS_OK;

    buf_init(&text, SERVER_ANSWER_BYTES_MAX);
    for (size_t i = 0; i < count && st == STATUS_OK; i++)
        st = answer->call->openai.is_chat
                 ? append_chat(answer, output->ids[i], &output->logprobs[i], &text, err)
                 : append_completion(answer, output->ids[i], &output->logprobs[i], &text, err);
    buf_deinit(&text);
    return st;
}

/* What is new of a list since `from`. */
static enum status put_list(const struct buf *list, size_t from, struct buf *out, struct err *err)
{
    if (from > 0 && list->size > from)
        from += 2; /* the comma */
    return list->size > from ? buf_append(out, list->data + from, list->size - from, err)
                             : STATUS_OK;
}

static enum status put_logprobs(const struct answer *answer, struct buf *out, struct err *err)
{
    static const char *const names[] = { "tokens", "token_logprobs", "top_logprobs",
                                         "text_offset" };
    const bool is_chat = answer->call->openai.is_chat;
    const size_t count = is_chat ? 1 : SERVER_LOGPROB_LISTS;
    enum status st = put(out, ", \"logprobs\": ", err);

    if (st == STATUS_OK && !answer->call->openai.has_logprobs)
        return put(out, "null", err);
    for (size_t i = 0; i < count && st == STATUS_OK; i++) {
        st = buf_printf(out, err, "%s\"%s\": [", i == 0 ? "{" : ", ",
                        is_chat ? "content" : names[i]);
        if (st == STATUS_OK)
            st = put_list(&answer->logprobs_json[i], answer->logprobs_sent[i], out, err);
        if (st == STATUS_OK)
            st = put(out, "]", err);
    }
    return st == STATUS_OK ? put(out, is_chat ? ", \"refusal\": null}" : "}", err) : st;
}

/* --- choices ---------------------------------------------------------------------------------- */

static const char *finish_name(const struct answer *answer)
{
    switch (answer->finish) {
    case FINISH_NONE: return "null";
    case FINISH_LENGTH: return "\"length\"";
    default: return "\"stop\"";
    }
}

static enum status put_head(const struct call *call, const char *object, struct buf *out,
                            struct err *err)
{
    const struct openai_style *style = &call->openai;
    enum status st = buf_printf(out, err, "{\"id\": \"%s\", \"object\": \"%s\", \"created\": %"
                                PRId64 ", \"model\": ", style->id, object, style->created_s);

    if (st == STATUS_OK)
        st = put_quoted(out, call->model_name, strlen(call->model_name), err);
    return st == STATUS_OK ? put(out, ", \"choices\": [", err) : st;
}

static enum status put_text(const struct answer *answer, size_t from, struct buf *out,
                            struct err *err)
{
    enum status st = put(out, "\"", err);

    if (st == STATUS_OK && answer->text_json.size > from)
        st = buf_append(out, answer->text_json.data + from, answer->text_json.size - from, err);
    return st == STATUS_OK ? put(out, "\"", err) : st;
}

static enum status put_usage(const struct call *call, struct buf *out, struct err *err)
{
    uint64_t prompt = 0;
    uint64_t completion = 0;

    for (size_t i = 0; i < call->answer_count; i++) {
        completion += call->answers[i].completion_token_count;
        if (i % call->openai.choice_count == 0) /* the choices of a prompt share it */
            prompt += call->answers[i].prompt_token_count;
    }
    return buf_printf(out, err, "\"usage\": {\"prompt_tokens\": %" PRIu64
                      ", \"completion_tokens\": %" PRIu64 ", \"total_tokens\": %" PRIu64 "}",
                      prompt, completion, prompt + completion);
}

static enum status put_choice(const struct answer *answer, struct buf *out, struct err *err)
{
    const bool is_chat = answer->call->openai.is_chat;
    enum status st = buf_printf(out, err, "%s{\"index\": %zu, %s", answer->index > 0 ? ", " : "",
                                answer->index, is_chat ? "\"message\": {\"role\": \"assistant\", "
                                                         "\"content\": " : "\"text\": ");

    if (st == STATUS_OK)
        st = put_text(answer, 0, out, err);
    if (st == STATUS_OK && is_chat)
        st = put(out, ", \"refusal\": null}", err);
    if (st == STATUS_OK)
        st = put_logprobs(answer, out, err);
    return st == STATUS_OK ? buf_printf(out, err, ", \"finish_reason\": %s}", finish_name(answer))
                           : st;
}

enum status server__openai_write(const struct call *call, struct buf *out, struct err *err)
{
    enum status st = put_head(call, call->openai.is_chat ? "chat.completion" : "text_completion",
                              out, err);

    for (size_t i = 0; i < call->answer_count && st == STATUS_OK; i++)
        st = put_choice(&call->answers[i], out, err);
    if (st == STATUS_OK)
        st = put(out, "], ", err);
    if (st == STATUS_OK)
        st = put_usage(call, out, err);
    return st == STATUS_OK ? put(out, "}", err) : st;
}

/* --- streams ---------------------------------------------------------------------------------- */

static enum status begin_chunk(const struct call *call, struct buf *out, struct err *err)
{
    enum status st = put(out, "data: ", err);

    return st == STATUS_OK ? put_head(call, call->openai.is_chat ? "chat.completion.chunk"
                                                                 : "text_completion", out, err)
                           : st;
}

static enum status end_chunk(const struct call *call, struct buf *out, struct err *err)
{
    return put(out, call->openai.include_usage ? "], \"usage\": null}\n\n" : "]}\n\n", err);
}

enum chunk { CHUNK_ROLE, CHUNK_TEXT, CHUNK_FINISH };

static enum status put_delta(const struct answer *answer, enum chunk chunk, struct buf *out,
                             struct err *err)
{
    enum status st;

    if (!answer->call->openai.is_chat)
        st = put(out, "\"text\": ", err);
    else if (chunk == CHUNK_FINISH)
        return put(out, "\"delta\": {}", err);
    else
        st = put(out, chunk == CHUNK_ROLE ? "\"delta\": {\"role\": \"assistant\", \"content\": "
                                          : "\"delta\": {\"content\": ", err);
    if (st == STATUS_OK)
        st = chunk == CHUNK_TEXT ? put_text(answer, answer->text_sent, out, err)
                                 : put(out, "\"\"", err);
    return st == STATUS_OK && answer->call->openai.is_chat ? put(out, "}", err) : st;
}

static enum status put_chunk(const struct answer *answer, enum chunk chunk, struct buf *out,
                             struct err *err)
{
    const struct call *call = answer->call;
    enum status st = begin_chunk(call, out, err);

    if (st == STATUS_OK)
        st = buf_printf(out, err, "{\"index\": %zu, ", answer->index);
    if (st == STATUS_OK)
        st = put_delta(answer, chunk, out, err);
    if (st == STATUS_OK)
        st = chunk == CHUNK_TEXT ? put_logprobs(answer, out, err)
                                 : put(out, ", \"logprobs\": null", err);
    if (st == STATUS_OK)
        st = buf_printf(out, err, ", \"finish_reason\": %s}",
                        chunk == CHUNK_FINISH ? finish_name(answer) : "null");
    return st == STATUS_OK ? end_chunk(call, out, err) : st;
}

static enum status put_failure(const struct answer *answer, struct buf *out, struct err *err)
{
    const char *message = answer->detail.size > 0 ? answer->detail.data
                                                  : "the request was aborted";
    enum status st = put(out, "data: ", err);

    if (st == STATUS_OK)
        st = server__openai_error_write(server__status_code(answer->status), message, out, err);
    return st == STATUS_OK ? put(out, "\n\n", err) : st;
}

enum status server__openai_events(struct answer *answer, struct buf *out, struct err *err)
{
    const bool is_chat = answer->call->openai.is_chat;
    bool has_more = answer->text_json.size > answer->text_sent;
    enum status st = STATUS_OK;

    for (size_t i = 0; i < SERVER_LOGPROB_LISTS; i++)
        has_more |= answer->logprobs_json[i].size > answer->logprobs_sent[i];
    if (is_chat && !answer->begun)
        st = put_chunk(answer, CHUNK_ROLE, out, err);
    answer->begun = true;
    if (st == STATUS_OK && has_more)
        st = put_chunk(answer, CHUNK_TEXT, out, err);
    answer->text_sent = answer->text_json.size;
    for (size_t i = 0; i < SERVER_LOGPROB_LISTS; i++)
        answer->logprobs_sent[i] = answer->logprobs_json[i].size;
    if (st != STATUS_OK || !answer->ended || answer->closed)
        return st;
    answer->closed = true;
    return answer->finish == FINISH_ABORT ? put_failure(answer, out, err)
                                          : put_chunk(answer, CHUNK_FINISH, out, err);
}

enum status server__openai_usage_event(const struct call *call, struct buf *out, struct err *err)
{
    enum status st = begin_chunk(call, out, err);

    if (st == STATUS_OK)
        st = put(out, "], ", err);
    if (st == STATUS_OK)
        st = put_usage(call, out, err);
    return st == STATUS_OK ? put(out, "}\n\n", err) : st;
}

/* --- errors ----------------------------------------------------------------------------------- */

static const char *error_type(unsigned code)
{
    return code >= 500 ? "server_error" : "invalid_request_error";
}

enum status server__openai_error_write(unsigned code, const char *message, struct buf *out,
                                       struct err *err)
{
    /* The field in question is the first word between quotes. */
    const char *begin = code == 400 ? strchr(message, '"') : NULL;
    size_t size = begin != NULL ? strcspn(begin + 1, "\"") : 0;
    bool is_name = begin != NULL && size > 0 && begin[1 + size] == '"' &&
                   strspn(begin + 1, "abcdefghijklmnopqrstuvwxyz_") == size;
    enum status st = put(out, "{\"error\": {\"message\": ", err);

    if (st == STATUS_OK)
        st = put_quoted(out, message, strlen(message), err);
    if (st == STATUS_OK)
        st = buf_printf(out, err, ", \"type\": \"%s\", \"param\": ", error_type(code));
    if (st == STATUS_OK)
        st = is_name ? put_quoted(out, begin + 1, size, err) : put(out, "null", err);
    if (st == STATUS_OK)
        st = buf_printf(out, err, ", \"code\": %s}}",
                        code == 404 && strstr(message, "model") != NULL ? "\"model_not_found\""
                        : code == 400 && strstr(message, "the model's context") != NULL
                            ? "\"context_length_exceeded\"" : "null");
    return st;
}
