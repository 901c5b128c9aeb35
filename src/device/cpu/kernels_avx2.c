/* device/cpu/kernels_avx2.c - kernels.h for x86-64 with AVX2, FMA and F16C, but for the matrix
 * products, which are in matmul_avx2.c and quant_*.c, and attention's, in attention_avx2.c.
 *
 * A tail of fewer than eight elements goes through the same instructions as a full vector, with the
 * missing lanes zero, so that an element's result does not depend on how far from the end it
 * stands. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "device/cpu/avx2.h"
#include "device/cpu/kernels.h"

/* exp to about 1 ulp: x = n ln 2 + r, |r| <= ln 2 / 2, the Taylor polynomial of degree 7 in r (its
 * remainder r^8 / 8! is below 0.1 ulp), times 2^n in two steps so that subnormal results come out
 * too. ln 2 in two parts: Cody and Waite 1980. NaN stays NaN; max and min return their second
 * operand then. */
static inline __m256 exp_lanes(__m256 x)
{
    const __m256 log2_e = _mm256_set1_ps(0x1.715476p0f);
    const __m256 ln2_high = _mm256_set1_ps(0x1.62e4p-1f); /* few bits: n * ln2_high is exact */
    const __m256 ln2_low = _mm256_set1_ps(0x1.7f7d1cp-20f);
    const __m256 bounded =
        _mm256_min_ps(_mm256_set1_ps(100), _mm256_max_ps(_mm256_set1_ps(-110), x));
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(bounded, log2_e),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256 r = _mm256_fnmadd_ps(n, ln2_low, _mm256_fnmadd_ps(n, ln2_high, bounded));
    const __m256i whole = _mm256_cvtps_epi32(n);
    const __m256i half = _mm256_srai_epi32(whole, 1);
    const __m256i rest = _mm256_sub_epi32(whole, half);
    const __m256i bias = _mm256_set1_epi32(127);
    __m256 p = _mm256_set1_ps(1.0f / 5040);

    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1));
    p = _mm256_mul_ps(
        p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
    return _mm256_mul_ps(
        p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}

static void avx2_rms_norm(float *out, const float *x, const struct op_rms_norm *op)
{
    const float *weight = op->weight;
    const uint32_t width = op->width, whole = width / CPU_LANES * CPU_LANES;
    const __m256i mask = lane_mask(width - whole);
    /* -0 adds nothing */
    const __m256 offset = _mm256_set1_ps(op->weight_offset == 0 ? -0.0f : op->weight_offset);
    const __m256i all = _mm256_set1_epi32(-1);
    __m256 squares = _mm256_setzero_ps();
    __m256 scale;

    for (uint32_t i = 0; i < whole; i += CPU_LANES) {
        const __m256 v = _mm256_loadu_ps(x + i);
        squares = _mm256_fmadd_ps(v, v, squares);
    }
    if (whole < width) {
        const __m256 v = _mm256_maskload_ps(x + whole, mask);
        squares = _mm256_fmadd_ps(v, v, squares);
    }
    scale = _mm256_set1_ps(1.0f / sqrtf(sum_lanes(squares) / (float)width + op->epsilon));
    for (uint32_t i = 0; i < width; i += CPU_LANES) {
        const __m256i lanes = i < whole ? all : mask;
        const __m256 factor = _mm256_add_ps(_mm256_maskload_ps(weight + i, lanes), offset);
        const __m256 scaled = _mm256_mul_ps(_mm256_maskload_ps(x + i, lanes), scale);
        _mm256_maskstore_ps(out + i, lanes, _mm256_mul_ps(scaled, factor));
    }
}

static inline __m256 silu_mul_lanes(__m256 gate, __m256 up)
{
    const __m256 one = _mm256_set1_ps(1);
    const __m256 e = exp_lanes(_mm256_sub_ps(_mm256_setzero_ps(), gate));

    return _mm256_mul_ps(_mm256_div_ps(gate, _mm256_add_ps(one, e)), up);
}

/* 0.5 (1 + tanh(a)) is 1 / (1 + exp(-2 a)). */
static inline __m256 gelu_mul_lanes(__m256 gate, __m256 up)
{
    const __m256 one = _mm256_set1_ps(1);
    const __m256 cube = _mm256_mul_ps(_mm256_mul_ps(gate, gate), gate);
    const __m256 a = _mm256_mul_ps(_mm256_set1_ps(CPU_GELU_SCALE),
                                   _mm256_fmadd_ps(_mm256_set1_ps(CPU_GELU_CUBE), cube, gate));
    const __m256 e = exp_lanes(_mm256_mul_ps(_mm256_set1_ps(-2), a));

    return _mm256_mul_ps(_mm256_div_ps(gate, _mm256_add_ps(one, e)), up);
}

/* min and max keep a NaN as their second operand. */
static inline __m256 clamped_mul_lanes(__m256 gate, __m256 up)
{
    const __m256 one = _mm256_set1_ps(1), most = _mm256_set1_ps(CPU_CLAMP);
    const __m256 g = _mm256_min_ps(most, gate);
    const __m256 u = _mm256_max_ps(_mm256_set1_ps(-CPU_CLAMP), _mm256_min_ps(most, up));
    const __m256 e = exp_lanes(_mm256_mul_ps(_mm256_set1_ps(-CPU_CLAMPED_ALPHA), g));

    return _mm256_mul_ps(_mm256_div_ps(g, _mm256_add_ps(one, e)), _mm256_add_ps(u, one));
}

static inline __attribute__((always_inline)) void
gate_mul(__m256 (*lanes)(__m256, __m256), float *out, const float *gate, const float *up,
         uint32_t width)
{
    const uint32_t whole = width / CPU_LANES * CPU_LANES;
    const __m256i mask = lane_mask(width - whole);

    for (uint32_t i = 0; i < whole; i += CPU_LANES)
        _mm256_storeu_ps(out + i, lanes(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i)));
    if (whole < width)
        _mm256_maskstore_ps(out + whole, mask, lanes(_mm256_maskload_ps(gate + whole, mask),
                                                     _mm256_maskload_ps(up + whole, mask)));
}

