/* checkpoint/gguf_config.c - a GGUF file's metadata as a Hugging Face config.json.
 *
 * Keys of GGUF are those of gguf-py 0.19 (constants.py), what they mean is what llama.cpp makes of
 * them; keys of config.json are what model/ reads. Where the two differ:
 *
 * - Vocabulary, tied embeddings and biases follow from the tensors, which have the last word.
 * - The converter permutes the rows of a llama's query and key matrices so that the rotated pairs
 *   are adjacent elements. "gguf_rope": { "interleaved": true } says so.
 * - Llama 3.1's scaling of frequencies is a tensor of divisors, rope_freqs.weight, which becomes
 *   "gguf_rope": { "factors": [...] }.
 * - deepseek2 is V2 or V3 by its gating function; the newer files' sizes of the latent attention
 *   (key_length_mla) stand beside those of the older ones.
 * - yarn_log_multiplier is a tenth of mscale_all_dim, which equals mscale in every published
 *   model; the format has only one of the two.
 *
 * Only what the metadata says in a wrong way is refused here; ranges and what does not go together
 * are model/'s to judge. */
#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/gguf.h"

#define FACTORS_MAX 4096
#define ROPE_FACTORS "rope_freqs.weight"

/* Carries values over; after the first failure the rest is skipped. */
struct maker {
    const struct ckpt *ckpt;
    const struct gguf_meta *meta;
    const char *path, *arch;
    json_t *config;
    enum status status;
    struct err *err;
};

