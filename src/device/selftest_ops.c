/* device/selftest_ops.c - each operator as a check: operands from the bed's random numbers, one
 * launch, the result on the host. What an op's fields mean is in op.h.
 *
 * All operands are made for all rows, whatever rows are computed, so that they are the same. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "device/selftest_internal.h"

/* Matrices [n][k], one behind the other, in the layout that the device wants of them where they,
 * and gate and up each, are of whole blocks; *layout_out says which. */
static void *put_weights(struct bed *bed, enum device_weight weight, enum dtype dtype,
                         uint32_t matrix_count, uint32_t n, uint32_t k, enum layout *layout_out)
{
    const uint64_t count = (uint64_t)matrix_count * n * k;
    const uint32_t part = weight == DEVICE_WEIGHT_GATE_UP ? n / 2 : n;
    const uint64_t row_bytes = dtype_row_bytes(dtype, count);
    enum layout layout = device_weight_layout(bed->device, weight, dtype);
    float *values = malloc(count * sizeof(*values));
    void *bytes = malloc(row_bytes), *scratch, *memory = NULL;

    if (!layout_fits(layout, dtype, part, k))
        layout = LAYOUT_ND;
    scratch = malloc(layout_finish_bytes(layout, dtype, k) + 1);
    if (values != NULL && bytes != NULL && scratch != NULL) {
        for (uint64_t i = 0; i < count; i++)
            values[i] = (float)(int32_t)device__bed_number(bed, 2001) / 1000.0f - 1.0f;
        dtype_convert(bytes, dtype, values, DTYPE_F32, count);
        layout_finish(layout, bytes, dtype, matrix_count, n, k, scratch);
        memory = device__bed_put(bed, bytes, row_bytes);
    } else if (bed->err.status == STATUS_OK) {
        (void)err_set(&bed->err, STATUS_NO_MEMORY, "no memory for weights");
    }
    free(values);
    free(bytes);
    free(scratch);
    *layout_out = layout;
    return memory;
}

static int32_t *put_numbers(struct bed *bed, uint32_t count, uint32_t limit)
{
    int32_t numbers[4096];

    assert(count <= 4096);
    for (uint32_t i = 0; i < count; i++)
        numbers[i] = (int32_t)device__bed_number(bed, limit);
    return device__bed_put(bed, numbers, count * sizeof(numbers[0]));
}

static float *put_floats(struct bed *bed, uint64_t count)
{
    return device__bed_random(bed, DTYPE_F32, count);
}

static uint64_t finish(struct bed *bed, const struct op *op, float *out, const void *memory,
                       uint64_t count)
{
    assert(count <= SELFTEST_OUT_MAX);
    device__bed_launch(bed, op);
    device__bed_get(bed, out, memory, count * sizeof(*out));
    return count;
}

/* shape: rows, width, rows of the table */
static uint64_t run_embed(struct bed *bed, const struct selftest_op *test, uint32_t first,
                          uint32_t rows, float *out)
{
    const uint32_t all = test->shape[0], width = test->shape[1], table_rows = test->shape[2];
    struct op op = { .kind = OP_EMBED };

    op.embed = (struct op_embed){
        .table = device__bed_random(bed, test->dtype, (uint64_t)table_rows * width),
        .table_dtype = test->dtype, .table_row_count = table_rows, .row_count = rows,
        .width = width, .out_row_stride = width,
    };
    op.embed.ids = put_numbers(bed, all, table_rows);
    op.embed.out = device__bed_put(bed, NULL, (uint64_t)rows * width * sizeof(float));
    if (bed->err.status == STATUS_OK)
        op.embed.ids += first;
    return finish(bed, &op, out, op.embed.out, (uint64_t)rows * width);
}

/* shape: rows, groups, width, whether 1 is added to the weights */
static uint64_t run_rms_norm(struct bed *bed, const struct selftest_op *test, uint32_t first,
                             uint32_t rows, float *out)
{
    const uint32_t groups = test->shape[1], width = test->shape[2], all = groups * width;
    struct op op = { .kind = OP_RMS_NORM };

    op.rms_norm = (struct op_rms_norm){
        .x = put_floats(bed, (uint64_t)test->shape[0] * all), .weight = put_floats(bed, width),
        .row_count = rows, .group_count = groups, .width = width, .out_row_stride = all,
        .x_row_stride = all, .epsilon = 1e-5f, .weight_offset = (float)test->shape[3],
    };
    op.rms_norm.out = device__bed_put(bed, NULL, (uint64_t)rows * all * sizeof(float));
    if (bed->err.status == STATUS_OK)
        op.rms_norm.x += (uint64_t)first * all;
    return finish(bed, &op, out, op.rms_norm.out, (uint64_t)rows * all);
}

