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

enum status ascend__launch(struct stream *stream, const struct op *op, struct err *err)
{
    return err_set(err, STATUS_UNAVAILABLE, "%s: this build has no %s operator for it",
                   stream->device->info.name, op_kind_name(op->kind));
}
