/* device/cpu/quant_lanes.h - quantised weights and x as AVX-512 wants them; included by
 * quant_avx512.c and quant_amx.c, which say how many rows of x are packed together.
 *
 * Sixteen weight rows are a group: the lanes of a vector are its rows, so that one FMA
 * goes on with sixteen outputs' sums (kernels.h). Some runs of a group are unpacked into a panel:
 *
 *     q[step]   four elements of each row, which is what a product of bytes adds to a lane, and
 *               how AMX wants the second factor of a product of tiles
 *     scales    of each row, and minimums
 *
 * In ROWS_16 (tensor/layout.h) the rows' bytes lie as the lanes want them: they are woven. In plain
 * rows 16 bytes of each are loaded together, four rows to a vector, and transposed as numbers of 32
 * bits while they are still packed: what a type does to its bytes then is the same in every lane.
 * Q4_0 takes 12 insertions, 8 shuffles and 12 shifts and masks for 512 weights, woven the last 12
 * alone; two such instructions start in a cycle.
 *
 * x is packed for the panels, X_ROWS rows together, run by run. */
#ifndef LIGHTER_DEVICE_CPU_QUANT_LANES_H
#define LIGHTER_DEVICE_CPU_QUANT_LANES_H

#include <assert.h>
#include <string.h>

#include "device/cpu/avx2.h"
#include "tensor/quant.h"

#define LANES 16        /* weight rows of a group */
#define STEPS 8         /* vectors of a run, four elements of each weight row */
#define QUARTERS 4      /* runs of half a large block */

/* Weight rows n, n + step, ... */
struct group {
    const uint8_t *quads[4]; /* rows 0, 4, 8 and 12; woven: all of them are at the first */
    uint64_t row_bytes;      /* from one to the next */
    uint32_t n, step;
    bool woven;              /* in ROWS_16; a constant where functions are inlined */
};

struct panel_run {
    __m512i q[STEPS];
    float scales[2][LANES]; /* [1], and mins: only in types that have them */
    float mins[2][LANES];
};

/* A run of rows of x. */
struct x_run {
    int8_t q[X_ROWS][QUANT_RUN_ELEMENTS];
    float scales[X_ROWS];
    /* Of the run, or of its halves where the type has two scales. */
    union {
        float scaled_sums[X_PARTS][X_ROWS];   /* of types with minimums */
        int32_t corrections[X_PARTS][X_ROWS]; /* of others: less what their offset adds */
    };
};

/* The types' traits as constants, where dtype is one. */
INLINE bool has_mins(const enum dtype dtype)
{
    return dtype == DTYPE_Q4_1 || dtype == DTYPE_Q5_1 || dtype == DTYPE_Q2_K ||
           dtype == DTYPE_Q4_K || dtype == DTYPE_Q5_K;
}

INLINE bool has_two_scales(const enum dtype dtype)
{
    return dtype == DTYPE_Q2_K || dtype == DTYPE_Q3_K || dtype == DTYPE_Q6_K;
}

INLINE uint32_t block_bytes(const enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_Q4_0: case DTYPE_IQ4_NL: return QUANT_Q4_0_BYTES;
    case DTYPE_Q4_1: return 20;
    case DTYPE_Q5_0: return 22;
    case DTYPE_Q5_1: return 24;
    case DTYPE_MXFP4: return 17;
    case DTYPE_INT4: return QUANT_INT4_BYTES;
    case DTYPE_Q2_K: return 84;
    case DTYPE_Q3_K: return 110;
    case DTYPE_Q4_K: return 144;
    case DTYPE_Q5_K: return 176;
    case DTYPE_Q6_K: return 210;
    case DTYPE_IQ4_XS: return 136;
    default: return QUANT_Q8_0_BYTES;
    }
}

INLINE uint32_t runs_per_block(const enum dtype dtype)
{
    return has_two_scales(dtype) || dtype == DTYPE_Q4_K || dtype == DTYPE_Q5_K ||
                   dtype == DTYPE_IQ4_XS
               ? 2 * QUARTERS
               : 1;
}

