/* device/cpu/f8_tiles.h - products with F8_E4M3 weights in vector registers; included once by each
 * of the files that compile it for an instruction set: f8_avx2.c and f8_avx512.c.
 *
 * The lanes of a vector run along k: an output's 16 lanes (kernels.h) are one vector of AVX-512, or
 * two of AVX2. A tile is R rows of x by W weight rows; which tile an output falls into changes what
 * is loaded together with it, never the order in which it is summed.
 *
 *     few rows of x    weights become F32 as they are loaded: a byte's sign and its other bits move
 *                      to where F16 has them, and F16C does the rest.
 *     many             PANEL_ROWS weight rows become F32 once, in scratch, with their scales
 *                      behind. */
#ifndef LIGHTER_DEVICE_CPU_F8_TILES_H
#define LIGHTER_DEVICE_CPU_F8_TILES_H

#include <string.h>

#include "device/cpu/avx2.h"
#include "device/cpu/quant.h"

#if defined(__AVX512F__)
#define VECTOR __m512
#define VECTORS 1           /* that hold an output's lanes */
#define VECTOR_ZERO _mm512_setzero_ps()
#define VECTOR_LOAD _mm512_loadu_ps
#define VECTOR_STORE _mm512_storeu_ps
#define VECTOR_FMA _mm512_fmadd_ps
#define VECTOR_OF _mm512_set1_ps
#define TILE_WIDTH(R) 4     /* weight rows of a tile with R rows of x */
#define ROWS_MAX 4
#else
#define VECTOR __m256
#define VECTORS 2
#define VECTOR_ZERO _mm256_setzero_ps()
#define VECTOR_LOAD _mm256_loadu_ps
#define VECTOR_STORE _mm256_storeu_ps
#define VECTOR_FMA _mm256_fmadd_ps
#define VECTOR_OF _mm256_set1_ps
#define TILE_WIDTH(R) ((R) == 1 ? 4 : 2) /* 3 x 2 sums of two vectors are 12 of 16 registers */
#define ROWS_MAX 3
#endif
#define LANES 16
#define BLOCK_BYTES(E) ((E) + sizeof(float)) /* of a block of E elements */
#define WIDTH_MAX 4
#define SUMS_MAX (ROWS_MAX * WIDTH_MAX)
#define PANEL_ROWS 8
#define PANEL_X_ROWS_MIN 8  /* fewer rows of x are not worth a panel */
#define SPREAD_ROWS_MAX 24  /* of x */

/* A tile's weight rows: blocks, or what a panel has of them. */
struct weights {
    const uint8_t *blocks[WIDTH_MAX];
    const float *values[WIDTH_MAX], *scales[WIDTH_MAX];
};

/* 16 weights / 256. */
INLINE void widen(const uint8_t *at, VECTOR out[VECTORS])
{
    const __m256i wide =
        _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)at));
    /* the sign is in all of bits 7 to 15: it is wanted in 15, and 14 is to be 0 */
    const __m256i halves =
        _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16((int16_t)0xBF80));

#if VECTORS == 1
    out[0] = _mm512_cvtph_ps(halves);
#else
    out[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
    out[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
#endif
}

/* 256 * s. */
INLINE float block_scale(const uint8_t *block)
{
    float scale;

    memcpy(&scale, block, sizeof(scale));
    return 256 * scale;
}

INLINE float sum_of(const VECTOR lanes[VECTORS])
{
#if VECTORS == 1
    const __m256 high =
        _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(lanes[0]), 1));

    return sum_lanes(_mm256_add_ps(_mm512_castps512_ps256(lanes[0]), high));
#else
    return sum_lanes(_mm256_add_ps(lanes[0], lanes[1]));
#endif
}

/* Adds the b-th block's products to parts[w * R + r]. R, W, E (a block's elements) and from_panel
 * are constants where this is inlined, so that the parts stay in registers. */
