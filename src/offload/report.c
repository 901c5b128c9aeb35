/* offload/report.c - what moved, for programs, for people, and against what was due.
 *
 * A report is made from the copy that the engine's thread publishes after each pass, so it is of
 * one moment and any thread may ask. What each field means exactly is in docs/design.md, "The
 * report". */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "offload/internal.h"
#include "offload/share.h"

struct snapshot {
    struct offload__counters totals;
    struct offload__unit_counters sum;    /* over the units */
    struct offload__unit_counters *units; /* [unit_count] */
    enum offload_home *homes;             /* [unit_count] */
    uint64_t moved_from[OFFLOAD_HOME_COUNT]; /* bytes, by home */
    uint64_t moved_own;                   /* of those from shards, what was this rank's own */
};

static void snapshot_destroy(struct snapshot *snapshot)
{
    if (snapshot == NULL)
        return;
    free(snapshot->units);
    free(snapshot->homes);
    free(snapshot);
}

/* NULL: no memory. */
static struct snapshot *snapshot_create(const struct offload *offload)
{
    const size_t count = offload->unit_count;
    struct snapshot *snapshot = calloc(1, sizeof(*snapshot));
    pthread_mutex_t *lock = (pthread_mutex_t *)&offload->lock; /* is not what is told */

    if (snapshot == NULL)
        return NULL;
    snapshot->units = calloc(count + 1, sizeof(*snapshot->units));
    snapshot->homes = calloc(count + 1, sizeof(*snapshot->homes));
    if (snapshot->units == NULL || snapshot->homes == NULL) {
        snapshot_destroy(snapshot);
        return NULL;
    }
    (void)pthread_mutex_lock(lock);
    snapshot->totals = offload->published_totals;
    memcpy(snapshot->units, offload->published_counters, count * sizeof(*snapshot->units));
    memcpy(snapshot->homes, offload->published_homes, count * sizeof(*snapshot->homes));
    (void)pthread_mutex_unlock(lock);
    for (size_t i = 0; i < count; i++) {
        const struct offload__unit_counters *unit = &snapshot->units[i];

        snapshot->sum.onloads += unit->onloads;
        snapshot->sum.bytes_moved += unit->bytes_moved;
        snapshot->sum.copy_ns += unit->copy_ns;
        snapshot->sum.copied_bytes += unit->copied_bytes;
        for (unsigned cause = 0; cause < OFFLOAD_STALL_COUNT; cause++)
            snapshot->sum.stall_ns[cause] += unit->stall_ns[cause];
        snapshot->sum.onloads_planned += unit->onloads_planned;
        snapshot->sum.bytes_planned += unit->bytes_planned;
        snapshot->moved_from[snapshot->homes[i]] += unit->bytes_moved;
        if (snapshot->homes[i] == OFFLOAD_HOME_SHARDED)
            snapshot->moved_own += unit->onloads * offload__sharded_own(offload, i);
    }
    return snapshot;
}

static double seconds(uint64_t ns)
{
    return (double)ns * 1e-9;
}

static uint64_t stall_ns_of(const struct offload__unit_counters *unit)
{
    uint64_t sum_ns = 0;

    for (unsigned cause = 0; cause < OFFLOAD_STALL_COUNT; cause++)
        sum_ns += unit->stall_ns[cause];
    return sum_ns;
}

static uint64_t compute_ns(const struct snapshot *snapshot)
{
    const uint64_t run_ns = snapshot->totals.run_ns, stall_ns = stall_ns_of(&snapshot->sum);

    return run_ns > stall_ns ? run_ns - stall_ns : 0;
}

/* a / b; -1: there is nothing to divide by. */
static double ratio(double a, double b)
{
    return b > 0 ? a / b : -1;
}

static double link_reached(const struct snapshot *snapshot)
{
    return ratio((double)snapshot->sum.copied_bytes, seconds(snapshot->sum.copy_ns));
}

static double link_busy_share(const struct snapshot *snapshot)
{
    return ratio((double)snapshot->totals.run_copy_ns, (double)snapshot->totals.run_ns);
}

/* What onloads come over: the host's link, or with shards the one between devices. */
static uint64_t link_set(const struct offload *offload)
{
    const struct device_info *info = device_info(offload->device);

    return offload->options.home == OFFLOAD_HOME_SHARDED ? info->peer_bytes_per_s
                                                         : info->link_bytes_per_s;
}

/* The own shards take no link. */
static double link_use_share(const struct snapshot *snapshot, uint64_t bytes_per_s_set)
{
    const double own = snapshot->moved_own == 0
                           ? 0
                           : (double)snapshot->moved_own / (double)snapshot->sum.bytes_moved;

    return ratio((double)snapshot->totals.run_copied_bytes * (1 - own),
                 seconds(snapshot->totals.run_ns) * (double)bytes_per_s_set);
}

