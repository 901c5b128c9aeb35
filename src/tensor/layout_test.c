/* tensor/layout_test.c - FRACTAL_NZ, against vectors of CANN's own tests and their formula.
 *
 * The vectors are those that CANN's conversion operators are tested with (ops-math,
 * conversion/trans_data/tests/assets/golden.py): a matrix whose element (row, col) is row * cols +
 * col. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "tensor/layout.h"
#include "tensor/tensor.h"

/* FRACTAL_NZ of [rows][cols], 16-bit. The caller frees it. */
static uint16_t *packed(uint64_t rows, uint64_t cols)
{
    const struct layout_matrix matrix = { rows, cols, cols, 1 };
    uint16_t *plain = calloc(rows * cols, sizeof(*plain));
    uint64_t dims[4];
    uint16_t *out;

    assert_non_null(plain);
    for (uint64_t i = 0; i < rows * cols; i++)
        plain[i] = (uint16_t)i;
    assert_true(layout_nz_dims(DTYPE_F16, rows, cols, dims));
    out = malloc(dims[0] * dims[1] * dims[2] * dims[3] * sizeof(*out));
    assert_non_null(out);
    memset(out, 0xa5, dims[0] * dims[1] * dims[2] * dims[3] * sizeof(*out));
    layout_nz_pack(out, plain, DTYPE_F16, &matrix);
    free(plain);
    return out;
}

static void whole_blocks_are_where_cann_has_them(void **state)
{
    uint16_t *out = packed(16, 32);

    (void)state;
    for (uint16_t i = 0; i < 16; i++)
        assert_int_equal(out[i], i);
    assert_int_equal(out[16], 32);
    assert_int_equal(out[256], 16);
    free(out);
}

static void parts_of_blocks_are_padded_with_zeros(void **state)
{
    uint16_t *out = packed(17, 17);

    (void)state;
    assert_int_equal(out[256], 16 * 17);
    for (uint16_t i = 1; i < 16; i++)
        assert_int_equal(out[256 + i], 16 * 17 + i);
    assert_int_equal(out[272], 0);
    assert_int_equal(out[512], 16);
    assert_int_equal(out[513], 0);
    assert_int_equal(out[768], 16 * 17 + 16);
    assert_int_equal(out[769], 0);
    assert_int_equal(out[1023], 0);
    free(out);
}

static void unpacking_undoes_packing(void **state)
{
    static const uint64_t shapes[][2] = { { 1, 1 }, { 16, 16 }, { 17, 31 }, { 48, 5 }, { 3, 100 } };
    static const enum dtype dtypes[] = { DTYPE_BF16, DTYPE_F16, DTYPE_F32, DTYPE_I32 };

    (void)state;
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
        for (size_t d = 0; d < sizeof(dtypes) / sizeof(dtypes[0]); d++) {
            const uint64_t rows = shapes[s][0], cols = shapes[s][1];
            const struct layout_matrix matrix = { rows, cols, cols, 1 };
            const uint64_t bytes = dtype_row_bytes(dtypes[d], rows * cols);
            const uint64_t weight[2] = { cols, rows };
            uint64_t nz_bytes;
            uint8_t *from = malloc(bytes), *to = malloc(bytes), *nz;

            assert_true(layout_bytes(LAYOUT_FRACTAL_NZ, dtypes[d], 2, weight, &nz_bytes));
            assert_true(nz_bytes >= bytes && nz_bytes % 512 == 0);
            nz = malloc(nz_bytes);
            assert_true(from != NULL && to != NULL && nz != NULL);
            for (uint64_t i = 0; i < bytes; i++)
                from[i] = (uint8_t)(i * 131 + i / 251);
            layout_nz_pack(nz, from, dtypes[d], &matrix);
            layout_nz_unpack(to, nz, dtypes[d], &matrix);
            assert_memory_equal(from, to, bytes);
            free(nz);
            free(to);
            free(from);
        }
    }
}

/* Stacked weights [e][n][k], changed in place, against packing the transposed view of each. */
static void finishing_in_place_is_packing_the_transposed_matrix(void **state)
{
    static const uint64_t shapes[][3] = { { 1, 16, 16 }, { 3, 32, 48 }, { 2, 80, 16 } };

    (void)state;
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
        const uint64_t count = shapes[s][0], n = shapes[s][1], k = shapes[s][2];
        const struct layout_matrix transposed = { .rows = k, .cols = n, .row_stride = 1,
                                                  .col_stride = k };
        const uint64_t size = n * k;
        uint16_t *weights = malloc(count * size * 2), *wanted = malloc(count * size * 2);
        uint16_t *wrong = malloc(count * size * 2), *strip;
        uint64_t bytes;

        if (weights == NULL || wanted == NULL || wrong == NULL)
            abort();
        assert_true(layout_bytes(LAYOUT_FRACTAL_NZ, DTYPE_BF16, 3, shapes[s], &bytes));
        assert_int_equal(bytes, count * size * 2); /* nothing is padded */
        for (uint64_t i = 0; i < count * size; i++)
            weights[i] = wrong[i] = (uint16_t)(i * 7 + 1);
        for (uint64_t e = 0; e < count; e++)
            layout_nz_pack(wanted + e * size, weights + e * size, DTYPE_BF16, &transposed);
        strip = malloc(layout_strip_bytes(DTYPE_BF16, k));
        assert_non_null(strip);
        layout_nz_finish(weights, DTYPE_BF16, count, n, k, strip);
        assert_memory_equal(weights, wanted, count * size * 2);
        free(strip);
        strip = malloc(size * 2);
        assert_non_null(strip);
        layout_nz_finish_as_contiguous(wrong, DTYPE_BF16, count, n, k, strip);
        if (n != 16 || k != 16 || count > 1)
            assert_memory_not_equal(wrong, wanted, count * size * 2);
        free(strip);
        free(wrong);
        free(wanted);
        free(weights);
    }
}

