/* checkpoint/gguf/families.c - what each of GGUF's architectures says, as its config.json says it.
 *
 * The keys are those of gguf-py 0.19 (constants.py), what they mean is what llama.cpp makes of them
 * (src/models, conversion/). Where that is not plain:
 *
 * - llama is Mixtral where it has experts, Mistral where it has a window.
 * - deepseek2 is V2 or V3 by its gating function; the newer files' sizes of the latent attention
 *   (key_length_mla) stand beside those of the older ones.
 * - Whether the chosen experts' weights are normalised is llama.cpp's knowledge about the
 *   architecture mostly, and not the file's.
 * - Old files of qwen2moe lack the experts' widths. */
#include <inttypes.h>
#include <math.h>

#include "checkpoint/gguf/maker.h"

#define LAYER_0 "model.layers.0."

/* A count that must be there, under its other name. */
static void put_count_of(struct maker *maker, const char *key, const char *gguf_key)
{
    gguf__put_count(maker, key, gguf__count_of(maker, gguf_key));
}

static void put_attention_bias(struct maker *maker)
{
    gguf__put_bool(maker, "attention_bias",
                   gguf__has_tensor(maker, LAYER_0 "self_attn.q_proj.bias"));
}

static void make_llama(struct maker *maker)
{
    const uint64_t experts = gguf__count_or(maker, "expert_count", 0);
    const uint64_t window = gguf__count_or(maker, "attention.sliding_window", 0);

    if (experts > 0) {
        gguf__put_names(maker, "MixtralForCausalLM", "mixtral");
        gguf__put_count(maker, "num_local_experts", experts);
        put_count_of(maker, "num_experts_per_tok", "expert_used_count");
    } else if (window > 0) {
        gguf__put_names(maker, "MistralForCausalLM", "mistral");
    } else {
        gguf__put_names(maker, "LlamaForCausalLM", "llama");
    }
    if (window > 0)
        gguf__put_count(maker, "sliding_window", window);
    else
        gguf__put(maker, maker->config, "sliding_window", json_null());
    put_attention_bias(maker);
    gguf__put_bool(maker, "mlp_bias", gguf__has_tensor(maker, LAYER_0 "mlp.gate_proj.bias"));
    gguf__put_heads(maker, true);
}

static void make_qwen2(struct maker *maker)
{
    gguf__put_names(maker, "Qwen2ForCausalLM", "qwen2");
    gguf__put_heads(maker, false);
}

static void make_qwen3(struct maker *maker)
{
    gguf__put_names(maker, "Qwen3ForCausalLM", "qwen3");
    put_attention_bias(maker);
    gguf__put_heads(maker, false);
}

/* llama.cpp always normalises the chosen experts' weights, and every layer has experts. */
static void make_qwen3moe(struct maker *maker)
{
    gguf__put_names(maker, "Qwen3MoeForCausalLM", "qwen3_moe");
    put_attention_bias(maker);
    put_count_of(maker, "num_experts", "expert_count");
    put_count_of(maker, "num_experts_per_tok", "expert_used_count");
    put_count_of(maker, "moe_intermediate_size", "expert_feed_forward_length");
    gguf__put_bool(maker, "norm_topk_prob", true);
    gguf__put_count(maker, "decoder_sparse_step", 1);
    gguf__put_heads(maker, false);
}

static void put_latent_attention(struct maker *maker)
{
    const uint64_t rotated = gguf__count_of(maker, "rope.dimension_count");
    const uint64_t key = gguf__count_or(maker, "attention.key_length_mla",
                                        gguf__count_or(maker, "attention.key_length", 0));
    const uint64_t value = gguf__count_or(maker, "attention.value_length_mla",
                                          gguf__count_or(maker, "attention.value_length", 0));
    const uint64_t query_rank = gguf__count_or(maker, "attention.q_lora_rank", 0);

    if (key <= rotated || value == 0)
        gguf__refuse(maker, "keys of %" PRIu64 " and values of %" PRIu64 " elements, of which %"
                     PRIu64 " are rotated, don't make a latent attention", key, value, rotated);
    put_count_of(maker, "kv_lora_rank", "attention.kv_lora_rank");
    if (query_rank > 0)
        gguf__put_count(maker, "q_lora_rank", query_rank);
    else
        gguf__put(maker, maker->config, "q_lora_rank", json_null());
    gguf__put_count(maker, "qk_rope_head_dim", rotated);
    gguf__put_count(maker, "qk_nope_head_dim", key - rotated);
    gguf__put_count(maker, "v_head_dim", value);
    put_count_of(maker, "num_key_value_heads", "attention.head_count");
    gguf__put_rope(maker, rotated, true);
}

/* Files before 2025-10 do not tell the groups of experts. V3 and R1 are the only ones with 256
 * experts, chosen by sigmoid, in 61 layers, and have 8, of which 4 count. */
