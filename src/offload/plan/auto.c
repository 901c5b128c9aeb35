/* offload/plan/auto.c - what stays and what moves, so that it fits a budget.
 *
 * Every weight of a layer is read once in a pass, so it does not matter for the bytes that move
 * which of them stay; it matters that as many stay as the budget holds, that little of it is taken
 * by slots, and that what moves is spread evenly, so that the home's link is never idle while
 * computing waits. So matrices are cut into tiles of some MiB, every so-manyth of which moves:
 *
 *     gate_up  |ssss|ssss|mmmm|ssss|ssss|mmmm|...     s stays, m moves
 *
 * Only matrices that are read row by row can be cut. Tiles whose bytes the checkpoint has otherwise
 * than they are used come from a cache file, where there is a folder for one. All else stays.
 *
 * Where a device has a link, its host memory is nearer than the disk: what moves is at home there
 * as far as the host's budget reaches, once for all ranks of a node, and the rest, every so-manyth
 * tile of what moves, is on the disk:
 *
 *     gate_up  |ssss|hhhh|ssss|dddd|ssss|hhhh|...     h at home on the host, d on the disk
 *
 * so that the disk has the time of the whole pass for its share and reads all the while. */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "offload/disk/reader.h"
#include "offload/internal.h"

#define TILE_BYTES (4 * MIB)
#define TILE_BYTES_MIN (64 * KIB)
#define TILES_WANTED 64     /* a small model gets small tiles */
#define SLOTS 8

struct tiles {
    size_t *segments;       /* indices in offload.segments, in the order of a pass */
    bool *moves;
    enum offload_home *homes; /* of those that move */
    size_t count;
    uint64_t bytes;         /* of all */
    uint64_t slot_bytes;    /* that hold any of them */
};

static uint64_t tile_bytes_of(const struct offload *offload)
{
    uint64_t bytes = 0;

    if (offload->options.tile_bytes != 0)
        return offload->options.tile_bytes;
    for (size_t i = 0; i < offload->param_count; i++) {
        if (offload->params[i].layer != OFFLOAD_NO_LAYER && offload->params[i].by_rows &&
            !offload->params[i].is_expert)
            bytes += offload->params[i].size_bytes;
    }
    bytes /= TILES_WANTED;
    return bytes > TILE_BYTES ? TILE_BYTES : bytes < TILE_BYTES_MIN ? TILE_BYTES_MIN : bytes;
}

/* Cuts everything that can be cut. */
static enum status tiles_cut(struct offload *offload, struct tiles *tiles, struct err *err)
{
    const uint64_t tile_bytes = tile_bytes_of(offload);

    for (size_t i = 0; i < offload->param_count; i++) {
        struct offload__param *param = &offload->params[i];
        const size_t first = offload->segment_count;
        bool done;
        enum status st;

        if (param->layer == OFFLOAD_NO_LAYER || !param->by_rows || param->is_expert)
            continue;
        st = offload__segments_add(offload, i, tile_bytes, &done, err);
        if (st != STATUS_OK)
            return st;
        if (!done && offload->options.cache_dir == NULL)
            continue;
        if (!done)
            st = offload__segments_cut(offload, i, tile_bytes, err);
        if (st != STATUS_OK)
            return st;
        param->segment_first = first;
        param->segment_count = offload->segment_count - first;
    }
    tiles->segments = calloc(offload->segment_count + 1, sizeof(*tiles->segments));
    tiles->moves = calloc(offload->segment_count + 1, sizeof(*tiles->moves));
    tiles->homes = calloc(offload->segment_count + 1, sizeof(*tiles->homes));
    if (tiles->segments == NULL || tiles->moves == NULL || tiles->homes == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to plan %zu tiles",
                       offload->segment_count);
    return STATUS_OK;
}

/* A table that is looked up stays on the disk before anything else moves: a step reads few of its
 * rows. Its segments come last, behind those of the tiles. */
static enum status table_leave(struct offload *offload, uint64_t *saved_bytes_out, struct err *err)
{
    *saved_bytes_out = 0;
    for (size_t i = 0; i < offload->param_count; i++) {
        struct offload__param *param = &offload->params[i];
        const uint64_t rows_bytes = offload__lookup_bytes(offload, param);
        const size_t first = offload->segment_count;
        bool done;
        enum status st;

        if (!param->by_lookup || offload->options.lookup_row_max == 0 ||
            rows_bytes >= param->size_bytes)
            continue;
        st = offload__segments_add(offload, i, UINT64_MAX, &done, err);
        if (st != STATUS_OK || !done)
            return st;
        param->segment_first = first;
        param->segment_count = offload->segment_count - first;
        offload->lookup_param = i;
        *saved_bytes_out = param->size_bytes - rows_bytes;
        return STATUS_OK;
    }
    return STATUS_OK;
}

