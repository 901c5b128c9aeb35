/* tests/cann/ops/grouped.c - products of the rows of each expert with its matrix
 * (ops-transformer, gmm/grouped_matmul): x [M, K], rows sorted by expert; weight [E, K, N], or E
 * of [K, N]; out [M, N].
 *
 * Imitated: one x, one out (splitItem 2 or 3), rows split (groupType 0), no quantisation, no
 * activation. groupListType 0: running ends, 1: counts. Rows that no group has keep what out had.
 */
#include "op.h"

#include <stdlib.h>
#include <string.h>

#define WIDTH_MAX 65536

/* tensors: x, weights.., groupList, out. ints: weight count, groupListType. */
static void grouped_run(struct aclOpExecutor *e)
{
    const unsigned weights = (unsigned)e->ints[0];
    const struct aclTensor *x = &e->tensors[0], *list = &e->tensors[1 + weights];
    struct aclTensor *out = &e->tensors[2 + weights];
    const int64_t rows = x->dims[0], k = x->dims[1], n = out->dims[1];
    double *all = tensor_load(x), *groups = tensor_load(list);
    double *column = take((size_t)k, sizeof(*column));
    int64_t begin = 0;

    for (int64_t g = 0; g < tensor_count(list); g++) {
        const struct aclTensor *w = &e->tensors[weights == 1 ? 1 : 1 + g];
        const int64_t end = (int64_t)groups[g] + (e->ints[1] == 1 ? begin : 0);
        int64_t at[RANK_MAX] = { weights == 1 ? g : 0 };
        if (end < begin || end > rows) {
            standin_fault("%s: group %lld ends at row %lld of %lld", e->name, (long long)g,
                          (long long)end, (long long)rows);
            break;
        }
        for (int64_t j = 0; j < n && end > begin; j++) {
            at[w->rank - 1] = j;
            tensor_line(w, at, w->rank - 2, column);
            for (int64_t i = begin; i < end; i++) {
                const int64_t to[RANK_MAX] = { i, j };
                element_set(out->dtype, out->bytes, tensor_index(out, to),
                            dot(all + i * k, column, k));
            }
        }
        begin = end;
    }
    free(all);
    free(groups);
    free(column);
}

struct grouped {
    const aclTensorList *x, *weight, *out;
    const aclTensor *group_list;
    const void *absent[12];
    int64_t split_item, group_type, group_list_type, act_type;
    bool nz;
};

/* Exact multiples, of the stored matrix: 16 and 16 for 16-bit weights. */
static void check_weight(struct op *op, unsigned i, const struct grouped *g, unsigned weights,
                         unsigned out)
{
    const struct aclTensor *x = op_tensor(op, 0), *w = op_tensor(op, i), *o = op_tensor(op, out);
    const int rank = weights == 1 ? 3 : 2;

    if (op->e == NULL)
        return;
    op_check(op, (w->format == ACL_FORMAT_FRACTAL_NZ) == g->nz, "a weight has the other format");
    op_same_dtype(op, 0, i);
    if (op->e == NULL)
        return;
    op_check_tiling(op, w->rank == rank && w->dims[rank - 2] == x->dims[1] &&
                    w->dims[rank - 1] == o->dims[1], "a weight has another shape");
    if (op->e == NULL)
        return;
    op_check(op, !g->nz || (w->dims[rank - 2] % 16 == 0 && w->dims[rank - 1] % 16 == 0),
             "a dim of an NZ weight is no multiple of 16");
}

