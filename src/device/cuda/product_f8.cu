/* device/cuda/product_f8.cu - product.h for weights in F8_E4M3 and F8_E4M3_16: blocks of 128, or of
 * 16, small floats with a scale.
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

#define BLOCK_SCALE_BYTES 4

template <int dtype> struct f8_sizes {
    static constexpr uint32_t elements = quant_type<dtype>::elements;
    static constexpr bool halves = elements < PRODUCT_CHUNK; /* a block is half a chunk */
    static constexpr uint32_t chunk = halves ? elements : PRODUCT_CHUNK;
    static constexpr uint32_t chunks = elements / chunk; /* of a block */
    static constexpr uint32_t narrow_tile_bytes = PRODUCT_NARROW_N * block_segment<dtype>::stride;
    static constexpr uint32_t narrow_bytes = PRODUCT_WARPS * 2 * narrow_tile_bytes;
    static constexpr uint32_t wide_tile_bytes = PRODUCT_WIDE_N * block_segment<dtype>::stride;
    static constexpr uint32_t wide_bytes = 2 * wide_tile_bytes + 2 * WIDE_X_VECTORS * 16;
};

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

/* A lane's eight elements of a chunk of a row's block; 0 where there is half of one only. */
template <int dtype>
__device__ static inline void get_weights(struct tile_weights<1> *to, int row,
                                          const struct quant_shared &block, uint32_t chunk)
{
    const uint32_t at = BLOCK_SCALE_BYTES + chunk * PRODUCT_CHUNK + threadIdx.x % 4 * 4;
    uint32_t pairs[4];

    pairs_of(pairs, block.word(at));
    pairs_of(pairs + 2, f8_sizes<dtype>::halves ? 0 : block.word(at + PRODUCT_CHUNK / 2));
#pragma unroll
    for (int j = 0; j < 4; j++)
        put_weights(to, 0, row, j, pairs[j]);
}

__device__ static inline float scale_of(const struct quant_shared &block)
{
    return __uint_as_float(block.word(0));
}

template <int dtype>
__device__ static inline void load_x(float values[LANE_ELEMENTS], const float *row, uint32_t chunk,
                                     uint32_t k_count)
{
    const uint32_t k = chunk * f8_sizes<dtype>::chunk + threadIdx.x % 4 * 4;

    load_x_four(values, row, k, k_count);
    load_x_four(values + 4, f8_sizes<dtype>::halves ? nullptr : row, k + PRODUCT_CHUNK / 2,
                k_count);
}

/* ---- narrow ---- */

