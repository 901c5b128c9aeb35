/* device/cpu/matmul_amx.c - the matrix product with BF16 and F16 weights in AMX's tiles.
 *
 * A tile product multiplies BF16 numbers and adds F32 ones. Nothing is lost to BF16, because every
 * factor is cut into as many parts as hold all its bits, each part the upper half of what the ones
 * before left (8 bits each): x, of 24 bits, into three, an F16 weight, of 11, into two. A row of x
 * becomes three columns, and an output is what its columns sum up to:
 *
 *     c[p]   = sum over blocks of 32 k, ascending, of the block's product with x's p-th part
 *              (for F16: with the weights' upper parts, then with the lower)
 *     output = (c[2] + c[1]) + c[0]     output = output (+ bias) (+ what was there)
 *
 * Inside a block the order is TDPBF16PS's: the first of each pair of adjacent k in one chain of
 * FMAs, the second in another, both added to c. (Intel, Architecture Instruction Set Extensions
 * Programming Reference, chapter 3.) Columns have nothing to do with each other, so a row's bits
 * don't depend on how many there are. Numbers below 2^-126 count as 0, and x that is not finite
 * makes NaN. Sums like these are closer to the true ones than the lanes of kernels.h.
 *
 *     first factor     16 weight rows by 32 k: BF16 as it lies; F16 converted to two in scratch.
 *                      In ROWS_16 (tensor/layout.h) such tiles lie one behind the other: woven
 *     second factor    x packed: 16 pairs of k by 16 columns; 16 rows of x are three such tiles
 *
 * Arithmetic: 16 x 16 x 32 products take 16 cycles, so BF16 makes 512 / 3 = 171 products of an F32
 * with a weight in a cycle, F16 half as many; FMAs of AVX-512 make 32, AVX2's 16. Where the factors
 * come from the second-level cache a tile product took 25 cycles. For one row of x 1 KiB of weights
 * takes 16 cycles, where memory gives it in 230. To cut F16 in two takes 9 instructions on two
 * ports for 64 bytes, 72 cycles for a KiB; a tile's load takes as long as 5 or 6 cycles of both
 * ports (measured: it hardly goes on beside them), so three make it 90, of which 92 were reached in
 * a loop on the first-level cache. */
#include <assert.h>
#include <string.h>

#include "device/cpu/amx.h"
#include "device/cpu/avx2.h"

#define TILE 16              /* rows of a tile, and columns of 32 bits */
#define BLOCK 32             /* k of a tile product */
#define PARTS 3              /* of x */
#define TILE_BYTES 1024
#define FEW_ROWS_MAX (TILE / PARTS) /* of x: one tile has them all */
#define SPREAD_ROWS_MAX 24   /* of x: with fewer, memory is what takes time */
#define MADE 4               /* blocks that are there at a time, for few rows, of a group ... */
#define BEHIND 1             /* ... and how far multiplying is behind converting */
#define GROUPS 2             /* that are multiplied in turn ... */
#define GROUPS_ROWS_MAX (2 * TILE / PARTS) /* ... by so many rows of x */
#define WOVEN_AHEAD_BYTES 2048 /* where groups take turns; ... */
#define WOVEN_FAR_BYTES 4096 /* ... else for the second-level cache */
#define CHUNK_MAX 128        /* blocks of k that many rows take at a time */
#define K_MAX 61440          /* so that few rows of x fit */

/* Scratch: tiles of weights, two groups with two parts each; x, unless it comes packed; sums. */
#define PART_BYTES ((size_t)CHUNK_MAX * TILE_BYTES)
#define PANEL_BYTES (2 * 2 * PART_BYTES)
#define X_BYTES (768 << 10)
#define SUMS_BYTES (CPU_STRIP_SCRATCH_BYTES - PANEL_BYTES - X_BYTES)
#define SUMS_FLOATS (TILE * PARTS * TILE) /* of 16 weight rows by 16 rows of x */
static_assert(SUMS_BYTES >= 2 * CPU_STRIP_ROWS_MAX / TILE * SUMS_FLOATS * 4, "of two groups");
static_assert(CPU_STRIP_SCRATCH_BYTES >= (GROUPS * 2 * MADE + K_MAX / BLOCK) * TILE_BYTES,
              "few rows of x have all of scratch but for some blocks of weights");
static_assert(X_BYTES / (CPU_STRIP_ROWS_MAX / TILE * PARTS * TILE_BYTES) >= 32, "a chunk's k");

/* A factor's tiles of blocks 0, 1, ... */
struct factor {
    const char *at;
    size_t row_stride; /* bytes; 64 in a panel */
};

/* Sixteen weight rows, n, n + step, ..., or fewer. */
struct rows {
    const char *first;
    size_t stride, block_stride; /* bytes from a row to the next, from its block to the next */
    size_t ahead;                /* bytes: what is asked for while tiles are made, ... */
    bool far;                    /* ... for the second-level cache */
    uint32_t n, step, count;
};

