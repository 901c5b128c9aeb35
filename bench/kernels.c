/* bench/kernels.c - how near the processor's kernels come to what the processor can do.
 *
 * The bounds are measured on the same machine, between the samples: FMAs on registers (for
 * quantised weights the products of bytes that vectors make, where AMX may pass them), and a loop
 * that only reads memory. A product of few rows is bound by reading its weights, one of many by multiplying.
 * The weights of the samples lie next to each other in 512 MiB, so that no cache holds them.
 *
 *     make bench && build/bench/kernels [THREADS [PART [KERNELS]]] > bench/results/kernels.csv
 *
 * PART: only the cases whose names have this in them. KERNELS: as --cpu-kernels.
 *
 * A line per case: best and median of the samples; the bound in the same unit; the best's share. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/size.h"
#include "base/thread_pool.h"
#include "device/cpu/kernels.h"
#include "device/device.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define WEIGHT_BYTES (512 * MIB)
#define READ_BYTES (16 * MIB) /* at a time: short, so that the best run is not interrupted */
#define SAMPLES_MAX 64
#define CASE_NS UINT64_C(1000000000)
#define FMA_ROUNDS 400000
#define ROWS_MAX 256
#define WIDTH_MAX 8192

struct bench {
    struct device *device;
    struct stream *stream;
    struct thread_pool *pool;
    uint32_t thread_count;
    char *weights;
    float *x, *out;
    uint64_t read_at;
    const char *part;               /* of the names of the cases to run */
    const struct cpu_kernels *kernels; /* that the device computes with */
    double fma_per_ns, byte_per_ns; /* bounds: operations, two for an FMA or a product of bytes */
    double read_per_ns;             /* bound: bytes */
    uint64_t sink;
};

static void must(enum status st, const struct err *err)
{
    if (st != STATUS_OK) {
        (void)fprintf(stderr, "%s\n", err->message);
        exit(1);
    }
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static void fma_task(void *context, size_t index,
                                                         uint32_t thread_index)
{
    const __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(0.001f);
    __m256 sums[12];
    float out[8];

    (void)index;
    (void)thread_index;
    for (int i = 0; i < 12; i++)
        sums[i] = _mm256_set1_ps((float)i);
    for (int round = 0; round < FMA_ROUNDS; round++) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++)
            sums[i] = _mm256_fmadd_ps(sums[i], x, y);
    }
    for (int i = 1; i < 12; i++)
        sums[0] = _mm256_add_ps(sums[0], sums[i]);
    _mm256_storeu_ps(out, sums[0]);
    ((struct bench *)context)->sink += out[0] > 0; /* so that the sums are wanted */
}

__attribute__((target("avx512f"))) static void fma512_task(void *context, size_t index,
                                                           uint32_t thread_index)
{
    const __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(0.001f);
    __m512 sums[12];

    (void)index;
    (void)thread_index;
    for (int i = 0; i < 12; i++)
        sums[i] = _mm512_set1_ps((float)i);
    for (int round = 0; round < FMA_ROUNDS / 2; round++) { /* as many FMAs as fma_task */
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++)
            sums[i] = _mm512_fmadd_ps(sums[i], x, y);
    }
    for (int i = 1; i < 12; i++)
        sums[0] = _mm512_add_ps(sums[0], sums[i]);
    ((struct bench *)context)->sink += _mm512_reduce_add_ps(sums[0]) > 0;
}

/* 32 products of bytes per round and sum, widened to 32 bits and added up. */
__attribute__((target("avx2,avxvnni"))) static void vnni_task(void *context, size_t index,
                                                              uint32_t thread_index)
{
    const __m256i x = _mm256_set1_epi8((char)(index + 1)), y = _mm256_set1_epi8(3);
    __m256i sums[12];

    (void)thread_index;
    for (int i = 0; i < 12; i++)
        sums[i] = _mm256_set1_epi32(i);
    for (int round = 0; round < FMA_ROUNDS; round++) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++)
            sums[i] = _mm256_dpbusd_avx_epi32(sums[i], x, y);
    }
    for (int i = 1; i < 12; i++)
        sums[0] = _mm256_add_epi32(sums[0], sums[i]);
    ((struct bench *)context)->sink += (uint64_t)_mm256_extract_epi64(sums[0], 0);
}

