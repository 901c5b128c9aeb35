/* device/cpu/kernels_neon.c - kernels.h for arm64, whose processors all have NEON with FMA and
 * conversions from F16, but for the matrix products, which are in matmul_neon.c and quant_*.c.
 *
 * A tail of fewer than four elements goes through the same instructions as a full vector, with the
 * missing lanes zero, so that an element's result does not depend on how far from the end it
 * stands. */
#include <math.h>

#include "device/cpu/neon.h"
#include "device/cpu/quant.h"

#define LANES 4

/* As in kernels_avx2.c: 2^n times the Taylor polynomial of the rest. NaN stays: min and max give it
 * when one operand is. */
static inline float32x4_t exp_lanes(float32x4_t x)
{
    const float32x4_t ln2_high = vdupq_n_f32(0x1.62e4p-1f); /* few bits: n * ln2_high is exact */
    const float32x4_t ln2_low = vdupq_n_f32(0x1.7f7d1cp-20f);
    const float32x4_t bounded = vminq_f32(vdupq_n_f32(100), vmaxq_f32(vdupq_n_f32(-110), x));
    const float32x4_t n = vrndnq_f32(vmulq_f32(bounded, vdupq_n_f32(0x1.715476p0f)));
    const float32x4_t r = vfmsq_f32(vfmsq_f32(bounded, n, ln2_high), n, ln2_low);
    const int32x4_t whole = vcvtnq_s32_f32(n), half = vshrq_n_s32(whole, 1);
    const int32x4_t rest = vsubq_s32(whole, half), bias = vdupq_n_s32(127);
    float32x4_t p = vdupq_n_f32(1.0f / 5040);

    p = vfmaq_f32(vdupq_n_f32(1.0f / 720), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 120), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 24), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 6), p, r);
    p = vfmaq_f32(vdupq_n_f32(0.5f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1), p, r);
    p = vfmaq_f32(vdupq_n_f32(1), p, r);
    p = vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23)));
    return vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, bias), 23)));
}

static void neon_rms_norm(float *out, const float *x, const struct op_rms_norm *op)
{
    const float *weight = op->weight;
    const uint32_t width = op->width, whole = width / CPU_LANES * CPU_LANES;
    const uint32_t tail = width - whole;
    /* -0 adds nothing */
    const float32x4_t offset = vdupq_n_f32(op->weight_offset == 0 ? -0.0f : op->weight_offset);
    float32x4_t squares[2] = { vdupq_n_f32(0), vdupq_n_f32(0) }, scale;

    for (uint32_t i = 0; i < whole; i += LANES) {
        const float32x4_t v = vld1q_f32(x + i);
        squares[i / LANES % 2] = vfmaq_f32(squares[i / LANES % 2], v, v);
    }
    for (uint32_t h = 0; h * LANES < tail; h++) {
        const uint32_t left = tail - h * LANES;
        const float32x4_t v = load_few(x + whole + h * LANES, left < LANES ? left : LANES);
        squares[h] = vfmaq_f32(squares[h], v, v);
    }
    scale = vdupq_n_f32(1.0f / sqrtf(sum_lanes(squares[0], squares[1]) / (float)width +
                                     op->epsilon));
    for (uint32_t i = 0; i < width; i += LANES) {
        const uint32_t left = width - i < LANES ? width - i : LANES;
        const bool all = left == LANES;
        const float32x4_t w = all ? vld1q_f32(weight + i) : load_few(weight + i, left);
        const float32x4_t v = all ? vld1q_f32(x + i) : load_few(x + i, left);
        const float32x4_t result = vmulq_f32(vmulq_f32(v, scale), vaddq_f32(w, offset));
        if (all)
            vst1q_f32(out + i, result);
        else
            store_few(out + i, result, left);
    }
}

/* ---- gates ---- */

static inline float32x4_t silu_mul_lanes(float32x4_t gate, float32x4_t up)
{
    const float32x4_t e = exp_lanes(vnegq_f32(gate));

    return vmulq_f32(vdivq_f32(gate, vaddq_f32(vdupq_n_f32(1), e)), up);
}

