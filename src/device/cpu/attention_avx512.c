/* device/cpu/attention_avx512.c - what attention does to a tile of keys and values, in vectors of
 * sixteen.
 *
 * A score is summed over k in sixteen lanes, which are then added up:
 *
 *     lane[l] = fma over i of q[16 i + l], key[16 i + l], i ascending, from 0; missing are 0
 *     a[l] = lane[l] + lane[l + 8]   b[l] = a[l] + a[l + 4]   score = (b[0] + b[1]) + (b[2] + b[3])
 *
 * Sixteen scores are a tile: four queries by four keys, two by eight or one by sixteen. Adding up
 * lanes takes 30 shuffles and 15 additions for sixteen scores whose products take as many FMAs as
 * keys have elements: for 64 elements 45 instructions beside 64. Where many queries read a tile its
 * keys are turned around first, which takes 64 shuffles for 16 by 16 elements: then a lane is a
 * vector along the keys, and adding lanes up takes the 15 additions alone, in the same order. */
#include <immintrin.h>

#include "device/cpu/avx2.h"

#define LANES 16
#define TILE 16 /* scores */
#define BLOCKS_MAX (CPU_ATTENTION_NARROW_MAX / QUANT_RUN_ELEMENTS)

/* All ones in the first `count` lanes. */
static inline __mmask16 first_lanes(uint32_t count)
{
    return (__mmask16)(count >= LANES ? 0xffff : (1u << count) - 1);
}

/* ---- what a cache holds, in F32 ---- */

/* Elements [i, i + 16) of a row, of those in the mask. A masked load takes a multiplier's time:
 * only a row's last one has to be. scales: the row's, of its first block; blocks are whole. */
INLINE __m512 load_row(const void *row, uint32_t i, const enum dtype dtype, const float *scales,
                       const bool masked, __mmask16 mask)
{
    if (dtype == DTYPE_Q8_0) {
        const uint8_t *q = (const uint8_t *)row + i / QUANT_RUN_ELEMENTS * QUANT_Q8_0_BYTES +
                           QUANT_Q8_0_BYTES - QUANT_RUN_ELEMENTS + i % QUANT_RUN_ELEMENTS;
        return _mm512_mul_ps(
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)q))),
            _mm512_set1_ps(scales[i / QUANT_RUN_ELEMENTS * CPU_ATTENTION_KEYS]));
    }
    if (dtype == DTYPE_F16) {
        const uint16_t *at = (const uint16_t *)row + i;
        return _mm512_cvtph_ps(masked ? _mm256_maskz_loadu_epi16(mask, at)
                                      : _mm256_loadu_si256((const void *)at));
    }
    return masked ? _mm512_maskz_loadu_ps(mask, (const float *)row + i)
                  : _mm512_loadu_ps((const float *)row + i);
}

/* scales[b * CPU_ATTENTION_KEYS + j] of rows of blocks: eight rows' are gathered at once, each with
 * the two bytes behind it. */
static void read_scales(float *scales, const void *const *rows, uint32_t row_count,
                        uint32_t block_count)
{
    for (uint32_t j = 0; j < row_count; j += 8) {
        const __mmask8 mask = (__mmask8)first_lanes(row_count - j < 8 ? row_count - j : 8);
        __m512i at = _mm512_maskz_loadu_epi64(mask, rows + j);
        for (uint32_t b = 0; b < block_count; b++) {
            const __m256i starts =
                _mm512_mask_i64gather_epi32(_mm256_setzero_si256(), mask, at, NULL, 1);
            _mm256_storeu_ps(scales + (uint64_t)b * CPU_ATTENTION_KEYS + j,
                             _mm256_cvtph_ps(_mm256_cvtepi32_epi16(starts)));
            at = _mm512_add_epi64(at, _mm512_set1_epi64(QUANT_Q8_0_BYTES));
        }
    }
}

