/* tests/cann/ops/attention.c - attention over a cache (ops-transformer, attention/):
 * out[b][i][h] = sum over j of softmax_j(scale * q . k[j] + pse) v[j], over the keys that i sees.
 *
 *     layout      query and out                 key and value, without a block table
 *     BSH         [B, S, N * D]                 [B, S, KvN * D]
 *     BSND        [B, S, N, D]                  [B, S, KvN, D]
 *     BNSD        [B, N, S, D]                  [B, KvN, S, D]
 *     BNSD_BSND   BNSD, out BSND                BNSD
 *     with one    any                           [blocks, blockSize, KvN * D] or, BNSD only,
 *                                               [blocks, KvN, blockSize, D]
 *
 * A mask's 1 hides. sparseMode 0: the mask is complete, or there is none; 2: i sees j <= i; 3: i
 * sees j <= i + keys - queries; 4: a band about that diagonal; for these the mask must be the fixed
 * 2048 x 2048 matrix. With one query per sequence the mode is ignored. A row that sees nothing is
 * NaN, or zeros when bit 1 of innerPrecise is set. MLA: queryRope and keyRope are further elements
 * of q and k (V3). Not imitated: quantisation, shared prefixes, padding, the log-sum-exp. */
#include "op.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define HEADS_MAX 256
#define WIDTH_MAX 512
#define RATIO_MAX 64
#define SPARSE_MASK 2048

enum layout { LAYOUT_BSH, LAYOUT_BSND, LAYOUT_BNSD, LAYOUT_BNSD_BSND };
enum number {
    N_LAYOUT, N_HEADS, N_KV_HEADS, N_SPARSE, N_PRE, N_NEXT, N_PRECISE, N_BLOCK, N_QUERY_LENS,
    N_MASK, N_PSE, N_TABLE, N_QUERY_ROPE, N_KEY_ROPE, N_OUT
};
/* e->array holds the key lengths, and from N_QUERY_LENS on the query lengths (-1: none). */

static bool layout_of(const char *name, int64_t *layout)
{
    static const char *const names[] = { "BSH", "BSND", "BNSD", "BNSD_BSND" };

    for (int i = 0; name != NULL && i < 4; i++) {
        if (strcmp(name, names[i]) == 0) {
            *layout = i;
            return true;
        }
    }
    return false;
}

/* Of a tensor in a layout with `heads` heads: sizes, and where (b, head, s) begins. */
static int64_t tokens_of(const struct aclTensor *t, int64_t layout)
{
    return t->dims[layout >= LAYOUT_BNSD ? 2 : 1];
}

static int64_t width_of(const struct aclTensor *t, int64_t heads)
{
    return t->rank == 3 ? t->dims[2] / heads : t->dims[3];
}

static int64_t place(const struct aclTensor *t, int64_t layout, int64_t heads, int64_t b, int64_t h,
                     int64_t s)
{
    const int64_t width = width_of(t, heads);
    int64_t at[RANK_MAX] = { b, s, h };

    if (t->rank == 3)
        at[2] = h * width;
    else if (layout >= LAYOUT_BNSD) {
        at[1] = h;
        at[2] = s;
    }
    return tensor_index(t, at);
}

/* Where key (b, kv head, j) begins; -1 after a fault. */
static int64_t place_key(const struct aclOpExecutor *e, const struct aclTensor *t, int64_t b,
                         int64_t h, int64_t j)
{
    const int64_t size = e->ints[N_BLOCK], heads = e->ints[N_KV_HEADS];
    const struct aclTensor *table;
    int64_t at[RANK_MAX] = { b, j / (size > 0 ? size : 1) }, block;

    if (e->ints[N_TABLE] < 0)
        return place(t, e->ints[N_LAYOUT], heads, b, h, j);
    table = &e->tensors[e->ints[N_TABLE]];
    if (at[1] >= table->dims[1]) {
        standin_fault("%s: key %lld is behind the block table", e->name, (long long)j);
        return -1;
    }
    block = (int64_t)element_get(table->dtype, table->bytes, tensor_index(table, at));
    if (block < 0 || block >= t->dims[0]) {
        standin_fault("%s: block %lld of %lld", e->name, (long long)block, (long long)t->dims[0]);
        return -1;
    }
    return place(t, t->rank == 3 ? LAYOUT_BSH : LAYOUT_BNSD, heads, block, h, j % size);
}

static void load(const struct aclTensor *t, int64_t index, int64_t count, double *out)
{
    for (int64_t i = 0; i < count; i++)
        out[i] = element_get(t->dtype, t->bytes, index + i);
}

