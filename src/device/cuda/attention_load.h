/* device/cuda/attention_load.h - what attention reads of a cache in F32, F16 or Q8_0, as F32: only
 * for attention*.cu. */
#ifndef LIGHTER_DEVICE_CUDA_ATTENTION_LOAD_H
#define LIGHTER_DEVICE_CUDA_ATTENTION_LOAD_H

#include "device/cuda/kernels.h"

/* Whether whole fours of elements, from where a head's begin, can be read at once. */
template <int dtype>
__device__ static inline bool attention_is_aligned(const void *cache,
                                                   const struct op_cache_strides *strides)
{
    constexpr uint32_t bytes = dtype == DTYPE_F32 ? 4 : 2;

    if (dtype == DTYPE_Q8_0) /* fours lie in a block, which stands at an even address */
        return true;
    return (((uintptr_t)cache | strides->page * bytes | strides->head * bytes |
             strides->slot * bytes) & (4 * bytes - 1)) == 0;
}

/* An element of the cache. */
template <int dtype>
__device__ static inline float attention_load_one(const void *cache, uint64_t at)
{
    if (dtype == DTYPE_Q8_0) {
        const uint8_t *block = (const uint8_t *)cache + at / 32 * 34;

        return gpu_f16_to_f32(*(const uint16_t *)(const void *)block) *
               (float)(int8_t)block[2 + at % 32];
    }
    return dtype == DTYPE_F16 ? gpu_f16_to_f32(((const uint16_t *)cache)[at])
                              : ((const float *)cache)[at];
}

/* Four elements of an aligned cache. */
template <int dtype>
__device__ static inline float4 attention_load_four(const void *cache, uint64_t at)
{
    if (dtype == DTYPE_Q8_0) {
        const uint16_t *block = (const uint16_t *)((const uint8_t *)cache + at / 32 * 34);
        const float scale = gpu_f16_to_f32(block[0]);
        const uint32_t low = block[1 + at % 32 / 2], high = block[2 + at % 32 / 2];

        return make_float4(scale * (float)(int8_t)low, scale * (float)(int8_t)(low >> 8),
                           scale * (float)(int8_t)high, scale * (float)(int8_t)(high >> 8));
    }
    if (dtype == DTYPE_F16) {
        const uint2 four = *(const uint2 *)(const void *)((const uint16_t *)cache + at);

        return make_float4(gpu_f16_to_f32(four.x & 0xffff), gpu_f16_to_f32(four.x >> 16),
                           gpu_f16_to_f32(four.y & 0xffff), gpu_f16_to_f32(four.y >> 16));
    }
    return *(const float4 *)(const void *)((const float *)cache + at);
}

/* `count` elements, a multiple of four. is_whole: all are there, and aligned; else the first `left`
 * are, and the others become zeros. */
template <int dtype, int count>
__device__ static inline void attention_load(float values[count], const void *cache, uint64_t at,
                                             uint32_t left, bool is_whole)
{
    if (is_whole) {
#pragma unroll
        for (int i = 0; i < count; i += 4) {
            const float4 four = attention_load_four<dtype>(cache, at + i);

            values[i] = four.x;
            values[i + 1] = four.y;
            values[i + 2] = four.z;
            values[i + 3] = four.w;
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < count; i++)
        values[i] = (uint32_t)i < left ? attention_load_one<dtype>(cache, at + i) : 0;
}

#endif
