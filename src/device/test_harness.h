/* device/test_harness.h - what the tests of devices share: every device x kernel table, memory that
 * is freed by itself, random numbers that are the same everywhere.
 *
 * Only *_test.c files include this. A failure inside asserts through cmocka. */
#ifndef LIGHTER_DEVICE_TEST_HARNESS_H
#define LIGHTER_DEVICE_TEST_HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "device/device.h"
#include "device/testing_libraries.h"
#include "tensor/testing.h"

#define HARNESS_BUFFERS_MAX 64

struct harness_config {
    const char *spec;
    const char *cpu_kernels; /* NULL: the fastest */
    uint32_t thread_count;
    bool is_npu; /* has operators of its own: they round x to the weights' dtype, may sum in another
                    order for other rows, and know no quantised weights */
    bool is_gpu; /* has kernels of its own: as exact as the processor's, with other bits */
};

/* Where the processor has no AVX2 the table of kernels is scalar everywhere. */
static const struct harness_config harness_configs[] = {
    { "cpu", "scalar", 1, false, false },
    { "cpu", NULL, 1, false, false },
    { "cpu", NULL, 3, false, false },
    { "sim:memory=512MiB", "scalar", 2, false, false },
    { "sim:memory=512MiB", NULL, 2, false, false },
    { "ascend:0", NULL, 1, true, false },
    { "ascend:1,layout=nd", NULL, 1, true, false },
    { "cuda:0", NULL, 1, false, true },
};
#define HARNESS_CONFIG_COUNT (sizeof(harness_configs) / sizeof(harness_configs[0]))

struct harness {
    struct device *device;
    struct stream *stream;
    struct {
        void *memory;
        uint64_t size_bytes;
    } buffers[HARNESS_BUFFERS_MAX];
    uint32_t buffer_count;
    uint64_t random;
    bool is_npu;
};

static inline void must(enum status st, const struct err *err)
{
    if (st != STATUS_OK)
        fail_msg("%s: %s", status_name(st), err->message);
}

static inline enum status harness_device_open(const char *spec, struct device_options options,
                                              struct device **device_out, struct err *err)
{
    options.library_path = testing_library_path();
    return device_open(spec, &options, device_out, err);
}

static inline void harness_open(struct harness *h, const struct harness_config *config)
{
    const struct device_options options = { .thread_count = config->thread_count,
                                            .cpu_kernels = config->cpu_kernels };
    struct err err;

    memset(h, 0, sizeof(*h));
    h->random = 88172645463325252u;
    h->is_npu = config->is_npu;
    must(harness_device_open(config->spec, options, &h->device, &err), &err);
    must(stream_create(h->device, STREAM_COMPUTE, &h->stream, &err), &err);
}

/* Frees every buffer; the device stays open. */
static inline void harness_clear(struct harness *h)
{
    struct err err;

    must(stream_sync(h->stream, &err), &err);
    for (uint32_t i = 0; i < h->buffer_count; i++)
        device_free(h->device, DEVICE_USE_SCRATCH, h->buffers[i].memory, h->buffers[i].size_bytes);
    h->buffer_count = 0;
}

static inline void harness_close(struct harness *h)
{
    harness_clear(h);
    stream_destroy(h->stream);
    device_close(h->device);
}

/* Device memory that holds a copy of `bytes`. */
static inline void *harness_put(struct harness *h, const void *bytes, uint64_t size_bytes)
{
    struct err err;
    void *memory;

    assert_true(h->buffer_count < HARNESS_BUFFERS_MAX);
    must(device_alloc(h->device, DEVICE_USE_SCRATCH, size_bytes, &memory, &err), &err);
    h->buffers[h->buffer_count].memory = memory;
    h->buffers[h->buffer_count++].size_bytes = size_bytes;
    must(device_copy_in(h->stream, memory, bytes, size_bytes, &err), &err);
    must(stream_sync(h->stream, &err), &err);
    return memory;
}

static inline void harness_get(struct harness *h, void *bytes, const void *memory,
                               uint64_t size_bytes)
{
    struct err err;

    must(device_copy_out(h->stream, bytes, memory, size_bytes, &err), &err);
    must(stream_sync(h->stream, &err), &err);
}

