/* device/cpu/kernels.h - the inner loops that have a version for each instruction set.
 *
 * execute.c cuts ops into pieces for threads; these compute a piece on one thread. A table must be
 * consistent in itself: the value of an output depends on its own inputs alone, bit for bit, not on
 * how many rows or columns are asked for together. Tables need not agree with each other bit for
 * bit, except where their weights are quantised.
 *
 * How matmul keeps that promise: each output is summed over k in one order, whatever the shape of
 * the tile that computes it:
 *
 *     lane[l] = sum over i of x[8 i + l] * weight[8 i + l], i ascending, missing elements are 0
 *     output  = ((lane0 + lane1) + (lane2 + lane3)) + ((lane4 + lane5) + (lane6 + lane7))
 *     output  = output (+ bias) (+ what was there)
 *
 * With AVX-512 there are sixteen lanes, of which l + (l + 8) are then taken as the eight, and each
 * CPU_K_BLOCK k are such a sum: what was there is added to the first, the others to that in turn.
 * Where there is AMX, F16 and BF16 weights have another order, that of matmul_amx.c, and where x is
 * rounded to BF16, BF16 ones that of matmul_bf16.c.
 *
 * With quantised weights x is quantised too, to 8 bits in blocks of 32, once for all its products.
 * A row of weights is runs of 32 integers with scales (tensor/quant.h). The dot products of runs
 * are sums of integers, exact in any order, and in every table, for b ascending from output = 0
 *
 *     one scale    output = fma(dot[b], x_scale[b] * scale[b], output)
 *      with mins   output = fma(x_scale[b] * x_sum[b], min[b], output)
 *     two scales   the same with each half h of the run: dot[b][h], scale[b][h], x_sum[b][h], ...
 *
 * and then output = output (+ bias) (+ what was there).
 *
 * F8_E4M3's and F8_E4M3_16's elements are floats, and x is not quantised for them. Each output is
 * summed in 16 lanes, in all tables alike, with e / 256 and 256 * s, which are exact:
 *
 *     part[l] = fma over i of x[16 i + l], e[16 i + l], i ascending in the block, from 0
 *     lane[l] = fma over the blocks b ascending of part[l], s[b], from 0
 *     output  = the lanes l + (l + 8) as those of a plain product, above
 *
 * Threads: a table is constant; calls on different outputs may run beside each other. */
#ifndef LIGHTER_DEVICE_CPU_KERNELS_H
#define LIGHTER_DEVICE_CPU_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "device/op.h"
#include "tensor/dtype.h"
#include "tensor/layout.h"
#include "tensor/quant.h"

#define CPU_LANES 8
#define CPU_STRIP_ROWS_MAX 128 /* of x in one strip */
#define CPU_STRIP_SCRATCH_BYTES (2 << 20)
#define CPU_PACK_ROWS 16
#define CPU_K_BLOCK 2048 /* AVX-512's products with plain weights add up so many k at a time */
#define CPU_ATTENTION_KEYS 64 /* positions that attention takes at a time */
#define CPU_ATTENTION_ELEMENTS_MAX /* of a key and its value that are widened */                   \
    (CPU_STRIP_SCRATCH_BYTES / sizeof(float) / CPU_ATTENTION_KEYS)
#define CPU_ATTENTION_NARROW_MAX 256 /* elements of a key that is widened while it is read */

/* 32 elements of x, quantised: element i is near scale * q[i]. */
struct cpu_quant_block {
    float scale;        /* largest magnitude / 127; NaN, with q all 0, when one is not finite */
    float scaled_sum;   /* scale * (sum of q) */
    int16_t sums[2];    /* of q[0..15] and q[16..31] */
    int8_t q[32];       /* nearest to element / scale, ties to even; -127 to 127 */
};