/* An element of a tensor that broadcasts to [B, N, queries, keys]; of rank 2 to 4. */
static double spread(const struct aclTensor *t, int64_t b, int64_t h, int64_t i, int64_t j)
{
    const int64_t full[4] = { b, h, i, j };
    int64_t at[RANK_MAX] = { 0 };

    for (int d = 0; d < t->rank; d++) {
        const int64_t index = t->rank == 3 && d == 0 ? b : full[4 - t->rank + d];
        at[d] = t->dims[d] == 1 ? 0 : index;
    }
    return element_get(t->dtype, t->bytes, tensor_index(t, at));
}

static bool sees(const struct aclOpExecutor *e, int64_t b, int64_t h, int64_t i, int64_t j,
                 int64_t queries, int64_t keys)
{
    const int64_t mode = queries == 1 ? 0 : e->ints[N_SPARSE];
    const int64_t diagonal = i + keys - queries;

    switch (mode) {
    case 2: return j <= i;
    case 3: return j <= diagonal;
    case 4: return j <= diagonal + e->ints[N_NEXT] && j >= diagonal - e->ints[N_PRE];
    default:
        return e->ints[N_MASK] < 0 || spread(&e->tensors[e->ints[N_MASK]], b, h, i, j) == 0;
    }
}

/* q, k, v: the rows of one query and of all keys; the result goes to v_out. */
static void attend(const struct aclOpExecutor *e, const double *q, const double *k,
                   const double *v, int64_t q_width, int64_t v_width, int64_t b, int64_t h,
                   int64_t i, int64_t queries, int64_t keys, double *weights, double *v_out)
{
    double top = -INFINITY, sum = 0;

    for (int64_t j = 0; j < keys; j++) {
        weights[j] = -INFINITY;
        if (!sees(e, b, h, i, j, queries, keys))
            continue;
        weights[j] = dot(q, k + j * q_width, q_width) * e->reals[0];
        if (e->ints[N_PSE] >= 0)
            weights[j] += spread(&e->tensors[e->ints[N_PSE]], b, h, i, j);
        top = fmax(top, weights[j]);
    }
    for (int64_t d = 0; d < v_width; d++)
        v_out[d] = top == -INFINITY && (e->ints[N_PRECISE] & 2) == 0 ? (double)NAN : 0;
    if (top == -INFINITY)
        return;
    for (int64_t j = 0; j < keys; j++)
        sum += weights[j] = exp(weights[j] - top);
    for (int64_t j = 0; j < keys; j++) {
        for (int64_t d = 0; d < v_width && weights[j] != 0; d++)
            v_out[d] += weights[j] / sum * v[j * v_width + d];
    }
}

/* One sequence, one head. */
static void attend_head(const struct aclOpExecutor *e, int64_t b, int64_t h, int64_t queries,
                        int64_t keys)
{
    const struct aclTensor *q = &e->tensors[0], *k = &e->tensors[1], *v = &e->tensors[2];
    const struct aclTensor *out = &e->tensors[e->ints[N_OUT]];
    const int64_t heads = e->ints[N_HEADS], kv_heads = e->ints[N_KV_HEADS];
    const int64_t kv = h / (heads / kv_heads), layout = e->ints[N_LAYOUT];
    const int64_t width = width_of(q, heads), v_width = width_of(v, kv_heads);
    const struct aclTensor *qr = e->ints[N_QUERY_ROPE] >= 0 ? &e->tensors[e->ints[N_QUERY_ROPE]]
                                                            : NULL;
    const struct aclTensor *kr = qr != NULL ? &e->tensors[e->ints[N_KEY_ROPE]] : NULL;
    const int64_t rope = qr != NULL ? width_of(qr, heads) : 0, all = width + rope;
    const int64_t out_layout = layout == LAYOUT_BNSD_BSND ? LAYOUT_BSND : layout;
    double *ks = take((size_t)(keys * all), 8), *vs = take((size_t)(keys * v_width), 8);
    double *weights = take((size_t)keys, 8), *row = take((size_t)all, 8);
    double *result = take((size_t)v_width, 8);
    bool good = true;

    for (int64_t j = 0; j < keys && good; j++) {
        const int64_t at = place_key(e, k, b, kv, j), v_at = place_key(e, v, b, kv, j);
        good = at >= 0 && v_at >= 0;
        if (!good)
            break;
        load(k, at, width, ks + j * all);
        load(v, v_at, v_width, vs + j * v_width);
        if (kr != NULL)
            load(kr, place_key(e, kr, b, kv, j), rope, ks + j * all + width);
    }
    for (int64_t i = 0; i < queries && good; i++) {
        load(q, place(q, layout, heads, b, h, i), width, row);
        if (qr != NULL)
            load(qr, place(qr, layout, heads, b, h, i), rope, row + width);
        attend(e, row, ks, vs, all, v_width, b, h, i, queries, keys, weights, result);
        for (int64_t d = 0; d < v_width; d++)
            element_set(out->dtype, out->bytes, place(out, out_layout, heads, b, h, i) + d,
                        result[d]);
    }
    free(ks);
    free(vs);
    free(weights);
    free(row);
    free(result);
}

