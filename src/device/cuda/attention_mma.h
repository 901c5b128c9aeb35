/* device/cuda/attention_mma.h - a tile of keys for 16 queries, on tensor cores: only for
 * attention_narrow.cu and attention_wide.cu, which differ in how many queries share a tile and in
 * how its elements come to a lane, and in no bit.
 *
 * A query is a head of a row. A row's keys are tiles of 32, counted from position 0; a warp has a
 * tile's scores and values of 16 queries:
 *
 *     score    s[query][key] = q . k, all of the width, ascending
 *     softmax  m = max(score(s)), p = exp(s - m), l = sum p, of the keys that the query sees
 *     values   o[query][column] = sum p v, keys ascending
 *
 * A part's tiles become one in order of position, as parts become one later (attention_fold); tiles
 * of which a query sees nothing are left out. So a query's bits depend on its own row alone.
 *
 * F32 has 24 bits and BF16 has 8: queries, p and elements of F32 and Q8_0 are three BF16 numbers
 * that add up to them, elements of F16 two. Products of parts that weigh less than 2^-24 are left
 * out, as product.h does it: six remain, five of F16. The sixth would be of zeros there, so a cache
 * in F16 gives the bits of one in F32 that holds the same numbers. What is not finite becomes NaN.
 *
 * A product is 16 queries by 8 of 16 elements: lane l has g = l / 4 and q = l % 4, and of a result
 * queries g and g + 8, columns 2q and 2q + 1. Which 16 elements is free if both sides agree:
 *
 *     scores   steps 2c and 2c + 1 have elements 32c to 32c + 31; lane q's are 8q to 8q + 7,
 *              four in each. Eight columns are keys.
 *     values   step s has keys 16s to 16s + 15, in order, so that a score's lane has its p already.
 *              Four products have columns 32d to 32d + 31: column g of the i-th is 32d + 4g + i. */
#ifndef LIGHTER_DEVICE_CUDA_ATTENTION_MMA_H
#define LIGHTER_DEVICE_CUDA_ATTENTION_MMA_H

#include "device/cuda/attention_load.h"
#include "device/cuda/attention_parts.h"

#define ATTENTION_TILE 32
#define ATTENTION_TILE_STEPS (ATTENTION_TILE / 16)
#define ATTENTION_QUERIES 16 /* of a product */
#define QUERY_PARTS 3

template <int dtype> struct attention_cache {
    static constexpr int parts = dtype == DTYPE_F16 ? 2 : 3;
};

/* The queries of a block: head_count heads of each of some rows, a row's next to each other. */
struct attention_queries {
    uint32_t first_row, row_count;
    uint32_t kv_head, first_head, head_count; /* first_head among all */
};

/* The heads of a block of up to `queries`: `index` counts kv heads, and within each such groups. */
__device__ static inline struct attention_queries
attention_queries_of(const struct op_attention *op, uint32_t queries, uint32_t index)
{
    const uint32_t group = op->head_count / op->kv_head_count;
    const uint32_t groups = (group + queries - 1) / queries, first = index % groups * queries;
    struct attention_queries block = {};

    block.kv_head = index / groups;
    block.first_head = block.kv_head * group + first;
    block.head_count = min(group - first, queries);
    return block;
}

/* Blocks for all heads of a row. */
static inline uint32_t attention_head_blocks(const struct op_attention *op, uint32_t queries)
{
    const uint32_t group = op->head_count / op->kv_head_count;

    return op->kv_head_count * ((group + queries - 1) / queries);
}

/* Calls run(dtype, width, is_cut) with constants, as attention_choose; the width holds keys and
 * values. */
template <typename function>
static inline cudaError_t attention_choose_width(const struct op_attention *op,
                                                 const struct attention_round *round, function run)
{
    return attention_choose(op, round, [&](auto dtype, auto is_cut) {
        const uint32_t width = op->k_width > op->v_width ? op->k_width : op->v_width;

        if (width <= 64)
            return run(dtype, std::integral_constant<int, 64>(), is_cut);
        if (width <= 128)
            return run(dtype, std::integral_constant<int, 128>(), is_cut);
        return run(dtype, std::integral_constant<int, 256>(), is_cut);
    });
}

/* ---- parts of numbers ---- */

/* Two numbers as `parts` BF16 numbers each, the first one's in the low halves. */
template <int parts>
__device__ static inline void attention_split(uint32_t to[parts], float left, float right)
{
#pragma unroll
    for (int i = 0; i < parts; i++) {
        const uint32_t a = __float_as_uint(left), b = __float_as_uint(right);

        to[i] = __byte_perm(a, b, 0x7632);
        left -= __uint_as_float(a & 0xffff0000u);
        right -= __uint_as_float(b & 0xffff0000u);
    }
}

