/* offload/ring_test.c - that weights are there when they are read, and that what moved is told
 * truly.
 *
 * Method: a small model with real copies and real readers on the software accelerator. Whatever
 * the settings, its output must be the same bit for bit as with everything resident, and the bytes
 * moved what this file reckons from the parameters alone. The two waits are then left out on
 * purpose, on a link or with readers slow enough that the order surely goes wrong: the poison has
 * to show it. */
#include "offload/testing_model.h"

#include <math.h>

#include "base/buf.h"

#define SIM "sim:memory=64MiB"
#define PASSES 3

/* The faults are data races, which the thread sanitizer reports before the poison can show them. */
#ifdef __SANITIZE_THREAD__
#define RACES_ARE_REPORTED true
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define RACES_ARE_REPORTED true
#endif
#endif
#ifndef RACES_ARE_REPORTED
#define RACES_ARE_REPORTED false
#endif

static struct offload_options v2(int64_t group_size, int64_t num_in_group, int64_t prefetch_step)
{
    struct offload_options options;

    offload_options_init(&options);
    options.group_size = group_size;
    options.num_in_group = num_in_group;
    options.prefetch_step = prefetch_step;
    options.poison = true;
    return options;
}

static int64_t number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);

    if (!json_is_integer(value))
        fail_msg("no integer %s", key);
    return json_integer_value(value);
}

static double real(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);

    if (!json_is_number(value))
        fail_msg("no number %s", key);
    return json_number_value(value);
}

/* What a unit's record takes, from the shapes alone: the moving ones of a layer's part. */
static uint64_t record_bytes(const struct offload *offload, uint32_t layer, enum offload_part part)
{
    uint64_t bytes = 0;

    for (int kind = 0; kind < MODEL_PARAMS_PER_LAYER; kind++) {
        const size_t index = model_index(layer, (enum model_kind)kind);

        if ((kind >= MODEL_UP) == (part == OFFLOAD_PART_FFN) && offload_param_moves(offload, index))
            bytes += (model_param_bytes(index) + 255) / 256 * 256;
    }
    return bytes;
}

/* Checks the report after `passes` passes since the load: each unit was brought once for each pass,
 * and the first prefetch_step once more. */
static void check_bytes(const struct model *model, int64_t passes, int64_t prefetch_step, bool meta)
{
    json_t *report = offload_report_json(model->offload);
    const json_t *units = json_object_get(report, "units");
    uint64_t moved_bytes = 0;
    size_t unit = 0;

    CHECK_OK(offload_report_check(model->offload, err));
    assert_int_equal(number(report, "passes"), passes);
    for (uint32_t layer = 0; layer < MODEL_LAYERS; layer++) {
        for (int part = 0; part < OFFLOAD_PART_COUNT; part++) {
            const uint64_t bytes = record_bytes(model->offload, layer, (enum offload_part)part);
            const json_t *told = json_array_get(units, unit);
            int64_t onloads;

            if (bytes == 0)
                continue;
            onloads = passes + ((int64_t)unit < prefetch_step ? 1 : 0);
            assert_int_equal(number(told, "bytes"), bytes);
            assert_int_equal(number(told, "onloads"), onloads);
            assert_int_equal(number(told, "bytes_moved"), meta ? 0 : (uint64_t)onloads * bytes);
            moved_bytes += meta ? 0 : (uint64_t)onloads * bytes;
            unit++;
        }
    }
    assert_int_equal(json_array_size(units), unit);
    assert_int_equal(number(report, "bytes_moved"), moved_bytes);
    assert_int_equal(number(report, "bytes_planned"), moved_bytes);
    json_decref(report);
}

static void check_passes(struct model *model, const float *reference, int passes)
{
    float out[MODEL_OUT_COUNT];

    for (int pass = 0; pass < passes; pass++) {
        CHECK_OK(model_pass(model, out, err));
        assert_memory_equal(out, reference, sizeof(out));
    }
}

