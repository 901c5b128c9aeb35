/* offload/home/share.h - what the ranks of a node tell each other for the homes that they share.
 *
 * Ranks meet at fixed points, each with the status it has got there with. A meeting gives all of
 * them the same answer: when one has failed, or ended, all have failed, and none waits for what
 * will not come. Ranks that share nothing meet once, to find out that none does.
 *
 *     load:    PLANNED   do all plan the same?
 *              OPENED    each has taken its memory; handles are handed round
 *              CONNECTED each has what the others have handed round
 *              LOADED    the bytes are there, and may be read
 *     reload:  READY     new bytes are in a buffer, nobody reads the old
 *              AGREED    all know that: who leaves READY without an answer can keep the old bytes,
 *                        since nobody gets beyond this without him
 *              CHANGED   they have changed places
 *              RESTORED  somewhere that has failed: they have changed back
 *
 * Only for files inside offload/. */
#ifndef LIGHTER_OFFLOAD_HOME_SHARE_H
#define LIGHTER_OFFLOAD_HOME_SHARE_H

#include "base/segment.h"
#include "device/device.h"
#include "offload/offload.h"

enum offload__share_step {
    OFFLOAD_SHARE_PLANNED,
    OFFLOAD_SHARE_OPENED,
    OFFLOAD_SHARE_CONNECTED,
    OFFLOAD_SHARE_LOADED,
    OFFLOAD_SHARE_READY,
    OFFLOAD_SHARE_AGREED,
    OFFLOAD_SHARE_CHANGED,
    OFFLOAD_SHARE_RESTORED,
};

/* What one rank hands round; zeros where it has nothing. */
struct offload__share_offer {
    struct segment_handle segment; /* of home shm; the first rank's */
    struct device_handle shards;   /* of home sharded */
};

/* This rank's number among the ranks of its node, and how many these are. */
uint32_t offload__share_rank(const struct offload *offload);
uint32_t offload__share_count(const struct offload *offload);
/* Whether any unit has a home that ranks can share; and whether there are several of them. */
bool offload__has_shared_home(const struct offload *offload);
bool offload__is_shared(const struct offload *offload);

/* A meeting of the node's ranks. `own`: how this rank comes to it; its sentence is in err. Returns
 * `own` when that is a failure, else another rank's, or STATUS_PEER when one does not come; sets
 * *told_out (may be NULL) when a failure is one that all ranks know of. At once with one rank. */
enum status offload__share_meet(struct offload *offload, enum offload__share_step step,
                                enum status own, bool *told_out, struct err *err);
/* A live update of records in shared memory (shm.c). The turn is a number beside them that the
 * rank which fills them sets and all can read, when that rank has ended too; 0 at the start, and
 * where there are none. */
uint64_t offload__shm_turn(const struct offload *offload);
void offload__shm_set_turn(struct offload *offload, uint64_t turn); /* the others': nothing */
/* Whether it has mapped the records of ranks that had started before it. */
bool offload__shm_is_inherited(const struct offload *offload);
/* STATUS_UNAVAILABLE: nobody is left who could fill them. */
enum status offload__shm_check_owner(const struct offload *offload, struct err *err);
/* Of where each byte of each record lies, and in which home. */
uint64_t offload__share_hash(const struct offload *offload);
/* PLANNED: STATUS_PEER when some share and not all plan the same. */
enum status offload__share_plan(struct offload *offload, enum status own, struct err *err);
/* OPENED and CONNECTED: collects what each home offers and connects each to the others'. */
enum status offload__share_connect(struct offload *offload, enum status own, struct err *err);

#endif
