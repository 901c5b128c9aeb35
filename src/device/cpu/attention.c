/* device/cpu/attention.c - OP_ATTENTION: softmax over a paged cache, a tile of keys at a time.
 *
 * Keys are visited in tiles of CPU_ATTENTION_TILE positions, counted from position 0, so that a
 * row's tiles are the same however its prompt was cut (Milakov and Gimelshein 2018, arXiv
 * 1805.02867, algorithm 3, by tiles). For a query with maximum m, sum l and output o so far:
 *
 *     m' = max(m, the tile's scores)      p_j = exp(score_j - m')      f = exp(m - m')
 *     l' = l * f + sum p_j                o' = o * f + sum p_j v_j, j ascending
 *
 * A sink is where m and l begin: at its logit and at 1. A window makes a row's first tile begin
 * later, or within; tiles that lie before every row's window are left out.
 *
 * Keys and values that the cache has in F16 or Q8_0 are widened to F32, a tile at a time: once for
 * all queries of a task, in memory that stays in the second-level cache. Sums are those of F32.
 *
 * A task is a few rows of one kv head, so that a key is used for several queries while it is in the
 * cache. Keys and values are found through pointers, one per position, so where they lie changes
 * nothing. A row's sum over j stops at its own position, and begins where its window does: what
 * other keys hold, NaN perhaps, must not touch it. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "device/cpu/internal.h"

#define CPU_ATTENTION_TILE CPU_ATTENTION_KEYS
#define CPU_ATTENTION_QUERIES 32 /* (row, head) pairs that one task does together */

struct attention_job {
    const struct cpu_executor *executor;
    const struct op_attention *op;
    uint32_t heads_per_task;     /* of the heads that share a kv head */
    uint32_t head_parts;         /* tasks that a kv head's heads fall into */
    uint32_t rows_per_task;
    uint32_t row_blocks;         /* tasks of a part follow each other: its keys stay in the cache */
};

/* The queries of one sequence that a task does at once. */
struct block {
    const struct attention_job *job;
    float *scratch;              /* a tile, widened: its keys, then its values */
    const int32_t *pages;        /* of the sequence */
    uint32_t kv_head;
    uint32_t row_count, head_count, query_count; /* query = row * head_count + head */
    const int32_t *positions;    /* [row_count] */
    const float *q[CPU_ATTENTION_QUERIES];
    float *out[CPU_ATTENTION_QUERIES];
    float max[CPU_ATTENTION_QUERIES];
    float sum[CPU_ATTENTION_QUERIES];
    /* Of the tile at hand. */
    const float *keys[CPU_ATTENTION_TILE];
    const float *values[CPU_ATTENTION_TILE];
    float scores[CPU_ATTENTION_QUERIES][CPU_ATTENTION_TILE];
};

static uint32_t position_max(const struct block *block)
{
    int32_t max = block->positions[0];

    for (uint32_t r = 1; r < block->row_count; r++)
        max = block->positions[r] > max ? block->positions[r] : max;
    return (uint32_t)max;
}

/* Where the row's window begins. */
static uint32_t first_seen(const struct block *block, uint32_t row)
{
    const uint32_t window = block->job->op->window;
    const uint32_t end = (uint32_t)block->positions[row] + 1;

    if (block->job->op->chunked)
        return (end - 1) / window * window;
    return window == 0 || window >= end ? 0 : end - window;
}

static uint32_t first_seen_min(const struct block *block)
{
    uint32_t min = first_seen(block, 0);

    for (uint32_t r = 1; r < block->row_count; r++)
        min = first_seen(block, r) < min ? first_seen(block, r) : min;
    return min;
}

/* The keys of a tile that a row sees: [first, end), counted from the tile's first. */
struct span {
    uint32_t first, end;
};

static uint32_t within_tile(int64_t count)
{
    return count < 0 ? 0 : count > CPU_ATTENTION_TILE ? CPU_ATTENTION_TILE : (uint32_t)count;
}

static struct span keys_seen(const struct block *block, uint32_t row, uint32_t tile)
{
    return (struct span){ within_tile((int64_t)first_seen(block, row) - tile),
                          within_tile((int64_t)block->positions[row] + 1 - tile) };
}