/* The length of sequence b: of a list with one for all, or one for each. */
static int64_t length(const int64_t *lens, int64_t count, int64_t b, int64_t fallback)
{
    return count == 0 ? fallback : lens[count == 1 ? 0 : b];
}

static void attention_run(struct aclOpExecutor *e)
{
    const struct aclTensor *q = &e->tensors[0], *k = &e->tensors[1];
    const int64_t layout = e->ints[N_LAYOUT], query_from = e->ints[N_QUERY_LENS];
    const int64_t kv_count = query_from >= 0 ? query_from : (int64_t)e->array_count;
    const int64_t query_count = query_from >= 0 ? (int64_t)e->array_count - query_from : 0;

    for (int64_t b = 0; b < q->dims[0]; b++) {
        const int64_t queries = length(e->array + (query_from >= 0 ? query_from : 0), query_count,
                                       b, tokens_of(q, layout));
        const int64_t keys = length(e->array, kv_count, b, tokens_of(k, layout));
        for (int64_t h = 0; h < e->ints[N_HEADS]; h++)
            attend_head(e, b, h, queries, keys);
    }
}

/* ---- the first phases ---- */

struct attention {
    const aclTensor *query, *key, *value, *pse, *mask, *table, *query_rope, *key_rope, *out;
    const aclIntArray *query_lens, *kv_lens;
    int64_t heads, kv_heads, pre, next, sparse, precise, block_size;
    double scale;
    const char *layout;
};

static void check_sizes(struct op *op, const struct attention *a, int64_t layout)
{
    const struct aclTensor *q = op_tensor(op, 0), *k = op_tensor(op, 1);
    const int rank = layout == LAYOUT_BSH ? 3 : 4;
    int64_t width;

    if (op->e == NULL)
        return;
    op_check_tiling(op, a->heads > 0 && a->heads <= HEADS_MAX && a->kv_heads > 0 &&
                    a->heads % a->kv_heads == 0 && a->heads / a->kv_heads <= RATIO_MAX,
                    "the numbers of heads");
    if (op->e == NULL)
        return;
    op_check_tiling(op, q->rank == rank && (a->table != NULL || k->rank == rank),
                    "a tensor is not of the layout");
    if (op->e == NULL)
        return;
    width = width_of(q, a->heads);
    op_check_tiling(op, width % 16 == 0 && width > 0 && width <= WIDTH_MAX &&
                    width_of(k, a->kv_heads) == width, "the width of a head");
}

static void check_pages(struct op *op, const struct attention *a, int64_t layout)
{
    const struct aclTensor *q = op_tensor(op, 0), *k = op_tensor(op, 1);
    int64_t queries, size;

    if (op->e == NULL || a->table == NULL)
        return;
    queries = tokens_of(q, layout);
    size = a->block_size;
    op_check_tiling(op, a->kv_lens != NULL, "paged keys need actualSeqLengthsKv");
    op_check_tiling(op, queries > 1 ? size == 128 || size == 256 || size == 384 || size == 512
                                    : size > 0 && size <= 512 && size % 16 == 0,
                    "blockSize");
    op_check_tiling(op, op->e == NULL ||
                    (k->rank == 3 ? k->dims[1] == size && k->dims[2] <= 65535
                                  : k->rank == 4 && layout == LAYOUT_BNSD && k->dims[2] == size &&
                                        k->dims[1] == a->kv_heads),
                    "paged keys are neither [blocks, blockSize, N * D] nor, with BNSD, "
                    "[blocks, N, blockSize, D]");
}

static void check_mask(struct op *op, const struct attention *a, int index)
{
    const struct aclTensor *mask = op_tensor(op, (unsigned)(index >= 0 ? index : 0));

    op_check_tiling(op, a->sparse >= 0 && a->sparse <= 4, "sparseMode");
    op_check_tiling(op, a->sparse == 0 || index >= 0, "sparseMode needs a mask");
    op_check_tiling(op, op->e == NULL || a->sparse < 2 ||
                    (mask->dims[mask->rank - 1] == SPARSE_MASK &&
                     mask->dims[mask->rank - 2] == SPARSE_MASK), "the mask is not 2048 x 2048");
}

