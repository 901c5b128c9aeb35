/* device/cpu/quant_tiles.h - products with quantised weights in AVX2 registers; included once by
 * each of the files that compile it for an instruction set, quant_avx2.c and quant_vnni.c.
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
 * unsigned numbers serve Q4_0's halves, and Q8_0's q + 128; what that adds too much comes with x as
 * block->correction. Without VNNI, pairs of products are made in 16 bits. For Q4_0 eight pairs fit
 * into 16 bits (8 * 2 * 15 * 127 = 30480), so they are widened once a block. Q8_0's would not: the
 * weight's sign moves to x, and each pair of at most 2 * 128 * 127 = 32512 is widened at once. */
#ifndef LIGHTER_DEVICE_CPU_QUANT_TILES_H
#define LIGHTER_DEVICE_CPU_QUANT_TILES_H

#include <string.h>

#include "device/cpu/avx2.h"
#include "tensor/quant.h"

#define WIDTH 8         /* weight rows of a group */
#define ROWS_MAX 6      /* rows of x in a tile */
#define STEPS 8         /* vectors of a block in a panel, four elements of each weight row */
#define PANEL_ROWS_MIN 3
#define SPREAD_ROWS_MAX 24

#define INLINE static inline __attribute__((always_inline))

struct panel_block {
    __m256i q[STEPS];
    float scales[WIDTH];
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
        strip->weight_row_stride / QUANT_BLOCK_ELEMENTS * block_bytes(dtype);
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
#if defined(__AVXVNNI__)
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

/* What a block's lanes start from, and the sums of a block: 16 bits for Q4_0 without VNNI. */
INLINE __m256i start(const enum dtype dtype, int32_t correction)
{
#if defined(__AVXVNNI__)
    (void)dtype;
    return _mm256_set1_epi32(correction);
#else
    (void)dtype;
    (void)correction;
    return _mm256_setzero_si256();
#endif
}

INLINE __m256i products(const enum dtype dtype, __m256i sums, __m256i weights, __m256i x)
{
#if defined(__AVXVNNI__)
    (void)dtype;
    return _mm256_dpbusd_avx_epi32(sums, weights, x);
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
#if !defined(__AVXVNNI__)
    if (dtype == DTYPE_Q4_0)
        return _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
#endif
    (void)dtype;
    return sums;
}

/* The block's dot products, from lanes that began with `start`, or with zeros. */
INLINE __m256i corrected(const enum dtype dtype, __m256i dots, int32_t correction, bool started)
{
#if defined(__AVXVNNI__)
    if (started)
        return dots;
#else
    (void)started;
    if (dtype == DTYPE_Q8_0)
        return dots;
#endif
    (void)dtype;
    return _mm256_add_epi32(dots, _mm256_set1_epi32(correction));
}

INLINE __m256 add_block(__m256 sums, __m256i dots, float x_scale, __m256 scales)
{
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots),
                           _mm256_mul_ps(_mm256_set1_ps(x_scale), scales), sums);
}

/* A row's eight outputs. */
INLINE void put(const struct cpu_strip *strip, uint32_t row, const struct group *group, __m256 sums)
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
    const uint32_t block_count = strip->k_count / QUANT_BLOCK_ELEMENTS;
    __m256 sums[PANEL_ROWS_MIN];

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
            sums[r] = add_block(sums[r], corrected(dtype, p[0], x->correction, false), x->scale,
                                scales);
        }
    }
#pragma GCC unroll 3
    for (uint32_t r = 0; r < R; r++)
        put(strip, row + r, group, sums[r]);
}

/* Four vectors, four elements of a row in each 32 bits, to one vector per four elements. */
INLINE void transpose(const __m256i rows[4], __m256i *out)
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

INLINE void fill_panel(const struct cpu_strip *strip, const enum dtype dtype,
                       const struct group *group, struct panel_block *panel)
{
    const uint32_t block_count = strip->k_count / QUANT_BLOCK_ELEMENTS;

    for (uint32_t b = 0; b < block_count; b++) {
        const uint64_t at = (uint64_t)b * block_bytes(dtype);
        __m256i first[4], second[4];
#pragma GCC unroll 4
        for (uint32_t i = 0; i < 4; i++)
            load_pair(dtype, group, at, i, &first[i], &second[i]);
        transpose(first, panel[b].q);
        transpose(second, panel[b].q + 4);
        _mm256_store_ps(panel[b].scales, load_scales(group, at));
    }
}

