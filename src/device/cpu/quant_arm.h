/* device/cpu/quant_arm.h - products with quantised weights in NEON registers; included once by each
 * of the files that compile it for an instruction set: quant_neon.c, quant_dotprod.c, quant_i8mm.c.
 *
 * Four weight rows go together, a block at a time: its runs are unpacked to signed bytes, which
 * stay in the first-level cache while all rows of x take their turn. A vector's lanes are the four
 * rows, so that a chain of FMAs over the runs is one output's sum (kernels.h):
 *
 *     NEON      products of 8 bits are of 16, and are added in pairs to 32
 *     dotprod   SDOT adds four products to a lane: two for a run of a row; pairwise additions make
 *               four rows' dot products of them
 *     i8mm      SMMLA multiplies 2 x 8 by 8 x 2: two rows of x and two of weights in one. So the
 *               rows of weights lie in pairs, eight elements of the one, eight of the other
 *
 * The integers are exact in any order, so all of them, and all other tables, agree bit for bit. */
#ifndef LIGHTER_DEVICE_CPU_QUANT_ARM_H
#define LIGHTER_DEVICE_CPU_QUANT_ARM_H

#include <string.h>

#include "device/cpu/neon.h"
#include "device/cpu/quant.h"
#include "device/cpu/quant_arm_types.h"

/* Of four rows, one run. */
struct arm_run {
    int8_t q[WIDTH][QUANT_RUN_ELEMENTS]; /* i8mm: rows in pairs, 2 x 8 elements behind each other */
    float scales[2][WIDTH], mins[2][WIDTH];
};

/* The block of the group's row-th row. */
INLINE void unpack_block(const enum dtype dtype, const uint8_t *block, uint32_t row,
                         struct arm_run *runs)
{
    struct arm_scales scales;

    read_scales(dtype, block, &scales);
    for (uint32_t i = 0; i < runs_per_block(dtype); i++) {
        put_numbers(dtype, block, i, runs[i].q[row]);
        runs[i].scales[0][row] = scales.scales[2 * i];
        if (has_two_scales(dtype))
            runs[i].scales[1][row] = scales.scales[2 * i + 1];
        if (has_mins(dtype))
            runs[i].mins[0][row] = scales.mins[2 * i];
        if (has_mins(dtype) && has_two_scales(dtype))
            runs[i].mins[1][row] = scales.mins[2 * i + 1];
    }
}

/* ---- dot products of a run of four rows ---- */

