/* device/measure.c - see measure.h. */
#include "device/measure.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/size.h"

/* Weights to measure with: well past what caches hold, which on some servers is half a gigabyte. */
#define WEIGHT_BYTES_MIN (96 * MIB)
#define WEIGHT_BYTES_MAX (2 * GIB)
#define LINK_BYTES_MAX (32 * MIB)
#define K_COUNT 2048u
#define N_COUNT_MANY 1536u
#define N_COUNT_SMALL 1024u
#define N_COUNT_MIN 192u
#define N_COUNT_TINY 64u
#define K_COUNT_TINY 256u
#define SLOT_COUNT 2u
#define COPY_ALIGN 256u
#define SMALL_SHARE 2 /* of time_ns, for products that are small */
#define SMALL_COUNT_MAX 1024u /* between two waits */
#define N_COUNT_STEP LAYOUT_NZ_GRANULE /* whole granules of any layout */
#define PRODUCT_S_MAX 0.25 /* of one product: a slow device is measured with smaller ones */

struct bench {
    struct device *device;
    struct stream *stream;
    void *weights, *x, *out;
    uint64_t weight_bytes, x_bytes, out_bytes;
    enum layout layout; /* that the device wants of a matrix; any bytes will do */
    uint32_t n_count; /* rows that the weights hold, or as many as do not take too long */
    uint32_t n_many;  /* of which DEVICE_MEASURE_ROWS rows are multiplied with */
};

static void bench_close(struct bench *bench)
{
    stream_destroy(bench->stream);
    device_free(bench->device, DEVICE_USE_SCRATCH, bench->out, bench->out_bytes);
    device_free(bench->device, DEVICE_USE_SCRATCH, bench->x, bench->x_bytes);
    device_free(bench->device, DEVICE_USE_SCRATCH, bench->weights, bench->weight_bytes);
}

static uint64_t weight_bytes_wanted(void)
{
    const long cache_bytes = sysconf(_SC_LEVEL3_CACHE_SIZE); /* 0 or -1: not known */
    const uint64_t wanted = cache_bytes > 0 ? 2 * (uint64_t)cache_bytes : 0;

    if (wanted < WEIGHT_BYTES_MIN)
        return WEIGHT_BYTES_MIN;
    return wanted < WEIGHT_BYTES_MAX ? wanted : WEIGHT_BYTES_MAX;
}

/* Runs the product again and again; *seconds_out: of one. */
static enum status time_op(struct bench *bench, const struct op *op, uint64_t time_ns,
                           double *seconds_out, struct err *err)
{
    uint64_t began_ns = 0, now_ns = 0, count = 0;
    enum status st = STATUS_OK;

    for (uint64_t i = 0; st == STATUS_OK && (i < 2 || now_ns - began_ns < time_ns); i++) {
        st = device_launch(bench->stream, op, err);
        if (st == STATUS_OK)
            st = stream_sync(bench->stream, err);
        now_ns = clock_now_ns();
        if (i == 0)
            began_ns = now_ns; /* the first warms up */
        else
            count++;
    }
    if (st == STATUS_OK)
        *seconds_out = (double)(now_ns - began_ns) * 1e-9 / (double)count;
    return st;
}

static struct op product(const struct bench *bench, enum dtype dtype, uint32_t rows, uint32_t n)
{
    return (struct op){ .kind = OP_MATMUL, .matmul = {
        .out = bench->out, .x = bench->x, .weight = bench->weights, .weight_dtype = dtype,
        .weight_layout = bench->layout, .row_count = rows, .n_count = n, .k_count = K_COUNT,
        .batch_count = 1, .out_row_stride = n, .x_row_stride = K_COUNT,
    } };
}

/* Rows of weights that take PRODUCT_S_MAX when `n` rows take `seconds`. */
static uint32_t rows_in_time(uint32_t n, double seconds, uint32_t most)
{
    const double rows = n * PRODUCT_S_MAX / (seconds + 1e-9);

    return rows >= most ? most
           : rows > N_COUNT_MIN ? (uint32_t)rows / N_COUNT_STEP * N_COUNT_STEP
                                : N_COUNT_MIN;
}

