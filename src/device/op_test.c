/* device/op_test.c - every op but attention on every device and kernel table against plain loops in
 * double.
 *
 * Method: small random operands, odd sizes, strides wider than the rows; what lies between the rows
 * must stay as it was. Each tolerance is a bound on F32 rounding for the operation, with its
 * reason; u = 2^-24 is the error of one rounding. */
#include "device/test_harness.h"

#include <math.h>

static const enum dtype weight_dtypes[] = {
    DTYPE_F32,  DTYPE_F16,   DTYPE_BF16, DTYPE_Q8_0, DTYPE_Q4_0, /* all shapes */
    DTYPE_Q4_1, DTYPE_Q5_0,  DTYPE_Q5_1, DTYPE_Q2_K, DTYPE_Q3_K, /* some */
    DTYPE_Q4_K, DTYPE_Q5_K,  DTYPE_Q6_K, DTYPE_IQ4_NL, DTYPE_IQ4_XS, DTYPE_MXFP4, DTYPE_F8_E4M3,
    DTYPE_F8_E4M3_16, DTYPE_INT4,
};
enum { ALL_SHAPES = 5 };
#define WEIGHT_DTYPE_COUNT (sizeof(weight_dtypes) / sizeof(weight_dtypes[0]))

/* How far a product x . w may be off because the device quantises x beside weights of this dtype,
 * and because x itself, wanted as x[i], is off by error[i] (NULL: by nothing). In each block of 32
 * an element is off by at most half a step, largest / 127 (op.h); 1e-5 of that for the roundings of
 * the step and of the quotient. An NPU rounds x to the weights' dtype, and perhaps the result: by
 * 2^-8 of it to BF16, by 2^-11 or half of the smallest number, 2^-25, to F16. */
static double quantised_error(const struct harness *h, enum dtype dtype, const double *x,
                              const double *error, const float *w, size_t count)
{
    const double unit = !h->is_npu ? 0 : dtype == DTYPE_BF16 ? 0x1p-8
                                       : dtype == DTYPE_F16  ? 0x1p-11 : 0;
    const double least = h->is_npu && dtype == DTYPE_F16 ? 0x1p-25 : 0;
    double sum = 0, product = 0;

    for (size_t i = 0; i < count; i++) {
        const double own = error == NULL ? 0 : error[i];

        sum += (own + fmax(unit * (fabs(x[i]) + own), least)) * fabs((double)w[i]);
        product += x[i] * w[i];
    }
    sum += fmax(unit * (fabs(product) + sum), least);
    for (size_t b = 0; quant_has_runs(dtype) && b < count; b += 32) {
        double largest = 0, weights = 0;
        for (size_t i = b; i < b + 32; i++) {
            largest = fmax(largest, fabs(x[i]) + (error == NULL ? 0 : error[i]));
            weights += fabs((double)w[i]);
        }
        sum += largest / 254 * (1 + 1e-5) * weights;
    }
    return sum;
}

struct matmul_case {
    uint32_t rows, n, k, batches;
    bool bias, accumulate, exact;
};

/* The layout that the device wants of the matrix, and the weight in it, in place. */
static enum layout laid_out(const struct harness *h, enum device_weight kind, enum dtype dtype,
                            void *weight, uint64_t count, uint64_t n, uint64_t k)
{
    const enum layout layout = device_weight_layout(h->device, kind, dtype);
    void *scratch;

    if (layout == LAYOUT_ND || !layout_fits(layout, dtype, n, k))
        return LAYOUT_ND;
    scratch = malloc(layout_finish_bytes(layout, dtype, k));
    assert_non_null(scratch);
    layout_finish(layout, weight, dtype, count, n, k, scratch);
    free(scratch);
    return layout;
}

static void matmul_case_run(struct harness *h, const struct matmul_case *c, enum dtype dtype)
{
    const size_t x_stride = (size_t)c->k * c->batches + 3;
    const size_t out_stride = (size_t)c->n * c->batches + 5;
    const size_t out_width = (size_t)c->n * c->batches;
    float *x = random_floats(h, c->rows * x_stride);
    float *w = random_floats(h, (size_t)c->batches * c->n * c->k);
    float *bias = random_floats(h, c->n);
    float *out = guarded(c->rows * out_stride);
    double *wanted = calloc(c->rows * out_width, sizeof(*wanted));
    double *tolerance = calloc(c->rows * out_width, sizeof(*tolerance));
    double *row = calloc(c->k, sizeof(*row));
    void *weight = rounded_to(w, dtype, (size_t)c->batches * c->n * c->k);
    const uint64_t weight_bytes = dtype_row_bytes(dtype, (uint64_t)c->batches * c->n * c->k);
    const enum layout layout =
        c->batches > 1 || c->exact
            ? LAYOUT_ND
            : laid_out(h, DEVICE_WEIGHT_MATRIX, dtype, weight, 1, c->n, c->k);
    struct op op = { .kind = OP_MATMUL };

    for (size_t t = 0; t < c->rows; t++) {
        for (size_t i = 0; i < out_width; i++) {
            const size_t b = i / c->n, n = i % c->n;
            const float *w_row = w + (b * c->n + n) * c->k;
            double sum = 0, magnitude = 1, error;
            for (size_t k = 0; k < c->k; k++) {
                row[k] = x[t * x_stride + b * c->k + k];
                sum += row[k] * w_row[k];
                magnitude += fabs(row[k] * w_row[k]);
                if (quant_has_mins(dtype)) /* |scale * q| and |min| instead of |w|: 1 at most */
                    magnitude += fabs(row[k]);
            }
            error = quantised_error(h, c->exact && h->is_npu ? DTYPE_F32 : dtype, row, NULL, w_row,
                                    c->k);
            if (c->accumulate)
                out[t * out_stride + i] = (float)(t + i);
            wanted[t * out_width + i] = sum + (c->bias ? bias[n] : 0) +
                                        (c->accumulate ? (double)(t + i) : 0);
            /* Eight lanes of k / 8 products, three additions to join them, bias and out: each
             * term is rounded at most k / 8 + 7 times (Higham 2002, section 4.2). */
            tolerance[t * out_width + i] =
                (c->k / 8.0 + 7) * U * (magnitude + error + (c->accumulate ? (double)(t + i) : 0)) +
                error;
        }
    }
    op.matmul = (struct op_matmul){
        .out = harness_put(h, out, c->rows * out_stride * 4),
        .x = harness_put(h, x, c->rows * x_stride * 4),
        .weight = harness_put(h, weight, weight_bytes),
        .bias = c->bias ? harness_put(h, bias, c->n * 4) : NULL,
        .weight_dtype = dtype, .weight_layout = layout,
        .row_count = c->rows, .n_count = c->n, .k_count = c->k, .batch_count = c->batches,
        .out_row_stride = out_stride, .x_row_stride = x_stride,
        .out_batch_stride = c->n, .x_batch_stride = c->k,
        .accumulate = c->accumulate, .exact = c->exact,
    };
    harness_run(h, &op);
    harness_get(h, out, op.matmul.out, c->rows * out_stride * 4);
    check_rows("matmul", out, wanted, tolerance, c->rows, out_width, out_stride);
    harness_clear(h);
    free(x);
    free(w);
    free(bias);
    free(out);
    free(wanted);
    free(tolerance);
    free(row);
    free(weight);
}