INLINE bool is_woven(const struct rows *rows)
{
    return rows->block_stride == TILE_BYTES;
}

struct product {
    const struct cpu_strip *strip;
    bool is_f16;
    uint32_t block_count;        /* of all k */
    const char *x;               /* packed: tiles of the chunk at hand, ... */
    size_t x_stride;             /* ... bytes from a column tile's first to the next one's, ... */
    size_t x_row_bytes;          /* ... and of their rows */
    uint32_t first, end;         /* blocks of the chunk */
    char *panel;                 /* [group][part][chunk] tiles; for few rows [group][MADE][part] */
    float *sums;                 /* [group][row group][16][3 * 16] */
};

/* Bytes of a row of x's tiles. One and two rows of x have narrow ones, so that they stay in the
 * first-level cache while weights go through it; no row lies in two lines. */
static uint32_t x_row_bytes(uint32_t row_count)
{
    return row_count > 2 ? 64 : row_count * 16;
}

#define TILE_WEIGHTS 6 /* the register; sums have those before ... */
#define TILE_LOWER 5   /* ... and few rows of F16 this one for the weights' lower parts */
#define TILE_X 7

static void configure(uint32_t row_count)
{
    struct amx_config config = { .palette = 1 };

    for (uint32_t i = 0; i < 8; i++) {
        config.rows[i] = TILE;
        config.column_bytes[i] =
            i == TILE_WEIGHTS || i == TILE_LOWER ? 64 : (uint16_t)x_row_bytes(row_count);
    }
    amx_configure(&config);
}

/* ---- x ---- */

