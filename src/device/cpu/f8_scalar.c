/* device/cpu/f8_scalar.c - the reference for F8_E4M3 weights: kernels.h in plain C. */
#include <math.h>
#include <string.h>

#include "device/cpu/quant.h"

#define LANES 16

/* The lanes, added up in the order that kernels.h states. */
static float sum_lanes(const float lanes[LANES])
{
    float eight[LANES / 2];

    for (uint32_t l = 0; l < LANES / 2; l++)
        eight[l] = lanes[l] + lanes[l + LANES / 2];
    return ((eight[0] + eight[1]) + (eight[2] + eight[3])) +
           ((eight[4] + eight[5]) + (eight[6] + eight[7]));
}

/* Adds a block's products; x has as many elements. */
static void add_block(float lanes[LANES], const uint8_t *block, const float *x, uint32_t elements)
{
    float parts[LANES] = { 0 };
    float scale;

    memcpy(&scale, block, sizeof(scale));
    block += sizeof(scale);
    for (uint32_t i = 0; i < elements; i++)
        parts[i % LANES] =
            fmaf(x[i], f16_to_f32(quant_e4m3_f16(block[i])), parts[i % LANES]);
    for (uint32_t l = 0; l < LANES; l++)
        lanes[l] = fmaf(parts[l], 256 * scale, lanes[l]);
}

void cpu__matmul_f8_scalar(const struct cpu_strip *strip, void *scratch)
{
    const struct dtype_info *info = dtype_info(strip->weight_dtype);
    const uint64_t row_bytes = dtype_row_bytes(strip->weight_dtype, strip->weight_row_stride);
    const uint32_t block_count = strip->k_count / info->block_elements;

    (void)scratch;
    for (uint32_t n = 0; n < strip->n_count; n++) {
        const uint8_t *row = (const uint8_t *)strip->weight + n * row_bytes;
        for (uint32_t r = 0; r < strip->row_count; r++) {
            float *out = &strip->out[r * strip->out_row_stride + n];
            float lanes[LANES] = { 0 };
            float sum;
            for (uint32_t b = 0; b < block_count; b++)
                add_block(lanes, row + (uint64_t)b * info->block_bytes,
                          strip->x_rows[r] + (uint64_t)b * info->block_elements,
                          info->block_elements);
            sum = sum_lanes(lanes);
            if (strip->bias != NULL)
                sum += strip->bias[n];
            *out = strip->accumulate ? *out + sum : sum;
        }
    }
}
