/* model/internal.h - what the files of model/ share: parameters by role, buffers, and a pass. */
#ifndef LIGHTER_MODEL_INTERNAL_H
#define LIGHTER_MODEL_INTERNAL_H

#include "base/map.h"
#include "model/config.h"
#include "model/model.h"
#include "model/predict.h"

/* What a parameter is for, within its layer. */
enum model_role {
    ROLE_INPUT_NORM, ROLE_QKV, ROLE_QKV_BIAS, ROLE_Q_NORM, ROLE_K_NORM, ROLE_O, ROLE_O_BIAS,
    ROLE_SINKS,
    ROLE_Q, ROLE_Q_A, ROLE_Q_A_BIAS, ROLE_Q_A_NORM, ROLE_Q_B,
    ROLE_KV_A, ROLE_KV_A_BIAS, ROLE_KV_A_NORM, ROLE_W_KC, ROLE_W_VC,
    ROLE_ATTENTION_OUT_NORM, ROLE_FFN_OUT_NORM, /* of what is added to the residual stream */
    ROLE_POST_NORM, ROLE_GATE_UP, ROLE_GATE_UP_BIAS, ROLE_DOWN, ROLE_DOWN_BIAS,
    ROLE_ROUTER, ROLE_ROUTER_BIAS, ROLE_LOGIT_BIAS, /* the router's: of choices, of logits */
    ROLE_W13, ROLE_W2, ROLE_W13_BIAS, ROLE_W2_BIAS, ROLE_SHARED_GATE,
    ROLE_KV_B_ORDER, ROLE_W13_ORDER, ROLE_W2_ORDER, /* of the columns of w_kc's and w_vc's source,
                                                       and of all of a layer's experts */
    ROLE_ORDER, /* of matrices' columns: model__params_order finds them */
    ROLE_COUNT,
    /* Outside the layers. */
    ROLE_EMBED = 0, ROLE_NORM, ROLE_LM_HEAD
};

/* params.c: builds the list of parameters, each with its loader. A parameter is begun, given
 * sources, and ended; after the first failure the rest does nothing, and params_take reports it. */
struct params;

struct param_spec {
    const char *name;            /* within the layer: "mlp.down_proj.weight" */
    int32_t layer;               /* OFFLOAD_NO_LAYER: `name` is the whole name */
    enum model_role role;
    enum offload_part part;
    bool moves;                  /* of what V2 moves by default */
    bool is_part;                /* more rows of the matrix that the parameter before is of */
    bool is_expert;              /* of one expert, which is a unit of its own */
    uint32_t expert;
    uint32_t rank;               /* 1: a vector, kept in F32; else in the checkpoint's dtype */
    uint64_t shape[TENSOR_RANK_MAX];
};

/* dtype: NULL or a name; of matrices. ckpt is borrowed. */
enum status model__params_create(const struct ckpt *ckpt, const struct model_config *config,
                                 const char *dtype, struct params **params_out, struct err *err);
void model__params_destroy(struct params *params);
void model__param_begin(struct params *params, const struct param_spec *spec);
/* A whole checkpoint tensor of that shape, next after what has been added so far. A tensor's name
 * is "model.layers.N." and the formatted name, or the formatted name alone outside the layers. */
void model__param_add(struct params *params, uint32_t rank, const uint64_t *shape,
                      const char *name_format, ...) __attribute__((format(printf, 4, 5)));
/* A view of one: `part` but for its tensor's name. */
void model__param_add_view(struct params *params, const struct loader_part *part,
                           const char *name);
void model__param_end(struct params *params);
/* Whether the checkpoint has this tensor, of the layer or, as above, outside the layers. */
bool model__param_source_exists(const struct params *params, int32_t layer, const char *name);
/* Its rank, or 0 where it is not there. */
uint32_t model__param_source_rank(const struct params *params, int32_t layer, const char *name);
/* Whether that one is put together from quantised parts. */
bool model__param_source_is_packed(const struct params *params, int32_t layer, const char *name);
/* The commonest: begin, one source of the parameter's own name and shape, end. */
void model__param_same(struct params *params, const struct param_spec *spec);
/* The order in which a source has its columns, as a parameter of that name, role and part; false
 * where it has none. model__pass_linear finds the orders of matrices that are added by the two
 * functions around this one by itself. */
bool model__param_source_order(struct params *params, const struct param_spec *spec,
                               const char *source);
