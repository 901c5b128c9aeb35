/* device/cpu/quant_tiles.h - products with quantised weights in vector registers; included once by
 * each of the files that compile it for an instruction set: quant_avx2.c, quant_vnni.c, and
 * quant_narrow_avx512.c.
 *
 * The lanes of a vector are eight weight rows, n to n + 7, so that a chain of FMAs over the runs
 * is one output's sum (kernels.h):
 *
 *     few rows of x    the eight rows' blocks are read where they lie. A vector holds half a run
 *                      of rows i and i + 4; products leave four partial sums of each, and three
 *                      horizontal additions make eight rows' dot products of four such vectors.
 *     many             eight rows are cut into a panel in scratch: a vector holds four elements of
 *                      each of the eight rows. Then the rows of x take turns, ROWS_MAX at a time:
 *                      four elements of x, broadcast, go with a vector of the panel.
 *
 * A panel knows no types any more, only whether runs have minimums, two scales, and what must be
 * taken off their numbers; so tiles are made for these traits.
 *
 * Integer products: VNNI multiplies unsigned with signed bytes and adds four of them to a lane.
 * What the numbers' offset adds too much follows from the sums of x. Without VNNI, pairs of
 * products are made in 16 bits. Eight pairs of numbers up to 16 fit there (8 * 2 * 15 * 127 =
 * 30480), and are widened once a run; two pairs of those up to 63 (2 * 2 * 63 * 127 = 32004). Of 8
 * bits it is one: the weight's sign moves to x, and each pair of at most 2 * 128 * 127 = 32512 is
 * widened at once. */
#ifndef LIGHTER_DEVICE_CPU_QUANT_TILES_H
#define LIGHTER_DEVICE_CPU_QUANT_TILES_H

#include <assert.h>
#include <string.h>

#include "device/cpu/quant.h"
#include "device/cpu/quant_types.h"

#if defined(__AVX512VNNI__)
#define DOT_BYTES _mm256_dpbusd_epi32
#define ROWS_MAX 8      /* rows of x in a tile */
#elif defined(__AVXVNNI__)
#define DOT_BYTES _mm256_dpbusd_avx_epi32
#define ROWS_MAX 6
#else
#define ROWS_MAX 6
#endif
#define DIRECT_ROWS_MAX 3 /* more are worth a panel */
#define SPREAD_ROWS_MAX 24
#define GROUPS_MAX 8    /* that one call multiplies: what begins it took 5 % of a group of 2048 */
#define STEPS 8         /* vectors of a run, four elements of each weight row */
#define WAY_BYTES 4096  /* of a first-level cache: addresses so far apart share a set */

struct panel_run {
    __m256i q[STEPS];
    float scales[2][WIDTH]; /* [1], and mins: only in types that have them */
    float mins[2][WIDTH];
};

INLINE uint32_t runs_per_block(const enum dtype dtype)
{
    return has_large_blocks(dtype) ? 2 * QUARTERS : 1;
}

/* By how much the numbers that load_pair gives are too large. */
INLINE int16_t offset_of(const enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_Q8_0: case DTYPE_IQ4_NL: case DTYPE_IQ4_XS: return HAS_VNNI ? 128 : 0;
    case DTYPE_Q4_0: return 8;
    case DTYPE_Q5_0: return 16;
    case DTYPE_Q3_K: return 4;
    case DTYPE_Q6_K: return 32;
    case DTYPE_MXFP4: return 12;
    case DTYPE_INT4: return 15;
    default: return 0;
    }
}

