/* offload/experts/plan.c - experts as units: each expert of each layer moves by itself, when the
 * router has chosen it, into whichever slot the expert cache gives it.
 *
 *     record of one expert   | w13: gate, up | w2: down |      as its home has it
 *
 * The units of experts stand behind those of the ring, layer by layer, in order. All slots are
 * equal and hold any of them. How many there are is asked for, or is what the budget leaves; a
 * token's experts of one layer must fit, else there would be nothing to compute with. */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/size.h"
#include "offload/disk/reader.h"
#include "offload/internal.h"
#include "offload/home/share.h"

#define EXPERT_PARAMS 2 /* w13 and w2 */

enum status offload__options_check_experts(const struct offload_options *options, struct err *err)
{
    if (!options->experts && options->expert_slot_count != 0)
        return err_set(err, STATUS_BAD_INPUT,
                       "--offload-expert-slots %" PRId64 " has no effect without --offload-experts",
                       options->expert_slot_count);
    if (!options->experts)
        return STATUS_OK;
    if (offload__is_v1(options) || offload__is_v2(options) || options->params_glob != NULL)
        return err_set(err, STATUS_BAD_INPUT,
                       "--offload-experts moves the experts, and all else stays; leave out %s, or "
                       "use --offload-mode auto, which moves of the rest what does not fit",
                       offload__is_v1(options)   ? "--cpu-offload-gb"
                       : offload__is_v2(options) ? "--offload-group-size"
                                                 : "--offload-params");
    if (options->expert_slot_count < 0 || options->expert_slot_count > OFFLOAD_SLOTS_MAX)
        return err_set(err, STATUS_BAD_INPUT,
                       "--offload-expert-slots is %" PRId64 "; 1 to %d are possible, and 0 chooses",
                       options->expert_slot_count, OFFLOAD_SLOTS_MAX);
    return STATUS_OK;
}

/* Until homes_choose says otherwise, what auto moves is at home on the disk. */
static enum offload_home home_of(const struct offload *offload)
{
    return offload->options.automatic ? OFFLOAD_HOME_DISK : offload->options.home;
}

static enum status units_count(struct offload *offload, size_t *unit_count_out, struct err *err)
{
    size_t count = 0;

    offload->expert_units = malloc((offload->layer_count + 1) * sizeof(*offload->expert_units));
    if (offload->expert_units == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to plan %" PRIu32 " layers",
                       offload->layer_count);
    for (uint32_t layer = 0; layer < offload->layer_count; layer++)
        offload->expert_units[layer] = OFFLOAD_NO_UNIT;
    for (size_t i = 0; i < offload->param_count; i++) {
        const struct offload__param *param = &offload->params[i];

        if (!param->is_expert)
            continue;
        count++;
        if (param->expert >= offload->expert_count)
            offload->expert_count = param->expert + 1;
    }
    if (count == 0)
        return err_set(err, STATUS_BAD_INPUT,
                       "--offload-experts: the model has no experts; leave it out");
    *unit_count_out = count / EXPERT_PARAMS;
    return STATUS_OK;
}

static enum status units_create(struct offload *offload, size_t count, struct err *err)
{
    struct offload__unit *units =
        reallocarray(offload->units, offload->unit_count + count + 1, sizeof(*units));

    if (units == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu units", count);
    offload->units = units;
    for (size_t i = 0; i < offload->param_count; i++) {
        struct offload__param *param = &offload->params[i];
        struct offload__unit *unit;

        if (!param->is_expert)
            continue;
        if (offload->expert_units[param->layer] == OFFLOAD_NO_UNIT)
            offload->expert_units[param->layer] = offload->unit_count;
        param->unit = offload->expert_units[param->layer] + param->expert;
        unit = &offload->units[param->unit];
        if (param->unit == offload->unit_count) { /* its first parameter */
            *unit = (struct offload__unit){ .layer = (uint32_t)param->layer,
                                            .part = OFFLOAD_PART_FFN, .home = home_of(offload) };
            (void)snprintf(unit->name, sizeof(unit->name), "layers.%" PRIu32 ".experts.%" PRIu32,
                           unit->layer, param->expert);
            unit->params = calloc(EXPERT_PARAMS, sizeof(*unit->params));
            if (unit->params == NULL)
                return err_set(err, STATUS_NO_MEMORY, "no memory for %zu units", count);
            offload->unit_count++;
        }
        assert(param->unit + 1 == offload->unit_count && unit->param_count < EXPERT_PARAMS);
        unit->params[unit->param_count++] = i;
    }
    return STATUS_OK;
}

static enum status records_lay_out(struct offload *offload, struct err *err)
{
    enum status st = STATUS_OK;

