/* model/families/glm.c - GLM-4 (GLM-4-9B-0414, GLM-4-32B-0414), and GLM-4 with a mixture of experts
 * (GLM-4.5 and its successors).
 *
 * Both rotate the first half of each head, and q, k and v may have biases. The dense one rotates
 * adjacent pairs and normalises what attention and FFN give before it is added:
 *
 *     x += rms_norm(grouped-query attention of rms_norm(x))             (gqa.c)
 *     x += rms_norm(gated MLP of rms_norm(x))
 *
 * The other one rotates the two halves of what is rotated, may normalise q and k per head, and
 * chooses experts as DeepSeek-V3 does, by sigmoids with a correction for the choice alone:
 *
 *     x += grouped-query attention of rms_norm(x)
 *     h = rms_norm(x);  x += experts(h) + shared(h), or in the first layers a dense FFN
 *
 * A layer for multi-token prediction behind the last one is not used. Facts from transformers 5.23
 * (models/glm4, glm4_moe). */
#include "model/internal.h"

#define ROPE_MISSING { .theta = 10000.0, .partial = 0.5 }

static void read_glm4(struct config_reader *reader, struct model_config *config)
{
    const struct gqa_missing missing = {
        2, model__read_is_null(reader, "head_dim") ? 0 : 128, ROPE_MISSING,
    };

    model__gqa_read_heads(reader, config, &missing);
    if (!model__read_has(reader, "rms_norm_eps"))
        config->norm_epsilon = 1.5625e-7f; /* the class's own */
    config->rope_interleaved = true;
    config->qkv_bias = model__read_bool(reader, "attention_bias", true);
    config->out_norms = true;
}

static void glm4_describe_layer(struct params *params, const struct model_config *config,
                                uint32_t layer)
{
    model__gqa_describe(params, config, layer);
    model__describe_norm(params, layer, ROLE_ATTENTION_OUT_NORM, OFFLOAD_PART_ATTENTION,
                         "post_self_attn_layernorm.weight", config->hidden_size);
    model__describe_norm(params, layer, ROLE_POST_NORM, OFFLOAD_PART_FFN,
                         "post_attention_layernorm.weight", config->hidden_size);
    model__describe_mlp(params, config, layer, "mlp", config->ffn_width);
    model__describe_norm(params, layer, ROLE_FFN_OUT_NORM, OFFLOAD_PART_FFN,
                         "post_mlp_layernorm.weight", config->hidden_size);
}

static void read_glm4_moe(struct config_reader *reader, struct model_config *config)
{
    static const struct gqa_missing missing = { 8, 0, ROPE_MISSING };
    static const struct routed_missing experts = { 128, 1, 1408, 8, 1, 1.0 };

    model__gqa_read_heads(reader, config, &missing);
    if (!model__read_has(reader, "rms_norm_eps"))
        config->norm_epsilon = 1e-5f; /* the class's own */
    config->qkv_bias = model__read_bool(reader, "attention_bias", false);
    config->qk_norm = model__read_bool(reader, "use_qk_norm", false);
    model__read_routed_experts(reader, config, &experts);
    model__read_groups(reader, config, 1, 1);
    config->scoring = ROUTE_SIGMOID;
    config->groups = ROUTE_GROUP_TOP2_SUM;
    config->route_bias = true;
    config->route_normalise = model__read_bool(reader, "norm_topk_prob", true);
    config->predict_layer_count = model__read_count_or(reader, "num_nextn_predict_layers", 0,
                                                       CONFIG_LAYERS_MAX, 1);
    if (reader->status == STATUS_OK)
        model__check_groups(reader, config, 2);
}

static void glm4_moe_describe_layer(struct params *params, const struct model_config *config,
                                    uint32_t layer)
{
    static const struct expert_names names = {
        .block = "mlp", .gate = "gate_proj", .up = "up_proj", .down = "down_proj",
        .router_bias = "mlp.gate.e_score_correction_bias", .shared = "mlp.shared_experts",
    };

    model__gqa_describe(params, config, layer);
    model__describe_ffn(params, config, layer, &names);
}

const struct model_arch model_arch_glm4 = {
    .architecture = "Glm4ForCausalLM", .model_type = "glm4", .read_config = read_glm4,
    .describe_layer = glm4_describe_layer, .slice_ffn = model__slice_ffn,
    .ffn = model__pass_ffn, MODEL_ARCH_GQA,
};
const struct model_arch model_arch_glm4_moe = {
    .architecture = "Glm4MoeForCausalLM", .model_type = "glm4_moe", .read_config = read_glm4_moe,
    .describe_layer = glm4_moe_describe_layer, .slice_ffn = model__slice_ffn,
    .ffn = model__pass_ffn, MODEL_ARCH_GQA,
};