/* shape: rows, n, k, batches, bias, accumulate (1) or exact (2) */
static uint64_t run_matmul(struct bed *bed, const struct selftest_op *test, uint32_t first,
                           uint32_t rows, float *out)
{
    const uint32_t n = test->shape[1], k = test->shape[2], batches = test->shape[3];
    const uint64_t x_stride = (uint64_t)k * batches, out_stride = (uint64_t)n * batches;
    struct op op = { .kind = OP_MATMUL };

    op.matmul = (struct op_matmul){
        .weight_dtype = test->dtype, .row_count = rows, .n_count = n, .k_count = k,
        .batch_count = batches, .out_row_stride = out_stride, .x_row_stride = x_stride,
        .out_batch_stride = n, .x_batch_stride = k, .accumulate = test->shape[5] == 1,
        .exact = test->shape[5] == 2,
    };
    op.matmul.weight = put_weights(bed, batches == 1 && test->shape[5] != 2
                                            ? DEVICE_WEIGHT_MATRIX : DEVICE_WEIGHT_OTHER,
                                   test->dtype, batches, n, k, &op.matmul.weight_layout);
    op.matmul.x = put_floats(bed, test->shape[0] * x_stride);
    op.matmul.bias = test->shape[4] != 0 ? put_floats(bed, n) : NULL;
    op.matmul.out = put_floats(bed, test->shape[0] * out_stride);
    if (bed->err.status == STATUS_OK) {
        op.matmul.x += first * x_stride;
        op.matmul.out += first * out_stride;
    }
    return finish(bed, &op, out, op.matmul.out, rows * out_stride);
}

/* shape: rows, pairs */
static uint64_t run_rope_table(struct bed *bed, const struct selftest_op *test, uint32_t first,
                               uint32_t rows, float *out)
{
    const uint32_t pairs = test->shape[1];
    float frequencies[512];
    struct op op = { .kind = OP_ROPE_TABLE };

    assert(pairs <= 512);
    for (uint32_t i = 0; i < pairs; i++)
        frequencies[i] = 1.0f / (float)(1 + i * i);
    op.rope_table = (struct op_rope_table){
        .positions = put_numbers(bed, test->shape[0], 4096),
        .frequencies = device__bed_put(bed, frequencies, pairs * sizeof(float)),
        .row_count = rows, .pair_count = pairs, .scale = 1.25f,
    };
    op.rope_table.table = device__bed_put(bed, NULL, (uint64_t)rows * pairs * 2 * sizeof(float));
    if (bed->err.status == STATUS_OK)
        op.rope_table.positions += first;
    return finish(bed, &op, out, op.rope_table.table, (uint64_t)rows * pairs * 2);
}

/* shape: rows, heads, pairs, interleaved */
static uint64_t run_rope(struct bed *bed, const struct selftest_op *test, uint32_t first,
                         uint32_t rows, float *out)
{
    const uint32_t heads = test->shape[1], pairs = test->shape[2];
    const uint64_t stride = (uint64_t)heads * pairs * 2;
    struct op op = { .kind = OP_ROPE };

    op.rope = (struct op_rope){
        .x = put_floats(bed, test->shape[0] * stride),
        .row_count = rows, .head_count = heads, .pair_count = pairs, .row_stride = stride,
        .head_stride = (uint64_t)pairs * 2, .interleaved = test->shape[3] != 0,
    };
    op.rope.table = put_floats(bed, (uint64_t)test->shape[0] * pairs * 2);
    if (bed->err.status == STATUS_OK) {
        op.rope.x += first * stride;
        op.rope.table += (uint64_t)first * pairs * 2;
    }
    return finish(bed, &op, out, op.rope.x, rows * stride);
}

