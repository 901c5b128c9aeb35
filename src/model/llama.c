/* model/llama.c - the dense family: Llama, Mistral, Qwen2, Qwen3.
 *
 *     h = rms_norm(x);  q, k, v = h Wqkv (+ b);  [Qwen3: q, k = rms_norm per head]
 *     q, k = rope(q, k);  x += attention(q, cache) Wo (+ b)
 *     h = rms_norm(x);  x += (silu(h Wgate) * (h Wup)) Wdown
 *
 * Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245): several query heads share a key
 * and value head. The members differ in which projections have biases, in Qwen3's norms on q and
 * k, and in what a missing key of config.json stands for; facts from transformers 5.23's
 * models/llama, mistral, qwen2 and qwen3.
 *
 * Sliding windows are not built: a window that no served context is longer than changes nothing,
 * and a longer context is refused when the model is created. */
#include <math.h>
#include <string.h>

#include "base/json.h"
#include "model/internal.h"

static void read_heads(struct config_reader *reader, struct model_config *config,
                       uint32_t kv_heads_missing, uint32_t head_dim_missing)
{
    uint32_t kv_missing = kv_heads_missing;

    /* A missing key is the class's own number, null is as many as there are query heads. */
    if (kv_missing == 0 || model__read_is_null(reader, "num_key_value_heads"))
        kv_missing = config->head_count;
    config->kv_head_count = model__read_count_or(reader, "num_key_value_heads", 1,
                                                 CONFIG_HEADS_MAX, kv_missing);
    config->head_dim = model__read_count_or(reader, "head_dim", 2, CONFIG_HEAD_DIM_MAX,
                                            head_dim_missing);
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
        model__read_rope(reader, config->head_dim / 2, config, NULL);
}

/* True when "layer_types" is there; *any_sliding_out then says whether it names a sliding layer. */
static bool read_layer_types(struct config_reader *reader, const struct model_config *config,
                             bool *any_sliding_out)
{
    const json_t *types = NULL;

    *any_sliding_out = false;
    if (reader->status == STATUS_OK)
        reader->status = json_get_array(reader->json, "layer_types", reader->what, &types,
                                        reader->err);
    if (reader->status != STATUS_OK || types == NULL)
        return false;
    if (json_array_size(types) != config->layer_count)
        model__read_refuse(reader, "\"layer_types\" has %zu entries, \"num_hidden_layers\" is %u",
                           json_array_size(types), config->layer_count);
    for (size_t i = 0; i < json_array_size(types); i++) {
        const char *type = json_string_value(json_array_get(types, i));

        if (type != NULL && strcmp(type, "sliding_attention") == 0)
            *any_sliding_out = true;
        else if (type == NULL || strcmp(type, "full_attention") != 0)
            model__read_refuse(reader, "entry %zu of \"layer_types\" is \"%.32s\", only "
                               "full_attention and sliding_attention are known", i,
                               type != NULL ? type : json_kind(json_array_get(types, i)));
    }
    return true;
}

/* Qwen's rule: a window counts only where it is switched on, and only for some layers. */
static void read_qwen_window(struct config_reader *reader, struct model_config *config)
{
    const bool is_on = model__read_bool(reader, "use_sliding_window", false);
    const uint32_t first = model__read_count_or(reader, "max_window_layers", 0, UINT32_MAX, 28);
    const uint32_t missing = model__read_is_null(reader, "sliding_window") ? 0 : 4096;
    const uint32_t window = model__read_count_or(reader, "sliding_window", 1, CONFIG_CONTEXT_MAX,
                                                 missing);
    bool any_sliding;

    if (!read_layer_types(reader, config, &any_sliding))
        any_sliding = is_on && window != 0 && first < config->layer_count;
    else if (any_sliding && (!is_on || window == 0))
        model__read_refuse(reader, "\"layer_types\" names sliding layers, but there is no "
                           "\"sliding_window\" in use");
    config->sliding_window = any_sliding ? window : 0;
}

static void read_llama(struct config_reader *reader, struct model_config *config)
{
    bool any_sliding;

    read_heads(reader, config, 0, 0);
    config->qkv_bias = config->o_bias = model__read_bool(reader, "attention_bias", false);
    config->mlp_bias = model__read_bool(reader, "mlp_bias", false);
    (void)read_layer_types(reader, config, &any_sliding);
    if (any_sliding)
        model__read_refuse(reader, "\"layer_types\" names sliding layers, which Llama has not");
}

