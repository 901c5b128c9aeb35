/* device/ascend/op_gate.c - what is computed element by element: the gates of FFNs, scaled rows,
 * soft caps.
 *
 * CANN has no operator of its own for a clamped gate or a soft cap; they are made of Clamp, Sigmoid
 * and Tanh. Their operands may have strides. SwiGlu's may not: it goes through packed scratch. */
#include "device/ascend/op_call.h"

#include <math.h>

static void multiply(struct ascend_call *call, const struct ascend_view *a,
                     const struct ascend_view *b, const struct ascend_view *out)
{
    ASCEND_CALL(call, Mul, 0, ASCEND_VIEWS(a, b, out), t[0], t[1], t[2]);
}

static void times(struct ascend_call *call, const struct ascend_view *x, double factor)
{
    ASCEND_CALL(call, InplaceMuls, factor, ASCEND_VIEWS(x), t[0], ascend__number(call));
}

static void sigmoid(struct ascend_call *call, const struct ascend_view *x,
                    const struct ascend_view *out)
{
    ASCEND_CALL(call, Sigmoid, 0, ASCEND_VIEWS(x, out), t[0], t[1]);
}

void ascend__add_number(struct ascend_call *call, const struct ascend_view *x, double summand)
{
    const struct ascend_ops *ops = ascend__device_of(call->stream)->ops;

    ASCEND_CALL(call, InplaceAdds, summand, ASCEND_VIEWS(x), t[0], ascend__number(call), ops->one);
}

/* ---- gates ---- */

/* g' s(1.702 g') (u' + 1), g' = min(g, 7), u' = u within -7 .. 7, s the sigmoid. */
static void clamped_swish(struct ascend_call *call, const struct ascend_view *g,
                          const struct ascend_view *u, const struct ascend_view *out,
                          const struct ascend_view temps[2])
{
    const struct ascend_ops *ops = ascend__device_of(call->stream)->ops;

    ASCEND_CALL(call, Clamp, (double)-INFINITY, ASCEND_VIEWS(g, &temps[0]), t[0], NULL, ops->seven,
                t[1]);
    ascend__copy(call, &temps[1], &temps[0]);
    times(call, &temps[1], 1.702);
    sigmoid(call, &temps[1], &temps[1]);
    multiply(call, &temps[0], &temps[1], &temps[0]);
    ASCEND_CALL(call, Clamp, -7, ASCEND_VIEWS(u, &temps[1]), t[0], ops->minus_seven, ops->seven,
                t[1]);
    ascend__add_number(call, &temps[1], 1);
    multiply(call, &temps[0], &temps[1], out);
}

void ascend__gate(struct ascend_call *call, enum op_gate gate, const struct ascend_view *g,
                  const struct ascend_view *u, const struct ascend_view *out,
                  const struct ascend_view temps[2])
{
    switch (gate) {
    case GATE_SILU:
        ASCEND_CALL(call, Silu, 0, ASCEND_VIEWS(g, &temps[0]), t[0], t[1]);
        multiply(call, &temps[0], u, out);
        break;
    case GATE_GELU_TANH:
        ASCEND_CALL(call, GeluV2, 0, ASCEND_VIEWS(g, &temps[0]), t[0], CANN_GELU_TANH, t[1]);
        multiply(call, &temps[0], u, out);
        break;
    case GATE_CLAMPED_SWISH: clamped_swish(call, g, u, out, temps); break;
    case GATE_COUNT: break;
    }
}

