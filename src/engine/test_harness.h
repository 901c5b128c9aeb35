/* engine/test_harness.h - what the engine's tests share: an engine on a small model, and a client
 * that collects an answer and can be waited for.
 *
 * Only *_test.c files include this. A failure asserts through cmocka, so only in the test's
 * thread. */
#ifndef LIGHTER_ENGINE_TEST_HARNESS_H
#define LIGHTER_ENGINE_TEST_HARNESS_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/buf.h"
#include "base/json.h"
#include "checkpoint/checkpoint.h"
#include "engine/engine.h"

/* Knows capitals, has a tokenizer. */
#define HARNESS_DEMO "models/demo"
/* Random weights, 64 ids, 512 positions; a step takes some microseconds. */
#define HARNESS_TINY "tests/golden/models/deepseek_v3"
#define HARNESS_IDS_MAX 600
#define HARNESS_TEXT_MAX 4096

struct harness {
    struct ckpt *ckpt;
    struct device *device;
    struct model *model;
    struct tokenizer *tokenizer;
    struct engine *engine;
};

static inline void harness_check(enum status st, const struct err *err)
{
    if (st != STATUS_OK)
        fail_msg("%s: %s", status_name(st), err->message);
}

/* Opens a model on `spec` with a KV cache of kv_tokens; offload may be NULL. The tokenizer is the
 * demo's: it has text for the ids of both. */
static inline void harness_open_offloaded(struct harness *harness, const char *model,
                                          const char *spec, uint32_t kv_tokens,
                                          const struct offload_options *offload)
{
    const struct device_options device_options = { .thread_count = 1 };
    struct model_options options;
    struct err err;

    *harness = (struct harness){ 0 };
    model_options_init(&options);
    options.step_row_count_max = 64;
    options.step_sequence_count_max = 8;
    options.kv_page_size = 4;
    options.kv_token_count = kv_tokens;
    if (offload != NULL)
        options.offload = *offload;
    harness_check(ckpt_open(model, &harness->ckpt, &err), &err);
    harness_check(tokenizer_open(HARNESS_DEMO, &harness->tokenizer, &err), &err);
    harness_check(device_open(spec, &device_options, &harness->device, &err), &err);
    harness_check(model_create(harness->device, harness->ckpt, &options, NULL, NULL,
                               &harness->model, &err), &err);
}

static inline void harness_open(struct harness *harness, const char *model, const char *spec,
                                uint32_t kv_tokens)
{
    harness_open_offloaded(harness, model, spec, kv_tokens, NULL);
}

/* Starts an engine on it, in place of the one before. NULL: default options. */
static inline void harness_start(struct harness *harness, const struct engine_options *options)
{
    struct engine_options defaults;
    struct err err;

    engine_options_init(&defaults);
    engine_destroy(harness->engine);
    harness->engine = NULL;
    harness_check(engine_create(harness->model, harness->tokenizer,
                                options != NULL ? options : &defaults, NULL, &harness->engine,
                                &err), &err);
}

static inline void harness_close(struct harness *harness)
{
    engine_destroy(harness->engine);
    model_destroy(harness->model);
    device_close(harness->device);
    tokenizer_close(harness->tokenizer);
    ckpt_close(harness->ckpt);
}

/* One number of the engine's report: "running", or with `group` "kv" "pages_free". */
static inline int64_t harness_report(struct engine *engine, const char *group, const char *key)
{
    json_t *report = engine_report_json(engine);
    const json_t *object = report;
    int64_t number;

    assert_non_null(report);
    if (group != NULL)
        object = json_object_get(report, group);
    assert_non_null(json_object_get(object, key));
    number = json_integer_value(json_object_get(object, key));
    json_decref(report);
    return number;
}

/* -- clients ----------------------------------------------------------------------------------- */

