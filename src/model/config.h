/* model/config.h - what a config.json says about a model, read once and checked.
 *
 * Every number is range-checked against a limit below and the numbers against each other (heads
 * against kv heads, experts against groups), so that nothing computed from a model_config later
 * overflows: the largest product, experts x 2 x expert width x hidden size, stays below 2^51
 * elements. What a key means, and what stands for a missing one, is what transformers 5.23 says;
 * where the model's authors say otherwise the reader of that architecture tells.
 *
 * Only for files inside model/. */
#ifndef LIGHTER_MODEL_CONFIG_H
#define LIGHTER_MODEL_CONFIG_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "device/op.h"
#include "model/model.h"

#define CONFIG_LAYERS_MAX 1024u
#define CONFIG_HIDDEN_MAX (1u << 17)
#define CONFIG_VOCAB_MAX (1u << 22)
#define CONFIG_HEADS_MAX 4096u
#define CONFIG_HEAD_DIM_MAX 1024u
#define CONFIG_LORA_RANK_MAX (1u << 14)
#define CONFIG_FFN_MAX (1u << 20)
#define CONFIG_EXPERTS_MAX OP_ROUTE_EXPERTS_MAX
#define CONFIG_TOP_K_MAX 128u
#define CONFIG_CONTEXT_MAX (1u << 24) /* positions are turned into F32, which is exact up to here */
#define CONFIG_ROPE_PAIRS_MAX (CONFIG_HEAD_DIM_MAX / 2)
#define CONFIG_WARNING_BYTES 256

struct model_arch;

struct model_config {
    const struct model_arch *arch;
    char architecture[64], model_type[32];
    uint32_t layer_count, vocab_size, hidden_size, context_length;
    uint32_t head_count, kv_head_count, head_dim;
    uint32_t ffn_width;              /* of a dense layer */
    float norm_epsilon;
    bool tied_embeddings;            /* lm_head is embed_tokens */
    bool qkv_bias, o_bias, mlp_bias;
    bool qk_norm;                    /* queries and keys are normalised, each head by itself ... */
    bool qk_norm_whole;              /* ... or all heads as one vector */
    bool qk_norm_plain;              /* each head by itself, without weights, once it is rotated */
    bool out_norms;                  /* what attention and FFN give is normalised before it is
                                        added to the residual stream */
    float embedding_scale, residual_scale, logits_scale; /* on embeddings, on what layers add, on
                                                            logits */
    uint32_t sliding_window;         /* of those layers that have one; 0: none has, or none that is
                                        shorter than the context */
    bool is_sliding[CONFIG_LAYERS_MAX]; /* which layers these are */
    bool chunked;                    /* such a window does not slide: op_attention.chunked */
    bool sinks;                      /* op_attention.sinks */
    float attention_scale;           /* on q . k, YaRN's factor included */
    float score_cap, logits_cap;     /* soft ones; 0: none */
    float norm_offset;               /* to norms' weights: 1, or 0 */
    enum op_gate gate;               /* of dense FFNs and of experts */

    uint32_t rope_pair_count;
    float rope_frequencies[CONFIG_ROPE_PAIRS_MAX];
    float rope_scale;                /* on cos and sin */
    bool rope_interleaved;
    bool unrotated[CONFIG_LAYERS_MAX]; /* layers without positions. Their queries are multiplied
                                          with 1 + temperature_scale ln(1 + floor((position + 1) /
                                          temperature_floor)); temperature_floor 0: they are not */
    uint32_t temperature_floor;
    float temperature_scale;
    /* LongRoPE: contexts of more positions than that have these; 0: there are no others. */
    uint32_t rope_long_past;
    float rope_long_frequencies[CONFIG_ROPE_PAIRS_MAX];
    bool has_sliding_rope;           /* sliding layers have these, and a rope_scale of 1 */
    float rope_sliding_frequencies[CONFIG_ROPE_PAIRS_MAX];

    /* Multi-head latent attention; kv_lora_rank 0: none. */
    uint32_t q_lora_rank;            /* 0: q_proj is one matrix */
    uint32_t kv_lora_rank, qk_nope_dim, qk_rope_dim, v_dim;
    float latent_norm_epsilon;
    bool latent_bias;                /* q_a_proj and kv_a_proj_with_mqa have biases */

