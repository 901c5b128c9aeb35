/* tests/cann/copy.c - copies and fills (reference 1.2).
 *
 * What a copy is follows from its addresses, and `kind` must say the same, as older runtimes
 * believe it. A synchronous copy is not ordered with any stream: it happens at once, whatever is
 * queued. An asynchronous one between device memory and pinned host memory runs in the stream's
 * worker, and looks its addresses up again then: memory that is gone by then is a fault.
 * Asynchronous copies of pageable memory fail (CANN_STANDIN_PAGEABLE=wait: they return when they
 * are done, as hardware does, and are counted). */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

enum side { SIDE_PAGEABLE, SIDE_PINNED, SIDE_DEVICE };

struct place {
    enum side side;
    struct range range;  /* SIDE_DEVICE */
};

struct copy {
    struct task task;
    void *dst;
    const void *src;
    size_t dst_pitch, src_pitch, width, height;
    enum side dst_side, src_side;
    bool fills;
    uint8_t value;
};

static size_t extent(size_t pitch, size_t width, size_t height)
{
    return height == 0 ? 0 : pitch * (height - 1) + width;
}

/* What kind of memory [address, address + size) is; false when it is device memory that is not
 * there, or host memory that is pinned in part. */
static bool place_of(const void *address, size_t size, struct place *place)
{
    if (standin_range_find(address, size, &place->range)) {
        place->side = SIDE_DEVICE;
        return true;
    }
    if (standin_is_device_address(address))
        return false;
    if (standin_is_pinned(address, size))
        place->side = SIDE_PINNED;
    else if (standin_touches_pinned(address, size))
        return false;
    else
        place->side = SIDE_PAGEABLE;
    return true;
}

static int check_kind(const char *function, const struct place *dst, const struct place *src,
                      aclrtMemcpyKind kind)
{
    const bool to_device = dst->side == SIDE_DEVICE, from_device = src->side == SIDE_DEVICE;
    const aclrtMemcpyKind real =
        to_device ? from_device ? ACL_MEMCPY_DEVICE_TO_DEVICE : ACL_MEMCPY_HOST_TO_DEVICE
                  : from_device ? ACL_MEMCPY_DEVICE_TO_HOST : ACL_MEMCPY_HOST_TO_HOST;

    if (kind != real)
        return standin_error(E_PARAM, "%s: kind %d, the addresses are of kind %d", function,
                             (int)kind, (int)real);
    return 0;
}

/* Devices: imported memory takes only asynchronous copies between devices; two devices must be
 * each other's peers; a host copy is the current device's. */
static int check_devices(const char *function, const struct place *dst, const struct place *src,
                         int device_id, bool is_async)
{
    const bool to_device = dst->side == SIDE_DEVICE, from_device = src->side == SIDE_DEVICE;
    const int a = to_device ? dst->range.device_id : src->range.device_id;
    const int b = from_device ? src->range.device_id : a;
    const bool imported = (to_device && dst->range.kind == RANGE_IMPORT) ||
                          (from_device && src->range.kind == RANGE_IMPORT);

    if (!to_device && !from_device)
        return 0;
    if (imported && (!is_async || !to_device || !from_device))
        return standin_error(E_PARAM, "%s: imported memory takes only asynchronous copies between "
                             "devices", function);
    if (a != b && (!standin_peer_enabled(a, b) || !standin_peer_enabled(b, a)))
        return standin_error(E_DRIVER, "%s: devices %d and %d are not each other's peers",
                             function, a, b);
    if (a != device_id && b != device_id)
        return standin_error(E_PARAM, "%s: memory of device %d, the current one is %d", function,
                             a, device_id);
    return 0;
}

static void move_rows(const struct copy *c, uint8_t *dst, const uint8_t *src)
{
    for (size_t y = 0; y < c->height; y++) {
        if (c->fills)
            memset(dst + y * c->dst_pitch, c->value, c->width);
        else
            memmove(dst + y * c->dst_pitch, src + y * c->src_pitch, c->width);
    }
}

/* Where the bytes of one side are for this process, or NULL when they have gone. */
static uint8_t *reach(const void *address, size_t size, enum side side)
{
    if (side == SIDE_DEVICE)
        return standin_range_pin(address, size, -1);
    if (side == SIDE_PINNED && !standin_is_pinned(address, size))
        return NULL;
    return standin_mutable(address);
}

