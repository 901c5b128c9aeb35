/* offload/report/report.c - what moved, for programs, and against what was due.
 *
 * A report is made from the copy that the engine's thread publishes after each pass, so it is of
 * one moment and any thread may ask. What each field means exactly is in docs/offloading.md, "The
 * report". */
#include <inttypes.h>

#include "offload/report/internal.h"
#include "offload/home/share.h"

/* A number, or null when there is none. */
static json_t *number_or_null(double number)
{
    return number < 0 ? json_null() : json_real(number);
}

static json_t *count_or_null(uint64_t count)
{
    return count > 0 ? json_integer((json_int_t)count) : json_null();
}

static json_t *link_json(const struct offload__snapshot *snapshot)
{
    return json_pack("{s:o, s:o, s:o, s:o}", "bytes_per_s_set",
                     count_or_null(snapshot->link_bytes_per_s), "bytes_per_s_reached",
                     number_or_null(offload__link_reached(snapshot)), "busy_share_of_run",
                     number_or_null(offload__link_busy_share(snapshot)), "use_share_of_run",
                     number_or_null(offload__link_use_share(snapshot)));
}

static json_t *disk_json(const struct offload__snapshot *snapshot)
{
    return json_pack("{s:o, s:I, s:f, s:o, s:o, s:o}", "bytes_per_s_measured",
                     count_or_null(snapshot->disk_bytes_per_s), "bytes_read",
                     (json_int_t)snapshot->disk_bytes, "busy_s",
                     offload__seconds(snapshot->disk_busy_ns), "bytes_per_s_reached",
                     number_or_null(offload__disk_reached(snapshot)), "busy_share_of_run",
                     number_or_null(offload__disk_busy_share(snapshot)), "use_share_of_run",
                     number_or_null(offload__disk_use_share(snapshot)));
}

static json_t *stalls_json(const struct offload__unit_counters *counters)
{
    json_t *object = json_object();

    for (unsigned cause = 0; object != NULL && cause < OFFLOAD_STALL_COUNT; cause++)
        (void)json_object_set_new(object, offload__stall_name((enum offload__stall)cause),
                                  json_real(offload__seconds(counters->stall_ns[cause])));
    return object;
}

/* Seconds since the pass began; what was ahead of it is below 0. */
static double since(uint64_t pass_began_ns, uint64_t at_ns)
{
    return ((double)at_ns - (double)pass_began_ns) * 1e-9;
}

/* null: no such time. */
static json_t *span_json(uint64_t pass_began_ns, uint64_t began_ns, uint64_t ended_ns)
{
    return ended_ns == 0 ? json_null()
                         : json_pack("[f, f]", since(pass_began_ns, began_ns),
                                     since(pass_began_ns, ended_ns));
}

/* null: it did not come for the last pass. */
static json_t *arrival_json(const struct offload__arrival *last, uint64_t pass_began_ns)
{
    if (last->ready_ns == 0)
        return json_null();
    return json_pack("{s:o, s:o, s:f, s:f}", "read_s",
                     span_json(pass_began_ns, last->times.read_began_ns,
                               last->times.read_ended_ns), "copy_s",
                     span_json(pass_began_ns, last->times.copy_began_ns,
                               last->times.copy_ended_ns), "needed_s",
                     since(pass_began_ns, last->needed_ns), "ready_s",
                     since(pass_began_ns, last->ready_ns));
}

static json_t *group_json(const struct offload *offload, const struct offload__group *group,
                          uint64_t pass_began_ns)
{
    const struct offload__unit_counters *sum = &group->sum;

    return json_pack(
        "{s:s, s:s, s:b, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:o, s:o}", "name", group->name,
        "home", offload_home_name(group->home), "in_place",
        offload__home_is_read(offload, group->home), "units", (json_int_t)group->count, "bytes",
        (json_int_t)group->size_bytes, "onloads", (json_int_t)sum->onloads, "bytes_moved",
        (json_int_t)sum->bytes_moved, "bytes_reread", (json_int_t)sum->reread_bytes, "copy_s",
        offload__seconds(sum->copy_ns), "read_s", offload__seconds(sum->read_ns), "stall_s",
        offload__seconds(offload__stall_ns(sum)), "hit_rate",
        number_or_null(offload__hit_rate(sum)), "last_pass",
        arrival_json(&sum->last, pass_began_ns));
}