static void matmul_on(struct harness *h)
{
    static const struct matmul_case long_rows = { 285, 1, 131072, 1, false, false, false };
    static const struct matmul_case cases[] = {
        { 1, 1, 1, 1, false, false, false },     { 1, 37, 40, 1, true, false, false },
        { 2, 5, 7, 1, false, true, false },      { 3, 64, 129, 1, true, true, false },
        { 4, 12, 8, 1, false, false, false },    { 5, 13, 31, 1, false, false, false },
        { 7, 25, 96, 1, true, false, false },    { 8, 24, 64, 1, false, false, false },
        { 9, 11, 600, 1, true, true, false },    { 13, 26, 1100, 1, false, false, false },
        { 130, 17, 77, 1, true, false, false },  { 300, 50, 33, 1, false, true, false },
        { 3, 9, 20, 4, false, false, false },    { 17, 14, 65, 3, false, true, false },
        { 1, 16, 16, 1, false, false, false },   { 5, 48, 32, 1, true, true, false },
        { 33, 32, 112, 1, false, true, false },  { 1, 45, 64, 1, false, false, true },
        { 6, 19, 33, 1, true, true, true },
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        for (size_t d = 0; d < WEIGHT_DTYPE_COUNT; d++) {
            struct matmul_case c = cases[i];
            if ((d >= ALL_SHAPES && i % 4 != 1) || !has_weights(h, weight_dtypes[d]))
                continue;
            c.k = whole_blocks(c.k, weight_dtypes[d]);
            matmul_case_run(h, &c, weight_dtypes[d]);
        }
    }
    if (has_weights(h, DTYPE_Q8_0))
        matmul_case_run(h, &long_rows, DTYPE_Q8_0); /* more than it quantises at a time */
}

static void matmul_is_right(void **state)
{
    (void)state;
    with_every_device(matmul_on);
}

static void embed_and_gather_on(struct harness *h)
{
    enum { ROWS = 5, WIDTH = 256, TABLE = 7, STRIDE = 259 };
    const int32_t ids[ROWS] = { 6, 0, 3, 3, 1 };

    for (size_t d = 0; d < WEIGHT_DTYPE_COUNT; d++) {
        float *table = random_floats(h, TABLE * WIDTH);
        void *bytes = rounded_to(table, weight_dtypes[d], TABLE * WIDTH);
        float *out = guarded(ROWS * STRIDE);
        double wanted[ROWS * WIDTH], exact[ROWS * WIDTH] = { 0 };
        struct op op = { .kind = OP_EMBED };
        if (!has_weights(h, weight_dtypes[d])) {
            free(table);
            free(bytes);
            free(out);
            continue;
        }
        for (size_t i = 0; i < ROWS * WIDTH; i++)
            wanted[i] = table[ids[i / WIDTH] * WIDTH + i % WIDTH];
        op.embed = (struct op_embed){
            .out = harness_put(h, out, ROWS * STRIDE * 4),
            .table = harness_put(h, bytes, dtype_row_bytes(weight_dtypes[d], TABLE * WIDTH)),
            .table_dtype = weight_dtypes[d],
            .ids = harness_put(h, ids, sizeof(ids)),
            .row_count = ROWS, .width = WIDTH, .table_row_count = TABLE, .out_row_stride = STRIDE,
        };
        harness_run(h, &op);
        harness_get(h, out, op.embed.out, ROWS * STRIDE * 4);
        check_rows("embed", out, wanted, exact, ROWS, WIDTH, STRIDE);
        if (weight_dtypes[d] == DTYPE_F32) {
            struct op gather = { .kind = OP_GATHER_ROWS };
            gather.gather_rows = (struct op_gather_rows){
                .out = op.embed.out, .x = op.embed.table, .rows = op.embed.ids,
                .row_count = ROWS, .width = WIDTH, .x_row_count = TABLE, .out_row_stride = STRIDE,
                .x_row_stride = WIDTH,
            };
            harness_run(h, &gather);
            harness_get(h, out, op.embed.out, ROWS * STRIDE * 4);
            check_rows("gather_rows", out, wanted, exact, ROWS, WIDTH, STRIDE);
        }
        harness_clear(h);
        free(table);
        free(bytes);
        free(out);
    }
}

static void embed_and_gather_copy_the_right_rows(void **state)
{
    (void)state;
    with_every_device(embed_and_gather_on);
}

