/* offload/load.c - taking memory, and filling it through the loaders.
 *
 * What stays lies in one block of device memory; the slots are one more; moving units lie where
 * their home puts them. Parameters are loaded one after the other: straight into their record where
 * the home has one in memory, straight into device memory where that is the host's, and else
 * through one bounce buffer of the largest such parameter. So at most one parameter is in
 * memory twice, and what is taken beyond the final bytes is bounded by it and by the loaders'
 * staging.
 *
 * Nothing is read before every loader has been checked against the checkpoint: a checkpoint that
 * does not fit is refused at once, not after minutes. */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "offload/internal.h"
#include "offload/share.h"

#define PIECE_BYTES (UINT64_C(4) << 20) /* of a parameter's rows, at once */

/* Whether the parameter's bytes are for this process to load. */
bool offload__is_loaded_here(const struct offload *offload, const struct offload__param *param)
{
    const struct offload__home_ops *home;

    if (param->unit == OFFLOAD_NO_UNIT)
        return true;
    home = offload__home(offload->units[param->unit].home);
    return home->has_contents &&
           (home->is_loaded_here == NULL || home->is_loaded_here(offload, param->unit));
}

/* Where the loader may write the parameter; NULL: into the bounce buffer. */
static uint8_t *place_of(struct offload *offload, const struct offload__param *param)
{
    const struct offload__home_ops *home;
    uint8_t *record;

    if (param->unit == OFFLOAD_NO_UNIT)
        return offload->in_place ? offload->resident + param->offset_bytes : NULL;
    home = offload__home(offload->units[param->unit].home);
    record = home->record != NULL ? home->record(offload, param->unit) : NULL;
    return record != NULL ? record + param->offset_bytes : NULL;
}

enum status offload__loaders_check(const struct offload *offload, const struct ckpt *ckpt,
                                   struct err *err)
{
    for (size_t i = 0; i < offload->param_count; i++) {
        const struct offload__param *param = &offload->params[i];
        const enum status st = loader_check(param->loader, ckpt, param->name, err);

        if (st != STATUS_OK)
            return st;
    }
    return STATUS_OK;
}

/* Device memory first: a budget that is too small is found before the homes are taken. */
static enum status memory_take(struct offload *offload, struct err *err)
{
    const struct offload_sizes *sizes = &offload->sizes;
    enum status st = STATUS_OK;
    void *memory;

    if (sizes->resident_bytes > 0) {
        st = device_alloc(offload->device, DEVICE_USE_WEIGHTS, sizes->resident_bytes, &memory, err);
        if (st != STATUS_OK)
            return err_prefix(err, st, "weights that stay on the device");
        offload->resident = memory;
    }
    if (sizes->slot_count > 0) {
        st = device_alloc(offload->device, DEVICE_USE_SLOTS, sizes->slot_count * sizes->slot_bytes,
                          &memory, err);
        if (st != STATUS_OK)
            return err_prefix(err, st, "%" PRIu64 " slots of %" PRIu64 " bytes for moving units",
                              sizes->slot_count, sizes->slot_bytes);
        offload->slots = memory;
    }
    for (unsigned home = 0; home < OFFLOAD_HOME_COUNT && st == STATUS_OK; home++) {
        if (offload__home((enum offload_home)home)->open != NULL)
            st = offload__home((enum offload_home)home)->open(offload, err);
    }
    return st;
}

void offload__memory_free(struct offload *offload)
{
    offload__ring_abandon(offload);
    offload__experts_abandon(offload);
    if (offload->compute != NULL)
        (void)offload__ring_sync(offload, NULL);
    offload__experts_destroy(offload);
    offload__timeline_destroy(offload);
    offload__ring_destroy(offload);
    for (unsigned home = 0; home < OFFLOAD_HOME_COUNT; home++) {
        if (offload__home((enum offload_home)home)->close != NULL)
            offload__home((enum offload_home)home)->close(offload);
    }
    device_free(offload->device, DEVICE_USE_SLOTS, offload->slots,
                offload->sizes.slot_count * offload->sizes.slot_bytes);
    offload->slots = NULL;
    device_free(offload->device, DEVICE_USE_WEIGHTS, offload->resident,
                offload->sizes.resident_bytes);
    offload->resident = NULL;
    for (size_t i = 0; i < offload->param_count; i++) {
        offload->params[i].tensor.data = NULL;
        offload->params[i].filled = false;
    }
    offload->compute = NULL;
    offload->loaded = false;
}