__attribute__((target("avx512f,avx512vnni"))) static void avx512_task(void *context, size_t index,
                                                                      uint32_t thread_index)
{
    const __m512i x = _mm512_set1_epi8((char)(index + 1)), y = _mm512_set1_epi8(3);
    __m512i sums[12];

    (void)thread_index;
    for (int i = 0; i < 12; i++)
        sums[i] = _mm512_set1_epi32(i);
    for (int round = 0; round < FMA_ROUNDS / 2; round++) { /* as many products as the others make */
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++)
            sums[i] = _mm512_dpbusd_epi32(sums[i], x, y);
    }
    for (int i = 1; i < 12; i++)
        sums[0] = _mm512_add_epi32(sums[0], sums[i]);
    ((struct bench *)context)->sink += (uint64_t)_mm512_reduce_add_epi32(sums[0]);
}

__attribute__((target("avx2"))) static void bytes_task(void *context, size_t index,
                                                       uint32_t thread_index)
{
    const __m256i ones = _mm256_set1_epi16(1), y = _mm256_set1_epi8(3);
    __m256i sums[12];

    (void)thread_index;
    for (int i = 0; i < 12; i++)
        sums[i] = _mm256_set1_epi32(i + (int)index);
    for (int round = 0; round < FMA_ROUNDS; round++) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++)
            sums[i] = _mm256_add_epi32(
                sums[i], _mm256_madd_epi16(_mm256_maddubs_epi16(sums[i], y), ones));
    }
    for (int i = 1; i < 12; i++)
        sums[0] = _mm256_add_epi32(sums[0], sums[i]);
    ((struct bench *)context)->sink += (uint64_t)_mm256_extract_epi64(sums[0], 0);
}
#endif

static void read_task(void *context, size_t index, uint32_t thread_index)
{
    struct bench *bench = context;
    const uint64_t *words = (const uint64_t *)(const void *)(bench->weights + bench->read_at);
    const size_t count = READ_BYTES / 8 / bench->thread_count;
    uint64_t sums[8] = { 0 };

    (void)thread_index;
    words += index * count;
    for (size_t i = 0; i + 2 <= count / 4; i += 2) { /* four places at once, as the kernels read */
        for (size_t j = 0; j < 4; j++) {
            sums[2 * j] ^= words[j * (count / 4) + i];
            sums[2 * j + 1] ^= words[j * (count / 4) + i + 1];
        }
    }
    bench->sink ^= sums[0] ^ sums[1] ^ sums[2] ^ sums[3] ^ sums[4] ^ sums[5] ^ sums[6] ^ sums[7];
}

/* Raises the bounds to what is measured now. */
static void measure_bounds(struct bench *bench)
{
    uint64_t start_ns;
    double rate;

#if defined(__x86_64__)
    const struct cpu_kernels *kernels = bench->kernels;
    const bool is_avx512 = kernels == &cpu_kernels_avx512 || kernels == &cpu_kernels_amx;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        start_ns = clock_now_ns();
        thread_pool_run(bench->pool, bench->thread_count, is_avx512 ? fma512_task : fma_task,
                        bench);
        rate = 12.0 * 16 * FMA_ROUNDS * bench->thread_count / (double)(clock_now_ns() - start_ns);
        bench->fma_per_ns = rate > bench->fma_per_ns ? rate : bench->fma_per_ns;
        start_ns = clock_now_ns();
        thread_pool_run(bench->pool, bench->thread_count,
                        is_avx512                      ? avx512_task
                        : kernels == &cpu_kernels_vnni ? vnni_task
                                                       : bytes_task,
                        bench);
        rate = 12.0 * 64 * FMA_ROUNDS * bench->thread_count / (double)(clock_now_ns() - start_ns);
        bench->byte_per_ns = rate > bench->byte_per_ns ? rate : bench->byte_per_ns;
    }
