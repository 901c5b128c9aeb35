/* checkpoint/bulk_test.c - reading past the page cache gives what the file has.
 *
 * Method: a file of random bytes and odd length, read at odd places in odd lengths, up to its end
 * and beyond. Where /tmp's file system has no reads past the cache, there is nothing to test. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/testing_folder.h"
#include "checkpoint/bulk.h"

#define FILE_BYTES ((size_t)(3 * MIB + 1234))

struct fixture {
    char folder[TESTING_FOLDER_BYTES];
    uint8_t *bytes, *buffer;
    struct file file;
    struct bulk_file bulk;
};

static void make(struct fixture *fixture)
{
    char path[TESTING_FOLDER_BYTES + 8];
    uint32_t random = 1;
    FILE *file;

    *fixture = (struct fixture){ .bytes = malloc(FILE_BYTES), .file.fd = -1, .bulk.fd = -1,
                                 .buffer = aligned_alloc(BULK_ALIGN, BULK_BUFFER_BYTES) };
    assert_true(fixture->bytes != NULL && fixture->buffer != NULL);
    for (size_t i = 0; i < FILE_BYTES; i++)
        fixture->bytes[i] = (uint8_t)((random = random * 1664525 + 1013904223) >> 24);
    testing_folder_make(fixture->folder, "bulk");
    (void)snprintf(path, sizeof(path), "%s/file", fixture->folder);
    file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(fixture->bytes, 1, FILE_BYTES, file), FILE_BYTES);
    assert_int_equal(fflush(file), 0);
    assert_int_equal(fsync(fileno(file)), 0);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(file_open(path, &fixture->file, NULL), STATUS_OK);
    if (!bulk_file_open(&fixture->file, &fixture->bulk))
        skip();
}

static void drop(struct fixture *fixture)
{
    bulk_file_close(&fixture->bulk);
    bulk_file_close(&fixture->bulk); /* fine on a closed one */
    file_close(&fixture->file);
    testing_folder_remove(fixture->folder);
    free(fixture->buffer);
    free(fixture->bytes);
}

static void reads_give_what_the_file_has(void **state)
{
    const size_t places[] = { 0, 1, 4095, 4096, 4097, MIB - 1, MIB, 2 * MIB + 77, FILE_BYTES - 1 };
    const size_t sizes[] = { 1, 2, 4095, 4096, 8193, MIB, MIB + 1, 2 * MIB + 5, FILE_BYTES };
    struct fixture fixture;
    uint8_t *got = malloc(FILE_BYTES + 2);

    (void)state;
    make(&fixture);
    assert_non_null(got);
    for (size_t p = 0; p < sizeof(places) / sizeof(places[0]); p++)
        for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
            const size_t left = FILE_BYTES - places[p];
            const size_t size = sizes[s] < left ? sizes[s] : left;

            memset(got, 0xA5, FILE_BYTES + 2);
            assert_true(
                bulk_file_read(&fixture.bulk, places[p], got + 1, size, fixture.buffer));
            assert_memory_equal(got + 1, fixture.bytes + places[p], size);
            assert_true(got[0] == 0xA5 && got[size + 1] == 0xA5); /* nothing beside it */
        }
    free(got);
    drop(&fixture);
}

static void what_is_not_there_is_left_to_others(void **state)
{
    struct fixture fixture;
    uint8_t got[16];

    (void)state;
    make(&fixture);
    assert_false(bulk_file_read(&fixture.bulk, FILE_BYTES - 8, got, 9, fixture.buffer));
    assert_false(bulk_file_read(&fixture.bulk, FILE_BYTES, got, 1, fixture.buffer));
    assert_false(bulk_file_read(&fixture.bulk, 16 * MIB, got, 16, fixture.buffer));
    assert_false(bulk_file_is_cached(&fixture.bulk, FILE_BYTES - 8, 9));
    drop(&fixture);
}

static void what_was_read_through_the_cache_is_there(void **state)
{
    struct fixture fixture;

    (void)state;
    make(&fixture);
    assert_int_equal(file_read_at(&fixture.file, 0, fixture.bytes, FILE_BYTES, NULL), STATUS_OK);
    assert_true(bulk_file_is_cached(&fixture.bulk, 0, FILE_BYTES));
    assert_true(bulk_file_is_cached(&fixture.bulk, 4097, 2 * MIB));
    assert_int_equal(posix_fadvise(fixture.file.fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    assert_false(bulk_file_is_cached(&fixture.bulk, 0, FILE_BYTES));
    assert_false(bulk_file_is_cached(&fixture.bulk, 4097, 2 * MIB));
    drop(&fixture);
}

static void a_file_of_nothing_is_not_opened(void **state)
{
    const struct file empty = { .fd = -1, .path = (char *)"/dev/null" };
    struct bulk_file bulk;

    (void)state;
    assert_false(bulk_file_open(&empty, &bulk));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_give_what_the_file_has),
        cmocka_unit_test(what_is_not_there_is_left_to_others),
        cmocka_unit_test(what_was_read_through_the_cache_is_there),
        cmocka_unit_test(a_file_of_nothing_is_not_opened),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