INLINE void add_block(const struct weights *weights, const float *const *x, const uint32_t R,
                      const uint32_t W, const uint32_t E, const bool from_panel, uint64_t b,
                      VECTOR parts[SUMS_MAX][VECTORS])
{
#pragma GCC unroll 8
    for (uint32_t step = 0; step < E / LANES; step++) {
        const uint64_t at = b * E + step * LANES;
#pragma GCC unroll 4
        for (uint32_t w = 0; w < W; w++) {
            VECTOR values[VECTORS];
            if (!from_panel)
                widen(weights->blocks[w] + b * BLOCK_BYTES(E) + sizeof(float) + step * LANES,
                      values);
#pragma GCC unroll 2
            for (uint32_t v = 0; from_panel && v < VECTORS; v++)
                values[v] = VECTOR_LOAD(weights->values[w] + at + v * (LANES / VECTORS));
#pragma GCC unroll 4
            for (uint32_t r = 0; r < R; r++) {
#pragma GCC unroll 2
                for (uint32_t v = 0; v < VECTORS; v++)
                    parts[w * R + r][v] =
                        VECTOR_FMA(VECTOR_LOAD(x[r] + at + v * (LANES / VECTORS)), values[v],
                                   parts[w * R + r][v]);
            }
        }
    }
}

/* Outputs of R rows of x from `row` on; weight row w of the tile is n + w * step. */
INLINE void tile(const struct cpu_strip *strip, const struct weights *weights, const uint32_t R,
                 const uint32_t W, const uint32_t E, const bool from_panel, uint32_t row,
                 uint32_t n, uint32_t step)
{
    const uint32_t block_count = strip->k_count / E;
    const float *const *x = strip->x_rows + row;
    VECTOR lanes[SUMS_MAX][VECTORS];

#pragma GCC unroll 16
    for (uint32_t i = 0; i < R * W; i++) {
#pragma GCC unroll 2
        for (uint32_t v = 0; v < VECTORS; v++)
            lanes[i][v] = VECTOR_ZERO;
    }
    for (uint32_t b = 0; b < block_count; b++) {
        VECTOR parts[SUMS_MAX][VECTORS];
#pragma GCC unroll 16
        for (uint32_t i = 0; i < R * W; i++) {
#pragma GCC unroll 2
            for (uint32_t v = 0; v < VECTORS; v++)
                parts[i][v] = VECTOR_ZERO;
        }
        add_block(weights, x, R, W, E, from_panel, b, parts);
#pragma GCC unroll 16
        for (uint32_t i = 0; i < R * W; i++) {
            const VECTOR scale =
                VECTOR_OF(from_panel ? weights->scales[i / R][b]
                                     : block_scale(weights->blocks[i / R] +
                                                   (uint64_t)b * BLOCK_BYTES(E)));
#pragma GCC unroll 2
            for (uint32_t v = 0; v < VECTORS; v++)
                lanes[i][v] = VECTOR_FMA(parts[i][v], scale, lanes[i][v]);
        }
    }
    for (uint32_t i = 0; i < R * W; i++) {
        const uint64_t at = n + (uint64_t)(i / R) * step;
        float *out = strip->out + (row + i % R) * strip->out_row_stride + at;
        float sum = sum_of(lanes[i]);
        if (strip->bias != NULL)
            sum += strip->bias[at];
        *out = strip->accumulate ? *out + sum : sum;
    }
}

INLINE struct weights blocks_at(const struct cpu_strip *strip, const uint32_t E, uint32_t n,
                                uint32_t step, uint32_t count)
{
    const uint64_t row_bytes = strip->weight_row_stride / E * BLOCK_BYTES(E);
    struct weights weights = { .blocks = { NULL } };

    for (uint32_t w = 0; w < count; w++)
        weights.blocks[w] = (const uint8_t *)strip->weight + (n + (uint64_t)w * step) * row_bytes;
    return weights;
}

/* R rows of x against all weights where they lie. For few rows hardware shall fetch long streams
 * (see quant_tiles.h), so the strip is cut into W parts and a tile has a row of each. */
INLINE void direct_rows(const struct cpu_strip *strip, const uint32_t R, const uint32_t E,
                        uint32_t row)
{
    const uint32_t W = TILE_WIDTH(R);
    const uint32_t part = strip->n_count / W;
    const bool spread = strip->row_count < SPREAD_ROWS_MAX;

    for (uint32_t i = 0; i < part; i++) {
        const uint32_t n = spread ? i : i * W, step = spread ? part : 1;
        const struct weights weights = blocks_at(strip, E, n, step, W);
        tile(strip, &weights, R, W, E, false, row, n, step);
    }
    for (uint32_t n = part * W; n < strip->n_count; n++) {
        const struct weights weights = blocks_at(strip, E, n, 1, 1);
        tile(strip, &weights, R, 1, E, false, row, n, 1);
    }
}

