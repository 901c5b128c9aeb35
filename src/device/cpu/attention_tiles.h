/* device/cpu/attention_tiles.h - what attention does to a tile of keys and values, in vector
 * registers; included once by each of the files that compile it for an instruction set:
 * attention_avx2.c and attention_avx512.c. Its functions have names of either (NAME).
 *
 * A score is summed over k in four lanes, 576 elements at a time, whose sums are then added up:
 *
 *     lane[l] = fma over i of q[4 i + l], key[4 i + l], i ascending, from 0; missing are 0
 *     part    = (lane[0] + lane[2]) + (lane[1] + lane[3])    score = (part 0 + part 1) + ...
 *
 * A vector is four elements of each of two or four queries, so that their sums take a key's
 * elements as they lie, broadcast by the load, and adding lanes up takes 9 instructions for 8 or 16
 * scores. With a vector's elements of one query it took 45 in AVX-512, beside 64 FMAs when they
 * have 64 elements. */
#ifndef LIGHTER_DEVICE_CPU_ATTENTION_TILES_H
#define LIGHTER_DEVICE_CPU_ATTENTION_TILES_H

#include <string.h>

#include "device/cpu/avx2.h"

#define FOUR 4 /* elements of a query in a vector; and queries that are packed together */

#if defined(__AVX512F__)
#define NAME(function) cpu__##function##_avx512
#define LANES 16
#define VECTOR __m512
#define VECTOR_ZERO _mm512_setzero_ps()
#define VECTOR_LOAD _mm512_loadu_ps
#define VECTOR_STORE _mm512_storeu_ps
#define VECTOR_ADD _mm512_add_ps
#define VECTOR_MUL _mm512_mul_ps
#define VECTOR_FMA _mm512_fmadd_ps
#define VECTOR_OF _mm512_set1_ps
#define VECTOR_OF_FOUR _mm512_broadcast_f32x4
#define VECTOR_UNPACK_LOW _mm512_unpacklo_ps
#define VECTOR_UNPACK_HIGH _mm512_unpackhi_ps
#define VECTOR_SHUFFLE _mm512_shuffle_ps
#define PART_QUERIES 16 /* that go over keys together */
#define WIDTH(V) ((V) == 4 ? 4 : 8) /* keys of a tile with V vectors of queries */
/* Vectors of a tile of values: whole runs of Q8_0, or parts of one. By four outputs, half of the
 * registers. */
#define VALUES(dtype) 4
#else
#define NAME(function) cpu__##function##_avx2
#define LANES 8
#define VECTOR __m256
#define VECTOR_ZERO _mm256_setzero_ps()
#define VECTOR_LOAD _mm256_loadu_ps
#define VECTOR_STORE _mm256_storeu_ps
#define VECTOR_ADD _mm256_add_ps
#define VECTOR_MUL _mm256_mul_ps
#define VECTOR_FMA _mm256_fmadd_ps
#define VECTOR_OF _mm256_set1_ps
#define VECTOR_OF_FOUR(four) _mm256_set_m128(four, four)
#define VECTOR_UNPACK_LOW _mm256_unpacklo_ps
#define VECTOR_UNPACK_HIGH _mm256_unpackhi_ps
#define VECTOR_SHUFFLE _mm256_shuffle_ps
#define PART_QUERIES 4
#define WIDTH(V) 4
#define VALUES(dtype) ((dtype) == DTYPE_Q8_0 ? 2 : 3) /* three quarters, or half */
#endif

#define QUERIES (LANES / FOUR) /* in a vector */
#define WIDTH_MAX 8
#define VALUES_MAX 4
#define SUMS_MAX 16 /* of a tile: vectors of queries by keys */
#define LINE (LINE_BYTES / (uint32_t)sizeof(float)) /* elements of F32 */
#define OUTPUTS 4 /* of a tile of values */
#define PART_MAX 576 /* elements of queries at a time: of sixteen they fit beside keys in 48 KiB */
#define STEPS 16     /* of few queries at a time: sixteen vectors of AVX-512 stay in registers */
#define SPAN (STEPS * FOUR)
#define BLOCKS_MAX (CPU_ATTENTION_NARROW_MAX / QUANT_RUN_ELEMENTS)

