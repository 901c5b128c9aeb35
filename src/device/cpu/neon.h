/* device/cpu/neon.h - what the NEON files share; include it only from files for arm64. */
#ifndef LIGHTER_DEVICE_CPU_NEON_H
#define LIGHTER_DEVICE_CPU_NEON_H

#include <arm_neon.h>

#include "device/cpu/kernels.h"

/* As in avx2.h: code of its own for each data type and number of rows, but in debug builds. */
#ifdef LIGHTER_DEBUG
#define INLINE static __attribute__((unused))
#else
#define INLINE static inline __attribute__((always_inline))
#endif

void cpu__matmul_neon(const struct cpu_strip *strip, void *scratch);
void cpu__matmul_quant_neon(const struct cpu_strip *strip, void *scratch);
void cpu__matmul_quant_dotprod(const struct cpu_strip *strip, void *scratch);
void cpu__matmul_quant_i8mm(const struct cpu_strip *strip, void *scratch);
void cpu__quantise_neon(struct cpu_quant_block *blocks, const float *x, uint32_t count);

/* The sum of eight lanes, in the order that kernels.h states. */
static inline float sum_lanes(float32x4_t first, float32x4_t second)
{
    const float32x4_t pairs = vpaddq_f32(first, second);
    const float32x4_t fours = vpaddq_f32(pairs, pairs);

    return vgetq_lane_f32(fours, 0) + vgetq_lane_f32(fours, 1);
}

/* count < 4 elements; the rest is zero. Nothing behind them is read. */
static inline float32x4_t load_few(const float *from, uint32_t count)
{
    float values[4] = { 0 };

    for (uint32_t i = 0; i < count; i++)
        values[i] = from[i];
    return vld1q_f32(values);
}

static inline void store_few(float *to, float32x4_t lanes, uint32_t count)
{
    float values[4];

    vst1q_f32(values, lanes);
    for (uint32_t i = 0; i < count; i++)
        to[i] = values[i];
}

#endif
