/* checkpoint/chunk.c - see chunk.h. */
#include "checkpoint/chunk.h"

#include <assert.h>
#include <string.h>

#include "base/size.h"

/* A run this long is read straight to its place; a shorter one is cheaper to read along with its
 * neighbours than with a system call of its own. */
#define DIRECT_RUN_BYTES_MIN (64 * KIB)
#define DIRECT_CHUNK_BYTES (4 * MIB)
/* What is not wanted between two rows is read along when it is shorter than this. */
#define GAP_BYTES_MAX (64 * KIB)

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

void chunk_normalise(struct loader_dim dims[3])
{
    struct loader_dim out[3] = { { 1, 0, 0 }, { 1, 0, 0 }, { 1, 0, 0 } };
    bool taken[3] = { false, false, false };
    size_t at = 3;

    for (;;) { /* takes the dimensions by rising source stride */
        size_t next = 3;
        for (size_t d = 0; d < 3; d++)
            if (!taken[d] && dims[d].count > 1 &&
                (next == 3 || dims[d].src_stride < dims[next].src_stride))
                next = d;
        if (next == 3)
            break;
        taken[next] = true;
        if (at < 3 && dims[next].src_stride == out[at].src_stride * out[at].count &&
            dims[next].dst_stride == out[at].dst_stride * out[at].count)
            out[at].count *= dims[next].count;
        else
            out[--at] = dims[next];
    }
    memcpy(dims, out, sizeof(out));
}

bool chunk_keeps_blocks(const struct loader_part *part, uint32_t block_elements)
{
    struct loader_dim dims[3];

    if (block_elements == 1)
        return true;
    memcpy(dims, part->dims, sizeof(dims));
    chunk_normalise(dims);
    for (size_t d = 0; d < 2; d++)
        if (dims[d].src_stride % block_elements != 0 || dims[d].dst_stride % block_elements != 0)
            return false;
    return dims[2].src_stride == 1 && dims[2].dst_stride == 1 &&
           dims[2].count % block_elements == 0 && part->src_offset % block_elements == 0 &&
           part->dst_offset % block_elements == 0;
}

uint64_t chunk_wanted_bytes(enum dtype dtype, uint64_t count)
{
    const struct dtype_info *const info = dtype_info(dtype);

    return count / info->block_elements * info->block_bytes +
           count % info->block_elements * info->block_bytes / info->block_elements;
}

void chunk_walk_init(struct chunk_walk *walk, const struct loader *loader, const struct ckpt *ckpt,
                     uint64_t buffer_bytes)
{
    *walk = (struct chunk_walk){ .loader = loader, .ckpt = ckpt, .buffer_bytes = buffer_bytes };
}

/* Counts the part in blocks instead of elements. */
static void count_blocks(struct chunk_walk *walk, uint32_t block_elements)
{
    walk->src_offset /= block_elements;
    walk->dst_offset /= block_elements;
    walk->dims[2].count /= block_elements;
    for (size_t d = 0; d < 2; d++) {
        walk->dims[d].src_stride /= block_elements;
        walk->dims[d].dst_stride /= block_elements;
    }
    chunk_normalise(walk->dims);
}

static void begin_part(struct chunk_walk *walk)
{
    const struct loader_part *const part = loader_part_at(walk->loader, walk->part_index);
    const struct loader_dim *const run = &walk->dims[2];
    const struct dtype_info *info;
    bool same;

    walk->tensor = ckpt_find(walk->ckpt, part->tensor);
    assert(walk->tensor != NULL); /* loader_check */
    info = dtype_info(walk->tensor->dtype);
    same = walk->tensor->dtype == loader_dtype(walk->loader);
    walk->src_offset = part->src_offset;
    walk->dst_offset = part->dst_offset;
    walk->done_count = 0;
    memcpy(walk->dims, part->dims, sizeof(walk->dims));
    chunk_normalise(walk->dims);
    memset(walk->at, 0, sizeof(walk->at));
    walk->kind = CHUNK_ELEMENTS;
    if (info->block_elements > 1)
        walk->kind = same ? CHUNK_BLOCKS : CHUNK_DECODED;
    if (walk->kind == CHUNK_BLOCKS) {
        assert(chunk_keeps_blocks(part, info->block_elements)); /* loader_check */
        count_blocks(walk, info->block_elements);
    }
    walk->direct = same && (run->count == 1 || (run->src_stride == 1 && run->dst_stride == 1)) &&
                   ((walk->dims[0].count == 1 && walk->dims[1].count == 1) ||
                    run->count * info->block_bytes >= DIRECT_RUN_BYTES_MIN);
}

