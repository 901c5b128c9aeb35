/* tests/cann/base/tensor.c - tensors, scalars, arrays and lists: objects of the host (2). */
#include "nn.h"

#include <stdlib.h>
#include <string.h>

#define NZ_ROWS 16
#define NZ_BLOCK_COLUMN_BYTES 32

unsigned dtype_bytes(aclDataType dtype)
{
    switch (dtype) {
    case ACL_INT8: case ACL_UINT8: case ACL_BOOL: return 1;
    case ACL_FLOAT16: case ACL_BF16: case ACL_INT16: case ACL_UINT16: return 2;
    case ACL_FLOAT: case ACL_INT32: case ACL_UINT32: return 4;
    case ACL_INT64: case ACL_UINT64: case ACL_DOUBLE: return 8;
    default: return 0;
    }
}

int64_t tensor_count(const struct aclTensor *t)
{
    int64_t count = 1;

    for (int i = 0; i < t->rank; i++)
        count *= t->dims[i];
    return count;
}

bool tensor_is_contiguous(const struct aclTensor *t)
{
    int64_t step = 1;

    for (int i = t->rank - 1; i >= 0; i--) {
        if (t->dims[i] != 1 && t->strides[i] != step)
            return false;
        step *= t->dims[i];
    }
    return true;
}

/* The matrix that is stored: the view's last two dimensions, or these swapped. */
static void nz_matrix(const struct aclTensor *t, int64_t *height, int64_t *width)
{
    const bool swapped = tensor_nz_is_swapped(t);

    *height = t->dims[t->rank - (swapped ? 1 : 2)];
    *width = t->dims[t->rank - (swapped ? 2 : 1)];
}

bool tensor_nz_is_swapped(const struct aclTensor *t)
{
    return t->rank >= 2 && t->strides[t->rank - 2] == 1 && t->strides[t->rank - 1] != 1;
}

static int64_t nz_columns(const struct aclTensor *t)
{
    const unsigned bytes = dtype_bytes(t->dtype);
    return bytes > 0 ? NZ_BLOCK_COLUMN_BYTES / bytes : NZ_BLOCK_COLUMN_BYTES;
}

int64_t nz_element_count(const struct aclTensor *t)
{
    int64_t height, width, batches = 1;
    const int64_t c0 = nz_columns(t);

    nz_matrix(t, &height, &width);
    for (int i = 0; i < t->rank - 2; i++)
        batches *= t->dims[i];
    return batches * ((height + NZ_ROWS - 1) / NZ_ROWS * NZ_ROWS) * ((width + c0 - 1) / c0 * c0);
}

/* storageDims = [..., W1, H1, 16, C0], and the strides are those of whole matrices, swapped or
 * not: there are no other views of NZ bytes (section 4.3). */
bool tensor_nz_storage_is_right(const struct aclTensor *t)
{
    const int batch_rank = t->rank - 2;
    int64_t height, width, step;
    const int64_t c0 = nz_columns(t);

    if (t->rank < 2 || t->storage_rank != t->rank + 2 || t->offset != 0)
        return false;
    nz_matrix(t, &height, &width);
    step = height * width;
    for (int i = batch_rank - 1; i >= 0; i--) {
        if (t->storage[i] != t->dims[i] || (t->dims[i] != 1 && t->strides[i] != step))
            return false;
        step *= t->dims[i];
    }
    if ((width != 1 && t->strides[t->rank - (tensor_nz_is_swapped(t) ? 2 : 1)] != 1) ||
        (height != 1 && t->strides[t->rank - (tensor_nz_is_swapped(t) ? 1 : 2)] != width))
        return false;
    return t->storage[batch_rank] == (width + c0 - 1) / c0 &&
           t->storage[batch_rank + 1] == (height + NZ_ROWS - 1) / NZ_ROWS &&
           t->storage[batch_rank + 2] == NZ_ROWS && t->storage[batch_rank + 3] == c0;
}

int64_t tensor_index(const struct aclTensor *t, const int64_t *at)
{
    int64_t index = t->offset, batch = 0, height, width, h, w;
    const int64_t c0 = nz_columns(t);
    bool swapped;

    if (t->format != ACL_FORMAT_FRACTAL_NZ) {
        for (int i = 0; i < t->rank; i++)
            index += at[i] * t->strides[i];
        return index;
    }
    swapped = tensor_nz_is_swapped(t);
    nz_matrix(t, &height, &width);
    for (int i = 0; i < t->rank - 2; i++)
        batch = batch * t->dims[i] + at[i];
    h = at[t->rank - (swapped ? 1 : 2)];
    w = at[t->rank - (swapped ? 2 : 1)];
    height = (height + NZ_ROWS - 1) / NZ_ROWS * NZ_ROWS;
    width = (width + c0 - 1) / c0;
    return ((batch * width + w / c0) * height + h) * c0 + w % c0;
}

