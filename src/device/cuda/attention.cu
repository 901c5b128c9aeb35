/* device/cuda/attention.cu - OP_ATTENTION: softmax over a paged cache, a tile of keys at a time.
 *
 * A block has one row and up to eight of the query heads that share a kv head, so that a key is
 * read once for all of them. Keys are visited in tiles of TILE positions, counted from position 0,
 * so that a row's tiles are the same however its prompt was cut (Milakov and Gimelshein 2018, arXiv
 * 1805.02867, algorithm 3, by tiles). A block's TEAMS of threads take tiles in turn, each with a
 * maximum, sums and a result of its own, and wait for nobody; at the end the teams' are joined, in
 * their order. So one row has four tiles' loads on their way at once. A team's tile:
 *
 *     scores   a warp per key: lanes have four elements each of every 128, then sums over lanes
 *     softmax  a warp for every two heads: m' = max(m, scores), p = exp(score - m'), f = exp(m -
 * m')
 *     values   a thread per column: o = o * f + sum p_j v_j, j ascending
 *
 * A sink is where m and the sum begin: at its logit and at 1. A window makes a row's first tile
 * begin later, or within; so does a chunk. Sums stop at the row's own position, and begin where its
 * window does: what other keys hold, NaN perhaps, does not touch it, and pages before a window are
 * not looked up. */
#include "device/cuda/kernels.h"

#define HEADS 8
#define TILE 64
#define TEAMS 4
#define THREADS 128                  /* of a team */
#define BLOCK_THREADS (TEAMS * THREADS)
#define WARPS (THREADS / GPU_WARP)
#define COLUMNS 4                    /* of a thread */
#define BLOCK_COLUMNS (COLUMNS * THREADS)
#define LANE_ELEMENTS 4
#define KEYS 4                       /* that a warp scores together, once q is loaded */

struct attention_team {
    float p[TILE][HEADS];            /* scores, then their exponentials */
    float factor[HEADS], max[HEADS], sum[HEADS];
    uint64_t keys[TILE], values[TILE]; /* where in the caches they begin */
};

struct attention_shared {
    struct attention_team teams[TEAMS];
    float q[4];                      /* [HEADS][q_stride]; then the result of the team that is
                                        joined, [COLUMNS that there are][HEADS][THREADS] */
};

struct attention_block {
    const struct op_attention *op;
    struct attention_team *shared;   /* the thread's team's */
    float *q, *joined;               /* shared by all */
    uint32_t team, thread;           /* which team, and which of its threads */
    uint32_t row, kv_head, first_head, head_count; /* first_head among all */
    uint32_t q_stride;               /* k_width in fours; what is above it is 0 */
    bool is_aligned;                 /* F32 keys can be read in fours */
    uint32_t begin, end;             /* keys of the tile at hand that the row sees */
};

/* Which of its kv head's query heads the block has: parts of HEADS. */
__device__ static inline void choose_heads(struct attention_block *block)
{
    const struct op_attention *op = block->op;
    const uint32_t group = op->head_count / op->kv_head_count;
    const uint32_t parts = (group + HEADS - 1) / HEADS, part = blockIdx.y % parts;

    block->kv_head = blockIdx.y / parts;
    block->first_head = block->kv_head * group + part * HEADS;
    block->head_count = group - part * HEADS < HEADS ? group - part * HEADS : HEADS;
}

/* Heads that are not there have zeros. */
__device__ static inline void load_q(const struct attention_block *block)
{
    const struct op_attention *op = block->op;
    const float *from = op->q + block->row * op->q_row_stride +
                        (uint64_t)block->first_head * op->k_width;

    for (uint32_t i = threadIdx.x; i < HEADS * block->q_stride; i += BLOCK_THREADS) {
        const uint32_t h = i / block->q_stride, k = i % block->q_stride;

        block->q[i] =
            h < block->head_count && k < op->k_width ? from[(uint64_t)h * op->k_width + k] : 0;
    }
}

/* Of the tile that begins at position `first`. */
__device__ static inline void find_keys(const struct attention_block *block, uint32_t first)
{
    const struct op_attention *op = block->op;
    const int32_t *pages = op->pages + (uint64_t)op->sequences[block->row] * op->page_count_max;

    for (uint32_t j = block->begin + block->thread; j < block->end; j += THREADS) {
        const uint64_t page = (uint32_t)pages[(first + j) / op->page_size];
        const uint64_t offset = (first + j) % op->page_size;

        block->shared->keys[j] = page * op->k_strides.page +
                                 block->kv_head * op->k_strides.head + offset * op->k_strides.slot;
        block->shared->values[j] = page * op->v_strides.page +
                                   block->kv_head * op->v_strides.head +
                                   offset * op->v_strides.slot;
    }
}

