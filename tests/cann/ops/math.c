/* tests/cann/ops/math.c - element by element: sums, products, activations, and the like. Each has
 * its formula in one line. */
#include "op.h"

#include <math.h>
#include <stdlib.h>

/* ---- one operand ---- */

static void map(struct aclOpExecutor *e, double (*f)(double x))
{
    const int64_t count = tensor_count(&e->tensors[0]);
    double *x = tensor_load(&e->tensors[0]);

    for (int64_t i = 0; i < count; i++)
        x[i] = f(x[i]);
    tensor_store(&e->tensors[1], x);
    free(x);
}

static double silu(double x)
{
    return x / (1 + exp(-x));
}

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

#define MAP(Name, function, self)                                                               \
    static void Name##_run(struct aclOpExecutor *e)                                             \
    {                                                                                           \
        map(e, function);                                                                       \
    }                                                                                           \
    OPERATOR(Name, const aclTensor *self, aclTensor *out) /* NOLINT */                            \
    {                                                                                           \
        struct op op = OP(Name);                                                                \
        op_in(&op, #self, self, FLOATS);                                                        \
        op_out(&op, "out", out, FLOATS);                                                        \
        op_same_dtype(&op, 0, 1);                                                               \
        op_same_shape(&op, 0, 1);                                                               \
        return op_end(&op, Name##_run, workspace_size, executor);                               \
    }
static double gelu_erf(double x)
{
    return x * (1 + erf(x * sqrt(0.5))) / 2;
}

static double gelu_tanh(double x)
{
    return x / (1 + exp(-2 * sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x))); /* the same */
}

MAP(Silu, silu, self)
MAP(Tanh, tanh, self)
MAP(Sigmoid, sigmoid, self)
MAP(Sin, sin, input)
MAP(Cos, cos, input)

/* ints[0]: approximate. */
static void gelu_run(struct aclOpExecutor *e)
{
    map(e, e->ints[0] != 0 ? gelu_tanh : gelu_erf);
}

OPERATOR(GeluV2, const aclTensor *x, int64_t approximate, aclTensor *y)
{
    struct op op = OP(GeluV2);

    op_in(&op, "x", x, FLOATS);
    op_out(&op, "y", y, FLOATS);
    op_same_dtype(&op, 0, 1);
    op_same_shape(&op, 0, 1);
    op_check(&op, approximate == 0 || approximate == 1, "approximate");
    if (op.e != NULL)
        op.e->ints[0] = approximate;
    return op_end(&op, gelu_run, workspace_size, executor);
}

/* reals: the bounds. NaN stays. */
static void clamp_run(struct aclOpExecutor *e)
{
    const int64_t count = tensor_count(&e->tensors[0]);
    double *x = tensor_load(&e->tensors[0]);

    for (int64_t i = 0; i < count; i++) {
        x[i] = x[i] > e->reals[1] ? e->reals[1] : x[i];
        x[i] = x[i] < e->reals[0] ? e->reals[0] : x[i];
    }
    tensor_store(&e->tensors[1], x);
    free(x);
}

OPERATOR(Clamp, const aclTensor *self, const aclScalar *min, const aclScalar *max, aclTensor *out)
{
    struct op op = OP(Clamp);
    const double low = min != NULL ? op_scalar(&op, "clipValueMin", min) : (double)-INFINITY;
    const double high = max != NULL ? op_scalar(&op, "clipValueMax", max) : (double)INFINITY;

    op_in(&op, "self", self, NUMBERS);
    op_out(&op, "out", out, NUMBERS);
    op_same_dtype(&op, 0, 1);
    op_same_shape(&op, 0, 1);
    op_check(&op, min != NULL || max != NULL, "a bound");
    if (op.e != NULL) {
        op.e->reals[0] = low;
        op.e->reals[1] = high;
    }
    return op_end(&op, clamp_run, workspace_size, executor);
}

/* ---- two operands, broadcast ---- */

enum { SUM_ALPHA, PRODUCT, QUOTIENT };

/* reals[0]: alpha, with its sign. The last tensor is the result. */
static void pair_run(struct aclOpExecutor *e)
{
    struct aclTensor *out = &e->tensors[e->tensor_count - 1];
    double *a = tensor_load_like(&e->tensors[0], out);
    double *b = tensor_load_like(&e->tensors[1], out);
    const int64_t count = tensor_count(out);

    for (int64_t i = 0; i < count; i++) {
        switch (e->ints[0]) {
        case SUM_ALPHA: a[i] += e->reals[0] * b[i]; break;
        case PRODUCT: a[i] *= b[i]; break;
        default: a[i] /= b[i]; break;
        }
    }
    tensor_store(out, a);
    free(a);
    free(b);
}

/* Operands of two data types are allowed where one holds all values of the other; the stand-in
 * wants them equal, which every release accepts. */
static aclnnStatus pair(struct op *op, const aclTensor *self, const aclTensor *other,
                        aclTensor *out, int64_t kind, double alpha, uint64_t *workspace_size,
                        aclOpExecutor **executor)
{
    op_in(op, "self", self, NUMBERS);
    op_in(op, "other", other, NUMBERS);
    op_out(op, "out", out, NUMBERS);
    op_same_dtype(op, 0, 1);
    op_same_dtype(op, 0, 2);
    op_broadcast(op, 0, 1, 2);
    if (op->e != NULL) {
        op->e->ints[0] = kind;
        op->e->reals[0] = alpha;
    }
    return op_end(op, pair_run, workspace_size, executor);
}

static void pair_in_place_run(struct aclOpExecutor *e)
{
    struct aclTensor *out = &e->tensors[0];
    double *a = tensor_load(out), *b = tensor_load_like(&e->tensors[1], out);
    const int64_t count = tensor_count(out);

    for (int64_t i = 0; i < count; i++)
        a[i] = e->ints[0] == PRODUCT ? a[i] * b[i] : a[i] + e->reals[0] * b[i];
    tensor_store(out, a);
    free(a);
    free(b);
}

static aclnnStatus pair_in_place(struct op *op, const aclTensor *self, const aclTensor *other,
                                 int64_t kind, double alpha, uint64_t *workspace_size,
                                 aclOpExecutor **executor)
{
    op_inout(op, "self", self, NUMBERS);
    op_in(op, "other", other, NUMBERS);
    op_same_dtype(op, 0, 1);
    op_broadcast(op, 0, 1, 0);
    if (op->e != NULL) {
        op->e->ints[0] = kind;
        op->e->reals[0] = alpha;
    }
    return op_end(op, pair_in_place_run, workspace_size, executor);
}

OPERATOR(Add, const aclTensor *self, const aclTensor *other, const aclScalar *alpha, aclTensor *out)
{
    struct op op = OP(Add);
    const double a = op_scalar(&op, "alpha", alpha);
    return pair(&op, self, other, out, SUM_ALPHA, a, workspace_size, executor);
}

OPERATOR(Sub, const aclTensor *self, const aclTensor *other, const aclScalar *alpha, aclTensor *out)
{
    struct op op = OP(Sub);
    const double a = op_scalar(&op, "alpha", alpha);
    return pair(&op, self, other, out, SUM_ALPHA, -a, workspace_size, executor);
}

OPERATOR(Mul, const aclTensor *self, const aclTensor *other, aclTensor *out)
{
    struct op op = OP(Mul);
    return pair(&op, self, other, out, PRODUCT, 0, workspace_size, executor);
}

OPERATOR(Div, const aclTensor *self, const aclTensor *other, aclTensor *out)
{
    struct op op = OP(Div);
    return pair(&op, self, other, out, QUOTIENT, 0, workspace_size, executor);
}

OPERATOR(InplaceAdd, const aclTensor *self, const aclTensor *other, const aclScalar *alpha)
{
    struct op op = OP(InplaceAdd);
    const double a = op_scalar(&op, "alpha", alpha);
    return pair_in_place(&op, self, other, SUM_ALPHA, a, workspace_size, executor);
}

OPERATOR(InplaceMul, aclTensor *self, const aclTensor *other)
{
    struct op op = OP(InplaceMul);
    return pair_in_place(&op, self, other, PRODUCT, 0, workspace_size, executor);
}

/* ---- with a number: out = self * reals[0] + reals[1] ---- */

static void affine_run(struct aclOpExecutor *e)
{
    const int64_t count = tensor_count(&e->tensors[0]);
    double *x = tensor_load(&e->tensors[0]);

    for (int64_t i = 0; i < count; i++)
        x[i] = x[i] * e->reals[0] + e->reals[1];
    tensor_store(&e->tensors[e->tensor_count - 1], x);
    free(x);
}

static aclnnStatus affine(struct op *op, const aclTensor *self, aclTensor *out, double factor,
                          double summand, uint64_t *workspace_size, aclOpExecutor **executor)
{
    if (out != NULL) {
        op_in(op, "self", self, NUMBERS);
        op_out(op, "out", out, NUMBERS);
        op_same_dtype(op, 0, 1);
        op_same_shape(op, 0, 1);
    } else {
        op_inout(op, "self", self, NUMBERS);
    }
    if (op->e != NULL) {
        op->e->reals[0] = factor;
        op->e->reals[1] = summand;
    }
    return op_end(op, affine_run, workspace_size, executor);
}

OPERATOR(Muls, const aclTensor *self, const aclScalar *other, aclTensor *out)
{
    struct op op = OP(Muls);
    const double factor = op_scalar(&op, "other", other);
    return affine(&op, self, out, factor, 0, workspace_size, executor);
}

OPERATOR(InplaceMuls, aclTensor *self, const aclScalar *other)
{
    struct op op = OP(InplaceMuls);
    const double factor = op_scalar(&op, "other", other);
    return affine(&op, self, NULL, factor, 0, workspace_size, executor);
}

OPERATOR(Adds, const aclTensor *self, const aclScalar *other, const aclScalar *alpha,
         aclTensor *out)
{
    struct op op = OP(Adds);
    const double a = op_scalar(&op, "alpha", alpha), b = op_scalar(&op, "other", other);
    return affine(&op, self, out, 1, a * b, workspace_size, executor);
}

OPERATOR(InplaceAdds, const aclTensor *self, const aclScalar *other, const aclScalar *alpha)
{
    struct op op = OP(InplaceAdds);
    const double a = op_scalar(&op, "alpha", alpha), b = op_scalar(&op, "other", other);
    return affine(&op, self, NULL, 1, a * b, workspace_size, executor);
}
