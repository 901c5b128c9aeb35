/* device/cpu/matmul.c - OP_MATMUL: cut into runs of weight rows, each for all rows of x.
 *
 * A task takes a run of weight rows of one batch, so each weight is read from memory once by one
 * thread; x is read by all. The rows of x are done in strips that stay in the second-level cache
 * while the run goes over them, with a run short enough to stay there beside them. Where x is
 * packed each strip is a task of its own: x is then larger than the weights, which every strip cuts
 * anew in any case, and a piece of a matrix has too few rows for a long run for each thread.
 *
 * For quantised weights the rows of x are quantised first, for others packed where the kernels want
 * it, as many as the executor has room for; if there are more, the weights are read again for the
 * next ones. What was made of the last ones stays there for a product that says it has the same x:
 * a matrix that comes from a disk piece by piece is multiplied so, and to pack x for each piece of
 * 256 rows took as long as a tenth of multiplying. */
#include "device/cpu/internal.h"

#define RUN_GRANULE 48                      /* weight rows: whole panels, of 12 or 16 rows ... */
#define RUN_GRANULE_PACKED 32               /* ... and in AMX's tiles, two groups of 16 */
/* Packed x, three times as large as the weights, is read once for each run: shorter runs than these
 * rows would take as much as a third-level cache gives. */
#define RUN_ROWS_PACKED 256
#define TASKS_PER_THREAD_PACKED 4
/* Of a run that several strips read, and of a strip's rows of x: half, and three quarters of the
 * 2 MiB of a second-level cache. Each run packs x for AMX's tiles anew, and each strip cuts the
 * weights into panels anew; 128 rows of 8192 quantised elements just make one strip. */
#define RUN_BYTES_MAX UINT64_C(1048576)
#define STRIP_BYTES_MAX UINT64_C(1572864)
#define STRIP_ROWS_MIN 24                   /* fewer would convert and read weights too often */

struct matmul_job {
    const struct cpu_executor *executor;
    const struct op_matmul *op;
    uint32_t row_first, row_count;          /* of this round */
    uint32_t granule, granule_count;        /* of weight rows, of a batch; the last may be short */
    uint32_t runs_per_batch;
    uint32_t strip_rows;
    uint32_t strips_per_run;                /* tasks of a run, each a strip; 1: one has them all */
    uint32_t rows_per_task;                 /* when quantising */
    uint64_t packed_bytes;                  /* of CPU_PACK_ROWS rows of x; 0: they aren't packed */
};

static uint32_t strip_rows(const struct cpu_kernels *kernels, const struct op_matmul *op,
                           uint64_t packed_bytes)
{
    const bool has_blocks = !quant_is_quantised(op->weight_dtype) && kernels->k_block > 0 &&
                            kernels->k_block < op->k_count;
    const uint64_t row_bytes = cpu_is_quantised(op->weight_dtype)
                                   ? cpu_quant_row_bytes(op->k_count)
                                   : (has_blocks ? kernels->k_block : op->k_count) * sizeof(float);
    const uint64_t rows = STRIP_BYTES_MAX / row_bytes;

    if (packed_bytes > 0)
        return CPU_STRIP_ROWS_MAX;
    return rows < STRIP_ROWS_MIN       ? STRIP_ROWS_MIN
           : rows > CPU_STRIP_ROWS_MAX ? CPU_STRIP_ROWS_MAX
                                       : (uint32_t)rows;
}

static const float *x_row(const struct op_matmul *op, uint64_t row, uint64_t batch)
{
    return op->x + row * op->x_row_stride + (op->batch_count > 1 ? batch * op->x_batch_stride : 0);
}

/* Quantised rows of this round: [row_count][batch_count][k_count / 32]. */
static struct cpu_quant_block *blocks_row(const struct matmul_job *job, uint64_t row,
                                          uint64_t batch)
{
    const struct op_matmul *op = job->op;
    struct cpu_quant_block *blocks = job->executor->blocks;

    return blocks + ((row - job->row_first) * op->batch_count + batch) *
                        (op->k_count / CPU_QUANT_BLOCK_ELEMENTS);
}

static void quantise_task(void *context, size_t index, uint32_t thread_index)
{
    const struct matmul_job *job = context;
    const struct op_matmul *op = job->op;
    const uint32_t first = (uint32_t)index * job->rows_per_task;
    const uint32_t left = job->row_count - first;
    const uint32_t count = left < job->rows_per_task ? left : job->rows_per_task;

    (void)thread_index;
    for (uint32_t row = job->row_first + first; row < job->row_first + first + count; row++) {
        for (uint32_t batch = 0; batch < op->batch_count; batch++)
            job->executor->kernels->quantise(blocks_row(job, row, batch), x_row(op, row, batch),
                                             op->k_count);
    }
}

