/* tests/cann/ops/convert.c - copies, casts, fills, and the change of format (ops-math). */
#include "op.h"

#include <stdlib.h>
#include <string.h>

/* ---- the last tensor gets the first one's values, broadcast and converted ---- */

static void copy_run(struct aclOpExecutor *e)
{
    struct aclTensor *out = &e->tensors[e->ints[0]];
    double *values = tensor_load_like(&e->tensors[1 - e->ints[0]], out);

    tensor_store(out, values);
    free(values);
}

OPERATOR(InplaceCopy, aclTensor *self, const aclTensor *src)
{
    struct op op = OP(InplaceCopy);

    op_inout(&op, "selfRef", self, NUMBERS | DT(UINT16) | DT(UINT32) | DT(UINT64));
    op_in(&op, "src", src, NUMBERS | DT(UINT16) | DT(UINT32) | DT(UINT64));
    op_check(&op, op.e == NULL || op_tensor(&op, 0)->rank > 0, "a scalar");
    op_broadcast(&op, 0, 1, 0);
    return op_end(&op, copy_run, workspace_size, executor);
}

OPERATOR(Cast, const aclTensor *self, const aclDataType dtype, aclTensor *out)
{
    struct op op = OP(Cast);

    op_in(&op, "self", self, NUMBERS);
    op_out(&op, "out", out, NUMBERS);
    op_same_shape(&op, 0, 1);
    op_check(&op, op.e == NULL || op_tensor(&op, 1)->dtype == dtype, "out is not of the data type");
    if (op.e != NULL)
        op.e->ints[0] = 1;
    return op_end(&op, copy_run, workspace_size, executor);
}

/* ---- fills: every element becomes reals[0] ---- */

static void fill_run(struct aclOpExecutor *e)
{
    const int64_t count = tensor_count(&e->tensors[0]);
    double *values = take((size_t)count, sizeof(*values));

    for (int64_t i = 0; i < count; i++)
        values[i] = e->reals[0];
    tensor_store(&e->tensors[0], values);
    free(values);
}

OPERATOR(InplaceFillScalar, aclTensor *self, const aclScalar *value)
{
    struct op op = OP(InplaceFillScalar);
    const double number = op_scalar(&op, "value", value);

    op_inout(&op, "selfRef", self, NUMBERS);
    if (op.e != NULL)
        op.e->reals[0] = number;
    return op_end(&op, fill_run, workspace_size, executor);
}

OPERATOR(InplaceZero, aclTensor *self)
{
    struct op op = OP(InplaceZero);

    op_inout(&op, "selfRef", self, NUMBERS);
    return op_end(&op, fill_run, workspace_size, executor);
}

/* ---- Triu, Tril: what is below, or above, diagonal d becomes 0; d counts to the right ---- */

static void triangle_run(struct aclOpExecutor *e)
{
    const struct aclTensor *t = &e->tensors[0];
    double *values = tensor_load(t);
    int64_t at[RANK_MAX] = { 0 };
    const int64_t count = tensor_count(t);

    for (int64_t i = 0; i < count; i++) {
        const int64_t right = at[t->rank - 1] - at[t->rank - 2] - e->ints[0];
        if (e->ints[1] ? right > 0 : right < 0)
            values[i] = 0;
        (void)next_at(t, at);
    }
    tensor_store(&e->tensors[1], values);
    free(values);
}

static aclnnStatus triangle(struct op *op, const aclTensor *self, int64_t diagonal, aclTensor *out,
                            bool lower, uint64_t *workspace_size, aclOpExecutor **executor)
{
    op_in(op, "self", self, NUMBERS);
    op_out(op, "out", out, NUMBERS);
    op_same_dtype(op, 0, 1);
    op_same_shape(op, 0, 1);
    op_contiguous(op, 0);
    op_contiguous(op, 1);
    op_check(op, op->e == NULL || op_tensor(op, 0)->rank >= 2, "fewer than two dims");
    if (op->e != NULL) {
        op->e->ints[0] = diagonal;
        op->e->ints[1] = lower;
    }
    return op_end(op, triangle_run, workspace_size, executor);
}

