/* device/ascend/event.c - CANN's events: what device/event_clock.c makes marks with times of.
 *
 * CANN has three kinds. Those of aclrtCreateEventExWithFlag behave as device.h wants: they may be
 * recorded again and again, and a wait is for the last record before it. Where the installed CANN
 * lacks them, those of aclrtCreateEvent are used the same way, as ggml does; the third kind must be
 * reset between records, by a stream that nobody here could name. aclrtEventElapsedTime knows only
 * the time between two of them. */
#include "device/ascend/internal.h"

static const struct ascend_device *device_of(const struct device *base)
{
    return (const struct ascend_device *)base;
}

static enum status check(const struct device *base, int code, const char *what, struct err *err)
{
    return code == ACL_SUCCESS
               ? STATUS_OK
               : ascend__fail(device_of(base)->cann, base->info.name, code, err, "%s", what);
}

static enum status enter(const struct device *base, struct err *err)
{
    return ascend__enter(device_of(base), err);
}

static enum status clock_stream_create(const struct device *base, aclrtStream *stream_out,
                                       struct err *err)
{
    return check(base, device_of(base)->cann->aclrtCreateStreamWithConfig(stream_out, 0,
                                                                          ACL_STREAM_FAST_SYNC),
                 "aclrtCreateStreamWithConfig", err);
}

static void clock_stream_destroy(const struct device *base, aclrtStream stream)
{
    (void)device_of(base)->cann->aclrtDestroyStream(stream);
}

static enum status create(const struct device *base, aclrtEvent *event_out, struct err *err)
{
    const struct ascend_cann *cann = device_of(base)->cann;

    if (cann->aclrtCreateEventExWithFlag == NULL)
        return check(base, cann->aclrtCreateEvent(event_out), "aclrtCreateEvent", err);
    return check(base, cann->aclrtCreateEventExWithFlag(event_out,
                                                        ACL_EVENT_SYNC | ACL_EVENT_TIME_LINE),
                 "aclrtCreateEventExWithFlag", err);
}

static void destroy(const struct device *base, aclrtEvent event)
{
    (void)device_of(base)->cann->aclrtDestroyEvent(event);
}

static enum status record(const struct device *base, aclrtStream stream, aclrtEvent event,
                          struct err *err)
{
    return check(base, device_of(base)->cann->aclrtRecordEvent(event, stream), "aclrtRecordEvent",
                 err);
}

static enum status wait(const struct device *base, aclrtStream stream, aclrtEvent event,
                        struct err *err)
{
    return check(base, device_of(base)->cann->aclrtStreamWaitEvent(stream, event),
                 "aclrtStreamWaitEvent", err);
}

static enum status sync(const struct device *base, aclrtEvent event, struct err *err)
{
    return check(base, device_of(base)->cann->aclrtSynchronizeEvent(event),
                 "aclrtSynchronizeEvent", err);
}

static bool is_pending(const struct device *base, aclrtEvent event)
{
    aclrtEventRecordedStatus status = ACL_EVENT_RECORDED_STATUS_COMPLETE;

    return device_of(base)->cann->aclrtQueryEventStatus(event, &status) == ACL_SUCCESS &&
           status != ACL_EVENT_RECORDED_STATUS_COMPLETE;
}

static bool elapsed(const struct device *base, aclrtEvent from, aclrtEvent to, float *ms_out)
{
    return device_of(base)->cann->aclrtEventElapsedTime(ms_out, from, to) == ACL_SUCCESS;
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

enum status ascend__clock_create(struct ascend_device *device, struct err *err)
{
    return device__clock_create(&device->base, &calls, &device->clock, err);
}

enum status ascend__event_create(struct device *base, struct event **event_out, struct err *err)
{
    return device__event_create(base, device_of(base)->clock, event_out, err);
}

enum status ascend__event_record(struct stream *base, struct event *event, struct err *err)
{
    const struct ascend_stream *stream = (const struct ascend_stream *)base;

    return device__event_record(event, stream->handle, &stream->error, err);
}

enum status ascend__stream_wait(struct stream *base, struct event *event, struct err *err)
{
    const struct ascend_stream *stream = (const struct ascend_stream *)base;

    return device__event_wait(event, stream->handle, &stream->error, err);
}
