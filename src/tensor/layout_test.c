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
        strip = malloc(layout_finish_bytes(LAYOUT_FRACTAL_NZ, DTYPE_BF16, k));
        assert_non_null(strip);
        layout_finish(LAYOUT_FRACTAL_NZ, weights, DTYPE_BF16, count, n, k, strip);
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
    layout_finish(LAYOUT_FRACTAL_NZ, weight, DTYPE_F16, 1, n, k, strip);
    assert_memory_equal(weight + first * k, wanted, (n - first) * k * 2);
    free(strip);
    free(wanted);
    free(weight);
}

/* The parts of a block in their new order, by their first and their last byte, and those of them
 * that are pieces of two bytes and one. */
struct woven {
    enum dtype dtype;
    uint32_t odd_from, odd_count;
    uint32_t part_count, from[40], last[40];
};

static void add_part(struct woven *woven, uint32_t from, uint32_t last)
{
    woven->from[woven->part_count] = from;
    woven->last[woven->part_count++] = last;
}

static struct woven woven_of(enum dtype dtype)
{
    const uint32_t bytes = dtype_info(dtype)->block_bytes;
    struct woven woven = { .dtype = dtype };

    switch (dtype) {
    case DTYPE_Q2_K:
        add_part(&woven, 80, 83);
        add_part(&woven, 0, 79);
        return woven;
    case DTYPE_Q3_K:
        woven.odd_from = 108;
        woven.odd_count = 2;
        add_part(&woven, 108, 109);
        add_part(&woven, 96, 107);
        add_part(&woven, 0, 95);
        return woven;
    case DTYPE_Q6_K:
        woven.odd_from = 208;
        woven.odd_count = 2;
        add_part(&woven, 208, 209);
        add_part(&woven, 192, 207);
        for (uint32_t ql = 0, qh = 128; ql < 128; ql += 64) {
            for (uint32_t i = 0; i < 8; i++, qh += 4) {
                add_part(&woven, ql + 4 * i, ql + 4 * i + 3);
                add_part(&woven, qh, qh + 3);
            }
            add_part(&woven, ql + 32, ql + 63);
        }
        return woven;
    case DTYPE_MXFP4: woven.odd_count = 1; break;
    case DTYPE_INT4: woven.odd_count = 3; break;
    case DTYPE_Q8_0: case DTYPE_Q4_0: case DTYPE_Q5_0: case DTYPE_IQ4_NL:
        woven.odd_count = 2;
        break;
    default: break;
    }
    if (woven.odd_count > 0)
        add_part(&woven, 0, woven.odd_count - 1);
    add_part(&woven, woven.odd_count, bytes - 1);
    return woven;
}

/* Where byte `at` of row r of a block's sixteen lies. */
static uint32_t woven_place(const struct woven *woven, uint32_t at, uint32_t r)
{
    const bool is_odd = at >= woven->odd_from && at < woven->odd_from + woven->odd_count;
    uint32_t place = 0, size = 4, piece;

    for (uint32_t i = 0; i < woven->part_count; i++) {
        const uint32_t from = woven->from[i], last = woven->last[i];
        if (at < from || at > last) {
            place += 16 * (last + 1 - from);
            continue;
        }
        if (is_odd)
            size = at - from < woven->odd_count / 2 * 2 ? 2 : 1;
        piece = size == 1 ? at : from + (at - from) / size * size;
        return place + 16 * (piece - from) + r * size + (at - piece);
    }
    fail_msg("no part has byte %u", at);
    return 0;
}

