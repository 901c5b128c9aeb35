/* checkpoint/hf/packed_read.c - puts blocks together from weights, scales and zero points.
 *
 * What is asked for is cut so that all that it is made of fits into one piece of memory:
 *
 *     scaled, compressed,  runs of blocks, whose weights lie one behind the other in the file
 *     MXFP4
 *     GPTQ, AWQ            rectangles of rows and columns, of which the file has the transpose
 *
 * In a block of 4 bits element i is in the low half of byte i, element 16 + i in the high half.
 * FP8 that becomes F16 is read element by element. */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "checkpoint/hf/packed.h"

#define WORD_BITS 32
#define WORDS_MAX 8                 /* of a block */
#define SOURCE_BYTES (512 * KIB)    /* of weights at a time */
#define SCALES_MAX (64 * 1024)      /* at a time */
#define TILE_COLUMNS_MAX PACKED_ORDERED_MAX /* of a rectangle */
#define TILE_ROWS_MAX 4096

struct work {
    const struct ckpt *ckpt;
    const struct packed *packed;
    uint8_t *dst;                   /* of block `first` */
    uint64_t first;                 /* blocks are counted along the rows */
    uint32_t block_bytes, block_columns;
    uint64_t row_blocks;            /* blocks of a row */
    uint64_t per_word;              /* numbers of an I32 */
    struct err *err;
    /* What of the scales and zero points is there: from row scale_row and group scale_group on,
     * scale_stride in a row. */
    uint64_t scale_row, scale_group, scale_stride;
    uint64_t zero_row;              /* of words */
    uint8_t source[SOURCE_BYTES];
    uint8_t raw[SCALES_MAX * 4];    /* scales as the file has them */
    float scales[SCALES_MAX];
    uint32_t zeros[SCALES_MAX];     /* words */
};

static_assert(sizeof(struct work) <= CKPT_READ_BYTES_MAX, "what checkpoint.h says");
static_assert(SCALES_MAX >= PACKED_COLUMNS_MAX / PACKED_GROUP, "the scales of a row fit");

static enum status read_at(const struct work *work, const struct ckpt_tensor *tensor,
                           uint64_t offset_bytes, void *dst, uint64_t size_bytes)
{
    assert(offset_bytes + size_bytes <= tensor->size_bytes);
    return file_read_at(&work->ckpt->files[tensor->file_index], tensor->offset_bytes + offset_bytes,
                        dst, size_bytes, work->err);
}

/* Rows [row, row + rows) and columns [column, column + columns) of a matrix, without gaps. */
static enum status read_box(const struct work *work, const struct ckpt_tensor *tensor,
                            uint32_t element_bytes, uint64_t row, uint64_t rows, uint64_t column,
                            uint64_t columns, uint8_t *dst)
{
    const uint64_t row_bytes = tensor->shape[1] * element_bytes;
    const uint64_t take_bytes = columns * element_bytes;
    enum status st = STATUS_OK;

    if (take_bytes == row_bytes)
        return read_at(work, tensor, row * row_bytes, dst, rows * row_bytes);
    for (uint64_t i = 0; i < rows && st == STATUS_OK; i++)
        st = read_at(work, tensor, (row + i) * row_bytes + column * element_bytes,
                     dst + i * take_bytes, take_bytes);
    return st;
}

static enum status no_f16(const struct work *work, float scale, uint64_t row, uint64_t group)
{
    return err_set(work->err, STATUS_BAD_INPUT,
                   "%s: tensor '%s': the scale of row %" PRIu64 ", group %" PRIu64 " is %g, which "
                   "F16 does not hold", ckpt_file_path(work->ckpt, work->packed->scales.file_index),
                   work->packed->scales.name, row, group, (double)scale);
}

static uint8_t *block_at(const struct work *work, uint64_t row, uint64_t block)
{
    return work->dst + (row * work->row_blocks + block - work->first) * work->block_bytes;
}

/* The scale at the head of a block, in F16. */
static enum status put_scale(const struct work *work, uint8_t *block, float scale, uint64_t row,
                             uint64_t group)
{
    const uint16_t bits = f32_to_f16(scale);

    block[0] = (uint8_t)bits;
    block[1] = (uint8_t)(bits >> 8);
    return (bits & 0x7C00) != 0x7C00 ? STATUS_OK : no_f16(work, scale, row, group);
}

