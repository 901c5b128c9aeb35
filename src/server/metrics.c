/* server/metrics.c - the engines' reports in Prometheus's text format, version 0.0.4
 * (https://prometheus.io/docs/instrumenting/exposition_formats/).
 *
 *     # HELP lighter_steps_total Steps that the model ran.
 *     # TYPE lighter_steps_total counter
 *     lighter_steps_total{rank="0"} 12
 *
 * A family's samples stand together: one for each rank (the label is left out when there is one
 * engine), and for each home or cause where the report has several. */
#include <inttypes.h>
#include <string.h>

#include "server/internal.h"

enum kind { COUNTER, GAUGE };

struct metric {
    const char *name, *help;
    enum kind kind;
    const char *path;   /* in an engine's report, "a.b"; of an object's members where `label` */
    const char *label;  /* NULL: one sample */
    const char *member; /* of each member of the object; NULL: the member itself */
};

static const struct metric metrics[] = {
    { "lighter_requests_running", "Requests that run now.", GAUGE, "running", NULL, NULL },
    { "lighter_requests_waiting", "Requests that wait to be admitted.", GAUGE, "waiting", NULL,
      NULL },
    { "lighter_requests_submitted_total", "Requests taken.", COUNTER, "submitted", NULL, NULL },
    { "lighter_requests_finished_total", "Requests answered to their end.", COUNTER, "finished",
      NULL, NULL },
    { "lighter_requests_aborted_total", "Requests canceled or failed.", COUNTER, "aborted", NULL,
      NULL },
    { "lighter_requests_refused_total", "Requests refused because the queue was full.", COUNTER,
      "refused_busy", NULL, NULL },
    { "lighter_prompt_tokens_total", "Tokens of prompts taken.", COUNTER, "prompt_tokens", NULL,
      NULL },
    { "lighter_completion_tokens_total", "Tokens generated.", COUNTER, "completion_tokens", NULL,
      NULL },
    { "lighter_steps_total", "Steps that the model ran.", COUNTER, "steps", NULL, NULL },
    { "lighter_steps_failed_total", "Steps that failed.", COUNTER, "failed_steps", NULL, NULL },
    { "lighter_step_seconds_total", "Time spent in steps.", COUNTER, "step_s", NULL, NULL },
    { "lighter_kv_pages", "Pages of the KV cache.", GAUGE, "kv.pages", NULL, NULL },
    { "lighter_kv_pages_free", "Pages of the KV cache that are free.", GAUGE, "kv.pages_free",
      NULL, NULL },
    { "lighter_offload_run_seconds_total", "Time from the first pass to the end of the last.",
      COUNTER, "offload.run_s", NULL, NULL },
    { "lighter_offload_onloads_total", "Units brought to the device.", COUNTER, "offload.homes",
      "home", "onloads" },
    { "lighter_offload_moved_bytes_total", "Bytes brought to the device.", COUNTER,
      "offload.homes", "home", "bytes_moved" },
    { "lighter_offload_demanded_bytes_total", "Bytes brought because a pass needed them.", COUNTER,
      "offload.homes", "home", "bytes_demanded" },
    { "lighter_offload_guessed_used_bytes_total", "Bytes guessed that were used later.", COUNTER,
      "offload.homes", "home", "bytes_guessed_used" },
    { "lighter_offload_guessed_wasted_bytes_total", "Bytes guessed that nobody used.", COUNTER,
      "offload.homes", "home", "bytes_guessed_wasted" },
    { "lighter_offload_reread_bytes_total", "Bytes that had been on the device before.", COUNTER,
      "offload.homes", "home", "bytes_reread" },
    { "lighter_offload_cache_hits_total", "Experts that were there when asked for.", COUNTER,
      "offload.homes", "home", "hits" },
    { "lighter_offload_cache_misses_total", "Experts that were not there when asked for.", COUNTER,
      "offload.homes", "home", "misses" },
    { "lighter_offload_home_bytes", "Bytes of the units of a home.", GAUGE, "offload.homes",
      "home", "bytes" },
    { "lighter_offload_stall_seconds_total", "Time that computing waited for weights.", COUNTER,
      "offload.stalls", "cause", NULL },
    { "lighter_offload_copy_seconds_total", "Time spent copying to the device.", COUNTER,
      "offload.copy_s", NULL, NULL },
    { "lighter_offload_link_use_ratio", "Share of the link's bandwidth used over the run.", GAUGE,
      "offload.link.use_share_of_run", NULL, NULL },
    { "lighter_offload_link_busy_ratio", "Share of the run in which a copy ran.", GAUGE,
      "offload.link.busy_share_of_run", NULL, NULL },
    { "lighter_offload_disk_use_ratio", "Share of the disk's bandwidth used over the run.", GAUGE,
      "offload.disk.use_share_of_run", NULL, NULL },
    { "lighter_offload_disk_busy_ratio", "Share of the run in which a read was under way.", GAUGE,
      "offload.disk.busy_share_of_run", NULL, NULL },
    { "lighter_offload_disk_read_bytes_total", "Bytes read from the disk.", COUNTER,
      "offload.disk.bytes_read", NULL, NULL },
    { "lighter_offload_bound_ratio",
      "Share of the run that what moved takes at the full rate of link and disk.", GAUGE,
      "offload.bound.share_of_run", NULL, NULL },
    { "lighter_memory_budget_bytes", "Device memory that may be taken.", GAUGE,
      "offload.memory.budget_bytes", NULL, NULL },
    { "lighter_memory_used_bytes", "Device memory that is taken.", GAUGE,
      "offload.memory.used_bytes", NULL, NULL },
    { "lighter_memory_peak_bytes", "Device memory that was taken at most.", GAUGE,
      "offload.memory.peak_bytes", NULL, NULL },
    { "lighter_host_memory_used_bytes", "Host memory that is taken.", GAUGE,
      "offload.memory.host_used_bytes", NULL, NULL },
    { "lighter_host_memory_peak_bytes", "Host memory that was taken at most.", GAUGE,
      "offload.memory.host_peak_bytes", NULL, NULL },
};