/* ---- what a cache holds, in F32 ---- */

/* The first `count` < LANES elements, and zeros. */
INLINE VECTOR load_first(const float *at, uint32_t count)
{
#if LANES == 16
    return _mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), at);
#else
    return _mm256_maskload_ps(at, lane_mask(count));
#endif
}

INLINE void store_first(float *at, VECTOR lanes, uint32_t count)
{
#if LANES == 16
    _mm512_mask_storeu_ps(at, (__mmask16)((1u << count) - 1), lanes);
#else
    _mm256_maskstore_ps(at, lane_mask(count), lanes);
#endif
}

/* Of F16; LANES of them, too. */
INLINE VECTOR widen_first(const uint16_t *at, uint32_t count)
{
    uint16_t some[LANES] = { 0 };

    if (count < LANES)
        at = memcpy(some, at, count * sizeof(*at));
#if LANES == 16
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)at));
#else
    return _mm256_cvtph_ps(_mm_loadu_si128((const void *)at));
#endif
}

INLINE VECTOR widen_integers(const uint8_t *at)
{
#if LANES == 16
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)at)));
#else
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)at)));
#endif
}

/* Elements [i + e, i + e + count) of a row, count at most LANES, and zeros behind them; but what a
 * block of Q8_0 has behind them. scales: the row's, of its first block. The compiler knows e, so
 * that vectors share addresses; i is a block's first element, or i + e is in the block that i is
 * in. */
INLINE VECTOR load_row(const void *row, uint32_t i, const uint32_t e, const enum dtype dtype,
                       const float *scales, uint32_t count)
{
    const uint32_t runs = e / QUANT_RUN_ELEMENTS; /* that e is behind i's */

    if (dtype == DTYPE_Q8_0)
        return VECTOR_MUL(
            widen_integers((const uint8_t *)row + i / QUANT_RUN_ELEMENTS * QUANT_Q8_0_BYTES +
                           i % QUANT_RUN_ELEMENTS + runs * QUANT_Q8_0_BYTES +
                           (QUANT_Q8_0_BYTES - QUANT_RUN_ELEMENTS) + e % QUANT_RUN_ELEMENTS),
            VECTOR_OF(scales[i / QUANT_RUN_ELEMENTS * CPU_ATTENTION_KEYS +
                             runs * CPU_ATTENTION_KEYS]));
    if (dtype == DTYPE_F16)
        return widen_first((const uint16_t *)row + i + e, count);
    return count < LANES ? load_first((const float *)row + i + e, count)
                         : VECTOR_LOAD((const float *)row + i + e);
}

/* scales[b * CPU_ATTENTION_KEYS + j] of rows of blocks, eight rows' at a time. */
static void read_scales(float *scales, const void *const *rows, uint32_t row_count,
                        uint32_t block_count)
{
    for (uint32_t j = 0; j < row_count; j += 8) {
        const uint32_t count = row_count - j < 8 ? row_count - j : 8;
#if LANES == 16
        const __mmask8 mask = (__mmask8)((1u << count) - 1);
        const __m512i at = _mm512_maskz_loadu_epi64(mask, rows + j);
#endif
        for (uint32_t b = 0; b < block_count; b++) {
            const uint32_t offset = b * QUANT_Q8_0_BYTES;
#if LANES == 16 /* each with the two bytes behind it */
            const __m512i starts = _mm512_add_epi64(at, _mm512_set1_epi64(offset));
            const __m128i halves = _mm256_cvtepi32_epi16(
                _mm512_mask_i64gather_epi32(_mm256_setzero_si256(), mask, starts, NULL, 1));
#else
            int16_t half[8];
            for (uint32_t i = 0; i < 8; i++)
                memcpy(&half[i], (const uint8_t *)rows[i < count ? j + i : j] + offset,
                       sizeof(half[i]));
            const __m128i halves = _mm_setr_epi16(half[0], half[1], half[2], half[3], half[4],
                                                  half[5], half[6], half[7]);
#endif
            _mm256_storeu_ps(scales + (uint64_t)b * CPU_ATTENTION_KEYS + j,
                             _mm256_cvtph_ps(halves));
        }
    }
}