OPERATOR(Triu, const aclTensor *self, int64_t diagonal, aclTensor *out)
{
    struct op op = OP(Triu);
    return triangle(&op, self, diagonal, out, false, workspace_size, executor);
}

OPERATOR(Tril, const aclTensor *self, int64_t diagonal, aclTensor *out)
{
    struct op op = OP(Tril);
    return triangle(&op, self, diagonal, out, true, workspace_size, executor);
}

/* ---- formats: ND to FRACTAL_NZ and back, padding with zeros ---- */

#define NZ_DTYPES (FLOATS | DT(INT8) | DT(UINT8) | DT(INT32) | DT(UINT32))

static void format_run(struct aclOpExecutor *e)
{
    struct aclTensor *out = &e->tensors[1];
    double *values = tensor_load(&e->tensors[0]);

    standin_count("format_casts", 1);
    if (out->format == ACL_FORMAT_FRACTAL_NZ)
        memset(out->bytes, 0, (size_t)nz_element_count(out) * dtype_bytes(out->dtype));
    tensor_store(out, values);
    free(values);
}

OPERATOR(NpuFormatCast, const aclTensor *src, aclTensor *dst)
{
    struct op op = OP(NpuFormatCast);
    const struct aclTensor *s, *d;

    op_in_weight(&op, "srcTensor", src, NZ_DTYPES);
    op_out_weight(&op, "dstTensor", dst, NZ_DTYPES);
    op_same_dtype(&op, 0, 1);
    op_same_shape(&op, 0, 1);
    s = op_tensor(&op, 0);
    d = op_tensor(&op, 1);
    op_check(&op, op.e == NULL || (s->rank >= 2 && s->rank <= 6), "not 2 to 6 dims");
    op_check(&op, op.e == NULL || tensor_count(s) > 0, "an empty tensor");
    op_check(&op, op.e == NULL || s->format != d->format, "the formats are the same");
    op_contiguous(&op, 0);
    op_contiguous(&op, 1);
    return op_end(&op, format_run, workspace_size, executor);
}

/* The caller frees *shape_out, which CANN makes with new[]. */
aclnnStatus aclnnNpuFormatCastCalculateSizeAndFormat(const aclTensor *src, const int format,
                                                     int extra_dtype, int64_t **shape_out,
                                                     uint64_t *rank_out, int *format_out)
{
    const aclDataType dtype = extra_dtype == -1 && src != NULL ? src->dtype
                                                               : (aclDataType)extra_dtype;
    int64_t *shape, c0;
    int batch;

    ENTER(aclnnNpuFormatCastCalculateSizeAndFormat);
    if (src == NULL || shape_out == NULL || rank_out == NULL || format_out == NULL)
        return standin_error(E_NN_NULL, "aclnnNpuFormatCastCalculateSizeAndFormat: NULL");
    if (src->magic != TENSOR_MAGIC || src->format != ACL_FORMAT_ND || src->rank < 2 ||
        src->rank > 6 || tensor_count(src) == 0 || format != ACL_FORMAT_FRACTAL_NZ ||
        (NZ_DTYPES >> ((unsigned)src->dtype & 63) & 1) == 0 || dtype_bytes(dtype) == 0)
        return standin_error(E_NN_INVALID, "aclnnNpuFormatCastCalculateSizeAndFormat: format %d "
                             "of a tensor of %d dims with data type %d", format, src->rank,
                             (int)src->dtype);
    batch = src->rank - 2;
    c0 = 32 / dtype_bytes(dtype);
    shape = take((size_t)src->rank + 2, sizeof(*shape));
    memcpy(shape, src->dims, (size_t)batch * sizeof(*shape));
    shape[batch] = (src->dims[batch + 1] + c0 - 1) / c0;
    shape[batch + 1] = (src->dims[batch] + 15) / 16;
    shape[batch + 2] = 16;
    shape[batch + 3] = c0;
    *shape_out = shape;
    *rank_out = (uint64_t)src->rank + 2;
    *format_out = ACL_FORMAT_FRACTAL_NZ;
    return 0;
}

