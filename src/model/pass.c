/* model/pass.c - a step's operators in the shorthand that architectures use.
 *
 * Everything here only queues. After the first failure the pass's status is kept and the rest is
 * skipped, so an architecture reads as the formula it is. */
#include <assert.h>

#include "model/internal.h"

const struct tensor *model__pass_param(const struct model_pass *pass, int32_t layer,
                                       enum model_role role)
{
    const uint32_t index = model__params_index(pass->model->params, layer, role);

    return index == PARAM_NONE ? NULL : offload_tensor(pass->model->offload, index);
}

void model__pass_launch(struct model_pass *pass, const struct op *op)
{
    if (pass->status == STATUS_OK)
        pass->status = device_launch(pass->model->stream, op, pass->err);
}

/* A part of the matrix: its rows from first_row on, of row_count. */
struct linear_part {
    uint32_t index; /* of the parameter */
    uint64_t first_row, row_count;
    bool same_x;    /* pieces before it have been multiplied */
};

/* The columns of the result that come of some rows of the matrix. */
static void linear_rows(struct model_pass *pass, const struct pass_linear *linear,
                        const struct linear_part *part, const struct tensor *bias,
                        const struct offload_rows *rows)
{
    const struct tensor *weight = offload_tensor(pass->model->offload, part->index);
    const uint64_t first = part->first_row + rows->first;
    const uint32_t k_count = (uint32_t)weight->shape[1];
    const struct op op = { .kind = OP_MATMUL, .matmul = {
        .out = linear->out + first, .x = linear->x, .weight = rows->data,
        .bias = bias != NULL ? (const float *)bias->data + first : NULL,
        .weight_dtype = weight->dtype, .weight_layout = weight->layout,
        .row_count = pass->row_count,
        .n_count = (uint32_t)rows->count, .k_count = k_count, .batch_count = 1,
        .out_row_stride = part->row_count, .x_row_stride = k_count,
        .accumulate = linear->accumulate,
        .exact = linear->weight == ROLE_LM_HEAD || linear->weight == ROLE_ROUTER,
        .same_x = part->same_x,
    } };

    model__pass_launch(pass, &op);
}

static void linear_part(struct model_pass *pass, const struct pass_linear *linear,
                        struct linear_part *part)
{
    struct offload *offload = pass->model->offload;
    const uint64_t row_count = offload_tensor(offload, part->index)->shape[0];
    const struct tensor *bias = linear->bias == ROLE_COUNT
                                    ? NULL
                                    : model__pass_param(pass, linear->layer, linear->bias);
    struct offload_rows rows;

    for (uint64_t row = 0; pass->status == STATUS_OK && row < row_count;) {
        pass->status = offload_rows_begin(offload, part->index, row, &rows, pass->err);
        if (pass->status != STATUS_OK)
            return;
        linear_rows(pass, linear, part, bias, &rows);
        part->same_x = true;
        row += rows.count;
        if (pass->status == STATUS_OK)
            pass->status = offload_rows_end(offload, &rows, pass->err);
    }
}

/* x in the order of columns that the parameter says. */
static const float *ordered(struct model_pass *pass, const float *x, uint32_t order)
{
    const struct tensor *columns;
    struct op op = { .kind = OP_GATHER_COLUMNS };

    if (order == PARAM_NONE)
        return x;
    columns = offload_tensor(pass->model->offload, order);
    op.gather_columns = (struct op_gather_columns){
        .out = pass->buffers->ordered, .x = x, .columns = columns->data,
        .row_count = pass->row_count, .width = (uint32_t)columns->shape[0],
        .x_width = (uint32_t)columns->shape[0], .out_row_stride = columns->shape[0],
        .x_row_stride = columns->shape[0],
    };
    model__pass_launch(pass, &op);
    return pass->buffers->ordered;
}

void model__pass_linear(struct model_pass *pass, const struct pass_linear *linear)
{
    const struct params *params = pass->model->params;
    const uint32_t first = model__params_index(params, linear->layer, linear->weight);
    const uint32_t count = model__params_part_count(params, linear->layer, linear->weight);
    struct linear_part part = { .index = first };
    struct pass_linear own = *linear;
    uint32_t order = PARAM_NONE;

    for (uint32_t i = 0; i < count; i++)
        part.row_count += offload_tensor(pass->model->offload, first + i)->shape[0];
    for (; part.index < first + count; part.index++) {
        const uint32_t wanted = model__params_order(params, part.index);

        if (wanted != order) {
            own.x = ordered(pass, linear->x, wanted);
            part.same_x = false;
            order = wanted;
        }
        linear_part(pass, &own, &part);
        part.first_row += offload_tensor(pass->model->offload, part.index)->shape[0];
    }
}

