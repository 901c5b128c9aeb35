/* offload/disk/file.c - opening files to be read past the page cache.
 *
 * Whether O_DIRECT works is found out by trying: some file systems refuse it in open, some only in
 * read, and some want blocks larger than DISK_ALIGN. Each says EINVAL. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "offload/disk/internal.h"

/* Does a direct read of one block in the middle, where nothing is special, go well? Anything but
 * EINVAL is left for the reads to find: it is not about O_DIRECT. */
static bool direct_read_works(int fd, uint64_t size_bytes)
{
    _Alignas(DISK_ALIGN) char block[DISK_ALIGN];
    const uint64_t at_bytes = size_bytes / 2 / DISK_ALIGN * DISK_ALIGN;
    ssize_t got;

    do
        got = pread(fd, block, sizeof(block), (off_t)at_bytes);
    while (got < 0 && errno == EINTR);
    return got >= 0 || errno != EINVAL;
}

/* Opens as wanted; -1 with errno. */
static int open_fd(const char *path, enum disk_use direct, bool *direct_out)
{
    const int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK; /* a FIFO must not make this wait */
    struct stat info;
    int fd;

    *direct_out = false;
    if (direct != DISK_OFF) {
        fd = open(path, flags | O_DIRECT);
        if (fd < 0 && errno != EINVAL)
            return -1;
        if (fd >= 0 && fstat(fd, &info) == 0 && S_ISREG(info.st_mode) &&
            direct_read_works(fd, (uint64_t)info.st_size)) {
            *direct_out = true;
            return fd;
        }
        if (fd >= 0)
            (void)close(fd);
    }
    fd = open(path, flags);
    /* The kernel would read ahead into the cache what nobody asked for. */
    if (fd >= 0)
        (void)posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    return fd;
}

enum status disk_file_open(const char *path, enum disk_use direct, struct disk_file **file_out,
                           struct err *err)
{
    struct disk_file *file = calloc(1, sizeof(*file));
    struct stat info;
    enum status st = STATUS_IO;

    assert(path != NULL && file_out != NULL);
    if (file == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory to open it", path);
    file->fd = -1;
    file->path = strdup(path);
    if (file->path == NULL) {
        st = err_set(err, STATUS_NO_MEMORY, "%s: no memory to open it", path);
        goto fail;
    }
    file->fd = open_fd(path, direct, &file->direct);
    if (file->fd < 0 || fstat(file->fd, &info) != 0) {
        st = err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
        goto fail;
    }
    if (!S_ISREG(info.st_mode)) {
        st = err_set(err, STATUS_IO, "%s: not a regular file", path);
        goto fail;
    }
    /* On file systems that can't read without waiting, io_uring would answer EAGAIN for ever. */
    if (fcntl(file->fd, F_SETFL, fcntl(file->fd, F_GETFL) & ~O_NONBLOCK) != 0) {
        st = err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
        goto fail;
    }
    if (direct == DISK_ON && !file->direct) {
        st = err_set(err, STATUS_UNAVAILABLE, "%s: its file system cannot read past the page cache "
                     "(O_DIRECT); direct=auto reads through it instead", path);
        goto fail;
    }
    file->size_bytes = (uint64_t)info.st_size;
    file->device = info.st_dev;
    file->inode = info.st_ino;
    file->mtime_s = info.st_mtim.tv_sec;
    file->mtime_ns = info.st_mtim.tv_nsec;
    *file_out = file;
    return STATUS_OK;
fail:
    disk_file_close(file);
    return st;
}

void disk_file_close(struct disk_file *file)
{
    if (file == NULL)
        return;
    if (file->fd >= 0)
        (void)close(file->fd);
    free(file->path);
    free(file);
}

const char *disk_file_path(const struct disk_file *file)
{
    return file->path;
}

uint64_t disk_file_size_bytes(const struct disk_file *file)
{
    return file->size_bytes;
}

bool disk_file_is_direct(const struct disk_file *file)
{
    return file->direct;
}

enum status disk_file_check_unchanged(const struct disk_file *file, struct err *err)
{
    struct stat now;

    if (fstat(file->fd, &now) != 0)
        return err_set(err, STATUS_IO, "%s: %s", file->path, strerror(errno));
    if ((uint64_t)now.st_size != file->size_bytes)
        return err_set(err, STATUS_IO, "%s: it had %" PRIu64 " bytes when it was opened and has "
                       "%" PRIu64 " now", file->path, file->size_bytes, (uint64_t)now.st_size);
    if (now.st_mtim.tv_sec != file->mtime_s || now.st_mtim.tv_nsec != file->mtime_ns)
        return err_set(err, STATUS_IO, "%s: it was written to since it was opened", file->path);
    if (stat(file->path, &now) != 0)
        return err_set(err, STATUS_IO, "%s: it was opened, and now: %s", file->path,
                       strerror(errno));
    if (now.st_dev != file->device || now.st_ino != file->inode)
        return err_set(err, STATUS_IO, "%s: another file has taken its place since it was opened",
                       file->path);
    return STATUS_OK;
}
