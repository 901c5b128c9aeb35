/* model/families/llama4.c - Llama 4's language model, alone or as a part of the one that sees
 * images too.
 *
 *     x += grouped-query attention of rms_norm(x)                          (gqa.c)
 *     h = rms_norm(x);  x += shared(h) + expert(w h), or a dense FFN       (experts.c)
 *
 * Most layers rotate queries and keys (adjacent pairs), may normalise them afterwards, without
 * weights, and attend within chunks of positions. The others have no positions, attend to all, and
 * may make far queries more decided: their temperature. One expert is chosen for a row, by its
 * logit, and gets the row times the sigmoid of that. Facts from transformers 5.23 (models/llama4):
 *
 * - "no_rope_layers" says 1 for layers that are rotated. Without it every fourth has no positions
 *   ("no_rope_layer_interval").
 * - "layer_types" names the chunked layers; without it these are the rotated ones.
 * - Layers with experts are those of "moe_layers", or the last of every
 *   "interleave_moe_layer_step". Dense ones are "intermediate_size_mlp" wide, experts
 *   "intermediate_size", and so is the shared one.
 * - Checkpoints hold an expert's matrices the other way round, all of a layer in one tensor. */
#include <string.h>

#include "base/json.h"
#include "model/internal.h"

/* A list of integers, one for each layer; NULL where it is missing, null or empty. */
static const json_t *read_list(struct config_reader *reader, const char *key)
{
    const json_t *list = NULL;

    if (reader->status == STATUS_OK)
        reader->status = json_get_array(reader->json, key, reader->what, &list, reader->err);
    for (size_t i = 0; i < json_array_size(list); i++)
        if (!json_is_integer(json_array_get(list, i)))
            model__read_refuse(reader, "\"%s\" holds %s, integers are wanted", key,
                               json_kind(json_array_get(list, i)));
    return reader->status == STATUS_OK && json_array_size(list) > 0 ? list : NULL;
}

static void read_rotated(struct config_reader *reader, struct model_config *config)
{
    const uint32_t interval = model__read_count_or(reader, "no_rope_layer_interval", 1, UINT32_MAX,
                                                   4);
    const json_t *list = read_list(reader, "no_rope_layers");

    if (list != NULL && json_array_size(list) < config->layer_count)
        model__read_refuse(reader, "\"no_rope_layers\" has %zu entries, \"num_hidden_layers\" is "
                           "%u", json_array_size(list), config->layer_count);
    for (uint32_t i = 0; reader->status == STATUS_OK && i < config->layer_count; i++)
        config->unrotated[i] = list != NULL ? json_integer_value(json_array_get(list, i)) == 0
                                            : (i + 1) % interval == 0;
}

static void read_chunks(struct config_reader *reader, struct model_config *config)
{
    const uint32_t missing = model__read_is_null(reader, "attention_chunk_size") ? 0 : 8192;
    const json_t *types = NULL;

    config->sliding_window = model__read_count_or(reader, "attention_chunk_size", 1,
                                                  CONFIG_CONTEXT_MAX, missing);
    config->chunked = true;
    if (reader->status == STATUS_OK)
        reader->status = json_get_array(reader->json, "layer_types", reader->what, &types,
                                        reader->err);
    if (types != NULL && json_array_size(types) != config->layer_count)
        model__read_refuse(reader, "\"layer_types\" has %zu entries, \"num_hidden_layers\" is %u",
                           json_array_size(types), config->layer_count);
    for (uint32_t i = 0; reader->status == STATUS_OK && i < config->layer_count; i++) {
        const char *type = json_string_value(json_array_get(types, i));

        if (types != NULL && type == NULL)
            model__read_refuse(reader, "\"layer_types\" holds %s, strings are wanted",
                               json_kind(json_array_get(types, i)));
        config->is_sliding[i] = type != NULL ? strcmp(type, "chunked_attention") == 0
                                             : !config->unrotated[i];
        if (type != NULL && !config->is_sliding[i] && strcmp(type, "full_attention") != 0)
            model__read_refuse(reader, "entry %u of \"layer_types\" is \"%.32s\", Llama 4 has "
                               "full_attention and chunked_attention", i, type);
    }
}

