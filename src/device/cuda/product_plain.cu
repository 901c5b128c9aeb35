/* device/cuda/product_plain.cu - product.h for weights in F32, F16 and BF16. */
#include "device/cuda/product_parts.h"

template <int dtype> struct plain_type {
    static constexpr int parts = dtype == DTYPE_F32 ? 3 : dtype == DTYPE_F16 ? 2 : 1;
    static constexpr int words = dtype == DTYPE_F32 ? 8 : 4; /* of eight elements */
    static constexpr uint32_t unroll = dtype == DTYPE_F32 ? 2 : 4; /* chunks loaded at once */
    static constexpr int aside = dtype == DTYPE_F32 ? 0 : 24; /* product.h */
};

/* Eight adjacent weights from element k on, as they lie in memory; zeros behind the row's end.
 * is_whole: none are, and they can be read at once. */
template <int dtype>
__device__ static inline void load_weights(uint32_t raw[], const uint8_t *row, uint32_t k,
                                           uint32_t k_count, bool is_whole)
{
    constexpr uint32_t bytes = dtype == DTYPE_F32 ? 4 : 2;

    if (is_whole) {
        const uint4 *from = (const uint4 *)(row + (uint64_t)k * bytes);

#pragma unroll
        for (int i = 0; i < plain_type<dtype>::words / 4; i++) {
            const uint4 four = __ldcs(from + i);

            raw[4 * i] = four.x;
            raw[4 * i + 1] = four.y;
            raw[4 * i + 2] = four.z;
            raw[4 * i + 3] = four.w;
        }
        return;
    }
#pragma unroll
    for (uint32_t i = 0; i < LANE_ELEMENTS; i++) {
        const bool is_there = k + i < k_count;

        if (dtype == DTYPE_F32) {
            raw[i] = is_there ? ((const uint32_t *)row)[k + i] : 0;
        } else {
            const uint32_t bits = is_there ? ((const uint16_t *)row)[k + i] : 0;

            raw[i / 2] = i % 2 == 0 ? bits : raw[i / 2] | bits << 16;
        }
    }
}

/* Lane q has elements 8q to 8q + 7 of a chunk, as pairs (0, 2), (1, 3), (4, 6), (5, 7) of them.
 * Were they neighbours, weights in BF16 would be the pairs that were loaded, and compilers would
 * bring them where products want them before each product anew: four moves for one product. */
__device__ static inline uint32_t left_of_pair(uint32_t j)
{
    return j / 2 * 4 + j % 2;
}

/* The parts of eight weights of a row of a tile. */
template <int dtype>
__device__ static inline void get_weights(struct tile_weights<plain_type<dtype>::parts> *to,
                                          int row, const uint32_t raw[])
{
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const uint32_t left = left_of_pair(j), right = left + 2;
        uint32_t both[plain_type<dtype>::parts];

        if (dtype == DTYPE_F32) {
            split<plain_type<dtype>::parts>(both, __uint_as_float(raw[left]),
                                            __uint_as_float(raw[right]));
        } else {
            const uint32_t pair =
                __byte_perm(raw[left / 2], raw[right / 2], left % 2 == 0 ? 0x5410 : 0x7632);

            if (dtype == DTYPE_BF16)
                both[0] = pair;
            else
                split<plain_type<dtype>::parts>(both, gpu_f16_to_f32(pair & 0xffff),
                                                gpu_f16_to_f32(pair >> 16));
        }
#pragma unroll
        for (int i = 0; i < plain_type<dtype>::parts; i++)
            put_weights(to, i, row, j, both[i]);
    }
}

__device__ static inline void load_x(float values[LANE_ELEMENTS], const float *row, uint32_t k,
                                     uint32_t k_count, bool is_whole)
{
    if (is_whole) {
#pragma unroll
        for (uint32_t j = 0; j < LANE_ELEMENTS; j += 4) {
            const float4 four = *(const float4 *)(row + k + j);

            values[j] = four.x;
            values[j + 1] = four.z;
            values[j + 2] = four.y;
            values[j + 3] = four.w;
        }
        return;
    }
#pragma unroll
    for (uint32_t j = 0; j < LANE_ELEMENTS; j++) {
        const uint32_t at = k + left_of_pair(j / 2) + j % 2 * 2;

        values[j] = at < k_count ? row[at] : 0;
    }
}