static void gather_columns_on(struct harness *h)
{
    enum { ROWS = 5, WIDTH = 37, X_WIDTH = 41, X_STRIDE = X_WIDTH + 3, STRIDE = WIDTH + 2 };
    static double wanted[ROWS * WIDTH], exact[ROWS * WIDTH];
    float *x = random_floats(h, ROWS * X_STRIDE), *out = guarded(ROWS * STRIDE);
    float columns[WIDTH];
    struct op op = { .kind = OP_GATHER_COLUMNS };

    if (has_feature(h, OP_FEATURE_COLUMNS)) {
        for (size_t i = 0; i < WIDTH; i++)
            columns[i] = (float)((i * 17 + 5) % X_WIDTH);
        for (size_t i = 0; i < ROWS * WIDTH; i++)
            wanted[i] = (double)x[i / WIDTH * X_STRIDE + (i % WIDTH * 17 + 5) % X_WIDTH];
        op.gather_columns = (struct op_gather_columns){
            .out = harness_put(h, out, ROWS * STRIDE * 4),
            .x = harness_put(h, x, ROWS * X_STRIDE * 4),
            .columns = harness_put(h, columns, sizeof(columns)),
            .row_count = ROWS, .width = WIDTH, .x_width = X_WIDTH, .out_row_stride = STRIDE,
            .x_row_stride = X_STRIDE,
        };
        harness_run(h, &op);
        harness_get(h, out, op.gather_columns.out, ROWS * STRIDE * 4);
        check_rows("gather_columns", out, wanted, exact, ROWS, WIDTH, STRIDE);
        harness_clear(h);
    }
    free(x);
    free(out);
}

static void gather_columns_copies_the_right_columns(void **state)
{
    (void)state;
    with_every_device(gather_columns_on);
}

static void rms_norm_case(struct harness *h, uint32_t rows, uint32_t groups, uint32_t width,
                          bool in_place, float offset)
{
    const size_t all = (size_t)groups * width, stride = all + 3;
    float *x = random_floats(h, rows * stride);
    float *weight = random_floats(h, width);
    float *out = guarded(rows * stride);
    double *wanted = calloc(rows * all, sizeof(*wanted));
    double *tolerance = calloc(rows * all, sizeof(*tolerance));
    struct op op = { .kind = OP_RMS_NORM };
    float *place;

    for (size_t row = 0; row < rows; row++)
        memcpy(in_place ? x + row * stride + all : x, out, row + 1 < rows && in_place ? 12 : 0);
    for (size_t i = 0; i < rows * groups; i++) {
        const float *from = x + i / groups * stride + i % groups * width;
        double sum = 0;
        for (size_t j = 0; j < width; j++)
            sum += (double)from[j] * from[j];
        for (size_t j = 0; j < width; j++) {
            const double normed = from[j] / sqrt(sum / width + 1e-6);
            wanted[i * width + j] = normed * (weight[j] + (double)offset);
            /* The sum's error is halved by the root; five more roundings, one of them of the weight
             * and its offset, whose sum may be much smaller than they. */
            tolerance[i * width + j] =
                (width / 16.0 + 8) * U * fabs(wanted[i * width + j]) +
                (offset != 0 ? 2 * U * fabs(normed) : 0) + 1e-30;
        }
    }
    place = harness_put(h, x, rows * stride * 4);
    op.rms_norm = (struct op_rms_norm){
        .x = place,
        .weight = harness_put(h, weight, width * 4),
        .row_count = rows, .group_count = groups, .width = width,
        .out_row_stride = stride, .x_row_stride = stride, .epsilon = 1e-6f,
        .weight_offset = offset,
    };
    op.rms_norm.out = in_place ? place : harness_put(h, out, rows * stride * 4);
    harness_run(h, &op);
    harness_get(h, out, op.rms_norm.out, rows * stride * 4);
    check_rows("rms_norm", out, wanted, tolerance, rows, all, stride);
    harness_clear(h);
    free(x);
    free(weight);
    free(out);
    free(wanted);
    free(tolerance);
}

static void rms_norm_on(struct harness *h)
{
    rms_norm_case(h, 1, 1, 1, false, 0);
    rms_norm_case(h, 3, 1, 77, false, 0);
    rms_norm_case(h, 9, 4, 24, true, 0);
    rms_norm_case(h, 40, 3, 131, true, 0);
    if (!has_feature(h, OP_FEATURE_NORM_OFFSET))
        return;
    rms_norm_case(h, 3, 1, 77, false, 1);
    rms_norm_case(h, 9, 4, 24, true, 1);
}

static void rms_norm_is_right(void **state)
{
    (void)state;
    with_every_device(rms_norm_on);
}

static void rope_on(struct harness *h, bool interleaved)
{
    enum { ROWS = 4, HEADS = 3, PAIRS = 5, HEAD_STRIDE = 13, STRIDE = HEADS * HEAD_STRIDE };
    const int32_t positions[ROWS] = { 0, 1, 131071, 17 };
    float frequencies[PAIRS], table[ROWS][PAIRS][2];
    float *x = random_floats(h, ROWS * STRIDE), *out = guarded(ROWS * STRIDE);
    struct op make = { .kind = OP_ROPE_TABLE }, rope = { .kind = OP_ROPE };
    const size_t step = interleaved ? 2 : 1, second = interleaved ? 1 : PAIRS;

    for (size_t i = 0; i < PAIRS; i++)
        frequencies[i] = powf(10000.0f, -(float)i / PAIRS);
    make.rope_table = (struct op_rope_table){
        .table = harness_put(h, table, sizeof(table)),
        .positions = harness_put(h, positions, sizeof(positions)),
        .frequencies = harness_put(h, frequencies, sizeof(frequencies)),
        .row_count = ROWS, .pair_count = PAIRS, .scale = 1.25f,
    };
    harness_run(h, &make);
    harness_get(h, table, make.rope_table.table, sizeof(table));
    rope.rope = (struct op_rope){
        .x = harness_put(h, x, ROWS * STRIDE * 4), .table = make.rope_table.table,
        .row_count = ROWS, .head_count = HEADS, .pair_count = PAIRS,
        .row_stride = STRIDE, .head_stride = HEAD_STRIDE, .interleaved = interleaved,
    };
    harness_run(h, &rope);
    harness_get(h, out, rope.rope.x, ROWS * STRIDE * 4);
    for (size_t t = 0; t < ROWS; t++) {
        for (size_t i = 0; i < HEADS * PAIRS; i++) {
            const size_t pair = i % PAIRS;
            /* The angle is an F32 product by definition; its cosine is good to 2 roundings. */
            const double angle = (float)positions[t] * frequencies[pair];
            const double c = cos(angle) * 1.25, s = sin(angle) * 1.25;
            const size_t at = t * STRIDE + i / PAIRS * HEAD_STRIDE + pair * step;
            const double wanted[2] = { x[at] * c - x[at + second] * s,
                                       x[at + second] * c + x[at] * s };
            const double tolerance[2] = { 8 * U, 8 * U }; /* terms are at most 1.25 */
            const float got[2] = { out[at], out[at + second] };
            const float entry[2] = { table[t][pair][0], table[t][pair][1] };
            const double cs[2] = { c, s };
            check_near("rope_table", entry, cs, tolerance, 2);
            check_near("rope", got, wanted, tolerance, 2);
        }
        for (size_t i = 0; i < STRIDE; i++) { /* what no head's pairs cover */
            if (i % HEAD_STRIDE >= 2 * PAIRS)
                assert_true(out[t * STRIDE + i] == x[t * STRIDE + i]);
        }
    }
    harness_clear(h);
    free(x);
    free(out);
}

