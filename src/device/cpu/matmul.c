/* device/cpu/matmul.c - OP_MATMUL: cut into runs of weight rows, each for all rows of x.
 *
 * A task takes a run of weight rows of one batch, so each weight is read from memory once by one
 * thread; x is read by all. The rows of x are done in strips that stay in the second-level cache
 * while the run goes over them, with a run short enough to stay there beside them. */
#include "device/cpu/internal.h"

#define RUN_GRANULE 12                      /* weight rows: whole panels of the AVX2 kernel */
#define RUN_BYTES_MAX UINT64_C(524288)      /* of a run that several strips read */
#define STRIP_BYTES_MAX UINT64_C(1048576)   /* of the rows of x in a strip: half of 2 MiB */
#define STRIP_ROWS_MIN 24                   /* fewer would convert and read weights too often */

struct matmul_job {
    const struct cpu_executor *executor;
    const struct op_matmul *op;
    uint32_t run_length, runs_per_batch;
    uint32_t strip_rows;
};

static uint32_t strip_rows(const struct op_matmul *op)
{
    const uint64_t rows = STRIP_BYTES_MAX / (op->k_count * sizeof(float));

    return rows < STRIP_ROWS_MIN       ? STRIP_ROWS_MIN
           : rows > CPU_STRIP_ROWS_MAX ? CPU_STRIP_ROWS_MAX
                                       : (uint32_t)rows;
}

static void matmul_task(void *context, size_t index, uint32_t thread_index)
{
    const struct matmul_job *job = context;
    const struct op_matmul *op = job->op;
    const uint64_t batch = index / job->runs_per_batch;
    const uint32_t n_first = (uint32_t)(index % job->runs_per_batch) * job->run_length;
    const uint32_t n_left = op->n_count - n_first;
    const uint64_t weight_row = batch * op->n_count + n_first;
    const bool batched = op->batch_count > 1;
    const float *x = op->x + (batched ? batch * op->x_batch_stride : 0);
    float *out = op->out + (batched ? batch * op->out_batch_stride : 0) + n_first;
    const float *x_rows[CPU_STRIP_ROWS_MAX];
    struct cpu_strip strip = {
        .x_rows = x_rows,
        .weight = (const char *)op->weight +
                  weight_row * op->k_count * dtype_info(op->weight_dtype)->block_bytes,
        .bias = op->bias == NULL ? NULL : op->bias + n_first,
        .weight_dtype = op->weight_dtype,
        .n_count = n_left < job->run_length ? n_left : job->run_length,
        .k_count = op->k_count,
        .out_row_stride = op->out_row_stride,
        .weight_row_stride = op->k_count,
        .accumulate = op->accumulate,
    };

    for (uint32_t row = 0; row < op->row_count; row += strip.row_count) {
        const uint32_t left = op->row_count - row;
        strip.row_count = left < job->strip_rows ? left : job->strip_rows;
        strip.out = out + row * op->out_row_stride;
        for (uint32_t r = 0; r < strip.row_count; r++)
            x_rows[r] = x + (row + r) * op->x_row_stride;
        job->executor->kernels->matmul(&strip, cpu__scratch(job->executor, thread_index));
    }
}

void cpu__matmul(struct cpu_executor *executor, const struct op_matmul *op)
{
    struct matmul_job job = { .executor = executor, .op = op, .strip_rows = strip_rows(op) };

    job.run_length = cpu__task_size(executor, op->n_count,
                                    (uint64_t)op->k_count * op->row_count, RUN_GRANULE);
    if (op->row_count > job.strip_rows) {
        const uint64_t row_bytes =
            (uint64_t)op->k_count * dtype_info(op->weight_dtype)->block_bytes;
        const uint64_t most =
            (RUN_BYTES_MAX / row_bytes + RUN_GRANULE) / RUN_GRANULE * RUN_GRANULE;
        if (job.run_length > most)
            job.run_length = (uint32_t)most;
    }
    job.runs_per_batch = (op->n_count + job.run_length - 1) / job.run_length;
    thread_pool_run(executor->pool, (size_t)job.runs_per_batch * op->batch_count, matmul_task,
                    &job);
}