/* Whether a lane's eight elements of a chunk can be read at once, of all rows and of x. */
__device__ static inline bool rows_are_whole(const struct product *p,
                                             const struct product_group *group)
{
    return (((uintptr_t)group->weight | p->weight_row_bytes | (uintptr_t)group->x |
             p->x_row_stride * sizeof(float)) % 16 | p->k_count % PRODUCT_CHUNK) == 0;
}

/* Row r of x; behind the last one that again, to be computed and not stored. */
__device__ static inline const float *x_row_of(const struct product *p,
                                               const struct product_group *group, uint32_t r)
{
    return product_x_row(p, group, min(r, group->count - 1));
}

/* A warp's 16 rows of weights, some chunks of each. */
template <int dtype> struct narrow_raw {
    uint32_t words[plain_type<dtype>::unroll][2][plain_type<dtype>::words];
};

template <int dtype>
__device__ static inline void narrow_load(struct narrow_raw<dtype> *raw, const uint8_t *top_row,
                                          const uint8_t *bottom_row, uint32_t first, uint32_t end,
                                          uint32_t k_count, bool is_whole)
{
    const uint32_t q = threadIdx.x % 4;

#pragma unroll
    for (uint32_t u = 0; u < plain_type<dtype>::unroll; u++) {
        const uint32_t k = (first + u) * PRODUCT_CHUNK + q * LANE_ELEMENTS;

        if (first + u < end) {
            load_weights<dtype>(raw->words[u][0], top_row, k, k_count, is_whole);
            load_weights<dtype>(raw->words[u][1], bottom_row, k, k_count, is_whole);
        }
    }
}

template <int dtype>
__device__ static inline void narrow_multiply(float acc[4], struct narrow_raw<dtype> *raw,
                                              const float *x_row, uint32_t first, uint32_t end,
                                              uint32_t k_count, bool is_whole)
{
    constexpr int parts = plain_type<dtype>::parts;
    const uint32_t q = threadIdx.x % 4;

#pragma unroll
    for (uint32_t u = 0; u < plain_type<dtype>::unroll; u++) {
        const uint32_t k = (first + u) * PRODUCT_CHUNK + q * LANE_ELEMENTS;
        struct tile_weights<parts> weights[1];
        uint32_t x[X_PARTS][4];
        float *const accs[1] = { acc };
        float values[LANE_ELEMENTS];

        if (first + u < end) {
            load_x(values, x_row, k, k_count, is_whole);
            x_parts(x, values);
            get_weights<dtype>(&weights[0], 0, raw->words[u][0]);
            get_weights<dtype>(&weights[0], 1, raw->words[u][1]);
            multiply_chunk<parts, 1>(accs, weights, x);
        }
    }
}

/* One warp's slice of a 16 x 8 tile. What comes next is loaded before this is multiplied. */
template <int dtype>
__device__ static inline void narrow_slice(float acc[4], const struct product *p,
                                           const struct product_group *group, uint32_t n0,
                                           uint32_t r0)
{
    const uint32_t g = threadIdx.x % GPU_WARP / 4;
    const uint32_t chunk_count = (p->k_count + PRODUCT_CHUNK - 1) / PRODUCT_CHUNK;
    const uint32_t each = (chunk_count + PRODUCT_SLICES - 1) / PRODUCT_SLICES;
    const uint32_t begin = threadIdx.x / GPU_WARP * each;
    const uint32_t end = begin + each < chunk_count ? begin + each : chunk_count;
    const uint8_t *top_row = product_weight_row(p, group, n0 + g);
    const uint8_t *bottom_row = product_weight_row(p, group, n0 + g + 8);
    const float *x_row = x_row_of(p, group, r0 + g);
    const bool is_whole = rows_are_whole(p, group);
    struct narrow_raw<dtype> raw, next;

    narrow_load<dtype>(&next, top_row, bottom_row, begin, end, p->k_count, is_whole);
    for (uint32_t first = begin; first < end; first += plain_type<dtype>::unroll) {
        raw = next;
        narrow_load<dtype>(&next, top_row, bottom_row, first + plain_type<dtype>::unroll, end,
                           p->k_count, is_whole);
        narrow_multiply<dtype>(acc, &raw, x_row, first, end, p->k_count, is_whole);
    }
}

