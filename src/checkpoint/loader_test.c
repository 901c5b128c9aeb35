/* checkpoint/loader_test.c - loading against the plainest loops that do the same, and what is
 * refused.
 *
 * Method: small checkpoints of random bits; each load is compared, byte for byte, with one that
 * follows loader.h's formula element by element, for all pairs of dtypes and for staging buffers
 * from one cache line up, so that chunks end everywhere. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/size.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/internal.h"
#include "checkpoint/load.h"
#include "checkpoint/loader.h"
#include "checkpoint/testing.h"

static const enum dtype float_dtypes[] = { DTYPE_F32, DTYPE_F16, DTYPE_BF16 };

/* xorshift64 (Marsaglia 2003): the same numbers on every machine. */
static uint64_t next_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed >> 11;
}

/* Random bits: all kinds of numbers, infinities and NaNs among them. */
static void *random_bytes(size_t size, uint64_t seed)
{
    uint8_t *const bytes = malloc(size);

    assert_non_null(bytes);
    seed |= 1;
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)next_random(&seed);
    return bytes;
}

/* loader.h's formula. */
static void naive_load(const struct loader_part *part, enum dtype dst_dtype, void *dst,
                       enum dtype src_dtype, const void *src)
{
    const struct loader_dim *const d = part->dims;
    const size_t src_size = dtype_info(src_dtype)->block_bytes;
    const size_t dst_size = dtype_info(dst_dtype)->block_bytes;

    for (uint64_t i = 0; i < d[0].count; i++)
        for (uint64_t j = 0; j < d[1].count; j++)
            for (uint64_t k = 0; k < d[2].count; k++) {
                const uint64_t from = part->src_offset + i * d[0].src_stride +
                                      j * d[1].src_stride + k * d[2].src_stride;
                const uint64_t to = part->dst_offset + i * d[0].dst_stride +
                                    j * d[1].dst_stride + k * d[2].dst_stride;
                dtype_convert((uint8_t *)dst + to * dst_size, dst_dtype,
                              (const uint8_t *)src + from * src_size, src_dtype, 1);
            }
}

/* A folder with one tensor "t" of count elements, open. */
struct source {
    char *folder;
    void *bytes;
    enum dtype dtype;
    uint64_t count;
    struct ckpt *ckpt;
};

static struct source source_make(enum dtype dtype, uint64_t count)
{
    struct source source = { .folder = ckpt_testing_folder(), .dtype = dtype, .count = count };
    struct ckpt_testing_tensor tensor = { "t", dtype, 1, { count }, NULL };
    struct err err;

