/* device/cuda/product_quant.h - product.h for quantised weights that have runs: only for
 * product_small.cu and product_k.cu.
 *
 * In the narrow kernel a warp copies the next segment while it multiplies this one. */
#ifndef LIGHTER_DEVICE_CUDA_PRODUCT_QUANT_H
#define LIGHTER_DEVICE_CUDA_PRODUCT_QUANT_H

#include "device/cuda/product_blocks.h"

#define X_RUN_WORDS 12      /* 8 of int8, the scale, scale * sum of all or of each half, a gap */
#define X_SCALE 8
#define X_SUMS 9
#define X_LEAST 0x1p-100f   /* blocks below it everywhere become 0 */
#define BLOCK_BYTES (49 << 10) /* of shared memory, of each of two blocks that have 100 KiB */

template <int dtype> struct segment : public block_segment<dtype> {
    static constexpr uint32_t runs = block_segment<dtype>::blocks * quant_type<dtype>::runs;
    static constexpr uint32_t x_stride = runs * X_RUN_WORDS + 4; /* words; rows in other banks */
    static constexpr uint32_t narrow_warp_bytes =
        2 * PRODUCT_NARROW_N * block_segment<dtype>::stride + PRODUCT_NARROW_ROWS * x_stride * 4;
    static constexpr uint32_t tile_bytes =
        PRODUCT_WIDE_N * block_segment<dtype>::stride + PRODUCT_WIDE_ROWS * x_stride * 4;
    /* Sums that lie there too, unless they alone would take a small GPU's second block away. */
    static constexpr uint32_t aside_bytes = 8 * PRODUCT_THREADS * sizeof(float);
    static constexpr int aside =
        tile_bytes <= BLOCK_BYTES && tile_bytes + aside_bytes > BLOCK_BYTES ? 0 : 8;
    static constexpr uint32_t wide_bytes = tile_bytes + (aside > 0 ? aside_bytes : 0);
};

/* ---- x ---- */

/* Four lanes quantise a run of x, as the processor does (device/cpu/kernels.h); NULL: zeros. */
template <int dtype>
__device__ static inline void quantise_run(uint32_t *to, const float *x, uint32_t q)
{
    float values[8];
    uint32_t largest_bits = 0, words[2] = { 0, 0 };
    int32_t sums[2] = { 0, 0 };
    float largest, scale = 0;

#pragma unroll
    for (uint32_t i = 0; i < 8; i++) {
        const uint32_t at = i / 4 * 16 + 4 * q + i % 4;

        values[i] = x != nullptr ? x[at] : 0;
        largest_bits = max(largest_bits, __float_as_uint(values[i]) & 0x7fffffffu);
    }
    largest_bits = max(largest_bits, __shfl_xor_sync(GPU_ALL_LANES, largest_bits, 1));
    largest_bits = max(largest_bits, __shfl_xor_sync(GPU_ALL_LANES, largest_bits, 2));
    largest = __uint_as_float(largest_bits);
    if (largest_bits >= 0x7f800000u) {
        scale = __uint_as_float(0x7fc00000u);
    } else if (largest >= X_LEAST) {
        const float factor = 127 / largest;

        scale = largest / 127;
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            const int32_t nearest = __float2int_rn(values[i] * factor);

            words[i / 4] |= ((uint32_t)nearest & 0xff) << i % 4 * 8;
            sums[i / 4] += nearest;
        }
    }
    to[q] = words[0];
    to[4 + q] = words[1];
    if (quant_type<dtype>::mins) {
        for (int half = 0; half < 2; half++) {
            sums[half] += __shfl_xor_sync(GPU_ALL_LANES, sums[half], 1);
            sums[half] += __shfl_xor_sync(GPU_ALL_LANES, sums[half], 2);
        }
    }
    if (q == 0) {
        const bool two = quant_type<dtype>::two_scales;

        to[X_SCALE] = __float_as_uint(scale);
        to[X_SUMS] = __float_as_uint(scale * (float)(two ? sums[0] : sums[0] + sums[1]));
        to[X_SUMS + 1] = __float_as_uint(scale * (float)sums[1]);
    }
}

/* The segment's runs of rows [r0, r0 + row_count), by `threads` threads, whole warps. */
template <int dtype>
__device__ static inline void quantise_rows(uint32_t *to, const struct product *p,
                                            const struct product_group *group, uint32_t r0,
                                            uint32_t row_count, uint32_t first_run,
                                            uint32_t run_count, uint32_t thread, uint32_t threads)
{
    constexpr uint32_t runs = segment<dtype>::runs;

#pragma unroll 2
    for (uint32_t i = thread / 4; i < row_count * runs; i += threads / 4) {
        const uint32_t row = i / runs, run = i % runs;
        const float *x = run < run_count ? product_x_row(p, group, r0 + row) : nullptr;

        quantise_run<dtype>(to + row * segment<dtype>::x_stride + run * X_RUN_WORDS,
                            x != nullptr ? x + (first_run + run) * 32 : nullptr, thread % 4);
    }
}