static void output_is_the_same_whatever_moves(void **state)
{
    struct ckpt *ckpt = model_ckpt(1);
    float reference[MODEL_OUT_COUNT];
    struct model model;

    (void)state;
    model_reference(SIM, 1, reference);
    model_open(&model, SIM);
    for (int64_t group = 1; group <= 4; group++) {
        for (int64_t in_group = 1; in_group <= group; in_group += 2) {
            const int64_t chosen = MODEL_LAYERS / group * in_group +
                                   (MODEL_LAYERS % group > group - in_group
                                        ? MODEL_LAYERS % group - (group - in_group) : 0);

            for (int64_t prefetch = 1; prefetch <= chosen; prefetch++) {
                for (int64_t spare = 0; spare < 4; spare++) {
                    struct offload_options options = v2(group, in_group, prefetch);

                    options.slot_count = spare == 0 ? 0 : prefetch + spare;
                    options.poison = spare != 1;
                    model_load(&model, &options, ckpt);
                    check_passes(&model, reference, PASSES);
                    check_bytes(&model, PASSES, prefetch, false);
                    model_unload(&model);
                }
            }
        }
    }
    model_close(&model);
    ckpt_close(ckpt);
}

static void globs_and_v1_move_other_units_with_the_same_output(void **state)
{
    static const char *const globs[] = { "*", "*.attn.*", "*.proj,*.down", "layers.[34].ffn.up" };
    struct ckpt *ckpt = model_ckpt(2);
    float reference[MODEL_OUT_COUNT];
    struct offload_options options;
    struct model model;

    (void)state;
    model_reference(SIM, 2, reference);
    model_open(&model, SIM);
    for (size_t i = 0; i < sizeof(globs) / sizeof(globs[0]); i++) {
        options = v2(1, 1, 2);
        options.params_glob = globs[i];
        model_load(&model, &options, ckpt);
        check_passes(&model, reference, PASSES);
        check_bytes(&model, PASSES, 2, false);
        model_unload(&model);
    }
    for (uint64_t bytes = 1; bytes < 90000; bytes += 9000) {
        options = v2(0, 1, 1);
        options.cpu_offload_bytes = bytes;
        model_load(&model, &options, ckpt);
        check_passes(&model, reference, PASSES);
        check_bytes(&model, PASSES, 1, false);
        model_unload(&model);
    }
    model_close(&model);
    ckpt_close(ckpt);
}

/* A slow link and fast readers, then the other way round: with both waits in place all is well, and
 * time is told as it must be. */
static void slow_links_and_slow_readers_change_nothing(void **state)
{
    const struct offload_options options = v2(2, 1, 1);
    struct ckpt *ckpt = model_ckpt(3);
    float reference[MODEL_OUT_COUNT];
    struct model model;
    json_t *report;

    (void)state;
    model_reference(SIM, 3, reference);
    model_open(&model, SIM ",link=1MB/s,latency=1ms");
    model_load(&model, &options, ckpt);
    check_passes(&model, reference, PASSES);
    check_bytes(&model, PASSES, 1, false);
    report = offload_report_json(model.offload);
    /* 3 units in 3 passes over 1 MB/s; copies are as slow as was set, and hardly anything else is
     * done, so the pass stands and waits. */
    assert_true(real(report, "stall_s") > 0);
    assert_true(real(report, "stall_s") <= real(report, "run_s"));
    assert_true(fabs(real(report, "run_s") - real(report, "compute_s") - real(report, "stall_s")) <
                1e-6);
    assert_true(real(report, "copy_s") > 0);
    assert_true(real(report, "run_s") >= 8 * (double)number(report, "bytes_moved") / 1e6 / 12);
    assert_int_equal(number(json_object_get(report, "link"), "bytes_per_s_set"), 1000000);
    assert_true(real(json_object_get(report, "link"), "use_share_of_run") <= 1.001);
    assert_true(real(json_object_get(report, "link"), "busy_share_of_run") <= 1.001);
    assert_true(real(json_object_get(report, "link"), "use_share_of_run") > 0);
    json_decref(report);
    model_close(&model);
    ckpt_close(ckpt);
}

static bool any_nan(const float *values, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (isnan(values[i]))
            return true;
    }
    return false;
}

/* The copy takes 30 ms, the pass less than one: without the wait it reads poison. Should this
 * machine stop the pass for so long that the copy wins, it is tried again. */
