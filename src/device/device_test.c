/* device/device_test.c - what every device promises besides its ops: specs, memory within the
 * budget, streams and events as far as a synchronous device has them. */
#include "device/test_harness.h"

#include <pthread.h>
#include <stdatomic.h>

#include "base/clock.h"
#include "base/size.h"
#include "device/cpu/kernels.h"
#include "device/measure.h"
#include "device/settings.h"

static enum status try_open(const char *spec, const struct device_options *options,
                            struct err *err)
{
    struct device *device;
    const enum status st = device_open(spec, options, &device, err);

    if (st == STATUS_OK)
        device_close(device);
    return st;
}

static void good_specs_open(void **state)
{
    static const char *const specs[] = {
        "cpu", "CPU", "cpu:", "sim", "sim:", "sim:memory=1MiB", "sim:link=0",
        "sim:link=16GB/s,latency=10us",
        "sim:LINK=1.5GiB/s,memory=2MiB,latency=1ms,fail_alloc=3",
    };
    const struct device_options options = { .thread_count = 1 };
    struct device *device;
    struct err err;

    (void)state;
    for (size_t i = 0; i < sizeof(specs) / sizeof(specs[0]); i++)
        must(try_open(specs[i], &options, &err), &err);
    must(device_open("sim:link=16GB/s,memory=3MiB,latency=10us", &options, &device, &err), &err);
    assert_int_equal(device_info(device)->memory_bytes, 3 * MIB);
    assert_int_equal(device_info(device)->link_bytes_per_s, 16000000000);
    assert_int_equal(device_info(device)->link_latency_ns, 10000);
    assert_false(device_info(device)->memory_is_host);
    assert_string_equal(device_info(device)->name, "sim");
    device_close(device);
    assert_non_null(device_help()[0]);
}

static void bad_specs_name_the_nearest(void **state)
{
    static const struct {
        const char *spec, *says;
    } cases[] = {
        { "smi", "nearest is 'sim'" },
        { "", "nearest is 'cpu'" },
        { "a-very-long-name-that-nobody-would-give-to-a-device-but-may-type", "no device" },
        { "cpu:threads=2", "nearest is 'bf16-products'" },
        { "cpu:bf16-products=yes", "on" },
        { "sim:memroy=1GiB", "nearest is 'memory'" },
        { "sim:memory", "needs a value" },
        { "sim:memory=", "needs a value" },
        { "sim:memory=lots", "not a size" },
        { "sim:memory=1", "must be from" },
        { "sim:memory=1e30", "too large" },
        { "sim:link=999", "must be from" },
        { "sim:link=fast", "not a size" },
        { "sim:latency=10", "needs a unit" },
        { "sim:latency=2s", "must be from" },
        { "sim:latency=soon", "not a time" },
        { "sim:memory=1MiB,memory=2MiB", "given twice" },
        { "sim:fail_copy=-1", "not a count" },
        { "ascend:first", "the number of an NPU" },
        { "npu:1234", "at most 1023" },
        { "ascned:0", "nearest is 'ascend'" },
        { "sim:link=1111111111111111111111111111111111111111111111111111111111111111111111111111"
          "11111111111111111111111111111111", "too long" },
    };
    const struct device_options options = { .thread_count = 1 };
    struct err err;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (try_open(cases[i].spec, &options, &err) != STATUS_BAD_INPUT)
            fail_msg("'%s' was not refused", cases[i].spec);
        if (strstr(err.message, cases[i].says) == NULL)
            fail_msg("'%s': \"%s\" does not say \"%s\"", cases[i].spec, err.message,
                     cases[i].says);
    }
}

/* Processors that have BF16's products, but no tiles, round for them if told to. */
static void rounding_is_for_those_that_gain_by_it(void **state)
{
    struct device_options options = { .thread_count = 1 };
    struct err err;

    (void)state;
    must(try_open("cpu:bf16-products=off", &options, &err), &err);
    if (cpu_kernels_select_bf16() != NULL) {
        must(try_open("cpu:bf16-products=on", &options, &err), &err);
    } else {
        assert_int_equal(try_open("cpu:bf16-products=on", &options, &err), STATUS_UNAVAILABLE);
        assert_non_null(strstr(err.message, "AVX-512 BF16"));
    }
    options.cpu_kernels = "scalar";
    assert_int_equal(try_open("cpu:bf16-products=on", &options, &err), STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "exclude each other"));
}

