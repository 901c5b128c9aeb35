/* engine/engine.c - the engine's functions: start and stop, submit, cancel, drain, report.
 *
 * They only look at what is set once or guarded by the lock; the work is the thread's,
 * in loop.c. */
#include "engine/internal.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"

#define QUEUE_COUNT_MAX (1u << 20)
#define WAITING_TOKENS_MAX (UINT64_C(16) << 20) /* 64 MiB of prompts in the queue */

void engine_options_init(struct engine_options *options)
{
    *options = (struct engine_options){ .queue_count_max = 1024 };
}

/* -- start and stop ---------------------------------------------------------------------------- */

static enum status settle_one(const char *name, uint32_t wanted, uint32_t max, uint32_t *out,
                              struct err *err)
{
    if (wanted > max)
        return err_set(err, STATUS_BAD_INPUT, "engine: %s is %u, this model takes at most %u",
                       name, wanted, max);
    *out = wanted == 0 ? max : wanted;
    return STATUS_OK;
}

/* Checks the options against the model and fills in what they leave open. */
static enum status settle_options(const struct engine_options *options,
                                  const struct model_info *info,
                                  struct engine_options *settled_out, struct err *err)
{
    struct engine_options settled = *options;
    enum status st = settle_one("step_row_count_max", options->step_row_count_max,
                                info->step_row_count_max, &settled.step_row_count_max, err);

    if (st == STATUS_OK)
        st = settle_one("running_count_max", options->running_count_max,
                        info->step_sequence_count_max, &settled.running_count_max, err);
    if (st != STATUS_OK)
        return st;
    if (settled.running_count_max > settled.step_row_count_max)
        settled.running_count_max = settled.step_row_count_max; /* schedule.c says why */
    if (settled.prefill_chunk == 0 || settled.prefill_chunk > settled.step_row_count_max)
        settled.prefill_chunk = settled.step_row_count_max;
    if (settled.queue_count_max == 0 || settled.queue_count_max > QUEUE_COUNT_MAX)
        return err_set(err, STATUS_BAD_INPUT,
                       "engine: queue_count_max is %u, it must be from 1 to %u",
                       settled.queue_count_max, QUEUE_COUNT_MAX);
    if (options->weight_version != NULL &&
        strlen(options->weight_version) >= ENGINE_VERSION_BYTES_MAX)
        return err_set(err, STATUS_BAD_INPUT, "a weight version of %zu bytes, at most %d fit",
                       strlen(options->weight_version), ENGINE_VERSION_BYTES_MAX - 1);
    settled.weight_version = NULL; /* copied already */
    *settled_out = settled;
    return STATUS_OK;
}

/* SGLang ends an answer at the tokenizer's end-of-sequence id too: chat models often have another
 * there than in their configuration. */
static void set_limits(struct engine *engine, const struct engine_options *options)
{
    const struct model_info *info = engine->info;
    struct engine__limits *limits = &engine->limits;
    int32_t eos = -1;

    limits->context_length = info->context_length;
    limits->vocab_size = info->vocab_size;
    limits->page_size = info->kv_page_size;
    limits->page_count = (struct engine_pages){ info->kv_page_count, info->kv_window_page_count };
    limits->window_pages_each = info->kv_window_pages_each;
    limits->eos_count = options->has_eos ? options->eos_count : info->eos_count;
    for (uint32_t i = 0; i < limits->eos_count; i++)
        limits->eos_ids[i] = options->has_eos ? options->eos_ids[i] : info->eos_ids[i];
    if (engine->tokenizer != NULL)
        eos = tokenizer_eos_id(engine->tokenizer);
    if (eos >= 0)
        limits->eos_ids[limits->eos_count++] = eos;
}

static enum status take_memory(struct engine *engine, struct err *err)
{
    const struct model_info *info = engine->info;
    const uint32_t running_max = engine->options.running_count_max;
    uint32_t pages = info->context_length / info->kv_page_size +
                     (info->context_length % info->kv_page_size != 0);
    uint64_t logits_count;
    enum status st;

    if (pages > info->kv_page_count)
        pages = info->kv_page_count;
    st = engine__cache_init(&engine->cache, &engine->limits.page_count, err);
    if (st == STATUS_OK)
        st = engine__sampler_init(&engine->sampler, info->vocab_size, err);
    if (st == STATUS_OK)
        st = engine__batch_init(&engine->batch, engine->options.step_row_count_max, running_max,
                                pages, info->kv_page_size, info->kv_window_page_count > 0, err);
    if (st != STATUS_OK)
        return st;
    engine->turns = calloc(running_max, sizeof(*engine->turns));
    engine->running = calloc(running_max, sizeof(void *));
    if (size_mul(running_max, info->vocab_size, &logits_count) && logits_count <= SIZE_MAX / 4)
        engine->logits = calloc(logits_count, sizeof(*engine->logits));
    if (engine->turns == NULL || engine->running == NULL || engine->logits == NULL)
        return err_set(err, STATUS_NO_MEMORY,
                       "no memory for the logits of %u requests at a time, %u each", running_max,
                       info->vocab_size);
    engine->pages_free = engine__cache_free(&engine->cache);
    return STATUS_OK;
}