/* 0.5 (1 + tanh(a)) is 1 / (1 + exp(-2 a)). */
static inline float32x4_t gelu_mul_lanes(float32x4_t gate, float32x4_t up)
{
    const float32x4_t cube = vmulq_f32(vmulq_f32(gate, gate), gate);
    const float32x4_t a = vmulq_f32(vdupq_n_f32(CPU_GELU_SCALE),
                                    vfmaq_f32(gate, vdupq_n_f32(CPU_GELU_CUBE), cube));
    const float32x4_t e = exp_lanes(vmulq_f32(vdupq_n_f32(-2), a));

    return vmulq_f32(vdivq_f32(gate, vaddq_f32(vdupq_n_f32(1), e)), up);
}

static inline float32x4_t clamped_mul_lanes(float32x4_t gate, float32x4_t up)
{
    const float32x4_t one = vdupq_n_f32(1), most = vdupq_n_f32(CPU_CLAMP);
    const float32x4_t g = vminq_f32(most, gate);
    const float32x4_t u = vmaxq_f32(vdupq_n_f32(-CPU_CLAMP), vminq_f32(most, up));
    const float32x4_t e = exp_lanes(vmulq_f32(vdupq_n_f32(-CPU_CLAMPED_ALPHA), g));

    return vmulq_f32(vdivq_f32(g, vaddq_f32(one, e)), vaddq_f32(u, one));
}

INLINE void gate_mul(float32x4_t (*lanes)(float32x4_t, float32x4_t), float *out, const float *gate,
                     const float *up, uint32_t width)
{
    const uint32_t whole = width / LANES * LANES, tail = width - whole;

    for (uint32_t i = 0; i < whole; i += LANES)
        vst1q_f32(out + i, lanes(vld1q_f32(gate + i), vld1q_f32(up + i)));
    if (tail > 0)
        store_few(out + whole, lanes(load_few(gate + whole, tail), load_few(up + whole, tail)),
                  tail);
}

static void neon_silu_mul(float *out, const float *gate, const float *up, uint32_t width)
{
    gate_mul(silu_mul_lanes, out, gate, up, width);
}

static void neon_gelu_mul(float *out, const float *gate, const float *up, uint32_t width)
{
    gate_mul(gelu_mul_lanes, out, gate, up, width);
}

static void neon_clamped_mul(float *out, const float *gate, const float *up, uint32_t width)
{
    gate_mul(clamped_mul_lanes, out, gate, up, width);
}

/* ---- attention ---- */

/* As in kernels_avx2.c: (1 - t) / (1 + t), and near 0 Taylor's polynomial. */
static inline float32x4_t tanh_lanes(float32x4_t a)
{
    const float32x4_t one = vdupq_n_f32(1), size = vabsq_f32(a), square = vmulq_f32(a, a);
    const float32x4_t t = exp_lanes(vmulq_f32(vdupq_n_f32(-2), size));
    const uint32x4_t sign =
        vandq_u32(vreinterpretq_u32_f32(a), vreinterpretq_u32_f32(vdupq_n_f32(-0.0f)));
    const float32x4_t quotient = vdivq_f32(vsubq_f32(one, t), vaddq_f32(one, t));
    const float32x4_t far =
        vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(quotient), sign));
    float32x4_t p = vdupq_n_f32(-17.0f / 315);

    p = vfmaq_f32(vdupq_n_f32(2.0f / 15), p, square);
    p = vfmaq_f32(vdupq_n_f32(-1.0f / 3), p, square);
    p = vfmaq_f32(a, vmulq_f32(p, square), a);
    return vbslq_f32(vcltq_f32(size, vdupq_n_f32(0.15f)), p, far);
}

static void neon_soft_cap(float *x, uint32_t count, float cap)
{
    const float32x4_t caps = vdupq_n_f32(cap);
    const uint32_t whole = count / LANES * LANES, tail = count - whole;

    for (uint32_t i = 0; i < whole; i += LANES)
        vst1q_f32(x + i, vmulq_f32(caps, tanh_lanes(vdivq_f32(vld1q_f32(x + i), caps))));
    if (tail > 0)
        store_few(x + whole,
                  vmulq_f32(caps, tanh_lanes(vdivq_f32(load_few(x + whole, tail), caps))), tail);
}