INLINE struct group group_at(const struct cpu_strip *strip, uint64_t row_bytes, uint32_t n,
                             uint32_t step)
{
    const uint32_t left = strip->n_count - n;
    struct group group = { .n = n, .step = step, .count = left < WIDTH ? left : WIDTH };

    for (uint32_t i = 0; i < WIDTH; i++) {
        const uint32_t row = n + (i < group.count ? i : group.count - 1) * step;
        group.rows[i] = (const uint8_t *)strip->weight + row * row_bytes;
    }
    return group;
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

INLINE void fill_run(const enum dtype dtype, const struct group *group, uint64_t at, uint32_t half,
                     const uint32_t quarter, const struct block_scales *scales,
                     struct panel_run *panel)
{
    const uint32_t run = half * QUARTERS + quarter;
    __m256i first[4], second[4], steps[STEPS];

#pragma GCC unroll 4
    for (uint32_t i = 0; i < 4; i++)
        load_pair(dtype, group, at, i, half, quarter, &first[i], &second[i]);
    transpose(first, steps);
    transpose(second, steps + 4);
#pragma GCC unroll 8
    for (uint32_t step = 0; step < STEPS; step++)
        panel[run].q[step] = steps[step];
    _mm256_store_ps(panel[run].scales[0], scales->scales[2 * run]);
    if (has_two_scales(dtype))
        _mm256_store_ps(panel[run].scales[1], scales->scales[2 * run + 1]);
    if (has_mins(dtype))
        _mm256_store_ps(panel[run].mins[0], scales->mins[2 * run]);
    if (has_mins(dtype) && has_two_scales(dtype))
        _mm256_store_ps(panel[run].mins[1], scales->mins[2 * run + 1]);
}

INLINE void fill_panel(const struct cpu_strip *strip, const enum dtype dtype,
                       const struct group *group, struct panel_run *panel)
{
    const uint32_t runs = runs_per_block(dtype);
    const uint32_t block_count = strip->k_count / QUANT_RUN_ELEMENTS / runs;

    for (uint32_t b = 0; b < block_count; b++, panel += runs) {
        const uint64_t at = (uint64_t)b * block_bytes(dtype);
        struct block_scales scales;
        load_scales(dtype, group, at, &scales);
        if (!has_large_blocks(dtype)) {
            fill_run(dtype, group, at, 0, 0, &scales, panel);
            continue;
        }
        for (uint32_t half = 0; half < 2; half++) {
            fill_run(dtype, group, at, half, 0, &scales, panel);
            fill_run(dtype, group, at, half, 1, &scales, panel);
            fill_run(dtype, group, at, half, 2, &scales, panel);
            fill_run(dtype, group, at, half, 3, &scales, panel);
        }
    }
}

/* How many bits a type's numbers have, where that matters; see above. */
enum number_size { NUMBERS_SMALL, NUMBERS_MEDIUM, NUMBERS_WIDE };

struct traits {
    enum number_size size;
    bool mins, two_scales;
};

/* The dot products of two vectors of numbers with two of x, in lanes of 32 bits. */
INLINE __m256i dot_pair(const enum dtype dtype, __m256i first, __m256i second, __m256i x_first,
                        __m256i x_second)
{
#if HAS_VNNI
    (void)dtype;
    return DOT_BYTES(DOT_BYTES(_mm256_setzero_si256(), first, x_first), second, x_second);
#else
    const __m256i ones = _mm256_set1_epi16(1);

    if (is_wide(dtype))
        return _mm256_add_epi32(
            _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_sign_epi8(first, first),
                                                   _mm256_sign_epi8(x_first, first)), ones),
            _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_sign_epi8(second, second),
                                                   _mm256_sign_epi8(x_second, second)), ones));
    return _mm256_madd_epi16(_mm256_add_epi16(_mm256_maddubs_epi16(first, x_first),
                                              _mm256_maddubs_epi16(second, x_second)), ones);
#endif
}

/* Of one vector of numbers; there is no wide type with two scales. */
INLINE __m256i dot_half(__m256i numbers, __m256i x)
{
#if HAS_VNNI
    return DOT_BYTES(_mm256_setzero_si256(), numbers, x);
#else
    return _mm256_madd_epi16(_mm256_maddubs_epi16(numbers, x), _mm256_set1_epi16(1));
#endif
}

/* What is to be added for the numbers' offset: minus the offset times the sums of the halves of x
 * that are multiplied, both or one. */
INLINE int32_t correction_factors(int16_t offset, bool first, bool second)
{
    const uint32_t less = (uint16_t)-offset;

    return (int32_t)((first ? less : 0) | (second ? less << 16 : 0));
}

INLINE int32_t both_sums(const struct cpu_quant_block *x)
{
    int32_t sums;

    memcpy(&sums, x->sums, sizeof(sums));
    return sums;
}

INLINE __m256i corrected(__m256i dots, const struct cpu_quant_block *x, int32_t factors)
{
    if (factors == 0)
        return dots;
    return _mm256_add_epi32(dots, _mm256_madd_epi16(_mm256_set1_epi32(both_sums(x)),
                                                    _mm256_set1_epi32(factors)));
}

/* Eight rows' dot products, from four vectors that have four partial sums of each of two rows. */
INLINE __m256i join(const __m256i p[4])
{
    return _mm256_hadd_epi32(_mm256_hadd_epi32(p[0], p[1]), _mm256_hadd_epi32(p[2], p[3]));
}

