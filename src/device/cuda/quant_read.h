/* device/cuda/quant_read.h - a part of a quantised run, as a lane of a matrix product wants it:
 * only for .cu files.
 *
 * tensor/quant.h has the layouts. Of a run of 32 elements lane q, 0 to 3, takes elements 4q to
 * 4q + 3 of each half, as four int8 in a word; scales and minimums are the run's. The integers and
 * factors are those of quant_run_read, bit for bit.
 *
 * Bytes come through a reader, since blocks stand at any address: struct quant_shared for those
 * that were brought to shared memory, struct quant_memory for those in device memory. */
#ifndef LIGHTER_DEVICE_CUDA_QUANT_READ_H
#define LIGHTER_DEVICE_CUDA_QUANT_READ_H

#include "device/cuda/gpu.h"
#include "tensor/dtype.h"

struct quant_part {
    uint32_t q[2];            /* of each half: four int8 */
    float scales[2], mins[2]; /* of each half */
};

/* What is fixed for a type. */
template <int dtype> struct quant_type {
    static constexpr bool is_k = dtype == DTYPE_Q2_K || dtype == DTYPE_Q3_K ||
                                 dtype == DTYPE_Q4_K || dtype == DTYPE_Q5_K ||
                                 dtype == DTYPE_Q6_K || dtype == DTYPE_IQ4_XS;
    static constexpr uint32_t runs = is_k ? 8 : 1; /* in a block; F8_E4M3 has none */
    static constexpr uint32_t elements = dtype == DTYPE_F8_E4M3      ? 128
                                         : dtype == DTYPE_F8_E4M3_16 ? 16
                                                                     : 32 * runs;
    static constexpr uint32_t bytes = dtype == DTYPE_Q8_0     ? 34
                                      : dtype == DTYPE_F8_E4M3 ? 132
                                      : dtype == DTYPE_F8_E4M3_16 ? 20
                                      : dtype == DTYPE_INT4   ? 19
                                      : dtype == DTYPE_Q4_0   ? 18
                                      : dtype == DTYPE_Q4_1   ? 20
                                      : dtype == DTYPE_Q5_0   ? 22
                                      : dtype == DTYPE_Q5_1   ? 24
                                      : dtype == DTYPE_IQ4_NL ? 18
                                      : dtype == DTYPE_MXFP4  ? 17
                                      : dtype == DTYPE_Q2_K   ? 84
                                      : dtype == DTYPE_Q3_K   ? 110
                                      : dtype == DTYPE_Q4_K   ? 144
                                      : dtype == DTYPE_Q5_K   ? 176
                                      : dtype == DTYPE_Q6_K   ? 210
                                                              : 136;
    static constexpr bool mins = dtype == DTYPE_Q4_1 || dtype == DTYPE_Q5_1 ||
                                 dtype == DTYPE_Q2_K || dtype == DTYPE_Q4_K || dtype == DTYPE_Q5_K;
    static constexpr bool two_scales = dtype == DTYPE_Q2_K || dtype == DTYPE_Q3_K ||
                                       dtype == DTYPE_Q6_K;
};

/* An element of an F8_E4M3 block without its scale: 4 bits of exponent and 3 of mantissa, whose
 * places in F32 make it 2^120 times too small. */
__device__ static inline float quant_e4m3(uint32_t e)
{
    return __uint_as_float((e & 0x80) << 24 | (e & 0x7f) << 20) * 0x1p120f;
}

struct quant_shared {
    const uint32_t *memory;
    uint32_t at; /* the block's first byte */

    __device__ uint32_t word(uint32_t byte) const { return gpu_bits_at(memory, at + byte); }
    __device__ uint32_t byte(uint32_t byte) const { return ((const uint8_t *)memory)[at + byte]; }
};

struct quant_memory {
    const uint8_t *block;

    __device__ uint32_t byte(uint32_t byte) const { return block[byte]; }
    __device__ uint32_t word(uint32_t at) const
    {
        return byte(at) | byte(at + 1) << 8 | byte(at + 2) << 16 | byte(at + 3) << 24;
    }
};

template <typename reader> __device__ static inline float quant_f16(const reader &from, uint32_t at)
{
    return gpu_f16_to_f32(from.byte(at) | from.byte(at + 1) << 8);
}

/* Four bits become the bits 0 of four bytes. */
__device__ static inline uint32_t quant_spread(uint32_t bits)
{
    return (bits & 15) * 0x00204081u & 0x01010101u;
}

