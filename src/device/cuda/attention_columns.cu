/* device/cuda/attention_columns.cu - OP_ATTENTION for heads wider than tensor cores take them, as
 * latent attention has them: a part of the keys at once, in F32.
 *
 * A block has one row and up to eight of the query heads that share a kv head, so that a key is
 * read once for all of them. Its TEAMS of threads have a tile of TILE positions each, which are a
 * part together (attention_parts.h), so that all tiles' loads are under way. A team's tile:
 *
 *     scores   a warp per key: lanes have four elements each of every 128, then sums over lanes
 *     softmax  a warp for every two heads: m = max(scores), p = exp(score - m)
 *     values   a thread per column: o = sum p_j v_j, j ascending
 *
 * Then the teams' results become the part's, in their order: each is worth exp(its m - the
 * largest). A block that has all parts of its row adds each to what it has; one that has a part of
 * its own leaves it to attention_fold.cu, which does the same.
 *
 * A window makes a row's first tile begin within, or be left out; so does a chunk. Sums stop at the
 * row's own position, and begin where its window does: what other keys hold, NaN perhaps, does not
 * touch it, and pages before a window are not looked up. */
#include "device/cuda/attention_load.h"
#include "device/cuda/attention_parts.h"

#define HEADS 8
#define TILE 64
#define TEAMS (ATTENTION_PART / TILE)
#define THREADS 128                  /* of a team */
#define BLOCK_THREADS (TEAMS * THREADS)
#define WARPS (THREADS / GPU_WARP)
#define LANE_ELEMENTS 4
#define KEYS 4                       /* that a warp scores together, once q is loaded */
#define THREAD_HEADS (HEADS / TEAMS) /* that a thread adds up over teams: team, team + TEAMS */
#define COLUMNS 4                    /* of a thread, THREADS apart */

struct attention_team {
    float p[TILE][HEADS];            /* scores, then their exponentials */
    struct attention_sum sums[HEADS];
    uint64_t keys[TILE], values[TILE]; /* where in the caches they begin */
};

struct attention_shared {
    struct attention_team teams[TEAMS];
    float results[TEAMS][HEADS][THREADS]; /* of one column of each thread */
    float q[4];                      /* [HEADS][q_stride] */
};

struct attention_block {
    const struct op_attention *op;
    struct attention_shared *all;
    struct attention_team *shared;   /* the thread's team's */
    uint32_t team, thread;           /* which team, and which of its threads */
    uint32_t row, kv_head, first_head, head_count; /* first_head among all */
    uint32_t first_column;           /* the thread's; the others come every THREADS */
    uint32_t q_stride;               /* k_width in fours; what is above it is 0 */
    bool is_aligned;                 /* four keys' elements can be read at once */
    struct attention_span span;
    uint32_t begin, end;             /* keys of the tile at hand that the row sees */
};

/* What a thread has of the parts so far: of THREAD_HEADS heads. */
struct attention_so_far {
    struct attention_sum sums[THREAD_HEADS];
    float values[COLUMNS][THREAD_HEADS];
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