/* A block from its scale and zero point; its numbers are the caller's. */
static enum status put_head(const struct work *work, uint8_t *block, float scale, uint32_t zero,
                            uint64_t row, uint64_t group)
{
    const struct packed *packed = work->packed;

    const uint32_t middle = UINT32_C(1) << (packed->bits - 1);

    if (packed->dtype == DTYPE_INT4)
        block[2] = (uint8_t)zero;
    else if (zero != middle)
        return err_set(work->err, STATUS_BAD_INPUT,
                       "%s: tensor '%s': the zero point of row %" PRIu64 ", group %" PRIu64
                       " is %u; \"sym\" in config.json says that it is %u",
                       ckpt_file_path(work->ckpt, packed->zeros.file_index), packed->zeros.name,
                       row, group, zero, middle);
    return put_scale(work, block, scale, row, group);
}

static uint8_t *halves_of(const struct work *work, uint8_t *block)
{
    return block + (work->packed->dtype == DTYPE_INT4 ? 3 : 2);
}

/* Each number of 4 bits in a byte of its own, in order. */
static uint64_t spread(uint32_t word)
{
    uint64_t wide = word;

    wide = (wide | wide << 16) & UINT64_C(0x0000FFFF0000FFFF);
    wide = (wide | wide << 8) & UINT64_C(0x00FF00FF00FF00FF);
    return (wide | wide << 4) & UINT64_C(0x0F0F0F0F0F0F0F0F);
}

/* 32 numbers, eight in a word. */
static void put_words(uint8_t *halves, const uint32_t words[4])
{
    const uint64_t first = spread(words[0]) | spread(words[2]) << 4;
    const uint64_t second = spread(words[1]) | spread(words[3]) << 4;

    memcpy(halves, &first, sizeof(first));
    memcpy(halves + 8, &second, sizeof(second));
}

static uint32_t word_at(const uint8_t *bytes, uint64_t index)
{
    uint32_t word;

    memcpy(&word, bytes + index * sizeof(word), sizeof(word));
    return word;
}

/* --- scaled, compressed and MXFP4: runs of blocks --------------------------------------------- */

/* Scales for rows [row, row + rows), as many as are in the grid's rows of them; zero points too. */
static enum status read_grid(struct work *work, uint64_t row, uint64_t rows)
{
    const struct packed *packed = work->packed;
    const struct ckpt_tensor *scales = &packed->scales;
    const uint64_t stride = (packed->column_count - 1) / packed->scale_columns + 1;
    const uint64_t first = row / packed->scale_rows;
    const uint64_t count = ((row + rows - 1) / packed->scale_rows + 1 - first) * stride;
    const bool as_bytes = packed->kind == PACKED_MXFP4; /* they stay what they are */
    const uint64_t element_bytes = as_bytes ? 1 : dtype_info(scales->dtype)->block_bytes;
    enum status st;

    assert(count <= SCALES_MAX);
    work->scale_row = first;
    work->scale_stride = stride;
    st = read_at(work, scales, first * stride * element_bytes, work->raw, count * element_bytes);
    if (st != STATUS_OK || as_bytes)
        return st;
    dtype_convert(work->scales, DTYPE_F32, work->raw, scales->dtype, count);
    if (packed->zeros.name == NULL)
        return STATUS_OK;
    work->zero_row = row / work->per_word;
    return read_at(work, &packed->zeros, work->zero_row * stride * 4, work->zeros,
                   ((row + rows - 1) / work->per_word + 1 - work->zero_row) * stride * 4);
}

static enum status refuse_nan(const struct work *work, uint64_t row, uint64_t column)
{
    return err_set(work->err, STATUS_BAD_INPUT,
                   "%s: tensor '%s': row %" PRIu64 ", column %" PRIu64 " is not a number",
                   ckpt_file_path(work->ckpt, work->packed->weight.file_index),
                   work->packed->weight.name, row, column);
}

static enum status put_f8(const struct work *work, uint8_t *block, const uint8_t *source,
                          float scale, uint64_t row, uint64_t column)
{
    memcpy(block, &scale, sizeof(scale));
    memcpy(block + sizeof(scale), source, work->block_columns);
    for (uint64_t i = 0; i < work->block_columns; i++)
        if ((source[i] & 0x7F) == 0x7F)
            return refuse_nan(work, row, column + i);
    return STATUS_OK;
}

