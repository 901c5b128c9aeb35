/* engine/batch.c - the arrays of one step, filled sequence by sequence.
 *
 * All memory is taken at the start, for the largest step there can be; filling allocates nothing.
 * The page table of a step is as wide as its longest sequence, so that a device is given no more
 * of it than it needs; rows that are shorter are filled up with page 0, which is never
 * looked at. */
#include "engine/internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum status engine__batch_init(struct engine__batch *batch, uint32_t row_count_max,
                               uint32_t sequence_count_max, uint32_t page_count_max,
                               uint32_t page_size, struct err *err)
{
    int32_t **const columns[] = { &batch->token_ids, &batch->positions, &batch->sequences,
                                  &batch->slots, &batch->logits_rows };

    *batch = (struct engine__batch){
        .row_count_max = row_count_max,
        .sequence_count_max = sequence_count_max,
        .page_count_max = page_count_max,
        .page_size = page_size,
    };
    batch->pages = calloc((size_t)sequence_count_max * page_count_max, sizeof(*batch->pages));
    for (size_t i = 0; i < sizeof(columns) / sizeof(columns[0]); i++) {
        *columns[i] = calloc(row_count_max, sizeof(int32_t));
        if (*columns[i] == NULL || batch->pages == NULL) {
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
        .logits_rows = batch->logits_rows,
    };
}

void engine__batch_add(struct engine__batch *batch, const int32_t *pages, uint32_t page_count,
                       uint32_t position, const int32_t *ids, uint32_t count,
                       enum engine__wanted wanted)
{
    struct model_step *step = &batch->step;
    const uint32_t sequence = step->sequence_count++;
    int32_t *table = batch->pages + (size_t)sequence * step->page_count_max;

    assert(sequence < batch->sequence_count_max);
    assert(count >= 1 && count <= batch->row_count_max - step->row_count);
    assert(page_count <= step->page_count_max);
    assert((position + count - 1) / batch->page_size < page_count);
    memcpy(table, pages, page_count * sizeof(*pages));
    memset(table + page_count, 0, (step->page_count_max - page_count) * sizeof(*pages));
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t row = step->row_count++, at = position + i;

        batch->token_ids[row] = ids[i];
        batch->positions[row] = (int32_t)at;
        batch->sequences[row] = (int32_t)sequence;
        batch->slots[row] = pages[at / batch->page_size] * (int32_t)batch->page_size +
                            (int32_t)(at % batch->page_size);
        if (wanted == ENGINE__WANTED_ALL || (wanted == ENGINE__WANTED_LAST && i == count - 1))
            batch->logits_rows[step->logits_row_count++] = (int32_t)row;
    }
}