        block->all->q[i] =
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

/* p[j][h] = q[h] . key j for KEYS keys from `first` on, some of which may not be there. */
template <int dtype>
__device__ static inline void score_some(const struct attention_block *block, uint32_t first)
{
    const struct op_attention *op = block->op;
    struct attention_team *shared = block->shared;
    const uint32_t lane = threadIdx.x % GPU_WARP, width = op->k_width;
    uint64_t keys[KEYS]; /* where in the cache */
    float sums[KEYS][HEADS] = {};

#pragma unroll
    for (uint32_t u = 0; u < KEYS; u++) {
        const uint32_t j = first + u < block->end ? first + u : first;

        keys[u] = shared->keys[j];
    }
    for (uint32_t i = lane * LANE_ELEMENTS; i < width; i += GPU_WARP * LANE_ELEMENTS) {
        float k[KEYS][LANE_ELEMENTS];

#pragma unroll
        for (uint32_t u = 0; u < KEYS; u++)
            attention_load<dtype, LANE_ELEMENTS>(
                k[u], op->k_cache, keys[u] + i, width - i,
                block->is_aligned && width - i >= LANE_ELEMENTS);
#pragma unroll
        for (uint32_t h = 0; h < HEADS; h++) {
            const float4 q = *(const float4 *)(block->all->q + h * block->q_stride + i);

#pragma unroll
            for (uint32_t u = 0; u < KEYS; u++) {
                sums[u][h] = fmaf(q.x, k[u][0], sums[u][h]);
                sums[u][h] = fmaf(q.y, k[u][1], sums[u][h]);
                sums[u][h] = fmaf(q.z, k[u][2], sums[u][h]);
                sums[u][h] = fmaf(q.w, k[u][3], sums[u][h]);
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

/* A warp's two heads. */
__device__ static inline void exponentiate(const struct attention_block *block)
{
    struct attention_team *shared = block->shared;
    const uint32_t lane = threadIdx.x % GPU_WARP;

    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t h = block->thread / GPU_WARP * 2 + i;
        float scores[2], best = -INFINITY, sum = 0;

        for (uint32_t k = 0; k < 2; k++) {
            const uint32_t j = lane + k * GPU_WARP;
            const bool is_seen = j >= block->begin && j < block->end;

            scores[k] = is_seen ? shared->p[j][h] * block->op->scale : -INFINITY;
            if (is_seen && block->op->score_cap != 0)
                scores[k] = attention_cap(block->op, scores[k]);
            best = fmaxf(best, scores[k]);
        }
        best = gpu_warp_max(best);
        for (uint32_t k = 0; k < 2; k++) {
            const uint32_t j = lane + k * GPU_WARP;
            const bool is_seen = j >= block->begin && j < block->end;
            const float p = is_seen ? expf(scores[k] - best) : 0;

            if (is_seen)
                shared->p[j][h] = p;
            sum += p;
        }
        sum = gpu_warp_sum(sum);
        if (lane == 0)
            shared->sums[h] = { best, sum };
    }
}

template <int dtype>
__device__ static inline void add_values(const struct attention_block *block,
                                         float acc[COLUMNS][HEADS])
{
    const struct op_attention *op = block->op;
    const struct attention_team *shared = block->shared;

#pragma unroll(dtype == DTYPE_F32 ? 8 : 4) /* keys that are on their way */
    for (uint32_t j = block->begin; j < block->end; j++) {
        const uint64_t value = shared->values[j];

#pragma unroll
        for (uint32_t c = 0; c < COLUMNS; c++) {
            const uint32_t column = block->first_column + c * THREADS;
            const float v =
                column < op->v_width ? attention_load_one<dtype>(op->v_cache, value + column) : 0;

#pragma unroll
            for (uint32_t h = 0; h < HEADS; h++)
                acc[c][h] = fmaf(shared->p[j][h], v, acc[c][h]);
        }
    }
}

/* A team's tile of the part, of which the row may see nothing. */
template <int dtype>
__device__ static inline void attend_tile(struct attention_block *block, uint32_t part,
                                          float acc[COLUMNS][HEADS])
{
    const uint32_t first = part * ATTENTION_PART + block->team * TILE;
    const struct attention_span *span = &block->span;

    if (span->end <= first || span->begin >= first + TILE) {
        if (block->thread < HEADS)
            block->shared->sums[block->thread] = { -INFINITY, 0 };
        return;
    }
    block->begin = span->begin > first ? span->begin - first : 0;
    block->end = span->end - first < TILE ? span->end - first : TILE;
    find_keys(block, first);
    gpu_part_sync(block->team, THREADS);
    for (uint32_t j = block->begin + block->thread / GPU_WARP * KEYS; j < block->end;
         j += WARPS * KEYS)
        score_some<dtype>(block, j);
    gpu_part_sync(block->team, THREADS);
    exponentiate(block);
    gpu_part_sync(block->team, THREADS);
    add_values<dtype>(block, acc);
}

/* What a team's result is worth in its part, and the part's maximum and sum. */
__device__ static inline struct attention_sum join_sums(const struct attention_team *teams,
                                                        uint32_t h, float worth[TEAMS])
{
    struct attention_sum part = { teams[0].sums[h].max, 0 };

#pragma unroll
    for (uint32_t t = 1; t < TEAMS; t++)
        part.max = fmaxf(part.max, teams[t].sums[h].max);
#pragma unroll
    for (uint32_t t = 0; t < TEAMS; t++) {
        worth[t] = expf(teams[t].sums[h].max - part.max);
        part.sum = fmaf(teams[t].sums[h].sum, worth[t], part.sum);
    }
    return part;
}

/* Leaves a part's results in the round's room. */
__device__ static inline void leave_part(const struct attention_block *block,
                                         const struct attention_round *round, uint32_t part,
                                         uint32_t h, uint32_t column,
                                         const struct attention_sum *sum, float value)
{
    const struct op_attention *op = block->op;
    uint64_t place;

    if (h >= block->head_count || column >= op->v_width)
        return;
    place = attention_place(op, round, block->row, block->first_head + h,
                            part - block->span.first_part - round->first);
    if (column == 0)
        attention_sums(round)[place] = *sum;
    attention_values(op, round)[place * op->v_width + column] = value;
}

/* The teams' results become the part's, each thread's for THREAD_HEADS heads; these are left in the
 * room, or added to what there is. */
template <bool is_cut>
__device__ static inline void join_teams(const struct attention_block *block,
                                         const struct attention_round *round, uint32_t part,
                                         const float acc[COLUMNS][HEADS],
                                         struct attention_so_far *so_far)
{
    struct attention_shared *all = block->all;
    struct attention_sum sums[THREAD_HEADS];
    float worth[THREAD_HEADS][TEAMS], keep[THREAD_HEADS], add[THREAD_HEADS];

#pragma unroll
    for (uint32_t c = 0; c < COLUMNS; c++) {
        if (block->first_column - block->thread + c * THREADS >= block->op->v_width)
            break;
#pragma unroll
        for (uint32_t h = 0; h < HEADS; h++)
            all->results[block->team][h][block->thread] = acc[c][h];
        __syncthreads();
#pragma unroll
        for (uint32_t i = 0; i < THREAD_HEADS; i++) {
            const uint32_t h = block->team + i * TEAMS;
            float value = 0;

            if (c == 0) {
                sums[i] = join_sums(all->teams, h, worth[i]);
                if (!is_cut)
                    attention_fold(&so_far->sums[i], &sums[i], &keep[i], &add[i]);
            }
#pragma unroll
            for (uint32_t t = 0; t < TEAMS; t++)
                value = fmaf(all->results[t][h][block->thread], worth[i][t], value);
            if (is_cut)
                leave_part(block, round, part, h, block->first_column + c * THREADS, &sums[i],
                           value);
            else
                so_far->values[c][i] = fmaf(value, add[i], so_far->values[c][i] * keep[i]);
        }
        __syncthreads(); /* before another column, or another part, is there */
    }
}

__device__ static inline void write_out(const struct attention_block *block,
                                        const struct attention_so_far *so_far)
{
    const struct op_attention *op = block->op;
    float *out = op->out + block->row * op->out_row_stride +
                 (uint64_t)block->first_head * op->v_width;

#pragma unroll
    for (uint32_t i = 0; i < THREAD_HEADS; i++)
#pragma unroll
        for (uint32_t c = 0; c < COLUMNS; c++) {
            const uint32_t h = block->team + i * TEAMS;
            const uint32_t column = block->first_column + c * THREADS;

            if (h < block->head_count && column < op->v_width)
                out[h * op->v_width + column] = so_far->values[c][i] / so_far->sums[i].sum;
        }
}

template <int dtype>
__device__ static inline void attend_part(struct attention_block *block,
                                          const struct attention_round *round, uint32_t part)
{
    float acc[COLUMNS][HEADS] = {};

    attend_tile<dtype>(block, part, acc);
    join_teams<true>(block, round, part, acc, nullptr);
}

template <int dtype>
__device__ static inline void attend_row(struct attention_block *block)
{
    struct attention_so_far so_far = {};

#pragma unroll
    for (uint32_t i = 0; i < THREAD_HEADS; i++) {
        const uint32_t h = block->team + i * TEAMS;

        so_far.sums[i] = attention_begin(
            block->op, block->first_head + (h < block->head_count ? h : 0));
    }
    for (uint32_t part = block->span.first_part; part < block->span.part_end; part++) {
        float acc[COLUMNS][HEADS] = {};

        attend_tile<dtype>(block, part, acc);
        join_teams<false>(block, nullptr, part, acc, &so_far);
    }
    write_out(block, &so_far);
}

/* Along z: columns of v_width and, of rows that are cut, parts. */
template <int dtype, bool is_cut>
__global__ void __launch_bounds__(BLOCK_THREADS)
    attention(const struct op_attention op, const struct attention_round round)
{
    GPU_SHARED(memory);
    const uint32_t blocks = (op.v_width + COLUMNS * THREADS - 1) / (COLUMNS * THREADS);
    struct attention_block block;
    uint32_t part;

    block.op = &op;
    block.all = (struct attention_shared *)memory;
    block.team = threadIdx.x / THREADS;
    block.thread = threadIdx.x % THREADS;
    block.shared = &block.all->teams[block.team];
    block.row = blockIdx.x;
    block.first_column = blockIdx.z % blocks * COLUMNS * THREADS + block.thread;
    block.q_stride = (op.k_width + 3) / 4 * 4;
    block.is_aligned = attention_is_aligned<dtype>(op.k_cache, &op.k_strides);
    block.span = attention_span_of(&op, block.row);
    part = block.span.first_part + round.first + blockIdx.z / blocks;
    if (is_cut && part >= block.span.part_end)
        return;
    choose_heads(&block);
    load_q(&block);
    __syncthreads();
    if (is_cut)
        attend_part<dtype>(&block, &round, part);
    else
        attend_row<dtype>(&block);
}

/* ---- launches ---- */

dim3 attention_columns_grid(const struct op_attention *op)
{
    const uint32_t group = op->head_count / op->kv_head_count;

    return dim3(op->row_count, op->kv_head_count * ((group + HEADS - 1) / HEADS),
                (op->v_width + COLUMNS * THREADS - 1) / (COLUMNS * THREADS));
}

cudaError_t attention_columns_launch(const struct op_attention *op,
                                     const struct attention_round *round, uint32_t parts,
                                     cudaStream_t stream)
{
    const size_t shared_bytes =
        sizeof(struct attention_shared) + HEADS * (op->k_width + 3) * sizeof(float);
    dim3 grid = attention_columns_grid(op);

    grid.z *= parts;
    return attention_choose(op, round, [&](auto dtype, auto is_cut) {
        return attention_start(attention<dtype, is_cut>, grid, BLOCK_THREADS, shared_bytes, stream,
                               op, round);
    });
}
