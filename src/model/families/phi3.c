/* model/families/phi3.c - Phi-3, Phi-3.5 and Phi-4 without mixtures (Abdin et al. 2024, arXiv
 * 2404.14219).
 *
 *     x += grouped-query attention of rms_norm(x)                (gqa.c)
 *     h = rms_norm(x);  x += (silu(h Wgate) * (h Wup)) Wdown
 *
 * Checkpoints have q, k and v in one matrix, and gate and up in another, as they are here anyway.
 * Those for long contexts have LongRoPE (rope.c), Phi-4-mini rotates three quarters of a head. A
 * sliding window is every layer's. Facts from transformers 5.23 (models/phi3). */
#include "model/internal.h"

static void read_phi3(struct config_reader *reader, struct model_config *config)
{
    static const struct gqa_missing missing = { 0, 0, { .theta = 10000.0, .partial = 1.0 } };

    if (!model__read_has(reader, "rms_norm_eps"))
        config->norm_epsilon = 1e-5f; /* the class's own */
    model__gqa_read_heads(reader, config, &missing);
    model__read_window(reader, config, 0);
    model__window_everywhere(config);
}

const struct model_arch model_arch_phi3 = {
    .architecture = "Phi3ForCausalLM", .model_type = "phi3", .read_config = read_phi3,
    .describe_layer = model__dense_describe_layer, .slice_ffn = model__slice_ffn,
    .ffn = model__pass_ffn, MODEL_ARCH_GQA,
};