static aclnnStatus attention(struct op *op, const struct attention *a, uint64_t *workspace_size,
                             aclOpExecutor **executor)
{
    const uint64_t masks = DT(BOOL) | DT(INT8) | DT(UINT8);
    int64_t layout = 0, numbers[N_OUT + 1];
    bool has_queries;

    op_check(op, layout_of(a->layout, &layout), "inputLayout is not imitated here");
    op_in(op, "query", a->query, HALVES);
    op_in(op, "key", a->key, HALVES);
    op_in(op, "value", a->value, HALVES);
    op_same_dtype(op, 0, 1);
    op_same_dtype(op, 0, 2);
    for (unsigned i = 0; i < 3; i++)
        op_contiguous(op, i);
    numbers[N_MASK] = op_in_optional(op, "attenMask", a->mask, masks);
    numbers[N_PSE] = op_in_optional(op, "pseShift", a->pse, HALVES);
    numbers[N_TABLE] = op_in_optional(op, "blockTable", a->table, DT(INT32));
    numbers[N_QUERY_ROPE] = op_in_optional(op, "queryRope", a->query_rope, HALVES);
    numbers[N_KEY_ROPE] = op_in_optional(op, "keyRope", a->key_rope, HALVES);
    op_check(op, (a->query_rope == NULL) == (a->key_rope == NULL), "one of the ropes alone");
    op_out(op, "attentionOut", a->out, HALVES);
    numbers[N_OUT] = op->e != NULL ? (int64_t)op->e->tensor_count - 1 : 0;
    op_same_dtype(op, 0, (unsigned)numbers[N_OUT]);
    op_contiguous(op, (unsigned)numbers[N_OUT]);
    check_sizes(op, a, layout);
    check_pages(op, a, layout);
    check_mask(op, a, (int)numbers[N_MASK]);
    op_check_tiling(op, op->e == NULL || tensor_count(op_tensor(op, (unsigned)numbers[N_OUT])) ==
                    tensor_count(op_tensor(op, 0)) / width_of(op_tensor(op, 0), a->heads) *
                        width_of(op_tensor(op, 2), a->kv_heads), "attentionOut's shape");
    has_queries = op_array(op, "actualSeqLengths", a->query_lens);
    numbers[N_QUERY_LENS] = -1;
    if (op->e != NULL && (has_queries || a->kv_lens != NULL)) {
        const uint64_t first = a->kv_lens != NULL ? a->kv_lens->count : 0;
        const uint64_t second = has_queries ? a->query_lens->count : 0;
        free(op->e->array);
        op->e->array = take(first + second, sizeof(*op->e->array));
        op->e->array_count = first + second;
        for (uint64_t i = 0; i < first + second; i++)
            op->e->array[i] = i < first ? a->kv_lens->values[i] : a->query_lens->values[i - first];
        numbers[N_QUERY_LENS] = has_queries ? (int64_t)first : -1;
    }
    numbers[N_LAYOUT] = layout;
    numbers[N_HEADS] = a->heads;
    numbers[N_KV_HEADS] = a->kv_heads;
    numbers[N_SPARSE] = a->sparse;
    numbers[N_PRE] = a->pre;
    numbers[N_NEXT] = a->next;
    numbers[N_PRECISE] = a->precise;
    numbers[N_BLOCK] = a->block_size;
    if (op->e != NULL) {
        memcpy(op->e->ints, numbers, sizeof(numbers));
        op->e->reals[0] = a->scale;
    }
    return op_end(op, attention_run, workspace_size, executor);
}

/* The one tensor of a list. */
static const aclTensor *only(const aclTensorList *list)
{
    return list != NULL && list->magic == LIST_MAGIC && list->count == 1 ? list->tensors[0] : NULL;
}

#define FUSED_TENSORS                                                                             \
    const aclTensor *query, const aclTensorList *key, const aclTensorList *value,                 \
        const aclTensor *pse, const aclTensor *mask, const aclIntArray *query_lens,               \
        const aclIntArray *kv_lens, const aclTensor *deq1, const aclTensor *quant1,               \
        const aclTensor *deq2, const aclTensor *quant2, const aclTensor *offset2,                 \
        const aclTensor *anti_scale, const aclTensor *anti_offset, const aclTensor *table,        \
        const aclTensor *query_padding, const aclTensor *kv_padding, const aclTensor *key_scale,  \
        const aclTensor *key_offset, const aclTensor *value_scale, const aclTensor *value_offset, \
        const aclTensor *key_prefix, const aclTensor *value_prefix,                               \
        const aclIntArray *prefix_len
