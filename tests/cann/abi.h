/* tests/cann/abi.h - CANN's interface as the stand-in provides it: what the backend declares
 * (device/ascend/cann.h, whose signatures are thereby checked at compile time), and what it does
 * not use but a program written for CANN may expect. Source: the reference's sections 1 and 2. */
#ifndef CANN_ABI_H
#define CANN_ABI_H

#define CANN_WITH_PROTOTYPES
#include "device/ascend/cann.h"

#define STANDIN_API __attribute__((visibility("default")))

typedef void *aclrtContext;
typedef enum aclrtRunMode { ACL_DEVICE = 0, ACL_HOST = 1 } aclrtRunMode;
typedef enum aclrtStreamStatus {
    ACL_STREAM_STATUS_COMPLETE = 0,
    ACL_STREAM_STATUS_NOT_READY = 1,
} aclrtStreamStatus;
typedef enum { ACL_HOST_REGISTER_MAPPED = 0 } aclrtHostRegisterType;
typedef enum aclrtMemLocationType {
    ACL_MEM_LOCATION_TYPE_HOST = 0,
    ACL_MEM_LOCATION_TYPE_DEVICE = 1,
} aclrtMemLocationType;
typedef struct aclrtMemLocation {
    uint32_t id;
    aclrtMemLocationType type;
} aclrtMemLocation;
typedef struct aclrtPtrAttributes {
    aclrtMemLocation location;
    uint32_t pageSize;
    uint32_t rsv[4];
} aclrtPtrAttributes;

#pragma GCC visibility push(default)
aclError aclrtResetDeviceForce(int32_t device_id);
aclError aclrtGetDevice(int32_t *device_id);
aclError aclrtGetRunMode(aclrtRunMode *mode);
aclError aclrtCreateContext(aclrtContext *context, int32_t device_id);
aclError aclrtDestroyContext(aclrtContext context);
aclError aclrtSetCurrentContext(aclrtContext context);
aclError aclrtGetCurrentContext(aclrtContext *context);
aclError aclrtMallocAlign32(void **memory, size_t size, aclrtMemMallocPolicy policy);
aclError aclrtHostRegister(void *memory, uint64_t size, aclrtHostRegisterType type, void **device);
aclError aclrtPointerGetAttributes(const void *memory, aclrtPtrAttributes *attributes);
aclError aclrtMemcpy2d(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width,
                       size_t height, aclrtMemcpyKind kind);
aclError aclrtMemcpy2dAsync(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width,
                            size_t height, aclrtMemcpyKind kind, aclrtStream stream);
aclError aclrtMemset(void *memory, size_t max_count, int32_t value, size_t count);
aclError aclrtCreateStream(aclrtStream *stream);
aclError aclrtDestroyStreamForce(aclrtStream stream);
aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t timeout_ms);
aclError aclrtStreamQuery(aclrtStream stream, aclrtStreamStatus *status);
aclError aclrtCreateEventWithFlag(aclrtEvent *event, uint32_t flags);
aclError aclrtResetEvent(aclrtEvent event, aclrtStream stream);
aclError aclrtSynchronizeEventWithTimeout(aclrtEvent event, int32_t timeout_ms);
aclError aclrtDeviceCanAccessPeer(int32_t *can, int32_t device_id, int32_t peer_id);
aclError aclrtDeviceEnablePeerAccess(int32_t peer_id, uint32_t flags);
aclError aclrtDeviceDisablePeerAccess(int32_t peer_id);
/* The backend lists these too, as long as it likes. */
aclError aclrtMemcpy(void *dst, size_t dst_size, const void *src, size_t count,
                     aclrtMemcpyKind kind);
aclIntArray *aclCreateIntArray(const int64_t *values, uint64_t count);
aclnnStatus aclDestroyIntArray(const aclIntArray *array);
aclTensorList *aclCreateTensorList(const aclTensor *const *tensors, uint64_t count);
aclnnStatus aclDestroyTensorList(const aclTensorList *list);
aclnnStatus aclSetAclOpExecutorRepeatable(aclOpExecutor *executor);
aclnnStatus aclSetTensorAddr(aclOpExecutor *executor, const size_t index, aclTensor *tensor,
                             void *address);
aclnnStatus aclSetInputTensorAddr(aclOpExecutor *executor, const size_t index, aclTensor *tensor,
                                  void *address);
aclnnStatus aclSetOutputTensorAddr(aclOpExecutor *executor, const size_t index, aclTensor *tensor,
                                   void *address);
aclnnStatus aclnnNpuFormatCastCalculateSizeAndFormat(const aclTensor *src, const int format,
                                                     int extra_dtype, int64_t **shape,
                                                     uint64_t *rank, int *actual_format);
aclError aclrtIpcMemSetImportPid(const char *key, int32_t *pid, size_t count);
#pragma GCC visibility pop

#endif
