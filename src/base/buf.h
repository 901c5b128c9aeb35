/* base/buf.h - a growing run of bytes with a limit; always followed by a NUL, not counted. */
#ifndef LIGHTER_BASE_BUF_H
#define LIGHTER_BASE_BUF_H

#include <stddef.h>

#include "base/status.h"

struct buf {
    char *data;         /* NULL while empty and never grown; else NUL-terminated */
    size_t size;        /* bytes in use */
    size_t capacity;    /* bytes allocated, less the NUL */
    size_t size_limit;  /* growing past this fails with STATUS_NO_MEMORY */
};

/* The caller's storage; allocates nothing yet. */
void buf_init(struct buf *buf, size_t size_limit);
/* Frees the bytes; the buf is empty and may be used again. */
void buf_deinit(struct buf *buf);
/* Forgets the bytes, keeps the memory. */
void buf_clear(struct buf *buf);
enum status buf_reserve(struct buf *buf, size_t capacity, struct err *err);
enum status buf_append(struct buf *buf, const void *bytes, size_t size, struct err *err);
enum status buf_printf(struct buf *buf, struct err *err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
