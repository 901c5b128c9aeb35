/* tensor/quant_k.c - F32 to the types with blocks of 256: Q2_K to Q6_K.
 *
 * A block is cut into groups of 16 or 32 elements, each with an integer scale s and, in types with
 * minimums, an integer minimum m; the block has factors d and dmin (F16):
 *
 *     element = d * s * q            Q3_K, Q6_K
 *     element = d * s * q - dmin * m Q2_K, Q4_K, Q5_K; m is not negative
 *
 * What is sought is the least sum of squared errors. There is no closed form, so
 *
 *   1. fit_group tries some step widths around the one that just holds the group's range; rounding
 *      gives the q, and for these the best scale and minimum follow from linear least squares. The
 *      best of them is rounded and solved again as long as that helps (Lloyd 1982).
 *   2. The largest scale and minimum give d and dmin, and choose_integers takes for each group the
 *      best of the integers around its own, rounding the q again for each.
 *   3. With all integers fixed, d and dmin follow from least squares over the block; then again 2.
 *
 * Every sum has eight lanes in a fixed order, and nothing depends on the machine: the same input
 * gives the same bytes everywhere. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "tensor/quant.h"

enum { BLOCK = 256, GROUP_MAX = 32, GROUPS_MAX = 16, LANES = 8, SEARCH_STEPS = 10, ROUNDS = 3 };

#define VALUE_MAX 1e15f   /* the squares of a block's values still have a sum */
#define FACTOR_MAX 65504.0f
#define ROUNDING 12582912.0f /* 1.5 * 2^23: adding it leaves no fraction */

/* How a type's integers are bounded. */
struct shape {
    uint32_t group;          /* elements that share a scale */
    float q_min, q_max;
    float scale_min, scale_max, min_max; /* min_max 0: there are no minimums */
};

static const struct shape *shape_of(enum dtype dtype)
{
    static const struct shape shapes[DTYPE_COUNT] = {
        [DTYPE_Q2_K] = { 16, 0, 3, 0, 15, 15 },     [DTYPE_Q3_K] = { 16, -4, 3, -32, 31, 0 },
        [DTYPE_Q4_K] = { 32, 0, 15, 0, 63, 63 },    [DTYPE_Q5_K] = { 32, 0, 31, 0, 63, 63 },
        [DTYPE_Q6_K] = { 16, -32, 31, -128, 127, 0 },
    };

    assert(shapes[dtype].group != 0);
    return &shapes[dtype];
}

/* A block while its integers are sought; all of them as whole floats. */
struct block {
    const struct shape *shape;
    float x[BLOCK];
    float q[BLOCK];
    float scales[GROUPS_MAX], mins[GROUPS_MAX];
    float d, dmin;           /* as F16 holds them */
    float error;             /* the sum of squares */
};

/* Sums over a group of q and x. */
struct sums {
    float q, qq, x, xq;
};

static float sum_lanes(const float lanes[LANES])
{
    return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) +
           ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

static float inverse(float value)
{
    const float result = 1 / value;

    return isfinite(result) ? result : 0;
}

static float bounded(float value, float min, float max)
{
    value = value < min ? min : value;
    return value > max ? max : value;
}

static float nearest(float value)
{
    return value + ROUNDING - ROUNDING;
}

static float as_factor(float value)
{
    return f16_to_f32(f32_to_f16(bounded(value, -FACTOR_MAX, FACTOR_MAX)));
}

/* q[count] nearest to x = scale * q - min. */
static void round_group(const struct shape *shape, const float *restrict x, float scale, float min,
                        float *restrict q)
{
    const float factor = inverse(scale);

    for (uint32_t i = 0; i < shape->group; i++)
        q[i] = nearest(bounded((x[i] + min) * factor, shape->q_min, shape->q_max));
}

static float error_of(const struct shape *shape, const float *x, float scale, float min,
                      const float *q)
{
    float lanes[LANES] = { 0 };

    for (uint32_t i = 0; i < shape->group; i += LANES)
        for (uint32_t lane = 0; lane < LANES; lane++) {
            const float error = scale * q[i + lane] - min - x[i + lane];
            lanes[lane] += error * error;
        }
    return sum_lanes(lanes);
}

