/* offload/report/counters.c - what moved, and how long it took.
 *
 * The engine's thread counts; at the end of each pass it publishes a copy under the lock, and
 * reports are made from the copy, so that they may be asked for by any thread and are of one
 * moment.
 *
 * Times come from the devices' events, never from the host's clock around a call: a copy's from the
 * marks just before and after it on the copy stream (so that waiting for its slot is not counted),
 * a stall's from the marks around the wait on the compute stream. They are read when the pass that
 * used the onload has ended. */
#include <assert.h>
#include <string.h>

#include "base/clock.h"
#include "offload/internal.h"

const char *offload__stall_name(enum offload__stall cause)
{
    static const char *const names[OFFLOAD_STALL_COUNT] = {
        [OFFLOAD_STALL_DISK] = "disk", [OFFLOAD_STALL_LINK] = "link",
        [OFFLOAD_STALL_SLOT] = "slot", [OFFLOAD_STALL_ROUTER] = "router",
    };

    assert((unsigned)cause < OFFLOAD_STALL_COUNT);
    return names[cause];
}

void offload__count_pass_begin(struct offload *offload)
{
    if (offload->pass_began_ns != 0)
        return;
    offload->pass_began_ns = clock_now_ns();
    if (offload->run_began_ns == 0)
        offload->run_began_ns = offload->pass_began_ns;
}

void offload__count_pass_end(struct offload *offload)
{
    const uint64_t now_ns = clock_now_ns();

    offload->totals.passes++;
    if (offload->run_began_ns != 0)
        offload->totals.run_ns = now_ns - offload->run_began_ns;
    offload->totals.pass_began_ns = offload->pass_began_ns != 0 ? offload->pass_began_ns : now_ns;
    offload->totals.pass_ended_ns = now_ns;
    offload->pass_began_ns = 0;
}

void offload__count_onload(struct offload *offload, size_t unit, uint64_t bytes)
{
    offload->counters[unit].onloads++;
    offload->counters[unit].bytes_moved += bytes;
    if (offload->units[unit].has_come)
        offload->counters[unit].reread_bytes += bytes;
    offload->units[unit].has_come = true;
}

void offload__count_guess(struct offload *offload, size_t unit, uint64_t bytes)
{
    offload->counters[unit].guessed_bytes += bytes;
    offload__count_onload(offload, unit, bytes);
}

void offload__count_guess_used(struct offload *offload, size_t unit)
{
    offload->counters[unit].guess_used_bytes += offload->units[unit].size_bytes;
}

void offload__count_guess_wasted(struct offload *offload, size_t unit)
{
    offload->counters[unit].guess_wasted_bytes += offload->units[unit].size_bytes;
}

void offload__count_asked(struct offload *offload, size_t unit, bool was_there)
{
    if (was_there)
        offload->counters[unit].hits++;
    else
        offload->counters[unit].misses++;
}

void offload__count_planned(struct offload *offload, size_t unit)
{
    const struct offload__unit *u = &offload->units[unit];
    const enum offload__path path = offload__path(offload, u);

    if (path == OFFLOAD_PATH_IN_PLACE)
        return;
    offload->counters[unit].onloads_planned++;
    if (path == OFFLOAD_PATH_FETCH)
        offload->counters[unit].bytes_planned += u->size_bytes;
}

void offload__count_stall(struct offload *offload, size_t unit, enum offload__stall cause,
                          uint64_t began_ns, uint64_t ended_ns)
{
    if (ended_ns <= began_ns)
        return;
    offload->counters[unit].stall_ns[cause] += ended_ns - began_ns;
    offload__timeline_stall(offload, unit, began_ns, ended_ns);
}

/* Reading comes first; of the rest, as much as the link stood idle before the copy is the slot's:
 * with more slots the copy would have begun so much earlier. */
void offload__count_wait(struct offload *offload, const struct offload__fetch *fetch,
                         uint64_t began_ns, uint64_t ended_ns)
{
    const struct offload__fetch_times *times = &fetch->times;
    uint64_t at_ns = began_ns, idle_ns = fetch->link_idle_ns;

    offload->counters[fetch->unit].last = (struct offload__arrival){ *times, began_ns, ended_ns };
    if (ended_ns <= began_ns)
        return;
    if (times->read_ended_ns > began_ns || (times->read_ended_ns != 0 && times->copy_ended_ns == 0))
        at_ns = times->copy_ended_ns == 0 || times->read_ended_ns > ended_ns ? ended_ns
                                                                             : times->read_ended_ns;
    offload__count_stall(offload, fetch->unit, OFFLOAD_STALL_DISK, began_ns, at_ns);
    idle_ns = idle_ns < ended_ns - at_ns ? idle_ns : ended_ns - at_ns;
    offload__count_stall(offload, fetch->unit, OFFLOAD_STALL_SLOT, at_ns, at_ns + idle_ns);
    offload__count_stall(offload, fetch->unit, OFFLOAD_STALL_LINK, at_ns + idle_ns, ended_ns);
}

