/* offload/disk/cache_file.c - opening a cache file, checking units, and where such files are. */
#include "offload/disk/cache_file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/file.h"
#include "base/size.h"
#include "offload/disk/cache_internal.h"

#define NAME_PART_BYTES_MAX 100 /* of the checkpoint's name in the folder's */

struct cache_file {
    struct disk_file *file;
    size_t unit_count;
    struct cache_unit *units;
    atomic_bool *verified; /* [unit_count] found good; relaxed: who misses it checks once more */
    char *path;
};

/* ---- opening ---- */

/* Reads header and table; the caller frees *units_out. */
static enum status read_head(const struct file *file, const struct cache_hash *fingerprint,
                             struct cache__header *header, struct cache_unit **units_out,
                             struct err *err)
{
    uint8_t bytes[CACHE__HEADER_BYTES];
    uint8_t *table;
    enum status st;

    if (file->size_bytes < sizeof(bytes))
        return err_set(err, STATUS_BAD_INPUT, "%s: %" PRIu64 " bytes, a cache file's header has %d",
                       file->path, file->size_bytes, CACHE__HEADER_BYTES);
    st = file_read_at(file, 0, bytes, sizeof(bytes), err);
    if (st == STATUS_OK)
        st = cache__header_read(bytes, file->size_bytes, file->path, header, err);
    if (st != STATUS_OK)
        return st;
    if (memcmp(header->fingerprint.bytes, fingerprint->bytes, sizeof(fingerprint->bytes)) != 0)
        return err_set(err, STATUS_BAD_INPUT, "%s: made from another checkpoint, or from this one "
                       "before it changed", file->path);
    table = malloc(header->table_bytes + 1);
    if (table == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for a table of %" PRIu64 " bytes",
                       file->path, header->table_bytes);
    st = file_read_at(file, CACHE__HEADER_BYTES, table, header->table_bytes, err);
    if (st == STATUS_OK)
        st = cache__table_read(header, table, file->path, units_out, err);
    free(table);
    return st;
}

/* Are these the units that were asked for? */
static enum status compare_units(const struct cache_file *cache, const struct cache_unit *units,
                                 size_t unit_count, struct err *err)
{
    if (cache->unit_count != unit_count)
        return err_set(err, STATUS_BAD_INPUT, "%s: %zu units, %zu are wanted", cache->path,
                       cache->unit_count, unit_count);
    for (size_t i = 0; i < unit_count; i++) {
        const struct cache_unit *const has = &cache->units[i];
        if (strcmp(has->name, units[i].name) != 0 || has->size_bytes != units[i].size_bytes)
            return err_set(err, STATUS_BAD_INPUT, "%s: unit %zu is %s of %" PRIu64 " bytes, %s of %"
                           PRIu64 " is wanted", cache->path, i, has->name, has->size_bytes,
                           units[i].name, units[i].size_bytes);
    }
    return STATUS_OK;
}

enum status cache_file_open(const char *path, const struct cache_hash *fingerprint,
                            const struct cache_unit *units, size_t unit_count, enum disk_use direct,
                            struct cache_file **cache_out, struct err *err)
{
    struct cache_file *cache = NULL;
    struct file file = { .fd = -1 };
    struct cache__header header;
    struct stat info;
    enum status st;

    if (stat(path, &info) != 0 && errno == ENOENT)
        return err_set(err, STATUS_UNAVAILABLE, "%s: there is none yet", path);
    cache = calloc(1, sizeof(*cache));
    if (cache == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory to open it", path);
    st = disk_file_open(path, direct, &cache->file, err);
    if (st == STATUS_OK)
        st = file_open(path, &file, err);
    if (st != STATUS_OK)
        goto done;
    st = read_head(&file, fingerprint, &header, &cache->units, err);
    (void)posix_fadvise(file.fd, 0, 0, POSIX_FADV_DONTNEED);
    if (st != STATUS_OK)
        goto done;
    cache->unit_count = header.unit_count;
    cache->path = strdup(path);
    cache->verified = calloc(cache->unit_count + 1, sizeof(*cache->verified));
    if (cache->path == NULL || cache->verified == NULL) {
        st = err_set(err, STATUS_NO_MEMORY, "%s: no memory for %zu units", path, cache->unit_count);
        goto done;
    }
    st = compare_units(cache, units, unit_count, err);
    /* Opened twice, by two ways of reading: was it replaced in between? */
    if (st == STATUS_OK && disk_file_check_unchanged(cache->file, err) != STATUS_OK)
        st = err_set(err, STATUS_BAD_INPUT, "%s: it was replaced while it was opened", path);
done:
    file_close(&file);
    if (st != STATUS_OK) {
        cache_file_close(cache);
        return st;
    }
    *cache_out = cache;
    return STATUS_OK;
}

void cache_file_close(struct cache_file *cache)
{
    if (cache == NULL)
        return;
    disk_file_close(cache->file);
    free(cache->verified);
    free(cache->units);
    free(cache->path);
    free(cache);
}

size_t cache_file_unit_count(const struct cache_file *cache)
{
    return cache->unit_count;
}

const struct cache_unit *cache_file_unit(const struct cache_file *cache, size_t unit_index)
{
    assert(unit_index < cache->unit_count);
    return &cache->units[unit_index];
}

const struct disk_file *cache_file_disk_file(const struct cache_file *cache)
{
    return cache->file;
}

enum status cache_file_verify(struct cache_file *cache, size_t unit_index, const void *bytes,
                              struct err *err)
{
    const struct cache_unit *const unit = cache_file_unit(cache, unit_index);
    struct cache_hash hash;

