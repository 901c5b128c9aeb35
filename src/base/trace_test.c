/* base/trace_test.c - that a trace is what a viewer can show.
 *
 * Method: spans are added, the file is written and read back as JSON; what must hold of every trace
 * is checked, whatever the spans: every event is complete, no two overlap in a row, and computing
 * has no stall inside it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/trace.h"

struct fixture {
    char folder[64], path[96];
    struct trace *trace;
    uint32_t name;
};

static void fixture_open(struct fixture *fixture, size_t span_count_max)
{
    const struct trace_options options = { .rank = 3, .span_count_max = span_count_max };
    struct err err;

    (void)snprintf(fixture->folder, sizeof(fixture->folder), "/tmp/trace_test.XXXXXX");
    assert_non_null(mkdtemp(fixture->folder));
    (void)snprintf(fixture->path, sizeof(fixture->path), "%s/out.json", fixture->folder);
    assert_int_equal(trace_create(&options, &fixture->trace, &err), STATUS_OK);
    assert_int_equal(trace_name(fixture->trace, "a \"unit\"", &fixture->name, &err), STATUS_OK);
}

static void fixture_close(struct fixture *fixture)
{
    trace_destroy(fixture->trace);
    (void)unlink(fixture->path);
    assert_int_equal(rmdir(fixture->folder), 0); /* nothing else is left in it */
}

static void add(struct fixture *fixture, enum trace_lane lane, uint64_t began_ns, uint64_t ended_ns)
{
    const struct trace_span span = { .lane = lane, .name = fixture->name, .bytes = 7,
                                     .began_ns = began_ns, .ended_ns = ended_ns };

    trace_add(fixture->trace, &span);
}

static int64_t ns_of(const json_t *event, const char *key)
{
    const json_t *value = json_object_get(event, key);

    assert_true(json_is_number(value));
    return (int64_t)(json_number_value(value) * 1000 + 0.5);
}

/* Reads the trace; counts the spans of each lane, checks the rows. */
static json_t *read_back(const struct fixture *fixture, size_t counts[TRACE_LANE_COUNT])
{
    json_error_t error;
    json_t *root = NULL;
    const json_t *event;
    int64_t ends[TRACE_LANE_COUNT * 1000 + 2000] = { 0 };
    struct err err;
    size_t i;

    assert_int_equal(trace_write(fixture->trace, fixture->path, &err), STATUS_OK);
    root = json_load_file(fixture->path, JSON_REJECT_DUPLICATES, &error);
    if (root == NULL)
        fail_msg("line %d: %s", error.line, error.text);
    memset(counts, 0, TRACE_LANE_COUNT * sizeof(*counts));
    json_array_foreach(json_object_get(root, "traceEvents"), i, event) {
        const char *phase = json_string_value(json_object_get(event, "ph"));
        const json_int_t row = json_integer_value(json_object_get(event, "tid"));

        assert_int_equal(json_integer_value(json_object_get(event, "pid")), 3);
        if (strcmp(phase, "M") == 0)
            continue;
        assert_string_equal(phase, "X");
        assert_string_equal(json_string_value(json_object_get(event, "name")), "a \"unit\"");
        assert_true(row >= 1000 && row < (TRACE_LANE_COUNT + 1) * 1000);
        assert_true(ns_of(event, "ts") >= ends[row]);
        ends[row] = ns_of(event, "ts") + ns_of(event, "dur");
        counts[row / 1000 - 1]++;
    }
    return root;
}

static void spans_that_overlap_get_rows_of_their_own(void **state)
{
    struct fixture fixture = { .trace = NULL };
    size_t counts[TRACE_LANE_COUNT];

    (void)state;
    fixture_open(&fixture, 1000);
    for (uint64_t i = 0; i < 100; i++) {
        add(&fixture, TRACE_DISK, 1000000000 + i * 10, 1000000000 + i * 10 + 35);
        add(&fixture, TRACE_COPY, 1000000000 + i * 10, 1000000000 + i * 10 + 10);
    }
    json_decref(read_back(&fixture, counts));
    assert_int_equal(counts[TRACE_DISK], 100);
    assert_int_equal(counts[TRACE_COPY], 100);
    fixture_close(&fixture);
}

