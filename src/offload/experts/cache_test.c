/* offload/experts/cache_test.c - the cache against a plainer one that remembers everything.
 *
 * Method: long random runs of layers, demands, guesses, arrivals and cancellations, on small caches
 * where everything collides. Beside the cache goes a model with no state but the list of all that
 * has happened; what is where, and who had to go, follows from that list by the header's words. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "offload/experts/cache.h"

enum { LAYERS = 4, EXPERTS = 7, KEYS = LAYERS * EXPERTS, SLOTS_MAX = 12, USES_MAX = 40000 };

struct seen { /* a slot as the test sees it */
    int key;                     /* -1: free */
    bool arriving, guess, wanted, streamed;
    int pins;
};

struct use {
    int key;
    uint32_t pass;
};

struct model {
    struct expert_cache *cache;
    struct expert_cache_desc desc;
    struct seen slots[SLOTS_MAX];
    bool loaded_before[KEYS];
    struct use *uses;
    uint32_t use_count, pass, layer;
    uint32_t random;
};

static uint32_t below(struct model *m, uint32_t limit)
{
    m->random = m->random * 1664525u + 1013904223u;
    return (m->random >> 8) % limit;
}

static struct model *model_create(enum expert_policy policy, uint32_t slot_count,
                                  uint32_t reserve_count, uint32_t seed)
{
    struct model *m = calloc(1, sizeof(*m));
    struct err err;

    assert_non_null(m);
    m->uses = calloc(USES_MAX, sizeof(*m->uses));
    assert_non_null(m->uses);
    m->desc = (struct expert_cache_desc){ .layer_count = LAYERS, .expert_count = EXPERTS,
                                          .slot_count = slot_count,
                                          .reserve_count = reserve_count, .stream_count = 2,
                                          .policy = policy };
    m->random = seed;
    m->layer = LAYERS - 1;
    for (uint32_t i = 0; i < slot_count; i++)
        m->slots[i].key = -1;
    assert_int_equal(expert_cache_create(&m->desc, &m->cache, &err), STATUS_OK);
    return m;
}

static void model_destroy(struct model *m)
{
    expert_cache_destroy(m->cache);
    free(m->uses);
    free(m);
}

static int slot_of(const struct model *m, int key)
{
    for (uint32_t i = 0; i < m->desc.slot_count; i++) {
        if (m->slots[i].key == key)
            return (int)i;
    }
    return -1;
}

/* Index of the last use of a key, counted from 1; 0: none. */
static uint32_t last_use(const struct model *m, int key)
{
    for (uint32_t i = m->use_count; i > 0; i--) {
        if (m->uses[i - 1].key == key)
            return i;
    }
    return 0;
}

/* Uses per pass, each pass weighing `aging` times the one after it. */
static double rate_of(const struct model *m, int key, double aging)
{
    double rate = 0;
    uint32_t pass = UINT32_MAX;

    for (uint32_t i = 0; i < m->use_count; i++) {
        if (m->uses[i].key != key || m->uses[i].pass == pass)
            continue; /* once in a pass counts like many times */
        pass = m->uses[i].pass;
        rate += (1 - aging) * pow(aging, m->pass - pass);
    }
    return rate;
}

static uint32_t layers_until(const struct model *m, int key)
{
    const uint32_t layer = (uint32_t)key / EXPERTS;

    return (layer + LAYERS - m->layer - 1) % LAYERS + 1;
}

static double worth_of(const struct model *m, int key)
{
    const uint32_t last = last_use(m, key);
    double p;

    switch (m->desc.policy) {
    case EXPERT_POLICY_LRU: return last;
    case EXPERT_POLICY_LRU_FREQUENCY:
        return (last > 0 ? m->uses[last - 1].pass : 0) + rate_of(m, key, 0.99) / 2;
    case EXPERT_POLICY_LFU: return rate_of(m, key, 0.99);
    case EXPERT_POLICY_LAYER: return -(double)layers_until(m, key) + last * 1e-6;
    case EXPERT_POLICY_FORECAST:
        p = (rate_of(m, key, 0.99) + rate_of(m, key, 0.8)) / 2 + 1e-6;
        return -(layers_until(m, key) + LAYERS * (1 / p - 1));
    default: return 0; /* 2q has a test of its own */
    }
}