/* An element whose row is no whole number of blocks of any size. */
static enum status put_f8_as_f16(const struct work *work, uint8_t *to, uint8_t source, float scale,
                                 uint64_t row, uint64_t column)
{
    const float value = scale * (256 * f16_to_f32(quant_e4m3_f16(source)));
    const uint16_t bits = f32_to_f16(value);

    memcpy(to, &bits, sizeof(bits));
    if ((source & 0x7F) == 0x7F)
        return refuse_nan(work, row, column);
    if ((bits & 0x7C00) != 0x7C00)
        return STATUS_OK;
    return err_set(work->err, STATUS_BAD_INPUT,
                   "%s: tensor '%s': row %" PRIu64 ", column %" PRIu64 " is %g, which F16 does not "
                   "hold", ckpt_file_path(work->ckpt, work->packed->weight.file_index),
                   work->packed->weight.name, row, column, (double)value);
}

/* 32 numbers, as a file has them one behind the other. */
static void put_numbers(uint8_t *halves, const uint8_t *source)
{
    put_words(halves, (const uint32_t[]){ word_at(source, 0), word_at(source, 1),
                                          word_at(source, 2), word_at(source, 3) });
}

static enum status put_run_block(const struct work *work, const uint8_t *source, uint64_t row,
                                 uint64_t index)
{
    const struct packed *packed = work->packed;
    const uint64_t column = index * work->block_columns;
    const uint64_t group = column / packed->scale_columns;
    const uint64_t at = (row / packed->scale_rows - work->scale_row) * work->scale_stride + group;
    uint8_t *block = block_at(work, row, index);
    uint32_t zero = 8;
    float scale;

    if (packed->kind == PACKED_MXFP4) {
        block[0] = work->raw[at];
        put_numbers(block + 1, source);
        return STATUS_OK;
    }
    scale = work->scales[at];
    if (packed->dtype == DTYPE_F16)
        return put_f8_as_f16(work, block, *source, scale, row, column);
    if (packed->kind == PACKED_F8)
        return put_f8(work, block, source, scale, row, column);
    if (packed->kind == PACKED_INT8) {
        memcpy(block + 2, source, PACKED_GROUP);
        return put_scale(work, block, scale, row, group);
    }
    if (packed->zeros.name != NULL)
        zero = work->zeros[(row / work->per_word - work->zero_row) * work->scale_stride + group] >>
                   row % work->per_word * 4 & 15;
    put_numbers(halves_of(work, block), source);
    return put_head(work, block, scale, zero, row, group);
}

static enum status read_runs(struct work *work, uint64_t count)
{
    const struct packed *packed = work->packed;
    const uint64_t source_bytes = packed->weight.size_bytes / packed->row_count / work->row_blocks;
    const uint64_t stride = (packed->column_count - 1) / packed->scale_columns + 1;
    const uint64_t end = work->first + count;
    enum status st = STATUS_OK;

    for (uint64_t at = work->first, take; at < end && st == STATUS_OK; at += take) {
        const uint64_t row = at / work->row_blocks;
        const uint64_t grid_end = row / packed->scale_rows + SCALES_MAX / stride;
        const uint64_t rows_end = grid_end > packed->row_count / packed->scale_rows
                                      ? packed->row_count : grid_end * packed->scale_rows;
        take = rows_end * work->row_blocks - at;
        take = take < end - at ? take : end - at;
        take = take < SOURCE_BYTES / source_bytes ? take : SOURCE_BYTES / source_bytes;
        st = read_at(work, &packed->weight, at * source_bytes, work->source, take * source_bytes);
        if (st == STATUS_OK)
            st = read_grid(work, row, (at + take - 1) / work->row_blocks + 1 - row);
        for (uint64_t i = 0; i < take && st == STATUS_OK; i++)
            st = put_run_block(work, work->source + i * source_bytes, (at + i) / work->row_blocks,
                               (at + i) % work->row_blocks);
    }
    return st;
}

/* --- GPTQ and AWQ: rectangles ----------------------------------------------------------------- */

/* Rows [row, row_end), columns in blocks [block, block_end). */
struct rectangle {
    uint64_t row, row_end, block, block_end;
};

/* Which of a word's numbers is of the row, or column, i modulo how many there are. */
static uint32_t shift_of(const struct packed *packed, uint64_t i)
{
    static const uint8_t awq_shifts[] = { 0, 16, 4, 20, 8, 24, 12, 28 };
    const uint64_t each = packed->bits == 8 ? 4 : 8;

    return packed->kind == PACKED_AWQ ? awq_shifts[i % each] : (uint32_t)(i % each * packed->bits);
}

