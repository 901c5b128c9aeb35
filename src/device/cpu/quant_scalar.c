/* device/cpu/quant_scalar.c - the reference for quantised weights: kernels.h in plain C. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "device/cpu/quant.h"
#include "tensor/quant.h"

static_assert(CPU_QUANT_BLOCK_ELEMENTS == QUANT_BLOCK_ELEMENTS, "x is cut as the weights are");

/* Adding 1.5 * 2^23 leaves the nearest integer, ties to even, in a float's low bits. */
static int32_t nearest(float value)
{
    const float shifted = value + 0x1.8p23f;
    uint32_t bits;

    memcpy(&bits, &shifted, sizeof(bits));
    return (int32_t)bits - 0x4B400000;
}

static void quantise_block(struct cpu_quant_block *block, const float *x, int32_t offset)
{
    int32_t largest_bits = 0;
    int32_t sum = 0;
    float largest, factor;

    for (uint32_t i = 0; i < CPU_QUANT_BLOCK_ELEMENTS; i++) {
        int32_t bits;
        memcpy(&bits, &x[i], sizeof(bits));
        bits &= CPU_MAGNITUDE_BITS;
        largest_bits = bits > largest_bits ? bits : largest_bits;
    }
    memcpy(&largest, &largest_bits, sizeof(largest));
    memset(block, 0, sizeof(*block));
    if (largest_bits >= CPU_INFINITY_BITS) {
        block->scale = NAN;
        return;
    }
    if (largest < CPU_QUANT_LEAST)
        return;
    block->scale = largest / 127;
    factor = 127 / largest;
    for (uint32_t i = 0; i < CPU_QUANT_BLOCK_ELEMENTS; i++) {
        const int32_t q = nearest(x[i] * factor);
        block->q[i] = (int8_t)q;
        sum += q;
    }
    block->correction = -offset * sum;
}

void cpu__quantise_scalar(struct cpu_quant_block *blocks, const float *x, uint32_t count,
                          enum dtype weight_dtype)
{
    for (uint32_t b = 0; b < count / CPU_QUANT_BLOCK_ELEMENTS; b++)
        quantise_block(&blocks[b], x + b * CPU_QUANT_BLOCK_ELEMENTS,
                       cpu__quant_offset(weight_dtype));
}

static int32_t dot_q8_0(const uint8_t *weights, const int8_t *q)
{
    int32_t sum = 0;

    for (uint32_t i = 0; i < QUANT_BLOCK_ELEMENTS; i++)
        sum += (int8_t)weights[i] * q[i];
    return sum;
}

static int32_t dot_q4_0(const uint8_t *weights, const int8_t *q)
{
    enum { HALF = QUANT_BLOCK_ELEMENTS / 2 };
    int32_t sum = 0;

    for (uint32_t i = 0; i < HALF; i++)
        sum += ((weights[i] & 15) - 8) * q[i] + ((weights[i] >> 4) - 8) * q[i + HALF];
    return sum;
}

static float dot_row(const uint8_t *row, enum dtype dtype, const struct cpu_quant_block *blocks,
                     uint32_t block_count)
{
    const uint32_t block_bytes = dtype_info(dtype)->block_bytes;
    float sum = 0;

    for (uint32_t b = 0; b < block_count; b++, row += block_bytes) {
        const float scale = f16_to_f32((uint16_t)(row[0] | row[1] << 8));
        const int32_t dot = dtype == DTYPE_Q8_0 ? dot_q8_0(row + 2, blocks[b].q)
                                                : dot_q4_0(row + 2, blocks[b].q);
        sum = fmaf((float)dot, blocks[b].scale * scale, sum);
    }
    return sum;
}

void cpu__matmul_quant_scalar(const struct cpu_strip *strip, void *scratch)
{
    const uint64_t row_bytes = dtype_row_bytes(strip->weight_dtype, strip->weight_row_stride);

    (void)scratch;
    for (uint32_t n = 0; n < strip->n_count; n++) {
        const uint8_t *row = (const uint8_t *)strip->weight + n * row_bytes;
        for (uint32_t r = 0; r < strip->row_count; r++) {
            float *out = &strip->out[r * strip->out_row_stride + n];
            float sum = dot_row(row, strip->weight_dtype, strip->x_blocks[r],
                                strip->k_count / QUANT_BLOCK_ELEMENTS);
            if (strip->bias != NULL)
                sum += strip->bias[n];
            *out = strip->accumulate ? *out + sum : sum;
        }
    }
}
