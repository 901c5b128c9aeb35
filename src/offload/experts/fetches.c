/* offload/experts/fetches.c - experts on their way into slots.
 *
 *     FREE --bring--> under way --arrive--> FREE, the expert is in the cache
 *                        |  ^
 *                    drop|  |hurry            (guesses)
 *                        v  |
 *                      given up --its end--> FREE, the slot too, unless it came all the same
 *
 * What the cache lacks is guessed worse than what it has, as it is chosen less often; and a guess
 * that is wrong costs a read, and the slot of one that may be needed sooner. So the routers' j-th
 * choices are watched, for each j: while fewer than half of those that were missing turn out right,
 * they are not fetched. Measured with a mixture of 24 x 64 experts and a cache of 15 % of them: of
 * all guesses 77 % were right, of those that were missing 38 %, and fetching all of them doubled
 * the bytes read without a gain.
 *
 * Places are taken in turn, so that the times of a copy are long there to be read when its place is
 * used again. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "offload/experts/internal.h"

#define FETCHES_MAX 128
#define FETCHES_MIN 4
#define GUESS_RATE_MIN 0.5        /* see the top */
#define GUESS_RATE_STEP (1.0 / 64) /* the share of the newest in a rate */
#define STAGING_BYTES_MAX (UINT64_C(64) << 20) /* of host memory to read into from a disk */

uint32_t offload__experts_fetch_count(const struct offload *offload)
{
    const struct offload_sizes *sizes = &offload->sizes;
    uint64_t count = sizes->expert_slot_count < FETCHES_MAX ? sizes->expert_slot_count
                                                            : FETCHES_MAX;

    if (count == 0 || offload->in_place)
        return (uint32_t)count;
    return (uint32_t)(offload__experts_staging_max(sizes->expert_slot_bytes, count) /
                      sizes->expert_slot_bytes);
}

uint64_t offload__experts_staging_max(uint64_t slot_bytes, uint64_t slot_count)
{
    uint64_t count = slot_count < FETCHES_MAX ? slot_count : FETCHES_MAX;

    if (count > STAGING_BYTES_MAX / slot_bytes)
        count = STAGING_BYTES_MAX / slot_bytes;
    return (count < FETCHES_MIN ? FETCHES_MIN : count) * slot_bytes;
}

uint64_t offload__experts_copied_bytes(const struct offload *offload)
{
    const struct offload_options *options = &offload->options;
    const uint64_t unit_count = offload->unit_count - offload->ring_count;

    if (!offload_has_experts(offload))
        return 0;
    return unit_count * sizeof(struct op_moe_expert) +
           (options->row_count_max + OFFLOAD_GUESS_ROWS_MAX) * (uint64_t)options->expert_top_k *
               sizeof(int32_t);
}

uint64_t offload__experts_host_bytes(const struct offload *offload)
{
    const struct offload_options *options = &offload->options;
    const uint64_t unit_count = offload->unit_count - offload->ring_count;
    const uint64_t expert_count = offload->expert_count + 1;

    if (!offload_has_experts(offload))
        return 0;
    return OFFLOAD_GUESS_ROWS_MAX * (uint64_t)options->expert_top_k +
           expert_count * (3 * sizeof(struct expert_wait) + 3 * sizeof(uint32_t)) +
           expert_cache_bytes((uint32_t)unit_count, (uint32_t)offload->sizes.expert_slot_count) +
           offload->sizes.expert_slot_count * (sizeof(uint32_t) + OFFLOAD_EVENT_BYTES) +
           offload__experts_fetch_count(offload) *
               (sizeof(struct expert_fetch) + 4 * (uint64_t)OFFLOAD_EVENT_BYTES);
}

enum status offload__expert_fetches_create(struct offload *offload, struct err *err)
{
    struct offload__experts *experts = offload->experts;
    const uint32_t count = offload__experts_fetch_count(offload);
    enum status st = STATUS_OK;