/* The staging, the bounce buffer, and the bytes to come. */
static enum status bounce_take(struct offload__fill *job, struct err *err)
{
    struct offload *offload = job->offload;
    void *memory;
    enum status st = loader_staging_create(&job->staging, err);

    if (st != STATUS_OK)
        return st;
    for (size_t i = 0; i < offload->param_count; i++) {
        const struct offload__param *param = &offload->params[i];

        if (i == offload->lookup_param)
            continue;
        if (param->segment_count > 0 && param->unit == OFFLOAD_NO_UNIT &&
            offload->segments[param->segment_first].file_index == OFFLOAD_NO_FILE) {
            job->total_bytes += loader_source_bytes(param->loader, job->ckpt);
            if (param->size_bytes > job->bounce_bytes)
                job->bounce_bytes = param->size_bytes;
            continue;
        }
        if (param->segment_count > 0 && param->unit == OFFLOAD_NO_UNIT) {
            for (size_t k = 0; k < param->segment_count; k++) {
                const struct offload__segment *segment =
                    &offload->segments[param->segment_first + k];

                if (segment->unit == OFFLOAD_NO_UNIT)
                    job->total_bytes += segment->size_bytes;
            }
            if (!offload->in_place && job->bounce_bytes < PIECE_BYTES)
                job->bounce_bytes = PIECE_BYTES;
            continue;
        }
        if (!offload__is_loaded_here(offload, param))
            continue;
        job->total_bytes += loader_source_bytes(param->loader, job->ckpt);
        if (place_of(offload, param) == NULL && param->size_bytes > job->bounce_bytes)
            job->bounce_bytes = param->size_bytes;
    }
    if (job->bounce_bytes == 0)
        return STATUS_OK;
    st = device_host_alloc(offload->device, job->bounce_bytes, &memory, err);
    if (st != STATUS_OK)
        return err_prefix(err, st, "a buffer for the largest parameter");
    job->bounce = memory;
    return STATUS_OK;
}

/* The staging, the bounce buffer, what finishing takes, and the bytes to come. */
enum status offload__fill_init(struct offload__fill *job, struct err *err)
{
    struct offload *offload = job->offload;
    void *memory;
    enum status st = bounce_take(job, err);

    if (st != STATUS_OK || offload->finish_bytes == 0)
        return st;
    st = device_host_alloc(offload->device, offload->finish_bytes, &memory, err);
    if (st != STATUS_OK)
        return err_prefix(err, st, "memory to change the layout of weights in");
    job->finish = memory;
    return STATUS_OK;
}

void offload__fill_deinit(struct offload__fill *job)
{
    device_host_free(job->offload->device, job->finish, job->offload->finish_bytes);
    device_host_free(job->offload->device, job->bounce, job->bounce_bytes);
    loader_staging_destroy(job->staging);
}

/* From the bounce buffer to the device, or to the unit's home. */
static enum status bounce_store(struct offload__fill *job, const struct offload__param *param,
                                struct err *err)
{
    struct offload *offload = job->offload;
    enum status st;

    if (param->unit != OFFLOAD_NO_UNIT)
        return offload__home(offload->units[param->unit].home)
            ->store(offload, param->unit, param->offset_bytes, job->bounce, param->size_bytes, err);
    st = device_copy_in(offload->copy, offload->resident + param->offset_bytes, job->bounce,
                        param->size_bytes, err);
    return st == STATUS_OK ? stream_sync(offload->copy, err) : st; /* the buffer is used again */
}

/* Of a parameter that is in no file as it is used, and of which some rows move: all of it is
 * loaded, and those that stay are copied from there. */
