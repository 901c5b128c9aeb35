/* device/cuda/kernels.h - one function per operator, each of which queues its kernels: only for .cu
 * files. Operands are those of device/op.h; rows there are. */
#ifndef LIGHTER_DEVICE_CUDA_KERNELS_H
#define LIGHTER_DEVICE_CUDA_KERNELS_H

#include "device/cuda/gpu.h"
#include "device/cuda/module.h"
#include "device/op.h"

#define CUDA_GRID_MAX 65535u /* blocks along y and z */

/* dense.cu */
cudaError_t cuda_embed(const struct op_embed *op, cudaStream_t stream);
cudaError_t cuda_rms_norm(const struct op_rms_norm *op, cudaStream_t stream);
cudaError_t cuda_rope_table(const struct op_rope_table *op, cudaStream_t stream);
cudaError_t cuda_rope(const struct op_rope *op, cudaStream_t stream);
cudaError_t cuda_kv_write(const struct op_kv_write *op, cudaStream_t stream);
cudaError_t cuda_silu_mul(const struct op_silu_mul *op, cudaStream_t stream);
cudaError_t cuda_scale(const struct op_scale *op, cudaStream_t stream);
cudaError_t cuda_gather_rows(const struct op_gather_rows *op, cudaStream_t stream);
cudaError_t cuda_gather_columns(const struct op_gather_columns *op, cudaStream_t stream);
cudaError_t cuda_soft_cap(const struct op_soft_cap *op, cudaStream_t stream);

/* product.cu */
cudaError_t cuda_matmul(const struct op_matmul *op, cudaStream_t stream);

/* attention.cu */
cudaError_t cuda_attention(const struct op_attention *op, const struct cuda_room *room,
                           cudaStream_t stream);

/* experts.cu */
cudaError_t cuda_route(const struct op_route *op, cudaStream_t stream);
cudaError_t cuda_moe(const struct op_moe *op, cudaStream_t stream);

/* How a gate and an up become one: op.h has the formulas. 0.5 (1 + tanh(a)) is 1 / (1 + exp(-2 a)).
 * */
__device__ static inline float cuda_gate(enum op_gate gate, float g, float u)
{
    constexpr float gelu_scale = 0.7978845608028654f, gelu_cube = 0.044715f;
    constexpr float clamp = 7, alpha = 1.702f;

    switch (gate) {
    case GATE_GELU_TANH:
        return g / (1.0f + expf(-2.0f * (gelu_scale * (g + gelu_cube * g * g * g)))) * u;
    case GATE_CLAMPED_SWISH:
        g = g > clamp ? clamp : g;
        u = u > clamp ? clamp : u < -clamp ? -clamp : u;
        return g / (1.0f + expf(-alpha * g)) * (u + 1.0f);
    default: return g / (1.0f + expf(-g)) * u;
    }
}

#endif
