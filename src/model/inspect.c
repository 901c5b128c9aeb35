/* model/inspect.c - from an open checkpoint to a checked description of a model, without a
 * device. */
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "model/internal.h"
#include "tensor/quant.h"

#define GENERATION_CONFIG_BYTES_MAX (1u << 20)

static enum status read_generation(const struct ckpt *ckpt, struct model_config *config,
                                   struct err *err)
{
    json_t *json = NULL;
    char path[4096];
    enum status st;
    const int size = snprintf(path, sizeof(path), "%s/generation_config.json", ckpt_path(ckpt));

    if (size < 0 || (size_t)size >= sizeof(path) || !file_exists(path))
        return STATUS_OK;
    st = json_read_file(path, GENERATION_CONFIG_BYTES_MAX, &json, err);
    if (st == STATUS_OK)
        st = model__config_read_generation(json, path, config, err);
    json_decref(json);
    return st;
}

static enum status read_config(const struct ckpt *ckpt, struct model_config *config_out,
                               struct err *err)
{
    char what[512];
    enum status st;

    (void)snprintf(what, sizeof(what), "%s%s", ckpt_path(ckpt), ckpt_config_suffix(ckpt));
    st = model__config_read(ckpt_config(ckpt), what, config_out, err);
    return st == STATUS_OK ? read_generation(ckpt, config_out, err) : st;
}

static void fill_info(const struct model_config *config, struct model_info *info)
{
    memcpy(info->architecture, config->architecture, sizeof(info->architecture));
    memcpy(info->model_type, config->model_type, sizeof(info->model_type));
    info->layer_count = config->layer_count;
    info->vocab_size = config->vocab_size;
    info->hidden_size = config->hidden_size;
    info->expert_layer_count = 0;
    for (uint32_t i = 0; i < config->layer_count; i++)
        info->expert_layer_count += model__config_layer_has_experts(config, i);
    info->expert_count = info->expert_layer_count > 0 ? config->expert_count : 0;
    info->expert_top_k = info->expert_layer_count > 0 ? config->expert_top_k : 0;
    info->context_length = config->context_length;
    info->bos_id = config->bos_id;
    memcpy(info->eos_ids, config->eos_ids, sizeof(info->eos_ids));
    info->eos_count = config->eos_count;
    info->kv_dtype = config->kv_dtype;
    info->kv_bytes_per_token = (uint64_t)config->layer_count * model__kv_slot_bytes(config);
}

static void fill_window_info(const struct model_config *config, struct model_info *info)
{
    info->sliding_window = config->sliding_window;
    info->window_layer_count = model__window_layer_count(config);
    info->kv_window_bytes_per_token =
        (uint64_t)info->window_layer_count * model__kv_slot_bytes(config);
}

/* The model's own context, or a shorter one that was asked for. A window that is no shorter changes
 * nothing, and there is none then. */
static enum status choose_context(const struct ckpt *ckpt, uint32_t wanted,
                                  struct model_config *config, struct err *err)
{
    const uint32_t own = config->context_length;

    if (wanted > own)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: a context of %u positions was asked for, the model's own "
                       "(\"max_position_embeddings\") is %u", ckpt_path(ckpt), wanted, own);
    config->context_length = wanted == 0 ? own : wanted;
    model__choose_rope(config);
    if (config->sliding_window >= config->context_length)
        config->sliding_window = 0;
    if (model__window_layer_count(config) == 0)
        config->sliding_window = 0;
    return STATUS_OK;
}

static void log_what_is_odd(const struct model_config *config,
                            const struct params_skipped *skipped, const struct log *log)
{
    if (config->warning[0] != '\0')
        log_line(log, LOG_WARN, "config.json: %s", config->warning);
    if (config->rope_long_past != 0 && config->context_length > config->rope_long_past)
        log_line(log, LOG_INFO,
                 "the context of %u positions has LongRoPE's factors for long ones; one of at most "
                 "%u has the short ones, for every text", config->context_length,
                 config->rope_long_past);
    if (skipped->predict_count > 0)
        log_line(log, LOG_INFO,
                 "%zu tensors of layers %u and above are skipped: multi-token prediction is not "
                 "used", skipped->predict_count, config->layer_count);
    if (skipped->vision_count > 0)
        log_line(log, LOG_INFO, "%zu tensors of the vision tower are skipped: only text is served",
                 skipped->vision_count);
    if (skipped->tied_count > 0)
        log_line(log, LOG_INFO, "lm_head.weight is skipped: \"tie_word_embeddings\" is true");
    if (skipped->scale_count > 0)
        log_line(log, LOG_INFO, "%zu scales of activations and of the KV cache are skipped: "
                 "neither is quantised as they say", skipped->scale_count);
    if (skipped->zero_bias_count > 0)
        log_line(log, LOG_INFO, "%zu biases of quantised matrices are skipped: they are zero and "
                 "the model has none", skipped->zero_bias_count);
    if (skipped->widened_count > 0)
        log_line(log, LOG_INFO, "%zu FP8 matrices become F16: their rows are no whole blocks of %d",
                 skipped->widened_count, QUANT_F8_SHORT_ELEMENTS);
    if (skipped->inv_freq_count > 0)
        log_line(log, LOG_INFO, "%zu rotary_emb.inv_freq tensors are skipped: config.json says "
                 "the same", skipped->inv_freq_count);
}

enum status model__read(const struct ckpt *ckpt, const struct model_options *options,
                        const struct log *log, struct model_config *config_out,
                        struct params **params_out, struct model_info *info_out, struct err *err)
{
    struct params_skipped skipped;
    enum status st = read_config(ckpt, config_out, err);

    if (st == STATUS_OK && ckpt_refusal(ckpt) != NULL)
        st = err_set(err, STATUS_BAD_INPUT, "%s", ckpt_refusal(ckpt));
    if (st != STATUS_OK)
        return st;
    config_out->kv_dtype = options->kv_dtype;
    st = model__kv_check(config_out, err);
    if (st != STATUS_OK)
        return err_prefix(err, st, "%s", ckpt_path(ckpt));
    fill_info(config_out, info_out);
    st = choose_context(ckpt, options->context_length, config_out, err);
    if (st != STATUS_OK)
        return st;
    info_out->context_length = config_out->context_length;
    fill_window_info(config_out, info_out);
    config_out->expert_units = options->offload.experts && config_out->expert_count > 0;
    st = model__params_create(ckpt, config_out, options->dtype, params_out, err);
    if (st != STATUS_OK)
        return st;
    config_out->ordered_width = model__params_ordered_width(*params_out);
    model__params_describe(*params_out, info_out);
    st = model__params_check(*params_out, &skipped, err);
    if (st == STATUS_OK)
        log_what_is_odd(config_out, &skipped, log);
    return st;
}

enum status model_inspect(const struct ckpt *ckpt, struct model_info *info_out, struct err *err)
{
    struct model_options options;
    struct model_config config;
    struct params *params = NULL;
    enum status st;

    model_options_init(&options);
    memset(info_out, 0, sizeof(*info_out));
    info_out->bos_id = -1;
    st = model__read(ckpt, &options, NULL, &config, &params, info_out, err);
    model__params_destroy(params);
    return st;
}