static void read_mistral(struct config_reader *reader, struct model_config *config)
{
    const uint32_t missing = model__read_is_null(reader, "sliding_window") ? 0 : 4096;
    bool any_sliding;

    read_heads(reader, config, 8, 0);
    (void)read_layer_types(reader, config, &any_sliding);
    config->sliding_window = model__read_count_or(reader, "sliding_window", 1, CONFIG_CONTEXT_MAX,
                                                  missing);
}

static void read_qwen2(struct config_reader *reader, struct model_config *config)
{
    read_heads(reader, config, 32, 0);
    config->qkv_bias = true;
    read_qwen_window(reader, config);
}

static void read_qwen3(struct config_reader *reader, struct model_config *config)
{
    read_heads(reader, config, 32, model__read_is_null(reader, "head_dim") ? 0 : 128);
    config->qkv_bias = config->o_bias = model__read_bool(reader, "attention_bias", false);
    config->qk_norm = true;
    read_qwen_window(reader, config);
}

static struct kv_widths llama_kv_widths(const struct model_config *config)
{
    const uint32_t width = config->kv_head_count * config->head_dim;

    return (struct kv_widths){ width, width };
}

static void describe_attention(struct params *params, const struct model_config *config,
                               uint32_t layer)
{
    const uint64_t q_rows = (uint64_t)config->head_count * config->head_dim;
    const uint64_t kv_rows = (uint64_t)config->kv_head_count * config->head_dim;
    const struct param_rows weights[3] = { { "self_attn.q_proj.weight", q_rows },
                                           { "self_attn.k_proj.weight", kv_rows },
                                           { "self_attn.v_proj.weight", kv_rows } };
    const struct param_rows biases[3] = { { "self_attn.q_proj.bias", q_rows },
                                          { "self_attn.k_proj.bias", kv_rows },
                                          { "self_attn.v_proj.bias", kv_rows } };
    struct param_spec spec = { .name = "self_attn.qkv_proj.weight", .layer = (int32_t)layer,
                               .role = ROLE_QKV, .part = OFFLOAD_PART_ATTENTION };

    model__describe_norm(params, layer, ROLE_INPUT_NORM, OFFLOAD_PART_ATTENTION,
                         "input_layernorm.weight", config->hidden_size);
    model__param_stack(params, &spec, config->hidden_size, weights, 3);
    spec.name = "self_attn.qkv_proj.bias";
    spec.role = ROLE_QKV_BIAS;
    if (config->qkv_bias)
        model__param_stack(params, &spec, 0, biases, 3);
    if (config->qk_norm) {
        model__describe_norm(params, layer, ROLE_Q_NORM, OFFLOAD_PART_ATTENTION,
                             "self_attn.q_norm.weight", config->head_dim);
        model__describe_norm(params, layer, ROLE_K_NORM, OFFLOAD_PART_ATTENTION,
                             "self_attn.k_norm.weight", config->head_dim);
    }
    spec = (struct param_spec){ .name = "self_attn.o_proj.weight", .layer = (int32_t)layer,
                                .role = ROLE_O, .part = OFFLOAD_PART_ATTENTION, .rank = 2,
                                .shape = { config->hidden_size, q_rows } };
    model__param_same(params, &spec);
    if (config->o_bias)
        model__describe_norm(params, layer, ROLE_O_BIAS, OFFLOAD_PART_ATTENTION,
                             "self_attn.o_proj.bias", config->hidden_size);
}

static void llama_describe_layer(struct params *params, const struct model_config *config,
                                 uint32_t layer)
{
    describe_attention(params, config, layer);
    model__describe_norm(params, layer, ROLE_POST_NORM, OFFLOAD_PART_FFN,
                         "post_attention_layernorm.weight", config->hidden_size);
    model__describe_mlp(params, config, layer, "mlp", config->ffn_width);
}

static uint64_t qkv_width(const struct model_config *config)
{
    return (uint64_t)(config->head_count + 2 * config->kv_head_count) * config->head_dim;
}

static void llama_slice_attention(struct slicer *slicer, const struct model_config *config,
                                  uint64_t row_count, struct model_buffers *buffers)
{
    buffers->qkv = model__slice(slicer, row_count * qkv_width(config) * sizeof(float));
    buffers->attended = model__slice(
        slicer, row_count * config->head_count * config->head_dim * sizeof(float));
}

