/* device/device.h - an accelerator, or something that behaves like one.
 *
 * A device has memory, streams that run what is queued on them in order and beside each other,
 * events that order streams, a link over which copies come, and operators (op.h). Nothing outside
 * device/ knows a device by name: what differs is said in `device_info`.
 *
 * Memory is accounted here, in one place: every byte is taken under a use, the sum never passes the
 * budget, and the peak is kept (charter, invariant 2).
 *
 * Threads: one thread at a time calls functions of one device, but for device_memory_report,
 * device_replays, event_is_done and device_info, which any thread may call. */
#ifndef LIGHTER_DEVICE_DEVICE_H
#define LIGHTER_DEVICE_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "device/op.h"
#include "tensor/layout.h"

struct device;
struct stream;
struct event;

#define DEVICE_ALIGNMENT 256 /* of every allocation, and of parameters inside a record */

enum device_use { /* what memory is taken for, in reports and refusals */
    DEVICE_USE_WEIGHTS,
    DEVICE_USE_SLOTS,
    DEVICE_USE_KV,
    DEVICE_USE_SCRATCH,
    DEVICE_USE_COUNT
};
const char *device_use_name(enum device_use use);

struct device_options {
    uint32_t thread_count;        /* for computing on the host; 0: all processors */
    uint64_t memory_budget_bytes; /* 0: all the device has */
    uint64_t free_memory_bytes;   /* what may be taken of the host's memory: then a device whose
                                     memory that is has no more. 0: all */
    uint64_t host_budget_bytes;   /* bound on host memory taken here; 0: none */
    const char *cpu_kernels;      /* "scalar", the reference, "avx2", ...: the CPU's that compute;
                                     NULL: the fastest. Borrowed by device_open */
    const char *library_path;     /* folders in which a device's libraries are looked for first,
                                     ':' between; NULL: none. Borrowed by device_open */
    bool keep_nd;                 /* a device that would want another layout takes weights in ND */
};

struct device_info {
    char kind[16];               /* "cpu", "sim", "ascend": devices of one kind can share memory */
    char name[64];               /* "cpu", "sim", "ascend:0" */
    char description[160];       /* for people: "AVX2, 2 threads" */
    uint64_t memory_bytes;       /* the device's own; the budget is at most this */
    bool memory_is_host;         /* host memory is its memory: units at home on the host are used in
                                    place, and host pointers are valid operands */
    bool memory_takes_host;      /* its own memory is a part of this machine's */
    bool memory_is_lazy;         /* comes when it is first touched, a large page at a time, which
                                    takes milliseconds: what is written together should lie
                                    together */
    bool rounds_for_bf16;        /* it was told to round what BF16 weights are multiplied with */
    uint64_t link_bytes_per_s;   /* as set or measured; 0: unknown or no link */
    uint64_t link_latency_ns;
    uint64_t peer_bytes_per_s;   /* between devices, as link_bytes_per_s */
    uint64_t workspace_bytes;    /* of the budget, what its operators may take while they run:
                                    whoever plans leaves it free */
    bool gathers_cache;          /* attention also takes room for the keys and values of a layer, of
                                    the longest sequence */
    uint32_t step_row_count, step_sequence_count; /* in a step, as suits it; 0: no opinion */
    uint32_t op_features;        /* OP_FEATURE_*: what it has of what not every device has */
};

/* Opens "cpu", "sim", "sim:memory=2GiB,link=16GB/s,latency=10us", ... The caller owns *device_out.
 * An unknown name or setting is STATUS_BAD_INPUT and names the nearest that exists; a device that
 * is not in this machine is STATUS_UNAVAILABLE. */
enum status device_open(const char *spec, const struct device_options *options,
                        struct device **device_out, struct err *err);
/* Everything taken from the device must have been given back. */
void device_close(struct device *device);
const struct device_info *device_info(const struct device *device);
/* One line per device this build has, for --help; ends with a NULL. */
const char *const *device_help(void);

/* Memory. The address is the device's: only ops and copies may follow it, unless memory_is_host.
 * Fails with STATUS_NO_MEMORY and the numbers when the budget would be passed; size_bytes > 0. */
enum status device_alloc(struct device *device, enum device_use use, uint64_t size_bytes,
                         void **memory_out, struct err *err);
/* NULL is fine. `use` and size_bytes as they were taken. */
void device_free(struct device *device, enum device_use use, void *memory, uint64_t size_bytes);
/* Host memory that the device can copy from at full speed (pinned where there is such a thing),
 * zeroed, aligned to a page. Counted against host_budget_bytes. */
enum status device_host_alloc(struct device *device, uint64_t size_bytes, void **memory_out,
                              struct err *err);
void device_host_free(struct device *device, void *memory, uint64_t size_bytes);

/* Host memory that the caller has taken elsewhere, such as a segment that ranks share: counted
 * against host_budget_bytes ... */
enum status device_host_charge(struct device *device, uint64_t size_bytes, struct err *err);
void device_host_discharge(struct device *device, uint64_t size_bytes);
/* ... and made fit for copies at full speed (pinned where there is such a thing), until it is
 * unregistered. It may be read-only. Unregistering NULL is fine. */
enum status device_host_register(struct device *device, const void *memory, uint64_t size_bytes,
                                 struct err *err);
void device_host_unregister(struct device *device, const void *memory, uint64_t size_bytes);

/* Device memory that devices of other processes of this machine can read, and the handle by which
 * they find it: plain bytes, sent by any means, without a meaning to the sender. What another
 * device wants to know (CUDA's and CANN's handles have 64 and 65 bytes) is in `opaque`. */
