/* offload/disk/cache_format.c - a cache file's header and table, from and to bytes.
 *
 * Reading believes nothing but the hashes' arithmetic: whoever can write the file can also write
 * fitting hashes, so every number is checked by itself. */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/size.h"
#include "offload/disk/cache_internal.h"

#define MAGIC_BYTES 8
#define HEADER_HASHED_BYTES 112 /* the hash follows */

static const uint8_t magic[MAGIC_BYTES] = { 'L', 'I', 'G', 'H', 'T', 'E', 'R', 'C' };

static void put_number(uint8_t *out, uint64_t number, int byte_count)
{
    for (int i = 0; i < byte_count; i++)
        out[i] = (uint8_t)(number >> (8 * i));
}

static uint64_t get_number(const uint8_t *bytes, int byte_count)
{
    uint64_t number = 0;

    for (int i = 0; i < byte_count; i++)
        number |= (uint64_t)bytes[i] << (8 * i);
    return number;
}

struct cache_hash cache_hash_of(const void *bytes, size_t size)
{
    struct cache_hash hash;
    XXH128_canonical_t canonical;

    XXH128_canonicalFromHash(&canonical, XXH3_128bits(bytes, size));
    static_assert(sizeof(canonical.digest) == sizeof(hash.bytes), "128 bits");
    memcpy(hash.bytes, canonical.digest, sizeof(hash.bytes));
    return hash;
}

static bool hash_equal(const struct cache_hash *a, const struct cache_hash *b)
{
    return memcmp(a->bytes, b->bytes, sizeof(a->bytes)) == 0;
}

void cache__header_write(const struct cache__header *header, uint8_t out[CACHE__HEADER_BYTES])
{
    struct cache_hash hash;

    memset(out, 0, CACHE__HEADER_BYTES);
    memcpy(out, magic, MAGIC_BYTES);
    put_number(out + 8, CACHE__VERSION, 4);
    memcpy(out + 16, header->fingerprint.bytes, 16);
    put_number(out + 32, header->file_bytes, 8);
    put_number(out + 40, header->unit_count, 8);
    put_number(out + 48, header->table_bytes, 8);
    memcpy(out + 64, header->table_hash.bytes, 16);
    hash = cache_hash_of(out, HEADER_HASHED_BYTES);
    memcpy(out + HEADER_HASHED_BYTES, hash.bytes, 16);
}

enum status cache__header_read(const uint8_t bytes[CACHE__HEADER_BYTES], uint64_t file_bytes,
                               const char *path, struct cache__header *header_out, struct err *err)
{
    const struct cache_hash hash = cache_hash_of(bytes, HEADER_HASHED_BYTES);
    struct cache__header header;
    uint64_t version;

    if (memcmp(bytes, magic, MAGIC_BYTES) != 0)
        return err_set(err, STATUS_BAD_INPUT, "%s: not a cache file of Lighter's", path);
    version = get_number(bytes + 8, 4);
    if (version != CACHE__VERSION)
        return err_set(err, STATUS_BAD_INPUT, "%s: version %" PRIu64 " of the cache file's format, "
                       "this program reads %d", path, version, CACHE__VERSION);
    if (memcmp(hash.bytes, bytes + HEADER_HASHED_BYTES, 16) != 0)
        return err_set(err, STATUS_BAD_INPUT, "%s: the header is damaged", path);
    memcpy(header.fingerprint.bytes, bytes + 16, 16);
    header.file_bytes = get_number(bytes + 32, 8);
    header.unit_count = get_number(bytes + 40, 8);
    header.table_bytes = get_number(bytes + 48, 8);
    memcpy(header.table_hash.bytes, bytes + 64, 16);
    if (header.file_bytes != file_bytes)
        return err_set(err, STATUS_BAD_INPUT, "%s: %" PRIu64 " bytes, its header says %" PRIu64,
                       path, file_bytes, header.file_bytes);
    if (header.table_bytes > CACHE_TABLE_BYTES_MAX || header.unit_count > CACHE_UNITS_MAX ||
        file_bytes < CACHE__HEADER_BYTES ||
        header.table_bytes > file_bytes - CACHE__HEADER_BYTES ||
        header.unit_count * CACHE__ENTRY_BYTES > header.table_bytes)
        return err_set(err, STATUS_BAD_INPUT, "%s: a table of %" PRIu64 " bytes for %" PRIu64
                       " units cannot be in a file of %" PRIu64 " bytes", path, header.table_bytes,
                       header.unit_count, file_bytes);
    *header_out = header;
    return STATUS_OK;
}

/* An entry's bytes in the table. */
static uint64_t entry_bytes(uint64_t name_bytes)
{
    return size_align_up(CACHE__ENTRY_BYTES + name_bytes, 8);
}

bool cache__table_bytes(const struct cache_unit *units, size_t unit_count, uint64_t *bytes_out)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < unit_count; i++) {
        bytes += entry_bytes(strlen(units[i].name));
        if (bytes > CACHE_TABLE_BYTES_MAX)
            return false;
    }
    *bytes_out = bytes;
    return true;
}

