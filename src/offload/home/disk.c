/* offload/home/disk.c - units that are read from files each time they are needed, past the page
 * cache (disk/reader.h): from the checkpoint's own, or from a cache file (cached.c).
 *
 * Where the device's memory is the host's, a unit is read straight into its slot: there the streams
 * run at once, so whoever read the slot last has ended. Elsewhere it is read into staging memory
 * that the device can copy from, and copied when it has come:
 *
 *     fetch_prepare take a staging record, submit the reads: as far ahead as there are records, so
 *                   that the disk is never idle, whatever slots and other homes are at
 *     fetch_begin   the same, where it has not been done: the copy's slot is known now
 *     fetch_end     wait for the reads, queue the copy, mark the staging record as read behind it
 *
 * The engine's thread waits in fetch_end. It queues a pass's ops far ahead of the device, so
 * nothing but the disk is waited for there.
 *
 * A file that was changed since the start makes the pass fail: old and new weights must not mix. */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#include "offload/disk/reader.h"
#include "offload/internal.h"

struct staging {
    uint8_t *record;           /* host memory that the device can copy from; NULL: slots are */
    struct event *copied;      /* on the copy stream, behind its last copy */
    bool taken;                /* between fetch_begin, or _prepare, and fetch_end */
    struct disk_read *reads;   /* [reads_max], under way while it is taken */
};

/* Those of the ring are apart from those of experts, so that neither waits for the other's. */
struct staging_pool {
    struct staging *stagings;  /* [count], used in turn */
    size_t count, next, taken_count;
};

struct offload__disk {
    struct disk_reader *reader;
    struct disk_file **files;  /* [file_count], by the checkpoint's index; NULL: nothing is in it */
    uint32_t file_count;
    struct staging *stagings;  /* [staging_count] */
    struct disk_read *reads;   /* [staging_count * reads_max], the stagings' */
    size_t staging_count;
    struct staging_pool pools[2]; /* of the ring, of experts */
    uint64_t record_bytes;     /* of the largest unit */
    uint32_t reads_max;        /* reads for one unit */
    uint64_t bytes_per_s;      /* measured at the start; 0: not */
    enum disk_use direct;      /* as asked for */
};

struct disk_fetch { /* a fetch's home_data */
    struct staging *staging;   /* NULL: nothing is under way */
    uint8_t *base;             /* where the record is read to */
    uint32_t read_count;
};

enum status offload__disk_files_open(const struct offload *offload, const struct ckpt *ckpt,
                                     const struct offload__segment *segments,
                                     struct disk_file ***files_out, uint32_t *count_out,
                                     struct err *err)
{
    struct disk_file **files;
    uint32_t count = 0;
    enum status st = STATUS_OK;

