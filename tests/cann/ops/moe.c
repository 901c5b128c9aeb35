/* tests/cann/ops/moe.c - choosing experts, sorting rows by expert, adding results (ops-transformer,
 * moe/). Row i of x with its j-th expert has the number i * k + j (the row order of V2 and V3). */
#include "op.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define EXPERTS_MAX 2048

/* ---- MoeGatingTopK ----
 * score = softmax or sigmoid of x; choice = score + bias. Groups of experts are rated by their best
 * choice, or the sum of the best two; only the best kGroup groups are eligible. The k best choices
 * are taken; y = score, divided by their sum + eps (sigmoid), times the factor. */

static void scores_of(const double *x, double *score, int64_t count, bool softmax)
{
    double top = -INFINITY, sum = 0;

    for (int64_t i = 0; i < count; i++)
        top = fmax(top, x[i]);
    for (int64_t i = 0; i < count; i++)
        sum += exp(x[i] - top);
    for (int64_t i = 0; i < count; i++)
        score[i] = softmax ? exp(x[i] - top) / sum : 1 / (1 + exp(-x[i]));
}

/* The index of the largest that is not taken; the lower one of equals. */
static int64_t best(const double *values, const bool *taken, int64_t count)
{
    int64_t winner = -1;

    for (int64_t i = 0; i < count; i++) {
        if (!taken[i] && (winner < 0 || values[i] > values[winner]))
            winner = i;
    }
    return winner;
}

static double rating(const double *choice, int64_t count, bool two)
{
    double first = -INFINITY, second = -INFINITY;

    for (int64_t i = 0; i < count; i++) {
        if (choice[i] > first) {
            second = first;
            first = choice[i];
        } else {
            second = fmax(second, choice[i]);
        }
    }
    return two ? first + second : first;
}

/* ints: k, kGroup, groupCount, groupSelectMode, normType, index of bias, of the first result,
 * outFlag. reals: factor, eps */
static void gating_run(struct aclOpExecutor *e)
{
    const struct aclTensor *x = &e->tensors[0];
    const int64_t experts = x->dims[x->rank - 1];
    const int64_t rows = tensor_count(x) / experts;
    const int64_t k = e->ints[0], groups = e->ints[2], size = experts / groups;
    double *all = tensor_load(x), *y = take((size_t)(rows * k), sizeof(*y));
    double *ids = take((size_t)(rows * k), sizeof(*ids));
    double *bias = e->ints[5] >= 0 ? tensor_load(&e->tensors[e->ints[5]])
                                   : take((size_t)experts, sizeof(*bias));
    double *score = take((size_t)(rows * experts), sizeof(*score));
    double choice[EXPERTS_MAX] = { 0 }, ratings[EXPERTS_MAX] = { 0 };
    bool taken[EXPERTS_MAX] = { false }, kept[EXPERTS_MAX];

    for (int64_t r = 0; r < rows; r++) {
        double *s = score + r * experts, sum = 0;
        scores_of(all + r * experts, s, experts, e->ints[4] == 0);
        for (int64_t i = 0; i < experts; i++)
            choice[i] = s[i] + bias[i];
        memset(kept, 0, sizeof(kept));
        for (int64_t g = 0; g < groups; g++)
            ratings[g] = rating(choice + g * size, size, e->ints[3] == 1);
        for (int64_t g = 0; g < e->ints[1]; g++)
            kept[best(ratings, kept, groups)] = true;
        for (int64_t g = 0; g < groups; g++)
            memset(taken + g * size, !kept[g], (size_t)size);
        for (int64_t j = 0; j < k; j++) {
            const int64_t id = best(choice, taken, experts);
            taken[id] = true;
            ids[r * k + j] = (double)id;
            sum += y[r * k + j] = s[id];
        }
        for (int64_t j = 0; j < k; j++)
            y[r * k + j] *= e->reals[0] / (e->ints[4] == 1 ? sum + e->reals[1] : 1);
    }
    tensor_store(&e->tensors[e->ints[6]], y);
    tensor_store(&e->tensors[e->ints[6] + 1], ids);
    if (e->ints[7] != 0)
        tensor_store(&e->tensors[e->ints[6] + 2], score);
    free(all);
    free(y);
    free(ids);
    free(bias);
    free(score);
}