void NAME(widen)(float *out, enum dtype dtype, const void *from, uint32_t count)
{
    const uint8_t *block = from;

    if (dtype == DTYPE_F16) {
        const uint32_t left = count % LANES, whole = count - left;
        for (uint32_t i = 0; i < whole; i += LANES)
            VECTOR_STORE(out + i, load_row(from, i, 0, DTYPE_F16, NULL, LANES));
        if (left > 0)
            store_first(out + whole, load_row(from, whole, 0, DTYPE_F16, NULL, left), left);
        return;
    }
    for (uint32_t i = 0; i < count; i += QUANT_RUN_ELEMENTS, block += QUANT_Q8_0_BYTES) {
        const __m128i half = _mm_cvtsi32_si128(block[0] | block[1] << 8);
        const float scale = _mm_cvtss_f32(_mm_cvtph_ps(half));
#pragma GCC unroll 4
        for (uint32_t e = 0; e < QUANT_RUN_ELEMENTS; e += LANES)
            VECTOR_STORE(out + i + e, load_row(block, 0, e, DTYPE_Q8_0, &scale, LANES));
    }
}

/* ---- scores ---- */

/* Keys as a cache has them, or rows of values. */
struct rows {
    const void *const *at;
    const void *const *ahead;    /* rows to ask for, each when its namesake is used; or NULL */
    uint32_t asks_from, asks_each; /* of these: where some queries follow others they take turns */
    const float *scales;         /* of blocks, as read_scales writes them */
    uint32_t count, width;
};

/* Of W keys, the j-th and on: those ahead, if it is their turn, or NULL. */
INLINE const void *const *rows_ahead(const struct rows *keys, uint32_t j, const uint32_t W)
{
    const bool is_turn = keys->ahead != NULL && j / W % keys->asks_each == keys->asks_from;

    return is_turn ? keys->ahead + j : NULL;
}

/* Of an element, without its share of a block's scale. */
INLINE uint32_t element_bytes(const enum dtype dtype)
{
    return dtype == DTYPE_F32 ? 4 : dtype == DTYPE_F16 ? 2 : 1;
}

/* Asks for elements [i, i + count) of a row, which begin a line or follow what was asked for. A
 * block's scale is next to them. */
INLINE void ask_for(const void *row, uint32_t i, const uint32_t count, const enum dtype dtype)
{
    const uint32_t bytes = element_bytes(dtype);
    const uint32_t scales = dtype == DTYPE_Q8_0 ? i / QUANT_RUN_ELEMENTS * 2 : 0;

#pragma GCC unroll 4
    for (uint32_t at = 0; at < count * bytes; at += LINE_BYTES)
        _mm_prefetch((const char *)row + i * bytes + scales + at, _MM_HINT_T1);
}

/* Elements [i, i + count) of a row, and zeros; count is at most four. */
INLINE __m128 load_four(const float *row, uint32_t i, uint32_t count)
{
    return count == FOUR ? _mm_loadu_ps(row + i)
                         : _mm_maskload_ps(row + i, _mm256_castsi256_si128(lane_mask(count)));
}

/* Elements of up to PART_QUERIES queries, and where they begin in the keys: packed[i * vectors + v]
 * has [4 i, 4 i + 4) of queries QUERIES v and on. */
struct part {
    const VECTOR *packed;
    uint32_t q_count, vectors, first, width;
};

