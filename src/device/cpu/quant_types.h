/* device/cpu/quant_types.h - runs of quantised weights in vector registers, eight rows at a time.
 *
 * What tensor/quant.h says element by element, for the eight rows of a group at once; included by
 * quant_tiles.h. Two things are made of a run:
 *
 *     numbers   pairs of vectors for rows i (lower 128 bits) and i + 4 (upper): elements 0..15, and
 *               16..31; of types with K also a vector with a row's 32. They are unsigned,
 *               quant_offset() too large, as VNNI wants them; without VNNI those of 8 bits stay
 *               signed
 *     scales    vectors with a lane for each row, and so minimums
 *
 * Of types with blocks of 256 the scales of eight runs are made together: the 16 bytes that hold
 * them are loaded for each row and transposed as four numbers of 32 bits, so that a vector has the
 * same four scales of all eight rows, and shifts and masks unpack them. Unpacking a block of eight
 * rows takes about 110 instructions with Q4_K, 14 for each run, beside some 60 for its products.
 *
 * A run is the quarter-th of a block's half: the half is counted when the program runs, the
 * quarter is a constant where it is unrolled, since it says by how many bits to shift. */
#ifndef LIGHTER_DEVICE_CPU_QUANT_TYPES_H
#define LIGHTER_DEVICE_CPU_QUANT_TYPES_H

#include <string.h>

#include "device/cpu/avx2.h"
#include "tensor/quant.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define HAS_VNNI 1
#else
#define HAS_VNNI 0
#endif
#define WIDTH 8         /* weight rows of a group */
#define QUARTERS 4      /* runs of half a block */

/* Eight weight rows: n, n + step, ... The last of a strip may be fewer; then the last one is there
 * several times. */
struct group {
    const uint8_t *rows[WIDTH];
    uint32_t n, step, count;
};

/* Of the runs of a block; types with one scale leave the second of each pair alone. */
struct block_scales {
    __m256 scales[2 * 2 * QUARTERS], mins[2 * 2 * QUARTERS];
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

INLINE bool has_large_blocks(const enum dtype dtype)
{
    return has_two_scales(dtype) || dtype == DTYPE_Q4_K || dtype == DTYPE_Q5_K ||
           dtype == DTYPE_IQ4_XS;
}

/* Numbers of 8 bits, of which two products with x fill 16 bits. */
INLINE bool is_wide(const enum dtype dtype)
{
    return dtype == DTYPE_Q8_0 || dtype == DTYPE_IQ4_NL || dtype == DTYPE_IQ4_XS;
}

/* Numbers of more than 4 bits, of which four products with x do. */
INLINE bool is_medium(const enum dtype dtype)
{
    return dtype == DTYPE_Q5_0 || dtype == DTYPE_Q5_1 || dtype == DTYPE_Q5_K ||
           dtype == DTYPE_Q6_K || dtype == DTYPE_MXFP4 || dtype == DTYPE_INT4;
}

INLINE uint32_t block_bytes(const enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_Q4_0: case DTYPE_IQ4_NL: return 18;
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

INLINE __m128i load_16(const uint8_t *at)
{
    return _mm_loadu_si128((const __m128i *)(const void *)at);
}

INLINE __m256i load_halves(const uint8_t *low, const uint8_t *high)
{
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load_16(low)), load_16(high), 1);
}

/* Of 32 bits of each row the 16 from `from` on (0 or 16), as bytes: 16 where the bit is set. */
INLINE __m256i spread_bits(const uint8_t *low, const uint8_t *high, const uint32_t from)
{
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201u);
    const char a = (char)(from / 8), b = (char)(from / 8 + 1);
    const __m128i order = _mm_setr_epi8(a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b);
    int32_t words[2];
    __m256i both;

    memcpy(&words[0], low, sizeof(words[0]));
    memcpy(&words[1], high, sizeof(words[1]));
    both = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_cvtsi32_si128(words[0])),
                                   _mm_cvtsi32_si128(words[1]), 1);
    both = _mm256_shuffle_epi8(both, _mm256_broadcastsi128_si256(order));
    both = _mm256_cmpeq_epi8(_mm256_and_si256(both, bit), bit);
    return _mm256_and_si256(both, _mm256_set1_epi8(16));
}

