/* engine/pages_test.c - the page allocator: all or nothing, each page to one holder. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/internal.h"

static void taking_is_all_or_nothing(void **state)
{
    struct engine__pages pages;
    struct err err;
    int32_t ids[8] = { 0 };

    (void)state;
    assert_int_equal(engine__pages_init(&pages, 8, &err), STATUS_OK);
    assert_true(engine__pages_take(&pages, 5, ids));
    assert_false(engine__pages_take(&pages, 4, ids));
    assert_int_equal(pages.free_count, 3);
    assert_true(engine__pages_take(&pages, 3, ids + 5));
    assert_false(engine__pages_take(&pages, 1, ids));
    assert_true(engine__pages_take(&pages, 0, ids));
    engine__pages_give(&pages, ids, 8);
    assert_int_equal(pages.free_count, 8);
    engine__pages_deinit(&pages);
}

/* Takes and gives at random for a while; no page may have two holders, none may be lost. */
static void each_page_has_one_holder(void **state)
{
    enum { PAGES = 61, HOLDERS = 9, ROUNDS = 5000 };
    struct engine__pages pages;
    int32_t held[HOLDERS][PAGES];
    uint32_t counts[HOLDERS] = { 0 };
    uint64_t random = 1;
    struct err err;

    (void)state;
    assert_int_equal(engine__pages_init(&pages, PAGES, &err), STATUS_OK);
    for (int round = 0; round < ROUNDS; round++) {
        uint32_t owner_of[PAGES] = { 0 }, total = 0, holder, wanted;

        random = random * UINT64_C(6364136223846793005) + 1442695040888963407;
        holder = (uint32_t)(random >> 33) % HOLDERS;
        wanted = (uint32_t)(random >> 40) % 20;
        if (counts[holder] > 0) {
            engine__pages_give(&pages, held[holder], counts[holder]);
            counts[holder] = 0;
        } else {
            const bool fits = wanted <= pages.free_count;
            assert_int_equal(engine__pages_take(&pages, wanted, held[holder]), fits);
            counts[holder] = fits ? wanted : 0;
        }
        for (uint32_t i = 0; i < HOLDERS; i++) {
            total += counts[i];
            for (uint32_t j = 0; j < counts[i]; j++) {
                assert_in_range(held[i][j], 0, PAGES - 1);
                assert_int_equal(owner_of[held[i][j]], 0);
                owner_of[held[i][j]] = i + 1;
            }
        }
        assert_int_equal(total + pages.free_count, PAGES);
    }
    engine__pages_deinit(&pages);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(taking_is_all_or_nothing),
        cmocka_unit_test(each_page_has_one_holder),
    };

    return cmocka_run_group_tests_name("engine pages", tests, NULL, NULL);
}