OPERATOR(MoeGatingTopK, const aclTensor *x, const aclTensor *bias, int64_t k, int64_t k_group,
         int64_t group_count, int64_t group_select_mode, int64_t renorm, int64_t norm_type,
         bool out_flag, double factor, double eps, const aclTensor *y, const aclTensor *expert_idx,
         const aclTensor *out)
{
    struct op op = OP(MoeGatingTopK);
    const struct aclTensor *t, *r;
    int64_t experts = 1, biased;

    op_in(&op, "x", x, FLOATS);
    biased = op_in_optional(&op, "biasOptional", bias, FLOATS);
    op_out(&op, "yOut", y, FLOATS);
    op_out(&op, "expertIdxOut", expert_idx, DT(INT32));
    op_out(&op, "outOut", out, DT(FLOAT));
    op_check(&op, renorm == 0 && norm_type >= 0 && norm_type <= 1 && group_select_mode >= 0 &&
                  group_select_mode <= 1, "renorm, normType or groupSelectMode");
    op_check(&op, op.e == NULL || op_tensor(&op, 0)->rank >= 1, "a scalar");
    t = op_tensor(&op, 0);
    r = op_tensor(&op, biased >= 0 ? 2 : 1);
    if (op.e != NULL)
        experts = t->dims[t->rank - 1];
    op_check_tiling(&op, op.e == NULL || (r->rank == t->rank && r->dims[r->rank - 1] == k),
                    "yOut has another shape");
    op_check_tiling(&op, experts <= EXPERTS_MAX && group_count > 0 && experts % group_count == 0 &&
                    experts / group_count > 2 &&
                    (experts / group_count + 31) / 32 * 32 * group_count <= EXPERTS_MAX,
                    "the experts can't be split so");
    op_check_tiling(&op, group_count > 0 && k_group >= 1 && k_group <= group_count && k >= 1 &&
                    k <= experts / group_count * k_group, "k or kGroup");
    op_same_dtype(&op, 0, biased >= 0 ? 2 : 1);
    op_same_shape(&op, biased >= 0 ? 2 : 1, biased >= 0 ? 3 : 2);
    if (op.e != NULL) {
        const int64_t numbers[] = { k, k_group, group_count, group_select_mode, norm_type, biased,
                                    biased >= 0 ? 2 : 1, out_flag };
        memcpy(op.e->ints, numbers, sizeof(numbers));
        op.e->reals[0] = factor;
        op.e->reals[1] = eps;
    }
    return op_end(&op, gating_run, workspace_size, executor);
}

/* ---- MoeInitRoutingV2: rows sorted by expert; expandedRowIdx[i * k + j] = where that row went
 * Without capacity (dropPadMode 0). Per expert: running ends (flag 1) or counts (2), INT32. */

static void init_run(struct aclOpExecutor *e)
{
    const struct aclTensor *x = &e->tensors[0];
    const int64_t k = e->tensors[1].dims[1], width = x->dims[1], rows = x->dims[0] * k;
    const int64_t experts = e->ints[0], kept = e->tensors[2].dims[0];
    double *values = tensor_load(x), *ids = tensor_load(&e->tensors[1]);
    double *expanded = take((size_t)(kept * width), sizeof(*expanded));
    double *to = take((size_t)rows, sizeof(*to)), *tokens = take((size_t)experts, sizeof(*tokens));
    int64_t next = 0;

    for (int64_t expert = 0; expert < experts; expert++) {
        for (int64_t i = 0; i < rows; i++) {
            if ((int64_t)ids[i] != expert)
                continue;
            if (next < kept)
                memcpy(expanded + next * width, values + i / k * width,
                       (size_t)width * sizeof(*values));
            to[i] = (double)next++;
            tokens[expert]++;
        }
        if (e->ints[1] == 1)
            tokens[expert] = (double)next;
    }
    if (next != rows)
        standin_fault("%s: an expert's number is not below %lld", e->name, (long long)experts);
    tensor_store(&e->tensors[2], expanded);
    tensor_store(&e->tensors[3], to);
    if (e->ints[1] != 0)
        tensor_store(&e->tensors[4], tokens);
    free(values);
    free(ids);
    free(expanded);
    free(to);
    free(tokens);
}

