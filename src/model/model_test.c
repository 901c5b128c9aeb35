/* model/model_test.c - models against transformers, and against themselves.
 *
 * The goldens (tests/golden/models, made by tools/make_model_goldens.py) are what transformers
 * computes in float32 for tiny random checkpoints of every architecture. The bound is 1e-4 of the
 * logits' standard deviation in each dtype: weights of F16 and BF16 are exact in float32,
 * activations are float32 on both sides, so only the order of summation differs.
 *
 * On one device nothing may change a bit: not where weights live, not the chunk, not the pages, not
 * what else is in the batch, not the number of threads. */
#include "model/testing.h"

#define CLOSE 1e-4

static const struct setting devices[] = {
    { .device = "cpu", .cpu_kernels = "scalar" },
    { .device = "cpu", .thread_count = 2 },
    { .device = "sim", .thread_count = 2, .group_size = 2, .num_in_group = 1 },
};
#define DEVICE_COUNT (sizeof(devices) / sizeof(devices[0]))

static double deviation(const float *values, size_t count)
{
    double sum = 0, squares = 0;

    for (size_t i = 0; i < count; i++) {
        sum += values[i];
        squares += (double)values[i] * values[i];
    }
    return sqrt(squares / (double)count - sum / (double)count * (sum / (double)count));
}

static void check_logits(const char *name, const struct golden *golden, const float *logits,
                         uint32_t vocab_size)
{
    const size_t count = (size_t)golden->prompt_count * vocab_size;
    const double bound = CLOSE * deviation(golden->logits, count);

    for (size_t i = 0; i < count; i++)
        if (!(fabs((double)logits[i] - golden->logits[i]) <= bound))
            fail_msg("%s: logit %zu of row %zu is %.7g, transformers has %.7g, the bound is %.2g",
                     name, i % vocab_size, i / vocab_size, (double)logits[i],
                     (double)golden->logits[i], bound);
}

static void check_greedy(const char *name, struct model *model, const struct golden *golden,
                         float *row)
{
    const struct paging paging = { 0, 1 };
    const uint32_t vocab_size = model_info(model)->vocab_size;

    for (uint32_t i = 0; i < golden->greedy_count; i++) {
        const int32_t id = best_of(row, vocab_size);

        if (id != golden->greedy[i])
            fail_msg("%s: greedy id %u is %d, transformers has %d", name, i, id,
                     golden->greedy[i]);
        harness_run(model, &id, golden->prompt_count + i, 1, 1, &paging, row);
    }
}

static void goldens_are_met_on(const struct setting *setting)
{
    for (size_t i = 0; i < GOLDEN_COUNT; i++) {
        struct golden golden = golden_read(golden_names[i]);
        struct loaded loaded = harness_open_golden(golden_names[i], setting);
        const uint32_t vocab_size = model_info(loaded.model)->vocab_size;
        float *logits = logits_alloc(loaded.model, golden.prompt_count);
        const struct paging paging = { 0, 1 };

        harness_run(loaded.model, golden.prompt, 0, golden.prompt_count, 32, &paging, logits);
        check_logits(golden_names[i], &golden, logits, vocab_size);
        check_greedy(golden_names[i], loaded.model, &golden,
                     logits + (size_t)(golden.prompt_count - 1) * vocab_size);
        free(logits);
        free(golden.logits);
        harness_close(&loaded);
    }
}

static void logits_are_those_of_transformers_scalar(void **state)
{
    (void)state;
    goldens_are_met_on(&devices[0]);
}

static void logits_are_those_of_transformers_cpu(void **state)
{
    (void)state;
    goldens_are_met_on(&devices[1]);
}

static void logits_are_those_of_transformers_sim(void **state)
{
    (void)state;
    goldens_are_met_on(&devices[2]);
}

