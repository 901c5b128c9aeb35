/* device/cpu/attention_avx512.c - what attention does to a tile of keys and values, in vectors of
 * sixteen.
 *
 * A score is summed over k in four lanes, 576 elements at a time, whose sums are then added up:
 *
 *     lane[l] = fma over i of q[4 i + l], key[4 i + l], i ascending, from 0; missing are 0
 *     part    = (lane[0] + lane[2]) + (lane[1] + lane[3])    score = (part 0 + part 1) + ...
 *
 * A vector is four elements of four queries, so that their sums take a key's elements as they lie,
 * broadcast by the load, and adding lanes up takes 9 instructions for 16 scores. With sixteen
 * elements of one query it took 45, beside 64 FMAs when they have 64 elements. */
#include <immintrin.h>
#include <string.h>

#include "device/cpu/avx2.h"

#define LANES 16
#define FOUR 4 /* queries in a vector, and elements of each */
#define TILE 16 /* vectors of sums */
#define PART_MAX 576 /* elements of queries at a time: of sixteen they fit beside keys in 48 KiB */
#define SPAN (TILE * FOUR) /* elements of four queries that fit into registers */
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
        const uint32_t whole = count / LANES * LANES;
        const __mmask16 mask = first_lanes(count - whole);
        for (uint32_t i = 0; i < whole; i += LANES)
            _mm512_storeu_ps(out + i, load_row(from, i, DTYPE_F16, NULL, false, 0));
        if (whole < count)
            _mm512_mask_storeu_ps(out + whole, mask,
                                  load_row(from, whole, DTYPE_F16, NULL, true, mask));
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

/* Keys as a cache has them, or rows of values. */
struct rows {
    const void *const *at;
    const void *const *ahead;    /* rows to ask for, each when its namesake is used; or NULL */
    const float *scales;         /* of blocks, as read_scales writes them */
    uint32_t count, width;
};

/* Asks for elements [i, i + count) of a row, which begin a line or follow what was asked for. A
 * block's scale is next to them. */
INLINE void ask_for(const void *row, uint32_t i, const uint32_t count, const enum dtype dtype)
{
    const uint32_t bytes = dtype == DTYPE_F32 ? 4 : dtype == DTYPE_F16 ? 2 : 1;
    const uint32_t scales = dtype == DTYPE_Q8_0 ? i / QUANT_RUN_ELEMENTS * 2 : 0;

#pragma GCC unroll 4
    for (uint32_t at = 0; at < count * bytes; at += LINE_BYTES)
        _mm_prefetch((const char *)row + i * bytes + scales + at, _MM_HINT_T1);
}

/* Elements [i, i + 4) of a row, of those in the mask. */
INLINE __m128 load_four(const float *row, uint32_t i, const bool masked, __mmask8 mask)
{
    return masked ? _mm_maskz_loadu_ps(mask, row + i) : _mm_loadu_ps(row + i);
}

/* The same of four queries. */
INLINE __m512 pack_step(const float *const q[FOUR], uint32_t i, const bool masked, __mmask8 mask)
{
    const __m256 low = _mm256_set_m128(load_four(q[1], i, masked, mask),
                                       load_four(q[0], i, masked, mask));
    const __m256 high = _mm256_set_m128(load_four(q[3], i, masked, mask),
                                        load_four(q[2], i, masked, mask));

    return _mm512_castpd_ps(_mm512_insertf64x4(_mm512_castps_pd(_mm512_castps256_ps512(low)),
                                               _mm256_castps_pd(high), 1));
}

/* Elements of up to sixteen queries, and where they begin in the keys: packed[i * fours + f] has
 * [4 i, 4 i + 4) of queries 4 f .. 4 f + 3. */
struct part {
    const __m512 *packed;
    uint32_t q_count, fours, first, width;
};

/* The part after `from`, or the first one, which is after { packed }; false: that was the last. */
static bool next_part(struct part *part, uint32_t *query, uint32_t q_count, uint32_t width)
{
    part->packed += part->fours * ((part->width + FOUR - 1) / FOUR);
    *query += part->q_count;
    if (*query == q_count) {
        *query = 0;
        part->first += part->width;
    }
    part->q_count = q_count - *query < 4 * FOUR ? q_count - *query : 4 * FOUR;
    part->fours = cpu_padded_queries(part->q_count) / FOUR;
    part->width = width - part->first < PART_MAX ? width - part->first : PART_MAX;
    return part->first < width;
}

