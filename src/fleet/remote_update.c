/* fleet/remote_update.c - the front end's part in a live update: where all ranks meet.
 *
 * Members are the ranks that are up when it begins. Each comes to every step (offload.h) with how
 * it fares, and is told what all agree on once the last has come. Requests are held back from
 * PREPARED to the end, so that nobody computes anything for the client of one version while
 * another rank has the other.
 *
 *     update ~~> PREPARED --ok--> HELD --ok--> CHANGED --ok, decided--> ENDED
 *                   |               |             +---failed--> RESTORED -> ENDED
 *                   +----failed-----+----failed-------------------------> ENDED
 *
 * The decision is one step of one thread: that the last has come to CHANGED, and none has failed.
 * Before it the fleet's weights are the old ones, whatever happens: a failure anywhere, or the end
 * of a member, is everybody's failure. After it they are the new ones: who ends then is started
 * again with them, and so is who can't go on with them. Which weights a rank has is known by its
 * serial, so that one that was loading meanwhile is not taken for what it is not.
 *
 * Nothing here waits but the caller, and there is no time limit: reading a checkpoint takes as long
 * as it takes, and who says nothing at all is lost within two seconds. */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "fleet/remote_internal.h"

#define STALE UINT64_MAX /* the serial of no weights */

bool fleet__update_holds(const struct fleet__remote *remote)
{
    return remote->update.is_running && remote->update.step != OFFLOAD_UPDATE_PREPARED;
}

bool fleet__update_weights(const struct fleet__remote *remote,
                           struct fleet_rank_weights *weights_out)
{
    if (remote->model_path == NULL)
        return false;
    *weights_out = (struct fleet_rank_weights){
        .serial = remote->weights_serial, .model_path = remote->model_path,
        .weight_version = remote->weight_version, .info = remote->info,
    };
    return true;
}

static uint32_t rank_of(const struct fleet__remote *remote, const struct fleet__peer *peer)
{
    return (uint32_t)(peer - remote->peers);
}

/* -- steps ------------------------------------------------------------------------------------- */

static void fail(struct fleet__remote *remote, const struct err *why)
{
    if (!remote->update.has_failed)
        remote->update.why = *why;
    remote->update.has_failed = true;
}

/* What was served until now is history. */
static void decide(struct fleet__remote *remote)
{
    struct fleet__update *update = &remote->update;

    update->is_decided = true;
    remote->weights_serial++;
    for (uint32_t i = 0; i < remote->options.rank_count; i++)
        if (remote->peers[i].is_member)
            remote->peers[i].weights_serial = remote->weights_serial;
    free(remote->model_path);
    remote->model_path = update->model_path;
    update->model_path = NULL;
    if (update->weight_version == NULL)
        return; /* the label stays */
    free(remote->weight_version);
    remote->weight_version = update->weight_version;
    update->weight_version = NULL;
}

/* What waits here goes as what runs in the ranks does. */
static void abort_queue(struct fleet__remote *remote)
{
    for (struct fleet__request *at = remote->queue.first; at != NULL; at = at->next)
        at->for_update = true;
}

/* Where the update goes from a step to which all have come; *verdict_out: what they are told. */
static enum offload_update_step step_after(struct fleet__remote *remote,
                                           enum status *verdict_out)
{
    struct fleet__update *update = &remote->update;
    const bool failed = update->has_failed;

