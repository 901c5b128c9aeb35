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

#endif