    for (size_t i = offload->ring_count; i < offload->unit_count && st == STATUS_OK; i++) {
        struct offload__unit *unit = &offload->units[i];

        assert(unit->param_count == EXPERT_PARAMS);
        for (size_t k = 0; k < unit->param_count && st == STATUS_OK; k++) {
            struct offload__param *param = &offload->params[unit->params[k]];

            st = offload__block_append(param->name, param->size_bytes, &unit->size_bytes,
                                       &param->offset_bytes, err);
        }
        if (st == STATUS_OK && unit->home == OFFLOAD_HOME_DISK)
            st = offload__unit_lay_out_for_disk(offload, unit, err);
    }
    return st;
}

/* What an expert's slots and the list of them take besides; from slot_count. */
static enum status bytes_fill(struct offload *offload, struct err *err)
{
    struct offload_sizes *sizes = &offload->sizes;

    sizes->expert_list_bytes =
        size_align_up(offload->expert_count * sizeof(struct op_moe_expert), DEVICE_ALIGNMENT);
    if (!size_mul(sizes->expert_slot_bytes, sizes->expert_slot_count, &sizes->expert_bytes) ||
        !size_add(sizes->expert_bytes, sizes->expert_list_bytes, &sizes->expert_bytes))
        return err_set(err, STATUS_BAD_INPUT,
                       "--offload-expert-slots %" PRIu64 ": so many of %" PRIu64
                       " bytes overflow 64 bits", sizes->expert_slot_count,
                       sizes->expert_slot_bytes);
    return STATUS_OK;
}

static enum status slots_refuse(const struct offload *offload, uint64_t used_bytes,
                                uint64_t fitting_count, struct err *err)
{
    const struct offload_sizes *sizes = &offload->sizes;
    const uint64_t count_min = offload->options.expert_top_k;
    const uint64_t smallest_bytes = used_bytes + count_min * sizes->expert_slot_bytes;
    char size[24], more[24];

    if (offload->options.expert_slot_count != 0)
        return err_set(err, STATUS_BAD_INPUT,
                       "--offload-expert-slots %" PRId64 " is too few: a token is computed with "
                       "%" PRIu64 " experts of a layer, so %" PRIu64 " is the smallest that works",
                       offload->options.expert_slot_count, count_min, count_min);
    if (offload->options.weight_budget_smallest_out != NULL)
        *offload->options.weight_budget_smallest_out = smallest_bytes;
    return err_set(err, STATUS_NO_MEMORY,
                   "the budget leaves room for %" PRIu64 " of the %" PRIu64 " slots of %s that a "
                   "token's experts of one layer need; %s more would do", fitting_count, count_min,
                   size_format(sizes->expert_slot_bytes, size, sizeof(size)),
                   size_format(smallest_bytes - offload->options.weight_budget_bytes, more,
                               sizeof(more)));
}

/* How many slots: as asked for, or what the budget leaves, but not more than there are experts. */
static enum status slots_choose(struct offload *offload, struct err *err)
{
    const struct offload_options *options = &offload->options;
    struct offload_sizes *sizes = &offload->sizes;
    const uint64_t used_bytes = sizes->resident_bytes + sizes->shard_bytes +
                                sizes->slot_count * sizes->slot_bytes + sizes->expert_list_bytes;
    const uint64_t unit_count = offload->unit_count - offload->ring_count;
    uint64_t count = (uint64_t)options->expert_slot_count;