static bool may_go(const struct seen *slot, bool for_guess)
{
    return slot->key >= 0 && !slot->arriving && slot->pins == 0 && !(for_guess && slot->wanted);
}

/* The one that went was allowed to, and none that was allowed to was worth less. */
static void check_victim(const struct model *m, uint32_t slot, bool for_guess)
{
    const struct seen *victim = &m->slots[slot];
    const double worth = victim->key >= 0 ? worth_of(m, victim->key) : 0;

    if (victim->key < 0)
        return;
    assert_true(may_go(victim, for_guess));
    for (uint32_t i = 0; i < m->desc.slot_count; i++) {
        const struct seen *other = &m->slots[i];

        assert_true(other->key >= 0); /* nobody has to go while a slot is free */
        if (!may_go(other, for_guess) || other->wanted != victim->wanted)
            continue;
        if (worth_of(m, other->key) < worth - 1e-9)
            fail_msg("%s: key %d (%g) went, %d (%g) stayed", expert_policy_name(m->desc.policy),
                     victim->key, worth, other->key, worth_of(m, other->key));
    }
    if (victim->wanted) { /* only when nothing else could */
        for (uint32_t i = 0; i < m->desc.slot_count; i++)
            assert_false(may_go(&m->slots[i], true));
    }
}

static uint32_t guesses_arriving(const struct model *m)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < m->desc.slot_count; i++)
        count += m->slots[i].key >= 0 && m->slots[i].arriving && m->slots[i].guess;
    return count;
}

static bool any_may_go(const struct model *m, bool for_guess)
{
    bool any = false;

    for (uint32_t i = 0; i < m->desc.slot_count; i++)
        any = any || m->slots[i].key < 0 || may_go(&m->slots[i], for_guess);
    return any;
}

static void check_miss(struct model *m, const struct expert_place *place, int key, bool for_guess)
{
    const struct seen *before;

    assert_true(place->slot < m->desc.slot_count);
    check_victim(m, place->slot, for_guess);
    before = &m->slots[place->slot];
    assert_int_equal(place->has_evicted, before->key >= 0);
    assert_int_equal(place->again, m->loaded_before[key]);
    if (before->key >= 0) {
        assert_int_equal(place->evicted_layer * EXPERTS + place->evicted_expert, before->key);
        assert_int_equal(place->evicted_unused, before->guess);
    }
    m->loaded_before[key] = true;
    m->slots[place->slot] = (struct seen){ .key = key, .arriving = true, .guess = for_guess,
                                           .wanted = for_guess, .pins = !for_guess };
}

static void demand(struct model *m, uint32_t expert)
{
    const int key = (int)(m->layer * EXPERTS + expert), slot = slot_of(m, key);
    const struct expert_place place = expert_cache_demand(m->cache, expert);

    if (place.answer == EXPERT_NO_ROOM) {
        assert_int_equal(slot, -1);
        assert_false(any_may_go(m, false));
        return;
    }
    if (place.answer == EXPERT_MISS) {
        assert_int_equal(slot, -1);
        check_miss(m, &place, key, false);
    } else {
        assert_int_equal(place.slot, slot);
        assert_int_equal(place.answer == EXPERT_ARRIVING, m->slots[slot].arriving);
        assert_int_equal(place.was_guessed, m->slots[slot].guess);
        m->slots[slot].guess = m->slots[slot].wanted = false;
        m->slots[slot].pins++;
    }
    assert_true(m->use_count < USES_MAX);
    m->uses[m->use_count++] = (struct use){ key, m->pass };
}

static void guess(struct model *m, uint32_t layer, uint32_t expert)
{
    const int key = (int)(layer * EXPERTS + expert), slot = slot_of(m, key);
    const uint32_t arriving = guesses_arriving(m);
    const struct expert_place place = expert_cache_guess(m->cache, layer, expert);

    switch (place.answer) {
    case EXPERT_MISS:
        assert_int_equal(slot, -1);
        assert_true(arriving + m->desc.reserve_count < m->desc.slot_count);
        check_miss(m, &place, key, true);
        break;
    case EXPERT_NO_ROOM:
        assert_int_equal(slot, -1);
        assert_true(!any_may_go(m, true) ||
                    arriving + m->desc.reserve_count >= m->desc.slot_count);
        break;
    default:
        assert_int_equal(place.slot, slot);
        m->slots[slot].wanted = true;
    }
}

