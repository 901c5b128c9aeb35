/* base/base_test.c - the small parts of base/: sizes, buffers, tables, UTF-8, JSON getters,
 * threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/map.h"
#include "base/nearest.h"
#include "base/size.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "base/utf8.h"

static void sizes_are_read_as_people_write_them(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {
        { "0", 0 },
        { "1024", 1024 },
        { "2GiB", 2 * GIB },
        { "16GB", 16000000000 },
        { "1.5 MiB", 3 * MIB / 2 },
        { "3G", 3 * GIB },
        { "512k", 512 * KIB },
        { ".5K", 512 },
    };
    static const char *const bad[] = { "", "G", "-1", "12XB", "1e300G", "nan", "1 2" };
    uint64_t bytes;
    struct err err;

    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_int_equal(size_parse(good[i].text, "--x", &bytes, &err), STATUS_OK);
        assert_int_equal(bytes, good[i].bytes);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(size_parse(bad[i], "--x", &bytes, &err), STATUS_BAD_INPUT);
        assert_non_null(strstr(err.message, "--x"));
    }
}

static void sizes_are_written_as_people_write_them(void **state)
{
    static const struct {
        uint64_t bytes;
        const char *text;
    } all[] = {
        { 0, "0 bytes" },         { 1, "1 byte" },         { 2, "2 bytes" },
        { 1023, "1023 bytes" },   { KIB, "1.00 KiB" },     { 12 * KIB, "12.0 KiB" },
        { 640 * MIB, "640 MiB" }, { 3 * GIB, "3.00 GiB" },
    };
    char text[24];

    (void)state;
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        assert_string_equal(size_format(all[i].bytes, text, sizeof(text)), all[i].text);
}

static void buffers_stop_at_their_limit(void **state)
{
    struct buf buf;
    struct err err;

    (void)state;
    buf_init(&buf, 10);
    assert_int_equal(buf_append(&buf, "12345", 5, &err), STATUS_OK);
    assert_int_equal(buf_printf(&buf, &err, "%d", 67890), STATUS_OK);
    assert_string_equal(buf.data, "1234567890");
    assert_int_equal(buf_append(&buf, "x", 1, &err), STATUS_NO_MEMORY);
    assert_int_equal(buf_append(&buf, "x", SIZE_MAX, &err), STATUS_NO_MEMORY);
    assert_string_equal(buf.data, "1234567890");
    buf_deinit(&buf);
}

static void unknown_names_find_the_nearest(void **state)
{
    static const char *const names[] = { "temperature", "top_p", "top_k", "stop",
                                         "max_new_tokens" };
    static const struct {
        const char *name, *nearest;
    } cases[] = {
        { "temprature", "temperature" }, { "TOP-P", "top_p" }, { "max", "max_new_tokens" },
        { "tpo_k", "top_k" },            { "stops", "stop" },  { "", "stop" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_string_equal(nearest_name(cases[i].name, names, 5), cases[i].nearest);
    assert_null(nearest_name("x", names, 0));
    assert_int_equal(nearest_distance("kitten", "sitting"), 3);
    assert_int_equal(nearest_distance("ab", "ba"), 1);
    assert_int_equal(nearest_distance("", "abc"), 3);
}

static void tables_keep_every_key(void **state)
{
    struct map *map;
    uint64_t value;
    char key[32];

    (void)state;
    assert_int_equal(map_create(0, &map, NULL), STATUS_OK);
    for (uint64_t i = 0; i < 5000; i++) {
        const size_t size = (size_t)snprintf(key, sizeof(key), "key %d", (int)i);
        assert_int_equal(map_set(map, key, size, i, NULL), STATUS_OK);
    }
    assert_int_equal(map_set(map, "", 0, 77, NULL), STATUS_OK);
    assert_int_equal(map_set(map, "a\0b", 3, 78, NULL), STATUS_OK);
    assert_int_equal(map_set(map, "key 9", 5, 99, NULL), STATUS_OK);
    assert_int_equal(map_count(map), 5002);
    for (uint64_t i = 0; i < 5000; i++) {
        const size_t size = (size_t)snprintf(key, sizeof(key), "key %d", (int)i);
        assert_true(map_get(map, key, size, &value));
        assert_int_equal(value, i == 9 ? 99 : i);
    }
    assert_true(map_get(map, "a\0b", 3, &value));
    assert_int_equal(value, 78);
    assert_false(map_get(map, "a\0c", 3, &value));
    map_destroy(map);
}

static void utf8_follows_the_standard(void **state)
{
    /* Unicode 15, section 3.9, tables 3-8 to 3-11: how many U+FFFD, and where. */
    static const struct {
        const char *bytes;
        size_t size, bad;
    } cases[] = {
        { "a\xC0\xAF\xE0\x80\xBF\xF0\x81\x82" "A", 10, 8 },
        { "\xED\xA0\x80\xED\xBF\xBF\xED\xAF" "A", 9, 8 },
        { "\xF4\x91\x92\x93\xFF" "A\x80\xBF" "B", 9, 7 },
        { "\xE1\x80\xE2\xF0\x91\x92\xF1\xBF" "A", 9, 4 },
        { "\xF0\x9F\x98\x80z", 5, 0 },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        size_t bad = 0;
        for (size_t at = 0; at < cases[i].size;) {
            uint32_t code_point;
            bool valid;
            const size_t used = utf8_decode(cases[i].bytes + at, cases[i].size - at, &code_point,
                                            &valid);
            assert_true(used >= 1);
            bad += !valid;
            at += used;
        }
        assert_int_equal(bad, cases[i].bad);
    }
    for (uint32_t c = 0; c <= 0x10FFFF; c += c < 0x3000 ? 1 : 97) {
        char bytes[4];
        uint32_t back;
        bool valid;
        size_t size;
        if (c >= 0xD800 && c <= 0xDFFF)
            continue;
        size = utf8_encode(c, bytes);
        assert_int_equal(utf8_decode(bytes, size, &back, &valid), size);
        assert_true(valid && back == c);
        for (size_t cut = 1; cut < size; cut++)
            assert_int_equal(utf8_incomplete_tail(bytes, cut), cut);
        assert_int_equal(utf8_incomplete_tail(bytes, size), 0);
    }
    assert_int_equal(utf8_incomplete_tail("\x80\x80\x80\x80", 4), 0);
    assert_int_equal(utf8_incomplete_tail("ab\xE0\x80", 4), 0);
}

