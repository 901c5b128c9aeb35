/* tests/cann/ops/norm.c - what works on lines: norms, softmax, gated activations (ops-nn). */
#include "op.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- RmsNorm: y = x / sqrt(mean(x^2) + epsilon) * gamma over gamma's dims ---- */

static void rms_norm_run(struct aclOpExecutor *e)
{
    const int64_t width = tensor_count(&e->tensors[1]);
    const int64_t count = width > 0 ? tensor_count(&e->tensors[0]) / width : 0;
    double *x = tensor_load(&e->tensors[0]), *gamma = tensor_load(&e->tensors[1]);
    double *rstd = take((size_t)count, sizeof(*rstd));

    for (int64_t i = 0; i < count; i++) {
        double *row = x + i * width;
        rstd[i] = 1 / sqrt(dot(row, row, width) / (double)width + e->reals[0]);
        for (int64_t j = 0; j < width; j++)
            row[j] *= rstd[i] * gamma[j];
    }
    tensor_store(&e->tensors[2], x);
    tensor_store(&e->tensors[3], rstd);
    free(x);
    free(gamma);
    free(rstd);
}

OPERATOR(RmsNorm, const aclTensor *x, const aclTensor *gamma, double epsilon, const aclTensor *y,
         const aclTensor *rstd)
{
    struct op op = OP(RmsNorm);
    const struct aclTensor *t, *g;
    bool fits;

    op_in(&op, "x", x, FLOATS);
    op_in(&op, "gamma", gamma, FLOATS);
    op_out(&op, "yOut", y, FLOATS);
    op_out(&op, "rstdOut", rstd, DT(FLOAT));
    op_same_dtype(&op, 0, 2);
    t = op_tensor(&op, 0);
    g = op_tensor(&op, 1);
    op_check(&op, g->dtype == t->dtype || (g->dtype == ACL_FLOAT && t->dtype != ACL_FLOAT),
             "gamma has neither x's data type nor FLOAT");
    fits = op.e == NULL || (g->rank >= 1 && g->rank <= t->rank &&
                            memcmp(g->dims, t->dims + t->rank - g->rank,
                                   (size_t)g->rank * sizeof(g->dims[0])) == 0);
    op_check_tiling(&op, fits, "gamma's dims are not x's last ones");
    t = op_tensor(&op, 0);
    g = op_tensor(&op, 1);
    op_check_tiling(&op, op.e == NULL || tensor_count(g) == 0 ||
                    tensor_count(op_tensor(&op, 3)) == tensor_count(t) / tensor_count(g),
                    "rstdOut has not one element for each norm");
    op_same_shape(&op, 0, 2);
    if (op.e != NULL)
        op.e->reals[0] = epsilon;
    return op_end(&op, rms_norm_run, workspace_size, executor);
}

/* ---- Softmax along a dim, of x - max(x) ---- */

static void softmax_line(double *x, int64_t count)
{
    double top = -INFINITY, sum = 0;

    for (int64_t i = 0; i < count; i++)
        top = fmax(top, x[i]);
    for (int64_t i = 0; i < count; i++)
        sum += x[i] = exp(x[i] - top);
    for (int64_t i = 0; i < count; i++)
        x[i] /= sum;
}

/* Calls `f` on each line along `dim`, as packed numbers, and stores the result. */
static void lines_run(struct aclOpExecutor *e, int dim, void (*f)(double *x, int64_t count))
{
    const struct aclTensor *in = &e->tensors[0];
    struct aclTensor *out = &e->tensors[1], others = *in;
    const int64_t count = in->dims[dim];
    double *line = take((size_t)count, sizeof(*line));
    int64_t at[RANK_MAX] = { 0 };

    others.dims[dim] = 1;
    if (tensor_count(in) > 0) {
        do {
            tensor_line(in, at, dim, line);
            f(line, count);
            for (int64_t i = 0; i < count; i++) {
                at[dim] = i;
                element_set(out->dtype, out->bytes, tensor_index(out, at), line[i]);
            }
            at[dim] = 0;
        } while (next_at(&others, at));
    }
    free(line);
}

static void softmax_run(struct aclOpExecutor *e)
{
    lines_run(e, (int)e->ints[0], softmax_line);
}

OPERATOR(Softmax, const aclTensor *self, int64_t dim, aclTensor *out)
{
    struct op op = OP(Softmax);

    op_in(&op, "self", self, FLOATS | DT(DOUBLE));
    op_out(&op, "out", out, FLOATS | DT(DOUBLE));
    op_same_shape(&op, 0, 1);
    op_check(&op, op.e == NULL || op_tensor(&op, 0)->rank > 0, "a scalar");
    dim = op_dim(&op, dim, op_tensor(&op, 0)->rank);
    if (op.e != NULL)
        op.e->ints[0] = dim;
    return op_end(&op, softmax_run, workspace_size, executor);
}

/* ---- SwiGlu: silu(first half along dim) * second half ---- */

static void swiglu_run(struct aclOpExecutor *e)
{
    const struct aclTensor *x = &e->tensors[0];
    struct aclTensor *out = &e->tensors[1];
    const int dim = (int)e->ints[0];
    const int64_t half = out->dims[dim];
    int64_t at[RANK_MAX] = { 0 };
    double a, b;

    if (tensor_count(out) == 0)
        return;
    do {
        a = element_get(x->dtype, x->bytes, tensor_index(x, at));
        at[dim] += half;
        b = element_get(x->dtype, x->bytes, tensor_index(x, at));
        at[dim] -= half;
        element_set(out->dtype, out->bytes, tensor_index(out, at), a / (1 + exp(-a)) * b);
    } while (next_at(out, at));
}

OPERATOR(SwiGlu, const aclTensor *x, int64_t dim, const aclTensor *out)
{
    struct op op = OP(SwiGlu);
    const struct aclTensor *t, *o;
    bool fits;

    op_in(&op, "x", x, FLOATS);
    op_out(&op, "out", out, FLOATS);
    op_same_dtype(&op, 0, 1);
    op_contiguous(&op, 0);
    op_contiguous(&op, 1);
    op_check(&op, op.e == NULL || op_tensor(&op, 0)->rank > 0, "a scalar");
    dim = op_dim(&op, dim, op_tensor(&op, 0)->rank);
    t = op_tensor(&op, 0);
    o = op_tensor(&op, 1);
    fits = op.e == NULL || t->rank == o->rank;
    for (int i = 0; fits && i < t->rank; i++)
        fits = t->dims[i] == (i == dim ? 2 * o->dims[i] : o->dims[i]);
    op_check(&op, fits, "out is not half of x");
    if (op.e != NULL)
        op.e->ints[0] = dim;
    return op_end(&op, swiglu_run, workspace_size, executor);
}
