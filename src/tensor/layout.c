/* tensor/layout.c - see layout.h. */
#include "tensor/layout.h"

#include <assert.h>
#include <stddef.h>
#include <string.h>

#include "base/size.h"
#include "tensor/quant.h"

#define WORD_BYTES 4
#define LINE_BYTES 64

const char *layout_name(enum layout layout)
{
    switch (layout) {
    case LAYOUT_FRACTAL_NZ: return "FRACTAL_NZ";
    case LAYOUT_ROWS_16: return "ROWS_16";
    default: return "ND";
    }
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
    const bool is_nz = layout == LAYOUT_FRACTAL_NZ;
    uint64_t dims[4], count = 1;

    if (layout == LAYOUT_ROWS_16 &&
        (rank < 2 || !layout_fits(layout, dtype, shape[rank - 2], shape[rank - 1])))
        return false;
    if (is_nz) {
        if (rank < 2 || !layout_nz_dims(dtype, shape[rank - 1], shape[rank - 2], dims))
            return false;
        count = dims[0] * dims[1] * dims[2] * dims[3];
    }
    for (uint32_t i = 0; i < (is_nz ? rank - 2 : rank); i++)
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

/* strip[k][C0] from [C0][k], in blocks that both fit the first cache. */
static void transpose_16(uint16_t *strip, const uint16_t *rows, uint64_t k)
{
    for (uint64_t i = 0; i < k; i += LAYOUT_NZ_ROWS)
        for (uint32_t j = 0; j < 16; j++)
            for (uint64_t l = i; l < i + LAYOUT_NZ_ROWS; l++)
                strip[l * 16 + j] = rows[j * k + l];
}

static void finish_nz_strip(uint8_t *at, enum dtype dtype, uint64_t k, void *strip)
{
    const uint32_t columns = layout_nz_columns(dtype);
    const struct layout_matrix transposed = { .rows = k, .cols = columns,
                                              .row_stride = 1, .col_stride = k };

    if (columns == 16)
        transpose_16(strip, (const uint16_t *)(const void *)at, k);
    else
        layout_nz_pack(strip, at, dtype, &transposed);
    memcpy(at, strip, k * LAYOUT_NZ_BYTES);
}

/* A block's bytes in the order that ROWS_16 has them in, ended by a size of 0. */
struct span {
    uint32_t from, size;        /* words, or fewer bytes than one has */
};
#define SPANS_MAX 40

static struct span *add_span(struct span *spans, uint32_t from, uint32_t size)
{
    *spans = (struct span){ from, size };
    return spans + (size > 0);
}

/* Scales are needed first, and Q6_K's upper bits together with lower ones. */
static void spans_of(enum dtype dtype, struct span spans[SPANS_MAX])
{
    const uint32_t bytes = dtype_info(dtype)->block_bytes, odd = bytes % WORD_BYTES;

    switch (dtype) {
    case DTYPE_Q2_K:
        spans = add_span(spans, 80, 4);
        spans = add_span(spans, 0, 80);
        break;
    case DTYPE_Q3_K:
        spans = add_span(spans, 108, 2);
        spans = add_span(spans, 96, 12);
        spans = add_span(spans, 0, 96);
        break;
    case DTYPE_Q6_K:
        spans = add_span(spans, 208, 2);
        spans = add_span(spans, 192, 16);
        for (uint32_t half = 0; half < 2; half++) {
            for (uint32_t i = 0; i < 32; i += WORD_BYTES) {
                spans = add_span(spans, 64 * half + i, WORD_BYTES);
                spans = add_span(spans, 128 + 32 * half + i, WORD_BYTES);
            }
            spans = add_span(spans, 64 * half + 32, 32);
        }
        break;
    default:
        spans = add_span(spans, 0, odd);
        spans = add_span(spans, odd, bytes - odd);
    }
    (void)add_span(spans, 0, 0);
}

/* Two bytes and then one of each row, as far as `size` has them. */
static void gather_odd(uint8_t *out, const uint8_t *rows, uint64_t stride, uint32_t size)
{
    const uint32_t pair = size >= 2 ? 2 : 0;

    for (uint32_t r = 0; pair > 0 && r < LAYOUT_ROWS_16_COUNT; r++)
        memcpy(out + 2 * r, rows + r * stride, 2);
    for (uint32_t r = 0; pair < size && r < LAYOUT_ROWS_16_COUNT; r++)
        out[LAYOUT_ROWS_16_COUNT * pair + r] = rows[r * stride + pair];
}

typedef uint32_t words_4 __attribute__((vector_size(16)));

static words_4 load_words(const uint8_t *at)
{
    words_4 words;

    memcpy(&words, at, sizeof(words));
    return words;
}

/* Four words of four rows each to four words of the rows. */
static void transpose_words(uint8_t *out, const uint8_t *rows, uint64_t stride)
{
    const words_4 a = load_words(rows), b = load_words(rows + stride);
    const words_4 c = load_words(rows + 2 * stride), d = load_words(rows + 3 * stride);
    const words_4 ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    const words_4 ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const words_4 cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
    const words_4 cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    const words_4 columns[4] = { __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5),
                                 __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
                                 __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5),
                                 __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7) };

    for (uint32_t i = 0; i < 4; i++)
        memcpy(out + i * LAYOUT_ROWS_16_COUNT * WORD_BYTES, &columns[i], sizeof(columns[i]));
}