bool model__adds_apart(const struct model_config *config)
{
    return config->out_norms || config->residual_scale != 1.0f || config->shared_gate ||
           config->weighs_inputs;
}

void model__pass_add(struct model_pass *pass, const struct pass_addition *addition)
{
    const struct model_config *config = pass->config;
    const struct model_buffers *buffers = pass->buffers;
    const bool at_once = !config->out_norms && config->residual_scale == 1.0f &&
                         addition->row_weights == NULL;
    const struct pass_linear linear = {
        .out = at_once ? buffers->x : buffers->addition, .x = addition->x,
        .layer = addition->layer, .weight = addition->weight, .bias = addition->bias,
        .accumulate = at_once,
    };
    const struct pass_norm norm = {
        .out = buffers->addition, .x = buffers->addition, .row_stride = config->hidden_size,
        .group_count = 1, .epsilon = config->norm_epsilon, .layer = addition->layer,
        .weight = addition->norm,
    };
    const struct op add = { .kind = OP_SCALE, .scale = {
        .out = buffers->x, .x = buffers->addition, .row_factors = addition->row_weights,
        .row_count = pass->row_count, .width = config->hidden_size,
        .out_row_stride = config->hidden_size, .x_row_stride = config->hidden_size,
        .factor = config->residual_scale, .sigmoid = true, .accumulate = true,
    } };

    model__pass_linear(pass, &linear);
    if (at_once)
        return;
    if (config->out_norms)
        model__pass_norm(pass, &norm);
    model__pass_launch(pass, &add);
}

void model__pass_scale(struct model_pass *pass, float *x, uint32_t width, float factor)
{
    const struct op op = { .kind = OP_SCALE, .scale = {
        .out = x, .x = x, .row_count = pass->row_count, .width = width, .out_row_stride = width,
        .x_row_stride = width, .factor = factor,
    } };

    if (factor != 1.0f)
        model__pass_launch(pass, &op);
}

void model__pass_norm(struct model_pass *pass, const struct pass_norm *norm)
{
    const struct tensor *weight = model__pass_param(pass, norm->layer, norm->weight);
    const struct op op = { .kind = OP_RMS_NORM, .rms_norm = {
        .out = norm->out, .x = norm->x, .weight = weight->data, .row_count = pass->row_count,
        .group_count = norm->group_count, .width = (uint32_t)weight->shape[0],
        .out_row_stride = norm->row_stride, .x_row_stride = norm->row_stride,
        .epsilon = norm->epsilon, .weight_offset = pass->config->norm_offset,
    } };

    model__pass_launch(pass, &op);
}

void model__pass_rope(struct model_pass *pass, uint32_t layer, float *x, uint32_t head_count,
                      uint64_t row_stride, uint64_t head_stride)
{
    const bool is_other = pass->config->has_sliding_rope && pass->config->is_sliding[layer];
    const float *table =
        is_other ? pass->buffers->sliding_rope_table : pass->buffers->rope_table;
    const struct op op = { .kind = OP_ROPE, .rope = {
        .x = x, .table = table, .row_count = pass->row_count,
        .head_count = head_count, .pair_count = pass->config->rope_pair_count,
        .row_stride = row_stride, .head_stride = head_stride,
        .interleaved = pass->config->rope_interleaved,
    } };

    model__pass_launch(pass, &op);
}

void model__pass_kv_write(struct model_pass *pass, const struct pass_kv_write *write)
{
    const struct op op = { .kind = OP_KV_WRITE, .kv_write = {
        .cache = write->cache, .cache_dtype = pass->config->kv_dtype, .x = write->x,
        .slots = pass->slots[model__kv_kind(pass->config, write->layer)],
        .row_count = pass->row_count, .head_count = write->head_count, .width = write->width,
        .page_size = (uint32_t)pass->model->sizes.page_size,
        .cache_row_count = model__kv_slot_count(pass->model, write->layer),
        .strides = model__kv_strides(pass->model, write->layer, write->head_count, write->width),
        .x_row_stride = write->x_row_stride,
    } };

    model__pass_launch(pass, &op);
}
