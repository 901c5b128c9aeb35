/* base/memory_left.c - see memory_left.h.
 *
 * /proc/meminfo's MemAvailable is described in proc(5); memory.max, memory.current and memory.stat
 * in Documentation/admin-guide/cgroup-v2.rst. A limit holds for a group and all below it, so every
 * group from the process's own up to the root is asked. */
#include "base/memory_left.h"

#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE_MAX_BYTES 512
#define CGROUP_ROOT "/sys/fs/cgroup"

/* The number behind `key` at the beginning of a line of the file. */
static bool read_number(const char *path, const char *key, uint64_t *value_out)
{
    const size_t key_length = strlen(key);
    char line[LINE_MAX_BYTES];
    FILE *file = fopen(path, "re");
    bool found = false;

    if (file == NULL)
        return false;
    while (!found && fgets(line, sizeof(line), file) != NULL) {
        char *end;

        if (strncmp(line, key, key_length) != 0)
            continue;
        *value_out = strtoull(line + key_length, &end, 10);
        found = end != line + key_length; /* "max" is no number */
    }
    (void)fclose(file);
    return found;
}

/* What the group at `folder` leaves; UINT64_MAX: it sets no limit. */
static uint64_t group_left_bytes(const char *folder)
{
    uint64_t limit, current, active = 0, inactive = 0, used;
    char path[PATH_MAX];

    (void)snprintf(path, sizeof(path), "%s/memory.max", folder);
    if (!read_number(path, "", &limit))
        return UINT64_MAX;
    (void)snprintf(path, sizeof(path), "%s/memory.current", folder);
    if (!read_number(path, "", &current))
        return UINT64_MAX;
    (void)snprintf(path, sizeof(path), "%s/memory.stat", folder);
    (void)read_number(path, "active_file ", &active);
    (void)read_number(path, "inactive_file ", &inactive);
    used = active + inactive < current ? current - active - inactive : 0;
    return used < limit ? limit - used : 0;
}

/* The path of this process's group below the root of groups, from /proc/self/cgroup: "0::/a/b". */
static bool own_group(char *path, size_t path_size)
{
    char line[LINE_MAX_BYTES];
    FILE *file = fopen("/proc/self/cgroup", "re");
    bool found = false;

    if (file == NULL)
        return false;
    while (!found && fgets(line, sizeof(line), file) != NULL) {
        found = strncmp(line, "0::/", 4) == 0;
        line[strcspn(line, "\n")] = '\0';
        if (found)
            (void)snprintf(path, path_size, "%s%s", CGROUP_ROOT, line + 3);
    }
    (void)fclose(file);
    return found;
}

uint64_t memory_left_bytes(void)
{
    uint64_t left_bytes = UINT64_MAX, available_kib;
    char folder[LINE_MAX_BYTES + sizeof(CGROUP_ROOT)];

    if (read_number("/proc/meminfo", "MemAvailable:", &available_kib))
        left_bytes = available_kib * 1024;
    if (!own_group(folder, sizeof(folder)))
        return left_bytes;
    for (;;) {
        const uint64_t group_bytes = group_left_bytes(folder);
        char *slash = strrchr(folder, '/');

        left_bytes = group_bytes < left_bytes ? group_bytes : left_bytes;
        if (slash == NULL || strlen(folder) <= strlen(CGROUP_ROOT))
            return left_bytes;
        *slash = '\0';
    }
}
