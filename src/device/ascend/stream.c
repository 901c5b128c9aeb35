/* device/ascend/stream.c - streams and what is queued on them: copies, fills, operators.
 *
 * A stream is one of CANN's. Its first error stays: what is queued later is refused with it, while
 * records and waits go on (event.c), so that nobody hangs.
 *
 * aclrtMemcpyAsync from or to host memory that is not pinned returns only when the copy is done, if
 * it works at all. So copies are made of pinned pieces, and what is not pinned goes through a small
 * pinned buffer, half of it being filled while the other half is copied:
 *
 *     copy_in:   wait until the half is free - memcpy - aclrtMemcpyAsync - record
 *     copy_out:  aclrtMemcpyAsync - wait for the stream - memcpy
 *
 * The former reads the caller's memory, and the latter is complete, when the call returns. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "device/ascend/internal.h"
#include "device/memory.h"

#define STAGING_BYTES (4 * MIB) /* of each half */
#define STAGING_HALVES 2

struct ascend_staging {
    void *memory;                            /* STAGING_HALVES of STAGING_BYTES */
    struct event *copied[STAGING_HALVES];
    uint32_t next;
};

/* ---- errors ---- */

static enum status broken(const struct ascend_stream *stream, struct err *err)
{
    if (err != NULL && stream->error.status != STATUS_OK)
        *err = stream->error;
    return stream->error.status;
}

/* Keeps what CANN says to `what`, unless there was an error before. */
static enum status break_stream(struct ascend_stream *stream, int code, const char *what,
                                struct err *err)
{
    const struct ascend_device *device = ascend__device_of(stream);

    if (stream->error.status == STATUS_OK) {
        (void)ascend__fail(device->cann, device->base.info.name, code, &stream->error, "%s",
                           what);
        stream->error.status = STATUS_DEVICE;
    }
    return broken(stream, err);
}

static enum status enter(struct ascend_stream *stream, struct err *err)
{
    const enum status st = broken(stream, err);

    return st == STATUS_OK ? ascend__enter(ascend__device_of(stream), err) : st;
}

/* ---- blocks of device memory that a stream keeps ---- */

static void block_free(struct ascend_stream *stream, struct ascend_block *block)
{
    device_free(stream->base.device, DEVICE_USE_SCRATCH, block->memory, block->size_bytes);
    *block = (struct ascend_block){ 0 };
}

/* Grows the block; what runs on the stream may still use it, so it must end first. */
static enum status block_need(struct ascend_stream *stream, struct ascend_block *block,
                              uint64_t size_bytes, struct err *err)
{
    const uint64_t wanted_bytes = size_align_up(size_bytes, 64 * KIB);
    enum status st = STATUS_OK;

    if (size_bytes <= block->size_bytes)
        return STATUS_OK;
    if (block->memory != NULL) {
        st = ascend__stream_sync(&stream->base, err);
        if (st != STATUS_OK)
            return st;
        block_free(stream, block);
    }
    st = device_alloc(stream->base.device, DEVICE_USE_SCRATCH, wanted_bytes, &block->memory, err);
    if (st == STATUS_OK)
        block->size_bytes = wanted_bytes;
    return st;
}

enum status ascend__scratch(struct ascend_stream *stream, uint64_t size_bytes, void **memory_out,
                            struct err *err)
{
    const enum status st = block_need(stream, &stream->scratch, size_bytes, err);

    if (st == STATUS_OK)
        *memory_out = stream->scratch.memory;
    return st;
}

enum status ascend__workspace(struct ascend_stream *stream, uint64_t size_bytes, void **memory_out,
                              struct err *err)
{
    const enum status st = size_bytes > 0 ? block_need(stream, &stream->workspace, size_bytes, err)
                                          : STATUS_OK;

    if (st == STATUS_OK)
        *memory_out = size_bytes > 0 ? stream->workspace.memory : NULL;
    return st;
}

enum status ascend__execute(struct ascend_stream *stream, const char *name, ascend_phase2 phase2,
                            void *workspace, uint64_t workspace_bytes, aclOpExecutor *executor,
                            struct err *err)
{
    const int code = phase2(workspace, workspace_bytes, executor, stream->handle);

    return code == ACL_SUCCESS ? STATUS_OK : break_stream(stream, code, name, err);
}

/* ---- streams ---- */

enum status ascend__stream_create(struct device *base, enum stream_kind kind,
                                  struct stream **stream_out, struct err *err)
{
    struct ascend_device *device = (struct ascend_device *)base;
    struct ascend_stream *stream = calloc(1, sizeof(*stream));
    enum status st;
    int code;

