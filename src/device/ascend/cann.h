/* device/ascend/cann.h - the part of CANN's C interface that is used here, declared by ourselves.
 *
 * CANN is Huawei's software for its NPUs. Nothing of it is needed to build: its libraries are
 * opened at run time and every function is found by its name (load.c). So this file has no
 * prototypes but lists, one line for each function, which a macro of the reader's turns into
 *
 *     fields of the table that load.c fills            (internal.h)
 *     the symbols to look for, each with its library and whether it is required  (load.c)
 *     prototypes, against which a library that provides them is compiled
 *                                                      (CANN_WITH_PROTOTYPES, see the end)
 *
 * Values, layouts and argument types are CANN's binary interface; the names are its names, typedefs
 * included. They were compared with two sources: the headers of CANN 8.1.RC1 (acl/acl_rt.h,
 * acl/acl_base.h, aclnn/acl_meta.h, aclnnop/aclnn_*.h) and the open repositories runtime, opbase,
 * ops-nn, ops-math and ops-transformer (2025-11 to 2026-08). What the former has is required where
 * it is used; what only the latter have is optional and has a fall-back. What nothing here calls
 * yet is optional too. */
#ifndef LIGHTER_DEVICE_ASCEND_CANN_H
#define LIGHTER_DEVICE_ASCEND_CANN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The first release that is known to have a symbol. Older ones were not looked at. */
#define CANN_8_1 "8.1.RC1"
#define CANN_8_3 "8.3.RC1"
#define CANN_8_5 "8.5"
#define CANN_LATER "a release after 8.1.RC1"

#define CANN_REQUIRED 1
#define CANN_OPTIONAL 0

/* ---- types: acl_base.h, acl_rt.h ---- */

typedef int aclError;          /* 0: success */
typedef int32_t aclnnStatus;
typedef uint16_t aclFloat16;
typedef void *aclrtStream;
typedef void *aclrtEvent;

typedef enum aclrtMemMallocPolicy { /* acl_rt.h; one per call, not or-ed */
    ACL_MEM_MALLOC_HUGE_FIRST = 0,
    ACL_MEM_MALLOC_HUGE_ONLY = 1,
    ACL_MEM_MALLOC_NORMAL_ONLY = 2,
    ACL_MEM_MALLOC_HUGE_FIRST_P2P = 3,
    ACL_MEM_MALLOC_HUGE_ONLY_P2P = 4,
    ACL_MEM_MALLOC_NORMAL_ONLY_P2P = 5,
} aclrtMemMallocPolicy;

typedef enum aclrtMemAttr { /* what aclrtGetMemInfo is asked about */
    ACL_DDR_MEM = 0,
    ACL_HBM_MEM = 1,
} aclrtMemAttr;

typedef enum aclrtMemcpyKind {
    ACL_MEMCPY_HOST_TO_HOST = 0,
    ACL_MEMCPY_HOST_TO_DEVICE = 1,
    ACL_MEMCPY_DEVICE_TO_HOST = 2,
    ACL_MEMCPY_DEVICE_TO_DEVICE = 3,
    ACL_MEMCPY_DEFAULT = 4,
} aclrtMemcpyKind;

typedef enum aclrtEventRecordedStatus { /* the opposite of aclrtStreamStatus's values */
    ACL_EVENT_RECORDED_STATUS_NOT_READY = 0,
    ACL_EVENT_RECORDED_STATUS_COMPLETE = 1,
} aclrtEventRecordedStatus;

#define ACL_STREAM_FAST_LAUNCH 0x1u
#define ACL_STREAM_FAST_SYNC 0x2u
#define ACL_EVENT_SYNC 0x01u      /* a stream may wait for it */
#define ACL_EVENT_TIME_LINE 0x08u /* aclrtEventElapsedTime may be asked */

#define ACL_HOST_REG_MAPPED 0x2u
#define ACL_HOST_REG_PINNED 0x10000000u /* pins memory of malloc and mmap */

#define ACL_RT_IPC_MEM_EXPORT_FLAG_DISABLE_PID_VALIDATION 0x1u
#define ACL_RT_IPC_MEM_IMPORT_FLAG_ENABLE_PEER_ACCESS 0x1u
#define CANN_IPC_KEY_BYTES 65 /* what aclrtIpcMemGetExportKey writes, at least */