    source.bytes = random_bytes(count * dtype_info(dtype)->block_bytes, count);
    tensor.data = source.bytes;
    ckpt_testing_write_config(source.folder, "{}");
    ckpt_testing_write_tensors(source.folder, "model.safetensors", &tensor, 1);
    if (ckpt_open(source.folder, &source.ckpt, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return source;
}

/* As a large checkpoint of which nothing is cached; where /tmp has no such reads, as before. */
static void source_read_past_cache(struct source *source)
{
    assert_int_equal(ckpt__read_past_cache(source->ckpt, NULL), STATUS_OK);
    for (uint32_t i = 0; i < source->ckpt->file_count; i++)
        assert_int_equal(fsync(source->ckpt->files[i].fd), 0); /* else nothing can be dropped */
    ckpt_drop_cache(source->ckpt);
}

static void source_drop(struct source *source)
{
    ckpt_close(source->ckpt);
    ckpt_testing_remove(source->folder);
    free(source->bytes);
}

/* Loads parts of "t" into a parameter that they fill, and compares. */
static void check_parts(const struct source *source, const struct loader_part *parts,
                        size_t part_count, enum dtype dtype, struct loader_staging *staging)
{
    struct loader *loader;
    struct err err = { .message = "" };
    uint64_t count = 0;
    uint64_t done_bytes = 7;
    uint8_t *got, *wanted;

    for (size_t p = 0; p < part_count; p++)
        count += parts[p].dims[0].count * parts[p].dims[1].count * parts[p].dims[2].count;
    assert_int_equal(loader_create(dtype, count, &loader, &err), STATUS_OK);
    got = calloc(1, loader_size_bytes(loader) + 64);
    wanted = calloc(1, loader_size_bytes(loader) + 64);
    memset(got + loader_size_bytes(loader), 0xA5, 64); /* must stay */
    memset(wanted + loader_size_bytes(loader), 0xA5, 64);
    for (size_t p = 0; p < part_count; p++) {
        struct loader_part part = parts[p];
        part.tensor = "t";
        part.rank = 1;
        part.shape[0] = source->count;
        assert_int_equal(loader_add(loader, &part, &err), STATUS_OK);
        naive_load(&part, dtype, wanted, source->dtype, source->bytes);
    }
    if (loader_check(loader, source->ckpt, "p", &err) != STATUS_OK)
        fail_msg("%s", err.message);
    assert_int_equal(loader_load(loader, source->ckpt, got, staging, NULL, &done_bytes, 0, &err),
                     STATUS_OK);
    assert_memory_equal(got, wanted, loader_size_bytes(loader) + 64);
    assert_int_equal(done_bytes, 7 + loader_source_bytes(loader, source->ckpt));
    loader_destroy(loader);
    free(got);
    free(wanted);
}

/* Every pair of dtypes, every size of buffer. */
static void check_everywhere(uint64_t element_count, const struct loader_part *parts,
                             size_t part_count)
{
    static const uint64_t buffers_bytes[] = { 64, 192, 4096, 0 };

    for (size_t b = 0; b < sizeof(buffers_bytes) / sizeof(buffers_bytes[0]); b++) {
        struct loader_staging *staging;
        assert_int_equal(buffers_bytes[b] == 0
                             ? loader_staging_create(NULL, &staging, NULL)
                             : load__staging_create(buffers_bytes[b], false, &staging, NULL),
                         STATUS_OK);
        for (size_t from = 0; from < 3; from++) {
            struct source source = source_make(float_dtypes[from], element_count);
            for (size_t to = 0; to < 3; to++)
                check_parts(&source, parts, part_count, float_dtypes[to], staging);
            source_drop(&source);
        }
        loader_staging_destroy(staging);
    }
}

static void a_whole_tensor_is_copied(void **state)
{
    const struct loader_part part = { .dims = { { 1, 0, 0 }, { 1, 0, 0 }, { 1961, 1, 1 } } };

    (void)state;
    check_everywhere(1961, &part, 1);
}

static void a_tensor_is_transposed(void **state)
{
    const struct loader_part part = { .dims = { { 1, 0, 0 }, { 37, 53, 1 }, { 53, 1, 37 } } };

    (void)state;
    check_everywhere(37 * 53, &part, 1);
}

/* MLA's kv_b_proj: of each head's 5 + 3 rows, the first 5 go transposed to one half, the other 3 as
 * they are to the other. */
static void a_tensor_is_taken_apart(void **state)
{
    enum { HEADS = 6, K = 5, V = 3, WIDTH = 41 };
    const struct loader_part parts[] = {
        { .dims = { { HEADS, (K + V) * WIDTH, K * WIDTH }, { K, WIDTH, 1 }, { WIDTH, 1, K } } },
        { .src_offset = K * WIDTH, .dst_offset = HEADS * K * WIDTH,
          .dims = { { HEADS, (K + V) * WIDTH, V * WIDTH }, { V, WIDTH, WIDTH }, { WIDTH, 1, 1 } } },
    };

    (void)state;
    check_everywhere(HEADS * (K + V) * WIDTH, parts, 2);
}

/* gpt-oss's gate_up_proj: rows of gate and up take turns. And one that is written so. */
static void interleaved_rows_are_parted_and_joined(void **state)
{
    enum { ROWS = 21, WIDTH = 30 };
    const struct loader_part parting[] = {
        { .dims = { { 1, 0, 0 }, { ROWS, 2 * WIDTH, WIDTH }, { WIDTH, 1, 1 } } },
        { .src_offset = WIDTH, .dst_offset = ROWS * WIDTH,
          .dims = { { 1, 0, 0 }, { ROWS, 2 * WIDTH, WIDTH }, { WIDTH, 1, 1 } } },
    };
    const struct loader_part joining[] = {
        { .dims = { { 1, 0, 0 }, { WIDTH, 1, 2 }, { ROWS, WIDTH, 2 * WIDTH } } },
        { .src_offset = ROWS * WIDTH, .dst_offset = 1,
          .dims = { { 1, 0, 0 }, { WIDTH, 1, 2 }, { ROWS, WIDTH, 2 * WIDTH } } },
    };

    (void)state;
    check_everywhere(2 * ROWS * WIDTH, parting, 2);
    check_everywhere(2 * ROWS * WIDTH, joining, 2);
}

/* One number, or one row, for all (source strides of 0), and rows that overlap. */
static void elements_are_used_more_than_once(void **state)
{
    const struct loader_part windows = { .dims = { { 1, 0, 0 }, { 50, 2, 100 }, { 100, 1, 1 } } };
    const struct loader_part rows = { .src_offset = 4,
                                      .dims = { { 1, 0, 0 }, { 9, 0, 33 }, { 33, 1, 1 } } };
    const struct loader_part number = { .src_offset = 36,
                                        .dims = { { 3, 0, 100 }, { 100, 0, 1 }, { 1, 9, 9 } } };

    (void)state;
    check_everywhere(37, &rows, 1);
    check_everywhere(37, &number, 1);
    check_everywhere(198, &windows, 1);
}

/* A random box of a random tensor, its dimensions in any order on either side. */
static void random_views_are_loaded(void **state)
{
    uint64_t seed = 362436069;

    (void)state;
    for (size_t round = 0; round < 15; round++) {
        struct loader_part part = { .src_offset = next_random(&seed) % 20 };
        const uint64_t pad = next_random(&seed) % 3;
        size_t order[3] = { 0, 1, 2 };
        uint64_t src_count = 1;
        uint64_t dst_count = 1;
        for (size_t d = 0; d < 3; d++)
            part.dims[d].count = 1 + next_random(&seed) % 40;
        for (size_t side = 0; side < 2; side++) {
            for (size_t d = 2; d > 0; d--) {
                const size_t other = next_random(&seed) % (d + 1);
                const size_t kept = order[d];
                order[d] = order[other];
                order[other] = kept;
            }
            for (size_t d = 0; d < 3; d++) {
                struct loader_dim *const dim = &part.dims[order[d]];
                if (side == 0) {
                    dim->src_stride = src_count;
                    src_count = src_count * dim->count + pad;
                } else {
                    dim->dst_stride = dst_count;
                    dst_count *= dim->count;
                }
            }
        }
        check_everywhere(part.src_offset + src_count, &part, 1);
    }
}

/* Long enough for other threads and for direct reads beside staged ones. */
static void long_loads_are_shared_by_threads(void **state)
{
    enum { ROWS = 300, WIDTH = 3001 };
    const struct loader_part parts[] = {
        { .dims = { { 1, 0, 0 }, { 1, 0, 0 }, { ROWS * WIDTH, 1, 1 } } },
        { .dst_offset = ROWS * WIDTH,
          .dims = { { 1, 0, 0 }, { ROWS, WIDTH, 1 }, { WIDTH, 1, ROWS } } },
        { .dst_offset = 2 * ROWS * WIDTH, .src_offset = ROWS * WIDTH / 2,
          .dims = { { 1, 0, 0 }, { 1, 0, 0 }, { ROWS * WIDTH / 2, 1, 1 } } },
    };
    struct source source = source_make(DTYPE_BF16, ROWS * WIDTH);
    struct loader_staging *staging;

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        if (i == 1)
            source_read_past_cache(&source);
        assert_int_equal(load__staging_create(64 * KIB, i == 1, &staging, NULL), STATUS_OK);
        for (size_t to = 0; to < 3; to++)
            check_parts(&source, parts, 3, float_dtypes[to], staging);
        loader_staging_destroy(staging);
    }
    source_drop(&source);
}

/* Without a change of dtype: one run longer than a chunk and rows of 80 KB with gaps between are
 * read straight to their places; rows of 60 bytes are not worth it. */
static void long_runs_are_read_to_their_places(void **state)
{
    enum { LONG = 2700000, ROWS = 4, WIDTH = 40000, SHORT = 30 };
    const struct loader_part parts[] = {
        { .src_offset = 1, .dims = { { 1, 0, 0 }, { 1, 0, 0 }, { LONG, 1, 1 } } },
        { .dst_offset = LONG + WIDTH, .src_offset = 3,
          .dims = { { 1, 0, 0 }, { ROWS, WIDTH + 9, 2 * WIDTH }, { WIDTH, 1, 1 } } },
        { .dst_offset = LONG,
          .dims = { { 1, 0, 0 }, { ROWS, WIDTH + 9, 2 * WIDTH }, { WIDTH, 1, 1 } } },
        { .dst_offset = LONG + 2 * ROWS * WIDTH,
          .dims = { { 1, 0, 0 }, { ROWS, WIDTH, SHORT }, { SHORT, 1, 1 } } },
    };
    struct source source = source_make(DTYPE_BF16, LONG + 1);
    struct loader_staging *staging;

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        if (i == 1)
            source_read_past_cache(&source);
        assert_int_equal(loader_staging_create(source.ckpt, &staging, NULL), STATUS_OK);
        check_parts(&source, parts, 4, DTYPE_BF16, staging);
        loader_staging_destroy(staging);
    }
    source_drop(&source);
}