/* What is added to a type's numbers so that they are unsigned. */
INLINE int32_t offset_of(const enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_Q8_0: case DTYPE_IQ4_NL: case DTYPE_IQ4_XS: return 128;
    case DTYPE_Q4_0: return 8;
    case DTYPE_Q5_0: return 16;
    case DTYPE_Q3_K: return 4;
    case DTYPE_Q6_K: return 32;
    case DTYPE_MXFP4: return 12;
    case DTYPE_INT4: return 15;
    default: return 0;
    }
}

INLINE __m128i load_16(const uint8_t *at)
{
    return _mm_loadu_si128((const __m128i *)(const void *)at);
}

/* A word of each row of a woven group, `at` bytes into their blocks. */
INLINE __m512i load_woven(const struct group *group, uint64_t at)
{
    return _mm512_loadu_si512((const void *)(group->quads[0] + LANES * at));
}

/* 16 bytes of each row, `at` bytes into it, as four numbers of 32 bits: a vector for each. */
INLINE void load_words(const struct group *group, uint64_t at, __m512i words[4])
{
    __m512i rows[4], a, b, c, d;

    if (group->woven) {
#pragma GCC unroll 4
        for (uint32_t i = 0; i < 4; i++)
            words[i] = load_woven(group, at + 4 * i);
        return;
    }
#pragma GCC unroll 4
    for (uint32_t i = 0; i < 4; i++) {
        const uint64_t place = at + i * group->row_bytes;
        rows[i] = _mm512_castsi128_si512(load_16(group->quads[0] + place));
        rows[i] = _mm512_inserti32x4(rows[i], load_16(group->quads[1] + place), 1);
        rows[i] = _mm512_inserti32x4(rows[i], load_16(group->quads[2] + place), 2);
        rows[i] = _mm512_inserti32x4(rows[i], load_16(group->quads[3] + place), 3);
    }
    a = _mm512_unpacklo_epi32(rows[0], rows[1]);
    b = _mm512_unpacklo_epi32(rows[2], rows[3]);
    c = _mm512_unpackhi_epi32(rows[0], rows[1]);
    d = _mm512_unpackhi_epi32(rows[2], rows[3]);
    words[0] = _mm512_unpacklo_epi64(a, b);
    words[1] = _mm512_unpackhi_epi64(a, b);
    words[2] = _mm512_unpacklo_epi64(c, d);
    words[3] = _mm512_unpackhi_epi64(c, d);
}

/* The four bytes of each row that begin `at` bytes into it; the group's rows are less than 2 GiB
 * apart. Woven: of a piece of four. */
INLINE __m512i load_word(const struct group *group, uint64_t at)
{
    const __m512i row = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);

    if (group->woven)
        return load_woven(group, at);
    return _mm512_i32gather_epi32(
        _mm512_mullo_epi32(row, _mm512_set1_epi32((int32_t)group->row_bytes)),
        (const void *)(group->quads[0] + at), 1);
}

/* `mask` of what is `shift` bits up in each byte. */
INLINE __m512i fields(__m512i bytes, const uint32_t shift, uint8_t mask)
{
    return _mm512_and_si512(_mm512_srli_epi16(bytes, shift), _mm512_set1_epi8((char)mask));
}

INLINE __m512i fields_of_words(__m512i words, const uint32_t shift, uint32_t mask)
{
    return _mm512_and_si512(_mm512_srli_epi32(words, shift), _mm512_set1_epi32((int32_t)mask));
}

/* The F16 number in the lower half of each lane. */
INLINE __m512 f16_of_words(__m512i words)
{
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words));
}