/* Each byte of each row is where layout.h says, two matrices of two groups of rows each. */
static void sixteen_rows_have_their_pieces_together(void **state)
{
    enum { COUNT = 2, N = 32, BLOCKS = 3, ROW_BYTES_MAX = 3 * 256 };
    static uint8_t plain[COUNT * N * ROW_BYTES_MAX], bytes[sizeof(plain)];

    static const enum dtype dtypes[] = {
        DTYPE_Q8_0, DTYPE_Q4_0, DTYPE_Q4_1, DTYPE_Q5_0, DTYPE_Q5_1, DTYPE_IQ4_NL, DTYPE_MXFP4,
        DTYPE_INT4, DTYPE_Q2_K, DTYPE_Q3_K, DTYPE_Q4_K, DTYPE_Q5_K, DTYPE_Q6_K, DTYPE_IQ4_XS,
    };

    (void)state;
    for (size_t t = 0; t < sizeof(dtypes) / sizeof(dtypes[0]); t++) {
        const enum dtype dtype = dtypes[t];
        const struct woven woven = woven_of(dtype);
        const uint32_t block_bytes = dtype_info(dtype)->block_bytes;
        const uint64_t k = BLOCKS * (uint64_t)dtype_info(dtype)->block_elements;
        const uint64_t row_bytes = dtype_row_bytes(dtype, k);
        void *scratch = malloc(layout_finish_bytes(LAYOUT_ROWS_16, dtype, k));

        assert_non_null(scratch);
        for (size_t i = 0; i < sizeof(plain); i++)
            plain[i] = bytes[i] = (uint8_t)(i * 2654435761u >> 13);
        layout_finish(LAYOUT_ROWS_16, bytes, dtype, COUNT, N, k, scratch);
        free(scratch);
        for (uint64_t i = 0; i < COUNT * N * row_bytes; i++) {
            const uint64_t row = i / row_bytes, block = i % row_bytes / block_bytes;
            const uint32_t at = (uint32_t)(i % row_bytes % block_bytes);

            assert_int_equal(bytes[(row / 16 * BLOCKS + block) * 16 * block_bytes +
                                   woven_place(&woven, at, (uint32_t)row % 16)],
                             plain[i]);
        }
    }
}

/* 32 elements of each row, two matrices of two groups of rows each. */
static void sixteen_rows_have_their_lines_together(void **state)
{
    enum { COUNT = 2, N = 32, K = 96, LINE = 32 };
    static uint16_t plain[COUNT * N * K], woven[COUNT * N * K];
    void *scratch = malloc(layout_finish_bytes(LAYOUT_ROWS_16, DTYPE_BF16, K));

    (void)state;
    assert_non_null(scratch);
    for (uint32_t i = 0; i < COUNT * N * K; i++)
        plain[i] = woven[i] = (uint16_t)i;
    layout_finish(LAYOUT_ROWS_16, woven, DTYPE_BF16, COUNT, N, K, scratch);
    free(scratch);
    for (uint32_t i = 0; i < COUNT * N * K; i++) {
        const uint32_t row = i / K, k = i % K;
        assert_int_equal(woven[((row / 16 * (K / LINE) + k / LINE) * 16 + row % 16) * LINE +
                               k % LINE],
                         plain[i]);
    }
}

static void whole_groups_of_rows_fit(void **state)
{
    const uint64_t stacked[3] = { 3, 32, 64 }, odd[3] = { 3, 24, 64 };
    uint64_t bytes;

    (void)state;
    assert_true(layout_fits(LAYOUT_ROWS_16, DTYPE_Q4_0, 32, 64));
    assert_false(layout_fits(LAYOUT_ROWS_16, DTYPE_Q4_0, 24, 64));
    assert_false(layout_fits(LAYOUT_ROWS_16, DTYPE_Q4_K, 32, 64));
    assert_true(layout_fits(LAYOUT_ROWS_16, DTYPE_F16, 32, 64));
    assert_false(layout_fits(LAYOUT_ROWS_16, DTYPE_BF16, 32, 48));
    assert_false(layout_fits(LAYOUT_ROWS_16, DTYPE_BF16, 24, 64));
    assert_false(layout_fits(LAYOUT_ROWS_16, DTYPE_F32, 32, 64));
    assert_false(layout_fits(LAYOUT_ROWS_16, DTYPE_F8_E4M3, 32, 512));
    assert_true(layout_bytes(LAYOUT_ROWS_16, DTYPE_Q8_0, 3, stacked, &bytes));
    assert_int_equal(bytes, 3 * 32 * 2 * 34);
    assert_false(layout_bytes(LAYOUT_ROWS_16, DTYPE_Q8_0, 3, odd, &bytes));
    assert_false(layout_bytes(LAYOUT_ROWS_16, DTYPE_Q8_0, 1, stacked + 1, &bytes));
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
        cmocka_unit_test(sixteen_rows_have_their_pieces_together),
        cmocka_unit_test(sixteen_rows_have_their_lines_together),
        cmocka_unit_test(whole_groups_of_rows_fit),
        cmocka_unit_test(the_engines_ask_for_whole_blocks),
        cmocka_unit_test(storage_has_its_padding),
        cmocka_unit_test(what_has_no_fractal_nz_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
