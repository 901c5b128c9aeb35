/* tensor/quant.c - see quant.h. */
#include "tensor/quant.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "tensor/dtype.h"

#define HALF (QUANT_RUN_ELEMENTS / 2)

const int8_t quant_iq4_values[16] = { -127, -104, -83, -65, -49, -35, -22, -10,
                                      1, 13, 25, 38, 53, 69, 89, 113 };
const int8_t quant_mxfp4_values[16] = { 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12 };

static const struct {
    bool mins, two_scales;
    int32_t offset;
} traits[DTYPE_COUNT] = {
    [DTYPE_Q8_0] = { false, false, 128 }, [DTYPE_Q4_0] = { false, false, 8 },
    [DTYPE_Q4_1] = { true, false, 0 },    [DTYPE_Q5_0] = { false, false, 16 },
    [DTYPE_Q5_1] = { true, false, 0 },    [DTYPE_Q2_K] = { true, true, 0 },
    [DTYPE_Q3_K] = { false, true, 4 },    [DTYPE_Q4_K] = { true, false, 0 },
    [DTYPE_Q5_K] = { true, false, 0 },    [DTYPE_Q6_K] = { false, true, 32 },
    [DTYPE_IQ4_NL] = { false, false, 128 }, [DTYPE_IQ4_XS] = { false, false, 128 },
    [DTYPE_MXFP4] = { false, false, 12 },  [DTYPE_INT4] = { false, false, 15 },
};

bool quant_is_quantised(enum dtype dtype)
{
    return dtype_info(dtype)->block_elements > 1;
}

bool quant_is_f8(enum dtype dtype)
{
    return dtype == DTYPE_F8_E4M3 || dtype == DTYPE_F8_E4M3_16;
}

bool quant_has_runs(enum dtype dtype)
{
    return quant_is_quantised(dtype) && !quant_is_f8(dtype);
}

bool quant_has_mins(enum dtype dtype)
{
    return traits[dtype].mins;
}

bool quant_has_two_scales(enum dtype dtype)
{
    return traits[dtype].two_scales;
}

int32_t quant_offset(enum dtype dtype)
{
    return traits[dtype].offset;
}

uint32_t quant_runs_per_block(enum dtype dtype)
{
    const uint32_t elements = dtype_info(dtype)->block_elements;

    return quant_has_runs(dtype) ? elements / QUANT_RUN_ELEMENTS : 1;
}

static float read_f16(const uint8_t *at)
{
    return f16_to_f32((uint16_t)(at[0] | at[1] << 8));
}

static void write_scale(uint8_t *block, float scale)
{
    const uint16_t bits = f32_to_f16(scale);

    block[0] = (uint8_t)bits;
    block[1] = (uint8_t)(bits >> 8);
}

static void set_scale(struct quant_run *run, float scale, float min)
{
    run->scales[0] = run->scales[1] = scale;
    run->mins[0] = run->mins[1] = min;
}

/* 16 bytes of halves, each less `offset`. */
static void read_halves(struct quant_run *run, const uint8_t *halves, int offset)
{
    for (size_t i = 0; i < HALF; i++) {
        run->q[i] = (int8_t)((halves[i] & 15) - offset);
        run->q[i + HALF] = (int8_t)((halves[i] >> 4) - offset);
    }
}

static void look_up_halves(struct quant_run *run, const uint8_t *halves, const int8_t values[16])
{
    for (size_t i = 0; i < HALF; i++) {
        run->q[i] = values[halves[i] & 15];
        run->q[i + HALF] = values[halves[i] >> 4];
    }
}

/* 32 bits, one for each element, that add `value`. */
static void add_bits(struct quant_run *run, const uint8_t bits[4], int value)
{
    for (size_t i = 0; i < QUANT_RUN_ELEMENTS; i++)
        if ((bits[i / 8] >> i % 8 & 1) != 0)
            run->q[i] = (int8_t)(run->q[i] + value);
}

/* Bits `shift` and up, by mask, of one byte for each element, times 2^up. */
static void add_fields(struct quant_run *run, const uint8_t *bytes, uint32_t shift, uint8_t mask,
                       uint32_t up)
{
    for (size_t i = 0; i < QUANT_RUN_ELEMENTS; i++)
        run->q[i] = (int8_t)(run->q[i] + ((bytes[i] >> shift & mask) << up));
}

float quant_mxfp4_scale(uint8_t exponent)
{
    const uint32_t bits =
        exponent < 2 ? UINT32_C(0x00200000) << exponent : (uint32_t)(exponent - 1) << 23;
    float scale;

    memcpy(&scale, &bits, sizeof(scale));
    return scale;
}

