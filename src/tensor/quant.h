/* tensor/quant.h - GGUF's blocks of 32 elements with one scale, to and from F32.
 *
 *     Q8_0   bytes 0..1 scale d, F16, little endian    bytes 2..33  q[32], int8      value d * q
 *     Q4_0   bytes 0..1 scale d, F16, little endian    bytes 2..17  n[16], unsigned
 *            element i < 16 is the low half of n[i], element i + 16 its high half;
 *            value d * (half - 8)
 *
 * A row is its blocks one behind the other, so blocks stand at any even address. */
#ifndef LIGHTER_TENSOR_QUANT_H
#define LIGHTER_TENSOR_QUANT_H

#include <stddef.h>
#include <stdint.h>

#define QUANT_BLOCK_ELEMENTS 32
#define QUANT_Q8_0_BYTES 34
#define QUANT_Q4_0_BYTES 18

void quant_q8_0_to_f32(float *to, const void *blocks, size_t block_count);
void quant_q4_0_to_f32(float *to, const void *blocks, size_t block_count);

/* As ggml's reference does it, bit for bit: Q8_0 has d = max|x| / 127 and rounds halves away from
 * zero; Q4_0 has d = -x / 8 of the x that is farthest from zero, the first of several. The
 * quotients are taken before d is rounded to F16. NaN becomes 0. */
void quant_q8_0_from_f32(void *blocks, const float *from, size_t block_count);
void quant_q4_0_from_f32(void *blocks, const float *from, size_t block_count);

#endif