/* What a type's numbers 0..15 mean; unsigned where VNNI multiplies them. */
INLINE __m256i value_table(const enum dtype dtype)
{
    if (dtype == DTYPE_MXFP4)
        return _mm256_add_epi8(
            _mm256_broadcastsi128_si256(load_16((const uint8_t *)quant_mxfp4_values)),
            _mm256_set1_epi8(12));
    return _mm256_xor_si256(
        _mm256_broadcastsi128_si256(load_16((const uint8_t *)quant_iq4_values)),
        _mm256_set1_epi8(HAS_VNNI ? -128 : 0));
}

INLINE bool has_table(const enum dtype dtype)
{
    return dtype == DTYPE_IQ4_NL || dtype == DTYPE_IQ4_XS || dtype == DTYPE_MXFP4;
}

/* Where a block's 16 bytes of halves begin, in types that have them run by run. */
INLINE uint32_t halves_at(const enum dtype dtype, uint32_t run)
{
    switch (dtype) {
    case DTYPE_MXFP4: return 1;
    case DTYPE_INT4: return 3;
    case DTYPE_Q4_1: return 4;
    case DTYPE_Q5_0: return 6;
    case DTYPE_IQ4_XS: return 8 + 16 * run;
    case DTYPE_Q5_1: return 8;
    default: return 2;
    }
}

/* INT4's zero points, as what makes the numbers unsigned: 15 - z for each byte of the two rows. */
INLINE __m256i zeros_left(const uint8_t *low, const uint8_t *high)
{
    const __m128i first = _mm_set1_epi8((char)(15 - (low[2] & 15)));

    return _mm256_inserti128_si256(_mm256_castsi128_si256(first),
                                   _mm_set1_epi8((char)(15 - (high[2] & 15))), 1);
}

INLINE void load_small_pair(const enum dtype dtype, const uint8_t *low, const uint8_t *high,
                            uint32_t run, __m256i *first, __m256i *second)
{
    const uint32_t at = halves_at(dtype, run);
    const __m256i both = load_halves(low + at, high + at);
    const __m256i mask = _mm256_set1_epi8(15);

    *first = _mm256_and_si256(both, mask);
    *second = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
    if (has_table(dtype)) {
        *first = _mm256_shuffle_epi8(value_table(dtype), *first);
        *second = _mm256_shuffle_epi8(value_table(dtype), *second);
    }
    if (dtype == DTYPE_INT4) {
        *first = _mm256_add_epi8(*first, zeros_left(low, high));
        *second = _mm256_add_epi8(*second, zeros_left(low, high));
    }
    if (dtype == DTYPE_Q5_0 || dtype == DTYPE_Q5_1) {
        const uint32_t bits = dtype == DTYPE_Q5_0 ? 2 : 4;
        *first = _mm256_or_si256(*first, spread_bits(low + bits, high + bits, 0));
        *second = _mm256_or_si256(*second, spread_bits(low + bits, high + bits, 16));
    }
}

/* Where the bytes with a run's lower bits begin in blocks with K, and those with upper ones. */
INLINE uint32_t k_low_at(const enum dtype dtype, uint32_t half, const uint32_t quarter)
{
    switch (dtype) {
    case DTYPE_Q2_K: return 16 + half * 32;
    case DTYPE_Q3_K: return 32 + half * 32;
    case DTYPE_Q6_K: return half * 64 + quarter % 2 * 32;
    case DTYPE_Q5_K: return 48 + half * 64 + quarter / 2 * 32;
    default: return 16 + half * 64 + quarter / 2 * 32;
    }
}

INLINE uint32_t k_high_at(const enum dtype dtype, uint32_t half)
{
    return dtype == DTYPE_Q6_K ? 128 + half * 32 : dtype == DTYPE_Q5_K ? 16 : 0;
}

/* `mask` of what has moved `up` bits in each byte, or down. */
INLINE __m256i moved(__m256i bytes, const int up, uint8_t mask)
{
    return _mm256_and_si256(up > 0 ? _mm256_slli_epi16(bytes, up) : _mm256_srli_epi16(bytes, -up),
                            _mm256_set1_epi8((char)mask));
}

