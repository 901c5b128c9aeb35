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
 * the second-level cache. Sums are those of F32, and the same each way.
 *
 * A task is one kv head and a few rows, so that a key is used for several queries while it is in
 * the cache. Where a task's rows are few it is all the kv heads that a thread gets, a tile of each
 * in turn: a page has them next to each other, and the processor sees that it is read in order.
 * Then memory is what they wait for, and while a tile is computed the next one is asked for: each
 * row when the same row of this one is used, since much at a time would keep what computes from
 * getting its own from the second-level cache.
 *
 * Keys and values are found through pointers, one per position, so where they lie changes nothing.
 * A row's sum over j stops at its own position, and begins where its window does: what other keys
 * hold, NaN perhaps, must not touch it. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "device/cpu/internal.h"

#define CPU_ATTENTION_TILE CPU_ATTENTION_KEYS
#define CPU_ATTENTION_QUERIES 64 /* (row, head) pairs that one task does together */
#define NARROW_QUERIES_MAX 4  /* that widen a key by themselves */
#define COPY_QUERIES_MIN 8
#define ASK_QUERIES_MAX 16 /* more have enough to do with a tile not to wait for the next */
#define CACHE_LINE_BYTES 64
/* Of a slice's keys and values: with its scores and with its values half as much is asked for,
 * sixteen lines, which is what a core can wait for at a time. */
#define SLICE_BYTES (2 * 16 * CACHE_LINE_BYTES)
#define SLICE_KEYS_MIN 4
#define SLICE_KEYS_MAX 16

struct attention_job {
    const struct cpu_executor *executor;
    const struct op_attention *op;
    uint32_t kv_heads_per_task;
    uint32_t heads_per_task;     /* of the heads that share a kv head */
    uint32_t head_parts;         /* tasks that a kv head's heads fall into */
    uint32_t rows_per_task;
    uint32_t row_blocks;         /* tasks of a part follow each other: its keys stay in the cache */
    uint64_t key_bytes, value_bytes;         /* of a kv head's in a token slot */
    struct op_cache_strides k_bytes, v_bytes; /* the op's, in bytes */
    bool is_latent;              /* values are a part of their keys, and widened with them */
    bool is_apart;               /* other heads' lie between one head's */
    bool has_room;               /* for a tile in scratch, and packed queries */
    bool packs;                  /* queries, and scores them packed */
};

/* A tile's keys or values. */
struct tile_rows {
    union {
        const void *cached[CPU_ATTENTION_TILE]; /* of any dtype */
        const float *floats[CPU_ATTENTION_TILE];
    };
    enum dtype dtype;
};

/* The keys and values of a kv head that are used together. */
struct tile {
    uint32_t kv_head;            /* counted from the block's first */
    uint32_t begin, end;         /* positions; none: there is no such tile */
    struct tile_rows keys, values;
};

/* The queries of one sequence and a few kv heads that a task does at once: query = (kv head *
 * row_count + row) * head_count + head. */
struct block {
    const struct attention_job *job;
    float *scratch;              /* a tile in F32: its keys, then its values; then queries */
    float *packed;               /* there: each kv head's queries */
    const int32_t *pages;        /* of the sequence */
    uint32_t kv_first, kv_count; /* kv heads */
    uint32_t row_count, head_count;
    uint32_t query_count;        /* of a kv head */
    bool asks;                   /* for the next tile */
    bool copies;                 /* keys and values are copied to scratch, as F32 */
    const int32_t *positions;    /* [row_count] */
    const float *q[CPU_ATTENTION_QUERIES];
    float *out[CPU_ATTENTION_QUERIES];
    float max[CPU_ATTENTION_QUERIES];
    float sum[CPU_ATTENTION_QUERIES];
    struct tile tiles[2];
    struct tile *tile, *next;    /* of these, the one at hand, and the one after it */
    float scores[CPU_ATTENTION_QUERIES][CPU_ATTENTION_TILE]; /* of the tile at hand */
};