#endif
    for (bench->read_at = 0; bench->read_at < WEIGHT_BYTES; bench->read_at += READ_BYTES) {
        start_ns = clock_now_ns();
        thread_pool_run(bench->pool, bench->thread_count, read_task, bench);
        rate = (double)READ_BYTES / (double)(clock_now_ns() - start_ns);
        bench->read_per_ns = rate > bench->read_per_ns ? rate : bench->read_per_ns;
    }
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Runs an op again and again; `advance` makes it read other weights each time. dtype: of them. */
static void measure(struct bench *bench, const char *name, struct op *op, enum dtype dtype,
                    double flops, double bytes,
                    void (*advance)(struct bench *, struct op *, uint32_t))
{
    double ns[SAMPLES_MAX];
    uint32_t count = 0;
    const uint64_t start_ns = clock_now_ns();
    bool reads;
    double work, bound, multiply_per_ns;
    struct err err;

    if (strstr(name, bench->part) == NULL)
        return;
    while (count < SAMPLES_MAX && (count < 5 || clock_now_ns() - start_ns < CASE_NS)) {
        uint64_t begin_ns;
        if (advance != NULL)
            advance(bench, op, count);
        begin_ns = clock_now_ns();
        must(device_launch(bench->stream, op, &err), &err);
        ns[count++] = (double)(clock_now_ns() - begin_ns);
    }
    measure_bounds(bench);
    qsort(ns, count, sizeof(ns[0]), compare);
    multiply_per_ns = cpu_is_quantised(dtype) ? bench->byte_per_ns : bench->fma_per_ns;
    reads = bytes / bench->read_per_ns > flops / multiply_per_ns;
    work = reads ? bytes : flops;
    bound = reads ? bench->read_per_ns : multiply_per_ns;
    printf("%s,%u,%s,%.2f,%.2f,%.2f,%.2f\n", name, bench->thread_count,
           reads ? "GB/s" : cpu_is_quantised(dtype) ? "Gop/s" : "GFLOP/s", work / ns[0], work / ns[count / 2], bound,
           work / ns[0] / bound);
    (void)fflush(stdout);
}

static void advance_matmul(struct bench *bench, struct op *op, uint32_t sample)
{
    const uint64_t bytes = dtype_row_bytes(op->matmul.weight_dtype,
                                           (uint64_t)op->matmul.n_count * op->matmul.k_count);

    op->matmul.weight = bench->weights + sample % (WEIGHT_BYTES / bytes) * bytes;
}

static void bench_matmul(struct bench *bench)
{
    static const enum dtype dtypes[] = { DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_Q8_0,
                                         DTYPE_Q4_0, DTYPE_Q4_K, DTYPE_Q6_K };
    static const uint32_t rows[] = { 1, 2, 4, 8, 16, 32, 64, 256 };
    static const struct {
        uint32_t n, k;
    } shapes[] = { { 2048, 2048 }, { 8192, 2048 }, { 2048, 8192 } }; /* llama-1b's */

    for (size_t i = 0; i < 7 * 8 * 3; i++) {
        const enum dtype dtype = dtypes[i / 24];
        const uint32_t row_count = rows[i % 8], n = shapes[i / 8 % 3].n, k = shapes[i / 8 % 3].k;
        struct op op = { .kind = OP_MATMUL };
        char name[96];
        op.matmul = (struct op_matmul){
            .out = bench->out, .x = bench->x, .weight_dtype = dtype,
            .weight_layout = device_weight_layout(bench->device, DEVICE_WEIGHT_MATRIX, dtype),
            .row_count = row_count, .n_count = n, .k_count = k, .batch_count = 1,
            .out_row_stride = n, .x_row_stride = k,
        };
        (void)snprintf(name, sizeof(name), "matmul %s %ux%ux%u", dtype_info(dtype)->name,
                       row_count, n, k);
        measure(bench, name, &op, dtype, 2.0 * row_count * n * k,
                (double)dtype_row_bytes(dtype, (uint64_t)n * k), advance_matmul);
    }
}

/* Another cache each time: none stays in the processor's. */
static void advance_attention(struct bench *bench, struct op *op, uint32_t sample)
{
    const uint64_t k_bytes =
        4096 / op->attention.page_size *
        dtype_row_bytes(op->attention.cache_dtype, op->attention.k_strides.page);
    const bool latent = op->attention.kv_head_count == 1;
    const uint64_t bytes = latent ? k_bytes : 2 * k_bytes;

    op->attention.k_cache = bench->weights + sample % (WEIGHT_BYTES / bytes) * bytes;
    op->attention.v_cache =
        (const char *)op->attention.k_cache + (latent ? 0 : k_bytes);
}

