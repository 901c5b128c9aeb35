/* device/cuda/cuda.c - NVIDIA's GPUs, through a module that is opened at run time.
 *
 * "cuda:N" is the N-th GPU that CUDA_VISIBLE_DEVICES shows; several ranks may open the same one.
 * "cuda:N,graphs=off" launches every operator by itself.
 *
 * Memory: the budget is at most what the driver reports as free, without a share that is left to
 * the driver itself, which loads kernels when they first run and rounds allocations up to 2 MiB. */
#include <assert.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "device/cuda/internal.h"
#include "device/settings.h"

#define INDEX_MAX 1023
#define DRIVER_SHARE 64 /* of the memory: one part in so many is the driver's */
#define ROOM_SHARE 4096 /* of the memory, for a stream's room: 34 MiB on an H200, 6 of 24 GB */
#define MAJOR_MIN 8     /* compute capability: tensor cores that know BF16 */

/* ---- threads ---- */

static _Thread_local uint64_t entered_serial; /* the opening that this thread has entered */

enum status cuda__enter(const struct cuda_device *device, struct err *err)
{
    int code;

    if (entered_serial == device->serial)
        return STATUS_OK;
    code = device->module->enter(device->index);
    if (code != 0)
        return cuda__fail(device->module, device->base.info.name, code, err, "cudaSetDevice(%d)",
                          device->index);
    entered_serial = device->serial;
    return STATUS_OK;
}

static uint64_t next_serial(void)
{
    static atomic_uint_fast64_t last; /* every opening in this process gets another */

    return atomic_fetch_add_explicit(&last, 1, memory_order_relaxed) + 1;
}

/* ---- opening ---- */

/* "", "0", "12"; a comma and settings may follow. */
static enum status read_index(const char *settings, int *index_out, struct err *err)
{
    const char *text = settings != NULL ? settings : "";
    const size_t digits = strspn(text, "0123456789");
    unsigned long index = 0;

    if ((text[digits] != '\0' && text[digits] != ',') || digits > 6)
        return err_set(err, STATUS_BAD_INPUT, "--device cuda:%.32s: what follows cuda: is the "
                       "number of a GPU, such as cuda:0", text);
    if (digits > 0)
        index = strtoul(text, NULL, 10);
    if (index > INDEX_MAX)
        return err_set(err, STATUS_BAD_INPUT, "--device cuda:%lu: the number of a GPU is at most "
                       "%d", index, INDEX_MAX);
    *index_out = (int)index;
    return STATUS_OK;
}

/* What follows the number's comma. */
static enum status read_settings(struct cuda_device *device, const char *settings, struct err *err)
{
    const char *comma = settings != NULL ? strchr(settings, ',') : NULL;
    uint64_t graphs = 1;
    const struct setting known[] = { { "graphs", SETTING_SWITCH, &graphs, 0, 1 } };
    enum status st = STATUS_OK;

    if (comma != NULL)
        st = device__settings_read(device->base.info.name, comma + 1, known,
                                   sizeof(known) / sizeof(known[0]), err);
    device->has_graphs = graphs != 0;
    return st;
}

enum status cuda__check_index(const struct cuda_module *module, const char *device_name, int index,
                              struct err *err)
{
    int count = 0, runtime = 0, driver = 0;
    const int code = module->device_count(&count);

    if (module->versions(&runtime, &driver) == 0 && driver == 0)
        return err_set(err, STATUS_UNAVAILABLE, "%s: this machine has no NVIDIA driver (libcuda.so"
                       ".1), or none that is loaded", device_name);
    if (code != 0 && module->status_of(code) == STATUS_UNAVAILABLE && count == 0 &&
        driver >= runtime)
        return err_set(err, STATUS_UNAVAILABLE, "%s: CUDA sees no GPU here: %s", device_name,
                       module->error_text(code));
    if (code != 0)
        return cuda__fail(module, device_name, code, err, "cudaGetDeviceCount (the driver knows "
                          "CUDA %d.%d, this build needs %d.%d)", driver / 1000, driver % 1000 / 10,
                          runtime / 1000, runtime % 1000 / 10);
    if (index < count)
        return STATUS_OK;
    return err_set(err, STATUS_UNAVAILABLE, "%s: this machine has %d %s that CUDA can see, "
                   "numbered from 0; CUDA_VISIBLE_DEVICES may hide others", device_name, count,
                   count == 1 ? "GPU" : "GPUs");
}

