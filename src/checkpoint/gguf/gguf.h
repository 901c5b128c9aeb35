/* checkpoint/gguf/gguf.h - the header of a GGUF file, for the files of this room that read one.
 *
 * meta.c reads the key-value pairs, gguf.c the tensors and split files; names.c and
 * config.c turn both into what a Hugging Face checkpoint would say. The format stands in
 * gguf.c. */
#ifndef LIGHTER_CHECKPOINT_GGUF_GGUF_H
#define LIGHTER_CHECKPOINT_GGUF_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "base/map.h"
#include "base/status.h"
#include "checkpoint/internal.h"

#define GGUF_PAIRS_MAX 65536u
#define GGUF_KEY_BYTES_MAX 1024u
#define GGUF_STRING_BYTES_MAX (4u << 20)       /* of one string; chat templates are the longest */
#define GGUF_KEPT_BYTES_MAX (16u << 20)        /* of all strings that are kept */
#define GGUF_META_BYTES_MAX (UINT64_C(1) << 28) /* of a file before its data */
#define GGUF_COMPARED_ITEMS_MAX 65536u         /* longer arrays are not one number per layer */
#define GGUF_WINDOW_BYTES 65536u

/* As the files number them. */
enum gguf_type {
    GGUF_UINT8, GGUF_INT8, GGUF_UINT16, GGUF_INT16, GGUF_UINT32, GGUF_INT32, GGUF_FLOAT32,
    GGUF_BOOL, GGUF_STRING, GGUF_ARRAY, GGUF_UINT64, GGUF_INT64, GGUF_FLOAT64,
    GGUF_TYPE_COUNT
};
const char *gguf__type_name(enum gguf_type type);

/* Reads a file from one place on, through a window. */
struct gguf_reader {
    const struct file *file;
    uint64_t at;                   /* the next byte to take */
    uint64_t window_at;
    size_t window_size;
    uint8_t window[GGUF_WINDOW_BYTES];
};

/* The next size bytes; dst NULL: they are passed over. `what` says in a message whose they are. */
enum status gguf__take(struct gguf_reader *reader, void *dst, uint64_t size, const char *what,
                       struct err *err);
enum status gguf__take_u32(struct gguf_reader *reader, const char *what, uint32_t *out,
                           struct err *err);
enum status gguf__take_u64(struct gguf_reader *reader, const char *what, uint64_t *out,
                           struct err *err);

/* A value that is one number, boolean or string; or what is known of an array, whose items stay in
 * the file. */
struct gguf_value {
    enum gguf_type type;
    int64_t integer;               /* integers and booleans */
    bool too_large;                /* an unsigned one that `integer` cannot hold */
    double number;                 /* every number */
    char *string;                  /* NUL-terminated, owned; may hold NULs */
    size_t string_size;
    enum gguf_type item_type;      /* of an array, which is never GGUF_ARRAY */
    uint64_t item_count;
    uint64_t items_at;             /* byte in the file */
    bool items_equal;              /* integers that are all `integer` */
    uint64_t pair_at, pair_bytes;  /* where key and value stand in the file */
};

struct gguf_meta {
    struct map *index_by_key;
    struct gguf_value *values;
    size_t count;
    uint64_t kept_bytes;
};

/* Reads pair_count pairs from the reader's place on. The caller's storage; gguf__meta_deinit also
 * after a failure. */
enum status gguf__meta_read(struct gguf_reader *reader, uint64_t pair_count,
                            struct gguf_meta *meta_out, struct err *err);
void gguf__meta_deinit(struct gguf_meta *meta);
/* NULL: there is no such key. */
const struct gguf_value *gguf__find(const struct gguf_meta *meta, const char *key);
/* The getters leave *out as it was when the key is missing and refuse another kind of value. */
enum status gguf__get_count(const struct gguf_meta *meta, const char *path, const char *key,
                            uint64_t max, uint64_t *out, struct err *err);
/* Borrowed; holds no NUL. */
enum status gguf__get_string(const struct gguf_meta *meta, const char *path, const char *key,
                             const char **out, struct err *err);

/* names.c: the name by which the rest of the program asks for a tensor, into out; the file's
 * own when it has no other. */
void gguf__tensor_name(const char *arch, uint64_t layer_count, const char *name, char *out,
                       size_t out_size);

/* The inverse, for a file that is to be written: the name of the tensor which is called `name`
 * everywhere else, into out; one that has no other keeps its own. *expert_out: which of a layer's
 * experts it is of; out then names the stack of them. -1: it is no expert's. */
void gguf__tensor_origin(const char *arch, uint64_t layer_count, const char *name, char *out,
                         size_t out_size, int64_t *expert_out);

/* The number of a type in files; false when they have none. */
bool gguf__find_type(enum dtype dtype, uint32_t *number_out);

/* config.c: a config.json for what metadata and tensors say. The caller owns *config_out. */
enum status gguf__config(const struct ckpt *ckpt, const struct gguf_meta *meta,
                         json_t **config_out, struct err *err);

/* Opens the file, or of a split model that of its files which has the metadata, by the path. */
enum status gguf__open_first(const char *path, struct file *file_out, struct err *err);

/* Reads an open file's header and metadata; gguf__meta_deinit also after a failure. */
enum status gguf__open_meta(const struct file *file, struct gguf_reader *reader,
                            struct gguf_meta *meta_out, struct err *err);

/* Fills a checkpoint from its first file, which is open as `file` (taken); also those that belong
 * to it. */
enum status gguf__read(struct ckpt *ckpt, struct file *file, struct err *err);

#endif
