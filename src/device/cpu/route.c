/* device/cpu/route.c - OP_ROUTE for one row: scores, eligible groups, the best top_k.
 *
 * Every comparison goes through `better`, which puts NaN last and ties in index order, so that also
 * garbage logits give distinct ids in range. */
#include <assert.h>
#include <math.h>

#include "device/cpu/internal.h"

struct choices {
    float score[OP_ROUTE_EXPERTS_MAX];
    float choice[OP_ROUTE_EXPERTS_MAX];
    bool open[OP_ROUTE_EXPERTS_MAX]; /* may still be taken */
};

/* Candidates are visited in index order, so a tie never replaces the one before. */
static bool better(float candidate, float best)
{
    return candidate > best || (isnan(best) && !isnan(candidate));
}

static void softmax(const struct cpu_kernels *kernels, float *out, const float *x, uint32_t count)
{
    float max = x[0];
    float sum;

    for (uint32_t i = 1; i < count; i++)
        max = x[i] > max ? x[i] : max;
    sum = kernels->exp_minus(out, x, count, max);
    for (uint32_t i = 0; i < count; i++)
        out[i] /= sum;
}

static void sigmoid(const struct cpu_kernels *kernels, float *out, const float *x, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        out[i] = -x[i];
    (void)kernels->exp_minus(out, out, count, 0);
    for (uint32_t i = 0; i < count; i++)
        out[i] = 1.0f / (1.0f + out[i]);
}

/* The best open one in [first, first + count); -1 when none is open. */
static int64_t best_open(const struct choices *choices, uint32_t first, uint32_t count)
{
    int64_t best = -1;

    for (uint32_t e = first; e < first + count; e++) {
        if (choices->open[e] && (best < 0 || better(choices->choice[e], choices->choice[best])))
            best = e;
    }
    return best;
}

static float rate_group(struct choices *choices, const struct op_route *op, uint32_t group)
{
    const uint32_t size = op->expert_count / op->group_count;
    const int64_t best = best_open(choices, group * size, size);
    float rating = choices->choice[best];
    int64_t second;

    if (op->groups == ROUTE_GROUP_MAX || size == 1)
        return rating;
    choices->open[best] = false;
    second = best_open(choices, group * size, size);
    choices->open[best] = true;
    rating += choices->choice[second];
    return rating;
}

/* Closes every expert outside the best kept_group_count groups. */
static void limit_groups(struct choices *choices, const struct op_route *op)
{
    const uint32_t size = op->expert_count / op->group_count;
    float rating[OP_ROUTE_EXPERTS_MAX];
    bool kept[OP_ROUTE_EXPERTS_MAX];

    assert(size > 0);
    for (uint32_t g = 0; g < op->group_count; g++) {
        rating[g] = rate_group(choices, op, g);
        kept[g] = false;
    }
    for (uint32_t i = 0; i < op->kept_group_count; i++) {
        int64_t best = -1;
        for (uint32_t g = 0; g < op->group_count; g++) {
            if (!kept[g] && (best < 0 || better(rating[g], rating[best])))
                best = g;
        }
        assert(best >= 0);
        kept[best] = true;
    }
    for (uint32_t e = 0; e < op->expert_count; e++)
        choices->open[e] = kept[e / size];
}

void cpu__route_row(const struct cpu_kernels *kernels, const struct op_route *op, uint32_t row)
{
    const float *logits = op->logits + (uint64_t)row * op->expert_count;
    int32_t *ids = op->ids + (uint64_t)row * op->top_k;
    float *weights = op->weights + (uint64_t)row * op->top_k;
    struct choices choices = { .score = { 0 } };
    float sum = 0;

    if (op->scoring == ROUTE_SOFTMAX)
        softmax(kernels, choices.score, logits, op->expert_count);
    else
        sigmoid(kernels, choices.score, logits, op->expert_count);
    for (uint32_t e = 0; e < op->expert_count; e++) {
        choices.choice[e] =
            choices.score[e] + (op->correction_bias == NULL ? 0 : op->correction_bias[e]);
        choices.open[e] = true;
    }
    if (op->group_count > 1)
        limit_groups(&choices, op);
    for (uint32_t j = 0; j < op->top_k; j++) {
        const int64_t best = best_open(&choices, 0, op->expert_count);
        assert(best >= 0);
        choices.open[best] = false;
        ids[j] = (int32_t)best;
        weights[j] = choices.score[best];
        sum += weights[j];
    }
    for (uint32_t j = 0; j < op->top_k; j++) {
        if (op->normalise)
            weights[j] /= sum + 1e-20f;
        weights[j] *= op->scale;
    }
}