/* What "a.b" leads to; NULL: nothing. */
static const json_t *follow(const json_t *json, const char *path)
{
    while (json != NULL && *path != '\0') {
        const size_t size = strcspn(path, ".");

        json = json_object_getn(json, path, size);
        path += size + (path[size] == '.');
    }
    return json;
}

struct page {
    struct buf *out;
    enum status status;
    struct err *err;
    const struct metric *metric;
    bool is_begun;       /* of the metric: HELP and TYPE are written */
    json_int_t rank;     /* -1: there is one engine */
};

static void sample_write(struct page *page, const char *label_value, const json_t *value)
{
    const struct metric *metric = page->metric;
    char labels[160] = "", rank[32] = "";

    if (page->status != STATUS_OK || !json_is_number(value))
        return;
    if (page->rank >= 0)
        (void)snprintf(rank, sizeof(rank), "rank=\"%d\"", (int)page->rank);
    if (label_value != NULL || page->rank >= 0)
        (void)snprintf(labels, sizeof(labels), "{%s%s%s%s%s%s}", rank,
                       label_value != NULL && page->rank >= 0 ? "," : "",
                       label_value != NULL ? metric->label : "", label_value != NULL ? "=\"" : "",
                       label_value != NULL ? label_value : "", label_value != NULL ? "\"" : "");
    if (!page->is_begun)
        page->status = buf_printf(page->out, page->err, "# HELP %s %s\n# TYPE %s %s\n",
                                  metric->name, metric->help, metric->name,
                                  metric->kind == COUNTER ? "counter" : "gauge");
    page->is_begun = true;
    if (page->status != STATUS_OK)
        return;
    if (json_is_integer(value))
        page->status = buf_printf(page->out, page->err, "%s%s %" JSON_INTEGER_FORMAT "\n",
                                  metric->name, labels, json_integer_value(value));
    else
        page->status = buf_printf(page->out, page->err, "%s%s %.9g\n", metric->name, labels,
                                  json_number_value(value));
}

static void engine_write(struct page *page, const json_t *report)
{
    const struct metric *metric = page->metric;
    const json_t *found = follow(report, metric->path), *value;
    const char *key;

    if (metric->label == NULL) {
        sample_write(page, NULL, found);
        return;
    }
    json_object_foreach((json_t *)found, key, value)
        sample_write(page, key, metric->member == NULL ? value
                                                       : json_object_get(value, metric->member));
}

enum status server__metrics_write(const json_t *fleet, struct buf *out, struct err *err)
{
    const json_t *ranks = json_object_get(fleet, "ranks"), *rank;
    struct page page = { .out = out, .err = err };
    size_t at;

    for (size_t i = 0; i < sizeof(metrics) / sizeof(metrics[0]); i++) {
        page.metric = &metrics[i];
        page.is_begun = false;
        page.rank = -1;
        if (ranks == NULL)
            engine_write(&page, json_object_get(fleet, "engine"));
        json_array_foreach(ranks, at, rank) {
            page.rank = json_integer_value(json_object_get(rank, "dp_rank"));
            engine_write(&page, json_object_get(rank, "report"));
        }
    }
    return page.status;
}
