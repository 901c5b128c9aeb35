/* tensor/dtype.c - see dtype.h. */
#include "tensor/dtype.h"

#include <assert.h>
#include <strings.h>

#include "base/size.h"
#include "tensor/quant.h"

static const struct dtype_info infos[DTYPE_COUNT] = {
    [DTYPE_F32] = { "F32", 1, 4 },
    [DTYPE_F16] = { "F16", 1, 2 },
    [DTYPE_BF16] = { "BF16", 1, 2 },
    [DTYPE_I32] = { "I32", 1, 4 },
    [DTYPE_Q8_0] = { "Q8_0", 32, QUANT_Q8_0_BYTES },
    [DTYPE_Q4_0] = { "Q4_0", 32, QUANT_Q4_0_BYTES },
    [DTYPE_Q4_1] = { "Q4_1", 32, 20 },
    [DTYPE_Q5_0] = { "Q5_0", 32, 22 },
    [DTYPE_Q5_1] = { "Q5_1", 32, 24 },
    [DTYPE_IQ4_NL] = { "IQ4_NL", 32, 18 },
    [DTYPE_MXFP4] = { "MXFP4", 32, 17 },
    [DTYPE_Q2_K] = { "Q2_K", 256, 84 },
    [DTYPE_Q3_K] = { "Q3_K", 256, 110 },
    [DTYPE_Q4_K] = { "Q4_K", 256, 144 },
    [DTYPE_Q5_K] = { "Q5_K", 256, 176 },
    [DTYPE_Q6_K] = { "Q6_K", 256, 210 },
    [DTYPE_IQ4_XS] = { "IQ4_XS", 256, 136 },
    [DTYPE_F8_E4M3] = { "F8_E4M3", QUANT_F8_ELEMENTS, QUANT_F8_BYTES },
    [DTYPE_F8_E4M3_16] = { "F8_E4M3_16", QUANT_F8_SHORT_ELEMENTS, QUANT_F8_SHORT_BYTES },
    [DTYPE_INT4] = { "INT4", 32, QUANT_INT4_BYTES },
};

/* Names that are not infos' own. */
static const struct {
    const char *name;
    enum dtype dtype;
} names[] = {
    { "float32", DTYPE_F32 }, { "float", DTYPE_F32 },     { "float16", DTYPE_F16 },
    { "half", DTYPE_F16 },    { "bfloat16", DTYPE_BF16 }, { "int32", DTYPE_I32 },
};

const struct dtype_info *dtype_info(enum dtype dtype)
{
    assert((unsigned)dtype < DTYPE_COUNT);
    return &infos[dtype];
}

bool dtype_parse(const char *name, enum dtype *dtype_out)
{
    for (unsigned i = 0; i < DTYPE_COUNT; i++) {
        if (strcasecmp(name, infos[i].name) == 0) {
            *dtype_out = (enum dtype)i;
            return true;
        }
    }
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcasecmp(name, names[i].name) == 0) {
            *dtype_out = names[i].dtype;
            return true;
        }
    }
    return false;
}

bool dtype_bytes(enum dtype dtype, uint64_t element_count, uint64_t *bytes_out)
{
    const struct dtype_info *info = dtype_info(dtype);

    if (element_count % info->block_elements != 0)
        return false;
    return size_mul(element_count / info->block_elements, info->block_bytes, bytes_out);
}

uint64_t dtype_row_bytes(enum dtype dtype, uint64_t element_count)
{
    const struct dtype_info *info = dtype_info(dtype);

    assert(element_count % info->block_elements == 0);
    return element_count / info->block_elements * info->block_bytes;
}

/* The conversions between plain types below have no branches, only selections by mask, so that
 * compilers turn loops of them into SIMD code (a conditional operator over the sum of floats would
 * stay a branch, since adding may trap); comparisons are of signed numbers because SSE2 has no
 * others. */