/* A part of a matrix product: out[r][n] = sum over k of x[r][k] * weight[n][k]. */
struct cpu_strip {
    float *out;
    const float *const *x_rows; /* [row_count], each with k_count elements; and for quantised */
    const struct cpu_quant_block *const *x_blocks; /* weights these, each of k_count / 32 blocks */
    const void *x_packed;       /* for plain weights: the rows packed, or NULL */
    const void *weight;         /* rows weight_row_stride elements apart, unless ... */
    const float *const *weight_rows; /* ... not NULL: [n_count], F32, each anywhere */
    const float *bias;          /* [n_count] or NULL */
    enum dtype weight_dtype;
    enum layout weight_layout;  /* ND, or ROWS_16 where the table takes it */
    uint32_t row_count;         /* at most CPU_STRIP_ROWS_MAX */
    uint32_t n_count, k_count;
    uint64_t out_row_stride, weight_row_stride; /* in elements */
    bool accumulate;            /* add to what out holds */
};

/* op.h's constants of the gates. */
#define CPU_GELU_SCALE 0.7978845608028654f /* sqrt(2 / pi) */
#define CPU_GELU_CUBE 0.044715f
#define CPU_CLAMP 7.0f
#define CPU_CLAMPED_ALPHA 1.702f

struct cpu_kernels {
    const char *id;   /* "scalar", "avx2": in --cpu-kernels */
    const char *name; /* "scalar", "AVX2": for people */
    /* For F32, F16 and BF16 weights. scratch: CPU_STRIP_SCRATCH_BYTES, 64-byte aligned, the
     * thread's own; not touched for F32. */
    void (*matmul)(const struct cpu_strip *strip, void *scratch);
    uint32_t k_block; /* of x's rows that it goes over weights with at a time; 0: all */
    /* What `matmul` would else do in each call: packs up to CPU_PACK_ROWS rows of x. packed_bytes
     * is what that many rows take, a multiple of 64, at which the next ones follow; 0, or NULL: x
     * is taken as it is. alone: the rows are all that the strip has. */
    uint64_t (*packed_bytes)(enum dtype weight_dtype, uint32_t k_count);
    void (*pack)(void *packed, const float *const *x_rows, uint32_t row_count, uint32_t k_count,
                 bool alone);
    /* For quantised weights that have runs, and for the others. */
    void (*matmul_quant)(const struct cpu_strip *strip, void *scratch);
    /* Which weights products take in ROWS_16, too: quantised ones that have runs, F16 and BF16.
     * n_count is of whole granules then. */
    bool woven_quant, woven_half;
    void (*matmul_f8)(const struct cpu_strip *strip, void *scratch);
    /* x as blocks, whole ones. Blocks below 2^-100 everywhere become 0. */
    void (*quantise)(struct cpu_quant_block *blocks, const float *x, uint32_t count);
    /* One group of a row, as the op says but for where it lies. */
    void (*rms_norm)(float *out, const float *x, const struct op_rms_norm *op);
    /* out[i] = what op.h says of gate[i] and up[i]; out may be gate. */
    void (*gate_mul[GATE_COUNT])(float *out, const float *gate, const float *up, uint32_t width);
    /* x[i] = cap * tanh(x[i] / cap), to 2 ulp of cap. */
    void (*soft_cap)(float *x, uint32_t count, float cap);
    /* Queries as `score` takes them: cpu_padded_queries(query_count) rows of width, rounded up to a
     * multiple of 4; 64-byte aligned. Without them score_width_max is 0. */
    void (*pack_queries)(float *packed, const float *const *queries, uint32_t query_count,
                         uint32_t width);
    /* out[q * CPU_ATTENTION_KEYS + j] = queries[q] . keys[j], all of `width` elements; keys are of
     * the cache's dtype, at most CPU_ATTENTION_KEYS of them, of CPU_ATTENTION_NARROW_MAX elements
     * unless they are F32. ahead: as many such rows as there are keys, up to a multiple of 8, which
     * are asked for, or NULL. */
    void (*score)(float *out, const float *packed, uint32_t query_count, enum dtype dtype,
                  const void *const *keys, const void *const *ahead, uint32_t key_count,
                  uint32_t width);
    uint32_t score_width_max; /* wider keys are left to products of `matmul`, in F32 */
    /* Writes elements of F16, or whole blocks of Q8_0, as the F32 they are: the same in all
     * tables. */
    void (*widen)(float *out, enum dtype dtype, const void *from, uint32_t count);
    /* x[i] *= scale; returns the largest of them and `max`, leaving NaN out. */
    float (*scale_max)(float *x, uint32_t count, float scale, float max);
    /* out[i] = exp(x[i] - shift), to 2 ulp; out may be x. Returns the sum of what it wrote. */
    float (*exp_minus)(float *out, const float *x, uint32_t count, float shift);
    /* For i < width: out[q][i] += sum over j, ascending, of weights[q * CPU_ATTENTION_KEYS + j] *
     * rows[j][i]. Used, and there, where add_cached_rows is NULL. */
    void (*add_weighted_rows)(float *const *out, uint32_t out_count, const float *weights,
                              const float *const *rows, uint32_t row_count, uint32_t width);
    /* The same with rows of the cache's dtype, of at most CPU_ATTENTION_NARROW_MAX elements unless
     * they are F32; `ahead` as above. NULL: they are widened first. */
    void (*add_cached_rows)(float *const *out, uint32_t out_count, const float *weights,
                            enum dtype dtype, const void *const *rows, const void *const *ahead,
                            uint32_t row_count, uint32_t width);
};

