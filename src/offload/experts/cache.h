/* offload/experts/cache.h - which experts lie in which slots, and which one has to go.
 *
 * A slot holds one expert of one layer. The cache knows what is where, what is on its way there and
 * what is being read, and decides which slot the next one gets. It moves no bytes and knows no
 * device: a mover asks, does what the answer says, and tells when it is done.
 *
 *                demand, guess or stream answers EXPERT_MISS
 *     FREE  ------------------------------------------------>  ARRIVING  --- arrived --->  READY
 *      ^                                                          |                          |
 *      +-------------------- dropped (cancelled, failed) ---------+                          |
 *      +------------------------ given to another expert (only unpinned) -------------------+
 *
 * Three ways to ask, in falling right of way:
 *   demand   the router has chosen it. Pins the slot; takes any slot that is READY and unpinned,
 *            those that the next layer is guessed to want last.
 *   stream   a chunk takes all experts of all layers in turn. Pins the slot; of the slots that hold
 *            something from before it takes few, and its own again and again, so that a long prompt
 *            does not sweep out what decoding has gathered.
 *   guess    the next layer may want it. Pins nothing; leaves alone what is pinned, what the next
 *            layer is guessed to want, and `reserve_count` slots in any case, so that a demand
 *            never has to wait for a guess.
 *
 * Who has to go is a policy, one of a table. Slots are few thousands and a miss reads megabytes, so
 * a policy is a number for each slot, and the slot with the least goes: a scan, and no order that
 * must be kept on every hit. Looking up is O(1).
 *
 * Threads: the engine's. */
#ifndef LIGHTER_OFFLOAD_EXPERTS_CACHE_H
#define LIGHTER_OFFLOAD_EXPERTS_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct expert_cache;

#define EXPERT_NO_SLOT UINT32_MAX

enum expert_policy {
    EXPERT_POLICY_LRU,           /* least recently used */
    EXPERT_POLICY_LRU_FREQUENCY, /* of those used in the same pass the one used less often */
    EXPERT_POLICY_LFU,           /* least often used, older uses counting less */
    EXPERT_POLICY_2Q,            /* what was used only once goes first, oldest first */
    EXPERT_POLICY_LAYER,         /* whose layer comes next the latest */
    EXPERT_POLICY_FORECAST,      /* whose next use is expected the latest */
    EXPERT_POLICY_COUNT
};
const char *expert_policy_name(enum expert_policy policy);

struct expert_cache_desc {
    uint32_t layer_count, expert_count; /* > 0; experts of each layer */
    uint32_t slot_count;                /* > 0 */
    uint32_t reserve_count;             /* slots that guesses leave to demands; 1 or more */
    uint32_t stream_count;              /* slots that a stream takes from others; 1 or more */
    enum expert_policy policy;
};

enum status expert_cache_create(const struct expert_cache_desc *desc,
                                struct expert_cache **cache_out, struct err *err);
void expert_cache_destroy(struct expert_cache *cache);
/* Host memory that one of so many experts in all takes. */
uint64_t expert_cache_bytes(uint32_t expert_count, uint32_t slot_count);
/* Forgets everything but the statistics, pins too. */
void expert_cache_clear(struct expert_cache *cache);

/* A pass comes to this layer: what was guessed for it is no longer kept from others. Layers come in
 * ascending order; a lower one than the last begins the next pass. */
void expert_cache_layer_begin(struct expert_cache *cache, uint32_t layer);

enum expert_answer {
    EXPERT_HIT,      /* there, to be read at once */
    EXPERT_ARRIVING, /* on its way */
    EXPERT_MISS,     /* a slot is its own now: bring it there */
    EXPERT_NO_ROOM,  /* nothing has changed: all slots are pinned, on their way, or kept */
};

struct expert_place {
    enum expert_answer answer;
    uint32_t slot;          /* EXPERT_NO_SLOT with EXPERT_NO_ROOM */
    bool was_guessed;       /* by demand or stream: the first use of what a guess has brought, or
                               is bringing: its reader is to be told that it hurries now */
    bool again;             /* EXPERT_MISS: it has been in a slot before */
    bool has_evicted;       /* EXPERT_MISS: another expert lost the slot ... */
    bool evicted_unused;    /* ... which a guess had brought and nobody used */
    uint32_t evicted_layer, evicted_expert;
};

/* The router of the layer that has begun has chosen it. Each distinct expert once per layer. */
struct expert_place expert_cache_demand(struct expert_cache *cache, uint32_t expert);
/* All experts of a layer are streamed, that layer's next: the one that has begun, or a later one.
 * */
struct expert_place expert_cache_stream(struct expert_cache *cache, uint32_t layer,
                                        uint32_t expert);
/* `layer` may choose it when it begins. */
struct expert_place expert_cache_guess(struct expert_cache *cache, uint32_t layer,
                                       uint32_t expert);

/* Before the first pass: it is expected to be chosen by this share of the tokens. Takes a free
 * slot, or answers EXPERT_NO_ROOM. It must not be there. */
struct expert_place expert_cache_preload(struct expert_cache *cache, uint32_t layer,
                                         uint32_t expert, double rate);

/* What is ARRIVING has arrived. */
void expert_cache_arrived(struct expert_cache *cache, uint32_t slot);
/* What was on its way does not come: failed, or a guess that was cancelled; or what is there is no
 * longer good. The slot is free and unpinned. */
void expert_cache_dropped(struct expert_cache *cache, uint32_t slot);
/* Its reader is done with a demanded or streamed expert. */
void expert_cache_unpin(struct expert_cache *cache, uint32_t slot);
/* For statistics: of `row_count` rows in one pass, hit_count chose it. For streams, whose asking
 * says nothing about use. */
void expert_cache_note(struct expert_cache *cache, uint32_t layer, uint32_t expert,
                       uint32_t hit_count, uint32_t row_count);

/* The slot of an expert that is there or on its way, or EXPERT_NO_SLOT. */
uint32_t expert_cache_find(const struct expert_cache *cache, uint32_t layer, uint32_t expert);
bool expert_cache_is_ready(const struct expert_cache *cache, uint32_t slot);
/* Whether a guess has brought or is bringing it, and nobody has asked for it yet. */
bool expert_cache_is_guess(const struct expert_cache *cache, uint32_t slot);

#endif
