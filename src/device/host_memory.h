/* device/host_memory.h - large pieces of this machine's memory; only for files inside device/. */
#ifndef LIGHTER_DEVICE_HOST_MEMORY_H
#define LIGHTER_DEVICE_HOST_MEMORY_H

#include <stdint.h>

#include "base/status.h"

/* Zeroed, aligned to a page, in huge pages where the system has them to spare: weights are read in
 * long runs, and a 2 MiB page costs one entry of the address cache where 4 KiB pages cost 512. */
enum status host_memory_map(const char *device_name, uint64_t size_bytes, void **memory_out,
                            struct err *err);
/* NULL is fine. */
void host_memory_unmap(void *memory, uint64_t size_bytes);

#endif