/* Packed rows of this round: [batch_count][groups of CPU_PACK_ROWS rows][packed_bytes]. */
static char *packed_group(const struct matmul_job *job, uint64_t group, uint64_t batch)
{
    const uint64_t group_count = (job->row_count + CPU_PACK_ROWS - 1) / CPU_PACK_ROWS;

    return (char *)job->executor->blocks + (batch * group_count + group) * job->packed_bytes;
}

static void pack_task(void *context, size_t index, uint32_t thread_index)
{
    const struct matmul_job *job = context;
    const struct op_matmul *op = job->op;
    const uint64_t group = index / op->batch_count, batch = index % op->batch_count;
    const uint32_t first = job->row_first + (uint32_t)group * CPU_PACK_ROWS;
    const uint32_t left = job->row_first + job->row_count - first;
    const uint32_t count = left < CPU_PACK_ROWS ? left : CPU_PACK_ROWS;
    const float *rows[CPU_PACK_ROWS];

    (void)thread_index;
    for (uint32_t r = 0; r < count; r++)
        rows[r] = x_row(op, first + r, batch);
    job->executor->kernels->pack(packed_group(job, group, batch), rows, count,
                                 op->k_count,
                                 group % (CPU_STRIP_ROWS_MAX / CPU_PACK_ROWS) == 0 &&
                                     left <= CPU_PACK_ROWS);
}

/* Granules are spread over the runs as evenly as can be. */
static uint32_t run_begin(const struct matmul_job *job, uint64_t run)
{
    const uint64_t row = run * job->granule_count / job->runs_per_batch * job->granule;

    return row < job->op->n_count ? (uint32_t)row : job->op->n_count;
}

static void matmul_task(void *context, size_t index, uint32_t thread_index)
{
    const struct matmul_job *job = context;
    const struct op_matmul *op = job->op;
    const uint64_t run = index / job->strips_per_run;
    const uint64_t batch = run / job->runs_per_batch;
    const uint32_t n_first = run_begin(job, run % job->runs_per_batch);
    const uint32_t n_end = run_begin(job, run % job->runs_per_batch + 1);
    const uint32_t round_end = job->row_first + job->row_count;
    uint32_t row = job->row_first, row_end = round_end;
    const uint64_t weight_row = batch * op->n_count + n_first;
    const bool quantised = cpu_is_quantised(op->weight_dtype);
    float *out = op->out + (op->batch_count > 1 ? batch * op->out_batch_stride : 0) + n_first;
    const float *x_rows[CPU_STRIP_ROWS_MAX];
    const struct cpu_quant_block *x_blocks[CPU_STRIP_ROWS_MAX];
    struct cpu_strip strip = {
        .x_rows = x_rows,
        .x_blocks = x_blocks,
        .weight = (const char *)op->weight +
                  weight_row * dtype_row_bytes(op->weight_dtype, op->k_count),
        .bias = op->bias == NULL ? NULL : op->bias + n_first,
        .weight_dtype = op->weight_dtype,
        .weight_layout = op->weight_layout,
        .n_count = n_end - n_first,
        .k_count = op->k_count,
        .out_row_stride = op->out_row_stride,
        .weight_row_stride = op->k_count,
        .accumulate = op->accumulate,
    };

    if (job->strips_per_run > 1) {
        row += (uint32_t)(index % job->strips_per_run) * job->strip_rows;
        row_end = round_end - row < job->strip_rows ? round_end : row + job->strip_rows;
    }
    for (; row < row_end; row += strip.row_count) {
        const uint32_t left = row_end - row;
        strip.row_count = left < job->strip_rows ? left : job->strip_rows;
        strip.out = out + row * op->out_row_stride;
        if (job->packed_bytes > 0)
            strip.x_packed = packed_group(job, (row - job->row_first) / CPU_PACK_ROWS, batch);
        for (uint32_t r = 0; r < strip.row_count; r++) {
            if (quantised)
                x_blocks[r] = blocks_row(job, row + r, batch);
            else
                x_rows[r] = x_row(op, row + r, batch);
        }
        cpu__multiply(job->executor, &strip, thread_index);
    }
}

/* Quantises or packs the rows of this round. */
static void make_x(struct matmul_job *job)
{
    const struct cpu_executor *executor = job->executor;
    const struct op_matmul *op = job->op;

    if (cpu_is_quantised(op->weight_dtype)) {
        job->rows_per_task = cpu__task_size(
            executor, job->row_count, (uint64_t)op->k_count * op->batch_count, 1);
        thread_pool_run(executor->pool,
                        (job->row_count + job->rows_per_task - 1) / job->rows_per_task,
                        quantise_task, job);
    }
    if (job->packed_bytes > 0)
        thread_pool_run(executor->pool,
                        (job->row_count + CPU_PACK_ROWS - 1) / CPU_PACK_ROWS *
                            (size_t)op->batch_count,
                        pack_task, job);
}

