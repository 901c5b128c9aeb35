/* tests/cann/ipc.c - device memory that another process opens by a key (reference 1.4).
 *
 * A key names the exporter's process, a small file in memory that both map (who may open the
 * memory, and how many have), and where the bytes are. Files are reached through /proc/PID/fd, so
 * that nothing is left behind when a process is killed. */
#include "internal.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define KEY_BYTES CANN_IPC_KEY_BYTES
#define PIDS_MAX 64
#define MAGIC UINT64_C(0x69706373746e6431)

struct desk { /* shared by exporter and importers */
    uint64_t magic, nonce;
    uint64_t offset, size;
    int32_t memory_fd, device_id; /* the exporter's, and physical */
    atomic_bool is_closed, anyone;
    _Atomic int32_t pids[PIDS_MAX];
    atomic_uint importers;
};

struct grant {
    char key[KEY_BYTES];
    bool is_import;
    void *base;
    int fd;
    struct desk *desk;
    struct grant *next;
};

static struct grant *grants; /* guarded by world */
static uint64_t nonce_state; /* guarded by world */

static struct grant *grant_find(const char *key, bool is_import)
{
    struct grant *g;

    pthread_mutex_lock(&standin_world);
    for (g = grants; g != NULL; g = g->next) {
        if (g->is_import == is_import && strcmp(g->key, key) == 0)
            break;
    }
    pthread_mutex_unlock(&standin_world);
    return g;
}

static void grant_add(struct grant *g)
{
    pthread_mutex_lock(&standin_world);
    g->next = grants;
    grants = g;
    pthread_mutex_unlock(&standin_world);
}

static void grant_end(struct grant *g)
{
    struct range range;

    pthread_mutex_lock(&standin_world);
    for (struct grant **link = &grants; *link != NULL; link = &(*link)->next) {
        if (*link == g) {
            *link = g->next;
            break;
        }
    }
    pthread_mutex_unlock(&standin_world);
    if (g->is_import) {
        (void)standin_range_drop((uintptr_t)g->base, RANGE_IMPORT, &range);
        atomic_fetch_sub(&g->desk->importers, 1);
    } else {
        atomic_store(&g->desk->is_closed, true);
        if (atomic_load(&g->desk->importers) > 0)
            standin_fault("memory's key is closed by the exporter while an importer has it open");
    }
    munmap(g->desk, sizeof(*g->desk));
    close(g->fd);
    free(g);
}

unsigned standin_ipc_importers(uintptr_t base)
{
    unsigned count = 0;

    pthread_mutex_lock(&standin_world);
    for (const struct grant *g = grants; g != NULL; g = g->next) {
        if (!g->is_import && (uintptr_t)g->base == base)
            count += atomic_load(&g->desk->importers);
    }
    pthread_mutex_unlock(&standin_world);
    return count;
}

static uint64_t nonce(void)
{
    uint64_t value;

    pthread_mutex_lock(&standin_world);
    if (nonce_state == 0)
        nonce_state = (uint64_t)getpid() << 32 ^ (uintptr_t)&value;
    value = standin_random(&nonce_state);
    pthread_mutex_unlock(&standin_world);
    return value;
}

