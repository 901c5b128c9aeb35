/* model/expert_units_test.c - experts that move one by one change no bit, and every byte is
 * accounted for.
 *
 * Method: small mixtures of experts run with all weights resident; then with experts as units, for
 * every size of the cache, home, device and chunk, again and again on the same cache, and the
 * logits' bytes are compared. Slots are poisoned when they are given away, so that an expert that
 * is read too early or too late shows. */
#include "model/testing.h"

static const char *const names[] = {
    "qwen3_moe", "mixtral", "deepseek_v3", "qwen3_moe_mixed", "mixtral_fused", "deepseek_v2_lite",
    "qwen2_moe", "granite_moe_shared", "llama4", "gpt_oss",
};
#define NAME_COUNT (sizeof(names) / sizeof(names[0]))

static const char *const devices[] = { "cpu", "sim:memory=64MiB" };
#define DEVICE_COUNT (sizeof(devices) / sizeof(devices[0]))

enum { LAYER_COUNT = 2, EXPERT_COUNT = 8, CHUNK_MAX = 32 };

static uint32_t top_k_of(const char *name)
{
    return strcmp(name, "mixtral") == 0 ? 2 : strcmp(name, "llama4") == 0 ? 1 : 3;
}

static float *run(struct loaded *loaded, const struct golden *golden, uint32_t chunk)
{
    const struct paging paging = { 0, 1 };
    float *logits = logits_alloc(loaded->model, golden->prompt_count);

    harness_run(loaded->model, golden->prompt, 0, golden->prompt_count, chunk, &paging, logits);
    return logits;
}

static void check_report(const char *what, struct loaded *loaded)
{
    struct err err;

    if (offload_report_check(model_offload(loaded->model), &err) != STATUS_OK)
        fail_msg("%s: %s", what, err.message);
}

static void check_setting(const char *name, const struct golden *golden,
                          const struct setting *setting, const float *wanted)
{
    static const uint32_t chunks[] = { 1, 5, 32, 2 };
    struct loaded loaded = harness_open_golden(name, setting);
    const size_t bytes =
        (size_t)golden->prompt_count * model_info(loaded.model)->vocab_size * sizeof(float);
    char what[128];

    for (size_t i = 0; i < sizeof(chunks) / sizeof(chunks[0]); i++) {
        float *logits = run(&loaded, golden, chunks[i]);

        (void)snprintf(what, sizeof(what), "%s on %s, %s, %d slots, round %zu, chunks of %u", name,
                       setting->device, setting->disk ? "disk" : "host",
                       (int)setting->expert_slot_count, i, chunks[i]);
        if (memcmp(logits, wanted, bytes) != 0)
            fail_msg("%s: other bits", what);
        check_report(what, &loaded);
        free(logits);
    }
    harness_close(&loaded);
}

static void check_model(const char *name, const char *device)
{
    const struct setting plain = { .device = device, .thread_count = 2 };
    struct golden golden = golden_read(name);
    struct loaded loaded = harness_open_golden(name, &plain);
    float *wanted = run(&loaded, &golden, CHUNK_MAX);
    const bool turned = strcmp(name, "llama4") == 0 || strcmp(name, "gpt_oss") == 0;
    const int homes = turned ? 1 : 2; /* turned over, they need a cache file */

    harness_close(&loaded);
    for (int disk = 0; disk < homes; disk++) {
        /* from a token's experts to all of both layers, and one more than there are */
        for (int64_t slots = top_k_of(name); slots <= 2 * EXPERT_COUNT + 1;
             slots += slots < 4 ? 1 : 13) {
            const struct setting setting = { .device = device, .thread_count = 2,
                                             .disk = disk != 0, .experts = true,
                                             .expert_slot_count = slots };

            check_setting(name, &golden, &setting, wanted);
        }
    }
    free(wanted);
    free(golden.logits);
}

static void no_cache_changes_a_bit(void **state)
{
    (void)state;
    for (size_t i = 0; i < NAME_COUNT; i++)
        check_model(names[i], devices[i % DEVICE_COUNT]);
    check_model("qwen3_moe", "sim:memory=64MiB,link=200MB/s,latency=20us");
}

