/* checkpoint/internal.h - what the files of this room share: an open checkpoint while a format
 * fills it, and the table row by which a format is known. */
#ifndef LIGHTER_CHECKPOINT_INTERNAL_H
#define LIGHTER_CHECKPOINT_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "base/map.h"
#include "checkpoint/bulk.h"
#include "checkpoint/checkpoint.h"

/* A format is chosen by the path alone, so that a broken file is told by its own reader what is
 * wrong with it and not that it is unknown. */
struct ckpt_format {
    const char *name;
    const char *what; /* what a path must be, for the message that refuses one */
    const char *config_suffix; /* behind the path: where the configuration stands, for messages */
    bool (*matches)(const char *path);
    /* Fills config, files and tensors of a zeroed checkpoint with a path. On failure the caller
     * closes it. */
    enum status (*open)(struct ckpt *ckpt, struct err *err);
};

extern const struct ckpt_format ckpt__format_hf, ckpt__format_gguf;

struct ckpt {
    char *path;
    const struct ckpt_format *format;
    json_t *config;
    struct file *files;
    uint32_t file_count;
    struct bulk_file *bulk;      /* [file_count], where much is read past the page cache, or NULL */
    struct ckpt_tensor *tensors; /* by file, then by offset; names are owned */
    size_t tensor_count, tensor_capacity;
    struct map *tensor_by_name;  /* to the index in tensors */
    struct packed *packed;       /* what tensors' .packed points to */
    size_t packed_count;
    const char *packing;         /* ckpt_packing */
    char *refusal;               /* ckpt_refusal */
};

enum status ckpt__create(const char *path, struct ckpt **ckpt_out, struct err *err);

/* Has ckpt__read_much go past the page cache, if all files' file systems can do that. ckpt_open
 * does this for a large one. */
enum status ckpt__read_past_cache(struct ckpt *ckpt, struct err *err);

/* ckpt_read for one who reads all of a checkpoint. buffer[BULK_BUFFER_BYTES], aligned to
 * BULK_ALIGN, is what it goes through past the page cache; NULL: it does not. */
enum status ckpt__read_much(const struct ckpt *ckpt, const struct ckpt_tensor *tensor,
                            uint64_t offset_bytes, void *dst, uint64_t size_bytes, uint8_t *buffer,
                            struct err *err);

/* Takes the open file and empties *file; adds to ckpt->files. */
enum status ckpt__add_file(struct ckpt *ckpt, struct file *file, struct err *err);

/* Copies *tensor and its name, which is name_size bytes. Refuses a name that is there already, is
 * too long or has control characters, and too many tensors. */
enum status ckpt__add_tensor(struct ckpt *ckpt, const struct ckpt_tensor *tensor, const char *name,
                             size_t name_size, struct err *err);

/* Sorts the tensors from index first on, which are those of the file added last, by their offset
 * and refuses any that overlap. */
enum status ckpt__sort_file(struct ckpt *ckpt, size_t first, struct err *err);

/* safetensors.c: reads the header of ckpt's file file_index and adds its tensors. */
enum status safetensors__read(struct ckpt *ckpt, uint32_t file_index, struct err *err);

#define SAFETENSORS_HEADER_BYTES_MAX 100000000u
#define SAFETENSORS_PREFIX_BYTES 8u

/* The two halves of safetensors__read, which the fuzz target calls with bytes of its own: the
 * length from the first eight bytes, and the tensors from the header's text. */
enum status safetensors__header_bytes(const struct file *file,
                                      const uint8_t prefix[SAFETENSORS_PREFIX_BYTES],
                                      size_t *size_bytes_out, struct err *err);
enum status safetensors__parse(struct ckpt *ckpt, uint32_t file_index, const char *header,
                               size_t size_bytes, struct err *err);

#endif