/* The F16 number of each row that is a piece of two bytes. */
INLINE __m512 load_f16(const struct group *group, uint64_t at)
{
    if (group->woven)
        return _mm512_cvtph_ps(_mm256_loadu_si256(
            (const __m256i *)(const void *)(group->quads[0] + LANES * at)));
    return f16_of_words(load_word(group, at));
}

/* The byte of each row that is a piece of its own. */
INLINE __m512i load_byte(const struct group *group, uint64_t at)
{
    if (group->woven)
        return _mm512_cvtepu8_epi32(load_16(group->quads[0] + LANES * at));
    return fields_of_words(load_word(group, at), 0, 255);
}

/* ---- numbers ---- */

/* What a type's numbers 0..15 mean, made unsigned. */
INLINE __m512i value_table(const enum dtype dtype)
{
    const int8_t *values = dtype == DTYPE_MXFP4 ? quant_mxfp4_values : quant_iq4_values;

    return _mm512_add_epi8(_mm512_broadcast_i32x4(load_16((const uint8_t *)values)),
                           _mm512_set1_epi8((char)offset_of(dtype)));
}

/* 16 bytes of halves, `at` bytes into the rows. */
INLINE void load_halves(const enum dtype dtype, const struct group *group, uint64_t at,
                        __m512i q[STEPS])
{
    __m512i words[4];

    load_words(group, at, words);
#pragma GCC unroll 4
    for (uint32_t i = 0; i < 4; i++) {
        q[i] = fields(words[i], 0, 15);
        q[4 + i] = fields(words[i], 4, 15);
        if (dtype == DTYPE_IQ4_NL || dtype == DTYPE_IQ4_XS || dtype == DTYPE_MXFP4) {
            q[i] = _mm512_shuffle_epi8(value_table(dtype), q[i]);
            q[4 + i] = _mm512_shuffle_epi8(value_table(dtype), q[4 + i]);
        }
    }
}

/* 16 where the element's bit is set of the 32 that each row has `at` bytes into it. */
INLINE void add_fifth_bits(const struct group *group, uint64_t at, __m512i q[STEPS])
{
    const __m512i bits = load_word(group, at);

#pragma GCC unroll 8
    for (uint32_t step = 0; step < STEPS; step++) {
        const __m128i first = _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
        const __m512i order =
            _mm512_broadcast_i32x4(_mm_add_epi8(first, _mm_set1_epi8((char)(step / 2))));
        const __m512i bit = _mm512_set1_epi32(step % 2 == 0 ? 0x08040201 : (int32_t)0x80402010u);
        const __mmask64 set = _mm512_test_epi8_mask(_mm512_shuffle_epi8(bits, order), bit);
        q[step] = _mm512_mask_add_epi8(q[step], set, q[step], _mm512_set1_epi8(16));
    }
}

/* The numbers of a block that is one run. */
INLINE void load_small(const enum dtype dtype, const struct group *group, uint64_t at,
                       __m512i q[STEPS])
{
    const uint32_t bytes = block_bytes(dtype);

    if (dtype == DTYPE_Q8_0) {
        load_words(group, at + 2, q);
        load_words(group, at + 18, q + 4);
#pragma GCC unroll 8
        for (uint32_t step = 0; step < STEPS; step++)
            q[step] = _mm512_xor_si512(q[step], _mm512_set1_epi8(-128));
        return;
    }
    load_halves(dtype, group, at + bytes - 16, q);
    if (dtype == DTYPE_Q5_0 || dtype == DTYPE_Q5_1)
        add_fifth_bits(group, at + bytes - 20, q);
    if (dtype == DTYPE_INT4) { /* 15 - z more makes them unsigned */
        const __m512i zeros = fields_of_words(load_byte(group, at + 2), 0, 15);
        const __m512i more = _mm512_mullo_epi32(_mm512_sub_epi32(_mm512_set1_epi32(15), zeros),
                                                _mm512_set1_epi32(0x01010101));
#pragma GCC unroll 8
        for (uint32_t step = 0; step < STEPS; step++)
            q[step] = _mm512_add_epi8(q[step], more);
    }
}

