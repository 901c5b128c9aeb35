/* model/gguf_test.c - GGUF files of models whose answers are known.
 *
 * The goldens (tests/golden/gguf, made by tools/make_gguf_goldens.py) are models of
 * tests/golden/models in the layout that llama.cpp's converter gives them; logits must be those of
 * transformers, within the same bound. So must those of files that are made here, of the folders
 * themselves and of the goldens. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>
#include <cmocka.h>

#include "checkpoint/convert/convert.h"
#include "checkpoint/testing.h"
#include "model/testing.h"

#define CLOSE 1e-4 /* of the logits' standard deviation */

static void check_file(const char *path, const char *model, const struct setting *setting)
{
    const struct paging paging = { 0, 1 };
    struct golden golden = golden_read(model);
    struct loaded loaded;
    double sum = 0.0, squares = 0.0, bound;
    float *logits;
    size_t count;

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
            fail_msg("%s: logit %zu is %.7g, transformers has %.7g, the bound is %.2g", path, i,
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
        { "gemma2", "gemma2" },
        { "gemma3", "gemma3" },
        { "granite", "granite" },
        { "llama4_plain", "llama4_plain" },
        { "gpt_oss", "gpt_oss" },
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
        char path[256];
        (void)snprintf(path, sizeof(path), "tests/golden/gguf/%s.gguf", files[i][0]);
        check_file(path, files[i][1], &resident);
        check_file(path, files[i][1], &moving);
    }
}

/* Makes OUT of the model, or returns why not. */
static const char *convert(const char *source, const char *out, const char *type, struct err *err)
{
    const struct convert_options options = { .out = out, .type = type, .thread_count = 2 };
    struct ckpt *ckpt = NULL;
    struct convert *convert = NULL;
    enum status st = ckpt_open(source, &ckpt, err);

    if (st == STATUS_OK)
        st = convert_open(ckpt, &options, &convert, err);
    if (st == STATUS_OK)
        st = convert_run(convert, NULL, err);
    convert_close(convert);
    ckpt_close(ckpt);
    return st == STATUS_OK ? NULL : err->message;
}

/* Folders become files of the same model, and files again, whatever order their tensors had. What
 * the format has no word for is refused. */
static void what_is_converted_is_the_same_model(void **state)
{
    static const char *const refused[][2] = {
        { "deepseek_v2_groups", "mscale_all_dim" },
        { "deepseek_v3_plain", "rope_interleave" },
        { "qwen3_moe_mixed", "layers without experts" },
        { "qwen2_moe_mixed", "layers without experts" },
        { "qwen2_window", "sliding window" },
        { "llama4", "attention_chunk_size" },
        { "llama4_images", "attention_chunk_size" },
        { "gpt_oss_plain", "layer_types" },
        { "deepseek_v2_biases", NULL }, /* here the reader has no use for the biases */
    };
    const struct setting resident = { .device = "cpu" };
    char *const folder = ckpt_testing_folder();
    char source[256], once[256], twice[256];

    (void)state;
    (void)snprintf(once, sizeof(once), "%s/once.gguf", folder);
    (void)snprintf(twice, sizeof(twice), "%s/twice.gguf", folder);
    for (size_t i = 0; i < GOLDEN_COUNT; i++) {
        const char *why, *words = "";
        struct err err;
        for (size_t j = 0; j < sizeof(refused) / sizeof(refused[0]); j++)
            if (strcmp(golden_names[i], refused[j][0]) == 0)
                words = refused[j][1];
        if (words == NULL)
            continue;
        (void)snprintf(source, sizeof(source), GOLDEN_FOLDER "/%s", golden_names[i]);
        why = convert(source, once, "F32", &err);
        if (words[0] != '\0') {
            assert_non_null(why);
            if (strstr(why, words) == NULL)
                fail_msg("'%s' does not say '%s'", why, words);
            continue;
        }
        if (why != NULL)
            fail_msg("%s", why);
        check_file(once, golden_names[i], &resident);
        if (convert(once, twice, "F32", &err) != NULL)
            fail_msg("%s", err.message);
        check_file(twice, golden_names[i], &resident);
    }
    ckpt_testing_remove(folder);
}

/* gpt-oss's experts stay in MXFP4 whatever the type is, from a folder and from a file; their biases
 * are F32. */