void cpu__pack_queries_avx512(float *packed, const float *const *queries, uint32_t query_count,
                              uint32_t width)
{
    struct part part = { .packed = (const __m512 *)(const void *)packed };
    uint32_t query = 0;

    while (next_part(&part, &query, query_count, width)) {
        const uint32_t whole = part.width / FOUR * FOUR, left = part.width - whole;
        for (uint32_t f = 0; f < part.fours; f++) {
            float *to = packed + f * FOUR * FOUR;
            const float *four[FOUR];
            for (uint32_t r = 0; r < FOUR; r++) /* those that are not there are the first */
                four[r] = queries[query + (FOUR * f + r < part.q_count ? FOUR * f + r : 0)] +
                          part.first;
            for (uint32_t i = 0; i < whole; i += FOUR, to += part.fours * FOUR * FOUR)
                _mm512_store_ps(to, pack_step(four, i, false, 0));
            if (left > 0)
                _mm512_store_ps(to, pack_step(four, whole, true, (__mmask8)first_lanes(left)));
        }
        packed += part.fours * ((part.width + FOUR - 1) / FOUR) * FOUR * FOUR;
    }
}

/* sums += products of four elements of F times four queries and W keys. */
INLINE void add_step(__m512 *sums, const uint32_t F, const uint32_t W, const __m512 *x,
                     const float *const keys[8], uint32_t i, const bool masked, __mmask8 mask)
{
#pragma GCC unroll 8
    for (uint32_t w = 0; w < W; w++) {
        const __m512 key = _mm512_broadcast_f32x4(load_four(keys[w], i, masked, mask));
#pragma GCC unroll 4
        for (uint32_t f = 0; f < F; f++)
            sums[f * W + w] = _mm512_fmadd_ps(x[f], key, sums[f * W + w]);
    }
}

/* Sums of four keys' lanes: elements 4 r .. 4 r + 3 are query r's scores. */
INLINE __m512 join_lanes(const __m512 sums[FOUR])
{
    const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(sums[0], sums[1]),
                                   _mm512_unpackhi_ps(sums[0], sums[1]));
    const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(sums[2], sums[3]),
                                   _mm512_unpackhi_ps(sums[2], sums[3]));

    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}

/* Adds four scores of each query to what out has, or puts them there. */
INLINE void put_scores(float *out, uint64_t out_stride, uint32_t q_count, __mmask8 wanted,
                       __m512 scores, bool adds)
{
    const __m128 of_query[FOUR] = {
        _mm512_castps512_ps128(scores), _mm512_extractf32x4_ps(scores, 1),
        _mm512_extractf32x4_ps(scores, 2), _mm512_extractf32x4_ps(scores, 3)
    };

#pragma GCC unroll 4
    for (uint32_t r = 0; r < FOUR; r++, out += out_stride) {
        if (r >= q_count)
            return;
        _mm_mask_storeu_ps(out, wanted,
                           adds ? _mm_add_ps(_mm_maskz_loadu_ps(wanted, out), of_query[r])
                                : of_query[r]);
    }
}

/* Puts scores of F times four queries and W keys where they belong, as far as they are there. */
INLINE void put_tile(float *out, uint64_t out_stride, const uint32_t F, const uint32_t W,
                     const struct part *part, const __m512 *sums, uint32_t key_count)
{
#pragma GCC unroll 4
    for (uint32_t f = 0; f < F; f++) {
#pragma GCC unroll 2
        for (uint32_t w = 0; w < W; w += FOUR) {
            const uint32_t count = key_count < w ? 0 : key_count - w;
            if (FOUR * f < part->q_count)
                put_scores(out + FOUR * f * out_stride + w, out_stride, part->q_count - FOUR * f,
                           (__mmask8)(count < FOUR ? first_lanes(count) : 0xf),
                           join_lanes(sums + f * W + w), part->first > 0);
        }
    }
}