/* A number, or null when there is none. */
static json_t *number_or_null(double number)
{
    return number < 0 ? json_null() : json_real(number);
}

static json_t *link_json(const struct offload *offload, const struct snapshot *snapshot)
{
    const uint64_t set = link_set(offload);

    return json_pack("{s:o, s:o, s:o, s:o}", "bytes_per_s_set",
                     set > 0 ? json_integer((json_int_t)set) : json_null(), "bytes_per_s_reached",
                     number_or_null(link_reached(snapshot)), "busy_share_of_run",
                     number_or_null(link_busy_share(snapshot)), "use_share_of_run",
                     number_or_null(link_use_share(snapshot, set)));
}

static json_t *unit_json(const struct offload *offload, const struct snapshot *snapshot,
                         size_t index)
{
    const struct offload__unit *unit = &offload->units[index];
    const struct offload__unit_counters *counters = &snapshot->units[index];
    const enum offload_home home = snapshot->homes[index];

    return json_pack("{s:s, s:s, s:b, s:I, s:I, s:I, s:f, s:f}", "name", unit->name, "home",
                     offload_home_name(home), "in_place",
                     offload__home_is_read(offload, home), "bytes",
                     (json_int_t)unit->size_bytes, "onloads", (json_int_t)counters->onloads,
                     "bytes_moved", (json_int_t)counters->bytes_moved, "copy_s",
                     seconds(counters->copy_ns), "stall_s", seconds(stall_ns_of(counters)));
}