/* Whether the kernels can run on it. */
static enum status check_kernels(const struct cuda_device *device, struct err *err)
{
    const struct cuda_facts *facts = &device->facts;
    int code;

    if (facts->major < MAJOR_MIN)
        return err_set(err, STATUS_UNAVAILABLE, "%s: %s has compute capability %d.%d; the kernels "
                       "need %d.0 or later", device->base.info.name, facts->name, facts->major,
                       facts->minor, MAJOR_MIN);
    code = device->module->check_kernels();
    return code == 0 ? STATUS_OK
                     : cuda__fail(device->module, device->base.info.name, code, err,
                                  "loading kernels (built for %s) on a GPU of compute capability "
                                  "%d.%d", device->module->built_for, facts->major, facts->minor);
}

/* Prompt tokens and requests in one step by the memory there is; with less, the program's own
 * defaults do. */
static void suggest_sizes(struct device_info *info, uint64_t memory_bytes)
{
    static const struct {
        uint64_t memory_bytes_max;
        uint32_t rows, sequences;
    } sizes[] = { { 12 * GIB, 0, 0 }, { 32 * GIB, 2048, 16 }, { UINT64_MAX, 4096, 64 } };
    size_t i = 0;

    while (memory_bytes > sizes[i].memory_bytes_max)
        i++;
    info->step_row_count = sizes[i].rows;
    info->step_sequence_count = sizes[i].sequences;
}

static enum status describe(struct cuda_device *device, uint64_t budget_bytes, struct err *err)
{
    struct device_info *info = &device->base.info;
    const struct cuda_facts *facts = &device->facts;
    uint64_t free_bytes = 0, total_bytes = 0;
    char free_text[24], total_text[24], link_text[40] = "";
    struct cuda_link link;
    int code = device->module->memory_info(&free_bytes, &total_bytes);

    if (code != 0)
        return cuda__fail(device->module, info->name, code, err, "cudaMemGetInfo");
    info->memory_bytes = free_bytes - free_bytes / DRIVER_SHARE;
    info->memory_bytes -= info->memory_bytes % DEVICE_ALIGNMENT;
    if (info->memory_bytes == 0)
        return err_set(err, STATUS_NO_MEMORY, "%s: none of its %s of memory is free", info->name,
                       size_format(total_bytes, total_text, sizeof(total_text)));
    info->workspace_bytes = size_align_up(total_bytes / ROOM_SHARE, DEVICE_ALIGNMENT);
    info->memory_takes_host = facts->shares_host_memory;
    info->op_features = OP_FEATURES_ALL;
    suggest_sizes(info, budget_bytes != 0 && budget_bytes < total_bytes ? budget_bytes
                                                                        : total_bytes);
    if (cuda__link_find(facts->bus_id, &link)) /* what it reaches is for whoever plans to measure */
        (void)snprintf(link_text, sizeof(link_text), ", PCIe %u x%u", link.generation_max,
                       link.width_max);
    (void)snprintf(info->description, sizeof(info->description), "%.60s, sm_%d%d, %s of %s free%s",
                   facts->name, facts->major, facts->minor,
                   size_format(free_bytes, free_text, sizeof(free_text)),
                   size_format(total_bytes, total_text, sizeof(total_text)), link_text);
    return STATUS_OK;
}

