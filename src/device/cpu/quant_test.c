/* device/cpu/quant_test.c - kernels for quantised weights: right to the last bit in every table.
 *
 * Method: what kernels.h states is computed here element by element, products in integers and sums
 * by fma; every table that this processor can run must give these bits, for all shapes of tiles and
 * for blocks of extreme values. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "device/cpu/kernels.h"

enum { BLOCK = CPU_QUANT_BLOCK_ELEMENTS, ROWS_MAX = 34, N_MAX = 53, RUNS_MAX = 24,
       ROW_BYTES_MAX = RUNS_MAX * 34 };

static const enum dtype dtypes[] = {
    DTYPE_Q8_0, DTYPE_Q4_0, DTYPE_Q4_1, DTYPE_Q5_0, DTYPE_Q5_1, DTYPE_IQ4_NL, DTYPE_MXFP4,
    DTYPE_Q2_K, DTYPE_Q3_K, DTYPE_Q4_K, DTYPE_Q5_K, DTYPE_Q6_K, DTYPE_IQ4_XS, DTYPE_INT4,
};
enum { DTYPES = sizeof(dtypes) / sizeof(dtypes[0]) };

static uint64_t random_bits(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static float wanted_sum(const uint8_t *row, enum dtype dtype, const struct cpu_quant_block *x,
                        uint32_t run_count)
{
    const uint32_t runs = quant_runs_per_block(dtype);
    const uint32_t length = quant_has_two_scales(dtype) ? BLOCK / 2 : BLOCK;
    float sum = 0;

    for (uint32_t b = 0; b < run_count; b++) {
        struct quant_run run;
        quant_run_read(&run, dtype, row + b / runs * dtype_info(dtype)->block_bytes, b % runs);
        for (uint32_t first = 0; first < BLOCK; first += length) {
            const uint32_t half = first * 2 / BLOCK;
            int32_t dot = 0, x_sum = 0;
            for (uint32_t i = first; i < first + length; i++) {
                dot += run.q[i] * x[b].q[i];
                x_sum += x[b].q[i];
            }
            sum = fmaf((float)dot, x[b].scale * run.scales[half], sum);
            if (quant_has_mins(dtype))
                sum = fmaf(x[b].scale * (float)x_sum, run.mins[half], sum);
        }
    }
    return sum;
}

struct problem {
    enum dtype dtype;
    uint32_t row_count, n_count, run_count;
    bool bias, accumulate;
    uint8_t weight[N_MAX * ROW_BYTES_MAX];
    struct cpu_quant_block x[ROWS_MAX][RUNS_MAX];
    float biases[N_MAX];
};

/* Where a block of the type has F16 numbers; the second may be the first. */
static void find_factors(enum dtype dtype, uint32_t places_out[2])
{
    const uint32_t size = dtype_info(dtype)->block_bytes;

    places_out[0] = places_out[1] = 0;
    if (dtype == DTYPE_Q2_K || dtype == DTYPE_Q3_K || dtype == DTYPE_Q6_K)
        places_out[0] = places_out[1] = size - 2;
    if (dtype == DTYPE_Q2_K)
        places_out[0] -= 2;
    else if (quant_has_mins(dtype))
        places_out[1] = 2;
}

static void fill_x(struct problem *p, uint64_t *state)
{
    for (size_t i = 0; i < (size_t)ROWS_MAX * RUNS_MAX; i++) {
        struct cpu_quant_block *block = &p->x[i / RUNS_MAX][i % RUNS_MAX];
        int16_t sums[2] = { 0, 0 };
        block->scale = (float)(random_bits(state) >> 40) * 0x1p-30f;
        for (uint32_t e = 0; e < BLOCK; e++) {
            block->q[e] = (int8_t)((int32_t)(random_bits(state) >> 32) % 128);
            if (i % 4 == 0)
                block->q[e] = i % 8 == 0 ? 127 : -127;
            sums[e / 16] = (int16_t)(sums[e / 16] + block->q[e]);
        }
        memcpy(block->sums, sums, sizeof(sums));
        block->scaled_sum = block->scale * (float)(sums[0] + sums[1]);
    }
}