/* Notes that the source's order is that of another source, which is of use; refused where it is
 * not. */
void model__param_share_order(struct params *params, int32_t layer, const char *source,
                              const char *other);
/* Whether a source has its columns in another order. */
bool model__param_has_order(const struct params *params, int32_t layer, const char *source);
/* Rows of several matrices (or vectors, cols 0) on top of each other. Matrices of different types
 * of which some are quantised, or whose columns lie in different orders, stay parameters of their
 * own, under their own names: parts, one behind the other, of what the role names. */
struct param_rows {
    const char *name;
    uint64_t rows;
};
void model__param_stack(struct params *params, const struct param_spec *spec, uint64_t cols,
                        const struct param_rows *sources, size_t source_count);

/* Checks everything against the checkpoint: all loaders, and that no tensor is left that nobody
 * asked for. Tensors that are known to be of no use are counted. */
struct params_skipped {
    size_t inv_freq_count, tied_count, predict_count, vision_count;
    size_t scale_count, zero_bias_count; /* of activations and caches; of quantised matrices */
    size_t widened_count; /* not skipped: quantised ones that were widened as they were read */
};
enum status model__params_check(struct params *params, struct params_skipped *skipped_out,
                                struct err *err);
/* Fills what info says about weights. */
void model__params_describe(const struct params *params, struct model_info *info);
size_t model__params_count(const struct params *params);
/* For offload_create, which takes the loaders. */
const struct offload_param_desc *model__params_descs(const struct params *params);
/* To be called after offload_create: the loaders are no longer ours. */
void model__params_forget_loaders(struct params *params);
#define PARAM_NONE UINT32_MAX
/* Index by role, or PARAM_NONE; of the first part. */
uint32_t model__params_index(const struct params *params, int32_t layer, enum model_role role);
/* How many parts it has, in a row from that index on: 0 where the layer has none, mostly 1. */
uint32_t model__params_part_count(const struct params *params, int32_t layer,
                                  enum model_role role);
/* The parameter that says in which order the one with this index has its columns, or PARAM_NONE. */
uint32_t model__params_order(const struct params *params, uint32_t index);
/* Of the matrices whose columns lie in another order, columns of the widest; 0: there is none. */
uint32_t model__params_ordered_width(const struct params *params);

/* trial.c. Seconds of a decoding step behind a prompt, and of a step of so many of its rows; 0
 * rows: of none. False: it could not be tried. Takes what a model with these options takes, and
 * gives it back. */
struct model_trial {
    double decode_s, prefill_s;
    uint32_t row_count;
};
bool model__try(struct device *device, const struct ckpt *ckpt,
                const struct model_options *options, uint32_t prompt_tokens,
                struct model_trial *trial_out);

/* Hands out consecutive aligned pieces of a block; from NULL it hands out NULLs and measures. */
struct slicer {
    char *base;
    uint64_t used_bytes;
};
void *model__slice(struct slicer *slicer, uint64_t size_bytes);

/* Scratch on the device. Attention's and the FFN's buffers share memory, as they are never alive
 * together. */
struct model_buffers {
    int32_t *metadata;      /* the step's ids, positions, ..., as uploaded */
    int32_t *iota;          /* 0, 1, 2, ...: row_count x iota_per_row of it */
    float *frequencies;     /* [rope_pair_count] */
    float *rope_table;      /* [rows][rope_pair_count][2] */
    float *sliding_frequencies, *sliding_rope_table; /* the same of sliding layers that differ */
    float *x;               /* [rows][hidden]: the residual stream */
    float *normed;          /* [rows][hidden] */
    float *ordered;         /* [rows][ordered_width]: what a matrix in another order multiplies */
    float *addition;        /* [rows][hidden]: what is not added to x as it is computed */
    float *ones;            /* [rows, or head_dim if that is more], where config needs them */
    float *gathered;        /* [logits rows][hidden] */
    float *logits;          /* [logits rows][vocab] */
    /* attention */
    float *qkv;             /* Llama: [rows][(heads + 2 kv heads) x head_dim] */
    float *q_a;             /* MLA: [rows][q_lora_rank] */
    float *q;               /* MLA: [rows][heads][nope + rope] */
    float *q_latent;        /* MLA: [rows][heads][latent + rope] */
    float *kv_a;            /* MLA: [rows][latent + rope] */
    float *attended;        /* [rows][heads][width of a value, or of the latent] */
    float *values;          /* MLA: [rows][heads][v_dim] */
    /* FFN */
    float *gate_up;         /* [rows][2 x width] */
    float *product;         /* [rows][width] */
    float *route_logits;    /* [rows][experts] */
    float *route_weights;   /* [rows][top_k] */
    int32_t *route_ids;     /* [rows][top_k] */
    void *moe;              /* op_moe's */
    float *shared_weights;  /* [rows]: what the shared experts count, before the sigmoid */
    float *guess_normed;    /* [MODEL_GUESS_ROWS_MAX][hidden]: as the next layer's router may see */
    float *guess_logits;    /* [MODEL_GUESS_ROWS_MAX][experts] */
    float *guess_weights;   /* [MODEL_GUESS_ROWS_MAX][top_k] */
    int32_t *guess_ids;     /* [MODEL_GUESS_ROWS_MAX][top_k] */
};