static inline void harness_run(struct harness *h, const struct op *op)
{
    struct err err;

    must(device_launch(h->stream, op, &err), &err);
    must(stream_sync(h->stream, &err), &err);
}

static inline uint64_t random_bits(struct harness *h)
{
    h->random ^= h->random << 13;
    h->random ^= h->random >> 7;
    h->random ^= h->random << 17;
    return h->random;
}

/* Uniform in [-1, 1). */
static inline float random_float(struct harness *h)
{
    return (float)(int32_t)(random_bits(h) >> 32) * 0x1p-31f;
}

static inline float *random_floats(struct harness *h, size_t count)
{
    float *values = malloc(count * sizeof(*values));

    assert_non_null(values);
    for (size_t i = 0; i < count; i++)
        values[i] = random_float(h);
    return values;
}

/* The multiple of a block that is not below count. */
static inline uint32_t whole_blocks(uint32_t count, enum dtype dtype)
{
    const uint32_t elements = dtype_info(dtype)->block_elements;

    return (count + elements - 1) / elements * elements;
}

/* Whether the device has operators for weights of the dtype. */
static inline bool has_weights(const struct harness *h, enum dtype dtype)
{
    return device_weights_check(h->device, dtype, NULL) == STATUS_OK;
}

/* values in another dtype, and what that rounds them to, in place; of a type that nothing is turned
 * into, other values instead. The caller frees the result. */
static inline void *rounded_to(float *values, enum dtype dtype, size_t count)
{
    void *out = malloc(dtype_row_bytes(dtype, count));
    uint64_t random = 4711 + count;

    assert_non_null(out);
    if (quant_is_quantised(dtype) && dtype != DTYPE_Q8_0 && dtype != DTYPE_Q4_0)
        testing_blocks(out, dtype, count, &random);
    else
        dtype_convert(out, dtype, values, DTYPE_F32, count);
    if (dtype != DTYPE_F32)
        dtype_convert(values, DTYPE_F32, out, dtype, count);
    return out;
}

/* Page numbers below count, each once, some side by side and some not. */
static inline int32_t *scattered_pages(uint32_t count, uint32_t first)
{
    int32_t *pages = calloc(count, sizeof(*pages));

    assert_non_null(pages);
    for (uint32_t i = 0; i < count; i++)
        pages[i] = (int32_t)i;
    for (uint32_t i = first % 3; i < count / 2; i += 3) {
        pages[i] = (int32_t)(count - 1 - i);
        pages[count - 1 - i] = (int32_t)i;
    }
    return pages;
}

/* Every element of `got` is within tolerance[i] of wanted[i]. */
static inline void check_near(const char *what, const float *got, const double *wanted,
                              const double *tolerance, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const double difference = got[i] > wanted[i] ? got[i] - wanted[i] : wanted[i] - got[i];
        if (!(difference <= tolerance[i]))
            fail_msg("%s: element %zu is %.9g, wanted %.9g within %.3g", what, i, got[i],
                     wanted[i], tolerance[i]);
    }
}

#define U (0x1p-24)       /* the error of one rounding to F32 */
#define GUARD (-12345.0f) /* between rows: must survive */

static inline float *guarded(size_t count)
{
    float *values = malloc(count * sizeof(*values));

    assert_non_null(values);
    for (size_t i = 0; i < count; i++)
        values[i] = GUARD;
    return values;
}

/* Compares rows of `width` that lie `stride` apart, and checks the gaps. */
static inline void check_rows(const char *what, const float *got, const double *wanted,
                              const double *tolerance, size_t row_count, size_t width,
                              size_t stride)
{
    for (size_t row = 0; row < row_count; row++) {
        check_near(what, got + row * stride, wanted + row * width, tolerance + row * width, width);
        for (size_t i = width; i < stride && row + 1 < row_count; i++)
            assert_true(got[row * stride + i] == GUARD);
    }
}

static inline void with_every_device(void (*test)(struct harness *h))
{
    for (size_t i = 0; i < HARNESS_CONFIG_COUNT; i++) {
        struct harness h;
        harness_open(&h, &harness_configs[i]);
        test(&h);
        harness_close(&h);
    }
}

static inline bool has_feature(const struct harness *h, enum op_feature feature)
{
    return (device_info(h->device)->op_features & feature) != 0;
}

#endif
