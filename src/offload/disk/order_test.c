/* offload/disk/order_test.c - which piece goes next, and what canceling and promoting change.
 *
 * Method: an engine that reads nothing. It hands every piece to the test, in the order in which
 * they were begun, and ends them when the test says so; so nothing here depends on time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/size.h"
#include "offload/disk/internal.h"
#include "offload/disk/testing.h"

#define PIECE_BYTES (4 * (uint64_t)DISK_ALIGN)
#define BEGUN_MAX 256

struct disk__engine {
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t changed;
    struct disk__piece *begun[BEGUN_MAX]; /* all, in order; NULL once it was given back */
    uint32_t begun_count;
    struct disk__piece *ended[BEGUN_MAX];
    uint32_t ended_count;
    bool woken;
    uint32_t sleep_count; /* times that the reader's thread found nothing to do */
};

static struct disk__engine engine;

static enum status fake_create(uint32_t *depth, struct disk__engine **engine_out, struct err *err)
{
    (void)depth;
    (void)err;
    memset(&engine, 0, sizeof(engine));
    (void)pthread_mutex_init(&engine.lock, NULL);
    (void)pthread_cond_init(&engine.changed, NULL);
    *engine_out = &engine;
    return STATUS_OK;
}

static void fake_destroy(struct disk__engine *unused)
{
    (void)unused;
    (void)pthread_cond_destroy(&engine.changed);
    (void)pthread_mutex_destroy(&engine.lock);
}

static void fake_begin(struct disk__engine *unused, struct disk__piece *piece)
{
    (void)unused;
    (void)pthread_mutex_lock(&engine.lock);
    assert_true(engine.begun_count < BEGUN_MAX);
    engine.begun[engine.begun_count++] = piece;
    (void)pthread_cond_broadcast(&engine.changed);
    (void)pthread_mutex_unlock(&engine.lock);
}

static uint32_t fake_wait(struct disk__engine *unused, struct disk__piece **pieces_out,
                          uint32_t piece_count_max)
{
    uint32_t count;

    (void)unused;
    (void)pthread_mutex_lock(&engine.lock);
    engine.sleep_count++;
    (void)pthread_cond_broadcast(&engine.changed);
    while (engine.ended_count == 0 && !engine.woken)
        (void)pthread_cond_wait(&engine.changed, &engine.lock);
    engine.woken = false;
    count = engine.ended_count;
    assert_true(count <= piece_count_max);
    for (uint32_t i = 0; i < count; i++)
        pieces_out[i] = engine.ended[i];
    engine.ended_count = 0;
    (void)pthread_mutex_unlock(&engine.lock);
    return count;
}

static void fake_wake(struct disk__engine *unused)
{
    (void)unused;
    (void)pthread_mutex_lock(&engine.lock);
    engine.woken = true;
    (void)pthread_cond_broadcast(&engine.changed);
    (void)pthread_mutex_unlock(&engine.lock);
}

static const struct disk__engine_ops fake = {
    .name = "fake", .create = fake_create, .destroy = fake_destroy, .begin = fake_begin,
    .wait = fake_wait, .wake = fake_wake,
};

/* ---- what a test does ---- */

#define READS_MAX 16

static struct disk_file *file;
static struct disk_reader *reader;
static struct disk_read reads[READS_MAX];
static _Alignas(DISK_ALIGN) char memory[8 * PIECE_BYTES];

static void start(uint32_t depth, uint32_t guess_depth)
{
    const struct disk_reader_options options = { .depth = depth, .guess_depth = guess_depth,
                                                 .piece_bytes = PIECE_BYTES };
    struct err err;

    memset(reads, 0, sizeof(reads));
    assert_int_equal(disk__reader_create_on(&fake, &options, &reader, &err), STATUS_OK);
}

/* Submits the read of this index, of so many pieces; its index is in the pieces' offset. */
static void submit(uint32_t index, enum disk_class class, uint32_t piece_count)
{
    reads[index].class = class;
    reads[index].extent_count = 1;
    reads[index].extents[0] = (struct disk_extent){
        .file = file, .offset_bytes = index * MIB, .size_bytes = piece_count * PIECE_BYTES,
        .dst = memory,
    };
    disk_read_submit(reader, &reads[index]);
}

/* Until the thread has begun all that it may: it then sleeps, and nothing wakes it. */
static void settle(void)
{
    uint32_t sleeps;

    (void)pthread_mutex_lock(&engine.lock);
    sleeps = engine.sleep_count;
    engine.woken = true;
    (void)pthread_cond_broadcast(&engine.changed);
    /* One wait may have been under way before it saw what was submitted; the second has not. */
    while (engine.sleep_count < sleeps + 2) {
        engine.woken = true;
        (void)pthread_cond_broadcast(&engine.changed);
        (void)pthread_cond_wait(&engine.changed, &engine.lock);
    }
    (void)pthread_mutex_unlock(&engine.lock);
}

