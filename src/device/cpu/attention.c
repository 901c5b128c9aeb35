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
 * cache, or one row of several kv heads, which take turns tile by tile. Keys and values are found
 * through pointers, one per position, so where they lie changes nothing. A row's sum over j stops
 * at its own position, and begins where its window does: what other keys hold, NaN perhaps, must
 * not touch it. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "device/cpu/internal.h"

#define CPU_ATTENTION_TILE CPU_ATTENTION_KEYS
#define CPU_ATTENTION_QUERIES 32 /* (row, head) pairs that one task does together */
#define COPY_QUERIES_MIN 8
#define SLICES 4
#define CACHE_LINE_BYTES 64

struct attention_job {
    const struct cpu_executor *executor;
    const struct op_attention *op;
    uint32_t heads_per_task;     /* of the heads that share a kv head */
    uint32_t head_parts;         /* tasks that a kv head's heads fall into */
    uint32_t kv_heads_per_task;
    uint32_t rows_per_task;
    uint32_t row_blocks;         /* tasks of a part follow each other: its keys stay in the cache */
    uint64_t key_bytes, value_bytes;         /* of a kv head's in a token slot */
    struct op_cache_strides k_bytes, v_bytes; /* the op's, in bytes */
    bool is_latent;              /* values are a part of their keys, and widened with them */
    bool has_room;               /* for a tile in scratch */
};

/* The queries of one sequence that a task does at once, those of a kv head next to each other:
 * query = (kv head * row_count + row) * head_count + head. */
struct block {
    const struct attention_job *job;
    float *scratch;              /* a tile, widened: its keys, then its values */
    const int32_t *pages;        /* of the sequence */
    uint32_t kv_head, kv_head_count; /* the first of them */
    uint32_t row_count, head_count, query_count; /* queries of one kv head */
    const int32_t *positions;    /* [row_count] */
    const float *q[CPU_ATTENTION_QUERIES];
    float *out[CPU_ATTENTION_QUERIES];
    float max[CPU_ATTENTION_QUERIES];
    float sum[CPU_ATTENTION_QUERIES];
    uint32_t next, next_end;     /* positions of the tile after the one at hand */
    /* Of the tile at hand. */
    const float *keys[CPU_ATTENTION_TILE];
    const float *values[CPU_ATTENTION_TILE];
    float scores[CPU_ATTENTION_QUERIES][CPU_ATTENTION_TILE];
};

