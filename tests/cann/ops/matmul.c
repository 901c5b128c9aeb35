/* tests/cann/ops/matmul.c - products of matrices: out[b][m][n] = sum over k of
 * a[b][m][k] * b[b][k][n]
 * (ops-nn, aclnnMm, aclnnMatmul, aclnnBatchMatMul, aclnnMatmulWeightNz).
 *
 * The second operand of the plain ones is ND: that they take FRACTAL_NZ too is seen in one program
 * and documented nowhere, so it is refused. Sums of 16-bit operands go to a FLOAT result unrounded,
 * as ops-nn does it; CANN_STANDIN_MATMUL_NARROW=1 rounds them to the operands' type first, which is
 * all that the documents promise. */
#include "op.h"

#include <stdlib.h>
#include <string.h>

enum { KEEP_DTYPE, ALLOW_DOWN_PRECISION, USE_FP16, USE_HF32, USE_FP32_ADD };

/* Matrices of a batch; dimensions before the last two are broadcast. */
static void product(const struct aclTensor *a, const struct aclTensor *b, struct aclTensor *out,
                    const int64_t *at_a, const int64_t *at_b, const int64_t *at_out)
{
    const int64_t m = out->dims[out->rank - 2], n = out->dims[out->rank - 1];
    const int64_t k = a->dims[a->rank - 1];
    double *rows = take((size_t)(m * k), sizeof(*rows)), *column = take((size_t)k, sizeof(*rows));
    int64_t at[RANK_MAX], to[RANK_MAX];
    double sum;

    memcpy(at, at_a, sizeof(at));
    for (int64_t i = 0; i < m; i++) {
        at[a->rank - 2] = i;
        tensor_line(a, at, a->rank - 1, rows + i * k);
    }
    memcpy(at, at_b, sizeof(at));
    memcpy(to, at_out, sizeof(to));
    for (int64_t j = 0; j < n; j++) {
        at[b->rank - 1] = j;
        tensor_line(b, at, b->rank - 2, column);
        to[out->rank - 1] = j;
        for (int64_t i = 0; i < m; i++) {
            to[out->rank - 2] = i;
            sum = dot(rows + i * k, column, k);
            if (standin_settings.matmul_narrow) {
                uint8_t narrow[8];
                element_set(a->dtype, narrow, 0, sum);
                sum = element_get(a->dtype, narrow, 0);
            }
            element_set(out->dtype, out->bytes, tensor_index(out, to), sum);
        }
    }
    free(rows);
    free(column);
}

static void batch_at(const struct aclTensor *t, const struct aclTensor *out, const int64_t *at_out,
                     int64_t *at)
{
    memset(at, 0, RANK_MAX * sizeof(*at));
    for (int i = 0; i < t->rank - 2; i++) {
        const int64_t index = at_out[out->rank - t->rank + i];
        at[i] = t->dims[i] == 1 ? 0 : index;
    }
}

static void matmul_run(struct aclOpExecutor *e)
{
    struct aclTensor *out = &e->tensors[2], batches = *out;
    int64_t at_out[RANK_MAX] = { 0 }, at_a[RANK_MAX], at_b[RANK_MAX];

    if (tensor_count(out) == 0)
        return;
    batches.rank = out->rank - 2;
    do {
        batch_at(&e->tensors[0], out, at_out, at_a);
        batch_at(&e->tensors[1], out, at_out, at_b);
        product(&e->tensors[0], &e->tensors[1], out, at_a, at_b, at_out);
    } while (next_at(&batches, at_out));
}

static void check_math_type(struct op *op, int8_t type)
{
    const aclDataType dtype = op_tensor(op, 0)->dtype;
    const bool is_310p = strncmp(standin_settings.soc, "Ascend310P", 10) == 0;

    op_check(op, type >= KEEP_DTYPE && type <= USE_FP32_ADD, "cubeMathType is unknown");
    op_check(op, type != USE_FP16 || dtype != ACL_BF16, "cubeMathType 2 is not for BF16");
    op_check(op, type != USE_HF32 || dtype == ACL_FLOAT, "cubeMathType 3 is for FLOAT alone");
    op_check(op, !is_310p || ((type != KEEP_DTYPE || dtype != ACL_FLOAT) && type != USE_HF32),
             "this chip multiplies no FLOAT");
}

