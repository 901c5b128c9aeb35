/* device/cuda/copies_test.c - many copies at once, where the driver takes many and where it does
 * not: the same bytes, one call or as many as copies, and what is said when it fails. */
#include "device/cuda/testing.h"
#include "device/test_harness.h"

#define COPIES 70 /* more than a call takes */
#define PLACE_BYTES 512
#define MEMORY_BYTES (COPIES * PLACE_BYTES)

struct bed {
    struct harness h;
    uint8_t *from, *to; /* on the device; `to` is as zeros */
    struct device_copy copies[COPIES];
};

static uint8_t pattern(size_t i)
{
    return (uint8_t)(1 + (i * 7 + i / PLACE_BYTES) % 255);
}

/* Copies of 1 to 70 bytes and more, back to front. */
static void bed_open(struct bed *bed)
{
    static const struct harness_config config = { "cuda:0", false, 1, false, true };
    static uint8_t bytes[MEMORY_BYTES];
    static const uint8_t zeros[MEMORY_BYTES];

    harness_open(&bed->h, &config);
    for (size_t i = 0; i < MEMORY_BYTES; i++)
        bytes[i] = pattern(i);
    bed->from = harness_put(&bed->h, bytes, MEMORY_BYTES);
    bed->to = harness_put(&bed->h, zeros, MEMORY_BYTES);
    for (size_t i = 0; i < COPIES; i++)
        bed->copies[i] = (struct device_copy){ bed->to + (COPIES - 1 - i) * PLACE_BYTES,
                                               bed->from + i * PLACE_BYTES, 1 + i * 7 };
}

static void bed_close(struct bed *bed)
{
    harness_clear(&bed->h);
    harness_close(&bed->h);
}

/* An error stays with its stream. */
static void bed_mend(struct bed *bed)
{
    struct err err;

    stream_destroy(bed->h.stream);
    must(stream_create(bed->h.device, STREAM_COMPUTE, &bed->h.stream, &err), &err);
}

static void check_bytes(struct bed *bed, size_t count)
{
    static uint8_t got[MEMORY_BYTES];
    static uint8_t wanted[MEMORY_BYTES];

    memset(wanted, 0, sizeof(wanted));
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < 1 + i * 7; k++)
            wanted[(COPIES - 1 - i) * PLACE_BYTES + k] = pattern(i * PLACE_BYTES + k);
    harness_get(&bed->h, got, bed->to, MEMORY_BYTES);
    assert_memory_equal(got, wanted, MEMORY_BYTES);
}

/* Queues `count` copies and checks that so many calls of the driver took so many of them. */
static void copy_and_check(struct bed *bed, size_t count, uint64_t batches, uint64_t batched)
{
    const uint64_t batches_before = standin_counter("batches");
    const uint64_t batched_before = standin_counter("batched_copies");
    struct err err;

    must(device_copy_peers(bed->h.stream, bed->copies, count, &err), &err);
    check_bytes(bed, count);
    if (!standin_is_there())
        return;
    assert_int_equal(standin_counter("batches") - batches_before, batches);
    assert_int_equal(standin_counter("batched_copies") - batched_before, batched);
}

static void a_driver_that_takes_many_gets_them_in_one_call(void **state)
{
    static const struct {
        size_t count;
        uint64_t batches, batched;
    } cases[] = { { 0, 0, 0 }, { 1, 0, 0 }, { 2, 1, 2 }, { 64, 1, 64 }, { 65, 1, 64 },
                  { COPIES, 2, COPIES } };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct bed bed;

        bed_open(&bed);
        copy_and_check(&bed, cases[i].count, cases[i].batches, cases[i].batched);
        bed_close(&bed);
    }
}

static void an_older_driver_gets_them_one_by_one(void **state)
{
    struct bed bed;

    (void)state;
    assert_int_equal(setenv("CUDA_STANDIN_DRIVER", "12070", 1), 0);
    bed_open(&bed);
    copy_and_check(&bed, COPIES, 0, 0);
    bed_close(&bed);
    assert_int_equal(setenv("CUDA_STANDIN_DRIVER", "12080", 1), 0); /* the first that has it */
    bed_open(&bed);
    copy_and_check(&bed, COPIES, 2, COPIES);
    bed_close(&bed);
    assert_int_equal(unsetenv("CUDA_STANDIN_DRIVER"), 0);
}

static void a_gpu_without_them_is_asked_once(void **state)
{
    struct bed bed;

    (void)state;
    bed_open(&bed);
    if (!standin_fail("cuMemcpyBatchAsync", 1, CUDA_ERROR_NOT_SUPPORTED)) {
        bed_close(&bed);
        skip(); /* a GPU does not fail on purpose */
    }
    copy_and_check(&bed, COPIES, 0, 0);
    copy_and_check(&bed, COPIES, 0, 0);
    bed_close(&bed);
}

static void a_call_that_fails_breaks_the_stream(void **state)
{
    struct bed bed;
    struct err err;

    (void)state;
    bed_open(&bed);
    if (!standin_fail("cuMemcpyBatchAsync", 2, CUDA_ERROR_ILLEGAL_ADDRESS)) {
        bed_close(&bed);
        skip();
    }
    assert_int_equal(device_copy_peers(bed.h.stream, bed.copies, COPIES, &err), STATUS_DEVICE);
    assert_non_null(strstr(err.message, "cuda:0: cuMemcpyBatchAsync of 6 copies failed with "
                                        "cudaErrorIllegalAddress"));
    assert_int_equal(device_copy_peers(bed.h.stream, bed.copies, 1, &err), STATUS_DEVICE);
    assert_int_equal(stream_sync(bed.h.stream, &err), STATUS_DEVICE);
    bed_mend(&bed);
    bed.copies[5].src = pattern; /* no memory of the GPU's */
    assert_int_equal(device_copy_peers(bed.h.stream, bed.copies, 9, &err), STATUS_DEVICE);
    assert_non_null(strstr(err.message, "of 9 copies, because of the one numbered 5, failed with "
                                        "cudaErrorInvalidValue"));
    bed_mend(&bed);
    bed_close(&bed);
    assert_int_equal(standin_counter("live_blocks"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_driver_that_takes_many_gets_them_in_one_call),
        cmocka_unit_test(an_older_driver_gets_them_one_by_one),
        cmocka_unit_test(a_gpu_without_them_is_asked_once),
        cmocka_unit_test(a_call_that_fails_breaks_the_stream),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
