/* checkpoint/checkpoint.h - a model on disk becomes named tensors.
 *
 * A checkpoint is opened, which reads and checks everything but the tensors' data: names, dtypes,
 * shapes, and that every byte range lies inside its file and overlaps no other. After that a read
 * can fail only because the disk does, or because the file was changed underneath.
 *
 * A format is a row in the table of checkpoint.c: to add one is to add a file and that row. The
 * configuration is handed on as a Hugging Face config.json, whatever the format writes.
 *
 * Threads: an open checkpoint does not change; any thread may find and read. */
#ifndef LIGHTER_CHECKPOINT_CHECKPOINT_H
#define LIGHTER_CHECKPOINT_CHECKPOINT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "tensor/tensor.h"

#define CKPT_TENSORS_MAX 1000000
#define CKPT_FILES_MAX 4096
#define CKPT_NAME_BYTES_MAX 256
#define CKPT_CONFIG_BYTES_MAX (16u << 20)

struct ckpt;
struct packed;

struct ckpt_tensor {
    const char *name;       /* owned by the checkpoint; no control characters */
    enum dtype dtype;       /* DTYPE_COUNT: a type that nothing here computes with; it is listed and
                               can be read as bytes, but loader_check refuses it */
    const char *dtype_name; /* as the format spells it: "BF16", "F8_E4M3"; static */
    uint32_t rank;          /* 0 to TENSOR_RANK_MAX; a scalar has rank 0 */
    uint64_t shape[TENSOR_RANK_MAX];
    uint32_t file_index;
    uint64_t offset_bytes;  /* in the file */
    uint64_t size_bytes;
    /* Not NULL: blocks that are put together from several tensors of the file when they are read
     * (packed.h), whole blocks at a time; offset_bytes is where the weights lie. */
    const struct packed *packed;
};

/* Opens a Hugging Face folder: config.json and either model.safetensors, or the files that
 * model.safetensors.index.json lists, or else the only *.safetensors file there. Or a GGUF file
 * and, of a split model, the others with it, whichever was given. The caller owns *ckpt_out. */
enum status ckpt_open(const char *path, struct ckpt **ckpt_out, struct err *err);
void ckpt_close(struct ckpt *ckpt);

const char *ckpt_path(const struct ckpt *ckpt);          /* as given to ckpt_open */
const char *ckpt_format_name(const struct ckpt *ckpt);   /* "safetensors", "gguf" */
const json_t *ckpt_config(const struct ckpt *ckpt);      /* borrowed; an object */
const char *ckpt_config_suffix(const struct ckpt *ckpt); /* "/config.json": where that stands */

size_t ckpt_tensor_count(const struct ckpt *ckpt);
const struct ckpt_tensor *ckpt_tensor_at(const struct ckpt *ckpt, size_t index); /* in file order */
const struct ckpt_tensor *ckpt_find(const struct ckpt *ckpt, const char *name); /* NULL: none */
uint32_t ckpt_file_count(const struct ckpt *ckpt);
const char *ckpt_file_path(const struct ckpt *ckpt, uint32_t file_index);
/* Another number when the files are others, or have been written to: of their sizes, times and
 * inodes, as they are now. Of this machine only. */
uint64_t ckpt_stamp(const struct ckpt *ckpt);

/* NULL, or in which way tensors are put together, as "gptq_v2": what their bytes depend on beside
 * the files. Static. */
const char *ckpt_packing(const struct ckpt *ckpt);
/* NULL, or why the checkpoint's quantised weights cannot be used; then its tensors are listed as
 * they are in the files. */
const char *ckpt_refusal(const struct ckpt *ckpt);

/* Whether the name is of a scale to quantise activations or the KV cache with, which quantised
 * checkpoints may have and which nothing here needs. */
bool ckpt_is_unused_scale(const char *name);

/* Whether the tensor is X.order, which says in which order X.weight has its columns: column i is
 * multiplied with x's column order[i]. */
bool ckpt_is_order(const struct ckpt_tensor *tensor);

/* What a read of packed tensors takes while it works. */
#define CKPT_READ_BYTES_MAX (UINT64_C(3) << 19)
/* Reads size_bytes of the tensor's data, from offset_bytes in it. */
enum status ckpt_read(const struct ckpt *ckpt, const struct ckpt_tensor *tensor,
                      uint64_t offset_bytes, void *dst, uint64_t size_bytes, struct err *err);
/* Reads from a file of the checkpoint, whatever lies there; see loader_extent. */
enum status ckpt_read_file(const struct ckpt *ckpt, uint32_t file_index, uint64_t offset_bytes,
                           void *dst, uint64_t size_bytes, struct err *err);
/* Tells the kernel that ckpt_read_file will read this soon. Best effort. */
void ckpt_read_file_ahead(const struct ckpt *ckpt, uint32_t file_index, uint64_t offset_bytes,
                          uint64_t size_bytes);
/* Tells the kernel that what it has cached of the files is not needed any more. Best effort. */
void ckpt_drop_cache(const struct ckpt *ckpt);
/* Tells the kernel that a loader will read the tensor soon. Best effort. */
void ckpt_read_ahead(const struct ckpt *ckpt, const struct ckpt_tensor *tensor);

#endif
