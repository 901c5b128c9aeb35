/* tests/cann/nn.h - tensors and executors, between libnnopbase.so and libopapi.so.
 *
 * An operator's first phase fills an executor: copies of the tensors' descriptions, its numbers,
 * and the function that computes. The second phase hands a copy to the stream, whose worker maps
 * the tensors' memory and calls it. */
#ifndef CANN_NN_H
#define CANN_NN_H

#include "internal.h"

#pragma GCC visibility push(default)

#define RANK_MAX 8
#define NUMBERS_MAX 24

enum nn_magic { TENSOR_MAGIC = 0x7e4501, SCALAR_MAGIC, INTS_MAGIC, LIST_MAGIC, EXECUTOR_MAGIC };

struct aclTensor {
    uint32_t magic;
    aclDataType dtype;
    aclFormat format;
    int rank, storage_rank;
    int64_t dims[RANK_MAX], strides[RANK_MAX], storage[RANK_MAX];
    int64_t offset;          /* elements */
    void *data;              /* device memory: the start of the storage */
    uint8_t *bytes;          /* the same for workers; set while a kernel runs */
    const aclTensor *handle; /* what the program passed */
    bool in_list;
};
struct aclScalar {
    uint32_t magic;
    aclDataType dtype;
    double value;
};
struct aclIntArray {
    uint32_t magic;
    uint64_t count;
    int64_t *values;
};
struct aclTensorList {
    uint32_t magic;
    uint64_t count;
    aclTensor **tensors;
};

enum role { ROLE_INPUT = 1, ROLE_OUTPUT = 2, ROLE_BOTH = 3 };

struct aclOpExecutor {
    uint32_t magic;
    bool is_consumed, is_repeatable;
    const char *name;        /* "aclnnAdd" */
    uint64_t workspace_bytes;
    void (*run)(struct aclOpExecutor *e);
    unsigned tensor_count, tensor_room;
    struct aclTensor *tensors;
    uint8_t *roles;
    int64_t ints[NUMBERS_MAX];
    double reals[4];
    int64_t *array;          /* numbers of an aclIntArray, where an operator has one */
    uint64_t array_count;
};

int64_t tensor_count(const struct aclTensor *t);
unsigned dtype_bytes(aclDataType dtype); /* 0: not known here */
bool tensor_is_contiguous(const struct aclTensor *t);
/* Is it the NZ form of its last two dimensions, or of these swapped? storage as in section 4.1. */
bool tensor_nz_is_swapped(const struct aclTensor *t);
bool tensor_nz_storage_is_right(const struct aclTensor *t);
int64_t nz_element_count(const struct aclTensor *t);
/* The index, in elements of the storage, of the element at these coordinates of the view. */
int64_t tensor_index(const struct aclTensor *t, const int64_t *at);

struct aclOpExecutor *executor_new(const char *name);
void executor_free(struct aclOpExecutor *e);
/* Copies the tensor's description behind the others. */
bool executor_add(struct aclOpExecutor *e, const struct aclTensor *t, enum role role);
/* Frees one that was never handed out. */
void executor_discard(struct aclOpExecutor *e);
/* What a second phase that fails does with its executor. */
void executor_consume(struct aclOpExecutor *e);
/* Phase 2 of every operator. */
aclnnStatus executor_execute(const char *name, void *workspace, uint64_t workspace_bytes,
                             struct aclOpExecutor *e, aclrtStream stream);

#pragma GCC visibility pop

#endif
