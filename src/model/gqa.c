/* model/gqa.c - grouped-query attention, as the Llama-like families have it, dense or not.
 *
 *     h = rms_norm(x);  q, k, v = h Wqkv (+ b);  [Qwen3: q, k = rms_norm per head; OLMoE: of all]
 *     q, k = rope(q, k), all or the first part of each head
 *     x += attention(q, cache) Wo (+ b)              [GLM-4: rms_norm of that; Granite: scaled]
 *
 * Several query heads share a key and value head (Ainslie et al. 2023, arXiv 2305.13245). */
#include <math.h>

#include "model/internal.h"

void model__gqa_read_heads(struct config_reader *reader, struct model_config *config,
                           const struct gqa_missing *missing)
{
    uint32_t kv_missing = missing->kv_heads;

    /* A missing key is the class's own number, null is as many as there are query heads. */
    if (kv_missing == 0 || model__read_is_null(reader, "num_key_value_heads"))
        kv_missing = config->head_count;
    config->kv_head_count = model__read_count_or(reader, "num_key_value_heads", 1,
                                                 CONFIG_HEADS_MAX, kv_missing);
    config->head_dim = model__read_count_or(reader, "head_dim", 2, CONFIG_HEAD_DIM_MAX,
                                            missing->head_dim);
    if (config->head_dim == 0) {
        config->head_dim = config->hidden_size / config->head_count;
        if (config->hidden_size % config->head_count != 0)
            model__read_refuse(reader, "\"hidden_size\" %u is not a multiple of "
                               "\"num_attention_heads\" %u, and there is no \"head_dim\"",
                               config->hidden_size, config->head_count);
    }
    if (config->head_count % config->kv_head_count != 0)
        model__read_refuse(reader, "\"num_attention_heads\" %u is not a multiple of "
                           "\"num_key_value_heads\" %u", config->head_count,
                           config->kv_head_count);
    if (config->head_dim < 2 || config->head_dim % 2 != 0 ||
        config->head_dim > CONFIG_HEAD_DIM_MAX)
        model__read_refuse(reader, "a head of %u elements cannot be rotated in pairs; it must be "
                           "even, from 2 to %u", config->head_dim, CONFIG_HEAD_DIM_MAX);
    config->attention_scale = (float)pow(config->head_dim, -0.5);
    if (reader->status == STATUS_OK)
        model__read_rope(reader, config->head_dim / 2, &missing->rope, config, NULL);
}

struct kv_widths model__gqa_kv_widths(const struct model_config *config)
{
    const uint32_t width = config->kv_head_count * config->head_dim;

    return (struct kv_widths){ width, width, config->head_dim };
}

void model__gqa_describe(struct params *params, const struct model_config *config,
                         uint32_t layer)
{
    const uint64_t q_rows = (uint64_t)config->head_count * config->head_dim;
    const uint64_t kv_rows = (uint64_t)config->kv_head_count * config->head_dim;
    const struct param_rows weights[3] = { { "self_attn.q_proj.weight", q_rows },
                                           { "self_attn.k_proj.weight", kv_rows },
                                           { "self_attn.v_proj.weight", kv_rows } };
    const struct param_rows fused = { "self_attn.qkv_proj.weight", q_rows + 2 * kv_rows };
    const struct param_rows biases[3] = { { "self_attn.q_proj.bias", q_rows },
                                          { "self_attn.k_proj.bias", kv_rows },
                                          { "self_attn.v_proj.bias", kv_rows } };
    struct param_spec spec = { .name = "self_attn.qkv_proj.weight", .layer = (int32_t)layer,
                               .role = ROLE_QKV, .part = OFFLOAD_PART_ATTENTION };

    model__describe_norm(params, layer, ROLE_INPUT_NORM, OFFLOAD_PART_ATTENTION,
                         "input_layernorm.weight", config->hidden_size);
    if (model__param_source_exists(params, (int32_t)layer, spec.name))
        model__param_stack(params, &spec, config->hidden_size, &fused, 1);
    else
        model__param_stack(params, &spec, config->hidden_size, weights, 3);
    spec.name = "self_attn.qkv_proj.bias";
    spec.role = ROLE_QKV_BIAS;
    if (config->qkv_bias)
        model__param_stack(params, &spec, 0, biases, 3);
    if (config->qk_norm || config->qk_norm_whole) {
        model__describe_norm(params, layer, ROLE_Q_NORM, OFFLOAD_PART_ATTENTION,
                             "self_attn.q_norm.weight",
                             config->qk_norm_whole ? q_rows : config->head_dim);
        model__describe_norm(params, layer, ROLE_K_NORM, OFFLOAD_PART_ATTENTION,
                             "self_attn.k_norm.weight",
                             config->qk_norm_whole ? kv_rows : config->head_dim);
    }
    spec = (struct param_spec){ .name = "self_attn.o_proj.weight", .layer = (int32_t)layer,
                                .role = ROLE_O, .part = OFFLOAD_PART_ATTENTION, .rank = 2,
                                .shape = { config->hidden_size, q_rows } };
    model__param_same(params, &spec);
    if (config->o_bias)
        model__describe_norm(params, layer, ROLE_O_BIAS, OFFLOAD_PART_ATTENTION,
                             "self_attn.o_proj.bias", config->hidden_size);
    if (config->sinks)
        model__describe_norm(params, layer, ROLE_SINKS, OFFLOAD_PART_ATTENTION,
                             "self_attn.sinks", config->head_count);
}

static uint64_t qkv_width(const struct model_config *config)
{
    return (uint64_t)(config->head_count + 2 * config->kv_head_count) * config->head_dim;
}