static void each_table_of_kernels_can_be_asked_for(void **state)
{
    struct device_options options = { .thread_count = 1 };
    const struct cpu_kernels *tables[CPU_KERNELS_MAX];
    const uint32_t count = cpu_kernels_list(tables);
    struct err err;

    (void)state;
    for (uint32_t i = 0; i < count; i++) {
        struct device *device;
        options.cpu_kernels = tables[i]->id;
        must(device_open("cpu", &options, &device, &err), &err);
        assert_memory_equal(device_info(device)->description, tables[i]->name,
                            strlen(tables[i]->name));
        device_close(device);
    }
    options.cpu_kernels = "avx";
    assert_int_equal(try_open("sim", &options, &err), STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, tables[count - 1]->id));
}

static void a_budget_above_the_memory_is_refused(void **state)
{
    const struct device_options options = { .thread_count = 1,
                                            .memory_budget_bytes = 1 * MIB + 1 };
    struct err err;

    (void)state;
    assert_int_equal(try_open("sim:memory=1MiB", &options, &err), STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "1048577"));
    assert_non_null(strstr(err.message, "1048576"));
}

/* The accounts of any device; at the budget, to the byte. */
static void check_accounts(const char *spec)
{
    const struct device_options options = { .thread_count = 1, .memory_budget_bytes = 256 * KIB,
                                            .host_budget_bytes = 64 * KIB };
    struct device_memory_report report;
    struct device *device;
    void *weights, *kv, *more, *host;
    struct err err;

    must(device_open(spec, &options, &device, &err), &err);
    must(device_alloc(device, DEVICE_USE_WEIGHTS, 100 * KIB, &weights, &err), &err);
    must(device_alloc(device, DEVICE_USE_KV, 156 * KIB, &kv, &err), &err);
    assert_int_equal((uintptr_t)weights % DEVICE_ALIGNMENT, 0);
    assert_int_equal(device_alloc(device, DEVICE_USE_SLOTS, 1, &more, &err), STATUS_NO_MEMORY);
    assert_non_null(strstr(err.message, "budget of 256 KiB"));
    assert_non_null(strstr(err.message, "weights 100 KiB"));
    assert_non_null(strstr(err.message, "for slots"));
    device_free(device, DEVICE_USE_WEIGHTS, weights, 100 * KIB);
    assert_int_equal(device_alloc(device, DEVICE_USE_SLOTS, UINT64_MAX, &more, &err),
                     STATUS_NO_MEMORY);
    must(device_alloc(device, DEVICE_USE_SLOTS, 1 * KIB, &more, &err), &err);
    device_memory_report(device, &report);
    assert_int_equal(report.budget_bytes, 256 * KIB);
    assert_int_equal(report.used_bytes, 157 * KIB);
    assert_int_equal(report.peak_bytes, 256 * KIB);
    assert_int_equal(report.used_by[DEVICE_USE_WEIGHTS], 0);
    assert_int_equal(report.used_by[DEVICE_USE_SLOTS], 1 * KIB);
    assert_int_equal(report.used_by[DEVICE_USE_KV], 156 * KIB);
    must(device_host_alloc(device, 64 * KIB, &host, &err), &err);
    for (size_t i = 0; i < 64 * KIB; i++)
        assert_int_equal(((const char *)host)[i], 0);
    assert_int_equal((uintptr_t)host % 4096, 0);
    assert_int_equal(device_host_alloc(device, 1, &weights, &err), STATUS_NO_MEMORY);
    assert_non_null(strstr(err.message, "64.0 KiB"));
    device_host_free(device, host, 64 * KIB);
    device_memory_report(device, &report);
    assert_int_equal(report.host_used_bytes, 0);
    assert_int_equal(report.host_peak_bytes, 64 * KIB);
    device_free(device, DEVICE_USE_SLOTS, more, 1 * KIB);
    device_free(device, DEVICE_USE_KV, kv, 156 * KIB);
    device_free(device, DEVICE_USE_KV, NULL, 0);
    device_close(device);
}

