/* device/cpu/quant_avx512.c - products with quantised weights where the processor has AVX-512 with
 * VNNI.
 *
 * A few runs of a group of weight rows are unpacked into a panel, which stays in the first-level
 * cache, and multiplied by all rows of x, ROWS at a time; then come the group's next runs. So each
 * weight is unpacked once, for however many rows.
 *
 * Arithmetic, for a run of 32 by 16 weight rows, in vector instructions of which two start in a
 * cycle: unpacking takes 34 with Q4_0, 46 with Q8_0, and gathering the scales; a row of x takes 8
 * products, 1 conversion, 1 multiplication and 1 FMA. So R rows take 17 + 7 + 5.5 R cycles with
 * Q4_0: 46 for four rows, 68 for eight, 112 for sixteen. Measured from the cache at 3.2 GHz: 9.4 ns
 * for unpacking (30 cycles) and 2.2 for each of eight rows (7). The 288 bytes of weights take 18 ns
 * from memory when two threads share it: as long as four rows take.
 *
 * Up to DIRECT_ROWS rows wait for memory alone, and go straight from it (quant_tiles.h). */
#include "device/cpu/quant.h"

#define X_ROWS 8        /* rows of x in a tile */
#define X_PARTS 2
#include "device/cpu/quant_lanes.h"

#define PANEL_RUNS 8    /* one block of those types that have large ones */
#define DIRECT_ROWS 3
#define SPREAD_ROWS_MAX 24

struct traits {
    bool mins, two_scales;
};

/* What to ask for meanwhile: the same bytes of each of a group's rows, ahead of the panel's. */
struct ahead {
    const uint8_t *first;
    uint64_t row_bytes;
    uint32_t bytes;     /* 0: nothing */
};

INLINE void ask(const struct ahead *ahead, uint32_t row)
{
    const uint8_t *first = ahead->first + row * ahead->row_bytes;

    for (uint32_t line = 0; line < ahead->bytes; line += LINE_BYTES)
        __builtin_prefetch(first + line);
}

/* R rows of x by the steps of one scale, the part-th of the run. */
INLINE void add_part(const struct traits traits, const uint32_t R, const struct x_run *x,
                     const struct panel_run *run, const uint32_t part, __m512 *sums)
{
    const uint32_t from = part * STEPS / 2;
    const uint32_t to = traits.two_scales ? from + STEPS / 2 : STEPS;
    const __m512 scales = _mm512_loadu_ps(run->scales[part]);
    __m512i dots[X_ROWS];

#pragma GCC unroll 8
    for (uint32_t r = 0; r < R; r++)
        dots[r] = traits.mins ? _mm512_setzero_si512() : _mm512_set1_epi32(x->corrections[part][r]);
#pragma GCC unroll 8
    for (uint32_t step = from; step < to; step++) {
#pragma GCC unroll 8
        for (uint32_t r = 0; r < R; r++) {
            int32_t four;
            memcpy(&four, &x->q[r][4 * step], sizeof(four));
            dots[r] = _mm512_dpbusd_epi32(dots[r], run->q[step], _mm512_set1_epi32(four));
        }
    }
#pragma GCC unroll 8
    for (uint32_t r = 0; r < R; r++)
        sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[r]),
                                  _mm512_mul_ps(_mm512_set1_ps(x->scales[r]), scales), sums[r]);
    if (traits.mins) {
        const __m512 mins = _mm512_loadu_ps(run->mins[part]);
#pragma GCC unroll 8
        for (uint32_t r = 0; r < R; r++)
            sums[r] = _mm512_fmadd_ps(_mm512_set1_ps(x->scaled_sums[part][r]), mins, sums[r]);
    }
}

/* R rows of x by a panel. Two rows of weights are asked for in each run, so that memory is as busy
 * while products are made as while panels are. */
INLINE void tile(const struct traits traits, const uint32_t R, const struct x_run *x,
                 const struct panel_run *panel, uint32_t run_count, const struct ahead *ahead,
                 __m512 *so_far)
{
    __m512 sums[X_ROWS];

#pragma GCC unroll 8
    for (uint32_t r = 0; r < R; r++)
        sums[r] = so_far[r];
    for (uint32_t b = 0; b < run_count; b++) {
        ask(ahead, 2 * b);
        ask(ahead, 2 * b + 1);
        add_part(traits, R, &x[b], &panel[b], 0, sums);
        if (traits.two_scales)
            add_part(traits, R, &x[b], &panel[b], 1, sums);
    }
#pragma GCC unroll 8
    for (uint32_t r = 0; r < R; r++)
        so_far[r] = sums[r];
}

/* X_ROWS rows of x, or the fewer that are left. */
INLINE void any_tile(const struct traits traits, uint32_t left, const struct x_run *x,
                     const struct panel_run *panel, uint32_t run_count, const struct ahead *ahead,
                     __m512 *sums)
{
    switch (left) {
    case 1: tile(traits, 1, x, panel, run_count, ahead, sums); break;
    case 2: tile(traits, 2, x, panel, run_count, ahead, sums); break;
    case 3: tile(traits, 3, x, panel, run_count, ahead, sums); break;
    case 4: tile(traits, 4, x, panel, run_count, ahead, sums); break;
    case 5: tile(traits, 5, x, panel, run_count, ahead, sums); break;
    case 6: tile(traits, 6, x, panel, run_count, ahead, sums); break;
    case 7: tile(traits, 7, x, panel, run_count, ahead, sums); break;
    default: tile(traits, X_ROWS, x, panel, run_count, ahead, sums); break;
    }
}

