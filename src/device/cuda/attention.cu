/* device/cuda/attention.cu - OP_ATTENTION: which kernels take it, and how rows and their keys are
 * cut into blocks.
 *
 * Heads of up to ATTENTION_WIDTH_MAX go to tensor cores, whatever the cache holds, by two kernels
 * with the same bits: rows that follow each other in a sequence, as prompts have them, share what
 * they read, and others are alone. Wider ones go to attention_columns.cu. The choice is a model's,
 * so it is the same for a prompt's rows and for those that decode. */
#include "device/cuda/attention_parts.h"

#define BUSY_BLOCKS 256 /* that keep a GPU busy without cutting rows */
#define ALONE_MAX 16    /* so few rows may all be sequences that decode: not worth another launch */

/* One of the kernels. */
struct kernel {
    dim3 (*grid)(const struct op_attention *op);
    cudaError_t (*launch)(const struct op_attention *op, const struct attention_round *round,
                          uint32_t parts, cudaStream_t stream);
};

/* How many parts a row can have at most. */
static uint32_t part_count_max(const struct op_attention *op)
{
    const uint64_t keys = (uint64_t)op->page_count_max * op->page_size;
    const uint64_t parts = (keys + ATTENTION_PART - 1) / ATTENTION_PART;
    const uint64_t in_window =
        op->window == 0 ? parts : ((uint64_t)op->window + ATTENTION_PART - 2) / ATTENTION_PART + 1;

    return (uint32_t)(in_window < parts ? in_window : parts);
}

/* How many parts a round has; 0: rows are not cut. */
static uint32_t round_count(const struct op_attention *op, dim3 grid, const struct cuda_room *room)
{
    const uint64_t part_bytes = (uint64_t)op->row_count * op->head_count *
                                (op->v_width * sizeof(float) + sizeof(struct attention_sum));
    const uint64_t held = room->size_bytes / part_bytes;
    const uint32_t parts = part_count_max(op);
    uint64_t count = held > parts ? parts : held > 0 ? held - 1 : 0;

    if (count > CUDA_GRID_MAX / grid.z)
        count = CUDA_GRID_MAX / grid.z;
    return count < 2 || (uint64_t)grid.x * grid.y * grid.z >= BUSY_BLOCKS ? 0 : (uint32_t)count;
}

/* All rounds of one kernel. A tile's rows have the same first part only where there is no window.
 */
static cudaError_t run(const struct kernel *kernel, const struct op_attention *op,
                       struct attention_round round, const struct cuda_room *room,
                       cudaStream_t stream)
{
    const uint32_t part_count = part_count_max(op);
    cudaError_t code = cudaSuccess;

    round.count = round.is_shared && op->window > 0
                      ? 0
                      : round_count(op, kernel->grid(op), room);
    if (round.count == 0)
        return kernel->launch(op, &round, 1, stream);
    round.room = (float *)room->memory;
    for (; round.first < part_count && code == cudaSuccess; round.first += round.count) {
        const uint32_t left = part_count - round.first;

        code = kernel->launch(op, &round, left < round.count ? left : round.count, stream);
        if (code == cudaSuccess)
            code = attention_fold_launch(op, &round, stream);
    }
    return code;
}

/* Rows [first, end) of the op. */
static struct op_attention rows_of(const struct op_attention *op, uint32_t first, uint32_t end)
{
    struct op_attention rows = *op;

    rows.out += first * op->out_row_stride;
    rows.q += first * op->q_row_stride;
    rows.sequences += first;
    rows.positions += first;
    rows.row_count = end - first;
    return rows;
}

/* Which tiles have rows that are alone lies in device memory, so both kernels are queued for all,
 * and blocks with nothing to do end at once. Where the host may look too, as it may unless this is
 * part of a graph, they are queued for what they have. */
static cudaError_t run_divided(const struct op_attention *op, uint32_t tile_rows,
                               const struct cuda_room *room, cudaStream_t stream)
{
    static const struct kernel narrow = { attention_narrow_grid, attention_narrow_launch };
    static const struct kernel wide = { attention_wide_grid, attention_wide_launch };
    const bool is_told = op->host_sequences != nullptr && op->host_positions != nullptr;
    uint32_t first = is_told ? op->row_count : 0, end = is_told ? 0 : op->row_count;
    bool any_shared = !is_told;
    cudaError_t code = cudaSuccess;

    for (uint32_t row = 0; is_told && row < op->row_count; row += tile_rows) {
        if (attention_is_shared(op->host_sequences, op->host_positions, op->row_count, tile_rows,
                                row)) {
            any_shared = true;
        } else {
            first = row < first ? row : first;
            end = op->row_count - row < tile_rows ? op->row_count : row + tile_rows;
        }
    }
    if (any_shared)
        code = run(&wide, op, { nullptr, 0, 0, tile_rows, true }, room, stream);
    if (first < end && code == cudaSuccess) {
        const struct op_attention alone = rows_of(op, first, end);

        code = run(&narrow, &alone, { nullptr, 0, 0, any_shared ? tile_rows : 0, false }, room,
                   stream);
    }
    return code;
}

cudaError_t cuda_attention(const struct op_attention *op, const struct cuda_room *room,
                           cudaStream_t stream)
{
    static const struct kernel columns = { attention_columns_grid, attention_columns_launch };
    static const struct kernel narrow = { attention_narrow_grid, attention_narrow_launch };

    if (op->k_width > ATTENTION_WIDTH_MAX || op->v_width > ATTENTION_WIDTH_MAX)
        return run(&columns, op, {}, room, stream);
    if (op->row_count <= ALONE_MAX)
        return run(&narrow, op, {}, room, stream);
    return run_divided(op, attention_wide_rows(op), room, stream);
}