/* Where the device's memory is the host's, what the host has free bounds it, but for a budget. */
static void memory_that_is_the_hosts_is_what_is_free(void **state)
{
    static const struct {
        const char *spec;
        uint64_t budget_bytes, free_bytes, wanted_bytes;
    } cases[] = {
        { "cpu", 0, 64 * MIB, 64 * MIB },
        { "cpu", 80 * MIB, 64 * MIB, 80 * MIB },
        { "sim:memory=32MiB", 0, 16 * MIB, 32 * MIB },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct device_options options = {
            .thread_count = 1, .memory_budget_bytes = cases[i].budget_bytes,
            .free_memory_bytes = cases[i].free_bytes,
        };
        struct device_memory_report report;
        struct device *device;
        struct err err;

        assert_int_equal(device_open(cases[i].spec, &options, &device, &err), STATUS_OK);
        device_memory_report(device, &report);
        assert_int_equal(report.budget_bytes, cases[i].wanted_bytes);
        device_close(device);
    }
}

/* A device that is kept busy gives back all that it took for it. */
static void a_busy_device_is_idle_again(void **state)
{
    static const char *const specs[] = { "cpu", "sim:memory=32MiB" };
    const struct device_options options = { .thread_count = 1 };

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct device_memory_report report;
        struct device_busy *busy = NULL;
        struct device *device;
        struct err err;

        assert_int_equal(device_open(specs[i], &options, &device, &err), STATUS_OK);
        assert_int_equal(device_busy_begin(device, DTYPE_F32, 16 * MIB, &busy, &err), STATUS_OK);
        device_memory_report(device, &report);
        assert_true(report.used_bytes > 8 * MIB && report.used_bytes <= 16 * MIB);
        device_busy_end(busy);
        device_memory_report(device, &report);
        assert_int_equal(report.used_bytes, 0);
        assert_int_equal(device_busy_begin(device, DTYPE_F32, 1000, &busy, &err), STATUS_NO_MEMORY);
        device_close(device);
    }
    device_busy_end(NULL);
}

/* On any device something; onloads where there is a link, which has its latency. */
static void costs_are_measured(void **state)
{
    static const char *const specs[] = { "cpu", "sim:memory=16MiB,link=1GB/s,latency=50us" };
    const struct device_options options = { .thread_count = 1 };

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct device_matmul_rates rates = { 0 };
        struct device_memory_report report;
        struct device_costs costs = { 0 };
        struct device *device;
        double copy_rate = 0;
        struct err err;

        assert_int_equal(device_open(specs[i], &options, &device, &err), STATUS_OK);
        assert_int_equal(device_measure_costs(device, 2000000, &costs, &err), STATUS_OK);
        assert_true(costs.op_s > 0 && costs.op_s < 0.1);
        assert_true(i == 0 ? costs.onload_s == 0 : costs.onload_s >= 50e-6);
        assert_true(i == 0 || costs.pass_s >= 100e-6);
        assert_int_equal(device_measure_matmul(device, DTYPE_BF16, 4 * MIB, 2000000, &rates, &err),
                         STATUS_OK);
        assert_true(rates.tiny_s > 0 && rates.tiny_bytes < rates.product_bytes);
        assert_int_equal(device_measure_copy(device, MIB, 4 * MIB, 2000000, &copy_rate, &err),
                         STATUS_OK);
        assert_true(copy_rate > 1e7);
        assert_int_equal(device_measure_copy(device, 0, 4 * MIB, 2000000, &copy_rate, &err),
                         STATUS_NO_MEMORY);
        device_memory_report(device, &report);
        assert_int_equal(report.used_bytes + report.host_used_bytes, 0);
        device_close(device);
    }
}

static void every_byte_is_accounted(void **state)
{
    (void)state;
    check_accounts("cpu");
    check_accounts("sim:memory=256KiB");
}

