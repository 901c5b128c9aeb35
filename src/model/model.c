/* model/model.c - making a model: read, plan, take memory, load; and unmaking it.
 *
 * Nothing is loaded before it is known that everything fits, and nothing is taken before every
 * tensor of the checkpoint is accounted for. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "model/internal.h"

/* What is small enough to be tried out: in some hundred milliseconds. */
#define TRIAL_WEIGHT_BYTES_MAX (64 * MIB)
#define TRIAL_STEP_S_MAX 0.01
#define TRIAL_PROMPT_S_MAX 0.1

void model_options_init(struct model_options *options)
{
    memset(options, 0, sizeof(*options));
    offload_options_init(&options->offload);
    options->step_row_count_max = 512;
    options->step_sequence_count_max = 16;
    options->kv_page_size = 16;
}

const struct model_info *model_info(const struct model *model)
{
    return &model->info;
}

struct offload *model_offload(struct model *model)
{
    return model->offload;
}

const struct model_forecast *model_forecast_made(const struct model *model)
{
    return model->has_forecast ? &model->forecast : NULL;
}

size_t model_param_count(const struct model *model)
{
    return model__params_count(model->params);
}

/* Copies what lies in the staging memory to the device and waits. */
static enum status upload_staged(struct model *model, void *dst, uint64_t size_bytes,
                                 struct err *err)
{
    const enum status st = device_copy_in(model->stream, dst, model->staging, size_bytes, err);

    return st == STATUS_OK ? stream_sync(model->stream, err) : st;
}

/* Ones, as many as scratch has room for. */
static enum status upload_ones(struct model *model, struct err *err)
{
    const struct model_config *config = &model->config;
    const uint64_t rows = model->sizes.row_count;
    const uint64_t count = rows > config->head_dim ? rows : config->head_dim;
    const uint64_t piece_max = model->staging_bytes / sizeof(float);
    float *staged = model->staging;
    enum status st = STATUS_OK;

    if (!config->qk_norm_plain && !config->weighs_inputs)
        return STATUS_OK;
    for (uint64_t i = 0; i < count && i < piece_max; i++)
        staged[i] = 1.0f;
    for (uint64_t done = 0; st == STATUS_OK && done < count;) {
        const uint64_t piece = count - done < piece_max ? count - done : piece_max;

        st = upload_staged(model, model->buffers.ones + done, piece * sizeof(float), err);
        done += piece;
    }
    return st;
}

static enum status upload_constants(struct model *model, struct err *err)
{
    const struct model_config *config = &model->config;
    const uint64_t count = model->sizes.row_count * config->arch->iota_per_row(config);
    const uint64_t piece_max = model->staging_bytes / sizeof(int32_t);
    int32_t *staged = model->staging;
    enum status st;

    memcpy(staged, config->rope_frequencies, config->rope_pair_count * sizeof(float));
    st = upload_staged(model, model->buffers.frequencies,
                       config->rope_pair_count * sizeof(float), err);
    if (st == STATUS_OK && config->has_sliding_rope) {
        memcpy(staged, config->rope_sliding_frequencies, config->rope_pair_count * sizeof(float));
        st = upload_staged(model, model->buffers.sliding_frequencies,
                           config->rope_pair_count * sizeof(float), err);
    }
    for (uint64_t done = 0; st == STATUS_OK && done < count;) {
        const uint64_t piece = count - done < piece_max ? count - done : piece_max;

        for (uint64_t i = 0; i < piece; i++)
            staged[i] = (int32_t)(done + i);
        st = upload_staged(model, model->buffers.iota + done, piece * sizeof(int32_t), err);
        done += piece;
    }
    return st == STATUS_OK ? upload_ones(model, err) : st;
}

static enum status take_memory(struct model *model, struct err *err)
{
    const struct model_sizes *sizes = &model->sizes;
    struct device *device = model->device;
    const uint64_t staging_bytes = model__staging_bytes(sizes);
    enum status st = device_alloc(device, DEVICE_USE_SCRATCH, sizes->scratch_bytes,
                                  &model->scratch, err);

