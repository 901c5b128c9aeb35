/* offload/plan/plan.c - which parameters move, and the units and records they form.
 *
 * V2 looks at layers in groups: of every group_size layers the last num_in_group are chosen, and in
 * those the parameters that a glob matches, or that the model marks as selected by default. V1
 * takes the layers' parameters in model order until enough bytes are gone; like SGLang's, it looks
 * at the sum before each parameter, so that the last one may pass the limit. What lies outside the
 * layers stays.
 *
 * The moving parameters of one part of one layer are a unit and lie in one record, each at a
 * multiple of DEVICE_ALIGNMENT, so that one copy brings all of them and each is aligned in any
 * slot:
 *
 *     record  | w13_weight ......... |pad| w2_weight ....... |pad|
 *             0                      offset_bytes            size_bytes
 *
 * What stays lies in one block in the same manner. Nothing here touches a device. */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "offload/internal.h"
#include "offload/home/share.h"

/* V1: in model order, until cpu_offload_bytes are gone. */
static enum status plan_v1(const struct offload__param *params, size_t param_count,
                           uint64_t cpu_offload_bytes, const struct log *log, bool *moves_out,
                           struct err *err)
{
    uint64_t gone_bytes = 0;
    char asked[24], there[24];
    bool any = false;

    for (size_t i = 0; i < param_count; i++) {
        moves_out[i] = params[i].layer != OFFLOAD_NO_LAYER && gone_bytes < cpu_offload_bytes;
        if (!moves_out[i])
            continue;
        any = true;
        if (!size_add(gone_bytes, params[i].size_bytes, &gone_bytes))
            return err_set(err, STATUS_BAD_INPUT, "%s: the parameters' bytes overflow 64 bits",
                           params[i].name);
    }
    if (!any)
        return err_set(err, STATUS_BAD_INPUT,
                       "--cpu-offload-gb: the model has no parameters in layers to move");
    if (gone_bytes < cpu_offload_bytes)
        log_line(log, LOG_INFO,
                 "--cpu-offload-gb asks for %s; all the layers' parameters, %s, move",
                 size_format(cpu_offload_bytes, asked, sizeof(asked)),
                 size_format(gone_bytes, there, sizeof(there)));
    return STATUS_OK;
}

/* Whether V2 chooses the layer. */
static bool layer_is_chosen(const struct offload_options *options, int32_t layer)
{
    return layer != OFFLOAD_NO_LAYER &&
           layer % options->group_size >= options->group_size - options->num_in_group;
}

/* V2 without globs: the default selection of the chosen layers. */
static enum status select_default(const struct offload__param *params, size_t param_count,
                                  const bool *eligible, bool *moves_out, struct err *err)
{
    int32_t layer_with = OFFLOAD_NO_LAYER;
    bool any = false;

    for (size_t i = 0; i < param_count; i++) {
        moves_out[i] = eligible[i] && params[i].default_selected;
        any = any || moves_out[i];
        if (params[i].default_selected && layer_with == OFFLOAD_NO_LAYER)
            layer_with = params[i].layer;
    }
    if (any)
        return STATUS_OK;
    if (layer_with == OFFLOAD_NO_LAYER)
        return err_set(err, STATUS_BAD_INPUT,
                       "--offload-group-size: no parameter of this model is selected by default; "
                       "choose some with --offload-params");
    return err_set(err, STATUS_BAD_INPUT,
                   "--offload-group-size: the layers it chooses have nothing that is selected by "
                   "default (layer %" PRId32 " has); --offload-num-in-group equal to the group "
                   "size works, or choose with --offload-params", layer_with);
}

static enum status plan_v2(const struct offload__param *params, size_t param_count,
                           const struct offload_options *options, bool *moves_out, struct err *err)
{
    bool *eligible;
    bool any = false;
    enum status st;

    eligible = calloc(param_count + 1, sizeof(*eligible));
    if (eligible == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to plan %zu parameters", param_count);
    for (size_t i = 0; i < param_count; i++) {
        eligible[i] = layer_is_chosen(options, params[i].layer);
        any = any || eligible[i];
    }
    if (!any)
        st = err_set(err, STATUS_BAD_INPUT,
                     "--offload-group-size %" PRId64 ": the layers it chooses have no parameters",
                     options->group_size);
    else if (options->params_glob != NULL)
        st = offload__globs_match(options->params_glob, params, param_count, eligible, moves_out,
                                  err);
    else
        st = select_default(params, param_count, eligible, moves_out, err);
    free(eligible);
    return st;
}

enum status offload__plan(const struct offload__param *params, size_t param_count,
                          uint32_t layer_count, const struct offload_options *options,
                          const struct log *log, bool *moves_out, struct err *err)
{
    enum status st = offload__options_check(options, layer_count, log, err);

    if (st != STATUS_OK)
        return st;
    if (offload__is_v1(options))
        return plan_v1(params, param_count, options->cpu_offload_bytes, log, moves_out, err);
    if (offload__is_v2(options))
        return plan_v2(params, param_count, options, moves_out, err);
    memset(moves_out, 0, param_count * sizeof(*moves_out));
    return STATUS_OK;
}

enum status offload__block_append(const char *name, uint64_t added_bytes, uint64_t *size_bytes,
                                  uint64_t *offset_out, struct err *err)
{
    uint64_t end_bytes;

    if (!size_add(*size_bytes, added_bytes, &end_bytes) ||
        end_bytes > UINT64_MAX - DEVICE_ALIGNMENT)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: %" PRIu64 " bytes after %" PRIu64 " others overflow 64 bits", name,
                       added_bytes, *size_bytes);
    *offset_out = *size_bytes;
    *size_bytes = size_align_up(end_bytes, DEVICE_ALIGNMENT);
    return STATUS_OK;
}

