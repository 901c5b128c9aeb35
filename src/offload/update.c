/* offload/update.c - all parameters anew from another checkpoint, in place; or none.
 *
 *     prepare     loaders checked - source found, opened, read     (nothing has changed)
 *     commit      memory - a home for meta - ring stopped - HELD   (nothing has changed)
 *                 sources swapped - filled - CHANGED - ring started
 *     on failure  sources swapped back - filled - RESTORED - ring started
 *
 * What could fail for want of memory comes before the first byte is overwritten, and loading the
 * old weights back takes none, so that it fails only when their files do.
 *
 * HELD, CHANGED and RESTORED are where ranks that switch together meet. Records that they share are
 * filled by their owner while all stand still, between HELD and the last of the others; so nothing
 * here waits for the cluster, whose collectives don't survive a rank, and a rank that ends leaves
 * the others able to go back. What it may leave half-filled are records that others read: a peer's
 * shards, and the first rank's segment, which says of itself what it holds (offload__shm_turn). */
#include <assert.h>
#include <stdlib.h>

#include "offload/internal.h"
#include "offload/home/share.h"

struct offload_update {
    struct offload *offload;
    struct offload__source source; /* the new one; once committed, the old */
    bool *was_meta;                /* [unit_count]: was given a home on the host by commit */
    const struct offload_meeting *meeting; /* commit's; NULL: this rank is alone */
    uint64_t turn;                 /* of shared records when commit began */
};

/* How far shared records are, counted from the turn that commit began with. */
enum { TURN_OLD = 0, TURN_CHANGING = 1, TURN_NEW = 2, TURN_RESTORING = 3, TURN_OLD_AGAIN = 4 };

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
             ? offload__shm_check_owner(offload, err)
             : err_set(err, STATUS_NO_MEMORY, "%s: no memory for an update", ckpt_path(ckpt));
    if (st == STATUS_OK)
        st = offload__loaders_check(offload, ckpt, err);
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

/* Comes to a step of the meeting; alone, everybody agrees. */
static enum status meet(const struct offload_update *update, enum offload_update_step step,
                        enum status own, struct err *err)
{
    const struct offload_meeting *meeting = update->meeting;

    return meeting == NULL ? own : meeting->meet(meeting->user, step, own, err);
}

/* Fills everything from a checkpoint. turn: what shared records are meanwhile; when it has gone
 * well, the one behind it. */
static enum status fill(struct offload_update *update, struct offload__fill *job,
                        const struct ckpt *ckpt, uint64_t turn, struct err *err)
{
    enum status st;

    offload__shm_set_turn(update->offload, update->turn + turn);
    st = offload__fill_run(job, ckpt, err);
    if (st == STATUS_OK)
        offload__shm_set_turn(update->offload, update->turn + turn + 1);
    return st;
}

/* From here on nobody reads weights: which bytes are where is not known. */
static void give_up(struct offload *offload, bool by_peer)
{
    offload->torn = offload->torn || by_peer;
    offload->mixed = offload->mixed || !by_peer;
    offload->started = false;
}

/* Whether records that are other ranks' to fill are the old ones. `all`: every rank has come to
 * RESTORED and has its own back. */
static bool others_are_back(const struct offload_update *update, bool all)
{
    const struct offload *offload = update->offload;
    const uint64_t turn = offload__shm_turn(offload) - update->turn;

    if (!offload__is_shared(offload) && !offload__shm_is_inherited(offload))
        return true;
    return offload->shm != NULL ? turn == TURN_OLD || turn == TURN_OLD_AGAIN : all;
}

/* Brings the old weights back. Returns whether they are there. */
static enum status go_back(struct offload_update *update, struct offload__fill *job)
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
    own = fill(update, job, old, TURN_RESTORING, &why);
    if (own != STATUS_OK)
        log_line(offload->log, LOG_ERROR, "the old weights could not be loaded again: %s",
                 why.message);
    st = meet(update, OFFLOAD_UPDATE_RESTORED, own, &why);
    if (own == STATUS_OK && others_are_back(update, st == STATUS_OK)) {
        (void)offload__ring_start(offload, NULL); /* when it fails, begin says so */
        return STATUS_OK;
    }
    give_up(offload, own == STATUS_OK);
    return own != STATUS_OK ? own : STATUS_PEER;
}

/* Between HELD and the end: the weights change, or have changed back. *fit_out: whether passes can
 * run afterwards. */
static enum status change(struct offload_update *update, struct offload__fill *job,
                          enum status *fit_out, struct err *err)
{
    struct offload *offload = update->offload;
    const struct ckpt *fresh = update->source.ckpt;
    enum status st;

    offload__source_swap(offload, &update->source);
    st = fill(update, job, fresh, TURN_CHANGING, err);
    st = meet(update, OFFLOAD_UPDATE_CHANGED, st, err);
    if (st == STATUS_OK) {
        st = offload__ring_start(offload, err);
        *fit_out = st;
        if (st == STATUS_OK || update->meeting != NULL) /* others go on with the new ones */
            return st;
    }
    *fit_out = go_back(update, job);
    return st;
}

/* Up to HELD: memory for all that follows, and nobody reads weights any more. */
static enum status hold(struct offload_update *update, struct offload__fill *job, bool *stopped_out,
                        struct err *err)
{
    enum status st;

    offload__late_settle(update->offload);
    st = meta_take(update, err);
    if (st == STATUS_OK)
        st = offload__fill_init(job, err);
    if (st != STATUS_OK)
        return st;
    *stopped_out = true;
    return movers_stop(update->offload, err);
}

enum status offload_update_commit(struct offload_update *update,
                                  const struct offload_meeting *meeting, struct err *err)
{
    struct offload *offload = update->offload;
    struct offload__fill job = { .offload = offload, .ckpt = update->source.ckpt };
    enum status st, fit = STATUS_OK;
    bool stopped = false;
    struct err why = { 0 };

    assert(offload->loaded && offload->active == OFFLOAD_NO_UNIT);
    assert(offload->position == offload->pass_position);
    offload__routing_save(offload); /* of the weights that have chosen so */
    update->meeting = meeting;
    update->turn = offload__shm_turn(offload);
    st = hold(update, &job, &stopped, err);
    st = meet(update, OFFLOAD_UPDATE_HELD, st, err);
    if (st == STATUS_OK) {
        st = change(update, &job, &fit, err);
    } else {
        meta_give(update);
        if (stopped)
            (void)offload__ring_start(offload, NULL);
    }
    offload__fill_deinit(&job);
    if (st == STATUS_OK)
        offload__routing_forget(offload);
    for (size_t i = 0; i < offload->unit_count && st == STATUS_OK; i++)
        offload->units[i].has_come = false;
    offload__homes_changed(offload);
    offload__counters_publish(offload);
    if (fit != STATUS_OK && offload__torn_check(offload, &why) == STATUS_OK)
        why = *err; /* of a ring that could not be started */
    (void)meet(update, OFFLOAD_UPDATE_ENDED, fit, &why);
    return st;
}