typedef enum aclDataType { /* acl_base.h */
    ACL_DT_UNDEFINED = -1,
    ACL_FLOAT = 0,
    ACL_FLOAT16 = 1,
    ACL_INT8 = 2,
    ACL_INT32 = 3,
    ACL_UINT8 = 4,
    ACL_INT16 = 6,
    ACL_UINT16 = 7,
    ACL_UINT32 = 8,
    ACL_INT64 = 9,
    ACL_UINT64 = 10,
    ACL_DOUBLE = 11,
    ACL_BOOL = 12,
    ACL_BF16 = 27,
    ACL_INT4 = 29,
} aclDataType;

typedef enum aclFormat { /* acl_base.h */
    ACL_FORMAT_UNDEFINED = -1,
    ACL_FORMAT_NCHW = 0,
    ACL_FORMAT_NHWC = 1,
    ACL_FORMAT_ND = 2,
    ACL_FORMAT_FRACTAL_NZ = 29,
} aclFormat;

enum cann_gelu { CANN_GELU_ERF = 0, CANN_GELU_TANH = 1 }; /* of GeluV2: int64_t approximate */

enum cann_cube_math_type { /* of Mm, Matmul and BatchMatMul: int8_t cubeMathType */
    CANN_KEEP_DTYPE = 0,
    CANN_ALLOW_FP32_DOWN_PRECISION = 1,
    CANN_USE_FP16 = 2,
    CANN_USE_HF32 = 3,
};

/* aclnn/acl_meta.h; objects of the host, they touch no device */
typedef struct aclTensor aclTensor;
typedef struct aclScalar aclScalar;
typedef struct aclIntArray aclIntArray;
typedef struct aclTensorList aclTensorList;
typedef struct aclOpExecutor aclOpExecutor;

/* Values of aclError and aclnnStatus that mean something here: X(value, name, meaning). */
#define CANN_ERRORS(X)                                                                             \
    X(100000, ACL_ERROR_INVALID_PARAM, "an argument is invalid")                                   \
    X(100001, ACL_ERROR_UNINITIALIZE, "the runtime is not initialised")                            \
    X(100002, ACL_ERROR_REPEAT_INITIALIZE, "the runtime is initialised already")                   \
    X(100037, ACL_ERROR_REPEAT_FINALIZE, "the runtime is finalised already")                       \
    X(107000, ACL_ERROR_RT_PARAM_INVALID, "an argument is invalid")                                \
    X(107001, ACL_ERROR_RT_INVALID_DEVICEID, "there is no such device")                            \
    X(107002, ACL_ERROR_RT_CONTEXT_NULL, "this thread has set no device")                          \
    X(107003, ACL_ERROR_RT_STREAM_CONTEXT, "the stream is of another context")                     \
    X(107017, ACL_ERROR_RT_INVALID_HANDLE, "the handle is invalid")                                \
    X(107019, ACL_ERROR_RT_WAIT_TIMEOUT, "a wait took too long")                                   \
    X(200000, ACL_ERROR_BAD_ALLOC, "out of host memory")                                           \
    X(200001, ACL_ERROR_API_NOT_SUPPORT, "this chip or driver has no such function")               \
    X(207000, ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "this chip or driver has no such feature")         \
    X(207001, ACL_ERROR_RT_MEMORY_ALLOCATION, "out of memory")                                     \
    X(207004, ACL_ERROR_RT_NO_DEVICE, "no device")                                                 \
    X(207005, ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, "too many objects")                                \
    X(207007, ACL_ERROR_RT_NO_EVENT_RESOURCE, "too many events")                                   \
    X(207008, ACL_ERROR_RT_NO_STREAM_RESOURCE, "too many streams")                                 \
    X(207018, ACL_ERROR_RT_DEVICE_OOM, "out of device memory")                                     \
    X(300000, ACL_ERROR_STORAGE_OVER_LIMIT, "out of memory")                                       \
    X(500000, ACL_ERROR_INTERNAL_ERROR, "an internal error")                                       \
    X(500001, ACL_ERROR_FAILURE, "an internal failure")                                            \
    X(500002, ACL_ERROR_GE_FAILURE, "an internal failure of the graph engine")                     \
    X(500003, ACL_ERROR_RT_FAILURE, "an internal failure of the runtime")                          \
    X(500004, ACL_ERROR_DRV_FAILURE, "an internal failure of the driver")                          \
    X(500005, ACL_ERROR_PROFILING_FAILURE, "an internal failure of the profiler")                  \
    X(507014, ACL_ERROR_RT_AICORE_TIMEOUT, "a kernel took too long")                               \
    X(507015, ACL_ERROR_RT_AICORE_EXCEPTION, "a kernel failed")                                    \
    X(507016, ACL_ERROR_RT_AICORE_TRAP_EXCEPTION, "a kernel trapped")                              \
    X(507017, ACL_ERROR_RT_AICPU_TIMEOUT, "a kernel on the AI CPU took too long")                  \
    X(507018, ACL_ERROR_RT_AICPU_EXCEPTION, "a kernel on the AI CPU failed")                       \
    X(507034, ACL_ERROR_RT_VECTOR_CORE_TIMEOUT, "a vector kernel took too long")                   \
    X(507035, ACL_ERROR_RT_VECTOR_CORE_EXCEPTION, "a vector kernel failed")                        \
    X(507046, ACL_ERROR_RT_STREAM_SYNC_TIMEOUT, "a stream took too long")                          \
    X(507047, ACL_ERROR_RT_EVENT_SYNC_TIMEOUT, "an event took too long")                           \
    X(507053, ACL_ERROR_RT_DEVICE_MEM_ERROR, "the device's memory failed")                         \
    X(507054, ACL_ERROR_RT_HBM_MULTI_BIT_ECC_ERROR, "the device's memory has a broken cell")       \
    X(507899, ACL_ERROR_RT_DRV_INTERNAL_ERROR,                                                     \
      "the driver failed; often /dev/davinci* may not be opened, or versions differ")              \
    X(507910, ACL_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "the host memory is registered already")   \
    X(507911, ACL_ERROR_HOST_MEMORY_NOT_REGISTERED, "the host memory is not registered")           \
    X(161001, ACLNN_ERR_PARAM_NULLPTR, "an argument is missing")                                   \
    X(161002, ACLNN_ERR_PARAM_INVALID, "an argument's dtype, format or shape is refused")          \
    X(361001, ACLNN_ERR_RUNTIME_ERROR, "a call of the runtime failed")                             \
    X(561000, ACLNN_ERR_INNER, "an internal error")                                                \
    X(561002, ACLNN_ERR_INNER_TILING_ERROR, "the work could not be split into tiles")              \
    X(561003, ACLNN_ERR_INNER_FIND_KERNEL_ERROR,                                                   \
      "there is no kernel; often the kernels package of this chip is not installed")               \
    X(561103, ACLNN_ERR_INNER_NULLPTR, "an internal error: something is missing")                  \
    X(561107, ACLNN_ERR_INNER_OPP_PATH_NOT_FOUND,                                                  \
      "ASCEND_OPP_PATH is not set; source CANN's set_env.sh first")                                \
    X(561112, ACLNN_ERR_INNER_OPP_KERNEL_PKG_NOT_FOUND, "the kernels package is not installed")

