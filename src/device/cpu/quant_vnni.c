/* device/cpu/quant_vnni.c - products with quantised weights where the processor has AVX-VNNI. */
#include "device/cpu/quant.h"
#include "device/cpu/quant_tiles.h"

void cpu__matmul_quant_vnni(const struct cpu_strip *strip, void *scratch)
{
    (void)scratch;
    multiply_any(strip);
}
