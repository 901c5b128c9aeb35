/* checkpoint/gguf/tokenizer.h - the tokenizer inside a GGUF file, as a tokenizer.json. */
#ifndef LIGHTER_CHECKPOINT_GGUF_TOKENIZER_H
#define LIGHTER_CHECKPOINT_GGUF_TOKENIZER_H

#include <stdbool.h>

#include "base/buf.h"
#include "base/status.h"

/* Whether the path is a GGUF file's, of whatever content. */
bool gguf_is_file(const char *path);

/* Appends to *json_out what a Hugging Face folder would have as tokenizer.json, and to *config_out
 * its tokenizer_config.json. STATUS_UNAVAILABLE when the file has no tokenizer, or one of a kind
 * that is not built. */
enum status gguf_tokenizer_read(const char *path, struct buf *json_out, struct buf *config_out,
                                struct err *err);

#endif