static void layer_begin(struct model *m, uint32_t layer)
{
    if (layer <= m->layer)
        m->pass++;
    m->layer = layer;
    for (uint32_t i = 0; i < m->desc.slot_count; i++)
        m->slots[i].wanted = false;
    expert_cache_layer_begin(m->cache, layer);
}

static void check_all(const struct model *m)
{
    for (int key = 0; key < KEYS; key++) {
        const int slot = slot_of(m, key);
        const uint32_t found = expert_cache_find(m->cache, (uint32_t)key / EXPERTS,
                                                 (uint32_t)key % EXPERTS);

        assert_int_equal(found, slot < 0 ? EXPERT_NO_SLOT : (uint32_t)slot);
        if (slot < 0)
            continue;
        assert_int_equal(expert_cache_is_ready(m->cache, found), !m->slots[slot].arriving);
        assert_int_equal(expert_cache_is_guess(m->cache, found), m->slots[slot].guess);
    }
}

/* One random thing to a random slot: what was on its way arrives or is dropped, what is pinned is
 * let go. */
static void touch(struct model *m)
{
    const uint32_t i = below(m, m->desc.slot_count);
    struct seen *slot = &m->slots[i];

    if (slot->key < 0)
        return;
    if (slot->arriving && below(m, 5) == 0) {
        expert_cache_dropped(m->cache, i);
        *slot = (struct seen){ .key = -1 };
    } else if (slot->arriving) {
        expert_cache_arrived(m->cache, i);
        slot->arriving = false;
    } else if (slot->pins > 0) {
        expert_cache_unpin(m->cache, i);
        slot->pins--;
    }
}

static void random_run(enum expert_policy policy, uint32_t slot_count, uint32_t reserve_count,
                       uint32_t seed)
{
    struct model *m = model_create(policy, slot_count, reserve_count, seed);

    for (uint32_t step = 0; step < 600; step++) {
        layer_begin(m, step % 13 == 12 ? below(m, LAYERS) : (m->layer + 1) % LAYERS);
        for (uint32_t i = 0; i < 2; i++)
            demand(m, below(m, 1 + below(m, EXPERTS))); /* low numbers more often */
        for (uint32_t i = below(m, 3); i > 0; i--)
            guess(m, (m->layer + 1) % LAYERS, below(m, EXPERTS));
        for (uint32_t i = 0; i < 12; i++)
            touch(m);
        check_all(m);
    }
    model_destroy(m);
}

static void the_cache_is_what_its_header_says(void **state)
{
    static const uint32_t slot_counts[] = { 1, 2, 3, 5, 8, 12 };

    (void)state;
    for (int policy = 0; policy < EXPERT_POLICY_COUNT; policy++) {
        if (policy == EXPERT_POLICY_2Q)
            continue;
        for (size_t i = 0; i < sizeof(slot_counts) / sizeof(slot_counts[0]); i++) {
            random_run((enum expert_policy)policy, slot_counts[i], 1, 7 + (uint32_t)i);
            random_run((enum expert_policy)policy, slot_counts[i], 4, 77 + (uint32_t)i);
        }
    }
}

/* Demands, arrives and lets go. */
static enum expert_answer use_at_once(struct expert_cache *cache, uint32_t expert)
{
    const struct expert_place place = expert_cache_demand(cache, expert);

    if (place.answer == EXPERT_MISS)
        expert_cache_arrived(cache, place.slot);
    expert_cache_unpin(cache, place.slot);
    return place.answer;
}

static struct expert_cache *small_cache(enum expert_policy policy, uint32_t slot_count)
{
    const struct expert_cache_desc desc = { .layer_count = 2, .expert_count = 100,
                                            .slot_count = slot_count, .reserve_count = 1,
                                            .stream_count = 2, .policy = policy };
    struct expert_cache *cache;
    struct err err;

    assert_int_equal(expert_cache_create(&desc, &cache, &err), STATUS_OK);
    expert_cache_layer_begin(cache, 0);
    return cache;
}