/* Widths of a token slot in the cache of one layer, in elements. v 0: values are a part of keys. */
struct kv_widths {
    uint32_t k, v;
    uint32_t part; /* attention reads rows by so many elements: a head's */
};

struct model_pass;

/* An architecture: a file that defines one, and a line in arch.c. */
struct model_arch {
    const char *architecture, *model_type;
    /* Reads what is the architecture's own, rope included. */
    void (*read_config)(struct config_reader *reader, struct model_config *config);
    struct kv_widths (*kv_widths)(const struct model_config *config);
    const struct config_missing *missing; /* NULL: sizes must be there */
    bool is_text_part;     /* of a configuration that has others: "text_config", tensors of another
                              root, and a vision tower that is left out */
    bool reads_activation; /* read_config looks at the activation's name; else it must be SiLU */
    /* Adds the parameters of one layer, in the order in which a pass uses them. */
    void (*describe_layer)(struct params *params, const struct model_config *config,
                           uint32_t layer);
    void (*slice_attention)(struct slicer *slicer, const struct model_config *config,
                            uint64_t row_count, struct model_buffers *buffers);
    void (*slice_ffn)(struct slicer *slicer, const struct model_config *config,
                      uint64_t row_count, struct model_buffers *buffers);
    /* Rows of iota that attention needs for each row of a step, at least 1. */
    uint32_t (*iota_per_row)(const struct model_config *config);
    /* From normed, added to x. */
    void (*attention)(struct model_pass *pass, uint32_t layer);
    void (*ffn)(struct model_pass *pass, uint32_t layer);
};
extern const struct model_arch model_arch_llama, model_arch_mistral, model_arch_mixtral,
    model_arch_gemma2, model_arch_gemma3, model_arch_gemma3_sees, model_arch_qwen2,
    model_arch_qwen3, model_arch_qwen2_moe, model_arch_qwen3_moe, model_arch_olmoe,
    model_arch_glm4, model_arch_glm4_moe, model_arch_phi3, model_arch_granite,
    model_arch_granite_moe, model_arch_granite_moe_shared, model_arch_llama4,
    model_arch_llama4_sees, model_arch_gpt_oss, model_arch_deepseek_v2, model_arch_deepseek_v3;
/* By architecture, or by model_type when that is NULL; NULL: not known. */
const struct model_arch *model__arch_find(const char *architecture, const char *model_type);

/* size.c: what a model takes on the device. */
/* Layers that keep all positions, and those that keep a window (window.c). */
enum kv_kind { KV_ALL, KV_WINDOW, KV_KIND_COUNT };
struct model_sizes {
    uint64_t scratch_bytes;      /* without the page tables, whose width is the cache's */
    uint64_t row_count, sequence_count;
    uint64_t page_size, page_table_width;
    uint64_t metadata_bytes;     /* of a step at most, page tables included */
    struct {
        uint64_t layer_count, page_count;
        uint64_t k_bytes, v_bytes; /* of one layer: of all pages, or of one where kv_by_page */
        uint64_t bytes;
    } kv[KV_KIND_COUNT];         /* where no layer keeps all, KV_ALL's pages take no memory */
    bool kv_by_page;             /* a page's layers lie together: kv.c */
    uint64_t window_pages_each;  /* of KV_WINDOW a sequence takes at most so many */
    uint64_t kv_bytes;
    uint64_t gathered_bytes;     /* what attention takes itself, where it gathers the cache */
    bool gathers_cache;
};
/* Chooses the cache's size. STATUS_NO_MEMORY with each item when it does not fit. */
enum status model__sizes_plan(const struct model_config *config,
                              const struct model_options *options,
                              const struct offload_sizes *weights, struct device *device,
                              struct model_sizes *sizes_out, struct err *err);
