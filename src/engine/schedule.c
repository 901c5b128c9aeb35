/* engine/schedule.c - who gets rows in the next step.
 *
 * Decoding requests come first, one row each: their clients are reading, and a row more costs a
 * step little where weights must be read anyway (Sarathi-Serve, arXiv 2403.02310, section 4). What
 * is left goes to prompts in the order of admission, so that the first finishes soonest.
 *
 * Nobody starves: there are never more requests than rows, so beside a prompt at most rows - 1
 * requests decode, and the oldest prompt gets at least one row in every step. */
#include "engine/internal.h"

#include <assert.h>

uint32_t engine__schedule(struct engine__turn *turns, uint32_t count, uint32_t row_count_max,
                          uint32_t prefill_chunk)
{
    uint32_t left = row_count_max;

    assert(count <= row_count_max);
    assert(prefill_chunk >= 1);
    for (uint32_t i = 0; i < count; i++) {
        turns[i].row_count = turns[i].prompt_left == 0 ? 1 : 0;
        left -= turns[i].row_count;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t rows = turns[i].prompt_left;

        if (rows > prefill_chunk)
            rows = prefill_chunk;
        if (rows > left)
            rows = left;
        turns[i].row_count += rows;
        left -= rows;
    }
    return row_count_max - left;
}
