/* device/cpu/quant_avx2.c - products with quantised weights, and x as blocks, in AVX2. */
#include <math.h>

#include "device/cpu/quant.h"
#include "device/cpu/quant_tiles.h"

void cpu__matmul_quant_avx2(const struct cpu_strip *strip, void *scratch)
{
    (void)scratch;
    multiply_any(strip);
}

/* The largest of eight lanes. */
static int32_t largest_lane(__m256i lanes)
{
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));

    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4E));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xB1));
    return _mm_cvtsi128_si32(half);
}

static void quantise_block(struct cpu_quant_block *block, const float *x)
{
    const __m256i magnitude = _mm256_set1_epi32(CPU_MAGNITUDE_BITS);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i largest_bits = _mm256_setzero_si256();
    __m256 values[4];
    __m256i whole[4], bytes, sums;
    __m128i pair;
    int32_t bits, first, second;
    float largest;

    for (uint32_t i = 0; i < 4; i++) {
        values[i] = _mm256_loadu_ps(x + 8 * i);
        largest_bits = _mm256_max_epi32(
            largest_bits, _mm256_and_si256(_mm256_castps_si256(values[i]), magnitude));
    }
    bits = largest_lane(largest_bits);
    memcpy(&largest, &bits, sizeof(largest));
    if (bits >= CPU_INFINITY_BITS || largest < CPU_QUANT_LEAST) {
        memset(block, 0, sizeof(*block));
        if (bits >= CPU_INFINITY_BITS)
            block->scale = block->scaled_sum = NAN;
        return;
    }
    block->scale = largest / 127;
    for (uint32_t i = 0; i < 4; i++)
        whole[i] = _mm256_cvtps_epi32(_mm256_mul_ps(values[i], _mm256_set1_ps(127 / largest)));
    bytes = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]),
                               _mm256_packs_epi32(whole[2], whole[3]));
    _mm256_storeu_si256((__m256i *)(void *)block->q, _mm256_permutevar8x32_epi32(bytes, order));
    /* four lanes of each half's sums, then one */
    sums = _mm256_hadd_epi32(_mm256_add_epi32(whole[0], whole[1]),
                             _mm256_add_epi32(whole[2], whole[3]));
    sums = _mm256_hadd_epi32(sums, sums);
    pair = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    first = _mm_cvtsi128_si32(pair);
    second = _mm_extract_epi32(pair, 1);
    block->sums[0] = (int16_t)first;
    block->sums[1] = (int16_t)second;
    block->scaled_sum = block->scale * (float)(first + second);
}

void cpu__quantise_avx2(struct cpu_quant_block *blocks, const float *x, uint32_t count)
{
    for (uint32_t b = 0; b < count / CPU_QUANT_BLOCK_ELEMENTS; b++)
        quantise_block(&blocks[b], x + b * CPU_QUANT_BLOCK_ELEMENTS);
}
