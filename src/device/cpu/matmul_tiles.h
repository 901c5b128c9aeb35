/* device/cpu/matmul_tiles.h - the matrix product with plain weights in AVX-512 registers; included
 * once by each of the files that say what one instruction does to a vector of sums:
 *
 *     static inline __m512 multiply_add(__m512 sum, __m512 x, __m512 weights);
 *
 * matmul_avx512.c has F32's FMA, matmul_bf16.c a product of pairs of BF16, whose lanes are pairs.
 *
 * The lanes of a vector run along k, sixteen of them, and are added up as kernels.h says, after
 * every CPU_K_BLOCK k. A tile of R rows of x by W rows of weights is R * W sums, each fed by one
 * multiply_add() per sixteen k. Which tile an output falls into, and what is done between its
 * blocks, changes what is loaded together with it, never the order in which it is summed, so one
 * row gives the same bits as many. A tile for which there are too few rows of x takes its last one
 * again.
 *
 * 8 x 3 sums, 3 weights and an x take 28 of 32 registers: eleven loads for 24 FMAs, of which the
 * processor starts two in a cycle. Up to eight rows of x wait for memory: a tile reads four rows of
 * weights, or three, from as many parts of the strip, and asks for what comes. F16 and BF16 become
 * F32 as they are loaded, two operations for each vector on the FMAs' ports: a quarter more than
 * the 24. More rows of x do the same eight at a time, as long as the cache holds the weights.
 *
 * Many rows of x take a block of k at a time, of which all rows fit into the second-level cache
 * beside a span of weights. They go over the span eight at a time, in chunks of k, so that the
 * eight stay in the first-level cache. The first eight write F16 and BF16 as F32 into a panel, from
 * which the others take them. */
#ifndef LIGHTER_DEVICE_CPU_MATMUL_TILES_H
#define LIGHTER_DEVICE_CPU_MATMUL_TILES_H

#include <assert.h>

#include "device/cpu/avx2.h"

#define LANES 16
#define ROWS_MAX 8  /* of a tile */
#define WIDTH_MAX 4 /* of a tile with fewer rows; else ... */
#define WIDTH 3
#define SUMS_MAX (ROWS_MAX * WIDTH)
#define SPANS_ROWS_MIN 32
#define PART_BYTES 524288 /* of weights that fewer rows of x go over, eight at a time */
#define SPAN 24           /* weight rows that go over all rows of x before the next ones */
#define CHUNK_MAX 1024    /* k that a span's tile takes at a time */

/* Rows of a power of two would all fall into the same sets of the first-level cache. */
#define PANEL_STRIDE (CPU_K_BLOCK + LANES)
static_assert(SPAN * PANEL_STRIDE * sizeof(float) <= CPU_STRIP_SCRATCH_BYTES, "the panel");

struct tile {
    const float *x[ROWS_MAX];
    const char *weight[WIDTH_MAX];
};

/* k [first, end) of a strip's rows: a block, or a part of one. */
struct range {
    uint32_t first, end;
};

INLINE size_t element_bytes(const enum dtype dtype)
{
    return dtype == DTYPE_F32 ? 4 : 2;
}