/* Four numbers below 16, each in a byte, become bytes of a table of 16 in four words. */
__device__ static inline uint32_t quant_look_up(uint32_t numbers, uint32_t t0, uint32_t t1,
                                                uint32_t t2, uint32_t t3)
{
    const uint32_t choice = (numbers & 7) | (numbers >> 4 & 0x70) | (numbers >> 8 & 0x700) |
                            (numbers >> 12 & 0x7000);
    const uint32_t upper = (numbers >> 3 & 0x01010101u) * 0xff;

    return (__byte_perm(t0, t1, choice) & ~upper) | (__byte_perm(t2, t3, choice) & upper);
}

/* quant_iq4_values and quant_mxfp4_values. */
__device__ static inline uint32_t quant_iq4(uint32_t numbers)
{
    return quant_look_up(numbers, 0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u);
}

__device__ static inline uint32_t quant_mxfp4(uint32_t numbers)
{
    return quant_look_up(numbers, 0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu);
}

__device__ static inline void quant_set(struct quant_part *part, float scale, float min)
{
    part->scales[0] = part->scales[1] = scale;
    part->mins[0] = part->mins[1] = min;
}

/* 16 bytes of halves at `at`. */
template <typename reader>
__device__ static inline void quant_halves(struct quant_part *part, const reader &from, uint32_t at,
                                           uint32_t q)
{
    const uint32_t word = from.word(at + 4 * q);

    part->q[0] = word & 0x0f0f0f0fu;
    part->q[1] = word >> 4 & 0x0f0f0f0fu;
}

/* Two bits, or four, of each of the run's bytes at `at`. */
template <typename reader>
__device__ static inline void quant_fields(struct quant_part *part, const reader &from, uint32_t at,
                                           uint32_t q, uint32_t shift, uint32_t mask)
{
    part->q[0] = from.word(at + 4 * q) >> shift & mask;
    part->q[1] = from.word(at + 16 + 4 * q) >> shift & mask;
}

/* Types whose blocks are one run. */
template <int dtype, typename reader>
__device__ static inline void quant_read_small(struct quant_part *part, const reader &from,
                                               uint32_t q)
{
    if (dtype == DTYPE_MXFP4) {
        const uint32_t e = from.byte(0);

        quant_set(part, __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23), 0);
        quant_halves(part, from, 1, q);
        part->q[0] = quant_mxfp4(part->q[0]);
        part->q[1] = quant_mxfp4(part->q[1]);
        return;
    }
    quant_set(part, quant_f16(from, 0), quant_type<dtype>::mins ? quant_f16(from, 2) : 0);
    if (dtype == DTYPE_Q8_0) {
        part->q[0] = from.word(2 + 4 * q);
        part->q[1] = from.word(18 + 4 * q);
    } else if (dtype == DTYPE_Q5_0 || dtype == DTYPE_Q5_1) {
        const uint32_t fifth = from.word(dtype == DTYPE_Q5_0 ? 2 : 4);

        quant_halves(part, from, dtype == DTYPE_Q5_0 ? 6 : 8, q);
        part->q[0] |= quant_spread(fifth >> 4 * q) << 4;
        part->q[1] |= quant_spread(fifth >> (16 + 4 * q)) << 4;
    } else {
        quant_halves(part, from, dtype == DTYPE_Q4_1 ? 4 : dtype == DTYPE_INT4 ? 3 : 2, q);
    }
    for (int half = 0; half < 2; half++) {
        if (dtype == DTYPE_Q4_0)
            part->q[half] = __vsub4(part->q[half], 0x08080808u);
        if (dtype == DTYPE_INT4)
            part->q[half] = __vsub4(part->q[half], (from.byte(2) & 15) * 0x01010101u);
        if (dtype == DTYPE_Q5_0)
            part->q[half] = __vsub4(part->q[half], 0x10101010u);
        if (dtype == DTYPE_IQ4_NL)
            part->q[half] = quant_iq4(part->q[half]);
    }
}

template <typename reader>
__device__ static inline void quant_read_q2_k(struct quant_part *part, const reader &from,
                                              uint32_t run, uint32_t q)
{
    const float d = quant_f16(from, 80), dmin = quant_f16(from, 82);

    quant_fields(part, from, 16 + run / 4 * 32, q, run % 4 * 2, 0x03030303u);
    for (uint32_t half = 0; half < 2; half++) {
        const uint32_t both = from.byte(2 * run + half);

        part->scales[half] = d * (float)(both & 15);
        part->mins[half] = -(dmin * (float)(both >> 4));
    }
}