static void swiglu(struct ascend_call *call, const struct op_silu_mul *op)
{
    const uint64_t width = op->width;
    const struct ascend_view from =
        ascend__rows(op->x, ACL_FLOAT, op->row_count, 2 * width, op->x_row_stride);
    const struct ascend_view out =
        ascend__rows(op->out, ACL_FLOAT, op->row_count, width, op->out_row_stride);
    struct ascend_view x = from, packed = out;
    void *memory = NULL;

    for (int pass = 0; pass < 2 && call->status == STATUS_OK; pass++) {
        struct ascend_cutter cutter = { memory, 0 };

        if (!ascend__is_packed(&from))
            x = ascend__rows(ascend__cut(&cutter, op->row_count * 2 * width * 4), ACL_FLOAT,
                             op->row_count, 2 * width, 2 * width);
        if (!ascend__is_packed(&out))
            packed = ascend__rows(ascend__cut(&cutter, op->row_count * width * 4), ACL_FLOAT,
                                  op->row_count, width, width);
        if (pass == 0 && cutter.used_bytes == 0)
            break;
        if (pass == 0)
            call->status = ascend__scratch(call->stream, cutter.used_bytes, &memory, call->err);
    }
    if (x.data != from.data)
        ascend__copy(call, &x, &from);
    ASCEND_CALL(call, SwiGlu, 0, ASCEND_VIEWS(&x, &packed), t[0], -1, t[1]);
    if (packed.data != out.data)
        ascend__copy(call, &out, &packed);
}

void ascend__op_silu_mul(struct ascend_call *call, const struct op_silu_mul *op)
{
    const uint64_t rows = op->row_count, width = op->width;
    const struct ascend_view g = ascend__rows(op->x, ACL_FLOAT, rows, width, op->x_row_stride);
    const struct ascend_view u =
        ascend__rows(op->x + width, ACL_FLOAT, rows, width, op->x_row_stride);
    const struct ascend_view out =
        ascend__rows(op->out, ACL_FLOAT, rows, width, op->out_row_stride);
    struct ascend_view temps[2];
    void *memory = NULL;

    if (op->gate == GATE_SILU) {
        swiglu(call, op);
        return;
    }
    for (int pass = 0; pass < 2 && call->status == STATUS_OK; pass++) {
        struct ascend_cutter cutter = { memory, 0 };

        for (int i = 0; i < 2; i++)
            temps[i] = ascend__rows(ascend__cut(&cutter, rows * width * 4), ACL_FLOAT, rows, width,
                                    width);
        if (pass == 0)
            call->status = ascend__scratch(call->stream, cutter.used_bytes, &memory, call->err);
    }
    ascend__gate(call, op->gate, &g, &u, &out, temps);
}

/* ---- scaled rows, soft caps ---- */

void ascend__op_scale(struct ascend_call *call, const struct op_scale *op)
{
    const uint64_t rows = op->row_count, width = op->width;
    const struct ascend_view x = ascend__rows(op->x, ACL_FLOAT, rows, width, op->x_row_stride);
    const struct ascend_view out =
        ascend__rows(op->out, ACL_FLOAT, rows, width, op->out_row_stride);
    const struct ascend_view given = ascend__rows(op->row_factors, ACL_FLOAT, rows, 1, 1);
    struct ascend_view factors = given, product = out;
    void *memory = NULL;

    for (int pass = 0; pass < 2 && call->status == STATUS_OK; pass++) {
        struct ascend_cutter cutter = { memory, 0 };

        factors.data = ascend__cut(&cutter, rows * 4);
        if (op->accumulate)
            product = ascend__rows(ascend__cut(&cutter, rows * width * 4), ACL_FLOAT, rows, width,
                                   width);
        if (pass == 0)
            call->status = ascend__scratch(call->stream, cutter.used_bytes, &memory, call->err);
    }
    if (op->row_factors == NULL) {
        if (product.data != x.data)
            ascend__copy(call, &product, &x);
        times(call, &product, (double)op->factor);
    } else {
        if (op->sigmoid)
            sigmoid(call, &given, &factors);
        else
            ascend__copy(call, &factors, &given);
        times(call, &factors, (double)op->factor);
        multiply(call, &x, &factors, &product);
    }
    if (op->accumulate)
        ascend__add_to(call, &out, &product);
}

void ascend__cap(struct ascend_call *call, const struct ascend_view *x, float cap)
{
    times(call, x, 1 / (double)cap);
    ASCEND_CALL(call, Tanh, 0, ASCEND_VIEWS(x, x), t[0], t[1]);
    times(call, x, (double)cap);
}

void ascend__op_soft_cap(struct ascend_call *call, const struct op_soft_cap *op)
{
    const struct ascend_view x =
        ascend__rows(op->x, ACL_FLOAT, op->row_count, op->width, op->row_stride);

    ascend__cap(call, &x, op->cap);
}
