/* offload/load_test.c - filling parameters, first and again, and what happens when that fails.
 *
 * Method: every parameter's bytes on the device or at home are compared with what the checkpoint
 * says. testing_faults.h fails the n-th call of a test, for every n. After each failure
 * everything must have been given back, or the old weights must still serve. */
#include "offload/testing_faults.h"
#include "offload/testing_model.h"

#include "base/buf.h"

#define SIM "sim:memory=64MiB"

/* The settings under which everything is loaded: on the device and on the host, by both devices. */
static const struct {
    const char *device;
    int64_t group_size;
    const char *globs;
    enum offload_home home;
} places[] = {
    { SIM ",latency=1ms", 0, NULL, OFFLOAD_HOME_HOST }, { SIM, 2, NULL, OFFLOAD_HOME_HOST },
    { SIM, 1, "*", OFFLOAD_HOME_HOST },                 { SIM, 2, "*", OFFLOAD_HOME_META },
    { "cpu", 0, NULL, OFFLOAD_HOME_HOST },              { "cpu", 1, "*", OFFLOAD_HOME_HOST },
    { "cpu", 2, "*", OFFLOAD_HOME_META },               { SIM, 2, NULL, OFFLOAD_HOME_SHM },
    { "cpu", 1, "*", OFFLOAD_HOME_SHM },                { SIM, 1, "*", OFFLOAD_HOME_SHARDED },
    { "cpu", 2, NULL, OFFLOAD_HOME_SHARDED },
};
#define PLACE_COUNT (sizeof(places) / sizeof(places[0]))

static bool takes_host_memory(enum offload_home home)
{
    return home != OFFLOAD_HOME_META && home != OFFLOAD_HOME_SHARDED;
}

static struct offload_options place_options(size_t place)
{
    struct offload_options options;

    offload_options_init(&options);
    options.group_size = places[place].group_size;
    options.params_glob = places[place].globs;
    options.home = places[place].home;
    options.poison = true;
    return options;
}

/* Copies what the readers of a part would see of all its parameters, and compares. */
static void check_contents(struct model *model, uint64_t seed)
{
    uint8_t *seen = malloc(65536);

    for (size_t p = 0; p < MODEL_PARAMS; p++) {
        const uint32_t layer = p == 0 ? 0 : (uint32_t)((p - 1) / MODEL_PARAMS_PER_LAYER);
        const bool ffn = p > 0 && (p - 1) % MODEL_PARAMS_PER_LAYER >= MODEL_UP;
        void *expected = model_expected(seed, p);

        /* A pass must go in order, so one runs up to the parameter and is then abandoned. */
        for (uint32_t i = 0; i < 2 * layer + (ffn ? 1 : 0); i++) {
            CHECK_OK(offload_begin(model->offload, i / 2, (enum offload_part)(i % 2), err));
            CHECK_OK(offload_end(model->offload, i / 2, (enum offload_part)(i % 2), err));
        }
        CHECK_OK(offload_begin(model->offload, layer,
                               ffn ? OFFLOAD_PART_FFN : OFFLOAD_PART_ATTENTION, err));
        CHECK_OK(device_copy_out(model->compute, seen, offload_tensor(model->offload, p)->data,
                                 model_param_bytes(p), err));
        CHECK_OK(stream_sync(model->compute, err));
        assert_memory_equal(seen, expected, model_param_bytes(p));
        CHECK_OK(offload_pass_abort(model->offload, err));
        free(expected);
    }
    free(seen);
}

static void every_parameter_holds_what_the_checkpoint_says(void **state)
{
    struct ckpt *ckpt = model_ckpt(1);

    (void)state;
    for (size_t place = 0; place < PLACE_COUNT; place++) {
        struct offload_options options = place_options(place);
        struct model model;

        if (options.home == OFFLOAD_HOME_META)
            continue;
        model_open(&model, places[place].device);
        model_load(&model, &options, ckpt);
        assert_false(offload_is_garbage(model.offload));
        check_contents(&model, 1);
        model_close(&model);
    }
    ckpt_close(ckpt);
}

/* Progress, as it was told. */
struct told {
    uint64_t done_bytes, total_bytes;
    uint32_t count;
};

static void tell(void *user, const char *what, uint64_t done_bytes, uint64_t total_bytes)
{
    struct told *told = user;

    assert_non_null(what);
    assert_true(done_bytes >= told->done_bytes);
    assert_true(done_bytes <= total_bytes);
    assert_true(told->count == 0 || told->total_bytes == total_bytes);
    *told = (struct told){ done_bytes, total_bytes, told->count + 1 };
}

