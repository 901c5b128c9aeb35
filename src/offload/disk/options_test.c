/* offload/disk/options_test.c - the string of --offload-disk: what it sets, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/size.h"
#include "offload/disk/reader.h"

static void every_setting_is_read(void **state)
{
    struct disk_reader_options options = { .depth = 7, .uring = DISK_ON };
    struct err err;

    (void)state;
    assert_int_equal(disk_reader_options_parse(NULL, "--offload-disk", &options, &err), STATUS_OK);
    assert_int_equal(disk_reader_options_parse("", "--offload-disk", &options, &err), STATUS_OK);
    assert_int_equal(options.depth, 7);
    assert_int_equal(disk_reader_options_parse(
                         "depth=16,guess-depth=3,piece=512KiB,direct=off,uring=auto,eio=4:2,"
                         "short=5,end=6,stall=7:3s", "--offload-disk", &options, &err), STATUS_OK);
    assert_int_equal(options.depth, 16);
    assert_int_equal(options.guess_depth, 3);
    assert_int_equal(options.piece_bytes, 512 * KIB);
    assert_int_equal(options.direct, DISK_OFF);
    assert_int_equal(options.uring, DISK_AUTO);
    assert_int_equal(options.faults.eio_piece, 4);
    assert_int_equal(options.faults.eio_count, 2);
    assert_int_equal(options.faults.short_piece, 5);
    assert_int_equal(options.faults.end_piece, 6);
    assert_int_equal(options.faults.stall_piece, 7);
    assert_int_equal(options.faults.stall_ns, 3000000000);
    assert_int_equal(disk_reader_options_parse("eio=1,stall=1:20ms", "--offload-disk", &options,
                                               &err), STATUS_OK);
    assert_int_equal(options.faults.eio_count, 1);
    assert_int_equal(options.faults.stall_ns, 20000000);
}

static void what_cannot_be_is_refused_and_changes_nothing(void **state)
{
    static const struct {
        const char *text, *said;
    } cases[] = {
        { "dept=3", "the nearest is 'depth'" },
        { "depth", "depth needs a value" },
        { "depth=", "not a count" },
        { "depth=0", "from 1 to 128" },
        { "depth=129", "from 1 to 128" },
        { "depth=99999999999999999999", "not a count" },
        { "depth=-1", "not a count" },
        { "depth=2,depth=2", "given twice" },
        { "guess-depth=x", "not a count" },
        { "piece=1000", "a multiple of 4096" },
        { "piece=4GiB", "a multiple of 4096" },
        { "piece=0", "a multiple of 4096" },
        { "direct=yes", "on, off or auto" },
        { "uring=ON", "on, off or auto" },
        { "eio=1:", "not a count" },
        { "eio=a", "not a count" },
        { "stall=1", "stall=5:3s" },
        { "stall=1:3", "not a time" },
        { "stall=1:3h", "not a time" },
        { "stall=1:99999s", "more than an hour" },
        { ",depth=1", "NAME=VALUE" },
        { "depth=3,,", "NAME=VALUE" },
        { "=", "the nearest is" },
        { "depth=0000000000000000000000000000000000000000000000000000000000000000000000003",
          "NAME=VALUE" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct disk_reader_options options = { .depth = 7 };
        const struct disk_reader_options before = options;
        struct err err;

        assert_int_equal(disk_reader_options_parse(cases[i].text, "--offload-disk", &options, &err),
                         STATUS_BAD_INPUT);
        if (strstr(err.message, cases[i].said) == NULL)
            fail_msg("'%s' was refused with: %s", cases[i].text, err.message);
        assert_non_null(strstr(err.message, "--offload-disk"));
        assert_memory_equal(&options, &before, sizeof(options));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_setting_is_read),
        cmocka_unit_test(what_cannot_be_is_refused_and_changes_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
