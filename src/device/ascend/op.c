/* device/ascend/op.c - operators of the Ascend device. */
#include "device/ascend/internal.h"

enum status ascend__ops_create(struct ascend_device *device, struct err *err)
{
    (void)device;
    (void)err;
    return STATUS_OK;
}

void ascend__ops_destroy(struct ascend_device *device)
{
    (void)device;
}

/* aclnnMatmulWeightNz is what reads FRACTAL_NZ, and no older function is documented to. */
enum layout ascend__weight_layout(const struct device *base, enum device_weight weight,
                                  enum dtype dtype)
{
    const struct ascend_device *device = (const struct ascend_device *)base;

    (void)weight;
    return !device->nd && device->cann->aclnnMatmulWeightNz != NULL &&
                   (dtype == DTYPE_BF16 || dtype == DTYPE_F16)
               ? LAYOUT_FRACTAL_NZ : LAYOUT_ND;
}

enum status ascend__launch(struct stream *stream, const struct op *op, struct err *err)
{
    return err_set(err, STATUS_UNAVAILABLE, "%s: this build has no %s operator for it",
                   stream->device->info.name, op_kind_name(op->kind));
}
