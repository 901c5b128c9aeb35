/* cli/guard.h - the process between the front end and mpirun, which outlives either.
 *
 * Threads: one. */
#ifndef LIGHTER_CLI_GUARD_H
#define LIGHTER_CLI_GUARD_H

#include <stddef.h>

#define CLI_RANKS_COMMAND "ranks" /* hidden: what `serve` starts */

/* args[count]: the number of ranks, and serve's options for them. Runs mpirun until it ends by
 * itself or standard input does; returns the process's exit status: mpirun's, 127 when there is
 * none. */
int cli_guard_run(const char *const *args, size_t count);

#endif