void quant_k4_scales(const uint8_t packed[12], uint8_t scales_out[8], uint8_t mins_out[8])
{
    for (size_t i = 0; i < 4; i++) {
        scales_out[i] = packed[i] & 63;
        mins_out[i] = packed[i + 4] & 63;
        scales_out[i + 4] = (uint8_t)((packed[i + 8] & 15) | (packed[i] >> 6) << 4);
        mins_out[i + 4] = (uint8_t)((packed[i + 8] >> 4) | (packed[i + 4] >> 6) << 4);
    }
}

void quant_k3_scales(const uint8_t packed[12], int8_t scales_out[16])
{
    for (size_t i = 0; i < 16; i++) {
        const int low = packed[i % 8] >> i / 8 * 4 & 15;
        const int high = packed[8 + i % 4] >> i / 4 * 2 & 3;
        scales_out[i] = (int8_t)((low | high << 4) - 32);
    }
}

void quant_iq4_xs_scales(const uint8_t *block, int8_t scales_out[8])
{
    const unsigned upper = block[2] | (unsigned)block[3] << 8;

    for (size_t i = 0; i < 8; i++) {
        const unsigned low = block[4 + i / 2] >> i % 2 * 4 & 15;
        scales_out[i] = (int8_t)((int)(low | (upper >> 2 * i & 3) << 4) - 32);
    }
}

static void read_q2_k(struct quant_run *run, const uint8_t *block, uint32_t index)
{
    const float d = read_f16(block + 80), dmin = read_f16(block + 82);

    memset(run->q, 0, sizeof(run->q));
    add_fields(run, block + 16 + index / 4 * 32, index % 4 * 2, 3, 0);
    for (size_t i = 0; i < 2; i++) {
        run->scales[i] = d * (float)(block[2 * index + i] & 15);
        run->mins[i] = -(dmin * (float)(block[2 * index + i] >> 4));
    }
}

static void read_q3_k(struct quant_run *run, const uint8_t *block, uint32_t index)
{
    const float d = read_f16(block + 108);
    int8_t scales[16];

    memset(run->q, -4, sizeof(run->q));
    add_fields(run, block + 32 + index / 4 * 32, index % 4 * 2, 3, 0);
    add_fields(run, block, index, 1, 2);
    quant_k3_scales(block + 96, scales);
    set_scale(run, 0, 0);
    run->scales[0] = d * (float)scales[2 * index];
    run->scales[1] = d * (float)scales[2 * index + 1];
}

/* Q5_K is Q4_K with the fifth bits before the others. */
static void read_q45_k(struct quant_run *run, const uint8_t *block, uint32_t index, bool has_fifth)
{
    const uint8_t *fifth_bits = block + 16, *halves = has_fifth ? block + 48 : block + 16;
    uint8_t scales[8], mins[8];

    memset(run->q, 0, sizeof(run->q));
    add_fields(run, halves + index / 2 * 32, index % 2 * 4, 15, 0);
    if (has_fifth)
        add_fields(run, fifth_bits, index, 1, 4);
    quant_k4_scales(block + 4, scales, mins);
    set_scale(run, read_f16(block) * (float)scales[index],
              -(read_f16(block + 2) * (float)mins[index]));
}

static void read_q6_k(struct quant_run *run, const uint8_t *block, uint32_t index)
{
    const float d = read_f16(block + 208);
    const uint32_t half = index / 4, quarter = index % 4;

    memset(run->q, -32, sizeof(run->q));
    add_fields(run, block + half * 64 + quarter % 2 * 32, quarter / 2 * 4, 15, 0);
    add_fields(run, block + 128 + half * 32, quarter * 2, 3, 4);
    set_scale(run, 0, 0);
    run->scales[0] = d * (float)(int8_t)block[192 + 2 * index];
    run->scales[1] = d * (float)(int8_t)block[192 + 2 * index + 1];
}

static void read_iq4_xs(struct quant_run *run, const uint8_t *block, uint32_t index)
{
    int8_t scales[8];

    quant_iq4_xs_scales(block, scales);
    look_up_halves(run, block + 8 + index * 16, quant_iq4_values);
    set_scale(run, read_f16(block) * (float)scales[index], 0);
}

/* Types whose blocks are one run. */
static void read_small(struct quant_run *run, enum dtype dtype, const uint8_t *block)
{
    const bool mins = quant_has_mins(dtype);

    if (dtype == DTYPE_MXFP4) {
        set_scale(run, quant_mxfp4_scale(block[0]), 0);
        look_up_halves(run, block + 1, quant_mxfp4_values);
        return;
    }
    set_scale(run, read_f16(block), mins ? read_f16(block + 2) : 0);
    switch (dtype) {
    case DTYPE_Q8_0: memcpy(run->q, block + 2, sizeof(run->q)); break;
    case DTYPE_Q4_0: read_halves(run, block + 2, 8); break;
    case DTYPE_Q4_1: read_halves(run, block + 4, 0); break;
    case DTYPE_Q5_0:
        read_halves(run, block + 6, 16);
        add_bits(run, block + 2, 16);
        break;
    case DTYPE_Q5_1:
        read_halves(run, block + 8, 0);
        add_bits(run, block + 4, 16);
        break;
    case DTYPE_IQ4_NL: look_up_halves(run, block + 2, quant_iq4_values); break;
    case DTYPE_INT4: read_halves(run, block + 3, block[2] & 15); break;
    default: assert(!"a type without blocks");
    }
}

