/* device/op_attention_test.c - attention, and what it reads, on every device and kernel table
 * against plain loops in double.
 *
 * Method as in op_test.c. */
#include "device/test_harness.h"

#include <math.h>

struct attention_case {
    uint32_t heads, kv_heads, k_width, v_width, page_size;
    bool latent; /* v_cache = k_cache */
    uint32_t window;
    bool chunked;
    bool sinks;
    float score_cap;
    enum dtype dtype; /* of the cache */
    uint32_t behind;  /* so much further on in their sequences most rows are */
};

enum { ATTENTION_ROWS = 45, ATTENTION_SEQUENCES = 3, ATTENTION_SHORT = 150,
       ATTENTION_BEHIND_MAX = 900, ATTENTION_CONTEXT = ATTENTION_SHORT + ATTENTION_BEHIND_MAX };

/* One problem: rows of three sequences, those of one not all next to each other. */
struct attention {
    const struct attention_case *c;
    uint32_t pages_each;
    size_t slot_count, q_stride, out_width, out_stride;
    size_t k_count, v_count; /* elements of the caches */
    struct op_cache_strides k_strides, v_strides;
    float *k, *v, *q, *sinks;
    void *k_cache, *v_cache; /* the same in the cache's dtype */
    int32_t *pages;
    int32_t sequences[ATTENTION_ROWS], positions[ATTENTION_ROWS];
};

/* Rounds numbers to what the cache can hold; returns them as it holds them. */
static void *round_to_cache(float *x, enum dtype dtype, size_t count)
{
    void *held = calloc(1, dtype_row_bytes(dtype, count));

    assert_non_null(held);
    dtype_convert(held, dtype, x, DTYPE_F32, count);
    dtype_convert(x, DTYPE_F32, held, dtype, count);
    return held;
}

/* With gaps of `padding` elements; by_head: between heads and between pages, else between slots. */
static struct op_cache_strides strides_of(bool by_head, uint32_t heads, uint32_t page_size,
                                          uint32_t width, uint32_t padding)
{
    struct op_cache_strides strides = op_cache_by_slot(heads, page_size, width);

    if (by_head) {
        strides = op_cache_by_head(heads, page_size, width);
        strides.head += padding;
        strides.page = heads * strides.head + padding;
    } else {
        strides.slot += padding;
        strides.page = page_size * strides.slot;
    }
    return strides;
}

/* The same for every device. */
static void attention_make(struct attention *a, const struct attention_case *c, bool by_head)
{
    struct harness random = { .random = 88172645463325252u };
    const uint32_t block = c->dtype == DTYPE_Q8_0 ? 32 : 0;

    a->c = c;
    a->pages_each = (ATTENTION_SHORT + c->behind - 1) / c->page_size + 1;
    a->slot_count = (size_t)ATTENTION_SEQUENCES * a->pages_each * c->page_size;
    a->k_strides = strides_of(by_head, c->kv_heads, c->page_size, c->k_width,
                              block > 0 ? block : 4);
    a->v_strides = c->latent ? a->k_strides
                             : strides_of(by_head, c->kv_heads, c->page_size, c->v_width,
                                          block > 0 ? 2 * block : 1);
    a->k_count = a->slot_count / c->page_size * a->k_strides.page;
    a->v_count = a->slot_count / c->page_size * a->v_strides.page;
    a->q_stride = (size_t)c->heads * c->k_width + 2;
    a->out_width = (size_t)c->heads * c->v_width;
    a->out_stride = a->out_width + 3;
    a->k = random_floats(&random, a->k_count);
    a->v = c->latent ? a->k : random_floats(&random, a->v_count);
    a->k_cache = round_to_cache(a->k, c->dtype, a->k_count);
    a->v_cache = c->latent ? a->k_cache
                           : round_to_cache(a->v, c->dtype, a->v_count);
    a->q = random_floats(&random, ATTENTION_ROWS * a->q_stride);
    a->sinks = random_floats(&random, c->heads);
    a->pages = scattered_pages(ATTENTION_SEQUENCES * a->pages_each, 1);
    for (int32_t t = 0; t < ATTENTION_ROWS; t++) {
        a->sequences[t] = t < 33 ? 0 : t < 37 ? 2 : t < 44 ? 1 : 2;
        a->positions[t] = t < 33   ? (int32_t)c->behind + 59 + t
                          : t < 37 ? t - 33
                          : t < 44 ? (int32_t)c->behind + 143 + t - 37 : 4;
    }
}

