/* offload/reload.c - filling one parameter again, through the loader it never loses.
 *
 * The new bytes are loaded into a buffer of their own; only when all of them are there do they
 * change places with the old. For a home on the host that is a swap in host memory, which can be
 * undone should the device then fail; for device memory it is one copy. Onloads that are ahead of
 * the next pass have brought old bytes to their slots, so they are queued once more. */
#include <assert.h>
#include <string.h>

#include "offload/internal.h"
#include "offload/home/share.h"

/* After an onload could not be renewed: start the sequence afresh from the old bytes. When that
 * fails too, offload_begin says so. */
static void ring_restart(struct offload *offload)
{
    offload->started = false;
    (void)offload_pass_abort(offload, NULL);
}

static enum status put_resident(struct offload *offload, struct offload__param *param,
                                uint8_t *fresh, struct err *err)
{
    uint8_t *const dst = offload->resident + param->offset_bytes;
    enum status st;

    if (offload->in_place) {
        memcpy(dst, fresh, param->size_bytes);
        return STATUS_OK;
    }
    st = device_copy_in(offload->copy, dst, fresh, param->size_bytes, err);
    return st == STATUS_OK ? stream_sync(offload->copy, err) : st;
}

static enum status swap(struct offload *offload, const struct offload__param *param,
                        uint8_t *bytes, struct err *err)
{
    return offload__home(offload->units[param->unit].home)
        ->swap(offload, param->unit, param->offset_bytes, bytes, param->size_bytes, err);
}

static enum status put_home(struct offload *offload, const struct offload__param *param,
                            uint8_t *fresh, struct err *err)
{
    enum status st = swap(offload, param, fresh, err);

    if (st != STATUS_OK)
        return st;
    st = offload__ring_renew(offload, param->unit, err);
    if (st == STATUS_OK)
        return STATUS_OK;
    (void)offload__ring_sync(offload, NULL);
    (void)swap(offload, param, fresh, NULL);
    ring_restart(offload);
    return st;
}

/* Gives the unit a record on the host, the parameter's bytes in it and zeros elsewhere. */
static enum status put_meta(struct offload *offload, struct offload__param *param, uint8_t *fresh,
                            struct err *err)
{
    struct offload__unit *unit = &offload->units[param->unit];
    void *record;
    enum status st = device_host_alloc(offload->device, unit->size_bytes, &record, err);

    if (st != STATUS_OK)
        return err_prefix(err, st, "home of %s on the host", unit->name);
    memcpy((uint8_t *)record + param->offset_bytes, fresh, param->size_bytes);
    unit->record = record;
    unit->home = OFFLOAD_HOME_HOST;
    st = offload__ring_renew(offload, param->unit, err);
    if (st == STATUS_OK)
        return STATUS_OK;
    (void)offload__ring_sync(offload, NULL);
    unit->record = NULL;
    unit->home = OFFLOAD_HOME_META;
    device_host_free(offload->device, record, unit->size_bytes);
    ring_restart(offload);
    return st;
}

static enum status put(struct offload *offload, struct offload__param *param, uint8_t *fresh,
                       struct err *err)
{
    enum status st = offload__ring_sync(offload, err); /* nothing reads the old bytes now */

    assert(fresh != NULL); /* with one rank everything is loaded here */
    if (st != STATUS_OK)
        return st;
    if (param->is_expert)
        offload__experts_forget(offload, param->unit);
    if (param->unit == OFFLOAD_NO_UNIT)
        return put_resident(offload, param, fresh, err);
    if (offload->units[param->unit].home == OFFLOAD_HOME_META)
        return put_meta(offload, param, fresh, err);
    return put_home(offload, param, fresh, err);
}

/* From here on nobody of this process reads the unit: what other ranks do to it is not known. */
static void give_up(struct offload *offload)
{
    offload->torn = true;
    offload->started = false;
}

/* The same for a unit that ranks share. `st`: whether the new bytes are in `fresh`, in this rank.
 * All ranks change theirs, or none does. */
