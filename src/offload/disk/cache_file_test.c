/* offload/disk/cache_file_test.c - a cache file is right, or is not taken for one.
 *
 * Method: files of a few units with known bytes, each in a folder of its own. They are damaged byte
 * by byte, cut, made by several processes at once and by one that is killed; and the n-th call that
 * writing makes fails, for every n (ld: --wrap). After each failure the folder must be empty. */
#include <assert.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/size.h"
#include "offload/disk/cache_internal.h"
#include "offload/disk/testing.h"

/* ---- calls that can be made to fail ---- */

static long calls_left = -1; /* how many more go well; below 0: none fails */
static int fault_errno;

static bool call_fails(void)
{
    if (calls_left < 0 || calls_left-- != 0)
        return false;
    errno = fault_errno;
    return true;
}

#define WRAP(result, name, failed, parameters, arguments) \
    result __real_##name parameters;                      \
    result __wrap_##name parameters;                      \
    result __wrap_##name parameters                       \
    {                                                     \
        return call_fails() ? (failed) : __real_##name arguments; \
    }

WRAP(void *, malloc, NULL, (size_t size), (size))
WRAP(void *, calloc, NULL, (size_t count, size_t size), (count, size))
WRAP(char *, strdup, NULL, (const char *text), (text))
WRAP(ssize_t, pwrite, -1, (int fd, const void *bytes, size_t size, off_t offset),
     (fd, bytes, size, offset))
WRAP(int, fallocate, -1, (int fd, int mode, off_t offset, off_t size), (fd, mode, offset, size))
WRAP(int, ftruncate, -1, (int fd, off_t size), (fd, size))
WRAP(int, fsync, -1, (int fd), (fd))
WRAP(int, rename, -1, (const char *from, const char *to), (from, to))

/* ---- units with known bytes ---- */

#define LARGE_BYTES (17 * MIB + 5)

static const struct cache_unit units[] = {
    { .name = "layers.0.mlp", .size_bytes = 100000 },
    { .name = "nothing", .size_bytes = 0 },
    { .name = "layers.1.mlp", .size_bytes = 4096 },
    { .name = "", .size_bytes = 1 },
    { .name = "large", .size_bytes = LARGE_BYTES },
    { .name = "nothing at the end", .size_bytes = 0 },
};
#define UNITS 6
static_assert(UNITS == sizeof(units) / sizeof(units[0]), "as many as there are");
#define SMALL_UNITS 4 /* without the large one, for what is done often */

static const struct cache_hash fingerprint = { "fingerprint 1234" };
static const struct cache_hash other_fingerprint = { "fingerprint 5678" };
static uint8_t *known_bytes; /* [LARGE_BYTES]; a unit's begin at its index */
static char folder[1024];
static char path[1100];

static const uint8_t *bytes_of(size_t unit_index)
{
    return known_bytes + unit_index;
}