/* The part after `from`, or the first one, which is after { packed }; false: that was the last. */
static bool next_part(struct part *part, uint32_t *query, uint32_t q_count, uint32_t width)
{
    part->packed += part->vectors * ((part->width + FOUR - 1) / FOUR);
    *query += part->q_count;
    if (*query == q_count) {
        *query = 0;
        part->first += part->width;
    }
    part->q_count = q_count - *query < PART_QUERIES ? q_count - *query : PART_QUERIES;
    part->vectors = cpu_padded_queries(part->q_count) / QUERIES;
    part->width = width - part->first < PART_MAX ? width - part->first : PART_MAX;
    return part->first < width;
}

/* to[4 r] and on: elements [i, i + count) of query r, of four. */
INLINE void pack_step(float *to, const float *const q[FOUR], uint32_t i, uint32_t count)
{
#pragma GCC unroll 4
    for (uint32_t r = 0; r < FOUR; r++)
        _mm_store_ps(to + r * FOUR, load_four(q[r], i, count));
}

void NAME(pack_queries)(float *packed, const float *const *queries, uint32_t query_count,
                        uint32_t width)
{
    struct part part = { .packed = (const VECTOR *)(const void *)packed };
    uint32_t query = 0;

    while (next_part(&part, &query, query_count, width)) {
        const uint32_t left = part.width % FOUR, whole = part.width - left;
        const uint32_t step = part.vectors * LANES; /* floats that four elements take */
        for (uint32_t q = 0; q * FOUR < step; q += FOUR) {
            float *to = packed + q * FOUR;
            const float *four[FOUR];
            for (uint32_t r = 0; r < FOUR; r++) /* those that are not there are the first */
                four[r] = queries[query + (q + r < part.q_count ? q + r : 0)] + part.first;
            for (uint32_t i = 0; i < whole; i += FOUR, to += step)
                pack_step(to, four, i, FOUR);
            if (left > 0)
                pack_step(to, four, whole, left);
        }
        packed += (part.width + FOUR - 1) / FOUR * step;
    }
}

/* sums += products of `count` elements, at most four, of V vectors of queries and W keys. */
INLINE void add_step(VECTOR *sums, const uint32_t V, const uint32_t W, const VECTOR *x,
                     const float *const keys[WIDTH_MAX], uint32_t i, uint32_t count)
{
#pragma GCC unroll 8
    for (uint32_t w = 0; w < W; w++) {
        const __m128 four = load_four(keys[w], i, count);
        const VECTOR key = VECTOR_OF_FOUR(four);
#pragma GCC unroll 4
        for (uint32_t v = 0; v < V; v++)
            sums[v * W + w] = VECTOR_FMA(x[v], key, sums[v * W + w]);
    }
}

/* Sums of four keys' lanes: elements 4 r .. 4 r + 3 are query r's scores. */
INLINE VECTOR join_lanes(const VECTOR sums[FOUR])
{
    const VECTOR a = VECTOR_ADD(VECTOR_UNPACK_LOW(sums[0], sums[1]),
                                VECTOR_UNPACK_HIGH(sums[0], sums[1]));
    const VECTOR b = VECTOR_ADD(VECTOR_UNPACK_LOW(sums[2], sums[3]),
                                VECTOR_UNPACK_HIGH(sums[2], sums[3]));

    return VECTOR_ADD(VECTOR_SHUFFLE(a, b, 0x44), VECTOR_SHUFFLE(a, b, 0xee));
}

/* Adds up to four scores of a query to what out has, or puts them there. */
INLINE void put_scores(float *out, __m128 scores, uint32_t count, bool adds)
{
    if (count >= FOUR) {
        _mm_storeu_ps(out, adds ? _mm_add_ps(_mm_loadu_ps(out), scores) : scores);
        return;
    }
    if (adds)
        scores = _mm_add_ps(load_four(out, 0, count), scores);
    _mm_maskstore_ps(out, _mm256_castsi256_si128(lane_mask(count)), scores);
}

