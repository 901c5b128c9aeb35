/* checkpoint/convert/plan.c - from a checkpoint's tensors to those of a GGUF file.
 *
 * A GGUF file's tensors already lie as they shall; of a Hugging Face folder's
 *
 *     experts, apart or fused      become stacks, gate, up and down, whether they lie the other
 *                                  way round or take turns
 *     a llama's q and k            rows i and i + half of each head become neighbours
 *     deepseek2's kv_b_proj        attn_k_b, each head's part transposed, and attn_v_b
 *     a rope's divisors            of Llama 3 and LongRoPE, come of config.json: rope_freqs.weight
 *     Gemma's norms                have 1 added
 *
 * and everything else is renamed. Vectors, biases and routers are F32, and gpt-oss's experts stay
 * MXFP4. Where rows are no whole blocks of the type that is asked for, Q8_0 is taken, or F16. */
#include "checkpoint/convert/plan.h"

#include <assert.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/map.h"
#include "base/size.h"
#include "checkpoint/gguf/gguf.h"
#include "checkpoint/internal.h"
#include "tensor/quant.h"

#define QUANTISATION_VERSION 2 /* of GGUF's blocks, since 2023-05 */

struct planner {
    const struct ckpt *ckpt;
    const struct convert_options *options;
    struct convert_plan *plan;
    struct map *by_name;           /* of a tensor in the file to its index */
    struct err *err;
};

static enum status no_memory(const struct planner *planner)
{
    return err_set(planner->err, STATUS_NO_MEMORY, "%s: no memory to plan its conversion",
                   ckpt_path(planner->ckpt));
}

/* --- lists ------------------------------------------------------------------------------------ */

/* The tensor of that name, added if it is not there yet. */
static enum status find_tensor(struct planner *planner, const char *name, size_t *index_out)
{
    struct convert_plan *const plan = planner->plan;
    struct plan_tensor *tensor;
    uint64_t index;

    if (map_get(planner->by_name, name, strlen(name), &index)) {
        *index_out = (size_t)index;
        return STATUS_OK;
    }
    if (plan->tensor_count == plan->tensor_capacity) {
        const size_t capacity = plan->tensor_capacity == 0 ? 256 : 2 * plan->tensor_capacity;
        struct plan_tensor *const grown = reallocarray(plan->tensors, capacity, sizeof(*grown));
        if (grown == NULL)
            return no_memory(planner);
        plan->tensors = grown;
        plan->tensor_capacity = capacity;
    }
    tensor = &plan->tensors[plan->tensor_count];
    *tensor = (struct plan_tensor){ .rank = 0 };
    (void)snprintf(tensor->name, sizeof(tensor->name), "%s", name);
    *index_out = plan->tensor_count;
    return map_set(planner->by_name, name, strlen(name), plan->tensor_count++, planner->err);
}

/* Copies the segment, which becomes a part of the tensor of that name. */
static enum status add_segment(struct planner *planner, const char *name,
                               const struct plan_segment *segment)
{
    struct convert_plan *const plan = planner->plan;
    size_t index = 0;
    const enum status st = find_tensor(planner, name, &index);

    if (st != STATUS_OK)
        return st;
    if (plan->segment_count == plan->segment_capacity) {
        const size_t capacity = plan->segment_capacity == 0 ? 256 : 2 * plan->segment_capacity;
        struct plan_segment *const grown = reallocarray(plan->segments, capacity, sizeof(*grown));
        if (grown == NULL)
            return no_memory(planner);
        plan->segments = grown;
        plan->segment_capacity = capacity;
    }
    plan->segments[plan->segment_count] = *segment;
    plan->segments[plan->segment_count].tensor_index = index;
    plan->segment_count++;
    return STATUS_OK;
}

static int compare_segments(const void *a, const void *b)
{
    const struct plan_segment *const x = a;
    const struct plan_segment *const y = b;

    if (x->tensor_index != y->tensor_index)
        return x->tensor_index < y->tensor_index ? -1 : 1;
    return x->order != y->order ? (x->order < y->order ? -1 : 1) : 0;
}

/* --- views ------------------------------------------------------------------------------------ */

/* Rows of a tensor as they lie there, from first_row on. */
static struct plan_segment rows_of(const struct ckpt_tensor *source, uint64_t first_row,
                                   uint64_t row_count)
{
    const uint64_t cols = source->rank == 0 ? 1 : source->shape[source->rank - 1];

    return (struct plan_segment){
        .source = source, .unit_count = row_count, .unit_elements = cols,
        .src_offset = first_row * cols, .src_stride = cols,
        .inner = { { 1, 0, 0 }, { cols, 1, 1 } },
    };
}

