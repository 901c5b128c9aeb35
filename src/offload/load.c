/* offload/load.c - taking memory, and filling it through the loaders.
 *
 * What stays lies in one block of device memory; the slots are one more; each moving unit has a
 * record in host memory that the device can copy from. Parameters are loaded one after the other:
 * straight into their record, straight into device memory where that is the host's, and else
 * through one bounce buffer of the largest parameter that stays. So at most one parameter is in
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

/* Of one offload_load. */
struct load_job {
    struct offload *offload;
    const struct ckpt *ckpt;
    struct loader_staging *staging;
    uint8_t *bounce;            /* NULL: not needed */
    uint64_t bounce_bytes;
    const struct progress *progress;
    uint64_t done_bytes, total_bytes; /* of the checkpoint */
};

static bool param_is_meta(const struct offload *offload, const struct offload__param *param)
{
    return param->unit != OFFLOAD_NO_UNIT &&
           offload->units[param->unit].home == OFFLOAD_HOME_META;
}

static enum status loaders_check(const struct offload *offload, const struct ckpt *ckpt,
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
    for (size_t i = 0; i < offload->unit_count; i++) {
        struct offload__unit *unit = &offload->units[i];

        if (unit->home != OFFLOAD_HOME_HOST)
            continue;
        st = device_host_alloc(offload->device, unit->size_bytes, &unit->record, err);
        if (st != STATUS_OK)
            return err_prefix(err, st, "home of %s on the host", unit->name);
    }
    return STATUS_OK;
}

void offload__memory_free(struct offload *offload)
{
    if (offload->compute != NULL)
        (void)offload__ring_sync(offload, NULL);
    offload__ring_destroy(offload);
    for (size_t i = 0; i < offload->unit_count; i++) {
        struct offload__unit *unit = &offload->units[i];

        device_host_free(offload->device, unit->record, unit->size_bytes);
        unit->record = NULL;
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
static enum status job_init(struct load_job *job, struct err *err)
{
    struct offload *offload = job->offload;
    void *memory;
    enum status st = loader_staging_create(&job->staging, err);

    if (st != STATUS_OK)
        return st;
    for (size_t i = 0; i < offload->param_count; i++) {
        const struct offload__param *param = &offload->params[i];

        if (!param_is_meta(offload, param))
            job->total_bytes += loader_source_bytes(param->loader, job->ckpt);
        if (param->unit == OFFLOAD_NO_UNIT && !offload->in_place &&
            param->size_bytes > job->bounce_bytes)
            job->bounce_bytes = param->size_bytes;
    }
    if (job->bounce_bytes == 0)
        return STATUS_OK;
    st = device_host_alloc(offload->device, job->bounce_bytes, &memory, err);
    if (st != STATUS_OK)
        return err_prefix(err, st, "a buffer for the largest parameter that stays on the device");
    job->bounce = memory;
    return STATUS_OK;
}

static void job_deinit(struct load_job *job)
{
    device_host_free(job->offload->device, job->bounce, job->bounce_bytes);
    loader_staging_destroy(job->staging);
}

static enum status param_load(struct load_job *job, struct offload__param *param, struct err *err)
{
    struct offload *offload = job->offload;
    const bool moves = param->unit != OFFLOAD_NO_UNIT;
    uint8_t *base, *dst;
    enum status st;

    if (param_is_meta(offload, param))
        return STATUS_OK;
    base = moves ? offload->units[param->unit].record : offload->resident;
    dst = moves || offload->in_place ? base + param->offset_bytes : job->bounce;
    st = loader_load(param->loader, job->ckpt, dst, job->staging, job->progress, &job->done_bytes,
                     job->total_bytes, err);
    if (st != STATUS_OK)
        return st;
    if (dst == job->bounce) {
        st = device_copy_in(offload->copy, base + param->offset_bytes, dst, param->size_bytes, err);
        if (st == STATUS_OK)
            st = stream_sync(offload->copy, err); /* the buffer is used again */
        if (st != STATUS_OK)
            return err_prefix(err, st, "%s", param->name);
    }
    param->filled = true;
    if (!moves)
        param->tensor.data = base + param->offset_bytes;
    return STATUS_OK;
}

static enum status params_load(struct offload *offload, const struct ckpt *ckpt,
                               const struct progress *progress, struct err *err)
{
    struct load_job job = { .offload = offload, .ckpt = ckpt, .progress = progress };
    enum status st = job_init(&job, err);

    for (size_t i = 0; i < offload->param_count && st == STATUS_OK; i++)
        st = param_load(&job, &offload->params[i], err);
    job_deinit(&job);
    return st;
}

enum status offload_load(struct offload *offload, struct stream *compute, const struct ckpt *ckpt,
                         const struct progress *progress, struct err *err)
{
    enum status st;

    assert(!offload->loaded);
    assert(compute != NULL);
    st = loaders_check(offload, ckpt, err);
    if (st != STATUS_OK)
        return st;
    offload->compute = compute;
    st = memory_take(offload, err);
    if (st == STATUS_OK)
        st = offload__ring_create(offload, err);
    if (st == STATUS_OK)
        st = params_load(offload, ckpt, progress, err);
    if (st == STATUS_OK)
        st = offload__ring_start(offload, err);
    if (st != STATUS_OK) {
        offload__memory_free(offload);
        offload_report_reset(offload);
        return st;
    }
    offload->loaded = true;
    offload__homes_changed(offload);
    offload__counters_publish(offload);
    return STATUS_OK;
}