static uint32_t lesser(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

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

/* Elements of the cache in F32; room: for so many. Those that many queries read are copied: rows
 * of the cache are often a power of two apart, and fall into the same sets of the first-level
 * cache. */
static const float *widened(const struct block *block, const char *elements, uint32_t width,
                            float *room)
{
    const enum dtype dtype = block->job->op->cache_dtype;

    if (dtype == DTYPE_F32 && (block->query_count < COPY_QUERIES_MIN || !block->job->has_room))
        return (const float *)(const void *)elements;
    if (dtype == DTYPE_F32)
        memcpy(room, elements, width * sizeof(float));
    else
        block->job->executor->kernels->widen(room, dtype, elements, width);
    return room;
}

/* Follows the pages to a kv head's keys and values of positions [tile, end). */
static void find_tile(struct block *block, uint32_t kv_head, uint32_t tile, uint32_t end)
{
    const struct attention_job *job = block->job;
    const struct op_attention *op = job->op;
    const char *keys = (const char *)op->k_cache + kv_head * job->k_bytes.head;
    const char *values = (const char *)op->v_cache + kv_head * job->v_bytes.head;
    float *room = block->scratch;
    float *value_room = room + (uint64_t)CPU_ATTENTION_TILE * op->k_width;
    uint32_t page = tile / op->page_size;
    uint32_t offset = tile % op->page_size;

    for (uint32_t j = 0; j < end - tile; j++, room += op->k_width, value_room += op->v_width) {
        const uint64_t p = (uint64_t)block->pages[page];
        block->keys[j] = widened(block, keys + p * job->k_bytes.page + offset * job->k_bytes.slot,
                                 op->k_width, room);
        block->values[j] =
            job->is_latent ? block->keys[j]
                           : widened(block, values + p * job->v_bytes.page +
                                                offset * job->v_bytes.slot,
                                     op->v_width, value_room);
        if (++offset == op->page_size) {
            offset = 0;
            page++;
        }
    }
}

static void ask_for(const char *bytes, uint64_t count)
{
    for (uint64_t i = 0; i < count; i += CACHE_LINE_BYTES)
        __builtin_prefetch(bytes + i, 0, 2);
}

/* Asks for the part-th of parts of the next tile's keys and values of all kv heads of the block. */
static void ask_for_part(const struct block *block, uint32_t part, uint32_t parts)
{
    const struct attention_job *job = block->job;
    const struct op_attention *op = job->op;
    const uint32_t count = block->next_end - block->next;
    const uint32_t all = count * block->kv_head_count;

    for (uint32_t i = all * part / parts; i < all * (part + 1) / parts; i++) {
        const uint32_t position = block->next + i % count;
        const uint64_t kv_head = block->kv_head + i / count;
        const uint64_t page = (uint64_t)block->pages[position / op->page_size];
        const uint64_t offset = position % op->page_size;
        ask_for((const char *)op->k_cache + page * job->k_bytes.page +
                    kv_head * job->k_bytes.head + offset * job->k_bytes.slot,
                job->key_bytes);
        if (!job->is_latent)
            ask_for((const char *)op->v_cache + page * job->v_bytes.page +
                        kv_head * job->v_bytes.head + offset * job->v_bytes.slot,
                    job->value_bytes);
    }
}

/* scores[query][j] = q . key(tile + j) for a kv head's queries, also for keys that a row must not
 * see: they are left out later. */
static void score_keys(struct block *block, uint32_t first, struct span keys)
{
    const struct cpu_kernels *kernels = block->job->executor->kernels;
    const struct cpu_strip strip = {
        .out = block->scores[first] + keys.first,
        .x_rows = block->q + first,
        .weight_rows = block->keys + keys.first,
        .weight_dtype = DTYPE_F32,
        .row_count = block->query_count,
        .n_count = keys.end - keys.first,
        .k_count = block->job->op->k_width,
        .out_row_stride = CPU_ATTENTION_TILE,
    };

    if (kernels->score != NULL)
        kernels->score(strip.out, strip.out_row_stride, strip.x_rows, strip.row_count,
                       strip.weight_rows, strip.n_count, strip.k_count);
    else
        kernels->matmul(&strip, block->scratch);
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

/* Scores or values of a tile in SLICES slices, the next tile asked for between them, bit by bit:
 * much at a time would keep what computes from being started. Prompts use a tile for many queries,
 * and don't wait for the next. */
static void each_slice(struct block *block, uint32_t first, uint32_t key_count, bool is_score)
{
    const bool asks = block->query_count < COPY_QUERIES_MIN;
    const uint32_t size = asks ? CPU_ATTENTION_TILE / SLICES : CPU_ATTENTION_TILE;
    const uint32_t parts = 2 * SLICES * block->kv_head_count;
    uint32_t part = first / block->query_count * 2 * SLICES + (is_score ? 0 : SLICES);

    for (uint32_t j = 0; j < key_count; j += size, part++) {
        const struct span keys = { j, j + lesser(key_count - j, size) };
        if (asks)
            ask_for_part(block, part, parts);
        if (is_score)
            score_keys(block, first, keys);
        else
            add_values(block, first, block->query_count, keys);
    }
}

/* What a kv head's queries, from `first` on, make of its tile. */
static void attend_tile(struct block *block, uint32_t first, uint32_t tile, uint32_t end)
{
    const uint32_t key_count = end - tile;
    bool all_see_all = true;

    find_tile(block, block->kv_head + first / block->query_count, tile, end);
    each_slice(block, first, key_count, true);
    for (uint32_t row = 0; row < block->row_count; row++) {
        const struct span keys = keys_seen(block, row, tile);
        all_see_all = all_see_all && keys.first == 0 && keys.end == key_count;
        for (uint32_t h = 0; keys.first < keys.end && h < block->head_count; h++)
            soften(block, first + row * block->head_count + h, keys);
    }
    if (all_see_all) {
        each_slice(block, first, key_count, false);
        return;
    }
    for (uint32_t row = 0; row < block->row_count; row++) {
        const struct span keys = keys_seen(block, row, tile);
        if (keys.first < keys.end)
            add_values(block, first + row * block->head_count, block->head_count, keys);
    }
}

/* head: the first of kv_head's that are computed; row: the first of row_count, of one sequence. */
static void begin_block(struct block *block, uint32_t head, uint32_t row)
{
    const struct op_attention *op = block->job->op;
    const uint32_t group = op->head_count / op->kv_head_count;

    block->pages = op->pages + (uint64_t)op->sequences[row] * op->page_count_max;
    block->positions = op->positions + row;
    block->query_count = block->row_count * block->head_count;
    for (uint32_t i = 0; i < block->kv_head_count * block->query_count; i++) {
        const uint64_t r = row + i % block->query_count / block->head_count;
        const uint64_t h = head + i / block->query_count * group + i % block->head_count;
        block->q[i] = op->q + r * op->q_row_stride + h * op->k_width;
        block->out[i] = op->out + r * op->out_row_stride + h * op->v_width;
        block->max[i] = op->sinks != NULL ? op->sinks[h] : -INFINITY;
        block->sum[i] = op->sinks != NULL ? 1 : 0;
        memset(block->out[i], 0, op->v_width * sizeof(float));
    }
}

static void attend(struct block *block)
{
    const struct op_attention *op = block->job->op;
    const uint32_t query_end = block->kv_head_count * block->query_count;
    const uint32_t end = position_max(block) + 1;
    uint32_t tile = first_seen_min(block) / CPU_ATTENTION_TILE * CPU_ATTENTION_TILE;

    for (; tile < end; tile += CPU_ATTENTION_TILE) {
        const uint32_t tile_end = tile + lesser(end - tile, CPU_ATTENTION_TILE);
        block->next = tile_end;
        block->next_end = tile_end + lesser(end - tile_end, CPU_ATTENTION_TILE);
        for (uint32_t first = 0; first < query_end; first += block->query_count)
            attend_tile(block, first, tile, tile_end);
    }
    for (uint32_t i = 0; i < query_end; i++) {
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
    const uint32_t kv_first = part / job->head_parts * job->kv_heads_per_task;
    const uint32_t kv_end = lesser(kv_first + job->kv_heads_per_task, op->kv_head_count);
    uint32_t row = (uint32_t)(index % job->row_blocks) * job->rows_per_task;
    const uint32_t end = lesser(row + job->rows_per_task, op->row_count);
    struct block block = {
        .job = job,
        .scratch = cpu__scratch(job->executor, thread_index),
        .head_count = lesser(job->heads_per_task, group - first_in_group),
    };

    for (; row < end; row += block.row_count) {
        block.row_count = 1;
        while (row + block.row_count < end &&
               op->sequences[row + block.row_count] == op->sequences[row])
            block.row_count++;
        for (uint32_t kv = kv_first; kv < kv_end; kv += block.kv_head_count) {
            block.kv_head = kv;
            block.kv_head_count = lesser(
                kv_end - kv, CPU_ATTENTION_QUERIES / (block.row_count * block.head_count));
            begin_block(&block, kv * group + first_in_group, row);
            attend(&block);
        }
    }
}

/* Whether most rows stand next to one of their sequence: prompts. */
static bool has_runs(const struct op_attention *op)
{
    uint32_t pairs = 0;

    for (uint32_t row = 1; row < op->row_count; row++)
        pairs += op->sequences[row] == op->sequences[row - 1];
    return pairs > op->row_count / 2;
}

static uint64_t task_count(const struct attention_job *job)
{
    return (uint64_t)job->row_blocks * job->head_parts *
           ((job->op->kv_head_count - 1) / job->kv_heads_per_task + 1);
}

/* A row by itself reads keys and values once. It takes several kv heads' at a time, which lie next
 * to each other: the processor foresees such reads, and not those of single heads. The rows of a
 * prompt share what they read, a kv head's, so that it stays in the cache. */
static void share_out(struct attention_job *job)
{
    const struct op_attention *op = job->op;
    const uint32_t group = op->head_count / op->kv_head_count;
    const uint32_t threads = job->executor->thread_count;

    job->kv_heads_per_task = 1;
    job->heads_per_task = lesser(group, CPU_ATTENTION_QUERIES);
    job->rows_per_task = CPU_ATTENTION_QUERIES / job->heads_per_task;
    job->row_blocks = (op->row_count - 1) / job->rows_per_task + 1;
    for (;;) { /* few rows and few kv heads: share out the heads, so that no thread is idle */
        job->head_parts = (group - 1) / job->heads_per_task + 1;
        if (task_count(job) >= threads || job->heads_per_task <= 4)
            break;
        job->heads_per_task = (job->heads_per_task + 1) / 2;
    }
    if (has_runs(op))
        return;
    job->kv_heads_per_task = op->kv_head_count;
    while (job->kv_heads_per_task > 1 && task_count(job) < threads)
        job->kv_heads_per_task = (job->kv_heads_per_task + 1) / 2;
}

static struct op_cache_strides strides_in_bytes(enum dtype dtype, struct op_cache_strides strides)
{
    return (struct op_cache_strides){ dtype_row_bytes(dtype, strides.page),
                                      dtype_row_bytes(dtype, strides.head),
                                      dtype_row_bytes(dtype, strides.slot) };
}

void cpu__attention(struct cpu_executor *executor, const struct op_attention *op)
{
    const bool is_latent = op->v_cache == op->k_cache && op->kv_head_count == 1;
    struct attention_job job = {
        .executor = executor, .op = op, .is_latent = is_latent,
        .has_room = (uint64_t)op->k_width + op->v_width <= CPU_ATTENTION_ELEMENTS_MAX,
        .key_bytes = dtype_row_bytes(op->cache_dtype, op->k_width),
        .value_bytes = is_latent ? 0 : dtype_row_bytes(op->cache_dtype, op->v_width),
        .k_bytes = strides_in_bytes(op->cache_dtype, op->k_strides),
        .v_bytes = strides_in_bytes(op->cache_dtype, op->v_strides),
    };

    share_out(&job);
    thread_pool_run(executor->pool, (size_t)task_count(&job), attention_task, &job);
}