#define FUSED_NUMBERS                                                                             \
    int64_t heads, double scale, int64_t pre, int64_t next, char *layout, int64_t kv_heads,       \
        int64_t sparse, int64_t precise, int64_t block_size, int64_t antiquant_mode,              \
        bool lse_flag, int64_t key_mode, int64_t value_mode, const aclTensor *out,                \
        const aclTensor *lse
#define FUSED_ABSENT                                                                              \
    {                                                                                             \
        const void *const absent[] = { deq1, quant1, deq2, quant2, offset2, anti_scale,           \
                                       anti_offset, query_padding, kv_padding, key_scale,         \
                                       key_offset, value_scale, value_offset, key_prefix,         \
                                       value_prefix, prefix_len, lse };                           \
        for (size_t i = 0; i < sizeof(absent) / sizeof(absent[0]); i++)                           \
            op_absent(&op, "an optional argument", absent[i]);                                    \
        op_check(&op, antiquant_mode == 0 && key_mode == 0 && value_mode == 0 && !lse_flag,       \
                 "a mode is not imitated here");                                                  \
    }
#define FUSED(query_rope_, key_rope_)                                                             \
    {                                                                                             \
        .query = query, .key = only(key), .value = only(value), .pse = pse, .mask = mask,         \
        .table = table, .query_rope = (query_rope_), .key_rope = (key_rope_), .out = out,         \
        .query_lens = query_lens, .kv_lens = kv_lens, .heads = heads,                             \
        .kv_heads = kv_heads != 0 ? kv_heads : heads, .pre = pre, .next = next,                   \
        .sparse = sparse, .precise = precise, .block_size = block_size, .scale = scale,           \
        .layout = layout,                                                                         \
    }

OPERATOR(FusedInferAttentionScoreV2, FUSED_TENSORS, FUSED_NUMBERS)
{
    struct op op = OP(FusedInferAttentionScoreV2);
    const struct attention a = FUSED(NULL, NULL);
    FUSED_ABSENT
    return attention(&op, &a, workspace_size, executor);
}

OPERATOR(FusedInferAttentionScoreV3, FUSED_TENSORS, const aclTensor *query_rope,
         const aclTensor *key_rope, const aclTensor *key_rope_scale, FUSED_NUMBERS)
{
    struct op op = OP(FusedInferAttentionScoreV3);
    const struct attention a = FUSED(query_rope, key_rope);
    FUSED_ABSENT
    op_absent(&op, "keyRopeAntiquantScale", key_rope_scale);
    return attention(&op, &a, workspace_size, executor);
}

/* Decode only: one query per sequence. */
OPERATOR(IncreFlashAttentionV4, const aclTensor *query, const aclTensorList *key,
         const aclTensorList *value, const aclTensor *pse, const aclTensor *mask,
         const aclIntArray *kv_lens, const aclTensor *deq1, const aclTensor *quant1,
         const aclTensor *deq2, const aclTensor *quant2, const aclTensor *offset2,
         const aclTensor *anti_scale, const aclTensor *anti_offset, const aclTensor *table,
         const aclTensor *kv_padding, int64_t heads, double scale, char *layout, int64_t kv_heads,
         int64_t block_size, int64_t precise, const aclTensor *out)
{
    struct op op = OP(IncreFlashAttentionV4);
    const void *const absent[] = { deq1, quant1, deq2, quant2, offset2, anti_scale, anti_offset,
                                   kv_padding };
    const struct attention a = {
        .query = query, .key = only(key), .value = only(value), .pse = pse, .mask = mask,
        .table = table, .out = out, .kv_lens = kv_lens, .heads = heads,
        .kv_heads = kv_heads != 0 ? kv_heads : heads, .precise = precise,
        .block_size = block_size, .scale = scale, .layout = layout,
    };
    int64_t form = 0;

    for (size_t i = 0; i < sizeof(absent) / sizeof(absent[0]); i++)
        op_absent(&op, "an optional argument", absent[i]);
    op_check(&op, query == NULL || query->rank < 3 || !layout_of(layout, &form) ||
                  tokens_of(query, form) == 1, "more than one query");
    return attention(&op, &a, workspace_size, executor);
}