    *verdict_out = failed ? update->why.status : STATUS_OK;
    switch (update->step) {
    case OFFLOAD_UPDATE_PREPARED:
        if (!failed && update->abort_all)
            abort_queue(remote);
        return failed ? OFFLOAD_UPDATE_ENDED : OFFLOAD_UPDATE_HELD;
    case OFFLOAD_UPDATE_HELD:
        return failed ? OFFLOAD_UPDATE_ENDED : OFFLOAD_UPDATE_CHANGED;
    case OFFLOAD_UPDATE_CHANGED:
        if (!failed)
            decide(remote);
        return failed ? OFFLOAD_UPDATE_RESTORED : OFFLOAD_UPDATE_ENDED;
    case OFFLOAD_UPDATE_RESTORED:
        *verdict_out = update->is_spoilt ? update->why.status : STATUS_OK;
        return OFFLOAD_UPDATE_ENDED;
    case OFFLOAD_UPDATE_ENDED:
    case OFFLOAD_UPDATE_STEP_COUNT:
        break;
    }
    return OFFLOAD_UPDATE_STEP_COUNT;
}

static void tell_members(struct fleet__remote *remote, const struct fleet__step *step)
{
    for (uint32_t i = 0; i < remote->options.rank_count; i++) {
        struct fleet__peer *peer = &remote->peers[i];

        if (!peer->is_member)
            continue;
        peer->has_come = false;
        if (fleet__link_send(peer->link, fleet__step_json(FLEET__AGREED, step), NULL) != STATUS_OK)
            peer->is_cut = true; /* its end will be noticed */
    }
}

static void end(struct fleet__remote *remote)
{
    for (uint32_t i = 0; i < remote->options.rank_count; i++) {
        struct fleet__peer *peer = &remote->peers[i];

        peer->is_member = false;
        if (remote->update.is_spoilt && peer->state == FLEET__LOADING && peer->was_given_shares)
            peer->weights_serial = STALE; /* what it was given may be neither old nor new */
    }
    remote->update.is_running = false;
    pthread_cond_broadcast(&remote->changed);
}

/* Goes on when all members have come. */
static void look(struct fleet__remote *remote)
{
    struct fleet__update *update = &remote->update;
    struct fleet__step answer = { .id = update->id, .step = update->step };
    uint32_t member_count = 0;

    for (uint32_t i = 0; i < remote->options.rank_count; i++) {
        if (remote->peers[i].is_member && !remote->peers[i].has_come)
            return;
        member_count += remote->peers[i].is_member;
    }
    if (member_count == 0 || update->step == OFFLOAD_UPDATE_ENDED) {
        end(remote);
        return;
    }
    update->step = step_after(remote, &answer.status);
    if (answer.status != STATUS_OK)
        answer.said = update->why;
    tell_members(remote, &answer);
}

enum status fleet__update_come(struct fleet__remote *remote, struct fleet__peer *peer,
                               const struct fleet__step *step, struct err *err)
{
    struct fleet__update *update = &remote->update;
    struct err why;

    if (!peer->is_member || peer->has_come || step->id != update->id ||
        step->step != update->step)
        return err_set(err, STATUS_PEER, "it came to a step of an update out of turn");
    if (step->status != STATUS_OK) {
        (void)err_set(&why, step->status, "rank %u: %.400s", rank_of(remote, peer),
                      step->said.message);
        if (step->step == OFFLOAD_UPDATE_ENDED) /* fit for nothing; a new one will do */
            return err_set(err, STATUS_PEER, "an update of the weights left it broken: %.300s",
                           step->said.message);
        fail(remote, &why);
        update->is_spoilt = update->is_spoilt || step->step == OFFLOAD_UPDATE_RESTORED;
    }
    if (step->step == OFFLOAD_UPDATE_CHANGED)
        update->paused_count += step->paused_count;
    peer->has_come = true;
    look(remote);
    return STATUS_OK;
}

void fleet__update_lost(struct fleet__remote *remote, struct fleet__peer *peer)
{
    struct fleet__update *update = &remote->update;
    struct err why;

    if (!peer->is_member)
        return;
    peer->is_member = false;
    if (!update->is_decided) {
        (void)err_set(&why, STATUS_PEER, "rank %u (process %" PRId64 " on %.60s) has died: %.200s",
                      rank_of(remote, peer), peer->hello.pid, peer->hello.host, peer->why);
        fail(remote, &why);
        update->is_spoilt = update->is_spoilt || update->step == OFFLOAD_UPDATE_CHANGED ||
                            update->step == OFFLOAD_UPDATE_RESTORED;
    }
    look(remote);
}

