/* device/cpu/quant_panel.h - weight rows in groups of eight, cut into panels.
 *
 * A panel in scratch has one or two groups, run behind run. A vector of it has four elements of
 * each row, which is also how AMX wants the second factor of a product of tiles. Included by
 * quant_tiles.h and quant_amx.c. */
#ifndef LIGHTER_DEVICE_CPU_QUANT_PANEL_H
#define LIGHTER_DEVICE_CPU_QUANT_PANEL_H

#include <string.h>

#include "device/cpu/quant_types.h"

#if defined(__AVX512VNNI__)
#define GROUPS 2        /* in a panel: what fills a vector */
#else
#define GROUPS 1
#endif
#define STEPS 8         /* vectors of a run, four elements of each weight row */

struct panel_run {
    __m256i q[STEPS][GROUPS];
    float scales[2][GROUPS][WIDTH]; /* [1], and mins: only in types that have them */
    float mins[2][GROUPS][WIDTH];
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

INLINE struct group group_at(const struct cpu_strip *strip, const enum dtype dtype, uint32_t n,
                             uint32_t step)
{
    const uint64_t row_bytes = strip->weight_row_stride /
                               (QUANT_RUN_ELEMENTS * runs_per_block(dtype)) * block_bytes(dtype);
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

/* A run of a group, the place-th of the panel; each number less `less`. */
INLINE void fill_run(const enum dtype dtype, const struct group *group, uint64_t at, uint32_t half,
                     const uint32_t quarter, const struct block_scales *scales, uint32_t place,
                     int8_t less, struct panel_run *panel)
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
        panel[run].q[step][place] = _mm256_sub_epi8(steps[step], _mm256_set1_epi8(less));
    _mm256_store_ps(panel[run].scales[0][place], scales->scales[2 * run]);
    if (has_two_scales(dtype))
        _mm256_store_ps(panel[run].scales[1][place], scales->scales[2 * run + 1]);
    if (has_mins(dtype))
        _mm256_store_ps(panel[run].mins[0][place], scales->mins[2 * run]);
    if (has_mins(dtype) && has_two_scales(dtype))
        _mm256_store_ps(panel[run].mins[1][place], scales->mins[2 * run + 1]);
}

INLINE void fill_panel(const struct cpu_strip *strip, const enum dtype dtype,
                       const struct group *group, uint32_t place, int8_t less,
                       struct panel_run *panel)
{
    const uint32_t runs = runs_per_block(dtype);
    const uint32_t block_count = strip->k_count / QUANT_RUN_ELEMENTS / runs;

    for (uint32_t b = 0; b < block_count; b++, panel += runs) {
        const uint64_t at = (uint64_t)b * block_bytes(dtype);
        struct block_scales scales;
        load_scales(dtype, group, at, &scales);
        if (!has_large_blocks(dtype)) {
            fill_run(dtype, group, at, 0, 0, &scales, place, less, panel);
            continue;
        }
        for (uint32_t half = 0; half < 2; half++) {
            fill_run(dtype, group, at, half, 0, &scales, place, less, panel);
            fill_run(dtype, group, at, half, 1, &scales, place, less, panel);
            fill_run(dtype, group, at, half, 2, &scales, place, less, panel);
            fill_run(dtype, group, at, half, 3, &scales, place, less, panel);
        }
    }
}

#endif
