/* tests/cuda/streams.cpp - streams as threads, events, copies, launches, graphs.
 *
 * A capture here has launches alone, as device/cuda has them: any other call of the thread spoils
 * it, a launch on another stream too, and nothing that is captured runs.
 *
 * A copy from or to memory that is not registered waits, as CUDA's do: such copies are counted.
 * Part registered and part not is refused. An event's time is when its stream came to it. */
#include "standin.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

struct standin_graph {
    std::vector<std::function<void()>> kernels;
    bool is_spoilt = false;
};

struct standin_ready_graph {
    std::vector<std::function<void()>> kernels;
};

struct standin_stream {
    standin_graph *captured = nullptr; /* owner: the thread that captures */
    std::mutex lock; /* guards what follows */
    std::condition_variable changed;
    std::deque<std::function<void()>> queue;
    uint64_t queued = 0, ended = 0;
    bool stopping = false;
    std::thread worker;
};

struct standin_event {
    std::mutex lock; /* guards what follows */
    std::condition_variable changed;
    uint64_t recorded = 0, reached = 0;
    std::chrono::steady_clock::time_point time;
};

namespace {

thread_local standin_stream *capturing; /* this thread */

std::mutex allowed_lock; /* guards `allowed` */
std::map<const void *, int> allowed;

void work(standin_stream *stream)
{
    std::unique_lock<std::mutex> guard(stream->lock);

    for (;;) {
        stream->changed.wait(guard,
                             [stream] { return stream->stopping || !stream->queue.empty(); });
        if (stream->queue.empty())
            break;
        const std::function<void()> job = stream->queue.front();
        stream->queue.pop_front();
        guard.unlock();
        job();
        guard.lock();
        stream->ended++;
        stream->changed.notify_all();
    }
    standin_end_thread();
}

void queue(standin_stream *stream, std::function<void()> job)
{
    const std::lock_guard<std::mutex> guard(stream->lock);

    stream->queue.push_back(std::move(job));
    stream->queued++;
    stream->changed.notify_all();
}

void wait_reached(standin_event *event, uint64_t number)
{
    std::unique_lock<std::mutex> guard(event->lock);

    event->changed.wait(guard, [event, number] { return event->reached >= number; });
}

} /* namespace */

bool standin_spoils_capture()
{
    if (capturing == nullptr)
        return false;
    capturing->captured->is_spoilt = true;
    return true;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream_out, unsigned flags)
{
    const cudaError_t code = standin_enter("cudaStreamCreateWithFlags");

    (void)flags;
    if (code != cudaSuccess)
        return code;
    *stream_out = new standin_stream();
    (*stream_out)->worker = std::thread(work, *stream_out);
    standin_count("live_streams", 1);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    if (standin_spoils_capture())
        return cudaErrorStreamCaptureUnsupported;
    std::unique_lock<std::mutex> guard(stream->lock);
    const uint64_t queued = stream->queued;

    stream->changed.wait(guard, [stream, queued] { return stream->ended >= queued; });
    guard.unlock();
    return standin_enter("cudaStreamSynchronize");
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    if (standin_spoils_capture())
        return cudaErrorStreamCaptureUnsupported;
    {
        const std::lock_guard<std::mutex> guard(stream->lock);

        stream->stopping = true;
        stream->changed.notify_all();
    }
    stream->worker.join();
    delete stream;
    standin_count("live_streams", -1);
    return cudaSuccess;
}

