/* device/cuda/dense.cu - operators on rows: embed, norm, rotation, cache writes and the like.
 *
 * Each output comes from its own row by the same operations whatever is beside it; sums run over a
 * block's threads in one order. */
#include "device/cuda/kernels.h"
#include "device/cuda/quant_read.h"

#define THREADS 256
#define WARPS (THREADS / GPU_WARP)
#define BLOCKS_Y_MAX 65535u /* of a grid: CUDA C++ Programming Guide, "Compute Capabilities" */

static uint32_t blocks_for(uint64_t count)
{
    return (uint32_t)((count + THREADS - 1) / THREADS);
}

/* Rows lie along y; where there are more than a grid has, a block takes several. */
static dim3 grid_for(uint64_t width, uint32_t row_count)
{
    return dim3(blocks_for(width), row_count < BLOCKS_Y_MAX ? row_count : BLOCKS_Y_MAX, 1);
}

/* ---- embed ---- */

/* A thread has four elements of a half of each run: what a lane of a product has. */
template <int dtype> __global__ void embed_quant(const struct op_embed op, uint64_t row_bytes)
{
    const uint32_t at = blockIdx.x * THREADS + threadIdx.x, run = at / 4, q = at % 4;

    if (run >= op.width / 32)
        return;
    for (uint32_t row = blockIdx.y; row < op.row_count; row += gridDim.y) {
        const uint8_t *block = (const uint8_t *)op.table + op.ids[row] * row_bytes +
                               (uint64_t)(run / quant_type<dtype>::runs) * quant_type<dtype>::bytes;
        const struct quant_memory from = { block };
        float *out = op.out + row * op.out_row_stride + run * 32 + 4 * q;
        struct quant_part part;

        quant_read<dtype>(&part, from, run % quant_type<dtype>::runs, q);
        for (uint32_t i = 0; i < 8; i++) {
            const int32_t number = (int8_t)(part.q[i / 4] >> i % 4 * 8);
            float value = part.scales[i / 4] * (float)number;

            if (quant_type<dtype>::mins)
                value += part.mins[i / 4];
            out[i / 4 * 16 + i % 4] = value;
        }
    }
}

template <int dtype> __global__ void embed_f8(const struct op_embed op)
{
    constexpr uint32_t elements = quant_type<dtype>::elements;
    const uint32_t i = blockIdx.x * THREADS + threadIdx.x;

    if (i >= op.width)
        return;
    for (uint32_t row = blockIdx.y; row < op.row_count; row += gridDim.y) {
        const uint64_t block = (uint64_t)op.ids[row] * (op.width / elements) + i / elements;
        const struct quant_memory from = { (const uint8_t *)op.table +
                                           block * quant_type<dtype>::bytes };

        op.out[row * op.out_row_stride + i] =
            __uint_as_float(from.word(0)) * quant_e4m3(from.byte(4 + i % elements));
    }
}

__global__ void embed_plain(const struct op_embed op)
{
    const uint32_t i = blockIdx.x * THREADS + threadIdx.x;

    if (i >= op.width)
        return;
    for (uint32_t row = blockIdx.y; row < op.row_count; row += gridDim.y) {
        const uint64_t at = (uint64_t)op.ids[row] * op.width + i;
        float value;

        if (op.table_dtype == DTYPE_F32)
            value = ((const float *)op.table)[at];
        else if (op.table_dtype == DTYPE_F16)
            value = gpu_f16_to_f32(((const uint16_t *)op.table)[at]);
        else
            value = gpu_bf16_to_f32(((const uint16_t *)op.table)[at]);
        op.out[row * op.out_row_stride + i] = value;
    }
}

template <int dtype> static void launch_embed(const struct op_embed *op, cudaStream_t stream)
{
    const uint64_t block_count = op->width / (32 * quant_type<dtype>::runs);
    const uint64_t row_bytes = block_count * quant_type<dtype>::bytes;
    const struct op_embed copy = *op;

    GPU_LAUNCH(embed_quant<dtype>, grid_for(op->width / 8, op->row_count), THREADS, 0, stream, copy,
               row_bytes);
}