INLINE __m256 add_run(__m256 sums, __m256i dots, float x_scale, __m256 scales)
{
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots),
                           _mm256_mul_ps(_mm256_set1_ps(x_scale), scales), sums);
}

/* A row of x by a run of a group: first and second are the four pairs' numbers. */
INLINE __m256 direct_products(const enum dtype dtype, __m256 sums, const struct cpu_quant_block *x,
                              const __m256i first[4], const __m256i second[4],
                              const __m256 *scales, const __m256 *mins)
{
    const __m256i x_first = _mm256_broadcastsi128_si256(load_16((const uint8_t *)x->q));
    const __m256i x_second = _mm256_broadcastsi128_si256(load_16((const uint8_t *)x->q + 16));
    const int16_t offset = offset_of(dtype);
    __m256i p[4], q[4];

    if (!has_two_scales(dtype)) {
#pragma GCC unroll 4
        for (uint32_t i = 0; i < 4; i++)
            p[i] = dot_pair(dtype, first[i], second[i], x_first, x_second);
        sums = add_run(sums, corrected(join(p), x, correction_factors(offset, true, true)),
                       x->scale, scales[0]);
        return has_mins(dtype) ? _mm256_fmadd_ps(_mm256_set1_ps(x->scaled_sum), mins[0], sums)
                               : sums;
    }
#pragma GCC unroll 4
    for (uint32_t i = 0; i < 4; i++) {
        p[i] = dot_half(first[i], x_first);
        q[i] = dot_half(second[i], x_second);
    }
    sums = add_run(sums, corrected(join(p), x, correction_factors(offset, true, false)), x->scale,
                   scales[0]);
    if (has_mins(dtype))
        sums = _mm256_fmadd_ps(_mm256_set1_ps(x->scale * (float)x->sums[0]), mins[0], sums);
    sums = add_run(sums, corrected(join(q), x, correction_factors(offset, false, true)), x->scale,
                   scales[1]);
    if (has_mins(dtype))
        sums = _mm256_fmadd_ps(_mm256_set1_ps(x->scale * (float)x->sums[1]), mins[1], sums);
    return sums;
}

/* R rows of x by a run, the quarter-th of the half of the block at `at`. */
INLINE void direct_run(const enum dtype dtype, const uint32_t R,
                       const struct cpu_quant_block *const *x, const struct group *group,
                       uint64_t at, uint32_t half, const uint32_t quarter,
                       const struct block_scales *scales, __m256 *sums)
{
    const uint32_t run = half * QUARTERS + quarter;
    __m256i first[4], second[4];

#pragma GCC unroll 4
    for (uint32_t i = 0; i < 4; i++)
        load_pair(dtype, group, at, i, half, quarter, &first[i], &second[i]);
#pragma GCC unroll 3
    for (uint32_t r = 0; r < R; r++)
        sums[r] = direct_products(dtype, sums[r], x[r] + run, first, second,
                                  &scales->scales[2 * run], &scales->mins[2 * run]);
}

/* Asks for what lies ahead of a row's block: in a part of the strip the next row follows, so that
 * this is what comes next there. */
INLINE void ask_ahead(const enum dtype dtype, const uint8_t *block)
{
    for (uint32_t line = 0; line < block_bytes(dtype); line += LINE_BYTES)
        __builtin_prefetch(block + AHEAD_BYTES + line);
}

/* R rows of x by a half of a large block. Each of its runs asks for one of the group's rows: for
 * all at once a core has too few places to wait in. */
INLINE void direct_half(const enum dtype dtype, const uint32_t R,
                        const struct cpu_quant_block *const *x, const struct group *group,
                        uint64_t at, uint32_t half, const struct block_scales *scales, __m256 *sums)
{
#pragma GCC unroll 4
    for (uint32_t quarter = 0; quarter < QUARTERS; quarter++) {
        ask_ahead(dtype, group->rows[half * QUARTERS + quarter] + at);
        direct_run(dtype, R, x, group, at, half, quarter, scales, sums);
    }
}

