/* base/nearest.h - which known name somebody probably meant, for messages about unknown ones. */
#ifndef LIGHTER_BASE_NEAREST_H
#define LIGHTER_BASE_NEAREST_H

#include <stddef.h>
#include <stdint.h>

/* How many letters must be added, dropped, changed or swapped with their neighbour to make one of
 * the other, ignoring case, '-' for '_' being no change; only the first 64 bytes are looked at.
 * (Optimal string alignment: Boytsov 2011, "Indexing methods for approximate dictionary
 * searching", 2.1.) */
uint32_t nearest_distance(const char *a, const char *b);

/* The name that is nearest to `name`, ties to the first; NULL only when count is 0. Names that
 * begin with `name` are as near as a name with one letter changed. */
const char *nearest_name(const char *name, const char *const *names, size_t count);

#endif
