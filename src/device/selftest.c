/* device/selftest.c - see selftest.h: the beds, the comparison, the checks of copies, of order and
 * of layouts, the report.
 *
 * A bound says how far a device may be off, relative to the largest element that is wanted: with
 * weights of 16 bits it may round activations to 16 bits too (op.h), so that the bound is a few
 * roundings of that type; elsewhere everything is F32, where the bound leaves room for other orders
 * of sums and for hardware's functions. */
#include "device/selftest.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/size.h"
#include "device/backend.h"
#include "device/measure.h"
#include "device/selftest_internal.h"

#define SEED UINT64_C(88172645463325252)
#define MEASURE_BYTES (64 * MIB)
#define COPY_BYTES (9 * MIB)       /* more than one piece of whatever copies are cut into */
#define COPY_OFFSET_BYTES 37
#define ORDER_ROUNDS 20
#define ORDER_BYTES (256 * KIB)
#define SPARE_BYTES (65 * KIB)     /* that is in front of what an op is run on again */

/* ---- beds ---- */

static void bed_open(struct bed *bed, struct device *device)
{
    memset(bed, 0, sizeof(*bed));
    bed->device = device;
    bed->random = SEED;
    (void)stream_create(device, STREAM_COMPUTE, &bed->stream, &bed->err);
}

static void bed_close(struct bed *bed)
{
    if (bed->stream != NULL)
        (void)stream_sync(bed->stream, NULL);
    for (uint32_t i = 0; i < bed->buffer_count; i++)
        device_free(bed->device, DEVICE_USE_SCRATCH, bed->buffers[i].memory,
                    bed->buffers[i].size_bytes);
    stream_destroy(bed->stream);
}

static void *bed_alloc(struct bed *bed, uint64_t size_bytes)
{
    void *memory = NULL;

    if (bed->err.status == STATUS_OK && bed->buffer_count == BED_BUFFERS_MAX)
        (void)err_set(&bed->err, STATUS_BUSY, "a check has more than %d operands",
                      BED_BUFFERS_MAX);
    if (bed->err.status != STATUS_OK ||
        device_alloc(bed->device, DEVICE_USE_SCRATCH, size_bytes, &memory, &bed->err) != STATUS_OK)
        return NULL;
    bed->buffers[bed->buffer_count].memory = memory;
    bed->buffers[bed->buffer_count++].size_bytes = size_bytes;
    return memory;
}

void *device__bed_put(struct bed *bed, const void *bytes, uint64_t size_bytes)
{
    void *memory = bed_alloc(bed, size_bytes);

    if (memory == NULL)
        return NULL;
    if (bytes == NULL)
        (void)device_fill(bed->stream, memory, 0, size_bytes, &bed->err);
    else if (device_copy_in(bed->stream, memory, bytes, size_bytes, &bed->err) == STATUS_OK)
        (void)stream_sync(bed->stream, &bed->err); /* the caller's bytes may go */
    return memory;
}

void device__bed_launch(struct bed *bed, const struct op *op)
{
    if (bed->err.status == STATUS_OK)
        (void)device_launch(bed->stream, op, &bed->err);
}

void device__bed_get(struct bed *bed, void *bytes, const void *memory, uint64_t size_bytes)
{
    memset(bytes, 0, size_bytes);
    if (bed->err.status == STATUS_OK &&
        device_copy_out(bed->stream, bytes, memory, size_bytes, &bed->err) == STATUS_OK)
        (void)stream_sync(bed->stream, &bed->err);
}

static uint64_t random_bits(struct bed *bed)
{
    bed->random ^= bed->random << 13;
    bed->random ^= bed->random >> 7;
    bed->random ^= bed->random << 17;
    return bed->random;
}

uint32_t device__bed_number(struct bed *bed, uint32_t limit)
{
    return (uint32_t)((random_bits(bed) >> 32) * limit >> 32);
}

