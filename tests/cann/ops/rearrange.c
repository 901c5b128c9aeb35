/* tests/cann/ops/rearrange.c - elements that change places, and series of numbers (ops-math). */
#include "op.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Permute: out's dim i is self's dim dims[i] ---- */

static void permute_run(struct aclOpExecutor *e)
{
    struct aclTensor turned = e->tensors[0];
    double *values;

    for (int i = 0; i < turned.rank; i++) {
        turned.dims[i] = e->tensors[0].dims[e->ints[i]];
        turned.strides[i] = e->tensors[0].strides[e->ints[i]];
    }
    values = tensor_load(&turned);
    tensor_store(&e->tensors[1], values);
    free(values);
}

OPERATOR(Permute, const aclTensor *self, const aclIntArray *dims, aclTensor *out)
{
    struct op op = OP(Permute);
    const struct aclTensor *s, *o;
    uint64_t seen = 0;
    bool fits;

    op_in(&op, "self", self, NUMBERS);
    op_out(&op, "out", out, NUMBERS);
    op_same_dtype(&op, 0, 1);
    op_check(&op, dims != NULL && dims->magic == INTS_MAGIC, "no dims");
    s = op_tensor(&op, 0);
    o = op_tensor(&op, 1);
    fits = op.e == NULL || dims == NULL || (dims->count == (uint64_t)s->rank && o->rank == s->rank);
    for (int i = 0; op.e != NULL && dims != NULL && fits && i < s->rank; i++) {
        const int64_t dim = op_dim(&op, dims->values[i], s->rank);
        if (op.e == NULL)
            break;
        op.e->ints[i] = dim;
        seen |= UINT64_C(1) << dim;
        fits = o->dims[i] == s->dims[dim];
    }
    op_check(&op, op.e == NULL || (fits && seen == (UINT64_C(1) << s->rank) - 1),
             "dims are no order of self's, or out has another shape");
    return op_end(&op, permute_run, workspace_size, executor);
}

/* ---- Cat along a dim ---- */

static void cat_run(struct aclOpExecutor *e)
{
    struct aclTensor *out = &e->tensors[e->tensor_count - 1];
    const int dim = (int)e->ints[0];
    int64_t begin = 0;

    for (unsigned i = 0; i + 1 < e->tensor_count; i++) {
        const struct aclTensor *t = &e->tensors[i];
        struct aclTensor part = *out;
        double *values = tensor_load(t);
        part.dims[dim] = t->dims[dim];
        part.offset += begin * out->strides[dim];
        tensor_store(&part, values);
        begin += t->dims[dim];
        free(values);
    }
}

OPERATOR(Cat, const aclTensorList *tensors, int64_t dim, aclTensor *out)
{
    struct op op = OP(Cat);
    const unsigned count = op_list(&op, "tensors", tensors, NUMBERS, false, ROLE_INPUT);
    int64_t sum = 0;

    op_out(&op, "out", out, NUMBERS);
    dim = op_dim(&op, dim, op_tensor(&op, count)->rank);
    for (unsigned i = 0; i < count && op.e != NULL; i++) {
        const struct aclTensor *t = op_tensor(&op, i), *o = op_tensor(&op, count);
        bool fits = t->rank == o->rank;
        for (int d = 0; fits && d < t->rank; d++)
            fits = d == dim || t->dims[d] == o->dims[d];
        sum += fits ? t->dims[dim] : 0;
        op_same_dtype(&op, i, count);
        op_check(&op, fits, "a tensor has another shape");
    }
    op_check(&op, op.e == NULL || sum == op_tensor(&op, count)->dims[dim], "out's dim is no sum");
    if (op.e != NULL)
        op.e->ints[0] = dim;
    return op_end(&op, cat_run, workspace_size, executor);
}

/* ---- Repeat: out = self, repeats[i] times along dim i; leading dims may be new ---- */

static void repeat_run(struct aclOpExecutor *e)
{
    const struct aclTensor *self = &e->tensors[0];
    struct aclTensor *out = &e->tensors[1];
    const int shift = out->rank - self->rank;
    int64_t at[RANK_MAX] = { 0 };

    if (tensor_count(out) == 0)
        return;
    do {
        int64_t from[RANK_MAX] = { 0 };
        for (int i = 0; i < self->rank; i++)
            from[i] = at[i + shift] % self->dims[i];
        element_set(out->dtype, out->bytes, tensor_index(out, at),
                    element_get(self->dtype, self->bytes, tensor_index(self, from)));
    } while (next_at(out, at));
}