    for (size_t i = 0; i < offload->segment_count; i++) {
        if (offload__segment_is_read(offload, &segments[i]) && segments[i].file_index >= count)
            count = segments[i].file_index + 1;
    }
    files = calloc((size_t)count + 1, sizeof(struct disk_file *));
    if (files == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %" PRIu32 " files", count);
    *files_out = files;
    *count_out = count;
    for (size_t i = 0; i < offload->segment_count && st == STATUS_OK; i++) {
        const uint32_t index = segments[i].file_index;

        if (offload__segment_is_read(offload, &segments[i]) && files[index] == NULL)
            st = disk_file_open(ckpt_file_path(ckpt, index), offload->disk->direct, &files[index],
                                err);
    }
    return st;
}

void offload__disk_files_close(struct disk_file **files, uint32_t count)
{
    for (uint32_t i = 0; files != NULL && i < count; i++)
        disk_file_close(files[i]);
    free(files);
}

void offload__disk_files_swap(struct offload *offload, struct disk_file ***files, uint32_t *count)
{
    struct offload__disk *disk = offload->disk;
    struct disk_file **const other_files = *files;
    const uint32_t other_count = *count;

    *files = disk->files;
    *count = disk->file_count;
    disk->files = other_files;
    disk->file_count = other_count;
}

uint64_t offload__disk_record_bytes(const struct offload *offload)
{
    return offload->disk->record_bytes;
}

enum disk_use offload__disk_direct(const struct offload *offload)
{
    return offload->disk->direct;
}

/* Reads for one unit, at most; and the largest record. */
static void units_measure(const struct offload *offload, uint32_t *reads_max_out,
                          uint64_t *record_bytes_out)
{
    *reads_max_out = 0;
    *record_bytes_out = 0;
    for (size_t i = 0; i < offload->unit_count; i++) {
        const struct offload__unit *unit = &offload->units[i];
        const uint32_t reads =
            (uint32_t)((unit->segment_count + DISK_EXTENTS_MAX - 1) / DISK_EXTENTS_MAX) +
            (unit->is_cached ? 1 : 0);

        if (unit->home != OFFLOAD_HOME_DISK)
            continue;
        *reads_max_out = reads > *reads_max_out ? reads : *reads_max_out;
        if (unit->size_bytes > *record_bytes_out)
            *record_bytes_out = unit->size_bytes;
    }
}

static size_t staging_count(const struct offload *offload)
{
    return (size_t)offload->sizes.slot_count + offload__experts_fetch_count(offload);
}

uint64_t offload__disk_staging_bytes(const struct offload *offload)
{
    uint64_t record_bytes;
    uint32_t reads_max;

    units_measure(offload, &reads_max, &record_bytes);
    return offload->in_place ? 0 : staging_count(offload) * record_bytes;
}

uint64_t offload__disk_table_bytes(const struct offload *offload)
{
    const uint64_t fetch_count =
        2 * (uint64_t)offload->ring_count + offload__experts_fetch_count(offload);
    uint64_t record_bytes;
    uint32_t reads_max;

    units_measure(offload, &reads_max, &record_bytes);
    return fetch_count * sizeof(struct disk_fetch) +
           staging_count(offload) * (sizeof(struct staging) + OFFLOAD_EVENT_BYTES +
                                     reads_max * sizeof(struct disk_read));
}

/* As many as fetches that can be under way: one for each slot of the ring, and those of experts. */
static enum status stagings_create(struct offload *offload, struct err *err)
{
    struct offload__disk *disk = offload->disk;
    const size_t ring_count = (size_t)offload->sizes.slot_count;
    const size_t count = staging_count(offload);
    enum status st = STATUS_OK;

    if (disk->record_bytes == 0)
        return STATUS_OK;
    disk->stagings = calloc(count + 1, sizeof(*disk->stagings));
    disk->reads = calloc(count * disk->reads_max + 1, sizeof(*disk->reads));
    if (disk->stagings == NULL || disk->reads == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu staging records", count);
    disk->staging_count = count;
    disk->pools[0] = (struct staging_pool){ .stagings = disk->stagings, .count = ring_count };
    disk->pools[1] = (struct staging_pool){ .stagings = disk->stagings + ring_count,
                                            .count = count - ring_count };
    for (size_t i = 0; i < count && st == STATUS_OK; i++) {
        void *record = NULL;

        disk->stagings[i].reads = disk->reads + i * disk->reads_max;
        if (offload->in_place)
            continue;
        st = event_create(offload->device, &disk->stagings[i].copied, err);
        if (st == STATUS_OK)
            st = device_host_alloc(offload->device, disk->record_bytes, &record, err);
        disk->stagings[i].record = record;
    }
    return st == STATUS_OK ? st : err_prefix(err, st, "memory to read weights from the disk into");
}

/* How many pieces of what size are read at once: what the largest file's disk does best with. Not
 * measured where its memory would pass the host's budget. */
static void tune(const struct offload *offload, struct disk_reader_options *options)
{
    const struct offload__disk *disk = offload->disk;
    const struct disk_file *largest = NULL;

    for (uint32_t i = 0; i < disk->file_count; i++) {
        if (disk->files[i] != NULL &&
            (largest == NULL ||
             disk_file_size_bytes(disk->files[i]) > disk_file_size_bytes(largest)))
            largest = disk->files[i];
    }
    if (largest == NULL || disk_file_size_bytes(largest) < DISK_MEASURE_FILE_BYTES_MIN ||
        device_host_charge(offload->device, DISK_MEASURE_BYTES, NULL) != STATUS_OK)
        return;
    disk_reader_options_tune(options, largest);
    device_host_discharge(offload->device, DISK_MEASURE_BYTES);
}

static enum status disk_open(struct offload *offload, struct err *err)
{
    struct disk_reader_options options = { .log = offload->log };
    bool any = offload->lookup_param != OFFLOAD_NO_PARAM;
    enum status st;

