/* tensor/quant_test.c - quantised blocks against the package gguf, bit for bit.
 *
 * Method: tests/golden/quant, made by tools/make_quant_goldens.py, holds values, what gguf makes of
 * them, and what it makes of blocks of random bits. */
#include <ctype.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "tensor/dtype.h"
#include "tensor/quant.h"
#include "tensor/testing.h"

enum { VALUE_BLOCKS = 24, BLOCKS = VALUE_BLOCKS + 12, ELEMENTS = BLOCKS * 32 };

static const struct {
    enum dtype dtype;
    const char *file;
} types[] = { { DTYPE_Q8_0, "q8_0" }, { DTYPE_Q4_0, "q4_0" } };
static const enum dtype random_types[] = {
    DTYPE_Q4_1, DTYPE_Q5_0, DTYPE_Q5_1, DTYPE_IQ4_NL, DTYPE_MXFP4,  DTYPE_Q2_K,
    DTYPE_Q3_K, DTYPE_Q4_K, DTYPE_Q5_K, DTYPE_Q6_K,   DTYPE_IQ4_XS,
};
#define RANDOM_TYPE_COUNT (sizeof(random_types) / sizeof(random_types[0]))
#define TYPE_COUNT (sizeof(types) / sizeof(types[0]))

/* Exactly size_bytes of a golden file. */
static void read_golden(const char *name, const char *suffix, void *out, size_t size_bytes)
{
    char path[96];
    FILE *file;

    (void)snprintf(path, sizeof(path), "tests/golden/quant/%s.%s", name, suffix);
    file = fopen(path, "rb");
    if (file == NULL)
        fail_msg("%s: cannot be opened", path);
    assert_int_equal(fread(out, 1, size_bytes, file), size_bytes);
    assert_int_equal(fgetc(file), EOF);
    (void)fclose(file);
}

static void blocks_are_widened_as_gguf_does(void **state)
{
    (void)state;
    for (size_t t = 0; t < TYPE_COUNT; t++) {
        uint8_t blocks[BLOCKS * QUANT_Q8_0_BYTES];
        float wanted[ELEMENTS], got[ELEMENTS];
        read_golden(types[t].file, "blocks", blocks, dtype_row_bytes(types[t].dtype, ELEMENTS));
        read_golden(types[t].file, "f32", wanted, sizeof(wanted));
        dtype_convert(got, DTYPE_F32, blocks, types[t].dtype, ELEMENTS);
        for (size_t i = 0; i < ELEMENTS; i++)
            if (!(isnan(got[i]) && isnan(wanted[i])))
                assert_memory_equal(&got[i], &wanted[i], sizeof(float));
    }
}

/* The same of types that nothing is turned into; also what a run says of itself is true. */
static void random_blocks_are_widened_as_gguf_does(void **state)
{
    enum { COUNT = 768 };

    (void)state;
    for (size_t t = 0; t < RANDOM_TYPE_COUNT; t++) {
        const enum dtype dtype = random_types[t];
        uint8_t blocks[2 * COUNT];
        float wanted[COUNT], got[COUNT];
        char name[16] = "";
        for (size_t i = 0; dtype_info(dtype)->name[i] != 0; i++)
            name[i] = (char)tolower(dtype_info(dtype)->name[i]);
        read_golden(name, "blocks", blocks, dtype_row_bytes(dtype, COUNT));
        read_golden(name, "f32", wanted, sizeof(wanted));
        dtype_convert(got, DTYPE_F32, blocks, dtype, COUNT);
        for (size_t i = 0; i < COUNT; i++)
            if (memcmp((const void *)&got[i], (const void *)&wanted[i], sizeof(float)) != 0)
                fail_msg("%s: element %zu is %a, gguf has %a", name, i, got[i], wanted[i]);
        for (size_t r = 0; r < COUNT / 32; r++) {
            const uint32_t runs = quant_runs_per_block(dtype);
            struct quant_run run;
            quant_run_read(&run, dtype, blocks + r / runs * dtype_info(dtype)->block_bytes,
                           r % runs);
            assert_true(quant_has_mins(dtype) || (run.mins[0] == 0 && run.mins[1] == 0));
            assert_true(quant_has_two_scales(dtype) ||
                        (run.scales[0] == run.scales[1] && run.mins[0] == run.mins[1]));
            for (size_t i = 0; i < 32; i++)
                assert_in_range(run.q[i] + quant_offset(dtype), 0, 255);
        }
    }
}