static void rope_both_on(struct harness *h)
{
    rope_on(h, true);
    rope_on(h, false);
}

static void rope_is_right(void **state)
{
    (void)state;
    with_every_device(rope_both_on);
}

/* What a gate makes of g and u, and how far an F32 result may be off when g and u are exact: exp
 * to 2 ulp, addition, division, product, and the few roundings of its argument, which exp turns
 * into that many times the argument; where exp overflows F32, past 88.7, the result becomes 0. */
static double gated(enum op_gate gate, double g, double u, double *tolerance_out)
{
    double a = g, wanted;

    if (gate == GATE_GELU_TANH)
        a = 2 * sqrt(2 / M_PI) * (g + 0.044715 * g * g * g);
    if (gate == GATE_CLAMPED_SWISH) {
        g = fmin(g, 7);
        u = fmin(fmax(u, -7), 7) + 1;
        a = 1.702 * g;
    }
    wanted = g / (1 + exp(-a)) * u;
    *tolerance_out = (9 + (gate != GATE_SILU ? 6 * fmin(fabs(a), 100) : 0)) * U * fabs(wanted) +
                     (gate == GATE_CLAMPED_SWISH ? 4 * U * fabs(g) : 0) + 1e-34;
    return wanted;
}

static void gate_case(struct harness *h, enum op_gate gate)
{
    enum { ROWS = 3, WIDTH = 171, STRIDE = 2 * WIDTH + 1, OUT_STRIDE = WIDTH + 2 };
    float *x = random_floats(h, ROWS * STRIDE), *out = guarded(ROWS * OUT_STRIDE);
    static double wanted[ROWS * WIDTH], tolerance[ROWS * WIDTH];
    struct op op = { .kind = OP_SILU_MUL };

    for (size_t i = 0; i < ROWS * WIDTH; i++) {
        float *g = &x[i / WIDTH * STRIDE + i % WIDTH];
        *g *= gate == GATE_SILU || i % 2 == 0 ? 110 : 8; /* exp overflows and vanishes at 110 */
        g[WIDTH] *= gate == GATE_CLAMPED_SWISH ? 10 : 1;
        wanted[i] = gated(gate, (double)*g, (double)g[WIDTH], &tolerance[i]);
    }
    op.silu_mul = (struct op_silu_mul){
        .out = harness_put(h, out, ROWS * OUT_STRIDE * 4),
        .x = harness_put(h, x, ROWS * STRIDE * 4),
        .row_count = ROWS, .width = WIDTH, .out_row_stride = OUT_STRIDE, .x_row_stride = STRIDE,
        .gate = gate,
    };
    harness_run(h, &op);
    harness_get(h, out, op.silu_mul.out, ROWS * OUT_STRIDE * 4);
    check_rows("silu_mul", out, wanted, tolerance, ROWS, WIDTH, OUT_STRIDE);
    harness_clear(h);
    free(x);
    free(out);
}

static void gates_on(struct harness *h)
{
    gate_case(h, GATE_SILU);
    if (has_feature(h, OP_FEATURE_GATE_GELU))
        gate_case(h, GATE_GELU_TANH);
    if (has_feature(h, OP_FEATURE_GATE_CLAMPED))
        gate_case(h, GATE_CLAMPED_SWISH);
}

static void gates_are_right(void **state)
{
    (void)state;
    with_every_device(gates_on);
}

static void soft_cap_on(struct harness *h)
{
    enum { ROWS = 3, WIDTH = 171, STRIDE = WIDTH + 1 };
    float *x = random_floats(h, ROWS * STRIDE);
    static double wanted[ROWS * WIDTH], tolerance[ROWS * WIDTH];
    struct op op = { .kind = OP_SOFT_CAP };

    for (size_t row = 0; row + 1 < ROWS; row++)
        x[row * STRIDE + WIDTH] = GUARD;
    for (size_t i = 0; i < ROWS * WIDTH; i++) {
        float *value = &x[i / WIDTH * STRIDE + i % WIDTH];
        *value *= i % 3 == 0 ? 200 : i % 3 == 1 ? 10 : 0.01f;
        wanted[i] = 30 * tanh((double)*value / 30);
        /* relative where tanh is nearly its argument, else 2 ulp of the cap */
        tolerance[i] = fmin(30 * 4 * U, 60 * U * fabs(wanted[i]));
    }
    op.soft_cap = (struct op_soft_cap){
        .x = harness_put(h, x, ROWS * STRIDE * 4), .row_count = ROWS, .width = WIDTH,
        .row_stride = STRIDE, .cap = 30,
    };
    if (has_feature(h, OP_FEATURE_SOFT_CAP)) {
        harness_run(h, &op);
        harness_get(h, x, op.soft_cap.x, ROWS * STRIDE * 4);
        check_rows("soft_cap", x, wanted, tolerance, ROWS, WIDTH, STRIDE);
    }
    harness_clear(h);
    free(x);
}

