/* device/cpu/quant_scalar.c - the reference for quantised weights: kernels.h in plain C. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "device/cpu/quant.h"
#include "tensor/quant.h"

static_assert(CPU_QUANT_BLOCK_ELEMENTS == QUANT_RUN_ELEMENTS, "x is cut as the weights are");

#define HALF (QUANT_RUN_ELEMENTS / 2)

/* Adding 1.5 * 2^23 leaves the nearest integer, ties to even, in a float's low bits. */
static int32_t nearest(float value)
{
    const float shifted = value + 0x1.8p23f;
    uint32_t bits;

    memcpy(&bits, &shifted, sizeof(bits));
    return (int32_t)bits - 0x4B400000;
}

static void quantise_block(struct cpu_quant_block *block, const float *x)
{
    int32_t largest_bits = 0;
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
        block->scale = block->scaled_sum = NAN;
        return;
    }
    if (largest < CPU_QUANT_LEAST)
        return;
    block->scale = largest / 127;
    factor = 127 / largest;
    for (uint32_t i = 0; i < CPU_QUANT_BLOCK_ELEMENTS; i++) {
        const int32_t q = nearest(x[i] * factor);
        block->q[i] = (int8_t)q;
        block->sums[i / HALF] = (int16_t)(block->sums[i / HALF] + q);
    }
    block->scaled_sum = block->scale * (float)(block->sums[0] + block->sums[1]);
}

void cpu__quantise_scalar(struct cpu_quant_block *blocks, const float *x, uint32_t count)
{
    for (uint32_t b = 0; b < count / CPU_QUANT_BLOCK_ELEMENTS; b++)
        quantise_block(&blocks[b], x + b * CPU_QUANT_BLOCK_ELEMENTS);
}

/* Adds the product of the run's elements from first on: a half, or all. */
static float add_product(float sum, const struct quant_run *run, const struct cpu_quant_block *x,
                         uint32_t first, uint32_t count, bool mins)
{
    const uint32_t half = first / HALF;
    int32_t dot = 0, x_sum = x->sums[half];

    for (uint32_t i = first; i < first + count; i++)
        dot += run->q[i] * x->q[i];
    sum = fmaf((float)dot, x->scale * run->scales[half], sum);
    if (!mins)
        return sum;
    if (count > HALF)
        x_sum += x->sums[1];
    return fmaf(x->scale * (float)x_sum, run->mins[half], sum);
}

/* The row's products with all rows of x. */
static void dot_row(const struct cpu_strip *strip, const uint8_t *row, float *sums)
{
    const uint32_t runs_per_block = quant_runs_per_block(strip->weight_dtype);
    const uint32_t block_bytes = dtype_info(strip->weight_dtype)->block_bytes;
    const bool mins = quant_has_mins(strip->weight_dtype);
    const bool two_scales = quant_has_two_scales(strip->weight_dtype);

    memset(sums, 0, strip->row_count * sizeof(*sums));
    for (uint32_t b = 0; b < strip->k_count / QUANT_RUN_ELEMENTS; b++) {
        struct quant_run run;
        quant_run_read(&run, strip->weight_dtype,
                       row + (uint64_t)(b / runs_per_block) * block_bytes, b % runs_per_block);
        for (uint32_t r = 0; r < strip->row_count; r++) {
            const struct cpu_quant_block *x = &strip->x_blocks[r][b];
            if (two_scales) {
                sums[r] = add_product(sums[r], &run, x, 0, HALF, mins);
                sums[r] = add_product(sums[r], &run, x, HALF, HALF, mins);
            } else {
                sums[r] = add_product(sums[r], &run, x, 0, QUANT_RUN_ELEMENTS, mins);
            }
        }
    }
}

void cpu__matmul_quant_scalar(const struct cpu_strip *strip, void *scratch)
{
    const uint64_t row_bytes = dtype_row_bytes(strip->weight_dtype, strip->weight_row_stride);
    float sums[CPU_STRIP_ROWS_MAX];

    (void)scratch;
    for (uint32_t n = 0; n < strip->n_count; n++) {
        dot_row(strip, (const uint8_t *)strip->weight + n * row_bytes, sums);
        for (uint32_t r = 0; r < strip->row_count; r++) {
            float *out = &strip->out[r * strip->out_row_stride + n];
            if (strip->bias != NULL)
                sums[r] += strip->bias[n];
            *out = strip->accumulate ? *out + sums[r] : sums[r];
        }
    }
}
