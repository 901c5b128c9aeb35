/* model/families/gpt_oss.c - gpt-oss (OpenAI 2025, arXiv 2508.10925).
 *
 *     x += grouped-query attention with sinks of rms_norm(x)            (gqa.c)
 *     x += mixture of experts of rms_norm(x)                            (experts.c)
 *
 * All linear maps have biases: q, k, v and o, the router and the experts. Every second layer has a
 * window, from the first on. An expert's weight is the softmax of the chosen ones' logits alone,
 * which is that of all, divided by the sum of the chosen. Facts from transformers 5.24
 * (models/gpt_oss):
 *
 * - A missing key is the class's own number. There without "rope_scaling" and "rope_parameters" a
 *   YaRN is meant that no file relies on; here such a file is refused.
 * - "swiglu_alpha" and "swiglu_limit" are what GATE_CLAMPED_SWISH has, in all published files.
 * - Checkpoints hold a layer's experts in one tensor, each matrix the other way round unless it is
 *   in MXFP4, and gate and up take turns, as their biases do. */
#include "model/internal.h"

static void read_gate(struct config_reader *reader, struct model_config *config)
{
    const double alpha = model__read_double(reader, "swiglu_alpha", 0.0, 1e6, 1.702);
    const double limit = model__read_double(reader, "swiglu_limit", 0.0, 1e6, 7.0);

    if (alpha != 1.702 || limit != 7.0)
        model__read_refuse(reader, "\"swiglu_alpha\" is %g and \"swiglu_limit\" %g, only 1.702 and "
                           "7 are built", alpha, limit);
    config->gate = GATE_CLAMPED_SWISH;
}

static void read_gpt_oss(struct config_reader *reader, struct model_config *config)
{
    static const struct gqa_missing missing = { 8, 64, { .theta = 150000.0 } };

    if (!model__read_has(reader, "rms_norm_eps"))
        config->norm_epsilon = 1e-5f; /* the class's own */
    if (!model__read_has(reader, "rope_scaling") && !model__read_has(reader, "rope_parameters"))
        model__read_refuse(reader, "neither \"rope_scaling\" nor \"rope_parameters\" says how "
                           "positions are rotated");
    model__gqa_read_heads(reader, config, &missing);
    config->qkv_bias = config->o_bias = model__read_bool(reader, "attention_bias", true);
    config->sinks = true;
    model__read_window(reader, config, 128);
    if (!model__read_layer_types(reader, config))
        for (uint32_t i = 0; i < config->layer_count; i++)
            config->is_sliding[i] = i % 2 == 0;
    read_gate(reader, config);
    model__read_experts_everywhere(reader, config, 128, 4, "\"num_local_experts\" is 0, gpt-oss "
                                   "has at least one");
    config->route_normalise = config->expert_biases = true;
}

static void gpt_oss_describe_layer(struct params *params, const struct model_config *config,
                                   uint32_t layer)
{
    static const struct expert_names names = {
        .block = "mlp", .gate = "gate_proj", .up = "up_proj", .down = "down_proj",
        .router = "mlp.router.weight", .fused_router = "mlp.router.weight",
        .fused_transposed = true, .fused_by_turns = true, .logit_bias = "mlp.router.bias",
        .in_bias = "mlp.experts.gate_up_proj_bias", .out_bias = "mlp.experts.down_proj_bias",
    };

    model__gqa_describe(params, config, layer);
    model__describe_ffn(params, config, layer, &names);
}

const struct model_arch model_arch_gpt_oss = {
    .architecture = "GptOssForCausalLM", .model_type = "gpt_oss", MODEL_ARCH_GQA,
    .read_config = read_gpt_oss, .describe_layer = gpt_oss_describe_layer,
    .slice_ffn = model__slice_ffn, .ffn = model__pass_ffn,
};
