/* checkpoint/gguf_export_families.c - what each family's config.json says, as GGUF says it:
 * gguf_families.c read backwards.
 *
 * The keys are those that llama.cpp's converter writes (conversion/), and what has no key is what
 * llama.cpp knows about the architecture (src/models): another model is refused. */
#include <string.h>

#include "checkpoint/gguf_teller.h"

/* Where only a part of a head is rotated, its share; partial_missing where nothing is said. */
static double rotated_share(struct teller *teller, double partial_missing)
{
    const double share = teller__number_in(teller, teller->config, "partial_rotary_factor",
                                           partial_missing);

    return teller__number_in(teller, teller->rope, "partial_rotary_factor", share);
}

static void tell_heads(struct teller *teller, double theta_missing, double partial_missing)
{
    struct gguf_model *const model = teller->model;
    const uint64_t hidden = teller__count_of(teller, "hidden_size");
    uint64_t head_dim;

    model->kv_head_count = teller__count_or(teller, "num_key_value_heads", model->head_count);
    head_dim = teller__count_or(teller, "head_dim",
                                model->head_count > 0 ? hidden / model->head_count : 0);
    teller__put_count(teller, "attention.head_count_kv", model->kv_head_count);
    teller__put_count(teller, "attention.key_length", head_dim);
    teller__put_count(teller, "attention.value_length", head_dim);
    teller__put_rope(teller, (uint64_t)((double)head_dim * rotated_share(teller, partial_missing)),
                     theta_missing);
}

/* Where a window is not the architecture's own word, a model that uses one is refused. */
static void refuse_window(struct teller *teller)
{
    if (teller__bool_or(teller, "use_sliding_window", false))
        teller__refuse(teller, "it uses a sliding window, for which GGUF's %s has no word",
                       teller->model->arch);
}

static void tell_llama(struct teller *teller)
{
    const bool is_mixtral =
        strcmp(teller__string_in(teller, teller->config, "model_type", ""), "mixtral") == 0;

    teller->model->permutes_rows = true;
    if (is_mixtral) {
        teller__put_count(teller, "expert_count",
                          teller__count_or(teller, "num_local_experts",
                                           teller__count_or(teller, "num_experts", 8)));
        teller__put_count(teller, "expert_used_count",
                          teller__count_or(teller, "num_experts_per_tok", 2));
    }
    if (teller__has(teller->config, "sliding_window"))
        teller__put_count(teller, "attention.sliding_window",
                          teller__count_of(teller, "sliding_window"));
    tell_heads(teller, is_mixtral ? 1e6 : 1e4, 1.0);
}

static void tell_qwen(struct teller *teller)
{
    refuse_window(teller);
    tell_heads(teller, 1e4, 1.0);
}

/* llama.cpp has experts in every layer, and its own mind about whether the chosen ones' weights are
 * normalised. */
static void tell_experts(struct teller *teller, uint64_t count_missing, bool normalised)
{
    if (teller__bool_or(teller, "norm_topk_prob", false) != normalised ||
        teller__count_or(teller, "decoder_sparse_step", 1) != 1 ||
        json_array_size(json_object_get(teller->config, "mlp_only_layers")) > 0)
        teller__refuse(teller, "it has layers without experts, or a \"norm_topk_prob\" that is not "
                       "%s, for which GGUF's %s has no word", normalised ? "true" : "false",
                       teller->model->arch);
    teller__put_count(teller, "expert_count",
                      teller__count_or(teller, "num_experts",
                                       teller__count_or(teller, "num_local_experts",
                                                        count_missing)));
    teller__put_count(teller, "expert_used_count", teller__count_of(teller, "num_experts_per_tok"));
}

static void tell_qwen3moe(struct teller *teller)
{
    refuse_window(teller);
    tell_experts(teller, 128, true);
    teller__put_count(teller, "expert_feed_forward_length",
                      teller__count_of(teller, "moe_intermediate_size"));
    tell_heads(teller, 1e4, 1.0);
}