    if (st != STATUS_OK)
        return st;
    (void)model__slice_scratch(&model->config, sizes, model->scratch, &model->buffers);
    st = device_alloc(device, DEVICE_USE_KV, sizes->kv_bytes, &model->kv, err);
    if (st != STATUS_OK)
        return st;
    st = device_host_alloc(device, staging_bytes, &model->staging, err);
    if (st != STATUS_OK)
        return st;
    model->staging_bytes = staging_bytes;
#ifdef LIGHTER_DEBUG
    /* all ones is a NaN: a token slot that is read before it is written shows */
    st = device_fill(model->stream, model->kv, 0xff, sizes->kv_bytes, err);
    if (st != STATUS_OK)
        return st;
#endif
    return upload_constants(model, err);
}

static void fill_info(struct model *model)
{
    const struct model_sizes *sizes = &model->sizes;
    struct model_info *info = &model->info;

    info->scratch_bytes = sizes->scratch_bytes;
    info->kv_page_size = (uint32_t)sizes->page_size;
    info->kv_page_count = (uint32_t)sizes->kv[KV_ALL].page_count;
    info->kv_window_page_count = (uint32_t)sizes->kv[KV_WINDOW].page_count;
    info->kv_window_pages_each = (uint32_t)sizes->window_pages_each;
    info->step_row_count_max = (uint32_t)sizes->row_count;
    info->step_sequence_count_max = (uint32_t)sizes->sequence_count;
}

static void log_plan(const struct model *model, const struct offload_sizes *weights,
                     const struct offload_options *options, const struct log *log)
{
    const struct model_sizes *sizes = &model->sizes;
    const uint64_t tokens = sizes->kv[KV_ALL].page_count * sizes->page_size;
    struct device_memory_report memory;
    const char *dtype = dtype_info(model->config.kv_dtype)->name;
    char moving[96] = "", slots[64] = "", shards[64] = "", host[64] = "", window[96] = "";
    char text[5][32];

    device_memory_report(model->device, &memory);
    if (memory.host_budget_bytes > 0)
        (void)snprintf(host, sizeof(host), " of %s",
                       size_format(memory.host_budget_bytes, text[0], sizeof(text[0])));
    else if (options->automatic && model->host_room_bytes > 0)
        (void)snprintf(host, sizeof(host), ", where %s were free",
                       size_format(model->host_room_bytes, text[0], sizeof(text[0])));
    if (weights->moving_bytes > 0)
        (void)snprintf(moving, sizeof(moving), ", %s at home (%s) in %" PRIu64 " units",
                       size_format(weights->moving_bytes, text[0], sizeof(text[0])),
                       options->automatic ? "auto" : offload_home_name(options->home),
                       weights->unit_count);
    if (weights->slot_count > 0)
        (void)snprintf(slots, sizeof(slots), "; slots %" PRIu64 " x %s", weights->slot_count,
                       size_format(weights->slot_bytes, text[0], sizeof(text[0])));
    if (weights->shard_bytes > 0)
        (void)snprintf(shards, sizeof(shards), "; this rank's shards %s",
                       size_format(weights->shard_bytes, text[0], sizeof(text[0])));
    if (sizes->kv[KV_WINDOW].layer_count > 0)
        (void)snprintf(window, sizeof(window), " (%" PRIu64 " in %u layers with a window of %u)",
                       sizes->kv[KV_WINDOW].page_count * sizes->page_size,
                       model->info.window_layer_count, model->info.sliding_window);
    log_line(log, LOG_INFO,
             "weights %s: %s on the device%s%s%s; KV cache %" PRIu64 " tokens%s in %s %s; "
             "scratch %s; "
             "budget %s", size_format(model->info.weight_bytes, text[0], sizeof(text[0])),
             size_format(weights->resident_bytes, text[1], sizeof(text[1])), moving, shards,
             slots,
             tokens, window, dtype, size_format(sizes->kv_bytes, text[2], sizeof(text[2])),
             size_format(sizes->scratch_bytes, text[3], sizeof(text[3])),
             size_format(memory.budget_bytes, text[4], sizeof(text[4])));
    log_line(log, LOG_INFO,
             "host memory: homes %s, reading from the disk %s, tables %s, loading %s%s",
             size_format(weights->host_home_bytes, text[0], sizeof(text[0])),
             size_format(weights->host_staging_bytes, text[1], sizeof(text[1])),
             size_format(weights->host_table_bytes, text[2], sizeof(text[2])),
             size_format(weights->host_load_bytes, text[3], sizeof(text[3])), host);
}