static void loading_tells_how_far_it_is_and_holds_one_parameter_twice(void **state)
{
    struct ckpt *ckpt = model_ckpt(2);

    (void)state;
    for (size_t place = 0; place < PLACE_COUNT; place++) {
        struct offload_options options = place_options(place);
        struct device_memory_report before, after;
        uint64_t largest_bytes = 0, homes_bytes, read_bytes = 0;
        struct offload_sizes sizes;
        struct told told = { 0 };
        const struct progress progress = { tell, &told };
        struct model model;

        model_open(&model, places[place].device);
        CHECK_OK(model_create(&model, &options, err));
        device_memory_report(model.device, &before);
        CHECK_OK(offload_load(model.offload, model.compute, ckpt, &progress, err));
        device_memory_report(model.device, &after);
        offload_sizes(model.offload, &sizes);
        for (size_t p = 0; p < MODEL_PARAMS; p++) {
            const bool empty = options.home == OFFLOAD_HOME_META &&
                               offload_param_moves(model.offload, p);

            if (model_param_bytes(p) > largest_bytes)
                largest_bytes = model_param_bytes(p);
            read_bytes += empty ? 0 : model_element_count(p) * 4; /* F32 there */
        }
        homes_bytes = takes_host_memory(options.home) ? sizes.moving_bytes : 0;
        assert_int_equal(told.total_bytes, read_bytes);
        assert_int_equal(told.done_bytes, read_bytes);
        assert_int_equal(after.host_used_bytes, homes_bytes + sizes.host_table_bytes);
        assert_int_equal(sizes.host_home_bytes, homes_bytes);
        assert_true(after.host_peak_bytes <= sizes.host_bytes);
        assert_true(after.host_peak_bytes >= homes_bytes + loader_staging_bytes(NULL));
        assert_true(sizes.host_load_bytes >= loader_staging_bytes(NULL) + largest_bytes);
        assert_int_equal(after.used_bytes - before.used_bytes,
                         sizes.resident_bytes + sizes.shard_bytes +
                             sizes.slot_count * sizes.slot_bytes);
        assert_int_equal(after.used_by[DEVICE_USE_SLOTS], sizes.slot_count * sizes.slot_bytes);
        assert_int_equal(after.peak_bytes, after.used_bytes);
        model_close(&model);
    }
    ckpt_close(ckpt);
}

static void a_checkpoint_that_lacks_a_tensor_is_refused_before_anything_is_read(void **state)
{
    (void)state;
    for (size_t place = 0; place < PLACE_COUNT; place++) {
        /* Also of a unit at home in meta: its loader has to work later. */
        const size_t last = model_index(MODEL_LAYERS - 1, MODEL_DOWN);
        struct offload_options options = place_options(place);
        char *folder = model_write(1, last);
        struct device_memory_report report;
        struct told told = { 0 };
        const struct progress progress = { tell, &told };
        struct ckpt *ckpt = NULL;
        struct model model;
        struct err err_seen;

        CHECK_OK(ckpt_open(folder, &ckpt, err));
        model_open(&model, places[place].device);
        CHECK_OK(model_create(&model, &options, err));
        assert_int_equal(offload_load(model.offload, model.compute, ckpt, &progress, &err_seen),
                         STATUS_BAD_INPUT);
        assert_non_null(strstr(err_seen.message, "layers.5.ffn.down"));
        assert_int_equal(told.count, 0);
        device_memory_report(model.device, &report);
        assert_int_equal(report.host_peak_bytes, 0);
        model_close(&model);
        ckpt_close(ckpt);
        ckpt_testing_remove(folder);
    }
}

