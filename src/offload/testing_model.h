/* offload/testing_model.h - a small model for the tests of offload/: parameters, a checkpoint, a
 * pass.
 *
 *     x = embed[ids]
 *     for each layer:  attention:  h = rms_norm(x) * norm;  y = h . proj
 *                      ffn:        u = y . up;              x = u . down
 *
 * Widths differ from layer to layer, so units have different sizes; dtypes are mixed; proj is fused
 * from two tensors of the checkpoint. Every bit of every weight has a part in the output, which is
 * compared bit for bit. A pass knows nothing of how weights get to the device. */
#ifndef LIGHTER_OFFLOAD_TESTING_MODEL_H
#define LIGHTER_OFFLOAD_TESTING_MODEL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "checkpoint/testing.h"
#include "offload/internal.h"

#define MODEL_LAYERS 6
#define MODEL_WIDTH 32
#define MODEL_ROWS 3
#define MODEL_VOCAB 16
#define MODEL_PARAMS_PER_LAYER 4
#define MODEL_PARAMS (1 + MODEL_LAYERS * MODEL_PARAMS_PER_LAYER)
#define MODEL_OUT_COUNT (MODEL_ROWS * MODEL_WIDTH)
#define MODEL_FFN_MAX 48

/* In the order in which model_params lists them, after the embedding. */
enum model_kind { MODEL_NORM, MODEL_PROJ, MODEL_UP, MODEL_DOWN };

static const enum dtype model_dtypes[MODEL_PARAMS_PER_LAYER] = { DTYPE_F32, DTYPE_F32, DTYPE_BF16,
                                                                 DTYPE_F16 };

static inline size_t model_index(uint32_t layer, enum model_kind kind)
{
    return 1 + (size_t)layer * MODEL_PARAMS_PER_LAYER + (size_t)kind;
}

static inline uint32_t model_ffn_width(uint32_t layer)
{
    return MODEL_FFN_MAX - 16 * (layer % 3);
}

