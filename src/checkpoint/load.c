/* checkpoint/load.c - carries a loader out.
 *
 * Workers, the caller and the staging's own threads, take the loader's chunks in turn: each reads
 * its chunk, to its place when it is direct, else into the worker's buffer, from where it converts
 * it. While one converts, another reads. Of two workers, the kernel is told of the chunks that come
 * next, so the disk does not wait for either; a checkpoint that is read past the page cache has as
 * many workers as it takes to keep a disk busy, each waiting for a read. Nothing is handed from one
 * to the other but the walk:
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
#include "checkpoint/internal.h"

#define BUFFER_BYTES (2 * MIB) /* of each worker */
#define WORKERS 2
/* Reads of BULK_BUFFER_BYTES in flight past the page cache: four leave a fast disk a third of its
 * rate short, more than eight gain nothing (docs/benchmarks.md). */
#define WORKERS_PAST_CACHE 8
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
    uint32_t worker_count;
    const atomic_bool *stop; /* borrowed; orders nothing. NULL: nobody stops a load */
    struct worker {
        struct loader_staging *staging;
        uint8_t *buffer;     /* [buffer_bytes] */
        uint8_t *past_cache; /* [BULK_BUFFER_BYTES], behind it; NULL: nothing goes past the cache */
        pthread_t thread;    /* of all but the first, who is the caller */
        bool started;
    } workers[WORKERS_PAST_CACHE];
    pthread_mutex_t lock;    /* guards what follows, and what of *load the workers change */
    pthread_cond_t changed;
    struct load *load;       /* the threads' work while the caller has any; it sets and clears it */
    uint64_t load_number;    /* counts them, so that no thread takes one twice */
    uint32_t busy_count;     /* threads that are at it */
    bool stopping;           /* the threads shall end */
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

static enum status load_chunk(const struct load *load, const struct chunk *chunk,
                              const struct worker *worker, struct err *err)
{
    const struct ckpt *const ckpt = load->walk.ckpt;
    uint8_t *const buffer = worker->buffer;
    const uint64_t dst_size = dtype_info(load->dtype)->block_bytes;
    enum status st;

    if (chunk->direct)
        return ckpt__read_much(ckpt, chunk->tensor, chunk->read_at_bytes,
                               (uint8_t *)load->dst + chunk->dst_first * dst_size,
                               chunk->read_bytes, worker->past_cache, err);
    st = ckpt__read_much(ckpt, chunk->tensor, chunk->read_at_bytes,
                         buffer + chunk->buffer_at_bytes, chunk->read_bytes, worker->past_cache,
                         err);
    if (st == STATUS_OK)
        chunk_convert(chunk, buffer, load->dtype, load->dst);
    return st;
}

/* Does one chunk; false when none is left or somebody failed. */
static bool work(const struct worker *worker, struct load *load)
{
    struct loader_staging *const staging = worker->staging;
    struct advice advice;
    struct chunk chunk;
    struct err err;
    enum status st;
    bool more;

    (void)pthread_mutex_lock(&staging->lock);
    if (load->status == STATUS_OK && staging->stop != NULL &&
        atomic_load_explicit(staging->stop, memory_order_relaxed))
        load->status = err_set(&load->err, STATUS_CANCELED, "loading was stopped");
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
    st = load_chunk(load, &chunk, worker, &err);
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
    const struct worker *const worker = context;
    struct loader_staging *const staging = worker->staging;
    uint64_t taken_number = 0;

    (void)pthread_mutex_lock(&staging->lock);
    while (!staging->stopping) {
        struct load *const load = staging->load;

        if (load == NULL || staging->load_number == taken_number) {
            (void)pthread_cond_wait(&staging->changed, &staging->lock);
            continue;
        }
        taken_number = staging->load_number;
        staging->busy_count++;
        (void)pthread_mutex_unlock(&staging->lock);
        while (work(worker, load))
            continue;
        (void)pthread_mutex_lock(&staging->lock);
        staging->busy_count--; /* this thread is done with it */
        (void)pthread_cond_broadcast(&staging->changed);
    }
    (void)pthread_mutex_unlock(&staging->lock);
    return NULL;
}

