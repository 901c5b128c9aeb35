/* device/cuda/event.c - marks in streams, and when they were reached.
 *
 * CUDA's events behave as device.h wants: they may be recorded again and again, and a wait is for
 * the last record before it.
 *
 * Time: cudaEventElapsedTime knows only the time between two events, as a float of milliseconds. So
 * the clock is an event recorded just after the host looked at its own clock, and an event's time
 * is what the host saw then plus what elapsed: never late, early by the little that recording
 * takes, and not earlier than the host's call that recorded it. So events that follow each other
 * have times that do. A float loses microseconds after a quarter of a minute; so the clock is set
 * anew that often, and the one before is kept for the events recorded under it.
 *
 * Threads: event_is_done may come from any; it looks at what is atomic here, and asks CUDA. */
#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/clock.h"
#include "device/cuda/internal.h"

#define CLOCK_NS UINT64_C(15000000000)
#define CLOCK_BASES 2
#define CLOCK_TRIES 4
#define CLOCK_ERROR_NS UINT64_C(100000)

struct cuda_clock {
    void *stream;
    struct {
        void *event;
        uint64_t time_ns;
    } bases[CLOCK_BASES];
    uint64_t generation;             /* of the newest, which is bases[generation % CLOCK_BASES] */
};

struct cuda_event {
    struct event base;
    void *handle;
    atomic_uint_fast64_t recorded;   /* how often; written by the caller's thread */
    atomic_uint_fast64_t done;       /* the last record that was seen to be reached */
    atomic_uint_fast64_t seen_ns;    /* when it was seen first; written before `done` */
    uint64_t recorded_ns;            /* when it was recorded last, by the host */
    uint64_t generation;             /* of the clock, when it was recorded last */
    struct err error;                /* of the stream that was broken then */
};

static struct cuda_device *device_of(const struct cuda_event *event)
{
    return (struct cuda_device *)event->base.device;
}

static enum status create_handle(const struct cuda_device *device, void **handle_out,
                                 struct err *err)
{
    const int code = device->module->event_create(handle_out);

    return code == 0 ? STATUS_OK
                     : cuda__fail(device->module, device->base.info.name, code, err,
                                  "cudaEventCreateWithFlags");
}

/* ---- the clock ---- */

/* The last try counts: it took no longer than CLOCK_ERROR_NS, or there was no better one left. */
static enum status clock_set(const struct cuda_device *device, struct err *err)
{
    struct cuda_clock *clock = device->clock;
    const struct cuda_module *module = device->module;
    const uint64_t next = clock->generation + 1;
    void *const event = clock->bases[next % CLOCK_BASES].event;
    uint64_t before_ns = 0, took_ns = UINT64_MAX;

    for (int i = 0; i < CLOCK_TRIES && took_ns > CLOCK_ERROR_NS; i++) {
        int code;

        before_ns = clock_now_ns();
        code = module->event_record(clock->stream, event);
        if (code == 0)
            code = module->event_sync(event);
        if (code != 0)
            return cuda__fail(module, device->base.info.name, code, err, "recording a time");
        took_ns = clock_now_ns() - before_ns;
    }
    clock->bases[next % CLOCK_BASES].time_ns = before_ns;
    clock->generation = next;
    return STATUS_OK;
}

enum status cuda__clock_create(struct cuda_device *device, struct err *err)
{
    struct cuda_clock *clock = calloc(1, sizeof(*clock));
    enum status st = STATUS_OK;
    int code;

    if (clock == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for a clock",
                       device->base.info.name);
    device->clock = clock;
    code = device->module->stream_create(&clock->stream);
    if (code != 0) {
        clock->stream = NULL;
        return cuda__fail(device->module, device->base.info.name, code, err,
                            "cudaStreamCreateWithFlags");
    }
    for (uint32_t i = 0; st == STATUS_OK && i < CLOCK_BASES; i++)
        st = create_handle(device, &clock->bases[i].event, err);
    return st == STATUS_OK ? clock_set(device, err) : st;
}

void cuda__clock_destroy(struct cuda_device *device)
{
    struct cuda_clock *clock = device->clock;

    if (clock == NULL)
        return;
    for (uint32_t i = 0; i < CLOCK_BASES; i++)
        if (clock->bases[i].event != NULL)
            (void)device->module->event_destroy(clock->bases[i].event);
    if (clock->stream != NULL)
        (void)device->module->stream_destroy(clock->stream);
    free(clock);
    device->clock = NULL;
}

/* ---- events ---- */

enum status cuda__event_create(struct device *device, struct event **event_out, struct err *err)
{
    struct cuda_event *event = calloc(1, sizeof(*event));
    enum status st;

