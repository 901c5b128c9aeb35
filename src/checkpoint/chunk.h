/* checkpoint/chunk.h - a loader's work cut into pieces of bounded size.
 *
 * A chunk is a box of one part. It is read in one go, read_bytes from read_at_bytes on, which may
 * have gaps between what is wanted. A direct chunk is a run that lies in the file as it shall lie
 * in the parameter, so it is read to its place; any other goes through a buffer of limited size.
 *
 * Quantised tensors come in two ways. Where the parameter has the same dtype, the view keeps blocks
 * whole (chunk_keeps_blocks), and whole blocks are moved as if each were one element. Else the
 * blocks that hold the chunk are decoded, in the buffer, to F32, and go on as an F32 tensor would:
 *
 *     buffer   [ F32 of all elements of the blocks  |  the blocks as read ]
 *              0                                    buffer_at_bytes */
#ifndef LIGHTER_CHECKPOINT_CHUNK_H
#define LIGHTER_CHECKPOINT_CHUNK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/loader.h"

/* How a part's data becomes the parameter's. */
enum chunk_kind {
    CHUNK_ELEMENTS, /* converted from one plain dtype to another, or the same */
    CHUNK_BLOCKS,   /* whole blocks, copied; counted as if each were an element */
    CHUNK_DECODED   /* blocks that become elements of a plain dtype */
};

struct chunk {
    const struct ckpt_tensor *tensor;
    uint64_t read_at_bytes, read_bytes; /* of the tensor's data */
    uint64_t buffer_at_bytes;     /* where in the buffer it is read to, unless it is direct */
    uint64_t source_bytes;        /* of it, what is wanted: sums up to loader_source_bytes */
    uint64_t src_first;           /* the first element (or block), counted from what is read */
    uint64_t dst_first;           /* element (or block) of the parameter */
    struct loader_dim dims[3];    /* from src_first and dst_first; source strides fall */
    enum chunk_kind kind;
    bool direct;                  /* one run, dims[2] */
};

/* Where the walk through a loader stands. */
struct chunk_walk {
    const struct loader *loader;
    const struct ckpt *ckpt;
    uint64_t buffer_bytes;        /* no chunk that is not direct spans more */
    size_t part_index;
    const struct ckpt_tensor *tensor; /* of the part; NULL before it is begun */
    enum chunk_kind kind;
    uint64_t src_offset, dst_offset; /* of the part; these and dims in blocks for CHUNK_BLOCKS */
    struct loader_dim dims[3];    /* of the part, in normal form */
    uint64_t at[3];               /* the next chunk's first index in each */
    uint64_t done_count;          /* elements (or blocks) of the part that are passed */
    bool direct;
};

/* buffer_bytes holds at least one element, or two blocks and what they are decoded to. */
void chunk_walk_init(struct chunk_walk *walk, const struct loader *loader, const struct ckpt *ckpt,
                     uint64_t buffer_bytes);
/* False when there is none left. */
bool chunk_walk_next(struct chunk_walk *walk, struct chunk *chunk_out);

/* Brings dimensions to normal form: those of one element come first, the others' source strides
 * fall, and none continues the one behind it on both sides. */
void chunk_normalise(struct loader_dim dims[3]);

/* Whether the part moves whole blocks of block_elements, so that they can stay as they are. True
 * for 1. */
bool chunk_keeps_blocks(const struct loader_part *part, uint32_t block_elements);

/* What is wanted of `count` elements, as bytes of the tensor's dtype; a part of a block counts in
 * proportion. */
uint64_t chunk_wanted_bytes(enum dtype dtype, uint64_t count);

/* Converts a chunk from a buffer, in which it has been read, into the parameter dst. */
void chunk_convert(const struct chunk *chunk, void *buffer, enum dtype dst_dtype, void *dst);

#endif
