/* device/cpu/quant_neon.c - products with quantised weights, and x as blocks, in NEON. */
#include <math.h>

#include "device/cpu/quant_arm.h"

void cpu__matmul_quant_neon(const struct cpu_strip *strip, void *scratch)
{
    multiply_any(strip, scratch);
}

static void quantise_block(struct cpu_quant_block *block, const float *x)
{
    uint32x4_t largest_bits = vdupq_n_u32(0);
    float32x4_t values[8];
    int16x8_t whole[4];
    uint32_t bits;
    float largest;

    for (uint32_t i = 0; i < 8; i++) {
        values[i] = vld1q_f32(x + 4 * i);
        largest_bits = vmaxq_u32(largest_bits, vandq_u32(vreinterpretq_u32_f32(values[i]),
                                                         vdupq_n_u32(CPU_MAGNITUDE_BITS)));
    }
    bits = vmaxvq_u32(largest_bits);
    memcpy(&largest, &bits, sizeof(largest));
    if (bits >= CPU_INFINITY_BITS || largest < CPU_QUANT_LEAST) {
        memset(block, 0, sizeof(*block));
        if (bits >= CPU_INFINITY_BITS)
            block->scale = block->scaled_sum = NAN;
        return;
    }
    block->scale = largest / 127;
    for (uint32_t i = 0; i < 4; i++)
        whole[i] = vcombine_s16(
            vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(values[2 * i], 127 / largest))),
            vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(values[2 * i + 1], 127 / largest))));
    for (uint32_t h = 0; h < 2; h++) {
        vst1q_s8(block->q + 16 * h,
                 vcombine_s8(vmovn_s16(whole[2 * h]), vmovn_s16(whole[2 * h + 1])));
        block->sums[h] = vaddvq_s16(vaddq_s16(whole[2 * h], whole[2 * h + 1]));
    }
    block->scaled_sum = block->scale * (float)(block->sums[0] + block->sums[1]);
}

void cpu__quantise_neon(struct cpu_quant_block *blocks, const float *x, uint32_t count)
{
    for (uint32_t b = 0; b < count / CPU_QUANT_BLOCK_ELEMENTS; b++)
        quantise_block(&blocks[b], x + b * CPU_QUANT_BLOCK_ELEMENTS);
}
