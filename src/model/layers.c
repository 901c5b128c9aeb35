/* model/layers.c - building blocks that architectures share: norms' weights and the gated MLP. */
#include <stdio.h>

#include "model/internal.h"

void *model__slice(struct slicer *slicer, uint64_t size_bytes)
{
    void *piece = slicer->base == NULL ? NULL : slicer->base + slicer->used_bytes;

    slicer->used_bytes +=
        (size_bytes + DEVICE_ALIGNMENT - 1) / DEVICE_ALIGNMENT * DEVICE_ALIGNMENT;
    return piece;
}

void model__describe_norm(struct params *params, uint32_t layer, enum model_role role,
                          enum offload_part part, const char *name, uint64_t width)
{
    const struct param_spec spec = { .name = name, .layer = (int32_t)layer, .role = role,
                                     .part = part, .rank = 1, .shape = { width } };

    model__param_same(params, &spec);
}

void model__describe_mlp(struct params *params, const struct model_config *config, uint32_t layer,
                         const char *prefix, uint64_t width)
{
    const struct {
        enum model_role role;
        const char *name;
        bool is_bias, is_down;
    } all[] = {
        { ROLE_GATE_UP, "gate_up_proj.weight", false, false },
        { ROLE_GATE_UP_BIAS, "gate_up_proj.bias", true, false },
        { ROLE_DOWN, "down_proj.weight", false, true },
        { ROLE_DOWN_BIAS, "down_proj.bias", true, true },
    };

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        const uint64_t cols = all[i].is_bias ? 0 : all[i].is_down ? width : config->hidden_size;
        const char *kind = all[i].is_bias ? "bias" : "weight";
        char name[64], first[64], second[64];
        const struct param_spec spec = { .name = name, .layer = (int32_t)layer,
                                         .role = all[i].role, .part = OFFLOAD_PART_FFN,
                                         .moves = !all[i].is_bias };
        const struct param_rows gate_up[2] = { { first, width }, { second, width } };
        const struct param_rows fused[1] = { { name, 2 * width } };
        const struct param_rows down[1] = { { name, config->hidden_size } };

        if (all[i].is_bias && !config->mlp_bias)
            continue;
        (void)snprintf(name, sizeof(name), "%s.%s", prefix, all[i].name);
        (void)snprintf(first, sizeof(first), "%s.gate_proj.%s", prefix, kind);
        (void)snprintf(second, sizeof(second), "%s.up_proj.%s", prefix, kind);
        if (all[i].is_down)
            model__param_stack(params, &spec, cols, down, 1);
        else if (model__param_source_exists(params, (int32_t)layer, name))
            model__param_stack(params, &spec, cols, fused, 1);
        else
            model__param_stack(params, &spec, cols, gate_up, 2);
    }
}

void model__slice_mlp(struct slicer *slicer, uint64_t row_count, uint64_t width,
                      struct model_buffers *buffers)
{
    buffers->gate_up = model__slice(slicer, row_count * 2 * width * sizeof(float));
    buffers->product = model__slice(slicer, row_count * width * sizeof(float));
}

void model__pass_mlp(struct model_pass *pass, uint32_t layer, const float *row_weights)
{
    const struct model_buffers *buffers = pass->buffers;
    const struct tensor *down = model__pass_param(pass, (int32_t)layer, ROLE_DOWN);
    const uint32_t width = (uint32_t)down->shape[1];
    const struct pass_linear gate_up = {
        .out = buffers->gate_up, .x = buffers->normed, .layer = (int32_t)layer,
        .weight = ROLE_GATE_UP, .bias = ROLE_GATE_UP_BIAS,
    };
    const struct op silu_mul = { .kind = OP_SILU_MUL, .silu_mul = {
        .out = buffers->product, .x = buffers->gate_up, .row_count = pass->row_count,
        .width = width, .out_row_stride = width, .x_row_stride = 2 * (uint64_t)width,
        .gate = pass->config->gate,
    } };
    const struct pass_addition back = {
        .x = buffers->product, .layer = (int32_t)layer, .weight = ROLE_DOWN,
        .bias = ROLE_DOWN_BIAS, .norm = ROLE_FFN_OUT_NORM, .row_weights = row_weights,
    };

    model__pass_linear(pass, &gate_up);
    model__pass_launch(pass, &silu_mul);
    model__pass_add(pass, &back);
}
