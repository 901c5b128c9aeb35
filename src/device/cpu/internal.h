/* device/cpu/internal.h - what the files that execute ops share. */
#ifndef LIGHTER_DEVICE_CPU_INTERNAL_H
#define LIGHTER_DEVICE_CPU_INTERNAL_H

#include "base/thread_pool.h"
#include "base/size.h"
#include "device/cpu/kernels.h"
#include "device/op.h"

/* The rows of x that lie in an executor's `blocks`, quantised or packed. */
struct cpu_kept {
    const float *x;     /* NULL: none that a product may go on with */
    enum dtype form;    /* the weights' that they were packed for; quantised: Q8_0 */
    uint32_t row_first, row_count, batch_count, k_count;
};

struct cpu_executor {
    struct thread_pool *pool;
    const struct cpu_kernels *kernels;
    uint32_t thread_count;
    void *scratch; /* [thread_count][CPU_STRIP_SCRATCH_BYTES], 64-byte aligned */
    void *blocks;  /* aligned to a page: rows of x, quantised or packed */
    uint64_t blocks_bytes;
    struct cpu_kept kept;
};

/* As much as one part in so many of the device's budget, within these bounds, and beside it: 512
 * rows of 14336 elements, packed for AMX, take 42 MiB. If rows don't all fit, each piece of a
 * matrix makes them anew. What is not used is not touched, and takes no memory. It does not depend
 * on a host budget, or what a model needs of one would grow with it. */
#define CPU_BLOCKS_SHARE 16
#define CPU_BLOCKS_BYTES_MIN (8 * MIB)
#define CPU_BLOCKS_BYTES_MAX (48 * MIB)

/* The calling task's own scratch for kernels->matmul. */
static inline void *cpu__scratch(const struct cpu_executor *executor, uint32_t thread_index)
{
    return (char *)executor->scratch + (size_t)thread_index * CPU_STRIP_SCRATCH_BYTES;
}

static inline void cpu__multiply(const struct cpu_executor *executor,
                                 const struct cpu_strip *strip, uint32_t thread_index)
{
    void *scratch = cpu__scratch(executor, thread_index);

    if (cpu_is_quantised(strip->weight_dtype))
        executor->kernels->matmul_quant(strip, scratch);
    else if (quant_is_f8(strip->weight_dtype))
        executor->kernels->matmul_f8(strip, scratch);
    else
        executor->kernels->matmul(strip, scratch);
}

/* How many of count equal pieces of work one task takes: some tasks per thread, so that a slow
 * thread does not keep the others waiting, but no task below work_min units of work, because
 * handing out a task costs about a microsecond. `granule` divides the answer unless it is all of
 * count. */
uint32_t cpu__task_size(const struct cpu_executor *executor, uint32_t count, uint64_t work_each,
                        uint32_t granule);


void cpu__matmul(struct cpu_executor *executor, const struct op_matmul *op);
void cpu__attention(struct cpu_executor *executor, const struct op_attention *op);
void cpu__moe(struct cpu_executor *executor, const struct op_moe *op);
void cpu__route_row(const struct cpu_kernels *kernels, const struct op_route *op, uint32_t row);

#endif
