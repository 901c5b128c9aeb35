/* model/families/deepseek.c - DeepSeek-V2 and V3: multi-head latent attention and a mixture of
 * experts.
 *
 * Attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) caches one latent vector c of kv_lora_rank
 * elements and one rotated key part for each token, shared by all heads:
 *
 *     c = rms_norm(first part of h Wkva);   kr = rope(rest of h Wkva);   cache [c, kr]
 *     q = h Wq, or rms_norm(h Wqa) Wqb;     q = [qn, qr] for each head;  qr = rope(qr)
 *
 * Keys and values per head would be c Wuk and c Wuv. They are never made: with the two matrices
 * absorbed into the query and the output, attention runs on the latents themselves,
 *
 *     score_j = scale (qn . (c_j Wuk) + qr . kr_j) = scale [qn Wuk^T, qr] . [c_j, kr_j]
 *     out     = (sum_j p_j c_j) Wuv
 *
 * which is grouped attention with one kv head, for prefill and decode alike, so that a chunk
 * computes what single tokens would. w_kc [heads][latent][nope] is Wuk, w_vc [heads][v][latent] is
 * Wuv; both are cut from the checkpoint's kv_b_proj by their loaders, the first one transposed.
 *
 * Where implementations differ, this is transformers 5.23 (models/deepseek_v2, deepseek_v3):
 * - V2 never normalises the chosen experts' weights, whatever "norm_topk_prob" says; DeepSeek's own
 *   code does when it is true. No published V2 sets it. A warning tells.
 * - The norms of the latents have epsilon 1e-6, not "rms_norm_eps".
 * - V2 rotates adjacent pairs always, V3 as "rope_interleave" says.
 * - YaRN multiplies the softmax's scale with mscale(factor, mscale_all_dim)^2 in both.
 * - "moe_layer_freq" is DeepSeek's own: transformers ignores it (every published model has 1). */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "model/internal.h"

#define LATENT_NORM_EPSILON 1e-6f
#define ROPE_THETA 10000.0 /* when it is missing */

static void read_attention(struct config_reader *reader, struct model_config *config)
{
    const uint32_t q_missing = model__read_is_null(reader, "q_lora_rank") ? 0 : 1536;
    const struct rope_missing rope = { .theta = ROPE_THETA };
    double scaling = 1.0;

    config->q_lora_rank = model__read_count_or(reader, "q_lora_rank", 1, CONFIG_LORA_RANK_MAX,
                                               q_missing);
    config->kv_lora_rank = model__read_count_or(reader, "kv_lora_rank", 1, CONFIG_LORA_RANK_MAX,
                                                512);
    config->qk_nope_dim = model__read_count_or(reader, "qk_nope_head_dim", 1, CONFIG_HEAD_DIM_MAX,
                                               128);
    config->qk_rope_dim = model__read_count_or(reader, "qk_rope_head_dim", 2, CONFIG_HEAD_DIM_MAX,
                                               64);
    config->v_dim = model__read_count_or(reader, "v_head_dim", 1, CONFIG_HEAD_DIM_MAX, 128);
    config->kv_head_count = model__read_count_or(reader, "num_key_value_heads", 1,
                                                 CONFIG_HEADS_MAX, config->head_count);
    if (config->kv_head_count != config->head_count)
        model__read_refuse(reader, "\"num_key_value_heads\" is %u; with latent attention it must "
                           "be \"num_attention_heads\", %u", config->kv_head_count,
                           config->head_count);
    if (config->qk_rope_dim % 2 != 0)
        model__read_refuse(reader, "\"qk_rope_head_dim\" is %u, it must be even",
                           config->qk_rope_dim);
    config->head_dim = config->qk_nope_dim + config->qk_rope_dim;
    config->latent_norm_epsilon = LATENT_NORM_EPSILON;
    config->latent_bias = config->o_bias = model__read_bool(reader, "attention_bias", false);
    if (reader->status == STATUS_OK)
        model__read_rope(reader, config->qk_rope_dim / 2, &rope, config, &scaling);
    config->attention_scale = (float)(pow(config->head_dim, -0.5) * scaling);
}