/* The device's budget, the host's, and the scratch that is in use already. */
static void budgets_that_are_too_small_are_refused_with_what_was_wanted(void **state)
{
    static const struct {
        uint64_t device_bytes, host_bytes;
        const char *says;
    } cases[] = {
        { MODEL_SCRATCH_BYTES + 1000, 0, "weights that stay on the device" },
        { MODEL_SCRATCH_BYTES + 30000, 0, "slots of" },
        { 0, 1000, "of layers.0.attention on the host" },
        { 0, 20000, "on the host" },
    };
    struct offload_options options = place_options(2);
    struct ckpt *ckpt = model_ckpt(1);

    (void)state;
    options.params_glob = "*.attn.*,*.up";
    options.prefetch_step = 8;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct device_options device_options = {
            .thread_count = 1, .memory_budget_bytes = cases[i].device_bytes,
            .host_budget_bytes = cases[i].host_bytes,
        };
        struct offload_param_desc descs[MODEL_PARAMS];
        struct device_memory_report report;
        char names[MODEL_PARAMS][64];
        struct offload *offload = NULL;
        struct device *device = NULL;
        struct stream *compute = NULL;
        void *scratch = NULL;
        struct err err_seen;

        CHECK_OK(device_open(SIM, &device_options, &device, err));
        CHECK_OK(stream_create(device, STREAM_COMPUTE, &compute, err));
        CHECK_OK(device_alloc(device, DEVICE_USE_SCRATCH, MODEL_SCRATCH_BYTES, &scratch, err));
        model_describe(descs, names);
        CHECK_OK(offload_create(device, descs, MODEL_PARAMS, MODEL_LAYERS, &options, NULL, &offload,
                                err));
        assert_int_equal(offload_load(offload, compute, ckpt, NULL, &err_seen), STATUS_NO_MEMORY);
        if (strstr(err_seen.message, cases[i].says) == NULL)
            fail_msg("'%s' lacks '%s'", err_seen.message, cases[i].says);
        device_memory_report(device, &report);
        assert_int_equal(report.used_bytes, MODEL_SCRATCH_BYTES);
        assert_int_equal(report.host_used_bytes, 0);
        offload_destroy(offload);
        device_free(device, DEVICE_USE_SCRATCH, scratch, MODEL_SCRATCH_BYTES);
        stream_destroy(compute);
        device_close(device);
    }
    ckpt_close(ckpt);
}

static void a_refused_plan_frees_the_loaders(void **state)
{
    struct offload_options options = place_options(1);
    struct model model;
    struct err err;

    (void)state;
    options.prefetch_step = 99;
    model_open(&model, SIM);
    assert_int_equal(model_create(&model, &options, &err), STATUS_BAD_INPUT);
    assert_null(model.offload); /* the leak sanitizer sees the rest */
    model_close(&model);
}

/* Makes and loads a model with the n-th call failing. True when there was no n-th call. */
static bool check_failing_load(struct model *model, const struct offload_options *options,
                               const struct ckpt *ckpt, enum fault_kind kind, uint64_t n)
{
    struct offload_param_desc descs[MODEL_PARAMS];
    struct device_memory_report before, after;
    char names[MODEL_PARAMS][64];
    struct err err_seen;
    enum status st;
    bool done;

    device_memory_report(model->device, &before);
    model_describe(descs, names);
    fault_arm(kind, n);
    st = offload_create(model->device, descs, MODEL_PARAMS, MODEL_LAYERS, options, NULL,
                        &model->offload, &err_seen);
    if (st == STATUS_OK)
        st = offload_load(model->offload, model->compute, ckpt, NULL, &err_seen);
    done = fault_disarm();
    assert_int_equal(st == STATUS_OK, done);
    if (st != STATUS_OK && model->offload != NULL) {
        device_memory_report(model->device, &after);
        assert_int_equal(after.used_bytes, before.used_bytes);
        assert_int_equal(after.host_used_bytes, before.host_used_bytes);
        if (n % 8 == 0) { /* a second try may work */
            CHECK_OK(offload_load(model->offload, model->compute, ckpt, NULL, err));
            CHECK_OK(offload_report_check(model->offload, err));
        }
    }
    model_unload(model);
    device_memory_report(model->device, &after);
    assert_int_equal(after.used_bytes, before.used_bytes);
    assert_int_equal(after.host_used_bytes, before.host_used_bytes);
    return done;
}

static void any_failure_gives_everything_back(void **state)
{
    struct ckpt *ckpt = model_ckpt(3);

    (void)state;
    for (size_t place = 0; place < PLACE_COUNT; place++) {
        const struct offload_options options = place_options(place);
        struct model model;

        model_open(&model, places[place].device);
        for (int kind = 0; kind < FAULT_KIND_COUNT; kind++) {
            for (uint64_t n = 1;
                 !check_failing_load(&model, &options, ckpt, (enum fault_kind)kind, n); n++)
                ;
        }
        model_close(&model);
    }
    ckpt_close(ckpt);
}