#define CHECK_OK(call)                                                                            \
    do {                                                                                          \
        struct err check_err_;                                                                    \
        struct err *const err = &check_err_;                                                      \
        if ((call) != STATUS_OK)                                                                  \
            fail_msg("%s: %s", #call, check_err_.message);                                        \
    } while (0)

/* The checkpoint: values in (-0.25, 0.25) that depend on seed, parameter and place. */

static inline float model_value(uint64_t seed, size_t param, size_t i)
{
    uint64_t bits = seed * UINT64_C(0x9E3779B97F4A7C15) + param * 1000003 + i;

    bits ^= bits >> 29;
    bits *= UINT64_C(0xBF58476D1CE4E5B9);
    bits ^= bits >> 32;
    return (float)(int32_t)(bits & 0xFFFF) / 131072.0f - 0.25f;
}

static inline void model_shape(size_t index, uint32_t *rank_out, uint64_t *shape)
{
    const uint32_t layer = (uint32_t)((index - 1) / MODEL_PARAMS_PER_LAYER);

    *rank_out = 2;
    shape[0] = shape[1] = MODEL_WIDTH;
    if (index == 0) {
        shape[0] = MODEL_VOCAB;
        return;
    }
    switch ((enum model_kind)((index - 1) % MODEL_PARAMS_PER_LAYER)) {
    case MODEL_NORM: *rank_out = 1; break;
    case MODEL_PROJ: break;
    case MODEL_UP: shape[0] = model_ffn_width(layer); break;
    case MODEL_DOWN: shape[1] = model_ffn_width(layer); break;
    }
}

static inline enum dtype model_dtype(size_t index)
{
    return index == 0 ? DTYPE_BF16 : model_dtypes[(index - 1) % MODEL_PARAMS_PER_LAYER];
}

static inline char *model_name(size_t index, const char *suffix, char *out, size_t out_size)
{
    static const char *const kinds[] = { "attn.norm", "attn.proj", "ffn.up", "ffn.down" };

    if (index == 0)
        (void)snprintf(out, out_size, "embed%s", suffix);
    else
        (void)snprintf(out, out_size, "layers.%zu.%s%s", (index - 1) / MODEL_PARAMS_PER_LAYER,
                       kinds[(index - 1) % MODEL_PARAMS_PER_LAYER], suffix);
    return out;
}

static inline size_t model_element_count(size_t index)
{
    uint64_t shape[TENSOR_RANK_MAX], count;
    uint32_t rank;

    model_shape(index, &rank, shape);
    assert_true(tensor_element_count(rank, shape, &count));
    return (size_t)count;
}

static inline size_t model_param_bytes(size_t index)
{
    return model_element_count(index) * dtype_info(model_dtype(index))->block_bytes;
}

/* What the parameter holds once it is loaded from model_write(seed); the caller frees. */
static inline void *model_expected(uint64_t seed, size_t index)
{
    const size_t count = model_element_count(index);
    const size_t element_bytes = dtype_info(model_dtype(index))->block_bytes;
    uint8_t *bytes = malloc(count * element_bytes);

    assert_non_null(bytes);
    for (size_t i = 0; i < count; i++) {
        const float value = model_value(seed, index, i);

        dtype_convert(bytes + i * element_bytes, model_dtype(index), &value, DTYPE_F32, 1);
    }
    return bytes;
}

/* Writes a checkpoint of F32 tensors, or, when `final`, of tensors in the parameters' own dtypes;
 * proj as two halves, "....a" and "....b". skip: the parameter whose tensors are left out, or
 * SIZE_MAX. */
static inline char *model_write_as(uint64_t seed, size_t skip, bool final)
{
    struct ckpt_testing_tensor tensors[MODEL_PARAMS * 2];
    static char names[MODEL_PARAMS * 2][64];
    uint8_t *values[MODEL_PARAMS];
    char *folder = ckpt_testing_folder();
    size_t count = 0;

    for (size_t p = 0; p < MODEL_PARAMS; p++) {
        const size_t elements = model_element_count(p);
        const bool halves = p > 0 && (p - 1) % MODEL_PARAMS_PER_LAYER == MODEL_PROJ;
        const enum dtype dtype = final ? model_dtype(p) : DTYPE_F32;
        const size_t element_bytes = dtype_info(dtype)->block_bytes;

        values[p] = malloc(elements * element_bytes);
        assert_non_null(values[p]);
        for (size_t i = 0; i < elements; i++) {
            const float value = model_value(seed, p, i);

            dtype_convert(values[p] + i * element_bytes, dtype, &value, DTYPE_F32, 1);
        }
        for (size_t half = 0; half < (halves ? 2 : 1) && p != skip; half++) {
            struct ckpt_testing_tensor *tensor = &tensors[count];

            tensor->name = model_name(p, !halves ? "" : half == 0 ? ".a" : ".b", names[count],
                                      sizeof(names[count]));
            tensor->dtype = dtype;
            model_shape(p, &tensor->rank, tensor->shape);
            tensor->data = values[p];
            if (halves) {
                tensor->shape[0] /= 2;
                tensor->data = values[p] + half * elements / 2 * element_bytes;
            }
            count++;
        }
    }
    ckpt_testing_write_config(folder, "{}");
    ckpt_testing_write_tensors(folder, "model.safetensors", tensors, count);
    for (size_t p = 0; p < MODEL_PARAMS; p++)
        free(values[p]);
    return folder;
}

static inline char *model_write(uint64_t seed, size_t skip)
{
    return model_write_as(seed, skip, false);
}

/* The same, opened. */
static inline struct ckpt *model_ckpt(uint64_t seed)
{
    char *folder = model_write(seed, SIZE_MAX);
    struct ckpt *ckpt = NULL;

    CHECK_OK(ckpt_open(folder, &ckpt, err));
    ckpt_testing_remove(folder); /* its files stay open */
    return ckpt;
}

/* Describes the parameters; names[] backs the descs. The loaders are the caller's. */
static inline void model_describe(struct offload_param_desc *descs, char (*names)[64])
{
    for (size_t p = 0; p < MODEL_PARAMS; p++) {
        struct offload_param_desc *desc = &descs[p];
        const size_t elements = model_element_count(p);
        const size_t kind = p == 0 ? 0 : (p - 1) % MODEL_PARAMS_PER_LAYER;
        char tensor[64];

        *desc = (struct offload_param_desc){
            .name = model_name(p, "", names[p], sizeof(names[p])),
            .dtype = model_dtype(p),
            .layer = p == 0 ? OFFLOAD_NO_LAYER : (int32_t)((p - 1) / MODEL_PARAMS_PER_LAYER),
            .part = kind < MODEL_UP ? OFFLOAD_PART_ATTENTION : OFFLOAD_PART_FFN,
            .default_selected = kind >= MODEL_UP,
            .by_rows = p > 0 && kind != MODEL_NORM,
            .by_lookup = p == 0,
        };
        model_shape(p, &desc->rank, desc->shape);
        CHECK_OK(loader_create(desc->dtype, elements, &desc->loader, err));
        if (p > 0 && kind == MODEL_PROJ) {
            uint64_t half[2] = { desc->shape[0] / 2, desc->shape[1] };

            CHECK_OK(loader_add_whole(desc->loader, model_name(p, ".a", tensor, sizeof(tensor)), 2,
                                      half, 0, err));
            CHECK_OK(loader_add_whole(desc->loader, model_name(p, ".b", tensor, sizeof(tensor)), 2,
                                      half, elements / 2, err));
        } else {
            CHECK_OK(loader_add_whole(desc->loader, desc->name, desc->rank, desc->shape, 0, err));
        }
    }
}

/* A model on a device. */
struct model {
    struct device *device;
    struct stream *compute;
    struct offload *offload;
    void *scratch;
    float *x, *h, *u;
    int32_t *ids;
};

#define MODEL_SCRATCH_BYTES 65536

static inline void model_open(struct model *model, const char *device_spec)
{
    const struct device_options options = { .thread_count = 1 };

    memset(model, 0, sizeof(*model));
    CHECK_OK(device_open(device_spec, &options, &model->device, err));
    CHECK_OK(stream_create(model->device, STREAM_COMPUTE, &model->compute, err));
    CHECK_OK(device_alloc(model->device, DEVICE_USE_SCRATCH, MODEL_SCRATCH_BYTES, &model->scratch,
                          err));
    model->x = model->scratch;
    model->h = model->x + 1024;
    model->u = model->h + 1024;
    model->ids = (int32_t *)((uint8_t *)model->scratch + 3 * 1024 * sizeof(float));
}

static inline enum status model_create(struct model *model, const struct offload_options *options,
                                       struct err *err)
{
    struct offload_param_desc descs[MODEL_PARAMS];
    char names[MODEL_PARAMS][64];

    model_describe(descs, names);
    return offload_create(model->device, descs, MODEL_PARAMS, MODEL_LAYERS, options, NULL,
                          &model->offload, err);
}

static inline void model_load(struct model *model, const struct offload_options *options,
                              const struct ckpt *ckpt)
{
    CHECK_OK(model_create(model, options, err));
    CHECK_OK(offload_load(model->offload, model->compute, ckpt, NULL, err));
}

static inline void model_unload(struct model *model)
{
    offload_destroy(model->offload);
    model->offload = NULL;
}

/* Everything taken must have been given back. */
static inline void model_close(struct model *model)
{
    struct device_memory_report report;

    model_unload(model);
    device_free(model->device, DEVICE_USE_SCRATCH, model->scratch, MODEL_SCRATCH_BYTES);
    stream_destroy(model->compute);
    device_memory_report(model->device, &report);
    assert_int_equal(report.used_bytes, 0);
    assert_int_equal(report.host_used_bytes, 0);
    device_close(model->device);
}

static inline enum status model_matmul(struct model *model, float *out, const float *x,
                                       size_t param, struct err *err)
{
    const struct tensor *weight = offload_tensor(model->offload, param);
    enum status st = STATUS_OK;

    for (uint64_t row = 0; row < weight->shape[0] && st == STATUS_OK;) {
        struct offload_rows rows;
        struct op op = {
            .kind = OP_MATMUL,
            .matmul = {
                .out = out + row,
                .x = x,
                .weight_dtype = weight->dtype,
                .row_count = MODEL_ROWS,
                .k_count = (uint32_t)weight->shape[1],
                .batch_count = 1,
                .out_row_stride = weight->shape[0],
                .x_row_stride = weight->shape[1],
            },
        };

        st = offload_rows_begin(model->offload, param, row, &rows, err);
        if (st != STATUS_OK)
            return st;
        op.matmul.weight = rows.data;
        op.matmul.n_count = (uint32_t)rows.count;
        st = device_launch(model->compute, &op, err);
        if (st == STATUS_OK)
            st = offload_rows_end(model->offload, &rows, err);
        row += rows.count;
    }
    return st;
}

static inline enum status model_embed(struct model *model, struct err *err)
{
    static const int32_t wanted[MODEL_ROWS] = { 3, 0, 11 }, in_order[MODEL_ROWS] = { 0, 1, 2 };
    const bool is_looked_up = offload_is_looked_up(model->offload, 0);
    const int32_t *ids = is_looked_up ? in_order : wanted;
    const struct tensor *table = offload_tensor(model->offload, 0);
    struct op op = {
        .kind = OP_EMBED,
        .embed = {
            .out = model->x,
            .table = table->data,
            .table_dtype = table->dtype,
            .ids = model->ids,
            .row_count = MODEL_ROWS,
            .width = MODEL_WIDTH,
            .table_row_count = MODEL_VOCAB,
            .out_row_stride = MODEL_WIDTH,
        },
    };
    enum status st = device_copy_in(model->compute, model->ids, ids, sizeof(wanted), err);

    if (st == STATUS_OK && is_looked_up)
        st = offload_lookup(model->offload, 0, wanted, MODEL_ROWS, &op.embed.table, err);

    return st == STATUS_OK ? device_launch(model->compute, &op, err) : st;
}

static inline enum status model_attention(struct model *model, uint32_t layer, struct err *err)
{
    const struct op norm = {
        .kind = OP_RMS_NORM,
        .rms_norm = {
            .out = model->h,
            .x = model->x,
            .weight = offload_tensor(model->offload, model_index(layer, MODEL_NORM))->data,
            .row_count = MODEL_ROWS,
            .group_count = 1,
            .width = MODEL_WIDTH,
            .out_row_stride = MODEL_WIDTH,
            .x_row_stride = MODEL_WIDTH,
            .epsilon = 1e-6f,
        },
    };
    enum status st = device_launch(model->compute, &norm, err);

    if (st != STATUS_OK)
        return st;
    return model_matmul(model, model->x, model->h, model_index(layer, MODEL_PROJ), err);
}

static inline enum status model_ffn(struct model *model, uint32_t layer, struct err *err)
{
    enum status st = model_matmul(model, model->u, model->x, model_index(layer, MODEL_UP), err);

    if (st != STATUS_OK)
        return st;
    return model_matmul(model, model->x, model->u, model_index(layer, MODEL_DOWN), err);
}

/* Queues one part of a pass, between its begin and end. */
static inline enum status model_part(struct model *model, uint32_t layer, enum offload_part part,
                                     struct err *err)
{
    enum status st = offload_begin(model->offload, layer, part, err);

    if (st == STATUS_OK)
        st = part == OFFLOAD_PART_ATTENTION ? model_attention(model, layer, err)
                                            : model_ffn(model, layer, err);
    if (st == STATUS_OK)
        st = offload_end(model->offload, layer, part, err);
    return st;
}

/* One whole pass; out[MODEL_OUT_COUNT]. */
static inline enum status model_pass(struct model *model, float *out, struct err *err)
{
    enum status st = model_embed(model, err);

    for (uint32_t layer = 0; layer < MODEL_LAYERS; layer++) {
        for (int part = 0; part < OFFLOAD_PART_COUNT && st == STATUS_OK; part++)
            st = model_part(model, layer, (enum offload_part)part, err);
    }
    if (st == STATUS_OK)
        st = device_copy_out(model->compute, out, model->x, MODEL_OUT_COUNT * sizeof(float), err);
    if (st == STATUS_OK)
        st = stream_sync(model->compute, err);
    if (st == STATUS_OK)
        offload_pass_done(model->offload);
    return st;
}

/* What a pass over the checkpoint of this seed gives when everything stays on the device. */
static inline void model_reference(const char *device_spec, uint64_t seed, float *out)
{
    struct offload_options options;
    struct ckpt *ckpt = model_ckpt(seed);
    struct model model;
    float sum = 0;

    offload_options_init(&options);
    model_open(&model, device_spec);
    model_load(&model, &options, ckpt);
    CHECK_OK(model_pass(&model, out, err));
    model_close(&model);
    ckpt_close(ckpt);
    for (size_t i = 0; i < MODEL_OUT_COUNT; i++)
        sum += out[i] * out[i];
    assert_true(sum > 1e-12f && sum < 1e12f); /* it computes something */
}

#endif
