/* model/kv.c - where a layer's keys and values lie.
 *
 *     layer 0: keys [slots][k width] | values [slots][v width] | layer 1: keys ...
 *
 * Token slot s of page p is row p * page_size + s, in every layer. MLA has no values: they are the
 * first part of its keys. The contents are undefined until written; attention reads only what
 * was. */
#include "model/internal.h"

float *model__kv_keys(const struct model *model, uint32_t layer)
{
    const uint64_t layer_bytes = model->sizes.kv_layer_k_bytes + model->sizes.kv_layer_v_bytes;

    return (float *)(void *)((char *)model->kv + layer * layer_bytes);
}

float *model__kv_values(const struct model *model, uint32_t layer)
{
    return (float *)(void *)((char *)model__kv_keys(model, layer) +
                             model->sizes.kv_layer_k_bytes);
}

uint32_t model__kv_slot_count(const struct model *model)
{
    return (uint32_t)(model->sizes.page_count * model->sizes.page_size);
}