/* Where the key or value of row t's sequence at position j begins. */
static size_t place_of(const struct attention *a, const struct op_cache_strides *strides, size_t t,
                       uint32_t j, size_t kv)
{
    const uint32_t page_size = a->c->page_size;
    const size_t page = (size_t)a->pages[(uint32_t)a->sequences[t] * a->pages_each + j / page_size];

    return page * strides->page + kv * strides->head + j % page_size * strides->slot;
}

/* One head of one row, in double; returns v_width values in wanted. */
static void attend_in_double(const struct attention *a, size_t t, size_t head, float scale,
                             double *wanted)
{
    const struct attention_case *c = a->c;
    const size_t kv = head / (c->heads / c->kv_heads);
    const float *q = a->q + t * a->q_stride + head * c->k_width;
    const int32_t end = a->positions[t] + 1;
    const int32_t window = (int32_t)c->window;
    const int32_t first = c->chunked                  ? (end - 1) / window * window
                          : window == 0 || window > end ? 0 : end - window;
    double weights[ATTENTION_CONTEXT], max = c->sinks ? (double)a->sinks[head] : -1e30, sum = 0;

    for (int32_t j = first; j < end; j++) {
        const float *key = a->k + place_of(a, &a->k_strides, t, (uint32_t)j, kv);
        weights[j] = 0;
        for (size_t e = 0; e < c->k_width; e++)
            weights[j] += (double)q[e] * key[e];
        weights[j] *= (double)scale;
        if (c->score_cap > 0)
            weights[j] = (double)c->score_cap * tanh(weights[j] / (double)c->score_cap);
        max = weights[j] > max ? weights[j] : max;
    }
    sum = c->sinks ? exp((double)a->sinks[head] - max) : 0;
    for (int32_t j = first; j < end; j++)
        sum += weights[j] = exp(weights[j] - max);
    for (size_t e = 0; e < c->v_width; e++)
        wanted[e] = 0;
    for (int32_t j = first; j < end; j++) {
        const float *value = a->v + place_of(a, &a->v_strides, t, (uint32_t)j, kv);
        for (size_t e = 0; e < c->v_width; e++)
            wanted[e] += weights[j] / sum * value[e];
    }
}

/* Caches of all types give the same bits when they hold the same numbers. */
static void attention_widened(struct harness *h, const struct attention *a, struct op op,
                              const float *wanted)
{
    float *out = guarded(ATTENTION_ROWS * a->out_stride);

    op.attention.cache_dtype = DTYPE_F32;
    op.attention.k_cache = harness_put(h, a->k, a->k_count * 4);
    op.attention.v_cache = a->c->latent ? op.attention.k_cache
                                        : harness_put(h, a->v, a->v_count * 4);
    harness_run(h, &op);
    harness_get(h, out, op.attention.out, ATTENTION_ROWS * a->out_stride * 4);
    assert_memory_equal(out, wanted, ATTENTION_ROWS * a->out_stride * 4);
    free(out);
}

static double *attention_wanted(const struct attention *a)
{
    const struct attention_case *c = a->c;
    double *wanted = calloc(ATTENTION_ROWS * a->out_width, sizeof(*wanted));

    assert_non_null(wanted);
    for (size_t i = 0; i < (size_t)ATTENTION_ROWS * c->heads; i++)
        attend_in_double(a, i / c->heads, i % c->heads, 0.3f, wanted + i * c->v_width);
    return wanted;
}

