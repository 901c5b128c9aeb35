/* device/settings.h - reads what stands after the ':' of --device; only for files inside device/.
 *
 * "memory=2GiB,link=16GB/s" is a list of name=value, each name at most once. */
#ifndef LIGHTER_DEVICE_SETTINGS_H
#define LIGHTER_DEVICE_SETTINGS_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum setting_kind {
    SETTING_SIZE,      /* "2GiB": bytes */
    SETTING_BANDWIDTH, /* "16GB/s": bytes per second; 0, for no bound, is always allowed */
    SETTING_DURATION,  /* "10us": nanoseconds; ns, us, ms or s */
    SETTING_COUNT,     /* "3" */
    SETTING_LAYOUT,    /* "nd" or "nz": enum layout */
    SETTING_SWITCH,    /* "on" or "off": 1 or 0 */
};

struct setting {
    const char *name;
    enum setting_kind kind;
    uint64_t *value;              /* keeps what it holds when the setting is not given */
    uint64_t value_min, value_max;
};

/* `text` may be NULL or empty. `device_name` is for the messages. */
enum status device__settings_read(const char *device_name, const char *text,
                                  const struct setting *settings, size_t setting_count,
                                  struct err *err);

#endif
