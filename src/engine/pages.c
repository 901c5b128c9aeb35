/* engine/pages.c - the free pages of the KV cache: a stack.
 *
 * A request's pages are taken all at once when it is admitted and given back all at once when it
 * ends, so there is nothing to plan: what was started can be finished (engine.h). The page that
 * was given back last is taken first, for it may still be in a processor's cache. */
#include "engine/internal.h"

#include <assert.h>
#include <stdlib.h>

enum status engine__pages_init(struct engine__pages *pages, uint32_t page_count, struct err *err)
{
    assert(page_count > 0 && page_count <= INT32_MAX);
    *pages = (struct engine__pages){ .page_count = page_count, .free_count = page_count };
    pages->free_ids = calloc(page_count, sizeof(*pages->free_ids));
    pages->taken = calloc(page_count, sizeof(*pages->taken));
    if (pages->free_ids == NULL || pages->taken == NULL) {
        engine__pages_deinit(pages);
        return err_set(err, STATUS_NO_MEMORY, "no memory for a list of %u pages", page_count);
    }
    for (uint32_t i = 0; i < page_count; i++)
        pages->free_ids[i] = (int32_t)(page_count - 1 - i);
    return STATUS_OK;
}

void engine__pages_deinit(struct engine__pages *pages)
{
    free(pages->free_ids);
    free(pages->taken);
    *pages = (struct engine__pages){ 0 };
}

bool engine__pages_take(struct engine__pages *pages, uint32_t count, int32_t *ids_out)
{
    if (count > pages->free_count)
        return false;
    for (uint32_t i = 0; i < count; i++) {
        const int32_t id = pages->free_ids[--pages->free_count];
        assert(!pages->taken[id]);
        pages->taken[id] = true;
        ids_out[i] = id;
    }
    return true;
}

void engine__pages_give(struct engine__pages *pages, const int32_t *ids, uint32_t count)
{
    assert(count <= pages->page_count - pages->free_count);
    for (uint32_t i = count; i-- > 0;) {
        assert(ids[i] >= 0 && (uint32_t)ids[i] < pages->page_count);
        assert(pages->taken[ids[i]]);
        pages->taken[ids[i]] = false;
        pages->free_ids[pages->free_count++] = ids[i];
    }
}
