/* device/cpu/f8_test.c - kernels for F8_E4M3 weights, in blocks of both sizes: right to the last
 * bit in every table.
 *
 * Method: as in quant_test.c. What kernels.h states is computed here element by element, from
 * E4M3's values as ldexp makes them; every table that this processor can run must give these bits,
 * for all shapes of tiles. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "device/cpu/kernels.h"
#include "tensor/testing.h"

enum { ROWS_MAX = 20, N_MAX = 37, BLOCKS_MAX = 3, K_MAX = BLOCKS_MAX * QUANT_F8_ELEMENTS,
       STRIDE = N_MAX + 1, LANES = 16 };

static const enum dtype dtypes[] = { DTYPE_F8_E4M3, DTYPE_F8_E4M3_16 };

struct problem {
    enum dtype dtype;
    uint32_t row_count, n_count, block_count;
    bool bias, accumulate;
    uint8_t weight[N_MAX * BLOCKS_MAX * QUANT_F8_BYTES];
    float x[ROWS_MAX][K_MAX], biases[N_MAX];
};

/* Of all bytes but NaN's. */
static float e4m3(uint8_t byte)
{
    const int exponent = byte >> 3 & 15, mantissa = byte & 7;
    const float magnitude = exponent == 0 ? ldexpf((float)mantissa, -9)
                                          : ldexpf((float)(8 + mantissa), exponent - 10);

    return (byte & 0x80) != 0 ? -magnitude : magnitude;
}