/* Queries are packed in fours: one, two, or four of these at a time. */
static inline uint32_t cpu_padded_queries(uint32_t count)
{
    const uint32_t left = count % 16;

    return count - left + (left == 0 ? 0 : left <= 4 ? 4 : left <= 8 ? 8 : 16);
}

#define CPU_QUANT_BLOCK_ELEMENTS 32

static inline uint64_t cpu_quant_row_bytes(uint64_t count)
{
    return count / CPU_QUANT_BLOCK_ELEMENTS * sizeof(struct cpu_quant_block);
}

/* Whether products take x quantised. */
static inline bool cpu_is_quantised(enum dtype dtype)
{
    return quant_has_runs(dtype);
}

extern const struct cpu_kernels cpu_kernels_scalar;
#if defined(__x86_64__)
extern const struct cpu_kernels cpu_kernels_avx2;
extern const struct cpu_kernels cpu_kernels_vnni; /* AVX2's with AVX-VNNI for quantised weights */
extern const struct cpu_kernels cpu_kernels_avx512; /* ... with AVX-512 VNNI */
extern const struct cpu_kernels cpu_kernels_amx;    /* ... with AVX-512 VNNI and AMX */
extern const struct cpu_kernels cpu_kernels_bf16;   /* AVX-512's with products of BF16 */
#endif

#if defined(__aarch64__)
extern const struct cpu_kernels cpu_kernels_neon;
extern const struct cpu_kernels cpu_kernels_dotprod; /* NEON's with SDOT for quantised weights */
extern const struct cpu_kernels cpu_kernels_i8mm;    /* ... with SDOT and SMMLA */
#endif

#define CPU_KERNELS_MAX 5

/* The tables that this processor can run, the scalar one first and the fastest last. */
uint32_t cpu_kernels_list(const struct cpu_kernels *tables[CPU_KERNELS_MAX]);

/* The table of that id, or the fastest for NULL, of those that this processor can run; an unknown
 * one is STATUS_BAD_INPUT. */
enum status cpu_kernels_select(const char *id, const struct cpu_kernels **kernels_out,
                               struct err *err);

/* In which the table is fastest on this processor: ND, or ROWS_16 where it takes that. */
enum layout cpu_kernels_layout(const struct cpu_kernels *kernels, enum dtype weight_dtype);

/* The fastest that rounds x to BF16 for products with BF16 weights, or NULL: the processor has no
 * such products, or has AMX, whose tiles round nothing and are as fast. */
const struct cpu_kernels *cpu_kernels_select_bf16(void);

#endif
