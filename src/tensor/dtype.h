/* tensor/dtype.h - element types, and what one block of each takes.
 *
 * A block is the smallest run of elements that has bytes of its own: one element for the plain
 * types, 32 and more for quantised ones. Rows hold whole blocks. */
#ifndef LIGHTER_TENSOR_DTYPE_H
#define LIGHTER_TENSOR_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum dtype {
    DTYPE_F32,
    DTYPE_F16,  /* IEEE 754 binary16 */
    DTYPE_BF16, /* the upper half of a binary32 */
    DTYPE_I32,
    /* Quantised blocks: tensor/quant.h. GGUF's of 32 elements: */
    DTYPE_Q8_0,
    DTYPE_Q4_0,
    DTYPE_Q4_1,
    DTYPE_Q5_0,
    DTYPE_Q5_1,
    DTYPE_IQ4_NL,
    DTYPE_MXFP4,
    /* ... and of 256: */
    DTYPE_Q2_K,
    DTYPE_Q3_K,
    DTYPE_Q4_K,
    DTYPE_Q5_K,
    DTYPE_Q6_K,
    DTYPE_IQ4_XS,
    /* Of safetensors whose weights are quantised: 128 elements, 16, and 32. */
    DTYPE_F8_E4M3,
    DTYPE_F8_E4M3_16,
    DTYPE_INT4,
    DTYPE_COUNT
};

struct dtype_info {
    const char *name;        /* "F32": as safetensors spells it */
    uint32_t block_elements;
    uint32_t block_bytes;
};

/* Never NULL for a valid dtype. */
const struct dtype_info *dtype_info(enum dtype dtype);
/* Finds "F32", "bf16", "bfloat16", "float16", "half", "Q8_0", ... ignoring case; false when
 * unknown. */
bool dtype_parse(const char *name, enum dtype *dtype_out);
/* Bytes of element_count elements; false on overflow or a part of a block. */
bool dtype_bytes(enum dtype dtype, uint64_t element_count, uint64_t *bytes_out);

/* Bytes of elements that are known to fit in memory and to be whole blocks. */
uint64_t dtype_row_bytes(enum dtype dtype, uint64_t element_count);

/* Whether values are turned into this type: F32, F16, BF16, Q8_0, Q4_0, and Q2_K to Q6_K. */
bool dtype_is_target(enum dtype dtype);

/* Converts count elements, whole blocks, of any type but I32 to one that dtype_is_target; src and
 * dst must not overlap. Plain types: rounds to nearest, ties to even; NaN stays NaN, and what is
 * too large for F16 becomes infinity. Quantised types: tensor/quant.h, from and to F32, rounded as
 * above for F16 and BF16. Nothing is turned into the other quantised types but themselves. */
void dtype_convert(void *dst, enum dtype dst_dtype, const void *src, enum dtype src_dtype,
                   size_t count);

static inline float bf16_to_f32(uint16_t bits)
{
    const uint32_t wide = (uint32_t)bits << 16;
    float value;

    memcpy(&value, &wide, sizeof(value));
    return value;
}

uint16_t f32_to_bf16(float value);
float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value);

#endif