static float wanted_sum(enum dtype dtype, const uint8_t *row, const float *x, uint32_t block_count)
{
    const struct dtype_info *info = dtype_info(dtype);
    float lanes[LANES] = { 0 };

    for (uint32_t b = 0; b < block_count;
         b++, row += info->block_bytes, x += info->block_elements) {
        float scale, parts[LANES] = { 0 };
        memcpy(&scale, row, sizeof(scale));
        for (uint32_t i = 0; i < info->block_elements; i++)
            parts[i % LANES] = fmaf(x[i], e4m3(row[4 + i]) / 256, parts[i % LANES]);
        for (uint32_t l = 0; l < LANES; l++)
            lanes[l] = fmaf(parts[l], 256 * scale, lanes[l]);
    }
    for (uint32_t l = 0; l < LANES / 2; l++)
        lanes[l] += lanes[l + LANES / 2];
    return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
           ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

static void fill(struct problem *p, uint64_t *state)
{
    testing_blocks(p->weight, p->dtype,
                   (uint64_t)p->n_count * p->block_count * dtype_info(p->dtype)->block_elements,
                   state);
    for (size_t i = 0; i < (size_t)ROWS_MAX * K_MAX; i++)
        p->x[i / K_MAX][i % K_MAX] = (float)((int32_t)testing_bits(state) * 0x1p-31);
    for (size_t n = 0; n < N_MAX; n++)
        p->biases[n] = (float)((int32_t)testing_bits(state) * 0x1p-31);
}

static void check_table(const struct cpu_kernels *table, const struct problem *p, void *scratch)
{
    const uint32_t k_count = p->block_count * dtype_info(p->dtype)->block_elements;
    const uint64_t row_bytes = dtype_row_bytes(p->dtype, k_count);
    const float *x[ROWS_MAX];
    float out[ROWS_MAX * STRIDE];
    const struct cpu_strip strip = {
        .out = out, .x_rows = x, .weight = p->weight, .bias = p->bias ? p->biases : NULL,
        .weight_dtype = p->dtype, .row_count = p->row_count, .n_count = p->n_count,
        .k_count = k_count, .out_row_stride = STRIDE, .weight_row_stride = k_count,
        .accumulate = p->accumulate,
    };

    for (size_t i = 0; i < ROWS_MAX * STRIDE; i++)
        out[i] = (float)i;
    for (uint32_t r = 0; r < p->row_count; r++)
        x[r] = p->x[r];
    table->matmul_f8(&strip, scratch);
    for (uint32_t i = 0; i < ROWS_MAX * STRIDE; i++) {
        const uint32_t r = i / STRIDE, n = i % STRIDE;
        float wanted = (float)i;
        if (r < p->row_count && n < p->n_count) {
            float sum = wanted_sum(p->dtype, p->weight + n * row_bytes, p->x[r], p->block_count);
            if (p->bias)
                sum += p->biases[n];
            wanted = p->accumulate ? wanted + sum : sum;
        }
        if (memcmp((const void *)&out[i], (const void *)&wanted, sizeof(wanted)) != 0)
            fail_msg("%s, %s, %u x %u x %u: row %u, output %u is %a, not %a", table->name,
                     dtype_info(p->dtype)->name, p->row_count, p->n_count, p->block_count, r, n,
                     out[i], wanted);
    }
}

static void every_table_gives_the_same_bits(void **state)
{
    static const uint32_t n_counts[] = { 1, 2, 7, 24, N_MAX };
    const struct cpu_kernels *tables[CPU_KERNELS_MAX];
    const uint32_t table_count = cpu_kernels_list(tables);
    void *scratch = aligned_alloc(64, CPU_STRIP_SCRATCH_BYTES);
    uint64_t random = 88172645463325252u;

    (void)state;
    assert_non_null(scratch);
    for (uint32_t i = 0; i < 2 * ROWS_MAX * 5 * BLOCKS_MAX; i++) {
        static struct problem p;
        p.dtype = dtypes[i / (ROWS_MAX * 5 * BLOCKS_MAX)];
        p.row_count = 1 + i % ROWS_MAX;
        p.n_count = n_counts[i / ROWS_MAX % 5];
        p.block_count = 1 + i / ROWS_MAX / 5 % BLOCKS_MAX;
        p.bias = i % 3 == 0;
        p.accumulate = i % 5 < 2;
        fill(&p, &random);
        for (uint32_t t = 0; t < table_count; t++)
            check_table(tables[t], &p, scratch);
    }
    free(scratch);
}

/* Rows so long that a panel has fewer rows than usual, and that it has none: sums are the same. */
static void long_rows_give_the_same_bits(void **state)
{
    static const uint32_t k_counts[] = { 20480, 65536 };
    const struct cpu_kernels *tables[CPU_KERNELS_MAX];
    const uint32_t table_count = cpu_kernels_list(tables);
    enum { N = 9, ROWS = 9, LONGEST = 65536 };
    void *scratch = aligned_alloc(64, CPU_STRIP_SCRATCH_BYTES);
    uint8_t *weight = malloc(dtype_row_bytes(DTYPE_F8_E4M3_16, (uint64_t)N * LONGEST));
    float *values = malloc(LONGEST * sizeof(*values));
    uint64_t random = 2463534242;

    (void)state;
    assert_true(scratch != NULL && weight != NULL && values != NULL);
    for (uint32_t i = 0; i < LONGEST; i++)
        values[i] = (float)((int32_t)testing_bits(&random) * 0x1p-31);
    for (uint32_t i = 0; i < 2 * 2 * table_count; i++) {
        const enum dtype dtype = dtypes[i / 2 % 2];
        const uint32_t k_count = k_counts[i % 2];
        const float *x[ROWS];
        float out[ROWS * N];
        const struct cpu_strip strip = {
            .out = out, .x_rows = x, .weight = weight, .weight_dtype = dtype,
            .row_count = ROWS, .n_count = N, .k_count = k_count, .out_row_stride = N,
            .weight_row_stride = k_count,
        };
        testing_blocks(weight, dtype, (uint64_t)N * k_count, &random);
        for (uint32_t r = 0; r < ROWS; r++)
            x[r] = values;
        tables[i / 4]->matmul_f8(&strip, scratch);
        for (uint32_t n = 0; n < N; n++) {
            const float wanted =
                wanted_sum(dtype, weight + n * dtype_row_bytes(dtype, k_count), values,
                           k_count / dtype_info(dtype)->block_elements);
            for (uint32_t r = 0; r < ROWS; r++)
                assert_memory_equal(&out[r * N + n], &wanted, sizeof(wanted));
        }
    }
    free(values);
    free(weight);
    free(scratch);
}

/* All 254 numbers, by the conversion that loading and embedding use. */
static void every_byte_has_its_value(void **state)
{
    uint8_t blocks[2 * QUANT_F8_BYTES];
    float values[2 * QUANT_F8_ELEMENTS];
    const float scale = 0.75f;

    (void)state;
    for (uint32_t i = 0; i < 256; i++)
        blocks[i / 128 * QUANT_F8_BYTES + 4 + i % 128] = (uint8_t)i;
    memcpy(blocks, &scale, sizeof(scale));
    memcpy(blocks + QUANT_F8_BYTES, &scale, sizeof(scale));
    dtype_convert(values, DTYPE_F32, blocks, DTYPE_F8_E4M3, 256);
    for (uint32_t i = 0; i < 256; i++)
        if ((i & 0x7F) != 0x7F)
            assert_true(values[i] == e4m3((uint8_t)i) * scale);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_table_gives_the_same_bits),
        cmocka_unit_test(long_rows_give_the_same_bits),
        cmocka_unit_test(every_byte_has_its_value),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
