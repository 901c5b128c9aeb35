/* tests/cuda/cuda_runtime.h - the processor in the place of a GPU, for tests of device/cuda.
 *
 * The .cu files are C++ but for what nvcc adds. With this header in the place of CUDA's own a C++
 * compiler makes a lighter_cuda.so of them whose kernels run here: README.md says what is imitated
 * and how strictly. Names, types and values are those of CUDA 13's runtime, as far as device/cuda
 * uses them. */
#ifndef LIGHTER_TESTS_CUDA_RUNTIME_H
#define LIGHTER_TESTS_CUDA_RUNTIME_H

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define CUDART_VERSION 13000

#define __global__
#define __device__
#define __launch_bounds__(...)

/* ---- types ---- */

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_count = 1, unsigned y_count = 1, unsigned z_count = 1)
        : x(x_count), y(y_count), z(z_count)
    {
    }
};

struct alignas(8) uint2 {
    unsigned x, y;
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

struct alignas(16) float4 {
    float x, y, z, w;
};

static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
    return { x, y, z, w };
}

static inline float4 make_float4(float x, float y, float z, float w)
{
    return { x, y, z, w };
}

/* ---- where a thread is ---- */

struct standin_place {
    unsigned x, y, z;
};
extern __thread struct standin_place threadIdx, blockIdx, gridDim;

/* ---- what kernels call ---- */

void __syncthreads(void);
int __syncthreads_or(int value);
void __syncwarp(void);
void standin_part_sync(unsigned part, unsigned threads);
/* What another lane of the warp brings to the same call. */
uint64_t standin_exchange(uint64_t bits, unsigned from_lane);
void standin_mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2]);
void standin_mma_s8(int32_t c[4], const uint32_t a[4], const uint32_t b[2], int k_count);
void standin_copy_16(void *shared, const void *memory);
void standin_copy_commit(void);
void standin_copy_wait(int left);
unsigned char *standin_shared_memory(void);
float standin_f16_to_f32(uint16_t bits);
uint32_t standin_mul_bf16(uint32_t a, uint32_t b);

template <typename type>
static inline type __shfl_xor_sync(unsigned mask, type value, unsigned distance)
{
    uint64_t bits = 0;

    (void)mask;
    std::memcpy(&bits, &value, sizeof(value));
    bits = standin_exchange(bits, (threadIdx.x % 32) ^ distance);
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

static inline float __uint_as_float(uint32_t bits)
{
    float value;

    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

static inline uint32_t __float_as_uint(float value)
{
    uint32_t bits;

    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t choice)
{
    const uint64_t both = (uint64_t)b << 32 | a;
    uint32_t result = 0;

    for (unsigned i = 0; i < 4; i++)
        result |= (uint32_t)(both >> 8 * (choice >> 4 * i & 7) & 0xff) << 8 * i;
    return result;
}

static inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift)
{
    return (uint32_t)(((uint64_t)high << 32 | low) >> (shift & 31));
}

static inline uint32_t __vsub4(uint32_t a, uint32_t b)
{
    uint32_t result = 0;

    for (unsigned i = 0; i < 32; i += 8)
        result |= (((a >> i) - (b >> i)) & 0xff) << i;
    return result;
}

static inline int __float2int_rn(float value)
{
    return (int)std::nearbyint(value);
}

static inline uint4 __ldcs(const uint4 *from)
{
    return *from;
}

static inline uint32_t atomicAdd(uint32_t *to, uint32_t value)
{
    const uint32_t before = *to;

    *to += value;
    return before;
}

static inline uint32_t min(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static inline uint32_t max(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* ---- the runtime ---- */

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorDevicesUnavailable = 46,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorUnsupportedPtxVersion = 222,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorHostMemoryAlreadyRegistered = 712,
    cudaErrorHostMemoryNotRegistered = 713,
    cudaErrorNotSupported = 801,
    cudaErrorSystemDriverMismatch = 803,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
    cudaErrorStreamCaptureUnmatched = 903,
    cudaErrorStreamCaptureWrongThread = 908,
};

enum cudaMemcpyKind {
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
};

enum cudaDeviceAttr {
    cudaDevAttrMemoryClockRate = 36,
    cudaDevAttrHostRegisterReadOnlySupported = 113,
    cudaDevAttrHostNumaId = 134,
};

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

#define cudaHostRegisterPortable 0x01
#define cudaHostRegisterReadOnly 0x08
#define cudaIpcMemLazyEnablePeerAccess 0x01
#define cudaStreamNonBlocking 0x01
#define cudaEventDefault 0x00

typedef struct standin_stream *cudaStream_t;
typedef struct standin_event *cudaEvent_t;
typedef struct standin_graph *cudaGraph_t;
typedef struct standin_ready_graph *cudaGraphExec_t;

enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };

struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount, asyncEngineCount, memoryBusWidth, l2CacheSize;
    int integrated;
};

