/* tests/cann/ops/rope.c - rotary embeddings (ops-transformer, posembedding/): out = x * cos +
 * turned(x) * sin, where turned swaps the elements of each pair and negates the first.
 *
 *     half         pairs are (i, i + D/2)
 *     interleave   pairs are (2 i, 2 i + 1) */
#include "op.h"

#include <stdlib.h>
#include <string.h>

enum { MODE_HALF, MODE_INTERLEAVE };

static void rotate(struct aclTensor *x, struct aclTensor *out, const struct aclTensor *cosine,
                   const struct aclTensor *sine, int64_t mode)
{
    const int64_t width = x->dims[3], count = tensor_count(x);
    double *values = tensor_load(x), *turned = take((size_t)count, sizeof(*turned));
    double *c = tensor_load_like(cosine, x), *s = tensor_load_like(sine, x);

    for (int64_t i = 0; i < count; i++) {
        const int64_t d = i % width;
        const bool first = mode == MODE_HALF ? d < width / 2 : d % 2 == 0;
        const int64_t distance = mode == MODE_HALF ? width / 2 : 1;
        turned[i] = first ? -values[i + distance] : values[i - distance];
    }
    for (int64_t i = 0; i < count; i++)
        values[i] = values[i] * c[i] + turned[i] * s[i];
    tensor_store(out, values);
    free(values);
    free(turned);
    free(c);
    free(s);
}

static void rotary_run(struct aclOpExecutor *e)
{
    rotate(&e->tensors[0], &e->tensors[3], &e->tensors[1], &e->tensors[2], e->ints[0]);
}

/* cos and sin are 1 or x's size in the outer dims; the documents list which of them go together. */
static void check_angles(struct op *op, unsigned x, unsigned angles)
{
    const struct aclTensor *t = op_tensor(op, x), *a = op_tensor(op, angles);
    bool fits = t->rank == 4 && a->rank == 4 && a->dims[3] == t->dims[3];

    for (int i = 0; fits && i < 3; i++)
        fits = a->dims[i] == 1 || a->dims[i] == t->dims[i];
    op_check_tiling(op, fits, "cos or sin has another shape");
}

OPERATOR(RotaryPositionEmbedding, const aclTensor *x, const aclTensor *cosine,
         const aclTensor *sine, int64_t mode, aclTensor *out)
{
    struct op op = OP(RotaryPositionEmbedding);
    const struct aclTensor *t;

    op_in(&op, "x", x, FLOATS);
    op_in(&op, "cos", cosine, FLOATS);
    op_in(&op, "sin", sine, FLOATS);
    op_out(&op, "out", out, FLOATS);
    for (unsigned i = 1; i < 4; i++)
        op_same_dtype(&op, 0, i);
    op_same_shape(&op, 0, 3);
    op_same_shape(&op, 1, 2);
    op_contiguous(&op, 3);
    check_angles(&op, 0, 1);
    t = op_tensor(&op, 0);
    op_check_tiling(&op, op.e == NULL || (t->dims[3] % 2 == 0 && t->dims[3] <= 1024),
                    "the last dim is odd, or above 1024");
    t = op_tensor(&op, 0);
    op_check_tiling(&op, op.e == NULL || mode == MODE_INTERLEAVE ||
                    (t->dims[0] < 1000 && t->dims[2] < 1000), "a dim of 1000 or more");
    op_check(&op, mode == MODE_HALF || mode == MODE_INTERLEAVE, "the mode is not imitated here");
    if (op.e != NULL)
        op.e->ints[0] = mode;
    return op_end(&op, rotary_run, workspace_size, executor);
}

static void apply_run(struct aclOpExecutor *e)
{
    for (int i = 0; i < 2; i++)
        rotate(&e->tensors[i], &e->tensors[i], &e->tensors[2], &e->tensors[3], e->ints[0]);
}

/* layout 1 BSND, 2 SBND, 3 BNSD: they differ only in the dim that cos and sin lack. */
static aclnnStatus apply(struct op *op, aclTensor *query, aclTensor *key, const aclTensor *cosine,
                         const aclTensor *sine, int64_t layout, const char *mode,
                         uint64_t *workspace_size, aclOpExecutor **executor)
{
    const int heads = layout == 3 ? 1 : 2;

    op_inout(op, "queryRef", query, FLOATS);
    op_inout(op, "keyRef", key, FLOATS);
    op_in(op, "cos", cosine, FLOATS);
    op_in(op, "sin", sine, FLOATS);
    for (unsigned i = 1; i < 4; i++)
        op_same_dtype(op, 0, i);
    op_same_shape(op, 2, 3);
    op_check(op, layout >= 1 && layout <= 3, "the layout is unknown");
    op_check(op, mode != NULL && (strcmp(mode, "half") == 0 || strcmp(mode, "interleave") == 0),
             "the mode is not imitated here");
    check_angles(op, 0, 2);
    check_angles(op, 1, 2);
    op_check(op, op->e == NULL || op_tensor(op, 2)->dims[heads] == 1, "cos has heads");
    op_check(op, op->e == NULL || op_tensor(op, 0)->dims[3] == 128, "the last dim is not 128");
    if (op->e != NULL)
        op->e->ints[0] = mode == NULL || strcmp(mode, "half") == 0 ? MODE_HALF : MODE_INTERLEAVE;
    return op_end(op, apply_run, workspace_size, executor);
}

OPERATOR(ApplyRotaryPosEmb, aclTensor *query, aclTensor *key, const aclTensor *cosine,
         const aclTensor *sine, int64_t layout)
{
    struct op op = OP(ApplyRotaryPosEmb);
    return apply(&op, query, key, cosine, sine, layout, "half", workspace_size, executor);
}

OPERATOR(ApplyRotaryPosEmbV2, aclTensor *query, aclTensor *key, const aclTensor *cosine,
         const aclTensor *sine, int64_t layout, char *mode)
{
    struct op op = OP(ApplyRotaryPosEmbV2);
    return apply(&op, query, key, cosine, sine, layout, mode, workspace_size, executor);
}
