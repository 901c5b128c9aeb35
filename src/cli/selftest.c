/* cli/selftest.c - `lighter selftest`: checks a device against the CPU, and prints a report that
 * says what was found too, for people to send to us. Exit status 1 when a check failed. */
#include <inttypes.h>
#include <stdio.h>

#include "cli/command.h"
#include "cli/devices.h"
#include "device/selftest.h"

/* The checks, as they are done, on standard output. */
static void print_line(void *user, enum log_level level, const char *line)
{
    (void)user;
    (void)level;
    printf("  %s\n", line);
    (void)fflush(stdout);
}

static void print_summary(const json_t *report)
{
    const char *op;
    json_t *item;
    size_t i;

    json_array_foreach(json_object_get(report, "same_bits"), i, item)
    {
        op = json_string_value(json_object_get(item, "op"));
        if (!json_is_true(json_object_get(item, "in_any_batch")))
            printf("  %s: a row's bits depend on the rows beside it\n", op);
    }
    printf("link %.3g bytes/s; a product with one row reads %.3g bytes/s, many rows make %.3g "
           "flop/s\n", json_real_value(json_object_get(report, "link_bytes_per_s")),
           json_real_value(json_object_get(report, "matmul_bytes_per_s")),
           json_real_value(json_object_get(report, "matmul_flops_per_s")));
    printf("%" JSON_INTEGER_FORMAT " checks passed, %" JSON_INTEGER_FORMAT " failed, %"
           JSON_INTEGER_FORMAT " unsupported, in %.1f s\n",
           json_integer_value(json_object_get(report, "passed")),
           json_integer_value(json_object_get(report, "failed")),
           json_integer_value(json_object_get(report, "unsupported")),
           json_real_value(json_object_get(report, "seconds")));
}

static enum status test(struct cli_context *context, json_t **report_out, struct err *err)
{
    const struct cli_options *options = context->options;
    const struct device_options wanted = { .thread_count = (uint32_t)options->threads,
                                           .cpu_kernels = options->cpu_kernels };
    const struct log lines = { print_line, NULL };
    const struct device_options plain = { .cpu_kernels = "scalar" };
    struct device *device = NULL, *reference = NULL;
    enum status st = cli_device_open(options, &wanted, &device, err);

    if (st == STATUS_OK)
        st = device_open("cpu", &plain, &reference, err);
    if (st == STATUS_OK) {
        *report_out = device_selftest(device, reference, options->json ? NULL : &lines);
        if (*report_out == NULL)
            st = err_set(err, STATUS_NO_MEMORY, "no memory for a report");
    }
    device_close(reference);
    device_close(device);
    context->bad_usage = st == STATUS_BAD_INPUT;
    return st;
}

enum status cli_selftest(struct cli_context *context, struct err *err)
{
    const struct cli_options *options = context->options;
    json_t *inspected = NULL, *report = NULL;
    json_int_t failed;
    enum status st = cli_device_inspect(options, &inspected, err);

    context->bad_usage = st == STATUS_BAD_INPUT;
    if (st == STATUS_OK && !options->json)
        cli_device_print(inspected);
    if (st == STATUS_OK)
        st = test(context, &report, err);
    failed = json_integer_value(json_object_get(report, "failed"));
    context->printed = st == STATUS_OK && options->json;
    if (context->printed)
        st = cli_print_json(json_pack("{s:O, s:O}", "device", inspected, "selftest", report), err);
    else if (st == STATUS_OK)
        print_summary(report);
    json_decref(inspected);
    json_decref(report);
    if (st == STATUS_OK && failed > 0)
        st = err_set(err, STATUS_DEVICE, "%" JSON_INTEGER_FORMAT " checks of %s failed", failed,
                     cli_device_spec(options));
    return st;
}
