/* device/cuda/event.c - CUDA's events: what device/event_clock.c makes marks with times of.
 *
 * They behave as device.h wants: they may be recorded again and again, and a wait is for the last
 * record before it. cudaEventElapsedTime knows only the time between two of them. */
#include "device/cuda/internal.h"

static const struct cuda_device *device_of(const struct device *base)
{
    return (const struct cuda_device *)base;
}

static enum status check(const struct device *base, int code, const char *what, struct err *err)
{
    return code == 0 ? STATUS_OK
                     : cuda__fail(device_of(base)->module, base->info.name, code, err, "%s", what);
}

static enum status enter(const struct device *base, struct err *err)
{
    return cuda__enter(device_of(base), err);
}

static enum status clock_stream_create(const struct device *base, void **stream_out,
                                       struct err *err)
{
    return check(base, device_of(base)->module->stream_create(stream_out),
                 "cudaStreamCreateWithFlags", err);
}

static void clock_stream_destroy(const struct device *base, void *stream)
{
    (void)device_of(base)->module->stream_destroy(stream);
}

static enum status create(const struct device *base, void **event_out, struct err *err)
{
    return check(base, device_of(base)->module->event_create(event_out),
                 "cudaEventCreateWithFlags", err);
}

static void destroy(const struct device *base, void *event)
{
    (void)device_of(base)->module->event_destroy(event);
}

static enum status record(const struct device *base, void *stream, void *event, struct err *err)
{
    return check(base, device_of(base)->module->event_record(stream, event), "cudaEventRecord",
                 err);
}

static enum status wait(const struct device *base, void *stream, void *event, struct err *err)
{
    return check(base, device_of(base)->module->event_wait(stream, event), "cudaStreamWaitEvent",
                 err);
}

static enum status sync(const struct device *base, void *event, struct err *err)
{
    return check(base, device_of(base)->module->event_sync(event), "cudaEventSynchronize", err);
}

static bool is_pending(const struct device *base, void *event)
{
    bool done = true;

    return device_of(base)->module->event_is_done(event, &done) == 0 && !done;
}

static bool elapsed(const struct device *base, void *from, void *to, float *ms_out)
{
    return device_of(base)->module->event_elapsed(from, to, ms_out) == 0;
}

static const struct device_clock_calls calls = {
    .enter = enter,
    .stream_create = clock_stream_create,
    .stream_destroy = clock_stream_destroy,
    .create = create,
    .destroy = destroy,
    .record = record,
    .wait = wait,
    .sync = sync,
    .is_pending = is_pending,
    .elapsed = elapsed,
};

enum status cuda__clock_create(struct cuda_device *device, struct err *err)
{
    return device__clock_create(&device->base, &calls, &device->clock, err);
}

enum status cuda__event_create(struct device *base, struct event **event_out, struct err *err)
{
    return device__event_create(base, device_of(base)->clock, event_out, err);
}

/* Queues the operators before a mark or a wait; if that fails the stream is broken. */
static void flush(struct cuda_stream *stream)
{
    if (stream->error.status == STATUS_OK &&
        cuda__enter(device_of(stream->base.device), NULL) == STATUS_OK)
        (void)cuda__graphs_flush(stream, NULL);
}

enum status cuda__event_record(struct stream *base, struct event *event, struct err *err)
{
    struct cuda_stream *stream = (struct cuda_stream *)base;

    flush(stream);
    return device__event_record(event, stream->handle, &stream->error, err);
}

enum status cuda__stream_wait(struct stream *base, struct event *event, struct err *err)
{
    struct cuda_stream *stream = (struct cuda_stream *)base;

    flush(stream);
    return device__event_wait(event, stream->handle, &stream->error, err);
}
