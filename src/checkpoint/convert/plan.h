/* checkpoint/convert/plan.h - what a GGUF file that is made of a checkpoint will hold. Only for
 * files of this room. */
#ifndef LIGHTER_CHECKPOINT_CONVERT_PLAN_H
#define LIGHTER_CHECKPOINT_CONVERT_PLAN_H

#include "base/buf.h"
#include "checkpoint/convert/convert.h"
#include "checkpoint/gguf/export.h"
#include "checkpoint/loader.h"

/* Tensors that a reader takes for a part of the metadata: "rope_freqs.weight",
 * "rope_factors_long.weight", ... */
#define CONVERT_FACTORS "rope_"

/* A part of a tensor that comes of one tensor of the checkpoint: `unit_count` runs of unit_elements
 * each, one behind the other in the file, from src_offset, src_offset + src_stride, ... on. `inner`
 * is how a run lies there: plain rows, pairs of rows that become neighbours, columns. */
struct plan_segment {
    const struct ckpt_tensor *source;
    size_t tensor_index;
    uint64_t order;                /* among those of the tensor */
    uint64_t unit_count, unit_elements, src_offset, src_stride;
    struct loader_dim inner[2];
    uint64_t dst_offset;           /* elements, in the tensor */
};

struct plan_tensor {
    char name[CKPT_NAME_BYTES_MAX + 1];
    enum dtype dtype;
    uint32_t rank;
    uint64_t shape[TENSOR_RANK_MAX];
    size_t file_index;
    uint64_t at_bytes, size_bytes; /* in that file's data */
    size_t first_segment, segment_count;
    const float *values;           /* of the model's factors, where there are no segments */
    float offset;                  /* is added to what comes of the segments */
};

/* One of the files, which have the tensors in order. */
struct plan_file {
    struct buf head;               /* the file up to its data */
    uint64_t data_bytes;
    uint64_t before_bytes;         /* of the data of the files before */
};

struct convert_plan {
    struct gguf_model model;
    char arch[65];
    struct plan_tensor *tensors;
    size_t tensor_count, tensor_capacity;
    struct plan_segment *segments; /* by tensor, in order */
    size_t segment_count, segment_capacity;
    struct plan_file *files;       /* [summary.file_count] */
    uint64_t data_bytes;           /* of all files */
    struct convert_summary summary;
};

/* The caller's storage; convert__plan_deinit also after a failure. */
enum status convert__plan_make(const struct ckpt *ckpt, const struct convert_options *options,
                               struct convert_plan *plan, struct err *err);
void convert__plan_deinit(struct convert_plan *plan);

/* types.c: the type of a tensor of more than one dimension. */
struct convert_place {
    const char *name;              /* in the file */
    uint64_t cols;
    uint64_t layer_count;
    bool tied_embeddings;
};
enum dtype convert__choose_type(const char *type, const struct convert_place *place);
/* The number by which files name the whole mix: general.file_type. */
uint32_t convert__file_type(const char *type);

#endif