static void tell_qwen2moe(struct teller *teller)
{
    refuse_window(teller);
    tell_experts(teller, 60, false);
    teller__put_count(teller, "expert_feed_forward_length",
                      teller__count_of(teller, "moe_intermediate_size"));
    teller__put_count(teller, "expert_shared_feed_forward_length",
                      teller__count_of(teller, "shared_expert_intermediate_size"));
    tell_heads(teller, 1e4, 1.0);
}

static void tell_olmoe(struct teller *teller)
{
    if (teller__has(teller->config, "clip_qkv"))
        teller__refuse(teller, "it has a \"clip_qkv\", for which GGUF's olmoe has no word");
    tell_experts(teller, 64, false);
    tell_heads(teller, 1e4, 1.0);
}

static void tell_glm4(struct teller *teller)
{
    tell_heads(teller, 1e4, 0.5);
}

static void tell_glm4moe(struct teller *teller)
{
    teller__put_count(teller, "expert_count", teller__count_of(teller, "n_routed_experts"));
    teller__put_count(teller, "expert_used_count", teller__count_of(teller, "num_experts_per_tok"));
    teller__put_count(teller, "expert_shared_count", teller__count_of(teller, "n_shared_experts"));
    teller__put_count(teller, "expert_feed_forward_length",
                      teller__count_of(teller, "moe_intermediate_size"));
    teller__put_count(teller, "leading_dense_block_count",
                      teller__count_or(teller, "first_k_dense_replace", 0));
    teller__put_count(teller, "expert_gating_func", 2);
    teller__put_number(teller, "expert_weights_scale",
                       teller__number_in(teller, teller->config, "routed_scaling_factor", 1.0));
    teller__put_bool(teller, "expert_weights_norm",
                     teller__bool_or(teller, "norm_topk_prob", true));
    teller__put_count(teller, "expert_group_count", teller__count_or(teller, "n_group", 1));
    teller__put_count(teller, "expert_group_used_count", teller__count_or(teller, "topk_group", 1));
    tell_heads(teller, 1e4, 0.5);
}

static void tell_phi3(struct teller *teller)
{
    if (teller__has(teller->config, "sliding_window"))
        teller__put_count(teller, "attention.sliding_window",
                          teller__count_of(teller, "sliding_window"));
    tell_heads(teller, 1e4, 1.0);
}

static void tell_granite(struct teller *teller)
{
    static const char *const multipliers[][2] = {
        { "attention_multiplier", "attention.scale" },
        { "embedding_multiplier", "embedding_scale" },
        { "residual_multiplier", "residual_scale" },
        { "logits_scaling", "logit_scale" },
    };

    teller->model->permutes_rows = true;
    for (size_t i = 0; i < sizeof(multipliers) / sizeof(multipliers[0]); i++)
        teller__put_number(teller, multipliers[i][1],
                           teller__number_in(teller, teller->config, multipliers[i][0], 1.0));
    tell_heads(teller, 1e4, 1.0);
}

static void tell_granitemoe(struct teller *teller)
{
    const uint64_t shared = teller__count_or(teller, "shared_intermediate_size", 0);

    teller__put_count(teller, "expert_count", teller__count_of(teller, "num_local_experts"));
    teller__put_count(teller, "expert_used_count", teller__count_of(teller, "num_experts_per_tok"));
    if (shared > 0)
        teller__put_count(teller, "expert_shared_feed_forward_length", shared);
    tell_granite(teller);
}

