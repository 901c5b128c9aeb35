/* checkpoint/testing.h - small checkpoints on disk for tests of any room.
 *
 * A folder is made under $TMPDIR (or /tmp), filled, used, and removed again. Nothing here returns
 * an error: a test that cannot write its files stops with a message. */
#ifndef LIGHTER_CHECKPOINT_TESTING_H
#define LIGHTER_CHECKPOINT_TESTING_H

#include <stddef.h>
#include <stdint.h>

#include "tensor/tensor.h"

struct ckpt_testing_tensor {
    const char *name;
    enum dtype dtype;
    uint32_t rank;
    uint64_t shape[TENSOR_RANK_MAX];
    const void *data; /* in dtype, row major */
};

/* Makes an empty folder and returns its path; free it with ckpt_testing_remove. */
char *ckpt_testing_folder(void);
/* Removes the folder with its files, and frees the path. NULL is fine. */
void ckpt_testing_remove(char *folder);

/* Writes FOLDER/NAME, replacing what was there. */
void ckpt_testing_write_file(const char *folder, const char *name, const void *bytes, size_t size);
/* Writes FOLDER/config.json. */
void ckpt_testing_write_config(const char *folder, const char *json);
/* Writes FOLDER/NAME ("model.safetensors") with the tensors in the order given. */
void ckpt_testing_write_tensors(const char *folder, const char *name,
                                const struct ckpt_testing_tensor *tensors, size_t tensor_count);
/* The same as a file's bytes; the caller frees them. */
uint8_t *ckpt_testing_safetensors(const struct ckpt_testing_tensor *tensors, size_t tensor_count,
                                  size_t *size_out);

/* A metadata pair of a GGUF file. */
struct ckpt_testing_pair {
    const char *key;
    uint32_t type;      /* as the format numbers them: 4 uint32, 6 float32, 7 bool, 8 string, 9 an
                           array, here of booleans */
    const char *string; /* of type 8; of type 9 a '0' or '1' for each */
    double number;      /* of the others */
};
/* A GGUF file's bytes; the caller frees them. Tensors' names are written as they are, their data in
 * the order given. */
uint8_t *ckpt_testing_gguf(const struct ckpt_testing_pair *pairs, size_t pair_count,
                           const struct ckpt_testing_tensor *tensors, size_t tensor_count,
                           size_t *size_out);
/* Writes FOLDER/NAME ("m.gguf"). */
void ckpt_testing_write_gguf(const char *folder, const char *name,
                             const struct ckpt_testing_pair *pairs, size_t pair_count,
                             const struct ckpt_testing_tensor *tensors, size_t tensor_count);
/* The fewest pairs with which a llama opens; it also needs a token_embd.weight. */
#define CKPT_TESTING_LLAMA_PAIRS                                                                   \
    { "general.architecture", 8, "llama", 0 }, { "llama.block_count", 4, NULL, 1 },                \
    { "llama.embedding_length", 4, NULL, 32 }, { "llama.context_length", 4, NULL, 64 },            \
    { "llama.feed_forward_length", 4, NULL, 32 }, { "llama.attention.head_count", 4, NULL, 4 },    \
    { "llama.attention.layer_norm_rms_epsilon", 6, NULL, 1e-5 }
#define CKPT_TESTING_LLAMA_PAIR_COUNT 7

#endif