/* Experts as SGLang stacks them: w13[e] is gate above up; bits go through unchanged. */
static void experts_are_stacked(void **state)
{
    enum { EXPERTS = 5, FFN = 3, WIDTH = 8, SIZE = FFN * WIDTH };
    static const char *const kinds[] = { "down", "gate", "up" };
    struct ckpt_testing_tensor tensors[3 * EXPERTS];
    char names[3 * EXPERTS][16];
    uint16_t numbers[3 * EXPERTS][SIZE];
    uint16_t w13[EXPERTS][2][SIZE];
    char *const folder = ckpt_testing_folder();
    const uint64_t shape[] = { FFN, WIDTH };
    struct loader_staging *staging;
    struct loader *loader;
    struct ckpt *ckpt;

    (void)state;
    for (size_t i = 0; i < (size_t)3 * EXPERTS; i++) {
        (void)snprintf(names[i], sizeof(names[i]), "%d.%s", (int)i / 3, kinds[i % 3]);
        for (size_t n = 0; n < SIZE; n++)
            numbers[i][n] = (uint16_t)(i * SIZE + n);
        tensors[i] = (struct ckpt_testing_tensor){ names[i], DTYPE_BF16, 2, { FFN, WIDTH },
                                                   numbers[i] };
    }
    ckpt_testing_write_config(folder, "{}");
    ckpt_testing_write_tensors(folder, "model.safetensors", tensors, (size_t)3 * EXPERTS);
    assert_int_equal(ckpt_open(folder, &ckpt, NULL), STATUS_OK);
    assert_int_equal(loader_create(DTYPE_BF16, EXPERTS * 2 * SIZE, &loader, NULL), STATUS_OK);
    for (size_t e = 0; e < EXPERTS; e++)
        for (size_t half = 0; half < 2; half++)
            assert_int_equal(loader_add_whole(loader, names[3 * e + 1 + half], 2, shape,
                                              (2 * e + half) * SIZE, NULL),
                             STATUS_OK);
    assert_int_equal(loader_part_count(loader), 2 * EXPERTS);
    assert_string_equal(loader_part_at(loader, 3)->tensor, "1.up");
    assert_int_equal(loader_dtype(loader), DTYPE_BF16);
    assert_int_equal(loader_check(loader, ckpt, "w13", NULL), STATUS_OK);
    assert_int_equal(loader_staging_create(NULL, &staging, NULL), STATUS_OK);
    assert_int_equal(loader_load(loader, ckpt, w13, staging, NULL, NULL, 0, NULL), STATUS_OK);
    for (size_t e = 0; e < EXPERTS; e++)
        for (size_t half = 0; half < 2; half++)
            assert_memory_equal(w13[e][half], numbers[3 * e + 1 + half], sizeof(w13[e][half]));
    loader_staging_destroy(staging);
    loader_destroy(loader);
    ckpt_close(ckpt);
    ckpt_testing_remove(folder);
}

