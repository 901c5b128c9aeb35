/* device/cpu/quant_amx.c - products of many rows with quantised weights, where there is AMX.
 *
 * A tile product takes 16 rows of x by 16 weight rows by a run of 32: the panel of quant_lanes.h is
 * its second factor as it stands, x is packed for the first. It ends with the run, because the
 * scales do: the integers go through memory to vectors, where they are scaled and added up in the
 * order that kernels.h states, so that all bits are those of other tables.
 *
 *     x        [row group][run]   16 rows of 32 numbers, then their scales and scaled sums
 *     weights  [run]              a struct panel_run, its numbers signed
 *     dots     [2][16][16]        of this run while the units multiply the next one
 *
 * Arithmetic, for 16 x 16 x 32 products: the tile product takes 16 cycles, its store 16, loading
 * the factors 12; 16 conversions, multiplications and FMAs 24, while the units leave one of two
 * vector ports. Measured in a loop with nothing else, 18 ns or 60 cycles at 3.3 GHz: 137 products
 * in a cycle. Vectors alone need 26 ns if nothing ever waits (quant_avx512.c).
 *
 * Types with two scales a run would need two tile products of half a run, and two stores: they stay
 * with vectors, as do few rows: sixteen by 16 x 32 weights of Q4_0 from memory, one thread, took 77
 * ns here and 61 with vectors; 32 rows 105 and 123. */
#include <assert.h>
#include <string.h>

#include "device/cpu/amx.h"
#include "device/cpu/quant.h"

#define X_ROWS 16
#define X_PARTS 1           /* no type here has two scales a run */
#include "device/cpu/quant_lanes.h"

#define TILE 16             /* rows of x, and weight rows, of a tile product */
#define ROWS_MIN 24         /* of x; with fewer vectors are faster */

struct dots {
    _Alignas(64) int32_t of_row[TILE][TILE];
};

/* Tile registers. Not an enum: gcc writes their names from what the preprocessor sees. */
#define TILE_DOTS_A 0
#define TILE_DOTS_B 1
#define TILE_X 2
#define TILE_WEIGHTS 3

static void configure(void)
{
    struct amx_config config = { .palette = 1 };

    config.rows[TILE_DOTS_A] = config.rows[TILE_DOTS_B] = config.rows[TILE_X] = TILE;
    config.rows[TILE_WEIGHTS] = STEPS;
    config.column_bytes[TILE_DOTS_A] = config.column_bytes[TILE_DOTS_B] = 64;
    config.column_bytes[TILE_X] = QUANT_RUN_ELEMENTS;
    config.column_bytes[TILE_WEIGHTS] = 64;
    amx_configure(&config);
}

/* sums[r] += row r's products with a run. */
INLINE void add_run(__m512 sums[TILE], const struct dots *dots, const struct x_run *x,
                    const struct panel_run *weights, const bool mins)
{
    const __m512 scales = _mm512_loadu_ps(weights->scales[0]);

#pragma GCC unroll 16
    for (uint32_t r = 0; r < TILE; r++) {
        const __m512i dot = _mm512_load_si512(dots->of_row[r]);
        sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot),
                                  _mm512_mul_ps(_mm512_set1_ps(x->scales[r]), scales), sums[r]);
    }
    if (mins) {
        const __m512 least = _mm512_loadu_ps(weights->mins[0]);
#pragma GCC unroll 16
        for (uint32_t r = 0; r < TILE; r++)
            sums[r] = _mm512_fmadd_ps(_mm512_set1_ps(x->scaled_sums[0][r]), least, sums[r]);
    }
}

/* Dot products of a run; A and B take turns. */
#define MULTIPLY_RUN(tile, x, weights, dots)                                                       \
    do {                                                                                           \
        _tile_loadd(TILE_X, (x)->q, QUANT_RUN_ELEMENTS);                                           \
        _tile_loadd(TILE_WEIGHTS, (weights)->q, 64);                                               \
        _tile_zero(tile);                                                                          \
        _tile_dpbssd(tile, TILE_X, TILE_WEIGHTS);                                                  \
        _tile_stored(tile, (dots)->of_row, 64);                                                    \
    } while (0)