/* ---- events ---- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event_out, unsigned flags)
{
    const cudaError_t code = standin_enter("cudaEventCreateWithFlags");

    (void)flags;
    if (code != cudaSuccess)
        return code;
    *event_out = new standin_event();
    standin_count("live_events", 1);
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    if (standin_spoils_capture())
        return cudaErrorStreamCaptureUnsupported;
    wait_reached(event, event->recorded);
    delete event;
    standin_count("live_events", -1);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    const cudaError_t code = standin_enter("cudaEventRecord");
    uint64_t number;

    if (code != cudaSuccess)
        return code;
    {
        const std::lock_guard<std::mutex> guard(event->lock);

        number = ++event->recorded;
    }
    queue(stream, [event, number] {
        const std::lock_guard<std::mutex> guard(event->lock);

        event->reached = number > event->reached ? number : event->reached;
        event->time = std::chrono::steady_clock::now();
        event->changed.notify_all();
    });
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    const cudaError_t code = standin_enter("cudaStreamWaitEvent");
    uint64_t number;

    (void)flags;
    if (code != cudaSuccess)
        return code;
    {
        const std::lock_guard<std::mutex> guard(event->lock);

        number = event->recorded;
    }
    queue(stream, [event, number] { wait_reached(event, number); });
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    if (standin_spoils_capture())
        return cudaErrorStreamCaptureUnsupported;
    wait_reached(event, event->recorded);
    return standin_enter("cudaEventSynchronize");
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    if (standin_spoils_capture())
        return cudaErrorStreamCaptureUnsupported;
    const std::lock_guard<std::mutex> guard(event->lock);

    return event->reached >= event->recorded ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float *ms_out, cudaEvent_t from, cudaEvent_t to)
{
    if (cudaEventQuery(from) != cudaSuccess || cudaEventQuery(to) != cudaSuccess)
        return cudaErrorNotReady;
    *ms_out = std::chrono::duration<float, std::milli>(to->time - from->time).count();
    return cudaSuccess;
}

/* ---- copies ---- */

static bool sides_are_right(void *dst, const void *src, size_t size_bytes, cudaMemcpyKind kind)
{
    return (kind == cudaMemcpyHostToDevice ? standin_is_host(src, size_bytes)
                                           : standin_is_device(src, size_bytes)) &&
           (kind == cudaMemcpyDeviceToHost ? standin_is_host(dst, size_bytes)
                                           : standin_is_device(dst, size_bytes));
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t size_bytes, cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    const cudaError_t code = standin_enter("cudaMemcpyAsync");
    enum standin_pinned pinned = STANDIN_PINNED;

    if (code != cudaSuccess)
        return code;
    if (!sides_are_right(dst, src, size_bytes, kind))
        return cudaErrorInvalidValue;
    if (kind != cudaMemcpyDeviceToDevice)
        pinned = standin_pinned(kind == cudaMemcpyHostToDevice ? src : dst, size_bytes);
    if (pinned == STANDIN_MIXED)
        return cudaErrorInvalidValue;
    if (pinned == STANDIN_PAGEABLE)
        standin_count(kind == cudaMemcpyHostToDevice ? "pageable_in" : "pageable_out", 1);
    if (pinned == STANDIN_PAGEABLE && kind == cudaMemcpyHostToDevice) {
        const std::vector<char> staged((const char *)src, (const char *)src + size_bytes);

        queue(stream, [dst, staged] { std::memcpy(dst, staged.data(), staged.size()); });
        return cudaSuccess;
    }
    queue(stream, [dst, src, size_bytes] { std::memcpy(dst, src, size_bytes); });
    return pinned == STANDIN_PAGEABLE ? cudaStreamSynchronize(stream) : cudaSuccess;
}

/* Between pieces of the GPU's memory, as device/cuda has them. They are made last one first, as
 * their order is nobody's business; what one of them must not do is to write what another has. */
static cudaError_t queue_batch(void **dsts, const void **srcs, const size_t *sizes, size_t count,
                               size_t *failed_out, cudaStream_t stream)
{
    std::vector<std::function<void()>> copies;

    for (size_t i = 0; i < count; i++) {
        const char *from = (const char *)srcs[i];
        char *to = (char *)dsts[i];
        const size_t size = sizes[i];
        bool is_right = size > 0 && sides_are_right(to, from, size, cudaMemcpyDeviceToDevice);

        for (size_t j = 0; j < count; j++)
            is_right = is_right && (j == i || to + size <= (char *)dsts[j] ||
                                    (char *)dsts[j] + sizes[j] <= to);
        if (!is_right) {
            *failed_out = i;
            return cudaErrorInvalidValue;
        }
        copies.insert(copies.begin(), [to, from, size] { std::memcpy(to, from, size); });
    }
    standin_count("batches", 1);
    standin_count("batched_copies", (int64_t)count);
    queue(stream, [copies] {
        for (const std::function<void()> &copy : copies)
            copy();
    });
    return cudaSuccess;
}

