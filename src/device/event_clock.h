/* device/event_clock.h - events of a runtime that tells only the time between two of them, and
 * their times on the host's clock; only for files inside device/.
 *
 * For back ends whose runtime's own events may be recorded again and again, a wait being for the
 * last record before it. They give the few calls below, and get the functions that backend.h asks
 * for. A device has one clock, which outlives its events.
 *
 * Threads: device__event_is_done and device__event_time_ns may come from any, as device.h has it;
 * so enter, is_pending and elapsed may, too. */
#ifndef LIGHTER_DEVICE_EVENT_CLOCK_H
#define LIGHTER_DEVICE_EVENT_CLOCK_H

#include "device/backend.h"

/* The runtime's streams and events, as addresses. Whoever fails says which call did. */
struct device_clock_calls {
    /* Chooses the device for the calling thread; what follows is called after it. */
    enum status (*enter)(const struct device *device, struct err *err);
    enum status (*stream_create)(const struct device *device, void **stream_out, struct err *err);
    void (*stream_destroy)(const struct device *device, void *stream);
    enum status (*create)(const struct device *device, void **event_out, struct err *err);
    void (*destroy)(const struct device *device, void *event);
    enum status (*record)(const struct device *device, void *stream, void *event,
                          struct err *err);
    enum status (*wait)(const struct device *device, void *stream, void *event, struct err *err);
    enum status (*sync)(const struct device *device, void *event, struct err *err);
    /* Whether the last record is known not to be reached yet; not so after a failure. */
    bool (*is_pending)(const struct device *device, void *event);
    /* Between two events that are reached; false: it cannot say. */
    bool (*elapsed)(const struct device *device, void *from, void *to, float *ms_out);
};

struct device_clock;

/* For a device that the calling thread has entered. calls is borrowed. The caller owns
 * *clock_out. */
enum status device__clock_create(const struct device *device,
                                 const struct device_clock_calls *calls,
                                 struct device_clock **clock_out, struct err *err);
/* NULL is fine. The calling thread has entered the device. */
void device__clock_destroy(struct device_clock *clock);

enum status device__event_create(struct device *device, struct device_clock *clock,
                                 struct event **event_out, struct err *err);
void device__event_destroy(struct event *event);
/* stream_error: of the stream so far. A mark on a broken stream is reached at once, and whoever
 * waits for it gets to know. */
enum status device__event_record(struct event *event, void *stream, const struct err *stream_error,
                                 struct err *err);
/* Queues a wait on the stream, unless that is broken or there is nothing left to wait for. */
enum status device__event_wait(struct event *event, void *stream, const struct err *stream_error,
                               struct err *err);
enum status device__event_sync(struct event *event, struct err *err);
bool device__event_is_done(const struct event *event);
uint64_t device__event_time_ns(const struct event *event);

#endif
