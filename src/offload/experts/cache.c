/* offload/experts/cache.c - see cache.h.
 *
 * Two arrays: what is known of each expert, whether it is there or not, and what each slot holds.
 * Time is counted twice: `tick` goes on with every use, `pass` with every pass over the layers.
 *
 * How often an expert is used is a rate in [0, 1]: uses per pass, averaged with weights that fall
 * by AGING for every pass that has gone by,
 *
 *     used in this pass:       rate = rate * AGING + (1 - AGING)
 *     not used for n passes:   rate = rate * AGING^n       (applied when the rate is next looked
 * at)
 *
 * once with a long memory and once with a short one. Which policy is used, and why, is in
 * docs/offloading.md; bench/expert_policies.c measures them. */
#include "offload/experts/cache.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#define NO_KEY UINT32_MAX
#define AGING_LONG 0.99
#define AGING_SHORT 0.8
#define RATE_MIN 1e-6
#define POWERS 256     /* passes that an expert is rarely unused for */
#define ONCE_SHARE 4 /* 2Q: the share of slots, 1 / ONCE_SHARE, that what was used once may fill */

struct expert {          /* of one layer */
    uint32_t slot;       /* EXPERT_NO_SLOT: nowhere */
    uint32_t rate_pass;  /* when the rates were brought up to date */
    double rate_long, rate_short;
    uint64_t last_tick;  /* of its last use; 0: never */
    uint32_t last_pass;
    bool loaded_before;
    bool evicted_recently; /* 2Q: it was used once, and went, not long ago */
    uint64_t evicted_at; /* evict_count then */
};

enum slot_state { SLOT_FREE, SLOT_ARRIVING, SLOT_READY };

struct slot {
    uint32_t key;        /* layer * expert_count + expert; NO_KEY when free */
    enum slot_state state;
    uint32_t pin_count;
    bool is_guess;       /* a guess brought it, or is bringing it, and nobody has used it */
    bool is_wanted;      /* the next layer is guessed to choose it */
    bool is_streamed;    /* came by a stream and has not been demanded since */
    bool is_main;        /* 2Q: used more than once, now or when it was here before */
    uint64_t loaded_tick;
};

struct expert_cache {
    struct expert_cache_desc desc;
    double powers_long[POWERS], powers_short[POWERS]; /* of AGING_LONG and AGING_SHORT */
    struct expert *experts; /* [layer_count * expert_count] */
    struct slot *slots;     /* [slot_count] */
    uint32_t guess_arriving_count, streamed_count, once_count;
    uint32_t layer, pass;
    uint32_t free_from;     /* preloading: slots before this one are not free */
    uint64_t tick, evict_count;
};

/* What a slot's expert is worth; the least goes first. */
struct worth {
    double major, minor;
};

static const struct expert *expert_in(const struct expert_cache *cache, const struct slot *slot)
{
    return &cache->experts[slot->key];
}

/* The rates as of this pass. */
static double rate_long(const struct expert_cache *cache, const struct expert *expert)
{
    const uint32_t gone = cache->pass - expert->rate_pass;

    return expert->rate_long *
           (gone < POWERS ? cache->powers_long[gone] : pow(AGING_LONG, gone));
}

static double rate_short(const struct expert_cache *cache, const struct expert *expert)
{
    const uint32_t gone = cache->pass - expert->rate_pass;

    return expert->rate_short *
           (gone < POWERS ? cache->powers_short[gone] : pow(AGING_SHORT, gone));
}

static struct worth worth_lru(const struct expert_cache *cache, const struct slot *slot)
{
    return (struct worth){ (double)expert_in(cache, slot)->last_tick, (double)slot->loaded_tick };
}

static struct worth worth_lru_frequency(const struct expert_cache *cache, const struct slot *slot)
{
    const struct expert *expert = expert_in(cache, slot);

    return (struct worth){ expert->last_pass,
                           rate_long(cache, expert) };
}

static struct worth worth_lfu(const struct expert_cache *cache, const struct slot *slot)
{
    const struct expert *expert = expert_in(cache, slot);

    return (struct worth){ rate_long(cache, expert),
                           (double)expert->last_tick };
}

