/* device/cpu/attention.c - OP_ATTENTION: softmax over a paged cache, cut into tasks.
 *
 * Keys are visited in tiles of CPU_ATTENTION_TILE positions, counted from position 0, so that a
 * row's tiles are the same however its prompt was cut (Milakov and Gimelshein 2018, arXiv
 * 1805.02867, algorithm 3, by tiles). For a query with maximum m, sum l and output o so far:
 *
 *     m' = max(m, the tile's scores)      p_j = exp(score_j - m')      f = exp(m - m')
 *     l' = l * f + sum p_j                o' = o * f + sum p_j v_j, j ascending
 *
 * PART_KEYS positions, counted from 0 as well, are a part, which begins anew with m = -inf; parts
 * a and b of a query become one, in order of position, by
 *
 *     m = max(m_a, m_b)      f = exp(m_a - m)      g = exp(m_b - m)
 *     l = l_a * f + l_b * g                        o = o_a * f + o_b * g
 *
 * so that a row's bits don't depend on whether one task has all of its parts, or each has a task of
 * its own (Dao et al. 2023, "Flash-Decoding"). A sink is where m and l of a row's first part begin:
 * at its logit and at 1. A window makes a row's first tile begin later, or within; tiles that lie
 * before every row's window are left out.
 *
 * A task is one kv head and a few rows, so that a key is used for several queries while it is in
 * the cache. Where a task's queries are few it is several kv heads, a tile of each in turn: a page
 * has them next to each other, and the processor sees that it is read in order. Where that leaves
 * threads without a task, parts get tasks of their own, and at last a kv head's queries are shared
 * out, which reads its keys several times. */
#include "device/cpu/attention.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define PART_KEYS 512
/* What is weighed when tasks are cut, in queries that read a key: reading it, and for how many keys
 * it counts to put a part's results together. */
#define READ_QUERIES 4
#define JOIN_KEYS 32
#define HEADS_MIN 4 /* of a kv head in a task, unless it has fewer */
#define TASKS_ENOUGH 4 /* for each thread */
#define SLOTS_AT_ONCE 32 /* of a query that are put together */
#define SLOTS_BYTES (256 * KIB) /* of a thread's in one round: they stay in its cache */

/* How the work is cut. */
struct cut {
    uint32_t rows_per_task, row_blocks; /* whose tasks follow each other: keys stay in the cache */
    uint32_t heads_per_task;     /* of the heads that share a kv head */
    uint32_t head_parts;         /* tasks that a kv head's heads fall into */
    uint32_t kv_heads_per_task, kv_groups;
    uint32_t part_slots;         /* parts that have tasks of their own at a time; 0: none have */
};

/* One run of the tasks. */
struct share {
    struct attention_job job;
    struct cut cut;
    uint32_t longest_run;        /* of rows that follow each other in a sequence */
    uint32_t part_first, part_end; /* that any row sees */
    uint32_t key_count;          /* from the first of these on */
    uint32_t slot_part;          /* the part in the first slot */
    uint32_t joined_at_once;     /* queries in a task that puts parts together */
    /* Of the slots: [slot][row][head], results of a part, each v_width elements, and their sums;
     * and of all that is put together already, whose outputs are the op's. */
    float *slot_out;
    struct attention_sums *slot_sums, *sums;
};

static uint64_t ceil_div(uint64_t a, uint64_t b)
{
    return (a + b - 1) / b;
}

/* ---- putting parts together ---- */

static uint32_t first_part(const struct op_attention *op, uint32_t row)
{
    return attention_first_seen(op, op->positions[row]) / PART_KEYS;
}

static uint32_t end_part(const struct op_attention *op, uint32_t row)
{
    return (uint32_t)op->positions[row] / PART_KEYS + 1;
}

/* Whether a row sees the part, and an earlier one. */
static bool is_joined(const struct op_attention *op, uint32_t row, uint32_t part)
{
    return first_part(op, row) < part && part < end_part(op, row);
}

static float *output(const struct op_attention *op, uint32_t row, uint32_t head)
{
    return op->out + row * op->out_row_stride + (uint64_t)head * op->v_width;
}