static bool moves_anything(const struct offload_traffic *traffic)
{
    double bytes = 0;

    for (unsigned home = 0; home < OFFLOAD_HOME_COUNT; home++)
        bytes += traffic->home_bytes[home];
    return bytes > 0;
}

/* A small model's forecast is what it does; but not where other ranks must be met for that. */
static void try_out(struct model *model, const struct ckpt *ckpt,
                    const struct model_options *options)
{
    struct model_forecast *forecast = &model->forecast;
    const struct cluster *cluster = options->offload.cluster;
    struct model_trial trial;

    if (forecast->lacks == NULL && model->info.weight_bytes <= TRIAL_WEIGHT_BYTES_MAX &&
        forecast->decode.step_s <= TRIAL_STEP_S_MAX &&
        forecast->prefill.step_s <= TRIAL_PROMPT_S_MAX &&
        !offload_is_garbage(model->offload) &&
        (cluster == NULL || cluster_place(cluster)->size == 1) &&
        model__try(model->device, ckpt, options, forecast->prompt_tokens, &trial))
        model_forecast_tried(forecast, trial.decode_s,
                             trial.row_count == forecast->prefill.row_count ? trial.prefill_s : 0);
}

/* What the model is going to do costs time to find out: only where there is something to plan. */
static void make_forecast(struct model *model, const struct ckpt *ckpt,
                          const struct model_options *options, const struct log *log)
{
    const uint32_t prompt = options->forecast_prompt_tokens;
    struct disk_measured disk = { .depth = 0 };
    struct offload_traffic traffic;
    bool is_assumed;

    if (options->measure == NULL)
        return;
    offload_traffic(model->offload, (uint32_t)model->sizes.row_count, &traffic);
    if (!moves_anything(&traffic) && !options->plan_only) {
        if (offload_is_garbage(model->offload))
            log_line(log, LOG_INFO, "no forecast: weights at home in meta have no contents that "
                     "would move");
        return;
    }
    is_assumed = options->rates->disk_bytes_per_s + options->rates->link_bytes_per_s +
                     options->rates->read_bytes_per_s > 0;
    options->measure(options->measure_user, &traffic, options->rates, &disk);
    offload_disk_known(model->offload, &disk);
    model_forecast(model, options->rates, prompt, prompt, &model->forecast);
    model->has_forecast = true;
    if (!is_assumed)
        try_out(model, ckpt, options);
    model_forecast_log(options->rates, &model->forecast, log);
}

/* Describes the parameters anew: others are wanted, or their loaders have been taken. */
static enum status describe_again(struct model *model, const struct ckpt *ckpt,
                                  const struct model_options *options, struct err *err)
{
    struct params_skipped skipped;
    struct params *params = NULL;
    const enum status st = model__params_create(ckpt, &model->config, options->dtype, &params,
                                                err);

    if (st != STATUS_OK)
        return st;
    model__params_destroy(model->params);
    model->params = params;
    return model__params_check(params, &skipped, err);
}

/* A mixture of experts that does not fit has its experts moved one by one: most of them are not
 * needed for a token. */
static enum status choose_expert_units(struct model *model, const struct ckpt *ckpt,
                                       struct model_options *options, struct err *err)
{
    struct model_config *config = &model->config;
    enum status st;

    if (config->expert_count == 0 || config->expert_units ||
        model->info.weight_bytes <= options->offload.weight_budget_bytes)
        return STATUS_OK;
    config->expert_units = options->offload.experts = true;
    st = describe_again(model, ckpt, options, err);
    return st == STATUS_OK ? model__sizes_leave(config, options, model->device,
                                                &options->offload.weight_budget_bytes, err)
                           : st;
}

