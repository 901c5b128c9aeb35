/* device/ascend/event.c - marks in streams, and when they were reached.
 *
 * CANN has three kinds of events. Those of aclrtCreateEventExWithFlag behave as device.h wants:
 * they may be recorded again and again, and a wait is for the last record before it. Where the
 * installed CANN lacks them, those of aclrtCreateEvent are used the same way, as ggml does; the
 * third kind must be reset between records, by a stream that nobody here could name.
 *
 * Time: aclrtEventElapsedTime knows only the time between two events, as a float of milliseconds.
 * So the clock is an event recorded just after the host looked at its own clock, and an event's
 * time is what the host saw then plus what elapsed: never late, early by the little that recording
 * takes, and not earlier than the host's call that recorded it. So events that follow each other
 * have times that do. A float loses microseconds after a quarter of a minute; so the clock is set
 * anew that often, and the one before is kept for the events recorded under it.
 *
 * Threads: event_is_done may come from any; it looks at what is atomic here, and asks CANN. */
#include <assert.h>
#include <stdlib.h>

#include "base/clock.h"
#include "device/ascend/internal.h"

#define CLOCK_NS UINT64_C(15000000000)
#define CLOCK_BASES 2
#define CLOCK_TRIES 4
#define CLOCK_ERROR_NS UINT64_C(100000)

struct ascend_clock {
    aclrtStream stream;
    struct {
        aclrtEvent event;
        uint64_t time_ns;
    } bases[CLOCK_BASES];
    uint64_t generation;             /* of the newest, which is bases[generation % CLOCK_BASES] */
};

struct ascend_event {
    struct event base;
    aclrtEvent handle;
    atomic_uint_fast64_t recorded;   /* how often; written by the caller's thread */
    atomic_uint_fast64_t done;       /* the last record that was seen to be reached */
    atomic_uint_fast64_t seen_ns;    /* when it was seen first; written before `done` */
    uint64_t recorded_ns;            /* when it was recorded last, by the host */
    uint64_t generation;             /* of the clock, when it was recorded last */
    struct err error;                /* of the stream that was broken then */
};

static struct ascend_device *device_of(const struct ascend_event *event)
{
    return (struct ascend_device *)event->base.device;
}

static enum status create_handle(const struct ascend_device *device, aclrtEvent *handle_out,
                                 struct err *err)
{
    const struct ascend_cann *cann = device->cann;
    const bool ex = cann->aclrtCreateEventExWithFlag != NULL;
    const int code =
        ex ? cann->aclrtCreateEventExWithFlag(handle_out, ACL_EVENT_SYNC | ACL_EVENT_TIME_LINE)
           : cann->aclrtCreateEvent(handle_out);

    return code == ACL_SUCCESS
               ? STATUS_OK
               : ascend__fail(cann, device->base.info.name, code, err, "%s",
                              ex ? "aclrtCreateEventExWithFlag" : "aclrtCreateEvent");
}

/* ---- the clock ---- */

/* The last try counts: it took no longer than CLOCK_ERROR_NS, or there was no better one left. */
static enum status clock_set(const struct ascend_device *device, struct err *err)
{
    struct ascend_clock *clock = device->clock;
    const struct ascend_cann *cann = device->cann;
    const uint64_t next = clock->generation + 1;
    const aclrtEvent event = clock->bases[next % CLOCK_BASES].event;
    uint64_t before_ns = 0, took_ns = UINT64_MAX;

    for (int i = 0; i < CLOCK_TRIES && took_ns > CLOCK_ERROR_NS; i++) {
        int code;

        before_ns = clock_now_ns();
        code = cann->aclrtRecordEvent(event, clock->stream);
        if (code == ACL_SUCCESS)
            code = cann->aclrtSynchronizeEvent(event);
        if (code != ACL_SUCCESS)
            return ascend__fail(cann, device->base.info.name, code, err, "recording a time");
        took_ns = clock_now_ns() - before_ns;
    }
    clock->bases[next % CLOCK_BASES].time_ns = before_ns;
    clock->generation = next;
    return STATUS_OK;
}

enum status ascend__clock_create(struct ascend_device *device, struct err *err)
{
    struct ascend_clock *clock = calloc(1, sizeof(*clock));
    enum status st = STATUS_OK;
    int code;

    if (clock == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for a clock",
                       device->base.info.name);
    device->clock = clock;
    code = device->cann->aclrtCreateStreamWithConfig(&clock->stream, 0, ACL_STREAM_FAST_SYNC);
    if (code != ACL_SUCCESS) {
        clock->stream = NULL;
        return ascend__fail(device->cann, device->base.info.name, code, err,
                            "aclrtCreateStreamWithConfig");
    }
    for (uint32_t i = 0; st == STATUS_OK && i < CLOCK_BASES; i++)
        st = create_handle(device, &clock->bases[i].event, err);
    return st == STATUS_OK ? clock_set(device, err) : st;
}

void ascend__clock_destroy(struct ascend_device *device)
{
    struct ascend_clock *clock = device->clock;

    if (clock == NULL)
        return;
    for (uint32_t i = 0; i < CLOCK_BASES; i++)
        if (clock->bases[i].event != NULL)
            (void)device->cann->aclrtDestroyEvent(clock->bases[i].event);
    if (clock->stream != NULL)
        (void)device->cann->aclrtDestroyStream(clock->stream);
    free(clock);
    device->clock = NULL;
}

/* ---- events ---- */

enum status ascend__event_create(struct device *device, struct event **event_out, struct err *err)
{
    struct ascend_event *event = calloc(1, sizeof(*event));
    enum status st;

