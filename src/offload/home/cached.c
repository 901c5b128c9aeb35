/* offload/home/cached.c - units at home on the disk whose bytes the checkpoint has otherwise.
 *
 * Where a unit's parameters are converted, transposed or joined, its record is made once, by the
 * same loaders that would fill memory, and kept in a cache file (disk/cache_file.h); from there it
 * is read like any other. A record whose hash is wrong when it is first read is made again on the
 * spot, and the file is given up, so that the next start makes a new one: a bad file costs time,
 * and never an answer.
 *
 * Owner: the engine's thread. */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "offload/disk/cache_file.h"
#include "offload/internal.h"

#define LAYOUT_BYTES_MAX (UINT64_C(64) << 20)

struct offload__cached {
    struct offload *offload;
    const struct ckpt *ckpt;       /* borrowed */
    struct cache_file *file;
    struct cache_unit *units;      /* [unit_count], in the file's order */
    size_t *unit_of;               /* [unit_count]: the offload's unit */
    size_t unit_count;
    struct loader_staging *staging;
    uint64_t charged_bytes;        /* of host memory, for what follows and the staging */
    uint8_t *record;               /* where units are made, one after the other */
    uint64_t record_bytes;
    uint8_t *param;                /* one whole parameter, of which a tile is a part; NULL: no
                                      tiles */
    uint64_t param_bytes;
    size_t param_there;            /* which it holds; OFFLOAD_NO_PARAM: none */
    void *finish;                  /* what finishing takes; NULL: nothing */
};

static enum status units_list(struct offload *offload, struct offload__cached *cached,
                              struct err *err)
{
    cached->units = calloc(offload->unit_count + 1, sizeof(*cached->units));
    cached->unit_of = calloc(offload->unit_count + 1, sizeof(*cached->unit_of));
    if (cached->units == NULL || cached->unit_of == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a cache file of %zu units",
                       offload->unit_count);
    for (size_t i = 0; i < offload->unit_count; i++) {
        struct offload__unit *unit = &offload->units[i];
        const struct offload__param *param = &offload->params[unit->params[0]];

        if (!unit->is_cached)
            continue;
        if (unit->cache_index != cached->unit_count) /* of a later file it is the same */
            unit->cache_index = cached->unit_count;
        cached->unit_of[cached->unit_count] = i;
        cached->units[cached->unit_count++] =
            (struct cache_unit){ .name = unit->name, .size_bytes = unit->size_bytes };
        if (unit->size_bytes > cached->record_bytes)
            cached->record_bytes = unit->size_bytes;
        if (unit->is_tile && param->size_bytes > cached->param_bytes)
            cached->param_bytes = param->size_bytes;
    }
    return STATUS_OK;
}

static enum status memory_take(struct offload__cached *cached, struct err *err)
{
    const uint64_t finish_bytes = cached->offload->finish_bytes;
    const uint64_t bytes = cached->record_bytes + cached->param_bytes + finish_bytes +
                           loader_staging_bytes(cached->ckpt);
    const enum status st = device_host_charge(cached->offload->device, bytes, err);

    assert(cached->record_bytes > 0);
    if (st != STATUS_OK)
        return err_prefix(err, st, "memory to make a cache file with");
    cached->charged_bytes = bytes;
    cached->record = malloc(cached->record_bytes);
    cached->param = cached->param_bytes > 0 ? malloc(cached->param_bytes) : NULL;
    cached->param_there = OFFLOAD_NO_PARAM;
    cached->finish = finish_bytes > 0 ? malloc(finish_bytes) : NULL;
    if (cached->record == NULL || (cached->param == NULL && cached->param_bytes > 0) ||
        (cached->finish == NULL && finish_bytes > 0))
        return err_set(err, STATUS_NO_MEMORY, "no memory to make a cache file with");
    return loader_staging_create(cached->ckpt, &cached->staging, err);
}