/* What half a block of 256 has: words with two or four numbers' lower bits, and upper ones. Woven
 * ones are loaded when they are used, since so many registers there are not. */
struct half_words {
    const struct group *group;
    uint64_t low_at, high_at;
    __m128i shift;              /* of the upper ones, in types with a bit for each run of a block */
    __m512i low[4 * QUARTERS], high[2 * QUARTERS];
};

INLINE void load_sixteens(const struct group *group, uint64_t at, const uint32_t count,
                          __m512i *words)
{
#pragma GCC unroll 4
    for (uint32_t i = 0; i < count; i++)
        load_words(group, at + 16 * i, words + 4 * i);
}

INLINE void load_half(const enum dtype dtype, const struct group *group, uint64_t at, uint32_t half,
                      struct half_words *words)
{
    const bool woven = group->woven;
    uint32_t low_at = 16 + half * 64, low_count = 4, high_at = 0, high_count = 2;

    words->group = group;
    words->shift = _mm_cvtsi32_si128(dtype == DTYPE_Q6_K ? 0 : (int32_t)half * 4);
    switch (dtype) {
    case DTYPE_Q2_K: low_at = (woven ? 20 : 16) + half * 32; low_count = 2; high_count = 0; break;
    case DTYPE_Q3_K:
        low_at = (woven ? 46 : 32) + half * 32;
        low_count = 2;
        high_at = woven ? 14 : 0;
        break;
    case DTYPE_Q6_K:
        low_at = woven ? 18 + half * 96 : half * 64;
        high_at = woven ? low_at + 4 : 128 + half * 32;
        break;
    case DTYPE_Q5_K: low_at = 48 + half * 64; high_at = 16; break;
    default: high_count = 0;
    }
    words->low_at = at + low_at;
    words->high_at = at + high_at;
    if (woven)
        return;
    load_sixteens(group, words->low_at, low_count, words->low);
    load_sixteens(group, words->high_at, high_count, words->high);
}

/* Woven, eight of Q6_K's words have a word of upper bits behind them. */
INLINE __m512i low_word(const enum dtype dtype, const struct half_words *words, const uint32_t i)
{
    const uint32_t between = dtype != DTYPE_Q6_K ? 0 : i < STEPS ? 4 * i : 4 * STEPS;

    return words->group->woven ? load_woven(words->group, words->low_at + 4 * i + between)
                               : words->low[i];
}

INLINE __m512i high_word(const enum dtype dtype, const struct half_words *words, const uint32_t i)
{
    const uint32_t step = dtype == DTYPE_Q6_K ? 8 : 4;

    return words->group->woven ? load_woven(words->group, words->high_at + step * i)
                               : words->high[i];
}

/* The same less the bits of the other half's runs. */
INLINE __m512i high_bits(const enum dtype dtype, const struct half_words *words, const uint32_t i)
{
    return _mm512_srl_epi16(high_word(dtype, words, i), words->shift);
}

/* Four numbers of a run, the quarter-th of the half. */
INLINE __m512i number_step(const enum dtype dtype, const struct half_words *words,
                           const uint32_t quarter, const uint32_t step)
{
    const uint32_t pair = quarter / 2 * STEPS;
    __m512i bit;

    switch (dtype) {
    case DTYPE_Q2_K: return fields(low_word(dtype, words, step), 2 * quarter, 3);
    case DTYPE_Q3_K:
        bit = fields(high_bits(dtype, words, step), quarter, 1);
        return _mm512_or_si512(fields(low_word(dtype, words, step), 2 * quarter, 3),
                               _mm512_slli_epi16(bit, 2));
    case DTYPE_Q6_K:
        return _mm512_or_si512(
            fields(low_word(dtype, words, quarter % 2 * STEPS + step), quarter / 2 * 4, 15),
            _mm512_slli_epi16(fields(high_word(dtype, words, step), 2 * quarter, 3), 4));
    case DTYPE_Q5_K:
        bit = fields(high_bits(dtype, words, step), quarter, 1);
        return _mm512_or_si512(fields(low_word(dtype, words, pair + step), quarter % 2 * 4, 15),
                               _mm512_slli_epi16(bit, 4));
    default: return fields(low_word(dtype, words, pair + step), quarter % 2 * 4, 15);
    }
}

