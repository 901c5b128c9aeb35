/* device/cuda/attention_wide.cu - OP_ATTENTION for rows that follow each other in a sequence: a
 * tile of them shares what it reads of the cache.
 *
 * A block has up to 64 queries, heads of one kv head and rows side by side, 16 to a warp. Tiles of
 * 32 keys come to shared memory one after another, already as BF16 numbers, so that each element is
 * read and cut once per block; every warp multiplies it with its queries. Two blocks share a
 * multiprocessor where its memory allows, one of which computes while the other one loads.
 *
 * In shared memory, by vectors of four words, each of two numbers, so that eight lanes that read at
 * once find all banks:
 *
 *     keys    [part][32 elements][key][q]      elements 8q to 8q + 7 of the 32
 *     values  [part][pair of keys][columns]    the pair of four columns; which four, 4v on, lies at
 *                                              v ^ 2 (pair % 4)
 *
 * A key that some of the tile's rows see and others don't has p = 0 for those, which leaves their
 * sums alone unless its value is not finite. Then such a tile is multiplied once for each row, with
 * the values that this one sees; so NaN does not reach where it was not seen. */
#include "device/cuda/attention_mma.h"

#define THREADS 128
#define WARPS (THREADS / GPU_WARP)
#define QUERIES (WARPS * ATTENTION_QUERIES)
#define PAIRS (ATTENTION_TILE / 2)

template <int dtype, int width> struct wide_shared {
    uint4 q[QUERY_PARTS * (width / 16) * WARPS * GPU_WARP];
    uint4 k[attention_cache<dtype>::parts * (width / 32) * ATTENTION_TILE * 4];
    uint4 v[attention_cache<dtype>::parts * PAIRS * (width / 4)];
    uint64_t keys[2][ATTENTION_TILE], values[2][ATTENTION_TILE]; /* of two tiles by turns */
    uint32_t odd_tile; /* the last one in which a value was not finite */
};

template <int dtype, int width> struct wide_block {
    const struct op_attention *op;
    struct wide_shared<dtype, width> *shared;
    struct attention_queries queries;
    struct attention_span first, last; /* of the first row and of the last one */
    uint32_t end;                      /* of the keys that the block has */
    bool keys_are_whole, values_are_whole;
};

/* Two of a thread's queries, g and g + 8 of its warp's, and what it has of their values. */
template <int width> struct wide_queries {
    uint32_t rows[2];                  /* of the tile; row_count and more: not there */
    struct attention_span spans[2];
    struct attention_sum part[2], so_far[2];
    float part_values[width / 32][4][4], values[width / 32][4][4];
};

/* Of the tile at `first`; keys that no row sees are one that is seen. */
template <int dtype, int width>
__device__ static inline void find_keys(const struct wide_block<dtype, width> *block,
                                        uint32_t first)
{
    const uint32_t turn = first / ATTENTION_TILE % 2;
    uint32_t seen;

    if (threadIdx.x >= ATTENTION_TILE || first >= block->end)
        return;
    seen = max(min(first + threadIdx.x, block->last.end - 1), block->first.begin);
    attention_find_key(block->op, block->queries.first_row, block->queries.kv_head, seen,
                       &block->shared->keys[turn][threadIdx.x],
                       &block->shared->values[turn][threadIdx.x]);
}

template <int dtype, int width>
__device__ static inline void put_keys(const struct wide_block<dtype, width> *block,
                                       uint32_t first)
{
    constexpr uint32_t parts = attention_cache<dtype>::parts;
    constexpr uint32_t count = width / 32 * ATTENTION_TILE * 4;
    const struct op_attention *op = block->op;
    const uint64_t *keys = block->shared->keys[first / ATTENTION_TILE % 2];

#pragma unroll 2
    for (uint32_t i = threadIdx.x; i < count; i += THREADS) {
        const uint32_t k = i / (4 * ATTENTION_TILE) * 32 + i % 4 * 8;
        uint32_t words[4][parts];
        float raw[8];

        attention_load<dtype, 8>(raw, op->k_cache, keys[i / 4 % ATTENTION_TILE] + k,
                                 attention_left(op->k_width, k), block->keys_are_whole);
#pragma unroll
        for (uint32_t j = 0; j < 4; j++)
            attention_split<parts>(words[j], raw[2 * j], raw[2 * j + 1]);
#pragma unroll
        for (uint32_t part = 0; part < parts; part++)
            block->shared->k[part * count + i] = make_uint4(words[0][part], words[1][part],
                                                            words[2][part], words[3][part]);
    }
}

