/* device/cuda/product_small.cu - product.h for quantised weights whose blocks are one run. */
#include "device/cuda/product_quant.h"

cudaError_t product_launch_small(const struct product *p, int dtype,
                                 const struct product_grid *grid, cudaStream_t stream)
{
    switch (dtype) {
    case DTYPE_Q8_0: return launch_quant<DTYPE_Q8_0>(p, grid, stream);
    case DTYPE_Q4_0: return launch_quant<DTYPE_Q4_0>(p, grid, stream);
    case DTYPE_Q4_1: return launch_quant<DTYPE_Q4_1>(p, grid, stream);
    case DTYPE_Q5_0: return launch_quant<DTYPE_Q5_0>(p, grid, stream);
    case DTYPE_Q5_1: return launch_quant<DTYPE_Q5_1>(p, grid, stream);
    case DTYPE_INT4: return launch_quant<DTYPE_INT4>(p, grid, stream);
    case DTYPE_IQ4_NL: return launch_quant<DTYPE_IQ4_NL>(p, grid, stream);
    default: return launch_quant<DTYPE_MXFP4>(p, grid, stream);
    }
}
