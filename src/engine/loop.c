/* engine/loop.c - the engine's thread: collect what is new, run a step, tell what came of it.
 *
 *     +-> collect: canceled requests leave, waiting ones are admitted, a job is taken  (lock held)
 *     |   tell those that left; run the job; start those that were admitted
 *     |   step: share out rows, model_forward, sample, tell
 *     +-- retire: those that ended leave (lock held) and are told for the last time
 *
 * Admission is first come, first served: the head of the queue waits until its pages are free, and
 * nothing overtakes it, so nothing starves. A job that needs pages holds admission up in the same
 * way.
 *
 * Per step: the lock is taken twice, for some list steps, and the condition variables are signalled
 * only when something ended; no memory is taken but by what request.c says. */
#include "engine/internal.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"

/* What collect found, besides the requests it admitted. */
struct work {
    struct engine__request *canceled; /* a list by `next` */
    struct engine__job *job;
    uint32_t admitted_from;           /* running[admitted_from ..] must be started */
};

/* -- leaving ----------------------------------------------------------------------------------- */

static struct engine__weights weights_of(const struct engine *engine)
{
    return (struct engine__weights){ offload_is_garbage(model_offload(engine->model)),
                                     engine->weight_version };
}

/* Tells each of the list for the last time and destroys it. No lock is held. */
static void dismiss(struct engine *engine, struct engine__request *list)
{
    struct engine__weights weights;
    uint32_t count = 0;

    if (list == NULL)
        return;
    weights = weights_of(engine);
    while (list != NULL) {
        struct engine__request *request = list;

        list = request->next;
        count++;
        engine__request_tell(request, &weights);
        engine__request_destroy(request);
    }
    pthread_mutex_lock(&engine->lock);
    engine->live_count -= count;
    if (engine->live_count == 0)
        pthread_cond_broadcast(&engine->changed);
    pthread_mutex_unlock(&engine->lock);
}

static void abort_all(struct engine__request *list, const char *message)
{
    for (; list != NULL; list = list->next)
        engine__request_abort(list, STATUS_CANCELED, message);
}

/* Puts a request that leaves before `list`. The lock is held. It is counted before it is told, so
 * that whoever was told finds it in the report. */
static struct engine__request *leave(struct engine *engine, struct engine__request *request,
                                     struct engine__request *list)
{
    if (request->finish == FINISH_NONE || request->finish == FINISH_ABORT)
        engine->counters.aborted++;
    else
        engine->counters.finished++;
    request->next = list;
    return request;
}

/* Removes the running requests that have ended, or were canceled, from `running`; gives their
 * pages back. The lock is held. */
static struct engine__request *leave_running(struct engine *engine, bool everyone)
{
    struct engine__request *list = NULL;
    uint32_t kept = 0;

    for (uint32_t i = 0; i < engine->running_count; i++) {
        struct engine__request *request = engine->running[i];

        if (request->finish == FINISH_NONE && !request->canceled && !everyone) {
            engine->running[kept++] = request;
            continue;
        }
        engine__places_give(&request->places, &engine->cache);
        list = leave(engine, request, list);
    }
    engine->running_count = kept;
    engine->pages_free = engine__cache_free(&engine->cache);
    return list;
}

/* Removes the canceled requests from the queue. The lock is held. */
static struct engine__request *leave_queue(struct engine *engine, bool everyone)
{
    struct engine__request *list = NULL, **link = &engine->queue_head;

    engine->queue_tail = NULL;
    while (*link != NULL) {
        struct engine__request *request = *link;

        if (!request->canceled && !everyone) {
            engine->queue_tail = request;
            link = &request->next;
            continue;
        }
        *link = request->next;
        engine->waiting_count--;
        engine->waiting_token_count -= request->prompt_count;
        list = leave(engine, request, list);
    }
    return list;
}

static struct engine__request *join(struct engine__request *first, struct engine__request *second)
{
    struct engine__request *last = first;

    if (first == NULL)
        return second;
    while (last->next != NULL)
        last = last->next;
    last->next = second;
    return first;
}

/* -- collecting -------------------------------------------------------------------------------- */

