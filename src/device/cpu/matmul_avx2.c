/* device/cpu/matmul_avx2.c - the matrix product in AVX2 registers.
 *
 * The lanes of a vector run along k: a tile of R rows of x by W rows of weights is R * W sums of eight
 * lanes, each fed by one FMA per eight k. Which tile an output falls into changes what is loaded
 * together with it, never the order in which it is summed, so one row gives the same bits as many.
 *
 * Few rows (below PANEL_ROWS_MIN): tiles straight over the weights, which are turned into F32 as they
 * are loaded; the speed is the memory's. More rows: PANEL_WIDTH weight rows by PANEL_K are turned into
 * a packed panel in the first-level cache, and all rows of the strip go over it, four at a time:
 *
 *             PANEL_K          k -->
 *         +-----------+-----------+----
 *       n | panel     | next      |          sums[row group][W group]: the eight lanes of each
 *         +-----------+-----------+----      output, kept in scratch from one panel to the next
 *
 * 4 x 3 sums, 3 weights and an x fill the sixteen registers: seven loads for twelve FMAs, of which the
 * processor starts two of each in a cycle. */
#include <string.h>

#include "device/cpu/avx2.h"

#define PANEL_ROWS_MIN 8
#define PANEL_WIDTH 12    /* weight rows */
#define PANEL_K 512       /* 24 KiB of panel and 8 KiB of x at a time */
#define ROWS_MAX 4        /* of a tile */
#define WIDTH_MAX 3
#define WIDTH_NARROW_MAX 8 /* of a tile with one row */

/* Eight weights as F32. For `tail` < 8 of them nothing behind is read and the rest is zero. */
static inline __attribute__((always_inline)) __m256 load_weights(enum dtype dtype,
                                                                 const void *weight, uint64_t at)
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

static inline __attribute__((always_inline)) __m256 load_tail(enum dtype dtype, const void *weight,
                                                              uint64_t at, uint32_t tail)
{
    uint16_t halves[CPU_LANES] = { 0 };

    if (dtype == DTYPE_F32)
        return _mm256_maskload_ps((const float *)weight + at, lane_mask(tail));
    memcpy(halves, (const uint16_t *)weight + at, tail * sizeof(*halves));
    return load_weights(dtype, halves, 0);
}

struct tile {
    const float *x[ROWS_MAX];
    const void *weight[WIDTH_NARROW_MAX];
};

/* sums[r][w] += x[r] . weight[w] over k_count elements. R, W and dtype are constants where this is
 * inlined, so that the sums stay in registers. */
static inline __attribute__((always_inline)) void
add_products(const struct tile *tile, const uint32_t R, const uint32_t W, const enum dtype dtype,
             uint32_t k_count, __m256 sums[ROWS_MAX * WIDTH_MAX])
{
    const uint32_t whole = k_count / CPU_LANES * CPU_LANES;
    const uint32_t tail = k_count - whole;
    uint32_t k = 0;

    for (; k < whole; k += CPU_LANES) {
        __m256 w[WIDTH_NARROW_MAX];
#pragma GCC unroll 8
        for (uint32_t i = 0; i < W; i++)
            w[i] = load_weights(dtype, tile->weight[i], k);
#pragma GCC unroll 4
        for (uint32_t r = 0; r < R; r++) {
            const __m256 x = _mm256_loadu_ps(tile->x[r] + k);
#pragma GCC unroll 8
            for (uint32_t i = 0; i < W; i++)
                sums[r * W + i] = _mm256_fmadd_ps(x, w[i], sums[r * W + i]);
        }
    }
    if (tail > 0) {
        const __m256i mask = lane_mask(tail);
#pragma GCC unroll 8
        for (uint32_t i = 0; i < W; i++) {
            const __m256 w = load_tail(dtype, tile->weight[i], whole, tail);
#pragma GCC unroll 4
            for (uint32_t r = 0; r < R; r++)
                sums[r * W + i] = _mm256_fmadd_ps(_mm256_maskload_ps(tile->x[r] + whole, mask), w,
                                                  sums[r * W + i]);
        }
    }
}

static inline void put(const struct cpu_strip *strip, uint32_t row, uint32_t n, float sum)
{
    float *out = strip->out + row * strip->out_row_stride + n;

    if (strip->bias != NULL)
        sum += strip->bias[n];
    *out = strip->accumulate ? *out + sum : sum;
}

