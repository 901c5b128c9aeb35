/* checkpoint/fault_test.c - the n-th allocation or read fails, for every n.
 *
 * Method: malloc (base/testing_alloc.h) and pread count and, when armed, fail once. Opening,
 * checking and loading run again and again with the fault one step later, until they get through
 * without meeting it. Each failure must be reported, and nothing may leak: as many blocks are
 * freed as were given out. Jansson's allocations do not fail here: 2.14 frees a string twice when
 * one of its own does (json_loadb). Sanitizers bring their own malloc and pread, so their builds
 * leave this out. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/size.h"
#include "base/testing_alloc.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/load.h"
#include "checkpoint/loader.h"
#include "checkpoint/testing.h"

#ifdef TESTING_ALLOC

enum read_fault { READ_FAILS, READ_IS_SHORT, READ_IS_INTERRUPTED };

/* How many more reads go well; below 0: none fails. Any thread may count down. */
static atomic_long reads_left = -1;
static enum read_fault read_fault; /* set while nothing runs */

ssize_t pread(int fd, void *bytes, size_t size, off_t offset)
{
    if (atomic_load(&reads_left) >= 0 && atomic_fetch_sub(&reads_left, 1) == 0) {
        if (read_fault == READ_IS_SHORT && size > 1)
            size /= 2;
        if (read_fault != READ_IS_SHORT) {
            errno = read_fault == READ_FAILS ? EIO : EINTR;
            return -1;
        }
    }
    return syscall(SYS_pread64, fd, bytes, size, offset);
}

#define COUNT 300000 /* elements; the second thread is woken */

static char *make_folder(void)
{
    static const char index[] = "{\"metadata\":{},\"weight_map\":{\"a\":\"m1.safetensors\","
                                "\"b\":\"m2.safetensors\"}}";
    float *const numbers = calloc(COUNT, sizeof(*numbers));
    char *const folder = ckpt_testing_folder();
    const struct ckpt_testing_tensor tensors[] = {
        { "a", DTYPE_F32, 1, { COUNT }, numbers },
        { "b", DTYPE_F32, 2, { 2, 3 }, numbers },
    };

    assert_non_null(numbers);
    ckpt_testing_write_config(folder, "{\"x\": [1, {\"y\": 2.5}]}");
    ckpt_testing_write_tensors(folder, "m1.safetensors", tensors, 1);
    ckpt_testing_write_tensors(folder, "m2.safetensors", tensors + 1, 1);
    ckpt_testing_write_file(folder, "model.safetensors.index.json", index, sizeof(index) - 1);
    free(numbers);
    return folder;
}

/* Opens, makes a loader of both tensors, checks and loads. */
static enum status run(const char *folder, uint16_t *dst, struct err *err)
{
    struct ckpt *ckpt = NULL;
    struct loader *loader = NULL;
    struct loader_staging *staging = NULL;
    enum status st = ckpt_open(folder, &ckpt, err);

    if (st == STATUS_OK)
        st = loader_create(DTYPE_BF16, COUNT + 6, &loader, err);
    if (st == STATUS_OK)
        st = loader_add_whole(loader, "a", 1, (const uint64_t[]){ COUNT }, 0, err);
    for (uint64_t half = 0; half < 2 && st == STATUS_OK; half++) {
        const struct loader_part part = { .tensor = "b", .rank = 2, .shape = { 2, 3 },
                                          .src_offset = half * 3, .dst_offset = COUNT + half,
                                          .dims = { { 1, 0, 0 }, { 1, 0, 0 }, { 3, 1, 2 } } };
        st = loader_add(loader, &part, err);
    }
    if (st == STATUS_OK)
        st = loader_check(loader, ckpt, "p", err);
    if (st == STATUS_OK)
        st = load__staging_create(64 * KIB, false, &staging, err);
    if (st == STATUS_OK)
        st = loader_load(loader, ckpt, dst, staging, NULL, NULL, 0, err);
    loader_staging_destroy(staging);
    loader_destroy(loader);
    ckpt_close(ckpt);
    return st;
}