/* The golden prompt's logits, resident, in one chunk: what every other way must repeat. */
static float *plain_logits(const char *name, const struct setting *device,
                           const struct golden *golden)
{
    const struct setting setting = { .device = device->device,
                                     .cpu_kernels = device->cpu_kernels };
    const struct paging paging = { 0, 1 };
    struct loaded loaded = harness_open_golden(name, &setting);
    float *logits = logits_alloc(loaded.model, golden->prompt_count);

    harness_run(loaded.model, golden->prompt, 0, golden->prompt_count, 32, &paging, logits);
    harness_close(&loaded);
    return logits;
}

/* Sanitizers slow this down twentyfold: there two models do. */
static const char *const few_names[] = {
    "qwen3", "deepseek_v3",
#ifndef LIGHTER_DEBUG
    "llama_biases_mha", "deepseek_v2_groups", "qwen3_moe_mixed", "mixtral", "mistral_window",
    "gemma3", "qwen2_moe", "glm4", "llama4", "gpt_oss",
#endif
    "qwen2_window",
};
#define FEW_COUNT (sizeof(few_names) / sizeof(few_names[0]))

/* One way to run: a setting, a chunk, and pages. */
struct way {
    struct setting setting;
    uint32_t chunk;
    struct paging paging;
};

static const struct way ways[] = {
    { { .thread_count = 2 }, 32, { 0, 1 } },
    { { .thread_count = 1 }, 1, { 0, 1 } },
    { { .thread_count = 2 }, 3, { 5, 3 } },
    { { .page_size = 1 }, 7, { 11, 7 } },
    { { .page_size = 16 }, 20, { 3, 5 } },
    { { .page_size = 5, .kv_token_count = 35 }, 6, { 2, 3 } },
    { { .row_count_max = 20 }, 19, { 0, 1 } },
    { { .row_count_max = 4, .page_size = 2 }, 4, { 0, 1 } }, /* windows' pages go round */
    { { .row_count_max = 3, .page_size = 1 }, 2, { 4, 1 } },
    { { .cpu_offload_bytes = 1 }, 32, { 0, 1 } },
    { { .cpu_offload_bytes = 20000 }, 3, { 0, 1 } },
    { { .cpu_offload_bytes = 1 << 20 }, 32, { 0, 1 } },
    { { .group_size = 1, .num_in_group = 1 }, 32, { 0, 1 } },
    { { .group_size = 1, .num_in_group = 1, .thread_count = 2 }, 1, { 9, 1 } },
    { { .group_size = 2, .num_in_group = 1 }, 7, { 0, 1 } },
    { { .group_size = 2, .num_in_group = 2, .prefetch_step = 2, .params_glob = "model.layers.*" },
      5, { 0, 1 } },
    { { .group_size = 1, .num_in_group = 1, .params_glob = "*.self_attn.*,*.mlp.*" }, 4, { 1, 1 } },
    { { .group_size = 1, .num_in_group = 1, .home = OFFLOAD_HOME_SHM }, 7, { 0, 1 } },
    { { .cpu_offload_bytes = 20000, .home = OFFLOAD_HOME_SHM }, 5, { 0, 1 } },
    { { .group_size = 2, .num_in_group = 1, .home = OFFLOAD_HOME_SHARDED }, 7, { 0, 1 } },
    { { .late = true }, 32, { 0, 1 } },
    { { .late = true, .group_size = 1, .num_in_group = 1 }, 7, { 0, 1 } },
};

static void check_way(const char *name, const struct golden *golden, const struct setting *device,
                      const struct way *way, size_t index, const float *wanted)
{
    struct setting setting = way->setting;
    struct loaded loaded;
    float *logits;
    size_t bytes;

    setting.device = device->device;
    setting.cpu_kernels = device->cpu_kernels;
    loaded = harness_open_golden(name, &setting);
    bytes = (size_t)golden->prompt_count * model_info(loaded.model)->vocab_size * sizeof(float);
    logits = logits_alloc(loaded.model, golden->prompt_count);
    /* twice, so that what the first pass left in slots and pages is met by a second one */
    for (int round = 0; round < 2; round++) {
        harness_run(loaded.model, golden->prompt, 0, golden->prompt_count, way->chunk,
                    &way->paging, logits);
        if (memcmp(logits, wanted, bytes) != 0)
            fail_msg("%s on %s: way %zu, round %d gives other bits", name, device->device, index,
                     round);
    }
    free(logits);
    harness_close(&loaded);
}