/* Rows of all dimensions but the last. */
static uint64_t row_count(const struct ckpt_tensor *tensor)
{
    uint64_t count = 1;

    for (uint32_t i = 0; i + 1 < tensor->rank; i++)
        count *= tensor->shape[i];
    return count;
}

static void set_shape(struct planner *planner, const char *name, uint32_t rank,
                      const uint64_t *shape)
{
    uint64_t index = 0;
    struct plan_tensor *tensor;
    const bool found = map_get(planner->by_name, name, strlen(name), &index);

    assert(found);
    (void)found;
    tensor = &planner->plan->tensors[index];
    tensor->rank = rank;
    for (uint32_t i = 0; i < TENSOR_RANK_MAX; i++)
        tensor->shape[i] = i < rank ? shape[i] : 1;
}

static enum status refuse_shape(const struct planner *planner, const struct ckpt_tensor *tensor,
                                const char *wanted)
{
    char shape[96];

    return err_set(planner->err, STATUS_BAD_INPUT, "%s: tensor '%s' is %s, %s",
                   ckpt_path(planner->ckpt), tensor->name,
                   tensor_shape_format(tensor->rank, tensor->shape, shape, sizeof(shape)), wanted);
}

static enum status add_plain(struct planner *planner, const struct ckpt_tensor *source,
                             const char *name)
{
    const struct plan_segment segment = rows_of(source, 0, row_count(source));
    static const uint64_t one = 1;
    const enum status st = add_segment(planner, name, &segment);

    if (st == STATUS_OK) /* a scalar becomes a vector of one */
        set_shape(planner, name, source->rank > 0 ? source->rank : 1,
                  source->rank > 0 ? source->shape : &one);
    return st;
}

/* Of each head the rows i and i + half become neighbours. Also of a bias, whose rows are one
 * element. */
static enum status add_permuted(struct planner *planner, const struct ckpt_tensor *source,
                                const char *name, uint64_t head_count)
{
    const uint64_t rows = source->shape[0], cols = source->rank == 2 ? source->shape[1] : 1;
    const uint64_t half = head_count > 0 ? rows / head_count / 2 : 0;
    enum status st = STATUS_OK;

    if (half == 0 || rows != head_count * 2 * half || source->rank > 2)
        return refuse_shape(planner, source, "which its heads don't divide evenly");
    for (uint64_t head = 0; st == STATUS_OK && head < head_count; head++) {
        const struct plan_segment segment = {
            .source = source, .order = head, .unit_count = half, .unit_elements = 2 * cols,
            .src_offset = head * 2 * half * cols, .src_stride = cols,
            .inner = { { 2, half * cols, cols }, { cols, 1, 1 } },
        };
        st = add_segment(planner, name, &segment);
    }
    if (st == STATUS_OK)
        set_shape(planner, name, source->rank, source->shape);
    return st;
}

/* "blk.3.attn_kv_b.weight" becomes two. */
static enum status add_kv_b(struct planner *planner, const struct ckpt_tensor *source,
                            const char *name)
{
    const struct gguf_model *const model = &planner->plan->model;
    const uint64_t rows = model->key_rows + model->value_rows, latent = source->shape[1];
    const int stem = (int)(strstr(name, ".attn_kv_b.") - name);
    const uint64_t key_shape[3] = { model->head_count, latent, model->key_rows };
    const uint64_t value_shape[3] = { model->head_count, model->value_rows, latent };
    char key_name[CKPT_NAME_BYTES_MAX + 1], value_name[CKPT_NAME_BYTES_MAX + 1];
    enum status st = STATUS_OK;

    if (source->rank != 2 || source->shape[0] != model->head_count * rows)
        return refuse_shape(planner, source, "which its heads don't divide evenly");
    (void)snprintf(key_name, sizeof(key_name), "%.*s.attn_k_b.weight", stem, name);
    (void)snprintf(value_name, sizeof(value_name), "%.*s.attn_v_b.weight", stem, name);
    for (uint64_t head = 0; st == STATUS_OK && head < model->head_count; head++) {
        struct plan_segment values = rows_of(source, head * rows + model->key_rows,
                                             model->value_rows);
        const struct plan_segment keys = {
            .source = source, .order = head, .unit_count = latent,
            .unit_elements = model->key_rows, .src_offset = head * rows * latent, .src_stride = 1,
            .inner = { { 1, 0, 0 }, { model->key_rows, latent, 1 } },
        };
        values.order = head;
        st = add_segment(planner, key_name, &keys);
        if (st == STATUS_OK)
            st = add_segment(planner, value_name, &values);
    }
    if (st == STATUS_OK) {
        set_shape(planner, key_name, 3, key_shape);
        set_shape(planner, value_name, 3, value_shape);
    }
    return st;
}

