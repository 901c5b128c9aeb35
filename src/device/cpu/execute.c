/* device/cpu/execute.c - see execute.h: the executor, and the ops that work row by row. */
#include "device/cpu/execute.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "device/cpu/internal.h"
#include "device/host_memory.h"
#include "device/operands.h"

#define TASKS_PER_THREAD 4
#define TASK_WORK_MIN UINT64_C(16384) /* multiply-adds: some microseconds on one thread */

static uint64_t blocks_bytes(const struct device_options *options)
{
    const uint64_t bytes = options->memory_budget_bytes / CPU_BLOCKS_SHARE / MIB * MIB;

    if (options->memory_budget_bytes == 0 || bytes > CPU_BLOCKS_BYTES_MAX)
        return CPU_BLOCKS_BYTES_MAX;
    return bytes < CPU_BLOCKS_BYTES_MIN ? CPU_BLOCKS_BYTES_MIN : bytes;
}

enum status cpu_executor_create(const struct device_options *options,
                                struct cpu_executor **executor_out, struct err *err)
{
    struct cpu_executor *executor = calloc(1, sizeof(*executor));
    enum status st;

    if (executor == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for an executor");
    executor->thread_count =
        options->thread_count == 0 ? thread_count_available() : options->thread_count;
    if (executor->thread_count > THREAD_POOL_THREADS_MAX) {
        st = err_set(err, STATUS_BAD_INPUT, "--threads: %u is more than %d",
                     executor->thread_count, THREAD_POOL_THREADS_MAX);
        goto fail;
    }
    st = cpu_kernels_select(options->cpu_kernels, &executor->kernels, err);
    if (st != STATUS_OK)
        goto fail;
    executor->scratch =
        aligned_alloc(64, (size_t)executor->thread_count * CPU_STRIP_SCRATCH_BYTES);
    if (executor->scratch == NULL) {
        st = err_set(err, STATUS_NO_MEMORY, "no memory for the scratch of %u threads",
                     executor->thread_count);
        goto fail;
    }
    executor->blocks_bytes = blocks_bytes(options);
    st = host_memory_map("rows of x", executor->blocks_bytes, &executor->blocks, err);
    if (st != STATUS_OK)
        goto fail;
    st = thread_pool_create(executor->thread_count, &executor->pool, err);
    if (st != STATUS_OK)
        goto fail;
    *executor_out = executor;
    return STATUS_OK;
fail:
    cpu_executor_destroy(executor);
    return st;
}

void cpu_executor_destroy(struct cpu_executor *executor)
{
    if (executor == NULL)
        return;
    thread_pool_destroy(executor->pool);
    host_memory_unmap(executor->blocks, executor->blocks_bytes);
    free(executor->scratch);
    free(executor);
}

enum status cpu_executor_round_x(struct cpu_executor *executor, struct err *err)
{
    const struct cpu_kernels *kernels = cpu_kernels_select_bf16();

