/* device/cuda/experts.cu - OP_ROUTE, a block per row, and OP_MOE: routed rows sorted by expert, so
 * that each expert is read once.
 *
 *     prepare   (row t, choice j) -> routed row r, those of an expert side by side; which of this
 *               launch's experts have rows
 *     up        hidden[r] = gate and up of x[t] (+ bias)     a product per hit and half (product.h)
 *     gate      product[r] = what `gate` makes of both
 *     down      result[r] = down of product[r] (+ bias)
 *     add       out[t] += weights[t][j] * result[r(t, j)], j ascending
 *
 * Where in its expert's run a routed row lies is up to the order in which threads come; no result
 * depends on it. Of several launches the first sorts, each computes its experts, and the last adds;
 * what they share lies in the op's scratch. How many experts are hit is known on the device only,
 * so a grid has blocks for as many as could be, and the rest end at once. */
#include "device/cuda/kernels.h"
#include "device/cuda/product_launch.h"

#define THREADS 256
#define WARPS (THREADS / GPU_WARP)
#define PREPARE_THREADS 1024
#define GATE_ROWS_MAX 64      /* blocks beside each other for one expert's rows */
#define ADD_ROWS_MAX 65535u   /* of a grid */
#define TAKEN 0ull

/* ---- route ---- */

struct route_shared {
    float score[OP_ROUTE_EXPERTS_MAX];
    uint64_t key[OP_ROUTE_EXPERTS_MAX]; /* TAKEN: cannot be chosen */
    uint64_t best[WARPS];
    float parts[WARPS];
    uint64_t groups[OP_ROUTE_EXPERTS_MAX]; /* how they rate */
};

/* Larger for what comes first: the better choice, NaN last, and of equals the lower index. */
__device__ static inline uint64_t route_key(float choice, uint32_t index)
{
    uint32_t bits = __float_as_uint(choice == 0 ? 0.0f : choice);

    bits = choice != choice ? 0 : bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
    return ((uint64_t)bits + 1) << 31 | (0x7fffffffu - index);
}

__device__ static inline uint32_t route_index(uint64_t key)
{
    return 0x7fffffffu - (uint32_t)(key & 0x7fffffffu);
}

__device__ static inline uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

__device__ static inline uint64_t block_best(struct route_shared *s, uint64_t key)
{
    for (int distance = GPU_WARP / 2; distance > 0; distance /= 2)
        key = larger(key, __shfl_xor_sync(GPU_ALL_LANES, key, distance));
    if (threadIdx.x % GPU_WARP == 0)
        s->best[threadIdx.x / GPU_WARP] = key;
    __syncthreads();
    for (uint32_t w = 0; w < WARPS; w++)
        key = larger(key, s->best[w]);
    __syncthreads();
    return key;
}

__device__ static inline float block_sum(struct route_shared *s, float value)
{
    float sum = 0;

    value = gpu_warp_sum(value);
    if (threadIdx.x % GPU_WARP == 0)
        s->parts[threadIdx.x / GPU_WARP] = value;
    __syncthreads();
    for (uint32_t w = 0; w < WARPS; w++)
        sum += s->parts[w];
    __syncthreads();
    return sum;
}

/* The scores of all experts, and their keys. */
__device__ static inline void route_score(const struct op_route *op, struct route_shared *s,
                                          const float *logits)
{
    float max = 0, sum = 0;

    if (op->scoring == ROUTE_SOFTMAX) {
        uint64_t best = TAKEN;

        for (uint32_t e = threadIdx.x; e < op->expert_count; e += THREADS)
            best = larger(best, route_key(logits[e], e));
        max = logits[route_index(block_best(s, best))];
    }
    for (uint32_t e = threadIdx.x; e < op->expert_count; e += THREADS) {
        s->score[e] = op->scoring == ROUTE_SOFTMAX ? expf(logits[e] - max)
                                                   : 1.0f / (1.0f + expf(-logits[e]));
        sum += s->score[e];
    }
    if (op->scoring == ROUTE_SOFTMAX)
        sum = block_sum(s, sum);
    for (uint32_t e = threadIdx.x; e < op->expert_count; e += THREADS) {
        if (op->scoring == ROUTE_SOFTMAX)
            s->score[e] /= sum;
        s->key[e] = route_key(
            s->score[e] + (op->correction_bias == nullptr ? 0 : op->correction_bias[e]), e);
    }
    __syncthreads();
}

