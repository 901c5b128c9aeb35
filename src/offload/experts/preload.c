/* offload/experts/preload.c - the favourites of a mixture's routers, brought at the start.
 *
 * They would be missed one after the other, each with computing waiting for it. At the start as
 * many are read at once as reads can be under way, and none is read that would not be soon. */
#include <assert.h>
#include <string.h>

#include "offload/experts/internal.h"

/* What has become of reading them. */
struct preload {
    struct offload *offload;
    bool has_failed;    /* one could not be read, so that no more are begun */
    struct err failure; /* of the first */
};

/* Ends the fetch at this place and has its expert in the cache; or not, when it could not be read:
 * nobody has asked for it yet, and whoever does tries again. */
static enum status arrive(struct preload *preload, uint32_t place, struct err *err)
{
    struct offload *offload = preload->offload;
    struct offload__experts *experts = offload->experts;
    struct expert_fetch *fetch = &experts->fetches[place];
    struct err why;
    enum status st = offload__fetch_end(offload, &fetch->fetch, &why);

    if (st == STATUS_OK && fetch->fetch.by_stream)
        st = event_sync(fetch->fetch.loaded, &why);
    if (st != STATUS_OK && st != STATUS_IO)
        return err_set(err, st, "%s", why.message);
    if (st == STATUS_OK)
        expert_cache_arrived(experts->cache, fetch->slot);
    else
        expert_cache_dropped(experts->cache, fetch->slot);
    offload__expert_place_give(offload, place);
    if (st == STATUS_IO && !preload->has_failed)
        preload->failure = why;
    preload->has_failed = preload->has_failed || st == STATUS_IO;
    return STATUS_OK;
}

/* All that are under way; or, when no place is free, those that are there already and the next. */
static enum status collect(struct preload *preload, bool all, struct err *err)
{
    struct offload *offload = preload->offload;
    struct offload__experts *experts = offload->experts;
    enum status st = STATUS_OK;

    for (uint32_t i = 0; i < experts->fetch_count && st == STATUS_OK; i++) {
        const uint32_t place = (experts->fetch_next + i) % experts->fetch_count;

        if (experts->fetches[place].slot == EXPERT_NO_SLOT)
            continue;
        if (all || experts->free_count == 0 || offload__expert_is_here(offload, place))
            st = arrive(preload, place, err);
    }
    return st;
}

enum status offload__experts_preload(struct offload *offload, const struct progress *progress,
                                     struct err *err)
{
    struct offload__experts *experts = offload->experts;
    const uint32_t *order = offload__routing_order(offload);
    struct preload preload = { .offload = offload };
    uint64_t slot_count;
    enum status st = STATUS_OK;

    if (experts == NULL || experts->cache == NULL || order == NULL)
        return STATUS_OK;
    slot_count = offload->sizes.expert_slot_count;
    for (uint64_t i = 0; i < slot_count && st == STATUS_OK; i++) {
        const uint32_t ordinal = order[i] / offload->expert_count;
        const uint32_t expert = order[i] % offload->expert_count;
        const double rate = offload__routing_rate(offload, order[i]);
        struct expert_place place;
        uint32_t fetch;

        if (rate == 0)
            break;
        if (experts->free_count == 0)
            st = collect(&preload, false, err);
        if (st != STATUS_OK || preload.has_failed)
            break;
        place = expert_cache_preload(experts->cache, ordinal, expert, rate);
        assert(place.answer == EXPERT_MISS); /* there is a slot for each */
        st = offload__expert_bring(offload, ordinal, expert, place.slot, false, &fetch, err);
        progress_update(progress, "loading favourites", (i + 1) * offload->sizes.expert_slot_bytes,
                        slot_count * offload->sizes.expert_slot_bytes);
    }
    if (st == STATUS_OK)
        st = collect(&preload, true, err);
    if (st == STATUS_OK && preload.has_failed)
        log_line(offload->log, LOG_WARN,
                 "favourite experts: %s; what has not come yet is read when it is asked for",
                 preload.failure.message);
    /* What comes before the first pass is no part of any schedule. */
    memset(offload->counters, 0, offload->unit_count * sizeof(*offload->counters));
    return st == STATUS_OK ? st : err_prefix(err, st, "the favourite experts");
}