/* Values of keys outside [begin, end) are zeros. */
template <int dtype, int width>
__device__ static inline void put_values(const struct wide_block<dtype, width> *block,
                                         uint32_t first, uint32_t begin, uint32_t end)
{
    constexpr uint32_t parts = attention_cache<dtype>::parts;
    constexpr uint32_t vectors = width / 4, count = PAIRS * vectors;
    const struct op_attention *op = block->op;
    const uint64_t *values = block->shared->values[first / ATTENTION_TILE % 2];
    bool is_odd = false;

#pragma unroll 2
    for (uint32_t i = threadIdx.x; i < count; i += THREADS) {
        const uint32_t column = i % vectors * 4, pair = i / vectors;
        uint32_t words[4][parts];
        float raw[2][4];

#pragma unroll
        for (uint32_t j = 0; j < 2; j++) {
            const uint32_t key = first + 2 * pair + j;

            attention_load<dtype, 4>(raw[j], op->v_cache, values[2 * pair + j] + column,
                                     attention_left(op->v_width, column),
                                     block->values_are_whole);
#pragma unroll
            for (uint32_t d = 0; d < 4; d++) {
                raw[j][d] = key >= begin && key < end ? raw[j][d] : 0;
                is_odd = is_odd || !gpu_is_finite(raw[j][d]);
            }
        }
#pragma unroll
        for (uint32_t d = 0; d < 4; d++)
            attention_split<parts>(words[d], raw[0][d], raw[1][d]);
#pragma unroll
        for (uint32_t part = 0; part < parts; part++)
            block->shared->v[part * count + pair * vectors + (i % vectors ^ pair % 4 * 2)] =
                make_uint4(words[0][part], words[1][part], words[2][part], words[3][part]);
    }
    if (is_odd)
        block->shared->odd_tile = first;
}

template <int dtype, int width>
__device__ static inline void score(float s[4][4], const struct wide_block<dtype, width> *block)
{
    constexpr uint32_t parts = attention_cache<dtype>::parts;
    constexpr uint32_t count = width / 32 * ATTENTION_TILE * 4;

#pragma unroll 2
    for (uint32_t chunk = 0; chunk < width / 32; chunk++) {
        uint32_t a[2][QUERY_PARTS][4];

        attention_get_queries<width, QUERIES>(a, block->shared->q, threadIdx.x / GPU_WARP, chunk);
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t words[4][parts];

#pragma unroll
            for (uint32_t part = 0; part < parts; part++) {
                const uint4 four =
                    block->shared->k[part * count + (chunk * ATTENTION_TILE + i * 8) * 4 +
                                     threadIdx.x % GPU_WARP];

                words[0][part] = four.x;
                words[1][part] = four.y;
                words[2][part] = four.z;
                words[3][part] = four.w;
            }
            attention_score_chunk<parts>(s[i], a, words);
        }
    }
}

/* Sums of a tile's values, columns 32 * group on. */
template <int dtype, int width>
__device__ static inline void
multiply_values(float acc[4][4], const struct wide_block<dtype, width> *block,
                const uint32_t p[ATTENTION_TILE_STEPS][QUERY_PARTS][4], uint32_t group)
{
    constexpr uint32_t parts = attention_cache<dtype>::parts;
    constexpr uint32_t vectors = width / 4, count = PAIRS * vectors;
    const uint32_t g = threadIdx.x % GPU_WARP / 4, q = threadIdx.x % 4;
    const uint4 *v = block->shared->v + q * vectors + ((group * 8 + g) ^ q * 2);

#pragma unroll
    for (uint32_t step = 0; step < ATTENTION_TILE_STEPS; step++) {
        uint32_t words[2][4][parts]; /* of pairs q and q + 4 */

#pragma unroll
        for (uint32_t i = 0; i < 2 * parts; i++) {
            const uint4 four = v[i / 2 * count + (step * 8 + i % 2 * 4) * vectors];

            words[i % 2][0][i / 2] = four.x;
            words[i % 2][1][i / 2] = four.y;
            words[i % 2][2][i / 2] = four.z;
            words[i % 2][3][i / 2] = four.w;
        }
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            attention_multiply<parts>(acc[i], p[step], words[0][i], words[1][i]);
    }
}

