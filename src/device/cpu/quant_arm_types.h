/* device/cpu/quant_arm_types.h - blocks of quantised weights as signed bytes and scales, with NEON;
 * included by quant_arm.h. What tensor/quant.h says element by element, a run at a time. */
#ifndef LIGHTER_DEVICE_CPU_QUANT_ARM_TYPES_H
#define LIGHTER_DEVICE_CPU_QUANT_ARM_TYPES_H

#include <string.h>

#include "device/cpu/neon.h"
#include "tensor/quant.h"

#define WIDTH 4         /* weight rows of a group */
#define RUNS_MAX 8      /* of a block */

/* The types' traits as constants, where dtype is one. */
INLINE bool has_mins(const enum dtype dtype)
{
    return dtype == DTYPE_Q4_1 || dtype == DTYPE_Q5_1 || dtype == DTYPE_Q2_K ||
           dtype == DTYPE_Q4_K || dtype == DTYPE_Q5_K;
}

INLINE bool has_two_scales(const enum dtype dtype)
{
    return dtype == DTYPE_Q2_K || dtype == DTYPE_Q3_K || dtype == DTYPE_Q6_K;
}

INLINE uint32_t runs_per_block(const enum dtype dtype)
{
    return has_two_scales(dtype) || dtype == DTYPE_Q4_K || dtype == DTYPE_Q5_K ||
                   dtype == DTYPE_IQ4_XS
               ? RUNS_MAX : 1;
}

INLINE uint32_t block_bytes(const enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_Q4_0: case DTYPE_IQ4_NL: return 18;
    case DTYPE_Q4_1: return 20;
    case DTYPE_Q5_0: return 22;
    case DTYPE_Q5_1: return 24;
    case DTYPE_MXFP4: return 17;
    case DTYPE_Q2_K: return 84;
    case DTYPE_Q3_K: return 110;
    case DTYPE_Q4_K: return 144;
    case DTYPE_Q5_K: return 176;
    case DTYPE_Q6_K: return 210;
    case DTYPE_IQ4_XS: return 136;
    default: return QUANT_Q8_0_BYTES;
    }
}

INLINE float f16_at(const uint8_t *bytes)
{
    uint16_t bits;

    memcpy(&bits, bytes, sizeof(bits));
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))), 0);
}

/* ---- numbers: sixteen bytes ---- */

/* Bits `shift` and up of each byte, by mask. */
INLINE uint8x16_t fields(const uint8_t *bytes, uint32_t shift, uint8_t mask)
{
    return vandq_u8(vshlq_u8(vld1q_u8(bytes), vdupq_n_s8((int8_t)-(int32_t)shift)),
                    vdupq_n_u8(mask));
}

/* Of 16 bits as bytes: 16 where the bit is set. */
INLINE uint8x16_t spread_bits(const uint8_t *bits)
{
    static const uint8_t each[8] = { 1, 2, 4, 8, 16, 32, 64, 128 };
    const uint8x16_t both = vcombine_u8(vdup_n_u8(bits[0]), vdup_n_u8(bits[1]));
    const uint8x8_t bit = vld1_u8(each);

    return vandq_u8(vtstq_u8(both, vcombine_u8(bit, bit)), vdupq_n_u8(16));
}

INLINE int8x16_t less(uint8x16_t numbers, int8_t offset)
{
    return vsubq_s8(vreinterpretq_s8_u8(numbers), vdupq_n_s8(offset));
}

/* From 16 bytes of halves: elements 0..15 are the low ones. */
INLINE void put_halves(int8_t *q, const uint8_t *bytes, int8_t offset)
{
    vst1q_s8(q, less(fields(bytes, 0, 15), offset));
    vst1q_s8(q + 16, less(fields(bytes, 4, 15), offset));
}

INLINE void put_fives(int8_t *q, const uint8_t *bits, const uint8_t *bytes, int8_t offset)
{
    vst1q_s8(q, less(vorrq_u8(fields(bytes, 0, 15), spread_bits(bits)), offset));
    vst1q_s8(q + 16, less(vorrq_u8(fields(bytes, 4, 15), spread_bits(bits + 2)), offset));
}

INLINE void put_meanings(int8_t *q, const uint8_t *bytes, const int8_t table[16])
{
    const int8x16_t values = vld1q_s8(table);

    vst1q_s8(q, vqtbl1q_s8(values, fields(bytes, 0, 15)));
    vst1q_s8(q + 16, vqtbl1q_s8(values, fields(bytes, 4, 15)));
}

