/* tests/cann/ops/op.c - the checks that first phases share, and their executors. */
#include "op.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORKSPACE_BYTES 4096 /* of every operator: never zero, so that nobody forgets it */

struct op op_begin(const char *name)
{
    struct op op = { .name = name };

    if (standin_context(name) == NULL) {
        op.code = E_NN_RUNTIME;
        return op;
    }
    op.e = executor_new(name);
    if (op.e == NULL)
        op.code = standin_error(E_NN_RUNTIME, "%s: no memory", name);
    return op;
}

static void fail(struct op *op, int code)
{
    op->code = code;
    if (op->e != NULL)
        op->dead = op->e;
    op->e = NULL;
}

bool op_refuse(struct op *op, const char *format, ...)
{
    char text[256];
    va_list args;

    if (op->e == NULL)
        return false;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    fail(op, standin_error(E_NN_INVALID, "%sGetWorkspaceSize: %s", op->name, text));
    return false;
}

void op_check(struct op *op, bool good, const char *what)
{
    if (!good)
        op_refuse(op, "%s", what);
}

void op_check_tiling(struct op *op, bool good, const char *what)
{
    if (!good && op->e != NULL)
        fail(op, standin_error(E_NN_TILING, "%sGetWorkspaceSize: %s", op->name, what));
}

void op_contiguous(struct op *op, unsigned i)
{
    if (!tensor_is_contiguous(op_tensor(op, i)))
        op_refuse(op, "tensor %u has gaps, which the documents don't allow", i);
}

/* Do all elements of an ND view lie in its storage? */
static bool is_inside(const struct aclTensor *t)
{
    int64_t low = t->offset, high = low, storage = 1;

    if (tensor_count(t) == 0)
        return true;
    for (int i = 0; i < t->storage_rank; i++)
        storage *= t->storage[i];
    for (int i = 0; i < t->rank; i++) {
        const int64_t step = (t->dims[i] - 1) * t->strides[i];
        low += step < 0 ? step : 0;
        high += step > 0 ? step : 0;
    }
    return low >= 0 && high < storage;
}

static void add(struct op *op, const char *what, const aclTensor *t, uint64_t dtypes, bool may_nz,
                enum role role)
{
    if (op->e == NULL)
        return;
    if (t == NULL) {
        fail(op, standin_error(E_NN_NULL, "%sGetWorkspaceSize: %s is NULL", op->name, what));
        return;
    }
    if (t->magic != TENSOR_MAGIC) {
        op_refuse(op, "%s is no tensor", what);
        return;
    }
    if ((int)t->dtype < 0 || (int)t->dtype > 63 || (dtypes >> (int)t->dtype & 1) == 0)
        op_refuse(op, "%s has data type %d", what, (int)t->dtype);
    else if (t->dtype == ACL_BF16 && strncmp(standin_settings.soc, "Ascend310P", 10) == 0)
        op_refuse(op, "%s is BF16, which this chip has not", what);
    else if (t->format != ACL_FORMAT_ND && (t->format != ACL_FORMAT_FRACTAL_NZ || !may_nz))
        op_refuse(op, "%s has format %d", what, (int)t->format);
    else if (t->format == ACL_FORMAT_FRACTAL_NZ && !tensor_nz_storage_is_right(t))
        op_refuse(op, "%s: its storage is not the NZ form of its dims and strides", what);
    else if (t->format == ACL_FORMAT_ND && !is_inside(t))
        op_refuse(op, "%s reaches out of its storage", what);
    else if (t->data == NULL && tensor_count(t) > 0)
        op_refuse(op, "%s has no memory", what);
    else if ((uintptr_t)t->data % dtype_bytes(t->dtype) != 0)
        op_refuse(op, "%s is not aligned to its elements", what);
    else if (!executor_add(op->e, t, role))
        op_refuse(op, "no memory");
}

void op_in(struct op *op, const char *what, const aclTensor *t, uint64_t dtypes)
{
    add(op, what, t, dtypes, false, ROLE_INPUT);
}

void op_in_weight(struct op *op, const char *what, const aclTensor *t, uint64_t dtypes)
{
    add(op, what, t, dtypes, true, ROLE_INPUT);
}

void op_out(struct op *op, const char *what, const aclTensor *t, uint64_t dtypes)
{
    add(op, what, t, dtypes, false, ROLE_OUTPUT);
}

void op_out_weight(struct op *op, const char *what, const aclTensor *t, uint64_t dtypes)
{
    add(op, what, t, dtypes, true, ROLE_OUTPUT);
}

void op_inout(struct op *op, const char *what, const aclTensor *t, uint64_t dtypes)
{
    add(op, what, t, dtypes, false, ROLE_BOTH);
}

