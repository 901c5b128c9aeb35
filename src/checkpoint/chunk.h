/* checkpoint/chunk.h - a loader's work cut into pieces of bounded size.
 *
 * A chunk is a box of one part. It is read in one go: src_span elements from src_first on, which
 * may have gaps between what is wanted. A direct chunk is a run that lies in the file as it shall
 * lie in the parameter, so it is read to its place; any other goes through a buffer of limited
 * size. */
#ifndef LIGHTER_CHECKPOINT_CHUNK_H
#define LIGHTER_CHECKPOINT_CHUNK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/loader.h"

struct chunk {
    const struct ckpt_tensor *tensor;
    uint64_t src_first, src_span; /* elements of the tensor */
    uint64_t dst_first;           /* element of the parameter */
    struct loader_dim dims[3];    /* from src_first and dst_first; source strides fall */
    bool direct;                  /* one run, dims[2] */
};

/* Where the walk through a loader stands. */
struct chunk_walk {
    const struct loader *loader;
    const struct ckpt *ckpt;
    uint64_t buffer_bytes;        /* no chunk that is not direct spans more */
    size_t part_index;
    const struct ckpt_tensor *tensor; /* of the part; NULL before it is begun */
    struct loader_dim dims[3];    /* of the part, in normal form */
    uint64_t at[3];               /* the next chunk's first index in each */
    bool direct;
};

/* buffer_bytes holds at least one element. */
void chunk_walk_init(struct chunk_walk *walk, const struct loader *loader, const struct ckpt *ckpt,
                     uint64_t buffer_bytes);
/* False when there is none left. */
bool chunk_walk_next(struct chunk_walk *walk, struct chunk *chunk_out);

/* The elements that a chunk fills. */
uint64_t chunk_element_count(const struct chunk *chunk);

/* Brings dimensions to normal form: those of one element come first, the others' source strides
 * fall, and none continues the one behind it on both sides. */
void chunk_normalise(struct loader_dim dims[3]);

/* Converts a chunk from `src`, which holds its span, into the parameter dst. */
void chunk_convert(const struct chunk *chunk, const void *src, enum dtype dst_dtype, void *dst);

#endif
