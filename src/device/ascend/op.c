/* device/ascend/op.c - operators of the Ascend device: which there are, and for what.
 *
 * Activations, the KV cache and all that is computed element by element are FLOAT, as on the other
 * devices. Products take x rounded to the weights' dtype and give FLOAT; those that are to be exact
 * take the weights in FLOAT instead, some rows of them at a time. What a router chooses and the
 * table of rotations are computed on the host, by the processor's kernels. docs/ascend.md has the
 * choices with their reasons.
 *
 *     op_call.c       CANN's two-phase calls
 *     op_dense.c      rows: embed, norm, matmul, rope, ...
 *     op_gate.c       gates, scaled rows, soft caps
 *     op_attention.c  attention over the paged cache
 *     op_experts.c    route and moe */
#include "device/ascend/op_call.h"

#include <stdlib.h>
#include <string.h>

#include "device/cpu/execute.h"
#include "device/operands.h"

enum status ascend__ops_create(struct ascend_device *device, struct err *err)
{
    const struct device_options options = { .thread_count = 1 };
    const char *soc = device->cann->aclrtGetSocName();
    struct ascend_ops *ops = calloc(1, sizeof(*ops));
    float one = 1, seven = 7, minus_seven = -7;
    enum status st;

    if (ops == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for operators",
                       device->base.info.name);
    device->ops = ops;
    ops->is_310p = soc != NULL && strncmp(soc, "Ascend310P", 10) == 0;
    ops->one = device->cann->aclCreateScalar(&one, ACL_FLOAT);
    ops->seven = device->cann->aclCreateScalar(&seven, ACL_FLOAT);
    ops->minus_seven = device->cann->aclCreateScalar(&minus_seven, ACL_FLOAT);
    if (ops->one == NULL || ops->seven == NULL || ops->minus_seven == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: aclCreateScalar found no memory",
                       device->base.info.name);
    st = ascend__executors_create(device->executor_count, &ops->executors, err);
    return st == STATUS_OK ? cpu_executor_create(&options, &ops->host, err) : st;
}

void ascend__ops_destroy(struct ascend_device *device)
{
    struct ascend_ops *ops = device->ops;

    if (ops == NULL)
        return;
    ascend__executors_destroy(device->cann, ops->executors);
    (void)device->cann->aclDestroyScalar(ops->one); /* NULL is fine */
    (void)device->cann->aclDestroyScalar(ops->seven);
    (void)device->cann->aclDestroyScalar(ops->minus_seven);
    cpu_executor_destroy(ops->host);
    free(ops->moe.pairs);
    free(ops->memory);
    free(ops);
    device->ops = NULL;
}

#define HAS(cann, Name)                                                                            \
    ((cann)->aclnn##Name != NULL && (cann)->aclnn##Name##GetWorkspaceSize != NULL)

uint32_t ascend__op_features(const struct ascend_cann *cann)
{
    const bool adds = HAS(cann, InplaceAdds), sigmoid = HAS(cann, Sigmoid);

    return OP_FEATURE_SINKS | OP_FEATURE_EXPERT_BIAS | OP_FEATURE_CHUNKS | OP_FEATURE_COLUMNS |
           (adds ? OP_FEATURE_NORM_OFFSET : 0u) |
           (HAS(cann, Tril) ? OP_FEATURE_WINDOW : 0u) |
           (HAS(cann, Tanh) ? OP_FEATURE_SOFT_CAP : 0u) |
           (HAS(cann, GeluV2) ? OP_FEATURE_GATE_GELU : 0u) |
           (HAS(cann, Clamp) && adds && sigmoid ? OP_FEATURE_GATE_CLAMPED : 0u) |
           (sigmoid ? OP_FEATURE_SCALE : 0u);
}

/* aclnnMatmulWeightNz is what reads FRACTAL_NZ, and no older function is documented to. The 310P
 * has none (ops-nn, aclnnMatmulWeightNz, supported products). */
enum layout ascend__weight_layout(const struct device *base, enum device_weight weight,
                                  enum dtype dtype)
{
    const struct ascend_device *device = (const struct ascend_device *)base;

    return weight != DEVICE_WEIGHT_EXACT && !device->nd && !device->ops->is_310p &&
                   device->cann->aclnnMatmulWeightNz != NULL &&
                   (dtype == DTYPE_BF16 || dtype == DTYPE_F16)
               ? LAYOUT_FRACTAL_NZ : LAYOUT_ND;
}

enum status ascend__weights_check(const struct device *base, enum dtype dtype, struct err *err)
{
    const struct ascend_device *device = (const struct ascend_device *)base;

    if (dtype != DTYPE_F32 && dtype != DTYPE_F16 && dtype != DTYPE_BF16)
        return err_set(err, STATUS_UNAVAILABLE, "%s: there are no operators for weights in %s; "
                       "an NPU computes with BF16, F16 and F32: --dtype says which they shall be",
                       base->info.name, dtype_info(dtype)->name);
    if (dtype == DTYPE_BF16 && device->ops->is_310p)
        return err_set(err, STATUS_UNAVAILABLE, "%s: this chip has no BF16; --dtype float16 works",
                       base->info.name);
    return STATUS_OK;
}

static enum status check_dtype(const struct ascend_device *device, const struct op *op,
                               struct err *err)
{
    enum dtype dtype;
    enum status st;

    if (!device__op_weight_dtype(op, &dtype))
        return STATUS_OK;
    if (op->kind == OP_MOE && op->moe.down_dtype != dtype)
        return err_set(err, STATUS_UNAVAILABLE, "%s: moe: an NPU computes with experts of one "
                       "type, not of %s and %s: --dtype says which they shall be",
                       device->base.info.name, dtype_info(dtype)->name,
                       dtype_info(op->moe.down_dtype)->name);
    st = ascend__weights_check(&device->base, dtype, err);
    return st == STATUS_OK ? st : err_prefix(err, st, "%s", op_kind_name(op->kind));
}

enum status ascend__launch(struct stream *base, const struct op *op, struct err *err)
{
    struct ascend_stream *stream = (struct ascend_stream *)base;
    struct ascend_call call = ascend__call_begin(stream, err);
    const enum status st = check_dtype(ascend__device_of(stream), op, err);

    if (st != STATUS_OK || op_row_count(op) == 0)
        return st;
    switch (op->kind) {
    case OP_EMBED: ascend__op_embed(&call, &op->embed); break;
    case OP_RMS_NORM: ascend__op_rms_norm(&call, &op->rms_norm); break;
    case OP_MATMUL: ascend__op_matmul(&call, &op->matmul); break;
    case OP_ROPE_TABLE: ascend__op_rope_table(&call, &op->rope_table); break;
    case OP_ROPE: ascend__op_rope(&call, &op->rope); break;
    case OP_KV_WRITE: ascend__op_kv_write(&call, &op->kv_write); break;
    case OP_ATTENTION: ascend__op_attention(&call, &op->attention); break;
    case OP_SILU_MUL: ascend__op_silu_mul(&call, &op->silu_mul); break;
    case OP_ROUTE: ascend__op_route(&call, &op->route); break;
    case OP_MOE: ascend__op_moe(&call, &op->moe); break;
    case OP_GATHER_ROWS: ascend__op_gather_rows(&call, &op->gather_rows); break;
    case OP_SCALE: ascend__op_scale(&call, &op->scale); break;
    case OP_SOFT_CAP: ascend__op_soft_cap(&call, &op->soft_cap); break;
    case OP_GATHER_COLUMNS: ascend__op_gather_columns(&call, &op->gather_columns); break;
    case OP_KIND_COUNT: break;
    }
    return call.status;
}
