/* offload/disk/reader.c - the queues of reads, and the thread that keeps the disk busy with them.
 *
 * One lock guards everything but the engine's insides: the two queues (reads with pieces yet to
 * start), the places for pieces in flight, and the counters. It is held for list operations only,
 * never during a system call, so a thread that submits never waits for the disk. The thread
 *
 *     fills the free places: demands up to `depth`, guesses only below `guess_depth` and only when
 *     no demand has pieces left  ->  waits for the engine, without the lock  ->  judges what ended
 *
 * A read's last change is the store of its state: whoever sees that may free its storage. */
#include "offload/disk/reader.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/size.h"
#include "offload/disk/internal.h"

struct queue {
    struct disk_read *head, *tail;
};

struct disk_reader {
    const struct disk__engine_ops *ops;
    struct disk__engine *engine; /* the thread's, but for wake */
    uint32_t depth, guess_depth;
    uint64_t piece_bytes;
    struct disk_faults faults;
    pthread_t thread;

    pthread_mutex_t lock; /* guards all below; no other lock is taken with it but the engine's */
    pthread_cond_t ended; /* a read ended, and waiter_count was not 0 */
    struct queue queues[DISK_CLASS_COUNT];
    struct disk__piece *pieces; /* [depth] */
    uint32_t in_flight[DISK_CLASS_COUNT];
    uint32_t waiter_count;
    uint64_t piece_number; /* pieces started so far */
    bool asleep;           /* the thread is in the engine's wait, and nobody has woken it */
    bool stopping;
    struct disk_counters counters;
    uint64_t created_ns, counted_ns; /* the counters' times are true up to counted_ns */
};

/* ---- queues; with the lock ---- */

static void queue_push(struct queue *queue, struct disk_read *read)
{
    assert(!read->own.queued);
    read->own.queued = true;
    read->own.next = NULL;
    read->own.previous = queue->tail;
    if (queue->tail != NULL)
        queue->tail->own.next = read;
    else
        queue->head = read;
    queue->tail = read;
}

static void queue_remove(struct queue *queue, struct disk_read *read)
{
    if (!read->own.queued)
        return;
    if (read->own.previous != NULL)
        read->own.previous->own.next = read->own.next;
    else
        queue->head = read->own.next;
    if (read->own.next != NULL)
        read->own.next->own.previous = read->own.previous;
    else
        queue->tail = read->own.previous;
    read->own.next = read->own.previous = NULL;
    read->own.queued = false;
}

/* ---- counters; with the lock ---- */

/* Adds the time since the last call, during which nothing changed. */
static void count_time(struct disk_reader *reader, uint64_t now_ns)
{
    const uint64_t passed_ns = now_ns - reader->counted_ns;
    const uint64_t total = (uint64_t)reader->in_flight[DISK_DEMAND] + reader->in_flight[DISK_GUESS];
    struct disk_counters *const counters = &reader->counters;

    for (int class = 0; class < DISK_CLASS_COUNT; class++) {
        if (reader->in_flight[class] != 0)
            counters->classes[class].busy_ns += passed_ns;
    }
    if (total != 0)
        counters->busy_ns += passed_ns;
    counters->in_flight_ns += total * passed_ns;
    reader->counted_ns = now_ns;
}

static void count_piece_begun(struct disk_reader *reader, enum disk_class class, uint64_t now_ns)
{
    uint32_t total;

    count_time(reader, now_ns);
    reader->in_flight[class]++;
    reader->counters.classes[class].piece_count++;
    total = reader->in_flight[DISK_DEMAND] + reader->in_flight[DISK_GUESS];
    if (total > reader->counters.in_flight_max)
        reader->counters.in_flight_max = total;
}

static void count_piece_ended(struct disk_reader *reader, const struct disk__piece *piece,
                              uint64_t now_ns)
{
    count_time(reader, now_ns);
    assert(reader->in_flight[piece->class] > 0);
    reader->in_flight[piece->class]--;
    if (now_ns - piece->began_ns > reader->counters.slowest_ns)
        reader->counters.slowest_ns = now_ns - piece->began_ns;
}

/* ---- reads; with the lock ---- */

static enum disk_read_state state_of(const struct disk_read *read)
{
    return atomic_load_explicit(&read->state, memory_order_acquire);
}

static bool is_final(enum disk_read_state state)
{
    return state == DISK_READ_DONE || state == DISK_READ_CANCELED;
}

/* Ends the read if nothing of it is in flight or to come. The read is the caller's again with the
 * store of its state (release: all its other fields, and dst, come before). */