    for (size_t i = 0; i < offload->unit_count; i++)
        any = any || offload->units[i].home == OFFLOAD_HOME_DISK;
    if (!any)
        return STATUS_OK;
    st = disk_reader_options_parse(offload->options.disk, "--offload-disk", &options, err);
    if (st != STATUS_OK)
        return st;
    offload->disk = calloc(1, sizeof(*offload->disk));
    if (offload->disk == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a home on the disk");
    offload->disk->direct = options.direct;
    units_measure(offload, &offload->disk->reads_max, &offload->disk->record_bytes);
    st = offload__disk_files_open(offload, offload->options.ckpt, offload->segments,
                                  &offload->disk->files, &offload->disk->file_count, err);
    if (st == STATUS_OK && offload->disk_known.depth != 0)
        disk_reader_options_apply(&options, &offload->disk_known);
    else if (st == STATUS_OK)
        tune(offload, &options);
    offload->disk->bytes_per_s = options.bytes_per_s;
    if (st == STATUS_OK)
        st = stagings_create(offload, err);
    if (st == STATUS_OK)
        st = disk_reader_create(&options, &offload->disk->reader, err);
    return st == STATUS_OK ? offload__lookup_open(offload, err) : st;
}

const struct disk_file *offload__disk_file(const struct offload *offload, uint32_t file_index)
{
    return offload->disk->files[file_index];
}

struct disk_reader *offload__disk_reader(const struct offload *offload)
{
    return offload->disk->reader;
}

bool offload__disk_usage(const struct offload *offload, uint64_t *bytes_out, uint64_t *busy_ns_out,
                         uint64_t *bytes_per_s_out)
{
    struct disk_counters counters;

    if (offload->disk == NULL || offload->disk->reader == NULL)
        return false;
    disk_reader_counters(offload->disk->reader, &counters);
    *bytes_out = 0;
    for (unsigned class = 0; class < DISK_CLASS_COUNT; class++)
        *bytes_out += counters.classes[class].read_bytes;
    *busy_ns_out = counters.busy_ns;
    *bytes_per_s_out = offload->disk->bytes_per_s;
    return true;
}

static void disk_close(struct offload *offload)
{
    struct offload__disk *disk = offload->disk;

    if (disk == NULL)
        return;
    disk_reader_destroy(disk->reader);
    offload__cached_close(offload->cached);
    offload->cached = NULL;
    offload__lookup_close(offload);
    for (size_t i = 0; i < disk->staging_count; i++) {
        device_host_free(offload->device, disk->stagings[i].record, disk->record_bytes);
        event_destroy(disk->stagings[i].copied);
    }
    free(disk->reads);
    free(disk->stagings);
    offload__disk_files_close(disk->files, disk->file_count);
    free(disk);
    offload->disk = NULL;
}

/* What lies in the files need not be loaded. */
static bool disk_is_loaded_here(const struct offload *offload, size_t unit)
{
    (void)offload;
    (void)unit;
    return false;
}

static enum status disk_fetch_create(struct offload *offload, struct offload__fetch *fetch,
                                     struct err *err)
{
    struct disk_fetch *mine;

    if (offload->disk == NULL)
        return STATUS_OK;
    mine = calloc(1, sizeof(*mine));
    if (mine == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for reads of weights");
    fetch->home_data = mine;
    return STATUS_OK;
}

static void disk_fetch_destroy(struct offload *offload, struct offload__fetch *fetch)
{
    (void)offload;
    free(fetch->home_data);
    fetch->home_data = NULL;
}

static struct staging_pool *pool_of(const struct offload *offload, size_t unit)
{
    return &offload->disk->pools[unit >= offload->ring_count];
}

/* A staging record that no fetch holds. There are as many as fetches that can be under way; what is
 * prepared counts as one, and each is prepared before those behind it. */
static struct staging *staging_take(struct staging_pool *pool)
{
    struct staging *staging;