/* Blocks as they may be: any bytes but scales that are finite; extremes in some. */
static void fill(struct problem *p, uint64_t *state)
{
    const uint32_t block_bytes = dtype_info(p->dtype)->block_bytes;
    const uint32_t block_count = p->n_count * p->run_count / quant_runs_per_block(p->dtype);
    uint32_t factors[2];

    find_factors(p->dtype, factors);
    for (size_t i = 0; i < sizeof(p->weight); i++)
        p->weight[i] = (uint8_t)(random_bits(state) >> 32);
    for (size_t b = 0; b < block_count; b++) {
        uint8_t *block = p->weight + b * block_bytes;
        if (b % 3 == 0)
            memset(block, b % 2 == 0 ? 0x80 : 0xFF, block_bytes);
        for (size_t i = 0; i < 2 && p->dtype != DTYPE_MXFP4; i++)
            block[factors[i] + 1] = (uint8_t)((block[factors[i] + 1] & 0x83) | 0x20);
        if (p->dtype == DTYPE_MXFP4)
            block[0] = (uint8_t)(block[0] % 32 + 112);
    }
    fill_x(p, state);
    for (size_t n = 0; n < N_MAX; n++)
        p->biases[n] = (float)(random_bits(state) >> 40) * 0x1p-24f;
}

static void check_table(const struct cpu_kernels *table, const struct problem *p,
                        const uint8_t *weight, enum layout layout, void *scratch)
{
    enum { STRIDE = N_MAX + 1 };
    const uint64_t row_bytes = dtype_row_bytes(p->dtype, p->run_count * BLOCK);
    const struct cpu_quant_block *x[ROWS_MAX];
    float out[ROWS_MAX * STRIDE];
    const struct cpu_strip strip = {
        .out = out, .x_blocks = x, .weight = weight, .weight_layout = layout,
        .bias = p->bias ? p->biases : NULL,
        .weight_dtype = p->dtype, .row_count = p->row_count, .n_count = p->n_count,
        .k_count = p->run_count * BLOCK, .out_row_stride = STRIDE,
        .weight_row_stride = p->run_count * BLOCK, .accumulate = p->accumulate,
    };

    for (size_t i = 0; i < ROWS_MAX * STRIDE; i++)
        out[i] = (float)i;
    for (uint32_t r = 0; r < p->row_count; r++)
        x[r] = p->x[r];
    table->matmul_quant(&strip, scratch);
    for (uint32_t i = 0; i < ROWS_MAX * STRIDE; i++) {
        const uint32_t r = i / STRIDE, n = i % STRIDE;
        float wanted = (float)i;
        uint32_t got_bits, wanted_bits;
        if (r < p->row_count && n < p->n_count) {
            float sum = wanted_sum(p->weight + n * row_bytes, p->dtype, p->x[r], p->run_count);
            if (p->bias)
                sum += p->biases[n];
            wanted = p->accumulate ? wanted + sum : sum;
        }
        memcpy(&got_bits, &out[i], sizeof(got_bits));
        memcpy(&wanted_bits, &wanted, sizeof(wanted_bits));
        if (got_bits != wanted_bits)
            fail_msg("%s, %s in %s, %u x %u x %u: row %u, output %u is %a, not %a", table->name,
                     dtype_info(p->dtype)->name, layout_name(layout), p->row_count, p->n_count,
                     p->run_count, r, n, out[i], wanted);
    }
}

/* In plain rows, and woven where the table takes them so and they fit. */
static void check_layouts(const struct cpu_kernels *table, const struct problem *p, void *scratch)
{
    const uint32_t k = p->run_count * BLOCK;
    const enum layout layout = table->woven_quant ? LAYOUT_ROWS_16 : LAYOUT_ND;
    static uint8_t weight[sizeof(p->weight)];

    check_table(table, p, p->weight, LAYOUT_ND, scratch);
    if (layout == LAYOUT_ND || !layout_fits(layout, p->dtype, p->n_count, k))
        return;
    memcpy(weight, p->weight, sizeof(weight));
    layout_finish(layout, weight, p->dtype, 1, p->n_count, k, scratch);
    check_table(table, p, weight, layout, scratch);
}

static void every_table_gives_the_same_bits(void **state)
{
    const struct cpu_kernels *tables[CPU_KERNELS_MAX];
    const uint32_t table_count = cpu_kernels_list(tables);
    void *scratch = aligned_alloc(64, CPU_STRIP_SCRATCH_BYTES);
    uint64_t random = 88172645463325252u;

    (void)state;
    assert_non_null(scratch);
    for (uint32_t i = 0; i < DTYPES * ROWS_MAX * 6; i++) {
        static const uint32_t n_counts[] = { 1, 8, 11, 24, 48, N_MAX };
        static struct problem p;
        const enum dtype dtype = dtypes[i % DTYPES];
        const uint32_t runs = quant_runs_per_block(dtype);
        p = (struct problem){ .dtype = dtype, .row_count = 1 + i / DTYPES % ROWS_MAX,
                              .n_count = n_counts[i / DTYPES / ROWS_MAX],
                              .run_count = runs * (1 + i % (runs == 1 ? 19 : 3)),
                              .bias = i % 3 == 0, .accumulate = i % 5 < 2 };
        fill(&p, &random);
        for (uint32_t t = 0; t < table_count; t++)
            check_layouts(tables[t], &p, scratch);
    }
    free(scratch);
}