/* --- refusals ------------------------------------------------------------------------------- */

/* A loader of `count` elements of dtype with one whole tensor for each name. */
static void expect_refusal(const struct ckpt *ckpt, enum dtype dtype, uint64_t count,
                           const char *name, uint32_t rank, uint64_t rows, uint64_t at,
                           const char *piece)
{
    const uint64_t shape[] = { rows, 3 };
    struct loader *loader;
    struct err err = { .message = "" };
    enum status st;

    assert_int_equal(loader_create(dtype, count, &loader, &err), STATUS_OK);
    assert_int_equal(loader_add_whole(loader, name, rank, shape, at, &err), STATUS_OK);
    st = loader_check(loader, ckpt, "w", &err);
    loader_destroy(loader);
    if (piece == NULL && st != STATUS_OK)
        fail_msg("%s", err.message);
    if (piece == NULL)
        return;
    assert_int_equal(st, STATUS_BAD_INPUT);
    if (strstr(err.message, piece) == NULL || strstr(err.message, "'w'") == NULL)
        fail_msg("neither '%s' nor the parameter in: %s", piece, err.message);
}

static void what_does_not_fit_is_refused(void **state)
{
    static const char header[] =
        "{\"f\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[0,12]},"
        "\"i\":{\"dtype\":\"I32\",\"shape\":[2,3],\"data_offsets\":[12,36]},"
        "\"e\":{\"dtype\":\"F8_E4M3\",\"shape\":[2,3],\"data_offsets\":[36,42]}}";
    char *const folder = ckpt_testing_folder();
    uint8_t bytes[8 + sizeof(header) - 1 + 42] = { sizeof(header) - 1 };
    struct ckpt *ckpt;

    (void)state;
    memcpy(bytes + 8, header, sizeof(header) - 1);
    ckpt_testing_write_config(folder, "{}");
    ckpt_testing_write_file(folder, "model.safetensors", bytes, sizeof(bytes));
    assert_int_equal(ckpt_open(folder, &ckpt, NULL), STATUS_OK);
    expect_refusal(ckpt, DTYPE_F32, 6, "f", 2, 2, 0, NULL);
    expect_refusal(ckpt, DTYPE_I32, 6, "i", 2, 2, 0, NULL);
    expect_refusal(ckpt, DTYPE_F32, 6, "g", 2, 2, 0, "there is no tensor 'g', which parameter");
    expect_refusal(ckpt, DTYPE_F32, 9, "f", 2, 3, 0,
                   "model.safetensors: tensor 'f' has shape [2, 3], parameter 'w' needs it to be "
                   "[3, 3]");
    expect_refusal(ckpt, DTYPE_F32, 2, "f", 1, 2, 0, "has shape [2, 3], parameter 'w' needs it");
    expect_refusal(ckpt, DTYPE_F32, 6, "i", 2, 2, 0, "'i' is I32, which cannot become the F32 of");
    expect_refusal(ckpt, DTYPE_I32, 6, "f", 2, 2, 0, "'f' is F16, which cannot become the I32 of");
    expect_refusal(ckpt, DTYPE_BF16, 6, "e", 2, 2, 0,
                   "is of type F8_E4M3, which is not built; these are: F32, ");
    expect_refusal(ckpt, DTYPE_F32, 7, "f", 2, 2, 0, "fills element 6 of 7 from no tensor");
    expect_refusal(ckpt, DTYPE_F32, 7, "f", 2, 2, 1, "fills element 0 of 7 from no tensor");
    ckpt_close(ckpt);
    ckpt_testing_remove(folder);
}

