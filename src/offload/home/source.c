/* offload/home/source.c - where in a checkpoint the bytes of what is at home on the disk lie.
 *
 * Units that are read from files know by their segments where. Another checkpoint of the same model
 * has the same rows elsewhere, in other files and at another place in their blocks, so that records
 * are laid out otherwise; and what the first had in a cache file comes from one of its own. All
 * that is derived and opened beside what is in use, and then changes places with it at once.
 *
 * Every byte is read once before: what is on the disk by the reader that will read it, as guesses,
 * so that passes go first; all else as the loaders will. */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/size.h"
#include "offload/disk/reader.h"
#include "offload/internal.h"

#define READ_BYTES (4 * MIB) /* at once */

/* Records that have grown by a block or more must still have room. */
static enum status rooms_check(const struct offload *offload, const struct offload__source *source,
                               struct err *err)
{
    for (size_t i = 0; i < offload->unit_count; i++) {
        const struct offload__unit *unit = &offload->units[i];
        const uint64_t slot_bytes = i < offload->ring_count ? offload->sizes.slot_bytes
                                                            : offload->sizes.expert_slot_bytes;

        if (unit->home != OFFLOAD_HOME_DISK || source->unit_bytes[i] == unit->size_bytes)
            continue;
        if (source->unit_bytes[i] > slot_bytes ||
            source->unit_bytes[i] > offload__disk_record_bytes(offload))
            return err_set(err, STATUS_UNAVAILABLE,
                           "%s: %s takes %" PRIu64 " bytes as it lies in its files, and the slots "
                           "have %" PRIu64 "; the server must be started with it",
                           ckpt_path(source->ckpt), unit->name, source->unit_bytes[i], slot_bytes);
    }
    return STATUS_OK;
}

enum status offload__source_open(struct offload *offload, struct offload__source *source,
                                 struct err *err)
{
    enum status st;

    source->segments = calloc(offload->segment_count + 1, sizeof(*source->segments));
    source->unit_bytes = calloc(offload->unit_count + 1, sizeof(*source->unit_bytes));
    if (source->segments == NULL || source->unit_bytes == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for its %zu segments",
                       ckpt_path(source->ckpt), offload->segment_count);
    st = offload__segments_find(offload, source->ckpt, source->segments, source->unit_bytes, err);
    if (st != STATUS_OK || offload->disk == NULL)
        return st;
    st = rooms_check(offload, source, err);
    if (st == STATUS_OK)
        st = offload__disk_files_open(offload, source->ckpt, source->segments, &source->files,
                                      &source->file_count, err);
    if (st == STATUS_OK)
        st = offload__cached_open(offload, source->ckpt, offload__disk_direct(offload),
                                  &source->cached, err);
    return st;
}

void offload__source_close(const struct offload *offload, struct offload__source *source)
{
    (void)offload;
    offload__cached_close(source->cached);
    offload__disk_files_close(source->files, source->file_count);
    free(source->unit_bytes);
    free(source->segments);
    *source = (struct offload__source){ 0 };
}

/* -- reading everything once ------------------------------------------------------------------ */

struct reading {
    struct offload *offload;
    const struct offload__source *source;
    uint8_t *buffer;      /* of READ_BYTES and a block at each end */
    bool *seen;           /* [the checkpoint's tensor count] */
};

static enum status read_by_reader(const struct reading *reading,
                                  const struct offload__segment *segment, struct err *err)
{
    struct disk_reader *reader = offload__disk_reader(reading->offload);
    enum status st = STATUS_OK;

    for (uint64_t done = 0; done < segment->size_bytes && st == STATUS_OK;) {
        const uint64_t left = segment->size_bytes - done;
        const uint64_t offset_bytes = segment->file_offset_bytes + done;
        const uint64_t size_bytes = left < READ_BYTES ? left : READ_BYTES;
        struct disk_read read = {
            .extents[0] = { .file = reading->source->files[segment->file_index],
                            .offset_bytes = offset_bytes,
                            .size_bytes = size_bytes,
                            .dst = reading->buffer + offset_bytes % DISK_ALIGN },
            .extent_count = 1,
            .class = DISK_GUESS,
        };

        disk_read_submit(reader, &read);
        st = disk_read_wait(reader, &read, err);
        done += size_bytes;
    }
    return st;
}

