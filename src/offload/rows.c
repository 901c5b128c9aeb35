/* offload/rows.c - a parameter's rows where they are now, piece by piece.
 *
 * Three kinds of parameters look the same from here: one that lies in one piece, one whose pieces
 * lie apart in its unit's record, and one of which each piece is a unit of its own (a tile), which
 * is acquired when its turn comes and released when its ops are queued. */
#include <assert.h>

#include "offload/internal.h"

static uint64_t row_count_of(const struct offload__param *param)
{
    return param->size_bytes / offload__row_bytes(param);
}

/* The parameter's segment that holds the row. */
static const struct offload__segment *segment_of(const struct offload *offload,
                                                 const struct offload__param *param, uint64_t row)
{
    size_t low = param->segment_first, high = param->segment_first + param->segment_count;

    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;

        if (offload->segments[middle].row_first <= row)
            low = middle;
        else
            high = middle;
    }
    return &offload->segments[low];
}

/* Where the segment's first row lies, unless it is a tile that has not been acquired. */
static const uint8_t *segment_base(const struct offload *offload,
                                   const struct offload__segment *segment)
{
    if (segment->unit == OFFLOAD_NO_UNIT)
        return offload->resident + segment->offset_bytes;
    assert(segment->unit == offload->active);
    return offload->active_base + segment->offset_bytes;
}

enum status offload_rows_begin(struct offload *offload, size_t index, uint64_t row,
                               struct offload_rows *rows_out, struct err *err)
{
    const struct offload__param *param = &offload->params[index];
    const struct offload__segment *segment;
    enum status st = STATUS_OK;

    assert(index < offload->param_count && row < row_count_of(param));
    rows_out->first = row;
    rows_out->unit = OFFLOAD_NO_UNIT;
    if (param->segment_count == 0) {
        assert(param->tensor.data != NULL);
        rows_out->data = (const uint8_t *)param->tensor.data + row * offload__row_bytes(param);
        rows_out->count = row_count_of(param) - row;
        return STATUS_OK;
    }
    segment = segment_of(offload, param, row);
    if (segment->unit != OFFLOAD_NO_UNIT && offload->units[segment->unit].is_tile) {
        assert(row == segment->row_first);
        st = offload__unit_acquire(offload, segment->unit, err);
        if (st != STATUS_OK)
            return st;
        rows_out->unit = segment->unit;
    }
    rows_out->data = segment_base(offload, segment) +
                     (row - segment->row_first) * offload__row_bytes(param);
    rows_out->count = segment->row_first + segment->row_count - row;
    return STATUS_OK;
}

enum status offload_rows_end(struct offload *offload, const struct offload_rows *rows,
                             struct err *err)
{
    if (rows->unit == OFFLOAD_NO_UNIT)
        return STATUS_OK;
    return offload__unit_release(offload, rows->unit, err);
}

const void *offload_row(const struct offload *offload, size_t index, uint64_t row)
{
    const struct offload__param *param = &offload->params[index];
    const struct offload__segment *segment;

    assert(index < offload->param_count && row < row_count_of(param));
    if (param->segment_count == 0) {
        assert(param->tensor.data != NULL);
        return (const uint8_t *)param->tensor.data + row * offload__row_bytes(param);
    }
    segment = segment_of(offload, param, row);
    assert(segment->unit == OFFLOAD_NO_UNIT || !offload->units[segment->unit].is_tile);
    return segment_base(offload, segment) + (row - segment->row_first) * offload__row_bytes(param);
}
