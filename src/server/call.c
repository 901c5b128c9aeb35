/* server/call.c - the prompts of one HTTP request on their way through the engine.
 *
 *     call_create --+-- fleet_submit, once per prompt
 *                   |
 *     HTTP thread   |        connection suspended      resumed     suspended   resumed
 *     --------------+------> call_wait / call_read .............> ......
 *                                                   ^ wake
 *     engine's thread            on_output ---------+   on_output ...
 *
 * The connection and each prompt that the engine still has hold a reference; the last one frees. So
 * a client may leave, and the server stop, while the engine still winds up: its last callbacks find
 * the call's memory, and nothing else of the server's is touched by them.
 *
 * Waking: `suspended` is set and cleared under the call's lock, together with the libmicrohttpd
 * call that does it. A connection can't end while it is suspended, so whoever finds `suspended`
 * true may resume it. Nothing here blocks: libmicrohttpd's part is a flag and a write to an
 * eventfd. */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "server/internal.h"

static void call_free(struct call *call)
{
    for (size_t i = 0; i < call->answer_count; i++) {
        buf_deinit(&call->answers[i].text_json);
        buf_deinit(&call->answers[i].ids_json);
        for (size_t k = 0; k < SERVER_LOGPROB_LISTS; k++)
            buf_deinit(&call->answers[i].logprobs_json[k]);
        buf_deinit(&call->answers[i].detail);
    }
    free(call->answers);
    buf_deinit(&call->out);
    (void)pthread_mutex_destroy(&call->lock);
    free(call);
}

/* With call->lock held. */
static void wake(struct call *call)
{
    if (call->suspended) {
        call->suspended = false;
        MHD_resume_connection(call->connection);
    }
}

/* With call->lock held. */
static void suspend(struct call *call)
{
    assert(!call->suspended);
    call->suspended = true;
    MHD_suspend_connection(call->connection);
}

/* With call->lock held: nothing is left to wait for. */
static bool is_ready(const struct call *call)
{
    if (call->failure != STATUS_OK || call->ended_count == call->answer_count)
        return true;
    for (size_t i = 0; i < call->answer_count; i++) {
        if (call->answers[i].ended && call->answers[i].finish == FINISH_ABORT)
            return true;
    }
    return false;
}

/* Engine's thread, once per token of a stream: the piece is copied, and nothing waited for. */
static void on_output(void *user, const struct engine_output *output)
{
    struct answer *answer = user;
    struct call *call = answer->call;
    const bool last = output->finish != FINISH_NONE;
    enum status st = STATUS_OK;
    bool unused;

    (void)pthread_mutex_lock(&call->lock);
    assert(!answer->ended);
    if (!call->gone && call->failure == STATUS_OK)
        st = server__answer_append(answer, output, NULL);
    if (st == STATUS_OK && !call->gone && call->kind == CALL_OPENAI && output->logprobs != NULL)
        st = server__openai_append(answer, output, NULL);
    if (st != STATUS_OK)
        call->failure = st;
    if (last) {
        answer->ended = true;
        call->ended_count++;
        call->ref_count--;
    }
    if (call->stream || (last && is_ready(call)) || call->failure != STATUS_OK)
        wake(call);
    unused = call->ref_count == 0;
    (void)pthread_mutex_unlock(&call->lock);
    if (unused)
        call_free(call);
}

enum status server__tokenize(struct fleet *fleet, const struct tokenizer *tokenizer,
                             struct generate_prompt *prompt, struct err *err)
{
    const uint64_t context_length = fleet_model_info(fleet)->context_length;
    struct token_ids ids = { 0 };
    enum status st;

    if (prompt->text == NULL || prompt->ids != NULL)
        return STATUS_OK;
    if (tokenizer == NULL)
        return err_set(err, STATUS_BAD_INPUT,
                       "the model has no tokenizer: give \"input_ids\" instead of \"text\"");
    if (prompt->text_size / SERVER_TEXT_BYTES_PER_TOKEN_MAX > context_length)
        return err_set(err, STATUS_BAD_INPUT,
                       "\"text\" has %zu bytes, too many for the model's context of %" PRIu64
                       " tokens", prompt->text_size, context_length);
    st = tokenizer_encode(tokenizer, prompt->text, prompt->text_size, true, &ids, err);
    if (st == STATUS_OK && ids.count == 0)
        st = err_set(err, STATUS_BAD_INPUT, "\"text\" has no tokens in it");
    if (st != STATUS_OK) {
        token_ids_deinit(&ids);
        return st;
    }
    prompt->ids = ids.ids;
    prompt->id_count = ids.count;
    return STATUS_OK;
}

