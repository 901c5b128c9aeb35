/* device/sim/sim.c - a software accelerator, so that everything about offloading can be built,
 * tested and planned on any machine.
 *
 * Its memory is an arena of its own and a set size, its streams are threads, its link has a
 * bandwidth and a latency, and it computes with the processor's kernels. What only fails on a real
 * accelerator fails here too: host pointers in ops, a missing event, memory that is used up. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "device/host_memory.h"
#include "device/settings.h"
#include "device/sim/internal.h"

#define MEMORY_DEFAULT (4 * GIB)
#define MEMORY_MIN (64 * KIB)
#define MEMORY_MAX (UINT64_C(1) << 44)    /* 16 TiB: addresses are reserved, not memory */
#define BANDWIDTH_MIN UINT64_C(1000)      /* slower is a mistake, and a copy would seem to hang */
#define BANDWIDTH_MAX UINT64_C(1000000000000000)
#define LATENCY_MAX UINT64_C(1000000000)
#define PAGE_BYTES UINT64_C(4096)
/* On top of the memory, so that rounding 4096 pieces up, or 128 shared ones, which begin and end
 * with a page, never refuses what the budget allows. */
#define ROUNDING_SLACK (UINT64_C(4096) * DEVICE_ALIGNMENT)

static void sim_close(struct device *device)
{
    struct sim_device *sim = (struct sim_device *)device;

    cpu_executor_destroy(sim->executor);
    sim__arena_destroy(sim->arena);
    sim__link_deinit(&sim->link_peer);
    sim__link_deinit(&sim->link_out);
    sim__link_deinit(&sim->link_in);
    pthread_mutex_destroy(&sim->execute_lock);
    free(sim);
}

static void describe(struct sim_device *sim)
{
    struct device_info *info = &sim->base.info;
    char computing[64], memory[24], link[24];

    (void)snprintf(info->name, sizeof(info->name), "sim");
    (void)snprintf(info->description, sizeof(info->description),
                   "software accelerator: %s of its own, link %s%s, %.1f us; %s",
                   size_format(info->memory_bytes, memory, sizeof(memory)),
                   info->link_bytes_per_s == 0
                       ? "as fast as memcpy"
                       : size_format(info->link_bytes_per_s, link, sizeof(link)),
                   info->link_bytes_per_s == 0 ? "" : "/s", (double)info->link_latency_ns / 1000,
                   cpu_executor_describe(sim->executor, computing, sizeof(computing)));
}

static enum status sim_open(const char *settings, const struct device_options *options,
                            struct device **device_out, struct err *err)
{
    uint64_t memory_bytes = MEMORY_DEFAULT, bytes_per_s = 0, latency_ns = 0;
    uint64_t peer_bytes_per_s = UINT64_MAX; /* not given */
    uint64_t layout = LAYOUT_ND;
    struct sim_device *sim = calloc(1, sizeof(*sim));
    enum status st;

    if (sim == NULL)
        return err_set(err, STATUS_NO_MEMORY, "sim: no memory for a device");
    {
        const struct setting known[] = {
            { "memory", SETTING_SIZE, &memory_bytes, MEMORY_MIN, MEMORY_MAX },
            { "link", SETTING_BANDWIDTH, &bytes_per_s, BANDWIDTH_MIN, BANDWIDTH_MAX },
            { "latency", SETTING_DURATION, &latency_ns, 0, LATENCY_MAX },
            { "peer", SETTING_BANDWIDTH, &peer_bytes_per_s, BANDWIDTH_MIN, BANDWIDTH_MAX },
            { "layout", SETTING_LAYOUT, &layout, LAYOUT_ND, LAYOUT_FRACTAL_NZ },
            { "fail_alloc", SETTING_COUNT, &sim->fail_alloc, 0, UINT64_MAX },
            { "fail_host_alloc", SETTING_COUNT, &sim->fail_host_alloc, 0, UINT64_MAX },
            { "fail_copy", SETTING_COUNT, &sim->fail_copy, 0, UINT64_MAX },
            { "fail_launch", SETTING_COUNT, &sim->fail_launch, 0, UINT64_MAX },
        };
        st = device__settings_read("sim", settings, known, sizeof(known) / sizeof(known[0]), err);
    }
    pthread_mutex_init(&sim->execute_lock, NULL);
    sim__link_init(&sim->link_in, bytes_per_s, latency_ns);
    sim__link_init(&sim->link_out, bytes_per_s, latency_ns);
    if (peer_bytes_per_s == UINT64_MAX)
        peer_bytes_per_s = bytes_per_s;
    sim__link_init(&sim->link_peer, peer_bytes_per_s, latency_ns);
    if (st == STATUS_OK)
        st = sim__arena_create(memory_bytes + ROUNDING_SLACK, &sim->arena, err);
    if (st == STATUS_OK)
        st = cpu_executor_create(options, &sim->executor, err);
    if (st != STATUS_OK) {
        sim_close(&sim->base);
        return st;
    }
    sim->base.ops = &device_sim_ops;
    sim->layout = (enum layout)layout;
    sim->base.info.memory_bytes = memory_bytes;
    sim->base.info.memory_takes_host = true;
    sim->base.info.memory_is_lazy = true;
    sim->base.info.op_features = OP_FEATURES_ALL; /* the processor's kernels */
    sim->base.info.link_bytes_per_s = bytes_per_s;
    sim->base.info.link_latency_ns = latency_ns;
    sim->base.info.peer_bytes_per_s = peer_bytes_per_s;
    describe(sim);
    *device_out = &sim->base;
    return STATUS_OK;
}

