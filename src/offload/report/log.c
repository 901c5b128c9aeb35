/* offload/report/log.c - the report for people, some lines. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/size.h"
#include "offload/report/internal.h"

/* The lines about link and disk; there is one when something came over it in a run. */
static void rates_log(const struct offload__snapshot *snapshot, const struct log *log)
{
    char set[48] = "", used[64] = "";

    if (snapshot->totals.run_ns == 0)
        return; /* what a home reads ahead for the first pass has no shares of a run yet */
    if (snapshot->sum.copy_ns > 0) {
        if (snapshot->link_bytes_per_s > 0) {
            (void)snprintf(set, sizeof(set), " of %.3g GB/s set;",
                           (double)snapshot->link_bytes_per_s * 1e-9);
            (void)snprintf(used, sizeof(used), ", %.1f %% of its bandwidth used over the run",
                           offload__link_use_share(snapshot) * 100);
        }
        log_line(log, LOG_INFO, "link: %.3g GB/s while copying,%s busy %.1f %% of the run%s",
                 offload__link_reached(snapshot) * 1e-9, set,
                 offload__link_busy_share(snapshot) * 100, used);
    }
    set[0] = used[0] = '\0';
    if (snapshot->disk_bytes == 0)
        return;
    if (snapshot->disk_bytes_per_s > 0) {
        (void)snprintf(set, sizeof(set), " of %.3g GB/s measured;",
                       (double)snapshot->disk_bytes_per_s * 1e-9);
        (void)snprintf(used, sizeof(used), ", %.1f %% of its bandwidth used over the run",
                       offload__disk_use_share(snapshot) * 100);
    }
    log_line(log, LOG_INFO, "disk: %.3g GB/s while reading,%s busy %.1f %% of the run%s",
             offload__disk_reached(snapshot) * 1e-9, set, offload__disk_busy_share(snapshot) * 100,
             used);
}

static void stalls_log(const struct offload__snapshot *snapshot, const struct log *log)
{
    const uint64_t *stall_ns = snapshot->sum.stall_ns;

    if (offload__stall_ns(&snapshot->sum) == 0)
        return;
    log_line(log, LOG_INFO,
             "stalled for the disk %.3f s, the link %.3f s, a slot %.3f s, the router %.3f s",
             offload__seconds(stall_ns[OFFLOAD_STALL_DISK]),
             offload__seconds(stall_ns[OFFLOAD_STALL_LINK]),
             offload__seconds(stall_ns[OFFLOAD_STALL_SLOT]),
             offload__seconds(stall_ns[OFFLOAD_STALL_ROUTER]));
}

static void cache_log(const struct offload__snapshot *snapshot, const struct log *log)
{
    const struct offload__unit_counters *sum = &snapshot->sum;
    char used[24], wasted[24];

    if (sum->hits + sum->misses == 0)
        return;
    log_line(log, LOG_INFO,
             "experts: %" PRIu64 " of %" PRIu64 " were there when asked for (%.1f %%); guessed and "
             "used %s, guessed and wasted %s", sum->hits, sum->hits + sum->misses,
             offload__hit_rate(sum) * 100,
             size_format(sum->guess_used_bytes, used, sizeof(used)),
             size_format(sum->guess_wasted_bytes, wasted, sizeof(wasted)));
}

/* "ffn" of "layers.3.ffn". */
static const char *part_of(const struct offload__group *group)
{
    const char *dot = strrchr(group->name, '.');

    return dot != NULL ? dot + 1 : group->name;
}

static bool are_alike(const struct offload__group *a, const struct offload__group *b)
{
    return a->home == b->home && (a->count > 1) == (b->count > 1) &&
           strcmp(part_of(a), part_of(b)) == 0 &&
           (a->count > 1 || (a->sum.onloads == b->sum.onloads &&
                             a->sum.bytes_moved == b->sum.bytes_moved));
}

/* One line for the group and all like it: whole units with equal numbers, or the pieces of a part
 * in all layers. */