    if (kernels == NULL)
        return err_set(err, STATUS_UNAVAILABLE,
                       "cpu: bf16-products=on is for processors with AVX-512 BF16 and without AMX, "
                       "which is as fast without rounding; this one has %s",
                       executor->kernels->name);
    executor->kernels = kernels;
    return STATUS_OK;
}

enum layout cpu_executor_weight_layout(const struct cpu_executor *executor, enum dtype dtype)
{
    return cpu_kernels_layout(executor->kernels, dtype);
}

char *cpu_executor_describe(const struct cpu_executor *executor, char *out, size_t out_size)
{
    (void)snprintf(out, out_size, "%s, %u thread%s", executor->kernels->name,
                   executor->thread_count, executor->thread_count == 1 ? "" : "s");
    return out;
}

uint32_t cpu__task_size(const struct cpu_executor *executor, uint32_t count, uint64_t work_each,
                        uint32_t granule)
{
    const uint64_t least = work_each >= TASK_WORK_MIN ? 1 : TASK_WORK_MIN / (work_each + 1) + 1;
    const uint64_t tasks = (uint64_t)executor->thread_count * TASKS_PER_THREAD;
    uint64_t size = (count + tasks - 1) / tasks;

    if (executor->thread_count == 1)
        return count;
    if (size < least)
        size = least;
    size = (size + granule - 1) / granule * granule;
    return size < count ? (uint32_t)size : count;
}

/* Ops whose rows have nothing to do with each other: row_task runs a span of them. */
struct row_job {
    const struct cpu_executor *executor;
    const struct op *op;
    void (*row)(const struct cpu_executor *executor, const struct op *op, uint32_t row);
    uint32_t row_count, rows_per_task;
};

static void row_task(void *context, size_t index, uint32_t thread_index)
{
    const struct row_job *job = context;
    const uint32_t first = (uint32_t)index * job->rows_per_task;
    const uint32_t left = job->row_count - first;
    const uint32_t count = left < job->rows_per_task ? left : job->rows_per_task;

    (void)thread_index;
    for (uint32_t row = first; row < first + count; row++)
        job->row(job->executor, job->op, row);
}

static void run_rows(struct cpu_executor *executor, const struct op *op, uint64_t work_each,
                     void (*row)(const struct cpu_executor *, const struct op *, uint32_t))
{
    struct row_job job = { executor, op, row, op_row_count(op), 0 };

    job.rows_per_task = cpu__task_size(executor, job.row_count, work_each, 1);
    thread_pool_run(executor->pool, (job.row_count + job.rows_per_task - 1) / job.rows_per_task,
                    row_task, &job);
}

static void embed_row(const struct cpu_executor *executor, const struct op *op, uint32_t row)
{
    const struct op_embed *embed = &op->embed;
    const uint64_t row_bytes = dtype_row_bytes(embed->table_dtype, embed->width);

    (void)executor;
    dtype_convert(embed->out + row * embed->out_row_stride, DTYPE_F32,
                  (const char *)embed->table + (uint64_t)embed->ids[row] * row_bytes,
                  embed->table_dtype, embed->width);
}

static void rms_norm_row(const struct cpu_executor *executor, const struct op *op, uint32_t row)
{
    const struct op_rms_norm *norm = &op->rms_norm;

    for (uint32_t group = 0; group < norm->group_count; group++) {
        const uint64_t at = (uint64_t)group * norm->width;
        executor->kernels->rms_norm(norm->out + row * norm->out_row_stride + at,
                                    norm->x + row * norm->x_row_stride + at, norm);
    }
}

static void rope_table_row(const struct cpu_executor *executor, const struct op *op, uint32_t row)
{
    const struct op_rope_table *rope = &op->rope_table;
    float *pair = rope->table + (uint64_t)row * rope->pair_count * 2;

    (void)executor;
    for (uint32_t i = 0; i < rope->pair_count; i++) {
        const float angle = (float)rope->positions[row] * rope->frequencies[i];
        pair[2 * i] = cosf(angle) * rope->scale;
        pair[2 * i + 1] = sinf(angle) * rope->scale;
    }
}

static void rope_row(const struct cpu_executor *executor, const struct op *op, uint32_t row)
{
    const struct op_rope *rope = &op->rope;
    const float *pair = rope->table + (uint64_t)row * rope->pair_count * 2;
    const uint32_t step = rope->interleaved ? 2 : 1;
    const uint32_t second = rope->interleaved ? 1 : rope->pair_count;

    (void)executor;
    for (uint32_t head = 0; head < rope->head_count; head++) {
        float *x = rope->x + row * rope->row_stride + head * rope->head_stride;
        for (uint32_t i = 0; i < rope->pair_count; i++) {
            const float a = x[i * step];
            const float b = x[i * step + second];
            x[i * step] = a * pair[2 * i] - b * pair[2 * i + 1];
            x[i * step + second] = b * pair[2 * i] + a * pair[2 * i + 1];
        }
    }
}

static void kv_write_row(const struct cpu_executor *executor, const struct op *op, uint32_t row)
{
    const struct op_kv_write *write = &op->kv_write;
    const uint32_t slot = (uint32_t)write->slots[row];
    const uint64_t first = slot / write->page_size * write->strides.page +
                           slot % write->page_size * write->strides.slot;
    const float *x = write->x + row * write->x_row_stride;

    (void)executor;
    for (uint32_t head = 0; head < write->head_count; head++, x += write->width)
        dtype_convert((char *)write->cache +
                          dtype_row_bytes(write->cache_dtype, first + head * write->strides.head),
                      write->cache_dtype, x, DTYPE_F32, write->width);
}

static void silu_mul_row(const struct cpu_executor *executor, const struct op *op, uint32_t row)
{
    const struct op_silu_mul *silu = &op->silu_mul;
    const float *x = silu->x + row * silu->x_row_stride;

    executor->kernels->gate_mul[silu->gate](silu->out + row * silu->out_row_stride, x,
                                            x + silu->width, silu->width);
}

static void scale_row(const struct cpu_executor *executor, const struct op *op, uint32_t row)
{
    const struct op_scale *scale = &op->scale;
    const float *x = scale->x + row * scale->x_row_stride;
    float *out = scale->out + row * scale->out_row_stride;
    float factor = scale->row_factors != NULL ? scale->row_factors[row] : 1.0f;

    (void)executor;
    if (scale->row_factors != NULL && scale->sigmoid)
        factor = 1.0f / (1.0f + expf(-factor));
    factor *= scale->factor;
    if (scale->accumulate)
        for (uint32_t i = 0; i < scale->width; i++)
            out[i] += factor * x[i];
    else
        for (uint32_t i = 0; i < scale->width; i++)
            out[i] = factor * x[i];
}

static void gather_row(const struct cpu_executor *executor, const struct op *op, uint32_t row)
{
    const struct op_gather_rows *gather = &op->gather_rows;

    (void)executor;
    memcpy(gather->out + row * gather->out_row_stride,
           gather->x + (uint64_t)gather->rows[row] * gather->x_row_stride,
           gather->width * sizeof(float));
}

static void gather_columns_row(const struct cpu_executor *executor, const struct op *op,
                               uint32_t row)
{
    const struct op_gather_columns *gather = &op->gather_columns;
    float *out = gather->out + row * gather->out_row_stride;
    const float *x = gather->x + row * gather->x_row_stride;

    (void)executor;
    for (uint32_t i = 0; i < gather->width; i++)
        out[i] = x[op_column(gather->columns[i], gather->x_width)];
}

static void soft_cap_row(const struct cpu_executor *executor, const struct op *op, uint32_t row)
{
    const struct op_soft_cap *soft_cap = &op->soft_cap;

    executor->kernels->soft_cap(soft_cap->x + row * soft_cap->row_stride, soft_cap->width,
                                soft_cap->cap);
}

static void route_row(const struct cpu_executor *executor, const struct op *op, uint32_t row)
{
    cpu__route_row(executor->kernels, &op->route, row);
}

/* Whether scratch has room for a tile that is widened, and for results of a part. */
static enum status check_attention(const struct op_attention *op, struct err *err)
{
    const uint64_t elements = op->k_width + UINT64_C(2) * op->v_width;