    if (event == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for an event", device->info.name);
    event->base.device = device;
    st = cuda__enter((struct cuda_device *)device, err);
    if (st == STATUS_OK)
        st = create_handle((struct cuda_device *)device, &event->handle, err);
    if (st != STATUS_OK) {
        free(event);
        return st;
    }
    *event_out = &event->base;
    return STATUS_OK;
}

void cuda__event_destroy(struct event *base)
{
    struct cuda_event *event = (struct cuda_event *)base;

    (void)cuda__event_sync(base, NULL); /* streams still have to pass it */
    (void)cuda__enter(device_of(event), NULL);
    (void)device_of(event)->module->event_destroy(event->handle);
    free(event);
}

/* Notes that record `number` was reached; a later one may have been noted already. */
static void note_done(struct cuda_event *event, uint64_t number)
{
    uint64_t done = atomic_load_explicit(&event->done, memory_order_relaxed);

    if (done >= number)
        return;
    atomic_store_explicit(&event->seen_ns, clock_now_ns(), memory_order_relaxed);
    while (done < number && !atomic_compare_exchange_weak_explicit(
                                &event->done, &done, number, memory_order_release,
                                memory_order_relaxed))
        ;
}

enum status cuda__event_record(struct stream *base, struct event *event_base, struct err *err)
{
    struct cuda_stream *stream = (struct cuda_stream *)base;
    struct cuda_event *event = (struct cuda_event *)event_base;
    struct cuda_device *device = device_of(event);
    const uint64_t number = atomic_load_explicit(&event->recorded, memory_order_relaxed) + 1;
    enum status st = cuda__enter(device, err);
    const struct cuda_clock *clock = device->clock;
    uint64_t recorded_ns;
    int code;

    event->error = stream->error;
    if (stream->error.status != STATUS_OK) { /* a mark on a broken stream is reached at once */
        atomic_store_explicit(&event->recorded, number, memory_order_relaxed);
        note_done(event, number);
        return STATUS_OK;
    }
    if (st == STATUS_OK &&
        clock_now_ns() - clock->bases[clock->generation % CLOCK_BASES].time_ns > CLOCK_NS)
        st = clock_set(device, err);
    if (st != STATUS_OK)
        return st;
    recorded_ns = clock_now_ns();
    code = device->module->event_record(stream->handle, event->handle);
    if (code != 0)
        return cuda__fail(device->module, device->base.info.name, code, err, "cudaEventRecord");
    event->generation = clock->generation;
    event->recorded_ns = recorded_ns;
    atomic_store_explicit(&event->recorded, number, memory_order_relaxed);
    return STATUS_OK;
}

enum status cuda__stream_wait(struct stream *base, struct event *event_base, struct err *err)
{
    struct cuda_stream *stream = (struct cuda_stream *)base;
    struct cuda_event *event = (struct cuda_event *)event_base;
    struct cuda_device *device = device_of(event);
    enum status st;
    int code;

    if (atomic_load_explicit(&event->done, memory_order_acquire) >=
        atomic_load_explicit(&event->recorded, memory_order_relaxed))
        return STATUS_OK; /* never recorded, or seen to be reached */
    st = cuda__enter(device, err);
    if (st != STATUS_OK || stream->error.status != STATUS_OK)
        return st;
    code = device->module->event_wait(stream->handle, event->handle);
    return code == 0 ? STATUS_OK
                               : cuda__fail(device->module, device->base.info.name, code, err,
                                              "cudaStreamWaitEvent");
}

enum status cuda__event_sync(struct event *base, struct err *err)
{
    struct cuda_event *event = (struct cuda_event *)base;
    struct cuda_device *device = device_of(event);
    const uint64_t number = atomic_load_explicit(&event->recorded, memory_order_relaxed);
    enum status st;
    int code;

    if (event->error.status != STATUS_OK) {
        if (err != NULL)
            *err = event->error;
        return event->error.status;
    }
    if (atomic_load_explicit(&event->done, memory_order_acquire) >= number)
        return STATUS_OK;
    st = cuda__enter(device, err);
    if (st != STATUS_OK)
        return st;
    code = device->module->event_sync(event->handle);
    if (code != 0)
        return cuda__fail(device->module, device->base.info.name, code, err,
                            "cudaEventSynchronize");
    note_done(event, number);
    return STATUS_OK;
}

bool cuda__event_is_done(const struct event *base)
{
    struct cuda_event *event = (struct cuda_event *)base; /* it only notes here */
    const struct cuda_device *device = device_of(event);
    const uint64_t number = atomic_load_explicit(&event->recorded, memory_order_relaxed);
    bool done = true;

    if (atomic_load_explicit(&event->done, memory_order_acquire) >= number)
        return true;
    /* After a failure nothing will change any more; whoever waits for the stream gets to know. */
    if (cuda__enter(device, NULL) == STATUS_OK &&
        device->module->event_is_done(event->handle, &done) == 0 && !done)
        return false;
    note_done(event, number);
    return true;
}

/* Between the clock's event and this one; false where CUDA cannot say, or no longer. */
static bool elapsed(const struct cuda_event *event, uint64_t *time_ns_out)
{
    const struct cuda_device *device = device_of(event);
    const struct cuda_clock *clock = device->clock;
    const uint64_t base = event->generation % CLOCK_BASES;
    float ms = 0;

    if (event->generation + CLOCK_BASES <= clock->generation || event->error.status != STATUS_OK ||
        cuda__enter(device, NULL) != STATUS_OK ||
        device->module->event_elapsed(clock->bases[base].event, event->handle, &ms) != 0)
        return false;
    *time_ns_out = clock->bases[base].time_ns + (ms > 0 ? (uint64_t)((double)ms * 1e6) : 0);
    return true;
}

uint64_t cuda__event_time_ns(const struct event *base)
{
    const struct cuda_event *event = (const struct cuda_event *)base;
    uint64_t seen_ns, time_ns = 0;

    if (!cuda__event_is_done(base))
        assert(!"only what is done has a time");
    seen_ns = atomic_load_explicit(&event->seen_ns, memory_order_relaxed);
    if (!elapsed(event, &time_ns) || time_ns > seen_ns)
        return seen_ns; /* it was reached before it was seen to be, whatever the clocks say */
    return time_ns > event->recorded_ns ? time_ns : event->recorded_ns;
}
