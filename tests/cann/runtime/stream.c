/* tests/cann/stream.c - streams: a queue and a thread each (reference 1.3).
 *
 * A worker waits a little before it begins a task, by chance, so that streams overtake one another
 * unless an event keeps them in order. The chance is seeded. A device fault poisons the context:
 * the next synchronize answers with it, as do all that follow. */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#define MAGIC UINT64_C(0x5354524541d)

struct stream {
    uint64_t magic;
    struct context *context;
    pthread_t thread;
    pthread_mutex_t lock;       /* guards the queue */
    pthread_cond_t changed;
    struct task *first, **last;
    unsigned unfinished;        /* tasks that take time; guarded by lock */
    bool ends;                  /* after what is queued */
    bool drops;                 /* what is queued */
    uint64_t chance;
    struct stream *next;        /* of all; guarded by world */
};

static struct stream *streams;  /* guarded by world */
static uint64_t stream_serial;  /* guarded by world */
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gate_opened = PTHREAD_COND_INITIALIZER;
static bool gate_closed;        /* guarded by gate */

static void loiter(struct stream *stream)
{
    const unsigned us_max = standin_settings.delay_us_max;
    uint64_t chance;

    pthread_mutex_lock(&gate);
    while (gate_closed)
        pthread_cond_wait(&gate_opened, &gate);
    pthread_mutex_unlock(&gate);
    chance = standin_random(&stream->chance);
    if (us_max > 0 && chance % 4 == 0) {
        const uint64_t us = (chance >> 8) % us_max * (chance % 64 == 0 ? 10 : 1);
        const struct timespec time = { .tv_nsec = (long)(us % 100000 * 1000) };
        nanosleep(&time, NULL);
    }
}

static void *stream_main(void *argument)
{
    struct stream *stream = argument;

    for (;;) {
        struct task *task;
        bool drops;

        pthread_mutex_lock(&stream->lock);
        while (stream->first == NULL && !stream->ends)
            pthread_cond_wait(&stream->changed, &stream->lock);
        task = stream->first;
        if (task != NULL && (stream->first = task->next) == NULL)
            stream->last = &stream->first;
        drops = stream->drops;
        pthread_mutex_unlock(&stream->lock);
        if (task == NULL)
            return NULL;
        if (!drops) {
            if (!task->is_prompt)
                loiter(stream);
            task->run(task, stream);
        }
        if (!task->is_instant) {
            pthread_mutex_lock(&stream->lock);
            stream->unfinished--;
            pthread_mutex_unlock(&stream->lock);
        }
        task->drop(task);
    }
}

