/* device/ascend/memory.c - memory of the NPU, host memory that it copies from, memory of peers.
 *
 * Device memory comes from aclrtMalloc, which aligns to 64 bytes at least: where that is not
 * DEVICE_ALIGNMENT, a larger piece is taken and its address rounded up.
 *
 * Host memory must be pinned, or aclrtMemcpyAsync waits for the copy. aclrtHostRegisterV2 pins
 * ordinary memory, and keeps its huge pages and its zeros; CANN 8.1 lacks it, and there
 * aclrtMallocHost gives pinned memory. Memory that others have made (a segment that ranks share) is
 * registered in pieces of REGISTER_BYTES, since one very large one is refused where several
 * smaller ones are not; where that fails it stays as it is, and stream.c copies through a pinned
 * buffer of its own.
 *
 * Memory that ranks share goes by aclrtIpcMem*: a key names a whole allocation, which must be made
 * of whole huge pages. A peer's memory is imported once, however often it is opened, and only
 * copies between devices may read it (CANN's runtime, "aclrtIpcMemImportByKey").
 *
 * Each kind has its ranges, in the order of their addresses. */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "device/ascend/internal.h"
#include "device/host_memory.h"

#define PAGE_BYTES UINT64_C(4096)
#define HUGE_PAGE_BYTES UINT64_C(2097152)
#define REGISTER_BYTES (UINT64_C(4) << 30)
#define KEY_BYTES 80

enum host_way {
    HOST_MALLOC,     /* of aclrtMallocHost */
    HOST_MAPPED,     /* our own mapping, registered */
    HOST_REGISTERED, /* the caller's, registered */
    HOST_PAGEABLE,   /* the caller's, which could not be registered */
};

struct range {
    char *memory;
    uint64_t size_bytes;
    void *raw;              /* what CANN gave: to be freed */
    enum host_way way;      /* of host memory */
    uint32_t use_count;     /* of a peer's memory: how often it is open */
    char key[KEY_BYTES];    /* of shared and of a peer's memory */
};

struct ranges {
    struct range *items;    /* in the order of `memory` */
    size_t count, capacity;
};

struct ascend_memory {
    struct ranges device, host, shared, peers;
};

/* ---- ranges ---- */