aclTensor *aclCreateTensor(const int64_t *dims, uint64_t rank, aclDataType dtype,
                           const int64_t *strides, int64_t offset, aclFormat format,
                           const int64_t *storage, uint64_t storage_rank, void *data)
{
    aclTensor *t;
    int64_t step = 1;

    ENTER_OR(aclCreateTensor, NULL);
    if ((dims == NULL && rank > 0) || (storage == NULL && storage_rank > 0) || rank > RANK_MAX ||
        storage_rank > RANK_MAX) {
        standin_error(E_NN_INVALID, "aclCreateTensor: %d dims of storage with %d",
                      (int)rank, (int)storage_rank);
        return NULL;
    }
    for (uint64_t i = 0; i < rank; i++) {
        if (dims[i] < 0) {
            standin_error(E_NN_INVALID, "aclCreateTensor: a dim of %lld", (long long)dims[i]);
            return NULL;
        }
    }
    t = calloc(1, sizeof(*t));
    if (t == NULL)
        return NULL;
    t->magic = TENSOR_MAGIC;
    t->dtype = dtype;
    t->format = format;
    t->rank = (int)rank;
    t->storage_rank = (int)storage_rank;
    t->offset = offset;
    t->data = data;
    if (rank > 0)
        memcpy(t->dims, dims, rank * sizeof(*dims));
    if (storage_rank > 0)
        memcpy(t->storage, storage, storage_rank * sizeof(*storage));
    for (int i = t->rank - 1; i >= 0; i--) {
        t->strides[i] = strides != NULL ? strides[i] : step;
        step *= t->dims[i];
    }
    standin_count("live_tensors", 1);
    return t;
}

static aclnnStatus destroy(const char *function, void *object, uint32_t magic)
{
    if (object == NULL)
        return 0;
    if (*(uint32_t *)object != magic)
        return standin_error(E_NN_INVALID, "%s: not such an object, or destroyed before",
                             function);
    *(uint32_t *)object = 0;
    free(object);
    standin_uncount("live_tensors", 1);
    return 0;
}

aclnnStatus aclDestroyTensor(const aclTensor *tensor)
{
    ENTER(aclDestroyTensor);
    if (tensor != NULL && tensor->magic == TENSOR_MAGIC && tensor->in_list)
        return standin_error(E_NN_INVALID, "aclDestroyTensor: the tensor is a list's");
    return destroy("aclDestroyTensor", standin_mutable(tensor), TENSOR_MAGIC);
}

static double scalar_value(const void *value, aclDataType dtype)
{
    switch (dtype) {
    case ACL_FLOAT: return (double)*(const float *)value;
    case ACL_DOUBLE: return *(const double *)value;
    case ACL_INT32: return *(const int32_t *)value;
    case ACL_INT64: return (double)*(const int64_t *)value;
    case ACL_INT8: return *(const int8_t *)value;
    case ACL_BOOL: case ACL_UINT8: return *(const uint8_t *)value;
    default: return 0;
    }
}

aclScalar *aclCreateScalar(void *value, aclDataType dtype)
{
    aclScalar *s;

    ENTER_OR(aclCreateScalar, NULL);
    if (value == NULL || (dtype != ACL_FLOAT && dtype != ACL_DOUBLE && dtype != ACL_INT32 &&
                          dtype != ACL_INT64 && dtype != ACL_INT8 && dtype != ACL_BOOL &&
                          dtype != ACL_UINT8)) {
        standin_error(E_NN_INVALID, "aclCreateScalar: data type %d", (int)dtype);
        return NULL;
    }
    s = calloc(1, sizeof(*s));
    if (s == NULL)
        return NULL;
    s->magic = SCALAR_MAGIC;
    s->dtype = dtype;
    s->value = scalar_value(value, dtype);
    standin_count("live_tensors", 1);
    return s;
}

aclnnStatus aclDestroyScalar(const aclScalar *scalar)
{
    ENTER(aclDestroyScalar);
    return destroy("aclDestroyScalar", standin_mutable(scalar), SCALAR_MAGIC);
}

aclIntArray *aclCreateIntArray(const int64_t *values, uint64_t count)
{
    aclIntArray *a;

    ENTER_OR(aclCreateIntArray, NULL);
    if (values == NULL && count > 0)
        return NULL;
    a = calloc(1, sizeof(*a) + count * sizeof(*values));
    if (a == NULL)
        return NULL;
    a->magic = INTS_MAGIC;
    a->count = count;
    a->values = (int64_t *)(a + 1);
    if (count > 0)
        memcpy(a->values, values, count * sizeof(*values));
    standin_count("live_tensors", 1);
    return a;
}

aclnnStatus aclDestroyIntArray(const aclIntArray *array)
{
    ENTER(aclDestroyIntArray);
    return destroy("aclDestroyIntArray", standin_mutable(array), INTS_MAGIC);
}

aclTensorList *aclCreateTensorList(const aclTensor *const *tensors, uint64_t count)
{
    aclTensorList *list;

    ENTER_OR(aclCreateTensorList, NULL);
    if (tensors == NULL && count > 0)
        return NULL;
    list = calloc(1, sizeof(*list) + count * sizeof(void *));
    if (list == NULL)
        return NULL;
    list->magic = LIST_MAGIC;
    list->count = count;
    list->tensors = (aclTensor **)(list + 1);
    for (uint64_t i = 0; i < count; i++) {
        list->tensors[i] = standin_mutable(tensors[i]);
        if (list->tensors[i] != NULL)
            list->tensors[i]->in_list = true;
    }
    standin_count("live_tensors", 1);
    return list;
}

/* The list's tensors go with it. */
aclnnStatus aclDestroyTensorList(const aclTensorList *list)
{
    ENTER(aclDestroyTensorList);
    if (list != NULL && list->magic == LIST_MAGIC) {
        for (uint64_t i = 0; i < list->count; i++)
            (void)destroy("aclDestroyTensorList", list->tensors[i], TENSOR_MAGIC);
    }
    return destroy("aclDestroyTensorList", standin_mutable(list), LIST_MAGIC);
}
