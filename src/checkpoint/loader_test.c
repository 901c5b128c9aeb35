/* checkpoint/loader_test.c - loading against the plainest loops that do the same.
 *
 * Method: small checkpoints of numbers from a fixed generator; each load is compared, byte for
 * byte, with one that follows loader.h's formula element by element. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/loader.h"
#include "checkpoint/testing.h"

static const enum dtype float_dtypes[] = { DTYPE_F32, DTYPE_F16, DTYPE_BF16 };

/* xorshift64 (Marsaglia 2003): the same numbers on every machine. */
static uint64_t next_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

/* Random bits: all kinds of numbers, infinities and NaNs among them. */
static void *random_bytes(size_t size, uint64_t seed)
{
    uint8_t *const bytes = malloc(size);

    assert_non_null(bytes);
    seed |= 1;
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(next_random(&seed) >> 32);
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
                const uint64_t to = part->dst_offset + i * d[0].dst_stride + j * d[1].dst_stride +
                                    k * d[2].dst_stride;
                dtype_convert((uint8_t *)dst + to * dst_size, dst_dtype,
                              (const uint8_t *)src + from * src_size, src_dtype, 1);
            }
}

/* Loads `parts`, all of one tensor "t" of shape [rows][columns], in every pair of dtypes. */
static void check_load(uint64_t rows, uint64_t columns, const struct loader_part *parts,
                       size_t part_count)
{
    for (size_t pair = 0; pair < 9; pair++) {
        const enum dtype from = float_dtypes[pair / 3];
        const enum dtype to = float_dtypes[pair % 3];
        const size_t src_size = rows * columns * dtype_info(from)->block_bytes;
        void *const src = random_bytes(src_size, 1 + pair);
        const struct ckpt_testing_tensor tensor = { "t", from, 2, { rows, columns }, src };
        char *const folder = ckpt_testing_folder();
        struct loader_staging *staging;
        struct loader *loader;
        struct ckpt *ckpt;
        struct err err = { .message = "" };
        uint64_t count = 0;
        uint64_t done_bytes = 0;
        void *got, *wanted;

        ckpt_testing_write_config(folder, "{}");
        ckpt_testing_write_tensors(folder, "model.safetensors", &tensor, 1);
        assert_int_equal(ckpt_open(folder, &ckpt, &err), STATUS_OK);
        for (size_t p = 0; p < part_count; p++)
            count += parts[p].dims[0].count * parts[p].dims[1].count * parts[p].dims[2].count;
        assert_int_equal(loader_create(to, count, &loader, &err), STATUS_OK);
        got = calloc(1, loader_size_bytes(loader));
        wanted = calloc(1, loader_size_bytes(loader));
        for (size_t p = 0; p < part_count; p++) {
            struct loader_part part = parts[p];
            part.tensor = "t";
            part.rank = 2;
            part.shape[0] = rows;
            part.shape[1] = columns;
            assert_int_equal(loader_add(loader, &part, &err), STATUS_OK);
            naive_load(&part, to, wanted, from, src);
        }
        if (loader_check(loader, ckpt, "p", &err) != STATUS_OK)
            fail_msg("%s", err.message);
        assert_int_equal(loader_staging_create(&staging, &err), STATUS_OK);
        assert_int_equal(loader_load(loader, ckpt, got, staging, NULL, &done_bytes, 0, &err),
                         STATUS_OK);
        assert_memory_equal(got, wanted, loader_size_bytes(loader));
        assert_int_equal(done_bytes, loader_source_bytes(loader, ckpt));
        loader_staging_destroy(staging);
        loader_destroy(loader);
        ckpt_close(ckpt);
        ckpt_testing_remove(folder);
        free(got);
        free(wanted);
        free(src);
    }
}

static void a_whole_tensor_is_copied(void **state)
{
    const struct loader_part part = { .dims = { { 1, 0, 0 }, { 1, 0, 0 }, { 37 * 53, 1, 1 } } };

    (void)state;
    check_load(37, 53, &part, 1);
}

static void a_tensor_is_transposed(void **state)
{
    const struct loader_part part = { .dims = { { 1, 0, 0 }, { 37, 53, 1 }, { 53, 1, 37 } } };

    (void)state;
    check_load(37, 53, &part, 1);
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
    check_load(HEADS * (K + V), WIDTH, parts, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_whole_tensor_is_copied),
        cmocka_unit_test(a_tensor_is_transposed),
        cmocka_unit_test(a_tensor_is_taken_apart),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
