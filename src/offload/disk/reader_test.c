/* offload/disk/reader_test.c - what is read is what the file has, whatever goes wrong on the way.
 *
 * Method: files whose every byte is known from its position, read by both engines, with and without
 * O_DIRECT, into memory whose surroundings are checked too; then again with faults at each piece.
 * In what order pieces start is tested in order_test.c, on an engine that the test controls. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <cmocka.h>
#include <liburing.h>
#include <linux/magic.h>

#include "base/size.h"
#include "offload/disk/internal.h"
#include "offload/disk/testing.h"

#define FILE_BYTES (3 * MIB + 1234)

int __real_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags);
int __wrap_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags);

static int uring_error; /* 0, or what making a ring shall return */

int __wrap_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags)
{
    return uring_error != 0 ? uring_error : __real_io_uring_queue_init(entries, ring, flags);
}

static int logged_count;

static void count_line(void *user, enum log_level level, const char *line)
{
    (void)user;
    (void)level;
    assert_non_null(strstr(line, "threads instead"));
    logged_count++;
}

static char *path;
static struct disk_file *direct, *buffered;

static int open_files(void **state)
{
    struct err err;

    (void)state;
    path = testing_file(FILE_BYTES);
    if (path == NULL || disk_file_open(path, DISK_AUTO, &direct, &err) != STATUS_OK ||
        disk_file_open(path, DISK_OFF, &buffered, &err) != STATUS_OK)
        return -1;
    return 0;
}

static int close_files(void **state)
{
    (void)state;
    disk_file_close(direct);
    disk_file_close(buffered);
    (void)unlink(path);
    free(path);
    return 0;
}

static struct disk_reader *make_reader(const char *text)
{
    struct disk_reader_options options = { .depth = 0 };
    struct disk_reader *reader = NULL;
    struct err err;

    assert_int_equal(disk_reader_options_parse(text, "--offload-disk", &options, &err), STATUS_OK);
    assert_int_equal(disk_reader_create(&options, &reader, &err), STATUS_OK);
    return reader;
}

/* Memory for an extent, with a block before and after it that must not change. */
struct place {
    uint8_t *memory;
    uint64_t memory_bytes;
    struct disk_extent extent;
};

static void place_make(struct place *place, const struct disk_file *file, uint64_t offset_bytes,
                       uint64_t size_bytes)
{
    const uint64_t before = offset_bytes % DISK_ALIGN;

    place->memory_bytes = size_align_up(before + size_bytes, DISK_ALIGN) + 2 * DISK_ALIGN;
    place->memory = aligned_alloc(DISK_ALIGN, place->memory_bytes);
    assert_non_null(place->memory);
    memset(place->memory, 0xEE, place->memory_bytes);
    place->extent = (struct disk_extent){ .file = file, .offset_bytes = offset_bytes,
                                          .size_bytes = size_bytes,
                                          .dst = place->memory + DISK_ALIGN + before };
}

static void place_check(struct place *place)
{
    assert_true(testing_is_filled(place->extent.dst, place->extent.offset_bytes,
                                  place->extent.size_bytes));
    for (uint64_t i = 0; i < DISK_ALIGN; i++) {
        assert_int_equal(place->memory[i], 0xEE);
        assert_int_equal(place->memory[place->memory_bytes - 1 - i], 0xEE);
    }
    free(place->memory);
}

/* Reads one extent and gives its status; checks the bytes when it went well. */
static enum status read_one(struct disk_reader *reader, const struct disk_file *file,
                            uint64_t offset_bytes, uint64_t size_bytes, struct err *err)
{
    struct disk_read read = { .extent_count = 1 };
    struct place place;
    enum status st;

    place_make(&place, file, offset_bytes, size_bytes);
    read.extents[0] = place.extent;
    assert_false(disk_read_is_done(&read));
    disk_read_submit(reader, &read);
    st = disk_read_wait(reader, &read, err);
    assert_true(disk_read_is_done(&read));
    assert_int_equal(read.state, DISK_READ_DONE);
    assert_int_equal(read.status, st);
    assert_true(read.ended_ns >= read.submit_ns);
    if (size_bytes != 0)
        assert_true(read.ended_ns >= read.began_ns && read.began_ns >= read.submit_ns);
    if (st == STATUS_OK)
        place_check(&place);
    else
        free(place.memory);
    return st;
}

static const char *const engines[] = { "uring=auto", "uring=off" };