/* What the budget leaves for weights once scratch and the cache have theirs. A cache whose size was
 * not asked for gets an eighth of the budget, but at least a context and at most all sequences';
 * options->kv_token_count is set to that. */
enum status model__sizes_leave(const struct model_config *config, struct model_options *options,
                               struct device *device, uint64_t *weight_bytes_out,
                               struct err *err);
/* Gives weights more: the cache becomes the one of the smallest budget that leaves them so much,
 * since a larger budget's may leave them less. Sets both in options; asked: as they were before
 * model__sizes_leave. False: the budget is too small. */
bool model__sizes_give_way(const struct model_config *config, const struct model_options *asked,
                           struct device *device, uint64_t weight_bytes,
                           struct model_options *options);
/* The smallest budget that leaves so much for weights. options: as they were before
 * model__sizes_leave. */
uint64_t model__sizes_smallest(const struct model_config *config,
                               const struct model_options *options, uint64_t weight_bytes,
                               struct device *device);
/* Lays scratch out from base; returns its size. */
uint64_t model__slice_scratch(const struct model_config *config, const struct model_sizes *sizes,
                              char *base, struct model_buffers *buffers);
/* 4-byte numbers of a step for each of its rows, beside the page tables. kinds: of caches. */
uint64_t model__numbers_per_row(const struct model_config *config, uint64_t kinds);
/* Rows of logits that are computed at once. */
#define LOGITS_ROWS_AT_ONCE 32u
/* Rows of a step whose experts are guessed a layer ahead. */
#define MODEL_GUESS_ROWS_MAX OFFLOAD_GUESS_ROWS_MAX

struct model {
    struct device *device;
    struct stream *stream;
    struct offload *offload;
    struct params *params;
    struct ckpt *own_ckpt;       /* of the last live update; NULL: there was none */
    char dtype[16];              /* as asked for: model_options */
    struct model_config config;
    struct model_info info;
    struct model_sizes sizes;
    struct model_buffers buffers;
    bool has_forecast;
    struct model_forecast forecast;
    uint64_t host_room_bytes;    /* host memory that the offload was given; 0: not bounded */
    struct err stopped;          /* why no pass can succeed any more; STATUS_OK: one can */
    void *scratch;
    uint64_t scratch_bytes;
    void *kv;                    /* kv.c */
    void *staging;               /* host: the metadata of a step */
    uint64_t staging_bytes;
};

/* host.c. Host memory for a step's metadata, in a staging buffer that also holds the constants. */
uint64_t model__staging_bytes(const struct model_sizes *sizes);
/* What the offload may take of host memory: of the device's budget of it, or where there is none of
 * the options', what the model and its caller leave. */
uint64_t model__host_leave(const struct model_config *config, const struct model_options *options,
                           const struct device *device);
/* Whether everything fits the device's budget of host memory; else STATUS_NO_MEMORY with what each
 * takes and the smallest budget that would do. All ranks of a node come here, and all are told of
 * the one that needs most; STATUS_PEER where one doesn't come. */
enum status model__host_check(const struct model_options *options,
                              const struct offload_sizes *weights,
                              const struct model_sizes *sizes, const struct device *device,
                              struct err *err);

/* One step while it is queued: the operators' shorthand, in pass.c. After the first failure the
 * rest is skipped. */
struct model_pass {
    struct model *model;
    const struct model_config *config;
    const struct model_buffers *buffers;
    enum status status;
    struct err *err;
    uint32_t row_count, page_count_max;
    const int32_t *token_ids, *positions, *sequences, *logits_rows; /* device's, as are ... */
    const int32_t *slots[KV_KIND_COUNT], *pages[KV_KIND_COUNT];     /* ... these */
    const int32_t *host_positions, *host_sequences; /* the same, the caller's */
    const float *temperatures;   /* [rows], device's, where config has them */
};

/* NULL where the layer has none. */
const struct tensor *model__pass_param(const struct model_pass *pass, int32_t layer,
                                       enum model_role role);
