/* device/operands.c - see operands.h. */
#include "device/operands.h"

#include <assert.h>
#include <stddef.h>

struct list {
    struct op_operand *operands;
    uint32_t count;
};

static void add(struct list *list, const char *name, const void *pointer, uint64_t size_bytes)
{
    if (pointer == NULL && size_bytes == 0)
        return;
    assert(pointer != NULL);
    assert(list->count < OP_OPERANDS_MAX);
    list->operands[list->count++] = (struct op_operand){ name, pointer, size_bytes };
}

/* Rows of `width` 4-byte elements, `stride` elements apart. */
static void add_rows(struct list *list, const char *name, const void *pointer, uint64_t row_count,
                     uint64_t stride, uint64_t width)
{
    add(list, name, pointer, ((row_count - 1) * stride + width) * 4);
}

static void add_matrix(struct list *list, const char *name, const void *pointer, enum dtype dtype,
                       uint64_t element_count)
{
    uint64_t size_bytes = 0;
    const bool whole = dtype_bytes(dtype, element_count, &size_bytes);

    assert(whole);
    (void)whole;
    add(list, name, pointer, size_bytes);
}

static void list_matmul(struct list *list, const struct op_matmul *op)
{
    const uint64_t last = op->batch_count - 1; /* strides are ignored when it is 0 */

    add_rows(list, "out", op->out, op->row_count, op->out_row_stride,
             last * op->out_batch_stride + op->n_count);
    add_rows(list, "x", op->x, op->row_count, op->x_row_stride,
             last * op->x_batch_stride + op->k_count);
    add_matrix(list, "weight", op->weight, op->weight_dtype,
               (uint64_t)op->batch_count * op->n_count * op->k_count);
    if (op->bias != NULL)
        add(list, "bias", op->bias, (uint64_t)op->n_count * 4);
}

/* Values are a part of their keys. */
static bool is_latent(const struct op_attention *op)
{
    return op->v_cache == op->k_cache && op->kv_head_count == 1;
}

static void list_attention(struct list *list, const struct op_attention *op)
{
    add_rows(list, "out", op->out, op->row_count, op->out_row_stride,
             (uint64_t)op->head_count * op->v_width);
    add_rows(list, "q", op->q, op->row_count, op->q_row_stride,
             (uint64_t)op->head_count * op->k_width);
    add_matrix(list, "k_cache", op->k_cache, op->cache_dtype,
               (uint64_t)op->kv_head_count * op->k_width);
    add_matrix(list, "v_cache", op->v_cache, op->cache_dtype,
               is_latent(op) ? op->k_width : (uint64_t)op->kv_head_count * op->v_width);
    add(list, "pages", op->pages, (uint64_t)op->page_count_max * 4);
    add(list, "sequences", op->sequences, (uint64_t)op->row_count * 4);
    add(list, "positions", op->positions, (uint64_t)op->row_count * 4);
    if (op->sinks != NULL)
        add(list, "sinks", op->sinks, (uint64_t)op->head_count * 4);
}

static void list_route(struct list *list, const struct op_route *op)
{
    add(list, "ids", op->ids, (uint64_t)op->row_count * op->top_k * 4);
    add(list, "weights", op->weights, (uint64_t)op->row_count * op->top_k * 4);
    add(list, "logits", op->logits, (uint64_t)op->row_count * op->expert_count * 4);
    if (op->correction_bias != NULL)
        add(list, "correction_bias", op->correction_bias, (uint64_t)op->expert_count * 4);
}