/* shape: rows, width of each head, slots, heads, page size */
static uint64_t run_kv_write(struct bed *bed, const struct selftest_op *test, uint32_t first,
                             uint32_t rows, float *out)
{
    const uint32_t width = test->shape[1], slot_count = test->shape[2], heads = test->shape[3];
    const uint64_t row_width = (uint64_t)heads * width;
    int32_t slots[256];
    struct op op = { .kind = OP_KV_WRITE };

    (void)first;
    assert(rows <= 256 && rows <= slot_count);
    for (uint32_t i = 0; i < rows; i++)
        slots[i] = (int32_t)(slot_count - 1 - i); /* distinct */
    op.kv_write = (struct op_kv_write){
        .cache = put_floats(bed, slot_count * row_width),
        .x = put_floats(bed, rows * row_width),
        .slots = device__bed_put(bed, slots, rows * sizeof(slots[0])),
        .row_count = rows, .head_count = heads, .width = width, .page_size = test->shape[4],
        .cache_row_count = slot_count,
        .strides = op_cache_by_head(heads, test->shape[4], width), .x_row_stride = row_width,
    };
    return finish(bed, &op, out, op.kv_write.cache, slot_count * row_width);
}

#define PAGES 24 /* of the attention's cache */

/* Two sequences whose pages lie crosswise: the first rows are a prompt's, the last one decodes. */
static void put_places(struct bed *bed, struct op_attention *attention, uint32_t row_count)
{
    int32_t pages[2 * PAGES / 2], sequences[256], positions[256];
    const uint32_t room = attention->page_size * PAGES / 2;

    assert(row_count <= 256 && row_count <= room);
    for (int32_t i = 0; i < PAGES / 2; i++) {
        pages[i] = 2 * i + 1;
        pages[PAGES / 2 + i] = PAGES - 2 - 2 * i;
    }
    for (uint32_t i = 0; i < row_count; i++) {
        sequences[i] = i + 1 == row_count;
        positions[i] = i + 1 == row_count ? (int32_t)room - 1 : (int32_t)i;
    }
    attention->pages = device__bed_put(bed, pages, sizeof(pages));
    attention->sequences = device__bed_put(bed, sequences, row_count * sizeof(sequences[0]));
    attention->positions = device__bed_put(bed, positions, row_count * sizeof(positions[0]));
    attention->page_count_max = PAGES / 2;
}

/* shape: rows, heads, kv heads, k width, v width, page size, window, and of these: */
enum { CAPPED_WITH_SINKS = 1, CHUNKED = 2, BY_HEAD = 4 };

static uint64_t run_attention(struct bed *bed, const struct selftest_op *test, uint32_t first,
                              uint32_t rows, float *out)
{
    const uint32_t heads = test->shape[1], kv_heads = test->shape[2];
    const uint32_t k_width = test->shape[3], v_width = test->shape[4], page = test->shape[5];
    const uint64_t q_stride = (uint64_t)heads * k_width, out_stride = (uint64_t)heads * v_width;
    struct op_cache_strides (*order)(uint64_t, uint64_t, uint64_t) =
        (test->shape[7] & BY_HEAD) != 0 ? op_cache_by_head : op_cache_by_slot;
    struct op op = { .kind = OP_ATTENTION };

    op.attention = (struct op_attention){
        .q = put_floats(bed, test->shape[0] * q_stride),
        .k_cache = device__bed_random(bed, test->dtype,
                                      (uint64_t)PAGES * page * kv_heads * k_width),
        .v_cache = device__bed_random(bed, test->dtype,
                                      (uint64_t)PAGES * page * kv_heads * v_width),
        .cache_dtype = test->dtype,
        .row_count = rows, .head_count = heads, .kv_head_count = kv_heads, .k_width = k_width,
        .v_width = v_width, .page_size = page, .cache_row_count = PAGES * page,
        .out_row_stride = out_stride,
        .q_row_stride = q_stride, .k_strides = order(kv_heads, page, k_width),
        .v_strides = order(kv_heads, page, v_width), .scale = 0.2f,
        .window = test->shape[6], .chunked = (test->shape[7] & CHUNKED) != 0,
        .score_cap = (test->shape[7] & CAPPED_WITH_SINKS) != 0 ? 0.5f : 0,
        .sinks = (test->shape[7] & CAPPED_WITH_SINKS) != 0 ? put_floats(bed, heads) : NULL,
    };
    put_places(bed, &op.attention, test->shape[0]);
    op.attention.out = device__bed_put(bed, NULL, rows * out_stride * sizeof(float));
    if (bed->err.status == STATUS_OK) {
        op.attention.q += first * q_stride;
        op.attention.sequences += first;
        op.attention.positions += first;
    }
    return finish(bed, &op, out, op.attention.out, rows * out_stride);
}

