/* offload/offload.c - making and ending an offload, and what can be asked of one at any time. */
#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "offload/home/share.h"
#include "offload/internal.h"

/* Copies the descriptions; takes every loader, also when it fails halfway. */
static enum status params_create(struct offload *offload, const struct offload_param_desc *descs,
                                 size_t param_count, struct err *err)
{
    offload->params = calloc(param_count + 1, sizeof(*offload->params));
    if (offload->params == NULL) {
        for (size_t i = 0; i < param_count; i++)
            loader_destroy(descs[i].loader);
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu parameters", param_count);
    }
    offload->param_count = param_count;
    for (size_t i = 0; i < param_count; i++)
        offload->params[i].loader = descs[i].loader;
    for (size_t i = 0; i < param_count; i++) {
        const struct offload_param_desc *desc = &descs[i];
        struct offload__param *param = &offload->params[i];

        assert(desc->rank >= 1 && desc->rank <= TENSOR_RANK_MAX);
        assert(desc->layer == OFFLOAD_NO_LAYER ||
               (desc->layer >= 0 && (uint32_t)desc->layer < offload->layer_count));
        param->name = strdup(desc->name);
        if (param->name == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for %zu parameters", param_count);
        param->tensor.dtype = desc->dtype;
        param->tensor.rank = desc->rank;
        for (uint32_t d = 0; d < TENSOR_RANK_MAX; d++)
            param->tensor.shape[d] = d < desc->rank ? desc->shape[d] : 1;
        param->weight = desc->weight;
        offload__layout_choose(offload, param);
        if (!tensor_bytes(&param->tensor, &param->size_bytes) || param->size_bytes == 0) {
            char shape[96];

            return err_set(err, STATUS_BAD_INPUT, "%s: shape %s has no size that 64 bits can hold",
                           desc->name,
                           tensor_shape_format(desc->rank, desc->shape, shape, sizeof(shape)));
        }
        assert(desc->loader == NULL || loader_size_bytes(desc->loader) == param->size_bytes);
        assert(desc->loader == NULL || loader_dtype(desc->loader) == desc->dtype);
        param->layer = desc->layer;
        param->part = desc->part;
        param->default_selected = desc->default_selected;
        param->by_rows = desc->by_rows;
        param->by_lookup = desc->by_lookup;
        param->is_expert = desc->is_expert && offload->options.experts;
        param->expert = desc->expert;
        param->unit = OFFLOAD_NO_UNIT;
    }
    return STATUS_OK;
}

static enum status plan(struct offload *offload, struct err *err)
{
    bool *moves = calloc(offload->param_count + 1, sizeof(*moves));
    enum status st;

    if (moves == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to plan %zu parameters",
                       offload->param_count);
    st = offload__plan(offload->params, offload->param_count, offload->layer_count,
                       &offload->options, offload->log, moves, err);
    if (st == STATUS_OK)
        st = offload__plan_units(offload, moves, err);
    free(moves);
    return st;
}

static enum status counters_create(struct offload *offload, struct err *err)
{
    const size_t count = offload->unit_count + 1;

    offload->counters = calloc(count, sizeof(*offload->counters));
    offload->published_counters = calloc(count, sizeof(*offload->published_counters));
    offload->published_homes = calloc(count, sizeof(*offload->published_homes));
    if (offload->counters == NULL || offload->published_counters == NULL ||
        offload->published_homes == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the counters of %zu units",
                       offload->unit_count);
    return STATUS_OK;
}

enum status offload_create(struct device *device, const struct offload_param_desc *params,
                           size_t param_count, uint32_t layer_count,
                           const struct offload_options *options, const struct log *log,
                           struct offload **offload_out, struct err *err)
{
    struct offload *offload = calloc(1, sizeof(*offload));
    enum status st;

    if (offload == NULL) {
        for (size_t i = 0; i < param_count; i++)
            loader_destroy(params[i].loader);
        return err_set(err, STATUS_NO_MEMORY, "no memory for an offload of %zu parameters",
                       param_count);
    }
    (void)pthread_mutex_init(&offload->lock, NULL);
    offload->device = device;
    offload->log = log;
    offload->options = *options;
    offload->layer_count = layer_count;
    offload->active = OFFLOAD_NO_UNIT;
    offload->lookup_param = OFFLOAD_NO_PARAM;
    offload->in_place = device_info(device)->memory_is_host;
    st = params_create(offload, params, param_count, err);
    if (st == STATUS_OK)
        st = offload__options_check_experts(options, err);
    if (st == STATUS_OK)
        st = options->automatic ? offload__plan_auto(offload, err) : plan(offload, err);
    if (st == STATUS_OK && options->experts)
        st = offload__plan_experts(offload, err);
    offload->options.params_glob = NULL; /* borrowed for the plan only */
    if (st == STATUS_OK)
        st = counters_create(offload, err);
    if (st != STATUS_OK) {
        offload_destroy(offload);
        return st;
    }
    offload__layouts_settle(offload);
    offload__host_sizes(offload);
    offload__routing_rehearse(offload);
    offload->mode = options->automatic        ? "auto"
                    : offload->unit_count == 0 ? "off"
                                               : offload__home(options->home)->mode;
    offload__homes_changed(offload);
    *offload_out = offload;
    return STATUS_OK;
}

void offload_destroy(struct offload *offload)
{
    if (offload == NULL)
        return;
    if (offload->loaded)
        offload__routing_save(offload);
    offload__memory_free(offload);
    offload__routing_close(offload);
    for (size_t i = 0; i < offload->unit_count; i++)
        free(offload->units[i].params);
    for (size_t i = 0; i < offload->param_count; i++) {
        loader_destroy(offload->params[i].loader);
        free(offload->params[i].name);
    }
    free(offload->published_homes);
    free(offload->published_counters);
    free(offload->counters);
    free(offload->expert_units);
    free(offload->unit_of);
    free(offload->segments);
    free(offload->units);
    free(offload->params);
    (void)pthread_mutex_destroy(&offload->lock);
    free(offload);
}

void offload_sizes(const struct offload *offload, struct offload_sizes *sizes_out)
{
    *sizes_out = offload->sizes;
}

void offload_disk_known(struct offload *offload, const struct disk_measured *measured)
{
    offload->disk_known = *measured;
}

/* Adds what is fetched from a home: so many units. Every rank has as much of a record. */
static void traffic_add(const struct offload *offload, enum offload_home home, double bytes,
                        double count, struct offload_traffic *traffic)
{
    traffic->home_bytes[home] += bytes;
    if (home == OFFLOAD_HOME_SHARDED) {
        const double own_bytes = bytes / offload__share_count(offload);

        traffic->own_bytes += own_bytes;
        traffic->peer_bytes += bytes - own_bytes;
        traffic->onloads += count;
        return;
    }
    if (home == OFFLOAD_HOME_DISK) {
        traffic->disk_bytes += bytes;
        traffic->disk_reads += count;
    }
    if (!offload->in_place) {
        traffic->link_bytes += bytes;
        traffic->onloads += count;
    }
}

static double expert_mean_bytes(const struct offload *offload)
{
    double bytes = 0;

    for (size_t i = offload->ring_count; i < offload->unit_count; i++)
        bytes += (double)offload->units[i].size_bytes;
    return bytes / (double)(offload->unit_count - offload->ring_count);
}

/* Of each layer's E experts R rows choose E (1 - (1 - k/E)^R), were all alike, and the cache holds
 * its share of those; routers that have favourites are kinder. What they chose when the model ran
 * before, and is remembered, tells of one row what the cache lacks. */
static void expert_traffic(const struct offload *offload, uint32_t row_count,
                           struct offload_traffic *traffic)
{
    const struct offload__rehearsal *rehearsal = &offload->rehearsal;
    const bool is_known = row_count == 1 && rehearsal->token_count > 0;
    const double count = offload->expert_count;
    const double chosen = 1 - pow(1 - offload->options.expert_top_k / count, row_count);
    const double unit_count = (double)(offload->unit_count - offload->ring_count);
    const double held = (double)offload->sizes.expert_slot_count / unit_count;
    const struct offload_traffic before = *traffic;
    const double mean_bytes = expert_mean_bytes(offload);

    for (unsigned home = 0; is_known && home < OFFLOAD_HOME_COUNT; home++)
        traffic_add(offload, (enum offload_home)home,
                    rehearsal->missed_bytes[home] / rehearsal->token_count,
                    rehearsal->missed_bytes[home] / rehearsal->token_count / mean_bytes, traffic);
    for (size_t i = offload->ring_count; !is_known && held < 1 && i < offload->unit_count; i++) {
        const struct offload__unit *unit = &offload->units[i];

        if (offload__path(offload, unit) == OFFLOAD_PATH_FETCH)
            traffic_add(offload, unit->home, (double)unit->size_bytes * chosen * (1 - held),
                        chosen * (1 - held), traffic);
    }
    traffic->expert_disk_bytes = traffic->disk_bytes - before.disk_bytes;
    traffic->expert_link_bytes = traffic->link_bytes - before.link_bytes;
    traffic->expert_peer_bytes = traffic->peer_bytes - before.peer_bytes;
    traffic->expert_own_bytes = traffic->own_bytes - before.own_bytes;
    traffic->expert_tokens_known = is_known ? rehearsal->token_count : 0;
    traffic->expert_hit_rate =
        is_known ? 1 - (double)rehearsal->missed_count / (double)rehearsal->asked_count
                 : offload->sizes.expert_slot_count == 0 ? -1 : held < 1 ? held : 1;
}

void offload_traffic(const struct offload *offload, uint32_t row_count,
                     struct offload_traffic *traffic_out)
{
    *traffic_out = (struct offload_traffic){
        .slot_count = (uint32_t)offload->sizes.slot_count, .expert_hit_rate = -1,
    };
    for (size_t i = 0; i < offload->ring_count; i++) {
        const struct offload__unit *unit = &offload->units[i];

        if (offload__path(offload, unit) == OFFLOAD_PATH_FETCH)
            traffic_add(offload, unit->home, (double)unit->size_bytes, 1, traffic_out);
    }
    if (offload->expert_units != NULL)
        expert_traffic(offload, row_count, traffic_out);
}

const struct tensor *offload_tensor(const struct offload *offload, size_t index)
{
    assert(index < offload->param_count);
    return &offload->params[index].tensor;
}

size_t offload_param_count(const struct offload *offload)
{
    return offload->param_count;
}

bool offload_param_moves(const struct offload *offload, size_t index)
{
    assert(index < offload->param_count);
    return offload->params[index].unit != OFFLOAD_NO_UNIT ||
           offload->params[index].segment_count > 0;
}

bool offload_is_garbage(const struct offload *offload)
{
    return atomic_load_explicit(&offload->garbage, memory_order_relaxed);
}

/* A unit that was at home in meta is garbage until each of its parameters has been loaded. */
static bool unit_is_garbage(const struct offload *offload, const struct offload__unit *unit)
{
    for (size_t i = 0; i < unit->param_count; i++) {
        if (!offload->params[unit->params[i]].filled)
            return true;
    }
    return false;
}

void offload__homes_changed(struct offload *offload)
{
    bool garbage = false;

    for (size_t i = 0; i < offload->unit_count; i++)
        garbage = garbage || (offload->options.home == OFFLOAD_HOME_META &&
                              unit_is_garbage(offload, &offload->units[i]));
    atomic_store_explicit(&offload->garbage, garbage, memory_order_relaxed);
    (void)pthread_mutex_lock(&offload->lock);
    for (size_t i = 0; i < offload->unit_count; i++)
        offload->published_homes[i] = offload->units[i].home;
    (void)pthread_mutex_unlock(&offload->lock);
}
