/* tests/cann/ops/order.c - what compares elements of a line: sorting, the largest ones (ops-math,
 * ops-nn). Equal elements keep their order; NaN counts as the largest. */
#include "op.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    double value;
    int64_t index;
};

static int by_value(double a, double b)
{
    if (isnan(a) || isnan(b))
        return isnan(a) - isnan(b);
    return (a > b) - (a < b);
}

static int ascending(const void *left, const void *right)
{
    const struct entry *a = left, *b = right;
    const int order = by_value(a->value, b->value);
    return order != 0 ? order : (a->index > b->index) - (a->index < b->index);
}

static int descending(const void *left, const void *right)
{
    const struct entry *a = left, *b = right;
    const int order = by_value(b->value, a->value);
    return order != 0 ? order : (a->index > b->index) - (a->index < b->index);
}

/* Writes the first elements of each sorted line: as many as the results have along the dim. ints:
 * dim, descending, where values go, where indices go (-1: nowhere), whether the results lack the
 * dim. */
static void sort_run(struct aclOpExecutor *e)
{
    const struct aclTensor *self = &e->tensors[0];
    const int dim = (int)e->ints[0];
    const int64_t count = self->dims[dim];
    const bool lacks_dim = e->ints[4] != 0;
    struct entry *entries = take((size_t)count, sizeof(*entries));
    double *line = take((size_t)count, sizeof(*line));
    struct aclTensor others = *self;
    int64_t at[RANK_MAX] = { 0 };

    others.dims[dim] = 1;
    if (tensor_count(self) > 0) {
        do {
            tensor_line(self, at, dim, line);
            for (int64_t i = 0; i < count; i++)
                entries[i] = (struct entry){ line[i], i };
            qsort(entries, (size_t)count, sizeof(*entries),
                  e->ints[1] != 0 ? descending : ascending);
            for (int which = 2; which < 4; which++) {
                struct aclTensor *out = e->ints[which] >= 0 ? &e->tensors[e->ints[which]] : NULL;
                const int64_t kept = out == NULL ? 0 : lacks_dim ? 1 : out->dims[dim];
                int64_t to[RANK_MAX];
                memcpy(to, at, sizeof(to));
                if (lacks_dim)
                    memmove(to + dim, to + dim + 1,
                            (size_t)(RANK_MAX - dim - 1) * sizeof(to[0]));
                for (int64_t i = 0; i < kept; i++) {
                    if (!lacks_dim)
                        to[dim] = i;
                    element_set(out->dtype, out->bytes, tensor_index(out, to),
                                which == 2 ? entries[i].value : (double)entries[i].index);
                }
            }
        } while (next_at(&others, at));
    }
    free(entries);
    free(line);
}

/* self's shape with `kept` along dim, or without the dim. */
static void check_shape(struct op *op, unsigned which, int64_t dim, int64_t kept, bool lacks_dim)
{
    const struct aclTensor *s = op_tensor(op, 0), *o = op_tensor(op, which);
    bool fits = o->rank == s->rank - lacks_dim;

    if (op->e == NULL)
        return;
    for (int i = 0; fits && i < o->rank; i++)
        fits = o->dims[i] == (lacks_dim ? s->dims[i + (i >= dim)] : i == dim ? kept : s->dims[i]);
    op_check(op, fits, "a result has another shape");
}

/* values or indices may be NULL where the operator has none. kept -1: all. */
static aclnnStatus sorted(struct op *op, const aclTensor *self, int64_t dim, bool falls,
                          int64_t kept, bool lacks_dim, const aclTensor *values,
                          const aclTensor *indices, uint64_t index_types,
                          uint64_t *workspace_size, aclOpExecutor **executor)
{
    const bool both = values != NULL && indices != NULL;

    op_in(op, "self", self, NUMBERS);
    op_check(op, op->e == NULL || op_tensor(op, 0)->rank > 0, "a scalar");
    dim = op_dim(op, dim, op_tensor(op, 0)->rank);
    if (op->e != NULL && kept == -1)
        kept = op_tensor(op, 0)->dims[dim];
    op_check(op, op->e == NULL || (kept >= 0 && kept <= op_tensor(op, 0)->dims[dim]), "k");
    if (values != NULL) {
        op_out(op, "values", values, NUMBERS);
        op_same_dtype(op, 0, 1);
        check_shape(op, 1, dim, kept, lacks_dim);
    }
    if (indices != NULL) {
        op_out(op, "indices", indices, index_types);
        check_shape(op, both ? 2 : 1, dim, kept, lacks_dim);
    }
    if (op->e != NULL) {
        op->e->ints[0] = dim;
        op->e->ints[1] = falls;
        op->e->ints[2] = values != NULL ? 1 : -1;
        op->e->ints[3] = indices == NULL ? -1 : both ? 2 : 1;
        op->e->ints[4] = lacks_dim;
    }
    return op_end(op, sort_run, workspace_size, executor);
}

/* Both results are required. */
static void need(struct op *op, const aclTensor *values, const aclTensor *indices)
{
    if (values == NULL)
        op_in(op, "values", NULL, 0);
    if (indices == NULL)
        op_in(op, "indices", NULL, 0);
}

OPERATOR(Topk, const aclTensor *self, int64_t k, int64_t dim, bool largest, bool is_sorted,
         aclTensor *values, aclTensor *indices)
{
    struct op op = OP(Topk);

    (void)is_sorted; /* unsorted results may have any order: this one too */
    need(&op, values, indices);
    return sorted(&op, self, dim, largest, k, false, values, indices, DT(INT64), workspace_size,
                  executor);
}

OPERATOR(Sort, const aclTensor *self, bool stable, int64_t dim, bool falls, aclTensor *values,
         aclTensor *indices)
{
    struct op op = OP(Sort);

    (void)stable;
    need(&op, values, indices);
    return sorted(&op, self, dim, falls, -1, false, values, indices, DT(INT64), workspace_size,
                  executor);
}

OPERATOR(Argsort, const aclTensor *self, int64_t dim, bool falls, aclTensor *out)
{
    struct op op = OP(Argsort);

    need(&op, self, out);
    return sorted(&op, self, dim, falls, -1, false, NULL, out, DT(INT64), workspace_size,
                  executor);
}

OPERATOR(ArgMax, const aclTensor *self, int64_t dim, bool keep_dim, aclTensor *out)
{
    struct op op = OP(ArgMax);

    need(&op, self, out);
    return sorted(&op, self, dim, true, 1, !keep_dim, NULL, out, INDICES, workspace_size,
                  executor);
}

OPERATOR(MaxDim, const aclTensor *self, int64_t dim, bool keep_dim, aclTensor *out,
         aclTensor *indices)
{
    struct op op = OP(MaxDim);

    need(&op, out, indices);
    return sorted(&op, self, dim, true, 1, !keep_dim, out, indices, INDICES, workspace_size,
                  executor);
}
