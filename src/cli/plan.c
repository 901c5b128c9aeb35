/* cli/plan.c - `lighter plan`: what would live where, what it would move, and how fast it would be.
 *
 * The plan is the one that `serve`, `generate` and `chat` make from the same options; nothing is
 * loaded. */
#include <stdio.h>

#include "base/size.h"
#include "cli/command.h"
#include "cli/session.h"

static json_t *homes_json(const struct model *model)
{
    json_t *manifest = offload_manifest_json(model_offload((struct model *)model));
    json_t *homes = json_object();
    const json_t *row;
    size_t i;

    if (manifest == NULL || homes == NULL) {
        json_decref(manifest);
        json_decref(homes);
        return NULL;
    }
    json_array_foreach(manifest, i, row)
    {
        const char *home = json_string_value(json_object_get(row, "home"));
        const json_int_t bytes = json_integer_value(json_object_get(row, "bytes"));
        const json_int_t before = json_integer_value(json_object_get(homes, home));

        (void)json_object_set_new(homes, home, json_integer(before + bytes));
    }
    json_decref(manifest);
    return homes;
}

static json_t *plan_json(const struct cli_session *session, const struct cli_options *options)
{
    const struct model_info *info = model_info(session->model);
    struct device_memory_report memory;
    struct offload_sizes sizes;

    device_memory_report(session->device, &memory);
    offload_sizes(model_offload(session->model), &sizes);
    return json_pack(
        "{s:s, s:s, s:s, s:s, s:I, s:I, s:o, s:{s:I, s:I, s:I, s:I, s:I, s:I}, "
        "s:{s:o, s:I, s:I, s:I, s:I, s:I}, s:{s:s, s:I, s:I, s:I, s:I, s:I, s:I}, s:I, s:o, s:o}",
        "model", options->model, "architecture", info->architecture, "device",
        device_info(session->device)->name, "mode", cli_options_offload_mode(options),
        "budget_bytes", (json_int_t)memory.budget_bytes, "weight_bytes",
        (json_int_t)info->weight_bytes, "homes", homes_json(session->model), "offload",
        "resident_bytes", (json_int_t)sizes.resident_bytes,
        "shard_bytes", (json_int_t)sizes.shard_bytes, "moving_bytes",
        (json_int_t)sizes.moving_bytes, "units", (json_int_t)sizes.unit_count, "slots",
        (json_int_t)sizes.slot_count, "slot_bytes", (json_int_t)sizes.slot_bytes,
        "host", "budget_bytes",
        memory.host_budget_bytes > 0 ? json_integer((json_int_t)memory.host_budget_bytes)
                                     : json_null(),
        "needed_bytes", (json_int_t)memory.host_used_bytes + (json_int_t)sizes.host_bytes +
                            (json_int_t)session->host_reserve_bytes, "home_bytes",
        (json_int_t)sizes.host_home_bytes, "staging_bytes", (json_int_t)sizes.host_staging_bytes,
        "table_bytes", (json_int_t)sizes.host_table_bytes, "load_bytes",
        (json_int_t)sizes.host_load_bytes,
        "kv_cache", "dtype", dtype_info(info->kv_dtype)->name, "tokens",
        (json_int_t)info->kv_page_size * info->kv_page_count, "page_size",
        (json_int_t)info->kv_page_size, "bytes_per_token", (json_int_t)info->kv_bytes_per_token,
        "window", (json_int_t)info->sliding_window, "window_tokens",
        (json_int_t)info->kv_page_size * info->kv_window_page_count, "window_bytes_per_token",
        (json_int_t)info->kv_window_bytes_per_token,
        "scratch_bytes", (json_int_t)info->scratch_bytes, "forecast",
        model_forecast_json(&session->rates, model_forecast_made(session->model)), "units",
        offload_manifest_json(model_offload(session->model)));
}

enum status cli_plan(struct cli_context *context, struct err *err)
{
    const struct cli_options *options = context->options;
    const struct cli_demand demand = {
        .sequence_count = options->max_running_requests > 0
                              ? (uint32_t)options->max_running_requests : 1,
        .tokens_each = (uint64_t)options->prompt_tokens + (uint64_t)options->gen_tokens,
        .prompt_tokens = (uint32_t)options->prompt_tokens,
        .plan_only = true,
    };
    struct cli_session session = { 0 };
    enum status st = cli_session_start(&session, options, &demand, &context->console->log,
                                       &context->console->progress, err);

    context->bad_usage = session.bad_usage;
    if (st == STATUS_OK && options->json)
        st = cli_print_json(plan_json(&session, options), err);
    cli_session_close(&session);
    return st;
}
