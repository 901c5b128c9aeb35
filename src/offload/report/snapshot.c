/* offload/report/snapshot.c - the counters of one moment, and what they come to. */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "offload/report/internal.h"
#include "offload/home/share.h"

void offload__snapshot_destroy(struct offload__snapshot *snapshot)
{
    if (snapshot == NULL)
        return;
    free(snapshot->groups);
    free(snapshot->units);
    free(snapshot->unit_homes);
    free(snapshot);
}

static void counters_add(struct offload__unit_counters *sum,
                         const struct offload__unit_counters *unit)
{
    sum->onloads += unit->onloads;
    sum->bytes_moved += unit->bytes_moved;
    sum->onloads_planned += unit->onloads_planned;
    sum->bytes_planned += unit->bytes_planned;
    sum->guessed_bytes += unit->guessed_bytes;
    sum->guess_used_bytes += unit->guess_used_bytes;
    sum->guess_wasted_bytes += unit->guess_wasted_bytes;
    sum->reread_bytes += unit->reread_bytes;
    sum->hits += unit->hits;
    sum->misses += unit->misses;
    sum->copied_bytes += unit->copied_bytes;
    sum->copy_ns += unit->copy_ns;
    sum->read_bytes += unit->read_bytes;
    sum->read_ns += unit->read_ns;
    for (unsigned cause = 0; cause < OFFLOAD_STALL_COUNT; cause++)
        sum->stall_ns[cause] += unit->stall_ns[cause];
}

static void widen(uint64_t *began_ns, uint64_t *ended_ns, uint64_t other_began_ns,
                  uint64_t other_ended_ns)
{
    if (other_ended_ns == 0)
        return;
    if (*ended_ns == 0 || other_began_ns < *began_ns)
        *began_ns = other_began_ns;
    if (other_ended_ns > *ended_ns)
        *ended_ns = other_ended_ns;
}

/* From the first of the group's units that came in the last pass to the last of them. */
static void arrival_add(struct offload__arrival *sum, const struct offload__arrival *unit,
                        uint64_t pass_began_ns)
{
    const struct offload__fetch_times *const times = &unit->times;

    if (unit->needed_ns < pass_began_ns)
        return;
    widen(&sum->times.read_began_ns, &sum->times.read_ended_ns, times->read_began_ns,
          times->read_ended_ns);
    widen(&sum->times.copy_began_ns, &sum->times.copy_ended_ns, times->copy_began_ns,
          times->copy_ended_ns);
    widen(&sum->needed_ns, &sum->ready_ns, unit->needed_ns, unit->ready_ns);
}

/* Experts stand behind what the ring moves. */
static bool is_piece(const struct offload *offload, size_t unit)
{
    return offload->units[unit].is_tile || unit >= offload->ring_count;
}

/* The group of pieces that the unit belongs to, which is among the last few: there is one for each
 * home. NULL: it begins one. */
static struct offload__group *group_of(const struct offload *offload,
                                       const struct offload__snapshot *snapshot, size_t unit)
{
    const struct offload__unit *u = &offload->units[unit];

    for (size_t back = 1; is_piece(offload, unit) && back <= OFFLOAD_HOME_COUNT &&
                          back <= snapshot->group_count; back++) {
        struct offload__group *group = &snapshot->groups[snapshot->group_count - back];
        const size_t first = group->first;

        if (!is_piece(offload, first) || offload->units[first].layer != u->layer ||
            offload->units[first].part != u->part ||
            (first < offload->ring_count) != (unit < offload->ring_count))
            return NULL;
        if (group->home == snapshot->unit_homes[unit])
            return group;
    }
    return NULL;
}

static void groups_fill(const struct offload *offload, struct offload__snapshot *snapshot)
{
    for (size_t i = 0; i < offload->unit_count; i++) {
        const struct offload__unit *unit = &offload->units[i];
        struct offload__group *group = group_of(offload, snapshot, i);

        if (group == NULL) {
            group = &snapshot->groups[snapshot->group_count++];
            group->first = i;
            group->home = snapshot->unit_homes[i];
            if (i >= offload->ring_count)
                (void)snprintf(group->name, sizeof(group->name), "layers.%" PRIu32 ".experts",
                               unit->layer);
            else
                (void)snprintf(group->name, sizeof(group->name), "layers.%" PRIu32 ".%s",
                               unit->layer, offload_part_name(unit->part));
        }
        group->count++;
        group->size_bytes += unit->size_bytes;
        counters_add(&group->sum, &snapshot->units[i]);
        arrival_add(&group->sum.last, &snapshot->units[i].last, snapshot->totals.pass_began_ns);
    }
}

/* What onloads come over: the host's link, or with shards the one between devices. */
static uint64_t link_set(const struct offload *offload)
{
    const struct device_info *info = device_info(offload->device);

    return offload->options.home == OFFLOAD_HOME_SHARDED ? info->peer_bytes_per_s
                                                         : info->link_bytes_per_s;
}

struct offload__snapshot *offload__snapshot_create(const struct offload *offload)
{
    const size_t count = offload->unit_count;
    struct offload__snapshot *snapshot = calloc(1, sizeof(*snapshot));
    pthread_mutex_t *lock = (pthread_mutex_t *)&offload->lock; /* is not what is told */
    uint64_t base_bytes, base_busy_ns;
    struct device_replays base;

