/* offload/disk/cache_internal.h - the cache file's format, for the files that read and write it. */
#ifndef LIGHTER_OFFLOAD_DISK_CACHE_INTERNAL_H
#define LIGHTER_OFFLOAD_DISK_CACHE_INTERNAL_H

#include "offload/disk/cache_file.h"

#define CACHE__HEADER_BYTES 128
#define CACHE__ENTRY_BYTES 40 /* and the name */
#define CACHE__VERSION 1

struct cache__header {
    struct cache_hash fingerprint;
    uint64_t file_bytes, unit_count, table_bytes;
    struct cache_hash table_hash;
};

void cache__header_write(const struct cache__header *header, uint8_t out[CACHE__HEADER_BYTES]);
/* file_bytes: the file's real size. `path` is for messages. */
enum status cache__header_read(const uint8_t bytes[CACHE__HEADER_BYTES], uint64_t file_bytes,
                               const char *path, struct cache__header *header_out, struct err *err);

/* The table's size for units of these names; false when it is more than CACHE_TABLE_BYTES_MAX. */
bool cache__table_bytes(const struct cache_unit *units, size_t unit_count, uint64_t *bytes_out);
/* out: cache__table_bytes. */
void cache__table_write(const struct cache_unit *units, size_t unit_count, uint8_t *out);
/* `table` has header->table_bytes. The caller frees *units_out, whose names lie in the same
 * allocation. */
enum status cache__table_read(const struct cache__header *header, const uint8_t *table,
                              const char *path, struct cache_unit **units_out, struct err *err);

/* Sets each unit's offset, behind a table of this size; the file's size, or false when that is more
 * than a file can have. */
bool cache__place_units(struct cache_unit *units, size_t unit_count, uint64_t table_bytes,
                        uint64_t *file_bytes_out);

#endif
