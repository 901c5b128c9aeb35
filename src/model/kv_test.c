/* model/kv_test.c - KV caches in F16 and Q8_0: near the exact one, smaller, and as independent of
 * everything else.
 *
 * Method: a prompt of the small models, whose heads have no whole blocks of 32, and of the demo
 * model, whose latents have. How far logits may be off comes from the formats: an element of F16 is
 * off by at most 2^-11 of itself and one of Q8_0 by 1 / 254 of the largest in its block; layers add
 * that up, and some amplify it. */
#include "model/internal.h"
#include "model/testing.h"

#define AMPLIFIED 5

static double unit_of(enum dtype dtype)
{
    return dtype == DTYPE_F16 ? 0x1p-11 : 1.0 / 254;
}

/* 0 < distance: the option does something. */
static void check_near(const char *folder, const struct setting *device, enum dtype dtype,
                       const int32_t *prompt, uint32_t count)
{
    struct setting setting = *device;
    float *exact, *got;
    uint32_t vocab;
    double distance;

    exact = harness_logits(folder, &setting, prompt, count, 32, &vocab);
    setting.kv_dtype = dtype;
    got = harness_logits(folder, &setting, prompt, count, 32, NULL);
    distance = logits_distance(got, exact, (size_t)count * vocab);
    if (!(distance > 0 && distance <= AMPLIFIED * unit_of(dtype)))
        fail_msg("%s, cache in %s: logits are off by %g of their length", folder,
                 dtype_info(dtype)->name, distance);
    free(exact);
    free(got);
}

static const char *const names[] = { "qwen3", "deepseek_v3", "gemma3", "qwen2_window", "gpt_oss",
                                     "llama4" };
#define NAME_COUNT (sizeof(names) / sizeof(names[0]))

static const struct setting devices[] = {
    { .device = "cpu", .cpu_kernels = "scalar" },
    { .device = "cpu", .thread_count = 2 },
    { .device = "sim", .thread_count = 2 },
};
#define DEVICE_COUNT (sizeof(devices) / sizeof(devices[0]))

static void narrow_caches_are_near_the_exact_one(void **state)
{
    int32_t prompt[DEMO_PROMPT];

    (void)state;
    demo_prompt(prompt, 1);
    for (size_t d = 0; d < DEVICE_COUNT; d++) {
        for (size_t i = 0; i < NAME_COUNT; i++) {
            struct golden golden = golden_read(names[i]);
            char path[256];

            check_near(golden_path(names[i], path, sizeof(path)), &devices[d], DTYPE_F16,
                       golden.prompt, golden.prompt_count);
            free(golden.logits);
        }
        check_near(DEMO, &devices[d], DTYPE_F16, prompt, DEMO_PROMPT);
        check_near(DEMO, &devices[d], DTYPE_Q8_0, prompt, DEMO_PROMPT);
    }
}

/* Threads, chunks, pages and homes. */
static void check_ways(const char *folder, enum dtype dtype, const char *kernels,
                       const int32_t *prompt, uint32_t count)
{
    static const struct {
        struct setting setting;
        uint32_t chunk;
    } ways[] = {
        { { .device = "cpu", .thread_count = 2 }, 1 },
        { { .device = "cpu", .thread_count = 3, .page_size = 5 }, 7 },
        { { .device = "cpu", .page_size = 1, .row_count_max = 4 }, 3 },
        { { .device = "sim", .thread_count = 2, .group_size = 1, .num_in_group = 1 }, 5 },
        { { .device = "sim", .cpu_offload_bytes = 20000, .page_size = 16 }, 20 },
    };
    const struct setting plain = { .device = "cpu", .kv_dtype = dtype, .cpu_kernels = kernels };
    uint32_t vocab;
    float *wanted = harness_logits(folder, &plain, prompt, count, 32, &vocab);

    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        struct setting setting = ways[i].setting;
        float *got;

        setting.kv_dtype = dtype;
        setting.cpu_kernels = kernels;
        got = harness_logits(folder, &setting, prompt, count, ways[i].chunk, NULL);
        if (memcmp(got, wanted, (size_t)count * vocab * sizeof(float)) != 0)
            fail_msg("%s, cache in %s: way %zu gives other bits", folder, dtype_info(dtype)->name,
                     i);
        free(got);
    }
    free(wanted);
}

static void nothing_changes_a_bit(void **state)
{
    static const char *const tables[] = { NULL, "scalar" };
    int32_t prompt[DEMO_PROMPT];

    (void)state;
    demo_prompt(prompt, 1);
    for (size_t t = 0; t < sizeof(tables) / sizeof(tables[0]); t++) {
        for (size_t i = 0; i < NAME_COUNT; i++) {
            struct golden golden = golden_read(names[i]);
            char path[256];

            check_ways(golden_path(names[i], path, sizeof(path)), DTYPE_F16, tables[t],
                       golden.prompt, golden.prompt_count);
            free(golden.logits);
        }
        check_ways(DEMO, DTYPE_F16, tables[t], prompt, DEMO_PROMPT);
        check_ways(DEMO, DTYPE_Q8_0, tables[t], prompt, DEMO_PROMPT);
    }
}

