/* device/ascend/op_experts.c - route and moe.
 *
 * A router's choice is made on the host, by the processor's own routine: ties, NaN and groups are
 * then what op.h says, and the host, which has to know who was chosen anyway, waits once.
 *
 * The experts are computed one after the other, each on its own rows, so that what an expert gives
 * depends neither on which others are at hand nor on whether they are stacked:
 *
 *     x, in the weights' dtype           [rows][width]          in the stream's scratch
 *     for each expert that was hit:      its rows of x          [m][width]
 *         g, u = gate, up                [m][ffn] each
 *         y[its pairs] = down . gate(g, u)                      in the op's scratch
 *     at last, for j in order:           out += weights[.][j] * y[place of (., j)]
 *
 * A pair is a row and one of its choices. Pairs are sorted by expert on the host when the first
 * launch comes; y and the indices lie in the op's scratch, where later launches find them:
 *
 *     op.scratch   y [pairs][width] | rows [pairs] | places [top_k][rows] */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "device/ascend/op_call.h"
#include "device/cpu/execute.h"

#define PART_BYTES (UINT64_C(16) << 20) /* scratch of one expert's rows at most, but for one row */

void ascend__op_route(struct ascend_call *call, const struct op_route *op)
{
    struct ascend_ops *ops = ascend__device_of(call->stream)->ops;
    struct stream *stream = &call->stream->base;
    const uint64_t logit_bytes = (uint64_t)op->row_count * op->expert_count * 4;
    const uint64_t bias_bytes = op->correction_bias != NULL ? (uint64_t)op->expert_count * 4 : 0;
    const uint64_t choice_bytes = (uint64_t)op->row_count * op->top_k * 4;
    struct op host = { .kind = OP_ROUTE, .route = *op };
    float *logits, *bias;
    void *memory = NULL;

    call->status = ascend__host_memory(ops, logit_bytes + bias_bytes + 2 * choice_bytes, &memory,
                                       call->err);
    if (call->status != STATUS_OK)
        return;
    logits = memory;
    bias = logits + logit_bytes / 4;
    host.route.logits = logits;
    host.route.correction_bias = bias_bytes > 0 ? bias : NULL;
    host.route.weights = bias + bias_bytes / 4;
    host.route.ids = (int32_t *)(void *)(host.route.weights + choice_bytes / 4);
    call->status = ascend__copy_out(stream, logits, op->logits, logit_bytes, call->err);
    if (call->status == STATUS_OK && bias_bytes > 0)
        call->status = ascend__copy_out(stream, bias, op->correction_bias, bias_bytes, call->err);
    if (call->status == STATUS_OK)
        call->status = ascend__stream_sync(stream, call->err);
    if (call->status != STATUS_OK)
        return;
    cpu_execute(ops->host, &host);
    call->status = ascend__copy_in(stream, op->ids, host.route.ids, choice_bytes, call->err);
    if (call->status == STATUS_OK)
        call->status = ascend__copy_in(stream, op->weights, host.route.weights, choice_bytes,
                                       call->err);
}

/* ---- pairs ---- */

/* Where y and the indices lie in the op's scratch. */
struct places {
    float *results;
    int32_t *rows, *places;
};

static struct places places_of(const struct op_moe *op)
{
    const uint64_t pairs = (uint64_t)op->row_count * op->top_k;
    char *base = op->scratch;
    struct places places;

    /* op_moe_scratch_bytes has room for more: gate, up and their product of each pair */
    places.results = op->scratch;
    base += size_align_up(pairs * op->width * 4, 64);
    places.rows = (int32_t *)(void *)base;
    base += size_align_up(pairs * 4, 64);
    places.places = (int32_t *)(void *)base;
    return places;
}

static enum status pairs_need(struct ascend_moe *moe, const struct op_moe *op, struct err *err)
{
    const uint64_t pairs = (uint64_t)op->row_count * op->top_k;
    const uint64_t bytes = 3 * pairs * 4 + ((uint64_t)op->expert_count + 1) * 4;
    int32_t *memory;

