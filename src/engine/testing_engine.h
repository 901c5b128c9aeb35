/* engine/testing_engine.h - an engine and a tokenizer without a model, for tests of those above.
 *
 * Included by one file of a program, in place of the engine and tokenizer of the library: its
 * functions have their names, so that the linker takes these. Prompt [a, b, ...] is continued with
 * ids a + 1, a + 2, ..., whose text is "<id>", one in each step; a prompt that holds
 * TESTING_ABORT_ID ends with an error of the device, one that holds TESTING_EOS_ID and
 * TESTING_STOP_ID after three tokens. Text is tokenized into its bytes after a BOS. Steps are made
 * by a thread, unless `held`, or by testing_engine_step. TESTING_ENGINE_ALONE leaves the tokenizer
 * out. */
#ifndef LIGHTER_ENGINE_TESTING_ENGINE_H
#define LIGHTER_ENGINE_TESTING_ENGINE_H

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "text/chat.h"

enum {
    TESTING_BOS_ID = 1,
    TESTING_ABORT_ID = 900,
    TESTING_EOS_ID = 901,
    TESTING_STOP_ID = 902,
    TESTING_VOCAB = 1000,
    TESTING_CONTEXT = 64,
    TESTING_REQUESTS = 256,
};

struct testing_request {
    bool used, canceled;        /* guarded by the engine's lock */
    bool token_by_token, garbage;
    uint64_t id;
    int32_t first, last;        /* ids */
    uint64_t prompt_count;
    int64_t done, wanted;
    void (*on_output)(void *user, const struct engine_output *output);
    void *user;
    char text[TESTING_CONTEXT * 8];
    int32_t ids[TESTING_CONTEXT];
};

struct engine {
    struct model_info info;
    pthread_t thread;
    bool has_thread;
    pthread_mutex_t lock;       /* guards the rest; not held during callbacks */
    pthread_cond_t changed;
    bool held, draining, stopping, garbage, stopped;
    uint64_t next_id, cancel_count, submit_count, running_count, room;
    struct testing_request requests[TESTING_REQUESTS];
};

static enum finish_reason testing_ending(const struct testing_request *request)
{
    if (request->last == TESTING_ABORT_ID)
        return FINISH_ABORT;
    if (request->last == TESTING_EOS_ID && request->done == 3)
        return FINISH_EOS;
    if (request->last == TESTING_STOP_ID && request->done == 3)
        return FINISH_STOP;
    return request->done == request->wanted ? FINISH_LENGTH : FINISH_NONE;
}

/* One more token for one request. */
static void testing_advance(struct engine *engine, struct testing_request *request, bool canceled)
{
    struct engine_output output = {
        .matched_id = -1, .message = "", .e2e_s = 0.5, .queue_s = 0.25,
    };
    const size_t from = request->token_by_token ? (size_t)request->done : 0;
    const size_t text_from = request->token_by_token ? strlen(request->text) : 0;

    if (!canceled && request->done < request->wanted) {
        const int32_t id = request->first + (int32_t)request->done + 1;
        const size_t at = strlen(request->text);
        (void)snprintf(request->text + at, sizeof(request->text) - at, "<%d>", id);
        request->ids[request->done++] = id;
    }
    output.finish = canceled ? FINISH_ABORT : testing_ending(request);
    if (output.finish == FINISH_NONE && !request->token_by_token)
        return;
    output.text = request->text + text_from;
    output.text_size = strlen(output.text);
    output.ids = request->ids + from;
    output.id_count = (size_t)request->done - from;
    output.prompt_token_count = request->prompt_count;
    output.completion_token_count = (uint64_t)request->done;
    output.garbage = request->garbage;
    if (output.finish == FINISH_ABORT) {
        output.status = canceled ? STATUS_CANCELED : STATUS_DEVICE;
        output.message = canceled ? "canceled" : "the device is on fire";
    }
    if (output.finish == FINISH_EOS)
        output.matched_id = TESTING_EOS_ID;
    if (output.finish == FINISH_STOP)
        output.matched_text = "sto\"p";
    request->on_output(request->user, &output);
    if (output.finish == FINISH_NONE)
        return;
    (void)pthread_mutex_lock(&engine->lock);
    request->used = false;
    engine->running_count--;
    (void)pthread_cond_broadcast(&engine->changed);
    (void)pthread_mutex_unlock(&engine->lock);
}

