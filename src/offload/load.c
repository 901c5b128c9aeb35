/* offload/load.c - taking memory, and filling it through the loaders.
 *
 * What stays lies in one block of device memory; the slots are one more; moving units lie where
 * their home puts them. Parameters are loaded one after the other: straight into their record where
 * the home has one in memory, straight into device memory where that is the host's, and else
 * through one bounce buffer of the largest such parameter. So at most one parameter is in
 * memory twice, and what is taken beyond the final bytes is bounded by it and by the loaders'
 * staging.
 *
 * A table of which a pass reads a few rows may be left out, and loaded last (late.c). What is to be
 * made ROWS_16 of where it has been loaded to is finished while the next is loaded (finisher.c).
 *
 * Nothing is read before every loader has been checked against the checkpoint: a checkpoint that
 * does not fit is refused at once, not after minutes. */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "offload/internal.h"
#include "offload/home/share.h"

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
    if (st != STATUS_OK)
        return st;
    st = device_host_charge(offload->device, sizes->host_table_bytes, err);
    if (st != STATUS_OK)
        return err_prefix(err, st, "lists of onloads and experts");
    offload->charged_bytes = sizes->host_table_bytes;
    return STATUS_OK;
}

void offload__memory_free(struct offload *offload)
{
    offload__late_stop(offload);
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
    device_host_discharge(offload->device, offload->charged_bytes);
    offload->charged_bytes = 0;
    offload->compute = NULL;
    offload->loaded = false;
}

/* Where a run of rows is to be loaded to in host memory. NULL: nowhere, or on the device, when
 * *on_device_out. */
static uint8_t *segment_place(struct offload *offload, const struct offload__segment *segment,
                              bool *on_device_out)
{
    const struct offload__home_ops *home;
    uint8_t *record;

    *on_device_out = segment->unit == OFFLOAD_NO_UNIT && !offload->in_place;
    if (segment->unit == OFFLOAD_NO_UNIT)
        return offload->in_place ? offload->resident + segment->offset_bytes : NULL;
    home = offload__home(offload->units[segment->unit].home);
    record = home->record != NULL ? home->record(offload, segment->unit) : NULL;
    return record != NULL ? record + segment->offset_bytes : NULL;
}

/* What is to be loaded of a parameter that is cut in pieces. */
static uint64_t segments_bytes(struct offload *offload, const struct offload__param *param)
{
    uint64_t bytes = 0;

    for (size_t k = param->segment_first; k < param->segment_first + param->segment_count; k++) {
        const struct offload__segment *segment = &offload->segments[k];
        bool on_device;

        if (segment_place(offload, segment, &on_device) != NULL || on_device)
            bytes += segment->size_bytes;
    }
    return bytes;
}

/* Whether all of the parameter is loaded at once, though it is cut in pieces, because no file has
 * them. */
static bool is_cut_from_whole(const struct offload *offload, const struct offload__param *param)
{
    return offload->segments[param->segment_first].file_index == OFFLOAD_NO_FILE;
}

/* Whether the parameter is not loaded with the others: rows of it are read when they are asked for.
 */
static bool is_left_out(const struct offload *offload, size_t index)
{
    return index == offload->lookup_param ||
           (!offload->loaded && offload__late_is(offload, index));
}

/* The staging, the bounce buffer, and the bytes to come. */
static enum status bounce_take(struct offload__fill *job, struct err *err)
{
    struct offload *offload = job->offload;
    void *memory;
    enum status st;