/* NOLINTNEXTLINE(bugprone-macro-parentheses): a name has none. */
#define CANN_ERROR_VALUE(value, name, meaning) name = value,
enum cann_error { CANN_ERRORS(CANN_ERROR_VALUE) ACL_SUCCESS = 0 };
#undef CANN_ERROR_VALUE

/* ---- functions: X(need, since, return type, name, (parameters)) ---- */

/* libascendcl.so: acl.h, acl_rt.h. Process and device. */
#define CANN_ASCENDCL_DEVICE(X)                                                                    \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclInit, (const char *config_path))                       \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclFinalize, (void))                                      \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclrtGetVersion,                                          \
      (int32_t *major, int32_t *minor, int32_t *patch))                                            \
    X(CANN_REQUIRED, CANN_8_1, const char *, aclGetRecentErrMsg, (void))                           \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclrtGetDeviceCount, (uint32_t *count))                   \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclrtSetDevice, (int32_t device_id))                      \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclrtResetDevice, (int32_t device_id))                    \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclrtSynchronizeDevice, (void))                           \
    X(CANN_REQUIRED, CANN_8_1, const char *, aclrtGetSocName, (void))                              \
    X(CANN_OPTIONAL, CANN_8_1, aclError, aclrtDeviceGetBareTgid, (int32_t *pid))

