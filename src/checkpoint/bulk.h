/* checkpoint/bulk.h - reading much of a file past the page cache.
 *
 * What is read through the page cache is there a second time, and the kernel finds room for it page
 * by page: for a file that is large beside memory it throws out others' pages all the while, and
 * that keeps the processors busier than the copying does (measured in docs/benchmarks.md). So a
 * large checkpoint is read with O_DIRECT into a buffer that stays in the processor's cache, and
 * copied from there to its place, which need not be aligned. What the page cache has already, of a
 * file that was just written or is read by somebody else, is still taken from there.
 *
 * Everything here is best effort: false means that an ordinary read shall do it, and find out what
 * is wrong if something is. */
#ifndef LIGHTER_CHECKPOINT_BULK_H
#define LIGHTER_CHECKPOINT_BULK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/file.h"
#include "base/size.h"

#define BULK_ALIGN 4096
#define BULK_BUFFER_BYTES (1 * MIB)

struct bulk_file {
    int fd;             /* O_DIRECT; -1 when closed */
    void *map;          /* of the whole file, never touched: the kernel is asked about its pages */
    uint64_t map_bytes;
};

/* False: the file system has no such reads, or there is no address space for the file. */
bool bulk_file_open(const struct file *file, struct bulk_file *bulk_out);
/* Fine on a closed one. */
void bulk_file_close(struct bulk_file *bulk);

/* Whether all of the range is in the page cache, where reading it is a copy. */
bool bulk_file_is_cached(const struct bulk_file *bulk, uint64_t offset_bytes, uint64_t size_bytes);

/* Reads past the page cache. buffer[BULK_BUFFER_BYTES], aligned to BULK_ALIGN, is used meanwhile.
 * Threads: any number at once, with a buffer each. */
bool bulk_file_read(const struct bulk_file *bulk, uint64_t offset_bytes, void *dst,
                    uint64_t size_bytes, uint8_t *buffer);

#endif