/* While `held`, only those that were canceled end. */
static void testing_engine_step(struct engine *engine)
{
    for (size_t i = 0; i < TESTING_REQUESTS; i++) {
        struct testing_request *request = &engine->requests[i];
        bool canceled, act;
        (void)pthread_mutex_lock(&engine->lock);
        canceled = request->canceled;
        act = request->used && (canceled || !engine->held);
        (void)pthread_mutex_unlock(&engine->lock);
        if (act)
            testing_advance(engine, request, canceled);
    }
}

static bool testing_has_work(const struct engine *engine)
{
    for (size_t i = 0; i < TESTING_REQUESTS; i++) {
        const struct testing_request *request = &engine->requests[i];
        if (request->used && (request->canceled || !engine->held))
            return true;
    }
    return false;
}

static void *testing_thread(void *user)
{
    struct engine *engine = user;

    (void)pthread_mutex_lock(&engine->lock);
    while (!engine->stopping) {
        if (!testing_has_work(engine)) {
            (void)pthread_cond_wait(&engine->changed, &engine->lock);
            continue;
        }
        (void)pthread_mutex_unlock(&engine->lock);
        testing_engine_step(engine);
        (void)pthread_mutex_lock(&engine->lock);
    }
    (void)pthread_mutex_unlock(&engine->lock);
    return NULL;
}

static struct engine *testing_engine_create(bool with_thread)
{
    struct engine *engine = calloc(1, sizeof(*engine));

    if (engine == NULL)
        return NULL;
    engine->info = (struct model_info){
        .architecture = "TestingForCausalLM", .model_type = "testing", .layer_count = 1,
        .vocab_size = TESTING_VOCAB, .context_length = TESTING_CONTEXT, .bos_id = TESTING_BOS_ID,
        .kv_page_size = 16, .kv_page_count = 4096,
    };
    engine->room = TESTING_REQUESTS;
    engine->next_id = 1;
    (void)pthread_mutex_init(&engine->lock, NULL);
    (void)pthread_cond_init(&engine->changed, NULL);
    engine->has_thread =
        with_thread && pthread_create(&engine->thread, NULL, testing_thread, engine) == 0;
    return engine;
}

static void testing_engine_set(struct engine *engine, bool *flag, bool value)
{
    (void)pthread_mutex_lock(&engine->lock);
    *flag = value;
    (void)pthread_cond_broadcast(&engine->changed);
    (void)pthread_mutex_unlock(&engine->lock);
}

static void testing_engine_destroy(struct engine *engine)
{
    testing_engine_set(engine, &engine->stopping, true);
    if (engine->has_thread)
        (void)pthread_join(engine->thread, NULL);
    for (size_t i = 0; i < TESTING_REQUESTS; i++) {
        if (engine->requests[i].used)
            testing_advance(engine, &engine->requests[i], true);
    }
    (void)pthread_cond_destroy(&engine->changed);
    (void)pthread_mutex_destroy(&engine->lock);
    free(engine);
}

static enum status testing_check(const struct engine *engine, const struct engine_request *request,
                                 struct err *err)
{
    for (size_t i = 0; i < request->prompt_count; i++) {
        if (request->prompt_ids[i] >= TESTING_VOCAB)
            return err_set(err, STATUS_BAD_INPUT, "id %d, the vocabulary has %d",
                           request->prompt_ids[i], TESTING_VOCAB);
    }
    if (request->prompt_count >= TESTING_CONTEXT)
        return err_set(err, STATUS_BAD_INPUT, "the context holds %d tokens", TESTING_CONTEXT);
    if (engine->draining)
        return err_set(err, STATUS_UNAVAILABLE, "the engine is draining");
    if (engine->running_count >= engine->room)
        return err_set(err, STATUS_BUSY, "the queue is full");
    return STATUS_OK;
}