static enum status put_shared(struct offload *offload, const struct offload__param *param,
                              uint8_t *fresh, enum status st, struct err *err)
{
    enum status back = STATUS_OK;
    bool changed, told;

    if (st == STATUS_OK)
        st = offload__ring_sync(offload, err);
    if (st == STATUS_OK && param->is_expert)
        offload__experts_forget(offload, param->unit);
    st = offload__share_meet(offload, OFFLOAD_SHARE_READY, st, NULL, err);
    if (st != STATUS_OK)
        return st;
    st = offload__share_meet(offload, OFFLOAD_SHARE_AGREED, st, &told, err);
    if (!told)
        give_up(offload);
    if (st != STATUS_OK)
        return st;
    st = swap(offload, param, fresh, err);
    changed = st == STATUS_OK;
    st = offload__share_meet(offload, OFFLOAD_SHARE_CHANGED, st, &told, err);
    if (st == STATUS_OK) {
        st = offload__ring_renew(offload, param->unit, err);
        if (st != STATUS_OK)
            ring_restart(offload);
        return st;
    }
    if (changed)
        back = swap(offload, param, fresh, NULL);
    if (told)
        back = offload__share_meet(offload, OFFLOAD_SHARE_RESTORED, back, &told, NULL);
    if (!told || back != STATUS_OK)
        give_up(offload);
    return st;
}

static bool is_shared(const struct offload *offload, const struct offload__param *param)
{
    return offload__is_shared(offload) && param->unit != OFFLOAD_NO_UNIT &&
           offload__home(offload->units[param->unit].home)->is_shared;
}

/* Fills *fresh_out, which the caller gives back whatever happens; NULL where another rank does. */
static enum status load_fresh(struct offload *offload, const struct offload__param *param,
                              const struct ckpt *ckpt, void **fresh_out, struct err *err)
{
    const struct offload__home_ops *home =
        param->unit == OFFLOAD_NO_UNIT ? NULL : offload__home(offload->units[param->unit].home);
    const uint64_t finish_bytes =
        param->tensor.layout == LAYOUT_ND ? 0 : offload->finish_bytes;
    struct loader_staging *staging = NULL;
    void *scratch = NULL;
    enum status st = loader_check(param->loader, ckpt, param->name, err);

    if (st != STATUS_OK)
        return st;
    if (home != NULL && home->is_loaded_here != NULL && !home->is_loaded_here(offload, param->unit))
        return STATUS_OK;
    st = device_host_alloc(offload->device, param->size_bytes, fresh_out, err);
    if (st != STATUS_OK)
        return err_prefix(err, st, "%s: a buffer to load it again", param->name);
    if (finish_bytes > 0)
        st = device_host_alloc(offload->device, finish_bytes, &scratch, err);
    if (st == STATUS_OK)
        st = loader_staging_create(ckpt, &staging, err);
    if (st == STATUS_OK)
        st = loader_load(param->loader, ckpt, *fresh_out, staging, NULL, NULL, 0, err);
    if (st == STATUS_OK)
        st = offload__finish(offload, param, *fresh_out, scratch, err);
    loader_staging_destroy(staging);
    device_host_free(offload->device, scratch, finish_bytes);
    return st;
}

enum status offload_reload(struct offload *offload, size_t index, const struct ckpt *ckpt,
                           struct err *err)
{
    struct offload__param *param;
    void *fresh = NULL;
    enum status st;

    assert(index < offload->param_count);
    assert(offload->loaded && offload->active == OFFLOAD_NO_UNIT);
    assert(offload->position == offload->pass_position);
    param = &offload->params[index];
    if (param->segment_count > 0 ||
        (param->unit != OFFLOAD_NO_UNIT && offload->units[param->unit].home == OFFLOAD_HOME_DISK))
        return err_set(err, STATUS_UNAVAILABLE,
                       "%s is at home on the disk, or in pieces of which some are: it cannot be "
                       "loaded again by itself, only with all others", param->name);
    if (param->unit != OFFLOAD_NO_UNIT && offload__shm_is_inherited(offload) &&
        offload->units[param->unit].home == OFFLOAD_HOME_SHM)
        return err_set(err, STATUS_UNAVAILABLE,
                       "%s is in memory that another rank fills: it can only be loaded again with "
                       "all others", param->name);
    if (offload__late_is(offload, index))
        offload__late_settle(offload);
    st = load_fresh(offload, param, ckpt, &fresh, err);
    if (is_shared(offload, param))
        st = put_shared(offload, param, fresh, st, err);
    else if (st == STATUS_OK)
        st = put(offload, param, fresh, err);
    device_host_free(offload->device, fresh, param->size_bytes);
    if (st != STATUS_OK)
        return st;
    param->filled = true;
    if (offload__late_is(offload, index))
        offload__late_filled(offload);
    offload__homes_changed(offload);
    offload__counters_publish(offload);
    return STATUS_OK;
}