void *device__bed_random(struct bed *bed, enum dtype dtype, uint64_t count)
{
    const uint64_t size_bytes = dtype_row_bytes(dtype, count);
    float *values = malloc(count * sizeof(*values));
    void *bytes = malloc(size_bytes), *memory = NULL;

    for (uint64_t i = 0; values != NULL && i < count; i++)
        values[i] = (float)(int32_t)(random_bits(bed) >> 32) * 0x1p-31f;
    if (values != NULL && bytes != NULL) {
        dtype_convert(bytes, dtype, values, DTYPE_F32, count);
        memory = device__bed_put(bed, bytes, size_bytes);
    } else if (bed->err.status == STATUS_OK) {
        (void)err_set(&bed->err, STATUS_NO_MEMORY, "no memory for a check's operands");
    }
    free(values);
    free(bytes);
    return memory;
}

/* ---- the report ---- */

struct selftest {
    struct device *device, *reference;
    const struct log *log;
    json_t *checks, *same_bits;
    uint32_t passed, failed, unsupported;
    bool broken;             /* the device has failed; nothing more is asked of it */
    float *got, *wanted;     /* SELFTEST_OUT_MAX each */
};

enum result { RESULT_PASSED, RESULT_FAILED, RESULT_UNSUPPORTED };

static void note(struct selftest *test, const char *check, enum result result, double error,
                 double bound, const char *reason)
{
    static const char *const names[] = { "passed", "failed", "unsupported" };

    test->passed += result == RESULT_PASSED;
    test->failed += result == RESULT_FAILED;
    test->unsupported += result == RESULT_UNSUPPORTED;
    json_array_append_new(test->checks,
                          json_pack("{s:s, s:s, s:f, s:f, s:s?}", "check", check, "result",
                                    names[result], "error", isfinite(error) ? error : 1e300,
                                    "bound", bound, "reason", reason));
    if (result == RESULT_PASSED)
        log_line(test->log, LOG_INFO, "%-48s passed, off by %.2g of %.2g", check, error, bound);
    else if (reason != NULL)
        log_line(test->log, LOG_WARN, "%-48s %s: %s", check, names[result], reason);
    else
        log_line(test->log, LOG_WARN, "%-48s failed: off by %.3g, at most %.2g", check, error,
                 bound);
}

/* What a bed's failure comes to. */
static void note_failure(struct selftest *test, const char *check, const struct err *err)
{
    const bool unsupported = err->status == STATUS_UNAVAILABLE;

    note(test, check, unsupported ? RESULT_UNSUPPORTED : RESULT_FAILED, 0, 0, err->message);
    test->broken |= err->status == STATUS_DEVICE;
}

/* ---- operators ---- */

static double bound_of(const struct selftest_op *op)
{
    if (strcmp(op->name, "matmul, exact") == 0)
        return 1e-4;
    if (strncmp(op->name, "matmul", 6) == 0 || strncmp(op->name, "moe", 3) == 0)
        return op->dtype == DTYPE_BF16 ? 0x1p-6 : op->dtype == DTYPE_F16 ? 0x1p-9 : 1e-4;
    return strncmp(op->name, "embed", 5) == 0 || strncmp(op->name, "kv_write", 8) == 0 ||
                   strncmp(op->name, "gather_", 7) == 0
               ? 0 /* they only move elements */
               : 1e-4;
}

/* The largest difference, relative to the largest that is wanted; infinite for what is not a
 * number. */
static double difference(const float *got, const float *wanted, uint64_t count)
{
    double largest = 1e-30, worst = 0;

    for (uint64_t i = 0; i < count; i++) {
        const double off = fabs((double)got[i] - (double)wanted[i]);

        largest = fmax(largest, fabs((double)wanted[i]));
        worst = isnan(off) ? INFINITY : fmax(worst, off);
    }
    return worst / largest;
}

/* spare_bytes: taken first, so that all else has other addresses. */
static uint64_t run_behind(uint64_t spare_bytes, struct device *device,
                           const struct selftest_op *op, uint32_t first, uint32_t rows, float *out,
                           struct err *err_out)
{
    struct bed bed;
    uint64_t count = 0;

