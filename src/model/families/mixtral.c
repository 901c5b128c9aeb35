/* model/families/mixtral.c - Mixtral (Jiang et al. 2024, arXiv 2401.04088): Mistral's attention,
 * and a mixture of experts in every layer.
 *
 *     x += grouped-query attention of rms_norm(x)      (gqa.c)
 *     h = rms_norm(x);  x += experts(h)                (experts.c)
 *
 * Section 2.1 takes the best top_k logits and then their softmax; transformers 5.23
 * (models/mixtral) takes the softmax over all experts, and divides the best by their sum, which is
 * the same number but for rounding, and what is done here. w1, w3 and w2 are gate, up and down, as
 * wide as "intermediate_size". A sliding window is every layer's. */
#include "model/internal.h"

static void read_mixtral(struct config_reader *reader, struct model_config *config)
{
    static const struct gqa_missing missing = { 8, 0, { .theta = 1000000.0 } };

    model__gqa_read_heads(reader, config, &missing);
    if (!model__read_has(reader, "rms_norm_eps"))
        config->norm_epsilon = 1e-5f; /* the class's own, unlike the other families' */
    model__read_window(reader, config, 0);
    model__window_everywhere(config);
    model__read_experts_everywhere(reader, config, 8, 2, "\"num_local_experts\" is 0, Mixtral has "
                                   "at least one");
    config->route_normalise = true;
}

static void mixtral_describe_layer(struct params *params, const struct model_config *config,
                                   uint32_t layer)
{
    static const struct expert_names names = {
        .block = "block_sparse_moe", .gate = "w1", .up = "w3", .down = "w2",
    };

    model__gqa_describe(params, config, layer);
    model__describe_ffn(params, config, layer, &names);
}

const struct model_arch model_arch_mixtral = {
    .architecture = "MixtralForCausalLM", .model_type = "mixtral", .read_config = read_mixtral,
    .describe_layer = mixtral_describe_layer, .slice_ffn = model__slice_ffn,
    .ffn = model__pass_ffn, MODEL_ARCH_GQA,
};
