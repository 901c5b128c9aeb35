/* offload/disk/piece.c - cutting reads into pieces, and judging how an attempt at one ended.
 *
 * The pieces of an extent are alike in size: an extent a little larger than a multiple of
 * piece_bytes would else end in a tiny one, which costs the disk as much as a whole one. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "base/size.h"
#include "offload/disk/internal.h"

#define EIO_TRIES_MAX 2    /* the first, and one more */
#define AGAIN_TRIES_MAX 1000 /* EINTR, EAGAIN: no disk says them so often in a row */
#define AGAIN_AT_ONCE_MAX 20 /* then a moment passes between two tries */
#define AGAIN_PAUSE_NS 1000000

static uint64_t align_down(uint64_t bytes)
{
    return bytes & ~(uint64_t)(DISK_ALIGN - 1);
}

/* The whole blocks around an extent. */
static uint64_t blocks_bytes(const struct disk_extent *extent)
{
    return size_align_up(extent->offset_bytes + extent->size_bytes, DISK_ALIGN) -
           align_down(extent->offset_bytes);
}

bool disk__piece_is_left(struct disk_read *read)
{
    if (read->own.dropped)
        return false;
    while (read->own.extent_index < read->extent_count) {
        const struct disk_extent *const extent = &read->extents[read->own.extent_index];
        if (extent->size_bytes != 0 && read->own.started_bytes < blocks_bytes(extent))
            return true;
        read->own.extent_index++;
        read->own.started_bytes = 0;
    }
    return false;
}

bool disk__piece_cut(struct disk_read *read, uint64_t piece_bytes, struct disk__piece *piece_out)
{
    const struct disk_extent *extent;
    uint64_t total_bytes, piece_count, size_bytes, left_bytes;

    if (!disk__piece_is_left(read))
        return false;
    extent = &read->extents[read->own.extent_index];
    total_bytes = blocks_bytes(extent);
    piece_count = (total_bytes + piece_bytes - 1) / piece_bytes;
    size_bytes = size_align_up((total_bytes + piece_count - 1) / piece_count, DISK_ALIGN);
    left_bytes = total_bytes - read->own.started_bytes;
    *piece_out = (struct disk__piece){
        .read = read,
        .file = extent->file,
        .class = read->class,
        .offset_bytes = align_down(extent->offset_bytes) + read->own.started_bytes,
        .size_bytes = size_bytes < left_bytes ? size_bytes : left_bytes,
        .dst = (char *)extent->dst - extent->offset_bytes % DISK_ALIGN + read->own.started_bytes,
    };
    piece_out->needed_end_bytes = extent->offset_bytes + extent->size_bytes;
    if (piece_out->needed_end_bytes > piece_out->offset_bytes + piece_out->size_bytes)
        piece_out->needed_end_bytes = piece_out->offset_bytes + piece_out->size_bytes;
    read->own.started_bytes += piece_out->size_bytes;
    return true;
}

void disk__piece_prepare(struct disk__piece *piece, const struct disk_faults *faults)
{
    const bool first = piece->attempt_count++ == 0;

    piece->attempt_bytes = piece->size_bytes;
    piece->stall_ns = 0;
    if (first && piece->number == faults->short_piece && piece->size_bytes > DISK_ALIGN)
        piece->attempt_bytes = align_down(piece->size_bytes / 2 + DISK_ALIGN - 1);
    if (first && piece->number == faults->stall_piece)
        piece->stall_ns = faults->stall_ns;
    if (piece->again_count > AGAIN_AT_ONCE_MAX)
        piece->stall_ns = AGAIN_PAUSE_NS;
}

/* The attempt read nothing more: what is wanted lies past the file's end, which is where the read
 * stopped, or before the piece. */
static enum disk__verdict ended_early(const struct disk__piece *piece, uint64_t end_bytes,
                                      struct err *err)
{
    struct stat now;

    if (fstat(piece->file->fd, &now) == 0 && (uint64_t)now.st_size < end_bytes)
        end_bytes = (uint64_t)now.st_size;
    (void)err_set(err, STATUS_IO, "%s ended at byte %" PRIu64 ", %" PRIu64 " bytes at %" PRIu64
                  " were expected: was it truncated?", piece->file->path, end_bytes,
                  piece->needed_end_bytes - piece->offset_bytes, piece->offset_bytes);
    return DISK__PIECE_FAILED;
}

static enum disk__verdict judge_error(struct disk__piece *piece, int error, struct err *err)
{
    uint32_t tries;

    if (error == EINTR || error == EAGAIN) {
        tries = ++piece->again_count;
        if (tries < AGAIN_TRIES_MAX)
            return DISK__PIECE_AGAIN;
    } else {
        tries = ++piece->eio_count;
        if (error == EIO && tries < EIO_TRIES_MAX)
            return DISK__PIECE_AGAIN;
    }
    (void)err_set(err, STATUS_IO, "%s: reading %" PRIu64 " bytes at %" PRIu64 ": %s%s",
                  piece->file->path, piece->size_bytes, piece->offset_bytes, strerror(error),
                  tries > 1 ? " (tried again, in vain)" : "");
    return DISK__PIECE_FAILED;
}

/* A short read ends in whole blocks when it goes on; a part of a block only at the file's end. */
enum disk__verdict disk__piece_judge(struct disk__piece *piece, const struct disk_faults *faults,
                                     uint64_t *bytes_out, struct err *err)
{
    int32_t result = piece->result;
    uint64_t whole_bytes;

    *bytes_out = 0;
    if (piece->number == faults->eio_piece && piece->eio_count < faults->eio_count)
        result = -EIO;
    if (piece->number == faults->end_piece)
        result = 0;
    if (result < 0)
        return judge_error(piece, -result, err);
    assert((uint64_t)result <= piece->attempt_bytes);
    if (!piece->file->direct)
        (void)posix_fadvise(piece->file->fd, (off_t)piece->offset_bytes,
                            (off_t)piece->attempt_bytes, POSIX_FADV_DONTNEED);
    if (piece->offset_bytes + (uint64_t)result >= piece->needed_end_bytes) {
        *bytes_out = (uint64_t)result;
        return DISK__PIECE_ENDED;
    }
    whole_bytes = align_down((uint64_t)result);
    if (whole_bytes == 0)
        return ended_early(piece, piece->offset_bytes + (uint64_t)result, err);
    *bytes_out = whole_bytes;
    piece->offset_bytes += whole_bytes;
    piece->size_bytes -= whole_bytes;
    piece->dst += whole_bytes;
    return DISK__PIECE_AGAIN;
}