/* libascendcl.so: memory and copies. */
#define CANN_ASCENDCL_MEMORY(X)                                                                    \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclrtGetMemInfo,                                          \
      (aclrtMemAttr attr, size_t *free, size_t *total))                                            \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclrtMalloc,                                              \
      (void **device_memory, size_t size, aclrtMemMallocPolicy policy))                            \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclrtFree, (void *device_memory))                         \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclrtMallocHost, (void **host_memory, size_t size))       \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclrtFreeHost, (void *host_memory))                       \
    X(CANN_OPTIONAL, CANN_8_1, aclError, aclrtMemcpy,                                              \
      (void *dst, size_t dst_size, const void *src, size_t count, aclrtMemcpyKind kind))           \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclrtMemcpyAsync,                                         \
      (void *dst, size_t dst_size, const void *src, size_t count, aclrtMemcpyKind kind,            \
       aclrtStream stream))                                                                        \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclrtMemsetAsync,                                         \
      (void *device_memory, size_t max_count, int32_t value, size_t count, aclrtStream stream))    \
    X(CANN_OPTIONAL, CANN_LATER, aclError, aclrtHostRegisterV2,                                    \
      (void *host_memory, uint64_t size, uint32_t flags))                                          \
    X(CANN_OPTIONAL, CANN_8_1, aclError, aclrtHostUnregister, (void *host_memory))                 \
    X(CANN_OPTIONAL, CANN_LATER, aclError, aclrtIpcMemGetExportKey,                                \
      (void *device_memory, size_t size, char *key, size_t key_size, uint64_t flags))              \
    X(CANN_OPTIONAL, CANN_LATER, aclError, aclrtIpcMemImportByKey,                                 \
      (void **device_memory, const char *key, uint64_t flags))                                     \
    X(CANN_OPTIONAL, CANN_LATER, aclError, aclrtIpcMemClose, (const char *key))

/* libascendcl.so: streams and events. */
#define CANN_ASCENDCL_STREAM(X)                                                                    \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclrtCreateStreamWithConfig,                              \
      (aclrtStream *stream, uint32_t priority, uint32_t flags))                                    \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclrtDestroyStream, (aclrtStream stream))                 \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclrtSynchronizeStream, (aclrtStream stream))             \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclrtStreamWaitEvent,                                     \
      (aclrtStream stream, aclrtEvent event))                                                      \
    X(CANN_OPTIONAL, CANN_LATER, aclError, aclrtCreateEventExWithFlag,                             \
      (aclrtEvent *event, uint32_t flags))                                                         \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclrtCreateEvent, (aclrtEvent *event))                    \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclrtDestroyEvent, (aclrtEvent event))                    \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclrtRecordEvent,                                         \
      (aclrtEvent event, aclrtStream stream))                                                      \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclrtQueryEventStatus,                                    \
      (aclrtEvent event, aclrtEventRecordedStatus *status))                                        \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclrtSynchronizeEvent, (aclrtEvent event))                \
    X(CANN_REQUIRED, CANN_8_1, aclError, aclrtEventElapsedTime,                                    \
      (float *milliseconds, aclrtEvent from, aclrtEvent to))

#define CANN_ASCENDCL(X) CANN_ASCENDCL_DEVICE(X) CANN_ASCENDCL_MEMORY(X) CANN_ASCENDCL_STREAM(X)

/* libnnopbase.so: aclnn/acl_meta.h. Strides and offset count elements, strides NULL: contiguous;
 * tensor_data is the start of the storage. Dims and values are copied, the data is borrowed.
 * A list owns its tensors. */
