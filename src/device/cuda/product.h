/* device/cuda/product.h - matrix products on tensor cores, for every type of weights: only for .cu
 * files.
 *
 * out[r][n] = sum over k of x[r][k] * weight[n][k], of one matrix, of a batch of them, or of the
 * experts of a mixture. Two kernels, of which the launch takes one by the number of rows:
 *
 *     narrow  up to 8 rows of x to a tile. A block has 16 rows of weights, and its 8 warps a slice
 *             of k each: all warps read weights at once, each byte is read once.
 *     wide    64 rows of x by 128 of weights; slices come one after another.
 *
 * Both compute an output with the very same operations in the same order, so which of them ran, and
 * with which rows beside, changes no bit:
 *
 *     k is cut into PRODUCT_SLICES slices of whole chunks, by k alone
 *     slice  = 0, then for each of its chunks, ascending, what the chunk adds
 *     output = 0 + slice 0 + slice 1 + ... (+ bias) (+ what was there)
 *
 * Plain weights: a chunk is 32 elements, two products of tensor cores. F32 has 24 bits and BF16 has
 * 8, so x is three BF16 numbers that add up to it exactly; weights in BF16 are one, in F16 two, in
 * F32 three. Of the products of parts those that weigh less than 2^-24 are left out. So products
 * are as exact as F32's, at a third of the speed of BF16's.
 *
 * Quantised weights: a chunk is a run (tensor/quant.h). x is quantised in blocks of 32 as op.h
 * allows, with the same numbers as on the processor; sums of integers are exact.
 *
 * F8_E4M3 and F8_E4M3_16: what a chunk adds is a block's scale times its 128 or 16 products, added
 * up as those of plain weights are: E4M3 is one BF16 number.
 *
 * Weights that are read once come past the first cache, plain ones as 16 bytes per lane, quantised
 * ones by asynchronous copies to shared memory, since their blocks stand at any address. */
#ifndef LIGHTER_DEVICE_CUDA_PRODUCT_H
#define LIGHTER_DEVICE_CUDA_PRODUCT_H

#include "device/cuda/gpu.h"
#include "device/op.h"

#define PRODUCT_SLICES 8
#define PRODUCT_WARPS 8
#define PRODUCT_THREADS (PRODUCT_WARPS * GPU_WARP)
#define PRODUCT_NARROW_ROWS 8     /* of x in a tile */
#define PRODUCT_NARROW_N 16       /* rows of weights */
#define PRODUCT_WIDE_ROWS 64
#define PRODUCT_WIDE_N 128
#define PRODUCT_TILE_N 32         /* of a warp in the wide kernel */
#define PRODUCT_TILE_ROWS 32
#define PRODUCT_CHUNK 32

/* The routed rows of a mixture, sorted by expert (experts.cu). */
struct product_experts {
    const uint32_t *hits;      /* [hit_count_max]: indices of `list`, or ids; then PRODUCT_NO_HIT.
                                  NULL: this is no mixture */
    const uint32_t *ends;      /* [expert_count]: routed rows of e are [ends[e - 1], ends[e]) */
    const uint32_t *x_rows;    /* of a routed row; NULL: x has routed rows itself */
    const struct op_moe_expert *list; /* NULL: stacked */
    bool is_down;              /* else gate and up, side by side in a row of out */
};
#define PRODUCT_NO_HIT 0xffffffffu

struct product {
    float *out;
    const float *x;
    const uint8_t *weight;
    const float *bias;         /* [n_count], of experts [expert_count][n_count]; NULL: none */
    uint64_t out_row_stride, x_row_stride;
    uint64_t out_batch_stride, x_batch_stride, weight_batch_bytes;
    uint64_t weight_row_bytes;
    uint32_t row_count, n_count, k_count;
    bool accumulate;
    struct product_experts experts;
};

/* One matrix and its rows of x. */
struct product_group {
    const uint8_t *weight;
    const float *x, *bias;
    float *out;
    const uint32_t *x_rows;
    uint32_t first, count;
};

__device__ static inline bool product_expert_group(const struct product *p,
                                                   struct product_group *group)
{
    const struct product_experts *e = &p->experts;
    const uint32_t half = e->is_down ? 0 : blockIdx.z % 2;
    const uint32_t hit = e->hits[e->is_down ? blockIdx.z : blockIdx.z / 2];
    uint32_t id;

    if (hit == PRODUCT_NO_HIT)
        return false;
    id = e->list != nullptr ? (uint32_t)e->list[hit].id : hit;
    if (e->list == nullptr)
        group->weight = p->weight + (e->is_down ? hit : 2 * (uint64_t)hit + half) *
                                        p->weight_batch_bytes;
    else
        group->weight = (const uint8_t *)(e->is_down  ? e->list[hit].down
                                          : half == 0 ? e->list[hit].gate
                                                      : e->list[hit].up);
    group->x = p->x;
    group->bias = p->bias;
    if (p->bias != nullptr)
        group->bias += (e->is_down ? id : 2 * (uint64_t)id + half) * p->n_count;
    group->out = p->out + (uint64_t)half * p->n_count;
    group->x_rows = e->x_rows;
    group->first = id == 0 ? 0 : e->ends[id - 1];
    group->count = e->ends[id] - group->first;
    return true;
}