static void read_v2(struct config_reader *reader, struct model_config *config)
{
    static const struct routed_missing missing = { 64, 2, 1407, 0, 0, 1.0 };
    const char *method = model__read_string(reader, "topk_method", "greedy");
    const char *scoring = model__read_string(reader, "scoring_func", "softmax");

    read_attention(reader, config);
    model__read_routed_experts(reader, config, &missing);
    config->rope_interleaved = true;
    config->mlp_bias = model__read_bool(reader, "mlp_bias", false);
    config->scoring = ROUTE_SOFTMAX;
    config->groups = ROUTE_GROUP_MAX;
    if (reader->status != STATUS_OK)
        return;
    if (strcmp(scoring, "softmax") != 0)
        model__read_refuse(reader, "\"scoring_func\" is \"%.32s\", DeepSeek-V2 has \"softmax\"",
                           scoring);
    if (strcmp(method, "group_limited_greedy") == 0)
        model__read_groups(reader, config, 0, 0);
    else if (strcmp(method, "greedy") != 0)
        model__read_refuse(reader, "\"topk_method\" is \"%.32s\", DeepSeek-V2 has \"greedy\" and "
                           "\"group_limited_greedy\"", method);
    if (reader->status == STATUS_OK)
        model__check_groups(reader, config, 1);
    if (model__read_bool(reader, "norm_topk_prob", false))
        (void)snprintf(config->warning, sizeof(config->warning),
                       "\"norm_topk_prob\" is true, but experts' weights are not normalised: "
                       "transformers ignores it for DeepSeek-V2, and so does this program");
}

static void read_v3(struct config_reader *reader, struct model_config *config)
{
    static const struct routed_missing missing = { 256, 1, 2048, 8, 3, 2.5 };
    const char *method = model__read_string(reader, "topk_method", "noaux_tc");
    const char *scoring = model__read_string(reader, "scoring_func", "sigmoid");

    read_attention(reader, config);
    model__read_routed_experts(reader, config, &missing);
    model__read_groups(reader, config, 8, 4);
    config->rope_interleaved = model__read_bool(reader, "rope_interleave", true);
    config->scoring = ROUTE_SIGMOID;
    config->groups = ROUTE_GROUP_TOP2_SUM;
    config->route_bias = true;
    config->route_normalise = model__read_bool(reader, "norm_topk_prob", true);
    config->predict_layer_count = model__read_count_or(reader, "num_nextn_predict_layers", 0,
                                                       CONFIG_LAYERS_MAX, 1);
    if (reader->status != STATUS_OK)
        return;
    if (strcmp(scoring, "sigmoid") != 0 || strcmp(method, "noaux_tc") != 0)
        model__read_refuse(reader, "\"scoring_func\" \"%.32s\" and \"topk_method\" \"%.32s\": "
                           "DeepSeek-V3 has \"sigmoid\" and \"noaux_tc\"", scoring, method);
    model__check_groups(reader, config, 2);
}

static uint64_t latent_width(const struct model_config *config)
{
    return (uint64_t)config->kv_lora_rank + config->qk_rope_dim;
}

static struct kv_widths mla_kv_widths(const struct model_config *config)
{
    const uint32_t width = (uint32_t)latent_width(config);

    return (struct kv_widths){ width, 0, width };
}

static void describe_matrix(struct params *params, uint32_t layer, enum model_role role,
                            const char *name, uint64_t rows, uint64_t cols)
{
    const struct param_spec spec = { .name = name, .layer = (int32_t)layer, .role = role,
                                     .part = OFFLOAD_PART_ATTENTION, .rank = 2,
                                     .shape = { rows, cols } };

    model__param_same(params, &spec);
}

/* w_kc and w_vc out of kv_b_proj [heads][nope + v][latent]; newer GGUF files have them as they are
 * here, as k_b_proj and v_b_proj. */
