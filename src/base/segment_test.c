/* base/segment_test.c - shared memory between processes: what a reader sees, what it may not do,
 * and every way in which a handle can be wrong. Readers are forked children that end with 0. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/memory_left.h"
#include "base/segment.h"
#include "base/size.h"

#define SIZE_BYTES (3 * 4096 + 17)

/* Runs check(handle) in a child, which has nothing of the parent's mapped that it was not given. */
static void in_child(bool (*check)(const struct segment_handle *handle),
                     const struct segment_handle *handle)
{
    const pid_t child = fork();
    int ended;

    assert_true(child >= 0);
    if (child == 0)
        _exit(check(handle) ? 0 : 1);
    assert_int_equal(waitpid(child, &ended, 0), child);
    assert_true(WIFEXITED(ended));
    assert_int_equal(WEXITSTATUS(ended), 0);
}

static bool reads_what_was_written(const struct segment_handle *handle)
{
    struct segment segment;
    struct err err;
    bool right = true;

    if (segment_open("test", handle, SIZE_BYTES, &segment, &err) != STATUS_OK)
        return false;
    for (size_t i = 0; i < SIZE_BYTES; i++)
        right = right && ((const uint8_t *)segment.memory)[i] == (uint8_t)(i * 7);
    right = right && mprotect(segment.memory, SIZE_BYTES, PROT_READ | PROT_WRITE) != 0;
    segment_close(&segment);
    return right && segment.memory == NULL;
}

static void a_reader_sees_the_bytes_and_cannot_change_them(void **state)
{
    struct segment segment;
    struct segment_handle handle;
    struct err err;

    (void)state;
    assert_int_equal(segment_create("test", SIZE_BYTES, NULL, &segment, &err), STATUS_OK);
    segment_handle(&segment, &handle);
    for (size_t i = 0; i < SIZE_BYTES; i++)
        assert_int_equal(((const uint8_t *)segment.memory)[i], 0);
    for (size_t i = 0; i < SIZE_BYTES; i++)
        ((uint8_t *)segment.memory)[i] = (uint8_t)(i * 7);
    in_child(reads_what_was_written, &handle);
    assert_int_not_equal(ftruncate(segment.fd, 1), 0); /* the size is sealed */
    segment_close(&segment);
    segment_close(&segment);
}

/* The creator is killed with its segment mapped; what a reader has mapped stays. */
static void what_is_mapped_outlives_the_creator(void **state)
{
    struct segment_handle handle;
    struct segment segment, other;
    int to_parent[2], ended;
    struct err err;
    pid_t child;

    (void)state;
    assert_int_equal(pipe(to_parent), 0);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (segment_create("test", SIZE_BYTES, NULL, &segment, &err) != STATUS_OK)
            _exit(1);
        memset(segment.memory, 0x5A, SIZE_BYTES);
        segment_handle(&segment, &handle);
        if (write(to_parent[1], &handle, sizeof(handle)) != (ssize_t)sizeof(handle))
            _exit(1);
        for (;;)
            pause();
    }
    assert_int_equal(read(to_parent[0], &handle, sizeof(handle)), sizeof(handle));
    assert_int_equal(segment_open("test", &handle, SIZE_BYTES, &segment, &err), STATUS_OK);
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, &ended, 0), child);
    for (size_t i = 0; i < SIZE_BYTES; i++)
        assert_int_equal(((const uint8_t *)segment.memory)[i], 0x5A);
    assert_false(segment_is_there(&handle));
    assert_int_equal(segment_open("test", &handle, SIZE_BYTES, &other, &err), STATUS_PEER);
    assert_non_null(strstr(err.message, "is gone"));
    segment_handle(&segment, &handle); /* who has it can hand it on */
    assert_true(segment_is_there(&handle));
    assert_int_equal(segment_open("test", &handle, SIZE_BYTES, &other, &err), STATUS_OK);
    segment_close(&segment);
    assert_false(segment_is_there(&handle));
    assert_int_equal(((const uint8_t *)other.memory)[SIZE_BYTES - 1], 0x5A);
    segment_handle(&other, &handle); /* and write when nobody else does */
    assert_int_equal(segment_open("test", &handle, SIZE_BYTES, &segment, &err), STATUS_OK);
    assert_int_equal(segment_take_over("test", &other, &err), STATUS_OK);
    ((uint8_t *)other.memory)[SIZE_BYTES - 1] = 0xA5;
    assert_int_equal(((const uint8_t *)segment.memory)[SIZE_BYTES - 1], 0xA5);
    segment_close(&segment);
    segment_close(&other);
    (void)close(to_parent[0]);
    (void)close(to_parent[1]);
}