static void group_log(struct offload__snapshot *snapshot, size_t first, const struct log *log)
{
    struct offload__group *group = &snapshot->groups[first];
    const struct offload__group *last = group;
    uint64_t onloads = 0, bytes = 0, copy_ns = 0, read_ns = 0, stall_ns = 0;
    size_t layers = 0, units = 0;
    char moved[24], others[112] = "";

    for (size_t i = first; i < snapshot->group_count; i++) {
        struct offload__group *other = &snapshot->groups[i];

        if (other->is_told || !are_alike(group, other))
            continue;
        other->is_told = true;
        last = other;
        layers++;
        units += other->count;
        onloads += other->sum.onloads;
        bytes += other->sum.bytes_moved;
        copy_ns += other->sum.copy_ns;
        read_ns += other->sum.read_ns;
        stall_ns += offload__stall_ns(&other->sum);
    }
    if (units > 1)
        (void)snprintf(others, sizeof(others), "%s%s (%zu units in %zu layers), in all",
                       layers > 1 ? " to " : "", layers > 1 ? last->name : "", units, layers);
    log_line(log, LOG_INFO,
             "%s%s: %" PRIu64 " onloads, %s from %s; %.3f s copying, %.3f s reading, %.3f s "
             "stalled", group->name, others, onloads, size_format(bytes, moved, sizeof(moved)),
             offload_home_name(group->home), offload__seconds(copy_ns), offload__seconds(read_ns),
             offload__seconds(stall_ns));
}

static void bound_log(const struct offload__snapshot *snapshot, const struct log *log)
{
    const double bound_s = offload__bound_s(snapshot);
    const double run_s = offload__seconds(snapshot->totals.run_ns);

    if (bound_s > 0 && run_s > 0)
        log_line(log, LOG_INFO,
                 "what moved takes %.3f s at the full rate of link and disk: %.1f %% of the run",
                 bound_s, bound_s / run_s * 100);
}

static void moved_log(const struct offload *offload, struct offload__snapshot *snapshot,
                      const struct log *log)
{
    char moved[24], again[24];

    log_line(log, LOG_INFO,
             "moved %s to the device in %" PRIu64 " onloads of %zu units, %.3f s; %s of it had "
             "been there before", size_format(snapshot->sum.bytes_moved, moved, sizeof(moved)),
             snapshot->sum.onloads, offload->unit_count, offload__seconds(snapshot->sum.copy_ns),
             size_format(snapshot->sum.reread_bytes, again, sizeof(again)));
    rates_log(snapshot, log);
    bound_log(snapshot, log);
    stalls_log(snapshot, log);
    cache_log(snapshot, log);
    for (size_t i = 0; i < snapshot->group_count; i++) {
        if (!snapshot->groups[i].is_told)
            group_log(snapshot, i, log);
    }
}

void offload_report_log(const struct offload *offload, const struct log *log)
{
    struct offload__snapshot *snapshot = offload__snapshot_create(offload);

    if (snapshot == NULL) {
        log_line(log, LOG_WARN, "no memory for the report of what moved");
        return;
    }
    log_line(log, LOG_INFO, "%" PRIu64 " passes in %.3f s: computing %.3f s, stalled %.3f s",
             snapshot->totals.passes, offload__seconds(snapshot->totals.run_ns),
             offload__seconds(offload__compute_ns(snapshot)),
             offload__seconds(offload__stall_ns(&snapshot->sum)));
    if (offload->unit_count == 0)
        log_line(log, LOG_INFO, "nothing is offloaded, nothing moved");
    else if (offload->sizes.slot_count == 0 && offload->sizes.expert_slot_count == 0)
        log_line(log, LOG_INFO, "%zu units %s, nothing moved", offload->unit_count,
                 offload__home(offload->units[0].home)->phrase_in_place);
    else
        moved_log(offload, snapshot, log);
    if (snapshot->replays.op_count > 0)
        log_line(log, LOG_INFO, "%" PRIu64 " operators, of which %" PRIu64 " came again and were "
                 "queued together", snapshot->replays.op_count, snapshot->replays.replayed_count);
    if (offload_is_garbage(offload))
        log_line(log, LOG_WARN, "offload mode meta: some weights have no contents, the answers are "
                                "garbage");
    offload__snapshot_destroy(snapshot);
}