static void nothing_changes_a_bit(void **state)
{
    (void)state;
    for (size_t d = 0; d < DEVICE_COUNT; d++) {
        for (size_t i = 0; i < FEW_COUNT; i++) {
            struct golden golden = golden_read(few_names[i]);
            float *wanted = plain_logits(few_names[i], &devices[d], &golden);

            for (size_t w = 0; w < sizeof(ways) / sizeof(ways[0]); w++)
                check_way(few_names[i], &golden, &devices[d], &ways[w], w, wanted);
            free(wanted);
            free(golden.logits);
        }
    }
}

/* Three sequences at once: one decodes while the others are in the middle of their prompts.
 * Sequence s is the golden prompt from its s-th token on, in pages of its own. */
#define MIXED_SEQUENCES 3
#define MIXED_PAGES 16

struct mixed {
    const struct golden *golden;
    struct model *model;
    int32_t pages[MIXED_SEQUENCES][MIXED_PAGES], window_pages[MIXED_SEQUENCES][MIXED_PAGES];
    uint32_t done[MIXED_SEQUENCES];
    float *logits[MIXED_SEQUENCES];
};

/* Adds up to `take` tokens of each sequence to one step, runs it, and keeps each row's logits. */
static void mixed_step(struct mixed *mixed, const uint32_t take[MIXED_SEQUENCES])
{
    const struct model_info *info = model_info(mixed->model);
    int32_t ids[32], positions[32], sequences[32], slots[32], window_slots[32], rows[32];
    struct model_step step = { .sequence_count = MIXED_SEQUENCES, .page_count_max = MIXED_PAGES,
                               .token_ids = ids, .positions = positions, .sequences = sequences,
                               .slots = slots, .pages = mixed->pages[0], .logits_rows = rows,
                               .window_slots = window_slots,
                               .window_pages = mixed->window_pages[0] };
    float *out = logits_alloc(mixed->model, 32);
    struct err err;
    uint32_t r = 0;

    /* the order of sequences within a step is turned around from step to step */
    for (uint32_t k = 0; k < MIXED_SEQUENCES; k++) {
        const uint32_t s = mixed->done[0] % 2 == 0 ? k : MIXED_SEQUENCES - 1 - k;
        const uint32_t left = mixed->golden->prompt_count - s - mixed->done[s];

        for (uint32_t i = 0; i < take[s] && i < left; i++, r++) {
            positions[r] = (int32_t)(mixed->done[s] + i);
            ids[r] = mixed->golden->prompt[s + mixed->done[s] + i];
            sequences[r] = (int32_t)s;
            slots[r] = slot_of(info, mixed->pages[s], mixed->done[s] + i);
            window_slots[r] = slot_of(info, mixed->window_pages[s], mixed->done[s] + i);
            rows[r] = (int32_t)r;
        }
    }
    if (r > 0) {
        step.row_count = step.logits_row_count = r;
        if (model_forward(mixed->model, &step, out, &err) != STATUS_OK)
            fail_msg("%s", err.message);
    }
    for (uint32_t i = 0; i < r; i++) {
        memcpy(mixed->logits[sequences[i]] + (size_t)positions[i] * info->vocab_size,
               out + (size_t)i * info->vocab_size, info->vocab_size * sizeof(float));
        mixed->done[sequences[i]]++;
    }
    free(out);
}