/* Rows from a strip's first on lie where they lay in plain rows, so that tiles can be cut. */
static void strips_are_rows_of_the_weight(void **state)
{
    const uint64_t n = 64, k = 32, first = 48;
    const struct layout_matrix tile = { .rows = k, .cols = n - first, .row_stride = 1,
                                        .col_stride = k };
    uint16_t *weight = malloc(n * k * 2), *wanted = malloc(n * k * 2), *strip = malloc(k * 32);

    (void)state;
    assert_true(weight != NULL && wanted != NULL && strip != NULL);
    for (uint64_t i = 0; i < n * k; i++)
        weight[i] = (uint16_t)i;
    layout_nz_pack(wanted, weight + first * k, DTYPE_F16, &tile);
    layout_nz_finish(weight, DTYPE_F16, 1, n, k, strip);
    assert_memory_equal(weight + first * k, wanted, (n - first) * k * 2);
    free(strip);
    free(wanted);
    free(weight);
}

static void the_engines_ask_for_whole_blocks(void **state)
{
    (void)state;
    assert_true(layout_nz_is_aligned(DTYPE_BF16, 16, 32));
    assert_true(layout_nz_is_aligned(DTYPE_F16, 4096, 11008));
    assert_false(layout_nz_is_aligned(DTYPE_BF16, 24, 32));
    assert_false(layout_nz_is_aligned(DTYPE_F16, 32, 24));
    assert_true(layout_nz_is_aligned(DTYPE_I32, 16, 64));
    assert_false(layout_nz_is_aligned(DTYPE_I32, 16, 32));
    assert_true(layout_nz_is_aligned(DTYPE_F32, 3, 5));
    assert_false(layout_nz_is_aligned(DTYPE_Q8_0, 64, 64));
    assert_false(layout_nz_is_aligned(DTYPE_Q4_0, 64, 64));
}

static void storage_has_its_padding(void **state)
{
    const uint64_t weight[3] = { 2, 17, 33 };  /* [e][n][k]: matrices [33][17] */
    struct tensor tensor = { .dtype = DTYPE_BF16, .rank = 3, .shape = { 2, 17, 33, 1 } };
    uint64_t dims[4], bytes;

    (void)state;
    assert_true(layout_nz_dims(DTYPE_BF16, 33, 17, dims));
    assert_int_equal(dims[0], 2);
    assert_int_equal(dims[1], 3);
    assert_int_equal(dims[2], 16);
    assert_int_equal(dims[3], 16);
    assert_true(layout_bytes(LAYOUT_FRACTAL_NZ, DTYPE_BF16, 3, weight, &bytes));
    assert_int_equal(bytes, 2 * 2 * 3 * 512);
    assert_true(layout_nz_dims(DTYPE_F32, 1, 9, dims));
    assert_int_equal(dims[0], 2);
    assert_int_equal(dims[3], 8);
    assert_true(tensor_bytes(&tensor, &bytes));
    assert_int_equal(bytes, 2 * 17 * 33 * 2);
    tensor.layout = LAYOUT_FRACTAL_NZ;
    assert_true(tensor_bytes(&tensor, &bytes));
    assert_int_equal(bytes, 2 * 2 * 3 * 512);
}

static void what_has_no_fractal_nz_is_refused(void **state)
{
    const uint64_t vector[1] = { 64 }, huge[2] = { UINT64_MAX - 3, 64 };
    const uint64_t large[3] = { UINT64_C(1) << 40, UINT64_C(1) << 20, 64 };
    uint64_t dims[4], bytes;

    (void)state;
    assert_false(layout_bytes(LAYOUT_FRACTAL_NZ, DTYPE_BF16, 1, vector, &bytes));
    assert_false(layout_bytes(LAYOUT_FRACTAL_NZ, DTYPE_BF16, 2, huge, &bytes));
    assert_false(layout_bytes(LAYOUT_FRACTAL_NZ, DTYPE_BF16, 3, large, &bytes));
    assert_false(layout_bytes(LAYOUT_ND, DTYPE_BF16, 3, large, &bytes));
    assert_false(layout_nz_dims(DTYPE_Q8_0, 64, 64, dims));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_blocks_are_where_cann_has_them),
        cmocka_unit_test(parts_of_blocks_are_padded_with_zeros),
        cmocka_unit_test(unpacking_undoes_packing),
        cmocka_unit_test(finishing_in_place_is_packing_the_transposed_matrix),
        cmocka_unit_test(strips_are_rows_of_the_weight),
        cmocka_unit_test(the_engines_ask_for_whole_blocks),
        cmocka_unit_test(storage_has_its_padding),
        cmocka_unit_test(what_has_no_fractal_nz_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
