/* device/cuda/attention_fold.cu - makes one of a row's parts, in order of position.
 *
 * A block has one head of one row, a thread a column of every THREADS. What depends on the values
 * is one multiplication and one addition per part, so the loads of several parts are under way. */
#include "device/cuda/attention_parts.h"

#define THREADS 128

__global__ void __launch_bounds__(THREADS) fold_parts(const struct op_attention op,
                                                      const struct attention_round round)
{
    const uint32_t row = blockIdx.x, head = blockIdx.y;
    const struct attention_span span = attention_span_of(&op, row);
    const uint32_t part_count = span.part_end - span.first_part;
    const uint64_t first = attention_place(&op, &round, row, head, 0);
    struct attention_sum *sums = attention_sums(&round) + first;
    float *values = attention_values(&op, &round) + first * op.v_width;
    struct attention_sum so_far = attention_begin(&op, head);

    if (round.first >= part_count || !attention_is_mine(&op, &round, row))
        return;
    for (uint32_t column = threadIdx.x; column < op.v_width; column += THREADS) {
        float *kept = values + (uint64_t)round.count * op.v_width + column, value = 0;

        so_far = attention_begin(&op, head);
        if (round.first > 0) {
            so_far = sums[round.count];
            value = *kept;
        }
#pragma unroll 4
        for (uint32_t i = 0; i < min(round.count, part_count - round.first); i++) {
            const struct attention_sum part = sums[i];
            float keep, add;

            attention_fold(&so_far, &part, &keep, &add);
            value = fmaf(values[(uint64_t)i * op.v_width + column], add, value * keep);
        }
        if (round.first + round.count < part_count)
            *kept = value;
        else
            op.out[row * op.out_row_stride + (uint64_t)head * op.v_width + column] =
                value / so_far.sum;
    }
    __syncthreads(); /* all have read it */
    if (threadIdx.x == 0)
        sums[round.count] = so_far;
}

cudaError_t attention_fold_launch(const struct op_attention *op,
                                  const struct attention_round *round, cudaStream_t stream)
{
    const struct op_attention op_copy = *op;
    const struct attention_round copy = *round;

    GPU_LAUNCH(fold_parts, dim3(op->row_count, op->head_count), THREADS, 0, stream, op_copy, copy);
    return cudaGetLastError();
}