/* -- the caller -------------------------------------------------------------------------------- */

/* Why an update can't begin. */
static enum status check(const struct fleet__remote *remote, struct err *err)
{
    uint32_t up_count = 0, away = 0;

    for (uint32_t i = 0; i < remote->options.rank_count; i++) {
        if (remote->peers[i].state == FLEET__UP && !remote->peers[i].is_cut)
            up_count++;
        else
            away = i;
    }
    if (remote->draining || remote->stopping || remote->leaving)
        return err_set(err, STATUS_UNAVAILABLE, "the server is shutting down");
    if (remote->update.is_taken)
        return err_set(err, STATUS_BUSY, "another update of the weights is under way");
    if (up_count == 0 || (remote->options.needs_all && up_count < remote->options.rank_count))
        return err_set(err, STATUS_UNAVAILABLE,
                       "rank %u is not up; the ranks are being started again, and their weights "
                       "can be updated then", away);
    return STATUS_OK;
}

/* Takes the strings. */
static void begin(struct fleet__remote *remote, const struct engine_update *wanted,
                  char *model_path, char *weight_version)
{
    const uint64_t id = remote->update.id + 1;

    remote->update = (struct fleet__update){
        .is_taken = true, .is_running = true, .id = id, .step = OFFLOAD_UPDATE_PREPARED,
        .model_path = model_path, .weight_version = weight_version,
        .abort_all = wanted->abort_all,
    };
    for (uint32_t i = 0; i < remote->options.rank_count; i++) {
        struct fleet__peer *peer = &remote->peers[i];

        peer->is_member = peer->state == FLEET__UP && !peer->is_cut;
        peer->has_come = false;
        if (peer->is_member &&
            fleet__link_send(peer->link, fleet__update_json(id, wanted), NULL) != STATUS_OK)
            peer->is_cut = true; /* its end will be noticed, and be the update's */
    }
}

/* What has come of it. */
static enum status result(const struct fleet__update *update, uint32_t *paused_count_out,
                          struct err *err)
{
    if (!update->is_decided)
        return err_set(err, update->why.status, "%s", update->why.message);
    if (paused_count_out != NULL)
        *paused_count_out = update->paused_count;
    return STATUS_OK;
}

enum status fleet__remote_update(struct fleet *fleet, const struct engine_update *wanted,
                                 uint32_t *paused_count_out, struct err *err)
{
    struct fleet__remote *remote = (struct fleet__remote *)fleet;
    struct fleet__update *update = &remote->update;
    char *path = strdup(wanted->model_path);
    char *version = wanted->weight_version != NULL ? strdup(wanted->weight_version) : NULL;
    enum status st = STATUS_OK;

    if (path == NULL || (version == NULL && wanted->weight_version != NULL))
        st = err_set(err, STATUS_NO_MEMORY, "no memory for an update");
    else if (version != NULL && strlen(version) >= ENGINE_VERSION_BYTES_MAX)
        st = err_set(err, STATUS_BAD_INPUT, "a weight version of %zu bytes, at most %d fit",
                     strlen(version), ENGINE_VERSION_BYTES_MAX - 1);
    pthread_mutex_lock(&remote->lock);
    if (st == STATUS_OK)
        st = check(remote, err);
    if (st == STATUS_OK) {
        begin(remote, wanted, path, version);
        fleet__wake(remote); /* a socket may be full */
        while (update->is_running)
            pthread_cond_wait(&remote->changed, &remote->lock);
        st = result(update, paused_count_out, err);
        path = update->model_path;
        version = update->weight_version;
        update->is_taken = false;
    }
    pthread_mutex_unlock(&remote->lock);
    free(path);
    free(version);
    return st;
}