/* maxnm takes the number where one operand is NaN. */
static float neon_scale_max(float *x, uint32_t count, float scale, float max)
{
    const uint32_t whole = count / LANES * LANES;
    float32x4_t maxima = vdupq_n_f32(max);
    float lanes[LANES];

    for (uint32_t i = 0; i < whole; i += LANES) {
        const float32x4_t scaled = vmulq_n_f32(vld1q_f32(x + i), scale);
        vst1q_f32(x + i, scaled);
        maxima = vmaxnmq_f32(maxima, scaled);
    }
    vst1q_f32(lanes, maxima);
    for (uint32_t i = 0; i < LANES; i++)
        max = lanes[i] > max ? lanes[i] : max;
    for (uint32_t i = whole; i < count; i++) {
        x[i] *= scale;
        max = x[i] > max ? x[i] : max;
    }
    return max;
}

static float neon_exp_minus(float *out, const float *x, uint32_t count, float shift)
{
    const float32x4_t shifts = vdupq_n_f32(shift);
    const uint32_t whole = count / LANES * LANES, tail = count - whole;
    float32x4_t sums[2] = { vdupq_n_f32(0), vdupq_n_f32(0) };

    for (uint32_t i = 0; i < whole; i += LANES) {
        const float32x4_t e = exp_lanes(vsubq_f32(vld1q_f32(x + i), shifts));
        vst1q_f32(out + i, e);
        sums[i / LANES % 2] = vaddq_f32(sums[i / LANES % 2], e);
    }
    if (tail > 0) {
        store_few(out + whole, exp_lanes(vsubq_f32(load_few(x + whole, tail), shifts)), tail);
        sums[whole / LANES % 2] =
            vaddq_f32(sums[whole / LANES % 2], load_few(out + whole, tail));
    }
    return sum_lanes(sums[0], sums[1]);
}

/* OUT_COUNT outputs by VECTORS vectors: each output element is one chain of FMAs over j, whatever
 * the tile that holds it. */
#define TILE_OUTPUTS 4
#define TILE_VECTORS 4

INLINE void weighted_tile(float *const *out, const uint32_t out_count, uint32_t at,
                          const uint32_t vectors, const float *weights,
                          const float *const *rows, uint32_t row_count)
{
    float32x4_t sums[TILE_OUTPUTS][TILE_VECTORS];

#pragma GCC unroll 4
    for (uint32_t q = 0; q < out_count; q++) {
#pragma GCC unroll 4
        for (uint32_t v = 0; v < vectors; v++)
            sums[q][v] = vld1q_f32(out[q] + at + v * LANES);
    }
    for (uint32_t j = 0; j < row_count; j++) {
        const float *row = rows[j] + at;
        float32x4_t values[TILE_VECTORS];
#pragma GCC unroll 4
        for (uint32_t v = 0; v < vectors; v++)
            values[v] = vld1q_f32(row + v * LANES);
#pragma GCC unroll 4
        for (uint32_t q = 0; q < out_count; q++) {
            const float weight = weights[q * CPU_ATTENTION_KEYS + j];
#pragma GCC unroll 4
            for (uint32_t v = 0; v < vectors; v++)
                sums[q][v] = vfmaq_n_f32(sums[q][v], values[v], weight);
        }
    }
#pragma GCC unroll 4
    for (uint32_t q = 0; q < out_count; q++) {
#pragma GCC unroll 4
        for (uint32_t v = 0; v < vectors; v++)
            vst1q_f32(out[q] + at + v * LANES, sums[q][v]);
    }
}

static void weighted_tail(float *out, uint32_t at, uint32_t width, const float *weights,
                          const float *const *rows, uint32_t row_count)
{
    for (; at < width; at++) {
        float sum = out[at];
        for (uint32_t j = 0; j < row_count; j++)
            sum = fmaf(weights[j], rows[j][at], sum);
        out[at] = sum;
    }
}