/* False: nothing to do. */
__device__ static inline bool product_group_of(const struct product *p, struct product_group *group)
{
    if (p->experts.hits != nullptr)
        return product_expert_group(p, group);
    group->weight = p->weight + blockIdx.z * p->weight_batch_bytes;
    group->x = p->x + blockIdx.z * p->x_batch_stride;
    group->bias = p->bias;
    group->out = p->out + blockIdx.z * p->out_batch_stride;
    group->x_rows = nullptr;
    group->first = 0;
    group->count = p->row_count;
    return true;
}

/* Row n of the weights; behind the last one that again, to be computed and not stored. */
__device__ static inline const uint8_t *product_weight_row(const struct product *p,
                                                           const struct product_group *group,
                                                           uint32_t n)
{
    return group->weight + (n < p->n_count ? n : p->n_count - 1) * p->weight_row_bytes;
}

/* Row r of the group; NULL when there is none. */
__device__ static inline const float *product_x_row(const struct product *p,
                                                    const struct product_group *group, uint32_t r)
{
    if (r >= group->count)
        return nullptr;
    r += group->first;
    return group->x + (group->x_rows != nullptr ? group->x_rows[r] : r) * p->x_row_stride;
}

__device__ static inline void product_store(const struct product *p,
                                            const struct product_group *group, uint32_t r,
                                            uint32_t n, float value)
{
    float *out;

    if (r >= group->count || n >= p->n_count)
        return;
    out = group->out + (group->first + r) * p->out_row_stride + n;
    if (group->bias != nullptr)
        value += group->bias[n];
    *out = p->accumulate ? *out + value : value;
}

/* The end of the narrow kernel: each warp has its slice of a 16 x 8 tile. */
__device__ static inline void product_join_slices(const struct product *p,
                                                  const struct product_group *group,
                                                  float *shared, const float acc[4], uint32_t n0,
                                                  uint32_t r0)
{
    const uint32_t lane = threadIdx.x % GPU_WARP, g = lane / 4, q = lane % 4;
    float *mine = shared + threadIdx.x / GPU_WARP * (PRODUCT_NARROW_N * PRODUCT_NARROW_ROWS);

    __syncthreads(); /* what was in shared memory has been read */
    mine[g * PRODUCT_NARROW_ROWS + 2 * q] = acc[0];
    mine[g * PRODUCT_NARROW_ROWS + 2 * q + 1] = acc[1];
    mine[(g + 8) * PRODUCT_NARROW_ROWS + 2 * q] = acc[2];
    mine[(g + 8) * PRODUCT_NARROW_ROWS + 2 * q + 1] = acc[3];
    __syncthreads();
    if (threadIdx.x < PRODUCT_NARROW_N * PRODUCT_NARROW_ROWS) {
        const uint32_t n = threadIdx.x % PRODUCT_NARROW_N, r = threadIdx.x / PRODUCT_NARROW_N;
        float sum = 0;

        for (uint32_t s = 0; s < PRODUCT_SLICES; s++)
            sum += shared[(s * PRODUCT_NARROW_N + n) * PRODUCT_NARROW_ROWS + r];
        product_store(p, group, r0 + r, n0 + n, sum);
    }
    __syncthreads();
}

/* A thread's 32 sums over slices, of the wide kernel: the first `aside` of them lie in shared
 * memory, where registers are short, since they are needed once per slice. */
template <int aside> struct product_total {
    float own[32 - aside];
    float *shared; /* [aside][PRODUCT_THREADS] */
};

template <int aside>
__device__ static inline float *product_total_of(struct product_total<aside> *total, int i)
{
    return i < aside ? total->shared + i * PRODUCT_THREADS + threadIdx.x : &total->own[i - aside];
}

template <int aside>
__device__ static inline void product_begin_total(struct product_total<aside> *total,
                                                  float *shared)
{
    total->shared = shared;
#pragma unroll
    for (int i = 0; i < 32; i++)
        *product_total_of(total, i) = 0;
}

/* Ends a slice of the wide kernel. */
template <int aside>
__device__ static inline void product_end_slice(struct product_total<aside> *total,
                                                float acc[2][4][4])
{
#pragma unroll
    for (int i = 0; i < 32; i++) {
        *product_total_of(total, i) += acc[i / 16][i / 4 % 4][i % 4];
        acc[i / 16][i / 4 % 4][i % 4] = 0;
    }
}

/* The end of the wide kernel: a warp's 32 x 32 tile. */
template <int aside>
__device__ static inline void product_store_tile(const struct product *p,
                                                 const struct product_group *group,
                                                 struct product_total<aside> *total, uint32_t n0,
                                                 uint32_t r0)
{
    const uint32_t lane = threadIdx.x % GPU_WARP, g = lane / 4, q = lane % 4;

#pragma unroll
    for (int i = 0; i < 32; i++)
        product_store(p, group, r0 + i / 4 % 4 * 8 + 2 * q + i % 2,
                      n0 + i / 16 * 16 + g + i / 2 % 2 * 8, *product_total_of(total, i));
}

/* ---- the launches, by type: product_plain.cu, _small.cu, _k.cu, _f8.cu ---- */

/* How a product is cut into blocks. */
struct product_grid {
    bool narrow;
    dim3 blocks;
};

cudaError_t product_launch_plain(const struct product *p, int dtype,
                                 const struct product_grid *grid, cudaStream_t stream);
cudaError_t product_launch_small(const struct product *p, int dtype,
                                 const struct product_grid *grid, cudaStream_t stream);
cudaError_t product_launch_k(const struct product *p, int dtype, const struct product_grid *grid,
                             cudaStream_t stream);
cudaError_t product_launch_f8(const struct product *p, int dtype, const struct product_grid *grid,
                              cudaStream_t stream);

#endif
