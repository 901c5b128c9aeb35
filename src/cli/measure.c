/* cli/measure.c - see measure.h. */
#include "cli/measure.h"

#include <string.h>
#include <sys/stat.h>

#include "base/size.h"
#include "device/measure.h"
#include "offload/disk/reader.h"

#define DISK_MEMORY_MIN (4 * MIB)
#define BUDGET_SHARE 2 /* of the device's memory, one part in so many may be used */
#define WEIGHT_BYTES_MIN (4 * MIB)
#define COSTS_SHARE 4  /* of the time for products, for each of three costs */
#define SMALL_READ_BYTES MIB /* fewer take longer for each */
#define SPREAD_NS UINT64_C(150000000)
#define QUICK_DISK_NS UINT64_C(200000000)
#define QUICK_SPREAD_NS UINT64_C(75000000)
#define QUICK_DEVICE_NS UINT64_C(40000000)

enum status cli_assume(const char *assume, struct model_rates *rates, struct err *err)
{
    struct {
        const char *name;
        double *rate;
    } all[] = { { "disk", &rates->disk_bytes_per_s },
                { "link", &rates->link_bytes_per_s },
                { "read", &rates->read_bytes_per_s } };
    const size_t count = sizeof(all) / sizeof(all[0]);
    const char *at = assume;

    *rates = (struct model_rates){ 0 };
    while (at != NULL && *at != '\0') {
        const size_t length = strcspn(at, ","), name_length = strcspn(at, "=");
        char text[64];
        uint64_t rate = 0;
        size_t i = 0;

        while (i < count && (strlen(all[i].name) != name_length ||
                             strncmp(all[i].name, at, name_length) != 0))
            i++;
        if (i == count || name_length >= length || length - name_length - 1 >= sizeof(text))
            return err_set(err, STATUS_BAD_INPUT,
                           "--assume '%.*s': it must be disk=RATE, link=RATE or read=RATE, such as "
                           "disk=1GB/s", (int)(length < 60 ? length : 60), at);
        memcpy(text, at + name_length + 1, length - name_length - 1);
        text[length - name_length - 1] = '\0';
        if (strlen(text) > 2 && strcmp(text + strlen(text) - 2, "/s") == 0)
            text[strlen(text) - 2] = '\0';
        if (size_parse(text, "--assume", &rate, err) != STATUS_OK)
            return STATUS_BAD_INPUT;
        if (rate == 0)
            return err_set(err, STATUS_BAD_INPUT, "--assume %s=0: a rate is more than nothing",
                           all[i].name);
        *all[i].rate = (double)rate;
        at += length + (at[length] == ',');
    }
    return STATUS_OK;
}

/* The largest of the checkpoint's files: others may be too small to measure by. */
static const char *largest_file(const struct ckpt *ckpt)
{
    const char *largest = ckpt_file_path(ckpt, 0);
    off_t largest_bytes = 0;
    struct stat about;

    for (uint32_t i = 0; i < ckpt_file_count(ckpt); i++) {
        if (stat(ckpt_file_path(ckpt, i), &about) != 0 || about.st_size <= largest_bytes)
            continue;
        largest = ckpt_file_path(ckpt, i);
        largest_bytes = about.st_size;
    }
    return largest;
}

/* Of the largest matrix, which stands for the others. */
static enum dtype largest_dtype(const struct ckpt *ckpt)
{
    enum dtype dtype = DTYPE_F32;
    uint64_t most_bytes = 0;

    for (size_t i = 0; i < ckpt_tensor_count(ckpt); i++) {
        const struct ckpt_tensor *tensor = ckpt_tensor_at(ckpt, i);

        if (tensor->rank < 2 || tensor->dtype >= DTYPE_COUNT ||
            tensor->size_bytes <= most_bytes)
            continue;
        dtype = tensor->dtype;
        most_bytes = tensor->size_bytes;
    }
    return dtype;
}

/* As tiles and experts are read; and the same while the processors compute, where the device is
 * them, because reading takes them, too. What cannot be measured stays 0. */
static void measure_spread(const struct cli_measure *what, const struct disk_file *file,
                           const struct disk_measure_options *how,
                           struct disk_measured *measured, uint64_t memory_bytes,
                           struct model_rates *rates)
{
    const struct device_info *info = device_info(what->device);
    struct disk_measure_options shorter = *how;
    struct device_busy *busy = NULL;
    uint64_t rate = 0;

    shorter.time_ns = what->quickly ? QUICK_SPREAD_NS : SPREAD_NS;
    if (what->disk_read_bytes < SMALL_READ_BYTES) {
        shorter.spread_bytes = size_align_up(what->disk_read_bytes, DISK_ALIGN);
        shorter.spread_depth = what->disk_reads;
    }
    if (disk_measure_spread(file, &shorter, measured, &rate, NULL) != STATUS_OK)
        return;
    measured->spread_bytes_per_s = rate;
    rates->disk_spread_bytes_per_s = (double)rate;
    if ((!info->memory_is_host && !info->memory_takes_host) ||
        device_busy_begin(what->device, largest_dtype(what->ckpt), memory_bytes, &busy, NULL) !=
            STATUS_OK)
        return;
    if (disk_measure_spread(file, &shorter, measured, &rate, NULL) == STATUS_OK)
        rates->disk_beside_bytes_per_s = (double)rate;
    device_busy_end(busy);
}

