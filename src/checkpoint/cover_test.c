/* checkpoint/cover_test.c - whether boxes fill a range exactly once, against counting.
 *
 * Method: small random boxes, good ones and spoilt ones; each element's visits are counted. Ranges
 * that pass the bitmap's window are tried with interleaved boxes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "checkpoint/cover.h"

#define ELEMENTS_MAX 4096
#define BOXES_MAX 4

/* xorshift64 (Marsaglia 2003): the same numbers on every machine. */
static uint64_t random_below(uint64_t *seed, uint64_t limit)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return (*seed >> 11) % limit;
}

/* Adds the box to the counts; returns the element behind the last it holds. */
static uint64_t count_box(const struct cover_box *box, uint8_t *visits)
{
    uint64_t end = 0;

    for (uint64_t i = 0; i < box->count[0]; i++)
        for (uint64_t j = 0; j < box->count[1]; j++)
            for (uint64_t k = 0; k < box->count[2]; k++) {
                const uint64_t at = box->offset + i * box->stride[0] + j * box->stride[1] +
                                    k * box->stride[2];
                assert_true(at < ELEMENTS_MAX);
                visits[at] = visits[at] < 2 ? visits[at] + 1 : 2;
                end = at + 1 > end ? at + 1 : end;
            }
    return end;
}

static void check_against_counts(const struct cover_box *boxes, size_t box_count,
                                 uint64_t element_count)
{
    struct cover_box copies[BOXES_MAX];
    uint8_t visits[ELEMENTS_MAX] = { 0 };
    bool hole = false;
    bool twice = false;
    enum cover_result result;
    uint64_t element = 0;

    for (size_t i = 0; i < box_count; i++)
        (void)count_box(&boxes[i], visits);
    for (uint64_t i = 0; i < element_count; i++) {
        hole = hole || visits[i] == 0;
        twice = twice || visits[i] == 2;
    }
    memcpy(copies, boxes, box_count * sizeof(*boxes));
    assert_int_equal(cover_check(copies, box_count, element_count, &result, &element, NULL),
                     STATUS_OK);
    if (!hole && !twice) {
        assert_int_equal(result, COVER_EXACT);
        return;
    }
    assert_int_not_equal(result, COVER_EXACT);
    assert_true(element < element_count);
    assert_int_equal(visits[element], result == COVER_HOLE ? 0 : 2);
}

/* A range of [a][b][c] elements, cut along one dimension into boxes whose dimensions stand in any
 * order; then the same with one number changed. */
static void random_boxes_are_judged_as_counting_does(void **state)
{
    uint64_t seed = 88172645463325252;

    (void)state;
    for (size_t round = 0; round < 20000; round++) {
        const uint64_t shape[3] = { 1 + random_below(&seed, 6), 1 + random_below(&seed, 6),
                                    1 + random_below(&seed, 6) };
        const uint64_t strides[3] = { shape[1] * shape[2], shape[2], 1 };
        const size_t cut = random_below(&seed, 3);
        const uint64_t element_count = shape[0] * shape[1] * shape[2];
        struct cover_box boxes[BOXES_MAX];
        size_t box_count = 0;
        uint8_t visits[ELEMENTS_MAX] = { 0 };

        for (uint64_t from = 0; from < shape[cut]; box_count++) {
            const uint64_t left = shape[cut] - from;
            const uint64_t take =
                box_count == BOXES_MAX - 1 ? left : 1 + random_below(&seed, left);
            const size_t turn = random_below(&seed, 3);
            boxes[box_count].offset = from * strides[cut];
            for (size_t d = 0; d < 3; d++) {
                const size_t place = (d + turn) % 3;
                boxes[box_count].count[place] = d == cut ? take : shape[d];
                boxes[box_count].stride[place] = strides[d];
            }
            from += take;
        }
        check_against_counts(boxes, box_count, element_count);
        {
            struct cover_box *const spoilt = &boxes[random_below(&seed, box_count)];
            const size_t d = random_below(&seed, 3);
            switch (random_below(&seed, 3)) {
            case 0: spoilt->offset = random_below(&seed, element_count); break;
            case 1: spoilt->stride[d] = random_below(&seed, 8); break;
            default: spoilt->count[d] = 1 + random_below(&seed, 6); break;
            }
            if (count_box(spoilt, visits) <= element_count) /* boxes lie inside the range */
                check_against_counts(boxes, box_count, element_count);
        }
    }
}

/* The even elements, second_count odd ones, and one more at third_offset unless that is 0. */
static void check_interleaved(uint64_t element_count, uint64_t second_count, uint64_t third_offset,
                              enum cover_result wanted, uint64_t wanted_element)
{
    struct cover_box boxes[3] = {
        { 0, { 1, 1, (element_count + 1) / 2 }, { 0, 0, 2 } },
        { 1, { 1, 1, second_count }, { 0, 0, 2 } },
        { third_offset, { 1, 1, 1 }, { 0, 0, 0 } },
    };
    enum cover_result result;
    uint64_t element = 0;

    assert_int_equal(cover_check(boxes, third_offset == 0 ? 2 : 3, element_count, &result,
                                 &element, NULL),
                     STATUS_OK);
    assert_int_equal(result, wanted);
    if (wanted != COVER_EXACT)
        assert_int_equal(element, wanted_element);
}

static void long_ranges_are_judged_window_by_window(void **state)
{
    const uint64_t count = 2 * COVER_WINDOW_ELEMENTS + 1000;

    (void)state;
    check_interleaved(count, count / 2, 0, COVER_EXACT, 0);
    check_interleaved(count, count / 2 - 1, 0, COVER_HOLE, count - 1);
    check_interleaved(count, count / 2, COVER_WINDOW_ELEMENTS + 6, COVER_TWICE,
                      COVER_WINDOW_ELEMENTS + 6);
    check_interleaved(count, COVER_WINDOW_ELEMENTS / 2, 0, COVER_HOLE, COVER_WINDOW_ELEMENTS + 1);
}

static void nothing_fills_nothing(void **state)
{
    enum cover_result result;
    uint64_t element = 9;

    (void)state;
    assert_int_equal(cover_check(NULL, 0, 5, &result, &element, NULL), STATUS_OK);
    assert_int_equal(result, COVER_HOLE);
    assert_int_equal(element, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_boxes_are_judged_as_counting_does),
        cmocka_unit_test(long_ranges_are_judged_window_by_window),
        cmocka_unit_test(nothing_fills_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
