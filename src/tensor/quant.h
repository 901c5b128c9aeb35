/* tensor/quant.h - quantised blocks, as integers with scales and as F32.
 *
 * Whatever a type packs away, each of its elements is a small integer with a scale, and in some
 * types a minimum, that 16 or 32 adjacent elements share:
 *
 *     element i = scale * q[i]   or   scale * q[i] + min
 *
 * A *run* is 32 elements of a row unpacked like that; a block is one run, or eight (types with K,
 * and IQ4_XS: blocks of 256 with one or two F16 factors d that multiply integer scales of 4 to 8
 * bits; such a product is exact in F32). The layouts, bytes in order, little endian:
 *
 *     Q4_0    d F16, 16 bytes of halves                       d * (h - 8)
 *     Q4_1    d F16, m F16, 16 bytes of halves                d * h + m
 *     Q5_0    d F16, 32 fifth bits, 16 bytes of halves        d * (h + 16 * bit - 16)
 *     Q5_1    d F16, m F16, 32 fifth bits, 16 bytes of halves d * (h + 16 * bit) + m
 *     Q8_0    d F16, 32 int8                                  d * q
 *     IQ4_NL  d F16, 16 bytes of halves                       d * table[h]
 *     MXFP4   e, 16 bytes of halves                           2^(e - 128) * table[h], E2M1 doubled
 *     Q2_K    16 scales (4 bits s, 4 bits m), 64 bytes of quarters, d F16, dmin F16
 *                                                             d * s * q - dmin * m
 *     Q3_K    32 bytes of third bits, 64 of quarters, 12 of scales (6 bits s), d F16
 *                                                             d * (s - 32) * (q + 4 * bit - 4)
 *     Q4_K    d F16, dmin F16, 12 bytes of scales (6 bits s, 6 bits m), 128 of halves
 *                                                             d * s * h - dmin * m
 *     Q5_K    as Q4_K with 32 bytes of fifth bits before the halves
 *     Q6_K    128 bytes of halves, 64 of fifth and sixth bits, 16 scales int8, d F16
 *                                                             d * s * (q - 32)
 *     IQ4_XS  d F16, 2 bytes of scales' upper bits, 4 of lower (6 bits s), 128 of halves
 *                                                             d * (s - 32) * table[h]
 *
 * and three that no file has: what safetensors checkpoints hold in several tensors, weights here,
 * scales there, is put together into them when it is loaded (checkpoint/hf/packed.h):
 *
 *     INT4    d F16, z, 16 bytes of halves                    d * (h - z), z below 16
 *     F8_E4M3 s F32, 128 bytes e                              s * e
 *     F8_E4M3_16                                              the same with 16 bytes e
 *
 * F8_E4M3 has blocks of 128 and is the exception: its elements are small floats, not integers, so
 * it has no runs. F8_E4M3_16 is the same in blocks of 16, for rows that are no whole ones of 128. e
 * has 4 bits of exponent and 3 of mantissa ("FP8 Formats for Deep Learning", arXiv 2209.05433);
 * 0x7F and 0xFF, NaN there, come into no block, and would be 480 and -480.
 *
 * Of a run's 16 bytes of halves, the low ones are elements 0..15, the high ones 16..31. In Q4_K and
 * Q5_K a run has 32 bytes in common with the next one: the first takes the low halves. Source, of
 * GGUF's types: the PyPI package gguf 0.19, gguf/quants.py, whose values these are bit for bit.
 *
 * A row is its blocks one behind the other, so blocks stand at any address. */
#ifndef LIGHTER_TENSOR_QUANT_H
#define LIGHTER_TENSOR_QUANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tensor/dtype.h"

#define QUANT_RUN_ELEMENTS 32
#define QUANT_Q8_0_BYTES 34
#define QUANT_Q4_0_BYTES 18
#define QUANT_INT4_BYTES 19
#define QUANT_F8_ELEMENTS 128
#define QUANT_F8_BYTES 132
#define QUANT_F8_SHORT_ELEMENTS 16
#define QUANT_F8_SHORT_BYTES 20

/* What IQ4_NL and IQ4_XS mean by the numbers 0 to 15, and what MXFP4 does. */
extern const int8_t quant_iq4_values[16];
extern const int8_t quant_mxfp4_values[16];

struct quant_run {
    float scales[2]; /* of elements 0..15, and of 16..31 */
    float mins[2];   /* 0 in types without */
    int8_t q[QUANT_RUN_ELEMENTS];
};

bool quant_is_quantised(enum dtype dtype);
bool quant_is_f8(enum dtype dtype); /* F8_E4M3 or F8_E4M3_16 */
/* Of all quantised types but those two. */
bool quant_has_runs(enum dtype dtype);
/* What a type's runs have; the same for all of a type's. False and 1 for types without. */
bool quant_has_mins(enum dtype dtype);
bool quant_has_two_scales(enum dtype dtype); /* scales[0] and [1], mins[0] and [1] may differ */
/* What must be added to q to make it unsigned and small: 0 in types that are. */
int32_t quant_offset(enum dtype dtype);
uint32_t quant_runs_per_block(enum dtype dtype);

/* The run_index-th run of a block of a type that has runs. */
void quant_run_read(struct quant_run *run, enum dtype dtype, const void *block,
                    uint32_t run_index);

/* The eight scales and eight minimums of 6 bits that Q4_K and Q5_K have in 12 bytes; the sixteen
 * scales of 6 bits, less 32, that Q3_K has in 12; and the eight, less 32, of an IQ4_XS block. */
void quant_k4_scales(const uint8_t packed[12], uint8_t scales_out[8], uint8_t mins_out[8]);
void quant_k3_scales(const uint8_t packed[12], int8_t scales_out[16]);
void quant_iq4_xs_scales(const uint8_t *block, int8_t scales_out[8]);
/* MXFP4's factor. */
float quant_mxfp4_scale(uint8_t exponent);
/* e of F8_E4M3 divided by 256, as F16: its bits only have to move. */
static inline uint16_t quant_e4m3_f16(uint8_t e)
{
    return (uint16_t)((e & 0x80) << 8 | (e & 0x7F) << 7);
}

/* Of any quantised type. */
void quant_to_f32(float *to, enum dtype dtype, const void *blocks, size_t block_count);

/* As ggml's reference does it, bit for bit: Q8_0 has d = max|x| / 127 and rounds halves away from
 * zero; Q4_0 has d = -x / 8 of the x that is farthest from zero, the first of several. The
 * quotients are taken before d is rounded to F16. NaN becomes 0. */
void quant_q8_0_from_f32(void *blocks, const float *from, size_t block_count);
void quant_q4_0_from_f32(void *blocks, const float *from, size_t block_count);

/* To Q2_K, Q3_K, Q4_K, Q5_K or Q6_K, seeking the least squared error (quant_k.c). The same values
 * give the same bytes on every machine. NaN becomes 0, and what is past 1e15 counts as that. */
void quant_k_from_f32(void *blocks, enum dtype dtype, const float *from, size_t block_count);

#endif
