/* device/cpu/quant_tiles.h - products with quantised weights in vector registers; included once by
 * each of the files that compile it for an instruction set: quant_avx2.c, quant_vnni.c, and
 * quant_avx512.c, where the tiles of a panel have vectors of two groups of eight.
 *
 * The lanes of a vector are eight weight rows, n to n + 7, so that a chain of FMAs over the blocks
 * is one output's sum (kernels.h):
 *
 *     few rows of x    the eight rows' blocks are read where they lie. A vector holds half a block
 *                      of rows i and i + 4; products leave four partial sums of each, and three
 *                      horizontal additions make eight rows' dot products of four such vectors.
 *     many             eight rows are cut into a panel in scratch: a vector holds four elements of
 *                      each of the eight rows. Then the rows of x take turns, ROWS_MAX at a time:
 *                      four elements of x, broadcast, go with a vector of the panel.
 *
 * Integer products: VNNI multiplies unsigned with signed bytes and adds four of them to a lane. As
 * unsigned numbers serve Q4_0's halves, and Q8_0's q + 128; what that adds too much follows from
 * the sums of x. Without VNNI, pairs of products are made in 16 bits. For Q4_0 eight pairs fit
 * into 16 bits (8 * 2 * 15 * 127 = 30480), so they are widened once a block. Q8_0's would not: the
 * weight's sign moves to x, and each pair of at most 2 * 128 * 127 = 32512 is widened at once. */
#ifndef LIGHTER_DEVICE_CPU_QUANT_TILES_H
#define LIGHTER_DEVICE_CPU_QUANT_TILES_H

#include <string.h>

#include "device/cpu/avx2.h"
#include "tensor/quant.h"

#if defined(__AVX512VNNI__)
#define HAS_VNNI 1
#define DOT_BYTES _mm256_dpbusd_epi32
#define GROUPS 2        /* in a panel: what fills a vector of a tile */
#define ROWS_MAX 8      /* rows of x in a tile */
#elif defined(__AVXVNNI__)
#define HAS_VNNI 1
#define DOT_BYTES _mm256_dpbusd_avx_epi32
#define GROUPS 1
#define ROWS_MAX 6
#else
#define HAS_VNNI 0
#define GROUPS 1
#define ROWS_MAX 6
#endif
#define WIDTH 8         /* weight rows of a group */
#define STEPS 8         /* vectors of a block in a panel, four elements of each weight row */
#define DIRECT_ROWS_MAX 3 /* more are worth a panel */
#define SPREAD_ROWS_MAX 24

struct panel_block {
    __m256i q[STEPS][GROUPS];
    float scales[GROUPS][WIDTH];
};

/* Eight weight rows: n, n + step, ... The last of a strip may be fewer; then the last one is there
 * several times. */
struct group {
    const uint8_t *rows[WIDTH];
    uint32_t n, step, count;
};

INLINE uint32_t block_bytes(const enum dtype dtype)
{
    return dtype == DTYPE_Q8_0 ? QUANT_Q8_0_BYTES : QUANT_Q4_0_BYTES;
}

INLINE struct group group_at(const struct cpu_strip *strip, const enum dtype dtype, uint32_t n,
                             uint32_t step)
{
    const uint64_t row_bytes =
        strip->weight_row_stride / QUANT_RUN_ELEMENTS * block_bytes(dtype);
    const uint32_t left = strip->n_count - n;
    struct group group = { .n = n, .step = step, .count = left < WIDTH ? left : WIDTH };

    for (uint32_t i = 0; i < WIDTH; i++) {
        const uint32_t row = n + (i < group.count ? i : group.count - 1) * step;
        group.rows[i] = (const uint8_t *)strip->weight + row * row_bytes;
    }
    return group;
}

INLINE __m256i load_halves(const uint8_t *low, const uint8_t *high)
{
    const __m128i first = _mm_loadu_si128((const __m128i *)(const void *)low);
    const __m128i second = _mm_loadu_si128((const __m128i *)(const void *)high);

    return _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
}