void cpu__widen_avx512(float *out, enum dtype dtype, const void *from, uint32_t count)
{
    const uint8_t *block = from;

    if (dtype == DTYPE_F16) {
        for (uint32_t i = 0; i < count; i += LANES) {
            const __mmask16 mask = first_lanes(count - i);
            _mm512_mask_storeu_ps(out + i, mask, load_row(from, i, DTYPE_F16, NULL, true, mask));
        }
        return;
    }
    for (uint32_t i = 0; i < count; i += QUANT_RUN_ELEMENTS, block += QUANT_Q8_0_BYTES) {
        const __m128i half = _mm_cvtsi32_si128(block[0] | block[1] << 8);
        const float scale = _mm_cvtss_f32(_mm_cvtph_ps(half));
        _mm512_storeu_ps(out + i, load_row(block, 0, DTYPE_Q8_0, &scale, false, 0));
        _mm512_storeu_ps(out + i + LANES, load_row(block, LANES, DTYPE_Q8_0, &scale, false, 0));
    }
}

/* ---- scores ---- */

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

/* Keys as a cache has them, or rows of values. */
struct rows {
    const void *const *at;
    const float *scales;         /* of blocks, as read_scales writes them */
    uint32_t count, width;
};

/* sums += products of elements [k, k + 16) of R queries and 16 / R keys, of those in the mask. */
INLINE void add_products(__m512 sums[TILE], const uint32_t R, const enum dtype dtype,
                         const float *const *q, const void *const *keys,
                         const float *const *scales, uint32_t k, const bool masked, __mmask16 mask)
{
    const uint32_t W = TILE / R;
    __m512 x[4];

#pragma GCC unroll 4
    for (uint32_t r = 0; r < R; r++)
        x[r] = masked ? _mm512_maskz_loadu_ps(mask, q[r] + k) : _mm512_loadu_ps(q[r] + k);
#pragma GCC unroll 16
    for (uint32_t w = 0; w < W; w++) {
        const __m512 v = load_row(keys[w], k, dtype, scales[w], masked, mask);
#pragma GCC unroll 4
        for (uint32_t r = 0; r < R; r++) {
            const uint32_t at = r * W + w, sum = at % 4 * 4 + at / 4; /* lane `at` of the result */
            sums[sum] = _mm512_fmadd_ps(x[r], v, sums[sum]);
        }
    }
}

/* Scores of R queries, which are 4, 2 or 1, and keys j .. j + 16 / R - 1, as far as they are
 * there. */
INLINE void score_tile(float *out, uint64_t out_stride, const uint32_t R, const enum dtype dtype,
                       const float *const *q, const struct rows *keys, uint32_t j)
{
    const uint32_t W = TILE / R, whole = keys->width / LANES * LANES;
    const __mmask16 wanted = first_lanes(keys->count - j < W ? keys->count - j : W);
    const void *key[TILE];
    const float *scales[TILE];
    __m512 sums[TILE], scores;

#pragma GCC unroll 16
    for (uint32_t i = 0; i < TILE; i++)
        sums[i] = _mm512_setzero_ps();
#pragma GCC unroll 16
    for (uint32_t w = 0; w < W; w++) {
        const uint32_t at = j + w < keys->count ? j + w : j;
        key[w] = keys->at[at];
        scales[w] = keys->scales + at;
    }
    for (uint32_t k = 0; k < whole; k += LANES)
        add_products(sums, R, dtype, q, key, scales, k, false, 0);
    if (whole < keys->width)
        add_products(sums, R, dtype, q, key, scales, whole, true,
                     first_lanes(keys->width - whole));
    scores = sum_each(sums);
    out += j;
    if (R == 1) {
        _mm512_mask_storeu_ps(out, wanted, scores);
    } else if (R == 2) {
        _mm256_mask_storeu_ps(out, (__mmask8)wanted, _mm512_castps512_ps256(scores));
        _mm256_mask_storeu_ps(
            out + out_stride, (__mmask8)wanted,
            _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(scores), 1)));
    } else {
        _mm_mask_storeu_ps(out, (__mmask8)wanted, _mm512_castps512_ps128(scores));
        _mm_mask_storeu_ps(out + out_stride, (__mmask8)wanted, _mm512_extractf32x4_ps(scores, 1));
        _mm_mask_storeu_ps(out + 2 * out_stride, (__mmask8)wanted,
                           _mm512_extractf32x4_ps(scores, 2));
        _mm_mask_storeu_ps(out + 3 * out_stride, (__mmask8)wanted,
                           _mm512_extractf32x4_ps(scores, 3));
    }
}

