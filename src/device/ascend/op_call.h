/* device/ascend/op_call.h - how op*.c call CANN's operators; only for files inside device/ascend/.
 *
 * A call is two phases (cann.h). Tensors are described by plain views, which become CANN's objects
 * when a call is made and are destroyed after it:
 *
 *     ASCEND_CALL(&call, Mul, ascend__in(&call, &a), ascend__in(&call, &b), ascend__in(&call, &c));
 *
 * After the first failure the rest does nothing, and call.status is the answer. Executors are not
 * kept for later launches: what they were made for, the addresses of slots and the number of rows,
 * changes from one launch to the next.
 *
 * What an op needs beside its operands comes in one piece, the stream's scratch, cut up by a
 * cutter: first from NULL, to measure, then from the memory. */
#ifndef LIGHTER_DEVICE_ASCEND_OP_CALL_H
#define LIGHTER_DEVICE_ASCEND_OP_CALL_H

#include "device/ascend/internal.h"

#define ASCEND_RANK_MAX 4
#define ASCEND_CALL_TENSORS_MAX 6

struct ascend_view {
    void *data;
    aclDataType dtype;
    uint32_t rank;
    int64_t dims[ASCEND_RANK_MAX], strides[ASCEND_RANK_MAX]; /* elements */
    bool is_nz;                   /* two dimensions, whole blocks; strides are not looked at */
};

struct ascend_call {
    struct ascend_stream *stream;
    const struct ascend_cann *cann;
    struct err *err;
    enum status status;
    aclTensor *tensors[ASCEND_CALL_TENSORS_MAX]; /* of the call that is being made */
    uint32_t tensor_count;
    aclScalar *scalar;
};

struct ascend_call ascend__call_begin(struct ascend_stream *stream, struct err *err);
/* A tensor for the next call. NULL after a failure. */
aclTensor *ascend__in(struct ascend_call *call, const struct ascend_view *view);
/* A FLOAT scalar for the next call, which takes one. */
aclScalar *ascend__number(struct ascend_call *call, float value);
/* After phase 1. */
void ascend__call_end(struct ascend_call *call, const char *name, aclnnStatus phase1,
                      ascend_phase2 phase2, uint64_t workspace_bytes, aclOpExecutor *executor);

#define ASCEND_CALL(call, Name, ...)                                                               \
    do {                                                                                           \
        uint64_t workspace_bytes_ = 0;                                                             \
        aclOpExecutor *executor_ = NULL;                                                           \
                                                                                                   \
        if ((call)->status == STATUS_OK) {                                                         \
            const aclnnStatus phase1_ = (call)->cann->aclnn##Name##GetWorkspaceSize(               \
                __VA_ARGS__, &workspace_bytes_, &executor_);                                       \
            ascend__call_end(call, "aclnn" #Name, phase1_, (call)->cann->aclnn##Name,              \
                             workspace_bytes_, executor_);                                         \
        }                                                                                          \
    } while (0)

/* Views in ND. */
static inline struct ascend_view ascend__vector(const void *data, aclDataType dtype, uint64_t count)
{
    return (struct ascend_view){ (void *)data, dtype, 1, { (int64_t)count }, { 1 }, false };
}

static inline struct ascend_view ascend__rows(const void *data, aclDataType dtype, uint64_t rows,
                                              uint64_t cols, uint64_t row_stride)
{
    return (struct ascend_view){ (void *)data, dtype, 2, { (int64_t)rows, (int64_t)cols },
                                 { (int64_t)row_stride, 1 }, false };
}

/* [k][n] of a weight [n][k], packed. */
static inline struct ascend_view ascend__weight(const void *data, aclDataType dtype, uint64_t n,
                                                uint64_t k, enum layout layout)
{
    return (struct ascend_view){ (void *)data, dtype, 2, { (int64_t)k, (int64_t)n },
                                 { 1, (int64_t)k }, layout == LAYOUT_FRACTAL_NZ };
}