static void check_mixed(const char *name, const struct setting *device)
{
    static const uint32_t takes[][MIXED_SEQUENCES] = { { 5, 1, 0 }, { 1, 8, 3 }, { 7, 1, 1 },
                                                       { 1, 1, 12 }, { 20, 20, 20 } };
    struct golden golden = golden_read(name);
    struct loaded loaded = harness_open_golden(name, device);
    const size_t row_bytes = model_info(loaded.model)->vocab_size * sizeof(float);
    struct mixed mixed = { .golden = &golden, .model = loaded.model };
    float *alone = logits_alloc(loaded.model, golden.prompt_count);
    const uint32_t each = model_info(loaded.model)->kv_window_pages_each;

    assert_true(MIXED_SEQUENCES * each <= model_info(loaded.model)->kv_window_page_count);
    for (uint32_t s = 0; s < MIXED_SEQUENCES; s++) {
        mixed.logits[s] = logits_alloc(loaded.model, golden.prompt_count);
        for (uint32_t i = 0; i < MIXED_PAGES; i++) /* pages of the sequences interleave */
            mixed.pages[s][i] = (int32_t)(i * MIXED_SEQUENCES + s);
        for (uint32_t i = 0; each > 0 && i < MIXED_PAGES; i++)
            mixed.window_pages[s][i] = (int32_t)(i % each * MIXED_SEQUENCES + s);
    }
    for (size_t i = 0; i < sizeof(takes) / sizeof(takes[0]); i++)
        mixed_step(&mixed, takes[i]);
    for (uint32_t s = 0; s < MIXED_SEQUENCES; s++) {
        const uint32_t count = golden.prompt_count - s;
        const struct paging paging = { 0, 1 };

        assert_int_equal(mixed.done[s], count);
        harness_run(loaded.model, golden.prompt + s, 0, count, 32, &paging, alone);
        if (memcmp(alone, mixed.logits[s], count * row_bytes) != 0)
            fail_msg("%s on %s: sequence %u differs in company", name, device->device, s);
        free(mixed.logits[s]);
    }
    free(alone);
    free(golden.logits);
    harness_close(&loaded);
}

static void company_changes_no_bit(void **state)
{
    (void)state;
    for (size_t d = 0; d < DEVICE_COUNT; d++)
        for (size_t i = 0; i < FEW_COUNT; i++)
            check_mixed(few_names[i], &devices[d]);
}

/* Meta: the weights that move have no contents. It must run, move what it would, and say so. */
static void meta_runs_and_says_so(void **state)
{
    (void)state;
    for (size_t d = 0; d < DEVICE_COUNT; d++) {
        for (size_t i = 0; i < FEW_COUNT; i++) {
            const struct setting setting = {
                .device = devices[d].device, .cpu_kernels = devices[d].cpu_kernels,
                .group_size = 1, .num_in_group = 1, .meta = true,
            };
            const struct paging paging = { 0, 1 };
            struct golden golden = golden_read(few_names[i]);
            struct loaded loaded = harness_open_golden(few_names[i], &setting);
            float *logits = logits_alloc(loaded.model, golden.prompt_count);

            assert_true(offload_is_garbage(model_offload(loaded.model)));
            harness_run(loaded.model, golden.prompt, 0, golden.prompt_count, 7, &paging, logits);
            free(logits);
            free(golden.logits);
            harness_close(&loaded);
        }
    }
}

/* Parameters that went to meta kept their loaders: loaded again, the model answers as if it had
 * never been without them. */
static void reloading_ends_the_garbage(void **state)
{
    const struct setting setting = { .device = "sim", .group_size = 1, .num_in_group = 1,
                                     .params_glob = "model.layers.*", .meta = true };
    const struct paging paging = { 0, 1 };

    (void)state;
    for (size_t i = 0; i < FEW_COUNT; i++) {
        struct golden golden = golden_read(few_names[i]);
        float *wanted = plain_logits(few_names[i], &setting, &golden);
        struct loaded loaded = harness_open_golden(few_names[i], &setting);
        struct offload *offload = model_offload(loaded.model);
        const size_t count = model_param_count(loaded.model);
        const size_t bytes =
            (size_t)golden.prompt_count * model_info(loaded.model)->vocab_size * sizeof(float);
        float *logits = logits_alloc(loaded.model, golden.prompt_count);
        struct err err;

        harness_run(loaded.model, golden.prompt, 0, golden.prompt_count, 7, &paging, logits);
        assert_memory_not_equal(logits, wanted, bytes);
        assert_true(offload_is_garbage(offload));
        for (size_t k = 0; k < count; k++)
            if (offload_reload(offload, k, loaded.ckpt, &err) != STATUS_OK)
                fail_msg("%s: parameter %zu: %s", few_names[i], k, err.message);
        assert_false(offload_is_garbage(offload));
        harness_run(loaded.model, golden.prompt, 0, golden.prompt_count, 7, &paging, logits);
        assert_memory_equal(logits, wanted, bytes);
        free(logits);
        free(wanted);
        free(golden.logits);
        harness_close(&loaded);
    }
}