    experts->fetches = calloc((size_t)count + 1, sizeof(*experts->fetches));
    if (experts->fetches == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for reads of experts");
    for (uint32_t i = 0; i < count && st == STATUS_OK; i++) {
        struct expert_fetch *fetch = &experts->fetches[i];

        fetch->slot = EXPERT_NO_SLOT;
        experts->fetch_count++;
        st = offload__fetch_create(offload, &fetch->fetch, err);
        if (st == STATUS_OK)
            st = event_create(offload->device, &fetch->stall_began, err);
        if (st == STATUS_OK)
            st = event_create(offload->device, &fetch->stall_ended, err);
    }
    experts->free_count = experts->fetch_count;
    return st;
}

void offload__expert_fetches_destroy(struct offload *offload)
{
    struct offload__experts *experts = offload->experts;

    for (uint32_t i = 0; i < experts->fetch_count; i++) {
        event_destroy(experts->fetches[i].stall_ended);
        event_destroy(experts->fetches[i].stall_began);
        offload__fetch_destroy(offload, &experts->fetches[i].fetch);
    }
    free(experts->fetches);
    experts->fetches = NULL;
    experts->fetch_count = 0;
}

size_t offload__expert_unit(const struct offload *offload, uint32_t ordinal, uint32_t expert)
{
    return offload->expert_units[offload->experts->layers[ordinal]] + expert;
}

static uint8_t *slot_memory(const struct offload *offload, uint32_t slot)
{
    return offload->experts->slots + slot * offload->sizes.expert_slot_bytes;
}

static void times_count(struct offload *offload, struct expert_fetch *fetch)
{
    if (!fetch->is_uncounted)
        return;
    fetch->is_uncounted = false;
    if (!offload__count_arrived(offload, &fetch->fetch, true) || !fetch->has_stall ||
        event_sync(fetch->stall_ended, NULL) != STATUS_OK)
        return;
    offload__count_wait(offload, &fetch->fetch, event_time_ns(fetch->stall_began),
                        event_time_ns(fetch->stall_ended));
}

void offload__experts_harvest(struct offload *offload)
{
    struct offload__experts *experts = offload->experts;

    if (experts == NULL)
        return;
    for (uint32_t i = 0; i < experts->fetch_count; i++)
        times_count(offload, &experts->fetches[(experts->fetch_next + i) % experts->fetch_count]);
}

static uint32_t place_take(struct offload *offload)
{
    struct offload__experts *experts = offload->experts;
    uint32_t place;

    assert(experts->fetch_count > 0 && experts->free_count > 0);
    do {
        place = experts->fetch_next;
        experts->fetch_next = (place + 1) % experts->fetch_count;
    } while (experts->fetches[place].slot != EXPERT_NO_SLOT);
    times_count(offload, &experts->fetches[place]);
    experts->free_count--;
    return place;
}

void offload__expert_place_give(struct offload *offload, uint32_t place)
{
    struct offload__experts *experts = offload->experts;
    struct expert_fetch *fetch = &experts->fetches[place];

    experts->place_of[fetch->slot] = EXPERT_NO_PLACE;
    experts->guess_place_count -= fetch->is_guess;
    fetch->slot = EXPERT_NO_SLOT;
    fetch->is_guess = fetch->is_dropped = false;
    experts->free_count++;
}

enum status offload__expert_evicted(struct offload *offload, const struct expert_place *place,
                                    struct err *err)
{
    struct offload__experts *experts = offload->experts;
    enum status st = STATUS_OK;

    if (place->has_evicted && place->evicted_unused)
        offload__count_guess_wasted(offload, offload__expert_unit(offload, place->evicted_layer,
                                                                  place->evicted_expert));
    if (place->has_evicted && offload->options.poison) {
        st = device_fill(offload->compute, slot_memory(offload, place->slot), OFFLOAD_POISON,
                         offload->sizes.expert_slot_bytes, err);
        if (st == STATUS_OK)
            st = event_record(offload->compute, experts->ended[place->slot], err);
    }
    return st;
}

static enum status fetch_begin(struct offload *offload, struct expert_fetch *fetch, size_t unit,
                               struct err *err)
{
    fetch->fetch.is_guess = fetch->is_guess;
    return offload__fetch_begin(offload, &fetch->fetch, unit,
                                offload->experts->ended[fetch->slot],
                                slot_memory(offload, fetch->slot), err);
}

enum status offload__expert_bring(struct offload *offload, uint32_t ordinal, uint32_t expert,
                                  uint32_t slot, bool is_guess, uint32_t *place_out,
                                  struct err *err)
{
    struct offload__experts *experts = offload->experts;
    const size_t unit = offload__expert_unit(offload, ordinal, expert);
    const enum offload__path path = offload__path(offload, &offload->units[unit]);
    const uint64_t bytes = offload->units[unit].size_bytes;
    struct expert_fetch *fetch;
    enum status st;

