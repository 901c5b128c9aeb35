/* offload/report/timeline_test.c - that the timeline says what the report says.
 *
 * Method: some passes of a small model on the software accelerator, traced; the file is read back.
 * Every onload is a span with its unit's name and bytes, the spans of copies and of stalls add up
 * to the report's seconds, and every part of every layer is there. */
#include "offload/testing_model.h"

#include <math.h>
#include <unistd.h>

#define PASSES 3

static double seconds_of(const json_t *root, const char *category, const char *name,
                         size_t *count_out, json_int_t *bytes_out)
{
    const json_t *event;
    double sum_us = 0;
    size_t i;

    *count_out = 0;
    *bytes_out = 0;
    json_array_foreach(json_object_get(root, "traceEvents"), i, event) {
        const char *of = json_string_value(json_object_get(event, "cat"));

        if (of == NULL || strcmp(of, category) != 0)
            continue;
        if (name != NULL && strcmp(json_string_value(json_object_get(event, "name")), name) != 0)
            continue;
        sum_us += json_number_value(json_object_get(event, "dur"));
        *bytes_out +=
            json_integer_value(json_object_get(json_object_get(event, "args"), "bytes"));
        ++*count_out;
    }
    return sum_us * 1e-6;
}

static double report_real(const json_t *report, const char *key)
{
    assert_true(json_is_number(json_object_get(report, key)));
    return json_number_value(json_object_get(report, key));
}

static json_t *trace_read(const struct trace *trace)
{
    char path[] = "/tmp/timeline_test.XXXXXX";
    const int fd = mkstemp(path);
    json_t *root;

    assert_true(fd >= 0);
    (void)close(fd);
    CHECK_OK(trace_write(trace, path, err));
    root = json_load_file(path, 0, NULL);
    (void)unlink(path);
    assert_non_null(root);
    return root;
}

static void check(const json_t *root, const json_t *report)
{
    const json_t *unit;
    json_int_t bytes;
    size_t count, i;

    assert_true(fabs(seconds_of(root, "copy", NULL, &count, &bytes) -
                     report_real(report, "copy_s")) < 1e-6);
    assert_int_equal(bytes, json_integer_value(json_object_get(report, "bytes_moved")));
    assert_int_equal(count, json_integer_value(json_object_get(report, "onloads")));
    assert_true(fabs(seconds_of(root, "stall", NULL, &count, &bytes) -
                     report_real(report, "stall_s")) < 1e-6);
    json_array_foreach(json_object_get(report, "units"), i, unit) {
        const char *name = json_string_value(json_object_get(unit, "name"));

        (void)seconds_of(root, "copy", name, &count, &bytes);
        assert_int_equal(count, json_integer_value(json_object_get(unit, "onloads")));
        assert_int_equal(bytes, json_integer_value(json_object_get(unit, "bytes_moved")));
    }
    for (uint32_t layer = 0; layer < MODEL_LAYERS; layer++) {
        for (int part = 0; part < OFFLOAD_PART_COUNT; part++) {
            char name[48];

            (void)snprintf(name, sizeof(name), "layers.%u.%s", (unsigned)layer,
                           offload_part_name((enum offload_part)part));
            (void)seconds_of(root, "compute", name, &count, &bytes);
            assert_true(count >= PASSES);
        }
    }
}

/* The report's own sums: causes of stalls, homes, shares of the whole run. */
static void check_sums(const json_t *report)
{
    const json_t *home = json_object_get(json_object_get(report, "homes"), "host"), *value;
    const json_t *link = json_object_get(report, "link");
    double stall_s = 0;
    const char *key;

    json_object_foreach((json_t *)json_object_get(report, "stalls"), key, value)
        stall_s += json_number_value(value);
    assert_true(fabs(stall_s - report_real(report, "stall_s")) < 1e-9);
    assert_int_equal(json_integer_value(json_object_get(home, "bytes_moved")),
                     json_integer_value(json_object_get(report, "bytes_moved")));
    assert_int_equal(json_integer_value(json_object_get(home, "bytes_demanded")),
                     json_integer_value(json_object_get(report, "bytes_moved")));
    assert_int_equal(json_integer_value(json_object_get(home, "bytes_reread")) +
                         json_integer_value(json_object_get(home, "bytes")),
                     json_integer_value(json_object_get(report, "bytes_moved")));
    assert_true(report_real(link, "use_share_of_run") > 0);
    assert_true(fabs(report_real(json_object_get(report, "bound"), "share_of_run") -
                     report_real(link, "use_share_of_run")) < 1e-9);
}

