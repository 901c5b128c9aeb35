/* offload/home/shard.h - how a record is divided over ranks, and in which order its parts are
 * gathered.
 *
 * A record is cut into grains of OFFLOAD_SHARD_GRAIN bytes, and rank r of n has the r-th of n runs
 * of grains. Runs differ by a grain at most; the last grain may be short; with more ranks than
 * grains some have nothing. Any record can be divided over any number of ranks.
 *
 * A rank gathers its own shard first and then those of the ranks after it, wrapping around, so that
 * at any step each rank reads from another one. Pure functions. Only for files inside offload/. */
#ifndef LIGHTER_OFFLOAD_HOME_SHARD_H
#define LIGHTER_OFFLOAD_HOME_SHARD_H

#include <stdint.h>

#include "device/device.h"

#define OFFLOAD_SHARD_GRAIN DEVICE_ALIGNMENT

struct offload__shard {
    uint64_t offset_bytes; /* in the record; a multiple of the grain */
    uint64_t size_bytes;   /* 0: the rank has nothing of it */
};

/* The shard of `rank` in [0, rank_count) of a record of record_bytes. */
struct offload__shard offload__shard(uint64_t record_bytes, uint32_t rank_count, uint32_t rank);

/* What the shard takes of a block in which shards lie one behind the other, each on a grain. */
uint64_t offload__shard_room(struct offload__shard shard);

/* Whose shard `rank` reads at `step` in [0, rank_count). */
uint32_t offload__shard_source(uint32_t rank_count, uint32_t rank, uint32_t step);

#endif
