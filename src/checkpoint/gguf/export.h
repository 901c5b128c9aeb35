/* checkpoint/gguf/export.h - what a GGUF file's metadata says of a Hugging Face checkpoint: the
 * inverse of config.c and tokenizer.c. Only for files of this room. */
#ifndef LIGHTER_CHECKPOINT_GGUF_EXPORT_H
#define LIGHTER_CHECKPOINT_GGUF_EXPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf/header.h"

#define GGUF_FACTORS_MAX 512

/* A tensor that comes of the configuration: by what the rope's frequencies are divided. */
struct gguf_factors {
    const char *name;              /* in the file; static */
    size_t count;
    float values[GGUF_FACTORS_MAX];
};

/* A model as the format describes it, with what its tensors' layout depends on. */
struct gguf_model {
    const struct ckpt *ckpt;
    const char *arch;              /* "llama", "deepseek2", ...; borrowed from a table, or of
                                      a GGUF file's own metadata */
    bool is_gguf;                  /* the checkpoint has the format's layout already */
    uint64_t layer_count;          /* without those of multi-token prediction */
    uint64_t hidden_size;
    uint64_t head_count, kv_head_count;
    bool permutes_rows;            /* of q and k: rotated pairs become neighbours */
    bool splits_kv_b;              /* into attn_k_b, transposed, and attn_v_b */
    uint64_t key_rows, value_rows; /* of a head's part of kv_b */
    bool experts_transposed;       /* fused ones, unless they are quantised */
    bool experts_by_turns;         /* their gate and up take turns */
    float norm_offset;             /* what the file's norms have added to them */
    bool tied_embeddings;
    /* Where the language model is a part: how its tensors' names begin, and what stands for that
     * where it is all there is. NULL: it is all there is. */
    const char *part, *part_plain;
    struct gguf_factors factors[2];
    size_t factor_count;
};

/* The tensor's name where the language model is all there is; false: it is of another part. */
bool gguf__plain_name(const struct gguf_model *model, const char *name, char *out, size_t out_size);

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
