/* model/families/llama.c - the dense family: Llama, Mistral, Qwen2, Qwen3.
 *
 *     x += grouped-query attention of rms_norm(x)                (gqa.c)
 *     h = rms_norm(x);  x += (silu(h Wgate) * (h Wup)) Wdown
 *
 * The members differ in which projections have biases, in Qwen3's norms on q and k, and in what a
 * missing key of config.json stands for; facts from transformers 5.23's models/llama, mistral,
 * qwen2 and qwen3.
 * A window is every layer's of a Mistral; of a Qwen's from "max_window_layers" on. */
#include "model/internal.h"

#define ROPE_THETA 10000.0 /* of all four, when it is missing */

/* Qwen's rule: a window counts only where it is switched on, and only for some layers. */
static void read_qwen_window(struct config_reader *reader, struct model_config *config)
{
    const bool is_on = model__read_bool(reader, "use_sliding_window", false);
    const uint32_t first = model__read_count_or(reader, "max_window_layers", 0, UINT32_MAX, 28);

    model__read_window(reader, config, 4096);
    if (!is_on)
        config->sliding_window = 0;
    if (!model__read_layer_types(reader, config)) {
        for (uint32_t i = first; i < config->layer_count; i++)
            config->is_sliding[i] = config->sliding_window != 0;
        return;
    }
    for (uint32_t i = 0; i < config->layer_count; i++)
        if (config->is_sliding[i] && config->sliding_window == 0)
            model__read_refuse(reader, "\"layer_types\" names sliding layers, but there is no "
                               "\"sliding_window\" in use");
}

static void read_llama(struct config_reader *reader, struct model_config *config)
{
    static const struct gqa_missing missing = { 0, 0, { .theta = ROPE_THETA } };

    model__gqa_read_heads(reader, config, &missing);
    config->qkv_bias = config->o_bias = model__read_bool(reader, "attention_bias", false);
    config->mlp_bias = model__read_bool(reader, "mlp_bias", false);
    (void)model__read_layer_types(reader, config);
    for (uint32_t i = 0; i < config->layer_count; i++)
        if (config->is_sliding[i])
            model__read_refuse(reader, "\"layer_types\" names sliding layers, which Llama has "
                               "not");
}

static void read_mistral(struct config_reader *reader, struct model_config *config)
{
    static const struct gqa_missing missing = { 8, 0, { .theta = ROPE_THETA } };

    model__gqa_read_heads(reader, config, &missing);
    (void)model__read_layer_types(reader, config); /* for what is not known */
    model__read_window(reader, config, 4096);
    model__window_everywhere(config);
}

static void read_qwen2(struct config_reader *reader, struct model_config *config)
{
    static const struct gqa_missing missing = { 32, 0, { .theta = ROPE_THETA } };

    model__gqa_read_heads(reader, config, &missing);
    config->qkv_bias = true;
    read_qwen_window(reader, config);
}

static void read_qwen3(struct config_reader *reader, struct model_config *config)
{
    const struct gqa_missing missing = {
        32, model__read_is_null(reader, "head_dim") ? 0 : 128, { .theta = ROPE_THETA },
    };

    model__gqa_read_heads(reader, config, &missing);
    config->qkv_bias = config->o_bias = model__read_bool(reader, "attention_bias", false);
    config->qk_norm = true;
    read_qwen_window(reader, config);
}

#define LLAMA_FAMILY                                                                               \
    MODEL_ARCH_GQA, .describe_layer = model__dense_describe_layer,                                 \
    .slice_ffn = model__slice_ffn, .ffn = model__pass_ffn

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
