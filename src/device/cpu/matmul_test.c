/* device/cpu/matmul_test.c - products with plain weights: near the true value in every table, and
 * the same bits for a row whatever is computed with it; and every F16 number counts as it is.
 *
 * Method: odd shapes around all tile sizes, weights and x of mixed magnitudes. The true value and
 * the sum of magnitudes are computed in double; a sum of k products in F32, in any order, is off by
 * at most k / 2 ulps of the latter. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "device/cpu/kernels.h"

enum {
    ROWS_MAX = 50, N_MAX = 83, K_MAX = 4200,
    K_LONG = 61472, /* longer than what AMX takes whole rows of x of */
    PACK_BYTES = 4 * 3 * 1024 * (K_LONG / 32 + 1),
};

struct problem {
    enum dtype dtype;
    uint32_t row_count, n_count, k_count;
    bool bias, accumulate;
    enum layout layout;
    float x[ROWS_MAX * K_MAX], biases[N_MAX];
    uint8_t weight[4 << 20], woven[4 << 20]; /* the same in ND and ROWS_16 */
};

static uint64_t random_bits(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static float any_float(uint64_t *state)
{
    const uint64_t bits = random_bits(state);

    return ldexpf((float)(int32_t)(bits >> 32) * 0x1p-31f, (int)(bits % 9) - 4);
}

static void fill(struct problem *p, uint64_t *state)
{
    for (uint32_t i = 0; i < p->row_count * p->k_count; i++)
        p->x[i] = any_float(state);
    for (uint32_t i = 0; i < p->n_count * p->k_count; i++) {
        const float value = i % 64 == 5    ? 0x1.8p-24f /* F16's subnormals too, ... */
                            : i % 997 == 5 ? 300        /* ... and numbers that are large */
                                           : any_float(state);
        dtype_convert(p->weight + i * dtype_info(p->dtype)->block_bytes, p->dtype, &value,
                      DTYPE_F32, 1);
    }
    for (uint32_t i = 0; i < p->n_count; i++)
        p->biases[i] = any_float(state);
}

/* Rows [first, first + count) of the product into out, as the executor asks for them. */
static void multiply(const struct cpu_kernels *table, const struct problem *p, uint32_t first,
                     uint32_t count, bool packed, float *out, void *scratch, void *pack)
{
    const float *rows[ROWS_MAX];
    struct cpu_strip strip = {
        .out = out, .x_rows = rows, .weight = p->layout == LAYOUT_ND ? p->weight : p->woven,
        .bias = p->bias ? p->biases : NULL, .weight_dtype = p->dtype,
        .weight_layout = p->layout, .row_count = count, .n_count = p->n_count,
        .k_count = p->k_count, .out_row_stride = N_MAX, .weight_row_stride = p->k_count,
        .accumulate = p->accumulate,
    };

    for (uint32_t r = 0; r < count; r++) {
        rows[r] = p->x + (size_t)(first + r) * p->k_count;
        for (uint32_t n = 0; n < N_MAX; n++)
            out[r * N_MAX + n] = (float)n;
    }
    if (packed) {
        const uint64_t bytes = table->packed_bytes(p->dtype, p->k_count);
        for (uint32_t r = 0; r < count; r += CPU_PACK_ROWS)
            table->pack((char *)pack + r / CPU_PACK_ROWS * bytes, rows + r,
                        count - r < CPU_PACK_ROWS ? count - r : CPU_PACK_ROWS, p->k_count,
                        count <= CPU_PACK_ROWS);
        strip.x_packed = pack;
    }
    table->matmul(&strip, scratch);
}

static void check_value(const struct cpu_kernels *table, const struct problem *p, uint32_t r,
                        uint32_t n, float value)
{
    double sum = p->bias ? p->biases[n] : 0, magnitude;

    sum += p->accumulate ? n : 0;
    magnitude = fabs(sum);
    for (uint32_t k = 0; k < p->k_count; k++) {
        const uint32_t size = dtype_info(p->dtype)->block_bytes;
        const uint8_t *at = p->weight + ((size_t)n * p->k_count + k) * size;
        float weight;
        dtype_convert(&weight, DTYPE_F32, at, p->dtype, 1);
        sum += (double)weight * p->x[(size_t)r * p->k_count + k];
        magnitude += fabs((double)weight * p->x[(size_t)r * p->k_count + k]);
    }
    if (!(fabs(value - sum) <= magnitude * (p->k_count + 8) * 0x1p-24))
        fail_msg("%s, %s, %u x %u x %u: row %u, output %u is %a, not %a", table->name,
                 dtype_info(p->dtype)->name, p->row_count, p->n_count, p->k_count, r, n, value,
                 sum);
}

static void check_table(const struct cpu_kernels *table, const struct problem *p, void *scratch,
                        void *pack)
{
    static float together[ROWS_MAX * N_MAX], apart[ROWS_MAX * N_MAX];
    const bool packs =
        table->packed_bytes != NULL && table->packed_bytes(p->dtype, p->k_count) > 0;

    multiply(table, p, 0, p->row_count, packs, together, scratch, pack);
    for (uint32_t r = 0; r < p->row_count; r++) {
        for (uint32_t n = 0; n < N_MAX; n += 1 + (r + n) % 3) {
            if (n < p->n_count)
                check_value(table, p, r, n, together[r * N_MAX + n]);
            else
                assert_true(together[r * N_MAX + n] == (float)n);
        }
    }
    for (uint32_t r = 0, count; r < p->row_count; r += count) { /* 1, 2, 3, ... at a time */
        const uint32_t left = p->row_count - r;
        count = r % 7 + 1 < left ? r % 7 + 1 : left;
        multiply(table, p, r, count, packs && r % 2 == 0, apart, scratch, pack);
        assert_memory_equal(apart, together + (size_t)r * N_MAX,
                            (size_t)count * N_MAX * sizeof(float));
    }
}

/* F32 rows that lie anywhere: the same bits as those of a matrix. */
static void check_apart(const struct cpu_kernels *table, const struct problem *p, void *scratch)
{
    static float together[ROWS_MAX * N_MAX], apart[ROWS_MAX * N_MAX];
    const float *x_rows[ROWS_MAX], *weight_rows[N_MAX];
    struct cpu_strip strip = {
        .out = together, .x_rows = x_rows, .weight = p->weight, .weight_dtype = DTYPE_F32,
        .row_count = p->row_count, .n_count = p->n_count, .k_count = p->k_count,
        .out_row_stride = N_MAX, .weight_row_stride = p->k_count,
    };

    for (uint32_t r = 0; r < p->row_count; r++)
        x_rows[r] = p->x + (size_t)r * p->k_count;
    for (uint32_t n = 0; n < p->n_count; n++)
        weight_rows[n] = (const float *)(const void *)p->weight + (size_t)n * p->k_count;
    table->matmul(&strip, scratch);
    strip.out = apart;
    strip.weight = NULL;
    strip.weight_row_stride = 0;
    strip.weight_rows = weight_rows;
    table->matmul(&strip, scratch);
    for (uint32_t r = 0; r < p->row_count; r++)
        assert_memory_equal(apart + (size_t)r * N_MAX, together + (size_t)r * N_MAX,
                            p->n_count * sizeof(float));
}

/* The same bits with woven weights, where the table takes them and they fit. */
static void check_woven(const struct cpu_kernels *table, struct problem *p, void *scratch,
                        void *pack)
{
    static float plain[ROWS_MAX * N_MAX], woven[ROWS_MAX * N_MAX];

    if (!table->woven_half || !layout_fits(LAYOUT_ROWS_16, p->dtype, p->n_count, p->k_count))
        return;
    multiply(table, p, 0, p->row_count, false, plain, scratch, pack);
    memcpy(p->woven, p->weight, sizeof(p->woven));
    layout_finish(LAYOUT_ROWS_16, p->woven, p->dtype, 1, p->n_count, p->k_count, scratch);
    p->layout = LAYOUT_ROWS_16;
    multiply(table, p, 0, p->row_count, false, woven, scratch, pack);
    assert_memory_equal(plain, woven, (size_t)p->row_count * N_MAX * sizeof(float));
    check_table(table, p, scratch, pack);
    p->layout = LAYOUT_ND;
}

static void a_row_has_the_same_bits_alone(void **state)
{
    static const uint32_t shapes[][3] = {
        { 1, 1, 1 },    { 3, 16, 32 },  { 5, 31, 64 },   { 6, 33, 31 },   { 16, 48, 96 },
        { 17, 83, 40 }, { 25, 64, 160 }, { 50, 80, 416 }, { 7, 17, 4200 }, { 33, 20, 4128 },
        { 49, 29, 4150 }, { 8, 64, 2048 }, { 3, 16, K_LONG },
    };
    static const enum dtype dtypes[] = { DTYPE_F32, DTYPE_F16, DTYPE_BF16 };
    const struct cpu_kernels *tables[CPU_KERNELS_MAX];
    const uint32_t table_count = cpu_kernels_list(tables);
    void *scratch = aligned_alloc(64, CPU_STRIP_SCRATCH_BYTES);
    void *pack = aligned_alloc(64, PACK_BYTES);
    static struct problem p;
    uint64_t random = 88172645463325252u;

    (void)state;
    assert_non_null(scratch);
    assert_non_null(pack);
    for (uint32_t i = 0; i < 3 * sizeof(shapes) / sizeof(shapes[0]); i++) {
        p.dtype = dtypes[i % 3];
        p.row_count = shapes[i / 3][0];
        p.n_count = shapes[i / 3][1];
        p.k_count = shapes[i / 3][2];
        p.bias = i % 4 == 0;
        p.accumulate = i % 5 == 0;
        fill(&p, &random);
        for (uint32_t t = 0; t < table_count; t++) {
            check_table(tables[t], &p, scratch, pack);
            check_woven(tables[t], &p, scratch, pack);
            if (p.dtype == DTYPE_F32)
                check_apart(tables[t], &p, scratch);
        }
    }
    free(pack);
    free(scratch);
}

/* With x rounded to BF16: what the others make of x that needs no rounding, and of any x what the
 * same table makes of it rounded. */
static void x_is_rounded_to_bf16(void **state)
{
    static const uint32_t shapes[][3] = {
        { 1, 1, 2 }, { 3, 16, 32 }, { 5, 31, 62 }, { 17, 83, 40 }, { 50, 80, 418 },
        { 7, 17, 4200 }, { 49, 29, 4150 }, { 9, 5, 31 },
    };
    const struct cpu_kernels *table = cpu_kernels_select_bf16();
    void *scratch, *pack;
    static float rounded[ROWS_MAX * N_MAX], given[ROWS_MAX * N_MAX];
    static struct problem p;
    uint64_t random = 88172645463325252u;

    (void)state;
    if (table == NULL)
        skip();
    scratch = aligned_alloc(64, CPU_STRIP_SCRATCH_BYTES);
    pack = aligned_alloc(64, PACK_BYTES);
    assert_non_null(scratch);
    assert_non_null(pack);
    p.dtype = DTYPE_BF16;
    for (uint32_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        p.row_count = shapes[i][0];
        p.n_count = shapes[i][1];
        p.k_count = shapes[i][2];
        p.bias = i % 4 == 0;
        p.accumulate = i % 5 == 0;
        fill(&p, &random);
        multiply(table, &p, 0, p.row_count, false, given, scratch, pack);
        for (uint32_t at = 0; at < p.row_count * p.k_count && p.k_count % 2 == 0; at++) {
            uint16_t half;
            dtype_convert(&half, DTYPE_BF16, &p.x[at], DTYPE_F32, 1);
            dtype_convert(&p.x[at], DTYPE_F32, &half, DTYPE_BF16, 1);
        }
        multiply(table, &p, 0, p.row_count, false, rounded, scratch, pack);
        assert_memory_equal(given, rounded, (size_t)p.row_count * N_MAX * sizeof(float));
        check_table(table, &p, scratch, pack);
    }
    free(pack);
    free(scratch);
}

/* Every F16 number, alone in a row with x = 1 where it is and 0 elsewhere. `beside` is next to it:
 * a number that may make a table take another way. */
static void check_f16_numbers(const struct cpu_kernels *table, float beside, void *scratch)
{
    enum { ROWS = 64, K = 40 };
    static uint16_t weights[ROWS * K];
    static float x[K], out[ROWS];
    const float *rows[1] = { x };
    const struct cpu_strip strip = {
        .out = out, .x_rows = rows, .weight = weights, .weight_dtype = DTYPE_F16, .row_count = 1,
        .n_count = ROWS, .k_count = K, .out_row_stride = ROWS, .weight_row_stride = K,
    };

    for (uint32_t first = 0; first < 65536; first += ROWS) {
        const uint32_t at = first / ROWS % K;
        memset(weights, 0, sizeof(weights));
        memset(x, 0, sizeof(x));
        x[at] = 1;
        for (uint32_t n = 0; n < ROWS; n++) {
            weights[n * K + at] = (uint16_t)(first + n);
            dtype_convert(&weights[n * K + (at ^ 1)], DTYPE_F16, &beside, DTYPE_F32, 1);
        }
        table->matmul(&strip, scratch);
        for (uint32_t n = 0; n < ROWS; n++) {
            float value;
            dtype_convert(&value, DTYPE_F32, &weights[n * K + at], DTYPE_F16, 1);
            if (isfinite(value) ? out[n] != value : isfinite(out[n]))
                fail_msg("%s: %a beside %a is %a", table->name, value, beside, out[n]);
        }
    }
}

static void no_f16_number_is_rounded(void **state)
{
    const struct cpu_kernels *tables[CPU_KERNELS_MAX];
    const uint32_t table_count = cpu_kernels_list(tables);
    void *scratch = aligned_alloc(64, CPU_STRIP_SCRATCH_BYTES);

    (void)state;
    assert_non_null(scratch);
    for (uint32_t t = 0; t < table_count; t++) {
        check_f16_numbers(tables[t], 0, scratch);
        check_f16_numbers(tables[t], 0.75f, scratch);
        check_f16_numbers(tables[t], -1000, scratch);
    }
    free(scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_row_has_the_same_bits_alone),
        cmocka_unit_test(x_is_rounded_to_bf16),
        cmocka_unit_test(no_f16_number_is_rounded),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
