/* device/cuda/product_f8.cu - product.h for weights in F8_E4M3: blocks of 128 small floats with a
 * scale.
 *
 * Blocks come to shared memory as other quantised ones do; there each element becomes the BF16
 * number that it is, and x is three of them. Of a chunk lane q has elements 4q to 4q + 3 of each
 * half, so that the eight rows that a warp reads at once lie in different banks.
 *
 *     narrow  16 rows of weights, a block at a time for each warp, and the next one on its way: 2.1
 *             KB a warp, 17 KB a block of threads, of which a multiprocessor has two (120 registers
 *             a thread), 34 KB at least and up to 68. To read 4.8 TB/s (an H200, 132
 *             multiprocessors) at 0.8 us a load, 29 KB per multiprocessor must be under way.
 *     wide    weights a block at a time, x a chunk at a time; both in two places by turns, so that
 *             what comes next is on its way while this is multiplied. */
#include "device/cuda/product_blocks.h"
#include "device/cuda/product_parts.h"

#define F8 DTYPE_F8_E4M3
#define BLOCK_ELEMENTS quant_type<F8>::elements
#define BLOCK_CHUNKS (BLOCK_ELEMENTS / PRODUCT_CHUNK)
#define BLOCK_SCALE_BYTES 4
#define NARROW_TILE_BYTES (PRODUCT_NARROW_N * block_segment<F8>::stride)
#define NARROW_BYTES (PRODUCT_WARPS * 2 * NARROW_TILE_BYTES)
#define WIDE_TILE_BYTES (PRODUCT_WIDE_N * block_segment<F8>::stride)
#define WIDE_BYTES (2 * WIDE_TILE_BYTES + 2 * WIDE_X_VECTORS * sizeof(uint4))

/* Four elements as two pairs of BF16. E4M3's exponent and mantissa in BF16's places are a number
 * that is 2^120 times too small, subnormal ones included; multiplying makes it right, exactly. */
__device__ static inline void pairs_of(uint32_t pairs[2], uint32_t four)
{
    constexpr uint32_t factor = 0x7b807b80; /* 2^120, twice */

#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t upper = __byte_perm(four, 0, i == 0 ? 0x1404 : 0x3424);

        pairs[i] = gpu_mul_bf16((upper & 0x80008000u) | (upper & 0x7f007f00u) >> 4, factor);
    }
}

/* A lane's eight elements of a chunk of a block. */
__device__ static inline void weight_pairs(uint32_t pairs[1][4], const struct quant_shared &block,
                                           uint32_t chunk)
{
    const uint32_t at = BLOCK_SCALE_BYTES + chunk * PRODUCT_CHUNK + threadIdx.x % 4 * 4;

    pairs_of(pairs[0], block.word(at));
    pairs_of(pairs[0] + 2, block.word(at + PRODUCT_CHUNK / 2));
}

__device__ static inline float scale_of(const struct quant_shared &block)
{
    return __uint_as_float(block.word(0));
}

__device__ static inline void load_x(float values[LANE_ELEMENTS], const float *row, uint32_t chunk,
                                     uint32_t k_count)
{
    const uint32_t k = chunk * PRODUCT_CHUNK + threadIdx.x % 4 * 4;

    load_x_four(values, row, k, k_count);
    load_x_four(values + 4, row, k + PRODUCT_CHUNK / 2, k_count);
}

/* ---- narrow ---- */