void standin_stream_push(struct stream *stream, struct task *task)
{
    task->next = NULL;
    pthread_mutex_lock(&stream->lock);
    *stream->last = task;
    stream->last = &task->next;
    stream->unfinished += !task->is_instant;
    pthread_cond_signal(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
}

void standin_streams_hold(bool held)
{
    pthread_mutex_lock(&gate);
    gate_closed = held;
    pthread_cond_broadcast(&gate_opened);
    pthread_mutex_unlock(&gate);
}

void cann_standin_hold(bool held)
{
    standin_streams_hold(held);
}

static struct stream *stream_new(struct context *context)
{
    struct stream *stream = calloc(1, sizeof(*stream));

    if (stream == NULL)
        return NULL;
    stream->magic = MAGIC;
    stream->context = context;
    stream->last = &stream->first;
    pthread_mutex_init(&stream->lock, NULL);
    pthread_cond_init(&stream->changed, NULL);
    pthread_mutex_lock(&standin_world);
    stream->chance = standin_settings.seed + (++stream_serial << 32);
    pthread_mutex_unlock(&standin_world);
    if (pthread_create(&stream->thread, NULL, stream_main, stream) != 0) {
        free(stream);
        return NULL;
    }
    pthread_mutex_lock(&standin_world);
    stream->next = streams;
    streams = stream;
    pthread_mutex_unlock(&standin_world);
    return stream;
}

static void stream_end(struct stream *stream, bool drops)
{
    pthread_mutex_lock(&standin_world);
    for (struct stream **link = &streams; *link != NULL; link = &(*link)->next) {
        if (*link == stream) {
            *link = stream->next;
            break;
        }
    }
    pthread_mutex_unlock(&standin_world);
    pthread_mutex_lock(&stream->lock);
    stream->ends = true;
    stream->drops = drops;
    pthread_cond_signal(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
    pthread_join(stream->thread, NULL);
    pthread_mutex_destroy(&stream->lock);
    pthread_cond_destroy(&stream->changed);
    stream->magic = 0;
    free(stream);
}

/* The context's own stream, made by its first use. */
static struct stream *default_stream(struct context *context)
{
    static pthread_mutex_t making = PTHREAD_MUTEX_INITIALIZER; /* guards default_stream */
    struct stream *stream;

    pthread_mutex_lock(&making);
    if (context->default_stream == NULL)
        context->default_stream = stream_new(context);
    stream = context->default_stream;
    pthread_mutex_unlock(&making);
    return stream;
}

struct stream *standin_stream(void *handle, const char *function, int *code_out)
{
    struct context *context = standin_context(function);
    struct stream *stream;

    *code_out = E_CONTEXT_NULL;
    if (context == NULL)
        return NULL;
    *code_out = 0;
    if (handle == NULL) {
        stream = default_stream(context);
        if (stream == NULL)
            *code_out = standin_error(E_NO_STREAM, "%s: no default stream", function);
        return stream;
    }
    pthread_mutex_lock(&standin_world);
    for (stream = streams; stream != NULL && stream != handle; stream = stream->next)
        ;
    pthread_mutex_unlock(&standin_world);
    if (stream == NULL)
        *code_out = standin_error(E_HANDLE, "%s: %p is no stream", function, handle);
    else if (stream->context != context)
        *code_out = standin_error(E_STREAM_CONTEXT, "%s: the stream is of another context",
                                  function);
    return *code_out == 0 ? stream : NULL;
}

int standin_stream_device(const struct stream *stream)
{
    return stream->context->device_id;
}

struct context *standin_stream_context(const struct stream *stream)
{
    return stream->context;
}

void standin_stream_poison(struct stream *stream, int code)
{
    pthread_mutex_lock(&standin_world);
    if (stream->context->error == 0)
        stream->context->error = code;
    pthread_mutex_unlock(&standin_world);
}

int standin_stream_drain(struct stream *stream, int timeout_ms)
{
    struct mark *mark = standin_mark_new();
    int code;

    if (mark == NULL)
        return standin_error(E_MEMORY, "no memory for a mark");
    standin_mark_push(stream, mark);
    code = standin_mark_wait(mark, timeout_ms) ? 0 : E_STREAM_TIMEOUT;
    standin_mark_unref(mark);
    pthread_mutex_lock(&standin_world);
    if (code == 0)
        code = stream->context->error;
    pthread_mutex_unlock(&standin_world);
    if (code == E_STREAM_TIMEOUT)
        return standin_error(code, "the stream is not done after %d ms", timeout_ms);
    if (code != 0)
        return standin_error(code, "%s", cann_standin_fault());
    return 0;
}

/* Streams of a context, one after the other; the caller keeps it alive. */
int standin_streams_drain(struct context *context)
{
    struct stream *some[64];
    size_t count = 0;
    int code = 0;

    pthread_mutex_lock(&standin_world);
    for (struct stream *s = streams; s != NULL && count < 64; s = s->next) {
        if (s->context == context)
            some[count++] = s;
    }
    pthread_mutex_unlock(&standin_world);
    for (size_t i = 0; i < count; i++) {
        const int one = standin_stream_drain(some[i], -1);
        code = code != 0 ? code : one;
    }
    return code;
}

void standin_streams_close(struct context *context, bool leaks)
{
    unsigned lost = 0;

    for (;;) {
        struct stream *stream;
        pthread_mutex_lock(&standin_world);
        for (stream = streams; stream != NULL && stream->context != context; stream = stream->next)
            ;
        pthread_mutex_unlock(&standin_world);
        if (stream == NULL)
            break;
        lost += stream != context->default_stream;
        stream_end(stream, !leaks);
    }
    context->default_stream = NULL;
    standin_uncount("live_streams", lost);
    if (lost > 0 && leaks)
        standin_leak("%u streams of device %d", lost, context->device_id);
}

aclError aclrtCreateStream(aclrtStream *stream_out)
{
    ENTER(aclrtCreateStream);
    return aclrtCreateStreamWithConfig(stream_out, 0, 0);
}

aclError aclrtCreateStreamWithConfig(aclrtStream *stream_out, uint32_t priority, uint32_t flags)
{
    struct context *context;
    struct stream *stream = NULL;

    ENTER(aclrtCreateStreamWithConfig);
    context = standin_context("aclrtCreateStreamWithConfig");
    if (context == NULL)
        return E_CONTEXT_NULL;
    if (stream_out == NULL || priority != 0 ||
        (flags & ~(ACL_STREAM_FAST_LAUNCH | ACL_STREAM_FAST_SYNC)) != 0)
        return standin_error(E_PARAM, "aclrtCreateStreamWithConfig: priority %u, flags %#x",
                             priority, flags);
    if (cann_standin_counter("live_streams") < standin_settings.stream_count_max)
        stream = stream_new(context);
    if (stream == NULL)
        return standin_error(E_NO_STREAM, "aclrtCreateStreamWithConfig: no more streams");
    standin_count("live_streams", 1);
    *stream_out = stream;
    return 0;
}

static int destroy(const char *function, aclrtStream handle, bool drops)
{
    struct stream *stream;
    int code;

    if (handle == NULL)
        return standin_error(E_PARAM, "%s: a null argument", function);
    stream = standin_stream(handle, function, &code);
    if (stream == NULL)
        return code;
    stream_end(stream, drops);
    standin_uncount("live_streams", 1);
    return 0;
}

aclError aclrtDestroyStream(aclrtStream handle)
{
    ENTER(aclrtDestroyStream);
    return destroy("aclrtDestroyStream", handle, false);
}

aclError aclrtDestroyStreamForce(aclrtStream handle)
{
    ENTER(aclrtDestroyStreamForce);
    return destroy("aclrtDestroyStreamForce", handle, true);
}

aclError aclrtSynchronizeStream(aclrtStream handle)
{
    struct stream *stream;
    int code;

    ENTER(aclrtSynchronizeStream);
    stream = standin_stream(handle, "aclrtSynchronizeStream", &code);
    return stream != NULL ? standin_stream_drain(stream, -1) : code;
}

aclError aclrtSynchronizeStreamWithTimeout(aclrtStream handle, int32_t timeout_ms)
{
    struct stream *stream;
    int code;

    ENTER(aclrtSynchronizeStreamWithTimeout);
    stream = standin_stream(handle, "aclrtSynchronizeStreamWithTimeout", &code);
    return stream != NULL ? standin_stream_drain(stream, timeout_ms) : code;
}

aclError aclrtStreamQuery(aclrtStream handle, aclrtStreamStatus *status)
{
    struct stream *stream;
    int code;

    ENTER(aclrtStreamQuery);
    if (status == NULL)
        return standin_error(E_PARAM, "aclrtStreamQuery: a null argument");
    stream = standin_stream(handle, "aclrtStreamQuery", &code);
    if (stream == NULL)
        return code;
    pthread_mutex_lock(&stream->lock);
    *status = stream->unfinished != 0 ? ACL_STREAM_STATUS_NOT_READY : ACL_STREAM_STATUS_COMPLETE;
    pthread_mutex_unlock(&stream->lock);
    pthread_mutex_lock(&standin_world);
    code = stream->context->error;
    pthread_mutex_unlock(&standin_world);
    return code == 0 ? 0 : standin_error(code, "%s", cann_standin_fault());
}
