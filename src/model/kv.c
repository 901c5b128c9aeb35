/* model/kv.c - where a layer's keys and values lie.
 *
 *     the layers that keep all:  keys [slots][k width] | values [slots][v width] | keys ...
 *     those that have a window:  keys [slots][k width] | values [slots][v width] | keys ...
 *
 * Token slot s of page p is row p * page_size + s, in every layer of a kind; the two kinds have
 * pages of their own. MLA has no values: they are the first part of its keys. The contents are
 * undefined until written; attention reads only what was. */
#include "model/internal.h"

enum kv_kind model__kv_kind(const struct model_config *config, uint32_t layer)
{
    return model__layer_has_window(config, layer) ? KV_WINDOW : KV_ALL;
}

float *model__kv_keys(const struct model *model, uint32_t layer)
{
    const struct model_sizes *sizes = &model->sizes;
    const enum kv_kind kind = model__kv_kind(&model->config, layer);
    uint64_t offset_bytes = kind == KV_ALL ? 0 : sizes->kv[KV_ALL].layer_count *
                                                     (sizes->kv[KV_ALL].layer_k_bytes +
                                                      sizes->kv[KV_ALL].layer_v_bytes);

    for (uint32_t i = 0; i < layer; i++)
        if (model__kv_kind(&model->config, i) == kind)
            offset_bytes += sizes->kv[kind].layer_k_bytes + sizes->kv[kind].layer_v_bytes;
    return (float *)(void *)((char *)model->kv + offset_bytes);
}

float *model__kv_values(const struct model *model, uint32_t layer)
{
    const enum kv_kind kind = model__kv_kind(&model->config, layer);

    return (float *)(void *)((char *)model__kv_keys(model, layer) +
                             model->sizes.kv[kind].layer_k_bytes);
}

uint32_t model__kv_slot_count(const struct model *model, uint32_t layer)
{
    const struct model_sizes *sizes = &model->sizes;

    return (uint32_t)(sizes->kv[model__kv_kind(&model->config, layer)].page_count *
                      sizes->page_size);
}
