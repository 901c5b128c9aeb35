/* cli/bench_bound.c - what the machine could do at best: the bytes that a decode step cannot do
 * without, and how fast memory can be read. See bench.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/memory_left.h"
#include "base/size.h"
#include "base/thread_pool.h"
#include "cli/bench.h"
#include "model/model.h"
#include "tensor/quant.h"

#define READ_BYTES_MAX (512 * MIB)
#define READ_PASSES 8
#define HUGE_PAGE_BYTES (2 * MIB)
#define PLACES 4 /* that a thread reads at once, as the kernels do: one is not fetched in time */
#define LANES 8

static int64_t config_int(const json_t *config, const char *const *keys)
{
    for (; *keys != NULL; keys++)
        if (json_is_integer(json_object_get(config, *keys)))
            return json_integer_value(json_object_get(config, *keys));
    return 0;
}

/* The share of the experts that a batch of independent tokens is expected to hit. */
static double expert_share(const json_t *config, uint32_t batch)
{
    static const char *const counts[] = { "n_routed_experts", "num_experts", "num_local_experts",
                                          NULL };
    static const char *const chosen[] = { "num_experts_per_tok", NULL };
    const double count = (double)config_int(config, counts);
    const double top_k = (double)config_int(config, chosen);

    if (count < 1 || top_k >= count)
        return 1;
    return 1 - pow(1 - top_k / count, batch);
}

static bool is_past_last_layer(const char *name, uint32_t layer_count)
{
    unsigned layer = 0;

    return sscanf(name, "model.layers.%u.", &layer) == 1 && layer >= layer_count;
}

void cli_bench_bytes(const struct ckpt *ckpt, const struct model_info *info,
                     const struct cli_bench_shape *shape, struct cli_bench_bytes *bytes_out)
{
    const double share = expert_share(ckpt_config(ckpt), shape->batch);
    const bool tied = json_is_true(json_object_get(ckpt_config(ckpt), "tie_word_embeddings")) ||
                      ckpt_find(ckpt, "lm_head.weight") == NULL;
    double per_step = 0;

    for (size_t i = 0; i < ckpt_tensor_count(ckpt); i++) {
        const struct ckpt_tensor *tensor = ckpt_tensor_at(ckpt, i);
        const bool quantised = quant_is_quantised(info->weight_dtype) &&
                               tensor->dtype != DTYPE_COUNT;
        uint64_t elements = 0;
        uint64_t bytes = 0;

        if (is_past_last_layer(tensor->name, info->layer_count) ||
            (tied && strcmp(tensor->name, "lm_head.weight") == 0))
            continue;
        (void)tensor_element_count(tensor->rank, tensor->shape, &elements);
        (void)dtype_bytes(quantised ? tensor->dtype : info->weight_dtype, elements, &bytes);
        if (strcmp(tensor->name, "model.embed_tokens.weight") == 0 && !tied)
            continue; /* a few rows */
        per_step += (double)bytes * (strstr(tensor->name, ".experts.") != NULL ? share : 1);
    }
    *bytes_out = (struct cli_bench_bytes){
        .weights = info->weight_bytes,
        .weights_per_step = (uint64_t)per_step,
        .kv_per_step = shape->batch *
                       model_kv_bytes(info, shape->prompt_tokens + shape->gen_tokens / 2),
    };
}

struct read_job {
    const uint64_t *words;
    size_t words_each;
    uint64_t *sums; /* one for each task, so that the reads are not for nothing */
};

static void read_task(void *context, size_t index, uint32_t thread_index)
{
    const struct read_job *job = context;
    const uint64_t *words = job->words + index * job->words_each;
    const size_t words_of_place = job->words_each / PLACES;
    uint64_t lanes[LANES] = { 0 };

    (void)thread_index;
    for (size_t i = 0; i + LANES <= words_of_place; i += LANES)
        for (size_t place = 0; place < PLACES; place++)
            for (size_t lane = 0; lane < LANES; lane++)
                lanes[lane] += words[place * words_of_place + i + lane];
    for (size_t lane = 0; lane < LANES; lane++)
        job->sums[index] += lanes[lane];
}

enum status cli_bench_read_bandwidth(uint32_t thread_count, double *bytes_per_s_out,
                                     struct err *err)
{
    struct thread_pool *pool = NULL;
    const uint64_t room_bytes = memory_left_bytes() / 2;
    const uint64_t read_bytes = room_bytes > READ_BYTES_MAX    ? READ_BYTES_MAX
                                : room_bytes < HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES
                                : room_bytes / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    uint64_t *words = aligned_alloc(HUGE_PAGE_BYTES, read_bytes);
    uint64_t *sums = calloc(thread_count, sizeof(*sums));
    struct read_job job = { words, read_bytes / sizeof(*words) / thread_count, sums };
    double best_s = INFINITY;
    enum status st = STATUS_OK;

    if (words == NULL || sums == NULL) {
        st = err_set(err, STATUS_NO_MEMORY, "no memory to measure its bandwidth with");
        goto done;
    }
    (void)madvise(words, read_bytes, MADV_HUGEPAGE); /* an ordinary page does too */
    st = thread_pool_create(thread_count, &pool, err);
    if (st == STATUS_OK) {
        memset(words, 1, read_bytes); /* real pages, not the one page of zeros */
        for (int pass = 0; pass < READ_PASSES; pass++) {
            const uint64_t from_ns = clock_now_ns();
            double seconds;
            thread_pool_run(pool, thread_count, read_task, &job);
            seconds = (double)(clock_now_ns() - from_ns) * 1e-9;
            best_s = seconds < best_s ? seconds : best_s;
        }
        *bytes_per_s_out = (double)read_bytes / best_s;
    }
done:
    thread_pool_destroy(pool);
    free(sums);
    free(words);
    return st;
}
