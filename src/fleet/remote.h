/* fleet/remote.h - a fleet of engines in other processes: the ranks.
 *
 * The front end listens; ranks that somebody else starts (cli/) connect, load, and say that they
 * are ready. Requests wait here, in one queue, and go to a rank only when it can run them at once:
 * to the one with the fewest tokens under way. So load spreads by itself, and what waits is lost
 * with nobody.
 *
 * A rank whose socket closes, or who is silent for 1.7 seconds, is dead: what it was running ends
 * with STATUS_PEER and a sentence, and the others go on. Another process may take its place at any
 * time, by saying hello with its number. */
#ifndef LIGHTER_FLEET_REMOTE_H
#define LIGHTER_FLEET_REMOTE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/log.h"
#include "fleet/fleet.h"

struct fleet_remote_options {
    uint32_t rank_count;        /* 1 to FLEET_RANK_COUNT_MAX */
    bool every_address;         /* ranks on other machines: listen on more than the loopback */
    uint32_t queue_count_max;   /* requests waiting here; more are STATUS_BUSY */
    uint32_t running_count_max; /* of each rank; 0: as many as it says */
    bool has_random_seed;       /* as engine_options has it; the same number of ranks or not, the */
    uint64_t random_seed;       /* n-th request has the same seed */
    bool needs_all;             /* a rank's end ends all of them: while one is away, none is sent
                                   anything, and what comes waits until all are up again */
};
#define FLEET_RANK_COUNT_MAX 64
void fleet_remote_options_init(struct fleet_remote_options *options);

enum status fleet_create_remote(const struct fleet_remote_options *options, const struct log *log,
                                struct fleet **fleet_out, struct err *err);
/* What a rank needs to know to find this fleet, one line; valid as long as the fleet. Secret. */
const char *fleet_remote_front(const struct fleet *fleet);

/* Waits until every rank is ready. What a rank failed with, or fleet_remote_ended said, is the
 * error; *bad_usage_out: it was an option's fault. Before, the fleet takes no requests. */
enum status fleet_remote_wait(struct fleet *fleet, bool *bad_usage_out, struct err *err);
/* For whoever has started the ranks and sees them end: no rank is there, and why. Those that wait
 * when a start has come to nothing are answered so. */
void fleet_remote_ended(struct fleet *fleet, const char *why);
/* Tells the ranks to end, and waits until they have hung up, or two seconds. What the first said of
 * itself that failed as it left (fleet_rank_fail). */
enum status fleet_remote_leave(struct fleet *fleet, struct err *err);

#endif
