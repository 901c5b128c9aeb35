/* model/layout_test.c - weights in a device's own layout: the same bits, whatever their home.
 *
 * Method: models run on the software accelerator with weights in plain rows and everything
 * resident; then with weights in FRACTAL_NZ, for every home and way to move, and the logits' bytes
 * are compared. A weight that is cast twice, or not, or out of a view that is not contiguous, is
 * noise. Then the faults that sglang had with such weights on NPUs (sgl-project/sglang, PR 19541)
 * are put back one at a time, and the same checks must see each. */
#include "model/testing.h"

#define ND "sim:memory=64MiB"
#define NZ "sim:memory=64MiB,layout=nz"

enum { PROMPT = 24, CHUNK = 7 };

/* What is compared, and with what. */
struct fixture {
    const char *folder;
    int32_t prompt[PROMPT];
    float *wanted; /* [PROMPT][vocab] */
    size_t bytes;
    char cache[TESTING_FOLDER_BYTES];
};

static struct model_options options_of(const struct setting *setting, const struct fixture *fixture)
{
    struct model_options options = harness_options(setting);

    options.offload.cache_dir = fixture->cache;
    return options;
}

/* Counts the lines about matrices that keep plain rows. */
static void count_line(void *user, enum log_level level, const char *line)
{
    int *count = user;

    (void)level;
    *count += strstr(line, "stay in ND") != NULL;
}

static float *run(struct model *model, const struct fixture *fixture)
{
    const struct paging paging = { 0, 1 };
    float *logits = logits_alloc(model, PROMPT);

    harness_run(model, fixture->prompt, 0, PROMPT, CHUNK, &paging, logits);
    return logits;
}

static bool is_right(struct model *model, const struct fixture *fixture)
{
    float *logits = run(model, fixture);
    const bool right = memcmp(logits, fixture->wanted, fixture->bytes) == 0;

    free(logits);
    return right;
}

static void begin(struct fixture *fixture, const char *folder)
{
    const struct setting plain = { .device = ND };
    struct loaded loaded = { NULL, NULL, NULL };
    struct model_options options;
    struct err err;

    memset(fixture, 0, sizeof(*fixture));
    fixture->folder = folder;
    for (int32_t i = 0; i < PROMPT; i++)
        fixture->prompt[i] = (i * 37 + 11) % 64;
    testing_folder_make(fixture->cache, "layout");
    options = options_of(&plain, fixture);
    if (harness_try_with(folder, &plain, &options, NULL, &loaded, &err) != STATUS_OK)
        fail_msg("%s: %s", folder, err.message);
    fixture->bytes = (size_t)PROMPT * model_info(loaded.model)->vocab_size * sizeof(float);
    fixture->wanted = run(loaded.model, fixture);
    harness_close(&loaded);
}

static void end(struct fixture *fixture)
{
    testing_folder_remove(fixture->cache);
    free(fixture->wanted);
}

static void check(struct fixture *fixture, const char *what, const struct setting *setting,
                  size_t nz_count)
{
    const struct model_options options = options_of(setting, fixture);
    struct loaded loaded = { NULL, NULL, NULL };
    struct err err;

    if (harness_try_with(fixture->folder, setting, &options, NULL, &loaded, &err) != STATUS_OK)
        fail_msg("%s, %s: %s", fixture->folder, what, err.message);
    assert_int_equal(harness_count_layout(loaded.model, LAYOUT_FRACTAL_NZ), nz_count);
    for (int pass = 0; pass < 2; pass++)
        if (!is_right(loaded.model, fixture))
            fail_msg("%s, %s, pass %d: other bits", fixture->folder, what, pass);
    if (offload_report_check(model_offload(loaded.model), &err) != STATUS_OK)
        fail_msg("%s, %s: %s", fixture->folder, what, err.message);
    harness_close(&loaded);
}

/* The demo model's 8 layers: 4 matrices of attention each; gate and up, and down, of the first
 * layer's FFN, and of the other layers' shared expert and 8 routed ones. w_kc and w_vc are batched,
 * the embedding is a table, the router and the head keep plain rows. */
#define DEMO_NZ (8 * 4 + 2 + 7 * (2 + 2))
#define DEMO_NZ_UNITS (8 * 4 + 2 + 7 * (2 + 2 * 8))