/* What there was of values times keep, and `add` times what comes, of the queries that take it. */
__device__ static inline void fold_values(float values[4][4], const float more[4][4],
                                          const float keep[2], const float add[2],
                                          const bool takes[2])
{
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        if (!takes[half])
            continue;
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            float *value = &values[i / 2][2 * half + i % 2];

            *value = fmaf(more[i / 2][2 * half + i % 2], add[half], *value * keep[half]);
        }
    }
}

/* The tile's values become part of the part's; of one row alone, or of all (row_count). */
template <int dtype, int width>
__device__ static inline void add_values(const struct wide_block<dtype, width> *block,
                                         struct wide_queries<width> *mine, uint32_t first,
                                         const uint32_t p[ATTENTION_TILE_STEPS][QUERY_PARTS][4],
                                         const float keep[2], const float add[2], uint32_t row)
{
    bool takes[2];

#pragma unroll
    for (uint32_t half = 0; half < 2; half++)
        takes[half] = attention_sees(&mine->spans[half], first) &&
                      (row == block->queries.row_count || row == mine->rows[half]);
#pragma unroll
    for (uint32_t group = 0; group < width / 32; group++) {
        float acc[4][4] = {};

        multiply_values(acc, block, p, group);
        fold_values(mine->part_values[group], acc, keep, add, takes);
    }
}

/* A tile that is in shared memory, for the warp's queries, some of which see some of it. */
template <int dtype, int width>
__device__ static inline void attend_tile(const struct wide_block<dtype, width> *block,
                                          struct wide_queries<width> *mine, uint32_t first,
                                          bool is_seen, bool is_odd)
{
    uint32_t p[ATTENTION_TILE_STEPS][QUERY_PARTS][4];
    float s[4][4] = {}, keep[2] = { 1, 1 }, add[2] = { 0, 0 };

    if (is_seen) {
        struct attention_sum sums[2];

        score(s, block);
        attention_exponentiate(block->op, s, first, mine->spans, sums);
        attention_split_p(p, s);
#pragma unroll
        for (uint32_t half = 0; half < 2; half++)
            if (attention_sees(&mine->spans[half], first))
                attention_fold(&mine->part[half], &sums[half], &keep[half], &add[half]);
    }
    if (!is_odd) {
        if (is_seen)
            add_values(block, mine, first, p, keep, add, block->queries.row_count);
        return;
    }
    for (uint32_t row = 0; row < block->queries.row_count; row++) {
        const struct attention_span span =
            attention_span_at(block->op, block->first.end - 1 + row);

        __syncthreads(); /* the values before have been read */
        put_values(block, first, span.begin, span.end);
        __syncthreads();
        if (is_seen)
            add_values(block, mine, first, p, keep, add, row);
    }
}