static void check_init(struct op *op, int64_t expert_num, int64_t kept)
{
    const struct aclTensor *x = op_tensor(op, 0), *ids = op_tensor(op, 1);
    const struct aclTensor *out = op_tensor(op, 2), *to = op_tensor(op, 3);

    op_same_dtype(op, 0, 2);
    if (op->e == NULL)
        return;
    op_check_tiling(op, x->rank == 2 && ids->rank == 2 && ids->dims[0] == x->dims[0] &&
                    out->rank == 2 && out->dims[1] == x->dims[1] && out->dims[0] == kept &&
                    tensor_count(to) == tensor_count(ids) && expert_num > 0,
                    "a tensor has another shape");
}

OPERATOR(MoeInitRoutingV2, const aclTensor *x, const aclTensor *expert_idx, int64_t active_num,
         int64_t expert_capacity, int64_t expert_num, int64_t drop_pad_mode, int64_t count_flag,
         bool before_capacity, const aclTensor *expanded_x, const aclTensor *expanded_row_idx,
         const aclTensor *tokens, const aclTensor *before)
{
    struct op op = OP(MoeInitRoutingV2);
    int64_t all = 0;

    (void)expert_capacity;
    op_in(&op, "x", x, FLOATS);
    op_in(&op, "expertIdx", expert_idx, DT(INT32));
    op_out(&op, "expandedXOut", expanded_x, FLOATS);
    op_out(&op, "expandedRowIdxOut", expanded_row_idx, DT(INT32));
    if (count_flag != 0)
        op_out(&op, "expertTokensCountOrCumsumOut", tokens, DT(INT32));
    op_absent(&op, "expertTokensBeforeCapacityOut", before);
    op_check(&op, drop_pad_mode == 0 && !before_capacity && count_flag >= 0 && count_flag <= 2,
             "dropPadMode or a flag is not imitated here");
    if (op.e != NULL)
        all = tensor_count(op_tensor(&op, 1));
    check_init(&op, expert_num, active_num > 0 && active_num < all ? active_num : all);
    op_check_tiling(&op, op.e == NULL || count_flag == 0 ||
                    tensor_count(op_tensor(&op, 4)) == expert_num, "one count for each expert");
    if (op.e != NULL) {
        op.e->ints[0] = expert_num;
        op.e->ints[1] = count_flag;
    }
    return op_end(&op, init_run, workspace_size, executor);
}

/* V3: the same, with all rows, counts in INT64, no quantisation, all experts active. */
OPERATOR(MoeInitRoutingV3, const aclTensor *x, const aclTensor *expert_idx, const aclTensor *scale,
         const aclTensor *offset, int64_t active_num, int64_t expert_capacity, int64_t expert_num,
         int64_t drop_pad_mode, int64_t tokens_type, bool tokens_flag, int64_t quant_mode,
         const aclIntArray *active_range, int64_t row_idx_type, const aclTensor *expanded_x,
         const aclTensor *expanded_row_idx, const aclTensor *tokens,
         const aclTensor *expanded_scale)
{
    struct op op = OP(MoeInitRoutingV3);
    int64_t all = 0;

    (void)expert_capacity;
    (void)expanded_scale;
    op_in(&op, "x", x, FLOATS);
    op_in(&op, "expertIdx", expert_idx, DT(INT32));
    op_out(&op, "expandedXOut", expanded_x, FLOATS);
    op_out(&op, "expandedRowIdxOut", expanded_row_idx, DT(INT32));
    op_out(&op, "expertTokensCountOrCumsumOut", tokens, DT(INT64));
    op_absent(&op, "scaleOptional", scale);
    op_absent(&op, "offsetOptional", offset);
    op_check(&op, active_range == NULL ||
                  (active_range->count == 2 && active_range->values[0] == 0 &&
                   active_range->values[1] == expert_num), "activeExpertRange");
    op_check(&op, drop_pad_mode == 0 && tokens_type == 1 && tokens_flag && quant_mode == -1 &&
                  row_idx_type == 0, "a mode is not imitated here");
    if (op.e != NULL)
        all = tensor_count(op_tensor(&op, 1));
    op_check(&op, op.e == NULL || active_num == all, "activeNum is not the number of rows");
    check_init(&op, expert_num, all);
    op_check_tiling(&op, op.e == NULL || tensor_count(op_tensor(&op, 4)) == expert_num,
                    "one count for each expert");
    if (op.e != NULL) {
        op.e->ints[0] = expert_num;
        op.e->ints[1] = 2;
    }
    return op_end(&op, init_run, workspace_size, executor);
}