static enum status bench_limit(struct bench *bench, enum dtype dtype, struct err *err)
{
    const uint32_t n = bench->n_count < N_COUNT_SMALL ? bench->n_count : N_COUNT_SMALL;
    const struct op op = product(bench, dtype, 1, n);
    double seconds = 0;
    const enum status st = time_op(bench, &op, 0, &seconds, err);

    bench->n_many = bench->n_count < N_COUNT_MANY ? bench->n_count : N_COUNT_MANY;
    bench->n_many = rows_in_time(n, seconds * DEVICE_MEASURE_ROWS, bench->n_many);
    bench->n_count = rows_in_time(n, seconds, bench->n_count);
    return st;
}

static enum status bench_open(struct bench *bench, enum dtype dtype, uint64_t memory_bytes_max,
                              struct err *err)
{
    const uint64_t rest = memory_bytes_max / (memory_bytes_max < 8 * MIB ? 2 : 8); /* x, out */
    const uint64_t room = memory_bytes_max - rest;
    uint64_t wanted = weight_bytes_wanted();
    uint64_t row_bytes = 0;
    enum status st;

    (void)dtype_bytes(dtype, K_COUNT, &row_bytes);
    if (wanted > room)
        wanted = room;
    bench->n_count = (uint32_t)(wanted / row_bytes / N_COUNT_STEP * N_COUNT_STEP);
    bench->layout = device_weight_layout(bench->device, DEVICE_WEIGHT_MATRIX, dtype);
    if (bench->n_count < N_COUNT_MIN)
        return err_set(err, STATUS_NO_MEMORY, "no memory to measure the device with");
    bench->weight_bytes = bench->n_count * row_bytes;
    bench->x_bytes = DEVICE_MEASURE_ROWS * K_COUNT * sizeof(float);
    bench->out_bytes = (uint64_t)bench->n_count * sizeof(float);
    if (bench->out_bytes < DEVICE_MEASURE_ROWS * N_COUNT_MANY * sizeof(float))
        bench->out_bytes = DEVICE_MEASURE_ROWS * N_COUNT_MANY * sizeof(float);
    st = device_alloc(bench->device, DEVICE_USE_SCRATCH, bench->weight_bytes, &bench->weights, err);
    if (st == STATUS_OK)
        st = device_alloc(bench->device, DEVICE_USE_SCRATCH, bench->x_bytes, &bench->x, err);
    if (st == STATUS_OK)
        st = device_alloc(bench->device, DEVICE_USE_SCRATCH, bench->out_bytes, &bench->out, err);
    if (st == STATUS_OK)
        st = stream_create(bench->device, STREAM_COMPUTE, &bench->stream, err);
    if (st == STATUS_OK)
        st = device_fill(bench->stream, bench->weights, 0, bench->weight_bytes, err);
    if (st == STATUS_OK)
        st = device_fill(bench->stream, bench->x, 0, bench->x_bytes, err);
    return st == STATUS_OK ? bench_limit(bench, dtype, err) : st;
}

/* Small products with [n][k] weights, in turn over all the memory that there is; *seconds_out: of
 * one. */
static enum status time_small(struct bench *bench, enum dtype dtype, const uint32_t shape[2],
                              uint64_t time_ns, double *seconds_out, struct err *err)
{
    const uint64_t small_bytes = shape[0] * dtype_row_bytes(dtype, shape[1]);
    const uint64_t place_count = bench->n_count * dtype_row_bytes(dtype, K_COUNT) / small_bytes;
    struct op op = product(bench, dtype, 1, shape[0]);
    const uint64_t began_ns = clock_now_ns();
    uint64_t count = 0, now_ns = began_ns;
    enum status st = STATUS_OK;

    op.matmul.k_count = shape[1];
    op.matmul.x_row_stride = shape[1];
    while (st == STATUS_OK && (count == 0 || now_ns - began_ns < time_ns)) {
        const uint64_t last = count + (place_count < SMALL_COUNT_MAX ? place_count
                                                                     : SMALL_COUNT_MAX);

        for (; st == STATUS_OK && count < last; count++) {
            op.matmul.weight = (const char *)bench->weights + count % place_count * small_bytes;
            st = device_launch(bench->stream, &op, err);
        }
        if (st == STATUS_OK)
            st = stream_sync(bench->stream, err);
        now_ns = clock_now_ns();
    }
    *seconds_out = (double)(now_ns - began_ns) * 1e-9 / (double)count;
    return st;
}