static void soft_cap_is_right(void **state)
{
    (void)state;
    with_every_device(soft_cap_on);
}

/* What a device has no operator for it refuses, whoever asks. */
static void missing_features_on(struct harness *h)
{
    float x[4] = { 1, 2, 3, 4 };
    struct op op = { .kind = OP_SOFT_CAP, .soft_cap = {
        .x = harness_put(h, x, sizeof(x)), .row_count = 2, .width = 2, .row_stride = 2, .cap = 1,
    } };
    struct err err;

    assert_int_equal(op_features(&op), OP_FEATURE_SOFT_CAP);
    if (!has_feature(h, OP_FEATURE_SOFT_CAP)) {
        assert_int_equal(device_launch(h->stream, &op, &err), STATUS_UNAVAILABLE);
        assert_non_null(strstr(err.message, "soft caps"));
    }
    for (uint32_t feature = 1; feature < OP_FEATURES_ALL; feature <<= 1) {
        const enum status st = device_features_check(h->device, feature, &err);
        assert_int_equal(st, has_feature(h, (enum op_feature)feature) ? STATUS_OK
                                                                      : STATUS_UNAVAILABLE);
        if (st != STATUS_OK)
            assert_non_null(strstr(err.message, op_feature_name((enum op_feature)feature)));
    }
    assert_int_equal(device_info(h->device)->op_features,
                     h->is_npu ? OP_FEATURES_ALL & ~(OP_FEATURE_KV_NARROW | OP_FEATURE_KV_BY_HEAD |
                                                     OP_FEATURE_EXPERT_ORDER)
                               : OP_FEATURES_ALL);
}

static void missing_features_are_refused(void **state)
{
    (void)state;
    with_every_device(missing_features_on);
}

/* One combination of what the op can do; in place: out is x. */
static void scale_case(struct harness *h, bool rows_differ, bool sigmoid, bool accumulate,
                       bool in_place)
{
    enum { ROWS = 5, WIDTH = 37, STRIDE = WIDTH + 3, OUT_STRIDE = WIDTH + 2 };
    const size_t out_stride = in_place ? STRIDE : OUT_STRIDE;
    float *x = random_floats(h, ROWS * STRIDE), *factors = random_floats(h, ROWS);
    float *out = guarded(ROWS * STRIDE);
    static double wanted[ROWS * WIDTH], tolerance[ROWS * WIDTH];
    struct op op = { .kind = OP_SCALE };

    for (size_t i = 0; i < ROWS * WIDTH; i++) {
        const size_t row = i / WIDTH;
        const double value = (double)x[row * STRIDE + i % WIDTH];
        const double own = !rows_differ ? 1 : sigmoid ? 1 / (1 + exp(-(double)factors[row]))
                                                      : (double)factors[row];
        const double there = !accumulate ? 0 : in_place ? value : (double)GUARD;

        wanted[i] = there + 0.375 * own * value;
        /* exp to 2 ulp, two sums, two quotients and products, and the last sum */
        tolerance[i] = U * (9 * fabs(0.375 * own * value) + fabs(wanted[i]));
    }
    op.scale = (struct op_scale){
        .x = harness_put(h, x, ROWS * STRIDE * 4),
        .row_factors = rows_differ ? harness_put(h, factors, sizeof(float) * ROWS) : NULL,
        .row_count = ROWS, .width = WIDTH, .out_row_stride = out_stride, .x_row_stride = STRIDE,
        .factor = 0.375f, .sigmoid = sigmoid, .accumulate = accumulate,
    };
    op.scale.out = in_place ? (float *)op.scale.x : harness_put(h, out, ROWS * OUT_STRIDE * 4);
    harness_run(h, &op);
    harness_get(h, out, op.scale.out, ROWS * out_stride * 4);
    for (size_t row = 0; row < ROWS; row++)
        check_near("scale", out + row * out_stride, wanted + row * WIDTH, tolerance + row * WIDTH,
                   WIDTH);
    if (!in_place)
        check_rows("scale", out, wanted, tolerance, ROWS, WIDTH, OUT_STRIDE);
    harness_clear(h);
    free(x);
    free(factors);
    free(out);
}

static void scale_on(struct harness *h)
{
    if (!has_feature(h, OP_FEATURE_SCALE))
        return;
    for (unsigned i = 0; i < 16; i++)
        scale_case(h, i & 1, i & 2, i & 4, i & 8);
}

static void scale_is_right(void **state)
{
    (void)state;
    with_every_device(scale_on);
}

/* product[ffn] = silu(gate . x) * (up . x) for the rows of one expert's w13, and how far they may
 * be off because x is quantised. */
static void wanted_products(const struct harness *h, const double *x, const float *w13,
                            uint32_t width, uint32_t ffn, enum dtype dtype, double *product,
                            double *error)
{
    for (uint32_t f = 0; f < ffn; f++) {
        const float *gate = w13 + (size_t)f * width;
        const float *up = gate + (size_t)ffn * width;
        double g = 0, u = 0, g_error, u_error;
        for (uint32_t i = 0; i < width; i++) {
            g += x[i] * gate[i];
            u += x[i] * up[i];
        }
        product[f] = g / (1 + exp(-g)) * u;
        g_error = quantised_error(h, dtype, x, NULL, gate, width);
        u_error = quantised_error(h, dtype, x, NULL, up, width);
        /* silu is no steeper than 1.1 and not above |g| */
        error[f] = 1.1 * g_error * (fabs(u) + u_error) + fabs(g) * u_error;
    }
}