static void a_missing_wait_for_the_copy_is_caught(void **state)
{
    struct offload_options options = v2(2, 1, 1);
    float out[MODEL_OUT_COUNT];
    struct ckpt *ckpt;
    struct model model;
    bool caught = false;

    (void)state;
    if (RACES_ARE_REPORTED)
        skip();
    ckpt = model_ckpt(4);
    options.fault_skip_loaded_wait = true;
    model_open(&model, SIM ",latency=30ms");
    for (int attempt = 0; attempt < 20 && !caught; attempt++) {
        model_load(&model, &options, ckpt);
        CHECK_OK(model_pass(&model, out, err));
        caught = any_nan(out, MODEL_OUT_COUNT);
        model_unload(&model);
    }
    assert_true(caught);
    model_close(&model);
    ckpt_close(ckpt);
}

/* Keeps the compute stream busy: many times over the same product, into memory nobody reads. */
static void queue_slow_work(struct model *model, float *x, float *out)
{
    for (int i = 0; i < 2; i++) {
        const struct op op = {
            .kind = OP_MATMUL,
            .matmul = { .out = out, .x = x, .weight = x, .weight_dtype = DTYPE_F32,
                        .row_count = 256, .n_count = 256, .k_count = 256, .batch_count = 1,
                        .out_row_stride = 256, .x_row_stride = 256 },
        };

        CHECK_OK(device_launch(model->compute, &op, err));
    }
}

/* Readers that are slow to begin, and a link as fast as memory: without the wait the copy for the
 * unit after the next overwrites a slot that is still to be read, and is then poisoned itself. */
static void a_missing_wait_for_the_reader_is_caught(void **state)
{
    const uint64_t busy_bytes = 2 * 256 * 256 * sizeof(float);
    struct offload_options options = v2(1, 1, 1);
    float out[MODEL_OUT_COUNT];
    struct ckpt *ckpt;
    struct model model;
    bool caught = false;
    void *busy;

    (void)state;
    if (RACES_ARE_REPORTED)
        skip();
    ckpt = model_ckpt(5);
    model_open(&model, SIM);
    CHECK_OK(device_alloc(model.device, DEVICE_USE_SCRATCH, busy_bytes, &busy, err));
    CHECK_OK(device_fill(model.compute, busy, 0, busy_bytes, err));
    for (int faulty = 0; faulty < 2; faulty++) {
        options.fault_skip_ended_wait = faulty == 1;
        caught = false;
        for (int attempt = 0; attempt < (faulty ? 20 : 2) && !caught; attempt++) {
            model_load(&model, &options, ckpt);
            CHECK_OK(model_embed(&model, err));
            for (uint32_t layer = 0; layer < MODEL_LAYERS; layer++) {
                CHECK_OK(model_part(&model, layer, OFFLOAD_PART_ATTENTION, err));
                queue_slow_work(&model, busy, (float *)busy + 256 * 256);
                CHECK_OK(model_part(&model, layer, OFFLOAD_PART_FFN, err));
            }
            CHECK_OK(device_copy_out(model.compute, out, model.x, sizeof(out), err));
            CHECK_OK(stream_sync(model.compute, err));
            offload_pass_done(model.offload);
            caught = any_nan(out, MODEL_OUT_COUNT);
            model_unload(&model);
        }
        assert_int_equal(caught, faulty == 1); /* the same pass with the wait is right */
    }
    device_free(model.device, DEVICE_USE_SCRATCH, busy, busy_bytes);
    model_close(&model);
    ckpt_close(ckpt);
}

