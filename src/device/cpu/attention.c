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
 * Keys and values that the cache has in F16 or Q8_0 are widened to F32: in registers where few
 * queries read them, else a tile at a time, once for all queries of a task, in memory that stays in
 * the second-level cache. Where many do, keys are turned around there (kernels.h), so that scores
 * of sixteen keys are a vector. Sums are those of F32, and the same each way.
 *
 * A task is one kv head and a few rows, so that a key is used for several queries while it is in
 * the cache. Keys and values are found through pointers, one per position, so where they lie
 * changes nothing. A row's sum over j stops at its own position, and begins where its window does:
 * what other keys hold, NaN perhaps, must not touch it. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "device/cpu/internal.h"

#define CPU_ATTENTION_TILE CPU_ATTENTION_KEYS
#define CPU_ATTENTION_QUERIES 64 /* (row, head) pairs that one task does together */
#define NARROW_QUERIES_MAX 4  /* that widen a key by themselves */
#define COPY_QUERIES_MIN 8
#define TURN_QUERIES_MIN 16
#define CACHE_LINE_BYTES 64
/* Of a slice's keys and values: with its scores and with its values half as much is asked for,
 * sixteen lines, which is what a core can wait for at a time. */
#define SLICE_BYTES (2 * 16 * CACHE_LINE_BYTES)
#define SLICE_KEYS_MIN 4
#define SLICE_KEYS_MAX 16

struct attention_job {
    const struct cpu_executor *executor;
    const struct op_attention *op;
    uint32_t heads_per_task;     /* of the heads that share a kv head */
    uint32_t head_parts;         /* tasks that a kv head's heads fall into */
    uint32_t rows_per_task;
    uint32_t row_blocks;         /* tasks of a part follow each other: its keys stay in the cache */
    uint64_t key_bytes, value_bytes;         /* of a kv head's in a token slot */
    struct op_cache_strides k_bytes, v_bytes; /* the op's, in bytes */
    bool is_latent;              /* values are a part of their keys, and widened with them */
    bool is_apart;               /* other heads' lie between one head's */
    bool has_room;               /* for a tile in scratch */
};

/* A tile's keys or values. */
struct tile_rows {
    union {
        const void *cached[CPU_ATTENTION_TILE]; /* of any dtype */
        const float *floats[CPU_ATTENTION_TILE];
    };
    enum dtype dtype;
};

/* The queries of one sequence and kv head that a task does at once: query = row * head_count +
 * head. */
struct block {
    const struct attention_job *job;
    float *scratch;              /* a tile in F32: its keys, then its values */
    const int32_t *pages;        /* of the sequence */
    uint32_t kv_head;
    uint32_t row_count, head_count, query_count;
    bool copies;                 /* keys and values are copied to scratch, as F32 */
    bool turns;                  /* keys are turned around there instead */
    const int32_t *positions;    /* [row_count] */
    const float *q[CPU_ATTENTION_QUERIES];
    float *out[CPU_ATTENTION_QUERIES];
    float max[CPU_ATTENTION_QUERIES];
    float sum[CPU_ATTENTION_QUERIES];
    uint32_t next, next_end;     /* positions of the tile after the one at hand */
    /* Of the tile at hand. */
    struct tile_rows keys, values;
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

/* Follows the pages to a kv head's rows of positions [tile, end). */
static void find_rows(const struct block *block, const void *cache,
                      const struct op_cache_strides *strides, uint32_t tile, uint32_t end,
                      struct tile_rows *rows)
{
    const uint32_t page_size = block->job->op->page_size;
    const char *head = (const char *)cache + block->kv_head * strides->head;
    const int32_t *page = block->pages + tile / page_size;
    uint32_t offset = tile % page_size;

