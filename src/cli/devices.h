/* cli/devices.h - which device the options mean, and where its libraries are. */
#ifndef LIGHTER_CLI_DEVICES_H
#define LIGHTER_CLI_DEVICES_H

#include <jansson.h>

#include "base/log.h"
#include "base/status.h"
#include "cli/options.h"
#include "device/inspect.h"

/* --device; without it, the NPU when --attention-backend ascend asks for one, else the CPU. */
const char *cli_device_spec(const struct cli_options *options);
/* Says what --attention-backend does here, when it is given. */
void cli_device_warn(const struct cli_options *options, const struct log *log);
/* device_open with the spec, and with the folders of libraries that the environment names. */
enum status cli_device_open(const struct cli_options *options,
                            const struct device_options *device_options,
                            struct device **device_out, struct err *err);

/* device_inspect of it. */
enum status cli_device_inspect(const struct cli_options *options, json_t **report_out,
                               struct err *err);
/* The report as lines of text, on standard output. */
void cli_device_print(const json_t *report);

#endif
