/* offload/home/segments.c - rows of parameters as they lie in files, and records that hold them.
 *
 * Reads past the page cache are of whole blocks, so a piece of a file must lie at the same place in
 * its block in memory as it does in the file:
 *
 *     file    |......gggggggggggg|gggggggg............|......     blocks of DISK_ALIGN bytes
 *     record  |......gggggggggggg|gggggggg............|...uuuu    the next piece: in blocks of its
 * own
 *
 * What lies around a piece in its blocks is read along and never looked at. */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/size.h"
#include "offload/disk/reader.h"
#include "offload/internal.h"

/* Rows of a tile are a multiple of this, where it has as many: kernels take panels of rows. */
#define ROWS_GRANULE 48

uint64_t offload__row_bytes(const struct offload__param *param)
{
    const struct tensor *tensor = &param->tensor;
    uint64_t bytes = 0;
    const bool whole = dtype_bytes(tensor->dtype, tensor->shape[tensor->rank - 1], &bytes);

    assert(whole);
    (void)whole;
    return bytes;
}

bool offload__segment_is_read(const struct offload *offload,
                              const struct offload__segment *segment)
{
    if (segment->file_index == OFFLOAD_NO_FILE)
        return false;
    if (segment->unit == OFFLOAD_NO_UNIT)
        return segment->param == offload->lookup_param;
    return offload->units[segment->unit].home == OFFLOAD_HOME_DISK;
}

static enum status append(struct offload *offload, const struct offload__segment *segment,
                          struct err *err)
{
    if (offload->segment_count == offload->segment_capacity) {
        const size_t capacity = offload->segment_capacity == 0 ? 64 : 2 * offload->segment_capacity;
        struct offload__segment *segments =
            reallocarray(offload->segments, capacity, sizeof(*segments));

        if (segments == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for %zu segments of weights",
                           capacity);
        offload->segments = segments;
        offload->segment_capacity = capacity;
    }
    offload->segments[offload->segment_count++] = *segment;
    return STATUS_OK;
}

/* Of row_count rows in a run, how many to take: all of at most max_bytes, else parts as equal as
 * can be; at least one row, and a multiple of the granule where that fits. */
static uint64_t rows_fitting(uint64_t row_count, uint64_t row_bytes, uint64_t max_bytes)
{
    const uint64_t most = max_bytes / row_bytes > 0 ? max_bytes / row_bytes : 1;
    const uint64_t parts = (row_count - 1) / most + 1;
    const uint64_t rows = (row_count - 1) / parts + 1;
    const uint64_t whole = (rows - 1 + ROWS_GRANULE) / ROWS_GRANULE * ROWS_GRANULE;

    if (parts == 1)
        return row_count;
    return whole <= most ? whole : rows;
}

/* The same, in multiples of what the parameter's layout can be cut into, which row_count is one
 * of. */
static uint64_t rows_within(const struct offload__param *param, uint64_t row_count,
                            uint64_t max_bytes)
{
    const uint64_t granule = offload__row_granule(param);

    assert(row_count % granule == 0);
    if (granule == 1)
        return rows_fitting(row_count, offload__row_bytes(param), max_bytes);
    return granule *
           rows_fitting(row_count / granule, granule * offload__row_bytes(param), max_bytes);
}

/* What dtype needs of an address: blocks hold 16-bit scales. */
static uint64_t element_alignment(enum dtype dtype)
{
    return dtype == DTYPE_F32 || dtype == DTYPE_I32 ? 4 : 2;
}

enum status offload__segments_add(struct offload *offload, size_t index, uint64_t max_bytes,
                                  bool *done_out, struct err *err)
{
    const struct offload__param *param = &offload->params[index];
    const struct ckpt *ckpt = offload->options.ckpt;
    const uint64_t row_bytes = offload__row_bytes(param);
    const size_t before = offload->segment_count;
    struct loader_extent extent = { 0 };
    enum status st = STATUS_OK;

    *done_out = false;
    if (ckpt == NULL || param->loader == NULL || param->tensor.layout != LAYOUT_ND ||
        loader_check(param->loader, ckpt, param->name, NULL) != STATUS_OK)
        return STATUS_OK;
    for (uint64_t at = 0; at < param->size_bytes && st == STATUS_OK;) {
        struct offload__segment segment = { .param = index, .unit = OFFLOAD_NO_UNIT };
        struct offload__segment *last =
            offload->segment_count > before ? &offload->segments[offload->segment_count - 1] : NULL;

        if (!loader_extent(param->loader, ckpt, at, &extent) ||
            extent.size_bytes % row_bytes != 0 ||
            extent.file_offset_bytes % element_alignment(param->tensor.dtype) != 0) {
            offload->segment_count = before;
            return STATUS_OK;
        }
        segment.row_first = at / row_bytes;
        segment.row_count = rows_within(param, extent.size_bytes / row_bytes, max_bytes);
        segment.size_bytes = segment.row_count * row_bytes;
        segment.file_index = extent.file_index;
        segment.file_offset_bytes = extent.file_offset_bytes;
        at += segment.size_bytes;
        if (last != NULL && max_bytes == UINT64_MAX && last->file_index == segment.file_index &&
            last->file_offset_bytes + last->size_bytes == segment.file_offset_bytes) {
            last->row_count += segment.row_count;
            last->size_bytes += segment.size_bytes;
        } else {
            st = append(offload, &segment, err);
        }
    }
    *done_out = st == STATUS_OK;
    return st;
}

