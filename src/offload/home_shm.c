/* offload/home_shm.c - units whose records lie once in a node's memory, for all of its ranks.
 *
 * The first rank of the node makes one segment with all records, one behind the other in the order
 * of the units, and loads them; the others map it, read-only, and load nothing. So a node holds the
 * bytes once, and their cost is the first rank's: it alone counts them against its host budget.
 * A segment has no name: there is none to be left behind, and what a rank has mapped stays when the
 * first has died.
 *
 *     segment:  records, in the order of units | turn, 8 bytes
 *
 * The turn says which of a live update's fillings the records are of, for those who outlive the
 * rank that fills. */
#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "cluster/cluster.h"

#include "base/size.h"
#include "offload/internal.h"
#include "offload/share.h"

#define TURN_BYTES 8u /* not charged: about as much as the page has left */

struct offload__shm {
    struct segment segment;
    uint64_t size_bytes;     /* of the records */
    uint64_t charged_bytes;  /* 0: another rank's */
    bool registered;
};

static bool is_owner(const struct offload *offload)
{
    return offload__share_rank(offload) == 0;
}

/* Gives the units their places in the segment. */
static void records_place(struct offload *offload)
{
    uint8_t *base = offload->shm->segment.memory;

    for (size_t i = 0; i < offload->unit_count; i++) {
        struct offload__unit *unit = &offload->units[i];

        if (unit->home != OFFLOAD_HOME_SHM)
            continue;
        unit->record = base;
        base += unit->size_bytes;
    }
}

static enum status register_and_place(struct offload *offload, struct err *err)
{
    struct offload__shm *shm = offload->shm;
    const enum status st = device_host_register(offload->device, shm->segment.memory,
                                                shm->size_bytes, err);

    if (st != STATUS_OK)
        return err_prefix(err, st, "weights in shared memory");
    shm->registered = true;
    records_place(offload);
    return STATUS_OK;
}

static enum status shm_open_home(struct offload *offload, struct err *err)
{
    struct offload__shm *shm;
    uint64_t size_bytes = 0;
    enum status st;

    for (size_t i = 0; i < offload->unit_count; i++) {
        const struct offload__unit *unit = &offload->units[i];

        assert(unit->size_bytes % DEVICE_ALIGNMENT == 0);
        if (unit->home == OFFLOAD_HOME_SHM)
            size_bytes += unit->size_bytes; /* the plan has checked the sum */
    }
    if (size_bytes == 0)
        return STATUS_OK;
    shm = offload->shm = calloc(1, sizeof(*shm));
    if (shm == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a home in shared memory");
    shm->size_bytes = size_bytes;
    if (!is_owner(offload))
        return STATUS_OK; /* there is nothing before `connect` */
    st = device_host_charge(offload->device, size_bytes, err);
    if (st != STATUS_OK)
        return err_prefix(err, st, "weights in shared memory");
    shm->charged_bytes = size_bytes;
    st = segment_create("weights in shared memory", size_bytes + TURN_BYTES, NULL, &shm->segment,
                        err);
    return st == STATUS_OK ? register_and_place(offload, err) : st;
}

static void shm_close_home(struct offload *offload)
{
    struct offload__shm *shm = offload->shm;

    if (shm == NULL)
        return;
    for (size_t i = 0; i < offload->unit_count; i++) {
        if (offload->units[i].home == OFFLOAD_HOME_SHM)
            offload->units[i].record = NULL;
    }
    if (shm->registered)
        device_host_unregister(offload->device, shm->segment.memory, shm->size_bytes);
    segment_close(&shm->segment);
    if (shm->charged_bytes > 0)
        device_host_discharge(offload->device, shm->charged_bytes);
    free(shm);
    offload->shm = NULL;
}

static void shm_offer(struct offload *offload, struct offload__share_offer *offer)
{
    if (offload->shm != NULL && is_owner(offload))
        segment_handle(&offload->shm->segment, &offer->segment);
}

static enum status shm_connect(struct offload *offload, const struct offload__share_offer *offers,
                               struct err *err)
{
    struct offload__shm *shm = offload->shm;
    enum status st;

    if (shm == NULL || is_owner(offload))
        return STATUS_OK;
    st = segment_open("weights in the first rank's shared memory", &offers[0].segment,
                      shm->size_bytes + TURN_BYTES, &shm->segment, err);
    return st == STATUS_OK ? register_and_place(offload, err) : st;
}

static bool shm_is_loaded_here(const struct offload *offload, size_t unit)
{
    (void)unit;
    return is_owner(offload);
}

static uint8_t *shm_record(struct offload *offload, size_t unit)
{
    return is_owner(offload) ? offload->units[unit].record : NULL;
}

static enum status shm_swap(struct offload *offload, size_t unit, uint64_t offset_bytes,
                            uint8_t *bytes, uint64_t size_bytes, struct err *err)
{
    (void)err;
    if (is_owner(offload))
        offload__record_swap(offload, unit, offset_bytes, bytes, size_bytes);
    return STATUS_OK;
}

/* -- live updates ------------------------------------------------------------------------------ */

static _Atomic uint64_t *turn_of(const struct offload__shm *shm)
{
    return (_Atomic uint64_t *)((uint8_t *)shm->segment.memory + shm->size_bytes);
}

uint64_t offload__shm_turn(const struct offload *offload)
{
    return offload->shm == NULL ? 0 : atomic_load(turn_of(offload->shm));
}

void offload__shm_set_turn(struct offload *offload, uint64_t turn)
{
    if (offload->shm != NULL && is_owner(offload))
        atomic_store(turn_of(offload->shm), turn);
}

enum status offload__shm_check_owner(const struct offload *offload, struct err *err)
{
    if (offload->shm == NULL || is_owner(offload) ||
        cluster_node_rank_lives(offload->options.cluster, 0))
        return STATUS_OK;
    return err_set(err, STATUS_UNAVAILABLE,
                   "the first rank of this node has ended, which alone can change the weights that "
                   "the others share; the server must be started again with the new ones");
}

const struct offload__home_ops offload__home_shm = {
    .name = "shm",
    .mode = "shm_cpu",
    .phrase = "at home in shared memory",
    .phrase_in_place = "at home in shared memory, used in place",
    .has_contents = true,
    .is_host_memory = true,
    .is_shared = true,
    .open = shm_open_home,
    .close = shm_close_home,
    .offer = shm_offer,
    .connect = shm_connect,
    .is_loaded_here = shm_is_loaded_here,
    .record = shm_record,
    .swap = shm_swap,
    .fetch_begin = offload__record_fetch,
};
