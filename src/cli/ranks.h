/* cli/ranks.h - starts the ranks of this machine with mpirun, and starts them again when all of
 * them have ended.
 *
 * Threads: one calls; a thread of its own waits for mpirun. */
#ifndef LIGHTER_CLI_RANKS_H
#define LIGHTER_CLI_RANKS_H

#include <stdint.h>

#include "base/log.h"
#include "fleet/remote.h"

struct cli_ranks;

/* args[arg_count]: serve's own options, passed on as they are. fleet and log are borrowed. */
enum status cli_ranks_start(struct fleet *fleet, uint32_t rank_count, const char *const *args,
                            size_t arg_count, const struct log *log, struct cli_ranks **ranks_out,
                            struct err *err);
/* From now on mpirun is started again when it ends. */
void cli_ranks_serving(struct cli_ranks *ranks);
/* Waits for mpirun to end, for two seconds by itself, then with signals. NULL is fine. */
void cli_ranks_stop(struct cli_ranks *ranks);

#endif
