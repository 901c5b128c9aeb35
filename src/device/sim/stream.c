/* device/sim/stream.c - streams that really run beside each other, and events that order them.
 *
 * A stream is a bounded ring of commands and a worker thread that takes them in order; a caller
 * that finds the ring full waits. An event counts its records: each takes the next number when it
 * is queued, and stream_wait remembers the number that is current when it is called, so recording
 * again does not disturb those who wait already (CUDA Programming Guide, 3.2.8.6, "Events"). A
 * record on another stream than the one before waits for that one, so the numbers are reached in
 * order.
 *
 * The first error of a stream stays: later ops and copies are dropped and refused, but records and
 * waits go on, so nobody hangs.
 *
 * Time: ready_ns is when the command could have begun on an accelerator: it was queued, what stands
 * before it is done, the events that it waits for are reached. Copies are paced from there, so that
 * the time this machine takes to wake a thread is not charged to the link. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "base/clock.h"
#include "device/operands.h"
#include "device/sim/internal.h"

#define RING_SIZE 1024u /* commands; a power of two */
#define TIMER_SLACK_NS 1000UL

enum command_kind {
    COMMAND_OP,
    COMMAND_COPY_IN,
    COMMAND_COPY_OUT,
    COMMAND_COPY_PEER,
    COMMAND_COPY_OWN,   /* within the device's memory: no link is on the way */
    COMMAND_FILL,
    COMMAND_RECORD,
    COMMAND_WAIT,
};

struct sim_event {
    struct event base;
    pthread_mutex_t lock;      /* guards what follows, and orders what streams did before */
    pthread_cond_t reached;    /* `done` or `queued_count` changed */
    atomic_uint_fast64_t recorded; /* the number of the last record that was queued */
    atomic_uint_fast64_t done;     /* the number of the last record that was reached; atomic for
                                      event_is_done: acquire there sees what the stream did */
    atomic_uint_fast64_t time_ns;  /* when it was reached; written before `done` */
    uint64_t queued_count;     /* commands in rings that point here */
    const struct stream *last_stream; /* of the last record; owner: the caller's thread */
    struct err error;          /* the stream's, as it was reached; status STATUS_OK: none */
};

struct command {
    enum command_kind kind;
    bool fault;                /* fails on purpose */
    uint64_t queued_ns;
    union {
        struct op op;
        struct {
            void *dst;
            const void *src;
            uint64_t size_bytes;
            uint8_t value;
        } bytes;               /* copies and fills */
        struct {
            struct sim_event *event;
            uint64_t number;
        } mark;                /* record and wait */
    };
};

struct sim_stream {
    struct stream base;
    pthread_t thread;
    uint64_t ready_ns;         /* owner: the worker; see the top */
    pthread_mutex_t lock;      /* guards what follows */
    pthread_cond_t queued;     /* the worker waits for: more commands, or `stop` */
    pthread_cond_t progress;   /* callers wait for: commands done */
    uint64_t queued_count, done_count; /* since create; their difference is at most RING_SIZE */
    bool stop;
    struct err error;          /* the first; status STATUS_OK: none */
    struct command ring[RING_SIZE]; /* [done_count, queued_count): the worker's own while it runs */
};

static struct sim_device *sim_of(const struct sim_stream *stream)
{
    return (struct sim_device *)stream->base.device;
}

/* Notes the stream's first error; returns it, into err. */
static enum status break_stream(struct sim_stream *stream, const struct err *error, struct err *err)
{
    struct err first;

    pthread_mutex_lock(&stream->lock);
    if (stream->error.status == STATUS_OK)
        stream->error = *error;
    first = stream->error;
    pthread_mutex_unlock(&stream->lock);
    if (err != NULL)
        *err = first;
    return first.status;
}

static bool is_broken(struct sim_stream *stream)
{
    bool broken;

    pthread_mutex_lock(&stream->lock);
    broken = stream->error.status != STATUS_OK;
    pthread_mutex_unlock(&stream->lock);
    return broken;
}

/* Waits while the ring is full. Ops, copies and fills are refused on a broken stream. */
static enum status push(struct sim_stream *stream, const struct command *command, struct err *err)
{
    const bool is_mark = command->kind == COMMAND_RECORD || command->kind == COMMAND_WAIT;
    struct err error;