/* The same of a vector's queries. */
INLINE void put_vector(float *out, uint32_t q_count, VECTOR scores,
                       uint32_t count, bool adds)
{
    __m128 of_query[QUERIES];

#if LANES == 16
    of_query[0] = _mm512_castps512_ps128(scores);
    of_query[1] = _mm512_extractf32x4_ps(scores, 1);
    of_query[2] = _mm512_extractf32x4_ps(scores, 2);
    of_query[3] = _mm512_extractf32x4_ps(scores, 3);
#else
    of_query[0] = _mm256_castps256_ps128(scores);
    of_query[1] = _mm256_extractf128_ps(scores, 1);
#endif
#pragma GCC unroll 4
    for (uint32_t r = 0; r < QUERIES && r < q_count; r++)
        put_scores(out + r * CPU_ATTENTION_KEYS, of_query[r], count, adds);
}

/* Puts scores of V vectors of queries and W keys where they belong, as far as they are there. */
INLINE void put_tile(float *out, const uint32_t V, const uint32_t W,
                     const struct part *part, const VECTOR *sums, uint32_t key_count)
{
    const bool is_whole = key_count >= W && part->q_count == V * QUERIES;

#pragma GCC unroll 4
    for (uint32_t v = 0; v < V; v++, out += QUERIES * CPU_ATTENTION_KEYS) {
        const uint32_t q_count = QUERIES * v < part->q_count ? part->q_count - QUERIES * v : 0;
#pragma GCC unroll 2
        for (uint32_t w = 0; w < W; w += FOUR) {
            const VECTOR scores = join_lanes(sums + v * W + w);
            if (is_whole)
                put_vector(out + w, QUERIES, scores, FOUR, part->first > 0);
            else if (w < key_count)
                put_vector(out + w, q_count, scores, key_count - w, part->first > 0);
        }
    }
}

/* Scores of V vectors of queries and W keys, as far as they are there. dtype: the cache's; ahead: W
 * of its rows to ask for, or NULL. */
INLINE void score_tile(float *out, const uint32_t V, const uint32_t W,
                       const enum dtype dtype, const struct part *part,
                       const float *const keys[WIDTH_MAX], const void *const *ahead,
                       uint32_t key_count)
{
    const uint32_t left = part->width % FOUR, whole = part->width - left;
    const VECTOR *x = part->packed;
    VECTOR sums[SUMS_MAX];
    uint32_t i = 0;

#pragma GCC unroll 16
    for (uint32_t s = 0; s < V * W; s++)
        sums[s] = VECTOR_ZERO;
    for (; i + LINE <= whole; i += LINE) {
        const bool asks = ahead != NULL && i * element_bytes(dtype) % LINE_BYTES == 0;
#pragma GCC unroll 8
        for (uint32_t w = 0; w < W; w++) {
            if (dtype == DTYPE_F32) /* wide keys aren't near: ask for two lines on */
                _mm_prefetch(keys[w] + i + 2 * LINE, _MM_HINT_T0);
            if (asks)
                ask_for(ahead[w], part->first + i, LINE, dtype);
        }
#pragma GCC unroll 4
        for (uint32_t step = 0; step < LINE / FOUR; step++, x += V)
            add_step(sums, V, W, x, keys, i + step * FOUR, FOUR);
    }
    for (; i < whole; i += FOUR, x += V)
        add_step(sums, V, W, x, keys, i, FOUR);
    if (left > 0)
        add_step(sums, V, W, x, keys, whole, left);
    put_tile(out, V, W, part, sums, key_count);
}

/* Widens a part of a key to room, unless it is F32. */
INLINE const float *key_part(float *room, const enum dtype dtype, const struct rows *keys,
                             uint32_t j, const struct part *part)
{
    uint32_t i = 0;

    if (dtype == DTYPE_F32)
        return (const float *)keys->at[j] + part->first;
    for (; i + LANES <= part->width; i += LANES)
        VECTOR_STORE(room + i,
                     load_row(keys->at[j], part->first + i, 0, dtype, keys->scales + j, LANES));
    if (dtype == DTYPE_F16 && i < part->width)
        VECTOR_STORE(room + i,
                     load_row(keys->at[j], part->first + i, 0, dtype, NULL, part->width - i));
    return room;
}

