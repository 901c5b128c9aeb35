/* model/window.c - layers whose rows see only the last positions: which they are, and what of their
 * keys and values is kept.
 *
 * A row at position p of a layer with a window W sees positions p - W + 1 .. p (transformers'
 * sliding_window_overlay; Beltagy et al. 2020, arXiv 2004.05150, section 3.1). A step may hold C
 * rows of one sequence, which are written before any of them is attended to, so that C + W - 1
 * positions are alive at once. Pages are used in turn like a ring: page j of the sequence lies in
 * the ring's page j modulo its size, and what it overwrites nobody can see any more. */
#include <string.h>

#include "base/json.h"
#include "model/internal.h"

bool model__read_layer_types(struct config_reader *reader, struct model_config *config)
{
    const json_t *types = NULL;

    if (reader->status == STATUS_OK)
        reader->status = json_get_array(reader->json, "layer_types", reader->what, &types,
                                        reader->err);
    if (reader->status != STATUS_OK || types == NULL)
        return false;
    if (json_array_size(types) != config->layer_count)
        model__read_refuse(reader, "\"layer_types\" has %zu entries, \"num_hidden_layers\" is %u",
                           json_array_size(types), config->layer_count);
    for (uint32_t i = 0; i < config->layer_count; i++) {
        const char *type = json_string_value(json_array_get(types, i));

        config->is_sliding[i] = type != NULL && strcmp(type, "sliding_attention") == 0;
        if (!config->is_sliding[i] && (type == NULL || strcmp(type, "full_attention") != 0))
            model__read_refuse(reader, "entry %u of \"layer_types\" is \"%.32s\", only "
                               "full_attention and sliding_attention are known", i,
                               type != NULL ? type : json_kind(json_array_get(types, i)));
    }
    return true;
}

void model__read_window(struct config_reader *reader, struct model_config *config,
                        uint32_t missing)
{
    const uint32_t fallback = model__read_is_null(reader, "sliding_window") ? 0 : missing;

    config->sliding_window =
        model__read_count_or(reader, "sliding_window", 1, CONFIG_CONTEXT_MAX, fallback);
}

void model__window_everywhere(struct model_config *config)
{
    for (uint32_t i = 0; i < config->layer_count; i++)
        config->is_sliding[i] = config->sliding_window != 0;
}

bool model__layer_has_window(const struct model_config *config, uint32_t layer)
{
    return config->sliding_window != 0 && config->is_sliding[layer];
}

uint32_t model__window_layer_count(const struct model_config *config)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < config->layer_count; i++)
        count += model__layer_has_window(config, i);
    return count;
}

uint64_t model_kv_bytes(const struct model_info *info, uint64_t token_count)
{
    const uint64_t seen = info->sliding_window > 0 && info->sliding_window < token_count
                              ? info->sliding_window : token_count;

    return (info->kv_bytes_per_token - info->kv_window_bytes_per_token) * token_count +
           info->kv_window_bytes_per_token * seen;
}

uint64_t model__window_pages(const struct model_config *config, uint64_t row_count,
                             uint64_t page_size)
{
    const uint64_t alive = row_count + config->sliding_window - 1;

    /* the first of them may be the last of its page */
    return (alive + page_size - 2) / page_size + 1;
}
