/* tests/cann/ops/reduce.c - sums, running sums, choices by a mask (ops-math). */
#include "op.h"

#include <stdlib.h>
#include <string.h>

/* ---- ReduceSum, Mean: over the dims in the set ints[0]; kept as 1 or dropped (ints[1]);
 * divided by their product when ints[2] ---- */

static void reduce_run(struct aclOpExecutor *e)
{
    const struct aclTensor *self = &e->tensors[0];
    struct aclTensor *out = &e->tensors[1];
    const int64_t count = tensor_count(self);
    double *sums = take((size_t)tensor_count(out), sizeof(*sums));
    double *values = tensor_load(self);
    int64_t at[RANK_MAX] = { 0 }, folded = 1;

    for (int d = 0; d < self->rank; d++)
        folded *= (e->ints[0] >> d & 1) != 0 ? self->dims[d] : 1;
    for (int64_t i = 0; i < count; i++) {
        int64_t to = 0;
        for (int d = 0; d < self->rank; d++) {
            if ((e->ints[0] >> d & 1) == 0)
                to = to * self->dims[d] + at[d];
        }
        sums[to] += values[i];
        (void)next_at(self, at);
    }
    for (int64_t i = 0; e->ints[2] != 0 && i < tensor_count(out); i++)
        sums[i] /= (double)folded;
    tensor_store(out, sums);
    free(sums);
    free(values);
}

static aclnnStatus reduce(struct op *op, const aclTensor *self, const aclIntArray *dims, bool keep,
                          aclDataType dtype, aclTensor *out, bool divide, uint64_t *workspace_size,
                          aclOpExecutor **executor)
{
    const struct aclTensor *s, *o;
    int64_t set = 0;
    bool fits = true;
    int next = 0;

    op_in(op, "self", self, NUMBERS);
    op_out(op, "out", out, NUMBERS);
    op_check(op, dims != NULL && dims->magic == INTS_MAGIC, "no dims");
    op_check(op, op->e == NULL || op_tensor(op, 1)->dtype == dtype, "out is not of the data type");
    s = op_tensor(op, 0);
    o = op_tensor(op, 1);
    for (uint64_t i = 0; op->e != NULL && dims != NULL && i < dims->count; i++)
        set |= INT64_C(1) << op_dim(op, dims->values[i], s->rank);
    if (op->e != NULL && dims != NULL && dims->count == 0)
        set = (INT64_C(1) << s->rank) - 1;
    for (int d = 0; op->e != NULL && fits && d < s->rank; d++) {
        const bool folds = (set >> d & 1) != 0;
        if (!folds || keep) {
            fits = next < o->rank && o->dims[next] == (folds ? 1 : s->dims[d]);
            next++;
        }
    }
    op_check(op, op->e == NULL || (fits && next == o->rank), "out has another shape");
    if (op->e != NULL) {
        op->e->ints[0] = set;
        op->e->ints[1] = keep;
        op->e->ints[2] = divide;
    }
    return op_end(op, reduce_run, workspace_size, executor);
}

OPERATOR(ReduceSum, const aclTensor *self, const aclIntArray *dims, bool keep, aclDataType dtype,
         aclTensor *out)
{
    struct op op = OP(ReduceSum);
    return reduce(&op, self, dims, keep, dtype, out, false, workspace_size, executor);
}

OPERATOR(Mean, const aclTensor *self, const aclIntArray *dims, bool keep, aclDataType dtype,
         aclTensor *out)
{
    struct op op = OP(Mean);
    return reduce(&op, self, dims, keep, dtype, out, true, workspace_size, executor);
}

/* ---- Cumsum along a dim ---- */

static void cumsum_run(struct aclOpExecutor *e)
{
    const struct aclTensor *self = &e->tensors[0];
    double *values = tensor_load(self);
    const int64_t count = tensor_count(self);
    int64_t step = 1;

    for (int d = (int)e->ints[0] + 1; d < self->rank; d++)
        step *= self->dims[d];
    for (int64_t i = step; i < count; i++) {
        if (i / step % self->dims[e->ints[0]] != 0)
            values[i] += values[i - step];
    }
    tensor_store(&e->tensors[1], values);
    free(values);
}

