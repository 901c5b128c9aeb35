/* offload/disk/cache_write.c - making a cache file that is under its name only once it is finished.
 *
 * The units' places follow from their names and sizes, so their bytes are written as they come, and
 * header and table, which have the hashes, last. What is written goes to the disk right away and
 * then out of the page cache, a window at a time: else the kernel would keep gigabytes of it, and
 * stall everything when it decides to write. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/size.h"
#include "offload/disk/cache_internal.h"

#define WINDOW_BYTES (8 * MIB)

struct cache_writer {
    const char *path; /* borrowed */
    char *temporary;  /* NULL: there is none, or it has been renamed */
    int fd;
    struct cache_hash fingerprint;
    struct cache_unit *units; /* the names are borrowed */
    size_t unit_count, unit_index;
    uint64_t unit_done_bytes; /* of the current unit */
    uint64_t table_bytes, file_bytes;
    XXH3_state_t *hashing; /* the current unit's bytes so far */
    uint64_t flushed_bytes, dropped_bytes; /* sent to the disk, and out of the cache */
};

/* The folder a path is in, as text that the caller frees. */
static char *folder_of(const char *path)
{
    const char *const slash = strrchr(path, '/');

    if (slash == NULL)
        return strdup(".");
    return slash == path ? strdup("/") : strndup(path, (size_t)(slash - path));
}

/* Says what went wrong with writing, and when the disk is full, how much room is wanted. */
static enum status write_failed(const struct cache_writer *writer, const char *doing, int error,
                                struct err *err)
{
    struct statvfs info;
    char *const folder = folder_of(writer->path);
    char wanted[24], free_text[24] = "?";
    enum status st;

    size_format(writer->file_bytes, wanted, sizeof(wanted));
    if (folder != NULL && statvfs(folder, &info) == 0)
        size_format((uint64_t)info.f_bavail * info.f_frsize, free_text, sizeof(free_text));
    if (error == ENOSPC || error == EDQUOT || error == EFBIG)
        st = err_set(err, STATUS_IO, "%s: %s: %s; the cache file needs %s, %s are free (another "
                     "place: --offload-cache-dir)", writer->path, doing, strerror(error), wanted,
                     free_text);
    else
        st = err_set(err, STATUS_IO, "%s: %s: %s", writer->path, doing, strerror(error));
    free(folder);
    return st;
}

static enum status write_at(const struct cache_writer *writer, uint64_t offset_bytes,
                            const void *bytes, uint64_t size_bytes, struct err *err)
{
    const char *from = bytes;

    while (size_bytes > 0) {
        const uint64_t part = size_bytes < GIB ? size_bytes : GIB;
        const ssize_t put = pwrite(writer->fd, from, part, (off_t)offset_bytes);

        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return write_failed(writer, "writing", put < 0 ? errno : EIO, err);
        from += put;
        offset_bytes += (uint64_t)put;
        size_bytes -= (uint64_t)put;
    }
    return STATUS_OK;
}

/* Starts the way to the disk for what is written up to end_bytes, and drops from the cache what was
 * started the last time. Only whole windows; errors show at the end, in fsync. */
static void flush_window(struct cache_writer *writer, uint64_t end_bytes)
{
    const unsigned start = SYNC_FILE_RANGE_WRITE;
    const unsigned wait = SYNC_FILE_RANGE_WAIT_BEFORE | start | SYNC_FILE_RANGE_WAIT_AFTER;
    uint64_t size_bytes;

    if (end_bytes - writer->flushed_bytes < WINDOW_BYTES)
        return;
    size_bytes = (end_bytes - writer->flushed_bytes) / WINDOW_BYTES * WINDOW_BYTES;
    (void)sync_file_range(writer->fd, (off_t)writer->flushed_bytes, (off_t)size_bytes, start);
    if (writer->flushed_bytes > writer->dropped_bytes) { /* a size of 0 would mean all */
        const off_t from = (off_t)writer->dropped_bytes;
        const off_t started_bytes = (off_t)writer->flushed_bytes - from;

        (void)sync_file_range(writer->fd, from, started_bytes, wait);
        (void)posix_fadvise(writer->fd, from, started_bytes, POSIX_FADV_DONTNEED);
    }
    writer->dropped_bytes = writer->flushed_bytes;
    writer->flushed_bytes += size_bytes;
}