static void any_offset_and_size(void **state)
{
    static const uint64_t edges[] = { 0, 1, 511, 4095, 4096, 4097, 8192, 70000, 1 * MIB + 13 };
    const size_t edge_count = sizeof(edges) / sizeof(edges[0]);
    struct err err;

    (void)state;
    for (size_t e = 0; e < 2; e++) {
        char text[64];
        struct disk_reader *reader;

        (void)snprintf(text, sizeof(text), "%s,piece=16KiB,depth=3", engines[e]);
        reader = make_reader(text);
        for (size_t i = 0; i < edge_count * edge_count; i++) {
            const uint64_t offset = edges[i / edge_count], size = edges[i % edge_count];
            const struct disk_file *const file = i % 2 != 0 ? direct : buffered;
            assert_int_equal(read_one(reader, file, offset, size, &err), STATUS_OK);
            /* and the same, up to the file's last byte */
            assert_int_equal(read_one(reader, file, FILE_BYTES - offset, offset, &err), STATUS_OK);
        }
        disk_reader_destroy(reader);
    }
}

static void many_reads_at_once(void **state)
{
    enum { READS = 40 };
    static struct disk_read reads[READS];
    static struct place places[READS][DISK_EXTENTS_MAX];
    uint64_t random = 7, wanted_bytes = 0;
    struct disk_counters counters;

    (void)state;
    for (size_t e = 0; e < 2; e++) {
        char text[64];
        struct disk_reader *reader;

        (void)snprintf(text, sizeof(text), "%s,piece=8KiB,depth=6", engines[e]);
        reader = make_reader(text);
        memset(reads, 0, sizeof(reads));
        for (uint32_t i = 0; i < READS; i++) {
            reads[i].extent_count = i % (DISK_EXTENTS_MAX + 1);
            reads[i].class = i % 3 == 0 ? DISK_GUESS : DISK_DEMAND;
            for (uint32_t j = 0; j < reads[i].extent_count; j++) {
                random = random * UINT64_C(6364136223846793005) + 1442695040888963407;
                place_make(&places[i][j], random >> 63 ? direct : buffered,
                           (random >> 33) % (2 * MIB), (random >> 20) % 60000);
                reads[i].extents[j] = places[i][j].extent;
            }
            disk_read_submit(reader, &reads[i]);
        }
        wanted_bytes = 0;
        for (uint32_t i = 0; i < READS; i++) {
            assert_int_equal(disk_read_wait(reader, &reads[i], NULL), STATUS_OK);
            wanted_bytes += reads[i].bytes_read;
            for (uint32_t j = 0; j < reads[i].extent_count; j++)
                place_check(&places[i][j]);
        }
        disk_reader_counters(reader, &counters);
        assert_int_equal(counters.classes[DISK_DEMAND].read_bytes +
                             counters.classes[DISK_GUESS].read_bytes, wanted_bytes);
        assert_int_equal(counters.classes[DISK_GUESS].done_count, (READS + 2) / 3);
        assert_int_equal(counters.classes[DISK_DEMAND].done_count, READS - (READS + 2) / 3);
        assert_true(counters.in_flight_max <= 6);
        assert_true(counters.busy_ns <= counters.elapsed_ns);
        assert_true(counters.in_flight_ns >= counters.busy_ns);
        disk_reader_destroy(reader);
    }
}

#define PIECES 10 /* of the read that faults hit */

static enum status read_with_fault(const char *engine, const char *fault, uint64_t piece,
                                   const char *times, struct disk_counters *counters,
                                   struct err *err)
{
    char text[96];
    struct disk_reader *reader;
    enum status st;

    (void)snprintf(text, sizeof(text), "%s,piece=16KiB,depth=4,%s=%u%s", engine, fault,
                   (unsigned)piece, times);
    reader = make_reader(text);
    st = read_one(reader, direct, 5000, PIECES * 16 * KIB - 8192, err);
    disk_reader_counters(reader, counters);
    if (st != STATUS_OK) /* the next read is fine */
        assert_int_equal(read_one(reader, direct, 0, 50000, NULL), STATUS_OK);
    disk_reader_destroy(reader);
    return st;
}

static void a_short_read_is_continued(void **state)
{
    struct disk_counters counters;

    (void)state;
    for (uint64_t piece = 1; piece <= PIECES; piece++) {
        assert_int_equal(read_with_fault(engines[piece % 2], "short", piece, "", &counters, NULL),
                         STATUS_OK);
        assert_int_equal(counters.short_count, 1);
        assert_int_equal(counters.classes[DISK_DEMAND].piece_count, PIECES);
    }
}

