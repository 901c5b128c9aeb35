/* device/cuda/attention_parts.h - how a row's keys are cut, and how what the parts give becomes
 * one: only for attention*.cu.
 *
 * A part is ATTENTION_PART positions, counted from position 0, so that a row's parts are the same
 * however its prompt was cut and whatever shares the batch. A part gives a maximum of its scores, a
 * sum of exponentials and a sum of values, as if there were no others; parts become one in order of
 * position (fold). Who computes them is free, and no bit depends on it:
 *
 *     many blocks  a block has all parts of its rows, one after another
 *     few blocks   a block for every part, so that long contexts keep the whole GPU busy; the parts
 *                  meet in room that the stream has for it, as many as it holds in a round
 *
 * The room: for every row, head and part of a round a pair of maximum and sum, behind them as many
 * vectors of v_width; one more of both keeps what earlier rounds gave.
 *
 * A launch's rows may be divided over two kernels: rows that follow each other in a sequence and
 * fill a tile share their loads in one (attention_wide.cu), the others are alone in the other
 * (attention_narrow.cu). Every block finds out by itself whose its rows are. */
#ifndef LIGHTER_DEVICE_CUDA_ATTENTION_PARTS_H
#define LIGHTER_DEVICE_CUDA_ATTENTION_PARTS_H

#include <type_traits>

#include "device/cuda/kernels.h"

#define ATTENTION_PART 256

/* What a row sees: keys [begin, end), in parts [first_part, part_end). */
struct attention_span {
    uint32_t begin, end, first_part, part_end;
};

struct attention_sum {
    float max, sum;            /* of scores; of their exponentials, less max */
};

/* The parts that one launch computes, `count` of every row from its first_part + first on; and of
 * which rows. */
struct attention_round {
    float *room;               /* NULL: all parts of every row, without meeting */
    uint32_t first, count;
    uint32_t tile_rows;        /* of a tile that rows may share; 0: all rows are alone */
    bool is_shared;            /* the launch is of rows that share a tile, else of those alone */
};

__device__ static inline struct attention_span attention_span_at(const struct op_attention *op,
                                                                 uint32_t position)
{
    struct attention_span span;

    span.end = position + 1;
    span.begin = op->window == 0        ? 0
                 : op->chunked          ? position / op->window * op->window
                 : op->window < span.end ? span.end - op->window : 0;
    span.first_part = span.begin / ATTENTION_PART;
    span.part_end = (span.end + ATTENTION_PART - 1) / ATTENTION_PART;
    return span;
}

__device__ static inline struct attention_span attention_span_of(const struct op_attention *op,
                                                                 uint32_t row)
{
    return attention_span_at(op, (uint32_t)op->positions[row]);
}

/* Whether the rows of row's tile follow each other in one sequence, and are more than half of what
 * it holds. All are looked at, so that no load waits for another. */
GPU_BOTH static inline bool attention_is_shared(const int32_t *sequences, const int32_t *positions,
                                                uint32_t row_count, uint32_t tile_rows,
                                                uint32_t row)
{
    const uint32_t first = row - row % tile_rows;
    const uint32_t count = row_count - first < tile_rows ? row_count - first : tile_rows;
    uint32_t strays = 0;

    for (uint32_t i = 1; i < count; i++)
        strays |= (uint32_t)(sequences[first + i] ^ sequences[first]) |
                  ((uint32_t)positions[first + i] - (uint32_t)positions[first] - i);
    return strays == 0 && count * 2 > tile_rows;
}

/* Whether the launch computes the row. */
__device__ static inline bool attention_is_mine(const struct op_attention *op,
                                                const struct attention_round *round, uint32_t row)
{
    return round->tile_rows == 0 ||
           attention_is_shared(op->sequences, op->positions, op->row_count, round->tile_rows,
                               row) == round->is_shared;
}

/* Where a part's results lie; `part` of the round, or its count: what earlier rounds gave. */
__device__ static inline uint64_t attention_place(const struct op_attention *op,
                                                  const struct attention_round *round,
                                                  uint32_t row, uint32_t head, uint32_t part)
{
    return ((uint64_t)row * op->head_count + head) * (round->count + 1) + part;
}

