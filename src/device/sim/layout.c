/* device/sim/layout.c - ops on weights in FRACTAL_NZ, as an NPU has them.
 *
 * The processor's kernels know plain rows, so each weight is put back in order before the op and
 * forgotten after it. Slow, and meant for tests: whatever moves weights about must move them in the
 * device's layout, and the answers must be those of plain rows, bit for bit. */
#include <stdlib.h>
#include <string.h>

#include "device/sim/internal.h"

/* count weights [n][k], one behind the other, in plain rows, or NULL. The caller frees them. Those
 * of a type that has no FRACTAL_NZ are in plain rows. */
static uint8_t *plain(const void *weight, enum dtype dtype, uint64_t count, uint64_t n, uint64_t k)
{
    const struct layout_matrix matrix = { .rows = k, .cols = n, .row_stride = 1, .col_stride = k };
    const uint64_t shape[2] = { n, k };
    uint64_t packed_bytes = 0;
    const bool is_nz = (dtype == DTYPE_F16 || dtype == DTYPE_BF16) &&
                       layout_bytes(LAYOUT_FRACTAL_NZ, dtype, 2, shape, &packed_bytes);
    const uint64_t plain_bytes = dtype_row_bytes(dtype, n * k);
    uint8_t *rows = malloc(count * plain_bytes + 1);

    if (rows != NULL && !is_nz)
        memcpy(rows, weight, count * plain_bytes);
    for (uint64_t i = 0; rows != NULL && is_nz && i < count; i++)
        layout_nz_unpack(rows + i * plain_bytes, (const uint8_t *)weight + i * packed_bytes, dtype,
                         &matrix);
    return rows;
}

static bool execute_matmul(struct cpu_executor *executor, const struct op *op)
{
    struct op copy = *op;
    uint8_t *rows = plain(op->matmul.weight, op->matmul.weight_dtype, op->matmul.batch_count,
                          op->matmul.n_count, op->matmul.k_count);

    copy.matmul.weight = rows;
    copy.matmul.weight_layout = LAYOUT_ND;
    if (rows != NULL)
        cpu_execute(executor, &copy);
    free(rows);
    return rows != NULL;
}

static bool execute_stacked(struct cpu_executor *executor, const struct op *op)
{
    const struct op_moe *moe = &op->moe;
    struct op copy = *op;
    uint8_t *w13 = plain(moe->w13, moe->weight_dtype, moe->expert_count,
                         2 * (uint64_t)moe->ffn_width, moe->width);
    uint8_t *w2 = plain(moe->w2, moe->down_dtype, moe->expert_count, moe->width, moe->ffn_width);
    const bool done = w13 != NULL && w2 != NULL;

    copy.moe.w13 = w13;
    copy.moe.w2 = w2;
    copy.moe.weight_layout = copy.moe.down_layout = LAYOUT_ND;
    if (done)
        cpu_execute(executor, &copy);
    free(w2);
    free(w13);
    return done;
}

static bool execute_listed(struct cpu_executor *executor, const struct op *op)
{
    const struct op_moe *moe = &op->moe;
    const uint64_t gate_bytes =
        dtype_row_bytes(moe->weight_dtype, (uint64_t)moe->width * moe->ffn_width);
    struct op_moe_expert *experts = calloc((size_t)moe->expert_list_count + 1, sizeof(*experts));
    struct op copy = *op;
    bool done = experts != NULL;

    for (uint32_t i = 0; done && i < moe->expert_list_count; i++) {
        const struct op_moe_expert *expert = &moe->experts[i];
        uint8_t *gate = plain(expert->gate, moe->weight_dtype, 1, 2 * (uint64_t)moe->ffn_width,
                              moe->width);

        experts[i] = (struct op_moe_expert){
            .gate = gate,
            .up = gate != NULL ? gate + gate_bytes : NULL,
            .down = plain(expert->down, moe->down_dtype, 1, moe->width, moe->ffn_width),
            .id = expert->id,
        };
        done = gate != NULL && experts[i].down != NULL;
    }
    copy.moe.experts = experts;
    copy.moe.weight_layout = copy.moe.down_layout = LAYOUT_ND;
    if (done)
        cpu_execute(executor, &copy);
    for (uint32_t i = 0; experts != NULL && i < moe->expert_list_count; i++) {
        free((void *)experts[i].gate);
        free((void *)experts[i].down);
    }
    free(experts);
    return done;
}

bool sim__execute(struct cpu_executor *executor, const struct op *op)
{
    if (op->kind == OP_MATMUL && op->matmul.weight_layout == LAYOUT_FRACTAL_NZ)
        return execute_matmul(executor, op);
    if (op->kind == OP_MOE && op->moe.weight_layout == LAYOUT_FRACTAL_NZ)
        return op->moe.experts != NULL ? execute_listed(executor, op)
                                       : execute_stacked(executor, op);
    cpu_execute(executor, op);
    return true;
}
