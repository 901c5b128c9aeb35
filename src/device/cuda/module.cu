/* device/cuda/module.cu - lighter_cuda.so: the table of module.h. Built where nvcc is, and opened
 * at run time; CUDA's runtime is linked into it, and finds the driver itself. */
#include "device/cuda/module.h"

#include <stdio.h>
#include <string.h>

#include "device/cuda/kernels.h"

#ifndef LIGHTER_CUDA_BUILT_FOR
#define LIGHTER_CUDA_BUILT_FOR "the processor"
#endif

/* A failed call's code also stays behind for the next launch to find; take it away. */
static int done(cudaError_t code)
{
    if (code != cudaSuccess)
        (void)cudaGetLastError();
    return (int)code;
}

static const char *error_name(int code)
{
    return cudaGetErrorName((cudaError_t)code);
}

static const char *error_text(int code)
{
    return cudaGetErrorString((cudaError_t)code);
}

static enum status status_of(int code)
{
    switch ((cudaError_t)code) {
    case cudaErrorMemoryAllocation: return STATUS_NO_MEMORY;
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorDevicesUnavailable:
    case cudaErrorNotSupported: return STATUS_UNAVAILABLE;
    default: return STATUS_DEVICE;
    }
}

static int versions(int *runtime_out, int *driver_out)
{
    const cudaError_t code = cudaRuntimeGetVersion(runtime_out);

    return done(code == cudaSuccess ? cudaDriverGetVersion(driver_out) : code);
}

static int device_count(int *count_out)
{
    return done(cudaGetDeviceCount(count_out));
}

static int attribute(int index, cudaDeviceAttr which, int otherwise)
{
    int value = otherwise;

    if (cudaDeviceGetAttribute(&value, which, index) != cudaSuccess) {
        (void)cudaGetLastError(); /* an older driver does not know it */
        return otherwise;
    }
    return value;
}

/* cuMemcpyBatchAsync as CUDA 12.8 has it, or NULL. Drivers since then know this form, though 13.0
 * has another of the same name without `failed`. */
static void *find_copy_batch(void)
{
    void *function = nullptr;

#if CUDART_VERSION >= 12080
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;

    if (cudaGetDriverEntryPointByVersion("cuMemcpyBatchAsync", &function, 12080, cudaEnableDefault,
                                         &found) != cudaSuccess) {
        (void)cudaGetLastError();
        return nullptr;
    }
    if (found != cudaDriverEntryPointSuccess)
        return nullptr;
#endif
    return function;
}

static int facts(int index, struct cuda_facts *facts_out)
{
    struct cuda_facts found = {};
    cudaDeviceProp properties;
    cudaError_t code = cudaGetDeviceProperties(&properties, index);

    if (code == cudaSuccess)
        code = cudaDeviceGetPCIBusId(found.bus_id, sizeof(found.bus_id), index);
    if (code != cudaSuccess)
        return done(code);
    (void)snprintf(found.name, sizeof(found.name), "%s", properties.name);
    found.major = properties.major;
    found.minor = properties.minor;
    found.processors = properties.multiProcessorCount;
    found.copy_engines = properties.asyncEngineCount;
    found.memory_bus_bits = properties.memoryBusWidth;
    found.l2_bytes = properties.l2CacheSize;
    found.shares_host_memory = properties.integrated != 0;
    found.memory_clock_khz = attribute(index, cudaDevAttrMemoryClockRate, 0);
    found.registers_read_only = attribute(index, cudaDevAttrHostRegisterReadOnlySupported, 0) != 0;
    found.numa_node = -1;
#if CUDART_VERSION >= 12020
    found.numa_node = attribute(index, cudaDevAttrHostNumaId, -1);
#endif
    found.copy_batch = find_copy_batch();
    *facts_out = found;
    return (int)cudaSuccess;
}

static int enter(int index)
{
    return done(cudaSetDevice(index));
}

__global__ void nothing(int unused)
{
    (void)unused;
}

static int check_kernels(void)
{
    cudaFuncAttributes attributes;

    return done(cudaFuncGetAttributes(&attributes, nothing));
}