/* Moves requests from the queue to `running` while there is room. The lock is held. */
static void admit(struct engine *engine)
{
    struct engine_pages room = engine__cache_free(&engine->cache);

    while (engine->queue_head != NULL &&
           engine->running_count < engine->options.running_count_max &&
           engine__pages_fit(&engine->queue_head->page_count, &room)) {
        struct engine__request *request = engine->queue_head;

        engine->queue_head = request->next;
        if (engine->queue_head == NULL)
            engine->queue_tail = NULL;
        request->next = NULL;
        engine->waiting_count--;
        engine->waiting_token_count -= request->prompt_count;
        room.all -= request->page_count.all;
        room.window -= request->page_count.window;
        engine->running[engine->running_count++] = request;
    }
}

/* Waits for something to do; false when the engine is to stop. */
static bool collect(struct engine *engine, struct work *work)
{
    struct engine_pages room;
    bool stopping;

    pthread_mutex_lock(&engine->lock);
    while (!engine->stopping && engine->queue_head == NULL && engine->running_count == 0 &&
           engine->job_head == NULL)
        pthread_cond_wait(&engine->wake, &engine->lock);
    stopping = engine->stopping;
    *work = (struct work){ 0 };
    work->canceled = leave_running(engine, stopping);
    work->canceled = join(leave_queue(engine, stopping), work->canceled);
    work->admitted_from = engine->running_count;
    room = engine__cache_free(&engine->cache);
    if (engine->job_head != NULL &&
        (stopping || (engine__pages_fit(&engine->job_head->page_count, &room) &&
                      (!engine->job_head->is_after_running || engine->running_count == 0)))) {
        work->job = engine->job_head;
        engine->job_head = work->job->next;
        if (engine->job_head == NULL)
            engine->job_tail = NULL;
    } else if (engine->job_head == NULL && !stopping) {
        admit(engine);
    }
    pthread_mutex_unlock(&engine->lock);
    return !stopping;
}

static void end_job(struct engine *engine, struct engine__job *job, enum status status)
{
    pthread_mutex_lock(&engine->lock);
    job->status = status;
    job->is_done = true;
    pthread_cond_broadcast(&engine->changed);
    pthread_mutex_unlock(&engine->lock);
}

/* -- a step ------------------------------------------------------------------------------------ */

static void add_request(struct engine *engine, const struct engine__request *request,
                        const struct engine__turn *turn)
{
    const uint32_t prompt_end = request->cached_count + turn->row_count;

    if (turn->prompt_left == 0) {
        engine__batch_add(&engine->batch, &request->places, request->cached_count,
                          &request->ids[request->id_count - 1], 1, ENGINE__WANTED_LAST);
        return;
    }
    engine__batch_add(&engine->batch, &request->places, request->cached_count,
                      request->prompt_ids + request->cached_count, turn->row_count,
                      prompt_end == request->prompt_count && request->new_count_max > 0
                          ? ENGINE__WANTED_LAST
                          : ENGINE__WANTED_NONE);
}

/* Shares out the rows and fills the batch. */
static void fill_batch(struct engine *engine)
{
    uint32_t page_count = 1;

    for (uint32_t i = 0; i < engine->running_count; i++) {
        const struct engine__request *request = engine->running[i];
        const uint32_t cached = request->cached_count;

        engine->turns[i].prompt_left =
            cached < request->prompt_count ? request->prompt_count - cached : 0;
    }
    engine__schedule(engine->turns, engine->running_count, engine->options.step_row_count_max,
                     engine->options.prefill_chunk);
    for (uint32_t i = 0; i < engine->running_count; i++)
        if (engine->turns[i].row_count > 0 && engine->running[i]->page_count.all > page_count)
            page_count = engine->running[i]->page_count.all;
    engine__batch_begin(&engine->batch, page_count);
    for (uint32_t i = 0; i < engine->running_count; i++)
        if (engine->turns[i].row_count > 0)
            add_request(engine, engine->running[i], &engine->turns[i]);
}