static void tell_latent_attention(struct teller *teller)
{
    struct gguf_model *const model = teller->model;
    const uint64_t latent = teller__count_of(teller, "kv_lora_rank");
    const uint64_t rotated = teller__count_of(teller, "qk_rope_head_dim");

    model->splits_kv_b = true;
    model->key_rows = teller__count_of(teller, "qk_nope_head_dim");
    model->value_rows = teller__count_of(teller, "v_head_dim");
    teller__put_count(teller, "attention.head_count_kv", 1);
    teller__put_count(teller, "attention.kv_lora_rank", latent);
    if (json_object_get(teller->config, "q_lora_rank") == NULL)
        teller__refuse(teller, "\"q_lora_rank\" is missing");
    if (teller__has(teller->config, "q_lora_rank"))
        teller__put_count(teller, "attention.q_lora_rank", teller__count_of(teller, "q_lora_rank"));
    teller__put_count(teller, "attention.key_length", latent + rotated);
    teller__put_count(teller, "attention.value_length", latent);
    teller__put_count(teller, "attention.key_length_mla", model->key_rows + rotated);
    teller__put_count(teller, "attention.value_length_mla", model->value_rows);
    teller__put_rope(teller, rotated, 1e4);
}

static void tell_deepseek2(struct teller *teller)
{
    const bool is_v3 =
        strcmp(teller__string_in(teller, teller->config, "model_type", ""), "deepseek_v3") == 0;
    const char *const method = teller__string_in(teller, teller->config, "topk_method", "greedy");
    const bool has_groups = is_v3 || strcmp(method, "group_limited_greedy") == 0;
    const uint64_t experts = teller__count_or(teller, "n_routed_experts", 0);
    const uint64_t groups = teller__count_or(teller, "n_group", 1);

    if (teller__count_or(teller, "moe_layer_freq", 1) != 1)
        teller__refuse(teller, "\"moe_layer_freq\" is not 1, for which GGUF files have no word");
    if (!teller__bool_or(teller, "rope_interleave", true))
        teller__refuse(teller, "\"rope_interleave\" is false, for which GGUF's deepseek2 has no "
                       "word");
    tell_latent_attention(teller);
    teller__put_count(teller, "leading_dense_block_count",
                      experts > 0 ? teller__count_or(teller, "first_k_dense_replace", 0)
                                  : teller->model->layer_count);
    teller__put_count(teller, "expert_count", experts);
    if (experts == 0)
        return;
    teller__put_count(teller, "expert_used_count", teller__count_of(teller, "num_experts_per_tok"));
    teller__put_count(teller, "expert_feed_forward_length",
                      teller__count_of(teller, "moe_intermediate_size"));
    teller__put_count(teller, "expert_shared_count",
                      teller__count_or(teller, "n_shared_experts", 0));
    teller__put_number(teller, "expert_weights_scale",
                       teller__number_in(teller, teller->config, "routed_scaling_factor", 1.0));
    teller__put_bool(teller, "expert_weights_norm",
                     is_v3 && teller__bool_or(teller, "norm_topk_prob", true));
    teller__put_count(teller, "expert_gating_func", is_v3 ? 2 : 1);
    teller__put_count(teller, "expert_group_count", has_groups ? groups : 1);
    teller__put_count(teller, "expert_group_used_count",
                      has_groups ? teller__count_or(teller, "topk_group", 1) : 1);
}

const struct teller_family teller__families[] = {
    { "llama", "llama", tell_llama },         { "mistral", "llama", tell_llama },
    { "mixtral", "llama", tell_llama },       { "qwen2", "qwen2", tell_qwen },
    { "qwen3", "qwen3", tell_qwen },          { "qwen3_moe", "qwen3moe", tell_qwen3moe },
    { "qwen2_moe", "qwen2moe", tell_qwen2moe }, { "olmoe", "olmoe", tell_olmoe },
    { "glm4", "glm4", tell_glm4 },            { "glm4_moe", "glm4moe", tell_glm4moe },
    { "phi3", "phi3", tell_phi3 },            { "granite", "granite", tell_granite },
    { "granitemoe", "granitemoe", tell_granitemoe },
    { "granitemoeshared", "granitemoe", tell_granitemoe },
    { "deepseek_v2", "deepseek2", tell_deepseek2 },
    { "deepseek_v3", "deepseek2", tell_deepseek2 },
    { NULL, NULL, NULL },
};