static void every_allocation_may_fail(void **state)
{
    char *const folder = make_folder();
    uint16_t *const dst = calloc(COUNT + 6, sizeof(*dst));
    struct err err;
    long n = 0;

    (void)state;
    json_set_alloc_funcs(__libc_malloc, __libc_free);
    assert_int_equal(run(folder, dst, &err), STATUS_OK); /* what libraries keep, they have now */
    for (;; n++) {
        const long before_count = atomic_load(&block_count);
        enum status st;
        bool met;
        err.message[0] = '\0';
        atomic_store(&allocations_left, n);
        st = run(folder, dst, &err);
        met = atomic_load(&allocations_left) < 0;
        atomic_store(&allocations_left, -1);
        assert_int_equal(atomic_load(&block_count), before_count);
        if (!met) {
            assert_int_equal(st, STATUS_OK);
            break;
        }
        if (st != STATUS_OK)
            assert_true(strlen(err.message) > 10);
    }
    json_set_alloc_funcs(malloc, free);
    assert_in_range(n, 40, 10000);
    free(dst);
    ckpt_testing_remove(folder);
}

static void every_read_may_fail(void **state)
{
    static const enum read_fault faults[] = { READ_FAILS, READ_IS_SHORT, READ_IS_INTERRUPTED };
    char *const folder = make_folder();
    uint16_t *const dst = calloc(COUNT + 6, sizeof(*dst));
    struct err err;

    (void)state;
    for (size_t f = 0; f < sizeof(faults) / sizeof(faults[0]); f++) {
        long n = 0;
        for (;; n++) {
            enum status st;
            bool met;
            read_fault = faults[f];
            atomic_store(&reads_left, n);
            st = run(folder, dst, &err);
            met = atomic_load(&reads_left) < 0;
            atomic_store(&reads_left, -1);
            if (!met || faults[f] != READ_FAILS) {
                assert_int_equal(st, STATUS_OK);
            } else {
                assert_int_equal(st, STATUS_IO);
                assert_non_null(strstr(err.message, folder));
                assert_non_null(strstr(err.message, "Input/output error"));
            }
            if (!met)
                break;
        }
        assert_in_range(n, 20, 1000); /* config, index, two headers, nineteen chunks */
    }
    free(dst);
    ckpt_testing_remove(folder);
}

/* Opens a checkpoint with quantised weights and puts some together. */
static enum status run_packed(struct err *err)
{
    static uint8_t blocks[1 << 16];
    struct ckpt *ckpt = NULL;
    enum status st = ckpt_open("tests/golden/packed/llama_gptq", &ckpt, err);

    if (st == STATUS_OK) {
        const struct ckpt_tensor *tensor = ckpt_find(ckpt, "model.layers.0.mlp.up_proj.weight");
        assert_true(tensor != NULL && tensor->packed != NULL);
        assert_true(tensor->size_bytes <= sizeof(blocks));
        st = ckpt_read(ckpt, tensor, 0, blocks, tensor->size_bytes, err);
    }
    ckpt_close(ckpt);
    return st;
}

static void quantised_weights_may_fail(void **state)
{
    atomic_long *const left[] = { &allocations_left, &reads_left };
    struct err err;

    (void)state;
    json_set_alloc_funcs(__libc_malloc, __libc_free);
    read_fault = READ_FAILS;
    assert_int_equal(run_packed(&err), STATUS_OK);
    for (size_t i = 0; i < 2; i++) {
        bool met = true;
        long n = 0;
        for (; met; n++) {
            const long before_count = atomic_load(&block_count);
            enum status st;
            atomic_store(left[i], n);
            st = run_packed(&err);
            met = atomic_load(left[i]) < 0;
            atomic_store(left[i], -1);
            assert_int_equal(atomic_load(&block_count), before_count);
            assert_true(met || st == STATUS_OK);
            assert_true(i == 0 || (st == STATUS_OK) == !met);
        }
        assert_in_range(n, i == 0 ? 100 : 5, 5000);
    }
    json_set_alloc_funcs(malloc, free);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(every_read_may_fail),
        cmocka_unit_test(quantised_weights_may_fail),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

int main(void)
{
    return 0;
}

#endif
