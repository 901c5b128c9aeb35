/* device/cpu/quant_avx512.c - products with quantised weights where the processor has AVX-512 with
 * VNNI. */
#include "device/cpu/quant.h"
#include "device/cpu/quant_tiles.h"

void cpu__matmul_quant_avx512(const struct cpu_strip *strip, void *scratch)
{
    if (strip->weight_dtype == DTYPE_Q8_0)
        multiply_q8_0(strip, scratch);
    else if (strip->weight_dtype == DTYPE_Q4_0)
        multiply_q4_0(strip, scratch);
    else
        cpu__matmul_quant_scalar(strip, scratch);
}
