/* base/map.h - a hash table from byte strings to 64-bit numbers.
 *
 * Open addressing, linear probing, FNV-1a with a per-table seed; at most 7/8 full. Keys are copied.
 * Not thread-safe while it is written; any number of threads may read. */
#ifndef LIGHTER_BASE_MAP_H
#define LIGHTER_BASE_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct map;

/* The caller owns *map_out. entry_count_hint may be 0. */
enum status map_create(size_t entry_count_hint, struct map **map_out, struct err *err);
void map_destroy(struct map *map);

/* Sets key to value, replacing an older value. The key may hold any bytes, also none. */
enum status map_set(struct map *map, const void *key, size_t key_size, uint64_t value,
                    struct err *err);
/* True and *value_out when the key is there. value_out may be NULL. */
bool map_get(const struct map *map, const void *key, size_t key_size, uint64_t *value_out);
size_t map_count(const struct map *map);

#endif