/* How a group rates: by its best choice, or by the sum of its best two. */
__device__ static inline uint64_t rate_group(const struct op_route *op,
                                             const struct route_shared *s, uint32_t group)
{
    const uint32_t size = op->expert_count / op->group_count, first = group * size;
    uint64_t best = TAKEN, second = TAKEN;
    float rating[2] = { 0, 0 };

    for (uint32_t e = first; e < first + size; e++) {
        if (s->key[e] > best) {
            second = best;
            best = s->key[e];
        } else if (s->key[e] > second) {
            second = s->key[e];
        }
    }
    for (uint32_t i = 0; i < 2; i++) {
        const uint64_t key = i == 0 ? best : second;

        if (key == TAKEN || (i == 1 && op->groups == ROUTE_GROUP_MAX))
            break;
        rating[i] = s->score[route_index(key)] +
                    (op->correction_bias == nullptr ? 0 : op->correction_bias[route_index(key)]);
    }
    return route_key(rating[0] + rating[1], group);
}

/* Takes every expert outside the best kept_group_count groups out. */
__device__ static inline void limit_groups(const struct op_route *op, struct route_shared *s)
{
    const uint32_t size = op->expert_count / op->group_count;

    for (uint32_t g = threadIdx.x; g < op->group_count; g += THREADS)
        s->groups[g] = rate_group(op, s, g);
    __syncthreads();
    for (uint32_t e = threadIdx.x; e < op->expert_count; e += THREADS) {
        uint32_t better = 0;

        for (uint32_t g = 0; g < op->group_count; g++)
            better += s->groups[g] > s->groups[e / size];
        if (better >= op->kept_group_count)
            s->key[e] = TAKEN;
    }
    __syncthreads();
}

__device__ static inline void route_row(const struct op_route *op, struct route_shared *s,
                                        uint32_t row)
{
    int32_t *ids = op->ids + (uint64_t)row * op->top_k;
    float *weights = op->weights + (uint64_t)row * op->top_k;
    float sum = 0;

    route_score(op, s, op->logits + (uint64_t)row * op->expert_count);
    if (op->group_count > 1)
        limit_groups(op, s);
    for (uint32_t j = 0; j < op->top_k; j++) {
        uint64_t best = TAKEN;
        uint32_t id;

        for (uint32_t e = threadIdx.x; e < op->expert_count; e += THREADS)
            best = larger(best, s->key[e]);
        id = route_index(block_best(s, best));
        sum += s->score[id];
        if (threadIdx.x == 0) {
            ids[j] = (int32_t)id;
            s->key[id] = TAKEN;
        }
        __syncthreads();
    }
    for (uint32_t j = threadIdx.x; j < op->top_k; j += THREADS) {
        float weight = s->score[ids[j]];

        if (op->normalise)
            weight /= sum + 1e-20f;
        weights[j] = weight * op->scale;
    }
    __syncthreads();
}

__global__ void __launch_bounds__(THREADS) route(const struct op_route op)
{
    GPU_SHARED(shared);

    for (uint32_t row = blockIdx.x; row < op.row_count; row += gridDim.x)
        route_row(&op, (struct route_shared *)shared, row);
}

cudaError_t cuda_route(const struct op_route *op, cudaStream_t stream)
{
    const struct op_route copy = *op;

    GPU_LAUNCH(route, op->row_count, THREADS, sizeof(struct route_shared), stream, copy);
    return cudaGetLastError();
}

/* ---- the mixture ---- */

struct moe_parts {
    float *hidden;         /* [routed_count][2 * ffn_width] */
    float *product;        /* [routed_count][ffn_width] */
    float *result;         /* [routed_count][width] */
    uint32_t *routed_row;  /* [routed_count]: t of routed row r */
    uint32_t *routed_at;   /* [row_count][top_k]: r of (t, j) */
    uint32_t *ends;        /* [expert_count] */
    uint32_t *hits;        /* [expert_count]: indices of op->experts, or ids when stacked */
};

static void *carve(char **at, uint64_t size_bytes)
{
    void *part = *at;

    *at += (size_bytes + 63) / 64 * 64;
    return part;
}

static struct moe_parts divide_scratch(const struct op_moe *op)
{
    const uint64_t routed_count = (uint64_t)op->row_count * op->top_k;
    char *at = (char *)op->scratch;
    struct moe_parts parts;