    assert(pool->taken_count < pool->count);
    do {
        staging = &pool->stagings[pool->next];
        pool->next = (pool->next + 1) % pool->count;
    } while (staging->taken);
    staging->taken = true;
    pool->taken_count++;
    return staging;
}

static void staging_give(const struct offload *offload, struct offload__fetch *fetch)
{
    struct disk_fetch *mine = fetch->home_data;

    if (mine->staging == NULL)
        return;
    mine->staging->taken = false;
    pool_of(offload, fetch->unit)->taken_count--;
    mine->staging = NULL;
    mine->read_count = 0;
}

enum status offload__disk_check(const struct offload *offload, struct err *err)
{
    const struct offload__disk *disk = offload->disk;
    enum status st = STATUS_OK;

    if (disk == NULL)
        return STATUS_OK;

    for (uint32_t i = 0; i < disk->file_count && st == STATUS_OK; i++) {
        if (disk->files[i] != NULL)
            st = disk_file_check_unchanged(disk->files[i], err);
    }
    return st;
}

/* The reads that bring a unit's record to base. */
static void make_reads(const struct offload *offload, const struct offload__fetch *fetch,
                       uint8_t *base)
{
    const struct offload__disk *disk = offload->disk;
    const struct offload__unit *unit = &offload->units[fetch->unit];
    struct disk_fetch *mine = fetch->home_data;
    const size_t count = unit->is_cached ? 1 : unit->segment_count;

    for (size_t i = 0; i < count; i++) {
        const struct offload__segment *segment = &offload->segments[unit->segment_first + i];
        struct disk_read *read = &mine->staging->reads[i / DISK_EXTENTS_MAX];
        struct disk_extent *extent;

        if (i % DISK_EXTENTS_MAX == 0) {
            read->extent_count = 0;
            read->class = fetch->is_guess ? DISK_GUESS : DISK_DEMAND;
            mine->read_count++;
        }
        extent = &read->extents[read->extent_count++];
        extent->dst = base;
        if (unit->is_cached) {
            offload__cached_extent(offload, fetch->unit, extent);
            continue;
        }
        extent->file = disk->files[segment->file_index];
        extent->offset_bytes = segment->file_offset_bytes;
        extent->size_bytes = segment->size_bytes;
        extent->dst = base + segment->offset_bytes;
    }
}

/* Submits the reads of the unit's record to base. */
static void submit(struct offload *offload, struct offload__fetch *fetch, uint8_t *base)
{
    struct disk_fetch *mine = fetch->home_data;

    mine->base = base;
    mine->read_count = 0;
    make_reads(offload, fetch, base);
    for (uint32_t i = 0; i < mine->read_count; i++)
        disk_read_submit(offload->disk->reader, &mine->staging->reads[i]);
}

/* The next record in turn must be free of its last copy, too: nothing is waited for here. */
static bool disk_fetch_prepare(struct offload *offload, struct offload__fetch *fetch)
{
    struct staging_pool *pool = pool_of(offload, fetch->unit);
    struct disk_fetch *mine = fetch->home_data;

    if (offload->in_place || pool->taken_count == pool->count ||
        pool->stagings[pool->next].taken || !event_is_done(pool->stagings[pool->next].copied))
        return false;
    mine->staging = staging_take(pool);
    submit(offload, fetch, mine->staging->record);
    return true;
}

static enum status disk_fetch_begin(struct offload *offload, struct offload__fetch *fetch,
                                    struct err *err)
{
    struct disk_fetch *mine = fetch->home_data;
    enum status st = STATUS_OK;

