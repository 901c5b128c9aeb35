/* model/model.h - a loaded model: an architecture's parameters and its forward pass on one device.
 *
 * A model turns a step's tokens into logits. It owns the weights (through the offloader), the KV
 * cache's memory and the scratch; who sits in which page of the cache is the engine's business. A
 * step is a ragged batch: rows are tokens of any sequences, prompt chunks and single decodes
 * alike, and each row says which sequence it belongs to, at which position, and where its keys and
 * values go.
 *
 * A new architecture is one file with a `struct model_arch` and one line in the table of arch.c.
 *
 * Threads: one at a time, but for model_info and model_update_prepare. */
#ifndef LIGHTER_MODEL_MODEL_H
#define LIGHTER_MODEL_MODEL_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/log.h"
#include "base/progress.h"
#include "base/status.h"
#include "checkpoint/checkpoint.h"
#include "device/device.h"
#include "offload/offload.h"

struct model;
struct model_rates;
struct model_forecast;

#define MODEL_EOS_MAX 16

struct model_options {
    struct offload_options offload;
    uint32_t step_row_count_max;    /* rows in one step: bounds scratch (the prefill chunk) */
    uint32_t step_sequence_count_max;
    uint32_t kv_page_size;          /* token slots in a page */
    enum dtype kv_dtype;            /* of keys and values: F32, F16 or Q8_0 */
    uint64_t kv_token_count;        /* token slots wanted; 0: as many as the budget allows, at most
                                       step_sequence_count_max contexts */
    uint32_t context_length;        /* 0: the model's own; a longer one is refused */
    uint64_t host_budget_bytes;     /* host memory that may be taken where the device has no budget
                                       of it; 0: no more than must be */
    uint64_t host_reserve_bytes;    /* that the caller will take of it afterwards */
    bool budget_is_host;            /* the device's budget is what the host has free, so what is
                                       taken of the host's memory is taken of it too */
    /* For a forecast (predict.h) in the log: sets what this machine does in *rates, by a pass's
     * traffic, and how its disk is best read, where that is measured. Called once, between plan and
     * loading, where something moves or plan_only. NULL: no forecast. */
    void (*measure)(void *user, const struct offload_traffic *traffic, struct model_rates *rates,
                    struct disk_measured *disk_out);
    void *measure_user;
    struct model_rates *rates;      /* Borrowed by model_create; not NULL with measure */
    uint32_t forecast_prompt_tokens; /* what it is for */
    bool plan_only;                 /* take no memory and load nothing: only what describes the
                                       model
                                       may be called then */
    const char *dtype;              /* of matrices. NULL or "auto": as the checkpoint has them;
                                       "float32", "bfloat16", "float16" */
};
void model_options_init(struct model_options *options);

struct model_info {
    char architecture[64];          /* "DeepseekV3ForCausalLM" */
    char model_type[32];            /* "deepseek_v3" */
    uint32_t layer_count, vocab_size, hidden_size;
    uint32_t expert_count;          /* of each layer that has experts; 0: there is none */
    uint32_t expert_top_k;          /* of them are chosen for a token */
    uint32_t expert_layer_count;
    uint32_t context_length;        /* positions 0 .. context_length - 1 are valid */
    enum dtype weight_dtype, kv_dtype;
    int32_t bos_id;                 /* -1: none */
    int32_t eos_ids[MODEL_EOS_MAX]; /* from generation_config.json, else config.json */
    uint32_t eos_count;
    uint64_t parameter_count, weight_bytes;
    uint64_t kv_bytes_per_token;    /* in all layers */
    uint64_t kv_window_bytes_per_token; /* of these, in layers with a window */
    uint64_t scratch_bytes;
    uint32_t kv_page_size, kv_page_count; /* as given or chosen */
    uint32_t sliding_window;        /* positions that a row sees in some layers; 0: all in all */
    uint32_t window_layer_count;
    uint32_t kv_window_page_count;  /* pages of the layers with a window; 0: there is none */
    uint32_t kv_window_pages_each;  /* of which a sequence takes at most so many, in turn */
    uint32_t step_row_count_max, step_sequence_count_max;
};