static enum status submit(struct call *call, struct answer *answer,
                          const struct generate_prompt *prompt, struct err *err)
{
    const struct engine_request request = {
        .prompt_ids = prompt->ids,
        .prompt_count = prompt->id_count,
        .params = &prompt->params,
        .on_output = on_output,
        .user = answer,
        .token_by_token = call->stream,
    };
    uint64_t engine_id = 0;
    enum status st;

    server__call_ref(call); /* the engine's */
    st = fleet_submit(call->fleet, &request, &engine_id, err);
    (void)pthread_mutex_lock(&call->lock);
    if (st == STATUS_OK) {
        answer->engine_id = engine_id;
        answer->submitted = true;
    } else {
        assert(call->ref_count > 1);
        call->ref_count--;
    }
    (void)pthread_mutex_unlock(&call->lock);
    return st;
}

static struct call *call_new(const struct generate_request *request, enum call_kind kind,
                             bool has_text)
{
    struct call *call = calloc(1, sizeof(*call));

    if (call == NULL)
        return NULL;
    call->answers = calloc(request->prompt_count, sizeof(*call->answers));
    if (call->answers == NULL || pthread_mutex_init(&call->lock, NULL) != 0) {
        free(call->answers);
        free(call);
        return NULL;
    }
    call->kind = kind;
    call->stream = request->stream;
    call->is_list = request->is_list;
    call->style.has_text = has_text;
    call->style.has_index = request->stream && request->is_list;
    call->openai = request->openai;
    call->answer_count = request->prompt_count;
    call->ref_count = 1;
    buf_init(&call->out, SERVER_ANSWER_BYTES_MAX);
    for (size_t i = 0; i < call->answer_count; i++) {
        struct answer *answer = &call->answers[i];
        answer->call = call;
        answer->index = i;
        memcpy(answer->rid, request->prompts[i].rid, sizeof(answer->rid));
        answer->matched_id = -1;
        buf_init(&answer->text_json, SERVER_ANSWER_BYTES_MAX);
        buf_init(&answer->ids_json, SERVER_ANSWER_BYTES_MAX);
        buf_init(&answer->detail, SERVER_ANSWER_BYTES_MAX);
        for (size_t k = 0; k < SERVER_LOGPROB_LISTS; k++)
            buf_init(&answer->logprobs_json[k], SERVER_ANSWER_BYTES_MAX);
    }
    return call;
}

/* A completion that begins with its prompt. */
static enum status put_echoes(struct call *call, const struct generate_request *request,
                              struct err *err)
{
    enum status st = STATUS_OK;

    for (size_t i = 0; i < call->answer_count && request->openai.echo && st == STATUS_OK; i++)
        st = server__json_escape(&call->answers[i].text_json, request->prompts[i].text,
                                 request->prompts[i].text_size, err);
    return st;
}

enum status server__call_create(struct fleet *fleet, const struct tokenizer *tokenizer,
                                const char *model_name, enum call_kind kind,
                                struct generate_request *request,
                                struct MHD_Connection *connection, struct call **call_out,
                                struct err *err)
{
    struct call *call = call_new(request, kind, tokenizer != NULL);
    enum status st = STATUS_OK;
    size_t at;

    if (call == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a request of %zu prompts",
                       request->prompt_count);
    call->fleet = fleet;
    call->tokenizer = tokenizer;
    call->model_name = model_name;
    call->connection = connection;
    st = put_echoes(call, request, err);
    /* All are tokenized before the first is submitted: a bad one costs no computing. */
    for (at = 0; at < request->prompt_count && st == STATUS_OK; at++)
        st = server__tokenize(fleet, tokenizer, &request->prompts[at], err);
    if (st == STATUS_OK) {
        for (at = 0; at < request->prompt_count && st == STATUS_OK; at++)
            st = submit(call, &call->answers[at], &request->prompts[at], err);
    }
    if (st != STATUS_OK) {
        if (request->is_list)
            (void)err_prefix(err, st, "prompt %zu", at - 1);
        server__call_release(call);
        return st;
    }
    *call_out = call;
    return STATUS_OK;
}

void server__call_ref(struct call *call)
{
    (void)pthread_mutex_lock(&call->lock);
    call->ref_count++;
    (void)pthread_mutex_unlock(&call->lock);
}

void server__call_unref(struct call *call)
{
    bool unused;

    (void)pthread_mutex_lock(&call->lock);
    assert(call->ref_count > 0);
    unused = --call->ref_count == 0;
    (void)pthread_mutex_unlock(&call->lock);
    if (unused)
        call_free(call);
}

void server__call_release(struct call *call)
{
    if (call == NULL)
        return;
    (void)pthread_mutex_lock(&call->lock);
    assert(!call->suspended);
    call->gone = true;
    call->connection = NULL;
    (void)pthread_mutex_unlock(&call->lock);
    for (size_t i = 0; i < call->answer_count; i++) {
        struct answer *answer = &call->answers[i];
        uint64_t engine_id;
        bool running;
        (void)pthread_mutex_lock(&call->lock);
        running = answer->submitted && !answer->ended;
        engine_id = answer->engine_id;
        (void)pthread_mutex_unlock(&call->lock);
        if (running)
            fleet_cancel(call->fleet, engine_id);
    }
    server__call_unref(call);
}

