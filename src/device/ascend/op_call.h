/* device/ascend/op_call.h - how op*.c call CANN's operators; only for files inside device/ascend/.
 *
 * A call is two phases (cann.h). Tensors are described by plain views, which become CANN's objects
 * for the first phase:
 *
 *     ASCEND_CALL(&call, Mul, 0, ASCEND_VIEWS(&a, &b, &c), t[0], t[1], t[2]);
 *
 * After the first failure the rest does nothing, and call.status is the answer.
 *
 * What a first phase has made is kept with its tensors, and serves later calls of the same operator
 * with views of the same dtypes, shapes and strides and the same number: they only aim its tensors
 * at their addresses (executors.c).
 *
 *     open: kept before? --yes--> aim ---------------------------------------> run: phase 2
 *                  |                                                            ^
 *                  no --> tensors --> phase 1 --> made: may it be kept? --> ----+
 *                                                 no: it is used once
 *
 * What an op needs beside its operands comes in one piece, the stream's scratch, cut up by a
 * cutter: first from NULL, to measure, then from the memory. */
#ifndef LIGHTER_DEVICE_ASCEND_OP_CALL_H
#define LIGHTER_DEVICE_ASCEND_OP_CALL_H

#include "device/ascend/internal.h"

#define ASCEND_RANK_MAX 4
#define ASCEND_CALL_TENSORS_MAX 4

struct ascend_view {
    void *data;
    aclDataType dtype;
    uint32_t rank;
    int64_t dims[ASCEND_RANK_MAX], strides[ASCEND_RANK_MAX]; /* elements */
    bool is_nz;                   /* two dimensions, whole blocks; strides are not looked at */
};

/* What a first phase is made of, and what it makes. */
struct ascend_made {
    const char *name;             /* of the operator: "aclnnMm". NULL: nothing */
    double number;                /* of its arguments, the one that is no constant; or 0 */
    uint32_t view_count;
    struct ascend_view views[ASCEND_CALL_TENSORS_MAX]; /* data: where the tensors are aimed at */
    aclTensor *tensors[ASCEND_CALL_TENSORS_MAX];
    aclScalar *scalar;            /* of `number`, where the operator takes one */
    aclOpExecutor *executor;      /* NULL, of a kept one: CANN lets it be used once only */
    uint64_t workspace_bytes;
    uint64_t used;                /* executors.c's: when it was used last */
};

struct ascend_call {
    struct ascend_stream *stream;
    const struct ascend_cann *cann;
    struct err *err;
    enum status status;
    struct ascend_made now;       /* the call that is being made */
    bool is_kept;                 /* its tensors and executor are not its own */
    bool is_once;                 /* CANN was asked before whether it may be used again */
};

struct ascend_call ascend__call_begin(struct ascend_stream *stream, struct err *err);
/* Whether the call needs its first phase; call->now.tensors are there then. False after a failure,
 * and where it was made before. views end with NULL. */
bool ascend__call_open(struct ascend_call *call, const char *name, double number,
                       const struct ascend_view *const *views);
/* The call's number as a FLOAT scalar, for its first phase. */
aclScalar *ascend__number(struct ascend_call *call);
/* After the first phase. */
void ascend__call_made(struct ascend_call *call, aclnnStatus phase1);
/* The second phase, unless there was a failure. */
void ascend__call_run(struct ascend_call *call, ascend_phase2 phase2);

/* In the arguments, which are those of the first phase, t[i] is the i-th view's tensor, and
 * `number` the argument that is not the same in all calls of this line and all others like it. */
#define ASCEND_VIEWS(...) ((const struct ascend_view *const[]){ __VA_ARGS__, NULL })
#define ASCEND_CALL(call, Name, number, views, ...)                                                \
    do {                                                                                           \
        if (ascend__call_open(call, "aclnn" #Name, number, views)) {                               \
            aclTensor *const *const t = (call)->now.tensors;                                       \
                                                                                                   \
            ascend__call_made(call, (call)->cann->aclnn##Name##GetWorkspaceSize(                   \
                                        __VA_ARGS__, &(call)->now.workspace_bytes,                 \
                                        &(call)->now.executor));                                   \
        }                                                                                          \
        ascend__call_run(call, (call)->cann->aclnn##Name);                                         \
    } while (0)

/* ---- executors.c: calls that were made before ---- */

struct ascend_executors;

/* Keeps at most `count`, rounded up to some; 0: none. */
enum status ascend__executors_create(uint64_t count, struct ascend_executors **executors_out,
                                     struct err *err);
/* NULL is fine. */
void ascend__executors_destroy(const struct ascend_cann *cann, struct ascend_executors *executors);
/* What agrees with the wanted one in all but addresses; NULL: there is none. */
struct ascend_made *ascend__executors_find(struct ascend_executors *executors,
                                           const struct ascend_made *wanted);
/* Gives it the addresses of `wanted`. False: CANN refuses, and it is of no use any more. */
bool ascend__executors_aim(const struct ascend_cann *cann, struct ascend_made *made,
                           const struct ascend_made *wanted);
/* Right after the first phase: takes over what it made. False: CANN does not let it be used again,
 * and it stays the caller's. */
bool ascend__executors_keep(const struct ascend_cann *cann, struct ascend_executors *executors,
                            struct ascend_made *made);
/* Destroys what CANN has made for it. */
void ascend__made_free(const struct ascend_cann *cann, struct ascend_made *made);

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

/* x += summand. */
void ascend__add_number(struct ascend_call *call, const struct ascend_view *x, double summand);
/* x = cap * tanh(x / cap). */
void ascend__cap(struct ascend_call *call, const struct ascend_view *x, float cap);
/* out = gate(g, u), all of one shape. Of temps, which are packed, the first may be g; only
 * GATE_CLAMPED_SWISH takes the second. out may be u. */
void ascend__gate(struct ascend_call *call, enum op_gate gate, const struct ascend_view *g,
                  const struct ascend_view *u, const struct ascend_view *out,
                  const struct ascend_view temps[2]);

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
    struct ascend_executors *executors;
    aclScalar *one, *seven, *minus_seven;
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

/* op_dense.c, op_gate.c, op_attention.c, op_experts.c */
void ascend__op_embed(struct ascend_call *call, const struct op_embed *op);
void ascend__op_rms_norm(struct ascend_call *call, const struct op_rms_norm *op);
void ascend__op_matmul(struct ascend_call *call, const struct op_matmul *op);
void ascend__op_rope_table(struct ascend_call *call, const struct op_rope_table *op);
void ascend__op_rope(struct ascend_call *call, const struct op_rope *op);
void ascend__op_kv_write(struct ascend_call *call, const struct op_kv_write *op);
void ascend__op_silu_mul(struct ascend_call *call, const struct op_silu_mul *op);
void ascend__op_gather_columns(struct ascend_call *call, const struct op_gather_columns *op);
void ascend__op_gather_rows(struct ascend_call *call, const struct op_gather_rows *op);
void ascend__op_scale(struct ascend_call *call, const struct op_scale *op);
void ascend__op_soft_cap(struct ascend_call *call, const struct op_soft_cap *op);
void ascend__op_attention(struct ascend_call *call, const struct op_attention *op);
void ascend__op_route(struct ascend_call *call, const struct op_route *op);
void ascend__op_moe(struct ascend_call *call, const struct op_moe *op);

#endif