INLINE __m512 widen(const enum dtype dtype, __m256i halves)
{
    if (dtype == DTYPE_F16)
        return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

/* Sixteen weights as F32. */
INLINE __m512 load_weights(const enum dtype dtype, const char *at)
{
    if (dtype == DTYPE_F32)
        return _mm512_loadu_ps(at);
    return widen(dtype, _mm256_loadu_si256((const __m256i *)(const void *)at));
}

/* Those in the mask, and zeros; nothing else is read. */
INLINE __m512 load_some(const enum dtype dtype, const char *at, __mmask16 mask)
{
    if (dtype == DTYPE_F32)
        return _mm512_maskz_loadu_ps(mask, at);
    return widen(dtype, _mm256_maskz_loadu_epi16(mask, at));
}

/* sums[r][w] += x[r] . weight[w] over k_count elements. asks: weights come from memory. panel: the
 * weights are written there, too, unless it is NULL. R, W, dtype, asks and whether there is a panel
 * are constants where this is inlined, so that the sums stay in registers. */
INLINE void add_products(const struct tile *tile, const uint32_t R, const uint32_t W,
                         const enum dtype dtype, const bool asks, float *panel, uint32_t k_count,
                         __m512 sums[SUMS_MAX])
{
    const size_t whole = k_count / LANES * LANES;
    const __mmask16 mask = (__mmask16)((1u << (k_count - whole)) - 1);

    for (size_t k = 0; k < whole; k += LANES) {
        __m512 w[WIDTH_MAX];
#pragma GCC unroll 4
        for (uint32_t i = 0; i < W; i++) {
            w[i] = load_weights(dtype, tile->weight[i] + k * element_bytes(dtype));
            if (asks)
                _mm_prefetch(tile->weight[i] + k * element_bytes(dtype) + AHEAD_BYTES, _MM_HINT_T0);
            if (panel != NULL)
                _mm512_storeu_ps(panel + i * PANEL_STRIDE + k, w[i]);
        }
#pragma GCC unroll 8
        for (uint32_t r = 0; r < R; r++) {
            __m512 x = _mm512_loadu_ps(tile->x[r] + k);
            __asm__("" : "+v"(x)); /* loaded once, not by each FMA */
#pragma GCC unroll 4
            for (uint32_t i = 0; i < W; i++)
                sums[r * W + i] = multiply_add(sums[r * W + i], x, w[i]);
        }
    }
    if (mask != 0) {
#pragma GCC unroll 4
        for (uint32_t i = 0; i < W; i++) {
            const __m512 w = load_some(dtype, tile->weight[i] + whole * element_bytes(dtype), mask);
            if (panel != NULL)
                _mm512_mask_storeu_ps(panel + i * PANEL_STRIDE + whole, mask, w);
#pragma GCC unroll 8
            for (uint32_t r = 0; r < R; r++)
                sums[r * W + i] = multiply_add(
                    sums[r * W + i], _mm512_maskz_loadu_ps(mask, tile->x[r] + whole), w);
        }
    }
}

/* What a and b are once their lanes l + 8 are added to l, one behind the other. */
INLINE __m512 fold(__m512 a, __m512 b)
{
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
}

/* Of each four lanes of a, and then of b, the first with the second and the third with the last. */
INLINE __m512 add_pairs(__m512 a, __m512 b)
{
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xDD));
}

/* Adds up the lanes of each of `count` sums, at most eight. */
INLINE __m256 join_lanes(const __m512 *sums, const uint32_t count)
{
    __m512 v[8], joined;

#pragma GCC unroll 8
    for (uint32_t i = 0; i < 8; i++)
        v[i] = i < count ? sums[i] : _mm512_setzero_ps();
    joined = add_pairs(add_pairs(fold(v[0], v[4]), fold(v[1], v[5])),
                       add_pairs(fold(v[2], v[6]), fold(v[3], v[7])));
    return _mm512_castps512_ps256(_mm512_add_ps(_mm512_shuffle_f32x4(joined, joined, 0x08),
                                                _mm512_shuffle_f32x4(joined, joined, 0x0D)));
}

/* Outputs n, n + step, ... of a row, of which there are W. is_first: of the blocks. */
INLINE void put_row(const struct cpu_strip *strip, const uint32_t W, bool is_first, uint32_t row,
                    uint32_t n, uint32_t step, const float *sums)
{
    float *out = strip->out + row * strip->out_row_stride + n;
    const float *bias = strip->bias == NULL || !is_first ? NULL : strip->bias + n;
    const bool accumulate = strip->accumulate || !is_first;

    if (step == 1) {
        const __mmask8 mask = (__mmask8)((1u << W) - 1);
        __m128 sum = _mm_maskz_loadu_ps(mask, sums);
        if (bias != NULL)
            sum = _mm_add_ps(sum, _mm_maskz_loadu_ps(mask, bias));
        if (accumulate)
            sum = _mm_add_ps(_mm_maskz_loadu_ps(mask, out), sum);
        _mm_mask_storeu_ps(out, mask, sum);
        return;
    }
#pragma GCC unroll 4
    for (uint32_t i = 0; i < W; i++) {
        const float sum = bias == NULL ? sums[i] : sums[i] + bias[i * step];
        out[i * step] = accumulate ? out[i * step] + sum : sum;
    }
}

