/* device/device.c - see device.h: the list of back ends, and the checks before each call to one.
 *
 * Everything another room may do to a device passes here, so a back end can rely on what backend.h
 * says: arguments are sound, objects belong together, memory is within the budget. */
#include "device/device.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/nearest.h"
#include "base/size.h"
#include "device/backend.h"
#include "device/memory.h"
#include "device/operands.h"
#include "device/settings.h"

static const struct device_ops *const backends[] = { &device_cpu_ops, &device_sim_ops,
                                                   &device_cuda_ops, &device_ascend_ops };

#define BACKEND_COUNT (sizeof(backends) / sizeof(backends[0]))
#define NAME_LENGTH_MAX 32

static bool is_name(const char *spec, size_t name_length, const char *name)
{
    return name != NULL && strlen(name) == name_length &&
           strncasecmp(spec, name, name_length) == 0;
}

static enum status find_backend(const char *spec, size_t name_length,
                                const struct device_ops **ops_out, struct err *err)
{
    const char *names[BACKEND_COUNT];
    char name[NAME_LENGTH_MAX + 1];

    for (size_t i = 0; i < BACKEND_COUNT; i++) {
        names[i] = backends[i]->name;
        if (is_name(spec, name_length, names[i]) ||
            is_name(spec, name_length, backends[i]->other_name)) {
            *ops_out = backends[i];
            return STATUS_OK;
        }
    }
    if (name_length > NAME_LENGTH_MAX)
        name_length = NAME_LENGTH_MAX;
    memcpy(name, spec, name_length);
    name[name_length] = '\0';
    return err_set(err, STATUS_BAD_INPUT,
                   "--device: this build has no device '%s'; the nearest is '%s'", name,
                   nearest_name(name, names, BACKEND_COUNT));
}

enum status device__find(const char *spec, const struct device_ops **ops_out, struct err *err)
{
    return find_backend(spec, strcspn(spec, ":"), ops_out, err);
}

static enum status open_accounts(struct device *device, const struct device_options *options,
                                 struct err *err)
{
    const uint64_t memory_bytes = device->info.memory_bytes;
    uint64_t budget_bytes = options->memory_budget_bytes;
    char budget[24], has[24];

    if (budget_bytes > memory_bytes)
        return err_set(err, STATUS_BAD_INPUT,
                       "--memory-budget: %s (%" PRIu64 " bytes) is more than the %s (%" PRIu64
                       " bytes) that %s has",
                       size_format(budget_bytes, budget, sizeof(budget)), budget_bytes,
                       size_format(memory_bytes, has, sizeof(has)), memory_bytes,
                       device->info.name);
    if (budget_bytes == 0) {
        budget_bytes = memory_bytes;
        if (device->info.memory_is_host && options->free_memory_bytes > 0 &&
            options->free_memory_bytes < memory_bytes)
            budget_bytes = options->free_memory_bytes;
    }
    return device__memory_create(device->info.name, budget_bytes, options->host_budget_bytes,
                                 &device->memory, err);
}

enum status device_open(const char *spec, const struct device_options *options,
                        struct device **device_out, struct err *err)
{
    const size_t name_length = strcspn(spec, ":");
    const char *settings = spec[name_length] == ':' ? spec + name_length + 1 : NULL;
    const struct device_ops *ops = NULL;
    struct device *device = NULL;
    enum status st;

    assert(options != NULL);
    assert(device_out != NULL);
    st = device__find(spec, &ops, err);
    if (st != STATUS_OK)
        return st;
    assert(ops != NULL);
    st = ops->open(settings, options, &device, err);
    if (st != STATUS_OK)
        return st;
    assert(device->ops == ops);
    (void)snprintf(device->info.kind, sizeof(device->info.kind), "%s", ops->name);
    st = open_accounts(device, options, err);
    if (st != STATUS_OK) {
        ops->close(device);
        return st;
    }
    *device_out = device;
    return STATUS_OK;
}

void device_close(struct device *device)
{
    struct device_memory *memory;
    struct device_memory_report report;

    if (device == NULL)
        return;
    memory = device->memory;
    device__memory_report(memory, &report);
    assert(report.used_bytes == 0);
    assert(report.host_used_bytes == 0);
    device->ops->close(device);
    device__memory_destroy(memory);
}

const struct device_info *device_info(const struct device *device)
{
    return &device->info;
}

const char *const *device_help(void)
{
    static const char *const lines[BACKEND_COUNT + 1] = { DEVICE_CPU_HELP, DEVICE_SIM_HELP,
                                                         DEVICE_CUDA_HELP, DEVICE_ASCEND_HELP,
                                                         NULL };

    return lines;
}

void device_replays(const struct device *device, struct device_replays *replays_out)
{
    device->ops->replays(device, replays_out);
}

