/* offload/fetch.c - one unit on its way from its home into a slot: the steps that the ring and the
 * expert cache share, whatever the home. */
#include <assert.h>

#include "offload/internal.h"

enum status offload__fetch_create(struct offload *offload, struct offload__fetch *fetch,
                                  struct err *err)
{
    enum status st;

    *fetch = (struct offload__fetch){ .state = OFFLOAD_FETCH_NONE };
    st = event_create(offload->device, &fetch->started, err);
    if (st == STATUS_OK)
        st = event_create(offload->device, &fetch->loaded, err);
    for (unsigned home = 0; home < OFFLOAD_HOME_COUNT && st == STATUS_OK; home++) {
        if (offload__home((enum offload_home)home)->fetch_create != NULL)
            st = offload__home((enum offload_home)home)->fetch_create(offload, fetch, err);
    }
    return st;
}

static const struct offload__home_ops *home_of(const struct offload *offload,
                                               const struct offload__fetch *fetch)
{
    return offload__home(offload->units[fetch->unit].home);
}

void offload__fetch_destroy(struct offload *offload, struct offload__fetch *fetch)
{
    for (unsigned home = 0; home < OFFLOAD_HOME_COUNT; home++) {
        if (offload__home((enum offload_home)home)->fetch_destroy != NULL)
            offload__home((enum offload_home)home)->fetch_destroy(offload, fetch);
    }
    event_destroy(fetch->loaded);
    event_destroy(fetch->started);
    fetch->started = fetch->loaded = NULL;
}

bool offload__fetch_prepare(struct offload *offload, struct offload__fetch *fetch, size_t unit)
{
    const struct offload__home_ops *home = offload__home(offload->units[unit].home);

    assert(fetch->state == OFFLOAD_FETCH_NONE || fetch->state == OFFLOAD_FETCH_ENDED);
    if (home->fetch_prepare == NULL)
        return false;
    fetch->unit = unit;
    fetch->is_guess = fetch->by_stream = false;
    if (!home->fetch_prepare(offload, fetch))
        return false;
    fetch->state = OFFLOAD_FETCH_PREPARED;
    return true;
}

enum status offload__fetch_begin(struct offload *offload, struct offload__fetch *fetch, size_t unit,
                                 struct event *slot_ended, uint8_t *dst, struct err *err)
{
    enum status st;

    assert(fetch->state != OFFLOAD_FETCH_BEGUN);
    assert(fetch->state != OFFLOAD_FETCH_PREPARED || fetch->unit == unit);
    fetch->unit = unit;
    fetch->slot_ended = slot_ended;
    fetch->dst = dst;
    fetch->by_stream = false;
    fetch->began_ns = fetch->ended_ns = 0;
    st = home_of(offload, fetch)->fetch_begin(offload, fetch, err);
    if (st == STATUS_OK)
        fetch->state = OFFLOAD_FETCH_BEGUN;
    else if (fetch->state != OFFLOAD_FETCH_PREPARED) /* which is to be abandoned */
        fetch->state = OFFLOAD_FETCH_NONE;
    return st;
}

enum status offload__fetch_end(struct offload *offload, struct offload__fetch *fetch,
                               struct err *err)
{
    const struct offload__home_ops *home = home_of(offload, fetch);
    enum status st = STATUS_OK;

    if (fetch->state == OFFLOAD_FETCH_ENDED)
        return STATUS_OK;
    assert(fetch->state == OFFLOAD_FETCH_BEGUN);
    if (home->fetch_end != NULL)
        st = home->fetch_end(offload, fetch, err);
    fetch->state = st == STATUS_OK ? OFFLOAD_FETCH_ENDED : OFFLOAD_FETCH_NONE;
    return st;
}

bool offload__fetch_is_ready(const struct offload *offload, const struct offload__fetch *fetch)
{
    const struct offload__home_ops *home = home_of(offload, fetch);

    return fetch->state != OFFLOAD_FETCH_BEGUN || home->fetch_is_ready == NULL ||
           home->fetch_is_ready(offload, fetch);
}

void offload__fetch_hurry(struct offload *offload, struct offload__fetch *fetch)
{
    const struct offload__home_ops *home = home_of(offload, fetch);

    fetch->is_guess = false;
    if (fetch->state == OFFLOAD_FETCH_BEGUN && home->fetch_hurry != NULL)
        home->fetch_hurry(offload, fetch);
}

bool offload__fetch_drop(struct offload *offload, struct offload__fetch *fetch)
{
    const struct offload__home_ops *home = home_of(offload, fetch);

    if (fetch->state != OFFLOAD_FETCH_BEGUN || home->fetch_drop == NULL)
        return false;
    home->fetch_drop(offload, fetch);
    return true;
}

void offload__fetch_abandon(struct offload *offload, struct offload__fetch *fetch)
{
    const struct offload__home_ops *home = home_of(offload, fetch);

    if ((fetch->state == OFFLOAD_FETCH_BEGUN || fetch->state == OFFLOAD_FETCH_PREPARED) &&
        home->fetch_abandon != NULL)
        home->fetch_abandon(offload, fetch);
    fetch->state = OFFLOAD_FETCH_NONE;
}

bool offload__fetch_times(const struct offload__fetch *fetch, bool wait,
                          struct offload__fetch_times *times_out)
{
    if (fetch->state != OFFLOAD_FETCH_ENDED && !fetch->by_stream)
        return false;
    *times_out = (struct offload__fetch_times){ .read_began_ns = fetch->began_ns,
                                                .read_ended_ns = fetch->ended_ns };
    if (!fetch->by_stream)
        return true;
    if (wait && event_sync(fetch->loaded, NULL) != STATUS_OK)
        return false;
    if (!event_is_done(fetch->loaded))
        return false;
    times_out->copy_began_ns = event_time_ns(fetch->started);
    times_out->copy_ended_ns = event_time_ns(fetch->loaded);
    return true;
}

enum status offload__copy_begin(struct offload *offload, struct offload__fetch *fetch,
                                struct err *err)
{
    enum status st = STATUS_OK;

    if (!offload->options.fault_skip_ended_wait)
        st = stream_wait(offload->copy, fetch->slot_ended, err);
    return st == STATUS_OK ? event_record(offload->copy, fetch->started, err) : st;
}

enum status offload__copy_end(struct offload *offload, struct offload__fetch *fetch,
                              struct err *err)
{
    const enum status st = event_record(offload->copy, fetch->loaded, err);

    fetch->by_stream = st == STATUS_OK;
    return st;
}