/* Adds a block's products: values are x's. */
template <int dtype>
__device__ static inline void narrow_multiply(float acc[4], const struct quant_shared &top,
                                              const struct quant_shared &bottom,
                                              const float (*values)[LANE_ELEMENTS])
{
    using sizes = f8_sizes<dtype>;
    float dot[4] = { 0, 0, 0, 0 };

#pragma unroll
    for (uint32_t c = 0; c < sizes::chunks; c++) {
        struct tile_weights<1> weights[1];
        uint32_t x[X_PARTS][4];
        float *const dots[1] = { dot };

        get_weights<dtype>(&weights[0], 0, top, c);
        get_weights<dtype>(&weights[0], 1, bottom, c);
        x_parts(x, values[c]);
        multiply_chunk<1, 1>(dots, weights, x);
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        acc[i] = fmaf(dot[i], scale_of(i < 2 ? top : bottom), acc[i]);
}

/* One warp's slice of a 16 x 8 tile. */
template <int dtype>
__device__ static inline void narrow_slice(float acc[4], const struct product *p,
                                           const struct product_group *group, unsigned char *shared,
                                           uint32_t n0, uint32_t r0)
{
    using sizes = f8_sizes<dtype>;
    const uint32_t lane = threadIdx.x % GPU_WARP, g = lane / 4;
    const uint32_t blocks = p->k_count / sizes::elements;
    const uint32_t each = (blocks + PRODUCT_SLICES - 1) / PRODUCT_SLICES;
    const uint32_t begin = threadIdx.x / GPU_WARP * each;
    const uint32_t end = begin + each < blocks ? begin + each : blocks;
    const float *x_row = product_x_row(p, group, r0 + g);
    uint32_t turn = 0;

    if (begin < end)
        fetch_rows<dtype>(shared, p, group, n0, PRODUCT_NARROW_N, begin, 1, lane, GPU_WARP);
    for (uint32_t b = begin; b < end; b++, turn ^= 1) {
        const unsigned char *tile = shared + turn * sizes::narrow_tile_bytes;
        float values[sizes::chunks][LANE_ELEMENTS];

        if (b + 1 < end)
            fetch_rows<dtype>(shared + (turn ^ 1) * sizes::narrow_tile_bytes, p, group, n0,
                              PRODUCT_NARROW_N, b + 1, 1, lane, GPU_WARP);
        else
            gpu_copy_commit(); /* an empty group, so that the one before is not the last */
#pragma unroll
        for (uint32_t c = 0; c < sizes::chunks; c++)
            load_x<dtype>(values[c], x_row, b * sizes::chunks + c, p->k_count);
        gpu_copy_wait<1>();
        __syncwarp();
        narrow_multiply<dtype>(acc, block_at<dtype>(tile, p, group, n0, g, b, 0),
                               block_at<dtype>(tile, p, group, n0, g + 8, b, 0), values);
        __syncwarp();
    }
}

template <int dtype>
__global__ void __launch_bounds__(PRODUCT_THREADS) narrow_f8(const struct product p)
{
    using sizes = f8_sizes<dtype>;
    GPU_SHARED(shared);
    const uint32_t n0 = blockIdx.y * PRODUCT_NARROW_N;
    struct product_group group;

    if (!product_group_of(&p, &group))
        return;
    for (uint32_t r0 = blockIdx.x * PRODUCT_NARROW_ROWS; r0 < group.count;
         r0 += gridDim.x * PRODUCT_NARROW_ROWS) {
        float acc[4] = { 0, 0, 0, 0 };

        narrow_slice<dtype>(acc, &p, &group,
                            shared + threadIdx.x / GPU_WARP * 2 * sizes::narrow_tile_bytes, n0, r0);
        product_join_slices(&p, &group, (float *)shared, acc, n0, r0);
    }
}

/* ---- wide ---- */

/* Where a warp's rows g and g + 8 of its m-th 16 lie. */
template <int dtype>
__device__ static inline struct quant_shared wide_block(const unsigned char *tile,
                                                        const struct product *p,
                                                        const struct product_group *group,
                                                        uint32_t b, uint32_t row)
{
    const uint32_t n = threadIdx.x / GPU_WARP % 4 * PRODUCT_TILE_N + row +
                       threadIdx.x % GPU_WARP / 4;

    return block_at<dtype>(tile, p, group, blockIdx.y * PRODUCT_WIDE_N, n, b, 0);
}

/* What a chunk adds to a block's products. */
template <int dtype>
__device__ static inline void wide_multiply(float dot[2][4][4], const struct product *p,
                                            const struct product_group *group,
                                            const unsigned char *tile, const uint4 *x, uint32_t row,
                                            uint32_t chunk)
{
    using sizes = f8_sizes<dtype>;
    const uint32_t b = chunk / sizes::chunks, c = chunk % sizes::chunks;
    struct tile_weights<1> weights[2];

#pragma unroll
    for (uint32_t i = 0; i < 4; i++)
        get_weights<dtype>(&weights[i / 2], i % 2, wide_block<dtype>(tile, p, group, b, i * 8), c);
#pragma unroll
    for (uint32_t t = 0; t < 4; t++) {
        float *const dots[2] = { dot[0][t], dot[1][t] };
        uint32_t part[X_PARTS][4];

        wide_get_x(part, x, row + t * 8);
        multiply_chunk<1, 2>(dots, weights, part);
    }
}

/* Ends a block: what its products add to the slice. */
template <int dtype>
__device__ static inline void wide_add_block(float acc[2][4][4], float dot[2][4][4],
                                             const struct product *p,
                                             const struct product_group *group,
                                             const unsigned char *tile, uint32_t b)
{
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const float scale = scale_of(wide_block<dtype>(tile, p, group, b, i * 8));

#pragma unroll
        for (uint32_t j = 0; j < 8; j++) {
            float *sum = &dot[i / 2][j / 2][i % 2 * 2 + j % 2];

            acc[i / 2][j / 2][i % 2 * 2 + j % 2] =
                fmaf(*sum, scale, acc[i / 2][j / 2][i % 2 * 2 + j % 2]);
            *sum = 0;
        }
    }
}

