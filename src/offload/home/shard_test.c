/* offload/home/shard_test.c - a record is divided without a gap, an overlap or a lump, and gathered
 * so that no two ranks read the same one at once. Every number of ranks up to 9, odd sizes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>
#include <cmocka.h>

#include "offload/home/shard.h"

#define RANKS_MAX 9
#define GRAIN OFFLOAD_SHARD_GRAIN

static const uint64_t sizes[] = {
    0, 1, 2, GRAIN - 1, GRAIN, GRAIN + 1, 2 * GRAIN, 3 * GRAIN - 7, 5 * GRAIN, 7 * GRAIN + 3,
    8 * GRAIN, 9 * GRAIN, 10 * GRAIN - 1, 12288, 99991, 1 << 20, (1 << 20) + 13,
    UINT64_C(5650000001), UINT64_MAX - GRAIN, UINT64_MAX,
};
#define SIZE_COUNT (sizeof(sizes) / sizeof(sizes[0]))

static void shards_tile_the_record(void **state)
{
    (void)state;
    for (size_t i = 0; i < SIZE_COUNT; i++) {
        for (uint32_t n = 1; n <= RANKS_MAX; n++) {
            uint64_t end_bytes = 0;

            for (uint32_t rank = 0; rank < n; rank++) {
                const struct offload__shard shard = offload__shard(sizes[i], n, rank);

                assert_int_equal(shard.offset_bytes, end_bytes);
                if (shard.size_bytes > 0)
                    assert_int_equal(shard.offset_bytes % GRAIN, 0);
                end_bytes += shard.size_bytes;
            }
            assert_int_equal(end_bytes, sizes[i]);
        }
    }
}

static void shards_differ_by_a_grain_at_most(void **state)
{
    (void)state;
    for (size_t i = 0; i < SIZE_COUNT - 2; i++) {
        for (uint32_t n = 1; n <= RANKS_MAX; n++) {
            uint64_t least = UINT64_MAX, most = 0;

            for (uint32_t rank = 0; rank < n; rank++) {
                const uint64_t room = offload__shard_room(offload__shard(sizes[i], n, rank));

                assert_int_equal(room % GRAIN, 0);
                least = room < least ? room : least;
                most = room > most ? room : most;
            }
            assert_true(most - least <= GRAIN);
        }
    }
}

static void ranks_without_a_grain_have_nothing(void **state)
{
    (void)state;
    for (uint32_t rank = 0; rank < 9; rank++)
        assert_int_equal(offload__shard(3 * GRAIN - 7, 9, rank).size_bytes,
                         rank < 2 ? GRAIN : rank == 2 ? GRAIN - 7 : 0);
}

static void each_step_reads_every_rank_once(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= RANKS_MAX; n++) {
        for (uint32_t rank = 0; rank < n; rank++) {
            bool read[RANKS_MAX] = { false };

            assert_int_equal(offload__shard_source(n, rank, 0), rank); /* its own first */
            for (uint32_t step = 0; step < n; step++)
                read[offload__shard_source(n, rank, step)] = true;
            for (uint32_t other = 0; other < n; other++)
                assert_true(read[other]);
        }
        for (uint32_t step = 0; step < n; step++) {
            bool read[RANKS_MAX] = { false };

            for (uint32_t rank = 0; rank < n; rank++) {
                const uint32_t source = offload__shard_source(n, rank, step);

                assert_false(read[source]);
                read[source] = true;
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shards_tile_the_record),
        cmocka_unit_test(shards_differ_by_a_grain_at_most),
        cmocka_unit_test(ranks_without_a_grain_have_nothing),
        cmocka_unit_test(each_step_reads_every_rank_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