enum status device_measure_matmul(struct device *device, enum dtype dtype,
                                  uint64_t memory_bytes_max, uint64_t time_ns,
                                  struct device_matmul_rates *rates_out, struct err *err)
{
    static const uint32_t tiny[2] = { N_COUNT_TINY, K_COUNT_TINY };
    struct bench bench = { .device = device };
    double one_s = 0, many_s = 0, small_s = 0, tiny_s = 0;
    enum status st = bench_open(&bench, dtype, memory_bytes_max, err);
    const uint32_t small[2] = { bench.n_count < N_COUNT_SMALL ? bench.n_count : N_COUNT_SMALL,
                                K_COUNT };

    if (st == STATUS_OK) {
        const struct op one = product(&bench, dtype, 1, bench.n_count);

        st = time_op(&bench, &one, time_ns, &one_s, err);
    }
    if (st == STATUS_OK)
        st = time_small(&bench, dtype, small, time_ns / SMALL_SHARE, &small_s, err);
    if (st == STATUS_OK)
        st = time_small(&bench, dtype, tiny, time_ns / SMALL_SHARE, &tiny_s, err);
    if (st == STATUS_OK) {
        const struct op many = product(&bench, dtype, DEVICE_MEASURE_ROWS, bench.n_many);

        st = time_op(&bench, &many, time_ns, &many_s, err);
    }
    if (st == STATUS_OK) {
        const double reading_s = one_s * small[0] / bench.n_count;

        rates_out->one_row_bytes_per_s =
            (double)bench.n_count * (double)dtype_row_bytes(dtype, K_COUNT) / one_s;
        rates_out->product_s = small_s > reading_s ? small_s - reading_s : 0;
        rates_out->product_bytes = small[0] * (double)dtype_row_bytes(dtype, K_COUNT);
        rates_out->tiny_s = tiny_s;
        rates_out->tiny_bytes = N_COUNT_TINY * (double)dtype_row_bytes(dtype, K_COUNT_TINY);
        rates_out->many_rows_flops_per_s =
            2.0 * DEVICE_MEASURE_ROWS * (double)bench.n_many * K_COUNT / many_s;
    }
    bench_close(&bench);
    return st;
}

struct device_busy {
    struct bench bench;
    struct op op;
    pthread_t thread;
    atomic_bool ends; /* orders nothing but itself */
};

static void *busy_thread(void *user)
{
    struct device_busy *busy = user;
    enum status st = STATUS_OK;

    while (st == STATUS_OK && !atomic_load_explicit(&busy->ends, memory_order_relaxed)) {
        st = device_launch(busy->bench.stream, &busy->op, NULL);
        if (st == STATUS_OK)
            st = stream_sync(busy->bench.stream, NULL);
    }
    return NULL;
}

enum status device_busy_begin(struct device *device, enum dtype dtype, uint64_t memory_bytes_max,
                              struct device_busy **busy_out, struct err *err)
{
    struct device_busy *busy = calloc(1, sizeof(*busy));
    enum status st;