/* wanted: what the first device's run has left there, or leaves. */
static void attention_case_run(struct harness *h, const struct attention_case *c, bool by_head,
                               double **wanted)
{
    struct attention a;
    struct op op = { .kind = OP_ATTENTION };
    double *tolerance;
    float *out;

    attention_make(&a, c, by_head);
    out = guarded(ATTENTION_ROWS * a.out_stride);
    tolerance = calloc(ATTENTION_ROWS * a.out_width, sizeof(*tolerance));
    if (*wanted == NULL)
        *wanted = attention_wanted(&a);
    /* Values are below 1. A weight's error is its score's, absolute, at most (k_width / 8 + 8) u *
     * scale * k_width, plus exp's; then a sum over the context. */
    for (size_t i = 0; i < ATTENTION_ROWS * a.out_width; i++)
        tolerance[i] =
            ((c->k_width / 8.0 + 8) * 0.3 * c->k_width + ATTENTION_SHORT + c->behind) * U;
    op.attention = (struct op_attention){
        .out = harness_put(h, out, ATTENTION_ROWS * a.out_stride * 4),
        .q = harness_put(h, a.q, ATTENTION_ROWS * a.q_stride * 4),
        .k_cache = harness_put(h, a.k_cache,
                               dtype_row_bytes(c->dtype, a.k_count)),
        .cache_dtype = c->dtype,
        .pages = harness_put(h, a.pages, (uint64_t)ATTENTION_SEQUENCES * a.pages_each * 4),
        .sequences = harness_put(h, a.sequences, sizeof(a.sequences)),
        .positions = harness_put(h, a.positions, sizeof(a.positions)),
        .row_count = ATTENTION_ROWS, .head_count = c->heads, .kv_head_count = c->kv_heads,
        .k_width = c->k_width, .v_width = c->v_width,
        .page_size = c->page_size, .page_count_max = a.pages_each,
        .cache_row_count = (uint32_t)a.slot_count,
        .out_row_stride = a.out_stride, .q_row_stride = a.q_stride,
        .k_strides = a.k_strides, .v_strides = a.v_strides,
        .scale = 0.3f, .window = c->window, .chunked = c->chunked,
        .score_cap = c->score_cap,
        .sinks = c->sinks ? harness_put(h, a.sinks, c->heads * 4) : NULL,
    };
    op.attention.v_cache =
        c->latent ? op.attention.k_cache
                  : harness_put(h, a.v_cache,
                                dtype_row_bytes(c->dtype, a.v_count));
    harness_run(h, &op);
    harness_get(h, out, op.attention.out, ATTENTION_ROWS * a.out_stride * 4);
    check_rows("attention", out, *wanted, tolerance, ATTENTION_ROWS, a.out_width, a.out_stride);
    if (c->dtype != DTYPE_F32)
        attention_widened(h, &a, op, out);
    harness_clear(h);
    free(a.k);
    free(a.k_cache);
    if (!c->latent) {
        free(a.v);
        free(a.v_cache);
    }
    free(a.q);
    free(a.sinks);
    free(a.pages);
    free(out);
    free(tolerance);
}

enum { ATTENTION_CASES = 30 };
static double *attention_results[ATTENTION_CASES][2];

