/* offload/counters.c - what moved, and how long it took.
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

#include "offload/internal.h"

void offload__count_onload(struct offload *offload, size_t unit, uint64_t bytes)
{
    offload->counters[unit].onloads++;
    offload->counters[unit].bytes_moved += bytes;
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

/* Adds a copy of `bytes` that ran from began_ns to ended_ns. */
static void count_copy(struct offload *offload, size_t unit, uint64_t bytes, uint64_t began_ns,
                       uint64_t ended_ns)
{
    const uint64_t took_ns = ended_ns > began_ns ? ended_ns - began_ns : 0;
    const uint64_t run_ns = offload->run_began_ns;

    offload->counters[unit].copy_ns += took_ns;
    offload->totals.copied_bytes += bytes;
    if (began_ns >= run_ns) {
        offload->totals.run_copy_ns += took_ns;
        offload->totals.run_copied_bytes += bytes;
    } else if (ended_ns > run_ns) { /* began before the run: its share */
        const double share = (double)(ended_ns - run_ns) / (double)took_ns;

        offload->totals.run_copy_ns += ended_ns - run_ns;
        offload->totals.run_copied_bytes += (uint64_t)((double)bytes * share);
    }
}

void offload__counters_harvest(struct offload *offload)
{
    const uint64_t onload_count = 2 * (uint64_t)offload->ring_count;

    if (offload->sizes.slot_count == 0)
        return;
    for (uint64_t k = offload->pass_position; k < offload->position; k++) {
        const size_t unit = (size_t)(k % offload->ring_count);
        uint64_t began_ns, ended_ns;

        if (offload->onloads[k % onload_count].state == OFFLOAD_FETCH_NONE)
            continue;
        began_ns = event_time_ns(offload->stall_began[unit]);
        ended_ns = event_time_ns(offload->stall_ended[unit]);
        if (ended_ns > began_ns)
            offload->counters[unit].stall_ns += ended_ns - began_ns;
    }
    for (; offload->harvested < offload->head; offload->harvested++) {
        const uint64_t k = offload->harvested;
        const struct offload__fetch *onload = &offload->onloads[k % onload_count];
        const size_t unit = (size_t)(k % offload->ring_count);
        /* The pass has waited for its own onloads, unless a test's fault left the wait out. */
        const bool of_this_pass = k < offload->position;
        uint64_t began_ns, ended_ns;

        if (onload->state == OFFLOAD_FETCH_NONE)
            continue;
        if (offload__fetch_times(onload, of_this_pass, &began_ns, &ended_ns))
            count_copy(offload, unit, offload->units[unit].size_bytes, began_ns, ended_ns);
        else if (!of_this_pass)
            return;
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
    memset(&offload->totals, 0, sizeof(offload->totals));
    if (offload->unit_count > 0)
        memset(offload->counters, 0, offload->unit_count * sizeof(*offload->counters));
    offload->run_began_ns = 0;
    offload__counters_publish(offload);
}