struct client {
    pthread_mutex_t lock;    /* guards all that follows; held in a callback */
    pthread_cond_t changed;
    uint32_t call_count, last_count; /* callbacks; and those with a finish reason */
    int32_t ids[HARNESS_IDS_MAX];
    size_t id_count;
    char text[HARNESS_TEXT_MAX];
    size_t text_size;
    struct engine_output last;
    char message[768], matched_text[64];
    bool gate_closed;        /* a callback waits until it is opened: holds the engine */
    bool is_waiting;         /* a callback does so */

    /* Set before submit. */
    struct engine *cancel_engine;    /* to cancel cancel_id after cancel_after ids of this one */
    const uint64_t *cancel_id;
    size_t cancel_after;
    uint64_t id;
};

static inline void client_init(struct client *client)
{
    memset(client, 0, sizeof(*client));
    pthread_mutex_init(&client->lock, NULL);
    pthread_cond_init(&client->changed, NULL);
}

static inline void client_deinit(struct client *client)
{
    pthread_cond_destroy(&client->changed);
    pthread_mutex_destroy(&client->lock);
}

static inline void client_on_output(void *user, const struct engine_output *output)
{
    struct client *client = user;

    pthread_mutex_lock(&client->lock);
    client->call_count++;
    for (size_t i = 0; i < output->id_count && client->id_count < HARNESS_IDS_MAX; i++)
        client->ids[client->id_count++] = output->ids[i];
    if (output->text_size < HARNESS_TEXT_MAX - client->text_size) {
        memcpy(client->text + client->text_size, output->text, output->text_size);
        client->text_size += output->text_size;
        client->text[client->text_size] = '\0';
    }
    if (client->cancel_id != NULL && client->id_count == client->cancel_after)
        engine_cancel(client->cancel_engine, *client->cancel_id);
    if (output->finish != FINISH_NONE) {
        client->last_count++;
        client->last = *output;
        memcpy(client->message, output->message, strlen(output->message) + 1);
        if (output->matched_text != NULL)
            memcpy(client->matched_text, output->matched_text, strlen(output->matched_text) + 1);
    }
    pthread_cond_broadcast(&client->changed);
    while (client->gate_closed) {
        client->is_waiting = true;
        pthread_cond_wait(&client->changed, &client->lock);
    }
    client->is_waiting = false;
    pthread_mutex_unlock(&client->lock);
}

static inline enum status client_submit(struct client *client, struct engine *engine,
                                        const int32_t *prompt, size_t prompt_count,
                                        const struct sampling_params *params, bool token_by_token,
                                        struct err *err)
{
    const struct engine_request request = {
        .prompt_ids = prompt,
        .prompt_count = prompt_count,
        .params = params,
        .on_output = client_on_output,
        .user = client,
        .token_by_token = token_by_token,
    };

    return engine_submit(engine, &request, &client->id, err);
}

/* Waits for the last piece. */
static inline void client_wait(struct client *client)
{
    pthread_mutex_lock(&client->lock);
    while (client->last_count == 0)
        pthread_cond_wait(&client->changed, &client->lock);
    pthread_mutex_unlock(&client->lock);
}

/* Waits until the engine's thread stands at the gate. */
static inline void client_wait_at_gate(struct client *client)
{
    pthread_mutex_lock(&client->lock);
    while (!client->is_waiting)
        pthread_cond_wait(&client->changed, &client->lock);
    pthread_mutex_unlock(&client->lock);
}

static inline void client_open_gate(struct client *client)
{
    pthread_mutex_lock(&client->lock);
    client->gate_closed = false;
    pthread_cond_broadcast(&client->changed);
    pthread_mutex_unlock(&client->lock);
}

/* Submits, and waits for the end. */
static inline void client_run(struct client *client, struct engine *engine, const int32_t *prompt,
                              size_t prompt_count, const struct sampling_params *params,
                              bool token_by_token)
{
    struct err err;

    client_init(client);
    harness_check(client_submit(client, engine, prompt, prompt_count, params, token_by_token,
                                &err), &err);
    client_wait(client);
}

#endif
