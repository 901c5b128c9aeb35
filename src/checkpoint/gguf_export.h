/* checkpoint/gguf_export.h - what a GGUF file's metadata says of a Hugging Face checkpoint: the
 * inverse of gguf_config.c and gguf_tokenizer.c. Only for files of this room. */
#ifndef LIGHTER_CHECKPOINT_GGUF_EXPORT_H
#define LIGHTER_CHECKPOINT_GGUF_EXPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf_header.h"

#define GGUF_ROPE_FACTORS_MAX 4096

/* A model as the format describes it, with what its tensors' layout depends on. */
struct gguf_model {
    const struct ckpt *ckpt;
    const char *arch;              /* "llama", "deepseek2", ...; borrowed from a table, or of
                                      a GGUF file's own metadata */
    bool is_gguf;                  /* the checkpoint has the format's layout already */
    uint64_t layer_count;          /* without those of multi-token prediction */
    uint64_t head_count, kv_head_count;
    bool permutes_rows;            /* of q and k: rotated pairs become neighbours */
    bool splits_kv_b;              /* into attn_k_b, transposed, and attn_v_b */
    uint64_t key_rows, value_rows; /* of a head's part of kv_b */
    bool tied_embeddings;
    float rope_factors[GGUF_ROPE_FACTORS_MAX]; /* Llama 3's, by which frequencies are divided */
    size_t rope_factor_count;      /* 0: there are none */
};

/* Fills the model from a Hugging Face config.json, and puts what the format says of it. */
enum status gguf__export_config(const struct ckpt *ckpt, struct gguf_model *model,
                                struct gguf_header *header);

/* Puts the tokenizer and the chat templates of a Hugging Face folder, for `count` token ids. `pre`
 * names how text is cut before its tokens are looked for; NULL: found in the folder's
 * tokenizer.json, of which the format has only a list. A folder without a tokenizer.json has
 * nothing put. */
enum status gguf__export_tokenizer(const struct ckpt *ckpt, const char *pre, uint64_t count,
                                   struct gguf_header *header);

#endif