static void list_moe(struct list *list, const struct op_moe *op)
{
    const uint64_t matrix = (uint64_t)op->expert_count * op->width * op->ffn_width;

    add_rows(list, "out", op->out, op->row_count, op->out_row_stride, op->width);
    add_rows(list, "x", op->x, op->row_count, op->x_row_stride, op->width);
    add(list, "ids", op->ids, (uint64_t)op->row_count * op->top_k * 4);
    add(list, "weights", op->weights, (uint64_t)op->row_count * op->top_k * 4);
    if (op->experts == NULL) {
        add_matrix(list, "w13", op->w13, op->weight_dtype, 2 * matrix);
        add_matrix(list, "w2", op->w2, op->down_dtype, matrix);
    } else {
        add(list, "experts", op->experts, op->expert_list_count * sizeof(*op->experts));
    }
    if (op->w13_bias != NULL)
        add(list, "w13_bias", op->w13_bias, (uint64_t)op->expert_count * 2 * op->ffn_width * 4);
    if (op->w2_bias != NULL)
        add(list, "w2_bias", op->w2_bias, (uint64_t)op->expert_count * op->width * 4);
    if (op->w13_order != NULL)
        add(list, "w13_order", op->w13_order, (uint64_t)op->expert_count * op->width * 4);
    if (op->w2_order != NULL)
        add(list, "w2_order", op->w2_order, (uint64_t)op->expert_count * op->ffn_width * 4);
    add(list, "scratch", op->scratch,
        op_moe_scratch_bytes(op->row_count, op->top_k, op->expert_count, op->width,
                             op->ffn_width));
}

static void list_small(struct list *list, const struct op *op)
{
    switch (op->kind) {
    case OP_EMBED:
        add_rows(list, "out", op->embed.out, op->embed.row_count, op->embed.out_row_stride,
                 op->embed.width);
        add_matrix(list, "table", op->embed.table, op->embed.table_dtype, op->embed.width);
        add(list, "ids", op->embed.ids, (uint64_t)op->embed.row_count * 4);
        break;
    case OP_RMS_NORM: {
        const struct op_rms_norm *norm = &op->rms_norm;
        const uint64_t width = (uint64_t)norm->group_count * norm->width;
        add_rows(list, "out", norm->out, norm->row_count, norm->out_row_stride, width);
        add_rows(list, "x", norm->x, norm->row_count, norm->x_row_stride, width);
        add(list, "weight", norm->weight, (uint64_t)norm->width * 4);
        break;
    }
    case OP_ROPE_TABLE: {
        const struct op_rope_table *rope = &op->rope_table;
        add(list, "table", rope->table, (uint64_t)rope->row_count * rope->pair_count * 8);
        add(list, "positions", rope->positions, (uint64_t)rope->row_count * 4);
        add(list, "frequencies", rope->frequencies, (uint64_t)rope->pair_count * 4);
        break;
    }
    case OP_ROPE: {
        const struct op_rope *rope = &op->rope;
        add_rows(list, "x", rope->x, rope->row_count, rope->row_stride,
                 (rope->head_count - 1) * rope->head_stride + 2 * (uint64_t)rope->pair_count);
        add(list, "table", rope->table, (uint64_t)rope->row_count * rope->pair_count * 8);
        break;
    }
    case OP_KV_WRITE:
        add_matrix(list, "cache", op->kv_write.cache, op->kv_write.cache_dtype,
                   (uint64_t)op->kv_write.head_count * op->kv_write.width);
        add_rows(list, "x", op->kv_write.x, op->kv_write.row_count, op->kv_write.x_row_stride,
                 (uint64_t)op->kv_write.head_count * op->kv_write.width);
        add(list, "slots", op->kv_write.slots, (uint64_t)op->kv_write.row_count * 4);
        break;
    case OP_SILU_MUL:
        add_rows(list, "out", op->silu_mul.out, op->silu_mul.row_count,
                 op->silu_mul.out_row_stride, op->silu_mul.width);
        add_rows(list, "x", op->silu_mul.x, op->silu_mul.row_count, op->silu_mul.x_row_stride,
                 2 * (uint64_t)op->silu_mul.width);
        break;
    case OP_SCALE:
        add_rows(list, "out", op->scale.out, op->scale.row_count, op->scale.out_row_stride,
                 op->scale.width);
        add_rows(list, "x", op->scale.x, op->scale.row_count, op->scale.x_row_stride,
                 op->scale.width);
        if (op->scale.row_factors != NULL)
            add(list, "row_factors", op->scale.row_factors, (uint64_t)op->scale.row_count * 4);
        break;
    case OP_GATHER_ROWS:
        add_rows(list, "out", op->gather_rows.out, op->gather_rows.row_count,
                 op->gather_rows.out_row_stride, op->gather_rows.width);
        add(list, "x", op->gather_rows.x, (uint64_t)op->gather_rows.width * 4);
        add(list, "rows", op->gather_rows.rows, (uint64_t)op->gather_rows.row_count * 4);
        break;
    case OP_GATHER_COLUMNS: {
        const struct op_gather_columns *gather = &op->gather_columns;
        add_rows(list, "out", gather->out, gather->row_count, gather->out_row_stride,
                 gather->width);
        add_rows(list, "x", gather->x, gather->row_count, gather->x_row_stride, gather->x_width);
        add(list, "columns", gather->columns, (uint64_t)gather->width * 4);
        break;
    }
    case OP_SOFT_CAP:
        add_rows(list, "x", op->soft_cap.x, op->soft_cap.row_count, op->soft_cap.row_stride,
                 op->soft_cap.width);
        break;
    default:
        assert(!"an op without a list of operands");
    }
}

