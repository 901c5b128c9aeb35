/* device/ascend/ascend.c - Huawei's NPUs, through the C interface of CANN, opened at run time.
 *
 * "ascend:N" is the N-th NPU that ASCEND_RT_VISIBLE_DEVICES shows. What CANN offers and what it
 * lacks is found when a device is opened (load.c), so one build runs with every release, and on
 * machines without CANN it says what is missing.
 *
 * Memory: the budget is at most what the runtime reports as free, without a share that is left to
 * the runtime itself, which loads kernels and rounds allocations up to huge pages. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "device/ascend/internal.h"
#include "device/settings.h"

#define INDEX_MAX 1023
#define RUNTIME_SHARE 64    /* of the memory: one part in so many is the runtime's */
#define WORKSPACE_SHARE 256 /* and one in so many is for what operators need while they run */
#define WORKSPACE_BYTES_MIN (4 * MIB)
#define EXECUTORS 512       /* that are kept; a step of decoding has some dozens of kinds */
#define EXECUTORS_MAX 65536

/* ---- threads ---- */

static _Thread_local uint64_t entered_serial; /* the opening that this thread has entered */

enum status ascend__enter(const struct ascend_device *device, struct err *err)
{
    int code;

    if (entered_serial == device->serial)
        return STATUS_OK;
    code = device->cann->aclrtSetDevice(device->index);
    if (code != ACL_SUCCESS)
        return ascend__fail(device->cann, device->base.info.name, code, err, "aclrtSetDevice(%d)",
                            (int)device->index);
    /* It counts, and any thread may come here: the one thing that is changed in a device that only
     * is looked at. */
    atomic_fetch_add_explicit((atomic_uint *)&device->set_count, 1, memory_order_relaxed);
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
static enum status read_index(const char *settings, int32_t *index_out, struct err *err)
{
    const char *text = settings != NULL ? settings : "";
    const size_t digits = strspn(text, "0123456789");
    unsigned long index = 0;

    if ((text[digits] != '\0' && text[digits] != ',') || digits > 6)
        return err_set(err, STATUS_BAD_INPUT, "--device ascend:%.32s: what follows ascend: is the "
                       "number of an NPU, such as ascend:0", text);
    if (digits > 0)
        index = strtoul(text, NULL, 10);
    if (index > INDEX_MAX)
        return err_set(err, STATUS_BAD_INPUT, "--device ascend:%lu: the number of an NPU is at "
                       "most %d", index, INDEX_MAX);
    *index_out = (int32_t)index;
    return STATUS_OK;
}

/* What follows the number's comma. */
static enum status read_settings(struct ascend_device *device, const char *settings,
                                 const struct device_options *options, struct err *err)
{
    const char *comma = settings != NULL ? strchr(settings, ',') : NULL;
    uint64_t layout = options->keep_nd ? LAYOUT_ND : LAYOUT_FRACTAL_NZ;
    const struct setting known[] = {
        { "layout", SETTING_LAYOUT, &layout, LAYOUT_ND, LAYOUT_FRACTAL_NZ },
        { "executors", SETTING_COUNT, &device->executor_count, 0, EXECUTORS_MAX },
    };
    enum status st = STATUS_OK;

    device->executor_count = EXECUTORS;
    if (comma != NULL)
        st = device__settings_read(device->base.info.name, comma + 1, known,
                                   sizeof(known) / sizeof(known[0]), err);
    device->nd = layout == LAYOUT_ND;
    return st;
}

static enum status check_index(const struct ascend_device *device, struct err *err)
{
    uint32_t count = 0;
    const int code = device->cann->aclrtGetDeviceCount(&count);

    if (code != ACL_SUCCESS)
        return ascend__fail(device->cann, device->base.info.name, code, err,
                            "aclrtGetDeviceCount");
    if ((uint32_t)device->index < count)
        return STATUS_OK;
    return err_set(err, STATUS_UNAVAILABLE, "%s: this machine has %u NPUs that CANN can see, "
                   "numbered from 0; ASCEND_RT_VISIBLE_DEVICES may hide others",
                   device->base.info.name, count);
}

/* NPUs without HBM have DDR. */
static enum status read_memory(const struct ascend_device *device, uint64_t *free_bytes_out,
                               uint64_t *total_bytes_out, struct err *err)
{
    size_t free_bytes = 0, total_bytes = 0;
    int code = device->cann->aclrtGetMemInfo(ACL_HBM_MEM, &free_bytes, &total_bytes);

    if (code == ACL_SUCCESS && total_bytes == 0)
        code = device->cann->aclrtGetMemInfo(ACL_DDR_MEM, &free_bytes, &total_bytes);
    if (code != ACL_SUCCESS)
        return ascend__fail(device->cann, device->base.info.name, code, err, "aclrtGetMemInfo");
    *free_bytes_out = free_bytes;
    *total_bytes_out = total_bytes;
    return STATUS_OK;
}

/* Prompt tokens and requests in one step by the memory there is, as SGLang has them for parts of 32
 * and 64 GB (hardware_backend/npu/utils.py, set_default_server_args); with less, the program's own
 * defaults do. */
static void suggest_sizes(struct device_info *info, uint64_t memory_bytes)
{
    static const struct {
        uint64_t memory_bytes_max;
        uint32_t rows, sequences;
    } sizes[] = { { 8 * GIB, 0, 0 }, { 32 * GIB, 4096, 16 }, { UINT64_MAX, 8192, 64 } };
    size_t i = 0;

    while (memory_bytes > sizes[i].memory_bytes_max)
        i++;
    info->step_row_count = sizes[i].rows;
    info->step_sequence_count = sizes[i].sequences;
}

static enum status describe(struct ascend_device *device, uint64_t budget_bytes, struct err *err)
{
    struct device_info *info = &device->base.info;
    const char *soc = device->cann->aclrtGetSocName();
    uint64_t free_bytes = 0, total_bytes = 0;
    char free_text[24], total_text[24];
    enum status st = read_memory(device, &free_bytes, &total_bytes, err);