static void check_shapes(struct op *op)
{
    const struct aclTensor *a = op_tensor(op, 0), *b = op_tensor(op, 1), *o = op_tensor(op, 2);

    if (op->e == NULL)
        return;
    op_check(op, a->rank >= 2 && b->rank >= 2 && o->rank >= 2, "a matrix has two dims");
    if (op->e == NULL)
        return;
    op_check(op, a->dims[a->rank - 1] == b->dims[b->rank - 2], "the inner dims differ");
    op_check(op, o->dims[o->rank - 2] == a->dims[a->rank - 2] &&
                 o->dims[o->rank - 1] == b->dims[b->rank - 1], "the result has another shape");
    for (int d = 3; op->e != NULL && d <= o->rank; d++) {
        const int64_t x = d <= a->rank ? a->dims[a->rank - d] : 1;
        const int64_t y = d <= b->rank ? b->dims[b->rank - d] : 1;
        op_check(op, (x == y || x == 1 || y == 1) && o->dims[o->rank - d] == (x == 1 ? y : x),
                 "the batches don't go together");
    }
}

static aclnnStatus matmul(struct op *op, const aclTensor *self, const aclTensor *mat2,
                          aclTensor *out, int8_t type, int rank, uint64_t *workspace_size,
                          aclOpExecutor **executor)
{
    op_in(op, "self", self, FLOATS);
    op_in(op, "mat2", mat2, FLOATS);
    op_out(op, "out", out, FLOATS);
    op_contiguous(op, 2);
    op_same_dtype(op, 0, 1);
    for (unsigned i = 0; i < 3; i++)
        op_check(op, rank == 0 || op->e == NULL || op_tensor(op, i)->rank == rank,
                 "a tensor has another rank");
    check_math_type(op, type);
    check_shapes(op);
    return op_end(op, matmul_run, workspace_size, executor);
}

OPERATOR(Mm, const aclTensor *self, const aclTensor *mat2, aclTensor *out, int8_t type)
{
    struct op op = OP(Mm);
    return matmul(&op, self, mat2, out, type, 2, workspace_size, executor);
}

OPERATOR(BatchMatMul, const aclTensor *self, const aclTensor *mat2, aclTensor *out, int8_t type)
{
    struct op op = OP(BatchMatMul);
    return matmul(&op, self, mat2, out, type, 3, workspace_size, executor);
}

OPERATOR(Matmul, const aclTensor *self, const aclTensor *mat2, aclTensor *out, int8_t type)
{
    struct op op = OP(Matmul);
    return matmul(&op, self, mat2, out, type, 0, workspace_size, executor);
}

static aclnnStatus weight_nz(struct op *op, const aclTensor *self, const aclTensor *mat2,
                             aclTensor *out, int8_t type, int rank, uint64_t *workspace_size,
                             aclOpExecutor **executor)
{
    op_in(op, "self", self, HALVES);
    op_in_weight(op, "mat2", mat2, HALVES);
    op_out(op, "out", out, FLOATS);
    op_contiguous(op, 2);
    op_same_dtype(op, 0, 1);
    for (unsigned i = 0; i < 3; i++)
        op_check(op, op->e == NULL || op_tensor(op, i)->rank == rank, "a tensor has another rank");
    op_check(op, op->e == NULL || op_tensor(op, 1)->format == ACL_FORMAT_FRACTAL_NZ,
             "mat2 is not FRACTAL_NZ");
    op_check(op, op->e == NULL || (op_tensor(op, 1)->dims[rank - 1] != 1 &&
                                   op_tensor(op, 1)->dims[rank - 2] != 1), "mat2 has a dim of 1");
    op_check(op, strncmp(standin_settings.soc, "Ascend310P", 10) != 0, "not on this chip");
    check_math_type(op, type);
    check_shapes(op);
    return op_end(op, matmul_run, workspace_size, executor);
}

OPERATOR(MatmulWeightNz, const aclTensor *self, const aclTensor *mat2, aclTensor *out, int8_t type)
{
    struct op op = OP(MatmulWeightNz);
    return weight_nz(&op, self, mat2, out, type, 2, workspace_size, executor);
}

OPERATOR(BatchMatMulWeightNz, const aclTensor *self, const aclTensor *mat2, aclTensor *out,
         int8_t type)
{
    struct op op = OP(BatchMatMulWeightNz);
    return weight_nz(&op, self, mat2, out, type, 3, workspace_size, executor);
}
