/* device/inspect.c - see inspect.h. */
#include "device/inspect.h"

#include "device/backend.h"

json_t *device__inspect_nothing(const struct device_options *options)
{
    (void)options;
    return json_object();
}

static void add_info(json_t *report, const struct device_info *info)
{
    json_t *more = json_pack(
        "{s:s, s:s, s:I, s:b, s:I, s:I}", "name", info->name, "description", info->description,
        "memory_bytes", (json_int_t)info->memory_bytes, "memory_is_host", info->memory_is_host,
        "link_bytes_per_s", (json_int_t)info->link_bytes_per_s, "workspace_bytes",
        (json_int_t)info->workspace_bytes);

    (void)json_object_update(report, more);
    json_decref(more);
}

enum status device_inspect(const char *spec, const struct device_options *options,
                           json_t **report_out, struct err *err)
{
    const struct device_ops *ops = NULL;
    struct device *device = NULL;
    struct err why = { .message = "" };
    json_t *report;
    enum status st = device__find(spec, &ops, err);

    if (st != STATUS_OK)
        return st;
    st = device_open(spec, options, &device, &why);
    if (st == STATUS_BAD_INPUT)
        return err_set(err, st, "%s", why.message);
    report = json_pack("{s:s, s:b, s:s?}", "spec", spec, "available", st == STATUS_OK, "reason",
                       st == STATUS_OK ? NULL : why.message);
    if (report != NULL && st == STATUS_OK)
        add_info(report, device_info(device));
    if (report != NULL)
        json_object_set_new(report, "details", ops->inspect(options));
    device_close(device);
    if (report == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a report");
    *report_out = report;
    return STATUS_OK;
}