struct device_handle {
    char device[16];              /* the kind that made it: "cpu", "sim" */
    uint64_t size_bytes;
    uint8_t opaque[104];
};
enum status device_shared_alloc(struct device *device, enum device_use use, uint64_t size_bytes,
                                void **memory_out, struct device_handle *handle_out,
                                struct err *err);
/* NULL is fine. Nothing of the memory stays once the last peer has closed it too. */
void device_shared_free(struct device *device, enum device_use use, void *memory,
                        uint64_t size_bytes);
/* Opens what a peer has allocated; only device_copy_peer may read it. size_bytes: what is expected.
 * STATUS_PEER: the peer is gone, may not be read, is another kind of device, or shares another
 * size. */
enum status device_peer_open(struct device *device, const struct device_handle *handle,
                             uint64_t size_bytes, const void **memory_out, struct err *err);
/* NULL is fine. No copy from it may be queued. */
void device_peer_close(struct device *device, const void *memory, uint64_t size_bytes);

struct device_memory_report {
    uint64_t budget_bytes, used_bytes, peak_bytes;
    uint64_t used_by[DEVICE_USE_COUNT];
    uint64_t host_budget_bytes, host_used_bytes, host_peak_bytes;
};
void device_memory_report(const struct device *device, struct device_memory_report *report_out);

/* What a weight is to the ops that read it. */
enum device_weight {
    DEVICE_WEIGHT_OTHER,   /* a vector, a table, a small or a batched matrix: always ND */
    DEVICE_WEIGHT_MATRIX,  /* of OP_MATMUL, [n][k], perhaps cut by rows */
    DEVICE_WEIGHT_EXACT,   /* of an exact one, whole */
    DEVICE_WEIGHT_GATE_UP, /* of OP_MOE: gate over up, of all experts or of one ... */
    DEVICE_WEIGHT_DOWN,    /* ... and what brings them back; always in gate and up's layout */
};
/* The layout in which the device's ops want such weights: what "finishing" a parameter brings about
 * once it has been loaded. Only one that fits (layout_fits) may have it; ops take the others in ND,
 * and where it is ROWS_16 they take all of them in ND, too. */
enum layout device_weight_layout(const struct device *device, enum device_weight weight,
                                 enum dtype dtype);

/* STATUS_UNAVAILABLE, with what would do, when the device's ops do not know weights of this
 * dtype. */
enum status device_weights_check(const struct device *device, enum dtype dtype, struct err *err);
/* STATUS_UNAVAILABLE, naming the first that is missing, when the device has not all of these
 * OP_FEATURE_*. */
enum status device_features_check(const struct device *device, uint32_t op_features,
                                  struct err *err);

/* Streams and events. A stream runs its queue in order; two streams run beside each other. */
enum stream_kind { STREAM_COMPUTE, STREAM_COPY };
enum status stream_create(struct device *device, enum stream_kind kind, struct stream **stream_out,
                          struct err *err);
void stream_destroy(struct stream *stream); /* waits for its queue; NULL is fine */
/* Waits until everything queued so far is done; returns the stream's first error, which stays. */
enum status stream_sync(struct stream *stream, struct err *err);

enum status event_create(struct device *device, struct event **event_out, struct err *err);
void event_destroy(struct event *event);
/* Queues a mark; the event is done when the stream reaches it. Recording again makes it undone. */
enum status event_record(struct stream *stream, struct event *event, struct err *err);
/* Makes what is queued on `stream` after this wait for the event as last recorded; returns at once.
 * An event never recorded counts as done. */
enum status stream_wait(struct stream *stream, struct event *event, struct err *err);
enum status event_sync(struct event *event, struct err *err);
bool event_is_done(const struct event *event);
/* When the stream reached it, on clock_now_ns's clock; the event must be done. */
uint64_t event_time_ns(const struct event *event);

/* Copies and fills, queued on a stream. Host memory must stay put until the stream has passed.
 * copy_in: host to device (over the link); copy_out: device to host. */
enum status device_copy_in(struct stream *stream, void *dst, const void *src, uint64_t size_bytes,
                           struct err *err);
enum status device_copy_out(struct stream *stream, void *dst, const void *src, uint64_t size_bytes,
                            struct err *err);
/* From a peer's memory (within what device_peer_open returned), over the link between devices; or
 * from the device's own. */
enum status device_copy_peer(struct stream *stream, void *dst, const void *src, uint64_t size_bytes,
                             struct err *err);
/* Several of these, none of which writes what another reads or writes: in any order, and by one
 * call of the driver where it has one for that. `copies` is read before it returns. */
struct device_copy {
    void *dst;
    const void *src;
    uint64_t size_bytes;          /* > 0 */
};
enum status device_copy_peers(struct stream *stream, const struct device_copy *copies,
                              size_t count, struct err *err);
enum status device_fill(struct stream *stream, void *dst, uint8_t value, uint64_t size_bytes,
                        struct err *err);

/* Queues an op. STATUS_UNAVAILABLE when the device has no kernel for its dtype. */
enum status device_launch(struct stream *stream, const struct op *op, struct err *err);

/* Operators that came again and were queued together, as CUDA's graphs. Any thread may ask. */
struct device_replays {
    uint64_t op_count;       /* that were queued since the device was opened; 0 on a device that has
                                nothing of the kind */
    uint64_t replayed_count; /* of these */
    uint64_t graph_count;    /* made */
    const char *stopped;     /* a sentence, when the device had to stop that; NULL: it did not. It
                                stays as long as the device */
};
void device_replays(const struct device *device, struct device_replays *replays_out);

#endif
