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
 *                      Of types with two scales a vector holds a whole run of a row.
 *     many             runs of two groups are cut into a panel: a vector holds four elements of
 *                      each of a group's rows. Then the rows of x take turns, ROWS_MAX at a time:
 *                      four elements of x, broadcast, go with a vector of either group.
 *
 * A panel knows no types any more, only whether runs have minimums, two scales, and what must be
 * taken off their numbers; so tiles are made for these traits.
 *
 * Integer products: VNNI multiplies unsigned with signed bytes and adds four of them to a lane.
 * What the numbers' offset adds too much follows from the sums of x. Without VNNI, pairs of
 * products are made in 16 bits. Eight pairs of numbers up to 16 fit there (8 * 2 * 15 * 127 =
 * 30480), and are widened once a run; two pairs of those up to 63 (2 * 2 * 63 * 127 = 32004). Of 8
 * bits it is one: the weight's sign moves to x, and each pair of at most 2 * 128 * 127 = 32512 is
 * widened at once; a panel has such weights without their signs, too.
 *
 * Instructions that a row of x takes for a run of eight weight rows, in tiles of AVX2: Q4_0 31,
 * Q4_K 35, Q6_K 43, Q8_0 44. Six rows by one group, whose sums stayed in registers, took 39 (Q4_0)
 * and 64 (Q8_0): each broadcast was for one product, and the compiler put sums off until all
 * products were made.
 *
 * One row of x by eight rows' half block takes 345 instructions with Q6_K, 455 when a vector held
 * halves of two rows, which had to be put together from two loads each. */
#ifndef LIGHTER_DEVICE_CPU_QUANT_TILES_H
#define LIGHTER_DEVICE_CPU_QUANT_TILES_H

#include <assert.h>
#include <string.h>

#include "device/cpu/quant.h"
#include "device/cpu/quant_types.h"

#if defined(__AVX512VNNI__)
#define DOT_BYTES _mm256_dpbusd_epi32
#elif defined(__AVXVNNI__)
#define DOT_BYTES _mm256_dpbusd_avx_epi32
#endif
#define ROWS_MAX 4      /* rows of x in a tile, by two groups: more dot products fit no registers */
#define PANEL_RUNS 8    /* one block of those types that have large ones */
#define DIRECT_ROWS_MAX 3 /* more are worth a panel */
#define SPREAD_ROWS_MAX 24
#define GROUPS_MAX 8    /* that one call multiplies: what begins it took 5 % of a group of 2048 */
#define STEPS 8         /* vectors of a run, four elements of each weight row */
#define WAY_BYTES 4096  /* of a first-level cache: addresses so far apart share a set */