/* 16 vectors of 16 numbers each, in place. */
INLINE void transpose(__m512i v[TILE])
{
    __m512i t[TILE];

#pragma GCC unroll 8
    for (uint32_t i = 0; i < TILE; i += 2) {
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
#pragma GCC unroll 4
    for (uint32_t i = 0; i < TILE; i += 4) {
        v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (uint32_t i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(v[i], v[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(v[i], v[4 + i], 0xDD);
        t[8 + i] = _mm512_shuffle_i32x4(v[8 + i], v[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(v[8 + i], v[12 + i], 0xDD);
    }
#pragma GCC unroll 4
    for (uint32_t i = 0; i < 4; i++) {
        v[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
        v[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xDD);
        v[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
        v[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xDD);
    }
}

/* The upper halves of the numbers of two vectors, in order. */
INLINE __m512i upper_halves(__m512 a, __m512 b)
{
    const __m512i lanes = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37,
                                           35, 33, 31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9,
                                           7, 5, 3, 1);

    return _mm512_permutex2var_epi16(_mm512_castps_si512(a), lanes, _mm512_castps_si512(b));
}

/* What the upper half leaves. */
INLINE __m512 rest(__m512 a)
{
    const __m512i mask = _mm512_set1_epi32((int)0xFFFF0000u);

    return _mm512_sub_ps(
        a, _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), mask)));
}

/* Of k numbers from `at` on, 16; zeros behind the end. */
INLINE __m512 load_x(const float *x, uint32_t at, uint32_t k_count)
{
    const uint32_t left = k_count > at ? k_count - at : 0;

    return _mm512_maskz_loadu_ps(left >= TILE ? (__mmask16)0xFFFF
                                              : (__mmask16)((1u << left) - 1),
                                 x + at);
}

/* Blocks [first, end) of up to 16 rows: [3 or fewer tiles][block][16 pairs of k][columns][2], the
 * columns taking row_bytes. */
static void pack_tiles(char *out, const float *const *x, uint32_t row_count, uint32_t k_count,
                       uint32_t first, uint32_t end, uint32_t row_bytes)
{
    const uint32_t tile_count = (row_count * PARTS + TILE - 1) / TILE;
    const __mmask16 mask = (__mmask16)((1u << row_bytes / 4) - 1);
    __m512i columns[PARTS * TILE];

    for (uint32_t c = 0; c < PARTS * TILE; c++)
        columns[c] = _mm512_setzero_si512();
    for (uint32_t b = first; b < end; b++) {
        for (uint32_t r = 0; r < row_count; r++) {
            __m512 low = load_x(x[r], b * BLOCK, k_count);
            __m512 high = load_x(x[r], b * BLOCK + TILE, k_count);
            for (uint32_t p = 0; p < PARTS; p++) {
                columns[r * PARTS + p] = upper_halves(low, high);
                low = rest(low);
                high = rest(high);
            }
        }
        for (uint32_t t = 0; t < tile_count; t++) {
            char *tile = out + ((uint64_t)t * (end - first) + b - first) * TILE * row_bytes;
            __m512i v[TILE];
#pragma GCC unroll 16
            for (uint32_t i = 0; i < TILE; i++)
                v[i] = columns[t * TILE + i];
            transpose(v);
#pragma GCC unroll 16
            for (uint32_t i = 0; i < TILE; i++)
                _mm512_mask_storeu_epi32(tile + row_bytes * i, mask, v[i]);
        }
    }
}

uint64_t cpu__packed_bytes_amx(enum dtype dtype, uint32_t k_count)
{
    return dtype == DTYPE_F32 || k_count > K_MAX
               ? 0
               : (uint64_t)((k_count + BLOCK - 1) / BLOCK) * PARTS * TILE_BYTES;
}

void cpu__pack_amx(void *packed, const float *const *x_rows, uint32_t row_count, uint32_t k_count,
                   bool alone)
{
    pack_tiles(packed, x_rows, row_count, k_count, 0, (k_count + BLOCK - 1) / BLOCK,
               alone ? x_row_bytes(row_count) : 64);
}

/* ---- weights ---- */

/* 32 F16 numbers, as sums of an upper and a lower part each. */
INLINE void cut_any(__m512i weights, __m512i parts[2])
{
    const __m512 a = _mm512_cvtph_ps(_mm512_castsi512_si256(weights));
    const __m512 c = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(weights, 1));

    parts[0] = upper_halves(a, c);
    parts[1] = upper_halves(rest(a), rest(c));
}

/* Numbers from 2 on, and what is not finite. */
INLINE bool has_large(__m512i weights)
{
    return _mm512_test_epi16_mask(weights, _mm512_set1_epi16(0x4000)) != 0;
}

/* The same of numbers below 2. Multiplied by 2^15 the subnormal ones become normal, with exponents
 * from 6 to 30. Then the sign, 5 bits of exponent and 7 of mantissa make the upper part, once the
 * exponent has BF16's bias; the lower part has the sign, the value of the last three bits, and an
 * exponent 8 to 10 below. Where the three are 0 it is of 2^-120 to 2^-96, which changes no sum with
 * the upper part. Zeros are masked. */
INLINE void cut_small(__m512i weights, __m512i parts[2])
{
#define LOWER(exponent, mantissa) ((exponent) * 128 + (mantissa))
    const __m512i lower = _mm512_broadcast_i32x4(_mm_setr_epi16(
        LOWER(-96, 0), LOWER(-10, 0), LOWER(-9, 0), LOWER(-9, 64), LOWER(-8, 0), LOWER(-8, 32),
        LOWER(-8, 64), LOWER(-8, 96)));
#undef LOWER
    const __mmask32 not_zero = _mm512_test_epi16_mask(weights, _mm512_set1_epi16(0x7FFF));
    const __m512i normal = _mm512_castph_si512(
        _mm512_mul_ph(_mm512_castsi512_ph(weights), _mm512_set1_ph(0x1p15f16)));

    parts[0] = _mm512_maskz_add_epi16(
        not_zero, _mm512_set1_epi16((127 - 15 - 15) << 7),
        _mm512_and_si512(_mm512_srai_epi16(normal, 3), _mm512_set1_epi16((short)0x8FFF)));
    parts[1] = _mm512_maskz_add_epi16(
        not_zero, _mm512_permutexvar_epi16(normal, lower),
        _mm512_and_si512(parts[0], _mm512_set1_epi16((short)0xFF80)));
}

/* A block of the i-th row, k of all rows; zeros behind their end. */
INLINE __m512i load_halves(const struct rows *rows, uint32_t i, uint32_t b, uint32_t k_count)
{
    const char *at = rows->first + i * rows->stride + b * rows->block_stride;
    const uint32_t left = k_count - b * BLOCK;

    if (__builtin_expect(left >= BLOCK, 1))
        return _mm512_loadu_si512(at);
    return _mm512_maskz_loadu_epi16((1u << left) - 1, at);
}

/* Blocks [first, end) of an F16 row that has large numbers, as fill_panel has them. Which way a
 * block's numbers are cut depends on them alone. */
static __attribute__((noinline)) void cut_large_row(char *out, size_t lower,
                                                    const struct rows *rows, uint32_t i,
                                                    uint32_t first, uint32_t end, uint32_t k_count)
{
    for (uint32_t b = first; b < end; b++, out += TILE_BYTES) {
        const __m512i weights = load_halves(rows, i, b, k_count);
        __m512i parts[2];
        if (has_large(weights))
            cut_any(weights, parts);
        else
            cut_small(weights, parts);
        _mm512_store_si512(out, parts[0]);
        _mm512_store_si512(out + lower, parts[1]);
    }
}

/* A block of sixteen rows, of which it has all k: BF16 as it is, F16 as two parts, the lower ones
 * `lower` bytes behind. */
INLINE void fill_block(char *panel, size_t lower, const struct rows *rows, const bool is_f16,
                       uint32_t b, uint32_t k_count)
{
    const char *at = rows->first + b * rows->block_stride;
    const size_t stride = rows->stride, ahead = rows->ahead;
    __m512i all = _mm512_setzero_si512();

#pragma GCC unroll 4
    for (uint32_t i = 0; i < TILE; i++, at += stride) {
        const __m512i weights = _mm512_loadu_si512(at);
        __m512i parts[2] = { weights };
        if (rows->far)
            _mm_prefetch(at + ahead, _MM_HINT_T1);
        else
            _mm_prefetch(at + ahead, _MM_HINT_T0);
        if (is_f16) {
            all = _mm512_or_si512(all, weights);
            cut_small(weights, parts);
            _mm512_store_si512(panel + lower + 64 * i, parts[1]);
        }
        _mm512_store_si512(panel + 64 * i, parts[0]);
    }
    if (is_f16 && __builtin_expect(has_large(all), 0)) {
        for (uint32_t i = 0; i < TILE; i++)
            cut_large_row(panel + 64 * i, lower, rows, i, b, b + 1, k_count);
    }
}

/* Blocks [first, end) of the rows, which may be fewer, or end within a block: zeros then. */
INLINE void fill_panel(char *panel, size_t lower, const struct rows *rows, const bool is_f16,
                       uint32_t first, uint32_t end, uint32_t k_count)
{
    if (is_woven(rows)) {
        for (uint32_t b = first; b < end; b++)
            fill_block(panel + (size_t)(b - first) * TILE_BYTES, lower, rows, is_f16, b, k_count);
        return;
    }
    for (uint32_t i = 0; i < TILE; i++) {
        const uint32_t row = i < rows->count ? i : 0;
        const __m512i mask = _mm512_set1_epi8(i < rows->count ? -1 : 0);
        char *out = panel + 64 * i;
        __m512i all = _mm512_setzero_si512();
        for (uint32_t b = first; b < end; b++, out += TILE_BYTES) {
            const __m512i weights = _mm512_and_si512(load_halves(rows, row, b, k_count), mask);
            __m512i parts[2] = { weights };
            if (is_f16) {
                all = _mm512_or_si512(all, weights);
                cut_small(weights, parts);
                _mm512_store_si512(out + lower, parts[1]);
            }
            _mm512_store_si512(out, parts[0]);
        }
        if (is_f16 && __builtin_expect(has_large(all), 0))
            cut_large_row(panel + 64 * i, lower, rows, row, first, end, k_count);
    }
}

/* ---- products ---- */

/* A block of weights by one to three column tiles of x, into as many registers; one may have
 * narrow rows. */
#define ADD_BLOCK(c0, c1, c2, weights, row_stride, x, x_row_bytes, tiles)                          \
    do {                                                                                           \
        _tile_loadd(TILE_WEIGHTS, weights, row_stride);                                            \
        _tile_loadd(TILE_X, (x)[0], x_row_bytes);                                                  \
        _tile_dpbf16ps(c0, TILE_WEIGHTS, TILE_X);                                                  \
        if ((tiles) > 1) {                                                                         \
            _tile_loadd(TILE_X, (x)[1], 64);                                                       \
            _tile_dpbf16ps(c1, TILE_WEIGHTS, TILE_X);                                              \
        }                                                                                          \
        if ((tiles) > 2) {                                                                         \
            _tile_loadd(TILE_X, (x)[2], 64);                                                       \
            _tile_dpbf16ps(c2, TILE_WEIGHTS, TILE_X);                                              \
        }                                                                                          \
    } while (0)

/* The same with both parts of F16 weights, of which the lower lie right behind the upper; each tile
 * of x is loaded once. */
#define ADD_PARTS(c, x, x_row_bytes)                                                               \
    do {                                                                                           \
        _tile_loadd(TILE_X, x, x_row_bytes);                                                       \
        _tile_dpbf16ps(c, TILE_WEIGHTS, TILE_X);                                                   \
        _tile_dpbf16ps(c, TILE_LOWER, TILE_X);                                                     \
    } while (0)
#define ADD_F16_BLOCK(c0, c1, c2, weights, x, x_row_bytes, tiles)                                  \
    do {                                                                                           \
        _tile_loadd(TILE_WEIGHTS, weights, 64);                                                    \
        _tile_loadd(TILE_LOWER, (weights) + TILE_BYTES, 64);                                       \
        ADD_PARTS(c0, (x)[0], x_row_bytes);                                                        \
        if ((tiles) > 1)                                                                           \
            ADD_PARTS(c1, (x)[1], 64);                                                             \
        if ((tiles) > 2)                                                                           \
            ADD_PARTS(c2, (x)[2], 64);                                                             \
    } while (0)

/* Adds blocks to registers 0..2 (the first group) and 3..5 (the second); x's tiles have whole rows;
 * the lower parts of F16 weights are `lower` bytes behind the upper ones. What is a constant where
 * this is inlined stays out of registers, of which the addresses need all. */
INLINE void add_blocks(const char *first, const char *second, size_t block_stride,
                       size_t row_stride, size_t lower, const char *x, size_t x_stride,
                       uint32_t block_count, const uint32_t tiles, const bool is_f16,
                       const uint32_t groups)
{
    const char *columns[PARTS] = { x, x + x_stride, x + 2 * x_stride };

    for (uint32_t b = 0; b < block_count; b++) {
        ADD_BLOCK(0, 1, 2, first, row_stride, columns, 64, tiles);
        if (groups > 1)
            ADD_BLOCK(3, 4, 5, second, row_stride, columns, 64, tiles);
        if (is_f16)
            ADD_BLOCK(0, 1, 2, first + lower, row_stride, columns, 64, tiles);
        if (is_f16 && groups > 1)
            ADD_BLOCK(3, 4, 5, second + lower, row_stride, columns, 64, tiles);
        first += block_stride;
        second += block_stride;
        columns[0] += TILE_BYTES;
        columns[1] += TILE_BYTES;
        columns[2] += TILE_BYTES;
    }
}

/* Outputs n, n + step, ... of a row. */
INLINE void put_row(const struct cpu_strip *strip, const struct rows *rows, uint32_t row,
                    __m512 sums)
{
    float *out = strip->out + row * strip->out_row_stride + rows->n;
    const float *bias = strip->bias == NULL ? NULL : strip->bias + rows->n;
    float lanes[TILE];

    if (rows->step == 1) {
        const __mmask16 mask = (__mmask16)((1u << rows->count) - 1);
        if (bias != NULL)
            sums = _mm512_add_ps(sums, _mm512_maskz_loadu_ps(mask, bias));
        if (strip->accumulate)
            sums = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), sums);
        _mm512_mask_storeu_ps(out, mask, sums);
        return;
    }
    _mm512_storeu_ps(lanes, sums);
    for (uint32_t i = 0; i < rows->count; i++) {
        const uint64_t at = (uint64_t)i * rows->step;
        if (bias != NULL)
            lanes[i] += bias[at];
        out[at] = strip->accumulate ? out[at] + lanes[i] : lanes[i];
    }
}

/* Sixteen weight rows by up to sixteen rows of x from `row` on: sums[16][3 * 16]. */
static void put(const struct cpu_strip *strip, const struct rows *rows, uint32_t row,
                const float *sums)
{
    const uint32_t left = strip->row_count - row;
    const uint32_t row_count = left < TILE ? left : TILE;
    __m512i columns[PARTS * TILE];

    for (uint32_t t = 0; t * TILE < row_count * PARTS; t++) {
        __m512i v[TILE];
#pragma GCC unroll 16
        for (uint32_t i = 0; i < TILE; i++)
            v[i] = _mm512_loadu_si512(sums + (i * PARTS + t) * TILE);
        transpose(v);
#pragma GCC unroll 16
        for (uint32_t i = 0; i < TILE; i++)
            columns[t * TILE + i] = v[i];
    }
    for (uint32_t r = 0; r < row_count; r++) {
        const __m512i *parts = &columns[r * PARTS];
        put_row(strip, rows, row + r,
                _mm512_add_ps(_mm512_add_ps(_mm512_castsi512_ps(parts[2]),
                                            _mm512_castsi512_ps(parts[1])),
                              _mm512_castsi512_ps(parts[0])));
    }
}

static void zero_registers(void)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
}