/* Scores of V vectors of queries and all keys. */
INLINE void score_part(float *out, const uint32_t V, const enum dtype dtype,
                       const struct part *part, const struct rows *keys)
{
    _Alignas(64) float room[WIDTH_MAX][CPU_ATTENTION_NARROW_MAX];
    const uint32_t W = WIDTH(V);

    for (uint32_t j = 0; j < keys->count; j += W) {
        const float *at[WIDTH_MAX];
#pragma GCC unroll 8
        for (uint32_t w = 0; w < W; w++)
            at[w] = key_part(room[w], dtype, keys, j + w < keys->count ? j + w : j, part);
        score_tile(out + j, V, W, dtype, part, at, rows_ahead(keys, j, W),
                   keys->count - j);
    }
}

/* ---- scores of few queries ---- */

#define FEW (FOUR / QUERIES) /* vectors */
#define FEW_QUERIES (FEW == 1 ? FOUR : 2 * FOUR) /* two fours go one after another */
#define FEW_WIDTH WIDTH(FEW)
#define STEP_ELEMENTS (FEW_WIDTH * SPAN / STEPS)

/* Here memory is what scores wait for. In each of a span's steps a few keys are multiplied by four
 * elements of each query, while two vectors of the next keys are widened (just before they are used
 * it would be too late: they are read as other vectors than were written) and a part of those ahead
 * is asked for. */
INLINE void score_step(VECTOR *sums, const VECTOR *x, const enum dtype dtype,
                       const float *const keys_at[WIDTH_MAX], float (*next)[SPAN],
                       const struct rows *keys, uint32_t j, const void *const *ahead, uint32_t k,
                       const uint32_t step)
{
    const uint32_t w = step * STEP_ELEMENTS / SPAN, at = step * STEP_ELEMENTS % SPAN;
    const uint32_t other = j + FEW_WIDTH + w < keys->count ? j + FEW_WIDTH + w : j;

    if (ahead != NULL && at * element_bytes(dtype) % LINE_BYTES == 0)
        ask_for(ahead[w], k + at, STEP_ELEMENTS, dtype);
    add_step(sums, FEW, FEW_WIDTH, x, keys_at, FOUR * step, FOUR);
    if (dtype == DTYPE_F32)
        return;
#pragma GCC unroll 2
    for (uint32_t i = at; i < at + STEP_ELEMENTS; i += LANES)
        VECTOR_STORE(next[w] + i,
                     load_row(keys->at[other], k, i, dtype, keys->scales + other, LANES));
}

/* Elements [first, first + SPAN) of a part. sums_kept: of a few keys each, for the next span. */
INLINE void score_span(float *out, const enum dtype dtype, const struct part *part,
                       const struct rows *keys, uint32_t first,
                       VECTOR (*sums_kept)[FEW * FEW_WIDTH])
{
    const struct part span = { part->packed + first / FOUR * FEW, part->q_count, FEW,
                               part->first + first, SPAN };
    _Alignas(64) float rooms[2][WIDTH_MAX][SPAN];
    VECTOR x[STEPS * FEW];

#pragma GCC unroll 32
    for (uint32_t i = 0; i < STEPS * FEW; i++)
        x[i] = span.packed[i];
    for (uint32_t w = 0; w < FEW_WIDTH; w++)
        (void)key_part(rooms[0][w], dtype, keys, w < keys->count ? w : 0, &span);
    for (uint32_t j = 0; j < keys->count; j += FEW_WIDTH) {
        float(*room)[SPAN] = rooms[j / FEW_WIDTH % 2], (*next)[SPAN] = rooms[1 - j / FEW_WIDTH % 2];
        const void *const *const ahead = rows_ahead(keys, j, FEW_WIDTH);
        const float *at[WIDTH_MAX];
        VECTOR sums[FEW * FEW_WIDTH];
#pragma GCC unroll 8
        for (uint32_t w = 0; w < FEW_WIDTH; w++) {
            const uint32_t key = j + w < keys->count ? j + w : j;
            at[w] = dtype == DTYPE_F32 ? (const float *)keys->at[key] + span.first : room[w];
        }
#pragma GCC unroll 8
        for (uint32_t i = 0; i < FEW * FEW_WIDTH; i++)
            sums[i] = first == 0 ? VECTOR_ZERO : sums_kept[j / FEW_WIDTH][i];
#pragma GCC unroll 16
        for (uint32_t i = 0; i < STEPS; i++)
            score_step(sums, x + i * FEW, dtype, at, next, keys, j, ahead, span.first, i);
        if (first + SPAN == part->width)
            put_tile(out + j, FEW, FEW_WIDTH, part, sums, keys->count - j);
        else
            memcpy(sums_kept[j / FEW_WIDTH], sums, sizeof(sums));
    }
}

