/* device/cuda/attention_wide.cu - OP_ATTENTION for rows that follow each other in a sequence: a
 * tile of them shares what it reads of the cache.
 *
 * A block has up to 64 queries, heads of one kv head and rows side by side, 16 to a warp. Tiles of
 * 32 keys come to shared memory one after another, already as BF16 numbers, so that each element is
 * read and cut once per block; every warp multiplies it with its queries. Two blocks share a
 * multiprocessor where its memory allows, one of which computes while the other one loads.
 *
 * Of heads wider than 128 a block has 32 queries, 16 to a pair of warps, since a thread's registers
 * hold sums of no more than 128 columns: each of the pair scores half of a tile's keys, both get
 * all scores, and each adds up half of the columns. Keys and values take turns in one room.
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
#define HALVED 128 /* wider heads are two warps' */
#define PAIRS (ATTENTION_TILE / 2)

GPU_BOTH constexpr uint32_t wide_halves(uint32_t width)
{
    return width > HALVED ? 2 : 1;
}

GPU_BOTH constexpr uint32_t wide_query_count(uint32_t width)
{
    return WARPS / wide_halves(width) * ATTENTION_QUERIES;
}

/* Of a warp: sums of so many groups of 32 columns. */
GPU_BOTH constexpr uint32_t wide_groups(uint32_t width)
{
    return width / 32 / wide_halves(width);
}

/* Two blocks of a head of 128 in F16 fit an A100's 164 KiB, of which the driver has one for each,
 * to the byte. */
template <int dtype, int width> struct wide_shared {
    static constexpr uint32_t halves = wide_halves(width);

    uint4 q[QUERY_PARTS * (width / 16) * (WARPS / halves) * GPU_WARP];
    uint4 tiles[2 / halves][attention_cache<dtype>::parts * width * 4]; /* keys; values */
    uint64_t keys[2][ATTENTION_TILE], values[2][ATTENTION_TILE]; /* of two tiles by turns */
};
static_assert(sizeof(struct wide_shared<DTYPE_F16, 128>) <= (164 - 2) * 1024 / 2, "as it says");

template <int dtype, int width> struct wide_block {
    const struct op_attention *op;
    struct wide_shared<dtype, width> *shared;
    struct attention_queries queries;
    struct attention_span first, last; /* of the first row and of the last one */
    uint32_t end;                      /* of the keys that the block has */
    uint32_t tile, half;               /* the warp's queries, and its half of keys and columns */
    bool keys_are_aligned, values_are_aligned;
};

/* Two of a thread's queries, g and g + 8 of its warp's, and what it has of their values. */
template <int width> struct wide_queries {
    uint32_t rows[2];                  /* of the tile; row_count and more: not there */
    struct attention_span spans[2];
    struct attention_sum part[2], so_far[2];
    float part_values[wide_groups(width)][4][4], values[wide_groups(width)][4][4];
};

/* The first of a thread's two queries. */
template <int dtype, int width>
__device__ static inline uint32_t first_query(const struct wide_block<dtype, width> *block)
{
    return block->tile * ATTENTION_QUERIES + threadIdx.x % GPU_WARP / 4;
}

/* The i-th of a thread's columns of a query. */
template <int dtype, int width>
__device__ static inline uint32_t column_of(const struct wide_block<dtype, width> *block,
                                            uint32_t i)
{
    return (block->half * wide_groups(width) + i / 8) * 32 + threadIdx.x % 4 * 8 + i % 8;
}

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
        const uint32_t left = attention_left(op->k_width, k);
        uint32_t words[4][parts];
        float raw[8];

        attention_load<dtype, 8>(raw, op->k_cache, keys[i / 4 % ATTENTION_TILE] + k, left,
                                 block->keys_are_aligned && left >= 8);
#pragma unroll
        for (uint32_t j = 0; j < 4; j++)
            attention_split<parts>(words[j], raw[2 * j], raw[2 * j + 1]);
#pragma unroll
        for (uint32_t part = 0; part < parts; part++)
            block->shared->tiles[0][part * count + i] = make_uint4(
                words[0][part], words[1][part], words[2][part], words[3][part]);
    }
}

/* Values of keys outside [begin, end) are zeros. Whether one of the thread's is not finite. */
template <int dtype, int width>
__device__ static inline bool put_values(const struct wide_block<dtype, width> *block,
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
        const uint32_t left = attention_left(op->v_width, column);
        uint32_t words[4][parts];
        float raw[2][4];

#pragma unroll
        for (uint32_t j = 0; j < 2; j++) {
            const uint32_t key = first + 2 * pair + j;

            attention_load<dtype, 4>(raw[j], op->v_cache, values[2 * pair + j] + column, left,
                                     block->values_are_aligned && left >= 4);
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
            block->shared->tiles[2 - wide_halves(width)]
                                [part * count + pair * vectors + (i % vectors ^ pair % 4 * 2)] =
                make_uint4(words[0][part], words[1][part], words[2][part], words[3][part]);
    }
    return is_odd;
}

