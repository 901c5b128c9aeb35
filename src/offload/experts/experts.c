/* offload/experts/experts.c - experts as units: a layer's turns.
 *
 *     ids of the router --> distinct experts --> demand of the cache
 *                                                   |        |        |
 *                                                  hit    arriving   miss, fetch begun
 *                                                   v        v        v
 *                                                 ready <- - waiting - -
 *                                                   |
 *                                                 a turn: list to the device, ops, done
 *
 * The first turn has the hits, so that they are computed while the rest comes; each further one
 * what has arrived by then. When a turn is done its slots are marked as read on the compute stream
 * and unpinned: a slot may be given away at once, as the next copy into it waits for the mark. A
 * layer that demands more experts than there are slots goes on with the rest then.
 *
 * A pass of so many rows that nearly all experts would be demanded streams all of them instead
 * (stream.c): a token chooses k of E, so that r rows are expected to choose
 * E (1 - (1 - k/E)^r) different ones. Waiting for the router costs more than fetching a tenth in
 * vain, so that is where it changes.
 *
 * Where the homes are the device's memory, nothing is fetched and nothing is cached: one turn has
 * them all.
 *
 * Per layer: no allocation. The one wait is for the router's ids, unless an expert is missing. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "offload/experts/internal.h"

#define POLICY EXPERT_POLICY_FORECAST /* docs/offloading.md, "Experts", says why */
#define STREAM_SHARE 0.9              /* of a layer's experts, from which on all are brought */
#define STREAM_SLOTS 16

bool offload_has_experts(const struct offload *offload)
{
    return offload->expert_units != NULL;
}

static enum status ordinals_create(struct offload *offload, struct err *err)
{
    struct offload__experts *experts = offload->experts;

    experts->ordinals = calloc((size_t)offload->layer_count + 1, sizeof(uint32_t));
    experts->layers = calloc((size_t)offload->layer_count + 1, sizeof(uint32_t));
    if (experts->ordinals == NULL || experts->layers == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for experts");
    for (uint32_t layer = 0; layer < offload->layer_count; layer++) {
        if (offload->expert_units[layer] == OFFLOAD_NO_UNIT)
            continue;
        experts->ordinals[layer] = experts->layer_count;
        experts->layers[experts->layer_count++] = layer;
    }
    return STATUS_OK;
}

static enum status arrays_create(struct offload *offload, struct err *err)
{
    struct offload__experts *experts = offload->experts;
    const size_t count = (size_t)offload->expert_count + 1;
    const uint32_t top_k = offload->options.expert_top_k;

    experts->stamps = calloc(count, sizeof(*experts->stamps));
    experts->ready = calloc(count, sizeof(*experts->ready));
    experts->waiting = calloc(count, sizeof(*experts->waiting));
    experts->left = calloc(count, sizeof(*experts->left));
    experts->guesses = calloc(count, sizeof(*experts->guesses));
    experts->guess_missing = calloc(OFFLOAD_GUESS_ROWS_MAX * (size_t)top_k + 1, sizeof(bool));
    experts->guess_rates = calloc((size_t)top_k + 1, sizeof(double));
    experts->stream_window = offload->expert_count;
    experts->stream = calloc(count, sizeof(*experts->stream));
    if (experts->stamps == NULL || experts->ready == NULL || experts->waiting == NULL ||
        experts->left == NULL || experts->guesses == NULL || experts->stream == NULL ||
        experts->guess_missing == NULL || experts->guess_rates == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %u experts", offload->expert_count);
    for (uint32_t j = 0; j < top_k; j++)
        experts->guess_rates[j] = 0.6; /* until it is known better */
    return STATUS_OK;
}

/* Host memory that the device copies from and to. */
static enum status host_create(struct offload *offload, struct err *err)
{
    struct offload__experts *experts = offload->experts;
    const uint64_t top_k = offload->options.expert_top_k;
    void *memory = NULL;
    enum status st;

