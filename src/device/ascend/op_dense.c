/* device/ascend/op_dense.c - operators on rows: embed, norm, matmul, rope and their like.
 *
 * Results that an operator of CANN writes with strides go through packed scratch where its
 * documentation does not promise strided outputs: products, selections and norms. Sums, products
 * element by element, and copies take any strides. */
#include <assert.h>

#include "device/ascend/op_call.h"
#include "device/cpu/execute.h"

/* Scratch that a product takes at most, but for one row: rows, or rows of weights that are wanted
 * in FLOAT, are taken in parts. A constant, so that parts are the same wherever weights live. */
#define PART_BYTES (UINT64_C(16) << 20)

static uint64_t element_bytes(aclDataType dtype)
{
    return dtype == ACL_FLOAT ? 4 : 2;
}

/* One piece of scratch. NULL after a failure. */
static void *scratch_of(struct ascend_call *call, uint64_t size_bytes)
{
    struct ascend_cutter cutter = { NULL, 0 };
    void *memory = NULL;

    (void)ascend__cut(&cutter, size_bytes);
    if (call->status == STATUS_OK)
        call->status = ascend__scratch(call->stream, cutter.used_bytes, &memory, call->err);
    return memory;
}

static void select_rows(struct ascend_call *call, const struct ascend_view *table,
                        const int32_t *ids, const struct ascend_view *out)
{
    const struct ascend_view index = ascend__vector(ids, ACL_INT32, (uint64_t)out->dims[0]);
    struct ascend_view packed = *out;

    if (table->dtype == out->dtype && ascend__is_packed(out)) {
        ascend__select(call, table, &index, out);
        return;
    }
    packed.dtype = table->dtype;
    packed.strides[0] = out->dims[1];
    packed.data = scratch_of(call, (uint64_t)(out->dims[0] * out->dims[1]) *
                                       element_bytes(table->dtype));
    ascend__select(call, table, &index, &packed);
    ascend__copy(call, out, &packed);
}

void ascend__op_embed(struct ascend_call *call, const struct op_embed *op)
{
    const struct ascend_view table = ascend__rows(op->table, ascend__dtype(op->table_dtype),
                                                  op->table_row_count, op->width, op->width);
    const struct ascend_view out =
        ascend__rows(op->out, ACL_FLOAT, op->row_count, op->width, op->out_row_stride);

    select_rows(call, &table, op->ids, &out);
}

void ascend__op_gather_rows(struct ascend_call *call, const struct op_gather_rows *op)
{
    const struct ascend_view x =
        ascend__rows(op->x, ACL_FLOAT, op->x_row_count, op->width, op->x_row_stride);
    const struct ascend_view out =
        ascend__rows(op->out, ACL_FLOAT, op->row_count, op->width, op->out_row_stride);

    select_rows(call, &x, op->rows, &out);
}

/* The columns become integers first, and the result is packed. */
void ascend__op_gather_columns(struct ascend_call *call, const struct op_gather_columns *op)
{
    const struct ascend_view x =
        ascend__rows(op->x, ACL_FLOAT, op->row_count, op->x_width, op->x_row_stride);
    const struct ascend_view out =
        ascend__rows(op->out, ACL_FLOAT, op->row_count, op->width, op->out_row_stride);
    const struct ascend_view columns = ascend__vector(op->columns, ACL_FLOAT, op->width);
    struct ascend_cutter cutter = { NULL, 0 };
    struct ascend_view index, packed = out;
    void *memory = NULL;

    for (int i = 0; i < 2; i++) {
        index = ascend__vector(ascend__cut(&cutter, (uint64_t)op->width * sizeof(int32_t)),
                               ACL_INT32, op->width);
        packed.data = ascend__cut(&cutter, (uint64_t)op->row_count * op->width * sizeof(float));
        packed.strides[0] = op->width;
        if (i == 0) {
            if (call->status == STATUS_OK)
                call->status = ascend__scratch(call->stream, cutter.used_bytes, &memory, call->err);
            cutter = (struct ascend_cutter){ memory, 0 };
        }
    }
    ascend__copy(call, &index, &columns);
    ASCEND_CALL(call, IndexSelect, 0, ASCEND_VIEWS(&x, &index, &packed), t[0], 1, t[1], t[2]);
    ascend__copy(call, &out, &packed);
}