/* Attention over a cache in `weights`, pages in order. */
static void bench_attention(struct bench *bench)
{
    static const struct {
        const char *name;
        uint32_t rows, start, heads, kv_heads, k_width, v_width;
    } cases[] = {
        { "attention gqa 256 rows at 0", 256, 0, 32, 8, 64, 64 },
        { "attention gqa 256 rows at 2048", 256, 2048, 32, 8, 64, 64 },
        { "attention gqa 1 row at 4095", 1, 4095, 32, 8, 64, 64 },
        { "attention gqa 1 row at 4095, of 8 heads", 1, 4095, 32, 4, 128, 128 },
        { "attention mla 256 rows at 0", 256, 0, 16, 1, 576, 512 },
        { "attention mla 1 row at 4095", 1, 4095, 16, 1, 576, 512 },
    };
    static const enum dtype dtypes[] = { DTYPE_F32, DTYPE_F16, DTYPE_Q8_0 };
    enum { PAGE = 16, PAGES = 4096 / PAGE, CASES = sizeof(cases) / sizeof(cases[0]) };
    static int32_t pages[PAGES], sequences[ROWS_MAX], positions[ROWS_MAX];

    for (int32_t i = 0; i < PAGES; i++)
        pages[i] = i;
    for (size_t c = 0; c < 3 * CASES; c++) {
        const size_t i = c / 3;
        const enum dtype dtype = dtypes[c % 3];
        const uint64_t k_stride = (uint64_t)cases[i].kv_heads * cases[i].k_width;
        const uint64_t k_bytes = dtype_row_bytes(dtype, k_stride);
        const bool latent = cases[i].kv_heads == 1;
        double keys = 0;
        struct op op = { .kind = OP_ATTENTION };
        char name[96];
        for (uint32_t t = 0; t < cases[i].rows; t++) {
            positions[t] = (int32_t)(cases[i].start + t);
            keys += cases[i].start + t + 1;
        }
        op.attention = (struct op_attention){
            .out = bench->out, .q = bench->x, .cache_dtype = dtype,
            .pages = pages, .sequences = sequences, .positions = positions,
            .row_count = cases[i].rows, .head_count = cases[i].heads,
            .kv_head_count = cases[i].kv_heads, .k_width = cases[i].k_width,
            .v_width = cases[i].v_width, .page_size = PAGE, .page_count_max = PAGES,
            .out_row_stride = (uint64_t)cases[i].heads * cases[i].v_width,
            .q_row_stride = (uint64_t)cases[i].heads * cases[i].k_width,
            .k_strides = op_cache_by_head(cases[i].kv_heads, PAGE, cases[i].k_width),
            .v_strides = op_cache_by_head(cases[i].kv_heads, PAGE, cases[i].k_width),
            .scale = 0.1f,
        };
        (void)snprintf(name, sizeof(name), "%s in %s", cases[i].name, dtype_info(dtype)->name);
        measure(bench, name, &op, DTYPE_F32,
                2 * keys * cases[i].heads * (cases[i].k_width + cases[i].v_width),
                (cases[i].start + cases[i].rows) * (double)k_bytes * (latent ? 1 : 2),
                advance_attention);
    }
}