/* Scores of F times four queries, F being 4, 2 or 1, and W keys, as far as they are there. */
INLINE void score_tile(float *out, uint64_t out_stride, const uint32_t F, const uint32_t W,
                       const struct part *part, const float *const keys[8], uint32_t key_count)
{
    const uint32_t whole = part->width / FOUR * FOUR;
    const __m512 *x = part->packed;
    __m512 sums[TILE];

#pragma GCC unroll 16
    for (uint32_t i = 0; i < F * W; i++)
        sums[i] = _mm512_setzero_ps();
    for (uint32_t i = 0; i < whole; i += FOUR, x += F) {
        if (i % LANES == 0) { /* wide keys are in the second-level cache: ask for two lines on */
#pragma GCC unroll 8
            for (uint32_t w = 0; w < W; w++)
                _mm_prefetch(keys[w] + i + 2 * LANES, _MM_HINT_T0);
        }
        add_step(sums, F, W, x, keys, i, false, 0);
    }
    if (whole < part->width)
        add_step(sums, F, W, x, keys, whole, true, (__mmask8)first_lanes(part->width - whole));
    put_tile(out, out_stride, F, W, part, sums, key_count);
}

/* Widens a part of a key to room, unless it is F32. */
INLINE const float *key_part(float *room, const enum dtype dtype, const struct rows *keys,
                             uint32_t j, const struct part *part)
{
    if (dtype == DTYPE_F32)
        return (const float *)keys->at[j] + part->first;
    for (uint32_t i = 0; i < part->width; i += LANES) {
        const uint32_t left = part->width - i;
        _mm512_store_ps(room + i, load_row(keys->at[j], part->first + i, dtype, keys->scales + j,
                                           dtype == DTYPE_F16 && left < LANES,
                                           first_lanes(left)));
    }
    return room;
}

/* Scores of F times four queries and all keys. */
INLINE void score_part(float *out, uint64_t out_stride, const uint32_t F, const uint32_t W,
                       const enum dtype dtype, const struct part *part, const struct rows *keys)
{
    _Alignas(64) float room[8][CPU_ATTENTION_NARROW_MAX];

    for (uint32_t j = 0; j < keys->count; j += W) {
        const float *at[8];
#pragma GCC unroll 8
        for (uint32_t w = 0; w < W; w++) {
            at[w] = key_part(room[w], dtype, keys, j + w < keys->count ? j + w : j, part);
            for (uint32_t i = 0; keys->ahead != NULL && i < part->width; i += SPAN)
                ask_for(keys->ahead[j + w], part->first + i, SPAN, dtype);
        }
        score_tile(out + j, out_stride, F, W, part, at, keys->count - j);
    }
}

/* ---- scores of four queries ---- */

/* Here memory is what scores wait for. A span of the queries stays in registers; in each step of
 * eight keys it is multiplied by four elements of each, while two vectors of the next eight are
 * widened (just before they are used it would be too late: they are read as other vectors than were
 * written) and a part of those ahead is asked for. */
INLINE void score_step(__m512 sums[8], __m512 x, const enum dtype dtype,
                       const float *const keys_at[8], float (*next)[SPAN], const struct rows *keys,
                       uint32_t j, uint32_t k, const uint32_t step)
{
    const uint32_t w = step / 2, half = step % 2 * (SPAN / 2);
    const uint32_t other = j + 8 + w < keys->count ? j + 8 + w : j;

    if (keys->ahead != NULL)
        ask_for(keys->ahead[j + w], k + half, SPAN / 2, dtype);
    add_step(sums, 1, 8, &x, keys_at, FOUR * step, false, 0);
    if (dtype == DTYPE_F32)
        return;
    for (uint32_t i = half; i < half + SPAN / 2; i += LANES)
        _mm512_store_ps(next[w] + i, load_row(keys->at[other], k + i, dtype, keys->scales + other,
                                              false, 0));
}