/* Weights as `products` takes them: elements 0..15 and 16..31 of rows i (low) and i + 4 (high). */
INLINE void load_pair(const enum dtype dtype, const struct group *group, uint64_t at, uint32_t i,
                      __m256i *first, __m256i *second)
{
    const uint8_t *low = group->rows[i] + at + 2;
    const uint8_t *high = group->rows[i + 4] + at + 2;

    if (dtype == DTYPE_Q4_0) {
        const __m256i both = load_halves(low, high);
        const __m256i mask = _mm256_set1_epi8(15);
        *first = _mm256_and_si256(both, mask);
        *second = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
        return;
    }
    *first = load_halves(low, high);
    *second = load_halves(low + 16, high + 16);
#if HAS_VNNI
    *first = _mm256_xor_si256(*first, _mm256_set1_epi8(-128));
    *second = _mm256_xor_si256(*second, _mm256_set1_epi8(-128));
#endif
}

INLINE __m256 load_scales(const struct group *group, uint64_t at)
{
    __m128i halves = _mm_setzero_si128();
    uint16_t bits[WIDTH];

    for (uint32_t i = 0; i < WIDTH; i++)
        memcpy(&bits[i], group->rows[i] + at, sizeof(bits[i]));
    halves = _mm_insert_epi16(halves, bits[0], 0);
    halves = _mm_insert_epi16(halves, bits[1], 1);
    halves = _mm_insert_epi16(halves, bits[2], 2);
    halves = _mm_insert_epi16(halves, bits[3], 3);
    halves = _mm_insert_epi16(halves, bits[4], 4);
    halves = _mm_insert_epi16(halves, bits[5], 5);
    halves = _mm_insert_epi16(halves, bits[6], 6);
    halves = _mm_insert_epi16(halves, bits[7], 7);
    return _mm256_cvtph_ps(halves);
}

/* Adds to the sums of a block, which are of 16 bits for Q4_0 without VNNI. */
INLINE __m256i products(const enum dtype dtype, __m256i sums, __m256i weights, __m256i x)
{
#if HAS_VNNI
    (void)dtype;
    return DOT_BYTES(sums, weights, x);
#else
    const __m256i ones = _mm256_set1_epi16(1);

    if (dtype == DTYPE_Q4_0)
        return _mm256_add_epi16(sums, _mm256_maddubs_epi16(weights, x));
    return _mm256_add_epi32(
        sums, _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_sign_epi8(weights, weights),
                                                     _mm256_sign_epi8(x, weights)),
                                ones));
#endif
}

/* The sums as 32-bit lanes. */
INLINE __m256i widened(const enum dtype dtype, __m256i sums)
{
#if !HAS_VNNI
    if (dtype == DTYPE_Q4_0)
        return _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
#endif
    (void)dtype;
    return sums;
}

/* What the offset of weights that were made unsigned adds to a dot product, negative. */
INLINE __m256i correction_of(const enum dtype dtype, const struct cpu_quant_block *x)
{
    const int16_t offset = dtype == DTYPE_Q4_0 ? 8 : 128;
    int32_t sums;

    memcpy(&sums, x->sums, sizeof(sums));
    return _mm256_madd_epi16(_mm256_set1_epi32(sums), _mm256_set1_epi16((int16_t)-offset));
}

/* The block's dot products, from lanes that began with `start`, or with zeros. */
INLINE __m256i corrected(const enum dtype dtype, __m256i dots, const struct cpu_quant_block *x,
                         bool started)
{
#if HAS_VNNI
    if (started)
        return dots;
#else
    (void)started;
    if (dtype == DTYPE_Q8_0)
        return dots;
#endif
    return _mm256_add_epi32(dots, correction_of(dtype, x));
}

INLINE __m256 add_block(__m256 sums, __m256i dots, float x_scale, __m256 scales)
{
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots),
                           _mm256_mul_ps(_mm256_set1_ps(x_scale), scales), sums);
}

