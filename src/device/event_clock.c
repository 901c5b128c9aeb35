/* device/event_clock.c - marks in streams, and when they were reached.
 *
 * The runtime knows only the time between two events, as a float of milliseconds. So the clock is
 * an event recorded just after the host looked at its own clock, and an event's time is what the
 * host saw then plus what elapsed: never late, early by the little that recording takes, and not
 * earlier than the host's call that recorded it. So events that follow each other have times that
 * do. A float loses microseconds after a quarter of a minute; so the clock is set anew that often,
 * and the one before is kept for the events recorded under it. */
#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/clock.h"
#include "device/event_clock.h"

#define CLOCK_NS UINT64_C(15000000000)
#define CLOCK_BASES 2
#define CLOCK_TRIES 4
#define CLOCK_ERROR_NS UINT64_C(100000)

struct device_clock {
    const struct device *device;
    const struct device_clock_calls *calls;
    void *stream;
    struct {
        void *event;
        uint64_t time_ns;
    } bases[CLOCK_BASES];
    uint64_t generation;             /* of the newest, which is bases[generation % CLOCK_BASES] */
};

struct clocked_event {
    struct event base;
    struct device_clock *clock;
    void *handle;
    atomic_uint_fast64_t recorded;   /* how often; written by the caller's thread */
    atomic_uint_fast64_t done;       /* the last record that was seen to be reached */
    atomic_uint_fast64_t seen_ns;    /* when it was seen first; written before `done` */
    uint64_t recorded_ns;            /* when it was recorded last, by the host */
    uint64_t generation;             /* of the clock, when it was recorded last */
    struct err error;                /* of the stream that was broken then */
};

static const struct device_clock_calls *calls_of(const struct clocked_event *event)
{
    return event->clock->calls;
}

/* ---- the clock ---- */

/* The last try counts: it took no longer than CLOCK_ERROR_NS, or there was no better one left. */
static enum status clock_set(struct device_clock *clock, struct err *err)
{
    const uint64_t next = clock->generation + 1;
    void *const event = clock->bases[next % CLOCK_BASES].event;
    uint64_t before_ns = 0, took_ns = UINT64_MAX;

    for (int i = 0; i < CLOCK_TRIES && took_ns > CLOCK_ERROR_NS; i++) {
        enum status st;

        before_ns = clock_now_ns();
        st = clock->calls->record(clock->device, clock->stream, event, err);
        if (st == STATUS_OK)
            st = clock->calls->sync(clock->device, event, err);
        if (st != STATUS_OK)
            return st;
        took_ns = clock_now_ns() - before_ns;
    }
    clock->bases[next % CLOCK_BASES].time_ns = before_ns;
    clock->generation = next;
    return STATUS_OK;
}

enum status device__clock_create(const struct device *device,
                                 const struct device_clock_calls *calls,
                                 struct device_clock **clock_out, struct err *err)
{
    struct device_clock *clock = calloc(1, sizeof(*clock));
    enum status st;

    if (clock == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for a clock", device->info.name);
    clock->device = device;
    clock->calls = calls;
    st = calls->stream_create(device, &clock->stream, err);
    if (st != STATUS_OK)
        clock->stream = NULL; /* whatever the runtime left there */
    for (uint32_t i = 0; st == STATUS_OK && i < CLOCK_BASES; i++)
        st = calls->create(device, &clock->bases[i].event, err);
    if (st == STATUS_OK)
        st = clock_set(clock, err);
    if (st != STATUS_OK) {
        device__clock_destroy(clock);
        return st;
    }
    *clock_out = clock;
    return STATUS_OK;
}

void device__clock_destroy(struct device_clock *clock)
{
    if (clock == NULL)
        return;
    for (uint32_t i = 0; i < CLOCK_BASES; i++)
        if (clock->bases[i].event != NULL)
            clock->calls->destroy(clock->device, clock->bases[i].event);
    if (clock->stream != NULL)
        clock->calls->stream_destroy(clock->device, clock->stream);
    free(clock);
}

/* ---- events ---- */

enum status device__event_create(struct device *device, struct device_clock *clock,
                                 struct event **event_out, struct err *err)
{
    struct clocked_event *event = calloc(1, sizeof(*event));
    enum status st;

