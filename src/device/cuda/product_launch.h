/* device/cuda/product_launch.h - products, for the operators that are made of them: only for .cu
 * files. */
#ifndef LIGHTER_DEVICE_CUDA_PRODUCT_LAUNCH_H
#define LIGHTER_DEVICE_CUDA_PRODUCT_LAUNCH_H

#include "device/cuda/product.h"

/* dtype_row_bytes, for code that links nothing of the program. */
uint64_t product_row_bytes(int dtype, uint64_t count);

/* Queues p of weights of the type. group_count: batches; of experts how many may be hit, twice that
 * for gate and up. row_count: of experts what one can have at most. */
cudaError_t product_launch(const struct product *p, int dtype, uint32_t group_count,
                           cudaStream_t stream);

#endif
