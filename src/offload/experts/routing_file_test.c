/* offload/experts/routing_file_test.c - what routers chose comes back as it was written, or not at
 * all.
 *
 * Method: invented choices are written, read again and compared; then the file's bytes are changed,
 * cut and lengthened one by one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <unistd.h>

#include "offload/experts/routing_file.h"

#define LAYERS 3
#define EXPERTS 8
#define TOP_K 2

static const struct cache_hash mine = { { 1, 2, 3 } }, other = { { 1, 2, 4 } };

static void fill(struct routing_data *data, uint32_t token_count)
{
    struct err err;

    assert_int_equal(routing_data_init(data, LAYERS, EXPERTS, TOP_K, &err), STATUS_OK);
    for (uint32_t t = 0; t < token_count; t++) {
        uint16_t choices[LAYERS * TOP_K];

        for (uint32_t i = 0; i < LAYERS * TOP_K; i++) {
            choices[i] = (uint16_t)((t * 7 + i * 3) % EXPERTS);
            routing_data_count(data, i / TOP_K, choices[i]);
        }
        routing_data_push(data, choices);
    }
}

static void check_equal(const struct routing_data *a, const struct routing_data *b)
{
    assert_int_equal(a->trace_count, b->trace_count);
    assert_int_equal(a->count_sum, b->count_sum);
    assert_memory_equal(a->counts, b->counts, LAYERS * EXPERTS * sizeof(a->counts[0]));
    for (uint32_t i = 0; i < a->trace_count; i++)
        assert_memory_equal(routing_data_token(a, i), routing_data_token(b, i),
                            LAYERS * TOP_K * sizeof(uint16_t));
}

/* With fewer tokens than the trace holds, just as many, and more. */
static void what_is_written_is_read(void **state)
{
    static const uint32_t counts[] = { 0, 1, ROUTING_TRACE_TOKENS, 2 * ROUTING_TRACE_TOKENS + 5 };
    char folder[] = "/tmp/lighter-routing-test-XXXXXX", path[256];

    (void)state;
    assert_non_null(mkdtemp(folder));
    (void)snprintf(path, sizeof(path), "%s/a/b.routing", folder);
    for (size_t i = 0; i < 4; i++) {
        struct routing_data wrote, read;
        struct err err;

        fill(&wrote, counts[i]);
        fill(&read, 3); /* is forgotten */
        if (routing_file_write(path, &mine, &wrote, &err) != STATUS_OK ||
            routing_file_read(path, &mine, &read, &err) != STATUS_OK)
            fail_msg("%s", err.message);
        check_equal(&wrote, &read);
        assert_int_equal(routing_file_read(path, &other, &read, &err), STATUS_BAD_INPUT);
        assert_non_null(strstr(err.message, "another checkpoint"));
        assert_int_equal(read.count_sum + read.trace_count, 0);
        routing_data_deinit(&read);
        routing_data_deinit(&wrote);
    }
    assert_int_equal(unlink(path), 0);
    (void)snprintf(path, sizeof(path), "%s/a", folder);
    assert_int_equal(rmdir(path), 0); /* no temporary is left */
    assert_int_equal(rmdir(folder), 0);
}

static void no_byte_may_be_another(void **state)
{
    struct routing_data data, read;
    struct buf bytes;
    struct err err;

    (void)state;
    fill(&data, 5);
    fill(&read, 0);
    buf_init(&bytes, 1 << 20);
    assert_int_equal(routing_format(&data, &mine, &bytes, &err), STATUS_OK);
    for (size_t i = 0; i < bytes.size; i++) {
        bytes.data[i] ^= 16;
        assert_int_equal(routing_parse((const uint8_t *)bytes.data, bytes.size, &mine, &read, &err),
                         STATUS_BAD_INPUT);
        assert_int_equal(read.count_sum + read.trace_count, 0);
        bytes.data[i] ^= 16;
        assert_int_equal(routing_parse((const uint8_t *)bytes.data, i, &mine, &read, &err),
                         STATUS_BAD_INPUT);
    }
    assert_int_equal(buf_append(&bytes, "", 1, &err), STATUS_OK);
    assert_int_equal(routing_parse((const uint8_t *)bytes.data, bytes.size, &mine, &read, &err),
                     STATUS_BAD_INPUT);
    buf_deinit(&bytes);
    routing_data_deinit(&read);
    routing_data_deinit(&data);
}

/* A file with a right hash and an expert that there is not. */
static void experts_that_are_not_there_are_refused(void **state)
{
    struct routing_data data, read;
    struct buf bytes;
    struct err err;

    (void)state;
    fill(&data, 5);
    fill(&read, 0);
    data.trace[3] = EXPERTS;
    buf_init(&bytes, 1 << 20);
    assert_int_equal(routing_format(&data, &mine, &bytes, &err), STATUS_OK);
    assert_int_equal(routing_parse((const uint8_t *)bytes.data, bytes.size, &mine, &read, &err),
                     STATUS_BAD_INPUT);
    assert_non_null(strstr(err.message, "expert 8 of 8"));
    assert_int_equal(read.count_sum + read.trace_count, 0);
    buf_deinit(&bytes);
    routing_data_deinit(&read);
    routing_data_deinit(&data);
}

static void sizes_are_bounded(void **state)
{
    struct routing_data data;
    struct err err;

    (void)state;
    assert_int_equal(routing_data_init(&data, 1, ROUTING_EXPERTS_MAX + 1, 1, &err),
                     STATUS_UNAVAILABLE);
    assert_int_equal(routing_data_init(&data, 1u << 16, 1u << 10, 1, &err), STATUS_UNAVAILABLE);
    fill(&data, 0);
    for (uint32_t i = 0; i < (1u << 24) + 10; i++)
        routing_data_count(&data, 0, i % 2);
    assert_in_range(data.count_sum, (1u << 23) - 2, (1u << 23) + 12); /* halved once */
    assert_in_range(data.counts[0], (1u << 22) - 1, (1u << 22) + 6);
    routing_data_deinit(&data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(no_byte_may_be_another),
        cmocka_unit_test(experts_that_are_not_there_are_refused),
        cmocka_unit_test(sizes_are_bounded),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
