/* tensor/tensor.c - see tensor.h. */
#include "tensor/tensor.h"

#include <inttypes.h>
#include <stdio.h>

#include "base/size.h"

bool tensor_element_count(uint32_t rank, const uint64_t *shape, uint64_t *count_out)
{
    uint64_t count = 1;

    for (uint32_t i = 0; i < rank; i++)
        if (!size_mul(count, shape[i], &count))
            return false;
    *count_out = count;
    return true;
}

bool tensor_bytes(const struct tensor *tensor, uint64_t *bytes_out)
{
    return layout_bytes(tensor->layout, tensor->dtype, tensor->rank, tensor->shape, bytes_out);
}

char *tensor_shape_format(uint32_t rank, const uint64_t *shape, char *out, size_t out_size)
{
    size_t used = 0;

    for (uint32_t i = 0; i < rank && used < out_size; i++)
        used += (size_t)snprintf(out + used, out_size - used, "%s%" PRIu64, i == 0 ? "[" : ", ",
                                 shape[i]);
    if (used < out_size)
        (void)snprintf(out + used, out_size - used, rank == 0 ? "[]" : "]");
    return out;
}