/* A group's registers and its sums in memory. */
#define SUMS_STRIDE (PARTS * TILE * sizeof(float))
#define LOAD_SUMS(c0, c1, c2, sums)                                                                \
    do {                                                                                           \
        _tile_loadd(c0, sums, SUMS_STRIDE);                                                        \
        _tile_loadd(c1, (sums) + TILE, SUMS_STRIDE);                                               \
        _tile_loadd(c2, (sums) + 2 * TILE, SUMS_STRIDE);                                           \
    } while (0)
#define STORE_SUMS(c0, c1, c2, sums)                                                               \
    do {                                                                                           \
        _tile_stored(c0, sums, SUMS_STRIDE);                                                       \
        _tile_stored(c1, (sums) + TILE, SUMS_STRIDE);                                              \
        _tile_stored(c2, (sums) + 2 * TILE, SUMS_STRIDE);                                          \
    } while (0)

/* One or two groups' weights by 16 rows of x, from `row` on: a chunk more in their sums. in_order:
 * the tiles lie one behind the other. */
INLINE void multiply_tiles(const struct product *product, const struct factor factors[2],
                           uint32_t row, float *const sums[2], const bool is_f16,
                           const bool in_order, const uint32_t groups)
{
    const char *x = product->x + row / TILE * PARTS * product->x_stride;
    const uint32_t columns = (product->strip->row_count - row) * PARTS;
    const uint32_t blocks = product->end - product->first;
    const size_t block_stride = in_order ? TILE_BYTES : 2 * BLOCK;
    const size_t row_stride = in_order ? 64 : factors[0].row_stride;
    const size_t x_stride = product->x_stride;

    if (product->first == 0) {
        zero_registers();
    } else {
        LOAD_SUMS(0, 1, 2, sums[0]);
        LOAD_SUMS(3, 4, 5, sums[1]);
    }
    if (columns <= 2 * TILE)
        add_blocks(factors[0].at, factors[1].at, block_stride, row_stride, PART_BYTES, x, x_stride,
                   blocks, 2, is_f16, groups);
    else
        add_blocks(factors[0].at, factors[1].at, block_stride, row_stride, PART_BYTES, x, x_stride,
                   blocks, 3, is_f16, groups);
    STORE_SUMS(0, 1, 2, sums[0]);
    if (groups > 1)
        STORE_SUMS(3, 4, 5, sums[1]);
}