static enum status cut_load(struct offload__fill *job, struct offload__param *param,
                            struct err *err)
{
    struct offload *offload = job->offload;
    const uint64_t row_bytes = offload__row_bytes(param);
    enum status st = loader_load(param->loader, job->ckpt, job->bounce, job->staging, job->progress,
                                 &job->done_bytes, job->total_bytes, err);

    if (st == STATUS_OK)
        st = offload__finish(offload, param, job->bounce, job->finish, err);
    for (size_t i = 0; i < param->segment_count && st == STATUS_OK; i++) {
        const struct offload__segment *segment = &offload->segments[param->segment_first + i];
        uint8_t *const place = offload->resident + segment->offset_bytes;
        const uint8_t *const from = job->bounce + segment->row_first * row_bytes;

        if (segment->unit != OFFLOAD_NO_UNIT)
            continue;
        if (offload->in_place)
            memcpy(place, from, segment->size_bytes);
        else
            st = device_copy_in(offload->copy, place, from, segment->size_bytes, err);
    }
    if (st == STATUS_OK && !offload->in_place)
        st = stream_sync(offload->copy, err);
    param->filled = st == STATUS_OK;
    return st == STATUS_OK ? st : err_prefix(err, st, "%s", param->name);
}

/* Of a parameter of which some rows move: those that stay. */
static enum status segments_load(struct offload__fill *job, struct offload__param *param,
                                 struct err *err)
{
    struct offload *offload = job->offload;
    enum status st = STATUS_OK;

    if (offload->segments[param->segment_first].file_index == OFFLOAD_NO_FILE)
        return cut_load(job, param, err);
    for (size_t i = 0; i < param->segment_count && st == STATUS_OK; i++) {
        const struct offload__segment *segment = &offload->segments[param->segment_first + i];
        uint8_t *const place = offload->resident + segment->offset_bytes;
        uint64_t done = 0;

        while (segment->unit == OFFLOAD_NO_UNIT && done < segment->size_bytes && st == STATUS_OK) {
            const uint64_t left = segment->size_bytes - done;
            const uint64_t most = offload->in_place ? PIECE_BYTES : job->bounce_bytes;
            const uint64_t size_bytes = left < most ? left : most;

            st = ckpt_read_file(job->ckpt, segment->file_index, segment->file_offset_bytes + done,
                                offload->in_place ? place + done : job->bounce, size_bytes, err);
            if (st == STATUS_OK && !offload->in_place)
                st = device_copy_in(offload->copy, place + done, job->bounce, size_bytes, err);
            if (st == STATUS_OK && !offload->in_place)
                st = stream_sync(offload->copy, err);
            done += size_bytes;
            job->done_bytes += size_bytes;
            progress_update(job->progress, "loading", job->done_bytes, job->total_bytes);
        }
    }
    param->filled = st == STATUS_OK;
    return st == STATUS_OK ? st : err_prefix(err, st, "%s", param->name);
}

/* What tests have go wrong with a parameter that is at home in meta; nothing otherwise: it is not
 * touched. */
static enum status meta_faults(struct offload__fill *job, struct offload__param *param,
                               struct err *err)
{
    const struct offload_options *options = &job->offload->options;
    const struct dtype_info *dtype = dtype_info(param->tensor.dtype);
    struct loader *none;
    enum status st = STATUS_OK;

    if (options->fault_meta_is_cast)
        st = offload__finish(job->offload, param, NULL, job->finish, err);
    if (st != STATUS_OK || !options->fault_meta_loses_loader)
        return st;
    st = loader_create(loader_dtype(param->loader),
                       loader_size_bytes(param->loader) / dtype->block_bytes *
                           dtype->block_elements, &none, err);
    if (st != STATUS_OK)
        return st;
    loader_destroy(param->loader);
    param->loader = none;
    return STATUS_OK;
}

static enum status param_load(struct offload__fill *job, struct offload__param *param,
                              struct err *err)
{
    struct offload *offload = job->offload;
    uint8_t *place;
    enum status st;

