/* fleet/remote_internal.h - what remote.c (requests), remote_thread.c (ranks) and remote_update.c
 * (their weights) share.
 *
 *     WAITING in the queue --dispatch--> SENT to a peer --last piece--> told, freed
 *        +---- canceled, or nobody is there --------------------------------^
 *
 * Callbacks come from the fleet's thread alone, and it alone frees requests; other threads put them
 * into the queue, mark them canceled, and send. */
#ifndef LIGHTER_FLEET_REMOTE_INTERNAL_H
#define LIGHTER_FLEET_REMOTE_INTERNAL_H

#include <pthread.h>

#include "fleet/dial.h"
#include "fleet/internal.h"
#include "fleet/link.h"
#include "fleet/remote.h"

#define FLEET__PENDING_MAX 16            /* connections that have not said hello */
#define FLEET__HELLO_NS UINT64_C(5000000000)
#define FLEET__BEAT_MS 250
#define FLEET__TURN_MS 100                   /* after which who is silent is looked for, at most */
#define FLEET__SILENCE_MS UINT64_C(1700)     /* some six beats; noticed within two seconds */
#define FLEET__LATE_NS UINT64_C(500000000)   /* between turns: this thread was kept from running */
#define FLEET__SILENCE_LOADING_MS UINT64_C(20000) /* nobody waits for it yet */
#define FLEET__REPORT_NS UINT64_C(1000000000) /* how long a report waits for the ranks' */
#define FLEET__LEAVE_NS UINT64_C(2000000000)
#define FLEET__BUCKETS 4096
#define FLEET__WAITING_BYTES_MAX (512 * MIB)  /* of all frames in the queue */

struct fleet__request {
    uint64_t id;
    struct fleet__request *next, *prev;  /* in the queue or its peer's list */
    struct fleet__request *bucket_next;  /* in remote->buckets */
    struct fleet__peer *peer;            /* NULL: it waits */
    bool canceled;
    bool for_update;                     /* canceled by us, so that an update can begin */
    struct buf frame;                    /* the message to send; freed once sent */
    uint64_t token_count;                /* prompt and all it may generate */
    struct engine_pages pages;
    uint64_t prompt_count, told_count;
    void (*on_output)(void *user, const struct engine_output *output);
    void *user;
    uint64_t submit_ns, sent_ns;
};

struct fleet__list {
    struct fleet__request *first, *last;
    uint32_t count;
};

enum fleet__peer_state { FLEET__DOWN, FLEET__LOADING, FLEET__UP };

/* A rank, whoever it is at the moment. */
struct fleet__peer {
    enum fleet__peer_state state;
    struct fleet__link *link;            /* NULL when down */
    struct fleet__hello hello;           /* of the last that came */
    uint64_t heard_ns;                   /* the fleet's thread */
    bool is_cut;                         /* sending has failed; its end will be noticed */
    struct fleet__list requests;         /* that it has */
    uint64_t token_count;                /* of those, as is ... */
    struct engine_pages pages;           /* ... this */
    struct engine_pages pages_max;
    uint32_t running_max;
    uint64_t sent_count, restart_count;
    uint64_t weights_serial;             /* of the weights that it was told to load */
    char *shares;                        /* what it said when it was ready; NULL */
    bool was_given_shares;               /* another's, of the same weights */
    bool is_ready;                       /* LOADING: as soon as that fits, it is UP */
    bool is_member, has_come;            /* of an update, to its step */
    json_t *report;                      /* the last one; NULL: none yet */
    uint64_t report_serial, asked_serial; /* its number, and that of the last that was asked for */
    char why[256];                       /* it went down */
};

struct fleet__pending {
    struct fleet__link *link;            /* NULL: free */
    uint64_t deadline_ns;
};