/* One expert's matrix; the stack's shape follows when all are known. */
static enum status add_expert(struct planner *planner, const struct ckpt_tensor *source,
                              const char *name, uint64_t expert)
{
    struct plan_segment segment = rows_of(source, 0, row_count(source));

    if (source->rank != 2)
        return refuse_shape(planner, source, "an expert's matrix has two dimensions");
    segment.order = expert;
    return add_segment(planner, name, &segment);
}

/* Whether the experts' matrices lie the other way round; blocks always lie along rows. */
static bool is_transposed(const struct planner *planner, const struct ckpt_tensor *source)
{
    return planner->plan->model.experts_transposed && !quant_is_quantised(source->dtype);
}

/* One of gate, 0, and up, 1, of a stack of experts. */
static enum status add_half(struct planner *planner, const struct ckpt_tensor *source,
                            const char *name, uint64_t half)
{
    const bool is_stack = source->rank == 3, transposed = is_transposed(planner, source);
    const uint64_t experts = is_stack ? source->shape[0] : 1;
    const uint64_t rows = source->shape[source->rank - (transposed ? 1 : 2)];
    const uint64_t cols = source->shape[source->rank - (transposed ? 2 : 1)];
    const uint64_t row_stride = transposed ? 1 : cols, shape[3] = { experts, rows / 2, cols };
    enum status st = STATUS_OK;

    for (uint64_t expert = 0; st == STATUS_OK && expert < experts; expert++) {
        const uint64_t first = half * (planner->plan->model.experts_by_turns ? 1 : rows / 2);
        const struct plan_segment segment = {
            .source = source, .order = expert, .unit_count = rows / 2, .unit_elements = cols,
            .src_offset = expert * rows * cols + first * row_stride,
            .src_stride = row_stride * (planner->plan->model.experts_by_turns ? 2 : 1),
            .inner = { { 1, 0, 0 }, { cols, transposed ? rows : 1, 1 } },
        };
        st = add_segment(planner, name, &segment);
    }
    if (st == STATUS_OK)
        set_shape(planner, name, is_stack ? 3 : 2, is_stack ? shape : shape + 1);
    return st;
}

/* [2 x width][hidden], gate above up or by turns, or a stack of such, perhaps the other way round:
 * two tensors, whose names end so. */
static enum status add_fused(struct planner *planner, const struct ckpt_tensor *source,
                             uint64_t layer, const char *suffix)
{
    static const char *const halves[] = { "gate", "up" };
    enum status st = STATUS_OK;

    if (source->rank < 2 || source->rank > 3 ||
        source->shape[source->rank - (is_transposed(planner, source) ? 1 : 2)] % 2 != 0)
        return refuse_shape(planner, source, "which is no gate and up");
    for (size_t half = 0; st == STATUS_OK && half < 2; half++) {
        char name[64];
        (void)snprintf(name, sizeof(name), "blk.%" PRIu64 ".ffn_%s_%s.weight", layer,
                       halves[half], suffix);
        st = add_half(planner, source, name, half);
    }
    return st;
}

/* [experts][2 x width] of gate and up by turns. */
static enum status add_fused_bias(struct planner *planner, const struct ckpt_tensor *source,
                                  uint64_t layer, const char *suffix)
{
    static const char *const halves[] = { "gate", "up" };
    const uint64_t width = source->rank == 2 ? source->shape[1] / 2 : 0;
    const uint64_t shape[2] = { source->shape[0], width };
    enum status st = STATUS_OK;

    if (width == 0 || source->shape[1] % 2 != 0)
        return refuse_shape(planner, source, "which is no bias of gate and up");
    for (size_t half = 0; st == STATUS_OK && half < 2; half++) {
        const struct plan_segment segment = {
            .source = source, .unit_count = source->shape[0], .unit_elements = width,
            .src_offset = half, .src_stride = 2 * width, .inner = { { 1, 0, 0 }, { width, 2, 1 } },
        };
        char name[64];
        (void)snprintf(name, sizeof(name), "blk.%" PRIu64 ".ffn_%s_%s.bias", layer, halves[half],
                       suffix);
        st = add_segment(planner, name, &segment);
        if (st == STATUS_OK)
            set_shape(planner, name, 2, shape);
    }
    return st;
}

/* [experts][in][out] of what is [experts][out][in] elsewhere. */
static enum status add_turned(struct planner *planner, const struct ckpt_tensor *source,
                              const char *name)
{
    const uint64_t cols = source->shape[1], rows = source->shape[2];
    const uint64_t shape[3] = { source->shape[0], rows, cols };
    enum status st = STATUS_OK;

    if (source->rank != 3)
        return refuse_shape(planner, source, "which is no stack of experts");
    for (uint64_t expert = 0; st == STATUS_OK && expert < source->shape[0]; expert++) {
        const struct plan_segment segment = {
            .source = source, .order = expert, .unit_count = rows, .unit_elements = cols,
            .src_offset = expert * rows * cols, .src_stride = 1,
            .inner = { { 1, 0, 0 }, { cols, rows, 1 } },
        };
        st = add_segment(planner, name, &segment);
    }
    if (st == STATUS_OK)
        set_shape(planner, name, 3, shape);
    return st;
}

