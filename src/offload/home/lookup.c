/* offload/home/lookup.c - rows of a table that is at home on the disk, looked up by number.
 *
 * An embedding has a row for every token of the vocabulary, of which a step reads a few: on the
 * device it would take room from weights that every token reads. So where the budget is tight the
 * table stays in its file and the rows of a step are read when the step begins, LOOKUP_BATCH at a
 * time, past the page cache:
 *
 *     file   |....rrrr|rr......|     a row lies in one block, or in a few
 *     batch  |....rrrr|rr......|     read as it lies
 *     rows   rrrrrr                  packed, on the device
 *
 * Owner: the engine's thread. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "offload/disk/reader.h"
#include "offload/internal.h"

#define LOOKUP_BATCH 64

struct offload__lookup {
    size_t param;
    uint64_t row_bytes;
    uint64_t stride_bytes;    /* of a row in the batch */
    uint64_t batch_bytes;
    uint8_t *batch;           /* host memory that the device can copy from */
    struct disk_read *reads;  /* [LOOKUP_BATCH] */
    uint64_t read_bytes;      /* since the start */
};

uint64_t offload__lookup_bytes(const struct offload *offload, const struct offload__param *param)
{
    return size_align_up(offload->options.lookup_row_max * offload__row_bytes(param),
                         DEVICE_ALIGNMENT);
}

static uint64_t stride_bytes(const struct offload__param *param)
{
    return size_align_up(offload__row_bytes(param), DISK_ALIGN) + DISK_ALIGN;
}

uint64_t offload__lookup_host_bytes(const struct offload *offload,
                                    const struct offload__param *param)
{
    (void)offload;
    return LOOKUP_BATCH * (stride_bytes(param) + sizeof(struct disk_read));
}

enum status offload__lookup_open(struct offload *offload, struct err *err)
{
    struct offload__lookup *lookup;
    void *memory = NULL;
    enum status st;

    if (offload->lookup_param == OFFLOAD_NO_PARAM)
        return STATUS_OK;
    lookup = calloc(1, sizeof(*lookup));
    offload->lookup = lookup;
    if (lookup == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to look rows up on the disk");
    lookup->param = offload->lookup_param;
    lookup->row_bytes = offload__row_bytes(&offload->params[lookup->param]);
    lookup->stride_bytes = stride_bytes(&offload->params[lookup->param]);
    lookup->batch_bytes = LOOKUP_BATCH * lookup->stride_bytes;
    lookup->reads = calloc(LOOKUP_BATCH, sizeof(*lookup->reads));
    if (lookup->reads == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to look rows up on the disk");
    st = device_host_alloc(offload->device, lookup->batch_bytes, &memory, err);
    if (st != STATUS_OK)
        return err_prefix(err, st, "memory to look rows up on the disk");
    lookup->batch = memory;
    return STATUS_OK;
}

void offload__lookup_close(struct offload *offload)
{
    struct offload__lookup *lookup = offload->lookup;

    if (lookup == NULL)
        return;
    device_host_free(offload->device, lookup->batch, lookup->batch_bytes);
    free(lookup->reads);
    free(lookup);
    offload->lookup = NULL;
}

static const struct offload__segment *segment_of(const struct offload *offload,
                                                 const struct offload__param *param, uint64_t row)
{
    const struct offload__segment *segment = &offload->segments[param->segment_first];

    while (row >= segment->row_first + segment->row_count)
        segment++;
    assert(segment < &offload->segments[param->segment_first + param->segment_count]);
    return segment;
}

/* Reads the rows and queues their copies; they are in place when `compute` has passed. */
static enum status batch_bring(struct offload *offload, const int32_t *ids, uint32_t count,
                               uint8_t *dst, struct err *err)
{
    struct offload__lookup *lookup = offload->lookup;
    const struct offload__param *param = &offload->params[lookup->param];
    enum status st = STATUS_OK;

    for (uint32_t i = 0; i < count; i++) {
        const struct offload__segment *segment = segment_of(offload, param, (uint64_t)ids[i]);
        const uint64_t offset = segment->file_offset_bytes +
                                ((uint64_t)ids[i] - segment->row_first) * lookup->row_bytes;
        struct disk_read *read = &lookup->reads[i];

        read->extent_count = 1;
        read->class = DISK_DEMAND;
        read->extents[0] = (struct disk_extent){
            .file = offload__disk_file(offload, segment->file_index),
            .offset_bytes = offset,
            .size_bytes = lookup->row_bytes,
            .dst = lookup->batch + i * lookup->stride_bytes + offset % DISK_ALIGN,
        };
        disk_read_submit(offload__disk_reader(offload), read);
    }
    for (uint32_t i = 0; i < count; i++) {
        struct disk_read *read = &lookup->reads[i];
        const enum status st_read =
            disk_read_wait(offload__disk_reader(offload), read, st == STATUS_OK ? err : NULL);

        lookup->read_bytes += read->bytes_read;
        st = st == STATUS_OK ? st_read : st;
        if (st == STATUS_OK)
            st = device_copy_in(offload->compute, dst + i * lookup->row_bytes,
                                read->extents[0].dst, lookup->row_bytes, err);
    }
    return st == STATUS_OK ? st : err_prefix(err, st, "%s", param->name);
}

bool offload_is_looked_up(struct offload *offload, size_t index)
{
    return index == offload->lookup_param || offload__late_is_open(offload, index);
}

enum status offload_lookup(struct offload *offload, size_t index, const int32_t *ids,
                           uint32_t count, const void **rows_out, struct err *err)
{
    const struct offload__param *param = &offload->params[index];
    uint8_t *const dst = offload->resident + param->offset_bytes;
    enum status st = STATUS_OK;

    assert(offload_is_looked_up(offload, index) && offload->loaded);
    assert(count <= offload->options.lookup_row_max);
    if (index != offload->lookup_param)
        return offload__late_lookup(offload, ids, count, rows_out, err);
    for (uint32_t done = 0; done < count && st == STATUS_OK; done += LOOKUP_BATCH) {
        const uint32_t left = count - done;

        if (done > 0) /* the batch's memory is used again */
            st = stream_sync(offload->compute, err);
        if (st == STATUS_OK)
            st = batch_bring(offload, ids + done, left < LOOKUP_BATCH ? left : LOOKUP_BATCH,
                             dst + done * offload->lookup->row_bytes, err);
    }
    *rows_out = dst;
    return st;
}