    if ((size_t)(param - offload->params) == offload->lookup_param) {
        param->filled = true;
        return STATUS_OK;
    }
    if (param->segment_count > 0 && param->unit == OFFLOAD_NO_UNIT)
        return segments_load(job, param, err);
    if (!offload__is_loaded_here(offload, param)) {
        param->filled = param->unit == OFFLOAD_NO_UNIT ||
                        offload__home(offload->units[param->unit].home)->has_contents;
        return param->filled ? STATUS_OK : meta_faults(job, param, err);
    }
    place = place_of(offload, param);
    st = loader_load(param->loader, job->ckpt, place != NULL ? place : job->bounce, job->staging,
                     job->progress, &job->done_bytes, job->total_bytes, err);
    if (st != STATUS_OK)
        return st;
    st = offload__finish(offload, param, place != NULL ? place : job->bounce, job->finish, err);
    if (st == STATUS_OK && place == NULL)
        st = bounce_store(job, param, err);
    if (st != STATUS_OK)
        return err_prefix(err, st, "%s", param->name);
    param->filled = true;
    if (param->unit == OFFLOAD_NO_UNIT)
        param->tensor.data = offload->resident + param->offset_bytes;
    return STATUS_OK;
}

enum status offload__fill_run(struct offload__fill *job, const struct ckpt *ckpt, struct err *err)
{
    struct offload *offload = job->offload;
    enum status st = STATUS_OK;

    job->ckpt = ckpt;
    job->done_bytes = 0;
    for (size_t i = 0; i < offload->param_count && st == STATUS_OK; i++)
        st = param_load(job, &offload->params[i], err);
    return st;
}

static enum status params_load(struct offload *offload, const struct ckpt *ckpt,
                               const struct progress *progress, struct err *err)
{
    struct offload__fill job = { .offload = offload, .ckpt = ckpt, .progress = progress };
    enum status st = offload__fill_init(&job, err);

    if (st == STATUS_OK)
        st = offload__fill_run(&job, ckpt, err);
    offload__fill_deinit(&job);
    for (unsigned home = 0; home < OFFLOAD_HOME_COUNT && st == STATUS_OK; home++) {
        if (offload__home((enum offload_home)home)->loaded != NULL)
            st = offload__home((enum offload_home)home)->loaded(offload, err);
    }
    return st;
}

/* Ranks that share homes come to each meeting whatever has happened to them since the last. */
static enum status take_and_fill(struct offload *offload, const struct ckpt *ckpt,
                                 const struct progress *progress, struct err *err)
{
    enum status st = memory_take(offload, err);

    if (st == STATUS_OK)
        st = offload__ring_create(offload, err);
    if (st == STATUS_OK)
        st = offload__experts_create(offload, err);
    if (st == STATUS_OK)
        st = offload__timeline_create(offload, err);
    st = offload__share_connect(offload, st, err);
    if (st != STATUS_OK)
        return st;
    st = params_load(offload, ckpt, progress, err);
    return offload__share_meet(offload, OFFLOAD_SHARE_LOADED, st, NULL, err);
}

enum status offload_load(struct offload *offload, struct stream *compute, const struct ckpt *ckpt,
                         const struct progress *progress, struct err *err)
{
    enum status st;

    assert(!offload->loaded);
    assert(compute != NULL);
    st = offload__loaders_check(offload, ckpt, err);
    st = offload__share_plan(offload, st, err);
    if (st != STATUS_OK)
        return st;
    offload->compute = compute;
    st = take_and_fill(offload, ckpt, progress, err);
    if (st == STATUS_OK)
        st = offload__ring_start(offload, err);
    if (st != STATUS_OK) {
        offload__memory_free(offload);
        offload_report_reset(offload);
        return st;
    }
    if (offload->disk != NULL)
        ckpt_drop_cache(ckpt); /* what moves is read past the cache: it would only take memory */
    offload->loaded = true;
    offload__homes_changed(offload);
    offload__counters_publish(offload);
    return STATUS_OK;
}
