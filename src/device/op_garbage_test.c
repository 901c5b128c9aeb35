/* device/op_garbage_test.c - routing, right and with garbage; and that garbage stays inside
 * operands.
 *
 * In the meta mode weights have no contents, so activations can be any bits. Method: operands of
 * random bits, NaN and infinities; ids must be distinct and in range whatever the logits. Under
 * AddressSanitizer the software accelerator poisons all memory that is no operand, so a stray
 * access ends the test. Right routing is compared with a plain sort in double. */
#include "device/test_harness.h"

#include <math.h>

struct route_case {
    uint32_t experts, top_k, groups, kept;
    enum route_scoring scoring;
    enum route_groups rating;
    bool bias, normalise;
};

static const struct route_case route_cases[] = {
    { 1, 1, 1, 1, ROUTE_SOFTMAX, ROUTE_GROUP_MAX, false, false },
    { 8, 2, 1, 1, ROUTE_SOFTMAX, ROUTE_GROUP_MAX, false, true },
    { 64, 6, 1, 1, ROUTE_SOFTMAX, ROUTE_GROUP_MAX, false, false },
    { 160, 6, 8, 3, ROUTE_SOFTMAX, ROUTE_GROUP_MAX, false, false },
    { 256, 8, 8, 4, ROUTE_SIGMOID, ROUTE_GROUP_TOP2_SUM, true, true },
    { 20, 4, 4, 2, ROUTE_SIGMOID, ROUTE_GROUP_TOP2_SUM, true, true },
    { 6, 3, 6, 3, ROUTE_SIGMOID, ROUTE_GROUP_TOP2_SUM, false, true },
    { 128, 8, 1, 1, ROUTE_SOFTMAX, ROUTE_GROUP_MAX, false, true },
    { 7, 7, 1, 1, ROUTE_SOFTMAX, ROUTE_GROUP_MAX, false, true },
    { OP_ROUTE_EXPERTS_MAX, 8, 1, 1, ROUTE_SOFTMAX, ROUTE_GROUP_MAX, false, false },
};
#define ROUTE_CASE_COUNT (sizeof(route_cases) / sizeof(route_cases[0]))
#define ROWS 9
#define TOP_K_MAX 8

static void route(struct harness *h, const struct route_case *c, const float *logits,
                  const float *bias, int32_t *ids, float *weights)
{
    struct op op = { .kind = OP_ROUTE };

    memset(ids, -1, ROWS * c->top_k * sizeof(*ids));
    memset(weights, 0, ROWS * c->top_k * sizeof(*weights));
    op.route = (struct op_route){
        .ids = harness_put(h, ids, ROWS * c->top_k * 4),
        .weights = harness_put(h, weights, ROWS * c->top_k * 4),
        .logits = harness_put(h, logits, (uint64_t)ROWS * c->experts * 4),
        .correction_bias = c->bias ? harness_put(h, bias, (uint64_t)c->experts * 4) : NULL,
        .row_count = ROWS, .expert_count = c->experts, .top_k = c->top_k,
        .group_count = c->groups, .kept_group_count = c->kept,
        .scoring = c->scoring, .groups = c->rating, .normalise = c->normalise, .scale = 2.5f,
    };
    harness_run(h, &op);
    harness_get(h, ids, op.route.ids, ROWS * c->top_k * 4);
    harness_get(h, weights, op.route.weights, ROWS * c->top_k * 4);
    harness_clear(h);
}

/* Index of the largest value that is not -2; the lowest of equals. Takes it out when `take`. */
static uint32_t pick(double *values, uint32_t first, uint32_t count, bool take)
{
    uint32_t best = first;

    for (uint32_t i = first; i < first + count; i++)
        best = values[i] > values[best] ? i : best;
    if (take)
        values[best] = -2;
    return best;
}