/* What is kept of each of two parts that become one: at first the logarithms. */
struct kept {
    float before, added;
};

static void raise_maximum(struct attention_sums *sums, float added_max, struct kept *kept)
{
    const float max = added_max > sums->max ? added_max : sums->max;

    *kept = (struct kept){ sums->max - max, added_max - max };
    sums->max = max;
}

static void find_kept(const struct cpu_kernels *kernels, struct kept *kept, uint32_t count)
{
    (void)kernels->exp_minus(&kept->before, &kept->before, 2 * count, 0);
}

/* The maximum has been raised already. */
static void join(struct attention_sums *sums, float *restrict out, float added_sum,
                 const float *restrict added_out, const struct kept *kept, uint32_t width)
{
    const float before = kept->before, added = kept->added;

    sums->sum = sums->sum * before + added_sum * added;
    for (uint32_t i = 0; i < width; i++)
        out[i] = out[i] * before + added_out[i] * added;
}

static void divide(float *out, float sum, uint32_t width)
{
    for (uint32_t i = 0; i < width; i++)
        out[i] /= sum;
}

/* ---- tasks ---- */

/* Sets a block's queries: of rows from `row` on, and of each kv head's heads from the head-th. */
static void find_queries(struct attention_block *block, uint32_t row, uint32_t head)
{
    const struct op_attention *op = block->job->op;
    const uint32_t group = op->head_count / op->kv_head_count;

    block->query_count = block->row_count * block->head_count;
    block->all_count = block->kv_count * block->query_count;
    for (uint32_t i = 0; i < block->all_count; i++) {
        const uint32_t at = i % block->query_count;
        const uint32_t kv_head = block->kv_first + i / block->query_count;
        const struct attention_query query = { row + at / block->head_count,
                                               kv_head * group + head + at % block->head_count };
        block->queries[i] = query;
        block->q[i] =
            op->q + query.row * op->q_row_stride + (uint64_t)query.head * op->k_width;
    }
}

/* What a block makes of the keys of a part that its rows see. asks_on: the next part follows. */
static void attend_part(struct attention_block *block, uint32_t part, bool asks_on)
{
    const struct op_attention *op = block->job->op;
    const uint32_t part_end = (part + 1) * PART_KEYS;
    uint32_t begin = part_end, end = part * PART_KEYS;

    for (uint32_t i = 0; i < block->all_count; i++) {
        const struct attention_query *query = &block->queries[i];
        const bool has_sink = op->sinks != NULL && first_part(op, query->row) == part;
        block->sums[i].max = has_sink ? op->sinks[query->head] : -INFINITY;
        block->sums[i].sum = has_sink ? 1 : 0;
        memset(block->out[i], 0, op->v_width * sizeof(float));
    }
    for (uint32_t r = 0; r < block->row_count; r++) {
        const uint32_t first = attention_first_seen(op, block->positions[r]);
        const uint32_t seen_end = (uint32_t)block->positions[r] + 1;
        begin = first < begin ? first : begin;
        end = seen_end > end ? seen_end : end;
    }
    begin = begin / CPU_ATTENTION_TILE * CPU_ATTENTION_TILE;
    begin = begin < part * PART_KEYS ? part * PART_KEYS : begin;
    if (begin < end)
        cpu__attention_add(block, begin, attention_lesser(end, part_end),
                           asks_on ? end : attention_lesser(end, part_end));
}

/* A part into its slot. */
static void fill_slot(struct attention_block *block, const struct share *share, uint32_t slot)
{
    const struct op_attention *op = block->job->op;
    const uint32_t count = block->all_count;
    uint64_t at[CPU_ATTENTION_QUERIES];

    for (uint32_t i = 0; i < count; i++) {
        at[i] = ((uint64_t)slot * op->row_count + block->queries[i].row) * op->head_count +
                block->queries[i].head;
        block->out[i] = share->slot_out + at[i] * op->v_width;
    }
    attend_part(block, share->slot_part + slot, false);
    for (uint32_t i = 0; i < count; i++)
        share->slot_sums[at[i]] = block->sums[i];
}