    bed_open(&bed, device);
    if (spare_bytes > 0)
        (void)bed_alloc(&bed, spare_bytes);
    if (bed.err.status == STATUS_OK)
        count = op->run(&bed, op, first, rows, out);
    *err_out = bed.err;
    bed_close(&bed);
    return count;
}

static uint64_t run(struct device *device, const struct selftest_op *op, uint32_t first,
                    uint32_t rows, float *out, struct err *err_out)
{
    return run_behind(0, device, op, first, rows, out, err_out);
}

static const char *op_name(const struct selftest_op *op, char *out, size_t out_size)
{
    const bool has_weights = strncmp(op->name, "embed", 5) == 0 ||
                             strncmp(op->name, "matmul", 6) == 0 ||
                             strncmp(op->name, "moe", 3) == 0;

    (void)snprintf(out, out_size, "%s%s%s", op->name, has_weights ? ", " : "",
                   has_weights ? dtype_info(op->dtype)->name : "");
    return out;
}

/* Row by row: the bits of all rows at once, in `got`, again? */
static void check_bits(struct selftest *test, const struct selftest_op *op, const char *name,
                       uint64_t count)
{
    const uint64_t width = count / op->shape[0];
    bool same = true;
    struct err err;

    if (!op->cut || op->shape[0] < 2 || count % op->shape[0] != 0 ||
        strncmp(op->name, "route", 5) == 0) /* its two results lie one behind the other */
        return;
    for (uint32_t row = 0; row < op->shape[0] && same; row++) {
        (void)run(test->device, op, row, 1, test->wanted, &err);
        if (err.status != STATUS_OK) {
            note_failure(test, name, &err);
            return;
        }
        same = memcmp(test->wanted, test->got + row * width, width * sizeof(float)) == 0;
    }
    json_array_append_new(test->same_bits,
                          json_pack("{s:s, s:b}", "op", name, "in_any_batch", same));
}

/* All of it at other addresses: the bits in `got` again? A device may have kept what it made for
 * the first time. */
static void check_again(struct selftest *test, const struct selftest_op *op, const char *name,
                        uint64_t count)
{
    char check[128];
    bool same;
    struct err err;

    (void)snprintf(check, sizeof(check), "%s, again", name);
    (void)run_behind(SPARE_BYTES, test->device, op, 0, op->shape[0], test->wanted, &err);
    if (err.status != STATUS_OK) {
        note_failure(test, check, &err);
        return;
    }
    same = memcmp(test->wanted, test->got, count * sizeof(float)) == 0;
    note(test, check, same ? RESULT_PASSED : RESULT_FAILED,
         difference(test->wanted, test->got, count), 0, NULL);
}

static void check_op(struct selftest *test, const struct selftest_op *op)
{
    const double bound = bound_of(op);
    char name[96];
    struct err err;
    uint64_t count = run(test->reference, op, 0, op->shape[0], test->wanted, &err);
    double off;

    (void)op_name(op, name, sizeof(name));
    if (err.status == STATUS_OK)
        count = run(test->device, op, 0, op->shape[0], test->got, &err);
    if (err.status != STATUS_OK) {
        note_failure(test, name, &err);
        return;
    }
    off = difference(test->got, test->wanted, count);
    note(test, name, off <= bound ? RESULT_PASSED : RESULT_FAILED, off, bound, NULL);
    check_again(test, op, name, count);
    if (!test->broken)
        check_bits(test, op, name, count);
}

/* ---- copies and order ---- */

static void pattern(uint8_t *bytes, uint64_t size_bytes, uint32_t seed)
{
    for (uint64_t i = 0; i < size_bytes; i++)
        bytes[i] = (uint8_t)(i * 31 + (i >> 8) * 7 + seed);
}

