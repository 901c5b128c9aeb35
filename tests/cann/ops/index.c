/* tests/cann/ops/index.c - rows by their number: reading, writing (ops-nn). An index out of range
 * is a fault: hardware reads or writes what lies there. */
#include "op.h"

#include <stdlib.h>
#include <string.h>

static bool is_in_range(const struct aclOpExecutor *e, int64_t index, int64_t count)
{
    if (index >= 0 && index < count)
        return true;
    standin_fault("%s: index %lld of %lld", e->name, (long long)index, (long long)count);
    return false;
}

/* ---- IndexSelect(self, dim, index, out), and the others that read ---- */

/* out[.. i ..] = self[.. index[i] ..] along ints[0] */
static void select_run(struct aclOpExecutor *e)
{
    const struct aclTensor *self = &e->tensors[0];
    struct aclTensor *out = &e->tensors[2];
    double *index = tensor_load(&e->tensors[1]);
    const int dim = (int)e->ints[0];
    int64_t at[RANK_MAX] = { 0 };

    if (tensor_count(out) > 0) {
        do {
            const int64_t to = at[dim], from = (int64_t)index[to];
            double value;
            if (!is_in_range(e, from, self->dims[dim]))
                break;
            at[dim] = from;
            value = element_get(self->dtype, self->bytes, tensor_index(self, at));
            at[dim] = to;
            element_set(out->dtype, out->bytes, tensor_index(out, at), value);
        } while (next_at(out, at));
    }
    free(index);
}

/* Shape of `whole` with `count` along dim? */
static bool has_shape(const struct aclTensor *t, const struct aclTensor *whole, int64_t dim,
                      int64_t count)
{
    bool fits = t->rank == whole->rank;

    for (int i = 0; fits && i < t->rank; i++)
        fits = t->dims[i] == (i == dim ? count : whole->dims[i]);
    return fits;
}

OPERATOR(IndexSelect, const aclTensor *self, int64_t dim, const aclTensor *index, aclTensor *out)
{
    struct op op = OP(IndexSelect);

    op_in(&op, "self", self, NUMBERS);
    op_in(&op, "index", index, INDICES);
    op_out(&op, "out", out, NUMBERS);
    op_same_dtype(&op, 0, 2);
    op_contiguous(&op, 1);
    op_contiguous(&op, 2);
    op_check(&op, op_tensor(&op, 1)->rank <= 1, "index has more than one dim");
    op_check(&op, op.e == NULL || op_tensor(&op, 0)->rank > 0, "a scalar");
    dim = op_dim(&op, dim, op_tensor(&op, 0)->rank);
    op_check(&op, op.e == NULL || has_shape(op_tensor(&op, 2), op_tensor(&op, 0), dim,
                                            tensor_count(op_tensor(&op, 1))),
             "out has another shape");
    if (op.e != NULL)
        op.e->ints[0] = dim;
    return op_end(&op, select_run, workspace_size, executor);
}

/* ---- Embedding(weight[rows][width], indices, out[indices' dims][width]) ---- */

static void embedding_run(struct aclOpExecutor *e)
{
    const struct aclTensor *weight = &e->tensors[0];
    const int64_t width = weight->dims[1], count = tensor_count(&e->tensors[1]);
    double *index = tensor_load(&e->tensors[1]);
    double *rows = take((size_t)(count * width), sizeof(*rows));
    bool good = true;

    for (int64_t i = 0; i < count && good; i++) {
        const int64_t at[RANK_MAX] = { (int64_t)index[i] };
        good = is_in_range(e, at[0], weight->dims[0]);
        if (good)
            tensor_line(weight, at, 1, rows + i * width);
    }
    if (good)
        tensor_store(&e->tensors[2], rows);
    free(rows);
    free(index);
}

OPERATOR(Embedding, const aclTensor *weight, const aclTensor *indices, const aclTensor *out)
{
    struct op op = OP(Embedding);
    const struct aclTensor *w, *i, *o;

    op_in(&op, "weight", weight, NUMBERS);
    op_in(&op, "indices", indices, INDICES);
    op_out(&op, "out", out, NUMBERS);
    op_same_dtype(&op, 0, 2);
    op_contiguous(&op, 2);
    w = op_tensor(&op, 0);
    i = op_tensor(&op, 1);
    o = op_tensor(&op, 2);
    op_check(&op, op.e == NULL || (w->rank == 2 && o->rank == i->rank + 1 &&
                                   o->dims[o->rank - 1] == w->dims[1] &&
                                   memcmp(o->dims, i->dims,
                                          (size_t)i->rank * sizeof(i->dims[0])) == 0),
             "out is not [indices, width]");
    return op_end(&op, embedding_run, workspace_size, executor);
}

/* ---- Gather(self, dim, index, out): out[i][j] = self[index[i][j]][j] for dim 0 ---- */

static void gather_run(struct aclOpExecutor *e)
{
    const struct aclTensor *self = &e->tensors[0], *index = &e->tensors[1];
    struct aclTensor *out = &e->tensors[2];
    const int dim = (int)e->ints[0];
    int64_t at[RANK_MAX] = { 0 };

    if (tensor_count(out) == 0)
        return;
    do {
        int64_t from[RANK_MAX];
        memcpy(from, at, sizeof(from));
        from[dim] = (int64_t)element_get(index->dtype, index->bytes, tensor_index(index, at));
        if (!is_in_range(e, from[dim], self->dims[dim]))
            return;
        element_set(out->dtype, out->bytes, tensor_index(out, at),
                    element_get(self->dtype, self->bytes, tensor_index(self, from)));
    } while (next_at(out, at));
}

