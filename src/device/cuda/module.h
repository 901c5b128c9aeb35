/* device/cuda/module.h - what lighter_cuda.so gives the program: CUDA's runtime and the kernels
 * behind a table of plain functions.
 *
 * The module knows nothing of the program and calls nothing in it. Results are CUDA's own codes, 0
 * for success; error_name and error_text say what they mean, and status_of which of ours they are.
 * Streams, events and memory are CUDA's, as addresses. Everything is of the device that the calling
 * thread has entered. */
#ifndef LIGHTER_DEVICE_CUDA_MODULE_H
#define LIGHTER_DEVICE_CUDA_MODULE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "device/op.h"

#define CUDA_MODULE_VERSION 4
#define CUDA_MODULE_SYMBOL "lighter_cuda_module"
#define CUDA_MODULE_HANDLE_BYTES 64

struct cuda_facts {
    char name[256];
    char bus_id[32];              /* "0000:65:00.0" */
    int major, minor;             /* compute capability */
    int processors;               /* multiprocessors */
    int numa_node;                /* of the host memory next to it; -1: not known */
    int copy_engines;
    int memory_bus_bits, memory_clock_khz;
    int l2_bytes;
    bool shares_host_memory;      /* integrated: its memory is this machine's */
    bool registers_read_only;     /* host memory that may only be read can be registered */
    void *copy_batch;             /* the driver's function for many copies; NULL: it has none */
};

/* Copies whose order among themselves is free. */
#define CUDA_BATCH_MAX 64
struct cuda_batch {
    void *dst[CUDA_BATCH_MAX];
    const void *src[CUDA_BATCH_MAX];
    size_t size_bytes[CUDA_BATCH_MAX];
    size_t count;
};

/* Device memory that belongs to a stream's operators, each while it runs. */
struct cuda_room {
    void *memory;
    uint64_t size_bytes;
};

enum cuda_copy { CUDA_COPY_IN, CUDA_COPY_OUT, CUDA_COPY_PEER };

struct cuda_module {
    uint32_t version;             /* CUDA_MODULE_VERSION */
    const char *built_for;        /* "sm_80 sm_86 ... and PTX" */
    const char *(*error_name)(int code);
    const char *(*error_text)(int code);
    enum status (*status_of)(int code);
    int (*versions)(int *runtime_out, int *driver_out); /* 13000: 13.0 */
    int (*device_count)(int *count_out);
    int (*facts)(int index, struct cuda_facts *facts_out);
    int (*enter)(int index);      /* for the calling thread */
    /* Whether the module has kernels that the entered device can run. */
    int (*check_kernels)(void);
    int (*memory_info)(uint64_t *free_bytes_out, uint64_t *total_bytes_out);
    int (*memory_alloc)(uint64_t size_bytes, void **memory_out);
    int (*memory_free)(void *memory);
    int (*host_register)(void *memory, uint64_t size_bytes, bool read_only);
    int (*host_unregister)(void *memory);
    int (*share)(void *memory, uint8_t handle_out[CUDA_MODULE_HANDLE_BYTES]);
    int (*shared_open)(const uint8_t handle[CUDA_MODULE_HANDLE_BYTES], void **memory_out);
    int (*shared_close)(void *memory);
    int (*stream_create)(void **stream_out);
    int (*stream_destroy)(void *stream);
    int (*stream_sync)(void *stream);
    int (*event_create)(void **event_out);
    int (*event_destroy)(void *event);
    int (*event_record)(void *stream, void *event);
    int (*event_wait)(void *stream, void *event);
    int (*event_sync)(void *event);
    int (*event_is_done)(void *event, bool *done_out);
    int (*event_elapsed)(void *from, void *to, float *ms_out);
    int (*copy)(void *stream, enum cuda_copy kind, void *dst, const void *src,
                uint64_t size_bytes);
    /* function: facts' copy_batch. *failed_out: which copy is to blame, or SIZE_MAX. */
    int (*copy_batch)(void *function, void *stream, struct cuda_batch *batch,
                      size_t *failed_out);
    int (*fill)(void *stream, void *dst, uint8_t value, uint64_t size_bytes);
    /* The op has rows and weights that op.h lists. The room's address is the same for all that is
     * launched on the stream; how large it is changes no bit. */
    int (*launch)(void *stream, const struct op *op, const struct cuda_room *room);
    /* What is launched on the stream from graph_begin on, by this thread and nothing else, becomes
     * a graph instead; graph_out NULL: it is thrown away. */
    int (*graph_begin)(void *stream);
    int (*graph_end)(void *stream, void **graph_out);
    int (*graph_launch)(void *stream, void *graph);
    int (*graph_destroy)(void *graph);
};

#endif
