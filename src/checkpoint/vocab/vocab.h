/* checkpoint/vocab/vocab.h - a vocabulary, from whatever file, as a tokenizer.json. Only for files
 * of this room.
 *
 * Two kinds become the same BPE:
 *
 *     bytes           tokens are spelled in GPT-2's 256 characters, and there is a list of merges
 *     SentencePiece   tokens and scores. Of two neighbours those are joined whose joint token has
 *                     the highest score, so the merges are all ways to cut a token into two
 *                     others, by falling score. Characters without a token become bytes (<0x0A>)
 *
 * Source: Kudo and Richardson 2018, arXiv 1808.06226; sentencepiece_model.proto. */
#ifndef LIGHTER_CHECKPOINT_VOCAB_VOCAB_H
#define LIGHTER_CHECKPOINT_VOCAB_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "base/buf.h"
#include "base/map.h"
#include "base/size.h"
#include "base/status.h"

#define CKPT_VOCAB_TOKENS_MAX (1u << 22)
#define CKPT_VOCAB_FILE_BYTES_MAX (64 * MIB) /* of each file that a tokenizer is read from */
#define CKPT_VOCAB_SPACE "\xe2\x96\x81" /* U+2581, SentencePiece's space */

/* SentencePiece's numbers, which GGUF files have too. */
enum ckpt_vocab_kind {
    CKPT_VOCAB_NORMAL = 1,
    CKPT_VOCAB_UNKNOWN,
    CKPT_VOCAB_CONTROL,
    CKPT_VOCAB_USER,   /* always a token where it stands in a text */
    CKPT_VOCAB_UNUSED,
    CKPT_VOCAB_BYTE,
};

struct ckpt_vocab_token {
    char *text; /* owned; a NUL follows */
    size_t size;
    float score;
    int32_t kind;
};

struct ckpt_vocab {
    const char *path; /* of its file, for messages; borrowed */
    struct ckpt_vocab_token *tokens;
    size_t token_count, capacity;
    struct map *ids;  /* of the tokens' texts; the first of equal ones */
    json_t *merges;
};

/* What stands around the tokens in a tokenizer.json. Tokens are borrowed. */
struct ckpt_vocab_frame {
    const struct ckpt_vocab_token *unknown, *bos, *eos; /* NULL: none */
    bool adds_bos, adds_eos;
    bool is_spm;           /* SentencePiece's way; else bytes, cut as pre_tokenizer says */
    bool ignores_merges;   /* a word that is a token is taken whole */
    bool strips_space;     /* the space in front of a text is not part of what ids mean */
    json_t *normalizer, *pre_tokenizer; /* taken over; NULL: none */
    json_t *more_added;    /* further items of added_tokens, taken over; NULL: none */
};

/* The caller's storage. */
enum status ckpt_vocab_init(struct ckpt_vocab *vocab, const char *path, struct err *err);
void ckpt_vocab_deinit(struct ckpt_vocab *vocab);
enum status ckpt_vocab_no_memory(const struct ckpt_vocab *vocab, struct err *err);
/* Room for `count` tokens in all, at most CKPT_VOCAB_TOKENS_MAX. */
enum status ckpt_vocab_reserve(struct ckpt_vocab *vocab, size_t count, struct err *err);
/* The next token, a normal one; `text` becomes the vocabulary's in any case. There is room. */
enum status ckpt_vocab_add(struct ckpt_vocab *vocab, char *text, size_t size, struct err *err);
/* By id; NULL: no such token. */
const struct ckpt_vocab_token *ckpt_vocab_at(const struct ckpt_vocab *vocab, uint64_t id);
/* Makes the merges of the tokens' scores. */
enum status ckpt_vocab_make_merges(struct ckpt_vocab *vocab, struct err *err);
/* Spaces become CKPT_VOCAB_SPACE; one more goes in front of each stretch of text if so asked. */
json_t *ckpt_vocab_normalizer(bool adds_space);
/* Appends the tokenizer.json. */
enum status ckpt_vocab_write(const struct ckpt_vocab *vocab, const struct ckpt_vocab_frame *frame,
                             struct buf *json_out, struct err *err);
/* FOLDER/NAME, of at most CKPT_VOCAB_FILE_BYTES_MAX; *json_out NULL: there is no such file. */
enum status ckpt_vocab_read_beside(const char *folder, const char *name, json_t **json_out,
                                   struct err *err);
/* Appends any JSON; NULL is STATUS_NO_MEMORY. */
enum status ckpt_vocab_append_json(const struct ckpt_vocab *vocab, const json_t *json,
                                   struct buf *out, struct err *err);

#endif