static void copy_run(struct task *task, struct stream *stream)
{
    const struct copy *c = (const struct copy *)task;
    const size_t dst_size = extent(c->dst_pitch, c->width, c->height);
    const size_t src_size = extent(c->src_pitch, c->width, c->height);
    uint8_t *dst = reach(c->dst, dst_size, c->dst_side);
    const uint8_t *src = c->fills ? dst : reach(c->src, src_size, c->src_side);

    if (dst == NULL || src == NULL) {
        standin_fault("a copy of %zu bytes finds its %s memory freed", c->width * c->height,
                      dst == NULL ? "target" : "source");
        standin_stream_poison(stream, E_DRIVER);
    } else {
        move_rows(c, dst, src);
    }
    if (dst != NULL && c->dst_side == SIDE_DEVICE)
        standin_range_unpin(c->dst);
    if (src != NULL && !c->fills && c->src_side == SIDE_DEVICE)
        standin_range_unpin(c->src);
}

static void copy_drop(struct task *task)
{
    free(task);
}

/* The checks that all share, and what the two sides are. */
static int check(const char *function, struct copy *c, size_t dst_max, aclrtMemcpyKind kind,
                 bool is_async, int device_id)
{
    struct place dst = { 0 }, src = { 0 };
    int code;

    if (c->dst == NULL || c->src == NULL || c->width == 0 || c->height == 0)
        return standin_error(E_PARAM, "%s: nothing to copy", function);
    if (extent(c->dst_pitch, c->width, c->height) > dst_max)
        return standin_error(E_PARAM, "%s: %zu bytes into %zu", function,
                             extent(c->dst_pitch, c->width, c->height), dst_max);
    if (c->dst_pitch < c->width || c->src_pitch < c->width)
        return standin_error(E_PARAM, "%s: rows of %zu bytes overlap", function, c->width);
    if (!place_of(c->dst, extent(c->dst_pitch, c->width, c->height), &dst) ||
        !place_of(c->src, extent(c->src_pitch, c->width, c->height), &src)) {
        return standin_error(E_PARAM, "%s: %zu bytes from %p to %p leave the memory that they "
                             "begin in", function, c->width * c->height, c->src, c->dst);
    }
    code = check_kind(function, &dst, &src, kind);
    if (code == 0)
        code = check_devices(function, &dst, &src, device_id, is_async);
    c->dst_side = dst.side;
    c->src_side = src.side;
    return code;
}

static int copy_now(const char *function, struct copy *c, size_t dst_max, aclrtMemcpyKind kind)
{
    const struct context *context = standin_context(function);
    uint8_t *dst;
    const uint8_t *src;
    int code;

    if (context == NULL)
        return E_CONTEXT_NULL;
    code = check(function, c, dst_max, kind, false, context->device_id);
    if (code != 0)
        return code;
    standin_count("sync_copies", 1);
    dst = reach(c->dst, extent(c->dst_pitch, c->width, c->height), c->dst_side);
    src = reach(c->src, extent(c->src_pitch, c->width, c->height), c->src_side);
    if (dst != NULL && src != NULL)
        move_rows(c, dst, src);
    if (dst != NULL && c->dst_side == SIDE_DEVICE)
        standin_range_unpin(c->dst);
    if (src != NULL && c->src_side == SIDE_DEVICE)
        standin_range_unpin(c->src);
    return dst != NULL && src != NULL ? 0 : standin_error(E_PARAM, "%s: memory is gone", function);
}

static int copy_later(const char *function, const struct copy *model, size_t dst_max,
                      aclrtMemcpyKind kind, aclrtStream handle)
{
    struct stream *stream;
    struct copy *c;
    bool pageable;
    int code;

    stream = standin_stream(handle, function, &code);
    if (stream == NULL)
        return code;
    if (kind == ACL_MEMCPY_HOST_TO_HOST)
        return standin_error(E_NOT_SUPPORT, "%s: from host to host", function);
    c = malloc(sizeof(*c));
    if (c == NULL)
        return standin_error(E_MEMORY, "%s: no memory", function);
    *c = *model;
    code = check(function, c, dst_max, kind, true, standin_stream_device(stream));
    pageable = c->dst_side == SIDE_PAGEABLE || c->src_side == SIDE_PAGEABLE;
    if (code == 0 && pageable) {
        standin_count("pageable_copies", 1);
        if (standin_settings.pageable_fails)
            code = standin_error(E_PARAM, "%s: asynchronous, and the host memory is not pinned",
                                 function);
    }
    if (code != 0) {
        free(c);
        return code;
    }
    standin_count("async_copies", 1);
    c->task.run = copy_run;
    c->task.drop = copy_drop;
    standin_stream_push(stream, &c->task);
    return pageable ? standin_stream_drain(stream, -1) : 0;
}

