/* offload/home/home.h - where the final bytes of moving units live, and how they come into a slot.
 *
 * A home is a table of functions, one per value of enum offload_home, listed in home.c: to add one
 * is to add a file and a line there. The ring and the expert cache know homes only by this table.
 *
 * A fetch brings one unit from its home into a slot. It is begun as early as the schedule says and
 * ended when the unit is about to be read:
 *
 *     prepare what needs no slot yet, such as reading into staging memory, long before; may be left
 *             out
 *     begin   queues or submits what can be, and returns at once
 *     end     makes sure that all of it is queued: may wait on the host, for a disk
 *     ... the compute stream then waits for `loaded`, when the fetch came by the copy stream
 *
 * Threads: the engine's. Only for files inside offload/. */
#ifndef LIGHTER_OFFLOAD_HOME_HOME_H
#define LIGHTER_OFFLOAD_HOME_HOME_H

#include "offload/offload.h"

struct offload__share_offer;

enum offload__fetch_state {
    OFFLOAD_FETCH_NONE,   /* nothing was to be brought, or it was abandoned */
    OFFLOAD_FETCH_PREPARED, /* on its way to memory that is no slot */
    OFFLOAD_FETCH_BEGUN,
    OFFLOAD_FETCH_ENDED,  /* everything is queued, or there */
};

/* When its steps ran, on clock_now_ns's clock; 0: there was no such step. */
struct offload__fetch_times {
    uint64_t read_began_ns, read_ended_ns; /* from the disk */
    uint64_t copy_began_ns, copy_ended_ns; /* on the copy stream */
};

struct offload__fetch {
    size_t unit;
    uint8_t *dst;                   /* the slot's memory, on the device */
    struct event *slot_ended;       /* the slot's last reader, on the compute stream */
    bool is_guess;                  /* set before begin: nobody waits for it; others go first */
    enum offload__fetch_state state;
    bool by_stream;                 /* came by the copy stream, between the two events */
    struct event *started, *loaded; /* on the copy stream */
    uint64_t began_ns, ended_ns;    /* of what went before the copy, or instead of it: reads; set
                                       by the home. 0: nothing */
    struct offload__fetch_times times; /* counters.c's, once it has been told as arrived */
    uint64_t link_idle_ns;          /* counters.c's: no copy ran so long before its own, though its
                                       bytes were there */
    void *home_data;                /* the home's own, for as long as the fetch object lives */
};

