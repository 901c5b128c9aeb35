/* device/cpu/kernels.h - the inner loops that have a version for each instruction set.
 *
 * execute.c cuts ops into pieces for threads; these compute a piece on one thread. A table must be
 * consistent in itself: the value of an output depends on its own inputs alone, bit for bit, not on
 * how many rows or columns are asked for together. Tables need not agree with each other bit for
 * bit.
 *
 * How matmul keeps that promise: each output is summed over k in one order, whatever the shape of
 * the tile that computes it:
 *
 *     lane[l] = sum over i of x[8 i + l] * weight[8 i + l], i ascending, missing elements are 0
 *     output  = ((lane0 + lane1) + (lane2 + lane3)) + ((lane4 + lane5) + (lane6 + lane7))
 *     output  = output (+ bias) (+ what was there)
 *
 * Threads: a table is constant; calls on different outputs may run beside each other. */
#ifndef LIGHTER_DEVICE_CPU_KERNELS_H
#define LIGHTER_DEVICE_CPU_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tensor/dtype.h"

#define CPU_LANES 8
#define CPU_STRIP_ROWS_MAX 128 /* of x in one strip */
#define CPU_STRIP_SCRATCH_BYTES (512 << 10)

/* A part of a matrix product: out[r][n] = sum over k of x[r][k] * weight[n][k]. */
struct cpu_strip {
    float *out;
    const float *const *x_rows; /* [row_count], each with k_count elements */
    const void *weight;         /* rows weight_row_stride elements apart, unless ... */
    const float *const *weight_rows; /* ... not NULL: [n_count], F32, each anywhere */
    const float *bias;          /* [n_count] or NULL */
    enum dtype weight_dtype;    /* F32, F16, BF16 */
    uint32_t row_count;         /* at most CPU_STRIP_ROWS_MAX */
    uint32_t n_count, k_count;
    uint64_t out_row_stride, weight_row_stride; /* in elements */
    bool accumulate;            /* add to what out holds */
};

struct cpu_kernels {
    const char *name; /* "scalar", "AVX2": for people */
    /* scratch: CPU_STRIP_SCRATCH_BYTES, 64-byte aligned, the thread's own. */
    void (*matmul)(const struct cpu_strip *strip, void *scratch);
    /* out may be x. */
    void (*rms_norm)(float *out, const float *x, const float *weight, uint32_t width,
                     float epsilon);
    /* out[i] = silu(gate[i]) * up[i]; out may be gate. */
    void (*silu_mul)(float *out, const float *gate, const float *up, uint32_t width);
    /* x[i] *= scale; returns the largest of them and `max`, leaving NaN out. */
    float (*scale_max)(float *x, uint32_t count, float scale, float max);
    /* out[i] = exp(x[i] - shift), to 2 ulp; out may be x. Returns the sum of what it wrote. */
    float (*exp_minus)(float *out, const float *x, uint32_t count, float shift);
    /* For i < width: out[q][i] += sum over j, ascending, of weights[q * weight_stride + j] *
     * rows[j][i]. */
    void (*add_weighted_rows)(float *const *out, uint32_t out_count, const float *weights,
                              uint64_t weight_stride, const float *const *rows,
                              uint32_t row_count, uint32_t width);
};

extern const struct cpu_kernels cpu_kernels_scalar;
#if defined(__x86_64__)
extern const struct cpu_kernels cpu_kernels_avx2;
#endif

/* The fastest table that this processor can run. */
const struct cpu_kernels *cpu_kernels_select(bool force_scalar);

#endif
