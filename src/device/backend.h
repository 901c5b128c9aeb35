/* device/backend.h - what a device fills in; only for files inside device/.
 *
 * A back end puts `struct device`, `struct stream` and `struct event` first in its own structs and
 * exports one `const struct device_ops`, which device.c lists. Each entry is a primitive and is
 * never NULL; device.c has checked arguments, budget and sizes before it calls. Semantics are those
 * of the functions of the same name in device.h. */
#ifndef LIGHTER_DEVICE_BACKEND_H
#define LIGHTER_DEVICE_BACKEND_H

#include <jansson.h>

#include "device/device.h"

struct device_ops {
    const char *name;       /* what stands before the ':' of --device */
    const char *other_name; /* what may stand there too, or NULL */
    enum status (*open)(const char *settings, const struct device_options *options,
                        struct device **device_out, struct err *err);
    void (*close)(struct device *device);
    /* What only this kind of device has to say, for `inspect`: an object, or NULL when out of
     * memory. No device need be open. */
    json_t *(*inspect)(const struct device_options *options);
    enum status (*alloc)(struct device *device, uint64_t size_bytes, void **memory_out,
                         struct err *err);
    void (*free)(struct device *device, void *memory, uint64_t size_bytes);
    enum status (*host_alloc)(struct device *device, uint64_t size_bytes, void **memory_out,
                              struct err *err);
    void (*host_free)(struct device *device, void *memory, uint64_t size_bytes);
    enum status (*host_register)(struct device *device, const void *memory, uint64_t size_bytes,
                                 struct err *err);
    void (*host_unregister)(struct device *device, const void *memory, uint64_t size_bytes);
    /* Fills handle_out->opaque. */
    enum status (*shared_alloc)(struct device *device, uint64_t size_bytes, void **memory_out,
                                struct device_handle *handle_out, struct err *err);
    void (*shared_free)(struct device *device, void *memory, uint64_t size_bytes);
    enum status (*peer_open)(struct device *device, const struct device_handle *handle,
                             const void **memory_out, struct err *err);
    void (*peer_close)(struct device *device, const void *memory, uint64_t size_bytes);
    enum layout (*weight_layout)(const struct device *device, enum device_weight weight,
                                 enum dtype dtype);
    enum status (*weights_check)(const struct device *device, enum dtype dtype, struct err *err);
    /* Queues the device's own conversion of a matrix [k][n] of whole blocks from ND to FRACTAL_NZ,
     * for selftest alone. STATUS_UNAVAILABLE: it has none. */
    enum status (*cast_nz)(struct stream *stream, enum dtype dtype, uint64_t k, uint64_t n,
                           void *dst, const void *src, struct err *err);
    enum status (*stream_create)(struct device *device, enum stream_kind kind,
                                 struct stream **stream_out, struct err *err);
    void (*stream_destroy)(struct stream *stream);
    enum status (*stream_sync)(struct stream *stream, struct err *err);
    enum status (*event_create)(struct device *device, struct event **event_out, struct err *err);
    void (*event_destroy)(struct event *event);
    enum status (*event_record)(struct stream *stream, struct event *event, struct err *err);
    enum status (*stream_wait)(struct stream *stream, struct event *event, struct err *err);
    enum status (*event_sync)(struct event *event, struct err *err);
    bool (*event_is_done)(const struct event *event);
    uint64_t (*event_time_ns)(const struct event *event);
    enum status (*copy_in)(struct stream *stream, void *dst, const void *src, uint64_t size_bytes,
                           struct err *err);
    enum status (*copy_out)(struct stream *stream, void *dst, const void *src,
                            uint64_t size_bytes, struct err *err);
    enum status (*copy_peer)(struct stream *stream, void *dst, const void *src,
                             uint64_t size_bytes, struct err *err);
    enum status (*copy_peers)(struct stream *stream, const struct device_copy *copies,
                              size_t count, struct err *err);
    enum status (*fill)(struct stream *stream, void *dst, uint8_t value, uint64_t size_bytes,
                        struct err *err);
    enum status (*launch)(struct stream *stream, const struct op *op, struct err *err);
    void (*replays)(const struct device *device, struct device_replays *replays_out);
};

struct device {
    const struct device_ops *ops;
    struct device_info info;               /* filled by open */
    struct device_memory *memory;          /* device.c's: the accounts */
};
struct stream {
    struct device *device;
};
struct event {
    struct device *device;
};

/* device.c: the back end that a spec names. */
enum status device__find(const char *spec, const struct device_ops **ops_out, struct err *err);
/* device.c: of a device whose driver takes one copy at a time. */
enum status device__copy_each(struct stream *stream, const struct device_copy *copies,
                              size_t count, struct err *err);
/* device.c: of a device that queues every operator by itself. */
void device__replay_nothing(const struct device *device, struct device_replays *replays_out);
/* inspect.c: of a device that has nothing more to say than device_info. */
json_t *device__inspect_nothing(const struct device_options *options);
/* selftest.c: of a device that converts nothing itself. */
enum status device__cast_nothing(struct stream *stream, enum dtype dtype, uint64_t k, uint64_t n,
                                 void *dst, const void *src, struct err *err);

/* One line each for --help: the spec, its settings, what it is. */
#define DEVICE_CPU_HELP \
    "cpu[:bf16-products=on]: this machine's processors; host memory is its memory; the setting " \
    "rounds activations to BF16 for BF16 weights, which about doubles a prompt's speed on " \
    "processors with AVX-512 BF16 and without AMX"
#define DEVICE_SIM_HELP \
    "sim[:memory=4GiB,link=16GB/s,latency=10us,peer=50GB/s]: a software accelerator with memory " \
    "and a link of its own; without link copies run at memcpy's speed, without peer copies from " \
    "other ranks' devices run at the link's (for tests: layout=nz keeps weights as an NPU does; " \
    "fail_alloc=N, fail_host_alloc=N, fail_copy=N, fail_launch=N fail the N-th)"
#define DEVICE_ASCEND_HELP \
    "ascend[:N,layout=nz], npu[:N]: Huawei's NPU number N (else the first, and each rank of a " \
    "node its own), with weights in FRACTAL_NZ or, layout=nd, in plain rows; through CANN " \
    "8.1.RC1 or later, which is looked for in ASCEND_HOME_PATH, in LD_LIBRARY_PATH and where it " \
    "installs itself; see docs/ascend.md"
#define DEVICE_CUDA_HELP \
    "cuda[:N,graphs=on]: NVIDIA's GPU number N (else the first, and each rank of a node its own)," \
    " of compute capability 8.0 or later, with operators that come again queued together or, "     \
    "graphs=off, one by one; needs lighter_cuda.so beside the program, which the build makes "     \
    "where nvcc is; see docs/cuda.md"

extern const struct device_ops device_ascend_ops;
extern const struct device_ops device_cpu_ops;
extern const struct device_ops device_cuda_ops;
extern const struct device_ops device_sim_ops;

#endif