INLINE void weighted_outputs(float *const *out, const uint32_t out_count, const float *weights,
                             const float *const *rows, uint32_t row_count, uint32_t width)
{
    uint32_t at = 0;

    for (; at + TILE_VECTORS * LANES <= width; at += TILE_VECTORS * LANES)
        weighted_tile(out, out_count, at, TILE_VECTORS, weights, rows, row_count);
    for (; at + LANES <= width; at += LANES)
        weighted_tile(out, out_count, at, 1, weights, rows, row_count);
    for (uint32_t q = 0; q < out_count; q++)
        weighted_tail(out[q], at, width, weights + q * CPU_ATTENTION_KEYS, rows, row_count);
}

static void neon_add_weighted_rows(float *const *out, uint32_t out_count, const float *weights,
                                   const float *const *rows, uint32_t row_count, uint32_t width)
{
    uint32_t q = 0;

    for (; q + TILE_OUTPUTS <= out_count; q += TILE_OUTPUTS)
        weighted_outputs(out + q, TILE_OUTPUTS, weights + q * CPU_ATTENTION_KEYS, rows, row_count,
                         width);
    for (; q < out_count; q++)
        weighted_outputs(out + q, 1, weights + q * CPU_ATTENTION_KEYS, rows, row_count, width);
}

static void widen_f16(float *out, const uint16_t *from, uint32_t count)
{
    uint32_t i = 0;

    for (; i + LANES <= count; i += LANES)
        vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + i))));
    for (; i < count; i++)
        out[i] = f16_to_f32(from[i]);
}

static void widen_q8_0(float *out, const uint8_t *block, uint32_t count)
{
    for (uint32_t i = 0; i < count; i += QUANT_RUN_ELEMENTS, block += QUANT_Q8_0_BYTES) {
        const float scale = f16_to_f32((uint16_t)(block[0] | block[1] << 8));
        for (uint32_t e = 0; e < QUANT_RUN_ELEMENTS; e += 2 * LANES) {
            const int16x8_t q = vmovl_s8(vld1_s8((const int8_t *)block + 2 + e));
            const int32x4_t low = vmovl_s16(vget_low_s16(q)), high = vmovl_s16(vget_high_s16(q));
            vst1q_f32(out + i + e, vmulq_n_f32(vcvtq_f32_s32(low), scale));
            vst1q_f32(out + i + e + LANES, vmulq_n_f32(vcvtq_f32_s32(high), scale));
        }
    }
}

static void neon_widen(float *out, enum dtype dtype, const void *from, uint32_t count)
{
    if (dtype == DTYPE_F16)
        widen_f16(out, from, count);
    else
        widen_q8_0(out, from, count);
}

#define TABLE(kernels_id, kernels_name, quant_kernel)                                              \
    {                                                                                              \
        .id = (kernels_id),                                                                        \
        .name = (kernels_name),                                                                    \
        .matmul = cpu__matmul_neon,                                                                \
        .matmul_quant = (quant_kernel),                                                            \
        .matmul_f8 = cpu__matmul_f8_scalar,                                                        \
        .quantise = cpu__quantise_neon,                                                            \
        .rms_norm = neon_rms_norm,                                                                 \
        .gate_mul = { neon_silu_mul, neon_gelu_mul, neon_clamped_mul },                            \
        .soft_cap = neon_soft_cap,                                                                 \
        .widen = neon_widen,                                                                       \
        .scale_max = neon_scale_max,                                                               \
        .exp_minus = neon_exp_minus,                                                               \
        .add_weighted_rows = neon_add_weighted_rows,                                               \
    }

const struct cpu_kernels cpu_kernels_neon = TABLE("neon", "NEON", cpu__matmul_quant_neon);
const struct cpu_kernels cpu_kernels_dotprod =
    TABLE("dotprod", "NEON with dot products", cpu__matmul_quant_dotprod);
const struct cpu_kernels cpu_kernels_i8mm =
    TABLE("i8mm", "NEON with matrix products", cpu__matmul_quant_i8mm);