/* Of rows [row, row + row_count), at most R. */
INLINE void put_tile(const struct cpu_strip *strip, const uint32_t R, const uint32_t W,
                     bool is_first, uint32_t row, uint32_t row_count, uint32_t n, uint32_t step,
                     const __m512 sums[SUMS_MAX])
{
    float joined[SUMS_MAX];

#pragma GCC unroll 3
    for (uint32_t i = 0; i < R * W; i += 8)
        _mm256_storeu_ps(joined + i, join_lanes(sums + i, R * W - i < 8 ? R * W - i : 8));
    for (uint32_t r = 0; r < row_count; r++)
        put_row(strip, W, is_first, row + r, n, step, joined + r * W);
}

INLINE const char *weight_row(const struct cpu_strip *strip, const enum dtype dtype, uint32_t n)
{
    if (dtype == DTYPE_F32 && strip->weight_rows != NULL)
        return (const char *)strip->weight_rows[n];
    return (const char *)strip->weight + n * strip->weight_row_stride * element_bytes(dtype);
}

/* x's rows of a tile, from k on; where there are fewer, the last one again. */
INLINE void take_rows(struct tile *tile, const struct cpu_strip *strip, const uint32_t R,
                      uint32_t row, uint32_t row_count, uint32_t k)
{
#pragma GCC unroll 8
    for (uint32_t r = 0; r < R; r++)
        tile->x[r] = strip->x_rows[row + (r < row_count ? r : row_count - 1)] + k;
}

/* Rows of the smallest tile for so many rows of x. */
static uint32_t tile_rows(uint32_t row_count)
{
    return row_count > 4 ? 8 : row_count > 2 ? 4 : row_count;
}

/* ---- few rows of x: straight over the weights ---- */

/* The block that begins with `first`. */
static struct range block_at(uint32_t first, uint32_t k_count)
{
    return (struct range){ first,
                           k_count - first < CPU_K_BLOCK ? k_count : first + CPU_K_BLOCK };
}

INLINE void direct_tile(const struct cpu_strip *strip, const uint32_t R, const uint32_t W,
                        const enum dtype dtype, uint32_t n, uint32_t step)
{
    struct range block;

    for (uint32_t first = 0; first < strip->k_count; first = block.end) {
        __m512 sums[SUMS_MAX];
        struct tile tile;
        block = block_at(first, strip->k_count);
#pragma GCC unroll 24
        for (uint32_t i = 0; i < R * W; i++)
            sums[i] = _mm512_setzero_ps();
        take_rows(&tile, strip, R, 0, strip->row_count, first);
#pragma GCC unroll 4
        for (uint32_t i = 0; i < W; i++)
            tile.weight[i] =
                weight_row(strip, dtype, n + i * step) + first * element_bytes(dtype);
        add_products(&tile, R, W, dtype, true, NULL, block.end - first, sums);
        put_tile(strip, R, W, first == 0, 0, strip->row_count, n, step, sums);
    }
}

/* The strip is cut into W parts, and a tile has a row of each, because hardware fetches long
 * streams best. */
INLINE void direct_rows(const struct cpu_strip *strip, const uint32_t R, const uint32_t W,
                        const enum dtype dtype)
{
    const uint32_t part = strip->n_count / W;

    for (uint32_t n = 0; n < part; n++)
        direct_tile(strip, R, W, dtype, n, part);
    for (uint32_t n = part * W; n < strip->n_count; n++)
        direct_tile(strip, R, 1, dtype, n, 1);
}

INLINE void direct(const struct cpu_strip *strip, const enum dtype dtype)
{
    switch (tile_rows(strip->row_count)) {
    case 8: direct_rows(strip, 8, WIDTH, dtype); break;
    case 4: direct_rows(strip, 4, WIDTH_MAX, dtype); break;
    case 2: direct_rows(strip, 2, WIDTH_MAX, dtype); break;
    default: direct_rows(strip, 1, WIDTH_MAX, dtype); break;
    }
}

