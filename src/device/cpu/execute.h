/* device/cpu/execute.h - runs any op on this machine's processors.
 *
 * Shared by the devices that compute on the host: cpu and sim. An op is cut into pieces that
 * threads take in any order; no output depends on the cut (op.h, exactness).
 *
 * Threads: one thread at a time may call cpu_execute on an executor. Nothing is allocated there. */
#ifndef LIGHTER_DEVICE_CPU_EXECUTE_H
#define LIGHTER_DEVICE_CPU_EXECUTE_H

#include "base/status.h"
#include "device/device.h"

struct cpu_executor;

/* Uses options->thread_count, cpu_kernels and memory_budget_bytes, which says how much room rows
 * of x have: beside the budgets, outside the heap. The caller owns *executor_out. */
enum status cpu_executor_create(const struct device_options *options,
                                struct cpu_executor **executor_out, struct err *err);
void cpu_executor_destroy(struct cpu_executor *executor);
/* From now on rows of x are rounded to BF16 for products with BF16 weights, which some processors
 * multiply twice as fast then. Before the first op. STATUS_UNAVAILABLE where this one does not. */
enum status cpu_executor_round_x(struct cpu_executor *executor, struct err *err);
/* The layout in which weights of the dtype are multiplied fastest; ND always works. */
enum layout cpu_executor_weight_layout(const struct cpu_executor *executor, enum dtype dtype);
/* "AVX2, 2 threads" into out; returns out. */
char *cpu_executor_describe(const struct cpu_executor *executor, char *out, size_t out_size);

/* STATUS_UNAVAILABLE when there is no kernel for the op's dtype. */
enum status cpu_execute_check(const struct op *op, struct err *err);
/* Runs an op that passed the check and returns when it is done. */
void cpu_execute(struct cpu_executor *executor, const struct op *op);

#endif