static bool has_expert_orders(const struct model *model)
{
    bool found = false;

    for (uint32_t i = 0; !found && i < model->config.layer_count; i++)
        found = model__params_index(model->params, (int32_t)i, ROLE_W13_ORDER) != PARAM_NONE ||
                model__params_index(model->params, (int32_t)i, ROLE_W2_ORDER) != PARAM_NONE;
    return found;
}

/* Whether the device has the operators that some models need. */
static enum status check_ops(const struct model *model, struct err *err)
{
    const struct model_config *config = &model->config;
    const bool scales = model__adds_apart(config) || config->embedding_scale != 1.0f ||
                        config->logits_scale != 1.0f || config->temperature_floor != 0;
    const uint32_t needed = (scales ? OP_FEATURE_SCALE : 0u) |
                            (config->sliding_window != 0 ? OP_FEATURE_WINDOW : 0u) |
                            (config->score_cap > 0 || config->logits_cap > 0 ? OP_FEATURE_SOFT_CAP
                                                                             : 0u) |
                            (config->norm_offset != 0 ? OP_FEATURE_NORM_OFFSET : 0u) |
                            (config->gate == GATE_GELU_TANH ? OP_FEATURE_GATE_GELU : 0u) |
                            (config->gate == GATE_CLAMPED_SWISH ? OP_FEATURE_GATE_CLAMPED : 0u) |
                            (config->sinks ? OP_FEATURE_SINKS : 0u) |
                            (config->ordered_width > 0 ? OP_FEATURE_COLUMNS : 0u) |
                            (config->expert_biases ? OP_FEATURE_EXPERT_BIAS : 0u) |
                            (has_expert_orders(model) ? OP_FEATURE_EXPERT_ORDER : 0u) |
                            (config->kv_dtype != DTYPE_F32 ? OP_FEATURE_KV_NARROW : 0u) |
                            (config->sliding_window != 0 && config->chunked ? OP_FEATURE_CHUNKS
                                                                            : 0u);
    const enum status st = device_features_check(model->device, needed, err);

    return st == STATUS_OK ? st : err_prefix(err, st, "%s", config->architecture);
}

/* Whether the device has operators for all of the matrices, and those that it was set up for are
 * among them. */
static enum status check_weights(const struct model *model, struct err *err)
{
    const struct offload_param_desc *descs = model__params_descs(model->params);
    const struct device_info *info = device_info(model->device);
    enum status st = STATUS_OK;
    bool any_bf16 = false;

    for (size_t i = 0; i < model__params_count(model->params) && st == STATUS_OK; i++) {
        if (descs[i].rank > 1)
            st = device_weights_check(model->device, descs[i].dtype, err);
        if (st != STATUS_OK)
            st = err_prefix(err, st, "%s", descs[i].name);
        any_bf16 = any_bf16 || (descs[i].rank > 1 && descs[i].dtype == DTYPE_BF16);
    }
    if (st == STATUS_OK && info->rounds_for_bf16 && !any_bf16)
        st = err_set(err, STATUS_BAD_INPUT,
                     "--device %s: bf16-products=on changes nothing: no matrix is in BF16",
                     info->name);
    return st;
}

/* Adds to the refusal of a plan the whole budget that would do. */
static enum status name_smallest(const struct model *model, const struct model_options *options,
                                 uint64_t weight_bytes, struct err *err)
{
    const uint64_t budget_bytes =
        model__sizes_smallest(&model->config, options, weight_bytes, model->device);
    const struct err why = *err;
    char text[24];

    return err_set(err, why.status,
                   "%.500s; the smallest budget that would do is %" PRIu64 " bytes (%s)",
                   why.message, budget_bytes, size_format(budget_bytes, text, sizeof(text)));
}

/* own: the options with what was chosen so far. */
static enum status create_offload(struct model *model, const struct model_options *options,
                                  struct model_options *own, const struct log *log,
                                  struct err *err)
{
    uint64_t smallest_bytes; /* for weights; 0: they are not what is refused */