static void wrong_handles_are_refused(void **state)
{
    struct segment segment, other, reader;
    struct segment_handle right, handle;
    struct err err;

    (void)state;
    assert_int_equal(segment_create("test", SIZE_BYTES, NULL, &segment, &err), STATUS_OK);
    assert_int_equal(segment_create("test", SIZE_BYTES, NULL, &other, &err), STATUS_OK);
    segment_handle(&segment, &right);
    assert_int_equal(segment_open("test", &right, SIZE_BYTES + 1, &reader, &err), STATUS_PEER);
    assert_non_null(strstr(err.message, "12305 bytes, where 12306 are expected"));
    handle = right;
    handle.size_bytes = SIZE_BYTES + 1; /* a lie */
    assert_int_equal(segment_open("test", &handle, SIZE_BYTES + 1, &reader, &err), STATUS_PEER);
    assert_non_null(strstr(err.message, "12305 bytes, where 12306 are expected"));
    handle = right;
    handle.fd = other.fd; /* as after a process number has come back */
    assert_int_equal(segment_open("test", &handle, SIZE_BYTES, &reader, &err), STATUS_PEER);
    assert_non_null(strstr(err.message, "is not the one"));
    handle = right;
    handle.fd = 0;
    handle.cookie = 0;
    assert_int_equal(segment_open("test", &handle, SIZE_BYTES, &reader, &err), STATUS_PEER);
    handle = right;
    handle.pid = -1;
    assert_int_equal(segment_open("test", &handle, SIZE_BYTES, &reader, &err), STATUS_PEER);
    segment_close(&segment);
    assert_int_equal(segment_open("test", &right, SIZE_BYTES, &reader, &err), STATUS_PEER);
    assert_non_null(strstr(err.message, "given the memory back"));
    segment_close(&other);
}

static void a_segment_takes_the_place_it_is_given(void **state)
{
    struct segment segment;
    struct err err;
    uint8_t *range = mmap(NULL, 5 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                          0);

    (void)state;
    assert_true(range != MAP_FAILED);
    memset(range, 1, 5 * 4096);
    assert_int_equal(segment_create("test", 2 * 4096, range + 4096, &segment, &err), STATUS_OK);
    assert_ptr_equal(segment.memory, range + 4096);
    assert_int_equal(range[4095], 1);
    assert_int_equal(range[4096], 0);
    assert_int_equal(range[3 * 4096 - 1], 0);
    assert_int_equal(range[3 * 4096], 1);
    range[4096] = 2;
    segment_close(&segment);
    for (size_t i = 0; i < 5 * 4096; i++)
        assert_int_equal(range[i], i >= 4096 && i < 3 * 4096 ? 0 : 1);
    range[4096] = 2; /* it can be written */
    (void)munmap(range, (size_t)5 * 4096);
}

static bool is_refused_at_the_limit(const struct segment_handle *unused)
{
    const struct rlimit limit = { 4096, 4096 };
    struct segment segment;
    struct err err;

    (void)unused;
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0)
        return false;
    return segment_create("home", 4097, NULL, &segment, &err) == STATUS_NO_MEMORY &&
           strstr(err.message, "home: 4.00 KiB of shared memory") != NULL &&
           strstr(err.message, "ulimit -f") != NULL &&
           segment_create("home", 4096, NULL, &segment, &err) == STATUS_OK;
}

static void too_little_memory_is_said_at_once(void **state)
{
    struct segment segment;
    struct err err;

    (void)state;
    assert_true(memory_left_bytes() > MIB);
    assert_true(memory_left_bytes() < UINT64_C(1) << 50);
    assert_int_equal(segment_create("home", UINT64_C(1) << 50, NULL, &segment, &err),
                     STATUS_NO_MEMORY);
    assert_non_null(strstr(err.message, "home: "));
    assert_non_null(strstr(err.message, "1125899906842624 bytes"));
    assert_non_null(strstr(err.message, "has left"));
    in_child(is_refused_at_the_limit, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_reader_sees_the_bytes_and_cannot_change_them),
        cmocka_unit_test(what_is_mapped_outlives_the_creator),
        cmocka_unit_test(wrong_handles_are_refused),
        cmocka_unit_test(a_segment_takes_the_place_it_is_given),
        cmocka_unit_test(too_little_memory_is_said_at_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
