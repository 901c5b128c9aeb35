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
 * Up to DIRECT_ROWS rows wait for memory alone, and go straight from it: plain rows in
 * quant_tiles.h, woven ones here, where there is a row more of x. */
#include "device/cpu/quant.h"

#define X_ROWS 8        /* rows of x in a tile */
#define X_PARTS 2
#include "device/cpu/quant_lanes.h"

#define PANEL_RUNS 8    /* one block of those types that have large ones */
#define DIRECT_ROWS 3
#define SPREAD_ROWS_MAX 24
#define WOVEN_DIRECT_ROWS 4 /* more take five times as long to compile, and gain a tenth at most */
#define ASK_ROWS 3      /* so many take longer than memory to bring what they are multiplied with */
#define WOVEN_AHEAD_BYTES 8192

struct traits {
    bool mins, two_scales;
};

/* What to ask for meanwhile: the same bytes of each of a group's rows, ahead of the panel's; woven,
 * sixteen parts of what the group has there. */
struct ahead {
    const uint8_t *first;
    uint64_t row_bytes;
    uint32_t bytes;     /* 0: nothing */
    bool woven;
};

/* Asks the second-level cache, which can wait for more lines than the first. */
INLINE void ask_woven(const uint8_t *first, const uint32_t size_bytes)
{
    for (uint32_t i = 0; i < size_bytes; i += LINE_BYTES)
        __builtin_prefetch(first + WOVEN_AHEAD_BYTES + i, 0, 2);
}

INLINE void ask(const struct ahead *ahead, uint32_t row)
{
    const uint8_t *first = ahead->first + row * ahead->row_bytes;

    if (ahead->woven) {
        ask_woven(first, ahead->bytes);
        return;
    }
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

/* R rows of x by a run, straight from registers. */
INLINE void direct_run(const enum dtype dtype, const uint32_t R,
                       const struct cpu_quant_block *const *x, uint32_t b,
                       const struct panel_run *run, const __m512i q[STEPS], __m512 *sums)
{
    const int32_t offset = offset_of(dtype);
    const uint32_t parts = has_two_scales(dtype) ? 2 : 1, steps = STEPS / parts;

#pragma GCC unroll 2
    for (uint32_t part = 0; part < parts; part++) {
        const __m512 scales = _mm512_loadu_ps(run->scales[part]);
#pragma GCC unroll 8
        for (uint32_t r = 0; r < R; r++) {
            const struct cpu_quant_block *block = &x[r][b];
            const int32_t sum = parts == 2 ? block->sums[part] : block->sums[0] + block->sums[1];
            __m512i dots = _mm512_set1_epi32(-offset * sum);
#pragma GCC unroll 8
            for (uint32_t step = part * steps; step < (part + 1) * steps; step++) {
                int32_t four;
                memcpy(&four, &block->q[4 * step], sizeof(four));
                dots = _mm512_dpbusd_epi32(dots, q[step], _mm512_set1_epi32(four));
            }
            sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots),
                                      _mm512_mul_ps(_mm512_set1_ps(block->scale), scales), sums[r]);
            if (has_mins(dtype))
                sums[r] = _mm512_fmadd_ps(
                    _mm512_set1_ps(parts == 2 ? block->scale * (float)sum : block->scaled_sum),
                    _mm512_loadu_ps(run->mins[part]), sums[r]);
        }
    }
}

/* R rows of x by a woven group, which is one stream of memory: hardware asks for it ahead, and what
 * a program asks for besides is in its way. */
INLINE void direct_rows(const struct cpu_strip *strip, const enum dtype dtype, const uint32_t R,
                        uint32_t row, const struct group *group)
{
    const uint32_t runs = runs_per_block(dtype);
    const uint32_t block_count = strip->k_count / QUANT_RUN_ELEMENTS / runs;
    const struct cpu_quant_block *const *x = strip->x_blocks + row;
    struct panel_run scales[2 * QUARTERS]; /* their numbers are not touched */
    const uint32_t share = LANES * block_bytes(dtype) / runs;
    struct half_words words;
    __m512 sums[WOVEN_DIRECT_ROWS];

#pragma GCC unroll 4
    for (uint32_t r = 0; r < R; r++)
        sums[r] = _mm512_setzero_ps();
    for (uint32_t b = 0; b < block_count; b++) {
        const uint64_t at = (uint64_t)b * block_bytes(dtype);
        load_scales(dtype, group, at, scales);
        for (uint32_t half = 0; half * QUARTERS < runs; half++) {
#pragma GCC unroll 4
            for (uint32_t quarter = 0; quarter < QUARTERS && quarter < runs; quarter++) {
                const uint32_t run = half * QUARTERS + quarter;
                __m512i q[STEPS];
                if (R >= ASK_ROWS)
                    ask_woven(group->quads[0] + LANES * at + run * share, share);
                load_run(dtype, group, at, half, quarter, &words, q);
                direct_run(dtype, R, x, b * runs + run, &scales[run], q, sums);
            }
        }
    }
#pragma GCC unroll 4
    for (uint32_t r = 0; r < R; r++)
        put(strip, row + r, group, sums[r]);
}

