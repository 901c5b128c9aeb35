/* device/cpu/matmul_avx2.c - the matrix product in AVX2 registers.
 *
 * The lanes of a vector run along k: a tile of R rows of x by W rows of weights is R * W sums of
 * eight lanes, each fed by one FMA per eight k. Which tile an output falls into changes what is
 * loaded together with it, never the order in which it is summed, so one row gives the same bits as
 * many.
 *
 * 4 x 3 sums, 3 weights and an x fill the sixteen registers: seven loads for twelve FMAs, of which
 * the processor starts two in a cycle and loads two or three. Twelve weight rows (a span) go over
 * all rows of x before the next twelve.
 *
 * F16 and BF16 weights become F32 as they are loaded. That costs a quarter of the FMAs' time in a
 * tile, so from PANEL_ROWS_MIN rows on a span is turned into F32 once, in scratch. For F32 weights
 * packing lost: 64 rows by 2048 ran at 92 % of the FMA peak with it, at 98 % without (Xeon of 2023,
 * 2 MiB of second-level cache); so did panels of 512 k with sums kept in memory in between. */
#include <string.h>

#include "device/cpu/avx2.h"

#define PANEL_ROWS_MIN 24
#define PANEL_WIDTH 12 /* weight rows of a span */
#define ROWS_MAX 4     /* of a tile */
#define WIDTH_MAX 4    /* of a tile with at most two rows; else 3 */
#define SUMS_MAX 12

INLINE size_t element_bytes(const enum dtype dtype)
{
    return dtype == DTYPE_F32 ? 4 : 2;
}

/* Eight weights as F32. For `tail` < 8 of them nothing behind is read and the rest is zero. */
INLINE __m256 load_weights(enum dtype dtype, const void *weight, uint64_t at)
{
    if (dtype == DTYPE_F32)
        return _mm256_loadu_ps((const float *)weight + at);
    {
        const __m128i halves =
            _mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)weight + at));
        if (dtype == DTYPE_F16)
            return _mm256_cvtph_ps(halves);
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    }
}

INLINE __m256 load_tail(enum dtype dtype, const void *weight, uint64_t at, uint32_t tail)
{
    uint16_t halves[CPU_LANES] = { 0 };

    if (dtype == DTYPE_F32)
        return _mm256_maskload_ps((const float *)weight + at, lane_mask(tail));
    memcpy(halves, (const uint16_t *)weight + at, tail * sizeof(*halves));
    return load_weights(dtype, halves, 0);
}

struct tile {
    const float *x[ROWS_MAX];
    const void *weight[WIDTH_MAX];
};

/* sums[r][w] += x[r] . weight[w] over k_count elements. asks: weights come from memory. R, W, dtype
 * and asks are constants where this is inlined, so that the sums stay in registers. */
INLINE void add_products(const struct tile *tile, const uint32_t R, const uint32_t W,
                         const enum dtype dtype, const bool asks, uint32_t k_count,
                         __m256 sums[SUMS_MAX])
{
    const uint32_t whole = k_count / CPU_LANES * CPU_LANES;
    const uint32_t tail = k_count - whole;
    uint32_t k = 0;

    for (; k < whole; k += CPU_LANES) {
        __m256 w[WIDTH_MAX];
#pragma GCC unroll 4
        for (uint32_t i = 0; i < W; i++) {
            w[i] = load_weights(dtype, tile->weight[i], k);
            if (asks)
                _mm_prefetch((const char *)tile->weight[i] + k * element_bytes(dtype) + AHEAD_BYTES,
                             _MM_HINT_T0);
        }
#pragma GCC unroll 4
        for (uint32_t r = 0; r < R; r++) {
            const __m256 x = _mm256_loadu_ps(tile->x[r] + k);
#pragma GCC unroll 4
            for (uint32_t i = 0; i < W; i++)
                sums[r * W + i] = _mm256_fmadd_ps(x, w[i], sums[r * W + i]);
        }
    }
    if (tail > 0) {
        const __m256i mask = lane_mask(tail);
#pragma GCC unroll 4
        for (uint32_t i = 0; i < W; i++) {
            const __m256 w = load_tail(dtype, tile->weight[i], whole, tail);
#pragma GCC unroll 4
            for (uint32_t r = 0; r < R; r++)
                sums[r * W + i] = _mm256_fmadd_ps(_mm256_maskload_ps(tile->x[r] + whole, mask), w,
                                                  sums[r * W + i]);
        }
    }
}