template <int dtype>
__global__ void __launch_bounds__(PRODUCT_THREADS, 2) narrow_plain(const struct product p)
{
    GPU_SHARED(shared);
    const uint32_t n0 = blockIdx.y * PRODUCT_NARROW_N;
    struct product_group group;

    if (!product_group_of(&p, &group))
        return;
    for (uint32_t r0 = blockIdx.x * PRODUCT_NARROW_ROWS; r0 < group.count;
         r0 += gridDim.x * PRODUCT_NARROW_ROWS) {
        float acc[4] = { 0, 0, 0, 0 };

        narrow_slice<dtype>(acc, &p, &group, n0, r0);
        product_join_slices(&p, &group, (float *)shared, acc, n0, r0);
    }
}

/* Four rows of weights of a lane, by how many bytes they lie behind the first: up to 24 rows, which
 * would have to be of 170 MB each to be more than 32 bits can say. Four addresses take twice the
 * registers. */
struct wide_rows {
    const uint8_t *first;
    uint32_t behind[4];
};

/* A warp's 32 rows of weights: tile m has rows g and g + 8 of its 16. */
__device__ static inline struct wide_rows wide_rows_of(const struct product *p,
                                                       const struct product_group *group,
                                                       uint32_t n0)
{
    struct wide_rows rows = { product_weight_row(p, group, n0), {} };

#pragma unroll
    for (uint32_t i = 0; i < 4; i++)
        rows.behind[i] = (uint32_t)(product_weight_row(p, group, n0 + i * 8) - rows.first);
    return rows;
}

template <int dtype>
__device__ static inline void wide_load(uint32_t raw[2][2][plain_type<dtype>::words],
                                        const struct wide_rows *rows, uint32_t k, uint32_t k_count,
                                        bool is_whole)
{
#pragma unroll
    for (uint32_t i = 0; i < 4; i++)
        load_weights<dtype>(raw[i / 2][i % 2], rows->first + rows->behind[i], k, k_count,
                            is_whole);
}

template <int dtype>
__device__ static inline void wide_multiply(float acc[2][4][4],
                                            uint32_t raw[2][2][plain_type<dtype>::words],
                                            const uint4 *x, uint32_t row)
{
    constexpr int parts = plain_type<dtype>::parts;
    struct tile_weights<parts> weights[2];

#pragma unroll
    for (int i = 0; i < 4; i++)
        get_weights<dtype>(&weights[i / 2], i % 2, raw[i / 2][i % 2]);
#pragma unroll
    for (uint32_t t = 0; t < 4; t++) {
        float *const accs[2] = { acc[0][t], acc[1][t] };
        uint32_t part[X_PARTS][4];

        wide_get_x(part, x, row + t * 8);
        multiply_chunk<parts, 2>(accs, weights, part);
    }
}

/* A block's 128 x 64 tile. x lies in two places by turns, so that one barrier per chunk is enough;
 * what the next chunk needs is loaded before this one is multiplied. */