void model__pass_launch(struct model_pass *pass, const struct op *op);
/* out[rows][n] (+)= x[rows][k] . W^T (+ bias), all packed; a layer without that bias has none. */
struct pass_linear {
    float *out;
    const float *x;
    int32_t layer;
    enum model_role weight, bias;          /* bias ROLE_COUNT: none */
    bool accumulate;
};
void model__pass_linear(struct model_pass *pass, const struct pass_linear *linear);
/* x += r * norm(in[rows][k] . W^T (+ bias)) as config says: r is residual_scale, and without
 * out_norms there is no norm. */
struct pass_addition {
    const float *x;
    int32_t layer;
    enum model_role weight, bias, norm;
    const float *row_weights;              /* [rows], of whose sigmoids there is a factor too; NULL:
                                              none */
};
void model__pass_add(struct model_pass *pass, const struct pass_addition *addition);
/* Whether additions need the buffer of that name. */
bool model__adds_apart(const struct model_config *config);
struct pass_norm {
    float *out;
    const float *x;
    uint64_t row_stride;                   /* of both */
    uint32_t group_count;
    float epsilon;
    int32_t layer;
    enum model_role weight;
};
void model__pass_norm(struct model_pass *pass, const struct pass_norm *norm);
/* x[rows][width] *= factor. */
void model__pass_scale(struct model_pass *pass, float *x, uint32_t width, float factor);
void model__pass_rope(struct model_pass *pass, uint32_t layer, float *x, uint32_t head_count,
                      uint64_t row_stride, uint64_t head_stride);
struct pass_kv_write {
    void *cache;                           /* the layer's keys or values */
    const float *x;
    uint64_t x_row_stride;
    uint32_t layer, head_count, width;     /* of each head */
};
void model__pass_kv_write(struct model_pass *pass, const struct pass_kv_write *write);
/* Whether the cache's dtype is one that there is, and holds the model's heads as whole blocks. */
enum status model__kv_check(const struct model_config *config, struct err *err);
/* Of a token slot in one layer, keys and values. */
uint64_t model__kv_slot_bytes(const struct model_config *config);
/* The layer's cache. */
enum kv_kind model__kv_kind(const struct model_config *config, uint32_t layer);
void *model__kv_keys(const struct model *model, uint32_t layer);
void *model__kv_values(const struct model *model, uint32_t layer);
uint32_t model__kv_slot_count(const struct model *model, uint32_t layer); /* token slots of it */
/* The order of keys, or values, within it. */
struct op_cache_strides model__kv_strides(const struct model *model, uint32_t layer,
                                          uint32_t head_count, uint32_t width);

/* window.c. Fills is_sliding from "layer_types"; false when there is no such list. */
bool model__read_layer_types(struct config_reader *reader, struct model_config *config);
/* "sliding_window", where null is none; missing: what stands for a missing key, 0: none. */
void model__read_window(struct config_reader *reader, struct model_config *config,
                        uint32_t missing);
/* A window that there is is every layer's. */
void model__window_everywhere(struct model_config *config);
bool model__layer_has_window(const struct model_config *config, uint32_t layer);
uint32_t model__window_layer_count(const struct model_config *config);
/* Pages that a sequence takes in those layers at most, with row_count rows in a step. */
uint64_t model__window_pages(const struct model_config *config, uint64_t row_count,
                             uint64_t page_size);

/* Building blocks that architectures share (layers.c). */
void model__describe_mlp(struct params *params, const struct model_config *config, uint32_t layer,
                         const char *prefix, uint64_t width);
void model__slice_mlp(struct slicer *slicer, uint64_t row_count, uint64_t width,
                      struct model_buffers *buffers);
/* row_weights: of pass_addition. */
void model__pass_mlp(struct model_pass *pass, uint32_t layer, const float *row_weights);
/* gqa.c: grouped-query attention. */
/* What stands for missing keys. */
struct gqa_missing {
    uint32_t kv_heads; /* 0: as many as query heads */
    uint32_t head_dim; /* 0: hidden_size / heads */
    struct rope_missing rope;
};
/* Heads, head_dim and rope. */
void model__gqa_read_heads(struct config_reader *reader, struct model_config *config,
                           const struct gqa_missing *missing);