static void parts_that_overlap_are_refused(void **state)
{
    struct source source = source_make(DTYPE_F32, 10);
    const uint64_t shape[] = { 10 };
    struct loader *loader;
    struct err err;

    (void)state;
    assert_int_equal(loader_create(DTYPE_F32, 15, &loader, &err), STATUS_OK);
    assert_int_equal(loader_add_whole(loader, "t", 1, shape, 0, &err), STATUS_OK);
    assert_int_equal(loader_add_whole(loader, "t", 1, shape, 5, &err), STATUS_OK);
    assert_int_equal(loader_check(loader, source.ckpt, "w", &err), STATUS_BAD_INPUT);
    assert_string_equal(err.message,
                        "parameter 'w': its loader fills element 5 of 15 more than once");
    loader_destroy(loader);
    source_drop(&source);
}

/* --- while it runs -------------------------------------------------------------------------- */

struct watch {
    uint64_t call_count, last_bytes, total_bytes;
};

static void watch_progress(void *user, const char *what, uint64_t done_bytes,
                           uint64_t total_bytes)
{
    struct watch *const watch = user;

    assert_non_null(what);
    assert_true(done_bytes > watch->last_bytes && done_bytes <= total_bytes);
    watch->call_count++;
    watch->last_bytes = done_bytes;
    watch->total_bytes = total_bytes;
}

