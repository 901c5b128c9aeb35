/* device/cuda/attention_narrow.cu - OP_ATTENTION for a row alone: up to 16 of its heads that share
 * a kv head (8 of heads wider than 128), and a part of its keys at once.
 *
 * Each of a block's warps has a tile of the part (attention_mma.h). With one row every element of
 * the cache belongs to one lane: it comes straight to that lane's registers, the next 32 of a key's
 * elements while these are multiplied, and is read once for all heads. Tensor cores compute for 16
 * heads, however few there are; reading takes longer. Then the tiles' results, which meet in shared
 * memory, become the part's, and the part is left in the room or added to what there is. */
#include "device/cuda/attention_mma.h"

#define THREADS 256
#define WARPS (THREADS / GPU_WARP)
#define PADDING 4 /* floats behind a vector of results, so that queries begin in other banks */

static_assert(WARPS *ATTENTION_TILE == ATTENTION_PART, "a warp has a tile of the part");

/* Of heads that share a kv head. Shared memory holds the results of 8 of heads wider than 128. */
GPU_BOTH constexpr uint32_t narrow_query_count(uint32_t width)
{
    return width > 128 ? 8 : ATTENTION_QUERIES;
}

template <int width> struct narrow_shared {
    static constexpr uint32_t queries = narrow_query_count(width);

    uint4 q[QUERY_PARTS * (width / 16) * queries * 2];
    uint64_t keys[WARPS][ATTENTION_TILE], values[WARPS][ATTENTION_TILE]; /* where they begin */
    struct attention_sum sums[WARPS][queries];
    /* what becomes of sums of values: with each tile, and with the part */
    float keep[queries][WARPS + 1], add[queries][WARPS + 1];
    struct attention_sum so_far[queries];
    float results[4]; /* [WARPS + 1][head_count][width + PADDING]: of the tiles, and so far */
};

template <int width> struct narrow_block {
    const struct op_attention *op;
    struct narrow_shared<width> *shared;
    struct attention_queries queries;
    struct attention_span span;
    bool keys_are_aligned, values_are_aligned;
};

/* Of the warp's tile; keys that the row does not see are one that it sees, with p = 0. */
template <int width>
__device__ static inline void find_keys(const struct narrow_block<width> *block, uint32_t first)
{
    const uint32_t warp = threadIdx.x / GPU_WARP, lane = threadIdx.x % GPU_WARP;
    const uint32_t seen = max(min(first + lane, block->span.end - 1), block->span.begin);

    attention_find_key(block->op, block->queries.first_row, block->queries.kv_head, seen,
                       &block->shared->keys[warp][lane], &block->shared->values[warp][lane]);
    __syncwarp();
}

/* The lane's elements 32 * chunk on, of its keys of all four eights. */
template <int dtype, int width>
__device__ static inline void load_keys(float raw[4][8], const struct narrow_block<width> *block,
                                        uint32_t chunk)
{
    const struct op_attention *op = block->op;
    const uint64_t *keys = block->shared->keys[threadIdx.x / GPU_WARP];
    const uint32_t k = chunk * 32 + threadIdx.x % 4 * 8, left = attention_left(op->k_width, k);

#pragma unroll
    for (uint32_t i = 0; i < 4; i++)
        attention_load<dtype, 8>(raw[i], op->k_cache,
                                 keys[i * 8 + threadIdx.x % GPU_WARP / 4] + k, left,
                                 block->keys_are_aligned && left >= 8);
}