    pthread_mutex_lock(&stream->lock);
    while (stream->queued_count - stream->done_count == RING_SIZE)
        pthread_cond_wait(&stream->progress, &stream->lock);
    error = stream->error;
    if (error.status == STATUS_OK || is_mark) {
        struct command *slot = &stream->ring[stream->queued_count % RING_SIZE];
        *slot = *command;
        slot->queued_ns = clock_now_ns();
        stream->queued_count++;
        pthread_cond_signal(&stream->queued);
        error.status = STATUS_OK;
    }
    pthread_mutex_unlock(&stream->lock);
    if (error.status != STATUS_OK && err != NULL)
        *err = error;
    return error.status;
}

static void run_record(struct sim_stream *stream, const struct command *command)
{
    struct sim_event *event = command->mark.event;
    struct err error;

    pthread_mutex_lock(&stream->lock);
    error = stream->error;
    pthread_mutex_unlock(&stream->lock);
    pthread_mutex_lock(&event->lock);
    atomic_store_explicit(&event->time_ns, clock_now_ns(), memory_order_relaxed);
    event->error = error;
    event->queued_count--;
    atomic_store_explicit(&event->done, command->mark.number, memory_order_release);
    pthread_cond_broadcast(&event->reached);
    pthread_mutex_unlock(&event->lock);
}

static void run_wait(struct sim_stream *stream, const struct command *command)
{
    struct sim_event *event = command->mark.event;
    uint64_t reached_ns;

    pthread_mutex_lock(&event->lock);
    while (atomic_load_explicit(&event->done, memory_order_relaxed) < command->mark.number)
        pthread_cond_wait(&event->reached, &event->lock);
    reached_ns = atomic_load_explicit(&event->time_ns, memory_order_relaxed);
    if (reached_ns > stream->ready_ns)
        stream->ready_ns = reached_ns;
    event->queued_count--;
    pthread_cond_broadcast(&event->reached);
    pthread_mutex_unlock(&event->lock);
}

static void run_copy(struct sim_stream *stream, const struct command *command,
                     struct sim_link *link)
{
    const uint64_t size_bytes = command->bytes.size_bytes;
    const struct sim_slice slice = sim__link_enter(link, stream->ready_ns, size_bytes);

    sim__link_copy(link, slice, command->bytes.dst, command->bytes.src, size_bytes);
    stream->ready_ns = slice.end_ns;
}

/* Listed experts have their addresses in device memory, so they can be looked at only now. */
static bool experts_are_held(struct sim_stream *stream, const struct op *op)
{
    const struct sim_arena *arena = sim_of(stream)->arena;
    const struct op_moe *moe = &op->moe;
    const uint32_t count = op->kind == OP_MOE && moe->experts != NULL ? moe->expert_list_count : 0;
    const uint64_t elements = (uint64_t)moe->width * moe->ffn_width;
    uint64_t size_bytes = 0, down_bytes = 0;
    struct err error;

    if (count > 0 && (!dtype_bytes(moe->weight_dtype, elements, &size_bytes) ||
                      !dtype_bytes(moe->down_dtype, elements, &down_bytes)))
        assert(!"matrices of whole blocks");
    for (uint32_t i = 0; i < count; i++) {
        const struct op_moe_expert *expert = &moe->experts[i];

        if (sim__arena_holds(arena, expert->gate, size_bytes) &&
            sim__arena_holds(arena, expert->up, size_bytes) &&
            sim__arena_holds(arena, expert->down, down_bytes))
            continue;
        (void)err_set(&error, STATUS_DEVICE, "sim: moe: expert %d at %p, %p and %p, %llu, %llu "
                      "and %llu bytes, is not in the device's memory", (int)expert->id,
                      expert->gate, expert->up, expert->down, (unsigned long long)size_bytes,
                      (unsigned long long)size_bytes, (unsigned long long)down_bytes);
        (void)break_stream(stream, &error, NULL);
        return false;
    }
    return true;
}

