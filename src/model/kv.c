/* model/kv.c - where a layer's keys and values lie.
 *
 *     the layers that keep all:  keys [pages][k page] | values [pages][v page] | keys ...
 *     those that have a window:  keys [pages][k page] | values [pages][v page] | keys ...
 *
 * or, where memory is lazy (device.h), both of them
 *
 *     page 0: keys [k page] | values [v page] | the next layer's keys ...
 *     page 1: ...
 *
 * so that a sequence takes memory a large page at a time, and little more than it fills. With
 * layers apart each has large pages of its own, which all end at the same position: the step that
 * wrote llama-1b's 2049th in F16 waited 0.2 s for 64 MiB to be cleared. What it costs: a layer's
 * keys lie in more large pages, and attention takes 1 to 4 % longer for one row, no longer for
 * many (docs/benchmarks.md).
 *
 * A page is [head][slot][width], or [slot][head][width] on a device that does not have
 * OP_FEATURE_KV_BY_HEAD. Token
 * slot s of page p is slot p * page_size + s, in every layer of a kind; the two kinds have pages of
 * their own. All elements are of config's kv_dtype. MLA has no values: they are the first
 * part of its keys. The contents are undefined until written; attention reads only what was. */
#include "model/internal.h"

enum status model__kv_check(const struct model_config *config, struct err *err)
{
    const struct kv_widths widths = config->arch->kv_widths(config);
    const uint32_t block = dtype_info(config->kv_dtype)->block_elements;

    if (config->kv_dtype != DTYPE_F32 && config->kv_dtype != DTYPE_F16 &&
        config->kv_dtype != DTYPE_Q8_0)
        return err_set(err, STATUS_BAD_INPUT, "a KV cache is F32, F16 or Q8_0, not %s",
                       dtype_info(config->kv_dtype)->name);
    if (widths.part % block != 0)
        return err_set(err, STATUS_BAD_INPUT,
                       "a KV cache in %s has blocks of %u elements, and this model's heads have "
                       "%u: --kv-cache-dtype f16 works", dtype_info(config->kv_dtype)->name,
                       block, widths.part);
    return STATUS_OK;
}

uint64_t model__kv_slot_bytes(const struct model_config *config)
{
    const struct kv_widths widths = config->arch->kv_widths(config);

    return dtype_row_bytes(config->kv_dtype, (uint64_t)widths.k + widths.v);
}

enum kv_kind model__kv_kind(const struct model_config *config, uint32_t layer)
{
    return model__layer_has_window(config, layer) ? KV_WINDOW : KV_ALL;
}

void *model__kv_keys(const struct model *model, uint32_t layer)
{
    const struct model_sizes *sizes = &model->sizes;
    const enum kv_kind kind = model__kv_kind(&model->config, layer);
    uint64_t offset_bytes = kind == KV_ALL ? 0 : sizes->kv[KV_ALL].bytes;

    for (uint32_t i = 0; i < layer; i++)
        if (model__kv_kind(&model->config, i) == kind)
            offset_bytes += sizes->kv[kind].k_bytes + sizes->kv[kind].v_bytes;
    return (char *)model->kv + offset_bytes;
}

void *model__kv_values(const struct model *model, uint32_t layer)
{
    const enum kv_kind kind = model__kv_kind(&model->config, layer);

    return (char *)model__kv_keys(model, layer) + model->sizes.kv[kind].k_bytes;
}

struct op_cache_strides model__kv_strides(const struct model *model, uint32_t layer,
                                          uint32_t head_count, uint32_t width)
{
    const struct model_sizes *sizes = &model->sizes;
    const struct kv_widths widths = model->config.arch->kv_widths(&model->config);
    struct op_cache_strides strides =
        (device_info(model->device)->op_features & OP_FEATURE_KV_BY_HEAD) != 0
            ? op_cache_by_head(head_count, sizes->page_size, width)
            : op_cache_by_slot(head_count, sizes->page_size, width);

    if (sizes->kv_by_page)
        strides.page = sizes->page_size * ((uint64_t)widths.k + widths.v) *
                       sizes->kv[model__kv_kind(&model->config, layer)].layer_count;
    return strides;
}

uint32_t model__kv_slot_count(const struct model *model, uint32_t layer)
{
    const struct model_sizes *sizes = &model->sizes;

    return (uint32_t)(sizes->kv[model__kv_kind(&model->config, layer)].page_count *
                      sizes->page_size);
}
