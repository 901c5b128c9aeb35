/* tensor/dtype_test.c - conversions between floating types, against arithmetic on doubles.
 *
 * Method: every F16 and BF16 is widened and compared with what its fields mean; an F32 is narrowed
 * and compared with the nearest of its two neighbours. The bits tried are all exponents and, in
 * each, the mantissas around every place where rounding changes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "tensor/dtype.h"

static float float_of(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

static uint32_t bits_of(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

/* What 16 bits with this many of exponent mean (IEEE 754-2019, 3.4). */
static double meaning(uint16_t bits, int exponent_bits)
{
    const int mantissa_bits = 15 - exponent_bits;
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = (bits & 0x7FFF) >> mantissa_bits;
    const int mantissa = bits & ((1 << mantissa_bits) - 1);
    const double sign = bits & 0x8000 ? -1 : 1;

    if (exponent == (1 << exponent_bits) - 1)
        return mantissa == 0 ? sign * INFINITY : NAN;
    if (exponent == 0)
        return sign * ldexp(mantissa, 1 - bias - mantissa_bits);
    return sign * ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

static void widening_is_exact(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        const double f16 = meaning((uint16_t)bits, 5);
        const double bf16 = meaning((uint16_t)bits, 8);
        if (isnan(f16))
            assert_true(isnan(f16_to_f32((uint16_t)bits)));
        else
            assert_int_equal(bits_of(f16_to_f32((uint16_t)bits)), bits_of((float)f16));
        if (isnan(bf16))
            assert_true(isnan(bf16_to_f32((uint16_t)bits)));
        else
            assert_int_equal(bits_of(bf16_to_f32((uint16_t)bits)), bits_of((float)bf16));
    }
}

/* `got` must be the 16 bits nearest to value, the even ones of two that are as near; beyond the
 * largest, infinity stands for the next power of two. */
static void check_nearest(float value, uint16_t got, int exponent_bits)
{
    const uint16_t infinity = (uint16_t)(0x7FFF & ~((1 << (15 - exponent_bits)) - 1));
    const uint16_t magnitude = got & 0x7FFF;
    double distance, below, above;

    if (isnan(value)) {
        assert_true(magnitude > infinity);
        return;
    }
    assert_true(magnitude <= infinity);
    assert_int_equal(got >> 15, signbit(value) != 0);
    if (isinf(value)) {
        assert_int_equal(magnitude, infinity);
        return;
    }
    value = fabsf(value);
    below = magnitude == 0 ? -1 : meaning(magnitude - 1, exponent_bits);
    above = magnitude == infinity ? INFINITY : meaning(magnitude + 1, exponent_bits);
    if (magnitude + 1 == infinity)
        above = ldexp(1, 1 << (exponent_bits - 1));
    distance = magnitude == infinity ? (double)value - ldexp(1, 1 << (exponent_bits - 1))
                                     : (double)value - meaning(magnitude, exponent_bits);
    if (magnitude == infinity && distance >= 0)
        return;
    distance = fabs(distance);
    if ((magnitude & 1) == 0) {
        assert_true(distance <= value - below || magnitude == 0);
        assert_true(distance <= above - value);
    } else {
        assert_true(distance < value - below);
        assert_true(distance < above - value);
    }
}

static void narrowing_rounds_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t exponent = 0; exponent < 256; exponent++)
        for (uint32_t place = 0; place < 23; place++)
            for (int32_t step = -2; step <= 2; step++)
                for (uint32_t more = 0; more < 4; more++) {
                    const uint32_t mantissa =
                        ((UINT32_C(1) << place) * (1 + more) + (uint32_t)step) & 0x7FFFFF;
                    const uint32_t bits = exponent << 23 | mantissa;
                    check_nearest(float_of(bits), f32_to_f16(float_of(bits)), 5);
                    check_nearest(float_of(bits), f32_to_bf16(float_of(bits)), 8);
                    check_nearest(float_of(bits | 0x80000000),
                                  f32_to_f16(float_of(bits | 0x80000000)), 5);
                    check_nearest(float_of(bits | 0x80000000),
                                  f32_to_bf16(float_of(bits | 0x80000000)), 8);
                }
}

static float widened(const void *src, enum dtype dtype, size_t i)
{
    if (dtype == DTYPE_F32)
        return ((const float *)src)[i];
    return dtype == DTYPE_F16 ? f16_to_f32(((const uint16_t *)src)[i])
                              : bf16_to_f32(((const uint16_t *)src)[i]);
}

/* Runs of every length up to some vectors, and nothing written past the end. */
static void runs_convert_like_single_elements(void **state)
{
    static const enum dtype dtypes[] = { DTYPE_F32, DTYPE_F16, DTYPE_BF16 };
    uint32_t src[70], dst[70];

    (void)state;
    for (size_t i = 0; i < 70; i++)
        src[i] = (uint32_t)(i * 0x9E3779B1u);
    for (size_t pair = 0; pair < 9; pair++)
        for (size_t count = 0; count < 66; count++) {
            const enum dtype from = dtypes[pair / 3];
            const enum dtype to = dtypes[pair % 3];
            memset(dst, 0xA5, sizeof(dst));
            dtype_convert(dst, to, src, from, count);
            for (size_t i = 0; i < count; i++) {
                const float value = widened(src, from, i);
                if (to == from)
                    continue;
                if (to == DTYPE_F32)
                    assert_int_equal(dst[i], bits_of(value));
                else
                    assert_int_equal(((uint16_t *)dst)[i],
                                     to == DTYPE_F16 ? f32_to_f16(value) : f32_to_bf16(value));
            }
            if (to == from)
                assert_memory_equal(dst, src, count * dtype_info(to)->block_bytes);
            for (size_t i = count * dtype_info(to)->block_bytes; i < sizeof(dst); i++)
                assert_int_equal(((uint8_t *)dst)[i], 0xA5);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(widening_is_exact),
        cmocka_unit_test(narrowing_rounds_to_nearest_even),
        cmocka_unit_test(runs_convert_like_single_elements),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