#define CANN_NNOPBASE(X)                                                                           \
    X(CANN_REQUIRED, CANN_8_1, aclTensor *, aclCreateTensor,                                       \
      (const int64_t *view_dims, uint64_t view_dims_num, aclDataType data_type,                    \
       const int64_t *stride, int64_t offset, aclFormat format, const int64_t *storage_dims,       \
       uint64_t storage_dims_num, void *tensor_data))                                              \
    X(CANN_REQUIRED, CANN_8_1, aclnnStatus, aclDestroyTensor, (const aclTensor *tensor))           \
    X(CANN_REQUIRED, CANN_8_1, aclScalar *, aclCreateScalar, (void *value, aclDataType data_type)) \
    X(CANN_REQUIRED, CANN_8_1, aclnnStatus, aclDestroyScalar, (const aclScalar *scalar))           \
    X(CANN_OPTIONAL, CANN_8_1, aclIntArray *, aclCreateIntArray,                                   \
      (const int64_t *value, uint64_t size))                                                       \
    X(CANN_OPTIONAL, CANN_8_1, aclnnStatus, aclDestroyIntArray, (const aclIntArray *array))        \
    X(CANN_OPTIONAL, CANN_8_1, aclTensorList *, aclCreateTensorList,                               \
      (const aclTensor *const *value, uint64_t size))                                              \
    X(CANN_OPTIONAL, CANN_8_1, aclnnStatus, aclDestroyTensorList, (const aclTensorList *list))     \
    X(CANN_OPTIONAL, CANN_8_1, aclnnStatus, aclSetAclOpExecutorRepeatable,                         \
      (aclOpExecutor *executor))                                                                   \
    X(CANN_REQUIRED, CANN_8_1, aclnnStatus, aclDestroyAclOpExecutor, (aclOpExecutor *executor))    \
    X(CANN_OPTIONAL, CANN_8_1, aclnnStatus, aclSetTensorAddr,                                      \
      (aclOpExecutor *executor, const size_t index, aclTensor *tensor, void *addr))                \
    X(CANN_OPTIONAL, CANN_8_1, aclnnStatus, aclSetInputTensorAddr,                                 \
      (aclOpExecutor *executor, const size_t index, aclTensor *tensor, void *addr))                \
    X(CANN_OPTIONAL, CANN_8_1, aclnnStatus, aclSetOutputTensorAddr,                                \
      (aclOpExecutor *executor, const size_t index, aclTensor *tensor, void *addr))

/* ---- operators: X(need, since, Name, parameters of phase 1 ...) ----
 *
 * Each line is two functions: aclnn<Name>GetWorkspaceSize(parameters, uint64_t *workspace_size,
 * aclOpExecutor **executor), which checks, chooses tiles and launches nothing, and
 * aclnn<Name>(workspace, workspace_size, executor, stream), which queues the kernels and consumes
 * the executor. All are in libopapi.so; newer releases have them in three libraries, which the
 * names of the lists give.
 *
 * These are all that op*.c calls, the plainest of their kind; docs/ascend.md says why not others.
 * How they are called: activations are FLOAT; views may have strides, inputs as well as outputs,
 * but for a FRACTAL_NZ one, whose last two dimensions are contiguous; elementwise operators
 * broadcast; indices are INT32 and in range. */

/* libopapi_math.so
 *     InplaceCopy        any strides, and from FLOAT to BF16 or FLOAT16 and back
 *     InplaceFillScalar  FLOAT
 *     Triu, Tril         FLOAT, [rows, keys], any diagonal
 *     Tanh, Clamp        FLOAT; of Clamp one bound may be missing */
#define CANN_OPAPI_MATH(X)                                                                         \
    X(CANN_REQUIRED, CANN_8_1, Add, const aclTensor *self, const aclTensor *other,                 \
      const aclScalar *alpha, aclTensor *out)                                                      \
    X(CANN_REQUIRED, CANN_8_1, InplaceAdd, const aclTensor *self, const aclTensor *other,          \
      const aclScalar *alpha)                                                                      \
    X(CANN_REQUIRED, CANN_8_1, Sub, const aclTensor *self, const aclTensor *other,                 \
      const aclScalar *alpha, aclTensor *out)                                                      \
    X(CANN_REQUIRED, CANN_8_1, Mul, const aclTensor *self, const aclTensor *other, aclTensor *out) \
    X(CANN_REQUIRED, CANN_8_1, InplaceMuls, aclTensor *self, const aclScalar *other)               \
    X(CANN_REQUIRED, CANN_8_1, InplaceCopy, aclTensor *self, const aclTensor *src)                 \
    X(CANN_REQUIRED, CANN_8_1, InplaceFillScalar, aclTensor *self, const aclScalar *value)         \
    X(CANN_REQUIRED, CANN_8_1, Triu, const aclTensor *self, int64_t diagonal, aclTensor *out)      \
    X(CANN_OPTIONAL, CANN_8_1, InplaceAdds, const aclTensor *self, const aclScalar *other,         \
      const aclScalar *alpha)                                                                      \
    X(CANN_OPTIONAL, CANN_8_1, Tanh, const aclTensor *self, aclTensor *out)                        \
    X(CANN_OPTIONAL, CANN_8_1, Clamp, const aclTensor *self, const aclScalar *min,                 \
      const aclScalar *max, aclTensor *out)                                                        \
    X(CANN_OPTIONAL, CANN_8_1, Tril, const aclTensor *self, int64_t diagonal, aclTensor *out)      \
    X(CANN_OPTIONAL, CANN_8_3, NpuFormatCast, const aclTensor *src, aclTensor *dst)