/* The numbers of a block's run, the quarter-th of its half. Those of half a large block are loaded
 * with its first. */
INLINE void load_run(const enum dtype dtype, const struct group *group, uint64_t at, uint32_t half,
                     const uint32_t quarter, struct half_words *words, __m512i q[STEPS])
{
    if (runs_per_block(dtype) == 1) {
        load_small(dtype, group, at, q);
        return;
    }
    if (dtype == DTYPE_IQ4_XS) {
        load_halves(dtype, group, at + 8 + 16 * (half * QUARTERS + quarter), q);
        return;
    }
    if (quarter == 0)
        load_half(dtype, group, at, half, words);
#pragma GCC unroll 8
    for (uint32_t step = 0; step < STEPS; step++)
        q[step] = number_step(dtype, words, quarter, step);
}

/* ---- scales ---- */

/* MXFP4's: 2^(e - 128), of which the least two are subnormal. */
INLINE __m512 exponent_scales(__m512i e)
{
    const __m512i one = _mm512_set1_epi32(1);
    const __m512i small = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
    const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, one), 23);

    return _mm512_castsi512_ps(
        _mm512_mask_mov_epi32(normal, _mm512_cmple_epu32_mask(e, one), small));
}

INLINE void load_small_scales(const enum dtype dtype, const struct group *group, uint64_t at,
                              struct panel_run *panel)
{
    if (dtype == DTYPE_MXFP4) {
        _mm512_storeu_ps(panel->scales[0], exponent_scales(load_byte(group, at)));
    } else if (has_mins(dtype)) {
        const __m512i word = load_word(group, at);
        _mm512_storeu_ps(panel->scales[0], f16_of_words(word));
        _mm512_storeu_ps(panel->mins[0], f16_of_words(_mm512_srli_epi32(word, 16)));
    } else {
        _mm512_storeu_ps(panel->scales[0], load_f16(group, at));
    }
}

/* factor times byte i of the words, less `offset`. */
INLINE __m512 scale_byte(__m512i words, const uint32_t i, int32_t offset, __m512 factor)
{
    return _mm512_mul_ps(
        _mm512_cvtepi32_ps(_mm512_sub_epi32(fields_of_words(words, 8 * i, 255),
                                            _mm512_set1_epi32(offset))), factor);
}

/* Four bytes: two bits of each 4-bit field of `low` below two bits of `high`. */
INLINE __m512i six_bits(__m512i low, const uint32_t low_shift, __m512i high,
                        const uint32_t high_shift)
{
    return _mm512_or_si512(
        fields_of_words(low, low_shift, 0x0F0F0F0F),
        _mm512_slli_epi32(fields_of_words(high, high_shift, 0x03030303), 4));
}

INLINE __m512 negative(__m512 values)
{
    return _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(values),
                                                _mm512_set1_epi32(INT32_MIN)));
}

INLINE void load_k45_scales(const struct group *group, uint64_t at, struct panel_run *panel)
{
    __m512i w[4]; /* d and dmin, then the 12 bytes */
    __m512i scales[2], mins[2];
    __m512 d, less;

    load_words(group, at, w);
    d = f16_of_words(w[0]);
    less = negative(f16_of_words(_mm512_srli_epi32(w[0], 16)));
    scales[0] = fields_of_words(w[1], 0, 0x3F3F3F3F);
    scales[1] = six_bits(w[3], 0, w[1], 6);
    mins[0] = fields_of_words(w[2], 0, 0x3F3F3F3F);
    mins[1] = six_bits(w[3], 4, w[2], 6);
#pragma GCC unroll 8
    for (uint32_t r = 0; r < 2 * QUARTERS; r++) {
        _mm512_storeu_ps(panel[r].scales[0], scale_byte(scales[r / 4], r % 4, 0, d));
        _mm512_storeu_ps(panel[r].mins[0], scale_byte(mins[r / 4], r % 4, 0, less));
    }
}

