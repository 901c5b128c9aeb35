/* device/cpu/quant_avx512.c - products with quantised weights where the processor has AVX-512 with
 * VNNI. */
#include "device/cpu/quant.h"
#include "device/cpu/quant_tiles.h"

void cpu__matmul_quant_avx512(const struct cpu_strip *strip, void *scratch)
{
    multiply_any(strip, scratch);
}