INLINE void score_all(float *out, uint64_t out_stride, const enum dtype dtype,
                      const float *const *q, uint32_t q_count, const struct rows *keys)
{
    uint32_t i = 0;

    for (; i + 4 <= q_count; i += 4)
        for (uint32_t j = 0; j < keys->count; j += TILE / 4)
            score_tile(out + i * out_stride, out_stride, 4, dtype, q + i, keys, j);
    for (; i + 2 <= q_count; i += 2)
        for (uint32_t j = 0; j < keys->count; j += TILE / 2)
            score_tile(out + i * out_stride, out_stride, 2, dtype, q + i, keys, j);
    for (; i < q_count; i++)
        for (uint32_t j = 0; j < keys->count; j += TILE)
            score_tile(out + i * out_stride, out_stride, 1, dtype, q + i, keys, j);
}

void cpu__score_avx512(float *out, uint64_t out_stride, const float *const *q, uint32_t q_count,
                       enum dtype dtype, const void *const *keys, uint32_t key_count,
                       uint32_t width)
{
    float scales[CPU_ATTENTION_KEYS * BLOCKS_MAX];
    const struct rows rows = { keys, scales, key_count, width };

    if (dtype == DTYPE_Q8_0) {
        read_scales(scales, keys, key_count, width / QUANT_RUN_ELEMENTS);
        score_all(out, out_stride, DTYPE_Q8_0, q, q_count, &rows);
    } else if (dtype == DTYPE_F16) {
        score_all(out, out_stride, DTYPE_F16, q, q_count, &rows);
    } else {
        score_all(out, out_stride, DTYPE_F32, q, q_count, &rows);
    }
}

/* ---- scores of many queries ---- */