    /* Mixture of experts; expert_count 0: none. */
    uint32_t expert_count, expert_top_k, expert_ffn_width;
    uint32_t shared_ffn_width; /* of all shared experts together; 0: none */
    bool weighs_inputs;        /* an expert's weight counts before it, not after: top_k is 1 */
    bool shared_gate;          /* each row weighs what they give by a sigmoid of its own */
    enum dtype kv_dtype; /* of the KV cache: model_options */
    bool expert_units; /* each expert is a parameter of its own, not a part of two stacks */
    uint32_t ordered_width;        /* columns of the widest matrix that has them in another order;
                                      0: none. It follows from the tensors */
    bool has_experts[CONFIG_LAYERS_MAX]; /* which layers; the others are dense */
    uint32_t group_count, kept_group_count;
    enum route_scoring scoring;
    enum route_groups groups;
    bool route_bias, route_normalise;
    bool expert_biases;        /* of experts and of the router's logits */
    float route_scale;
    uint32_t predict_layer_count;    /* multi-token prediction: in the checkpoint, not used */

    int32_t bos_id;
    int32_t eos_ids[MODEL_EOS_MAX];
    uint32_t eos_count;
    char warning[CONFIG_WARNING_BYTES]; /* "": none; else something a user should know */
};

/* Reads a config.json. `what` names it in messages. */
enum status model__config_read(const json_t *json, const char *what,
                               struct model_config *config_out, struct err *err);
/* Takes bos and eos ids from a generation_config.json, where it has them. */
enum status model__config_read_generation(const json_t *json, const char *what,
                                          struct model_config *config, struct err *err);
bool model__config_layer_has_experts(const struct model_config *config, uint32_t layer);

/* Reads fields one after the other; after the first failure the rest are skipped. */
struct config_reader {
    const json_t *json;
    const char *what;
    struct err *err;
    enum status status;
};
/* An integer in [1, max] that must be there. */
uint32_t model__read_count(struct config_reader *reader, const char *key, uint32_t max);
/* An integer in [min, max]; fallback when missing or null. */
uint32_t model__read_count_or(struct config_reader *reader, const char *key, uint32_t min,
                              uint32_t max, uint32_t fallback);
bool model__read_bool(struct config_reader *reader, const char *key, bool fallback);
double model__read_double(struct config_reader *reader, const char *key, double min, double max,
                          double fallback);
/* Borrowed from the JSON. */
const char *model__read_string(struct config_reader *reader, const char *key, const char *fallback);
/* True when the key is there and not null. */
bool model__read_has(const struct config_reader *reader, const char *key);
/* True when the key is there and null: in some fields that says something else than a missing
 * key. */
bool model__read_is_null(const struct config_reader *reader, const char *key);
/* Fails the reading with a sentence behind "WHAT: ", unless it has failed before. */
void model__read_refuse(struct config_reader *reader, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* What stands for missing sizes, where they need not be there. */
struct config_missing {
    uint32_t layer_count, vocab_size, hidden_size, head_count, ffn_width, context_length;
};

/* What stands for missing keys. */
struct rope_missing {
    double theta;
    double partial; /* "partial_rotary_factor"; 0: 1 is meant, and the family has no other */
    bool by_layer;  /* layers with a window have another rope: model__read_sliding_rope */
};
/* rope.c: fills the rope_ fields for heads of 2 * pair_count elements, of which the first are
 * rotated, all but in some families. *scaling_out: what DeepSeek's YaRN multiplies the softmax's
 * scale with; 1 for everything else. May be NULL. */
void model__read_rope(struct config_reader *reader, uint32_t pair_count,
                      const struct rope_missing *missing, struct model_config *config,
                      double *scaling_out);
/* The frequencies of sliding layers, after model__read_rope; theta_missing stands for a missing
 * "rope_local_base_freq" and what has taken its place in newer files. */
void model__read_sliding_rope(struct config_reader *reader, double theta_missing,
                              struct model_config *config);
/* Takes the frequencies that are meant for config's context_length, once that is settled. */
void model__choose_rope(struct model_config *config);

#endif
