/* device/memory.c - see memory.h. */
#include "device/memory.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/size.h"

#define SIZE_TEXT 24 /* what size_format needs */

struct device_memory {
    pthread_mutex_t lock;               /* guards `report`; held with no other */
    struct device_memory_report report; /* host_budget_bytes 0: unbounded */
    char device_name[64];
};

const char *device_use_name(enum device_use use)
{
    static const char *const names[DEVICE_USE_COUNT] = {
        [DEVICE_USE_WEIGHTS] = "weights",
        [DEVICE_USE_SLOTS] = "slots",
        [DEVICE_USE_KV] = "KV cache",
        [DEVICE_USE_SCRATCH] = "scratch",
    };

    assert((unsigned)use < DEVICE_USE_COUNT);
    return names[use];
}

enum status device__memory_create(const char *device_name, uint64_t budget_bytes,
                                  uint64_t host_budget_bytes, struct device_memory **memory_out,
                                  struct err *err)
{
    struct device_memory *memory = calloc(1, sizeof(*memory));

    if (memory == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for its accounts", device_name);
    pthread_mutex_init(&memory->lock, NULL);
    memory->report.budget_bytes = budget_bytes;
    memory->report.host_budget_bytes = host_budget_bytes;
    (void)snprintf(memory->device_name, sizeof(memory->device_name), "%s", device_name);
    *memory_out = memory;
    return STATUS_OK;
}

void device__memory_destroy(struct device_memory *memory)
{
    if (memory == NULL)
        return;
    pthread_mutex_destroy(&memory->lock);
    free(memory);
}

static enum status refuse(const struct device_memory *memory,
                          const struct device_memory_report *report, enum device_use use,
                          uint64_t size_bytes, struct err *err)
{
    char wanted[SIZE_TEXT], budget[SIZE_TEXT], used[SIZE_TEXT], by[256] = "";
    size_t length = 0;

    for (int i = 0; i < DEVICE_USE_COUNT; i++) {
        char size[SIZE_TEXT];
        length += (size_t)snprintf(by + length, sizeof(by) - length, "%s%s %s",
                                   i == 0 ? "" : ", ", device_use_name((enum device_use)i),
                                   size_format(report->used_by[i], size, sizeof(size)));
    }
    return err_set(err, STATUS_NO_MEMORY,
                   "%s: %s more for %s would pass the memory budget of %s: %s in use (%s)",
                   memory->device_name, size_format(size_bytes, wanted, sizeof(wanted)),
                   device_use_name(use), size_format(report->budget_bytes, budget, sizeof(budget)),
                   size_format(report->used_bytes, used, sizeof(used)), by);
}

enum status device__memory_take(struct device_memory *memory, enum device_use use,
                                uint64_t size_bytes, struct err *err)
{
    struct device_memory_report *report = &memory->report;
    struct device_memory_report seen;
    bool fits;

    pthread_mutex_lock(&memory->lock);
    fits = size_bytes <= report->budget_bytes - report->used_bytes;
    if (fits) {
        report->used_bytes += size_bytes;
        report->used_by[use] += size_bytes;
        if (report->used_bytes > report->peak_bytes)
            report->peak_bytes = report->used_bytes;
    }
    seen = *report;
    pthread_mutex_unlock(&memory->lock);
    return fits ? STATUS_OK : refuse(memory, &seen, use, size_bytes, err);
}

void device__memory_give(struct device_memory *memory, enum device_use use, uint64_t size_bytes)
{
    pthread_mutex_lock(&memory->lock);
    assert(memory->report.used_by[use] >= size_bytes);
    memory->report.used_by[use] -= size_bytes;
    memory->report.used_bytes -= size_bytes;
    pthread_mutex_unlock(&memory->lock);
}

enum status device__memory_take_host(struct device_memory *memory, uint64_t size_bytes,
                                     struct err *err)
{
    struct device_memory_report *report = &memory->report;
    const uint64_t budget_bytes =
        report->host_budget_bytes == 0 ? UINT64_MAX : report->host_budget_bytes;
    char wanted[SIZE_TEXT], used[SIZE_TEXT], budget[SIZE_TEXT];
    uint64_t used_bytes;
    bool fits;

    pthread_mutex_lock(&memory->lock);
    used_bytes = report->host_used_bytes;
    fits = size_bytes <= budget_bytes - used_bytes;
    if (fits) {
        report->host_used_bytes += size_bytes;
        if (report->host_used_bytes > report->host_peak_bytes)
            report->host_peak_bytes = report->host_used_bytes;
    }
    pthread_mutex_unlock(&memory->lock);
    if (fits)
        return STATUS_OK;
    return err_set(err, STATUS_NO_MEMORY,
                   "%s: %s more of host memory would pass its budget of %s: %s in use",
                   memory->device_name, size_format(size_bytes, wanted, sizeof(wanted)),
                   size_format(budget_bytes, budget, sizeof(budget)),
                   size_format(used_bytes, used, sizeof(used)));
}

void device__memory_give_host(struct device_memory *memory, uint64_t size_bytes)
{
    pthread_mutex_lock(&memory->lock);
    assert(memory->report.host_used_bytes >= size_bytes);
    memory->report.host_used_bytes -= size_bytes;
    pthread_mutex_unlock(&memory->lock);
}

void device__memory_report(struct device_memory *memory, struct device_memory_report *report_out)
{
    pthread_mutex_lock(&memory->lock);
    *report_out = memory->report;
    pthread_mutex_unlock(&memory->lock);
}