/* A row's eight outputs. Out of line: each of a tile's rows would have all of it. */
static __attribute__((noinline)) void put(const struct cpu_strip *strip, uint32_t row,
                                          const struct group *group, __m256 sums)
{
    float *out = strip->out + row * strip->out_row_stride + group->n;
    const float *bias = strip->bias == NULL ? NULL : strip->bias + group->n;
    float lanes[WIDTH];

    if (group->step == 1 && group->count == WIDTH) {
        if (bias != NULL)
            sums = _mm256_add_ps(sums, _mm256_loadu_ps(bias));
        if (strip->accumulate)
            sums = _mm256_add_ps(_mm256_loadu_ps(out), sums);
        _mm256_storeu_ps(out, sums);
        return;
    }
    _mm256_storeu_ps(lanes, sums);
    for (uint32_t i = 0; i < group->count; i++) {
        const uint64_t at = (uint64_t)i * group->step;
        if (bias != NULL)
            lanes[i] += bias[at];
        out[at] = strip->accumulate ? out[at] + lanes[i] : lanes[i];
    }
}

/* R rows of x against a group, straight from where its blocks lie. */
INLINE void direct_group(const struct cpu_strip *strip, const enum dtype dtype, const uint32_t R,
                         uint32_t row, const struct group *group)
{
    const uint32_t block_count = strip->k_count / QUANT_RUN_ELEMENTS;
    __m256 sums[DIRECT_ROWS_MAX];

#pragma GCC unroll 3
    for (uint32_t r = 0; r < R; r++)
        sums[r] = _mm256_setzero_ps();
    for (uint32_t b = 0; b < block_count; b++) {
        const uint64_t at = (uint64_t)b * block_bytes(dtype);
        __m256i first[4], second[4];
        const __m256 scales = load_scales(group, at);
#pragma GCC unroll 4
        for (uint32_t i = 0; i < 4; i++)
            load_pair(dtype, group, at, i, &first[i], &second[i]);
#pragma GCC unroll 3
        for (uint32_t r = 0; r < R; r++) {
            const struct cpu_quant_block *x = strip->x_blocks[row + r] + b;
            const __m256i x_first = _mm256_broadcastsi128_si256(
                _mm_loadu_si128((const __m128i *)(const void *)x->q));
            const __m256i x_second = _mm256_broadcastsi128_si256(
                _mm_loadu_si128((const __m128i *)(const void *)(x->q + 16)));
            __m256i p[4];
#pragma GCC unroll 4
            for (uint32_t i = 0; i < 4; i++) {
                p[i] = products(dtype, _mm256_setzero_si256(), first[i], x_first);
                p[i] = widened(dtype, products(dtype, p[i], second[i], x_second));
            }
            p[0] = _mm256_hadd_epi32(_mm256_hadd_epi32(p[0], p[1]), _mm256_hadd_epi32(p[2], p[3]));
            sums[r] = add_block(sums[r], corrected(dtype, p[0], x, false), x->scale,
                                scales);
        }
    }
#pragma GCC unroll 3
    for (uint32_t r = 0; r < R; r++)
        put(strip, row + r, group, sums[r]);
}

/* Four vectors, four elements of a row in each 32 bits, to one vector per four elements. */
INLINE void transpose(const __m256i rows[4], __m256i out[4])
{
    const __m256i a = _mm256_unpacklo_epi32(rows[0], rows[1]);
    const __m256i b = _mm256_unpacklo_epi32(rows[2], rows[3]);
    const __m256i c = _mm256_unpackhi_epi32(rows[0], rows[1]);
    const __m256i d = _mm256_unpackhi_epi32(rows[2], rows[3]);

    out[0] = _mm256_unpacklo_epi64(a, b);
    out[1] = _mm256_unpackhi_epi64(a, b);
    out[2] = _mm256_unpacklo_epi64(c, d);
    out[3] = _mm256_unpackhi_epi64(c, d);
}

/* A group's rows, the place-th of the panel. */
INLINE void fill_panel(const struct cpu_strip *strip, const enum dtype dtype,
                       const struct group *group, uint32_t place, struct panel_block *panel)
{
    const uint32_t block_count = strip->k_count / QUANT_RUN_ELEMENTS;

    for (uint32_t b = 0; b < block_count; b++) {
        const uint64_t at = (uint64_t)b * block_bytes(dtype);
        __m256i first[4], second[4], steps[STEPS];
#pragma GCC unroll 4
        for (uint32_t i = 0; i < 4; i++)
            load_pair(dtype, group, at, i, &first[i], &second[i]);
        transpose(first, steps);
        transpose(second, steps + 4);
#pragma GCC unroll 8
        for (uint32_t step = 0; step < STEPS; step++)
            panel[b].q[step][place] = steps[step];
        _mm256_store_ps(panel[b].scales[place], load_scales(group, at));
    }
}

