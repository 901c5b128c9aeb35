/* device/cpu/attention_avx512.c - attention's tiles in AVX-512, and its softmax. */
#include "device/cpu/attention_tiles.h"

/* All ones in the first `count` lanes. */
static inline __mmask16 first_lanes(uint32_t count)
{
    return (__mmask16)((1u << count) - 1);
}

/* As exp_lanes in kernels_avx2.c; scaling by 2^n is one instruction here. */
static inline __m512 exp_lanes(__m512 x)
{
    const __m512 bounded =
        _mm512_min_ps(_mm512_set1_ps(100), _mm512_max_ps(_mm512_set1_ps(-110), x));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(bounded, _mm512_set1_ps(0x1.715476p0f)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.7f7d1cp-20f),
                                      _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e4p-1f), bounded));
    __m512 p = _mm512_set1_ps(1.0f / 5040);

    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1));
    return _mm512_scalef_ps(p, n);
}

/* Where a lane is NaN, max_ps returns its second operand: the largest so far. */
float cpu__scale_max_avx512(float *x, uint32_t count, float scale, float max)
{
    const uint32_t whole = count / LANES * LANES;
    const __m512 scales = _mm512_set1_ps(scale);
    __m512 maxima = _mm512_set1_ps(max);

    for (uint32_t i = 0; i < whole; i += LANES) {
        const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(x + i), scales);
        _mm512_storeu_ps(x + i, scaled);
        maxima = _mm512_max_ps(scaled, maxima);
    }
    if (whole < count) {
        const __mmask16 mask = first_lanes(count - whole);
        const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + whole), scales);
        _mm512_mask_storeu_ps(x + whole, mask, scaled);
        maxima = _mm512_mask_max_ps(maxima, mask, scaled, maxima);
    }
    return _mm512_reduce_max_ps(maxima);
}

float cpu__exp_minus_avx512(float *out, const float *x, uint32_t count, float shift)
{
    const uint32_t whole = count / LANES * LANES;
    const __m512 shifts = _mm512_set1_ps(shift);
    __m512 sum = _mm512_setzero_ps();

    for (uint32_t i = 0; i < whole; i += LANES) {
        const __m512 e = exp_lanes(_mm512_sub_ps(_mm512_loadu_ps(x + i), shifts));
        _mm512_storeu_ps(out + i, e);
        sum = _mm512_add_ps(sum, e);
    }
    if (whole < count) {
        const __mmask16 mask = first_lanes(count - whole);
        const __m512 e =
            exp_lanes(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + whole), shifts));
        _mm512_mask_storeu_ps(out + whole, mask, e);
        sum = _mm512_mask_add_ps(sum, mask, sum, e);
    }
    return sum_lanes(_mm256_add_ps(
        _mm512_castps512_ps256(sum),
        _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(sum), 1))));
}
