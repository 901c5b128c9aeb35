/* checkpoint/load.c - carries a loader out.
 *
 * Two workers, the caller and the staging's own thread, take the loader's chunks in turn: each
 * reads its chunk, to its place when it is direct, else into the worker's buffer, from where it
 * converts it. While one converts, the other reads; the kernel is told of the chunks that come
 * next, so the disk does not wait for either. Nothing is handed from one to the other but the walk:
 *
 *     walk  o---o---o---o---o---o---o---o--->      advised  ...............>
 *           |   |   |   |
 *     caller: read, convert   thread: read, convert   caller: ...
 *
 * A small load is done by the caller alone: to wake a thread takes longer. */
#include "checkpoint/load.h"

#include <assert.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "checkpoint/chunk.h"

#define BUFFER_BYTES (2 * MIB) /* of each of the two workers */
/* How far the kernel reads ahead of the workers: enough for a disk of 5 GB/s to come back after 3
 * ms. */
#define AHEAD_BYTES (16 * MIB)
#define ADVICE_MAX 8
#define ADVICE_BYTES_MIN (64 * KIB) /* less is not worth a system call */
#define WAKE_BYTES (1 * MIB)
#define PROGRESS_STEPS 200

/* One call of loader_load. */
struct load {
    enum dtype dtype;
    void *dst;
    struct chunk_walk walk, ahead;
    uint64_t walk_bytes, ahead_bytes; /* that the two have passed */
    uint64_t done_bytes;
    enum status status;               /* of the first that failed */
    struct err err;
};

struct loader_staging {
    uint64_t buffer_bytes;
    uint8_t *buffers[2];     /* the caller's and the thread's */
    pthread_t thread;
    bool thread_started;
    pthread_mutex_t lock;    /* guards what follows, and what of *load both workers change */
    pthread_cond_t changed;
    struct load *load;       /* the thread's work; set by the caller, cleared by the thread */
    bool stopping;           /* the thread shall end */
};

/* What the kernel is to be told of. */
struct advice {
    struct ckpt_tensor spans[ADVICE_MAX];
    size_t count;
};

/* Moves the walk ahead until it is AHEAD_BYTES past the other one, or the advice is full. */
static void walk_ahead(struct load *load, struct advice *advice_out)
{
    struct chunk chunk;

    advice_out->count = 0;
    while (load->ahead_bytes < load->walk_bytes + AHEAD_BYTES && advice_out->count < ADVICE_MAX &&
           chunk_walk_next(&load->ahead, &chunk)) {
        struct ckpt_tensor *const span = &advice_out->spans[advice_out->count];
        *span = *chunk.tensor;
        span->offset_bytes += chunk.read_at_bytes;
        span->size_bytes = chunk.read_bytes;
        load->ahead_bytes += span->size_bytes;
        if (span->size_bytes >= ADVICE_BYTES_MIN)
            advice_out->count++;
    }
}

static enum status load_chunk(const struct load *load, const struct chunk *chunk, uint8_t *buffer,
                              struct err *err)
{
    const struct ckpt *const ckpt = load->walk.ckpt;
    const uint64_t dst_size = dtype_info(load->dtype)->block_bytes;
    enum status st;

    if (chunk->direct)
        return ckpt_read(ckpt, chunk->tensor, chunk->read_at_bytes,
                         (uint8_t *)load->dst + chunk->dst_first * dst_size, chunk->read_bytes,
                         err);
    st = ckpt_read(ckpt, chunk->tensor, chunk->read_at_bytes, buffer + chunk->buffer_at_bytes,
                   chunk->read_bytes, err);
    if (st == STATUS_OK)
        chunk_convert(chunk, buffer, load->dtype, load->dst);
    return st;
}

/* Does one chunk; false when none is left or somebody failed. */
static bool work(struct loader_staging *staging, struct load *load, uint8_t *buffer)
{
    struct advice advice;
    struct chunk chunk;
    struct err err;
    enum status st;
    bool more;

    (void)pthread_mutex_lock(&staging->lock);
    more = load->status == STATUS_OK && chunk_walk_next(&load->walk, &chunk);
    if (more) {
        load->walk_bytes += chunk.read_bytes;
        walk_ahead(load, &advice);
    }
    (void)pthread_mutex_unlock(&staging->lock);
    if (!more)
        return false;
    for (size_t i = 0; i < advice.count; i++)
        ckpt_read_ahead(load->walk.ckpt, &advice.spans[i]);
    st = load_chunk(load, &chunk, buffer, &err);
    (void)pthread_mutex_lock(&staging->lock);
    load->done_bytes += chunk.source_bytes;
    if (st != STATUS_OK && load->status == STATUS_OK) {
        load->status = st;
        load->err = err;
    }
    (void)pthread_mutex_unlock(&staging->lock);
    return true;
}