#if defined(__ARM_FEATURE_DOTPROD)
INLINE int32x4_t add_dot(int32x4_t sums, int8x16_t a, int8x16_t b)
{
    return vdotq_s32(sums, a, b);
}
#else
INLINE int32x4_t add_dot(int32x4_t sums, int8x16_t a, int8x16_t b)
{
    sums = vpadalq_s16(sums, vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    return vpadalq_s16(sums, vmull_high_s8(a, b));
}
#endif

/* Lane i: the sum of p[i]. */
INLINE int32x4_t join(const int32x4_t p[WIDTH])
{
    return vpaddq_s32(vpaddq_s32(p[0], p[1]), vpaddq_s32(p[2], p[3]));
}

/* x's dot products with halves [from, to) of the four rows' runs. */
INLINE int32x4_t dots_of(const struct arm_run *run, const struct cpu_quant_block *x,
                         const uint32_t from, const uint32_t to)
{
    int32x4_t p[WIDTH];

#pragma GCC unroll 4
    for (uint32_t i = 0; i < WIDTH; i++) {
        p[i] = vdupq_n_s32(0);
#pragma GCC unroll 2
        for (uint32_t h = from; h < to; h++)
            p[i] = add_dot(p[i], vld1q_s8(run->q[i] + 16 * h), vld1q_s8(x->q + 16 * h));
    }
    return join(p);
}

#if defined(__ARM_FEATURE_MATMUL_INT8)
/* The same of two rows of x at once. */
INLINE void dots_of_two(const struct arm_run *run, const struct cpu_quant_block *x0,
                        const struct cpu_quant_block *x1, const uint32_t from, const uint32_t to,
                        int32x4_t dots[2])
{
    int32x4_t low = vdupq_n_s32(0), high = vdupq_n_s32(0); /* rows 0 and 1, rows 2 and 3 */
    const int8_t *q = run->q[0];

#pragma GCC unroll 4
    for (uint32_t e = 2 * from; e < 2 * to; e++) { /* eight elements */
        const int8x16_t x = vcombine_s8(vld1_s8(x0->q + 8 * e), vld1_s8(x1->q + 8 * e));
        low = vmmlaq_s32(low, x, vld1q_s8(q + 16 * e));
        high = vmmlaq_s32(high, x, vld1q_s8(q + 64 + 16 * e));
    }
    dots[0] = vcombine_s32(vget_low_s32(low), vget_low_s32(high));
    dots[1] = vcombine_s32(vget_high_s32(low), vget_high_s32(high));
}

/* Rows in pairs, eight elements of each in turn. */
INLINE void pair_rows(struct arm_run *run)
{
#pragma GCC unroll 2
    for (uint32_t i = 0; i < WIDTH; i += 2) {
        int8_t *q = run->q[i];
        const int8x16_t a0 = vld1q_s8(q), a1 = vld1q_s8(q + 16);
        const int8x16_t b0 = vld1q_s8(q + 32), b1 = vld1q_s8(q + 48);

        vst1q_s8(q, vcombine_s8(vget_low_s8(a0), vget_low_s8(b0)));
        vst1q_s8(q + 16, vcombine_s8(vget_high_s8(a0), vget_high_s8(b0)));
        vst1q_s8(q + 32, vcombine_s8(vget_low_s8(a1), vget_low_s8(b1)));
        vst1q_s8(q + 48, vcombine_s8(vget_high_s8(a1), vget_high_s8(b1)));
    }
}
#endif

/* ---- chains ---- */

INLINE float32x4_t add_run(float32x4_t sums, int32x4_t dots, float x_scale, const float *scales)
{
    return vfmaq_f32(sums, vcvtq_f32_s32(dots), vmulq_n_f32(vld1q_f32(scales), x_scale));
}

/* dots: of both halves, or of the first and the second. */
INLINE float32x4_t add_products(const enum dtype dtype, float32x4_t sums,
                                const struct arm_run *run, const struct cpu_quant_block *x,
                                const int32x4_t dots[2])
{
    const bool two = has_two_scales(dtype), mins = has_mins(dtype);

    sums = add_run(sums, dots[0], x->scale, run->scales[0]);
    if (mins)
        sums = vfmaq_n_f32(sums, vld1q_f32(run->mins[0]),
                           two ? x->scale * (float)x->sums[0] : x->scaled_sum);
    if (!two)
        return sums;
    sums = add_run(sums, dots[1], x->scale, run->scales[1]);
    return mins ? vfmaq_n_f32(sums, vld1q_f32(run->mins[1]), x->scale * (float)x->sums[1]) : sums;
}

/* Adds what run_count runs make with a row of x to its sums. */
INLINE float32x4_t one_row(const enum dtype dtype, float32x4_t sums, const struct arm_run *runs,
                           const struct cpu_quant_block *x, const uint32_t run_count)
{
    for (uint32_t i = 0; i < run_count; i++) {
        int32x4_t dots[2];
        if (has_two_scales(dtype)) {
            dots[0] = dots_of(&runs[i], &x[i], 0, 1);
            dots[1] = dots_of(&runs[i], &x[i], 1, 2);
        } else {
            dots[0] = dots[1] = dots_of(&runs[i], &x[i], 0, 2);
        }
        sums = add_products(dtype, sums, &runs[i], &x[i], dots);
    }
    return sums;
}

#if defined(__ARM_FEATURE_MATMUL_INT8)
INLINE void two_rows(const enum dtype dtype, float32x4_t sums[2], const struct arm_run *runs,
                     const struct cpu_quant_block *x0, const struct cpu_quant_block *x1,
                     const uint32_t run_count)
{
    for (uint32_t i = 0; i < run_count; i++) {
        int32x4_t first[2], second[2];
        if (has_two_scales(dtype)) {
            dots_of_two(&runs[i], &x0[i], &x1[i], 0, 1, first);
            dots_of_two(&runs[i], &x0[i], &x1[i], 1, 2, second);
        } else {
            dots_of_two(&runs[i], &x0[i], &x1[i], 0, 2, first);
            second[0] = second[1] = first[0];
        }
        sums[0] = add_products(dtype, sums[0], &runs[i], &x0[i],
                               (const int32x4_t[2]){ first[0], second[0] });
        sums[1] = add_products(dtype, sums[1], &runs[i], &x1[i],
                               (const int32x4_t[2]){ first[1], second[1] });
    }
}
#endif

/* ---- strips ---- */

static __attribute__((noinline)) void put(const struct cpu_strip *strip, uint32_t n,
                                          uint32_t count, const float32x4_t *sums)
{
    for (uint32_t r = 0; r < strip->row_count; r++) {
        float *out = strip->out + r * strip->out_row_stride + n;
        float lanes[WIDTH];

        vst1q_f32(lanes, sums[r]);
        for (uint32_t i = 0; i < count; i++) {
            if (strip->bias != NULL)
                lanes[i] += strip->bias[n + i];
            out[i] = strip->accumulate ? out[i] + lanes[i] : lanes[i];
        }
    }
}

/* All rows of x by the runs of one block, the first of which is the run-th of a row. */
INLINE void multiply_block(const struct cpu_strip *strip, const enum dtype dtype,
                           struct arm_run *runs, const uint32_t run_count, uint32_t run,
                           float32x4_t *sums)
{
    uint32_t r = 0;

#if defined(__ARM_FEATURE_MATMUL_INT8)
    if (strip->row_count > 1) {
        for (uint32_t i = 0; i < run_count; i++)
            pair_rows(&runs[i]);
        for (; r < strip->row_count; r += 2) { /* of an odd number the last one twice */
            const uint32_t next = r + 1 < strip->row_count ? r + 1 : r;
            float32x4_t both[2] = { sums[r], sums[next] };
            two_rows(dtype, both, runs, strip->x_blocks[r] + run, strip->x_blocks[next] + run,
                     run_count);
            sums[r] = both[0];
            if (next != r)
                sums[next] = both[1];
        }
    }
#endif
    for (; r < strip->row_count; r++)
        sums[r] = one_row(dtype, sums[r], runs, strip->x_blocks[r] + run, run_count);
}

INLINE void multiply(const struct cpu_strip *strip, const enum dtype dtype)
{
    const uint32_t run_count = runs_per_block(dtype);
    const uint32_t block_count = strip->k_count / QUANT_RUN_ELEMENTS / run_count;
    const uint64_t row_bytes = strip->weight_row_stride / QUANT_RUN_ELEMENTS / run_count *
                               block_bytes(dtype);
    float32x4_t sums[CPU_STRIP_ROWS_MAX];

    for (uint32_t n = 0; n < strip->n_count; n += WIDTH) {
        const uint32_t left = strip->n_count - n, count = left < WIDTH ? left : WIDTH;
        const uint8_t *rows[WIDTH];

        for (uint32_t i = 0; i < WIDTH; i++) /* of fewer the last one several times */
            rows[i] = (const uint8_t *)strip->weight +
                      (n + (i < count ? i : count - 1)) * row_bytes;
        for (uint32_t r = 0; r < strip->row_count; r++)
            sums[r] = vdupq_n_f32(0);
        for (uint32_t b = 0; b < block_count; b++) {
            struct arm_run runs[RUNS_MAX];

            for (uint32_t i = 0; i < WIDTH; i++)
                unpack_block(dtype, rows[i] + (uint64_t)b * block_bytes(dtype), i, runs);
            multiply_block(strip, dtype, runs, run_count, b * run_count, sums);
        }
        put(strip, n, count, sums);
    }
}

#define MULTIPLY(type)                                                                             \
    static __attribute__((noinline)) void multiply_##type(const struct cpu_strip *strip)           \
    {                                                                                              \
        multiply(strip, DTYPE_##type);                                                             \
    }

CPU_QUANT_ONE_SCALE(MULTIPLY)
CPU_QUANT_TWO_SCALES(MULTIPLY)

static inline void multiply_any(const struct cpu_strip *strip, void *scratch)
{
    switch (strip->weight_dtype) {
#define CASE(type) case DTYPE_##type: multiply_##type(strip); break;
        CPU_QUANT_ONE_SCALE(CASE) CPU_QUANT_TWO_SCALES(CASE)
#undef CASE
    default: cpu__matmul_quant_scalar(strip, scratch);
    }
}

#endif