static void memory_give(struct offload__cached *cached)
{
    loader_staging_destroy(cached->staging);
    free(cached->finish);
    free(cached->param);
    free(cached->record);
    device_host_discharge(cached->offload->device, cached->charged_bytes);
    cached->charged_bytes = 0;
    cached->staging = NULL;
    cached->param = cached->record = NULL;
    cached->finish = NULL;
}

/* Fills dst[unit's size_bytes] through the loaders. */
static enum status unit_make(struct offload__cached *cached, const struct offload__unit *unit,
                             uint8_t *dst, struct err *err)
{
    const struct offload *offload = cached->offload;
    const struct ckpt *ckpt = cached->ckpt;
    enum status st = STATUS_OK;

    memset(dst, 0, unit->size_bytes);
    if (unit->is_tile) {
        const struct offload__segment *segment = &offload->segments[unit->segment_first];
        const struct offload__param *param = &offload->params[segment->param];

        if (cached->param_there != segment->param) {
            cached->param_there = OFFLOAD_NO_PARAM;
            st = loader_load(param->loader, ckpt, cached->param, cached->staging, NULL, NULL, 0,
                             err);
            if (st == STATUS_OK)
                st = offload__finish(offload, param, cached->param, cached->finish, err);
            if (st != STATUS_OK)
                return st;
            cached->param_there = segment->param;
        }
        memcpy(dst, cached->param + segment->row_first * offload__row_bytes(param),
               segment->size_bytes);
        return STATUS_OK;
    }
    for (size_t i = 0; i < unit->param_count && st == STATUS_OK; i++) {
        const struct offload__param *param = &offload->params[unit->params[i]];

        st = loader_load(param->loader, ckpt, dst + param->offset_bytes, cached->staging, NULL,
                         NULL, 0, err);
        if (st == STATUS_OK)
            st = offload__finish(offload, param, dst + param->offset_bytes, cached->finish, err);
    }
    return st;
}

static enum status produce(void *user, size_t index, struct cache_writer *writer, struct err *err)
{
    struct offload__cached *cached = user;
    const struct offload__unit *unit = &cached->offload->units[cached->unit_of[index]];
    enum status st = unit_make(cached, unit, cached->record, err);

    if (st == STATUS_OK)
        st = cache_writer_append(writer, cached->record, unit->size_bytes, err);
    return st == STATUS_OK ? st : err_prefix(err, st, "%s", unit->name);
}

/* A hash of all that the records depend on besides the checkpoint. */
static enum status layout_hash(const struct offload *offload, struct cache_hash *hash_out,
                               struct err *err)
{
    struct buf text;
    enum status st = STATUS_OK;

    buf_init(&text, LAYOUT_BYTES_MAX);
    for (size_t i = 0; i < offload->unit_count && st == STATUS_OK; i++) {
        const struct offload__unit *unit = &offload->units[i];

        if (!unit->is_cached)
            continue;
        st = buf_printf(&text, err, "%s %" PRIu64 "\n", unit->name, unit->size_bytes);
        for (size_t k = 0; k < unit->param_count && st == STATUS_OK; k++) {
            const struct offload__param *param = &offload->params[unit->params[k]];
            const struct offload__segment *segment =
                unit->is_tile ? &offload->segments[unit->segment_first] : NULL;

            st = buf_printf(&text, err, " %s %s%s%s %" PRIu64 " %" PRIu64 " %" PRIu64 "\n",
                            param->name, dtype_info(param->tensor.dtype)->name,
                            param->tensor.layout == LAYOUT_ND ? "" : " ",
                            param->tensor.layout == LAYOUT_ND ? ""
                                                              : layout_name(param->tensor.layout),
                            param->size_bytes,
                            segment != NULL ? segment->row_first : 0,
                            segment != NULL ? segment->row_count : param->offset_bytes);
        }
    }
    if (st == STATUS_OK)
        *hash_out = cache_hash_of(text.data, text.size);
    buf_deinit(&text);
    return st;
}

enum status offload__fingerprint(const struct ckpt *ckpt, const struct cache_hash *layout,
                                 struct cache_hash *out, struct err *err)
{
    const uint32_t count = ckpt_file_count(ckpt);
    const char **paths = calloc((size_t)count + 1, sizeof(*paths));
    struct cache_hash whole = *layout;
    enum status st;