/* Adds up the lanes of count <= 12 sums; out[i] belongs to sums[i]. */
static inline __attribute__((always_inline)) void join_lanes(const __m256 *sums,
                                                             const uint32_t count, float *out)
{
    const __m256 zero = _mm256_setzero_ps();

#pragma GCC unroll 3
    for (uint32_t i = 0; i < count; i += 4)
        _mm_storeu_ps(out + i, sum_lanes_4(sums[i], i + 1 < count ? sums[i + 1] : zero,
                                           i + 2 < count ? sums[i + 2] : zero,
                                           i + 3 < count ? sums[i + 3] : zero));
}

static inline __attribute__((always_inline)) void put_tile(const struct cpu_strip *strip,
                                                           const uint32_t R, const uint32_t W,
                                                           uint32_t row, uint32_t n,
                                                           const __m256 *sums)
{
    float joined[ROWS_MAX * WIDTH_MAX];

    join_lanes(sums, R * W, joined);
    for (uint32_t r = 0; r < R; r++) {
        for (uint32_t i = 0; i < W; i++)
            put(strip, row + r, n + i, joined[r * W + i]);
    }
}

/* One tile straight over the weights. */
static inline __attribute__((always_inline)) void direct_tile(const struct cpu_strip *strip,
                                                              const uint32_t R, const uint32_t W,
                                                              const enum dtype dtype, uint32_t row,
                                                              uint32_t n)
{
    const uint64_t element_bytes = dtype == DTYPE_F32 ? 4 : 2;
    __m256 sums[ROWS_MAX * WIDTH_MAX];
    struct tile tile;

#pragma GCC unroll 12
    for (uint32_t i = 0; i < R * W; i++)
        sums[i] = _mm256_setzero_ps();
#pragma GCC unroll 4
    for (uint32_t r = 0; r < R; r++)
        tile.x[r] = strip->x_rows[row + r];
#pragma GCC unroll 8
    for (uint32_t i = 0; i < W; i++)
        tile.weight[i] = (const char *)strip->weight +
                         (n + i) * strip->weight_row_stride * element_bytes;
    add_products(&tile, R, W, dtype, strip->k_count, sums);
    put_tile(strip, R, W, row, n, sums);
}

/* Rows [row, row + R) against all weights, W at a time. */
static inline __attribute__((always_inline)) void direct_rows(const struct cpu_strip *strip,
                                                              const uint32_t R, const uint32_t W,
                                                              const enum dtype dtype, uint32_t row,
                                                              uint32_t n, uint32_t n_end)
{
    for (; n + W <= n_end; n += W)
        direct_tile(strip, R, W, dtype, row, n);
    for (; n < n_end; n++)
        direct_tile(strip, R, 1, dtype, row, n);
}