/* Elements [first, first + SPAN) of a part. sums_kept: of each eight keys, for the next span. */
INLINE void score_span(float *out, uint64_t out_stride, const enum dtype dtype,
                       const struct part *part, const struct rows *keys, uint32_t first,
                       __m512 (*sums_kept)[8])
{
    const struct part span = { part->packed + first / FOUR, part->q_count, 1, part->first + first,
                               SPAN };
    _Alignas(64) float rooms[2][8][SPAN];
    __m512 x[TILE];

#pragma GCC unroll 16
    for (uint32_t i = 0; i < TILE; i++)
        x[i] = span.packed[i];
    for (uint32_t w = 0; w < 8; w++)
        (void)key_part(rooms[0][w], dtype, keys, w < keys->count ? w : 0, &span);
    for (uint32_t j = 0; j < keys->count; j += 8) {
        float(*room)[SPAN] = rooms[j / 8 % 2], (*next)[SPAN] = rooms[1 - j / 8 % 2];
        const float *at[8];
        __m512 sums[8];
#pragma GCC unroll 8
        for (uint32_t w = 0; w < 8; w++) {
            const uint32_t key = j + w < keys->count ? j + w : j;
            at[w] = dtype == DTYPE_F32 ? (const float *)keys->at[key] + span.first : room[w];
            sums[w] = first == 0 ? _mm512_setzero_ps() : sums_kept[j / 8][w];
        }
#pragma GCC unroll 16
        for (uint32_t i = 0; i < TILE; i++)
            score_step(sums, x[i], dtype, at, next, keys, j, span.first, i);
        if (first + SPAN == part->width)
            put_tile(out + j, out_stride, 1, 8, part, sums, keys->count - j);
        else
            memcpy(sums_kept[j / 8], sums, sizeof(sums));
    }
}

INLINE void score_spans(float *out, uint64_t out_stride, const enum dtype dtype,
                        const struct part *part, const struct rows *keys)
{
    __m512 sums_kept[CPU_ATTENTION_KEYS / 8][8];

    for (uint32_t first = 0; first < part->width; first += SPAN)
        score_span(out, out_stride, dtype, part, keys, first, sums_kept);
}

INLINE void score_all(float *out, uint64_t out_stride, const enum dtype dtype,
                      const float *packed, uint32_t q_count, const struct rows *keys)
{
    struct part part = { .packed = (const __m512 *)(const void *)packed };
    uint32_t query = 0;

    while (next_part(&part, &query, q_count, keys->width)) {
        float *at = out + query * out_stride;
        if (part.fours == 4)
            score_part(at, out_stride, 4, 4, dtype, &part, keys);
        else if (part.fours == 2)
            score_part(at, out_stride, 2, 8, dtype, &part, keys);
        else if (part.width % SPAN == 0)
            score_spans(at, out_stride, dtype, &part, keys);
        else
            score_part(at, out_stride, 1, 8, dtype, &part, keys);
    }
}

void cpu__score_avx512(float *out, uint64_t out_stride, const float *packed, uint32_t query_count,
                       enum dtype dtype, const void *const *keys, const void *const *ahead,
                       uint32_t key_count, uint32_t width)
{
    float scales[CPU_ATTENTION_KEYS * BLOCKS_MAX];
    const struct rows rows = { keys, ahead, scales, key_count, width };

    if (dtype == DTYPE_Q8_0) {
        read_scales(scales, keys, key_count, width / QUANT_RUN_ELEMENTS);
        score_all(out, out_stride, DTYPE_Q8_0, packed, query_count, &rows);
    } else if (dtype == DTYPE_F16) {
        score_all(out, out_stride, DTYPE_F16, packed, query_count, &rows);
    } else {
        score_all(out, out_stride, DTYPE_F32, packed, query_count, &rows);
    }
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
        if (rows->ahead != NULL && !masked)
            ask_for(rows->ahead[j], at, V * LANES, dtype);
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
                                 const void *const *rows, const void *const *ahead,
                                 uint32_t row_count, uint32_t width)
{
    float scales[CPU_ATTENTION_KEYS * BLOCKS_MAX];
    const struct rows all = { rows, ahead, scales, row_count, width };

    if (dtype == DTYPE_Q8_0) {
        read_scales(scales, rows, row_count, (width - 1) / QUANT_RUN_ELEMENTS + 1);
        weighted_all(out, out_count, DTYPE_Q8_0, weights, weight_stride, &all);
    } else if (dtype == DTYPE_F16) {
        weighted_all(out, out_count, DTYPE_F16, weights, weight_stride, &all);
    } else {
        weighted_all(out, out_count, DTYPE_F32, weights, weight_stride, &all);
    }
}