aclError aclrtMemcpy(void *dst, size_t dst_max, const void *src, size_t count,
                     aclrtMemcpyKind kind)
{
    struct copy c = { .dst = dst, .src = src, .dst_pitch = count, .src_pitch = count,
                      .width = count, .height = 1 };

    ENTER(aclrtMemcpy);
    return copy_now("aclrtMemcpy", &c, dst_max, kind);
}

aclError aclrtMemcpyAsync(void *dst, size_t dst_max, const void *src, size_t count,
                          aclrtMemcpyKind kind, aclrtStream stream)
{
    const struct copy c = { .dst = dst, .src = src, .dst_pitch = count, .src_pitch = count,
                            .width = count, .height = 1 };

    ENTER(aclrtMemcpyAsync);
    return copy_later("aclrtMemcpyAsync", &c, dst_max, kind, stream);
}

aclError aclrtMemcpy2d(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width,
                       size_t height, aclrtMemcpyKind kind)
{
    struct copy c = { .dst = dst, .src = src, .dst_pitch = dpitch, .src_pitch = spitch,
                      .width = width, .height = height };

    ENTER(aclrtMemcpy2d);
    return copy_now("aclrtMemcpy2d", &c, SIZE_MAX, kind);
}

aclError aclrtMemcpy2dAsync(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width,
                            size_t height, aclrtMemcpyKind kind, aclrtStream stream)
{
    const struct copy c = { .dst = dst, .src = src, .dst_pitch = dpitch, .src_pitch = spitch,
                            .width = width, .height = height };

    ENTER(aclrtMemcpy2dAsync);
    return copy_later("aclrtMemcpy2dAsync", &c, SIZE_MAX, kind, stream);
}

/* Fills work on device memory and on pinned host memory. */
static int check_fill(const char *function, const void *memory, size_t max_count, size_t count,
                      int device_id, enum side *side_out)
{
    struct place place;

    if (memory == NULL || count == 0 || count > max_count)
        return standin_error(E_PARAM, "%s: %zu bytes of %zu", function, count, max_count);
    if (!place_of(memory, count, &place) || place.side == SIDE_PAGEABLE ||
        (place.side == SIDE_DEVICE &&
         (place.range.kind == RANGE_IMPORT || place.range.device_id != device_id)))
        return standin_error(E_PARAM, "%s: %zu bytes at %p are not this device's", function, count,
                             memory);
    *side_out = place.side;
    return 0;
}

aclError aclrtMemset(void *memory, size_t max_count, int32_t value, size_t count)
{
    const struct context *context;
    enum side side = SIDE_PAGEABLE;
    uint8_t *bytes;
    int code;

    ENTER(aclrtMemset);
    context = standin_context("aclrtMemset");
    if (context == NULL)
        return E_CONTEXT_NULL;
    code = check_fill("aclrtMemset", memory, max_count, count, context->device_id, &side);
    if (code != 0)
        return code;
    bytes = reach(memory, count, side);
    if (bytes == NULL)
        return standin_error(E_PARAM, "aclrtMemset: memory is gone");
    memset(bytes, value, count);
    if (side == SIDE_DEVICE)
        standin_range_unpin(memory);
    return 0;
}

aclError aclrtMemsetAsync(void *memory, size_t max_count, int32_t value, size_t count,
                          aclrtStream handle)
{
    struct stream *stream;
    struct copy *c;
    enum side side = SIDE_PAGEABLE;
    int code;

    ENTER(aclrtMemsetAsync);
    stream = standin_stream(handle, "aclrtMemsetAsync", &code);
    if (stream == NULL)
        return code;
    code = check_fill("aclrtMemsetAsync", memory, max_count, count,
                      standin_stream_device(stream), &side);
    if (code != 0)
        return code;
    c = calloc(1, sizeof(*c));
    if (c == NULL)
        return standin_error(E_MEMORY, "aclrtMemsetAsync: no memory");
    c->task.run = copy_run;
    c->task.drop = copy_drop;
    c->dst = memory;
    c->dst_side = side;
    c->dst_pitch = c->width = count;
    c->height = 1;
    c->fills = true;
    c->value = (uint8_t)value;
    standin_stream_push(stream, &c->task);
    return 0;
}