static enum status name_steps(struct engine *engine, struct err *err)
{
    static const char *const names[ENGINE__TRACE_NAME_COUNT] = {
        [ENGINE__TRACE_PREFILL] = "prefill", [ENGINE__TRACE_DECODE] = "decode",
        [ENGINE__TRACE_SAMPLE] = "sample",
    };
    enum status st = STATUS_OK;

    for (size_t i = 0;
         engine->options.trace != NULL && i < ENGINE__TRACE_NAME_COUNT && st == STATUS_OK; i++)
        st = trace_name(engine->options.trace, names[i], &engine->trace_names[i], err);
    return st;
}

enum status engine_create(struct model *model, const struct tokenizer *tokenizer,
                          const struct engine_options *options, const struct log *log,
                          struct engine **engine_out, struct err *err)
{
    const struct model_info *info = model_info(model);
    struct engine *engine = calloc(1, sizeof(*engine));
    enum status st;

    if (engine == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for an engine");
    pthread_mutex_init(&engine->lock, NULL);
    pthread_cond_init(&engine->wake, NULL);
    pthread_cond_init(&engine->changed, NULL);
    engine->model = model;
    engine->info = info;
    engine->tokenizer = tokenizer;
    engine->log = log;
    set_limits(engine, options);
    engine->manifest = offload_manifest_json(model_offload(model));
    (void)snprintf(engine->weight_version, sizeof(engine->weight_version), "%s",
                   options->weight_version != NULL ? options->weight_version : "default");
    st = settle_options(options, info, &engine->options, err);
    if (st == STATUS_OK)
        st = name_steps(engine, err);
    if (st == STATUS_OK)
        st = take_memory(engine, err);
    if (st == STATUS_OK && pthread_create(&engine->thread, NULL, engine__loop, engine) != 0)
        st = err_set(err, STATUS_NO_MEMORY, "the engine's thread could not be started");
    if (st != STATUS_OK) {
        engine_destroy(engine);
        return st;
    }
    engine->has_thread = true;
    *engine_out = engine;
    return STATUS_OK;
}

void engine_destroy(struct engine *engine)
{
    if (engine == NULL)
        return;
    if (engine->has_thread) {
        pthread_mutex_lock(&engine->lock);
        engine->stopping = true;
        pthread_cond_signal(&engine->wake);
        pthread_mutex_unlock(&engine->lock);
        pthread_join(engine->thread, NULL);
    }
    assert(engine->live_count == 0);
    json_decref(engine->manifest);
    free(engine->logits);
    free(engine->running);
    free(engine->turns);
    engine__batch_deinit(&engine->batch);
    engine__sampler_deinit(&engine->sampler);
    engine__cache_deinit(&engine->cache);
    pthread_cond_destroy(&engine->changed);
    pthread_cond_destroy(&engine->wake);
    pthread_mutex_destroy(&engine->lock);
    free(engine);
}

const struct model_info *engine_model_info(const struct engine *engine)
{
    return engine->info;
}

/* -- requests ---------------------------------------------------------------------------------- */

/* Why nothing new is taken; the lock is held. */
static enum status check_open(struct engine *engine, struct err *err)
{
    if (engine->draining || engine->stopping)
        return err_set(err, STATUS_UNAVAILABLE, "the engine is stopping and takes nothing new");
    return STATUS_OK;
}

/* Why this one is not taken; the lock is held. A prompt that is alone in the queue always is. */
static enum status check_room(struct engine *engine, const struct engine__request *request,
                              struct err *err)
{
    const uint64_t tokens = engine->waiting_token_count + request->prompt_count;
    enum status st = check_open(engine, err);