/* Eight rows of x at a time by a part of the strip, which the second-level cache holds. */
INLINE void direct_parts(const struct cpu_strip *strip, const enum dtype dtype)
{
    const size_t fitting = PART_BYTES / (strip->k_count * element_bytes(dtype));
    const size_t most = strip->row_count <= ROWS_MAX ? strip->n_count
                        : fitting > WIDTH            ? fitting
                                                     : WIDTH;

    for (uint32_t n = 0; n < strip->n_count; n += (uint32_t)most) {
        for (uint32_t row = 0; row < strip->row_count; row += ROWS_MAX) {
            const uint32_t n_left = strip->n_count - n, row_left = strip->row_count - row;
            struct cpu_strip part = *strip;
            part.n_count = n_left < most ? n_left : (uint32_t)most;
            part.row_count = row_left < ROWS_MAX ? row_left : ROWS_MAX;
            part.x_rows = strip->x_rows + row;
            part.out = strip->out + row * strip->out_row_stride + n;
            part.bias = strip->bias == NULL ? NULL : strip->bias + n;
            if (strip->weight_rows != NULL)
                part.weight_rows = strip->weight_rows + n;
            else
                part.weight = weight_row(strip, dtype, n);
            direct(&part, dtype);
        }
    }
}

/* ---- more rows of x: spans of weights ---- */

/* A block's k of weight rows, of which `lines` are asked for with each tile. */
struct ask {
    const char *row;
    size_t row_bytes, block_bytes, at;
    uint32_t lines;
};

INLINE void ask_for_lines(struct ask *ask)
{
    for (uint32_t i = 0; i < ask->lines; i++) {
        _mm_prefetch(ask->row + ask->at, _MM_HINT_T1);
        ask->at += LINE_BYTES;
        if (ask->at >= ask->block_bytes) {
            ask->at = 0;
            ask->row += ask->row_bytes;
        }
    }
}

/* Weight rows [n, n + n_count), a block of their k. */
struct span {
    uint32_t n, n_count;
    struct range block;
    uint32_t chunk;      /* k that a tile takes at a time */
    float *panel;        /* [n_count][PANEL_STRIDE], or NULL: they are F32 where they lie */
    struct ask ask;      /* for what is to be read after the span */
};

/* Rows [row, row + row_count) of x by the span's [w, w + W). dtype: of the weights where they lie,
 * from where they are written into the panel; F32: of those that are ready. `kept`: their sums,
 * between two parts of the block. */
INLINE void span_tile(const struct cpu_strip *strip, const struct span *span, const uint32_t R,
                      const uint32_t W, const enum dtype dtype, uint32_t row, uint32_t row_count,
                      uint32_t w, struct range part, __m512 *kept)
{
    const bool ready = dtype == DTYPE_F32;
    float *panel = span->panel == NULL
                       ? NULL
                       : span->panel + w * PANEL_STRIDE + part.first - span->block.first;
    __m512 sums[SUMS_MAX];
    struct tile tile;

#pragma GCC unroll 24
    for (uint32_t i = 0; i < R * W; i++)
        sums[i] = part.first == span->block.first ? _mm512_setzero_ps() : kept[i];
    take_rows(&tile, strip, R, row, row_count, part.first);
#pragma GCC unroll 3
    for (uint32_t i = 0; i < W; i++)
        tile.weight[i] = ready && panel != NULL
                             ? (const char *)(panel + i * PANEL_STRIDE)
                             : weight_row(strip, dtype, span->n + w + i) +
                                   part.first * element_bytes(dtype);
    add_products(&tile, R, W, dtype, false, ready ? NULL : panel, part.end - part.first, sums);
    if (part.end == span->block.end) {
        put_tile(strip, R, W, span->block.first == 0, row, row_count, span->n + w, 1, sums);
        return;
    }
#pragma GCC unroll 24
    for (uint32_t i = 0; i < R * W; i++)
        kept[i] = sums[i];
}