INLINE void panel_tile(const struct cpu_strip *strip, const enum dtype dtype, const uint32_t R,
                       uint32_t row, const struct group *group, const struct panel_block *panel)
{
    const uint32_t block_count = strip->k_count / QUANT_BLOCK_ELEMENTS;
    const struct cpu_quant_block *x[ROWS_MAX];
    __m256 sums[ROWS_MAX];

#pragma GCC unroll 6
    for (uint32_t r = 0; r < R; r++) {
        x[r] = strip->x_blocks[row + r];
        sums[r] = _mm256_setzero_ps();
    }
    for (uint32_t b = 0; b < block_count; b++) {
        const __m256 scales = _mm256_load_ps(panel[b].scales);
        __m256i dots[ROWS_MAX];
#pragma GCC unroll 6
        for (uint32_t r = 0; r < R; r++)
            dots[r] = start(dtype, x[r][b].correction);
#pragma GCC unroll 8
        for (uint32_t step = 0; step < STEPS; step++) {
            const __m256i weights = panel[b].q[step];
#pragma GCC unroll 6
            for (uint32_t r = 0; r < R; r++) {
                int32_t four;
                memcpy(&four, x[r][b].q + 4 * step, sizeof(four));
                dots[r] = products(dtype, dots[r], weights, _mm256_set1_epi32(four));
            }
        }
#pragma GCC unroll 6
        for (uint32_t r = 0; r < R; r++)
            sums[r] = add_block(sums[r],
                                corrected(dtype, widened(dtype, dots[r]), x[r][b].correction, true),
                                x[r][b].scale, scales);
    }
#pragma GCC unroll 6
    for (uint32_t r = 0; r < R; r++)
        put(strip, row + r, group, sums[r]);
}

/* Tiles of ROWS_MAX, but the last two of equal height. */
INLINE void panel_rows(const struct cpu_strip *strip, const enum dtype dtype,
                       const struct group *group, const struct panel_block *panel)
{
    uint32_t take;

    for (uint32_t row = 0; row < strip->row_count; row += take) {
        const uint32_t left = strip->row_count - row;
        take = left <= ROWS_MAX ? left : left < 2 * ROWS_MAX ? (left + 1) / 2 : ROWS_MAX;
        switch (take) {
        case 1: panel_tile(strip, dtype, 1, row, group, panel); break;
        case 2: panel_tile(strip, dtype, 2, row, group, panel); break;
        case 3: panel_tile(strip, dtype, 3, row, group, panel); break;
        case 4: panel_tile(strip, dtype, 4, row, group, panel); break;
        case 5: panel_tile(strip, dtype, 5, row, group, panel); break;
        default: panel_tile(strip, dtype, ROWS_MAX, row, group, panel); break;
        }
    }
}

INLINE void multiply_group(const struct cpu_strip *strip, const enum dtype dtype,
                           const struct group *group, void *scratch)
{
    const bool fits = (uint64_t)strip->k_count / QUANT_BLOCK_ELEMENTS <=
                      CPU_STRIP_SCRATCH_BYTES / sizeof(struct panel_block);
    uint32_t row = 0;

    if (strip->row_count >= PANEL_ROWS_MIN && fits) {
        fill_panel(strip, dtype, group, scratch);
        panel_rows(strip, dtype, group, scratch);
        return;
    }
    for (; row + 2 <= strip->row_count; row += 2)
        direct_group(strip, dtype, 2, row, group);
    if (row < strip->row_count)
        direct_group(strip, dtype, 1, row, group);
}

/* Few rows wait for the weights to come from memory, and hardware fetches long streams best: so the
 * strip is cut into eight parts, and a group has a row of each. With short streams of adjacent rows
 * one row of x by 2048 took 2.3 times as long, with software prefetching 1.4 times (Xeon of 2023).
 * For many rows adjacent outputs are worth more. */
INLINE void multiply(const struct cpu_strip *strip, const enum dtype dtype, void *scratch)
{
    const uint32_t part = strip->row_count < SPREAD_ROWS_MAX ? strip->n_count / WIDTH : 0;
    struct group group;

    for (uint32_t n = 0; n < part; n++) {
        group = group_at(strip, dtype, n, part);
        multiply_group(strip, dtype, &group, scratch);
    }
    for (uint32_t n = part * WIDTH; n < strip->n_count; n += WIDTH) {
        group = group_at(strip, dtype, n, 1);
        multiply_group(strip, dtype, &group, scratch);
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