/* The same with the experts listed one by one, in three launches: the same bits. */
static void moe_in_turns(struct harness *h, const struct op_moe *stacked, const float *wanted,
                         size_t count)
{
    const uint64_t bytes =
        dtype_row_bytes(stacked->weight_dtype, (uint64_t)stacked->width * stacked->ffn_width);
    const uint64_t down_bytes =
        dtype_row_bytes(stacked->down_dtype, (uint64_t)stacked->width * stacked->ffn_width);
    struct op_moe_expert *experts = calloc((size_t)stacked->expert_count + 1, sizeof(*experts));
    float *out = guarded(count);
    struct op op = { .kind = OP_MOE, .moe = *stacked };

    assert_non_null(experts);
    for (size_t row = 0; row < stacked->row_count; row++)
        for (size_t i = 0; i < stacked->width; i++)
            out[row * stacked->out_row_stride + i] = (float)i;
    op.moe.out = harness_put(h, out, count * sizeof(*out));
    for (uint32_t turn = 0; turn < 3; turn++) {
        uint32_t listed = 0;

        for (uint32_t e = (turn + 1) % 3; e < stacked->expert_count; e += 3)
            experts[listed++] = (struct op_moe_expert){
                .gate = (const char *)stacked->w13 + 2 * e * bytes,
                .up = (const char *)stacked->w13 + (2 * e + 1) * bytes,
                .down = (const char *)stacked->w2 + e * down_bytes, .id = (int32_t)e,
            };
        op.moe.experts = harness_put(h, experts, (listed + 1) * sizeof(*experts));
        op.moe.expert_list_count = listed;
        op.moe.continued = turn > 0;
        op.moe.unfinished = turn < 2;
        harness_run(h, &op);
    }
    harness_get(h, out, op.moe.out, count * sizeof(*out));
    assert_memory_equal(out, wanted, count * sizeof(*out));
    free(out);
    free(experts);
}

/* The same of experts' matrices, where all fit. */
static enum layout experts_laid_out(const struct harness *h, enum dtype dtype, void *w13, void *w2,
                                    uint32_t experts, uint32_t width, uint32_t ffn)
{
    const enum layout layout = device_weight_layout(h->device, DEVICE_WEIGHT_GATE_UP, dtype);

    if (!layout_fits(layout, dtype, ffn, width) || !layout_fits(layout, dtype, width, ffn))
        return LAYOUT_ND;
    (void)laid_out(h, DEVICE_WEIGHT_GATE_UP, dtype, w13, experts, 2 * (uint64_t)ffn, width);
    return laid_out(h, DEVICE_WEIGHT_DOWN, dtype, w2, experts, width, ffn);
}

static void moe_case(struct harness *h, uint32_t rows, uint32_t experts, uint32_t top_k,
                     uint32_t width, uint32_t ffn, enum dtype dtype, enum dtype down_dtype)
{
    const size_t stride = width + 3, matrix = (size_t)experts * width * ffn;
    const uint64_t scratch_bytes = op_moe_scratch_bytes(rows, top_k, experts, width, ffn);
    float *x = random_floats(h, rows * stride), *out = guarded(rows * stride);
    float *w13 = random_floats(h, 2 * matrix), *w2 = random_floats(h, matrix);
    float *weights = random_floats(h, (size_t)rows * top_k);
    int32_t *ids = calloc((size_t)rows * top_k, sizeof(*ids));
    void *w13_bytes = rounded_to(w13, dtype, 2 * matrix);
    void *w2_bytes = rounded_to(w2, down_dtype, matrix);
    char *scratch = calloc(1, scratch_bytes);
    double *wanted = calloc(rows * (size_t)width, sizeof(*wanted));
    double *tolerance = calloc(rows * (size_t)width, sizeof(*tolerance));
    double *product = calloc(ffn, sizeof(*product)), *error = calloc(ffn, sizeof(*error));
    double *row = calloc(width, sizeof(*row));
    enum layout layout = LAYOUT_ND;
    struct op op = { .kind = OP_MOE };

    if (dtype == down_dtype)
        layout = experts_laid_out(h, dtype, w13_bytes, w2_bytes, experts, width, ffn);
    for (uint32_t t = 0; t < rows; t++) {
        for (uint32_t i = 0; i < width; i++) {
            row[i] = x[t * stride + i];
            wanted[t * width + i] = out[t * stride + i] = (float)i;
        }
        for (uint32_t j = 0; j < top_k; j++) {
            const uint32_t e = (t * 5 + j * 3) % experts; /* distinct: 3 is no divisor */
            ids[t * top_k + j] = (int32_t)e;
            wanted_products(h, row, w13 + (size_t)e * 2 * ffn * width, width, ffn, dtype, product,
                            error);
            for (uint32_t i = 0; i < width; i++) {
                const float *down = w2 + ((size_t)e * width + i) * ffn;
                double sum = 0;
                for (uint32_t f = 0; f < ffn; f++)
                    sum += product[f] * down[f];
                wanted[t * width + i] += weights[t * top_k + j] * sum;
                tolerance[t * width + i] +=
                    fabs((double)weights[t * top_k + j]) *
                    quantised_error(h, down_dtype, product, error, down, ffn);
                /* Two matrix products behind each other: gate and up are below `width`, off by
                 * at most (width / 8 + 8) u width, and multiplied with each other. */
                tolerance[t * width + i] +=
                    U * (width + 2.0 * ffn * (width / 8.0 + ffn / 8.0 + 16) * width);
            }
        }
    }
    op.moe = (struct op_moe){
        .out = harness_put(h, out, rows * stride * 4),
        .x = harness_put(h, x, rows * stride * 4),
        .ids = harness_put(h, ids, (uint64_t)rows * top_k * 4),
        .weights = harness_put(h, weights, (uint64_t)rows * top_k * 4),
        .w13 = harness_put(h, w13_bytes, dtype_row_bytes(dtype, 2 * matrix)),
        .w2 = harness_put(h, w2_bytes, dtype_row_bytes(down_dtype, matrix)),
        .weight_dtype = dtype, .down_dtype = down_dtype, .weight_layout = layout,
        .down_layout = layout,
        .scratch = harness_put(h, scratch, scratch_bytes),
        .row_count = rows, .top_k = top_k, .expert_count = experts, .width = width,
        .ffn_width = ffn, .out_row_stride = stride, .x_row_stride = stride,
    };
    harness_run(h, &op);
    harness_get(h, out, op.moe.out, rows * stride * 4);
    check_rows("moe", out, wanted, tolerance, rows, width, stride);
    moe_in_turns(h, &op.moe, out, rows * stride);
    harness_clear(h);
    free(x);
    free(out);
    free(w13);
    free(w2);
    free(weights);
    free(ids);
    free(w13_bytes);
    free(w2_bytes);
    free(scratch);
    free(wanted);
    free(tolerance);
    free(product);
    free(error);
    free(row);
}