/* Sums of eight values over all lanes; lane l gets the sum of value l / 4. */
__device__ static inline float sum_eight(float values[HEADS])
{
    const uint32_t lane = threadIdx.x % GPU_WARP;

#pragma unroll
    for (int width = HEADS / 2, distance = 16; width > 0; width /= 2, distance /= 2) {
        const bool upper = (lane & distance) != 0;

#pragma unroll
        for (int i = 0; i < width; i++) {
            const float kept = upper ? values[i + width] : values[i];
            const float given = upper ? values[i] : values[i + width];

            values[i] = kept + __shfl_xor_sync(GPU_ALL_LANES, given, distance);
        }
    }
    values[0] += __shfl_xor_sync(GPU_ALL_LANES, values[0], 2);
    return values[0] + __shfl_xor_sync(GPU_ALL_LANES, values[0], 1);
}

/* An element of the cache. */
template <int dtype> __device__ static inline float load_one(const void *cache, uint64_t at)
{
    if (dtype == DTYPE_Q8_0) {
        const uint8_t *block = (const uint8_t *)cache + at / 32 * 34;

        return gpu_f16_to_f32(*(const uint16_t *)(const void *)block) *
               (float)(int8_t)block[2 + at % 32];
    }
    return dtype == DTYPE_F16 ? gpu_f16_to_f32(((const uint16_t *)cache)[at])
                              : ((const float *)cache)[at];
}

/* Four elements, of which `left` are there. */
template <int dtype>
__device__ static inline float4 load_four(const void *cache, uint64_t at, uint32_t left,
                                          bool is_aligned)
{
    if (dtype == DTYPE_F32 && is_aligned && left >= LANE_ELEMENTS)
        return *(const float4 *)(const void *)((const float *)cache + at);
    return make_float4(load_one<dtype>(cache, at), left > 1 ? load_one<dtype>(cache, at + 1) : 0,
                       left > 2 ? load_one<dtype>(cache, at + 2) : 0,
                       left > 3 ? load_one<dtype>(cache, at + 3) : 0);
}

/* p[j][h] = q[h] . key j for KEYS keys from `first` on, some of which may not be there. */
template <int dtype>
__device__ static inline void score_some(const struct attention_block *block, uint32_t first)
{
    const struct op_attention *op = block->op;
    struct attention_team *shared = block->shared;
    const uint32_t lane = threadIdx.x % GPU_WARP, width = op->k_width;
    uint64_t keys[KEYS]; /* where in the cache */
    float sums[KEYS][HEADS] = { 0 };

#pragma unroll
    for (uint32_t u = 0; u < KEYS; u++) {
        const uint32_t j = first + u < block->end ? first + u : first;

        keys[u] = shared->keys[j];
    }
    for (uint32_t i = lane * LANE_ELEMENTS; i < width; i += GPU_WARP * LANE_ELEMENTS) {
        float4 k[KEYS];

#pragma unroll
        for (uint32_t u = 0; u < KEYS; u++)
            k[u] = load_four<dtype>(op->k_cache, keys[u] + i, width - i, block->is_aligned);
#pragma unroll
        for (uint32_t h = 0; h < HEADS; h++) {
            const float4 q = *(const float4 *)(block->q + h * block->q_stride + i);

#pragma unroll
            for (uint32_t u = 0; u < KEYS; u++) {
                sums[u][h] = fmaf(q.x, k[u].x, sums[u][h]);
                sums[u][h] = fmaf(q.y, k[u].y, sums[u][h]);
                sums[u][h] = fmaf(q.z, k[u].z, sums[u][h]);
                sums[u][h] = fmaf(q.w, k[u].w, sums[u][h]);
            }
        }
    }
#pragma unroll
    for (uint32_t u = 0; u < KEYS; u++) {
        const float sum = sum_eight(sums[u]);

        if (lane % 4 == 0 && first + u < block->end)
            shared->p[first + u][lane / 4] = sum;
    }
}

__device__ static inline float score_of(const struct op_attention *op, float product)
{
    const float score = product * op->scale;

    return op->score_cap == 0 ? score : op->score_cap * tanhf(score / op->score_cap);
}

/* A warp's two heads; max and sum are theirs so far. */
__device__ static inline void exponentiate(const struct attention_block *block, float max[2],
                                           float sum[2])
{
    struct attention_team *shared = block->shared;
    const uint32_t lane = threadIdx.x % GPU_WARP;

    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t h = block->thread / GPU_WARP * 2 + i;
        float scores[2], best = max[i], part = 0, factor;

        for (uint32_t k = 0; k < 2; k++) {
            const uint32_t j = lane + k * GPU_WARP;
            const bool is_seen = j >= block->begin && j < block->end;

            scores[k] = is_seen ? score_of(block->op, shared->p[j][h]) : -INFINITY;
            best = fmaxf(best, scores[k]);
        }
        best = gpu_warp_max(best);
        for (uint32_t k = 0; k < 2; k++) {
            const uint32_t j = lane + k * GPU_WARP;
            const bool is_seen = j >= block->begin && j < block->end;
            const float p = is_seen ? expf(scores[k] - best) : 0;

            if (is_seen)
                shared->p[j][h] = p;
            part += p;
        }
        factor = expf(max[i] - best);
        sum[i] = fmaf(sum[i], factor, gpu_warp_sum(part));
        max[i] = best;
        if (lane == 0)
            shared->factor[h] = factor;
    }
}

