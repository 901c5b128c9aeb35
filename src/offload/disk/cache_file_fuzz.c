/* offload/disk/cache_file_fuzz.c - any bytes as a cache file's header and table.
 *
 * They are taken twice: as they are; and as a table (behind a unit count and a number of bytes that
 * follow) with hashes that fit, so that changes reach the checks behind the hashes. What is
 * accepted must be what cache_file.h promises. */
#include <stdlib.h>
#include <string.h>

#include "offload/disk/cache_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_accepted(const struct cache__header *header, const struct cache_unit *units)
{
    uint64_t end_bytes = CACHE__HEADER_BYTES + header->table_bytes, names_bytes = 0;

    for (uint64_t i = 0; i < header->unit_count; i++) {
        if (units[i].offset_bytes % DISK_ALIGN != 0 || units[i].offset_bytes < end_bytes ||
            strlen(units[i].name) > CACHE_NAME_BYTES_MAX)
            abort();
        end_bytes = units[i].offset_bytes + units[i].size_bytes;
        names_bytes += strlen(units[i].name);
        if (end_bytes < units[i].offset_bytes || end_bytes > header->file_bytes)
            abort();
    }
    if (names_bytes > header->table_bytes)
        abort();
}

static void read_table(const struct cache__header *header, const uint8_t *bytes)
{
    uint8_t *const table = malloc(header->table_bytes + 1); /* of just this size, but for one */
    struct cache_unit *units = NULL;
    struct err err;

    if (table == NULL)
        return;
    memcpy(table, bytes, header->table_bytes);
    if (cache__table_read(header, table, "fuzz.units", &units, &err) == STATUS_OK)
        check_accepted(header, units);
    free(units);
    free(table);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cache__header header;
    struct cache__header again;
    uint8_t bytes[CACHE__HEADER_BYTES];
    struct err err;

    if (size >= CACHE__HEADER_BYTES &&
        cache__header_read(data, size, "fuzz.units", &header, &err) == STATUS_OK)
        read_table(&header, data + CACHE__HEADER_BYTES);
    if (size < 8)
        return 0;
    memset(&header, 0, sizeof(header));
    header.unit_count = data[0] + (uint64_t)data[1] * 256;
    header.table_bytes = size - 8;
    header.file_bytes = CACHE__HEADER_BYTES + header.table_bytes;
    for (int i = 2; i < 8; i++)
        header.file_bytes += (uint64_t)data[i] << (8 * (i - 2));
    header.table_hash = cache_hash_of(data + 8, size - 8);
    cache__header_write(&header, bytes);
    if (cache__header_read(bytes, header.file_bytes, "fuzz.units", &again, &err) != STATUS_OK)
        return 0;
    if (memcmp(&header, &again, sizeof(header)) != 0)
        abort();
    read_table(&again, data + 8);
    return 0;
}
