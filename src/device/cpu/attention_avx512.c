/* device/cpu/attention_avx512.c - what attention does to a tile of keys and values, in vectors of
 * sixteen.
 *
 * A score is summed over k in sixteen lanes, which are then added up:
 *
 *     lane[l] = fma over i of q[16 i + l], key[16 i + l], i ascending, from 0; missing are 0
 *     a[l] = lane[l] + lane[l + 8]   b[l] = a[l] + a[l + 4]   score = (b[0] + b[1]) + (b[2] + b[3])
 *
 * Sixteen scores are a tile: four queries by four keys, or one query by sixteen keys. Adding up
 * lanes takes 30 shuffles and 15 additions for sixteen scores whose products take as many FMAs as
 * keys have elements: for 64 elements 45 instructions beside 64. Keys that were turned around
 * first, with a vector along the keys, would save prompts a fifth of that, and cost a decoding row,
 * which has few queries, twice as much; and both have to be summed alike. */
#include <immintrin.h>

#include "device/cpu/avx2.h"

#define LANES 16
#define TILE 16 /* scores */

/* All ones in the first `count` lanes. */
static inline __mmask16 first_lanes(uint32_t count)
{
    return (__mmask16)(count >= LANES ? 0xffff : (1u << count) - 1);
}

/* The lanes of a and b that `order` takes and the others, added up. */
#define JOIN(shuffle, a, b, order, others)                                                         \
    _mm512_add_ps(shuffle(a, b, order), shuffle(a, b, others))

/* Sums of the lanes of sixteen vectors: lane 4 i + j has that of sums[4 j + i]. */
INLINE __m512 sum_each(const __m512 sums[TILE])
{
    __m512 fours[4];

#pragma GCC unroll 4
    for (uint32_t i = 0; i < 4; i++) {
        const __m512 *s = sums + 4 * i;
        fours[i] = JOIN(_mm512_shuffle_f32x4, JOIN(_mm512_shuffle_f32x4, s[0], s[1], 0x44, 0xee),
                        JOIN(_mm512_shuffle_f32x4, s[2], s[3], 0x44, 0xee), 0x88, 0xdd);
    }
    return JOIN(_mm512_shuffle_ps, JOIN(_mm512_shuffle_ps, fours[0], fours[1], 0x88, 0xdd),
                JOIN(_mm512_shuffle_ps, fours[2], fours[3], 0x88, 0xdd), 0x88, 0xdd);
}

/* sums += products of elements [k, k + 16) of R queries and 16 / R keys, of those in the mask. A
 * masked load takes a multiplier's time: only the last one has to be. */
INLINE void add_products(__m512 sums[TILE], const uint32_t R, const float *const *q,
                         const float *const *keys, uint32_t k, const bool masked, __mmask16 mask)
{
    const uint32_t W = TILE / R;
    __m512 x[4];

#pragma GCC unroll 4
    for (uint32_t r = 0; r < R; r++)
        x[r] = masked ? _mm512_maskz_loadu_ps(mask, q[r] + k) : _mm512_loadu_ps(q[r] + k);
#pragma GCC unroll 16
    for (uint32_t w = 0; w < W; w++) {
        const __m512 v = masked ? _mm512_maskz_loadu_ps(mask, keys[w] + k)
                                : _mm512_loadu_ps(keys[w] + k);
#pragma GCC unroll 4
        for (uint32_t r = 0; r < R; r++) {
            const uint32_t at = r * W + w, sum = at % 4 * 4 + at / 4; /* lane `at` of the result */
            sums[sum] = _mm512_fmadd_ps(x[r], v, sums[sum]);
        }
    }
}