static void moe_on(struct harness *h)
{
    for (size_t d = 0; d < WEIGHT_DTYPE_COUNT; d++) {
        const enum dtype dtype = weight_dtypes[d];
        const enum dtype next = weight_dtypes[(d + 1) % WEIGHT_DTYPE_COUNT];
        if (!has_weights(h, dtype))
            continue;
        moe_case(h, 1, 4, 1, whole_blocks(9, dtype), whole_blocks(5, dtype), dtype, dtype);
        if (!h->is_npu && has_weights(h, next))
            moe_case(h, 5, 4, 1, whole_blocks(9, dtype), whole_blocks(5, next), dtype, next);
        if (d >= ALL_SHAPES)
            continue;
        moe_case(h, 5, 7, 3, 64, 32, dtype, dtype);
        moe_case(h, 1, 8, 5, whole_blocks(40, dtype), whole_blocks(24, dtype), dtype, dtype);
        moe_case(h, 37, 11, 3, whole_blocks(33, dtype), whole_blocks(17, dtype), dtype, dtype);
        moe_case(h, 300, 2, 1, whole_blocks(16, dtype), whole_blocks(20, dtype), dtype, dtype);
    }
}

static void moe_is_right(void **state)
{
    (void)state;
    with_every_device(moe_on);
}

/* out[rows][n] = x . w^T + bias. */
static float *product_with_bias(struct harness *h, const float *x, const void *w, const float *bias,
                                uint32_t rows, uint32_t n, uint32_t k, enum dtype dtype)
{
    float *out = guarded((size_t)rows * n);
    const struct op op = { .kind = OP_MATMUL, .matmul = {
        .out = harness_put(h, out, (uint64_t)rows * n * 4), .x = x, .weight = w, .bias = bias,
        .weight_dtype = dtype, .row_count = rows, .n_count = n, .k_count = k, .batch_count = 1,
        .out_row_stride = n, .x_row_stride = k,
    } };

    harness_run(h, &op);
    free(out);
    return op.matmul.out;
}

/* x[rows][width] in an order, if there is one. */
static const float *in_order(struct harness *h, const float *x, const float *order, uint32_t rows,
                             uint32_t width)
{
    float *out = guarded((size_t)rows * width);
    const struct op op = { .kind = OP_GATHER_COLUMNS, .gather_columns = {
        .out = harness_put(h, out, (uint64_t)rows * width * 4), .x = x, .columns = order,
        .row_count = rows, .width = width, .x_width = width, .out_row_stride = width,
        .x_row_stride = width,
    } };

    if (order != NULL)
        harness_run(h, &op);
    free(out);
    return order != NULL ? op.gather_columns.out : x;
}

enum { PARTS_ROWS = 5, PARTS_EXPERTS = 4, PARTS_TOP_K = 2, PARTS_WIDTH = 64, PARTS_FFN = 32 };

/* wanted += weights[.][e] * what expert e gives by the other ops. */
static void add_expert_by_parts(struct harness *h, const struct op_moe *moe, uint32_t e,
                                const int32_t *ids, const float *weights, double *wanted)
{
    const uint64_t matrix_bytes = dtype_row_bytes(moe->weight_dtype, PARTS_WIDTH * PARTS_FFN);
    float result[PARTS_ROWS * PARTS_WIDTH];
    const float *x = in_order(h, moe->x, moe->w13_order == NULL ? NULL
                                                   : moe->w13_order + (size_t)e * PARTS_WIDTH,
                              PARTS_ROWS, PARTS_WIDTH);
    float *hidden = product_with_bias(h, x, (const char *)moe->w13 + 2 * e * matrix_bytes,
                                      moe->w13_bias + e * 2 * PARTS_FFN, PARTS_ROWS,
                                      2 * PARTS_FFN, PARTS_WIDTH, moe->weight_dtype);
    const struct op gate = { .kind = OP_SILU_MUL, .silu_mul = {
        .out = harness_put(h, result, PARTS_ROWS * PARTS_FFN * 4), .x = hidden,
        .row_count = PARTS_ROWS, .width = PARTS_FFN, .out_row_stride = PARTS_FFN,
        .x_row_stride = 2 * PARTS_FFN, .gate = moe->gate,
    } };
    float *down;

    harness_run(h, &gate);
    x = in_order(h, gate.silu_mul.out,
                 moe->w2_order == NULL ? NULL : moe->w2_order + (size_t)e * PARTS_FFN, PARTS_ROWS,
                 PARTS_FFN);
    down = product_with_bias(h, x, (const char *)moe->w2 + e * matrix_bytes,
                             moe->w2_bias + e * PARTS_WIDTH, PARTS_ROWS, PARTS_WIDTH, PARTS_FFN,
                             moe->weight_dtype);
    harness_get(h, result, down, sizeof(result));
    for (size_t i = 0; i < PARTS_ROWS * PARTS_TOP_K; i++)
        for (size_t j = 0; ids[i] == (int32_t)e && j < PARTS_WIDTH; j++)
            wanted[i / PARTS_TOP_K * PARTS_WIDTH + j] +=
                (double)weights[i] * (double)result[i / PARTS_TOP_K * PARTS_WIDTH + j];
}

