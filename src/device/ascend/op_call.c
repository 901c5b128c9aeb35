/* device/ascend/op_call.c - see op_call.h. */
#include "device/ascend/op_call.h"

#include <assert.h>
#include <stdlib.h>

#include "base/size.h"

#define PIECE_ALIGNMENT 64
#define PIECE_SLACK 32 /* kernels read past the end (runtime's guide to memory pools) */

struct ascend_call ascend__call_begin(struct ascend_stream *stream, struct err *err)
{
    return (struct ascend_call){ .stream = stream, .cann = ascend__device_of(stream)->cann,
                                 .err = err, .status = STATUS_OK };
}

static void fail_memory(struct ascend_call *call)
{
    if (call->status == STATUS_OK)
        call->status = err_set(call->err, STATUS_NO_MEMORY, "%s: no memory to describe a tensor",
                               call->stream->base.device->info.name);
}

static struct ascend_executors *executors_of(const struct ascend_call *call)
{
    return ascend__device_of(call->stream)->ops->executors;
}

static aclTensor *tensor_of(struct ascend_call *call, const struct ascend_view *view)
{
    int64_t storage[4] = { 1 }, strides[2] = { 0, 1 };
    uint64_t storage_count = 1;
    aclTensor *tensor;

    if (view->is_nz) {
        assert(view->rank == 2 && view->dims[0] % 16 == 0 && view->dims[1] % 16 == 0);
        strides[0] = view->dims[1];
        storage[0] = view->dims[1] / 16;
        storage[1] = view->dims[0] / 16;
        storage[2] = storage[3] = 16;
        storage_count = 4;
    } else {
        for (uint32_t i = 0; i < view->rank; i++)
            storage[0] += (view->dims[i] - 1) * view->strides[i];
    }
    tensor = call->cann->aclCreateTensor(view->dims, view->rank, view->dtype,
                                         view->is_nz ? strides : view->strides, 0,
                                         view->is_nz ? ACL_FORMAT_FRACTAL_NZ : ACL_FORMAT_ND,
                                         storage, storage_count, view->data);
    if (tensor == NULL)
        fail_memory(call);
    return tensor;
}

/* Uses what was made before, if CANN goes along with it. */
static bool take_kept(struct ascend_call *call)
{
    struct ascend_made *kept = ascend__executors_find(executors_of(call), &call->now);

    call->is_once = kept != NULL && kept->executor == NULL;
    if (kept == NULL || call->is_once)
        return false;
    if (!ascend__executors_aim(call->cann, kept, &call->now)) {
        ascend__made_free(call->cann, kept);
        return false;
    }
    call->now = *kept;
    call->is_kept = true;
    return true;
}

bool ascend__call_open(struct ascend_call *call, const char *name, double number,
                       const struct ascend_view *const *views)
{
    if (call->status != STATUS_OK)
        return false;
    call->now = (struct ascend_made){ .name = name, .number = number };
    call->is_kept = false;
    for (; views[call->now.view_count] != NULL; call->now.view_count++) {
        assert(call->now.view_count < ASCEND_CALL_TENSORS_MAX);
        call->now.views[call->now.view_count] = *views[call->now.view_count];
    }
    if (take_kept(call))
        return false;
    for (uint32_t i = 0; i < call->now.view_count && call->status == STATUS_OK; i++)
        call->now.tensors[i] = tensor_of(call, &call->now.views[i]);
    if (call->status != STATUS_OK)
        ascend__made_free(call->cann, &call->now);
    return call->status == STATUS_OK;
}

aclScalar *ascend__number(struct ascend_call *call)
{
    float value = (float)call->now.number;

    assert(call->now.scalar == NULL);
    call->now.scalar = call->cann->aclCreateScalar(&value, ACL_FLOAT); /* copies it */
    if (call->now.scalar == NULL)
        fail_memory(call);
    /* cppcheck-suppress returnDanglingLifetime */
    return call->now.scalar;
}

