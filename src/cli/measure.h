/* cli/measure.h - finding out what this machine does, for a forecast. */
#ifndef LIGHTER_CLI_MEASURE_H
#define LIGHTER_CLI_MEASURE_H

#include "base/log.h"
#include "checkpoint/checkpoint.h"
#include "cli/options.h"
#include "device/device.h"
#include "model/predict.h"
#include "offload/disk/reader.h"

/* Measures for about a second: the disk that the checkpoint is on, the device's link, its memory,
 * and products with the types that the checkpoint has. options->offload_disk says how files are
 * read; what it leaves open is in *disk_out afterwards (depth 0: not measured). options->assume
 * gives some of them instead, as "disk=1GB/s,link=25GB/s,read=20GB/s". What can't be measured stays
 * 0, and the log says why. STATUS_BAD_INPUT: assume. */
enum status cli_measure(struct device *device, const struct ckpt *ckpt,
                        const struct cli_options *options, const struct log *log,
                        struct model_rates *rates_out, struct disk_measured *disk_out,
                        struct err *err);

#endif
