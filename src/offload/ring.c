/* offload/ring.c - the endless sequence of onloads through the slots.
 *
 * Positions count units read since the start, over all passes: position p reads unit p mod
 * ring_count in slot p mod slot_count. With units A B C, prefetch step 1 and two slots, time to the
 * right (small letters: arriving; "B,C": begin of B, which queues C):
 *
 *     begin,queues       A,B     B,C     C,A     sample  A,B
 *     copy          [A>0][B>1]   [C>0]   [A>1]           [B>0]
 *     compute            [ ops A][ ops B][ ops C]        [ ops A]
 *     slot 0        aaaaaAAAAAAAAcccccCCCCCCCCCCC........bbbbbBBB
 *     slot 1        .....bbbbbBBBBBBBBBBBaaaaaAAAAAAAAAAAAAAAAAAA
 *
 * Ordering is by two events alone. `loaded` of an onload is recorded after
 * its copy; the part's ops wait for it. `ended` of a slot is recorded after the part's last op
 * (and, when poisoning, after the fill behind it); the next copy into the slot waits for it. Since
 * slot_count is more than prefetch_step, the onload that begin(p) queues goes to another slot than
 * p's, and `ended` of its slot was recorded in this pass or an earlier one.
 *
 * An onload's events are kept until its times have been read, which happens at the end of the pass
 * that read it. By then at most ring_count onloads of the next pass are ahead (prefetch_step is not
 * more), so 2 * ring_count entries never meet.
 *
 * Units at home in meta go through the same sequence and occupy slots, but nothing is queued for
 * them. Units read in place take a position and nothing else.
 *
 * Budget of begin and end: no allocation, no lock, no system call of ours; what a device does to
 * queue work is its own. */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#include "offload/internal.h"

static enum status events_create(struct offload *offload, size_t count, struct event ***events_out,
                                 struct err *err)
{
    struct event **events = calloc(count, sizeof(struct event *));
    enum status st = STATUS_OK;

    if (events == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu events", count);
    *events_out = events; /* offload__ring_destroy frees what there is */
    for (size_t i = 0; i < count && st == STATUS_OK; i++)
        st = event_create(offload->device, &events[i], err);
    return st;
}

static void events_destroy(struct event **events, size_t count)
{
    for (size_t i = 0; events != NULL && i < count; i++)
        event_destroy(events[i]);
    free(events);
}

enum status offload__ring_create(struct offload *offload, struct err *err)
{
    const size_t count = offload->ring_count;
    enum status st = STATUS_OK;

    if (!offload->in_place || offload->sharded != NULL)
        st = stream_create(offload->device, STREAM_COPY, &offload->copy, err);
    if (st != STATUS_OK || offload->sizes.slot_count == 0)
        return st;
    st = events_create(offload, (size_t)offload->sizes.slot_count, &offload->ended, err);
    if (st == STATUS_OK)
        st = events_create(offload, count, &offload->stall_began, err);
    if (st == STATUS_OK)
        st = events_create(offload, count, &offload->stall_ended, err);
    if (st != STATUS_OK)
        return st;
    offload->onloads = calloc(2 * count, sizeof(*offload->onloads));
    if (offload->onloads == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the onloads of %zu units", count);
    for (size_t i = 0; i < 2 * count && st == STATUS_OK; i++)
        st = offload__fetch_create(offload, &offload->onloads[i], err);
    return st;
}

void offload__ring_destroy(struct offload *offload)
{
    offload->started = false;
    for (size_t i = 0; offload->onloads != NULL && i < 2 * offload->ring_count; i++)
        offload__fetch_destroy(offload, &offload->onloads[i]);
    free(offload->onloads);
    offload->onloads = NULL;
    events_destroy(offload->stall_ended, offload->ring_count);
    offload->stall_ended = NULL;
    events_destroy(offload->stall_began, offload->ring_count);
    offload->stall_began = NULL;
    events_destroy(offload->ended, (size_t)offload->sizes.slot_count);
    offload->ended = NULL;
    stream_destroy(offload->copy);
    offload->copy = NULL;
}

static size_t unit_at(const struct offload *offload, uint64_t position)
{
    assert(offload->ring_count > 0);
    return (size_t)(position % offload->ring_count);
}

static struct offload__fetch *onload_at(const struct offload *offload, uint64_t position)
{
    return &offload->onloads[position % (2 * offload->ring_count)];
}

static uint64_t slot_at(const struct offload *offload, uint64_t position)
{
    assert(offload->sizes.slot_count > 0);
    return position % offload->sizes.slot_count;
}

static uint8_t *slot_memory(const struct offload *offload, uint64_t position)
{
    return offload->slots + slot_at(offload, position) * offload->sizes.slot_bytes;
}

/* Whether files are as they were, once in a pass. */
static enum status files_check(const struct offload *offload, uint64_t position, struct err *err)
{
    return unit_at(offload, position) == 0 ? offload__disk_check(offload, err) : STATUS_OK;
}

/* Begins what needs no slot of the onloads behind `head`, up to a pass ahead of what is read, as
 * long as homes have room: a disk then reads on while slots are full of what other homes bring. */
static void prepare_ahead(struct offload *offload)
{
    if (offload->prepared < offload->head)
        offload->prepared = offload->head;
    for (; offload->prepared < offload->position + offload->ring_count; offload->prepared++) {
        const size_t index = unit_at(offload, offload->prepared);

        if (offload__home(offload->units[index].home)->fetch_prepare == NULL)
            continue;
        if (!offload__fetch_prepare(offload, onload_at(offload, offload->prepared), index))
            return;
    }
}

/* Begins the onload of a position. */
static enum status onload_begin(struct offload *offload, uint64_t position, struct err *err)
{
    const size_t index = unit_at(offload, position);
    const struct offload__unit *unit = &offload->units[index];
    struct offload__fetch *onload = onload_at(offload, position);
    enum status st;

