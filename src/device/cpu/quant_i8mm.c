/* device/cpu/quant_i8mm.c - products with quantised weights where the processor has SMMLA. */
#include "device/cpu/quant_arm.h"

void cpu__matmul_quant_i8mm(const struct cpu_strip *strip, void *scratch)
{
    multiply_any(strip, scratch);
}