template <int dtype, int width>
__device__ static inline void score(float s[4][4], const struct narrow_block<width> *block)
{
    constexpr int parts = attention_cache<dtype>::parts;
    float raw[4][8], next[4][8];

    load_keys<dtype>(next, block, 0);
#pragma unroll 1
    for (uint32_t chunk = 0; chunk < width / 32; chunk++) {
        uint32_t a[2][QUERY_PARTS][4];

#pragma unroll
        for (uint32_t i = 0; i < 32; i++)
            raw[i / 8][i % 8] = next[i / 8][i % 8];
        if (chunk + 1 < width / 32)
            load_keys<dtype>(next, block, chunk + 1);
        if constexpr (narrow_query_count(width) == 8)
            attention_get_eight<width>(a, block->shared->q, chunk);
        else
            attention_get_queries<width, ATTENTION_QUERIES>(a, block->shared->q, 0, chunk);
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t words[4][parts];

#pragma unroll
            for (uint32_t j = 0; j < 4; j++)
                attention_split<parts>(words[j], raw[i][2 * j], raw[i][2 * j + 1]);
            attention_score_chunk<parts>(s[i], a, words);
        }
    }
}

/* The lane's four columns, 32 * group on, of its four keys of a step. */
template <int dtype, int width>
__device__ static inline void load_values(float raw[4][4], const struct narrow_block<width> *block,
                                          uint32_t step, uint32_t group)
{
    const struct op_attention *op = block->op;
    const uint64_t *values = block->shared->values[threadIdx.x / GPU_WARP];
    const uint32_t column = group * 32 + threadIdx.x % GPU_WARP / 4 * 4;
    const uint32_t left = attention_left(op->v_width, column);

#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t key = step * 16 + threadIdx.x % 4 * 2 + i / 2 * 8 + i % 2;

        attention_load<dtype, 4>(raw[i], op->v_cache, values[key] + column, left,
                                 block->values_are_aligned && left >= 4);
    }
}

/* A result of a tile; of tile WARPS: what there is so far. */
template <int width>
__device__ static inline float *result_of(const struct narrow_block<width> *block, uint32_t tile,
                                          uint32_t query, uint32_t column)
{
    return block->shared->results +
           (tile * block->queries.head_count + query) * (width + PADDING) + column;
}

/* Leaves the sums of values of a tile's columns 32 * group on in shared memory. */
template <int width>
__device__ static inline void leave_values(const struct narrow_block<width> *block, uint32_t group,
                                           const float acc[4][4])
{
    const uint32_t warp = threadIdx.x / GPU_WARP, q = threadIdx.x % 4;
    const uint32_t g = threadIdx.x % GPU_WARP / 4;

#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t query = g + i / 2 * 8;

        if (query < block->queries.head_count)
            *(float4 *)result_of(block, warp, query, group * 32 + q * 8 + i % 2 * 4) =
                make_float4(acc[0][i], acc[1][i], acc[2][i], acc[3][i]);
    }
}

template <int dtype, int width>
__device__ static inline void add_values(const struct narrow_block<width> *block,
                                         const float s[4][4])
{
    constexpr int parts = attention_cache<dtype>::parts;
    constexpr uint32_t groups = width / 32;
    uint32_t p[ATTENTION_TILE_STEPS][QUERY_PARTS][4];
    float raw[4][4], next[4][4];

    load_values<dtype>(next, block, 0, 0);
    attention_split_p(p, s);
#pragma unroll 1
    for (uint32_t group = 0; group < groups; group++) {
        float acc[4][4] = {};

#pragma unroll
        for (uint32_t step = 0; step < ATTENTION_TILE_STEPS; step++) {
#pragma unroll
            for (uint32_t i = 0; i < 16; i++)
                raw[i / 4][i % 4] = next[i / 4][i % 4];
            if (step + 1 < ATTENTION_TILE_STEPS)
                load_values<dtype>(next, block, step + 1, group);
            else if (group + 1 < groups)
                load_values<dtype>(next, block, 0, group + 1);
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                uint32_t words[2][parts];

                attention_split<parts>(words[0], raw[0][i], raw[1][i]);
                attention_split<parts>(words[1], raw[2][i], raw[3][i]);
                attention_multiply<parts>(acc[i], p[step], words[0], words[1]);
            }
        }
        leave_values(block, group, acc);
    }
}