    onload->unit = index;
    if (onload->state != OFFLOAD_FETCH_PREPARED)
        onload->state = OFFLOAD_FETCH_NONE;
    switch (offload__path(offload, unit)) {
    case OFFLOAD_PATH_IN_PLACE:
        return STATUS_OK;
    case OFFLOAD_PATH_NOTHING:
        offload__count_onload(offload, index, 0);
        return STATUS_OK;
    case OFFLOAD_PATH_FETCH:
        break;
    }
    st = offload__fetch_begin(offload, onload, index, offload->ended[slot_at(offload, position)],
                              slot_memory(offload, position), err);
    if (st == STATUS_OK)
        offload__count_onload(offload, index, unit->size_bytes);
    return st;
}

static enum status slots_prepare(struct offload *offload, struct err *err)
{
    const bool meta = offload->options.home == OFFLOAD_HOME_META;
    enum status st;

    if (!meta && !offload->options.poison)
        return STATUS_OK;
    st = device_fill(offload->compute, offload->slots, meta ? 0 : OFFLOAD_POISON,
                     offload->sizes.slot_count * offload->sizes.slot_bytes, err);
    return st == STATUS_OK ? stream_sync(offload->compute, err) : st;
}

enum status offload__torn_check(const struct offload *offload, struct err *err)
{
    if (offload->torn)
        return err_set(err, STATUS_PEER,
                       "another rank of this node ended while weights were changed, so some may be "
                       "new and some old; this rank must be started again");
    if (offload->mixed)
        return err_set(err, STATUS_IO,
                       "a live update failed and the old weights could not be loaded again, so "
                       "some may be new and some old; the server must be started again");
    return STATUS_OK;
}

static enum status start(struct offload *offload, struct err *err)
{
    enum status st = STATUS_OK;

    offload->started = false;
    st = offload__torn_check(offload, err);
    if (st == STATUS_OK)
        st = offload__late_check(offload, err);
    if (st != STATUS_OK)
        return st;
    offload->position = offload->pass_position = offload->head = offload->harvested = 0;
    offload->prepared = 0;
    if (offload->sizes.slot_count > 0)
        st = slots_prepare(offload, err);
    if (st == STATUS_OK && offload->sizes.slot_count > 0)
        st = offload__disk_check(offload, err);
    while (st == STATUS_OK && offload->sizes.slot_count > 0 &&
           offload->head < (uint64_t)offload->options.prefetch_step) {
        st = onload_begin(offload, offload->head, err);
        if (st == STATUS_OK)
            offload__count_planned(offload, unit_at(offload, offload->head++));
    }
    if (st == STATUS_OK && offload->sizes.slot_count > 0)
        prepare_ahead(offload);
    return st;
}

/* Whoever asks for a unit is told the same until a start succeeds. */
static enum status stop(struct offload *offload, const struct err *why, struct err *err)
{
    offload->started = false;
    offload->stopped = *why;
    return err_set(err, why->status, "%s", why->message);
}

enum status offload__ring_start(struct offload *offload, struct err *err)
{
    struct err why;

    if (start(offload, &why) != STATUS_OK)
        return stop(offload, &why, err);
    offload->started = true;
    return STATUS_OK;
}

enum status offload__ring_sync(struct offload *offload, struct err *err)
{
    const enum status st = stream_sync(offload->compute, err);
    enum status st_copy = STATUS_OK;