/* In from `host`, across the device's memory, and out to `host` again. */
static void check_copy(struct selftest *test, const char *name, uint8_t *host, uint64_t size_bytes,
                       uint64_t offset_bytes)
{
    uint8_t *wanted = malloc(size_bytes);
    char *memory, *other;
    struct bed bed;
    char check[96], size[24];
    uint64_t wrong = 0;

    (void)snprintf(check, sizeof(check), "copy of %s, %s%s",
                   size_format(size_bytes, size, sizeof(size)), name,
                   offset_bytes > 0 ? ", at an odd address" : "");
    bed_open(&bed, test->device);
    memory = bed_alloc(&bed, size_bytes + offset_bytes);
    other = bed_alloc(&bed, size_bytes + offset_bytes);
    if (wanted == NULL && bed.err.status == STATUS_OK)
        (void)err_set(&bed.err, STATUS_NO_MEMORY, "no memory for a copy");
    if (bed.err.status == STATUS_OK && wanted != NULL) {
        pattern(wanted, size_bytes, (uint32_t)size_bytes);
        memcpy(host, wanted, size_bytes);
        if (device_copy_in(bed.stream, memory + offset_bytes, host, size_bytes, &bed.err) ==
                STATUS_OK &&
            device_copy_peer(bed.stream, other + offset_bytes, memory + offset_bytes, size_bytes,
                             &bed.err) == STATUS_OK &&
            stream_sync(bed.stream, &bed.err) == STATUS_OK)
            memset(host, 0xEE, size_bytes);
        device__bed_get(&bed, host, other == NULL ? NULL : other + offset_bytes, size_bytes);
    }
    for (uint64_t i = 0; bed.err.status == STATUS_OK && wanted != NULL && i < size_bytes; i++)
        wrong += host[i] != wanted[i];
    if (bed.err.status != STATUS_OK)
        note_failure(test, check, &bed.err);
    else
        note(test, check, wrong == 0 ? RESULT_PASSED : RESULT_FAILED,
             (double)wrong / (double)size_bytes, 0, NULL);
    bed_close(&bed);
    free(wanted);
}

static void check_copies(struct selftest *test)
{
    static const uint64_t sizes_bytes[] = { 1, 33, 4096 + 7, COPY_BYTES + 3 };
    uint8_t *pageable = malloc(COPY_BYTES + 3);
    void *pinned = NULL;
    struct err err;

    if (pageable == NULL ||
        device_host_alloc(test->device, COPY_BYTES + 3, &pinned, &err) != STATUS_OK) {
        if (pageable == NULL)
            (void)err_set(&err, STATUS_NO_MEMORY, "no memory for copies");
        note_failure(test, "memory for copies", &err);
    }
    for (size_t i = 0; pinned != NULL && i < sizeof(sizes_bytes) / sizeof(sizes_bytes[0]); i++) {
        for (uint64_t offset = 0; offset <= COPY_OFFSET_BYTES; offset += COPY_OFFSET_BYTES) {
            if (!test->broken)
                check_copy(test, "pinned", pinned, sizes_bytes[i], offset);
            if (!test->broken)
                check_copy(test, "pageable", pageable, sizes_bytes[i], offset);
        }
    }
    device_host_free(test->device, pinned, COPY_BYTES + 3);
    free(pageable);
}

/* Fills and copies chase each other over two streams, and only events keep them apart: each copy
 * must find what the fill before it wrote, and not what the next one does. */
static void chase(struct bed *bed, struct stream *copies, struct event *filled,
                  struct event *copied, uint8_t *pinned, uint64_t *wrong_out)
{
    void *memory = bed_alloc(bed, ORDER_BYTES);
    struct err *err = &bed->err;