/* Whether the rows' tiles are had from where they lie: plain rows' if they are read once. Such rows
 * of a power of two would all fall into the same sets of the first-level cache. */
static bool lies_in_tiles(const struct product *product, const struct rows *rows)
{
    return !product->is_f16 && (is_woven(rows) ||
                                (rows->count == TILE && product->strip->k_count % BLOCK == 0 &&
                                 product->strip->row_count <= TILE));
}

/* Whether both groups' are: then they have one stride. */
static bool lie_in_tiles(const struct product *product, const struct rows *rows, uint32_t groups)
{
    return lies_in_tiles(product, &rows[0]) &&
           (groups == 1 || (lies_in_tiles(product, &rows[1]) && rows[0].stride == rows[1].stride));
}

/* One or two groups by all rows of x: the chunk's part. */
INLINE void multiply_groups(const struct product *product, const struct rows *rows, float *sums,
                            const bool is_f16, const uint32_t groups)
{
    const struct cpu_strip *strip = product->strip;
    const uint64_t group_floats = (uint64_t)(strip->row_count + TILE - 1) / TILE * SUMS_FLOATS;
    const bool in_panel = is_f16 || !lie_in_tiles(product, rows, groups);
    const bool in_order = in_panel || is_woven(rows);
    struct factor factors[2];

    for (uint32_t g = 0; g < groups; g++) {
        char *panel = product->panel + 2 * g * PART_BYTES;
        factors[g] = (struct factor){ rows[g].first + product->first * rows[g].block_stride,
                                      rows[g].stride };
        if (!in_panel)
            continue;
        fill_panel(panel, PART_BYTES, &rows[g], is_f16, product->first, product->end,
                   strip->k_count);
        factors[g].at = panel;
    }
    if (groups == 1)
        factors[1] = factors[0];
    for (uint32_t row = 0; row < strip->row_count; row += TILE) {
        float *const first = sums + row / TILE * SUMS_FLOATS;
        float *const both[2] = { first, groups > 1 ? first + group_floats : first };
        if (in_order)
            multiply_tiles(product, factors, row, both, is_f16, true, groups);
        else
            multiply_tiles(product, factors, row, both, false, false, groups);
    }
}