static void put_groups(struct maker *maker, bool is_v3, uint64_t experts)
{
    const uint64_t layers = gguf__count_of(maker, "block_count");
    const bool is_published = is_v3 && experts == 256 && layers >= 61 && layers <= 62;
    const uint64_t groups = gguf__count_or(maker, "expert_group_count", is_published ? 8 : 1);
    const uint64_t kept = gguf__count_or(maker, "expert_group_used_count", is_published ? 4 : 1);

    gguf__put_count(maker, "n_group", groups > 0 ? groups : 1);
    gguf__put_count(maker, "topk_group", kept > 0 ? kept : 1);
    if (!is_v3)
        gguf__put(maker, maker->config, "topk_method",
                  json_string(groups > 1 ? "group_limited_greedy" : "greedy"));
}

static void make_deepseek2(struct maker *maker)
{
    /* 1: softmax, which also is meant where nothing is said; 2: sigmoid */
    const uint64_t gating = gguf__count_or(maker, "expert_gating_func", 0);
    const uint64_t experts = gguf__count_or(maker, "expert_count", 0);
    const bool is_v3 = gating == 2;

    if (gating > 2)
        gguf__refuse(maker, "%s.expert_gating_func is %" PRIu64 ", 1 (softmax) and 2 (sigmoid) are "
                     "built", maker->arch, gating);
    gguf__put_names(maker, is_v3 ? "DeepseekV3ForCausalLM" : "DeepseekV2ForCausalLM",
                    is_v3 ? "deepseek_v3" : "deepseek_v2");
    put_latent_attention(maker);
    gguf__put_count(maker, "n_routed_experts", experts);
    gguf__put_count(maker, "n_shared_experts", gguf__count_or(maker, "expert_shared_count", 0));
    gguf__put_count(maker, "first_k_dense_replace",
                    experts > 0 ? gguf__count_or(maker, "leading_dense_block_count", 0)
                          : gguf__count_of(maker, "block_count"));
    if (experts > 0) {
        put_count_of(maker, "num_experts_per_tok", "expert_used_count");
        put_count_of(maker, "moe_intermediate_size", "expert_feed_forward_length");
    }
    /* 0 is how some files write that there is none */
    gguf__put(maker, maker->config, "routed_scaling_factor",
              json_real(gguf__number_or(maker, "expert_weights_scale", 0.0) == 0.0
                      ? 1.0 : gguf__number_or(maker, "expert_weights_scale", 1.0)));
    gguf__put_bool(maker, "norm_topk_prob", gguf__bool_or(maker, "expert_weights_norm", false));
    put_groups(maker, is_v3, experts);
}

static void make_qwen2moe(struct maker *maker)
{
    const uint64_t width = gguf__count_of(maker, "feed_forward_length");
    const uint64_t top_k = gguf__count_of(maker, "expert_used_count");

    gguf__put_names(maker, "Qwen2MoeForCausalLM", "qwen2_moe");
    gguf__put_bool(maker, "qkv_bias", gguf__has_tensor(maker, LAYER_0 "self_attn.q_proj.bias"));
    put_count_of(maker, "num_experts", "expert_count");
    gguf__put_count(maker, "num_experts_per_tok", top_k);
    gguf__put_count(maker, "moe_intermediate_size",
                    gguf__count_or(maker, "expert_feed_forward_length",
                                   top_k > 0 ? width / top_k : 0));
    gguf__put_count(maker, "shared_expert_intermediate_size",
                    gguf__count_or(maker, "expert_shared_feed_forward_length", width));
    gguf__put_bool(maker, "norm_topk_prob", gguf__bool_or(maker, "expert_weights_norm", false));
    gguf__put_heads(maker, false);
}

static void make_olmoe(struct maker *maker)
{
    gguf__put_names(maker, "OlmoeForCausalLM", "olmoe");
    put_count_of(maker, "num_experts", "expert_count");
    put_count_of(maker, "num_experts_per_tok", "expert_used_count");
    gguf__put_bool(maker, "norm_topk_prob", gguf__bool_or(maker, "expert_weights_norm", false));
    gguf__put_heads(maker, false);
}

static void make_glm4(struct maker *maker)
{
    gguf__put_names(maker, "Glm4ForCausalLM", "glm4");
    put_attention_bias(maker);
    gguf__put_heads(maker, true);
}

