/* base/thread_pool.h - a fixed set of threads that share out the tasks of one job at a time.
 *
 * The caller's thread works too, so a pool of one has no other thread and runs jobs in place. Which
 * thread runs which task is not defined: a task must not depend on it, and results must not either.
 * Between jobs the threads spin for some microseconds, then sleep. */
#ifndef LIGHTER_BASE_THREAD_POOL_H
#define LIGHTER_BASE_THREAD_POOL_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define THREAD_POOL_THREADS_MAX 1024

struct thread_pool;

/* thread_count: 1 to THREAD_POOL_THREADS_MAX, the caller included. The caller owns *pool_out. */
enum status thread_pool_create(uint32_t thread_count, struct thread_pool **pool_out,
                               struct err *err);
void thread_pool_destroy(struct thread_pool *pool);
uint32_t thread_pool_thread_count(const struct thread_pool *pool);

/* Calls task(context, index, thread_index) once for each index below task_count and returns when
 * all have returned. thread_index < thread_count tells the thread apart, for scratch. Only one
 * thread may run jobs on a pool at a time, and tasks may not run jobs on the same pool. */
void thread_pool_run(struct thread_pool *pool, size_t task_count,
                     void (*task)(void *context, size_t index, uint32_t thread_index),
                     void *context);

/* The processors this process may run on: the default for --threads. At least 1. */
uint32_t thread_count_available(void);

#endif
