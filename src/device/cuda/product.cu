/* device/cuda/product.cu - which kernel takes a product, and OP_MATMUL. */
#include "device/cuda/product_launch.h"

#include "device/cuda/kernels.h"

#define NARROW_ROWS_MAX 32  /* of more rows the wide kernel reads the weights less often */
#define TILES_MAX 65535u    /* along x and y of a grid here; z holds as many */
#define EXPERT_TILES_MAX 4u /* few experts have more rows than so many tiles take */

static uint32_t tiles(uint64_t count, uint32_t each)
{
    return (uint32_t)((count + each - 1) / each);
}

uint64_t product_row_bytes(int dtype, uint64_t count)
{
    switch (dtype) {
    case DTYPE_F32: return count * 4;
    case DTYPE_F16:
    case DTYPE_BF16: return count * 2;
    case DTYPE_Q8_0: return count / 32 * 34;
    case DTYPE_Q4_0: return count / 32 * 18;
    case DTYPE_Q4_1: return count / 32 * 20;
    case DTYPE_Q5_0: return count / 32 * 22;
    case DTYPE_Q5_1: return count / 32 * 24;
    case DTYPE_IQ4_NL: return count / 32 * 18;
    case DTYPE_INT4: return count / 32 * 19;
    case DTYPE_F8_E4M3: return count / 128 * 132;
    case DTYPE_F8_E4M3_16: return count / 16 * 20;
    case DTYPE_MXFP4: return count / 32 * 17;
    case DTYPE_Q2_K: return count / 256 * 84;
    case DTYPE_Q3_K: return count / 256 * 110;
    case DTYPE_Q4_K: return count / 256 * 144;
    case DTYPE_Q5_K: return count / 256 * 176;
    case DTYPE_Q6_K: return count / 256 * 210;
    default: return count / 256 * 136;
    }
}

cudaError_t product_launch(const struct product *p, int dtype, uint32_t group_count,
                           cudaStream_t stream)
{
    struct product_grid grid;
    uint32_t rows;

    grid.narrow = p->row_count <= NARROW_ROWS_MAX;
    rows = tiles(p->row_count, grid.narrow ? PRODUCT_NARROW_ROWS : PRODUCT_WIDE_ROWS);
    if (p->experts.hits != nullptr && rows > EXPERT_TILES_MAX)
        rows = EXPERT_TILES_MAX;
    grid.blocks = dim3(rows < TILES_MAX ? rows : TILES_MAX,
                       tiles(p->n_count, grid.narrow ? PRODUCT_NARROW_N : PRODUCT_WIDE_N),
                       group_count);
    if (dtype == DTYPE_F32 || dtype == DTYPE_F16 || dtype == DTYPE_BF16)
        return product_launch_plain(p, dtype, &grid, stream);
    if (dtype == DTYPE_Q2_K || dtype == DTYPE_Q3_K || dtype == DTYPE_Q4_K || dtype == DTYPE_Q5_K ||
        dtype == DTYPE_Q6_K || dtype == DTYPE_IQ4_XS)
        return product_launch_k(p, dtype, &grid, stream);
    if (dtype == DTYPE_F8_E4M3 || dtype == DTYPE_F8_E4M3_16)
        return product_launch_f8(p, dtype, &grid, stream);
    return product_launch_small(p, dtype, &grid, stream);
}

/* A grid has at most TILES_MAX tiles of weights: larger matrices, which only a vocabulary of a
 * million has, go in pieces. */
static cudaError_t launch_pieces(struct product *p, int dtype, uint32_t batch_count,
                                 cudaStream_t stream)
{
    const uint32_t n_max = TILES_MAX * PRODUCT_NARROW_N, n_count = p->n_count;
    cudaError_t code = cudaSuccess;

    for (uint32_t n = 0; n < n_count && code == cudaSuccess; n += n_max) {
        p->n_count = n_count - n < n_max ? n_count - n : n_max;
        code = product_launch(p, dtype, batch_count, stream);
        p->weight += p->n_count * p->weight_row_bytes;
        p->out += p->n_count;
        if (p->bias != nullptr)
            p->bias += p->n_count;
    }
    return code;
}

cudaError_t cuda_matmul(const struct op_matmul *op, cudaStream_t stream)
{
    struct product p = {};

    p.out = op->out;
    p.x = op->x;
    p.weight = (const uint8_t *)op->weight;
    p.bias = op->bias;
    p.out_row_stride = op->out_row_stride;
    p.x_row_stride = op->x_row_stride;
    p.out_batch_stride = op->out_batch_stride;
    p.x_batch_stride = op->x_batch_stride;
    p.weight_row_bytes = product_row_bytes(op->weight_dtype, op->k_count);
    p.weight_batch_bytes = p.weight_row_bytes * op->n_count;
    p.row_count = op->row_count;
    p.n_count = op->n_count;
    p.k_count = op->k_count;
    p.accumulate = op->accumulate;
    return launch_pieces(&p, op->weight_dtype, op->batch_count, stream);
}