/* Tiles of WOVEN_DIRECT_ROWS rows of x, and what is left. */
INLINE void direct_group(const struct cpu_strip *strip, const enum dtype dtype,
                         const struct group *group)
{
    uint32_t row = 0;

    for (; row + WOVEN_DIRECT_ROWS <= strip->row_count; row += WOVEN_DIRECT_ROWS)
        direct_rows(strip, dtype, WOVEN_DIRECT_ROWS, row, group);
    switch (strip->row_count - row) {
    case 1: direct_rows(strip, dtype, 1, row, group); break;
    case 2: direct_rows(strip, dtype, 2, row, group); break;
    case 3: direct_rows(strip, dtype, 3, row, group); break;
    default: break;
    }
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
        const uint64_t at = (uint64_t)(b / runs) * block_bytes(dtype);
        struct ahead ahead = { .woven = group->woven };
        count = run_count - b < PANEL_RUNS ? run_count - b : PANEL_RUNS;
        ahead.bytes = count / runs * block_bytes(dtype);
        ahead.row_bytes = group->woven ? ahead.bytes : group->row_bytes;
        ahead.first = group->quads[0] + (group->woven ? LANES * at : at + AHEAD_BYTES);
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
INLINE void multiply(const struct cpu_strip *strip, const enum dtype dtype, const bool woven,
                     void *scratch)
{
    const uint32_t group_count = strip->n_count / LANES;
    const uint64_t bytes =
        strip->n_count * dtype_row_bytes(strip->weight_dtype, strip->weight_row_stride);
    const bool spread = !woven && strip->row_count < SPREAD_ROWS_MAX &&
                        bytes <= INT32_MAX; /* load_word() */
    struct x_run *x = scratch;

    pack_x(dtype, strip, x);
    for (uint32_t i = 0; i < group_count; i++) {
        const struct group group = spread ? group_at(strip, dtype, woven, i, group_count)
                                          : group_at(strip, dtype, woven, i * LANES, 1);
        multiply_group(strip, dtype, &group, x);
    }
}

INLINE void multiply_direct(const struct cpu_strip *strip, const enum dtype dtype)
{
    for (uint32_t n = 0; n < strip->n_count; n += LANES) {
        const struct group group = group_at(strip, dtype, true, n, 1);
        direct_group(strip, dtype, &group);
    }
}

#define MULTIPLY(type)                                                                             \
    static __attribute__((noinline)) void multiply_##type(const struct cpu_strip *strip,           \
                                                          void *scratch)                           \
    {                                                                                              \
        multiply(strip, DTYPE_##type, false, scratch);                                             \
    }                                                                                              \
    static __attribute__((noinline)) void multiply_woven_##type(const struct cpu_strip *strip,     \
                                                                void *scratch)                     \
    {                                                                                              \
        multiply(strip, DTYPE_##type, true, scratch);                                              \
    }                                                                                              \
    static __attribute__((noinline)) void multiply_direct_##type(const struct cpu_strip *strip)    \
    {                                                                                              \
        multiply_direct(strip, DTYPE_##type);                                                      \
    }

CPU_QUANT_ONE_SCALE(MULTIPLY)
CPU_QUANT_TWO_SCALES(MULTIPLY)
MULTIPLY(INT4)

/* scratch: NULL where the weights are woven and the rows go straight by. */
static void multiply_any(const struct cpu_strip *strip, void *scratch)
{
    const bool woven = strip->weight_layout == LAYOUT_ROWS_16;

    switch (strip->weight_dtype) {
#define CASE(type)                                                                                 \
    case DTYPE_##type:                                                                             \
        if (scratch == NULL)                                                                       \
            multiply_direct_##type(strip);                                                         \
        else if (woven)                                                                            \
            multiply_woven_##type(strip, scratch);                                                 \
        else                                                                                       \
            multiply_##type(strip, scratch);                                                       \
        break;
        CPU_QUANT_ONE_SCALE(CASE) CPU_QUANT_TWO_SCALES(CASE) CASE(INT4)
#undef CASE
    default: cpu__matmul_quant_scalar(strip, scratch);
    }
}

void cpu__matmul_quant_avx512(const struct cpu_strip *strip, void *scratch)
{
    const uint32_t most = rows_that_fit(strip, 0);

    if (strip->weight_layout == LAYOUT_ROWS_16 &&
        (strip->row_count <= WOVEN_DIRECT_ROWS || most == 0))
        multiply_any(strip, NULL);
    else
        multiply_parts(strip, most, strip->row_count > DIRECT_ROWS ? multiply_any : NULL, scratch);
}
