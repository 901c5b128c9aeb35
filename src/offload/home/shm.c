/* offload/home/shm.c - units whose records lie once in a node's memory, for all of its ranks.
 *
 * The first rank of the node makes one segment with all records, one behind the other in the order
 * of the units, and loads them; the others map it, read-only, and load nothing. So a node holds the
 * bytes once, and their cost is the first rank's: it alone counts them against its host budget.
 * A segment has no name: there is none to be left behind, and what a rank has mapped stays when the
 * first has died. Whoever starts in the place of one that died inherits: it maps the segment of a
 * rank that lives, if the plan is the same, and has nothing to load either. When the rank that
 * fills is no more, the first heir to come takes that over from it.
 *
 *     segment:  records, in the order of units | turn, 8 bytes | filler, 8 bytes
 *
 * The turn says which of a live update's fillings the records are of, for those who outlive the
 * rank that fills; the filler who that is: its process, and its number for the segment's file. */
#include <assert.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/size.h"
#include "cluster/cluster.h"
#include "offload/internal.h"
#include "offload/home/share.h"

#define WHAT "weights in shared memory"

/* Behind the records; not charged: about as much as the page has left. */
struct notes {
    _Atomic uint64_t turn;
    _Atomic uint64_t filler; /* pid << 32 | fd */
};

struct offload__shm {
    struct segment segment;
    uint64_t size_bytes;     /* of the records */
    uint64_t charged_bytes;  /* 0: another rank's */
    bool registered;
    bool inherited;
    bool fills;              /* in a load, or from then on */
};

/* Before there is a segment: whether it will, as far as the plan knows. */
static bool fills(const struct offload *offload)
{
    return offload->shm != NULL ? offload->shm->fills : offload__share_rank(offload) == 0;
}

static struct notes *notes_of(const struct offload__shm *shm)
{
    return (struct notes *)((uint8_t *)shm->segment.memory + shm->size_bytes);
}

static uint64_t own_word(const struct offload__shm *shm)
{
    struct segment_handle own;

    segment_handle(&shm->segment, &own);
    return (uint64_t)own.pid << 32 | (uint64_t)own.fd;
}

/* Whether the rank that fills the records is still there. */
static bool filler_is_there(const struct offload__shm *shm)
{
    const uint64_t word = atomic_load(&notes_of(shm)->filler);
    struct segment_handle handle;

    segment_handle(&shm->segment, &handle); /* the same memory */
    handle.pid = (int64_t)(word >> 32);
    handle.fd = (int64_t)(word & UINT32_MAX);
    return segment_is_there(&handle);
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
        return err_prefix(err, st, WHAT);
    shm->registered = true;
    records_place(offload);
    return STATUS_OK;
}

/* -- inheritance ------------------------------------------------------------------------------- */

bool offload__shm_is_inherited(const struct offload *offload)
{
    return offload->shm != NULL && offload->shm->inherited;
}

bool offload_share_text(const struct offload *offload, char text[OFFLOAD_SHARE_TEXT_BYTES])
{
    const struct offload__shm *shm = offload->shm;
    struct segment_handle own;

    if (shm == NULL || shm->segment.memory == NULL)
        return false;
    segment_handle(&shm->segment, &own);
    (void)snprintf(text, OFFLOAD_SHARE_TEXT_BYTES,
                   "shm %" PRIx64 " %" PRIu64 " %" PRIx64 " %" PRId64 " %" PRId64,
                   offload__share_hash(offload), own.size_bytes, own.cookie, own.pid, own.fd);
    return true;
}

static enum status inherit(struct offload *offload, struct err *err)
{
    struct offload__shm *shm = offload->shm;
    struct segment_handle from = { 0 };
    uint64_t hash = 0;
    enum status st;

    if (sscanf(offload->options.inherited,
               "shm %" SCNx64 " %" SCNu64 " %" SCNx64 " %" SCNd64 " %" SCNd64, &hash,
               &from.size_bytes, &from.cookie, &from.pid, &from.fd) != 5)
        return err_set(err, STATUS_BAD_INPUT, "'%.60s' names no memory",
                       offload->options.inherited);
    if (hash != offload__share_hash(offload))
        return err_set(err, STATUS_PEER, "the ranks that live have another plan");
    st = segment_open(WHAT, &from, shm->size_bytes + sizeof(struct notes), &shm->segment, err);
    shm->inherited = st == STATUS_OK;
    return st;
}

