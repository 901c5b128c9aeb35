/* model/families/olmoe.c - OLMoE (Muennighoff et al. 2024, arXiv 2409.02060).
 *
 *     x += grouped-query attention of rms_norm(x), q and k normalised over all heads   (gqa.c)
 *     h = rms_norm(x);  x += experts(h)                                                (experts.c)
 *
 * Every layer has experts, as wide as "intermediate_size"; scores are the softmax over all of them.
 * Facts from transformers 5.23 (models/olmoe). "clip_qkv", which no published OLMoE sets, is not
 * built. */
#include "model/internal.h"

static void read_olmoe(struct config_reader *reader, struct model_config *config)
{
    static const struct gqa_missing missing = { 0, 0, { .theta = 10000.0 } };

    model__gqa_read_heads(reader, config, &missing);
    if (!model__read_has(reader, "rms_norm_eps"))
        config->norm_epsilon = 1e-5f; /* the class's own */
    config->qkv_bias = config->o_bias = model__read_bool(reader, "attention_bias", false);
    config->qk_norm_whole = true;
    if (model__read_has(reader, "clip_qkv"))
        model__read_refuse(reader, "\"clip_qkv\" is set, clipping of queries, keys and values is "
                           "not built");
    model__read_experts_everywhere(reader, config, 64, 8, "\"num_experts\" is 0, OLMoE has at "
                                   "least one");
    config->route_normalise = model__read_bool(reader, "norm_topk_prob", false);
}

static void olmoe_describe_layer(struct params *params, const struct model_config *config,
                                 uint32_t layer)
{
    static const struct expert_names names = {
        .block = "mlp", .gate = "gate_proj", .up = "up_proj", .down = "down_proj",
    };

    model__gqa_describe(params, config, layer);
    model__describe_ffn(params, config, layer, &names);
}

const struct model_arch model_arch_olmoe = {
    .architecture = "OlmoeForCausalLM", .model_type = "olmoe", .read_config = read_olmoe,
    .describe_layer = olmoe_describe_layer, .slice_ffn = model__slice_ffn,
    .ffn = model__pass_ffn, MODEL_ARCH_GQA,
};