struct kv_widths model__gqa_kv_widths(const struct model_config *config);
/* The norm before it, and qkv_bias, qk_norm and o_bias as config says. */
void model__gqa_describe(struct params *params, const struct model_config *config,
                         uint32_t layer);
void model__gqa_slice(struct slicer *slicer, const struct model_config *config,
                      uint64_t row_count, struct model_buffers *buffers);
uint32_t model__gqa_iota_per_row(const struct model_config *config);
void model__gqa_pass(struct model_pass *pass, uint32_t layer);
#define MODEL_ARCH_GQA                                                                             \
    .kv_widths = model__gqa_kv_widths, .slice_attention = model__gqa_slice,                        \
    .iota_per_row = model__gqa_iota_per_row, .attention = model__gqa_pass
/* experts.c: a mixture of experts as a layer's FFN. How a checkpoint of the family calls it, within
 * the layer; what config says is not there is not asked for. */
struct expert_names {
    const char *block;             /* "mlp": BLOCK.gate.weight is the router */
    const char *gate, *up, *down;  /* "gate_proj": BLOCK.experts.E.gate_proj.weight */
    const char *router_bias;       /* whole; may be NULL where no config has it */
    const char *shared;            /* whole; NULL: the caller describes it */
    const char *shared_gate;
    const char *router;            /* whole; NULL: BLOCK.gate.weight */
    const char *fused_router, *fused_in, *fused_out; /* whole; NULL: transformers' own */
    bool fused_transposed;         /* [experts][columns][rows], unless they are quantised */
    bool fused_by_turns;           /* rows of gate and up take turns; else up is behind gate */
    const char *logit_bias, *in_bias, *out_bias; /* whole; in_bias is fused as fused_in is */
};
/* Reads what says how many experts there are and how many are chosen, by the softmax of the
 * router's logits and without groups. The caller says which layers have them. */
void model__read_softmax_experts(struct config_reader *reader, struct model_config *config,
                                 uint32_t experts_missing, uint32_t top_k_missing);
/* The same of a family whose every layer has experts, as wide as "intermediate_size"; refusal is
 * what is said where there are none. */
void model__read_experts_everywhere(struct config_reader *reader, struct model_config *config,
                                    uint32_t experts_missing, uint32_t top_k_missing,
                                    const char *refusal);
/* The number of experts under DeepSeek's names, and which layers have them; shared ones too. What
 * stands for missing keys: */
struct routed_missing {
    uint32_t expert_count, shared_count, ffn_width;
    uint32_t top_k; /* 0: it must be there */
    uint32_t dense_layers;
    double scale;
};
void model__read_routed_experts(struct config_reader *reader, struct model_config *config,
                                const struct routed_missing *missing);
/* "n_group" and "topk_group"; 0 for a missing one: it must be there. */
void model__read_groups(struct config_reader *reader, struct model_config *config,
                        uint32_t group_missing, uint32_t kept_missing);
/* As many experts must be eligible as are to be chosen, in equal groups; rating a group by its best
 * two needs two in it. */
void model__check_groups(struct config_reader *reader, const struct model_config *config,
                         uint32_t group_size_min);
/* A layer's FFN and the norm before it: experts, or a gated MLP called BLOCK where it has none.
 * Checkpoints with all of a layer's experts in one tensor are read too. */
void model__describe_ffn(struct params *params, const struct model_config *config, uint32_t layer,
                         const struct expert_names *names);
/* A layer of a family without experts: gqa.c's attention, and the above. */
void model__dense_describe_layer(struct params *params, const struct model_config *config,
                                 uint32_t layer);
/* Slices for layers of both kinds, dense and with experts; the pass takes the kind the layer is. */
void model__slice_ffn(struct slicer *slicer, const struct model_config *config,
                      uint64_t row_count, struct model_buffers *buffers);
void model__pass_ffn(struct model_pass *pass, uint32_t layer);
/* A norm's weight: spec but for what follows from role and width. */
void model__describe_norm(struct params *params, uint32_t layer, enum model_role role,
                          enum offload_part part, const char *name, uint64_t width);

/* The configuration, the parameters, and info, for create and inspect. On failure info holds what
 * was known by then. The caller destroys *params_out, which may be set on failure too. */
enum status model__read(const struct ckpt *ckpt, const struct model_options *options,
                        const struct log *log, struct model_config *config_out,
                        struct params **params_out, struct model_info *info_out, struct err *err);

#endif