/* shape: rows, width, gate */
static uint64_t run_silu_mul(struct bed *bed, const struct selftest_op *test, uint32_t first,
                             uint32_t rows, float *out)
{
    const uint32_t width = test->shape[1];
    struct op op = { .kind = OP_SILU_MUL };

    op.silu_mul = (struct op_silu_mul){
        .x = put_floats(bed, (uint64_t)test->shape[0] * width * 2), .row_count = rows,
        .width = width, .out_row_stride = width, .x_row_stride = (uint64_t)width * 2,
        .gate = (enum op_gate)test->shape[2],
    };
    op.silu_mul.out = device__bed_put(bed, NULL, (uint64_t)rows * width * sizeof(float));
    if (bed->err.status == STATUS_OK)
        op.silu_mul.x += (uint64_t)first * width * 2;
    return finish(bed, &op, out, op.silu_mul.out, (uint64_t)rows * width);
}

/* shape: rows, experts, top k, groups, kept groups, scoring (0 softmax, 1 sigmoid with a bias) */
static uint64_t run_route(struct bed *bed, const struct selftest_op *test, uint32_t first,
                          uint32_t rows, float *out)
{
    const uint32_t experts = test->shape[1], top_k = test->shape[2];
    const bool sigmoid = test->shape[5] != 0;
    const uint64_t count = (uint64_t)rows * top_k;
    int32_t ids[2048];
    struct op op = { .kind = OP_ROUTE };

    assert(count <= 2048);
    op.route = (struct op_route){
        .logits = put_floats(bed, (uint64_t)test->shape[0] * experts),
        .correction_bias = sigmoid ? put_floats(bed, experts) : NULL, .row_count = rows,
        .expert_count = experts, .top_k = top_k, .group_count = test->shape[3],
        .kept_group_count = test->shape[4],
        .scoring = sigmoid ? ROUTE_SIGMOID : ROUTE_SOFTMAX,
        .groups = sigmoid ? ROUTE_GROUP_TOP2_SUM : ROUTE_GROUP_MAX, .normalise = true,
        .scale = 2.5f,
    };
    op.route.ids = device__bed_put(bed, NULL, count * sizeof(ids[0]));
    op.route.weights = device__bed_put(bed, NULL, count * sizeof(float));
    if (bed->err.status == STATUS_OK)
        op.route.logits += (uint64_t)first * experts;
    (void)finish(bed, &op, out, op.route.weights, count);
    device__bed_get(bed, ids, op.route.ids, count * sizeof(ids[0]));
    for (uint64_t i = 0; i < count; i++)
        out[count + i] = (float)ids[i] / (float)experts;
    return 2 * count;
}

/* The list of all experts that `stacked` means, in device memory. */
static struct op_moe_expert *put_experts(struct bed *bed, const struct op_moe *moe)
{
    const uint64_t matrix_bytes =
        dtype_row_bytes(moe->weight_dtype, (uint64_t)moe->width * moe->ffn_width);
    struct op_moe_expert experts[64];

    assert(moe->expert_count <= 64);
    for (uint32_t i = 0; bed->err.status == STATUS_OK && i < moe->expert_count; i++) {
        const char *w13 = (const char *)moe->w13 + 2 * i * matrix_bytes;

        experts[i] = (struct op_moe_expert){
            .gate = w13, .up = w13 + matrix_bytes,
            .down = (const char *)moe->w2 + i * matrix_bytes, .id = (int32_t)i,
        };
    }
    return device__bed_put(bed, bed->err.status == STATUS_OK ? experts : NULL,
                           moe->expert_count * sizeof(experts[0]));
}

