/* checkpoint/loader_block_test.c - loading of quantised tensors: whole blocks as they are, and
 * anything else decoded.
 *
 * Method: a GGUF file with one tensor of random blocks. Each load is compared, byte for byte, with
 * the plainest one: the whole tensor decoded to F32 and loader.h's formula followed element by
 * element, or, where blocks stay, block by block; with staging buffers from two blocks up. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/size.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/load.h"
#include "checkpoint/loader.h"
#include "checkpoint/testing.h"

static const enum dtype block_dtypes[] = { DTYPE_Q8_0, DTYPE_Q4_0, DTYPE_MXFP4, DTYPE_Q4_K,
                                           DTYPE_Q6_K };
static const enum dtype plain_dtypes[] = { DTYPE_F32, DTYPE_F16, DTYPE_BF16 };

static uint64_t bytes_of(enum dtype dtype, uint64_t count)
{
    uint64_t bytes = 0;

    assert_true(dtype_bytes(dtype, count, &bytes));
    return bytes;
}

struct source {
    char *folder;
    uint8_t *blocks;
    float *values; /* of all elements */
    enum dtype dtype;
    uint64_t rows, cols;
    struct ckpt *ckpt;
};

/* Scales are below 1, so that everything is finite. */
static struct source source_make(enum dtype dtype, uint64_t rows, uint64_t cols)
{
    static const struct ckpt_testing_pair pairs[] = { CKPT_TESTING_LLAMA_PAIRS };
    static const float zero;
    struct source source = { ckpt_testing_folder(), NULL, NULL, dtype, rows, cols, NULL };
    const uint64_t size = bytes_of(dtype, rows * cols);
    const uint32_t block_bytes = dtype_info(dtype)->block_bytes;
    struct ckpt_testing_tensor tensors[] = {
        { "token_embd.weight", DTYPE_F32, 2, { 1, 1 }, &zero },
        { "t", dtype, 2, { rows, cols }, NULL },
    };
    uint64_t random = 88172645463325252u;
    char path[512];
    struct err err;