/* Johnson and Shasha 1994, "2Q": a queue for what came once, and the rest by last use. */
static struct worth worth_2q(const struct expert_cache *cache, const struct slot *slot)
{
    const bool once_is_full = cache->once_count > cache->desc.slot_count / ONCE_SHARE;

    return (struct worth){ slot->is_main == once_is_full,
                           slot->is_main ? (double)expert_in(cache, slot)->last_tick
                                         : (double)slot->loaded_tick };
}

/* Layers until the slot's one begins again, counted from the one that has begun. */
static uint32_t layers_until(const struct expert_cache *cache, const struct slot *slot)
{
    const uint32_t layer = slot->key / cache->desc.expert_count;

    return layer > cache->layer ? layer - cache->layer
                                : layer + cache->desc.layer_count - cache->layer;
}

static struct worth worth_layer(const struct expert_cache *cache, const struct slot *slot)
{
    return (struct worth){ -(double)layers_until(cache, slot),
                           (double)expert_in(cache, slot)->last_tick };
}

/* Layers until the next use when each pass uses it with probability p: 1 / p - 1 passes are let go
 * by on average. */
static struct worth worth_forecast(const struct expert_cache *cache, const struct slot *slot)
{
    const struct expert *expert = expert_in(cache, slot);
    const double p = (rate_long(cache, expert) +
                      rate_short(cache, expert)) / 2 + RATE_MIN;

    return (struct worth){ -(layers_until(cache, slot) + cache->desc.layer_count * (1 / p - 1)),
                           (double)expert->last_tick };
}

static const struct {
    const char *name;
    struct worth (*worth)(const struct expert_cache *cache, const struct slot *slot);
} policies[EXPERT_POLICY_COUNT] = {
    [EXPERT_POLICY_LRU] = { "lru", worth_lru },
    [EXPERT_POLICY_LRU_FREQUENCY] = { "lru-frequency", worth_lru_frequency },
    [EXPERT_POLICY_LFU] = { "lfu", worth_lfu },
    [EXPERT_POLICY_2Q] = { "2q", worth_2q },
    [EXPERT_POLICY_LAYER] = { "layer", worth_layer },
    [EXPERT_POLICY_FORECAST] = { "forecast", worth_forecast },
};

const char *expert_policy_name(enum expert_policy policy)
{
    assert((unsigned)policy < EXPERT_POLICY_COUNT);
    return policies[policy].name;
}

enum status expert_cache_create(const struct expert_cache_desc *desc,
                                struct expert_cache **cache_out, struct err *err)
{
    struct expert_cache *cache = calloc(1, sizeof(*cache));
    const uint64_t key_count = (uint64_t)desc->layer_count * desc->expert_count;

    assert(desc->layer_count > 0 && desc->expert_count > 0 && desc->slot_count > 0);
    assert(key_count < NO_KEY && desc->slot_count < EXPERT_NO_SLOT);
    assert(desc->reserve_count > 0 && desc->stream_count > 0);
    assert((unsigned)desc->policy < EXPERT_POLICY_COUNT);
    if (cache != NULL) {
        cache->experts = calloc(key_count, sizeof(*cache->experts));
        cache->slots = calloc(desc->slot_count, sizeof(*cache->slots));
    }
    if (cache == NULL || cache->experts == NULL || cache->slots == NULL) {
        expert_cache_destroy(cache);
        return err_set(err, STATUS_NO_MEMORY, "no memory for a cache of %u experts in %u slots",
                       (unsigned)key_count, desc->slot_count);
    }
    cache->desc = *desc;
    for (uint64_t key = 0; key < key_count; key++)
        cache->experts[key].slot = EXPERT_NO_SLOT;
    for (uint32_t i = 0; i < desc->slot_count; i++)
        cache->slots[i].key = NO_KEY;
    for (int i = 0; i < POWERS; i++) {
        cache->powers_long[i] = pow(AGING_LONG, i);
        cache->powers_short[i] = pow(AGING_SHORT, i);
    }
    cache->layer = desc->layer_count - 1; /* any layer that begins is the next pass's */
    *cache_out = cache;
    return STATUS_OK;
}