    if (fetch->state == OFFLOAD_FETCH_PREPARED)
        return STATUS_OK;
    mine->staging = staging_take(pool_of(offload, fetch->unit));
    if (!offload->in_place)
        st = event_sync(mine->staging->copied, err);
    if (st != STATUS_OK) {
        staging_give(offload, fetch);
        return st;
    }
    submit(offload, fetch, offload->in_place ? fetch->dst : mine->staging->record);
    return STATUS_OK;
}

static enum status disk_loaded(struct offload *offload, struct err *err)
{
    if (offload->disk == NULL)
        return STATUS_OK;
    return offload__cached_open(offload, offload->options.ckpt, offload->disk->direct,
                                &offload->cached, err);
}

static void disk_fetch_abandon(struct offload *offload, struct offload__fetch *fetch)
{
    struct disk_fetch *mine = fetch->home_data;

    for (uint32_t i = 0; i < mine->read_count; i++)
        (void)disk_read_cancel(offload->disk->reader, &mine->staging->reads[i]);
    staging_give(offload, fetch);
}

static enum status disk_fetch_end(struct offload *offload, struct offload__fetch *fetch,
                                  struct err *err)
{
    struct disk_fetch *mine = fetch->home_data;
    const struct offload__unit *unit = &offload->units[fetch->unit];
    enum status st = STATUS_OK;

    fetch->began_ns = UINT64_MAX;
    for (uint32_t i = 0; i < mine->read_count && st == STATUS_OK; i++) {
        struct disk_read *read = &mine->staging->reads[i];

        st = disk_read_wait(offload->disk->reader, read, err);
        fetch->began_ns = read->began_ns < fetch->began_ns ? read->began_ns : fetch->began_ns;
        fetch->ended_ns = read->ended_ns > fetch->ended_ns ? read->ended_ns : fetch->ended_ns;
    }
    if (st == STATUS_OK && unit->is_cached)
        st = offload__cached_verify(offload, fetch->unit, mine->base, err);
    if (st != STATUS_OK) {
        disk_fetch_abandon(offload, fetch);
        return err_prefix(err, st, "%s", unit->name);
    }
    if (offload->in_place) {
        staging_give(offload, fetch);
        return STATUS_OK;
    }
    st = offload__copy_begin(offload, fetch, err);
    if (st == STATUS_OK)
        st = device_copy_in(offload->copy, fetch->dst, mine->staging->record, unit->size_bytes,
                            err);
    if (st == STATUS_OK)
        st = offload__copy_end(offload, fetch, err);
    if (st == STATUS_OK)
        st = event_record(offload->copy, mine->staging->copied, err);
    staging_give(offload, fetch);
    return st;
}

static void disk_fetch_hurry(struct offload *offload, struct offload__fetch *fetch)
{
    struct disk_fetch *mine = fetch->home_data;

    for (uint32_t i = 0; i < mine->read_count; i++)
        disk_read_promote(offload->disk->reader, &mine->staging->reads[i]);
}

static void disk_fetch_drop(struct offload *offload, struct offload__fetch *fetch)
{
    struct disk_fetch *mine = fetch->home_data;

    for (uint32_t i = 0; i < mine->read_count; i++)
        disk_read_drop(offload->disk->reader, &mine->staging->reads[i]);
}

static bool disk_fetch_is_ready(const struct offload *offload, const struct offload__fetch *fetch)
{
    const struct disk_fetch *mine = fetch->home_data;

    (void)offload;
    for (uint32_t i = 0; i < mine->read_count; i++) {
        if (!disk_read_is_done(&mine->staging->reads[i]))
            return false;
    }
    return true;
}

const struct offload__home_ops offload__home_disk = {
    .name = "disk",
    .mode = "disk",
    .phrase = "at home on the disk",
    .has_contents = true,
    .open = disk_open,
    .close = disk_close,
    .is_loaded_here = disk_is_loaded_here,
    .loaded = disk_loaded,
    .fetch_create = disk_fetch_create,
    .fetch_prepare = disk_fetch_prepare,
    .fetch_begin = disk_fetch_begin,
    .fetch_end = disk_fetch_end,
    .fetch_is_ready = disk_fetch_is_ready,
    .fetch_hurry = disk_fetch_hurry,
    .fetch_drop = disk_fetch_drop,
    .fetch_abandon = disk_fetch_abandon,
    .fetch_destroy = disk_fetch_destroy,
};