/* shape: rows, experts, top k, width, ffn width, listed, gate, biases */
static uint64_t run_moe(struct bed *bed, const struct selftest_op *test, uint32_t first,
                        uint32_t rows, float *out)
{
    const uint32_t all = test->shape[0], experts = test->shape[1], top_k = test->shape[2];
    const uint32_t width = test->shape[3], ffn = test->shape[4];
    int32_t ids[1024];
    enum layout down;
    struct op op = { .kind = OP_MOE };
    struct op_moe *moe = &op.moe;

    assert(all * top_k <= 1024 && top_k <= experts);
    for (uint32_t t = 0; t < all; t++)
        for (uint32_t j = 0; j < top_k; j++)
            ids[t * top_k + j] = (int32_t)((t * 3 + j) % (experts - 1)); /* one is never hit */
    *moe = (struct op_moe){
        .x = put_floats(bed, (uint64_t)all * width), .weights = put_floats(bed, all * top_k),
        .ids = device__bed_put(bed, ids, all * top_k * sizeof(ids[0])),
        .weight_dtype = test->dtype, .down_dtype = test->dtype, .row_count = rows,
        .top_k = top_k, .expert_count = experts, .width = width, .ffn_width = ffn,
        .out_row_stride = width, .x_row_stride = width, .gate = (enum op_gate)test->shape[6],
        .w13_bias = test->shape[7] != 0 ? put_floats(bed, (uint64_t)experts * 2 * ffn) : NULL,
        .w2_bias = test->shape[7] != 0 ? put_floats(bed, (uint64_t)experts * width) : NULL,
    };
    moe->w13 = put_weights(bed, DEVICE_WEIGHT_GATE_UP, test->dtype, experts, 2 * ffn, width,
                           &moe->weight_layout);
    moe->w2 = put_weights(bed, moe->weight_layout == LAYOUT_ND ? DEVICE_WEIGHT_OTHER
                                                               : DEVICE_WEIGHT_DOWN,
                          test->dtype, experts, width, ffn, &down);
    moe->down_layout = down;
    assert(down == moe->weight_layout);
    moe->out = put_floats(bed, (uint64_t)all * width);
    moe->scratch = device__bed_put(bed, NULL,
                                   op_moe_scratch_bytes(all, top_k, experts, width, ffn));
    if (test->shape[5] != 0) {
        moe->experts = put_experts(bed, moe);
        moe->expert_list_count = experts;
    }
    if (bed->err.status == STATUS_OK) {
        moe->x += (uint64_t)first * width;
        moe->out += (uint64_t)first * width;
        moe->ids += (uint64_t)first * top_k;
        moe->weights += (uint64_t)first * top_k;
    }
    return finish(bed, &op, out, moe->out, (uint64_t)rows * width);
}

/* shape: rows, width, factors (0 none, 1 as they are, 2 sigmoid), accumulate */
static uint64_t run_scale(struct bed *bed, const struct selftest_op *test, uint32_t first,
                          uint32_t rows, float *out)
{
    const uint32_t all = test->shape[0], width = test->shape[1];
    struct op op = { .kind = OP_SCALE };

    op.scale = (struct op_scale){
        .x = put_floats(bed, (uint64_t)all * width),
        .row_factors = test->shape[2] != 0 ? put_floats(bed, all) : NULL, .row_count = rows,
        .width = width, .out_row_stride = width, .x_row_stride = width, .factor = 0.4f,
        .sigmoid = test->shape[2] == 2, .accumulate = test->shape[3] != 0,
    };
    op.scale.out = put_floats(bed, (uint64_t)all * width);
    if (bed->err.status == STATUS_OK) {
        op.scale.x += (uint64_t)first * width;
        op.scale.out += (uint64_t)first * width;
        op.scale.row_factors += op.scale.row_factors != NULL ? first : 0;
    }
    return finish(bed, &op, out, op.scale.out, (uint64_t)rows * width);
}

/* shape: rows, width */
static uint64_t run_soft_cap(struct bed *bed, const struct selftest_op *test, uint32_t first,
                             uint32_t rows, float *out)
{
    const uint32_t width = test->shape[1];
    struct op op = { .kind = OP_SOFT_CAP, .soft_cap = {
        .x = put_floats(bed, (uint64_t)test->shape[0] * width), .row_count = rows, .width = width,
        .row_stride = width, .cap = 0.7f,
    } };

    if (bed->err.status == STATUS_OK)
        op.soft_cap.x += (uint64_t)first * width;
    return finish(bed, &op, out, op.soft_cap.x, (uint64_t)rows * width);
}

#define SELFTEST_COLUMNS_MAX 256

