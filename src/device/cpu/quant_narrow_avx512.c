/* device/cpu/quant_narrow_avx512.c - products with quantised weights in AVX-512 VNNI, eight weight
 * rows at a time: for few rows of x, which wait for memory, and for what is left of a strip where
 * sixteen are not. */
#include "device/cpu/quant.h"
#include "device/cpu/quant_tiles.h"

void cpu__matmul_quant_avx512_narrow(const struct cpu_strip *strip, void *scratch)
{
    (void)scratch;
    multiply_any(strip);
}
