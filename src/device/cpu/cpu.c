/* device/cpu/cpu.c - this machine's processors as a device.
 *
 * Host memory is its memory, so units at home there are used in place. Everything is done before
 * the call returns: a stream has nothing to wait for, and an event is done when it is recorded. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/size.h"
#include "device/backend.h"
#include "device/cpu/execute.h"
#include "device/host_memory.h"
#include "device/settings.h"
#include "device/shared.h"

struct cpu_device {
    struct device base;
    struct cpu_executor *executor;
    struct device__shared shared, peers;
};

struct cpu_event {
    struct event base;
    uint64_t time_ns; /* when it was last recorded, or created */
};

static void cpu_close(struct device *device)
{
    struct cpu_device *cpu = (struct cpu_device *)device;

    cpu_executor_destroy(cpu->executor);
    free(cpu);
}

static enum status cpu_open(const char *settings, const struct device_options *options,
                            struct device **device_out, struct err *err)
{
    uint64_t rounds_x = 0;
    const struct setting known[] = { { "bf16-products", SETTING_SWITCH, &rounds_x, 0, 1 } };
    struct cpu_device *cpu;
    enum status st;

    st = device__settings_read("cpu", settings, known, sizeof(known) / sizeof(known[0]), err);
    if (st != STATUS_OK)
        return st;
    if (rounds_x && options->cpu_kernels != NULL)
        return err_set(err, STATUS_BAD_INPUT,
                       "cpu: bf16-products=on and --cpu-kernels exclude each other");
    cpu = calloc(1, sizeof(*cpu));
    if (cpu == NULL)
        return err_set(err, STATUS_NO_MEMORY, "cpu: no memory for a device");
    cpu->base.ops = &device_cpu_ops;
    cpu->base.info.memory_is_host = true;
    cpu->base.info.memory_is_lazy = true;
    cpu->base.info.rounds_for_bf16 = rounds_x != 0;
    cpu->base.info.op_features = OP_FEATURES_ALL;
    cpu->base.info.memory_bytes =
        (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    memcpy(cpu->base.info.name, "cpu", sizeof("cpu"));
    st = cpu_executor_create(options, &cpu->executor, err);
    if (st == STATUS_OK && rounds_x)
        st = cpu_executor_round_x(cpu->executor, err);
    if (st != STATUS_OK) {
        cpu_close(&cpu->base);
        return st;
    }
    cpu_executor_describe(cpu->executor, cpu->base.info.description,
                          sizeof(cpu->base.info.description));
    *device_out = &cpu->base;
    return STATUS_OK;
}

static enum status cpu_alloc(struct device *device, uint64_t size_bytes, void **memory_out,
                             struct err *err)
{
    (void)device;
    return host_memory_map("cpu", size_bytes, memory_out, err);
}

static void cpu_free(struct device *device, void *memory, uint64_t size_bytes)
{
    (void)device;
    host_memory_unmap(memory, size_bytes);
}

static enum status cpu_host_register(struct device *device, const void *memory,
                                     uint64_t size_bytes, struct err *err)
{
    (void)device; /* nothing is copied from there but by its own processors */
    (void)memory;
    (void)size_bytes;
    (void)err;
    return STATUS_OK;
}

static void cpu_host_unregister(struct device *device, const void *memory, uint64_t size_bytes)
{
    (void)device;
    (void)memory;
    (void)size_bytes;
}

static enum status cpu_shared_alloc(struct device *device, uint64_t size_bytes, void **memory_out,
                                    struct device_handle *handle_out, struct err *err)
{
    return device__shared_create(&((struct cpu_device *)device)->shared, "cpu", size_bytes, NULL,
                                 memory_out, handle_out, err);
}

static void cpu_shared_free(struct device *device, void *memory, uint64_t size_bytes)
{
    (void)size_bytes;
    device__shared_close(&((struct cpu_device *)device)->shared, memory);
}

static enum status cpu_peer_open(struct device *device, const struct device_handle *handle,
                                 const void **memory_out, struct err *err)
{
    return device__shared_open(&((struct cpu_device *)device)->peers, "cpu", handle, memory_out,
                               err);
}

static void cpu_peer_close(struct device *device, const void *memory, uint64_t size_bytes)
{
    (void)size_bytes;
    device__shared_close(&((struct cpu_device *)device)->peers, memory);
}

static enum status cpu_stream_create(struct device *device, enum stream_kind kind,
                                     struct stream **stream_out, struct err *err)
{
    struct stream *stream = calloc(1, sizeof(*stream));