/* The index-th run of a type with K: its 16 elements from `at` on. */
INLINE int8x16_t k_part(const enum dtype dtype, const uint8_t *block, uint32_t index, uint32_t at)
{
    const uint32_t half = index / 4, quarter = index % 4;

    switch (dtype) {
    case DTYPE_Q2_K:
        return less(fields(block + 16 + half * 32 + at, quarter * 2, 3), 0);
    case DTYPE_Q3_K:
        return less(vorrq_u8(fields(block + 32 + half * 32 + at, quarter * 2, 3),
                             vshlq_n_u8(fields(block + at, index, 1), 2)), 4);
    case DTYPE_Q5_K:
        return less(vorrq_u8(fields(block + 48 + index / 2 * 32 + at, index % 2 * 4, 15),
                             vshlq_n_u8(fields(block + 16 + at, index, 1), 4)), 0);
    case DTYPE_Q6_K:
        return less(vorrq_u8(fields(block + half * 64 + quarter % 2 * 32 + at, quarter / 2 * 4,
                                    15),
                             vshlq_n_u8(fields(block + 128 + half * 32 + at, quarter * 2, 3), 4)),
                    32);
    default:
        return less(fields(block + 16 + index / 2 * 32 + at, index % 2 * 4, 15), 0);
    }
}

INLINE void put_numbers(const enum dtype dtype, const uint8_t *block, uint32_t index, int8_t *q)
{
    switch (dtype) {
    case DTYPE_Q8_0: memcpy(q, block + 2, QUANT_RUN_ELEMENTS); break;
    case DTYPE_Q4_0: put_halves(q, block + 2, 8); break;
    case DTYPE_Q4_1: put_halves(q, block + 4, 0); break;
    case DTYPE_Q5_0: put_fives(q, block + 2, block + 6, 16); break;
    case DTYPE_Q5_1: put_fives(q, block + 4, block + 8, 0); break;
    case DTYPE_IQ4_NL: put_meanings(q, block + 2, quant_iq4_values); break;
    case DTYPE_IQ4_XS: put_meanings(q, block + 8 + 16 * index, quant_iq4_values); break;
    case DTYPE_MXFP4: put_meanings(q, block + 1, quant_mxfp4_values); break;
    default:
        vst1q_s8(q, k_part(dtype, block, index, 0));
        vst1q_s8(q + 16, k_part(dtype, block, index, 16));
    }
}

/* ---- scales ---- */

/* Of a block's runs, in the order of its elements; types with one scale leave each second alone. */
struct arm_scales {
    float scales[2 * RUNS_MAX], mins[2 * RUNS_MAX];
};

INLINE void k45_scales(const uint8_t *block, struct arm_scales *scales)
{
    const float d = f16_at(block), dmin = f16_at(block + 2);
    uint8_t s[RUNS_MAX], m[RUNS_MAX];

    quant_k4_scales(block + 4, s, m);
    for (uint32_t i = 0; i < RUNS_MAX; i++) {
        scales->scales[2 * i] = d * (float)s[i];
        scales->mins[2 * i] = -(dmin * (float)m[i]);
    }
}

INLINE void k26_scales(const enum dtype dtype, const uint8_t *block, struct arm_scales *scales)
{
    const bool q2 = dtype == DTYPE_Q2_K;
    const float d = f16_at(block + (q2 ? 80 : 208)), dmin = q2 ? f16_at(block + 82) : 0;

    for (uint32_t i = 0; i < 2 * RUNS_MAX; i++) {
        scales->scales[i] = d * (q2 ? (float)(block[i] & 15) : (float)(int8_t)block[192 + i]);
        if (q2)
            scales->mins[i] = -(dmin * (float)(block[i] >> 4));
    }
}

INLINE void signed_scales(const enum dtype dtype, const uint8_t *block, struct arm_scales *scales)
{
    const bool q3 = dtype == DTYPE_Q3_K;
    const float d = f16_at(block + (q3 ? 108 : 0));
    int8_t s[2 * RUNS_MAX];

    if (q3)
        quant_k3_scales(block + 96, s);
    else
        quant_iq4_xs_scales(block, s);
    for (uint32_t i = 0; i < (q3 ? 2 * RUNS_MAX : RUNS_MAX); i++)
        scales->scales[q3 ? i : 2 * i] = d * (float)s[i];
}

INLINE void read_scales(const enum dtype dtype, const uint8_t *block, struct arm_scales *scales)
{
    switch (dtype) {
    case DTYPE_Q4_K: case DTYPE_Q5_K: k45_scales(block, scales); break;
    case DTYPE_Q2_K: case DTYPE_Q6_K: k26_scales(dtype, block, scales); break;
    case DTYPE_Q3_K: case DTYPE_IQ4_XS: signed_scales(dtype, block, scales); break;
    case DTYPE_MXFP4: scales->scales[0] = quant_mxfp4_scale(block[0]); break;
    default:
        scales->scales[0] = f16_at(block);
        if (has_mins(dtype))
            scales->mins[0] = f16_at(block + 2);
    }
}

#endif