/* Puts a block's part together with those before, which `sums` and `out` have. */
static void join_part(const struct attention_block *block, uint32_t part,
                      struct attention_sums *sums, float *const *out)
{
    const struct op_attention *op = block->job->op;
    struct kept kept[CPU_ATTENTION_QUERIES];

    for (uint32_t i = 0; i < block->all_count; i++) {
        kept[i] = (struct kept){ 0, 0 };
        if (is_joined(op, block->queries[i].row, part))
            raise_maximum(&sums[i], block->sums[i].max, &kept[i]);
    }
    find_kept(block->job->executor->kernels, kept, block->all_count);
    for (uint32_t i = 0; i < block->all_count; i++)
        if (is_joined(op, block->queries[i].row, part))
            join(&sums[i], out[i], block->sums[i].sum, block->out[i], &kept[i], op->v_width);
}

/* All parts, one after another: each query's first goes to its place, the others to `room`. */
static void attend_parts(struct attention_block *block, float *room)
{
    const struct op_attention *op = block->job->op;
    const struct attention_query *const queries = block->queries;
    const uint32_t count = block->all_count;
    uint32_t first = UINT32_MAX, end = 0;
    float *out[CPU_ATTENTION_QUERIES];
    struct attention_sums sums[CPU_ATTENTION_QUERIES];

    for (uint32_t i = 0; i < count; i++) {
        out[i] = output(op, queries[i].row, queries[i].head);
        sums[i] = (struct attention_sums){ -INFINITY, 0 };
        first = attention_lesser(first, first_part(op, queries[i].row));
        end = end_part(op, queries[i].row) > end ? end_part(op, queries[i].row) : end;
    }
    for (uint32_t part = first; part < end; part++) {
        for (uint32_t i = 0; i < count; i++)
            block->out[i] = first_part(op, queries[i].row) == part
                                ? out[i] : room + (uint64_t)i * op->v_width;
        attend_part(block, part, true);
        if (part > first)
            join_part(block, part, sums, out);
        for (uint32_t i = 0; i < count; i++)
            if (first_part(op, queries[i].row) == part)
                sums[i] = block->sums[i];
    }
    for (uint32_t i = 0; i < count; i++)
        divide(out[i], sums[i].sum, op->v_width);
}

/* The rows from `row` on that are of one sequence, up to `end`. */
static uint32_t run_from(const struct op_attention *op, uint32_t row, uint32_t end)
{
    uint32_t count = 1;

    while (row + count < end && op->sequences[row + count] == op->sequences[row])
        count++;
    return count;
}

static void attention_task(void *context, size_t index, uint32_t thread_index)
{
    const struct share *share = context;
    const struct attention_job *job = &share->job;
    const struct op_attention *op = job->op;
    const struct cut *cut = &share->cut;
    const uint32_t group = op->head_count / op->kv_head_count;
    const uint32_t row_block = (uint32_t)(index % cut->row_blocks);
    const uint32_t heads = (uint32_t)(index / cut->row_blocks % (cut->head_parts * cut->kv_groups));
    const uint32_t slot = (uint32_t)(index / cut->row_blocks / (cut->head_parts * cut->kv_groups));
    const uint32_t first_in_group = heads % cut->head_parts * cut->heads_per_task;
    const uint32_t end =
        attention_lesser((row_block + 1) * cut->rows_per_task, op->row_count);
    float *scratch = cpu__scratch(job->executor, thread_index);
    float *const room = scratch + CPU_ATTENTION_TILE * ((uint64_t)op->k_width + op->v_width);
    struct attention_block block;

    block.job = job;
    block.scratch = scratch;
    block.packed = room + (uint64_t)CPU_ATTENTION_QUERIES * op->v_width;
    block.kv_first = heads / cut->head_parts * cut->kv_heads_per_task;
    block.kv_count = attention_lesser(cut->kv_heads_per_task, op->kv_head_count - block.kv_first);
    block.head_count = attention_lesser(cut->heads_per_task, group - first_in_group);
    for (uint32_t row = row_block * cut->rows_per_task; row < end; row += block.row_count) {
        block.row_count = run_from(op, row, end);
        block.pages = op->pages + (uint64_t)op->sequences[row] * op->page_count_max;
        block.positions = op->positions + row;
        find_queries(&block, row, first_in_group);
        cpu__attention_prepare(&block);
        if (cut->part_slots == 0)
            attend_parts(&block, room);
        else
            fill_slot(&block, share, slot);
    }
}