/* Numbers of a run, from those bytes. */
INLINE __m256i k_numbers(const enum dtype dtype, uint32_t half, const uint32_t quarter,
                         __m256i low, __m256i high)
{
    const int q = (int)quarter;

    if (dtype == DTYPE_Q3_K || dtype == DTYPE_Q5_K) /* bits of the other half's runs go */
        high = _mm256_srl_epi16(high, _mm_cvtsi32_si128((int)half * QUARTERS));
    switch (dtype) {
    case DTYPE_Q2_K: return moved(low, -2 * q, 3);
    case DTYPE_Q3_K: return _mm256_or_si256(moved(low, -2 * q, 3), moved(high, 2 - q, 4));
    case DTYPE_Q6_K:
        return _mm256_or_si256(moved(high, 4 - 2 * q, 0x30), moved(low, q / 2 * -4, 15));
    case DTYPE_Q5_K: return _mm256_or_si256(moved(low, q % 2 * -4, 15), moved(high, 4 - q, 16));
    default: return moved(low, q % 2 * -4, 15);
    }
}

/* Sixteen elements of two rows from 16 * part on. */
INLINE __m256i load_k_part(const enum dtype dtype, const uint8_t *low, const uint8_t *high,
                           uint32_t half, const uint32_t quarter, const uint32_t part)
{
    const uint32_t low_at = k_low_at(dtype, half, quarter) + 16 * part;
    const uint32_t high_at = k_high_at(dtype, half) + 16 * part;

    return k_numbers(dtype, half, quarter, load_halves(low + low_at, high + low_at),
                     load_halves(low + high_at, high + high_at));
}

INLINE __m256i load_32(const uint8_t *at)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)at);
}

/* A run of one row. */
INLINE __m256i load_k_run(const enum dtype dtype, const uint8_t *block, uint32_t half,
                          const uint32_t quarter)
{
    return k_numbers(dtype, half, quarter, load_32(block + k_low_at(dtype, half, quarter)),
                     load_32(block + k_high_at(dtype, half)));
}

/* Elements 0..15 and 16..31 of a run of rows i (low) and i + 4 (high), whose blocks are `at` bytes
 * into their rows. */
INLINE void load_pair(const enum dtype dtype, const struct group *group, uint64_t at, uint32_t i,
                      uint32_t half, const uint32_t quarter, __m256i *first, __m256i *second)
{
    const uint8_t *low = group->rows[i] + at, *high = group->rows[i + 4] + at;

    if (dtype == DTYPE_Q8_0) {
        const __m256i flip = _mm256_set1_epi8(HAS_VNNI ? -128 : 0);
        *first = _mm256_xor_si256(load_halves(low + 2, high + 2), flip);
        *second = _mm256_xor_si256(load_halves(low + 18, high + 18), flip);
    } else if (has_large_blocks(dtype) && dtype != DTYPE_IQ4_XS) {
        *first = load_k_part(dtype, low, high, half, quarter, 0);
        *second = load_k_part(dtype, low, high, half, quarter, 1);
    } else {
        load_small_pair(dtype, low, high, half * QUARTERS + quarter, first, second);
    }
}

/* The F16 numbers `at` bytes into the rows. */
INLINE __m256 load_f16(const struct group *group, uint64_t at)
{
    __m128i halves = _mm_setzero_si128();
    uint16_t bits[WIDTH];

    for (uint32_t i = 0; i < WIDTH; i++)
        memcpy(&bits[i], group->rows[i] + at, sizeof(bits[i]));
    halves = _mm_insert_epi16(halves, bits[0], 0);
    halves = _mm_insert_epi16(halves, bits[1], 1);
    halves = _mm_insert_epi16(halves, bits[2], 2);
    halves = _mm_insert_epi16(halves, bits[3], 3);
    halves = _mm_insert_epi16(halves, bits[4], 4);
    halves = _mm_insert_epi16(halves, bits[5], 5);
    halves = _mm_insert_epi16(halves, bits[6], 6);
    halves = _mm_insert_epi16(halves, bits[7], 7);
    return _mm256_cvtph_ps(halves);
}