/* What was begun, as text: each piece is the index of its read. */
static const char *begun(void)
{
    static char text[BEGUN_MAX + 1];
    static const char digits[] = "0123456789abcdef";
    uint32_t i;

    settle();
    (void)pthread_mutex_lock(&engine.lock);
    for (i = 0; i < engine.begun_count; i++)
        text[i] = engine.begun[i] != NULL ? digits[engine.begun[i]->offset_bytes / MIB] : '.';
    text[i] = '\0';
    (void)pthread_mutex_unlock(&engine.lock);
    return text;
}

/* Ends the n-th piece that was begun; 0 bytes or more, or -errno. */
static void end(uint32_t n, int32_t result)
{
    struct disk__piece *piece;

    (void)pthread_mutex_lock(&engine.lock);
    piece = n < engine.begun_count ? engine.begun[n] : NULL;
    if (piece == NULL)
        fail_msg("there is no piece %u in flight", (unsigned)n);
    else
        piece->result = result;
    engine.ended[engine.ended_count++] = piece;
    engine.begun[n] = NULL;
    (void)pthread_cond_broadcast(&engine.changed);
    (void)pthread_mutex_unlock(&engine.lock);
}

static void end_well(uint32_t n)
{
    end(n, (int32_t)PIECE_BYTES);
}

/* Ends all that is begun and that follows, and the reader. */
static void stop(void)
{
    for (uint32_t n = 0; begun()[n] != '\0'; n++) {
        if (begun()[n] != '.')
            end_well(n);
    }
    disk_reader_destroy(reader);
}

static void demands_go_first(void **state)
{
    (void)state;
    start(2, 2);
    submit(0, DISK_GUESS, 3);
    assert_string_equal(begun(), "00");
    submit(1, DISK_GUESS, 1);
    submit(2, DISK_DEMAND, 2);
    submit(3, DISK_DEMAND, 1);
    assert_string_equal(begun(), "00");
    end_well(0);
    assert_string_equal(begun(), ".02");
    end_well(1);
    end_well(2);
    assert_string_equal(begun(), "...23");
    end_well(3);
    assert_string_equal(begun(), "....30"); /* no demand has pieces left */
    stop();
    for (int i = 0; i < 4; i++) {
        assert_int_equal(disk_read_wait(reader, &reads[i], NULL), STATUS_OK);
        assert_int_equal(reads[i].bytes_read, reads[i].extents[0].size_bytes);
    }
}

static void guesses_keep_little_in_flight(void **state)
{
    (void)state;
    start(6, 2);
    submit(0, DISK_GUESS, 5);
    assert_string_equal(begun(), "00");
    submit(1, DISK_DEMAND, 8);
    assert_string_equal(begun(), "001111");
    submit(2, DISK_DEMAND, 1);
    for (uint32_t i = 0; i < 6; i++)
        end_well(i);
    assert_string_equal(begun(), "......11112"); /* five demands in flight: too many for a guess */
    for (uint32_t i = 6; i < 10; i++)
        end_well(i);
    assert_string_equal(begun(), "..........20");
    stop();
}

static void canceling(void **state)
{
    (void)state;
    start(2, 1);
    submit(0, DISK_DEMAND, 3);
    submit(1, DISK_DEMAND, 1);
    submit(2, DISK_GUESS, 1);
    assert_string_equal(begun(), "00");
    assert_true(disk_read_cancel(reader, &reads[1])); /* not started */
    assert_int_equal(reads[1].state, DISK_READ_CANCELED);
    assert_int_equal(disk_read_wait(reader, &reads[1], NULL), STATUS_CANCELED);
    assert_true(disk_read_cancel(reader, &reads[2]));
    disk_read_drop(reader, &reads[0]); /* two of three pieces started */
    assert_false(disk_read_is_done(&reads[0]));
    end_well(0);
    assert_string_equal(begun(), ".0");
    assert_false(disk_read_is_done(&reads[0]));
    end_well(1);
    assert_string_equal(begun(), "..");
    assert_true(disk_read_is_done(&reads[0]));
    assert_int_equal(disk_read_wait(reader, &reads[0], NULL), STATUS_CANCELED);
    submit(3, DISK_DEMAND, 2);
    assert_string_equal(begun(), "..33");
    disk_read_drop(reader, &reads[3]); /* all has been started: it is done as if nothing had been */
    end_well(2);
    end_well(3);
    assert_string_equal(begun(), "....");
    assert_false(disk_read_cancel(reader, &reads[3]));
    assert_int_equal(disk_read_wait(reader, &reads[3], NULL), STATUS_OK);
    assert_true(disk_read_cancel(reader, &reads[4])); /* idle */
    submit(1, DISK_DEMAND, 1); /* its storage may be used again */
    assert_string_equal(begun(), "....1");
    stop();
    assert_int_equal(reads[1].status, STATUS_OK);
}