static void end_if_over(struct disk_reader *reader, struct disk_read *read)
{
    struct disk_class_counters *const counters = &reader->counters.classes[read->class];
    enum disk_read_state state = DISK_READ_DONE;

    if (read->own.in_flight_count != 0 || disk__piece_is_left(read))
        return;
    queue_remove(&reader->queues[read->class], read);
    read->ended_ns = clock_now_ns();
    if (read->own.dropped && read->status == STATUS_OK) {
        read->status = err_set(&read->err, STATUS_CANCELED, "a read from disk was canceled");
        state = DISK_READ_CANCELED;
        counters->canceled_count++;
    } else if (read->status != STATUS_OK) {
        counters->failed_count++;
    } else {
        counters->done_count++;
    }
    atomic_store_explicit(&read->state, state, memory_order_release);
    if (reader->waiter_count != 0)
        (void)pthread_cond_broadcast(&reader->ended);
}

/* Starts no more of it. True when there was more to start. */
static bool stop_starting(struct disk_reader *reader, struct disk_read *read)
{
    const bool was_left = disk__piece_is_left(read);

    queue_remove(&reader->queues[read->class], read);
    if (was_left)
        read->own.dropped = true;
    return was_left;
}

/* ---- the thread; with the lock, but for the wait ---- */

/* The read whose piece goes next, by the rules above; NULL: nothing may start now. */
static struct disk_read *next_read(const struct disk_reader *reader)
{
    const uint32_t total = reader->in_flight[DISK_DEMAND] + reader->in_flight[DISK_GUESS];

    if (total >= reader->depth)
        return NULL;
    if (reader->queues[DISK_DEMAND].head != NULL)
        return reader->queues[DISK_DEMAND].head;
    return total < reader->guess_depth ? reader->queues[DISK_GUESS].head : NULL;
}

static struct disk__piece *free_place(struct disk_reader *reader)
{
    for (uint32_t i = 0; i < reader->depth; i++) {
        if (reader->pieces[i].read == NULL)
            return &reader->pieces[i];
    }
    assert(!"fewer places than pieces in flight");
    return NULL;
}

static void begin_pieces(struct disk_reader *reader)
{
    struct disk_read *read;

    while ((read = next_read(reader)) != NULL) {
        struct disk__piece *const piece = free_place(reader);
        const uint64_t now_ns = clock_now_ns();
        const bool cut = disk__piece_cut(read, reader->piece_bytes, piece);

        assert(cut); /* else it would not be queued */
        (void)cut;
        if (!disk__piece_is_left(read))
            queue_remove(&reader->queues[read->class], read);
        if (state_of(read) == DISK_READ_QUEUED) {
            read->began_ns = now_ns;
            atomic_store_explicit(&read->state, DISK_READ_RUNNING, memory_order_relaxed);
        }
        read->own.in_flight_count++;
        piece->number = ++reader->piece_number;
        piece->began_ns = now_ns;
        count_piece_begun(reader, piece->class, now_ns);
        disk__piece_prepare(piece, &reader->faults);
        reader->ops->begin(reader->engine, piece);
    }
}

static void end_piece(struct disk_reader *reader, struct disk__piece *piece,
                      enum disk__verdict verdict, uint64_t got_bytes, const struct err *err)
{
    struct disk_read *const read = piece->read;

    read->bytes_read += got_bytes;
    reader->counters.classes[piece->class].read_bytes += got_bytes;
    if (verdict == DISK__PIECE_AGAIN) {
        if (got_bytes != 0)
            reader->counters.short_count++;
        else
            reader->counters.retry_count++;
        disk__piece_prepare(piece, &reader->faults);
        reader->ops->begin(reader->engine, piece);
        return;
    }
    count_piece_ended(reader, piece, clock_now_ns());
    if (verdict == DISK__PIECE_FAILED) {
        if (read->status == STATUS_OK) { /* the first failure is the one that is told */
            read->err = *err;
            read->status = err->status;
        }
        (void)stop_starting(reader, read);
    }
    piece->read = NULL;
    read->own.in_flight_count--;
    end_if_over(reader, read);
}