/* Scores of R queries, which are 4 or 1, and 16 / R keys, of which key_count are there. */
INLINE void score_tile(float *out, uint64_t out_stride, const uint32_t R, const float *const *q,
                       const float *const *keys, uint32_t key_count, uint32_t width)
{
    const uint32_t W = TILE / R, whole = width / LANES * LANES;
    const __mmask16 wanted = first_lanes(key_count);
    const float *key[TILE];
    __m512 sums[TILE], scores;

#pragma GCC unroll 16
    for (uint32_t i = 0; i < TILE; i++)
        sums[i] = _mm512_setzero_ps();
#pragma GCC unroll 16
    for (uint32_t w = 0; w < W; w++)
        key[w] = keys[w < key_count ? w : 0];
    for (uint32_t k = 0; k < whole; k += LANES)
        add_products(sums, R, q, key, k, false, 0);
    if (whole < width)
        add_products(sums, R, q, key, whole, true, first_lanes(width - whole));
    scores = sum_each(sums);
    if (R == 1) {
        _mm512_mask_storeu_ps(out, wanted, scores);
        return;
    }
    _mm_mask_storeu_ps(out, (__mmask8)wanted, _mm512_castps512_ps128(scores));
    _mm_mask_storeu_ps(out + out_stride, (__mmask8)wanted, _mm512_extractf32x4_ps(scores, 1));
    _mm_mask_storeu_ps(out + 2 * out_stride, (__mmask8)wanted, _mm512_extractf32x4_ps(scores, 2));
    _mm_mask_storeu_ps(out + 3 * out_stride, (__mmask8)wanted, _mm512_extractf32x4_ps(scores, 3));
}

void cpu__score_avx512(float *out, uint64_t out_stride, const float *const *q, uint32_t q_count,
                       const float *const *keys, uint32_t key_count, uint32_t width)
{
    uint32_t i = 0;

    for (; i + 4 <= q_count; i += 4)
        for (uint32_t j = 0; j < key_count; j += 4)
            score_tile(out + i * out_stride + j, out_stride, 4, q + i, keys + j,
                       key_count - j < 4 ? key_count - j : 4, width);
    for (; i < q_count; i++)
        for (uint32_t j = 0; j < key_count; j += TILE)
            score_tile(out + i * out_stride + j, out_stride, 1, q + i, keys + j,
                       key_count - j < TILE ? key_count - j : TILE, width);
}

/* As exp_lanes in kernels_avx2.c; scaling by 2^n is one instruction here. */
static inline __m512 exp_lanes(__m512 x)
{
    const __m512 bounded =
        _mm512_min_ps(_mm512_set1_ps(100), _mm512_max_ps(_mm512_set1_ps(-110), x));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(bounded, _mm512_set1_ps(0x1.715476p0f)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.7f7d1cp-20f),
                                      _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e4p-1f), bounded));
    __m512 p = _mm512_set1_ps(1.0f / 5040);

    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1));
    return _mm512_scalef_ps(p, n);
}

/* Where a lane is NaN, max_ps returns its second operand: the largest so far. */
float cpu__scale_max_avx512(float *x, uint32_t count, float scale, float max)
{
    const uint32_t whole = count / LANES * LANES;
    const __m512 scales = _mm512_set1_ps(scale);
    __m512 maxima = _mm512_set1_ps(max);

    for (uint32_t i = 0; i < whole; i += LANES) {
        const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(x + i), scales);
        _mm512_storeu_ps(x + i, scaled);
        maxima = _mm512_max_ps(scaled, maxima);
    }
    if (whole < count) {
        const __mmask16 mask = first_lanes(count - whole);
        const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + whole), scales);
        _mm512_mask_storeu_ps(x + whole, mask, scaled);
        maxima = _mm512_mask_max_ps(maxima, mask, scaled, maxima);
    }
    return _mm512_reduce_max_ps(maxima);
}

float cpu__exp_minus_avx512(float *out, const float *x, uint32_t count, float shift)
{
    const uint32_t whole = count / LANES * LANES;
    const __m512 shifts = _mm512_set1_ps(shift);
    __m512 sum = _mm512_setzero_ps();

    for (uint32_t i = 0; i < whole; i += LANES) {
        const __m512 e = exp_lanes(_mm512_sub_ps(_mm512_loadu_ps(x + i), shifts));
        _mm512_storeu_ps(out + i, e);
        sum = _mm512_add_ps(sum, e);
    }
    if (whole < count) {
        const __mmask16 mask = first_lanes(count - whole);
        const __m512 e =
            exp_lanes(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + whole), shifts));
        _mm512_mask_storeu_ps(out + whole, mask, e);
        sum = _mm512_mask_add_ps(sum, mask, sum, e);
    }
    return sum_lanes(_mm256_add_ps(
        _mm512_castps512_ps256(sum),
        _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(sum), 1))));
}