    experts->staged_bytes =
        (uint64_t)experts->layer_count * offload->expert_count * sizeof(*experts->staged);
    st = device_host_alloc(offload->device, experts->staged_bytes, &memory, err);
    if (st != STATUS_OK)
        return st;
    experts->staged = memory;
    experts->ids_bytes = offload->options.row_count_max * top_k * sizeof(int32_t);
    st = device_host_alloc(offload->device, experts->ids_bytes, &memory, err);
    if (st != STATUS_OK)
        return st;
    experts->ids = memory;
    experts->guess_ids_bytes = OFFLOAD_GUESS_ROWS_MAX * top_k * sizeof(int32_t);
    st = device_host_alloc(offload->device, experts->guess_ids_bytes, &memory, err);
    if (st != STATUS_OK)
        return st;
    experts->guess_ids = memory;
    return STATUS_OK;
}

struct expert_cache_desc offload__experts_cache_desc(const struct offload *offload,
                                                     uint32_t layer_count)
{
    const uint32_t slot_count = (uint32_t)offload->sizes.expert_slot_count;

    return (struct expert_cache_desc){
        .layer_count = layer_count, .expert_count = offload->expert_count,
        .slot_count = slot_count, .reserve_count = offload->options.expert_top_k,
        .stream_count = STREAM_SLOTS < slot_count / 2 ? STREAM_SLOTS
                        : slot_count > 1              ? slot_count / 2 : 1,
        .policy = POLICY,
    };
}

static enum status slots_create(struct offload *offload, struct err *err)
{
    struct offload__experts *experts = offload->experts;
    const struct offload_sizes *sizes = &offload->sizes;
    const uint32_t slot_count = (uint32_t)sizes->expert_slot_count;
    const struct expert_cache_desc desc =
        offload__experts_cache_desc(offload, experts->layer_count);
    enum status st;
    void *memory;

    if (slot_count == 0)
        return STATUS_OK;
    st = device_alloc(offload->device, DEVICE_USE_SLOTS, slot_count * sizes->expert_slot_bytes,
                      &memory, err);
    if (st != STATUS_OK)
        return err_prefix(err, st, "%u slots of %llu bytes for experts", slot_count,
                          (unsigned long long)sizes->expert_slot_bytes);
    experts->slots = memory;
    experts->place_of = malloc(slot_count * sizeof(*experts->place_of));
    experts->ended = calloc(slot_count, sizeof(struct event *));
    if (experts->place_of == NULL || experts->ended == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %u slots of experts", slot_count);
    memset(experts->place_of, 0xff, slot_count * sizeof(*experts->place_of));
    for (uint32_t i = 0; i < slot_count && st == STATUS_OK; i++)
        st = event_create(offload->device, &experts->ended[i], err);
    if (st == STATUS_OK && (offload->options.poison || offload->options.home == OFFLOAD_HOME_META))
        st = device_fill(offload->compute, experts->slots,
                         offload->options.home == OFFLOAD_HOME_META ? 0 : OFFLOAD_POISON,
                         slot_count * sizes->expert_slot_bytes, err);
    if (st == STATUS_OK)
        st = stream_sync(offload->compute, err);
    if (st == STATUS_OK)
        st = expert_cache_create(&desc, &experts->cache, err);
    return st == STATUS_OK ? offload__expert_fetches_create(offload, err) : st;
}

enum status offload__experts_create(struct offload *offload, struct err *err)
{
    struct offload__experts *experts;
    enum status st;
    void *memory;