static void computing_is_told_without_its_stalls(void **state)
{
    struct fixture fixture = { .trace = NULL };
    size_t counts[TRACE_LANE_COUNT], i;
    int64_t computing_ns = 0;
    const json_t *event;
    json_t *root;

    (void)state;
    fixture_open(&fixture, 1000);
    add(&fixture, TRACE_STALL, 2500, 2600);
    add(&fixture, TRACE_STALL, 1000, 1100); /* before it: nothing of it */
    add(&fixture, TRACE_STALL, 1900, 2100); /* over its beginning */
    add(&fixture, TRACE_STALL, 2950, 3100); /* over its end, and the next one's beginning */
    add(&fixture, TRACE_COMPUTE, 2000, 3000);
    add(&fixture, TRACE_COMPUTE, 3000, 3200);
    root = read_back(&fixture, counts);
    json_array_foreach(json_object_get(root, "traceEvents"), i, event) {
        const char *category = json_string_value(json_object_get(event, "cat"));

        if (category != NULL && strcmp(category, "compute") == 0)
            computing_ns += ns_of(event, "dur");
    }
    assert_int_equal(computing_ns, 1000 - 100 - 100 - 50 + 200 - 100);
    json_decref(root);
    fixture_close(&fixture);
}

static void a_full_ring_drops_the_oldest_and_says_so(void **state)
{
    struct fixture fixture = { .trace = NULL };
    size_t counts[TRACE_LANE_COUNT];
    json_t *root;

    (void)state;
    fixture_open(&fixture, 10);
    for (uint64_t i = 0; i < 25; i++)
        add(&fixture, TRACE_STEP, 100 * i, 100 * i + 50);
    root = read_back(&fixture, counts);
    assert_int_equal(counts[TRACE_STEP], 10);
    assert_int_equal(trace_dropped_count(fixture.trace), 15);
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(root, "otherData"), "dropped_spans")),
        15);
    assert_true(ns_of(json_array_get(json_object_get(root, "traceEvents"), 4), "ts") >= 1500);
    json_decref(root);
    fixture_close(&fixture);
}

static void a_trace_without_spans_is_a_trace(void **state)
{
    struct fixture fixture = { .trace = NULL };
    size_t counts[TRACE_LANE_COUNT];

    (void)state;
    fixture_open(&fixture, 10);
    trace_add(NULL, NULL); /* nothing is traced */
    json_decref(read_back(&fixture, counts));
    fixture_close(&fixture);
}

static void a_path_that_cannot_be_is_refused_before_the_run(void **state)
{
    struct fixture fixture = { .trace = NULL };
    struct err err;

    (void)state;
    fixture_open(&fixture, 10);
    assert_int_equal(trace_check_path(fixture.path, &err), STATUS_OK);
    assert_int_not_equal(access(fixture.path, F_OK), 0);
    assert_int_equal(trace_check_path(fixture.folder, &err), STATUS_BAD_INPUT);
    assert_int_equal(trace_check_path("/no/such/folder/out.json", &err), STATUS_IO);
    assert_non_null(strstr(err.message, "/no/such/folder/out.json"));
    assert_int_equal(trace_write(fixture.trace, "/no/such/folder/out.json", &err), STATUS_IO);
    fixture_close(&fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spans_that_overlap_get_rows_of_their_own),
        cmocka_unit_test(computing_is_told_without_its_stalls),
        cmocka_unit_test(a_full_ring_drops_the_oldest_and_says_so),
        cmocka_unit_test(a_trace_without_spans_is_a_trace),
        cmocka_unit_test(a_path_that_cannot_be_is_refused_before_the_run),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
