/* checkpoint/vocab/sentencepiece.h - the tokenizer.model of a Hugging Face folder, as the
 * tokenizer.json that the folder lacks. */
#ifndef LIGHTER_CHECKPOINT_VOCAB_SENTENCEPIECE_H
#define LIGHTER_CHECKPOINT_VOCAB_SENTENCEPIECE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"
#include "base/status.h"

/* Whether the folder has a tokenizer.model and no tokenizer.json. */
bool sentencepiece_is_alone(const char *folder);

/* Appends to *json_out what the folder would have as tokenizer.json, and to *config_out its
 * tokenizer_config.json, with the names of BOS and EOS in it. Of tokenizer_config.json are heeded:
 * added_tokens_decoder (else added_tokens.json), add_bos_token, add_eos_token, add_prefix_space and
 * legacy, with the meaning that transformers gives them. STATUS_UNAVAILABLE when the model is of a
 * kind that is not built: only BPE is, without a table of rewritten characters. */
enum status sentencepiece_read(const char *folder, struct buf *json_out, struct buf *config_out,
                               struct err *err);

/* The same from bytes, with no files beside them; `path` names them in messages. */
enum status sentencepiece_read_bytes(const void *bytes, size_t size_bytes, const char *path,
                                     struct buf *json_out, struct buf *config_out,
                                     struct err *err);

#endif
