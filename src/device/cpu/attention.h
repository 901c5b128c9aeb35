/* device/cpu/attention.h - what attention's two files share: attention.c cuts it into tasks, and
 * attention_block.c goes over the keys that a task's queries see. */
#ifndef LIGHTER_DEVICE_CPU_ATTENTION_H
#define LIGHTER_DEVICE_CPU_ATTENTION_H

#include <stdbool.h>
#include <stdint.h>

#include "device/cpu/internal.h"

#define CPU_ATTENTION_TILE CPU_ATTENTION_KEYS
#define CPU_ATTENTION_QUERIES 64 /* (row, head) pairs that one task does together */

/* Of the op. */
struct attention_query {
    uint32_t row, head;
};

/* A query's softmax over some keys; its output, not yet divided by sum, is apart. */
struct attention_sums {
    float max, sum;
};

struct attention_job {
    const struct cpu_executor *executor;
    const struct op_attention *op;
    uint64_t key_bytes, value_bytes;         /* of a kv head's in a token slot */
    struct op_cache_strides k_bytes, v_bytes; /* the op's, in bytes */
    bool is_latent;              /* values are a part of their keys, and widened with them */
    bool is_apart;               /* other heads' lie between one head's */
    bool has_room;               /* for all that scratch can hold, packed queries too */
    bool packs;                  /* queries, and scores them packed */
};

/* A tile's keys or values. */
struct attention_rows {
    union {
        const void *cached[CPU_ATTENTION_TILE]; /* of any dtype */
        const float *floats[CPU_ATTENTION_TILE];
    };
    enum dtype dtype;
};

/* The keys and values of a kv head that are used together. */
struct attention_tile {
    uint32_t kv_head;            /* counted from the block's first */
    uint32_t begin, end;         /* positions; none: there is no such tile */
    struct attention_rows keys, values;
};

/* The queries of one sequence and a few kv heads that a task does at once: query = (kv head *
 * row_count + row) * head_count + head. */
struct attention_block {
    const struct attention_job *job;
    float *scratch;              /* a tile in F32: its keys, then its values */
    float *packed;               /* each kv head's queries */
    const int32_t *pages;        /* of the sequence */
    uint32_t kv_first, kv_count; /* kv heads */
    uint32_t row_count, head_count;
    uint32_t query_count;        /* of a kv head */
    uint32_t all_count;          /* of all of them */
    bool asks;                   /* for the next tile */
    bool copies;                 /* keys and values are copied to scratch, as F32 */
    const int32_t *positions;    /* [row_count] */
    struct attention_query queries[CPU_ATTENTION_QUERIES];
    const float *q[CPU_ATTENTION_QUERIES];
    float *out[CPU_ATTENTION_QUERIES];
    struct attention_sums sums[CPU_ATTENTION_QUERIES];
    struct attention_tile tiles[2];
    struct attention_tile *tile, *next; /* of these, the one at hand, and the one after it */
    float scores[CPU_ATTENTION_QUERIES][CPU_ATTENTION_TILE]; /* of the tile at hand */
};

static inline uint32_t attention_lesser(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Elements of a packed query. */
static inline uint64_t attention_packed_width(const struct op_attention *op)
{
    return (op->k_width + UINT64_C(3)) / 4 * 4;
}

/* Where the window of a query at `position` begins. */
static inline uint32_t attention_first_seen(const struct op_attention *op, int32_t position)
{
    const uint32_t end = (uint32_t)position + 1;

    if (op->chunked)
        return (end - 1) / op->window * op->window;
    return op->window == 0 || op->window >= end ? 0 : end - op->window;
}

/* Chooses how a block, whose queries and positions are set, reads the cache, and packs the queries
 * if it scores them packed. */
void cpu__attention_prepare(struct attention_block *block);

/* Adds the keys at positions [begin, end), as far as its rows see them, to the sums and outputs of
 * a block. begin is a tile's first, and so is end, unless it is ask_end, up to which keys may be
 * asked for. */
void cpu__attention_add(struct attention_block *block, uint32_t begin, uint32_t end,
                        uint32_t ask_end);

#endif