/* In place: the memory and the tensor itself become FRACTAL_NZ. The buffer must have the padded
 * size: aclnnCalculateMatmulWeightSizeV2. */
static void trans_weight_run(struct aclOpExecutor *e)
{
    struct aclTensor *t = &e->tensors[0], plain = *t;
    double *values;

    plain.format = ACL_FORMAT_ND;
    values = tensor_load(&plain);
    standin_count("format_casts", 1);
    memset(t->bytes, 0, (size_t)nz_element_count(t) * dtype_bytes(t->dtype));
    tensor_store(t, values);
    free(values);
}

OPERATOR(TransMatmulWeight, aclTensor *weight)
{
    struct op op = OP(TransMatmulWeight);
    struct aclTensor *t;
    int64_t *shape = NULL;
    uint64_t rank = 0;
    int format = 0;
    aclnnStatus code;

    op_inout(&op, "mmWeightRef", weight, HALVES | DT(INT8));
    op_contiguous(&op, 0);
    op_check(&op, op.e == NULL || (op_tensor(&op, 0)->rank >= 2 && op_tensor(&op, 0)->rank <= 6),
             "not 2 to 6 dims");
    if (op.e != NULL &&
        aclnnNpuFormatCastCalculateSizeAndFormat(weight, ACL_FORMAT_FRACTAL_NZ, -1, &shape, &rank,
                                                 &format) == 0 && shape != NULL) {
        t = op.e->tensors;
        t->format = weight->format = ACL_FORMAT_FRACTAL_NZ;
        t->storage_rank = weight->storage_rank = (int)rank;
        memcpy(t->storage, shape, rank * sizeof(*shape));
        memcpy(weight->storage, shape, rank * sizeof(*shape));
    }
    free(shape);
    code = op_end(&op, trans_weight_run, workspace_size, executor);
    return code;
}

STANDIN_API aclnnStatus aclnnCalculateMatmulWeightSizeV2(const aclIntArray *shape,
                                                         aclDataType dtype, uint64_t *count_out);
STANDIN_API aclnnStatus aclnnCalculateMatmulWeightSize(const aclIntArray *shape,
                                                       uint64_t *count_out);

/* In elements. */
aclnnStatus aclnnCalculateMatmulWeightSizeV2(const aclIntArray *shape, aclDataType dtype,
                                             uint64_t *count_out)
{
    int64_t count = 1, unit;

    ENTER(aclnnCalculateMatmulWeightSizeV2);
    if (shape == NULL || count_out == NULL)
        return standin_error(E_NN_NULL, "aclnnCalculateMatmulWeightSizeV2: NULL");
    if (shape->count < 2 || shape->count > 6 || (dtype != ACL_INT8 && dtype_bytes(dtype) != 2))
        return standin_error(E_NN_INVALID, "aclnnCalculateMatmulWeightSizeV2: %d dims of type %d",
                             (int)shape->count, (int)dtype);
    for (uint64_t i = 0; i < shape->count; i++) {
        unit = i + 1 == shape->count ? 32 / dtype_bytes(dtype) : i + 2 == shape->count ? 16 : 1;
        count *= (shape->values[i] + unit - 1) / unit * unit;
    }
    *count_out = (uint64_t)count;
    return 0;
}

aclnnStatus aclnnCalculateMatmulWeightSize(const aclIntArray *shape, uint64_t *count_out)
{
    ENTER(aclnnCalculateMatmulWeightSize);
    return aclnnCalculateMatmulWeightSizeV2(shape, ACL_FLOAT16, count_out);
}