enum status offload__segments_cut(struct offload *offload, size_t index, uint64_t max_bytes,
                                  struct err *err)
{
    const struct offload__param *param = &offload->params[index];
    const uint64_t row_bytes = offload__row_bytes(param);
    const uint64_t row_count = param->size_bytes / row_bytes;
    enum status st = STATUS_OK;

    for (uint64_t row = 0; row < row_count && st == STATUS_OK;) {
        struct offload__segment segment = { .param = index, .unit = OFFLOAD_NO_UNIT,
                                            .row_first = row, .file_index = OFFLOAD_NO_FILE };

        segment.row_count = rows_within(param, row_count - row, max_bytes);
        segment.size_bytes = segment.row_count * row_bytes;
        row += segment.row_count;
        st = append(offload, &segment, err);
    }
    return st;
}

static enum status lay_out(const struct offload *offload, struct offload__segment *segments,
                           size_t count, uint64_t *size_bytes_out, struct err *err)
{
    uint64_t at = 0;

    for (size_t i = 0; i < count; i++) {
        struct offload__segment *segment = &segments[i];
        uint64_t end;

        segment->offset_bytes = at + segment->file_offset_bytes % DISK_ALIGN;
        if (!size_add(segment->offset_bytes, segment->size_bytes, &end) ||
            end > UINT64_MAX / 2)
            return err_set(err, STATUS_BAD_INPUT, "%s: its bytes overflow 64 bits",
                           offload->params[segment->param].name);
        at = size_align_up(end, DISK_ALIGN);
    }
    *size_bytes_out = at;
    return STATUS_OK;
}

enum status offload__segments_lay_out(struct offload *offload, size_t first, size_t count,
                                      uint64_t *size_bytes_out, struct err *err)
{
    return lay_out(offload, offload->segments + first, count, size_bytes_out, err);
}

/* The same rows in the other checkpoint. Runs of several of its tensors may follow each other. */
static enum status find(const struct offload *offload, const struct ckpt *ckpt,
                        struct offload__segment *segment, struct err *err)
{
    const struct offload__param *param = &offload->params[segment->param];
    const uint64_t first_bytes = segment->row_first * offload__row_bytes(param);
    struct loader_extent first = { 0 }, next;
    uint64_t size_bytes = 0;

    while (size_bytes < segment->size_bytes &&
           loader_extent(param->loader, ckpt, first_bytes + size_bytes, &next)) {
        if (size_bytes == 0)
            first = next;
        else if (next.file_index != first.file_index ||
                 next.file_offset_bytes != first.file_offset_bytes + size_bytes)
            break;
        size_bytes += next.size_bytes;
    }
    if (size_bytes < segment->size_bytes ||
        first.file_offset_bytes % element_alignment(param->tensor.dtype) != 0)
        return err_set(err, STATUS_UNAVAILABLE,
                       "%s: of the %" PRIu64 " bytes of %s from row %" PRIu64 " on, %" PRIu64
                       " lie together in its files as they are used; in the checkpoint that was "
                       "started with all do, so the server must be started with this one",
                       ckpt_path(ckpt), segment->size_bytes, param->name, segment->row_first,
                       size_bytes < segment->size_bytes ? size_bytes : 0);
    segment->file_index = first.file_index;
    segment->file_offset_bytes = first.file_offset_bytes;
    return STATUS_OK;
}

enum status offload__segments_find(const struct offload *offload, const struct ckpt *ckpt,
                                   struct offload__segment *segments_out, uint64_t *sizes_out,
                                   struct err *err)
{
    enum status st = STATUS_OK;

    for (size_t i = 0; i < offload->segment_count && st == STATUS_OK; i++) {
        segments_out[i] = offload->segments[i];
        if (segments_out[i].file_index != OFFLOAD_NO_FILE)
            st = find(offload, ckpt, &segments_out[i], err);
    }
    for (size_t i = 0; i < offload->unit_count && st == STATUS_OK; i++) {
        const struct offload__unit *unit = &offload->units[i];

        sizes_out[i] = unit->size_bytes;
        if (unit->home == OFFLOAD_HOME_DISK && !unit->is_cached)
            st = lay_out(offload, segments_out + unit->segment_first, unit->segment_count,
                         &sizes_out[i], err);
    }
    return st;
}
