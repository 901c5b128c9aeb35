/* bench/peak.c - how many products a second the processor makes at most.
 *
 * Twelve sums on registers, or four tiles, and nothing read from memory: the bound of whatever
 * multiplies many rows, whichever way it is written. All threads at once; the best of ROUNDS.
 *
 *     make bench && build/bench/peak [THREADS [KERNELS]]
 *
 * A line for each instruction that this processor has, or of these that --cpu-kernels KERNELS
 * uses: its name and products (a multiplication and an addition) per second. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/thread_pool.h"
#include "device/cpu/kernels.h"

#define ROUNDS 9
#define LOOPS 200000
#define TILE_LOOPS 25000

#if defined(__x86_64__)
#include <immintrin.h>

#define SUMS 12

__attribute__((target("avx2,fma"))) static void fma_task(void *context, size_t index,
                                                         uint32_t thread_index)
{
    const __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(0.001f);
    __m256 sums[SUMS];

    (void)thread_index;
    for (int i = 0; i < SUMS; i++)
        sums[i] = _mm256_set1_ps((float)i);
    for (int loop = 0; loop < LOOPS; loop++) {
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++)
            sums[i] = _mm256_fmadd_ps(sums[i], x, y);
    }
    for (int i = 1; i < SUMS; i++)
        sums[0] = _mm256_add_ps(sums[0], sums[i]);
    ((float *)context)[index] = _mm256_cvtss_f32(sums[0]); /* so that the sums are wanted */
}

__attribute__((target("avx512f"))) static void fma512_task(void *context, size_t index,
                                                           uint32_t thread_index)
{
    const __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(0.001f);
    __m512 sums[SUMS];

    (void)thread_index;
    for (int i = 0; i < SUMS; i++)
        sums[i] = _mm512_set1_ps((float)i);
    for (int loop = 0; loop < LOOPS; loop++) {
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++)
            sums[i] = _mm512_fmadd_ps(sums[i], x, y);
    }
    for (int i = 1; i < SUMS; i++)
        sums[0] = _mm512_add_ps(sums[0], sums[i]);
    ((float *)context)[index] = _mm512_cvtss_f32(sums[0]);
}

__attribute__((target("avx2,avxvnni"))) static void vnni_task(void *context, size_t index,
                                                              uint32_t thread_index)
{
    const __m256i x = _mm256_set1_epi8((char)(index + 1)), y = _mm256_set1_epi8(3);
    __m256i sums[SUMS];

    (void)thread_index;
    for (int i = 0; i < SUMS; i++)
        sums[i] = _mm256_set1_epi32(i);
    for (int loop = 0; loop < LOOPS; loop++) {
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++)
            sums[i] = _mm256_dpbusd_avx_epi32(sums[i], x, y);
    }
    for (int i = 1; i < SUMS; i++)
        sums[0] = _mm256_add_epi32(sums[0], sums[i]);
    ((float *)context)[index] = (float)_mm256_cvtsi256_si32(sums[0]);
}

/* Products of bytes as AVX2 has them: by pairs into 16 bits, and those by pairs into 32. */
__attribute__((target("avx2"))) static void bytes_task(void *context, size_t index,
                                                       uint32_t thread_index)
{
    const __m256i ones = _mm256_set1_epi16(1), y = _mm256_set1_epi8(3);
    __m256i sums[SUMS];

    (void)thread_index;
    for (int i = 0; i < SUMS; i++)
        sums[i] = _mm256_set1_epi32(i + (int)index);
    for (int loop = 0; loop < LOOPS; loop++) {
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++)
            sums[i] = _mm256_add_epi32(
                sums[i], _mm256_madd_epi16(_mm256_maddubs_epi16(sums[i], y), ones));
    }
    for (int i = 1; i < SUMS; i++)
        sums[0] = _mm256_add_epi32(sums[0], sums[i]);
    ((float *)context)[index] = (float)_mm256_cvtsi256_si32(sums[0]);
}

__attribute__((target("avx512f,avx512vnni"))) static void vnni512_task(void *context, size_t index,
                                                                       uint32_t thread_index)
{
    const __m512i x = _mm512_set1_epi8((char)(index + 1)), y = _mm512_set1_epi8(3);
    __m512i sums[SUMS];

    (void)thread_index;
    for (int i = 0; i < SUMS; i++)
        sums[i] = _mm512_set1_epi32(i);
    for (int loop = 0; loop < LOOPS; loop++) {
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++)
            sums[i] = _mm512_dpbusd_epi32(sums[i], x, y);
    }
    for (int i = 1; i < SUMS; i++)
        sums[0] = _mm512_add_epi32(sums[0], sums[i]);
    ((float *)context)[index] = (float)_mm512_cvtsi512_si32(sums[0]);
}