INLINE void load_k3_scales(const struct group *group, uint64_t at, struct panel_run *panel)
{
    __m512i w[4], bytes[4];
    __m512 d;

    if (group->woven) {
        d = load_f16(group, at);
#pragma GCC unroll 3
        for (uint32_t i = 0; i < 3; i++)
            bytes[i] = load_woven(group, at + 2 + 4 * i);
    } else {
        load_words(group, at + 94, w); /* two bytes early, so as not to read behind the block */
#pragma GCC unroll 4
        for (uint32_t i = 0; i < 4; i++)
            bytes[i] = _mm512_or_si512(_mm512_srli_epi32(w[i], 16),
                                       i < 3 ? _mm512_slli_epi32(w[i + 1], 16)
                                             : _mm512_setzero_si512());
        d = f16_of_words(bytes[3]);
    }
#pragma GCC unroll 4
    for (uint32_t i = 0; i < 4; i++) {
        const __m512i six = six_bits(bytes[i % 2], i / 2 * 4, bytes[2], 2 * i);
#pragma GCC unroll 4
        for (uint32_t j = 0; j < 4; j++)
            _mm512_storeu_ps(panel[2 * i + j / 2].scales[j % 2], scale_byte(six, j, 32, d));
    }
}

/* Q2_K's and Q6_K's sixteen bytes. */
INLINE void load_byte_scales(const enum dtype dtype, const struct group *group, uint64_t at,
                             struct panel_run *panel)
{
    const bool q2 = dtype == DTYPE_Q2_K;
    const __m512i flip = _mm512_set1_epi8(-128); /* signed, as unsigned less 128 */
    const uint32_t scales_at = group->woven ? (q2 ? 4 : 2) : q2 ? 0 : 192;
    __m512 d, less = _mm512_setzero_ps();
    __m512i w[4];

    if (q2) {
        const __m512i factors = load_word(group, at + (group->woven ? 0 : 80));
        d = f16_of_words(factors);
        less = negative(f16_of_words(_mm512_srli_epi32(factors, 16)));
    } else if (group->woven) {
        d = load_f16(group, at);
    } else { /* two bytes early, so as not to read behind the block */
        d = f16_of_words(_mm512_srli_epi32(load_word(group, at + 206), 16));
    }
    load_words(group, at + scales_at, w);
#pragma GCC unroll 4
    for (uint32_t i = 0; i < 4; i++) {
        const __m512i bytes = q2 ? fields_of_words(w[i], 0, 0x0F0F0F0F)
                                 : _mm512_xor_si512(w[i], flip);
#pragma GCC unroll 4
        for (uint32_t j = 0; j < 4; j++) {
            struct panel_run *run = &panel[2 * i + j / 2];
            _mm512_storeu_ps(run->scales[j % 2], scale_byte(bytes, j, q2 ? 0 : 128, d));
            if (q2)
                _mm512_storeu_ps(run->mins[j % 2],
                                 scale_byte(fields_of_words(w[i], 4, 0x0F0F0F0F), j, 0, less));
        }
    }
}

INLINE void load_iq4_xs_scales(const struct group *group, uint64_t at, struct panel_run *panel)
{
    const __m512i first = load_word(group, at), low = load_word(group, at + 4);
    const __m512 d = f16_of_words(first);

#pragma GCC unroll 8
    for (uint32_t i = 0; i < 2 * QUARTERS; i++) {
        const __m512i s =
            _mm512_or_si512(fields_of_words(low, 4 * i, 15),
                            _mm512_slli_epi32(fields_of_words(first, 16 + 2 * i, 3), 4));
        _mm512_storeu_ps(panel[i].scales[0], scale_byte(s, 0, 32, d));
    }
}

