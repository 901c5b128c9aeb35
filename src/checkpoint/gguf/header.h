/* checkpoint/gguf/header.h - the header of a GGUF file that is to be written.
 *
 * Pairs and tensors are added in any order; gguf__header_end puts them together and says where the
 * data begins. After the first failure the rest is skipped, and gguf__header_end returns it. The
 * format stands in gguf.c. */
#ifndef LIGHTER_CHECKPOINT_GGUF_HEADER_H
#define LIGHTER_CHECKPOINT_GGUF_HEADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"
#include "tensor/tensor.h"

#define GGUF_ALIGNMENT 32u /* of each tensor's data; what readers take where none is given */

struct gguf_header {
    struct buf pairs, tensors;
    uint64_t pair_count, tensor_count;
    uint64_t data_bytes;           /* of the tensors so far, aligned */
    enum status status;
    struct err *err;               /* borrowed; gets the sentence of the first failure */
};

/* The caller's storage; gguf__header_deinit afterwards. */
void gguf__header_init(struct gguf_header *header, struct err *err);
void gguf__header_deinit(struct gguf_header *header);

void gguf__write_count(struct gguf_header *header, const char *key, uint64_t count); /* uint32 */
void gguf__write_number(struct gguf_header *header, const char *key, double number); /* float32 */
void gguf__write_bool(struct gguf_header *header, const char *key, bool value);
void gguf__write_string(struct gguf_header *header, const char *key, const char *text, size_t size);
/* Pairs as another file has them. */
void gguf__write_raw(struct gguf_header *header, const void *bytes, size_t size, uint64_t count);
/* Begins an array, of whose items the next puts are. */
void gguf__write_array(struct gguf_header *header, const char *key, uint32_t item_type,
                     uint64_t count);
void gguf__write_text_item(struct gguf_header *header, const char *text, size_t size);
void gguf__write_item(struct gguf_header *header, const void *item, size_t size);

/* What makes it one of several files, by number from 0; tensor_count is that of all. */
#define GGUF_SPLIT_PAIRS_BYTES 82
void gguf__write_split(struct gguf_header *header, uint64_t number, uint64_t count,
                       uint64_t tensor_count);

/* What the header takes with as many bytes of pairs and of tensors, padded. */
uint64_t gguf__header_bytes(uint64_t pairs_bytes, uint64_t tensors_bytes);
/* What a tensor takes in it. */
uint64_t gguf__tensor_bytes(const char *name, uint32_t rank);
/* Adds a tensor behind the last one. The dtype is one that GGUF has. */
void gguf__write_tensor(struct gguf_header *header, const char *name, enum dtype dtype,
                      uint32_t rank, const uint64_t *shape, uint64_t size_bytes);

/* Appends to *out all that stands before the data, padded up to where that begins. */
enum status gguf__header_end(struct gguf_header *header, struct buf *out, struct err *err);

#endif