/* Puts together what a query has in slots [slot, end), at most SLOTS_AT_ONCE, and divides after the
 * last part. */
static void join_slots(const struct share *share, uint32_t row, uint32_t head, uint32_t slot,
                       uint32_t end)
{
    const struct op_attention *op = share->job.op;
    const uint64_t query = (uint64_t)row * op->head_count + head;
    const uint64_t queries = (uint64_t)op->row_count * op->head_count;
    const struct attention_sums *slot_sums = share->slot_sums + query;
    const float *slot_out = share->slot_out + query * op->v_width;
    struct attention_sums *const sums = &share->sums[query];
    float *const out = output(op, row, head);
    struct kept kept[SLOTS_AT_ONCE];

    for (uint32_t i = 0; slot + i < end; i++) {
        const uint32_t part = share->slot_part + slot + i;
        kept[i] = (struct kept){ 0, 0 };
        if (part == first_part(op, row))
            sums->max = slot_sums[(slot + i) * queries].max;
        else if (is_joined(op, row, part))
            raise_maximum(sums, slot_sums[(slot + i) * queries].max, &kept[i]);
    }
    find_kept(share->job.executor->kernels, kept, end - slot);
    for (uint32_t i = 0; slot + i < end; i++) {
        const uint32_t part = share->slot_part + slot + i;
        const uint64_t at = (slot + i) * queries;
        if (part == first_part(op, row)) {
            sums->sum = slot_sums[at].sum;
            memcpy(out, slot_out + at * op->v_width, op->v_width * sizeof(float));
        } else if (is_joined(op, row, part)) {
            join(sums, out, slot_sums[at].sum, slot_out + at * op->v_width, &kept[i], op->v_width);
        }
        if (part + 1 == end_part(op, row))
            divide(out, sums->sum, op->v_width);
    }
}

static void join_task(void *context, size_t index, uint32_t thread_index)
{
    const struct share *share = context;
    const uint32_t heads = share->job.op->head_count;
    const uint32_t first = (uint32_t)index * share->joined_at_once;
    const uint32_t end =
        attention_lesser(first + share->joined_at_once, share->job.op->row_count * heads);

    (void)thread_index;
    for (uint32_t i = first; i < end; i++)
        for (uint32_t slot = 0; slot < share->cut.part_slots; slot += SLOTS_AT_ONCE)
            join_slots(share, i / heads, i % heads, slot,
                       attention_lesser(slot + SLOTS_AT_ONCE, share->cut.part_slots));
}

/* ---- cutting ---- */

static uint32_t longest_run(const struct op_attention *op)
{
    uint32_t longest = 1;

    for (uint32_t row = 0, count; row < op->row_count; row += count) {
        count = run_from(op, row, op->row_count);
        longest = count > longest ? count : longest;
    }
    return longest;
}

/* Of a part, where parts have tasks of their own. */
static uint64_t tasks_each(const struct cut *cut)
{
    return (uint64_t)cut->row_blocks * cut->head_parts * cut->kv_groups;
}

static uint64_t task_count(const struct cut *cut)
{
    return tasks_each(cut) * (cut->part_slots == 0 ? 1 : cut->part_slots);
}

/* Keys that the thread with most tasks reads, one task's after another's. */
static uint64_t weigh_keys(const struct share *share, const struct cut *cut)
{
    const uint64_t threads = share->job.executor->thread_count, each = tasks_each(cut);
    const uint32_t parts = share->part_end - share->part_first;
    const uint64_t whole = each * (share->key_count / PART_KEYS);
    const uint32_t left = share->key_count % PART_KEYS, part = PART_KEYS + JOIN_KEYS;

    if (cut->part_slots == 0)
        return ceil_div(each, threads) * share->key_count;
    if (cut->part_slots < parts)
        return ceil_div(parts, cut->part_slots) * ceil_div(task_count(cut), threads) * part;
    if (whole % threads > 0) /* the last part's tasks fill gaps */
        return ceil_div(whole, threads) * part;
    return whole / threads * part + (left > 0 ? ceil_div(each, threads) * (left + JOIN_KEYS) : 0);
}