/* --- one tensor of the checkpoint ------------------------------------------------------------- */

/* The layer of "model.layers.N.", and what follows; UINT64_MAX: it is none's. */
static uint64_t layer_of(const char *name, const char **rest_out)
{
    static const char before[] = "model.layers.";
    char *end = NULL;
    uint64_t layer;

    *rest_out = name;
    if (strncmp(name, before, sizeof(before) - 1) != 0)
        return UINT64_MAX;
    layer = strtoull(name + sizeof(before) - 1, &end, 10);
    if (*end != '.')
        return UINT64_MAX;
    *rest_out = end + 1;
    return layer;
}

/* What a folder may have and the file does not: layers of multi-token prediction, frequencies that
 * follow from the configuration, scales of activations, an output matrix that is the embedding. */
static bool is_left_out(const struct gguf_model *model, const char *name)
{
    const char *rest;
    const uint64_t layer = layer_of(name, &rest);

    if (layer != UINT64_MAX)
        return layer >= model->layer_count || strstr(rest, "rotary_emb.inv_freq") != NULL ||
               ckpt_is_unused_scale(name);
    return model->tied_embeddings && strcmp(name, "lm_head.weight") == 0;
}

static bool ends_with_one_of(const char *name, const char *one, const char *other)
{
    return strstr(name, one) != NULL || strstr(name, other) != NULL;
}

/* What only folders have, under names that no file's tensor becomes when it is read. The router of
 * fused experts is mlp.gate, whatever the family calls it. */
static enum status add_other(struct planner *planner, const struct ckpt_tensor *source,
                             const char *plain)
{
    enum way { PLAIN, FUSED, FUSED_BIAS, TURNED };
    static const struct {
        const char *rest;
        enum way way;
        const char *name;          /* FUSED: ends the names of two */
    } others[] = {
        { "mlp.experts.gate_up_proj", FUSED, "exps" },
        { "mlp.experts.down_proj", TURNED, "ffn_down_exps.weight" },
        { "mlp.experts.gate_up_proj_bias", FUSED_BIAS, "exps" },
        { "mlp.experts.down_proj_bias", PLAIN, "ffn_down_exps.bias" },
        { "feed_forward.experts.gate_up_proj", FUSED, "exps" },
        { "feed_forward.experts.down_proj", TURNED, "ffn_down_exps.weight" },
        { "mlp.gate.weight", PLAIN, "ffn_gate_inp.weight" },
        { "block_sparse_moe.input_linear.weight", FUSED, "exps" },
        { "block_sparse_moe.output_linear.weight", PLAIN, "ffn_down_exps.weight" },
        { "block_sparse_moe.router.layer.weight", PLAIN, "ffn_gate_inp.weight" },
        { "shared_mlp.input_linear.weight", FUSED, "shexp" },
        { "shared_mlp.output_linear.weight", PLAIN, "ffn_down_shexp.weight" },
    };
    const char *rest;
    const uint64_t layer = layer_of(plain, &rest);
    char name[64];

    for (size_t i = 0; layer != UINT64_MAX && i < sizeof(others) / sizeof(others[0]); i++) {
        if (strcmp(rest, others[i].rest) != 0)
            continue;
        if (others[i].way == FUSED)
            return add_fused(planner, source, layer, others[i].name);
        if (others[i].way == FUSED_BIAS)
            return add_fused_bias(planner, source, layer, others[i].name);
        (void)snprintf(name, sizeof(name), "blk.%" PRIu64 ".%s", layer, others[i].name);
        return others[i].way == TURNED && is_transposed(planner, source)
                   ? add_turned(planner, source, name) : add_plain(planner, source, name);
    }
    return err_set(planner->err, STATUS_BAD_INPUT,
                   "%s: tensor '%s' has no name in a GGUF file of the kind %s",
                   ckpt_path(planner->ckpt), source->name, planner->plan->model.arch);
}

/* A matrix of one row is a vector in a file. */
static enum status add_row(struct planner *planner, const struct ckpt_tensor *source,
                           const char *name)
{
    const enum status st = add_plain(planner, source, name);

    if (st == STATUS_OK && source->rank == 2 && source->shape[0] == 1)
        set_shape(planner, name, 1, &source->shape[1]);
    return st;
}

