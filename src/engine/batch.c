/* engine/batch.c - the arrays of one step, filled sequence by sequence.
 *
 * All memory is taken at the start, for the largest step there can be; filling allocates nothing.
 * The page table of a step is as wide as its longest sequence, so that a device is given no more
 * of it than it needs; rows that are shorter are filled up with page 0, which is never
 * looked at. In layers with a window page j of a sequence is the ring's page j modulo its size; the
 * table says so at every j, so that no device needs to know. */
#include "engine/internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum status engine__batch_init(struct engine__batch *batch, uint32_t row_count_max,
                               uint32_t sequence_count_max, uint32_t page_count_max,
                               uint32_t page_size, bool has_windows, struct err *err)
{
    const size_t table_count = (size_t)sequence_count_max * page_count_max;
    const struct {
        int32_t **memory;
        size_t count;
    } all[] = {
        { &batch->token_ids, row_count_max },   { &batch->positions, row_count_max },
        { &batch->sequences, row_count_max },   { &batch->slots, row_count_max },
        { &batch->logits_rows, row_count_max }, { &batch->pages, table_count },
        { &batch->window_slots, has_windows ? row_count_max : 0 },
        { &batch->window_pages, has_windows ? table_count : 0 },
    };

    *batch = (struct engine__batch){
        .row_count_max = row_count_max,
        .sequence_count_max = sequence_count_max,
        .page_count_max = page_count_max,
        .page_size = page_size,
    };
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        if (all[i].count == 0)
            continue;
        *all[i].memory = calloc(all[i].count, sizeof(int32_t));
        if (*all[i].memory == NULL) {
            engine__batch_deinit(batch);
            return err_set(err, STATUS_NO_MEMORY,
                           "no memory for steps of %u rows and %u sequences of %u pages",
                           row_count_max, sequence_count_max, page_count_max);
        }
    }
    return STATUS_OK;
}

void engine__batch_deinit(struct engine__batch *batch)
{
    free(batch->token_ids);
    free(batch->positions);
    free(batch->sequences);
    free(batch->slots);
    free(batch->logits_rows);
    free(batch->pages);
    free(batch->window_slots);
    free(batch->window_pages);
    *batch = (struct engine__batch){ 0 };
}

void engine__batch_begin(struct engine__batch *batch, uint32_t page_count)
{
    assert(page_count >= 1 && page_count <= batch->page_count_max);
    batch->step = (struct model_step){
        .page_count_max = page_count,
        .token_ids = batch->token_ids,
        .positions = batch->positions,
        .sequences = batch->sequences,
        .slots = batch->slots,
        .pages = batch->pages,
        .window_slots = batch->window_slots,
        .window_pages = batch->window_pages,
        .logits_rows = batch->logits_rows,
    };
}

static int32_t slot_at(const struct engine__batch *batch, const int32_t *pages,
                       uint32_t page_count, uint32_t position)
{
    return pages[position / batch->page_size % page_count] * (int32_t)batch->page_size +
           (int32_t)(position % batch->page_size);
}

void engine__batch_add(struct engine__batch *batch, const struct engine__places *places,
                       uint32_t position, const int32_t *ids, uint32_t count,
                       enum engine__wanted wanted)
{
    struct model_step *step = &batch->step;
    const uint32_t sequence = step->sequence_count++;
    const uint32_t page_count = places->count.all, window_count = places->count.window;
    const size_t table_at = (size_t)sequence * step->page_count_max;
    int32_t *table = batch->pages + table_at;

    assert(sequence < batch->sequence_count_max);
    assert(count >= 1 && count <= batch->row_count_max - step->row_count);
    assert(page_count <= step->page_count_max);
    assert((position + count - 1) / batch->page_size < page_count);
    assert((batch->window_pages != NULL) == (window_count > 0));
    memcpy(table, places->all, page_count * sizeof(*table));
    memset(table + page_count, 0, (step->page_count_max - page_count) * sizeof(*table));
    for (uint32_t i = 0; window_count > 0 && i < step->page_count_max; i++)
        batch->window_pages[table_at + i] = places->window[i % window_count];
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t row = step->row_count++, at = position + i;

        batch->token_ids[row] = ids[i];
        batch->positions[row] = (int32_t)at;
        batch->sequences[row] = (int32_t)sequence;
        batch->slots[row] = slot_at(batch, places->all, page_count, at);
        if (window_count > 0)
            batch->window_slots[row] = slot_at(batch, places->window, window_count, at);
        if (wanted == ENGINE__WANTED_ALL || (wanted == ENGINE__WANTED_LAST && i == count - 1))
            batch->logits_rows[step->logits_row_count++] = (int32_t)row;
    }
}