/* All tiles of a part that the block's rows see. */
template <int dtype, int width>
__device__ static inline void attend_part(const struct wide_block<dtype, width> *block,
                                          struct wide_queries<width> *mine, uint32_t part)
{
    const uint32_t begin = max(part * ATTENTION_PART,
                               block->first.begin / ATTENTION_TILE * ATTENTION_TILE);
    const uint32_t end = min((part + 1) * ATTENTION_PART, block->end);
    const uint32_t warp = threadIdx.x / GPU_WARP * ATTENTION_QUERIES;
    const uint32_t heads = block->queries.head_count, row_count = block->queries.row_count;
    const bool is_there = warp / heads < row_count;
    const struct attention_span top =
        attention_span_at(block->op, block->first.end - 1 + warp / heads);
    const struct attention_span bottom = attention_span_at(
        block->op, block->first.end - 1 + min((warp + ATTENTION_QUERIES - 1) / heads,
                                              row_count - 1));

#pragma unroll
    for (uint32_t half = 0; half < 2; half++)
        mine->part[half] = { -INFINITY, 0 };
#pragma unroll
    for (uint32_t i = 0; i < width / 2; i++)
        mine->part_values[i / 16][i / 4 % 4][i % 4] = 0;
    for (uint32_t first = begin; first < end; first += ATTENTION_TILE) {
        const uint32_t after = first + ATTENTION_TILE;
        const bool is_seen = is_there && top.begin < after && bottom.end > first;
        bool is_odd;

        __syncthreads(); /* where keys are is known; the tile before has been read */
        put_keys(block, first);
        put_values(block, first, block->first.begin, block->last.end);
        __syncthreads();
        find_keys(block, after);
        is_odd = block->shared->odd_tile == first &&
                 (block->last.begin > first || block->first.end < after);
        attend_tile(block, mine, first, is_seen, is_odd);
    }
}

/* Leaves a part in the round's room, of the rows that see some of it. */
template <int dtype, int width>
__device__ static inline void leave_part(const struct wide_block<dtype, width> *block,
                                         const struct wide_queries<width> *mine,
                                         const struct attention_round *round, uint32_t part)
{
    const struct op_attention *op = block->op;
    const uint32_t query = threadIdx.x / GPU_WARP * ATTENTION_QUERIES + threadIdx.x % GPU_WARP / 4;

#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        const uint32_t head = (query + half * 8) % block->queries.head_count;
        uint64_t place;

        if (mine->rows[half] >= block->queries.row_count || mine->spans[half].part_end <= part)
            continue;
        place = attention_place(op, round, block->queries.first_row + mine->rows[half],
                                block->queries.first_head + head, part - round->first);
        if (threadIdx.x % 4 == 0)
            attention_sums(round)[place] = mine->part[half];
#pragma unroll
        for (uint32_t i = 0; i < width / 4; i++) {
            const uint32_t column = i / 8 * 32 + threadIdx.x % 4 * 8 + i % 8;

            if (column < op->v_width)
                attention_values(op, round)[place * op->v_width + column] =
                    mine->part_values[i / 8][i % 4][2 * half + i / 4 % 2];
        }
    }
}

template <int dtype, int width>
__device__ static inline void fold_part(struct wide_queries<width> *mine, uint32_t part)
{
    float keep[2] = { 1, 1 }, add[2] = { 0, 0 };
    bool takes[2];

#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        takes[half] = mine->spans[half].first_part <= part && mine->spans[half].part_end > part;
        if (takes[half])
            attention_fold(&mine->so_far[half], &mine->part[half], &keep[half], &add[half]);
    }
#pragma unroll
    for (uint32_t group = 0; group < width / 32; group++)
        fold_values(mine->values[group], mine->part_values[group], keep, add, takes);
}

template <int dtype, int width>
__device__ static inline void write_out(const struct wide_block<dtype, width> *block,
                                        const struct wide_queries<width> *mine)
{
    const struct op_attention *op = block->op;
    const uint32_t query = threadIdx.x / GPU_WARP * ATTENTION_QUERIES + threadIdx.x % GPU_WARP / 4;

#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        const uint32_t head = (query + half * 8) % block->queries.head_count;
        float *out = op->out +
                     (block->queries.first_row + mine->rows[half]) * op->out_row_stride +
                     (uint64_t)(block->queries.first_head + head) * op->v_width;

        if (mine->rows[half] >= block->queries.row_count)
            continue;
#pragma unroll
        for (uint32_t i = 0; i < width / 4; i++) {
            const uint32_t column = i / 8 * 32 + threadIdx.x % 4 * 8 + i % 8;

            if (column < op->v_width)
                out[column] = mine->values[i / 8][i % 4][2 * half + i / 4 % 2] /
                              mine->so_far[half].sum;
        }
    }
}

/* A thread's queries; those that are not there see nothing. */
template <int dtype, int width>
__device__ static inline void begin_queries(const struct wide_block<dtype, width> *block,
                                            struct wide_queries<width> *mine)
{
    const struct attention_queries *queries = &block->queries;
    const uint32_t query = threadIdx.x / GPU_WARP * ATTENTION_QUERIES + threadIdx.x % GPU_WARP / 4;

#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        const uint32_t head = (query + half * 8) % queries->head_count;