static json_t *groups_json(const struct offload *offload, const struct offload__snapshot *snapshot)
{
    json_t *array = json_array();

    for (size_t i = 0; array != NULL && i < snapshot->group_count; i++)
        (void)json_array_append_new(array, group_json(offload, &snapshot->groups[i],
                                                     snapshot->totals.pass_began_ns));
    return array;
}

static json_t *home_json(const struct offload__snapshot *snapshot, enum offload_home home)
{
    const struct offload__unit_counters *sum = &snapshot->homes[home];

    return json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:f}", "units",
        (json_int_t)snapshot->home_units[home], "bytes", (json_int_t)snapshot->home_bytes[home],
        "onloads", (json_int_t)sum->onloads, "bytes_moved", (json_int_t)sum->bytes_moved,
        "bytes_demanded", (json_int_t)(sum->bytes_moved - sum->guessed_bytes),
        "bytes_guessed_used", (json_int_t)sum->guess_used_bytes, "bytes_guessed_wasted",
        (json_int_t)sum->guess_wasted_bytes, "bytes_reread", (json_int_t)sum->reread_bytes, "hits",
        (json_int_t)sum->hits, "misses", (json_int_t)sum->misses, "hit_rate",
        number_or_null(offload__hit_rate(sum)), "stall_s",
        offload__seconds(offload__stall_ns(sum)));
}

/* Those that can be asked for; and of all homes those that have units. */
static void homes_json(const struct offload__snapshot *snapshot, json_t **moved_from_out,
                       json_t **homes_out)
{
    *moved_from_out = json_object();
    *homes_out = json_object();
    for (unsigned home = 0; home < OFFLOAD_HOME_COUNT; home++) {
        const char *name = offload_home_name((enum offload_home)home);

        if (offload__home((enum offload_home)home)->mode != NULL)
            (void)json_object_set_new(
                *moved_from_out, name,
                json_integer((json_int_t)snapshot->homes[home].bytes_moved));
        if (snapshot->home_units[home] > 0)
            (void)json_object_set_new(*homes_out, name,
                                      home_json(snapshot, (enum offload_home)home));
    }
}

/* null: no unit has a home that ranks share. */
static json_t *sharing_json(const struct offload *offload,
                            const struct offload__snapshot *snapshot)
{
    if (!offload__has_shared_home(offload))
        return json_null();
    return json_pack(
        "{s:I, s:I, s:I, s:I, s:I}", "rank", (json_int_t)offload__share_rank(offload), "ranks",
        (json_int_t)offload__share_count(offload), "shard_bytes",
        (json_int_t)offload->sizes.shard_bytes, "bytes_moved_own",
        (json_int_t)snapshot->moved_own, "bytes_moved_peers",
        (json_int_t)(snapshot->homes[OFFLOAD_HOME_SHARDED].bytes_moved - snapshot->moved_own));
}

static json_t *replays_json(const struct offload__snapshot *snapshot)
{
    const struct device_replays *replays = &snapshot->replays;

    if (replays->op_count == 0)
        return json_null();
    return json_pack("{s:I, s:I, s:I}", "operators", (json_int_t)replays->op_count, "replayed",
                     (json_int_t)replays->replayed_count, "graphs_made",
                     (json_int_t)replays->graph_count);
}

static json_t *bound_json(const struct offload__snapshot *snapshot)
{
    const double bound_s = offload__bound_s(snapshot);
    const double run_s = offload__seconds(snapshot->totals.run_ns);

    return json_pack("{s:o, s:o}", "moving_s", bound_s > 0 ? json_real(bound_s) : json_null(),
                     "share_of_run",
                     bound_s > 0 && run_s > 0 ? json_real(bound_s / run_s) : json_null());
}

