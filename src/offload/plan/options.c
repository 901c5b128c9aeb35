/* offload/plan/options.c - the options' defaults and names, and which combinations can be.
 *
 * Every refusal names the option as users write it, the number seen, and the nearest setting that
 * works. What would silently do nothing is refused, or, where SGLang accepts it, logged. */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/size.h"
#include "offload/internal.h"

/* A smaller table is read in less time than it is worth a thread. */
#define LATE_BYTES_MIN (4 * MIB)
#define GROUP_SIZE_OFF_SGLANG (-1) /* how SGLang spells "off"; here it is 0, and both are taken */

const char *offload_part_name(enum offload_part part)
{
    static const char *const names[OFFLOAD_PART_COUNT] = { "attention", "ffn" };

    assert((unsigned)part < OFFLOAD_PART_COUNT);
    return names[part];
}

const char *offload_home_name(enum offload_home home)
{
    return offload__home(home)->name;
}

enum status offload_mode_parse(const char *mode, enum offload_home *home_out, struct err *err)
{
    char modes[128] = "";
    size_t used = 0;

    for (unsigned home = 0; home < OFFLOAD_HOME_COUNT; home++) {
        const char *name = offload__home((enum offload_home)home)->mode;

        if (name == NULL)
            continue;
        if (strcmp(mode, name) == 0) {
            *home_out = (enum offload_home)home;
            return STATUS_OK;
        }
        used += (size_t)snprintf(modes + used, sizeof(modes) - used, "%s%s", used > 0 ? ", " : "",
                                 name);
        assert(used < sizeof(modes));
    }
    return err_set(err, STATUS_BAD_INPUT, "--offload-mode: no mode '%.64s' (modes: %s)", mode,
                   modes);
}

void offload_options_init(struct offload_options *options)
{
    *options = (struct offload_options){
        .num_in_group = 1,
        .prefetch_step = 1,
        .late_bytes_min = LATE_BYTES_MIN,
        .home = OFFLOAD_HOME_HOST,
#ifdef LIGHTER_DEBUG
        .poison = true,
#endif
    };
}

bool offload__is_v1(const struct offload_options *options)
{
    return options->cpu_offload_bytes != 0;
}

bool offload__is_v2(const struct offload_options *options)
{
    return options->group_size != 0 && options->group_size != GROUP_SIZE_OFF_SGLANG;
}

/* Settings of the ring that `instead` makes idle must not look as if they did something. */
static void warn_of_idle(const struct offload_options *options, const char *instead,
                         const struct log *log)
{
    if (options->num_in_group != 1)
        log_line(log, LOG_WARN, "--offload-num-in-group %" PRId64 " has no effect %s",
                 options->num_in_group, instead);
    if (options->prefetch_step != 1)
        log_line(log, LOG_WARN, "--offload-prefetch-step %" PRId64 " has no effect %s",
                 options->prefetch_step, instead);
}

/* Neither V1 nor V2: the other options must not look as if they did something. */
static enum status check_off(const struct offload_options *options, const struct log *log,
                             struct err *err)
{
    if (options->params_glob != NULL)
        return err_set(err, STATUS_BAD_INPUT,
                       "--offload-params '%.200s' moves nothing without --offload-group-size; add "
                       "--offload-group-size 1 to choose from every layer", options->params_glob);
    warn_of_idle(options, "without --offload-group-size", log);
    if (options->slot_count != 0)
        log_line(log, LOG_WARN, "--offload-slots %" PRId64
                 " has no effect without --offload-group-size", options->slot_count);
    if (options->home != OFFLOAD_HOME_HOST && !options->experts)
        log_line(log, LOG_WARN, "--offload-mode %s has no effect without --offload-group-size",
                 offload__home(options->home)->mode);
    return STATUS_OK;
}

static enum status check_v1(const struct offload_options *options, struct err *err)
{
    char size[24];

    if (options->params_glob != NULL)
        return err_set(err, STATUS_BAD_INPUT,
                       "--offload-params goes with --offload-group-size; --cpu-offload-gb moves "
                       "parameters in model order, whatever their names: leave one of them out");
    if (options->home == OFFLOAD_HOME_META || options->home == OFFLOAD_HOME_SHARDED)
        return err_set(err, STATUS_BAD_INPUT,
                       "--cpu-offload-gb (%s) moves weights off the devices, so --offload-mode "
                       "must be cpu, shm_cpu or disk, not %s; for %s use --offload-group-size",
                       size_format(options->cpu_offload_bytes, size, sizeof(size)),
                       offload__home(options->home)->mode, offload__home(options->home)->mode);
    return STATUS_OK;
}

static enum status check_v2(const struct offload_options *options, uint32_t layer_count,
                            struct err *err)
{
    const int64_t group = options->group_size, in_group = options->num_in_group;
    uint64_t group_max;