__device__ static inline struct attention_sum *attention_sums(const struct attention_round *round)
{
    return (struct attention_sum *)round->room;
}

__device__ static inline float *attention_values(const struct op_attention *op,
                                                 const struct attention_round *round)
{
    return round->room + attention_place(op, round, op->row_count, 0, 0) * 2;
}

/* Before the first part: a sink is a score without a value. */
__device__ static inline struct attention_sum attention_begin(const struct op_attention *op,
                                                              uint32_t head)
{
    struct attention_sum sum = { -INFINITY, 0 };

    if (op->sinks != nullptr)
        sum = { op->sinks[head], 1 };
    return sum;
}

/* One part more: what there was of values is to be multiplied by *keep, the part's by *add
 * (Milakov and Gimelshein 2018, arXiv 1805.02867, equation 4). */
__device__ static inline void attention_fold(struct attention_sum *so_far,
                                             const struct attention_sum *part, float *keep,
                                             float *add)
{
    const float best = fmaxf(so_far->max, part->max);

    *keep = expf(so_far->max - best);
    *add = expf(part->max - best);
    so_far->sum = fmaf(part->sum, *add, so_far->sum * *keep);
    so_far->max = best;
}

/* Of an op that has a cap. */
__device__ static inline float attention_cap(const struct op_attention *op, float score)
{
    return op->score_cap * tanhf(score / op->score_cap);
}

/* ---- the launches: each queues one round, of which `parts` parts are left ---- */

/* attention_columns.cu: any widths, a row to a block. Blocks without parts, as all of these. */
dim3 attention_columns_grid(const struct op_attention *op);
cudaError_t attention_columns_launch(const struct op_attention *op,
                                     const struct attention_round *round, uint32_t parts,
                                     cudaStream_t stream);
/* attention_narrow.cu and attention_wide.cu: widths up to ATTENTION_WIDTH_MAX, a row or a tile of
 * rows to a block, with the same bits. */
#define ATTENTION_WIDTH_MAX 256
dim3 attention_narrow_grid(const struct op_attention *op);
cudaError_t attention_narrow_launch(const struct op_attention *op,
                                    const struct attention_round *round, uint32_t parts,
                                    cudaStream_t stream);
uint32_t attention_wide_rows(const struct op_attention *op); /* of a tile */
dim3 attention_wide_grid(const struct op_attention *op);
cudaError_t attention_wide_launch(const struct op_attention *op,
                                  const struct attention_round *round, uint32_t parts,
                                  cudaStream_t stream);
/* attention_fold.cu: makes one of a round's parts, and writes rows that have no more. */
cudaError_t attention_fold_launch(const struct op_attention *op,
                                  const struct attention_round *round, cudaStream_t stream);

/* Calls run(dtype, is_cut) with constants: the cache's type, and whether rows are cut into parts
 * that meet in the room. */
template <typename function>
static inline cudaError_t attention_choose(const struct op_attention *op,
                                           const struct attention_round *round, function run)
{
    const auto choose_cut = [&](auto dtype) {
        return round->count > 0 ? run(dtype, std::true_type()) : run(dtype, std::false_type());
    };

    switch (op->cache_dtype) {
    case DTYPE_F16: return choose_cut(std::integral_constant<int, DTYPE_F16>());
    case DTYPE_Q8_0: return choose_cut(std::integral_constant<int, DTYPE_Q8_0>());
    default: return choose_cut(std::integral_constant<int, DTYPE_F32>());
    }
}

/* Queues a kernel of an op, a round and perhaps more. */
template <typename function, typename... arguments>
static inline cudaError_t attention_start(function *kernel, dim3 grid, uint32_t threads,
                                          size_t shared_bytes, cudaStream_t stream,
                                          const struct op_attention *op,
                                          const struct attention_round *round, arguments... more)
{
    const struct op_attention op_copy = *op;
    const struct attention_round copy = *round;
    const cudaError_t code = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes);

    if (code != cudaSuccess)
        return code;
    GPU_LAUNCH(kernel, grid, threads, shared_bytes, stream, op_copy, copy, more...);
    return cudaGetLastError();
}

#endif
