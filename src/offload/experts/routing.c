/* offload/experts/routing.c - what a mixture's routers choose: remembered, and made use of.
 *
 *     file --read--> counts, trace --rehearse--> share of misses, for the forecast
 *                         |   |  \--order of favourites--> which are loaded at the start, and which
 *                         |   |                            are at home on the host
 *     each step --note----+   +--written when the offload ends
 *
 * A rehearsal runs the expert cache itself, as large as the plan makes it and without moving a
 * byte, over the tokens of the trace: the first half only fills it, the second half is counted. So
 * it knows favourites, repetition, and what the cache makes of them.
 *
 * Noted is the first row of every step that is not streamed; more would be other requests', whose
 * turns are not a sequence. Counts are of all rows. Owner: the engine's thread. */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "offload/experts/internal.h"
#include "offload/experts/routing_file.h"
#include "offload/home/share.h"

#define REHEARSED_MIN 16  /* tokens in a trace, below which nothing is said of it */
#define NEW_MIN 8         /* tokens noted, below which the file stays as it is */

struct offload__routing {
    struct routing_data data;
    struct cache_hash layout;
    char *folder;             /* for its file */
    uint32_t *layers;         /* [data.layer_count]: the model's number of each */
    uint16_t *choices;        /* [data.layer_count][top_k] of the token that is under way */
    uint32_t noted_layers;    /* of it; more than there are: it is not to be noted */
    uint64_t noted_tokens;    /* since the start */
    uint32_t *order;          /* [layer_count * expert_count]: layer * expert_count + expert, by
                                 falling count */
};

struct favourite {
    uint32_t count, key;
};

static int by_count(const void *a, const void *b)
{
    const struct favourite *first = a, *second = b;

    if (first->count != second->count)
        return first->count > second->count ? -1 : 1;
    return first->key < second->key ? -1 : first->key > second->key;
}

static enum status order_make(struct offload__routing *routing, struct err *err)
{
    const struct routing_data *data = &routing->data;
    const size_t count = (size_t)data->layer_count * data->expert_count;
    struct favourite *favourites = calloc(count, sizeof(*favourites));

    routing->order = calloc(count, sizeof(*routing->order));
    if (favourites == NULL || routing->order == NULL) {
        free(favourites);
        return err_set(err, STATUS_NO_MEMORY, "no memory to order %zu experts", count);
    }
    for (size_t i = 0; i < count; i++)
        favourites[i] = (struct favourite){ data->counts[i], (uint32_t)i };
    qsort(favourites, count, sizeof(*favourites), by_count);
    for (size_t i = 0; i < count; i++)
        routing->order[i] = favourites[i].key;
    free(favourites);
    return STATUS_OK;
}

static void routing_destroy(struct offload__routing *routing)
{
    if (routing == NULL)
        return;
    routing_data_deinit(&routing->data);
    free(routing->order);
    free(routing->choices);
    free(routing->layers);
    free(routing->folder);
    free(routing);
}

static enum status routing_create(struct offload *offload, uint32_t layer_count, struct err *err)
{
    const uint32_t top_k = offload->options.expert_top_k;
    struct offload__routing *routing = calloc(1, sizeof(*routing));
    char what[96];
    enum status st;
    uint32_t ordinal = 0;