void quant_run_read(struct quant_run *run, enum dtype dtype, const void *block,
                    uint32_t run_index)
{
    const uint8_t *bytes = block;

    assert(run_index < quant_runs_per_block(dtype));
    switch (dtype) {
    case DTYPE_Q2_K: read_q2_k(run, bytes, run_index); break;
    case DTYPE_Q3_K: read_q3_k(run, bytes, run_index); break;
    case DTYPE_Q4_K: read_q45_k(run, bytes, run_index, false); break;
    case DTYPE_Q5_K: read_q45_k(run, bytes, run_index, true); break;
    case DTYPE_Q6_K: read_q6_k(run, bytes, run_index); break;
    case DTYPE_IQ4_XS: read_iq4_xs(run, bytes, run_index); break;
    default: read_small(run, dtype, bytes);
    }
}

static void f8_to_f32(float *restrict to, const uint8_t *block, size_t block_count,
                      uint32_t elements)
{
    for (size_t b = 0; b < block_count; b++, block += sizeof(float) + elements, to += elements) {
        float scale;
        memcpy(&scale, block, sizeof(scale));
        for (size_t i = 0; i < elements; i++)
            to[i] = scale * (256 * f16_to_f32(quant_e4m3_f16(block[4 + i])));
    }
}

void quant_to_f32(float *restrict to, enum dtype dtype, const void *blocks, size_t block_count)
{
    const uint32_t runs = quant_runs_per_block(dtype);
    const bool mins = quant_has_mins(dtype);
    const uint8_t *block = blocks;
    struct quant_run run;

    if (quant_is_f8(dtype)) {
        f8_to_f32(to, block, block_count, dtype_info(dtype)->block_elements);
        return;
    }
    for (size_t b = 0; b < block_count; b++, block += dtype_info(dtype)->block_bytes) {
        for (uint32_t r = 0; r < runs; r++, to += QUANT_RUN_ELEMENTS) {
            quant_run_read(&run, dtype, block, r);
            for (size_t i = 0; i < QUANT_RUN_ELEMENTS; i++)
                to[i] = run.scales[i / HALF] * (float)run.q[i];
            for (size_t i = 0; mins && i < QUANT_RUN_ELEMENTS; i++)
                to[i] += run.mins[i / HALF];
        }
    }
}

/* The first of those that are farthest from zero; 0 when all are NaN. */
static float farthest(const float *values)
{
    float found = 0;

    for (size_t i = 0; i < QUANT_RUN_ELEMENTS; i++)
        if (fabsf(values[i]) > fabsf(found))
            found = values[i];
    return found;
}

/* What elements are multiplied with: 0 when there is no scale. */
static float inverse(float scale)
{
    return scale == 0 ? 0 : 1 / scale;
}

/* min and max also bound infinity, which the inverse of a subnormal scale may be. */
static float bounded(float value, float min, float max)
{
    return isnan(value) ? 0 : fminf(fmaxf(value, min), max);
}

void quant_q8_0_from_f32(void *blocks, const float *from, size_t block_count)
{
    uint8_t *block = blocks;

    for (size_t b = 0; b < block_count;
         b++, block += QUANT_Q8_0_BYTES, from += QUANT_RUN_ELEMENTS) {
        const float scale = fabsf(farthest(from)) / 127;
        const float factor = inverse(scale);
        write_scale(block, scale);
        for (size_t i = 0; i < QUANT_RUN_ELEMENTS; i++)
            block[2 + i] = (uint8_t)(int8_t)roundf(bounded(from[i] * factor, -127, 127));
    }
}

static unsigned q4_0_of(float value, float factor)
{
    return isnan(value * factor) ? 8 : (unsigned)bounded(value * factor + 8.5f, 0, 15);
}

void quant_q4_0_from_f32(void *blocks, const float *from, size_t block_count)
{
    uint8_t *block = blocks;

    for (size_t b = 0; b < block_count;
         b++, block += QUANT_Q4_0_BYTES, from += QUANT_RUN_ELEMENTS) {
        const float scale = farthest(from) / -8;
        const float factor = inverse(scale);
        write_scale(block, scale);
        for (size_t i = 0; i < HALF; i++)
            block[2 + i] = (uint8_t)(q4_0_of(from[i], factor) |
                                     q4_0_of(from[i + HALF], factor) << 4);
    }
}