/* 3000 parameters, and one that is loaded in as many chunks: some hundred calls each time. */
static void progress_is_told_now_and_then(void **state)
{
    enum { COUNT = 300000 };
    struct source source = source_make(DTYPE_F32, COUNT);
    struct watch watch = { 0 };
    const struct progress progress = { watch_progress, &watch };
    struct loader_staging *staging;
    struct loader *loader;
    uint16_t *const dst = malloc(COUNT * sizeof(*dst));
    uint64_t done_bytes = 0;

    (void)state;
    assert_non_null(dst);
    assert_int_equal(load__staging_create(384, false, &staging, NULL), STATUS_OK);
    for (uint64_t i = 0; i < 3000; i++) {
        struct loader_part part = { .tensor = "t", .rank = 1, .shape = { COUNT },
                                    .src_offset = i * 100,
                                    .dims = { { 1, 0, 0 }, { 1, 0, 0 }, { 100, 1, 1 } } };
        assert_int_equal(loader_create(DTYPE_BF16, 100, &loader, NULL), STATUS_OK);
        assert_int_equal(loader_add(loader, &part, NULL), STATUS_OK);
        assert_int_equal(loader_load(loader, source.ckpt, dst + i * 100, staging, &progress,
                                     &done_bytes, (uint64_t)COUNT * 4, NULL),
                         STATUS_OK);
        loader_destroy(loader);
    }
    assert_in_range(watch.call_count, 150, 202);
    assert_int_equal(watch.last_bytes, watch.total_bytes);
    watch = (struct watch){ 0 };
    assert_int_equal(loader_create(DTYPE_BF16, COUNT, &loader, NULL), STATUS_OK);
    assert_int_equal(loader_add_whole(loader, "t", 1, (const uint64_t[]){ COUNT }, 0, NULL),
                     STATUS_OK);
    done_bytes = 0;
    assert_int_equal(loader_load(loader, source.ckpt, dst, staging, &progress, &done_bytes,
                                 (uint64_t)COUNT * 4, NULL),
                     STATUS_OK);
    assert_in_range(watch.call_count, 1, 202);
    assert_int_equal(watch.last_bytes, watch.total_bytes);
    loader_destroy(loader);
    loader_staging_destroy(staging);
    source_drop(&source);
    free(dst);
}

/* A file cut off while it is open, at many places: always an I/O error with the tensor's name, and
 * the staging is good for the next load. */
static void a_file_that_shrank_is_an_io_error(void **state)
{
    enum { COUNT = 600000 };
    struct source source = source_make(DTYPE_F32, COUNT);
    struct loader_staging *staging;
    void *const dst = malloc(COUNT * sizeof(float));
    char path[512];

    (void)state;
    assert_non_null(dst);
    (void)snprintf(path, sizeof(path), "%s/model.safetensors", source.folder);
    assert_int_equal(load__staging_create(64 * KIB, false, &staging, NULL), STATUS_OK);
    for (uint64_t left = COUNT; left > COUNT / 20; left -= COUNT / 20) {
        for (size_t to = 0; to < 2; to++) {
            struct loader *loader;
            struct err err = { .message = "" };
            const enum status wanted = left == COUNT ? STATUS_OK : STATUS_IO;
            assert_int_equal(loader_create(float_dtypes[to], COUNT, &loader, &err), STATUS_OK);
            assert_int_equal(loader_add_whole(loader, "t", 1, (const uint64_t[]){ COUNT }, 0, &err),
                             STATUS_OK);
            assert_int_equal(loader_load(loader, source.ckpt, dst, staging, NULL, NULL, 0, &err),
                             wanted);
            if (wanted != STATUS_OK) {
                assert_non_null(strstr(err.message, "tensor 't'"));
                assert_non_null(strstr(err.message, path));
                assert_non_null(strstr(err.message, "truncated"));
            }
            loader_destroy(loader);
        }
        assert_int_equal(truncate(path, (off_t)(left * sizeof(float))), 0);
    }
    loader_staging_destroy(staging);
    source_drop(&source);
    free(dst);
}