/* A norm, whose weight has something added to it. */
static enum status add_norm(struct planner *planner, const struct ckpt_tensor *source,
                            const char *name)
{
    const enum status st = add_plain(planner, source, name);
    uint64_t index = 0;

    if (st == STATUS_OK && map_get(planner->by_name, name, strlen(name), &index))
        planner->plan->tensors[index].offset = planner->plan->model.norm_offset;
    return st;
}

/* `plain` is the tensor's name without that of the part it is in. */
static enum status add_folders(struct planner *planner, const struct ckpt_tensor *source,
                               const char *plain, const char *name)
{
    const struct gguf_model *const model = &planner->plan->model;

    if (strcmp(name, plain) == 0)
        return add_other(planner, source, plain);
    if (strstr(name, "norm.weight") != NULL)
        return add_norm(planner, source, name);
    if (model->permutes_rows && ends_with_one_of(name, ".attn_q.weight", ".attn_q.bias"))
        return add_permuted(planner, source, name, model->head_count);
    if (model->permutes_rows && ends_with_one_of(name, ".attn_k.weight", ".attn_k.bias"))
        return add_permuted(planner, source, name, model->kv_head_count);
    if (strstr(name, ".ffn_gate_inp_shexp.") != NULL)
        return add_row(planner, source, name);
    if (model->splits_kv_b && strstr(name, ".attn_kv_b.weight") != NULL)
        return add_kv_b(planner, source, name);
    return add_plain(planner, source, name);
}

/* A weight's type, which becomes F32 on the way; FP8 and INT4, which files have no number for, too.
 * */
static bool is_convertible(enum dtype dtype)
{
    return dtype < DTYPE_COUNT && dtype != DTYPE_I32;
}

static enum status add_source(struct planner *planner, const struct ckpt_tensor *source)
{
    const struct gguf_model *const model = &planner->plan->model;
    char plain[CKPT_NAME_BYTES_MAX + 1], name[CKPT_NAME_BYTES_MAX + 1];
    int64_t expert = -1;

    if (!gguf__plain_name(model, source->name, plain, sizeof(plain)) ||
        (!model->is_gguf && is_left_out(model, plain)))
        return STATUS_OK;
    if (!model->is_gguf && ckpt_is_order(source))
        return err_set(planner->err, STATUS_BAD_INPUT,
                       "%s: '%s': a matrix has its columns in another order (\"desc_act\"), for "
                       "which GGUF files have no word", ckpt_path(planner->ckpt), source->name);
    if (!is_convertible(source->dtype))
        return err_set(planner->err, STATUS_BAD_INPUT,
                       "%s: tensor '%s' is of type %s, which is not converted",
                       ckpt_path(planner->ckpt), source->name, source->dtype_name);
    planner->plan->summary.source_bytes += source->size_bytes;
    gguf__tensor_origin(model->arch, model->layer_count, plain, name, sizeof(name), &expert);
    if (expert >= 0)
        return add_expert(planner, source, name, (uint64_t)expert);
    return model->is_gguf ? add_plain(planner, source, name)
                          : add_folders(planner, source, plain, name);
}

/* --- types and places ------------------------------------------------------------------------- */

/* Sorts the segments by their tensors, and checks that a stack has all its experts. */
static enum status order_segments(struct planner *planner)
{
    struct convert_plan *const plan = planner->plan;

    if (plan->segment_count > 0)
        qsort(plan->segments, plan->segment_count, sizeof(*plan->segments), compare_segments);
    for (size_t i = 0; i < plan->segment_count; i++) {
        struct plan_segment *const segment = &plan->segments[i];
        struct plan_tensor *const tensor = &plan->tensors[segment->tensor_index];
        const struct plan_segment *const before = tensor->segment_count > 0 ? segment - 1 : NULL;
        if (before == NULL)
            tensor->first_segment = i;
        else
            segment->dst_offset = before->dst_offset + before->unit_count * before->unit_elements;
        if (segment->order != tensor->segment_count)
            return err_set(planner->err, STATUS_BAD_INPUT,
                           "%s: '%s' would have part %zu %s", ckpt_path(planner->ckpt),
                           tensor->name, tensor->segment_count,
                           segment->order < tensor->segment_count ? "twice" : "missing");
        if (before != NULL && (before->unit_count != segment->unit_count ||
                               before->unit_elements != segment->unit_elements))
            return refuse_shape(planner, segment->source, "its neighbours have another shape");
        tensor->segment_count++;
        if (tensor->rank == 0) { /* a stack whose experts were apart */
            tensor->rank = 3;
            tensor->shape[1] = segment->unit_count;
            tensor->shape[2] = segment->unit_elements;
            tensor->shape[3] = 1;
            tensor->shape[0] = 0;
        }
        if (tensor->rank == 3 && tensor->shape[0] < tensor->segment_count)
            tensor->shape[0] = tensor->segment_count;
    }
    return STATUS_OK;
}