enum status engine_submit(struct engine *engine, const struct engine_request *request,
                          uint64_t *id_out, struct err *err)
{
    struct testing_request *place = engine->requests;
    enum status st;

    (void)pthread_mutex_lock(&engine->lock);
    st = testing_check(engine, request, err);
    if (st == STATUS_OK) {
        const int64_t left = TESTING_CONTEXT - (int64_t)request->prompt_count;
        while (place->used)
            place++;
        *place = (struct testing_request){
            .used = true,
            .token_by_token = request->token_by_token,
            .garbage = engine->garbage,
            .id = engine->next_id++,
            .first = request->prompt_ids[0],
            .last = request->prompt_ids[request->prompt_count - 1],
            .prompt_count = request->prompt_count,
            .wanted = request->params->max_new_tokens < left ? request->params->max_new_tokens
                                                             : left,
            .on_output = request->on_output,
            .user = request->user,
        };
        *id_out = place->id;
        engine->running_count++;
        engine->submit_count++;
        (void)pthread_cond_broadcast(&engine->changed);
    }
    (void)pthread_mutex_unlock(&engine->lock);
    return st;
}

void engine_cancel(struct engine *engine, uint64_t id)
{
    (void)pthread_mutex_lock(&engine->lock);
    for (size_t i = 0; i < TESTING_REQUESTS; i++) {
        struct testing_request *request = &engine->requests[i];
        if (request->used && request->id == id && !request->canceled) {
            request->canceled = true;
            engine->cancel_count++;
        }
    }
    (void)pthread_cond_broadcast(&engine->changed);
    (void)pthread_mutex_unlock(&engine->lock);
}

void engine_drain(struct engine *engine)
{
    (void)pthread_mutex_lock(&engine->lock);
    engine->draining = true;
    while (engine->running_count > 0)
        (void)pthread_cond_wait(&engine->changed, &engine->lock);
    (void)pthread_mutex_unlock(&engine->lock);
}

/* Fails to prepare models/bad, and to change to models/torn; two requests are paused. */
enum status engine_update(struct engine *engine, const struct engine_update *update,
                          uint32_t *paused_count_out, struct err *err)
{
    const uint32_t paused_count = update->pause ? 2 : 0;
    enum offload_update_step step = OFFLOAD_UPDATE_PREPARED;
    enum status st = STATUS_OK;

    (void)engine;
    while (step < OFFLOAD_UPDATE_ENDED) {
        const bool back = step == OFFLOAD_UPDATE_RESTORED;
        enum status own = STATUS_OK;

        if (step == OFFLOAD_UPDATE_PREPARED && strcmp(update->model_path, "models/bad") == 0)
            own = err_set(err, STATUS_BAD_INPUT, "models/bad: this is no model");
        if (step == OFFLOAD_UPDATE_CHANGED && strcmp(update->model_path, "models/torn") == 0)
            own = err_set(err, STATUS_IO, "models/torn: this is half a model");
        if (update->meet != NULL)
            own = update->meet(update->user, step, own, paused_count, err);
        st = back ? st : own;
        if (step == OFFLOAD_UPDATE_CHANGED)
            step = st == STATUS_OK ? OFFLOAD_UPDATE_ENDED : OFFLOAD_UPDATE_RESTORED;
        else
            step = st == STATUS_OK && !back ? step + 1 : OFFLOAD_UPDATE_ENDED;
    }
    if (update->meet != NULL)
        (void)update->meet(update->user, OFFLOAD_UPDATE_ENDED, STATUS_OK, paused_count, err);
    if (st == STATUS_OK && paused_count_out != NULL)
        *paused_count_out = paused_count;
    return st;
}