    parts.hidden = (float *)carve(&at, routed_count * 2 * op->ffn_width * sizeof(float));
    parts.product = (float *)carve(&at, routed_count * op->ffn_width * sizeof(float));
    parts.result = (float *)carve(&at, routed_count * op->width * sizeof(float));
    parts.routed_row = (uint32_t *)carve(&at, routed_count * sizeof(uint32_t));
    parts.routed_at = (uint32_t *)carve(&at, routed_count * sizeof(uint32_t));
    parts.ends = (uint32_t *)carve(&at, op->expert_count * sizeof(uint32_t));
    parts.hits = (uint32_t *)carve(&at, op->expert_count * sizeof(uint32_t));
    return parts;
}

/* A counting sort of (t, j) by expert. */
__device__ static inline void sort_by_expert(const struct op_moe *op, const struct moe_parts *parts,
                                             uint32_t *next)
{
    const uint32_t routed_count = op->row_count * op->top_k;

    for (uint32_t e = threadIdx.x; e < op->expert_count; e += PREPARE_THREADS)
        next[e] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < routed_count; i += PREPARE_THREADS)
        atomicAdd(&next[op->ids[i]], 1u);
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t sum = 0;

        for (uint32_t e = 0; e < op->expert_count; e++) {
            const uint32_t count = next[e];

            next[e] = sum;
            sum += count;
            parts->ends[e] = sum;
        }
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < routed_count; i += PREPARE_THREADS) {
        const uint32_t r = atomicAdd(&next[op->ids[i]], 1u);

        parts->routed_row[r] = i / op->top_k;
        parts->routed_at[i] = r;
    }
    __syncthreads();
}

/* One block. */
__global__ void __launch_bounds__(PREPARE_THREADS) moe_prepare(const struct op_moe op,
                                                               const struct moe_parts parts)
{
    GPU_SHARED(shared);
    const uint32_t count = op.experts != nullptr ? op.expert_list_count : op.expert_count;
    uint32_t *hit_count = (uint32_t *)shared, *next = hit_count + 1;

    if (threadIdx.x == 0)
        *hit_count = 0;
    if (!op.continued)
        sort_by_expert(&op, &parts, next);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < count; i += PREPARE_THREADS) {
        const uint32_t e = op.experts != nullptr ? (uint32_t)op.experts[i].id : i;

        if (parts.ends[e] > (e == 0 ? 0 : parts.ends[e - 1]))
            parts.hits[atomicAdd(hit_count, 1u)] = i;
    }
    __syncthreads();
    for (uint32_t i = *hit_count + threadIdx.x; i < op.expert_count; i += PREPARE_THREADS)
        parts.hits[i] = PRODUCT_NO_HIT;
}

/* x of each routed row in the order of its expert's columns, in the place of what will come of
 * it. */
__global__ void moe_order(const struct op_moe op, const struct moe_parts parts)
{
    const uint32_t hit = parts.hits[blockIdx.z], i = blockIdx.x * THREADS + threadIdx.x;
    uint32_t e, column;

    if (hit == PRODUCT_NO_HIT || i >= op.width)
        return;
    e = op.experts != nullptr ? (uint32_t)op.experts[hit].id : hit;
    column = op_column(op.w13_order[(uint64_t)e * op.width + i], op.width);
    for (uint64_t r = (e == 0 ? 0 : parts.ends[e - 1]) + blockIdx.y; r < parts.ends[e];
         r += gridDim.y)
        parts.result[r * op.width + i] = op.x[parts.routed_row[r] * op.x_row_stride + column];
}

__global__ void moe_gate(const struct op_moe op, const struct moe_parts parts)
{
    const uint32_t hit = parts.hits[blockIdx.z], i = blockIdx.x * THREADS + threadIdx.x;
    uint32_t e, column = i;

    if (hit == PRODUCT_NO_HIT || i >= op.ffn_width)
        return;
    e = op.experts != nullptr ? (uint32_t)op.experts[hit].id : hit;
    if (op.w2_order != nullptr)
        column = op_column(op.w2_order[(uint64_t)e * op.ffn_width + i], op.ffn_width);
    for (uint64_t r = (e == 0 ? 0 : parts.ends[e - 1]) + blockIdx.y; r < parts.ends[e];
         r += gridDim.y) {
        const float *gate = parts.hidden + r * 2 * op.ffn_width + column;

        parts.product[r * op.ffn_width + i] = cuda_gate(op.gate, gate[0], gate[op.ffn_width]);
    }
}