    rows->dtype = block->job->op->cache_dtype;
    for (uint32_t j = 0; j < end - tile; page++, offset = 0) {
        const char *row = head + (uint64_t)*page * strides->page + offset * strides->slot;
        for (; offset < page_size && j < end - tile; offset++, j++, row += strides->slot)
            rows->cached[j] = row;
    }
}

/* Makes F32 of rows, in room. Those that the cache has in F32 are copied where other heads' lie in
 * between: they are often a power of two apart, and fall into the same sets of the first-level
 * cache. */
static void copy_rows(const struct block *block, struct tile_rows *rows, uint32_t count,
                      uint32_t width, float *room)
{
    for (uint32_t j = 0; j < count; j++, room += width) {
        if (rows->dtype == DTYPE_F32)
            memcpy(room, rows->floats[j], width * sizeof(float));
        else
            block->job->executor->kernels->widen(room, rows->dtype, rows->cached[j], width);
        rows->floats[j] = room;
    }
    rows->dtype = DTYPE_F32;
}

/* Keys and values of positions [tile, end), as this block reads them. */
static void find_tile(struct block *block, uint32_t tile, uint32_t end)
{
    const struct attention_job *job = block->job;
    const struct op_attention *op = job->op;
    float *value_room = block->scratch + (uint64_t)CPU_ATTENTION_TILE * op->k_width;

    find_rows(block, op->k_cache, &job->k_bytes, tile, end, &block->keys);
    if (block->turns)
        job->executor->kernels->turn_keys(block->scratch, op->cache_dtype, block->keys.cached,
                                          end - tile, op->k_width);
    else if (block->copies)
        copy_rows(block, &block->keys, end - tile, op->k_width, block->scratch);
    if (job->is_latent) {
        block->values = block->keys;
        return;
    }
    find_rows(block, op->v_cache, &job->v_bytes, tile, end, &block->values);
    if (block->copies)
        copy_rows(block, &block->values, end - tile, op->v_width, value_room);
}

static void ask_for(const char *row, uint64_t row_count, uint64_t row_bytes, uint64_t stride)
{
    if (stride == row_bytes) { /* they lie together */
        row_bytes *= row_count;
        row_count = 1;
    }
    for (; row_count > 0; row_count--, row += stride)
        for (uint64_t i = 0; i < row_bytes; i += CACHE_LINE_BYTES)
            __builtin_prefetch(row + i, 0, 2);
}

/* Asks for the part-th of parts of the next tile's keys and values. */
static void ask_for_part(const struct block *block, uint32_t part, uint32_t parts)
{
    const struct attention_job *job = block->job;
    const struct op_attention *op = job->op;
    const uint32_t count = block->next_end - block->next;
    const char *keys = (const char *)op->k_cache + block->kv_head * job->k_bytes.head;
    const char *values = (const char *)op->v_cache + block->kv_head * job->v_bytes.head;
    const uint32_t end = block->next + count * (part + 1) / parts;
    uint32_t position = block->next + count * part / parts;

    while (position < end) {
        const uint64_t page = (uint64_t)block->pages[position / op->page_size];
        const uint64_t offset = position % op->page_size;
        const uint32_t rows = lesser(end - position, op->page_size - (uint32_t)offset);
        ask_for(keys + page * job->k_bytes.page + offset * job->k_bytes.slot, rows,
                job->key_bytes, job->k_bytes.slot);
        if (!job->is_latent)
            ask_for(values + page * job->v_bytes.page + offset * job->v_bytes.slot, rows,
                    job->value_bytes, job->v_bytes.slot);
        position += rows;
    }
}

/* scores[query][j] = q . key(tile + j), also for keys that a row must not see: they are left out
 * later. */
static void score_keys(struct block *block, struct span keys)
{
    const struct cpu_kernels *kernels = block->job->executor->kernels;
    const struct cpu_strip strip = {
        .out = block->scores[0] + keys.first,
        .x_rows = block->q,
        .weight_rows = block->keys.floats + keys.first,
        .weight_dtype = DTYPE_F32,
        .row_count = block->query_count,
        .n_count = keys.end - keys.first,
        .k_count = block->job->op->k_width,
        .out_row_stride = CPU_ATTENTION_TILE,
    };

    if (block->turns)
        kernels->turned_score(strip.out, strip.out_row_stride, strip.x_rows, strip.row_count,
                              block->scratch, strip.n_count, strip.k_count);
    else if (kernels->score != NULL)
        kernels->score(strip.out, strip.out_row_stride, strip.x_rows, strip.row_count,
                       block->keys.dtype, block->keys.cached + keys.first, strip.n_count,
                       strip.k_count);
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
    const struct cpu_kernels *kernels = block->job->executor->kernels;
    const float *weights = block->scores[query] + keys.first;
    const uint32_t count = keys.end - keys.first, width = block->job->op->v_width;

    if (kernels->add_cached_rows != NULL)
        kernels->add_cached_rows(&block->out[query], query_count, weights, CPU_ATTENTION_TILE,
                                 block->values.dtype, block->values.cached + keys.first, count,
                                 width);
    else
        kernels->add_weighted_rows(&block->out[query], query_count, weights, CPU_ATTENTION_TILE,
                                   block->values.floats + keys.first, count, width);
}

static uint32_t slice_keys(const struct attention_job *job)
{
    const uint64_t bytes = job->key_bytes + (job->is_latent ? 0 : job->value_bytes);
    const uint64_t keys = (SLICE_BYTES / bytes + SLICE_KEYS_MIN - 1) / SLICE_KEYS_MIN;

    return keys <= 1 ? SLICE_KEYS_MIN : lesser((uint32_t)keys * SLICE_KEYS_MIN, SLICE_KEYS_MAX);
}

/* Scores or values of a tile in slices, the next tile asked for between them, bit by bit: much at a
 * time would keep what computes from being started. Prompts use a tile for many queries, and don't
 * wait for the next. */
static void each_slice(struct block *block, uint32_t key_count, bool is_score)
{
    const bool asks = block->query_count < COPY_QUERIES_MIN;
    const uint32_t size = asks ? slice_keys(block->job) : CPU_ATTENTION_TILE;
    const uint32_t slices = (CPU_ATTENTION_TILE + size - 1) / size;
    uint32_t part = is_score ? 0 : slices;

    for (uint32_t j = 0; j < key_count; j += size, part++) {
        const struct span keys = { j, j + lesser(key_count - j, size) };
        if (asks)
            ask_for_part(block, part, 2 * slices);
        if (is_score)
            score_keys(block, keys);
        else
            add_values(block, 0, block->query_count, keys);
    }
}

/* What the queries make of a tile. */
static void attend_tile(struct block *block, uint32_t tile, uint32_t end)
{
    const uint32_t key_count = end - tile;
    bool all_see_all = true;

    find_tile(block, tile, end);
    each_slice(block, key_count, true);
    for (uint32_t row = 0; row < block->row_count; row++) {
        const struct span keys = keys_seen(block, row, tile);
        all_see_all = all_see_all && keys.first == 0 && keys.end == key_count;
        for (uint32_t h = 0; keys.first < keys.end && h < block->head_count; h++)
            soften(block, row * block->head_count + h, keys);
    }
    if (all_see_all) {
        each_slice(block, key_count, false);
        return;
    }
    for (uint32_t row = 0; row < block->row_count; row++) {
        const struct span keys = keys_seen(block, row, tile);
        if (keys.first < keys.end)
            add_values(block, row * block->head_count, block->head_count, keys);
    }
}

/* How the block reads keys and values. */
static void choose_reading(struct block *block)
{
    const struct op_attention *op = block->job->op;
    const struct cpu_kernels *kernels = block->job->executor->kernels;
    const bool is_narrow = op->cache_dtype != DTYPE_F32;
    const bool widens_itself = kernels->score != NULL && kernels->add_cached_rows != NULL &&
                               block->query_count <= NARROW_QUERIES_MAX &&
                               op->k_width <= CPU_ATTENTION_NARROW_MAX &&
                               op->v_width <= CPU_ATTENTION_NARROW_MAX;

    block->copies = is_narrow ? !widens_itself
                              : block->query_count >= COPY_QUERIES_MIN && block->job->is_apart &&
                                    block->job->has_room;
    block->turns = kernels->turn_keys != NULL && !block->job->is_latent && block->job->has_room &&
                   block->query_count >= TURN_QUERIES_MIN && op->k_width <= CPU_ATTENTION_TURN_MAX;
}

/* head: the first of kv_head's that are computed; row: the first of row_count, of one sequence. */
static void begin_block(struct block *block, uint32_t head, uint32_t row)
{
    const struct op_attention *op = block->job->op;

    block->pages = op->pages + (uint64_t)op->sequences[row] * op->page_count_max;
    block->positions = op->positions + row;
    block->query_count = block->row_count * block->head_count;
    choose_reading(block);
    for (uint32_t i = 0; i < block->query_count; i++) {
        const uint64_t r = row + i / block->head_count, h = head + i % block->head_count;
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
    const uint32_t end = position_max(block) + 1;
    uint32_t tile = first_seen_min(block) / CPU_ATTENTION_TILE * CPU_ATTENTION_TILE;

    for (; tile < end; tile += CPU_ATTENTION_TILE) {
        const uint32_t tile_end = tile + lesser(end - tile, CPU_ATTENTION_TILE);
        block->next = tile_end;
        block->next_end = tile_end + lesser(end - tile_end, CPU_ATTENTION_TILE);
        attend_tile(block, tile, tile_end);
    }
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
    const uint32_t end = lesser(row + job->rows_per_task, op->row_count);
    struct block block = {
        .job = job,
        .scratch = cpu__scratch(job->executor, thread_index),
        .kv_head = part / job->head_parts,
        .head_count = lesser(job->heads_per_task, group - first_in_group),
    };

    for (; row < end; row += block.row_count) {
        block.row_count = 1;
        while (row + block.row_count < end &&
               op->sequences[row + block.row_count] == op->sequences[row])
            block.row_count++;
        begin_block(&block, block.kv_head * group + first_in_group, row);
        attend(&block);
    }
}

static uint64_t task_count(const struct attention_job *job)
{
    return (uint64_t)job->row_blocks * job->head_parts * job->op->kv_head_count;
}

/* The rows of a prompt share what they read, a kv head's, so that it stays in the cache. */
static void share_out(struct attention_job *job)
{
    const struct op_attention *op = job->op;
    const uint32_t group = op->head_count / op->kv_head_count;
    const uint32_t threads = job->executor->thread_count;

    job->heads_per_task = lesser(group, CPU_ATTENTION_QUERIES);
    job->rows_per_task = CPU_ATTENTION_QUERIES / job->heads_per_task;
    job->row_blocks = (op->row_count - 1) / job->rows_per_task + 1;
    for (;;) { /* few rows and few kv heads: share out the heads, so that no thread is idle */
        job->head_parts = (group - 1) / job->heads_per_task + 1;
        if (task_count(job) >= threads || job->heads_per_task <= 4)
            return;
        job->heads_per_task = (job->heads_per_task + 1) / 2;
    }
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
        .is_apart = op->k_strides.slot > op->k_width || op->v_strides.slot > op->v_width,
        .has_room = (uint64_t)op->k_width + op->v_width <= CPU_ATTENTION_ELEMENTS_MAX,
        .key_bytes = dtype_row_bytes(op->cache_dtype, op->k_width),
        .value_bytes = is_latent ? 0 : dtype_row_bytes(op->cache_dtype, op->v_width),
        .k_bytes = strides_in_bytes(op->cache_dtype, op->k_strides),
        .v_bytes = strides_in_bytes(op->cache_dtype, op->v_strides),
    };

    share_out(&job);
    thread_pool_run(executor->pool, (size_t)task_count(&job), attention_task, &job);
}
