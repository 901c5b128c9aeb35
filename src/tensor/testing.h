/* tensor/testing.h - blocks of quantised types for tests of any room. Only *_test.c files include
 * this. */
#ifndef LIGHTER_TENSOR_TESTING_H
#define LIGHTER_TENSOR_TESTING_H

#include "tensor/quant.h"

static inline uint64_t testing_bits(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* A scale below 1 / 448, and no NaN. */
static inline void testing_f8_block(uint8_t *block, size_t block_bytes)
{
    const float scale = (float)(1 + block[0]) * 0x1p-17f;

    memcpy(block, &scale, sizeof(scale));
    for (size_t i = 4; i < block_bytes; i++)
        block[i] ^= (block[i] & 0x7F) == 0x7F ? 1 : 0;
}

/* Random blocks, `count` elements of a quantised type, in which no |scale * q| + |min| is above 1.
 * state: not 0. */
static inline void testing_blocks(void *blocks, enum dtype dtype, uint64_t count, uint64_t *state)
{
    /* where factors lie, and how many bits their products with integers have */
    static const struct {
        uint8_t first, second, bits;
    } types[DTYPE_COUNT] = {
        [DTYPE_Q8_0] = { 0, 0, 7 },       [DTYPE_Q4_0] = { 0, 0, 4 },
        [DTYPE_Q4_1] = { 0, 2, 5 },       [DTYPE_Q5_0] = { 0, 0, 5 },
        [DTYPE_Q5_1] = { 0, 2, 6 },       [DTYPE_IQ4_NL] = { 0, 0, 8 },
        [DTYPE_Q2_K] = { 80, 82, 7 },     [DTYPE_Q3_K] = { 108, 108, 8 },
        [DTYPE_Q4_K] = { 0, 2, 11 },      [DTYPE_Q5_K] = { 0, 2, 12 },
        [DTYPE_Q6_K] = { 208, 208, 13 },  [DTYPE_IQ4_XS] = { 0, 0, 13 },
        [DTYPE_INT4] = { 0, 0, 4 },
    };
    const struct dtype_info *info = dtype_info(dtype);
    uint8_t *block = blocks;

    for (uint64_t i = 0; i < count / info->block_elements * info->block_bytes; i++)
        block[i] = (uint8_t)(testing_bits(state) >> 24);
    for (; count > 0; count -= info->block_elements, block += info->block_bytes) {
        const uint8_t places[2] = { types[dtype].first, types[dtype].second };
        for (size_t i = 0; i < 2 && dtype != DTYPE_MXFP4 && !quant_is_f8(dtype); i++)
            block[places[i] + 1] = /* F16: sign, exponent */
                (uint8_t)((block[places[i] + 1] & 0x83) | (14 - types[dtype].bits) << 2);
        if (dtype == DTYPE_MXFP4)
            block[0] = (uint8_t)(120 + block[0] % 4);
        if (quant_is_f8(dtype))
            testing_f8_block(block, info->block_bytes);
    }
}

#endif