static void values_are_quantised_as_gguf_does(void **state)
{
    float values[VALUE_BLOCKS * 32];

    (void)state;
    read_golden("values", "f32", values, sizeof(values));
    for (size_t t = 0; t < TYPE_COUNT; t++) {
        const size_t size_bytes = dtype_row_bytes(types[t].dtype, VALUE_BLOCKS * 32);
        uint8_t wanted[BLOCKS * QUANT_Q8_0_BYTES], got[BLOCKS * QUANT_Q8_0_BYTES];
        read_golden(types[t].file, "blocks", wanted, dtype_row_bytes(types[t].dtype, ELEMENTS));
        memset(got, 0xA5, sizeof(got));
        dtype_convert(got, types[t].dtype, values, DTYPE_F32, VALUE_BLOCKS * 32);
        assert_memory_equal(got, wanted, size_bytes);
        assert_int_equal(got[size_bytes], 0xA5);
    }
}

/* Normal values, nearly: the sum of four uniform ones. */
static void random_values(float *values, size_t count, uint64_t *state)
{
    for (size_t i = 0; i < count; i++) {
        float sum = 0;
        for (size_t j = 0; j < 4; j++)
            sum += (float)(testing_bits(state) >> 40) * 0x1p-24f - 0.5f;
        values[i] = sum * 1.7320508f;
    }
}

/* Root mean square of what dtype loses, in that of the values themselves. */
static double loss_of(enum dtype dtype, const float *values, size_t count)
{
    uint8_t blocks[16 * 256];
    float back[16 * 256];
    double lost = 0, all = 0;

    assert_true(count <= sizeof(back) / sizeof(back[0]));
    dtype_convert(blocks, dtype, values, DTYPE_F32, count);
    dtype_convert(back, DTYPE_F32, blocks, dtype, count);
    for (size_t i = 0; i < count; i++) {
        lost += ((double)back[i] - (double)values[i]) * ((double)back[i] - (double)values[i]);
        all += (double)values[i] * (double)values[i];
    }
    return sqrt(lost / all);
}

/* What is lost of such values in each type, at most. ggml's quantisers lose 2 to 15 % more
 * (docs/fidelity.md), and would not pass. */
static const struct {
    enum dtype dtype;
    double loss;
} k_types[] = {
    { DTYPE_Q2_K, 0.260 }, { DTYPE_Q3_K, 0.138 }, { DTYPE_Q4_K, 0.0675 },
    { DTYPE_Q5_K, 0.0332 }, { DTYPE_Q6_K, 0.0166 },
};
#define K_TYPE_COUNT (sizeof(k_types) / sizeof(k_types[0]))

static void k_types_lose_little(void **state)
{
    enum { COUNT = 16 * 256 };
    uint64_t random = 20260101;
    static float values[COUNT];

    (void)state;
    random_values(values, COUNT, &random);
    for (size_t t = 0; t < K_TYPE_COUNT; t++) {
        const double loss = loss_of(k_types[t].dtype, values, COUNT);
        if (!(loss <= k_types[t].loss))
            fail_msg("%s loses %.5f", dtype_info(k_types[t].dtype)->name, loss);
    }
}

/* What a type can hold exactly comes back nearly so: groups of one value, and values on a grid. */
static void k_types_keep_what_they_can_hold(void **state)
{
    (void)state;
    for (size_t t = 0; t < K_TYPE_COUNT; t++) {
        static const float constants[] = { 0.0f, 1.0f, -3.25f, 0.5f, 2000.0f };
        float values[256];
        for (size_t c = 0; c < sizeof(constants) / sizeof(constants[0]); c++) {
            for (size_t i = 0; i < 256; i++)
                values[i] = constants[c];
            if (constants[c] != 0.0f)
                assert_true(loss_of(k_types[t].dtype, values, 256) < 2e-3);
        }
        for (size_t i = 0; i < 256; i++) /* four steps of one size, minimum and all */
            values[i] = (float)(i * 7 % 4) * 0.5f - 1.0f;
        if (k_types[t].dtype != DTYPE_Q3_K)
            assert_true(loss_of(k_types[t].dtype, values, 256) < 5e-3);
    }
}