static json_t *units_json(const struct offload *offload, const struct snapshot *snapshot)
{
    json_t *array = json_array();

    for (size_t i = 0; array != NULL && i < offload->unit_count; i++) {
        if (json_array_append_new(array, unit_json(offload, snapshot, i)) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static json_t *moved_from_json(const struct snapshot *snapshot)
{
    json_t *object = json_object();

    for (unsigned home = 0; object != NULL && home < OFFLOAD_HOME_COUNT; home++) {
        if (offload__home((enum offload_home)home)->mode == NULL)
            continue;
        if (json_object_set_new(object, offload_home_name((enum offload_home)home),
                                json_integer((json_int_t)snapshot->moved_from[home])) != 0) {
            json_decref(object);
            return NULL;
        }
    }
    return object;
}

/* null: no unit has a home that ranks share. */
static json_t *sharing_json(const struct offload *offload, const struct snapshot *snapshot)
{
    if (!offload__has_shared_home(offload))
        return json_null();
    return json_pack(
        "{s:I, s:I, s:I, s:I, s:I}", "rank", (json_int_t)offload__share_rank(offload), "ranks",
        (json_int_t)offload__share_count(offload), "shard_bytes",
        (json_int_t)offload->sizes.shard_bytes, "bytes_moved_own",
        (json_int_t)snapshot->moved_own, "bytes_moved_peers",
        (json_int_t)(snapshot->moved_from[OFFLOAD_HOME_SHARDED] - snapshot->moved_own));
}

json_t *offload_report_json(const struct offload *offload)
{
    struct snapshot *snapshot = snapshot_create(offload);
    json_t *report;

    if (snapshot == NULL)
        return NULL;
    report = json_pack(
        "{s:s, s:s, s:I, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:b}", "mode",
        offload->mode, "device", device_info(offload->device)->name, "passes",
        (json_int_t)snapshot->totals.passes, "run_s", seconds(snapshot->totals.run_ns), "compute_s",
        seconds(compute_ns(snapshot)), "copy_s", seconds(snapshot->sum.copy_ns), "stall_s",
        seconds(stall_ns_of(&snapshot->sum)), "onloads", (json_int_t)snapshot->sum.onloads,
        "bytes_moved", (json_int_t)snapshot->sum.bytes_moved, "bytes_planned",
        (json_int_t)snapshot->sum.bytes_planned, "bytes_moved_from", moved_from_json(snapshot),
        "sharing", sharing_json(offload, snapshot), "link", link_json(offload, snapshot),
        "units", units_json(offload, snapshot), "garbage", offload_is_garbage(offload));
    snapshot_destroy(snapshot);
    return report;
}

/* The lines about the link; there is one when something was copied. */
static void link_log(const struct offload *offload, const struct snapshot *snapshot,
                     const struct log *log)
{
    const uint64_t set = link_set(offload);
    const double busy = link_busy_share(snapshot) * 100;

    if (snapshot->sum.copy_ns == 0)
        return;
    if (set > 0)
        log_line(log, LOG_INFO,
                 "link: %.3g GB/s while copying, of %.3g GB/s set; busy %.1f %% of the run, %.1f "
                 "%% of its bandwidth used over the run", link_reached(snapshot) * 1e-9,
                 (double)set * 1e-9, busy, link_use_share(snapshot, set) * 100);
    else
        log_line(log, LOG_INFO, "link: %.3g GB/s while copying, busy %.1f %% of the run",
                 link_reached(snapshot) * 1e-9, busy);
}

/* A line per run of units with equal numbers. */
static void units_log(const struct offload *offload, const struct snapshot *snapshot,
                      const struct log *log)
{
    for (size_t i = 0, end; i < offload->unit_count; i = end) {
        const struct offload__unit_counters *counters = &snapshot->units[i];
        uint64_t copy_ns = 0, stall_ns = 0;
        char moved[24], others[96] = "";

        for (end = i; end < offload->unit_count &&
                      snapshot->units[end].onloads == counters->onloads &&
                      snapshot->units[end].bytes_moved == counters->bytes_moved &&
                      snapshot->homes[end] == snapshot->homes[i];
             end++) {
            copy_ns += snapshot->units[end].copy_ns;
            stall_ns += stall_ns_of(&snapshot->units[end]);
        }
        if (end - i > 1)
            (void)snprintf(others, sizeof(others), " to %s (%zu units), each",
                           offload->units[end - 1].name, end - i);
        log_line(log, LOG_INFO,
                 "%s%s: %" PRIu64 " onloads, %s from %s; %.3f s copying, %.3f s stalled%s",
                 offload->units[i].name, others, counters->onloads,
                 size_format(counters->bytes_moved, moved, sizeof(moved)),
                 offload_home_name(snapshot->homes[i]), seconds(copy_ns), seconds(stall_ns),
                 end - i > 1 ? " in all" : "");
    }
}

void offload_report_log(const struct offload *offload, const struct log *log)
{
    struct snapshot *snapshot = snapshot_create(offload);
    char moved[24];

    if (snapshot == NULL) {
        log_line(log, LOG_WARN, "no memory for the report of what moved");
        return;
    }
    log_line(log, LOG_INFO, "%" PRIu64 " passes in %.3f s: computing %.3f s, stalled %.3f s",
             snapshot->totals.passes, seconds(snapshot->totals.run_ns),
             seconds(compute_ns(snapshot)), seconds(stall_ns_of(&snapshot->sum)));
    if (offload->unit_count == 0) {
        log_line(log, LOG_INFO, "nothing is offloaded, nothing moved");
    } else if (offload->sizes.slot_count == 0 && offload->sizes.expert_slot_count == 0) {
        log_line(log, LOG_INFO, "%zu units %s, nothing moved", offload->unit_count,
                 offload__home(offload->units[0].home)->phrase_in_place);
    } else {
        log_line(log, LOG_INFO,
                 "moved %s to the device in %" PRIu64 " onloads of %zu units, %.3f s",
                 size_format(snapshot->sum.bytes_moved, moved, sizeof(moved)),
                 snapshot->sum.onloads, offload->unit_count, seconds(snapshot->sum.copy_ns));
        link_log(offload, snapshot, log);
        units_log(offload, snapshot, log);
    }
    if (offload_is_garbage(offload))
        log_line(log, LOG_WARN, "offload mode meta: some weights have no contents, the answers are "
                                "garbage");
    snapshot_destroy(snapshot);
}

enum status offload_report_check(const struct offload *offload, struct err *err)
{
    struct snapshot *snapshot = snapshot_create(offload);
    enum status st = STATUS_OK;

    if (snapshot == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the report of what moved");
    for (size_t i = 0; i < offload->unit_count && st == STATUS_OK; i++) {
        const struct offload__unit_counters *unit = &snapshot->units[i];

        if (unit->onloads != unit->onloads_planned)
            st = err_set(err, STATUS_DEVICE,
                         "%s: %" PRIu64 " onloads in %" PRIu64 " passes, the schedule demands "
                         "%" PRIu64, offload->units[i].name, unit->onloads, snapshot->totals.passes,
                         unit->onloads_planned);
        else if (unit->bytes_moved != unit->bytes_planned)
            st = err_set(err, STATUS_DEVICE,
                         "%s: %" PRIu64 " bytes moved in %" PRIu64 " passes, the schedule demands "
                         "%" PRIu64, offload->units[i].name, unit->bytes_moved,
                         snapshot->totals.passes, unit->bytes_planned);
    }
    snapshot_destroy(snapshot);
    return st;
}