OPERATOR(Gather, const aclTensor *self, const int64_t dim, const aclTensor *index, aclTensor *out)
{
    struct op op = OP(Gather);
    const struct aclTensor *s, *i;
    int64_t along;
    bool fits;

    op_in(&op, "self", self, NUMBERS);
    op_in(&op, "index", index, INDICES);
    op_out(&op, "out", out, NUMBERS);
    op_same_dtype(&op, 0, 2);
    op_same_shape(&op, 1, 2);
    op_check(&op, op.e == NULL || op_tensor(&op, 0)->rank > 0, "a scalar");
    along = op_dim(&op, dim, op_tensor(&op, 0)->rank);
    s = op_tensor(&op, 0);
    i = op_tensor(&op, 1);
    fits = op.e == NULL || s->rank == i->rank;
    for (int d = 0; fits && d < s->rank; d++)
        fits = d == along || i->dims[d] <= s->dims[d];
    op_check(&op, fits, "index is larger than self");
    if (op.e != NULL)
        op.e->ints[0] = along;
    return op_end(&op, gather_run, workspace_size, executor);
}

/* ---- InplaceIndexCopy(self, dim, index, source): self[.. index[i] ..] = source[.. i ..] ---- */

static void index_copy_run(struct aclOpExecutor *e)
{
    struct aclTensor *self = &e->tensors[0];
    const struct aclTensor *source = &e->tensors[2];
    double *index = tensor_load(&e->tensors[1]);
    const int dim = (int)e->ints[0];
    int64_t at[RANK_MAX] = { 0 };

    if (tensor_count(source) > 0) {
        do {
            const int64_t from = at[dim], to = (int64_t)index[from];
            const double value = element_get(source->dtype, source->bytes,
                                             tensor_index(source, at));
            if (!is_in_range(e, to, self->dims[dim]))
                break;
            at[dim] = to;
            element_set(self->dtype, self->bytes, tensor_index(self, at), value);
            at[dim] = from;
        } while (next_at(source, at));
    }
    free(index);
}

OPERATOR(InplaceIndexCopy, aclTensor *self, int64_t dim, const aclTensor *index,
         const aclTensor *source)
{
    struct op op = OP(InplaceIndexCopy);

    op_inout(&op, "selfRef", self, NUMBERS);
    op_in(&op, "index", index, INDICES);
    op_in(&op, "source", source, NUMBERS);
    op_same_dtype(&op, 0, 2);
    op_check(&op, op_tensor(&op, 1)->rank <= 1, "index has more than one dim");
    op_check(&op, op.e == NULL || op_tensor(&op, 0)->rank > 0, "a scalar");
    dim = op_dim(&op, dim, op_tensor(&op, 0)->rank);
    op_check(&op, op.e == NULL || has_shape(op_tensor(&op, 2), op_tensor(&op, 0), dim,
                                            tensor_count(op_tensor(&op, 1))),
             "source has another shape");
    if (op.e != NULL)
        op.e->ints[0] = dim;
    return op_end(&op, index_copy_run, workspace_size, executor);
}

/* ---- ScatterNdUpdate(var, indices[.., n], updates): var[indices[i]] = updates[i] ---- */

static void scatter_nd_run(struct aclOpExecutor *e)
{
    struct aclTensor *var = &e->tensors[0];
    const struct aclTensor *indices = &e->tensors[1];
    const int depth = (int)indices->dims[indices->rank - 1];
    const int64_t count = tensor_count(indices) / (depth > 0 ? depth : 1);
    double *index = tensor_load(indices), *updates = tensor_load(&e->tensors[2]);
    int64_t width = 1;

    for (int d = depth; d < var->rank; d++)
        width *= var->dims[d];
    for (int64_t i = 0; i < count; i++) {
        int64_t at[RANK_MAX] = { 0 };
        bool good = true;
        for (int d = 0; d < depth && good; d++) {
            at[d] = (int64_t)index[i * depth + d];
            good = is_in_range(e, at[d], var->dims[d]);
        }
        if (!good)
            break;
        for (int64_t j = 0; j < width; j++) {
            element_set(var->dtype, var->bytes, tensor_index(var, at), updates[i * width + j]);
            (void)next_at(var, at);
        }
    }
    free(index);
    free(updates);
}

OPERATOR(ScatterNdUpdate, aclTensor *var, const aclTensor *indices, const aclTensor *updates)
{
    struct op op = OP(ScatterNdUpdate);
    const struct aclTensor *v, *i, *u;
    int64_t depth;
    bool fits;

    op_inout(&op, "varRef", var, NUMBERS);
    op_in(&op, "indices", indices, INDICES);
    op_in(&op, "updates", updates, NUMBERS);
    op_same_dtype(&op, 0, 2);
    v = op_tensor(&op, 0);
    i = op_tensor(&op, 1);
    u = op_tensor(&op, 2);
    depth = i->rank > 0 ? i->dims[i->rank - 1] : 0;
    fits = op.e == NULL || (depth >= 1 && depth <= v->rank &&
                            u->rank == i->rank - 1 + v->rank - (int)depth);
    for (int d = 0; op.e != NULL && fits && d < u->rank; d++)
        fits = u->dims[d] == (d < i->rank - 1 ? i->dims[d] : v->dims[depth + d - (i->rank - 1)]);
    op_check(&op, fits, "updates has another shape");
    return op_end(&op, scatter_nd_run, workspace_size, executor);
}
