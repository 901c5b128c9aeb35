/* tensor/tensor.h - what a tensor is, apart from where its bytes come from.
 *
 * Shapes are row major, the outermost dimension first, as checkpoints write them. `data` is an
 * address in the memory of whichever device holds the bytes; only that device may follow it. */
#ifndef LIGHTER_TENSOR_TENSOR_H
#define LIGHTER_TENSOR_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tensor/dtype.h"
#include "tensor/layout.h"

#define TENSOR_RANK_MAX 4

struct tensor {
    enum dtype dtype;
    enum layout layout;               /* of the bytes; shapes are the same in each */
    uint32_t rank;                    /* 1 to TENSOR_RANK_MAX */
    uint64_t shape[TENSOR_RANK_MAX];  /* each > 0; past rank: 1 */
    void *data;                       /* borrowed; NULL while the bytes are nowhere on the device */
};

/* The product of the dimensions, and the bytes of the layout, padding included; false on
 * overflow. */
bool tensor_element_count(uint32_t rank, const uint64_t *shape, uint64_t *count_out);
bool tensor_bytes(const struct tensor *tensor, uint64_t *bytes_out);

/* "[2, 3, 4]" into out; returns out. 96 bytes hold any shape. */
char *tensor_shape_format(uint32_t rank, const uint64_t *shape, char *out, size_t out_size);

#endif