static void make_glm4moe(struct maker *maker)
{
    /* 2: sigmoid, which also is meant where nothing is said */
    const uint64_t gating = gguf__count_or(maker, "expert_gating_func", 0);

    if (gating != 0 && gating != 2)
        gguf__refuse(maker, "%s.expert_gating_func is %" PRIu64 ", 2 (sigmoid) is built",
                     maker->arch, gating);
    gguf__put_names(maker, "Glm4MoeForCausalLM", "glm4_moe");
    put_attention_bias(maker);
    gguf__put_bool(maker, "use_qk_norm",
                   gguf__has_tensor(maker, LAYER_0 "self_attn.q_norm.weight"));
    put_count_of(maker, "n_routed_experts", "expert_count");
    put_count_of(maker, "num_experts_per_tok", "expert_used_count");
    put_count_of(maker, "n_shared_experts", "expert_shared_count");
    put_count_of(maker, "moe_intermediate_size", "expert_feed_forward_length");
    gguf__put_count(maker, "first_k_dense_replace",
                    gguf__count_or(maker, "leading_dense_block_count", 0));
    gguf__put_number(maker, "routed_scaling_factor",
                     gguf__number_or(maker, "expert_weights_scale", 1.0));
    gguf__put_bool(maker, "norm_topk_prob", gguf__bool_or(maker, "expert_weights_norm", false));
    gguf__put_count(maker, "n_group", gguf__count_or(maker, "expert_group_count", 1));
    gguf__put_count(maker, "topk_group", gguf__count_or(maker, "expert_group_used_count", 1));
    gguf__put_heads(maker, false);
}

/* Files before 2024-08 do not tell the window of Phi-3-mini-4k and medium-4k. */
static void make_phi3(struct maker *maker)
{
    const uint64_t layers = gguf__count_of(maker, "block_count");
    const bool is_4k = gguf__count_of(maker, "context_length") == 4096 &&
                       (layers == 32 || layers == 40);
    const uint64_t window = gguf__count_or(maker, "attention.sliding_window", is_4k ? 2047 : 0);

    gguf__put_names(maker, "Phi3ForCausalLM", "phi3");
    if (window > 0)
        gguf__put_count(maker, "sliding_window", window);
    gguf__put_heads(maker, false);
}

/* The norms' weights have the 1 added. What scores are scaled with is llama.cpp's knowledge: the
 * 27B models have the root of hidden size / heads instead of that of a head. */
static void put_gemma(struct maker *maker, uint64_t layers_of_27b)
{
    const uint64_t heads = gguf__count_of(maker, "attention.head_count");
    const uint64_t hidden = gguf__count_of(maker, "embedding_length");
    const bool is_27b = gguf__count_of(maker, "block_count") == layers_of_27b;
    const uint64_t each = heads > 0 ? hidden / heads : 0;

    gguf__put_number(maker, "gguf_norm_offset", 0.0);
    gguf__put_number(maker, "query_pre_attn_scalar",
                     (double)(is_27b ? each : gguf__count_or(maker, "attention.key_length", each)));
    gguf__put_heads(maker, false);
}

/* A cap; null where there is none. */
static void put_cap(struct maker *maker, const char *key, const char *gguf_key, double missing)
{
    const double cap = gguf__number_or(maker, gguf_key, missing);

    gguf__put(maker, maker->config, key, cap > 0.0 ? json_real(cap) : json_null());
}

/* Which layers have a window: of every so many all but the last, or a boolean for each. */
static void put_window_pattern(struct maker *maker, uint64_t usual)
{
    static const char key[] = "attention.sliding_window_pattern";

    if (gguf__is_array(maker, key))
        gguf__put_layer_types(maker, key, "sliding_attention");
    else
        gguf__put_count(maker, "sliding_window_pattern", gguf__count_or(maker, key, usual));
}

static void make_gemma2(struct maker *maker)
{
    gguf__put_names(maker, "Gemma2ForCausalLM", "gemma2");
    gguf__put_count(maker, "sliding_window",
                    gguf__count_or(maker, "attention.sliding_window", 4096));
    put_window_pattern(maker, 2);
    put_cap(maker, "attn_logit_softcapping", "attn_logit_softcapping", 50.0);
    put_cap(maker, "final_logit_softcapping", "final_logit_softcapping", 30.0);
    put_gemma(maker, 46);
}

/* Without a window all layers have the same rope. */
static void make_gemma3(struct maker *maker)
{
    const uint64_t window = gguf__count_or(maker, "attention.sliding_window", 0);

    gguf__put_names(maker, "Gemma3ForCausalLM", "gemma3_text");
    if (window > 0)
        gguf__put_count(maker, "sliding_window", window);
    if (window > 0)
        put_window_pattern(maker, 6);
    else
        gguf__put_count(maker, "sliding_window_pattern", 1);
    gguf__put_number(maker, "rope_local_base_freq",
                     gguf__number_or(maker, "rope.freq_base_swa", 10000.0));
    put_cap(maker, "final_logit_softcapping", "final_logit_softcapping", 0.0);
    put_gemma(maker, 62);
}