/* R outputs by V vectors of them, or a masked one: each element is one chain of FMAs over j. */
INLINE void weighted_tile(float *const *out, const uint32_t R, uint32_t at, const uint32_t V,
                          const bool masked, __mmask16 mask, const float *weights,
                          uint64_t weight_stride, const float *const *rows, uint32_t row_count)
{
    __m512 sums[4][4];

#pragma GCC unroll 4
    for (uint32_t r = 0; r < R; r++) {
#pragma GCC unroll 4
        for (uint32_t v = 0; v < V; v++)
            sums[r][v] = masked ? _mm512_maskz_loadu_ps(mask, out[r] + at + v * LANES)
                                : _mm512_loadu_ps(out[r] + at + v * LANES);
    }
    for (uint32_t j = 0; j < row_count; j++) {
        const float *row = rows[j] + at;
        __m512 values[4];
#pragma GCC unroll 4
        for (uint32_t v = 0; v < V; v++)
            values[v] = masked ? _mm512_maskz_loadu_ps(mask, row + v * LANES)
                               : _mm512_loadu_ps(row + v * LANES);
#pragma GCC unroll 4
        for (uint32_t r = 0; r < R; r++) {
            const __m512 weight = _mm512_set1_ps(weights[r * weight_stride + j]);
#pragma GCC unroll 4
            for (uint32_t v = 0; v < V; v++)
                sums[r][v] = _mm512_fmadd_ps(weight, values[v], sums[r][v]);
        }
    }
#pragma GCC unroll 4
    for (uint32_t r = 0; r < R; r++) {
#pragma GCC unroll 4
        for (uint32_t v = 0; v < V; v++) {
            if (masked)
                _mm512_mask_storeu_ps(out[r] + at + v * LANES, mask, sums[r][v]);
            else
                _mm512_storeu_ps(out[r] + at + v * LANES, sums[r][v]);
        }
    }
}

INLINE void weighted_outputs(float *const *out, const uint32_t R, const float *weights,
                             uint64_t weight_stride, const float *const *rows, uint32_t row_count,
                             uint32_t width)
{
    uint32_t at = 0;

    for (; at + 4 * LANES <= width; at += 4 * LANES)
        weighted_tile(out, R, at, 4, false, 0, weights, weight_stride, rows, row_count);
    if (at + 2 * LANES <= width) {
        weighted_tile(out, R, at, 2, false, 0, weights, weight_stride, rows, row_count);
        at += 2 * LANES;
    }
    for (; at < width; at += LANES)
        weighted_tile(out, R, at, 1, true, first_lanes(width - at), weights, weight_stride, rows,
                      row_count);
}

void cpu__add_weighted_rows_avx512(float *const *out, uint32_t out_count, const float *weights,
                                   uint64_t weight_stride, const float *const *rows,
                                   uint32_t row_count, uint32_t width)
{
    uint32_t r = 0;

    for (; r + 4 <= out_count; r += 4)
        weighted_outputs(out + r, 4, weights + r * weight_stride, weight_stride, rows, row_count,
                         width);
    for (; r < out_count; r++)
        weighted_outputs(out + r, 1, weights + r * weight_stride, weight_stride, rows, row_count,
                         width);
}

static void widen_f16(float *out, const uint16_t *from, uint32_t count)
{
    const uint32_t whole = count / LANES * LANES;

    for (uint32_t i = 0; i < whole; i += LANES)
        _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(from + i))));
    if (whole < count) {
        const __mmask16 mask = first_lanes(count - whole);
        _mm512_mask_storeu_ps(out + whole, mask,
                              _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from + whole)));
    }
}

static void widen_q8_0(float *out, const uint8_t *block, uint32_t count)
{
    for (uint32_t i = 0; i < count; i += QUANT_RUN_ELEMENTS, block += QUANT_Q8_0_BYTES) {
        const __m512 scale =
            _mm512_cvtph_ps(_mm256_set1_epi16((short)(block[0] | block[1] << 8)));
#pragma GCC unroll 2
        for (uint32_t e = 0; e < QUANT_RUN_ELEMENTS; e += LANES) {
            const __m512i q =
                _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(block + 2 + e)));
            _mm512_storeu_ps(out + i + e, _mm512_mul_ps(scale, _mm512_cvtepi32_ps(q)));
        }
    }
}

void cpu__widen_avx512(float *out, enum dtype dtype, const void *from, uint32_t count)
{
    if (dtype == DTYPE_F16)
        widen_f16(out, from, count);
    else
        widen_q8_0(out, from, count);
}