struct offload__home_ops {
    const char *name;               /* "host" */
    const char *mode;               /* as --offload-mode spells it; NULL: not to be asked for */
    const char *phrase;             /* for the manifest: "at home on the host" */
    const char *phrase_in_place;    /* "..., used in place", where is_host_memory */
    bool has_contents;              /* false: meta */
    bool is_host_memory;            /* units have records in host memory, which a device whose
                                       memory is the host's reads in place */
    bool is_shared;                 /* with the other ranks of the node: see share.h */
    /* Takes what the home needs for its units: memory, segments, files. After the device's memory
     * has been taken and before anything is loaded. NULL: nothing. */
    enum status (*open)(struct offload *offload, struct err *err);
    /* Gives it back; fine when open has failed halfway or was never called. NULL: nothing. */
    void (*close)(struct offload *offload);
    /* For shared homes, after open: what the other ranks need of this one, and what they offer,
     * offers[share_count]. NULL: nothing. */
    void (*offer)(struct offload *offload, struct offload__share_offer *offer);
    enum status (*connect)(struct offload *offload, const struct offload__share_offer *offers,
                           struct err *err);
    /* Whether this process loads the unit at all; NULL: yes. */
    bool (*is_loaded_here)(const struct offload *offload, size_t unit);
    /* Where the loader may write parameters of the unit: NULL, or a NULL result: through `store`.
     * */
    uint8_t *(*record)(struct offload *offload, size_t unit);
    /* Puts size_bytes of the unit's record, from offset_bytes on, to their place. `bytes`: host
     * memory that the device can copy from. */
    enum status (*store)(struct offload *offload, size_t unit, uint64_t offset_bytes,
                         const uint8_t *bytes, uint64_t size_bytes, struct err *err);
    /* Bytes of the record and `bytes` change places, as far as they are this process's to change.
     * NULL: the home's parameters can't be loaded again. */
    enum status (*swap)(struct offload *offload, size_t unit, uint64_t offset_bytes,
                        uint8_t *bytes, uint64_t size_bytes, struct err *err);
    /* All of its units have been loaded. NULL: nothing to do. */
    enum status (*loaded)(struct offload *offload, struct err *err);
    /* Makes home_data of a fetch object, after open. NULL: there is none. */
    enum status (*fetch_create)(struct offload *offload, struct offload__fetch *fetch,
                                struct err *err);
    /* Begins what needs no slot; false: there is no room to at the moment, or nothing that can be.
     * NULL: there never is. */
    bool (*fetch_prepare)(struct offload *offload, struct offload__fetch *fetch);
    /* Bringing a unit into fetch->dst. NULL for meta; end may be NULL. */
    enum status (*fetch_begin)(struct offload *offload, struct offload__fetch *fetch,
                               struct err *err);
    enum status (*fetch_end)(struct offload *offload, struct offload__fetch *fetch,
                             struct err *err);
    /* Whether end would not wait. NULL: it never does. */
    bool (*fetch_is_ready)(const struct offload *offload, const struct offload__fetch *fetch);
    /* A guess is waited for now: it goes with what is demanded. NULL: that makes no difference. */
    void (*fetch_hurry)(struct offload *offload, struct offload__fetch *fetch);
    /* A guess is not wanted any more: what has not begun of it need not come. Returns at once; the
     * fetch is then ready before long, and end says STATUS_CANCELED, or STATUS_OK when it came all
     * the same. NULL: it comes. */
    void (*fetch_drop)(struct offload *offload, struct offload__fetch *fetch);
    /* Waits until nothing is written to dst any more on behalf of a fetch that was begun and not
     * ended. NULL: syncing the copy stream is enough. */
    void (*fetch_abandon)(struct offload *offload, struct offload__fetch *fetch);
    /* Gives home_data back. NULL: there is none. */
    void (*fetch_destroy)(struct offload *offload, struct offload__fetch *fetch);
};

const struct offload__home_ops *offload__home(enum offload_home home);
/* Whether the device reads units at home there in place. */
bool offload__home_is_read(const struct offload *offload, enum offload_home home);

extern const struct offload__home_ops offload__home_device, offload__home_host, offload__home_shm,
    offload__home_sharded, offload__home_disk,
    offload__home_meta;

/* fetch.c: the steps that movers share. A fetch object is made once for each place in a ring. */
enum status offload__fetch_create(struct offload *offload, struct offload__fetch *fetch,
                                  struct err *err);
void offload__fetch_destroy(struct offload *offload, struct offload__fetch *fetch);
/* Begins what of bringing `unit` needs no slot; false: nothing was begun. */
bool offload__fetch_prepare(struct offload *offload, struct offload__fetch *fetch, size_t unit);
/* Begins to bring `unit` into slot memory dst, when slot_ended's reader of it has ended. */
enum status offload__fetch_begin(struct offload *offload, struct offload__fetch *fetch, size_t unit,
                                 struct event *slot_ended, uint8_t *dst, struct err *err);
enum status offload__fetch_end(struct offload *offload, struct offload__fetch *fetch,
                               struct err *err);
bool offload__fetch_is_ready(const struct offload *offload, const struct offload__fetch *fetch);
void offload__fetch_hurry(struct offload *offload, struct offload__fetch *fetch);
/* False: it comes all the same. */
bool offload__fetch_drop(struct offload *offload, struct offload__fetch *fetch);
void offload__fetch_abandon(struct offload *offload, struct offload__fetch *fetch);
/* False: it has not arrived yet. `wait`: wait for it. */
bool offload__fetch_times(const struct offload__fetch *fetch, bool wait,
                          struct offload__fetch_times *times_out);

/* For homes: copies queued between copy_begin and copy_end on offload->copy come behind the slot's
 * last reader and between the fetch's two events. */
enum status offload__copy_begin(struct offload *offload, struct offload__fetch *fetch,
                                struct err *err);
enum status offload__copy_end(struct offload *offload, struct offload__fetch *fetch,
                              struct err *err);

#endif
