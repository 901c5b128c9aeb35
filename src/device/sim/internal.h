/* device/sim/internal.h - the parts of the software accelerator.
 *
 *     caller --launch, copy, record, wait--> stream's queue --> stream's worker thread
 *                                                                 |        |        |
 *                                                              executor   link     events
 *                                                              (one)    (per direction)
 *
 * Locks: each part has its own, and none is held while another is taken, but that a worker holds
 * `execute_lock` while an op runs. */
#ifndef LIGHTER_DEVICE_SIM_INTERNAL_H
#define LIGHTER_DEVICE_SIM_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "device/backend.h"
#include "device/cpu/execute.h"
#include "device/shared.h"

/* arena.c: the device's memory, one range of addresses that is backed when it is first written. */
struct sim_arena;
enum status sim__arena_create(uint64_t size_bytes, struct sim_arena **arena_out, struct err *err);
void sim__arena_destroy(struct sim_arena *arena);
/* alignment: a power of two, at least DEVICE_ALIGNMENT. */
enum status sim__arena_alloc(struct sim_arena *arena, uint64_t size_bytes, uint64_t alignment,
                             void **memory_out, struct err *err);
void sim__arena_free(struct sim_arena *arena, void *memory, uint64_t size_bytes,
                     uint64_t alignment);
/* Whether all of (any of) [pointer, pointer + size_bytes) lies in the arena. */
bool sim__arena_holds(const struct sim_arena *arena, const void *pointer, uint64_t size_bytes);
bool sim__arena_touches(const struct sim_arena *arena, const void *pointer, uint64_t size_bytes);

/* link.c: one direction of the way between host and device. */
struct sim_link {
    uint64_t bytes_per_s;  /* 0: as fast as memcpy */
    uint64_t latency_ns;
    pthread_mutex_t lock;  /* guards what follows */
    uint64_t free_ns;      /* when the last copy that was let in ends, on the link's own clock */
};
void sim__link_init(struct sim_link *link, uint64_t bytes_per_s, uint64_t latency_ns);
void sim__link_deinit(struct sim_link *link);
struct sim_slice { /* one copy's place on the link */
    uint64_t start_ns, end_ns;
};
/* Reserves the link for size_bytes, after what was let in before and not before ready_ns. */
struct sim_slice sim__link_enter(struct sim_link *link, uint64_t ready_ns, uint64_t size_bytes);
/* Copies in pieces, none of which is done before its time; returns at slice.end_ns or later. */
void sim__link_copy(const struct sim_link *link, struct sim_slice slice, void *dst,
                    const void *src, uint64_t size_bytes);

/* stream.c */
struct sim_device {
    struct device base;
    struct sim_arena *arena;
    struct cpu_executor *executor;
    pthread_mutex_t execute_lock; /* held while an op runs: one job at a time on the thread pool */
    struct sim_link link_in, link_out, link_peer;
    enum layout layout;                  /* of 16-bit weights; set once */
    struct device__shared shared, peers; /* owner: the caller's thread */
    /* Test hooks: the n-th call from now fails; 0: none. Counted by the caller's thread. */
    uint64_t fail_alloc, fail_host_alloc, fail_copy, fail_launch;
};
/* layout.c: cpu_execute, of weights in any layout. False: no memory to change it in. */
bool sim__execute(struct cpu_executor *executor, const struct op *op);
enum status sim__stream_create(struct device *device, enum stream_kind kind,
                               struct stream **stream_out, struct err *err);
void sim__stream_destroy(struct stream *stream);
enum status sim__stream_sync(struct stream *stream, struct err *err);
enum status sim__event_create(struct device *device, struct event **event_out, struct err *err);
void sim__event_destroy(struct event *event);
enum status sim__event_record(struct stream *stream, struct event *event, struct err *err);
enum status sim__stream_wait(struct stream *stream, struct event *event, struct err *err);
enum status sim__event_sync(struct event *event, struct err *err);
bool sim__event_is_done(const struct event *event);
uint64_t sim__event_time_ns(const struct event *event);
enum status sim__copy_in(struct stream *stream, void *dst, const void *src, uint64_t size_bytes,
                         struct err *err);
enum status sim__copy_out(struct stream *stream, void *dst, const void *src, uint64_t size_bytes,
                          struct err *err);
enum status sim__copy_peer(struct stream *stream, void *dst, const void *src, uint64_t size_bytes,
                           struct err *err);
enum status sim__fill(struct stream *stream, void *dst, uint8_t value, uint64_t size_bytes,
                      struct err *err);
enum status sim__launch(struct stream *stream, const struct op *op, struct err *err);

#endif