    for (size_t i = 0; i < offload->param_count; i++) {
        const struct offload__param *param = &offload->params[i];
        const bool is_cut = param->segment_count > 0 && param->unit == OFFLOAD_NO_UNIT;

        if (is_left_out(offload, i))
            continue;
        if (is_cut && !is_cut_from_whole(offload, param))
            job->total_bytes += segments_bytes(offload, param);
        else if (is_cut || offload__is_loaded_here(offload, param))
            job->total_bytes += loader_source_bytes(param->loader, job->ckpt);
    }
    job->bounce_bytes = offload__bounce_bytes(offload, job->ckpt);
    st = device_host_charge(offload->device, loader_staging_bytes(job->ckpt), err);
    if (st != STATUS_OK)
        return err_prefix(err, st, "memory to load weights through");
    job->charged_bytes = loader_staging_bytes(job->ckpt);
    st = loader_staging_create(job->ckpt, &job->staging, err);
    if (st != STATUS_OK || job->bounce_bytes == 0)
        return st;
    st = device_host_alloc(offload->device, job->bounce_bytes, &memory, err);
    if (st != STATUS_OK)
        return err_prefix(err, st, "a buffer for the largest parameter");
    job->bounce = memory;
    return STATUS_OK;
}

static bool is_any_woven(const struct offload *offload)
{
    for (size_t i = 0; i < offload->param_count; i++) {
        if (offload->params[i].tensor.layout == LAYOUT_ROWS_16)
            return true;
    }
    return false;
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
    return is_any_woven(offload) ? offload__finisher_create(job->finish, &job->finisher, err)
                                 : STATUS_OK;
}

void offload__fill_deinit(struct offload__fill *job)
{
    offload__finisher_destroy(job->finisher);
    device_host_free(job->offload->device, job->finish, job->offload->finish_bytes);
    device_host_free(job->offload->device, job->bounce, job->bounce_bytes);
    loader_staging_destroy(job->staging);
    device_host_discharge(job->offload->device, job->charged_bytes);
}

/* Makes final bytes of a parameter in the bounce buffer. */
static enum status finish_bounced(struct offload__fill *job, const struct offload__param *param,
                                  struct err *err)
{
    offload__finisher_wait(job->finisher); /* it has the scratch */
    return offload__finish(job->offload, param, job->bounce, job->finish, err);
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
 * loaded, and those that stay, or have a home in memory, are copied from there. */
static enum status cut_load(struct offload__fill *job, struct offload__param *param,
                            struct err *err)
{
    struct offload *offload = job->offload;
    const uint64_t row_bytes = offload__row_bytes(param);
    enum status st = loader_load(param->loader, job->ckpt, job->bounce, job->staging, job->progress,
                                 &job->done_bytes, job->total_bytes, err);

    if (st == STATUS_OK)
        st = finish_bounced(job, param, err);
    for (size_t i = 0; i < param->segment_count && st == STATUS_OK; i++) {
        const struct offload__segment *segment = &offload->segments[param->segment_first + i];
        const uint8_t *const from = job->bounce + segment->row_first * row_bytes;
        bool on_device;
        uint8_t *const place = segment_place(offload, segment, &on_device);

        if (place != NULL)
            memcpy(place, from, segment->size_bytes);
        if (on_device)
            st = device_copy_in(offload->copy, offload->resident + segment->offset_bytes, from,
                                segment->size_bytes, err);
    }
    if (st == STATUS_OK && !offload->in_place)
        st = stream_sync(offload->copy, err);
    param->filled = st == STATUS_OK;
    return st == STATUS_OK ? st : err_prefix(err, st, "%s", param->name);
}

/* Brings size_bytes of a file to `place`, or to the device at `resident_offset` of what stays. */
static enum status run_load(struct offload__fill *job, uint32_t file_index, uint64_t file_offset,
                            uint64_t size_bytes, uint8_t *place, uint64_t resident_offset,
                            struct err *err)
{
    struct offload *offload = job->offload;
    const uint64_t most = place != NULL ? OFFLOAD_PIECE_BYTES : job->bounce_bytes;
    enum status st = STATUS_OK;