    if (elements <= CPU_ATTENTION_ELEMENTS_MAX)
        return STATUS_OK;
    return err_set(err, STATUS_UNAVAILABLE,
                   "the processor attends to keys and twice their values of %zu elements together, "
                   "not of %" PRIu64, CPU_ATTENTION_ELEMENTS_MAX, elements);
}

enum status cpu_execute_check(const struct op *op, struct err *err)
{
    enum dtype dtype;

    if (op->kind == OP_ATTENTION)
        return check_attention(&op->attention, err);
    if (!device__op_weight_dtype(op, &dtype))
        return STATUS_OK;
    if (dtype == DTYPE_I32 || (op->kind == OP_MOE && op->moe.down_dtype == DTYPE_I32))
        return err_set(err, STATUS_UNAVAILABLE, "the processor has no %s kernel for %s weights",
                       op_kind_name(op->kind), dtype_info(DTYPE_I32)->name);
    if (op->kind == OP_MATMUL && cpu_is_quantised(dtype)) {
        const uint64_t width = (uint64_t)op->matmul.k_count * op->matmul.batch_count;
        if (cpu_quant_row_bytes(width) > CPU_BLOCKS_BYTES_MIN)
            return err_set(err, STATUS_UNAVAILABLE,
                           "the processor multiplies rows of %" PRIu64
                           " elements with %s weights, not of %" PRIu64,
                           CPU_BLOCKS_BYTES_MIN / sizeof(struct cpu_quant_block) *
                               CPU_QUANT_BLOCK_ELEMENTS,
                           dtype_info(dtype)->name, width);
    }
    return STATUS_OK;
}

void cpu_execute(struct cpu_executor *executor, const struct op *op)
{
    switch (op->kind) {
    case OP_EMBED: run_rows(executor, op, op->embed.width, embed_row); break;
    case OP_RMS_NORM:
        run_rows(executor, op, 2 * (uint64_t)op->rms_norm.width * op->rms_norm.group_count,
                 rms_norm_row);
        break;
    case OP_MATMUL: cpu__matmul(executor, &op->matmul); break;
    case OP_ROPE_TABLE:
        run_rows(executor, op, 64 * (uint64_t)op->rope_table.pair_count, rope_table_row);
        break;
    case OP_ROPE:
        run_rows(executor, op, 4 * (uint64_t)op->rope.head_count * op->rope.pair_count, rope_row);
        break;
    case OP_KV_WRITE:
        run_rows(executor, op, (uint64_t)op->kv_write.head_count * op->kv_write.width,
                 kv_write_row);
        break;
    case OP_ATTENTION: cpu__attention(executor, &op->attention); break;
    case OP_SILU_MUL:
        run_rows(executor, op, 8 * (uint64_t)op->silu_mul.width, silu_mul_row);
        break;
    case OP_SCALE: run_rows(executor, op, op->scale.width, scale_row); break;
    case OP_ROUTE:
        run_rows(executor, op, 32 * (uint64_t)op->route.expert_count, route_row);
        break;
    case OP_MOE: cpu__moe(executor, &op->moe); break;
    case OP_GATHER_ROWS: run_rows(executor, op, op->gather_rows.width, gather_row); break;
    case OP_GATHER_COLUMNS:
        run_rows(executor, op, 2 * (uint64_t)op->gather_columns.width, gather_columns_row);
        break;
    case OP_SOFT_CAP:
        run_rows(executor, op, 8 * (uint64_t)op->soft_cap.width, soft_cap_row);
        break;
    case OP_KIND_COUNT: assert(!"an op of no kind");
    }
}