    if (count == 0)
        count = options->weight_budget_bytes > used_bytes
                    ? (options->weight_budget_bytes - used_bytes) / sizes->expert_slot_bytes : 0;
    if (count < options->expert_top_k)
        return slots_refuse(offload, used_bytes, count, err);
    if (count > unit_count) {
        if (options->expert_slot_count != 0)
            log_line(offload->log, LOG_INFO, "--offload-expert-slots %" PRIu64
                     ": there are only %" PRIu64 " experts, each gets one", count, unit_count);
        count = unit_count;
    }
    sizes->expert_slot_count = count > OFFLOAD_SLOTS_MAX ? OFFLOAD_SLOTS_MAX : count;
    return STATUS_OK;
}

static enum status sizes_fill(struct offload *offload, struct err *err)
{
    struct offload_sizes *sizes = &offload->sizes;
    enum status st;

    for (size_t i = offload->ring_count; i < offload->unit_count; i++) {
        const struct offload__unit *unit = &offload->units[i];

        if (!size_add(sizes->moving_bytes, unit->size_bytes, &sizes->moving_bytes))
            return err_set(err, STATUS_BAD_INPUT, "%s: the units' bytes overflow 64 bits",
                           unit->name);
        if (offload__path(offload, unit) != OFFLOAD_PATH_IN_PLACE &&
            unit->size_bytes > sizes->expert_slot_bytes)
            sizes->expert_slot_bytes = unit->size_bytes;
    }
    sizes->unit_count = offload->unit_count;
    sizes->shard_bytes = offload__sharded_bytes(offload, offload__share_rank(offload));
    sizes->expert_slot_bytes = size_align_up(sizes->expert_slot_bytes, DISK_ALIGN);
    st = bytes_fill(offload, err);
    if (st == STATUS_OK && sizes->expert_slot_bytes > 0)
        st = slots_choose(offload, err);
    return st == STATUS_OK ? bytes_fill(offload, err) : st;
}

uint64_t offload__expert_bytes_max(const struct offload *offload)
{
    uint64_t largest_bytes = 0;

    for (size_t i = 0; i + 1 < offload->param_count; i++) {
        const struct offload__param *param = &offload->params[i];
        uint64_t bytes;

        if (!param->is_expert || !param[1].is_expert || param->expert != param[1].expert)
            continue;
        /* each of up to three tensors in blocks of its own, with one more at each end */
        bytes = param[0].size_bytes + param[1].size_bytes + 6 * (uint64_t)DISK_ALIGN;
        largest_bytes = bytes > largest_bytes ? bytes : largest_bytes;
    }
    return largest_bytes;
}

uint64_t offload__experts_bytes_min(const struct offload *offload)
{
    uint64_t expert_count = 0;

    for (size_t i = 0; i < offload->param_count; i++) {
        const struct offload__param *param = &offload->params[i];

        if (param->is_expert && param->expert >= expert_count)
            expert_count = param->expert + 1;
    }
    return offload__expert_bytes_max(offload) * offload->options.expert_top_k +
           expert_count * sizeof(struct op_moe_expert);
}

uint64_t offload__experts_near_bytes(const struct offload *offload)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < offload->param_count; i++) {
        if (offload->params[i].is_expert)
            bytes += size_align_up(offload->params[i].size_bytes, DEVICE_ALIGNMENT);
    }
    return bytes;
}

static uint64_t near_bytes_of(const struct offload *offload, const struct offload__unit *unit)
{
    uint64_t bytes = 0;

    for (size_t k = 0; k < unit->param_count; k++)
        bytes += size_align_up(offload->params[unit->params[k]].size_bytes, DEVICE_ALIGNMENT);
    return bytes;
}

/* What routers choose is known: at home on the host are those that come next behind the ones that
 * the slots hold, and, when there is room for more, these too. */
