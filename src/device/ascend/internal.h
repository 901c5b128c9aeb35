/* device/ascend/internal.h - the parts of the Ascend device.
 *
 *     load.c      opens CANN's libraries, finds every function of cann.h
 *     error.c     a code and the runtime's text become one sentence
 *     inspect.c   what was found of CANN, for a report
 *     ascend.c    the device: set-up, description, the table of backend.h
 *     memory.c    device memory, pinned host memory, memory that ranks share
 *     stream.c    streams, copies, workspaces
 *     event.c     events, for device/event_clock.c
 *     op*.c       operators, through CANN's two-phase calls
 *     executors.c calls of operators that were made before
 *
 * A call into CANN may come from any thread, but each thread must have chosen the device before:
 * ascend__enter does that, once per thread. device.h lets one thread at a time in, so nothing here
 * has a lock but what event_is_done and the memory accounts need.
 *
 * Nothing of this has run on an NPU: docs/ascend.md says what was verified, and how. */
#ifndef LIGHTER_DEVICE_ASCEND_INTERNAL_H
#define LIGHTER_DEVICE_ASCEND_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "device/ascend/cann.h"
#include "device/backend.h"
#include "device/event_clock.h"

/* ---- load.c: the libraries ---- */

typedef aclnnStatus (*ascend_phase2)(void *workspace, uint64_t workspace_size,
                                     aclOpExecutor *executor, aclrtStream stream);

/* NOLINTNEXTLINE(bugprone-macro-parentheses): neither a name nor parameters have any. */
#define ASCEND_FUNCTION_FIELD(need, since, type, name, parameters) type(*name) parameters;
#define ASCEND_OPERATOR_FIELDS(need, since, name, ...)                                             \
    aclnnStatus (*aclnn##name##GetWorkspaceSize)(__VA_ARGS__, uint64_t *workspace_size,            \
                                                 aclOpExecutor **executor);                        \
    ascend_phase2 aclnn##name;

/* Every function by its own name. Required ones are never NULL; optional ones are NULL where the
 * installed CANN lacks them: test the pointer. */
struct ascend_cann {
    CANN_ASCENDCL(ASCEND_FUNCTION_FIELD)
    CANN_NNOPBASE(ASCEND_FUNCTION_FIELD)
    CANN_OPAPI_FUNCTIONS(ASCEND_FUNCTION_FIELD)
    CANN_OPERATORS(ASCEND_OPERATOR_FIELDS)
};

/* The process's one set of libraries, opened by the first call and kept to the end of the process,
 * with aclInit and, at exit, aclFinalize. library_path: folders to try first, ':' between; NULL:
 * none. STATUS_UNAVAILABLE says which library or symbol is missing and which CANN has it. */
enum status ascend__load(const char *library_path, const struct ascend_cann **cann_out,
                         struct err *err);

/* What the above found, for a report: fills the table as far as it goes and calls nothing. */
void ascend__probe(const char *library_path);

enum ascend_library_id {
    ASCEND_LIBRARY_ASCENDCL,
    ASCEND_LIBRARY_NNOPBASE,
    ASCEND_LIBRARY_OPAPI,             /* all operators; in newer releases these: */
    ASCEND_LIBRARY_OPAPI_MATH,
    ASCEND_LIBRARY_OPAPI_NN,
    ASCEND_LIBRARY_COUNT
};
#define ASCEND_PATH_BYTES 512
struct ascend_library {
    const char *name, *other_name;    /* other_name: what newer releases call it, or NULL */
    void *handle;                     /* NULL: not opened */
    char path[ASCEND_PATH_BYTES];     /* as it was opened */
    char problem[ASCEND_PATH_BYTES];  /* why it was not */
};
const struct ascend_library *ascend__library(enum ascend_library_id id);

struct ascend_symbol {
    const char *name;
    enum ascend_library_id library;
    const char *since;                /* the CANN that has it */
    size_t offset;                    /* in struct ascend_cann */
    bool required;
};
const struct ascend_symbol *ascend__symbols(size_t *count_out);
/* The library that has it, or should have it. */
const char *ascend__symbol_library(const struct ascend_symbol *symbol);
bool ascend__symbol_library_is_open(const struct ascend_symbol *symbol);
bool ascend__symbol_is_there(const struct ascend_symbol *symbol);

/* ---- error.c ---- */

/* "ACL_ERROR_RT_MEMORY_ALLOCATION"; NULL for a code that cann.h does not list. */
const char *ascend__error_name(int code);
/* One sentence: the device, what was asked ("aclrtMalloc of 2.00 GiB"), the code, its name and
 * meaning, and what the runtime itself says. STATUS_NO_MEMORY, STATUS_UNAVAILABLE or
 * STATUS_DEVICE. */
enum status ascend__fail(const struct ascend_cann *cann, const char *device_name, int code,
                         struct err *err, const char *what, ...)
    __attribute__((format(printf, 5, 6)));

/* ---- ascend.c: the device ---- */

struct ascend_memory; /* memory.c's */

struct ascend_device {
    struct device base;
    const struct ascend_cann *cann;
    int32_t index;                  /* CANN's number, after ASCEND_RT_VISIBLE_DEVICES */
    uint64_t serial;                /* of this opening; threads note which one they have entered */
    atomic_uint set_count;          /* aclrtSetDevice calls, each of which is undone at the end */
    bool nd;                        /* keep all weights in ND */
    uint64_t executor_count;        /* to keep */
    struct ascend_memory *memory;
    struct device_clock *clock;     /* device times on clock_now_ns's clock */
    struct ascend_ops *ops;         /* op.c's */
};

/* inspect.c. See there for what the object has. */
json_t *ascend__inspect(const struct device_options *options);

