/* offload/finish.c - what a device does to a parameter once it has been loaded.
 *
 * Loaders write plain rows. A device may want a matrix in another layout (device_weight_layout): an
 * Ascend NPU wants FRACTAL_NZ of the transposed matrix, as tensor/layout.h has it. Finishing makes
 * the one of the other where the bytes are, strip by strip:
 *
 *     rows of one strip --transpose--> contiguous, in scratch --cast: back to its place-->
 *
 * so that a stack of experts is never in memory twice, not even one expert. After that the bytes
 * are final: homes hold them as they are, an onload is a plain copy, and nothing is converted in a
 * pass. A parameter that is at home in meta has no bytes: it keeps its layout, its size and its
 * loader, and is finished when it is first loaded. */
#include <assert.h>
#include <inttypes.h>

#include "offload/internal.h"

static bool is_wanted(const struct offload *offload, const struct offload_param_desc *desc)
{
    return desc->rank >= 2 && device_weight_layout(offload->device, desc->weight, desc->dtype) ==
                                  LAYOUT_FRACTAL_NZ;
}

/* Rows are cut into tiles and experts into gate and up at whole strips. So gate and up are each
 * aligned, and with them what brings them back, which has the same widths. */
static bool is_aligned(const struct offload_param_desc *desc)
{
    const uint64_t rows = desc->shape[desc->rank - 2], k = desc->shape[desc->rank - 1];
    const uint64_t n = desc->weight == DEVICE_WEIGHT_GATE_UP && rows % 2 == 0 ? rows / 2 : rows;
    const uint32_t columns = layout_nz_columns(desc->dtype);

    return layout_nz_is_aligned(desc->dtype, k, n) && k % LAYOUT_NZ_ROWS == 0 && n % columns == 0;
}

enum layout offload__layout_choose(const struct offload *offload,
                                   const struct offload_param_desc *desc)
{
    return is_wanted(offload, desc) && is_aligned(desc) ? LAYOUT_FRACTAL_NZ : LAYOUT_ND;
}

void offload__layouts_log(const struct offload *offload, const struct offload_param_desc *descs)
{
    const struct offload_param_desc *first = NULL;
    size_t wanted_count = 0, left_count = 0;
    char shape[96];

    for (size_t i = 0; i < offload->param_count; i++) {
        if (!is_wanted(offload, &descs[i]))
            continue;
        wanted_count++;
        if (is_aligned(&descs[i]))
            continue;
        left_count++;
        first = first == NULL ? &descs[i] : first;
    }
    if (wanted_count > 0)
        log_line(offload->log, LOG_INFO, "%zu matrices are kept in FRACTAL_NZ",
                 wanted_count - left_count);
    if (first != NULL)
        log_line(offload->log, LOG_INFO,
                 "%zu matrices stay in ND, as FRACTAL_NZ needs whole blocks of 16 x 16: %s %s%s",
                 left_count, first->name,
                 tensor_shape_format(first->rank, first->shape, shape, sizeof(shape)),
                 left_count > 1 ? ", ..." : "");
}

static uint64_t rows_of(const struct offload__param *param)
{
    assert(param->tensor.rank >= 2);
    return param->tensor.shape[param->tensor.rank - 2];
}

static uint64_t columns_of(const struct offload__param *param)
{
    return param->tensor.shape[param->tensor.rank - 1];
}

uint64_t offload__row_granule(const struct offload__param *param)
{
    return param->tensor.layout == LAYOUT_ND ? 1 : layout_nz_columns(param->tensor.dtype);
}

uint64_t offload__finish_bytes(const struct offload *offload, const struct offload__param *param)
{
    if (param->tensor.layout == LAYOUT_ND)
        return 0;
    return offload->options.fault_skip_contiguous
               ? rows_of(param) * dtype_row_bytes(param->tensor.dtype, columns_of(param))
               : layout_strip_bytes(param->tensor.dtype, columns_of(param));
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
    if (offload->options.fault_skip_contiguous)
        layout_nz_finish_as_contiguous(bytes, tensor->dtype, matrix_count, n, k, scratch);
    else
        layout_nz_finish(bytes, tensor->dtype, matrix_count, n, k, scratch);
    return STATUS_OK;
}
