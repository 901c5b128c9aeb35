/* checkpoint/loader.h - how checkpoint tensors fill one parameter.
 *
 * A loader is a list of parts. Each part names a checkpoint tensor, says the shape it must have,
 * and copies a strided view of it into a strided view of the parameter, changing the dtype on the
 * way. That one primitive covers renaming, slicing, fusing (q, k and v; gate and up), stacking
 * (experts) and transposing (MLA's absorbed matrices).
 *
 * A loader is a plain description: it can be checked against a checkpoint before anything is read,
 * and run again at any time, into any memory, wherever the parameter's bytes live then (charter,
 * invariant 5). It holds no checkpoint and no memory of the parameter.
 *
 * A quantised tensor fills a parameter of its own dtype where every part moves whole blocks
 * (loader_keeps_blocks), and one of a plain dtype, decoded, through any view. Nothing is quantised.
 *
 *     source, elements                        parameter, elements
 *     src_offset + i*s0 + j*s1 + k*s2  ---->  dst_offset + i*d0 + j*d1 + k*d2 */
#ifndef LIGHTER_CHECKPOINT_LOADER_H
#define LIGHTER_CHECKPOINT_LOADER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/progress.h"
#include "base/status.h"
#include "checkpoint/checkpoint.h"
#include "tensor/dtype.h"

struct loader;

struct loader_dim {
    uint64_t count;       /* > 0 */
    uint64_t src_stride;  /* elements */
    uint64_t dst_stride;  /* elements */
};

struct loader_part {
    const char *tensor;   /* the checkpoint's name; copied by loader_add */
    uint32_t rank;        /* the shape that the tensor must have there */
    uint64_t shape[TENSOR_RANK_MAX];
    uint64_t src_offset, dst_offset; /* elements */
    struct loader_dim dims[3];       /* outermost first; unused ones have count 1 */
};

/* Of a parameter of element_count elements of `dtype`. The caller owns *loader_out. */
enum status loader_create(enum dtype dtype, uint64_t element_count, struct loader **loader_out,
                          struct err *err);
void loader_destroy(struct loader *loader);

/* Adds a part; asserts that both views lie inside their tensors. */
enum status loader_add(struct loader *loader, const struct loader_part *part, struct err *err);
/* Adds a part that copies a whole tensor to dst_offset as it lies: renaming, fusing and
 * stacking. */
enum status loader_add_whole(struct loader *loader, const char *tensor, uint32_t rank,
                             const uint64_t *shape, uint64_t dst_offset, struct err *err);

enum dtype loader_dtype(const struct loader *loader);
uint64_t loader_size_bytes(const struct loader *loader);  /* of the parameter */
size_t loader_part_count(const struct loader *loader);
const struct loader_part *loader_part_at(const struct loader *loader, size_t index);

/* Whether the part moves whole blocks of the dtype, so that they can stay as they are. True for
 * plain dtypes. */
bool loader_keeps_blocks(const struct loader_part *part, enum dtype dtype);

/* Checks that the checkpoint has every tensor, in the right shape and a dtype that can be
 * converted, and that the parts fill each element of the parameter exactly once. Reads no data. The
 * sentence names the file, the tensor, both shapes, and `param_name`. */
enum status loader_check(const struct loader *loader, const struct ckpt *ckpt,
                         const char *param_name, struct err *err);

/* What loader_load reads of the checkpoint: the elements of all parts, in the tensors' dtypes.
 * loader_check must have passed. Sums of it are total_bytes. */
uint64_t loader_source_bytes(const struct loader *loader, const struct ckpt *ckpt);

/* A run of a parameter's bytes that lies in a file of the checkpoint just as it shall be. */
struct loader_extent {
    uint32_t file_index;
    uint64_t file_offset_bytes, size_bytes;
};
/* The run that begins at the parameter's byte offset_bytes, as long as it is. False: the byte there
 * comes of a conversion or is not in line with its neighbours, or no run of whole blocks begins at
 * it. loader_check must have passed for this checkpoint. */
bool loader_extent(const struct loader *loader, const struct ckpt *ckpt, uint64_t offset_bytes,
                   struct loader_extent *extent_out);

/* Memory for loading, made once and used for every parameter: bounded, and apart from it, and from
 * what a read of packed tensors takes, a load takes none. It has threads of its own, so that the
 * disk and the conversion work at once, and more of them for a large checkpoint, which is read past
 * the page cache; one that was made for another checkpoint does, too. NULL: for a small one. */
struct loader_staging;
enum status loader_staging_create(const struct ckpt *ckpt, struct loader_staging **staging_out,
                                  struct err *err);
void loader_staging_destroy(struct loader_staging *staging);
/* Loads end soon after *stop, which is borrowed, has become true: STATUS_CANCELED. Before the first
 * of them. */
void loader_staging_heed(struct loader_staging *staging, const atomic_bool *stop);
/* That one takes, with as many reads at once of the checkpoint; NULL: of a small one without packed
 * tensors. */
uint64_t loader_staging_bytes(const struct ckpt *ckpt);

/* Fills dst[loader_size_bytes] (host memory, aligned for its dtype). loader_check must have passed
 * for this checkpoint. *done_bytes (may be NULL) is raised as loading goes on, by
 * loader_source_bytes in all, and progress is told of it, out of total_bytes. On failure dst's
 * contents are undefined. */
enum status loader_load(const struct loader *loader, const struct ckpt *ckpt, void *dst,
                        struct loader_staging *staging, const struct progress *progress,
                        uint64_t *done_bytes, uint64_t total_bytes, struct err *err);

#endif