void ascend__call_made(struct ascend_call *call, aclnnStatus phase1)
{
    const struct device *device = call->stream->base.device;

    if (phase1 != ACL_SUCCESS) {
        call->now.executor = NULL;
        if (call->status == STATUS_OK)
            call->status = ascend__fail(call->cann, device->info.name, phase1, call->err,
                                        "%sGetWorkspaceSize", call->now.name);
    }
    if (call->status != STATUS_OK) {
        ascend__made_free(call->cann, &call->now);
        return;
    }
    call->is_kept = !call->is_once &&
                    ascend__executors_keep(call->cann, executors_of(call), &call->now);
}

void ascend__call_run(struct ascend_call *call, ascend_phase2 phase2)
{
    void *workspace = NULL;

    if (call->status != STATUS_OK)
        return;
    call->status = ascend__workspace(call->stream, call->now.workspace_bytes, &workspace,
                                     call->err);
    if (call->status == STATUS_OK) {
        call->status = ascend__execute(call->stream, call->now.name, phase2, workspace,
                                       call->now.workspace_bytes, call->now.executor, call->err);
        call->now.executor = NULL; /* it is consumed, or kept */
    }
    if (!call->is_kept)
        ascend__made_free(call->cann, &call->now);
}

bool ascend__is_packed(const struct ascend_view *view)
{
    int64_t step = 1;

    for (uint32_t i = view->rank; i-- > 0;) {
        if (view->dims[i] != 1 && view->strides[i] != step)
            return false;
        step *= view->dims[i];
    }
    return true;
}

void ascend__copy(struct ascend_call *call, const struct ascend_view *dst,
                  const struct ascend_view *src)
{
    ASCEND_CALL(call, InplaceCopy, 0, ASCEND_VIEWS(dst, src), t[0], t[1]);
}

void ascend__add_to(struct ascend_call *call, const struct ascend_view *sum,
                    const struct ascend_view *added)
{
    const struct ascend_ops *ops = ascend__device_of(call->stream)->ops;

    ASCEND_CALL(call, InplaceAdd, 0, ASCEND_VIEWS(sum, added), t[0], t[1], ops->one);
}

void ascend__product(struct ascend_call *call, const struct ascend_view *x,
                     const struct ascend_view *weight, const struct ascend_view *out)
{
    const struct ascend_ops *ops = ascend__device_of(call->stream)->ops;
    const int8_t math = ascend__cube_math(ops, weight->dtype);

    assert(ascend__is_packed(out));
    if (weight->is_nz)
        ASCEND_CALL(call, MatmulWeightNz, 0, ASCEND_VIEWS(x, weight, out), t[0], t[1], t[2],
                    math);
    else
        ASCEND_CALL(call, Mm, 0, ASCEND_VIEWS(x, weight, out), t[0], t[1], t[2], math);
}

void ascend__select(struct ascend_call *call, const struct ascend_view *table,
                    const struct ascend_view *index, const struct ascend_view *out)
{
    ASCEND_CALL(call, IndexSelect, 0, ASCEND_VIEWS(table, index, out), t[0], 0, t[1], t[2]);
}

void *ascend__cut(struct ascend_cutter *cutter, uint64_t size_bytes)
{
    char *piece = cutter->base == NULL ? NULL : cutter->base + cutter->used_bytes;

    cutter->used_bytes += size_align_up(size_align_up(size_bytes, 32) + PIECE_SLACK,
                                        PIECE_ALIGNMENT);
    return piece;
}

enum status ascend__host_memory(struct ascend_ops *ops, uint64_t size_bytes, void **memory_out,
                                struct err *err)
{
    void *memory;

    if (size_bytes > ops->memory_bytes) {
        memory = realloc(ops->memory, size_bytes);
        if (memory == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for %llu bytes of an NPU's results",
                           (unsigned long long)size_bytes);
        ops->memory = memory;
        ops->memory_bytes = size_bytes;
    }
    *memory_out = ops->memory;
    return STATUS_OK;
}

aclDataType ascend__dtype(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? ACL_BF16 : dtype == DTYPE_F16 ? ACL_FLOAT16 : ACL_FLOAT;
}

int8_t ascend__cube_math(const struct ascend_ops *ops, aclDataType dtype)
{
    return ops->is_310p && dtype == ACL_FLOAT ? CANN_ALLOW_FP32_DOWN_PRECISION : CANN_KEEP_DTYPE;
}