    if (offload->copy != NULL)
        st_copy = stream_sync(offload->copy, st == STATUS_OK ? err : NULL);
    return st != STATUS_OK ? st : st_copy;
}

void offload__ring_abandon(struct offload *offload)
{
    const uint64_t end = offload->prepared > offload->head ? offload->prepared : offload->head;

    for (uint64_t k = offload->pass_position; offload->onloads != NULL && k < end; k++)
        offload__fetch_abandon(offload, onload_at(offload, k));
}

enum status offload__ring_renew(struct offload *offload, size_t unit, struct err *err)
{
    enum status st = STATUS_OK;

    assert(offload->position == offload->pass_position);
    for (uint64_t k = offload->position; st == STATUS_OK && k < offload->head; k++) {
        if (unit_at(offload, k) != unit)
            continue;
        if (offload->harvested > k)
            offload->harvested = k; /* its events are recorded anew */
        offload__fetch_abandon(offload, onload_at(offload, k));
        st = onload_begin(offload, k, err);
        if (st == STATUS_OK)
            offload__count_planned(offload, unit);
    }
    return st;
}

/* Gives the unit's tensors their addresses, or takes them away when base is NULL. */
static void tensors_place(struct offload *offload, const struct offload__unit *unit, uint8_t *base)
{
    for (size_t i = 0; i < unit->param_count; i++) {
        struct offload__param *param = &offload->params[unit->params[i]];

        if (param->segment_count <= 1)
            param->tensor.data = base == NULL ? NULL : base + param->offset_bytes;
    }
}

/* Makes the compute stream wait for the onload, between two marks that tell how long it did. Where
 * ending the fetch waits on the host, for a disk, the stream has nothing to do meanwhile. */
static enum status loaded_wait(struct offload *offload, uint64_t position, struct err *err)
{
    const size_t index = unit_at(offload, position);
    struct offload__fetch *onload = onload_at(offload, position);
    enum status st = event_record(offload->compute, offload->stall_began[index], err);

    if (st == STATUS_OK)
        st = offload__fetch_end(offload, onload, err);
    if (st == STATUS_OK && onload->by_stream && !offload->options.fault_skip_loaded_wait)
        st = stream_wait(offload->compute, onload->loaded, err);
    if (st == STATUS_OK)
        st = event_record(offload->compute, offload->stall_ended[index], err);
    return st;
}

/* Queues the copies of onloads that have come from a disk meanwhile, in order. */
static enum status arrived_pass_on(struct offload *offload, struct err *err)
{
    enum status st = STATUS_OK;

    for (uint64_t k = offload->position + 1; st == STATUS_OK && k < offload->head; k++) {
        struct offload__fetch *onload = onload_at(offload, k);

        if (onload->state == OFFLOAD_FETCH_NONE)
            continue;
        if (!offload__fetch_is_ready(offload, onload))
            break;
        st = offload__fetch_end(offload, onload, err);
    }
    return st;
}

/* Begins the onload that is prefetch_step ahead, then waits for this one. */
static enum status begin_in_slot(struct offload *offload, struct err *err)
{
    const uint64_t position = offload->position;
    enum status st;

    assert(offload->head == position + (uint64_t)offload->options.prefetch_step);
    st = files_check(offload, offload->head, err);
    if (st == STATUS_OK)
        st = onload_begin(offload, offload->head, err);
    if (st != STATUS_OK)
        return st;
    offload->head++;
    prepare_ahead(offload);
    if (onload_at(offload, position)->state != OFFLOAD_FETCH_NONE)
        st = loaded_wait(offload, position, err);
    return st == STATUS_OK ? arrived_pass_on(offload, err) : st;
}

enum status offload__unit_acquire(struct offload *offload, size_t index, struct err *err)
{
    const struct offload__unit *unit = &offload->units[index];
    enum status st = STATUS_OK;

    assert(offload->active == OFFLOAD_NO_UNIT);
    if (!offload->started) {
        const struct err *why = &offload->stopped;

        st = offload__torn_check(offload, err);
        return st == STATUS_OK ? err_set(err, why->status, "%s", why->message) : st;
    }
    assert(index == unit_at(offload, offload->position));
    assert(offload->position - offload->pass_position < offload->ring_count);
    if (offload->sizes.slot_count > 0)
        st = begin_in_slot(offload, err);
    if (st != STATUS_OK) {
        offload->started = false;
        return st;
    }
    if (offload__path(offload, unit) == OFFLOAD_PATH_IN_PLACE)
        offload->active_base = unit->record;
    else
        offload->active_base = slot_memory(offload, offload->position);
    offload->active = index;
    return STATUS_OK;
}

/* Marks the slot as read; poison goes before the mark, so that only a read that comes too late, or
 * a copy that comes too early, meets it. */
static enum status end_in_slot(struct offload *offload, struct err *err)
{
    const uint64_t position = offload->position;
    enum status st = STATUS_OK;