static void a_failed_allocation_leaves_no_trace(void **state)
{
    const struct device_options options = { .thread_count = 1 };
    struct device_memory_report report;
    struct device *device;
    void *first, *second;
    struct err err;

    (void)state;
    must(device_open("sim:memory=1MiB,fail_alloc=2,fail_host_alloc=1", &options, &device, &err),
         &err);
    must(device_alloc(device, DEVICE_USE_KV, 1000, &first, &err), &err);
    assert_int_equal(device_alloc(device, DEVICE_USE_KV, 1000, &second, &err), STATUS_NO_MEMORY);
    assert_int_equal(device_host_alloc(device, 1000, &second, &err), STATUS_NO_MEMORY);
    device_memory_report(device, &report);
    assert_int_equal(report.used_bytes, 1000);
    assert_int_equal(report.peak_bytes, 2000); /* it was taken before the device was asked */
    assert_int_equal(report.host_used_bytes, 0);
    must(device_alloc(device, DEVICE_USE_KV, 1000, &second, &err), &err);
    device_free(device, DEVICE_USE_KV, second, 1000);
    device_free(device, DEVICE_USE_KV, first, 1000);
    device_close(device);
}

struct reader {
    struct device *device;
    atomic_bool stop;
};

static void *read_reports(void *arg)
{
    struct reader *reader = arg;

    while (!atomic_load(&reader->stop)) {
        struct device_memory_report report;
        uint64_t sum = 0;
        device_memory_report(reader->device, &report);
        for (int i = 0; i < DEVICE_USE_COUNT; i++)
            sum += report.used_by[i];
        if (sum != report.used_bytes || sum > report.budget_bytes)
            return reader; /* torn */
    }
    return NULL;
}

static void reports_may_be_read_from_any_thread(void **state)
{
    const struct device_options options = { .thread_count = 1 };
    struct reader reader;
    pthread_t thread;
    void *torn = NULL;
    struct err err;

    (void)state;
    atomic_init(&reader.stop, false);
    must(device_open("sim:memory=1MiB", &options, &reader.device, &err), &err);
    assert_int_equal(pthread_create(&thread, NULL, read_reports, &reader), 0);
    for (uint32_t i = 0; i < 5000; i++) {
        const enum device_use use = (enum device_use)(i % DEVICE_USE_COUNT);
        void *memory;
        must(device_alloc(reader.device, use, 1 + i * 100, &memory, &err), &err);
        device_free(reader.device, use, memory, 1 + i * 100);
    }
    atomic_store(&reader.stop, true);
    pthread_join(thread, &torn);
    assert_null(torn);
    device_close(reader.device);
}

static void streams_copy_fill_and_mark(void **state)
{
    (void)state;
    for (size_t i = 0; i < HARNESS_CONFIG_COUNT; i++) {
        enum { SIZE = 10000 };
        static uint8_t in[SIZE], out[SIZE];
        struct harness h;
        struct event *first, *last;
        struct err err;
        uint8_t *memory;
        harness_open(&h, &harness_configs[i]);
        must(event_create(h.device, &first, &err), &err);
        must(event_create(h.device, &last, &err), &err);
        assert_true(event_is_done(first)); /* never recorded counts as done */
        for (size_t b = 0; b < SIZE; b++)
            in[b] = (uint8_t)(b * 31);
        memory = harness_put(&h, in, SIZE);
        must(event_record(h.stream, first, &err), &err);
        must(device_fill(h.stream, memory + 100, 0xA5, 50, &err), &err);
        must(device_copy_in(h.stream, memory + 5000, in, 33, &err), &err);
        must(stream_wait(h.stream, first, &err), &err);
        must(device_copy_out(h.stream, out, memory, SIZE, &err), &err);
        must(device_copy_out(h.stream, NULL, NULL, 0, &err), &err);
        must(event_record(h.stream, last, &err), &err);
        must(event_sync(last, &err), &err);
        assert_true(event_is_done(first) && event_is_done(last));
        assert_true(event_time_ns(first) <= event_time_ns(last));
        assert_true(event_time_ns(last) <= clock_now_ns());
        for (size_t b = 0; b < SIZE; b++) {
            const uint8_t wanted = b >= 100 && b < 150      ? 0xA5
                                   : b >= 5000 && b < 5033 ? in[b - 5000]
                                                           : in[b];
            assert_int_equal(out[b], wanted);
        }
        event_destroy(first);
        event_destroy(last);
        event_destroy(NULL);
        stream_destroy(NULL);
        harness_close(&h);
    }
}