static void attention_on(struct harness *h)
{
    static const struct attention_case cases[ATTENTION_CASES] = {
        { .heads = 4, .kv_heads = 4, .k_width = 16, .v_width = 16, .page_size = 16 },
        { .heads = 6, .kv_heads = 2, .k_width = 20, .v_width = 13, .page_size = 8 },
        { .heads = 7, .kv_heads = 1, .k_width = 33, .v_width = 30, .page_size = 64,
          .latent = true },
        { .heads = 40, .kv_heads = 1, .k_width = 18, .v_width = 16, .page_size = 1,
          .latent = true },
        { .heads = 8, .kv_heads = 2, .k_width = 64, .v_width = 64, .page_size = 7 },
        { .heads = 6, .kv_heads = 2, .k_width = 20, .v_width = 13, .page_size = 8, .window = 1 },
        { .heads = 8, .kv_heads = 2, .k_width = 64, .v_width = 64, .page_size = 7, .window = 70 },
        { .heads = 8, .kv_heads = 2, .k_width = 32, .v_width = 32, .page_size = 5, .window = 24,
          .chunked = true },
        { .heads = 4, .kv_heads = 4, .k_width = 16, .v_width = 16, .page_size = 16,
          .sinks = true },
        { .heads = 4, .kv_heads = 2, .k_width = 16, .v_width = 16, .page_size = 16,
          .score_cap = 1.5f },
        { .heads = 40, .kv_heads = 1, .k_width = 18, .v_width = 16, .page_size = 1, .window = 20,
          .sinks = true, .score_cap = 2 },
        { .heads = 6, .kv_heads = 2, .k_width = 20, .v_width = 13, .page_size = 8,
          .dtype = DTYPE_F16 },
        { .heads = 7, .kv_heads = 1, .k_width = 33, .v_width = 30, .page_size = 64,
          .latent = true, .dtype = DTYPE_F16 },
        { .heads = 8, .kv_heads = 2, .k_width = 64, .v_width = 64, .page_size = 7, .window = 70,
          .dtype = DTYPE_F16 },
        { .heads = 6, .kv_heads = 2, .k_width = 96, .v_width = 32, .page_size = 8,
          .dtype = DTYPE_Q8_0 },
        { .heads = 40, .kv_heads = 1, .k_width = 96, .v_width = 47, .page_size = 1,
          .latent = true, .dtype = DTYPE_Q8_0 },
        { .heads = 8, .kv_heads = 2, .k_width = 32, .v_width = 32, .page_size = 5, .window = 24,
          .chunked = true, .sinks = true, .dtype = DTYPE_Q8_0 },
        { .heads = 8, .kv_heads = 2, .k_width = 64, .v_width = 64, .page_size = 16,
          .behind = 190 },
        { .heads = 4, .kv_heads = 2, .k_width = 24, .v_width = 16, .page_size = 8, .behind = 450,
          .window = 290, .sinks = true, .dtype = DTYPE_F16 },
        { .heads = 6, .kv_heads = 2, .k_width = 32, .v_width = 32, .page_size = 8, .behind = 620,
          .window = 300, .chunked = true, .score_cap = 2 },
        { .heads = 16, .kv_heads = 1, .k_width = 96, .v_width = 64, .page_size = 64,
          .behind = 900, .latent = true, .sinks = true, .dtype = DTYPE_Q8_0 },
        { .heads = 8, .kv_heads = 2, .k_width = 128, .v_width = 128, .page_size = 16,
          .behind = 190 },
        { .heads = 8, .kv_heads = 1, .k_width = 128, .v_width = 128, .page_size = 16,
          .window = 50, .behind = 300, .dtype = DTYPE_F16 },
        { .heads = 14, .kv_heads = 2, .k_width = 128, .v_width = 96, .page_size = 16,
          .sinks = true, .score_cap = 2, .dtype = DTYPE_Q8_0 },
        { .heads = 4, .kv_heads = 4, .k_width = 80, .v_width = 80, .page_size = 32,
          .dtype = DTYPE_F16 },
        { .heads = 4, .kv_heads = 2, .k_width = 256, .v_width = 256, .page_size = 16,
          .window = 70 },
        { .heads = 8, .kv_heads = 2, .k_width = 256, .v_width = 256, .page_size = 16,
          .behind = 190, .dtype = DTYPE_F16 },
        { .heads = 20, .kv_heads = 1, .k_width = 192, .v_width = 137, .page_size = 64,
          .window = 50, .behind = 300, .latent = true },
        { .heads = 6, .kv_heads = 2, .k_width = 160, .v_width = 256, .page_size = 16,
          .sinks = true, .score_cap = 2, .dtype = DTYPE_Q8_0 },
        { .heads = 9, .kv_heads = 1, .k_width = 576, .v_width = 520, .page_size = 64,
          .behind = 190, .latent = true },
    };

    for (size_t i = 0; i < ATTENTION_CASES; i++) {
        if (cases[i].dtype != DTYPE_F32 && !has_feature(h, OP_FEATURE_KV_NARROW))
            continue;
        attention_case_run(h, &cases[i], false, &attention_results[i][0]);
        if (has_feature(h, OP_FEATURE_KV_BY_HEAD))
            attention_case_run(h, &cases[i], true, &attention_results[i][1]);
    }
}

static void attention_is_right(void **state)
{
    (void)state;
    with_every_device(attention_on);
    for (size_t i = 0; i < ATTENTION_CASES; i++) {
        free(attention_results[i][0]);
        free(attention_results[i][1]);
    }
}

/* The slot and head to which element `at` of a cache belongs, and which one it is; false: a gap. */
static bool find_element(const struct op_kv_write *op, size_t at, size_t *slot_out,
                         size_t *head_out, size_t *i_out)
{
    for (size_t slot = 0; slot < op->cache_row_count; slot++) {
        for (size_t head = 0; head < op->head_count; head++) {
            const size_t first = slot / op->page_size * op->strides.page +
                                 head * op->strides.head + slot % op->page_size * op->strides.slot;
            if (at < first || at >= first + op->width)
                continue;
            *slot_out = slot;
            *head_out = head;
            *i_out = at - first;
            return true;
        }
    }
    return false;
}