/* R rows of x against a group, straight from where its blocks lie. */
INLINE void direct_group(const struct cpu_strip *strip, const enum dtype dtype, const uint32_t R,
                         uint32_t row, const struct group *group)
{
    const uint32_t runs = runs_per_block(dtype);
    const uint32_t block_count = strip->k_count / QUANT_RUN_ELEMENTS / runs;
    const struct cpu_quant_block *x[DIRECT_ROWS_MAX];
    __m256 sums[DIRECT_ROWS_MAX];

#pragma GCC unroll 3
    for (uint32_t r = 0; r < R; r++) {
        x[r] = strip->x_blocks[row + r];
        sums[r] = _mm256_setzero_ps();
    }
    for (uint32_t b = 0; b < block_count; b++) {
        const uint64_t at = (uint64_t)b * block_bytes(dtype);
        struct block_scales scales;
        load_scales(dtype, group, at, &scales);
        if (has_large_blocks(dtype)) {
            for (uint32_t half = 0; half < 2; half++)
                direct_half(dtype, R, x, group, at, half, &scales, sums);
        } else {
            for (uint32_t i = 0; i < WIDTH; i++)
                ask_ahead(dtype, group->rows[i] + at);
            direct_run(dtype, R, x, group, at, 0, 0, &scales, sums);
        }
#pragma GCC unroll 3
        for (uint32_t r = 0; r < R; r++)
            x[r] += runs;
    }
#pragma GCC unroll 3
    for (uint32_t r = 0; r < R; r++)
        put(strip, row + r, group, sums[r]);
}

INLINE __m256i four_of_x(const struct cpu_quant_block *x, uint32_t step)
{
    int32_t four;

    memcpy(&four, x->q + 4 * step, sizeof(four));
    return _mm256_set1_epi32(four);
}

INLINE __m256i tile_products(const struct traits traits, const struct panel_run *panel,
                                     const struct cpu_quant_block *x, const uint32_t from,
                                     const uint32_t to, int32_t factors)
{
    __m256i dots = _mm256_setzero_si256();

#if HAS_VNNI
    (void)traits;
    dots = corrected(dots, x, factors);
#pragma GCC unroll 8
    for (uint32_t step = from; step < to; step++)
        dots = DOT_BYTES(dots, panel->q[step], four_of_x(x, step));
    return dots;
#else
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
    for (uint32_t step = from; step < to; step += 2) {
        const __m256i a = panel->q[step], b = panel->q[step + 1];
        const __m256i x_a = four_of_x(x, step), x_b = four_of_x(x, step + 1);
        __m256i pairs = _mm256_maddubs_epi16(a, x_a);
        if (traits.size == NUMBERS_SMALL) { /* dots are of 16 bits until the end */
            dots = _mm256_add_epi16(dots, _mm256_add_epi16(pairs, _mm256_maddubs_epi16(b, x_b)));
            continue;
        }
        if (traits.size == NUMBERS_MEDIUM) {
            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(b, x_b));
            dots = _mm256_add_epi32(dots, _mm256_madd_epi16(pairs, ones));
            continue;
        }
        pairs = _mm256_maddubs_epi16(_mm256_sign_epi8(a, a), _mm256_sign_epi8(x_a, a));
        dots = _mm256_add_epi32(dots, _mm256_madd_epi16(pairs, ones));
        pairs = _mm256_maddubs_epi16(_mm256_sign_epi8(b, b), _mm256_sign_epi8(x_b, b));
        dots = _mm256_add_epi32(dots, _mm256_madd_epi16(pairs, ones));
    }
    if (traits.size == NUMBERS_SMALL)
        dots = _mm256_madd_epi16(dots, ones);
    return corrected(dots, x, factors);
#endif
}

INLINE __m256 add_mins(__m256 sums, float x_sum, __m256 mins)
{
    return _mm256_fmadd_ps(_mm256_set1_ps(x_sum), mins, sums);
}

struct panel {
    const struct group *group;
    int16_t offset;              /* of its numbers */
    const struct panel_run *runs;
};

INLINE __m256 tile_run(const struct traits traits, __m256 sums, const struct panel_run *run,
                       const struct cpu_quant_block *x, int16_t offset)
{
    const __m256 scales = _mm256_load_ps(run->scales[0]);

    if (!traits.two_scales) {
        sums = add_run(sums, tile_products(traits, run, x, 0, STEPS,
                                           correction_factors(offset, true, true)),
                       x->scale, scales);
        return traits.mins ? add_mins(sums, x->scaled_sum, _mm256_load_ps(run->mins[0])) : sums;
    }
    sums = add_run(sums, tile_products(traits, run, x, 0, STEPS / 2,
                                       correction_factors(offset, true, false)),
                   x->scale, scales);
    if (traits.mins)
        sums = add_mins(sums, x->scale * (float)x->sums[0], _mm256_load_ps(run->mins[0]));
    sums = add_run(sums, tile_products(traits, run, x, STEPS / 2, STEPS,
                                       correction_factors(offset, false, true)),
                   x->scale, _mm256_load_ps(run->scales[1]));
    if (traits.mins)
        sums = add_mins(sums, x->scale * (float)x->sums[1], _mm256_load_ps(run->mins[1]));
    return sums;
}