static void *run(void *argument)
{
    struct disk_reader *const reader = argument;
    struct disk__piece *ended[DISK_DEPTH_MAX];

    (void)pthread_mutex_lock(&reader->lock);
    for (;;) {
        uint32_t count;

        begin_pieces(reader);
        if (reader->stopping && reader->in_flight[DISK_DEMAND] + reader->in_flight[DISK_GUESS] == 0)
            break;
        reader->asleep = true;
        (void)pthread_mutex_unlock(&reader->lock);
        count = reader->ops->wait(reader->engine, ended, reader->depth);
        for (uint32_t i = 0; i < count; i++) {
            uint64_t got_bytes;
            struct err err;
            const enum disk__verdict verdict =
                disk__piece_judge(ended[i], &reader->faults, &got_bytes, &err);

            (void)pthread_mutex_lock(&reader->lock);
            reader->asleep = false;
            end_piece(reader, ended[i], verdict, got_bytes, &err);
            (void)pthread_mutex_unlock(&reader->lock);
        }
        (void)pthread_mutex_lock(&reader->lock);
        reader->asleep = false;
    }
    (void)pthread_mutex_unlock(&reader->lock);
    return NULL;
}

/* Unlocks; then, if the thread sleeps, wakes it: once for each of its sleeps. */
static void unlock_and_wake(struct disk_reader *reader)
{
    const bool wake = reader->asleep;

    reader->asleep = false;
    (void)pthread_mutex_unlock(&reader->lock);
    if (wake)
        reader->ops->wake(reader->engine);
}

/* ---- creating ---- */

/* All but the thread. */
static void free_reader(struct disk_reader *reader)
{
    (void)pthread_cond_destroy(&reader->ended);
    (void)pthread_mutex_destroy(&reader->lock);
    reader->ops->destroy(reader->engine);
    free(reader->pieces);
    free(reader);
}

enum status disk__reader_create_on(const struct disk__engine_ops *ops,
                                   const struct disk_reader_options *options,
                                   struct disk_reader **reader_out, struct err *err)
{
    struct disk_reader *const reader = calloc(1, sizeof(*reader));
    enum status st;
    int rc;

    if (reader == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a disk reader");
    reader->ops = ops;
    reader->depth = options->depth != 0 ? options->depth : DISK_DEPTH_DEFAULT;
    reader->piece_bytes =
        options->piece_bytes != 0 ? options->piece_bytes : DISK_PIECE_BYTES_DEFAULT;
    reader->faults = options->faults;
    st = ops->create(&reader->depth, &reader->engine, err);
    if (st != STATUS_OK) {
        free(reader);
        return st;
    }
    reader->guess_depth = options->guess_depth != 0 ? options->guess_depth : reader->depth / 4;
    if (reader->guess_depth == 0)
        reader->guess_depth = 1;
    reader->created_ns = reader->counted_ns = clock_now_ns();
    (void)pthread_mutex_init(&reader->lock, NULL);
    (void)pthread_cond_init(&reader->ended, NULL);
    reader->pieces = calloc(reader->depth, sizeof(*reader->pieces));
    rc = reader->pieces == NULL ? ENOMEM : pthread_create(&reader->thread, NULL, run, reader);
    if (rc != 0) {
        st = err_set(err, STATUS_NO_MEMORY, "no thread for a disk reader: %s", strerror(rc));
        free_reader(reader);
        return st;
    }
    *reader_out = reader;
    return STATUS_OK;
}

enum status disk_reader_create(const struct disk_reader_options *options,
                               struct disk_reader **reader_out, struct err *err)
{
    struct err why;
    enum status st;

