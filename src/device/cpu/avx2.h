/* device/cpu/avx2.h - what the files share that are compiled for AVX2 and more. */
#ifndef LIGHTER_DEVICE_CPU_AVX2_H
#define LIGHTER_DEVICE_CPU_AVX2_H

#include <immintrin.h>

#include "device/cpu/kernels.h"

/* A kernel's parts. Every data type and number of rows has code of its own, but in debug builds: of
 * so much code sanitizers make what takes a compiler a minute. */
#ifdef LIGHTER_DEBUG
#define INLINE static __attribute__((unused))
#else
#define INLINE static inline __attribute__((always_inline))
#endif

#define LINE_BYTES 64
/* Of a row of weights, how many bytes are asked for before they are needed, where few rows of x
 * wait for memory: eight rows of twice as many are too much for a first-level cache of 32 KiB. On
 * Zen 4 two threads decoded llama-1b at 27.1 tokens/s with 1024 bytes and 33.7 with 512 in Q6_K,
 * 27.6 and 32.5 in Q8_0, 11.9 and 15.6 in F16; a Xeon of 2023 (48 KiB) does not mind. */
#define AHEAD_BYTES 512

void cpu__matmul_avx2(const struct cpu_strip *strip, void *scratch);
void cpu__matmul_avx512(const struct cpu_strip *strip, void *scratch);
void cpu__matmul_quant_avx2(const struct cpu_strip *strip, void *scratch);
void cpu__matmul_quant_vnni(const struct cpu_strip *strip, void *scratch);
void cpu__matmul_quant_avx512(const struct cpu_strip *strip, void *scratch);
void cpu__matmul_quant_avx512_narrow(const struct cpu_strip *strip, void *scratch);
void cpu__matmul_quant_amx(const struct cpu_strip *strip, void *scratch);
void cpu__matmul_f8_avx2(const struct cpu_strip *strip, void *scratch);
void cpu__matmul_f8_avx512(const struct cpu_strip *strip, void *scratch);
void cpu__matmul_amx(const struct cpu_strip *strip, void *scratch);
void cpu__matmul_bf16(const struct cpu_strip *strip, void *scratch);
uint64_t cpu__packed_bytes_bf16(enum dtype dtype, uint32_t k_count);
void cpu__pack_bf16(void *packed, const float *const *x_rows, uint32_t row_count, uint32_t k_count,
                    bool alone);
uint64_t cpu__packed_bytes_amx(enum dtype dtype, uint32_t k_count);
void cpu__pack_amx(void *packed, const float *const *x_rows, uint32_t row_count, uint32_t k_count,
                   bool alone);
void cpu__quantise_avx2(struct cpu_quant_block *blocks, const float *x, uint32_t count);
void cpu__pack_queries_avx2(float *packed, const float *const *queries, uint32_t query_count,
                            uint32_t width);
void cpu__score_avx2(float *out, const float *packed, uint32_t query_count, enum dtype dtype,
                    const void *const *keys, const void *const *ahead, uint32_t key_count,
                    uint32_t width);
void cpu__add_cached_rows_avx2(float *const *out, uint32_t out_count, const float *weights,
                              enum dtype dtype, const void *const *rows,
                              const void *const *ahead, uint32_t row_count, uint32_t width);
void cpu__widen_avx2(float *out, enum dtype dtype, const void *from, uint32_t count);
void cpu__pack_queries_avx512(float *packed, const float *const *queries, uint32_t query_count,
                              uint32_t width);
void cpu__score_avx512(float *out, const float *packed, uint32_t query_count, enum dtype dtype,
                      const void *const *keys, const void *const *ahead, uint32_t key_count,
                      uint32_t width);
void cpu__add_cached_rows_avx512(float *const *out, uint32_t out_count, const float *weights,
                                enum dtype dtype, const void *const *rows,
                                const void *const *ahead, uint32_t row_count, uint32_t width);
void cpu__widen_avx512(float *out, enum dtype dtype, const void *from, uint32_t count);
float cpu__scale_max_avx512(float *x, uint32_t count, float scale, float max);
float cpu__exp_minus_avx512(float *out, const float *x, uint32_t count, float shift);

/* All ones in the first `count` lanes, for masked loads and stores; count < 8. */
static inline __m256i lane_mask(uint32_t count)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);

    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), lane);
}

/* The sum of each of four vectors' lanes, in the order that kernels.h states. */
static inline __m128 sum_lanes_4(__m256 a, __m256 b, __m256 c, __m256 d)
{
    const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));

    return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

static inline float sum_lanes(__m256 a)
{
    return _mm_cvtss_f32(sum_lanes_4(a, a, a, a));
}

#endif