    for (uint32_t round = 0; round < ORDER_ROUNDS && err->status == STATUS_OK; round++) {
        if (stream_wait(bed->stream, copied, err) == STATUS_OK &&
            device_fill(bed->stream, memory, (uint8_t)(round + 1), ORDER_BYTES, err) ==
                STATUS_OK &&
            event_record(bed->stream, filled, err) == STATUS_OK &&
            stream_wait(copies, filled, err) == STATUS_OK &&
            device_copy_out(copies, pinned + round * ORDER_BYTES, memory, ORDER_BYTES, err) ==
                STATUS_OK)
            (void)event_record(copies, copied, err);
    }
    if (err->status != STATUS_OK || event_sync(copied, err) != STATUS_OK)
        return;
    for (uint64_t i = 0; i < ORDER_ROUNDS * ORDER_BYTES; i++)
        *wrong_out += pinned[i] != i / ORDER_BYTES + 1;
    if (event_time_ns(filled) > event_time_ns(copied))
        (void)err_set(err, STATUS_IO, "an event was reached at %" PRIu64 " ns, before the one that "
                      "it waited for, at %" PRIu64 " ns", event_time_ns(copied),
                      event_time_ns(filled));
}

static void check_order(struct selftest *test)
{
    struct event *filled = NULL, *copied = NULL;
    struct stream *copies = NULL;
    void *pinned = NULL;
    uint64_t wrong = 0;
    struct bed bed;

    bed_open(&bed, test->device);
    if (bed.err.status == STATUS_OK &&
        stream_create(test->device, STREAM_COPY, &copies, &bed.err) == STATUS_OK &&
        event_create(test->device, &filled, &bed.err) == STATUS_OK &&
        event_create(test->device, &copied, &bed.err) == STATUS_OK &&
        device_host_alloc(test->device, ORDER_ROUNDS * ORDER_BYTES, &pinned, &bed.err) == STATUS_OK)
        chase(&bed, copies, filled, copied, pinned, &wrong);
    if (bed.err.status != STATUS_OK)
        note_failure(test, "order of two streams by events", &bed.err);
    else
        note(test, "order of two streams by events", wrong == 0 ? RESULT_PASSED : RESULT_FAILED,
             (double)wrong / (double)(ORDER_ROUNDS * ORDER_BYTES), 0, NULL);
    if (copies != NULL)
        (void)stream_sync(copies, NULL);
    event_destroy(filled);
    event_destroy(copied);
    stream_destroy(copies);
    device_host_free(test->device, pinned, ORDER_ROUNDS * ORDER_BYTES);
    bed_close(&bed);
}

/* Whether ranks could share this device's memory; what they read is another process's test. */
static void check_shared(struct selftest *test)
{
    struct device_handle handle;
    void *memory = NULL;
    struct err err;

    if (device_shared_alloc(test->device, DEVICE_USE_SCRATCH, 5 * MIB, &memory, &handle, &err) ==
        STATUS_OK)
        note(test, "memory that ranks share", RESULT_PASSED, 0, 0, NULL);
    else
        note_failure(test, "memory that ranks share", &err);
    device_shared_free(test->device, DEVICE_USE_SCRATCH, memory, 5 * MIB);
}

/* ---- layouts ---- */

enum status device__cast_nothing(struct stream *stream, enum dtype dtype, uint64_t k, uint64_t n,
                                 void *dst, const void *src, struct err *err)
{
    (void)dtype;
    (void)k;
    (void)n;
    (void)dst;
    (void)src;
    return err_set(err, STATUS_UNAVAILABLE, "%s: it converts no layouts itself",
                   stream->device->info.name);
}