    if (routing == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for what routers choose");
    offload->routing = routing;
    (void)snprintf(what, sizeof(what), "routing %" PRIu32 " %" PRIu32 " %" PRIu32, layer_count,
                   offload->expert_count, top_k);
    routing->layout = cache_hash_of(what, strlen(what));
    st = routing_data_init(&routing->data, layer_count, offload->expert_count, top_k, err);
    if (st != STATUS_OK)
        return st;
    routing->folder = strdup(offload->options.cache_dir);
    routing->layers = calloc(layer_count, sizeof(*routing->layers));
    routing->choices = calloc((size_t)layer_count * top_k, sizeof(*routing->choices));
    if (routing->folder == NULL || routing->layers == NULL || routing->choices == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for what routers choose");
    for (uint32_t layer = 0; layer < offload->layer_count; layer++) {
        if (offload->expert_units[layer] != OFFLOAD_NO_UNIT)
            routing->layers[ordinal++] = layer;
    }
    return STATUS_OK;
}

/* Where the choices of the checkpoint that serves, which an update may have brought, are kept. The
 * caller frees *path_out. */
static enum status file_find(const struct offload *offload, char **path_out,
                             struct cache_hash *fingerprint_out, struct err *err)
{
    const struct offload__routing *routing = offload->routing;
    const struct ckpt *ckpt = offload->options.ckpt;
    const enum status st = offload__fingerprint(ckpt, &routing->layout, fingerprint_out, err);

    return st == STATUS_OK ? cache_path(routing->folder, ckpt_path(ckpt), &routing->layout,
                                        "routing", path_out, err)
                           : st;
}

/* Reads what was remembered; a file that is missing or bad is none. */
static enum status routing_read(struct offload *offload, struct err *err)
{
    struct offload__routing *routing = offload->routing;
    struct cache_hash fingerprint;
    char *path = NULL;
    struct err why;
    enum status st = file_find(offload, &path, &fingerprint, err);

    if (st != STATUS_OK)
        return st;
    st = routing_file_read(path, &fingerprint, &routing->data, &why);
    free(path);
    if (st == STATUS_OK)
        return routing->data.count_sum > 0 ? order_make(routing, err) : STATUS_OK;
    log_line(offload->log, LOG_DEBUG, "routers' choices: %s", why.message);
    return STATUS_OK;
}

void offload__routing_open(struct offload *offload)
{
    const struct offload_options *options = &offload->options;
    uint32_t layer_count = 0;
    enum status st;
    struct err why;

    for (uint32_t layer = 0; layer < offload->layer_count; layer++)
        layer_count += offload->expert_units[layer] != OFFLOAD_NO_UNIT;
    if (options->cache_dir == NULL || options->ckpt == NULL || layer_count == 0 ||
        options->expert_top_k == 0 || options->expert_top_k > offload->expert_count)
        return;
    st = routing_create(offload, layer_count, &why);
    if (st == STATUS_OK)
        st = routing_read(offload, &why);
    if (st == STATUS_OK)
        return;
    log_line(offload->log, LOG_INFO, "%s", why.message);
    routing_destroy(offload->routing);
    offload->routing = NULL;
}

void offload__routing_save(struct offload *offload)
{
    struct offload__routing *routing = offload->routing;
    struct cache_hash fingerprint;
    char *path = NULL;
    struct err why;
    enum status st;

    if (routing == NULL || offload->options.forgets || routing->noted_tokens < NEW_MIN ||
        offload__share_rank(offload) != 0)
        return;
    routing->noted_tokens = 0;
    st = file_find(offload, &path, &fingerprint, &why);
    if (st == STATUS_OK)
        st = routing_file_write(path, &fingerprint, &routing->data, &why);
    free(path);
    if (st != STATUS_OK)
        log_line(offload->log, LOG_INFO, "what routers chose is not remembered: %s", why.message);
}

void offload__routing_close(struct offload *offload)
{
    routing_destroy(offload->routing);
    offload->routing = NULL;
}

void offload__routing_forget(struct offload *offload)
{
    struct offload__routing *routing = offload->routing;

    if (routing == NULL)
        return;
    routing_data_clear(&routing->data);
    routing->noted_tokens = 0;
    free(routing->order);
    routing->order = NULL;
}

/* -- noting ----------------------------------------------------------------------------------- */

void offload__routing_pass(struct offload *offload, bool streams)
{
    if (offload->routing != NULL)
        offload->routing->noted_layers = streams ? UINT32_MAX : 0;
}

void offload__routing_note(struct offload *offload, uint32_t ordinal, const int32_t *ids,
                           uint32_t row_count)
{
    struct offload__routing *routing = offload->routing;
    uint32_t top_k;

    if (routing == NULL || routing->noted_layers != ordinal)
        return;
    top_k = routing->data.top_k;
    for (uint32_t j = 0; j < top_k; j++)
        routing->choices[ordinal * top_k + j] = (uint16_t)ids[j];
    for (uint32_t i = 0; i < row_count * top_k; i++)
        routing_data_count(&routing->data, ordinal, (uint32_t)ids[i]);
    if (++routing->noted_layers < routing->data.layer_count)
        return;
    routing_data_push(&routing->data, routing->choices);
    routing->noted_tokens++;
}

/* -- use -------------------------------------------------------------------------------------- */

const uint32_t *offload__routing_order(const struct offload *offload)
{
    return offload->routing != NULL ? offload->routing->order : NULL;
}

double offload__routing_rate(const struct offload *offload, uint32_t key)
{
    const struct routing_data *data = &offload->routing->data;
    const double tokens = (double)data->count_sum / data->layer_count / data->top_k;
    const double rate = tokens > 0 ? data->counts[key] / tokens : 0;

    return rate < 1 ? rate : 1;
}

size_t offload__routing_unit(const struct offload *offload, uint32_t key)
{
    const struct offload__routing *routing = offload->routing;

    return offload->expert_units[routing->layers[key / routing->data.expert_count]] +
           key % routing->data.expert_count;
}

static void rehearse_preload(const struct offload *offload, struct expert_cache *cache)
{
    const uint32_t expert_count = offload->expert_count;
    const struct offload__routing *routing = offload->routing;
    const size_t count = (size_t)routing->data.layer_count * expert_count;

    for (size_t i = 0; routing->order != NULL && i < count; i++) {
        const uint32_t key = routing->order[i];
        struct expert_place place;

        if (routing->data.counts[key] == 0)
            return;
        place = expert_cache_preload(cache, key / expert_count, key % expert_count,
                                     offload__routing_rate(offload, key));
        if (place.answer == EXPERT_NO_ROOM)
            return;
        expert_cache_arrived(cache, place.slot);
    }
}

/* One layer of a token: first what is there, as in experts.c. Counts when `counted`. */
static void rehearse_layer(const struct offload *offload, struct expert_cache *cache,
                           uint32_t ordinal, const uint16_t *choices,
                           struct offload__rehearsal *counted)
{
    const uint32_t top_k = offload->routing->data.top_k, expert_count = offload->expert_count;
    uint32_t slots[OFFLOAD_TOP_K_MAX] = { 0 };

    expert_cache_layer_begin(cache, ordinal);
    for (int missing = 0; missing < 2; missing++) {
        for (uint32_t j = 0; j < top_k; j++) {
            const bool is_there =
                expert_cache_find(cache, ordinal, choices[j]) != EXPERT_NO_SLOT;
            struct expert_place place;
            size_t unit;

            if (is_there == (missing != 0))
                continue; /* what was missing has a slot once it has been asked for */
            place = expert_cache_demand(cache, choices[j]);
            slots[j] = place.slot;
            if (place.answer == EXPERT_MISS)
                expert_cache_arrived(cache, place.slot);
            if (counted == NULL)
                continue;
            counted->asked_count++;
            unit = offload__routing_unit(offload, ordinal * expert_count + choices[j]);
            if (place.answer == EXPERT_MISS) {
                counted->missed_count++;
                counted->missed_bytes[offload->units[unit].home] +=
                    (double)offload->units[unit].size_bytes;
            }
        }
    }
    for (uint32_t j = 0; j < top_k; j++)
        expert_cache_unpin(cache, slots[j]);
}

void offload__routing_rehearse(struct offload *offload)
{
    const struct offload__routing *routing = offload->routing;
    struct offload__rehearsal *rehearsal = &offload->rehearsal;
    struct expert_cache_desc desc;
    struct expert_cache *cache = NULL;
    uint32_t counted_count;

    *rehearsal = (struct offload__rehearsal){ 0 };
    if (routing == NULL || routing->data.trace_count < REHEARSED_MIN ||
        offload->sizes.expert_slot_count == 0 || routing->data.top_k > OFFLOAD_TOP_K_MAX)
        return;
    desc = offload__experts_cache_desc(offload, routing->data.layer_count);
    if (expert_cache_create(&desc, &cache, NULL) != STATUS_OK)
        return;
    rehearse_preload(offload, cache);
    counted_count = routing->data.trace_count - routing->data.trace_count / 2;
    for (uint32_t i = 0; i < routing->data.trace_count; i++) {
        const uint16_t *choices = routing_data_token(&routing->data, i);
        const bool counts = i >= routing->data.trace_count - counted_count;

        for (uint32_t ordinal = 0; ordinal < routing->data.layer_count; ordinal++)
            rehearse_layer(offload, cache, ordinal, choices + ordinal * routing->data.top_k,
                           counts ? rehearsal : NULL);
    }
    expert_cache_destroy(cache);
    rehearsal->token_count = counted_count;
}