static void run_work(struct sim_stream *stream, const struct command *command)
{
    struct sim_device *sim = sim_of(stream);
    struct err error;
    bool executed;

    switch (command->kind) {
    case COMMAND_OP:
        if (!experts_are_held(stream, &command->op))
            break;
        pthread_mutex_lock(&sim->execute_lock);
        executed = sim__execute(sim->executor, &command->op);
        pthread_mutex_unlock(&sim->execute_lock);
        if (!executed) {
            (void)err_set(&error, STATUS_NO_MEMORY, "sim: no memory to change the layout of the "
                          "weights of %s in", op_kind_name(command->op.kind));
            (void)break_stream(stream, &error, NULL);
        }
        stream->ready_ns = clock_now_ns();
        break;
    case COMMAND_COPY_IN: run_copy(stream, command, &sim->link_in); break;
    case COMMAND_COPY_OUT: run_copy(stream, command, &sim->link_out); break;
    case COMMAND_COPY_PEER: run_copy(stream, command, &sim->link_peer); break;
    case COMMAND_COPY_OWN:
        memmove(command->bytes.dst, command->bytes.src, command->bytes.size_bytes);
        stream->ready_ns = clock_now_ns();
        break;
    case COMMAND_FILL:
        memset(command->bytes.dst, command->bytes.value, command->bytes.size_bytes);
        stream->ready_ns = clock_now_ns();
        break;
    case COMMAND_RECORD:
    case COMMAND_WAIT: assert(!"a mark is not work");
    }
}

static void run(struct sim_stream *stream, const struct command *command)
{
    struct err error;

    if (command->queued_ns > stream->ready_ns)
        stream->ready_ns = command->queued_ns;
    if (command->kind == COMMAND_RECORD) {
        run_record(stream, command);
    } else if (command->kind == COMMAND_WAIT) {
        run_wait(stream, command);
    } else if (command->fault) {
        (void)err_set(&error, STATUS_DEVICE, "sim: a %s failed on purpose (fail_launch, fail_copy)",
                      command->kind == COMMAND_OP ? op_kind_name(command->op.kind) : "copy");
        (void)break_stream(stream, &error, NULL);
    } else if (!is_broken(stream)) {
        run_work(stream, command);
    }
}

static void *worker_main(void *arg)
{
    struct sim_stream *stream = arg;

    (void)prctl(PR_SET_TIMERSLACK, TIMER_SLACK_NS); /* not 50 us: they would blur the link */
    pthread_mutex_lock(&stream->lock);
    for (;;) {
        const struct command *command;
        while (stream->queued_count == stream->done_count && !stream->stop)
            pthread_cond_wait(&stream->queued, &stream->lock);
        if (stream->queued_count == stream->done_count)
            break;
        command = &stream->ring[stream->done_count % RING_SIZE];
        pthread_mutex_unlock(&stream->lock);
        run(stream, command);
        pthread_mutex_lock(&stream->lock);
        stream->done_count++;
        pthread_cond_broadcast(&stream->progress);
    }
    pthread_mutex_unlock(&stream->lock);
    return NULL;
}

enum status sim__stream_create(struct device *device, enum stream_kind kind,
                               struct stream **stream_out, struct err *err)
{
    struct sim_stream *stream = calloc(1, sizeof(*stream));

    (void)kind; /* what a stream is for shows in what is queued on it */
    if (stream == NULL)
        return err_set(err, STATUS_NO_MEMORY, "sim: no memory for a stream");
    stream->base.device = device;
    pthread_mutex_init(&stream->lock, NULL);
    pthread_cond_init(&stream->queued, NULL);
    pthread_cond_init(&stream->progress, NULL);
    if (pthread_create(&stream->thread, NULL, worker_main, stream) != 0) {
        pthread_cond_destroy(&stream->progress);
        pthread_cond_destroy(&stream->queued);
        pthread_mutex_destroy(&stream->lock);
        free(stream);
        return err_set(err, STATUS_NO_MEMORY, "sim: the thread of a stream could not be started");
    }
    *stream_out = &stream->base;
    return STATUS_OK;
}

void sim__stream_destroy(struct stream *base)
{
    struct sim_stream *stream = (struct sim_stream *)base;

    pthread_mutex_lock(&stream->lock);
    stream->stop = true; /* after what is queued */
    pthread_cond_signal(&stream->queued);
    pthread_mutex_unlock(&stream->lock);
    pthread_join(stream->thread, NULL);
    pthread_cond_destroy(&stream->progress);
    pthread_cond_destroy(&stream->queued);
    pthread_mutex_destroy(&stream->lock);
    free(stream);
}

