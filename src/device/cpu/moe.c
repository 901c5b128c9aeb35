/* device/cpu/moe.c - OP_MOE: routed rows sorted by expert, so that each expert is read once.
 *
 *     sort      (row t, choice j) -> routed row r; those of an expert are adjacent, in the
 *               order of t
 *     up        per expert and run of gate/up rows: hidden[r] = w13 . x[t] (+ its bias), product =
 *               what `gate` makes of g and u
 *     down      per expert and run of w2's rows: result[r] = w2 . product[r] (+ its bias)
 *     add       per row t: out[t] += weights[t][j] * result[r(t, j)], j ascending
 *
 * Where columns lie in another order, each expert's rows of x are put into that order first, in the
 * place of their results, and its products in that of their gates and ups.
 *
 * The first launch sorts, each computes the experts it has, the last one adds; what they share lies
 * in the op's scratch. For quantised weights the first launch also quantises x, and each its
 * products, which go where their gates and ups were. The order of the sum in `add` and the
 * kernels' own promise make a row independent of others, and of how the experts were spread over
 * launches. */
#include <assert.h>
#include <string.h>

#include "base/size.h"
#include "device/cpu/internal.h"

#define RUN_GRANULE 48 /* weight rows: whole panels, of 12 or 16 rows */
#define RUNS_PER_THREAD_MAX 8 /* so many are even enough, whatever each thread has */

struct moe_job {
    const struct cpu_executor *executor;
    const struct op_moe *op;
    /* Parts of op->scratch; routed_count = row_count * top_k. */
    float *hidden;         /* [routed_count][2 * ffn_width] */
    float *product;        /* [routed_count][ffn_width] */
    float *result;         /* [routed_count][width] */
    struct cpu_quant_block *x_blocks; /* [row_count][width / 32], for quantised weights */
    uint32_t *routed_row;  /* [routed_count]: t of routed row r */
    uint32_t *routed_at;   /* [row_count][top_k]: r of (t, j) */
    uint32_t *end;         /* [expert_count]: routed rows of e are [end[e - 1], end[e]) */
    uint32_t *hit;         /* [hit_count]: experts with rows that this launch has; indices of
                              op->experts, or ids when stacked */
    uint32_t hit_count;
    uint32_t run_length, runs_per_expert; /* of the current step */
    uint32_t rows_per_task;
};

static void *carve(char **at, uint64_t size_bytes)
{
    void *part = *at;

    *at += size_align_up(size_bytes, 64);
    return part;
}

static void divide_scratch(struct moe_job *job)
{
    const struct op_moe *op = job->op;
    const uint64_t routed_count = (uint64_t)op->row_count * op->top_k;
    char *at = op->scratch;

    job->hidden = carve(&at, routed_count * 2 * op->ffn_width * sizeof(float));
    job->product = carve(&at, routed_count * op->ffn_width * sizeof(float));
    job->result = carve(&at, routed_count * op->width * sizeof(float));
    job->x_blocks = carve(&at, op->row_count * cpu_quant_row_bytes(op->width));
    job->routed_row = carve(&at, routed_count * sizeof(uint32_t));
    job->routed_at = carve(&at, routed_count * sizeof(uint32_t));
    job->end = carve(&at, op->expert_count * sizeof(uint32_t));
    job->hit = carve(&at, op->expert_count * sizeof(uint32_t));
    assert((uint64_t)(at - (char *)op->scratch) <=
           op_moe_scratch_bytes(op->row_count, op->top_k, op->expert_count, op->width,
                                op->ffn_width));
}

/* A counting sort of (t, j) by expert. */
static void sort_by_expert(struct moe_job *job)
{
    const struct op_moe *op = job->op;
    const uint32_t routed_count = op->row_count * op->top_k;
    uint32_t *next = job->end;
    uint32_t sum = 0;

    memset(next, 0, op->expert_count * sizeof(*next));
    for (uint32_t i = 0; i < routed_count; i++) {
        assert((uint32_t)op->ids[i] < op->expert_count);
        next[op->ids[i]]++;
    }
    for (uint32_t e = 0; e < op->expert_count; e++) {
        const uint32_t count = next[e];
        next[e] = sum;
        sum += count;
    }
    for (uint32_t i = 0; i < routed_count; i++) {
        const uint32_t r = next[op->ids[i]]++;
        job->routed_row[r] = i / op->top_k;
        job->routed_at[i] = r;
    }
    /* next[e] has become the end of e's routed rows, equal to the end before it when e has none */
}