static struct sums sum_group(const struct shape *shape, const float *x, const float *q)
{
    float of_q[LANES] = { 0 }, of_qq[LANES] = { 0 }, of_x[LANES] = { 0 }, of_xq[LANES] = { 0 };

    for (uint32_t i = 0; i < shape->group; i += LANES)
        for (uint32_t lane = 0; lane < LANES; lane++) {
            of_q[lane] += q[i + lane];
            of_qq[lane] += q[i + lane] * q[i + lane];
            of_x[lane] += x[i + lane];
            of_xq[lane] += x[i + lane] * q[i + lane];
        }
    return (struct sums){ sum_lanes(of_q), sum_lanes(of_qq), sum_lanes(of_x), sum_lanes(of_xq) };
}

/* The best scale and minimum for these q. */
static void solve_group(const struct shape *shape, const float *x, const float *q, float *scale,
                        float *min)
{
    const struct sums sums = sum_group(shape, x, q);
    const float count = (float)shape->group;
    const float determinant = count * sums.qq - sums.q * sums.q;

    *min = 0;
    *scale = sums.qq > 0 ? sums.xq / sums.qq : 0;
    if (shape->min_max > 0 && determinant <= 0 && sums.x < 0) { /* all q are the same */
        *min = -sums.x / count;
        *scale = 0;
    }
    if (shape->min_max > 0 && determinant > 0) {
        const float offset = (sums.qq * sums.x - sums.q * sums.xq) / determinant;
        if (offset < 0) {
            *min = -offset;
            *scale = (count * sums.xq - sums.x * sums.q) / determinant;
        }
    }
    if (shape->min_max > 0 && *scale < 0)
        *scale = 0;
}

/* A scale and a minimum that the group would have if any could be written. */
struct fit {
    float scale, min, error;
};

/* Rounds, and solves; true when that is better than *fit, which it becomes then. */
static bool improve(const struct shape *shape, const float *x, float scale, float min,
                    struct fit *fit)
{
    float q[GROUP_MAX] = { 0 }, error;

    round_group(shape, x, scale, min, q);
    solve_group(shape, x, q, &scale, &min);
    error = error_of(shape, x, scale, min, q);
    if (!(error < fit->error))
        return false;
    *fit = (struct fit){ scale, min, error };
    return true;
}

static struct fit fit_group(const struct shape *shape, const float *x)
{
    const bool has_mins = shape->min_max > 0;
    float low = 0, high = 0, range;
    struct fit fit = { 0, 0, INFINITY };

