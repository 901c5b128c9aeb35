/* device/cuda/product_parts.h - products of F32 rows of x with weights that a few BF16 numbers hold
 * exactly: only for product_plain.cu and product_f8.cu.
 *
 * F32 has 24 bits and BF16 has 8, so an element of x is three BF16 numbers that add up to it.
 * Which eight elements of a chunk a lane has is the including file's choice, the same for x and
 * weights. */
#ifndef LIGHTER_DEVICE_CUDA_PRODUCT_PARTS_H
#define LIGHTER_DEVICE_CUDA_PRODUCT_PARTS_H

#include "device/cuda/product.h"

#define X_PARTS 3
#define LANE_ELEMENTS 8 /* of a chunk's 32 */

/* Two numbers as `count` BF16 numbers each, the greatest parts first, that add up to them where
 * count is enough; the first number's in the low halves. What is cut off is exact, so nothing is
 * rounded. A number that is not finite is its first part alone. */
template <int count>
__device__ static inline void split(uint32_t parts[count], float left, float right)
{
#pragma unroll
    for (int i = 0; i < count; i++) {
        const uint32_t a = __float_as_uint(left), b = __float_as_uint(right);

        parts[i] = __byte_perm(a, b, 0x7632);
        left = gpu_is_finite(left) ? left - __uint_as_float(a & 0xffff0000u) : 0;
        right = gpu_is_finite(right) ? right - __uint_as_float(b & 0xffff0000u) : 0;
    }
}

/* Four adjacent elements of a row of x; NULL, and behind the row's end: zeros. */
__device__ static inline void load_x_four(float values[4], const float *row, uint32_t k,
                                          uint32_t k_count)
{
    if (row != nullptr && k + 4 <= k_count && (uintptr_t)row % 16 == 0) {
        const float4 four = *(const float4 *)(row + k);

        values[0] = four.x;
        values[1] = four.y;
        values[2] = four.z;
        values[3] = four.w;
        return;
    }
#pragma unroll
    for (uint32_t i = 0; i < 4; i++)
        values[i] = row != nullptr && k + i < k_count ? row[k + i] : 0;
}

__device__ static inline void x_parts(uint32_t parts[X_PARTS][4], const float values[LANE_ELEMENTS])
{
#pragma unroll
    for (int j = 0; j < 4; j++) {
        uint32_t both[X_PARTS];

        split<X_PARTS>(both, values[2 * j], values[2 * j + 1]);
#pragma unroll
        for (int i = 0; i < X_PARTS; i++)
            parts[i][j] = both[i];
    }
}

/* A lane's weights of a chunk: eight elements each of rows g and g + 8 of a tile, which the two
 * products of a pair of parts share. They lie as instructions want them, since to bring them there
 * costs as many. */
template <int parts> struct tile_weights {
    uint32_t words[parts][2][4]; /* of half a chunk: row g, row g + 8, both two pairs on */
};

/* Elements 2j and 2j + 1 of one of the rows, 0 or 1. */
template <int parts>
__device__ static inline void put_weights(struct tile_weights<parts> *to, int part, int row, int j,
                                          uint32_t pair)
{
    to->words[part][j / 2][j % 2 * 2 + row] = pair;
}

/* What a chunk adds to `tiles` tiles of the same x. The least products come first. Tiles take
 * turns, so that one's sum is on its way while the next one begins. */
template <int weight_parts, int tiles>
__device__ static inline void multiply_chunk(float *const acc[tiles],
                                             const struct tile_weights<weight_parts> weights[tiles],
                                             uint32_t x[X_PARTS][4])
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int sum = X_PARTS - 1; sum >= 0; sum--) {
#pragma unroll
            for (int i = 0; i < weight_parts && i <= sum; i++) {
                const uint32_t b[2] = { x[sum - i][2 * half], x[sum - i][2 * half + 1] };

#pragma unroll
                for (int tile = 0; tile < tiles; tile++)
                    gpu_mma_bf16(acc[tile], weights[tile].words[i][half], b);
            }
        }
    }
}

/* The parts of 64 rows of x, one chunk of each: [part][row][q] of four words. */
#define WIDE_X_VECTORS (X_PARTS * PRODUCT_WIDE_ROWS * 4)

__device__ static inline void wide_put_x(uint4 *to, const float values[LANE_ELEMENTS])
{
    uint32_t parts[X_PARTS][4];

    x_parts(parts, values);
#pragma unroll
    for (int i = 0; i < X_PARTS; i++)
        to[i * PRODUCT_WIDE_ROWS * 4 + threadIdx.x] =
            make_uint4(parts[i][0], parts[i][1], parts[i][2], parts[i][3]);
}

/* A lane's element of the eight rows from `row` on. */
__device__ static inline void wide_get_x(uint32_t parts[X_PARTS][4], const uint4 *x, uint32_t row)
{
#pragma unroll
    for (int i = 0; i < X_PARTS; i++) {
        const uint4 four = x[(i * PRODUCT_WIDE_ROWS + row) * 4 + threadIdx.x % GPU_WARP];

        parts[i][0] = four.x;
        parts[i][1] = four.y;
        parts[i][2] = four.z;
        parts[i][3] = four.w;
    }
}

#endif