/* Of types whose blocks are one run. */
INLINE void load_small_scales(const enum dtype dtype, const struct group *group, uint64_t at,
                              struct block_scales *scales)
{
    if (dtype == DTYPE_MXFP4) {
        float values[WIDTH];
        for (uint32_t i = 0; i < WIDTH; i++)
            values[i] = quant_mxfp4_scale(group->rows[i][at]);
        scales->scales[0] = _mm256_loadu_ps(values);
        return;
    }
    scales->scales[0] = load_f16(group, at);
    if (has_mins(dtype))
        scales->mins[0] = load_f16(group, at + 2);
}

/* Four vectors, four numbers of 32 bits of a row in each 128 bits, to one vector per number, with
 * the rows in order. */
INLINE void transpose(const __m256i rows[4], __m256i out[4])
{
    const __m256i a = _mm256_unpacklo_epi32(rows[0], rows[1]);
    const __m256i b = _mm256_unpacklo_epi32(rows[2], rows[3]);
    const __m256i c = _mm256_unpackhi_epi32(rows[0], rows[1]);
    const __m256i d = _mm256_unpackhi_epi32(rows[2], rows[3]);

    out[0] = _mm256_unpacklo_epi64(a, b);
    out[1] = _mm256_unpackhi_epi64(a, b);
    out[2] = _mm256_unpacklo_epi64(c, d);
    out[3] = _mm256_unpackhi_epi64(c, d);
}

/* 16 bytes of each row, as four numbers. */
INLINE void load_words(const struct group *group, uint64_t at, __m256i words[4])
{
    __m256i pairs[4];

#pragma GCC unroll 4
    for (uint32_t i = 0; i < 4; i++)
        pairs[i] = load_halves(group->rows[i] + at, group->rows[i + 4] + at);
    transpose(pairs, words);
}

/* The F16 number in the lower or upper half of each lane. */
INLINE __m256 f16_of_words(__m256i words, bool upper)
{
    const __m256i halves = upper ? _mm256_srli_epi32(words, 16)
                                 : _mm256_and_si256(words, _mm256_set1_epi32(0xFFFF));

    return _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(halves),
                                            _mm256_extracti128_si256(halves, 1)));
}

INLINE __m256i and_shifted(__m256i words, const uint32_t shift, uint32_t mask)
{
    return _mm256_and_si256(_mm256_srli_epi32(words, (int)shift), _mm256_set1_epi32((int)mask));
}

/* factor times the unsigned bytes of the words, less `offset`: four vectors, `step` apart. */
INLINE void scale_bytes(__m256 *out, const uint32_t step, __m256i words, int offset, __m256 factor)
{
    const __m256i less = _mm256_set1_epi32(offset);

#pragma GCC unroll 4
    for (uint32_t j = 0; j < 4; j++)
        out[j * step] = _mm256_mul_ps(
            _mm256_cvtepi32_ps(_mm256_sub_epi32(and_shifted(words, 8 * j, 255), less)), factor);
}

/* The same with signed bytes. */
INLINE void scale_signed_bytes(__m256 *out, __m256i words, __m256 factor)
{
#pragma GCC unroll 4
    for (uint32_t j = 0; j < 4; j++) {
        const __m256i bytes = _mm256_srai_epi32(_mm256_slli_epi32(words, (int)(24 - 8 * j)), 24);
        out[j] = _mm256_mul_ps(_mm256_cvtepi32_ps(bytes), factor);
    }
}

/* Four bytes: two bits of each 4-bit field of `low` below two bits of `high`. */
INLINE __m256i six_bits(__m256i low, const uint32_t low_shift, __m256i high,
                        const uint32_t high_shift)
{
    return _mm256_or_si256(
        and_shifted(low, low_shift, 0x0F0F0F0F),
        _mm256_slli_epi32(and_shifted(high, high_shift, 0x03030303), 4));
}

INLINE __m256 negative(__m256 values)
{
    return _mm256_xor_ps(values, _mm256_set1_ps(-0.0f));
}