/* What a cut takes, in keys that one query reads. */
static uint64_t weigh(const struct share *share, const struct cut *cut)
{
    const struct op_attention *op = share->job.op;

    return weigh_keys(share, cut) * cut->kv_heads_per_task *
           (cut->heads_per_task + READ_QUERIES) *
           attention_lesser(cut->rows_per_task, op->row_count);
}

static bool has_enough_tasks(const struct share *share, const struct cut *cut)
{
    const uint64_t threads = share->job.executor->thread_count;

    return threads == 1 || task_count(cut) >= threads * TASKS_ENOUGH;
}

/* Chooses how many kv heads a task has: as many as there is room for, if threads don't wait then.
 * Returns what the cut takes. */
static uint64_t group_kv_heads(const struct share *share, struct cut *cut)
{
    const struct op_attention *op = share->job.op;
    const uint32_t rows = attention_lesser(share->longest_run, cut->rows_per_task);
    const uint32_t most = CPU_ATTENTION_QUERIES / cpu_padded_queries(rows * cut->heads_per_task);
    uint64_t least = UINT64_MAX;
    struct cut best = *cut;

    for (uint32_t i = (uint32_t)ceil_div(op->kv_head_count, most); i <= op->kv_head_count; i++) {
        uint64_t weight;
        cut->kv_heads_per_task = (uint32_t)ceil_div(op->kv_head_count, i);
        cut->kv_groups = (uint32_t)ceil_div(op->kv_head_count, cut->kv_heads_per_task);
        weight = weigh(share, cut);
        if (weight < least) {
            least = weight;
            best = *cut;
        }
        if (has_enough_tasks(share, cut))
            break;
    }
    *cut = best;
    return least;
}

/* Takes a cut that is a tenth better than the best so far, which takes *least. */
static void consider(struct share *share, struct cut cut, uint64_t *least)
{
    const struct op_attention *op = share->job.op;
    uint64_t weight;

    cut.row_blocks = (uint32_t)ceil_div(op->row_count, cut.rows_per_task);
    cut.head_parts = (uint32_t)ceil_div(op->head_count / op->kv_head_count, cut.heads_per_task);
    weight = group_kv_heads(share, &cut);
    if (weight < *least - *least / 10) {
        *least = weight;
        share->cut = cut;
    }
}

/* Lays slots out in the room for rows of x. Returns how many: as many as there are parts, if they
 * fit; 0: fewer than two do. */
static uint32_t lay_out_slots(struct share *share)
{
    const struct cpu_executor *executor = share->job.executor;
    const struct op_attention *op = share->job.op;
    const uint64_t queries = (uint64_t)op->row_count * op->head_count;
    const uint64_t sums_bytes = queries * sizeof(*share->sums);
    const uint64_t slot_bytes = sums_bytes + queries * op->v_width * sizeof(float);
    const uint32_t parts = share->part_end - share->part_first;
    uint64_t room_bytes = executor->thread_count * SLOTS_BYTES, slots;

    assert(slot_bytes > 0);
    room_bytes = room_bytes < executor->blocks_bytes ? room_bytes : executor->blocks_bytes;
    if (room_bytes < sums_bytes + 2 * slot_bytes)
        return 0;
    slots = (room_bytes - sums_bytes) / slot_bytes;
    if (slots < parts && slots > executor->thread_count)
        slots -= slots % executor->thread_count; /* no thread waits for a round to end */
    slots = slots < parts ? slots : parts;
    share->sums = executor->blocks;
    share->slot_sums = share->sums + queries;
    share->slot_out = (float *)(void *)(share->slot_sums + slots * queries);
    return slots < 2 ? 0 : (uint32_t)slots;
}