void server__call_abandon(struct call *call)
{
    (void)pthread_mutex_lock(&call->lock);
    call->gone = true;
    wake(call);
    (void)pthread_mutex_unlock(&call->lock);
}

enum call_wait server__call_wait(struct call *call)
{
    enum call_wait wait = CALL_SUSPENDED;

    (void)pthread_mutex_lock(&call->lock);
    if (call->gone)
        wait = CALL_GONE;
    else if (is_ready(call))
        wait = CALL_READY;
    else
        suspend(call);
    (void)pthread_mutex_unlock(&call->lock);
    return wait;
}

enum status server__call_failure(struct call *call, struct err *err)
{
    enum status st = STATUS_OK;

    (void)pthread_mutex_lock(&call->lock);
    if (call->failure != STATUS_OK)
        st = err_set(err, call->failure, "no memory for the answer");
    for (size_t i = 0; i < call->answer_count && st == STATUS_OK; i++) {
        const struct answer *answer = &call->answers[i];
        if (!answer->ended || answer->finish != FINISH_ABORT)
            continue;
        st = err_set(err, answer->status != STATUS_OK ? answer->status : STATUS_CANCELED, "%s",
                     answer->detail.size > 0 ? answer->detail.data : "the request was aborted");
        if (call->is_list)
            (void)err_prefix(err, st, "prompt %zu", i);
    }
    (void)pthread_mutex_unlock(&call->lock);
    return st;
}

/* SGLang's shape: an object, or a list of them. */
static enum status write_list(const struct call *call, struct buf *out, struct err *err)
{
    enum status st = call->is_list ? buf_append(out, "[", 1, err) : STATUS_OK;

    for (size_t i = 0; i < call->answer_count && st == STATUS_OK; i++) {
        if (i > 0)
            st = buf_append(out, ", ", 2, err);
        if (st == STATUS_OK)
            st = server__answer_write(&call->answers[i], &call->style, out, err);
    }
    return st == STATUS_OK && call->is_list ? buf_append(out, "]", 1, err) : st;
}

enum status server__call_write(struct call *call, struct buf *out, struct err *err)
{
    enum status st;

    (void)pthread_mutex_lock(&call->lock);
    assert(call->ended_count == call->answer_count);
    st = call->kind == CALL_OPENAI ? server__openai_write(call, out, err)
                                   : write_list(call, out, err);
    (void)pthread_mutex_unlock(&call->lock);
    return st;
}

/* With call->lock held. Puts the next event into call->out; false when there is none yet. */
static bool next_event(struct call *call, enum status *st_out)
{
    struct buf *out = &call->out;
    struct answer *answer = NULL;
    enum status st;

    buf_clear(out);
    call->out_sent = 0;
    for (size_t i = 0; i < call->answer_count && answer == NULL; i++) {
        const size_t at = (call->next_answer + i) % call->answer_count;
        if (call->answers[at].news)
            answer = &call->answers[at];
    }
    if (answer == NULL && call->ended_count < call->answer_count)
        return false;
    if (answer == NULL && call->openai.include_usage && !call->usage_written) {
        call->usage_written = true;
        *st_out = server__openai_usage_event(call, out, NULL);
        return true;
    }
    if (answer == NULL) {
        call->done_written = true;
        *st_out = buf_printf(out, NULL, "data: [DONE]\n\n");
        return true;
    }
    call->next_answer = answer->index + 1;
    answer->news = false;
    if (call->kind == CALL_OPENAI) {
        *st_out = server__openai_events(answer, out, NULL);
        return true;
    }
    st = buf_printf(out, NULL, "data: ");
    if (st == STATUS_OK)
        st = server__answer_write(answer, &call->style, out, NULL);
    if (st == STATUS_OK)
        st = buf_printf(out, NULL, "\n\n");
    *st_out = st;
    return true;
}

ssize_t server__call_read(struct call *call, char *dst, size_t size)
{
    ssize_t read = 0;
    enum status st = STATUS_OK;

    (void)pthread_mutex_lock(&call->lock);
    if (call->gone || call->failure != STATUS_OK) {
        read = MHD_CONTENT_READER_END_WITH_ERROR;
    } else if (call->out_sent == call->out.size) {
        bool more = true;

        while (more && !call->done_written && st == STATUS_OK && call->out_sent == call->out.size)
            more = next_event(call, &st); /* which may have nothing to show */
        if (!more && call->out_sent == call->out.size)
            suspend(call);
        else if (call->out_sent == call->out.size)
            read = MHD_CONTENT_READER_END_OF_STREAM;
        if (st != STATUS_OK)
            read = MHD_CONTENT_READER_END_WITH_ERROR;
    }
    if (read == 0 && !call->suspended) {
        read = (ssize_t)(call->out.size - call->out_sent);
        if ((size_t)read > size)
            read = (ssize_t)size;
        memcpy(dst, call->out.data + call->out_sent, (size_t)read);
        call->out_sent += (size_t)read;
    }
    (void)pthread_mutex_unlock(&call->lock);
    return read;
}
