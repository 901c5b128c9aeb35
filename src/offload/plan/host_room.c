/* offload/plan/host_room.c - what a plan takes of host memory, and how much of it homes may have.
 *
 *     homes | staging, on the way from the disk | tables | loading: one parameter, buffers
 *
 * Loading comes again with every live update, so its memory is kept free for it. On a device with a
 * link auto gives homes what the budget leaves beside the rest; where not everything fits, some of
 * it is for staging. All of it is known before anything is taken. */
#include <assert.h>

#include "base/size.h"
#include "offload/disk/reader.h"
#include "offload/internal.h"
#include "offload/home/share.h"

#define SLACK_BYTES MIB /* beside tables that are not made yet, for an allocator's own */

enum offload_home offload__near_home(const struct offload *offload)
{
    return offload__share_count(offload) > 1 ? OFFLOAD_HOME_SHM : OFFLOAD_HOME_HOST;
}

bool offload__param_is_plain(const struct offload__param *param, const struct ckpt *ckpt)
{
    struct loader_extent extent = { 0 };

    if (ckpt == NULL || param->loader == NULL || param->tensor.layout != LAYOUT_ND ||
        loader_check(param->loader, ckpt, param->name, NULL) != STATUS_OK)
        return false;
    for (uint64_t at = 0; at < param->size_bytes; at += extent.size_bytes) {
        if (!loader_extent(param->loader, ckpt, at, &extent))
            return false;
    }
    return true;
}

/* Whether the parameter is loaded here, and not straight to where it lies. */
static bool needs_bounce(const struct offload *offload, const struct offload__param *param)
{
    const struct offload__home_ops *home;

    if (param->unit == OFFLOAD_NO_UNIT)
        return !offload->in_place;
    home = offload__home(offload->units[param->unit].home);
    return offload__is_loaded_here(offload, param) && !home->is_host_memory;
}

uint64_t offload__bounce_bytes(const struct offload *offload, const struct ckpt *ckpt)
{
    uint64_t most_bytes = 0;

    for (size_t i = 0; i < offload->param_count; i++) {
        const struct offload__param *param = &offload->params[i];
        const bool is_cut = param->segment_count > 0 && param->unit == OFFLOAD_NO_UNIT;
        uint64_t bytes = param->size_bytes;

        if (i == offload->lookup_param || (!is_cut && !needs_bounce(offload, param)))
            continue;
        if (is_cut && offload->segments[param->segment_first].file_index != OFFLOAD_NO_FILE)
            bytes = offload->in_place ? 0 : OFFLOAD_PIECE_BYTES;
        else if (!is_cut && param->unit == OFFLOAD_NO_UNIT && bytes > OFFLOAD_PIECE_BYTES &&
                 offload__param_is_plain(param, ckpt))
            bytes = OFFLOAD_PIECE_BYTES;
        most_bytes = bytes > most_bytes ? bytes : most_bytes;
    }
    return most_bytes;
}

/* A cache file is made through the largest of its records, and of the parameters that are cut. */
static uint64_t cached_bytes(const struct offload *offload)
{
    uint64_t record_bytes = 0, param_bytes = 0;

    for (size_t i = 0; i < offload->unit_count; i++) {
        const struct offload__unit *unit = &offload->units[i];

        if (!unit->is_cached)
            continue;
        if (unit->size_bytes > record_bytes)
            record_bytes = unit->size_bytes;
        if (unit->is_tile && offload->params[unit->params[0]].size_bytes > param_bytes)
            param_bytes = offload->params[unit->params[0]].size_bytes;
    }
    return record_bytes + param_bytes;
}

/* Filling everything, or looking another checkpoint through, or making a cache file of it. */
static uint64_t load_bytes(const struct offload *offload, uint64_t cached)
{
    const uint64_t filling = offload__bounce_bytes(offload, offload->options.ckpt);
    const uint64_t most = filling > cached ? filling : cached;

    return loader_staging_bytes(offload->options.ckpt) +
           (most > OFFLOAD_PIECE_BYTES ? most : OFFLOAD_PIECE_BYTES) + 2 * (uint64_t)DISK_ALIGN +
           offload->finish_bytes + offload__late_bytes(offload);
}