/* The scales and zero points of the rectangle: [groups][rows], and words of some rows each. */
static enum status read_groups(struct work *work, const struct rectangle *r)
{
    const struct packed *packed = work->packed;
    const struct ckpt_tensor *scales = &packed->scales;
    const uint64_t first = r->block * PACKED_GROUP / packed->scale_columns;
    const uint64_t count =
        (r->block_end * PACKED_GROUP - 1) / packed->scale_columns + 1 - first;
    const uint64_t rows = r->row_end - r->row;
    const uint64_t zero_row = r->row / work->per_word;
    const uint64_t zero_rows = (r->row_end - 1) / work->per_word + 1 - zero_row;
    enum status st = read_box(work, scales, dtype_info(scales->dtype)->block_bytes, first, count,
                              r->row, rows, work->raw);

    assert(count * rows <= SCALES_MAX && count * zero_rows <= SCALES_MAX);
    if (st != STATUS_OK)
        return st;
    dtype_convert(work->scales, DTYPE_F32, work->raw, scales->dtype, count * rows);
    work->scale_group = first;
    st = read_box(work, &packed->zeros, 4, first, count, zero_row, zero_rows,
                  (uint8_t *)work->zeros);
    for (uint64_t i = 0; packed->zeros_less_one && i < count * zero_rows; i++)
        work->zeros[i] += packed->bits == 8 ? 0x01010101 : 0x11111111;
    return st;
}

/* The numbers of a block of AWQ: of each of 32 words, `stride` apart, the one at `shift`. */
static void put_awq(uint8_t *halves, const uint8_t *words, uint64_t stride, uint32_t shift)
{
    for (uint64_t i = 0; i < PACKED_GROUP / 2; i++)
        halves[i] = (uint8_t)((word_at(words, i * stride) >> shift & 15) |
                              (word_at(words, (i + PACKED_GROUP / 2) * stride) >> shift & 15) << 4);
}

/* The numbers of a block of GPTQ: words `stride` apart. */
static void put_gptq(const struct packed *packed, uint8_t *numbers, const uint8_t *source,
                     uint64_t first, uint64_t stride)
{
    uint32_t words[WORDS_MAX];
    const uint64_t count = PACKED_GROUP * packed->bits / WORD_BITS;

    for (uint64_t i = 0; i < count; i++)
        words[i] = word_at(source, first + i * stride);
    if (packed->bits == 4) {
        put_words(numbers, words);
        return;
    }
    for (uint64_t i = 0; i < count; i++) /* less 128: as signed bytes */
        words[i] ^= 0x80808080;
    memcpy(numbers, words, PACKED_GROUP);
}

/* The same of columns that are by group, while all of a row's words are there. */
static void put_ordered(const struct work *work, uint8_t *numbers, uint64_t block, uint64_t row,
                        uint64_t stride)
{
    const struct packed *packed = work->packed;
    uint8_t each[PACKED_GROUP];

    for (uint64_t i = 0; i < PACKED_GROUP; i++) {
        const uint64_t column = packed->columns[block * PACKED_GROUP + i];
        const uint32_t word = word_at(work->source, column / work->per_word * stride + row);
        each[i] = (uint8_t)(word >> column % work->per_word * packed->bits);
    }
    for (uint64_t i = 0; packed->bits == 8 && i < PACKED_GROUP; i++)
        numbers[i] = each[i] ^ 0x80;
    for (uint64_t i = 0; packed->bits == 4 && i < PACKED_GROUP / 2; i++)
        numbers[i] = (uint8_t)((each[i] & 15) | each[i + PACKED_GROUP / 2] << 4);
}

static enum status put_rectangle(const struct work *work, const struct rectangle *r)
{
    const struct packed *packed = work->packed;
    const uint64_t rows = r->row_end - r->row, zero_row = r->row / work->per_word;
    const uint64_t zero_rows = (r->row_end - 1) / work->per_word + 1 - zero_row;
    const uint32_t zero_mask = (UINT32_C(1) << packed->bits) - 1;
    enum status st = STATUS_OK;