cudaError_t cuda_embed(const struct op_embed *op, cudaStream_t stream)
{
    const struct op_embed copy = *op;

    switch ((int)op->table_dtype) {
    case DTYPE_Q8_0: launch_embed<DTYPE_Q8_0>(op, stream); break;
    case DTYPE_Q4_0: launch_embed<DTYPE_Q4_0>(op, stream); break;
    case DTYPE_Q4_1: launch_embed<DTYPE_Q4_1>(op, stream); break;
    case DTYPE_Q5_0: launch_embed<DTYPE_Q5_0>(op, stream); break;
    case DTYPE_Q5_1: launch_embed<DTYPE_Q5_1>(op, stream); break;
    case DTYPE_IQ4_NL: launch_embed<DTYPE_IQ4_NL>(op, stream); break;
    case DTYPE_MXFP4: launch_embed<DTYPE_MXFP4>(op, stream); break;
    case DTYPE_Q2_K: launch_embed<DTYPE_Q2_K>(op, stream); break;
    case DTYPE_Q3_K: launch_embed<DTYPE_Q3_K>(op, stream); break;
    case DTYPE_Q4_K: launch_embed<DTYPE_Q4_K>(op, stream); break;
    case DTYPE_Q5_K: launch_embed<DTYPE_Q5_K>(op, stream); break;
    case DTYPE_Q6_K: launch_embed<DTYPE_Q6_K>(op, stream); break;
    case DTYPE_IQ4_XS: launch_embed<DTYPE_IQ4_XS>(op, stream); break;
    case DTYPE_INT4: launch_embed<DTYPE_INT4>(op, stream); break;
    case DTYPE_F8_E4M3:
        GPU_LAUNCH(embed_f8<DTYPE_F8_E4M3>, grid_for(op->width, op->row_count), THREADS, 0, stream,
                   copy);
        break;
    case DTYPE_F8_E4M3_16:
        GPU_LAUNCH(embed_f8<DTYPE_F8_E4M3_16>, grid_for(op->width, op->row_count), THREADS, 0,
                   stream, copy);
        break;
    default:
        GPU_LAUNCH(embed_plain, grid_for(op->width, op->row_count), THREADS, 0, stream, copy);
    }
    return cudaGetLastError();
}

/* ---- norm ---- */

/* The sum over a block's threads: lanes, then warps, in order. Every thread gets it. */
__device__ static inline float block_sum(float value, float *shared)
{
    float sum = 0;

    value = gpu_warp_sum(value);
    if (threadIdx.x % GPU_WARP == 0)
        shared[threadIdx.x / GPU_WARP] = value;
    __syncthreads();
    for (uint32_t w = 0; w < WARPS; w++)
        sum += shared[w];
    __syncthreads();
    return sum;
}

__global__ void rms_norm(const struct op_rms_norm op)
{
    GPU_SHARED(shared);
    const uint64_t start = (uint64_t)blockIdx.x * op.width;

    for (uint32_t row = blockIdx.y; row < op.row_count; row += gridDim.y) {
        const float *x = op.x + row * op.x_row_stride + start;
        float *out = op.out + row * op.out_row_stride + start;
        float sum = 0, scale;

        for (uint32_t i = threadIdx.x; i < op.width; i += THREADS)
            sum = fmaf(x[i], x[i], sum);
        sum = block_sum(sum, (float *)shared);
        scale = 1.0f / sqrtf(sum / (float)op.width + op.epsilon);
        for (uint32_t i = threadIdx.x; i < op.width; i += THREADS)
            out[i] = x[i] * scale * (op.weight[i] + op.weight_offset);
    }
}

cudaError_t cuda_rms_norm(const struct op_rms_norm *op, cudaStream_t stream)
{
    const struct op_rms_norm copy = *op;
    const dim3 grid(op->group_count, op->row_count < BLOCKS_Y_MAX ? op->row_count : BLOCKS_Y_MAX,
                    1);

    GPU_LAUNCH(rms_norm, grid, THREADS, WARPS * sizeof(float), stream, copy);
    return cudaGetLastError();
}

/* ---- rotation ---- */

/* Angles reach a million; only double finds their place on the circle to a float's last bits. */
__global__ void rope_table(const struct op_rope_table op)
{
    const uint64_t at = (uint64_t)blockIdx.x * THREADS + threadIdx.x;
    const uint32_t row = (uint32_t)(at / op.pair_count), i = (uint32_t)(at % op.pair_count);
    float angle;

    if (row >= op.row_count)
        return;
    angle = (float)op.positions[row] * op.frequencies[i];
    op.table[2 * at] = (float)cos((double)angle) * op.scale;
    op.table[2 * at + 1] = (float)sin((double)angle) * op.scale;
}