static int set_up(void **state)
{
    (void)state;
    known_bytes = malloc(LARGE_BYTES + UNITS);
    (void)snprintf(folder, sizeof(folder), "%s/lighter-cache-XXXXXX",
                   getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp");
    if (known_bytes == NULL || mkdtemp(folder) == NULL)
        return -1;
    testing_fill(known_bytes, 0, LARGE_BYTES + UNITS);
    (void)snprintf(path, sizeof(path), "%s/of/models/a.units", folder);
    return 0;
}

/* Files in the units' folder; removes them if asked to. */
static int count_files(bool remove)
{
    char of[1100];
    DIR *stream;
    struct dirent *entry;
    int count = 0;

    (void)snprintf(of, sizeof(of), "%s/of/models", folder);
    stream = opendir(of);
    if (stream == NULL)
        return 0;
    while ((entry = readdir(stream)) != NULL) {
        if (entry->d_name[0] == '.')
            continue;
        count++;
        if (remove)
            (void)unlinkat(dirfd(stream), entry->d_name, 0);
    }
    (void)closedir(stream);
    return count;
}

static int tear_down(void **state)
{
    char of[1100];

    (void)state;
    free(known_bytes);
    (void)count_files(true);
    (void)snprintf(of, sizeof(of), "%s/of/models", folder);
    (void)rmdir(of);
    (void)snprintf(of, sizeof(of), "%s/of", folder);
    (void)rmdir(of);
    return rmdir(folder);
}

struct production {
    _Atomic int count;    /* units made */
    int kill_at;          /* kill -9 when this unit is half made; -1: never */
    int sleep_ms;         /* in each unit */
};

/* Appends a unit in parts of odd sizes. */
static enum status produce(void *user, size_t unit_index, struct cache_writer *writer,
                           struct err *err)
{
    struct production *const production = user;
    const uint64_t size_bytes = units[unit_index].size_bytes;
    uint64_t part_bytes = size_bytes > MIB ? 3 * MIB + 1 : 999;
    enum status st = STATUS_OK;

    atomic_fetch_add(&production->count, 1);
    if (production->sleep_ms != 0)
        (void)usleep((useconds_t)production->sleep_ms * 1000);
    for (uint64_t at = 0; at < size_bytes && st == STATUS_OK; at += part_bytes) {
        if (part_bytes > size_bytes - at)
            part_bytes = size_bytes - at;
        if ((int)unit_index == production->kill_at && at != 0)
            (void)kill(getpid(), SIGKILL);
        st = cache_writer_append(writer, bytes_of(unit_index) + at, part_bytes, err);
    }
    return st;
}

static char last_line[1024];

static void keep_line(void *user, enum log_level level, const char *line)
{
    (void)user;
    if (level == LOG_WARN || strstr(line, "other cache files") != NULL)
        (void)snprintf(last_line, sizeof(last_line), "%s", line);
}

static enum status obtain(const struct cache_hash *of, size_t unit_count,
                          struct production *production, struct cache_file **cache_out,
                          struct err *err)
{
    const struct cache_producer producer = { produce, production };
    const struct log log = { .write = keep_line };

    last_line[0] = '\0';
    return cache_file_obtain(path, of, units, unit_count, &producer, DISK_AUTO, &log, cache_out,
                             err);
}

/* Makes the file if it is not right; says how many units had to be made. */
static int make(size_t unit_count)
{
    struct production production = { .kill_at = -1 };
    struct cache_file *cache = NULL;
    struct err err;

    assert_int_equal(obtain(&fingerprint, unit_count, &production, &cache, &err), STATUS_OK);
    cache_file_close(cache);
    return production.count;
}

static enum status try_open(size_t unit_count, struct err *err)
{
    struct cache_file *cache = NULL;
    const enum status st =
        cache_file_open(path, &fingerprint, units, unit_count, DISK_AUTO, &cache, err);

    cache_file_close(cache);
    return st;
}

/* Flips a bit of the file's byte at this offset. */
static void flip(uint64_t offset_bytes)
{
    FILE *const stream = fopen(path, "r+");
    int byte;

    assert_non_null(stream);
    assert_int_equal(fseek(stream, (long)offset_bytes, SEEK_SET), 0);
    byte = fgetc(stream);
    assert_int_equal(fseek(stream, (long)offset_bytes, SEEK_SET), 0);
    assert_int_equal(fputc(byte ^ 0x10, stream), byte ^ 0x10);
    assert_int_equal(fclose(stream), 0);
}

/* ---- tests ---- */

static void units_come_back_as_they_were(void **state)
{
    const struct disk_reader_options options = { .depth = 0 };
    struct disk_reader *reader = NULL;
    struct cache_file *cache = NULL;
    struct err err;

    (void)state;
    assert_int_equal(try_open(UNITS, &err), STATUS_UNAVAILABLE);
    assert_int_equal(make(UNITS), UNITS);
    assert_int_equal(make(UNITS), 0);
    assert_int_equal(count_files(false), 1);
    assert_int_equal(cache_file_open(path, &fingerprint, units, UNITS, DISK_AUTO, &cache, &err),
                     STATUS_OK);
    assert_int_equal(cache_file_unit_count(cache), UNITS);
    assert_int_equal(disk_reader_create(&options, &reader, &err), STATUS_OK);
    for (size_t i = 0; i < UNITS; i++) {
        const struct cache_unit *const unit = cache_file_unit(cache, i);
        uint8_t *const memory =
            aligned_alloc(DISK_ALIGN, size_align_up(unit->size_bytes + 1, DISK_ALIGN));
        struct disk_read read = { .extents = { { cache_file_disk_file(cache), unit->offset_bytes,
                                                 unit->size_bytes, memory } },
                                  .extent_count = 1 };

        assert_non_null(memory);
        assert_string_equal(unit->name, units[i].name);
        disk_read_submit(reader, &read);
        assert_int_equal(disk_read_wait(reader, &read, &err), STATUS_OK);
        assert_memory_equal(memory, bytes_of(i), unit->size_bytes);
        if (unit->size_bytes != 0) {
            memory[unit->size_bytes / 2] ^= 1;
            assert_int_equal(cache_file_verify(cache, i, memory, &err), STATUS_IO);
            assert_non_null(strstr(err.message, path));
            memory[unit->size_bytes / 2] ^= 1;
        }
        assert_int_equal(cache_file_verify(cache, i, memory, &err), STATUS_OK);
        assert_int_equal(cache_file_verify(cache, i, NULL, &err), STATUS_OK); /* known */
        free(memory);
    }
    disk_reader_destroy(reader);
    cache_file_close(cache);
    (void)count_files(true);
}

static void every_damaged_byte_before_the_units_is_found(void **state)
{
    uint64_t table_bytes = 0;
    struct err err;

    (void)state;
    (void)make(SMALL_UNITS);
    assert_true(cache__table_bytes(units, SMALL_UNITS, &table_bytes));
    for (uint64_t at = 0; at < CACHE__HEADER_BYTES + table_bytes; at++) {
        flip(at);
        assert_int_equal(try_open(SMALL_UNITS, &err), STATUS_BAD_INPUT);
        assert_non_null(strstr(err.message, path));
        flip(at);
    }
    assert_int_equal(try_open(SMALL_UNITS, &err), STATUS_OK);
    flip(0);
    assert_int_equal(make(SMALL_UNITS), SMALL_UNITS);
    assert_non_null(strstr(last_line, "making it again"));
    assert_int_equal(try_open(SMALL_UNITS, &err), STATUS_OK);
}

static void a_damaged_unit_is_found_when_it_is_read(void **state)
{
    static uint8_t bytes[100000];
    struct cache_file *cache = NULL;
    struct err err;

    (void)state;
    (void)make(SMALL_UNITS);
    memcpy(bytes, bytes_of(0), sizeof(bytes));
    bytes[77777] ^= 0x10;
    flip(4096 + 77777);
    assert_int_equal(cache_file_open(path, &fingerprint, units, SMALL_UNITS, DISK_AUTO, &cache,
                                     &err), STATUS_OK);
    assert_int_equal(cache_file_unit(cache, 0)->offset_bytes, 4096);
    assert_int_equal(cache_file_verify(cache, 0, bytes, &err), STATUS_IO);
    assert_non_null(strstr(err.message, "layers.0.mlp"));
    assert_int_equal(cache_file_verify(cache, 2, bytes_of(2), &err), STATUS_OK);
    cache_file_discard(cache);
    cache_file_close(cache);
    assert_int_equal(count_files(false), 0);
    assert_int_equal(make(SMALL_UNITS), SMALL_UNITS);
}

static void a_file_of_another_size_is_refused(void **state)
{
    static const long changes[] = { -1, 1, -4096, -100000, 4096 };
    struct stat info;
    struct err err;

    (void)state;
    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        (void)make(SMALL_UNITS);
        assert_int_equal(stat(path, &info), 0);
        assert_int_equal(truncate(path, info.st_size + changes[i]), 0);
        assert_int_equal(try_open(SMALL_UNITS, &err), STATUS_BAD_INPUT);
    }
    for (int size = 0; size <= CACHE__HEADER_BYTES; size += 8) {
        assert_int_equal(truncate(path, size), 0);
        assert_int_equal(try_open(SMALL_UNITS, &err), STATUS_BAD_INPUT);
    }
    assert_int_equal(make(SMALL_UNITS), SMALL_UNITS);
}