template <int dtype>
__device__ static inline void add_values(const struct attention_block *block,
                                         uint32_t first_column, float acc[COLUMNS][HEADS])
{
    const struct op_attention *op = block->op;
    const struct attention_team *shared = block->shared;

#pragma unroll
    for (uint32_t h = 0; h < HEADS; h++)
#pragma unroll
        for (uint32_t c = 0; c < COLUMNS; c++)
            acc[c][h] *= shared->factor[h];
#pragma unroll(dtype == DTYPE_F32 ? 8 : 4) /* so many keys' values are on their way at once */
    for (uint32_t j = block->begin; j < block->end; j++) {
        const uint64_t value = shared->values[j];

#pragma unroll
        for (uint32_t c = 0; c < COLUMNS; c++) {
            const uint32_t column = first_column + c * THREADS;
            const float v =
                column < op->v_width ? load_one<dtype>(op->v_cache, value + column) : 0;

#pragma unroll
            for (uint32_t h = 0; h < HEADS; h++)
                acc[c][h] = fmaf(shared->p[j][h], v, acc[c][h]);
        }
    }
}

/* To where a team's result is joined; or what is there is added to it. */
template <bool there>
__device__ static inline void move_result(const struct attention_block *block,
                                          uint32_t first_column, float acc[COLUMNS][HEADS])
{
#pragma unroll
    for (uint32_t c = 0; c < COLUMNS; c++) {
        if (first_column - block->thread + c * THREADS >= block->op->v_width)
            break;
#pragma unroll
        for (uint32_t h = 0; h < HEADS; h++) {
            float *at = block->joined + (c * HEADS + h) * THREADS + block->thread;

            if (there)
                *at = acc[c][h];
            else
                acc[c][h] += *at;
        }
    }
}

/* Where a warp's two heads begin: a sink is the first team's. */
__device__ static inline void begin_sums(const struct attention_block *block, float max[2],
                                         float sum[2])
{
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t h = block->thread / GPU_WARP * 2 + i;
        const bool has_sink =
            block->op->sinks != nullptr && h < block->head_count && block->team == 0;

        max[i] = has_sink ? block->op->sinks[block->first_head + h] : -INFINITY;
        sum[i] = has_sink ? 1 : 0;
    }
}

template <int dtype>
__device__ static inline void attend_tile(struct attention_block *block, uint32_t first,
                                          uint32_t first_column, float max[2], float sum[2],
                                          float acc[COLUMNS][HEADS])
{
    find_keys(block, first);
    gpu_part_sync(block->team, THREADS);
    for (uint32_t j = block->begin + block->thread / GPU_WARP * KEYS; j < block->end;
         j += WARPS * KEYS)
        score_some<dtype>(block, j);
    gpu_part_sync(block->team, THREADS);
    exponentiate(block, max, sum);
    gpu_part_sync(block->team, THREADS);
    add_values<dtype>(block, first_column, acc);
    gpu_part_sync(block->team, THREADS);
}

/* The teams' results become one, in the first team's threads: each is worth exp(its maximum - the
 * largest). A team without a tile has -infinity and zeros. */
__device__ static inline void join_teams(const struct attention_block *block,
                                         const struct attention_team *teams, uint32_t first_column,
                                         float acc[COLUMNS][HEADS], float sums[HEADS])
{
    __syncthreads(); /* all have told their maximums, and q has been read */
#pragma unroll
    for (uint32_t h = 0; h < HEADS; h++) {
        float best = teams[0].max[h], worth;

        for (uint32_t t = 1; t < TEAMS; t++)
            best = fmaxf(best, teams[t].max[h]);
        sums[h] = 0;
        for (uint32_t t = 0; t < TEAMS; t++)
            sums[h] = fmaf(teams[t].sum[h], expf(teams[t].max[h] - best), sums[h]);
        worth = expf(block->shared->max[h] - best);
#pragma unroll
        for (uint32_t c = 0; c < COLUMNS; c++)
            acc[c][h] *= worth;
    }
    for (uint32_t t = 1; t < TEAMS; t++) {
        if (block->team == t)
            move_result<true>(block, first_column, acc);
        __syncthreads();
        if (block->team == 0)
            move_result<false>(block, first_column, acc);
        __syncthreads();
    }
}