    if (snapshot == NULL)
        return NULL;
    snapshot->units = calloc(count + 1, sizeof(*snapshot->units));
    snapshot->unit_homes = calloc(count + 1, sizeof(*snapshot->unit_homes));
    snapshot->groups = calloc(count + 1, sizeof(*snapshot->groups));
    if (snapshot->units == NULL || snapshot->unit_homes == NULL || snapshot->groups == NULL) {
        offload__snapshot_destroy(snapshot);
        return NULL;
    }
    (void)pthread_mutex_lock(lock);
    snapshot->totals = offload->published_totals;
    memcpy(snapshot->units, offload->published_counters, count * sizeof(*snapshot->units));
    memcpy(snapshot->unit_homes, offload->published_homes, count * sizeof(*snapshot->unit_homes));
    base_bytes = offload->disk_base_bytes;
    base_busy_ns = offload->disk_base_busy_ns;
    base = offload->replays_base;
    (void)pthread_mutex_unlock(lock);
    device_replays(offload->device, &snapshot->replays);
    snapshot->replays.op_count -= base.op_count;
    snapshot->replays.replayed_count -= base.replayed_count;
    snapshot->replays.graph_count -= base.graph_count;
    for (size_t i = 0; i < count; i++) {
        const enum offload_home home = snapshot->unit_homes[i];

        counters_add(&snapshot->sum, &snapshot->units[i]);
        counters_add(&snapshot->homes[home], &snapshot->units[i]);
        snapshot->home_bytes[home] += offload->units[i].size_bytes;
        snapshot->home_units[home]++;
        if (home == OFFLOAD_HOME_SHARDED)
            snapshot->moved_own += snapshot->units[i].onloads * offload__sharded_own(offload, i);
    }
    groups_fill(offload, snapshot);
    snapshot->link_bytes_per_s = link_set(offload);
    if (offload__disk_usage(offload, &snapshot->disk_bytes, &snapshot->disk_busy_ns,
                            &snapshot->disk_bytes_per_s)) {
        snapshot->disk_bytes -= base_bytes;
        snapshot->disk_busy_ns -= base_busy_ns;
    }
    return snapshot;
}

uint64_t offload__stall_ns(const struct offload__unit_counters *counters)
{
    uint64_t sum_ns = 0;

    for (unsigned cause = 0; cause < OFFLOAD_STALL_COUNT; cause++)
        sum_ns += counters->stall_ns[cause];
    return sum_ns;
}

uint64_t offload__compute_ns(const struct offload__snapshot *snapshot)
{
    const uint64_t run_ns = snapshot->totals.run_ns;
    const uint64_t stall_ns = offload__stall_ns(&snapshot->sum);

    return run_ns > stall_ns ? run_ns - stall_ns : 0;
}

/* a / b; -1: there is nothing to divide by. */
static double ratio(double a, double b)
{
    return b > 0 ? a / b : -1;
}

double offload__link_reached(const struct offload__snapshot *snapshot)
{
    return ratio((double)snapshot->sum.copied_bytes, offload__seconds(snapshot->sum.copy_ns));
}

double offload__link_busy_share(const struct offload__snapshot *snapshot)
{
    return ratio((double)snapshot->totals.run_copy_ns, (double)snapshot->totals.run_ns);
}

/* The own shards take no link. */
static double linked_bytes(const struct offload__snapshot *snapshot)
{
    const double own = snapshot->moved_own == 0
                           ? 0
                           : (double)snapshot->moved_own / (double)snapshot->sum.bytes_moved;

    return (double)snapshot->totals.run_copied_bytes * (1 - own);
}

double offload__link_use_share(const struct offload__snapshot *snapshot)
{
    return ratio(linked_bytes(snapshot), offload__seconds(snapshot->totals.run_ns) *
                                             (double)snapshot->link_bytes_per_s);
}

double offload__disk_reached(const struct offload__snapshot *snapshot)
{
    return ratio((double)snapshot->disk_bytes, offload__seconds(snapshot->disk_busy_ns));
}

double offload__disk_busy_share(const struct offload__snapshot *snapshot)
{
    const double share =
        ratio((double)snapshot->disk_busy_ns, (double)snapshot->totals.run_ns);

    return share > 1 ? 1 : share; /* it also reads after the last pass, for the next */
}

double offload__disk_use_share(const struct offload__snapshot *snapshot)
{
    return ratio((double)snapshot->disk_bytes, offload__seconds(snapshot->totals.run_ns) *
                                                   (double)snapshot->disk_bytes_per_s);
}

double offload__bound_s(const struct offload__snapshot *snapshot)
{
    const double link = ratio(linked_bytes(snapshot), (double)snapshot->link_bytes_per_s);
    const double disk = ratio((double)snapshot->disk_bytes, (double)snapshot->disk_bytes_per_s);
    const double longer = link > disk ? link : disk;

    return longer > 0 ? longer : 0;
}

double offload__hit_rate(const struct offload__unit_counters *counters)
{
    return ratio((double)counters->hits, (double)(counters->hits + counters->misses));
}