void ascend__op_kv_write(struct ascend_call *call, const struct op_kv_write *op)
{
    const uint64_t width = (uint64_t)op->head_count * op->width;
    const struct ascend_view cache = ascend__rows(op->cache, ACL_FLOAT, op->cache_row_count, width,
                                                  op->strides.slot);
    const struct ascend_view x =
        ascend__rows(op->x, ACL_FLOAT, op->row_count, width, op->x_row_stride);
    const struct ascend_view slots = ascend__vector(op->slots, ACL_INT32, op->row_count);

    assert(op->strides.page == op->page_size * op->strides.slot);
    assert(op->head_count == 1 || op->strides.head == op->width);
    ASCEND_CALL(call, InplaceIndexCopy, 0, ASCEND_VIEWS(&cache, &slots, &x), t[0], 0, t[1], t[2]);
}

void ascend__op_rms_norm(struct ascend_call *call, const struct op_rms_norm *op)
{
    const uint64_t rows = op->row_count, groups = op->group_count, width = op->width;
    const struct ascend_dims group = { groups, width };
    const struct ascend_view x =
        ascend__cube(op->x, (struct ascend_dims){ rows, op->x_row_stride }, group, width);
    const struct ascend_view out =
        ascend__cube(op->out, (struct ascend_dims){ rows, op->out_row_stride }, group, width);
    const struct ascend_view weight = ascend__vector(op->weight, ACL_FLOAT, width);
    const bool direct = op->out != op->x && ascend__is_packed(&out);
    struct ascend_view packed = out, rstd, factors = weight;
    struct ascend_cutter cutter = { NULL, 0 };
    void *memory = NULL;

    for (int pass = 0; pass < 2 && call->status == STATUS_OK; pass++) {
        cutter = (struct ascend_cutter){ memory, 0 };
        if (op->weight_offset != 0)
            factors.data = ascend__cut(&cutter, width * 4);
        rstd = ascend__cube(ascend__cut(&cutter, rows * groups * 4),
                            (struct ascend_dims){ rows, groups }, (struct ascend_dims){ groups, 1 },
                            1);
        if (!direct) {
            packed.data = ascend__cut(&cutter, rows * groups * width * 4);
            packed.strides[0] = (int64_t)(groups * width);
        }
        if (pass == 0)
            call->status = ascend__scratch(call->stream, cutter.used_bytes, &memory, call->err);
    }
    if (op->weight_offset != 0) {
        ascend__copy(call, &factors, &weight);
        ascend__add_number(call, &factors, (double)op->weight_offset);
    }
    ASCEND_CALL(call, RmsNorm, (double)op->epsilon, ASCEND_VIEWS(&x, &factors, &packed, &rstd),
                t[0], t[1], (double)op->epsilon, t[2], t[3]);
    if (!direct)
        ascend__copy(call, &out, &packed);
}

/* ---- rope ---- */

/* The processor's sines: angles are up to 10^5 and more, and what an NPU makes of those no document
 * says. Once in a step. */
void ascend__op_rope_table(struct ascend_call *call, const struct op_rope_table *op)
{
    struct ascend_ops *ops = ascend__device_of(call->stream)->ops;
    struct stream *stream = &call->stream->base;
    const uint64_t position_bytes = (uint64_t)op->row_count * 4;
    const uint64_t frequency_bytes = (uint64_t)op->pair_count * 4;
    const uint64_t table_bytes = (uint64_t)op->row_count * op->pair_count * 8;
    struct op host = { .kind = OP_ROPE_TABLE, .rope_table = *op };
    void *memory = NULL;

    call->status = ascend__host_memory(ops, position_bytes + frequency_bytes + table_bytes,
                                       &memory, call->err);
    if (call->status != STATUS_OK)
        return;
    host.rope_table.table = memory;
    host.rope_table.positions = (const int32_t *)(const void *)((char *)memory + table_bytes);
    host.rope_table.frequencies =
        (const float *)(const void *)((char *)memory + table_bytes + position_bytes);
    call->status = ascend__copy_out(stream, (void *)host.rope_table.positions, op->positions,
                                    position_bytes, call->err);
    if (call->status == STATUS_OK)
        call->status = ascend__copy_out(stream, (void *)host.rope_table.frequencies,
                                        op->frequencies, frequency_bytes, call->err);
    if (call->status == STATUS_OK)
        call->status = ascend__stream_sync(stream, call->err);
    if (call->status != STATUS_OK)
        return;
    cpu_execute(ops->host, &host);
    call->status = ascend__copy_in(stream, op->table, memory, table_bytes, call->err);
}