/* Adds a block's products: values are x's. */
__device__ static inline void narrow_multiply(float acc[4], const struct quant_shared &top,
                                              const struct quant_shared &bottom,
                                              const float values[BLOCK_CHUNKS][LANE_ELEMENTS])
{
    float dot[4] = { 0, 0, 0, 0 };

#pragma unroll
    for (uint32_t c = 0; c < BLOCK_CHUNKS; c++) {
        uint32_t upper[1][4], lower[1][4], x[X_PARTS][4];

        weight_pairs(upper, top, c);
        weight_pairs(lower, bottom, c);
        x_parts(x, values[c]);
        multiply_chunk<1>(dot, upper, lower, x);
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        acc[i] = fmaf(dot[i], scale_of(i < 2 ? top : bottom), acc[i]);
}

/* One warp's slice of a 16 x 8 tile. */
__device__ static inline void narrow_slice(float acc[4], const struct product *p,
                                           const struct product_group *group, unsigned char *shared,
                                           uint32_t n0, uint32_t r0)
{
    const uint32_t lane = threadIdx.x % GPU_WARP, g = lane / 4;
    const uint32_t blocks = p->k_count / BLOCK_ELEMENTS;
    const uint32_t each = (blocks + PRODUCT_SLICES - 1) / PRODUCT_SLICES;
    const uint32_t begin = threadIdx.x / GPU_WARP * each;
    const uint32_t end = begin + each < blocks ? begin + each : blocks;
    const float *x_row = product_x_row(p, group, r0 + g);
    uint32_t turn = 0;

    if (begin < end)
        fetch_rows<F8>(shared, p, group, n0, PRODUCT_NARROW_N, begin, 1, lane, GPU_WARP);
    for (uint32_t b = begin; b < end; b++, turn ^= 1) {
        const unsigned char *tile = shared + turn * NARROW_TILE_BYTES;
        float values[BLOCK_CHUNKS][LANE_ELEMENTS];

        if (b + 1 < end)
            fetch_rows<F8>(shared + (turn ^ 1) * NARROW_TILE_BYTES, p, group, n0, PRODUCT_NARROW_N,
                           b + 1, 1, lane, GPU_WARP);
        else
            gpu_copy_commit(); /* an empty group, so that the one before is not the last */
#pragma unroll
        for (uint32_t c = 0; c < BLOCK_CHUNKS; c++)
            load_x(values[c], x_row, b * BLOCK_CHUNKS + c, p->k_count);
        gpu_copy_wait<1>();
        __syncwarp();
        narrow_multiply(acc, block_at<F8>(tile, p, group, n0, g, b, 0),
                        block_at<F8>(tile, p, group, n0, g + 8, b, 0), values);
        __syncwarp();
    }
}

__global__ void __launch_bounds__(PRODUCT_THREADS) narrow_f8(const struct product p)
{
    GPU_SHARED(shared);
    const uint32_t n0 = blockIdx.y * PRODUCT_NARROW_N;
    struct product_group group;

    if (!product_group_of(&p, &group))
        return;
    for (uint32_t r0 = blockIdx.x * PRODUCT_NARROW_ROWS; r0 < group.count;
         r0 += gridDim.x * PRODUCT_NARROW_ROWS) {
        float acc[4] = { 0, 0, 0, 0 };

        narrow_slice(acc, &p, &group, shared + threadIdx.x / GPU_WARP * 2 * NARROW_TILE_BYTES, n0,
                     r0);
        product_join_slices(&p, &group, (float *)shared, acc, n0, r0);
    }
}

/* ---- wide ---- */

/* Where a warp's rows g and g + 8 of its m-th 16 lie. */
__device__ static inline struct quant_shared wide_block(const unsigned char *tile,
                                                        const struct product *p,
                                                        const struct product_group *group,
                                                        uint32_t b, uint32_t row)
{
    const uint32_t n = threadIdx.x / GPU_WARP % 4 * PRODUCT_TILE_N + row +
                       threadIdx.x % GPU_WARP / 4;

    return block_at<F8>(tile, p, group, blockIdx.y * PRODUCT_WIDE_N, n, b, 0);
}

/* What a chunk adds to a block's products. */
__device__ static inline void wide_multiply(float dot[2][4][4], const struct product *p,
                                            const struct product_group *group,
                                            const unsigned char *tile, const uint4 *x, uint32_t row,
                                            uint32_t chunk)
{
    const uint32_t b = chunk / BLOCK_CHUNKS, c = chunk % BLOCK_CHUNKS;
    uint32_t weights[2][2][1][4];

#pragma unroll
    for (uint32_t i = 0; i < 4; i++)
        weight_pairs(weights[i / 2][i % 2], wide_block(tile, p, group, b, i * 8), c);
#pragma unroll
    for (uint32_t t = 0; t < 4; t++) {
        uint32_t part[X_PARTS][4];

        wide_get_x(part, x, row + t * 8);
        multiply_chunk<1>(dot[0][t], weights[0][0], weights[0][1], part);
        multiply_chunk<1>(dot[1][t], weights[1][0], weights[1][1], part);
    }
}

/* Ends a block: what its products add to the slice. */
__device__ static inline void wide_add_block(float acc[2][4][4], float dot[2][4][4],
                                             const struct product *p,
                                             const struct product_group *group,
                                             const unsigned char *tile, uint32_t b)
{
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const float scale = scale_of(wide_block(tile, p, group, b, i * 8));

#pragma unroll
        for (uint32_t j = 0; j < 8; j++) {
            float *sum = &dot[i / 2][j / 2][i % 2 * 2 + j % 2];

            acc[i / 2][j / 2][i % 2 * 2 + j % 2] =
                fmaf(*sum, scale, acc[i / 2][j / 2][i % 2 * 2 + j % 2]);
            *sum = 0;
        }
    }
}