static int memory_info(uint64_t *free_bytes_out, uint64_t *total_bytes_out)
{
    size_t free_bytes = 0, total_bytes = 0;
    const cudaError_t code = cudaMemGetInfo(&free_bytes, &total_bytes);

    *free_bytes_out = free_bytes;
    *total_bytes_out = total_bytes;
    return done(code);
}

static int memory_alloc(uint64_t size_bytes, void **memory_out)
{
    return done(cudaMalloc(memory_out, size_bytes));
}

static int memory_free(void *memory)
{
    return done(cudaFree(memory));
}

static int host_register(void *memory, uint64_t size_bytes, bool read_only)
{
    return done(cudaHostRegister(memory, size_bytes,
                                 cudaHostRegisterPortable |
                                     (read_only ? cudaHostRegisterReadOnly : 0)));
}

static int host_unregister(void *memory)
{
    return done(cudaHostUnregister(memory));
}

static int share(void *memory, uint8_t handle_out[CUDA_MODULE_HANDLE_BYTES])
{
    cudaIpcMemHandle_t handle;
    const cudaError_t code = cudaIpcGetMemHandle(&handle, memory);

    static_assert(sizeof(handle) == CUDA_MODULE_HANDLE_BYTES, "what module.h says");
    if (code == cudaSuccess)
        memcpy(handle_out, &handle, sizeof(handle));
    return done(code);
}

static int shared_open(const uint8_t bytes[CUDA_MODULE_HANDLE_BYTES], void **memory_out)
{
    cudaIpcMemHandle_t handle;

    memcpy(&handle, bytes, sizeof(handle));
    return done(cudaIpcOpenMemHandle(memory_out, handle, cudaIpcMemLazyEnablePeerAccess));
}

static int shared_close(void *memory)
{
    return done(cudaIpcCloseMemHandle(memory));
}

/* Without an order to the default stream, which nobody uses. */
static int stream_create(void **stream_out)
{
    return done(cudaStreamCreateWithFlags((cudaStream_t *)stream_out, cudaStreamNonBlocking));
}

static int stream_destroy(void *stream)
{
    return done(cudaStreamDestroy((cudaStream_t)stream));
}

static int stream_sync(void *stream)
{
    return done(cudaStreamSynchronize((cudaStream_t)stream));
}

static int event_create(void **event_out)
{
    return done(cudaEventCreateWithFlags((cudaEvent_t *)event_out, cudaEventDefault));
}

static int event_destroy(void *event)
{
    return done(cudaEventDestroy((cudaEvent_t)event));
}

static int event_record(void *stream, void *event)
{
    return done(cudaEventRecord((cudaEvent_t)event, (cudaStream_t)stream));
}

static int event_wait(void *stream, void *event)
{
    return done(cudaStreamWaitEvent((cudaStream_t)stream, (cudaEvent_t)event, 0));
}

static int event_sync(void *event)
{
    return done(cudaEventSynchronize((cudaEvent_t)event));
}

static int event_is_done(void *event, bool *done_out)
{
    const cudaError_t code = cudaEventQuery((cudaEvent_t)event);

    *done_out = code != cudaErrorNotReady;
    return done(code) == (int)cudaErrorNotReady ? (int)cudaSuccess : (int)code;
}

static int event_elapsed(void *from, void *to, float *ms_out)
{
    return done(cudaEventElapsedTime(ms_out, (cudaEvent_t)from, (cudaEvent_t)to));
}

static int copy(void *stream, enum cuda_copy kind, void *dst, const void *src, uint64_t size_bytes)
{
    static const cudaMemcpyKind kinds[] = { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost,
                                            cudaMemcpyDeviceToDevice };

    return done(cudaMemcpyAsync(dst, src, size_bytes, kinds[kind], (cudaStream_t)stream));
}

/* Sources are read when the stream comes to them, as cudaMemcpyAsync does it. Not for captures, nor
 * the default stream. */