/* A step: 16 elements of 16 queries, or p, by those of 8 columns; the least products first. */
template <int parts>
__device__ static inline void attention_multiply(float acc[4], const uint32_t a[QUERY_PARTS][4],
                                                 const uint32_t first[parts],
                                                 const uint32_t second[parts])
{
#pragma unroll
    for (int sum = QUERY_PARTS - 1; sum >= 0; sum--) {
#pragma unroll
        for (int i = 0; i < parts && i <= sum; i++) {
            const uint32_t b[2] = { first[i], second[i] };

            gpu_mma_bf16(acc, a[sum - i], b);
        }
    }
}

/* ---- queries ---- */

/* Four elements of a query; of one that is not there, and behind its width, zeros. */
__device__ static inline void attention_load_query(float values[4], const struct op_attention *op,
                                                   const struct attention_queries *block,
                                                   uint32_t query, uint32_t k)
{
    const uint32_t row = query / block->head_count;
    const float *from = op->q + (block->first_row + row) * op->q_row_stride +
                        (uint64_t)(block->first_head + query % block->head_count) * op->k_width;

#pragma unroll
    for (uint32_t i = 0; i < 4; i++)
        values[i] = row < block->row_count && k + i < op->k_width ? from[k + i] : 0;
}

/* A block's queries, as warps read them: [part][step][16 queries][lane]. */
template <int width, int queries>
__device__ static inline void attention_load_queries(uint4 *to, const struct op_attention *op,
                                                     const struct attention_queries *block,
                                                     uint32_t threads)
{
    constexpr uint32_t tiles = queries / ATTENTION_QUERIES, count = width / 16 * tiles * GPU_WARP;

    for (uint32_t i = threadIdx.x; i < count; i += threads) {
        const uint32_t lane = i % GPU_WARP, tile = i / GPU_WARP % tiles;
        const uint32_t step = i / (GPU_WARP * tiles), g = tile * ATTENTION_QUERIES + lane / 4;
        const uint32_t k = step / 2 * 32 + lane % 4 * 8 + step % 2 * 4;
        float top[4], bottom[4];
        uint32_t words[4][QUERY_PARTS];

        attention_load_query(top, op, block, g, k);
        attention_load_query(bottom, op, block, g + 8, k);
        attention_split<QUERY_PARTS>(words[0], top[0], top[1]);
        attention_split<QUERY_PARTS>(words[1], bottom[0], bottom[1]);
        attention_split<QUERY_PARTS>(words[2], top[2], top[3]);
        attention_split<QUERY_PARTS>(words[3], bottom[2], bottom[3]);
#pragma unroll
        for (uint32_t part = 0; part < QUERY_PARTS; part++)
            to[part * count + i] = make_uint4(words[0][part], words[1][part], words[2][part],
                                              words[3][part]);
    }
}

/* A warp's queries, elements 32 * chunk on: two steps. */
template <int width, int queries>
__device__ static inline void attention_get_queries(uint32_t a[2][QUERY_PARTS][4], const uint4 *q,
                                                    uint32_t tile, uint32_t chunk)
{
    constexpr uint32_t tiles = queries / ATTENTION_QUERIES, count = width / 16 * tiles * GPU_WARP;

#pragma unroll
    for (uint32_t i = 0; i < 2 * QUERY_PARTS; i++) {
        const uint32_t half = i % 2, part = i / 2;
        const uint4 four = q[part * count + ((chunk * 2 + half) * tiles + tile) * GPU_WARP +
                             threadIdx.x % GPU_WARP];

        a[half][part][0] = four.x;
        a[half][part][1] = four.y;
        a[half][part][2] = four.z;
        a[half][part][3] = four.w;
    }
}

/* The same of eight queries, without the other half of a product's: [part][chunk][lane]. */
template <int width>
__device__ static inline void attention_load_eight(uint4 *to, const struct op_attention *op,
                                                   const struct attention_queries *block,
                                                   uint32_t threads)
{
    constexpr uint32_t count = width / 32 * GPU_WARP;

    for (uint32_t i = threadIdx.x; i < count; i += threads) {
        const uint32_t lane = i % GPU_WARP, k = i / GPU_WARP * 32 + lane % 4 * 8;
        uint32_t words[4][QUERY_PARTS];

#pragma unroll
        for (uint32_t step = 0; step < 2; step++) {
            float four[4];

            attention_load_query(four, op, block, lane / 4, k + step * 4);
            attention_split<QUERY_PARTS>(words[2 * step], four[0], four[1]);
            attention_split<QUERY_PARTS>(words[2 * step + 1], four[2], four[3]);
        }
#pragma unroll
        for (uint32_t part = 0; part < QUERY_PARTS; part++)
            to[part * count + i] = make_uint4(words[0][part], words[1][part], words[2][part],
                                              words[3][part]);
    }
}