/* The first has no thread. */
static enum status worker_start(struct loader_staging *staging, uint32_t index, bool past_cache,
                                struct err *err)
{
    struct worker *const worker = &staging->workers[index];
    const uint64_t buffer_bytes = size_align_up(staging->buffer_bytes, BULK_ALIGN);

    worker->staging = staging;
    worker->buffer =
        aligned_alloc(BULK_ALIGN, buffer_bytes + (past_cache ? BULK_BUFFER_BYTES : 0));
    if (worker->buffer == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to load weights through");
    worker->past_cache = past_cache ? worker->buffer + buffer_bytes : NULL;
    if (index > 0 && pthread_create(&worker->thread, NULL, thread_main, worker) != 0)
        return err_set(err, STATUS_NO_MEMORY, "cannot start a thread to load weights with");
    worker->started = index > 0;
    return STATUS_OK;
}

static uint32_t worker_count(bool past_cache)
{
    return past_cache ? WORKERS_PAST_CACHE : WORKERS;
}

enum status load__staging_create(uint64_t buffer_bytes, bool past_cache,
                                 struct loader_staging **staging_out, struct err *err)
{
    struct loader_staging *staging = calloc(1, sizeof(*staging));
    enum status st = STATUS_OK;

    if (staging == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to load weights through");
    staging->buffer_bytes = buffer_bytes;
    staging->worker_count = worker_count(past_cache);
    (void)pthread_mutex_init(&staging->lock, NULL);
    (void)pthread_cond_init(&staging->changed, NULL);
    for (uint32_t i = 0; i < staging->worker_count && st == STATUS_OK; i++)
        st = worker_start(staging, i, past_cache, err);
    if (st != STATUS_OK) {
        loader_staging_destroy(staging);
        return st;
    }
    *staging_out = staging;
    return STATUS_OK;
}

void loader_staging_heed(struct loader_staging *staging, const atomic_bool *stop)
{
    assert(staging->load == NULL);
    staging->stop = stop;
}

static bool is_past_cache(const struct ckpt *ckpt)
{
    return ckpt != NULL && ckpt->bulk != NULL;
}

enum status loader_staging_create(const struct ckpt *ckpt, struct loader_staging **staging_out,
                                  struct err *err)
{
    return load__staging_create(BUFFER_BYTES, is_past_cache(ckpt), staging_out, err);
}

uint64_t loader_staging_bytes(const struct ckpt *ckpt)
{
    const bool past_cache = is_past_cache(ckpt);
    const bool packed = ckpt != NULL && ckpt_packing(ckpt) != NULL;

    return worker_count(past_cache) * (BUFFER_BYTES + (past_cache ? BULK_BUFFER_BYTES : 0) +
                                       (packed ? CKPT_READ_BYTES_MAX : 0));
}

void loader_staging_destroy(struct loader_staging *staging)
{
    if (staging == NULL)
        return;
    (void)pthread_mutex_lock(&staging->lock);
    assert(staging->load == NULL);
    staging->stopping = true;
    (void)pthread_cond_broadcast(&staging->changed);
    (void)pthread_mutex_unlock(&staging->lock);
    for (uint32_t i = 0; i < staging->worker_count; i++) {
        if (staging->workers[i].started)
            (void)pthread_join(staging->workers[i].thread, NULL);
        free(staging->workers[i].buffer);
    }
    (void)pthread_cond_destroy(&staging->changed);
    (void)pthread_mutex_destroy(&staging->lock);
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
        assert(staging->load == NULL && staging->busy_count == 0);
        /* cppcheck-suppress autoVariables ; cleared before this returns, see below */
        staging->load = &load;
        staging->load_number++;
        (void)pthread_cond_broadcast(&staging->changed);
        (void)pthread_mutex_unlock(&staging->lock);
    }
    while (more) {
        uint64_t now_bytes;
        more = work(&staging->workers[0], &load);
        if (!more) { /* the threads may still be at their last chunks */
            (void)pthread_mutex_lock(&staging->lock);
            staging->load = NULL;
            while (staging->busy_count > 0)
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
