/* base/segment.h - memory that processes of one user share: one writes, the others read.
 *
 * A memfd: it has no name, so nothing can be left behind, and it is gone with the last process that
 * has it mapped, however that one ends. Who creates it takes all of its pages at once, so that a
 * machine that has not enough says so then, and not by killing somebody later. Others get a handle
 * by any means and map it read-only, so that a stray write of theirs faults; a seal keeps its size.
 *
 *     creator:  segment_create -> segment_handle ~~~~~ any channel ~~~~~> reader: segment_open
 *
 * What a reader has mapped stays valid when the creator is gone, and a reader's own handle serves
 * others as the creator's does.
 *
 * Threads: a segment belongs to one; when the bytes may be read is for the callers to agree on. */
#ifndef LIGHTER_BASE_SEGMENT_H
#define LIGHTER_BASE_SEGMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct segment {
    void *memory;         /* page-aligned; NULL: none */
    uint64_t size_bytes;
    uint64_t cookie;
    int fd;
    bool placed;          /* at an address that was given */
};

/* Plain bytes, for another process of this machine: where the process that gives it has the memory.
 * The cookie makes sure that what the reader
 * finds at this place is what the creator meant: process numbers come back. */
struct segment_handle {
    uint64_t size_bytes, cookie;
    int64_t pid, fd;
};

/* Zeroed. address: where to map it, page-aligned and instead of what is there, or NULL for
 * anywhere; what follows the segment in its last page stays unused. When a segment that was placed
 * is closed, or its creation fails, private zeroed memory is there, never a hole.
 * Messages begin with `what`. STATUS_NO_MEMORY with both numbers when the machine, the control
 * group or a limit of this process leaves too little. */
enum status segment_create(const char *what, uint64_t size_bytes, void *address,
                           struct segment *segment_out, struct err *err);
void segment_handle(const struct segment *segment, struct segment_handle *handle_out);
/* Whether the process that has given the handle still has the memory, as far as can be seen. */
bool segment_is_there(const struct segment_handle *handle);
/* Maps what the handle names, read-only. size_bytes: what the reader expects; another size is
 * STATUS_PEER, as are a process that is gone, another one in its place, and one that may not be
 * looked into. */
enum status segment_open(const char *what, const struct segment_handle *handle,
                         uint64_t size_bytes, struct segment *segment_out, struct err *err);
/* Makes a reader's memory writable, where it is: for whoever takes the creator's place. Who that
 * is, is for the callers to agree on. */
enum status segment_take_over(const char *what, struct segment *segment, struct err *err);
/* Fine on a zeroed segment, in the creator and in a reader. */
void segment_close(struct segment *segment);

#endif
