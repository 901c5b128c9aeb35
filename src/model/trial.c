/* model/trial.c - how long steps of a small model take, found out by making it and running some.
 *
 * A forecast reckons with rates of bytes. Where a model has few, a step is made of what each
 * operator, each thread that is woken and each onload takes by itself, and which of them run beside
 * each other depends on the machine more than on the model. But such a model is loaded in no time.
 * So it is made as it will be, with the same options, runs on a prompt of no meaning and goes on as
 * it likes itself, and is destroyed before the real one takes its memory. Nothing of it stays: no
 * timeline, no memory of what routers chose, and no cache file that the real one would not make. */
#include <stdlib.h>

#include "base/clock.h"
#include "model/internal.h"

#define WARM_STEPS 8   /* fill slots, caches and the pages of memory */
#define STEPS 64       /* whose mean counts: reads that take long are a part of it */
#define WARM_PROMPTS 1
#define PROMPTS 2
#define SCATTER 2654435761u /* neighbours become unlike: Knuth's multiplicative hash */

struct trial {
    struct model *model;
    int32_t *ids, *positions, *wanted; /* what step points to: one piece of memory */
    float *logits;     /* [vocab_size] */
    int32_t next;      /* the token that these make likeliest */
    struct model_step step;
};

static void trial_close(struct trial *trial)
{
    free(trial->logits);
    free(trial->ids);
    model_destroy(trial->model);
}

static uint32_t tokens_max(const struct model *model)
{
    const struct model_info *info = &model->info;
    const uint64_t pages = info->window_layer_count > 0 &&
                                   info->kv_window_page_count < info->kv_page_count
                               ? info->kv_window_page_count : info->kv_page_count;
    const uint64_t tokens = pages * info->kv_page_size;

    return tokens < info->context_length ? (uint32_t)tokens : info->context_length;
}

static enum status trial_open(struct trial *trial, struct device *device, const struct ckpt *ckpt,
                              const struct model_options *options, uint32_t row_count,
                              struct err *err)
{
    struct model_options own = *options;
    int32_t *sequences, *pages;
    uint32_t page_count;
    enum status st;

    own.measure = NULL;
    own.plan_only = false;
    own.offload.trace = NULL;
    own.offload.forgets = true;
    own.offload.late_bytes_min = UINT64_MAX;
    if (options->plan_only)
        own.offload.cache_dir = NULL;
    st = model_create(device, ckpt, &own, NULL, NULL, &trial->model, err);
    if (st != STATUS_OK)
        return st;
    page_count = trial->model->info.kv_page_count;
    trial->ids = calloc(3 * (size_t)row_count + 1 + page_count, sizeof(*trial->ids));
    trial->logits = calloc(trial->model->info.vocab_size, sizeof(*trial->logits));
    if (trial->ids == NULL || trial->logits == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to try a model out");
    trial->positions = trial->ids + row_count;
    sequences = trial->positions + row_count; /* all 0 */
    trial->wanted = sequences + row_count;
    pages = trial->wanted + 1;
    for (uint32_t i = 0; i < page_count; i++)
        pages[i] = (int32_t)i;
    trial->step = (struct model_step){
        .sequence_count = 1, .page_count_max = page_count, .token_ids = trial->ids,
        .positions = trial->positions, .sequences = sequences, .slots = trial->positions,
        .pages = pages, .window_slots = trial->positions, .window_pages = pages,
        .logits_row_count = 1, .logits_rows = trial->wanted,
    };
    return STATUS_OK;
}

static int32_t likeliest(const struct trial *trial)
{
    const uint32_t count = trial->model->info.vocab_size;
    uint32_t best = 0;

    for (uint32_t i = 1; i < count; i++)
        best = trial->logits[i] > trial->logits[best] ? i : best;
    return (int32_t)best;
}

/* A step of rows from a position on, whose slots are their positions: of a prompt, or of the token
 * that the last step made likeliest. */
static enum status run(struct trial *trial, uint32_t first, uint32_t row_count,
                       double *seconds_out, struct err *err)
{
    const uint32_t vocab_size = trial->model->info.vocab_size;
    uint64_t began_ns;
    enum status st;

    trial->step.row_count = row_count;
    for (uint32_t i = 0; i < row_count; i++) {
        trial->ids[i] = first > 0 ? trial->next : (int32_t)((first + i) * SCATTER % vocab_size);
        trial->positions[i] = (int32_t)(first + i);
    }
    *trial->wanted = (int32_t)row_count - 1;
    began_ns = clock_now_ns();
    st = model_forward(trial->model, &trial->step, trial->logits, err);
    *seconds_out = (double)(clock_now_ns() - began_ns) * 1e-9;
    trial->next = likeliest(trial);
    return st;
}

bool model__try(struct device *device, const struct ckpt *ckpt,
                const struct model_options *options, uint32_t prompt_tokens,
                struct model_trial *trial_out)
{
    double step_s = 0, steps_s = 0, prompts_s = 0;
    const uint32_t capacity = options->step_row_count_max;
    uint32_t rows = prompt_tokens < capacity ? prompt_tokens : capacity, next;
    struct trial trial = { .model = NULL };
    struct err err;
    enum status st = trial_open(&trial, device, ckpt, options, capacity, &err);

    if (st == STATUS_OK) {
        const uint32_t most = tokens_max(trial.model);

        rows = rows < most ? rows : most - 1;
        next = rows;
        for (int i = 0; st == STATUS_OK && rows > 0 && i < WARM_PROMPTS + PROMPTS; i++) {
            st = run(&trial, 0, rows, &step_s, &err);
            prompts_s += i < WARM_PROMPTS ? 0 : step_s;
        }
        for (int i = 0; st == STATUS_OK && i < WARM_STEPS + STEPS; i++) {
            st = run(&trial, next, 1, &step_s, &err);
            steps_s += i < WARM_STEPS ? 0 : step_s;
            next += next + 1 < most ? 1 : 0;
        }
    }
    trial_close(&trial);
    if (st != STATUS_OK)
        return false;
    *trial_out = (struct model_trial){
        .decode_s = steps_s / STEPS,
        .prefill_s = prompts_s / PROMPTS,
        .row_count = rows,
    };
    return true;
}