/* Whether a copy of the name took so long. */
static bool has_copy(const json_t *root, const char *name, double seconds)
{
    const json_t *event;
    bool found = false;
    size_t i;

    json_array_foreach(json_object_get(root, "traceEvents"), i, event) {
        const char *of = json_string_value(json_object_get(event, "cat"));

        found |= of != NULL && strcmp(of, "copy") == 0 &&
                 strcmp(json_string_value(json_object_get(event, "name")), name) == 0 &&
                 fabs(json_number_value(json_object_get(event, "dur")) * 1e-6 - seconds) < 1e-8;
    }
    return found;
}

/* What the report says of the last pass: each unit was copied, as the timeline has it, before
 * computing went on, and computing went on within the pass. */
static void check_last_pass(const json_t *root, const json_t *report)
{
    const double took_s = report_real(json_object_get(report, "last_pass"), "took_s");
    const json_t *unit;
    double before_s = 0;
    size_t i;

    json_array_foreach(json_object_get(report, "units"), i, unit) {
        const json_t *const last = json_object_get(unit, "last_pass");
        const json_t *const copy = json_object_get(last, "copy_s");
        const double ended_s = json_number_value(json_array_get(copy, 1));

        assert_true(json_is_null(json_object_get(last, "read_s")));
        assert_true(has_copy(root, json_string_value(json_object_get(unit, "name")),
                             ended_s - json_number_value(json_array_get(copy, 0))));
        assert_true(report_real(last, "needed_s") >= before_s);
        assert_true(report_real(last, "ready_s") >= report_real(last, "needed_s"));
        assert_true(report_real(last, "ready_s") >= ended_s);
        before_s = report_real(last, "ready_s");
    }
    assert_true(i > 0 && before_s > 0 && before_s <= took_s);
}

static void check_differences_show(struct offload *offload)
{
    struct err why;

    CHECK_OK(offload_report_check(offload, err));
    offload->counters[1].bytes_moved++;
    offload__counters_publish(offload);
    assert_int_equal(offload_report_check(offload, &why), STATUS_DEVICE);
    assert_non_null(strstr(why.message, "layers.3.ffn, home host"));
    offload->counters[1].bytes_moved--;
    offload->counters[0].onloads++;
    offload__counters_publish(offload);
    assert_int_equal(offload_report_check(offload, &why), STATUS_DEVICE);
    offload->counters[0].onloads--;
    offload__counters_publish(offload);
}

static void spans_add_up_to_the_report(void **state)
{
    const struct trace_options wanted = { 0 };
    struct offload_options options;
    struct ckpt *ckpt = model_ckpt(1);
    struct trace *trace = NULL;
    struct model model;
    json_t *root, *report;

    (void)state;
    CHECK_OK(trace_create(&wanted, &trace, err));
    offload_options_init(&options);
    options.group_size = 2;
    options.num_in_group = 1;
    options.trace = trace;
    model_open(&model, "sim:memory=64MiB,link=20MB/s");
    model_load(&model, &options, ckpt);
    for (int pass = 0; pass < PASSES; pass++) {
        float out[MODEL_OUT_COUNT];

        CHECK_OK(model_pass(&model, out, err));
    }
    /* What is ahead of the next pass arrives, and a last pass tells it. */
    CHECK_OK(offload__ring_sync(model.offload, err));
    offload__counters_harvest(model.offload);
    offload__counters_publish(model.offload);
    report = offload_report_json(model.offload);
    root = trace_read(trace);
    check(root, report);
    check_sums(report);
    check_last_pass(root, report);
    check_differences_show(model.offload);
    json_decref(root);
    json_decref(report);
    model_close(&model);
    ckpt_close(ckpt);
    trace_destroy(trace);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(spans_add_up_to_the_report) };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
