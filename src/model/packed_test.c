/* model/packed_test.c - checkpoints whose quantised weights are in several tensors.
 *
 * The goldens (tests/golden/packed, made by tools/make_packed_goldens.py) are in each of the ways
 * that checkpoint/hf/packed.h lists, with what transformers computes in float32 with the weights
 * that they mean. With weights decoded to F32 logits are within the bound of other models, packed
 * within that of their types; and the same to the last bit wherever the weights live. */
#include "model/testing.h"

#include "checkpoint/testing.h"
#include "tensor/quant.h"

/* Largest difference of a logit, in standard deviations. */
#define CLOSE 1e-4
/* E4M3 is multiplied as it is; but MLA's cut matrices are rounded to F16. */
#define CLOSE_F16 1.5e-2
/* The same of integers, for which x is off by 0.5 % in each product; and where a router may then
 * choose another expert. */
#define CLOSE_INTEGERS 0.5
#define UNDECIDED 2.0

static const struct {
    const char *name;
    double bound;
    enum dtype dtype;
    bool experts;
} cases[] = {
    { "deepseek_v3_fp8", CLOSE_F16, DTYPE_F8_E4M3, true },
    { "qwen3_fp8", CLOSE, DTYPE_F8_E4M3, false },
    { "llama_fp8_short", CLOSE, DTYPE_F8_E4M3_16, false },
    { "llama_fp8_channel", CLOSE, DTYPE_F8_E4M3, false },
    { "llama_fp8_tensor", CLOSE, DTYPE_F8_E4M3, false },
    { "llama_gptq", CLOSE_INTEGERS, DTYPE_Q4_0, false },
    { "qwen3_gptq_asym", CLOSE_INTEGERS, DTYPE_INT4, false },
    { "llama_gptq_v2", CLOSE_INTEGERS, DTYPE_INT4, false },
    { "llama_gptq8", CLOSE_INTEGERS, DTYPE_Q8_0, false },
    { "llama_gptq_act", CLOSE_INTEGERS, DTYPE_INT4, false },
    { "llama_gptq_apart", CLOSE_INTEGERS, DTYPE_Q4_0, false },
    { "deepseek_v3_gptq_apart", UNDECIDED, DTYPE_Q4_0, true },
    { "qwen3_moe_gptq", UNDECIDED, DTYPE_Q4_0, true },
    { "llama_awq", CLOSE_INTEGERS, DTYPE_INT4, false },
    { "deepseek_v3_awq", CLOSE_INTEGERS, DTYPE_INT4, true },
    { "llama_w8a8", CLOSE_INTEGERS, DTYPE_Q8_0, false },
    { "llama_w4a16", CLOSE_INTEGERS, DTYPE_Q4_0, false },
    { "qwen3_w4a16_asym", CLOSE_INTEGERS, DTYPE_INT4, false },
    { "gpt_oss_mxfp4", CLOSE_INTEGERS, DTYPE_MXFP4, true },
};
#define CASE_COUNT (sizeof(cases) / sizeof(cases[0]))

static struct golden read_case(size_t i, char path[256])
{
    char name[128];

    (void)snprintf(path, 256, "tests/golden/packed/%s", cases[i].name);
    (void)snprintf(name, sizeof(name), "../packed/%s", cases[i].name);
    return golden_read(name);
}

/* How far the logits are off at most, in standard deviations. */
static double distance(const struct golden *golden, const float *logits, size_t count)
{
    double sum = 0, squares = 0, largest = 0;

    for (size_t i = 0; i < count; i++) {
        sum += golden->logits[i];
        squares += (double)golden->logits[i] * golden->logits[i];
        largest = fmax(largest, fabs((double)logits[i] - golden->logits[i]));
    }
    return largest / sqrt(squares / (double)count - pow(sum / (double)count, 2));
}

static size_t logit_count(const char *path, const struct golden *golden)
{
    const struct setting setting = { .device = "cpu" };
    struct loaded loaded = harness_open(path, &setting);
    const size_t count = (size_t)golden->prompt_count * model_info(loaded.model)->vocab_size;

    harness_close(&loaded);
    return count;
}

static void check_distance(size_t i, const char *path, const struct golden *golden,
                           const struct setting *setting, double bound)
{
    float *logits = harness_logits(path, setting, golden->prompt, golden->prompt_count, 32, NULL);
    const double off = distance(golden, logits, logit_count(path, golden));

    if (!(off <= bound))
        fail_msg("%s: a logit is off by %.3g standard deviations, the bound is %.3g",
                 cases[i].name, off, bound);
    free(logits);
}

static void logits_are_those_of_what_the_weights_mean(void **state)
{
    (void)state;
    for (size_t i = 0; i < CASE_COUNT; i++) {
        const struct setting decoded = { .device = "cpu", .dtype = "float32" };
        const struct setting scalar = { .device = "cpu", .cpu_kernels = "scalar" };
        const struct setting best = { .device = "cpu", .thread_count = 2 };
        char path[256];
        struct golden golden = read_case(i, path);

        check_distance(i, path, &golden, &decoded, CLOSE);
        check_distance(i, path, &golden, &scalar, cases[i].bound);
        check_distance(i, path, &golden, &best, cases[i].bound);
        free(golden.logits);
    }
}