static void another_checkpoint_or_other_units_are_refused(void **state)
{
    struct production production = { .kill_at = -1 };
    struct cache_unit others[SMALL_UNITS];
    struct cache_file *cache = NULL;
    struct err err;

    (void)state;
    (void)make(SMALL_UNITS);
    assert_int_equal(try_open(SMALL_UNITS - 1, &err), STATUS_BAD_INPUT);
    memcpy(others, units, sizeof(others));
    others[2].size_bytes++;
    assert_int_equal(cache_file_open(path, &fingerprint, others, SMALL_UNITS, DISK_AUTO, &cache,
                                     &err), STATUS_BAD_INPUT);
    others[2].size_bytes--;
    others[2].name = "layers.2.mlp";
    assert_int_equal(cache_file_open(path, &fingerprint, others, SMALL_UNITS, DISK_AUTO, &cache,
                                     &err), STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "layers.1.mlp"));
    assert_int_equal(cache_file_open(path, &other_fingerprint, units, SMALL_UNITS, DISK_AUTO,
                                     &cache, &err), STATUS_BAD_INPUT);
    assert_int_equal(obtain(&other_fingerprint, SMALL_UNITS, &production, &cache, &err), STATUS_OK);
    assert_int_equal(production.count, SMALL_UNITS);
    assert_non_null(strstr(last_line, "another checkpoint"));
    cache_file_close(cache);
    assert_int_equal(try_open(SMALL_UNITS, &err), STATUS_BAD_INPUT);
    (void)count_files(true);
}