void model__gqa_slice(struct slicer *slicer, const struct model_config *config,
                      uint64_t row_count, struct model_buffers *buffers)
{
    buffers->qkv = model__slice(slicer, row_count * qkv_width(config) * sizeof(float));
    buffers->attended = model__slice(
        slicer, row_count * config->head_count * config->head_dim * sizeof(float));
}

uint32_t model__gqa_iota_per_row(const struct model_config *config)
{
    (void)config;
    return 1; /* what looked-up rows of the embedding need */
}

static void attend(struct model_pass *pass, uint32_t layer)
{
    const struct model_config *config = pass->config;
    const struct model *model = pass->model;
    const struct op_cache_strides strides =
        model__kv_strides(model, layer, config->kv_head_count, config->head_dim);
    const struct tensor *sinks = model__pass_param(pass, (int32_t)layer, ROLE_SINKS);
    const struct op attention = { .kind = OP_ATTENTION, .attention = {
        .out = pass->buffers->attended, .q = pass->buffers->qkv,
        .k_cache = model__kv_keys(model, layer), .v_cache = model__kv_values(model, layer),
        .cache_dtype = config->kv_dtype,
        .pages = pass->pages[model__kv_kind(config, layer)],
        .sequences = pass->sequences, .positions = pass->positions,
        .row_count = pass->row_count, .head_count = config->head_count,
        .kv_head_count = config->kv_head_count,
        .k_width = config->head_dim, .v_width = config->head_dim,
        .page_size = (uint32_t)model->sizes.page_size, .page_count_max = pass->page_count_max,
        .host_sequences = pass->host_sequences, .host_positions = pass->host_positions,
        .cache_row_count = model__kv_slot_count(model, layer),
        .out_row_stride = (uint64_t)config->head_count * config->head_dim,
        .q_row_stride = qkv_width(config),
        .k_strides = strides, .v_strides = strides,
        .scale = config->attention_scale, .score_cap = config->score_cap,
        .sinks = sinks != NULL ? sinks->data : NULL,
        .window = model__layer_has_window(config, layer) ? config->sliding_window : 0,
        .chunked = config->chunked && model__layer_has_window(config, layer),
    } };

    model__pass_launch(pass, &attention);
}

/* Queries, and the keys behind them. */
static void normalise(struct model_pass *pass, uint32_t layer, float *q, float *k)
{
    const struct model_config *config = pass->config;
    struct pass_norm norm = {
        .out = q, .x = q, .row_stride = qkv_width(config),
        .group_count = config->qk_norm_whole ? 1 : config->head_count,
        .epsilon = config->norm_epsilon, .layer = (int32_t)layer, .weight = ROLE_Q_NORM,
    };

    model__pass_norm(pass, &norm);
    norm.out = k;
    norm.x = k;
    norm.group_count = config->qk_norm_whole ? 1 : config->kv_head_count;
    norm.weight = ROLE_K_NORM;
    model__pass_norm(pass, &norm);
}

/* The same without weights: queries and keys are adjacent heads. */
static void normalise_plainly(struct model_pass *pass, float *q)
{
    const struct model_config *config = pass->config;
    const uint64_t stride = qkv_width(config);
    const struct op norm = { .kind = OP_RMS_NORM, .rms_norm = {
        .out = q, .x = q, .weight = pass->buffers->ones, .row_count = pass->row_count,
        .group_count = config->head_count + config->kv_head_count, .width = config->head_dim,
        .out_row_stride = stride, .x_row_stride = stride, .epsilon = config->norm_epsilon,
    } };

    model__pass_launch(pass, &norm);
}

/* What queries and keys are told of their positions. */
static void place(struct model_pass *pass, uint32_t layer, float *q)
{
    const struct model_config *config = pass->config;
    const uint64_t stride = qkv_width(config);
    const struct op scale = { .kind = OP_SCALE, .scale = {
        .out = q, .x = q, .row_factors = pass->temperatures, .row_count = pass->row_count,
        .width = config->head_count * config->head_dim, .out_row_stride = stride,
        .x_row_stride = stride, .factor = 1.0f,
    } };

    if (config->unrotated[layer]) {
        if (config->temperature_floor != 0)
            model__pass_launch(pass, &scale);
        return;
    }
    /* queries and keys are adjacent heads: one rotation turns both */
    model__pass_rope(pass, layer, q, config->head_count + config->kv_head_count, stride,
                     config->head_dim);
    if (config->qk_norm_plain)
        normalise_plainly(pass, q);
}

void model__gqa_pass(struct model_pass *pass, uint32_t layer)
{
    const struct model_config *config = pass->config;
    const struct model_buffers *buffers = pass->buffers;
    const uint64_t stride = qkv_width(config);
    float *q = buffers->qkv;
    float *k = q + (uint64_t)config->head_count * config->head_dim;
    struct pass_kv_write write = {
        .x = k, .x_row_stride = stride, .layer = layer,
        .head_count = config->kv_head_count, .width = config->head_dim,
    };
    const struct pass_linear in = {
        .out = q, .x = buffers->normed, .layer = (int32_t)layer,
        .weight = ROLE_QKV, .bias = ROLE_QKV_BIAS,
    };
    const struct pass_addition back = {
        .x = buffers->attended, .layer = (int32_t)layer, .weight = ROLE_O, .bias = ROLE_O_BIAS,
        .norm = ROLE_ATTENTION_OUT_NORM,
    };

    model__pass_linear(pass, &in);
    if (config->qk_norm || config->qk_norm_whole)
        normalise(pass, layer, q, k);
    place(pass, layer, q);
    write.cache = model__kv_keys(pass->model, layer);
    model__pass_kv_write(pass, &write);
    write.cache = model__kv_values(pass->model, layer);
    write.x += (uint64_t)config->kv_head_count * config->head_dim;
    model__pass_kv_write(pass, &write);
    attend(pass, layer);
    model__pass_add(pass, &back);
}