    for (uint64_t row = r->row; row < r->row_end; row++) {
        for (uint64_t b = r->block; b < r->block_end && st == STATUS_OK; b++) {
            const uint64_t group = b * PACKED_GROUP / packed->scale_columns;
            const uint64_t at = group - work->scale_group;
            const uint32_t zero = work->zeros[at * zero_rows + row / work->per_word - zero_row] >>
                                      shift_of(packed, row) & zero_mask;
            uint8_t *block = block_at(work, row, b), *halves = halves_of(work, block);
            if (packed->kind == PACKED_AWQ) {
                const uint64_t first = (b - r->block) * PACKED_GROUP * zero_rows;
                put_awq(halves, work->source + (first + row / work->per_word - zero_row) * 4,
                        zero_rows, shift_of(packed, row));
            } else if (packed->columns != NULL) {
                put_ordered(work, halves, b, row - r->row, rows);
            } else {
                const uint64_t words = PACKED_GROUP / work->per_word;
                put_gptq(packed, halves, work->source,
                         (b - r->block) * words * rows + row - r->row, rows);
            }
            st = put_head(work, block, work->scales[at * rows + row - r->row], zero, row, group);
        }
    }
    return st;
}

/* A rectangle that fits. */
static enum status read_tile(struct work *work, const struct rectangle *r)
{
    const struct packed *packed = work->packed;
    const uint64_t columns = (r->block_end - r->block) * PACKED_GROUP;
    const uint64_t column = r->block * PACKED_GROUP, zero_row = r->row / work->per_word;
    enum status st;

    if (packed->kind == PACKED_AWQ)
        st = read_box(work, &packed->weight, 4, column, columns, zero_row,
                      (r->row_end - 1) / work->per_word + 1 - zero_row, work->source);
    else if (packed->columns != NULL)
        st = read_box(work, &packed->weight, 4, 0, packed->weight.shape[0], r->row,
                      r->row_end - r->row, work->source);
    else
        st = read_box(work, &packed->weight, 4, column / work->per_word, columns / work->per_word,
                      r->row, r->row_end - r->row, work->source);
    if (st == STATUS_OK)
        st = read_groups(work, r);
    return st == STATUS_OK ? put_rectangle(work, r) : st;
}

/* Cuts a rectangle into tiles: columns times rows times a number's size, and a word's rows more. */
static enum status read_rectangle(struct work *work, const struct rectangle *whole)
{
    const uint64_t blocks_max = TILE_COLUMNS_MAX / PACKED_GROUP;
    enum status st = STATUS_OK;

    for (uint64_t block = whole->block; block < whole->block_end && st == STATUS_OK;
         block += blocks_max) {
        const uint64_t left = whole->block_end - block;
        const uint64_t blocks = left < blocks_max ? left : blocks_max;
        const uint64_t read_blocks = work->packed->columns != NULL ? work->row_blocks : blocks;
        uint64_t rows_max = work->per_word * SOURCE_BYTES / (4 * read_blocks * PACKED_GROUP) -
                            2 * work->per_word;
        rows_max = rows_max < TILE_ROWS_MAX ? rows_max : TILE_ROWS_MAX;
        for (uint64_t row = whole->row; row < whole->row_end && st == STATUS_OK; row += rows_max) {
            const uint64_t rows_left = whole->row_end - row;
            const struct rectangle tile = {
                row, row + (rows_left < rows_max ? rows_left : rows_max), block, block + blocks
            };
            st = read_tile(work, &tile);
        }
    }
    return st;
}

/* The end of a row, whole rows, the beginning of one: each may be missing. */
static enum status read_transposed(struct work *work, uint64_t count)
{
    uint64_t at = work->first;
    const uint64_t end = at + count;
    enum status st = STATUS_OK;

    while (at < end && st == STATUS_OK) {
        const uint64_t row = at / work->row_blocks, block = at % work->row_blocks;
        struct rectangle r = { row, row + 1, block, work->row_blocks };
        if (block == 0 && end - at >= work->row_blocks)
            r.row_end = end / work->row_blocks;
        else if (end < (row + 1) * work->row_blocks)
            r.block_end = block + end - at;
        st = read_rectangle(work, &r);
        at = r.row_end == row + 1 ? row * work->row_blocks + r.block_end
                                  : r.row_end * work->row_blocks;
    }
    return st;
}

/* --- both ------------------------------------------------------------------------------------- */