enum status sim__stream_sync(struct stream *base, struct err *err)
{
    struct sim_stream *stream = (struct sim_stream *)base;
    struct err error;
    uint64_t target;

    pthread_mutex_lock(&stream->lock);
    target = stream->queued_count;
    while (stream->done_count < target)
        pthread_cond_wait(&stream->progress, &stream->lock);
    error = stream->error;
    pthread_mutex_unlock(&stream->lock);
    if (error.status != STATUS_OK && err != NULL)
        *err = error;
    return error.status;
}

enum status sim__event_create(struct device *device, struct event **event_out, struct err *err)
{
    struct sim_event *event = calloc(1, sizeof(*event));

    if (event == NULL)
        return err_set(err, STATUS_NO_MEMORY, "sim: no memory for an event");
    event->base.device = device;
    pthread_mutex_init(&event->lock, NULL);
    pthread_cond_init(&event->reached, NULL);
    *event_out = &event->base;
    return STATUS_OK;
}

void sim__event_destroy(struct event *base)
{
    struct sim_event *event = (struct sim_event *)base;

    pthread_mutex_lock(&event->lock);
    while (event->queued_count > 0) /* streams still have to pass it */
        pthread_cond_wait(&event->reached, &event->lock);
    pthread_mutex_unlock(&event->lock);
    pthread_cond_destroy(&event->reached);
    pthread_mutex_destroy(&event->lock);
    free(event);
}

/* Queues a record or a wait for number `number`. */
static enum status push_mark(struct stream *base, enum command_kind kind, struct sim_event *event,
                             uint64_t number, struct err *err)
{
    const struct command command = { .kind = kind, .mark = { event, number } };

    pthread_mutex_lock(&event->lock);
    event->queued_count++;
    pthread_mutex_unlock(&event->lock);
    return push((struct sim_stream *)base, &command, err);
}

enum status sim__stream_wait(struct stream *stream, struct event *base, struct err *err)
{
    struct sim_event *event = (struct sim_event *)base;
    const uint64_t recorded = atomic_load_explicit(&event->recorded, memory_order_relaxed);

    if (recorded == 0)
        return STATUS_OK;
    return push_mark(stream, COMMAND_WAIT, event, recorded, err);
}

enum status sim__event_record(struct stream *stream, struct event *base, struct err *err)
{
    struct sim_event *event = (struct sim_event *)base;
    enum status st = STATUS_OK;
    uint64_t number;

    if (event->last_stream != stream && !sim__event_is_done(base))
        st = sim__stream_wait(stream, base, err);
    if (st != STATUS_OK)
        return st;
    event->last_stream = stream;
    number = atomic_fetch_add_explicit(&event->recorded, 1, memory_order_relaxed) + 1;
    return push_mark(stream, COMMAND_RECORD, event, number, err);
}

enum status sim__event_sync(struct event *base, struct err *err)
{
    struct sim_event *event = (struct sim_event *)base;
    const uint64_t recorded = atomic_load_explicit(&event->recorded, memory_order_relaxed);
    struct err error;

    pthread_mutex_lock(&event->lock);
    while (atomic_load_explicit(&event->done, memory_order_relaxed) < recorded)
        pthread_cond_wait(&event->reached, &event->lock);
    error = event->error;
    pthread_mutex_unlock(&event->lock);
    if (error.status != STATUS_OK && err != NULL)
        *err = error;
    return error.status;
}

bool sim__event_is_done(const struct event *base)
{
    const struct sim_event *event = (const struct sim_event *)base;

    return atomic_load_explicit(&event->done, memory_order_acquire) >=
           atomic_load_explicit(&event->recorded, memory_order_relaxed);
}

uint64_t sim__event_time_ns(const struct event *base)
{
    assert(sim__event_is_done(base));
    return atomic_load_explicit(&((const struct sim_event *)base)->time_ns, memory_order_relaxed);
}

/* True for the call that a test hook wants to fail. */
static bool strikes(uint64_t *countdown)
{
    return *countdown > 0 && --*countdown == 0;
}

static enum status refuse_pointer(struct sim_stream *stream, const char *what, const char *operand,
                                  const void *pointer, uint64_t size_bytes, const char *problem,
                                  struct err *err)
{
    struct err error;