    if (bytes > moe->bytes) {
        memory = realloc(moe->pairs, bytes);
        if (memory == NULL)
            return err_set(err, STATUS_NO_MEMORY, "moe: no memory to sort %llu rows of experts",
                           (unsigned long long)pairs);
        moe->pairs = memory;
        moe->bytes = bytes;
    }
    moe->rows = moe->pairs + pairs;
    moe->places = moe->rows + pairs;
    moe->begins = (uint32_t *)(void *)(moe->places + pairs);
    return STATUS_OK;
}

/* By expert, then by row. ids are in moe->pairs and are replaced. */
static void sort_pairs(struct ascend_moe *moe, const struct op_moe *op)
{
    const uint32_t pairs = op->row_count * op->top_k;

    memset(moe->begins, 0, ((size_t)op->expert_count + 1) * sizeof(*moe->begins));
    for (uint32_t i = 0; i < pairs; i++) {
        assert(moe->pairs[i] >= 0 && (uint32_t)moe->pairs[i] < op->expert_count);
        moe->begins[moe->pairs[i]]++;
    }
    for (uint32_t e = 0, sum = 0; e <= op->expert_count; e++) {
        const uint32_t count = moe->begins[e];

        moe->begins[e] = sum;
        sum += count;
    }
    for (uint32_t i = 0; i < pairs; i++) {
        const uint32_t at = moe->begins[moe->pairs[i]]++;

        moe->rows[at] = (int32_t)(i / op->top_k);
        moe->places[i % op->top_k * op->row_count + i / op->top_k] = (int32_t)at;
    }
    for (uint32_t e = op->expert_count; e > 0; e--) /* they have become ends */
        moe->begins[e] = moe->begins[e - 1];
    moe->begins[0] = 0;
}

/* Sorts, and puts the indices where the launches find them. */
static void begin_pairs(struct ascend_call *call, const struct op_moe *op)
{
    struct ascend_moe *moe = &ascend__device_of(call->stream)->ops->moe;
    struct stream *stream = &call->stream->base;
    const uint64_t bytes = (uint64_t)op->row_count * op->top_k * 4;
    const struct places places = places_of(op);

    call->status = pairs_need(moe, op, call->err);
    if (call->status == STATUS_OK)
        call->status = ascend__copy_out(stream, moe->pairs, op->ids, bytes, call->err);
    if (call->status == STATUS_OK)
        call->status = ascend__stream_sync(stream, call->err);
    if (call->status != STATUS_OK)
        return;
    sort_pairs(moe, op);
    call->status = ascend__copy_in(stream, places.rows, moe->rows, bytes, call->err);
    if (call->status == STATUS_OK)
        call->status = ascend__copy_in(stream, places.places, moe->places, bytes, call->err);
}

/* ---- one expert ---- */

/* What all experts of a launch read, and the scratch of one part of its rows. */
struct mixing {
    const struct op_moe *op;
    aclDataType dtype;
    struct places places;
    struct ascend_view x;         /* [rows][width], in the weights' dtype */
    uint64_t most;                /* rows of a part */
    void *own_x, *gate, *up, *narrow;
    void *spare;                  /* of a gate that needs it; or NULL */
};

static void mixing_cut(struct mixing *mixing, struct ascend_cutter *cutter)
{
    const struct op_moe *op = mixing->op;
    const uint64_t element_bytes = mixing->dtype == ACL_FLOAT ? 4 : 2;

    mixing->x = ascend__rows(ascend__cut(cutter, op->row_count * op->width * element_bytes),
                             mixing->dtype, op->row_count, op->width, op->width);
    mixing->own_x = ascend__cut(cutter, mixing->most * op->width * element_bytes);
    mixing->gate = ascend__cut(cutter, mixing->most * op->ffn_width * 4);
    mixing->up = ascend__cut(cutter, mixing->most * op->ffn_width * 4);
    mixing->narrow = ascend__cut(cutter, mixing->most * op->ffn_width * 2);
    mixing->spare = op->gate == GATE_CLAMPED_SWISH
                        ? ascend__cut(cutter, mixing->most * op->ffn_width * 4) : NULL;
}