    if (event == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for an event", device->info.name);
    event->base.device = device;
    event->clock = clock;
    st = clock->calls->enter(device, err);
    if (st == STATUS_OK)
        st = clock->calls->create(device, &event->handle, err);
    if (st != STATUS_OK) {
        free(event);
        return st;
    }
    *event_out = &event->base;
    return STATUS_OK;
}

void device__event_destroy(struct event *base)
{
    struct clocked_event *event = (struct clocked_event *)base;

    (void)device__event_sync(base, NULL); /* streams still have to pass it */
    (void)calls_of(event)->enter(base->device, NULL);
    calls_of(event)->destroy(base->device, event->handle);
    free(event);
}

/* Notes that record `number` was reached; a later one may have been noted already. */
static void note_done(struct clocked_event *event, uint64_t number)
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

enum status device__event_record(struct event *base, void *stream, const struct err *stream_error,
                                 struct err *err)
{
    struct clocked_event *event = (struct clocked_event *)base;
    struct device_clock *clock = event->clock;
    const uint64_t number = atomic_load_explicit(&event->recorded, memory_order_relaxed) + 1;
    enum status st = clock->calls->enter(base->device, err);
    uint64_t recorded_ns;

    event->error = *stream_error;
    if (stream_error->status != STATUS_OK) {
        atomic_store_explicit(&event->recorded, number, memory_order_relaxed);
        note_done(event, number);
        return STATUS_OK;
    }
    if (st == STATUS_OK &&
        clock_now_ns() - clock->bases[clock->generation % CLOCK_BASES].time_ns > CLOCK_NS)
        st = clock_set(clock, err);
    if (st != STATUS_OK)
        return st;
    recorded_ns = clock_now_ns();
    st = clock->calls->record(base->device, stream, event->handle, err);
    if (st != STATUS_OK)
        return st;
    event->generation = clock->generation;
    event->recorded_ns = recorded_ns;
    atomic_store_explicit(&event->recorded, number, memory_order_relaxed);
    return STATUS_OK;
}

enum status device__event_wait(struct event *base, void *stream, const struct err *stream_error,
                               struct err *err)
{
    struct clocked_event *event = (struct clocked_event *)base;
    enum status st;

    if (atomic_load_explicit(&event->done, memory_order_acquire) >=
        atomic_load_explicit(&event->recorded, memory_order_relaxed))
        return STATUS_OK; /* never recorded, or seen to be reached */
    st = calls_of(event)->enter(base->device, err);
    if (st != STATUS_OK || stream_error->status != STATUS_OK)
        return st;
    return calls_of(event)->wait(base->device, stream, event->handle, err);
}

enum status device__event_sync(struct event *base, struct err *err)
{
    struct clocked_event *event = (struct clocked_event *)base;
    const uint64_t number = atomic_load_explicit(&event->recorded, memory_order_relaxed);
    enum status st;

    if (event->error.status != STATUS_OK) {
        if (err != NULL)
            *err = event->error;
        return event->error.status;
    }
    if (atomic_load_explicit(&event->done, memory_order_acquire) >= number)
        return STATUS_OK;
    st = calls_of(event)->enter(base->device, err);
    if (st == STATUS_OK)
        st = calls_of(event)->sync(base->device, event->handle, err);
    if (st == STATUS_OK)
        note_done(event, number);
    return st;
}

bool device__event_is_done(const struct event *base)
{
    struct clocked_event *event = (struct clocked_event *)base; /* it only notes here */
    const uint64_t number = atomic_load_explicit(&event->recorded, memory_order_relaxed);

    if (atomic_load_explicit(&event->done, memory_order_acquire) >= number)
        return true;
    /* After a failure nothing will change any more; whoever waits for the stream gets to know. */
    if (calls_of(event)->enter(base->device, NULL) == STATUS_OK &&
        calls_of(event)->is_pending(base->device, event->handle))
        return false;
    note_done(event, number);
    return true;
}

/* Between the clock's event and this one; false where the runtime cannot say, or no longer. */
static bool elapsed(const struct clocked_event *event, uint64_t *time_ns_out)
{
    const struct device_clock *clock = event->clock;
    const struct device *device = event->base.device;
    const uint64_t base = event->generation % CLOCK_BASES;
    float ms = 0;

    if (event->generation + CLOCK_BASES <= clock->generation || event->error.status != STATUS_OK ||
        clock->calls->enter(device, NULL) != STATUS_OK ||
        !clock->calls->elapsed(device, clock->bases[base].event, event->handle, &ms))
        return false;
    *time_ns_out = clock->bases[base].time_ns + (ms > 0 ? (uint64_t)((double)ms * 1e6) : 0);
    return true;
}

uint64_t device__event_time_ns(const struct event *base)
{
    const struct clocked_event *event = (const struct clocked_event *)base;
    uint64_t seen_ns, time_ns = 0;

    if (!device__event_is_done(base))
        assert(!"only what is done has a time");
    seen_ns = atomic_load_explicit(&event->seen_ns, memory_order_relaxed);
    if (!elapsed(event, &time_ns) || time_ns > seen_ns)
        return seen_ns; /* it was reached before it was seen to be, whatever the clocks say */
    return time_ns > event->recorded_ns ? time_ns : event->recorded_ns;
}
