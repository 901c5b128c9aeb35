/* model/families/gemma.c - Gemma 2 (Gemma team 2024, arXiv 2408.00118) and Gemma 3 (2025, arXiv
 * 2503.19786).
 *
 *     x = sqrt(hidden_size) embed(ids)
 *     x += rms_norm(grouped-query attention of rms_norm(x))            (gqa.c)
 *     x += rms_norm((gelu(h Wgate) * (h Wup)) Wdown),  h = rms_norm(x)
 *     logits = cap * tanh(rms_norm(x) Wembed^T / cap)
 *
 * A norm's weight is what is added to 1; a GGUF file's have it added already. In Gemma 2 every
 * second layer has a window, from the first on, scores are capped, and so are logits. In Gemma 3
 * five of six have one, queries and keys are normalised per head, and mostly nothing is capped;
 * layers with a window have a rope of their own, whose frequencies nothing scales. Missing keys
 * are what transformers 5.24 (models/gemma2, gemma3) has for them; as there, Gemma 3's
 * "attn_logit_softcapping" is not looked at.
 *
 * A Gemma 3 that sees is a configuration within a configuration, and its tensors have another root
 * (params.c); only its text part is read. */
#include <math.h>
#include <string.h>

#include "base/json.h"
#include "model/internal.h"

#define THETA 10000.0
#define THETA_GLOBAL 1000000.0 /* Gemma 3's, of layers without a window */

/* A number above 0; null, or a missing key where nothing stands for it: 0. */
static float read_cap(struct config_reader *reader, const char *key, double missing)
{
    const double fallback = model__read_is_null(reader, key) ? 0.0 : missing;

    return (float)model__read_double(reader, key, 1e-3, 1e6, fallback);
}

/* "sliding_window_pattern" is how the first files of Gemma 3 say which layers have no window. */
static void read_windows(struct config_reader *reader, struct model_config *config,
                         uint32_t period_missing)
{
    const uint32_t period = model__read_count_or(reader, "sliding_window_pattern", 1,
                                                 CONFIG_LAYERS_MAX, period_missing);

    model__read_window(reader, config, 4096);
    if (!model__read_layer_types(reader, config))
        for (uint32_t i = 0; i < config->layer_count; i++)
            config->is_sliding[i] = (i + 1) % period != 0;
}

/* What both have. */
static void read_common(struct config_reader *reader, struct model_config *config)
{
    const char *act = model__read_string(reader, "hidden_activation", "gelu_pytorch_tanh");
    const double scalar = model__read_double(reader, "query_pre_attn_scalar", 1.0, 1e6, 256.0);

    if (strcmp(act, "gelu_pytorch_tanh") != 0)
        model__read_refuse(reader, "\"hidden_activation\" is \"%.32s\", Gemma has "
                           "\"gelu_pytorch_tanh\"", act);
    if (model__read_bool(reader, "use_bidirectional_attention", false))
        model__read_refuse(reader, "\"use_bidirectional_attention\" is true, which is not built");
    config->gate = GATE_GELU_TANH;
    config->norm_offset = (float)model__read_double(reader, "gguf_norm_offset", 0.0, 1.0, 1.0);
    config->out_norms = true;
    config->tied_embeddings = model__read_bool(reader, "tie_word_embeddings", true);
    config->qkv_bias = config->o_bias = model__read_bool(reader, "attention_bias", false);
    config->embedding_scale = (float)sqrt(config->hidden_size);
    config->attention_scale = (float)pow(scalar, -0.5);
    if (!model__read_has(reader, "bos_token_id"))
        config->bos_id = 2; /* the classes' own; and 1 ends a text */
    config->eos_ids[0] = 1;
    config->eos_count = 1;
}

static void read_gemma2(struct config_reader *reader, struct model_config *config)
{
    static const struct gqa_missing missing = { 4, 256, { .theta = THETA } };

    model__gqa_read_heads(reader, config, &missing);
    read_common(reader, config);
    config->score_cap = read_cap(reader, "attn_logit_softcapping", 50.0);
    config->logits_cap = read_cap(reader, "final_logit_softcapping", 30.0);
    read_windows(reader, config, 2);
}

static void read_gemma3(struct config_reader *reader, struct model_config *config)
{
    static const struct gqa_missing missing = { 4, 256, { .theta = THETA_GLOBAL,
                                                          .by_layer = true } };

    model__gqa_read_heads(reader, config, &missing);
    read_common(reader, config);
    config->qk_norm = true;
    config->logits_cap = read_cap(reader, "final_logit_softcapping", 0.0);
    read_windows(reader, config, 6);
    if (reader->status == STATUS_OK)
        model__read_sliding_rope(reader, THETA, config);
}

static void gemma_describe_layer(struct params *params, const struct model_config *config,
                                 uint32_t layer)
{
    const uint64_t hidden = config->hidden_size;

    model__gqa_describe(params, config, layer);
    model__describe_norm(params, layer, ROLE_ATTENTION_OUT_NORM, OFFLOAD_PART_ATTENTION,
                         "post_attention_layernorm.weight", hidden);
    model__describe_norm(params, layer, ROLE_POST_NORM, OFFLOAD_PART_FFN,
                         "pre_feedforward_layernorm.weight", hidden);
    model__describe_mlp(params, config, layer, "mlp", config->ffn_width);
    model__describe_norm(params, layer, ROLE_FFN_OUT_NORM, OFFLOAD_PART_FFN,
                         "post_feedforward_layernorm.weight", hidden);
}

#define GEMMA_FAMILY                                                                               \
    MODEL_ARCH_GQA, .describe_layer = gemma_describe_layer, .slice_ffn = model__slice_ffn,         \
    .ffn = model__pass_ffn, .reads_activation = true

const struct model_arch model_arch_gemma2 = {
    .architecture = "Gemma2ForCausalLM", .model_type = "gemma2", .read_config = read_gemma2,
    GEMMA_FAMILY,
};
const struct model_arch model_arch_gemma3 = {
    .architecture = "Gemma3ForCausalLM", .model_type = "gemma3_text", .read_config = read_gemma3,
    GEMMA_FAMILY,
};

/* The configurations of those that see leave out what is as the class has it. */
static const struct config_missing text_missing = {
    .layer_count = 26, .vocab_size = 262208, .hidden_size = 2304, .head_count = 8,
    .ffn_width = 9216, .context_length = 131072,
};
const struct model_arch model_arch_gemma3_sees = {
    .architecture = "Gemma3ForConditionalGeneration", .model_type = "gemma3",
    .read_config = read_gemma3, .missing = &text_missing, .is_text_part = true, GEMMA_FAMILY,
};