/* Also what was opened in part. */
static void cuda_close(struct device *base)
{
    struct cuda_device *device = (struct cuda_device *)base;

    if (device->clock != NULL)
        (void)cuda__enter(device, NULL);
    device__clock_destroy(device->clock);
    free(device);
}

static enum status open_gpu(struct cuda_device *device, const struct device_options *options,
                            struct err *err)
{
    enum status st = cuda__load(options->library_path, &device->module, err);
    int code;

    if (st == STATUS_OK)
        st = cuda__check_index(device->module, device->base.info.name, device->index, err);
    if (st != STATUS_OK)
        return st;
    code = device->module->facts(device->index, &device->facts);
    if (code != 0)
        return cuda__fail(device->module, device->base.info.name, code, err,
                          "cudaGetDeviceProperties");
    st = cuda__enter(device, err);
    if (st == STATUS_OK)
        st = check_kernels(device, err);
    if (st == STATUS_OK)
        st = describe(device, options->memory_budget_bytes, err);
    return st == STATUS_OK ? cuda__clock_create(device, err) : st;
}

static enum status cuda_open(const char *settings, const struct device_options *options,
                             struct device **device_out, struct err *err)
{
    struct cuda_device *device = calloc(1, sizeof(*device));
    enum status st;

    if (device == NULL)
        return err_set(err, STATUS_NO_MEMORY, "cuda: no memory for a device");
    device->base.ops = &device_cuda_ops;
    device->serial = next_serial();
    st = read_index(settings, &device->index, err);
    (void)snprintf(device->base.info.name, sizeof(device->base.info.name), "cuda:%d",
                   device->index);
    if (st == STATUS_OK)
        st = read_settings(device, settings, err);
    if (st == STATUS_OK)
        st = open_gpu(device, options, err);
    if (st != STATUS_OK) {
        cuda_close(&device->base);
        return st;
    }
    *device_out = &device->base;
    return STATUS_OK;
}

/* ---- weights ---- */

static enum layout cuda_weight_layout(const struct device *device, enum device_weight weight,
                                      enum dtype dtype)
{
    (void)device;
    (void)weight;
    (void)dtype;
    return LAYOUT_ND;
}

static enum status cuda_weights_check(const struct device *device, enum dtype dtype,
                                      struct err *err)
{
    if (dtype != DTYPE_I32)
        return STATUS_OK;
    return err_set(err, STATUS_UNAVAILABLE, "%s: there are no kernels for weights in %s",
                   device->info.name, dtype_info(dtype)->name);
}

const struct device_ops device_cuda_ops = {
    .name = "cuda",
    .open = cuda_open,
    .close = cuda_close,
    .inspect = cuda__inspect,
    .alloc = cuda__alloc,
    .free = cuda__free,
    .host_alloc = cuda__host_alloc,
    .host_free = cuda__host_free,
    .host_register = cuda__host_register,
    .host_unregister = cuda__host_unregister,
    .weight_layout = cuda_weight_layout,
    .weights_check = cuda_weights_check,
    .shared_alloc = cuda__shared_alloc,
    .shared_free = cuda__shared_free,
    .peer_open = cuda__peer_open,
    .peer_close = cuda__peer_close,
    .cast_nz = device__cast_nothing,
    .stream_create = cuda__stream_create,
    .stream_destroy = cuda__stream_destroy,
    .stream_sync = cuda__stream_sync,
    .event_create = cuda__event_create,
    .event_destroy = device__event_destroy,
    .event_record = cuda__event_record,
    .stream_wait = cuda__stream_wait,
    .event_sync = device__event_sync,
    .event_is_done = device__event_is_done,
    .event_time_ns = device__event_time_ns,
    .copy_in = cuda__copy_in,
    .copy_out = cuda__copy_out,
    .copy_peer = cuda__copy_peer,
    .copy_peers = cuda__copy_peers,
    .fill = cuda__fill,
    .launch = cuda__launch,
    .replays = cuda__replays,
};