    if (!offload_has_experts(offload))
        return STATUS_OK;
    experts = calloc(1, sizeof(*experts));
    if (experts == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for experts");
    offload->experts = experts;
    st = ordinals_create(offload, err);
    if (st == STATUS_OK)
        st = arrays_create(offload, err);
    if (st == STATUS_OK)
        st = host_create(offload, err);
    if (st == STATUS_OK)
        st = event_create(offload->device, &experts->ids_there, err);
    if (st == STATUS_OK)
        st = event_create(offload->device, &experts->guess_there, err);
    if (st == STATUS_OK)
        st = device_alloc(offload->device, DEVICE_USE_SLOTS, offload->sizes.expert_list_bytes,
                          &memory, err);
    if (st != STATUS_OK)
        return st;
    experts->list = memory;
    return slots_create(offload, err);
}

void offload__experts_destroy(struct offload *offload)
{
    struct offload__experts *experts = offload->experts;
    const struct offload_sizes *sizes = &offload->sizes;

    if (experts == NULL)
        return;
    offload__expert_fetches_destroy(offload);
    expert_cache_destroy(experts->cache);
    for (uint64_t i = 0; experts->ended != NULL && i < sizes->expert_slot_count; i++)
        event_destroy(experts->ended[i]);
    free(experts->ended);
    free(experts->place_of);
    device_free(offload->device, DEVICE_USE_SLOTS, experts->slots,
                sizes->expert_slot_count * sizes->expert_slot_bytes);
    device_free(offload->device, DEVICE_USE_SLOTS, experts->list, sizes->expert_list_bytes);
    event_destroy(experts->guess_there);
    event_destroy(experts->ids_there);
    device_host_free(offload->device, experts->guess_ids, experts->guess_ids_bytes);
    device_host_free(offload->device, experts->ids, experts->ids_bytes);
    device_host_free(offload->device, experts->staged, experts->staged_bytes);
    free(experts->stream);
    free(experts->guess_rates);
    free(experts->guess_missing);
    free(experts->guesses);
    free(experts->left);
    free(experts->waiting);
    free(experts->ready);
    free(experts->stamps);
    free(experts->layers);
    free(experts->ordinals);
    free(experts);
    offload->experts = NULL;
}

void offload__experts_abandon(struct offload *offload)
{
    struct offload__experts *experts = offload->experts;

    if (experts == NULL || experts->cache == NULL)
        return;
    for (uint32_t i = 0; i < experts->fetch_count; i++) {
        struct expert_fetch *fetch = &experts->fetches[i];

        offload__fetch_abandon(offload, &fetch->fetch);
        fetch->is_guess = fetch->is_dropped = fetch->is_uncounted = false;
        fetch->slot = EXPERT_NO_SLOT;
    }
    experts->free_count = experts->fetch_count;
    experts->guess_place_count = 0;
    experts->guess_is_coming = experts->guess_is_open = false;
    experts->guess_count = experts->guess_next = 0;
    experts->ready_count = experts->waiting_count = experts->left_count = 0;
    memset(experts->place_of, 0xff,
           offload->sizes.expert_slot_count * sizeof(*experts->place_of));
    expert_cache_clear(experts->cache);
}

void offload__experts_forget(struct offload *offload, size_t unit)
{
    /* All are forgotten: weights change seldom, and what is on its way is then no question. */
    if (offload->experts != NULL && unit >= offload->ring_count)
        offload__experts_abandon(offload);
}

static double distinct_expected(const struct offload *offload, uint32_t row_count)
{
    const double share = (double)offload->options.expert_top_k / offload->expert_count;

    return offload->expert_count * (1 - pow(1 - share, row_count));
}

enum status offload_experts_pass(struct offload *offload, uint32_t row_count, struct err *err)
{
    struct offload__experts *experts = offload->experts;
    enum status st = offload__torn_check(offload, err);

    if (experts == NULL || st != STATUS_OK)
        return st;
    assert(row_count > 0 && row_count <= offload->options.row_count_max);
    offload__count_pass_begin(offload);
    experts->row_count = row_count;
    experts->guess_is_open = false;
    experts->streams = experts->cache != NULL && distinct_expected(offload, row_count) >=
                                                     STREAM_SHARE * offload->expert_count;
    if (experts->cache == NULL)
        return STATUS_OK;
    offload__routing_pass(offload, experts->streams);
    st = offload__disk_check(offload, err);
    if (st != STATUS_OK || !experts->streams)
        return st;
    offload__expert_guesses_drop(offload);
    expert_cache_layer_begin(experts->cache, 0);
    return offload__expert_stream_begin(offload, err);
}

/* Brings an expert that the cache has missed. */
static enum status bring(struct offload *offload, struct expert_wait *wait, struct err *err)
{
    const uint32_t ordinal = offload->experts->ordinal;
    const enum status st = offload__expert_bring(offload, ordinal, wait->expert, wait->slot, false,
                                                 &wait->place, err);

    if (st == STATUS_OK)
        offload__count_planned(offload, offload__expert_unit(offload, ordinal, wait->expert));
    return st;
}

/* Asks the cache for an expert of the layer and puts it where the answer says. */
static enum status demand(struct offload *offload, uint32_t expert, struct err *err)
{
    struct offload__experts *experts = offload->experts;
    const size_t unit = offload__expert_unit(offload, experts->ordinal, expert);
    const struct expert_place place = expert_cache_demand(experts->cache, expert);
    struct expert_wait wait = { expert, place.slot, EXPERT_NO_PLACE };
    enum status st = STATUS_OK;

    if (place.answer == EXPERT_NO_ROOM) {
        experts->left[experts->left_count++] = expert;
        return STATUS_OK;
    }
    offload__count_asked(offload, unit, place.answer != EXPERT_MISS);
    if (place.was_guessed)
        offload__count_guess_used(offload, unit);
    if (place.answer == EXPERT_ARRIVING) {
        wait.place = experts->place_of[place.slot];
        offload__expert_hurry(offload, wait.place);
    } else if (place.answer == EXPERT_MISS) {
        st = offload__expert_evicted(offload, &place, err);
        if (st == STATUS_OK && experts->free_count > 0)
            st = bring(offload, &wait, err);
    }
    if (expert_cache_is_ready(experts->cache, place.slot))
        experts->ready[experts->ready_count++] = wait;
    else
        experts->waiting[experts->waiting_count++] = wait;
    return st;
}

/* Demands what the rows chose: first what is there, as a miss might else take its slot. */
static enum status demand_all(struct offload *offload, struct err *err)
{
    struct offload__experts *experts = offload->experts;
    const uint64_t choice_count =
        (uint64_t)experts->row_count * offload->options.expert_top_k;
    uint32_t missing_count = 0;
    enum status st = STATUS_OK;