    if (atomic_load_explicit(&cache->verified[unit_index], memory_order_relaxed))
        return STATUS_OK;
    hash = cache_hash_of(bytes, unit->size_bytes);
    if (memcmp(hash.bytes, unit->hash.bytes, sizeof(hash.bytes)) != 0)
        return err_set(err, STATUS_IO, "%s: the %" PRIu64 " bytes of unit %s at %" PRIu64 " are "
                       "not those that were written: the file is damaged; without it, it is made "
                       "again", cache->path, unit->size_bytes, unit->name, unit->offset_bytes);
    atomic_store_explicit(&cache->verified[unit_index], true, memory_order_relaxed);
    return STATUS_OK;
}

void cache_file_discard(struct cache_file *cache)
{
    if (disk_file_check_unchanged(cache->file, NULL) == STATUS_OK)
        (void)unlink(cache->path);
}

/* ---- what a file is for, and where it is ---- */

/* The path without links, or as it is when that cannot be found out. The caller frees it. */
static char *real_path(const char *path)
{
    char *const real = realpath(path, NULL);

    return real != NULL ? real : strdup(path);
}

enum status cache_fingerprint(const char *const *paths, size_t path_count,
                              const struct cache_hash *layout, struct cache_hash *fingerprint_out,
                              struct err *err)
{
    struct buf text;
    enum status st = STATUS_OK;

    buf_init(&text, 64 * MIB);
    for (size_t i = 0; i < path_count && st == STATUS_OK; i++) {
        char *const real = real_path(paths[i]);
        struct stat info;

        if (real == NULL)
            st = err_set(err, STATUS_NO_MEMORY, "%s: no memory for its path", paths[i]);
        else if (stat(real, &info) != 0)
            st = err_set(err, STATUS_IO, "%s: %s", paths[i], strerror(errno));
        else
            st = buf_printf(&text, err, "%zu %s %" PRIu64 " %" PRId64 ".%09ld\n", strlen(real),
                            real, (uint64_t)info.st_size, (int64_t)info.st_mtim.tv_sec,
                            info.st_mtim.tv_nsec);
        free(real);
    }
    if (st == STATUS_OK)
        st = buf_append(&text, layout->bytes, sizeof(layout->bytes), err);
    if (st == STATUS_OK)
        *fingerprint_out = cache_hash_of(text.data, text.size);
    buf_deinit(&text);
    return st;
}

static enum status no_memory_for_path(struct err *err)
{
    return err_set(err, STATUS_NO_MEMORY, "no memory for a cache file's path");
}

enum status cache_folder(const char *option, const char *xdg_cache_home, const char *home,
                         char **folder_out, struct err *err)
{
    int length;

    if (option != NULL && option[0] != '\0')
        length = asprintf(folder_out, "%s", option);
    else if (xdg_cache_home != NULL && xdg_cache_home[0] == '/')
        length = asprintf(folder_out, "%s/lighter", xdg_cache_home);
    else if (home != NULL && home[0] == '/')
        length = asprintf(folder_out, "%s/.cache/lighter", home);
    else
        return err_set(err, STATUS_BAD_INPUT, "no place for cache files: neither XDG_CACHE_HOME "
                       "nor HOME is an absolute path; --offload-cache-dir names one");
    return length >= 0 ? STATUS_OK : no_memory_for_path(err);
}

static void hash_digits(const struct cache_hash *hash, char out[17])
{
    for (size_t i = 0; i < 8; i++)
        (void)snprintf(out + 2 * i, 3, "%02x", hash->bytes[i]);
}

enum status cache_path(const char *folder, const char *checkpoint_path,
                       const struct cache_hash *layout, const char *suffix, char **path_out,
                       struct err *err)
{
    char *const real = real_path(checkpoint_path);
    char of_path[17], of_layout[17];
    struct cache_hash hash;
    const char *name;
    int length;

    if (real == NULL)
        return no_memory_for_path(err);
    hash = cache_hash_of(real, strlen(real));
    hash_digits(&hash, of_path);
    hash_digits(layout, of_layout);
    name = strrchr(real, '/') != NULL ? strrchr(real, '/') + 1 : real;
    length = asprintf(path_out, "%s/%.*s-%s/%s.%s", folder, NAME_PART_BYTES_MAX, name, of_path,
                      of_layout, suffix);
    free(real);
    return length >= 0 ? STATUS_OK : no_memory_for_path(err);
}