static void wanted_route(const struct route_case *c, const float *logits, const float *bias,
                         int32_t *ids, double *weights)
{
    const uint32_t size = c->experts / c->groups;
    double score[OP_ROUTE_EXPERTS_MAX] = { 0 }, choice[OP_ROUTE_EXPERTS_MAX] = { 0 };
    double rating[8], sum = 0;

    for (uint32_t e = 0; e < c->experts; e++)
        sum += exp((double)logits[e]);
    for (uint32_t e = 0; e < c->experts; e++) {
        const double logit = logits[e];
        score[e] = c->scoring == ROUTE_SOFTMAX ? exp(logit) / sum : 1 / (1 + exp(-logit));
        choice[e] = score[e] + (c->bias ? bias[e] : 0);
    }
    for (uint32_t g = 0; g < c->groups; g++) {
        double copy[OP_ROUTE_EXPERTS_MAX];
        memcpy(copy, choice, sizeof(copy));
        rating[g] = choice[pick(copy, g * size, size, true)];
        if (c->rating == ROUTE_GROUP_TOP2_SUM && size > 1)
            rating[g] += choice[pick(copy, g * size, size, true)];
    }
    for (uint32_t i = 0; c->groups > 1 && i < c->groups - c->kept; i++) { /* drop the worst */
        uint32_t worst = 0;
        for (uint32_t g = 0; g < c->groups; g++)
            worst = rating[g] <= rating[worst] ? g : worst;
        rating[worst] = 1e9;
        for (uint32_t e = worst * size; e < (worst + 1) * size; e++)
            choice[e] = -2;
    }
    sum = 0;
    for (uint32_t j = 0; j < c->top_k; j++) {
        ids[j] = (int32_t)pick(choice, 0, c->experts, true);
        sum += score[ids[j]];
    }
    for (uint32_t j = 0; j < c->top_k; j++)
        weights[j] = 2.5 * score[ids[j]] / (c->normalise ? sum : 1);
}

static void routes_are_right(void **state)
{
    (void)state;
    for (size_t i = 0; i < HARNESS_CONFIG_COUNT * ROUTE_CASE_COUNT; i++) {
        const struct route_case *c = &route_cases[i % ROUTE_CASE_COUNT];
        struct harness h;
        int32_t ids[ROWS * TOP_K_MAX], wanted_ids[TOP_K_MAX];
        float weights[ROWS * TOP_K_MAX];
        float *logits, *bias;
        harness_open(&h, &harness_configs[i / ROUTE_CASE_COUNT]);
        logits = random_floats(&h, (size_t)ROWS * c->experts);
        bias = random_floats(&h, c->experts);
        for (uint32_t e = 0; e < ROWS * c->experts; e++) /* scores that stay apart in F32 */
            logits[e] = (float)((e * 2654435761u >> 8) % 4001) / 1000 - 2 + logits[e] * 1e-4f;
        route(&h, c, logits, bias, ids, weights);
        for (uint32_t row = 0; row < ROWS; row++) {
            double wanted[TOP_K_MAX], tolerance[TOP_K_MAX];
            wanted_route(c, logits + (size_t)row * c->experts, bias, wanted_ids, wanted);
            for (uint32_t j = 0; j < c->top_k; j++) /* exp to 2 ulp, sums of so many terms */
                tolerance[j] = wanted[j] * (c->experts / 8.0 + 16) * 0x1p-24;
            assert_memory_equal(ids + row * c->top_k, wanted_ids, c->top_k * sizeof(*ids));
            check_near("route", weights + row * c->top_k, wanted, tolerance, c->top_k);
        }
        free(logits);
        free(bias);
        harness_close(&h);
    }
}

/* Logits of two values only: experts of the better one come first, each value's in index order, and
 * of groups that rate alike the first ones are kept. */
