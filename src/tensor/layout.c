/* tensor/layout.c - see layout.h. */
#include "tensor/layout.h"

#include <assert.h>
#include <stddef.h>
#include <string.h>

#include "base/size.h"

const char *layout_name(enum layout layout)
{
    return layout == LAYOUT_FRACTAL_NZ ? "FRACTAL_NZ" : "ND";
}

static uint32_t element_bytes(enum dtype dtype)
{
    return dtype_info(dtype)->block_bytes;
}

uint32_t layout_nz_columns(enum dtype dtype)
{
    return dtype_info(dtype)->block_elements > 1 ? 0 : LAYOUT_NZ_BYTES / element_bytes(dtype);
}

bool layout_nz_is_aligned(enum dtype dtype, uint64_t k, uint64_t n)
{
    if (layout_nz_columns(dtype) == 0)
        return false;
    if (dtype == DTYPE_F32)
        return true;
    return k % LAYOUT_NZ_ROWS == 0 && n % (dtype == DTYPE_I32 ? 64 : 16) == 0;
}

bool layout_nz_dims(enum dtype dtype, uint64_t rows, uint64_t cols, uint64_t dims_out[4])
{
    const uint32_t columns = layout_nz_columns(dtype);
    uint64_t product;

    if (columns == 0 || rows > UINT64_MAX - LAYOUT_NZ_ROWS || cols > UINT64_MAX - columns)
        return false;
    dims_out[0] = (cols + columns - 1) / columns;
    dims_out[1] = (rows + LAYOUT_NZ_ROWS - 1) / LAYOUT_NZ_ROWS;
    dims_out[2] = LAYOUT_NZ_ROWS;
    dims_out[3] = columns;
    return size_mul(dims_out[0], dims_out[1], &product) &&
           size_mul(product, (uint64_t)LAYOUT_NZ_ROWS * columns, &product);
}

bool layout_bytes(enum layout layout, enum dtype dtype, uint32_t rank, const uint64_t *shape,
                  uint64_t *bytes_out)
{
    uint64_t dims[4], count = 1;

    if (layout == LAYOUT_FRACTAL_NZ) {
        if (rank < 2 || !layout_nz_dims(dtype, shape[rank - 1], shape[rank - 2], dims))
            return false;
        count = dims[0] * dims[1] * dims[2] * dims[3];
    }
    for (uint32_t i = 0; i < (layout == LAYOUT_ND ? rank : rank - 2); i++)
        if (!size_mul(count, shape[i], &count))
            return false;
    return dtype_bytes(dtype, count, bytes_out);
}

static void copy_element(uint8_t *dst, const uint8_t *src, uint32_t size_bytes)
{
    if (size_bytes == 2)
        memcpy(dst, src, 2);
    else
        memcpy(dst, src, 4);
}

/* The element's place in FRACTAL_NZ of a matrix with height padded to `height`. */
static uint64_t nz_index(uint64_t row, uint64_t col, uint64_t height, uint32_t columns)
{
    return (col / columns * height + row) * columns + col % columns;
}

void layout_nz_pack(void *dst, const void *src, enum dtype dtype,
                    const struct layout_matrix *matrix)
{
    const uint32_t columns = layout_nz_columns(dtype), size_bytes = element_bytes(dtype);
    uint64_t dims[4];
    const bool exists = layout_nz_dims(dtype, matrix->rows, matrix->cols, dims);
    uint64_t height;

    assert(exists && columns > 0);
    (void)exists;
    height = dims[1] * LAYOUT_NZ_ROWS;
    memset(dst, 0, dims[0] * height * LAYOUT_NZ_BYTES);
    for (uint64_t i = 0; i < matrix->rows; i++)
        for (uint64_t j = 0; j < matrix->cols; j++)
            copy_element((uint8_t *)dst + nz_index(i, j, height, columns) * size_bytes,
                         (const uint8_t *)src +
                             (i * matrix->row_stride + j * matrix->col_stride) * size_bytes,
                         size_bytes);
}

void layout_nz_unpack(void *dst, const void *src, enum dtype dtype,
                      const struct layout_matrix *matrix)
{
    const uint32_t columns = layout_nz_columns(dtype), size_bytes = element_bytes(dtype);
    const uint64_t height = size_align_up(matrix->rows, LAYOUT_NZ_ROWS);

    assert(columns > 0);
    for (uint64_t i = 0; i < matrix->rows; i++)
        for (uint64_t j = 0; j < matrix->cols; j++)
            copy_element((uint8_t *)dst +
                             (i * matrix->row_stride + j * matrix->col_stride) * size_bytes,
                         (const uint8_t *)src + nz_index(i, j, height, columns) * size_bytes,
                         size_bytes);
}

uint64_t layout_strip_bytes(enum dtype dtype, uint64_t k)
{
    assert(layout_nz_columns(dtype) > 0);
    (void)dtype;
    return k * LAYOUT_NZ_BYTES;
}

/* strip[k][C0] from [C0][k], in blocks that both fit the first cache. */
static void transpose_16(uint16_t *strip, const uint16_t *rows, uint64_t k)
{
    for (uint64_t i = 0; i < k; i += LAYOUT_NZ_ROWS)
        for (uint32_t j = 0; j < 16; j++)
            for (uint64_t l = i; l < i + LAYOUT_NZ_ROWS; l++)
                strip[l * 16 + j] = rows[j * k + l];
}

void layout_nz_finish(void *bytes, enum dtype dtype, uint64_t matrix_count, uint64_t n, uint64_t k,
                      void *strip)
{
    const uint32_t columns = layout_nz_columns(dtype);
    const uint64_t strip_bytes = layout_strip_bytes(dtype, k);
    const struct layout_matrix transposed = { .rows = k, .cols = columns,
                                              .row_stride = 1, .col_stride = k };
    uint8_t *at = bytes;

    assert(columns > 0 && k % LAYOUT_NZ_ROWS == 0 && n % columns == 0);
    for (uint64_t i = 0; i < matrix_count * (n / columns); i++) {
        if (columns == 16)
            transpose_16(strip, (const uint16_t *)(const void *)at, k);
        else
            layout_nz_pack(strip, at, dtype, &transposed);
        memcpy(at, strip, strip_bytes);
        at += strip_bytes;
    }
}

void layout_nz_finish_as_contiguous(void *bytes, enum dtype dtype, uint64_t matrix_count,
                                    uint64_t n, uint64_t k, void *matrix)
{
    const struct layout_matrix wrong = { .rows = k, .cols = n, .row_stride = n, .col_stride = 1 };
    const uint32_t columns = layout_nz_columns(dtype);
    uint64_t matrix_bytes;

    assert(columns > 0);
    matrix_bytes = n / columns * layout_strip_bytes(dtype, k);
    for (uint64_t i = 0; i < matrix_count; i++) {
        uint8_t *at = (uint8_t *)bytes + i * matrix_bytes;

        memcpy(matrix, at, matrix_bytes);
        layout_nz_pack(at, matrix, dtype, &wrong);
    }
}
