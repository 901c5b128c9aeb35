/* tensor/layout.h - the orders in which a matrix's elements can lie, apart from its shape.
 *
 *     ND            row behind row, as checkpoints have it
 *     FRACTAL_NZ    what the matrix units of Ascend NPUs read: blocks of 16 x C0 elements, where C0
 *                   elements are 32 bytes. Inside a block rows follow each other; the blocks of a
 *                   column of blocks follow each other; then comes the next column of blocks
 *     ROWS_16       what vectors of sixteen lanes read: sixteen rows of quantised blocks together,
 *                   so that four bytes of each row lie behind each other; or what tiles of sixteen
 *                   rows are: 64 bytes of each of sixteen rows of F16 or BF16
 *
 * So FRACTAL_NZ of [rows][cols] is [W1][H1][16][C0] with H1 = ceil(rows / 16) and W1 = ceil(cols /
 * C0): the matrix cut into vertical strips of C0 columns, each row behind row and padded with zeros
 * to H1 * 16 rows. Several matrices, as stacked experts are, follow each other, each padded for
 * itself. (CANN, ops-math, conversion/trans_data and npu_format_cast.)
 *
 * A weight is [n][k], and a product x W^T reads it as the matrix [k][n]. A weight's layout
 * FRACTAL_NZ is that of the transposed matrix [k][n]: its strips are C0 rows of the weight each, in
 * order. So as long as n is a multiple of C0, rows from a multiple of C0 on are a run of bytes, as
 * long as they were, and where they were: what is cut by rows, into tiles or expert by expert, is
 * cut alike in both layouts.
 *
 * ROWS_16 of a weight [n][k] in F16 or BF16 is [n / 16][k / 32][16][32]. Of a quantised one it is
 * [n / 16][k / elements of a block][pieces of a block][16][piece]. The pieces are a block's words
 * of four bytes, and what is left of its scales: two bytes, one, or both in turn. So what is `at`
 * bytes into a block's pieces is 16 * at bytes into those of sixteen rows, which take the bytes
 * that they took. Pieces follow each other as in the block, but for types that are read in another
 * order, since kernels that read memory in order are fastest: Q2_K and Q3_K have the two factors,
 * or the one, first, Q3_K then its scales, and Q6_K
 *
 *     d, scales, and of each half eight times a word of ql and one of qh, then ql's other words */
#ifndef LIGHTER_TENSOR_LAYOUT_H
#define LIGHTER_TENSOR_LAYOUT_H

#include <stdbool.h>
#include <stdint.h>

#include "tensor/dtype.h"

enum layout { LAYOUT_ND, LAYOUT_FRACTAL_NZ, LAYOUT_ROWS_16 };
#define LAYOUT_NZ_ROWS 16      /* of a block */
#define LAYOUT_NZ_BYTES 32     /* of a row of a block */
#define LAYOUT_NZ_GRANULE 64   /* rows of a weight: a multiple of C0 for every dtype */
#define LAYOUT_ROWS_16_COUNT 16

/* "ND", "FRACTAL_NZ", "ROWS_16" */
const char *layout_name(enum layout layout);

/* Whether a weight [n][k] can be changed to the layout where it is: the dtype has it, and it is of
 * whole blocks, so that nothing is padded. */
bool layout_fits(enum layout layout, enum dtype dtype, uint64_t n, uint64_t k);
/* Rows of a weight from a multiple of these on are a run of bytes, and where they were in ND. */
uint32_t layout_row_granule(enum layout layout, enum dtype dtype);
/* Changes matrix_count weights [n][k] that fit, one behind the other, from ND to the layout where
 * they are. A granule of rows at a time goes through `scratch`, layout_finish_bytes of it: nothing
 * else is in memory twice. */
void layout_finish(enum layout layout, void *bytes, enum dtype dtype, uint64_t matrix_count,
                   uint64_t n, uint64_t k, void *scratch);
uint64_t layout_finish_bytes(enum layout layout, enum dtype dtype, uint64_t k);

/* C0 of the dtype. 0: it has no FRACTAL_NZ (blocks of several elements). */
uint32_t layout_nz_columns(enum dtype dtype);
/* Whether a matrix [k][n] of a weight may be cast to FRACTAL_NZ: where the engines ask for whole
 * blocks, k % 16 and n % 16 for 16-bit elements, k % 16 and n % 64 for 4-bit ones packed in I32.
 * (sglang, hardware_backend/npu/utils.py; its last rule, "others: yes", is F32's here, whose blocks
 * need not be whole.) */
bool layout_nz_is_aligned(enum dtype dtype, uint64_t k, uint64_t n);
/* [W1][H1][16][C0] of a matrix [rows][cols]. False: there is no FRACTAL_NZ of it, or the product
 * overflows. */
bool layout_nz_dims(enum dtype dtype, uint64_t rows, uint64_t cols, uint64_t dims_out[4]);
/* Bytes of a weight of this shape, the last two dimensions [n][k], with its padding. False on
 * overflow, a part of a block, or a layout that the dtype or a vector has not. */
bool layout_bytes(enum layout layout, enum dtype dtype, uint32_t rank, const uint64_t *shape,
                  uint64_t *bytes_out);

/* A matrix [rows][cols] whose element (i, j) is at i * row_stride + j * col_stride, in elements. */
struct layout_matrix {
    uint64_t rows, cols;
    uint64_t row_stride, col_stride;
};
/* To FRACTAL_NZ: fills all of layout_nz_dims, padding included. From it: padding is not read. The
 * dtype has FRACTAL_NZ; dst and src must not overlap. */
void layout_nz_pack(void *dst, const void *src, enum dtype dtype,
                    const struct layout_matrix *src_matrix);
void layout_nz_unpack(void *dst, const void *src, enum dtype dtype,
                      const struct layout_matrix *dst_matrix);

/* layout_finish as it would be if the transposed matrix were taken for a contiguous one: a fault
 * for tests, which shows as wrong numbers and nothing else. `matrix` has room for one. */
void layout_nz_finish_as_contiguous(void *bytes, enum dtype dtype, uint64_t matrix_count,
                                    uint64_t n, uint64_t k, void *matrix);

#endif