static void eio_is_tried_again_once(void **state)
{
    struct disk_counters counters;
    struct err err;

    (void)state;
    for (uint64_t piece = 1; piece <= PIECES; piece++) {
        assert_int_equal(read_with_fault(engines[piece % 2], "eio", piece, "", &counters, NULL),
                         STATUS_OK);
        assert_int_equal(counters.retry_count, 1);
        assert_int_equal(read_with_fault(engines[piece % 2], "eio", piece, ":2", &counters, &err),
                         STATUS_IO);
        assert_int_equal(counters.classes[DISK_DEMAND].failed_count, 1);
        assert_non_null(strstr(err.message, path));
        assert_non_null(strstr(err.message, "Input/output error"));
    }
}

static void a_file_that_ends_early_is_an_error(void **state)
{
    struct disk_counters counters;
    struct disk_reader *reader;
    struct disk_file *file;
    char *const short_path = testing_file(100000);
    struct err err;

    (void)state;
    for (uint64_t piece = 1; piece <= PIECES; piece++) {
        assert_int_equal(read_with_fault(engines[piece % 2], "end", piece, "", &counters, &err),
                         STATUS_IO);
        assert_non_null(strstr(err.message, "was it truncated?"));
    }
    assert_non_null(short_path);
    assert_int_equal(disk_file_open(short_path, DISK_AUTO, &file, &err), STATUS_OK);
    for (size_t e = 0; e < 2; e++) {
        reader = make_reader(engines[e]);
        assert_int_equal(read_one(reader, file, 0, 100000, &err), STATUS_OK);
        assert_int_equal(read_one(reader, file, 50000, 50001, &err), STATUS_IO);
        assert_non_null(strstr(err.message, "ended at byte 100000"));
        assert_int_equal(read_one(reader, file, 1 * GIB, 1, &err), STATUS_IO);
        assert_non_null(strstr(err.message, "ended at byte 100000"));
        disk_reader_destroy(reader);
    }
    assert_int_equal(disk_file_check_unchanged(file, &err), STATUS_OK);
    assert_int_equal(truncate(short_path, 50000), 0);
    assert_int_equal(disk_file_check_unchanged(file, &err), STATUS_IO);
    reader = make_reader("");
    assert_int_equal(read_one(reader, file, 0, 100000, &err), STATUS_IO);
    assert_non_null(strstr(err.message, "ended at byte 50000"));
    disk_reader_destroy(reader);
    assert_int_equal(unlink(short_path), 0);
    disk_file_close(file);
    free(short_path);
}

static void a_stall_only_delays(void **state)
{
    (void)state;
    for (size_t e = 0; e < 2; e++) {
        struct disk_read reads[2] = { { .extent_count = 1 }, { .extent_count = 1 } };
        struct place places[2];
        char text[64];
        struct disk_reader *reader;

        (void)snprintf(text, sizeof(text), "%s,piece=64KiB,depth=2,stall=2:200ms", engines[e]);
        reader = make_reader(text);
        for (int i = 0; i < 2; i++) {
            place_make(&places[i], direct, 0, 128 * KIB);
            reads[i].extents[0] = places[i].extent;
            disk_read_submit(reader, &reads[i]);
        }
        for (int i = 0; i < 2; i++) {
            assert_int_equal(disk_read_wait(reader, &reads[i], NULL), STATUS_OK);
            place_check(&places[i]);
        }
        assert_true(reads[0].ended_ns - reads[0].began_ns >= 200000000);
        disk_reader_destroy(reader);
    }
}

/* With reads queued and in flight: they end, and nothing is written after that. */
static void destroying_ends_what_is_under_way(void **state)
{
    (void)state;
    for (size_t e = 0; e < 2; e++) {
        struct disk_read reads[4];
        struct place places[4];
        char text[64];
        struct disk_reader *reader;

        (void)snprintf(text, sizeof(text), "%s,piece=4KiB,depth=2,stall=2:50ms", engines[e]);
        reader = make_reader(text);
        memset(reads, 0, sizeof(reads));
        for (int i = 0; i < 4; i++) {
            place_make(&places[i], direct, 0, 1 * MIB);
            reads[i].extent_count = 1;
            reads[i].extents[0] = places[i].extent;
            disk_read_submit(reader, &reads[i]);
        }
        disk_reader_destroy(reader);
        for (int i = 0; i < 4; i++) {
            assert_true(disk_read_is_done(&reads[i]));
            free(places[i].memory);
        }
    }
}