/* Fails the n-th call of a pass, abandons it, and the next one is right. */
static void any_failure_of_a_pass_can_be_abandoned(void **state)
{
    struct offload_options options = place_options(2);
    struct ckpt *ckpt = model_ckpt(4);
    float reference[MODEL_OUT_COUNT], out[MODEL_OUT_COUNT];
    struct model model;
    bool done = false;

    (void)state;
    model_reference(SIM, 4, reference);
    model_open(&model, SIM);
    model_load(&model, &options, ckpt);
    for (uint64_t n = 1; !done; n++) {
        struct err err_seen;
        enum status st;

        fault_arm(FAULT_CALLS, n);
        st = model_pass(&model, out, &err_seen);
        done = fault_disarm();
        assert_int_equal(st == STATUS_OK, done);
        if (st != STATUS_OK)
            CHECK_OK(offload_pass_abort(model.offload, err));
        CHECK_OK(model_pass(&model, out, err));
        assert_memory_equal(out, reference, sizeof(out));
        CHECK_OK(offload_report_check(model.offload, err));
    }
    model_close(&model);
    ckpt_close(ckpt);
}

/* Reloading every parameter from another checkpoint makes the model that checkpoint's, wherever its
 * parameters live, and whatever was on its way to a slot. */
static void reloading_works_whatever_the_home(void **state)
{
    struct ckpt *old = model_ckpt(5), *fresh = model_ckpt(6);
    float reference[MODEL_OUT_COUNT], out[MODEL_OUT_COUNT];

    (void)state;
    for (size_t place = 0; place < PLACE_COUNT; place++) {
        struct offload_options options = place_options(place);
        struct device_memory_report report;
        struct offload_sizes sizes;
        struct model model;

        size_t garbage_count = 0;

        options.prefetch_step = options.group_size > 0 ? 3 : 1; /* three are on their way */
        model_reference(places[place].device, 6, reference);
        model_open(&model, places[place].device);
        model_load(&model, &options, old);
        CHECK_OK(model_pass(&model, out, err));
        assert_memory_not_equal(out, reference, sizeof(out));
        for (size_t p = 0; p < MODEL_PARAMS; p++)
            garbage_count += options.home == OFFLOAD_HOME_META &&
                             offload_param_moves(model.offload, p);
        for (size_t p = 0; p < MODEL_PARAMS; p++) {
            const size_t index = p * 7 % MODEL_PARAMS; /* in no order; 7 and 25 are coprime */

            CHECK_OK(offload_reload(model.offload, index, fresh, err));
            CHECK_OK(offload_report_check(model.offload, err));
            if (options.home == OFFLOAD_HOME_META && offload_param_moves(model.offload, index))
                garbage_count--;
            assert_int_equal(offload_is_garbage(model.offload), garbage_count > 0);
        }
        assert_false(offload_is_garbage(model.offload));
        for (int pass = 0; pass < 3; pass++) {
            CHECK_OK(model_pass(&model, out, err));
            assert_memory_equal(out, reference, sizeof(out));
            CHECK_OK(offload_report_check(model.offload, err));
        }
        check_contents(&model, 6);
        offload_sizes(model.offload, &sizes);
        device_memory_report(model.device, &report);
        assert_int_equal(report.host_used_bytes - sizes.host_table_bytes,
                         options.home == OFFLOAD_HOME_SHARDED
                                                     ? 0 : sizes.moving_bytes); /* meta, too */
        model_close(&model);
    }
    ckpt_close(fresh);
    ckpt_close(old);
}

static void a_unit_out_of_meta_is_told_as_such(void **state)
{
    struct offload_options options = place_options(3);
    struct ckpt *ckpt = model_ckpt(7);
    float out[MODEL_OUT_COUNT];
    size_t hosts = 0, metas = 0, i;
    json_t *manifest, *row, *report;
    struct model model;

    (void)state;
    model_open(&model, SIM);
    model_load(&model, &options, ckpt);
    CHECK_OK(offload_reload(model.offload, model_index(3, MODEL_UP), ckpt, err));
    CHECK_OK(model_pass(&model, out, err));
    assert_true(offload_is_garbage(model.offload)); /* `down` of that unit is zeros still */
    CHECK_OK(offload_report_check(model.offload, err));
    manifest = offload_manifest_json(model.offload);
    for (i = 0; (row = json_array_get(manifest, i)) != NULL; i++) {
        const char *home = json_string_value(json_object_get(row, "home"));

        hosts += strcmp(home, "host") == 0;
        metas += strcmp(home, "meta") == 0;
    }
    assert_int_equal(hosts, 1);
    assert_int_equal(metas, 5);
    json_decref(manifest);
    report = offload_report_json(model.offload);
    assert_true(json_integer_value(json_object_get(report, "bytes_moved")) > 0);
    json_decref(report);
    model_close(&model);
    ckpt_close(ckpt);
}