template <int dtype>
__device__ static inline void wide_tile(const struct product *p, const struct product_group *group,
                                        unsigned char *tiles, uint4 *xs, uint32_t r0)
{
    using sizes = f8_sizes<dtype>;
    const uint32_t n0 = blockIdx.y * PRODUCT_WIDE_N, warp = threadIdx.x / GPU_WARP;
    const uint32_t row = warp / 4 * PRODUCT_TILE_ROWS;
    const uint32_t blocks = p->k_count / sizes::elements, chunks = blocks * sizes::chunks;
    const uint32_t each = (blocks + PRODUCT_SLICES - 1) / PRODUCT_SLICES;
    const float *x_row = product_x_row(p, group, r0 + threadIdx.x / 4);
    struct product_total<0> total;
    float acc[2][4][4] = {}, dot[2][4][4] = {};
    float values[LANE_ELEMENTS];

    product_begin_total(&total, nullptr);
    load_x<dtype>(values, x_row, 0, p->k_count);
    fetch_rows<dtype>(tiles, p, group, n0, PRODUCT_WIDE_N, 0, 1, threadIdx.x, PRODUCT_THREADS);
    for (uint32_t c = 0; c < chunks; c++) {
        const uint32_t b = c / sizes::chunks;
        const unsigned char *tile = tiles + b % 2 * sizes::wide_tile_bytes;
        uint4 *x = xs + c % 2 * WIDE_X_VECTORS;

        wide_put_x(x, values);
        if (c % sizes::chunks == 0)
            gpu_copy_wait<0>();
        __syncthreads(); /* all have come to this chunk: what the one before read is free */
        if (c % sizes::chunks == 0 && b + 1 < blocks)
            fetch_rows<dtype>(tiles + (b + 1) % 2 * sizes::wide_tile_bytes, p, group, n0,
                              PRODUCT_WIDE_N, b + 1, 1, threadIdx.x, PRODUCT_THREADS);
        if (c + 1 < chunks)
            load_x<dtype>(values, x_row, c + 1, p->k_count);
        wide_multiply<dtype>(dot, p, group, tile, x, row, c);
        if ((c + 1) % sizes::chunks != 0)
            continue;
        wide_add_block<dtype>(acc, dot, p, group, tile, b);
        if ((b + 1) % each == 0 || b + 1 == blocks)
            product_end_slice(&total, acc);
    }
    product_store_tile(p, group, &total, n0 + warp % 4 * PRODUCT_TILE_N, r0 + row);
    __syncthreads(); /* before the next tile's */
}

template <int dtype>
__global__ void __launch_bounds__(PRODUCT_THREADS, 1) wide_f8(const struct product p)
{
    using sizes = f8_sizes<dtype>;
    GPU_SHARED(shared);
    struct product_group group;

    if (!product_group_of(&p, &group))
        return;
    for (uint32_t r0 = blockIdx.x * PRODUCT_WIDE_ROWS; r0 < group.count;
         r0 += gridDim.x * PRODUCT_WIDE_ROWS)
        wide_tile<dtype>(&p, &group, shared, (uint4 *)(shared + 2 * sizes::wide_tile_bytes), r0);
}

template <int dtype>
static cudaError_t launch(const struct product *p, const struct product_grid *grid,
                          cudaStream_t stream)
{
    using sizes = f8_sizes<dtype>;
    const struct product copy = *p;
    cudaError_t code;

    code = grid->narrow
               ? cudaFuncSetAttribute(narrow_f8<dtype>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)sizes::narrow_bytes)
               : cudaFuncSetAttribute(wide_f8<dtype>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)sizes::wide_bytes);
    if (code != cudaSuccess)
        return code;
    if (grid->narrow)
        GPU_LAUNCH(narrow_f8<dtype>, grid->blocks, PRODUCT_THREADS, sizes::narrow_bytes,
                   stream, copy);
    else
        GPU_LAUNCH(wide_f8<dtype>, grid->blocks, PRODUCT_THREADS, sizes::wide_bytes,
                   stream, copy);
    return cudaGetLastError();
}

cudaError_t product_launch_f8(const struct product *p, int dtype, const struct product_grid *grid,
                              cudaStream_t stream)
{
    return dtype == DTYPE_F8_E4M3 ? launch<DTYPE_F8_E4M3>(p, grid, stream)
                                  : launch<DTYPE_F8_E4M3_16>(p, grid, stream);
}
