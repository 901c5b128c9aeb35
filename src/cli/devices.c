/* cli/devices.c - see devices.h.
 *
 * An NPU may be named without its number: "ascend", or "npu", as SGLang says. Each rank of a node
 * then takes its own: rank.c counts them. */
#include "cli/devices.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define FOLDERS_BYTES 4096
#define BACKEND_ASCEND "ascend"

static bool is_npu(const char *spec)
{
    const size_t length = strcspn(spec, ":");

    return (length == strlen("ascend") && strncasecmp(spec, "ascend", length) == 0) ||
           (length == strlen("npu") && strncasecmp(spec, "npu", length) == 0);
}

const char *cli_device_spec(const struct cli_options *options)
{
    if (options->device != NULL)
        return options->device;
    return options->attention_backend != NULL &&
                   strcmp(options->attention_backend, BACKEND_ASCEND) == 0
               ? "ascend" : "cpu";
}

void cli_device_warn(const struct cli_options *options, const struct log *log)
{
    const char *backend = options->attention_backend;

    if (backend == NULL)
        return;
    if (strcmp(backend, BACKEND_ASCEND) != 0)
        log_line(log, LOG_WARN, "--attention-backend has no effect here: each device has one "
                 "attention");
    else if (!is_npu(cli_device_spec(options)))
        log_line(log, LOG_WARN, "--attention-backend ascend has no effect here: --device is %s",
                 options->device);
    else
        log_line(log, LOG_INFO, "--attention-backend ascend: the model runs on an NPU, whose one "
                 "attention is CANN's%s", options->device == NULL ? " (--device ascend)" : "");
}

/* What CANN's set_env.sh sets. */
static void add_folder(char *folders, const char *home)
{
    const size_t used = strlen(folders);

    if (home != NULL && home[0] != '\0' && used + strlen(home) + 8 < FOLDERS_BYTES)
        (void)snprintf(folders + used, FOLDERS_BYTES - used, "%s%s/lib64", used > 0 ? ":" : "",
                       home);
}

enum status cli_device_open(const struct cli_options *options,
                            const struct device_options *device_options,
                            struct device **device_out, struct err *err)
{
    struct device_options wanted = *device_options;
    const char *spec = cli_device_spec(options);
    const char *keep_nd = getenv("LIGHTER_ASCEND_ND");
    char folders[FOLDERS_BYTES] = "", numbered[32];

    add_folder(folders, getenv("ASCEND_HOME_PATH"));
    add_folder(folders, getenv("ASCEND_TOOLKIT_HOME"));
    if (folders[0] != '\0')
        wanted.library_path = folders;
    wanted.keep_nd = keep_nd != NULL && keep_nd[0] != '\0' && strcmp(keep_nd, "0") != 0;
    if (is_npu(spec) && strchr(spec, ':') == NULL) {
        (void)snprintf(numbered, sizeof(numbered), "%s:%u", spec, options->node_rank);
        spec = numbered;
    }
    return device_open(spec, &wanted, device_out, err);
}