    (void)err_set(&error, STATUS_DEVICE, "sim: %s: %s at %p, %llu bytes, %s", what, operand,
                  pointer, (unsigned long long)size_bytes, problem);
    return break_stream(stream, &error, err);
}

static enum status copy(struct stream *base, enum command_kind kind, void *dst, const void *src,
                        uint64_t size_bytes, struct err *err)
{
    struct sim_stream *stream = (struct sim_stream *)base;
    struct sim_device *sim = sim_of(stream);
    const bool in = kind == COMMAND_COPY_IN;
    const void *device_side = in ? dst : src;
    const void *host_side = in ? src : dst;
    struct command command = { .kind = kind, .fault = strikes(&sim->fail_copy) };

    if (!sim__arena_holds(sim->arena, device_side, size_bytes))
        return refuse_pointer(stream, in ? "copy_in" : "copy_out", in ? "dst" : "src", device_side,
                              size_bytes, "is not in the device's memory", err);
    if (sim__arena_touches(sim->arena, host_side, size_bytes))
        return refuse_pointer(stream, in ? "copy_in" : "copy_out", in ? "src" : "dst", host_side,
                              size_bytes, "is in the device's memory, not the host's", err);
    command.bytes.dst = dst;
    command.bytes.src = src;
    command.bytes.size_bytes = size_bytes;
    return push(stream, &command, err);
}

enum status sim__copy_in(struct stream *stream, void *dst, const void *src, uint64_t size_bytes,
                         struct err *err)
{
    return copy(stream, COMMAND_COPY_IN, dst, src, size_bytes, err);
}

enum status sim__copy_out(struct stream *stream, void *dst, const void *src, uint64_t size_bytes,
                          struct err *err)
{
    return copy(stream, COMMAND_COPY_OUT, dst, src, size_bytes, err);
}

enum status sim__copy_peer(struct stream *base, void *dst, const void *src, uint64_t size_bytes,
                           struct err *err)
{
    struct sim_stream *stream = (struct sim_stream *)base;
    struct sim_device *sim = sim_of(stream);
    const bool own = sim__arena_holds(sim->arena, src, size_bytes);
    const struct command command = {
        .kind = own ? COMMAND_COPY_OWN : COMMAND_COPY_PEER,
        .fault = strikes(&sim->fail_copy),
        .bytes = { .dst = dst, .src = src, .size_bytes = size_bytes },
    };

    if (!sim__arena_holds(sim->arena, dst, size_bytes))
        return refuse_pointer(stream, "copy_peer", "dst", dst, size_bytes,
                              "is not in the device's memory", err);
    if (!own && !device__shared_holds(&sim->peers, src, size_bytes))
        return refuse_pointer(stream, "copy_peer", "src", src, size_bytes,
                              "is neither in a peer's memory nor in the device's", err);
    return push(stream, &command, err);
}

enum status sim__fill(struct stream *base, void *dst, uint8_t value, uint64_t size_bytes,
                      struct err *err)
{
    struct sim_stream *stream = (struct sim_stream *)base;
    const struct command command = {
        .kind = COMMAND_FILL, .bytes = { .dst = dst, .value = value, .size_bytes = size_bytes }
    };

    if (!sim__arena_holds(sim_of(stream)->arena, dst, size_bytes))
        return refuse_pointer(stream, "fill", "dst", dst, size_bytes,
                              "is not in the device's memory", err);
    return push(stream, &command, err);
}

enum status sim__launch(struct stream *base, const struct op *op, struct err *err)
{
    struct sim_stream *stream = (struct sim_stream *)base;
    struct sim_device *sim = sim_of(stream);
    struct command command = { .kind = COMMAND_OP, .fault = strikes(&sim->fail_launch) };
    struct op_operand operands[OP_OPERANDS_MAX];
    const uint32_t operand_count = device__operands(op, operands);
    const enum status st = cpu_execute_check(op, err);

    if (st != STATUS_OK)
        return st;
    for (uint32_t i = 0; i < operand_count; i++) {
        if (!sim__arena_holds(sim->arena, operands[i].pointer, operands[i].size_bytes))
            return refuse_pointer(stream, op_kind_name(op->kind), operands[i].name,
                                  operands[i].pointer, operands[i].size_bytes,
                                  "is not in the device's memory", err);
    }
    command.op = *op;
    return push(stream, &command, err);
}