/* Resident pages of the file, or -1 where that says nothing. */
static long cached_pages(void)
{
    const size_t page_count = (FILE_BYTES + 4095) / 4096;
    unsigned char *const resident = malloc(page_count);
    struct statfs info;
    FILE *const stream = fopen(path, "r");
    void *map;
    long count = 0;

    assert_non_null(stream);
    assert_non_null(resident);
    assert_int_equal(fstatfs(fileno(stream), &info), 0);
    map = mmap(NULL, FILE_BYTES, PROT_READ, MAP_SHARED, fileno(stream), 0);
    assert_true(map != MAP_FAILED);
    assert_int_equal(mincore(map, FILE_BYTES, resident), 0);
    for (size_t i = 0; i < page_count; i++)
        count += resident[i] & 1;
    (void)munmap(map, FILE_BYTES);
    (void)fclose(stream);
    free(resident);
    return info.f_type == TMPFS_MAGIC ? -1 : count;
}

static void the_page_cache_is_not_used(void **state)
{
    const struct disk_file *const files[] = { direct, buffered };

    (void)state;
    if (cached_pages() < 0)
        skip();
    for (int i = 0; i < 2; i++) {
        struct disk_reader *const reader = make_reader("");
        assert_int_equal(read_one(reader, files[i], 0, FILE_BYTES, NULL), STATUS_OK);
        assert_int_equal(cached_pages(), 0);
        disk_reader_destroy(reader);
    }
}

static void without_io_uring_threads_read_and_say_so(void **state)
{
    static const int errors[] = { -ENOSYS, -EPERM };
    const struct log log = { .write = count_line };
    struct disk_reader_options options = { .log = &log };
    struct disk_reader *reader = NULL;
    struct err err;

    (void)state;
    for (int i = 0; i < 2; i++) {
        uring_error = errors[i];
        logged_count = 0;
        options.uring = DISK_AUTO;
        assert_int_equal(disk_reader_create(&options, &reader, &err), STATUS_OK);
        assert_string_equal(disk_reader_engine_name(reader), "threads");
        assert_int_equal(read_one(reader, direct, 100, 1 * MIB, NULL), STATUS_OK);
        disk_reader_destroy(reader);
        assert_int_equal(logged_count, 1);
        options.uring = DISK_ON;
        assert_int_equal(disk_reader_create(&options, &reader, &err), STATUS_UNAVAILABLE);
        assert_non_null(strstr(err.message, "uring=auto"));
    }
    uring_error = 0;
}

static void what_cannot_be_opened_is_named(void **state)
{
    struct disk_file *file = NULL;
    struct err err;

    (void)state;
    assert_int_equal(disk_file_open("/no/such/file", DISK_AUTO, &file, &err), STATUS_IO);
    assert_non_null(strstr(err.message, "/no/such/file"));
    assert_int_equal(disk_file_open("/tmp", DISK_AUTO, &file, &err), STATUS_IO);
    assert_int_equal(disk_file_open("/dev/null", DISK_AUTO, &file, &err), STATUS_IO);
    disk_file_close(NULL);
}

/* io_uring would else give up where a read can't be done at once. */
static void an_open_file_waits_for_its_reads(void **state)
{
    (void)state;
    assert_int_equal(fcntl(direct->fd, F_GETFL) & O_NONBLOCK, 0);
    assert_int_equal(fcntl(buffered->fd, F_GETFL) & (O_NONBLOCK | O_DIRECT), 0);
    assert_int_equal((fcntl(direct->fd, F_GETFL) & O_DIRECT) != 0, direct->direct);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_offset_and_size),
        cmocka_unit_test(many_reads_at_once),
        cmocka_unit_test(a_short_read_is_continued),
        cmocka_unit_test(eio_is_tried_again_once),
        cmocka_unit_test(a_file_that_ends_early_is_an_error),
        cmocka_unit_test(a_stall_only_delays),
        cmocka_unit_test(destroying_ends_what_is_under_way),
        cmocka_unit_test(the_page_cache_is_not_used),
        cmocka_unit_test(without_io_uring_threads_read_and_say_so),
        cmocka_unit_test(what_cannot_be_opened_is_named),
        cmocka_unit_test(an_open_file_waits_for_its_reads),
    };

    return cmocka_run_group_tests(tests, open_files, close_files);
}
