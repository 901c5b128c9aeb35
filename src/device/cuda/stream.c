/* device/cuda/stream.c - streams and what is queued on them: copies, fills, operators.
 *
 * A stream is one of CUDA's. Operators may wait here until something else is queued (graph.c). Its
 * first error stays: what is queued later is refused with it, while records and waits go on
 * (event.c), so that nobody hangs. A copy from host memory that is not pinned has read it when the
 * call returns, and one to such memory is complete then. */
#include <stdio.h>
#include <stdlib.h>

#include "device/cuda/internal.h"
#include "device/operands.h"

static struct cuda_device *device_of(const struct cuda_stream *stream)
{
    return (struct cuda_device *)stream->base.device;
}

static enum status broken(const struct cuda_stream *stream, struct err *err)
{
    if (err != NULL && stream->error.status != STATUS_OK)
        *err = stream->error;
    return stream->error.status;
}

enum status cuda__stream_break(struct cuda_stream *stream, int code, const char *what,
                               struct err *err)
{
    const struct cuda_device *device = device_of(stream);

    if (stream->error.status == STATUS_OK) {
        (void)cuda__fail(device->module, device->base.info.name, code, &stream->error, "%s", what);
        stream->error.status = STATUS_DEVICE;
    }
    return broken(stream, err);
}

static enum status enter(const struct cuda_stream *stream, struct err *err)
{
    const enum status st = broken(stream, err);

    return st == STATUS_OK ? cuda__enter(device_of(stream), err) : st;
}

/* For what is queued behind operators. */
static enum status enter_behind(struct cuda_stream *stream, struct err *err)
{
    const enum status st = enter(stream, err);

    return st == STATUS_OK ? cuda__graphs_flush(stream, err) : st;
}

enum status cuda__stream_create(struct device *base, enum stream_kind kind,
                                struct stream **stream_out, struct err *err)
{
    const struct cuda_device *device = (const struct cuda_device *)base;
    struct cuda_stream *stream = calloc(1, sizeof(*stream));
    enum status st;
    int code;

    if (stream == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for a stream", base->info.name);
    stream->base.device = base;
    st = cuda__enter(device, err);
    if (st == STATUS_OK) {
        code = device->module->stream_create(&stream->handle);
        if (code != 0)
            st = cuda__fail(device->module, base->info.name, code, err,
                            "cudaStreamCreateWithFlags");
    }
    if (st != STATUS_OK) {
        free(stream);
        return st;
    }
    /* The copy engines have queues of their own. */
    if (kind == STREAM_COMPUTE && device->has_graphs)
        st = cuda__graphs_create(device, &stream->graphs, err);
    if (st != STATUS_OK) {
        cuda__stream_destroy(&stream->base);
        return st;
    }
    *stream_out = &stream->base;
    return STATUS_OK;
}

void cuda__stream_destroy(struct stream *base)
{
    struct cuda_stream *stream = (struct cuda_stream *)base;
    const struct cuda_module *module = device_of(stream)->module;

    if (enter(stream, NULL) == STATUS_OK)
        (void)cuda__graphs_flush(stream, NULL);
    (void)cuda__enter(device_of(stream), NULL);
    (void)module->stream_sync(stream->handle);
    cuda__graphs_destroy(device_of(stream), stream->graphs);
    device_free(base->device, DEVICE_USE_SCRATCH, stream->room.memory, stream->room.size_bytes);
    (void)module->stream_destroy(stream->handle);
    free(stream);
}

enum status cuda__stream_sync(struct stream *base, struct err *err)
{
    struct cuda_stream *stream = (struct cuda_stream *)base;
    const enum status st = cuda__enter(device_of(stream), err);
    int code;

    if (st != STATUS_OK)
        return st;
    if (broken(stream, NULL) == STATUS_OK)
        (void)cuda__graphs_flush(stream, NULL);
    code = device_of(stream)->module->stream_sync(stream->handle);
    return code == 0 ? broken(stream, err)
                     : cuda__stream_break(stream, code, "cudaStreamSynchronize", err);
}

static enum status copy(struct stream *base, enum cuda_copy kind, void *dst, const void *src,
                        uint64_t size_bytes, struct err *err)
{
    static const char *const names[] = {
        [CUDA_COPY_IN] = "cudaMemcpyAsync from the host",
        [CUDA_COPY_OUT] = "cudaMemcpyAsync to the host",
        [CUDA_COPY_PEER] = "cudaMemcpyAsync between devices",
    };
    struct cuda_stream *stream = (struct cuda_stream *)base;
    const enum status st = enter_behind(stream, err);
    int code;

    if (st != STATUS_OK)
        return st;
    code = device_of(stream)->module->copy(stream->handle, kind, dst, src, size_bytes);
    return code == 0 ? STATUS_OK : cuda__stream_break(stream, code, names[kind], err);
}

enum status cuda__copy_in(struct stream *stream, void *dst, const void *src, uint64_t size_bytes,
                          struct err *err)
{
    return copy(stream, CUDA_COPY_IN, dst, src, size_bytes, err);
}

enum status cuda__copy_out(struct stream *stream, void *dst, const void *src, uint64_t size_bytes,
                           struct err *err)
{
    return copy(stream, CUDA_COPY_OUT, dst, src, size_bytes, err);
}

enum status cuda__copy_peer(struct stream *stream, void *dst, const void *src, uint64_t size_bytes,
                            struct err *err)
{
    return copy(stream, CUDA_COPY_PEER, dst, src, size_bytes, err);
}

static enum status break_batch(struct cuda_stream *stream, int code, size_t count, size_t failed,
                               struct err *err)
{
    char what[128], which[64] = "";