/* ---- MoeFinalizeRoutingV2: out[i] = x1[i] + x2[i] + sum over j of scales[i][j] *
 * (expandedX[where] + bias[expert]), where = expandedRowIdx[i * k + j] (dropPadMode 2) ---- */

static void finalize_run(struct aclOpExecutor *e)
{
    const struct aclTensor *x = &e->tensors[0];
    const int64_t *at = e->ints; /* indices of x1, x2, bias, scales, expertIdx, out; -1: none */
    struct aclTensor *out = &e->tensors[at[5]];
    const int64_t rows = out->dims[0], width = out->dims[1];
    const int64_t k = tensor_count(&e->tensors[1]) / (rows > 0 ? rows : 1);
    double *loaded[5] = { NULL }, *from = tensor_load(x), *where = tensor_load(&e->tensors[1]);
    double *sums = take((size_t)(rows * width), sizeof(*sums));

    for (int i = 0; i < 5; i++)
        loaded[i] = at[i] >= 0 ? tensor_load(&e->tensors[at[i]]) : NULL;
    for (int64_t i = 0; i < rows * width; i++)
        sums[i] = (loaded[0] != NULL ? loaded[0][i] : 0) + (loaded[1] != NULL ? loaded[1][i] : 0);
    for (int64_t i = 0; i < rows * k; i++) {
        const double scale = loaded[3] != NULL ? loaded[3][i] : 1;
        const int64_t row = (int64_t)where[i];
        if (row < 0 || row >= x->dims[0]) {
            standin_fault("%s: row %lld of %lld", e->name, (long long)row, (long long)x->dims[0]);
            break;
        }
        for (int64_t d = 0; d < width; d++) {
            const double bias = loaded[2] != NULL ? loaded[2][(int64_t)loaded[4][i] * width + d]
                                                  : 0;
            sums[i / k * width + d] += scale * (from[row * width + d] + bias);
        }
    }
    tensor_store(out, sums);
    for (int i = 0; i < 5; i++)
        free(loaded[i]);
    free(from);
    free(where);
    free(sums);
}

OPERATOR(MoeFinalizeRoutingV2, const aclTensor *expanded_x, const aclTensor *expanded_row_idx,
         const aclTensor *x1, const aclTensor *x2, const aclTensor *bias, const aclTensor *scales,
         const aclTensor *expert_idx, int64_t drop_pad_mode, const aclTensor *out)
{
    struct op op = OP(MoeFinalizeRoutingV2);
    const struct aclTensor *x, *o;
    int64_t at[6];

    op_in(&op, "expandedX", expanded_x, FLOATS);
    op_in(&op, "expandedRowIdx", expanded_row_idx, DT(INT32));
    at[0] = op_in_optional(&op, "x1", x1, FLOATS);
    at[1] = op_in_optional(&op, "x2", x2, FLOATS);
    at[2] = op_in_optional(&op, "bias", bias, FLOATS);
    at[3] = op_in_optional(&op, "scales", scales, FLOATS);
    at[4] = op_in_optional(&op, "expertIdx", expert_idx, DT(INT32));
    op_out(&op, "out", out, FLOATS);
    op_check(&op, drop_pad_mode == 2, "dropPadMode is not imitated here");
    op_check(&op, x2 == NULL || x1 != NULL, "x2 without x1");
    op_check(&op, bias == NULL || expert_idx != NULL, "bias without expertIdx");
    x = op_tensor(&op, 0);
    at[5] = op.e != NULL ? (int64_t)op.e->tensor_count - 1 : 0;
    o = op_tensor(&op, (unsigned)at[5]);
    op_same_dtype(&op, 0, (unsigned)at[5]);
    op_check_tiling(&op, op.e == NULL || (x->rank == 2 && o->rank == 2 &&
                                          x->dims[1] == o->dims[1] && o->dims[0] > 0 &&
                                          tensor_count(op_tensor(&op, 1)) % o->dims[0] == 0),
                    "a tensor has another shape");
    for (int i = 0; i < 2; i++) {
        if (at[i] >= 0 && op.e != NULL)
            op_same_shape(&op, (unsigned)at[i], (unsigned)at[5]);
    }
    if (op.e != NULL)
        memcpy(op.e->ints, at, sizeof(at));
    return op_end(&op, finalize_run, workspace_size, executor);
}
