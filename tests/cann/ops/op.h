/* tests/cann/ops/op.h - how operators are written: the checks of the first phase, and the reading
 * and writing of tensors in the second.
 *
 * A first phase reads like this; the first check that fails is the answer, and later ones do
 * nothing:
 *
 *     OPERATOR(Silu, const aclTensor *self, aclTensor *out)
 *     {
 *         struct op op = OP(Silu);
 *         op_in(&op, "self", self, FLOATS);
 *         op_out(&op, "out", out, FLOATS);
 *         op_same_dtype(&op, 0, 1);
 *         op_same_shape(&op, 0, 1);
 *         return op_end(&op, silu_run, workspace_size, executor);
 *     }
 *
 * All arithmetic is in double, from values read exactly, rounded once when written. */
#ifndef CANN_OP_H
#define CANN_OP_H

#include "nn.h"

/* Sets of data types, one bit each. */
#define DT(name) (UINT64_C(1) << ACL_##name)
#define FLOATS (DT(FLOAT) | DT(FLOAT16) | DT(BF16))
#define HALVES (DT(FLOAT16) | DT(BF16))
#define INDICES (DT(INT32) | DT(INT64))
#define NUMBERS (FLOATS | INDICES | DT(DOUBLE) | DT(INT8) | DT(UINT8) | DT(INT16) | DT(BOOL))

struct op {
    const char *name;
    struct aclOpExecutor *e;    /* NULL after a failure */
    struct aclOpExecutor *dead; /* the one of before it: what checks look at lives until op_end */
    int code;
};

struct op op_begin(const char *name);
/* OPERATOR(Name, parameters) { body of the first phase }: the second phase is the same for all.
 * Where cann.h declares the operator too, the compiler holds the one against the other. */
#define OPERATOR(Name, ...)                                                                      \
    STANDIN_API aclnnStatus aclnn##Name(void *workspace, uint64_t workspace_size,                \
                                        aclOpExecutor *executor, aclrtStream stream);            \
    aclnnStatus aclnn##Name(void *workspace, uint64_t workspace_size, aclOpExecutor *executor,   \
                            aclrtStream stream)                                                  \
    {                                                                                            \
        static struct standin_entry entry_ = { .name = "aclnn" #Name };                          \
        const int code_ = standin_enter(&entry_);                                                \
        if (code_ != 0) {                                                                        \
            executor_consume(executor);                                                          \
            return code_;                                                                        \
        }                                                                                        \
        return executor_execute("aclnn" #Name, workspace, workspace_size, executor, stream);     \
    }                                                                                            \
    STANDIN_API aclnnStatus aclnn##Name##GetWorkspaceSize(__VA_ARGS__, uint64_t *workspace_size, \
                                                          aclOpExecutor **executor);             \
    aclnnStatus aclnn##Name##GetWorkspaceSize(__VA_ARGS__, uint64_t *workspace_size,             \
                                              aclOpExecutor **executor)
#define OP(name_)                                                                        \
    op_begin("aclnn" #name_);                                                            \
    do {                                                                                 \
        static struct standin_entry entry_ = { .name = "aclnn" #name_ "GetWorkspaceSize" }; \
        const int code_ = standin_enter(&entry_);                                        \
        if (code_ != 0) {                                                                \
            op.code = code_;                                                             \
            op_end(&op, NULL, NULL, NULL);                                               \
        }                                                                                \
    } while (0)

/* Fails the phase (161002) with a sentence, unless it has failed before. Returns false. */
bool op_refuse(struct op *op, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Adds a tensor in ND with one of these types. NULL is 161001. */
void op_in(struct op *op, const char *what, const aclTensor *t, uint64_t dtypes);
void op_out(struct op *op, const char *what, const aclTensor *t, uint64_t dtypes);
void op_inout(struct op *op, const char *what, const aclTensor *t, uint64_t dtypes);
/* In ND or, where the last two dimensions are a weight's, FRACTAL_NZ. */
void op_in_weight(struct op *op, const char *what, const aclTensor *t, uint64_t dtypes);
void op_out_weight(struct op *op, const char *what, const aclTensor *t, uint64_t dtypes);
/* Adds it when it is not NULL, and says where; else -1. */
int op_in_optional(struct op *op, const char *what, const aclTensor *t, uint64_t dtypes);
/* Adds all tensors of a list, in ND or, with may_nz, in FRACTAL_NZ; 161001 for NULL. */
unsigned op_list(struct op *op, const char *what, const aclTensorList *list, uint64_t dtypes,
                 bool may_nz, enum role role);
/* Keeps a copy of the array for the second phase; false when it is NULL or a phase has failed. */
bool op_array(struct op *op, const char *what, const aclIntArray *array);
/* Must be NULL: this use of an argument is not imitated. */
void op_absent(struct op *op, const char *what, const void *argument);
/* The value of a scalar; 161001 for NULL. */
double op_scalar(struct op *op, const char *what, const aclScalar *s);

/* Tensor i, or a blank one after a failure, so that checks may go on. */
const struct aclTensor *op_tensor(const struct op *op, unsigned i);
void op_same_dtype(struct op *op, unsigned i, unsigned j);
void op_same_shape(struct op *op, unsigned i, unsigned j);
void op_check(struct op *op, bool good, const char *what);
/* As op_check, for what the documents answer with 561002: shapes that can't be tiled. */
void op_check_tiling(struct op *op, bool good, const char *what);
/* The documents don't allow gaps in tensor i. */
void op_contiguous(struct op *op, unsigned i);
/* A dim argument in [-rank, rank) becomes one in [0, rank). */
int64_t op_dim(struct op *op, int64_t dim, int rank);
/* NumPy's broadcast of tensors i and j has the shape of tensor out. */
void op_broadcast(struct op *op, unsigned i, unsigned j, unsigned out);
aclnnStatus op_end(struct op *op, void (*run)(struct aclOpExecutor *e), uint64_t *workspace_size,
                   aclOpExecutor **executor);

/* ---- for the second phase ---- */

double element_get(aclDataType dtype, const uint8_t *bytes, int64_t index);
void element_set(aclDataType dtype, uint8_t *bytes, int64_t index, double value);
/* All elements in the order of the view, row major. The caller frees it. */
double *tensor_load(const struct aclTensor *t);
void tensor_store(struct aclTensor *t, const double *values);
/* As load, but broadcast to the shape of `like`. */
double *tensor_load_like(const struct aclTensor *t, const struct aclTensor *like);
/* out[i] = element `at` with dimension `dim` running over i < dims[dim]; at[dim] is 0. NZ too. */
void tensor_line(const struct aclTensor *t, const int64_t *at, int dim, double *out);
/* sum of a[i] * b[i] */
double dot(const double *a, const double *b, int64_t count);
/* The next coordinates, row major; false after the last. */
bool next_at(const struct aclTensor *t, int64_t *at);
/* Memory that is there, or the process ends. */
void *take(size_t count, size_t size);

#endif