static void *thread_main(void *context)
{
    struct loader_staging *const staging = context;
    struct load *load;

    (void)pthread_mutex_lock(&staging->lock);
    for (;;) {
        while (staging->load == NULL && !staging->stopping)
            (void)pthread_cond_wait(&staging->changed, &staging->lock);
        if (staging->stopping)
            break;
        load = staging->load;
        (void)pthread_mutex_unlock(&staging->lock);
        while (work(staging, load, staging->buffers[1]))
            continue;
        (void)pthread_mutex_lock(&staging->lock);
        staging->load = NULL; /* the thread is done with it */
        (void)pthread_cond_broadcast(&staging->changed);
    }
    (void)pthread_mutex_unlock(&staging->lock);
    return NULL;
}

enum status load__staging_create(uint64_t buffer_bytes, struct loader_staging **staging_out,
                                 struct err *err)
{
    struct loader_staging *staging = calloc(1, sizeof(*staging));

    if (staging == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to load weights through");
    staging->buffer_bytes = buffer_bytes;
    (void)pthread_mutex_init(&staging->lock, NULL);
    (void)pthread_cond_init(&staging->changed, NULL);
    for (size_t i = 0; i < 2; i++) {
        staging->buffers[i] = aligned_alloc(64, buffer_bytes);
        if (staging->buffers[i] == NULL) {
            loader_staging_destroy(staging);
            return err_set(err, STATUS_NO_MEMORY, "no memory to load weights through");
        }
    }
    if (pthread_create(&staging->thread, NULL, thread_main, staging) != 0) {
        loader_staging_destroy(staging);
        return err_set(err, STATUS_NO_MEMORY, "cannot start a thread to load weights with");
    }
    staging->thread_started = true;
    *staging_out = staging;
    return STATUS_OK;
}

enum status loader_staging_create(struct loader_staging **staging_out, struct err *err)
{
    return load__staging_create(BUFFER_BYTES, staging_out, err);
}

uint64_t loader_staging_bytes(const struct ckpt *ckpt)
{
    const bool packed = ckpt != NULL && ckpt_packing(ckpt) != NULL;

    return 2 * (BUFFER_BYTES + (packed ? CKPT_READ_BYTES_MAX : 0));
}

void loader_staging_destroy(struct loader_staging *staging)
{
    if (staging == NULL)
        return;
    if (staging->thread_started) {
        (void)pthread_mutex_lock(&staging->lock);
        assert(staging->load == NULL);
        staging->stopping = true;
        (void)pthread_cond_broadcast(&staging->changed);
        (void)pthread_mutex_unlock(&staging->lock);
        (void)pthread_join(staging->thread, NULL);
    }
    (void)pthread_cond_destroy(&staging->changed);
    (void)pthread_mutex_destroy(&staging->lock);
    free(staging->buffers[0]);
    free(staging->buffers[1]);
    free(staging);
}

/* Tells `progress` when done_bytes, raised from before_bytes, has passed a step of the total. */
static void report(const struct progress *progress, uint64_t before_bytes, uint64_t done_bytes,
                   uint64_t total_bytes)
{
    const uint64_t step_bytes = total_bytes / PROGRESS_STEPS + 1;

    if (before_bytes / step_bytes != done_bytes / step_bytes ||
        (before_bytes < total_bytes && done_bytes == total_bytes))
        progress_update(progress, "loading", done_bytes, total_bytes);
}

static uint64_t done_so_far(struct loader_staging *staging, const struct load *load)
{
    uint64_t done_bytes;

    (void)pthread_mutex_lock(&staging->lock);
    done_bytes = load->done_bytes;
    (void)pthread_mutex_unlock(&staging->lock);
    return done_bytes;
}

enum status loader_load(const struct loader *loader, const struct ckpt *ckpt, void *dst,
                        struct loader_staging *staging, const struct progress *progress,
                        uint64_t *done_bytes, uint64_t total_bytes, struct err *err)
{
    struct load load = { .dtype = loader_dtype(loader), .dst = dst };
    const bool wake = loader_source_bytes(loader, ckpt) >= WAKE_BYTES;
    uint64_t unused_bytes = 0;
    uint64_t *const done = done_bytes != NULL ? done_bytes : &unused_bytes;
    const uint64_t start_bytes = *done;
    bool more = true;

    chunk_walk_init(&load.walk, loader, ckpt, staging->buffer_bytes);
    chunk_walk_init(&load.ahead, loader, ckpt, staging->buffer_bytes);
    if (wake) {
        (void)pthread_mutex_lock(&staging->lock);
        assert(staging->load == NULL);
        /* cppcheck-suppress autoVariables ; cleared before this returns, see the wait below */
        staging->load = &load;
        (void)pthread_cond_broadcast(&staging->changed);
        (void)pthread_mutex_unlock(&staging->lock);
    }
    while (more) {
        uint64_t now_bytes;
        more = work(staging, &load, staging->buffers[0]);
        if (!more) { /* the thread may still be at its last chunk */
            (void)pthread_mutex_lock(&staging->lock);
            while (staging->load != NULL)
                (void)pthread_cond_wait(&staging->changed, &staging->lock);
            (void)pthread_mutex_unlock(&staging->lock);
        }
        now_bytes = start_bytes + done_so_far(staging, &load);
        report(progress, *done, now_bytes, total_bytes);
        *done = now_bytes;
    }
    if (load.status != STATUS_OK && err != NULL)
        *err = load.err;
    return load.status;
}
