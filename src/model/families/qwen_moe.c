/* model/families/qwen_moe.c - Qwen2 and Qwen3 with mixtures of experts (Qwen1.5-MoE-A2.7B,
 * Qwen2-57B-A14B, Qwen3-30B-A3B and their like).
 *
 *     x += grouped-query attention of rms_norm(x)                                  (gqa.c)
 *     h = rms_norm(x);  x += experts(h), or in some layers a dense FFN             (experts.c)
 *
 * Scores are the softmax over all experts; the best top_k are taken, and their scores divided by
 * their sum where "norm_topk_prob" says so. Qwen2's q, k and v have biases, and beside its experts
 * is one that all rows go through, weighed by the sigmoid of a product with the row. Qwen3
 * normalises q and k per head and has no shared expert. Where implementations differ, this is
 * transformers 5.23 (models/qwen2_moe, qwen3_moe):
 * - A layer is dense when "mlp_only_layers" lists it, or its number, counted from one, is no
 *   multiple of "decoder_sparse_step".
 * - A sliding window that is switched on is every layer's in Qwen3-MoE, where "max_window_layers"
 *   is not looked at; in Qwen2-MoE it is every second one's, from the first on, before that
 *   number, unless "layer_types" says which. */
#include "base/json.h"
#include "model/internal.h"

static void read_dense_layers(struct config_reader *reader, struct model_config *config)
{
    const uint32_t step = model__read_count_or(reader, "decoder_sparse_step", 1, UINT32_MAX, 1);
    const json_t *dense = NULL;

    if (reader->status == STATUS_OK)
        reader->status = json_get_array(reader->json, "mlp_only_layers", reader->what, &dense,
                                        reader->err);
    if (reader->status != STATUS_OK)
        return;
    for (uint32_t i = 0; i < config->layer_count; i++)
        config->has_experts[i] = config->expert_count > 0 && (i + 1) % step == 0;
    for (size_t i = 0; i < json_array_size(dense); i++) {
        const json_t *layer = json_array_get(dense, i);

        if (!json_is_integer(layer))
            model__read_refuse(reader, "\"mlp_only_layers\" holds %s, integers are wanted",
                               json_kind(layer));
        else if (json_integer_value(layer) >= 0 &&
                 json_integer_value(layer) < config->layer_count)
            config->has_experts[json_integer_value(layer)] = false;
    }
}

static void read_qwen3_moe(struct config_reader *reader, struct model_config *config)
{
    static const struct gqa_missing missing = { 4, 0, { .theta = 10000.0 } };

    model__gqa_read_heads(reader, config, &missing);
    config->qkv_bias = config->o_bias = model__read_bool(reader, "attention_bias", false);
    config->qk_norm = true;
    model__read_window(reader, config, 4096);
    if (!model__read_bool(reader, "use_sliding_window", false))
        config->sliding_window = 0;
    model__window_everywhere(config);
    config->expert_ffn_width = model__read_count_or(reader, "moe_intermediate_size", 1,
                                                    CONFIG_FFN_MAX, 768);
    model__read_softmax_experts(reader, config, 128, 8);
    config->route_normalise = model__read_bool(reader, "norm_topk_prob", false);
    read_dense_layers(reader, config);
}

static void read_alternate_windows(struct config_reader *reader, struct model_config *config)
{
    const uint32_t end = model__read_count_or(reader, "max_window_layers", 0, UINT32_MAX, 28);
    const uint32_t missing = model__read_is_null(reader, "sliding_window") ? 0 : 4096;

    /* 0 is how transformers writes that it is switched off */
    config->sliding_window =
        model__read_count_or(reader, "sliding_window", 0, CONFIG_CONTEXT_MAX, missing);
    if (!model__read_bool(reader, "use_sliding_window", false))
        config->sliding_window = 0;
    if (!model__read_layer_types(reader, config))
        for (uint32_t i = 0; i < config->layer_count && i < end; i += 2)
            config->is_sliding[i] = config->sliding_window != 0;
}

static void read_qwen2_moe(struct config_reader *reader, struct model_config *config)
{
    static const struct gqa_missing missing = { 16, 0, { .theta = 10000.0 } };

    model__gqa_read_heads(reader, config, &missing);
    config->qkv_bias = model__read_bool(reader, "qkv_bias", true);
    read_alternate_windows(reader, config);
    config->expert_ffn_width = model__read_count_or(reader, "moe_intermediate_size", 1,
                                                    CONFIG_FFN_MAX, 1408);
    config->shared_ffn_width = model__read_count_or(reader, "shared_expert_intermediate_size", 1,
                                                    CONFIG_FFN_MAX, 5632);
    config->shared_gate = true;
    model__read_softmax_experts(reader, config, 60, 4);
    config->route_normalise = model__read_bool(reader, "norm_topk_prob", false);
    read_dense_layers(reader, config);
}

static void qwen_moe_describe_layer(struct params *params, const struct model_config *config,
                                    uint32_t layer)
{
    static const struct expert_names names = {
        .block = "mlp", .gate = "gate_proj", .up = "up_proj", .down = "down_proj",
        .shared = "mlp.shared_expert", .shared_gate = "mlp.shared_expert_gate.weight",
    };

    model__gqa_describe(params, config, layer);
    model__describe_ffn(params, config, layer, &names);
}

#define QWEN_MOE_FAMILY                                                                            \
    MODEL_ARCH_GQA, .describe_layer = qwen_moe_describe_layer, .slice_ffn = model__slice_ffn,      \
    .ffn = model__pass_ffn

const struct model_arch model_arch_qwen2_moe = {
    .architecture = "Qwen2MoeForCausalLM", .model_type = "qwen2_moe",
    .read_config = read_qwen2_moe, QWEN_MOE_FAMILY,
};
const struct model_arch model_arch_qwen3_moe = {
    .architecture = "Qwen3MoeForCausalLM", .model_type = "qwen3_moe",
    .read_config = read_qwen3_moe, QWEN_MOE_FAMILY,
};
