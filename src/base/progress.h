/* base/progress.h - how a long job tells whoever started it how far it is.
 *
 * Called from the thread that does the job, at most some hundred times; must not block. */
#ifndef LIGHTER_BASE_PROGRESS_H
#define LIGHTER_BASE_PROGRESS_H

#include <stdint.h>

struct progress {
    void (*update)(void *user, const char *what, uint64_t done_bytes, uint64_t total_bytes);
    void *user; /* borrowed */
};

/* A NULL progress, or one without a function, is silent. */
static inline void progress_update(const struct progress *progress, const char *what,
                                   uint64_t done_bytes, uint64_t total_bytes)
{
    if (progress != 0 && progress->update != 0)
        progress->update(progress->user, what, done_bytes, total_bytes);
}

#endif