    if (group < 1)
        return err_set(err, STATUS_BAD_INPUT,
                       "--offload-group-size is %" PRId64 "; the smallest is 1, and 0 is off",
                       group);
    if (in_group < 1)
        return err_set(err, STATUS_BAD_INPUT,
                       "--offload-num-in-group is %" PRId64 " and would move no layer; the "
                       "smallest is 1 (to move nothing, leave --offload-group-size out)", in_group);
    if (in_group > group)
        return err_set(err, STATUS_BAD_INPUT,
                       "--offload-num-in-group %" PRId64 " is more than --offload-group-size "
                       "%" PRId64 "; at most %" PRId64 " (all layers) works", in_group,
                       group, group);
    /* layer % group >= group - in_group holds for some layer below layer_count, if for any then for
     * the last of them or the last of the first group. */
    group_max = (uint64_t)layer_count + (uint64_t)in_group - 1;
    if ((uint64_t)group > group_max)
        return err_set(err, STATUS_BAD_INPUT,
                       "--offload-group-size %" PRId64 " with --offload-num-in-group %" PRId64
                       " chooses none of the model's %" PRIu32 " layers; the largest group size "
                       "that works is %" PRIu64, group, in_group, layer_count, group_max);
    assert(options->home != OFFLOAD_HOME_DEVICE);
    return STATUS_OK;
}

enum status offload__options_check_auto(const struct offload_options *options,
                                        const struct log *log, struct err *err)
{
    if (offload__is_v1(options) || offload__is_v2(options) || options->params_glob != NULL)
        return err_set(err, STATUS_BAD_INPUT,
                       "--offload-mode auto chooses by itself what moves; leave out %s, or use "
                       "another mode",
                       offload__is_v1(options)   ? "--cpu-offload-gb"
                       : offload__is_v2(options) ? "--offload-group-size"
                                                 : "--offload-params");
    if (options->slot_count != 0 &&
        (options->slot_count < 2 || options->slot_count > OFFLOAD_SLOTS_MAX))
        return err_set(err, STATUS_BAD_INPUT,
                       "--offload-slots is %" PRId64 "; 2 to %d are possible, and 0 chooses",
                       options->slot_count, OFFLOAD_SLOTS_MAX);
    warn_of_idle(options, "with --offload-mode auto, which chooses by itself", log);
    return STATUS_OK;
}

enum status offload__options_check(const struct offload_options *options, uint32_t layer_count,
                                   const struct log *log, struct err *err)
{
    const bool v1 = offload__is_v1(options), v2 = offload__is_v2(options);
    char size[24];

    if (v1 && v2)
        return err_set(err, STATUS_BAD_INPUT,
                       "--cpu-offload-gb (%s) and --offload-group-size (%" PRId64
                       ") are two ways to choose what moves; leave one of them out",
                       size_format(options->cpu_offload_bytes, size, sizeof(size)),
                       options->group_size);
    if (!v1 && !v2)
        return check_off(options, log, err);
    if (options->prefetch_step < 1)
        return err_set(err, STATUS_BAD_INPUT,
                       "--offload-prefetch-step is %" PRId64 "; the smallest is 1: onloads start "
                       "at least one unit ahead", options->prefetch_step);
    if (options->slot_count < 0 || options->slot_count > OFFLOAD_SLOTS_MAX)
        return err_set(err, STATUS_BAD_INPUT,
                       "--offload-slots is %" PRId64 "; 2 to %d are possible, and 0 chooses",
                       options->slot_count, OFFLOAD_SLOTS_MAX);
    if (v1)
        return check_v1(options, err);
    return check_v2(options, layer_count, err);
}

enum status offload__options_check_units(const struct offload_options *options, size_t unit_count,
                                         struct err *err)
{
    if ((uint64_t)options->prefetch_step > unit_count)
        return err_set(err, STATUS_BAD_INPUT,
                       "--offload-prefetch-step %" PRId64 " is more than the %zu units that move "
                       "in a pass; at most %zu works", options->prefetch_step, unit_count,
                       unit_count);
    if (options->prefetch_step >= OFFLOAD_SLOTS_MAX)
        return err_set(err, STATUS_BAD_INPUT,
                       "--offload-prefetch-step %" PRId64 " needs one slot more than that, and %d "
                       "is the most; at most %d works", options->prefetch_step, OFFLOAD_SLOTS_MAX,
                       OFFLOAD_SLOTS_MAX - 1);
    if (options->slot_count != 0 && options->slot_count < options->prefetch_step + 1)
        return err_set(err, STATUS_BAD_INPUT,
                       "--offload-slots %" PRId64 " is too few for --offload-prefetch-step %" PRId64
                       ": %" PRId64 " works, the step and one more", options->slot_count,
                       options->prefetch_step, options->prefetch_step + 1);
    return STATUS_OK;
}