/* Takes in what the step computed for each request, and tells those that go on. */
static void advance(struct engine *engine)
{
    const struct engine__weights weights = weights_of(engine);
    float *logits = engine->logits;

    for (uint32_t i = 0; i < engine->running_count; i++) {
        struct engine__request *request = engine->running[i];

        if (engine->turns[i].row_count == 0)
            continue;
        request->cached_count += engine->turns[i].row_count;
        if (request->cached_count < request->prompt_count)
            continue;
        if (request->new_count_max == 0) {
            engine__request_finish_length(request);
            continue;
        }
        engine__request_advance(request, &engine->sampler, &engine->limits, logits);
        logits += engine->limits.vocab_size;
        if (request->finish == FINISH_NONE)
            engine__request_tell(request, &weights);
    }
}

static void fail_step(struct engine *engine, const struct err *err)
{
    log_line(engine->log, LOG_ERROR, "a step with %u requests failed: %s",
             engine->batch.step.sequence_count, err->message);
    for (uint32_t i = 0; i < engine->running_count; i++)
        if (engine->turns[i].row_count > 0)
            engine__request_abort(engine->running[i], err->status, err->message);
}

/* The step's forward pass, then the sampling and telling behind it. */
static void trace_step(const struct engine *engine, uint64_t start_ns, uint64_t forward_ns)
{
    const struct model_step *step = &engine->batch.step;
    uint32_t kind = ENGINE__TRACE_DECODE;
    struct trace_span span = {
        .lane = TRACE_STEP, .began_ns = start_ns, .ended_ns = forward_ns, .rows = step->row_count,
    };

    if (engine->options.trace == NULL)
        return;
    for (uint32_t i = 0; i < engine->running_count; i++)
        if (engine->turns[i].row_count > 0 && engine->turns[i].prompt_left > 0)
            kind = ENGINE__TRACE_PREFILL;
    span.name = engine->trace_names[kind];
    trace_add(engine->options.trace, &span);
    span.name = engine->trace_names[ENGINE__TRACE_SAMPLE];
    span.began_ns = forward_ns;
    span.ended_ns = clock_now_ns();
    span.rows = step->logits_row_count;
    trace_add(engine->options.trace, &span);
}

/* Whether there can be another step. It is told behind what the last one's requests are told, so
 * that whoever ends for it has let them know. */
static void note_health(struct engine *engine)
{
    struct err health = { .status = STATUS_OK };

    (void)model_health(engine->model, &health);
    pthread_mutex_lock(&engine->lock);
    engine->stopped = health;
    pthread_mutex_unlock(&engine->lock);
}

static void run_step(struct engine *engine)
{
    const struct model_step *step = &engine->batch.step;
    const uint64_t start_ns = clock_now_ns();
    uint64_t forward_ns;
    struct engine__request *ended;
    struct err err;
    enum status st;

    fill_batch(engine);
    st = model_forward(engine->model, step, engine->logits, &err);
    forward_ns = clock_now_ns();
    if (st == STATUS_OK)
        advance(engine);
    else
        fail_step(engine, &err);
    trace_step(engine, start_ns, forward_ns);
    pthread_mutex_lock(&engine->lock);
    engine->counters.steps++;
    engine->counters.step_ns += clock_now_ns() - start_ns;
    if (st == STATUS_OK) {
        engine->counters.rows += step->row_count;
        engine->counters.completion_tokens += step->logits_row_count;
    } else {
        engine->counters.failed_steps++;
        engine->last_failure = err;
    }
    ended = leave_running(engine, false);
    pthread_mutex_unlock(&engine->lock);
    for (struct engine__request *request = ended; request != NULL; request = request->next)
        if (request->finish == FINISH_NONE) /* canceled meanwhile */
            engine__request_abort(request, STATUS_CANCELED, "the request was canceled");
    dismiss(engine, ended);
    if (st != STATUS_OK || engine->stopped.status != STATUS_OK) /* this thread alone writes it */
        note_health(engine);
}

/* Gives each admitted request its memory and pages; one that gets none leaves with the next
 * retire. */
