/* cli/measure.h - finding out what this machine does, for a forecast. */
#ifndef LIGHTER_CLI_MEASURE_H
#define LIGHTER_CLI_MEASURE_H

#include "base/log.h"
#include "checkpoint/checkpoint.h"
#include "cli/options.h"
#include "device/device.h"
#include "model/predict.h"
#include "offload/disk/reader.h"

/* What is measured, and with what. */
struct cli_measure {
    struct device *device;
    const struct ckpt *ckpt;
    const char *offload_disk;   /* how files are read; NULL: defaults */
    bool disk, link;            /* they are needed */
    uint64_t copy_bytes;        /* that are copied within the device at once, about; 0: none */
    uint64_t disk_read_bytes;   /* that are read at once, about; 0: nothing is */
    uint32_t disk_reads;        /* how many of those are under way; 0: many */
    bool quickly;               /* for about half a second; else for one or two */
    const struct log *log;
};

/* Rates that are given instead of measured, as "disk=1GB/s,link=25GB/s,read=20GB/s"; all others
 * are 0. NULL: none. STATUS_BAD_INPUT: one that can't be. */
enum status cli_assume(const char *assume, struct model_rates *rates_out, struct err *err);

/* Measures what is 0 in *rates: the disk that the checkpoint is on, the device's link, its memory,
 * and products with the types that the checkpoint has. How the disk is best read is in *disk_out
 * afterwards (depth 0: not measured). What can't be measured stays 0, and the log says why. */
void cli_measure(const struct cli_measure *what, struct model_rates *rates,
                 struct disk_measured *disk_out);

#endif