    source.blocks = malloc(size);
    source.values = malloc(rows * cols * sizeof(float));
    assert_non_null(source.blocks);
    assert_non_null(source.values);
    for (uint64_t i = 0; i < size; i++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        source.blocks[i] = (uint8_t)(random >> 11);
        if (i % block_bytes == 1)
            source.blocks[i] &= 0xBB;
    }
    dtype_convert(source.values, DTYPE_F32, source.blocks, dtype, rows * cols);
    tensors[1].data = source.blocks;
    ckpt_testing_write_gguf(source.folder, "m.gguf", pairs, CKPT_TESTING_LLAMA_PAIR_COUNT, tensors,
                            2);
    (void)snprintf(path, sizeof(path), "%s/m.gguf", source.folder);
    if (ckpt_open(path, &source.ckpt, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return source;
}

static void source_drop(struct source *source)
{
    ckpt_close(source->ckpt);
    ckpt_testing_remove(source->folder);
    free(source->blocks);
    free(source->values);
}

/* loader.h's formula. Whole blocks are taken at the first element of each. */
static void naive_load(const struct source *source, const struct loader_part *part,
                       enum dtype dtype, uint8_t *dst)
{
    const struct loader_dim *const d = part->dims;
    const bool keeps = dtype == source->dtype;
    const uint32_t bytes = dtype_info(dtype)->block_bytes;
    const uint32_t block = dtype_info(dtype)->block_elements;

    for (uint64_t i = 0; i < d[0].count; i++)
        for (uint64_t j = 0; j < d[1].count; j++)
            for (uint64_t k = 0; k < d[2].count; k++) {
                const uint64_t from = part->src_offset + i * d[0].src_stride +
                                      j * d[1].src_stride + k * d[2].src_stride;
                const uint64_t to = part->dst_offset + i * d[0].dst_stride +
                                    j * d[1].dst_stride + k * d[2].dst_stride;
                if (!keeps)
                    dtype_convert(dst + to * bytes, dtype, &source->values[from], DTYPE_F32, 1);
                else if (from % block == 0)
                    memcpy(dst + to / block * bytes, source->blocks + from / block * bytes, bytes);
            }
}

static struct loader *make_loader(const struct source *source, enum dtype dtype, uint64_t count,
                                  const struct loader_part *parts, size_t part_count)
{
    struct loader *loader;
    struct err err;

    assert_int_equal(loader_create(dtype, count, &loader, &err), STATUS_OK);
    for (size_t p = 0; p < part_count; p++) {
        struct loader_part part = parts[p];
        part.tensor = "t";
        part.rank = 2;
        part.shape[0] = source->rows;
        part.shape[1] = source->cols;
        assert_int_equal(loader_add(loader, &part, &err), STATUS_OK);
    }
    return loader;
}

static void check_parts(const struct source *source, const struct loader_part *parts,
                        size_t part_count, enum dtype dtype, struct loader_staging *staging)
{
    struct loader *loader;
    struct err err = { .message = "" };
    uint64_t count = 0, done_bytes = 7;
    uint8_t *got, *wanted;

    for (size_t p = 0; p < part_count; p++)
        count += parts[p].dims[0].count * parts[p].dims[1].count * parts[p].dims[2].count;
    loader = make_loader(source, dtype, count, parts, part_count);
    got = calloc(1, loader_size_bytes(loader) + 64);
    wanted = calloc(1, loader_size_bytes(loader) + 64);
    assert_non_null(got);
    assert_non_null(wanted);
    memset(got + loader_size_bytes(loader), 0xA5, 64); /* must stay */
    memset(wanted + loader_size_bytes(loader), 0xA5, 64);
    for (size_t p = 0; p < part_count; p++)
        naive_load(source, &parts[p], dtype, wanted);
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

/* To all plain dtypes and, when the blocks stay whole, to its own; every size of buffer. */
static void check_everywhere(uint64_t rows, uint64_t cols, bool keeps,
                             const struct loader_part *parts, size_t part_count)
{
    static const uint64_t buffers_bytes[] = { 384, 1024, 4096, 0 };

    for (size_t from = 0; from < sizeof(block_dtypes) / sizeof(block_dtypes[0]); from++) {
        const uint32_t block = dtype_info(block_dtypes[from])->block_elements;
        struct source source;
        if (cols % block != 0)
            continue;
        source = source_make(block_dtypes[from], rows, cols);
        for (size_t b = 0; b < sizeof(buffers_bytes) / sizeof(buffers_bytes[0]); b++) {
            struct loader_staging *staging;
            if (b < 2 && block > 32)
                continue; /* two decoded blocks are the least */
            assert_int_equal(buffers_bytes[b] == 0
                                 ? loader_staging_create(NULL, &staging, NULL)
                                 : load__staging_create(buffers_bytes[b], false, &staging, NULL),
                             STATUS_OK);
            for (size_t to = 0; to < 3; to++)
                check_parts(&source, parts, part_count, plain_dtypes[to], staging);
            if (keeps)
                check_parts(&source, parts, part_count, block_dtypes[from], staging);
            loader_staging_destroy(staging);
        }
        source_drop(&source);
    }
}

static void a_whole_tensor_is_loaded(void **state)
{
    const struct loader_part part = { .dims = { { 1, 0, 0 }, { 1, 0, 0 }, { 11 * 96, 1, 1 } } };

    (void)state;
    check_everywhere(11, 96, true, &part, 1);
}

/* Rows 3 to 9, of which only the columns 64 to 127 are wanted, in front of rows 0 to 2. */
static void rows_and_whole_blocks_of_columns_are_cut_out(void **state)
{
    const struct loader_part parts[] = {
        { .src_offset = 3 * 160 + 64, .dims = { { 1, 0, 0 }, { 7, 160, 64 }, { 64, 1, 1 } } },
        { .dst_offset = 7 * 64, .dims = { { 1, 0, 0 }, { 1, 0, 0 }, { 3 * 160, 1, 1 } } },
    };

    (void)state;
    check_everywhere(10, 160, true, parts, 2);
}

/* The same of blocks of 256. */
static void long_blocks_of_columns_are_cut_out(void **state)
{
    const struct loader_part parts[] = {
        { .src_offset = 3 * 1280 + 512, .dims = { { 1, 0, 0 }, { 7, 1280, 512 }, { 512, 1, 1 } } },
        { .dst_offset = 7 * 512, .dims = { { 1, 0, 0 }, { 1, 0, 0 }, { 3 * 1280, 1, 1 } } },
    };
    const struct loader_part broken = { .src_offset = 17,
                                        .dims = { { 1, 0, 0 }, { 9, 1281, 30 }, { 30, 1, 1 } } };

    (void)state;
    check_everywhere(10, 1280, true, parts, 2);
    check_everywhere(10, 1280, false, &broken, 1);
}

/* gate and up of 5 experts, [experts][rows][cols] each, become [experts][2 rows][cols]. */
static void stacks_are_fused(void **state)
{
    enum { EXPERTS = 5, ROWS = 3, COLS = 64, SIZE = ROWS * COLS };
    const struct loader_part parts[] = {
        { .dims = { { EXPERTS, SIZE, 2 * SIZE }, { 1, 0, 0 }, { SIZE, 1, 1 } } },
        { .src_offset = EXPERTS * SIZE, .dst_offset = SIZE,
          .dims = { { EXPERTS, SIZE, 2 * SIZE }, { 1, 0, 0 }, { SIZE, 1, 1 } } },
    };

    (void)state;
    check_everywhere((uint64_t)2 * EXPERTS * ROWS, COLS, true, parts, 2);
}

/* MLA's kv_b_proj [heads][nope + v][latent]: the first rows of each head transposed. */
static void what_cuts_through_blocks_is_decoded(void **state)
{
    enum { HEADS = 6, K = 5, V = 3, WIDTH = 96 };
    const struct loader_part parts[] = {
        { .dims = { { HEADS, (K + V) * WIDTH, K * WIDTH }, { WIDTH, 1, K }, { K, WIDTH, 1 } } },
        { .src_offset = K * WIDTH, .dst_offset = HEADS * K * WIDTH,
          .dims = { { HEADS, (K + V) * WIDTH, V * WIDTH }, { V, WIDTH, WIDTH }, { WIDTH, 1, 1 } } },
    };
    const struct loader_part broken = { .src_offset = 17,
                                        .dims = { { 1, 0, 0 }, { 9, 65, 30 }, { 30, 1, 1 } } };
    const struct loader_part column = { .src_offset = 31,
                                        .dims = { { 1, 0, 0 }, { 1, 0, 0 }, { 47, 96, 1 } } };

    (void)state;
    check_everywhere((uint64_t)HEADS * (K + V), WIDTH, false, parts, 2);
    check_everywhere((uint64_t)HEADS * (K + V), WIDTH, false, &broken, 1);
    check_everywhere((uint64_t)HEADS * (K + V), WIDTH, false, &column, 1);
}

/* Long enough for the second thread and for direct reads of several chunks. */
static void long_loads_are_shared_by_two_threads(void **state)
{
    enum { ROWS = 1300, COLS = 4096 };
    const struct loader_part part = { .dims = { { 1, 0, 0 }, { 1, 0, 0 }, { ROWS * COLS, 1, 1 } } };
    struct source source = source_make(DTYPE_Q8_0, ROWS, COLS);
    struct loader_staging *staging;

    (void)state;
    assert_int_equal(load__staging_create(256 * KIB, false, &staging, NULL), STATUS_OK);
    check_parts(&source, &part, 1, DTYPE_Q8_0, staging);
    check_parts(&source, &part, 1, DTYPE_BF16, staging);
    loader_staging_destroy(staging);
    source_drop(&source);
}

static void expect_refusal(const struct source *source, enum dtype dtype, uint64_t count,
                           const struct loader_part *part, const char *piece)
{
    struct loader *const loader = make_loader(source, dtype, count, part, 1);
    struct err err = { .message = "" };

    assert_int_equal(loader_check(loader, source->ckpt, "w", &err), STATUS_BAD_INPUT);
    if (strstr(err.message, piece) == NULL || strstr(err.message, "'w'") == NULL)
        fail_msg("neither '%s' nor the parameter in: %s", piece, err.message);
    loader_destroy(loader);
}

static void broken_blocks_and_quantising_are_refused(void **state)
{
    const struct loader_part offset = { .src_offset = 16,
                                        .dims = { { 1, 0, 0 }, { 1, 0, 0 }, { 64, 1, 1 } } };
    const struct loader_part transposed = { .dims = { { 1, 0, 0 }, { 32, 1, 2 }, { 2, 32, 1 } } };
    const struct loader_part strided = { .dims = { { 1, 0, 0 }, { 2, 48, 32 }, { 32, 1, 1 } } };
    const struct loader_part whole = { .dims = { { 1, 0, 0 }, { 1, 0, 0 }, { 4 * 64, 1, 1 } } };
    struct source source = source_make(DTYPE_Q8_0, 4, 64);

    (void)state;
    expect_refusal(&source, DTYPE_Q8_0, 64, &offset, "takes broken blocks");
    expect_refusal(&source, DTYPE_Q8_0, 64, &transposed, "takes broken blocks");
    expect_refusal(&source, DTYPE_Q8_0, 64, &strided, "takes broken blocks");
    expect_refusal(&source, DTYPE_Q4_0, 4 * 64, &whole, "is Q8_0, which cannot become the Q4_0");
    expect_refusal(&source, DTYPE_I32, 4 * 64, &whole, "is Q8_0, which cannot become the I32");
    source_drop(&source);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_whole_tensor_is_loaded),
        cmocka_unit_test(rows_and_whole_blocks_of_columns_are_cut_out),
        cmocka_unit_test(long_blocks_of_columns_are_cut_out),
        cmocka_unit_test(stacks_are_fused),
        cmocka_unit_test(what_cuts_through_blocks_is_decoded),
        cmocka_unit_test(long_loads_are_shared_by_two_threads),
        cmocka_unit_test(broken_blocks_and_quantising_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