/* Lists the tiles as a pass comes to them: by layer and part, then as described. */
static enum status tiles_list(struct offload *offload, struct tiles *tiles, struct err *err)
{
    const size_t place_count = (size_t)offload->layer_count * OFFLOAD_PART_COUNT;
    size_t *next = calloc(place_count + 2, sizeof(*next));

    if (next == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to plan %zu parts", place_count);
    for (size_t i = 0; i < offload->segment_count; i++) {
        const struct offload__param *param = &offload->params[offload->segments[i].param];

        next[(size_t)param->layer * OFFLOAD_PART_COUNT + param->part + 1]++;
    }
    for (size_t place = 1; place <= place_count; place++)
        next[place] += next[place - 1];
    for (size_t i = 0; i < offload->segment_count; i++) {
        const struct offload__segment *segment = &offload->segments[i];
        const struct offload__param *param = &offload->params[segment->param];
        const uint64_t slot_bytes = size_align_up(
            segment->file_offset_bytes % DISK_ALIGN + segment->size_bytes, DISK_ALIGN);

        tiles->segments[next[(size_t)param->layer * OFFLOAD_PART_COUNT + param->part]++] = i;
        tiles->bytes += segment->size_bytes;
        if (slot_bytes > tiles->slot_bytes)
            tiles->slot_bytes = slot_bytes;
    }
    tiles->count = offload->segment_count;
    free(next);
    return STATUS_OK;
}

/* Marks tiles of at least wanted_bytes in all, evenly; returns the bytes marked. */
static uint64_t tiles_choose(const struct offload *offload, struct tiles *tiles,
                             uint64_t wanted_bytes)
{
    const double share = tiles->bytes > 0 ? (double)wanted_bytes / (double)tiles->bytes : 0;
    uint64_t chosen_bytes = 0;
    double owed = 0;

    for (size_t i = 0; i < tiles->count; i++) {
        const uint64_t bytes = offload->segments[tiles->segments[i]].size_bytes;

        owed += share * (double)bytes;
        tiles->moves[i] = owed >= (double)bytes / 2;
        if (!tiles->moves[i])
            continue;
        owed -= (double)bytes;
        chosen_bytes += bytes;
    }
    for (size_t i = tiles->count; i-- > 0 && chosen_bytes < wanted_bytes;) {
        if (tiles->moves[i])
            continue;
        tiles->moves[i] = true;
        chosen_bytes += offload->segments[tiles->segments[i]].size_bytes;
    }
    return chosen_bytes;
}

/* Appends the parameter's segments to `kept`, neighbours that stay joined. */
static size_t settle_param(const struct offload *offload, struct offload__param *param,
                           struct offload__segment *kept, size_t kept_count)
{
    const size_t first = param->segment_first, end = first + param->segment_count;

    param->segment_first = kept_count;
    for (size_t k = first; k < end; k++) {
        const struct offload__segment *segment = &offload->segments[k];
        struct offload__segment *last = &kept[kept_count - (kept_count > 0 ? 1 : 0)];

        if (kept_count > param->segment_first && segment->unit == OFFLOAD_NO_UNIT &&
            last->unit == OFFLOAD_NO_UNIT && last->file_index == segment->file_index &&
            (segment->file_index == OFFLOAD_NO_FILE ||
             last->file_offset_bytes + last->size_bytes == segment->file_offset_bytes)) {
            last->row_count += segment->row_count;
            last->size_bytes += segment->size_bytes;
            continue;
        }
        kept[kept_count++] = *segment;
    }
    param->segment_count = kept_count - param->segment_first;
    return kept_count;
}

/* Forgets the segments of parameters of which nothing moves, and orders the others by parameter.
 * The tiles' indices are no longer good afterwards; moving segments know their unit. */
static enum status segments_settle(struct offload *offload, struct err *err)
{
    struct offload__segment *kept = calloc(offload->segment_count + 1, sizeof(*kept));
    size_t kept_count = 0;

    if (kept == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu segments of weights",
                       offload->segment_count);
    for (size_t i = 0; i < offload->param_count; i++) {
        struct offload__param *param = &offload->params[i];
        bool any = i == offload->lookup_param;

        for (size_t k = 0; k < param->segment_count; k++)
            any = any || offload->segments[param->segment_first + k].unit != OFFLOAD_NO_UNIT;
        if (any)
            kept_count = settle_param(offload, param, kept, kept_count);
        else
            param->segment_first = param->segment_count = 0;
    }
    free(offload->segments);
    offload->segments = kept;
    offload->segment_count = kept_count;
    offload->segment_capacity = kept_count;
    return STATUS_OK;
}

/* A unit for each moving tile. Their numbers follow the pass; segments are found by them. */
static enum status units_create(struct offload *offload, const struct tiles *tiles,
                                struct err *err)
{
    uint32_t number = 0;
    size_t count = 0;