__device__ static inline void write_out(const struct attention_block *block, uint32_t first_column,
                                        const float acc[COLUMNS][HEADS], const float sums[HEADS])
{
    const struct op_attention *op = block->op;
    float *out = op->out + block->row * op->out_row_stride +
                 (uint64_t)block->first_head * op->v_width;

#pragma unroll
    for (uint32_t h = 0; h < HEADS; h++)
#pragma unroll
        for (uint32_t c = 0; c < COLUMNS; c++)
            if (h < block->head_count && first_column + c * THREADS < op->v_width)
                out[h * op->v_width + first_column + c * THREADS] = acc[c][h] / sums[h];
}

/* The keys that the row sees, a tile of every TEAMS for each team. */
template <int dtype>
__device__ static inline void attend(struct attention_block *block, uint32_t first_column,
                                     float acc[COLUMNS][HEADS])
{
    const struct op_attention *op = block->op;
    const uint32_t key_end = (uint32_t)op->positions[block->row] + 1;
    const uint32_t key_begin = op->window == 0    ? 0
                               : op->chunked      ? (key_end - 1) / op->window * op->window
                               : op->window < key_end ? key_end - op->window : 0;
    uint32_t tile = key_begin / TILE;
    float max[2], sum[2];

    begin_sums(block, max, sum);
    for (tile += (block->team + TEAMS - tile % TEAMS) % TEAMS; tile < (key_end + TILE - 1) / TILE;
         tile += TEAMS) {
        const uint32_t first = tile * TILE;

        block->begin = key_begin > first ? key_begin - first : 0;
        block->end = key_end - first < TILE ? key_end - first : TILE;
        attend_tile<dtype>(block, first, first_column, max, sum, acc);
    }
    for (uint32_t i = 0; i < 2 && threadIdx.x % GPU_WARP == 0; i++) {
        block->shared->max[block->thread / GPU_WARP * 2 + i] = max[i];
        block->shared->sum[block->thread / GPU_WARP * 2 + i] = sum[i];
    }
}

template <int dtype>
__global__ void __launch_bounds__(BLOCK_THREADS) attention(const struct op_attention op)
{
    GPU_SHARED(memory);
    struct attention_shared *shared = (struct attention_shared *)memory;
    const uint32_t first_column = blockIdx.z * BLOCK_COLUMNS + threadIdx.x % THREADS;
    struct attention_block block;
    float acc[COLUMNS][HEADS] = { 0 }, sums[HEADS];

    block.op = &op;
    block.team = threadIdx.x / THREADS;
    block.thread = threadIdx.x % THREADS;
    block.shared = &shared->teams[block.team];
    block.q = block.joined = shared->q;
    block.row = blockIdx.x;
    block.q_stride = (op.k_width + 3) / 4 * 4;
    block.is_aligned = (((uintptr_t)op.k_cache | op.k_strides.page * 4 | op.k_strides.head * 4 |
                         op.k_strides.slot * 4) & 15) == 0;
    choose_heads(&block);
    load_q(&block);
    __syncthreads();
    attend<dtype>(&block, first_column, acc);
    join_teams(&block, shared->teams, first_column, acc, sums);
    if (block.team == 0)
        write_out(&block, first_column, acc, sums);
}

template <int dtype>
static cudaError_t launch_attention(const struct op_attention *op, cudaStream_t stream)
{
    const struct op_attention copy = *op;
    const uint32_t group = op->head_count / op->kv_head_count;
    const dim3 grid(op->row_count, op->kv_head_count * ((group + HEADS - 1) / HEADS),
                    (op->v_width + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS);
    const size_t q_bytes = HEADS * (op->k_width + 3) * sizeof(float);
    const uint32_t columns = (op->v_width + THREADS - 1) / THREADS;
    const size_t joined_bytes =
        (columns < COLUMNS ? columns : COLUMNS) * HEADS * THREADS * sizeof(float);
    const size_t shared_bytes =
        sizeof(struct attention_shared) + (q_bytes > joined_bytes ? q_bytes : joined_bytes);
    cudaError_t code = cudaFuncSetAttribute(
        attention<dtype>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes);

    if (code != cudaSuccess)
        return code;
    GPU_LAUNCH(attention<dtype>, grid, BLOCK_THREADS, shared_bytes, stream, copy);
    return cudaGetLastError();
}

cudaError_t cuda_attention(const struct op_attention *op, cudaStream_t stream)
{
    switch (op->cache_dtype) {
    case DTYPE_F16: return launch_attention<DTYPE_F16>(op, stream);
    case DTYPE_Q8_0: return launch_attention<DTYPE_Q8_0>(op, stream);
    default: return launch_attention<DTYPE_F32>(op, stream);
    }
}
