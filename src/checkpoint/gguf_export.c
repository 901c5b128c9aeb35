/* checkpoint/gguf_export.c - a config.json as a GGUF file's metadata: gguf_config.c read backwards.
 *
 * What the format has no word for, or llama.cpp would take for something else, is refused: a file
 * that means another model is worse than none. Deepseek2 is written in the newer of its two forms:
 * latent attention as one key-value head of kv_lora_rank + qk_rope_head_dim elements, the published
 * sizes under the keys with _mla, and kv_b_proj in two tensors. */
#include "checkpoint/gguf_export.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"

#define PI 3.14159265358979323846
#define COUNT_MAX UINT32_MAX

/* Carries values over; the header's status stops it. */
struct teller {
    const struct ckpt *ckpt;
    const json_t *config;
    const json_t *rope;            /* rope_scaling or rope_parameters; NULL: neither */
    char what[512];                /* the config's path, for messages */
    struct gguf_model *model;
    struct gguf_header *header;
};

static void refuse(struct teller *teller, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void refuse(struct teller *teller, const char *format, ...)
{
    char sentence[384];
    va_list args;

    if (teller->header->status != STATUS_OK)
        return;
    va_start(args, format);
    (void)vsnprintf(sentence, sizeof(sentence), format, args);
    va_end(args);
    teller->header->status = err_set(teller->header->err, STATUS_BAD_INPUT, "%s: %s", teller->what,
                                     sentence);
}

/* --- reading config.json ---------------------------------------------------------------------- */

static uint64_t count_or(struct teller *teller, const char *key, uint64_t missing)
{
    int64_t count = (int64_t)missing;

    if (teller->header->status == STATUS_OK)
        teller->header->status = json_get_int(teller->config, key, teller->what, 0, COUNT_MAX,
                                              &count, teller->header->err);
    return (uint64_t)count;
}

static uint64_t count_of(struct teller *teller, const char *key)
{
    int64_t count = 1;

    if (teller->header->status == STATUS_OK)
        teller->header->status = json_get_int_required(teller->config, key, teller->what, 0,
                                                       COUNT_MAX, &count, teller->header->err);
    return (uint64_t)count;
}

static double number_in(struct teller *teller, const json_t *object, const char *key,
                        double missing)
{
    double number = missing;

    if (teller->header->status == STATUS_OK && object != NULL)
        teller->header->status = json_get_double(object, key, teller->what, -1e30, 1e30, &number,
                                                 teller->header->err);
    return number;
}

static bool bool_or(struct teller *teller, const char *key, bool missing)
{
    bool value = missing;

    if (teller->header->status == STATUS_OK)
        teller->header->status = json_get_bool(teller->config, key, teller->what, &value,
                                               teller->header->err);
    return value;
}

static const char *string_in(struct teller *teller, const json_t *object, const char *key,
                             const char *missing)
{
    const char *text = missing;

    if (teller->header->status == STATUS_OK && object != NULL)
        teller->header->status = json_get_string(object, key, teller->what, &text,
                                                 teller->header->err);
    return text;
}

static bool has(const json_t *object, const char *key)
{
    const json_t *const value = json_object_get(object, key);

    return value != NULL && !json_is_null(value);
}

/* --- writing ---------------------------------------------------------------------------------- */

static const char *full_key(const struct teller *teller, const char *key, char out[128])
{
    (void)snprintf(out, 128, "%s.%s", teller->model->arch, key);
    return out;
}

static void put_count(struct teller *teller, const char *key, uint64_t count)
{
    char full[128];

    gguf__write_count(teller->header, full_key(teller, key, full), count);
}

static void put_number(struct teller *teller, const char *key, double number)
{
    char full[128];

    gguf__write_number(teller->header, full_key(teller, key, full), number);
}

static void put_bool(struct teller *teller, const char *key, bool value)
{
    char full[128];

    gguf__write_bool(teller->header, full_key(teller, key, full), value);
}

static void put_string(struct teller *teller, const char *key, const char *text)
{
    char full[128];

    gguf__write_string(teller->header, full_key(teller, key, full), text, strlen(text));
}

/* --- rope ------------------------------------------------------------------------------------- */

/* Llama 3.1's kind has no words in the format, but a tensor of divisors. */
static void tell_llama3(struct teller *teller, uint64_t rotated, double theta, double factor,
                        double context)
{
    struct gguf_model *const model = teller->model;
    const double low = number_in(teller, teller->rope, "low_freq_factor", 0.0);
    const double high = number_in(teller, teller->rope, "high_freq_factor", 0.0);

    if (low <= 0.0 || high <= low || factor <= 0.0 || rotated / 2 > GGUF_ROPE_FACTORS_MAX) {
        refuse(teller, "its rope of kind llama3 has factors that cannot be");
        return;
    }
    model->rope_factor_count = rotated / 2;
    for (size_t i = 0; i < model->rope_factor_count; i++) {
        const double wavelength = 2 * PI * pow(theta, 2.0 * (double)i / (double)rotated);
        const double smooth = (context / wavelength - low) / (high - low);
        const double kept = fmin(fmax(smooth, 0.0), 1.0);
        model->rope_factors[i] = (float)(1.0 / ((1.0 - kept) / factor + kept));
    }
}

static void tell_yarn(struct teller *teller)
{
    static const char *const same[][2] = { { "beta_fast", "rope.scaling.yarn_beta_fast" },
                                           { "beta_slow", "rope.scaling.yarn_beta_slow" },
                                           { "attention_factor",
                                             "rope.scaling.yarn_attn_factor" } };
    const double mscale = number_in(teller, teller->rope, "mscale", 0.0);
    const double all = number_in(teller, teller->rope, "mscale_all_dim", 0.0);

    if (mscale != all)
        refuse(teller, "its rope has an \"mscale\" of %g and an \"mscale_all_dim\" of %g; GGUF "
               "files have one number for both", mscale, all);
    if (all != 0.0)
        put_number(teller, "rope.scaling.yarn_log_multiplier", 0.1 * all);
    for (size_t i = 0; i < 3; i++)
        if (has(teller->rope, same[i][0]))
            put_number(teller, same[i][1], number_in(teller, teller->rope, same[i][0], 0.0));
    if (json_is_false(json_object_get(teller->rope, "truncate")))
        refuse(teller, "its rope is YaRN with a \"truncate\" of false, for which GGUF files have "
               "no word");
}

static void tell_rope(struct teller *teller, uint64_t rotated, double theta_missing)
{
    const char *kind = string_in(teller, teller->rope, "type", "default");
    double theta, factor, context;

    kind = string_in(teller, teller->rope, "rope_type", kind);
    theta = number_in(teller, teller->config, "rope_theta", theta_missing);
    theta = number_in(teller, teller->rope, "rope_theta", theta);
    factor = number_in(teller, teller->rope, "factor", 1.0);
    context = (double)count_or(teller, "max_position_embeddings", 0);
    context = number_in(teller, teller->rope, "original_max_position_embeddings", context);
    context = number_in(teller, teller->config, "original_max_position_embeddings", context);
    put_number(teller, "rope.freq_base", theta);
    put_count(teller, "rope.dimension_count", rotated);
    if (strcmp(kind, "default") == 0 || strcmp(kind, "dynamic") == 0)
        return; /* dynamic only differs where contexts are longer than the model's */
    if (strcmp(kind, "llama3") == 0) {
        tell_llama3(teller, rotated, theta, factor, context);
        return;
    }
    if (strcmp(kind, "linear") != 0 && strcmp(kind, "yarn") != 0) {
        refuse(teller, "its rope is of kind \"%.32s\"; default, dynamic, linear, yarn and llama3 "
               "are written", kind);
        return;
    }
    put_string(teller, "rope.scaling.type", kind);
    if (has(teller->rope, "factor"))
        put_number(teller, "rope.scaling.factor", factor);
    else
        refuse(teller, "its rope of kind \"%s\" has no \"factor\"", kind);
    if (strcmp(kind, "yarn") == 0) {
        put_count(teller, "rope.scaling.original_context_length", (uint64_t)context);
        tell_yarn(teller);
    }
}

/* --- architectures ---------------------------------------------------------------------------- */

/* Where only a part of a head is rotated, its share; partial_missing where nothing is said. */
static double rotated_share(struct teller *teller, double partial_missing)
{
    const double share = number_in(teller, teller->config, "partial_rotary_factor",
                                   partial_missing);

    return number_in(teller, teller->rope, "partial_rotary_factor", share);
}

static void tell_heads(struct teller *teller, double theta_missing, double partial_missing)
{
    struct gguf_model *const model = teller->model;
    const uint64_t hidden = count_of(teller, "hidden_size");
    uint64_t head_dim;

    model->kv_head_count = count_or(teller, "num_key_value_heads", model->head_count);
    head_dim = count_or(teller, "head_dim",
                        model->head_count > 0 ? hidden / model->head_count : 0);
    put_count(teller, "attention.head_count_kv", model->kv_head_count);
    put_count(teller, "attention.key_length", head_dim);
    put_count(teller, "attention.value_length", head_dim);
    tell_rope(teller, (uint64_t)((double)head_dim * rotated_share(teller, partial_missing)),
              theta_missing);
}

/* Where a window is not the architecture's own word, a model that uses one is refused. */
static void refuse_window(struct teller *teller)
{
    if (bool_or(teller, "use_sliding_window", false))
        refuse(teller, "it uses a sliding window, for which GGUF's %s has no word",
               teller->model->arch);
}

static void tell_llama(struct teller *teller)
{
    const bool is_mixtral =
        strcmp(string_in(teller, teller->config, "model_type", ""), "mixtral") == 0;

    teller->model->permutes_rows = true;
    if (is_mixtral) {
        put_count(teller, "expert_count",
                  count_or(teller, "num_local_experts", count_or(teller, "num_experts", 8)));
        put_count(teller, "expert_used_count", count_or(teller, "num_experts_per_tok", 2));
    }
    if (has(teller->config, "sliding_window"))
        put_count(teller, "attention.sliding_window", count_of(teller, "sliding_window"));
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
    if (bool_or(teller, "norm_topk_prob", false) != normalised ||
        count_or(teller, "decoder_sparse_step", 1) != 1 ||
        json_array_size(json_object_get(teller->config, "mlp_only_layers")) > 0)
        refuse(teller, "it has layers without experts, or a \"norm_topk_prob\" that is not %s, for "
               "which GGUF's %s has no word", normalised ? "true" : "false", teller->model->arch);
    put_count(teller, "expert_count",
              count_or(teller, "num_experts",
                       count_or(teller, "num_local_experts", count_missing)));
    put_count(teller, "expert_used_count", count_of(teller, "num_experts_per_tok"));
}

static void tell_qwen3moe(struct teller *teller)
{
    refuse_window(teller);
    tell_experts(teller, 128, true);
    put_count(teller, "expert_feed_forward_length", count_of(teller, "moe_intermediate_size"));
    tell_heads(teller, 1e4, 1.0);
}

static void tell_qwen2moe(struct teller *teller)
{
    refuse_window(teller);
    tell_experts(teller, 60, false);
    put_count(teller, "expert_feed_forward_length", count_of(teller, "moe_intermediate_size"));
    put_count(teller, "expert_shared_feed_forward_length",
              count_of(teller, "shared_expert_intermediate_size"));
    tell_heads(teller, 1e4, 1.0);
}

static void tell_olmoe(struct teller *teller)
{
    if (has(teller->config, "clip_qkv"))
        refuse(teller, "it has a \"clip_qkv\", for which GGUF's olmoe has no word");
    tell_experts(teller, 64, false);
    tell_heads(teller, 1e4, 1.0);
}

static void tell_glm4(struct teller *teller)
{
    tell_heads(teller, 1e4, 0.5);
}

static void tell_glm4moe(struct teller *teller)
{
    put_count(teller, "expert_count", count_of(teller, "n_routed_experts"));
    put_count(teller, "expert_used_count", count_of(teller, "num_experts_per_tok"));
    put_count(teller, "expert_shared_count", count_of(teller, "n_shared_experts"));
    put_count(teller, "expert_feed_forward_length", count_of(teller, "moe_intermediate_size"));
    put_count(teller, "leading_dense_block_count", count_or(teller, "first_k_dense_replace", 0));
    put_count(teller, "expert_gating_func", 2);
    put_number(teller, "expert_weights_scale",
               number_in(teller, teller->config, "routed_scaling_factor", 1.0));
    put_bool(teller, "expert_weights_norm", bool_or(teller, "norm_topk_prob", true));
    put_count(teller, "expert_group_count", count_or(teller, "n_group", 1));
    put_count(teller, "expert_group_used_count", count_or(teller, "topk_group", 1));
    tell_heads(teller, 1e4, 0.5);
}

static void tell_phi3(struct teller *teller)
{
    if (has(teller->config, "sliding_window"))
        put_count(teller, "attention.sliding_window", count_of(teller, "sliding_window"));
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
        put_number(teller, multipliers[i][1],
                   number_in(teller, teller->config, multipliers[i][0], 1.0));
    tell_heads(teller, 1e4, 1.0);
}

static void tell_granitemoe(struct teller *teller)
{
    const uint64_t shared = count_or(teller, "shared_intermediate_size", 0);

    put_count(teller, "expert_count", count_of(teller, "num_local_experts"));
    put_count(teller, "expert_used_count", count_of(teller, "num_experts_per_tok"));
    if (shared > 0)
        put_count(teller, "expert_shared_feed_forward_length", shared);
    tell_granite(teller);
}

static void tell_latent_attention(struct teller *teller)
{
    struct gguf_model *const model = teller->model;
    const uint64_t latent = count_of(teller, "kv_lora_rank");
    const uint64_t rotated = count_of(teller, "qk_rope_head_dim");

    model->splits_kv_b = true;
    model->key_rows = count_of(teller, "qk_nope_head_dim");
    model->value_rows = count_of(teller, "v_head_dim");
    put_count(teller, "attention.head_count_kv", 1);
    put_count(teller, "attention.kv_lora_rank", latent);
    if (json_object_get(teller->config, "q_lora_rank") == NULL)
        refuse(teller, "\"q_lora_rank\" is missing");
    if (has(teller->config, "q_lora_rank"))
        put_count(teller, "attention.q_lora_rank", count_of(teller, "q_lora_rank"));
    put_count(teller, "attention.key_length", latent + rotated);
    put_count(teller, "attention.value_length", latent);
    put_count(teller, "attention.key_length_mla", model->key_rows + rotated);
    put_count(teller, "attention.value_length_mla", model->value_rows);
    tell_rope(teller, rotated, 1e4);
}

static void tell_deepseek2(struct teller *teller)
{
    const bool is_v3 =
        strcmp(string_in(teller, teller->config, "model_type", ""), "deepseek_v3") == 0;
    const char *const method = string_in(teller, teller->config, "topk_method", "greedy");
    const bool has_groups = is_v3 || strcmp(method, "group_limited_greedy") == 0;
    const uint64_t experts = count_or(teller, "n_routed_experts", 0);
    const uint64_t groups = count_or(teller, "n_group", 1);

    if (count_or(teller, "moe_layer_freq", 1) != 1)
        refuse(teller, "\"moe_layer_freq\" is not 1, for which GGUF files have no word");
    if (!bool_or(teller, "rope_interleave", true))
        refuse(teller, "\"rope_interleave\" is false, for which GGUF's deepseek2 has no word");
    tell_latent_attention(teller);
    put_count(teller, "leading_dense_block_count",
              experts > 0 ? count_or(teller, "first_k_dense_replace", 0)
                          : teller->model->layer_count);
    put_count(teller, "expert_count", experts);
    if (experts == 0)
        return;
    put_count(teller, "expert_used_count", count_of(teller, "num_experts_per_tok"));
    put_count(teller, "expert_feed_forward_length", count_of(teller, "moe_intermediate_size"));
    put_count(teller, "expert_shared_count", count_or(teller, "n_shared_experts", 0));
    put_number(teller, "expert_weights_scale",
               number_in(teller, teller->config, "routed_scaling_factor", 1.0));
    put_bool(teller, "expert_weights_norm", is_v3 && bool_or(teller, "norm_topk_prob", true));
    put_count(teller, "expert_gating_func", is_v3 ? 2 : 1);
    put_count(teller, "expert_group_count", has_groups ? groups : 1);
    put_count(teller, "expert_group_used_count",
              has_groups ? count_or(teller, "topk_group", 1) : 1);
}

static const struct {
    const char *model_type, *arch;
    void (*tell)(struct teller *teller);
} families[] = {
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
};
#define FAMILY_COUNT (sizeof(families) / sizeof(families[0]))

static void tell_common(struct teller *teller)
{
    struct gguf_model *const model = teller->model;

    model->layer_count = count_of(teller, "num_hidden_layers");
    model->head_count = count_of(teller, "num_attention_heads");
    model->tied_embeddings = bool_or(teller, "tie_word_embeddings", false);
    put_count(teller, "block_count", model->layer_count);
    put_count(teller, "context_length", count_of(teller, "max_position_embeddings"));
    put_count(teller, "embedding_length", count_of(teller, "hidden_size"));
    put_count(teller, "feed_forward_length", count_of(teller, "intermediate_size"));
    put_count(teller, "attention.head_count", model->head_count);
    put_number(teller, "attention.layer_norm_rms_epsilon",
               number_in(teller, teller->config, "rms_norm_eps", 1e-6));
    put_count(teller, "vocab_size", count_of(teller, "vocab_size"));
}

enum status gguf__export_config(const struct ckpt *ckpt, struct gguf_model *model,
                                struct gguf_header *header)
{
    struct teller teller = { .ckpt = ckpt, .config = ckpt_config(ckpt), .model = model,
                             .header = header };
    const char *const model_type =
        json_string_value(json_object_get(teller.config, "model_type"));
    size_t i = 0;

    assert(header->err != NULL);
    (void)snprintf(teller.what, sizeof(teller.what), "%s%s", ckpt_path(ckpt),
                   ckpt_config_suffix(ckpt));
    while (i < FAMILY_COUNT &&
           (model_type == NULL || strcmp(families[i].model_type, model_type) != 0))
        i++;
    if (i == FAMILY_COUNT) {
        char known[256] = "";
        for (size_t j = 0, used = 0; j < FAMILY_COUNT && used < sizeof(known); j++)
            used += (size_t)snprintf(known + used, sizeof(known) - used, "%s%s", j > 0 ? ", " : "",
                                     families[j].model_type);
        refuse(&teller, "\"model_type\" is \"%.64s\", which is not written as GGUF; these are: %s",
               model_type != NULL ? model_type : "", known);
        return header->status;
    }
    *model = (struct gguf_model){ .ckpt = ckpt, .arch = families[i].arch };
    teller.rope = json_object_get(teller.config, "rope_scaling");
    if (json_object_size(teller.rope) == 0)
        teller.rope = json_object_get(teller.config, "rope_parameters");
    if (!json_is_object(teller.rope))
        teller.rope = NULL;
    gguf__write_string(header, "general.architecture", model->arch, strlen(model->arch));
    gguf__write_string(header, "general.type", "model", 5);
    tell_common(&teller);
    families[i].tell(&teller);
    return header->status;
}