/* Rows whose logits nobody wants cost nothing and change nothing. */
static void logits_come_only_for_wanted_rows(void **state)
{
    const struct setting setting = { .device = "cpu" };
    struct golden golden = golden_read("deepseek_v3");
    struct loaded loaded = harness_open_golden("deepseek_v3", &setting);
    const struct model_info *info = model_info(loaded.model);
    const int32_t rows[2] = { 19, 4 };
    int32_t positions[20], slots[20], sequences[20] = { 0 }, pages[5] = { 0, 1, 2, 3, 4 };
    struct model_step step = { .row_count = 20, .sequence_count = 1, .page_count_max = 5,
                               .token_ids = golden.prompt, .positions = positions,
                               .sequences = sequences, .slots = slots, .pages = pages,
                               .logits_row_count = 2, .logits_rows = rows };
    float *wanted = plain_logits("deepseek_v3", &setting, &golden);
    float *logits = logits_alloc(loaded.model, 2);
    const size_t row_bytes = info->vocab_size * sizeof(float);
    struct err err;

    (void)state;
    for (int32_t i = 0; i < 20; i++)
        positions[i] = slots[i] = i;
    assert_int_equal(model_forward(loaded.model, &step, logits, &err), STATUS_OK);
    assert_memory_equal(logits, wanted + 19 * (size_t)info->vocab_size, row_bytes);
    assert_memory_equal(logits + info->vocab_size, wanted + 4 * (size_t)info->vocab_size,
                        row_bytes);
    step.logits_row_count = 0;
    assert_int_equal(model_forward(loaded.model, &step, NULL, &err), STATUS_OK);
    free(wanted);
    free(logits);
    free(golden.logits);
    harness_close(&loaded);
}

/* --dtype float32 widens exactly: logits stay within the bound; bfloat16 of an F16 model
 * doesn't. */
static void matrices_take_another_dtype(void **state)
{
    const struct setting wide = { .device = "cpu", .dtype = "float32" };
    const struct setting narrow = { .device = "cpu", .dtype = "bfloat16" };
    const struct paging paging = { 0, 1 };
    struct golden golden = golden_read("deepseek_v2_groups");
    struct loaded loaded = harness_open_golden("deepseek_v2_groups", &wide);
    float *logits = logits_alloc(loaded.model, golden.prompt_count);

    (void)state;
    assert_int_equal(model_info(loaded.model)->weight_dtype, DTYPE_F32);
    harness_run(loaded.model, golden.prompt, 0, golden.prompt_count, 32, &paging, logits);
    check_logits("deepseek_v2_groups", &golden, logits, model_info(loaded.model)->vocab_size);
    harness_close(&loaded);
    loaded = harness_open_golden("deepseek_v2_groups", &narrow);
    assert_int_equal(model_info(loaded.model)->weight_dtype, DTYPE_BF16);
    harness_run(loaded.model, golden.prompt, 0, golden.prompt_count, 32, &paging, logits);
    harness_close(&loaded);
    free(logits);
    free(golden.logits);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_are_those_of_transformers_scalar),
        cmocka_unit_test(logits_are_those_of_transformers_cpu),
        cmocka_unit_test(logits_are_those_of_transformers_sim),
        cmocka_unit_test(nothing_changes_a_bit),
        cmocka_unit_test(company_changes_no_bit),
        cmocka_unit_test(meta_runs_and_says_so),
        cmocka_unit_test(reloading_ends_the_garbage),
        cmocka_unit_test(logits_come_only_for_wanted_rows),
        cmocka_unit_test(matrices_take_another_dtype),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