/* Scores of the warp's queries: of all of the tile's keys, or of its half of them. */
template <int dtype, int width>
__device__ static inline void score(float s[4 / wide_halves(width)][4],
                                    const struct wide_block<dtype, width> *block)
{
    constexpr uint32_t parts = attention_cache<dtype>::parts;
    constexpr uint32_t count = width / 32 * ATTENTION_TILE * 4;
    constexpr uint32_t eights = 4 / wide_halves(width);
    const uint4 *keys = block->shared->tiles[0] + block->half * eights * GPU_WARP +
                        threadIdx.x % GPU_WARP;

#pragma unroll 2
    for (uint32_t chunk = 0; chunk < width / 32; chunk++) {
        uint32_t a[2][QUERY_PARTS][4];

        attention_get_queries<width, wide_query_count(width)>(a, block->shared->q, block->tile,
                                                              chunk);
#pragma unroll
        for (uint32_t i = 0; i < eights; i++) {
            uint32_t words[4][parts];

#pragma unroll
            for (uint32_t part = 0; part < parts; part++) {
                const uint4 four =
                    keys[part * count + chunk * ATTENTION_TILE * 4 + i * GPU_WARP];

                words[0][part] = four.x;
                words[1][part] = four.y;
                words[2][part] = four.z;
                words[3][part] = four.w;
            }
            attention_score_chunk<parts>(s[i], a, words);
        }
    }
}

/* Both warps of a pair get the scores of all keys; they meet where the keys were. */
template <int dtype, int width>
__device__ static inline void score_halved(float s[4][4],
                                           const struct wide_block<dtype, width> *block,
                                           bool is_seen)
{
    float4 *place = (float4 *)block->shared->tiles[0] + block->tile * 4 * GPU_WARP +
                    threadIdx.x % GPU_WARP;
    float mine[2][4] = {};

    if (is_seen)
        score(mine, block);
    __syncthreads(); /* the keys have been read */
#pragma unroll
    for (uint32_t i = 0; i < 2; i++)
        place[(block->half * 2 + i) * GPU_WARP] =
            make_float4(mine[i][0], mine[i][1], mine[i][2], mine[i][3]);
    __syncthreads();
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const float4 four = place[i * GPU_WARP];

        s[i][0] = four.x;
        s[i][1] = four.y;
        s[i][2] = four.z;
        s[i][3] = four.w;
    }
    __syncthreads(); /* before values are there */
}

/* Sums of a tile's values, of a group of the warp's columns. */
template <int dtype, int width>
__device__ static inline void
multiply_values(float acc[4][4], const struct wide_block<dtype, width> *block,
                const uint32_t p[ATTENTION_TILE_STEPS][QUERY_PARTS][4], uint32_t group)
{
    constexpr uint32_t parts = attention_cache<dtype>::parts;
    constexpr uint32_t vectors = width / 4, count = PAIRS * vectors;
    const uint32_t g = threadIdx.x % GPU_WARP / 4, q = threadIdx.x % 4;
    const uint32_t first = (block->half * wide_groups(width) + group) * 8;
    const uint4 *v = block->shared->tiles[2 - wide_halves(width)] + q * vectors +
                     ((first + g) ^ q * 2);

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
    for (uint32_t group = 0; group < wide_groups(width); group++) {
        float acc[4][4] = {};

        multiply_values(acc, block, p, group);
        fold_values(mine->part_values[group], acc, keep, add, takes);
    }
}

/* A tile whose keys are in shared memory, and its values if these have room of their own, for the
 * warp's queries, some of which see some of it. is_odd: whether one of those values is not finite.
 */