    if (event == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for an event", device->info.name);
    event->base.device = device;
    st = ascend__enter((struct ascend_device *)device, err);
    if (st == STATUS_OK)
        st = create_handle((struct ascend_device *)device, &event->handle, err);
    if (st != STATUS_OK) {
        free(event);
        return st;
    }
    *event_out = &event->base;
    return STATUS_OK;
}

void ascend__event_destroy(struct event *base)
{
    struct ascend_event *event = (struct ascend_event *)base;

    (void)ascend__event_sync(base, NULL); /* streams still have to pass it */
    (void)ascend__enter(device_of(event), NULL);
    (void)device_of(event)->cann->aclrtDestroyEvent(event->handle);
    free(event);
}

/* Notes that record `number` was reached; a later one may have been noted already. */
static void note_done(struct ascend_event *event, uint64_t number)
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

enum status ascend__event_record(struct stream *base, struct event *event_base, struct err *err)
{
    struct ascend_stream *stream = (struct ascend_stream *)base;
    struct ascend_event *event = (struct ascend_event *)event_base;
    struct ascend_device *device = device_of(event);
    const uint64_t number = atomic_load_explicit(&event->recorded, memory_order_relaxed) + 1;
    enum status st = ascend__enter(device, err);
    const struct ascend_clock *clock = device->clock;
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
    code = device->cann->aclrtRecordEvent(event->handle, stream->handle);
    if (code != ACL_SUCCESS)
        return ascend__fail(device->cann, device->base.info.name, code, err, "aclrtRecordEvent");
    event->generation = clock->generation;
    event->recorded_ns = recorded_ns;
    atomic_store_explicit(&event->recorded, number, memory_order_relaxed);
    return STATUS_OK;
}

enum status ascend__stream_wait(struct stream *base, struct event *event_base, struct err *err)
{
    struct ascend_stream *stream = (struct ascend_stream *)base;
    struct ascend_event *event = (struct ascend_event *)event_base;
    struct ascend_device *device = device_of(event);
    enum status st;
    int code;

    if (atomic_load_explicit(&event->done, memory_order_acquire) >=
        atomic_load_explicit(&event->recorded, memory_order_relaxed))
        return STATUS_OK; /* never recorded, or seen to be reached */
    st = ascend__enter(device, err);
    if (st != STATUS_OK || stream->error.status != STATUS_OK)
        return st;
    code = device->cann->aclrtStreamWaitEvent(stream->handle, event->handle);
    return code == ACL_SUCCESS ? STATUS_OK
                               : ascend__fail(device->cann, device->base.info.name, code, err,
                                              "aclrtStreamWaitEvent");
}

enum status ascend__event_sync(struct event *base, struct err *err)
{
    struct ascend_event *event = (struct ascend_event *)base;
    struct ascend_device *device = device_of(event);
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
    st = ascend__enter(device, err);
    if (st != STATUS_OK)
        return st;
    code = device->cann->aclrtSynchronizeEvent(event->handle);
    if (code != ACL_SUCCESS)
        return ascend__fail(device->cann, device->base.info.name, code, err,
                            "aclrtSynchronizeEvent");
    note_done(event, number);
    return STATUS_OK;
}

bool ascend__event_is_done(const struct event *base)
{
    struct ascend_event *event = (struct ascend_event *)base; /* it only notes here */
    const struct ascend_device *device = device_of(event);
    const uint64_t number = atomic_load_explicit(&event->recorded, memory_order_relaxed);
    aclrtEventRecordedStatus status = ACL_EVENT_RECORDED_STATUS_COMPLETE;

    if (atomic_load_explicit(&event->done, memory_order_acquire) >= number)
        return true;
    /* After a failure nothing will change any more; whoever waits for the stream gets to know. */
    if (ascend__enter(device, NULL) == STATUS_OK &&
        device->cann->aclrtQueryEventStatus(event->handle, &status) == ACL_SUCCESS &&
        status != ACL_EVENT_RECORDED_STATUS_COMPLETE)
        return false;
    note_done(event, number);
    return true;
}

/* Between the clock's event and this one; false where CANN cannot say, or no longer. */
static bool elapsed(const struct ascend_event *event, uint64_t *time_ns_out)
{
    const struct ascend_device *device = device_of(event);
    const struct ascend_clock *clock = device->clock;
    const uint64_t base = event->generation % CLOCK_BASES;
    float ms = 0;

    if (event->generation + CLOCK_BASES <= clock->generation || event->error.status != STATUS_OK ||
        ascend__enter(device, NULL) != STATUS_OK ||
        device->cann->aclrtEventElapsedTime(&ms, clock->bases[base].event, event->handle) !=
            ACL_SUCCESS)
        return false;
    *time_ns_out = clock->bases[base].time_ns + (ms > 0 ? (uint64_t)((double)ms * 1e6) : 0);
    return true;
}

uint64_t ascend__event_time_ns(const struct event *base)
{
    const struct ascend_event *event = (const struct ascend_event *)base;
    uint64_t seen_ns, time_ns = 0;

    if (!ascend__event_is_done(base))
        assert(!"only what is done has a time");
    seen_ns = atomic_load_explicit(&event->seen_ns, memory_order_relaxed);
    if (!elapsed(event, &time_ns) || time_ns > seen_ns)
        return seen_ns; /* it was reached before it was seen to be, whatever the clocks say */
    return time_ns > event->recorded_ns ? time_ns : event->recorded_ns;
}