static uint64_t ring_table_bytes(uint64_t ring_count, uint64_t slot_count)
{
    return ring_count * (2 * sizeof(struct offload__fetch) + 6 * (uint64_t)OFFLOAD_EVENT_BYTES) +
           slot_count * OFFLOAD_EVENT_BYTES;
}

/* What units and the lists of them will take, which nobody has made yet. */
static uint64_t plan_table_bytes(const struct offload *offload, uint64_t unit_count)
{
    const uint64_t unit_bytes = sizeof(struct offload__unit) + sizeof(enum offload_home) +
                                2 * sizeof(struct offload__unit_counters) + 4 * sizeof(size_t);

    return unit_count * unit_bytes +
           2 * offload->segment_count * sizeof(struct offload__segment) + SLACK_BYTES;
}

#define READS_MAX 2          /* that a tile or an expert's tensors take */
#define DISK_FETCH_BYTES 256 /* of what a read belongs to, at most */

void offload__host_room(const struct offload *offload, struct offload__host_room *room)
{
    const struct offload_options *options = &offload->options;
    const uint64_t expert_bytes = options->experts ? offload__expert_bytes_max(offload) : 0;
    const uint64_t slot_count = (uint64_t)options->slot_count;
    uint64_t expert_count = 0, record_bytes = room->tile_slot_bytes, beside, staging, all;

    for (size_t i = 0; i < offload->param_count; i++)
        expert_count += offload->params[i].is_expert;
    expert_count /= 2;
    if (expert_bytes > record_bytes)
        record_bytes = expert_bytes;
    beside = load_bytes(offload, 0) + ring_table_bytes(room->tile_count, slot_count) +
             plan_table_bytes(offload, room->tile_count + expert_count);
    if (offload->lookup_param != OFFLOAD_NO_PARAM)
        beside += offload__lookup_host_bytes(offload, &offload->params[offload->lookup_param]);
    if (expert_count > 0)
        beside += expert_count * 2 * sizeof(struct offload__fetch) + SLACK_BYTES;
    staging = room->tile_count > 0 ? slot_count * record_bytes : 0;
    if (expert_count > 0)
        staging += offload__experts_staging_max(record_bytes, expert_count);
    all = room->tile_bytes + (options->experts ? offload__experts_near_bytes(offload) : 0);
    room->near_bytes = all;
    if (all + beside <= options->host_budget_bytes || all <= staging)
        return;
    beside += staging + (2 * room->tile_count + 3 * slot_count + expert_count) * DISK_FETCH_BYTES +
              (slot_count + expert_count) * READS_MAX * sizeof(struct disk_read);
    room->near_bytes =
        beside < options->host_budget_bytes ? options->host_budget_bytes - beside : 0;
}

void offload__host_sizes(struct offload *offload)
{
    struct offload_sizes *sizes = &offload->sizes;
    bool on_disk = offload->lookup_param != OFFLOAD_NO_PARAM;

    sizes->host_home_bytes = 0;
    for (size_t i = 0; i < offload->unit_count; i++) {
        const enum offload_home home = offload->units[i].home;

        on_disk = on_disk || home == OFFLOAD_HOME_DISK;
        if (offload__home(home)->is_host_memory &&
            (home != OFFLOAD_HOME_SHM || offload__share_rank(offload) == 0))
            sizes->host_home_bytes += offload->units[i].size_bytes;
    }
    sizes->host_staging_bytes = on_disk ? offload__disk_staging_bytes(offload) : 0;
    if (offload->lookup_param != OFFLOAD_NO_PARAM)
        sizes->host_staging_bytes +=
            offload__lookup_host_bytes(offload, &offload->params[offload->lookup_param]);
    sizes->host_staging_bytes += offload__experts_copied_bytes(offload);
    sizes->host_table_bytes = offload__experts_host_bytes(offload);
    if (sizes->slot_count > 0)
        sizes->host_table_bytes += ring_table_bytes(offload->ring_count, sizes->slot_count);
    if (on_disk)
        sizes->host_table_bytes += offload__disk_table_bytes(offload);
    sizes->host_load_bytes = load_bytes(offload, cached_bytes(offload));
    sizes->host_bytes = sizes->host_home_bytes + sizes->host_staging_bytes +
                        sizes->host_table_bytes + sizes->host_load_bytes;
}
