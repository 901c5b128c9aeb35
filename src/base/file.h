/* base/file.h - reading files whole or by position, with errors that name the path. */
#ifndef LIGHTER_BASE_FILE_H
#define LIGHTER_BASE_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"

struct file {
    int fd;                 /* -1 when closed */
    uint64_t size_bytes;    /* as it was when opened */
    char *path;             /* copied */
};

/* Opens a regular file for reading. Directories and devices are refused. */
enum status file_open(const char *path, struct file *file_out, struct err *err);
/* Fine on a zeroed, closed or half-opened file. */
void file_close(struct file *file);

/* Reads exactly size_bytes at offset_bytes into dst; a shorter file is STATUS_IO with the numbers.
 * Thread-safe: keeps no position. */
enum status file_read_at(const struct file *file, uint64_t offset_bytes, void *dst,
                         uint64_t size_bytes, struct err *err);

/* Reads a whole file, appended to `out`; more than out's size_limit is STATUS_BAD_INPUT. */
enum status file_read_all(const char *path, struct buf *out, struct err *err);

bool file_exists(const char *path);
bool file_is_directory(const char *path);

#endif