/* When the rank that filled the records is no more, one of its heirs does from now on. */
static enum status shm_loaded(struct offload *offload, struct err *err)
{
    struct offload__shm *shm = offload->shm;
    uint64_t word;
    enum status st;

    if (shm == NULL || !shm->inherited || filler_is_there(shm))
        return STATUS_OK;
    if (device_host_charge(offload->device, shm->size_bytes, err) != STATUS_OK) {
        log_line(offload->log, LOG_WARN, "the weights that ranks share can't be updated: %s",
                 err->message);
        return STATUS_OK; /* they can be read */
    }
    shm->charged_bytes = shm->size_bytes;
    device_host_unregister(offload->device, shm->segment.memory, shm->size_bytes);
    shm->registered = false;
    word = atomic_load(&notes_of(shm)->filler);
    st = segment_take_over(WHAT, &shm->segment, err);
    if (st == STATUS_OK)
        st = register_and_place(offload, err);
    if (st != STATUS_OK)
        return st;
    shm->fills = atomic_compare_exchange_strong(&notes_of(shm)->filler, &word, own_word(shm));
    return STATUS_OK;
}

/* -- the home ---------------------------------------------------------------------------------- */

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
    if (offload->options.inherited != NULL && inherit(offload, err) == STATUS_OK)
        return register_and_place(offload, err);
    if (offload->options.inherited != NULL)
        log_line(offload->log, LOG_WARN, "weights are not shared with the ranks that live, and "
                 "loaded once more: %s", err->message);
    if (offload__share_rank(offload) != 0)
        return STATUS_OK; /* there is nothing before `connect` */
    st = device_host_charge(offload->device, size_bytes, err);
    if (st != STATUS_OK)
        return err_prefix(err, st, WHAT);
    shm->charged_bytes = size_bytes;
    st = segment_create(WHAT, size_bytes + sizeof(struct notes), NULL, &shm->segment, err);
    if (st != STATUS_OK)
        return st;
    shm->fills = true;
    atomic_store(&notes_of(shm)->filler, own_word(shm));
    return register_and_place(offload, err);
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
    if (offload->shm != NULL && fills(offload))
        segment_handle(&offload->shm->segment, &offer->segment);
}

static enum status shm_connect(struct offload *offload, const struct offload__share_offer *offers,
                               struct err *err)
{
    struct offload__shm *shm = offload->shm;
    enum status st;

    if (shm == NULL || fills(offload))
        return STATUS_OK;
    st = segment_open("weights in the first rank's shared memory", &offers[0].segment,
                      shm->size_bytes + sizeof(struct notes), &shm->segment, err);
    return st == STATUS_OK ? register_and_place(offload, err) : st;
}

static bool shm_is_loaded_here(const struct offload *offload, size_t unit)
{
    (void)unit;
    return fills(offload);
}

static uint8_t *shm_record(struct offload *offload, size_t unit)
{
    return fills(offload) ? offload->units[unit].record : NULL;
}

static enum status shm_swap(struct offload *offload, size_t unit, uint64_t offset_bytes,
                            uint8_t *bytes, uint64_t size_bytes, struct err *err)
{
    (void)err;
    if (fills(offload))
        offload__record_swap(offload, unit, offset_bytes, bytes, size_bytes);
    return STATUS_OK;
}

/* -- live updates ------------------------------------------------------------------------------ */

uint64_t offload__shm_turn(const struct offload *offload)
{
    return offload->shm == NULL ? 0 : atomic_load(&notes_of(offload->shm)->turn);
}

void offload__shm_set_turn(struct offload *offload, uint64_t turn)
{
    if (offload->shm != NULL && fills(offload))
        atomic_store(&notes_of(offload->shm)->turn, turn);
}

enum status offload__shm_check_owner(const struct offload *offload, struct err *err)
{
    if (offload->shm == NULL || fills(offload) || filler_is_there(offload->shm))
        return STATUS_OK;
    return err_set(err, STATUS_UNAVAILABLE,
                   "the rank that fills the weights which others of this machine share has ended; "
                   "its successor can take them over, or the server be started again");
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
    .loaded = shm_loaded,
    .record = shm_record,
    .swap = shm_swap,
    .fetch_begin = offload__record_fetch,
};
