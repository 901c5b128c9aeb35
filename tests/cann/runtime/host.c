/* tests/cann/host.c - pinned host memory, known by its range (reference 1.2 and 5.1). */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

#define FRESH 0xA5
#define SHIFT 64 /* blocks begin at an odd multiple of 64, as is promised and no more */

struct pinned {
    uintptr_t base;
    uint64_t size;
    void *block;         /* to free; NULL: registered memory */
    struct pinned *next;
};

static struct pinned *all;  /* guarded by world */
static uint64_t pinned_bytes; /* guarded by world */

static const struct pinned *find(uintptr_t address, uint64_t size)
{
    for (const struct pinned *p = all; p != NULL; p = p->next) {
        if (address >= p->base && size <= p->size && address - p->base <= p->size - size)
            return p;
    }
    return NULL;
}

bool standin_is_pinned(const void *address, uint64_t size)
{
    bool found;

    pthread_mutex_lock(&standin_world);
    found = find((uintptr_t)address, size) != NULL;
    pthread_mutex_unlock(&standin_world);
    return found;
}

static bool touches(uintptr_t address, uint64_t size)
{
    for (const struct pinned *p = all; p != NULL; p = p->next) {
        if (address < p->base + p->size && p->base < address + size)
            return true;
    }
    return false;
}

bool standin_touches_pinned(const void *address, uint64_t size)
{
    bool found;

    pthread_mutex_lock(&standin_world);
    found = touches((uintptr_t)address, size);
    pthread_mutex_unlock(&standin_world);
    return found;
}

static int add(uintptr_t base, uint64_t size, void *block)
{
    struct pinned *p = calloc(1, sizeof(*p));

    if (p == NULL)
        return E_MEMORY;
    p->base = base;
    p->size = size;
    p->block = block;
    p->next = all;
    all = p;
    pinned_bytes += size;
    return 0;
}

aclError aclrtMallocHost(void **memory_out, size_t size)
{
    void *block = NULL;
    int code;

    ENTER(aclrtMallocHost);
    if (standin_context("aclrtMallocHost") == NULL)
        return E_CONTEXT_NULL;
    if (memory_out == NULL || size == 0)
        return standin_error(E_PARAM, "aclrtMallocHost: %zu bytes", size);
    pthread_mutex_lock(&standin_world);
    if (size > standin_settings.pinned_bytes_max - pinned_bytes ||
        size > SIZE_MAX - 2 * SHIFT || posix_memalign(&block, (size_t)2 * SHIFT,
                                                      size + SHIFT) != 0) {
        pthread_mutex_unlock(&standin_world);
        return standin_error(E_MEMORY, "aclrtMallocHost: %zu bytes, %llu are pinned", size,
                             (unsigned long long)pinned_bytes);
    }
    code = add((uintptr_t)block + SHIFT, size, block);
    pthread_mutex_unlock(&standin_world);
    if (code != 0) {
        free(block);
        return standin_error(code, "aclrtMallocHost: no memory");
    }
    memset((char *)block + SHIFT, FRESH, size);
    standin_count("live_pinned", 1);
    *memory_out = (char *)block + SHIFT;
    return 0;
}

/* Takes the range that begins at `base` out of the list. */
static struct pinned *take(uintptr_t base, bool registered)
{
    struct pinned **link, *p = NULL;

    pthread_mutex_lock(&standin_world);
    for (link = &all; *link != NULL; link = &(*link)->next) {
        if ((*link)->base == base && ((*link)->block == NULL) == registered) {
            p = *link;
            *link = p->next;
            pinned_bytes -= p->size;
            break;
        }
    }
    pthread_mutex_unlock(&standin_world);
    return p;
}

aclError aclrtFreeHost(void *memory)
{
    struct pinned *p;

    ENTER(aclrtFreeHost);
    if (standin_context("aclrtFreeHost") == NULL)
        return E_CONTEXT_NULL;
    p = memory != NULL ? take((uintptr_t)memory, false) : NULL;
    if (p == NULL)
        return standin_error(E_PARAM, "aclrtFreeHost: %p is not the start of a block", memory);
    free(p->block);
    free(p);
    standin_uncount("live_pinned", 1);
    return 0;
}