/* A row of a panel: values, and behind them the blocks' scales. */
INLINE void fill_panel_row(float *values, float *scales, const uint8_t *blocks,
                           uint32_t block_count, const uint32_t E)
{
    for (uint32_t b = 0; b < block_count; b++, blocks += BLOCK_BYTES(E)) {
        scales[b] = block_scale(blocks);
        for (uint32_t step = 0; step < E / LANES; step++, values += LANES) {
            VECTOR out[VECTORS];
            widen(blocks + sizeof(float) + step * LANES, out);
            for (uint32_t v = 0; v < VECTORS; v++)
                VECTOR_STORE(values + v * (LANES / VECTORS), out[v]);
        }
    }
}

INLINE struct weights panel_at(const float *panel, uint64_t stride, uint32_t k_count, uint32_t w,
                               uint32_t count)
{
    struct weights weights = { .blocks = { NULL } };

    for (uint32_t i = 0; i < count; i++) {
        weights.values[i] = panel + (w + i) * stride;
        weights.scales[i] = weights.values[i] + k_count;
    }
    return weights;
}

/* R rows of x against `count` rows of a panel, the first of which is weight row n. */
INLINE void panel_tiles(const struct cpu_strip *strip, const float *panel, uint64_t stride,
                        const uint32_t R, const uint32_t E, uint32_t row, uint32_t n,
                        uint32_t count)
{
    const uint32_t W = TILE_WIDTH(R);
    uint32_t w = 0;

    for (; w + W <= count; w += W) {
        const struct weights weights = panel_at(panel, stride, strip->k_count, w, W);
        tile(strip, &weights, R, W, E, true, row, n + w, 1);
    }
    for (; w < count; w++) {
        const struct weights weights = panel_at(panel, stride, strip->k_count, w, 1);
        tile(strip, &weights, R, 1, E, true, row, n + w, 1);
    }
}

INLINE void with_panels(const struct cpu_strip *strip, const uint32_t E, uint32_t width,
                        uint64_t stride, float *panel)
{
    const uint32_t block_count = strip->k_count / E;

    for (uint32_t n = 0; n < strip->n_count; n += width) {
        const uint32_t count = strip->n_count - n < width ? strip->n_count - n : width;
        uint32_t row = 0;
        for (uint32_t w = 0; w < count; w++)
            fill_panel_row(panel + w * stride, panel + w * stride + strip->k_count,
                           blocks_at(strip, E, n + w, 1, 1).blocks[0], block_count, E);
        for (; row + ROWS_MAX <= strip->row_count; row += ROWS_MAX)
            panel_tiles(strip, panel, stride, ROWS_MAX, E, row, n, count);
        for (; row < strip->row_count; row++)
            panel_tiles(strip, panel, stride, 1, E, row, n, count);
    }
}

/* E elements are a block. */
INLINE void multiply_blocks(const struct cpu_strip *strip, const uint32_t E, void *scratch)
{
    /* LANES more: rows of a power of two would fall into the same sets of the first-level cache. */
    const uint64_t floats = strip->k_count + strip->k_count / E;
    const uint64_t stride = (floats + LANES - 1) / LANES * LANES + LANES;
    const uint64_t fit = CPU_STRIP_SCRATCH_BYTES / (stride * sizeof(float));
    uint32_t row = 0;

    if (strip->row_count >= PANEL_X_ROWS_MIN && fit >= WIDTH_MAX) {
        with_panels(strip, E, fit < PANEL_ROWS ? WIDTH_MAX : PANEL_ROWS, stride, scratch);
        return;
    }
    for (; row + ROWS_MAX <= strip->row_count; row += ROWS_MAX)
        direct_rows(strip, ROWS_MAX, E, row);
    for (; row + 2 <= strip->row_count; row += 2)
        direct_rows(strip, 2, E, row);
    if (row < strip->row_count)
        direct_rows(strip, 1, E, row);
}

static void multiply_f8(const struct cpu_strip *strip, void *scratch)
{
    if (strip->weight_dtype == DTYPE_F8_E4M3)
        multiply_blocks(strip, QUANT_F8_ELEMENTS, scratch);
    else
        multiply_blocks(strip, QUANT_F8_SHORT_ELEMENTS, scratch);
}

#endif
