/* cli/bench.c - `lighter bench`: how fast prompts are taken in and tokens made, beside what the
 * machine could do at best.
 *
 * Every figure is a median over the repeats, after one run to warm up. The bounds:
 *
 *     memory  batch / ((weights + keys and values read in a step) / read bandwidth)
 *     link    batch / (bytes moved in a pass / the link's bandwidth + its latency)
 *
 * The read bandwidth is measured here, in a plain loop with as many threads. On a device whose
 * copies and kernels share one memory, a moved byte is read from its home, written to the slot,
 * and read from there: memory_shared counts that. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "base/thread_pool.h"
#include "cli/bench.h"
#include "cli/command.h"

struct results {
    double *prefill, *decode;   /* tokens per second, one for each repeat */
    uint32_t count;
    json_t *prefill_report, *decode_report; /* of the last repeat */
    struct cli_bench_bytes bytes;
    double moved_per_pass;      /* by a decode pass */
    double units_per_pass;
    double read_bytes_per_s;
};

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Sorts the values. */
static double median(double *values, uint32_t count)
{
    qsort(values, count, sizeof(*values), compare);
    return count % 2 == 1 ? values[count / 2]
                          : (values[count / 2 - 1] + values[count / 2]) / 2;
}

static json_t *real_or_null(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static double number_at(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

static enum status measure(const struct cli_session *session, const struct cli_bench_shape *shape,
                           uint32_t repeat, const struct log *log, struct results *results,
                           struct err *err)
{
    struct cli_bench_phase prefill = { 0 };
    struct cli_bench_phase decode = { 0 };
    enum status st = cli_bench_decode(session, shape, &decode, err);

    json_decref(decode.report);
    for (uint32_t i = 0; i < repeat && st == STATUS_OK; i++) {
        prefill.report = NULL;
        decode.report = NULL;
        st = cli_bench_prefill(session, shape, &prefill, err);
        if (st == STATUS_OK)
            st = cli_bench_decode(session, shape, &decode, err);
        json_decref(results->prefill_report);
        json_decref(results->decode_report);
        results->prefill_report = prefill.report;
        results->decode_report = decode.report;
        if (st != STATUS_OK)
            break;
        results->prefill[i] = (double)prefill.tokens / prefill.seconds;
        results->decode[i] = (double)decode.tokens / decode.seconds;
        results->count = i + 1;
        log_line(log, LOG_INFO, "run %u of %u: prefill %.1f tokens/s, decode %.2f tokens/s",
                 (unsigned)i + 1, (unsigned)repeat, results->prefill[i], results->decode[i]);
    }
    return st;
}

static json_t *phase_json(const double *values, uint32_t count, json_t *report)
{
    json_t *all = json_array();
    double best = 0;

    for (uint32_t i = 0; i < count; i++) {
        json_array_append_new(all, json_real(values[i]));
        best = values[i] > best ? values[i] : best;
    }
    return json_pack("{s:o, s:f, s:O?}", "tokens_per_s", all, "best", best, "offload", report);
}

/* Tokens per second that a bound of so many seconds for a step allows. */
static double rate(double batch, double seconds)
{
    return seconds > 0 ? batch / seconds : INFINITY;
}

static json_t *bounds_json(const struct results *results, const struct device_info *device,
                           uint32_t batch, double decode, json_t **shares_out)
{
    const double step_bytes =
        (double)(results->bytes.weights_per_step + results->bytes.kv_per_step);
    const double link_s = device->link_bytes_per_s > 0
                              ? results->moved_per_pass / (double)device->link_bytes_per_s +
                                    results->units_per_pass * (double)device->link_latency_ns * 1e-9
                              : 0;
    const double memory = rate(batch, step_bytes / results->read_bytes_per_s);
    const double link = rate(batch, link_s);
    const double shared = rate(batch, (step_bytes + 2 * results->moved_per_pass) /
                                          results->read_bytes_per_s);
    const double best = link < memory ? link : memory;

    *shares_out = json_pack("{s:o, s:o, s:o, s:o}", "decode_of_bound", real_or_null(decode / best),
                            "decode_of_memory", real_or_null(decode / memory), "decode_of_link",
                            real_or_null(isfinite(link) ? decode / link : NAN),
                            "decode_of_memory_shared", real_or_null(decode / shared));
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "read_bytes_per_s",
                     real_or_null(results->read_bytes_per_s), "link_bytes_per_s",
                     device->link_bytes_per_s > 0
                         ? json_integer((json_int_t)device->link_bytes_per_s)
                         : json_null(),
                     "decode_tokens_per_s", real_or_null(best), "decode_by_memory",
                     real_or_null(memory), "decode_by_link", real_or_null(link),
                     "decode_by_memory_shared", real_or_null(shared));
}

static json_t *results_json(const struct cli_session *session, const struct cli_options *options,
                            struct results *results)
{
    const struct device_info *device = device_info(session->device);
    const struct model_info *model = engine_model_info(session->engine);
    json_t *prefill = phase_json(results->prefill, results->count, results->prefill_report);
    json_t *decode = phase_json(results->decode, results->count, results->decode_report);
    const double prefill_median = median(results->prefill, results->count);
    const double decode_median = median(results->decode, results->count);
    json_t *shares = NULL;
    json_t *bounds =
        bounds_json(results, device, (uint32_t)options->batch, decode_median, &shares);

    return json_pack(
        "{s:o, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:f, s:f, s:o, s:o, s:{s:I, s:I, s:I, s:f}, s:o,"
        " s:o, s:b}",
        "model", cli_text_json(options->model, strlen(options->model)), "architecture",
        model->architecture, "device", device->name, "device_description", device->description,
        "prompt_tokens", (json_int_t)options->prompt_tokens, "gen_tokens",
        (json_int_t)options->gen_tokens, "batch", (json_int_t)options->batch, "repeat",
        (json_int_t)options->repeat, "prefill_tokens_per_s", prefill_median,
        "decode_tokens_per_s", decode_median, "prefill", prefill, "decode", decode, "bytes",
        "weights", (json_int_t)results->bytes.weights, "weights_per_decode_step",
        (json_int_t)results->bytes.weights_per_step, "kv_per_decode_step",
        (json_int_t)results->bytes.kv_per_step, "moved_per_decode_pass", results->moved_per_pass,
        "bounds", bounds, "shares", shares, "garbage",
        offload_is_garbage(model_offload(session->model)));
}

static void print_phase(const char *name, double value, const json_t *phase)
{
    const json_t *offload = json_object_get(phase, "offload");

    printf("%-8s %10.2f tokens/s (best %.2f)   compute %.3f s, copy %.3f s, stalled %.3f s of "
           "%.3f s; link use %.1f %%\n",
           name, value, number_at(phase, "best"), number_at(offload, "compute_s"),
           number_at(offload, "copy_s"), number_at(offload, "stall_s"),
           number_at(offload, "run_s"),
           100 * number_at(json_object_get(offload, "link"), "use_share_of_run"));
}

static enum status print_results(json_t *json, struct err *err)
{
    const json_t *bounds = json_object_get(json, "bounds");
    const json_t *bytes = json_object_get(json, "bytes");
    char text[3][32];

    print_phase("prefill", number_at(json, "prefill_tokens_per_s"),
                json_object_get(json, "prefill"));
    print_phase("decode", number_at(json, "decode_tokens_per_s"), json_object_get(json, "decode"));
    printf("a decode step reads %s of weights and %s of keys and values, and moves %s\n",
           size_format((uint64_t)number_at(bytes, "weights_per_decode_step"), text[0],
                       sizeof(text[0])),
           size_format((uint64_t)number_at(bytes, "kv_per_decode_step"), text[1], sizeof(text[1])),
           size_format((uint64_t)number_at(bytes, "moved_per_decode_pass"), text[2],
                       sizeof(text[2])));
    printf("memory is read at %s/s: at most %.2f tokens/s",
           size_format((uint64_t)number_at(bounds, "read_bytes_per_s"), text[0], sizeof(text[0])),
           number_at(bounds, "decode_by_memory"));
    if (json_is_number(json_object_get(bounds, "decode_by_link")))
        printf("; the link's %s/s: at most %.2f tokens/s",
               size_format((uint64_t)number_at(bounds, "link_bytes_per_s"), text[1],
                           sizeof(text[1])),
               number_at(bounds, "decode_by_link"));
    printf("\ndecode reaches %.1f %% of its bound\n",
           100 * number_at(json_object_get(json, "shares"), "decode_of_bound"));
    json_decref(json);
    return cli_stdout_flush(err);
}

static uint32_t step_rows(const struct cli_options *options)
{
    struct model_options model;

    model_options_init(&model);
    return options->chunked_prefill_size > 0 ? (uint32_t)options->chunked_prefill_size
                                             : model.step_row_count_max;
}

/* Runs everything on an open session and fills the results. */
static enum status run(const struct cli_session *session, const struct cli_options *options,
                       const struct cli_bench_shape *shape, const struct log *log,
                       struct results *results, struct err *err)
{
    enum status st = measure(session, shape, (uint32_t)options->repeat, log, results, err);
    double passes;

    if (st != STATUS_OK)
        return st;
    cli_bench_bytes(session->ckpt, engine_model_info(session->engine), shape, &results->bytes);
    passes = number_at(results->decode_report, "passes");
    if (passes > 0) {
        const json_t *unit;
        double onloads = 0;
        size_t i;
        json_array_foreach(json_object_get(results->decode_report, "units"), i, unit)
            onloads += number_at(unit, "onloads");
        results->moved_per_pass = number_at(results->decode_report, "bytes_moved") / passes;
        results->units_per_pass = onloads / passes;
    }
    return STATUS_OK;
}

enum status cli_bench(struct cli_context *context, struct err *err)
{
    const struct cli_options *options = context->options;
    const struct log *log = &context->console->log;
    const struct cli_bench_shape shape = {
        .prompt_tokens = (uint32_t)options->prompt_tokens,
        .gen_tokens = (uint32_t)options->gen_tokens,
        .batch = (uint32_t)options->batch,
        .seed = options->random_seed >= 0 ? (uint64_t)options->random_seed : 1,
    };
    struct cli_session session = { 0 };
    struct results results = { .prefill = calloc((size_t)options->repeat, sizeof(double)),
                               .decode = calloc((size_t)options->repeat, sizeof(double)) };
    const uint32_t threads =
        options->threads > 0 ? (uint32_t)options->threads : thread_count_available();
    enum status st = STATUS_OK;

    if (results.prefill == NULL || results.decode == NULL)
        st = err_set(err, STATUS_NO_MEMORY, "no memory for the results");
    /* Before the model takes the memory that it needs. */
    if (st == STATUS_OK)
        st = cli_bench_read_bandwidth(threads, &results.read_bytes_per_s, err);
    if (st == STATUS_OK)
        st = cli_session_start(&session, options,
                               &(struct cli_demand){
                                   .loads_all = true,
                                   .sequence_count = shape.batch,
                                   .tokens_each = (uint64_t)shape.prompt_tokens +
                                                  shape.gen_tokens +
                                                  cli_bench_lead(&shape, step_rows(options)),
                               },
                               log, &context->console->progress, err);
    context->bad_usage = session.bad_usage;
    if (st == STATUS_OK) {
        st = run(&session, options, &shape, log, &results, err);
        context->bad_usage = st == STATUS_BAD_INPUT;
    }
    if (st == STATUS_OK) {
        json_t *json = results_json(&session, options, &results);
        if (options->json)
            st = cli_print_json(json, err);
        else if (json != NULL)
            st = print_results(json, err);
    }
    if (st == STATUS_OK)
        offload_report_log(model_offload(session.model), log);
    if (st == STATUS_OK)
        st = offload_report_check(model_offload(session.model), err);
    json_decref(results.prefill_report);
    json_decref(results.decode_report);
    free(results.prefill);
    free(results.decode);
    st = cli_session_trace_write(&session, options, log, st, err);
    cli_session_close(&session);
    return st;
}