/* Of a row of the cache the elements from `at` on, in F32; room: for so many. */
static const float *find_row(const struct block *block, const void *cache, uint64_t at,
                             uint32_t width, float *room)
{
    const struct op_attention *op = block->job->op;
    const char *row = (const char *)cache + dtype_row_bytes(op->cache_dtype, at);

    if (op->cache_dtype == DTYPE_F32)
        return (const float *)(const void *)row;
    block->job->executor->kernels->widen(room, op->cache_dtype, row, width);
    return room;
}

/* Follows the pages to the keys and values of positions [tile, end). Latent values are a part of
 * their keys, and widened with them. */
static void find_tile(struct block *block, uint32_t tile, uint32_t end)
{
    const struct op_attention *op = block->job->op;
    const uint64_t k_at = (uint64_t)block->kv_head * op->k_width;
    const uint64_t v_at = (uint64_t)block->kv_head * op->v_width;
    const bool is_latent = op->v_cache == op->k_cache && op->kv_head_count == 1;
    float *keys = block->scratch;
    float *values = keys + (uint64_t)CPU_ATTENTION_TILE * op->k_width;
    uint32_t page = tile / op->page_size;
    uint32_t offset = tile % op->page_size;

    for (uint32_t j = 0; j < end - tile; j++, keys += op->k_width, values += op->v_width) {
        const uint64_t slot = (uint64_t)block->pages[page] * op->page_size + offset;
        block->keys[j] = find_row(block, op->k_cache, slot * op->k_cache_row_stride + k_at,
                                  op->k_width, keys);
        block->values[j] = is_latent ? block->keys[j]
                                     : find_row(block, op->v_cache,
                                                slot * op->v_cache_row_stride + v_at,
                                                op->v_width, values);
        if (++offset == op->page_size) {
            offset = 0;
            page++;
        }
    }
}

/* scores[query][j] = q . key(tile + j) for all queries, also for keys that a row must not see: they
 * are left out later. */
static void score_tile(struct block *block, uint32_t key_count)
{
    const struct cpu_strip strip = {
        .out = block->scores[0],
        .x_rows = block->q,
        .weight_rows = block->keys,
        .weight_dtype = DTYPE_F32,
        .row_count = block->query_count,
        .n_count = key_count,
        .k_count = block->job->op->k_width,
        .out_row_stride = CPU_ATTENTION_TILE,
    };

    block->job->executor->kernels->matmul(&strip, block->scratch);
}

/* Scales one query's scores, caps them where the op says so, and returns the largest so far. */
static float scale_scores(struct block *block, uint32_t query, float *scores, uint32_t count)
{
    const struct op_attention *op = block->job->op;
    const struct cpu_kernels *kernels = block->job->executor->kernels;

    if (op->score_cap == 0)
        return kernels->scale_max(scores, count, op->scale, block->max[query]);
    (void)kernels->scale_max(scores, count, op->scale, 0);
    kernels->soft_cap(scores, count, op->score_cap);
    return kernels->scale_max(scores, count, 1, block->max[query]);
}

/* Turns one query's scores of some keys into weights and makes room for them in its sums. */
static void soften(struct block *block, uint32_t query, struct span keys)
{
    const struct op_attention *op = block->job->op;
    const struct cpu_kernels *kernels = block->job->executor->kernels;
    const uint32_t count = keys.end - keys.first;
    float *scores = block->scores[query] + keys.first;
    float *out = block->out[query];
    const float max = scale_scores(block, query, scores, count);

    if (max != block->max[query]) { /* else f is 1 */
        float keep;
        (void)kernels->exp_minus(&keep, &block->max[query], 1, max);
        block->sum[query] *= keep;
        for (uint32_t i = 0; i < op->v_width; i++)
            out[i] *= keep;
    }
    block->sum[query] += kernels->exp_minus(scores, scores, count, max);
    block->max[query] = max;
}

/* out[query] += the weights of these keys times their values. */
static void add_values(struct block *block, uint32_t query, uint32_t query_count, struct span keys)
{
    block->job->executor->kernels->add_weighted_rows(
        &block->out[query], query_count, block->scores[query] + keys.first, CPU_ATTENTION_TILE,
        block->values + keys.first, keys.end - keys.first, block->job->op->v_width);
}