static int copy_batch(void *function, void *stream, struct cuda_batch *batch, size_t *failed_out)
{
#if CUDART_VERSION >= 12080
    using batch_function = cudaError_t(void **, const void **, size_t *, size_t,
                                       cudaMemcpyAttributes *, size_t *, size_t, size_t *,
                                       cudaStream_t);
    cudaMemcpyAttributes attributes = {};
    size_t first = 0; /* the copy from which on these attributes hold */

    attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    *failed_out = SIZE_MAX;
    return done(((batch_function *)function)(batch->dst, batch->src, batch->size_bytes,
                                             batch->count, &attributes, &first, 1, failed_out,
                                             (cudaStream_t)stream));
#else
    (void)function;
    (void)stream;
    (void)batch;
    *failed_out = SIZE_MAX;
    return (int)cudaErrorNotSupported;
#endif
}

static int fill(void *stream, void *dst, uint8_t value, uint64_t size_bytes)
{
    return done(cudaMemsetAsync(dst, value, size_bytes, (cudaStream_t)stream));
}

static int launch(void *handle, const struct op *op, const struct cuda_room *room)
{
    const cudaStream_t stream = (cudaStream_t)handle;

    switch (op->kind) {
    case OP_EMBED: return done(cuda_embed(&op->embed, stream));
    case OP_RMS_NORM: return done(cuda_rms_norm(&op->rms_norm, stream));
    case OP_MATMUL: return done(cuda_matmul(&op->matmul, stream));
    case OP_ROPE_TABLE: return done(cuda_rope_table(&op->rope_table, stream));
    case OP_ROPE: return done(cuda_rope(&op->rope, stream));
    case OP_KV_WRITE: return done(cuda_kv_write(&op->kv_write, stream));
    case OP_ATTENTION: return done(cuda_attention(&op->attention, room, stream));
    case OP_SILU_MUL: return done(cuda_silu_mul(&op->silu_mul, stream));
    case OP_SCALE: return done(cuda_scale(&op->scale, stream));
    case OP_ROUTE: return done(cuda_route(&op->route, stream));
    case OP_MOE: return done(cuda_moe(&op->moe, stream));
    case OP_GATHER_ROWS: return done(cuda_gather_rows(&op->gather_rows, stream));
    case OP_GATHER_COLUMNS: return done(cuda_gather_columns(&op->gather_columns, stream));
    case OP_SOFT_CAP: return done(cuda_soft_cap(&op->soft_cap, stream));
    case OP_KIND_COUNT: break;
    }
    return (int)cudaErrorInvalidValue;
}

/* Other threads may call what they like meanwhile. */
static int graph_begin(void *stream)
{
    return done(cudaStreamBeginCapture((cudaStream_t)stream, cudaStreamCaptureModeThreadLocal));
}

static int graph_end(void *stream, void **graph_out)
{
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t ready = nullptr;
    cudaError_t code = cudaStreamEndCapture((cudaStream_t)stream, &graph);

    if (code == cudaSuccess && graph_out != nullptr)
        code = cudaGraphInstantiateWithFlags(&ready, graph, 0);
    if (graph != nullptr)
        (void)cudaGraphDestroy(graph);
    if (code == cudaSuccess && graph_out != nullptr)
        *graph_out = ready;
    return done(code);
}

static int graph_launch(void *stream, void *graph)
{
    return done(cudaGraphLaunch((cudaGraphExec_t)graph, (cudaStream_t)stream));
}

static int graph_destroy(void *graph)
{
    return done(cudaGraphExecDestroy((cudaGraphExec_t)graph));
}

extern "C" {
extern __attribute__((visibility("default"))) const struct cuda_module lighter_cuda_module;
const struct cuda_module lighter_cuda_module = {
    CUDA_MODULE_VERSION, LIGHTER_CUDA_BUILT_FOR, error_name,    error_text,      status_of,
    versions,            device_count,           facts,         enter,           check_kernels,
    memory_info,         memory_alloc,           memory_free,   host_register,   host_unregister,
    share,               shared_open,            shared_close,  stream_create,   stream_destroy,
    stream_sync,         event_create,           event_destroy, event_record,    event_wait,
    event_sync,          event_is_done,          event_elapsed, copy,            copy_batch,
    fill,                launch,                 graph_begin,   graph_end,       graph_launch,
    graph_destroy,
};
}
