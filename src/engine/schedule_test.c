/* engine/schedule_test.c - what a schedule must never do: pass a limit, let anybody starve.
 *
 * Method: invented requests of random lengths, run through thousands of simulated steps under
 * random limits. The properties are checked, not one answer, so that better schedules still
 * pass. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/internal.h"

#define REQUESTS 40

struct fake {
    uint32_t prompt_left, new_left;
    uint32_t waited;   /* steps without a row while it was running */
};

static uint64_t next_random(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + 1442695040888963407;
    return *state >> 33;
}

static void decoding_goes_first_then_prompts_in_order(void **state)
{
    struct engine__turn turns[4] = { { .prompt_left = 10 }, { 0 }, { .prompt_left = 3 }, { 0 } };

    (void)state;
    assert_int_equal(engine__schedule(turns, 4, 8, 4), 8);
    assert_int_equal(turns[0].row_count, 4); /* cut to a chunk */
    assert_int_equal(turns[1].row_count, 1);
    assert_int_equal(turns[2].row_count, 2); /* cut to what was left */
    assert_int_equal(turns[3].row_count, 1);
    assert_int_equal(engine__schedule(turns, 4, 100, 100), 15);
    assert_int_equal(turns[0].row_count, 10);
    assert_int_equal(turns[2].row_count, 3);
    assert_int_equal(engine__schedule(turns, 4, 4, 100), 4);
    assert_int_equal(turns[0].row_count, 2);
    assert_int_equal(turns[2].row_count, 0);
    assert_int_equal(engine__schedule(NULL, 0, 4, 100), 0);
}

/* Checks one step and plays it; returns how many requests are left in `running`. */
static uint32_t play_step(struct fake *fakes, uint32_t *running, uint32_t count,
                          uint32_t row_count_max, uint32_t chunk)
{
    struct engine__turn turns[REQUESTS];
    uint32_t given, sum = 0, kept = 0;

    for (uint32_t i = 0; i < count; i++)
        turns[i] = (struct engine__turn){ .prompt_left = fakes[running[i]].prompt_left,
                                          .row_count = 12345 };
    given = engine__schedule(turns, count, row_count_max, chunk);
    assert_in_range(given, 1, row_count_max);
    for (uint32_t i = 0; i < count; i++) {
        struct fake *fake = &fakes[running[i]];

        sum += turns[i].row_count;
        if (fake->prompt_left == 0) {
            assert_int_equal(turns[i].row_count, 1);
            fake->new_left--;
        } else {
            assert_in_range(turns[i].row_count, 0,
                            fake->prompt_left < chunk ? fake->prompt_left : chunk);
            fake->waited += turns[i].row_count == 0;
            fake->prompt_left -= turns[i].row_count;
        }
        if (fake->prompt_left > 0 || fake->new_left > 0)
            running[kept++] = running[i];
    }
    assert_int_equal(sum, given);
    return kept;
}

static void everybody_finishes(void **state)
{
    uint64_t random = 7;

    (void)state;
    for (int round = 0; round < 300; round++) {
        const uint32_t row_count_max = 1 + (uint32_t)next_random(&random) % 40;
        const uint32_t running_max = 1 + (uint32_t)next_random(&random) % row_count_max;
        const uint32_t chunk = 1 + (uint32_t)next_random(&random) % 20;
        struct fake fakes[REQUESTS] = { 0 };
        uint32_t running[REQUESTS], running_count = 0, admitted = 0, steps = 0, work = 0;

        for (uint32_t i = 0; i < REQUESTS; i++) {
            fakes[i].prompt_left = 1 + (uint32_t)next_random(&random) % 100;
            fakes[i].new_left = 1 + (uint32_t)next_random(&random) % 30;
            work += fakes[i].prompt_left + fakes[i].new_left;
        }
        while (admitted < REQUESTS || running_count > 0) {
            while (running_count < running_max && admitted < REQUESTS)
                running[running_count++] = admitted++;
            running_count = play_step(fakes, running, running_count, row_count_max, chunk);
            /* Each step does at least one row of the work there is. */
            assert_true(++steps <= work);
        }
        /* While a prompt waits, older ones are computed: at least a row of theirs per step. */
        for (uint32_t i = 0; i < REQUESTS; i++)
            assert_true(fakes[i].waited <= i * 100);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decoding_goes_first_then_prompts_in_order),
        cmocka_unit_test(everybody_finishes),
    };

    return cmocka_run_group_tests_name("engine schedule", tests, NULL, NULL);
}