static void describe_absorbed(struct params *params, const struct model_config *config,
                              uint32_t layer)
{
    const uint64_t heads = config->head_count, latent = config->kv_lora_rank;
    const uint64_t nope = config->qk_nope_dim, v = config->v_dim;
    const struct param_spec kc = { .name = "self_attn.w_kc", .layer = (int32_t)layer,
                                   .role = ROLE_W_KC, .part = OFFLOAD_PART_ATTENTION, .rank = 3,
                                   .shape = { heads, latent, nope } };
    const struct param_spec vc = { .name = "self_attn.w_vc", .layer = (int32_t)layer,
                                   .role = ROLE_W_VC, .part = OFFLOAD_PART_ATTENTION, .rank = 3,
                                   .shape = { heads, v, latent } };
    const struct param_spec order = { .name = "self_attn.kv_b_proj.order", .layer = (int32_t)layer,
                                      .role = ROLE_KV_B_ORDER, .part = OFFLOAD_PART_ATTENTION };
    struct loader_part part = { .rank = 2, .shape = { heads * (nope + v), latent } };

    if (model__param_source_exists(params, (int32_t)layer, "self_attn.k_b_proj.weight")) {
        model__param_begin(params, &kc);
        model__param_add(params, 3, kc.shape, "self_attn.k_b_proj.weight");
        model__param_end(params);
        model__param_begin(params, &vc);
        model__param_add(params, 3, vc.shape, "self_attn.v_b_proj.weight");
        model__param_end(params);
        return;
    }
    part.dims[0] = (struct loader_dim){ heads, (nope + v) * latent, latent * nope };
    part.dims[1] = (struct loader_dim){ latent, 1, nope };
    part.dims[2] = (struct loader_dim){ nope, latent, 1 };
    model__param_begin(params, &kc);
    model__param_add_view(params, &part, "self_attn.kv_b_proj.weight");
    model__param_end(params);
    (void)model__param_source_order(params, &order, "self_attn.kv_b_proj.weight");
    part.src_offset = nope * latent;
    part.dims[0] = (struct loader_dim){ heads, (nope + v) * latent, v * latent };
    part.dims[1] = (struct loader_dim){ v, latent, latent };
    part.dims[2] = (struct loader_dim){ latent, 1, 1 };
    model__param_begin(params, &vc);
    model__param_add_view(params, &part, "self_attn.kv_b_proj.weight");
    model__param_end(params);
}

static void describe_attention(struct params *params, const struct model_config *config,
                               uint32_t layer)
{
    const enum offload_part part = OFFLOAD_PART_ATTENTION;
    const uint64_t q_rows = (uint64_t)config->head_count * config->head_dim;
    const uint64_t hidden = config->hidden_size;

    model__describe_norm(params, layer, ROLE_INPUT_NORM, part, "input_layernorm.weight", hidden);
    if (config->q_lora_rank == 0) {
        describe_matrix(params, layer, ROLE_Q, "self_attn.q_proj.weight", q_rows, hidden);
    } else {
        describe_matrix(params, layer, ROLE_Q_A, "self_attn.q_a_proj.weight",
                        config->q_lora_rank, hidden);
        if (config->latent_bias)
            model__describe_norm(params, layer, ROLE_Q_A_BIAS, part, "self_attn.q_a_proj.bias",
                                 config->q_lora_rank);
        model__describe_norm(params, layer, ROLE_Q_A_NORM, part, "self_attn.q_a_layernorm.weight",
                             config->q_lora_rank);
        describe_matrix(params, layer, ROLE_Q_B, "self_attn.q_b_proj.weight", q_rows,
                        config->q_lora_rank);
    }
    describe_matrix(params, layer, ROLE_KV_A, "self_attn.kv_a_proj_with_mqa.weight",
                    latent_width(config), hidden);
    if (config->latent_bias)
        model__describe_norm(params, layer, ROLE_KV_A_BIAS, part,
                             "self_attn.kv_a_proj_with_mqa.bias", latent_width(config));
    model__describe_norm(params, layer, ROLE_KV_A_NORM, part, "self_attn.kv_a_layernorm.weight",
                         config->kv_lora_rank);
    describe_absorbed(params, config, layer);
    describe_matrix(params, layer, ROLE_O, "self_attn.o_proj.weight", hidden,
                    (uint64_t)config->head_count * config->v_dim);
    if (config->o_bias)
        model__describe_norm(params, layer, ROLE_O_BIAS, part, "self_attn.o_proj.bias", hidden);
}

static void deepseek_describe_layer(struct params *params, const struct model_config *config,
                                    uint32_t layer)
{
    static const struct expert_names names = {
        .block = "mlp", .gate = "gate_proj", .up = "up_proj", .down = "down_proj",
        .router_bias = "mlp.gate.e_score_correction_bias", .shared = "mlp.shared_experts",
    };

    describe_attention(params, config, layer);
    model__describe_ffn(params, config, layer, &names);
}

static void mla_slice(struct slicer *slicer, const struct model_config *config,
                      uint64_t row_count, struct model_buffers *buffers)
{
    const uint64_t rows_heads = row_count * config->head_count;

    buffers->q_a = model__slice(slicer, row_count * config->q_lora_rank * sizeof(float));
    buffers->q = model__slice(slicer, rows_heads * config->head_dim * sizeof(float));
    buffers->q_latent = model__slice(slicer, rows_heads * latent_width(config) * sizeof(float));
    buffers->kv_a = model__slice(slicer, row_count * latent_width(config) * sizeof(float));
    buffers->attended = model__slice(slicer, rows_heads * config->kv_lora_rank * sizeof(float));
    buffers->values = model__slice(slicer, rows_heads * config->v_dim * sizeof(float));
}