OPERATOR(Repeat, const aclTensor *self, const aclIntArray *repeats, aclTensor *out)
{
    struct op op = OP(Repeat);
    const struct aclTensor *s, *o;
    bool fits;

    op_in(&op, "self", self, NUMBERS);
    op_out(&op, "out", out, NUMBERS);
    op_same_dtype(&op, 0, 1);
    op_check(&op, repeats != NULL && repeats->magic == INTS_MAGIC, "no repeats");
    s = op_tensor(&op, 0);
    o = op_tensor(&op, 1);
    fits = op.e == NULL || repeats == NULL ||
           (o->rank >= s->rank && repeats->count == (uint64_t)o->rank);
    for (int i = 0; op.e != NULL && repeats != NULL && fits && i < o->rank; i++) {
        const int own = i - (o->rank - s->rank);
        fits = o->dims[i] == repeats->values[i] * (own >= 0 ? s->dims[own] : 1);
    }
    op_check(&op, fits, "out has another shape");
    return op_end(&op, repeat_run, workspace_size, executor);
}

/* ---- Slice along a dim, from ints[1] in steps of ints[2] ---- */

static void slice_run(struct aclOpExecutor *e)
{
    struct aclTensor part = e->tensors[0];
    const int dim = (int)e->ints[0];
    double *values;

    part.offset += e->ints[1] * part.strides[dim];
    part.strides[dim] *= e->ints[2];
    part.dims[dim] = e->tensors[1].dims[dim];
    values = tensor_load(&part);
    tensor_store(&e->tensors[1], values);
    free(values);
}

OPERATOR(Slice, const aclTensor *self, int64_t dim, int64_t start, int64_t end, int64_t step,
         aclTensor *out)
{
    struct op op = OP(Slice);
    const struct aclTensor *s, *o;
    bool fits;

    op_in(&op, "self", self, NUMBERS);
    op_out(&op, "out", out, NUMBERS);
    op_same_dtype(&op, 0, 1);
    dim = op_dim(&op, dim, op_tensor(&op, 0)->rank);
    s = op_tensor(&op, 0);
    o = op_tensor(&op, 1);
    if (op.e != NULL) {
        const int64_t size = s->dims[dim];
        start = start < 0 ? start + size : start;
        end = end < 0 ? end + size : end > size ? size : end;
        fits = step > 0 && start >= 0 && start <= end && s->rank == o->rank;
        for (int i = 0; fits && i < s->rank; i++)
            fits = o->dims[i] == (i == dim ? (end - start + step - 1) / step : s->dims[i]);
        op_check(&op, fits, "out has another shape");
    }
    if (op.e != NULL) {
        op.e->ints[0] = dim;
        op.e->ints[1] = start;
        op.e->ints[2] = step;
    }
    return op_end(&op, slice_run, workspace_size, executor);
}

/* ---- Arange: start, start + step, ... below end ---- */

static void arange_run(struct aclOpExecutor *e)
{
    const int64_t count = tensor_count(&e->tensors[0]);
    double *values = take((size_t)count, sizeof(*values));

    for (int64_t i = 0; i < count; i++)
        values[i] = e->reals[0] + (double)i * e->reals[1];
    tensor_store(&e->tensors[0], values);
    free(values);
}

OPERATOR(Arange, const aclScalar *start, const aclScalar *end, const aclScalar *step,
         aclTensor *out)
{
    struct op op = OP(Arange);
    const double from = op_scalar(&op, "start", start), to = op_scalar(&op, "end", end);
    const double by = op_scalar(&op, "step", step);

    op_out(&op, "out", out, NUMBERS);
    op_check(&op, op.e == NULL || (by != 0 && ceil((to - from) / by) ==
                                                  (double)tensor_count(op_tensor(&op, 0))),
             "out has another number of elements");
    if (op.e != NULL) {
        op.e->reals[0] = from;
        op.e->reals[1] = by;
    }
    return op_end(&op, arange_run, workspace_size, executor);
}
