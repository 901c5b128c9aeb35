/* cli/measure.c - see measure.h. */
#include "cli/measure.h"

#include <string.h>
#include <sys/stat.h>

#include "base/size.h"
#include "device/measure.h"
#include "offload/disk/reader.h"

#define DISK_MEMORY_MIN (4 * MIB)
#define BUDGET_SHARE 2 /* of the device's memory, one part in so many may be used */
#define SPREAD_NS UINT64_C(150000000)

/* A rate given as "1GB/s". */
static enum status read_assumed(const char *assume, struct model_rates *rates, struct err *err)
{
    struct {
        const char *name;
        double *rate;
    } all[] = { { "disk", &rates->disk_bytes_per_s },
                { "link", &rates->link_bytes_per_s },
                { "read", &rates->read_bytes_per_s } };
    const size_t count = sizeof(all) / sizeof(all[0]);
    const char *at = assume;

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
static void measure_spread(struct device *device, const struct ckpt *ckpt,
                           const struct disk_file *file, const struct disk_measure_options *how,
                           const struct disk_measured *measured, uint64_t memory_bytes,
                           struct model_rates *rates)
{
    const struct device_info *info = device_info(device);
    struct disk_measure_options shorter = *how;
    struct device_busy *busy = NULL;
    uint64_t rate = 0;

    shorter.time_ns = SPREAD_NS;
    if (disk_measure_spread(file, &shorter, measured, &rate, NULL) != STATUS_OK)
        return;
    rates->disk_spread_bytes_per_s = (double)rate;
    if ((!info->memory_is_host && !info->memory_takes_host) ||
        device_busy_begin(device, largest_dtype(ckpt), memory_bytes, &busy, NULL) != STATUS_OK)
        return;
    if (disk_measure_spread(file, &shorter, measured, &rate, NULL) == STATUS_OK)
        rates->disk_beside_bytes_per_s = (double)rate;
    device_busy_end(busy);
}

/* Through no more memory than the host's budget has room for; of the device's, memory_bytes. */
static void measure_disk(struct device *device, const struct ckpt *ckpt, const char *settings,
                         uint64_t memory_bytes, const struct log *log, struct model_rates *rates,
                         struct disk_measured *disk_out)
{
    struct disk_measure_options how = { .memory_bytes = DISK_MEASURE_BYTES };
    struct disk_reader_options reader = { 0 };
    struct disk_file *file = NULL;
    struct err why;
    enum status st = disk_reader_options_parse(settings, "--offload-disk", &reader, &why);

    how.uring = reader.uring;
    if (st == STATUS_OK)
        st = disk_file_open(largest_file(ckpt), reader.direct, &file, &why);
    while (st == STATUS_OK &&
           (st = device_host_charge(device, how.memory_bytes, &why)) == STATUS_NO_MEMORY &&
           how.memory_bytes >= 2 * DISK_MEMORY_MIN) {
        how.memory_bytes /= 2;
        st = STATUS_OK;
    }
    if (st == STATUS_OK) {
        st = disk_measure(file, &how, disk_out, &why);
        if (st == STATUS_OK)
            measure_spread(device, ckpt, file, &how, disk_out, memory_bytes, rates);
        device_host_discharge(device, how.memory_bytes);
    }
    disk_file_close(file);
    if (st == STATUS_OK)
        rates->disk_bytes_per_s = (double)disk_out->sequential_bytes_per_s;
    else
        log_line(log, LOG_INFO, "the disk is not measured: %s", why.message);
}

static void measure_products(struct device *device, const struct ckpt *ckpt, uint64_t memory_bytes,
                             const struct log *log, struct model_rates *rates)
{
    bool used[DTYPE_COUNT] = { false };
    struct err why;

    for (size_t i = 0; i < ckpt_tensor_count(ckpt); i++) {
        const struct ckpt_tensor *tensor = ckpt_tensor_at(ckpt, i);

        if (tensor->rank >= 2 && tensor->dtype < DTYPE_COUNT && tensor->dtype != DTYPE_I32)
            used[tensor->dtype] = true;
    }
    used[DTYPE_F32] = true; /* its rate with one row is that of reading memory */
    for (size_t i = 0; i < DTYPE_COUNT; i++) {
        if (used[i] && device_measure_matmul(device, (enum dtype)i, memory_bytes, &rates->matmul[i],
                                             &why) != STATUS_OK)
            log_line(log, LOG_INFO, "products of %s are not measured: %s",
                     dtype_info((enum dtype)i)->name, why.message);
    }
}

enum status cli_measure(struct device *device, const struct ckpt *ckpt,
                        const struct cli_options *options, const struct log *log,
                        struct model_rates *rates_out, struct disk_measured *disk_out,
                        struct err *err)
{
    struct device_memory_report memory;
    struct err why;
    uint64_t memory_bytes;
    enum status st;

    *rates_out = (struct model_rates){ 0 };
    *disk_out = (struct disk_measured){ .depth = 0 };
    st = read_assumed(options->assume, rates_out, err);
    if (st != STATUS_OK)
        return st;
    device_memory_report(device, &memory);
    memory_bytes = (memory.budget_bytes - memory.used_bytes) / BUDGET_SHARE;
    measure_products(device, ckpt, memory_bytes, log, rates_out);
    if (rates_out->read_bytes_per_s == 0)
        rates_out->read_bytes_per_s = rates_out->matmul[DTYPE_F32].one_row_bytes_per_s;
    if (rates_out->disk_bytes_per_s == 0)
        measure_disk(device, ckpt, options->offload_disk, memory_bytes, log, rates_out, disk_out);
    if (rates_out->link_bytes_per_s == 0)
        rates_out->link_bytes_per_s = (double)device_info(device)->link_bytes_per_s;
    if (rates_out->link_bytes_per_s == 0 &&
        device_measure_link(device, memory_bytes, &rates_out->link_bytes_per_s, &why) != STATUS_OK)
        log_line(log, LOG_INFO, "the link is not measured: %s", why.message);
    return STATUS_OK;
}