void device__replay_nothing(const struct device *device, struct device_replays *replays_out)
{
    (void)device;
    *replays_out = (struct device_replays){ 0 };
}

enum status device_alloc(struct device *device, enum device_use use, uint64_t size_bytes,
                         void **memory_out, struct err *err)
{
    enum status st;

    assert((unsigned)use < DEVICE_USE_COUNT);
    assert(size_bytes > 0);
    st = device__memory_take(device->memory, use, size_bytes, err);
    if (st != STATUS_OK)
        return st;
    st = device->ops->alloc(device, size_bytes, memory_out, err);
    if (st != STATUS_OK) {
        device__memory_give(device->memory, use, size_bytes);
        return st;
    }
    assert((uintptr_t)*memory_out % DEVICE_ALIGNMENT == 0);
    return STATUS_OK;
}

void device_free(struct device *device, enum device_use use, void *memory, uint64_t size_bytes)
{
    if (memory == NULL)
        return;
    device->ops->free(device, memory, size_bytes);
    device__memory_give(device->memory, use, size_bytes);
}

enum status device_host_alloc(struct device *device, uint64_t size_bytes, void **memory_out,
                              struct err *err)
{
    enum status st;

    assert(size_bytes > 0);
    st = device__memory_take_host(device->memory, size_bytes, err);
    if (st != STATUS_OK)
        return st;
    st = device->ops->host_alloc(device, size_bytes, memory_out, err);
    if (st != STATUS_OK)
        device__memory_give_host(device->memory, size_bytes);
    return st;
}

void device_host_free(struct device *device, void *memory, uint64_t size_bytes)
{
    if (memory == NULL)
        return;
    device->ops->host_free(device, memory, size_bytes);
    device__memory_give_host(device->memory, size_bytes);
}

enum status device_host_charge(struct device *device, uint64_t size_bytes, struct err *err)
{
    return device__memory_take_host(device->memory, size_bytes, err);
}

void device_host_discharge(struct device *device, uint64_t size_bytes)
{
    device__memory_give_host(device->memory, size_bytes);
}

enum status device_host_register(struct device *device, const void *memory, uint64_t size_bytes,
                                 struct err *err)
{
    assert(memory != NULL && size_bytes > 0);
    return device->ops->host_register(device, memory, size_bytes, err);
}

void device_host_unregister(struct device *device, const void *memory, uint64_t size_bytes)
{
    if (memory != NULL)
        device->ops->host_unregister(device, memory, size_bytes);
}

enum status device_shared_alloc(struct device *device, enum device_use use, uint64_t size_bytes,
                                void **memory_out, struct device_handle *handle_out,
                                struct err *err)
{
    struct device_handle handle = { .size_bytes = size_bytes };
    enum status st;

    assert((unsigned)use < DEVICE_USE_COUNT);
    assert(size_bytes > 0);
    st = device__memory_take(device->memory, use, size_bytes, err);
    if (st != STATUS_OK)
        return st;
    st = device->ops->shared_alloc(device, size_bytes, memory_out, &handle, err);
    if (st != STATUS_OK) {
        device__memory_give(device->memory, use, size_bytes);
        return st;
    }
    assert((uintptr_t)*memory_out % DEVICE_ALIGNMENT == 0);
    assert(strlen(device->ops->name) < sizeof(handle.device));
    (void)snprintf(handle.device, sizeof(handle.device), "%s", device->ops->name);
    *handle_out = handle;
    return STATUS_OK;
}

void device_shared_free(struct device *device, enum device_use use, void *memory,
                        uint64_t size_bytes)
{
    if (memory == NULL)
        return;
    device->ops->shared_free(device, memory, size_bytes);
    device__memory_give(device->memory, use, size_bytes);
}

enum status device_peer_open(struct device *device, const struct device_handle *handle,
                             uint64_t size_bytes, const void **memory_out, struct err *err)
{
    const char *name = device->ops->name;

    assert(size_bytes > 0);
    if (strncmp(handle->device, name, sizeof(handle->device)) != 0)
        return err_set(err, STATUS_PEER,
                       "%s: the peer's memory is a '%.*s' device's, and only devices of one kind "
                       "can share",
                       name, (int)sizeof(handle->device), handle->device);
    if (handle->size_bytes != size_bytes)
        return err_set(err, STATUS_PEER,
                       "%s: the peer shares %" PRIu64 " bytes, where %" PRIu64 " are expected",
                       name, handle->size_bytes, size_bytes);
    return device->ops->peer_open(device, handle, memory_out, err);
}

void device_peer_close(struct device *device, const void *memory, uint64_t size_bytes)
{
    if (memory != NULL)
        device->ops->peer_close(device, memory, size_bytes);
}

void device_memory_report(const struct device *device, struct device_memory_report *report_out)
{
    device__memory_report(device->memory, report_out);
}