static void start_admitted(struct engine *engine, uint32_t admitted_from)
{
    bool has_failed = false;
    struct engine__request *ended;

    for (uint32_t i = admitted_from; i < engine->running_count; i++) {
        struct engine__request *request = engine->running[i];
        struct err err;
        enum status st = engine__request_start(request, &engine->limits, engine->tokenizer,
                                               &engine->cache, &err);
        if (st != STATUS_OK) {
            engine__request_abort(request, st, err.message);
            has_failed = true;
        }
    }
    if (!has_failed)
        return;
    pthread_mutex_lock(&engine->lock);
    ended = leave_running(engine, false);
    pthread_mutex_unlock(&engine->lock);
    for (struct engine__request *request = ended; request != NULL; request = request->next)
        if (request->finish == FINISH_NONE)
            engine__request_abort(request, STATUS_CANCELED, "the request was canceled");
    dismiss(engine, ended);
}

/* -- jobs and the loop ------------------------------------------------------------------------- */

enum status engine__run_logits(struct engine *engine, struct engine__job *job, struct err *err)
{
    const uint32_t vocab_size = engine->limits.vocab_size;
    struct engine__places places;
    enum status st = engine__places_init(&places, &job->page_count, err);

    if (st != STATUS_OK)
        return st;
    engine__places_take(&places, &engine->cache); /* collect has seen that they are free */
    for (uint32_t done = 0; done < job->count && st == STATUS_OK;) {
        const uint32_t left = job->count - done;
        const uint32_t rows = left < job->chunk ? left : job->chunk;

        engine__batch_begin(&engine->batch, job->page_count.all);
        engine__batch_add(&engine->batch, &places, done, job->ids + done, rows,
                          ENGINE__WANTED_ALL);
        st = model_forward(engine->model, &engine->batch.step,
                           job->logits_out + (size_t)done * vocab_size, err);
        done += rows;
    }
    engine__places_give(&places, &engine->cache);
    engine__places_deinit(&places);
    return st;
}

static enum status meet(void *user, enum offload_update_step step, enum status own,
                        struct err *err)
{
    const struct engine__job *job = user;

    return job->wanted->meet(job->wanted->user, step, own, job->count, err);
}

enum status engine__run_update(struct engine *engine, struct engine__job *job, struct err *err)
{
    const struct offload_meeting meeting = { .meet = meet, .user = job };
    const char *version = job->wanted->weight_version;
    struct engine__request *list;
    json_t *manifest;
    enum status st;

    job->has_run = true;
    if (job->wanted->abort_all) {
        pthread_mutex_lock(&engine->lock);
        list = leave_running(engine, true);
        list = join(leave_queue(engine, true), list);
        pthread_mutex_unlock(&engine->lock);
        abort_all(list, "the request was aborted for an update of the weights");
        dismiss(engine, list);
    }
    job->count = engine->running_count;
    st = model_update_commit(job->update, job->wanted->meet != NULL ? &meeting : NULL, err);
    manifest = offload_manifest_json(model_offload(engine->model)); /* meta has a home then */
    pthread_mutex_lock(&engine->lock);
    if (st == STATUS_OK && version != NULL)
        (void)snprintf(engine->weight_version, sizeof(engine->weight_version), "%s", version);
    if (manifest != NULL) {
        json_decref(engine->manifest);
        engine->manifest = manifest;
    }
    pthread_mutex_unlock(&engine->lock);
    note_health(engine);
    return st;
}

void *engine__loop(void *arg)
{
    struct engine *engine = arg;
    struct work work;

    while (collect(engine, &work)) {
        abort_all(work.canceled, "the request was canceled");
        dismiss(engine, work.canceled);
        if (work.job != NULL)
            end_job(engine, work.job, work.job->run(engine, work.job, &work.job->err));
        start_admitted(engine, work.admitted_from);
        if (engine->running_count > 0)
            run_step(engine);
    }
    abort_all(work.canceled, "the engine is stopping");
    dismiss(engine, work.canceled);
    while (work.job != NULL) {
        end_job(engine, work.job,
                err_set(&work.job->err, STATUS_CANCELED, "the engine is stopping"));
        collect(engine, &work);
    }
    return NULL;
}
