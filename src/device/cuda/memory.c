/* device/cuda/memory.c - memory of the GPU, host memory that it copies from, memory of peers.
 *
 * Host memory is mapped here, so that it has huge pages, and then registered, which pins it. Its
 * pages are taken when it is registered; for that moment the thread prefers the host memory next to
 * the GPU (set_mempolicy(2)), since a copy from another processor's memory crosses the link between
 * them too.
 *
 * Memory that others have made, such as a segment that ranks share, is registered as well. It may
 * be read-only, and some drivers refuse that: then it stays as it is, and CUDA copies from it
 * through a buffer of its own, which is slower and no less right.
 *
 * Memory that ranks share goes by CUDA's handles for other processes. CUDA counts how often one is
 * opened; the same GPU may be its owner's and the reader's. */
#include <assert.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/size.h"
#include "device/cuda/internal.h"
#include "device/host_memory.h"

#define PAGE_BYTES UINT64_C(4096)
#define POLICY_DEFAULT 0 /* linux/mempolicy.h */
#define POLICY_PREFERRED 1

/* ---- the device's own ---- */

enum status cuda__alloc(struct device *base, uint64_t size_bytes, void **memory_out,
                        struct err *err)
{
    const struct cuda_device *device = (const struct cuda_device *)base;
    const enum status st = cuda__enter(device, err);
    char size[24];
    int code;

    if (st != STATUS_OK)
        return st;
    /* Kernels read whole pieces of 16 bytes. */
    code = device->module->memory_alloc(size_align_up(size_bytes, DEVICE_ALIGNMENT), memory_out);
    return code == 0 ? STATUS_OK
                     : cuda__fail(device->module, base->info.name, code, err, "cudaMalloc of %s",
                                  size_format(size_bytes, size, sizeof(size)));
}

void cuda__free(struct device *base, void *memory, uint64_t size_bytes)
{
    const struct cuda_device *device = (const struct cuda_device *)base;

    (void)size_bytes;
    (void)cuda__enter(device, NULL);
    (void)device->module->memory_free(memory); /* nobody could do anything about a failure */
}

/* ---- host memory ---- */

/* From now on the thread's new pages come from the node, where it has some; -1: from anywhere. */
static void prefer_node(int node)
{
    unsigned long nodes[16] = { 0 };
    const size_t bits = 8 * sizeof(nodes[0]);

    if (node >= 0 && (size_t)node < sizeof(nodes) * 8)
        nodes[(size_t)node / bits] = 1ul << (size_t)node % bits;
    else
        node = -1;
    (void)syscall(SYS_set_mempolicy, node >= 0 ? POLICY_PREFERRED : POLICY_DEFAULT,
                  node >= 0 ? nodes : NULL, node >= 0 ? sizeof(nodes) * 8 : 0);
}

enum status cuda__host_alloc(struct device *base, uint64_t size_bytes, void **memory_out,
                             struct err *err)
{
    const struct cuda_device *device = (const struct cuda_device *)base;
    enum status st = cuda__enter(device, err);
    void *memory = NULL;
    char size[24];
    int code;

    if (st == STATUS_OK)
        st = host_memory_map(base->info.name, size_bytes, &memory, err);
    if (st != STATUS_OK)
        return st;
    prefer_node(device->facts.numa_node);
    code = device->module->host_register(memory, size_align_up(size_bytes, PAGE_BYTES), false);
    prefer_node(-1);
    if (code != 0) {
        host_memory_unmap(memory, size_bytes);
        return cuda__fail(device->module, base->info.name, code, err, "cudaHostRegister of %s",
                          size_format(size_bytes, size, sizeof(size)));
    }
    *memory_out = memory;
    return STATUS_OK;
}

void cuda__host_free(struct device *base, void *memory, uint64_t size_bytes)
{
    const struct cuda_device *device = (const struct cuda_device *)base;

    (void)cuda__enter(device, NULL);
    (void)device->module->host_unregister(memory);
    host_memory_unmap(memory, size_bytes);
}

enum status cuda__host_register(struct device *base, const void *memory, uint64_t size_bytes,
                                struct err *err)
{
    const struct cuda_device *device = (const struct cuda_device *)base;
    const enum status st = cuda__enter(device, err);
    void *writable = (void *)memory; /* nothing is written */

    if (st == STATUS_OK && device->module->host_register(writable, size_bytes, false) != 0 &&
        device->facts.registers_read_only)
        (void)device->module->host_register(writable, size_bytes, true);
    return st;
}

void cuda__host_unregister(struct device *base, const void *memory, uint64_t size_bytes)
{
    const struct cuda_device *device = (const struct cuda_device *)base;

    (void)size_bytes;
    (void)cuda__enter(device, NULL);
    (void)device->module->host_unregister((void *)memory);
}

/* ---- memory that ranks share ---- */

enum status cuda__shared_alloc(struct device *base, uint64_t size_bytes, void **memory_out,
                               struct device_handle *handle_out, struct err *err)
{
    const struct cuda_device *device = (const struct cuda_device *)base;
    void *memory = NULL;
    const enum status st = cuda__alloc(base, size_bytes, &memory, err);
    int code;

    if (st != STATUS_OK)
        return st;
    static_assert(CUDA_MODULE_HANDLE_BYTES <= sizeof(handle_out->opaque), "it has room");
    code = device->module->share(memory, handle_out->opaque);
    if (code != 0) {
        cuda__free(base, memory, size_bytes);
        return cuda__fail(device->module, base->info.name, code, err, "cudaIpcGetMemHandle");
    }
    *memory_out = memory;
    return STATUS_OK;
}

void cuda__shared_free(struct device *base, void *memory, uint64_t size_bytes)
{
    cuda__free(base, memory, size_bytes);
}

enum status cuda__peer_open(struct device *base, const struct device_handle *handle,
                            const void **memory_out, struct err *err)
{
    const struct cuda_device *device = (const struct cuda_device *)base;
    const enum status st = cuda__enter(device, err);
    void *memory = NULL;
    struct err why;
    int code;

    if (st != STATUS_OK)
        return st;
    code = device->module->shared_open(handle->opaque, &memory);
    if (code != 0) {
        (void)cuda__fail(device->module, base->info.name, code, &why, "cudaIpcOpenMemHandle");
        return err_set(err, STATUS_PEER, "the memory that a peer shared cannot be read, as if the "
                       "peer is gone: %.600s", why.message);
    }
    *memory_out = memory;
    return STATUS_OK;
}

void cuda__peer_close(struct device *base, const void *memory, uint64_t size_bytes)
{
    const struct cuda_device *device = (const struct cuda_device *)base;

    (void)size_bytes;
    (void)cuda__enter(device, NULL);
    (void)device->module->shared_close((void *)memory);
}