static void a_released_slot_is_filled_with_poison(void **state)
{
    struct offload_options options = v2(1, 1, 1);
    struct ckpt *ckpt = model_ckpt(6);
    struct model model;
    const size_t up = model_index(0, MODEL_UP);
    uint8_t *bytes = malloc(model_param_bytes(up)), *expected = model_expected(6, up);
    const void *address;

    (void)state;
    options.slot_count = MODEL_LAYERS; /* nothing comes to layer 0's slot for a while */
    model_open(&model, SIM);
    model_load(&model, &options, ckpt);
    assert_null(offload_tensor(model.offload, up)->data);
    CHECK_OK(offload_begin(model.offload, 0, OFFLOAD_PART_FFN, err));
    address = offload_tensor(model.offload, up)->data;
    assert_non_null(address);
    assert_int_equal((uintptr_t)address % DEVICE_ALIGNMENT, 0);
    CHECK_OK(device_copy_out(model.compute, bytes, address, model_param_bytes(up), err));
    CHECK_OK(offload_end(model.offload, 0, OFFLOAD_PART_FFN, err));
    assert_null(offload_tensor(model.offload, up)->data);
    CHECK_OK(stream_sync(model.compute, err));
    assert_memory_equal(bytes, expected, model_param_bytes(up));
    CHECK_OK(device_copy_out(model.compute, bytes, address, model_param_bytes(up), err));
    CHECK_OK(stream_sync(model.compute, err));
    for (size_t i = 0; i < model_param_bytes(up); i++)
        assert_int_equal(bytes[i], OFFLOAD_POISON);
    /* A slot that nothing has come to yet. */
    address = model.offload->slots + (MODEL_LAYERS - 1) * model.offload->sizes.slot_bytes;
    CHECK_OK(device_copy_out(model.compute, bytes, address, model_param_bytes(up), err));
    CHECK_OK(stream_sync(model.compute, err));
    for (size_t i = 0; i < model_param_bytes(up); i++)
        assert_int_equal(bytes[i], OFFLOAD_POISON);
    CHECK_OK(offload_pass_abort(model.offload, err));
    free(bytes);
    free(expected);
    model_close(&model);
    ckpt_close(ckpt);
}

static void meta_goes_through_the_same_sequence_and_moves_nothing(void **state)
{
    static const char *const devices[] = { SIM, "cpu" };
    struct ckpt *ckpt = model_ckpt(7);

    (void)state;
    for (size_t d = 0; d < 2; d++) {
        for (int64_t prefetch = 1; prefetch <= 3; prefetch++) {
            struct offload_options options = v2(2, 1, prefetch);
            float out[MODEL_OUT_COUNT];
            struct model model;
            json_t *report;

            model_open(&model, devices[d]);
            model_load(&model, &options, ckpt); /* leaves poison in the device's memory */
            CHECK_OK(model_pass(&model, out, err));
            model_unload(&model);
            options.home = OFFLOAD_HOME_META;
            model_load(&model, &options, ckpt);
            assert_true(offload_is_garbage(model.offload));
            for (int pass = 0; pass < PASSES; pass++) {
                CHECK_OK(model_pass(&model, out, err));
                assert_false(any_nan(out, MODEL_OUT_COUNT)); /* zeros, not poison */
            }
            check_bytes(&model, PASSES, prefetch, true);
            report = offload_report_json(model.offload);
            assert_string_equal(json_string_value(json_object_get(report, "mode")), "meta");
            assert_true(json_is_true(json_object_get(report, "garbage")));
            assert_int_equal(number(report, "onloads"), PASSES * 3 + prefetch);
            json_decref(report);
            model_close(&model);
        }
    }
    ckpt_close(ckpt);
}

static void host_memory_is_used_in_place(void **state)
{
    const struct offload_options options = v2(2, 1, 1);
    struct ckpt *ckpt = model_ckpt(8);
    float reference[MODEL_OUT_COUNT];
    struct offload_sizes sizes;
    struct model model;
    json_t *report, *manifest;
    size_t in_place_count = 0, i;
    json_t *row;

    (void)state;
    model_reference("cpu", 8, reference);
    model_open(&model, "cpu");
    model_load(&model, &options, ckpt);
    offload_sizes(model.offload, &sizes);
    assert_int_equal(sizes.slot_count, 0);
    assert_int_equal(sizes.unit_count, 3);
    assert_null(offload_tensor(model.offload, model_index(1, MODEL_UP))->data);
    check_passes(&model, reference, PASSES);
    assert_null(offload_tensor(model.offload, model_index(1, MODEL_UP))->data);
    CHECK_OK(offload_report_check(model.offload, err));
    report = offload_report_json(model.offload);
    assert_int_equal(number(report, "passes"), PASSES);
    assert_int_equal(number(report, "bytes_moved"), 0);
    assert_int_equal(number(report, "onloads"), 0);
    for (i = 0; (row = json_array_get(json_object_get(report, "units"), i)) != NULL; i++)
        assert_true(json_is_true(json_object_get(row, "in_place")));
    json_decref(report);
    manifest = offload_manifest_json(model.offload);
    for (i = 0; (row = json_array_get(manifest, i)) != NULL; i++)
        in_place_count += json_is_true(json_object_get(row, "in_place"));
    assert_int_equal(in_place_count, 3);
    json_decref(manifest);
    model_close(&model);
    ckpt_close(ckpt);
}