static void what_cannot_work_is_refused(void **state)
{
    static const struct {
        const char *model;
        struct setting setting;
        const char *says;
    } cases[] = {
        { "qwen3", { .experts = true, .disk = true }, "the model has no experts" },
        { "qwen3_moe", { .expert_slot_count = 5 }, "no effect without --offload-experts" },
        { "qwen3_moe", { .experts = true, .disk = true, .expert_slot_count = 2 },
          "3 is the smallest that works" },
        { "qwen3_moe", { .experts = true, .disk = true, .expert_slot_count = -1 }, "is -1" },
        { "qwen3_moe", { .experts = true, .group_size = 1, .num_in_group = 1 },
          "leave out --offload-group-size" },
        { "qwen3_moe", { .experts = true, .cpu_offload_bytes = 1 }, "leave out --cpu-offload-gb" },
        { "qwen3_moe", { .experts = true, .disk = true, .budget_bytes = 260000 },
          "slots of 16.0 KiB that a token's experts" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct loaded loaded;
        char path[256];
        struct err err;

        if (harness_try(golden_path(cases[i].model, path, sizeof(path)), &cases[i].setting, NULL,
                        &loaded, &err) == STATUS_OK)
            fail_msg("case %zu is not refused", i);
        if (strstr(err.message, cases[i].says) == NULL)
            fail_msg("case %zu: \"%s\" does not say \"%s\"", i, err.message, cases[i].says);
    }
}

static void the_budget_decides_when_nobody_else_does(void **state)
{
    const struct setting plain = { .device = "sim:memory=64MiB" };
    const struct setting tight = { .device = "sim:memory=64MiB", .experts = true,
                                   .budget_bytes = 320000 };
    struct golden golden = golden_read("qwen3_moe");
    struct loaded loaded = harness_open_golden("qwen3_moe", &plain);
    float *wanted = run(&loaded, &golden, CHUNK_MAX);

    (void)state;
    harness_close(&loaded);
    check_setting("qwen3_moe", &golden, &tight, wanted);
    free(wanted);
    free(golden.logits);
}

/* Runs the first rows of the prompt, one at a time, and returns how many steps failed. */
static uint32_t failing_steps(struct loaded *loaded, const struct golden *golden, uint32_t count,
                              const char *says)
{
    const struct model_info *info = model_info(loaded->model);
    float *logits = logits_alloc(loaded->model, 1);
    int32_t pages[HARNESS_PAGES_MAX];
    const struct paging paging = { 0, 1 };
    uint32_t failed = 0;

    paging_fill(info, &paging, pages, info->kv_page_count);
    for (int32_t i = 0; i < (int32_t)count; i++) {
        const int32_t zero = 0, slot = slot_of(info, pages, (uint32_t)i);
        const struct model_step step = {
            .row_count = 1, .sequence_count = 1, .page_count_max = info->kv_page_count,
            .token_ids = &golden->prompt[i], .positions = &i, .sequences = &zero, .slots = &slot,
            .pages = pages, .logits_row_count = 1, .logits_rows = &zero,
        };
        struct err err;

        if (model_forward(loaded->model, &step, logits, &err) == STATUS_OK)
            continue;
        failed++;
        if (strstr(err.message, says) == NULL)
            fail_msg("\"%s\" does not say \"%s\"", err.message, says);
    }
    free(logits);
    return failed;
}

/* The n-th read, whichever it is, fails for good: one step ends with an error, or none where it was
 * a guess that nobody needed, and then all goes on as if nothing had been. */
static void a_failed_read_ends_its_step_only(void **state)
{
    const struct setting plain = { .device = "sim:memory=64MiB" };
    struct golden golden = golden_read("qwen3_moe");
    struct loaded loaded = harness_open_golden("qwen3_moe", &plain);
    float *wanted = run(&loaded, &golden, CHUNK_MAX);
    const size_t bytes =
        (size_t)golden.prompt_count * model_info(loaded.model)->vocab_size * sizeof(float);
    uint32_t failed = 0;

    (void)state;
    harness_close(&loaded);
    for (uint32_t n = 1; n <= 40; n += 3) {
        char faults[32];
        const struct setting setting = { .device = n % 2 == 0 ? "cpu" : "sim:memory=64MiB",
                                         .disk = true, .disk_settings = faults, .experts = true,
                                         .expert_slot_count = 6 };
        float *logits;

        (void)snprintf(faults, sizeof(faults), "eio=%u:2", n);
        loaded = harness_open_golden("qwen3_moe", &setting);
        failed += failing_steps(&loaded, &golden, 8, ".safetensors: reading");
        for (uint32_t chunk = 1; chunk <= 32; chunk += 31) {
            logits = run(&loaded, &golden, chunk);
            if (memcmp(logits, wanted, bytes) != 0)
                fail_msg("after read %u failed: other bits", n);
            free(logits);
        }
        harness_close(&loaded);
    }
    assert_true(failed > 0);
    free(wanted);
    free(golden.logits);
}

static void meta_and_reloading(void **state)
{
    static const char *const where[] = { "cpu", "sim:memory=64MiB" };

    (void)state;
    for (size_t d = 0; d < 2; d++) {
        const struct setting plain = { .device = where[d] };
        const struct setting meta = { .device = where[d], .experts = true, .meta = true,
                                      .expert_slot_count = 5 };
        const struct setting host = { .device = where[d], .experts = true,
                                      .expert_slot_count = 16 };
        struct golden golden = golden_read("qwen3_moe");
        struct loaded loaded = harness_open_golden("qwen3_moe", &plain);
        float *wanted = run(&loaded, &golden, CHUNK_MAX);
        const size_t bytes =
            (size_t)golden.prompt_count * model_info(loaded.model)->vocab_size * sizeof(float);

        harness_close(&loaded);
        for (int is_meta = 0; is_meta < 2; is_meta++) {
            struct err err;
            float *logits;

            loaded = harness_open_golden("qwen3_moe", is_meta ? &meta : &host);
            free(run(&loaded, &golden, 3));
            assert_int_equal(offload_is_garbage(model_offload(loaded.model)), is_meta);
            for (size_t i = 0; i < model_param_count(loaded.model); i++)
                if (offload_reload(model_offload(loaded.model), i, loaded.ckpt, &err) != STATUS_OK)
                    fail_msg("%s", err.message);
            assert_false(offload_is_garbage(model_offload(loaded.model)));
            logits = run(&loaded, &golden, 2);
            if (memcmp(logits, wanted, bytes) != 0)
                fail_msg("%s: other bits after reloading", where[d]);
            check_report("after reloading", &loaded);
            free(logits);
            harness_close(&loaded);
        }
        free(wanted);
        free(golden.logits);
    }
}

/* The onloads of each layer's experts in the chunks since the last reset; returns their sum. */
static json_int_t onloads_within(const char *what, struct loaded *loaded, uint32_t chunk_count)
{
    json_t *report = offload_report_json(model_offload(loaded->model));
    const json_t *row;
    json_int_t sum = 0;
    size_t i;

    assert_int_equal(json_integer_value(json_object_get(report, "passes")), chunk_count);
    json_array_foreach(json_object_get(report, "units"), i, row)
    {
        const json_int_t units = json_integer_value(json_object_get(row, "units"));
        const json_int_t onloads = json_integer_value(json_object_get(row, "onloads"));

        if (strstr(json_string_value(json_object_get(row, "name")), "experts") == NULL)
            continue;
        assert_int_equal(units, EXPERT_COUNT);
        if (onloads > units * chunk_count)
            fail_msg("%s: %d onloads of a layer's %d experts in %u chunks", what, (int)onloads,
                     (int)units, chunk_count);
        sum += onloads;
    }
    json_decref(report);
    return sum;
}

/* However many of a chunk's rows choose an expert, and however small the cache: it comes once. All
 * eight are chosen in such a chunk, so one that came twice would show in the sum. */
static void a_chunk_reads_no_expert_twice(void **state)
{
    struct golden golden = golden_read("qwen3_moe");
    const uint32_t chunk_count = (golden.prompt_count + CHUNK_MAX - 1) / CHUNK_MAX;

    (void)state;
    assert_int_equal(chunk_count, 1);
    for (int kind = 0; kind < 4; kind++) {
        for (int64_t slots = 3; slots <= 9; slots += 3) {
            const struct setting setting = { .device = devices[kind % 2], .disk = kind / 2 != 0,
                                             .experts = true, .expert_slot_count = slots };
            struct loaded loaded = harness_open_golden("qwen3_moe", &setting);
            char what[64];

            (void)snprintf(what, sizeof(what), "%s, %s, %d slots", setting.device,
                           setting.disk ? "disk" : "host", (int)slots);
            for (uint32_t round = 0; round < 3; round++) {
                json_int_t onloads;

                offload_report_reset(model_offload(loaded.model));
                free(run(&loaded, &golden, CHUNK_MAX));
                onloads = onloads_within(what, &loaded, chunk_count);
                if (round == 0) /* on the cpu those on the host are used where they are */
                    assert_int_equal(onloads, kind == 0 ? 0 : LAYER_COUNT * EXPERT_COUNT);
                check_report(what, &loaded);
            }
            harness_close(&loaded);
        }
    }
    free(golden.logits);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_cache_changes_a_bit),
        cmocka_unit_test(what_cannot_work_is_refused),
        cmocka_unit_test(the_budget_decides_when_nobody_else_does),
        cmocka_unit_test(a_chunk_reads_no_expert_twice),
        cmocka_unit_test(a_failed_read_ends_its_step_only),
        cmocka_unit_test(meta_and_reloading),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