/* How many rows of `span` elements, `stride` apart, at most `count`, to read at once into room for
 * `limit` elements; span <= limit, gaps of at most gap_max elements. */
static uint64_t rows_at_once(uint64_t count, uint64_t stride, uint64_t span, uint64_t limit,
                             uint64_t gap_max)
{
    if (stride == 0)
        return count;
    if (stride > span && stride - span > gap_max)
        return 1;
    return min_u64(count, 1 + (limit - span) / stride);
}

/* How many elements (or blocks) from the first to the last of a chunk. */
static uint64_t span_max(const struct chunk_walk *walk)
{
    const struct dtype_info *const info = dtype_info(walk->tensor->dtype);

    if (walk->kind == CHUNK_DECODED) {
        const uint64_t block_bytes =
            info->block_bytes + info->block_elements * (uint64_t)sizeof(float);
        assert(walk->buffer_bytes >= 2 * block_bytes);
        /* less one block, as neither end needs to be one's end */
        return (walk->buffer_bytes / block_bytes - 1) * info->block_elements;
    }
    return (walk->direct ? DIRECT_CHUNK_BYTES : walk->buffer_bytes) / info->block_bytes;
}

/* The counts of the chunk at walk->at: a slice of one dimension, all of the inner ones, and one of
 * each outer one. */
static void choose_counts(const struct chunk_walk *walk, uint64_t counts[3], uint64_t *span_out)
{
    const struct dtype_info *const info = dtype_info(walk->tensor->dtype);
    const uint64_t gap_max =
        GAP_BYTES_MAX / info->block_bytes *
        (walk->kind == CHUNK_DECODED ? info->block_elements : 1);
    const uint64_t limit = span_max(walk);
    uint64_t span = 1;
    bool whole = true; /* the inner dimensions are taken whole */

    for (size_t d = 3; d-- > 0;) {
        const struct loader_dim *const dim = &walk->dims[d];
        counts[d] = 1;
        if (!whole || (walk->direct && d < 2))
            continue;
        counts[d] = rows_at_once(dim->count, dim->src_stride, span, limit, gap_max);
        whole = counts[d] == dim->count;
        counts[d] = min_u64(counts[d], dim->count - walk->at[d]);
        span += (counts[d] - 1) * dim->src_stride;
    }
    *span_out = span;
}

/* What is read for the `span` elements (or blocks) from `first` of the tensor on. */
static void place_reading(const struct chunk_walk *walk, uint64_t first, uint64_t span,
                          struct chunk *chunk)
{
    const struct dtype_info *const info = dtype_info(walk->tensor->dtype);
    const uint64_t unit = walk->kind == CHUNK_DECODED ? info->block_elements : 1;
    const uint64_t block_first = first / unit;
    const uint64_t block_count = (first + span - 1) / unit + 1 - block_first;

    chunk->read_at_bytes = block_first * info->block_bytes;
    chunk->read_bytes = block_count * info->block_bytes;
    chunk->buffer_at_bytes =
        walk->kind == CHUNK_DECODED ? block_count * unit * sizeof(float) : 0;
    chunk->src_first = first - block_first * unit;
    assert(walk->direct || chunk->buffer_at_bytes + chunk->read_bytes <= walk->buffer_bytes);
}

/* Counts the chunk's elements as done; returns what they are of the part's source bytes. */
static uint64_t pass_elements(struct chunk_walk *walk, const uint64_t counts[3])
{
    const struct dtype_info *const info = dtype_info(walk->tensor->dtype);
    const uint64_t unit = walk->kind == CHUNK_BLOCKS ? info->block_elements : 1;
    const uint64_t before = walk->done_count * unit;

    walk->done_count += counts[0] * counts[1] * counts[2];
    return chunk_wanted_bytes(walk->tensor->dtype, walk->done_count * unit) -
           chunk_wanted_bytes(walk->tensor->dtype, before);
}

bool chunk_walk_next(struct chunk_walk *walk, struct chunk *chunk_out)
{
    struct chunk chunk;
    uint64_t counts[3];
    uint64_t first, span;

    if (walk->part_index == loader_part_count(walk->loader))
        return false;
    if (walk->tensor == NULL)
        begin_part(walk);
    chunk.tensor = walk->tensor;
    chunk.kind = walk->kind;
    chunk.direct = walk->direct;
    first = walk->src_offset;
    chunk.dst_first = walk->dst_offset;
    choose_counts(walk, counts, &span);
    for (size_t d = 0; d < 3; d++) {
        first += walk->at[d] * walk->dims[d].src_stride;
        chunk.dst_first += walk->at[d] * walk->dims[d].dst_stride;
        chunk.dims[d] = walk->dims[d];
        chunk.dims[d].count = counts[d];
    }
    place_reading(walk, first, span, &chunk);
    chunk.source_bytes = pass_elements(walk, counts);
    for (size_t d = 3; d-- > 0;) {
        walk->at[d] += counts[d];
        if (walk->at[d] < walk->dims[d].count)
            break;
        walk->at[d] = 0;
        if (d == 0) {
            walk->part_index++;
            walk->tensor = NULL;
        }
    }
    *chunk_out = chunk;
    return true;
}

