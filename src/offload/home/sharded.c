/* offload/home/sharded.c - units of which each of a node's ranks keeps a part on its device.
 *
 * shard.h says who has what. A rank's shards lie in one block of its device's memory, one behind
 * the other in the order of the units; where a peer's shard lies follows from the plan, which all
 * ranks share. An onload gathers the record into its slot: the own shard first, then the next
 * ranks', each from that peer's memory, in one go on the copy stream. Every rank loads every unit,
 * and keeps its part.
 *
 *     device 0:  [u0 0/2][u1 0/2][u2 0/2] ...        slot of device 0:  [u1 0/2|u1 1/2]
 *     device 1:  [u0 1/2][u1 1/2][u2 1/2] ...                              own   peer's */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "offload/internal.h"
#include "offload/home/shard.h"
#include "offload/home/share.h"

struct peer {
    const uint8_t *block;          /* NULL: not opened, or nothing is there */
    uint64_t block_bytes;
};

struct offload__sharded {
    uint32_t rank, count;
    struct peer *peers;            /* [count]; the own one's block is `block` */
    uint64_t *offsets;             /* [unit_count][count]: of a unit's shard in a rank's block */
    struct device_copy *copies;    /* [count]: of the onload that is being queued */
    uint8_t *block;                /* device memory; NULL: this rank has nothing */
    struct device_handle handle;
};

uint64_t offload__sharded_bytes(const struct offload *offload, uint32_t rank)
{
    const uint32_t count = offload__share_count(offload);
    uint64_t size_bytes = 0;

    for (size_t i = 0; i < offload->unit_count; i++) {
        const struct offload__unit *unit = &offload->units[i];

        if (unit->home == OFFLOAD_HOME_SHARDED)
            size_bytes += offload__shard_room(offload__shard(unit->size_bytes, count, rank));
    }
    return size_bytes;
}

uint64_t offload__sharded_own(const struct offload *offload, size_t unit)
{
    return offload__shard(offload->units[unit].size_bytes, offload__share_count(offload),
                          offload__share_rank(offload)).size_bytes;
}

static bool any_sharded(const struct offload *offload)
{
    for (size_t i = 0; i < offload->unit_count; i++) {
        if (offload->units[i].home == OFFLOAD_HOME_SHARDED)
            return true;
    }
    return false;
}

/* Fills offsets and the sizes of blocks. */
static void lay_out(struct offload *offload)
{
    struct offload__sharded *sharded = offload->sharded;

    for (size_t i = 0; i < offload->unit_count; i++) {
        const struct offload__unit *unit = &offload->units[i];

        for (uint32_t r = 0; unit->home == OFFLOAD_HOME_SHARDED && r < sharded->count; r++) {
            struct peer *peer = &sharded->peers[r];

            sharded->offsets[i * sharded->count + r] = peer->block_bytes;
            peer->block_bytes +=
                offload__shard_room(offload__shard(unit->size_bytes, sharded->count, r));
        }
    }
}

static enum status sharded_open(struct offload *offload, struct err *err)
{
    const uint32_t count = offload__share_count(offload);
    struct offload__sharded *sharded;
    uint64_t size_bytes;
    void *memory;
    enum status st;

    if (!any_sharded(offload))
        return STATUS_OK;
    sharded = offload->sharded = calloc(1, sizeof(*sharded));
    if (sharded != NULL) {
        sharded->rank = offload__share_rank(offload);
        sharded->count = count;
        sharded->peers = calloc(count, sizeof(*sharded->peers));
        sharded->offsets = calloc(offload->unit_count * count, sizeof(*sharded->offsets));
        sharded->copies = calloc(count, sizeof(*sharded->copies));
    }
    if (sharded == NULL || sharded->peers == NULL || sharded->offsets == NULL ||
        sharded->copies == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the shards of %zu units",
                       offload->unit_count);
    lay_out(offload);
    size_bytes = sharded->peers[sharded->rank].block_bytes;
    if (size_bytes == 0)
        return STATUS_OK; /* more ranks than there are pieces */
    st = device_shared_alloc(offload->device, DEVICE_USE_WEIGHTS, size_bytes, &memory,
                             &sharded->handle, err);
    if (st != STATUS_OK)
        return err_prefix(err, st, "this rank's shards, 1 of %" PRIu32, count);
    sharded->block = memory;
    sharded->peers[sharded->rank].block = memory;
    return STATUS_OK;
}

static void close_peers(struct offload *offload)
{
    const struct offload__sharded *sharded = offload->sharded;

    for (uint32_t r = 0; sharded->peers != NULL && r < sharded->count; r++) {
        if (r == sharded->rank)
            continue;
        device_peer_close(offload->device, sharded->peers[r].block, sharded->peers[r].block_bytes);
        sharded->peers[r].block = NULL;
    }
}

void offload_peers_close(struct offload *offload)
{
    if (offload->sharded == NULL)
        return;
    (void)stream_sync(offload->copy, NULL); /* it may be fetching for a pass that won't come */
    close_peers(offload);
}

static void sharded_close(struct offload *offload)
{
    struct offload__sharded *sharded = offload->sharded;

    if (sharded == NULL)
        return;
    close_peers(offload);
    if (sharded->block != NULL) {
        assert(sharded->peers != NULL);
        device_shared_free(offload->device, DEVICE_USE_WEIGHTS, sharded->block,
                           sharded->peers[sharded->rank].block_bytes);
    }
    free(sharded->copies);
    free(sharded->offsets);
    free(sharded->peers);
    free(sharded);
    offload->sharded = NULL;
}