uint64_t expert_cache_bytes(uint32_t expert_count, uint32_t slot_count)
{
    return sizeof(struct expert_cache) + expert_count * sizeof(struct expert) +
           slot_count * sizeof(struct slot);
}

void expert_cache_destroy(struct expert_cache *cache)
{
    if (cache == NULL)
        return;
    free(cache->slots);
    free(cache->experts);
    free(cache);
}

static void slot_empty(struct expert_cache *cache, struct slot *slot)
{
    if (slot->state == SLOT_FREE)
        return;
    cache->experts[slot->key].slot = EXPERT_NO_SLOT;
    if (slot->is_streamed)
        cache->streamed_count--;
    if (!slot->is_main)
        cache->once_count--;
    if (slot->is_guess && slot->state == SLOT_ARRIVING)
        cache->guess_arriving_count--;
    *slot = (struct slot){ .key = NO_KEY, .state = SLOT_FREE };
}

void expert_cache_clear(struct expert_cache *cache)
{
    for (uint32_t i = 0; i < cache->desc.slot_count; i++)
        slot_empty(cache, &cache->slots[i]);
    cache->free_from = 0;
}

void expert_cache_layer_begin(struct expert_cache *cache, uint32_t layer)
{
    assert(layer < cache->desc.layer_count);
    if (layer <= cache->layer)
        cache->pass++;
    cache->layer = layer;
    for (uint32_t i = 0; i < cache->desc.slot_count; i++)
        cache->slots[i].is_wanted = false;
}

/* This pass counts as `rows` passes, in `share` of which the expert was used. */
static void rates_add(struct expert_cache *cache, struct expert *expert, double share, double rows)
{
    const uint32_t gone = cache->pass - expert->rate_pass;
    const double unused = gone > 1 ? gone - 1 : 0; /* passes between the last one noted and this */

    expert->rate_long = expert->rate_long * pow(AGING_LONG, unused + rows) +
                        share * (1 - pow(AGING_LONG, rows));
    expert->rate_short = expert->rate_short * pow(AGING_SHORT, unused + rows) +
                         share * (1 - pow(AGING_SHORT, rows));
    expert->rate_pass = cache->pass;
}

/* Notes that the expert is used in this pass. */
static void use(struct expert_cache *cache, struct expert *expert)
{
    if (expert->last_tick == 0 || expert->last_pass != cache->pass)
        rates_add(cache, expert, 1, 1);
    expert->last_tick = ++cache->tick;
    expert->last_pass = cache->pass;
}

void expert_cache_note(struct expert_cache *cache, uint32_t layer, uint32_t expert,
                       uint32_t hit_count, uint32_t row_count)
{
    struct expert *e = &cache->experts[layer * cache->desc.expert_count + expert];

    assert(layer < cache->desc.layer_count && expert < cache->desc.expert_count);
    assert(row_count > 0 && hit_count <= row_count);
    rates_add(cache, e, (double)hit_count / row_count, row_count);
    if (hit_count == 0)
        return;
    e->last_tick = ++cache->tick;
    e->last_pass = cache->pass;
}

static bool is_less(struct worth a, struct worth b)
{
    return a.major < b.major || (a.major == b.major && a.minor < b.minor);
}

enum claim { CLAIM_DEMAND, CLAIM_STREAM, CLAIM_GUESS };

/* Whether the claim may have the slot, and how gladly: 0 no, the higher the sooner. */
static int willingness(const struct expert_cache *cache, const struct slot *slot, enum claim claim)
{
    if (slot->state == SLOT_FREE)
        return 4;
    if (slot->state != SLOT_READY || slot->pin_count > 0)
        return 0;
    if (claim == CLAIM_GUESS)
        return slot->is_wanted ? 0 : slot->is_streamed ? 3 : 2;
    if (slot->is_streamed)
        return 3;
    /* A stream that has its share goes on with that, unless all of it is in use. */
    if (claim == CLAIM_STREAM && cache->streamed_count >= cache->desc.stream_count)
        return 0;
    return slot->is_wanted ? 1 : 2;
}