    own->offload.weight_budget_smallest_out = &smallest_bytes;
    for (int attempt = 0;; attempt++) {
        enum status st;

        smallest_bytes = 0;
        if (own->offload.automatic)
            own->offload.host_budget_bytes =
                model__host_leave(&model->config, own, model->device);
        model->host_room_bytes = own->offload.host_budget_bytes;
        st = offload_create(model->device, model__params_descs(model->params),
                            model__params_count(model->params), model->config.layer_count,
                            &own->offload, log, &model->offload, err);
        model__params_forget_loaders(model->params);
        if (st != STATUS_NO_MEMORY || smallest_bytes == 0)
            return st;
        if (attempt > 0 || !model__sizes_give_way(&model->config, options, model->device,
                                                  smallest_bytes, own))
            return name_smallest(model, options, smallest_bytes, err);
        st = describe_again(model, own->offload.ckpt, options, err);
        if (st != STATUS_OK)
            return st;
    }
}

/* Plans on the described parameters, then takes memory and loads. */
static enum status plan_and_load(struct model *model, const struct ckpt *ckpt,
                                 const struct model_options *options, const struct log *log,
                                 const struct progress *progress, struct err *err)
{
    struct model_options own = *options;
    struct offload_sizes weights = { 0 };
    enum status st;

    own.offload.ckpt = ckpt;
    own.offload.lookup_row_max = options->step_row_count_max;
    own.offload.expert_top_k = model->config.expert_top_k;
    own.offload.row_count_max = own.step_row_count_max;
    st = check_ops(model, err);
    if (st == STATUS_OK)
        st = check_weights(model, err);
    if (st == STATUS_OK &&
        (own.offload.automatic || (own.offload.experts && own.offload.expert_slot_count == 0)))
        st = model__sizes_leave(&model->config, &own, model->device,
                                &own.offload.weight_budget_bytes, err);
    if (st == STATUS_OK && own.offload.automatic)
        st = choose_expert_units(model, ckpt, &own, err);
    if (st != STATUS_OK)
        return err_prefix(err, st, "%s", ckpt_path(ckpt));
    st = create_offload(model, options, &own, log, err);
    if (st != STATUS_OK)
        return st;
    offload_sizes(model->offload, &weights);
    st = model__sizes_plan(&model->config, &own, &weights, model->device, &model->sizes, err);
    if (st == STATUS_OK)
        st = model__host_check(&own, &weights, &model->sizes, model->device, err);
    if (st != STATUS_OK)
        return err_prefix(err, st, "%s", ckpt_path(ckpt));
    fill_info(model);
    log_plan(model, &weights, &own.offload, log);
    st = offload_manifest_log(model->offload, log, err);
    if (st == STATUS_OK)
        make_forecast(model, ckpt, options, log);
    if (st != STATUS_OK || options->plan_only)
        return st;
    st = stream_create(model->device, STREAM_COMPUTE, &model->stream, err);
    if (st == STATUS_OK)
        st = take_memory(model, err);
    if (st == STATUS_OK)
        st = offload_load(model->offload, model->stream, ckpt, progress, err);
    return st;
}

enum status model_create(struct device *device, const struct ckpt *ckpt,
                         const struct model_options *options, const struct log *log,
                         const struct progress *progress, struct model **model_out,
                         struct err *err)
{
    struct model *model = calloc(1, sizeof(*model));
    enum status st;

    if (model == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for a model", ckpt_path(ckpt));
    model->device = device;
    (void)snprintf(model->dtype, sizeof(model->dtype), "%s",
                   options->dtype != NULL ? options->dtype : "auto");
    st = model__read(ckpt, options, log, &model->config, &model->params, &model->info, err);
    if (st == STATUS_OK)
        st = plan_and_load(model, ckpt, options, log, progress, err);
    if (st != STATUS_OK) {
        model_destroy(model);
        return st;
    }
    *model_out = model;
    return STATUS_OK;
}

void model_destroy(struct model *model)
{
    if (model == NULL)
        return;
    offload_destroy(model->offload);
    stream_destroy(model->stream);
    device_host_free(model->device, model->staging, model->staging_bytes);
    device_free(model->device, DEVICE_USE_KV, model->kv, model->sizes.kv_bytes);
    device_free(model->device, DEVICE_USE_SCRATCH, model->scratch, model->sizes.scratch_bytes);
    model__params_destroy(model->params);
    ckpt_close(model->own_ckpt);
    free(model);
}