static void cut_tasks(struct share *share)
{
    const struct op_attention *op = share->job.op;
    const uint32_t heads =
        attention_lesser(op->head_count / op->kv_head_count, CPU_ATTENTION_QUERIES);
    struct cut cut = { .heads_per_task = heads, .rows_per_task = CPU_ATTENTION_QUERIES / heads };
    uint64_t least = UINT64_MAX;
    uint32_t slots;

    consider(share, cut, &least);
    if (has_enough_tasks(share, &share->cut))
        return;
    cut.rows_per_task = attention_lesser(cut.rows_per_task, share->longest_run);
    slots = lay_out_slots(share);
    for (; cut.heads_per_task > 0; cut.heads_per_task = (cut.heads_per_task + 1) / 2) {
        cut.part_slots = 0;
        consider(share, cut, &least);
        cut.part_slots = slots;
        if (slots > 0)
            consider(share, cut, &least);
        if (cut.heads_per_task <= HEADS_MIN)
            break;
    }
}

/* The rows that a share has, and what they see. */
static void survey(struct share *share)
{
    const struct op_attention *op = share->job.op;
    uint32_t end = 0;

    share->longest_run = longest_run(op);
    share->part_first = UINT32_MAX;
    for (uint32_t row = 0; row < op->row_count; row++) {
        share->part_first = attention_lesser(share->part_first, first_part(op, row));
        end = (uint32_t)op->positions[row] >= end ? (uint32_t)op->positions[row] + 1 : end;
    }
    share->part_end = (uint32_t)ceil_div(end, PART_KEYS);
    share->key_count = end - share->part_first * PART_KEYS;
}

static struct op_cache_strides strides_in_bytes(enum dtype dtype, struct op_cache_strides strides)
{
    return (struct op_cache_strides){ dtype_row_bytes(dtype, strides.page),
                                      dtype_row_bytes(dtype, strides.head),
                                      dtype_row_bytes(dtype, strides.slot) };
}

static struct attention_job describe(const struct cpu_executor *executor,
                                     const struct op_attention *op)
{
    const bool is_latent = op->v_cache == op->k_cache && op->kv_head_count == 1;
    struct attention_job job = {
        .executor = executor, .op = op, .is_latent = is_latent,
        .is_apart = op->k_strides.slot > op->k_width || op->v_strides.slot > op->v_width,
        .has_room = op->k_width + UINT64_C(2) * op->v_width + attention_packed_width(op) <=
                    CPU_ATTENTION_ELEMENTS_MAX,
        .key_bytes = dtype_row_bytes(op->cache_dtype, op->k_width),
        .value_bytes = is_latent ? 0 : dtype_row_bytes(op->cache_dtype, op->v_width),
        .k_bytes = strides_in_bytes(op->cache_dtype, op->k_strides),
        .v_bytes = strides_in_bytes(op->cache_dtype, op->v_strides),
    };

    job.packs = op->k_width <= executor->kernels->score_width_max && job.has_room;
    return job;
}

void cpu__attention(struct cpu_executor *executor, const struct op_attention *op)
{
    struct share share = { .job = describe(executor, op) };
    uint32_t slots;

    survey(&share);
    cut_tasks(&share);
    slots = share.cut.part_slots;
    share.slot_part = share.part_first;
    if (slots == 0) {
        thread_pool_run(executor->pool, (size_t)task_count(&share.cut), attention_task, &share);
        return;
    }
    executor->kept.x = NULL; /* slots are where rows of x were */
    share.joined_at_once =
        cpu__task_size(executor, op->row_count * op->head_count, (uint64_t)slots * op->v_width, 1);
    for (; share.slot_part < share.part_end; share.slot_part += slots) {
        share.cut.part_slots = attention_lesser(slots, share.part_end - share.slot_part);
        thread_pool_run(executor->pool, (size_t)task_count(&share.cut), attention_task, &share);
        thread_pool_run(executor->pool,
                        ceil_div(op->row_count * op->head_count, share.joined_at_once), join_task,
                        &share);
    }
}