OPERATOR(Cumsum, const aclTensor *self, int64_t dim, aclDataType dtype, aclTensor *out)
{
    struct op op = OP(Cumsum);

    op_in(&op, "self", self, NUMBERS);
    op_out(&op, "out", out, NUMBERS);
    op_same_shape(&op, 0, 1);
    op_check(&op, op.e == NULL || op_tensor(&op, 1)->dtype == dtype, "out is not of the data type");
    op_check(&op, op.e == NULL || op_tensor(&op, 0)->rank > 0, "a scalar");
    dim = op_dim(&op, dim, op_tensor(&op, 0)->rank);
    if (op.e != NULL)
        op.e->ints[0] = dim;
    return op_end(&op, cumsum_run, workspace_size, executor);
}

/* ---- SWhere: condition ? self : other, broadcast ---- */

static void where_run(struct aclOpExecutor *e)
{
    struct aclTensor *out = &e->tensors[3];
    double *condition = tensor_load_like(&e->tensors[0], out);
    double *self = tensor_load_like(&e->tensors[1], out);
    double *other = tensor_load_like(&e->tensors[2], out);
    const int64_t count = tensor_count(out);

    for (int64_t i = 0; i < count; i++)
        self[i] = condition[i] != 0 ? self[i] : other[i];
    tensor_store(out, self);
    free(condition);
    free(self);
    free(other);
}

/* Each operand goes into the result's shape, and some operand has each dim of it. */
static void check_into(struct op *op, unsigned operand, unsigned out)
{
    const struct aclTensor *t = op_tensor(op, operand), *o = op_tensor(op, out);
    bool fits = t->rank <= o->rank;

    for (int d = 1; fits && d <= t->rank; d++)
        fits = t->dims[t->rank - d] == 1 || t->dims[t->rank - d] == o->dims[o->rank - d];
    op_check(op, op->e == NULL || fits, "an operand does not broadcast to the result");
}

OPERATOR(SWhere, const aclTensor *condition, const aclTensor *self, const aclTensor *other,
         aclTensor *out)
{
    struct op op = OP(SWhere);

    op_in(&op, "condition", condition, DT(BOOL) | DT(UINT8));
    op_in(&op, "self", self, NUMBERS);
    op_in(&op, "other", other, NUMBERS);
    op_out(&op, "out", out, NUMBERS);
    op_same_dtype(&op, 1, 2);
    op_same_dtype(&op, 1, 3);
    for (unsigned i = 0; i < 3; i++)
        check_into(&op, i, 3);
    return op_end(&op, where_run, workspace_size, executor);
}

/* ---- InplaceMaskedFillScalar: self = value where mask ---- */

static void masked_fill_run(struct aclOpExecutor *e)
{
    struct aclTensor *self = &e->tensors[0];
    double *values = tensor_load(self), *mask = tensor_load_like(&e->tensors[1], self);
    const int64_t count = tensor_count(self);

    for (int64_t i = 0; i < count; i++)
        values[i] = mask[i] != 0 ? e->reals[0] : values[i];
    tensor_store(self, values);
    free(values);
    free(mask);
}

OPERATOR(InplaceMaskedFillScalar, aclTensor *self, const aclTensor *mask, const aclScalar *value)
{
    struct op op = OP(InplaceMaskedFillScalar);
    const double number = op_scalar(&op, "value", value);

    op_inout(&op, "selfRef", self, NUMBERS);
    op_in(&op, "mask", mask, DT(BOOL));
    check_into(&op, 1, 0);
    if (op.e != NULL)
        op.e->reals[0] = number;
    return op_end(&op, masked_fill_run, workspace_size, executor);
}