    if (failed < count)
        (void)snprintf(which, sizeof(which), ", because of the one numbered %zu,", failed);
    (void)snprintf(what, sizeof(what), "cuMemcpyBatchAsync of %zu copies%s", count, which);
    return cuda__stream_break(stream, code, what, err);
}

/* A driver that has the function but not for this GPU or this memory says so at once; then copies
 * are queued one by one from now on. Those that it may have queued bring the same bytes again. */
static enum status copy_some(struct cuda_stream *stream, const struct device_copy *copies,
                             size_t count, struct err *err)
{
    struct cuda_device *device = device_of(stream);
    const struct cuda_module *module = device->module;
    struct cuda_batch batch = { .count = count };
    size_t failed = SIZE_MAX;
    int code;

    for (size_t i = 0; i < count; i++) {
        batch.dst[i] = copies[i].dst;
        batch.src[i] = copies[i].src;
        batch.size_bytes[i] = (size_t)copies[i].size_bytes;
    }
    code = module->copy_batch(device->facts.copy_batch, stream->handle, &batch, &failed);
    if (code == 0)
        return STATUS_OK;
    if (module->status_of(code) != STATUS_UNAVAILABLE)
        return break_batch(stream, code, count, failed, err);
    device->facts.copy_batch = NULL;
    return device__copy_each(&stream->base, copies, count, err);
}

enum status cuda__copy_peers(struct stream *base, const struct device_copy *copies, size_t count,
                             struct err *err)
{
    struct cuda_stream *stream = (struct cuda_stream *)base;
    enum status st = enter_behind(stream, err);

    while (count > 0 && st == STATUS_OK) {
        const bool is_batch = count > 1 && device_of(stream)->facts.copy_batch != NULL;
        const size_t some = !is_batch ? 1 : count < CUDA_BATCH_MAX ? count : CUDA_BATCH_MAX;

        st = is_batch ? copy_some(stream, copies, some, err)
                      : device__copy_each(base, copies, some, err);
        copies += some;
        count -= some;
    }
    return st;
}

enum status cuda__fill(struct stream *base, void *dst, uint8_t value, uint64_t size_bytes,
                       struct err *err)
{
    struct cuda_stream *stream = (struct cuda_stream *)base;
    const enum status st = enter_behind(stream, err);
    int code;

    if (st != STATUS_OK)
        return st;
    code = device_of(stream)->module->fill(stream->handle, dst, value, size_bytes);
    return code == 0 ? STATUS_OK : cuda__stream_break(stream, code, "cudaMemsetAsync", err);
}

/* Whether there are kernels for the weights that it reads. */
static enum status check_weights(const struct device *device, const struct op *op, struct err *err)
{
    enum status st = STATUS_OK;
    enum dtype dtype;

    if (device__op_weight_dtype(op, &dtype))
        st = device->ops->weights_check(device, dtype, err);
    if (st == STATUS_OK && op->kind == OP_MOE)
        st = device->ops->weights_check(device, op->moe.down_dtype, err);
    return st;
}

/* Attention cuts long rows in parts, which meet in the stream's room (attention_parts.h). */
static enum status need_room(struct cuda_stream *stream, const struct op *op, struct err *err)
{
    struct device *device = stream->base.device;
    struct cuda_room *room = &stream->room;
    enum status st;

    if (op->kind != OP_ATTENTION || room->memory != NULL)
        return STATUS_OK;
    st = device_alloc(device, DEVICE_USE_SCRATCH, device->info.workspace_bytes, &room->memory, err);
    if (st == STATUS_OK)
        room->size_bytes = device->info.workspace_bytes;
    return st;
}

enum status cuda__launch(struct stream *base, const struct op *op, struct err *err)
{
    struct cuda_stream *stream = (struct cuda_stream *)base;
    enum status st = enter(stream, err);
    int code;

    if (st == STATUS_OK)
        st = check_weights(base->device, op, err);
    if (st == STATUS_OK)
        st = need_room(stream, op, err);
    if (st != STATUS_OK)
        return st;
    (void)atomic_fetch_add_explicit(&device_of(stream)->op_count, 1, memory_order_relaxed);
    if (cuda__graphs_keep(stream, op))
        return cuda__graphs_are_full(stream) ? cuda__graphs_flush(stream, err) : STATUS_OK;
    st = cuda__graphs_flush(stream, err);
    if (st != STATUS_OK)
        return st;
    code = device_of(stream)->module->launch(stream->handle, op, &stream->room);
    return code == 0 ? STATUS_OK : cuda__stream_break(stream, code, op_kind_name(op->kind), err);
}
