/* base/file.c - see file.h. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define READ_BYTES_MAX (UINT64_C(1) << 30) /* Linux reads at most 2 GiB less a page in one call */

enum status file_open(const char *path, struct file *file_out, struct err *err)
{
    struct file file = { .fd = -1 };
    struct stat info;

    file.path = strdup(path);
    if (file.path == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory to open it", path);
    file.fd = open(path, O_RDONLY | O_CLOEXEC);
    if (file.fd < 0 || fstat(file.fd, &info) != 0) {
        err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
        goto fail;
    }
    if (!S_ISREG(info.st_mode)) {
        err_set(err, STATUS_IO, "%s: not a regular file", path);
        goto fail;
    }
    file.size_bytes = (uint64_t)info.st_size;
    *file_out = file;
    return STATUS_OK;
fail:
    file_close(&file);
    return STATUS_IO;
}

void file_close(struct file *file)
{
    if (file->path == NULL)
        return;
    if (file->fd >= 0)
        (void)close(file->fd);
    free(file->path);
    *file = (struct file){ .fd = -1 };
}

enum status file_read_at(const struct file *file, uint64_t offset_bytes, void *dst,
                         uint64_t size_bytes, struct err *err)
{
    char *to = dst;
    uint64_t done_bytes = 0;

    while (done_bytes < size_bytes) {
        uint64_t want = size_bytes - done_bytes;
        ssize_t got;

        if (want > READ_BYTES_MAX)
            want = READ_BYTES_MAX;
        got = pread(file->fd, to + done_bytes, want, (off_t)(offset_bytes + done_bytes));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_set(err, STATUS_IO, "%s: reading %" PRIu64 " bytes at %" PRIu64 ": %s",
                           file->path, size_bytes, offset_bytes, strerror(errno));
        if (got == 0)
            return err_set(err, STATUS_IO,
                           "%s: truncated: it ends at byte %" PRIu64 ", %" PRIu64
                           " bytes are wanted at %" PRIu64,
                           file->path, offset_bytes + done_bytes, size_bytes, offset_bytes);
        done_bytes += (uint64_t)got;
    }
    return STATUS_OK;
}

enum status file_read_all(const char *path, struct buf *out, struct err *err)
{
    struct file file;
    enum status st = file_open(path, &file, err);

    if (st != STATUS_OK)
        return st;
    if (file.size_bytes > out->size_limit - out->size) {
        st = err_set(err, STATUS_BAD_INPUT, "%s: %" PRIu64 " bytes, at most %zu are read", path,
                     file.size_bytes, out->size_limit - out->size);
        goto done;
    }
    st = buf_reserve(out, out->size + (size_t)file.size_bytes, err);
    if (st != STATUS_OK)
        goto done;
    st = file_read_at(&file, 0, out->data + out->size, file.size_bytes, err);
    if (st != STATUS_OK)
        goto done;
    out->size += (size_t)file.size_bytes;
    out->data[out->size] = '\0';
done:
    file_close(&file);
    return st;
}

bool file_exists(const char *path)
{
    struct stat info;

    return stat(path, &info) == 0;
}

bool file_is_directory(const char *path)
{
    struct stat info;

    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}
