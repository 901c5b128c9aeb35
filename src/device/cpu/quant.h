/* device/cpu/quant.h - the scalar kernels for quantised weights, and what all versions share. */
#ifndef LIGHTER_DEVICE_CPU_QUANT_H
#define LIGHTER_DEVICE_CPU_QUANT_H

#include "device/cpu/kernels.h"

/* x below this everywhere in a block has no scale: its inverse times x might be infinite. */
#define CPU_QUANT_LEAST 0x1p-100f

/* The bits of a float's magnitude: ordered as the magnitudes are, infinity and NaN above. */
#define CPU_MAGNITUDE_BITS 0x7FFFFFFF
#define CPU_INFINITY_BITS 0x7F800000

/* The types that vector kernels know, of which each file makes a function of its own, by what their
 * kernels take: X(type). */
#define CPU_QUANT_ONE_SCALE(X)                                                                     \
    X(Q8_0) X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(IQ4_NL) X(MXFP4) X(Q4_K) X(Q5_K) X(IQ4_XS)
#define CPU_QUANT_TWO_SCALES(X) X(Q2_K) X(Q3_K) X(Q6_K)

void cpu__matmul_quant_scalar(const struct cpu_strip *strip, void *scratch);
void cpu__matmul_f8_scalar(const struct cpu_strip *strip, void *scratch);
void cpu__quantise_scalar(struct cpu_quant_block *blocks, const float *x, uint32_t count);

#endif
