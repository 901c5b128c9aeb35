/* device/cuda/product_k.cu - product.h for quantised weights whose blocks are eight runs. */
#include "device/cuda/product_quant.h"

cudaError_t product_launch_k(const struct product *p, int dtype, const struct product_grid *grid,
                             cudaStream_t stream)
{
    switch (dtype) {
    case DTYPE_Q2_K: return launch_quant<DTYPE_Q2_K>(p, grid, stream);
    case DTYPE_Q3_K: return launch_quant<DTYPE_Q3_K>(p, grid, stream);
    case DTYPE_Q4_K: return launch_quant<DTYPE_Q4_K>(p, grid, stream);
    case DTYPE_Q5_K: return launch_quant<DTYPE_Q5_K>(p, grid, stream);
    case DTYPE_Q6_K: return launch_quant<DTYPE_Q6_K>(p, grid, stream);
    default: return launch_quant<DTYPE_IQ4_XS>(p, grid, stream);
    }
}