/* To each row; NULL: none. */
static void add_bias(struct ascend_call *call, const struct ascend_view *rows, const float *bias,
                     uint64_t width)
{
    const struct ascend_view summand = ascend__vector(bias, ACL_FLOAT, width);

    if (bias != NULL)
        ascend__add_to(call, rows, &summand);
}

/* Pairs [first, first + count), all of this expert. */
static void mix_part(struct ascend_call *call, const struct mixing *mixing,
                     const struct op_moe_expert *expert, uint64_t first, uint64_t count)
{
    const struct op_moe *op = mixing->op;
    const aclDataType dtype = mixing->dtype;
    const uint64_t width = op->width, ffn = op->ffn_width;
    const struct ascend_view rows = ascend__vector(mixing->places.rows + first, ACL_INT32, count);
    const struct ascend_view x = ascend__rows(mixing->own_x, dtype, count, width, width);
    const struct ascend_view gate = ascend__rows(mixing->gate, ACL_FLOAT, count, ffn, ffn);
    const struct ascend_view up = ascend__rows(mixing->up, ACL_FLOAT, count, ffn, ffn);
    const struct ascend_view narrow = ascend__rows(mixing->narrow, dtype, count, ffn, ffn);
    const struct ascend_view temps[2] = {
        gate, ascend__rows(mixing->spare, ACL_FLOAT, count, ffn, ffn),
    };
    const struct ascend_view results = ascend__rows(mixing->places.results + first * width,
                                                    ACL_FLOAT, count, width, width);
    const uint64_t id = (uint64_t)expert->id;
    const float *b13 = op->w13_bias != NULL ? op->w13_bias + 2 * id * ffn : NULL;
    const float *b2 = op->w2_bias != NULL ? op->w2_bias + id * width : NULL;
    const struct ascend_view w_gate = ascend__weight(expert->gate, dtype, ffn, width,
                                                     op->weight_layout);
    const struct ascend_view w_up = ascend__weight(expert->up, dtype, ffn, width,
                                                   op->weight_layout);
    const struct ascend_view w_down = ascend__weight(expert->down, dtype, width, ffn,
                                                     op->down_layout);

    ascend__select(call, &mixing->x, &rows, &x);
    ascend__product(call, &x, &w_gate, &gate);
    ascend__product(call, &x, &w_up, &up);
    add_bias(call, &gate, b13, ffn);
    add_bias(call, &up, b13 != NULL ? b13 + ffn : NULL, ffn);
    ascend__gate(call, op->gate, &gate, &up, &up, temps);
    if (dtype != ACL_FLOAT)
        ascend__copy(call, &narrow, &up);
    ascend__product(call, dtype != ACL_FLOAT ? &narrow : &up, &w_down, &results);
    add_bias(call, &results, b2, width);
}

static void mix(struct ascend_call *call, const struct mixing *mixing,
                const struct op_moe_expert *expert)
{
    const struct ascend_moe *moe = &ascend__device_of(call->stream)->ops->moe;
    const uint64_t end = moe->begins[expert->id + 1];

    for (uint64_t first = moe->begins[expert->id]; first < end && call->status == STATUS_OK;
         first += mixing->most)
        mix_part(call, mixing, expert, first,
                 end - first < mixing->most ? end - first : mixing->most);
}