enum layout device_weight_layout(const struct device *device, enum device_weight weight,
                                 enum dtype dtype)
{
    return weight == DEVICE_WEIGHT_OTHER ? LAYOUT_ND
                                         : device->ops->weight_layout(device, weight, dtype);
}

enum status device_weights_check(const struct device *device, enum dtype dtype, struct err *err)
{
    return device->ops->weights_check(device, dtype, err);
}

enum status device_features_check(const struct device *device, uint32_t op_features,
                                  struct err *err)
{
    const uint32_t missing = op_features & ~device->info.op_features;

    if (missing == 0)
        return STATUS_OK;
    return err_set(err, STATUS_UNAVAILABLE, "%s: it has no operator for %s; the cpu has",
                   device->info.name, op_feature_name(missing & -missing));
}

enum status stream_create(struct device *device, enum stream_kind kind, struct stream **stream_out,
                          struct err *err)
{
    assert(kind == STREAM_COMPUTE || kind == STREAM_COPY);
    return device->ops->stream_create(device, kind, stream_out, err);
}

void stream_destroy(struct stream *stream)
{
    if (stream != NULL)
        stream->device->ops->stream_destroy(stream);
}

enum status stream_sync(struct stream *stream, struct err *err)
{
    return stream->device->ops->stream_sync(stream, err);
}

enum status event_create(struct device *device, struct event **event_out, struct err *err)
{
    return device->ops->event_create(device, event_out, err);
}

void event_destroy(struct event *event)
{
    if (event != NULL)
        event->device->ops->event_destroy(event);
}

enum status event_record(struct stream *stream, struct event *event, struct err *err)
{
    assert(stream->device == event->device);
    return stream->device->ops->event_record(stream, event, err);
}

enum status stream_wait(struct stream *stream, struct event *event, struct err *err)
{
    assert(stream->device == event->device);
    return stream->device->ops->stream_wait(stream, event, err);
}

enum status event_sync(struct event *event, struct err *err)
{
    return event->device->ops->event_sync(event, err);
}

bool event_is_done(const struct event *event)
{
    return event->device->ops->event_is_done(event);
}

uint64_t event_time_ns(const struct event *event)
{
    return event->device->ops->event_time_ns(event);
}

enum status device_copy_in(struct stream *stream, void *dst, const void *src, uint64_t size_bytes,
                           struct err *err)
{
    assert(size_bytes == 0 || (dst != NULL && src != NULL));
    if (size_bytes == 0)
        return STATUS_OK;
    return stream->device->ops->copy_in(stream, dst, src, size_bytes, err);
}

enum status device_copy_out(struct stream *stream, void *dst, const void *src, uint64_t size_bytes,
                            struct err *err)
{
    assert(size_bytes == 0 || (dst != NULL && src != NULL));
    if (size_bytes == 0)
        return STATUS_OK;
    return stream->device->ops->copy_out(stream, dst, src, size_bytes, err);
}

enum status device_copy_peer(struct stream *stream, void *dst, const void *src, uint64_t size_bytes,
                             struct err *err)
{
    assert(size_bytes == 0 || (dst != NULL && src != NULL));
    if (size_bytes == 0)
        return STATUS_OK;
    return stream->device->ops->copy_peer(stream, dst, src, size_bytes, err);
}

enum status device_copy_peers(struct stream *stream, const struct device_copy *copies,
                              size_t count, struct err *err)
{
    for (size_t i = 0; i < count; i++)
        assert(copies[i].size_bytes > 0 && copies[i].dst != NULL && copies[i].src != NULL);
    return stream->device->ops->copy_peers(stream, copies, count, err);
}

enum status device__copy_each(struct stream *stream, const struct device_copy *copies,
                              size_t count, struct err *err)
{
    enum status st = STATUS_OK;

    for (size_t i = 0; i < count && st == STATUS_OK; i++)
        st = stream->device->ops->copy_peer(stream, copies[i].dst, copies[i].src,
                                            copies[i].size_bytes, err);
    return st;
}

enum status device_fill(struct stream *stream, void *dst, uint8_t value, uint64_t size_bytes,
                        struct err *err)
{
    assert(size_bytes == 0 || dst != NULL);
    if (size_bytes == 0)
        return STATUS_OK;
    return stream->device->ops->fill(stream, dst, value, size_bytes, err);
}

enum status device_launch(struct stream *stream, const struct op *op, struct err *err)
{
    enum status st;

    device__op_assert(op);
    if (op_row_count(op) == 0)
        return STATUS_OK;
    st = device_features_check(stream->device, op_features(op), err);
    if (st != STATUS_OK)
        return err_prefix(err, st, "%s", op_kind_name(op->kind));
    return stream->device->ops->launch(stream, op, err);
}
