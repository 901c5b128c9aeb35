/* device/inspect.h - what can be said of a device, also of one that cannot be opened. */
#ifndef LIGHTER_DEVICE_INSPECT_H
#define LIGHTER_DEVICE_INSPECT_H

#include <jansson.h>

#include "device/device.h"

/* A JSON object that the caller owns; NULL: out of memory.
 *   spec, available, reason                              reason: why it is not available, or null
 *   name, description, memory_bytes, memory_is_host, link_bytes_per_s, workspace_bytes
 *                                                        when it is
 *   details                                              what only this kind of device has
 * STATUS_BAD_INPUT, and nothing else, for a spec that no device has. */
enum status device_inspect(const char *spec, const struct device_options *options,
                           json_t **report_out, struct err *err);

#endif