INLINE void panel_tile(const struct cpu_strip *strip, const struct traits traits, const uint32_t R,
                       uint32_t row, const struct panel *panel)
{
    const uint32_t run_count = strip->k_count / QUANT_RUN_ELEMENTS;
    const struct cpu_quant_block *x[ROWS_MAX];
    __m256 sums[ROWS_MAX];

#pragma GCC unroll 8
    for (uint32_t r = 0; r < R; r++) {
        x[r] = strip->x_blocks[row + r];
        sums[r] = _mm256_setzero_ps();
    }
    for (uint32_t b = 0; b < run_count; b++) {
#pragma GCC unroll 8
        for (uint32_t r = 0; r < R; r++)
            sums[r] = tile_run(traits, sums[r], &panel->runs[b], &x[r][b], panel->offset);
    }
#pragma GCC unroll 8
    for (uint32_t r = 0; r < R; r++)
        put(strip, row + r, panel->group, sums[r]);
}

/* Tiles of ROWS_MAX, but the last two of equal height. */
INLINE void panel_rows(const struct cpu_strip *strip, const struct traits traits,
                       const struct panel *panel)
{
    uint32_t take;

    for (uint32_t row = 0; row < strip->row_count; row += take) {
        const uint32_t left = strip->row_count - row;
        take = left <= ROWS_MAX ? left : left < 2 * ROWS_MAX ? (left + 1) / 2 : ROWS_MAX;
        switch (take) {
        case 1: panel_tile(strip, traits, 1, row, panel); break;
        case 2: panel_tile(strip, traits, 2, row, panel); break;
        case 3: panel_tile(strip, traits, 3, row, panel); break;
        case 4: panel_tile(strip, traits, 4, row, panel); break;
        case 5: panel_tile(strip, traits, 5, row, panel); break;
#if ROWS_MAX > 6
        case 6: panel_tile(strip, traits, 6, row, panel); break;
        case 7: panel_tile(strip, traits, 7, row, panel); break;
#endif
        default: panel_tile(strip, traits, ROWS_MAX, row, panel); break;
        }
    }
}

#define PANEL_ROWS(name, ...)                                                                      \
    static __attribute__((noinline)) void name(const struct cpu_strip *strip,                      \
                                               const struct panel *panel)                          \
    {                                                                                              \
        panel_rows(strip, (struct traits){ __VA_ARGS__ }, panel);                                  \
    }

PANEL_ROWS(rows_plain, NUMBERS_SMALL, false, false)
PANEL_ROWS(rows_mins, NUMBERS_SMALL, true, false)
PANEL_ROWS(rows_two, NUMBERS_SMALL, false, true)
PANEL_ROWS(rows_two_mins, NUMBERS_SMALL, true, true)
#if !HAS_VNNI /* to which all sizes are the same */
PANEL_ROWS(rows_medium, NUMBERS_MEDIUM, false, false)
PANEL_ROWS(rows_medium_mins, NUMBERS_MEDIUM, true, false)
PANEL_ROWS(rows_medium_two, NUMBERS_MEDIUM, false, true)
PANEL_ROWS(rows_wide, NUMBERS_WIDE, false, false)
#endif

INLINE void multiply_panel(const struct cpu_strip *strip, const enum dtype dtype,
                           const struct panel *panel)
{
    const bool mins = has_mins(dtype), two_scales = has_two_scales(dtype);

#if !HAS_VNNI
    if (is_wide(dtype)) {
        rows_wide(strip, panel);
        return;
    }
    if (is_medium(dtype)) {
        if (mins)
            rows_medium_mins(strip, panel);
        else if (two_scales)
            rows_medium_two(strip, panel);
        else
            rows_medium(strip, panel);
        return;
    }
#endif
    if (mins && two_scales)
        rows_two_mins(strip, panel);
    else if (mins)
        rows_mins(strip, panel);
    else if (two_scales)
        rows_two(strip, panel);
    else
        rows_plain(strip, panel);
}