INLINE void score_spans(float *out, const enum dtype dtype, const struct part *part,
                        const struct rows *keys)
{
    VECTOR sums_kept[CPU_ATTENTION_KEYS / FEW_WIDTH][FEW * FEW_WIDTH];

    for (uint32_t first = 0; first < part->width; first += SPAN)
        score_span(out, dtype, part, keys, first, sums_kept);
}

INLINE void score_all(float *out, const enum dtype dtype, const float *packed, uint32_t q_count,
                      const struct rows *keys)
{
    struct part part = { .packed = (const VECTOR *)(const void *)packed };
    uint32_t query = 0;

    while (next_part(&part, &query, q_count, keys->width)) {
        struct rows some = *keys;
        float *at = out + query * CPU_ATTENTION_KEYS;
        some.asks_from = query / PART_QUERIES;
        some.asks_each = (q_count - 1) / PART_QUERIES + 1;
        if (q_count <= FEW_QUERIES && part.width % SPAN == 0)
            score_spans(at, dtype, &part, &some);
        else if (PART_QUERIES / QUERIES == 4 && part.vectors == 4)
            score_part(at, 4, dtype, &part, &some);
        else if (part.vectors == 2)
            score_part(at, 2, dtype, &part, &some);
        else if (FEW == 1)
            score_part(at, 1, dtype, &part, &some);
    }
}

void NAME(score)(float *out, const float *packed, uint32_t query_count,
                 enum dtype dtype, const void *const *keys, const void *const *ahead,
                 uint32_t key_count, uint32_t width)
{
    float scales[CPU_ATTENTION_KEYS * BLOCKS_MAX];
    const struct rows rows = { .at = keys, .ahead = ahead, .scales = scales,
                               .count = key_count, .width = width };

    if (dtype == DTYPE_Q8_0) {
        read_scales(scales, keys, key_count, width / QUANT_RUN_ELEMENTS);
        score_all(out, DTYPE_Q8_0, packed, query_count, &rows);
    } else if (dtype == DTYPE_F16) {
        score_all(out, DTYPE_F16, packed, query_count, &rows);
    } else {
        score_all(out, DTYPE_F32, packed, query_count, &rows);
    }
}

/* ---- values ---- */

/* R outputs by V vectors of them, or `count` < LANES elements: each element is one chain of FMAs
 * over j. */