__global__ void moe_add(const struct op_moe op, const struct moe_parts parts)
{
    const uint32_t i = blockIdx.x * THREADS + threadIdx.x;

    if (i >= op.width)
        return;
    for (uint64_t t = blockIdx.y; t < op.row_count; t += gridDim.y) {
        float *out = op.out + t * op.out_row_stride + i;
        float sum = *out;

        for (uint32_t j = 0; j < op.top_k; j++) {
            const uint64_t at = t * op.top_k + j;

            sum = fmaf(op.weights[at], parts.result[(uint64_t)parts.routed_at[at] * op.width + i],
                       sum);
        }
        *out = sum;
    }
}

static cudaError_t moe_up(const struct op_moe *op, const struct moe_parts *parts, uint32_t hit_max,
                          cudaStream_t stream)
{
    struct product p = {};

    p.out = parts->hidden;
    p.x = op->x;
    p.weight = (const uint8_t *)op->w13;
    p.bias = op->w13_bias;
    p.out_row_stride = 2 * (uint64_t)op->ffn_width;
    p.x_row_stride = op->x_row_stride;
    p.weight_row_bytes = product_row_bytes(op->weight_dtype, op->width);
    p.weight_batch_bytes = p.weight_row_bytes * op->ffn_width;
    p.row_count = op->row_count;
    p.n_count = op->ffn_width;
    p.k_count = op->width;
    p.experts.hits = parts->hits;
    p.experts.ends = parts->ends;
    p.experts.x_rows = parts->routed_row;
    p.experts.list = op->experts;
    if (op->w13_order != nullptr) { /* moe_order has put x there */
        p.x = parts->result;
        p.x_row_stride = op->width;
        p.experts.x_rows = nullptr;
    }
    return product_launch(&p, op->weight_dtype, 2 * hit_max, stream);
}

static cudaError_t moe_down(const struct op_moe *op, const struct moe_parts *parts,
                            uint32_t hit_max, cudaStream_t stream)
{
    struct product p = {};

    p.out = parts->result;
    p.x = parts->product;
    p.weight = (const uint8_t *)op->w2;
    p.bias = op->w2_bias;
    p.out_row_stride = op->width;
    p.x_row_stride = op->ffn_width;
    p.weight_row_bytes = product_row_bytes(op->down_dtype, op->ffn_width);
    p.weight_batch_bytes = p.weight_row_bytes * op->width;
    p.row_count = op->row_count;
    p.n_count = op->width;
    p.k_count = op->ffn_width;
    p.experts.hits = parts->hits;
    p.experts.ends = parts->ends;
    p.experts.list = op->experts;
    p.experts.is_down = true;
    return product_launch(&p, op->down_dtype, hit_max, stream);
}

static cudaError_t moe_compute(const struct op_moe *op, const struct moe_parts *parts,
                               cudaStream_t stream)
{
    const uint64_t routed_count = (uint64_t)op->row_count * op->top_k;
    const uint32_t listed = op->experts != nullptr ? op->expert_list_count : op->expert_count;
    const uint32_t hit_max = listed < routed_count ? listed : (uint32_t)routed_count;
    const uint32_t rows = op->row_count < GATE_ROWS_MAX ? op->row_count : GATE_ROWS_MAX;
    const struct op_moe copy = *op;
    const struct moe_parts parts_copy = *parts;
    cudaError_t code;

    if (hit_max == 0)
        return cudaSuccess;
    if (op->w13_order != nullptr)
        GPU_LAUNCH(moe_order, dim3((op->width + THREADS - 1) / THREADS, rows, hit_max), THREADS, 0,
                   stream, copy, parts_copy);
    code = moe_up(op, parts, hit_max, stream);
    if (code != cudaSuccess)
        return code;
    GPU_LAUNCH(moe_gate, dim3((op->ffn_width + THREADS - 1) / THREADS, rows, hit_max), THREADS, 0,
               stream, copy, parts_copy);
    return moe_down(op, parts, hit_max, stream);
}

cudaError_t cuda_moe(const struct op_moe *op, cudaStream_t stream)
{
    const struct moe_parts parts = divide_scratch(op);
    const struct op_moe copy = *op;
    cudaError_t code;

    GPU_LAUNCH(moe_prepare, 1, PREPARE_THREADS, (1 + op->expert_count) * sizeof(uint32_t), stream,
               copy, parts);
    code = moe_compute(op, &parts, stream);
    if (code != cudaSuccess || op->unfinished)
        return code;
    GPU_LAUNCH(moe_add,
               dim3((op->width + THREADS - 1) / THREADS,
                    op->row_count < ADD_ROWS_MAX ? op->row_count : ADD_ROWS_MAX, 1),
               THREADS, 0, stream, copy, parts);
    return cudaGetLastError();
}