/* Adds up the lanes of count <= 12 sums; out[i] belongs to sums[i]. */
INLINE void join_lanes(const __m256 *sums, const uint32_t count, float *out)
{
    const __m256 zero = _mm256_setzero_ps();

#pragma GCC unroll 3
    for (uint32_t i = 0; i < count; i += 4)
        _mm_storeu_ps(out + i, sum_lanes_4(sums[i], i + 1 < count ? sums[i + 1] : zero,
                                           i + 2 < count ? sums[i + 2] : zero,
                                           i + 3 < count ? sums[i + 3] : zero));
}

/* Outputs n, n + step, ... */
INLINE void put_tile(const struct cpu_strip *strip, const uint32_t R, const uint32_t W,
                     uint32_t row, uint32_t n, uint32_t step, const __m256 *sums)
{
    float joined[SUMS_MAX];

    join_lanes(sums, R * W, joined);
#pragma GCC unroll 4
    for (uint32_t r = 0; r < R; r++) {
        float *out = strip->out + (row + r) * strip->out_row_stride + n;
#pragma GCC unroll 4
        for (uint32_t i = 0; i < W; i++) {
            float sum = joined[r * W + i];
            if (strip->bias != NULL)
                sum += strip->bias[n + i * step];
            out[i * step] = strip->accumulate ? out[i * step] + sum : sum;
        }
    }
}

/* One tile straight over the weights, of which it has rows n, n + step, ... */
INLINE void direct_tile(const struct cpu_strip *strip, const uint32_t R, const uint32_t W,
                        const enum dtype dtype, const bool asks, uint32_t row, uint32_t n,
                        uint32_t step)
{
    __m256 sums[SUMS_MAX];
    struct tile tile;

#pragma GCC unroll 12
    for (uint32_t i = 0; i < R * W; i++)
        sums[i] = _mm256_setzero_ps();
#pragma GCC unroll 4
    for (uint32_t r = 0; r < R; r++)
        tile.x[r] = strip->x_rows[row + r];
#pragma GCC unroll 4
    for (uint32_t i = 0; i < W; i++)
        tile.weight[i] = strip->weight_rows != NULL
                             ? (const void *)strip->weight_rows[n + i * step]
                             : (const char *)strip->weight + (n + i * step) *
                                   strip->weight_row_stride * element_bytes(dtype);
    add_products(&tile, R, W, dtype, asks, strip->k_count, sums);
    put_tile(strip, R, W, row, n, step, sums);
}

/* Rows [row, row + R) against a span of weights, W at a time. */
INLINE void direct_rows(const struct cpu_strip *strip, const uint32_t R, const uint32_t W,
                        const enum dtype dtype, uint32_t row, uint32_t n, uint32_t n_end)
{
    for (; n + W <= n_end; n += W)
        direct_tile(strip, R, W, dtype, false, row, n, 1);
    for (; n < n_end; n++)
        direct_tile(strip, R, 1, dtype, false, row, n, 1);
}

/* As many rows as a tile has, against all weights. The strip is cut into W parts, and a tile has a
 * row of each, because hardware fetches long streams best. */
INLINE void direct_parts(const struct cpu_strip *strip, const uint32_t R, const uint32_t W,
                         const enum dtype dtype)
{
    const uint32_t part = strip->n_count / W;

    for (uint32_t n = 0; n < part; n++)
        direct_tile(strip, R, W, dtype, true, 0, n, part);
    for (uint32_t n = part * W; n < strip->n_count; n++)
        direct_tile(strip, R, 1, dtype, true, 0, n, 1);
}