cudaError_t cuda_rope_table(const struct op_rope_table *op, cudaStream_t stream)
{
    const struct op_rope_table copy = *op;

    GPU_LAUNCH(rope_table, blocks_for((uint64_t)op->row_count * op->pair_count), THREADS, 0, stream,
               copy);
    return cudaGetLastError();
}

__global__ void rope(const struct op_rope op)
{
    const uint32_t at = blockIdx.x * THREADS + threadIdx.x;
    const uint32_t head = at / op.pair_count, i = at % op.pair_count;

    if (head >= op.head_count)
        return;
    for (uint32_t row = blockIdx.y; row < op.row_count; row += gridDim.y) {
        const float *entry = op.table + 2 * ((uint64_t)row * op.pair_count + i);
        float *x = op.x + row * op.row_stride + head * op.head_stride;
        float *a = op.interleaved ? &x[2 * i] : &x[i];
        float *b = op.interleaved ? &x[2 * i + 1] : &x[i + op.pair_count];
        const float first = *a, second = *b;

        *a = first * entry[0] - second * entry[1];
        *b = first * entry[1] + second * entry[0];
    }
}

cudaError_t cuda_rope(const struct op_rope *op, cudaStream_t stream)
{
    const struct op_rope copy = *op;

    GPU_LAUNCH(rope, grid_for((uint64_t)op->head_count * op->pair_count, op->row_count), THREADS, 0,
               stream, copy);
    return cudaGetLastError();
}

/* ---- element by element ---- */

/* To nearest, ties to even, with the bits that dtype_convert gives, also to NaN. */
__device__ static inline uint16_t f16_of(float value)
{
    const uint32_t bits = __float_as_uint(value), sign = bits >> 16 & 0x8000;
    const uint32_t magnitude = bits & 0x7fffffffu;

    if (magnitude >= 0x477ff000u) /* 65520 and more round to infinity */
        return (uint16_t)(sign | (magnitude > 0x7f800000u ? 0x7e00 : 0x7c00));
    if (magnitude < 0x38800000u) /* subnormal, in units of 2^-24, the ulp of 0.5 */
        return (uint16_t)(sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) -
                                  0x3f000000u));
    return (uint16_t)(sign | (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13);
}

/* Where element i of a row, all heads', goes. */
__device__ static inline uint64_t place_in_cache(const struct op_kv_write *op, uint32_t row,
                                                 uint32_t i)
{
    const uint32_t slot = (uint32_t)op->slots[row];

    return slot / op->page_size * op->strides.page + i / op->width * op->strides.head +
           slot % op->page_size * op->strides.slot + i % op->width;
}

__global__ void kv_write(const struct op_kv_write op)
{
    const uint32_t i = blockIdx.x * THREADS + threadIdx.x;

    if (i >= op.head_count * op.width)
        return;
    for (uint32_t row = blockIdx.y; row < op.row_count; row += gridDim.y) {
        const uint64_t at = place_in_cache(&op, row, i);
        const float value = op.x[row * op.x_row_stride + i];

        if (op.cache_dtype == DTYPE_F16)
            ((uint16_t *)op.cache)[at] = f16_of(value);
        else
            ((float *)op.cache)[at] = value;
    }
}

/* A block of Q8_0 from 32 elements, as quant_q8_0_from_f32 makes it. */
__device__ static inline void write_q8_0(uint8_t *block, const float *x)
{
    float largest = 0, scale, factor;
    uint16_t bits;

    for (uint32_t i = 0; i < 32; i++)
        largest = fmaxf(largest, fabsf(x[i])); /* leaves NaN out */
    scale = largest / 127;
    factor = scale == 0 ? 0 : 1 / scale;
    bits = f16_of(scale);
    block[0] = (uint8_t)bits;
    block[1] = (uint8_t)(bits >> 8);
    for (uint32_t i = 0; i < 32; i++) {
        const float q = x[i] * factor;

        block[2 + i] = (uint8_t)(int8_t)(q != q ? 0 : roundf(fminf(fmaxf(q, -127), 127)));
    }
}

__global__ void kv_write_q8_0(const struct op_kv_write op)
{
    const uint32_t i = blockIdx.x * THREADS + threadIdx.x;

    if (i >= op.head_count * op.width / 32)
        return;
    for (uint32_t row = blockIdx.y; row < op.row_count; row += gridDim.y)
        write_q8_0((uint8_t *)op.cache + place_in_cache(&op, row, i * 32) / 32 * 34,
                   op.x + row * op.x_row_stride + i * 32);
}