/* The index of the first range that begins above `memory`. */
static size_t above(const struct ranges *ranges, const void *memory)
{
    size_t low = 0, high = ranges->count;

    while (low < high) {
        const size_t middle = low + (high - low) / 2;

        if ((uintptr_t)ranges->items[middle].memory <= (uintptr_t)memory)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Makes room for one more, so that noting it cannot fail. */
static enum status ranges_reserve(struct ranges *ranges, const char *name, struct err *err)
{
    const size_t capacity = ranges->capacity == 0 ? 16 : ranges->capacity * 2;
    struct range *items;

    if (ranges->count < ranges->capacity)
        return STATUS_OK;
    items = realloc(ranges->items, capacity * sizeof(*items));
    if (items == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory to note an allocation", name);
    ranges->items = items;
    ranges->capacity = capacity;
    return STATUS_OK;
}

static void ranges_add(struct ranges *ranges, const struct range *range)
{
    const size_t at = above(ranges, range->memory);

    assert(ranges->count < ranges->capacity);
    memmove(&ranges->items[at + 1], &ranges->items[at],
            (ranges->count - at) * sizeof(ranges->items[0]));
    ranges->items[at] = *range;
    ranges->count++;
}

/* The range that holds the address, or NULL. */
static struct range *ranges_find(const struct ranges *ranges, const void *memory)
{
    const size_t at = above(ranges, memory);
    struct range *range = at > 0 ? &ranges->items[at - 1] : NULL;

    return range != NULL && (uintptr_t)memory - (uintptr_t)range->memory < range->size_bytes
               ? range : NULL;
}

/* Takes out the range that begins there. */
static struct range ranges_take(struct ranges *ranges, const void *memory)
{
    struct range *found = ranges_find(ranges, memory);
    struct range range;

    assert(found != NULL && found->memory == memory);
    range = *found;
    ranges->count--;
    memmove(found, found + 1,
            (size_t)(&ranges->items[ranges->count] - found) * sizeof(ranges->items[0]));
    return range;
}

static bool holds(const struct range *range, const void *memory, uint64_t size_bytes)
{
    return range != NULL && size_bytes <= range->size_bytes - ((uintptr_t)memory -
                                                               (uintptr_t)range->memory);
}

/* ---- the device's own ---- */

enum status ascend__memory_create(struct ascend_device *device, struct err *err)
{
    device->memory = calloc(1, sizeof(*device->memory));
    return device->memory != NULL
               ? STATUS_OK
               : err_set(err, STATUS_NO_MEMORY, "%s: no memory for a device",
                         device->base.info.name);
}

void ascend__memory_destroy(struct ascend_device *device)
{
    struct ascend_memory *memory = device->memory;

    if (memory == NULL)
        return;
    assert(memory->device.count == 0 && memory->host.count == 0);
    assert(memory->shared.count == 0 && memory->peers.count == 0);
    free(memory->device.items);
    free(memory->host.items);
    free(memory->shared.items);
    free(memory->peers.items);
    free(memory);
    device->memory = NULL;
}

static enum status malloc_device(const struct ascend_device *device, uint64_t size_bytes,
                                 aclrtMemMallocPolicy policy, void **memory_out, struct err *err)
{
    const int code = device->cann->aclrtMalloc(memory_out, size_bytes, policy);
    char size[24];

    return code == ACL_SUCCESS
               ? STATUS_OK
               : ascend__fail(device->cann, device->base.info.name, code, err,
                              "aclrtMalloc of %s", size_format(size_bytes, size, sizeof(size)));
}

enum status ascend__alloc(struct device *base, uint64_t size_bytes, void **memory_out,
                          struct err *err)
{
    struct ascend_device *device = (struct ascend_device *)base;
    struct range range = { .size_bytes = size_bytes };
    enum status st = ascend__enter(device, err);

    if (st == STATUS_OK)
        st = ranges_reserve(&device->memory->device, base->info.name, err);
    if (st == STATUS_OK)
        st = malloc_device(device, size_bytes, ACL_MEM_MALLOC_HUGE_FIRST, &range.raw, err);
    if (st == STATUS_OK && (uintptr_t)range.raw % DEVICE_ALIGNMENT != 0) {
        (void)device->cann->aclrtFree(range.raw);
        st = malloc_device(device, size_bytes + DEVICE_ALIGNMENT, ACL_MEM_MALLOC_HUGE_FIRST,
                           &range.raw, err);
    }
    if (st != STATUS_OK)
        return st;
    range.memory = (char *)range.raw +
                   (DEVICE_ALIGNMENT - (uintptr_t)range.raw % DEVICE_ALIGNMENT) % DEVICE_ALIGNMENT;
    ranges_add(&device->memory->device, &range);
    *memory_out = range.memory;
    return STATUS_OK;
}

void ascend__free(struct device *base, void *memory, uint64_t size_bytes)
{
    struct ascend_device *device = (struct ascend_device *)base;
    const struct range range = ranges_take(&device->memory->device, memory);

    assert(range.size_bytes == size_bytes);
    (void)size_bytes;
    (void)ascend__enter(device, NULL);
    (void)device->cann->aclrtFree(range.raw); /* nobody could do anything about a failure */
}

/* ---- host memory ---- */

static void unregister(const struct ascend_device *device, char *memory, uint64_t size_bytes)
{
    if (device->cann->aclrtHostUnregister == NULL)
        return;
    for (uint64_t done = 0; done < size_bytes; done += REGISTER_BYTES)
        (void)device->cann->aclrtHostUnregister(memory + done);
}

/* All of it, or nothing. */
static enum status register_pieces(const struct ascend_device *device, char *memory,
                                   uint64_t size_bytes, struct err *err)
{
    const struct ascend_cann *cann = device->cann;

    if (cann->aclrtHostRegisterV2 == NULL || cann->aclrtHostUnregister == NULL)
        return err_set(err, STATUS_UNAVAILABLE, "%s: the installed CANN has no "
                       "aclrtHostRegisterV2", device->base.info.name);
    for (uint64_t done = 0; done < size_bytes; done += REGISTER_BYTES) {
        const uint64_t left = size_bytes - done;
        const int code = cann->aclrtHostRegisterV2(
            memory + done, left < REGISTER_BYTES ? left : REGISTER_BYTES, ACL_HOST_REG_PINNED);
        char size[24];

        if (code == ACL_SUCCESS)
            continue;
        unregister(device, memory, done);
        return ascend__fail(cann, device->base.info.name, code, err, "aclrtHostRegisterV2 of %s",
                            size_format(size_bytes, size, sizeof(size)));
    }
    return STATUS_OK;
}

static enum status malloc_host(const struct ascend_device *device, struct range *range,
                               struct err *err)
{
    const int code = device->cann->aclrtMallocHost(&range->raw, range->size_bytes + PAGE_BYTES);
    char size[24];

    if (code != ACL_SUCCESS)
        return ascend__fail(device->cann, device->base.info.name, code, err,
                            "aclrtMallocHost of %s",
                            size_format(range->size_bytes, size, sizeof(size)));
    range->way = HOST_MALLOC;
    range->memory = (char *)range->raw +
                    (PAGE_BYTES - (uintptr_t)range->raw % PAGE_BYTES) % PAGE_BYTES;
    memset(range->memory, 0, range->size_bytes);
    return STATUS_OK;
}

enum status ascend__host_alloc(struct device *base, uint64_t size_bytes, void **memory_out,
                               struct err *err)
{
    struct ascend_device *device = (struct ascend_device *)base;
    struct range range = { .size_bytes = size_bytes, .way = HOST_MAPPED };
    enum status st = ascend__enter(device, err);

    if (st == STATUS_OK)
        st = ranges_reserve(&device->memory->host, base->info.name, err);
    if (st != STATUS_OK)
        return st;
    if (device->cann->aclrtHostRegisterV2 != NULL) {
        st = host_memory_map(base->info.name, size_bytes, &range.raw, err);
        if (st != STATUS_OK)
            return st;
        range.memory = range.raw;
        st = register_pieces(device, range.memory, size_align_up(size_bytes, PAGE_BYTES), err);
        if (st != STATUS_OK) /* the driver may be older than the library */
            host_memory_unmap(range.raw, size_bytes);
    }
    if (device->cann->aclrtHostRegisterV2 == NULL || st == STATUS_UNAVAILABLE)
        st = malloc_host(device, &range, err);
    if (st != STATUS_OK)
        return st;
    ranges_add(&device->memory->host, &range);
    *memory_out = range.memory;
    return STATUS_OK;
}

void ascend__host_free(struct device *base, void *memory, uint64_t size_bytes)
{
    struct ascend_device *device = (struct ascend_device *)base;
    const struct range range = ranges_take(&device->memory->host, memory);

    assert(range.size_bytes == size_bytes);
    (void)ascend__enter(device, NULL);
    if (range.way == HOST_MALLOC) {
        (void)device->cann->aclrtFreeHost(range.raw);
        return;
    }
    unregister(device, range.memory, size_align_up(size_bytes, PAGE_BYTES));
    host_memory_unmap(range.raw, size_bytes);
}

enum status ascend__host_register(struct device *base, const void *memory, uint64_t size_bytes,
                                  struct err *err)
{
    struct ascend_device *device = (struct ascend_device *)base;
    const uintptr_t begin = (uintptr_t)memory & ~(uintptr_t)(PAGE_BYTES - 1);
    const uintptr_t end = size_align_up((uintptr_t)memory + size_bytes, PAGE_BYTES);
    struct range range = { .memory = (char *)memory, .size_bytes = size_bytes,
                           .way = HOST_REGISTERED };
    enum status st = ascend__enter(device, err);

    if (st == STATUS_OK)
        st = ranges_reserve(&device->memory->host, base->info.name, err);
    if (st != STATUS_OK)
        return st;
    range.raw = range.memory - ((uintptr_t)memory - begin);
    if (register_pieces(device, range.raw, end - begin, NULL) != STATUS_OK)
        range.way = HOST_PAGEABLE; /* slower, and as right: see stream.c */
    ranges_add(&device->memory->host, &range);
    return STATUS_OK;
}

void ascend__host_unregister(struct device *base, const void *memory, uint64_t size_bytes)
{
    struct ascend_device *device = (struct ascend_device *)base;
    const struct range range = ranges_take(&device->memory->host, memory);
    const uintptr_t end = size_align_up((uintptr_t)memory + size_bytes, PAGE_BYTES);

    assert(range.size_bytes == size_bytes);
    (void)ascend__enter(device, NULL);
    if (range.way == HOST_REGISTERED)
        unregister(device, range.raw, end - (uintptr_t)range.raw);
}

uint64_t ascend__pinned_bytes(const struct ascend_device *device, const void *memory,
                              uint64_t size_bytes)
{
    const struct range *range = ranges_find(&device->memory->host, memory);
    uint64_t offset_bytes, left_bytes;

    if (range == NULL || range->way == HOST_PAGEABLE)
        return 0;
    left_bytes = range->size_bytes - (uint64_t)((const char *)memory - range->memory);
    if (range->way != HOST_MALLOC) { /* not across two registrations */
        offset_bytes = (uint64_t)((const char *)memory - (const char *)range->raw);
        if (left_bytes > REGISTER_BYTES - offset_bytes % REGISTER_BYTES)
            left_bytes = REGISTER_BYTES - offset_bytes % REGISTER_BYTES;
    }
    return left_bytes < size_bytes ? left_bytes : size_bytes;
}

/* ---- memory that ranks share ---- */

static enum status need_ipc(const struct ascend_device *device, struct err *err)
{
    const struct ascend_cann *cann = device->cann;

    if (cann->aclrtIpcMemGetExportKey != NULL && cann->aclrtIpcMemImportByKey != NULL &&
        cann->aclrtIpcMemClose != NULL)
        return STATUS_OK;
    return err_set(err, STATUS_UNAVAILABLE,
                   "%s: weights divided over ranks' devices (sharded_gpu) need "
                   "aclrtIpcMemGetExportKey, aclrtIpcMemImportByKey and aclrtIpcMemClose of %s, "
                   "which the installed CANN lacks; %s has them", device->base.info.name,
                   ascend__library(ASCEND_LIBRARY_ASCENDCL)->name, CANN_LATER);
}

enum status ascend__shared_alloc(struct device *base, uint64_t size_bytes, void **memory_out,
                                 struct device_handle *handle_out, struct err *err)
{
    struct ascend_device *device = (struct ascend_device *)base;
    const uint64_t whole_bytes = size_align_up(size_bytes, HUGE_PAGE_BYTES);
    struct range range = { .size_bytes = size_bytes };
    int code;
    enum status st = need_ipc(device, err);

    static_assert(KEY_BYTES <= sizeof(handle_out->opaque), "a handle has room for a key");
    static_assert(KEY_BYTES > CANN_IPC_KEY_BYTES, "a key ends with a zero");
    if (st == STATUS_OK)
        st = ascend__enter(device, err);
    if (st == STATUS_OK)
        st = ranges_reserve(&device->memory->shared, base->info.name, err);
    if (st == STATUS_OK)
        st = malloc_device(device, whole_bytes, ACL_MEM_MALLOC_HUGE_ONLY, &range.raw, err);
    if (st != STATUS_OK)
        return st;
    range.memory = range.raw;
    if ((uintptr_t)range.raw % DEVICE_ALIGNMENT != 0) {
        (void)device->cann->aclrtFree(range.raw);
        return err_set(err, STATUS_DEVICE, "%s: aclrtMalloc of huge pages returned %p, which is "
                       "not aligned to %d bytes", base->info.name, range.raw, DEVICE_ALIGNMENT);
    }
    code = device->cann->aclrtIpcMemGetExportKey(
        range.raw, whole_bytes, range.key, CANN_IPC_KEY_BYTES,
        ACL_RT_IPC_MEM_EXPORT_FLAG_DISABLE_PID_VALIDATION);
    if (code != ACL_SUCCESS) {
        st = ascend__fail(device->cann, base->info.name, code, err, "aclrtIpcMemGetExportKey");
        (void)device->cann->aclrtFree(range.raw);
        return st;
    }
    range.key[KEY_BYTES - 1] = '\0';
    memcpy(handle_out->opaque, range.key, KEY_BYTES);
    ranges_add(&device->memory->shared, &range);
    *memory_out = range.memory;
    return STATUS_OK;
}

void ascend__shared_free(struct device *base, void *memory, uint64_t size_bytes)
{
    struct ascend_device *device = (struct ascend_device *)base;
    const struct range range = ranges_take(&device->memory->shared, memory);

    assert(range.size_bytes == size_bytes);
    (void)size_bytes;
    (void)ascend__enter(device, NULL);
    (void)device->cann->aclrtIpcMemClose(range.key);
    (void)device->cann->aclrtFree(range.raw);
}

static enum status refuse_peer(const struct ascend_device *device, int code, struct err *err)
{
    struct err why;

    (void)ascend__fail(device->cann, device->base.info.name, code, &why,
                       "aclrtIpcMemImportByKey");
    return err_set(err, STATUS_PEER, "the memory that a peer shared cannot be read, as if the "
                   "peer is gone: %.600s", why.message);
}

enum status ascend__peer_open(struct device *base, const struct device_handle *handle,
                              const void **memory_out, struct err *err)
{
    struct ascend_device *device = (struct ascend_device *)base;
    struct ranges *peers = &device->memory->peers;
    struct range range = { .size_bytes = handle->size_bytes, .use_count = 1 };
    int code;
    enum status st = need_ipc(device, err);

    if (st == STATUS_OK)
        st = ascend__enter(device, err);
    if (st == STATUS_OK)
        st = ranges_reserve(peers, base->info.name, err);
    if (st != STATUS_OK)
        return st;
    memcpy(range.key, handle->opaque, KEY_BYTES);
    range.key[KEY_BYTES - 1] = '\0';
    for (size_t i = 0; i < peers->count; i++) {
        if (strcmp(peers->items[i].key, range.key) == 0) {
            peers->items[i].use_count++;
            *memory_out = peers->items[i].memory;
            return STATUS_OK;
        }
    }
    code = device->cann->aclrtIpcMemImportByKey(&range.raw, range.key,
                                                ACL_RT_IPC_MEM_IMPORT_FLAG_ENABLE_PEER_ACCESS);
    if (code != ACL_SUCCESS)
        return refuse_peer(device, code, err);
    range.memory = range.raw;
    ranges_add(peers, &range);
    *memory_out = range.memory;
    return STATUS_OK;
}

void ascend__peer_close(struct device *base, const void *memory, uint64_t size_bytes)
{
    struct ascend_device *device = (struct ascend_device *)base;
    struct range *found = ranges_find(&device->memory->peers, memory);
    struct range range;

    (void)size_bytes;
    assert(found != NULL && found->memory == memory);
    if (--found->use_count > 0)
        return;
    range = ranges_take(&device->memory->peers, memory);
    (void)ascend__enter(device, NULL);
    (void)device->cann->aclrtIpcMemClose(range.key);
}

bool ascend__peer_holds(const struct ascend_device *device, const void *memory,
                        uint64_t size_bytes)
{
    return holds(ranges_find(&device->memory->peers, memory), memory, size_bytes);
}

bool ascend__device_holds(const struct ascend_device *device, const void *memory,
                          uint64_t size_bytes)
{
    return holds(ranges_find(&device->memory->device, memory), memory, size_bytes) ||
           holds(ranges_find(&device->memory->shared, memory), memory, size_bytes);
}
