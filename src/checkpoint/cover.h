/* checkpoint/cover.h - whether strided boxes fill a range exactly once. */
#ifndef LIGHTER_CHECKPOINT_COVER_H
#define LIGHTER_CHECKPOINT_COVER_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define COVER_RANK 3

/* The elements offset + i*stride[0] + j*stride[1] + k*stride[2], i < count[0], j < count[1], ... */
struct cover_box {
    uint64_t offset;
    uint64_t count[COVER_RANK];  /* > 0 */
    uint64_t stride[COVER_RANK];
};

enum cover_result { COVER_EXACT, COVER_HOLE, COVER_TWICE };

/* Whether the boxes, each inside [0, element_count), hold every element of it once. When not,
 * *element_out is an element that none or more than one holds. Reorders the boxes. Memory: none
 * when every box is one run, else COVER_WINDOW_ELEMENTS bits. */
enum status cover_check(struct cover_box *boxes, size_t box_count, uint64_t element_count,
                        enum cover_result *result_out, uint64_t *element_out, struct err *err);

#define COVER_WINDOW_ELEMENTS (UINT64_C(1) << 23)

#endif
