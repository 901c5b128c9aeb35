/* base/buf.c - see buf.h. */
#include "base/buf.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void buf_init(struct buf *buf, size_t size_limit)
{
    *buf = (struct buf){ .size_limit = size_limit };
}

void buf_deinit(struct buf *buf)
{
    free(buf->data);
    *buf = (struct buf){ .size_limit = buf->size_limit };
}

void buf_clear(struct buf *buf)
{
    buf->size = 0;
    if (buf->data != NULL)
        buf->data[0] = '\0';
}

enum status buf_reserve(struct buf *buf, size_t capacity, struct err *err)
{
    char *data;

    if (buf->data != NULL && capacity <= buf->capacity)
        return STATUS_OK;
    if (capacity > buf->size_limit)
        return err_set(err, STATUS_NO_MEMORY, "%zu bytes are more than the limit of %zu", capacity,
                       buf->size_limit);
    if (capacity < buf->capacity * 2)
        capacity = buf->capacity * 2 < buf->size_limit ? buf->capacity * 2 : buf->size_limit;
    if (capacity < 64 && buf->size_limit >= 64)
        capacity = 64;
    data = realloc(buf->data, capacity + 1);
    if (data == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a buffer of %zu bytes", capacity);
    data[buf->size] = '\0';
    buf->data = data;
    buf->capacity = capacity;
    return STATUS_OK;
}

enum status buf_append(struct buf *buf, const void *bytes, size_t size, struct err *err)
{
    enum status st;

    if (size > buf->size_limit || buf->size > buf->size_limit - size)
        return err_set(err, STATUS_NO_MEMORY, "%zu more bytes than %zu pass the limit of %zu", size,
                       buf->size, buf->size_limit);
    st = buf_reserve(buf, buf->size + size, err);
    if (st != STATUS_OK)
        return st;
    if (size > 0)
        memcpy(buf->data + buf->size, bytes, size);
    buf->size += size;
    buf->data[buf->size] = '\0';
    return STATUS_OK;
}

enum status buf_printf(struct buf *buf, struct err *err, const char *format, ...)
{
    enum status st;
    va_list args;
    va_list again;
    int length;

    va_start(args, format);
    va_copy(again, args);
    length = vsnprintf(NULL, 0, format, args);
    va_end(args);
    assert(length >= 0);
    if ((size_t)length > buf->size_limit || buf->size > buf->size_limit - (size_t)length)
        st = err_set(err, STATUS_NO_MEMORY, "%d more bytes pass the limit of %zu", length,
                     buf->size_limit);
    else
        st = buf_reserve(buf, buf->size + (size_t)length, err);
    if (st == STATUS_OK) {
        (void)vsnprintf(buf->data + buf->size, (size_t)length + 1, format, again);
        buf->size += (size_t)length;
    }
    va_end(again);
    return st;
}
