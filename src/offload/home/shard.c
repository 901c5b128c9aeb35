/* offload/home/shard.c - see shard.h. */
#include "offload/home/shard.h"

#include <assert.h>

#include "base/size.h"

struct offload__shard offload__shard(uint64_t record_bytes, uint32_t rank_count, uint32_t rank)
{
    const uint64_t grain_count =
        record_bytes / OFFLOAD_SHARD_GRAIN + (record_bytes % OFFLOAD_SHARD_GRAIN != 0);
    const uint64_t each = grain_count / rank_count, left = grain_count % rank_count;
    /* The first `left` ranks have one grain more than the others. */
    const uint64_t first = rank * each + (rank < left ? rank : left);
    const uint64_t end = first + each + (rank < left ? 1 : 0);
    struct offload__shard shard;

    assert(rank < rank_count);
    shard.offset_bytes = first == grain_count ? record_bytes : first * OFFLOAD_SHARD_GRAIN;
    shard.size_bytes =
        (end == grain_count ? record_bytes : end * OFFLOAD_SHARD_GRAIN) - shard.offset_bytes;
    return shard;
}

uint64_t offload__shard_room(struct offload__shard shard)
{
    return size_align_up(shard.size_bytes, OFFLOAD_SHARD_GRAIN);
}

uint32_t offload__shard_source(uint32_t rank_count, uint32_t rank, uint32_t step)
{
    assert(rank < rank_count && step < rank_count);
    return (rank + step) % rank_count;
}
