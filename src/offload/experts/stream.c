/* offload/experts/stream.c - passes that take all experts of all layers in a fixed order.
 *
 * Nearly every expert is chosen by some row, so all are brought, and nobody waits for the router:
 *
 *     asked for   |.......LL.EEEEEE aaaaaaa|        E there, L in a turn, a on its way
 *                          ^stream_at     ^stream_head
 *
 * What the cache holds is used from there. The window is as wide as experts can be on their way, so
 * that the home is always busy; it ends with the pass, as nobody knows what the next one is. */
#include <assert.h>

#include "offload/experts/internal.h"

static struct expert_wait *entry_at(const struct offload__experts *experts, uint64_t number)
{
    return &experts->stream[number % experts->stream_window];
}

enum status offload__expert_stream_step(struct offload *offload, struct err *err)
{
    struct offload__experts *experts = offload->experts;
    const uint64_t total = (uint64_t)experts->layer_count * offload->expert_count;
    enum status st = offload__expert_fetches_step(offload, err);

    while (st == STATUS_OK && experts->stream_head < total && experts->free_count > 0 &&
           experts->stream_head - experts->stream_at < experts->stream_window) {
        const uint32_t ordinal = (uint32_t)(experts->stream_head / offload->expert_count);
        const uint32_t expert = (uint32_t)(experts->stream_head % offload->expert_count);
        const size_t unit = offload__expert_unit(offload, ordinal, expert);
        const struct expert_place place = expert_cache_stream(experts->cache, ordinal, expert);
        struct expert_wait *entry = entry_at(experts, experts->stream_head);

        if (place.answer == EXPERT_NO_ROOM)
            break;
        *entry = (struct expert_wait){ expert, place.slot, experts->place_of[place.slot] };
        offload__count_asked(offload, unit, place.answer != EXPERT_MISS);
        if (place.was_guessed)
            offload__count_guess_used(offload, unit);
        if (place.answer == EXPERT_ARRIVING)
            offload__expert_hurry(offload, entry->place);
        if (place.answer == EXPERT_MISS) {
            st = offload__expert_evicted(offload, &place, err);
            if (st == STATUS_OK)
                st = offload__expert_bring(offload, ordinal, expert, place.slot, false,
                                           &entry->place, err);
            if (st == STATUS_OK)
                offload__count_planned(offload, unit);
        }
        experts->stream_head++;
    }
    return st;
}

enum status offload__expert_stream_begin(struct offload *offload, struct err *err)
{
    struct offload__experts *experts = offload->experts;

    experts->stream_at = experts->stream_head = 0;
    return offload__expert_stream_step(offload, err);
}

enum status offload__expert_stream_next(struct offload *offload, bool *is_last_out,
                                        struct err *err)
{
    struct offload__experts *experts = offload->experts;
    const uint64_t end = ((uint64_t)experts->ordinal + 1) * offload->expert_count;
    enum status st = STATUS_OK;

    assert(experts->stream_at < experts->stream_head); /* there is room for one always */
    while (st == STATUS_OK && experts->stream_at < end &&
           experts->stream_at < experts->stream_head) {
        struct expert_wait *entry = entry_at(experts, experts->stream_at);

        /* What came as a guess may have been noted as arrived meanwhile. */
        if (!expert_cache_is_ready(experts->cache, entry->slot)) {
            if (experts->ready_count > 0 && !offload__expert_is_here(offload, entry->place))
                break;
            st = offload__expert_arrive(offload, entry->place, err);
        }
        if (st == STATUS_OK)
            experts->ready[experts->ready_count++] = *entry;
        experts->stream_at++;
    }
    *is_last_out = experts->stream_at == end;
    return st;
}