        mine->rows[half] = (query + half * 8) / queries->head_count;
        mine->spans[half] = {};
        if (mine->rows[half] < queries->row_count)
            mine->spans[half] =
                attention_span_at(block->op, block->first.end - 1 + mine->rows[half]);
        mine->so_far[half] = attention_begin(block->op, queries->first_head + head);
    }
#pragma unroll
    for (uint32_t i = 0; i < width / 2; i++)
        mine->values[i / 16][i / 4 % 4][i % 4] = 0;
}

/* Along x: kv heads, then tiles of rows, the last ones first since they see most; along z: of rows
 * that are cut, parts. */
template <int dtype, int width, bool is_cut>
__global__ void __launch_bounds__(THREADS, 2)
    wide(const struct op_attention op, const struct attention_round round, uint32_t head_blocks)
{
    GPU_SHARED(memory);
    const uint32_t tiles = (op.row_count + round.tile_rows - 1) / round.tile_rows;
    struct wide_block<dtype, width> block;
    struct wide_queries<width> mine;

    block.op = &op;
    block.shared = (struct wide_shared<dtype, width> *)memory;
    block.queries = attention_queries_of(&op, QUERIES, blockIdx.x % head_blocks);
    block.queries.first_row = (tiles - 1 - blockIdx.x / head_blocks) * round.tile_rows;
    block.queries.row_count = min(op.row_count - block.queries.first_row, round.tile_rows);
    block.first = attention_span_of(&op, block.queries.first_row);
    block.last = attention_span_of(&op, block.queries.first_row + block.queries.row_count - 1);
    block.end = block.last.end;
    block.keys_are_whole =
        op.k_width == width && attention_is_aligned<dtype>(op.k_cache, &op.k_strides);
    block.values_are_whole =
        op.v_width == width && attention_is_aligned<dtype>(op.v_cache, &op.v_strides);
    if (!attention_is_mine(&op, &round, block.queries.first_row))
        return;
    if (is_cut && round.first + blockIdx.z >= block.last.part_end)
        return;
    begin_queries(&block, &mine);
    attention_load_queries<width, QUERIES>(block.shared->q, &op, &block.queries, THREADS);
    if (threadIdx.x == 0)
        block.shared->odd_tile = 1; /* no tile begins there */
    if (is_cut) {
        const uint32_t part = round.first + blockIdx.z;

        block.end = min(block.end, (part + 1) * ATTENTION_PART);
        find_keys(&block, part * ATTENTION_PART);
        attend_part(&block, &mine, part);
        leave_part(&block, &mine, &round, part);
        return;
    }
    find_keys(&block, block.first.begin / ATTENTION_TILE * ATTENTION_TILE);
    for (uint32_t part = block.first.first_part; part < block.last.part_end; part++) {
        attend_part(&block, &mine, part);
        fold_part<dtype>(&mine, part);
    }
    write_out(&block, &mine);
}

/* ---- launches ---- */

uint32_t attention_wide_rows(const struct op_attention *op)
{
    const uint32_t group = op->head_count / op->kv_head_count;

    return QUERIES / (group < QUERIES ? group : QUERIES);
}

dim3 attention_wide_grid(const struct op_attention *op)
{
    const uint32_t rows = attention_wide_rows(op);

    return dim3((op->row_count + rows - 1) / rows * attention_head_blocks(op, QUERIES));
}

cudaError_t attention_wide_launch(const struct op_attention *op,
                                  const struct attention_round *round, uint32_t parts,
                                  cudaStream_t stream)
{
    const uint32_t head_blocks = attention_head_blocks(op, QUERIES);
    dim3 grid = attention_wide_grid(op);

    grid.z = parts;
    return attention_choose_width(op, round, [&](auto dtype, auto width, auto is_cut) {
        return attention_start(wide<dtype, width, is_cut>, grid, THREADS,
                               sizeof(struct wide_shared<dtype, width>), stream, op, round,
                               head_blocks);
    });
}