static enum status refuse_group(const struct ckpt *ckpt, const struct packed *packed,
                                uint64_t column, int32_t group, struct err *err)
{
    return err_set(err, STATUS_BAD_INPUT,
                   "%s: tensor '%s': column %" PRIu64 " is in group %" PRId32 "; %" PRIu64
                   " groups of %" PRIu64 " columns are read",
                   ckpt_file_path(ckpt, packed->order.file_index), packed->order.name, column,
                   group, packed->column_count / packed->scale_columns, packed->scale_columns);
}

/* Counts sorted: where a group's columns begin, so many are before it. */
static enum status sort_columns(const struct ckpt *ckpt, const struct packed *packed,
                                const int32_t *groups, uint32_t *columns, uint32_t *taken,
                                struct err *err)
{
    for (uint64_t i = 0; i < packed->column_count; i++) {
        const int32_t group = groups[i];

        if (group < 0 || (uint64_t)group >= packed->column_count / packed->scale_columns ||
            taken[group] == packed->scale_columns)
            return refuse_group(ckpt, packed, i, group, err);
        columns[(uint64_t)group * packed->scale_columns + taken[group]++] = (uint32_t)i;
    }
    return STATUS_OK;
}

enum status packed__read_order(const struct ckpt *ckpt, const struct packed *packed,
                               uint32_t **columns_out, struct err *err)
{
    const size_t count = (size_t)packed->column_count;
    int32_t *const groups = calloc(count, sizeof(*groups));
    uint32_t *const columns = calloc(count, sizeof(*columns));
    uint32_t *const taken = calloc(count / (size_t)packed->scale_columns, sizeof(*taken));
    bool sorted = true;
    enum status st = groups == NULL || columns == NULL || taken == NULL
                         ? err_set(err, STATUS_NO_MEMORY, "no memory for an order of columns")
                         : STATUS_OK;

    if (st == STATUS_OK)
        st = file_read_at(&ckpt->files[packed->order.file_index], packed->order.offset_bytes,
                          groups, count * sizeof(*groups), err);
    if (st == STATUS_OK)
        st = sort_columns(ckpt, packed, groups, columns, taken, err);
    for (size_t i = 0; st == STATUS_OK && i < count; i++)
        sorted = sorted && columns[i] == i;
    free(taken);
    free(groups);
    if (st != STATUS_OK || sorted) {
        free(columns);
        *columns_out = NULL;
        return st;
    }
    *columns_out = columns;
    return STATUS_OK;
}

void packed__span(const struct packed *packed, uint64_t offset_bytes, uint64_t size_bytes,
                  uint64_t *file_offset_out, uint64_t *size_out)
{
    const struct dtype_info *info = dtype_info(packed->dtype);
    const uint64_t row_blocks = packed->column_count / info->block_elements;
    const uint64_t each = packed->weight.size_bytes / packed->row_count / row_blocks;

    *file_offset_out = packed->weight.offset_bytes + offset_bytes / info->block_bytes * each;
    *size_out = size_bytes / info->block_bytes * each;
}

enum status packed__read(const struct ckpt *ckpt, const struct packed *packed,
                         uint64_t offset_bytes, void *dst, uint64_t size_bytes, struct err *err)
{
    const struct dtype_info *info = dtype_info(packed->dtype);
    struct work *work;
    enum status st;

    assert(offset_bytes % info->block_bytes == 0 && size_bytes % info->block_bytes == 0);
    if (size_bytes == 0)
        return STATUS_OK;
    if (packed->kind == PACKED_ORDER) {
        const uint64_t first = offset_bytes / sizeof(float);
        for (uint64_t i = 0; i < size_bytes / sizeof(float); i++)
            ((float *)dst)[i] = (float)packed->columns[first + i];
        return STATUS_OK;
    }
    work = malloc(sizeof(*work));
    if (work == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to put quantised weights together");
    work->ckpt = ckpt;
    work->packed = packed;
    work->dst = dst;
    work->first = offset_bytes / info->block_bytes;
    work->block_bytes = info->block_bytes;
    work->block_columns = info->block_elements;
    work->row_blocks = packed->column_count / info->block_elements;
    work->per_word = packed->bits == 8 ? 4 : 8;
    work->err = err;
    assert(work->row_blocks > 0);
    if (packed->kind == PACKED_GPTQ || packed->kind == PACKED_AWQ)
        st = read_transposed(work, size_bytes / info->block_bytes);
    else
        st = read_runs(work, size_bytes / info->block_bytes);
    free(work);
    return st;
}