static void experts_in_mxfp4_stay(void **state)
{
    static const struct {
        const char *name;
        enum dtype dtype;
    } wanted[] = {
        { "model.layers.0.mlp.experts.gate_proj.weight", DTYPE_MXFP4 },
        { "model.layers.1.mlp.experts.down_proj.weight", DTYPE_MXFP4 },
        { "model.layers.0.mlp.experts.up_proj.bias", DTYPE_F32 },
        { "model.layers.0.self_attn.q_proj.weight", DTYPE_Q8_0 },
    };
    const struct setting decoded = { .device = "cpu", .dtype = "float32" };
    char *const folder = ckpt_testing_folder();
    char once[256], twice[256];
    struct ckpt *ckpt = NULL;
    struct err err;

    (void)state;
    (void)snprintf(once, sizeof(once), "%s/once.gguf", folder);
    (void)snprintf(twice, sizeof(twice), "%s/twice.gguf", folder);
    if (convert("tests/golden/packed/gpt_oss_mxfp4", once, "F32", &err) != NULL)
        fail_msg("%s", err.message);
    check_file(once, "../packed/gpt_oss_mxfp4", &decoded);
    if (convert(once, twice, "Q8_0", &err) != NULL || ckpt_open(twice, &ckpt, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
        const struct ckpt_tensor *const tensor = ckpt_find(ckpt, wanted[i].name);
        assert_non_null(tensor);
        assert_int_equal(tensor->dtype, wanted[i].dtype);
    }
    ckpt_close(ckpt);
    ckpt_testing_remove(folder);
}

/* A folder with a golden's weights, and its config.json with some fields replaced. */
static char *changed_folder(const char *golden, const char *change)
{
    char *const folder = ckpt_testing_folder();
    char path[4096 + 256], here[4096], link[256];
    json_t *config = NULL, *changes = NULL;
    struct err err;

    (void)snprintf(path, sizeof(path), GOLDEN_FOLDER "/%s/config.json", golden);
    assert_int_equal(json_read_file(path, 1 << 20, &config, &err), STATUS_OK);
    assert_int_equal(json_read(change, strlen(change), "change", &changes, &err), STATUS_OK);
    assert_int_equal(json_object_update(config, changes), 0);
    (void)snprintf(path, sizeof(path), "%s/config.json", folder);
    assert_int_equal(json_dump_file(config, path, 0), 0);
    assert_non_null(getcwd(here, sizeof(here)));
    (void)snprintf(path, sizeof(path), "%s/" GOLDEN_FOLDER "/%s/model.safetensors", here, golden);
    (void)snprintf(link, sizeof(link), "%s/model.safetensors", folder);
    assert_int_equal(symlink(path, link), 0);
    json_decref(config);
    json_decref(changes);
    return folder;
}

static void what_the_format_cannot_say_is_refused(void **state)
{
    static const struct {
        const char *golden, *change, *words;
    } cases[] = {
        { "gemma2", "{\"query_pre_attn_scalar\": 10}", "query_pre_attn_scalar" },
        { "gemma2", "{\"attn_logit_softcapping\": null}", "attn_logit_softcapping" },
        { "gemma2", "{\"final_logit_softcapping\": null}", "final_logit_softcapping" },
        { "gemma2", "{\"tie_word_embeddings\": false}", "tie_word_embeddings" },
        { "gemma2", "{\"sliding_window\": null}", "sliding_window" },
        { "gemma3", "{\"query_pre_attn_scalar\": 10}", "query_pre_attn_scalar" },
        { "gemma3", "{\"rope_parameters\": {\"sliding_attention\": {\"rope_type\": \"linear\", "
                    "\"factor\": 2}}}", "layers with a window is scaled" },
        { "gemma3_sees", "{\"text_config\": null}", "text_config" },
        { "llama4_plain", "{\"attention_chunk_size\": null}", "attention_chunk_size" },
        { "llama4_plain", "{\"no_rope_layers\": [1, 1, 0, 1]}", "no_rope_layers" },
        { "llama4_plain", "{\"attn_temperature_tuning\": false}", "attn_temperature_tuning" },
        { "llama4_plain", "{\"floor_scale\": 4096}", "floor_scale" },
        { "llama4_plain", "{\"use_qk_norm\": false}", "use_qk_norm" },
        { "llama4_plain", "{\"moe_layers\": [0, 3]}", "moe_layers" },
        { "llama4_plain", "{\"interleave_moe_layer_step\": 0}", "moe_layers" },
        { "gpt_oss", "{\"attention_bias\": false}", "attention_bias" },
        { "gpt_oss", "{\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 16.0}}",
          "truncate" },
        { "phi3_long", "{\"rope_scaling\": {\"type\": \"longrope\", \"long_factor\": [1], "
                       "\"short_factor\": [1]}}", "long_factor" },
        { "phi3_long", "{\"model_type\": \"qwen2\"}", "GGUF's qwen2 has no word" },
        { "../packed/llama_gptq_act", "{}", "desc_act" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *const folder = changed_folder(cases[i].golden, cases[i].change);
        char out[256];
        struct err err;
        (void)snprintf(out, sizeof(out), "%s/out.gguf", folder);
        if (convert(folder, out, "F32", &err) == NULL)
            fail_msg("%s with %s is written", cases[i].golden, cases[i].change);
        if (strstr(err.message, cases[i].words) == NULL)
            fail_msg("'%s' does not say '%s'", err.message, cases[i].words);
        ckpt_testing_remove(folder);
    }
}

/* Experts that were one by one in a file become stacks. */
static void files_are_converted_as_folders_are(void **state)
{
    static const char *const files[][2] = {
        { "mixtral_apart", "mixtral" },
        { "qwen3_moe-00002-of-00002", "qwen3_moe" },
        { "deepseek_v3-00001-of-00002", "deepseek_v3" },
        { "llama_llama3", "llama_llama3" },
        { "phi3_long", "phi3_long" },
    };
    const struct setting resident = { .device = "cpu" };
    char *const folder = ckpt_testing_folder();
    char source[256], out[256];
    struct err err;

    (void)state;
    (void)snprintf(out, sizeof(out), "%s/out.gguf", folder);
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        (void)snprintf(source, sizeof(source), "tests/golden/gguf/%s.gguf", files[i][0]);
        if (convert(source, out, "F32", &err) != NULL)
            fail_msg("%s", err.message);
        check_file(out, files[i][1], &resident);
    }
    ckpt_testing_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_are_those_of_the_same_model),
        cmocka_unit_test(what_is_converted_is_the_same_model),
        cmocka_unit_test(experts_in_mxfp4_stay),
        cmocka_unit_test(what_the_format_cannot_say_is_refused),
        cmocka_unit_test(files_are_converted_as_folders_are),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