static void json_getters_say_what_was_wrong(void **state)
{
    const char *text = "{\"n\": 5, \"f\": 2.5, \"w\": 4.0, \"s\": \"x\", \"z\": null,"
                       " \"nul\": \"a\\u0000b\"}";
    json_t *json;
    struct err err;
    int64_t n = -7;
    double f = 0;
    const char *s = NULL;

    (void)state;
    assert_int_equal(json_read(text, strlen(text), "t.json", &json, &err), STATUS_OK);
    assert_int_equal(json_get_int(json, "missing", "t.json", 0, 9, &n, &err), STATUS_OK);
    assert_int_equal(json_get_int(json, "z", "t.json", 0, 9, &n, &err), STATUS_OK);
    assert_int_equal(n, -7);
    assert_int_equal(json_get_int_required(json, "z", "t.json", 0, 9, &n, &err), STATUS_BAD_INPUT);
    assert_int_equal(json_get_int(json, "n", "t.json", 0, 9, &n, &err), STATUS_OK);
    assert_int_equal(n, 5);
    assert_int_equal(json_get_int(json, "w", "t.json", 0, 9, &n, &err), STATUS_OK);
    assert_int_equal(n, 4);
    assert_int_equal(json_get_int(json, "n", "t.json", 6, 9, &n, &err), STATUS_BAD_INPUT);
    assert_string_equal(err.message, "t.json: \"n\" is 5, it must be from 6 to 9");
    assert_int_equal(json_get_int(json, "f", "t.json", 0, 9, &n, &err), STATUS_BAD_INPUT);
    assert_int_equal(json_get_double(json, "f", "t.json", 0, 9, &f, &err), STATUS_OK);
    assert_true(f == 2.5);
    assert_int_equal(json_get_string(json, "n", "t.json", &s, &err), STATUS_BAD_INPUT);
    assert_string_equal(err.message, "t.json: \"n\" is an integer, a string is wanted");
    assert_int_equal(json_get_string(json, "nul", "t.json", &s, &err), STATUS_BAD_INPUT);
    json_decref(json);
    assert_int_equal(json_read("{\"a\":1,\"a\":2}", 13, "t.json", &json, &err), STATUS_BAD_INPUT);
    assert_int_equal(json_read("[1,", 3, "t.json", &json, &err), STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "line 1"));
}

static void errors_stay_one_line_of_utf8(void **state)
{
    struct err err;
    char name[2 * sizeof(err.message)];

    (void)state;
    assert_int_equal(err_set(&err, STATUS_IO, "'a\n\x7F\x1B[31m\xFF\xC3\xA9\xE2\x82' is %d", 5),
                     STATUS_IO);
    assert_string_equal(err.message, "'a??" "?[31m?\xC3\xA9?" "?' is 5");
    memset(name, 'x', sizeof(name));
    memcpy(name + sizeof(err.message) - 2, "\xC3\xA9", 3); /* cut between the two */
    (void)err_set(&err, STATUS_IO, "%s", name);
    assert_int_equal(err.message[sizeof(err.message) - 2], '?');
    assert_int_equal(err_prefix(&err, STATUS_IO, "\t%s", "b"), STATUS_IO);
    assert_memory_equal(err.message, "?b: xxx", 7);
}

static void count_task(void *context, size_t index, uint32_t thread_index)
{
    (void)thread_index;
    ((uint32_t *)context)[index]++;
}

static void pools_run_each_task_once(void **state)
{
    enum { TASKS = 97 };

    (void)state;
    for (uint32_t threads = 1; threads <= 4; threads++) {
        struct thread_pool *pool;
        uint32_t counts[TASKS] = { 0 };
        assert_int_equal(thread_pool_create(threads, &pool, NULL), STATUS_OK);
        for (uint32_t round = 1; round <= 200; round++) {
            thread_pool_run(pool, round % TASKS, count_task, counts);
            thread_pool_run(pool, TASKS, count_task, counts);
        }
        for (uint32_t i = 0; i < TASKS; i++) {
            uint32_t wanted = 200;
            for (uint32_t round = 1; round <= 200; round++)
                wanted += i < round % TASKS;
            assert_int_equal(counts[i], wanted);
        }
        thread_pool_destroy(pool);
    }
}

static void sleeping_never_returns_early(void **state)
{
    const uint64_t deadline_ns = clock_now_ns() + 300000;

    (void)state;
    clock_sleep_until_ns(deadline_ns);
    assert_true(clock_now_ns() >= deadline_ns);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_read_as_people_write_them),
        cmocka_unit_test(sizes_are_written_as_people_write_them),
        cmocka_unit_test(buffers_stop_at_their_limit),
        cmocka_unit_test(unknown_names_find_the_nearest),
        cmocka_unit_test(tables_keep_every_key),
        cmocka_unit_test(utf8_follows_the_standard),
        cmocka_unit_test(json_getters_say_what_was_wrong),
        cmocka_unit_test(errors_stay_one_line_of_utf8),
        cmocka_unit_test(pools_run_each_task_once),
        cmocka_unit_test(sleeping_never_returns_early),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