/* A reload that fails, for whatever reason, leaves the old weights serving. */
static void check_old_weights_serve(struct model *model, bool meta, const float *reference)
{
    float out[MODEL_OUT_COUNT];

    for (int pass = 0; pass < 2; pass++) {
        CHECK_OK(model_pass(model, out, err));
        if (!meta)
            assert_memory_equal(out, reference, sizeof(out));
        CHECK_OK(offload_report_check(model->offload, err));
    }
    assert_int_equal(offload_is_garbage(model->offload), meta);
}

static void check_failing_reloads(size_t place, size_t index, enum fault_kind kind,
                                  const struct ckpt *old, const struct ckpt *fresh,
                                  const float *reference)
{
    struct offload_options options = place_options(place);
    struct device_memory_report before, after;
    struct model model;
    bool done = false;

    if (options.group_size > 0)
        options.prefetch_step = 3; /* layer 1's attention is at most the third unit */
    model_open(&model, places[place].device);
    model_load(&model, &options, old);
    device_memory_report(model.device, &before);
    for (uint64_t n = 1; !done; n++) {
        struct err err_seen;
        enum status st;

        fault_arm(kind, n);
        st = offload_reload(model.offload, index, fresh, &err_seen);
        done = fault_disarm();
        assert_int_equal(st == STATUS_OK, done);
        if (done)
            break;
        device_memory_report(model.device, &after);
        assert_int_equal(after.host_used_bytes, before.host_used_bytes);
        check_old_weights_serve(&model, options.home == OFFLOAD_HOME_META, reference);
    }
    model_close(&model);
}

static void any_failure_of_a_reload_leaves_the_old_weights_serving(void **state)
{
    struct ckpt *old = model_ckpt(8), *fresh = model_ckpt(9);
    float reference[MODEL_OUT_COUNT];

    (void)state;
    for (size_t place = 0; place < PLACE_COUNT; place++) {
        model_reference(places[place].device, 8, reference);
        for (int kind = 0; kind < FAULT_KIND_COUNT; kind++) {
            /* of a unit that is ahead of the next pass, and of one that is not */
            check_failing_reloads(place, model_index(1, MODEL_PROJ), (enum fault_kind)kind, old,
                                  fresh, reference);
            check_failing_reloads(place, model_index(5, MODEL_PROJ), (enum fault_kind)kind, old,
                                  fresh, reference);
        }
    }
    ckpt_close(fresh);
    ckpt_close(old);
}

static void a_checkpoint_that_does_not_fit_leaves_the_old_weights_serving(void **state)
{
    struct ckpt *old = model_ckpt(8), *lacking = NULL;
    const size_t index = model_index(1, MODEL_UP);
    char *folder = model_write(9, index);
    float reference[MODEL_OUT_COUNT];

    (void)state;
    CHECK_OK(ckpt_open(folder, &lacking, err));
    for (size_t place = 0; place < PLACE_COUNT; place++) {
        struct offload_options options = place_options(place);
        struct model model;
        struct err err_seen;

        model_reference(places[place].device, 8, reference);
        model_open(&model, places[place].device);
        model_load(&model, &options, old);
        assert_int_equal(offload_reload(model.offload, index, lacking, &err_seen),
                         STATUS_BAD_INPUT);
        assert_non_null(strstr(err_seen.message, "layers.1.ffn.up"));
        check_old_weights_serve(&model, options.home == OFFLOAD_HOME_META, reference);
        model_close(&model);
    }
    ckpt_testing_remove(folder);
    ckpt_close(lacking);
    ckpt_close(old);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_parameter_holds_what_the_checkpoint_says),
        cmocka_unit_test(loading_tells_how_far_it_is_and_holds_one_parameter_twice),
        cmocka_unit_test(a_checkpoint_that_lacks_a_tensor_is_refused_before_anything_is_read),
        cmocka_unit_test(budgets_that_are_too_small_are_refused_with_what_was_wanted),
        cmocka_unit_test(a_refused_plan_frees_the_loaders),
        cmocka_unit_test(any_failure_gives_everything_back),
        cmocka_unit_test(any_failure_of_a_pass_can_be_abandoned),
        cmocka_unit_test(reloading_works_whatever_the_home),
        cmocka_unit_test(a_unit_out_of_meta_is_told_as_such),
        cmocka_unit_test(any_failure_of_a_reload_leaves_the_old_weights_serving),
        cmocka_unit_test(a_checkpoint_that_does_not_fit_leaves_the_old_weights_serving),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