static json_t *memory_json(const struct offload *offload)
{
    struct device_memory_report memory;

    device_memory_report(offload->device, &memory);
    return json_pack("{s:I, s:I, s:I, s:o, s:I, s:I}", "budget_bytes",
                     (json_int_t)memory.budget_bytes, "used_bytes", (json_int_t)memory.used_bytes,
                     "peak_bytes", (json_int_t)memory.peak_bytes, "host_budget_bytes",
                     count_or_null(memory.host_budget_bytes), "host_used_bytes",
                     (json_int_t)memory.host_used_bytes, "host_peak_bytes",
                     (json_int_t)memory.host_peak_bytes);
}

static json_t *pass_json(const struct offload__counters *totals)
{
    if (totals->pass_ended_ns == 0)
        return json_null();
    return json_pack("{s:f, s:f}", "began_at_s", offload__seconds(totals->pass_began_ns), "took_s",
                     since(totals->pass_began_ns, totals->pass_ended_ns));
}

json_t *offload_report_json(const struct offload *offload)
{
    struct offload__snapshot *snapshot = offload__snapshot_create(offload);
    const struct offload__unit_counters *sum;
    json_t *report, *moved_from, *homes;

    if (snapshot == NULL)
        return NULL;
    sum = &snapshot->sum;
    homes_json(snapshot, &moved_from, &homes);
    report = json_pack(
        "{s:s, s:s, s:I, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:o, "
        "s:o, s:o, s:o, s:o, s:b}", "mode", offload->mode, "device",
        device_info(offload->device)->name, "passes", (json_int_t)snapshot->totals.passes,
        "run_s", offload__seconds(snapshot->totals.run_ns), "compute_s",
        offload__seconds(offload__compute_ns(snapshot)), "copy_s", offload__seconds(sum->copy_ns),
        "stall_s", offload__seconds(offload__stall_ns(sum)),
        "onloads", (json_int_t)sum->onloads, "bytes_moved", (json_int_t)sum->bytes_moved,
        "bytes_planned", (json_int_t)sum->bytes_planned, "bytes_moved_from", moved_from, "homes",
        homes, "sharing", sharing_json(offload, snapshot), "link", link_json(snapshot), "disk",
        disk_json(snapshot), "stalls", stalls_json(sum), "bound", bound_json(snapshot), "units",
        groups_json(offload, snapshot), "memory", memory_json(offload), "replays",
        replays_json(snapshot), "last_pass", pass_json(&snapshot->totals), "garbage",
        offload_is_garbage(offload));
    offload__snapshot_destroy(snapshot);
    return report;
}

/* One unit's onloads and bytes, against what was due; and guesses against their outcome. */
static enum status unit_check(const struct offload *offload,
                              const struct offload__snapshot *snapshot, size_t index,
                              struct err *err)
{
    const struct offload__unit_counters *unit = &snapshot->units[index];
    const char *name = offload->units[index].name;
    const char *home = offload_home_name(snapshot->unit_homes[index]);

    if (unit->onloads != unit->onloads_planned)
        return err_set(err, STATUS_DEVICE,
                       "%s, home %s: %" PRIu64 " onloads in %" PRIu64 " passes, the schedule "
                       "demands %" PRIu64, name, home, unit->onloads, snapshot->totals.passes,
                       unit->onloads_planned);
    if (unit->bytes_moved != unit->bytes_planned)
        return err_set(err, STATUS_DEVICE,
                       "%s, home %s: %" PRIu64 " bytes moved in %" PRIu64 " passes, the schedule "
                       "demands %" PRIu64, name, home, unit->bytes_moved, snapshot->totals.passes,
                       unit->bytes_planned);
    if (unit->guessed_bytes > unit->bytes_moved)
        return err_set(err, STATUS_DEVICE,
                       "%s, home %s: %" PRIu64 " bytes guessed, of %" PRIu64 " that moved", name,
                       home, unit->guessed_bytes, unit->bytes_moved);
    return STATUS_OK;
}

enum status offload_report_check(const struct offload *offload, struct err *err)
{
    struct offload__snapshot *snapshot = offload__snapshot_create(offload);
    enum status st = STATUS_OK;

    if (snapshot == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the report of what moved");
    for (size_t i = 0; i < offload->unit_count && st == STATUS_OK; i++)
        st = unit_check(offload, snapshot, i, err);
    offload__snapshot_destroy(snapshot);
    return st;
}