INLINE void multiply_group(const struct cpu_strip *strip, const enum dtype dtype,
                           const struct group *group, void *scratch)
{
    const bool fits = (uint64_t)strip->k_count / QUANT_RUN_ELEMENTS <=
                      CPU_STRIP_SCRATCH_BYTES / sizeof(struct panel_run);
    uint32_t row = 0;

    if (strip->row_count > DIRECT_ROWS_MAX && fits) {
        const struct panel panel = { group, offset_of(dtype), scratch };
        fill_panel(strip, dtype, group, scratch);
        multiply_panel(strip, dtype, &panel);
        return;
    }
    for (; row + 3 <= strip->row_count; row += 3)
        direct_group(strip, dtype, 3, row, group);
    if (row + 2 == strip->row_count)
        direct_group(strip, dtype, 2, row, group);
    if (row + 1 == strip->row_count)
        direct_group(strip, dtype, 1, row, group);
}

/* Out of line: what the compiler knows of where the rows lie makes worse loops. */
#define MULTIPLY(type)                                                                             \
    static __attribute__((noinline)) void multiply_##type(const struct cpu_strip *strip,           \
                                                          const struct group *groups,              \
                                                          uint32_t count, void *scratch)           \
    {                                                                                              \
        for (uint32_t i = 0; i < count; i++)                                                       \
            multiply_group(strip, DTYPE_##type, &groups[i], scratch);                              \
    }

CPU_QUANT_ONE_SCALE(MULTIPLY)
CPU_QUANT_TWO_SCALES(MULTIPLY)
MULTIPLY(INT4)

static void (*multiply_of(enum dtype dtype))(const struct cpu_strip *, const struct group *,
                                              uint32_t, void *)
{
    switch (dtype) {
#define CASE(type) case DTYPE_##type: return multiply_##type;
        CPU_QUANT_ONE_SCALE(CASE) CPU_QUANT_TWO_SCALES(CASE) CASE(INT4)
#undef CASE
    default: return NULL;
    }
}

/* Few rows wait for the weights to come from memory, and hardware fetches long streams best: so the
 * strip is cut into eight parts, and a group has a row of each. With short streams of adjacent rows
 * one row of x by 2048 took 2.3 times as long, with software prefetching 1.4 times (Xeon of 2023).
 * Long streams that are asked for ahead are better still: the reordering window holds fewer bytes
 * the more instructions they take. By 8192 by 2048 two threads read 29.1 GB/s of Q4_0, 29.0 of
 * Q8_0, 27.3 of Q4_K and 23.3 of Q6_K, and 33.2, 33.7, 33.7 and 31.7 when 1024 bytes are asked for
 * ahead. For many rows adjacent outputs are worth more.
 *
 * Parts that begin in one set of the first-level cache would evict each other: of 768 rows of 1152
 * bytes (Q4_0, 2048 elements) one thread of a Zen 4 read 15.4 GB/s, of 744 rows 18.5. So each part
 * has a row less then, and the last rows make groups of adjacent ones: 18.9. */
static inline uint32_t part_rows(const struct cpu_strip *strip, uint64_t row_bytes)
{
    const uint32_t rows = strip->row_count < SPREAD_ROWS_MAX ? strip->n_count / WIDTH : 0;

    return rows > 1 && rows * row_bytes % WAY_BYTES == 0 ? rows - 1 : rows;
}

static inline void multiply_any(const struct cpu_strip *strip, void *scratch)
{
    void (*multiply)(const struct cpu_strip *, const struct group *, uint32_t, void *) =
        multiply_of(strip->weight_dtype);
    const uint64_t row_bytes = dtype_row_bytes(strip->weight_dtype, strip->weight_row_stride);
    const uint32_t part = part_rows(strip, row_bytes);
    const uint32_t total = part + (strip->n_count - part * WIDTH + WIDTH - 1) / WIDTH;

    assert(multiply != NULL);
    for (uint32_t first = 0; first < total; first += GROUPS_MAX) {
        struct group groups[GROUPS_MAX];
        const uint32_t count = total - first < GROUPS_MAX ? total - first : GROUPS_MAX;
        for (uint32_t i = 0; i < count; i++) {
            const uint32_t g = first + i;
            groups[i] = g < part ? group_at(strip, row_bytes, g, part)
                                 : group_at(strip, row_bytes, part * WIDTH + (g - part) * WIDTH, 1);
        }
        multiply(strip, groups, count, scratch);
    }
}

#endif