    if (paths == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %" PRIu32 " paths", count);
    for (uint32_t i = 0; i < count; i++)
        paths[i] = ckpt_file_path(ckpt, i);
    if (ckpt_packing(ckpt) != NULL) {
        const struct cache_hash packing = cache_hash_of(ckpt_packing(ckpt),
                                                        strlen(ckpt_packing(ckpt)));

        for (size_t i = 0; i < sizeof(whole.bytes); i++)
            whole.bytes[i] ^= packing.bytes[i];
    }
    st = cache_fingerprint(paths, count, &whole, out, err);
    free(paths);
    return st;
}

static enum status file_obtain(struct offload__cached *cached, enum disk_use direct,
                               struct err *err)
{
    const struct offload *offload = cached->offload;
    const struct cache_producer producer = { produce, cached };
    struct cache_hash layout, fingerprint;
    char *path = NULL;
    enum status st;

    if (offload->options.cache_dir == NULL)
        return err_set(err, STATUS_BAD_INPUT,
                       "%zu units need a cache file, and there is no folder for it: give one with "
                       "--offload-cache-dir", cached->unit_count);
    st = layout_hash(offload, &layout, err);
    if (st == STATUS_OK)
        st = offload__fingerprint(cached->ckpt, &layout, &fingerprint, err);
    if (st == STATUS_OK)
        st = cache_path(offload->options.cache_dir, ckpt_path(cached->ckpt), &layout, "units",
                        &path, err);
    if (st == STATUS_OK)
        st = cache_file_obtain(path, &fingerprint, cached->units, cached->unit_count, &producer,
                               direct, offload->log, &cached->file, err);
    free(path);
    return st;
}

enum status offload__cached_open(struct offload *offload, const struct ckpt *ckpt,
                                 enum disk_use direct, struct offload__cached **cached_out,
                                 struct err *err)
{
    struct offload__cached *cached;
    bool any = false;
    enum status st;

    *cached_out = NULL;
    for (size_t i = 0; i < offload->unit_count; i++)
        any = any || offload->units[i].is_cached;
    if (!any)
        return STATUS_OK;
    cached = calloc(1, sizeof(*cached));
    if (cached == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a cache file");
    cached->offload = offload;
    cached->ckpt = ckpt;
    st = units_list(offload, cached, err);
    if (st == STATUS_OK)
        st = memory_take(cached, err);
    if (st == STATUS_OK)
        st = file_obtain(cached, direct, err);
    memory_give(cached);
    if (st == STATUS_OK)
        *cached_out = cached;
    else
        offload__cached_close(cached);
    return st;
}

void offload__cached_close(struct offload__cached *cached)
{
    if (cached == NULL)
        return;
    cache_file_close(cached->file);
    free(cached->units);
    free(cached->unit_of);
    free(cached);
}

void offload__cached_extent(const struct offload *offload, size_t unit, struct disk_extent *extent)
{
    const struct offload__cached *cached = offload->cached;
    const size_t index = offload->units[unit].cache_index;

    extent->file = cache_file_disk_file(cached->file);
    extent->offset_bytes = cache_file_unit(cached->file, index)->offset_bytes;
    extent->size_bytes = offload->units[unit].size_bytes;
}

enum status offload__cached_verify(struct offload *offload, size_t unit, uint8_t *bytes,
                                   struct err *err)
{
    struct offload__cached *cached = offload->cached;
    struct err why;
    enum status st = cache_file_verify(cached->file, offload->units[unit].cache_index, bytes, &why);

    if (st == STATUS_OK)
        return STATUS_OK;
    log_line(offload->log, LOG_WARN, "%s; it is made from the checkpoint again", why.message);
    cache_file_discard(cached->file);
    st = memory_take(cached, err);
    if (st == STATUS_OK)
        st = unit_make(cached, &offload->units[unit], bytes, err);
    memory_give(cached);
    return st == STATUS_OK ? st : err_prefix(err, st, "%s", offload->units[unit].name);
}