static int register_range(const char *function, void *memory, uint64_t size)
{
    int code;

    if (standin_context(function) == NULL)
        return E_CONTEXT_NULL;
    if (memory == NULL || size == 0 || standin_is_device_address(memory))
        return standin_error(E_PARAM, "%s: %p and %llu bytes", function, memory,
                             (unsigned long long)size);
    pthread_mutex_lock(&standin_world);
    if (touches((uintptr_t)memory, size))
        code = standin_error(E_HOST_REGISTERED, "%s: pinned already", function);
    else if (size > standin_settings.pinned_bytes_max - pinned_bytes)
        code = standin_error(E_MEMORY, "%s: too much is pinned", function);
    else
        code = add((uintptr_t)memory, size, NULL);
    pthread_mutex_unlock(&standin_world);
    if (code == 0)
        standin_count("live_pinned", 1);
    return code;
}

aclError aclrtHostRegisterV2(void *memory, uint64_t size, uint32_t flags)
{
    ENTER(aclrtHostRegisterV2);
    if (flags != ACL_HOST_REG_PINNED && flags != (ACL_HOST_REG_PINNED | ACL_HOST_REG_MAPPED))
        return standin_error(E_PARAM, "aclrtHostRegisterV2: flags %#x", flags);
    return register_range("aclrtHostRegisterV2", memory, size);
}

/* It maps for kernels and does not pin: what the reference warns of. No kernel here reads such
 * memory, so it is refused, as a driver without the feature does. */
aclError aclrtHostRegister(void *memory, uint64_t size, aclrtHostRegisterType type, void **device)
{
    ENTER(aclrtHostRegister);
    (void)memory;
    (void)size;
    (void)type;
    (void)device;
    return standin_error(E_NOT_SUPPORT, "aclrtHostRegister: not on this driver");
}

aclError aclrtHostUnregister(void *memory)
{
    struct pinned *p;

    ENTER(aclrtHostUnregister);
    if (standin_context("aclrtHostUnregister") == NULL)
        return E_CONTEXT_NULL;
    p = take((uintptr_t)memory, true);
    if (p == NULL)
        return standin_error(E_HOST_NOT_REGISTERED, "aclrtHostUnregister: %p is not registered",
                             memory);
    free(p);
    standin_uncount("live_pinned", 1);
    return 0;
}

/* Unknown memory is an error, as on some drivers (reference 1.2). */
aclError aclrtPointerGetAttributes(const void *memory, aclrtPtrAttributes *attributes)
{
    struct range range;

    ENTER(aclrtPointerGetAttributes);
    if (attributes == NULL)
        return standin_error(E_PARAM, "aclrtPointerGetAttributes: a null argument");
    memset(attributes, 0, sizeof(*attributes));
    if (standin_range_find(memory, 1, &range)) {
        attributes->location.type = ACL_MEM_LOCATION_TYPE_DEVICE;
        attributes->location.id = (uint32_t)range.device_id;
        attributes->pageSize = (uint32_t)range.page_size;
        return 0;
    }
    if (!standin_is_pinned(memory, 1))
        return standin_error(E_PARAM, "aclrtPointerGetAttributes: %p is neither device memory nor "
                             "pinned", memory);
    attributes->location.type = ACL_MEM_LOCATION_TYPE_HOST;
    attributes->pageSize = 4096;
    return 0;
}

void standin_host_close(void)
{
    unsigned lost = 0;

    pthread_mutex_lock(&standin_world);
    while (all != NULL) {
        struct pinned *p = all;
        all = p->next;
        pinned_bytes -= p->size;
        free(p->block);
        free(p);
        lost++;
    }
    pthread_mutex_unlock(&standin_world);
    standin_uncount("live_pinned", lost);
    if (lost > 0)
        standin_leak("%u blocks of pinned host memory", lost);
}