INLINE void span_rows(const struct cpu_strip *strip, struct span *span, const uint32_t R,
                      const enum dtype dtype, uint32_t row, uint32_t row_count)
{
    const uint32_t threes = span->n_count / WIDTH * WIDTH;
    __m512 kept[SPAN / WIDTH][SUMS_MAX];
    struct range part;

    for (part.first = span->block.first; part.first < span->block.end; part.first = part.end) {
        const uint32_t left = span->block.end - part.first;
        part.end = part.first + (left < span->chunk ? left : span->chunk);
        for (uint32_t w = 0; w < threes; w += WIDTH) {
            ask_for_lines(&span->ask);
            span_tile(strip, span, R, WIDTH, dtype, row, row_count, w, part,
                      kept[w / WIDTH]);
        }
    }
    for (uint32_t w = threes; w < span->n_count; w++)
        span_tile(strip, span, R, 1, dtype, row, row_count, w, span->block, kept[0]);
}

/* The span's weights are ready: by rows of x from `row` on. */
static void multiply_span(const struct cpu_strip *strip, struct span *span, uint32_t row)
{
    for (; row < strip->row_count; row += ROWS_MAX) {
        const uint32_t left = strip->row_count - row;
        switch (tile_rows(left)) {
        case 8:
            span_rows(strip, span, 8, DTYPE_F32, row, left < ROWS_MAX ? left : ROWS_MAX);
            break;
        case 4: span_rows(strip, span, 4, DTYPE_F32, row, left); break;
        case 2: span_rows(strip, span, 2, DTYPE_F32, row, left); break;
        default: span_rows(strip, span, 1, DTYPE_F32, row, left); break;
        }
    }
}

/* What is read after the span: the rows below, or the next block's first ones. */
INLINE struct ask ask_after(const struct cpu_strip *strip, const struct span *span,
                            const enum dtype dtype)
{
    const size_t row_bytes = strip->weight_row_stride * element_bytes(dtype);
    const uint32_t k_count = span->block.end - span->block.first;
    const uint32_t chunks = (k_count + span->chunk - 1) / span->chunk;
    const uint32_t tiles = (strip->row_count + ROWS_MAX - 1) / ROWS_MAX * (SPAN / WIDTH) * chunks;
    const bool is_last = span->n + SPAN >= strip->n_count;
    struct ask ask = { .row_bytes = row_bytes, .block_bytes = k_count * element_bytes(dtype) };

    if (strip->weight_rows != NULL || (is_last && span->block.end == strip->k_count))
        return ask;
    ask.row = (const char *)strip->weight +
              (is_last ? span->block.end * element_bytes(dtype)
                       : (span->n + SPAN) * row_bytes + span->block.first * element_bytes(dtype));
    ask.lines = (uint32_t)((SPAN * ask.block_bytes / LINE_BYTES + tiles - 1) / tiles);
    return ask;
}

INLINE void multiply_block(const struct cpu_strip *strip, struct range block, float *panel,
                           const enum dtype dtype)
{
    const uint32_t k_count = block.end - block.first;
    const uint32_t chunks = (k_count + CHUNK_MAX - 1) / CHUNK_MAX;
    const bool in_panel = dtype != DTYPE_F32;
    struct span span = {
        .block = block,
        .chunk = ((k_count + chunks - 1) / chunks + LANES - 1) / LANES * LANES,
        .panel = in_panel ? panel : NULL,
    };

    for (; span.n < strip->n_count; span.n += SPAN) {
        span.n_count = strip->n_count - span.n < SPAN ? strip->n_count - span.n : SPAN;
        span.ask = ask_after(strip, &span, dtype);
        if (in_panel)
            span_rows(strip, &span, ROWS_MAX, dtype, 0, ROWS_MAX);
        multiply_span(strip, &span, in_panel ? ROWS_MAX : 0);
    }
}

INLINE void multiply(const struct cpu_strip *strip, void *scratch, const enum dtype dtype)
{
    struct range block;

    if (strip->row_count < SPANS_ROWS_MIN) {
        direct_parts(strip, dtype);
        return;
    }
    for (uint32_t first = 0; first < strip->k_count; first = block.end) {
        block = block_at(first, strip->k_count);
        multiply_block(strip, block, scratch, dtype);
    }
}

#endif