/* gpt-oss was trained with its experts in MXFP4: any other type loses, and most are larger. */
static bool stays(const struct planner *planner, const struct plan_tensor *tensor)
{
    const struct convert_plan *const plan = planner->plan;
    bool all = tensor->segment_count > 0 && strcmp(plan->model.arch, "gpt-oss") == 0;

    for (size_t i = 0; all && i < tensor->segment_count; i++)
        all = plan->segments[tensor->first_segment + i].source->dtype == DTYPE_MXFP4;
    return all;
}

static enum dtype type_of(const struct planner *planner, const struct plan_tensor *tensor)
{
    const struct convert_options *const options = planner->options;
    const struct convert_place place = {
        .name = tensor->name, .cols = tensor->shape[tensor->rank > 0 ? tensor->rank - 1 : 0],
        .layer_count = planner->plan->model.layer_count,
        .tied_embeddings = planner->plan->model.tied_embeddings,
    };
    enum dtype dtype;
    size_t rule = 0;

    if (tensor->rank < 2 || strstr(tensor->name, ".bias") != NULL)
        return DTYPE_F32;
    while (rule < options->rule_count &&
           fnmatch(options->rules[rule].glob, tensor->name, 0) != 0)
        rule++;
    if (rule == options->rule_count && stays(planner, tensor))
        return DTYPE_MXFP4;
    dtype = rule < options->rule_count ? options->rules[rule].dtype
                                       : convert__choose_type(options->type, &place);
    if (place.cols % dtype_info(dtype)->block_elements != 0)
        dtype = place.cols % dtype_info(DTYPE_Q8_0)->block_elements == 0 ? DTYPE_Q8_0 : DTYPE_F16;
    return dtype;
}

/* Types and sizes. */
static enum status size_tensors(struct planner *planner)
{
    struct convert_plan *const plan = planner->plan;

    for (size_t i = 0; i < plan->tensor_count; i++) {
        struct plan_tensor *const tensor = &plan->tensors[i];
        uint64_t count = 0;
        tensor->dtype = type_of(planner, tensor);
        if (!tensor_element_count(tensor->rank, tensor->shape, &count) ||
            !dtype_bytes(tensor->dtype, count, &tensor->size_bytes))
            return err_set(planner->err, STATUS_BAD_INPUT, "%s: the size of '%s' overflows",
                           ckpt_path(planner->ckpt), tensor->name);
        plan->summary.weight_count += count;
        for (size_t s = 0; s < tensor->segment_count; s++) {
            const enum dtype from = plan->segments[tensor->first_segment + s].source->dtype;
            plan->summary.requantises = plan->summary.requantises ||
                                        (quant_is_quantised(from) &&
                                         quant_is_quantised(tensor->dtype) &&
                                         from != tensor->dtype);
        }
    }
    return STATUS_OK;
}

/* Which file each tensor is in: the next one where it would make the file larger than is allowed.
 * pairs_bytes: of the metadata, which is the first file's. */
static enum status share_tensors(struct planner *planner, uint64_t pairs_bytes)
{
    struct convert_plan *const plan = planner->plan;
    const uint64_t limit = planner->options->split_max_bytes;
    uint64_t pairs = pairs_bytes + GGUF_SPLIT_PAIRS_BYTES, infos = 0, data = 0;
    size_t file = 0;

    for (size_t i = 0; i < plan->tensor_count; i++) {
        struct plan_tensor *const tensor = &plan->tensors[i];
        const uint64_t info = gguf__tensor_bytes(tensor->name, tensor->rank);
        const uint64_t size = size_align_up(tensor->size_bytes, GGUF_ALIGNMENT);

        if (limit > 0 && infos > 0 &&
            gguf__header_bytes(pairs, infos + info) + data + size > limit) {
            file++;
            pairs = GGUF_SPLIT_PAIRS_BYTES;
            infos = data = 0;
        }
        if (limit > 0 && gguf__header_bytes(pairs, infos + info) + data + size > limit)
            return err_set(planner->err, STATUS_BAD_INPUT,
                           "--split-max-size is too small: a file with '%s' alone takes %" PRIu64
                           " bytes", tensor->name,
                           gguf__header_bytes(pairs, infos + info) + data + size);
        infos += info;
        data += size;
        tensor->file_index = file;
    }
    plan->summary.file_count = file + 1;
    if (plan->summary.file_count > CKPT_FILES_MAX)
        return err_set(planner->err, STATUS_BAD_INPUT,
                       "--split-max-size makes %zu files, and at most %d are read",
                       plan->summary.file_count, CKPT_FILES_MAX);
    plan->files = calloc(plan->summary.file_count, sizeof(*plan->files));
    if (plan->files == NULL) {
        plan->summary.file_count = 0;
        return no_memory(planner);
    }
    for (size_t i = 0; i < plan->summary.file_count; i++)
        buf_init(&plan->files[i].head, 2 * (size_t)GGUF_META_BYTES_MAX + GGUF_ALIGNMENT + 64);
    return STATUS_OK;
}

