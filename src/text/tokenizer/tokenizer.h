/* text/tokenizer/tokenizer.h - text to token ids and back, as the model's tokenizer.json says.
 *
 * The pipeline is that of the Hugging Face `tokenizers` library, and ids agree with it: added
 * tokens are cut out first, then each stretch between them is normalised, pre-tokenised, and merged
 * (BPE); then the post-processor adds its special tokens. Source: the library's documentation
 * (https://huggingface.co/docs/tokenizers) and behaviour, compared in tests.
 *
 * Bytes that are not UTF-8 are replaced by U+FFFD, one per maximal ill-formed prefix, before
 * anything else.
 *
 * Threads: an open tokenizer does not change; any thread may use it. A stream belongs to one
 * thread. */
#ifndef LIGHTER_TEXT_TOKENIZER_TOKENIZER_H
#define LIGHTER_TEXT_TOKENIZER_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"

struct tokenizer;

/* Opens MODEL_PATH/tokenizer.json, with tokenizer_config.json beside it when there is one.
 * STATUS_UNAVAILABLE when the folder has no tokenizer. The caller owns *tokenizer_out. */
enum status tokenizer_open(const char *model_path, struct tokenizer **tokenizer_out,
                           struct err *err);
/* The same from the text of a tokenizer.json; config may be NULL. `what` names it in messages. */
enum status tokenizer_open_json(const char *text, size_t text_size, const char *config_text,
                                size_t config_size, const char *what,
                                struct tokenizer **tokenizer_out, struct err *err);
void tokenizer_close(struct tokenizer *tokenizer);

struct token_ids {
    int32_t *ids;   /* owned: token_ids_deinit */
    size_t count, capacity;
};
void token_ids_deinit(struct token_ids *ids);
enum status token_ids_push(struct token_ids *ids, int32_t id, struct err *err);

/* Appends the ids of text[size] to *ids_out. add_special: let the post-processor add BOS and such
 * (special tokens written in the text itself are always recognised). At most 64 MiB of text. */
enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t size,
                             bool add_special, struct token_ids *ids_out, struct err *err);
/* Text from two hands: where marks[size] is 1 rather than 0, a byte is somebody's input, and no
 * token with controls[id] (an array of tokenizer_id_limit) is recognised in it, nor with a part of
 * it: what looks like one becomes the ids of its letters. All else is as if the text were from one
 * hand, so that where nothing looks like a control token the ids are tokenizer_encode's. Nothing
 * is added before and after. A text whose input makes a control token in another way (merges that
 * lead to one) is STATUS_BAD_INPUT. The text must be UTF-8. */
enum status tokenizer_encode_marked(const struct tokenizer *tokenizer, const char *text,
                                    const uint8_t *marks, size_t size, const uint8_t *controls,
                                    struct token_ids *ids_out, struct err *err);
/* The content of an added token, special or not; NULL: the id is no added token's. */
const char *tokenizer_added_content(const struct tokenizer *tokenizer, int32_t id,
                                    size_t *size_out);
/* Appends the text of the ids. An id that the vocabulary lacks is STATUS_BAD_INPUT. */
enum status tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, size_t count,
                             bool skip_special, struct buf *text_out, struct err *err);

/* One past the highest id. */
uint32_t tokenizer_id_limit(const struct tokenizer *tokenizer);
/* The id of a token by its exact content, added tokens included; -1: none. */
int32_t tokenizer_find(const struct tokenizer *tokenizer, const char *content);
bool tokenizer_is_special(const struct tokenizer *tokenizer, int32_t id);
/* From tokenizer_config.json; -1: none said. */
int32_t tokenizer_bos_id(const struct tokenizer *tokenizer);
int32_t tokenizer_eos_id(const struct tokenizer *tokenizer);

/* Decoding one id at a time. Concatenated, what a stream appends equals tokenizer_decode of all the
 * ids at once, and no piece ends inside a character: bytes that more ids may complete are held
 * back. */
struct tokenizer_stream;
enum status tokenizer_stream_create(const struct tokenizer *tokenizer, bool skip_special,
                                    struct tokenizer_stream **stream_out, struct err *err);
void tokenizer_stream_destroy(struct tokenizer_stream *stream);
enum status tokenizer_stream_push(struct tokenizer_stream *stream, int32_t id,
                                  struct buf *text_out, struct err *err);
/* Appends what was held back, broken characters as U+FFFD. The stream takes no more ids. */
enum status tokenizer_stream_finish(struct tokenizer_stream *stream, struct buf *text_out,
                                    struct err *err);

#endif