    *place_out = EXPERT_NO_PLACE;
    if (path == OFFLOAD_PATH_NOTHING)
        offload__count_onload(offload, unit, 0);
    if (path == OFFLOAD_PATH_IN_PLACE) /* was at home in meta, and has been loaded since */
        memcpy(slot_memory(offload, slot), offload->units[unit].record, bytes);
    if (path != OFFLOAD_PATH_FETCH) {
        expert_cache_arrived(experts->cache, slot);
        return STATUS_OK;
    }
    *place_out = place_take(offload);
    fetch = &experts->fetches[*place_out];
    fetch->slot = slot;
    fetch->is_guess = is_guess;
    fetch->is_dropped = fetch->has_stall = false;
    experts->guess_place_count += is_guess;
    experts->place_of[slot] = *place_out;
    st = fetch_begin(offload, fetch, unit, err);
    if (st == STATUS_OK && is_guess)
        offload__count_guess(offload, unit, bytes);
    else if (st == STATUS_OK)
        offload__count_onload(offload, unit, bytes);
    return st;
}

bool offload__expert_is_here(const struct offload *offload, uint32_t place)
{
    const struct offload__fetch *fetch = &offload->experts->fetches[place].fetch;

    if (fetch->state == OFFLOAD_FETCH_BEGUN && !offload__fetch_is_ready(offload, fetch))
        return false;
    return !fetch->by_stream || event_is_done(fetch->loaded);
}

/* Ends the fetch of what is demanded. A guess that was given up just before is begun again, and
 * ended too when `wait`. */
static enum status fetch_end(struct offload *offload, struct expert_fetch *fetch, bool wait,
                             struct err *err)
{
    const size_t unit = fetch->fetch.unit;
    enum status st = offload__fetch_end(offload, &fetch->fetch, err);

    if (st != STATUS_CANCELED || !fetch->is_dropped)
        return st;
    fetch->is_dropped = false;
    st = fetch_begin(offload, fetch, unit, err);
    if (st != STATUS_OK)
        return st;
    offload__count_planned(offload, unit);
    offload__count_onload(offload, unit, offload->units[unit].size_bytes);
    return wait ? offload__fetch_end(offload, &fetch->fetch, err) : STATUS_OK;
}

enum status offload__expert_arrive(struct offload *offload, uint32_t place, struct err *err)
{
    struct expert_fetch *fetch = &offload->experts->fetches[place];
    enum status st = event_record(offload->compute, fetch->stall_began, err);

    assert(fetch->slot != EXPERT_NO_SLOT && !fetch->is_guess);
    if (st == STATUS_OK)
        st = fetch_end(offload, fetch, true, err);
    if (st == STATUS_OK && fetch->fetch.by_stream && !offload->options.fault_skip_loaded_wait)
        st = stream_wait(offload->compute, fetch->fetch.loaded, err);
    if (st == STATUS_OK)
        st = event_record(offload->compute, fetch->stall_ended, err);
    if (st != STATUS_OK)
        return st;
    fetch->is_uncounted = fetch->has_stall = true;
    expert_cache_arrived(offload->experts->cache, fetch->slot);
    offload__expert_place_give(offload, place);
    return STATUS_OK;
}

void offload__expert_hurry(struct offload *offload, uint32_t place)
{
    struct offload__experts *experts = offload->experts;
    struct expert_fetch *fetch = &experts->fetches[place];

    if (!fetch->is_guess)
        return;
    experts->guess_place_count--;
    fetch->is_guess = false;
    offload__fetch_hurry(offload, &fetch->fetch);
}

/* A guess whose fetch is ready: pass it on, and note it when it is there. */
static enum status guess_step(struct offload *offload, uint32_t place, struct err *err)
{
    struct offload__experts *experts = offload->experts;
    struct expert_fetch *fetch = &experts->fetches[place];
    enum status st = STATUS_OK;

    if (fetch->fetch.state == OFFLOAD_FETCH_BEGUN)
        st = offload__fetch_end(offload, &fetch->fetch, err);
    /* A guess that could not be read harms nobody: a demand of it would try again, and tell. */
    if ((st == STATUS_CANCELED && fetch->is_dropped) || st == STATUS_IO) {
        offload__count_guess_wasted(offload, fetch->fetch.unit);
        expert_cache_dropped(experts->cache, fetch->slot);
        offload__expert_place_give(offload, place);
        return STATUS_OK;
    }
    if (st != STATUS_OK || (fetch->fetch.by_stream && !event_is_done(fetch->fetch.loaded)))
        return st;
    fetch->is_uncounted = true;
    expert_cache_arrived(experts->cache, fetch->slot);
    offload__expert_place_give(offload, place);
    return STATUS_OK;
}

/* Copies go one after the other, so that a guess ahead of a demand would hold it up: only one is
 * queued at a time. A disk's reader lets demands go first by itself. */
static bool may_begin_guess(const struct offload *offload, size_t unit)
{
    const struct offload__experts *experts = offload->experts;

    if (experts->free_count <= experts->fetch_count / 2)
        return false; /* places are kept for demands */
    return offload__home(offload->units[unit].home)->fetch_drop != NULL ||
           experts->guess_place_count == 0;
}

static enum status guesses_begin(struct offload *offload, struct err *err)
{
    struct offload__experts *experts = offload->experts;
    enum status st = STATUS_OK;