/* What a run adds to a 16 x 8 tile; x: the run's words of the tile's first column. */
template <int dtype>
__device__ static inline void multiply_run(float acc[4], const struct quant_part &top,
                                           const struct quant_part &bottom, const uint32_t *x)
{
    constexpr uint32_t stride = segment<dtype>::x_stride;
    const uint32_t lane = threadIdx.x % GPU_WARP, g = lane / 4, q = lane % 4;
    const uint32_t *mine = x + g * stride, *left = x + 2 * q * stride, *right = left + stride;
    const float scales[2] = { __uint_as_float(left[X_SCALE]), __uint_as_float(right[X_SCALE]) };
    constexpr int halves = quant_type<dtype>::two_scales ? 2 : 1;

#pragma unroll
    for (int half = 0; half < halves; half++) {
        int32_t dot[4];

        if (halves == 1) {
            const uint32_t a[4] = { top.q[0], bottom.q[0], top.q[1], bottom.q[1] };
            const uint32_t b[2] = { mine[q], mine[4 + q] };

            gpu_mma_s8_32(dot, a, b);
        } else {
            const uint32_t a[2] = { top.q[half], bottom.q[half] };

            gpu_mma_s8_16(dot, a, mine[4 * half + q]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const struct quant_part &row = i < 2 ? top : bottom;

            acc[i] = fmaf((float)dot[i], scales[i % 2] * row.scales[half], acc[i]);
            if (quant_type<dtype>::mins)
                acc[i] = fmaf(__uint_as_float((i % 2 == 0 ? left : right)[X_SUMS + half]),
                              row.mins[half], acc[i]);
        }
    }
}

/* ---- the kernels ---- */

template <int dtype>
__device__ static inline void narrow_multiply(float acc[4], const struct product *p,
                                              const struct product_group *group,
                                              const unsigned char *tile, const uint32_t *x,
                                              uint32_t n0, uint32_t first_block, uint32_t run_count)
{
    const uint32_t lane = threadIdx.x % GPU_WARP, g = lane / 4, q = lane % 4;

    for (uint32_t run = 0; run < run_count; run++) {
        const uint32_t block = run / quant_type<dtype>::runs, in = run % quant_type<dtype>::runs;
        struct quant_part top, bottom;

        quant_read<dtype>(&top, block_at<dtype>(tile, p, group, n0, g, first_block, block), in, q);
        quant_read<dtype>(&bottom, block_at<dtype>(tile, p, group, n0, g + 8, first_block, block),
                          in, q);
        multiply_run<dtype>(acc, top, bottom, x + run * X_RUN_WORDS);
    }
}

template <int dtype>
__device__ static inline void narrow_slice(float acc[4], const struct product *p,
                                           const struct product_group *group,
                                           unsigned char *shared, uint32_t n0, uint32_t r0)
{
    constexpr uint32_t tile_bytes = PRODUCT_NARROW_N * segment<dtype>::stride;
    constexpr uint32_t seg = segment<dtype>::blocks;
    const uint32_t lane = threadIdx.x % GPU_WARP;
    const uint32_t blocks = p->k_count / (32 * quant_type<dtype>::runs);
    const uint32_t each = (blocks + PRODUCT_SLICES - 1) / PRODUCT_SLICES;
    const uint32_t begin = threadIdx.x / GPU_WARP * each;
    const uint32_t end = begin + each < blocks ? begin + each : blocks;
    uint32_t *x = (uint32_t *)(shared + 2 * tile_bytes);
    uint32_t turn = 0;

    if (begin < end)
        fetch_rows<dtype>(shared, p, group, n0, PRODUCT_NARROW_N, begin, min(seg, end - begin),
                          lane, GPU_WARP);
    for (uint32_t first = begin; first < end; first += seg, turn ^= 1) {
        const uint32_t next = first + seg, count = min(seg, end - first);

        if (next < end)
            fetch_rows<dtype>(shared + (turn ^ 1) * tile_bytes, p, group, n0, PRODUCT_NARROW_N,
                              next, min(seg, end - next), lane, GPU_WARP);
        else
            gpu_copy_commit(); /* an empty group, so that the one before is not the last */
        quantise_rows<dtype>(x, p, group, r0, PRODUCT_NARROW_ROWS,
                             first * quant_type<dtype>::runs, count * quant_type<dtype>::runs,
                             lane, GPU_WARP);
        gpu_copy_wait<1>();
        __syncwarp();
        narrow_multiply<dtype>(acc, p, group, shared + turn * tile_bytes, x, n0, first,
                               count * quant_type<dtype>::runs);
        __syncwarp();
    }
}

template <int dtype>
__global__ void __launch_bounds__(PRODUCT_THREADS, 3) narrow_quant(const struct product p)
{
    GPU_SHARED(shared);
    const uint32_t n0 = blockIdx.y * PRODUCT_NARROW_N;
    struct product_group group;

    if (!product_group_of(&p, &group))
        return;
    for (uint32_t r0 = blockIdx.x * PRODUCT_NARROW_ROWS; r0 < group.count;
         r0 += gridDim.x * PRODUCT_NARROW_ROWS) {
        float acc[4] = { 0, 0, 0, 0 };

        narrow_slice<dtype>(acc, &p, &group,
                            shared + threadIdx.x / GPU_WARP * segment<dtype>::narrow_warp_bytes,
                            n0, r0);
        product_join_slices(&p, &group, (float *)shared, acc, n0, r0);
    }
}

template <int dtype>
__device__ static inline void wide_multiply(float acc[2][4][4], const struct product *p,
                                            const struct product_group *group,
                                            const unsigned char *tile, const uint32_t *x,
                                            uint32_t n0, uint32_t first_block, uint32_t run_count)
{
    const uint32_t warp = threadIdx.x / GPU_WARP, lane = threadIdx.x % GPU_WARP;
    const uint32_t g = lane / 4, q = lane % 4, n = warp % 4 * PRODUCT_TILE_N + g;
    const uint32_t row = warp / 4 * PRODUCT_TILE_ROWS;

    for (uint32_t run = 0; run < run_count; run++) {
        const uint32_t block = run / quant_type<dtype>::runs, in = run % quant_type<dtype>::runs;

#pragma unroll
        for (uint32_t m = 0; m < 2; m++) {
            struct quant_part top, bottom;

            quant_read<dtype>(
                &top, block_at<dtype>(tile, p, group, n0, n + m * 16, first_block, block), in, q);
            quant_read<dtype>(
                &bottom, block_at<dtype>(tile, p, group, n0, n + m * 16 + 8, first_block, block),
                in, q);
#pragma unroll
            for (uint32_t t = 0; t < 4; t++)
                multiply_run<dtype>(
                    acc[m][t], top, bottom,
                    x + (row + t * 8) * segment<dtype>::x_stride + run * X_RUN_WORDS);
        }
    }
}

template <int dtype>
__device__ static inline void wide_tile(const struct product *p, const struct product_group *group,
                                        unsigned char *tile, uint32_t *x, uint32_t r0)
{
    constexpr uint32_t seg = segment<dtype>::blocks, runs = quant_type<dtype>::runs;
    const uint32_t warp = threadIdx.x / GPU_WARP, n0 = blockIdx.y * PRODUCT_WIDE_N;
    const uint32_t blocks = p->k_count / (32 * runs);
    const uint32_t each = (blocks + PRODUCT_SLICES - 1) / PRODUCT_SLICES;
    struct product_total<segment<dtype>::aside> total;
    float acc[2][4][4] = {};

    product_begin_total(&total, (float *)(tile + segment<dtype>::tile_bytes));
    for (uint32_t begin = 0; begin < blocks; begin += each) {
        const uint32_t end = min(begin + each, blocks);

        for (uint32_t first = begin; first < end; first += seg) {
            const uint32_t count = min(seg, end - first);

            __syncthreads(); /* the segment before has been read */
            fetch_rows<dtype>(tile, p, group, n0, PRODUCT_WIDE_N, first, count, threadIdx.x,
                              PRODUCT_THREADS);
            quantise_rows<dtype>(x, p, group, r0, PRODUCT_WIDE_ROWS, first * runs, count * runs,
                                 threadIdx.x, PRODUCT_THREADS);
            gpu_copy_wait<0>();
            __syncthreads();
            wide_multiply<dtype>(acc, p, group, tile, x, n0, first, count * runs);
        }
        product_end_slice(&total, acc);
    }
    product_store_tile(p, group, &total, n0 + warp % 4 * PRODUCT_TILE_N,
                       r0 + warp / 4 * PRODUCT_TILE_ROWS);
}

template <int dtype>
__global__ void __launch_bounds__(PRODUCT_THREADS, 2) wide_quant(const struct product p)
{
    GPU_SHARED(shared);
    uint32_t *x = (uint32_t *)(shared + PRODUCT_WIDE_N * segment<dtype>::stride);
    struct product_group group;

    if (!product_group_of(&p, &group))
        return;
    for (uint32_t r0 = blockIdx.x * PRODUCT_WIDE_ROWS; r0 < group.count;
         r0 += gridDim.x * PRODUCT_WIDE_ROWS)
        wide_tile<dtype>(&p, &group, shared, x, r0);
}

/* Both kernels want more shared memory than a block has without asking. */
template <int dtype>
static cudaError_t launch_quant(const struct product *p, const struct product_grid *grid,
                                cudaStream_t stream)
{
    constexpr int narrow_bytes = PRODUCT_WARPS * segment<dtype>::narrow_warp_bytes;
    constexpr int wide_bytes = segment<dtype>::wide_bytes;
    const struct product copy = *p;
    cudaError_t code;

    if (grid->narrow) {
        code = cudaFuncSetAttribute(narrow_quant<dtype>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, narrow_bytes);
        if (code != cudaSuccess)
            return code;
        GPU_LAUNCH(narrow_quant<dtype>, grid->blocks, PRODUCT_THREADS, narrow_bytes, stream, copy);
    } else {
        code = cudaFuncSetAttribute(wide_quant<dtype>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    wide_bytes);
        if (code != cudaSuccess)
            return code;
        GPU_LAUNCH(wide_quant<dtype>, grid->blocks, PRODUCT_THREADS, wide_bytes, stream, copy);
    }
    return cudaGetLastError();
}

#endif
