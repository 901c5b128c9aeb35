/* tests/cann/memory.c - device memory (reference 1.2).
 *
 *     window (no access)   |....[ block ]..[ block ]......[ import ]....|   what programs see
 *     bytes  (read, write) |....[ block ]..[ block ]......[ import ]....|   what workers see
 *                              the same file in memory       another process's file
 *
 * Addresses are handed out upwards and used again only when the window's end is reached, so that a
 * late access to freed memory finds nothing instead of the next owner's bytes. Small blocks begin
 * at an odd multiple of 64, the alignment that is promised and no more. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE UINT64_C(4096)
#define HUGE_PAGE (UINT64_C(2) << 20)
#define GUARD_BYTES PAGE
#define FRESH 0xA5

struct window {
    bool is_open;
    int fd;
    uint8_t *base, *bytes;
    uint64_t size, next;      /* next: where the search for room begins */
    uint64_t used;
};

static struct window windows[DEVICES_MAX]; /* guarded by world */
static struct range *ranges;               /* sorted by base; guarded by world */
static size_t range_count, range_room;

static uint64_t align_up(uint64_t value, uint64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

int standin_memory_open(int device_id)
{
    struct window *w = &windows[device_id];
    int code = 0;

    pthread_mutex_lock(&standin_world);
    if (!w->is_open) {
        w->size = align_up(4 * standin_settings.memory_bytes + (UINT64_C(64) << 20), HUGE_PAGE);
        w->next = HUGE_PAGE;
        w->used = 0;
        w->fd = memfd_create("cann stand-in", MFD_CLOEXEC);
        w->base = mmap(NULL, w->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                       0);
        if (w->fd < 0 || w->base == MAP_FAILED || ftruncate(w->fd, (off_t)w->size) != 0)
            code = standin_error(E_MEMORY, "device %d: no room for its memory", device_id);
        w->bytes = code == 0 ? mmap(NULL, w->size, PROT_READ | PROT_WRITE,
                                    MAP_SHARED | MAP_NORESERVE, w->fd, 0)
                             : MAP_FAILED;
        if (code == 0 && w->bytes == MAP_FAILED)
            code = standin_error(E_MEMORY, "device %d: no room for its memory", device_id);
        w->is_open = code == 0;
    }
    pthread_mutex_unlock(&standin_world);
    return code;
}

void standin_memory_close(int device_id)
{
    struct window *w = &windows[device_id];
    size_t kept = 0, lost = 0;
    uint64_t lost_bytes = 0;

    pthread_mutex_lock(&standin_world);
    for (size_t i = 0; i < range_count; i++) {
        if (ranges[i].device_id != device_id) {
            ranges[kept++] = ranges[i];
            continue;
        }
        lost++;
        lost_bytes += ranges[i].size;
    }
    range_count = kept;
    if (w->is_open) {
        munmap(w->base, w->size);
        munmap(w->bytes, w->size);
        close(w->fd);
        w->is_open = false;
    }
    pthread_mutex_unlock(&standin_world);
    if (lost > 0) {
        standin_uncount("live_blocks", lost);
        standin_uncount("live_bytes", lost_bytes);
        standin_leak("device %d: %zu blocks of %llu bytes", device_id, lost,
                     (unsigned long long)lost_bytes);
    }
}

/* The first range that ends behind `address`; world is held. */
static size_t range_after(uintptr_t address)
{
    size_t low = 0, high = range_count;

    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (ranges[middle].base + ranges[middle].size <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct range *range_of(uintptr_t address, uint64_t size)
{
    const size_t i = range_after(address);

    if (i == range_count || address < ranges[i].base || size > ranges[i].size ||
        address - ranges[i].base > ranges[i].size - size)
        return NULL;
    return &ranges[i];
}

bool standin_range_find(const void *address, uint64_t size, struct range *range_out)
{
    const struct range *range;

    pthread_mutex_lock(&standin_world);
    range = range_of((uintptr_t)address, size);
    if (range != NULL)
        *range_out = *range;
    pthread_mutex_unlock(&standin_world);
    return range != NULL;
}

uint8_t *standin_range_pin(const void *address, uint64_t size, int device_id)
{
    struct range *range;
    uint8_t *bytes = NULL;

    pthread_mutex_lock(&standin_world);
    range = range_of((uintptr_t)address, size);
    if (range != NULL && (device_id < 0 || range->device_id == device_id)) {
        range->users++;
        bytes = range->bytes + ((uintptr_t)address - range->base);
    }
    pthread_mutex_unlock(&standin_world);
    return bytes;
}

void standin_range_unpin(const void *address)
{
    struct range *range;

    pthread_mutex_lock(&standin_world);
    range = range_of((uintptr_t)address, 1);
    if (range != NULL && range->users > 0)
        range->users--;
    pthread_mutex_unlock(&standin_world);
}

bool standin_is_device_address(const void *address)
{
    bool is_inside = false;

    pthread_mutex_lock(&standin_world);
    for (int i = 0; i < DEVICES_MAX; i++) {
        const struct window *w = &windows[i];
        is_inside |= w->is_open && (uintptr_t)address >= (uintptr_t)w->base &&
                     (uintptr_t)address < (uintptr_t)w->base + w->size;
    }
    pthread_mutex_unlock(&standin_world);
    return is_inside;
}

int standin_memory_fd(int device_id)
{
    return windows[device_id].fd;
}

uint64_t standin_memory_offset(const struct range *range)
{
    return (uint64_t)(range->bytes - windows[range->device_id].bytes);
}

/* Where the block at `from` or behind it can lie; 0 when there is no room. world is held. */
static uint64_t place(const struct window *w, uint64_t from, uint64_t size, uint64_t align,
                      uint64_t shift)
{
    uint64_t at = align_up(from, align) + shift;
    size_t i = range_after((uintptr_t)w->base + at);

    while (at + size + GUARD_BYTES <= w->size) {
        const uint64_t end = at + size + GUARD_BYTES;
        if (i == range_count || ranges[i].base >= (uintptr_t)w->base + w->size ||
            (uintptr_t)w->base + end <= ranges[i].base)
            return at;
        at = align_up(ranges[i].base - (uintptr_t)w->base + ranges[i].size + GUARD_BYTES, align) +
             shift;
        i++;
    }
    return 0;
}

static int range_insert(struct window *w, struct range *range, uint64_t align, uint64_t shift)
{
    uint64_t at = place(w, w->next, range->size, align, shift);
    size_t i;

    if (at == 0)
        at = place(w, HUGE_PAGE, range->size, align, shift);
    if (at == 0)
        return E_MEMORY;
    if (range_count == range_room) {
        const size_t room = range_room * 2 + 64;
        struct range *more = realloc(ranges, room * sizeof(*more));
        if (more == NULL)
            return E_MEMORY;
        ranges = more;
        range_room = room;
    }
    w->next = at + range->size + GUARD_BYTES;
    range->base = (uintptr_t)w->base + at;
    range->bytes = w->bytes + at;
    i = range_after(range->base);
    memmove(&ranges[i + 1], &ranges[i], (range_count - i) * sizeof(*ranges));
    ranges[i] = *range;
    range_count++;
    return 0;
}

static int allocate(const char *function, void **memory_out, uint64_t size, int policy,
                    uint64_t extra)
{
    const struct context *context = standin_context(function);
    const bool huge = policy == ACL_MEM_MALLOC_HUGE_ONLY ||
                      policy == ACL_MEM_MALLOC_HUGE_ONLY_P2P;
    const bool normal = policy == ACL_MEM_MALLOC_NORMAL_ONLY ||
                        policy == ACL_MEM_MALLOC_NORMAL_ONLY_P2P;
    const uint64_t page = huge ? HUGE_PAGE : PAGE;
    struct range range = { .size = size, .kind = RANGE_OWN, .page_size = page };
    struct window *w;
    int code = 0;

    if (context == NULL)
        return E_CONTEXT_NULL;
    if (memory_out == NULL || size == 0 || policy < 0 || policy > ACL_MEM_MALLOC_NORMAL_ONLY_P2P)
        return standin_error(E_PARAM, "%s: %llu bytes with policy %d", function,
                             (unsigned long long)size, policy);
    if (size > standin_settings.memory_bytes)
        return standin_error(E_MEMORY, "%s: %llu bytes, the device has %llu", function,
                             (unsigned long long)size,
                             (unsigned long long)standin_settings.memory_bytes);
    range.device_id = context->device_id;
    range.whole_pages = (huge || normal) && size % page == 0;
    range.charged = huge ? align_up(size, HUGE_PAGE) : align_up(size, 32) + extra;
    w = &windows[range.device_id];
    pthread_mutex_lock(&standin_world);
    if (range.charged > standin_settings.memory_bytes - w->used)
        code = E_MEMORY;
    else
        code = range_insert(w, &range, range.whole_pages || huge ? page : 128,
                            range.whole_pages || huge ? 0 : 64);
    if (code == 0)
        w->used += range.charged;
    pthread_mutex_unlock(&standin_world);
    if (code != 0)
        return standin_error(code, "%s: %llu bytes, %llu of %llu are free", function,
                             (unsigned long long)size,
                             (unsigned long long)(standin_settings.memory_bytes - w->used),
                             (unsigned long long)standin_settings.memory_bytes);
    memset(range.bytes, FRESH, size);
    standin_count("live_blocks", 1);
    standin_count("live_bytes", size);
    *memory_out = w->base + (range.bytes - w->bytes);
    return 0;
}

aclError aclrtMalloc(void **memory, size_t size, aclrtMemMallocPolicy policy)
{
    ENTER(aclrtMalloc);
    return allocate("aclrtMalloc", memory, size, (int)policy, 32);
}

aclError aclrtMallocAlign32(void **memory, size_t size, aclrtMemMallocPolicy policy)
{
    ENTER(aclrtMallocAlign32);
    return allocate("aclrtMallocAlign32", memory, size, (int)policy, 0);
}

bool standin_range_drop(uintptr_t base, enum range_kind kind, struct range *range_out)
{
    struct range *range;

    pthread_mutex_lock(&standin_world);
    range = range_of(base, 1);
    if (range == NULL || range->base != base || range->kind != kind) {
        pthread_mutex_unlock(&standin_world);
        return false;
    }
    *range_out = *range;
    memmove(range, range + 1, (size_t)(ranges + range_count - range - 1) * sizeof(*range));
    range_count--;
    windows[range_out->device_id].used -= range_out->charged;
    pthread_mutex_unlock(&standin_world);
    if (range_out->users > 0)
        standin_fault("memory of %llu bytes is freed while a stream is at work in it",
                      (unsigned long long)range_out->size);
    return true;
}

aclError aclrtFree(void *memory)
{
    struct range range;

    ENTER(aclrtFree);
    if (standin_context("aclrtFree") == NULL)
        return E_CONTEXT_NULL;
    if (memory == NULL || !standin_range_drop((uintptr_t)memory, RANGE_OWN, &range))
        return standin_error(E_PARAM, "aclrtFree: %p is not the start of a block", memory);
    if (standin_ipc_importers(range.base) > 0)
        standin_fault("memory is freed while another process has it open");
    (void)fallocate(windows[range.device_id].fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    (off_t)standin_memory_offset(&range), (off_t)range.size);
    standin_uncount("live_blocks", 1);
    standin_uncount("live_bytes", range.size);
    return 0;
}

/* Maps `size` bytes of another process's memory into the window. */
int standin_range_add_import(int device_id, uint64_t size, int fd, uint64_t offset,
                             void **base_out)
{
    struct range range = { .size = size, .kind = RANGE_IMPORT, .device_id = device_id,
                           .page_size = HUGE_PAGE };
    int code;

    pthread_mutex_lock(&standin_world);
    code = range_insert(&windows[device_id], &range, HUGE_PAGE, 0);
    if (code == 0 && mmap(range.bytes, align_up(size, PAGE), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_FIXED, fd, (off_t)offset) == MAP_FAILED)
        code = E_DRIVER;
    pthread_mutex_unlock(&standin_world);
    *base_out = windows[device_id].base + (range.bytes - windows[device_id].bytes);
    return code;
}

/* 310P has DDR and no HBM, the others have HBM only (reference 5.4). An attribute names the kind of
 * memory and of pages. */
aclError aclrtGetMemInfo(aclrtMemAttr attr, size_t *free_out, size_t *total_out)
{
    const bool is_ddr[] = { true, false, true, true, false, false, true, true, false, false,
                            false, false };
    const struct context *context;
    const bool has_ddr = strncmp(standin_settings.soc, "Ascend310P", 10) == 0;

    ENTER(aclrtGetMemInfo);
    context = standin_context("aclrtGetMemInfo");
    if (context == NULL)
        return E_CONTEXT_NULL;
    if (free_out == NULL || total_out == NULL || (int)attr < 0 ||
        (size_t)attr >= sizeof(is_ddr) / sizeof(is_ddr[0]))
        return standin_error(E_PARAM, "aclrtGetMemInfo: attribute %d", (int)attr);
    *free_out = *total_out = 0;
    if (is_ddr[attr] == has_ddr) {
        *total_out = standin_settings.memory_bytes;
        *free_out = standin_settings.memory_bytes - windows[context->device_id].used;
    }
    return 0;
}
