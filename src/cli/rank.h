/* cli/rank.h - the rank processes' side of `lighter serve --dp-size N`. */
#ifndef LIGHTER_CLI_RANK_H
#define LIGHTER_CLI_RANK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "cli/command.h"
#include "cli/keeper.h"

#define CLI_RANK_COMMAND "rank"           /* hidden: what `serve` has mpirun start */
#define CLI_RANK_FRONT "LIGHTER_FRONT"    /* where its front end is */
#define CLI_RANK_AGAIN "LIGHTER_AGAIN"    /* set: others have served, and said the forecast */

/* What mpirun says of this process. */
struct cli_mpi_place {
    uint32_t rank, size, node_size;       /* size 0: it was not started by mpirun */
    uint32_t node_rank;                   /* among the node's ranks */
};
struct cli_mpi_place cli_mpi_place(void);

/* Rank 0's keeper, when mpirun has started this process, which is to be the front end: a child, so
 * that this process never meets MPI. */
struct cli_rank_zero {
    pid_t pid;             /* 0: none */
    int fd;                /* -1: closed */
    bool several_nodes;
};
/* Forks: to be called before there are threads. */
enum status cli_rank_zero_start(const struct cli_context *context,
                                const struct cli_mpi_place *place,
                                struct cli_rank_zero *rank_zero_out, struct err *err);
/* Lets it begin. */
enum status cli_rank_zero_tell(struct cli_rank_zero *rank_zero, const char *front,
                               struct err *err);
/* Waits for its end, some seconds; fine when it was never started. */
void cli_rank_zero_stop(struct cli_rank_zero *rank_zero);

/* Whether a rank's end, with these options, is the end of all of them. */
bool cli_ranks_need_all(const struct cli_options *options);

/* A keeper in this process, and its ranks; returns the exit status. front "": the ranks learn it
 * from rank 0, over MPI. */
int cli_rank_keep(const struct cli_context *context, const char *front);

#endif
