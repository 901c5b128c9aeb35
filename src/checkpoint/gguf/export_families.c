/* checkpoint/gguf/export_families.c - what each family's config.json says, as GGUF says it:
 * families.c read backwards.
 *
 * The keys are those that llama.cpp's converter writes (conversion/), and what has no key is what
 * llama.cpp knows about the architecture (src/models): another model is refused. */
#include <inttypes.h>
#include <string.h>

#include "checkpoint/gguf/teller.h"

/* What stands for missing keys. */
struct heads_missing {
    double theta;
    double partial;                /* where only a part of a head is rotated, its share; 0: 1 */
    uint64_t kv_head_count;        /* 0: as many as heads */
    uint64_t head_dim;             /* 0: hidden size / heads, which null means too */
};

static uint64_t head_dim_of(struct teller *teller, uint64_t missing)
{
    const struct gguf_model *const model = teller->model;
    const uint64_t each = model->head_count > 0 ? model->hidden_size / model->head_count : 0;
    const bool derived = missing == 0 || teller__is_null(teller->config, "head_dim");

    return teller__count_or(teller, "head_dim", derived ? each : missing);
}

static void tell_heads(struct teller *teller, const struct heads_missing *missing)
{
    struct gguf_model *const model = teller->model;
    const uint64_t head_dim = head_dim_of(teller, missing->head_dim);
    double share = missing->partial == 0.0 ? 1.0 : missing->partial;

    share = teller__number_in(teller, teller->config, "partial_rotary_factor", share);
    share = teller__number_in(teller, teller->rope, "partial_rotary_factor", share);
    model->kv_head_count = teller__count_or(teller, "num_key_value_heads",
                                            missing->kv_head_count > 0 ? missing->kv_head_count
                                                                       : model->head_count);
    teller__put_count(teller, "attention.head_count_kv", model->kv_head_count);
    teller__put_count(teller, "attention.key_length", head_dim);
    teller__put_count(teller, "attention.value_length", head_dim);
    teller__put_rope(teller, (uint64_t)((double)head_dim * share), missing->theta);
}

static const struct heads_missing usual_heads = { .theta = 1e4 };

/* Where a window is not the architecture's own word, a model that uses one is refused. */
static void refuse_window(struct teller *teller)
{
    if (teller__bool_or(teller, "use_sliding_window", false))
        teller__refuse(teller, "it uses a sliding window, for which GGUF's %s has no word",
                       teller->model->arch);
}

static void tell_llama(struct teller *teller)
{
    static const struct heads_missing mixtral_heads = { .theta = 1e6 };
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
    tell_heads(teller, is_mixtral ? &mixtral_heads : &usual_heads);
}

static void tell_qwen(struct teller *teller)
{
    refuse_window(teller);
    tell_heads(teller, &usual_heads);
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
    tell_heads(teller, &usual_heads);
}

static void tell_qwen2moe(struct teller *teller)
{
    refuse_window(teller);
    tell_experts(teller, 60, false);
    teller__put_count(teller, "expert_feed_forward_length",
                      teller__count_of(teller, "moe_intermediate_size"));
    teller__put_count(teller, "expert_shared_feed_forward_length",
                      teller__count_of(teller, "shared_expert_intermediate_size"));
    tell_heads(teller, &usual_heads);
}

static void tell_olmoe(struct teller *teller)
{
    if (teller__has(teller->config, "clip_qkv"))
        teller__refuse(teller, "it has a \"clip_qkv\", for which GGUF's olmoe has no word");
    tell_experts(teller, 64, false);
    tell_heads(teller, &usual_heads);
}

static const struct heads_missing glm_heads = { .theta = 1e4, .partial = 0.5 };

static void tell_glm4(struct teller *teller)
{
    tell_heads(teller, &glm_heads);
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
    tell_heads(teller, &glm_heads);
}