/* Stops in the middle of every part in turn: after its begin, or after its end. */
static void an_abandoned_pass_leaves_the_next_one_right(void **state)
{
    static const char *const devices[] = { SIM, "cpu" };
    struct offload_options options = v2(1, 1, 3);
    struct ckpt *ckpt = model_ckpt(9);

    (void)state;
    options.params_glob = "*";
    for (size_t d = 0; d < 2; d++) {
        float reference[MODEL_OUT_COUNT];
        struct model model;

        model_reference(devices[d], 9, reference);
        model_open(&model, devices[d]);
        model_load(&model, &options, ckpt);
        for (uint32_t stop = 0; stop < MODEL_LAYERS * OFFLOAD_PART_COUNT; stop++) {
            CHECK_OK(model_embed(&model, err));
            for (uint32_t i = 0; i < stop; i++)
                CHECK_OK(model_part(&model, i / 2, (enum offload_part)(i % 2), err));
            CHECK_OK(offload_begin(model.offload, stop / 2, (enum offload_part)(stop % 2), err));
            if (stop % 3 == 0)
                CHECK_OK(offload_end(model.offload, stop / 2, (enum offload_part)(stop % 2), err));
            CHECK_OK(offload_pass_abort(model.offload, err));
            assert_null(offload_tensor(model.offload, model_index(stop / 2, MODEL_UP))->data);
            CHECK_OK(offload_report_check(model.offload, err));
            check_passes(&model, reference, 2);
            CHECK_OK(offload_report_check(model.offload, err));
        }
        model_close(&model);
    }
    ckpt_close(ckpt);
}

static void after_a_reset_exactly_the_passes_count(void **state)
{
    const struct offload_options options = v2(2, 1, 2);
    struct ckpt *ckpt = model_ckpt(10);
    float reference[MODEL_OUT_COUNT];
    struct offload_sizes sizes;
    struct model model;
    json_t *report;

    (void)state;
    model_reference(SIM, 10, reference);
    model_open(&model, SIM);
    model_load(&model, &options, ckpt);
    check_passes(&model, reference, 2);
    offload_report_reset(model.offload);
    report = offload_report_json(model.offload);
    assert_int_equal(number(report, "passes"), 0);
    assert_int_equal(number(report, "bytes_moved"), 0);
    assert_true(real(report, "run_s") == 0);
    json_decref(report);
    check_passes(&model, reference, 5);
    offload_sizes(model.offload, &sizes);
    report = offload_report_json(model.offload);
    assert_int_equal(number(report, "passes"), 5);
    assert_int_equal(number(report, "bytes_moved"), 5 * sizes.moving_bytes);
    assert_int_equal(number(report, "bytes_planned"), 5 * sizes.moving_bytes);
    CHECK_OK(offload_report_check(model.offload, err));
    json_decref(report);
    model_close(&model);
    ckpt_close(ckpt);
}

/* Asks for reports until told to stop, as a server's threads do; for the thread sanitizer. */
struct asker {
    struct offload *offload;
    atomic_bool stop;
    atomic_uint asked_count;
    const char *complaint; /* read after the thread has ended */
};

static void *ask(void *context)
{
    struct asker *asker = context;

    while (!atomic_load(&asker->stop)) {
        json_t *report = offload_report_json(asker->offload);
        json_t *manifest = offload_manifest_json(asker->offload);

        /* Of one moment: whole passes, never half of one. */
        if (number(report, "bytes_moved") != number(report, "bytes_planned"))
            asker->complaint = "a report of two moments";
        json_decref(report);
        json_decref(manifest);
        offload_report_log(asker->offload, NULL);
        if (offload_report_check(asker->offload, NULL) != STATUS_OK)
            asker->complaint = "a check that fails between passes";
        atomic_fetch_add(&asker->asked_count, 1);
    }
    return NULL;
}