uint32_t device__operands(const struct op *op, struct op_operand operands[OP_OPERANDS_MAX])
{
    struct list list = { operands, 0 };

    if (op_row_count(op) == 0)
        return 0;
    switch (op->kind) {
    case OP_MATMUL: list_matmul(&list, &op->matmul); break;
    case OP_ATTENTION: list_attention(&list, &op->attention); break;
    case OP_ROUTE: list_route(&list, &op->route); break;
    case OP_MOE: list_moe(&list, &op->moe); break;
    default: list_small(&list, op);
    }
    return list.count;
}

static bool is_whole_blocks(enum dtype dtype, uint64_t count)
{
    return count % dtype_info(dtype)->block_elements == 0;
}

static bool is_cache_dtype(enum dtype dtype)
{
    return dtype == DTYPE_F32 || dtype == DTYPE_F16 || dtype == DTYPE_Q8_0;
}

static bool is_whole_strides(enum dtype dtype, struct op_cache_strides strides)
{
    return is_whole_blocks(dtype, strides.page) && is_whole_blocks(dtype, strides.head) &&
           is_whole_blocks(dtype, strides.slot);
}

/* Whether nothing lies where something else does: heads within slots, or slots within heads. */
static bool is_cache_order(struct op_cache_strides strides, uint64_t head_count,
                           uint64_t page_size, uint64_t width)
{
    if (strides.head >= page_size * strides.slot)
        return strides.slot >= width && strides.page >= head_count * strides.head;
    return (head_count == 1 || strides.head >= width) &&
           strides.slot >= (head_count - 1) * strides.head + width &&
           strides.page >= page_size * strides.slot;
}

static void assert_attention(const struct op_attention *op)
{
    assert(op->head_count > 0 && op->kv_head_count > 0);
    assert(op->head_count % op->kv_head_count == 0);
    assert(op->k_width > 0 && op->v_width > 0);
    assert(!op->chunked || op->window > 0);
    assert(op->page_size > 0 && op->page_count_max > 0);
    assert(is_cache_order(op->k_strides, op->kv_head_count, op->page_size, op->k_width));
    assert(is_cache_order(op->v_strides, op->kv_head_count, op->page_size, op->v_width));
    assert(!is_latent(op) || (op->v_width <= op->k_width &&
                              op->v_strides.slot == op->k_strides.slot));
    assert(op->score_cap >= 0);
    assert(is_cache_dtype(op->cache_dtype));
    assert(is_whole_blocks(op->cache_dtype, op->k_width));
    assert(is_whole_blocks(op->cache_dtype, op->v_width) || is_latent(op));
    assert(is_whole_strides(op->cache_dtype, op->k_strides));
    assert(is_whole_strides(op->cache_dtype, op->v_strides));
}

static void assert_kv_write(const struct op_kv_write *op)
{
    assert(op->cache_row_count >= op->row_count);
    assert(is_cache_dtype(op->cache_dtype));
    assert(is_whole_blocks(op->cache_dtype, op->width));
    assert(is_whole_strides(op->cache_dtype, op->strides));
    assert(op->head_count > 0 && op->page_size > 0);
    assert(is_cache_order(op->strides, op->head_count, op->page_size, op->width));
}

static void assert_route(const struct op_route *op)
{
    assert(op->top_k > 0 && op->group_count > 0);
    assert(op->expert_count <= OP_ROUTE_EXPERTS_MAX);
    assert(op->expert_count % op->group_count == 0);
    assert(op->group_count == 1 ||
           (op->kept_group_count > 0 && op->kept_group_count <= op->group_count));
    assert((op->group_count == 1 ? op->expert_count
                                 : op->expert_count / op->group_count * op->kept_group_count) >=
           op->top_k);
}