/* libopapi_nn.so
 *     Mm, BatchMatMul    BF16 x BF16 -> FLOAT, FLOAT16 x FLOAT16 -> FLOAT, FLOAT x FLOAT -> FLOAT;
 *                        mat2 is a transposed view (strides [1, k] in the last two dimensions), of
 *                        ND
 *     MatmulWeightNz     the same in two dimensions but for FLOAT; mat2 has the view [k, n],
 * strides
 *                        [n, 1], format FRACTAL_NZ and storage [n/16, k/16, 16, 16]
 *     RmsNorm            FLOAT throughout; x [rows, groups, width], gamma [width]
 *     SwiGlu             FLOAT, dim -1
 *     Silu, Sigmoid, GeluV2      FLOAT
 *     Softmax            FLOAT, dim -1
 *     IndexSelect        dim 0, of FLOAT, BF16 and FLOAT16
 *     InplaceIndexCopy   dim 0, FLOAT */
#define CANN_OPAPI_NN(X)                                                                           \
    X(CANN_REQUIRED, CANN_8_1, Mm, const aclTensor *self, const aclTensor *mat2, aclTensor *out,   \
      int8_t cube_math_type)                                                                       \
    X(CANN_REQUIRED, CANN_8_1, BatchMatMul, const aclTensor *self, const aclTensor *mat2,          \
      aclTensor *out, int8_t cube_math_type)                                                       \
    X(CANN_OPTIONAL, CANN_LATER, MatmulWeightNz, const aclTensor *self, const aclTensor *mat2,     \
      aclTensor *out, int8_t cube_math_type)                                                       \
    X(CANN_REQUIRED, CANN_8_1, RmsNorm, const aclTensor *x, const aclTensor *gamma,                \
      double epsilon, const aclTensor *y, const aclTensor *rstd)                                   \
    X(CANN_REQUIRED, CANN_8_1, SwiGlu, const aclTensor *x, int64_t dim, const aclTensor *out)      \
    X(CANN_REQUIRED, CANN_8_1, Silu, const aclTensor *self, aclTensor *out)                        \
    X(CANN_OPTIONAL, CANN_8_1, Sigmoid, const aclTensor *self, aclTensor *out)                     \
    X(CANN_OPTIONAL, CANN_8_1, GeluV2, const aclTensor *x, int64_t approximate, aclTensor *y)      \
    X(CANN_REQUIRED, CANN_8_1, Softmax, const aclTensor *self, int64_t dim, aclTensor *out)        \
    X(CANN_REQUIRED, CANN_8_1, IndexSelect, const aclTensor *self, int64_t dim,                    \
      const aclTensor *index, aclTensor *out)                                                      \
    X(CANN_REQUIRED, CANN_8_1, InplaceIndexCopy, aclTensor *self, int64_t dim,                     \
      const aclTensor *index, const aclTensor *source)

#define CANN_OPERATORS(X) CANN_OPAPI_MATH(X) CANN_OPAPI_NN(X)

/* libopapi_math.so: functions that are no operators. */
#define CANN_OPAPI_FUNCTIONS(X)                                                                    \
    X(CANN_OPTIONAL, CANN_8_3, aclnnStatus, aclnnNpuFormatCastCalculateSizeAndFormat,              \
      (const aclTensor *src, const int dst_format, int additional_dtype, int64_t **dst_shape,      \
       uint64_t *dst_shape_size, int *actual_format))

/* ---- prototypes, for a library that defines these functions ---- */

#ifdef CANN_WITH_PROTOTYPES
#define CANN_PROTOTYPE(need, since, type, name, parameters)                                        \
    __attribute__((visibility("default"))) type name parameters;
#define CANN_PROTOTYPES(need, since, name, ...)                                                    \
    __attribute__((visibility("default"))) aclnnStatus aclnn##name##GetWorkspaceSize(              \
        __VA_ARGS__, uint64_t *workspace_size, aclOpExecutor **executor);                          \
    __attribute__((visibility("default"))) aclnnStatus aclnn##name(                                \
        void *workspace, uint64_t workspace_size, aclOpExecutor *executor, aclrtStream stream);
CANN_ASCENDCL(CANN_PROTOTYPE)
CANN_NNOPBASE(CANN_PROTOTYPE)
CANN_OPAPI_FUNCTIONS(CANN_PROTOTYPE)
CANN_OPERATORS(CANN_PROTOTYPES)
#endif

#endif