static void put_multipliers(struct maker *maker)
{
    static const char *const names[][2] = { { "embedding_scale", "embedding_multiplier" },
                                            { "residual_scale", "residual_multiplier" },
                                            { "logit_scale", "logits_scaling" } };
    const uint64_t heads = gguf__count_of(maker, "attention.head_count");
    const uint64_t hidden = gguf__count_of(maker, "embedding_length");
    double scale = gguf__number_or(maker, "attention.scale", 0.0);

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const double multiplier = gguf__number_or(maker, names[i][0], 0.0);
        gguf__put_number(maker, names[i][1], multiplier == 0.0 ? 1.0 : multiplier);
    }
    if (scale == 0.0 && heads > 0 && hidden >= heads)
        scale = 1.0 / sqrt((double)hidden / (double)heads);
    gguf__put_number(maker, "attention_multiplier", scale);
}

static void make_granite(struct maker *maker)
{
    gguf__put_names(maker, "GraniteForCausalLM", "granite");
    put_attention_bias(maker);
    gguf__put_bool(maker, "mlp_bias", gguf__has_tensor(maker, LAYER_0 "mlp.gate_proj.bias"));
    put_multipliers(maker);
    gguf__put_heads(maker, true);
}

static void make_granitemoe(struct maker *maker)
{
    const uint64_t shared = gguf__count_or(maker, "expert_shared_feed_forward_length", 0);

    if (shared > 0)
        gguf__put_names(maker, "GraniteMoeSharedForCausalLM", "granitemoeshared");
    else
        gguf__put_names(maker, "GraniteMoeForCausalLM", "granitemoe");
    gguf__put_count(maker, "shared_intermediate_size", shared);
    put_attention_bias(maker);
    put_count_of(maker, "num_local_experts", "expert_count");
    put_count_of(maker, "num_experts_per_tok", "expert_used_count");
    put_multipliers(maker);
    gguf__put_heads(maker, true);
}

/* What the format has no keys for is what all of the family have, and as llama.cpp has it: chunks
 * of 8192 positions unless a window of 0 says that there are none, every fourth layer without
 * positions, and queries and keys that are normalised but where there are 128 experts. */
static void make_llama4(struct maker *maker)
{
    const uint64_t experts = gguf__count_of(maker, "expert_count");

    gguf__put_names(maker, "Llama4ForCausalLM", "llama4_text");
    put_attention_bias(maker);
    put_count_of(maker, "intermediate_size", "expert_feed_forward_length");
    put_count_of(maker, "intermediate_size_mlp", "feed_forward_length");
    put_count_of(maker, "interleave_moe_layer_step", "interleave_moe_layer_step");
    gguf__put_count(maker, "num_local_experts", experts);
    put_count_of(maker, "num_experts_per_tok", "expert_used_count");
    gguf__put_bool(maker, "use_qk_norm", experts != 128);
    if (gguf__count_or(maker, "attention.sliding_window", 8192) == 0)
        gguf__put(maker, maker->config, "attention_chunk_size", json_null());
    else if (gguf__is_array(maker, "attention.sliding_window_pattern"))
        gguf__put_layer_types(maker, "attention.sliding_window_pattern", "chunked_attention");
    gguf__put_heads(maker, true);
}

/* That YaRN's ramp begins and ends between pairs is the family's, and not the file's. */
static void make_gpt_oss(struct maker *maker)
{
    gguf__put_names(maker, "GptOssForCausalLM", "gpt_oss");
    put_attention_bias(maker);
    put_count_of(maker, "intermediate_size", "expert_feed_forward_length");
    put_count_of(maker, "num_local_experts", "expert_count");
    put_count_of(maker, "num_experts_per_tok", "expert_used_count");
    put_count_of(maker, "sliding_window", "attention.sliding_window");
    if (gguf__is_array(maker, "attention.sliding_window_pattern"))
        gguf__put_layer_types(maker, "attention.sliding_window_pattern", "sliding_attention");
    gguf__put_heads(maker, false);
    if (json_object_get(maker->config, "rope_scaling") == NULL)
        gguf__put(maker, maker->config, "rope_scaling", json_object());
    gguf__put(maker, json_object_get(maker->config, "rope_scaling"), "truncate", json_false());
}

const struct gguf_family gguf__families[] = {
    { "llama", make_llama },         { "qwen2", make_qwen2 },
    { "qwen2moe", make_qwen2moe },   { "qwen3", make_qwen3 },
    { "qwen3moe", make_qwen3moe },   { "olmoe", make_olmoe },
    { "glm4", make_glm4 },           { "glm4moe", make_glm4moe },
    { "phi3", make_phi3 },           { "granite", make_granite },
    { "gemma2", make_gemma2 },       { "gemma3", make_gemma3 },
    { "granitemoe", make_granitemoe }, { "llama4", make_llama4 },
    { "gpt-oss", make_gpt_oss },
    { "deepseek2", make_deepseek2 },
    { NULL, NULL },
};