    for (size_t i = 0; i < tiles->count; i++)
        count += tiles->moves[i];
    offload->units = calloc(count + 1, sizeof(*offload->units));
    if (offload->units == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu units", count);
    for (size_t i = 0; i < tiles->count; i++) {
        struct offload__segment *segment = &offload->segments[tiles->segments[i]];
        const struct offload__param *param = &offload->params[segment->param];
        struct offload__unit *unit = &offload->units[offload->unit_count];

        segment->unit = OFFLOAD_NO_UNIT;
        if (!tiles->moves[i])
            continue;
        segment->unit = offload->unit_count++;
        unit->layer = (uint32_t)param->layer;
        unit->part = param->part;
        unit->home = tiles->homes[i];
        unit->is_tile = true;
        unit->is_cached = unit->home == OFFLOAD_HOME_DISK &&
                          segment->file_index == OFFLOAD_NO_FILE;
        unit->params = malloc(sizeof(*unit->params));
        if (unit->params == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for %zu units", count);
        unit->params[0] = segment->param;
        unit->param_count = 1;
        number = segment->unit > 0 && unit[-1].layer == unit->layer && unit[-1].part == unit->part
                     ? number + 1 : 0;
        (void)snprintf(unit->name, sizeof(unit->name), "layers.%" PRIu32 ".%s.%" PRIu32,
                       unit->layer, offload_part_name(unit->part), number);
    }
    offload->ring_count = offload->unit_count;
    return STATUS_OK;
}

/* Gives what stays its place in one block, and each tile its record. */
static enum status lay_out(struct offload *offload, struct err *err)
{
    uint64_t *resident_bytes = &offload->sizes.resident_bytes;
    enum status st = STATUS_OK;

    for (size_t i = 0; i < offload->param_count && st == STATUS_OK; i++) {
        struct offload__param *param = &offload->params[i];

        if (i == offload->lookup_param) {
            st = offload__block_append(param->name, offload__lookup_bytes(offload, param),
                                       resident_bytes, &param->offset_bytes, err);
            continue;
        }
        if (param->segment_count == 0 && !param->is_expert)
            st = offload__block_append(param->name, param->size_bytes, resident_bytes,
                                       &param->offset_bytes, err);
        for (size_t k = 0; k < param->segment_count && st == STATUS_OK; k++) {
            struct offload__segment *segment = &offload->segments[param->segment_first + k];
            struct offload__unit *unit;

            if (segment->unit == OFFLOAD_NO_UNIT) {
                st = offload__block_append(param->name, segment->size_bytes, resident_bytes,
                                           &segment->offset_bytes, err);
                continue;
            }
            unit = &offload->units[segment->unit];
            unit->segment_first = param->segment_first + k;
            unit->segment_count = 1;
            if (unit->home == OFFLOAD_HOME_DISK)
                st = offload__segments_lay_out(offload, param->segment_first + k, 1,
                                               &unit->size_bytes, err);
            else
                unit->size_bytes = size_align_up(segment->size_bytes, DEVICE_ALIGNMENT);
        }
    }
    return st;
}

/* What everything takes when it stays; of experts that are units, their fewest slots. */
static enum status total_bytes(const struct offload *offload, uint64_t *bytes_out, struct err *err)
{
    uint64_t offset;
    enum status st = STATUS_OK;

    *bytes_out = offload->options.experts ? offload__experts_bytes_min(offload) : 0;
    for (size_t i = 0; i < offload->param_count && st == STATUS_OK; i++) {
        if (!offload->params[i].is_expert)
            st = offload__block_append(offload->params[i].name, offload->params[i].size_bytes,
                                       bytes_out, &offset, err);
    }
    return st;
}

static enum status refuse(const struct offload *offload, uint64_t smallest_bytes, struct err *err)
{
    char budget[24], smallest[24];

    if (offload->options.weight_budget_smallest_out != NULL)
        *offload->options.weight_budget_smallest_out = smallest_bytes;
    return err_set(err, STATUS_NO_MEMORY,
                   "--offload-mode auto: %s are left for weights, and what has to stay, with the "
                   "slots for what moves, takes %" PRIu64 " bytes (%s); %" PRIu64
                   " byte%s more would do",
                   size_format(offload->options.weight_budget_bytes, budget, sizeof(budget)),
                   smallest_bytes, size_format(smallest_bytes, smallest, sizeof(smallest)),
                   smallest_bytes - offload->options.weight_budget_bytes,
                   smallest_bytes - offload->options.weight_budget_bytes == 1 ? "" : "s");
}

/* Chooses the tiles that move so that the rest and the slots fit the budget. */
static enum status choose(struct offload *offload, struct tiles *tiles, struct err *err)
{
    const uint64_t budget_bytes = offload->options.weight_budget_bytes;
    /* joining and cutting takes some padding of DEVICE_ALIGNMENT for each tile */
    const uint64_t slack_bytes = (uint64_t)tiles->count * DEVICE_ALIGNMENT;
    const uint64_t slots_bytes = (uint64_t)offload->options.slot_count * tiles->slot_bytes;
    uint64_t all_bytes, saved_bytes, moved_bytes, wanted_bytes; /* moved: when all tiles move */
    enum status st = total_bytes(offload, &all_bytes, err);

    if (st != STATUS_OK || all_bytes <= budget_bytes)
        return st;
    st = table_leave(offload, &saved_bytes, err);
    if (st != STATUS_OK)
        return st;
    all_bytes -= saved_bytes;
    if (all_bytes <= budget_bytes)
        return STATUS_OK;
    moved_bytes = all_bytes - tiles->bytes + slots_bytes + slack_bytes;
    if (tiles->count < 2 || moved_bytes > budget_bytes)
        return refuse(offload,
                      tiles->count < 2 || moved_bytes > all_bytes ? all_bytes : moved_bytes, err);
    wanted_bytes = all_bytes + slots_bytes + slack_bytes - budget_bytes;
    (void)tiles_choose(offload, tiles, wanted_bytes < tiles->bytes ? wanted_bytes : tiles->bytes);
    return STATUS_OK;
}

/* Of what moves, evenly, so much to the host as its budget has room for, and all else to the disk.
 * Where all of it on the host takes no more than reading it from the disk would, it goes there. */
static void homes_choose(const struct offload *offload, struct tiles *tiles)
{
    const enum offload_home near_home = offload__near_home(offload);
    struct offload__host_room room = { 0 };
    double share, owed = 0;
    uint64_t near_bytes = 0;

    for (size_t i = 0; i < tiles->count; i++) {
        tiles->homes[i] = OFFLOAD_HOME_DISK;
        if (!tiles->moves[i])
            continue;
        room.tile_count++;
        room.tile_bytes += size_align_up(offload->segments[tiles->segments[i]].size_bytes,
                                         DEVICE_ALIGNMENT);
    }
    if (offload->in_place || room.tile_count == 0)
        return;
    room.tile_slot_bytes = tiles->slot_bytes;
    offload__host_room(offload, &room);
    share = room.near_bytes >= room.tile_bytes ? 1
            : (double)room.near_bytes / (double)room.tile_bytes;
    for (size_t i = 0; i < tiles->count; i++) {
        const uint64_t bytes =
            size_align_up(offload->segments[tiles->segments[i]].size_bytes, DEVICE_ALIGNMENT);

        if (!tiles->moves[i])
            continue;
        owed += share * (double)bytes;
        if (owed < (double)bytes / 2 || near_bytes + bytes > room.near_bytes)
            continue;
        owed -= (double)bytes;
        near_bytes += bytes;
        tiles->homes[i] = near_home;
    }
}

static enum status unit_of_create(struct offload *offload, struct err *err)
{
    const size_t place_count = (size_t)offload->layer_count * OFFLOAD_PART_COUNT;

    offload->unit_of = malloc((place_count + 1) * sizeof(*offload->unit_of));
    if (offload->unit_of == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to plan %zu parts", place_count);
    for (size_t i = 0; i < place_count; i++)
        offload->unit_of[i] = OFFLOAD_NO_UNIT;
    return STATUS_OK;
}

enum status offload__plan_auto(struct offload *offload, struct err *err)
{
    struct tiles tiles = { 0 };
    enum status st = offload__options_check_auto(&offload->options, offload->log, err);

    if (offload->options.slot_count == 0)
        offload->options.slot_count = SLOTS;
    if (st == STATUS_OK)
        st = unit_of_create(offload, err);
    if (st == STATUS_OK)
        st = tiles_cut(offload, &tiles, err);
    if (st == STATUS_OK)
        st = tiles_list(offload, &tiles, err);
    if (st == STATUS_OK)
        st = choose(offload, &tiles, err);
    if (st == STATUS_OK) {
        homes_choose(offload, &tiles);
        st = units_create(offload, &tiles, err);
    }
    free(tiles.segments);
    free(tiles.moves);
    free(tiles.homes);
    if (st != STATUS_OK)
        return st;
    st = segments_settle(offload, err);
    if (st == STATUS_OK)
        st = lay_out(offload, err);
    if (st != STATUS_OK)
        return st;
    offload->options.prefetch_step = offload->options.slot_count - 1;
    if (offload->unit_count < (uint64_t)offload->options.prefetch_step)
        offload->options.prefetch_step = (int64_t)offload->unit_count;
    return offload__plan_sizes(offload, err);
}