/* The head of a file: of the first, `header` has the metadata. */
static enum status write_head(struct planner *planner, size_t index, struct gguf_header *header)
{
    struct convert_plan *const plan = planner->plan;
    struct plan_file *const file = &plan->files[index];

    if (plan->summary.file_count > 1)
        gguf__write_split(header, index, plan->summary.file_count, plan->tensor_count);
    for (size_t i = 0; i < plan->tensor_count; i++) {
        struct plan_tensor *const tensor = &plan->tensors[i];

        if (tensor->file_index != index)
            continue;
        tensor->at_bytes = header->data_bytes;
        gguf__write_tensor(header, tensor->name, tensor->dtype, tensor->rank, tensor->shape,
                           tensor->size_bytes);
    }
    file->data_bytes = header->data_bytes;
    file->before_bytes = plan->data_bytes;
    plan->data_bytes += header->data_bytes;
    return gguf__header_end(header, &file->head, planner->err);
}

static enum status write_heads(struct planner *planner, struct gguf_header *first)
{
    enum status st = share_tensors(planner, first->pairs.size);

    if (st == STATUS_OK)
        st = write_head(planner, 0, first);
    for (size_t i = 1; st == STATUS_OK && i < planner->plan->summary.file_count; i++) {
        struct gguf_header header;

        gguf__header_init(&header, planner->err);
        st = write_head(planner, i, &header);
        gguf__header_deinit(&header);
    }
    return st;
}

/* --- metadata --------------------------------------------------------------------------------- */

/* What the new file says in its own way, or not at all. */
static bool is_rewritten(const char *key)
{
    static const char *const keys[] = { "general.file_type", "general.quantization_version",
                                        "general.alignment" };

    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
        if (strcmp(key, keys[i]) == 0)
            return true;
    return strncmp(key, "split.", 6) == 0;
}

/* Copies the pairs of a file's metadata as they are there. */
static enum status copy_pairs(const struct file *file, const struct gguf_meta *meta,
                              struct gguf_header *header, struct err *err)
{
    enum status st = STATUS_OK;
    struct buf pair;

    buf_init(&pair, GGUF_META_BYTES_MAX);
    for (size_t i = 0; st == STATUS_OK && i < meta->count; i++) {
        const struct gguf_value *const value = &meta->values[i];
        char key[GGUF_KEY_BYTES_MAX + 1];
        uint64_t key_size = 0;
        buf_clear(&pair);
        st = buf_reserve(&pair, (size_t)value->pair_bytes, err);
        if (st == STATUS_OK)
            st = file_read_at(file, value->pair_at, pair.data, value->pair_bytes, err);
        if (st != STATUS_OK)
            break;
        memcpy(&key_size, pair.data, sizeof(key_size));
        if (key_size > GGUF_KEY_BYTES_MAX || key_size + 8 > value->pair_bytes) {
            st = err_set(err, STATUS_IO, "%s: it changed while it was read", file->path);
            break;
        }
        memcpy(key, pair.data + 8, (size_t)key_size);
        key[key_size] = '\0';
        if (!is_rewritten(key))
            gguf__write_raw(header, pair.data, (size_t)value->pair_bytes, 1);
    }
    buf_deinit(&pair);
    return st == STATUS_OK ? header->status : st;
}

/* The same of a GGUF file as gguf__export_config and gguf__export_tokenizer of a folder. */
static enum status copy_metadata(struct planner *planner, struct gguf_header *header)
{
    struct convert_plan *const plan = planner->plan;
    const struct file *const file = &planner->ckpt->files[0];
    struct gguf_reader *const reader = malloc(sizeof(*reader));
    struct gguf_meta meta = { .count = 0 };
    const char *arch = NULL;
    enum status st;

    if (reader == NULL)
        return no_memory(planner);
    st = gguf__open_meta(file, reader, &meta, planner->err);
    if (st == STATUS_OK)
        st = gguf__get_string(&meta, file->path, "general.architecture", &arch, planner->err);
    if (st == STATUS_OK) {
        const json_t *const config = ckpt_config(planner->ckpt);
        (void)snprintf(plan->arch, sizeof(plan->arch), "%s", arch != NULL ? arch : "");
        plan->model = (struct gguf_model){
            .ckpt = planner->ckpt, .arch = plan->arch, .is_gguf = true,
            .layer_count = (uint64_t)json_integer_value(
                json_object_get(config, "num_hidden_layers")),
            .tied_embeddings = ckpt_find(planner->ckpt, "lm_head.weight") == NULL,
        };
        plan->summary.has_tokenizer = gguf__find(&meta, "tokenizer.ggml.tokens") != NULL;
        st = copy_pairs(file, &meta, header, planner->err);
    }
    gguf__meta_deinit(&meta);
    free(reader);
    return st;
}