static uint32_t mla_iota_per_row(const struct model_config *config)
{
    return config->head_count;
}

static void make_queries(struct model_pass *pass, uint32_t layer)
{
    const struct model_config *config = pass->config;
    const struct model_buffers *buffers = pass->buffers;
    const bool is_one = config->q_lora_rank == 0;
    const struct pass_linear a = {
        .out = buffers->q_a, .x = buffers->normed, .layer = (int32_t)layer,
        .weight = ROLE_Q_A, .bias = ROLE_Q_A_BIAS,
    };
    const struct pass_norm norm = {
        .out = buffers->q_a, .x = buffers->q_a, .row_stride = config->q_lora_rank,
        .group_count = 1, .epsilon = config->latent_norm_epsilon, .layer = (int32_t)layer,
        .weight = ROLE_Q_A_NORM,
    };
    const struct pass_linear b = {
        .out = buffers->q, .x = is_one ? buffers->normed : buffers->q_a, .layer = (int32_t)layer,
        .weight = is_one ? ROLE_Q : ROLE_Q_B, .bias = ROLE_COUNT,
    };

    if (!is_one) {
        model__pass_linear(pass, &a);
        model__pass_norm(pass, &norm);
    }
    model__pass_linear(pass, &b);
    model__pass_rope(pass, layer, buffers->q + config->qk_nope_dim, config->head_count,
                     (uint64_t)config->head_count * config->head_dim, config->head_dim);
}

/* Where kv_b_proj has its columns in another order, so have w_kc its rows and w_vc its columns, and
 * latents are kept in that order. */
static void order_latents(struct model_pass *pass, uint32_t layer)
{
    const struct model_config *config = pass->config;
    const struct model_buffers *buffers = pass->buffers;
    const struct tensor *columns = model__pass_param(pass, (int32_t)layer, ROLE_KV_B_ORDER);
    const uint64_t width = latent_width(config);
    struct op ordered = { .kind = OP_GATHER_COLUMNS, .gather_columns = {
        .out = buffers->ordered, .x = buffers->kv_a, .row_count = pass->row_count,
        .width = config->kv_lora_rank, .x_width = config->kv_lora_rank,
        .out_row_stride = config->kv_lora_rank, .x_row_stride = width,
    } };
    const struct op back = { .kind = OP_GATHER_ROWS, .gather_rows = {
        .out = buffers->kv_a, .x = buffers->ordered, .rows = buffers->iota,
        .row_count = pass->row_count, .width = config->kv_lora_rank,
        .x_row_count = pass->row_count, .out_row_stride = width,
        .x_row_stride = config->kv_lora_rank,
    } };

    if (columns == NULL)
        return;
    ordered.gather_columns.columns = columns->data;
    model__pass_launch(pass, &ordered);
    model__pass_launch(pass, &back);
}

static void make_latents(struct model_pass *pass, uint32_t layer)
{
    const struct model_config *config = pass->config;
    const struct model_buffers *buffers = pass->buffers;
    const uint64_t width = latent_width(config);
    const struct pass_linear a = {
        .out = buffers->kv_a, .x = buffers->normed, .layer = (int32_t)layer,
        .weight = ROLE_KV_A, .bias = ROLE_KV_A_BIAS,
    };
    const struct pass_norm norm = {
        .out = buffers->kv_a, .x = buffers->kv_a, .row_stride = width, .group_count = 1,
        .epsilon = config->latent_norm_epsilon, .layer = (int32_t)layer, .weight = ROLE_KV_A_NORM,
    };
    const struct pass_kv_write write = {
        .cache = model__kv_keys(pass->model, layer), .x = buffers->kv_a, .x_row_stride = width,
        .layer = layer, .head_count = 1, .width = (uint32_t)width,
    };

    model__pass_linear(pass, &a);
    model__pass_norm(pass, &norm);
    order_latents(pass, layer);
    model__pass_rope(pass, layer, buffers->kv_a + config->kv_lora_rank, 1, width, width);
    model__pass_kv_write(pass, &write);
}