template <typename reader>
__device__ static inline void quant_read_q3_k(struct quant_part *part, const reader &from,
                                              uint32_t run, uint32_t q)
{
    const float d = quant_f16(from, 108);

    quant_fields(part, from, 32 + run / 4 * 32, q, run % 4 * 2, 0x03030303u);
    for (uint32_t half = 0; half < 2; half++) {
        const uint32_t i = 2 * run + half;
        const uint32_t third = from.word(16 * half + 4 * q) >> run & 0x01010101u;
        const uint32_t low = from.byte(96 + i % 8) >> i / 8 * 4 & 15;
        const uint32_t high = from.byte(104 + i % 4) >> i / 4 * 2 & 3;

        part->q[half] = __vsub4(part->q[half] | third << 2, 0x04040404u);
        part->scales[half] = d * (float)((int)(low | high << 4) - 32);
        part->mins[half] = 0;
    }
}

/* Q5_K is Q4_K with the fifth bits before the others. */
template <bool has_fifth, typename reader>
__device__ static inline void quant_read_q45_k(struct quant_part *part, const reader &from,
                                               uint32_t run, uint32_t q)
{
    uint32_t scale, min;

    quant_fields(part, from, (has_fifth ? 48 : 16) + run / 2 * 32, q, run % 2 * 4, 0x0f0f0f0fu);
    for (uint32_t half = 0; has_fifth && half < 2; half++)
        part->q[half] |= (from.word(16 + 16 * half + 4 * q) >> run & 0x01010101u) << 4;
    if (run < 4) {
        scale = from.byte(4 + run) & 63;
        min = from.byte(8 + run) & 63;
    } else {
        scale = (from.byte(8 + run) & 15) | from.byte(run) >> 6 << 4;
        min = from.byte(8 + run) >> 4 | from.byte(4 + run) >> 6 << 4;
    }
    quant_set(part, quant_f16(from, 0) * (float)scale, -(quant_f16(from, 2) * (float)min));
}

template <typename reader>
__device__ static inline void quant_read_q6_k(struct quant_part *part, const reader &from,
                                              uint32_t run, uint32_t q)
{
    const float d = quant_f16(from, 208);
    const uint32_t part_of = run / 4, quarter = run % 4;

    quant_fields(part, from, part_of * 64 + quarter % 2 * 32, q, quarter / 2 * 4, 0x0f0f0f0fu);
    for (uint32_t half = 0; half < 2; half++) {
        const uint32_t upper = from.word(128 + part_of * 32 + 16 * half + 4 * q) >> quarter * 2;

        part->q[half] = __vsub4(part->q[half] | (upper & 0x03030303u) << 4, 0x20202020u);
        part->scales[half] = d * (float)(int8_t)from.byte(192 + 2 * run + half);
        part->mins[half] = 0;
    }
}

template <typename reader>
__device__ static inline void quant_read_iq4_xs(struct quant_part *part, const reader &from,
                                                uint32_t run, uint32_t q)
{
    const uint32_t upper = from.byte(2) | from.byte(3) << 8;
    const uint32_t low = from.byte(4 + run / 2) >> run % 2 * 4 & 15;

    quant_halves(part, from, 8 + run * 16, q);
    part->q[0] = quant_iq4(part->q[0]);
    part->q[1] = quant_iq4(part->q[1]);
    quant_set(part, quant_f16(from, 0) * (float)((int)(low | (upper >> 2 * run & 3) << 4) - 32), 0);
}

/* Of the block that `from` begins with, the run-th run, lane q's part. */
template <int dtype, typename reader>
__device__ static inline void quant_read(struct quant_part *part, const reader &from, uint32_t run,
                                         uint32_t q)
{
    if (dtype == DTYPE_Q2_K)
        quant_read_q2_k(part, from, run, q);
    else if (dtype == DTYPE_Q3_K)
        quant_read_q3_k(part, from, run, q);
    else if (dtype == DTYPE_Q4_K)
        quant_read_q45_k<false>(part, from, run, q);
    else if (dtype == DTYPE_Q5_K)
        quant_read_q45_k<true>(part, from, run, q);
    else if (dtype == DTYPE_Q6_K)
        quant_read_q6_k(part, from, run, q);
    else if (dtype == DTYPE_IQ4_XS)
        quant_read_iq4_xs(part, from, run, q);
    else
        quant_read_small<dtype>(part, from, q);
}

#endif