    if (busy == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to keep the device busy");
    busy->bench.device = device;
    st = bench_open(&busy->bench, dtype, memory_bytes_max, err);
    if (st == STATUS_OK)
        st = stream_sync(busy->bench.stream, err);
    busy->op = product(&busy->bench, dtype, 1, busy->bench.n_count);
    if (st == STATUS_OK && pthread_create(&busy->thread, NULL, busy_thread, busy) != 0)
        st = err_set(err, STATUS_NO_MEMORY, "no thread to keep the device busy");
    if (st != STATUS_OK) {
        bench_close(&busy->bench);
        free(busy);
        return st;
    }
    *busy_out = busy;
    return STATUS_OK;
}

void device_busy_end(struct device_busy *busy)
{
    if (busy == NULL)
        return;
    atomic_store_explicit(&busy->ends, true, memory_order_relaxed);
    (void)pthread_join(busy->thread, NULL);
    bench_close(&busy->bench);
    free(busy);
}

enum status device_measure_link(struct device *device, uint64_t memory_bytes_max,
                                uint64_t time_ns, double *bytes_per_s_out, struct err *err)
{
    const uint64_t size_bytes = memory_bytes_max < LINK_BYTES_MAX ? memory_bytes_max
                                                                  : LINK_BYTES_MAX;
    struct stream *stream = NULL;
    void *dst = NULL, *src = NULL;
    uint64_t began_ns = 0, now_ns = 0, count = 0;
    enum status st;

    *bytes_per_s_out = 0;
    if (device_info(device)->memory_is_host || size_bytes == 0)
        return STATUS_OK;
    st = device_alloc(device, DEVICE_USE_SCRATCH, size_bytes, &dst, err);
    if (st == STATUS_OK)
        st = device_host_alloc(device, size_bytes, &src, err);
    if (st == STATUS_OK)
        st = stream_create(device, STREAM_COPY, &stream, err);
    for (uint64_t i = 0; st == STATUS_OK && (i < 2 || now_ns - began_ns < time_ns); i++) {
        st = device_copy_in(stream, dst, src, size_bytes, err);
        if (st == STATUS_OK)
            st = stream_sync(stream, err);
        now_ns = clock_now_ns();
        if (i == 0)
            began_ns = now_ns;
        else
            count++;
    }
    if (st == STATUS_OK)
        *bytes_per_s_out =
            (double)size_bytes * (double)count / ((double)(now_ns - began_ns) * 1e-9);
    stream_destroy(stream);
    device_host_free(device, src, size_bytes);
    device_free(device, DEVICE_USE_SCRATCH, dst, size_bytes);
    return st;
}

enum status device_measure_copy(struct device *device, uint64_t piece_bytes,
                                uint64_t memory_bytes_max, uint64_t time_ns,
                                double *bytes_per_s_out, struct err *err)
{
    const uint64_t wanted = weight_bytes_wanted() + SLOT_COUNT * piece_bytes;
    const uint64_t memory_bytes = memory_bytes_max < wanted ? memory_bytes_max : wanted;
    const uint64_t most = memory_bytes / (SLOT_COUNT + 1) / COPY_ALIGN * COPY_ALIGN;
    const uint64_t size_bytes = piece_bytes < most ? piece_bytes : most;
    const uint64_t place_count = size_bytes > 0 ? memory_bytes / size_bytes - SLOT_COUNT : 0;
    struct stream *stream = NULL;
    void *memory = NULL;
    uint64_t began_ns = 0, now_ns = 0, count = 0;
    enum status st;

    if (size_bytes == 0)
        return err_set(err, STATUS_NO_MEMORY, "no memory to measure the device with");
    st = device_alloc(device, DEVICE_USE_SCRATCH, memory_bytes, &memory, err);
    if (st == STATUS_OK)
        st = stream_create(device, STREAM_COPY, &stream, err);
    if (st == STATUS_OK)
        st = device_fill(stream, memory, 0, memory_bytes, err);
    /* Once over all places warms up. */
    for (uint64_t i = 0; st == STATUS_OK && (i <= place_count || now_ns - began_ns < time_ns);
         i++) {
        char *slots = memory;

        st = device_copy_peer(stream, slots + i % SLOT_COUNT * size_bytes,
                              slots + (SLOT_COUNT + i % place_count) * size_bytes, size_bytes,
                              err);
        if (st == STATUS_OK)
            st = stream_sync(stream, err);
        now_ns = clock_now_ns();
        if (i < place_count)
            began_ns = now_ns;
        else
            count++;
    }
    if (st == STATUS_OK)
        *bytes_per_s_out =
            (double)size_bytes * (double)count / ((double)(now_ns - began_ns) * 1e-9);
    stream_destroy(stream);
    device_free(device, DEVICE_USE_SCRATCH, memory, memory_bytes);
    return st;
}
