/* offload/experts/internal.h - what the files that move experts share.
 *
 *   experts.c         a layer's turns: what is demanded, what is there, what is waited for
 *   fetches.c  experts on their way into slots; guesses
 *   stream.c   passes that take all experts in a fixed order
 *
 * The cache (cache.h) knows what lies where. Here is what is on its way: a fixed number of
 * fetches, each a place that one expert at a time holds from the time it is asked for until it has
 * arrived.
 *
 * Threads: the engine's. */
#ifndef LIGHTER_OFFLOAD_EXPERTS_INTERNAL_H
#define LIGHTER_OFFLOAD_EXPERTS_INTERNAL_H

#include "offload/experts/cache.h"
#include "offload/internal.h"

#define EXPERT_NO_PLACE UINT32_MAX

struct expert_fetch {
    struct offload__fetch fetch;
    struct event *stall_began, *stall_ended; /* on compute, around the wait for it */
    uint32_t slot;              /* EXPERT_NO_SLOT: the place is free */
    bool is_guess;              /* nobody has demanded it yet */
    bool is_dropped;            /* a guess that was given up: wait for its end, then forget it */
    bool is_uncounted;          /* its times are to be read */
    bool has_stall;             /* of these, those around the wait */
};

/* An expert of the layer that is under way. */
struct expert_wait {
    uint32_t expert, slot;
    uint32_t place;             /* of the fetch; EXPERT_NO_PLACE: not begun, all were taken */
};

struct offload__experts {
    struct expert_cache *cache; /* NULL: used in place */
    uint32_t layer_count;       /* with experts; they are counted as the cache does, by ordinal */
    uint32_t *ordinals;         /* [offload.layer_count] */
    uint32_t *layers;           /* [layer_count]: the model's number of each */
    uint8_t *slots;             /* device memory, expert_slot_count * expert_slot_bytes */
    struct event **ended;       /* [expert_slot_count]: the slot's last reader, on compute */
    struct op_moe_expert *list; /* device memory, [expert_count] */
    struct op_moe_expert *staged;   /* host, [layer_count][expert_count]: each expert once a pass */
    int32_t *ids;               /* host, [layer_count][row_count_max * top_k] */
    int32_t *guess_ids;         /* host, [OFFLOAD_GUESS_ROWS_MAX * top_k] */
    uint64_t staged_bytes, ids_bytes, guess_ids_bytes;
    struct event *ids_there, *guess_there; /* on compute */

    struct expert_fetch *fetches;   /* [fetch_count] */
    uint32_t fetch_count, fetch_next, free_count, guess_place_count;
    uint32_t *place_of;         /* [expert_slot_count]: the fetch that fills it, or NO_PLACE */

    /* The pass and the layer that are under way. */
    uint32_t row_count;
    bool streams;               /* this pass */
    uint32_t ordinal;           /* of the layer */
    uint32_t staged_count;      /* of the layer's experts, those that were in a turn */
    bool is_first;
    uint32_t *stamps;           /* [expert_count]: which have been seen, by `stamp` */
    uint32_t stamp;
    struct expert_wait *ready, *waiting;    /* [expert_count] */
    uint32_t *left;             /* [expert_count]: demanded, but there was no room */
    uint32_t ready_count, waiting_count, left_count;

    /* Guesses that are to be begun, best first. */
    bool guess_is_coming;       /* its ids are on their way */
    uint32_t guess_ordinal;
    uint32_t *guesses;          /* [expert_count] */
    uint32_t guess_count, guess_next;
    bool guess_is_open;         /* guess_ids are to be compared with what is chosen */
    bool *guess_missing;        /* [OFFLOAD_GUESS_ROWS_MAX * top_k]: was not in the cache then */
    double *guess_rates;        /* [top_k]: of a router's j-th choices that were missing, the share
                                   that was chosen in the end; recent ones count more */

    /* The stream: experts of all layers in order, numbered from 0. */
    struct expert_wait *stream; /* [stream_window]: those between stream_at and stream_head */
    uint32_t stream_window;
    uint64_t stream_at, stream_head;
};

/* experts.c. The cache's description for so many layers with experts. */
struct expert_cache_desc offload__experts_cache_desc(const struct offload *offload,
                                                     uint32_t layer_count);

/* fetches.c */
enum status offload__expert_fetches_create(struct offload *offload, struct err *err);
void offload__expert_fetches_destroy(struct offload *offload);
/* Begins to bring an expert of the layer with this ordinal to its slot. A place must be free.
 * Where there is nothing to bring, it has arrived when this returns, and *place_out is
 * EXPERT_NO_PLACE. */
enum status offload__expert_bring(struct offload *offload, uint32_t ordinal, uint32_t expert,
                                  uint32_t slot, bool is_guess, uint32_t *place_out,
                                  struct err *err);
/* Whether `arrive` would wait for nobody. */
bool offload__expert_is_here(const struct offload *offload, uint32_t place);
/* Ends the fetch, waits for it where that must be, and makes it readable by what is queued on the
 * compute stream from now on. */
enum status offload__expert_arrive(struct offload *offload, uint32_t place, struct err *err);
/* A guess has been demanded. */
void offload__expert_hurry(struct offload *offload, uint32_t place);
/* Lets fetches go on without waiting: passes on what has come from a disk, notes which guesses have
 * arrived, begins others. */
enum status offload__expert_fetches_step(struct offload *offload, struct err *err);
/* The place is free again. */
void offload__expert_place_give(struct offload *offload, uint32_t place);
/* Gives up guesses that nobody has demanded. */
void offload__expert_guesses_drop(struct offload *offload);
/* Reads the ids of a guess whose ops are queued. */
enum status offload__expert_guess_take(struct offload *offload, struct err *err);
/* The ids of the layer are known: how good was the guess? */
void offload__expert_guess_rate(struct offload *offload);
/* Notes what happened to whoever lost the slot that `place` tells of, and poisons the slot. */
enum status offload__expert_evicted(struct offload *offload, const struct expert_place *place,
                                    struct err *err);
size_t offload__expert_unit(const struct offload *offload, uint32_t ordinal, uint32_t expert);

/* stream.c */
enum status offload__expert_stream_begin(struct offload *offload, struct err *err);
/* Moves what has arrived of the layer to experts->ready, waiting for the first. */
enum status offload__expert_stream_next(struct offload *offload, bool *is_last_out,
                                        struct err *err);
/* Asks for as many more as there is room for. */
enum status offload__expert_stream_step(struct offload *offload, struct err *err);

#endif
