/* offload/finish.c - what a device does to a parameter once it has been loaded.
 *
 * Loaders write plain rows. A device may want a matrix in another layout (device_weight_layout,
 * tensor/layout.h): an Ascend NPU in FRACTAL_NZ of the transposed matrix, a processor's kernels in
 * ROWS_16. Finishing makes the one of the other where the bytes are, some rows at a time:
 *
 *     rows of one granule --reordered in scratch--> back to their place
 *
 * so that a stack of experts is never in memory twice, not even one expert. After that the bytes
 * are final: homes hold them as they are, an onload is a plain copy, and nothing is converted in a
 * pass. A parameter that is at home in meta has no bytes: it keeps its layout, its size and its
 * loader, and is finished when it is first loaded.
 *
 * FRACTAL_NZ is what the device needs: a file that has a matrix in plain rows is not its home, and
 * a cache file is made. ROWS_16 is for speed, where memory is the bound, and of the same size: so a
 * matrix of which rows stay in the checkpoint's file stays in plain rows. Therefore it is chosen
 * when the plan is there. */
#include <assert.h>
#include <inttypes.h>

#include "offload/internal.h"

static uint64_t rows_of(const struct offload__param *param)
{
    assert(param->tensor.rank >= 2);
    return param->tensor.shape[param->tensor.rank - 2];
}

static uint64_t columns_of(const struct offload__param *param)
{
    return param->tensor.shape[param->tensor.rank - 1];
}

/* What the device wants of it, whether it fits or not. ROWS_16 is made where it is used. */
static enum layout wanted(const struct offload *offload, const struct offload__param *param)
{
    const enum layout layout =
        param->tensor.rank < 2 ? LAYOUT_ND
                               : device_weight_layout(offload->device, param->weight,
                                                      param->tensor.dtype);

    return layout == LAYOUT_ROWS_16 && !offload->in_place ? LAYOUT_ND : layout;
}

/* Rows are cut into tiles and experts into gate and up at whole granules. So gate and up each fit,
 * and with them what brings them back, which has the same widths. */
static bool fits(const struct offload__param *param, enum layout layout)
{
    const uint64_t rows = rows_of(param);
    const bool halves = param->weight == DEVICE_WEIGHT_GATE_UP && rows % 2 == 0;

    return layout_fits(layout, param->tensor.dtype, halves ? rows / 2 : rows, columns_of(param));
}

void offload__layout_choose(struct offload *offload, struct offload__param *param)
{
    const enum layout layout = wanted(offload, param);
    uint64_t finish_bytes;

    if (layout == LAYOUT_ND || !fits(param, layout))
        return;
    if (layout != LAYOUT_ROWS_16)
        param->tensor.layout = layout;
    finish_bytes = layout == LAYOUT_FRACTAL_NZ && offload->options.fault_skip_contiguous
                       ? rows_of(param) * dtype_row_bytes(param->tensor.dtype, columns_of(param))
                       : layout_finish_bytes(layout, param->tensor.dtype, columns_of(param));
    if (finish_bytes > offload->finish_bytes)
        offload->finish_bytes = finish_bytes;
}

static bool is_on_disk(const struct offload *offload, size_t unit)
{
    return unit != OFFLOAD_NO_UNIT && offload->units[unit].home == OFFLOAD_HOME_DISK;
}

/* Whether all of it is in memory, in whole granules of rows. Experts, of which an operator has
 * several in one layout, are all in memory or none, where they are used in place. */
static bool can_be_woven(const struct offload *offload, const struct offload__param *param)
{
    if (is_on_disk(offload, param->unit))
        return false;
    for (size_t i = 0; i < param->segment_count; i++) {
        const struct offload__segment *segment = &offload->segments[param->segment_first + i];

        if (is_on_disk(offload, segment->unit) ||
            segment->row_first % LAYOUT_ROWS_16_COUNT != 0 ||
            segment->row_count % LAYOUT_ROWS_16_COUNT != 0)
            return false;
    }
    return true;
}

static void layouts_log(const struct offload *offload, enum layout layout)
{
    const struct offload__param *first = NULL;
    size_t made_count = 0, left_count = 0, file_count = 0;
    char shape[96];

    for (size_t i = 0; i < offload->param_count; i++) {
        const struct offload__param *param = &offload->params[i];

        if (wanted(offload, param) != layout)
            continue;
        made_count += param->tensor.layout == layout;
        left_count += !fits(param, layout);
        file_count += fits(param, layout) && param->tensor.layout != layout;
        if (first == NULL && !fits(param, layout))
            first = param;
    }
    if (made_count + left_count + file_count > 0)
        log_line(offload->log, LOG_INFO, "%zu matrices are kept in %s%s", made_count,
                 layout_name(layout),
                 layout == LAYOUT_ROWS_16 ? ": sixteen rows together, as kernels read them" : "");
    if (file_count > 0)
        log_line(offload->log, LOG_INFO, "%zu matrices stay in ND, as the file has them",
                 file_count);
    if (first != NULL)
        log_line(offload->log, LOG_INFO,
                 "%zu matrices stay in ND, as %s needs whole blocks of 16 %s: %s %s%s", left_count,
                 layout_name(layout), layout == LAYOUT_FRACTAL_NZ ? "x 16" : "rows", first->name,
                 tensor_shape_format(first->tensor.rank, first->tensor.shape, shape,
                                     sizeof(shape)),
                 left_count > 1 ? ", ..." : "");
}

void offload__layouts_settle(struct offload *offload)
{
    bool any = false;

    for (size_t i = 0; i < offload->param_count; i++) {
        struct offload__param *param = &offload->params[i];

        if (wanted(offload, param) == LAYOUT_ROWS_16 && fits(param, LAYOUT_ROWS_16) &&
            can_be_woven(offload, param))
            param->tensor.layout = LAYOUT_ROWS_16;
        any = any || param->tensor.layout != LAYOUT_ND;
    }
    if (!any)
        offload->finish_bytes = 0;
    layouts_log(offload, LAYOUT_FRACTAL_NZ);
    layouts_log(offload, LAYOUT_ROWS_16);
}

uint64_t offload__row_granule(const struct offload__param *param)
{
    return layout_row_granule(param->tensor.layout, param->tensor.dtype);
}

enum status offload__finish(const struct offload *offload, const struct offload__param *param,
                            uint8_t *bytes, void *scratch, struct err *err)
{
    const struct tensor *tensor = &param->tensor;
    uint64_t matrix_count = 1, n, k;

    if (tensor->layout == LAYOUT_ND)
        return STATUS_OK;
    if (bytes == NULL)
        return err_set(err, STATUS_DEVICE,
                       "%s: there are no bytes to cast to %s; it is at home in meta", param->name,
                       layout_name(tensor->layout));
    assert(scratch != NULL);
    n = rows_of(param);
    k = columns_of(param);
    for (uint32_t i = 0; i + 2 < tensor->rank; i++)
        matrix_count *= tensor->shape[i];
    if (tensor->layout == LAYOUT_FRACTAL_NZ && offload->options.fault_skip_contiguous)
        layout_nz_finish_as_contiguous(bytes, tensor->dtype, matrix_count, n, k, scratch);
    else
        layout_finish(tensor->layout, bytes, tensor->dtype, matrix_count, n, k, scratch);
    return STATUS_OK;
}

void offload__finish_rows(const struct offload__param *param, uint8_t *bytes, uint64_t row_count,
                          void *scratch)
{
    layout_finish(param->tensor.layout, bytes, param->tensor.dtype, 1, row_count,
                  columns_of(param), scratch);
}