static void sharded_offer(struct offload *offload, struct offload__share_offer *offer)
{
    if (offload->sharded != NULL)
        offer->shards = offload->sharded->handle;
}

static enum status sharded_connect(struct offload *offload,
                                   const struct offload__share_offer *offers, struct err *err)
{
    struct offload__sharded *sharded = offload->sharded;
    enum status st = STATUS_OK;

    for (uint32_t r = 0; sharded != NULL && r < sharded->count && st == STATUS_OK; r++) {
        struct peer *peer = &sharded->peers[r];
        const void *memory = NULL;

        if (r == sharded->rank || peer->block_bytes == 0)
            continue;
        st = device_peer_open(offload->device, &offers[r].shards, peer->block_bytes, &memory, err);
        if (st != STATUS_OK)
            return err_prefix(err, st, "the shards of rank %" PRIu32 " of this node", r);
        peer->block = memory;
    }
    return st;
}

/* What of [offset, offset + size) of a record is in the rank's own shard, and where. */
struct overlap {
    uint64_t skip_bytes;  /* from the beginning of the range */
    uint64_t size_bytes;  /* 0: nothing */
    uint8_t *place;       /* on the device */
};

static struct overlap overlap_of(const struct offload *offload, size_t unit, uint64_t offset_bytes,
                                 uint64_t size_bytes)
{
    const struct offload__sharded *sharded = offload->sharded;
    const struct offload__shard shard =
        offload__shard(offload->units[unit].size_bytes, sharded->count, sharded->rank);
    const uint64_t end_bytes = offset_bytes + size_bytes;
    const uint64_t shard_end_bytes = shard.offset_bytes + shard.size_bytes;
    const uint64_t from = offset_bytes > shard.offset_bytes ? offset_bytes : shard.offset_bytes;
    const uint64_t to = end_bytes < shard_end_bytes ? end_bytes : shard_end_bytes;

    if (from >= to)
        return (struct overlap){ 0 };
    return (struct overlap){
        .skip_bytes = from - offset_bytes,
        .size_bytes = to - from,
        .place = sharded->block + sharded->offsets[unit * sharded->count + sharded->rank] +
                 (from - shard.offset_bytes),
    };
}

static enum status sharded_store(struct offload *offload, size_t unit, uint64_t offset_bytes,
                                 const uint8_t *bytes, uint64_t size_bytes, struct err *err)
{
    const struct overlap own = overlap_of(offload, unit, offset_bytes, size_bytes);
    enum status st;

    if (own.size_bytes == 0)
        return STATUS_OK;
    st = device_copy_in(offload->copy, own.place, bytes + own.skip_bytes, own.size_bytes, err);
    return st == STATUS_OK ? stream_sync(offload->copy, err) : st;
}

static enum status sharded_swap(struct offload *offload, size_t unit, uint64_t offset_bytes,
                                uint8_t *bytes, uint64_t size_bytes, struct err *err)
{
    const struct overlap own = overlap_of(offload, unit, offset_bytes, size_bytes);
    void *old = NULL;
    enum status st;

    if (own.size_bytes == 0)
        return STATUS_OK;
    st = device_host_alloc(offload->device, own.size_bytes, &old, err);
    if (st != STATUS_OK)
        return err_prefix(err, st, "a buffer for the old bytes");
    st = device_copy_out(offload->copy, old, own.place, own.size_bytes, err);
    if (st == STATUS_OK)
        st = device_copy_in(offload->copy, own.place, bytes + own.skip_bytes, own.size_bytes, err);
    if (st == STATUS_OK)
        st = stream_sync(offload->copy, err);
    if (st == STATUS_OK)
        memcpy(bytes + own.skip_bytes, old, own.size_bytes);
    else
        (void)stream_sync(offload->copy, NULL); /* nothing may write to `old` any more */
    device_host_free(offload->device, old, own.size_bytes);
    return st;
}

static enum status sharded_fetch_begin(struct offload *offload, struct offload__fetch *fetch,
                                       struct err *err)
{
    const struct offload__sharded *sharded = offload->sharded;
    const uint64_t record_bytes = offload->units[fetch->unit].size_bytes;
    size_t copy_count = 0;
    enum status st = offload__copy_begin(offload, fetch, err);

    for (uint32_t step = 0; step < sharded->count; step++) {
        const uint32_t r = offload__shard_source(sharded->count, sharded->rank, step);
        const struct offload__shard shard = offload__shard(record_bytes, sharded->count, r);

        if (shard.size_bytes == 0)
            continue;
        sharded->copies[copy_count++] = (struct device_copy){
            .dst = fetch->dst + shard.offset_bytes,
            .src = sharded->peers[r].block +
                   sharded->offsets[fetch->unit * sharded->count + r],
            .size_bytes = shard.size_bytes,
        };
    }
    if (st == STATUS_OK)
        st = device_copy_peers(offload->copy, sharded->copies, copy_count, err);
    return st == STATUS_OK ? offload__copy_end(offload, fetch, err) : st;
}

const struct offload__home_ops offload__home_sharded = {
    .name = "sharded",
    .mode = "sharded_gpu",
    .phrase = "at home in shards on the ranks' devices",
    .has_contents = true,
    .is_shared = true,
    .open = sharded_open,
    .close = sharded_close,
    .offer = sharded_offer,
    .connect = sharded_connect,
    .store = sharded_store,
    .swap = sharded_swap,
    .fetch_begin = sharded_fetch_begin,
};
