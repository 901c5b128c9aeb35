/* tests/cuda/standin.h - what the parts of the stand-in share. */
#ifndef LIGHTER_TESTS_CUDA_STANDIN_H
#define LIGHTER_TESTS_CUDA_STANDIN_H

#include "cuda_runtime.h"

/* threads.cpp: runs all blocks on the calling thread, and gives back what it keeps for that. */
void standin_run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()> &kernel);
void standin_end_thread(void);
/* Whether every GPU that the kernels are built for could run it. */
bool standin_can_run(dim3 grid, dim3 block, size_t shared_bytes);

/* memory.cpp: whether all of it lies in one piece of the GPU's memory, or none in any. */
bool standin_is_device(const void *memory, size_t size_bytes);
bool standin_is_host(const void *memory, size_t size_bytes);
enum standin_pinned { STANDIN_PAGEABLE, STANDIN_PINNED, STANDIN_MIXED };
enum standin_pinned standin_pinned(const void *memory, size_t size_bytes);

/* control.cpp: what tests count and make fail. Returns the code that the call is to fail with, or
 * cudaSuccess. */
cudaError_t standin_enter(const char *function);
void standin_count(const char *name, int64_t by);
/* streams.cpp: cuMemcpyBatchAsync in the form of 12.8 and in that of 13.0. */
cudaError_t standin_copy_batch_12080(void **dsts, const void **srcs, size_t *sizes, size_t count,
                                     cudaMemcpyAttributes *attributes, size_t *firsts,
                                     size_t attribute_count, size_t *failed_out,
                                     cudaStream_t stream);
cudaError_t standin_copy_batch_13000(void **dsts, const void **srcs, size_t *sizes, size_t count,
                                     cudaMemcpyAttributes *attributes, size_t *firsts,
                                     size_t attribute_count, cudaStream_t stream);
/* streams.cpp: whether the thread captures; then whatever it calls but launches spoils that. */
bool standin_spoils_capture();
/* The thread's last error, which launches leave. */
void standin_note(cudaError_t code);

#pragma GCC visibility push(default)
extern "C" {
/* For tests, through dlsym: a counter's value, and the n-th call from now of a function of CUDA's
 * ("launch": of any kernel) that is to fail with the code; 0: none. */
uint64_t cuda_standin_counter(const char *name);
void cuda_standin_fail(const char *function, uint64_t nth, int code);
}
#pragma GCC visibility pop

#endif