/* The slot that the claim gets, or EXPERT_NO_SLOT. */
static uint32_t choose(const struct expert_cache *cache, enum claim claim)
{
    uint32_t best = EXPERT_NO_SLOT;
    struct worth best_worth = { 0, 0 };
    int best_will = 0;

    if (claim == CLAIM_GUESS &&
        cache->guess_arriving_count + cache->desc.reserve_count >= cache->desc.slot_count)
        return EXPERT_NO_SLOT;
    for (uint32_t i = 0; i < cache->desc.slot_count; i++) {
        const struct slot *slot = &cache->slots[i];
        const int will = willingness(cache, slot, claim);
        struct worth worth = { 0, 0 };

        if (will == 0 || will < best_will)
            continue;
        if (slot->state == SLOT_READY)
            worth = policies[cache->desc.policy].worth(cache, slot);
        if (will > best_will || is_less(worth, best_worth)) {
            best = i;
            best_will = will;
            best_worth = worth;
        }
        if (slot->state == SLOT_FREE)
            break;
    }
    return best;
}

/* Takes the slot's expert away and tells whose it was. */
static void evict(struct expert_cache *cache, struct slot *slot, struct expert_place *place)
{
    struct expert *expert;

    if (slot->state == SLOT_FREE)
        return;
    expert = &cache->experts[slot->key];
    place->has_evicted = true;
    place->evicted_unused = slot->is_guess;
    place->evicted_layer = slot->key / cache->desc.expert_count;
    place->evicted_expert = slot->key % cache->desc.expert_count;
    expert->evicted_recently = !slot->is_main && expert->last_tick != 0;
    expert->evicted_at = ++cache->evict_count;
    slot_empty(cache, slot);
}

static struct expert_place miss(struct expert_cache *cache, uint32_t key, enum claim claim)
{
    struct expert *expert = &cache->experts[key];
    struct expert_place place = { .answer = EXPERT_NO_ROOM, .slot = choose(cache, claim) };
    struct slot *slot;

    if (place.slot == EXPERT_NO_SLOT)
        return place;
    slot = &cache->slots[place.slot];
    evict(cache, slot, &place);
    place.answer = EXPERT_MISS;
    place.again = expert->loaded_before;
    *slot = (struct slot){
        .key = key, .state = SLOT_ARRIVING, .pin_count = claim != CLAIM_GUESS,
        .is_guess = claim == CLAIM_GUESS, .is_wanted = claim == CLAIM_GUESS,
        .is_streamed = claim == CLAIM_STREAM, .loaded_tick = cache->tick,
        /* 2Q: what was used once and comes back before half as many as there are slots have gone
         * after it counts as used more than once */
        .is_main = expert->evicted_recently &&
                   cache->evict_count - expert->evicted_at <= cache->desc.slot_count / 2,
    };
    cache->streamed_count += slot->is_streamed;
    cache->once_count += !slot->is_main;
    cache->guess_arriving_count += slot->is_guess;
    expert->slot = place.slot;
    expert->loaded_before = true;
    return place;
}

/* A demand or a stream finds the expert there or on its way. */
static struct expert_place found(struct expert_cache *cache, uint32_t key, enum claim claim)
{
    struct expert_place place = { .slot = cache->experts[key].slot };
    struct slot *slot = &cache->slots[place.slot];

    assert(slot->key == key && slot->state != SLOT_FREE);
    place.answer = slot->state == SLOT_READY ? EXPERT_HIT : EXPERT_ARRIVING;
    place.was_guessed = slot->is_guess;
    if (slot->is_guess && slot->state == SLOT_ARRIVING)
        cache->guess_arriving_count--;
    if (!slot->is_guess && !slot->is_main) {
        slot->is_main = true;
        cache->once_count--;
    }
    slot->is_guess = false;
    slot->is_wanted = false;
    if (claim == CLAIM_DEMAND && slot->is_streamed) {
        slot->is_streamed = false;
        cache->streamed_count--;
    }
    slot->pin_count++;
    return place;
}

static struct expert_place ask(struct expert_cache *cache, uint32_t layer, uint32_t expert,
                               enum claim claim)
{
    const uint32_t key = layer * cache->desc.expert_count + expert;
    struct expert_place place;

