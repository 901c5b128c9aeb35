/* cli/keeper.h - a process that does nothing but keep a rank alive.
 *
 *     mpirun -- keeper -- rank (MPI, device, model, engine)
 *
 * mpirun ends all its processes when one dies; so what it starts is a keeper, which holds nothing
 * that could fail, and the rank is a child of that. A rank that dies after it was ready is started
 * again, in a new child; one that never was ends the keeper too, and so everything: what does not
 * start the first time won't the second.
 *
 * A rank tells its keeper things through a pipe: where the front end is, when it only learnt so
 * itself, which files it has loaded, and that it is ready.
 *
 * Threads: a keeper has one, and must have one when it is started, because it forks. */
#ifndef LIGHTER_CLI_KEEPER_H
#define LIGHTER_CLI_KEEPER_H

#include <stdbool.h>
#include <stdint.h>

#include "fleet/rank.h"

#define CLI_FRONT_BYTES_MAX 2048

enum {
    CLI_LIFE_LEFT = 0,    /* exit status of a rank that was told to leave; 1 and 2 as elsewhere */
    CLI_LIFE_ORPHAN = 3,  /* of one whose front end is gone */
};

/* The files of the weights that a rank serves. */
struct cli_files {
    uint64_t serial;  /* of the weights' update; 0: as the command line has them */
    uint64_t stamp;   /* ckpt_stamp; 0: none were loaded yet */
};

/* One rank process. */
struct cli_life {
    bool first;                       /* it may join the others over MPI */
    char front[CLI_FRONT_BYTES_MAX];  /* where the front end is; "": that is still to be learnt */
    uint64_t memory_left_bytes;       /* that the machine had before any of its ranks loaded */
    struct cli_files files;           /* that the life before loaded */
    int keeper_fd;
};

struct cli_keeper {
    bool restart;      /* a rank that dies is started again alone */
    char front[CLI_FRONT_BYTES_MAX];
    uint64_t memory_left_bytes;  /* for every life, as is the next */
    struct cli_files files;
    /* A rank's whole life, in its own process; returns its exit status. */
    int (*live)(void *user, const struct cli_life *life);
    void *user;
};

/* Returns the exit status of the keeper's process. */
int cli_keep(struct cli_keeper *keeper);

/* For the rank. */
void cli_life_tell_front(const struct cli_life *life, const char *front);
void cli_life_tell_files(const struct cli_life *life, const struct cli_files *files);
void cli_life_tell_ready(const struct cli_life *life);

#endif