    (void)kind;
    if (stream == NULL)
        return err_set(err, STATUS_NO_MEMORY, "cpu: no memory for a stream");
    stream->device = device;
    *stream_out = stream;
    return STATUS_OK;
}

static void cpu_stream_destroy(struct stream *stream)
{
    free(stream);
}

static enum status cpu_stream_sync(struct stream *stream, struct err *err)
{
    (void)stream;
    (void)err;
    return STATUS_OK;
}

static enum status cpu_event_create(struct device *device, struct event **event_out,
                                    struct err *err)
{
    struct cpu_event *event = calloc(1, sizeof(*event));

    if (event == NULL)
        return err_set(err, STATUS_NO_MEMORY, "cpu: no memory for an event");
    event->base.device = device;
    event->time_ns = clock_now_ns();
    *event_out = &event->base;
    return STATUS_OK;
}

static void cpu_event_destroy(struct event *event)
{
    free(event);
}

static enum status cpu_event_record(struct stream *stream, struct event *event, struct err *err)
{
    (void)stream;
    (void)err;
    ((struct cpu_event *)event)->time_ns = clock_now_ns();
    return STATUS_OK;
}

static enum status cpu_stream_wait(struct stream *stream, struct event *event, struct err *err)
{
    (void)stream;
    (void)event;
    (void)err;
    return STATUS_OK;
}

static enum status cpu_event_sync(struct event *event, struct err *err)
{
    (void)event;
    (void)err;
    return STATUS_OK;
}

static bool cpu_event_is_done(const struct event *event)
{
    (void)event;
    return true;
}

static uint64_t cpu_event_time_ns(const struct event *event)
{
    return ((const struct cpu_event *)event)->time_ns;
}

static enum status cpu_copy(struct stream *stream, void *dst, const void *src, uint64_t size_bytes,
                            struct err *err)
{
    (void)stream;
    (void)err;
    memcpy(dst, src, size_bytes);
    return STATUS_OK;
}

static enum status cpu_fill(struct stream *stream, void *dst, uint8_t value, uint64_t size_bytes,
                            struct err *err)
{
    (void)stream;
    (void)err;
    memset(dst, value, size_bytes);
    return STATUS_OK;
}

static enum status cpu_launch(struct stream *stream, const struct op *op, struct err *err)
{
    const enum status st = cpu_execute_check(op, err);

    if (st == STATUS_OK)
        cpu_execute(((struct cpu_device *)stream->device)->executor, op);
    return st;
}

static enum layout cpu_weight_layout(const struct device *device, enum device_weight weight,
                                     enum dtype dtype)
{
    (void)weight; /* all products read them alike */
    return cpu_executor_weight_layout(((const struct cpu_device *)device)->executor, dtype);
}

static enum status cpu_weights_check(const struct device *device, enum dtype dtype,
                                     struct err *err)
{
    (void)device; /* the kernels know all types that models have */
    (void)dtype;
    (void)err;
    return STATUS_OK;
}

const struct device_ops device_cpu_ops = {
    .name = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .inspect = device__inspect_nothing,
    .cast_nz = device__cast_nothing,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .host_alloc = cpu_alloc,
    .host_free = cpu_free,
    .host_register = cpu_host_register,
    .host_unregister = cpu_host_unregister,
    .weight_layout = cpu_weight_layout,
    .weights_check = cpu_weights_check,
    .shared_alloc = cpu_shared_alloc,
    .shared_free = cpu_shared_free,
    .peer_open = cpu_peer_open,
    .peer_close = cpu_peer_close,
    .stream_create = cpu_stream_create,
    .stream_destroy = cpu_stream_destroy,
    .stream_sync = cpu_stream_sync,
    .event_create = cpu_event_create,
    .event_destroy = cpu_event_destroy,
    .event_record = cpu_event_record,
    .stream_wait = cpu_stream_wait,
    .event_sync = cpu_event_sync,
    .event_is_done = cpu_event_is_done,
    .event_time_ns = cpu_event_time_ns,
    .copy_in = cpu_copy,
    .copy_out = cpu_copy,
    .copy_peer = cpu_copy,
    .copy_peers = device__copy_each,
    .fill = cpu_fill,
    .launch = cpu_launch,
    .replays = device__replay_nothing,
};
