/* device/cpu/kernels_scalar.c - the reference: kernels.h in plain C, for any processor. */
#include <math.h>

#include "device/cpu/kernels.h"
#include "device/cpu/quant.h"

static float weight_at(const struct cpu_strip *strip, uint64_t index)
{
    switch (strip->weight_dtype) {
    case DTYPE_F16: return f16_to_f32(((const uint16_t *)strip->weight)[index]);
    case DTYPE_BF16: return bf16_to_f32(((const uint16_t *)strip->weight)[index]);
    default: return ((const float *)strip->weight)[index];
    }
}

/* The eight lanes of kernels.h, added up. */
static float lanes_sum(const float lanes[CPU_LANES])
{
    return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
           ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

static float dot(const float *x, const float *w, uint32_t count)
{
    float lanes[CPU_LANES] = { 0 };
    uint32_t i = 0;

    for (; i + CPU_LANES <= count; i += CPU_LANES) {
        for (uint32_t l = 0; l < CPU_LANES; l++)
            lanes[l] += x[i + l] * w[i + l];
    }
    for (uint32_t l = 0; i + l < count; l++)
        lanes[l] += x[i + l] * w[i + l];
    return lanes_sum(lanes);
}

/* Weights are turned into F32 a run of k at a time; the lanes go on from run to run. */
static float dot_converting(const struct cpu_strip *strip, const float *x, uint32_t n)
{
    const uint64_t start = n * strip->weight_row_stride;
    float lanes[CPU_LANES] = { 0 };

    for (uint32_t k = 0; k < strip->k_count; k++)
        lanes[k % CPU_LANES] += x[k] * weight_at(strip, start + k);
    return lanes_sum(lanes);
}

static void scalar_matmul(const struct cpu_strip *strip, void *scratch)
{
    (void)scratch;
    for (uint32_t n = 0; n < strip->n_count; n++) {
        for (uint32_t r = 0; r < strip->row_count; r++) {
            float *out = &strip->out[r * strip->out_row_stride + n];
            float sum;
            if (strip->weight_rows != NULL)
                sum = dot(strip->x_rows[r], strip->weight_rows[n], strip->k_count);
            else if (strip->weight_dtype == DTYPE_F32)
                sum = dot(strip->x_rows[r],
                          (const float *)strip->weight + n * strip->weight_row_stride,
                          strip->k_count);
            else
                sum = dot_converting(strip, strip->x_rows[r], n);
            if (strip->bias != NULL)
                sum += strip->bias[n];
            *out = strip->accumulate ? *out + sum : sum;
        }
    }
}

static void scalar_rms_norm(float *out, const float *x, const struct op_rms_norm *op)
{
    const float mean = dot(x, x, op->width) / (float)op->width;
    const float scale = 1.0f / sqrtf(mean + op->epsilon);
    const float offset = op->weight_offset == 0 ? -0.0f : op->weight_offset; /* -0 adds nothing */

    for (uint32_t i = 0; i < op->width; i++)
        out[i] = x[i] * scale * (op->weight[i] + offset);
}

static void scalar_silu_mul(float *out, const float *gate, const float *up, uint32_t width)
{
    for (uint32_t i = 0; i < width; i++)
        out[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

/* 0.5 (1 + tanh(a)) is 1 / (1 + exp(-2 a)). */
static void scalar_gelu_mul(float *out, const float *gate, const float *up, uint32_t width)
{
    for (uint32_t i = 0; i < width; i++) {
        const float g = gate[i];
        const float a = CPU_GELU_SCALE * (g + CPU_GELU_CUBE * g * g * g);
        out[i] = g / (1.0f + expf(-2.0f * a)) * up[i];
    }
}

static void scalar_clamped_mul(float *out, const float *gate, const float *up, uint32_t width)
{
    for (uint32_t i = 0; i < width; i++) {
        const float g = gate[i] > CPU_CLAMP ? CPU_CLAMP : gate[i];
        const float u = up[i] > CPU_CLAMP ? CPU_CLAMP : up[i] < -CPU_CLAMP ? -CPU_CLAMP : up[i];
        out[i] = g / (1.0f + expf(-CPU_CLAMPED_ALPHA * g)) * (u + 1.0f);
    }
}

static void scalar_soft_cap(float *x, uint32_t count, float cap)
{
    for (uint32_t i = 0; i < count; i++)
        x[i] = cap * tanhf(x[i] / cap);
}

static void scalar_widen(float *out, enum dtype dtype, const void *from, uint32_t count)
{
    dtype_convert(out, DTYPE_F32, from, dtype, count);
}

static float scalar_scale_max(float *x, uint32_t count, float scale, float max)
{
    for (uint32_t i = 0; i < count; i++) {
        x[i] *= scale;
        max = x[i] > max ? x[i] : max;
    }
    return max;
}

static float scalar_exp_minus(float *out, const float *x, uint32_t count, float shift)
{
    float sum = 0;

    for (uint32_t i = 0; i < count; i++) {
        out[i] = expf(x[i] - shift);
        sum += out[i];
    }
    return sum;
}

static void scalar_add_weighted_rows(float *const *out, uint32_t out_count, const float *weights,
                                     const float *const *rows, uint32_t row_count,
                                     uint32_t width)
{
    for (uint32_t q = 0; q < out_count; q++) {
        for (uint32_t j = 0; j < row_count; j++) {
            const float weight = weights[q * CPU_ATTENTION_KEYS + j];
            for (uint32_t i = 0; i < width; i++)
                out[q][i] += weight * rows[j][i];
        }
    }
}

const struct cpu_kernels cpu_kernels_scalar = {
    .id = "scalar",
    .name = "scalar",
    .matmul = scalar_matmul,
    .matmul_quant = cpu__matmul_quant_scalar,
    .matmul_f8 = cpu__matmul_f8_scalar,
    .quantise = cpu__quantise_scalar,
    .rms_norm = scalar_rms_norm,
    .gate_mul = { scalar_silu_mul, scalar_gelu_mul, scalar_clamped_mul },
    .soft_cap = scalar_soft_cap,
    .widen = scalar_widen,
    .scale_max = scalar_scale_max,
    .exp_minus = scalar_exp_minus,
    .add_weighted_rows = scalar_add_weighted_rows,
};
