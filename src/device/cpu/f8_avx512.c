/* device/cpu/f8_avx512.c - products with F8_E4M3 weights where the processor has AVX-512. */
#include "device/cpu/f8_tiles.h"

void cpu__matmul_f8_avx512(const struct cpu_strip *strip, void *scratch)
{
    multiply_f8(strip, scratch);
}