    if (st != STATUS_OK)
        return st;
    if (engine->waiting_count < engine->options.queue_count_max &&
        (engine->waiting_count == 0 || tokens <= WAITING_TOKENS_MAX))
        return STATUS_OK;
    engine->counters.refused_busy++;
    return err_set(err, STATUS_BUSY,
                   "%u requests with %" PRIu64 " tokens are waiting already; try again later",
                   engine->waiting_count, engine->waiting_token_count);
}

static enum status enqueue(struct engine *engine, struct engine__request *request,
                           uint64_t *id_out, struct err *err)
{
    enum status st;

    pthread_mutex_lock(&engine->lock);
    st = check_room(engine, request, err);
    if (st == STATUS_OK) {
        request->id = *id_out = ++engine->last_id;
        if (engine->options.has_random_seed && !request->params.has_seed)
            request->seed = engine_request_seed(engine->options.random_seed, request->id);
        if (engine->queue_tail == NULL)
            engine->queue_head = request;
        else
            engine->queue_tail->next = request;
        engine->queue_tail = request;
        engine->waiting_count++;
        engine->waiting_token_count += request->prompt_count;
        engine->live_count++;
        engine->counters.submitted++;
        engine->counters.prompt_tokens += request->prompt_count;
        pthread_cond_signal(&engine->wake);
    }
    pthread_mutex_unlock(&engine->lock);
    return st;
}

enum status engine_submit(struct engine *engine, const struct engine_request *desc,
                          uint64_t *id_out, struct err *err)
{
    struct engine__request *request;
    enum status st = engine__request_create(desc, &engine->limits, engine->tokenizer, &request,
                                            err);

    if (st != STATUS_OK)
        return st;
    st = enqueue(engine, request, id_out, err);
    if (st != STATUS_OK)
        engine__request_destroy(request);
    return st;
}

void engine_cancel(struct engine *engine, uint64_t id)
{
    pthread_mutex_lock(&engine->lock);
    for (uint32_t i = 0; i < engine->running_count; i++)
        if (engine->running[i]->id == id)
            engine->running[i]->canceled = true;
    for (struct engine__request *request = engine->queue_head; request != NULL;
         request = request->next)
        if (request->id == id)
            request->canceled = true;
    pthread_mutex_unlock(&engine->lock);
}

void engine_drain(struct engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    engine->draining = true;
    while (engine->live_count > 0)
        pthread_cond_wait(&engine->changed, &engine->lock);
    pthread_mutex_unlock(&engine->lock);
}

/* -- jobs and reports -------------------------------------------------------------------------- */

/* Has the engine's thread run the job, and waits for it. */
static enum status do_job(struct engine *engine, struct engine__job *job, struct err *err)
{
    enum status st;

    pthread_mutex_lock(&engine->lock);
    st = check_open(engine, err);
    if (st == STATUS_OK) {
        if (engine->job_tail == NULL)
            engine->job_head = job;
        else
            engine->job_tail->next = job;
        engine->job_tail = job;
        pthread_cond_signal(&engine->wake);
        while (!job->is_done)
            pthread_cond_wait(&engine->changed, &engine->lock);
        st = job->status;
        if (st != STATUS_OK && err != NULL)
            *err = job->err;
    }
    pthread_mutex_unlock(&engine->lock);
    return st;
}

enum status engine_logits(struct engine *engine, const int32_t *ids, size_t count, uint32_t chunk,
                          float *logits_out, struct err *err)
{
    const struct engine__limits *limits = &engine->limits;
    struct engine__job job = { .run = engine__run_logits, .ids = ids, .logits_out = logits_out };

    if (count == 0 || count > limits->context_length)
        return err_set(err, STATUS_BAD_INPUT,
                       "the prompt has %zu tokens, it must have 1 to the context's %u", count,
                       limits->context_length);
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= limits->vocab_size)
            return err_set(err, STATUS_BAD_INPUT,
                           "token %zu of the prompt is id %" PRId32 ", the vocabulary has ids 0 "
                           "to %u", i, ids[i], limits->vocab_size - 1);
    job.count = (uint32_t)count;
    job.chunk = chunk == 0 ? engine->options.prefill_chunk : chunk;
    if (job.chunk > engine->options.step_row_count_max)
        return err_set(err, STATUS_BAD_INPUT, "a chunk of %u rows; a step has at most %u",
                       job.chunk, engine->options.step_row_count_max);
    job.page_count = engine__pages_for(limits, job.count);
    if (!engine__pages_fit(&job.page_count, &limits->page_count)) {
        const bool is_window = job.page_count.all <= limits->page_count.all;

        return err_set(err, STATUS_BAD_INPUT,
                       "a prompt of %u tokens needs %u pages of %u tokens in the KV cache, which "
                       "has %u", job.count, is_window ? job.page_count.window : job.page_count.all,
                       limits->page_size,
                       is_window ? limits->page_count.window : limits->page_count.all);
    }
    return do_job(engine, &job, err);
}

static bool update_begin(struct engine *engine)
{
    bool was;

    pthread_mutex_lock(&engine->lock);
    was = engine->updating;
    engine->updating = true;
    pthread_mutex_unlock(&engine->lock);
    return !was;
}

static void update_end(struct engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    engine->updating = false;
    pthread_mutex_unlock(&engine->lock);
}

static enum status meet(const struct engine_update *update, enum offload_update_step step,
                        enum status own, struct err *err)
{
    return update->meet == NULL ? own : update->meet(update->user, step, own, 0, err);
}