static void avx2_silu_mul(float *out, const float *gate, const float *up, uint32_t width)
{
    gate_mul(silu_mul_lanes, out, gate, up, width);
}

static void avx2_gelu_mul(float *out, const float *gate, const float *up, uint32_t width)
{
    gate_mul(gelu_mul_lanes, out, gate, up, width);
}

static void avx2_clamped_mul(float *out, const float *gate, const float *up, uint32_t width)
{
    gate_mul(clamped_mul_lanes, out, gate, up, width);
}

/* (1 - t) / (1 + t) with t = exp(-2 |a|), and the sign of a; near 0, where 1 - t has few digits
 * left, Taylor's a - a^3 / 3 + 2 a^5 / 15 - 17 a^7 / 315, whose next term is below an ulp there. */
static inline __m256 tanh_lanes(__m256 a)
{
    const __m256 sign = _mm256_set1_ps(-0.0f), one = _mm256_set1_ps(1);
    const __m256 size = _mm256_andnot_ps(sign, a), square = _mm256_mul_ps(a, a);
    const __m256 t = exp_lanes(_mm256_mul_ps(_mm256_set1_ps(-2), size));
    const __m256 far = _mm256_or_ps(_mm256_div_ps(_mm256_sub_ps(one, t), _mm256_add_ps(one, t)),
                                    _mm256_and_ps(sign, a));
    __m256 p = _mm256_set1_ps(-17.0f / 315);

    p = _mm256_fmadd_ps(p, square, _mm256_set1_ps(2.0f / 15));
    p = _mm256_fmadd_ps(p, square, _mm256_set1_ps(-1.0f / 3));
    p = _mm256_fmadd_ps(_mm256_mul_ps(p, square), a, a);
    return _mm256_blendv_ps(far, p, _mm256_cmp_ps(size, _mm256_set1_ps(0.15f), _CMP_LT_OQ));
}

static void avx2_soft_cap(float *x, uint32_t count, float cap)
{
    const __m256 caps = _mm256_set1_ps(cap), all = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    const uint32_t whole = count / CPU_LANES * CPU_LANES;
    const __m256i mask = lane_mask(count - whole);

    for (uint32_t i = 0; i < count; i += CPU_LANES) {
        const __m256i lanes = i < whole ? _mm256_castps_si256(all) : mask;
        const __m256 a = _mm256_div_ps(_mm256_maskload_ps(x + i, lanes), caps);
        _mm256_maskstore_ps(x + i, lanes, _mm256_mul_ps(caps, tanh_lanes(a)));
    }
}

/* Where a lane is NaN, max_ps returns its second operand: the largest so far. */
static float avx2_scale_max(float *x, uint32_t count, float scale, float max)
{
    const uint32_t whole = count / CPU_LANES * CPU_LANES;
    const __m256 scales = _mm256_set1_ps(scale);
    __m256 maxima = _mm256_set1_ps(max);
    float lanes[CPU_LANES];

    for (uint32_t i = 0; i < whole; i += CPU_LANES) {
        const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x + i), scales);
        _mm256_storeu_ps(x + i, scaled);
        maxima = _mm256_max_ps(scaled, maxima);
    }
    _mm256_storeu_ps(lanes, maxima);
    for (uint32_t i = 0; i < CPU_LANES; i++)
        max = lanes[i] > max ? lanes[i] : max;
    for (uint32_t i = whole; i < count; i++) {
        x[i] *= scale;
        max = x[i] > max ? x[i] : max;
    }
    return max;
}