/* Chooses the device for the calling thread. To be called first by whatever another room calls. */
enum status ascend__enter(const struct ascend_device *device, struct err *err);

/* ---- memory.c ---- */

enum status ascend__memory_create(struct ascend_device *device, struct err *err);
/* NULL is fine. */
void ascend__memory_destroy(struct ascend_device *device);
enum status ascend__alloc(struct device *device, uint64_t size_bytes, void **memory_out,
                          struct err *err);
void ascend__free(struct device *device, void *memory, uint64_t size_bytes);
enum status ascend__host_alloc(struct device *device, uint64_t size_bytes, void **memory_out,
                               struct err *err);
void ascend__host_free(struct device *device, void *memory, uint64_t size_bytes);
enum status ascend__host_register(struct device *device, const void *memory, uint64_t size_bytes,
                                  struct err *err);
void ascend__host_unregister(struct device *device, const void *memory, uint64_t size_bytes);
enum status ascend__shared_alloc(struct device *device, uint64_t size_bytes, void **memory_out,
                                 struct device_handle *handle_out, struct err *err);
void ascend__shared_free(struct device *device, void *memory, uint64_t size_bytes);
enum status ascend__peer_open(struct device *device, const struct device_handle *handle,
                              const void **memory_out, struct err *err);
void ascend__peer_close(struct device *device, const void *memory, uint64_t size_bytes);
/* How many of size_bytes from there lie in one pinned piece, so that one asynchronous copy may take
 * them; 0: memory is not pinned. */
uint64_t ascend__pinned_bytes(const struct ascend_device *device, const void *memory,
                              uint64_t size_bytes);
/* Whether all of [memory, memory + size_bytes) lies in one piece of the device's own memory, or of
 * a peer's. */
bool ascend__device_holds(const struct ascend_device *device, const void *memory,
                          uint64_t size_bytes);
bool ascend__peer_holds(const struct ascend_device *device, const void *memory,
                        uint64_t size_bytes);

/* ---- stream.c ---- */

struct ascend_stream {
    struct stream base;
    aclrtStream handle;
    struct err error;               /* the first; it stays. status STATUS_OK: none */
    struct ascend_block {           /* used by the ops on this stream, one after another */
        void *memory;
        uint64_t size_bytes;
    } scratch, workspace;
    struct ascend_staging *staging; /* for host memory that is not pinned; NULL until needed */
};

static inline struct ascend_device *ascend__device_of(const struct ascend_stream *stream)
{
    return (struct ascend_device *)stream->base.device;
}

/* Device memory for what one op makes and uses itself, valid until the next call on this stream;
 * taken from the accounts as DEVICE_USE_SCRATCH, and kept for the ops that follow. An op asks once,
 * for all that it needs. */
enum status ascend__scratch(struct ascend_stream *stream, uint64_t size_bytes, void **memory_out,
                            struct err *err);
/* Device memory for the next operator of CANN's, kept and accounted the same way; NULL for 0. */
enum status ascend__workspace(struct ascend_stream *stream, uint64_t size_bytes, void **memory_out,
                              struct err *err);
/* Phase 2 of an operator: queues the kernels, and consumes the executor, also when it fails, unless
 * that was made repeatable. name: "aclnnMm". */
enum status ascend__execute(struct ascend_stream *stream, const char *name, ascend_phase2 phase2,
                            void *workspace, uint64_t workspace_bytes, aclOpExecutor *executor,
                            struct err *err);

enum status ascend__stream_create(struct device *device, enum stream_kind kind,
                                  struct stream **stream_out, struct err *err);
void ascend__stream_destroy(struct stream *stream);
enum status ascend__stream_sync(struct stream *stream, struct err *err);
enum status ascend__copy_in(struct stream *stream, void *dst, const void *src,
                            uint64_t size_bytes, struct err *err);
enum status ascend__copy_out(struct stream *stream, void *dst, const void *src,
                             uint64_t size_bytes, struct err *err);
enum status ascend__copy_peer(struct stream *stream, void *dst, const void *src,
                              uint64_t size_bytes, struct err *err);
enum status ascend__fill(struct stream *stream, void *dst, uint8_t value, uint64_t size_bytes,
                         struct err *err);
/* Enters the device, refuses on a broken stream, and calls ascend__launch. */
enum status ascend__stream_launch(struct stream *stream, const struct op *op, struct err *err);

/* ---- event.c; the rest of events is device/event_clock.h's ---- */

/* Fills device->clock. */
enum status ascend__clock_create(struct ascend_device *device, struct err *err);
enum status ascend__event_create(struct device *device, struct event **event_out, struct err *err);
enum status ascend__event_record(struct stream *stream, struct event *event, struct err *err);
enum status ascend__stream_wait(struct stream *stream, struct event *event, struct err *err);

/* ---- op.c ---- */

/* What ops keep as long as the device is open (masks, cached executors, ...). */
enum status ascend__ops_create(struct ascend_device *device, struct err *err);
/* Fine after a failed create. */
void ascend__ops_destroy(struct ascend_device *device);
enum layout ascend__weight_layout(const struct device *device, enum device_weight weight,
                                  enum dtype dtype);
enum status ascend__weights_check(const struct device *device, enum dtype dtype, struct err *err);
enum status ascend__cast_nz(struct stream *stream, enum dtype dtype, uint64_t k, uint64_t n,
                            void *dst, const void *src, struct err *err);
/* Of OP_FEATURE_*, those whose operators the installed CANN has. */
uint32_t ascend__op_features(const struct ascend_cann *cann);
/* The thread has entered the device, and the stream has no error. */
enum status ascend__launch(struct stream *stream, const struct op *op, struct err *err);

#endif