/* The warp's tile, if the row sees some of it. */
template <int dtype, int width>
__device__ static inline void attend_tile(const struct narrow_block<width> *block, uint32_t first)
{
    const uint32_t lane = threadIdx.x % GPU_WARP, warp = threadIdx.x / GPU_WARP;
    const struct attention_span spans[2] = { block->span, block->span };
    struct attention_sum sums[2];
    float s[4][4] = {};

    find_keys(block, first);
    score<dtype>(s, block);
    attention_exponentiate(block->op, s, first, spans, sums);
    if (lane % 4 == 0) {
        block->shared->sums[warp][lane / 4] = sums[0];
        if constexpr (narrow_query_count(width) > 8)
            block->shared->sums[warp][lane / 4 + 8] = sums[1];
    }
    add_values<dtype>(block, s);
}

/* A query's tiles [begin, end) become its part. */
template <int width>
__device__ static inline struct attention_sum join_sums(struct narrow_shared<width> *shared,
                                                        uint32_t query, uint32_t begin,
                                                        uint32_t end)
{
    struct attention_sum part = { -INFINITY, 0 };

    for (uint32_t tile = begin; tile < end; tile++)
        attention_fold(&part, &shared->sums[tile][query], &shared->keep[query][tile],
                       &shared->add[query][tile]);
    return part;
}

/* What a thread has after the tiles: every THREADS-th of the queries' columns; false: no more. */
template <int width>
__device__ static inline bool column_of(const struct narrow_block<width> *block, uint32_t i,
                                        uint32_t *query_out, uint32_t *column_out)
{
    *query_out = (i * THREADS + threadIdx.x) / width;
    *column_out = (i * THREADS + threadIdx.x) % width;
    return *query_out < block->queries.head_count;
}

/* The values of a part's tiles [begin, end) become one; they go to the room, or are added to what
 * there is. */
template <int width, bool is_cut>
__device__ static inline void join_values(const struct narrow_block<width> *block,
                                          const struct attention_round *round, uint64_t place,
                                          uint32_t begin, uint32_t end)
{
    const struct narrow_shared<width> *shared = block->shared;
    uint32_t query, column;

    for (uint32_t i = 0; column_of(block, i, &query, &column); i++) {
        const float *keep = shared->keep[query], *add = shared->add[query];
        float *so_far = result_of(block, WARPS, query, column), value = 0;

        for (uint32_t tile = begin; tile < end; tile++)
            value = fmaf(*result_of(block, tile, query, column), add[tile], value * keep[tile]);
        if (!is_cut)
            *so_far = fmaf(value, add[WARPS], *so_far * keep[WARPS]);
        else if (column < block->op->v_width)
            attention_values(block->op, round)[(place + query * (round->count + 1)) *
                                                   block->op->v_width + column] = value;
    }
}

/* All of a part. */
template <int dtype, int width, bool is_cut>
__device__ static inline void attend_part(const struct narrow_block<width> *block,
                                          const struct attention_round *round, uint32_t part)
{
    const uint32_t heads = block->queries.head_count, first = part * ATTENTION_PART;
    const uint32_t mine = first + threadIdx.x / GPU_WARP * ATTENTION_TILE;
    const uint32_t begin = (max(block->span.begin, first) - first) / ATTENTION_TILE;
    const uint32_t end = (min(block->span.end - first, ATTENTION_PART) + ATTENTION_TILE - 1) /
                         ATTENTION_TILE;
    struct narrow_shared<width> *shared = block->shared;
    uint64_t place = 0;

    if (attention_sees(&block->span, mine))
        attend_tile<dtype>(block, mine);
    __syncthreads();
    if (is_cut)
        place = attention_place(block->op, round, block->queries.first_row,
                                block->queries.first_head,
                                part - block->span.first_part - round->first);
    if (threadIdx.x < heads) {
        const struct attention_sum sum = join_sums(shared, threadIdx.x, begin, end);

        if (is_cut)
            attention_sums(round)[place + threadIdx.x * (round->count + 1)] = sum;
        else
            attention_fold(&shared->so_far[threadIdx.x], &sum, &shared->keep[threadIdx.x][WARPS],
                           &shared->add[threadIdx.x][WARPS]);
    }
    __syncthreads();
    join_values<width, is_cut>(block, round, place, begin, end);
    __syncthreads(); /* before another part's tiles are there */
}

