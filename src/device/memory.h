/* device/memory.h - the accounts of a device's memory; only for files inside device/.
 *
 * take comes before the back end is asked and give after it has freed, so the budget is never
 * passed, not for a moment. Any thread may call these; one lock guards the numbers, and nothing
 * else is done while it is held. */
#ifndef LIGHTER_DEVICE_MEMORY_H
#define LIGHTER_DEVICE_MEMORY_H

#include "device/device.h"

struct device_memory;

/* host_budget_bytes 0: unbounded. The caller owns *memory_out. */
enum status device__memory_create(const char *device_name, uint64_t budget_bytes,
                                  uint64_t host_budget_bytes, struct device_memory **memory_out,
                                  struct err *err);
void device__memory_destroy(struct device_memory *memory);

/* STATUS_NO_MEMORY with the numbers when the budget would be passed. */
enum status device__memory_take(struct device_memory *memory, enum device_use use,
                                uint64_t size_bytes, struct err *err);
void device__memory_give(struct device_memory *memory, enum device_use use, uint64_t size_bytes);
enum status device__memory_take_host(struct device_memory *memory, uint64_t size_bytes,
                                     struct err *err);
void device__memory_give_host(struct device_memory *memory, uint64_t size_bytes);

void device__memory_report(struct device_memory *memory, struct device_memory_report *report_out);

#endif