/* With biases, another gate, and columns in an order of each expert's own a mixture is what the
 * other ops, tested above, make of its parts. */
static void moe_by_parts(struct harness *h, enum dtype dtype, enum op_gate gate, bool ordered)
{
    enum { OUT = PARTS_ROWS * PARTS_WIDTH, MATRIX = PARTS_EXPERTS * PARTS_WIDTH * PARTS_FFN };
    const uint64_t scratch_bytes = op_moe_scratch_bytes(PARTS_ROWS, PARTS_TOP_K, PARTS_EXPERTS,
                                                        PARTS_WIDTH, PARTS_FFN);
    float *x = random_floats(h, OUT), *weights = random_floats(h, PARTS_ROWS * PARTS_TOP_K);
    float *w13 = random_floats(h, 2 * MATRIX), *w2 = random_floats(h, MATRIX);
    float *bias = random_floats(h, 2 * PARTS_EXPERTS * PARTS_WIDTH);
    void *w13_bytes = rounded_to(w13, dtype, 2 * MATRIX), *w2_bytes = rounded_to(w2, dtype, MATRIX);
    void *scratch = calloc(1, scratch_bytes);
    float w13_order[PARTS_EXPERTS * PARTS_WIDTH], w2_order[PARTS_EXPERTS * PARTS_FFN];
    int32_t ids[PARTS_ROWS * PARTS_TOP_K];
    double wanted[OUT], tolerance[OUT];
    struct op op = { .kind = OP_MOE };

    for (size_t i = 0; i < PARTS_EXPERTS * PARTS_WIDTH; i++)
        w13_order[i] = (float)((7 * i + 3 * (i / PARTS_WIDTH)) % PARTS_WIDTH);
    for (size_t i = 0; i < PARTS_EXPERTS * PARTS_FFN; i++)
        w2_order[i] = (float)((5 * i + i / PARTS_FFN) % PARTS_FFN);

    for (int32_t i = 0; i < PARTS_ROWS * PARTS_TOP_K; i++)
        ids[i] = (i / PARTS_TOP_K + i % PARTS_TOP_K) % PARTS_EXPERTS;
    for (size_t i = 0; i < OUT; i++) {
        wanted[i] = x[i];
        tolerance[i] = 1e-3; /* sums of some hundred terms, far below any of the biases */
    }
    op.moe = (struct op_moe){
        .out = harness_put(h, x, OUT * 4), .x = harness_put(h, x, OUT * 4),
        .ids = harness_put(h, ids, sizeof(ids)),
        .weights = harness_put(h, weights, PARTS_ROWS * PARTS_TOP_K * 4),
        .w13 = harness_put(h, w13_bytes, dtype_row_bytes(dtype, 2 * MATRIX)),
        .w2 = harness_put(h, w2_bytes, dtype_row_bytes(dtype, MATRIX)),
        .weight_dtype = dtype, .down_dtype = dtype, .gate = gate,
        .w13_bias = harness_put(h, bias, PARTS_EXPERTS * 2 * PARTS_FFN * 4),
        .w2_bias = harness_put(h, bias, PARTS_EXPERTS * PARTS_WIDTH * 4),
        .scratch = harness_put(h, scratch, scratch_bytes),
        .row_count = PARTS_ROWS, .top_k = PARTS_TOP_K, .expert_count = PARTS_EXPERTS,
        .width = PARTS_WIDTH, .ffn_width = PARTS_FFN,
        .out_row_stride = PARTS_WIDTH, .x_row_stride = PARTS_WIDTH,
    };
    if (ordered) {
        op.moe.w13_order = harness_put(h, w13_order, sizeof(w13_order));
        op.moe.w2_order = harness_put(h, w2_order, sizeof(w2_order));
    }
    for (uint32_t e = 0; e < PARTS_EXPERTS; e++)
        add_expert_by_parts(h, &op.moe, e, ids, weights, wanted);
    harness_run(h, &op);
    harness_get(h, x, op.moe.out, OUT * 4);
    check_rows("moe", x, wanted, tolerance, PARTS_ROWS, PARTS_WIDTH, PARTS_WIDTH);
    harness_clear(h);
    free(x);
    free(weights);
    free(w13);
    free(w2);
    free(bias);
    free(w13_bytes);
    free(w2_bytes);
    free(scratch);
}

static void moe_by_parts_on(struct harness *h)
{
    const uint32_t needed =
        OP_FEATURE_EXPERT_BIAS | OP_FEATURE_GATE_CLAMPED | OP_FEATURE_GATE_GELU;

    if ((device_info(h->device)->op_features & needed) != needed)
        return;
    moe_by_parts(h, DTYPE_F32, GATE_CLAMPED_SWISH, false);
    moe_by_parts(h, DTYPE_BF16, GATE_GELU_TANH, false);
    if (has_weights(h, DTYPE_MXFP4))
        moe_by_parts(h, DTYPE_MXFP4, GATE_CLAMPED_SWISH, false);
    if (!has_feature(h, OP_FEATURE_EXPERT_ORDER))
        return;
    moe_by_parts(h, DTYPE_F32, GATE_SILU, true);
    moe_by_parts(h, DTYPE_INT4, GATE_SILU, true);
}

static void moe_is_the_sum_of_its_parts(void **state)
{
    (void)state;
    with_every_device(moe_by_parts_on);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matmul_is_right),
        cmocka_unit_test(embed_and_gather_copy_the_right_rows),
        cmocka_unit_test(gather_columns_copies_the_right_columns),
        cmocka_unit_test(rms_norm_is_right),
        cmocka_unit_test(rope_is_right),
        cmocka_unit_test(gates_are_right),
        cmocka_unit_test(scale_is_right),
        cmocka_unit_test(soft_cap_is_right),
        cmocka_unit_test(missing_features_are_refused),
        cmocka_unit_test(moe_is_right),
        cmocka_unit_test(moe_is_the_sum_of_its_parts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