enum status engine_health(struct engine *engine, struct err *err)
{
    bool stopped;

    (void)pthread_mutex_lock(&engine->lock);
    stopped = engine->stopped;
    (void)pthread_mutex_unlock(&engine->lock);
    return stopped ? err_set(err, STATUS_DEVICE, "the device is on fire") : STATUS_OK;
}

json_t *engine_report_json(struct engine *engine)
{
    json_t *json;

    (void)pthread_mutex_lock(&engine->lock);
    json = json_pack("{s:I, s:I, s:I}", "running_max", (json_int_t)engine->room, "running",
                     (json_int_t)engine->running_count, "canceled",
                     (json_int_t)engine->cancel_count);
    (void)pthread_mutex_unlock(&engine->lock);
    return json;
}

const struct model_info *engine_model_info(const struct engine *engine)
{
    return &engine->info;
}

#ifndef TESTING_ENGINE_ALONE
/* ---- the tokenizer, which can be held too ---- */

struct tokenizer {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool held;
};

static struct tokenizer testing_tokenizer = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .changed = PTHREAD_COND_INITIALIZER,
};

enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t size,
                             bool add_special, struct token_ids *ids_out, struct err *err)
{
    struct tokenizer *own = &testing_tokenizer;

    assert(tokenizer == own);
    (void)pthread_mutex_lock(&own->lock);
    while (own->held)
        (void)pthread_cond_wait(&own->changed, &own->lock);
    (void)pthread_mutex_unlock(&own->lock);
    ids_out->ids = calloc(size + 1, sizeof(*ids_out->ids));
    if (ids_out->ids == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu ids", size);
    if (add_special)
        ids_out->ids[ids_out->count++] = TESTING_BOS_ID;
    for (size_t i = 0; i < size; i++)
        ids_out->ids[ids_out->count++] = (unsigned char)text[i];
    return STATUS_OK;
}

enum status tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, size_t count,
                             bool skip_special, struct buf *text_out, struct err *err)
{
    enum status st = STATUS_OK;

    assert(tokenizer == &testing_tokenizer && !skip_special);
    for (size_t i = 0; i < count && st == STATUS_OK; i++) {
        const char byte = (char)(ids[i] & 0x7f);

        st = buf_append(text_out, &byte, 1, err);
    }
    return st;
}

/* ---- a chat template: every content, a newline behind it ---- */

struct chat {
    bool takes_parts;
};
static const struct chat testing_chat = { .takes_parts = false };

bool chat_takes_parts(const struct chat *chat)
{
    return chat->takes_parts;
}

enum status chat_encode(const struct chat *chat, const struct chat_request *request,
                        struct token_ids *ids_out, struct err *err)
{
    const json_t *message;
    size_t index;
    size_t size = 0;

    assert(chat == &testing_chat);
    json_array_foreach((json_t *)request->messages, index, message)
        size += json_string_length(json_object_get(message, "content")) + 1;
    if (size == 0)
        return err_set(err, STATUS_BAD_INPUT, "\"messages\" is empty");
    ids_out->ids = calloc(size, sizeof(*ids_out->ids));
    if (ids_out->ids == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu ids", size);
    json_array_foreach((json_t *)request->messages, index, message) {
        const json_t *content = json_object_get(message, "content");

        for (size_t i = 0; i < json_string_length(content); i++)
            ids_out->ids[ids_out->count++] = (unsigned char)json_string_value(content)[i];
        ids_out->ids[ids_out->count++] = '\n';
    }
    return STATUS_OK;
}

void token_ids_deinit(struct token_ids *ids)
{
    free(ids->ids);
    *ids = (struct token_ids){ 0 };
}

#endif /* TESTING_ENGINE_ALONE */

#endif