template <int width>
__device__ static inline void attention_get_eight(uint32_t a[2][QUERY_PARTS][4], const uint4 *q,
                                                  uint32_t chunk)
{
#pragma unroll
    for (uint32_t part = 0; part < QUERY_PARTS; part++) {
        const uint4 four = q[(part * (width / 32) + chunk) * GPU_WARP + threadIdx.x % GPU_WARP];

        a[0][part][0] = four.x;
        a[0][part][2] = four.y;
        a[1][part][0] = four.z;
        a[1][part][2] = four.w;
        a[0][part][1] = a[0][part][3] = a[1][part][1] = a[1][part][3] = 0;
    }
}

/* Eight elements of a key, those of the two steps of a chunk. */
template <int parts>
__device__ static inline void attention_score_chunk(float s[4],
                                                    const uint32_t a[2][QUERY_PARTS][4],
                                                    const uint32_t key[4][parts])
{
    attention_multiply<parts>(s, a[0], key[0], key[1]);
    attention_multiply<parts>(s, a[1], key[2], key[3]);
}

/* ---- softmax ---- */

__device__ static inline bool attention_sees(const struct attention_span *span, uint32_t first)
{
    return span->begin < first + ATTENTION_TILE && span->end > first;
}

/* Scores s[8 keys][lane's four] of the tile at position `first` become p, 0 where a query does not
 * see the key; spans, sums: of queries g and g + 8. */
__device__ static inline void attention_exponentiate(const struct op_attention *op, float s[4][4],
                                                     uint32_t first,
                                                     const struct attention_span spans[2],
                                                     struct attention_sum sums[2])
{
    first += threadIdx.x % 4 * 2;
#pragma unroll
    for (uint32_t i = 0; i < 16; i++)
        s[i / 4][i % 4] *= op->scale;
    if (op->score_cap != 0) {
#pragma unroll
        for (uint32_t i = 0; i < 16; i++)
            s[i / 4][i % 4] = attention_cap(op, s[i / 4][i % 4]);
    }
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        const uint32_t begin = spans[half].begin, end = spans[half].end;
        float best = -INFINITY, sum = 0;

#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t key = first + i / 2 * 8 + i % 2;
            float *score = &s[i / 2][2 * half + i % 2];

            *score = key >= begin && key < end ? *score : -INFINITY;
            best = fmaxf(best, *score);
        }
        best = fmaxf(best, __shfl_xor_sync(GPU_ALL_LANES, best, 1));
        best = fmaxf(best, __shfl_xor_sync(GPU_ALL_LANES, best, 2));
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t key = first + i / 2 * 8 + i % 2;
            float *score = &s[i / 2][2 * half + i % 2];

            *score = key >= begin && key < end ? expf(*score - best) : 0;
            sum += *score;
        }
        sum += __shfl_xor_sync(GPU_ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(GPU_ALL_LANES, sum, 2);
        sums[half] = { best, sum };
    }
}

/* The parts of p, as a step of values reads them. */
__device__ static inline void attention_split_p(uint32_t p[ATTENTION_TILE_STEPS][QUERY_PARTS][4],
                                                const float s[4][4])
{
#pragma unroll
    for (uint32_t i = 0; i < 4 * ATTENTION_TILE_STEPS; i++) {
        const uint32_t step = i / 4, keys = i / 2 % 2, half = i % 2;
        uint32_t words[QUERY_PARTS];

        attention_split<QUERY_PARTS>(words, s[step * 2 + keys][2 * half],
                                     s[step * 2 + keys][2 * half + 1]);
#pragma unroll
        for (uint32_t part = 0; part < QUERY_PARTS; part++)
            p[step][part][keys * 2 + half] = words[part];
    }
}

/* ---- keys ---- */

/* Where in the caches a position's key and value begin. */
__device__ static inline void attention_find_key(const struct op_attention *op, uint32_t row,
                                                 uint32_t kv_head, uint32_t position,
                                                 uint64_t *key_out, uint64_t *value_out)
{
    const int32_t *pages = op->pages + (uint64_t)op->sequences[row] * op->page_count_max;
    const uint64_t page = (uint32_t)pages[position / op->page_size];
    const uint64_t offset = position % op->page_size;

    *key_out = page * op->k_strides.page + kv_head * op->k_strides.head +
               offset * op->k_strides.slot;
    *value_out = page * op->v_strides.page + kv_head * op->v_strides.head +
                 offset * op->v_strides.slot;
}

__device__ static inline uint32_t attention_left(uint32_t width, uint32_t at)
{
    return at < width ? width - at : 0;
}

#endif