static void ties_go_to_the_lower_index(void **state)
{
    (void)state;
    for (size_t i = 0; i < HARNESS_CONFIG_COUNT * ROUTE_CASE_COUNT * 2; i++) {
        const struct route_case *c = &route_cases[i / 2 % ROUTE_CASE_COUNT];
        const bool all_equal = i % 2 == 0;
        struct harness h;
        int32_t ids[ROWS * TOP_K_MAX];
        float weights[ROWS * TOP_K_MAX];
        float *logits = calloc((size_t)ROWS * c->experts, sizeof(*logits));
        const float bias[OP_ROUTE_EXPERTS_MAX] = { 0 };

        assert_non_null(logits);
        harness_open(&h, &harness_configs[i / 2 / ROUTE_CASE_COUNT]);
        for (uint32_t e = 0; !all_equal && e < ROWS * c->experts; e++)
            logits[e] = e % c->experts % 2 == 1 ? 1 : -1;
        route(&h, c, logits, bias, ids, weights);
        for (uint32_t j = 0; j < ROWS * c->top_k && (all_equal || c->groups == 1); j++) {
            const uint32_t k = j % c->top_k, odd_count = c->experts / 2;
            const uint32_t wanted = all_equal       ? k
                                    : k < odd_count ? 2 * k + 1
                                                    : 2 * (k - odd_count);

            assert_int_equal(ids[j], wanted);
            if (all_equal) /* equal scores, equal weights */
                assert_true(weights[j] == weights[0]);
        }
        if (c->normalise && all_equal)
            assert_true(fabsf(weights[0] * (float)c->top_k - 2.5f) < 1e-6f);
        free(logits);
        harness_close(&h);
    }
}

/* Random bits, with many NaN, infinities, denormals and zeros. */
static float garbage(struct harness *h)
{
    static const uint32_t special[] = { 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x7FA00000,
                                        1, 0x80000000, 0x7F7FFFFF };
    const uint64_t bits = random_bits(h);
    const uint32_t word = bits % 3 == 0 ? special[bits >> 8 & 7] : (uint32_t)(bits >> 32);
    float value;

    memcpy(&value, &word, sizeof(value));
    return value;
}

static float *garbage_floats(struct harness *h, size_t count)
{
    float *values = malloc(count * sizeof(*values));

    assert_non_null(values);
    for (size_t i = 0; i < count; i++)
        values[i] = garbage(h);
    return values;
}

static void garbage_logits_give_distinct_ids_in_range(void **state)
{
    (void)state;
    for (size_t i = 0; i < HARNESS_CONFIG_COUNT * ROUTE_CASE_COUNT * 8; i++) {
        const struct route_case *c = &route_cases[i / 8 % ROUTE_CASE_COUNT];
        struct harness h;
        int32_t ids[ROWS * TOP_K_MAX];
        float weights[ROWS * TOP_K_MAX];
        float *logits, *bias;
        harness_open(&h, &harness_configs[i / 8 / ROUTE_CASE_COUNT]);
        h.random += i;
        logits = garbage_floats(&h, (size_t)ROWS * c->experts);
        bias = garbage_floats(&h, c->experts);
        for (uint32_t e = 0; i % 8 == 0 && e < ROWS * c->experts; e++)
            logits[e] = NAN;
        route(&h, c, logits, bias, ids, weights);
        for (uint32_t j = 0; j < ROWS * c->top_k; j++) {
            assert_in_range(ids[j], 0, c->experts - 1);
            for (uint32_t l = j / c->top_k * c->top_k; l < j; l++)
                assert_int_not_equal(ids[l], ids[j]);
        }
        free(logits);
        free(bias);
        harness_close(&h);
    }
}