cudaError_t standin_copy_batch_12080(void **dsts, const void **srcs, size_t *sizes, size_t count,
                                     cudaMemcpyAttributes *attributes, size_t *firsts,
                                     size_t attribute_count, size_t *failed_out,
                                     cudaStream_t stream)
{
    const cudaError_t code = standin_enter("cuMemcpyBatchAsync");

    *failed_out = SIZE_MAX;
    if (code != cudaSuccess)
        return code;
    if (stream == nullptr || count == 0 || attribute_count != 1 || firsts[0] != 0 ||
        attributes[0].srcAccessOrder != cudaMemcpySrcAccessOrderStream || attributes[0].flags != 0)
        return cudaErrorInvalidValue;
    return queue_batch(dsts, srcs, sizes, count, failed_out, stream);
}

cudaError_t standin_copy_batch_13000(void **dsts, const void **srcs, size_t *sizes, size_t count,
                                     cudaMemcpyAttributes *attributes, size_t *firsts,
                                     size_t attribute_count, cudaStream_t stream)
{
    size_t failed;

    return standin_copy_batch_12080(dsts, srcs, sizes, count, attributes, firsts, attribute_count,
                                    &failed, stream);
}

cudaError_t cudaMemsetAsync(void *dst, int value, size_t size_bytes, cudaStream_t stream)
{
    const cudaError_t code = standin_enter("cudaMemsetAsync");

    if (code != cudaSuccess)
        return code;
    if (!standin_is_device(dst, size_bytes))
        return cudaErrorInvalidValue;
    queue(stream, [dst, value, size_bytes] { std::memset(dst, value, size_bytes); });
    return cudaSuccess;
}

/* ---- launches ---- */

cudaError_t standin_allow_shared(const void *kernel, int size_bytes)
{
    const std::lock_guard<std::mutex> guard(allowed_lock);

    if (!standin_can_run(1, 32, (size_t)size_bytes))
        return cudaErrorInvalidValue;
    allowed[kernel] = size_bytes;
    return cudaSuccess;
}

void standin_launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                    std::function<void()> kernel)
{
    const cudaError_t code = standin_enter("launch");

    if (code != cudaSuccess)
        return; /* standin_enter has noted it */
    if (!standin_can_run(grid, block, shared_bytes)) {
        standin_note(cudaErrorInvalidValue);
        return;
    }
    const std::function<void()> job = [grid, block, shared_bytes, kernel] {
        standin_run(grid, block, shared_bytes, kernel);
    };

    if (capturing != nullptr) {
        if (capturing != stream)
            (void)standin_spoils_capture();
        capturing->captured->kernels.push_back(job);
        return;
    }
    standin_count("launches", 1);
    queue(stream, job);
}

/* ---- graphs ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode)
{
    const cudaError_t code = standin_enter("cudaStreamBeginCapture");

    (void)mode;
    if (code != cudaSuccess)
        return code;
    stream->captured = new standin_graph();
    standin_count("live_graphs", 1);
    capturing = stream;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph_out)
{
    standin_graph *graph = stream->captured;
    cudaError_t code;

    if (graph == nullptr)
        return cudaErrorStreamCaptureUnmatched;
    if (capturing != stream)
        return cudaErrorStreamCaptureWrongThread;
    capturing = nullptr;
    stream->captured = nullptr;
    code = standin_enter("cudaStreamEndCapture");
    if (code == cudaSuccess && graph->is_spoilt)
        code = cudaErrorStreamCaptureInvalidated;
    if (code != cudaSuccess) {
        (void)cudaGraphDestroy(graph);
        return code;
    }
    *graph_out = graph;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *ready_out, cudaGraph_t graph,
                                          unsigned long long flags)
{
    const cudaError_t code = standin_enter("cudaGraphInstantiateWithFlags");

    (void)flags;
    if (code != cudaSuccess)
        return code;
    *ready_out = new standin_ready_graph{ graph->kernels };
    standin_count("live_graphs", 1);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    standin_count("live_graphs", -1);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t stream)
{
    const cudaError_t code = standin_enter("cudaGraphLaunch");

    if (code != cudaSuccess)
        return code;
    standin_count("graph_launches", 1);
    queue(stream, [kernels = ready->kernels] {
        for (const std::function<void()> &kernel : kernels)
            kernel();
    });
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready)
{
    delete ready;
    standin_count("live_graphs", -1);
    return cudaSuccess;
}