    experts->stamp++;
    for (uint64_t i = 0; i < choice_count && st == STATUS_OK; i++) {
        const uint32_t expert = (uint32_t)experts->ids[i];

        assert(expert < offload->expert_count);
        if (experts->stamps[expert] == experts->stamp)
            continue;
        experts->stamps[expert] = experts->stamp;
        if (expert_cache_find(experts->cache, experts->ordinal, expert) != EXPERT_NO_SLOT)
            st = demand(offload, expert, err);
        else
            experts->left[missing_count++] = expert;
    }
    /* demand() puts what finds no room to the front of `left` again, behind where this reads */
    for (uint32_t i = 0; i < missing_count && st == STATUS_OK; i++)
        st = demand(offload, experts->left[i], err);
    return st;
}

enum status offload_experts_begin(struct offload *offload, uint32_t layer, const int32_t *ids,
                                  struct err *err)
{
    struct offload__experts *experts = offload->experts;
    enum status st;

    assert(experts != NULL && layer < offload->layer_count);
    assert(offload->expert_units[layer] != OFFLOAD_NO_UNIT);
    experts->ordinal = experts->ordinals[layer];
    experts->is_first = true;
    experts->staged_count = 0;
    experts->ready_count = experts->waiting_count = experts->left_count = 0;
    if (experts->cache == NULL)
        return STATUS_OK;
    if (experts->ordinal > 0 || !experts->streams)
        expert_cache_layer_begin(experts->cache, experts->ordinal);
    if (experts->streams)
        return offload__expert_stream_step(offload, err);
    st = device_copy_out(offload->compute, experts->ids, ids,
                         (uint64_t)experts->row_count * offload->options.expert_top_k *
                             sizeof(*ids), err);
    if (st == STATUS_OK)
        st = event_record(offload->compute, experts->ids_there, err);
    if (st == STATUS_OK)
        st = event_sync(experts->ids_there, err);
    if (st == STATUS_OK) {
        offload__expert_guess_rate(offload);
        offload__routing_note(offload, experts->ordinal, experts->ids, experts->row_count);
    }
    if (st == STATUS_OK)
        st = demand_all(offload, err);
    offload__expert_guesses_drop(offload); /* what they were right about is demanded now */
    return st;
}

bool offload_experts_wants_guess(const struct offload *offload, uint32_t layer)
{
    const struct offload__experts *experts = offload->experts;

    return experts != NULL && experts->cache != NULL && !experts->streams &&
           layer < offload->layer_count && offload->expert_units[layer] != OFFLOAD_NO_UNIT &&
           experts->row_count <= OFFLOAD_GUESS_ROWS_MAX &&
           offload->sizes.expert_slot_count > offload->options.expert_top_k;
}

enum status offload_experts_guess(struct offload *offload, uint32_t layer, const int32_t *ids,
                                  struct err *err)
{
    struct offload__experts *experts = offload->experts;
    enum status st = device_copy_out(offload->compute, experts->guess_ids, ids,
                                     (uint64_t)experts->row_count * offload->options.expert_top_k *
                                         sizeof(*ids), err);

    if (st == STATUS_OK)
        st = event_record(offload->compute, experts->guess_there, err);
    experts->guess_ordinal = experts->ordinals[layer];
    experts->guess_is_coming = st == STATUS_OK;
    return st;
}

/* Goes on with what had no room or no fetch, as far as there is some now. */
static enum status go_on(struct offload *offload, struct err *err)
{
    struct offload__experts *experts = offload->experts;
    const uint32_t left_count = experts->left_count;
    enum status st = STATUS_OK;

    for (uint32_t i = 0; i < experts->waiting_count && st == STATUS_OK; i++) {
        struct expert_wait *wait = &experts->waiting[i];

        if (wait->place == EXPERT_NO_PLACE && experts->free_count > 0)
            st = bring(offload, wait, err);
    }
    experts->left_count = 0;
    for (uint32_t i = 0; i < left_count && st == STATUS_OK; i++)
        st = demand(offload, experts->left[i], err);
    return st == STATUS_OK ? offload__expert_fetches_step(offload, err) : st;
}

/* Moves to `ready` what has arrived; the first that was begun when `wait` and none has. */
static enum status collect(struct offload *offload, bool wait, struct err *err)
{
    struct offload__experts *experts = offload->experts;
    uint32_t kept = 0;
    enum status st = STATUS_OK;