/* How many runs make a matrix's tasks, if each run is for all rows of x: some for each thread, as
 * many for each, so that a matrix of few rows keeps all busy to the end. */
static uint32_t run_count(const struct matmul_job *job)
{
    const struct cpu_executor *executor = job->executor;
    const struct op_matmul *op = job->op;
    const uint32_t threads = executor->thread_count;
    uint32_t length = cpu__task_size(executor, op->n_count, (uint64_t)op->k_count * job->row_count,
                                     job->granule);
    uint32_t count;

    if (job->row_count > job->strip_rows) {
        const uint64_t row_bytes = dtype_row_bytes(op->weight_dtype, op->k_count);
        const uint64_t most =
            (RUN_BYTES_MAX / row_bytes + job->granule) / job->granule * job->granule;
        if (length > most)
            length = (uint32_t)most;
    }
    count = (op->n_count + length - 1) / length;
    return count > threads ? (count + threads - 1) / threads * threads : count;
}

/* The same where each strip of packed x is a task of its own. */
static uint32_t run_count_of_strips(const struct matmul_job *job)
{
    const uint32_t threads = job->executor->thread_count;
    const uint32_t strips = job->strips_per_run;
    const uint32_t wanted = (threads * TASKS_PER_THREAD_PACKED + strips - 1) / strips;
    const uint32_t most = job->op->n_count / RUN_ROWS_PACKED;
    uint32_t count = wanted < most ? wanted : most;

    if (count * strips < threads)
        count = (threads + strips - 1) / strips;
    return count > 0 ? count : 1;
}

static void cut_runs(struct matmul_job *job)
{
    const bool packed = job->packed_bytes > 0;

    job->granule = packed ? RUN_GRANULE_PACKED : RUN_GRANULE;
    job->granule_count = (job->op->n_count + job->granule - 1) / job->granule;
    job->strips_per_run = packed ? (job->row_count + job->strip_rows - 1) / job->strip_rows : 1;
    job->runs_per_batch = job->strips_per_run > 1 ? run_count_of_strips(job) : run_count(job);
    if (job->runs_per_batch > job->granule_count)
        job->runs_per_batch = job->granule_count;
}

/* Has the rows of this round in the executor's blocks, made now or for the product before. */
static void have_x(struct matmul_job *job, struct cpu_kept *kept)
{
    const struct op_matmul *op = job->op;
    const struct cpu_kept wanted = {
        op->x, cpu_is_quantised(op->weight_dtype) ? DTYPE_Q8_0 : op->weight_dtype,
        job->row_first, job->row_count, op->batch_count, op->k_count,
    };

    if (kept->x == wanted.x && kept->form == wanted.form &&
        kept->row_first == wanted.row_first && kept->row_count == wanted.row_count &&
        kept->batch_count == wanted.batch_count && kept->k_count == wanted.k_count)
        return;
    make_x(job);
    *kept = wanted;
}

/* The rows of this round. */
static void multiply_rows(struct matmul_job *job)
{
    cut_runs(job);
    thread_pool_run(job->executor->pool,
                    (size_t)job->runs_per_batch * job->strips_per_run * job->op->batch_count,
                    matmul_task, job);
}

/* 0 also where not one group of rows has room. */
static uint64_t packed_bytes(const struct cpu_executor *executor, const struct op_matmul *op)
{
    const struct cpu_kernels *kernels = executor->kernels;
    uint64_t bytes;

    if (kernels->packed_bytes == NULL || quant_is_quantised(op->weight_dtype))
        return 0;
    bytes = kernels->packed_bytes(op->weight_dtype, op->k_count);
    return bytes * op->batch_count > executor->blocks_bytes ? 0 : bytes;
}

void cpu__matmul(struct cpu_executor *executor, const struct op_matmul *op)
{
    struct matmul_job job = { .executor = executor, .op = op };
    const bool is_quantised = cpu_is_quantised(op->weight_dtype);
    uint64_t rows_max = op->row_count;

    job.packed_bytes = packed_bytes(executor, op);
    job.strip_rows = strip_rows(executor->kernels, op, job.packed_bytes);
    if (is_quantised)
        rows_max = executor->blocks_bytes / (op->batch_count * cpu_quant_row_bytes(op->k_count));
    else if (job.packed_bytes > 0)
        rows_max = executor->blocks_bytes / (op->batch_count * job.packed_bytes) * CPU_PACK_ROWS;
    if (!op->same_x)
        executor->kept.x = NULL;
    for (; job.row_first < op->row_count; job.row_first += job.row_count) {
        const uint32_t left = op->row_count - job.row_first;
        job.row_count = left < rows_max ? left : (uint32_t)rows_max;
        if (is_quantised || job.packed_bytes > 0)
            have_x(&job, &executor->kept);
        multiply_rows(&job);
    }
}
