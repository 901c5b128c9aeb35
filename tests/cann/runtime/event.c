/* tests/cann/event.c - events of three kinds, and the marks that they leave in streams (1.3).
 *
 *     plain       aclrtCreateEvent: may be recorded again; the last record before a wait counts
 *     flagged     aclrtCreateEventWithFlag: one flag, which the record's task sets and the task of
 *                 aclrtResetEvent clears. A second record without a reset finds it set, so that
 *                 waits for it do not wait
 *     extended    aclrtCreateEventExWithFlag: as plain; a query before a record says complete; no
 *                 reset
 *
 * A stream that waits for a flagged or extended event needs ACL_EVENT_SYNC, its time needs
 * ACL_EVENT_TIME_LINE. A wait for a plain or flagged event that was never recorded would hang on
 * hardware; here it is an error. */
#include "internal.h"

#include <stdlib.h>
#include <time.h>

enum event_kind { EVENT_PLAIN, EVENT_FLAGGED, EVENT_EXTENDED };
#define EVENT_EXTERNAL 0x20u
#define EVENT_IPC 0x40u
#define EVENT_FLAGS_KNOWN 0x6fu

struct mark {
    unsigned references;  /* guarded by marks */
    bool is_done;         /* guarded by marks */
    uint64_t time_ns;
};

struct event {
    enum event_kind kind;
    uint32_t flags;
    struct context *context;
    int device_id;
    struct mark *mark;    /* of the last record; NULL: none. guarded by world */
    struct event *next;   /* guarded by world */
};

struct mark_task {
    struct task task;
    struct mark *mark;
};

static pthread_mutex_t marks = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t mark_done = PTHREAD_COND_INITIALIZER;
static struct event *events; /* guarded by world */

/* ---- marks ---- */

struct mark *standin_mark_new(void)
{
    struct mark *mark = calloc(1, sizeof(*mark));

    if (mark != NULL)
        mark->references = 1;
    return mark;
}

struct mark *standin_mark_ref(struct mark *mark)
{
    pthread_mutex_lock(&marks);
    mark->references++;
    pthread_mutex_unlock(&marks);
    return mark;
}

void standin_mark_unref(struct mark *mark)
{
    bool last;

    if (mark == NULL)
        return;
    pthread_mutex_lock(&marks);
    last = --mark->references == 0;
    pthread_mutex_unlock(&marks);
    if (last)
        free(mark);
}

