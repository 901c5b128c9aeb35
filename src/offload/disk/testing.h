/* offload/disk/testing.h - files with known bytes, for the tests of this folder. */
#ifndef LIGHTER_OFFLOAD_DISK_TESTING_H
#define LIGHTER_OFFLOAD_DISK_TESTING_H

#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The byte at a position: no two blocks are alike, nor two shifts of one. */
static inline uint8_t testing_byte(uint64_t offset_bytes)
{
    return (uint8_t)(((offset_bytes / 8 + 1) * UINT64_C(0x9E3779B97F4A7C15)) >>
                     (8 * (offset_bytes % 8)));
}

static inline void testing_fill(uint8_t *out, uint64_t offset_bytes, uint64_t size_bytes)
{
    for (uint64_t i = 0; i < size_bytes; i++)
        out[i] = testing_byte(offset_bytes + i);
}

static inline bool testing_is_filled(const uint8_t *bytes, uint64_t offset_bytes,
                                     uint64_t size_bytes)
{
    for (uint64_t i = 0; i < size_bytes; i++) {
        if (bytes[i] != testing_byte(offset_bytes + i))
            return false;
    }
    return true;
}

/* Writes such a file of this size, on the disk and out of the page cache; its path is the caller's
 * to unlink and free. NULL when that fails. */
static inline char *testing_file(uint64_t size_bytes)
{
    const char *const folder = getenv("TMPDIR");
    char *const path = malloc(PATH_MAX);
    uint8_t *const bytes = malloc(size_bytes + 1);
    bool good = false;
    int fd = -1;

    if (path != NULL && bytes != NULL) {
        (void)snprintf(path, PATH_MAX, "%s/lighter-disk-XXXXXX", folder != NULL ? folder : "/tmp");
        fd = mkstemp(path);
    }
    if (fd >= 0) {
        testing_fill(bytes, 0, size_bytes);
        good = write(fd, bytes, size_bytes) == (ssize_t)size_bytes && fsync(fd) == 0;
        (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        (void)close(fd);
    }
    free(bytes);
    if (good)
        return path;
    free(path);
    return NULL;
}

#endif
