/* tests/cuda/control.cpp - errors, counters, and failures on purpose.
 *
 * CUDA_STANDIN_GPUS: how many GPUs there are, 2 unless set. CUDA_STANDIN_DRIVER: which CUDA the
 * driver knows, 13000 unless set. CUDA_STANDIN_FAIL: a function of which each call fails.
 * CUDA_STANDIN_REPORT: a file that gets all counters at the process's end, one "name value" a line.
 */
#include "standin.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

namespace {

struct control {
    std::mutex lock; /* guards what follows */
    std::map<std::string, int64_t> counters;
    std::string failing;
    uint64_t failing_in = 0;
    cudaError_t failing_with = cudaSuccess;

    ~control()
    {
        const char *path = getenv("CUDA_STANDIN_REPORT");
        FILE *file = path != nullptr ? fopen(path, "w") : nullptr;

        if (file == nullptr)
            return;
        for (const auto &one : counters)
            (void)fprintf(file, "%s %lld\n", one.first.c_str(), (long long)one.second);
        (void)fclose(file);
    }
};

struct control control;
thread_local cudaError_t last_error = cudaSuccess;

struct error {
    cudaError_t code;
    const char *name, *text;
};

const struct error errors[] = {
    { cudaSuccess, "cudaSuccess", "no error" },
    { cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument" },
    { cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory" },
    { cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected" },
    { cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal" },
    { cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle",
      "invalid resource handle" },
    { cudaErrorNotReady, "cudaErrorNotReady", "device not ready" },
    { cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
      "an illegal memory access was encountered" },
    { cudaErrorHostMemoryAlreadyRegistered, "cudaErrorHostMemoryAlreadyRegistered",
      "part or all of the requested memory range is already mapped" },
    { cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
      "operation not permitted when stream is capturing" },
    { cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
      "operation failed due to a previous error during capture" },
    { cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported" },
    { cudaErrorHostMemoryNotRegistered, "cudaErrorHostMemoryNotRegistered",
      "pointer does not correspond to a registered memory region" },
};

const struct error *find(cudaError_t code)
{
    for (const struct error &one : errors)
        if (one.code == code)
            return &one;
    return &errors[1];
}

int number_of(const char *name, int otherwise)
{
    const char *text = getenv(name);

    return text != nullptr ? (int)strtol(text, nullptr, 10) : otherwise;
}

int gpu_count()
{
    return number_of("CUDA_STANDIN_GPUS", 2);
}

} /* namespace */

cudaError_t standin_enter(const char *function)
{
    if (std::strcmp(function, "launch") != 0 && standin_spoils_capture()) {
        last_error = cudaErrorStreamCaptureUnsupported;
        return last_error;
    }
    const char *always = getenv("CUDA_STANDIN_FAIL");
    const std::lock_guard<std::mutex> guard(control.lock);

    if (always != nullptr && std::strcmp(function, always) == 0) {
        last_error = cudaErrorIllegalAddress;
        return last_error;
    }
    if (control.failing_in == 0 || control.failing != function || --control.failing_in > 0)
        return cudaSuccess;
    last_error = control.failing_with;
    return control.failing_with;
}

void standin_count(const char *name, int64_t by)
{
    const std::lock_guard<std::mutex> guard(control.lock);

    control.counters[name] += by;
}

void standin_note(cudaError_t code)
{
    last_error = code;
}

uint64_t cuda_standin_counter(const char *name)
{
    const std::lock_guard<std::mutex> guard(control.lock);

    return (uint64_t)control.counters[name];
}

void cuda_standin_fail(const char *function, uint64_t nth, int code)
{
    const std::lock_guard<std::mutex> guard(control.lock);

    control.failing = function;
    control.failing_in = nth;
    control.failing_with = (cudaError_t)code;
}

const char *cudaGetErrorName(cudaError_t code)
{
    return find(code)->name;
}

const char *cudaGetErrorString(cudaError_t code)
{
    return find(code)->text;
}

cudaError_t cudaGetLastError(void)
{
    const cudaError_t code = last_error;

    last_error = cudaSuccess;
    return code;
}

cudaError_t cudaRuntimeGetVersion(int *version_out)
{
    *version_out = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version_out)
{
    *version_out = number_of("CUDA_STANDIN_DRIVER", CUDART_VERSION);
    return cudaSuccess;
}

/* Of the form that the version has, which must be one that this driver knows. */
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function_out,
                                             unsigned version, unsigned long long flags,
                                             cudaDriverEntryPointQueryResult *found_out)
{
    const cudaError_t code = standin_enter("cudaGetDriverEntryPointByVersion");
    int driver = 0;

    (void)flags;
    if (code != cudaSuccess)
        return code;
    (void)cudaDriverGetVersion(&driver);
    *function_out = nullptr;
    *found_out = cudaDriverEntryPointSymbolNotFound;
    if (std::strcmp(symbol, "cuMemcpyBatchAsync") != 0)
        return cudaSuccess;
    *found_out = cudaDriverEntryPointVersionNotSufficent;
    if (version < 12080 || driver < (int)version)
        return cudaSuccess;
    *found_out = cudaDriverEntryPointSuccess;
    *function_out = version < 13000 ? (void *)standin_copy_batch_12080
                                    : (void *)standin_copy_batch_13000;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count_out)
{
    *count_out = gpu_count();
    return *count_out > 0 ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties_out, int index)
{
    cudaDeviceProp properties = {};

    if (index < 0 || index >= gpu_count())
        return cudaErrorInvalidDevice;
    (void)snprintf(properties.name, sizeof(properties.name), "the processor in a GPU's place");
    properties.major = 8;
    properties.minor = 0;
    properties.multiProcessorCount = 1;
    properties.asyncEngineCount = 2;
    properties.memoryBusWidth = 64;
    properties.l2CacheSize = 1 << 20;
    *properties_out = properties;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value_out, cudaDeviceAttr which, int index)
{
    if (index < 0 || index >= gpu_count())
        return cudaErrorInvalidDevice;
    switch (which) {
    case cudaDevAttrMemoryClockRate: *value_out = 1000000; return cudaSuccess;
    case cudaDevAttrHostRegisterReadOnlySupported: *value_out = 1; return cudaSuccess;
    case cudaDevAttrHostNumaId: *value_out = 0; return cudaSuccess;
    }
    return cudaErrorInvalidValue;
}

cudaError_t cudaDeviceGetPCIBusId(char *id_out, int size, int index)
{
    (void)snprintf(id_out, (size_t)size, "0000:%02x:00.0", index + 1);
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int index)
{
    return index >= 0 && index < gpu_count() ? cudaSuccess : cudaErrorInvalidDevice;
}