    for (uint32_t i = 0; i < shape->group; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    /* Without minimums the value that is farthest from zero becomes q_min, which has one step more
     * than q_max: the scale has the other sign then. */
    range = has_mins ? high - low : (-low > high ? -low : high);
    fit.min = has_mins ? -low : 0;
    for (int step = -SEARCH_STEPS; step <= SEARCH_STEPS && range > 0; step++) {
        const float steps = (has_mins ? shape->q_max : -shape->q_min) + 0.1f * (float)step;
        const float scale = range / steps;
        (void)improve(shape, x, has_mins || -low > high ? scale : -scale, has_mins ? -low : 0,
                      &fit);
    }
    for (int round = 0; round < ROUNDS && improve(shape, x, fit.scale, fit.min, &fit); round++)
        continue;
    return fit;
}

/* Takes these integers for the group if they are better than its error, which becomes theirs. */
static void try_integers(struct block *block, uint32_t group, float scale, float min, float *error)
{
    const struct shape *const shape = block->shape;
    const size_t at = (size_t)group * shape->group;
    float q[GROUP_MAX] = { 0 }, now;

    scale = bounded(scale, shape->scale_min, shape->scale_max);
    min = bounded(min, 0, shape->min_max);
    round_group(shape, block->x + at, block->d * scale, block->dmin * min, q);
    now = error_of(shape, block->x + at, block->d * scale, block->dmin * min, q);
    if (!(now < *error))
        return;
    *error = now;
    block->scales[group] = scale;
    block->mins[group] = min;
    memcpy(block->q + at, q, shape->group * sizeof(*q));
}

/* For each group the best of the integers next to its fit. Returns the block's error. */
static float choose_integers(struct block *block, const struct fit *fits)
{
    const struct shape *const shape = block->shape;
    const int reach = shape->min_max > 0 ? 1 : 0;
    float total = 0;

    for (uint32_t g = 0; g < BLOCK / shape->group; g++) {
        const float scale = nearest(bounded(fits[g].scale * inverse(block->d), shape->scale_min,
                                            shape->scale_max));
        const float min = nearest(bounded(fits[g].min * inverse(block->dmin), 0, shape->min_max));
        float best = INFINITY;
        for (int m = -reach; m <= reach; m++)
            for (int s = -1; s <= 1; s++)
                try_integers(block, g, scale + (float)s, min + (float)m, &best);
        total += best;
    }
    return total;
}

/* d and dmin by least squares: x ~ d * (s * q) - dmin * m. Of one group after the other. */
static void solve_factors(struct block *block)
{
    const struct shape *const shape = block->shape;
    float aa = 0, ab = 0, bb = 0, ax = 0, bx = 0; /* a = s * q, b = m */

    for (uint32_t g = 0; g < BLOCK / shape->group; g++) {
        const size_t at = (size_t)g * shape->group;
        const struct sums sums = sum_group(shape, block->x + at, block->q + at);
        const float s = block->scales[g], m = block->mins[g];
        aa += s * s * sums.qq;
        ab += s * m * sums.q;
        bb += m * m * (float)shape->group;
        ax += s * sums.xq;
        bx += m * sums.x;
    }
    if (bb > 0) {
        const float determinant = aa * bb - ab * ab;
        if (!(determinant > 0))
            return;
        block->d = as_factor((bb * ax - ab * bx) / determinant);
        block->dmin = as_factor((ab * ax - aa * bx) / determinant);
        block->dmin = block->dmin < 0 ? 0 : block->dmin;
    } else if (aa > 0) {
        block->d = as_factor(ax / aa);
    }
}

/* The factors with which the largest scale and minimum can just be written. */
static void begin_factors(struct block *block, const struct fit *fits)
{
    const struct shape *const shape = block->shape;
    float scale = 0, min = 0;

    for (uint32_t g = 0; g < BLOCK / shape->group; g++) {
        scale = fabsf(fits[g].scale) > fabsf(scale) ? fits[g].scale : scale;
        min = fits[g].min > min ? fits[g].min : min;
    }
    block->d = as_factor(scale / (shape->scale_min < 0 ? shape->scale_min : shape->scale_max));
    block->dmin = shape->min_max > 0 ? as_factor(min / shape->min_max) : 0;
}

static void fit_block(struct block *block, const float *from)
{
    struct fit fits[GROUPS_MAX];
    struct block next;

    for (size_t i = 0; i < BLOCK; i++)
        block->x[i] = isnan(from[i]) ? 0 : bounded(from[i], -VALUE_MAX, VALUE_MAX);
    for (uint32_t g = 0; g < BLOCK / block->shape->group; g++)
        fits[g] = fit_group(block->shape, block->x + (size_t)g * block->shape->group);
    begin_factors(block, fits);
    block->error = choose_integers(block, fits);
    next = *block;
    for (int round = 0; round < ROUNDS; round++) {
        solve_factors(&next);
        next.error = choose_integers(&next, fits);
        if (!(next.error < block->error))
            break;
        *block = next;
    }
}

/* --- packing: the layouts are those of quant.h ------------------------------------------------ */

/* Bits `down` and up, by mask, of each element of a run, into `shift` and up of one byte each. */
static void put_fields(uint8_t *bytes, uint32_t shift, const uint8_t *q, uint32_t down,
                       uint8_t mask)
{
    for (size_t i = 0; i < QUANT_RUN_ELEMENTS; i++)
        bytes[i] = (uint8_t)(bytes[i] | (q[i] >> down & mask) << shift);
}

static void put_factor(uint8_t *at, float factor)
{
    const uint16_t bits = f32_to_f16(factor);

    at[0] = (uint8_t)bits;
    at[1] = (uint8_t)(bits >> 8);
}

static void pack_q2_k(uint8_t *bytes, const struct block *block, const uint8_t *q)
{
    for (size_t g = 0; g < 16; g++)
        bytes[g] = (uint8_t)((int)block->scales[g] | (int)block->mins[g] << 4);
    for (uint32_t run = 0; run < 8; run++)
        put_fields(bytes + 16 + run / 4 * 32, run % 4 * 2, q + run * QUANT_RUN_ELEMENTS, 0, 3);
    put_factor(bytes + 80, block->d);
    put_factor(bytes + 82, block->dmin);
}

static void pack_q3_k(uint8_t *bytes, const struct block *block, const uint8_t *q)
{
    for (uint32_t run = 0; run < 8; run++) {
        const uint8_t *const of_run = q + run * QUANT_RUN_ELEMENTS;
        put_fields(bytes, run, of_run, 2, 1);
        put_fields(bytes + 32 + run / 4 * 32, run % 4 * 2, of_run, 0, 3);
    }
    for (size_t g = 0; g < 16; g++) {
        const unsigned scale = (unsigned)((int)block->scales[g] + 32);
        uint8_t *const low = &bytes[96 + g % 8], *const high = &bytes[104 + g % 4];
        *low = (uint8_t)(*low | (scale & 15) << g / 8 * 4);
        *high = (uint8_t)(*high | (scale >> 4) << g / 4 * 2);
    }
    put_factor(bytes + 108, block->d);
}

static void pack_q45_k(uint8_t *bytes, const struct block *block, const uint8_t *q, bool has_fifth)
{
    uint8_t *const packed = bytes + 4, *const halves = bytes + (has_fifth ? 48 : 16);

    put_factor(bytes, block->d);
    put_factor(bytes + 2, block->dmin);
    for (size_t g = 0; g < 4; g++) {
        const unsigned scale = (unsigned)block->scales[g + 4], min = (unsigned)block->mins[g + 4];
        packed[g] = (uint8_t)((unsigned)block->scales[g] | scale >> 4 << 6);
        packed[g + 4] = (uint8_t)((unsigned)block->mins[g] | min >> 4 << 6);
        packed[g + 8] = (uint8_t)((scale & 15) | (min & 15) << 4);
    }
    for (uint32_t run = 0; run < 8; run++) {
        const uint8_t *const of_run = q + run * QUANT_RUN_ELEMENTS;
        put_fields(halves + run / 2 * 32, run % 2 * 4, of_run, 0, 15);
        if (has_fifth)
            put_fields(bytes + 16, run, of_run, 4, 1);
    }
}

static void pack_q6_k(uint8_t *bytes, const struct block *block, const uint8_t *q)
{
    for (uint32_t run = 0; run < 8; run++) {
        const uint8_t *const of_run = q + run * QUANT_RUN_ELEMENTS;
        const uint32_t half = run / 4, quarter = run % 4;
        put_fields(bytes + half * 64 + quarter % 2 * 32, quarter / 2 * 4, of_run, 0, 15);
        put_fields(bytes + 128 + half * 32, quarter * 2, of_run, 4, 3);
    }
    for (size_t g = 0; g < 16; g++)
        bytes[192 + g] = (uint8_t)(int8_t)block->scales[g];
    put_factor(bytes + 208, block->d);
}

void quant_k_from_f32(void *blocks, enum dtype dtype, const float *from, size_t block_count)
{
    const uint32_t block_bytes = dtype_info(dtype)->block_bytes;
    uint8_t *bytes = blocks;
    struct block block = { .shape = shape_of(dtype) };
    uint8_t q[BLOCK];

    for (; block_count > 0; block_count--, from += BLOCK, bytes += block_bytes) {
        fit_block(&block, from);
        for (size_t i = 0; i < BLOCK; i++)
            q[i] = (uint8_t)(int)(block.q[i] - block.shape->q_min);
        memset(bytes, 0, block_bytes);
        switch (dtype) {
        case DTYPE_Q2_K: pack_q2_k(bytes, &block, q); break;
        case DTYPE_Q3_K: pack_q3_k(bytes, &block, q); break;
        case DTYPE_Q4_K: pack_q45_k(bytes, &block, q, false); break;
        case DTYPE_Q5_K: pack_q45_k(bytes, &block, q, true); break;
        default: pack_q6_k(bytes, &block, q);
        }
    }
}