/* Of all runs of a block. */
INLINE void load_scales(const enum dtype dtype, const struct group *group, uint64_t at,
                        struct panel_run *panel)
{
    switch (dtype) {
    case DTYPE_Q2_K: case DTYPE_Q6_K: load_byte_scales(dtype, group, at, panel); break;
    case DTYPE_Q3_K: load_k3_scales(group, at, panel); break;
    case DTYPE_Q4_K: case DTYPE_Q5_K: load_k45_scales(group, at, panel); break;
    case DTYPE_IQ4_XS: load_iq4_xs_scales(group, at, panel); break;
    default: load_small_scales(dtype, group, at, panel);
    }
}

/* ---- panels ---- */

INLINE struct group group_at(const struct cpu_strip *strip, const enum dtype dtype,
                             const bool woven, uint32_t n, uint32_t step)
{
    const uint64_t row_bytes = strip->weight_row_stride /
                               (QUANT_RUN_ELEMENTS * runs_per_block(dtype)) * block_bytes(dtype);
    struct group group = { .row_bytes = step * row_bytes, .n = n, .step = step, .woven = woven };

    for (uint32_t i = 0; i < 4; i++)
        group.quads[i] = (const uint8_t *)strip->weight + (n + 4 * i * step) * row_bytes;
    return group;
}

/* Without the offset that makes numbers unsigned. */
INLINE __m512i as_signed(const enum dtype dtype, __m512i q)
{
    const int32_t offset = offset_of(dtype);

    if (offset == 128)
        return _mm512_xor_si512(q, _mm512_set1_epi8(-128));
    return offset == 0 ? q : _mm512_sub_epi8(q, _mm512_set1_epi8((char)offset));
}

/* A block of the group, `at` bytes into its rows. */
INLINE void fill_block(const enum dtype dtype, const struct group *group, uint64_t at,
                       struct panel_run *panel, const bool is_signed)
{
    const uint32_t runs = runs_per_block(dtype);
    struct half_words words;

    load_scales(dtype, group, at, panel);
    for (uint32_t half = 0; half * QUARTERS < runs; half++) {
#pragma GCC unroll 4
        for (uint32_t quarter = 0; quarter < QUARTERS && quarter < runs; quarter++, panel++) {
            __m512i q[STEPS];
            load_run(dtype, group, at, half, quarter, &words, q);
#pragma GCC unroll 8
            for (uint32_t step = 0; step < STEPS; step++)
                panel->q[step] = is_signed ? as_signed(dtype, q[step]) : q[step];
        }
    }
}

/* Blocks [first, end) of the group. */
INLINE void fill_panel(const enum dtype dtype, const struct group *group, uint32_t first,
                       uint32_t end, struct panel_run *panel, const bool is_signed)
{
    const uint32_t bytes = block_bytes(dtype);

    for (uint32_t b = first; b < end; b++, panel += runs_per_block(dtype))
        fill_block(dtype, group, (uint64_t)b * bytes, panel, is_signed);
}

/* ---- x ---- */

INLINE void pack_sums(const enum dtype dtype, const struct cpu_quant_block *x, struct x_run *out,
                      uint32_t row)
{
    if (has_mins(dtype) && has_two_scales(dtype)) {
        out->scaled_sums[0][row] = x->scale * (float)x->sums[0];
        out->scaled_sums[X_PARTS - 1][row] = x->scale * (float)x->sums[1];
    } else if (has_mins(dtype)) {
        out->scaled_sums[0][row] = x->scaled_sum;
    } else if (has_two_scales(dtype)) {
        out->corrections[0][row] = x->sums[0] * -offset_of(dtype);
        out->corrections[X_PARTS - 1][row] = x->sums[1] * -offset_of(dtype);
    } else {
        out->corrections[0][row] = (x->sums[0] + x->sums[1]) * -offset_of(dtype);
    }
}