static void promoting(void **state)
{
    struct disk_counters counters;

    (void)state;
    start(1, 1);
    submit(0, DISK_DEMAND, 1);
    submit(1, DISK_GUESS, 1);
    submit(2, DISK_GUESS, 2);
    submit(3, DISK_DEMAND, 1);
    disk_read_promote(reader, &reads[2]);
    disk_read_promote(reader, &reads[0]); /* a demand is one already */
    for (uint32_t n = 0; n < 5; n++) {
        (void)begun();
        end_well(n);
    }
    settle();
    disk_read_promote(reader, &reads[1]); /* it has ended */
    disk_reader_counters(reader, &counters);
    stop();
    assert_string_equal(reads[2].state == DISK_READ_DONE ? "done" : "", "done");
    assert_int_equal(counters.promoted_count, 1);
    assert_true(reads[3].began_ns <= reads[2].began_ns);
    assert_true(reads[2].ended_ns <= reads[1].began_ns);
    assert_int_equal(counters.classes[DISK_DEMAND].read_bytes, 4 * PIECE_BYTES);
    assert_int_equal(counters.classes[DISK_GUESS].read_bytes, PIECE_BYTES);
}

static void a_promoted_guess_uses_the_whole_depth(void **state)
{
    (void)state;
    start(4, 1);
    submit(0, DISK_GUESS, 6);
    assert_string_equal(begun(), "0");
    disk_read_promote(reader, &reads[0]);
    assert_string_equal(begun(), "0000");
    stop();
}

/* The rest of it is not started; the others go on. */
static void a_failure_stops_its_read_only(void **state)
{
    struct err err;

    (void)state;
    start(2, 1);
    submit(0, DISK_DEMAND, 4);
    submit(1, DISK_DEMAND, 1);
    assert_string_equal(begun(), "00");
    end(0, -ENXIO);
    assert_string_equal(begun(), ".01");
    assert_false(disk_read_is_done(&reads[0])); /* a piece may still write to its memory */
    end(1, -EIO);
    assert_string_equal(begun(), "..10"); /* EIO is tried again, also now */
    end(3, -EIO);
    assert_string_equal(begun(), "..1.");
    assert_int_equal(disk_read_wait(reader, &reads[0], &err), STATUS_IO);
    assert_non_null(strstr(err.message, strerror(ENXIO))); /* the first failure */
    assert_non_null(strstr(err.message, disk_file_path(file)));
    assert_non_null(strstr(err.message, "bytes at 0"));
    stop();
    assert_int_equal(reads[1].status, STATUS_OK);
}

static void interruptions_are_not_failures(void **state)
{
    (void)state;
    start(1, 1);
    submit(0, DISK_DEMAND, 1);
    for (uint32_t n = 0; n < 100; n++) {
        (void)begun();
        assert_int_equal(engine.begun[n]->stall_ns != 0, n > 20); /* it does not spin for long */
        end(n, n % 2 != 0 ? -EINTR : -EAGAIN);
    }
    stop();
    assert_int_equal(reads[0].status, STATUS_OK);
}

/* 4 blocks: 1 of them comes, then a part of one, then the rest. */
static void short_reads_go_on_from_whole_blocks(void **state)
{
    (void)state;
    start(1, 1);
    submit(0, DISK_DEMAND, 1);
    (void)begun();
    end(0, DISK_ALIGN);
    (void)begun();
    assert_int_equal(engine.begun[1]->offset_bytes, DISK_ALIGN);
    assert_int_equal(engine.begun[1]->size_bytes, 3 * DISK_ALIGN);
    end(1, DISK_ALIGN + 100);
    (void)begun();
    assert_int_equal(engine.begun[2]->offset_bytes, 2 * DISK_ALIGN);
    end(2, 2 * DISK_ALIGN);
    assert_string_equal(begun(), "...");
    assert_int_equal(disk_read_wait(reader, &reads[0], NULL), STATUS_OK);
    assert_int_equal(reads[0].bytes_read, PIECE_BYTES);
    stop();
}

static int open_file(void **state)
{
    char *const path = testing_file(100);
    struct err err;
    const bool good = path != NULL && disk_file_open(path, DISK_AUTO, &file, &err) == STATUS_OK;

    (void)state;
    if (path != NULL)
        (void)unlink(path);
    free(path);
    return good ? 0 : -1;
}

static int close_file(void **state)
{
    (void)state;
    disk_file_close(file);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(demands_go_first),
        cmocka_unit_test(guesses_keep_little_in_flight),
        cmocka_unit_test(canceling),
        cmocka_unit_test(promoting),
        cmocka_unit_test(a_promoted_guess_uses_the_whole_depth),
        cmocka_unit_test(a_failure_stops_its_read_only),
        cmocka_unit_test(interruptions_are_not_failures),
        cmocka_unit_test(short_reads_go_on_from_whole_blocks),
    };

    return cmocka_run_group_tests(tests, open_file, close_file);
}