static inline __attribute__((always_inline)) void direct(const struct cpu_strip *strip,
                                                         const enum dtype dtype)
{
    /* With more than four rows the weights of a span are read again, from the cache. */
    const uint32_t span = strip->row_count > ROWS_MAX ? PANEL_WIDTH : strip->n_count;

    for (uint32_t n = 0; n < strip->n_count; n += span) {
        const uint32_t left = strip->n_count - n;
        const uint32_t end = n + (left < span ? left : span);
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

/* Where a panel stands in the product. */
struct panel {
    uint32_t n, width;     /* weight rows */
    uint32_t k, k_count;
    bool first, last;      /* of the panels along k */
    const float *weights;  /* [width][PANEL_K], F32 */
    __m256 *sums;          /* [row_count / 4][width / 3][4 * 3] */
};

static inline __attribute__((always_inline)) void pack_row(float *out, enum dtype dtype,
                                                           const void *weight, uint64_t at,
                                                           uint32_t k_count)
{
    const uint32_t whole = k_count / CPU_LANES * CPU_LANES;

    for (uint32_t k = 0; k < whole; k += CPU_LANES)
        _mm256_store_ps(out + k, load_weights(dtype, weight, at + k));
    if (whole < k_count)
        _mm256_store_ps(out + whole, load_tail(dtype, weight, at + whole, k_count - whole));
}

static void pack(const struct cpu_strip *strip, const struct panel *panel, float *weights)
{
    for (uint32_t i = 0; i < panel->width; i++) {
        const uint64_t at = (panel->n + i) * strip->weight_row_stride + panel->k;
        float *out = weights + (size_t)i * PANEL_K;
        switch (strip->weight_dtype) {
        case DTYPE_F16: pack_row(out, DTYPE_F16, strip->weight, at, panel->k_count); break;
        case DTYPE_BF16: pack_row(out, DTYPE_BF16, strip->weight, at, panel->k_count); break;
        default: pack_row(out, DTYPE_F32, strip->weight, at, panel->k_count);
        }
    }
}

static inline __attribute__((always_inline)) void panel_tile(const struct cpu_strip *strip,
                                                             const struct panel *panel,
                                                             const uint32_t R, const uint32_t W,
                                                             uint32_t row, uint32_t i, __m256 *kept)
{
    __m256 sums[ROWS_MAX * WIDTH_MAX];
    struct tile tile;

#pragma GCC unroll 4
    for (uint32_t r = 0; r < R; r++)
        tile.x[r] = strip->x_rows[row + r] + panel->k;
#pragma GCC unroll 3
    for (uint32_t w = 0; w < W; w++)
        tile.weight[w] = panel->weights + (size_t)(i + w) * PANEL_K;
#pragma GCC unroll 12
    for (uint32_t s = 0; s < R * W; s++)
        sums[s] = panel->first ? _mm256_setzero_ps() : kept[s];
    add_products(&tile, R, W, DTYPE_F32, panel->k_count, sums);
    if (panel->last) {
        put_tile(strip, R, W, row, panel->n + i, sums);
        return;
    }
#pragma GCC unroll 12
    for (uint32_t s = 0; s < R * W; s++)
        kept[s] = sums[s];
}

static inline __attribute__((always_inline)) void panel_rows(const struct cpu_strip *strip,
                                                             const struct panel *panel,
                                                             const uint32_t R, uint32_t row)
{
    __m256 *kept = panel->sums + (size_t)row * PANEL_WIDTH;
    uint32_t i = 0;

    for (; i + WIDTH_MAX <= panel->width; i += WIDTH_MAX)
        panel_tile(strip, panel, R, WIDTH_MAX, row, i, kept + (size_t)i * R);
    for (; i < panel->width; i++)
        panel_tile(strip, panel, R, 1, row, i, kept + (size_t)i * R);
}

static void multiply_panel(const struct cpu_strip *strip, const struct panel *panel)
{
    uint32_t row = 0;

    for (; row + ROWS_MAX <= strip->row_count; row += ROWS_MAX)
        panel_rows(strip, panel, ROWS_MAX, row);
    for (; row < strip->row_count; row++)
        panel_rows(strip, panel, 1, row);
}

static void with_panels(const struct cpu_strip *strip, void *scratch)
{
    float *weights = scratch;
    struct panel panel = {
        .weights = weights,
        .sums = (__m256 *)(void *)(weights + PANEL_WIDTH * PANEL_K),
    };

    _Static_assert(PANEL_WIDTH * PANEL_K * sizeof(float) +
                           CPU_STRIP_ROWS_MAX * PANEL_WIDTH * sizeof(__m256) <=
                       CPU_STRIP_SCRATCH_BYTES,
                   "a panel and the sums of a strip must fit the scratch");
    for (panel.n = 0; panel.n < strip->n_count; panel.n += PANEL_WIDTH) {
        const uint32_t n_left = strip->n_count - panel.n;
        panel.width = n_left < PANEL_WIDTH ? n_left : PANEL_WIDTH;
        for (panel.k = 0; panel.k < strip->k_count; panel.k += PANEL_K) {
            const uint32_t k_left = strip->k_count - panel.k;
            panel.k_count = k_left < PANEL_K ? k_left : PANEL_K;
            panel.first = panel.k == 0;
            panel.last = k_left <= PANEL_K;
            pack(strip, &panel, weights);
            multiply_panel(strip, &panel);
        }
    }
}

void cpu__matmul_avx2(const struct cpu_strip *strip, void *scratch)
{
    if (strip->row_count >= PANEL_ROWS_MIN) {
        with_panels(strip, scratch);
        return;
    }
    switch (strip->weight_dtype) {
    case DTYPE_F16: direct_f16(strip); break;
    case DTYPE_BF16: direct_bf16(strip); break;
    default: direct_f32(strip);
    }
}