/* Bits of every kind: small, large, subnormal, and in each 24th block one that is not finite. */
static float any_float(uint64_t *state, uint32_t block)
{
    const uint64_t bits = random_bits(state);
    const float value = (float)(int32_t)(bits >> 32) * 0x1p-31f;

    if (block % 24 == 7 && bits % 32 == 0)
        return block % 48 == 7 ? NAN : -INFINITY;
    if (block % 24 == 8)
        return value * 0x1p-110f;
    if (block % 24 == 9)
        return value * 0x1.fp127f;
    if (block % 24 == 10)
        return (float)((int32_t)(bits >> 32) % 255) / 2; /* halves: ties */
    return block % 24 == 11 ? 0 : ldexpf(value, (int)(block % 40) - 20);
}

static void check_block(const struct cpu_quant_block *block, const float *x)
{
    float largest = 0;
    int32_t sums[2] = { 0, 0 };
    bool finite = true;

    for (uint32_t i = 0; i < BLOCK; i++) {
        largest = fmaxf(largest, fabsf(x[i]));
        finite = finite && isfinite(x[i]);
        sums[i / 16] += block->q[i];
        assert_in_range(block->q[i] + 127, 0, 254);
    }
    assert_int_equal(block->sums[0], sums[0]);
    assert_int_equal(block->sums[1], sums[1]);
    assert_int_equal(isnan(block->scaled_sum), !finite);
    assert_true(!finite || block->scaled_sum == block->scale * (float)(sums[0] + sums[1]));
    assert_int_equal(isnan(block->scale), !finite);
    for (uint32_t i = 0; finite && i < BLOCK; i++) {
        const double error = fabs(x[i] - (double)block->scale * block->q[i]);
        assert_true(error <= largest / 254.0 * (1 + 1e-5) + 0x1p-100);
    }
}

static void every_table_quantises_alike(void **state)
{
    enum { BLOCKS = 480 };
    const struct cpu_kernels *tables[CPU_KERNELS_MAX];
    const uint32_t table_count = cpu_kernels_list(tables);
    static float x[BLOCKS * BLOCK];
    static struct cpu_quant_block blocks[CPU_KERNELS_MAX][BLOCKS];
    uint64_t random = 2463534242;

    (void)state;
    for (uint32_t i = 0; i < BLOCKS * BLOCK; i++)
        x[i] = any_float(&random, i / BLOCK);
    for (uint32_t t = 0; t < table_count; t++) {
        tables[t]->quantise(blocks[t], x, BLOCKS * BLOCK);
        assert_memory_equal(blocks[t], blocks[0], sizeof(blocks[0]));
    }
    for (uint32_t b = 0; b < BLOCKS; b++)
        check_block(&blocks[0][b], x + (size_t)b * BLOCK);
}

/* Elements of a cache: the numbers that dtype_convert makes of them, whatever the count, and
 * nothing behind. */
static void every_table_widens_alike(void **state)
{
    enum { COUNT = 4 * BLOCK };
    const struct cpu_kernels *tables[CPU_KERNELS_MAX];
    const uint32_t table_count = cpu_kernels_list(tables);
    _Alignas(uint16_t) uint8_t from[COUNT * 2];
    uint64_t random = 88172645463325252;

    (void)state;
    for (uint32_t round = 0; round < 400; round++) {
        const enum dtype dtype = round % 2 == 0 ? DTYPE_F16 : DTYPE_Q8_0;
        const uint32_t count = dtype == DTYPE_F16 ? 1 + round / 2 % COUNT
                                                  : BLOCK * (1 + round / 2 % 4);
        float out[COUNT + 1], wanted[COUNT];

        for (size_t i = 0; i < sizeof(from); i++)
            from[i] = (uint8_t)(random_bits(&random) >> 32);
        dtype_convert(wanted, DTYPE_F32, from, dtype, count);
        for (uint32_t t = 0; t < table_count; t++) {
            out[count] = 7;
            tables[t]->widen(out, dtype, from, count);
            for (uint32_t i = 0; i < count; i++)
                assert_true((out[i] == wanted[i] && signbit(out[i]) == signbit(wanted[i])) ||
                            (isnan(out[i]) && isnan(wanted[i])));
            assert_true(out[count] == 7);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_table_gives_the_same_bits),
        cmocka_unit_test(every_table_quantises_alike),
        cmocka_unit_test(every_table_widens_alike),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