/* shape: rows, width */
static uint64_t run_gather_columns(struct bed *bed, const struct selftest_op *test, uint32_t first,
                                   uint32_t rows, float *out)
{
    const uint32_t width = test->shape[1];
    float columns[SELFTEST_COLUMNS_MAX];
    struct op op = { .kind = OP_GATHER_COLUMNS };

    assert(width <= SELFTEST_COLUMNS_MAX);
    for (uint32_t i = 0; i < width; i++)
        columns[i] = (float)((i * 5 + 3) % width);
    op.gather_columns = (struct op_gather_columns){
        .x = put_floats(bed, (uint64_t)test->shape[0] * width),
        .columns = device__bed_put(bed, columns, width * sizeof(float)),
        .row_count = rows, .width = width, .x_width = width, .out_row_stride = width,
        .x_row_stride = width,
    };
    op.gather_columns.out = device__bed_put(bed, NULL, (uint64_t)rows * width * sizeof(float));
    if (bed->err.status == STATUS_OK)
        op.gather_columns.x += (uint64_t)first * width;
    return finish(bed, &op, out, op.gather_columns.out, (uint64_t)rows * width);
}

/* shape: rows, width */
static uint64_t run_gather_rows(struct bed *bed, const struct selftest_op *test, uint32_t first,
                                uint32_t rows, float *out)
{
    const uint32_t width = test->shape[1];
    struct op op = { .kind = OP_GATHER_ROWS };

    op.gather_rows = (struct op_gather_rows){
        .x = put_floats(bed, (uint64_t)50 * width), .rows = put_numbers(bed, test->shape[0], 50),
        .row_count = rows, .width = width, .x_row_count = 50, .out_row_stride = width,
        .x_row_stride = width,
    };
    op.gather_rows.out = device__bed_put(bed, NULL, (uint64_t)rows * width * sizeof(float));
    if (bed->err.status == STATUS_OK)
        op.gather_rows.rows += first;
    return finish(bed, &op, out, op.gather_rows.out, (uint64_t)rows * width);
}

#define WITH_DTYPES(name, run, cut, ...)                                                           \
    { name, run, DTYPE_BF16, { __VA_ARGS__ }, cut },                                               \
    { name, run, DTYPE_F16, { __VA_ARGS__ }, cut },                                                \
    { name, run, DTYPE_F32, { __VA_ARGS__ }, cut }
#define PLAIN(name, run, cut, ...) { name, run, DTYPE_F32, { __VA_ARGS__ }, cut }

