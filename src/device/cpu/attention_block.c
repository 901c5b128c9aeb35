/* device/cpu/attention_block.c - what a task's queries make of the keys they see, a tile at a time.
 *
 * Keys and values that the cache has in F16 or Q8_0 are widened to F32: in registers where few
 * queries read them, else a tile at a time, once for all queries of a task, in memory that stays in
 * the second-level cache. Sums are those of F32, and the same each way.
 *
 * Where a task's queries are few, memory is what they wait for, and while a tile is computed the
 * next one is asked for: each row when the same row of this one is used, since much at a time would
 * keep what computes from getting its own from the second-level cache.
 *
 * Keys and values are found through pointers, one per position, so where they lie changes nothing.
 * A row's sum over j stops at its own position, and begins where its window does: what other keys
 * hold, NaN perhaps, must not touch it. */
#include <math.h>
#include <string.h>

#include "device/cpu/attention.h"

#define NARROW_QUERIES_MAX 8  /* that widen a key by themselves */
#define COPY_QUERIES_MIN 8
#define ASK_QUERIES_MAX 16 /* more have enough to do with a tile not to wait for the next */
#define CACHE_LINE_BYTES 64
/* Of a slice's keys and values: with its scores and with its values half as much is asked for,
 * sixteen lines, which is what a core can wait for at a time. */
#define SLICE_BYTES (2 * 16 * CACHE_LINE_BYTES)
#define SLICE_KEYS_MIN 4
#define SLICE_KEYS_MAX 16

/* Of a kv head's packed queries. */
static uint64_t packed_floats(const struct attention_block *block)
{
    return cpu_padded_queries(block->query_count) * attention_packed_width(block->job->op);
}

/* The keys of a tile that a row sees: [first, end), counted from the tile's first. */
struct span {
    uint32_t first, end;
};

static uint32_t within_tile(int64_t count)
{
    return count < 0 ? 0 : count > CPU_ATTENTION_TILE ? CPU_ATTENTION_TILE : (uint32_t)count;
}

static struct span keys_seen(const struct attention_block *block, uint32_t row, uint32_t tile)
{
    const int32_t position = block->positions[row];
    const uint32_t first = attention_first_seen(block->job->op, position);

    return (struct span){ within_tile((int64_t)first - tile),
                          within_tile((int64_t)position + 1 - tile) };
}

/* Follows the pages to a kv head's rows of positions [begin, end). Those that a whole tile has
 * beyond are the first. */
static void find_rows(const struct attention_block *block, const void *cache,
                      const struct op_cache_strides *strides, const struct attention_tile *tile,
                      struct attention_rows *rows)
{
    const uint32_t page_size = block->job->op->page_size, count = tile->end - tile->begin;
    const char *head = (const char *)cache + (block->kv_first + tile->kv_head) * strides->head;
    const int32_t *page = block->pages + tile->begin / page_size;
    uint32_t offset = tile->begin % page_size;

    rows->dtype = block->job->op->cache_dtype;
    for (uint32_t j = 0; j < count; page++, offset = 0) {
        const char *row = head + (uint64_t)*page * strides->page + offset * strides->slot;
        const uint32_t end = j + attention_lesser(page_size - offset, count - j);
        for (; j < end; j++, row += strides->slot)
            rows->cached[j] = row;
    }
    for (uint32_t j = count; j < CPU_ATTENTION_TILE; j++)
        rows->cached[j] = rows->cached[0];
}

/* Asks for rows [first, end) of the next tile's. */
static void ask_for(const struct attention_rows *rows, uint32_t first, uint32_t end,
                    uint64_t row_bytes)
{
    for (uint32_t j = first; j < end; j++)
        for (uint64_t i = 0; i < row_bytes; i += CACHE_LINE_BYTES)
            __builtin_prefetch((const char *)rows->cached[j] + i, 0, 2);
}

/* Makes F32 of rows, in room. Those that the cache has in F32 are copied where other heads' lie in
 * between: they are often a power of two apart, and fall into the same sets of the first-level
 * cache. next: rows to ask for, each of row_bytes, or NULL. */
static void copy_rows(const struct attention_block *block, struct attention_rows *rows,
                      uint32_t width, float *room, const struct attention_rows *next,
                      uint64_t row_bytes)
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

