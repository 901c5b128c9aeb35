/* offload/disk/threads.c - the engine for where there is no io_uring: threads that call pread.
 *
 * Each thread carries out one piece at a time, so that as many pieces as there are threads are in
 * flight; more than THREADS_MAX would cost more in switching than a disk gains. */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "offload/disk/internal.h"

#define THREADS_MAX 16

struct disk__engine {
    pthread_mutex_t lock; /* guards all below; nothing else is locked with it */
    pthread_cond_t begun, ended;
    struct disk__piece *begun_head, **begun_tail;
    struct disk__piece *ended_head, **ended_tail;
    bool woken, stopping;
    uint32_t thread_count; /* set before the first piece */
    pthread_t threads[THREADS_MAX];
};

static void carry_out(struct disk__piece *piece)
{
    const struct timespec stall = { .tv_sec = (time_t)(piece->stall_ns / 1000000000),
                                    .tv_nsec = (long)(piece->stall_ns % 1000000000) };
    ssize_t got;

    if (piece->stall_ns != 0)
        (void)nanosleep(&stall, NULL);
    got = pread(piece->file->fd, piece->dst, piece->attempt_bytes, (off_t)piece->offset_bytes);
    piece->result = got >= 0 ? (int32_t)got : -errno;
}

static void *work(void *argument)
{
    struct disk__engine *const engine = argument;

    (void)pthread_mutex_lock(&engine->lock);
    for (;;) {
        struct disk__piece *const piece = engine->begun_head;
        if (piece == NULL) {
            if (engine->stopping)
                break;
            (void)pthread_cond_wait(&engine->begun, &engine->lock);
            continue;
        }
        engine->begun_head = piece->next;
        if (engine->begun_head == NULL)
            engine->begun_tail = &engine->begun_head;
        (void)pthread_mutex_unlock(&engine->lock);
        carry_out(piece);
        (void)pthread_mutex_lock(&engine->lock);
        piece->next = NULL;
        *engine->ended_tail = piece;
        engine->ended_tail = &piece->next;
        (void)pthread_cond_signal(&engine->ended);
    }
    (void)pthread_mutex_unlock(&engine->lock);
    return NULL;
}

static void threads_destroy(struct disk__engine *engine)
{
    if (engine == NULL)
        return;
    (void)pthread_mutex_lock(&engine->lock);
    engine->stopping = true;
    (void)pthread_cond_broadcast(&engine->begun);
    (void)pthread_mutex_unlock(&engine->lock);
    for (uint32_t i = 0; i < engine->thread_count; i++)
        (void)pthread_join(engine->threads[i], NULL);
    (void)pthread_cond_destroy(&engine->ended);
    (void)pthread_cond_destroy(&engine->begun);
    (void)pthread_mutex_destroy(&engine->lock);
    free(engine);
}

static enum status threads_create(uint32_t *depth, struct disk__engine **engine_out,
                                  struct err *err)
{
    struct disk__engine *const engine = calloc(1, sizeof(*engine));
    const uint32_t wanted = *depth < THREADS_MAX ? *depth : THREADS_MAX;
    int rc = 0;

    if (engine == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for threads that read");
    engine->begun_tail = &engine->begun_head;
    engine->ended_tail = &engine->ended_head;
    (void)pthread_mutex_init(&engine->lock, NULL);
    (void)pthread_cond_init(&engine->begun, NULL);
    (void)pthread_cond_init(&engine->ended, NULL);
    while (engine->thread_count < wanted && rc == 0) {
        rc = pthread_create(&engine->threads[engine->thread_count], NULL, work, engine);
        engine->thread_count += rc == 0;
    }
    if (engine->thread_count == 0) {
        threads_destroy(engine);
        return err_set(err, STATUS_NO_MEMORY, "no thread that reads: %s", strerror(rc));
    }
    *depth = engine->thread_count;
    *engine_out = engine;
    return STATUS_OK;
}

static void threads_begin(struct disk__engine *engine, struct disk__piece *piece)
{
    (void)pthread_mutex_lock(&engine->lock);
    piece->next = NULL;
    *engine->begun_tail = piece;
    engine->begun_tail = &piece->next;
    (void)pthread_cond_signal(&engine->begun);
    (void)pthread_mutex_unlock(&engine->lock);
}

static uint32_t threads_wait(struct disk__engine *engine, struct disk__piece **pieces_out,
                             uint32_t piece_count_max)
{
    uint32_t count = 0;

    (void)pthread_mutex_lock(&engine->lock);
    while (engine->ended_head == NULL && !engine->woken)
        (void)pthread_cond_wait(&engine->ended, &engine->lock);
    engine->woken = false;
    while (engine->ended_head != NULL && count < piece_count_max) {
        pieces_out[count++] = engine->ended_head;
        engine->ended_head = engine->ended_head->next;
    }
    if (engine->ended_head == NULL)
        engine->ended_tail = &engine->ended_head;
    (void)pthread_mutex_unlock(&engine->lock);
    return count;
}

static void threads_wake(struct disk__engine *engine)
{
    (void)pthread_mutex_lock(&engine->lock);
    engine->woken = true;
    (void)pthread_cond_signal(&engine->ended);
    (void)pthread_mutex_unlock(&engine->lock);
}

const struct disk__engine_ops disk__threads = {
    .name = "threads",
    .create = threads_create,
    .destroy = threads_destroy,
    .begin = threads_begin,
    .wait = threads_wait,
    .wake = threads_wake,
};