void device__op_assert(const struct op *op)
{
    assert((unsigned)op->kind < OP_KIND_COUNT);
    switch (op->kind) {
    case OP_EMBED:
        assert(is_whole_blocks(op->embed.table_dtype, op->embed.width));
        assert(op->embed.table_row_count > 0);
        break;
    case OP_KV_WRITE: assert_kv_write(&op->kv_write); break;
    case OP_GATHER_ROWS: assert(op->gather_rows.x_row_count > 0); break;
    case OP_GATHER_COLUMNS:
        assert(op->gather_columns.x_width > 0 && op->gather_columns.out != op->gather_columns.x);
        break;
    case OP_RMS_NORM:
        assert(op->rms_norm.width > 0 && op->rms_norm.group_count > 0);
        break;
    case OP_MATMUL:
        assert(op->matmul.n_count > 0 && op->matmul.k_count > 0 && op->matmul.batch_count > 0);
        assert(op->matmul.bias == NULL || op->matmul.batch_count == 1);
        assert(is_whole_blocks(op->matmul.weight_dtype, op->matmul.k_count));
        assert(op->matmul.weight_layout == LAYOUT_ND || op->matmul.batch_count == 1);
        break;
    case OP_ATTENTION: assert_attention(&op->attention); break;
    case OP_ROUTE: assert_route(&op->route); break;
    case OP_SILU_MUL: assert((unsigned)op->silu_mul.gate < GATE_COUNT); break;
    case OP_SOFT_CAP: assert(op->soft_cap.cap > 0); break;
    case OP_MOE:
        assert((unsigned)op->moe.gate < GATE_COUNT);
        assert(op->moe.top_k > 0 && op->moe.top_k <= op->moe.expert_count);
        assert(op->moe.width > 0 && op->moe.ffn_width > 0);
        assert(is_whole_blocks(op->moe.weight_dtype, op->moe.width));
        assert(is_whole_blocks(op->moe.down_dtype, op->moe.ffn_width));
        assert((uintptr_t)op->moe.scratch % 64 == 0);
        /* stacked are all there are: nothing is left for another launch */
        assert(op->moe.experts != NULL || !(op->moe.continued || op->moe.unfinished));
        break;
    default: break;
    }
}

bool device__op_weight_dtype(const struct op *op, enum dtype *dtype_out)
{
    switch (op->kind) {
    case OP_EMBED: *dtype_out = op->embed.table_dtype; return true;
    case OP_MATMUL: *dtype_out = op->matmul.weight_dtype; return true;
    case OP_MOE: *dtype_out = op->moe.weight_dtype; return true;
    default: return false;
    }
}

const char *op_kind_name(enum op_kind kind)
{
    static const char *const names[OP_KIND_COUNT] = {
        [OP_EMBED] = "embed",           [OP_RMS_NORM] = "rms_norm", [OP_MATMUL] = "matmul",
        [OP_ROPE_TABLE] = "rope_table", [OP_ROPE] = "rope",         [OP_KV_WRITE] = "kv_write",
        [OP_ATTENTION] = "attention",   [OP_SILU_MUL] = "silu_mul", [OP_ROUTE] = "route",
        [OP_MOE] = "moe",               [OP_GATHER_ROWS] = "gather_rows",
        [OP_SCALE] = "scale",           [OP_SOFT_CAP] = "soft_cap",
        [OP_GATHER_COLUMNS] = "gather_columns",
    };

    assert((unsigned)kind < OP_KIND_COUNT);
    return names[kind];
}