cudaError_t cuda_kv_write(const struct op_kv_write *op, cudaStream_t stream)
{
    const struct op_kv_write copy = *op;
    const uint32_t width = op->head_count * op->width;

    if (op->cache_dtype == DTYPE_Q8_0)
        GPU_LAUNCH(kv_write_q8_0, grid_for(width / 32, op->row_count), THREADS, 0, stream, copy);
    else
        GPU_LAUNCH(kv_write, grid_for(width, op->row_count), THREADS, 0, stream, copy);
    return cudaGetLastError();
}

__global__ void silu_mul(const struct op_silu_mul op)
{
    const uint32_t i = blockIdx.x * THREADS + threadIdx.x;

    if (i >= op.width)
        return;
    for (uint32_t row = blockIdx.y; row < op.row_count; row += gridDim.y) {
        const float *x = op.x + row * op.x_row_stride;

        op.out[row * op.out_row_stride + i] = cuda_gate(op.gate, x[i], x[op.width + i]);
    }
}

cudaError_t cuda_silu_mul(const struct op_silu_mul *op, cudaStream_t stream)
{
    const struct op_silu_mul copy = *op;

    GPU_LAUNCH(silu_mul, grid_for(op->width, op->row_count), THREADS, 0, stream, copy);
    return cudaGetLastError();
}

__global__ void scale_rows(const struct op_scale op)
{
    const uint32_t i = blockIdx.x * THREADS + threadIdx.x;

    if (i >= op.width)
        return;
    for (uint32_t row = blockIdx.y; row < op.row_count; row += gridDim.y) {
        float *out = op.out + row * op.out_row_stride + i;
        float factor = op.factor;

        if (op.row_factors != nullptr)
            factor *= op.sigmoid ? 1.0f / (1.0f + expf(-op.row_factors[row])) : op.row_factors[row];
        factor *= op.x[row * op.x_row_stride + i];
        *out = op.accumulate ? *out + factor : factor;
    }
}

cudaError_t cuda_scale(const struct op_scale *op, cudaStream_t stream)
{
    const struct op_scale copy = *op;

    GPU_LAUNCH(scale_rows, grid_for(op->width, op->row_count), THREADS, 0, stream, copy);
    return cudaGetLastError();
}

__global__ void gather_rows(const struct op_gather_rows op)
{
    const uint32_t i = blockIdx.x * THREADS + threadIdx.x;

    if (i >= op.width)
        return;
    for (uint32_t row = blockIdx.y; row < op.row_count; row += gridDim.y)
        op.out[row * op.out_row_stride + i] = op.x[op.rows[row] * op.x_row_stride + i];
}

cudaError_t cuda_gather_rows(const struct op_gather_rows *op, cudaStream_t stream)
{
    const struct op_gather_rows copy = *op;

    GPU_LAUNCH(gather_rows, grid_for(op->width, op->row_count), THREADS, 0, stream, copy);
    return cudaGetLastError();
}

__global__ void gather_columns(const struct op_gather_columns op)
{
    const uint32_t i = blockIdx.x * THREADS + threadIdx.x;

    if (i >= op.width)
        return;
    for (uint32_t row = blockIdx.y; row < op.row_count; row += gridDim.y)
        op.out[row * op.out_row_stride + i] =
            op.x[row * op.x_row_stride + op_column(op.columns[i], op.x_width)];
}

cudaError_t cuda_gather_columns(const struct op_gather_columns *op, cudaStream_t stream)
{
    const struct op_gather_columns copy = *op;

    GPU_LAUNCH(gather_columns, grid_for(op->width, op->row_count), THREADS, 0, stream, copy);
    return cudaGetLastError();
}

__global__ void soft_cap(const struct op_soft_cap op)
{
    const uint32_t i = blockIdx.x * THREADS + threadIdx.x;

    if (i >= op.width)
        return;
    for (uint32_t row = blockIdx.y; row < op.row_count; row += gridDim.y) {
        float *x = op.x + row * op.row_stride + i;

        *x = op.cap * tanhf(*x / op.cap);
    }
}

cudaError_t cuda_soft_cap(const struct op_soft_cap *op, cudaStream_t stream)
{
    const struct op_soft_cap copy = *op;

    GPU_LAUNCH(soft_cap, grid_for(op->width, op->row_count), THREADS, 0, stream, copy);
    return cudaGetLastError();
}
