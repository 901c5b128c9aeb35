/* offload/update.c - all parameters anew from another checkpoint, in place; or none.
 *
 *     prepare     loaders checked - source found, opened, read     (nothing has changed)
 *     commit      memory - a home for meta - meet READY, AGREED    (nothing has changed)
 *                 ring stopped - sources swapped - filled - meet CHANGED - ring started
 *     on failure  sources swapped back - filled - meet RESTORED - ring started
 *
 * What could fail for want of memory comes before the first byte is overwritten, and loading the
 * old weights back takes none, so that it fails only when their files do. Shared records are filled
 * by their owner, while all ranks stand still between AGREED and CHANGED. */
#include <assert.h>
#include <stdlib.h>

#include "offload/internal.h"
#include "offload/share.h"

struct offload_update {
    struct offload *offload;
    struct offload__source source; /* the new one; once committed, the old */
    bool *was_meta;                /* [unit_count]: was given a home on the host by commit */
};

enum status offload_update_prepare(struct offload *offload, const struct ckpt *ckpt,
                                   struct offload_update **update_out, struct err *err)
{
    struct offload_update *update = calloc(1, sizeof(*update));
    enum status st;

    assert(offload->loaded);
    if (update == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for an update", ckpt_path(ckpt));
    update->offload = offload;
    update->source.ckpt = ckpt;
    update->was_meta = calloc(offload->unit_count + 1, sizeof(*update->was_meta));
    st = update->was_meta != NULL
             ? offload__loaders_check(offload, ckpt, err)
             : err_set(err, STATUS_NO_MEMORY, "%s: no memory for an update", ckpt_path(ckpt));
    if (st == STATUS_OK)
        st = offload__source_open(offload, &update->source, err);
    if (st == STATUS_OK)
        st = offload__source_read(offload, &update->source, err);
    if (st != STATUS_OK) {
        offload_update_destroy(update);
        return st;
    }
    *update_out = update;
    return STATUS_OK;
}

void offload_update_destroy(struct offload_update *update)
{
    if (update == NULL)
        return;
    offload__source_close(update->offload, &update->source);
    free(update->was_meta);
    free(update);
}

/* Gives the units without contents their records back, and no home but meta. */
static void meta_give(struct offload_update *update)
{
    struct offload *offload = update->offload;

    for (size_t i = 0; i < offload->unit_count; i++) {
        struct offload__unit *unit = &offload->units[i];

        if (!update->was_meta[i])
            continue;
        device_host_free(offload->device, unit->record, unit->size_bytes);
        unit->record = NULL;
        unit->home = OFFLOAD_HOME_META;
        update->was_meta[i] = false;
    }
}

/* A record on the host for every unit at home in meta. */
static enum status meta_take(struct offload_update *update, struct err *err)
{
    struct offload *offload = update->offload;

    for (size_t i = 0; i < offload->unit_count; i++) {
        struct offload__unit *unit = &offload->units[i];
        enum status st;

        if (unit->home != OFFLOAD_HOME_META)
            continue;
        st = device_host_alloc(offload->device, unit->size_bytes, &unit->record, err);
        if (st != STATUS_OK)
            return err_prefix(err, st, "home of %s on the host", unit->name);
        unit->home = OFFLOAD_HOME_HOST;
        update->was_meta[i] = true;
    }
    return STATUS_OK;
}

/* Nothing is under way afterwards, and nothing of the weights is in slots that anybody will read.
 */
static enum status movers_stop(struct offload *offload, struct err *err)
{
    offload__ring_abandon(offload);
    offload__experts_abandon(offload);
    return offload__ring_sync(offload, err);
}

/* From here on nobody reads weights: which bytes are where is not known. */
static void give_up(struct offload *offload, bool by_peer)
{
    offload->torn = offload->torn || by_peer;
    offload->mixed = offload->mixed || !by_peer;
    offload->started = false;
}

/* Brings the old weights back. `told`: all ranks know that they shall. */
static void go_back(struct offload_update *update, struct offload__fill *fill, bool told)
{
    struct offload *offload = update->offload;
    const struct ckpt *old = update->source.ckpt;
    struct err why;
    enum status own, st;

    offload__ring_abandon(offload);
    offload__experts_abandon(offload);
    (void)offload__ring_sync(offload, NULL);
    offload__source_swap(offload, &update->source);
    meta_give(update);
    own = st = offload__fill_run(fill, old, &why);
    if (told)
        st = offload__share_meet(offload, OFFLOAD_SHARE_RESTORED, own, &told, &why);
    if (!told || st != STATUS_OK) {
        log_line(offload->log, LOG_ERROR, "the old weights could not be loaded again%s%s",
                 st != STATUS_OK ? ": " : "", st != STATUS_OK ? why.message : "");
        give_up(offload, own == STATUS_OK);
        return;
    }
    (void)offload__ring_start(offload, NULL); /* when it fails, begin says so */
}

/* Between READY and the end: the weights change, or have changed back. */
static enum status change(struct offload_update *update, struct offload__fill *fill,
                          struct err *err)
{
    struct offload *offload = update->offload;
    const struct ckpt *fresh = update->source.ckpt;
    bool told = true;
    enum status st;

    offload__source_swap(offload, &update->source);
    st = offload__fill_run(fill, fresh, err);
    st = offload__share_meet(offload, OFFLOAD_SHARE_CHANGED, st, &told, err);
    if (st == STATUS_OK) {
        st = offload__ring_start(offload, err);
        if (st == STATUS_OK || offload__is_shared(offload)) /* others go on with the new ones */
            return st;
    }
    go_back(update, fill, told);
    return st;
}

enum status offload_update_commit(struct offload_update *update, struct err *err)
{
    struct offload *offload = update->offload;
    struct offload__fill fill = { .offload = offload, .ckpt = update->source.ckpt };
    bool told = true, stopped = false;
    enum status st;

    assert(offload->loaded && offload->active == OFFLOAD_NO_UNIT);
    assert(offload->position == offload->pass_position);
    st = meta_take(update, err);
    if (st == STATUS_OK)
        st = offload__fill_init(&fill, err);
    if (st == STATUS_OK) {
        st = movers_stop(offload, err);
        stopped = true;
    }
    st = offload__share_meet(offload, OFFLOAD_SHARE_READY, st, NULL, err);
    if (st == STATUS_OK)
        st = offload__share_meet(offload, OFFLOAD_SHARE_AGREED, st, &told, err);
    if (st == STATUS_OK) {
        st = change(update, &fill, err);
    } else {
        meta_give(update);
        if (!told)
            give_up(offload, true);
        else if (stopped)
            (void)offload__ring_start(offload, NULL);
    }
    offload__fill_deinit(&fill);
    for (size_t i = 0; i < offload->unit_count && st == STATUS_OK; i++)
        offload->units[i].has_come = false;
    offload__homes_changed(offload);
    offload__counters_publish(offload);
    return st;
}