enum status engine_update(struct engine *engine, const struct engine_update *update,
                          uint32_t *paused_count_out, struct err *err)
{
    struct engine__job job = {
        .run = engine__run_update,
        .is_after_running = !update->pause && !update->abort_all,
        .wanted = update,
    };
    bool begun = false;
    enum status st = STATUS_OK;

    if (update->weight_version != NULL &&
        strlen(update->weight_version) >= ENGINE_VERSION_BYTES_MAX)
        st = err_set(err, STATUS_BAD_INPUT, "a weight version of %zu bytes, at most %d fit",
                     strlen(update->weight_version), ENGINE_VERSION_BYTES_MAX - 1);
    else if (!(begun = update_begin(engine)))
        st = err_set(err, STATUS_BUSY, "another update of the weights is under way");
    if (st == STATUS_OK)
        st = model_update_prepare(engine->model, update->model_path, update->meet != NULL,
                                  &job.update, err);
    st = meet(update, OFFLOAD_UPDATE_PREPARED, st, err);
    if (st == STATUS_OK) {
        st = do_job(engine, &job, err);
        if (!job.has_run)
            st = meet(update, OFFLOAD_UPDATE_HELD, st, err);
    }
    if (!job.has_run)
        (void)meet(update, OFFLOAD_UPDATE_ENDED, STATUS_OK, NULL);
    model_update_destroy(job.update);
    if (begun)
        update_end(engine);
    if (st == STATUS_OK && paused_count_out != NULL)
        *paused_count_out = job.count;
    return st;
}

enum status engine_health(struct engine *engine, struct err *err)
{
    struct err stopped;

    pthread_mutex_lock(&engine->lock);
    stopped = engine->stopped;
    pthread_mutex_unlock(&engine->lock);
    return stopped.status == STATUS_OK ? STATUS_OK
                                       : err_set(err, stopped.status, "%s", stopped.message);
}

json_t *engine_report_json(struct engine *engine)
{
    struct engine__counters c;
    char version[ENGINE_VERSION_BYTES_MAX];
    json_t *manifest;
    struct err failure, stopped;
    struct engine_pages pages_free;
    uint32_t running, waiting;

    pthread_mutex_lock(&engine->lock);
    c = engine->counters;
    failure = engine->last_failure;
    stopped = engine->stopped;
    running = engine->running_count;
    waiting = engine->waiting_count;
    pages_free = engine->pages_free;
    manifest = json_incref(engine->manifest);
    memcpy(version, engine->weight_version, sizeof(version));
    pthread_mutex_unlock(&engine->lock);
    return json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s*, s:s*, s:I, s:I, s:f,"
        " s:{s:s, s:I, s:I, s:I, s:I, s:I, s:I}, s:o*, s:o*}",
        "weight_version", version, "running", (json_int_t)running, "running_max",
        (json_int_t)engine->options.running_count_max, "waiting", (json_int_t)waiting,
        "waiting_max", (json_int_t)engine->options.queue_count_max, "submitted",
        (json_int_t)c.submitted, "finished", (json_int_t)c.finished, "aborted",
        (json_int_t)c.aborted, "refused_busy", (json_int_t)c.refused_busy, "steps",
        (json_int_t)c.steps, "rows", (json_int_t)c.rows, "failed_steps",
        (json_int_t)c.failed_steps, "last_failure",
        c.failed_steps > 0 ? failure.message : NULL, "stopped",
        stopped.status != STATUS_OK ? stopped.message : NULL, "prompt_tokens",
        (json_int_t)c.prompt_tokens, "completion_tokens", (json_int_t)c.completion_tokens,
        "step_s", (double)c.step_ns * 1e-9,
        "kv", "dtype", dtype_info(engine->info->kv_dtype)->name, "page_size",
        (json_int_t)engine->limits.page_size, "pages",
        (json_int_t)engine->limits.page_count.all, "pages_free", (json_int_t)pages_free.all,
        "bytes_per_token", (json_int_t)engine->info->kv_bytes_per_token, "window_pages",
        (json_int_t)engine->limits.page_count.window, "window_pages_free",
        (json_int_t)pages_free.window, "offload",
        offload_report_json(model_offload(engine->model)), "manifest",
        manifest);
}

static enum status run_reset(struct engine *engine, struct engine__job *job, struct err *err)
{
    (void)job;
    (void)err;
    offload_report_reset(model_offload(engine->model));
    pthread_mutex_lock(&engine->lock);
    engine->counters = (struct engine__counters){ 0 };
    pthread_mutex_unlock(&engine->lock);
    return STATUS_OK;
}

void engine_report_reset(struct engine *engine)
{
    struct engine__job job = { .run = run_reset };

    (void)do_job(engine, &job, NULL); /* fails only when the engine is stopping: nothing to reset */
}