static void refuse(struct maker *maker, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void refuse(struct maker *maker, const char *format, ...)
{
    char sentence[512];
    va_list args;

    if (maker->status != STATUS_OK)
        return;
    va_start(args, format);
    (void)vsnprintf(sentence, sizeof(sentence), format, args);
    va_end(args);
    maker->status = err_set(maker->err, STATUS_BAD_INPUT, "%s: %s", maker->path, sentence);
}

/* Takes the value. */
static void put(struct maker *maker, json_t *object, const char *key, json_t *value)
{
    if (maker->status != STATUS_OK)
        json_decref(value);
    else if (json_object_set_new(object, key, value) != 0) /* also when value is NULL */
        maker->status = err_set(maker->err, STATUS_NO_MEMORY, "%s: no memory for its metadata",
                                maker->path);
}

static const char *full_key(const struct maker *maker, const char *key, char *out, size_t out_size)
{
    (void)snprintf(out, out_size, "%s.%s", maker->arch, key);
    return out;
}

static bool has(const struct maker *maker, const char *key)
{
    char full[128];

    return gguf__find(maker->meta, full_key(maker, key, full, sizeof(full))) != NULL;
}

/* An integer, or an array with one for each layer when they are all the same. `missing` where there
 * is none. */
static uint64_t count_or(struct maker *maker, const char *key, uint64_t missing)
{
    char full[128];
    const struct gguf_value *value;
    uint64_t count = missing;

    full_key(maker, key, full, sizeof(full));
    value = gguf__find(maker->meta, full);
    if (maker->status != STATUS_OK || value == NULL)
        return missing;
    if (value->type != GGUF_ARRAY) {
        maker->status =
            gguf__get_count(maker->meta, maker->path, full, UINT32_MAX, &count, maker->err);
        return count;
    }
    if (!value->items_equal)
        refuse(maker, "%s differs from layer to layer (or is no array of integers), which is not "
               "built", full);
    else if (value->too_large || value->integer < 0 || value->integer > UINT32_MAX)
        refuse(maker, "%s is an array of %" PRId64 ", which is out of range", full,
               value->integer);
    else
        count = (uint64_t)value->integer;
    return count;
}

static uint64_t count_of(struct maker *maker, const char *key)
{
    if (!has(maker, key))
        refuse(maker, "%s.%s is missing", maker->arch, key);
    return count_or(maker, key, 0);
}

static double number_or(struct maker *maker, const char *key, double missing)
{
    char full[128];
    const struct gguf_value *value;

    full_key(maker, key, full, sizeof(full));
    value = gguf__find(maker->meta, full);
    if (maker->status != STATUS_OK || value == NULL)
        return missing;
    if (value->type == GGUF_BOOL || value->type == GGUF_STRING || value->type == GGUF_ARRAY)
        refuse(maker, "%s is of type %s, a number is wanted", full, gguf__type_name(value->type));
    else if (!isfinite(value->number))
        refuse(maker, "%s is not finite", full);
    return value->number;
}

static bool bool_or(struct maker *maker, const char *key, bool missing)
{
    char full[128];
    const struct gguf_value *value;

    full_key(maker, key, full, sizeof(full));
    value = gguf__find(maker->meta, full);
    if (maker->status != STATUS_OK || value == NULL)
        return missing;
    if (value->type != GGUF_BOOL)
        refuse(maker, "%s is of type %s, a boolean is wanted", full, gguf__type_name(value->type));
    return value->integer != 0;
}

static void put_count(struct maker *maker, const char *key, uint64_t count)
{
    put(maker, maker->config, key, json_integer((json_int_t)count));
}

static void put_bool(struct maker *maker, const char *key, bool value)
{
    put(maker, maker->config, key, json_boolean(value));
}

static void put_names(struct maker *maker, const char *architecture, const char *model_type)
{
    put(maker, maker->config, "architectures", json_pack("[s]", architecture));
    put(maker, maker->config, "model_type", json_string(model_type));
}

/* --- rope ------------------------------------------------------------------------------------- */

/* The tensor of divisors, when there is one. */
static json_t *read_factors(struct maker *maker)
{
    const struct ckpt_tensor *const tensor = ckpt_find(maker->ckpt, ROPE_FACTORS);
    float values[FACTORS_MAX];
    json_t *list;

    if (maker->status != STATUS_OK || tensor == NULL)
        return NULL;
    if (tensor->dtype != DTYPE_F32 || tensor->rank != 1 || tensor->shape[0] > FACTORS_MAX) {
        refuse(maker, "tensor '" ROPE_FACTORS "' is of type %s with %" PRIu64
               " elements, an F32 vector of at most %d is wanted", tensor->dtype_name,
               tensor->shape[0], FACTORS_MAX);
        return NULL;
    }
    maker->status = ckpt_read(maker->ckpt, tensor, 0, values, tensor->size_bytes, maker->err);
    list = maker->status == STATUS_OK ? json_array() : NULL;
    for (uint64_t i = 0; maker->status == STATUS_OK && i < tensor->shape[0]; i++) {
        if (!isfinite(values[i]) || values[i] <= 0.0f)
            refuse(maker, "element %" PRIu64 " of tensor '" ROPE_FACTORS "' is %g, above 0 is "
                   "wanted", i, (double)values[i]);
        else if (json_array_append_new(list, json_real((double)values[i])) != 0)
            maker->status = err_set(maker->err, STATUS_NO_MEMORY,
                                    "%s: no memory for its metadata", maker->path);
    }
    return list;
}

static void put_layout(struct maker *maker, bool interleaved)
{
    json_t *const object = json_object();
    json_t *const factors = read_factors(maker);

    put(maker, object, "interleaved", json_boolean(interleaved));
    if (factors != NULL)
        put(maker, object, "factors", factors);
    put(maker, maker->config, "gguf_rope", object);
}

static void put_yarn(struct maker *maker, json_t *scaling, double factor)
{
    static const char *const same[][2] = { { "rope.scaling.yarn_beta_fast", "beta_fast" },
                                           { "rope.scaling.yarn_beta_slow", "beta_slow" } };
    const double log_multiplier = number_or(maker, "rope.scaling.yarn_log_multiplier", 0.0);
    double attention = number_or(maker, "rope.scaling.attn_factor", 1.0);

    for (size_t i = 0; i < 2; i++)
        if (has(maker, same[i][0]))
            put(maker, scaling, same[i][1], json_real(number_or(maker, same[i][0], 0.0)));
    if (number_or(maker, "rope.scaling.yarn_ext_factor", 1.0) != 1.0)
        refuse(maker, "%s.rope.scaling.yarn_ext_factor is not 1, which is not built", maker->arch);
    if (log_multiplier != 0.0) {
        /* In single precision, where a tenth of the number was made. */
        const double mscale = (double)((float)log_multiplier / 0.1f);
        put(maker, scaling, "mscale", json_real(mscale));
        put(maker, scaling, "mscale_all_dim", json_real(mscale));
    }
    if (has(maker, "rope.scaling.yarn_attn_factor"))
        attention = number_or(maker, "rope.scaling.yarn_attn_factor", 1.0);
    else if (attention != 1.0)
        attention *= factor > 1.0 ? 0.1 * log(factor) + 1.0 : 1.0;
    else
        return;
    put(maker, scaling, "attention_factor", json_real(attention));
}

static void put_rope(struct maker *maker, uint64_t rotated_count, bool interleaved)
{
    const uint64_t dimension_count = count_or(maker, "rope.dimension_count", rotated_count);
    const char *kind = "none";
    json_t *scaling;
    char key[128];
    double factor;

    if (maker->status != STATUS_OK)
        return;
    full_key(maker, "rope.scaling.type", key, sizeof(key));
    maker->status = gguf__get_string(maker->meta, maker->path, key, &kind, maker->err);
    if (dimension_count != rotated_count)
        refuse(maker, "%s.rope.dimension_count is %" PRIu64 ", but %" PRIu64
               " elements of a head would have to be rotated; partial rotation is not built",
               maker->arch, dimension_count, rotated_count);
    put(maker, maker->config, "rope_theta", json_real(number_or(maker, "rope.freq_base", 10000.0)));
    put_layout(maker, interleaved);
    factor = number_or(maker, "rope.scaling.factor", number_or(maker, "rope.scale_linear", 0.0));
    if (strcmp(kind, "none") == 0 && has(maker, "rope.scale_linear") && factor != 1.0)
        kind = "linear"; /* files before 2023-11 say only that */
    if (maker->status != STATUS_OK || strcmp(kind, "none") == 0)
        return;
    scaling = json_object();
    put(maker, scaling, "rope_type", json_string(kind));
    if (factor != 0.0)
        put(maker, scaling, "factor", json_real(factor));
    if (has(maker, "rope.scaling.original_context_length"))
        put(maker, scaling, "original_max_position_embeddings",
            json_integer((json_int_t)count_of(maker, "rope.scaling.original_context_length")));
    if (strcmp(kind, "yarn") == 0)
        put_yarn(maker, scaling, factor);
    put(maker, maker->config, "rope_scaling", scaling);
}

/* --- what all have ---------------------------------------------------------------------------- */

static bool has_tensor(const struct maker *maker, const char *name)
{
    return ckpt_find(maker->ckpt, name) != NULL;
}

static void put_ids(struct maker *maker)
{
    static const char *const ends[] = { "tokenizer.ggml.eos_token_id",
                                        "tokenizer.ggml.eot_token_id",
                                        "tokenizer.ggml.eom_token_id" };
    json_t *const list = json_array();
    uint64_t id = UINT64_MAX;

    for (size_t i = 0; maker->status == STATUS_OK && i < sizeof(ends) / sizeof(ends[0]); i++) {
        id = UINT64_MAX;
        maker->status =
            gguf__get_count(maker->meta, maker->path, ends[i], UINT32_MAX, &id, maker->err);
        if (maker->status == STATUS_OK && id < UINT32_MAX)
            (void)json_array_append_new(list, json_integer((json_int_t)id));
    }
    put(maker, maker->config, "eos_token_id", list);
    id = UINT64_MAX;
    if (maker->status == STATUS_OK)
        maker->status = gguf__get_count(maker->meta, maker->path, "tokenizer.ggml.bos_token_id",
                                        UINT32_MAX, &id, maker->err);
    if (id < INT32_MAX)
        put_count(maker, "bos_token_id", id);
}

static void put_common(struct maker *maker)
{
    const struct ckpt_tensor *const embed = ckpt_find(maker->ckpt, "model.embed_tokens.weight");
    const uint64_t predict_count = count_or(maker, "nextn_predict_layers", 0);
    const uint64_t layer_count = count_of(maker, "block_count");

    if (predict_count > layer_count)
        refuse(maker, "%s.nextn_predict_layers is %" PRIu64 ", but there are %" PRIu64 " layers",
               maker->arch, predict_count, layer_count);
    if (embed == NULL || embed->rank != 2)
        refuse(maker, "tensor 'token_embd.weight' %s",
               embed == NULL ? "is missing" : "is not a matrix");
    put_count(maker, "num_hidden_layers", layer_count - predict_count);
    put_count(maker, "num_nextn_predict_layers", predict_count);
    put_count(maker, "hidden_size", count_of(maker, "embedding_length"));
    put_count(maker, "num_attention_heads", count_of(maker, "attention.head_count"));
    put_count(maker, "intermediate_size", count_of(maker, "feed_forward_length"));
    put_count(maker, "max_position_embeddings", count_of(maker, "context_length"));
    if (!has(maker, "attention.layer_norm_rms_epsilon"))
        refuse(maker, "%s.attention.layer_norm_rms_epsilon is missing", maker->arch);
    put(maker, maker->config, "rms_norm_eps",
        json_real(number_or(maker, "attention.layer_norm_rms_epsilon", 0.0)));
    if (embed != NULL)
        put_count(maker, "vocab_size", embed->shape[0]);
    put_bool(maker, "tie_word_embeddings", !has_tensor(maker, "lm_head.weight"));
    put_ids(maker);
}

/* --- architectures ---------------------------------------------------------------------------- */

static void put_heads(struct maker *maker, bool interleaved)
{
    const uint64_t heads = count_of(maker, "attention.head_count");
    const uint64_t hidden = count_of(maker, "embedding_length");
    const uint64_t head_dim =
        count_or(maker, "attention.key_length", heads > 0 ? hidden / heads : 0);
    const uint64_t value_dim = count_or(maker, "attention.value_length", head_dim);

    if (value_dim != head_dim)
        refuse(maker, "%s.attention.value_length is %" PRIu64 " and key_length %" PRIu64
               "; heads of two widths are not built", maker->arch, value_dim, head_dim);
    put_count(maker, "num_key_value_heads", count_or(maker, "attention.head_count_kv", heads));
    put_count(maker, "head_dim", head_dim);
    put_rope(maker, head_dim, interleaved);
}

static void make_llama(struct maker *maker)
{
    const uint64_t experts = count_or(maker, "expert_count", 0);
    const uint64_t window = count_or(maker, "attention.sliding_window", 0);

    if (experts > 0) {
        put_names(maker, "MixtralForCausalLM", "mixtral");
        put_count(maker, "num_local_experts", experts);
        put_count(maker, "num_experts_per_tok", count_of(maker, "expert_used_count"));
    } else if (window > 0) {
        put_names(maker, "MistralForCausalLM", "mistral");
    } else {
        put_names(maker, "LlamaForCausalLM", "llama");
    }
    if (window > 0)
        put_count(maker, "sliding_window", window);
    else
        put(maker, maker->config, "sliding_window", json_null());
    put_bool(maker, "attention_bias", has_tensor(maker, "model.layers.0.self_attn.q_proj.bias"));
    put_bool(maker, "mlp_bias", has_tensor(maker, "model.layers.0.mlp.gate_proj.bias"));
    put_heads(maker, true);
}

static void make_qwen2(struct maker *maker)
{
    put_names(maker, "Qwen2ForCausalLM", "qwen2");
    put_heads(maker, false);
}

static void make_qwen3(struct maker *maker)
{
    put_names(maker, "Qwen3ForCausalLM", "qwen3");
    put_bool(maker, "attention_bias", has_tensor(maker, "model.layers.0.self_attn.q_proj.bias"));
    put_heads(maker, false);
}

/* llama.cpp always normalises the chosen experts' weights, and every layer has experts. */
static void make_qwen3moe(struct maker *maker)
{
    put_names(maker, "Qwen3MoeForCausalLM", "qwen3_moe");
    put_bool(maker, "attention_bias", has_tensor(maker, "model.layers.0.self_attn.q_proj.bias"));
    put_count(maker, "num_experts", count_of(maker, "expert_count"));
    put_count(maker, "num_experts_per_tok", count_of(maker, "expert_used_count"));
    put_count(maker, "moe_intermediate_size", count_of(maker, "expert_feed_forward_length"));
    put_bool(maker, "norm_topk_prob", true);
    put_count(maker, "decoder_sparse_step", 1);
    put_heads(maker, false);
}

static void put_latent_attention(struct maker *maker)
{
    const uint64_t rotated = count_of(maker, "rope.dimension_count");
    const uint64_t key = count_or(maker, "attention.key_length_mla",
                                  count_or(maker, "attention.key_length", 0));
    const uint64_t value = count_or(maker, "attention.value_length_mla",
                                    count_or(maker, "attention.value_length", 0));
    const uint64_t query_rank = count_or(maker, "attention.q_lora_rank", 0);

    if (key <= rotated || value == 0)
        refuse(maker, "keys of %" PRIu64 " and values of %" PRIu64 " elements, of which %" PRIu64
               " are rotated, don't make a latent attention", key, value, rotated);
    put_count(maker, "kv_lora_rank", count_of(maker, "attention.kv_lora_rank"));
    if (query_rank > 0)
        put_count(maker, "q_lora_rank", query_rank);
    else
        put(maker, maker->config, "q_lora_rank", json_null());
    put_count(maker, "qk_rope_head_dim", rotated);
    put_count(maker, "qk_nope_head_dim", key - rotated);
    put_count(maker, "v_head_dim", value);
    put_count(maker, "num_key_value_heads", count_of(maker, "attention.head_count"));
    put_rope(maker, rotated, true);
}

/* Files before 2025-10 do not tell the groups of experts. V3 and R1 are the only ones with 256
 * experts, chosen by sigmoid, in 61 layers, and have 8, of which 4 count. */
static void put_groups(struct maker *maker, bool is_v3, uint64_t experts)
{
    const bool is_published = is_v3 && experts == 256 && count_of(maker, "block_count") >= 61 &&
                              count_of(maker, "block_count") <= 62;
    const uint64_t groups = count_or(maker, "expert_group_count", is_published ? 8 : 1);
    const uint64_t kept = count_or(maker, "expert_group_used_count", is_published ? 4 : 1);

    put_count(maker, "n_group", groups > 0 ? groups : 1);
    put_count(maker, "topk_group", kept > 0 ? kept : 1);
    if (!is_v3)
        put(maker, maker->config, "topk_method",
            json_string(groups > 1 ? "group_limited_greedy" : "greedy"));
}

static void make_deepseek2(struct maker *maker)
{
    /* 1: softmax, which also is meant where nothing is said; 2: sigmoid */
    const uint64_t gating = count_or(maker, "expert_gating_func", 0);
    const uint64_t experts = count_or(maker, "expert_count", 0);
    const bool is_v3 = gating == 2;

    if (gating > 2)
        refuse(maker, "%s.expert_gating_func is %" PRIu64 ", 1 (softmax) and 2 (sigmoid) are built",
               maker->arch, gating);
    put_names(maker, is_v3 ? "DeepseekV3ForCausalLM" : "DeepseekV2ForCausalLM",
              is_v3 ? "deepseek_v3" : "deepseek_v2");
    put_latent_attention(maker);
    put_count(maker, "n_routed_experts", experts);
    put_count(maker, "n_shared_experts", count_or(maker, "expert_shared_count", 0));
    put_count(maker, "first_k_dense_replace",
              experts > 0 ? count_or(maker, "leading_dense_block_count", 0)
                          : count_of(maker, "block_count"));
    if (experts > 0) {
        put_count(maker, "num_experts_per_tok", count_of(maker, "expert_used_count"));
        put_count(maker, "moe_intermediate_size", count_of(maker, "expert_feed_forward_length"));
    }
    /* 0 is how some files write that there is none */
    put(maker, maker->config, "routed_scaling_factor",
        json_real(number_or(maker, "expert_weights_scale", 0.0) == 0.0
                      ? 1.0 : number_or(maker, "expert_weights_scale", 1.0)));
    put_bool(maker, "norm_topk_prob", bool_or(maker, "expert_weights_norm", false));
    put_groups(maker, is_v3, experts);
}

static const struct {
    const char *arch;
    void (*make)(struct maker *maker);
} arches[] = {
    { "llama", make_llama },       { "qwen2", make_qwen2 },         { "qwen3", make_qwen3 },
    { "qwen3moe", make_qwen3moe }, { "deepseek2", make_deepseek2 },
};
#define ARCH_COUNT (sizeof(arches) / sizeof(arches[0]))

enum status gguf__config(const struct ckpt *ckpt, const struct gguf_meta *meta,
                         json_t **config_out, struct err *err)
{
    struct maker maker = { .ckpt = ckpt, .meta = meta, .path = ckpt->files[0].path, .err = err };
    size_t i = 0;

    maker.status = gguf__get_string(meta, maker.path, "general.architecture", &maker.arch, err);
    if (maker.status != STATUS_OK)
        return maker.status;
    assert(maker.arch != NULL); /* read_architecture */
    while (i < ARCH_COUNT && strcmp(arches[i].arch, maker.arch) != 0)
        i++;
    if (i == ARCH_COUNT)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: general.architecture is \"%.64s\", which does not run; llama, qwen2, "
                       "qwen3, qwen3moe and deepseek2 do", maker.path, maker.arch);
    maker.config = json_object();
    if (maker.config == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for its metadata", maker.path);
    put_common(&maker);
    arches[i].make(&maker);
    if (maker.status != STATUS_OK) {
        json_decref(maker.config);
        return maker.status;
    }
    *config_out = maker.config;
    return STATUS_OK;
}