static void read_expert_layers(struct config_reader *reader, struct model_config *config)
{
    const uint32_t step = model__read_count_or(reader, "interleave_moe_layer_step", 1, UINT32_MAX,
                                               1);
    const bool listed = model__read_has(reader, "moe_layers");
    const json_t *list = read_list(reader, "moe_layers");

    for (uint32_t i = 0; reader->status == STATUS_OK && i < config->layer_count; i++)
        config->has_experts[i] = !listed && (i + 1) % step == 0;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_int_t layer = json_integer_value(json_array_get(list, i));

        if (layer >= 0 && layer < config->layer_count)
            config->has_experts[layer] = true;
    }
}

static void read_llama4(struct config_reader *reader, struct model_config *config)
{
    const struct gqa_missing missing = {
        8, model__read_is_null(reader, "head_dim") ? 0 : 128, { .theta = 500000.0 },
    };

    if (!model__read_has(reader, "rms_norm_eps"))
        config->norm_epsilon = 1e-5f; /* the class's own */
    model__gqa_read_heads(reader, config, &missing);
    config->rope_interleaved = true;
    config->qkv_bias = config->o_bias = model__read_bool(reader, "attention_bias", false);
    config->qk_norm_plain = model__read_bool(reader, "use_qk_norm", true);
    read_rotated(reader, config);
    read_chunks(reader, config);
    if (model__read_bool(reader, "attn_temperature_tuning", true)) {
        config->temperature_floor = model__read_count_or(reader, "floor_scale", 1, UINT32_MAX,
                                                         8192);
        config->temperature_scale = (float)model__read_double(reader, "attn_scale", -1e3, 1e3, 0.1);
    }
    config->expert_ffn_width = config->shared_ffn_width = config->ffn_width;
    config->ffn_width = model__read_count_or(reader, "intermediate_size_mlp", 1, CONFIG_FFN_MAX,
                                             16384);
    model__read_softmax_experts(reader, config, 16, 1);
    config->scoring = ROUTE_SIGMOID;
    config->weighs_inputs = true;
    if (config->expert_top_k != 1)
        model__read_refuse(reader, "\"num_experts_per_tok\" is %u, only 1 is built",
                           config->expert_top_k);
    if (config->expert_count == 0)
        model__read_refuse(reader, "\"num_local_experts\" is 0, Llama 4 has at least one");
    read_expert_layers(reader, config);
}

static void llama4_describe_layer(struct params *params, const struct model_config *config,
                                  uint32_t layer)
{
    static const struct expert_names names = {
        .block = "feed_forward", .gate = "gate_proj", .up = "up_proj", .down = "down_proj",
        .shared = "feed_forward.shared_expert", .router = "feed_forward.router.weight",
        .fused_router = "feed_forward.router.weight",
        .fused_in = "feed_forward.experts.gate_up_proj",
        .fused_out = "feed_forward.experts.down_proj", .fused_transposed = true,
    };

    model__gqa_describe(params, config, layer);
    model__describe_ffn(params, config, layer, &names);
}

#define LLAMA4_FAMILY                                                                              \
    MODEL_ARCH_GQA, .read_config = read_llama4, .describe_layer = llama4_describe_layer,           \
    .slice_ffn = model__slice_ffn, .ffn = model__pass_ffn

const struct model_arch model_arch_llama4 = {
    .architecture = "Llama4ForCausalLM", .model_type = "llama4_text", LLAMA4_FAMILY,
};
const struct model_arch model_arch_llama4_sees = {
    .architecture = "Llama4ForConditionalGeneration", .model_type = "llama4",
    .is_text_part = true, LLAMA4_FAMILY,
};