/* All parts of the row. */
template <int dtype, int width>
__device__ static inline void attend_row(const struct narrow_block<width> *block)
{
    const struct op_attention *op = block->op;
    const struct attention_queries *queries = &block->queries;
    float *out = op->out + queries->first_row * op->out_row_stride +
                 (uint64_t)queries->first_head * op->v_width;
    uint32_t query, column;

    if (threadIdx.x < queries->head_count)
        block->shared->so_far[threadIdx.x] =
            attention_begin(op, queries->first_head + threadIdx.x);
    for (uint32_t i = 0; column_of(block, i, &query, &column); i++)
        *result_of(block, WARPS, query, column) = 0;
    for (uint32_t part = block->span.first_part; part < block->span.part_end; part++)
        attend_part<dtype, width, false>(block, nullptr, part);
    for (uint32_t i = 0; column_of(block, i, &query, &column); i++)
        if (column < op->v_width)
            out[query * op->v_width + column] = *result_of(block, WARPS, query, column) /
                                                block->shared->so_far[query].sum;
}

/* Along y: heads; along z: of rows that are cut, parts. */
template <int dtype, int width, bool is_cut>
__global__ void __launch_bounds__(THREADS, 2)
    narrow(const struct op_attention op, const struct attention_round round)
{
    GPU_SHARED(memory);
    const uint32_t row = blockIdx.x;
    struct narrow_block<width> block;

    block.op = &op;
    block.shared = (struct narrow_shared<width> *)memory;
    block.queries = attention_queries_of(&op, narrow_query_count(width), blockIdx.y);
    block.queries.first_row = row;
    block.queries.row_count = 1;
    block.span = attention_span_of(&op, row);
    block.keys_are_aligned = attention_is_aligned<dtype>(op.k_cache, &op.k_strides);
    block.values_are_aligned = attention_is_aligned<dtype>(op.v_cache, &op.v_strides);
    if (!attention_is_mine(&op, &round, row))
        return;
    if (is_cut && block.span.first_part + round.first + blockIdx.z >= block.span.part_end)
        return;
    if constexpr (narrow_query_count(width) == 8)
        attention_load_eight<width>(block.shared->q, &op, &block.queries, THREADS);
    else
        attention_load_queries<width, ATTENTION_QUERIES>(block.shared->q, &op, &block.queries,
                                                         THREADS);
    __syncthreads();
    if (is_cut)
        attend_part<dtype, width, true>(&block, &round,
                                        block.span.first_part + round.first + blockIdx.z);
    else
        attend_row<dtype>(&block);
}

/* ---- launches ---- */

static uint32_t query_count(const struct op_attention *op)
{
    return narrow_query_count(op->k_width > op->v_width ? op->k_width : op->v_width);
}

dim3 attention_narrow_grid(const struct op_attention *op)
{
    return dim3(op->row_count, attention_head_blocks(op, query_count(op)));
}

cudaError_t attention_narrow_launch(const struct op_attention *op,
                                    const struct attention_round *round, uint32_t parts,
                                    cudaStream_t stream)
{
    const uint32_t group = op->head_count / op->kv_head_count;
    const uint32_t heads = group < query_count(op) ? group : query_count(op);
    dim3 grid = attention_narrow_grid(op);

    grid.z = parts;
    return attention_choose_width(op, round, [&](auto dtype, auto width, auto is_cut) {
        const size_t shared_bytes = sizeof(struct narrow_shared<width>) +
                                    (WARPS + 1) * heads * (width + PADDING) * sizeof(float);

        return attention_start(narrow<dtype, width, is_cut>, grid, THREADS, shared_bytes, stream,
                               op, round);
    });
}