static void find_tile(const struct attention_block *block, struct attention_tile *tile)
{
    const struct attention_job *job = block->job;

    find_rows(block, job->op->k_cache, &job->k_bytes, tile, &tile->keys);
    if (!job->is_latent)
        find_rows(block, job->op->v_cache, &job->v_bytes, tile, &tile->values);
}

/* Copies the tile at hand, if this block does. */
static void copy_tile(struct attention_block *block)
{
    const struct attention_job *job = block->job;
    const struct op_attention *op = job->op;
    const struct attention_tile *next = block->asks ? block->next : NULL;
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
static const void *const *rows_ahead(const struct attention_block *block,
                                     const struct attention_rows *rows, uint32_t key)
{
    return block->asks && !block->copies ? rows->cached + key : NULL;
}

/* scores[query][j] = q . key(tile + j), also for keys that a row must not see: they are left out
 * later. query: the kv head's first. */
static void score_keys(struct attention_block *block, uint32_t query, struct span keys)
{
    const struct attention_job *job = block->job;
    const struct cpu_kernels *kernels = job->executor->kernels;
    const struct attention_tile *tile = block->tile;
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
        kernels->score(strip.out, block->packed + tile->kv_head * packed_floats(block),
                       strip.row_count, tile->keys.dtype, tile->keys.cached + keys.first,
                       rows_ahead(block, &block->next->keys, keys.first), strip.n_count,
                       strip.k_count);
    else
        kernels->matmul(&strip, block->scratch);
}

/* Scales one query's scores, caps them where the op says so, and returns the largest so far. */
static float scale_scores(struct attention_block *block, uint32_t query, float *scores,
                          uint32_t count)
{
    const struct op_attention *op = block->job->op;
    const struct cpu_kernels *kernels = block->job->executor->kernels;

    if (op->score_cap == 0)
        return kernels->scale_max(scores, count, op->scale, block->sums[query].max);
    (void)kernels->scale_max(scores, count, op->scale, 0);
    kernels->soft_cap(scores, count, op->score_cap);
    return kernels->scale_max(scores, count, 1, block->sums[query].max);
}

/* Raises the maxima of a row's queries, from `query` on, to those of their scores; keep[h] becomes
 * the logarithm of what is kept of the sums before. False: all of all. */
static bool raise_maxima(struct attention_block *block, uint32_t query, struct span keys,
                         float *keep)
{
    bool is_raised = false;

    for (uint32_t h = 0; h < block->head_count; h++, query++) {
        const float before = block->sums[query].max;
        float max = before;
        if (keys.first < keys.end)
            max = scale_scores(block, query, block->scores[query] + keys.first,
                               keys.end - keys.first);
        block->sums[query].max = max;
        keep[h] = max == before || before == -INFINITY ? 0 : before - max; /* nothing is 0 */
        is_raised = is_raised || keep[h] != 0;
    }
    return is_raised;
}

/* Turns a row's scores into weights, and makes room for them in sums and outputs, of which keep[h]
 * is kept; NULL: all. */
static void soften(struct attention_block *block, uint32_t query, struct span keys,
                   const float *keep)
{
    const struct cpu_kernels *kernels = block->job->executor->kernels;
    const uint32_t width = block->job->op->v_width;

    for (uint32_t h = 0; keys.first < keys.end && h < block->head_count; h++, query++) {
        float *const scores = block->scores[query] + keys.first, *const out = block->out[query];
        struct attention_sums *const sums = &block->sums[query];
        if (keep != NULL && keep[h] != 1) {
            sums->sum *= keep[h];
            for (uint32_t i = 0; i < width; i++)
                out[i] *= keep[h];
        }
        sums->sum += kernels->exp_minus(scores, scores, keys.end - keys.first, sums->max);
    }
}

/* out[query] += the weights of these keys times their values. */
static void add_values(struct attention_block *block, uint32_t query, uint32_t query_count,
                       struct span keys)
{
    const struct cpu_kernels *kernels = block->job->executor->kernels;
    const struct attention_rows *values = &block->tile->values;
    const float *weights = block->scores[query] + keys.first;
    const uint32_t count = keys.end - keys.first, width = block->job->op->v_width;

    if (kernels->add_cached_rows != NULL)
        kernels->add_cached_rows(&block->out[query], query_count, weights, values->dtype,
                                 values->cached + keys.first,
                                 block->job->is_latent
                                     ? NULL
                                     : rows_ahead(block, &block->next->values, keys.first),
                                 count, width);
    else
        kernels->add_weighted_rows(&block->out[query], query_count, weights,
                                   values->floats + keys.first, count, width);
}

static uint32_t slice_keys(const struct attention_job *job)
{
    const uint64_t bytes = job->key_bytes + job->value_bytes;
    const uint64_t keys = (SLICE_BYTES / bytes + SLICE_KEYS_MIN - 1) / SLICE_KEYS_MIN;

    return keys <= 1 ? SLICE_KEYS_MIN
                     : attention_lesser((uint32_t)keys * SLICE_KEYS_MIN, SLICE_KEYS_MAX);
}

/* Scores or values of a tile. Kernels that don't ask for the next one get slices, and it is asked
 * for between them. */
static void each_slice(struct attention_block *block, uint32_t query, bool is_score)
{
    const struct attention_job *job = block->job;
    const struct cpu_kernels *kernels = job->executor->kernels;
    const uint32_t key_count = block->tile->end - block->tile->begin;
    const bool asks = block->asks && !block->copies &&
                      (is_score ? !job->packs : kernels->add_cached_rows == NULL);
    const uint32_t size = asks ? slice_keys(job) : CPU_ATTENTION_TILE;

    for (uint32_t j = 0; j < key_count; j += size) {
        const struct span keys = { j, j + attention_lesser(key_count - j, size) };
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
static void attend_tile(struct attention_block *block)
{
    const uint32_t tile = block->tile->begin, key_count = block->tile->end - tile;
    const uint32_t first_query = block->tile->kv_head * block->query_count;
    const uint32_t heads = block->head_count;
    float keep[CPU_ATTENTION_QUERIES];
    bool all_see_all = true, is_raised = false;

    copy_tile(block);
    each_slice(block, first_query, true);
    for (uint32_t row = 0; row < block->row_count; row++) {
        const struct span keys = keys_seen(block, row, tile);
        all_see_all = all_see_all && keys.first == 0 && keys.end == key_count;
        is_raised = raise_maxima(block, first_query + row * heads, keys, keep + row * heads) ||
                    is_raised;
    }
    if (is_raised)
        (void)block->job->executor->kernels->exp_minus(keep, keep, block->query_count, 0);
    for (uint32_t row = 0; row < block->row_count; row++)
        soften(block, first_query + row * heads, keys_seen(block, row, tile),
               is_raised ? keep + row * heads : NULL);
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

void cpu__attention_prepare(struct attention_block *block)
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
    for (uint32_t i = 0; block->job->packs && i < block->kv_count; i++)
        kernels->pack_queries(block->packed + i * packed_floats(block),
                              block->q + i * block->query_count, block->query_count, op->k_width);
}

/* The tile after `from`: of the next kv head, or the first one's of the next positions. */
static void find_next(const struct attention_block *block, const struct attention_tile *from,
                      uint32_t end, struct attention_tile *next)
{
    next->kv_head = (from->kv_head + 1) % block->kv_count;
    next->begin = next->kv_head == 0 ? from->end : from->begin;
    next->end = next->begin + attention_lesser(end - next->begin, CPU_ATTENTION_TILE);
    if (next->begin < next->end)
        find_tile(block, next);
}

void cpu__attention_add(struct attention_block *block, uint32_t begin, uint32_t end,
                        uint32_t ask_end)
{
    const bool asks = block->asks;

    block->tiles[0].kv_head = 0;
    block->tiles[0].begin = begin;
    block->tiles[0].end = begin + attention_lesser(end - begin, CPU_ATTENTION_TILE);
    find_tile(block, &block->tiles[0]);
    for (uint32_t i = 0; block->tiles[i].begin < end; i = 1 - i) {
        block->tile = &block->tiles[i];
        block->next = &block->tiles[1 - i];
        find_next(block, block->tile, ask_end, block->next);
        block->asks = asks && block->next->begin < block->next->end;
        attend_tile(block);
    }
    block->asks = asks;
}