/* What has no meaning still gives finite numbers, NaN is 0 among zeros, and all is repeatable. */
static void k_types_take_garbage(void **state)
{
    static const float garbage[] = { NAN, INFINITY, -INFINITY, 1e-45f, -1e-39f, 3e38f, -0.0f, 1 };

    (void)state;
    for (size_t t = 0; t < K_TYPE_COUNT; t++)
        for (size_t first = 0; first < 8; first++)
            for (size_t step = 0; step < 8; step++) {
                float values[256], back[256];
                uint8_t blocks[256], again[256];
                for (size_t i = 0; i < 256; i++)
                    values[i] = garbage[(first + i * step) % 8];
                quant_k_from_f32(blocks, k_types[t].dtype, values, 1);
                quant_k_from_f32(again, k_types[t].dtype, values, 1);
                assert_memory_equal(blocks, again, dtype_info(k_types[t].dtype)->block_bytes);
                quant_to_f32(back, k_types[t].dtype, blocks, 1);
                for (size_t i = 0; i < 256; i++)
                    assert_true(isfinite(back[i]));
                if (step == 0 && isnan(garbage[first]))
                    assert_true(back[0] == 0.0f);
            }
}

/* Every pair of types with a quantised one goes the way over F32, in runs longer than one step. */
static void other_types_go_through_f32(void **state)
{
    static const enum dtype dtypes[] = { DTYPE_F16, DTYPE_BF16, DTYPE_Q8_0, DTYPE_Q4_0 };
    float values[VALUE_BLOCKS * 32], between[VALUE_BLOCKS * 32];
    uint8_t from[sizeof(values)], got[sizeof(values)], wanted[sizeof(values)];

    (void)state;
    read_golden("values", "f32", values, sizeof(values));
    for (size_t i = 0; i < 16; i++) {
        const enum dtype src = dtypes[i / 4], dst = dtypes[i % 4];
        for (size_t count = 0; count <= VALUE_BLOCKS * 32; count += 32) {
            if (src == dst)
                continue;
            memset(got, 0xA5, sizeof(got));
            dtype_convert(from, src, values, DTYPE_F32, count);
            dtype_convert(got, dst, from, src, count);
            dtype_convert(between, DTYPE_F32, from, src, count);
            dtype_convert(wanted, dst, between, DTYPE_F32, count);
            assert_memory_equal(got, wanted, dtype_row_bytes(dst, count));
            assert_int_equal(got[dtype_row_bytes(dst, count)], 0xA5);
        }
    }
}

/* What has no meaning still gives a block, with every q in its range. */
static void garbage_gives_a_block(void **state)
{
    static const float garbage[] = { NAN, INFINITY, -INFINITY, 1e-45f, -1e-39f, 3e38f, -0.0f, 1 };

    (void)state;
    for (size_t first = 0; first < 8; first++)
        for (size_t step = 0; step < 8; step++) {
            float values[32];
            uint8_t q8_0[QUANT_Q8_0_BYTES], q4_0[QUANT_Q4_0_BYTES];
            for (size_t i = 0; i < 32; i++)
                values[i] = garbage[(first + i * step) % 8];
            quant_q8_0_from_f32(q8_0, values, 1);
            quant_q4_0_from_f32(q4_0, values, 1);
            for (size_t i = 0; i < 32; i++) {
                assert_int_not_equal((int8_t)q8_0[2 + i], -128);
                if (isnan(values[i]))
                    assert_int_equal((int8_t)q8_0[2 + i], 0);
            }
        }
}

static void names_are_parsed(void **state)
{
    enum dtype dtype;

    (void)state;
    assert_true(dtype_parse("q8_0", &dtype));
    assert_int_equal(dtype, DTYPE_Q8_0);
    assert_true(dtype_parse("Q4_0", &dtype));
    assert_int_equal(dtype, DTYPE_Q4_0);
    assert_false(dtype_parse("Q4", &dtype));
    assert_true(dtype_parse("bfloat16", &dtype));
    assert_int_equal(dtype, DTYPE_BF16);
    for (unsigned i = 0; i < DTYPE_COUNT; i++) {
        assert_true(dtype_parse(dtype_info((enum dtype)i)->name, &dtype));
        assert_int_equal(dtype, i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_are_widened_as_gguf_does),
        cmocka_unit_test(random_blocks_are_widened_as_gguf_does),
        cmocka_unit_test(values_are_quantised_as_gguf_does),
        cmocka_unit_test(k_types_lose_little),
        cmocka_unit_test(k_types_keep_what_they_can_hold),
        cmocka_unit_test(k_types_take_garbage),
        cmocka_unit_test(other_types_go_through_f32),
        cmocka_unit_test(garbage_gives_a_block),
        cmocka_unit_test(names_are_parsed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