/* The n-th call that can fail does, for every n, until all goes well. */
static void whatever_fails_leaves_nothing_behind(void **state)
{
    long n = 0;
    bool met = true;

    (void)state;
    (void)make(SMALL_UNITS); /* the folders */
    for (fault_errno = ENOSPC; met; n++) {
        struct production production = { .kill_at = -1 };
        struct cache_file *cache = NULL;
        struct err err;
        enum status st;

        (void)count_files(true);
        calls_left = n;
        st = obtain(&fingerprint, SMALL_UNITS, &production, &cache, &err);
        met = calls_left < 0;
        calls_left = -1;
        cache_file_close(cache);
        assert_true(met || st == STATUS_OK);
        /* Once it has its name it is whole, whatever fails after that. */
        if (count_files(false) != 0) {
            assert_int_equal(count_files(false), 1);
            assert_int_equal(try_open(SMALL_UNITS, &err), STATUS_OK);
        } else {
            assert_true(st != STATUS_OK);
            assert_true(err.status == st && err.message[0] != '\0');
        }
    }
    assert_true(n > 10);
}

static void a_full_disk_is_named(void **state)
{
    struct production production = { .kill_at = -1 };
    struct cache_file *cache = NULL;
    struct err err;

    (void)state;
    (void)count_files(true);
    for (long n = 0; n < 100; n++) {
        fault_errno = ENOSPC;
        calls_left = n;
        if (obtain(&fingerprint, SMALL_UNITS, &production, &cache, &err) == STATUS_IO &&
            strstr(err.message, "No space left") != NULL &&
            strstr(err.message, "reserving") != NULL) {
            calls_left = -1;
            assert_non_null(strstr(err.message, path));
            assert_non_null(strstr(err.message, "are free"));
            assert_non_null(strstr(err.message, "--offload-cache-dir"));
            assert_int_equal(production.count, 0); /* found out before any work */
            assert_int_equal(count_files(false), 0);
            return;
        }
        calls_left = -1;
        cache_file_close(cache);
        cache = NULL;
        (void)count_files(true);
        production.count = 0;
    }
    fail();
}