static enum status read_segment(const struct reading *reading,
                                const struct offload__segment *segment, struct err *err)
{
    const struct offload *offload = reading->offload;
    enum status st = STATUS_OK;

    if (offload__segment_is_read(offload, segment))
        return read_by_reader(reading, segment, err);
    for (uint64_t done = 0; done < segment->size_bytes && st == STATUS_OK;) {
        const uint64_t left = segment->size_bytes - done;
        const uint64_t size_bytes = left < READ_BYTES ? left : READ_BYTES;

        st = ckpt_read_file(reading->source->ckpt, segment->file_index,
                            segment->file_offset_bytes + done, reading->buffer, size_bytes, err);
        done += size_bytes;
    }
    return st;
}

/* Tensors of which several parameters are made are read once. */
static enum status read_tensors(const struct reading *reading, const struct loader *loader,
                                struct err *err)
{
    const struct ckpt *ckpt = reading->source->ckpt;
    enum status st = STATUS_OK;

    for (size_t i = 0; i < loader_part_count(loader) && st == STATUS_OK; i++) {
        const struct ckpt_tensor *tensor = ckpt_find(ckpt, loader_part_at(loader, i)->tensor);
        const size_t index = (size_t)(tensor - ckpt_tensor_at(ckpt, 0));

        assert(tensor != NULL); /* loader_check has seen it */
        for (uint64_t done = 0; !reading->seen[index] && done < tensor->size_bytes &&
                                st == STATUS_OK;) {
            const uint64_t left = tensor->size_bytes - done;
            const uint64_t most = READ_BYTES - READ_BYTES % dtype_info(tensor->dtype)->block_bytes;
            const uint64_t size_bytes = left < most ? left : most;

            st = ckpt_read(ckpt, tensor, done, reading->buffer, size_bytes, err);
            done += size_bytes;
        }
        reading->seen[index] = true;
    }
    return st;
}

static enum status read_param(const struct reading *reading, const struct offload__param *param,
                              struct err *err)
{
    const struct offload *offload = reading->offload;
    const struct offload__segment *segments = &reading->source->segments[param->segment_first];
    enum status st = STATUS_OK;

    if (param->segment_count > 0 && segments[0].file_index != OFFLOAD_NO_FILE) {
        for (size_t k = 0; k < param->segment_count && st == STATUS_OK; k++)
            st = read_segment(reading, &segments[k], err);
        return st;
    }
    if (param->unit != OFFLOAD_NO_UNIT && !offload__is_loaded_here(offload, param) &&
        offload->units[param->unit].home != OFFLOAD_HOME_META)
        return STATUS_OK; /* by another rank, or it is in the cache file */
    return read_tensors(reading, param->loader, err);
}

enum status offload__source_read(struct offload *offload, const struct offload__source *source,
                                 struct err *err)
{
    struct reading reading = { .offload = offload, .source = source };
    enum status st = STATUS_OK;

    reading.buffer = aligned_alloc(DISK_ALIGN, READ_BYTES + 2 * (size_t)DISK_ALIGN);
    reading.seen = calloc(ckpt_tensor_count(source->ckpt) + 1, sizeof(*reading.seen));
    if (reading.buffer == NULL || reading.seen == NULL)
        st = err_set(err, STATUS_NO_MEMORY, "%s: no memory to read it through",
                     ckpt_path(source->ckpt));
    for (size_t i = 0; i < offload->param_count && st == STATUS_OK; i++) {
        st = read_param(&reading, &offload->params[i], err);
        if (st != STATUS_OK)
            st = err_prefix(err, st, "%s", offload->params[i].name);
    }
    free(reading.seen);
    free(reading.buffer);
    return st;
}

/* -- changing places -------------------------------------------------------------------------- */

void offload__source_swap(struct offload *offload, struct offload__source *source)
{
    const struct offload__source old = *source;

    source->ckpt = offload->options.ckpt;
    source->segments = offload->segments;
    source->cached = offload->cached;
    offload->options.ckpt = old.ckpt;
    offload->segments = old.segments;
    offload->cached = old.cached;
    if (offload->disk != NULL)
        offload__disk_files_swap(offload, &source->files, &source->file_count);
    for (size_t i = 0; i < offload->unit_count; i++) {
        struct offload__unit *unit = &offload->units[i];
        const uint64_t size_bytes = unit->size_bytes;

        if (old.unit_bytes[i] != size_bytes) /* else others may be reading it */
            unit->size_bytes = old.unit_bytes[i];
        source->unit_bytes[i] = size_bytes;
    }
    for (size_t i = 0; i < offload->param_count; i++) {
        struct offload__param *param = &offload->params[i];

        if (param->unit != OFFLOAD_NO_UNIT && param->segment_count > 0)
            param->offset_bytes = offload->segments[param->segment_first].offset_bytes;
    }
}