static __attribute__((noinline)) void multiply_f16(const struct product *product,
                                                   const struct rows *rows, uint32_t groups,
                                                   float *sums)
{
    if (groups > 1)
        multiply_groups(product, rows, sums, true, 2);
    else
        multiply_groups(product, rows, sums, true, 1);
}

static __attribute__((noinline)) void multiply_bf16(const struct product *product,
                                                    const struct rows *rows, uint32_t groups,
                                                    float *sums)
{
    if (groups > 1)
        multiply_groups(product, rows, sums, false, 2);
    else
        multiply_groups(product, rows, sums, false, 1);
}

/* A group of plain BF16 where it lies by few rows of x. */
static void add_few(const struct product *product, const struct rows *rows)
{
    const size_t row_bytes = product->x_row_bytes;
    const char *weights = rows->first;
    const char *x[PARTS] = { product->x };

    for (uint32_t b = 0; b < product->block_count; b++) {
        for (uint32_t i = 0; i < TILE; i++)
            _mm_prefetch(weights + i * rows->stride + AHEAD_BYTES, _MM_HINT_T0);
        ADD_BLOCK(0, 0, 0, weights, rows->stride, x, row_bytes, 1);
        weights += 2 * BLOCK;
        x[0] += TILE * row_bytes;
    }
}

/* A made block of the g-th group, in registers from 2 g on. */
INLINE void add_made(const char *block, const char *const x[PARTS], size_t row_bytes,
                     const bool is_f16, const uint32_t tiles, const uint32_t g)
{
    if (is_f16 && g == 0)
        ADD_F16_BLOCK(0, 1, 2, block, x, row_bytes, tiles);
    else if (is_f16)
        ADD_F16_BLOCK(2, 3, 4, block, x, row_bytes, tiles);
    else if (g == 0)
        ADD_BLOCK(0, 1, 2, block, 64, x, row_bytes, tiles);
    else
        ADD_BLOCK(2, 3, 4, block, 64, x, row_bytes, tiles);
}

