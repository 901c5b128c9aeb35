/* device/cpu/matmul_avx512.c - products with plain weights by F32's FMAs, sixteen at a time. */
#include "device/cpu/avx2.h"

static inline __m512 multiply_add(__m512 sum, __m512 x, __m512 weights)
{
    return _mm512_fmadd_ps(x, weights, sum);
}

#include "device/cpu/matmul_tiles.h"

static void multiply_f32(const struct cpu_strip *strip, void *scratch)
{
    multiply(strip, scratch, DTYPE_F32);
}

static void multiply_f16(const struct cpu_strip *strip, void *scratch)
{
    multiply(strip, scratch, DTYPE_F16);
}

static void multiply_bf16(const struct cpu_strip *strip, void *scratch)
{
    multiply(strip, scratch, DTYPE_BF16);
}

void cpu__matmul_avx512(const struct cpu_strip *strip, void *scratch)
{
    if (strip->weight_dtype == DTYPE_F32)
        multiply_f32(strip, scratch);
    else if (strip->weight_dtype == DTYPE_F16)
        multiply_f16(strip, scratch);
    else
        multiply_bf16(strip, scratch);
}