INLINE void weighted_tile(float *const *out, const uint32_t R, uint32_t at, const uint32_t V,
                          const enum dtype dtype, uint32_t count, const float *weights,
                          const struct rows *rows)
{
    VECTOR sums[OUTPUTS][VALUES_MAX];
    uint32_t asks_at = rows->asks_from;

#pragma GCC unroll 4
    for (uint32_t r = 0; r < R; r++) {
#pragma GCC unroll 4
        for (uint32_t v = 0; v < V; v++)
            sums[r][v] = load_row(out[r], at, v * LANES, DTYPE_F32, NULL, count);
    }
    for (uint32_t j = 0; j < rows->count; j++) {
        VECTOR values[VALUES_MAX];
        if (rows->ahead != NULL && j == asks_at) {
            ask_for(rows->ahead[j], at, V * LANES, dtype);
            asks_at += rows->asks_each;
        }
#pragma GCC unroll 4
        for (uint32_t v = 0; v < V; v++)
            values[v] = load_row(rows->at[j], at, v * LANES, dtype, rows->scales + j, count);
#pragma GCC unroll 4
        for (uint32_t r = 0; r < R; r++) {
            const VECTOR weight = VECTOR_OF(weights[r * CPU_ATTENTION_KEYS + j]);
#pragma GCC unroll 4
            for (uint32_t v = 0; v < V; v++)
                sums[r][v] = VECTOR_FMA(weight, values[v], sums[r][v]);
        }
    }
#pragma GCC unroll 4
    for (uint32_t r = 0; r < R; r++) {
#pragma GCC unroll 4
        for (uint32_t v = 0; v < V; v++) {
            if (count < LANES)
                store_first(out[r] + at, sums[r][v], count);
            else
                VECTOR_STORE(out[r] + at + v * LANES, sums[r][v]);
        }
    }
}

INLINE void weighted_outputs(float *const *out, const uint32_t R, const enum dtype dtype,
                             const float *weights, const struct rows *rows)
{
    const uint32_t V = VALUES(dtype);
    uint32_t at = 0, left = rows->width / LANES; /* four by three are two and two */

    for (; left >= V && left != V + 1; left -= V, at += V * LANES)
        weighted_tile(out, R, at, V, dtype, LANES, weights, rows);
    for (; left >= 2; left -= 2, at += 2 * LANES)
        weighted_tile(out, R, at, 2, dtype, LANES, weights, rows);
    for (; left > 0; left--, at += LANES)
        weighted_tile(out, R, at, 1, dtype, LANES, weights, rows);
    if (at < rows->width)
        weighted_tile(out, R, at, 1, dtype, rows->width - at, weights, rows);
}

/* Each group of outputs reads all rows, and asks for its share of those ahead: at the first's pace
 * alone memory would not keep up, and have nothing to do afterwards. */
INLINE void weighted_all(float *const *out, uint32_t out_count, const enum dtype dtype,
                         const float *weights, const struct rows *rows)
{
    const uint32_t left = out_count % OUTPUTS;
    struct rows some = *rows;
    uint32_t r = 0;

    some.asks_each = out_count / OUTPUTS + left / 2 + left % 2;
    for (; r + OUTPUTS <= out_count; r += OUTPUTS, some.asks_from++)
        weighted_outputs(out + r, OUTPUTS, dtype, weights + r * CPU_ATTENTION_KEYS, &some);
    for (; r + 2 <= out_count; r += 2, some.asks_from++)
        weighted_outputs(out + r, 2, dtype, weights + r * CPU_ATTENTION_KEYS, &some);
    for (; r < out_count; r++, some.asks_from++)
        weighted_outputs(out + r, 1, dtype, weights + r * CPU_ATTENTION_KEYS, &some);
}

void NAME(add_cached_rows)(float *const *out, uint32_t out_count, const float *weights,
                           enum dtype dtype, const void *const *rows, const void *const *ahead,
                           uint32_t row_count, uint32_t width)
{
    float scales[CPU_ATTENTION_KEYS * BLOCKS_MAX];
    const struct rows all = { .at = rows, .ahead = ahead, .scales = scales, .count = row_count,
                              .width = width };

    if (dtype == DTYPE_Q8_0) {
        read_scales(scales, rows, row_count, (width - 1) / QUANT_RUN_ELEMENTS + 1);
        weighted_all(out, out_count, DTYPE_Q8_0, weights, &all);
    } else if (dtype == DTYPE_F16) {
        weighted_all(out, out_count, DTYPE_F16, weights, &all);
    } else {
        weighted_all(out, out_count, DTYPE_F32, weights, &all);
    }
}

#endif