/* Groups whose tiles are made, by up to sixteen rows of x. Blocks are made while ones before are
 * multiplied: a tile's load waits until what was stored has reached the cache, and a product, of 52
 * cycles, for the one before, which the processor fills only with what is near. Woven BF16 is made,
 * too, a copy: vectors wait for more of memory at a time than a tile's load does. */
INLINE void make_and_multiply(const struct product *product, const struct rows *rows,
                              const bool is_f16, const uint32_t tiles, const uint32_t groups)
{
    const uint32_t k_count = product->strip->k_count;
    const uint32_t whole_count = rows->count == TILE ? k_count / BLOCK : 0;
    const size_t row_bytes = tiles > 1 ? 64 : product->x_row_bytes;
    const char *x[PARTS] = { product->x, product->x + product->x_stride,
                             product->x + 2 * product->x_stride };

    for (uint32_t b = 0; b < product->block_count + BEHIND; b++) {
#pragma GCC unroll 2
        for (uint32_t g = 0; g < groups; g++) {
            char *panel = product->panel + (size_t)g * MADE * 2 * TILE_BYTES;
            char *made = panel + (size_t)(b % MADE) * 2 * TILE_BYTES;
            if (b < whole_count)
                fill_block(made, TILE_BYTES, &rows[g], is_f16, b, k_count);
            else if (b < product->block_count)
                fill_panel(made, TILE_BYTES, &rows[g], is_f16, b, b + 1, k_count);
            if (b >= BEHIND)
                add_made(panel + (size_t)((b - BEHIND) % MADE) * 2 * TILE_BYTES, x, row_bytes,
                         is_f16, tiles, g);
        }
        for (uint32_t t = 0; b >= BEHIND && t < tiles; t++)
            x[t] += TILE * row_bytes;
    }
}

INLINE void make_any(const struct product *product, const struct rows *rows, const bool is_f16,
                     uint32_t tiles, uint32_t groups)
{
    if (tiles == 3)
        make_and_multiply(product, rows, is_f16, 3, 1);
    else if (tiles == 2 && groups == 2)
        make_and_multiply(product, rows, is_f16, 2, 2);
    else if (tiles == 2)
        make_and_multiply(product, rows, is_f16, 2, 1);
    else if (groups == 2)
        make_and_multiply(product, rows, is_f16, 1, 2);
    else
        make_and_multiply(product, rows, is_f16, 1, 1);
}

/* Groups by few rows of x, over all k; one group if x has three tiles. */
static void multiply_few(const struct product *product, const struct rows *rows, uint32_t tiles,
                         uint32_t groups)
{
    _Alignas(64) float sums[TILE * PARTS * TILE] = { 0 };

    zero_registers();
    if (product->is_f16)
        make_any(product, rows, true, tiles, groups);
    else if (is_woven(rows) || !lies_in_tiles(product, rows))
        make_any(product, rows, false, tiles, groups);
    else
        add_few(product, rows);
    STORE_SUMS(0, 1, 2, sums);
    put(product->strip, &rows[0], 0, sums);
    if (groups == 1)
        return;
    STORE_SUMS(2, 3, 4, sums);
    put(product->strip, &rows[1], 0, sums);
}

/* The g-th group, of which the first `part` are spread. As in quant_tiles.h: for few rows of x,
 * plain rows are cut into sixteen parts, and a group has a row of each, because hardware fetches
 * long streams best. */
static struct rows rows_at(const struct cpu_strip *strip, uint32_t part, uint32_t g)
{
    const size_t row_bytes = 2 * strip->weight_row_stride;
    const bool woven = strip->weight_layout == LAYOUT_ROWS_16;
    const bool far = woven && strip->row_count > GROUPS_ROWS_MAX;
    const uint32_t n = g < part ? g : part * TILE + (g - part) * TILE;
    const uint32_t left = strip->n_count - n;

    return (struct rows){
        .first = (const char *)strip->weight + n * row_bytes,
        .stride = woven ? 2 * BLOCK : g < part ? part * row_bytes : row_bytes,
        .block_stride = woven ? TILE_BYTES : 2 * BLOCK,
        .ahead = far ? WOVEN_FAR_BYTES : woven ? WOVEN_AHEAD_BYTES : AHEAD_BYTES,
        .far = far,
        .n = n,
        .step = g < part ? part : 1,
        .count = g < part || left >= TILE ? TILE : left,
    };
}

