/* cli/devices.c - see devices.h.
 *
 * An NPU or a GPU may be named without its number: "ascend", or "npu", as SGLang says, and "cuda".
 * Each rank of a node then takes its own: rank.c counts them. */
#include "cli/devices.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define FOLDERS_BYTES 4096
#define BACKEND_ASCEND "ascend"

static bool is_kind(const char *spec, const char *name)
{
    const size_t length = strcspn(spec, ":");

    return length == strlen(name) && strncasecmp(spec, name, length) == 0;
}

static bool is_npu(const char *spec)
{
    return is_kind(spec, "ascend") || is_kind(spec, "npu");
}

static bool has_kernels_of_its_own(const char *spec)
{
    return is_npu(spec) || is_kind(spec, "cuda");
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

static void add_folder(char *folders, const char *home, const char *below)
{
    const size_t used = strlen(folders);

    if (home != NULL && home[0] != '\0' && used + strlen(home) + 8 < FOLDERS_BYTES)
        (void)snprintf(folders + used, FOLDERS_BYTES - used, "%s%s%s", used > 0 ? ":" : "", home,
                       below);
}

/* The options with the folders that the environment names, and the spec with its number. */
struct meant {
    struct device_options options;
    char spec[256], folders[FOLDERS_BYTES];
};

static enum status mean(struct meant *meant, const struct cli_options *options,
                        const struct device_options *device_options, struct err *err)
{
    const char *spec = cli_device_spec(options);
    const char *keep_nd = getenv("LIGHTER_ASCEND_ND");
    int written;

    if (options->cpu_kernels != NULL && has_kernels_of_its_own(spec))
        return err_set(err, STATUS_BAD_INPUT,
                       "--cpu-kernels is for the devices that compute on the CPU, cpu and sim, not "
                       "--device %.32s", spec);
    meant->options = *device_options;
    meant->options.keep_nd = keep_nd != NULL && keep_nd[0] != '\0' && strcmp(keep_nd, "0") != 0;
    meant->folders[0] = '\0';
    add_folder(meant->folders, getenv("ASCEND_HOME_PATH"), "/lib64"); /* of CANN's set_env.sh */
    add_folder(meant->folders, getenv("ASCEND_TOOLKIT_HOME"), "/lib64");
    add_folder(meant->folders, getenv("LIGHTER_CUDA_FOLDER"), "");
    if (meant->folders[0] != '\0')
        meant->options.library_path = meant->folders;
    if (has_kernels_of_its_own(spec) && strchr(spec, ':') == NULL)
        written = snprintf(meant->spec, sizeof(meant->spec), "%s:%u", spec, options->node_rank);
    else
        written = snprintf(meant->spec, sizeof(meant->spec), "%s", spec);
    return written > 0 && (size_t)written < sizeof(meant->spec)
               ? STATUS_OK
               : err_set(err, STATUS_BAD_INPUT, "--device: '%.32s...' is too long", spec);
}

enum status cli_device_open(const struct cli_options *options,
                            const struct device_options *device_options,
                            struct device **device_out, struct err *err)
{
    struct meant meant;
    const enum status st = mean(&meant, options, device_options, err);

    return st == STATUS_OK ? device_open(meant.spec, &meant.options, device_out, err) : st;
}

enum status cli_device_inspect(const struct cli_options *options, json_t **report_out,
                               struct err *err)
{
    const struct device_options wanted = { .thread_count = (uint32_t)options->threads };
    struct meant meant;
    const enum status st = mean(&meant, options, &wanted, err);

    return st == STATUS_OK ? device_inspect(meant.spec, &meant.options, report_out, err) : st;
}

/* "name: value" of whatever is not an object or a list, and the lists of objects line by line. */
static void print_value(const char *key, const json_t *value, int indent)
{
    const char *name;
    json_t *item;
    size_t i;

    if (json_is_object(value)) {
        if (key != NULL)
            printf("%*s%s:\n", indent, "", key);
        json_object_foreach((json_t *)value, name, item)
            print_value(name, item, indent + (key != NULL ? 2 : 0));
    } else if (json_is_array(value)) {
        printf("%*s%s:%s\n", indent, "", key, json_array_size(value) == 0 ? " none" : "");
        json_array_foreach(value, i, item) {
            char *line = json_dumps(item, JSON_ENCODE_ANY);

            printf("%*s%s\n", indent + 2, "", line != NULL ? line : "");
            free(line);
        }
    } else if (json_is_string(value)) {
        printf("%*s%s: %s\n", indent, "", key, json_string_value(value));
    } else {
        char *text = json_dumps(value, JSON_ENCODE_ANY);

        printf("%*s%s: %s\n", indent, "", key, text != NULL ? text : "");
        free(text);
    }
}

void cli_device_print(const json_t *report)
{
    print_value(NULL, report, 0);
}