static inline uint32_t float_bits(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static inline float bits_float(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

static inline uint32_t select_bits(bool condition, uint32_t yes, uint32_t no)
{
    const uint32_t mask = -(uint32_t)condition;

    return (yes & mask) | (no & ~mask);
}

static inline uint16_t bf16_of(float value)
{
    const uint32_t bits = float_bits(value);
    const uint32_t nan = bits >> 16 | 0x40; /* keep it one, and quiet */
    const uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;

    return (uint16_t)select_bits((int32_t)(bits & 0x7FFFFFFF) > 0x7F800000, nan, rounded);
}

static inline float f16_value(uint16_t bits)
{
    const uint32_t sign = (uint32_t)(bits & 0x8000) << 16;
    const int32_t magnitude = bits & 0x7FFF;
    const uint32_t wide = (uint32_t)magnitude << 13;
    /* zero or subnormal: units of 2^-24, which is the ulp of 0.5 */
    const uint32_t small = float_bits(bits_float(0x3F000000 | (uint32_t)magnitude) - 0.5f);
    const uint32_t normal = wide + (UINT32_C(112) << 23);
    const uint32_t special = wide | 0x7F800000; /* infinity or NaN */
    const uint32_t finite = select_bits(magnitude < 0x400, small, normal);

    return bits_float(sign | select_bits(magnitude >= 0x7C00, special, finite));
}

static inline uint16_t f16_of(float value)
{
    const uint32_t bits = float_bits(value);
    const uint32_t sign = bits >> 16 & 0x8000;
    const uint32_t unsigned_bits = bits & 0x7FFFFFFF;
    const int32_t magnitude = (int32_t)unsigned_bits;
    /* below 2^-14: subnormal, in units of 2^-24, the ulp of 0.5, so that the addition rounds to
     * even */
    const uint32_t small = float_bits(bits_float(unsigned_bits) + 0.5f) - 0x3F000000;
    const uint32_t normal =
        (unsigned_bits + 0xFFF + (unsigned_bits >> 13 & 1) - (UINT32_C(112) << 23)) >> 13;
    const uint32_t finite = select_bits(magnitude < 0x38800000, small, normal);
    const uint32_t large = select_bits(magnitude > 0x7F800000, 0x7E00, 0x7C00); /* NaN, infinity */

    /* 65520 and more round to infinity */
    return (uint16_t)(sign | select_bits(magnitude >= 0x477FF000, large, finite));
}

uint16_t f32_to_bf16(float value)
{
    return bf16_of(value);
}

float f16_to_f32(uint16_t bits)
{
    return f16_value(bits);
}

uint16_t f32_to_f16(float value)
{
    return f16_of(value);
}

static void f32_from_f16(float *restrict to, const uint16_t *restrict from, size_t count)
{
    for (size_t i = 0; i < count; i++)
        to[i] = f16_value(from[i]);
}

static void f32_from_bf16(float *restrict to, const uint16_t *restrict from, size_t count)
{
    for (size_t i = 0; i < count; i++)
        to[i] = bf16_to_f32(from[i]);
}

static void f16_from_f32(uint16_t *restrict to, const float *restrict from, size_t count)
{
    for (size_t i = 0; i < count; i++)
        to[i] = f16_of(from[i]);
}

static void f16_from_bf16(uint16_t *restrict to, const uint16_t *restrict from, size_t count)
{
    for (size_t i = 0; i < count; i++)
        to[i] = f16_of(bf16_to_f32(from[i]));
}

static void bf16_from_f32(uint16_t *restrict to, const float *restrict from, size_t count)
{
    for (size_t i = 0; i < count; i++)
        to[i] = bf16_of(from[i]);
}

static void bf16_from_f16(uint16_t *restrict to, const uint16_t *restrict from, size_t count)
{
    for (size_t i = 0; i < count; i++)
        to[i] = bf16_of(f16_value(from[i]));
}

static void to_f32(float *to, const void *from, enum dtype dtype, size_t count)
{
    switch (dtype) {
    case DTYPE_F16: f32_from_f16(to, from, count); break;
    case DTYPE_BF16: f32_from_bf16(to, from, count); break;
    case DTYPE_F32:
    case DTYPE_I32:
    case DTYPE_COUNT: assert(!"a conversion from integers"); break;
    default: quant_to_f32(to, dtype, from, count / dtype_info(dtype)->block_elements);
    }
}

static void from_f32(void *to, enum dtype dtype, const float *from, size_t count)
{
    switch (dtype) {
    case DTYPE_F16: f16_from_f32(to, from, count); break;
    case DTYPE_BF16: bf16_from_f32(to, from, count); break;
    case DTYPE_Q8_0: quant_q8_0_from_f32(to, from, count / QUANT_RUN_ELEMENTS); break;
    case DTYPE_Q4_0: quant_q4_0_from_f32(to, from, count / QUANT_RUN_ELEMENTS); break;
    case DTYPE_Q2_K:
    case DTYPE_Q3_K:
    case DTYPE_Q4_K:
    case DTYPE_Q5_K:
    case DTYPE_Q6_K:
        quant_k_from_f32(to, dtype, from, count / dtype_info(dtype)->block_elements);
        break;
    default: assert(!"a conversion to a type that nothing is turned into");
    }
}

bool dtype_is_target(enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_F32:
    case DTYPE_F16:
    case DTYPE_BF16:
    case DTYPE_Q8_0:
    case DTYPE_Q4_0:
    case DTYPE_Q2_K:
    case DTYPE_Q3_K:
    case DTYPE_Q4_K:
    case DTYPE_Q5_K:
    case DTYPE_Q6_K: return true;
    default: return false;
    }
}

/* Some blocks at a time, through F32. */
static void through_f32(void *to, enum dtype to_dtype, const void *from, enum dtype from_dtype,
                        size_t count)
{
    enum { AT_A_TIME = 256 }; /* the largest block */
    float values[AT_A_TIME];

    for (size_t at = 0; at < count; at += AT_A_TIME) {
        const size_t left = count - at;
        const size_t some = left < AT_A_TIME ? left : AT_A_TIME;
        to_f32(values, (const char *)from + dtype_row_bytes(from_dtype, at), from_dtype, some);
        from_f32((char *)to + dtype_row_bytes(to_dtype, at), to_dtype, values, some);
    }
}

void dtype_convert(void *dst, enum dtype dst_dtype, const void *src, enum dtype src_dtype,
                   size_t count)
{
    assert(count % dtype_info(src_dtype)->block_elements == 0);
    assert(count % dtype_info(dst_dtype)->block_elements == 0);
    if (dst_dtype == src_dtype)
        memcpy(dst, src, dtype_row_bytes(src_dtype, count));
    else if (dst_dtype == DTYPE_F32)
        to_f32(dst, src, src_dtype, count);
    else if (src_dtype == DTYPE_F32)
        from_f32(dst, dst_dtype, src, count);
    else if (dst_dtype == DTYPE_F16 && src_dtype == DTYPE_BF16)
        f16_from_bf16(dst, src, count);
    else if (dst_dtype == DTYPE_BF16 && src_dtype == DTYPE_F16)
        bf16_from_f16(dst, src, count);
    else
        through_f32(dst, dst_dtype, src, src_dtype, count);
}
