/* device/selftest_test.c - the checks for people's devices pass on ours, and see what is wrong. */
#include "device/test_harness.h"

#include "base/size.h"
#include "device/cpu/kernels.h"
#include "device/selftest.h"

static json_int_t count_of(const json_t *report, const char *what)
{
    return json_integer_value(json_object_get(report, what));
}

static json_t *selftest_of(const char *spec, const char *kernels)
{
    const struct device_options options = { .thread_count = 1, .cpu_kernels = kernels };
    const struct device_options fastest = { .thread_count = 1 };
    struct device *device, *reference;
    struct err err;
    json_t *report;

    must(device_open(spec, &options, &device, &err), &err);
    must(device_open("cpu", &fastest, &reference, &err), &err);
    report = device_selftest(device, reference, NULL);
    assert_non_null(report);
    device_close(reference); /* asserts that all memory was given back */
    device_close(device);
    return report;
}

static void check_passes(const char *spec, const char *kernels)
{
    json_t *report = selftest_of(spec, kernels), *bits;
    size_t at;

    assert_int_equal(count_of(report, "failed"), 0);
    assert_int_equal(count_of(report, "unsupported"), 0);
    assert_true(count_of(report, "passed") > 120);
    assert_int_equal(json_array_size(json_object_get(report, "checks")),
                     count_of(report, "passed"));
    assert_true(json_array_size(json_object_get(report, "same_bits")) > 20);
    json_array_foreach(json_object_get(report, "same_bits"), at, bits)
        assert_true(json_is_true(json_object_get(bits, "in_any_batch")));
    json_decref(report);
}

/* The processor with each of its tables, whose operators are not all tested one by one. */
static void good_devices_pass(void **state)
{
    const struct cpu_kernels *tables[CPU_KERNELS_MAX];
    const uint32_t count = cpu_kernels_list(tables);

    (void)state;
    for (uint32_t i = 0; i < count; i++)
        check_passes("cpu", tables[i]->id);
    check_passes("sim:memory=256MiB,layout=nz", NULL);
}

/* The n-th thing that fails ends the checks, and its check says why. */
static void a_failure_ends_the_checks_and_says_why(void **state)
{
    static const char *const specs[] = { "sim:memory=256MiB,fail_launch=20",
                                         "sim:memory=256MiB,fail_copy=9" };

    (void)state;
    for (size_t i = 0; i < sizeof(specs) / sizeof(specs[0]); i++) {
        json_t *report = selftest_of(specs[i], NULL);
        const json_t *checks = json_object_get(report, "checks");
        const json_t *last = json_array_get(checks, json_array_size(checks) - 1);

        assert_int_equal(count_of(report, "failed"), 1);
        assert_string_equal(json_string_value(json_object_get(last, "result")), "failed");
        assert_non_null(strstr(json_string_value(json_object_get(last, "reason")), "on purpose"));
        json_decref(report);
    }
}

static void too_little_memory_is_a_failure_too(void **state)
{
    json_t *report = selftest_of("sim:memory=1MiB", NULL);

    (void)state;
    assert_true(count_of(report, "failed") > 0);
    assert_true(count_of(report, "passed") > 0);
    json_decref(report);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_devices_pass),
        cmocka_unit_test(a_failure_ends_the_checks_and_says_why),
        cmocka_unit_test(too_little_memory_is_a_failure_too),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
