/* offload/disk/measure_test.c - what is chosen from a disk's rates, and that measuring ends.
 *
 * Method: the rates of invented disks, with noise; and a real file, of which only is wanted that
 * something is measured. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/size.h"
#include "offload/disk/internal.h"
#include "offload/disk/testing.h"

/* A disk with this much time per read, and this rate for all reads together; a rate's last percents
 * vary. */
static struct disk_measured invent(double latency_s, double bytes_per_s, int noise_percent)
{
    struct disk_measured measured = {
        .block_bytes = { 128 * KIB, 256 * KIB, 512 * KIB, 1 * MIB }, .block_count = 4,
    };
    uint64_t random = 1;

    for (uint32_t b = 0; b < measured.block_count; b++) {
        for (uint32_t d = 0; d < DISK_MEASURE_DEPTHS; d++) {
            const double block = (double)measured.block_bytes[b], depth = (double)(1 << d);
            const double bound = depth * block / (latency_s + block / bytes_per_s);
            const double rate = bound < bytes_per_s ? bound : bytes_per_s;

            random = random * UINT64_C(6364136223846793005) + 1442695040888963407;
            if (block * depth <= 32.0 * MIB)
                measured.random_bytes_per_s[b][d] =
                    (uint64_t)(rate * (100.0 - (double)((random >> 33) % 100) *
                                       noise_percent / 100.0) / 100.0);
        }
    }
    return measured;
}

static void enough_is_in_flight(void **state)
{
    static const double latencies_s[] = { 0, 100e-6, 1e-3, 5e-3, 20e-3 };
    static const double rates[] = { 100e6, 1e9, 4e9 };

    (void)state;
    for (size_t i = 0; i < 15; i++) {
        const double latency_s = latencies_s[i % 5], rate = rates[i / 5];
        for (int noise_percent = 0; noise_percent <= 30; noise_percent += 30) {
            struct disk_measured measured = invent(latency_s, rate, noise_percent);
            double in_flight, needed = latency_s * rate; /* Little's law */

            disk__measure_choose(&measured);
            in_flight = (double)measured.depth * (double)measured.piece_bytes;
            assert_true(measured.depth >= 8 && measured.depth <= DISK_DEPTH_MAX);
            assert_true(measured.piece_bytes <= 1 * MIB);
            assert_true(in_flight >= 8.0 * MIB);
            assert_true(in_flight >= (needed < 32e6 ? needed : 32e6) * 0.9);
            assert_true((double)measured.random_bytes_per_s_best <= rate);
            if (noise_percent == 0 && needed == 0)
                assert_true(in_flight <= 16.0 * MIB);
        }
    }
}

/* A disk so slow that only single blocks were tried. */
static void a_few_rates_are_enough(void **state)
{
    struct disk_measured measured = { .block_bytes = { 1 * MIB }, .block_count = 1 };

    (void)state;
    measured.random_bytes_per_s[0][0] = 5000000;
    disk__measure_choose(&measured);
    assert_int_equal(measured.piece_bytes, 1 * MIB);
    assert_int_equal(measured.depth, 8);
    assert_int_equal(measured.random_bytes_per_s_best, 5000000);
}

/* A report's shares are of what lasts, not of the best moment. */
static void the_rate_is_that_of_spread_reads(void **state)
{
    struct disk_measured measured = {
        .depth = 16, .piece_bytes = 1 * MIB, .random_bytes_per_s_best = 3000,
        .sequential_bytes_per_s = 2000, .spread_bytes_per_s = 1000,
    };
    struct disk_reader_options options = { .depth = 0 }, given = { .depth = 3 };

    (void)state;
    disk_reader_options_apply(&options, &measured);
    assert_int_equal(options.bytes_per_s, 1000);
    assert_int_equal(options.depth, 16);
    options = (struct disk_reader_options){ .depth = 0 };
    measured.spread_bytes_per_s = 0;
    disk_reader_options_apply(&options, &measured);
    assert_int_equal(options.bytes_per_s, 2000);
    disk_reader_options_apply(&given, &measured);
    assert_int_equal(given.depth, 3);
}

static void a_disk_is_measured(void **state)
{
    const struct disk_measure_options options = { .time_ns = 50000000 };
    char *const paths[] = { testing_file(1 * MIB), testing_file(16 * MIB) };
    struct disk_reader_options given = { .depth = 3 }, open = { .depth = 0 };
    const struct disk_measure_options spread = { .time_ns = 20000000 };
    const struct disk_measure_options small = {
        .time_ns = 20000000, .spread_bytes = 64 * KIB, .spread_depth = 2,
    };
    struct disk_measured measured;
    struct disk_file *file;
    uint64_t rate = 0;
    struct err err;

    (void)state;
    if (paths[0] == NULL || paths[1] == NULL) {
        free(paths[0]);
        free(paths[1]);
        fail_msg("no file to measure by");
        return;
    }
    assert_int_equal(disk_file_open(paths[0], DISK_AUTO, &file, &err), STATUS_OK);
    assert_int_equal(disk_measure(file, &options, &measured, &err), STATUS_UNAVAILABLE);
    measured = (struct disk_measured){ .depth = 0 };
    assert_int_equal(disk_measure_spread(file, &spread, &measured, &rate, &err),
                     STATUS_UNAVAILABLE); /* it has no four reads of 4 MiB */
    assert_int_equal(disk_measure_spread(file, &small, &measured, &rate, &err), STATUS_OK);
    assert_true(rate > 0);
    rate = 0;
    disk_file_close(file);
    assert_int_equal(disk_file_open(paths[1], DISK_AUTO, &file, &err), STATUS_OK);
    assert_int_equal(disk_measure(file, &options, &measured, &err), STATUS_OK);
    assert_true(measured.sequential_bytes_per_s > 0);
    assert_true(measured.random_bytes_per_s_best > 0);
    assert_true(measured.random_bytes_per_s[0][0] > 0);
    assert_true(measured.depth >= 8 && measured.depth <= DISK_DEPTH_MAX);
    assert_true(measured.piece_bytes >= 128 * KIB && measured.piece_bytes <= 1 * MIB);
    assert_true(measured.read_bytes > 0 && measured.took_ns > 0);
    assert_int_equal(disk_measure_spread(file, &spread, &measured, &rate, &err), STATUS_OK);
    assert_true(rate > 0);
    disk_reader_options_tune(&given, file);
    assert_true(given.depth == 3 && given.piece_bytes == 0);
    disk_reader_options_tune(&open, file);
    assert_true(open.depth >= 8 && open.piece_bytes >= 128 * KIB);
    assert_true(open.bytes_per_s > 0);
    assert_int_equal(truncate(paths[1], 4096), 0); /* now the reads fail */
    assert_int_equal(disk_measure(file, &options, &measured, &err), STATUS_IO);
    assert_non_null(strstr(err.message, "was it truncated?"));
    disk_file_close(file);
    for (int i = 0; i < 2; i++) {
        (void)unlink(paths[i]);
        free(paths[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(enough_is_in_flight),
        cmocka_unit_test(a_few_rates_are_enough),
        cmocka_unit_test(the_rate_is_that_of_spread_reads),
        cmocka_unit_test(a_disk_is_measured),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