INLINE void load_k45_scales(const struct group *group, uint64_t at, struct block_scales *scales)
{
    __m256i w[4]; /* d and dmin, then the 12 bytes */
    __m256 d, less;

    load_words(group, at, w);
    d = f16_of_words(w[0], false);
    less = negative(f16_of_words(w[0], true));
    scale_bytes(&scales->scales[0], 2, and_shifted(w[1], 0, 0x3F3F3F3F), 0, d);
    scale_bytes(&scales->scales[8], 2, six_bits(w[3], 0, w[1], 6), 0, d);
    scale_bytes(&scales->mins[0], 2, and_shifted(w[2], 0, 0x3F3F3F3F), 0, less);
    scale_bytes(&scales->mins[8], 2, six_bits(w[3], 4, w[2], 6), 0, less);
}

INLINE void load_k3_scales(const struct group *group, uint64_t at, struct block_scales *scales)
{
    __m256i w[4], bytes[4];
    __m256 d;

    load_words(group, at + 94, w); /* two bytes early, so as not to read behind the block */
    for (uint32_t i = 0; i < 4; i++)
        bytes[i] = _mm256_or_si256(_mm256_srli_epi32(w[i], 16),
                                   i < 3 ? _mm256_slli_epi32(w[i + 1], 16)
                                         : _mm256_setzero_si256());
    d = f16_of_words(bytes[3], false);
#pragma GCC unroll 4
    for (uint32_t i = 0; i < 4; i++)
        scale_bytes(&scales->scales[4 * i], 1,
                    six_bits(bytes[i % 2], i / 2 * 4, bytes[2], 2 * i), 32, d);
}

/* Q2_K's and Q6_K's sixteen bytes. */
INLINE void load_byte_scales(const enum dtype dtype, const struct group *group, uint64_t at,
                             struct block_scales *scales)
{
    const bool q2 = dtype == DTYPE_Q2_K;
    const __m256 d = load_f16(group, at + (q2 ? 80 : 208));
    const __m256 less = q2 ? negative(load_f16(group, at + 82)) : d;
    __m256i w[4];

    load_words(group, at + (q2 ? 0 : 192), w);
#pragma GCC unroll 4
    for (uint32_t i = 0; i < 4; i++) {
        if (q2) {
            scale_bytes(&scales->scales[4 * i], 1, and_shifted(w[i], 0, 0x0F0F0F0F), 0, d);
            scale_bytes(&scales->mins[4 * i], 1, and_shifted(w[i], 4, 0x0F0F0F0F), 0, less);
        } else {
            scale_signed_bytes(&scales->scales[4 * i], w[i], d);
        }
    }
}

INLINE void load_iq4_xs_scales(const struct group *group, uint64_t at,
                               struct block_scales *scales)
{
    __m256i w[4];
    __m256 d;

    load_words(group, at, w);
    d = f16_of_words(w[0], false);
#pragma GCC unroll 8
    for (uint32_t i = 0; i < 2 * QUARTERS; i++) {
        const __m256i s = _mm256_or_si256(
            and_shifted(w[1], 4 * i, 15), _mm256_slli_epi32(and_shifted(w[0], 16 + 2 * i, 3), 4));
        scales->scales[2 * i] = _mm256_mul_ps(
            _mm256_cvtepi32_ps(_mm256_sub_epi32(s, _mm256_set1_epi32(32))), d);
    }
}

/* Of all runs of a block; the second scale of run r is at 2 r + 1. */
INLINE void load_scales(const enum dtype dtype, const struct group *group, uint64_t at,
                        struct block_scales *scales)
{
    switch (dtype) {
    case DTYPE_Q2_K: case DTYPE_Q6_K: load_byte_scales(dtype, group, at, scales); break;
    case DTYPE_Q3_K: load_k3_scales(group, at, scales); break;
    case DTYPE_Q4_K: case DTYPE_Q5_K: load_k45_scales(group, at, scales); break;
    case DTYPE_IQ4_XS: load_iq4_xs_scales(group, at, scales); break;
    default: load_small_scales(dtype, group, at, scales);
    }
}

#endif