/* x = (a, b) becomes (a cos - b sin, b cos + a sin), in FLOAT. */
void ascend__op_rope(struct ascend_call *call, const struct op_rope *op)
{
    const struct ascend_ops *ops = ascend__device_of(call->stream)->ops;
    const uint64_t step = op->interleaved ? 2 : 1, second = op->interleaved ? 1 : op->pair_count;
    const struct ascend_dims rows = { op->row_count, op->row_stride };
    const struct ascend_dims heads = { op->head_count, op->head_stride };
    const uint64_t count = (uint64_t)op->row_count * op->head_count * op->pair_count;
    struct ascend_view a = ascend__cube(op->x, rows, heads, op->pair_count), b;
    struct ascend_view cosine = ascend__cube(op->table, rows, heads, op->pair_count), sine;
    struct ascend_view products[4];
    struct ascend_cutter cutter = { NULL, 0 };
    void *memory = NULL;

    a.strides[2] = (int64_t)step;
    b = a;
    b.data = op->x + second;
    cosine.strides[0] = cosine.strides[1] = 2 * (int64_t)op->pair_count;
    cosine.strides[2] = 2;
    cosine.dims[1] = 1;
    sine = cosine;
    sine.data = (float *)cosine.data + 1;
    for (int pass = 0; pass < 2 && call->status == STATUS_OK; pass++) {
        cutter = (struct ascend_cutter){ memory, 0 };
        for (int i = 0; i < 4; i++)
            products[i] = ascend__cube(
                ascend__cut(&cutter, count * 4),
                (struct ascend_dims){ op->row_count, (uint64_t)op->head_count * op->pair_count },
                (struct ascend_dims){ op->head_count, op->pair_count }, op->pair_count);
        if (pass == 0)
            call->status = ascend__scratch(call->stream, cutter.used_bytes, &memory, call->err);
    }
    for (int i = 0; i < 4; i++) { /* a cos, b sin, b cos, a sin */
        const struct ascend_view *x = i == 0 || i == 3 ? &a : &b;
        const struct ascend_view *turn = i % 2 == 0 ? &cosine : &sine;

        ASCEND_CALL(call, Mul, 0, ASCEND_VIEWS(x, turn, &products[i]), t[0], t[1], t[2]);
    }
    ASCEND_CALL(call, Sub, 0, ASCEND_VIEWS(&products[0], &products[1], &a), t[0], t[1], ops->one,
                t[2]);
    ASCEND_CALL(call, Add, 0, ASCEND_VIEWS(&products[2], &products[3], &b), t[0], t[1], ops->one,
                t[2]);
}

/* ---- matmul ---- */

/* Puts a product to its place: adds the bias, and what is there. */
static void deliver(struct ascend_call *call, const struct op_matmul *op,
                    const struct ascend_view *out, const struct ascend_view *product)
{
    if (op->bias != NULL) {
        const struct ascend_view bias = ascend__vector(op->bias, ACL_FLOAT, op->n_count);

        ascend__add_to(call, product, &bias);
    }
    if (op->accumulate)
        ascend__add_to(call, out, product);
    else if (product->data != out->data)
        ascend__copy(call, out, product);
}

/* Rows [first, first + count) of one matrix. */
static void matmul_rows(struct ascend_call *call, const struct op_matmul *op, uint64_t first,
                        uint64_t count)
{
    const aclDataType dtype = ascend__dtype(op->weight_dtype);
    const uint64_t n = op->n_count, k = op->k_count;
    const struct ascend_view weight = ascend__weight(op->weight, dtype, n, k, op->weight_layout);
    const struct ascend_view from =
        ascend__rows(op->x + first * op->x_row_stride, ACL_FLOAT, count, k, op->x_row_stride);
    const struct ascend_view out = ascend__rows(op->out + first * op->out_row_stride, ACL_FLOAT,
                                                count, n, op->out_row_stride);
    const bool direct = !op->accumulate && ascend__is_packed(&out);
    struct ascend_view x = from, product = out;
    void *memory = NULL;

    for (int pass = 0; pass < 2 && call->status == STATUS_OK; pass++) {
        struct ascend_cutter cutter = { memory, 0 };

        if (dtype != ACL_FLOAT) {
            x = ascend__rows(ascend__cut(&cutter, count * k * 2), dtype, count, k, k);
        }
        if (!direct)
            product = ascend__rows(ascend__cut(&cutter, count * n * 4), ACL_FLOAT, count, n, n);
        if (pass == 0 && cutter.used_bytes == 0)
            break;
        if (pass == 0)
            call->status = ascend__scratch(call->stream, cutter.used_bytes, &memory, call->err);
    }
    if (dtype != ACL_FLOAT)
        ascend__copy(call, &x, &from);
    ascend__product(call, &x, &weight, &product);
    deliver(call, op, &out, &product);
}

