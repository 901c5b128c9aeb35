/* cli/console.h - what the program tells on standard error: log lines and how far loading is.
 *
 * Threads: log lines come from any thread, progress from the one that loads. Standard error's own
 * lock (flockfile) keeps a line and the progress bar from mixing. */
#ifndef LIGHTER_CLI_CONSOLE_H
#define LIGHTER_CLI_CONSOLE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/log.h"
#include "base/progress.h"

struct cli_console {
    struct log log;           /* to hand on; lines below `level` are dropped */
    struct progress progress; /* a bar on a terminal, else a line at the end */
    enum log_level level;     /* set before other threads start */
    bool terminal;            /* set once */
    char prefix[24];          /* before each line: "rank 1: "; set before other threads start */
    atomic_bool bar_shown;    /* guarded by stderr's lock, of which ThreadSanitizer knows nothing */
    uint64_t started_ns;      /* of the job under way; owner: the thread that loads */
    uint32_t percent_shown;   /* owner: the thread that loads */
};

/* The caller's storage; must not move afterwards. Told to `level` and above. */
void cli_console_init(struct cli_console *console, enum log_level level);

#endif
