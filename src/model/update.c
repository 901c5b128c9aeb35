/* model/update.c - other weights for a model that runs: another checkpoint of the same architecture
 * and configuration, loaded in place through the parameters' own loaders (offload.h says how).
 *
 * The new configuration must compute the same, so it is compared field by field, and the new
 * checkpoint must hold exactly the parameters that the old one did, as at a start. Their dtypes may
 * differ: weights keep the dtype in which they are served. What a checkpoint says about ending a
 * text (bos, eos), and its tokenizer, stay as at the start. */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "model/internal.h"

struct model_update {
    struct model *model;
    struct ckpt *ckpt;                     /* owned; once committed, the old one where the model
                                              owned it */
    struct offload_update *offload_update;
};

/* What a pass depends on. */
#define FIELD(name) { #name, offsetof(struct model_config, name),                                  \
                      sizeof(((struct model_config *)0)->name) }
static const struct {
    const char *name;
    size_t offset, size;
} fields[] = {
    FIELD(layer_count), FIELD(vocab_size), FIELD(hidden_size), FIELD(head_count),
    FIELD(kv_head_count), FIELD(head_dim), FIELD(ffn_width), FIELD(norm_epsilon),
    FIELD(tied_embeddings), FIELD(qkv_bias), FIELD(o_bias), FIELD(mlp_bias), FIELD(qk_norm),
    FIELD(qk_norm_whole), FIELD(out_norms), FIELD(embedding_scale), FIELD(residual_scale),
    FIELD(logits_scale), FIELD(shared_gate),
    FIELD(score_cap), FIELD(logits_cap), FIELD(norm_offset), FIELD(gate), FIELD(has_sliding_rope),
    FIELD(rope_sliding_frequencies), FIELD(sliding_window), FIELD(is_sliding),
    FIELD(attention_scale), FIELD(rope_pair_count), FIELD(rope_frequencies), FIELD(rope_scale),
    FIELD(rope_interleaved), FIELD(q_lora_rank), FIELD(kv_lora_rank), FIELD(qk_nope_dim),
    FIELD(qk_rope_dim), FIELD(v_dim), FIELD(latent_norm_epsilon), FIELD(latent_bias),
    FIELD(expert_count), FIELD(expert_top_k), FIELD(expert_ffn_width), FIELD(shared_ffn_width),
    FIELD(has_experts), FIELD(group_count), FIELD(kept_group_count), FIELD(scoring), FIELD(groups),
    FIELD(route_bias), FIELD(route_normalise), FIELD(route_scale), FIELD(chunked),
    FIELD(qk_norm_plain), FIELD(unrotated), FIELD(temperature_floor), FIELD(temperature_scale),
    FIELD(weighs_inputs), FIELD(ordered_width),
};
#define FIELD_COUNT (sizeof(fields) / sizeof(fields[0]))

static enum status configs_compare(const struct model *model, const struct ckpt *ckpt,
                                   const struct model_config *config, struct err *err)
{
    if (config->arch != model->config.arch)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s%s: a model of %s, the one that is served is of %s", ckpt_path(ckpt),
                       ckpt_config_suffix(ckpt), config->architecture,
                       model->config.architecture);
    for (size_t i = 0; i < FIELD_COUNT; i++) {
        if (memcmp((const char *)&model->config + fields[i].offset,
                   (const char *)config + fields[i].offset, fields[i].size) != 0)
            return err_set(err, STATUS_BAD_INPUT,
                           "%s%s: another configuration than the one that is served (%s); the "
                           "server must be started with it",
                           ckpt_path(ckpt), ckpt_config_suffix(ckpt), fields[i].name);
    }
    return STATUS_OK;
}

/* Weights keep the dtype in which they are served; those of a model that is started with the new
 * checkpoint follow from that alone. */
static enum status dtypes_compare(const struct model *model, const struct ckpt *ckpt,
                                  const struct params *params, struct err *err)
{
    const struct offload_param_desc *served = model__params_descs(model->params);
    const struct offload_param_desc *own = model__params_descs(params);
    const size_t count = model__params_count(model->params);

    for (size_t i = 0; i < count && i < model__params_count(params); i++) {
        if (own[i].dtype != served[i].dtype)
            return err_set(err, STATUS_UNAVAILABLE,
                           "%s: %s is %s there and served as %s: a rank that is started again "
                           "would not compute as the others do; give --dtype at the start, or "
                           "start the server with it",
                           ckpt_path(ckpt), own[i].name, dtype_info(own[i].dtype)->name,
                           dtype_info(served[i].dtype)->name);
    }
    return STATUS_OK;
}

/* Checks that it is a checkpoint of this very model, tensor by tensor but for their data. */
static enum status ckpt_check(const struct model *model, const struct ckpt *ckpt, bool same_dtypes,
                              struct err *err)
{
    struct model_config *config = calloc(1, sizeof(*config));
    struct model_info info = { .bos_id = -1 };
    struct params *params = NULL;
    struct model_options options;
    enum status st;

    if (config == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for its configuration",
                       ckpt_path(ckpt));
    model_options_init(&options);
    options.context_length = model->config.context_length;
    options.dtype = model->dtype;
    options.kv_dtype = model->config.kv_dtype;
    options.offload.experts = model->config.expert_units;
    st = model__read(ckpt, &options, NULL, config, &params, &info, err);
    if (st == STATUS_OK)
        st = configs_compare(model, ckpt, config, err);
    if (st == STATUS_OK && same_dtypes)
        st = dtypes_compare(model, ckpt, params, err);
    model__params_destroy(params);
    free(config);
    return st;
}

enum status model_update_prepare(struct model *model, const char *path, bool same_dtypes,
                                 struct model_update **update_out, struct err *err)
{
    struct model_update *update = calloc(1, sizeof(*update));
    enum status st;

    if (update == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for an update", path);
    update->model = model;
    st = ckpt_open(path, &update->ckpt, err);
    if (st == STATUS_OK)
        st = ckpt_check(model, update->ckpt, same_dtypes, err);
    if (st == STATUS_OK)
        st = offload_update_prepare(model->offload, update->ckpt, &update->offload_update, err);
    if (st != STATUS_OK) {
        model_update_destroy(update);
        return st;
    }
    *update_out = update;
    return STATUS_OK;
}

enum status model_update_commit(struct model_update *update, const struct offload_meeting *meeting,
                                struct err *err)
{
    struct model *model = update->model;
    struct ckpt *const old = model->own_ckpt;
    const enum status st = offload_update_commit(update->offload_update, meeting, err);

    if (st != STATUS_OK)
        return st;
    model->own_ckpt = update->ckpt;
    update->ckpt = old;
    model->stopped.status = STATUS_OK; /* a pass will tell */
    return STATUS_OK;
}

uint64_t model_update_stamp(const struct model *model)
{
    assert(model->own_ckpt != NULL);
    return ckpt_stamp(model->own_ckpt);
}

void model_update_destroy(struct model_update *update)
{
    if (update == NULL)
        return;
    offload_update_destroy(update->offload_update);
    ckpt_close(update->ckpt);
    free(update);
}