static void nan_ranks_last(void **state)
{
    (void)state;
    for (size_t i = 0; i < HARNESS_CONFIG_COUNT; i++) {
        float logits[ROWS * 8], bias[8] = { 0 };
        struct harness h;
        int32_t ids[ROWS * TOP_K_MAX];
        float weights[ROWS * TOP_K_MAX];
        const struct route_case c = { 8, 2, 1, 1, ROUTE_SIGMOID, ROUTE_GROUP_MAX, true, true };
        harness_open(&h, &harness_configs[i]);
        for (uint32_t e = 0; e < ROWS * 8; e++)
            logits[e] = e % 8 == 3 || e % 8 == 6 ? -5.0f : NAN;
        bias[3] = -INFINITY;
        route(&h, &c, logits, bias, ids, weights);
        for (uint32_t row = 0; row < ROWS; row++) {
            assert_int_equal(ids[row * 2], 6);
            assert_int_equal(ids[row * 2 + 1], 3);
        }
        harness_close(&h);
    }
}

/* A small model's layer on garbage: everything runs, nothing strays. */
static void attention_on_garbage(struct harness *h, enum dtype dtype)
{
    enum { HEADS = 3, QUERIES = 5 };
    const uint32_t k_width = dtype == DTYPE_Q8_0 ? 64 : 13;
    const uint32_t v_width = dtype == DTYPE_Q8_0 ? 32 : 11;
    const size_t cache_bytes = dtype_row_bytes(dtype, UINT64_C(5) * 16 * k_width);
    const int32_t pages[5] = { 3, 0, 4, 1, 2 }, sequences[QUERIES] = { 0 };
    const int32_t positions[QUERIES] = { 0, 63, 64, 68, 69 };
    float *q = garbage_floats(h, (size_t)QUERIES * HEADS * k_width);
    float *cache = garbage_floats(h, cache_bytes / 4), *out = garbage_floats(h, 1000);
    struct op op = { .kind = OP_ATTENTION };

    op.attention = (struct op_attention){
        .out = harness_put(h, out, UINT64_C(4) * QUERIES * HEADS * v_width),
        .q = harness_put(h, q, UINT64_C(4) * QUERIES * HEADS * k_width),
        .k_cache = harness_put(h, cache, cache_bytes), .cache_dtype = dtype,
        .pages = harness_put(h, pages, sizeof(pages)),
        .sequences = harness_put(h, sequences, sizeof(sequences)),
        .positions = harness_put(h, positions, sizeof(positions)),
        .row_count = QUERIES, .head_count = HEADS, .kv_head_count = 1,
        .k_width = k_width, .v_width = v_width, .page_size = 16, .page_count_max = 5,
        .cache_row_count = 5 * 16,
        .out_row_stride = (uint64_t)HEADS * v_width, .q_row_stride = (uint64_t)HEADS * k_width,
        .k_strides = op_cache_by_slot(1, 16, k_width),
        .v_strides = op_cache_by_slot(1, 16, k_width), .scale = 1,
    };
    op.attention.v_cache = op.attention.k_cache;
    harness_run(h, &op);
    harness_clear(h);
    free(q);
    free(cache);
    free(out);
}

static void layer_on_garbage(struct harness *h, uint32_t width, uint32_t ffn, enum dtype dtype,
                             enum dtype down_dtype)
{
    enum { T = 30, EXPERTS = 5, TOP_K = 2 };
    const uint64_t scratch_bytes = op_moe_scratch_bytes(T, TOP_K, EXPERTS, width, ffn);
    const uint64_t gate_bytes = dtype_row_bytes(dtype, EXPERTS * width);
    const uint64_t matrix_bytes = dtype_row_bytes(dtype, EXPERTS * ffn * width);
    const uint64_t down_bytes = dtype_row_bytes(down_dtype, EXPERTS * ffn * width);
    float *x = garbage_floats(h, T * width), *w = garbage_floats(h, EXPERTS * 2 * ffn * width);
    void *scratch = calloc(1, scratch_bytes);
    struct op gate = { .kind = OP_MATMUL }, route_op = { .kind = OP_ROUTE };
    struct op moe = { .kind = OP_MOE }, silu = { .kind = OP_SILU_MUL };
    struct op norm = { .kind = OP_RMS_NORM };