static void kv_write_heads_on(struct harness *h, bool by_head, uint32_t page_size)
{
    enum { ROWS = 4, HEADS = 3, WIDTH = 5, SLOTS = 6, X_STRIDE = 17 };
    const int32_t slots[ROWS] = { 5, 0, 3, 2 };
    const struct op_cache_strides strides = strides_of(by_head, HEADS, page_size, WIDTH, 2);
    const size_t count = SLOTS / page_size * strides.page;
    float *x = random_floats(h, ROWS * X_STRIDE), *cache = guarded(count);
    struct op op = { .kind = OP_KV_WRITE };

    op.kv_write = (struct op_kv_write){
        .cache = harness_put(h, cache, count * 4), .x = harness_put(h, x, ROWS * X_STRIDE * 4),
        .slots = harness_put(h, slots, sizeof(slots)), .row_count = ROWS, .head_count = HEADS,
        .width = WIDTH, .page_size = page_size, .cache_row_count = SLOTS, .strides = strides,
        .x_row_stride = X_STRIDE,
    };
    harness_run(h, &op);
    harness_get(h, cache, op.kv_write.cache, count * 4);
    for (size_t at = 0; at < count; at++) {
        size_t slot = 0, head = 0, i = 0, row = 0;
        const bool is_gap = !find_element(&op.kv_write, at, &slot, &head, &i);
        while (row < ROWS && (size_t)slots[row] != slot)
            row++;
        assert_true(cache[at] ==
                    (is_gap || row == ROWS ? GUARD : x[row * X_STRIDE + head * WIDTH + i]));
    }
    harness_clear(h);
    free(x);
    free(cache);
}

static void kv_write_on(struct harness *h)
{
    for (uint32_t page_size = 1; page_size <= 3; page_size++) {
        kv_write_heads_on(h, false, page_size);
        if (has_feature(h, OP_FEATURE_KV_BY_HEAD))
            kv_write_heads_on(h, true, page_size);
    }
}

/* Into a cache of another type: bytes as dtype_convert makes them, and no others. */
static void kv_write_narrow_on(struct harness *h)
{
    enum { ROWS = 5, HEADS = 3, WIDTH = 96, SLOTS = 7, STRIDE = 128, X_STRIDE = 99 };
    static const enum dtype dtypes[] = { DTYPE_F16, DTYPE_Q8_0 };
    const int32_t slots[ROWS] = { 5, 0, 6, 3, 2 };
    float *x = random_floats(h, ROWS * X_STRIDE);

    x[0] = 65520; /* halfway between the largest F16 and what is none */
    x[1] = 0x1.002p0f;
    x[2] = NAN;
    for (size_t d = 0; d < 2 && has_feature(h, OP_FEATURE_KV_NARROW); d++) {
        const size_t bytes = dtype_row_bytes(dtypes[d], SLOTS * STRIDE);
        const size_t row_bytes = dtype_row_bytes(dtypes[d], STRIDE);
        uint8_t *cache = malloc(bytes), *wanted = malloc(bytes);
        struct op op = { .kind = OP_KV_WRITE };

        assert_true(cache != NULL && wanted != NULL);
        memset(cache, 0x5a, bytes);
        memset(wanted, 0x5a, bytes);
        for (size_t row = 0; row < ROWS; row++)
            dtype_convert(wanted + (size_t)slots[row] * row_bytes, dtypes[d], x + row * X_STRIDE,
                          DTYPE_F32, WIDTH);
        op.kv_write = (struct op_kv_write){
            .cache = harness_put(h, cache, bytes), .cache_dtype = dtypes[d],
            .x = harness_put(h, x, ROWS * X_STRIDE * 4),
            .slots = harness_put(h, slots, sizeof(slots)),
            .row_count = ROWS, .head_count = HEADS, .width = WIDTH / HEADS, .page_size = 1,
            .cache_row_count = SLOTS, .strides = { STRIDE, WIDTH / HEADS, STRIDE },
            .x_row_stride = X_STRIDE,
        };
        harness_run(h, &op);
        harness_get(h, cache, op.kv_write.cache, bytes);
        assert_memory_equal(cache, wanted, bytes);
        harness_clear(h);
        free(cache);
        free(wanted);
    }
    free(x);
}

static void kv_write_writes_its_slots_only(void **state)
{
    (void)state;
    with_every_device(kv_write_on);
    with_every_device(kv_write_narrow_on);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_is_right),
        cmocka_unit_test(kv_write_writes_its_slots_only),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