/* Nothing of it is read, and the staging is good for the next one. */
static void a_load_that_is_stopped_ends_soon(void **state)
{
    enum { COUNT = 1 << 20 };
    struct source source = source_make(DTYPE_F32, COUNT);
    struct loader_staging *staging;
    uint8_t *const dst = calloc(COUNT, sizeof(float));
    struct loader *loader;
    atomic_bool stop = true;
    struct err err;

    (void)state;
    assert_non_null(dst);
    assert_int_equal(load__staging_create(64 * KIB, false, &staging, NULL), STATUS_OK);
    loader_staging_heed(staging, &stop);
    assert_int_equal(loader_create(DTYPE_F32, COUNT, &loader, NULL), STATUS_OK);
    assert_int_equal(loader_add_whole(loader, "t", 1, (const uint64_t[]){ COUNT }, 0, NULL),
                     STATUS_OK);
    assert_int_equal(loader_load(loader, source.ckpt, dst, staging, NULL, NULL, 0, &err),
                     STATUS_CANCELED);
    for (size_t i = 0; i < COUNT * sizeof(float); i++)
        assert_int_equal(dst[i], 0);
    atomic_store(&stop, false);
    assert_int_equal(loader_load(loader, source.ckpt, dst, staging, NULL, NULL, 0, &err),
                     STATUS_OK);
    assert_memory_equal(dst, source.bytes, COUNT * sizeof(float));
    loader_destroy(loader);
    loader_staging_destroy(staging);
    source_drop(&source);
    free(dst);
}

static uint64_t peak_bytes(void)
{
    struct rusage usage;

    assert_int_equal(getrusage(RUSAGE_SELF, &usage), 0);
    return (uint64_t)usage.ru_maxrss * KIB;
}

/* A tensor of 64 MiB in a file of holes, into 32 MiB that are there already: what is resident may
 * grow by the two buffers, not by the tensor. (Sanitizers' shadows are why the bound is not
 * tighter.) */
static void a_load_takes_no_memory_but_the_staging(void **state)
{
    enum { COUNT = 16 << 20 };
    static const char header[] =
        "{\"t\":{\"dtype\":\"F32\",\"shape\":[16777216],\"data_offsets\":[0,67108864]}}";
    char *const folder = ckpt_testing_folder();
    uint8_t bytes[8 + sizeof(header) - 1] = { sizeof(header) - 1 };
    uint8_t *const dst = malloc((size_t)COUNT * 2);
    struct loader_staging *staging;
    struct loader *loader;
    struct ckpt *ckpt;
    uint64_t before_bytes;
    char path[512];

    (void)state;
    assert_non_null(dst);
    memset(dst, 0xA5, (size_t)COUNT * 2);
    memcpy(bytes + 8, header, sizeof(header) - 1);
    ckpt_testing_write_config(folder, "{}");
    ckpt_testing_write_file(folder, "model.safetensors", bytes, sizeof(bytes));
    (void)snprintf(path, sizeof(path), "%s/model.safetensors", folder);
    assert_int_equal(truncate(path, (off_t)(sizeof(bytes) + (uint64_t)COUNT * 4)), 0);
    assert_int_equal(ckpt_open(folder, &ckpt, NULL), STATUS_OK);
    assert_int_equal(loader_create(DTYPE_BF16, COUNT, &loader, NULL), STATUS_OK);
    assert_int_equal(loader_add_whole(loader, "t", 1, (const uint64_t[]){ COUNT }, 0, NULL),
                     STATUS_OK);
    assert_int_equal(loader_staging_create(NULL, &staging, NULL), STATUS_OK);
    before_bytes = peak_bytes();
    assert_int_equal(loader_load(loader, ckpt, dst, staging, NULL, NULL, 0, NULL), STATUS_OK);
    assert_in_range(peak_bytes() - before_bytes, 0, 24 * MIB);
    for (size_t i = 0; i < (size_t)COUNT * 2; i += 4099)
        assert_int_equal(dst[i], 0);
    loader_staging_destroy(staging);
    loader_destroy(loader);
    ckpt_close(ckpt);
    ckpt_testing_remove(folder);
    free(dst);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_load_takes_no_memory_but_the_staging), /* first: peaks do not fall */
        cmocka_unit_test(a_whole_tensor_is_copied),
        cmocka_unit_test(a_tensor_is_transposed),
        cmocka_unit_test(a_tensor_is_taken_apart),
        cmocka_unit_test(interleaved_rows_are_parted_and_joined),
        cmocka_unit_test(elements_are_used_more_than_once),
        cmocka_unit_test(random_views_are_loaded),
        cmocka_unit_test(long_loads_are_shared_by_threads),
        cmocka_unit_test(long_runs_are_read_to_their_places),
        cmocka_unit_test(experts_are_stacked),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(parts_that_overlap_are_refused),
        cmocka_unit_test(progress_is_told_now_and_then),
        cmocka_unit_test(a_file_that_shrank_is_an_io_error),
        cmocka_unit_test(a_load_that_is_stopped_ends_soon),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
