/* model/arch.c - the architectures that this build runs: one line each. */
#include <string.h>

#include "model/internal.h"

static const struct model_arch *const arches[] = {
    &model_arch_llama,
    &model_arch_mistral,
    &model_arch_mixtral,
    &model_arch_qwen2,
    &model_arch_qwen3,
    &model_arch_qwen2_moe,
    &model_arch_qwen3_moe,
    &model_arch_olmoe,
    &model_arch_glm4,
    &model_arch_glm4_moe,
    &model_arch_phi3,
    &model_arch_granite,
    &model_arch_granite_moe,
    &model_arch_granite_moe_shared,
    &model_arch_gemma2,
    &model_arch_gemma3,
    &model_arch_gemma3_sees,
    &model_arch_llama4,
    &model_arch_llama4_sees,
    &model_arch_gpt_oss,
    &model_arch_deepseek_v2,
    &model_arch_deepseek_v3,
};

#define ARCH_COUNT (sizeof(arches) / sizeof(arches[0]))

const struct model_arch *model__arch_find(const char *architecture, const char *model_type)
{
    for (size_t i = 0; i < ARCH_COUNT; i++) {
        if (architecture != NULL ? strcmp(arches[i]->architecture, architecture) == 0
                                 : model_type != NULL &&
                                       strcmp(arches[i]->model_type, model_type) == 0)
            return arches[i];
    }
    return NULL;
}

const char *const *model_architectures(void)
{
    /* Spelled out, as the table above holds addresses, not constants; a test compares the two. */
    static const char *const names[] = {
        "LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Qwen2ForCausalLM",
        "Qwen3ForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM", "OlmoeForCausalLM",
        "Glm4ForCausalLM", "Glm4MoeForCausalLM", "Phi3ForCausalLM", "GraniteForCausalLM",
        "GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM", "Gemma2ForCausalLM",
        "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration", "Llama4ForCausalLM",
        "Llama4ForConditionalGeneration", "GptOssForCausalLM", "DeepseekV2ForCausalLM",
        "DeepseekV3ForCausalLM", NULL,
    };

    return names;
}
