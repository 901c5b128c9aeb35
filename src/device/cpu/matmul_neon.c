/* device/cpu/matmul_neon.c - the matrix product in NEON registers.
 *
 * As in matmul_avx2.c the lanes run along k, eight of them in two vectors, and which tile an output
 * falls into never changes the order in which it is summed. A tile of 4 rows of x by 3 of weights
 * is 12 outputs, 24 registers of sums; 3 of weights and one of x are loaded for one half of the
 * lanes at a time, and leave four of the 32 registers over. */
#include <string.h>

#include "device/cpu/neon.h"

#define ROWS_MAX 4
#define WIDTH_MAX 3
#define HALF 4          /* lanes of a vector */
#define SPAN 12         /* weight rows that go over all rows of x before the next ones */

/* Four weights as F32. */
INLINE float32x4_t load_weights(const enum dtype dtype, const void *weight, uint64_t at)
{
    if (dtype == DTYPE_F32)
        return vld1q_f32((const float *)weight + at);
    if (dtype == DTYPE_F16)
        return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *)weight + at)));
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const uint16_t *)weight + at), 16));
}

/* count < 4 of them; the rest is zero. */
INLINE float32x4_t load_weights_few(const enum dtype dtype, const void *weight, uint64_t at,
                                    uint32_t count)
{
    uint16_t halves[HALF] = { 0 };

    if (dtype == DTYPE_F32)
        return load_few((const float *)weight + at, count);
    memcpy(halves, (const uint16_t *)weight + at, count * sizeof(*halves));
    return load_weights(dtype, halves, 0);
}

struct tile {
    const float *x[ROWS_MAX];
    const void *weight[WIDTH_MAX];
};

/* One half of the lanes: sums[r][i] += x[r] * weight[i], four elements from k on, `left` of them
 * there. */
INLINE void add_half(const struct tile *tile, const uint32_t R, const uint32_t W,
                     const enum dtype dtype, uint32_t k, uint32_t left,
                     float32x4_t sums[ROWS_MAX][WIDTH_MAX])
{
    float32x4_t w[WIDTH_MAX];

#pragma GCC unroll 3
    for (uint32_t i = 0; i < W; i++)
        w[i] = left >= HALF ? load_weights(dtype, tile->weight[i], k)
                            : load_weights_few(dtype, tile->weight[i], k, left);
#pragma GCC unroll 4
    for (uint32_t r = 0; r < R; r++) {
        const float32x4_t x =
            left >= HALF ? vld1q_f32(tile->x[r] + k) : load_few(tile->x[r] + k, left);
#pragma GCC unroll 3
        for (uint32_t i = 0; i < W; i++)
            sums[r][i] = vfmaq_f32(sums[r][i], x, w[i]);
    }
}

INLINE void put_tile(const struct cpu_strip *strip, const uint32_t R, const uint32_t W,
                     uint32_t row, uint32_t n, float32x4_t sums[2][ROWS_MAX][WIDTH_MAX])
{
#pragma GCC unroll 4
    for (uint32_t r = 0; r < R; r++) {
        float *out = strip->out + (row + r) * strip->out_row_stride + n;
#pragma GCC unroll 3
        for (uint32_t i = 0; i < W; i++) {
            float sum = sum_lanes(sums[0][r][i], sums[1][r][i]);
            if (strip->bias != NULL)
                sum += strip->bias[n + i];
            out[i] = strip->accumulate ? out[i] + sum : sum;
        }
    }
}

/* R and W are constants where this is inlined, so that the sums stay in registers. */
INLINE void multiply_tile(const struct cpu_strip *strip, const uint32_t R, const uint32_t W,
                          const enum dtype dtype, uint32_t row, uint32_t n)
{
    const uint64_t element_bytes = dtype == DTYPE_F32 ? 4 : 2;
    const uint32_t whole = strip->k_count / CPU_LANES * CPU_LANES;
    float32x4_t sums[2][ROWS_MAX][WIDTH_MAX];
    struct tile tile;

#pragma GCC unroll 4
    for (uint32_t r = 0; r < R; r++) {
        tile.x[r] = strip->x_rows[row + r];
#pragma GCC unroll 3
        for (uint32_t i = 0; i < W; i++)
            sums[0][r][i] = sums[1][r][i] = vdupq_n_f32(0);
    }
#pragma GCC unroll 3
    for (uint32_t i = 0; i < W; i++)
        tile.weight[i] = strip->weight_rows != NULL
                             ? (const void *)strip->weight_rows[n + i]
                             : (const char *)strip->weight +
                                   (n + i) * strip->weight_row_stride * element_bytes;
    for (uint32_t k = 0; k < whole; k += CPU_LANES) {
        add_half(&tile, R, W, dtype, k, HALF, sums[0]);
        add_half(&tile, R, W, dtype, k + HALF, HALF, sums[1]);
    }
    for (uint32_t k = whole, h = 0; k < strip->k_count; k += HALF, h++)
        add_half(&tile, R, W, dtype, k, strip->k_count - k, sums[h]);
    put_tile(strip, R, W, row, n, sums);
}

/* R rows against the weights [n, n_end), three at a time. */
INLINE void multiply_rows(const struct cpu_strip *strip, const uint32_t R, const enum dtype dtype,
                          uint32_t row, uint32_t n, uint32_t n_end)
{
    for (; n + WIDTH_MAX <= n_end; n += WIDTH_MAX)
        multiply_tile(strip, R, WIDTH_MAX, dtype, row, n);
    for (; n < n_end; n++)
        multiply_tile(strip, R, 1, dtype, row, n);
}

INLINE void multiply(const struct cpu_strip *strip, const enum dtype dtype)
{
    const uint32_t span = strip->row_count > ROWS_MAX ? SPAN : strip->n_count;

    for (uint32_t n = 0; n < strip->n_count; n += span) {
        const uint32_t left = strip->n_count - n, end = n + (left < span ? left : span);
        uint32_t row = 0;
        for (; row + 4 <= strip->row_count; row += 4)
            multiply_rows(strip, 4, dtype, row, n, end);
        switch (strip->row_count - row) {
        case 3: multiply_rows(strip, 3, dtype, row, n, end); break;
        case 2: multiply_rows(strip, 2, dtype, row, n, end); break;
        case 1: multiply_rows(strip, 1, dtype, row, n, end); break;
        default: break;
        }
    }
}

static __attribute__((noinline)) void multiply_f32(const struct cpu_strip *strip)
{
    multiply(strip, DTYPE_F32);
}

static __attribute__((noinline)) void multiply_f16(const struct cpu_strip *strip)
{
    multiply(strip, DTYPE_F16);
}

static __attribute__((noinline)) void multiply_bf16(const struct cpu_strip *strip)
{
    multiply(strip, DTYPE_BF16);
}

void cpu__matmul_neon(const struct cpu_strip *strip, void *scratch)
{
    (void)scratch;
    if (strip->weight_dtype == DTYPE_F32)
        multiply_f32(strip);
    else if (strip->weight_dtype == DTYPE_F16)
        multiply_f16(strip);
    else
        multiply_bf16(strip);
}