__attribute__((target("avx512f,avx512bf16"))) static void bf16_task(void *context, size_t index,
                                                                   uint32_t thread_index)
{
    const __m512bh x = (__m512bh)_mm512_set1_epi16(0x3F80), y = (__m512bh)_mm512_set1_epi16(0x3C00);
    __m512 sums[SUMS];

    (void)thread_index;
    for (int i = 0; i < SUMS; i++)
        sums[i] = _mm512_set1_ps((float)i);
    for (int loop = 0; loop < LOOPS; loop++) {
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++)
            sums[i] = _mm512_dpbf16_ps(sums[i], x, y);
    }
    for (int i = 1; i < SUMS; i++)
        sums[0] = _mm512_add_ps(sums[0], sums[i]);
    ((float *)context)[index] = _mm512_cvtss_f32(sums[0]);
}

/* Tiles of 16 rows of 64 bytes: four sums, two of x, two of weights, as the kernels have them. */
struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

__attribute__((target("amx-tile"))) static void tiles_zero(void)
{
    struct tile_config config = { .palette = 1 };

    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = 16;
    }
    __asm__ volatile("" : : "r"(&config) : "memory"); /* gcc's next line declares 8 of its bytes */
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
}

__attribute__((target("amx-tile,amx-int8"))) static void amx_bytes_task(void *context, size_t index,
                                                                        uint32_t thread_index)
{
    (void)context;
    (void)index;
    (void)thread_index;
    tiles_zero();
    for (int loop = 0; loop < TILE_LOOPS; loop++) {
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    _tile_release();
}

__attribute__((target("amx-tile,amx-bf16"))) static void amx_bf16_task(void *context, size_t index,
                                                                       uint32_t thread_index)
{
    (void)context;
    (void)index;
    (void)thread_index;
    tiles_zero();
    for (int loop = 0; loop < TILE_LOOPS; loop++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
}
#endif

/* products: that a task makes. */
static void measure(struct thread_pool *pool, uint32_t thread_count, const char *name,
                    void (*task)(void *, size_t, uint32_t), double products)
{
    float *sums = calloc(thread_count, sizeof(*sums));
    double best_ns = INFINITY;

    if (sums == NULL)
        exit(1);
    for (int round = 0; round < ROUNDS; round++) {
        const uint64_t start_ns = clock_now_ns();
        double ns;
        thread_pool_run(pool, thread_count, task, sums);
        ns = (double)(clock_now_ns() - start_ns);
        best_ns = ns < best_ns ? ns : best_ns;
    }
    printf("%s,%.4g\n", name, products * thread_count / best_ns * 1e9);
    free(sums);
}

int main(int argc, char **argv)
{
    const uint32_t thread_count = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 1;
    const char *id = argc > 2 ? argv[2] : NULL;
    const struct cpu_kernels *kernels;
    struct thread_pool *pool = NULL;
    struct err err;

    if (thread_count < 1 || thread_count > THREAD_POOL_THREADS_MAX) {
        (void)fprintf(stderr, "usage: peak [THREADS [KERNELS]]\n");
        return 2;
    }
    if (cpu_kernels_select(id, &kernels, &err) != STATUS_OK || /* asks for the tiles, too */
        thread_pool_create(thread_count, &pool, &err) != STATUS_OK) {
        (void)fprintf(stderr, "%s\n", err.message);
        return 1;
    }
#if defined(__x86_64__)
    const bool is_amx = kernels == &cpu_kernels_amx;
    const bool is_avx512 = is_amx || kernels == &cpu_kernels_avx512;

    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        measure(pool, thread_count, "fma", is_avx512 ? fma512_task : fma_task,
                (is_avx512 ? 16.0 : 8.0) * SUMS * LOOPS);
        measure(pool, thread_count, "bytes",
                is_avx512                      ? vnni512_task
                : kernels == &cpu_kernels_vnni ? vnni_task
                                               : bytes_task,
                (is_avx512 ? 64.0 : 32.0) * SUMS * LOOPS);
    }
    if (id == NULL && cpu_kernels_select_bf16() != NULL)
        measure(pool, thread_count, "bf16", bf16_task, 32.0 * SUMS * LOOPS);
    if (is_amx) {
        measure(pool, thread_count, "amx bytes", amx_bytes_task,
                16.0 * 16 * 64 * 4 * TILE_LOOPS);
        measure(pool, thread_count, "amx bf16", amx_bf16_task,
                16.0 * 16 * 32 * 4 * TILE_LOOPS);
    }
#endif
    thread_pool_destroy(pool);
    return 0;
}