static void twoq_keeps_what_was_used_twice_from_a_scan(void **state)
{
    struct expert_cache *cache = small_cache(EXPERT_POLICY_2Q, 8);

    (void)state;
    for (uint32_t round = 0; round < 2; round++)
        for (uint32_t e = 0; e < 4; e++)
            (void)use_at_once(cache, e);
    for (uint32_t e = 10; e < 90; e++)
        assert_int_equal(use_at_once(cache, e), EXPERT_MISS);
    for (uint32_t e = 0; e < 4; e++)
        assert_int_equal(use_at_once(cache, e), EXPERT_HIT);
    /* and what comes again soon after it went stays */
    assert_int_equal(use_at_once(cache, 84), EXPERT_MISS);
    for (uint32_t e = 20; e < 40; e++)
        (void)use_at_once(cache, e);
    assert_int_equal(use_at_once(cache, 84), EXPERT_HIT);
    expert_cache_destroy(cache);
}

static void a_stream_sweeps_out_few(void **state)
{
    struct expert_cache *cache = small_cache(EXPERT_POLICY_LRU, 8);
    uint32_t kept = 0;

    (void)state;
    for (uint32_t e = 0; e < 7; e++) /* one slot stays free */
        (void)use_at_once(cache, e);
    expert_cache_layer_begin(cache, 1);
    for (uint32_t e = 0; e < 100; e++) {
        const struct expert_place place = expert_cache_stream(cache, 1, e);

        assert_int_equal(place.answer, EXPERT_MISS);
        expert_cache_arrived(cache, place.slot);
        expert_cache_unpin(cache, place.slot);
    }
    for (uint32_t e = 0; e < 7; e++)
        kept += expert_cache_find(cache, 0, e) != EXPERT_NO_SLOT;
    assert_int_equal(kept, 7); /* it lives on the free slot */
    for (uint32_t e = 0; e < 2; e++) /* both at once: one more is taken, then no more */
        (void)expert_cache_stream(cache, 1, e);
    assert_int_equal(expert_cache_stream(cache, 1, 2).answer, EXPERT_NO_ROOM);
    assert_int_equal(expert_cache_find(cache, 0, 0), EXPERT_NO_SLOT);
    assert_int_not_equal(expert_cache_find(cache, 0, 1), EXPERT_NO_SLOT);
    expert_cache_destroy(cache);
}

static void a_streamed_expert_that_is_demanded_stays(void **state)
{
    struct expert_cache *cache = small_cache(EXPERT_POLICY_LRU, 3);

    (void)state;
    for (uint32_t e = 0; e < 3; e++) {
        const struct expert_place place = expert_cache_stream(cache, 0, e);

        expert_cache_arrived(cache, place.slot);
        expert_cache_unpin(cache, place.slot);
    }
    expert_cache_layer_begin(cache, 0); /* the next pass */
    assert_int_equal(use_at_once(cache, 0), EXPERT_HIT);
    assert_int_equal(use_at_once(cache, 50), EXPERT_MISS); /* in place of a streamed one */
    assert_int_equal(use_at_once(cache, 51), EXPERT_MISS); /* and of the other */
    assert_int_equal(use_at_once(cache, 0), EXPERT_HIT);
    expert_cache_destroy(cache);
}

static void notes_count_like_uses(void **state)
{
    struct expert_cache *cache = small_cache(EXPERT_POLICY_LFU, 2);

    (void)state;
    expert_cache_note(cache, 0, 5, 30, 40);
    expert_cache_note(cache, 0, 6, 1, 40);
    (void)use_at_once(cache, 5);
    (void)use_at_once(cache, 6);
    (void)use_at_once(cache, 7);
    assert_int_equal(use_at_once(cache, 5), EXPERT_HIT);
    assert_int_equal(use_at_once(cache, 6), EXPERT_MISS);
    expert_cache_destroy(cache);
}

static void clearing_forgets_what_was_there(void **state)
{
    struct expert_cache *cache = small_cache(EXPERT_POLICY_LRU, 4);

    (void)state;
    (void)use_at_once(cache, 1);
    expert_cache_clear(cache);
    assert_int_equal(expert_cache_find(cache, 0, 1), EXPERT_NO_SLOT);
    assert_true(expert_cache_demand(cache, 1).again);
    expert_cache_destroy(cache);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_cache_is_what_its_header_says),
        cmocka_unit_test(twoq_keeps_what_was_used_twice_from_a_scan),
        cmocka_unit_test(a_stream_sweeps_out_few),
        cmocka_unit_test(a_streamed_expert_that_is_demanded_stays),
        cmocka_unit_test(notes_count_like_uses),
        cmocka_unit_test(clearing_forgets_what_was_there),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
