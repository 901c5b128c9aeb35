/* device/ascend/op_cast.c - CANN's own conversion of a matrix to FRACTAL_NZ.
 *
 * No model runs through it: the processor converts weights while they are loaded
 * (tensor/layout.h). selftest compares the two, so that whoever has an NPU can tell whether ours
 * is CANN's. */
#include "device/ascend/op_call.h"

enum status ascend__cast_nz(struct stream *base, enum dtype dtype, uint64_t k, uint64_t n,
                            void *dst, const void *src, struct err *err)
{
    struct ascend_stream *stream = (struct ascend_stream *)base;
    struct ascend_device *device = ascend__device_of(stream);
    const struct ascend_view from = ascend__rows(src, ascend__dtype(dtype), k, n, n);
    const struct ascend_view to = ascend__weight(dst, ascend__dtype(dtype), n, k,
                                                 LAYOUT_FRACTAL_NZ);
    struct ascend_call call;
    enum status st = ascend__enter(device, err);

    if (st != STATUS_OK)
        return st;
    if (device->cann->aclnnNpuFormatCast == NULL ||
        device->cann->aclnnNpuFormatCastGetWorkspaceSize == NULL)
        return err_set(err, STATUS_UNAVAILABLE, "%s: the installed CANN has no aclnnNpuFormatCast; "
                       "%s has it", device->base.info.name, CANN_8_3);
    call = ascend__call_begin(stream, err);
    ASCEND_CALL(&call, NpuFormatCast, 0, ASCEND_VIEWS(&from, &to), t[0], t[1]);
    return call.status;
}