/* Through no more memory than the host's budget has room for; of the device's, memory_bytes. */
static void measure_disk(const struct cli_measure *what, uint64_t memory_bytes,
                         struct model_rates *rates, struct disk_measured *disk_out)
{
    struct disk_measure_options how = {
        .memory_bytes = DISK_MEASURE_BYTES, .time_ns = what->quickly ? QUICK_DISK_NS : 0,
    };
    struct disk_reader_options reader = { 0 };
    struct disk_file *file = NULL;
    struct err why;
    enum status st =
        disk_reader_options_parse(what->offload_disk, "--offload-disk", &reader, &why);

    how.uring = reader.uring;
    if (st == STATUS_OK)
        st = disk_file_open(largest_file(what->ckpt), reader.direct, &file, &why);
    while (st == STATUS_OK &&
           (st = device_host_charge(what->device, how.memory_bytes, &why)) == STATUS_NO_MEMORY &&
           how.memory_bytes >= 2 * DISK_MEMORY_MIN) {
        how.memory_bytes /= 2;
        st = STATUS_OK;
    }
    if (st == STATUS_OK) {
        st = disk_measure(file, &how, disk_out, &why);
        if (st == STATUS_OK || st == STATUS_UNAVAILABLE) /* small files are read all the same */
            measure_spread(what, file, &how, disk_out, memory_bytes, rates);
        device_host_discharge(what->device, how.memory_bytes);
    }
    disk_file_close(file);
    rates->disk_bytes_per_s = (double)disk_out->sequential_bytes_per_s;
    if (rates->disk_bytes_per_s <= 0)
        rates->disk_bytes_per_s = rates->disk_spread_bytes_per_s;
    if (rates->disk_bytes_per_s <= 0)
        log_line(what->log, LOG_INFO, "the disk is not measured: %s", why.message);
}

static void measure_products(const struct cli_measure *what, uint64_t memory_bytes,
                             uint64_t time_ns, struct model_rates *rates)
{
    bool used[DTYPE_COUNT] = { false };
    struct err why;

    for (size_t i = 0; i < ckpt_tensor_count(what->ckpt); i++) {
        const struct ckpt_tensor *tensor = ckpt_tensor_at(what->ckpt, i);

        if (tensor->rank >= 2 && tensor->dtype < DTYPE_COUNT && tensor->dtype != DTYPE_I32)
            used[tensor->dtype] = true;
    }
    used[DTYPE_F32] = true; /* its rate with one row is that of reading memory */
    for (size_t i = 0; i < DTYPE_COUNT; i++) {
        if (used[i] && device_measure_matmul(what->device, (enum dtype)i, memory_bytes, time_ns,
                                             &rates->matmul[i], &why) != STATUS_OK)
            log_line(what->log, LOG_INFO, "products of %s are not measured: %s",
                     dtype_info((enum dtype)i)->name, why.message);
    }
}

/* Of F32, whose products compute least; where the memory is too little for that, of another. */
static double read_rate(const struct model_rates *rates)
{
    double rate = rates->matmul[DTYPE_F32].one_row_bytes_per_s;

    for (size_t i = 0; rate == 0 && i < DTYPE_COUNT; i++)
        rate = rates->matmul[i].one_row_bytes_per_s;
    return rate;
}

/* Weights to measure with: not more than the model has, because caches may hold those, too. */
static uint64_t weight_bytes(const struct cli_measure *what, uint64_t most_bytes)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < ckpt_tensor_count(what->ckpt) && bytes < most_bytes; i++)
        bytes += ckpt_tensor_at(what->ckpt, i)->size_bytes;
    if (bytes < WEIGHT_BYTES_MIN)
        bytes = WEIGHT_BYTES_MIN;
    return bytes < most_bytes ? bytes : most_bytes;
}

void cli_measure(const struct cli_measure *what, struct model_rates *rates,
                 struct disk_measured *disk_out)
{
    const uint64_t time_ns = what->quickly ? QUICK_DEVICE_NS : DEVICE_MEASURE_NS;
    struct device_memory_report memory;
    struct err why;
    uint64_t memory_bytes;

    *disk_out = (struct disk_measured){ .depth = 0 };
    device_memory_report(what->device, &memory);
    memory_bytes = weight_bytes(what, (memory.budget_bytes - memory.used_bytes) / BUDGET_SHARE);
    measure_products(what, memory_bytes, time_ns, rates);
    if (device_measure_costs(what->device, time_ns / COSTS_SHARE, &rates->costs, &why) != STATUS_OK)
        log_line(what->log, LOG_INFO, "operators are not measured: %s", why.message);
    if (rates->read_bytes_per_s == 0)
        rates->read_bytes_per_s = read_rate(rates);
    if (what->disk && rates->disk_bytes_per_s == 0)
        measure_disk(what, memory_bytes, rates, disk_out);
    if (rates->link_bytes_per_s == 0)
        rates->link_bytes_per_s = (double)device_info(what->device)->link_bytes_per_s;
    if (what->link && rates->link_bytes_per_s == 0 &&
        device_measure_link(what->device, memory_bytes, time_ns, &rates->link_bytes_per_s, &why) !=
            STATUS_OK)
        log_line(what->log, LOG_INFO, "the link is not measured: %s", why.message);
    if (what->copy_bytes > 0 &&
        device_measure_copy(what->device, what->copy_bytes, memory_bytes, time_ns,
                            &rates->copy_bytes_per_s, &why) != STATUS_OK)
        log_line(what->log, LOG_INFO, "copies within the device are not measured: %s",
                 why.message);
}