    for (uint64_t done = 0; done < size_bytes && st == STATUS_OK;) {
        const uint64_t left = size_bytes - done, now = left < most ? left : most;

        st = ckpt_read_file(job->ckpt, file_index, file_offset + done,
                            place != NULL ? place + done : job->bounce, now, err);
        if (st == STATUS_OK && place == NULL)
            st = device_copy_in(offload->copy, offload->resident + resident_offset + done,
                                job->bounce, now, err);
        if (st == STATUS_OK && place == NULL)
            st = stream_sync(offload->copy, err); /* the buffer is used again */
        done += now;
        job->done_bytes += now;
        progress_update(job->progress, "loading", job->done_bytes, job->total_bytes);
    }
    return st;
}

/* Of a parameter of which some rows move: those that stay, or have a home in memory. */
static enum status segments_load(struct offload__fill *job, struct offload__param *param,
                                 struct err *err)
{
    struct offload *offload = job->offload;
    enum status st = STATUS_OK;

    if (is_cut_from_whole(offload, param))
        return cut_load(job, param, err);
    for (size_t i = 0; i < param->segment_count && st == STATUS_OK; i++) {
        const struct offload__segment *segment = &offload->segments[param->segment_first + i];
        bool on_device;
        uint8_t *const place = segment_place(offload, segment, &on_device);

        if (place != NULL || on_device)
            st = run_load(job, segment->file_index, segment->file_offset_bytes,
                          segment->size_bytes, place, segment->offset_bytes, err);
        if (st == STATUS_OK && place != NULL && param->tensor.layout == LAYOUT_ROWS_16)
            offload__finisher_add(job->finisher, param, place, segment->row_count);
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

/* A parameter that stays on a device with memory of its own, and lies in the files as it is used:
 * piece by piece, so that its size needs no buffer. */
static enum status pieces_load(struct offload__fill *job, struct offload__param *param,
                               struct err *err)
{
    enum status st = STATUS_OK;

    for (uint64_t at = 0; at < param->size_bytes && st == STATUS_OK;) {
        struct loader_extent extent = { 0 };
        const bool found = loader_extent(param->loader, job->ckpt, at, &extent);

        assert(found); /* it is plain */
        (void)found;
        st = run_load(job, extent.file_index, extent.file_offset_bytes, extent.size_bytes, NULL,
                      param->offset_bytes + at, err);
        at += extent.size_bytes;
    }
    return st == STATUS_OK ? st : err_prefix(err, st, "%s", param->name);
}

static enum status param_load(struct offload__fill *job, struct offload__param *param,
                              struct err *err)
{
    struct offload *offload = job->offload;
    uint8_t *place;
    enum status st;

    if (is_left_out(offload, (size_t)(param - offload->params))) {
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
    if (place == NULL && param->unit == OFFLOAD_NO_UNIT &&
        param->size_bytes > OFFLOAD_PIECE_BYTES && offload__param_is_plain(param, job->ckpt)) {
        st = pieces_load(job, param, err);
        if (st == STATUS_OK)
            param->tensor.data = offload->resident + param->offset_bytes;
        param->filled = st == STATUS_OK;
        return st;
    }
    st = loader_load(param->loader, job->ckpt, place != NULL ? place : job->bounce, job->staging,
                     job->progress, &job->done_bytes, job->total_bytes, err);
    if (st != STATUS_OK)
        return st;
    if (place != NULL && param->tensor.layout == LAYOUT_ROWS_16)
        offload__finisher_add(job->finisher, param, place,
                              param->size_bytes / offload__row_bytes(param));
    else if (place != NULL)
        st = offload__finish(offload, param, place, job->finish, err);
    else
        st = finish_bounced(job, param, err);
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
    offload__finisher_wait(job->finisher);
    if (st == STATUS_OK && offload->loaded)
        offload__late_filled(offload);
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
    if (st == STATUS_OK)
        st = offload__late_take(offload, ckpt, err);
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
        st = offload__experts_preload(offload, progress, err);
    if (st == STATUS_OK)
        st = offload__ring_start(offload, err);
    if (st == STATUS_OK)
        st = offload__late_start(offload, err);
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