static aclnnStatus grouped(struct op *op, const struct grouped *g, uint64_t *workspace_size,
                           aclOpExecutor **executor)
{
    const struct aclTensor *x, *o, *list;
    unsigned weights, xs, outs;

    xs = op_list(op, "x", g->x, FLOATS, false, ROLE_INPUT);
    weights = op_list(op, "weight", g->weight, FLOATS, true, ROLE_INPUT);
    op_in(op, "groupList", g->group_list, DT(INT64));
    outs = op_list(op, "out", g->out, FLOATS, false, ROLE_OUTPUT);
    op_check(op, xs == 1 && outs == 1, "more than one x or out is not imitated here");
    op_check(op, weights <= 128, "more than 128 weights");
    for (size_t i = 0; i < sizeof(g->absent) / sizeof(g->absent[0]); i++)
        op_absent(op, "an optional argument", g->absent[i]);
    op_check(op, (g->split_item == 2 || g->split_item == 3) && g->group_type == 0 &&
                 g->act_type == 0 && (g->group_list_type == 0 || g->group_list_type == 1),
             "splitItem, groupType, groupListType or actType is not imitated here");
    x = op_tensor(op, 0);
    o = op_tensor(op, 2 + weights);
    list = op_tensor(op, 1 + weights);
    op_check_tiling(op, op->e == NULL || (x->rank == 2 && o->rank == 2 && list->rank == 1 &&
                                          x->dims[0] == o->dims[0]), "x or out has another shape");
    op_check_tiling(op, op->e == NULL || (x->dims[1] < WIDTH_MAX && o->dims[1] < WIDTH_MAX),
                    "an inner dim of 65536 or more");
    op_contiguous(op, 0);
    op_contiguous(op, 2 + weights);
    op_same_dtype(op, 0, 2 + weights);
    for (unsigned i = 1; i <= weights && op->e != NULL; i++)
        check_weight(op, i, g, weights, 2 + weights);
    op_check_tiling(op, op->e == NULL || op_tensor(op, 1 + weights)->dims[0] ==
                    (weights == 1 ? op_tensor(op, 1)->dims[0] : (int64_t)weights),
                    "groupList has not one element for each weight");
    if (op->e != NULL) {
        op->e->ints[0] = weights;
        op->e->ints[1] = g->group_list_type;
    }
    return op_end(op, grouped_run, workspace_size, executor);
}

#define GROUPED_PARAMETERS                                                                        \
    const aclTensorList *x, const aclTensorList *weight, const aclTensorList *bias,               \
        const aclTensorList *scale, const aclTensorList *offset,                                  \
        const aclTensorList *antiquant_scale, const aclTensorList *antiquant_offset,              \
        const aclTensorList *per_token_scale, const aclTensor *group_list,                        \
        const aclTensorList *activation_input, const aclTensorList *activation_scale,             \
        const aclTensorList *activation_offset, int64_t split_item, int64_t group_type,           \
        int64_t group_list_type, int64_t act_type
#define GROUPED_RESULTS                                                                           \
    aclTensorList *out, aclTensorList *activation_feature, aclTensorList *dynamic_scale
#define GROUPED(nz_)                                                                              \
    {                                                                                             \
        .x = x, .weight = weight, .out = out, .group_list = group_list,                           \
        .absent = { bias, scale, offset, antiquant_scale, antiquant_offset, per_token_scale,      \
                    activation_input, activation_scale, activation_offset, activation_feature,    \
                    dynamic_scale },                                                              \
        .split_item = split_item, .group_type = group_type, .group_list_type = group_list_type,   \
        .act_type = act_type, .nz = (nz_),                                                        \
    }

OPERATOR(GroupedMatmulV4, GROUPED_PARAMETERS, GROUPED_RESULTS)
{
    struct op op = OP(GroupedMatmulV4);
    const struct grouped g = GROUPED(false);
    return grouped(&op, &g, workspace_size, executor);
}

OPERATOR(GroupedMatmulV5, GROUPED_PARAMETERS, const aclIntArray *tuning, GROUPED_RESULTS)
{
    struct op op = OP(GroupedMatmulV5);
    const struct grouped g = GROUPED(false);
    op_absent(&op, "tuningConfig", tuning);
    return grouped(&op, &g, workspace_size, executor);
}

OPERATOR(GroupedMatmulWeightNz, GROUPED_PARAMETERS, const aclIntArray *tuning,
         int64_t quant_group_size, GROUPED_RESULTS)
{
    struct op op = OP(GroupedMatmulWeightNz);
    const struct grouped g = GROUPED(true);
    op_absent(&op, "tuningConfig", tuning);
    op_check(&op, quant_group_size == 0, "quantGroupSize");
    return grouped(&op, &g, workspace_size, executor);
}