/* ---- creating ---- */

static enum status check_units(const char *path, const struct cache_unit *units, size_t unit_count,
                               struct err *err)
{
    if (unit_count > CACHE_UNITS_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: %zu units, a cache file has at most %" PRIu64,
                       path, unit_count, CACHE_UNITS_MAX);
    for (size_t i = 0; i < unit_count; i++) {
        if (strlen(units[i].name) > CACHE_NAME_BYTES_MAX)
            return err_set(err, STATUS_BAD_INPUT, "%s: a unit's name of %zu bytes, at most %d",
                           path, strlen(units[i].name), CACHE_NAME_BYTES_MAX);
    }
    return STATUS_OK;
}

/* Makes the temporary file and reserves its room: a disk that is too full says so now. */
static enum status create_file(struct cache_writer *writer, struct err *err)
{
    char *name = NULL;

    if (asprintf(&name, "%s.XXXXXX.tmp", writer->path) < 0)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory to write it", writer->path);
    writer->fd = mkostemps(name, 4, O_CLOEXEC);
    if (writer->fd < 0) {
        free(name);
        return write_failed(writer, "creating a temporary file beside it", errno, err);
    }
    writer->temporary = name;
    if (fallocate(writer->fd, 0, 0, (off_t)writer->file_bytes) != 0 && errno != EOPNOTSUPP &&
        errno != ENOSYS)
        return write_failed(writer, "reserving room for it", errno, err);
    return STATUS_OK;
}

enum status cache_writer_create(const char *path, const struct cache_hash *fingerprint,
                                const struct cache_unit *units, size_t unit_count,
                                struct cache_writer **writer_out, struct err *err)
{
    struct cache_writer *writer;
    enum status st = check_units(path, units, unit_count, err);

    if (st != STATUS_OK)
        return st;
    writer = calloc(1, sizeof(*writer));
    if (writer == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory to write it", path);
    writer->path = path;
    writer->fd = -1;
    writer->fingerprint = *fingerprint;
    writer->unit_count = unit_count;
    writer->units = calloc(unit_count + 1, sizeof(*units));
    writer->hashing = XXH3_createState();
    if (writer->units == NULL || writer->hashing == NULL) {
        st = err_set(err, STATUS_NO_MEMORY, "%s: no memory to write it", path);
        goto fail;
    }
    memcpy(writer->units, units, unit_count * sizeof(*units));
    if (!cache__table_bytes(units, unit_count, &writer->table_bytes) ||
        !cache__place_units(writer->units, unit_count, writer->table_bytes, &writer->file_bytes)) {
        st = err_set(err, STATUS_BAD_INPUT, "%s: its %zu units are too large for one file", path,
                     unit_count);
        goto fail;
    }
    (void)XXH3_128bits_reset(writer->hashing);
    st = create_file(writer, err);
    if (st != STATUS_OK)
        goto fail;
    *writer_out = writer;
    return STATUS_OK;
fail:
    cache_writer_destroy(writer);
    return st;
}

void cache_writer_destroy(struct cache_writer *writer)
{
    if (writer == NULL)
        return;
    if (writer->temporary != NULL)
        (void)unlink(writer->temporary);
    if (writer->fd >= 0)
        (void)close(writer->fd);
    (void)XXH3_freeState(writer->hashing);
    free(writer->temporary);
    free(writer->units);
    free(writer);
}

/* ---- writing ---- */

/* Closes the current unit if it is full, and those behind it that are empty. */
static void end_full_units(struct cache_writer *writer)
{
    while (writer->unit_index < writer->unit_count &&
           writer->unit_done_bytes == writer->units[writer->unit_index].size_bytes) {
        XXH128_canonical_t canonical;

        XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(writer->hashing));
        memcpy(writer->units[writer->unit_index].hash.bytes, canonical.digest, 16);
        (void)XXH3_128bits_reset(writer->hashing);
        writer->unit_index++;
        writer->unit_done_bytes = 0;
    }
}

