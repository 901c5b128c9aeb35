/* base/memory_left.c - see memory_left.h.
 *
 * /proc/meminfo's MemAvailable is described in proc(5); memory.max, memory.current and memory.stat
 * in Documentation/admin-guide/cgroup-v2.rst, those of version 1, which differ in name, in
 * cgroup-v1/memory.rst. A limit holds for a group and all below it, so every
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

/* How a version of control groups calls things. */
struct group_version {
    const char *controller; /* in /proc/self/cgroup: "0:" is version 2's, ":memory:" version 1's */
    const char *root;
    const char *limit, *current, *active, *inactive;
};

static const struct group_version versions[] = {
    { "0::", CGROUP_ROOT, "memory.max", "memory.current", "active_file ", "inactive_file " },
    { ":memory:", CGROUP_ROOT "/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
      "total_active_file ", "total_inactive_file " },
};

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
static uint64_t group_left_bytes(const struct group_version *version, const char *folder)
{
    uint64_t limit, current, active = 0, inactive = 0, used;
    char path[PATH_MAX];

    (void)snprintf(path, sizeof(path), "%s/%s", folder, version->limit);
    if (!read_number(path, "", &limit))
        return UINT64_MAX;
    (void)snprintf(path, sizeof(path), "%s/%s", folder, version->current);
    if (!read_number(path, "", &current))
        return UINT64_MAX;
    (void)snprintf(path, sizeof(path), "%s/memory.stat", folder);
    (void)read_number(path, version->active, &active);
    (void)read_number(path, version->inactive, &inactive);
    used = active + inactive < current ? current - active - inactive : 0;
    return used < limit ? limit - used : 0;
}

/* The path of this process's group below the root of groups, from /proc/self/cgroup: "0::/a/b" or
 * "9:memory:/a/b". */
static bool own_group(const struct group_version *version, char *path, size_t path_size)
{
    char line[LINE_MAX_BYTES];
    FILE *file = fopen("/proc/self/cgroup", "re");
    bool found = false;

    if (file == NULL)
        return false;
    while (!found && fgets(line, sizeof(line), file) != NULL) {
        const char *at = strstr(line, version->controller);

        found = at != NULL && at[strlen(version->controller)] == '/';
        line[strcspn(line, "\n")] = '\0';
        if (found)
            (void)snprintf(path, path_size, "%s%s", version->root,
                           at + strlen(version->controller));
    }
    (void)fclose(file);
    return found;
}

/* The least of what the process's group and all above it leave. */
static uint64_t groups_left_bytes(const struct group_version *version)
{
    char folder[LINE_MAX_BYTES + sizeof(CGROUP_ROOT "/memory")];
    uint64_t left_bytes = UINT64_MAX;

    if (!own_group(version, folder, sizeof(folder)))
        return left_bytes;
    for (;;) {
        const uint64_t group_bytes = group_left_bytes(version, folder);
        char *slash = strrchr(folder, '/');

        left_bytes = group_bytes < left_bytes ? group_bytes : left_bytes;
        if (slash == NULL || strlen(folder) <= strlen(version->root))
            return left_bytes;
        *slash = '\0';
    }
}

uint64_t memory_left_bytes(void)
{
    uint64_t left_bytes = UINT64_MAX, available_kib;

    if (read_number("/proc/meminfo", "MemAvailable:", &available_kib))
        left_bytes = available_kib * 1024;
    for (size_t i = 0; i < sizeof(versions) / sizeof(versions[0]); i++) {
        const uint64_t group_bytes = groups_left_bytes(&versions[i]);

        left_bytes = group_bytes < left_bytes ? group_bytes : left_bytes;
    }
    return left_bytes;
}
