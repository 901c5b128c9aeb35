/* model/config_fuzz.c - any bytes as a config.json: read it or refuse it, never more than that.
 *
 * What is accepted must hold what the rest of model/ builds on. */
#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "base/json.h"
#include "model/internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct model_config *config)
{
    const struct kv_widths widths = config->arch->kv_widths(config);

    assert(config->layer_count >= 1 && config->layer_count <= CONFIG_LAYERS_MAX);
    assert(config->head_count >= 1 && config->head_count % config->kv_head_count == 0);
    assert(config->rope_pair_count >= 1 && config->rope_pair_count <= CONFIG_ROPE_PAIRS_MAX);
    assert(widths.k > 0 && widths.k <= CONFIG_HEADS_MAX * CONFIG_HEAD_DIM_MAX);
    assert(isfinite(config->attention_scale) && isfinite(config->rope_scale));
    for (uint32_t i = 0; i < config->rope_pair_count; i++)
        assert(isfinite(config->rope_frequencies[i]));
    assert(config->eos_count <= MODEL_EOS_MAX);
    if (config->expert_count > 0) {
        assert(config->expert_count % config->group_count == 0);
        assert(config->expert_top_k >= 1);
        assert(config->expert_top_k <= config->expert_count / config->group_count *
                                           config->kept_group_count);
    }
    for (uint32_t i = 0; i < config->layer_count; i++)
        (void)model__config_layer_has_experts(config, i);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_config config;
    json_t *json = NULL;
    struct err err;

    if (json_read((const char *)data, size, "fuzz", &json, &err) != STATUS_OK)
        return 0;
    if (model__config_read(json, "fuzz", &config, &err) == STATUS_OK) {
        check(&config);
        if (model__config_read_generation(json, "fuzz", &config, &err) == STATUS_OK)
            check(&config);
    }
    json_decref(json);
    return 0;
}