/* Our FRACTAL_NZ of a matrix [k][n] of 16-bit elements, byte by byte against the device's own. */
static void check_layout(struct selftest *test, enum dtype dtype, uint64_t k, uint64_t n)
{
    const uint64_t size_bytes = dtype_row_bytes(dtype, k * n);
    const struct layout_matrix matrix = { .rows = k, .cols = n, .row_stride = n, .col_stride = 1 };
    uint8_t *bytes = malloc(size_bytes), *wanted = malloc(size_bytes), *got = malloc(size_bytes);
    char check[64];
    uint64_t wrong = 0;
    struct bed bed;

    (void)snprintf(check, sizeof(check), "FRACTAL_NZ of %s, %" PRIu64 " x %" PRIu64,
                   dtype_info(dtype)->name, k, n);
    bed_open(&bed, test->device);
    if (bytes != NULL && wanted != NULL && got != NULL) {
        void *src, *dst;

        for (uint64_t i = 0; i < k * n; i++) { /* finite in both dtypes, and all different */
            const uint16_t element = (uint16_t)(0x2000 + i);

            memcpy(bytes + 2 * i, &element, sizeof(element));
        }
        layout_nz_pack(wanted, bytes, dtype, &matrix);
        src = device__bed_put(&bed, bytes, size_bytes);
        dst = device__bed_put(&bed, NULL, size_bytes);
        if (bed.err.status == STATUS_OK)
            (void)test->device->ops->cast_nz(bed.stream, dtype, k, n, dst, src, &bed.err);
        device__bed_get(&bed, got, dst, size_bytes);
        for (uint64_t i = 0; bed.err.status == STATUS_OK && i < size_bytes; i++)
            wrong += got[i] != wanted[i];
    } else if (bed.err.status == STATUS_OK) {
        (void)err_set(&bed.err, STATUS_NO_MEMORY, "no memory for a matrix");
    }
    if (bed.err.status != STATUS_OK)
        note_failure(test, check, &bed.err);
    else
        note(test, check, wrong == 0 ? RESULT_PASSED : RESULT_FAILED,
             (double)wrong / (double)size_bytes, 0, NULL);
    bed_close(&bed);
    free(bytes);
    free(wanted);
    free(got);
}

static void check_layouts(struct selftest *test)
{
    static const enum dtype dtypes[] = { DTYPE_BF16, DTYPE_F16 };

    if (test->device->ops->cast_nz == device__cast_nothing)
        return; /* there is nothing to compare with */
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (!test->broken)
            check_layout(test, dtypes[i], 48, 32);
        if (!test->broken)
            check_layout(test, dtypes[i], 16, 272);
    }
}

/* ---- all of it ---- */

static json_t *report_of(struct selftest *test, double seconds)
{
    struct device_matmul_rates rates = { 0 };
    double link_bytes_per_s = 0;

    if (!test->broken) {
        (void)device_measure_link(test->device, MEASURE_BYTES, DEVICE_MEASURE_NS,
                                  &link_bytes_per_s, NULL);
        (void)device_measure_matmul(test->device, DTYPE_BF16, MEASURE_BYTES, DEVICE_MEASURE_NS,
                                    &rates, NULL);
    }
    return json_pack("{s:s, s:s, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:o, s:o}", "device",
                     device_info(test->device)->description, "reference",
                     device_info(test->reference)->description, "passed", (int)test->passed,
                     "failed", (int)test->failed, "unsupported", (int)test->unsupported,
                     "seconds", seconds, "link_bytes_per_s", link_bytes_per_s,
                     "matmul_bytes_per_s", rates.one_row_bytes_per_s, "matmul_flops_per_s",
                     rates.many_rows_flops_per_s, "checks", test->checks, "same_bits",
                     test->same_bits);
}

json_t *device_selftest(struct device *device, struct device *reference, const struct log *log)
{
    struct selftest test = { .device = device, .reference = reference, .log = log };
    const uint64_t began_ns = clock_now_ns();
    json_t *report = NULL;

    test.checks = json_array();
    test.same_bits = json_array();
    test.got = calloc(SELFTEST_OUT_MAX, sizeof(*test.got));
    test.wanted = calloc(SELFTEST_OUT_MAX, sizeof(*test.wanted));
    if (test.got != NULL && test.wanted != NULL) {
        check_copies(&test);
        if (!test.broken)
            check_order(&test);
        if (!test.broken)
            check_shared(&test);
        if (!test.broken)
            check_layouts(&test);
        for (size_t i = 0; i < device__selftest_op_count && !test.broken; i++)
            check_op(&test, &device__selftest_ops[i]);
        report = report_of(&test, (double)(clock_now_ns() - began_ns) * 1e-9);
    } else {
        json_decref(test.checks);
        json_decref(test.same_bits);
    }
    free(test.got);
    free(test.wanted);
    return report;
}
