/* device/cpu/quant_dotprod.c - products with quantised weights where the processor has SDOT. */
#include "device/cpu/quant_arm.h"

void cpu__matmul_quant_dotprod(const struct cpu_strip *strip, void *scratch)
{
    multiply_any(strip, scratch);
}