    gate.matmul = (struct op_matmul){
        .out = harness_put(h, x, T * EXPERTS * 4), .x = harness_put(h, x, T * width * 4),
        .weight = harness_put(h, w, gate_bytes), .weight_dtype = dtype,
        .row_count = T, .n_count = EXPERTS, .k_count = width, .batch_count = 1,
        .out_row_stride = EXPERTS, .x_row_stride = width,
    };
    route_op.route = (struct op_route){
        .ids = harness_put(h, x, T * TOP_K * 4), .weights = harness_put(h, x, T * TOP_K * 4),
        .logits = gate.matmul.out, .row_count = T, .expert_count = EXPERTS, .top_k = TOP_K,
        .group_count = 1, .scoring = ROUTE_SOFTMAX, .normalise = true, .scale = 1,
    };
    moe.moe = (struct op_moe){
        .out = harness_put(h, x, T * width * 4), .x = gate.matmul.x, .ids = route_op.route.ids,
        .weights = route_op.route.weights,
        .w13 = harness_put(h, w, 2 * matrix_bytes), .w2 = harness_put(h, w, down_bytes),
        .weight_dtype = dtype, .down_dtype = down_dtype,
        .scratch = harness_put(h, scratch, scratch_bytes),
        .row_count = T, .top_k = TOP_K, .expert_count = EXPERTS, .width = width, .ffn_width = ffn,
        .out_row_stride = width, .x_row_stride = width,
    };
    silu.silu_mul = (struct op_silu_mul){
        .out = moe.moe.out, .x = gate.matmul.x, .row_count = T, .width = 10,
        .out_row_stride = 10, .x_row_stride = width,
    };
    norm.rms_norm = (struct op_rms_norm){
        .out = moe.moe.out, .x = gate.matmul.x, .weight = gate.matmul.x, .row_count = T,
        .group_count = 1, .width = width, .out_row_stride = width, .x_row_stride = width,
    };
    harness_run(h, &gate);
    harness_run(h, &route_op);
    harness_run(h, &moe);
    harness_run(h, &silu);
    harness_run(h, &norm);
    harness_clear(h);
    free(x);
    free(w);
    free(scratch);
}

static void garbage_stays_inside_its_operands(void **state)
{
    (void)state;
    for (size_t i = 0; i < HARNESS_CONFIG_COUNT; i++) {
        struct harness h;
        harness_open(&h, &harness_configs[i]);
        for (int round = 0; round < 10; round++) {
            attention_on_garbage(&h, DTYPE_F32);
            if ((device_info(h.device)->op_features & OP_FEATURE_KV_NARROW) != 0) {
                attention_on_garbage(&h, DTYPE_F16);
                attention_on_garbage(&h, DTYPE_Q8_0);
            }
            layer_on_garbage(&h, 21, 14, round % 2 == 0 ? DTYPE_F16 : DTYPE_BF16,
                             h.is_npu && round % 2 != 0 ? DTYPE_BF16 : DTYPE_F16);
            if (has_weights(&h, DTYPE_Q8_0))
                layer_on_garbage(&h, 64, 32, round % 2 == 0 ? DTYPE_Q8_0 : DTYPE_Q4_0, DTYPE_Q8_0);
        }
        for (int dtype = DTYPE_Q8_0; dtype < DTYPE_COUNT; dtype++) {
            const int down_dtype = dtype + 1 < DTYPE_COUNT ? dtype + 1 : DTYPE_F32;
            if (has_weights(&h, (enum dtype)dtype) && has_weights(&h, (enum dtype)down_dtype))
                layer_on_garbage(&h, 256, 256, (enum dtype)dtype, (enum dtype)down_dtype);
        }
        harness_close(&h);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(routes_are_right),
        cmocka_unit_test(ties_go_to_the_lower_index),
        cmocka_unit_test(garbage_logits_give_distinct_ids_in_range),
        cmocka_unit_test(nan_ranks_last),
        cmocka_unit_test(garbage_stays_inside_its_operands),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