    (void)kind; /* both kinds launch fast */
    if (stream == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for a stream", base->info.name);
    stream->base.device = base;
    st = ascend__enter(device, err);
    if (st == STATUS_OK) {
        code = device->cann->aclrtCreateStreamWithConfig(
            &stream->handle, 0, ACL_STREAM_FAST_LAUNCH | ACL_STREAM_FAST_SYNC);
        if (code != ACL_SUCCESS)
            st = ascend__fail(device->cann, base->info.name, code, err,
                              "aclrtCreateStreamWithConfig");
    }
    if (st != STATUS_OK) {
        free(stream);
        return st;
    }
    *stream_out = &stream->base;
    return STATUS_OK;
}

static void staging_destroy(struct ascend_stream *stream)
{
    struct ascend_staging *staging = stream->staging;

    if (staging == NULL)
        return;
    for (uint32_t i = 0; i < STAGING_HALVES; i++)
        if (staging->copied[i] != NULL)
            device__event_destroy(staging->copied[i]);
    if (staging->memory != NULL)
        ascend__host_free(stream->base.device, staging->memory, STAGING_HALVES * STAGING_BYTES);
    free(staging);
    stream->staging = NULL;
}

void ascend__stream_destroy(struct stream *base)
{
    struct ascend_stream *stream = (struct ascend_stream *)base;
    const struct ascend_cann *cann = ascend__device_of(stream)->cann;

    (void)ascend__enter(ascend__device_of(stream), NULL);
    (void)cann->aclrtSynchronizeStream(stream->handle);
    block_free(stream, &stream->scratch);
    block_free(stream, &stream->workspace);
    staging_destroy(stream);
    (void)cann->aclrtDestroyStream(stream->handle);
    free(stream);
}

enum status ascend__stream_sync(struct stream *base, struct err *err)
{
    struct ascend_stream *stream = (struct ascend_stream *)base;
    const struct ascend_device *device = ascend__device_of(stream);
    const enum status st = ascend__enter(device, err);
    int code;

    if (st != STATUS_OK)
        return st;
    code = device->cann->aclrtSynchronizeStream(stream->handle);
    if (code != ACL_SUCCESS)
        return break_stream(stream, code, "aclrtSynchronizeStream", err);
    return broken(stream, err);
}

/* ---- copies ---- */

static enum status queue_copy(struct ascend_stream *stream, void *dst, const void *src,
                              uint64_t size_bytes, aclrtMemcpyKind kind, struct err *err)
{
    static const char *const names[] = {
        [ACL_MEMCPY_HOST_TO_DEVICE] = "aclrtMemcpyAsync from the host",
        [ACL_MEMCPY_DEVICE_TO_HOST] = "aclrtMemcpyAsync to the host",
        [ACL_MEMCPY_DEVICE_TO_DEVICE] = "aclrtMemcpyAsync between devices",
    };
    const int code = ascend__device_of(stream)->cann->aclrtMemcpyAsync(
        dst, size_bytes, src, size_bytes, kind, stream->handle);

    return code == ACL_SUCCESS ? STATUS_OK : break_stream(stream, code, names[kind], err);
}

/* Rank-sized models never come here: everything they copy often is pinned. */
static enum status staging_need(struct ascend_stream *stream, struct err *err)
{
    struct device *device = stream->base.device;
    enum status st;

