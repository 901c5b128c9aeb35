/* checkpoint/bulk.c - see bulk.h. */
#include "checkpoint/bulk.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGES_AT_ONCE 256 /* that the kernel is asked about */

bool bulk_file_open(const struct file *file, struct bulk_file *bulk_out)
{
    struct bulk_file bulk = { .map_bytes = file->size_bytes };

    if (file->size_bytes == 0)
        return false;
    bulk.fd = open(file->path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (bulk.fd < 0)
        return false;
    bulk.map = mmap(NULL, bulk.map_bytes, PROT_READ, MAP_SHARED, file->fd, 0);
    if (bulk.map == MAP_FAILED) {
        (void)close(bulk.fd);
        return false;
    }
    *bulk_out = bulk;
    return true;
}

void bulk_file_close(struct bulk_file *bulk)
{
    if (bulk->fd < 0)
        return;
    (void)munmap(bulk->map, bulk->map_bytes);
    (void)close(bulk->fd);
    *bulk = (struct bulk_file){ .fd = -1 };
}

bool bulk_file_is_cached(const struct bulk_file *bulk, uint64_t offset_bytes, uint64_t size_bytes)
{
    const uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    const uint64_t end_bytes = offset_bytes + size_bytes;
    unsigned char pages[PAGES_AT_ONCE];

    if (end_bytes > bulk->map_bytes)
        return false;
    for (uint64_t at = offset_bytes / page_bytes * page_bytes; at < end_bytes;) {
        const uint64_t left = (end_bytes - at + page_bytes - 1) / page_bytes;
        const uint64_t count = left < PAGES_AT_ONCE ? left : PAGES_AT_ONCE;

        if (mincore((char *)bulk->map + at, count * page_bytes, pages) != 0)
            return false;
        for (uint64_t i = 0; i < count; i++)
            if ((pages[i] & 1) == 0)
                return false;
        at += count * page_bytes;
    }
    return true;
}

bool bulk_file_read(const struct bulk_file *bulk, uint64_t offset_bytes, void *dst,
                    uint64_t size_bytes, uint8_t *buffer)
{
    uint8_t *to = dst;

    while (size_bytes > 0) {
        const uint64_t skip_bytes = offset_bytes % BULK_ALIGN;
        const uint64_t want_bytes = size_align_up(skip_bytes + size_bytes, BULK_ALIGN);
        uint64_t got_bytes;
        ssize_t got;

        got = pread(bulk->fd, buffer,
                    want_bytes < BULK_BUFFER_BYTES ? want_bytes : BULK_BUFFER_BYTES,
                    (off_t)(offset_bytes - skip_bytes));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= (ssize_t)skip_bytes)
            return false;
        got_bytes = (uint64_t)got - skip_bytes;
        if (got_bytes > size_bytes)
            got_bytes = size_bytes;
        memcpy(to, buffer + skip_bytes, got_bytes);
        to += got_bytes;
        offset_bytes += got_bytes;
        size_bytes -= got_bytes;
    }
    return true;
}