/* A window of 0 is one that is not there: what is missing, readers replace by Phi-3-mini-4k's. */
static void tell_phi3(struct teller *teller)
{
    teller__put_count(teller, "attention.sliding_window",
                      teller__count_or(teller, "sliding_window", 0));
    tell_heads(teller, &usual_heads);
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
    tell_heads(teller, &usual_heads);
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

/* --- layers that are not alike ---------------------------------------------------------------- */

/* Whether the layers with a window, or in chunks, are all but every period-th. */
static bool has_period(const json_t *types, uint64_t period)
{
    for (size_t i = 0; i < json_array_size(types); i++) {
        const char *const type = json_string_value(json_array_get(types, i));
        if (type == NULL || (strcmp(type, "full_attention") == 0) != ((i + 1) % period == 0))
            return false;
    }
    return true;
}

/* Every which layer has no window; `usual` goes before others that say the same. */
static uint64_t window_period(struct teller *teller, uint64_t usual)
{
    const json_t *const types = json_object_get(teller->config, "layer_types");

    if (!json_is_array(types))
        return teller__count_or(teller, "sliding_window_pattern", usual);
    if (has_period(types, usual))
        return usual;
    for (uint64_t period = 1; period <= json_array_size(types) + 1; period++)
        if (has_period(types, period))
            return period;
    teller__refuse(teller, "its \"layer_types\" are not one full_attention after equally many "
                   "others, for which GGUF's %s has no word", teller->model->arch);
    return usual;
}

/* --- Gemma ------------------------------------------------------------------------------------ */

/* Readers know what scores are scaled with: the root of a head's size, or in the 27B models, which
 * they know by their layers, of hidden size / heads. */
static void tell_gemma(struct teller *teller, uint64_t layers_of_27b, double theta)
{
    struct gguf_model *const model = teller->model;
    const struct heads_missing missing = { .theta = theta, .kv_head_count = 4, .head_dim = 256 };
    const uint64_t each = model->head_count > 0 ? model->hidden_size / model->head_count : 0;
    const double scalar = teller__number_in(teller, teller->config, "query_pre_attn_scalar", 256.0);
    const uint64_t known = model->layer_count == layers_of_27b ? each : head_dim_of(teller, 256);

    if (scalar != (double)known)
        teller__refuse(teller, "\"query_pre_attn_scalar\" is %g; readers of GGUF's %s take %"
                       PRIu64, scalar, model->arch, known);
    model->norm_offset = 1.0f;
    tell_heads(teller, &missing);
}

static void tell_gemma2(struct teller *teller)
{
    static const struct {
        const char *key;
        double missing;
    } caps[] = { { "attn_logit_softcapping", 50.0 }, { "final_logit_softcapping", 30.0 } };
    const uint64_t period = window_period(teller, 2);

    for (size_t i = 0; i < 2; i++) {
        if (teller__is_null(teller->config, caps[i].key))
            teller__refuse(teller, "\"%s\" is null; readers of GGUF's gemma2 take %g then",
                           caps[i].key, caps[i].missing);
        teller__put_number(teller, caps[i].key,
                           teller__number_in(teller, teller->config, caps[i].key,
                                             caps[i].missing));
    }
    if (!teller->model->tied_embeddings)
        teller__refuse(teller, "\"tie_word_embeddings\" is false, for which GGUF's gemma2 has no "
                       "word");
    if (teller__is_null(teller->config, "sliding_window"))
        teller__refuse(teller, "\"sliding_window\" is null, for which GGUF's gemma2 has no word");
    teller__put_count(teller, "attention.sliding_window",
                      teller__count_or(teller, "sliding_window", 4096));
    if (period != 2)
        teller__put_count(teller, "attention.sliding_window_pattern", period);
    tell_gemma(teller, 46, 1e4);
}

/* The rope of layers with a window; the others' becomes the teller's own. */
static void tell_sliding_rope(struct teller *teller)
{
    const json_t *const sliding = json_object_get(teller->rope, "sliding_attention");
    double theta = teller__number_in(teller, teller->config, "rope_local_base_freq", 1e4);

    theta = teller__number_in(teller, sliding, "rope_theta", theta);
    if (strcmp(teller__string_in(teller, sliding, "rope_type", "default"), "default") != 0)
        teller__refuse(teller, "the rope of layers with a window is scaled, for which GGUF's "
                       "gemma3 has no word");
    teller__put_number(teller, "rope.freq_base_swa", theta);
    if (sliding != NULL || json_object_get(teller->rope, "full_attention") != NULL)
        teller->rope = json_object_get(teller->rope, "full_attention");
}

/* Without a window in any layer, readers expect none. */
static void tell_gemma3(struct teller *teller)
{
    const uint64_t period = window_period(teller, 6);
    const double cap = teller__number_in(teller, teller->config, "final_logit_softcapping", 0.0);

    if (cap != 0.0)
        teller__put_number(teller, "final_logit_softcapping", cap);
    if (period != 1 && !teller__is_null(teller->config, "sliding_window"))
        teller__put_count(teller, "attention.sliding_window",
                          teller__count_or(teller, "sliding_window", 4096));
    if (period != 1 && period != 6)
        teller__put_count(teller, "attention.sliding_window_pattern", period);
    tell_sliding_rope(teller);
    tell_gemma(teller, 62, 1e6);
}

/* --- Llama 4 ---------------------------------------------------------------------------------- */

/* Whether the list, where it is there, says of each layer whether it is one of every period-th. */
static bool list_agrees(const json_t *list, uint64_t layer_count, uint64_t period)
{
    for (uint64_t i = 0; i < layer_count && json_array_size(list) > 0; i++)
        if ((json_integer_value(json_array_get(list, i)) == 0) != ((i + 1) % period == 0))
            return false;
    return true;
}

/* Whether the list, where it is there, holds every period-th layer and no other. */
static bool holds_layers(const json_t *list, uint64_t layer_count, uint64_t period)
{
    uint64_t at = 0;

    if (!json_is_array(list))
        return true;
    for (uint64_t i = period - 1; i < layer_count; i += period)
        if (json_integer_value(json_array_get(list, at++)) != (json_int_t)i)
            return false;
    return at == json_array_size(list);
}

/* What the format has no keys for must be as readers have it. */
static void check_llama4(struct teller *teller, uint64_t experts, uint64_t step)
{
    const json_t *const config = teller->config;
    const uint64_t layers = teller->model->layer_count;
    const struct {
        const char *key;
        bool agrees;
    } known[] = {
        { "attention_chunk_size", !teller__is_null(config, "attention_chunk_size") &&
                                  teller__count_or(teller, "attention_chunk_size", 8192) == 8192 },
        { "layer_types", has_period(json_object_get(config, "layer_types"), 4) },
        { "no_rope_layers",
          json_array_size(json_object_get(config, "no_rope_layers")) > 0
              ? list_agrees(json_object_get(config, "no_rope_layers"), layers, 4)
              : teller__count_or(teller, "no_rope_layer_interval", 4) == 4 },
        { "attn_temperature_tuning", teller__bool_or(teller, "attn_temperature_tuning", true) },
        { "floor_scale", teller__count_or(teller, "floor_scale", 8192) == 8192 },
        { "attn_scale", teller__number_in(teller, config, "attn_scale", 0.1) == 0.1 },
        { "use_qk_norm", teller__bool_or(teller, "use_qk_norm", true) == (experts != 128) },
        { "moe_layers", step > 0 && holds_layers(json_object_get(config, "moe_layers"), layers,
                                                 step) },
    };

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (!known[i].agrees)
            teller__refuse(teller, "its \"%s\" is not what all of the family have, for which "
                           "GGUF's llama4 has no word", known[i].key);
}

static void tell_llama4(struct teller *teller)
{
    static const struct heads_missing missing = { .theta = 5e5, .kv_head_count = 8,
                                                  .head_dim = 128 };
    const uint64_t experts = teller__count_or(teller, "num_local_experts", 16);
    const uint64_t step = teller__count_or(teller, "interleave_moe_layer_step", 1);

    check_llama4(teller, experts, step);
    teller->model->experts_transposed = true;
    teller__put_count(teller, "interleave_moe_layer_step", step);
    teller__put_count(teller, "expert_count", experts);
    teller__put_count(teller, "expert_used_count",
                      teller__count_or(teller, "num_experts_per_tok", 1));
    teller__put_count(teller, "expert_feed_forward_length",
                      teller__count_of(teller, "intermediate_size"));
    tell_heads(teller, &missing);
}

/* --- gpt-oss ---------------------------------------------------------------------------------- */

static void tell_gpt_oss(struct teller *teller)
{
    static const struct heads_missing missing = { .theta = 1.5e5, .kv_head_count = 8,
                                                  .head_dim = 64 };

    if (window_period(teller, 2) != 2)
        teller__refuse(teller, "its \"layer_types\" do not take turns, for which GGUF's gpt-oss "
                       "has no word");
    if (!teller__bool_or(teller, "attention_bias", true))
        teller__refuse(teller, "\"attention_bias\" is false, for which GGUF's gpt-oss has no word");
    teller->model->experts_transposed = teller->model->experts_by_turns = true;
    teller__put_count(teller, "attention.sliding_window",
                      teller__count_or(teller, "sliding_window", 128));
    teller__put_count(teller, "expert_count", teller__count_or(teller, "num_local_experts", 128));
    teller__put_count(teller, "expert_used_count",
                      teller__count_or(teller, "num_experts_per_tok", 4));
    teller__put_count(teller, "expert_feed_forward_length",
                      teller__count_of(teller, "intermediate_size"));
    tell_heads(teller, &missing);
}

/* --- DeepSeek --------------------------------------------------------------------------------- */

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

/* --- all of them ------------------------------------------------------------------------------ */

static const struct teller_missing gemma_missing = { .tied_embeddings = true };
/* The configurations of those that see leave out what is as the class has it. */
static const struct teller_missing gemma3_sees_missing = {
    .layer_count = 26, .vocab_size = 262208, .hidden_size = 2304, .head_count = 8,
    .ffn_width = 9216, .context_length = 131072, .tied_embeddings = true,
};
static const struct teller_missing llama4_missing = {
    .ffn_width = 16384, .ffn_key = "intermediate_size_mlp", .norm_epsilon = 1e-5,
};
static const struct teller_missing gpt_oss_missing = { .norm_epsilon = 1e-5 };

const struct teller_family teller__families[] = {
    { "llama", "llama", tell_llama, NULL, false },
    { "mistral", "llama", tell_llama, NULL, false },
    { "mixtral", "llama", tell_llama, NULL, false },
    { "qwen2", "qwen2", tell_qwen, NULL, false },
    { "qwen3", "qwen3", tell_qwen, NULL, false },
    { "qwen3_moe", "qwen3moe", tell_qwen3moe, NULL, false },
    { "qwen2_moe", "qwen2moe", tell_qwen2moe, NULL, false },
    { "olmoe", "olmoe", tell_olmoe, NULL, false },
    { "glm4", "glm4", tell_glm4, NULL, false },
    { "glm4_moe", "glm4moe", tell_glm4moe, NULL, false },
    { "phi3", "phi3", tell_phi3, NULL, false },
    { "granite", "granite", tell_granite, NULL, false },
    { "granitemoe", "granitemoe", tell_granitemoe, NULL, false },
    { "granitemoeshared", "granitemoe", tell_granitemoe, NULL, false },
    { "gemma2", "gemma2", tell_gemma2, &gemma_missing, false },
    { "gemma3_text", "gemma3", tell_gemma3, &gemma_missing, false },
    { "gemma3", "gemma3", tell_gemma3, &gemma3_sees_missing, true },
    { "llama4_text", "llama4", tell_llama4, &llama4_missing, false },
    { "llama4", "llama4", tell_llama4, &llama4_missing, true },
    { "gpt_oss", "gpt-oss", tell_gpt_oss, &gpt_oss_missing, false },
    { "deepseek_v2", "deepseek2", tell_deepseek2, NULL, false },
    { "deepseek_v3", "deepseek2", tell_deepseek2, NULL, false },
    { NULL, NULL, NULL, NULL, false },
};