static void attend_tile(struct block *block, uint32_t tile, uint32_t end)
{
    const struct span all = { 0, end - tile };
    bool all_see_all = true;

    find_tile(block, tile, end);
    score_tile(block, end - tile);
    for (uint32_t row = 0; row < block->row_count; row++) {
        const struct span keys = keys_seen(block, row, tile);
        all_see_all = all_see_all && keys.first == 0 && keys.end == all.end;
        for (uint32_t h = 0; keys.first < keys.end && h < block->head_count; h++)
            soften(block, row * block->head_count + h, keys);
    }
    if (all_see_all) {
        add_values(block, 0, block->query_count, all);
        return;
    }
    for (uint32_t row = 0; row < block->row_count; row++) {
        const struct span keys = keys_seen(block, row, tile);
        if (keys.first < keys.end)
            add_values(block, row * block->head_count, block->head_count, keys);
    }
}

/* Rows [first, first + count) are of one sequence. */
static void attend(struct block *block, uint32_t head, uint32_t first, uint32_t count)
{
    const struct op_attention *op = block->job->op;
    uint32_t end, tile;

    block->pages = op->pages + (uint64_t)op->sequences[first] * op->page_count_max;
    block->positions = op->positions + first;
    block->row_count = count;
    block->query_count = count * block->head_count;
    for (uint32_t i = 0; i < block->query_count; i++) {
        const uint64_t row = first + i / block->head_count;
        const uint64_t h = head + i % block->head_count;
        block->q[i] = op->q + row * op->q_row_stride + h * op->k_width;
        block->out[i] = op->out + row * op->out_row_stride + h * op->v_width;
        block->max[i] = op->sinks != NULL ? op->sinks[h] : -INFINITY;
        block->sum[i] = op->sinks != NULL ? 1 : 0;
        memset(block->out[i], 0, op->v_width * sizeof(float));
    }
    end = position_max(block) + 1;
    tile = first_seen_min(block) / CPU_ATTENTION_TILE * CPU_ATTENTION_TILE;
    for (; tile < end; tile += CPU_ATTENTION_TILE)
        attend_tile(block, tile, end - tile < CPU_ATTENTION_TILE ? end : tile + CPU_ATTENTION_TILE);
    for (uint32_t i = 0; i < block->query_count; i++) {
        for (uint32_t v = 0; v < op->v_width; v++)
            block->out[i][v] /= block->sum[i];
    }
}

static void attention_task(void *context, size_t index, uint32_t thread_index)
{
    const struct attention_job *job = context;
    const struct op_attention *op = job->op;
    const uint32_t group = op->head_count / op->kv_head_count;
    const uint32_t part = (uint32_t)(index / job->row_blocks);
    const uint32_t first_in_group = part % job->head_parts * job->heads_per_task;
    uint32_t row = (uint32_t)(index % job->row_blocks) * job->rows_per_task;
    const uint32_t left = op->row_count - row;
    const uint32_t end = row + (left < job->rows_per_task ? left : job->rows_per_task);
    struct block block = {
        .job = job,
        .scratch = cpu__scratch(job->executor, thread_index),
        .kv_head = part / job->head_parts,
        .head_count = group - first_in_group < job->heads_per_task ? group - first_in_group
                                                                   : job->heads_per_task,
    };

    while (row < end) {
        uint32_t count = 1;
        while (row + count < end && op->sequences[row + count] == op->sequences[row])
            count++;
        attend(&block, block.kv_head * group + first_in_group, row, count);
        row += count;
    }
}

void cpu__attention(struct cpu_executor *executor, const struct op_attention *op)
{
    const uint32_t group = op->head_count / op->kv_head_count;
    struct attention_job job = { .executor = executor, .op = op };
    uint64_t tasks;

    job.heads_per_task = group < CPU_ATTENTION_QUERIES ? group : CPU_ATTENTION_QUERIES;
    job.rows_per_task = CPU_ATTENTION_QUERIES / job.heads_per_task;
    job.row_blocks = (op->row_count - 1) / job.rows_per_task + 1;
    for (;;) { /* few rows and few kv heads: share out the heads, so that no thread is idle */
        job.head_parts = (group - 1) / job.heads_per_task + 1;
        tasks = (uint64_t)job.row_blocks * op->kv_head_count * job.head_parts;
        if (tasks >= executor->thread_count || job.heads_per_task <= 4)
            break;
        job.heads_per_task = (job.heads_per_task + 1) / 2;
    }
    thread_pool_run(executor->pool, (size_t)tasks, attention_task, &job);
}