/* A live update, see remote_update.c. */
struct fleet__update {
    bool is_taken;                       /* from its caller's coming to its going */
    bool is_running;                     /* there are members, or it must be told that none are */
    uint64_t id;
    enum offload_update_step step;       /* that its members come to next */
    char *model_path, *weight_version;   /* become the fleet's when it is decided; or NULL */
    bool abort_all;
    bool is_decided;                     /* the new weights are the fleet's */
    bool has_failed;                     /* it can't be decided for any more; why */
    bool is_spoilt;                      /* somebody is not, or may not be, back at the old ones */
    struct err why;
    uint32_t paused_count;
};

struct fleet__remote {
    struct fleet fleet;
    struct fleet_remote_options options; /* set once, as are those to has_thread */
    const struct log *log;
    struct fleet__tokens tokens;
    char front[FLEET__FRONT_BYTES_MAX];
    char machine[FLEET__HOST_BYTES_MAX];
    int listen_fd, wake_fd;
    pthread_t thread;
    bool has_thread;
    struct fleet__pending pending[FLEET__PENDING_MAX]; /* the fleet's thread */
    uint64_t beat_ns;                    /* the fleet's thread, as is the next */
    uint64_t turn_ns;

    pthread_mutex_t lock;                /* guards what follows; then a link's own lock */
    pthread_cond_t changed;
    struct fleet__peer *peers;           /* [rank_count] */
    struct fleet__request *buckets[FLEET__BUCKETS];
    struct fleet__list queue;
    uint64_t queue_bytes;
    uint32_t live_count;                 /* requests that have not been told their last */
    uint64_t last_id, last_serial;
    uint64_t refused_count, lost_count;  /* busy; ended with a rank */
    bool has_info;
    struct model_info info;              /* set once: of the first rank that was ready */
    bool has_failed;                     /* a start came to nothing; cleared by a rank that is up */
    bool bad_usage;
    struct err failure;
    bool is_serving;                     /* fleet_remote_wait has returned */
    bool has_started;                    /* a rank was ready since fleet_remote_ended */
    bool has_died;                       /* a rank did, once: nobody leaves MPI together */
    bool draining, stopping, leaving;
    struct err left;                     /* of a rank that failed as it left; else STATUS_OK */
    struct fleet__update update;
    char *model_path, *weight_version;   /* that serve since an update; NULL: as at the start */
    uint64_t weights_serial;             /* of updates that were decided for */
};

/* remote.c; the lock is held. */
/* Sends waiting requests to ranks that have room for them. True: the thread must look again, a
 * socket is full. */
bool fleet__dispatch(struct fleet__remote *remote);
struct fleet__request *fleet__find(struct fleet__remote *remote, uint64_t id);
/* Takes it out of its list and its bucket, and off the peer's account. */
void fleet__take_out(struct fleet__remote *remote, struct fleet__request *request);
void fleet__wake(struct fleet__remote *remote);

/* No lock is held; the fleet's thread. Tells an abort and frees a request that was taken out. */
void fleet__abort(struct fleet__remote *remote, struct fleet__request *request,
                  enum status status, const char *message);
void fleet__request_free(struct fleet__remote *remote, struct fleet__request *request);

/* remote_update.c; the lock is held, but by fleet__remote_update. */
enum status fleet__remote_update(struct fleet *fleet, const struct engine_update *update,
                                 uint32_t *paused_count_out, struct err *err);
/* Whether requests must wait for the end of an update. */
bool fleet__update_holds(const struct fleet__remote *remote);
/* A rank has come to a step. A failure: it must be hung up on. */
enum status fleet__update_come(struct fleet__remote *remote, struct fleet__peer *peer,
                               const struct fleet__step *step, struct err *err);
/* It is down. */
void fleet__update_lost(struct fleet__remote *remote, struct fleet__peer *peer);
/* For fleet__welcome_json; false: as on its command line. */
bool fleet__update_weights(const struct fleet__remote *remote,
                           struct fleet_rank_weights *weights_out);

/* remote_thread.c */
void *fleet__remote_thread(void *remote);
/* remote_report.c */
json_t *fleet__remote_report(struct fleet *fleet);

#endif