    if (stream->staging != NULL)
        return STATUS_OK;
    stream->staging = calloc(1, sizeof(*stream->staging));
    if (stream->staging == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for staged copies",
                       device->info.name);
    st = ascend__host_alloc(device, STAGING_HALVES * STAGING_BYTES, &stream->staging->memory, err);
    for (uint32_t i = 0; st == STATUS_OK && i < STAGING_HALVES; i++)
        st = ascend__event_create(device, &stream->staging->copied[i], err);
    if (st != STATUS_OK)
        staging_destroy(stream);
    return st;
}

static enum status stage_in(struct ascend_stream *stream, void *dst, const void *src,
                            uint64_t size_bytes, struct err *err)
{
    struct ascend_staging *staging = stream->staging;
    const uint32_t half = staging->next++ % STAGING_HALVES;
    char *pinned = (char *)staging->memory + half * STAGING_BYTES;
    enum status st = device__event_sync(staging->copied[half], err);

    if (st != STATUS_OK)
        return st;
    memcpy(pinned, src, size_bytes);
    st = queue_copy(stream, dst, pinned, size_bytes, ACL_MEMCPY_HOST_TO_DEVICE, err);
    return st == STATUS_OK ? ascend__event_record(&stream->base, staging->copied[half], err) : st;
}

static enum status stage_out(struct ascend_stream *stream, void *dst, const void *src,
                             uint64_t size_bytes, struct err *err)
{
    struct ascend_staging *staging = stream->staging;
    const uint32_t half = staging->next++ % STAGING_HALVES;
    char *pinned = (char *)staging->memory + half * STAGING_BYTES;
    enum status st = device__event_sync(staging->copied[half], err);

    if (st == STATUS_OK)
        st = queue_copy(stream, pinned, src, size_bytes, ACL_MEMCPY_DEVICE_TO_HOST, err);
    if (st == STATUS_OK)
        st = ascend__stream_sync(&stream->base, err);
    if (st == STATUS_OK)
        memcpy(dst, pinned, size_bytes);
    return st;
}

static enum status copy(struct stream *base, void *dst, const void *src, uint64_t size_bytes,
                        aclrtMemcpyKind kind, struct err *err)
{
    struct ascend_stream *stream = (struct ascend_stream *)base;
    const struct ascend_device *device = ascend__device_of(stream);
    const bool in = kind == ACL_MEMCPY_HOST_TO_DEVICE;
    enum status st = enter(stream, err);

    for (uint64_t done = 0, now; st == STATUS_OK && done < size_bytes; done += now) {
        char *to = (char *)dst + done;
        const char *from = (const char *)src + done;

        now = ascend__pinned_bytes(device, in ? from : to, size_bytes - done);
        if (now > 0) {
            st = queue_copy(stream, to, from, now, kind, err);
            continue;
        }
        now = size_bytes - done < STAGING_BYTES ? size_bytes - done : STAGING_BYTES;
        st = staging_need(stream, err);
        if (st == STATUS_OK)
            st = in ? stage_in(stream, to, from, now, err) : stage_out(stream, to, from, now, err);
    }
    return st;
}

enum status ascend__copy_in(struct stream *stream, void *dst, const void *src,
                            uint64_t size_bytes, struct err *err)
{
    return copy(stream, dst, src, size_bytes, ACL_MEMCPY_HOST_TO_DEVICE, err);
}

enum status ascend__copy_out(struct stream *stream, void *dst, const void *src,
                             uint64_t size_bytes, struct err *err)
{
    return copy(stream, dst, src, size_bytes, ACL_MEMCPY_DEVICE_TO_HOST, err);
}

enum status ascend__copy_peer(struct stream *base, void *dst, const void *src,
                              uint64_t size_bytes, struct err *err)
{
    struct ascend_stream *stream = (struct ascend_stream *)base;
    const struct ascend_device *device = ascend__device_of(stream);
    const enum status st = enter(stream, err);

    if (st != STATUS_OK)
        return st;
    if (!ascend__device_holds(device, src, size_bytes) &&
        !ascend__peer_holds(device, src, size_bytes)) {
        (void)err_set(&stream->error, STATUS_DEVICE, "%s: copy_peer: src at %p, %llu bytes, is "
                      "neither in a peer's memory nor in the device's", device->base.info.name,
                      src, (unsigned long long)size_bytes);
        return broken(stream, err);
    }
    return queue_copy(stream, dst, src, size_bytes, ACL_MEMCPY_DEVICE_TO_DEVICE, err);
}

enum status ascend__fill(struct stream *base, void *dst, uint8_t value, uint64_t size_bytes,
                         struct err *err)
{
    struct ascend_stream *stream = (struct ascend_stream *)base;
    const enum status st = enter(stream, err);
    int code;

    if (st != STATUS_OK)
        return st;
    code = ascend__device_of(stream)->cann->aclrtMemsetAsync(dst, size_bytes, value, size_bytes,
                                                             stream->handle);
    return code == ACL_SUCCESS ? STATUS_OK : break_stream(stream, code, "aclrtMemsetAsync", err);
}

enum status ascend__stream_launch(struct stream *base, const struct op *op, struct err *err)
{
    struct ascend_stream *stream = (struct ascend_stream *)base;
    enum status st = enter(stream, err);

    if (st == STATUS_OK)
        st = ascend__launch(base, op, err);
    if (st == STATUS_DEVICE && stream->error.status == STATUS_OK && err != NULL)
        stream->error = *err; /* a part of it may be queued */
    return st;
}