static void ops_without_rows_or_kernels_are_answered(void **state)
{
    (void)state;
    for (size_t i = 0; i < HARNESS_CONFIG_COUNT; i++) {
        const struct op none = { .kind = OP_SILU_MUL, .silu_mul = { .row_count = 0 } };
        struct op op = { .kind = OP_EMBED };
        struct harness h;
        struct err err;
        float zeros[8] = { 0 };
        harness_open(&h, &harness_configs[i]);
        must(device_launch(h.stream, &none, &err), &err);
        op.embed = (struct op_embed){
            .out = harness_put(&h, zeros, 32), .table = harness_put(&h, zeros, 32),
            .table_dtype = DTYPE_I32, .ids = harness_put(&h, zeros, 4),
            .row_count = 1, .width = 8, .table_row_count = 1, .out_row_stride = 8,
        };
        assert_int_equal(device_launch(h.stream, &op, &err), STATUS_UNAVAILABLE);
        assert_non_null(strstr(err.message, "I32"));
        must(stream_sync(h.stream, &err), &err); /* the stream is not broken by that */
        harness_close(&h);
    }
}

/* Every 2^-9 over the whole range of exp, and its edges, against the C library in double. */
static void exp_is_good_to_two_ulp(void **state)
{
    static const double edges[] = { 0, -87.4, -103.9, -200, 88.72, 88.73, 1000 };

    const struct cpu_kernels *tables[CPU_KERNELS_MAX];
    const uint32_t table_count = cpu_kernels_list(tables);

    (void)state;
    for (uint32_t t = 0; t < table_count; t++) {
        const struct cpu_kernels *kernels = tables[t];
        for (int step = -110 * 64; step < 90 * 64; step++) {
            float x[8], out[8];
            for (int i = 0; i < 8; i++)
                x[i] = (float)(step * 8 + i) / 512;
            for (int i = 0; i < 7 && step < -109 * 64; i++)
                x[i] = (float)edges[i];
            (void)kernels->exp_minus(out, x, 8, 0);
            for (int i = 0; i < 8; i++) {
                const double wanted = __builtin_exp((double)x[i]);
                const float nearest = (float)wanted;
                const float ulp = nearest > 0 && !__builtin_isinf(nearest)
                                      ? __builtin_nextafterf(nearest, __builtin_inff()) - nearest
                                      : 0x1p-149f;
                if (__builtin_isinf(nearest))
                    assert_true(__builtin_isinf(out[i]) || out[i] > 3.4e38f);
                else if (!(__builtin_fabs(out[i] - wanted) <= 2.0 * (double)ulp))
                    fail_msg("%s: exp(%a) is %a, wanted %a", kernels->name, x[i], out[i], wanted);
            }
        }
        {
            float special[3] = { __builtin_inff(), -__builtin_inff(), __builtin_nanf("") };
            (void)kernels->exp_minus(special, special, 3, 0);
            assert_true(__builtin_isinf(special[0]) && special[1] == 0);
            assert_true(special[2] != special[2]);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_specs_open),
        cmocka_unit_test(bad_specs_name_the_nearest),
        cmocka_unit_test(rounding_is_for_those_that_gain_by_it),
        cmocka_unit_test(each_table_of_kernels_can_be_asked_for),
        cmocka_unit_test(a_budget_above_the_memory_is_refused),
        cmocka_unit_test(memory_that_is_the_hosts_is_what_is_free),
        cmocka_unit_test(a_busy_device_is_idle_again),
        cmocka_unit_test(costs_are_measured),
        cmocka_unit_test(every_byte_is_accounted),
        cmocka_unit_test(a_failed_allocation_leaves_no_trace),
        cmocka_unit_test(reports_may_be_read_from_any_thread),
        cmocka_unit_test(streams_copy_fill_and_mark),
        cmocka_unit_test(ops_without_rows_or_kernels_are_answered),
        cmocka_unit_test(exp_is_good_to_two_ulp),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