__device__ static inline void wide_tile(const struct product *p, const struct product_group *group,
                                        unsigned char *tiles, uint4 *xs, uint32_t r0)
{
    const uint32_t n0 = blockIdx.y * PRODUCT_WIDE_N, warp = threadIdx.x / GPU_WARP;
    const uint32_t row = warp / 4 * PRODUCT_TILE_ROWS;
    const uint32_t blocks = p->k_count / BLOCK_ELEMENTS, chunks = blocks * BLOCK_CHUNKS;
    const uint32_t each = (blocks + PRODUCT_SLICES - 1) / PRODUCT_SLICES;
    const float *x_row = product_x_row(p, group, r0 + threadIdx.x / 4);
    float total[2][4][4] = { 0 }, acc[2][4][4] = { 0 }, dot[2][4][4] = { 0 };
    float values[LANE_ELEMENTS];

    load_x(values, x_row, 0, p->k_count);
    fetch_rows<F8>(tiles, p, group, n0, PRODUCT_WIDE_N, 0, 1, threadIdx.x, PRODUCT_THREADS);
    for (uint32_t c = 0; c < chunks; c++) {
        const uint32_t b = c / BLOCK_CHUNKS;
        const unsigned char *tile = tiles + b % 2 * WIDE_TILE_BYTES;
        uint4 *x = xs + c % 2 * WIDE_X_VECTORS;

        wide_put_x(x, values);
        if (c % BLOCK_CHUNKS == 0)
            gpu_copy_wait<0>();
        __syncthreads(); /* all have come to this chunk: what the one before read is free */
        if (c % BLOCK_CHUNKS == 0 && b + 1 < blocks)
            fetch_rows<F8>(tiles + (b + 1) % 2 * WIDE_TILE_BYTES, p, group, n0, PRODUCT_WIDE_N,
                           b + 1, 1, threadIdx.x, PRODUCT_THREADS);
        if (c + 1 < chunks)
            load_x(values, x_row, c + 1, p->k_count);
        wide_multiply(dot, p, group, tile, x, row, c);
        if ((c + 1) % BLOCK_CHUNKS != 0)
            continue;
        wide_add_block(acc, dot, p, group, tile, b);
        if ((b + 1) % each == 0 || b + 1 == blocks)
            product_end_slice(total, acc);
    }
    product_store_tile(p, group, total, n0 + warp % 4 * PRODUCT_TILE_N, r0 + row);
    __syncthreads(); /* before the next tile's */
}

__global__ void __launch_bounds__(PRODUCT_THREADS, 1) wide_f8(const struct product p)
{
    GPU_SHARED(shared);
    struct product_group group;

    if (!product_group_of(&p, &group))
        return;
    for (uint32_t r0 = blockIdx.x * PRODUCT_WIDE_ROWS; r0 < group.count;
         r0 += gridDim.x * PRODUCT_WIDE_ROWS)
        wide_tile(&p, &group, shared, (uint4 *)(shared + 2 * WIDE_TILE_BYTES), r0);
}

cudaError_t product_launch_f8(const struct product *p, const struct product_grid *grid,
                              cudaStream_t stream)
{
    const struct product copy = *p;
    cudaError_t code;

    code = grid->narrow
               ? cudaFuncSetAttribute(narrow_f8, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)NARROW_BYTES)
               : cudaFuncSetAttribute(wide_f8, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)WIDE_BYTES);
    if (code != cudaSuccess)
        return code;
    if (grid->narrow)
        GPU_LAUNCH(narrow_f8, grid->blocks, PRODUCT_THREADS, NARROW_BYTES, stream, copy);
    else
        GPU_LAUNCH(wide_f8, grid->blocks, PRODUCT_THREADS, WIDE_BYTES, stream, copy);
    return cudaGetLastError();
}
