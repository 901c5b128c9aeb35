/* device/shared.h - shared memory for devices whose memory is this machine's; only for files inside
 * device/.
 *
 * A device keeps two lists: what it has made, and what it has opened of peers. */
#ifndef LIGHTER_DEVICE_SHARED_H
#define LIGHTER_DEVICE_SHARED_H

#include <stdbool.h>

#include "device/device.h"

struct device__shared {
    struct device__shared_piece *first;
};

/* address: as segment_create has it. Fills handle_out->opaque. */
enum status device__shared_create(struct device__shared *shared, const char *device_name,
                                  uint64_t size_bytes, void *address, void **memory_out,
                                  struct device_handle *handle_out, struct err *err);
/* Maps handle->size_bytes. */
enum status device__shared_open(struct device__shared *shared, const char *device_name,
                                const struct device_handle *handle, const void **memory_out,
                                struct err *err);
/* What either of them returned. */
void device__shared_close(struct device__shared *shared, const void *memory);
/* Whether all of [pointer, pointer + size_bytes) lies in one piece. */
bool device__shared_holds(const struct device__shared *shared, const void *pointer,
                          uint64_t size_bytes);

#endif