/* q_latent[t][h] = [qn w_kc^T, qr] */
static void absorb_queries(struct model_pass *pass, uint32_t layer)
{
    const struct model_config *config = pass->config;
    const struct model_buffers *buffers = pass->buffers;
    const struct tensor *weight = model__pass_param(pass, (int32_t)layer, ROLE_W_KC);
    const uint64_t width = latent_width(config);
    const struct op latent = { .kind = OP_MATMUL, .matmul = {
        .out = buffers->q_latent, .x = buffers->q, .weight = weight->data,
        .weight_dtype = weight->dtype, .row_count = pass->row_count,
        .n_count = config->kv_lora_rank, .k_count = config->qk_nope_dim,
        .batch_count = config->head_count,
        .out_row_stride = config->head_count * width,
        .x_row_stride = (uint64_t)config->head_count * config->head_dim,
        .out_batch_stride = width, .x_batch_stride = config->head_dim,
    } };
    /* a copy of each head's rotated part to its place: rows of heads, each to itself */
    const struct op rotated = { .kind = OP_GATHER_ROWS, .gather_rows = {
        .out = buffers->q_latent + config->kv_lora_rank, .x = buffers->q + config->qk_nope_dim,
        .rows = buffers->iota, .row_count = pass->row_count * config->head_count,
        .width = config->qk_rope_dim, .x_row_count = pass->row_count * config->head_count,
        .out_row_stride = width, .x_row_stride = config->head_dim,
    } };

    model__pass_launch(pass, &latent);
    model__pass_launch(pass, &rotated);
}

/* The attention itself, and values[t][h] = attended[t][h] w_vc^T. */
static void attend(struct model_pass *pass, uint32_t layer)
{
    const struct model_config *config = pass->config;
    const struct model_buffers *buffers = pass->buffers;
    const struct tensor *weight = model__pass_param(pass, (int32_t)layer, ROLE_W_VC);
    const uint64_t width = latent_width(config);
    const void *cache = model__kv_keys(pass->model, layer);
    const struct op_cache_strides strides =
        model__kv_strides(pass->model, layer, 1, (uint32_t)width); /* values: a part of keys */
    const struct op attention = { .kind = OP_ATTENTION, .attention = {
        .out = buffers->attended, .q = buffers->q_latent, .k_cache = cache, .v_cache = cache,
        .cache_dtype = config->kv_dtype,
        .pages = pass->pages[KV_ALL], .sequences = pass->sequences, .positions = pass->positions,
        .row_count = pass->row_count, .head_count = config->head_count, .kv_head_count = 1,
        .k_width = (uint32_t)width, .v_width = config->kv_lora_rank,
        .page_size = (uint32_t)pass->model->sizes.page_size,
        .page_count_max = pass->page_count_max,
        .host_sequences = pass->host_sequences, .host_positions = pass->host_positions,
        .cache_row_count = model__kv_slot_count(pass->model, layer),
        .out_row_stride = (uint64_t)config->head_count * config->kv_lora_rank,
        .q_row_stride = config->head_count * width,
        .k_strides = strides, .v_strides = strides,
        .scale = config->attention_scale,
    } };
    const struct op values = { .kind = OP_MATMUL, .matmul = {
        .out = buffers->values, .x = buffers->attended, .weight = weight->data,
        .weight_dtype = weight->dtype, .row_count = pass->row_count, .n_count = config->v_dim,
        .k_count = config->kv_lora_rank, .batch_count = config->head_count,
        .out_row_stride = (uint64_t)config->head_count * config->v_dim,
        .x_row_stride = (uint64_t)config->head_count * config->kv_lora_rank,
        .out_batch_stride = config->v_dim, .x_batch_stride = config->kv_lora_rank,
    } };

    model__pass_launch(pass, &attention);
    model__pass_launch(pass, &values);
}

static void mla_attention(struct model_pass *pass, uint32_t layer)
{
    const struct pass_linear back = {
        .out = pass->buffers->x, .x = pass->buffers->values, .layer = (int32_t)layer,
        .weight = ROLE_O, .bias = ROLE_O_BIAS, .accumulate = true,
    };

    make_queries(pass, layer);
    make_latents(pass, layer);
    absorb_queries(pass, layer);
    attend(pass, layer);
    model__pass_linear(pass, &back);
}

#define DEEPSEEK_FAMILY                                                                            \
    .kv_widths = mla_kv_widths, .describe_layer = deepseek_describe_layer,                         \
    .slice_attention = mla_slice, .slice_ffn = model__slice_ffn,                                   \
    .iota_per_row = mla_iota_per_row, .attention = mla_attention, .ffn = model__pass_ffn

const struct model_arch model_arch_deepseek_v2 = {
    .architecture = "DeepseekV2ForCausalLM", .model_type = "deepseek_v2", .read_config = read_v2,
    DEEPSEEK_FAMILY,
};
const struct model_arch model_arch_deepseek_v3 = {
    .architecture = "DeepseekV3ForCausalLM", .model_type = "deepseek_v3", .read_config = read_v3,
    DEEPSEEK_FAMILY,
};