static uint32_t lesser(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint64_t packed_width(const struct op_attention *op)
{
    return (op->k_width + UINT64_C(3)) / 4 * 4;
}

/* Of a kv head's packed queries. */
static uint64_t packed_floats(const struct block *block)
{
    return cpu_padded_queries(block->query_count) * packed_width(block->job->op);
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

/* Follows the pages to a kv head's rows of positions [begin, end). Those that a whole tile has
 * beyond are the first. */
static void find_rows(const struct block *block, const void *cache,
                      const struct op_cache_strides *strides, const struct tile *tile,
                      struct tile_rows *rows)
{
    const uint32_t page_size = block->job->op->page_size, count = tile->end - tile->begin;
    const char *head = (const char *)cache + (block->kv_first + tile->kv_head) * strides->head;
    const int32_t *page = block->pages + tile->begin / page_size;
    uint32_t offset = tile->begin % page_size;

    rows->dtype = block->job->op->cache_dtype;
    for (uint32_t j = 0; j < count; page++, offset = 0) {
        const char *row = head + (uint64_t)*page * strides->page + offset * strides->slot;
        const uint32_t end = j + lesser(page_size - offset, count - j);
        for (; j < end; j++, row += strides->slot)
            rows->cached[j] = row;
    }
    for (uint32_t j = count; j < CPU_ATTENTION_TILE; j++)
        rows->cached[j] = rows->cached[0];
}

/* Asks for rows [first, end) of the next tile's. */
static void ask_for(const struct tile_rows *rows, uint32_t first, uint32_t end, uint64_t row_bytes)
{
    for (uint32_t j = first; j < end; j++)
        for (uint64_t i = 0; i < row_bytes; i += CACHE_LINE_BYTES)
            __builtin_prefetch((const char *)rows->cached[j] + i, 0, 2);
}

/* Makes F32 of rows, in room. Those that the cache has in F32 are copied where other heads' lie in
 * between: they are often a power of two apart, and fall into the same sets of the first-level
 * cache. next: rows to ask for, each of row_bytes, or NULL. */
static void copy_rows(const struct block *block, struct tile_rows *rows, uint32_t width,
                      float *room, const struct tile_rows *next, uint64_t row_bytes)
{
    const uint32_t count = block->tile->end - block->tile->begin;

    for (uint32_t j = 0; j < count; j++, room += width) {
        if (next != NULL)
            ask_for(next, j, j + 1, row_bytes);
        if (rows->dtype == DTYPE_F32)
            memcpy(room, rows->floats[j], width * sizeof(float));
        else
            block->job->executor->kernels->widen(room, rows->dtype, rows->cached[j], width);
        rows->floats[j] = room;
    }
    rows->dtype = DTYPE_F32;
}

static void find_tile(const struct block *block, struct tile *tile)
{
    const struct attention_job *job = block->job;

    find_rows(block, job->op->k_cache, &job->k_bytes, tile, &tile->keys);
    if (!job->is_latent)
        find_rows(block, job->op->v_cache, &job->v_bytes, tile, &tile->values);
}

/* Copies the tile at hand, if this block does. */
static void copy_tile(struct block *block)
{
    const struct attention_job *job = block->job;
    const struct op_attention *op = job->op;
    const struct tile *next = block->asks ? block->next : NULL;
    float *value_room = block->scratch + (uint64_t)CPU_ATTENTION_TILE * op->k_width;

    if (block->copies)
        copy_rows(block, &block->tile->keys, op->k_width, block->scratch,
                  next == NULL ? NULL : &next->keys, job->key_bytes);
    if (job->is_latent)
        block->tile->values = block->tile->keys;
    else if (block->copies)
        copy_rows(block, &block->tile->values, op->v_width, value_room,
                  next == NULL ? NULL : &next->values, job->value_bytes);
}

/* Rows of the next tile that a kernel asks for while it computes, beginning at the key-th, or
 * NULL. */
static const void *const *rows_ahead(const struct block *block, const struct tile_rows *rows,
                                     uint32_t key)
{
    return block->asks && !block->copies ? rows->cached + key : NULL;
}

/* scores[query][j] = q . key(tile + j), also for keys that a row must not see: they are left out
 * later. query: the kv head's first. */
static void score_keys(struct block *block, uint32_t query, struct span keys)
{
    const struct attention_job *job = block->job;
    const struct cpu_kernels *kernels = job->executor->kernels;
    const struct tile *tile = block->tile;
    const struct cpu_strip strip = {
        .out = block->scores[query] + keys.first,
        .x_rows = block->q + query,
        .weight_rows = tile->keys.floats + keys.first,
        .weight_dtype = DTYPE_F32,
        .row_count = block->query_count,
        .n_count = keys.end - keys.first,
        .k_count = job->op->k_width,
        .out_row_stride = CPU_ATTENTION_TILE,
    };

    if (job->packs)
        kernels->score(strip.out, strip.out_row_stride,
                       block->packed + tile->kv_head * packed_floats(block), strip.row_count,
                       tile->keys.dtype, tile->keys.cached + keys.first,
                       rows_ahead(block, &block->next->keys, keys.first), strip.n_count,
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

    assert(out != NULL);
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
    const struct tile_rows *values = &block->tile->values;
    const float *weights = block->scores[query] + keys.first;
    const uint32_t count = keys.end - keys.first, width = block->job->op->v_width;

    if (kernels->add_cached_rows != NULL)
        kernels->add_cached_rows(&block->out[query], query_count, weights, CPU_ATTENTION_TILE,
                                 values->dtype, values->cached + keys.first,
                                 block->job->is_latent
                                     ? NULL
                                     : rows_ahead(block, &block->next->values, keys.first),
                                 count, width);
    else
        kernels->add_weighted_rows(&block->out[query], query_count, weights, CPU_ATTENTION_TILE,
                                   values->floats + keys.first, count, width);
}

static uint32_t slice_keys(const struct attention_job *job)
{
    const uint64_t bytes = job->key_bytes + job->value_bytes;
    const uint64_t keys = (SLICE_BYTES / bytes + SLICE_KEYS_MIN - 1) / SLICE_KEYS_MIN;

    return keys <= 1 ? SLICE_KEYS_MIN : lesser((uint32_t)keys * SLICE_KEYS_MIN, SLICE_KEYS_MAX);
}

/* Scores or values of a tile. Kernels that don't ask for the next one get slices, and it is asked
 * for between them. */
static void each_slice(struct block *block, uint32_t query, bool is_score)
{
    const struct attention_job *job = block->job;
    const struct cpu_kernels *kernels = job->executor->kernels;
    const uint32_t key_count = block->tile->end - block->tile->begin;
    const bool asks = block->asks && !block->copies &&
                      (is_score ? !job->packs : kernels->add_cached_rows == NULL);
    const uint32_t size = asks ? slice_keys(job) : CPU_ATTENTION_TILE;

    for (uint32_t j = 0; j < key_count; j += size) {
        const struct span keys = { j, j + lesser(key_count - j, size) };
        if (asks && is_score)
            ask_for(&block->next->keys, keys.first, keys.end, job->key_bytes);
        else if (asks && !job->is_latent)
            ask_for(&block->next->values, keys.first, keys.end, job->value_bytes);
        if (is_score)
            score_keys(block, query, keys);
        else
            add_values(block, query, block->query_count, keys);
    }
}

/* What the queries make of a tile. */
static void attend_tile(struct block *block)
{
    const uint32_t tile = block->tile->begin, key_count = block->tile->end - tile;
    const uint32_t first_query = block->tile->kv_head * block->query_count;
    bool all_see_all = true;

    copy_tile(block);
    each_slice(block, first_query, true);
    for (uint32_t row = 0; row < block->row_count; row++) {
        const struct span keys = keys_seen(block, row, tile);
        all_see_all = all_see_all && keys.first == 0 && keys.end == key_count;
        for (uint32_t h = 0; keys.first < keys.end && h < block->head_count; h++)
            soften(block, first_query + row * block->head_count + h, keys);
    }
    if (all_see_all) {
        each_slice(block, first_query, false);
        return;
    }
    for (uint32_t row = 0; row < block->row_count; row++) {
        const struct span keys = keys_seen(block, row, tile);
        if (keys.first < keys.end)
            add_values(block, first_query + row * block->head_count, block->head_count, keys);
    }
}

/* How the block reads keys and values. */
static void choose_reading(struct block *block)
{
    const struct op_attention *op = block->job->op;
    const struct cpu_kernels *kernels = block->job->executor->kernels;
    const bool is_narrow = op->cache_dtype != DTYPE_F32;
    const bool widens_itself = block->job->packs && kernels->add_cached_rows != NULL &&
                               block->query_count <= NARROW_QUERIES_MAX &&
                               op->k_width <= CPU_ATTENTION_NARROW_MAX &&
                               op->v_width <= CPU_ATTENTION_NARROW_MAX;

    block->copies = is_narrow ? !widens_itself
                              : block->query_count >= COPY_QUERIES_MIN && block->job->is_apart &&
                                    block->job->has_room;
    block->asks = block->query_count <= ASK_QUERIES_MAX;
}

/* head: the first of kv_first's that are computed; row: the first of row_count, of one sequence. */
static void begin_block(struct block *block, uint32_t head, uint32_t row)
{
    const struct op_attention *op = block->job->op;

    block->pages = op->pages + (uint64_t)op->sequences[row] * op->page_count_max;
    block->positions = op->positions + row;
    block->query_count = block->row_count * block->head_count;
    choose_reading(block);
    for (uint32_t i = 0; i < block->kv_count * block->query_count; i++) {
        const uint32_t at = i % block->query_count, kv_head = i / block->query_count;
        const uint64_t r = row + at / block->head_count;
        const uint64_t h = head + kv_head * (op->head_count / op->kv_head_count) +
                           at % block->head_count;
        block->q[i] = op->q + r * op->q_row_stride + h * op->k_width;
        block->out[i] = op->out + r * op->out_row_stride + h * op->v_width;
        block->max[i] = op->sinks != NULL ? op->sinks[h] : -INFINITY;
        block->sum[i] = op->sinks != NULL ? 1 : 0;
        memset(block->out[i], 0, op->v_width * sizeof(float));
    }
    for (uint32_t i = 0; block->job->packs && i < block->kv_count; i++)
        block->job->executor->kernels->pack_queries(block->packed + i * packed_floats(block),
                                                    block->q + i * block->query_count,
                                                    block->query_count, op->k_width);
}

/* The tile after `from`: of the next kv head, or the first one's of the next positions. */
static void find_next(const struct block *block, const struct tile *from, uint32_t end,
                      struct tile *next)
{
    next->kv_head = (from->kv_head + 1) % block->kv_count;
    next->begin = next->kv_head == 0 ? from->end : from->begin;
    next->end = next->begin + lesser(end - next->begin, CPU_ATTENTION_TILE);
    if (next->begin < next->end)
        find_tile(block, next);
}

static void attend(struct block *block)
{
    const struct op_attention *op = block->job->op;
    const uint32_t end = position_max(block) + 1;
    const uint32_t begin = first_seen_min(block) / CPU_ATTENTION_TILE * CPU_ATTENTION_TILE;
    const bool asks = block->asks;

    block->tiles[0].kv_head = 0;
    block->tiles[0].begin = begin;
    block->tiles[0].end = begin + lesser(end - begin, CPU_ATTENTION_TILE);
    find_tile(block, &block->tiles[0]);
    for (uint32_t i = 0; block->tiles[i].begin < block->tiles[i].end; i = 1 - i) {
        block->tile = &block->tiles[i];
        block->next = &block->tiles[1 - i];
        find_next(block, block->tile, end, block->next);
        block->asks = asks && block->next->begin < block->next->end;
        attend_tile(block);
    }
    for (uint32_t i = 0; i < block->kv_count * block->query_count; i++) {
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
        .kv_first = part / job->head_parts * job->kv_heads_per_task,
        .head_count = lesser(job->heads_per_task, group - first_in_group),
    };

    block.packed =
        block.scratch + CPU_ATTENTION_TILE * ((uint64_t)op->k_width + op->v_width);
    block.kv_count = lesser(job->kv_heads_per_task, op->kv_head_count - block.kv_first);
    for (; row < end; row += block.row_count) {
        block.row_count = 1;
        while (row + block.row_count < end &&
               op->sequences[row + block.row_count] == op->sequences[row])
            block.row_count++;
        begin_block(&block, block.kv_first * group + first_in_group, row);
        attend(&block);
    }
}

static uint64_t task_count(const struct attention_job *job)
{
    const uint64_t parts = (uint64_t)job->row_blocks * job->head_parts;

    assert(job->kv_heads_per_task > 0);
    return parts * ((job->op->kv_head_count - 1) / job->kv_heads_per_task + 1);
}

/* The most rows that follow each other in one sequence. */
static uint32_t longest_run(const struct op_attention *op)
{
    uint32_t longest = 1;

    for (uint32_t row = 1, run = 1; row < op->row_count; row++) {
        run = op->sequences[row] == op->sequences[row - 1] ? run + 1 : 1;
        longest = run > longest ? run : longest;
    }
    return longest;
}

/* How many kv heads' queries a task has room for, up to a thread's share of the kv heads. */
static uint32_t kv_heads_together(const struct attention_job *job)
{
    const struct op_attention *op = job->op;
    const uint32_t rows = lesser(longest_run(op), job->rows_per_task);
    const uint32_t share = (op->kv_head_count - 1) / job->executor->thread_count + 1;
    const uint32_t queries = cpu_padded_queries(rows * job->heads_per_task);

    assert(queries > 0);
    assert(queries <= CPU_ATTENTION_QUERIES);
    return lesser(share, CPU_ATTENTION_QUERIES / queries);
}

/* The rows of a prompt share what they read, a kv head's, so that it stays in the cache. */
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
    job->kv_heads_per_task = kv_heads_together(job);
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
        .has_room =
            (uint64_t)op->k_width + op->v_width + packed_width(op) <= CPU_ATTENTION_ELEMENTS_MAX,
        .key_bytes = dtype_row_bytes(op->cache_dtype, op->k_width),
        .value_bytes = is_latent ? 0 : dtype_row_bytes(op->cache_dtype, op->v_width),
        .k_bytes = strides_in_bytes(op->cache_dtype, op->k_strides),
        .v_bytes = strides_in_bytes(op->cache_dtype, op->v_strides),
    };

    job.packs = op->k_width <= executor->kernels->score_width_max && job.has_room;
    share_out(&job);
    thread_pool_run(executor->pool, (size_t)task_count(&job), attention_task, &job);
}