static void every_home_gives_the_bits_of_plain_rows(void **state)
{
    static const struct {
        const char *what;
        struct setting setting;
    } all[] = {
        { "resident", { .device = NZ } },
        { "v1", { .device = NZ, .cpu_offload_bytes = 1500000 } },
        { "host", { .device = NZ, .group_size = 2, .num_in_group = 1 } },
        { "host, everything", { .device = NZ, .group_size = 1, .num_in_group = 1,
                                .params_glob = "*", .prefetch_step = 2 } },
        { "shm", { .device = NZ, .group_size = 1, .num_in_group = 1,
                   .home = OFFLOAD_HOME_SHM } },
        { "sharded", { .device = NZ, .group_size = 1, .num_in_group = 1,
                       .home = OFFLOAD_HOME_SHARDED } },
        { "disk", { .device = NZ, .group_size = 2, .num_in_group = 1, .disk = true } },
        { "disk, everything", { .device = NZ, .group_size = 1, .num_in_group = 1,
                                .params_glob = "*", .disk = true } },
        { "plain rows", { .device = ND, .group_size = 1, .num_in_group = 1, .disk = true } },
    };
    struct fixture fixture;

    (void)state;
    begin(&fixture, DEMO);
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        check(&fixture, all[i].what, &all[i].setting,
              strcmp(all[i].setting.device, ND) == 0 ? 0 : DEMO_NZ);
    end(&fixture);
}

/* Tiles of matrices, and experts one by one: each is in its own layout wherever it lies. */
static void what_is_cut_is_cut_alike(void **state)
{
    static const struct setting all[] = {
        { .device = NZ, .experts = true, .expert_slot_count = 5 },
        { .device = NZ, .experts = true, .expert_slot_count = 3, .disk = true },
        { .device = NZ, .experts = true, .expert_slot_count = 3, .home = OFFLOAD_HOME_SHM },
        { .device = NZ, .automatic = true, .budget_bytes = 5800000 },
        { .device = NZ, .automatic = true, .budget_bytes = 3000000 },
        { .device = NZ, .automatic = true, .budget_bytes = 2600000, .experts = true },
    };
    struct fixture fixture;

    (void)state;
    begin(&fixture, DEMO);
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        char what[48];

        (void)snprintf(what, sizeof(what), "cut %zu", i);
        check(&fixture, what, &all[i], DEMO_NZ_UNITS); /* auto moves experts one by one too */
    }
    end(&fixture);
}

/* Of a model of which some matrices have parts of blocks, those keep plain rows, and one line says
 * so, also when all of it is loaded again. */
static void matrices_of_parts_of_blocks_stay_as_they_are(void **state)
{
    static const char *const names[] = { "mixtral", "qwen3_moe", "deepseek_v3" };

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const struct setting setting = { .device = NZ, .group_size = 1, .num_in_group = 1,
                                         .params_glob = "*" };
        struct model_options options;
        struct loaded loaded = { NULL, NULL, NULL };
        int line_count = 0;
        const struct log log = { count_line, &line_count };
        struct fixture fixture;
        char path[256];
        struct err err;

        begin(&fixture, golden_path(names[i], path, sizeof(path)));
        options = options_of(&setting, &fixture);
        if (harness_try_with(fixture.folder, &setting, &options, &log, &loaded, &err) != STATUS_OK)
            fail_msg("%s: %s", names[i], err.message);
        assert_in_range(harness_count_layout(loaded.model, LAYOUT_FRACTAL_NZ), 1,
                        offload_param_count(model_offload(loaded.model)) / 2);
        assert_true(is_right(loaded.model, &fixture));
        assert_true(harness_update(loaded.model, path));
        assert_true(is_right(loaded.model, &fixture));
        assert_int_equal(line_count, 1);
        harness_close(&loaded);
        end(&fixture);
    }
}

/* -- meta, and the three faults ---------------------------------------------------------------- */

enum fault { FAULT_NONE, FAULT_LOADER_LOST, FAULT_META_CAST, FAULT_NOT_CONTIGUOUS };

static void put_fault(struct model_options *options, enum fault fault)
{
    options->offload.fault_meta_loses_loader = fault == FAULT_LOADER_LOST;
    options->offload.fault_meta_is_cast = fault == FAULT_META_CAST;
    options->offload.fault_skip_contiguous = fault == FAULT_NOT_CONTIGUOUS;
}

/* Starts in meta, computes garbage, is given its weights, and is right from then on. */
static bool meta_works(const struct fixture *fixture, enum fault fault)
{
    const struct setting setting = { .device = NZ, .group_size = 2, .num_in_group = 1,
                                     .meta = true };
    struct model_options options = options_of(&setting, fixture);
    struct loaded loaded = { NULL, NULL, NULL };
    struct err err;
    bool works;

    put_fault(&options, fault);
    works = harness_try_with(fixture->folder, &setting, &options, NULL, &loaded, &err) == STATUS_OK;
    if (works) {
        assert_int_equal(harness_count_layout(loaded.model, LAYOUT_FRACTAL_NZ), DEMO_NZ);
        assert_true(offload_is_garbage(model_offload(loaded.model)));
        free(run(loaded.model, fixture));
        works = harness_update(loaded.model, fixture->folder) &&
                !offload_is_garbage(model_offload(loaded.model)) &&
                is_right(loaded.model, fixture) &&
                offload_report_check(model_offload(loaded.model), &err) == STATUS_OK;
    }
    harness_close(&loaded);
    return works;
}