/* Three dimensions; the last is adjacent. */
struct ascend_dims {
    uint64_t count, stride; /* of one dimension */
};
static inline struct ascend_view ascend__cube(const void *data, struct ascend_dims a,
                                              struct ascend_dims b, uint64_t width)
{
    return (struct ascend_view){ (void *)data, ACL_FLOAT, 3,
                                 { (int64_t)a.count, (int64_t)b.count, (int64_t)width },
                                 { (int64_t)a.stride, (int64_t)b.stride, 1 }, false };
}

/* Rows one behind the other. */
bool ascend__is_packed(const struct ascend_view *view);

/* Short forms of what is called often. */
void ascend__copy(struct ascend_call *call, const struct ascend_view *dst,
                  const struct ascend_view *src);
void ascend__add_to(struct ascend_call *call, const struct ascend_view *sum,
                    const struct ascend_view *added);
/* out = x . weight, two dimensions each; x in the weight's dtype, out FLOAT and packed. */
void ascend__product(struct ascend_call *call, const struct ascend_view *x,
                     const struct ascend_view *weight, const struct ascend_view *out);
/* out = the rows of `table` that `index` (INT32) names. */
void ascend__select(struct ascend_call *call, const struct ascend_view *table,
                    const struct ascend_view *index, const struct ascend_view *out);

/* Cuts memory up. Each piece begins at a multiple of 64 bytes and has 32 behind it, as CANN asks
 * for pieces of one block. */
struct ascend_cutter {
    char *base;                   /* NULL: measure */
    uint64_t used_bytes;
};
void *ascend__cut(struct ascend_cutter *cutter, uint64_t size_bytes);

/* ---- what ops keep while the device is open ---- */

struct ascend_moe {
    int32_t *pairs;               /* [pair_count]: numbers row * top_k + j, by expert */
    int32_t *rows, *places;       /* [pair_count]: pair's row; [top_k][rows]: where pairs stand */
    uint32_t *begins;             /* [expert_count + 1]: of its pairs */
    uint64_t bytes;               /* of the one block they lie in, at `pairs` */
};

struct ascend_ops {
    struct cpu_executor *host;    /* for what is computed on the host */
    aclScalar *one;
    bool is_310p;                 /* no BF16, and the matrix unit has no FLOAT */
    void *memory;                 /* host memory of one op, grown when it must */
    uint64_t memory_bytes;
    struct ascend_moe moe;        /* of the op that is being launched in turns */
};

/* Host memory of the op, until the next op asks. */
enum status ascend__host_memory(struct ascend_ops *ops, uint64_t size_bytes, void **memory_out,
                                struct err *err);
/* aclDataType of a weight. */
aclDataType ascend__dtype(enum dtype dtype);
/* cubeMathType of a product of this type. */
int8_t ascend__cube_math(const struct ascend_ops *ops, aclDataType dtype);

/* op_dense.c, op_attention.c, op_experts.c */
void ascend__op_embed(struct ascend_call *call, const struct op_embed *op);
void ascend__op_rms_norm(struct ascend_call *call, const struct op_rms_norm *op);
void ascend__op_matmul(struct ascend_call *call, const struct op_matmul *op);
void ascend__op_rope_table(struct ascend_call *call, const struct op_rope_table *op);
void ascend__op_rope(struct ascend_call *call, const struct op_rope *op);
void ascend__op_kv_write(struct ascend_call *call, const struct op_kv_write *op);
void ascend__op_silu_mul(struct ascend_call *call, const struct op_silu_mul *op);
void ascend__op_gather_rows(struct ascend_call *call, const struct op_gather_rows *op);
void ascend__op_attention(struct ascend_call *call, const struct op_attention *op);
void ascend__op_route(struct ascend_call *call, const struct op_route *op);
void ascend__op_moe(struct ascend_call *call, const struct op_moe *op);

#endif
