/* tests/cann/ops/element.c - tensors as arrays of double, and one rounding on the way back. */
#include "op.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void *take(size_t count, size_t size)
{
    void *memory = calloc(count + 1, size);

    if (memory == NULL) {
        fputs("cann stand-in: out of memory\n", stderr);
        abort();
    }
    return memory;
}

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static float halves[65536];

__attribute__((constructor)) static void halves_make(void)
{
    for (unsigned bits = 0; bits < 65536; bits++) {
        const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
        const double size = exponent == 31 ? (mantissa != 0 ? (double)NAN : (double)INFINITY)
                            : exponent == 0 ? ldexp(mantissa, -24)
                                            : ldexp(1024 + mantissa, exponent - 25);
        halves[bits] = (float)(bits >> 15 != 0 ? -size : size);
    }
}

/* The float next to `value` towards zero, with its last bit set when that is not exact: rounding
 * it to fewer bits gives what rounding `value` gives (Boldo and Melquiond 2008, round to odd). */
static uint32_t odd_bits(double value)
{
    const float nearest = (float)value;
    uint32_t bits = bits_of(nearest);

    if (isnan(value) || (double)nearest == value)
        return bits;
    if (fabs((double)nearest) > fabs(value))
        bits--;
    return bits | 1;
}

static uint16_t bfloat_set(double value)
{
    const uint32_t bits = odd_bits(value);

    if (isnan(value))
        return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static uint16_t half_set(double value)
{
    const uint16_t sign = signbit(value) ? 0x8000 : 0;
    const double size = fabs(value);
    double step, rounded;
    int exponent;

    if (isnan(value))
        return 0x7e00;
    if (size >= 65520)
        return sign | 0x7c00;
    if (size < ldexp(1, -14)) { /* a multiple of 2^-24, or the smallest normal number */
        return sign | (uint16_t)nearbyint(size * 0x1p24);
    }
    (void)frexp(size, &exponent); /* size = f * 2^exponent, f in [0.5, 1) */
    step = ldexp(1, exponent - 11);
    rounded = nearbyint(size / step); /* 1024 .. 2048 */
    if (rounded == 2048) {
        rounded = 1024;
        exponent++;
    }
    return sign | (uint16_t)((exponent + 14) << 10) | (uint16_t)((int)rounded - 1024);
}

double element_get(aclDataType dtype, const uint8_t *memory, int64_t index)
{
    const void *bytes = memory;

    switch (dtype) {
    case ACL_FLOAT: return (double)((const float *)bytes)[index];
    case ACL_FLOAT16: return (double)halves[((const uint16_t *)bytes)[index]];
    case ACL_BF16: return (double)float_of((uint32_t)((const uint16_t *)bytes)[index] << 16);
    case ACL_INT8: return ((const int8_t *)bytes)[index];
    case ACL_UINT8: return memory[index];
    case ACL_BOOL: return memory[index] != 0;
    case ACL_INT16: return ((const int16_t *)bytes)[index];
    case ACL_UINT16: return ((const uint16_t *)bytes)[index];
    case ACL_INT32: return ((const int32_t *)bytes)[index];
    case ACL_UINT32: return ((const uint32_t *)bytes)[index];
    case ACL_INT64: return (double)((const int64_t *)bytes)[index];
    case ACL_UINT64: return (double)((const uint64_t *)bytes)[index];
    case ACL_DOUBLE: return ((const double *)bytes)[index];
    default: return NAN;
    }
}

/* Integers: towards zero, as a cast does; what does not fit becomes the nearest end. */
static int64_t whole(double value, double low, double high)
{
    if (isnan(value))
        return 0;
    return (int64_t)(value < low ? low : value > high ? high : trunc(value));
}

void element_set(aclDataType dtype, uint8_t *memory, int64_t index, double value)
{
    void *bytes = memory;

    switch (dtype) {
    case ACL_FLOAT: ((float *)bytes)[index] = (float)value; break;
    case ACL_FLOAT16: ((uint16_t *)bytes)[index] = half_set(value); break;
    case ACL_BF16: ((uint16_t *)bytes)[index] = bfloat_set(value); break;
    case ACL_INT8: ((int8_t *)bytes)[index] = (int8_t)whole(value, -128, 127); break;
    case ACL_UINT8: memory[index] = (uint8_t)whole(value, 0, 255); break;
    case ACL_BOOL: memory[index] = value != 0; break;
    case ACL_INT16: ((int16_t *)bytes)[index] = (int16_t)whole(value, -32768, 32767); break;
    case ACL_UINT16: ((uint16_t *)bytes)[index] = (uint16_t)whole(value, 0, 65535); break;
    case ACL_INT32:
        ((int32_t *)bytes)[index] = (int32_t)whole(value, -2147483648.0, 2147483647.0);
        break;
    case ACL_UINT32: ((uint32_t *)bytes)[index] = (uint32_t)whole(value, 0, 4294967295.0); break;
    case ACL_INT64:
        ((int64_t *)bytes)[index] = whole(value, -9.2e18, 9.2e18);
        break;
    case ACL_UINT64: ((uint64_t *)bytes)[index] = (uint64_t)whole(value, 0, 9.2e18); break;
    case ACL_DOUBLE: ((double *)bytes)[index] = value; break;
    default: break;
    }
}

bool next_at(const struct aclTensor *t, int64_t *at)
{
    for (int i = t->rank - 1; i >= 0; i--) {
        if (++at[i] < t->dims[i])
            return true;
        at[i] = 0;
    }
    return false;
}

/* Along the physical width of an NZ matrix the index jumps from strip to strip, along its height it
 * steps by the strip's width (section 4.1). */
static void nz_line(const struct aclTensor *t, const int64_t *at, int dim, double *out)
{
    const bool swapped = tensor_nz_is_swapped(t);
    const int height_dim = t->rank - (swapped ? 1 : 2);
    const int64_t c0 = t->storage[t->storage_rank - 1];
    const int64_t strip = (t->dims[height_dim] + 15) / 16 * 16 * c0;
    const int64_t first = tensor_index(t, at);

    for (int64_t i = 0; i < t->dims[dim]; i++) {
        const int64_t index = dim == height_dim ? i * c0 : i / c0 * strip + i % c0;
        out[i] = element_get(t->dtype, t->bytes, first + index);
    }
}

void tensor_line(const struct aclTensor *t, const int64_t *at, int dim, double *out)
{
    const int64_t first = tensor_index(t, at), step = t->strides[dim], count = t->dims[dim];
    const void *bytes = t->bytes;

    if (t->format == ACL_FORMAT_FRACTAL_NZ && dim >= t->rank - 2) {
        nz_line(t, at, dim, out);
    } else if (t->dtype == ACL_FLOAT) {
        for (int64_t i = 0; i < count; i++)
            out[i] = (double)((const float *)bytes)[first + i * step];
    } else if (t->dtype == ACL_BF16) {
        for (int64_t i = 0; i < count; i++)
            out[i] = (double)float_of((uint32_t)((const uint16_t *)bytes)[first + i * step]
                                      << 16);
    } else {
        for (int64_t i = 0; i < count; i++)
            out[i] = element_get(t->dtype, t->bytes, first + i * step);
    }
}

double *tensor_load(const struct aclTensor *t)
{
    const int64_t count = tensor_count(t);
    double *values = take((size_t)count, sizeof(*values));
    int64_t at[RANK_MAX] = { 0 };

    if (count == 0)
        return values;
    if (t->rank == 0) {
        values[0] = element_get(t->dtype, t->bytes, t->offset);
        return values;
    }
    for (int64_t i = 0; i < count; i += t->dims[t->rank - 1]) {
        tensor_line(t, at, t->rank - 1, values + i);
        at[t->rank - 1] = t->dims[t->rank - 1] - 1;
        (void)next_at(t, at);
    }
    return values;
}

void tensor_store(struct aclTensor *t, const double *values)
{
    int64_t at[RANK_MAX] = { 0 };

    if (tensor_count(t) == 0)
        return;
    do {
        const int last = t->rank - 1;
        const bool is_line = t->rank > 0 && t->format != ACL_FORMAT_FRACTAL_NZ;
        const int64_t first = tensor_index(t, at), count = is_line ? t->dims[last] : 1;
        for (int64_t i = 0; i < count; i++)
            element_set(t->dtype, t->bytes, first + (is_line ? i * t->strides[last] : 0),
                        *values++);
        if (is_line)
            at[last] = count - 1;
    } while (next_at(t, at));
}

double *tensor_load_like(const struct aclTensor *t, const struct aclTensor *like)
{
    struct aclTensor wide = *t;
    const int shift = like->rank - t->rank;

    wide.rank = like->rank;
    for (int i = 0; i < like->rank; i++) {
        const bool has = i >= shift && t->dims[i - shift] != 1;
        wide.dims[i] = like->dims[i];
        wide.strides[i] = has ? t->strides[i - shift] : 0;
    }
    return tensor_load(&wide);
}

/* Eight sums side by side, so that the compiler may use the machine's width. */
double dot(const double *a, const double *b, int64_t count)
{
    double sums[8] = { 0 };
    double sum = 0;
    int64_t i = 0;

    for (; i + 8 <= count; i += 8) {
        for (int j = 0; j < 8; j++)
            sums[j] += a[i + j] * b[i + j];
    }
    for (; i < count; i++)
        sum += a[i] * b[i];
    for (int j = 0; j < 8; j++)
        sum += sums[j];
    return sum;
}