#if GROUPS == 2

#define VECTOR __m512
#define VECTOR_ZERO _mm512_setzero_ps()
#define VECTOR_INTEGERS __m512i

INLINE VECTOR load_vector(const float *values)
{
    return _mm512_loadu_ps(values);
}

INLINE VECTOR_INTEGERS start(const enum dtype dtype, const struct cpu_quant_block *x)
{
    return _mm512_broadcast_i64x4(correction_of(dtype, x));
}

INLINE VECTOR_INTEGERS step_products(const enum dtype dtype, VECTOR_INTEGERS sums,
                                     const __m256i *weights, int32_t x)
{
    (void)dtype;
    return _mm512_dpbusd_epi32(sums, _mm512_loadu_si512(weights), _mm512_set1_epi32(x));
}

INLINE VECTOR end_block(const enum dtype dtype, VECTOR sums, VECTOR_INTEGERS dots,
                        const struct cpu_quant_block *x, VECTOR scales)
{
    (void)dtype;
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots),
                           _mm512_mul_ps(_mm512_set1_ps(x->scale), scales), sums);
}

INLINE __m256 group_sums(VECTOR sums, uint32_t place)
{
    return place == 0 ? _mm512_castps512_ps256(sums)
                      : _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(sums), 1));
}

#else

#define VECTOR __m256
#define VECTOR_ZERO _mm256_setzero_ps()
#define VECTOR_INTEGERS __m256i

INLINE VECTOR load_vector(const float *values)
{
    return _mm256_load_ps(values);
}

INLINE VECTOR_INTEGERS start(const enum dtype dtype, const struct cpu_quant_block *x)
{
    return HAS_VNNI ? correction_of(dtype, x) : _mm256_setzero_si256();
}

INLINE VECTOR_INTEGERS step_products(const enum dtype dtype, VECTOR_INTEGERS sums,
                                     const __m256i *weights, int32_t x)
{
    return products(dtype, sums, *weights, _mm256_set1_epi32(x));
}

INLINE VECTOR end_block(const enum dtype dtype, VECTOR sums, VECTOR_INTEGERS dots,
                        const struct cpu_quant_block *x, VECTOR scales)
{
    return add_block(sums, corrected(dtype, widened(dtype, dots), x, true), x->scale,
                     scales);
}

INLINE __m256 group_sums(VECTOR sums, uint32_t place)
{
    (void)place;
    return sums;
}

#endif

INLINE void panel_tile(const struct cpu_strip *strip, const enum dtype dtype, const uint32_t R,
                       uint32_t row, const struct group *groups, uint32_t group_count,
                       const struct panel_block *panel)
{
    const uint32_t block_count = strip->k_count / QUANT_RUN_ELEMENTS;
    const struct cpu_quant_block *x[ROWS_MAX];
    VECTOR sums[ROWS_MAX];

#pragma GCC unroll 8
    for (uint32_t r = 0; r < R; r++) {
        x[r] = strip->x_blocks[row + r];
        sums[r] = VECTOR_ZERO;
    }
    for (uint32_t b = 0; b < block_count; b++) {
        const VECTOR scales = load_vector(panel[b].scales[0]);
        VECTOR_INTEGERS dots[ROWS_MAX];
#pragma GCC unroll 8
        for (uint32_t r = 0; r < R; r++)
            dots[r] = start(dtype, &x[r][b]);
#pragma GCC unroll 8
        for (uint32_t step = 0; step < STEPS; step++) {
#pragma GCC unroll 8
            for (uint32_t r = 0; r < R; r++) {
                int32_t four;
                memcpy(&four, x[r][b].q + 4 * step, sizeof(four));
                dots[r] = step_products(dtype, dots[r], panel[b].q[step], four);
            }
        }
#pragma GCC unroll 8
        for (uint32_t r = 0; r < R; r++)
            sums[r] = end_block(dtype, sums[r], dots[r], &x[r][b], scales);
    }
#pragma GCC unroll 8
    for (uint32_t r = 0; r < R; r++) {
        for (uint32_t place = 0; place < group_count; place++)
            put(strip, row + r, &groups[place], group_sums(sums[r], place));
    }
}