static uint64_t now_ns(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void mark_finish(struct mark *mark, bool again)
{
    pthread_mutex_lock(&marks);
    if (!mark->is_done || again)
        mark->time_ns = now_ns();
    mark->is_done = true;
    pthread_cond_broadcast(&mark_done);
    pthread_mutex_unlock(&marks);
}

static void mark_run(struct task *task, struct stream *stream)
{
    (void)stream;
    mark_finish(((struct mark_task *)task)->mark, true);
}

static void clear_run(struct task *task, struct stream *stream)
{
    (void)stream;
    pthread_mutex_lock(&marks);
    ((struct mark_task *)task)->mark->is_done = false;
    pthread_mutex_unlock(&marks);
}

static void wait_run(struct task *task, struct stream *stream)
{
    (void)stream;
    standin_mark_wait(((struct mark_task *)task)->mark, -1);
}

/* A mark whose task is dropped is done too: nobody waits for ever. */
static void mark_drop(struct task *task)
{
    struct mark_task *mine = (struct mark_task *)task;

    if (task->run == mark_run)
        mark_finish(mine->mark, false);
    standin_mark_unref(mine->mark);
    free(mine);
}

static void push(struct stream *stream, struct mark *mark,
                 void (*run)(struct task *task, struct stream *stream))
{
    struct mark_task *task = calloc(1, sizeof(*task));

    if (task == NULL)
        abort();
    task->task.run = run;
    task->task.drop = mark_drop;
    task->task.is_prompt = true;
    task->task.is_instant = run == mark_run;
    task->mark = standin_mark_ref(mark);
    standin_stream_push(stream, &task->task);
}

void standin_mark_push(struct stream *stream, struct mark *mark)
{
    push(stream, mark, mark_run);
}

void standin_mark_wait_push(struct stream *stream, struct mark *mark)
{
    push(stream, mark, wait_run);
}

bool standin_mark_done(struct mark *mark)
{
    bool done;

    pthread_mutex_lock(&marks);
    done = mark->is_done;
    pthread_mutex_unlock(&marks);
    return done;
}

uint64_t standin_mark_time_ns(struct mark *mark)
{
    uint64_t time_ns;

    pthread_mutex_lock(&marks);
    time_ns = mark->time_ns;
    pthread_mutex_unlock(&marks);
    return time_ns;
}

bool standin_mark_wait(struct mark *mark, int timeout_ms)
{
    struct timespec end;
    bool done, late = false;

    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += timeout_ms / 1000;
    end.tv_nsec += timeout_ms % 1000 * 1000000L;
    if (end.tv_nsec >= 1000000000) {
        end.tv_nsec -= 1000000000;
        end.tv_sec++;
    }
    pthread_mutex_lock(&marks);
    while (!mark->is_done && !late) {
        if (timeout_ms < 0)
            pthread_cond_wait(&mark_done, &marks);
        else
            late = pthread_cond_timedwait(&mark_done, &marks, &end) != 0;
    }
    done = mark->is_done;
    pthread_mutex_unlock(&marks);
    return done;
}

/* ---- events ---- */

static int create(const char *function, aclrtEvent *event_out, enum event_kind kind,
                  uint32_t flags)
{
    struct context *context = standin_context(function);
    struct event *event;
    const bool alone = (flags & (EVENT_EXTERNAL | EVENT_IPC)) != 0;

    if (context == NULL)
        return E_CONTEXT_NULL;
    if (event_out == NULL || (flags & ~EVENT_FLAGS_KNOWN) != 0 ||
        (kind != EVENT_PLAIN && flags == 0) || (alone && (flags & (flags - 1)) != 0))
        return standin_error(E_PARAM, "%s: flags %#x", function, flags);
    if (cann_standin_counter("live_events") >= standin_settings.event_count_max)
        return standin_error(E_NO_EVENT, "%s: no more events", function);
    event = calloc(1, sizeof(*event));
    if (event == NULL)
        return standin_error(E_MEMORY, "%s: no memory", function);
    event->kind = kind;
    event->flags = flags;
    event->context = context;
    event->device_id = context->device_id;
    pthread_mutex_lock(&standin_world);
    event->next = events;
    events = event;
    pthread_mutex_unlock(&standin_world);
    standin_count("live_events", 1);
    *event_out = event;
    return 0;
}

aclError aclrtCreateEvent(aclrtEvent *event)
{
    ENTER(aclrtCreateEvent);
    return create("aclrtCreateEvent", event, EVENT_PLAIN, 0);
}

aclError aclrtCreateEventWithFlag(aclrtEvent *event, uint32_t flags)
{
    ENTER(aclrtCreateEventWithFlag);
    return create("aclrtCreateEventWithFlag", event, EVENT_FLAGGED, flags);
}

aclError aclrtCreateEventExWithFlag(aclrtEvent *event, uint32_t flags)
{
    ENTER(aclrtCreateEventExWithFlag);
    return create("aclrtCreateEventExWithFlag", event, EVENT_EXTENDED, flags);
}

/* The event behind a handle, and a reference to its mark. NULL with an error otherwise. */
static struct event *find(const char *function, void *handle, struct mark **mark_out,
                          int *code_out)
{
    struct event *event;

    *code_out = standin_context(function) == NULL ? E_CONTEXT_NULL : 0;
    if (*code_out != 0)
        return NULL;
    pthread_mutex_lock(&standin_world);
    for (event = events; event != NULL && event != handle; event = event->next)
        ;
    *mark_out = event != NULL && event->mark != NULL ? standin_mark_ref(event->mark) : NULL;
    pthread_mutex_unlock(&standin_world);
    if (event == NULL)
        *code_out = standin_error(E_HANDLE, "%s: %p is no event", function, handle);
    return event;
}

aclError aclrtDestroyEvent(aclrtEvent handle)
{
    struct event *event, **link;
    struct mark *mark;
    int code;

    ENTER(aclrtDestroyEvent);
    event = find("aclrtDestroyEvent", handle, &mark, &code);
    if (event == NULL)
        return code;
    pthread_mutex_lock(&standin_world);
    for (link = &events; *link != event; link = &(*link)->next)
        ;
    *link = event->next;
    pthread_mutex_unlock(&standin_world);
    standin_mark_unref(mark);
    standin_mark_unref(event->mark);
    free(event);
    standin_uncount("live_events", 1);
    return 0;
}

aclError aclrtRecordEvent(aclrtEvent handle, aclrtStream stream_handle)
{
    struct stream *stream;
    struct event *event;
    struct mark *mark, *fresh;
    int code;

    ENTER(aclrtRecordEvent);
    stream = standin_stream(stream_handle, "aclrtRecordEvent", &code);
    if (stream == NULL)
        return code;
    event = find("aclrtRecordEvent", handle, &mark, &code);
    if (event == NULL)
        return code;
    if (event->context != standin_stream_context(stream)) {
        standin_mark_unref(mark);
        return standin_error(E_STREAM_CONTEXT, "aclrtRecordEvent: the event is of another context");
    }
    if (event->kind == EVENT_FLAGGED && mark != NULL) {
        standin_mark_push(stream, mark);
        standin_mark_unref(mark);
        return 0;
    }
    standin_mark_unref(mark);
    fresh = standin_mark_new();
    if (fresh == NULL)
        return standin_error(E_MEMORY, "aclrtRecordEvent: no memory");
    standin_mark_push(stream, fresh);
    pthread_mutex_lock(&standin_world);
    mark = event->mark;
    event->mark = fresh;
    pthread_mutex_unlock(&standin_world);
    standin_mark_unref(mark);
    return 0;
}

aclError aclrtResetEvent(aclrtEvent handle, aclrtStream stream_handle)
{
    struct stream *stream;
    struct event *event;
    struct mark *mark;
    int code;

    ENTER(aclrtResetEvent);
    stream = standin_stream(stream_handle, "aclrtResetEvent", &code);
    if (stream == NULL)
        return code;
    event = find("aclrtResetEvent", handle, &mark, &code);
    if (event == NULL)
        return code;
    if (event->kind != EVENT_FLAGGED || mark == NULL)
        code = standin_error(E_PARAM, "aclrtResetEvent: only for recorded events of "
                             "aclrtCreateEventWithFlag");
    else
        push(stream, mark, clear_run);
    standin_mark_unref(mark);
    return code;
}

aclError aclrtStreamWaitEvent(aclrtStream stream_handle, aclrtEvent handle)
{
    struct stream *stream;
    struct event *event;
    struct mark *mark;
    int code;

    ENTER(aclrtStreamWaitEvent);
    stream = standin_stream(stream_handle, "aclrtStreamWaitEvent", &code);
    if (stream == NULL)
        return code;
    event = find("aclrtStreamWaitEvent", handle, &mark, &code);
    if (event == NULL)
        return code;
    if (event->kind != EVENT_PLAIN && (event->flags & ACL_EVENT_SYNC) == 0)
        code = standin_error(E_PARAM, "aclrtStreamWaitEvent: the event lacks ACL_EVENT_SYNC");
    else if (mark == NULL && event->kind != EVENT_EXTENDED)
        code = standin_error(E_PARAM, "aclrtStreamWaitEvent: the event was never recorded");
    else if (mark != NULL)
        standin_mark_wait_push(stream, mark);
    standin_mark_unref(mark);
    return code;
}

aclError aclrtQueryEventStatus(aclrtEvent handle, aclrtEventRecordedStatus *status)
{
    struct event *event;
    struct mark *mark;
    int code;

    ENTER(aclrtQueryEventStatus);
    if (status == NULL)
        return standin_error(E_PARAM, "aclrtQueryEventStatus: a null argument");
    event = find("aclrtQueryEventStatus", handle, &mark, &code);
    if (event == NULL)
        return code;
    if (mark != NULL ? standin_mark_done(mark) : event->kind == EVENT_EXTENDED)
        *status = ACL_EVENT_RECORDED_STATUS_COMPLETE;
    else
        *status = ACL_EVENT_RECORDED_STATUS_NOT_READY;
    standin_mark_unref(mark);
    return 0;
}

static int synchronize(const char *function, aclrtEvent handle, int timeout_ms)
{
    struct event *event;
    struct mark *mark;
    int code;

    event = find(function, handle, &mark, &code);
    if (event == NULL)
        return code;
    if (mark == NULL && event->kind != EVENT_EXTENDED)
        return standin_error(E_PARAM, "%s: the event was never recorded", function);
    if (mark != NULL && !standin_mark_wait(mark, timeout_ms))
        code = standin_error(E_EVENT_TIMEOUT, "%s: not recorded after %d ms", function,
                             timeout_ms);
    standin_mark_unref(mark);
    pthread_mutex_lock(&standin_world);
    if (code == 0 && event->context->error != 0)
        code = event->context->error;
    pthread_mutex_unlock(&standin_world);
    return code;
}

aclError aclrtSynchronizeEvent(aclrtEvent handle)
{
    ENTER(aclrtSynchronizeEvent);
    return synchronize("aclrtSynchronizeEvent", handle, -1);
}

aclError aclrtSynchronizeEventWithTimeout(aclrtEvent handle, int32_t timeout_ms)
{
    ENTER(aclrtSynchronizeEventWithTimeout);
    return synchronize("aclrtSynchronizeEventWithTimeout", handle, timeout_ms);
}

static bool has_time(const struct event *event)
{
    return event->kind == EVENT_PLAIN || (event->flags & ACL_EVENT_TIME_LINE) != 0;
}

aclError aclrtEventElapsedTime(float *ms_out, aclrtEvent from_handle, aclrtEvent to_handle)
{
    struct event *from, *to;
    struct mark *from_mark = NULL, *to_mark = NULL;
    int code;

    ENTER(aclrtEventElapsedTime);
    if (ms_out == NULL)
        return standin_error(E_PARAM, "aclrtEventElapsedTime: a null argument");
    from = find("aclrtEventElapsedTime", from_handle, &from_mark, &code);
    to = from != NULL ? find("aclrtEventElapsedTime", to_handle, &to_mark, &code) : NULL;
    if (to == NULL)
        ; /* find has said why */
    else if (!has_time(from) || !has_time(to))
        code = standin_error(E_PARAM, "aclrtEventElapsedTime: an event lacks ACL_EVENT_TIME_LINE");
    else if (from_mark == NULL || to_mark == NULL || !standin_mark_done(from_mark) ||
             !standin_mark_done(to_mark))
        code = standin_error(E_PARAM, "aclrtEventElapsedTime: an event is not complete");
    else
        *ms_out = (float)((double)(int64_t)(standin_mark_time_ns(to_mark) -
                                            standin_mark_time_ns(from_mark)) / 1e6);
    standin_mark_unref(from_mark);
    standin_mark_unref(to_mark);
    return code;
}

void standin_events_close(int device_id, bool leaks)
{
    struct event **link = &events;
    unsigned lost = 0;

    pthread_mutex_lock(&standin_world);
    while (*link != NULL) {
        struct event *event = *link;
        if (event->device_id != device_id) {
            link = &event->next;
            continue;
        }
        *link = event->next;
        standin_mark_unref(event->mark);
        free(event);
        lost++;
    }
    pthread_mutex_unlock(&standin_world);
    standin_uncount("live_events", lost);
    if (lost > 0 && leaks)
        standin_leak("%u events of device %d", lost, device_id);
}
