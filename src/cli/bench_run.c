/* cli/bench_run.c - one measured phase. See bench.h.
 *
 * Times and reports are taken in the engine's callbacks, on its thread and between two passes, so
 * that a phase begins and ends with whole passes. First goes a plug, a request of one token: its
 * last callback holds the engine until all others are queued, and then the clock starts. A decode
 * is over when the slowest request has its last token; the others, which may be ahead by the steps
 * that other prompts took, are canceled then: the batch is full all the time.
 *
 *     plug    |--|
 *     first      |prompt|t t t t t t t|x
 *     last       |      prompt|t t t t|
 *                ^ prefill    ^ decode^ */
#include <assert.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/clock.h"
#include "cli/bench.h"

#define VOCAB_SEED_STEP UINT64_C(0x9e3779b97f4a7c15)

struct bench;

struct bench_request {
    struct bench *bench;
    uint64_t id;           /* written by engine_submit before the engine's thread sees it */
    uint64_t token_count;  /* guarded by bench->lock */
};

struct bench {
    pthread_mutex_t lock;  /* guards what follows */
    pthread_cond_t changed;
    struct engine *engine;
    struct bench_request plug, *requests;
    struct offload *offload;
    bool has_plug_run, all_queued, is_over;
    uint32_t batch, live_count;
    uint64_t goal;         /* tokens of the slowest at which the phase is over */
    bool is_decode;
    json_t *report;        /* of the phase, taken at its end */
    uint64_t started_ns, ended_ns; /* of the phase; 0: not yet */
    uint64_t tokens_at_start, tokens_at_end;
    enum status status;
    struct err err;
};

uint64_t cli_bench_lead(const struct cli_bench_shape *shape, uint32_t step_row_count_max)
{
    const uint64_t rows_left = step_row_count_max > shape->batch
                                   ? step_row_count_max - shape->batch : 1;

    if (shape->batch == 1)
        return 0;
    return (uint64_t)shape->batch * shape->prompt_tokens / rows_left + 2 * shape->batch;
}

/* Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 17. */
static uint64_t splitmix(uint64_t *state)
{
    uint64_t z = *state += VOCAB_SEED_STEP;

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static void begin_phase(struct bench *bench)
{
    offload_report_reset(bench->offload);
    bench->started_ns = clock_now_ns();
}

/* What a batch has come to; the lock is held. */
static void look_at_all(struct bench *bench)
{
    uint64_t slowest = UINT64_MAX;
    uint64_t sum = 0;

    for (uint32_t i = 0; i < bench->batch; i++) {
        const uint64_t count = bench->requests[i].token_count;
        slowest = count < slowest ? count : slowest;
        sum += count;
    }
    if (bench->is_decode && slowest >= 1 && bench->started_ns == 0) {
        bench->tokens_at_start = sum;
        begin_phase(bench);
    }
    if (slowest >= bench->goal && bench->ended_ns == 0) {
        bench->ended_ns = clock_now_ns();
        bench->tokens_at_end = sum;
        bench->report = offload_report_json(bench->offload);
    }
}

/* The plug has run: the batch is asked for now, and may start once all of it waits; the lock is
 * held. */
static void pull_plug(struct bench *bench)
{
    bench->has_plug_run = true;
    (void)pthread_cond_broadcast(&bench->changed);
    while (!bench->all_queued)
        (void)pthread_cond_wait(&bench->changed, &bench->lock);
    if (!bench->is_decode)
        begin_phase(bench);
}

/* On the engine's thread. The last thing that is done with the bench is to say that the request is
 * done, since whoever waits for that frees it. */
static void on_output(void *user, const struct engine_output *output)
{
    struct bench_request *request = user;
    struct bench *bench = request->bench;
    bool cancel;

    (void)pthread_mutex_lock(&bench->lock);
    request->token_count += output->id_count;
    if (request != &bench->plug)
        look_at_all(bench);
    else if (output->finish != FINISH_NONE)
        pull_plug(bench);
    if (output->finish == FINISH_ABORT && output->status != STATUS_CANCELED &&
        bench->status == STATUS_OK)
        bench->status = err_set(&bench->err, output->status, "%s", output->message);
    cancel = !bench->is_over && (bench->ended_ns != 0 || bench->status != STATUS_OK);
    bench->is_over |= cancel;
    (void)pthread_mutex_unlock(&bench->lock);

    if (cancel)
        for (uint32_t i = 0; i < bench->batch; i++)
            engine_cancel(bench->engine, bench->requests[i].id);
    if (output->finish == FINISH_NONE)
        return;
    (void)pthread_mutex_lock(&bench->lock);
    bench->live_count--;
    (void)pthread_cond_signal(&bench->changed);
    (void)pthread_mutex_unlock(&bench->lock);
}

static enum status submit(struct bench *bench, struct bench_request *request, const int32_t *ids,
                          size_t count, uint64_t max_new_tokens, struct err *err)
{
    struct sampling_params params;
    enum status st;

    sampling_params_init(&params);
    params.temperature = 0;
    params.ignore_eos = true;
    params.max_new_tokens = (int64_t)max_new_tokens;
    request->bench = bench;
    (void)pthread_mutex_lock(&bench->lock);
    bench->live_count++;
    (void)pthread_mutex_unlock(&bench->lock);
    st = engine_submit(bench->engine,
                       &(struct engine_request){
                           .prompt_ids = ids,
                           .prompt_count = count,
                           .params = &params,
                           .on_output = on_output,
                           .user = request,
                           .token_by_token = true,
                       },
                       &request->id, err);
    if (st != STATUS_OK) {
        (void)pthread_mutex_lock(&bench->lock);
        bench->live_count--;
        bench->status = st; /* the next callback cancels what was queued before */
        (void)pthread_mutex_unlock(&bench->lock);
    }
    return st;
}

/* Submits the plug and the batch, with random prompts. */
static enum status submit_all(struct bench *bench, const struct cli_bench_shape *shape,
                              uint64_t max_new_tokens, struct err *err)
{
    const uint32_t vocab_size = engine_model_info(bench->engine)->vocab_size;
    int32_t *ids = calloc((size_t)shape->batch * shape->prompt_tokens, sizeof(*ids));
    uint64_t random = shape->seed;
    enum status st;

    if (ids == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %u prompts of %u tokens",
                       (unsigned)shape->batch, (unsigned)shape->prompt_tokens);
    for (size_t i = 0; i < (size_t)shape->batch * shape->prompt_tokens; i++)
        ids[i] = (int32_t)(splitmix(&random) % vocab_size);
    st = submit(bench, &bench->plug, ids, 1, 1, err);
    (void)pthread_mutex_lock(&bench->lock);
    while (st == STATUS_OK && !bench->has_plug_run)
        (void)pthread_cond_wait(&bench->changed, &bench->lock);
    (void)pthread_mutex_unlock(&bench->lock);
    for (uint32_t i = 0; i < shape->batch && st == STATUS_OK; i++)
        st = submit(bench, &bench->requests[i], ids + (size_t)i * shape->prompt_tokens,
                    shape->prompt_tokens, max_new_tokens, err);
    free(ids);
    return st;
}

/* Runs a batch to its goal. */
static enum status run(struct bench *bench, const struct cli_bench_shape *shape,
                       uint64_t max_new_tokens, struct cli_bench_phase *phase_out,
                       struct err *err)
{
    enum status st;

    (void)pthread_mutex_init(&bench->lock, NULL);
    (void)pthread_cond_init(&bench->changed, NULL);
    bench->batch = shape->batch;
    bench->requests = calloc(shape->batch, sizeof(*bench->requests));
    st = bench->requests == NULL
             ? err_set(err, STATUS_NO_MEMORY, "no memory for %u requests", (unsigned)shape->batch)
             : submit_all(bench, shape, max_new_tokens, err);
    (void)pthread_mutex_lock(&bench->lock);
    bench->all_queued = true;
    (void)pthread_cond_broadcast(&bench->changed);
    while (bench->live_count > 0)
        (void)pthread_cond_wait(&bench->changed, &bench->lock);
    (void)pthread_mutex_unlock(&bench->lock);
    if (st == STATUS_OK && bench->status != STATUS_OK)
        st = err_set(err, bench->status, "%s", bench->err.message);
    if (st == STATUS_OK) {
        assert(bench->ended_ns >= bench->started_ns && bench->started_ns > 0);
        *phase_out = (struct cli_bench_phase){
            .seconds = (double)(bench->ended_ns - bench->started_ns) * 1e-9,
            .tokens = bench->tokens_at_end - bench->tokens_at_start,
            .report = bench->report,
        };
    } else {
        json_decref(bench->report);
    }
    free(bench->requests);
    (void)pthread_cond_destroy(&bench->changed);
    (void)pthread_mutex_destroy(&bench->lock);
    return st;
}

enum status cli_bench_prefill(const struct cli_session *session,
                              const struct cli_bench_shape *shape,
                              struct cli_bench_phase *phase_out, struct err *err)
{
    struct bench bench = { .engine = session->engine,
                           .offload = model_offload(session->model),
                           .goal = 1 };
    const enum status st = run(&bench, shape, 1, phase_out, err);

    if (st == STATUS_OK)
        phase_out->tokens = (uint64_t)shape->batch * shape->prompt_tokens;
    return st;
}

enum status cli_bench_decode(const struct cli_session *session,
                             const struct cli_bench_shape *shape,
                             struct cli_bench_phase *phase_out, struct err *err)
{
    const uint32_t rows = engine_model_info(session->engine)->step_row_count_max;
    struct bench bench = { .engine = session->engine,
                           .offload = model_offload(session->model),
                           .goal = shape->gen_tokens,
                           .is_decode = true };

    return run(&bench, shape, shape->gen_tokens + cli_bench_lead(shape, rows), phase_out, err);
}