/* Columns [first, first + count) of the result, with these rows of the weight in FLOAT. */
static void matmul_exact(struct ascend_call *call, const struct op_matmul *op, uint64_t first,
                         uint64_t count)
{
    const aclDataType dtype = ascend__dtype(op->weight_dtype);
    const uint64_t rows = op->row_count, k = op->k_count;
    const struct ascend_view x = ascend__rows(op->x, ACL_FLOAT, rows, k, op->x_row_stride);
    const struct ascend_view out =
        ascend__rows(op->out + first, ACL_FLOAT, rows, count, op->out_row_stride);
    const struct ascend_view from =
        ascend__rows((const char *)op->weight + first * k * 2, dtype, count, k, k);
    struct op_matmul part = *op;
    struct ascend_view weight = from, wide = from, product = out;
    void *memory = NULL;

    for (int pass = 0; pass < 2 && call->status == STATUS_OK; pass++) {
        struct ascend_cutter cutter = { memory, 0 };

        wide = ascend__rows(ascend__cut(&cutter, count * k * 4), ACL_FLOAT, count, k, k);
        product = ascend__rows(ascend__cut(&cutter, rows * count * 4), ACL_FLOAT, rows, count,
                               count);
        if (pass == 0)
            call->status = ascend__scratch(call->stream, cutter.used_bytes, &memory, call->err);
    }
    part.n_count = (uint32_t)count;
    part.bias = op->bias != NULL ? op->bias + first : NULL;
    weight = ascend__weight(wide.data, ACL_FLOAT, count, k, LAYOUT_ND);
    ascend__copy(call, &wide, &from);
    ascend__product(call, &x, &weight, &product);
    deliver(call, &part, &out, &product);
}

/* Several matrices, one for each head, on these rows. */
static void matmul_batches(struct ascend_call *call, const struct op_matmul *op, uint64_t first,
                           uint64_t count)
{
    const struct ascend_ops *ops = ascend__device_of(call->stream)->ops;
    const aclDataType dtype = ascend__dtype(op->weight_dtype);
    const uint64_t batches = op->batch_count, n = op->n_count, k = op->k_count;
    const struct ascend_dims x_batch = { batches, op->x_batch_stride };
    const struct ascend_dims out_batch = { batches, op->out_batch_stride };
    const struct ascend_view from =
        ascend__cube(op->x + first * op->x_row_stride, x_batch,
                     (struct ascend_dims){ count, op->x_row_stride }, k);
    const struct ascend_view out =
        ascend__cube(op->out + first * op->out_row_stride, out_batch,
                     (struct ascend_dims){ count, op->out_row_stride }, n);
    struct ascend_view x = from, product = out;
    struct ascend_view weight = ascend__cube(op->weight, (struct ascend_dims){ batches, n * k },
                                             (struct ascend_dims){ k, 1 }, n);
    void *memory = NULL;

    for (int pass = 0; pass < 2 && call->status == STATUS_OK; pass++) {
        struct ascend_cutter cutter = { memory, 0 };

        x = ascend__cube(ascend__cut(&cutter, batches * count * k * element_bytes(dtype)),
                         (struct ascend_dims){ batches, count * k },
                         (struct ascend_dims){ count, k }, k);
        product = ascend__cube(ascend__cut(&cutter, batches * count * n * 4),
                               (struct ascend_dims){ batches, count * n },
                               (struct ascend_dims){ count, n }, n);
        if (pass == 0)
            call->status = ascend__scratch(call->stream, cutter.used_bytes, &memory, call->err);
    }
    x.dtype = weight.dtype = dtype;
    weight.strides[2] = (int64_t)k;
    ascend__copy(call, &x, &from);
    ASCEND_CALL(call, BatchMatMul, 0, ASCEND_VIEWS(&x, &weight, &product), t[0], t[1], t[2],
                ascend__cube_math(ops, dtype));
    deliver(call, op, &out, &product);
}

void ascend__op_matmul(struct ascend_call *call, const struct op_matmul *op)
{
    const bool exact = op->exact && op->weight_dtype != DTYPE_F32 && op->batch_count == 1;
    const uint64_t n = op->n_count, k = op->k_count;
    const uint64_t each_bytes = exact ? (k + op->row_count) * 4 : (k + n) * op->batch_count * 4;
    const uint64_t total = exact ? n : op->row_count;
    uint64_t most = PART_BYTES / each_bytes > 0 ? PART_BYTES / each_bytes : 1;

    assert(!exact || op->weight_layout == LAYOUT_ND);
    for (uint64_t first = 0; first < total && call->status == STATUS_OK; first += most) {
        most = total - first < most ? total - first : most;
        if (exact)
            matmul_exact(call, op, first, most);
        else if (op->batch_count > 1)
            matmul_batches(call, op, first, most);
        else
            matmul_rows(call, op, first, most);
    }
}