/* --- conversion ------------------------------------------------------------------------------- */

struct place {
    const uint8_t *src;
    uint8_t *dst;
    enum dtype src_dtype, dst_dtype;
    uint64_t src_size, dst_size; /* of an element */
};

static void convert_run(const struct place *place, uint64_t src, uint64_t dst, uint64_t count)
{
    if (place->src_dtype == place->dst_dtype) /* elements, or blocks */
        memcpy(place->dst + dst * place->dst_size, place->src + src * place->src_size,
               count * place->src_size);
    else
        dtype_convert(place->dst + dst * place->dst_size, place->dst_dtype,
                      place->src + src * place->src_size, place->src_dtype, count);
}

#define TILE 32

typedef uint16_t lanes_2 __attribute__((vector_size(16)));
typedef uint32_t lanes_4 __attribute__((vector_size(16)));

/* to[c][r] = from[r][c] for a square of 8 elements of 2 bytes; rows lie to_stride and TILE elements
 * apart. Each round interleaves pairs of rows that are half the square apart: after three of them
 * the element of row r, column c has come to row c, column r. */
static void transpose_square_2(uint16_t *to, uint64_t to_stride, const uint16_t *from)
{
    lanes_2 a[8], b[8];

    for (size_t i = 0; i < 8; i++)
        memcpy(&a[i], from + i * TILE, sizeof(a[i]));
    for (size_t round = 0; round < 3; round++) {
        for (size_t i = 0; i < 4; i++) {
            b[2 * i] = __builtin_shufflevector(a[i], a[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
            b[2 * i + 1] = __builtin_shufflevector(a[i], a[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
        }
        memcpy(a, b, sizeof(a));
    }
    for (size_t i = 0; i < 8; i++)
        memcpy(to + i * to_stride, &a[i], sizeof(a[i]));
}

/* The same for a square of 4 elements of 4 bytes, in two rounds. */
static void transpose_square_4(uint32_t *to, uint64_t to_stride, const uint32_t *from)
{
    lanes_4 a[4], b[4];

    for (size_t i = 0; i < 4; i++)
        memcpy(&a[i], from + i * TILE, sizeof(a[i]));
    for (size_t round = 0; round < 2; round++) {
        for (size_t i = 0; i < 2; i++) {
            b[2 * i] = __builtin_shufflevector(a[i], a[i + 2], 0, 4, 1, 5);
            b[2 * i + 1] = __builtin_shufflevector(a[i], a[i + 2], 2, 6, 3, 7);
        }
        memcpy(a, b, sizeof(a));
    }
    for (size_t i = 0; i < 4; i++)
        memcpy(to + i * to_stride, &a[i], sizeof(a[i]));
}

/* to[c * to_stride + r] = tile[r][c], squares first, then what is left over. */
static void transpose_tile_2(uint16_t *to, uint64_t to_stride, const uint16_t *tile, uint64_t rows,
                             uint64_t columns)
{
    const uint64_t whole_rows = rows / 8 * 8;
    const uint64_t whole_columns = columns / 8 * 8;

    for (uint64_t c = 0; c < whole_columns; c += 8)
        for (uint64_t r = 0; r < whole_rows; r += 8)
            transpose_square_2(to + c * to_stride + r, to_stride, tile + r * TILE + c);
    for (uint64_t c = 0; c < columns; c++)
        for (uint64_t r = c < whole_columns ? whole_rows : 0; r < rows; r++)
            to[c * to_stride + r] = tile[r * TILE + c];
}

static void transpose_tile_4(uint32_t *to, uint64_t to_stride, const uint32_t *tile, uint64_t rows,
                             uint64_t columns)
{
    const uint64_t whole_rows = rows / 4 * 4;
    const uint64_t whole_columns = columns / 4 * 4;

    for (uint64_t c = 0; c < whole_columns; c += 4)
        for (uint64_t r = 0; r < whole_rows; r += 4)
            transpose_square_4(to + c * to_stride + r, to_stride, tile + r * TILE + c);
    for (uint64_t c = 0; c < columns; c++)
        for (uint64_t r = c < whole_columns ? whole_rows : 0; r < rows; r++)
            to[c * to_stride + r] = tile[r * TILE + c];
}

/* `column` lies along the source, `row` along the destination. Works tile by tile, so that the
 * lines of both sides are used up while they are in the first cache, converting into a tile of its
 * own. */
static void convert_transposed(const struct place *place, uint64_t src, uint64_t dst,
                               const struct loader_dim *row, const struct loader_dim *column)
{
    uint32_t tile[TILE * TILE]; /* of elements in dst_dtype: row-major, TILE wide */

    for (uint64_t c = 0; c < column->count; c += TILE) {
        const uint64_t columns = min_u64(TILE, column->count - c);
        for (uint64_t r = 0; r < row->count; r += TILE) {
            const uint64_t rows = min_u64(TILE, row->count - r);
            uint8_t *const to =
                place->dst + (dst + c * column->dst_stride + r) * place->dst_size;
            for (uint64_t i = 0; i < rows; i++)
                dtype_convert((uint8_t *)tile + i * TILE * place->dst_size, place->dst_dtype,
                              place->src + (src + (r + i) * row->src_stride + c) * place->src_size,
                              place->src_dtype, columns);
            if (place->dst_size == 2)
                transpose_tile_2((uint16_t *)to, column->dst_stride, (const uint16_t *)tile, rows,
                                 columns);
            else
                transpose_tile_4((uint32_t *)to, column->dst_stride, tile, rows, columns);
        }
    }
}

/* The plane of dims[1] and dims[2]. */
static void convert_plane(const struct place *place, uint64_t src, uint64_t dst,
                          const struct loader_dim dims[3])
{
    for (uint64_t j = 0; j < dims[1].count; j++) {
        const uint64_t row_src = src + j * dims[1].src_stride;
        const uint64_t row_dst = dst + j * dims[1].dst_stride;
        if (dims[2].count == 1 || (dims[2].src_stride == 1 && dims[2].dst_stride == 1)) {
            convert_run(place, row_src, row_dst, dims[2].count);
            continue;
        }
        for (uint64_t k = 0; k < dims[2].count; k++)
            convert_run(place, row_src + k * dims[2].src_stride, row_dst + k * dims[2].dst_stride,
                        1);
    }
}

/* The chunk, as elements of src_dtype (or blocks, of the same dtype as dst's). */
static void convert_box(const struct chunk *chunk, const void *src, enum dtype src_dtype,
                        enum dtype dst_dtype, void *dst)
{
    const struct place place = { .src = src, .dst = dst, .src_dtype = src_dtype,
                                 .dst_dtype = dst_dtype,
                                 .src_size = dtype_info(src_dtype)->block_bytes,
                                 .dst_size = dtype_info(dst_dtype)->block_bytes };
    struct loader_dim dims[3];
    size_t row = 3; /* the dimension along which the destination is dense, when the source is not */

    memcpy(dims, chunk->dims, sizeof(dims));
    chunk_normalise(dims);
    for (size_t d = 0; d < 2; d++)
        if (dims[d].dst_stride == 1 && dims[d].count > 1)
            row = d;
    if (dims[2].src_stride != 1 || row == 3 || chunk->kind == CHUNK_BLOCKS) {
        for (uint64_t i = 0; i < dims[0].count; i++)
            convert_plane(&place, chunk->src_first + i * dims[0].src_stride,
                          chunk->dst_first + i * dims[0].dst_stride, dims);
        return;
    }
    assert(place.dst_size == 2 || place.dst_size == 4);
    for (uint64_t i = 0; i < dims[1 - row].count; i++)
        convert_transposed(&place, chunk->src_first + i * dims[1 - row].src_stride,
                           chunk->dst_first + i * dims[1 - row].dst_stride, &dims[row], &dims[2]);
}

void chunk_convert(const struct chunk *chunk, void *buffer, enum dtype dst_dtype, void *dst)
{
    const struct dtype_info *const info = dtype_info(chunk->tensor->dtype);

    if (chunk->kind != CHUNK_DECODED) {
        convert_box(chunk, buffer, chunk->tensor->dtype, dst_dtype, dst);
        return;
    }
    dtype_convert(buffer, DTYPE_F32, (const uint8_t *)buffer + chunk->buffer_at_bytes,
                  chunk->tensor->dtype,
                  chunk->read_bytes / info->block_bytes * info->block_elements);
    convert_box(chunk, buffer, DTYPE_F32, dst_dtype, dst);
}
