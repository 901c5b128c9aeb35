/* device/cuda/gpu.h - what the kernels use of a GPU beyond C++: only for .cu files.
 *
 * The .cu files compile with nvcc, and with a C++ compiler against tests/cuda/, where
 * <cuda_runtime.h> is a stand-in whose threads are fibers of the processor. What CUDA has no
 * portable word for stands here, once as PTX and once as plain C++ of the same meaning (PTX ISA
 * 8.0, sections 9.7.14.5 for mma, 9.7.8.22 for cp.async, 9.7.12.1 for bar, 9.7.4.4 for fma):
 *
 *     gpu_mma_bf16     16 x 8 products of 16 BF16 each, added in F32
 *     gpu_mma_s8       16 x 8 products of 32 int8 each, or of 16, added in int32: exact
 *     gpu_copy_16      16 bytes from device memory to shared memory, beside computing
 *     gpu_part_sync    waits for the other threads of a part of the block
 *     gpu_mul_bf16     two products of two BF16 each, to nearest
 *
 * A warp's lane l has g = l / 4 and q = l % 4. Of a 16 x 8 result it holds four elements, (g, 2q),
 * (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1): rows belong to weights, columns to rows of x. Neither
 * a row nor a column of a result depends on the others. */
#ifndef LIGHTER_DEVICE_CUDA_GPU_H
#define LIGHTER_DEVICE_CUDA_GPU_H

#include <cuda_runtime.h>
#include <stdint.h>

#define GPU_WARP 32
#define GPU_ALL_LANES 0xffffffffu

#ifdef __CUDACC__

#define GPU_BOTH __host__ __device__
#define GPU_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                 \
    kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
#define GPU_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

/* a: weights, elements (g, 2q), (g + 8, 2q), (g, 2q + 8), (g + 8, 2q + 8) and their right
 * neighbours; b: x, elements (2q, g), (2q + 8, g) and the ones below them. */
__device__ static inline void gpu_mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* a: elements 4q .. 4q + 3 of rows g and g + 8, then 4q + 16 .. of the same; b: elements 4q .. and
 * 4q + 16 .. of column g. c is written. */
__device__ static inline void gpu_mma_s8_32(int32_t c[4], const uint32_t a[4], const uint32_t b[2])
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%10,%10,%10,%10};"
        : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(0));
}

/* The same of 16 elements. */
__device__ static inline void gpu_mma_s8_16(int32_t c[4], const uint32_t a[2], uint32_t b)
{
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%7,%7,%7,%7};"
        : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b), "r"(0));
}

__device__ static inline void gpu_copy_16(void *shared, const void *memory)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                     (unsigned)__cvta_generic_to_shared(shared)),
                 "l"(memory)
                 : "memory");
}

/* Closes a group of copies; waits until at most `left` of the thread's groups are under way. */
__device__ static inline void gpu_copy_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int left> __device__ static inline void gpu_copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}

/* Of part `part`, 0 to 14, of `threads` threads, whole warps; what they wrote before is there. */
__device__ static inline void gpu_part_sync(uint32_t part, uint32_t threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(part + 1), "r"(threads) : "memory");
}

__device__ static inline uint32_t gpu_mul_bf16(uint32_t a, uint32_t b)
{
    uint32_t product; /* by fma, as 8.0 has no mul of these; adding -0 changes nothing */

    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));
    return product;
}

__device__ static inline float gpu_f16_to_f32(uint32_t bits)
{
    float value;

    asm("{ .reg .b16 h; mov.b16 h, %1; cvt.f32.f16 %0, h; }" : "=f"(value) : "h"((uint16_t)bits));
    return value;
}

#else

#define GPU_BOTH
#define GPU_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                 \
    standin_launch((grid), (block), (shared_bytes), (stream), [=] { kernel(__VA_ARGS__); })
#define GPU_SHARED(name) unsigned char *const name = standin_shared_memory()

static inline void gpu_mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    standin_mma_bf16(c, a, b);
}

static inline void gpu_mma_s8_32(int32_t c[4], const uint32_t a[4], const uint32_t b[2])
{
    standin_mma_s8(c, a, b, 32);
}

static inline void gpu_mma_s8_16(int32_t c[4], const uint32_t a[2], uint32_t b)
{
    const uint32_t all_a[4] = { a[0], a[1], 0, 0 }, all_b[2] = { b, 0 };

    standin_mma_s8(c, all_a, all_b, 16);
}

static inline void gpu_copy_16(void *shared, const void *memory)
{
    standin_copy_16(shared, memory);
}

static inline void gpu_copy_commit(void)
{
    standin_copy_commit();
}

template <int left> static inline void gpu_copy_wait(void)
{
    standin_copy_wait(left);
}

static inline void gpu_part_sync(uint32_t part, uint32_t threads)
{
    standin_part_sync(part, threads);
}

static inline uint32_t gpu_mul_bf16(uint32_t a, uint32_t b)
{
    return standin_mul_bf16(a, b);
}

static inline float gpu_f16_to_f32(uint32_t bits)
{
    return standin_f16_to_f32((uint16_t)bits);
}

#endif

__device__ static inline float gpu_bf16_to_f32(uint32_t bits)
{
    return __uint_as_float(bits << 16);
}

__device__ static inline bool gpu_is_finite(float value)
{
    return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u;
}

/* The 32 bits at a byte address of shared memory, wherever it lies; `memory` is a multiple of 4. */
__device__ static inline uint32_t gpu_bits_at(const uint32_t *memory, uint32_t byte)
{
    const uint32_t low = memory[byte / 4], high = memory[byte / 4 + 1];

    return __funnelshift_r(low, high, byte % 4 * 8);
}

/* The sum over all lanes, in one order; every lane gets it. */
__device__ static inline float gpu_warp_sum(float value)
{
    for (int distance = GPU_WARP / 2; distance > 0; distance /= 2)
        value += __shfl_xor_sync(GPU_ALL_LANES, value, distance);
    return value;
}

__device__ static inline float gpu_warp_max(float value)
{
    for (int distance = GPU_WARP / 2; distance > 0; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(GPU_ALL_LANES, value, distance));
    return value;
}

#endif