    for (uint32_t i = 0; i < experts->waiting_count; i++) {
        const struct expert_wait entry = experts->waiting[i];
        const bool is_begun = entry.place != EXPERT_NO_PLACE;

        if (st == STATUS_OK && is_begun &&
            (wait || offload__expert_is_here(offload, entry.place))) {
            wait = false;
            st = offload__expert_arrive(offload, entry.place, err);
            experts->ready[experts->ready_count++] = entry;
        } else {
            experts->waiting[kept++] = entry;
        }
    }
    experts->waiting_count = kept;
    return st;
}

static int by_expert(const void *a, const void *b)
{
    const uint32_t first = ((const struct expert_wait *)a)->expert;
    const uint32_t second = ((const struct expert_wait *)b)->expert;

    return first < second ? -1 : first > second;
}

/* Sends the list of what is ready. Each expert is in one turn of its layer, so that the staged
 * entries of a pass don't meet. */
static enum status list_send(struct offload *offload, struct err *err)
{
    struct offload__experts *experts = offload->experts;
    struct op_moe_expert *staged =
        experts->staged + (uint64_t)experts->ordinal * offload->expert_count +
        experts->staged_count;

    qsort(experts->ready, experts->ready_count, sizeof(*experts->ready), by_expert);
    for (uint32_t i = 0; i < experts->ready_count; i++) {
        const struct expert_wait *wait = &experts->ready[i];
        const size_t unit = offload__expert_unit(offload, experts->ordinal, wait->expert);
        const uint8_t *record = offload->units[unit].record;

        if (experts->cache != NULL)
            record = experts->slots + wait->slot * offload->sizes.expert_slot_bytes;
        staged[i] = offload__expert_at(offload, unit, record);
    }
    experts->staged_count += experts->ready_count;
    assert(experts->staged_count <= offload->expert_count);
    return device_copy_in(offload->compute, experts->list, staged,
                          experts->ready_count * sizeof(*staged), err);
}

static enum status demanded_next(struct offload *offload, struct err *err)
{
    struct offload__experts *experts = offload->experts;
    enum status st = offload__expert_fetches_step(offload, err);

    if (st == STATUS_OK && !experts->is_first)
        st = collect(offload, false, err);
    if (st == STATUS_OK && experts->ready_count == 0)
        st = collect(offload, true, err);
    return st;
}

enum status offload_experts_next(struct offload *offload, struct offload_experts_turn *turn_out,
                                 struct err *err)
{
    struct offload__experts *experts = offload->experts;
    bool is_last = true;
    enum status st = STATUS_OK;

    assert(experts != NULL);
    if (experts->cache == NULL) {
        for (uint32_t i = 0; i < offload->expert_count; i++)
            experts->ready[i] = (struct expert_wait){ i, EXPERT_NO_SLOT, EXPERT_NO_PLACE };
        experts->ready_count = offload->expert_count;
    } else if (experts->streams) {
        st = offload__expert_stream_next(offload, &is_last, err);
    } else {
        if (experts->is_first && !offload->in_place)
            offload__count_stall(offload, offload__expert_unit(offload, experts->ordinal, 0),
                                 OFFLOAD_STALL_ROUTER, event_time_ns(experts->ids_there),
                                 clock_now_ns());
        st = demanded_next(offload, err);
        is_last = experts->waiting_count == 0 && experts->left_count == 0;
    }
    if (st == STATUS_OK)
        st = list_send(offload, err);
    if (st != STATUS_OK)
        return st;
    *turn_out = (struct offload_experts_turn){ experts->list, experts->ready_count,
                                               experts->is_first, is_last };
    experts->is_first = false;
    return STATUS_OK;
}

enum status offload_experts_done(struct offload *offload, struct err *err)
{
    struct offload__experts *experts = offload->experts;
    enum status st = STATUS_OK;

    for (uint32_t i = 0; experts->cache != NULL && i < experts->ready_count; i++) {
        const uint32_t slot = experts->ready[i].slot;

        if (st == STATUS_OK)
            st = event_record(offload->compute, experts->ended[slot], err);
        expert_cache_unpin(experts->cache, slot);
    }
    experts->ready_count = 0;
    if (st != STATUS_OK || experts->cache == NULL)
        return st;
    if (experts->streams)
        return offload__expert_stream_step(offload, err);
    st = offload__expert_guess_take(offload, err);
    return st == STATUS_OK ? go_on(offload, err) : st;
}