static uint32_t rows_begin(const struct moe_job *job, uint32_t expert)
{
    return expert == 0 ? 0 : job->end[expert - 1];
}

/* Which of the experts at hand have rows. */
static void find_hits(struct moe_job *job)
{
    const struct op_moe *op = job->op;
    const uint32_t count = op->experts != NULL ? op->expert_list_count : op->expert_count;

    job->hit_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t expert = op->experts != NULL ? (uint32_t)op->experts[i].id : i;
        assert(expert < op->expert_count);
        if (job->end[expert] > rows_begin(job, expert))
            job->hit[job->hit_count++] = i;
    }
}

/* Where the matrices of a hit lie. */
static struct op_moe_expert expert_of(const struct moe_job *job, uint32_t hit)
{
    const struct op_moe *op = job->op;
    const uint32_t index = job->hit[hit];
    const uint64_t elements = (uint64_t)op->width * op->ffn_width;
    const uint64_t matrix_bytes = dtype_row_bytes(op->weight_dtype, elements);
    const uint64_t down_bytes = dtype_row_bytes(op->down_dtype, elements);
    const char *gate;

    if (op->experts != NULL)
        return op->experts[index];
    gate = (const char *)op->w13 + index * 2 * matrix_bytes;
    return (struct op_moe_expert){ gate, gate + matrix_bytes,
                                   (const char *)op->w2 + index * down_bytes, (int32_t)index };
}

/* The product of a routed row, quantised, in the place of its gate and up. */
static struct cpu_quant_block *product_blocks(const struct moe_job *job, uint64_t r)
{
    return (struct cpu_quant_block *)(void *)(job->hidden + r * 2 * job->op->ffn_width);
}

/* The input of a routed row in the order of its expert's columns, quantised or not, in the place of
 * what will come of it. */
static float *ordered_x(const struct moe_job *job, uint64_t r)
{
    return job->result + r * job->op->width;
}

/* What the up step multiplies for a routed row. */
static const float *input_row(const struct moe_job *job, uint64_t r)
{
    return job->op->w13_order != NULL ? ordered_x(job, r)
                                      : job->op->x + job->routed_row[r] * job->op->x_row_stride;
}

static const struct cpu_quant_block *input_blocks(const struct moe_job *job, uint64_t r)
{
    if (job->op->w13_order != NULL)
        return (const struct cpu_quant_block *)(const void *)ordered_x(job, r);
    return job->x_blocks +
           (uint64_t)job->routed_row[r] * (job->op->width / CPU_QUANT_BLOCK_ELEMENTS);
}

/* The same for the down step. */
static const float *product_row(const struct moe_job *job, uint64_t r)
{
    return job->op->w2_order != NULL ? job->hidden + r * 2 * job->op->ffn_width
                                     : job->product + r * job->op->ffn_width;
}

/* out[r][0 .. n_count) = the strip's weight rows times x of the expert's routed rows. */
static void multiply(const struct moe_job *job, uint32_t expert, uint32_t thread_index,
                     const struct cpu_strip *whole, bool x_is_input)
{
    const uint32_t end = job->end[expert];
    const bool quantised = cpu_is_quantised(whole->weight_dtype);
    const float *x_rows[CPU_STRIP_ROWS_MAX];
    const struct cpu_quant_block *x_blocks[CPU_STRIP_ROWS_MAX];
    struct cpu_strip strip = *whole;

    strip.x_rows = x_rows;
    strip.x_blocks = x_blocks;
    for (uint32_t r = rows_begin(job, expert); r < end; r += strip.row_count) {
        strip.row_count = end - r < CPU_STRIP_ROWS_MAX ? end - r : CPU_STRIP_ROWS_MAX;
        strip.out = whole->out + r * whole->out_row_stride;
        for (uint32_t i = 0; i < strip.row_count; i++) {
            if (quantised)
                x_blocks[i] = x_is_input ? input_blocks(job, r + i) : product_blocks(job, r + i);
            else
                x_rows[i] = x_is_input ? input_row(job, r + i) : product_row(job, r + i);
        }
        cpu__multiply(job->executor, &strip, thread_index);
    }
}

static const void *weight_rows(enum dtype dtype, const void *matrix, uint64_t row,
                               uint64_t row_elements)
{
    return (const char *)matrix + row * dtype_row_bytes(dtype, row_elements);
}

