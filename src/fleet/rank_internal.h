/* fleet/rank_internal.h - what rank.c (the connection, requests) and rank_update.c (a live update)
 * share. */
#ifndef LIGHTER_FLEET_RANK_INTERNAL_H
#define LIGHTER_FLEET_RANK_INTERNAL_H

#include <pthread.h>

#include "fleet/link.h"
#include "fleet/rank.h"

/* A live update, which a thread of its own waits for:
 *
 *     IDLE --update--> RUNNING (--comes to a step--> WAITING --agreed--> RUNNING)* --ended--> IDLE
 */
struct fleet__rank_update {
    pthread_t thread;
    bool has_thread;             /* rank's thread */
    json_t *message;             /* rank's thread, when no update runs; then the update's thread */
    struct engine_update wanted; /* points into it */
    uint64_t id;                 /* set before the thread starts */
    /* What follows is guarded by rank->lock. */
    bool is_running;
    bool waits;                  /* at `step`, for the answer */
    enum offload_update_step step;
    bool has_answer;
    struct fleet__step answer;
};

struct fleet__job;

struct fleet_rank {
    struct fleet_rank_options options; /* set once, as are those to `shares` */
    struct fleet__link link;
    int wake_fd;
    json_t *welcome;
    bool has_weights;
    struct fleet_rank_weights weights; /* point into it, as does the next */
    const char *shares;
    pthread_t thread;
    bool has_thread;
    uint64_t heard_ns;           /* rank's thread */
    struct fleet__rank_update update;
    pthread_mutex_t lock;        /* guards what follows; not held while the engine is called */
    pthread_cond_t changed;
    struct engine *engine;       /* NULL: not ready yet */
    struct fleet__job *jobs;
    bool leaving, finalize;      /* the front end has said so */
    bool stopping;               /* the thread shall end */
};

/* rank.c. From any thread. What the socket does not take now is the rank's thread's business. */
void fleet__say(struct fleet_rank *rank, json_t *json);

/* rank_update.c, rank's thread: messages of the front end. A failure is nonsense. */
enum status fleet__rank_on_update(struct fleet_rank *rank, json_t *json, struct err *err);
enum status fleet__rank_on_agreed(struct fleet_rank *rank, const json_t *json, struct err *err);
/* When the rank is leaving or stopping: waits for the update's thread. */
void fleet__rank_update_stop(struct fleet_rank *rank);

#endif