/* Of the cache, what a row reads that has so many positions before and with it. */
uint64_t model_kv_bytes(const struct model_info *info, uint64_t token_count);

/* Reads the configuration, describes the parameters, plans, checks that weights, slots, scratch
 * and a KV cache of at least one sequence of one page fit the device's budget (else
 * STATUS_NO_MEMORY with what each takes and the smallest budget that would do), prints the plan
 * and the manifest to the log, then loads. Tensors that the architecture does not know are
 * refused; so are missing ones. ckpt is borrowed until model_destroy. The caller owns
 * *model_out. */
enum status model_create(struct device *device, const struct ckpt *ckpt,
                         const struct model_options *options, const struct log *log,
                         const struct progress *progress, struct model **model_out,
                         struct err *err);
void model_destroy(struct model *model);
const struct model_info *model_info(const struct model *model);
struct offload *model_offload(struct model *model);
/* NULL: none was asked for, or nothing moves. */
const struct model_forecast *model_forecast_made(const struct model *model);
/* Parameters are indexed 0 .. count - 1 in the offloader. */
size_t model_param_count(const struct model *model);

/* What a checkpoint holds and whether it would run, for `inspect`: fills info as far as it can
 * without a device and returns the first reason why it would not run. */
enum status model_inspect(const struct ckpt *ckpt, struct model_info *info_out, struct err *err);
/* Names of the architectures that run ("DeepseekV3ForCausalLM", ...), ended by NULL. */
const char *const *model_architectures(void);

/* Live update: other weights of the same model, from the checkpoint at `path`. prepare: any thread,
 * while steps run; what is wrong with the checkpoint is found here. commit: between steps, on the
 * thread that runs them; when it fails the old weights go on serving, and with a meeting all ranks
 * switch or none does (offload.h). destroy closes what is no longer needed; NULL is fine. One
 * update at a time. */
struct model_update;
/* same_dtypes: a model that is started with this checkpoint, and model_options.dtype as it is here,
 * must be the very same, bit for bit; else STATUS_UNAVAILABLE. */
enum status model_update_prepare(struct model *model, const char *path, bool same_dtypes,
                                 struct model_update **update_out, struct err *err);
enum status model_update_commit(struct model_update *update, const struct offload_meeting *meeting,
                                struct err *err);
void model_update_destroy(struct model_update *update);
/* ckpt_stamp of the last update's checkpoint. By whoever committed it. */
uint64_t model_update_stamp(const struct model *model);

struct model_step {
    uint32_t row_count;             /* 1 to step_row_count_max */
    uint32_t sequence_count;        /* 1 to step_sequence_count_max */
    uint32_t page_count_max;        /* width of `pages` */
    const int32_t *token_ids;       /* [row_count], in [0, vocab_size) */
    const int32_t *positions;       /* [row_count], below context_length */
    const int32_t *sequences;       /* [row_count], in [0, sequence_count) */
    const int32_t *slots;           /* [row_count], where the row's keys and values go, distinct */
    const int32_t *pages;           /* [sequence_count][page_count_max], page indices */
    /* The same in the layers with a window, where there are any (kv_window_page_count): of a
     * sequence's pages those that a row of the step can see must be different ones. */
    const int32_t *window_slots, *window_pages;
    uint32_t logits_row_count;      /* rows whose logits are wanted; may be 0 */
    const int32_t *logits_rows;     /* [logits_row_count], row indices */
};

/* Runs one step and waits for it. logits_out: host memory, F32[logits_row_count][vocab_size]. All
 * rows' keys and values are in the cache afterwards. Rows of one sequence must be in ascending
 * positions, and all earlier positions must be in the cache or in this step. */
enum status model_forward(struct model *model, const struct model_step *step, float *logits_out,
                          struct err *err);
/* STATUS_OK while another step may succeed; else why the last one failed for good: a device whose
 * error stays, files that have changed. By the thread that runs the steps. */
enum status model_health(const struct model *model, struct err *err);

#endif