static struct desk *desk_map(int fd)
{
    struct desk *desk = mmap(NULL, sizeof(*desk), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return desk != MAP_FAILED ? desk : NULL;
}

aclError aclrtIpcMemGetExportKey(void *memory, size_t size, char *key, size_t key_size,
                                 uint64_t flags)
{
    struct range range;
    struct grant *g;

    ENTER(aclrtIpcMemGetExportKey);
    if (standin_context("aclrtIpcMemGetExportKey") == NULL)
        return E_CONTEXT_NULL;
    if (key == NULL || key_size < KEY_BYTES ||
        (flags & ~(uint64_t)ACL_RT_IPC_MEM_EXPORT_FLAG_DISABLE_PID_VALIDATION) != 0)
        return standin_error(E_PARAM, "aclrtIpcMemGetExportKey: key of %zu bytes, flags %#llx",
                             key_size, (unsigned long long)flags);
    if (!standin_range_find(memory, size, &range) || range.kind != RANGE_OWN ||
        range.base != (uintptr_t)memory || range.size != size || !range.whole_pages)
        return standin_error(E_PARAM, "aclrtIpcMemGetExportKey: %zu bytes at %p are not a whole "
                             "allocation of whole pages", size, memory);
    g = calloc(1, sizeof(*g));
    if (g == NULL)
        return standin_error(E_MEMORY, "aclrtIpcMemGetExportKey: no memory");
    g->base = memory;
    g->fd = memfd_create("cann stand-in key", MFD_CLOEXEC);
    if (g->fd < 0 || ftruncate(g->fd, sizeof(struct desk)) != 0 ||
        (g->desk = desk_map(g->fd)) == NULL) {
        free(g);
        return standin_error(E_DRIVER, "aclrtIpcMemGetExportKey: no file for the key");
    }
    g->desk->nonce = nonce();
    g->desk->offset = standin_memory_offset(&range);
    g->desk->size = size;
    g->desk->memory_fd = standin_memory_fd(range.device_id);
    g->desk->device_id = standin_physical_id(range.device_id);
    g->desk->magic = MAGIC;
    atomic_store(&g->desk->anyone,
                 (flags & ACL_RT_IPC_MEM_EXPORT_FLAG_DISABLE_PID_VALIDATION) != 0);
    snprintf(g->key, sizeof(g->key), "standin:%d:%d:%016llx", (int)getpid(), g->fd,
             (unsigned long long)g->desk->nonce);
    memset(key, 0, key_size);
    memcpy(key, g->key, KEY_BYTES);
    grant_add(g);
    return 0;
}

aclError aclrtIpcMemSetImportPid(const char *key, int32_t *pid, size_t count)
{
    const struct grant *g;

    ENTER(aclrtIpcMemSetImportPid);
    g = key != NULL ? grant_find(key, false) : NULL;
    if (g == NULL || pid == NULL || count == 0 || count > PIDS_MAX)
        return standin_error(E_PARAM, "aclrtIpcMemSetImportPid: %zu processes, or no such key",
                             count);
    for (size_t i = 0; i < count; i++)
        atomic_store(&g->desk->pids[i], pid[i]);
    return 0;
}

static bool may_import(struct desk *desk)
{
    bool may = atomic_load(&desk->anyone);

    for (int i = 0; i < PIDS_MAX && !may; i++)
        may = atomic_load(&desk->pids[i]) == (int32_t)getpid();
    return may && desk->magic == MAGIC && !atomic_load(&desk->is_closed);
}

static int open_of(int pid, int fd)
{
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, fd);
    return open(path, O_RDWR | O_CLOEXEC);
}

aclError aclrtIpcMemImportByKey(void **memory_out, const char *key, uint64_t flags)
{
    const struct context *context;
    unsigned long long nonce_of;
    struct grant *g;
    int pid, fd, memory_fd, code = E_DRIVER;

    ENTER(aclrtIpcMemImportByKey);
    context = standin_context("aclrtIpcMemImportByKey");
    if (context == NULL)
        return E_CONTEXT_NULL;
    if (memory_out == NULL || key == NULL ||
        (flags & ~(uint64_t)ACL_RT_IPC_MEM_IMPORT_FLAG_ENABLE_PEER_ACCESS) != 0 ||
        strnlen(key, KEY_BYTES) == KEY_BYTES ||
        sscanf(key, "standin:%d:%d:%llx", &pid, &fd, &nonce_of) != 3)
        return standin_error(E_PARAM, "aclrtIpcMemImportByKey: no key, or flags %#llx",
                             (unsigned long long)flags);
    if (pid == (int)getpid() || grant_find(key, true) != NULL)
        return standin_error(E_PARAM, "aclrtIpcMemImportByKey: the key is this process's own, or "
                             "open already");
    g = calloc(1, sizeof(*g));
    if (g == NULL)
        return standin_error(E_MEMORY, "aclrtIpcMemImportByKey: no memory");
    g->is_import = true;
    snprintf(g->key, sizeof(g->key), "%s", key);
    g->fd = open_of(pid, fd);
    g->desk = g->fd >= 0 ? desk_map(g->fd) : NULL;
    if (g->desk != NULL && g->desk->nonce == nonce_of && may_import(g->desk)) {
        const bool elsewhere = g->desk->device_id != standin_physical_id(context->device_id);
        if (elsewhere && flags == 0) {
            code = standin_error(E_DRIVER, "aclrtIpcMemImportByKey: the memory is of device %d and "
                                 "peer access is not asked for", g->desk->device_id);
        } else if ((memory_fd = open_of(pid, g->desk->memory_fd)) >= 0) {
            code = standin_range_add_import(context->device_id, g->desk->size, memory_fd,
                                            g->desk->offset, &g->base);
            close(memory_fd);
        }
    }
    if (code != 0) {
        if (g->desk != NULL)
            munmap(g->desk, sizeof(*g->desk));
        if (g->fd >= 0)
            close(g->fd);
        free(g);
        return standin_error(code, "aclrtIpcMemImportByKey: the key is closed, or not for this "
                             "process");
    }
    atomic_fetch_add(&g->desk->importers, 1);
    grant_add(g);
    *memory_out = g->base;
    return 0;
}

aclError aclrtIpcMemClose(const char *key)
{
    struct grant *g;

    ENTER(aclrtIpcMemClose);
    g = key != NULL ? grant_find(key, true) : NULL;
    if (g == NULL && key != NULL)
        g = grant_find(key, false);
    if (g == NULL)
        return standin_error(E_PARAM, "aclrtIpcMemClose: no such key");
    grant_end(g);
    return 0;
}

void standin_ipc_close(void)
{
    while (grants != NULL)
        grant_end(grants);
}