/* As many as the embedding has. */
static uint64_t token_count(const struct planner *planner)
{
    static const char wanted[] = "model.embed_tokens.weight";
    char plain[CKPT_NAME_BYTES_MAX + 1];

    for (size_t i = 0; i < ckpt_tensor_count(planner->ckpt); i++) {
        const struct ckpt_tensor *const tensor = ckpt_tensor_at(planner->ckpt, i);
        if (gguf__plain_name(&planner->plan->model, tensor->name, plain, sizeof(plain)) &&
            strcmp(plain, wanted) == 0)
            return tensor->shape[0];
    }
    return 0;
}

static enum status export_metadata(struct planner *planner, struct gguf_header *header)
{
    struct convert_plan *const plan = planner->plan;
    uint64_t pairs;
    enum status st = gguf__export_config(planner->ckpt, &plan->model, header);

    pairs = header->pair_count;
    if (st == STATUS_OK)
        st = gguf__export_tokenizer(planner->ckpt, planner->options->pre, token_count(planner),
                                    header);
    plan->summary.has_tokenizer = header->pair_count > pairs;
    if (st == STATUS_OK && !plan->summary.has_tokenizer) /* what llama.cpp wants to be told */
        gguf__write_string(header, "tokenizer.ggml.model", "none", 4);
    return st == STATUS_OK ? header->status : st;
}

static enum status add_factors(struct planner *planner)
{
    const struct gguf_model *const model = &planner->plan->model;
    enum status st = STATUS_OK;

    for (size_t i = 0; st == STATUS_OK && i < model->factor_count; i++) {
        const struct gguf_factors *const factors = &model->factors[i];
        const uint64_t count = factors->count;
        size_t index = 0;
        st = find_tensor(planner, factors->name, &index);
        if (st != STATUS_OK)
            break;
        set_shape(planner, factors->name, 1, &count);
        planner->plan->tensors[index].values = factors->values;
    }
    return st;
}

static enum status make(struct planner *planner, struct gguf_header *header)
{
    const struct ckpt *const ckpt = planner->ckpt;
    const bool is_gguf = strcmp(ckpt_format_name(ckpt), "gguf") == 0;
    enum status st = is_gguf ? copy_metadata(planner, header) : export_metadata(planner, header);

    gguf__write_count(header, "general.file_type", convert__file_type(planner->options->type));
    gguf__write_count(header, "general.quantization_version", QUANTISATION_VERSION);
    if (st == STATUS_OK)
        st = add_factors(planner);
    for (size_t i = 0; st == STATUS_OK && i < ckpt_tensor_count(ckpt); i++)
        st = add_source(planner, ckpt_tensor_at(ckpt, i));
    if (st == STATUS_OK)
        st = order_segments(planner);
    if (st == STATUS_OK)
        st = size_tensors(planner);
    return st == STATUS_OK ? write_heads(planner, header) : st;
}

enum status convert__plan_make(const struct ckpt *ckpt, const struct convert_options *options,
                               struct convert_plan *plan, struct err *err)
{
    struct planner planner = { .ckpt = ckpt, .options = options, .plan = plan, .err = err };
    struct gguf_header header;
    enum status st;

    *plan = (struct convert_plan){ .tensor_count = 0 };
    if (ckpt_refusal(ckpt) != NULL)
        return err_set(err, STATUS_BAD_INPUT, "%s", ckpt_refusal(ckpt));
    gguf__header_init(&header, err);
    st = map_create(0, &planner.by_name, err);
    if (st == STATUS_OK)
        st = make(&planner, &header);
    if (st == STATUS_OK) {
        plan->summary.tensor_count = plan->tensor_count;
        plan->summary.out_bytes = plan->data_bytes;
        plan->summary.memory_bytes = plan->tensor_capacity * sizeof(*plan->tensors) +
                                     plan->segment_capacity * sizeof(*plan->segments);
        for (size_t i = 0; i < plan->summary.file_count; i++) {
            plan->summary.out_bytes += plan->files[i].head.size;
            plan->summary.memory_bytes += plan->files[i].head.size + sizeof(*plan->files);
        }
    }
    gguf__header_deinit(&header);
    map_destroy(planner.by_name);
    return st;
}

void convert__plan_deinit(struct convert_plan *plan)
{
    free(plan->tensors);
    free(plan->segments);
    for (size_t i = 0; i < plan->summary.file_count; i++)
        buf_deinit(&plan->files[i].head);
    free(plan->files);
}