    assert(layer < cache->desc.layer_count && expert < cache->desc.expert_count);
    place = cache->experts[key].slot != EXPERT_NO_SLOT ? found(cache, key, claim)
                                                       : miss(cache, key, claim);
    if (claim == CLAIM_DEMAND && place.answer != EXPERT_NO_ROOM)
        use(cache, &cache->experts[key]);
    return place;
}

struct expert_place expert_cache_demand(struct expert_cache *cache, uint32_t expert)
{
    return ask(cache, cache->layer, expert, CLAIM_DEMAND);
}

struct expert_place expert_cache_stream(struct expert_cache *cache, uint32_t layer,
                                        uint32_t expert)
{
    return ask(cache, layer, expert, CLAIM_STREAM);
}

struct expert_place expert_cache_guess(struct expert_cache *cache, uint32_t layer, uint32_t expert)
{
    const uint32_t key = layer * cache->desc.expert_count + expert;
    struct expert_place place = { .slot = EXPERT_NO_SLOT };

    assert(layer < cache->desc.layer_count && expert < cache->desc.expert_count);
    place.slot = cache->experts[key].slot;
    if (place.slot == EXPERT_NO_SLOT)
        return miss(cache, key, CLAIM_GUESS);
    place.answer = cache->slots[place.slot].state == SLOT_READY ? EXPERT_HIT : EXPERT_ARRIVING;
    cache->slots[place.slot].is_wanted = true;
    return place;
}

struct expert_place expert_cache_preload(struct expert_cache *cache, uint32_t layer,
                                         uint32_t expert, double rate)
{
    const uint32_t key = layer * cache->desc.expert_count + expert;
    struct expert_place place = { .answer = EXPERT_NO_ROOM, .slot = EXPERT_NO_SLOT };
    struct expert *e = &cache->experts[key];
    struct slot *slot;

    assert(layer < cache->desc.layer_count && expert < cache->desc.expert_count);
    assert(e->slot == EXPERT_NO_SLOT && rate >= 0 && rate <= 1);
    while (cache->free_from < cache->desc.slot_count &&
           cache->slots[cache->free_from].state != SLOT_FREE)
        cache->free_from++;
    if (cache->free_from == cache->desc.slot_count)
        return place;
    place.answer = EXPERT_MISS;
    place.slot = cache->free_from;
    slot = &cache->slots[place.slot];
    *slot = (struct slot){ .key = key, .state = SLOT_ARRIVING, .is_main = true };
    e->slot = place.slot;
    e->loaded_before = true;
    e->rate_long = e->rate_short = rate;
    e->rate_pass = cache->pass;
    return place;
}

void expert_cache_arrived(struct expert_cache *cache, uint32_t slot)
{
    assert(slot < cache->desc.slot_count && cache->slots[slot].state == SLOT_ARRIVING);
    if (cache->slots[slot].is_guess)
        cache->guess_arriving_count--;
    cache->slots[slot].state = SLOT_READY;
}

void expert_cache_dropped(struct expert_cache *cache, uint32_t slot)
{
    assert(slot < cache->desc.slot_count && cache->slots[slot].state != SLOT_FREE);
    slot_empty(cache, &cache->slots[slot]);
}

void expert_cache_unpin(struct expert_cache *cache, uint32_t slot)
{
    assert(slot < cache->desc.slot_count && cache->slots[slot].pin_count > 0);
    cache->slots[slot].pin_count--;
}

uint32_t expert_cache_find(const struct expert_cache *cache, uint32_t layer, uint32_t expert)
{
    assert(layer < cache->desc.layer_count && expert < cache->desc.expert_count);
    return cache->experts[layer * cache->desc.expert_count + expert].slot;
}

bool expert_cache_is_ready(const struct expert_cache *cache, uint32_t slot)
{
    assert(slot < cache->desc.slot_count);
    return cache->slots[slot].state == SLOT_READY;
}

bool expert_cache_is_guess(const struct expert_cache *cache, uint32_t slot)
{
    assert(slot < cache->desc.slot_count);
    return cache->slots[slot].is_guess;
}
