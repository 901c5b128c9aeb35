/* tests/cann/internal.h - what the files of the stand-in share.
 *
 * Device memory has two addresses. Programs get the one in a window without any access, so that a
 * host that touches it faults; streams' workers translate it to the other, through the table of
 * live allocations, so that a worker can't touch what is not there.
 *
 * Locks: `world` guards all tables (allocations, contexts, streams' lists, events' marks); each
 * stream has one for its queue. world is never taken with a queue's lock held. */
#ifndef CANN_INTERNAL_H
#define CANN_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "abi.h"
#include "standin.h"


#pragma GCC visibility push(default)

/* Error values of the reference, section 1.6. */
enum code {
    E_INVALID_PARAM = 100000,
    E_UNINITIALIZE = 100001,
    E_REPEAT_INITIALIZE = 100002,
    E_REPEAT_FINALIZE = 100037,
    E_PARAM = 107000,
    E_DEVICE_ID = 107001,
    E_CONTEXT_NULL = 107002,
    E_STREAM_CONTEXT = 107003,
    E_HANDLE = 107017,
    E_NOT_SUPPORT = 207000,
    E_MEMORY = 207001,
    E_NO_EVENT = 207007,
    E_NO_STREAM = 207008,
    E_STREAM_TIMEOUT = 507046,
    E_EVENT_TIMEOUT = 507047,
    E_AICORE_EXCEPTION = 507015,
    E_DRIVER = 507899,
    E_HOST_REGISTERED = 507910,
    E_HOST_NOT_REGISTERED = 507911,
    E_NN_NULL = 161001,
    E_NN_INVALID = 161002,
    E_NN_RUNTIME = 361001,
    E_NN_TILING = 561002,
};

/* For objects that CANN's interface hands back as const. */
static inline void *standin_mutable(const void *object)
{
    union { const void *in; void *out; } both = { .in = object };
    return both.out;
}

/* ---- settings, counters, errors (settings.c, report.c) ---- */

struct settings {
    uint64_t memory_bytes;      /* per device */
    uint64_t pinned_bytes_max;
    int device_count;
    char soc[64];
    bool pageable_fails;        /* asynchronous copies of pageable memory fail instead of waiting */
    bool matmul_narrow;         /* products are rounded to their operands' type first */
    bool silent;                /* faults and leaks are counted, not printed */
    uint64_t seed;
    unsigned delay_us_max;
    uint64_t stream_count_max, event_count_max; /* per device */
};
extern struct settings standin_settings;
void standin_settings_load(void);

struct standin_entry {
    const char *name;
    uint64_t calls;
    struct standin_entry *next;
};
/* Counts a call, and says with which code it has to fail, or 0. */
int standin_enter(struct standin_entry *entry);
#define ENTER_OR(name_, failed_)                                \
    do {                                                        \
        static struct standin_entry entry_ = { .name = #name_ }; \
        if (standin_enter(&entry_) != 0)                        \
            return failed_;                                     \
    } while (0)
#define ENTER(name_)                                            \
    do {                                                        \
        static struct standin_entry entry_ = { .name = #name_ }; \
        const int code_ = standin_enter(&entry_);               \
        if (code_ != 0)                                         \
            return code_;                                       \
    } while (0)

void standin_count(const char *name, uint64_t by);
void standin_uncount(const char *name, uint64_t by);
/* Sets this thread's message and returns the code. */
int standin_error(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
void standin_fault(const char *format, ...) __attribute__((format(printf, 1, 2)));
void standin_leak(const char *format, ...) __attribute__((format(printf, 1, 2)));
void standin_report_reset(void);
void standin_report_write(void);
uint64_t standin_random(uint64_t *state);

/* ---- devices and contexts (device.c) ---- */

#define DEVICES_MAX 16

struct context {
    int device_id;
    bool is_default, is_dead;
    int error;                  /* sticky: what a kernel's fault left; guarded by world */
    struct stream *default_stream;
    struct context *next;
};

extern pthread_mutex_t standin_world;
/* This thread's context, or NULL and an error (107002). */
struct context *standin_context(const char *function);
/* As the driver numbers it, for handles that cross processes. */
int standin_physical_id(int device_id);
bool standin_peer_enabled(int from, int to);
bool standin_is_open(void);

/* ---- memory (memory.c, host.c) ---- */

enum range_kind { RANGE_OWN, RANGE_IMPORT };

struct range {
    uintptr_t base;             /* what the program sees */
    uint64_t size;              /* as asked for */
    uint64_t charged;           /* of the device's memory */
    uint8_t *bytes;             /* what workers see */
    int device_id;
    enum range_kind kind;
    bool whole_pages;           /* can be exported */
    uint64_t page_size;
    unsigned users;             /* tasks at work in it */
};

int standin_memory_open(int device_id);
void standin_memory_close(int device_id);
/* Copies what lies under [address, address + size), when all of it is in one live range. */
bool standin_range_find(const void *address, uint64_t size, struct range *range_out);
/* The same for tasks: what is freed before unpin faults. NULL when it is not there. */
uint8_t *standin_range_pin(const void *address, uint64_t size, int device_id);
void standin_range_unpin(const void *address);
/* Is it inside any device's window, live or not? */
bool standin_is_device_address(const void *address);
int standin_memory_fd(int device_id);
uint64_t standin_memory_offset(const struct range *range);
int standin_range_add_import(int device_id, uint64_t size, int fd, uint64_t offset,
                             void **base_out);
bool standin_range_drop(uintptr_t base, enum range_kind kind, struct range *range_out);

bool standin_is_pinned(const void *address, uint64_t size);
bool standin_touches_pinned(const void *address, uint64_t size);
void standin_host_close(void);

/* ---- streams and events (stream.c, event.c) ---- */

struct stream;

struct task {
    void (*run)(struct task *task, struct stream *stream);
    void (*drop)(struct task *task);  /* frees it; after run, and instead of it */
    struct task *next;
    bool is_prompt;                   /* not delayed: markers */
    bool is_instant;                  /* takes no time: nothing is left to do for it alone */
};

/* The stream behind a handle (NULL: the context's default stream), checked against this thread's
 * context. NULL with *code_out set otherwise. */
struct stream *standin_stream(void *handle, const char *function, int *code_out);
int standin_stream_device(const struct stream *stream);
struct context *standin_stream_context(const struct stream *stream);
void standin_stream_push(struct stream *stream, struct task *task);
/* Waits until all that is queued now has run. */
int standin_stream_drain(struct stream *stream, int timeout_ms);
/* A device fault: later calls in this context answer with it. */
void standin_stream_poison(struct stream *stream, int code);
void standin_streams_close(struct context *context, bool leaks);
void standin_streams_hold(bool held);
int standin_streams_drain(struct context *context);

/* One record of an event, or one drain. Counted: the event, and every task that waits for it. */
struct mark;
struct mark *standin_mark_new(void);
struct mark *standin_mark_ref(struct mark *mark);
void standin_mark_unref(struct mark *mark);
void standin_mark_push(struct stream *stream, struct mark *mark);
bool standin_mark_done(struct mark *mark);
uint64_t standin_mark_time_ns(struct mark *mark);
bool standin_mark_wait(struct mark *mark, int timeout_ms);
void standin_mark_wait_push(struct stream *stream, struct mark *mark);
void standin_events_close(int device_id, bool leaks);

void standin_ipc_close(void);
/* How many processes have memory of the block at `base` open. */
unsigned standin_ipc_importers(uintptr_t base);

#pragma GCC visibility pop

#endif