/* The strip's rows of x: X_ROWS by X_ROWS, each such rows' runs. What the last ones have room for
 * beyond the strip's rows is left alone. */
INLINE void pack_x(const enum dtype dtype, const struct cpu_strip *strip, struct x_run *out)
{
    const uint32_t run_count = strip->k_count / QUANT_RUN_ELEMENTS;

    for (uint32_t row = 0; row < strip->row_count; row++) {
        const struct cpu_quant_block *x = strip->x_blocks[row];
        struct x_run *run = out + (uint64_t)(row / X_ROWS) * run_count;
        const uint32_t r = row % X_ROWS;
        for (uint32_t b = 0; b < run_count; b++) {
            _mm256_storeu_si256((__m256i *)(void *)run[b].q[r],
                                _mm256_loadu_si256((const __m256i *)(const void *)x[b].q));
            run[b].scales[r] = x[b].scale;
            pack_sums(dtype, &x[b], &run[b], r);
        }
    }
}

/* ---- the strip ---- */

/* A row's sixteen outputs. */
INLINE void put(const struct cpu_strip *strip, uint32_t row, const struct group *group, __m512 sums)
{
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i places = _mm512_mullo_epi32(lane, _mm512_set1_epi32((int32_t)group->step));
    float *out = strip->out + row * strip->out_row_stride + group->n;

    if (strip->bias != NULL)
        sums = _mm512_add_ps(sums, _mm512_i32gather_ps(places, strip->bias + group->n, 4));
    if (group->step == 1) {
        if (strip->accumulate)
            sums = _mm512_add_ps(_mm512_loadu_ps(out), sums);
        _mm512_storeu_ps(out, sums);
        return;
    }
    if (strip->accumulate)
        sums = _mm512_add_ps(_mm512_i32gather_ps(places, out, 4), sums);
    _mm512_i32scatter_ps(out, places, sums, 4);
}

/* How many rows of x scratch has room for beside so many runs of a panel. */
static inline uint32_t rows_that_fit(const struct cpu_strip *strip, uint32_t panel_runs)
{
    const uint64_t run_count = strip->k_count / QUANT_RUN_ELEMENTS;
    const uint64_t panel_bytes = panel_runs * sizeof(struct panel_run);

    return panel_bytes > CPU_STRIP_SCRATCH_BYTES
               ? 0
               : (uint32_t)((CPU_STRIP_SCRATCH_BYTES - panel_bytes) /
                            (run_count * sizeof(struct x_run)) * X_ROWS);
}

/* Whole groups by `most` rows of x at a time, and what fills no group, or all if no row fits or
 * `multiply` is NULL, the way of quant_tiles.h. */
static inline void multiply_parts(const struct cpu_strip *strip, uint32_t most,
                                  void (*multiply)(const struct cpu_strip *, void *),
                                  void *scratch)
{
    const uint32_t whole =
        most == 0 || multiply == NULL ? 0 : strip->n_count / LANES * LANES;
    struct cpu_strip part = *strip;

    part.n_count = whole;
    for (uint32_t row = 0; whole > 0 && row < strip->row_count; row += part.row_count) {
        const uint32_t left = strip->row_count - row;
        part.row_count = left < most ? left : most;
        part.x_blocks = strip->x_blocks + row;
        part.out = strip->out + row * strip->out_row_stride;
        multiply(&part, scratch);
    }
    if (whole == strip->n_count)
        return;
    part = *strip;
    part.n_count -= whole;
    part.out += whole;
    part.bias = strip->bias == NULL ? NULL : strip->bias + whole;
    part.weight = (const char *)strip->weight +
                  whole * dtype_row_bytes(strip->weight_dtype, strip->weight_row_stride);
    cpu__matmul_quant_avx512_narrow(&part, scratch);
}

#endif
