/* fleet/rank.h - a rank's side: one engine that works for a front end in another process.
 *
 *     connect ---- the model is loaded ---- serve ................. leave
 *        |  beats from here on                | submit, cancel, ask, update
 *
 * A thread of its own keeps the connection from the first moment, so that the front end knows who
 * is alive while models load. When the front end goes away the rank has nothing left to do, and
 * `on_gone` is called.
 *
 * Threads: one, but for what is said of on_gone. */
#ifndef LIGHTER_FLEET_RANK_H
#define LIGHTER_FLEET_RANK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/log.h"
#include "base/status.h"
#include "engine/engine.h"

struct fleet_rank;

struct fleet_rank_options {
    const char *front;      /* as fleet_remote_front has it; borrowed during the call */
    uint32_t rank;
    /* From the rank's thread: the front end is gone, or talks nonsense. Should end the process. */
    void (*on_gone)(void *user, const char *why);
    /* From the rank's thread: the engine can't go on (engine_health), and its requests have been
     * told. Should end the process: a new one may do better. */
    void (*on_stopped)(void *user, const char *why);
    /* From a thread of the rank's: its weights were updated, as all others'. NULL is fine. */
    void (*on_updated)(void *user);
    void *user;
};

/* Says hello. STATUS_PEER when none of the front end's addresses answers as it should. */
enum status fleet_rank_connect(const struct fleet_rank_options *options,
                               struct fleet_rank **rank_out, struct err *err);
/* What the fleet serves when its weights were updated since it started. */
struct fleet_rank_weights {
    uint64_t serial;             /* of their update: the first is 1 */
    const char *model_path;
    const char *weight_version;  /* NULL: as at the start */
    struct model_info info;      /* of the model as all serve it: its context, where a text ends */
};
/* What to load; NULL: what the command line says. Valid as long as the rank. */
const struct fleet_rank_weights *fleet_rank_weights(const struct fleet_rank *rank);
/* What another rank of this machine has given fleet_rank_serve as what it shares; NULL: there is
 * none, or it might change meanwhile. Valid as long as the rank. */
const char *fleet_rank_shares(const struct fleet_rank *rank);
/* Tells the front end why this rank won't serve; or, when it has, what failed as it left. */
void fleet_rank_fail(struct fleet_rank *rank, enum status status, const char *message,
                     bool bad_usage);
/* Says ready and answers, until the front end says leave. shares: a line for ranks of this machine
 * that start later, of which the fleet knows no more; NULL. *finalize_out: all ranks are told so,
 * and none has died: they may leave MPI together. The engine may be destroyed afterwards. */
enum status fleet_rank_serve(struct fleet_rank *rank, struct engine *engine, const char *shares,
                             bool *finalize_out, struct err *err);
/* After the engine. NULL is fine. */
void fleet_rank_destroy(struct fleet_rank *rank);

#endif