struct cudaFuncAttributes {
    int maxThreadsPerBlock;
};

enum cudaDriverEntryPointQueryResult {
    cudaDriverEntryPointSuccess = 0,
    cudaDriverEntryPointSymbolNotFound = 1,
    cudaDriverEntryPointVersionNotSufficent = 2,
};

#define cudaEnableDefault 0x0

enum cudaMemcpySrcAccessOrder { cudaMemcpySrcAccessOrderStream = 1 };

struct cudaMemLocation {
    int type, id;
};

struct cudaMemcpyAttributes {
    cudaMemcpySrcAccessOrder srcAccessOrder;
    cudaMemLocation srcLocHint, dstLocHint;
    unsigned flags;
};

struct cudaIpcMemHandle_t {
    char reserved[64];
};

const char *cudaGetErrorName(cudaError_t code);
const char *cudaGetErrorString(cudaError_t code);
cudaError_t cudaGetLastError(void);
cudaError_t cudaRuntimeGetVersion(int *version_out);
cudaError_t cudaDriverGetVersion(int *version_out);
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function_out,
                                             unsigned version, unsigned long long flags,
                                             cudaDriverEntryPointQueryResult *found_out);
cudaError_t cudaGetDeviceCount(int *count_out);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties_out, int index);
cudaError_t cudaDeviceGetAttribute(int *value_out, cudaDeviceAttr which, int index);
cudaError_t cudaDeviceGetPCIBusId(char *id_out, int size, int index);
cudaError_t cudaSetDevice(int index);
cudaError_t cudaMemGetInfo(size_t *free_out, size_t *total_out);
cudaError_t cudaMalloc(void **memory_out, size_t size_bytes);
cudaError_t cudaFree(void *memory);
cudaError_t cudaHostRegister(void *memory, size_t size_bytes, unsigned flags);
cudaError_t cudaHostUnregister(void *memory);
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle_out, void *memory);
cudaError_t cudaIpcOpenMemHandle(void **memory_out, cudaIpcMemHandle_t handle, unsigned flags);
cudaError_t cudaIpcCloseMemHandle(void *memory);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream_out, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event_out, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *ms_out, cudaEvent_t from, cudaEvent_t to);
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t size_bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *dst, int value, size_t size_bytes, cudaStream_t stream);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph_out);
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *ready_out, cudaGraph_t graph,
                                          unsigned long long flags);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready);

/* A launch: standin_bytes_max is what cudaFuncSetAttribute has allowed. */
void standin_launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                    std::function<void()> kernel);
cudaError_t standin_allow_shared(const void *kernel, int size_bytes);

template <typename function>
static inline cudaError_t cudaFuncSetAttribute(function *kernel, cudaFuncAttribute which, int value)
{
    (void)which;
    return standin_allow_shared((const void *)kernel, value);
}

template <typename function>
static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes_out,
                                                function *kernel)
{
    (void)kernel;
    attributes_out->maxThreadsPerBlock = 1024;
    return cudaSuccess;
}

#endif
