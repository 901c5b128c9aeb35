/* model/gguf_test.c - GGUF files of models whose answers are known.
 *
 * The goldens (tests/golden/gguf, made by tools/make_gguf_goldens.py) are models of
 * tests/golden/models in the layout that llama.cpp's converter gives them; logits must be those of
 * transformers, within the same bound. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "model/testing.h"

#define CLOSE 1e-4 /* of the logits' standard deviation */

static void check_file(const char *file, const char *model, const struct setting *setting)
{
    const struct paging paging = { 0, 1 };
    struct golden golden = golden_read(model);
    struct loaded loaded;
    double sum = 0.0, squares = 0.0, bound;
    char path[256];
    float *logits;
    size_t count;

    (void)snprintf(path, sizeof(path), "tests/golden/gguf/%s.gguf", file);
    loaded = harness_open(path, setting);
    count = (size_t)golden.prompt_count * model_info(loaded.model)->vocab_size;
    logits = logits_alloc(loaded.model, golden.prompt_count);
    harness_run(loaded.model, golden.prompt, 0, golden.prompt_count, 32, &paging, logits);
    for (size_t i = 0; i < count; i++) {
        sum += (double)golden.logits[i];
        squares += (double)golden.logits[i] * (double)golden.logits[i];
    }
    bound = CLOSE * sqrt(squares / (double)count - sum / (double)count * (sum / (double)count));
    for (size_t i = 0; i < count; i++)
        if (!(fabs((double)logits[i] - (double)golden.logits[i]) <= bound))
            fail_msg("%s: logit %zu is %.7g, transformers has %.7g, the bound is %.2g", file, i,
                     (double)logits[i], (double)golden.logits[i], bound);
    free(logits);
    free(golden.logits);
    harness_close(&loaded);
}

static void logits_are_those_of_the_same_model(void **state)
{
    static const char *const files[][2] = {
        { "llama_llama3", "llama_llama3" },
        { "mixtral", "mixtral" },
        { "mixtral_apart", "mixtral" },
        { "qwen2_tied_yarn", "qwen2_tied_yarn" },
        { "qwen3_moe-00001-of-00002", "qwen3_moe" },
        { "qwen3_moe-00002-of-00002", "qwen3_moe" },
        { "qwen2_moe", "qwen2_moe" },
        { "olmoe", "olmoe" },
        { "glm4", "glm4" },
        { "glm4_moe", "glm4_moe" },
        { "phi3_long", "phi3_long" },
        { "granite", "granite" },
        { "granite_moe", "granite_moe" },
        { "granite_moe_shared", "granite_moe_shared" },
        { "deepseek_v2_lite", "deepseek_v2_lite" },
        { "deepseek_v3-00001-of-00002", "deepseek_v3" },
    };
    const struct setting resident = { .device = "cpu" };
    const struct setting moving = { .device = "sim:memory=64MiB,link=0", .group_size = 1,
                                    .num_in_group = 1 };

    (void)state;
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        check_file(files[i][0], files[i][1], &resident);
        check_file(files[i][0], files[i][1], &moving);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_are_those_of_the_same_model),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