/* Sixteen rows by a group, all runs: each is multiplied while the one before is added. */
INLINE void tile(const struct cpu_strip *strip, uint32_t row, const struct group *group,
                 const struct x_run *x, const struct panel_run *weights, const bool mins)
{
    const uint32_t run_count = strip->k_count / QUANT_RUN_ELEMENTS;
    const uint32_t left = strip->row_count - row;
    struct dots dots[2];
    __m512 sums[TILE];
    uint32_t b = 0;

#pragma GCC unroll 16
    for (uint32_t r = 0; r < TILE; r++)
        sums[r] = _mm512_setzero_ps();
    MULTIPLY_RUN(TILE_DOTS_A, &x[0], &weights[0], &dots[0]);
    for (; b + 2 < run_count; b += 2) {
        MULTIPLY_RUN(TILE_DOTS_B, &x[b + 1], &weights[b + 1], &dots[1]);
        add_run(sums, &dots[0], &x[b], &weights[b], mins);
        MULTIPLY_RUN(TILE_DOTS_A, &x[b + 2], &weights[b + 2], &dots[0]);
        add_run(sums, &dots[1], &x[b + 1], &weights[b + 1], mins);
    }
    if (b + 1 < run_count)
        MULTIPLY_RUN(TILE_DOTS_B, &x[b + 1], &weights[b + 1], &dots[1]);
    add_run(sums, &dots[0], &x[b], &weights[b], mins);
    if (b + 1 < run_count)
        add_run(sums, &dots[1], &x[b + 1], &weights[b + 1], mins);
#pragma GCC unroll 16
    for (uint32_t r = 0; r < TILE; r++) {
        if (r < left)
            put(strip, row + r, group, sums[r]);
    }
}

#define TILE_FUNCTION(name, mins)                                                                  \
    static __attribute__((noinline)) void name(                                                    \
        const struct cpu_strip *strip, uint32_t row, const struct group *group,                    \
        const struct x_run *x, const struct panel_run *weights)                                    \
    {                                                                                              \
        tile(strip, row, group, x, weights, mins);                                                 \
    }

TILE_FUNCTION(tile_plain, false)
TILE_FUNCTION(tile_mins, true)

/* Whole groups by the strip's rows, which fit into scratch. */
INLINE void multiply(const struct cpu_strip *strip, const enum dtype dtype, const bool woven,
                     void *scratch)
{
    const uint32_t run_count = strip->k_count / QUANT_RUN_ELEMENTS;
    struct panel_run *panel = scratch;
    struct x_run *x = (struct x_run *)(void *)(panel + run_count);

    pack_x(dtype, strip, x);
    for (uint32_t n = 0; n < strip->n_count; n += LANES) {
        const struct group group = group_at(strip, dtype, woven, n, 1);
        fill_panel(dtype, &group, 0, run_count / runs_per_block(dtype), panel, true);
        for (uint32_t row = 0; row < strip->row_count; row += TILE) {
            const struct x_run *rows = x + (uint64_t)(row / TILE) * run_count;
            if (has_mins(dtype))
                tile_mins(strip, row, &group, rows, panel);
            else
                tile_plain(strip, row, &group, rows, panel);
        }
    }
}

#define MULTIPLY(type)                                                                             \
    static __attribute__((noinline)) void multiply_##type(const struct cpu_strip *strip,           \
                                                          void *scratch)                           \
    {                                                                                              \
        multiply(strip, DTYPE_##type, strip->weight_layout == LAYOUT_ROWS_16, scratch);           \
    }

CPU_QUANT_ONE_SCALE(MULTIPLY)
MULTIPLY(INT4)

/* NULL: vectors do it. */
static void (*multiply_of(enum dtype dtype))(const struct cpu_strip *, void *)
{
    switch (dtype) {
#define CASE(type) case DTYPE_##type: return multiply_##type;
        CPU_QUANT_ONE_SCALE(CASE) CASE(INT4)
#undef CASE
    default: return NULL;
    }
}

void cpu__matmul_quant_amx(const struct cpu_strip *strip, void *scratch)
{
    void (*multiply_strip)(const struct cpu_strip *, void *) = multiply_of(strip->weight_dtype);
    const uint32_t most = rows_that_fit(strip, strip->k_count / QUANT_RUN_ELEMENTS);

    if (multiply_strip == NULL || strip->row_count < ROWS_MIN || most == 0) {
        cpu__matmul_quant_avx512(strip, scratch);
        return;
    }
    configure();
    multiply_parts(strip, most, multiply_strip, scratch);
    _tile_release();
}