static enum status record_append(struct offload__param *param, uint64_t *size_bytes,
                                 struct err *err)
{
    return offload__block_append(param->name, param->size_bytes, size_bytes, &param->offset_bytes,
                                 err);
}

/* The place in unit_of of the parameter's layer and part. */
static size_t *unit_place(const struct offload *offload, const struct offload__param *param)
{
    return &offload->unit_of[(size_t)param->layer * OFFLOAD_PART_COUNT + param->part];
}

/* Allocates the units of what moves, in pass order, and fills unit_of. */
static enum status units_create(struct offload *offload, const bool *moves, struct err *err)
{
    const size_t place_count = (size_t)offload->layer_count * OFFLOAD_PART_COUNT;
    size_t unit_count = 0;

    offload->unit_of = malloc((place_count + 1) * sizeof(*offload->unit_of));
    if (offload->unit_of == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to plan %zu parts", place_count);
    for (size_t i = 0; i < place_count; i++)
        offload->unit_of[i] = OFFLOAD_NO_UNIT;
    for (size_t i = 0; i < offload->param_count; i++) {
        if (moves[i])
            *unit_place(offload, &offload->params[i]) = 0;
    }
    for (size_t i = 0; i < place_count; i++) {
        if (offload->unit_of[i] != OFFLOAD_NO_UNIT)
            offload->unit_of[i] = unit_count++;
    }
    offload->units = calloc(unit_count + 1, sizeof(*offload->units));
    if (offload->units == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu units", unit_count);
    offload->unit_count = offload->ring_count = unit_count;
    for (size_t i = 0; i < place_count; i++) {
        struct offload__unit *unit;

        if (offload->unit_of[i] == OFFLOAD_NO_UNIT)
            continue;
        unit = &offload->units[offload->unit_of[i]];
        unit->layer = (uint32_t)(i / OFFLOAD_PART_COUNT);
        unit->part = (enum offload_part)(i % OFFLOAD_PART_COUNT);
        unit->home = offload->options.home;
        (void)snprintf(unit->name, sizeof(unit->name), "layers.%" PRIu32 ".%s", unit->layer,
                       offload_part_name(unit->part));
    }
    return STATUS_OK;
}

/* Gives each parameter its unit and its offset, each unit its list. */
static enum status units_fill(struct offload *offload, const bool *moves, struct err *err)
{
    enum status st;

    for (size_t i = 0; i < offload->param_count; i++) {
        struct offload__param *param = &offload->params[i];

        param->unit = moves[i] ? *unit_place(offload, param) : OFFLOAD_NO_UNIT;
        if (moves[i])
            offload->units[param->unit].param_count++;
    }
    for (size_t i = 0; i < offload->unit_count; i++) {
        struct offload__unit *unit = &offload->units[i];

        unit->params = calloc(unit->param_count, sizeof(*unit->params));
        if (unit->params == NULL)
            return err_set(err, STATUS_NO_MEMORY, "%s: no memory for a unit of %zu parameters",
                           unit->name, unit->param_count);
        unit->param_count = 0;
    }
    for (size_t i = 0; i < offload->param_count; i++) {
        struct offload__param *param = &offload->params[i];

        if (param->is_expert) {
            continue; /* experts/plan.c's */
        } else if (param->unit == OFFLOAD_NO_UNIT) {
            st = record_append(param, &offload->sizes.resident_bytes, err);
        } else {
            struct offload__unit *unit = &offload->units[param->unit];

            assert(unit->params != NULL); /* made above for every unit */
            unit->params[unit->param_count++] = i;
            st = record_append(param, &unit->size_bytes, err);
        }
        if (st != STATUS_OK)
            return st;
    }
    return STATUS_OK;
}

/* Some of the unit's bytes are not in the checkpoint as they are used: all of it comes from a cache
 * file, and lies as it would in memory. */
static void unit_cache(struct offload *offload, struct offload__unit *unit)
{
    offload->segment_count = unit->segment_first;
    for (size_t i = 0; i < unit->param_count; i++)
        offload->params[unit->params[i]].segment_first =
            offload->params[unit->params[i]].segment_count = 0;
    unit->segment_first = unit->segment_count = 0;
    unit->is_cached = true;
    unit->size_bytes = size_align_up(unit->size_bytes, DISK_ALIGN);
}

/* At home on the disk, the record's parts lie as they do in the checkpoint's files. */
enum status offload__unit_lay_out_for_disk(struct offload *offload, struct offload__unit *unit,
                                           struct err *err)
{
    enum status st = STATUS_OK;

    unit->segment_first = offload->segment_count;
    for (size_t i = 0; i < unit->param_count && st == STATUS_OK; i++) {
        struct offload__param *param = &offload->params[unit->params[i]];
        const size_t first = offload->segment_count;
        bool done;

        st = offload__segments_add(offload, unit->params[i], UINT64_MAX, &done, err);
        if (st == STATUS_OK && (!done || (offload->segment_count - first > 1 && !param->by_rows &&
                                          !param->is_expert))) {
            unit_cache(offload, unit);
            return STATUS_OK;
        }
        if (st != STATUS_OK)
            return st;
        param->segment_first = first;
        param->segment_count = offload->segment_count - first;
        for (size_t k = first; k < offload->segment_count; k++)
            offload->segments[k].unit = param->unit;
    }
    unit->segment_count = offload->segment_count - unit->segment_first;
    st = offload__segments_lay_out(offload, unit->segment_first, unit->segment_count,
                                   &unit->size_bytes, err);
    for (size_t i = 0; i < unit->param_count && st == STATUS_OK; i++) {
        struct offload__param *param = &offload->params[unit->params[i]];

        param->offset_bytes = offload->segments[param->segment_first].offset_bytes;
    }
    return st;
}

static enum status units_lay_out_for_disk(struct offload *offload, struct err *err)
{
    enum status st = STATUS_OK;

    for (size_t i = 0; i < offload->unit_count && st == STATUS_OK; i++) {
        if (offload->units[i].home == OFFLOAD_HOME_DISK)
            st = offload__unit_lay_out_for_disk(offload, &offload->units[i], err);
    }
    return st;
}

enum offload__path offload__path(const struct offload *offload, const struct offload__unit *unit)
{
    if (!offload__home(unit->home)->has_contents)
        return OFFLOAD_PATH_NOTHING;
    return offload__home_is_read(offload, unit->home) ? OFFLOAD_PATH_IN_PLACE : OFFLOAD_PATH_FETCH;
}

/* Slots and sums. A pool is needed unless every unit is read at home. */
enum status offload__plan_sizes(struct offload *offload, struct err *err)
{
    const struct offload_options *options = &offload->options;
    struct offload_sizes *sizes = &offload->sizes;
    uint64_t pool_bytes;

    sizes->unit_count = offload->unit_count;
    sizes->shard_bytes = offload__sharded_bytes(offload, offload__share_rank(offload));
    for (size_t i = 0; i < offload->unit_count; i++) {
        const struct offload__unit *unit = &offload->units[i];

        if (!size_add(sizes->moving_bytes, unit->size_bytes, &sizes->moving_bytes))
            return err_set(err, STATUS_BAD_INPUT, "%s: the units' bytes overflow 64 bits",
                           unit->name);
        if (offload__path(offload, unit) == OFFLOAD_PATH_IN_PLACE)
            continue;
        if (unit->size_bytes > sizes->slot_bytes)
            sizes->slot_bytes = unit->size_bytes;
    }
    if (sizes->slot_bytes == 0)
        return STATUS_OK;
    sizes->slot_count = options->slot_count != 0 ? (uint64_t)options->slot_count
                                                 : (uint64_t)options->prefetch_step + 1;
    if (!size_mul(sizes->slot_bytes, sizes->slot_count, &pool_bytes))
        return err_set(err, STATUS_BAD_INPUT,
                       "--offload-slots %" PRIu64 ": so many of %" PRIu64 " bytes overflow 64 bits",
                       sizes->slot_count, sizes->slot_bytes);
    return STATUS_OK;
}

enum status offload__plan_units(struct offload *offload, const bool *moves, struct err *err)
{
    enum status st = units_create(offload, moves, err);

    if (st == STATUS_OK && offload->unit_count > 0)
        st = offload__options_check_units(&offload->options, offload->unit_count, err);
    if (st == STATUS_OK)
        st = units_fill(offload, moves, err);
    if (st == STATUS_OK)
        st = units_lay_out_for_disk(offload, err);
    if (st == STATUS_OK)
        st = offload__plan_sizes(offload, err);
    return st;
}