/* Groups [from, to), whose sums fit into scratch, chunk by chunk. */
static void multiply_chunks(struct product *product, char *x_scratch, uint32_t part, uint32_t from,
                            uint32_t to)
{
    const struct cpu_strip *strip = product->strip;
    const uint32_t row_groups = (strip->row_count + TILE - 1) / TILE;
    const uint32_t fitting = X_BYTES / (row_groups * PARTS * TILE_BYTES);
    const uint32_t chunk = fitting < CHUNK_MAX ? fitting : CHUNK_MAX;
    const char *x_packed = strip->x_packed;

    for (uint32_t first = 0; first < product->block_count; first = product->end) {
        const uint32_t left = product->block_count - first;
        product->first = first;
        product->end = first + (left < chunk ? left : chunk);
        if (x_packed != NULL) {
            product->x = x_packed + (size_t)first * TILE_BYTES;
            product->x_stride = (size_t)product->block_count * TILE_BYTES;
        } else {
            product->x = x_scratch;
            product->x_stride = (size_t)(product->end - first) * TILE_BYTES;
            for (uint32_t row = 0; row < strip->row_count; row += TILE)
                pack_tiles(x_scratch + row / TILE * PARTS * product->x_stride, strip->x_rows + row,
                           strip->row_count - row < TILE ? strip->row_count - row : TILE,
                           strip->k_count, first, product->end, 64);
        }
        for (uint32_t g = from; g < to; g += 2) {
            const struct rows rows[2] = { rows_at(strip, part, g),
                                          rows_at(strip, part, g + 1 < to ? g + 1 : g) };
            float *sums = product->sums + (uint64_t)(g - from) * row_groups * SUMS_FLOATS;
            if (product->is_f16)
                multiply_f16(product, rows, to - g < 2 ? 1 : 2, sums);
            else
                multiply_bf16(product, rows, to - g < 2 ? 1 : 2, sums);
        }
    }
    for (uint32_t g = from; g < to; g++) {
        const struct rows rows = rows_at(strip, part, g);
        for (uint32_t r = 0; r < row_groups; r++)
            put(strip, &rows, r * TILE,
                product->sums + ((uint64_t)(g - from) * row_groups + r) * SUMS_FLOATS);
    }
}

/* Up to sixteen rows of x for all k, packed into scratch where they aren't. */
static void have_few(struct product *product, char *scratch)
{
    const struct cpu_strip *strip = product->strip;

    product->x_row_bytes = x_row_bytes(strip->row_count);
    product->x_stride = product->block_count * TILE * product->x_row_bytes;
    product->x = strip->x_packed;
    if (product->x != NULL)
        return;
    pack_tiles(scratch, strip->x_rows, strip->row_count, strip->k_count, 0, product->block_count,
               (uint32_t)product->x_row_bytes);
    product->x = scratch;
}

/* Products that take all k of few rows of x. Woven, two groups far from each other are multiplied
 * in turn: so many streams hardware fetches best. */
static void multiply_all_few(struct product *product, char *scratch, uint32_t part)
{
    const struct cpu_strip *strip = product->strip;
    const uint32_t tiles = (strip->row_count * PARTS + TILE - 1) / TILE;
    const uint32_t group_count = (strip->n_count + TILE - 1) / TILE;
    const uint32_t half =
        strip->weight_layout == LAYOUT_ROWS_16 && strip->row_count <= GROUPS_ROWS_MAX
            ? group_count / GROUPS
            : 0;

    have_few(product, scratch + (size_t)GROUPS * MADE * 2 * TILE_BYTES);
    for (uint32_t g = 0; g < half; g++) {
        const struct rows rows[GROUPS] = { rows_at(strip, part, g),
                                           rows_at(strip, part, half + g) };
        multiply_few(product, rows, tiles, GROUPS);
    }
    for (uint32_t g = GROUPS * half; g < group_count; g++) {
        const struct rows rows = rows_at(strip, part, g);
        multiply_few(product, &rows, tiles, 1);
    }
}

void cpu__matmul_amx(const struct cpu_strip *strip, void *scratch)
{
    const bool woven = strip->weight_layout == LAYOUT_ROWS_16;
    const bool is_f16 = strip->weight_dtype == DTYPE_F16;
    const uint32_t part = !woven && strip->row_count < SPREAD_ROWS_MAX ? strip->n_count / TILE : 0;
    const uint32_t group_count = (strip->n_count + TILE - 1) / TILE;
    const uint32_t row_groups = (strip->row_count + TILE - 1) / TILE;
    const uint32_t most = SUMS_BYTES / sizeof(float) / SUMS_FLOATS / row_groups / 2 * 2;
    const bool made = (is_f16 || woven) && strip->row_count <= TILE && strip->x_packed != NULL;
    struct product product = {
        .strip = strip,
        .is_f16 = is_f16,
        .block_count = (strip->k_count + BLOCK - 1) / BLOCK,
        .panel = scratch,
        .sums = (float *)(void *)((char *)scratch + PANEL_BYTES + X_BYTES),
    };

    if (strip->weight_dtype == DTYPE_F32) {
        cpu__matmul_avx512(strip, scratch);
        return;
    }
    configure(strip->row_count);
    if (strip->k_count <= K_MAX && (strip->row_count <= FEW_ROWS_MAX || made)) {
        multiply_all_few(&product, scratch, part);
    } else {
        for (uint32_t g = 0; g < group_count; g += most)
            multiply_chunks(&product, (char *)scratch + PANEL_BYTES, part, g,
                            group_count - g < most ? group_count : g + most);
    }
    _tile_release();
}