static void up_task(void *context, size_t index, uint32_t thread_index)
{
    const struct moe_job *job = context;
    const struct op_moe *op = job->op;
    const uint32_t hit = (uint32_t)(index / job->runs_per_expert);
    const uint32_t first = (uint32_t)(index % job->runs_per_expert) * job->run_length;
    const uint32_t left = op->ffn_width - first;
    const uint32_t count = left < job->run_length ? left : job->run_length;
    const struct op_moe_expert expert = expert_of(job, hit);
    const uint32_t id = (uint32_t)expert.id;
    const uint64_t hidden_width = 2 * (uint64_t)op->ffn_width;

    for (uint32_t half = 0; half < 2; half++) {
        const uint64_t at = (2 * (uint64_t)id + half) * op->ffn_width + first;
        const struct cpu_strip strip = {
            .out = job->hidden + (uint64_t)half * op->ffn_width + first,
            .weight = weight_rows(op->weight_dtype, half == 0 ? expert.gate : expert.up, first,
                                  op->width),
            .bias = op->w13_bias != NULL ? op->w13_bias + at : NULL,
            .weight_dtype = op->weight_dtype,
            .weight_layout = op->weight_layout,
            .n_count = count,
            .k_count = op->width,
            .out_row_stride = hidden_width,
            .weight_row_stride = op->width,
        };
        multiply(job, id, thread_index, &strip, true);
    }
    for (uint32_t r = rows_begin(job, id); r < job->end[id]; r++) {
        const float *gate = job->hidden + r * hidden_width + first;
        job->executor->kernels->gate_mul[op->gate](
            job->product + (uint64_t)r * op->ffn_width + first, gate, gate + op->ffn_width, count);
    }
}

static void quantise_x_task(void *context, size_t index, uint32_t thread_index)
{
    const struct moe_job *job = context;
    const struct op_moe *op = job->op;
    const uint64_t first = index * job->rows_per_task;
    const uint64_t left = op->row_count - first;
    const uint64_t count = left < job->rows_per_task ? left : job->rows_per_task;

    (void)thread_index;
    for (uint64_t t = first; t < first + count; t++)
        job->executor->kernels->quantise(
            job->x_blocks + t * (op->width / CPU_QUANT_BLOCK_ELEMENTS),
            op->x + t * op->x_row_stride, op->width);
}

/* to[i] = from[order[i]], quantised or not. */
static void put_ordered(const struct moe_job *job, void *to, const float *from, const float *order,
                        uint32_t width, bool quantised, uint32_t thread_index)
{
    float *const plain = quantised ? cpu__scratch(job->executor, thread_index) : to;

    assert(width * sizeof(float) <= CPU_STRIP_SCRATCH_BYTES);
    for (uint32_t i = 0; i < width; i++)
        plain[i] = from[op_column(order[i], width)];
    if (quantised)
        job->executor->kernels->quantise(to, plain, width);
}

/* A task for each hit, as below. */
static void order_x_task(void *context, size_t hit, uint32_t thread_index)
{
    const struct moe_job *job = context;
    const struct op_moe *op = job->op;
    const uint32_t id = (uint32_t)expert_of(job, (uint32_t)hit).id;

    for (uint32_t r = rows_begin(job, id); r < job->end[id]; r++)
        put_ordered(job, ordered_x(job, r), op->x + job->routed_row[r] * op->x_row_stride,
                    op->w13_order + (uint64_t)id * op->width, op->width,
                    cpu_is_quantised(op->weight_dtype), thread_index);
}

/* Orders and quantises products. A task for each hit: there are some experts' rows, or a few of one
 * row each. */
static void prepare_products_task(void *context, size_t hit, uint32_t thread_index)
{
    const struct moe_job *job = context;
    const struct op_moe *op = job->op;
    const uint32_t id = (uint32_t)expert_of(job, (uint32_t)hit).id;

    for (uint32_t r = rows_begin(job, id); r < job->end[id]; r++) {
        const float *product = job->product + (uint64_t)r * op->ffn_width;
        if (op->w2_order != NULL)
            put_ordered(job, product_blocks(job, r), product,
                        op->w2_order + (uint64_t)id * op->ffn_width, op->ffn_width,
                        cpu_is_quantised(op->down_dtype), thread_index);
        else
            job->executor->kernels->quantise(product_blocks(job, r), product, op->ffn_width);
    }
}

