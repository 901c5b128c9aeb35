/* base/thread_pool.c - see thread_pool.h.
 *
 * A job is published by raising `generation` (release); a worker that sees a new generation
 * (acquire) takes task indices from `next` until they run out, then counts itself out of `busy`.
 * The caller does the same and waits for busy == 0, so no worker can still hold an old job when
 * the next one is written. Workers spin SPIN_COUNT times before they sleep on `wake`. */
#include "base/thread_pool.h"

#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#define SPIN_COUNT 4000

struct worker {
    struct thread_pool *pool;
    pthread_t thread;
    uint32_t index;
};

struct thread_pool {
    uint32_t thread_count;
    uint32_t started_count; /* workers whose thread exists */
    struct worker *workers; /* [thread_count - 1] */
    /* The job. Written by the caller while busy == 0, read by workers after `generation`. */
    void (*task)(void *context, size_t index, uint32_t thread_index);
    void *context;
    size_t task_count;
    atomic_size_t next;        /* relaxed: only hands out distinct numbers */
    atomic_uint busy;          /* release by workers, acquire by the caller: orders their results */
    atomic_uint generation;    /* release by the caller, acquire by workers: orders the job */
    atomic_bool stop;          /* set before a last generation */
    pthread_mutex_t lock;      /* guards nothing but sleeping on `wake`; never held with another */
    pthread_cond_t wake;
};

static void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void take_tasks(struct thread_pool *pool, uint32_t thread_index)
{
    for (;;) {
        const size_t index = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (index >= pool->task_count)
            return;
        pool->task(pool->context, index, thread_index);
    }
}

static void await_generation(struct thread_pool *pool, uint32_t seen)
{
    for (int spin = 0; spin < SPIN_COUNT; spin++) {
        if (atomic_load_explicit(&pool->generation, memory_order_acquire) != seen)
            return;
        cpu_relax();
    }
    pthread_mutex_lock(&pool->lock);
    while (atomic_load_explicit(&pool->generation, memory_order_acquire) == seen)
        pthread_cond_wait(&pool->wake, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    struct thread_pool *pool = worker->pool;
    uint32_t seen = 0;

    for (;;) {
        await_generation(pool, seen);
        seen++;
        if (atomic_load_explicit(&pool->stop, memory_order_relaxed))
            return NULL;
        take_tasks(pool, worker->index);
        atomic_fetch_sub_explicit(&pool->busy, 1, memory_order_release);
    }
}

static void publish(struct thread_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add_explicit(&pool->generation, 1, memory_order_release);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

enum status thread_pool_create(uint32_t thread_count, struct thread_pool **pool_out,
                               struct err *err)
{
    struct thread_pool *pool;

    assert(thread_count >= 1 && thread_count <= THREAD_POOL_THREADS_MAX);
    pool = calloc(1, sizeof(*pool));
    if (pool == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a thread pool");
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->thread_count = thread_count;
    pool->workers = calloc(thread_count, sizeof(*pool->workers));
    if (pool->workers == NULL) {
        thread_pool_destroy(pool);
        return err_set(err, STATUS_NO_MEMORY, "no memory for %u threads", thread_count);
    }
    for (uint32_t i = 0; i + 1 < thread_count; i++) {
        pool->workers[i] = (struct worker){ .pool = pool, .index = i + 1 };
        if (pthread_create(&pool->workers[i].thread, NULL, worker_main, &pool->workers[i]) != 0) {
            thread_pool_destroy(pool);
            return err_set(err, STATUS_NO_MEMORY, "thread %u of %u could not be started", i + 2,
                           thread_count);
        }
        pool->started_count++;
    }
    *pool_out = pool;
    return STATUS_OK;
}

void thread_pool_destroy(struct thread_pool *pool)
{
    if (pool == NULL)
        return;
    atomic_store_explicit(&pool->stop, true, memory_order_relaxed);
    publish(pool);
    for (uint32_t i = 0; i < pool->started_count; i++)
        pthread_join(pool->workers[i].thread, NULL);
    free(pool->workers);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

uint32_t thread_pool_thread_count(const struct thread_pool *pool)
{
    return pool->thread_count;
}

void thread_pool_run(struct thread_pool *pool, size_t task_count,
                     void (*task)(void *context, size_t index, uint32_t thread_index),
                     void *context)
{
    uint32_t spin = 0;

    if (pool->started_count == 0 || task_count <= 1) {
        for (size_t i = 0; i < task_count; i++)
            task(context, i, 0);
        return;
    }
    assert(atomic_load_explicit(&pool->busy, memory_order_relaxed) == 0);
    pool->task = task;
    pool->context = context;
    pool->task_count = task_count;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->busy, pool->started_count, memory_order_relaxed);
    publish(pool);
    take_tasks(pool, 0);
    while (atomic_load_explicit(&pool->busy, memory_order_acquire) != 0) {
        cpu_relax();
        if (++spin % SPIN_COUNT == 0)
            sched_yield(); /* more threads than processors: let the worker finish */
    }
}

uint32_t thread_count_available(void)
{
    cpu_set_t set;
    int count;

    if (sched_getaffinity(0, sizeof(set), &set) != 0)
        return 1;
    count = CPU_COUNT(&set);
    if (count < 1)
        return 1;
    return count > THREAD_POOL_THREADS_MAX ? THREAD_POOL_THREADS_MAX : (uint32_t)count;
}
