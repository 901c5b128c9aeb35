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

void chunk_walk_init(struct chunk_walk *walk, const struct loader *loader, const struct ckpt *ckpt,
                     uint64_t buffer_bytes)
{
    *walk = (struct chunk_walk){ .loader = loader, .ckpt = ckpt, .buffer_bytes = buffer_bytes };
}

static void begin_part(struct chunk_walk *walk)
{
    const struct loader_part *const part = loader_part_at(walk->loader, walk->part_index);
    const struct loader_dim *const run = &walk->dims[2];

    walk->tensor = ckpt_find(walk->ckpt, part->tensor);
    assert(walk->tensor != NULL); /* loader_check */
    memcpy(walk->dims, part->dims, sizeof(walk->dims));
    chunk_normalise(walk->dims);
    memset(walk->at, 0, sizeof(walk->at));
    walk->direct = walk->tensor->dtype == loader_dtype(walk->loader) &&
                   (run->count == 1 || (run->src_stride == 1 && run->dst_stride == 1)) &&
                   ((walk->dims[0].count == 1 && walk->dims[1].count == 1) ||
                    run->count * dtype_info(walk->tensor->dtype)->block_bytes >=
                        DIRECT_RUN_BYTES_MIN);
}

/* How many rows of `span` elements, `stride` apart, at most `count`, to read at once into room for
 * `limit` elements; span <= limit. */
static uint64_t rows_at_once(uint64_t count, uint64_t stride, uint64_t span, uint64_t limit,
                             uint64_t element_bytes)
{
    if (stride == 0)
        return count;
    if (stride > span && (stride - span) * element_bytes > GAP_BYTES_MAX)
        return 1;
    return min_u64(count, 1 + (limit - span) / stride);
}

/* The counts of the chunk at walk->at: a slice of one dimension, all of the inner ones, and one of
 * each outer one. */
static void choose_counts(const struct chunk_walk *walk, uint64_t counts[3], uint64_t *span_out)
{
    const uint64_t element_bytes = dtype_info(walk->tensor->dtype)->block_bytes;
    const uint64_t limit = (walk->direct ? DIRECT_CHUNK_BYTES : walk->buffer_bytes) / element_bytes;
    uint64_t span = 1;
    bool whole = true; /* the inner dimensions are taken whole */

    for (size_t d = 3; d-- > 0;) {
        const struct loader_dim *const dim = &walk->dims[d];
        counts[d] = 1;
        if (!whole || (walk->direct && d < 2))
            continue;
        counts[d] = rows_at_once(dim->count, dim->src_stride, span, limit, element_bytes);
        whole = counts[d] == dim->count;
        counts[d] = min_u64(counts[d], dim->count - walk->at[d]);
        span += (counts[d] - 1) * dim->src_stride;
    }
    *span_out = span;
}

bool chunk_walk_next(struct chunk_walk *walk, struct chunk *chunk_out)
{
    const struct loader_part *part;
    struct chunk chunk;
    uint64_t counts[3];

    if (walk->part_index == loader_part_count(walk->loader))
        return false;
    if (walk->tensor == NULL)
        begin_part(walk);
    part = loader_part_at(walk->loader, walk->part_index);
    chunk.tensor = walk->tensor;
    chunk.direct = walk->direct;
    chunk.src_first = part->src_offset;
    chunk.dst_first = part->dst_offset;
    choose_counts(walk, counts, &chunk.src_span);
    for (size_t d = 0; d < 3; d++) {
        chunk.src_first += walk->at[d] * walk->dims[d].src_stride;
        chunk.dst_first += walk->at[d] * walk->dims[d].dst_stride;
        chunk.dims[d] = walk->dims[d];
        chunk.dims[d].count = counts[d];
    }
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

uint64_t chunk_element_count(const struct chunk *chunk)
{
    return chunk->dims[0].count * chunk->dims[1].count * chunk->dims[2].count;
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

void chunk_convert(const struct chunk *chunk, const void *src, enum dtype dst_dtype, void *dst)
{
    const struct place place = { .src = src, .dst = dst, .src_dtype = chunk->tensor->dtype,
                                 .dst_dtype = dst_dtype,
                                 .src_size = dtype_info(chunk->tensor->dtype)->block_bytes,
                                 .dst_size = dtype_info(dst_dtype)->block_bytes };
    struct loader_dim dims[3];
    size_t row = 3; /* the dimension along which the destination is dense, when the source is not */

    assert(place.dst_size == 2 || place.dst_size == 4);
    memcpy(dims, chunk->dims, sizeof(dims));
    chunk_normalise(dims);
    for (size_t d = 0; d < 2; d++)
        if (dims[d].dst_stride == 1 && dims[d].count > 1)
            row = d;
    if (dims[2].src_stride != 1 || row == 3) {
        for (uint64_t i = 0; i < dims[0].count; i++)
            convert_plane(&place, i * dims[0].src_stride,
                          chunk->dst_first + i * dims[0].dst_stride, dims);
        return;
    }
    for (uint64_t i = 0; i < dims[1 - row].count; i++)
        convert_transposed(&place, i * dims[1 - row].src_stride,
                           chunk->dst_first + i * dims[1 - row].dst_stride, &dims[row], &dims[2]);
}