template <int dtype, int width>
__device__ static inline void attend_tile(const struct wide_block<dtype, width> *block,
                                          struct wide_queries<width> *mine, uint32_t first,
                                          bool is_seen, bool is_odd)
{
    constexpr bool is_halved = wide_halves(width) == 2;
    uint32_t p[ATTENTION_TILE_STEPS][QUERY_PARTS][4];
    float s[4][4] = {}, keep[2] = { 1, 1 }, add[2] = { 0, 0 };

    if constexpr (is_halved) {
        score_halved(s, block, is_seen);
        is_odd = put_values(block, first, block->first.begin, block->last.end);
        is_odd = __syncthreads_or(is_odd) != 0;
    }
    is_odd = is_odd && (block->last.begin > first || block->first.end < first + ATTENTION_TILE);
    if (is_seen) {
        struct attention_sum sums[2];

        if constexpr (!is_halved)
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
        (void)put_values(block, first, span.begin, span.end);
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
    const uint32_t warp = block->tile * ATTENTION_QUERIES;
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
    for (uint32_t i = 0; i < wide_groups(width) * 16; i++)
        mine->part_values[i / 16][i / 4 % 4][i % 4] = 0;
    for (uint32_t first = begin; first < end; first += ATTENTION_TILE) {
        const uint32_t after = first + ATTENTION_TILE;
        const bool is_seen = is_there && top.begin < after && bottom.end > first;
        bool is_odd = false;

        __syncthreads(); /* where keys are is known; the tile before has been read */
        put_keys(block, first);
        if constexpr (wide_halves(width) == 1)
            is_odd = put_values(block, first, block->first.begin, block->last.end);
        is_odd = __syncthreads_or(is_odd) != 0;
        find_keys(block, after);
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
    const uint32_t query = first_query(block);

#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        const uint32_t head = (query + half * 8) % block->queries.head_count;
        uint64_t place;

        if (mine->rows[half] >= block->queries.row_count || mine->spans[half].part_end <= part)
            continue;
        place = attention_place(op, round, block->queries.first_row + mine->rows[half],
                                block->queries.first_head + head, part - round->first);
        if (threadIdx.x % 4 == 0 && block->half == 0)
            attention_sums(round)[place] = mine->part[half];
#pragma unroll
        for (uint32_t i = 0; i < wide_groups(width) * 8; i++) {
            const uint32_t column = column_of(block, i);

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
    for (uint32_t group = 0; group < wide_groups(width); group++)
        fold_values(mine->values[group], mine->part_values[group], keep, add, takes);
}

template <int dtype, int width>
__device__ static inline void write_out(const struct wide_block<dtype, width> *block,
                                        const struct wide_queries<width> *mine)
{
    const struct op_attention *op = block->op;
    const uint32_t query = first_query(block);

#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        const uint32_t head = (query + half * 8) % block->queries.head_count;
        float *out = op->out +
                     (block->queries.first_row + mine->rows[half]) * op->out_row_stride +
                     (uint64_t)(block->queries.first_head + head) * op->v_width;

        if (mine->rows[half] >= block->queries.row_count)
            continue;
#pragma unroll
        for (uint32_t i = 0; i < wide_groups(width) * 8; i++) {
            const uint32_t column = column_of(block, i);

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
    const uint32_t query = first_query(block);

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
    for (uint32_t i = 0; i < wide_groups(width) * 16; i++)
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
    block.tile = threadIdx.x / GPU_WARP / wide_halves(width);
    block.half = threadIdx.x / GPU_WARP % wide_halves(width);
    block.queries =
        attention_queries_of(&op, wide_query_count(width), blockIdx.x % head_blocks);
    block.queries.first_row = (tiles - 1 - blockIdx.x / head_blocks) * round.tile_rows;
    block.queries.row_count = min(op.row_count - block.queries.first_row, round.tile_rows);
    block.first = attention_span_of(&op, block.queries.first_row);
    block.last = attention_span_of(&op, block.queries.first_row + block.queries.row_count - 1);
    block.end = block.last.end;
    block.keys_are_aligned = attention_is_aligned<dtype>(op.k_cache, &op.k_strides);
    block.values_are_aligned = attention_is_aligned<dtype>(op.v_cache, &op.v_strides);
    if (!attention_is_mine(&op, &round, block.queries.first_row))
        return;
    if (is_cut && round.first + blockIdx.z >= block.last.part_end)
        return;
    begin_queries(&block, &mine);
    attention_load_queries<width, wide_query_count(width)>(block.shared->q, &op, &block.queries,
                                                           THREADS);
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

static uint32_t query_count(const struct op_attention *op)
{
    return wide_query_count(op->k_width > op->v_width ? op->k_width : op->v_width);
}

uint32_t attention_wide_rows(const struct op_attention *op)
{
    const uint32_t group = op->head_count / op->kv_head_count, queries = query_count(op);

    return queries / (group < queries ? group : queries);
}

dim3 attention_wide_grid(const struct op_attention *op)
{
    const uint32_t rows = attention_wide_rows(op);

    return dim3((op->row_count + rows - 1) / rows * attention_head_blocks(op, query_count(op)));
}

cudaError_t attention_wide_launch(const struct op_attention *op,
                                  const struct attention_round *round, uint32_t parts,
                                  cudaStream_t stream)
{
    const uint32_t head_blocks = attention_head_blocks(op, query_count(op));
    dim3 grid = attention_wide_grid(op);

    grid.z = parts;
    return attention_choose_width(op, round, [&](auto dtype, auto width, auto is_cut) {
        return attention_start(wide<dtype, width, is_cut>, grid, THREADS,
                               sizeof(struct wide_shared<dtype, width>), stream, op, round,
                               head_blocks);
    });
}