/* Tiles of ROWS_MAX, but the last two of equal height. */
INLINE void panel_rows(const struct cpu_strip *strip, const enum dtype dtype,
                       const struct group *groups, uint32_t count, const struct panel_block *panel)
{
    uint32_t take;

    for (uint32_t row = 0; row < strip->row_count; row += take) {
        const uint32_t left = strip->row_count - row;
        take = left <= ROWS_MAX ? left : left < 2 * ROWS_MAX ? (left + 1) / 2 : ROWS_MAX;
        switch (take) {
        case 1: panel_tile(strip, dtype, 1, row, groups, count, panel); break;
        case 2: panel_tile(strip, dtype, 2, row, groups, count, panel); break;
        case 3: panel_tile(strip, dtype, 3, row, groups, count, panel); break;
        case 4: panel_tile(strip, dtype, 4, row, groups, count, panel); break;
        case 5: panel_tile(strip, dtype, 5, row, groups, count, panel); break;
#if ROWS_MAX > 6
        case 6: panel_tile(strip, dtype, 6, row, groups, count, panel); break;
        case 7: panel_tile(strip, dtype, 7, row, groups, count, panel); break;
#endif
        default: panel_tile(strip, dtype, ROWS_MAX, row, groups, count, panel); break;
        }
    }
}

INLINE void multiply_groups(const struct cpu_strip *strip, const enum dtype dtype,
                            const struct group *groups, uint32_t count, void *scratch)
{
    const bool fits = (uint64_t)strip->k_count / QUANT_RUN_ELEMENTS <=
                      CPU_STRIP_SCRATCH_BYTES / sizeof(struct panel_block);

    if (strip->row_count > DIRECT_ROWS_MAX && fits) {
        for (uint32_t place = 0; place < GROUPS; place++) /* what is not there: again the first */
            fill_panel(strip, dtype, &groups[place < count ? place : 0], place, scratch);
        panel_rows(strip, dtype, groups, count, scratch);
        return;
    }
    for (uint32_t place = 0; place < count; place++) {
        uint32_t row = 0;
        for (; row + 3 <= strip->row_count; row += 3)
            direct_group(strip, dtype, 3, row, &groups[place]);
        if (row + 2 == strip->row_count)
            direct_group(strip, dtype, 2, row, &groups[place]);
        if (row + 1 == strip->row_count)
            direct_group(strip, dtype, 1, row, &groups[place]);
    }
}

/* Few rows wait for the weights to come from memory, and hardware fetches long streams best: so the
 * strip is cut into eight parts, and a group has a row of each. With short streams of adjacent rows
 * one row of x by 2048 took 2.3 times as long, with software prefetching 1.4 times (Xeon of 2023).
 * For many rows adjacent outputs are worth more. */
INLINE void multiply(const struct cpu_strip *strip, const enum dtype dtype, void *scratch)
{
    const uint32_t part = strip->row_count < SPREAD_ROWS_MAX ? strip->n_count / WIDTH : 0;
    const uint32_t total = part + (strip->n_count - part * WIDTH + WIDTH - 1) / WIDTH;

    for (uint32_t i = 0; i < total; i += GROUPS) {
        struct group groups[GROUPS];
        uint32_t count = 0;
        for (; count < GROUPS && i + count < total; count++) {
            const uint32_t g = i + count;
            groups[count] = g < part ? group_at(strip, dtype, g, part)
                                     : group_at(strip, dtype, part * WIDTH + (g - part) * WIDTH, 1);
        }
        multiply_groups(strip, dtype, groups, count, scratch);
    }
}

static void multiply_q8_0(const struct cpu_strip *strip, void *scratch)
{
    multiply(strip, DTYPE_Q8_0, scratch);
}

static void multiply_q4_0(const struct cpu_strip *strip, void *scratch)
{
    multiply(strip, DTYPE_Q4_0, scratch);
}

#endif