static void reports_may_be_asked_for_by_any_thread(void **state)
{
    const struct offload_options options = v2(1, 1, 2);
    struct ckpt *ckpt = model_ckpt(11);
    float reference[MODEL_OUT_COUNT];
    struct model model;
    struct asker asker = { 0 };
    pthread_t thread;

    (void)state;
    model_reference(SIM, 11, reference);
    model_open(&model, SIM);
    model_load(&model, &options, ckpt);
    asker.offload = model.offload;
    assert_int_equal(pthread_create(&thread, NULL, ask, &asker), 0);
    for (int pass = 0; pass < 2000 && (pass < 20 || atomic_load(&asker.asked_count) < 20); pass++)
        check_passes(&model, reference, 1);
    atomic_store(&asker.stop, true);
    assert_int_equal(pthread_join(thread, NULL), 0);
    if (asker.complaint != NULL)
        fail_msg("%s", asker.complaint);
    model_close(&model);
    ckpt_close(ckpt);
}

/* A log that keeps all lines. */
static void keep_line(void *user, enum log_level level, const char *line)
{
    struct buf *lines = user;

    (void)level;
    CHECK_OK(buf_printf(lines, err, "%s\n", line));
}

static void the_manifest_names_every_parameter_once(void **state)
{
    struct offload_options options = v2(2, 1, 1);
    struct ckpt *ckpt = model_ckpt(12);
    bool seen[MODEL_PARAMS] = { false };
    struct model model;
    json_t *manifest, *row, *name;
    struct buf lines;
    size_t i, j;
    const struct log log = { keep_line, &lines };

    (void)state;
    buf_init(&lines, 1 << 16);
    model_open(&model, SIM);
    options.params_glob = "*.up,*.attn.*"; /* down stays, so that a part is torn in two */
    model_load(&model, &options, ckpt);
    manifest = offload_manifest_json(model.offload);
    for (i = 0; (row = json_array_get(manifest, i)) != NULL; i++) {
        uint64_t bytes = 0;

        for (j = 0; (name = json_array_get(json_object_get(row, "params"), j)) != NULL; j++) {
            size_t p = 0;
            char text[64];

            while (strcmp(model_name(p, "", text, sizeof(text)), json_string_value(name)) != 0)
                assert_true(++p < MODEL_PARAMS);
            assert_false(seen[p]);
            seen[p] = true;
            bytes += (model_param_bytes(p) + 255) / 256 * 256;
            assert_string_equal(json_string_value(json_object_get(row, "home")),
                                offload_param_moves(model.offload, p) ? "host" : "device");
        }
        assert_int_equal(number(row, "bytes"), bytes);
    }
    for (size_t p = 0; p < MODEL_PARAMS; p++)
        assert_true(seen[p]);
    json_decref(manifest);
    CHECK_OK(offload_manifest_log(model.offload, &log, err));
    assert_non_null(strstr(lines.data, "layers 1, 3, 5: attention at home on the host, 3 x "));
    assert_non_null(strstr(lines.data, "layers 0, 2, 4: attention on the device, 3 x "));
    assert_non_null(strstr(lines.data, "layer 1: rest of ffn on the device, "));
    assert_non_null(strstr(lines.data, "outside the layers: on the device, 1 parameter, "));
    assert_non_null(strstr(lines.data, "2 slots of "));
    buf_clear(&lines);
    offload_report_log(model.offload, &log);
    assert_non_null(strstr(lines.data, "0 passes in "));
    buf_deinit(&lines);
    model_close(&model);
    ckpt_close(ckpt);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(output_is_the_same_whatever_moves),
        cmocka_unit_test(globs_and_v1_move_other_units_with_the_same_output),
        cmocka_unit_test(slow_links_and_slow_readers_change_nothing),
        cmocka_unit_test(a_missing_wait_for_the_copy_is_caught),
        cmocka_unit_test(a_missing_wait_for_the_reader_is_caught),
        cmocka_unit_test(a_released_slot_is_filled_with_poison),
        cmocka_unit_test(meta_goes_through_the_same_sequence_and_moves_nothing),
        cmocka_unit_test(host_memory_is_used_in_place),
        cmocka_unit_test(an_abandoned_pass_leaves_the_next_one_right),
        cmocka_unit_test(after_a_reset_exactly_the_passes_count),
        cmocka_unit_test(reports_may_be_asked_for_by_any_thread),
        cmocka_unit_test(the_manifest_names_every_parameter_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
