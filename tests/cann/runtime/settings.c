/* tests/cann/settings.c - the environment's settings, read at load and again at a reset. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

struct settings standin_settings;

static uint64_t number(const char *name, uint64_t fallback)
{
    const char *text = getenv(name);
    char *end;
    uint64_t value;

    if (text == NULL || *text == '\0')
        return fallback;
    value = strtoull(text, &end, 10);
    if (strncmp(end, "Ki", 2) == 0)
        value <<= 10;
    else if (strncmp(end, "Mi", 2) == 0)
        value <<= 20;
    else if (strncmp(end, "Gi", 2) == 0)
        value <<= 30;
    return value;
}

/* ASCEND_RT_VISIBLE_DEVICES is a list of numbers with commas; only how many counts here. */
static int visible(int count)
{
    const char *text = getenv("ASCEND_RT_VISIBLE_DEVICES");
    int listed = 0;

    if (text == NULL)
        return count;
    while (*text >= '0' && *text <= '9') {
        char *end;
        if (strtol(text, &end, 10) >= count)
            break;
        listed++;
        text = *end == ',' ? end + 1 : end;
    }
    return listed;
}

static void load_failures(void)
{
    const char *text = getenv("CANN_STANDIN_FAIL");
    char *list = strdup(text != NULL ? text : "");
    char *rest = list, *item;

    cann_standin_fail("*", 0, 0);
    while (list != NULL && (item = strsep(&rest, ",")) != NULL) {
        const char *name = strsep(&item, ":");
        const char *nth = strsep(&item, ":");
        if (nth != NULL)
            cann_standin_fail(name, strtoull(nth, NULL, 10),
                              item != NULL ? (int)strtol(item, NULL, 10) : E_DRIVER);
    }
    free(list);
}

void standin_settings_load(void)
{
    struct settings *s = &standin_settings;
    const char *soc = getenv("CANN_STANDIN_SOC");
    const char *pageable = getenv("CANN_STANDIN_PAGEABLE");
    uint64_t count = number("CANN_STANDIN_DEVICES", 2);

    s->memory_bytes = number("CANN_STANDIN_MEMORY", UINT64_C(4) << 30);
    s->pinned_bytes_max = number("CANN_STANDIN_PINNED", UINT64_MAX);
    s->device_count = visible(count > DEVICES_MAX ? DEVICES_MAX : (int)count);
    s->pageable_fails = pageable == NULL || strcmp(pageable, "wait") != 0;
    s->matmul_narrow = number("CANN_STANDIN_MATMUL_NARROW", 0) != 0;
    s->silent = number("CANN_STANDIN_SILENT", 0) != 0;
    s->seed = number("CANN_STANDIN_SEED", 1);
    s->delay_us_max = (unsigned)number("CANN_STANDIN_DELAY_US", 50);
    s->stream_count_max = number("CANN_STANDIN_STREAMS", 1984);
    s->event_count_max = number("CANN_STANDIN_EVENTS", 65536);
    strncpy(s->soc, soc != NULL ? soc : "Ascend910B4", sizeof(s->soc) - 1);
    load_failures();
}

__attribute__((constructor)) static void load_once(void)
{
    standin_settings_load();
}