/* Words of each row. */
static void gather_words(uint8_t *out, const uint8_t *rows, uint64_t stride, uint32_t size)
{
    uint32_t at = 0;

    for (; at + 4 * WORD_BYTES <= size; at += 4 * WORD_BYTES)
        for (uint32_t r = 0; r < LAYOUT_ROWS_16_COUNT; r += 4)
            transpose_words(out + at * LAYOUT_ROWS_16_COUNT + r * WORD_BYTES,
                            rows + r * stride + at, stride);
    for (; at < size; at += WORD_BYTES)
        for (uint32_t r = 0; r < LAYOUT_ROWS_16_COUNT; r++)
            memcpy(out + at * LAYOUT_ROWS_16_COUNT + r * WORD_BYTES, rows + r * stride + at,
                   WORD_BYTES);
}

static void weave_blocks(uint8_t *out, const uint8_t *rows, uint64_t stride, enum dtype dtype,
                         uint64_t row_bytes)
{
    const uint32_t block_bytes = dtype_info(dtype)->block_bytes;
    struct span spans[SPANS_MAX];

    spans_of(dtype, spans);
    for (uint64_t b = 0; b < row_bytes; b += block_bytes) {
        for (const struct span *span = spans; span->size > 0; span++) {
            if (span->size >= WORD_BYTES)
                gather_words(out, rows + b + span->from, stride, span->size);
            else
                gather_odd(out, rows + b + span->from, stride, span->size);
            out += LAYOUT_ROWS_16_COUNT * span->size;
        }
    }
}

static void weave_lines(uint8_t *out, const uint8_t *rows, uint64_t stride, uint64_t row_bytes)
{
    for (uint64_t at = 0; at < row_bytes; at += LINE_BYTES)
        for (uint32_t r = 0; r < LAYOUT_ROWS_16_COUNT; r++, out += LINE_BYTES)
            memcpy(out, rows + r * stride + at, LINE_BYTES);
}

/* Sixteen rows where they are. In scratch a line lies between them, so that no two begin in one set
 * of the first cache. */
static void finish_16_rows(uint8_t *at, enum dtype dtype, uint64_t k, uint8_t *scratch)
{
    const uint64_t row_bytes = dtype_row_bytes(dtype, k), stride = row_bytes + LINE_BYTES;

    for (uint32_t r = 0; r < LAYOUT_ROWS_16_COUNT; r++)
        memcpy(scratch + r * stride, at + r * row_bytes, row_bytes);
    if (quant_has_runs(dtype))
        weave_blocks(at, scratch, stride, dtype, row_bytes);
    else
        weave_lines(at, scratch, stride, row_bytes);
}

/* Whether rows of k elements are what ROWS_16 has pieces of. */
static bool is_of_pieces(enum dtype dtype, uint64_t k)
{
    if (dtype == DTYPE_F16 || dtype == DTYPE_BF16)
        return k % (LINE_BYTES / element_bytes(dtype)) == 0;
    return quant_has_runs(dtype) && k % dtype_info(dtype)->block_elements == 0;
}

bool layout_fits(enum layout layout, enum dtype dtype, uint64_t n, uint64_t k)
{
    const uint32_t columns = layout_nz_columns(dtype);

    switch (layout) {
    case LAYOUT_FRACTAL_NZ:
        return columns > 0 && layout_nz_is_aligned(dtype, k, n) && k % LAYOUT_NZ_ROWS == 0 &&
               n % columns == 0;
    case LAYOUT_ROWS_16:
        return n % LAYOUT_ROWS_16_COUNT == 0 && is_of_pieces(dtype, k);
    default: return true;
    }
}

uint32_t layout_row_granule(enum layout layout, enum dtype dtype)
{
    switch (layout) {
    case LAYOUT_FRACTAL_NZ: return layout_nz_columns(dtype);
    case LAYOUT_ROWS_16: return LAYOUT_ROWS_16_COUNT;
    default: return 1;
    }
}

uint64_t layout_finish_bytes(enum layout layout, enum dtype dtype, uint64_t k)
{
    switch (layout) {
    case LAYOUT_FRACTAL_NZ: return k * LAYOUT_NZ_BYTES;
    case LAYOUT_ROWS_16: return LAYOUT_ROWS_16_COUNT * (dtype_row_bytes(dtype, k) + LINE_BYTES);
    default: return 0;
    }
}

void layout_finish(enum layout layout, void *bytes, enum dtype dtype, uint64_t matrix_count,
                   uint64_t n, uint64_t k, void *scratch)
{
    const uint32_t granule = layout_row_granule(layout, dtype);
    const uint64_t granule_bytes = granule * dtype_row_bytes(dtype, k);
    uint8_t *at = bytes;

    assert(granule > 0 && layout_fits(layout, dtype, n, k));
    if (layout == LAYOUT_ND)
        return;
    for (uint64_t i = 0; i < matrix_count * (n / granule); i++, at += granule_bytes) {
        if (layout == LAYOUT_FRACTAL_NZ)
            finish_nz_strip(at, dtype, k, scratch);
        else
            finish_16_rows(at, dtype, k, scratch);
    }
}

void layout_nz_finish_as_contiguous(void *bytes, enum dtype dtype, uint64_t matrix_count,
                                    uint64_t n, uint64_t k, void *matrix)
{
    const struct layout_matrix wrong = { .rows = k, .cols = n, .row_stride = n, .col_stride = 1 };
    const uint32_t columns = layout_nz_columns(dtype);
    uint64_t matrix_bytes;

    assert(columns > 0);
    matrix_bytes = n / columns * k * LAYOUT_NZ_BYTES;
    for (uint64_t i = 0; i < matrix_count; i++) {
        uint8_t *at = (uint8_t *)bytes + i * matrix_bytes;

        memcpy(matrix, at, matrix_bytes);
        layout_nz_pack(at, matrix, dtype, &wrong);
    }
}