/* A 16 by 16 block, turned around: rows[i] gets element i of each. */
INLINE void turn_block(__m512 rows[TILE])
{
    __m512 pairs[TILE], fours[TILE];

    /* within 128 bits: elements (4 c, 4 c + 1), then all four of a column's four rows */
#pragma GCC unroll 8
    for (uint32_t i = 0; i < TILE; i += 2) {
        pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 4
    for (uint32_t i = 0; i < TILE; i += 4) {
#pragma GCC unroll 2
        for (uint32_t h = 0; h < 2; h++) {
            const __m512d a = _mm512_castps_pd(pairs[i + h]);
            const __m512d b = _mm512_castps_pd(pairs[i + 2 + h]);
            fours[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            fours[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    /* fours[4 g + e]: rows 4 g .. 4 g + 3 of columns e, 4 + e, 8 + e, 12 + e */
#pragma GCC unroll 4
    for (uint32_t e = 0; e < 4; e++) {
        const __m512 a = _mm512_shuffle_f32x4(fours[e], fours[4 + e], 0x88);
        const __m512 b = _mm512_shuffle_f32x4(fours[e], fours[4 + e], 0xdd);
        const __m512 c = _mm512_shuffle_f32x4(fours[8 + e], fours[12 + e], 0x88);
        const __m512 d = _mm512_shuffle_f32x4(fours[8 + e], fours[12 + e], 0xdd);
        rows[e] = _mm512_shuffle_f32x4(a, c, 0x88);
        rows[8 + e] = _mm512_shuffle_f32x4(a, c, 0xdd);
        rows[4 + e] = _mm512_shuffle_f32x4(b, d, 0x88);
        rows[12 + e] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
}

INLINE void turn_all(float *turned, const enum dtype dtype, const struct rows *keys)
{
    for (uint32_t j = 0; j < keys->count; j += TILE) {
        for (uint32_t k = 0; k < keys->width; k += TILE) {
            const uint32_t left = keys->width - k;
            __m512 block[TILE];
#pragma GCC unroll 16
            for (uint32_t i = 0; i < TILE; i++) {
                const uint32_t at = j + i < keys->count ? j + i : j;
                block[i] = load_row(keys->at[at], k, dtype, keys->scales + at, left < LANES,
                                    first_lanes(left));
            }
            turn_block(block);
            for (uint32_t i = 0; i < TILE && i < left; i++)
                _mm512_store_ps(turned + (uint64_t)(k + i) * CPU_ATTENTION_KEYS + j, block[i]);
        }
    }
}

void cpu__turn_keys_avx512(float *turned, enum dtype dtype, const void *const *keys,
                           uint32_t key_count, uint32_t width)
{
    float scales[CPU_ATTENTION_KEYS * BLOCKS_MAX];
    const struct rows rows = { keys, scales, key_count, width };

    if (dtype == DTYPE_Q8_0) {
        read_scales(scales, keys, key_count, width / QUANT_RUN_ELEMENTS);
        turn_all(turned, DTYPE_Q8_0, &rows);
    } else if (dtype == DTYPE_F16) {
        turn_all(turned, DTYPE_F16, &rows);
    } else {
        turn_all(turned, DTYPE_F32, &rows);
    }
}

/* sums += products of element k of R queries and 32 keys: two vectors for each query. */
INLINE void add_turned(__m512 sums[8], const uint32_t R, const float *const *q,
                       const float *turned, uint32_t k)
{
    const float *at = turned + (uint64_t)k * CPU_ATTENTION_KEYS;
    const __m512 first = _mm512_load_ps(at), second = _mm512_load_ps(at + LANES);

#pragma GCC unroll 4
    for (uint32_t r = 0; r < R; r++) {
        const __m512 x = _mm512_set1_ps(q[r][k]);
        sums[2 * r] = _mm512_fmadd_ps(x, first, sums[2 * r]);
        sums[2 * r + 1] = _mm512_fmadd_ps(x, second, sums[2 * r + 1]);
    }
}

/* sums += others, of R queries. */
INLINE void add_lanes(__m512 sums[8], const uint32_t R, const __m512 others[8])
{
#pragma GCC unroll 8
    for (uint32_t i = 0; i < 2 * R; i++)
        sums[i] = _mm512_add_ps(sums[i], others[i]);
}

/* sums = lanes `lane` and `lane` + 8 of R queries' scores of 32 keys, added up. Both at a time are
 * 16 chains of FMAs, where the multipliers are busy with 8. */
INLINE void turned_lanes(__m512 sums[8], const uint32_t R, const float *const *q,
                         const float *turned, uint32_t lane, uint32_t width)
{
    const uint32_t whole = width / LANES, left = width % LANES, other = lane + LANES / 2;
    __m512 others[8];

#pragma GCC unroll 8
    for (uint32_t i = 0; i < 2 * R; i++)
        sums[i] = others[i] = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (uint32_t i = 0; i < whole; i++) {
        add_turned(sums, R, q, turned, i * LANES + lane);
        add_turned(others, R, q, turned, i * LANES + other);
    }
    if (lane < left)
        add_turned(sums, R, q, turned, whole * LANES + lane);
    if (other < left)
        add_turned(others, R, q, turned, whole * LANES + other);
    add_lanes(sums, R, others);
}

/* Scores of R queries and 32 keys: lanes are added up as score_tile does it. */
INLINE void turned_tile(float *out, uint64_t out_stride, const uint32_t R, const float *const *q,
                        const float *turned, uint32_t width)
{
    __m512 b[4][8];

    for (uint32_t l = 0; l < 4; l++) {
        __m512 more[8];
        turned_lanes(b[l], R, q, turned, l, width);
        turned_lanes(more, R, q, turned, l + 4, width);
        add_lanes(b[l], R, more);
    }
#pragma GCC unroll 8
    for (uint32_t i = 0; i < 2 * R; i++)
        _mm512_storeu_ps(out + i / 2 * out_stride + i % 2 * LANES,
                         _mm512_add_ps(_mm512_add_ps(b[0][i], b[1][i]),
                                       _mm512_add_ps(b[2][i], b[3][i])));
}

INLINE void turned_all(float *out, uint64_t out_stride, const float *const *q, uint32_t q_count,
                       const float *turned, uint32_t key_count, uint32_t width)
{
    uint32_t i = 0;

    for (; i + 4 <= q_count; i += 4)
        for (uint32_t j = 0; j < key_count; j += 2 * LANES)
            turned_tile(out + i * out_stride + j, out_stride, 4, q + i, turned + j, width);
    for (; i < q_count; i++)
        for (uint32_t j = 0; j < key_count; j += 2 * LANES)
            turned_tile(out + i * out_stride + j, out_stride, 1, q + i, turned + j, width);
}

/* Most models' widths have code of their own, in which the short loops over k are none. */
void cpu__turned_score_avx512(float *out, uint64_t out_stride, const float *const *q,
                              uint32_t q_count, const float *turned, uint32_t key_count,
                              uint32_t width)
{
    if (width == 64)
        turned_all(out, out_stride, q, q_count, turned, key_count, 64);
    else if (width == 128)
        turned_all(out, out_stride, q, q_count, turned, key_count, 128);
    else
        turned_all(out, out_stride, q, q_count, turned, key_count, width);
}

/* ---- softmax ---- */

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

/* ---- values ---- */

/* R outputs by V vectors of them, or a masked one: each element is one chain of FMAs over j. */
INLINE void weighted_tile(float *const *out, const uint32_t R, uint32_t at, const uint32_t V,
                          const enum dtype dtype, const bool masked, __mmask16 mask,
                          const float *weights, uint64_t weight_stride, const struct rows *rows)
{
    __m512 sums[4][4];

#pragma GCC unroll 4
    for (uint32_t r = 0; r < R; r++) {
#pragma GCC unroll 4
        for (uint32_t v = 0; v < V; v++)
            sums[r][v] = masked ? _mm512_maskz_loadu_ps(mask, out[r] + at + v * LANES)
                                : _mm512_loadu_ps(out[r] + at + v * LANES);
    }
    for (uint32_t j = 0; j < rows->count; j++) {
        const float *scales = rows->scales + j;
        __m512 values[4];
#pragma GCC unroll 4
        for (uint32_t v = 0; v < V; v++)
            values[v] = load_row(rows->at[j], at + v * LANES, dtype, scales, masked, mask);
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

INLINE void weighted_outputs(float *const *out, const uint32_t R, const enum dtype dtype,
                             const float *weights, uint64_t weight_stride,
                             const struct rows *rows)
{
    uint32_t at = 0;

    for (; at + 4 * LANES <= rows->width; at += 4 * LANES)
        weighted_tile(out, R, at, 4, dtype, false, 0, weights, weight_stride, rows);
    if (at + 2 * LANES <= rows->width) {
        weighted_tile(out, R, at, 2, dtype, false, 0, weights, weight_stride, rows);
        at += 2 * LANES;
    }
    for (; at < rows->width; at += LANES)
        weighted_tile(out, R, at, 1, dtype, true, first_lanes(rows->width - at), weights,
                      weight_stride, rows);
}

INLINE void weighted_all(float *const *out, uint32_t out_count, const enum dtype dtype,
                         const float *weights, uint64_t weight_stride, const struct rows *rows)
{
    uint32_t r = 0;

    for (; r + 4 <= out_count; r += 4)
        weighted_outputs(out + r, 4, dtype, weights + r * weight_stride, weight_stride, rows);
    for (; r + 2 <= out_count; r += 2)
        weighted_outputs(out + r, 2, dtype, weights + r * weight_stride, weight_stride, rows);
    for (; r < out_count; r++)
        weighted_outputs(out + r, 1, dtype, weights + r * weight_stride, weight_stride, rows);
}

void cpu__add_cached_rows_avx512(float *const *out, uint32_t out_count, const float *weights,
                                 uint64_t weight_stride, enum dtype dtype,
                                 const void *const *rows, uint32_t row_count, uint32_t width)
{
    float scales[CPU_ATTENTION_KEYS * BLOCKS_MAX];
    const struct rows all = { rows, scales, row_count, width };

    if (dtype == DTYPE_Q8_0) {
        read_scales(scales, rows, row_count, (width - 1) / QUANT_RUN_ELEMENTS + 1);
        weighted_all(out, out_count, DTYPE_Q8_0, weights, weight_stride, &all);
    } else if (dtype == DTYPE_F16) {
        weighted_all(out, out_count, DTYPE_F16, weights, weight_stride, &all);
    } else {
        weighted_all(out, out_count, DTYPE_F32, weights, weight_stride, &all);
    }
}