#define TILE(name, ...)                                                                            \
    static __attribute__((noinline)) void name(                                                    \
        uint32_t left, const struct x_run *x, const struct panel_run *panel, uint32_t run_count,   \
        const struct ahead *ahead, __m512 *sums)                                                   \
    {                                                                                              \
        any_tile((struct traits){ __VA_ARGS__ }, left, x, panel, run_count, ahead, sums);          \
    }

TILE(tile_plain, false, false)
TILE(tile_mins, true, false)
TILE(tile_two, false, true)
TILE(tile_two_mins, true, true)

INLINE void multiply_tile(const enum dtype dtype, uint32_t left, const struct x_run *x,
                          const struct panel_run *panel, uint32_t run_count,
                          const struct ahead *ahead, __m512 *sums)
{
    if (has_mins(dtype) && has_two_scales(dtype))
        tile_two_mins(left, x, panel, run_count, ahead, sums);
    else if (has_mins(dtype))
        tile_mins(left, x, panel, run_count, ahead, sums);
    else if (has_two_scales(dtype))
        tile_two(left, x, panel, run_count, ahead, sums);
    else
        tile_plain(left, x, panel, run_count, ahead, sums);
}

/* A group by all rows of x. */
INLINE void multiply_group(const struct cpu_strip *strip, const enum dtype dtype,
                           const struct group *group, const struct x_run *x)
{
    const uint32_t run_count = strip->k_count / QUANT_RUN_ELEMENTS;
    const uint32_t runs = runs_per_block(dtype);
    const struct ahead nothing = { .first = group->quads[0] };
    struct panel_run panel[PANEL_RUNS];
    __m512 sums[CPU_STRIP_ROWS_MAX];
    uint32_t count;

    for (uint32_t row = 0; row < strip->row_count; row++)
        sums[row] = _mm512_setzero_ps();
    for (uint32_t b = 0; b < run_count; b += count) {
        struct ahead ahead = { .row_bytes = group->row_bytes };
        count = run_count - b < PANEL_RUNS ? run_count - b : PANEL_RUNS;
        ahead.first = group->quads[0] + (uint64_t)(b / runs) * block_bytes(dtype) + AHEAD_BYTES;
        ahead.bytes = count / runs * block_bytes(dtype);
        fill_panel(dtype, group, b / runs, (b + count) / runs, panel, false);
        for (uint32_t row = 0; row < strip->row_count; row += X_ROWS)
            multiply_tile(dtype, strip->row_count - row,
                          x + (uint64_t)(row / X_ROWS) * run_count + b, panel, count,
                          row == 0 ? &ahead : &nothing, &sums[row]);
    }
    for (uint32_t row = 0; row < strip->row_count; row++)
        put(strip, row, group, sums[row]);
}

/* Whole groups by the strip's rows, which fit into scratch. As in quant_tiles.h, for few rows the
 * strip is cut into as many parts as a group has rows, so that each is a long stream of memory. */
INLINE void multiply(const struct cpu_strip *strip, const enum dtype dtype, void *scratch)
{
    const uint32_t group_count = strip->n_count / LANES;
    const uint64_t bytes =
        strip->n_count * dtype_row_bytes(strip->weight_dtype, strip->weight_row_stride);
    const bool spread = strip->row_count < SPREAD_ROWS_MAX && bytes <= INT32_MAX; /* load_word() */
    struct x_run *x = scratch;

    pack_x(dtype, strip, x);
    for (uint32_t i = 0; i < group_count; i++) {
        const struct group group =
            spread ? group_at(strip, dtype, i, group_count) : group_at(strip, dtype, i * LANES, 1);
        multiply_group(strip, dtype, &group, x);
    }
}

#define MULTIPLY(type)                                                                             \
    static __attribute__((noinline)) void multiply_##type(const struct cpu_strip *strip,           \
                                                          void *scratch)                           \
    {                                                                                              \
        multiply(strip, DTYPE_##type, scratch);                                                    \
    }

CPU_QUANT_ONE_SCALE(MULTIPLY)
CPU_QUANT_TWO_SCALES(MULTIPLY)
MULTIPLY(INT4)

static void multiply_groups(const struct cpu_strip *strip, void *scratch)
{
    switch (strip->weight_dtype) {
#define CASE(type) case DTYPE_##type: multiply_##type(strip, scratch); break;
        CPU_QUANT_ONE_SCALE(CASE) CPU_QUANT_TWO_SCALES(CASE) CASE(INT4)
#undef CASE
    default: cpu__matmul_quant_scalar(strip, scratch);
    }
}

void cpu__matmul_quant_avx512(const struct cpu_strip *strip, void *scratch)
{
    multiply_parts(strip, rows_that_fit(strip, 0),
                   strip->row_count > DIRECT_ROWS ? multiply_groups : NULL, scratch);
}