    if (st != STATUS_OK)
        return st;
    info->memory_bytes = free_bytes - free_bytes / RUNTIME_SHARE;
    info->memory_bytes -= info->memory_bytes % DEVICE_ALIGNMENT;
    if (info->memory_bytes == 0)
        return err_set(err, STATUS_NO_MEMORY, "%s: none of its %s of memory is free", info->name,
                       size_format(total_bytes, total_text, sizeof(total_text)));
    info->workspace_bytes = size_align_up(total_bytes / WORKSPACE_SHARE, DEVICE_ALIGNMENT);
    info->gathers_cache = true;
    info->op_features = ascend__op_features(device->cann);
    if (info->workspace_bytes < WORKSPACE_BYTES_MIN)
        info->workspace_bytes = WORKSPACE_BYTES_MIN;
    suggest_sizes(info, budget_bytes != 0 && budget_bytes < total_bytes ? budget_bytes
                                                                        : total_bytes);
    (void)snprintf(info->description, sizeof(info->description),
                   "NPU %s, %s of %s free, through CANN", soc != NULL ? soc : "of an unknown kind",
                   size_format(free_bytes, free_text, sizeof(free_text)),
                   size_format(total_bytes, total_text, sizeof(total_text)));
    return STATUS_OK;
}

/* Also what was opened in part. */
static void ascend_close(struct device *base)
{
    struct ascend_device *device = (struct ascend_device *)base;
    unsigned int count;

    if (device->cann != NULL) {
        (void)ascend__enter(device, NULL);
        ascend__ops_destroy(device);
        device__clock_destroy(device->clock);
        (void)device->cann->aclrtSynchronizeDevice();
    }
    ascend__memory_destroy(device);
    /* CANN counts the settings of all threads; the last reset lets the device go. */
    count = atomic_load_explicit(&device->set_count, memory_order_relaxed);
    for (unsigned int i = 0; i < count; i++)
        (void)device->cann->aclrtResetDevice(device->index);
    free(device);
}

static enum status ascend_open(const char *settings, const struct device_options *options,
                               struct device **device_out, struct err *err)
{
    struct ascend_device *device = calloc(1, sizeof(*device));
    enum status st;

    if (device == NULL)
        return err_set(err, STATUS_NO_MEMORY, "ascend: no memory for a device");
    device->base.ops = &device_ascend_ops;
    device->serial = next_serial();
    st = read_index(settings, &device->index, err);
    (void)snprintf(device->base.info.name, sizeof(device->base.info.name), "ascend:%d",
                   (int)device->index);
    if (st == STATUS_OK)
        st = read_settings(device, settings, options, err);
    if (st == STATUS_OK)
        st = ascend__load(options->library_path, &device->cann, err);
    if (st == STATUS_OK)
        st = check_index(device, err);
    if (st == STATUS_OK)
        st = ascend__enter(device, err);
    if (st == STATUS_OK)
        st = describe(device, options->memory_budget_bytes, err);
    if (st == STATUS_OK)
        st = ascend__memory_create(device, err);
    if (st == STATUS_OK)
        st = ascend__clock_create(device, err);
    if (st == STATUS_OK)
        st = ascend__ops_create(device, err);
    if (st != STATUS_OK) {
        ascend_close(&device->base);
        return st;
    }
    *device_out = &device->base;
    return STATUS_OK;
}

const struct device_ops device_ascend_ops = {
    .name = "ascend",
    .other_name = "npu",
    .open = ascend_open,
    .close = ascend_close,
    .inspect = ascend__inspect,
    .alloc = ascend__alloc,
    .free = ascend__free,
    .host_alloc = ascend__host_alloc,
    .host_free = ascend__host_free,
    .host_register = ascend__host_register,
    .host_unregister = ascend__host_unregister,
    .weight_layout = ascend__weight_layout,
    .weights_check = ascend__weights_check,
    .shared_alloc = ascend__shared_alloc,
    .shared_free = ascend__shared_free,
    .peer_open = ascend__peer_open,
    .peer_close = ascend__peer_close,
    .cast_nz = ascend__cast_nz,
    .stream_create = ascend__stream_create,
    .stream_destroy = ascend__stream_destroy,
    .stream_sync = ascend__stream_sync,
    .event_create = ascend__event_create,
    .event_destroy = device__event_destroy,
    .event_record = ascend__event_record,
    .stream_wait = ascend__stream_wait,
    .event_sync = device__event_sync,
    .event_is_done = device__event_is_done,
    .event_time_ns = device__event_time_ns,
    .copy_in = ascend__copy_in,
    .copy_out = ascend__copy_out,
    .copy_peer = ascend__copy_peer,
    .copy_peers = device__copy_each, /* CANN's batches know host memory alone */
    .fill = ascend__fill,
    .launch = ascend__stream_launch,
    .replays = device__replay_nothing,
};