static void homes_choose_known(struct offload *offload, uint64_t room_bytes)
{
    const uint32_t *order = offload__routing_order(offload);
    const size_t count = offload->unit_count - offload->ring_count;
    const uint64_t slot_bytes = offload__expert_bytes_max(offload);
    const uint64_t used_bytes = offload->sizes.resident_bytes +
                                offload->sizes.slot_count * offload->sizes.slot_bytes;
    size_t slot_count = (size_t)offload->options.expert_slot_count;

    assert(slot_bytes > 0);
    if (slot_count == 0 && offload->options.weight_budget_bytes > used_bytes)
        slot_count =
            (size_t)((offload->options.weight_budget_bytes - used_bytes) / slot_bytes);
    for (size_t i = 0; i < count; i++) {
        const size_t at = (i + slot_count) % count;
        struct offload__unit *unit = &offload->units[offload__routing_unit(offload, order[at])];
        const uint64_t bytes = near_bytes_of(offload, unit);

        if (bytes > room_bytes)
            return;
        room_bytes -= bytes;
        unit->home = offload__near_home(offload);
    }
}

/* Auto, on a device with a link: tiles come first, since each is needed in every pass; of experts
 * so many, evenly, as the host's budget then has room for. */
static void homes_choose(struct offload *offload)
{
    struct offload__host_room room = { 0 };
    uint64_t near_bytes = 0, all_bytes, used_bytes = 0;
    double share, owed = 0;

    if (!offload->options.automatic || offload->in_place)
        return;
    for (size_t i = 0; i < offload->ring_count; i++) {
        const struct offload__unit *unit = &offload->units[i];

        room.tile_count++;
        room.tile_bytes += size_align_up(offload->segments[unit->segment_first].size_bytes,
                                         DEVICE_ALIGNMENT);
        if (unit->home != OFFLOAD_HOME_DISK)
            used_bytes += unit->size_bytes;
    }
    room.tile_slot_bytes = offload->sizes.slot_bytes;
    offload__host_room(offload, &room);
    all_bytes = offload__experts_near_bytes(offload);
    room.near_bytes = room.near_bytes > used_bytes ? room.near_bytes - used_bytes : 0;
    share = room.near_bytes >= all_bytes ? 1 : (double)room.near_bytes / (double)all_bytes;
    if (offload__routing_order(offload) != NULL && offload__share_count(offload) == 1) {
        homes_choose_known(offload, room.near_bytes);
        return;
    }
    for (size_t i = offload->ring_count; i < offload->unit_count; i++) {
        struct offload__unit *unit = &offload->units[i];
        const uint64_t bytes = near_bytes_of(offload, unit);

        owed += share * (double)bytes;
        if (owed < (double)bytes / 2 || near_bytes + bytes > room.near_bytes)
            continue;
        owed -= (double)bytes;
        near_bytes += bytes;
        unit->home = offload__near_home(offload);
    }
}

enum status offload__plan_experts(struct offload *offload, struct err *err)
{
    size_t count = 0;
    enum status st = units_count(offload, &count, err);

    if (st == STATUS_OK)
        st = units_create(offload, count, err);
    if (st == STATUS_OK) {
        offload__routing_open(offload);
        homes_choose(offload);
        st = records_lay_out(offload, err);
    }
    if (st == STATUS_OK)
        st = sizes_fill(offload, err);
    return st;
}

static const uint8_t *row_at(const struct offload *offload, const struct offload__param *param,
                             uint64_t row, const uint8_t *record)
{
    const uint64_t row_bytes = offload__row_bytes(param);

    if (param->segment_count == 0)
        return record + param->offset_bytes + row * row_bytes;
    for (size_t k = param->segment_first; k < param->segment_first + param->segment_count; k++) {
        const struct offload__segment *segment = &offload->segments[k];

        if (row >= segment->row_first && row < segment->row_first + segment->row_count)
            return record + segment->offset_bytes + (row - segment->row_first) * row_bytes;
    }
    assert(!"a row of no segment");
    return NULL;
}

struct op_moe_expert offload__expert_at(const struct offload *offload, size_t index,
                                        const uint8_t *record)
{
    const struct offload__unit *unit = &offload->units[index];
    const struct offload__param *w13 = &offload->params[unit->params[0]];
    const struct offload__param *w2 = &offload->params[unit->params[1]];

    return (struct op_moe_expert){
        .gate = row_at(offload, w13, 0, record),
        .up = row_at(offload, w13, w13->tensor.shape[0] / 2, record),
        .down = row_at(offload, w2, 0, record),
        .id = (int32_t)w13->expert,
    };
}