static void down_task(void *context, size_t index, uint32_t thread_index)
{
    const struct moe_job *job = context;
    const struct op_moe *op = job->op;
    const uint32_t hit = (uint32_t)(index / job->runs_per_expert);
    const uint32_t first = (uint32_t)(index % job->runs_per_expert) * job->run_length;
    const uint32_t left = op->width - first;
    const struct op_moe_expert expert = expert_of(job, hit);
    const struct cpu_strip strip = {
        .out = job->result + first,
        .weight = weight_rows(op->down_dtype, expert.down, first, op->ffn_width),
        .bias = op->w2_bias != NULL ? op->w2_bias + (uint64_t)expert.id * op->width + first : NULL,
        .weight_dtype = op->down_dtype,
        .weight_layout = op->down_layout,
        .n_count = left < job->run_length ? left : job->run_length,
        .k_count = op->ffn_width,
        .out_row_stride = op->width,
        .weight_row_stride = op->ffn_width,
    };

    multiply(job, (uint32_t)expert.id, thread_index, &strip, false);
}

static void add_task(void *context, size_t index, uint32_t thread_index)
{
    const struct moe_job *job = context;
    const struct op_moe *op = job->op;
    const uint32_t first = (uint32_t)index * job->rows_per_task;
    const uint32_t left = op->row_count - first;
    const uint32_t count = left < job->rows_per_task ? left : job->rows_per_task;

    (void)thread_index;
    for (uint32_t t = first; t < first + count; t++) {
        float *out = op->out + t * op->out_row_stride;
        for (uint32_t j = 0; j < op->top_k; j++) {
            const uint64_t at = (uint64_t)t * op->top_k + j;
            const float *result = job->result + (uint64_t)job->routed_at[at] * op->width;
            const float weight = op->weights[at];
            for (uint32_t i = 0; i < op->width; i++)
                out[i] += weight * result[i];
        }
    }
}

/* Routed rows of this launch's hits. */
static uint64_t hit_rows(const struct moe_job *job)
{
    uint64_t count = 0;

    for (uint32_t hit = 0; hit < job->hit_count; hit++) {
        const uint32_t expert = (uint32_t)expert_of(job, hit).id;
        count += job->end[expert] - rows_begin(job, expert);
    }
    return count;
}

/* Cuts each expert's matrix of n_count rows into runs; the average expert has its share of rows.
 * All runs together are some tasks for each thread, and while they are few as many for each: a run
 * more begins streams of memory anew (quant_tiles.h). */
static size_t cut(struct moe_job *job, uint64_t routed_count, uint32_t n_count, uint32_t k_count)
{
    const uint32_t hits = job->hit_count, threads = job->executor->thread_count;
    uint64_t work_each;
    uint32_t length, runs;

    assert(hits > 0);
    work_each = (uint64_t)k_count * ((routed_count - 1) / hits + 1);
    length = cpu__task_size(job->executor, hits * n_count, work_each, RUN_GRANULE);
    runs = length < n_count ? (n_count + length - 1) / length : 1;
    while (hits * runs % threads != 0 && hits * runs < RUNS_PER_THREAD_MAX * threads)
        runs++;
    length = (n_count + runs - 1) / runs;
    job->run_length = (length + RUN_GRANULE - 1) / RUN_GRANULE * RUN_GRANULE;
    job->runs_per_expert = (n_count + job->run_length - 1) / job->run_length;
    return (size_t)hits * job->runs_per_expert;
}

/* Sets rows_per_task and returns how many tasks take all rows. */
static size_t cut_rows(struct moe_job *job, uint64_t work_each)
{
    const uint32_t row_count = job->op->row_count;

    job->rows_per_task = cpu__task_size(job->executor, row_count, work_each, 1);
    return (row_count + job->rows_per_task - 1) / job->rows_per_task;
}

void cpu__moe(struct cpu_executor *executor, const struct op_moe *op)
{
    struct moe_job job = { .executor = executor, .op = op };
    struct thread_pool *pool = executor->pool;

    divide_scratch(&job);
    if (!op->continued) {
        sort_by_expert(&job);
        if (cpu_is_quantised(op->weight_dtype) && op->w13_order == NULL)
            thread_pool_run(pool, cut_rows(&job, op->width), quantise_x_task, &job);
    }
    find_hits(&job);
    if (job.hit_count > 0) {
        const uint64_t rows = hit_rows(&job);
        if (op->w13_order != NULL)
            thread_pool_run(pool, job.hit_count, order_x_task, &job);
        thread_pool_run(pool, cut(&job, rows, op->ffn_width, 2 * op->width), up_task, &job);
        if (cpu_is_quantised(op->down_dtype) || op->w2_order != NULL)
            thread_pool_run(pool, job.hit_count, prepare_products_task, &job);
        thread_pool_run(pool, cut(&job, rows, op->width, op->ffn_width), down_task, &job);
    }
    if (op->unfinished)
        return;
    thread_pool_run(pool, cut_rows(&job, (uint64_t)op->width * op->top_k), add_task, &job);
}
