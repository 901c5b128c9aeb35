/* model/families/granite.c - Granite 3 and 4: dense, or with a mixture of experts and perhaps a
 * shared one.
 *
 *     x = e embed(ids)
 *     x += r grouped-query attention of rms_norm(x)              (gqa.c), the softmax's scale given
 *     h = rms_norm(x);  x += r mlp(h), or r (experts(h) + shared(h))
 *     logits = (rms_norm(x) Whead) / l
 *
 * e, r, the scale and l are "embedding_multiplier", "residual_multiplier", "attention_multiplier"
 * and "logits_scaling". Experts are as wide as "intermediate_size", and published with all of a
 * layer in one tensor; their weights are the softmax over the chosen logits, which is the softmax
 * over all divided by the sum of the chosen. Facts from transformers 5.23 (models/granite,
 * granitemoe, granitemoeshared). */
#include "model/internal.h"

static float read_multiplier(struct config_reader *reader, const char *key)
{
    return (float)model__read_double(reader, key, 1e-6, 1e6, 1.0);
}

static void read_granite(struct config_reader *reader, struct model_config *config)
{
    static const struct gqa_missing missing = { 0, 0, { .theta = 10000.0 } };

    model__gqa_read_heads(reader, config, &missing);
    config->qkv_bias = config->o_bias = model__read_bool(reader, "attention_bias", false);
    config->mlp_bias = model__read_bool(reader, "mlp_bias", false);
    config->embedding_scale = read_multiplier(reader, "embedding_multiplier");
    config->residual_scale = read_multiplier(reader, "residual_multiplier");
    config->attention_scale = read_multiplier(reader, "attention_multiplier");
    config->logits_scale = 1.0f / read_multiplier(reader, "logits_scaling");
}

static void read_granite_moe(struct config_reader *reader, struct model_config *config)
{
    read_granite(reader, config);
    config->mlp_bias = false; /* only the dense one has them */
    model__read_experts_everywhere(reader, config, 8, 2, "\"num_local_experts\" is 0, a Granite "
                                   "without experts is a GraniteForCausalLM");
    config->route_normalise = true;
}

static void read_granite_moe_shared(struct config_reader *reader, struct model_config *config)
{
    read_granite_moe(reader, config);
    config->shared_ffn_width = model__read_count_or(reader, "shared_intermediate_size", 0,
                                                    CONFIG_FFN_MAX, 0);
}

/* As published: gate and up are one matrix. */
static void describe_shared(struct params *params, const struct model_config *config,
                            uint32_t layer)
{
    const struct param_rows in = { "shared_mlp.input_linear.weight",
                                   2 * (uint64_t)config->shared_ffn_width };
    const struct param_rows out = { "shared_mlp.output_linear.weight", config->hidden_size };
    struct param_spec spec = { .name = "mlp.shared_experts.gate_up_proj.weight",
                               .layer = (int32_t)layer, .role = ROLE_GATE_UP,
                               .part = OFFLOAD_PART_FFN, .moves = true };

    model__param_stack(params, &spec, config->hidden_size, &in, 1);
    spec.name = "mlp.shared_experts.down_proj.weight";
    spec.role = ROLE_DOWN;
    model__param_stack(params, &spec, config->shared_ffn_width, &out, 1);
}

static void granite_moe_describe_layer(struct params *params, const struct model_config *config,
                                       uint32_t layer)
{
    const bool is_published = model__param_source_exists(params, (int32_t)layer,
                                                         "shared_mlp.input_linear.weight");
    const struct expert_names names = {
        .block = "mlp", .gate = "gate_proj", .up = "up_proj", .down = "down_proj",
        .fused_router = "block_sparse_moe.router.layer.weight",
        .fused_in = "block_sparse_moe.input_linear.weight",
        .fused_out = "block_sparse_moe.output_linear.weight",
        .shared = is_published ? NULL : "mlp.shared_experts",
    };

    model__gqa_describe(params, config, layer);
    model__describe_ffn(params, config, layer, &names);
    if (config->shared_ffn_width > 0 && is_published)
        describe_shared(params, config, layer);
}

#define GRANITE_FAMILY                                                                             \
    MODEL_ARCH_GQA, .slice_ffn = model__slice_ffn, .ffn = model__pass_ffn

const struct model_arch model_arch_granite = {
    .architecture = "GraniteForCausalLM", .model_type = "granite", .read_config = read_granite,
    .describe_layer = model__dense_describe_layer, GRANITE_FAMILY,
};
const struct model_arch model_arch_granite_moe = {
    .architecture = "GraniteMoeForCausalLM", .model_type = "granitemoe",
    .read_config = read_granite_moe, .describe_layer = granite_moe_describe_layer, GRANITE_FAMILY,
};
const struct model_arch model_arch_granite_moe_shared = {
    .architecture = "GraniteMoeSharedForCausalLM", .model_type = "granitemoeshared",
    .read_config = read_granite_moe_shared, .describe_layer = granite_moe_describe_layer,
    GRANITE_FAMILY,
};
