/* tensor/quant.c - see quant.h. */
#include "tensor/quant.h"

#include <math.h>
#include <string.h>

#include "tensor/dtype.h"

#define HALF (QUANT_BLOCK_ELEMENTS / 2)

static float read_scale(const uint8_t *block)
{
    return f16_to_f32((uint16_t)(block[0] | block[1] << 8));
}

static void write_scale(uint8_t *block, float scale)
{
    const uint16_t bits = f32_to_f16(scale);

    block[0] = (uint8_t)bits;
    block[1] = (uint8_t)(bits >> 8);
}

void quant_q8_0_to_f32(float *restrict to, const void *blocks, size_t block_count)
{
    const uint8_t *block = blocks;

    for (size_t b = 0; b < block_count;
         b++, block += QUANT_Q8_0_BYTES, to += QUANT_BLOCK_ELEMENTS) {
        const float scale = read_scale(block);
        for (size_t i = 0; i < QUANT_BLOCK_ELEMENTS; i++)
            to[i] = scale * (float)(int8_t)block[2 + i];
    }
}

void quant_q4_0_to_f32(float *restrict to, const void *blocks, size_t block_count)
{
    const uint8_t *block = blocks;

    for (size_t b = 0; b < block_count;
         b++, block += QUANT_Q4_0_BYTES, to += QUANT_BLOCK_ELEMENTS) {
        const float scale = read_scale(block);
        for (size_t i = 0; i < HALF; i++) {
            to[i] = scale * (float)((block[2 + i] & 15) - 8);
            to[i + HALF] = scale * (float)((block[2 + i] >> 4) - 8);
        }
    }
}

/* The first of those that are farthest from zero; 0 when all are NaN. */
static float farthest(const float *values)
{
    float found = 0;

    for (size_t i = 0; i < QUANT_BLOCK_ELEMENTS; i++)
        if (fabsf(values[i]) > fabsf(found))
            found = values[i];
    return found;
}

/* What elements are multiplied with: 0 when there is no scale. */
static float inverse(float scale)
{
    return scale == 0 ? 0 : 1 / scale;
}

/* min and max also bound infinity, which the inverse of a subnormal scale may be. */
static float bounded(float value, float min, float max)
{
    return isnan(value) ? 0 : fminf(fmaxf(value, min), max);
}

void quant_q8_0_from_f32(void *blocks, const float *from, size_t block_count)
{
    uint8_t *block = blocks;

    for (size_t b = 0; b < block_count;
         b++, block += QUANT_Q8_0_BYTES, from += QUANT_BLOCK_ELEMENTS) {
        const float scale = fabsf(farthest(from)) / 127;
        const float factor = inverse(scale);
        write_scale(block, scale);
        for (size_t i = 0; i < QUANT_BLOCK_ELEMENTS; i++)
            block[2 + i] = (uint8_t)(int8_t)roundf(bounded(from[i] * factor, -127, 127));
    }
}

static unsigned q4_0_of(float value, float factor)
{
    return isnan(value * factor) ? 8 : (unsigned)bounded(value * factor + 8.5f, 0, 15);
}

void quant_q4_0_from_f32(void *blocks, const float *from, size_t block_count)
{
    uint8_t *block = blocks;

    for (size_t b = 0; b < block_count;
         b++, block += QUANT_Q4_0_BYTES, from += QUANT_BLOCK_ELEMENTS) {
        const float scale = farthest(from) / -8;
        const float factor = inverse(scale);
        write_scale(block, scale);
        for (size_t i = 0; i < HALF; i++)
            block[2 + i] = (uint8_t)(q4_0_of(from[i], factor) |
                                     q4_0_of(from[i + HALF], factor) << 4);
    }
}