static enum status fail_on_purpose(uint64_t *countdown, const char *hook, struct err *err)
{
    if (*countdown == 0 || --*countdown > 0)
        return STATUS_OK;
    return err_set(err, STATUS_NO_MEMORY, "sim: out of memory on purpose (%s)", hook);
}

static enum status sim_alloc(struct device *device, uint64_t size_bytes, void **memory_out,
                             struct err *err)
{
    struct sim_device *sim = (struct sim_device *)device;
    const enum status st = fail_on_purpose(&sim->fail_alloc, "fail_alloc", err);

    return st == STATUS_OK ? sim__arena_alloc(sim->arena, size_bytes, DEVICE_ALIGNMENT,
                                                  memory_out, err)
                               : st;
}

static void sim_free(struct device *device, void *memory, uint64_t size_bytes)
{
    sim__arena_free(((struct sim_device *)device)->arena, memory, size_bytes, DEVICE_ALIGNMENT);
}

static enum status sim_host_alloc(struct device *device, uint64_t size_bytes, void **memory_out,
                                  struct err *err)
{
    struct sim_device *sim = (struct sim_device *)device;
    const enum status st = fail_on_purpose(&sim->fail_host_alloc, "fail_host_alloc", err);

    return st == STATUS_OK ? host_memory_map("sim", size_bytes, memory_out, err) : st;
}

static void sim_host_free(struct device *device, void *memory, uint64_t size_bytes)
{
    (void)device;
    host_memory_unmap(memory, size_bytes);
}

static enum status sim_host_register(struct device *device, const void *memory,
                                     uint64_t size_bytes, struct err *err)
{
    (void)device; /* its link is as fast from any memory */
    (void)memory;
    (void)size_bytes;
    (void)err;
    return STATUS_OK;
}

static void sim_host_unregister(struct device *device, const void *memory, uint64_t size_bytes)
{
    (void)device;
    (void)memory;
    (void)size_bytes;
}

/* Shared memory takes the place of a piece of the arena, so that to everything else it is device
 * memory like any other. */
static enum status sim_shared_alloc(struct device *device, uint64_t size_bytes, void **memory_out,
                                    struct device_handle *handle_out, struct err *err)
{
    struct sim_device *sim = (struct sim_device *)device;
    enum status st = fail_on_purpose(&sim->fail_alloc, "fail_alloc", err);
    void *place;

    if (st == STATUS_OK)
        st = sim__arena_alloc(sim->arena, size_bytes, PAGE_BYTES, &place, err);
    if (st != STATUS_OK)
        return st;
    st = device__shared_create(&sim->shared, "sim", size_bytes, place, memory_out, handle_out,
                               err);
    if (st != STATUS_OK)
        sim__arena_free(sim->arena, place, size_bytes, PAGE_BYTES);
    return st;
}

static void sim_shared_free(struct device *device, void *memory, uint64_t size_bytes)
{
    struct sim_device *sim = (struct sim_device *)device;

    device__shared_close(&sim->shared, memory);
    sim__arena_free(sim->arena, memory, size_bytes, PAGE_BYTES);
}

static enum status sim_peer_open(struct device *device, const struct device_handle *handle,
                                 const void **memory_out, struct err *err)
{
    return device__shared_open(&((struct sim_device *)device)->peers, "sim", handle, memory_out,
                               err);
}

static void sim_peer_close(struct device *device, const void *memory, uint64_t size_bytes)
{
    (void)size_bytes;
    device__shared_close(&((struct sim_device *)device)->peers, memory);
}

static enum layout sim_weight_layout(const struct device *device, enum device_weight weight,
                                     enum dtype dtype)
{
    return weight != DEVICE_WEIGHT_EXACT && (dtype == DTYPE_F16 || dtype == DTYPE_BF16)
               ? ((const struct sim_device *)device)->layout
               : LAYOUT_ND;
}

static enum status sim_weights_check(const struct device *device, enum dtype dtype,
                                     struct err *err)
{
    (void)device; /* the kernels know all types that models have */
    (void)dtype;
    (void)err;
    return STATUS_OK;
}

const struct device_ops device_sim_ops = {
    .name = "sim",
    .open = sim_open,
    .close = sim_close,
    .inspect = device__inspect_nothing,
    .cast_nz = device__cast_nothing,
    .alloc = sim_alloc,
    .free = sim_free,
    .host_alloc = sim_host_alloc,
    .host_free = sim_host_free,
    .host_register = sim_host_register,
    .host_unregister = sim_host_unregister,
    .weight_layout = sim_weight_layout,
    .weights_check = sim_weights_check,
    .shared_alloc = sim_shared_alloc,
    .shared_free = sim_shared_free,
    .peer_open = sim_peer_open,
    .peer_close = sim_peer_close,
    .stream_create = sim__stream_create,
    .stream_destroy = sim__stream_destroy,
    .stream_sync = sim__stream_sync,
    .event_create = sim__event_create,
    .event_destroy = sim__event_destroy,
    .event_record = sim__event_record,
    .stream_wait = sim__stream_wait,
    .event_sync = sim__event_sync,
    .event_is_done = sim__event_is_done,
    .event_time_ns = sim__event_time_ns,
    .copy_in = sim__copy_in,
    .copy_out = sim__copy_out,
    .copy_peer = sim__copy_peer,
    .copy_peers = device__copy_each,
    .fill = sim__fill,
    .launch = sim__launch,
    .replays = device__replay_nothing,
};
