/* engine/pages.c - the free pages of the KV cache: a stack for each kind of layers.
 *
 * A request's pages are taken all at once when it is admitted and given back all at once when it
 * ends, so there is nothing to plan: what was started can be finished (engine.h). The page that
 * was given back last is taken first, for it may still be in a processor's cache. Pages of layers
 * with a window are not given back while a sequence grows: it uses them in turn, so that it holds
 * from the start what it will hold at most. */
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

enum status engine__cache_init(struct engine__cache *cache, const struct engine_pages *count,
                               struct err *err)
{
    enum status st = engine__pages_init(&cache->all, count->all, err);

    cache->window = (struct engine__pages){ 0 };
    if (st == STATUS_OK && count->window > 0)
        st = engine__pages_init(&cache->window, count->window, err);
    return st;
}

void engine__cache_deinit(struct engine__cache *cache)
{
    engine__pages_deinit(&cache->all);
    engine__pages_deinit(&cache->window);
}

struct engine_pages engine__cache_free(const struct engine__cache *cache)
{
    return (struct engine_pages){ cache->all.free_count, cache->window.free_count };
}

bool engine__pages_fit(const struct engine_pages *count, const struct engine_pages *room)
{
    return count->all <= room->all && count->window <= room->window;
}

enum status engine__places_init(struct engine__places *places, const struct engine_pages *count,
                                struct err *err)
{
    *places = (struct engine__places){ .count = *count };
    places->all = calloc(count->all, sizeof(*places->all));
    if (count->window > 0)
        places->window = calloc(count->window, sizeof(*places->window));
    if (places->all == NULL || (count->window > 0 && places->window == NULL)) {
        engine__places_deinit(places);
        return err_set(err, STATUS_NO_MEMORY, "no memory for a list of %u pages",
                       count->all + count->window);
    }
    return STATUS_OK;
}

void engine__places_deinit(struct engine__places *places)
{
    assert(!places->is_taken);
    free(places->all);
    free(places->window);
    *places = (struct engine__places){ 0 };
}

void engine__places_take(struct engine__places *places, struct engine__cache *cache)
{
    const bool all = engine__pages_take(&cache->all, places->count.all, places->all);
    const bool window =
        engine__pages_take(&cache->window, places->count.window, places->window);

    assert(all && window && !places->is_taken);
    places->is_taken = all && window;
}

void engine__places_give(struct engine__places *places, struct engine__cache *cache)
{
    if (!places->is_taken)
        return;
    engine__pages_give(&cache->all, places->all, places->count.all);
    engine__pages_give(&cache->window, places->window, places->count.window);
    places->is_taken = false;
}