int op_in_optional(struct op *op, const char *what, const aclTensor *t, uint64_t dtypes)
{
    if (t == NULL)
        return -1;
    op_in(op, what, t, dtypes);
    return op->e != NULL ? (int)op->e->tensor_count - 1 : -1;
}

unsigned op_list(struct op *op, const char *what, const aclTensorList *list, uint64_t dtypes,
                 bool may_nz, enum role role)
{
    if (op->e == NULL)
        return 0;
    if (list == NULL) {
        fail(op, standin_error(E_NN_NULL, "%sGetWorkspaceSize: %s is NULL", op->name, what));
        return 0;
    }
    if (list->magic != LIST_MAGIC || list->count == 0) {
        op_refuse(op, "%s is no list, or empty", what);
        return 0;
    }
    for (uint64_t i = 0; i < list->count; i++)
        add(op, what, list->tensors[i], dtypes, may_nz, role);
    return (unsigned)list->count;
}

bool op_array(struct op *op, const char *what, const aclIntArray *array)
{
    if (op->e == NULL || array == NULL)
        return false;
    if (array->magic != INTS_MAGIC)
        return op_refuse(op, "%s is no array", what);
    op->e->array = take(array->count, sizeof(*op->e->array));
    op->e->array_count = array->count;
    if (array->count > 0)
        memcpy(op->e->array, array->values, array->count * sizeof(*array->values));
    return true;
}

void op_absent(struct op *op, const char *what, const void *argument)
{
    if (argument != NULL)
        op_refuse(op, "%s is not imitated here", what);
}

double op_scalar(struct op *op, const char *what, const aclScalar *s)
{
    if (op->e == NULL)
        return 0;
    if (s == NULL) {
        fail(op, standin_error(E_NN_NULL, "%sGetWorkspaceSize: %s is NULL", op->name, what));
        return 0;
    }
    if (s->magic != SCALAR_MAGIC) {
        op_refuse(op, "%s is no scalar", what);
        return 0;
    }
    return s->value;
}

const struct aclTensor *op_tensor(const struct op *op, unsigned i)
{
    static const struct aclTensor blank = { .rank = 0 };

    return op->e != NULL && i < op->e->tensor_count ? &op->e->tensors[i] : &blank;
}

void op_same_dtype(struct op *op, unsigned i, unsigned j)
{
    if (op_tensor(op, i)->dtype != op_tensor(op, j)->dtype)
        op_refuse(op, "tensors %u and %u have data types %d and %d", i, j,
                  (int)op_tensor(op, i)->dtype, (int)op_tensor(op, j)->dtype);
}

void op_same_shape(struct op *op, unsigned i, unsigned j)
{
    const struct aclTensor *a = op_tensor(op, i), *b = op_tensor(op, j);

    if (a->rank != b->rank || memcmp(a->dims, b->dims, (size_t)a->rank * sizeof(a->dims[0])) != 0)
        op_refuse(op, "tensors %u and %u differ in shape", i, j);
}

int64_t op_dim(struct op *op, int64_t dim, int rank)
{
    if (dim < -rank || dim >= rank) {
        op_refuse(op, "dim %lld of %d", (long long)dim, rank);
        return 0;
    }
    return dim < 0 ? dim + rank : dim;
}

void op_broadcast(struct op *op, unsigned i, unsigned j, unsigned out)
{
    const struct aclTensor *a = op_tensor(op, i), *b = op_tensor(op, j);
    const struct aclTensor *o = op_tensor(op, out);
    const int rank = a->rank > b->rank ? a->rank : b->rank;

    if (o->rank != rank) {
        op_refuse(op, "the result has %d dims, not %d", o->rank, rank);
        return;
    }
    for (int d = 1; d <= rank; d++) {
        const int64_t x = d <= a->rank ? a->dims[a->rank - d] : 1;
        const int64_t y = d <= b->rank ? b->dims[b->rank - d] : 1;
        if ((x != y && x != 1 && y != 1) || o->dims[rank - d] != (x == 1 ? y : x)) {
            op_refuse(op, "dims %lld and %lld make %lld", (long long)x, (long long)y,
                      (long long)o->dims[rank - d]);
            return;
        }
    }
}

aclnnStatus op_end(struct op *op, void (*run)(struct aclOpExecutor *e), uint64_t *workspace_size,
                   aclOpExecutor **executor)
{
    if (run == NULL)
        fail(op, op->code);
    else if (op->e != NULL && (workspace_size == NULL || executor == NULL))
        fail(op, standin_error(E_NN_NULL, "%sGetWorkspaceSize: nowhere to answer", op->name));
    if (op->dead != NULL)
        executor_discard(op->dead);
    op->dead = NULL;
    if (op->e == NULL)
        return op->code;
    op->e->run = run;
    op->e->workspace_bytes = WORKSPACE_BYTES;
    *workspace_size = op->e->workspace_bytes;
    *executor = op->e;
    return 0;
}