enum status cache_writer_append(struct cache_writer *writer, const void *bytes, uint64_t size_bytes,
                                struct err *err)
{
    const char *from = bytes;

    while (size_bytes > 0) {
        const struct cache_unit *unit;
        uint64_t part_bytes, offset_bytes;
        enum status st;

        end_full_units(writer);
        assert(writer->unit_index < writer->unit_count);
        unit = &writer->units[writer->unit_index];
        part_bytes = unit->size_bytes - writer->unit_done_bytes;
        if (part_bytes > size_bytes)
            part_bytes = size_bytes;
        if (part_bytes > WINDOW_BYTES)
            part_bytes = WINDOW_BYTES;
        offset_bytes = unit->offset_bytes + writer->unit_done_bytes;
        (void)XXH3_128bits_update(writer->hashing, from, part_bytes);
        st = write_at(writer, offset_bytes, from, part_bytes, err);
        if (st != STATUS_OK)
            return st;
        flush_window(writer, offset_bytes + part_bytes);
        writer->unit_done_bytes += part_bytes;
        from += part_bytes;
        size_bytes -= part_bytes;
    }
    return STATUS_OK;
}

static enum status write_head(const struct cache_writer *writer, struct err *err)
{
    struct cache__header header = { .fingerprint = writer->fingerprint,
                                    .file_bytes = writer->file_bytes,
                                    .unit_count = writer->unit_count,
                                    .table_bytes = writer->table_bytes };
    uint8_t *const head = malloc(CACHE__HEADER_BYTES + writer->table_bytes);
    enum status st;

    if (head == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for its table", writer->path);
    cache__table_write(writer->units, writer->unit_count, head + CACHE__HEADER_BYTES);
    header.table_hash = cache_hash_of(head + CACHE__HEADER_BYTES, writer->table_bytes);
    cache__header_write(&header, head);
    st = write_at(writer, 0, head, CACHE__HEADER_BYTES + writer->table_bytes, err);
    free(head);
    return st;
}

/* The name is in the folder, and so on the disk only when that is. */
static enum status sync_folder(const struct cache_writer *writer, struct err *err)
{
    char *const folder = folder_of(writer->path);
    const int fd = folder != NULL ? open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    enum status st = STATUS_OK;

    /* EINVAL: a file system without this; nothing more can be done there. */
    if (fd < 0 || (fsync(fd) != 0 && errno != EINVAL))
        st = write_failed(writer, "bringing its folder to the disk", errno, err);
    if (fd >= 0)
        (void)close(fd);
    free(folder);
    return st;
}

enum status cache_writer_finish(struct cache_writer *writer, struct err *err)
{
    enum status st;

    assert(writer->temporary != NULL);
    end_full_units(writer);
    assert(writer->unit_index == writer->unit_count);
    st = write_head(writer, err);
    if (st != STATUS_OK)
        return st;
    if (ftruncate(writer->fd, (off_t)writer->file_bytes) != 0) /* for when no room was reserved */
        return write_failed(writer, "setting its size", errno, err);
    if (fsync(writer->fd) != 0)
        return write_failed(writer, "bringing it to the disk", errno, err);
    (void)posix_fadvise(writer->fd, 0, 0, POSIX_FADV_DONTNEED);
    if (rename(writer->temporary, writer->path) != 0)
        return write_failed(writer, "giving it its name", errno, err);
    free(writer->temporary);
    writer->temporary = NULL;
    return sync_folder(writer, err);
}