void cache__table_write(const struct cache_unit *units, size_t unit_count, uint8_t *out)
{
    for (size_t i = 0; i < unit_count; i++) {
        const uint64_t name_bytes = strlen(units[i].name);

        memset(out, 0, entry_bytes(name_bytes));
        put_number(out, units[i].offset_bytes, 8);
        put_number(out + 8, units[i].size_bytes, 8);
        memcpy(out + 16, units[i].hash.bytes, 16);
        put_number(out + 32, name_bytes, 4);
        memcpy(out + CACHE__ENTRY_BYTES, units[i].name, name_bytes);
        out += entry_bytes(name_bytes);
    }
}

bool cache__place_units(struct cache_unit *units, size_t unit_count, uint64_t table_bytes,
                        uint64_t *file_bytes_out)
{
    uint64_t end_bytes = CACHE__HEADER_BYTES + table_bytes;

    for (size_t i = 0; i < unit_count; i++) {
        units[i].offset_bytes = size_align_up(end_bytes, DISK_ALIGN);
        if (!size_add(units[i].offset_bytes, units[i].size_bytes, &end_bytes) ||
            end_bytes > INT64_MAX - DISK_ALIGN)
            return false;
    }
    *file_bytes_out = end_bytes;
    return true;
}

/* Reads one entry at `at`, copies its name to `name`, and checks it against where the unit before
 * it ended; *at and *end_bytes move on. */
static enum status read_entry(const struct cache__header *header, const uint8_t *table,
                              uint64_t *at, uint64_t *end_bytes, const char *path,
                              struct cache_unit *unit, char *name, struct err *err)
{
    const uint64_t left_bytes = header->table_bytes - *at;
    const uint8_t *const entry = table + *at;
    uint64_t name_bytes;

    if (left_bytes < CACHE__ENTRY_BYTES)
        return err_set(err, STATUS_BAD_INPUT, "%s: its table ends inside an entry", path);
    name_bytes = get_number(entry + 32, 4);
    if (name_bytes > CACHE_NAME_BYTES_MAX || entry_bytes(name_bytes) > left_bytes)
        return err_set(err, STATUS_BAD_INPUT, "%s: a unit's name of %" PRIu64 " bytes", path,
                       name_bytes);
    if (memchr(entry + CACHE__ENTRY_BYTES, '\0', name_bytes) != NULL)
        return err_set(err, STATUS_BAD_INPUT, "%s: a unit's name has a NUL in it", path);
    memcpy(name, entry + CACHE__ENTRY_BYTES, name_bytes);
    name[name_bytes] = '\0';
    unit->name = name;
    unit->offset_bytes = get_number(entry, 8);
    unit->size_bytes = get_number(entry + 8, 8);
    memcpy(unit->hash.bytes, entry + 16, 16);
    if (unit->offset_bytes % DISK_ALIGN != 0 || unit->offset_bytes < *end_bytes ||
        unit->offset_bytes > header->file_bytes ||
        unit->size_bytes > header->file_bytes - unit->offset_bytes)
        return err_set(err, STATUS_BAD_INPUT, "%s: unit %s cannot have %" PRIu64 " bytes at %"
                       PRIu64 " in a file of %" PRIu64, path, name, unit->size_bytes,
                       unit->offset_bytes, header->file_bytes);
    *end_bytes = unit->offset_bytes + unit->size_bytes;
    *at += entry_bytes(name_bytes);
    return STATUS_OK;
}

enum status cache__table_read(const struct cache__header *header, const uint8_t *table,
                              const char *path, struct cache_unit **units_out, struct err *err)
{
    const struct cache_hash hash = cache_hash_of(table, header->table_bytes);
    const size_t unit_count = header->unit_count;
    uint64_t at = 0, end_bytes = CACHE__HEADER_BYTES + header->table_bytes;
    struct cache_unit *units;
    char *name;

    if (!hash_equal(&hash, &header->table_hash))
        return err_set(err, STATUS_BAD_INPUT, "%s: the table of units is damaged", path);
    /* An entry is larger than its name and a NUL, so the table's size holds all names. */
    units = malloc(unit_count * sizeof(*units) + header->table_bytes + 1);
    if (units == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for %zu units", path, unit_count);
    name = (char *)(units + unit_count);
    for (size_t i = 0; i < unit_count; i++) {
        const enum status st =
            read_entry(header, table, &at, &end_bytes, path, &units[i], name, err);
        if (st != STATUS_OK) {
            free(units);
            return st;
        }
        name += strlen(name) + 1;
    }
    if (at != header->table_bytes || (unit_count != 0 && end_bytes != header->file_bytes)) {
        free(units);
        return err_set(err, STATUS_BAD_INPUT, "%s: its table has %" PRIu64 " bytes too many, or "
                       "its units end at %" PRIu64 " and not at %" PRIu64, path,
                       header->table_bytes - at, end_bytes, header->file_bytes);
    }
    *units_out = units;
    return STATUS_OK;
}