INLINE void direct(const struct cpu_strip *strip, const enum dtype dtype)
{
    switch (strip->row_count) {
    case 4: direct_parts(strip, 4, 3, dtype); return;
    case 3: direct_parts(strip, 3, 3, dtype); return;
    case 2: direct_parts(strip, 2, 4, dtype); return;
    case 1: direct_parts(strip, 1, 4, dtype); return;
    default: break;
    }
    /* Weights of a span are read again, from the cache. */
    for (uint32_t n = 0; n < strip->n_count; n += PANEL_WIDTH) {
        const uint32_t left = strip->n_count - n;
        const uint32_t end = n + (left < PANEL_WIDTH ? left : PANEL_WIDTH);
        uint32_t row = 0;
        for (; row + 4 <= strip->row_count; row += 4)
            direct_rows(strip, 4, 3, dtype, row, n, end);
        switch (strip->row_count - row) {
        case 3: direct_rows(strip, 3, 3, dtype, row, n, end); break;
        case 2: direct_rows(strip, 2, 4, dtype, row, n, end); break;
        case 1: direct_rows(strip, 1, 4, dtype, row, n, end); break;
        default: break;
        }
    }
}

static void direct_f32(const struct cpu_strip *strip)
{
    direct(strip, DTYPE_F32);
}

static void direct_f16(const struct cpu_strip *strip)
{
    direct(strip, DTYPE_F16);
}

static void direct_bf16(const struct cpu_strip *strip)
{
    direct(strip, DTYPE_BF16);
}

/* Room for at least 3 rows of 43000 weights; a longer k goes without a panel. */
static uint32_t panel_width(uint64_t panel_stride)
{
    const uint64_t width = CPU_STRIP_SCRATCH_BYTES / (panel_stride * sizeof(float));

    return width >= PANEL_WIDTH ? PANEL_WIDTH : (uint32_t)(width / 3 * 3);
}

INLINE void convert_row(float *out, const enum dtype dtype, const void *weight, uint64_t at,
                        uint32_t k_count)
{
    const uint32_t whole = k_count / CPU_LANES * CPU_LANES;

    for (uint32_t k = 0; k < whole; k += CPU_LANES)
        _mm256_storeu_ps(out + k, load_weights(dtype, weight, at + k));
    if (whole < k_count)
        _mm256_storeu_ps(out + whole, load_tail(dtype, weight, at + whole, k_count - whole));
}

static void with_panels(const struct cpu_strip *strip, uint32_t width, uint64_t panel_stride,
                        float *panel)
{
    for (uint32_t n = 0; n < strip->n_count; n += width) {
        struct cpu_strip part = *strip;
        part.n_count = strip->n_count - n < width ? strip->n_count - n : width;
        for (uint32_t i = 0; i < part.n_count; i++) {
            const uint64_t at = (n + i) * strip->weight_row_stride;
            if (strip->weight_dtype == DTYPE_F16)
                convert_row(panel + i * panel_stride, DTYPE_F16, strip->weight, at,
                            strip->k_count);
            else
                convert_row(panel + i * panel_stride, DTYPE_BF16, strip->weight, at,
                            strip->k_count);
        }
        part.weight = panel;
        part.weight_dtype = DTYPE_F32;
        part.weight_row_stride = panel_stride;
        part.out = strip->out + n;
        part.bias = strip->bias == NULL ? NULL : strip->bias + n;
        direct_f32(&part);
    }
}

void cpu__matmul_avx2(const struct cpu_strip *strip, void *scratch)
{
    /* Rows of a power of two would all fall into the same sets of the first-level cache. */
    const uint64_t panel_stride = ((uint64_t)strip->k_count + 7) / 8 * 8 + 16;
    const uint32_t width = panel_width(panel_stride);

    if (strip->weight_dtype == DTYPE_F32)
        direct_f32(strip);
    else if (strip->row_count >= PANEL_ROWS_MIN && width > 0)
        with_panels(strip, width, panel_stride, scratch);
    else if (strip->weight_dtype == DTYPE_F16)
        direct_f16(strip);
    else
        direct_bf16(strip);
}
