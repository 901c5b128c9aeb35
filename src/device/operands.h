/* device/operands.h - which memory an op touches; only for files inside device/.
 *
 * Lets one function check any op: for NULL and stray pointers, or that all lie in a device's
 * memory. */
#ifndef LIGHTER_DEVICE_OPERANDS_H
#define LIGHTER_DEVICE_OPERANDS_H

#include <stdbool.h>
#include <stdint.h>

#include "device/op.h"

#define OP_OPERANDS_MAX 12

struct op_operand {
    const char *name;
    const void *pointer;
    uint64_t size_bytes; /* from pointer; for caches and page tables, whose length the op does not
                            know, one row */
};

/* Fills operands and returns how many there are: none when the op has no rows. Optional operands
 * that are absent are left out. */
uint32_t device__operands(const struct op *op, struct op_operand operands[OP_OPERANDS_MAX]);

/* Asserts what op.h demands of each field: our own mistakes, found before anything is queued. */
void device__op_assert(const struct op *op);

/* Whether the op reads weights, and of which dtype. */
bool device__op_weight_dtype(const struct op *op, enum dtype *dtype_out);

#endif
