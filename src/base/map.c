/* base/map.c - see map.h. */
#include "base/map.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    char *key; /* NULL: empty */
    size_t key_size;
    uint64_t hash;
    uint64_t value;
};

struct map {
    struct entry *entries; /* [slot_count], a power of two */
    size_t slot_count;
    size_t count;
    uint64_t seed;
};

/* FNV-1a, 64 bit (http://www.isthe.com/chongo/tech/comp/fnv/), finished by a multiply-xor so that
 * the low bits, which choose the slot, depend on all bytes. */
static uint64_t hash_bytes(uint64_t seed, const void *bytes, size_t size)
{
    const unsigned char *at = bytes;
    uint64_t hash = UINT64_C(0xcbf29ce484222325) ^ seed;

    for (size_t i = 0; i < size; i++)
        hash = (hash ^ at[i]) * UINT64_C(0x100000001b3);
    hash ^= hash >> 32;
    hash *= UINT64_C(0x9e3779b97f4a7c15);
    return hash ^ (hash >> 29);
}

enum status map_create(size_t entry_count_hint, struct map **map_out, struct err *err)
{
    struct map *map = calloc(1, sizeof(*map));
    size_t slot_count = 16;

    if (map == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a table");
    while (slot_count / 8 * 7 < entry_count_hint && slot_count < SIZE_MAX / 128)
        slot_count *= 2;
    map->entries = calloc(slot_count, sizeof(*map->entries));
    if (map->entries == NULL) {
        free(map);
        return err_set(err, STATUS_NO_MEMORY, "no memory for a table of %zu places", slot_count);
    }
    map->slot_count = slot_count;
    map->seed = (uint64_t)(uintptr_t)map * UINT64_C(0x9e3779b97f4a7c15);
    *map_out = map;
    return STATUS_OK;
}

void map_destroy(struct map *map)
{
    if (map == NULL)
        return;
    for (size_t i = 0; i < map->slot_count; i++)
        free(map->entries[i].key);
    free(map->entries);
    free(map);
}

/* The entry that holds the key, or the empty one where it would go. */
static struct entry *find(const struct map *map, const void *key, size_t key_size, uint64_t hash)
{
    size_t i = (size_t)hash & (map->slot_count - 1);

    for (;; i = (i + 1) & (map->slot_count - 1)) {
        struct entry *entry = &map->entries[i];
        if (entry->key == NULL)
            return entry;
        if (entry->hash == hash && entry->key_size == key_size &&
            memcmp(entry->key, key, key_size) == 0)
            return entry;
    }
}

static enum status grow(struct map *map, struct err *err)
{
    struct map bigger = { .slot_count = map->slot_count * 2 };

    bigger.entries = calloc(bigger.slot_count, sizeof(*bigger.entries));
    if (bigger.entries == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a table of %zu places",
                       bigger.slot_count);
    for (size_t i = 0; i < map->slot_count; i++) {
        const struct entry *from = &map->entries[i];
        if (from->key != NULL)
            *find(&bigger, from->key, from->key_size, from->hash) = *from;
    }
    free(map->entries);
    map->entries = bigger.entries;
    map->slot_count = bigger.slot_count;
    return STATUS_OK;
}

enum status map_set(struct map *map, const void *key, size_t key_size, uint64_t value,
                    struct err *err)
{
    const uint64_t hash = hash_bytes(map->seed, key, key_size);
    struct entry *entry = find(map, key, key_size, hash);
    enum status st;

    if (entry->key != NULL) {
        entry->value = value;
        return STATUS_OK;
    }
    if (map->count + 1 > map->slot_count / 8 * 7) {
        st = grow(map, err);
        if (st != STATUS_OK)
            return st;
        entry = find(map, key, key_size, hash);
    }
    entry->key = malloc(key_size + 1); /* + 1: never a zero-sized block */
    if (entry->key == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a key of %zu bytes", key_size);
    if (key_size > 0)
        memcpy(entry->key, key, key_size);
    entry->key[key_size] = '\0';
    entry->key_size = key_size;
    entry->hash = hash;
    entry->value = value;
    map->count++;
    return STATUS_OK;
}

bool map_get(const struct map *map, const void *key, size_t key_size, uint64_t *value_out)
{
    const struct entry *entry = find(map, key, key_size, hash_bytes(map->seed, key, key_size));

    if (entry->key == NULL)
        return false;
    if (value_out != NULL)
        *value_out = entry->value;
    return true;
}

size_t map_count(const struct map *map)
{
    return map->count;
}
