/* fleet/rank_update.c - a rank's part in a live update: its engine's meetings are the front end's.
 *
 *     rank's thread       update -> starts the update's; agreed -> the answer
 *     update's thread     engine_update: prepares, comes to PREPARED
 *     engine's thread     between two steps: comes to HELD, CHANGED, RESTORED, ENDED
 *
 * While the engine's thread waits at a step nothing is computed; the rank's thread goes on reading,
 * so that requests queue, and beats, so that the front end knows that it lives. */
#include <assert.h>
#include <stdlib.h>

#include "fleet/rank_internal.h"

static void come(struct fleet_rank *rank, enum offload_update_step step, enum status own,
                 uint32_t paused_count, const struct err *err)
{
    struct fleet__step words = {
        .id = rank->update.id, .step = step, .status = own, .paused_count = paused_count,
    };

    if (own != STATUS_OK && err != NULL)
        words.said = *err;
    fleet__say(rank, fleet__step_json(FLEET__UPDATED, &words));
}

static enum status meet(void *user, enum offload_update_step step, enum status own,
                        uint32_t paused_count, struct err *err)
{
    struct fleet_rank *rank = user;
    struct fleet__rank_update *update = &rank->update;
    enum status st;

    pthread_mutex_lock(&rank->lock);
    update->step = step;
    update->has_answer = false;
    update->waits = step != OFFLOAD_UPDATE_ENDED;
    update->is_running = update->waits;
    pthread_mutex_unlock(&rank->lock);
    come(rank, step, own, paused_count, err); /* not before: the answer may come at once */
    if (step == OFFLOAD_UPDATE_ENDED)
        return own;
    pthread_mutex_lock(&rank->lock);
    while (!update->has_answer && !rank->leaving && !rank->stopping)
        pthread_cond_wait(&rank->changed, &rank->lock);
    update->waits = false;
    st = update->has_answer ? update->answer.status : STATUS_CANCELED;
    if (st != STATUS_OK)
        (void)err_set(err, st, "%s", update->has_answer ? update->answer.said.message
                                                        : "the rank is leaving");
    pthread_mutex_unlock(&rank->lock);
    return st;
}

static void *update_thread(void *user)
{
    struct fleet_rank *rank = user;
    struct err err; /* all was said there */

    if (engine_update(rank->engine, &rank->update.wanted, NULL, &err) == STATUS_OK &&
        rank->options.on_updated != NULL)
        rank->options.on_updated(rank->options.user);
    return NULL;
}

/* The thread of the last update has said all it has to say, or is about to end for another reason.
 */
static void join(struct fleet__rank_update *update)
{
    if (update->has_thread)
        (void)pthread_join(update->thread, NULL);
    update->has_thread = false;
    json_decref(update->message);
    update->message = NULL;
}

enum status fleet__rank_on_update(struct fleet_rank *rank, json_t *json, struct err *err)
{
    struct fleet__rank_update *update = &rank->update;
    struct engine_update wanted;
    bool is_running;
    uint64_t id = 0;
    enum status st = fleet__update_read(json, &id, &wanted, err);

    if (st != STATUS_OK)
        return st;
    pthread_mutex_lock(&rank->lock);
    is_running = update->is_running;
    update->is_running = true;
    pthread_mutex_unlock(&rank->lock);
    if (is_running)
        return err_set(err, STATUS_PEER, "the front end began an update while one was under way");
    join(update);
    wanted.meet = meet;
    wanted.user = rank;
    update->wanted = wanted;
    update->message = json_incref(json);
    update->id = id;
    update->has_thread = pthread_create(&update->thread, NULL, update_thread, rank) == 0;
    if (!update->has_thread) /* the front end will end this rank for it, and start another */
        return err_set(err, STATUS_NO_MEMORY, "no thread for an update");
    return STATUS_OK;
}

enum status fleet__rank_on_agreed(struct fleet_rank *rank, const json_t *json, struct err *err)
{
    struct fleet__rank_update *update = &rank->update;
    struct fleet__step answer;
    enum status st = fleet__step_read(json, &answer, err);

    if (st != STATUS_OK)
        return st;
    pthread_mutex_lock(&rank->lock);
    if (update->waits && !update->has_answer && answer.id == update->id &&
        answer.step == update->step) {
        update->answer = answer;
        update->has_answer = true;
        pthread_cond_broadcast(&rank->changed);
    } else {
        st = err_set(err, STATUS_PEER, "the front end answered a step that this rank is not at");
    }
    pthread_mutex_unlock(&rank->lock);
    return st;
}

void fleet__rank_update_stop(struct fleet_rank *rank)
{
    join(&rank->update);
}