/* The experts of this launch: stacked ones are found, listed ones copied to the host. */
static struct op_moe_expert *experts_read(struct ascend_call *call, const struct op_moe *op,
                                          uint32_t *count_out)
{
    struct ascend_ops *ops = ascend__device_of(call->stream)->ops;
    const uint64_t matrix = (uint64_t)op->ffn_width * op->width;
    const uint64_t bytes = dtype_row_bytes(op->weight_dtype, matrix);
    const uint32_t count = op->experts != NULL ? op->expert_list_count : op->expert_count;
    struct op_moe_expert *experts = NULL;
    void *memory = NULL;

    *count_out = count;
    if (call->status == STATUS_OK)
        call->status = ascend__host_memory(ops, ((uint64_t)count + 1) * sizeof(*experts), &memory,
                                           call->err);
    if (call->status != STATUS_OK || count == 0)
        return NULL;
    experts = memory;
    for (uint32_t e = 0; op->experts == NULL && e < count; e++)
        experts[e] = (struct op_moe_expert){
            .gate = (const char *)op->w13 + 2 * e * bytes,
            .up = (const char *)op->w13 + (2 * e + 1) * bytes,
            .down = (const char *)op->w2 + e * bytes,
            .id = (int32_t)e,
        };
    if (op->experts == NULL)
        return experts;
    call->status = ascend__copy_out(&call->stream->base, experts, op->experts,
                                    count * sizeof(*experts), call->err);
    if (call->status == STATUS_OK)
        call->status = ascend__stream_sync(&call->stream->base, call->err);
    return experts;
}

/* ---- all of them ---- */

static void add_up(struct ascend_call *call, const struct op_moe *op)
{
    const uint64_t pairs = (uint64_t)op->row_count * op->top_k, width = op->width;
    const struct places places = places_of(op);
    const struct ascend_view results =
        ascend__rows(places.results, ACL_FLOAT, pairs, width, width);
    const struct ascend_view out =
        ascend__rows(op->out, ACL_FLOAT, op->row_count, width, op->out_row_stride);
    struct ascend_cutter cutter = { NULL, 0 };
    struct ascend_view chosen = out;
    void *memory = NULL;

    (void)ascend__cut(&cutter, op->row_count * width * 4);
    if (call->status == STATUS_OK)
        call->status = ascend__scratch(call->stream, cutter.used_bytes, &memory, call->err);
    chosen.data = memory;
    chosen.strides[0] = (int64_t)width;
    for (uint32_t j = 0; j < op->top_k && call->status == STATUS_OK; j++) {
        const struct ascend_view index = ascend__vector(
            places.places + (uint64_t)j * op->row_count, ACL_INT32, op->row_count);
        const struct ascend_view weights =
            ascend__rows(op->weights + j, ACL_FLOAT, op->row_count, 1, op->top_k);

        ascend__select(call, &results, &index, &chosen);
        ASCEND_CALL(call, Mul, 0, ASCEND_VIEWS(&chosen, &weights, &chosen), t[0], t[1], t[2]);
        ascend__add_to(call, &out, &chosen);
    }
}

void ascend__op_moe(struct ascend_call *call, const struct op_moe *op)
{
    const uint64_t row_bytes = (uint64_t)op->width * 4 + (uint64_t)op->ffn_width * 14;
    struct mixing mixing = { .op = op, .dtype = ascend__dtype(op->weight_dtype),
                             .places = places_of(op) };
    const struct ascend_view x =
        ascend__rows(op->x, ACL_FLOAT, op->row_count, op->width, op->x_row_stride);
    struct op_moe_expert *experts;
    void *memory = NULL;
    uint32_t count = 0;

    if (!op->continued)
        begin_pairs(call, op);
    experts = experts_read(call, op, &count);
    mixing.most = PART_BYTES / row_bytes > 0 ? PART_BYTES / row_bytes : 1;
    mixing.most = op->row_count < mixing.most ? op->row_count : mixing.most;
    for (int pass = 0; pass < 2 && call->status == STATUS_OK; pass++) {
        struct ascend_cutter cutter = { memory, 0 };

        mixing_cut(&mixing, &cutter);
        if (pass == 0)
            call->status = ascend__scratch(call->stream, cutter.used_bytes, &memory, call->err);
    }
    if (count > 0)
        ascend__copy(call, &mixing.x, &x);
    for (uint32_t i = 0; i < count && call->status == STATUS_OK; i++)
        mix(call, &mixing, &experts[i]);
    if (!op->unfinished)
        add_up(call, op);
}