    assert(options->depth <= DISK_DEPTH_MAX && options->piece_bytes <= DISK_PIECE_BYTES_MAX);
    assert(options->piece_bytes % DISK_ALIGN == 0);
    if (options->uring == DISK_OFF)
        return disk__reader_create_on(&disk__threads, options, reader_out, err);
    st = disk__reader_create_on(&disk__uring, options, reader_out, &why);
    if (st == STATUS_OK)
        return STATUS_OK;
    if (st != STATUS_UNAVAILABLE)
        return err_set(err, st, "%s", why.message);
    if (options->uring == DISK_ON)
        return err_set(err, st, "%s; uring=auto reads with threads instead", why.message);
    log_line(options->log, LOG_INFO, "disk: %s; reading with threads instead", why.message);
    return disk__reader_create_on(&disk__threads, options, reader_out, err);
}

void disk_reader_destroy(struct disk_reader *reader)
{
    if (reader == NULL)
        return;
    (void)pthread_mutex_lock(&reader->lock);
    reader->stopping = true;
    for (int class = 0; class < DISK_CLASS_COUNT; class++) {
        while (reader->queues[class].head != NULL) {
            struct disk_read *const read = reader->queues[class].head;
            (void)stop_starting(reader, read);
            end_if_over(reader, read);
        }
    }
    unlock_and_wake(reader);
    (void)pthread_join(reader->thread, NULL);
    free_reader(reader);
}

/* ---- what any thread may call ---- */

static void check_extents(const struct disk_read *read)
{
    assert(read->extent_count <= DISK_EXTENTS_MAX);
    assert((unsigned)read->class < DISK_CLASS_COUNT);
    for (uint32_t i = 0; i < read->extent_count; i++) {
        const struct disk_extent *const extent = &read->extents[i];
        uint64_t end_bytes;
        const bool fits = size_add(extent->offset_bytes, extent->size_bytes, &end_bytes) &&
                          end_bytes <= INT64_MAX - DISK_ALIGN;

        assert(extent->size_bytes == 0 || extent->file != NULL);
        assert(fits);
        assert((uintptr_t)extent->dst % DISK_ALIGN == extent->offset_bytes % DISK_ALIGN);
        (void)fits;
    }
}

void disk_read_submit(struct disk_reader *reader, struct disk_read *read)
{
    const enum disk_read_state state = state_of(read);

    assert(state == DISK_READ_IDLE || is_final(state));
    (void)state;
    check_extents(read);
    read->status = STATUS_OK;
    read->began_ns = read->ended_ns = 0;
    read->bytes_read = 0;
    memset(&read->own, 0, sizeof(read->own));
    read->submit_ns = clock_now_ns();
    (void)pthread_mutex_lock(&reader->lock);
    assert(!reader->stopping);
    reader->counters.classes[read->class].submitted_count++;
    atomic_store_explicit(&read->state, DISK_READ_QUEUED, memory_order_relaxed);
    if (disk__piece_is_left(read))
        queue_push(&reader->queues[read->class], read);
    else
        end_if_over(reader, read); /* there is nothing to read */
    unlock_and_wake(reader);
}

bool disk_read_is_done(const struct disk_read *read)
{
    return is_final(state_of(read));
}

/* With the lock. */
static void wait_for_end(struct disk_reader *reader, const struct disk_read *read)
{
    reader->waiter_count++;
    while (!is_final(state_of(read)))
        (void)pthread_cond_wait(&reader->ended, &reader->lock);
    reader->waiter_count--;
}

enum status disk_read_wait(struct disk_reader *reader, struct disk_read *read, struct err *err)
{
    assert(state_of(read) != DISK_READ_IDLE);
    if (!is_final(state_of(read))) {
        (void)pthread_mutex_lock(&reader->lock);
        wait_for_end(reader, read);
        (void)pthread_mutex_unlock(&reader->lock);
    }
    if (read->status != STATUS_OK && err != NULL)
        *err = read->err;
    return read->status;
}

void disk_read_drop(struct disk_reader *reader, struct disk_read *read)
{
    (void)pthread_mutex_lock(&reader->lock);
    if (state_of(read) == DISK_READ_QUEUED || state_of(read) == DISK_READ_RUNNING) {
        (void)stop_starting(reader, read);
        end_if_over(reader, read);
    }
    (void)pthread_mutex_unlock(&reader->lock);
}

bool disk_read_cancel(struct disk_reader *reader, struct disk_read *read)
{
    if (state_of(read) == DISK_READ_IDLE)
        return true;
    disk_read_drop(reader, read);
    if (!is_final(state_of(read))) {
        (void)pthread_mutex_lock(&reader->lock);
        wait_for_end(reader, read);
        (void)pthread_mutex_unlock(&reader->lock);
    }
    return state_of(read) == DISK_READ_CANCELED;
}

void disk_read_promote(struct disk_reader *reader, struct disk_read *read)
{
    (void)pthread_mutex_lock(&reader->lock);
    if (read->own.queued && read->class == DISK_GUESS && !is_final(state_of(read))) {
        queue_remove(&reader->queues[DISK_GUESS], read);
        read->class = DISK_DEMAND;
        queue_push(&reader->queues[DISK_DEMAND], read);
        reader->counters.promoted_count++;
    }
    unlock_and_wake(reader);
}

void disk_reader_counters(struct disk_reader *reader, struct disk_counters *counters_out)
{
    (void)pthread_mutex_lock(&reader->lock);
    count_time(reader, clock_now_ns());
    *counters_out = reader->counters;
    counters_out->elapsed_ns = reader->counted_ns - reader->created_ns;
    (void)pthread_mutex_unlock(&reader->lock);
}

const char *disk_reader_engine_name(const struct disk_reader *reader)
{
    return reader->ops->name;
}

uint32_t disk_reader_depth(const struct disk_reader *reader)
{
    return reader->depth;
}

uint64_t disk_reader_piece_bytes(const struct disk_reader *reader)
{
    return reader->piece_bytes;
}