static bool host_works(const struct fixture *fixture, enum fault fault)
{
    const struct setting setting = { .device = NZ, .group_size = 2, .num_in_group = 1 };
    struct model_options options = options_of(&setting, fixture);
    struct loaded loaded = { NULL, NULL, NULL };
    struct err err;
    bool works;

    put_fault(&options, fault);
    if (harness_try_with(fixture->folder, &setting, &options, NULL, &loaded, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    works = is_right(loaded.model, fixture);
    harness_close(&loaded);
    return works;
}

static void what_is_in_meta_keeps_its_loader(void **state)
{
    struct fixture fixture;

    (void)state;
    begin(&fixture, DEMO);
    assert_true(meta_works(&fixture, FAULT_NONE));
    assert_false(meta_works(&fixture, FAULT_LOADER_LOST));
    end(&fixture);
}

static void what_is_in_meta_is_not_cast(void **state)
{
    struct fixture fixture;

    (void)state;
    begin(&fixture, DEMO);
    assert_true(meta_works(&fixture, FAULT_NONE));
    assert_false(meta_works(&fixture, FAULT_META_CAST));
    end(&fixture);
}

static void what_is_transposed_is_made_contiguous(void **state)
{
    struct fixture fixture;

    (void)state;
    begin(&fixture, DEMO);
    assert_true(host_works(&fixture, FAULT_NONE));
    assert_false(host_works(&fixture, FAULT_NOT_CONTIGUOUS));
    end(&fixture);
}

/* Weights that are loaded again, all of them in place, whatever their home. */
static void a_live_update_finishes_what_it_loads(void **state)
{
    static const struct setting all[] = {
        { .device = NZ },
        { .device = NZ, .group_size = 2, .num_in_group = 1 },
        { .device = NZ, .group_size = 2, .num_in_group = 1, .disk = true },
        { .device = NZ, .experts = true, .expert_slot_count = 5 },
        { .device = NZ, .experts = true, .expert_slot_count = 5, .meta = true },
    };
    struct fixture fixture;

    (void)state;
    begin(&fixture, DEMO);
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        const struct model_options options = options_of(&all[i], &fixture);
        struct loaded loaded = { NULL, NULL, NULL };
        struct err err;

        if (harness_try_with(fixture.folder, &all[i], &options, NULL, &loaded, &err) != STATUS_OK)
            fail_msg("%zu: %s", i, err.message);
        for (int round = 0; round < 2; round++) {
            assert_true(harness_update(loaded.model, DEMO));
            assert_true(is_right(loaded.model, &fixture));
        }
        harness_close(&loaded);
    }
    end(&fixture);
}

/* One parameter alone, and a part of a stack of experts not even for a moment twice. */
static void finishing_takes_no_second_copy(void **state)
{
    static const char *const devices[] = { ND, NZ };
    uint64_t over_bytes[2]; /* host memory at its peak, without what stays */
    struct fixture fixture;

    (void)state;
    begin(&fixture, DEMO);
    for (size_t d = 0; d < 2; d++) {
        const struct setting setting = { .device = devices[d], .group_size = 1,
                                         .num_in_group = 1 };
        const struct model_options options = options_of(&setting, &fixture);
        struct loaded loaded = { NULL, NULL, NULL };
        struct device_memory_report memory;
        struct err err;

        if (harness_try_with(fixture.folder, &setting, &options, NULL, &loaded, &err) != STATUS_OK)
            fail_msg("%s", err.message);
        device_memory_report(loaded.device, &memory);
        over_bytes[d] = memory.host_peak_bytes - memory.host_used_bytes;
        harness_close(&loaded);
    }
    /* the largest strip is one of 16 rows of 384 elements of down_proj, or of 128 of w13 */
    assert_true(over_bytes[1] >= over_bytes[0]);
    assert_in_range(over_bytes[1] - over_bytes[0], 0, UINT64_C(384) * 32);
    /* and the largest parameter is the embedding, which is in memory twice while it is loaded */
    assert_in_range(over_bytes[1], 0,
                    loader_staging_bytes(NULL) + UINT64_C(1280) * 128 * 2 + UINT64_C(384) * 32);
    end(&fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_home_gives_the_bits_of_plain_rows),
        cmocka_unit_test(what_is_cut_is_cut_alike),
        cmocka_unit_test(matrices_of_parts_of_blocks_stay_as_they_are),
        cmocka_unit_test(what_is_in_meta_keeps_its_loader),
        cmocka_unit_test(what_is_in_meta_is_not_cast),
        cmocka_unit_test(what_is_transposed_is_made_contiguous),
        cmocka_unit_test(a_live_update_finishes_what_it_loads),
        cmocka_unit_test(finishing_takes_no_second_copy),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
