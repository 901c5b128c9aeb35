/* device/cuda/internal.h - the parts of the CUDA device.
 *
 *     load.c      opens lighter_cuda.so, once
 *     error.c     a code becomes one sentence
 *     cuda.c      the device: set-up, description, the table of backend.h
 *     link.c      what NVML says of the way to the host
 *     memory.c    device memory, pinned host memory, memory that ranks share
 *     stream.c    streams, copies, operators
 *     graph.c     operators that come again, as CUDA's graphs
 *     event.c     events, for device/event_clock.c
 *     inspect.c   what was found, for a report
 *
 * and, compiled by nvcc into the module, *.cu: module.cu is its table, the others are kernels.
 *
 * A call into the module may come from any thread, but each thread must have chosen the GPU before:
 * cuda__enter does that, once per thread. device.h lets one thread at a time in, so nothing here
 * has a lock but what event_is_done needs. */
#ifndef LIGHTER_DEVICE_CUDA_INTERNAL_H
#define LIGHTER_DEVICE_CUDA_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "device/backend.h"
#include "device/cuda/module.h"
#include "device/event_clock.h"

/* ---- load.c ---- */

#define CUDA_MODULE_NAME "lighter_cuda.so"
#define CUDA_PATH_BYTES 512

/* The process's one module, opened by the first call that finds it and kept to the end of the
 * process. library_path: folders to look in, ':' between, before the one that the program is in.
 * STATUS_UNAVAILABLE says what is missing. */
enum status cuda__load(const char *library_path, const struct cuda_module **module_out,
                       struct err *err);
/* Where it was opened; NULL: it was not. */
const char *cuda__load_path(void);

/* ---- error.c ---- */

/* One sentence: the device, what was asked ("cudaMalloc of 2.00 GiB"), the code's name and text. */
enum status cuda__fail(const struct cuda_module *module, const char *device_name, int code,
                       struct err *err, const char *what, ...)
    __attribute__((format(printf, 5, 6)));

/* ---- cuda.c ---- */

struct cuda_device {
    struct device base;
    const struct cuda_module *module;
    int index;                       /* CUDA's number, after CUDA_VISIBLE_DEVICES */
    uint64_t serial;                 /* of this opening; threads note which one they have entered */
    struct cuda_facts facts;
    struct device_clock *clock;      /* device times on clock_now_ns's clock */
    bool has_graphs;                 /* else every operator is launched by itself */
    atomic_uint_fast64_t op_count, replayed_count, graph_count; /* device_replays */
    atomic_bool graphs_stopped;      /* set after graphs_why */
    struct err graphs_why;
};

/* Chooses the GPU for the calling thread. To be called first by whatever another room calls. */
enum status cuda__enter(const struct cuda_device *device, struct err *err);
/* Whether there is a GPU of this number; the sentence says how many there are. */
enum status cuda__check_index(const struct cuda_module *module, const char *device_name, int index,
                              struct err *err);

/* ---- link.c ---- */

struct cuda_link {
    unsigned generation, width;         /* of PCIe, now: an idle link may have slowed down */
    unsigned generation_max, width_max; /* of the GPU in this slot */
    uint64_t bytes_per_s;               /* of the latter, as PCIe defines it; 0: not known */
};
/* Opens NVML for a moment. False: it is not there, or does not know the GPU. */
bool cuda__link_find(const char *bus_id, struct cuda_link *link_out);
/* Of a generation and a width: after the line code, before packets; 0: not known. */
uint64_t cuda__link_bytes_per_s(unsigned generation, unsigned width);

/* ---- inspect.c ---- */

/* See there for what the object has. */
json_t *cuda__inspect(const struct device_options *options);

/* ---- memory.c ---- */

enum status cuda__alloc(struct device *device, uint64_t size_bytes, void **memory_out,
                        struct err *err);
void cuda__free(struct device *device, void *memory, uint64_t size_bytes);
enum status cuda__host_alloc(struct device *device, uint64_t size_bytes, void **memory_out,
                             struct err *err);
void cuda__host_free(struct device *device, void *memory, uint64_t size_bytes);
enum status cuda__host_register(struct device *device, const void *memory, uint64_t size_bytes,
                                struct err *err);
void cuda__host_unregister(struct device *device, const void *memory, uint64_t size_bytes);
enum status cuda__shared_alloc(struct device *device, uint64_t size_bytes, void **memory_out,
                               struct device_handle *handle_out, struct err *err);
void cuda__shared_free(struct device *device, void *memory, uint64_t size_bytes);
enum status cuda__peer_open(struct device *device, const struct device_handle *handle,
                            const void **memory_out, struct err *err);
void cuda__peer_close(struct device *device, const void *memory, uint64_t size_bytes);

/* ---- stream.c ---- */

struct cuda_stream {
    struct stream base;
    void *handle;
    struct cuda_graphs *graphs;     /* NULL: operators are launched at once */
    struct cuda_room room;          /* taken by the first operator that may use it */
    struct err error;               /* the first; it stays. status STATUS_OK: none */
};

enum status cuda__stream_create(struct device *device, enum stream_kind kind,
                                struct stream **stream_out, struct err *err);
void cuda__stream_destroy(struct stream *stream);
enum status cuda__stream_sync(struct stream *stream, struct err *err);
enum status cuda__copy_in(struct stream *stream, void *dst, const void *src, uint64_t size_bytes,
                          struct err *err);
enum status cuda__copy_out(struct stream *stream, void *dst, const void *src, uint64_t size_bytes,
                           struct err *err);
enum status cuda__copy_peer(struct stream *stream, void *dst, const void *src,
                            uint64_t size_bytes, struct err *err);
enum status cuda__copy_peers(struct stream *stream, const struct device_copy *copies,
                             size_t count, struct err *err);
enum status cuda__fill(struct stream *stream, void *dst, uint8_t value, uint64_t size_bytes,
                       struct err *err);
enum status cuda__launch(struct stream *stream, const struct op *op, struct err *err);

/* Keeps what CUDA says to `what`, unless there was an error before; returns the first. */
enum status cuda__stream_break(struct cuda_stream *stream, int code, const char *what,
                               struct err *err);

/* ---- graph.c ---- */

enum status cuda__graphs_create(const struct cuda_device *device, struct cuda_graphs **graphs_out,
                                struct err *err);
/* NULL is fine. */
void cuda__graphs_destroy(const struct cuda_device *device, struct cuda_graphs *graphs);
/* Takes the op for later; false: it is to be launched, behind what was taken. */
bool cuda__graphs_keep(const struct cuda_stream *stream, const struct op *op);
bool cuda__graphs_are_full(const struct cuda_stream *stream);
/* Queues what was taken. To be called before anything else is queued on the stream or waits for
 * it. */
enum status cuda__graphs_flush(struct cuda_stream *stream, struct err *err);
void cuda__replays(const struct device *device, struct device_replays *replays_out);

/* ---- event.c; the rest of events is device/event_clock.h's ---- */

/* Fills device->clock. */
enum status cuda__clock_create(struct cuda_device *device, struct err *err);
enum status cuda__event_create(struct device *device, struct event **event_out, struct err *err);
enum status cuda__event_record(struct stream *stream, struct event *event, struct err *err);
enum status cuda__stream_wait(struct stream *stream, struct event *event, struct err *err);

#endif