    if (offload->options.poison && onload_at(offload, position)->state != OFFLOAD_FETCH_NONE)
        st = device_fill(offload->compute, slot_memory(offload, position), OFFLOAD_POISON,
                         offload->sizes.slot_bytes, err);
    if (st == STATUS_OK)
        st = event_record(offload->compute, offload->ended[slot_at(offload, position)], err);
    return st;
}

enum status offload__unit_release(struct offload *offload, size_t index, struct err *err)
{
    enum status st = STATUS_OK;

    assert(offload->active == index);
    (void)index;
    if (offload->sizes.slot_count > 0)
        st = end_in_slot(offload, err);
    offload->active = OFFLOAD_NO_UNIT;
    offload->active_base = NULL;
    if (st != STATUS_OK) {
        offload->started = false;
        return st;
    }
    offload->position++;
    return STATUS_OK;
}

enum status offload_begin(struct offload *offload, uint32_t layer, enum offload_part part,
                          struct err *err)
{
    const size_t place = (size_t)layer * OFFLOAD_PART_COUNT + part;
    enum status st;
    size_t index;

    assert(layer < offload->layer_count && (unsigned)part < OFFLOAD_PART_COUNT);
    offload__count_pass_begin(offload);
    index = offload->unit_of[place];
    if (index == OFFLOAD_NO_UNIT)
        return offload__timeline_mark(offload, place, true, err);
    st = offload__unit_acquire(offload, index, err);
    if (st == STATUS_OK)
        st = offload__timeline_mark(offload, place, true, err);
    if (st == STATUS_OK)
        tensors_place(offload, &offload->units[index], offload->active_base);
    return st;
}

enum status offload_end(struct offload *offload, uint32_t layer, enum offload_part part,
                        struct err *err)
{
    const size_t place = (size_t)layer * OFFLOAD_PART_COUNT + part;
    size_t index;
    enum status st;

    assert(layer < offload->layer_count && (unsigned)part < OFFLOAD_PART_COUNT);
    st = offload__timeline_mark(offload, place, false, err);
    index = offload->unit_of[place];
    if (index == OFFLOAD_NO_UNIT || st != STATUS_OK)
        return st;
    tensors_place(offload, &offload->units[index], NULL);
    return offload__unit_release(offload, index, err);
}

/* Says once that the device goes on without replaying. */
static void replays_check(struct offload *offload)
{
    struct device_replays replays;

    if (offload->has_warned)
        return;
    device_replays(offload->device, &replays);
    if (replays.stopped == NULL)
        return;
    offload->has_warned = true;
    log_line(offload->log, LOG_WARN, "%s", replays.stopped);
}

void offload_pass_done(struct offload *offload)
{
    assert(offload->active == OFFLOAD_NO_UNIT);
    assert(offload->position == offload->pass_position + offload->ring_count);
    offload__count_pass_end(offload);
    for (size_t i = 0; i < offload->ring_count; i++)
        offload__count_planned(offload, i);
    offload__counters_harvest(offload);
    offload__experts_harvest(offload);
    offload__timeline_pass_done(offload);
    offload->pass_position = offload->position;
    offload__counters_publish(offload);
    replays_check(offload);
    offload__late_pass_ended(offload);
}

enum status offload_pass_abort(struct offload *offload, struct err *err)
{
    const uint64_t ahead = (uint64_t)offload->options.prefetch_step;
    struct err why;
    enum status st;

    assert(offload->loaded);
    if (offload->active != OFFLOAD_NO_UNIT)
        tensors_place(offload, &offload->units[offload->active], NULL);
    offload->active = OFFLOAD_NO_UNIT;
    offload->active_base = NULL;
    offload__ring_abandon(offload);
    offload__experts_abandon(offload);
    offload__late_pass_ended(offload);
    offload__timeline_pass_abort(offload);
    st = offload__ring_sync(offload, &why);
    /* What the abandoned pass has queued was due. */
    for (uint64_t k = offload->pass_position + ahead; k < offload->head; k++)
        offload__count_planned(offload, unit_at(offload, k));
    offload->started = false;
    offload->pass_began_ns = 0;
    offload->head = offload->position = offload->pass_position = offload->harvested = 0;
    offload->prepared = 0;
    st = st == STATUS_OK ? offload__ring_start(offload, err) : stop(offload, &why, err);
    offload__counters_publish(offload);
    return st;
}