    while (st == STATUS_OK && experts->guess_next < experts->guess_count) {
        const uint32_t expert = experts->guesses[experts->guess_next];
        const size_t unit = offload__expert_unit(offload, experts->guess_ordinal, expert);
        struct expert_place place;
        uint32_t fetch;

        if (!may_begin_guess(offload, unit))
            break;
        experts->guess_next++;
        place = expert_cache_guess(experts->cache, experts->guess_ordinal, expert);
        if (place.answer != EXPERT_MISS)
            continue;
        st = offload__expert_evicted(offload, &place, err);
        if (st == STATUS_OK)
            st = offload__expert_bring(offload, experts->guess_ordinal, expert, place.slot, true,
                                       &fetch, err);
        if (st == STATUS_OK)
            offload__count_planned(offload, unit);
    }
    return st;
}

enum status offload__expert_fetches_step(struct offload *offload, struct err *err)
{
    struct offload__experts *experts = offload->experts;
    enum status st = STATUS_OK;

    for (uint32_t i = 0; i < experts->fetch_count && st == STATUS_OK; i++) {
        struct expert_fetch *fetch = &experts->fetches[i];

        if (fetch->slot == EXPERT_NO_SLOT || !offload__fetch_is_ready(offload, &fetch->fetch))
            continue;
        if (fetch->is_guess)
            st = guess_step(offload, i, err);
        else if (fetch->fetch.state == OFFLOAD_FETCH_BEGUN)
            st = fetch_end(offload, fetch, false, err); /* queues the copy, where there is one */
    }
    return st == STATUS_OK ? guesses_begin(offload, err) : st;
}

void offload__expert_guesses_drop(struct offload *offload)
{
    struct offload__experts *experts = offload->experts;

    experts->guess_count = experts->guess_next = 0;
    for (uint32_t i = 0; i < experts->fetch_count; i++) {
        struct expert_fetch *fetch = &experts->fetches[i];

        if (fetch->slot != EXPERT_NO_SLOT && fetch->is_guess && !fetch->is_dropped)
            fetch->is_dropped = offload__fetch_drop(offload, &fetch->fetch);
    }
}

enum status offload__expert_guess_take(struct offload *offload, struct err *err)
{
    struct offload__experts *experts = offload->experts;
    const uint32_t top_k = offload->options.expert_top_k;
    enum status st;

    if (!experts->guess_is_coming)
        return STATUS_OK;
    experts->guess_is_coming = false;
    st = event_sync(experts->guess_there, err);
    if (st != STATUS_OK)
        return st;
    experts->guess_is_open = true;
    experts->guess_count = experts->guess_next = 0;
    experts->stamp++;
    for (uint32_t j = 0; j < top_k; j++) { /* every row's best first */
        for (uint32_t t = 0; t < experts->row_count; t++) {
            const uint32_t expert = (uint32_t)experts->guess_ids[t * top_k + j];

            assert(expert < offload->expert_count);
            experts->guess_missing[t * top_k + j] =
                expert_cache_find(experts->cache, experts->guess_ordinal, expert) ==
                EXPERT_NO_SLOT;
            if (experts->stamps[expert] == experts->stamp ||
                experts->guess_rates[j] < GUESS_RATE_MIN)
                continue;
            experts->stamps[expert] = experts->stamp;
            experts->guesses[experts->guess_count++] = expert;
        }
    }
    return STATUS_OK;
}

void offload__expert_guess_rate(struct offload *offload)
{
    struct offload__experts *experts = offload->experts;
    const uint32_t top_k = offload->options.expert_top_k;

    if (!experts->guess_is_open || experts->guess_ordinal != experts->ordinal)
        return;
    for (uint32_t i = 0; i < experts->row_count * top_k; i++) {
        const int32_t *chosen = experts->ids + i / top_k * top_k;
        double *rate = &experts->guess_rates[i % top_k];
        bool is_right = false;

        if (!experts->guess_missing[i])
            continue;
        for (uint32_t j = 0; j < top_k; j++)
            is_right = is_right || chosen[j] == experts->guess_ids[i];
        *rate += ((is_right ? 1 : 0) - *rate) * GUESS_RATE_STEP;
    }
    experts->guess_is_open = false;
}