/* Adds a copy of `bytes` that ran from began_ns to ended_ns. */
static void count_copy(struct offload *offload, size_t unit, uint64_t bytes, uint64_t began_ns,
                       uint64_t ended_ns)
{
    const uint64_t took_ns = ended_ns > began_ns ? ended_ns - began_ns : 0;
    const uint64_t run_ns = offload->run_began_ns;

    offload->counters[unit].copy_ns += took_ns;
    offload->counters[unit].copied_bytes += bytes;
    if (began_ns >= run_ns) {
        offload->totals.run_copy_ns += took_ns;
        offload->totals.run_copied_bytes += bytes;
    } else if (ended_ns > run_ns) { /* began before the run: its share */
        const double share = (double)(ended_ns - run_ns) / (double)took_ns;

        offload->totals.run_copy_ns += ended_ns - run_ns;
        offload->totals.run_copied_bytes += (uint64_t)((double)bytes * share);
    }
}

bool offload__count_arrived(struct offload *offload, struct offload__fetch *fetch, bool wait)
{
    struct offload__fetch_times *times = &fetch->times;
    const uint64_t bytes = offload->units[fetch->unit].size_bytes;
    uint64_t free_ns = offload->last_copied_ns;

    if (!offload__fetch_times(fetch, wait, times))
        return false;
    fetch->link_idle_ns = 0;
    offload__timeline_fetch(offload, fetch);
    if (times->read_ended_ns != 0) {
        offload->counters[fetch->unit].read_bytes += bytes;
        offload->counters[fetch->unit].read_ns += times->read_ended_ns - times->read_began_ns;
    }
    if (times->copy_ended_ns == 0)
        return true;
    count_copy(offload, fetch->unit, bytes, times->copy_began_ns, times->copy_ended_ns);
    if (free_ns != 0 && times->read_ended_ns > free_ns)
        free_ns = times->read_ended_ns;
    if (free_ns != 0 && times->copy_began_ns > free_ns)
        fetch->link_idle_ns = times->copy_began_ns - free_ns;
    if (times->copy_ended_ns > offload->last_copied_ns)
        offload->last_copied_ns = times->copy_ended_ns;
    return true;
}

void offload__counters_harvest(struct offload *offload)
{
    const uint64_t onload_count = 2 * (uint64_t)offload->ring_count;

    if (offload->sizes.slot_count == 0)
        return;
    for (; offload->harvested < offload->head; offload->harvested++) {
        struct offload__fetch *onload = &offload->onloads[offload->harvested % onload_count];
        /* The pass has waited for its own onloads, unless a test's fault left the wait out. */
        const bool of_this_pass = offload->harvested < offload->position;

        if (onload->state == OFFLOAD_FETCH_NONE)
            continue;
        if (!offload__count_arrived(offload, onload, of_this_pass) && !of_this_pass)
            break;
    }
    for (uint64_t k = offload->pass_position; k < offload->position; k++) {
        const struct offload__fetch *onload = &offload->onloads[k % onload_count];
        const size_t unit = (size_t)(k % offload->ring_count);

        if (onload->state != OFFLOAD_FETCH_NONE)
            offload__count_wait(offload, onload, event_time_ns(offload->stall_began[unit]),
                                event_time_ns(offload->stall_ended[unit]));
    }
}

void offload__counters_publish(struct offload *offload)
{
    (void)pthread_mutex_lock(&offload->lock);
    offload->published_totals = offload->totals;
    if (offload->unit_count > 0)
        memcpy(offload->published_counters, offload->counters,
               offload->unit_count * sizeof(*offload->counters));
    (void)pthread_mutex_unlock(&offload->lock);
}

void offload_report_reset(struct offload *offload)
{
    uint64_t disk_bytes, disk_busy_ns, rate;
    struct device_replays replays;

    memset(&offload->totals, 0, sizeof(offload->totals));
    if (offload->unit_count > 0)
        memset(offload->counters, 0, offload->unit_count * sizeof(*offload->counters));
    offload->run_began_ns = 0;
    if (offload__disk_usage(offload, &disk_bytes, &disk_busy_ns, &rate)) {
        (void)pthread_mutex_lock(&offload->lock);
        offload->disk_base_bytes = disk_bytes;
        offload->disk_base_busy_ns = disk_busy_ns;
        (void)pthread_mutex_unlock(&offload->lock);
    }
    device_replays(offload->device, &replays);
    (void)pthread_mutex_lock(&offload->lock);
    offload->replays_base = replays;
    (void)pthread_mutex_unlock(&offload->lock);
    offload__counters_publish(offload);
}
