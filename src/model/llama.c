/* model/llama.c - the dense family: Llama, Mistral, Qwen2, Qwen3.
 *
 *     x += grouped-query attention of rms_norm(x)                (gqa.c)
 *     h = rms_norm(x);  x += (silu(h Wgate) * (h Wup)) Wdown
 *
 * The members differ in which projections have biases, in Qwen3's norms on q and k, and in what a
 * missing key of config.json stands for; facts from transformers 5.23's models/llama, mistral,
 * qwen2 and qwen3.
 *
 * Sliding windows are not built: a window that no served context is longer than changes nothing,
 * and a longer context is refused when the model is created. */
#include <string.h>

#include "base/json.h"
#include "model/internal.h"

#define ROPE_THETA 10000.0 /* of all four, when it is missing */

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
    static const struct gqa_missing missing = { 0, 0, { ROPE_THETA, 0 } };
    bool any_sliding;

    model__gqa_read_heads(reader, config, &missing);
    config->qkv_bias = config->o_bias = model__read_bool(reader, "attention_bias", false);
    config->mlp_bias = model__read_bool(reader, "mlp_bias", false);
    (void)read_layer_types(reader, config, &any_sliding);
    if (any_sliding)
        model__read_refuse(reader, "\"layer_types\" names sliding layers, which Llama has not");
}

static void read_mistral(struct config_reader *reader, struct model_config *config)
{
    static const struct gqa_missing missing = { 8, 0, { ROPE_THETA, 0 } };
    const uint32_t window_missing = model__read_is_null(reader, "sliding_window") ? 0 : 4096;
    bool any_sliding;

    model__gqa_read_heads(reader, config, &missing);
    (void)read_layer_types(reader, config, &any_sliding);
    config->sliding_window = model__read_count_or(reader, "sliding_window", 1, CONFIG_CONTEXT_MAX,
                                                  window_missing);
}

static void read_qwen2(struct config_reader *reader, struct model_config *config)
{
    static const struct gqa_missing missing = { 32, 0, { ROPE_THETA, 0 } };

    model__gqa_read_heads(reader, config, &missing);
    config->qkv_bias = true;
    read_qwen_window(reader, config);
}

static void read_qwen3(struct config_reader *reader, struct model_config *config)
{
    const struct gqa_missing missing = {
        32, model__read_is_null(reader, "head_dim") ? 0 : 128, { ROPE_THETA, 0 },
    };

    model__gqa_read_heads(reader, config, &missing);
    config->qkv_bias = config->o_bias = model__read_bool(reader, "attention_bias", false);
    config->qk_norm = true;
    read_qwen_window(reader, config);
}

static void llama_describe_layer(struct params *params, const struct model_config *config,
                                 uint32_t layer)
{
    model__gqa_describe(params, config, layer);
    model__describe_norm(params, layer, ROLE_POST_NORM, OFFLOAD_PART_FFN,
                         "post_attention_layernorm.weight", config->hidden_size);
    model__describe_mlp(params, config, layer, "mlp", config->ffn_width);
}

#define LLAMA_FAMILY                                                                               \
    MODEL_ARCH_GQA, .describe_layer = llama_describe_layer, .slice_ffn = model__slice_ffn,         \
    .ffn = model__pass_ffn

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