static void a_killed_writer_leaves_only_what_the_next_removes(void **state)
{
    struct production production = { .kill_at = 2 };
    struct cache_file *cache = NULL;
    struct err err;
    int status;
    pid_t child;

    (void)state;
    (void)count_files(true);
    child = fork();
    if (child == 0) {
        (void)obtain(&fingerprint, SMALL_UNITS, &production, &cache, &err);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(count_files(false), 1); /* the temporary */
    assert_int_equal(try_open(SMALL_UNITS, &err), STATUS_UNAVAILABLE);
    assert_int_equal(make(SMALL_UNITS), SMALL_UNITS);
    assert_int_equal(count_files(false), 1);
    assert_int_equal(try_open(SMALL_UNITS, &err), STATUS_OK);
}

static void of_several_processes_one_makes_it(void **state)
{
    enum { PROCESSES = 4 };
    struct production *const production = mmap(NULL, sizeof(*production), PROT_READ | PROT_WRITE,
                                               MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t children[PROCESSES];

    (void)state;
    assert_true(production != MAP_FAILED);
    production->kill_at = -1;
    production->sleep_ms = 20;
    (void)count_files(true);
    for (int i = 0; i < PROCESSES; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            struct cache_file *cache = NULL;
            const enum status st = obtain(&fingerprint, SMALL_UNITS, production, &cache, NULL);
            const bool good = st == STATUS_OK &&
                              cache_file_verify(cache, 0, bytes_of(0), NULL) == STATUS_OK;
            cache_file_close(cache);
            _exit(good ? 0 : 1);
        }
    }
    for (int i = 0; i < PROCESSES; i++) {
        int status;
        assert_int_equal(waitpid(children[i], &status, 0), children[i]);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    assert_int_equal(production->count, SMALL_UNITS);
    assert_int_equal(count_files(true), 1);
    (void)munmap(production, sizeof(*production));
}

struct failing {
    _Atomic int count;
};

/* The first process that comes here fails, when the others wait. */
static enum status fail_once(void *user, size_t unit_index, struct cache_writer *writer,
                             struct err *err)
{
    struct failing *const failing = user;

    if (atomic_fetch_add(&failing->count, 1) == 0) {
        (void)usleep(100000);
        return err_set(err, STATUS_IO, "not this time");
    }
    return cache_writer_append(writer, bytes_of(unit_index), units[unit_index].size_bytes, err);
}

static void those_who_wait_for_one_that_fails_make_it(void **state)
{
    enum { PROCESSES = 4 };
    struct failing *const failing = mmap(NULL, sizeof(*failing), PROT_READ | PROT_WRITE,
                                         MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    const struct cache_producer producer = { fail_once, failing };
    pid_t children[PROCESSES];
    int failed_count = 0;

    (void)state;
    assert_true(failing != MAP_FAILED);
    (void)count_files(true);
    for (int i = 0; i < PROCESSES; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            struct cache_file *cache = NULL;
            const enum status st = cache_file_obtain(path, &fingerprint, units, SMALL_UNITS,
                                                     &producer, DISK_AUTO, NULL, &cache, NULL);
            cache_file_close(cache);
            _exit(st == STATUS_OK ? 0 : 1);
        }
    }
    for (int i = 0; i < PROCESSES; i++) {
        int status;
        assert_int_equal(waitpid(children[i], &status, 0), children[i]);
        assert_true(WIFEXITED(status));
        failed_count += WEXITSTATUS(status);
    }
    assert_int_equal(failed_count, 1);
    assert_int_equal(failing->count, 1 + SMALL_UNITS);
    assert_int_equal(try_open(SMALL_UNITS, NULL), STATUS_OK);
    assert_int_equal(count_files(true), 1);
    (void)munmap(failing, sizeof(*failing));
}

static void other_files_of_the_model_are_told_of(void **state)
{
    char *const own_path = strdup(path);

    (void)state;
    assert_non_null(own_path);
    (void)count_files(true);
    (void)make(SMALL_UNITS);
    path[strlen(path) - strlen("a.units")] = 'b';
    (void)make(SMALL_UNITS);
    assert_non_null(strstr(last_line, "other cache files of this model take 1"));
    assert_int_equal(count_files(true), 2);
    memcpy(path, own_path, strlen(path));
    free(own_path);
}

/* What its writer reports, the caller hears, and no file is there. */
static enum status refuse(void *user, size_t unit_index, struct cache_writer *writer,
                          struct err *err)
{
    (void)user;
    if (unit_index == 1)
        return err_set(err, STATUS_CANCELED, "enough");
    return cache_writer_append(writer, bytes_of(unit_index), units[unit_index].size_bytes, err);
}

static void a_producer_may_fail(void **state)
{
    const struct cache_producer producer = { refuse, NULL };
    struct cache_file *cache = NULL;
    struct err err;

    (void)state;
    assert_int_equal(cache_file_obtain(path, &fingerprint, units, UNITS, &producer, DISK_AUTO, NULL,
                                       &cache, &err), STATUS_CANCELED);
    assert_string_equal(err.message, "enough");
    assert_int_equal(count_files(false), 0);
    *strrchr(path, '/') = '\0';
    assert_int_equal(access(path, F_OK), -1); /* nor its folder */
    path[strlen(path)] = '/';
}

static void a_fingerprint_follows_the_files(void **state)
{
    const struct cache_hash layout = { "a" }, other_layout = { "b" };
    struct cache_hash first, again, other;
    struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, { .tv_sec = 1000 } };
    char *const file = testing_file(100);
    const char *const files[] = { file, "/etc/passwd" };
    struct err err;

    (void)state;
    assert_non_null(file);
    assert_int_equal(cache_fingerprint(files, 2, &layout, &first, &err), STATUS_OK);
    assert_int_equal(cache_fingerprint(files, 2, &layout, &again, &err), STATUS_OK);
    assert_memory_equal(&first, &again, sizeof(first));
    assert_int_equal(cache_fingerprint(files, 2, &other_layout, &other, &err), STATUS_OK);
    assert_memory_not_equal(&first, &other, sizeof(first));
    assert_int_equal(cache_fingerprint(files, 1, &layout, &other, &err), STATUS_OK);
    assert_memory_not_equal(&first, &other, sizeof(first));
    assert_int_equal(utimensat(AT_FDCWD, file, times, 0), 0);
    assert_int_equal(cache_fingerprint(files, 2, &layout, &other, &err), STATUS_OK);
    assert_memory_not_equal(&first, &other, sizeof(first));
    assert_int_equal(truncate(file, 99), 0);
    assert_int_equal(utimensat(AT_FDCWD, file, times, 0), 0);
    assert_int_equal(cache_fingerprint(files, 2, &layout, &again, &err), STATUS_OK);
    assert_memory_not_equal(&other, &again, sizeof(first));
    assert_int_equal(unlink(file), 0);
    assert_int_equal(cache_fingerprint(files, 2, &layout, &again, &err), STATUS_IO);
    assert_non_null(strstr(err.message, file));
    free(file);
}

static void check_folder(const char *option, const char *xdg, const char *home, const char *wanted)
{
    char *got = NULL;
    struct err err;

    assert_int_equal(cache_folder(option, xdg, home, &got, &err), STATUS_OK);
    assert_string_equal(got, wanted);
    free(got);
}

static void the_folder_is_where_users_expect_it(void **state)
{
    const struct cache_hash layout = { { 0xAB, 0xCD, 1, 2, 3, 4, 5, 6, 7 } };
    char *got = NULL;
    struct err err;

    (void)state;
    check_folder("/a/b", "/c", "/d", "/a/b");
    check_folder(NULL, "/c", "/d", "/c/lighter");
    check_folder("", "not/absolute", "/d", "/d/.cache/lighter");
    check_folder(NULL, NULL, "/d", "/d/.cache/lighter");
    assert_int_equal(cache_folder(NULL, "", NULL, &got, &err), STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "--offload-cache-dir"));
    assert_int_equal(cache_path("/f", "/no/such/model.gguf", &layout, "units", &got, &err),
                     STATUS_OK);
    assert_true(strncmp(got, "/f/model.gguf-", 14) == 0);
    assert_string_equal(got + strlen(got) - 23, "/abcd010203040506.units");
    free(got);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(units_come_back_as_they_were),
        cmocka_unit_test(every_damaged_byte_before_the_units_is_found),
        cmocka_unit_test(a_damaged_unit_is_found_when_it_is_read),
        cmocka_unit_test(a_file_of_another_size_is_refused),
        cmocka_unit_test(another_checkpoint_or_other_units_are_refused),
        cmocka_unit_test(whatever_fails_leaves_nothing_behind),
        cmocka_unit_test(a_full_disk_is_named),
        cmocka_unit_test(a_killed_writer_leaves_only_what_the_next_removes),
        cmocka_unit_test(of_several_processes_one_makes_it),
        cmocka_unit_test(those_who_wait_for_one_that_fails_make_it),
        cmocka_unit_test(other_files_of_the_model_are_told_of),
        cmocka_unit_test(a_producer_may_fail),
        cmocka_unit_test(a_fingerprint_follows_the_files),
        cmocka_unit_test(the_folder_is_where_users_expect_it),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
