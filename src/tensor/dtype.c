/* tensor/dtype.c - see dtype.h. */
#include "tensor/dtype.h"

#include <assert.h>
#include <strings.h>

#include "base/size.h"

static const struct dtype_info infos[DTYPE_COUNT] = {
    [DTYPE_F32] = { "F32", 1, 4 },
    [DTYPE_F16] = { "F16", 1, 2 },
    [DTYPE_BF16] = { "BF16", 1, 2 },
    [DTYPE_I32] = { "I32", 1, 4 },
};

static const struct {
    const char *name;
    enum dtype dtype;
} names[] = {
    { "F32", DTYPE_F32 },   { "float32", DTYPE_F32 },   { "float", DTYPE_F32 },
    { "F16", DTYPE_F16 },   { "float16", DTYPE_F16 },   { "half", DTYPE_F16 },
    { "BF16", DTYPE_BF16 }, { "bfloat16", DTYPE_BF16 }, { "I32", DTYPE_I32 },
    { "int32", DTYPE_I32 },
};

const struct dtype_info *dtype_info(enum dtype dtype)
{
    assert((unsigned)dtype < DTYPE_COUNT);
    return &infos[dtype];
}

bool dtype_parse(const char *name, enum dtype *dtype_out)
{
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

uint16_t f32_to_bf16(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    if ((bits & 0x7FFFFFFF) > 0x7F800000)
        return (uint16_t)(bits >> 16 | 0x40); /* NaN: keep it one, and quiet */
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

float f16_to_f32(uint16_t bits)
{
    const uint32_t sign = (uint32_t)(bits & 0x8000) << 16;
    const uint32_t exponent = bits >> 10 & 0x1F;
    uint32_t mantissa = bits & 0x3FF;
    uint32_t wide;
    float value;

    if (exponent == 0x1F) {
        wide = sign | 0x7F800000 | mantissa << 13;
    } else if (exponent != 0) {
        wide = sign | (exponent + 112) << 23 | mantissa << 13;
    } else { /* zero or subnormal: mantissa * 2^-24, exact in F32 */
        value = (float)mantissa * 0x1p-24f;
        memcpy(&wide, &value, sizeof(wide));
        wide |= sign;
    }
    memcpy(&value, &wide, sizeof(value));
    return value;
}

uint16_t f32_to_f16(float value)
{
    uint32_t bits;
    uint16_t sign;
    uint32_t magnitude;

    memcpy(&bits, &value, sizeof(bits));
    sign = (uint16_t)(bits >> 16 & 0x8000);
    magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000)
        return sign | 0x7E00;
    if (magnitude >= 0x477FF000) /* 65520 and more round to infinity */
        return sign | 0x7C00;
    if (magnitude < 0x38800000) { /* below 2^-14: subnormal, in units of 2^-24 */
        float scaled;
        uint32_t rounded;
        memcpy(&scaled, &magnitude, sizeof(scaled));
        scaled = scaled + 0.5f; /* 0.5 has an ulp of 2^-24: the addition rounds to even */
        memcpy(&rounded, &scaled, sizeof(rounded));
        return sign | (uint16_t)(rounded - 0x3F000000);
    }
    magnitude += 0xFFF + (magnitude >> 13 & 1);
    return sign | (uint16_t)((magnitude - (UINT32_C(112) << 23)) >> 13);
}

static float element_to_f32(const void *src, enum dtype dtype, size_t i)
{
    switch (dtype) {
    case DTYPE_F32: return ((const float *)src)[i];
    case DTYPE_F16: return f16_to_f32(((const uint16_t *)src)[i]);
    case DTYPE_BF16: return bf16_to_f32(((const uint16_t *)src)[i]);
    default: assert(0); return 0;
    }
}

void dtype_convert(void *dst, enum dtype dst_dtype, const void *src, enum dtype src_dtype,
                   size_t count)
{
    if (dst_dtype == src_dtype) {
        memcpy(dst, src, count * dtype_info(src_dtype)->block_bytes);
        return;
    }
    switch (dst_dtype) {
    case DTYPE_F32:
        for (size_t i = 0; i < count; i++)
            ((float *)dst)[i] = element_to_f32(src, src_dtype, i);
        break;
    case DTYPE_F16:
        for (size_t i = 0; i < count; i++)
            ((uint16_t *)dst)[i] = f32_to_f16(element_to_f32(src, src_dtype, i));
        break;
    case DTYPE_BF16:
        for (size_t i = 0; i < count; i++)
            ((uint16_t *)dst)[i] = f32_to_bf16(element_to_f32(src, src_dtype, i));
        break;
    default:
        assert(0);
    }
}