/* What a token takes, and so what the cache takes of the device. */
static void narrow_caches_are_smaller(void **state)
{
    static const struct {
        enum dtype dtype;
        uint32_t block_bytes; /* of 32 elements */
    } all[] = { { DTYPE_F32, 128 }, { DTYPE_F16, 64 }, { DTYPE_Q8_0, 34 } };
    uint64_t elements = 0;

    (void)state;
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        const struct setting setting = { .device = "sim", .kv_dtype = all[i].dtype };
        struct loaded loaded = harness_open(DEMO, &setting);
        const struct model_info *info = model_info(loaded.model);
        const uint64_t slots = (uint64_t)info->kv_page_count * info->kv_page_size;
        struct device_memory_report memory;

        if (i == 0)
            elements = info->kv_bytes_per_token / 4;
        assert_int_equal(info->kv_dtype, all[i].dtype);
        assert_int_equal(info->kv_bytes_per_token, elements / 32 * all[i].block_bytes);
        assert_int_equal(model_kv_bytes(info, 10), 10 * info->kv_bytes_per_token);
        device_memory_report(loaded.device, &memory);
        assert_in_range(memory.used_by[DEVICE_USE_KV], slots * info->kv_bytes_per_token,
                        slots * info->kv_bytes_per_token + info->layer_count * 512);
        harness_close(&loaded);
    }
}

/* Marks a layer's keys or values in a page of the cache's, which nothing else may have. */
static void mark(const struct model *model, uint8_t *owned, const void *base, uint64_t offset_bytes,
                 uint64_t size_bytes)
{
    const uint64_t first = (uint64_t)((const char *)base - (const char *)model->kv) + offset_bytes;

    assert_in_range(first + size_bytes, 1, model->sizes.kv_bytes);
    for (uint64_t i = 0; i < size_bytes; i++)
        assert_int_equal(owned[first + i]++, 0);
}

/* Page p of all layers of a kind, marked; they must lie in the p-th piece of that kind's memory. */
static void check_page(const struct model *model, enum kv_kind kind, uint64_t p, uint8_t *owned)
{
    const struct model_config *config = &model->config;
    const uint64_t slots = model->sizes.page_size;
    const struct kv_widths widths = config->arch->kv_widths(config);
    const uint64_t k_bytes = dtype_row_bytes(config->kv_dtype, slots * widths.k);
    const uint64_t v_bytes = dtype_row_bytes(config->kv_dtype, slots * widths.v);
    const uint64_t piece_bytes = (k_bytes + v_bytes) * model->sizes.kv[kind].layer_count;
    const uint64_t first = (kind == KV_ALL ? 0 : model->sizes.kv[KV_ALL].bytes) + p * piece_bytes;

    for (uint32_t layer = 0; layer < config->layer_count; layer++) {
        const uint64_t stride = model__kv_strides(model, layer, 1, widths.k).page;

        if (model__kv_kind(config, layer) != kind)
            continue;
        mark(model, owned, model__kv_keys(model, layer),
             p * dtype_row_bytes(config->kv_dtype, stride), k_bytes);
        mark(model, owned, model__kv_values(model, layer),
             p * dtype_row_bytes(config->kv_dtype, stride), v_bytes);
    }
    for (uint64_t i = 0; i < piece_bytes; i++)
        assert_int_equal(owned[first + i], 1);
}

/* So a step that goes on to another page writes to memory in one piece, however many layers there
 * are: the system has no more to clear for it. */
static void a_page_of_all_layers_lies_together(void **state)
{
    static const struct setting settings[] = {
        { .device = "cpu" }, { .device = "sim", .kv_dtype = DTYPE_F16, .page_size = 5 },
    };
    static const char *const folders[] = { GOLDEN_FOLDER "/qwen3", GOLDEN_FOLDER "/gemma3",
                                           GOLDEN_FOLDER "/gpt_oss", DEMO };

    (void)state;
    for (size_t i = 0; i < 2 * sizeof(folders) / sizeof(folders[0]); i++) {
        struct loaded loaded = harness_open(folders[i / 2], &settings[i % 2]);
        const struct model_sizes *sizes = &loaded.model->sizes;
        uint8_t *owned = calloc(sizes->kv_bytes, 1);

        assert_non_null(owned);
        for (int kind = 0; kind < KV_KIND_COUNT; kind++)
            for (uint64_t p = 0; p < sizes->kv[kind].page_count; p++)
                check_page(loaded.model, (enum kv_kind)kind, p, owned);
        free(owned);
        harness_close(&loaded);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(narrow_caches_are_near_the_exact_one),
        cmocka_unit_test(nothing_changes_a_bit),
        cmocka_unit_test(narrow_caches_are_smaller),
        cmocka_unit_test(a_page_of_all_layers_lies_together),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