static void weights_stay_packed(void **state)
{
    (void)state;
    for (size_t i = 0; i < CASE_COUNT; i++) {
        const struct setting setting = { .device = "cpu" };
        struct loaded loaded;
        char path[256];
        struct golden golden = read_case(i, path);

        loaded = harness_open(path, &setting);
        assert_int_equal(model_info(loaded.model)->weight_dtype, cases[i].dtype);
        harness_close(&loaded);
        free(golden.logits);
    }
}

/* Homes on the disk need a cache file: the first start makes it, the second reads it. */
static void nothing_changes_a_bit(void **state)
{
    static const struct setting settings[] = {
        { .device = "sim:memory=64MiB,link=0", .group_size = 1, .num_in_group = 1 },
        { .device = "sim:memory=64MiB,link=0", .group_size = 1, .num_in_group = 1, .disk = true },
        { .device = "sim:memory=64MiB,link=0", .group_size = 1, .num_in_group = 1, .disk = true,
          .params_glob = "*_proj*" },
        { .cpu_offload_bytes = 60000 },
        { .device = "sim:memory=64MiB,link=0", .group_size = 2, .num_in_group = 1,
          .home = OFFLOAD_HOME_SHM },
        { .automatic = true },
        { .device = "sim:memory=64MiB,link=0", .experts = true, .expert_slot_count = 4 },
        { .device = "sim:memory=64MiB,link=0", .experts = true, .disk = true,
          .expert_slot_count = 4 },
    };

    (void)state;
    for (size_t i = 0; i < CASE_COUNT; i++) {
        const struct setting plain = { .device = "cpu" };
        char path[256], cache[TESTING_FOLDER_BYTES];
        struct golden golden = read_case(i, path);
        const size_t count = logit_count(path, &golden);
        float *wanted = harness_logits(path, &plain, golden.prompt, golden.prompt_count, 32, NULL);

        testing_folder_make(cache, "packed");
        for (size_t s = 0; s < (cases[i].experts ? 8 : 6); s++) {
            for (uint32_t start = 0; start < (settings[s].disk ? 2 : 1); start++) {
                struct setting setting = settings[s];
                float *logits;
                setting.cache_dir = cache;
                logits = harness_logits(path, &setting, golden.prompt, golden.prompt_count, 7,
                                        NULL);
                if (memcmp((const void *)logits, (const void *)wanted, count * sizeof(float)) != 0)
                    fail_msg("%s: setting %zu gives other bits", cases[i].name, s);
                free(logits);
            }
        }
        free(wanted);
        free(golden.logits);
        testing_folder_remove(cache);
    }
}

/* Two columns of a matrix of an expert change their groups: then up multiplies x in another order
 * than gate. */
static void an_experts_orders_that_differ_are_refused(void **state)
{
    static const char golden[] = "tests/golden/packed/deepseek_v3_gptq_apart";
    const struct setting setting = { .device = "cpu" };
    char folder[TESTING_FOLDER_BYTES], path[256];
    const struct ckpt_tensor *order;
    struct ckpt *ckpt = NULL;
    struct loaded loaded;
    struct buf config, weights;
    struct err err;
    int32_t *groups;
    size_t other = 1;

    (void)state;
    buf_init(&config, 1 << 20);
    buf_init(&weights, 1 << 20);
    testing_folder_make(folder, "packed");
    assert_int_equal(ckpt_open(golden, &ckpt, &err), STATUS_OK);
    order = ckpt_find(ckpt, "model.layers.1.mlp.experts.2.up_proj.order");
    assert_non_null(order);
    (void)snprintf(path, sizeof(path), "%s/config.json", golden);
    assert_int_equal(file_read_all(path, &config, &err), STATUS_OK);
    (void)snprintf(path, sizeof(path), "%s/model.safetensors", golden);
    assert_int_equal(file_read_all(path, &weights, &err), STATUS_OK);
    groups = (int32_t *)(void *)(weights.data + order->offset_bytes);
    while (groups[other] == groups[0])
        other++;
    groups[other] = groups[0];
    groups[0] = 1 - groups[0];
    ckpt_testing_write_file(folder, "config.json", config.data, config.size);
    ckpt_testing_write_file(folder, "model.safetensors", weights.data, weights.size);
    assert_int_equal(harness_try(folder, &setting, NULL, &loaded, &err), STATUS_BAD_INPUT);
    if (strstr(err.message, "experts.2.up_proj.weight' has its columns in another order") == NULL)
        fail_msg("%s", err.message);
    ckpt_close(ckpt);
    buf_deinit(&config);
    buf_deinit(&weights);
    testing_folder_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_are_those_of_what_the_weights_mean),
        cmocka_unit_test(weights_stay_packed),
        cmocka_unit_test(nothing_changes_a_bit),
        cmocka_unit_test(an_experts_orders_that_differ_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