uint32_t op_row_count(const struct op *op)
{
    switch (op->kind) {
    case OP_EMBED: return op->embed.row_count;
    case OP_RMS_NORM: return op->rms_norm.row_count;
    case OP_MATMUL: return op->matmul.row_count;
    case OP_ROPE_TABLE: return op->rope_table.row_count;
    case OP_ROPE: return op->rope.row_count;
    case OP_KV_WRITE: return op->kv_write.row_count;
    case OP_ATTENTION: return op->attention.row_count;
    case OP_SILU_MUL: return op->silu_mul.row_count;
    case OP_SCALE: return op->scale.row_count;
    case OP_ROUTE: return op->route.row_count;
    case OP_MOE: return op->moe.row_count;
    case OP_GATHER_ROWS: return op->gather_rows.row_count;
    case OP_GATHER_COLUMNS: return op->gather_columns.row_count;
    case OP_SOFT_CAP: return op->soft_cap.row_count;
    case OP_KIND_COUNT: break;
    }
    assert(!"an op of no kind");
    return 0;
}

static uint32_t gate_features(enum op_gate gate)
{
    return gate == GATE_GELU_TANH       ? OP_FEATURE_GATE_GELU
           : gate == GATE_CLAMPED_SWISH ? OP_FEATURE_GATE_CLAMPED
                                        : 0;
}

/* Without OP_FEATURE_KV_BY_HEAD the token slots of all pages are rows of one matrix. */
static uint32_t cache_features(enum dtype dtype, struct op_cache_strides strides,
                               uint32_t page_size)
{
    return (dtype != DTYPE_F32 ? OP_FEATURE_KV_NARROW : 0u) |
           (strides.page != page_size * strides.slot ? OP_FEATURE_KV_BY_HEAD : 0u);
}

static uint32_t attention_features(const struct op_attention *op)
{
    return (op->window > 0 ? OP_FEATURE_WINDOW : 0u) |
           (op->chunked ? OP_FEATURE_CHUNKS : 0u) |
           (op->sinks != NULL ? OP_FEATURE_SINKS : 0u) |
           (op->score_cap > 0 ? OP_FEATURE_SOFT_CAP : 0u) |
           cache_features(op->cache_dtype, op->k_strides, op->page_size) |
           cache_features(op->cache_dtype, op->v_strides, op->page_size);
}

uint32_t op_features(const struct op *op)
{
    switch (op->kind) {
    case OP_RMS_NORM: return op->rms_norm.weight_offset != 0 ? OP_FEATURE_NORM_OFFSET : 0;
    case OP_SCALE: return OP_FEATURE_SCALE;
    case OP_KV_WRITE:
        return cache_features(op->kv_write.cache_dtype, op->kv_write.strides,
                              op->kv_write.page_size);
    case OP_ATTENTION: return attention_features(&op->attention);
    case OP_SILU_MUL: return gate_features(op->silu_mul.gate);
    case OP_MOE:
        return gate_features(op->moe.gate) |
               (op->moe.w13_bias != NULL || op->moe.w2_bias != NULL ? OP_FEATURE_EXPERT_BIAS
                                                                    : 0u) |
               (op->moe.w13_order != NULL || op->moe.w2_order != NULL ? OP_FEATURE_EXPERT_ORDER
                                                                      : 0u);
    case OP_SOFT_CAP: return OP_FEATURE_SOFT_CAP;
    case OP_GATHER_COLUMNS: return OP_FEATURE_COLUMNS;
    default: return 0;
    }
}

const char *op_feature_name(enum op_feature feature)
{
    switch (feature) {
    case OP_FEATURE_SCALE: return "scaled rows that are added";
    case OP_FEATURE_NORM_OFFSET: return "norms whose weights are added to 1";
    case OP_FEATURE_WINDOW: return "attention with a sliding window";
    case OP_FEATURE_CHUNKS: return "attention in chunks";
    case OP_FEATURE_SINKS: return "attention with sinks";
    case OP_FEATURE_SOFT_CAP: return "soft caps on scores and logits";
    case OP_FEATURE_GATE_GELU: return "a GELU gate";
    case OP_FEATURE_GATE_CLAMPED: return "a clamped gate";
    case OP_FEATURE_EXPERT_BIAS: return "biases of experts";
    case OP_FEATURE_KV_NARROW: return "a KV cache in less than F32";
    case OP_FEATURE_KV_BY_HEAD: return "a KV cache ordered by heads";
    case OP_FEATURE_COLUMNS: return "columns in another order";
    case OP_FEATURE_EXPERT_ORDER: return "experts' columns in another order";
    case OP_FEATURES_ALL: break;
    }
    assert(!"no feature, or several");
    return "";
}