static float avx2_exp_minus(float *out, const float *x, uint32_t count, float shift)
{
    const uint32_t whole = count / CPU_LANES * CPU_LANES;
    const __m256i mask = lane_mask(count - whole);
    const __m256 shifts = _mm256_set1_ps(shift);
    __m256 sum = _mm256_setzero_ps();

    for (uint32_t i = 0; i < whole; i += CPU_LANES) {
        const __m256 e = exp_lanes(_mm256_sub_ps(_mm256_loadu_ps(x + i), shifts));
        _mm256_storeu_ps(out + i, e);
        sum = _mm256_add_ps(sum, e);
    }
    if (whole < count) {
        const __m256 e =
            exp_lanes(_mm256_sub_ps(_mm256_maskload_ps(x + whole, mask), shifts));
        _mm256_maskstore_ps(out + whole, mask, e);
        sum = _mm256_add_ps(sum, _mm256_and_ps(e, _mm256_castsi256_ps(mask)));
    }
    return sum_lanes(sum);
}

#define ATTENTION_AVX2                                                                             \
    .pack_queries = cpu__pack_queries_avx2, .score = cpu__score_avx2,                              \
    .score_width_max = CPU_ATTENTION_NARROW_MAX, .widen = cpu__widen_avx2,                         \
    .scale_max = avx2_scale_max, .exp_minus = avx2_exp_minus,                                      \
    .add_cached_rows = cpu__add_cached_rows_avx2
#define ATTENTION_AVX512                                                                           \
    .pack_queries = cpu__pack_queries_avx512, .score = cpu__score_avx512,                          \
    .score_width_max = UINT32_MAX, .widen = cpu__widen_avx512,                                     \
    .scale_max = cpu__scale_max_avx512, .exp_minus = cpu__exp_minus_avx512,                        \
    .add_cached_rows = cpu__add_cached_rows_avx512

#define TABLE(kernels_id, kernels_name, kernel, quant_kernel, f8_kernel, ...)                      \
    {                                                                                              \
        .id = (kernels_id),                                                                        \
        .name = (kernels_name),                                                                    \
        .matmul = (kernel),                                                                        \
        .matmul_quant = (quant_kernel),                                                            \
        .matmul_f8 = (f8_kernel),                                                                  \
        .quantise = cpu__quantise_avx2,                                                            \
        .rms_norm = avx2_rms_norm,                                                                 \
        .gate_mul = { avx2_silu_mul, avx2_gelu_mul, avx2_clamped_mul },                            \
        .soft_cap = avx2_soft_cap,                                                                 \
        __VA_ARGS__                                                                                \
    }

const struct cpu_kernels cpu_kernels_avx2 =
    TABLE("avx2", "AVX2", cpu__matmul_avx2, cpu__matmul_quant_avx2, cpu__matmul_f8_avx2,
          ATTENTION_AVX2);
const struct cpu_kernels cpu_kernels_vnni =
    TABLE("avx-vnni", "AVX2 with VNNI", cpu__matmul_avx2, cpu__matmul_quant_vnni,
          cpu__matmul_f8_avx2, ATTENTION_AVX2);
const struct cpu_kernels cpu_kernels_avx512 =
    TABLE("avx512", "AVX2 with AVX-512 VNNI", cpu__matmul_avx512, cpu__matmul_quant_avx512,
          cpu__matmul_f8_avx512, ATTENTION_AVX512, .k_block = CPU_K_BLOCK,
          .woven_quant = true);
const struct cpu_kernels cpu_kernels_bf16 =
    TABLE("avx512-bf16", "AVX2 with AVX-512 VNNI and BF16", cpu__matmul_bf16,
          cpu__matmul_quant_avx512, cpu__matmul_f8_avx512, ATTENTION_AVX512, .k_block = CPU_K_BLOCK,
          .packed_bytes = cpu__packed_bytes_bf16, .pack = cpu__pack_bf16,
          .woven_quant = true);
const struct cpu_kernels cpu_kernels_amx =
    TABLE("amx", "AVX2 with AVX-512 VNNI and AMX", cpu__matmul_amx, cpu__matmul_quant_amx,
          cpu__matmul_f8_avx512, ATTENTION_AVX512, .k_block = CPU_K_BLOCK,
          .packed_bytes = cpu__packed_bytes_amx, .pack = cpu__pack_amx,
          .woven_quant = true, .woven_half = true);