static void bench_moe(struct bench *bench)
{
    enum { WIDTH = 2048, FFN = 1408, EXPERTS = 16, TOP_K = 6 }; /* DeepSeek-V2-Lite's, fewer */
    static const uint32_t rows[] = { 1, 8, 256 };
    static const enum dtype dtypes[] = { DTYPE_BF16, DTYPE_Q8_0, DTYPE_Q4_0 };
    static int32_t ids[ROWS_MAX * TOP_K];
    static float weights[ROWS_MAX * TOP_K];
    void *scratch;
    const uint64_t scratch_bytes = op_moe_scratch_bytes(ROWS_MAX, TOP_K, EXPERTS, WIDTH, FFN);
    struct err err;

    must(device_alloc(bench->device, DEVICE_USE_SCRATCH, scratch_bytes, &scratch, &err), &err);
    for (int32_t i = 0; i < ROWS_MAX * TOP_K; i++) {
        ids[i] = (i / TOP_K * 5 + i % TOP_K * 3) % EXPERTS;
        weights[i] = 0.2f;
    }
    for (size_t i = 0; i < 3 * 3; i++) {
        const double matrix = 3.0 * WIDTH * FFN;
        const uint32_t row_count = rows[i % 3];
        const double hit = row_count * TOP_K < EXPERTS ? row_count * TOP_K : EXPERTS;
        const enum dtype dtype = dtypes[i / 3];
        struct op op = { .kind = OP_MOE };
        char name[64];
        op.moe = (struct op_moe){
            .out = bench->out, .x = bench->x, .ids = ids, .weights = weights,
            .w13 = bench->weights,
            .w2 = bench->weights + dtype_row_bytes(dtype, UINT64_C(2) * EXPERTS * FFN * WIDTH),
            .weight_dtype = dtype, .down_dtype = dtype, .scratch = scratch,
            .weight_layout = device_weight_layout(bench->device, DEVICE_WEIGHT_GATE_UP, dtype),
            .down_layout = device_weight_layout(bench->device, DEVICE_WEIGHT_DOWN, dtype),
            .row_count = row_count, .top_k = TOP_K, .expert_count = EXPERTS, .width = WIDTH, .ffn_width = FFN, .out_row_stride = WIDTH,
            .x_row_stride = WIDTH,
        };
        (void)snprintf(name, sizeof(name), "moe %s %u rows, %d of %d experts",
                       dtype_info(dtype)->name, row_count, TOP_K, EXPERTS);
        measure(bench, name, &op, dtype, 2.0 * row_count * TOP_K * matrix,
                hit * (double)dtype_row_bytes(dtype, UINT64_C(3) * WIDTH * FFN), NULL);
    }
    device_free(bench->device, DEVICE_USE_SCRATCH, scratch, scratch_bytes);
}

int main(int argc, char **argv)
{
    struct bench bench = { .thread_count = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 1,
                           .part = argc > 2 ? argv[2] : "" };
    const struct device_options options = { .thread_count = bench.thread_count,
                                            .cpu_kernels = argc > 3 ? argv[3] : NULL };
    const uint64_t x_bytes = (uint64_t)ROWS_MAX * WIDTH_MAX * 2 * 4;
    void *memory;
    struct err err;

    if (bench.thread_count < 1 || bench.thread_count > THREAD_POOL_THREADS_MAX) {
        (void)fprintf(stderr, "usage: kernels [THREADS [PART [KERNELS]]]\n");
        return 2;
    }
    must(cpu_kernels_select(options.cpu_kernels, &bench.kernels, &err), &err);
    must(device_open("cpu", &options, &bench.device, &err), &err);
    must(stream_create(bench.device, STREAM_COMPUTE, &bench.stream, &err), &err);
    must(thread_pool_create(bench.thread_count, &bench.pool, &err), &err);
    must(device_alloc(bench.device, DEVICE_USE_WEIGHTS, WEIGHT_BYTES, &memory, &err), &err);
    bench.weights = memory;
    memset(memory, 0x38, WEIGHT_BYTES); /* small numbers in every dtype */
    must(device_alloc(bench.device, DEVICE_USE_SCRATCH, x_bytes, &memory, &err), &err);
    bench.x = memory;
    memset(memory, 0x3B, x_bytes);
    must(device_alloc(bench.device, DEVICE_USE_SCRATCH, x_bytes, &memory, &err), &err);
    bench.out = memory;
    for (int i = 0; i < 5; i++)
        measure_bounds(&bench);
    printf("case,threads,unit,best,median,bound,best_share\n");
    bench_matmul(&bench);
    bench_attention(&bench);
    bench_moe(&bench);
    device_free(bench.device, DEVICE_USE_SCRATCH, bench.out, x_bytes);
    device_free(bench.device, DEVICE_USE_SCRATCH, bench.x, x_bytes);
    device_free(bench.device, DEVICE_USE_WEIGHTS, bench.weights, WEIGHT_BYTES);
    thread_pool_destroy(bench.pool);
    stream_destroy(bench.stream);
    device_close(bench.device);
    return 0;
}