struct panel_run {
    __m256i q[STEPS];
    __m256i sizes[STEPS];   /* without signs: only of numbers of 8 bits, where there is no VNNI */
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
    if (!HAS_VNNI && is_wide(dtype)) {
#pragma GCC unroll 8
        for (uint32_t step = 0; step < STEPS; step++)
            panel[run].sizes[step] = _mm256_abs_epi8(steps[step]);
    }
    _mm256_store_ps(panel[run].scales[0], scales->scales[2 * run]);
    if (has_two_scales(dtype))
        _mm256_store_ps(panel[run].scales[1], scales->scales[2 * run + 1]);
    if (has_mins(dtype))
        _mm256_store_ps(panel[run].mins[0], scales->mins[2 * run]);
    if (has_mins(dtype) && has_two_scales(dtype))
        _mm256_store_ps(panel[run].mins[1], scales->mins[2 * run + 1]);
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

/* What is to be added to the dot products of a row of x, in all lanes. */
INLINE __m256i correction(const struct cpu_quant_block *x, int32_t factors)
{
    return _mm256_madd_epi16(_mm256_set1_epi32(both_sums(x)), _mm256_set1_epi32(factors));
}

INLINE __m256i corrected(__m256i dots, const struct cpu_quant_block *x, int32_t factors)
{
    return factors == 0 ? dots : _mm256_add_epi32(dots, correction(x, factors));
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
    __m256i p[4];

#pragma GCC unroll 4
    for (uint32_t i = 0; i < 4; i++)
        p[i] = dot_pair(dtype, first[i], second[i], x_first, x_second);
    sums = add_run(sums, corrected(join(p), x, correction_factors(offset, true, true)), x->scale,
                   scales[0]);
    return has_mins(dtype) ? _mm256_fmadd_ps(_mm256_set1_ps(x->scaled_sum), mins[0], sums) : sums;
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

/* Two rows' products with a run of x: in each 128 bits two partial sums of either, of 16 elements.
 * Numbers of more than 6 bits would not fit. */
INLINE __m256i two_rows(__m256i a, __m256i b, __m256i x)
{
#if HAS_VNNI
    const __m256i zero = _mm256_setzero_si256();

    return _mm256_hadd_epi32(DOT_BYTES(zero, a, x), DOT_BYTES(zero, b, x));
#else
    return _mm256_madd_epi16(
        _mm256_hadd_epi16(_mm256_maddubs_epi16(a, x), _mm256_maddubs_epi16(b, x)),
        _mm256_set1_epi16(1));
#endif
}

/* A row of x by a run whose dot products are here: of four rows, first halves and second ones. */
INLINE __m256 add_halves(const enum dtype dtype, __m256 sums, const struct cpu_quant_block *x,
                         const __m256i quads[2], const __m256 *scales, const __m256 *mins)
{
    const __m256i dots[2] = { _mm256_permute2x128_si256(quads[0], quads[1], 0x20),
                              _mm256_permute2x128_si256(quads[0], quads[1], 0x31) };

#pragma GCC unroll 2
    for (uint32_t i = 0; i < 2; i++) {
        const int32_t factors = correction_factors(offset_of(dtype), i == 0, i == 1);
        sums = add_run(sums, corrected(dots[i], x, factors), x->scale, scales[i]);
        if (has_mins(dtype))
            sums = _mm256_fmadd_ps(_mm256_set1_ps(x->scale * (float)x->sums[i]), mins[i], sums);
    }
    return sums;
}

/* R rows of x by two runs, the quarter-th of the half and the next, of a type with two scales. Each
 * row is unpacked for itself, so that halves stay apart. */
INLINE void direct_two_runs(const enum dtype dtype, const uint32_t R,
                            const struct cpu_quant_block *const *x, const struct group *group,
                            uint64_t at, uint32_t half, const uint32_t quarter,
                            const struct block_scales *scales, __m256 *sums)
{
    const uint32_t run = half * QUARTERS + quarter;
    __m256i quads[DIRECT_ROWS_MAX][2][2], pairs[DIRECT_ROWS_MAX][2][2];

#pragma GCC unroll 4
    for (uint32_t pair = 0; pair < WIDTH / 2; pair++) {
        const uint8_t *const a = group->rows[2 * pair] + at;
        const uint8_t *const b = group->rows[2 * pair + 1] + at;
#pragma GCC unroll 2
        for (uint32_t i = 0; i < 2; i++) {
            const __m256i of_a = load_k_run(dtype, a, half, quarter + i);
            const __m256i of_b = load_k_run(dtype, b, half, quarter + i);
#pragma GCC unroll 3
            for (uint32_t r = 0; r < R; r++) {
                pairs[r][i][pair % 2] =
                    two_rows(of_a, of_b, load_32((const uint8_t *)x[r][run + i].q));
                if (pair % 2 == 1)
                    quads[r][i][pair / 2] = _mm256_hadd_epi32(pairs[r][i][0], pairs[r][i][1]);
            }
        }
    }
#pragma GCC unroll 3
    for (uint32_t r = 0; r < R; r++)
#pragma GCC unroll 2
        for (uint32_t i = 0; i < 2; i++)
            sums[r] = add_halves(dtype, sums[r], x[r] + run + i, quads[r][i],
                                 &scales->scales[2 * (run + i)], &scales->mins[2 * (run + i)]);
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
        if (!has_two_scales(dtype))
            direct_run(dtype, R, x, group, at, half, quarter, scales, sums);
        else if (quarter % 2 == 0)
            direct_two_runs(dtype, R, x, group, at, half, quarter, scales, sums);
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

/* Adds the products of two steps of a run with x's. Those of small numbers have 16 bits until they
 * are widened. */
INLINE __m256i add_steps(const struct traits traits, __m256i dots, const struct panel_run *run,
                         uint32_t step, __m256i x_first, __m256i x_second)
{
    const __m256i *const q = run->q + step;
#if HAS_VNNI
    (void)traits;
    return DOT_BYTES(DOT_BYTES(dots, q[0], x_first), q[1], x_second);
#else
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i pairs;

    if (traits.size == NUMBERS_WIDE) {
        const __m256i *const sizes = run->sizes + step;
        pairs = _mm256_maddubs_epi16(sizes[0], _mm256_sign_epi8(x_first, q[0]));
        dots = _mm256_add_epi32(dots, _mm256_madd_epi16(pairs, ones));
        pairs = _mm256_maddubs_epi16(sizes[1], _mm256_sign_epi8(x_second, q[1]));
        dots = _mm256_add_epi32(dots, _mm256_madd_epi16(pairs, ones));
    } else {
        pairs = _mm256_add_epi16(_mm256_maddubs_epi16(q[0], x_first),
                                 _mm256_maddubs_epi16(q[1], x_second));
        dots = traits.size == NUMBERS_SMALL
                   ? _mm256_add_epi16(dots, pairs)
                   : _mm256_add_epi32(dots, _mm256_madd_epi16(pairs, ones));
    }
    /* Or else the compiler puts the sums of all steps off, which no registers have room for. */
    __asm__("" : "+x"(dots));
    return dots;
#endif
}

INLINE __m256i widened(const struct traits traits, __m256i dots)
{
    return !HAS_VNNI && traits.size == NUMBERS_SMALL
               ? _mm256_madd_epi16(dots, _mm256_set1_epi16(1))
               : dots;
}

/* Some runs of two groups, from the first-th on. */
struct panel {
    struct panel_run runs[2][PANEL_RUNS];
    uint32_t first, count;
    int16_t offset;             /* of their numbers */
};

/* R rows of x by the steps of one scale of the i-th run of a panel, the part-th. The sums stay in
 * memory, since dot products fill the registers. */
INLINE void add_part(const struct traits traits, const uint32_t R,
                     const struct cpu_quant_block *const *x, const struct panel *panel, uint32_t i,
                     const uint32_t part, __m256 (*sums)[2])
{
    const struct panel_run *const runs[2] = { &panel->runs[0][i], &panel->runs[1][i] };
    const uint32_t b = panel->first + i, from = part * STEPS / 2;
    const uint32_t to = traits.two_scales ? from + STEPS / 2 : STEPS;
    const int32_t factors = correction_factors(panel->offset, !traits.two_scales || part == 0,
                                               !traits.two_scales || part == 1);
    const bool has_offset = HAS_VNNI || traits.size != NUMBERS_WIDE;
    __m256i dots[ROWS_MAX][2];

#pragma GCC unroll 4
    for (uint32_t r = 0; r < R; r++)
        dots[r][0] = dots[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (uint32_t step = from; step < to; step += 2) {
#pragma GCC unroll 4
        for (uint32_t r = 0; r < R; r++) {
            const __m256i x_first = four_of_x(&x[r][b], step);
            const __m256i x_second = four_of_x(&x[r][b], step + 1);
            dots[r][0] = add_steps(traits, dots[r][0], runs[0], step, x_first, x_second);
            dots[r][1] = add_steps(traits, dots[r][1], runs[1], step, x_first, x_second);
        }
    }
#pragma GCC unroll 4
    for (uint32_t r = 0; r < R; r++) {
        const struct cpu_quant_block *block = &x[r][b];
        const __m256i more = has_offset ? correction(block, factors) : _mm256_setzero_si256();
        const float x_sum = traits.two_scales ? block->scale * (float)block->sums[part]
                                              : block->scaled_sum;
#pragma GCC unroll 2
        for (uint32_t g = 0; g < 2; g++) {
            const __m256i whole = widened(traits, dots[r][g]);
            sums[r][g] = add_run(sums[r][g], has_offset ? _mm256_add_epi32(whole, more) : whole,
                                 block->scale, _mm256_load_ps(runs[g]->scales[part]));
            if (traits.mins)
                sums[r][g] = _mm256_fmadd_ps(_mm256_set1_ps(x_sum),
                                             _mm256_load_ps(runs[g]->mins[part]), sums[r][g]);
        }
    }
}

INLINE void panel_tile(const struct traits traits, const uint32_t R,
                       const struct cpu_quant_block *const *x, const struct panel *panel,
                       __m256 (*sums)[2])
{
    for (uint32_t i = 0; i < panel->count; i++) {
        add_part(traits, R, x, panel, i, 0, sums);
        if (traits.two_scales)
            add_part(traits, R, x, panel, i, 1, sums);
    }
}

/* Tiles of ROWS_MAX, but the last two of equal height. Where runs have two scales the fourth row
 * finds no registers. */
INLINE void panel_rows(const struct cpu_strip *strip, const struct traits traits,
                       const struct panel *panel, __m256 (*sums)[2])
{
    const uint32_t most = traits.two_scales ? ROWS_MAX - 1 : ROWS_MAX;
    uint32_t take;

    for (uint32_t row = 0; row < strip->row_count; row += take) {
        const struct cpu_quant_block *const *x = strip->x_blocks + row;
        const uint32_t left = strip->row_count - row;
        take = left <= most ? left : left < 2 * most ? (left + 1) / 2 : most;
        switch (take) {
        case 1: panel_tile(traits, 1, x, panel, sums + row); break;
        case 2: panel_tile(traits, 2, x, panel, sums + row); break;
        case 3: panel_tile(traits, 3, x, panel, sums + row); break;
        default: panel_tile(traits, traits.two_scales ? 3 : ROWS_MAX, x, panel, sums + row);
        }
    }
}

#define PANEL_ROWS(name, ...)                                                                      \
    static __attribute__((noinline)) void name(const struct cpu_strip *strip,                      \
                                               const struct panel *panel, __m256 (*sums)[2])       \
    {                                                                                              \
        panel_rows(strip, (struct traits){ __VA_ARGS__ }, panel, sums);                            \
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
                           const struct panel *panel, __m256 (*sums)[2])
{
    const bool mins = has_mins(dtype), two_scales = has_two_scales(dtype);

#if !HAS_VNNI
    if (is_wide(dtype)) {
        rows_wide(strip, panel, sums);
        return;
    }
    if (is_medium(dtype)) {
        if (mins)
            rows_medium_mins(strip, panel, sums);
        else if (two_scales)
            rows_medium_two(strip, panel, sums);
        else
            rows_medium(strip, panel, sums);
        return;
    }
#endif
    if (mins && two_scales)
        rows_two_mins(strip, panel, sums);
    else if (mins)
        rows_mins(strip, panel, sums);
    else if (two_scales)
        rows_two(strip, panel, sums);
    else
        rows_plain(strip, panel, sums);
}

/* The panel's runs of one of its groups. */
INLINE void fill_panel(const enum dtype dtype, const struct group *group,
                       const struct panel *panel, struct panel_run *runs)
{
    const uint32_t per_block = runs_per_block(dtype);

    for (uint32_t i = 0; i < panel->count; i += per_block) {
        const uint64_t at = (uint64_t)(panel->first + i) / per_block * block_bytes(dtype);
        struct block_scales scales;
        load_scales(dtype, group, at, &scales);
        if (!has_large_blocks(dtype)) {
            for (uint32_t row = 0; row < WIDTH; row++)
                ask_ahead(dtype, group->rows[row] + at);
            fill_run(dtype, group, at, 0, 0, &scales, runs + i);
            continue;
        }
        for (uint32_t half = 0; half < 2; half++) {
#pragma GCC unroll 4
            for (uint32_t quarter = 0; quarter < QUARTERS; quarter++) {
                ask_ahead(dtype, group->rows[half * QUARTERS + quarter] + at);
                fill_run(dtype, group, at, half, quarter, &scales, runs);
            }
        }
    }
}

/* Two groups by all rows of x, panel by panel; both may be the same. */
INLINE void multiply_pair(const struct cpu_strip *strip, const enum dtype dtype,
                          const struct group *first, const struct group *second)
{
    const uint32_t run_count = strip->k_count / QUANT_RUN_ELEMENTS;
    struct panel panel = { .offset = offset_of(dtype) };
    __m256 sums[CPU_STRIP_ROWS_MAX][2];

    for (uint32_t row = 0; row < strip->row_count; row++)
        sums[row][0] = sums[row][1] = _mm256_setzero_ps();
    for (; panel.first < run_count; panel.first += panel.count) {
        const uint32_t left = run_count - panel.first;
        panel.count = left < PANEL_RUNS ? left : PANEL_RUNS;
        for (uint32_t g = 0; g < 2; g++)
            fill_panel(dtype, g == 0 ? first : second, &panel, panel.runs[g]);
        multiply_panel(strip, dtype, &panel, sums);
    }
    for (uint32_t row = 0; row < strip->row_count; row++) {
        put(strip, row, first, sums[row][0]);
        if (second != first)
            put(strip, row, second, sums[row][1]);
    }
}

INLINE void multiply_groups(const struct cpu_strip *strip, const enum dtype dtype,
                            const struct group *groups, uint32_t count)
{
    if (strip->row_count > DIRECT_ROWS_MAX) {
        for (uint32_t i = 0; i < count; i += 2)
            multiply_pair(strip, dtype, &groups[i], &groups[i + (i + 1 < count)]);
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        switch (strip->row_count) {
        case 1: direct_group(strip, dtype, 1, 0, &groups[i]); break;
        case 2: direct_group(strip, dtype, 2, 0, &groups[i]); break;
        default: direct_group(strip, dtype, 3, 0, &groups[i]); break;
        }
    }
}

/* Out of line: what the compiler knows of where the rows lie makes worse loops. */
#define MULTIPLY(type)                                                                             \
    static __attribute__((noinline)) void multiply_##type(const struct cpu_strip *strip,           \
                                                          const struct group *groups,              \
                                                          uint32_t count)                          \
    {                                                                                              \
        multiply_groups(strip, DTYPE_##type, groups, count);                                       \
    }

CPU_QUANT_ONE_SCALE(MULTIPLY)
CPU_QUANT_TWO_SCALES(MULTIPLY)
MULTIPLY(INT4)

static void (*multiply_of(enum dtype dtype))(const struct cpu_strip *, const struct group *,
                                             uint32_t)
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

static inline void multiply_any(const struct cpu_strip *strip)
{
    void (*multiply)(const struct cpu_strip *, const struct group *, uint32_t) =
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
        multiply(strip, groups, count);
    }
}

#endif