template <int dtype>
__device__ static inline void wide_tile(const struct product *p, const struct product_group *group,
                                        uint4 *shared, uint32_t r0)
{
    const uint32_t warp = threadIdx.x / GPU_WARP, q = threadIdx.x % 4;
    const uint32_t n0 = blockIdx.y * PRODUCT_WIDE_N + warp % 4 * PRODUCT_TILE_N;
    const uint32_t row = warp / 4 * PRODUCT_TILE_ROWS;
    const uint32_t chunk_count = (p->k_count + PRODUCT_CHUNK - 1) / PRODUCT_CHUNK;
    const uint32_t each = (chunk_count + PRODUCT_SLICES - 1) / PRODUCT_SLICES;
    const float *x_row = x_row_of(p, group, r0 + threadIdx.x / 4);
    const bool is_whole = rows_are_whole(p, group);
    const struct wide_rows rows = wide_rows_of(p, group, n0 + threadIdx.x % GPU_WARP / 4);
    struct product_total<plain_type<dtype>::aside> total;
    float acc[2][4][4] = {}, values[LANE_ELEMENTS];
    uint32_t next[2][2][plain_type<dtype>::words];

    product_begin_total(&total, (float *)(shared + 2 * WIDE_X_VECTORS));
    load_x(values, x_row, q * LANE_ELEMENTS, p->k_count, is_whole);
    wide_load<dtype>(next, &rows, q * LANE_ELEMENTS, p->k_count, is_whole);
    for (uint32_t begin = 0; begin < chunk_count; begin += each) {
        for (uint32_t c = begin; c < min(begin + each, chunk_count); c++) {
            const uint32_t k = (c + 1) * PRODUCT_CHUNK + q * LANE_ELEMENTS;
            uint4 *x = shared + c % 2 * WIDE_X_VECTORS;
            uint32_t raw[2][2][plain_type<dtype>::words];

            wide_put_x(x, values);
#pragma unroll
            for (int i = 0; i < 4 * plain_type<dtype>::words; i++)
                (&raw[0][0][0])[i] = (&next[0][0][0])[i];
            __syncthreads();
            if (c + 1 < chunk_count) {
                load_x(values, x_row, k, p->k_count, is_whole);
                wide_load<dtype>(next, &rows, k, p->k_count, is_whole);
            }
            wide_multiply<dtype>(acc, raw, x, row);
        }
        product_end_slice(&total, acc);
    }
    product_store_tile(p, group, &total, n0, r0 + row);
    __syncthreads(); /* before the next tile's x */
}

/* Two blocks on a multiprocessor, but for F32, whose parts take the registers of both. */
template <int dtype>
__global__ void __launch_bounds__(PRODUCT_THREADS, dtype == DTYPE_F32 ? 1 : 2)
    wide_plain(const struct product p)
{
    GPU_SHARED(shared);
    struct product_group group;

    if (!product_group_of(&p, &group))
        return;
    for (uint32_t r0 = blockIdx.x * PRODUCT_WIDE_ROWS; r0 < group.count;
         r0 += gridDim.x * PRODUCT_WIDE_ROWS)
        wide_tile<dtype>(&p, &group, (uint4 *)shared, r0);
}

template <int dtype>
static cudaError_t launch(const struct product *p, const struct product_grid *grid,
                          cudaStream_t stream)
{
    constexpr size_t narrow_bytes =
        PRODUCT_SLICES * PRODUCT_NARROW_N * PRODUCT_NARROW_ROWS * sizeof(float);
    constexpr size_t wide_bytes =
        2 * WIDE_X_VECTORS * sizeof(uint4) +
        plain_type<dtype>::aside * PRODUCT_THREADS * sizeof(float);
    const struct product copy = *p;

    if (grid->narrow)
        GPU_LAUNCH(narrow_plain<dtype>, grid->blocks, PRODUCT_THREADS, narrow_bytes, stream, copy);
    else
        GPU_LAUNCH(wide_plain<dtype>, grid->blocks, PRODUCT_THREADS, wide_bytes, stream, copy);
    return cudaGetLastError();
}

cudaError_t product_launch_plain(const struct product *p, int dtype,
                                 const struct product_grid *grid, cudaStream_t stream)
{
    switch (dtype) {
    case DTYPE_F32: return launch<DTYPE_F32>(p, grid, stream);
    case DTYPE_F16: return launch<DTYPE_F16>(p, grid, stream);
    default: return launch<DTYPE_BF16>(p, grid, stream);
    }
}