const struct selftest_op device__selftest_ops[] = {
    WITH_DTYPES("embed", run_embed, false, 7, 64, 300),
    WITH_DTYPES("embed, odd", run_embed, false, 3, 37, 11),
    PLAIN("rms_norm", run_rms_norm, true, 9, 1, 256),
    PLAIN("rms_norm of heads", run_rms_norm, true, 5, 4, 64),
    PLAIN("rms_norm, odd", run_rms_norm, true, 3, 1, 77),
    PLAIN("rms_norm, weights added to 1", run_rms_norm, true, 5, 2, 64, 1),
    WITH_DTYPES("matmul, one row", run_matmul, true, 1, 192, 128, 1, 0, 0),
    WITH_DTYPES("matmul, many rows", run_matmul, true, 65, 256, 192, 1, 0, 0),
    WITH_DTYPES("matmul, long rows", run_matmul, true, 3, 64, 4096, 1, 0, 0),
    WITH_DTYPES("matmul with a bias", run_matmul, true, 5, 128, 64, 1, 1, 0),
    WITH_DTYPES("matmul that adds", run_matmul, true, 5, 128, 64, 1, 0, 1),
    WITH_DTYPES("matmul with both", run_matmul, true, 4, 64, 80, 1, 1, 1),
    WITH_DTYPES("matmul, odd", run_matmul, true, 3, 33, 19, 1, 1, 0),
    WITH_DTYPES("matmul, exact", run_matmul, true, 5, 160, 96, 1, 0, 2),
    WITH_DTYPES("matmul of heads", run_matmul, true, 6, 48, 32, 4, 0, 0),
    PLAIN("rope_table", run_rope_table, true, 9, 32),
    PLAIN("rope_table, odd", run_rope_table, true, 3, 5),
    PLAIN("rope in halves", run_rope, true, 6, 4, 32, 0),
    PLAIN("rope interleaved", run_rope, true, 6, 4, 32, 1),
    PLAIN("rope, odd", run_rope, true, 3, 3, 5, 0),
    PLAIN("kv_write", run_kv_write, false, 9, 128, 64, 1, 16),
    PLAIN("kv_write, odd", run_kv_write, false, 5, 19, 13, 1, 1),
    PLAIN("kv_write by head", run_kv_write, false, 9, 16, 64, 8, 16),
    PLAIN("attention, one kv head for each", run_attention, true, 33, 4, 4, 64, 64, 16),
    PLAIN("attention, grouped", run_attention, true, 21, 8, 2, 64, 64, 16),
    PLAIN("attention, latent", run_attention, true, 9, 4, 1, 96, 64, 8),
    PLAIN("attention, wide heads", run_attention, true, 33, 4, 2, 256, 256, 16),
    PLAIN("attention, wide latents", run_attention, true, 9, 4, 1, 576, 512, 8),
    PLAIN("attention, odd", run_attention, true, 7, 6, 3, 20, 12, 5),
    PLAIN("attention with a window", run_attention, true, 33, 8, 2, 64, 64, 16, 20),
    PLAIN("attention in chunks", run_attention, true, 33, 8, 2, 64, 64, 16, 20, CHUNKED),
    PLAIN("attention with sinks and a soft cap", run_attention, true, 21, 8, 2, 64, 64, 16, 0,
          CAPPED_WITH_SINKS),
    PLAIN("attention with all of these, odd", run_attention, true, 9, 6, 3, 20, 12, 5, 4,
          CAPPED_WITH_SINKS | CHUNKED),
    PLAIN("attention by head", run_attention, true, 21, 8, 2, 64, 64, 16, 0, BY_HEAD),
    { "attention over F16", run_attention, DTYPE_F16, { 21, 8, 2, 64, 64, 16, 0, BY_HEAD }, true },
    { "attention over Q8_0", run_attention, DTYPE_Q8_0, { 21, 8, 2, 64, 64, 16, 0, BY_HEAD },
      true },
    PLAIN("silu_mul", run_silu_mul, true, 9, 256),
    PLAIN("silu_mul, odd", run_silu_mul, true, 3, 19),
    PLAIN("silu_mul, GELU", run_silu_mul, true, 9, 256, GATE_GELU_TANH),
    PLAIN("silu_mul, GELU, odd", run_silu_mul, true, 3, 19, GATE_GELU_TANH),
    PLAIN("silu_mul, clamped", run_silu_mul, true, 9, 256, GATE_CLAMPED_SWISH),
    PLAIN("silu_mul, clamped, odd", run_silu_mul, true, 3, 19, GATE_CLAMPED_SWISH),
    PLAIN("scale", run_scale, true, 9, 128, 0, 0),
    PLAIN("scale each row", run_scale, true, 9, 128, 1, 1),
    PLAIN("scale by sigmoids, odd", run_scale, true, 3, 19, 2, 1),
    PLAIN("soft_cap", run_soft_cap, true, 9, 128),
    PLAIN("soft_cap, odd", run_soft_cap, true, 3, 19),
    PLAIN("route by softmax", run_route, true, 17, 16, 4, 1, 1, 0),
    PLAIN("route by groups", run_route, true, 9, 32, 6, 4, 2, 0),
    PLAIN("route by sigmoid and groups", run_route, true, 9, 64, 8, 8, 4, 1),
    WITH_DTYPES("moe, stacked", run_moe, true, 13, 8, 2, 64, 128, 0),
    WITH_DTYPES("moe, listed", run_moe, true, 13, 8, 2, 64, 128, 1),
    WITH_DTYPES("moe, one row", run_moe, true, 1, 8, 4, 128, 64, 0),
    WITH_DTYPES("moe, odd", run_moe, true, 5, 5, 3, 40, 24, 0),
    WITH_DTYPES("moe, GELU", run_moe, true, 13, 8, 2, 64, 128, 0, GATE_GELU_TANH),
    WITH_DTYPES("moe, clamped, biases", run_moe, true, 13, 8, 2, 64, 128, 1, GATE_CLAMPED_SWISH, 1),
    PLAIN("gather_rows", run_gather_rows, true, 9, 128),
    PLAIN("gather_rows, odd", run_gather_rows, true, 3, 13),
    PLAIN("gather_columns", run_gather_columns, true, 9, 128),
};
const size_t device__selftest_op_count =
    sizeof(device__selftest_ops) / sizeof(device__selftest_ops[0]);