static void llama_slice_ffn(struct slicer *slicer, const struct model_config *config,
                            uint64_t row_count, struct model_buffers *buffers)
{
    model__slice_mlp(slicer, row_count, config->ffn_width, buffers);
}

static uint32_t llama_iota_per_row(const struct model_config *config)
{
    (void)config;
    return 0;
}

static void attend(struct model_pass *pass, uint32_t layer)
{
    const struct model_config *config = pass->config;
    const struct model *model = pass->model;
    const uint32_t kv_width = config->kv_head_count * config->head_dim;
    const struct op attention = { .kind = OP_ATTENTION, .attention = {
        .out = pass->buffers->attended, .q = pass->buffers->qkv,
        .k_cache = model__kv_keys(model, layer), .v_cache = model__kv_values(model, layer),
        .pages = pass->pages, .sequences = pass->sequences, .positions = pass->positions,
        .row_count = pass->row_count, .head_count = config->head_count,
        .kv_head_count = config->kv_head_count,
        .k_width = config->head_dim, .v_width = config->head_dim,
        .page_size = (uint32_t)model->sizes.page_size, .page_count_max = pass->page_count_max,
        .out_row_stride = (uint64_t)config->head_count * config->head_dim,
        .q_row_stride = qkv_width(config),
        .k_cache_row_stride = kv_width, .v_cache_row_stride = kv_width,
        .scale = config->attention_scale,
    } };

    model__pass_launch(pass, &attention);
}

static void llama_attention(struct model_pass *pass, uint32_t layer)
{
    const struct model_config *config = pass->config;
    const struct model_buffers *buffers = pass->buffers;
    const uint64_t stride = qkv_width(config);
    const uint32_t kv_width = config->kv_head_count * config->head_dim;
    float *q = buffers->qkv;
    float *k = q + (uint64_t)config->head_count * config->head_dim;
    const struct pass_linear in = {
        .out = q, .x = buffers->normed, .layer = (int32_t)layer,
        .weight = ROLE_QKV, .bias = ROLE_QKV_BIAS,
    };
    struct pass_norm norm = {
        .out = q, .x = q, .row_stride = stride, .group_count = config->head_count,
        .epsilon = config->norm_epsilon, .layer = (int32_t)layer, .weight = ROLE_Q_NORM,
    };
    const struct pass_linear back = {
        .out = buffers->x, .x = buffers->attended, .layer = (int32_t)layer,
        .weight = ROLE_O, .bias = ROLE_O_BIAS, .accumulate = true,
    };

    model__pass_linear(pass, &in);
    if (config->qk_norm) {
        model__pass_norm(pass, &norm);
        norm.out = k;
        norm.x = k;
        norm.group_count = config->kv_head_count;
        norm.weight = ROLE_K_NORM;
        model__pass_norm(pass, &norm);
    }
    /* queries and keys are adjacent heads: one rotation turns both */
    model__pass_rope(pass, q, config->head_count + config->kv_head_count, stride,
                     config->head_dim);
    model__pass_kv_write(pass, model__kv_keys(pass->model, layer), k, kv_width, stride);
    model__pass_kv_write(pass, model__kv_values(pass->model, layer), k + kv_width, kv_width,
                         stride);
    attend(pass, layer);
    model__pass_linear(pass, &back);
}

#define LLAMA_FAMILY                                                                               \
    .kv_widths = llama_kv_widths, .describe_layer = llama_describe_layer,                          \
    .slice_attention = llama_slice_attention, .slice_ffn = llama_slice_ffn,                        \
    .iota_per_row = llama_iota_per_row, .attention = llama_attention, .ffn = model__pass_mlp

const struct model_arch model_arch_llama = {
    .architecture = "LlamaForCausalLM", .model_type = "llama", .read_config = read_llama,
    LLAMA_FAMILY,
};
const struct model_arch model_arch_mistral = {
    .architecture = "MistralForCausalLM", .model_type = "mistral", .read_config = read_mistral,
    LLAMA_FAMILY,
};
const struct model_arch model_arch_qwen2 = {
    .architecture = "Qwen2ForCausalLM", .model_type = "qwen2", .read_config = read_qwen2,
    LLAMA_FAMILY,
};
const struct model_arch model_arch_qwen3 = {
    .architecture = "Qwen3ForCausalLM", .model_type = "qwen3", .read_config = read_qwen3,
    LLAMA_FAMILY,
};
