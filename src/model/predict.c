/* model/predict.c - see predict.h. */
#include "model/predict.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/size.h"
#include "model/internal.h"

/* Of each layer: rotating queries and keys, writing keys and values, attending, the gate. */
#define OPERATORS_PER_LAYER 6
#define OPERATORS_PER_STEP 4 /* rows of a table, angles, wanted rows, their logits */

/* The weights that a step reads, by type, and what it takes beside. */
struct demand {
    double bytes[DTYPE_COUNT], elements[DTYPE_COUNT];
    double beside_s;  /* of all products: each expert's is one by itself */
    double operators; /* that are no products */
};

/* The share of a layer's experts that so many rows are expected to choose, were all alike. */
static double expert_share(const struct model_config *config, uint32_t row_count)
{
    if (config->expert_count == 0)
        return 1;
    return 1 - pow(1 - (double)config->expert_top_k / config->expert_count, row_count);
}

static bool is_of_experts(const struct offload_param_desc *desc)
{
    return strstr(desc->name, ".experts.") != NULL;
}

/* How many are multiplied one by one: each of a stack of experts, and gate and up apart. */
static double matrix_count(const struct offload_param_desc *desc)
{
    if (!is_of_experts(desc))
        return 1;
    return (desc->rank > 2 ? (double)desc->shape[0] : 1) *
           (strstr(desc->name, "w13") != NULL ? 2 : 1);
}

static double over(double amount, double rate)
{
    return rate > 0 ? amount / rate : 0;
}

/* y at x on the line through two points. */
static double between(double x, double x0, double y0, double x1, double y1)
{
    return x1 > x0 ? y0 + (y1 - y0) * (x - x0) / (x1 - x0) : y0;
}

/* What a product of so many bytes takes beside reading them: nothing that depends on their number,
 * where they are many; the fewer they are the more of it is an operator's own. */
static double beside_s(const struct model_rates *rates, enum dtype dtype, double bytes)
{
    const struct device_matmul_rates *matmul = &rates->matmul[dtype];
    const double large = matmul->product_bytes, tiny = matmul->tiny_bytes;
    const double reading_s = over(bytes, matmul->one_row_bytes_per_s);
    double seconds;

    if (bytes >= large)
        return matmul->product_s;
    if (bytes >= tiny)
        seconds = between(bytes, tiny, matmul->tiny_s, large,
                          over(large, matmul->one_row_bytes_per_s) + matmul->product_s);
    else
        seconds = between(bytes, 0, rates->costs.op_s, tiny, matmul->tiny_s);
    return seconds > reading_s ? seconds - reading_s : 0;
}

/* rows of weights that a step reads, and the products of one row: experts count as often as they
 * are chosen. */
static void demand_of(const struct model *model, const struct model_rates *rates,
                      uint32_t row_count, struct demand *demand_out)
{
    const struct offload_param_desc *descs = model__params_descs(model->params);
    const struct model_config *config = &model->config;
    const double share = expert_share(config, row_count);
    const double used = config->expert_count == 0
                            ? 1 : (double)config->expert_top_k / config->expert_count;

    memset(demand_out, 0, sizeof(*demand_out));
    demand_out->operators = OPERATORS_PER_STEP + OPERATORS_PER_LAYER * config->layer_count;
    for (size_t i = 0; i < model__params_count(model->params); i++) {
        const struct offload_param_desc *desc = &descs[i];
        const bool is_expert = is_of_experts(desc);
        uint64_t elements = 0, bytes = 0;

        demand_out->operators += strstr(desc->name, "norm") != NULL;
        if (desc->rank < 2 || desc->by_lookup)
            continue;
        (void)tensor_element_count(desc->rank, desc->shape, &elements);
        (void)dtype_bytes(desc->dtype, elements, &bytes);
        demand_out->bytes[desc->dtype] += (double)bytes * (is_expert ? share : 1);
        demand_out->elements[desc->dtype] += (double)elements * (is_expert ? used : 1);
        demand_out->beside_s += matrix_count(desc) * (is_expert ? share : 1) *
                                beside_s(rates, desc->dtype, (double)bytes / matrix_count(desc));
    }
}

static double sum_bytes(const struct demand *demand)
{
    double bytes = 0;

    for (size_t i = 0; i < DTYPE_COUNT; i++)
        bytes += demand->bytes[i];
    return bytes;
}

static double compute_s(const struct demand *demand, const struct model_rates *rates,
                        uint32_t row_count, double kv_bytes)
{
    double seconds = over(kv_bytes, rates->read_bytes_per_s) + demand->beside_s +
                     demand->operators * rates->costs.op_s + rates->costs.pass_s;

    for (size_t i = 0; i < DTYPE_COUNT; i++) {
        const double reading = over(demand->bytes[i], rates->matmul[i].one_row_bytes_per_s);
        const double multiplying = over(2 * demand->elements[i] * row_count,
                                        rates->matmul[i].many_rows_flops_per_s);

        seconds += reading > multiplying ? reading : multiplying;
    }
    return seconds;
}

static double longer(double a, double b)
{
    return a > b ? a : b;
}

/* The disk's rate while nothing computes. */
static double idle_rate(const struct model_rates *rates)
{
    return rates->disk_spread_bytes_per_s > 0 ? rates->disk_spread_bytes_per_s
                                              : rates->disk_bytes_per_s;
}

/* As long as the processors compute, reading has less of them. */
static double disk_s(const struct model_rates *rates, double bytes, double compute_s)
{
    const double idle = idle_rate(rates), beside = rates->disk_beside_bytes_per_s;
    const double meanwhile_bytes = beside * compute_s;

    if (beside <= 0 || beside >= idle)
        return over(bytes, idle);
    if (bytes <= meanwhile_bytes)
        return bytes / beside;
    return compute_s + over(bytes - meanwhile_bytes, idle);
}

static double copied_bytes(const struct offload_traffic *traffic)
{
    return traffic->link_bytes + traffic->peer_bytes + traffic->own_bytes;
}

/* Of copies between devices: no more than within one, where also nothing but memory is in the way.
 * Where nobody says how fast their link is, it is taken for the host's. */
static double peer_rate(const struct model *model, const struct model_rates *rates)
{
    const struct device_info *info = device_info(model->device);
    const double link = info->peer_bytes_per_s > 0 ? (double)info->peer_bytes_per_s
                                                   : rates->link_bytes_per_s;

    if (info->memory_is_host)
        return rates->copy_bytes_per_s;
    return rates->copy_bytes_per_s > 0 && rates->copy_bytes_per_s < link ? rates->copy_bytes_per_s
                                                                         : link;
}

/* Copies take their turns, whatever they come from. */
static double copying_s(const struct model *model, const struct model_rates *rates,
                        double link_bytes, double peer_bytes, double own_bytes)
{
    return over(link_bytes, rates->link_bytes_per_s) +
           over(peer_bytes, peer_rate(model, rates)) + over(own_bytes, rates->copy_bytes_per_s);
}

/* What comes from each kind of home in a pass of so many rows. */
static void move_forecast(const struct model *model, const struct model_rates *rates,
                          struct model_forecast_step *step)
{
    const struct offload_traffic *traffic = &step->traffic;

    offload_traffic(model->offload, step->row_count, &step->traffic);
    step->disk_s = disk_s(rates, traffic->disk_bytes, step->compute_s);
    step->link_s = traffic->onloads * rates->costs.onload_s +
                   copying_s(model, rates, traffic->link_bytes, traffic->peer_bytes,
                             traffic->own_bytes);
    step->moved_bytes = longer(copied_bytes(traffic), traffic->disk_bytes);
    step->move_s = longer(step->disk_s, step->link_s);
}

/* Tiles come beside computing; a token's experts are waited for. The processors either compute or
 * copy. */
static void step_time(const struct model *model, const struct model_rates *rates,
                      struct model_forecast_step *step)
{
    const struct offload_traffic *traffic = &step->traffic;
    const double expert_disk_s = over(traffic->expert_disk_bytes, idle_rate(rates));
    const double link_s = copying_s(model, rates, traffic->expert_link_bytes,
                                    traffic->expert_peer_bytes, traffic->expert_own_bytes);
    const double ring_disk_s =
        disk_s(rates, traffic->disk_bytes - traffic->expert_disk_bytes, step->compute_s);
    const double ring_s = longer(ring_disk_s, step->link_s - link_s);

    step->step_s = step->step_s_least = longer(step->compute_s, step->move_s);
    if (device_info(model->device)->memory_is_host && copied_bytes(traffic) > 0)
        step->step_s = step->step_s_least = step->compute_s + step->move_s;
    if (step->row_count > 1 || traffic->expert_hit_rate < 0)
        return;
    step->expert_s = longer(expert_disk_s, link_s);
    step->step_s = longer(step->compute_s, ring_s) + step->expert_s;
    step->step_s_least = traffic->expert_tokens_known > 0 ? step->step_s
                                                          : longer(step->compute_s, ring_s);
}

/* Weights beyond the budgets have to come from somewhere, each pass anew; from peers, they come
 * beside what the host sends. The own shards could be read where they are. */
static double bound_s(const struct model *model, const struct model_rates *rates,
                      const struct demand *demand, double kv_bytes,
                      const struct offload_traffic *traffic)
{
    struct device_memory_report memory;
    const double peer_set = (double)device_info(model->device)->peer_bytes_per_s;
    const double bytes = sum_bytes(demand);
    double reading, missing, link_s = 0, disk_s = 0;

    device_memory_report(model->device, &memory);
    reading = over(bytes + kv_bytes, rates->read_bytes_per_s);
    missing = longer(bytes - (double)memory.budget_bytes, 0);
    if (!device_info(model->device)->memory_is_host)
        link_s = over(missing, rates->link_bytes_per_s +
                                   (traffic->peer_bytes > 0 ? peer_set : 0));
    if (traffic->disk_bytes > 0)
        disk_s = over(longer(missing - (double)model->host_room_bytes, 0),
                      rates->disk_bytes_per_s);
    return longer(reading, longer(link_s, disk_s));
}

static void step_forecast(const struct model *model, const struct model_rates *rates,
                          uint32_t row_count, uint32_t context_tokens,
                          struct model_forecast_step *step)
{
    const double kv_bytes = (double)model_kv_bytes(&model->info, context_tokens);
    struct demand demand;

    demand_of(model, rates, row_count, &demand);
    step->row_count = row_count;
    step->compute_s = compute_s(&demand, rates, row_count, kv_bytes);
    move_forecast(model, rates, step);
    step_time(model, rates, step);
    step->bound_s = bound_s(model, rates, &demand, kv_bytes, &step->traffic);
}

/* What the steps need and the rates lack; NULL: nothing. */
static const char *lacking(const struct model *model, const struct model_rates *rates,
                           const struct model_forecast *forecast)
{
    const struct offload_traffic *decode = &forecast->decode.traffic;
    const struct offload_traffic *prefill = &forecast->prefill.traffic;
    const double peer_bytes = decode->peer_bytes + prefill->peer_bytes;
    const double own_bytes = decode->own_bytes + prefill->own_bytes;

    if (rates->read_bytes_per_s <= 0 || (own_bytes > 0 && rates->copy_bytes_per_s <= 0))
        return "memory";
    if (decode->disk_bytes + prefill->disk_bytes > 0 && rates->disk_bytes_per_s <= 0)
        return "disk";
    if ((decode->link_bytes + prefill->link_bytes > 0 && rates->link_bytes_per_s <= 0) ||
        (peer_bytes > 0 && peer_rate(model, rates) <= 0))
        return "link";
    return NULL;
}

/* What follows of the steps. */
static void forecast_rates(struct model_forecast *forecast)
{
    const uint32_t chunk = forecast->prefill.row_count;
    const uint32_t chunk_count = chunk > 0 ? (forecast->prompt_tokens - 1) / chunk + 1 : 0;

    forecast->decode_tokens_per_s = over(1, forecast->decode.step_s);
    forecast->decode_tokens_per_s_most = over(1, forecast->decode.step_s_least);
    forecast->decode_bound_tokens_per_s = over(1, forecast->decode.bound_s);
    forecast->prompt_s = forecast->prefill.step_s * chunk_count;
    forecast->prefill_tokens_per_s = over(forecast->prompt_tokens, forecast->prompt_s);
}

void model_forecast(const struct model *model, const struct model_rates *rates,
                    uint32_t prompt_tokens, uint32_t context_tokens,
                    struct model_forecast *forecast_out)
{
    const uint32_t chunk_max = (uint32_t)model->sizes.row_count;
    const uint32_t chunk = prompt_tokens < chunk_max ? prompt_tokens : chunk_max;

    memset(forecast_out, 0, sizeof(*forecast_out));
    step_forecast(model, rates, 1, context_tokens, &forecast_out->decode);
    forecast_out->prompt_tokens = prompt_tokens;
    if (chunk > 0)
        step_forecast(model, rates, chunk, chunk / 2, &forecast_out->prefill);
    forecast_out->lacks = lacking(model, rates, forecast_out);
    forecast_rates(forecast_out);
}

static void step_tried(struct model_forecast_step *step, double seconds)
{
    step->step_s = step->step_s_least = seconds;
    step->is_tried = true;
}

void model_forecast_tried(struct model_forecast *forecast, double decode_s, double prefill_s)
{
    step_tried(&forecast->decode, decode_s);
    if (prefill_s > 0)
        step_tried(&forecast->prefill, prefill_s);
    forecast_rates(forecast);
}

void model_dtypes(const struct model *model, bool used_out[DTYPE_COUNT])
{
    static const struct model_rates none;
    struct demand demand;

    demand_of(model, &none, 1, &demand);
    for (size_t i = 0; i < DTYPE_COUNT; i++)
        used_out[i] = demand.bytes[i] > 0;
}

static json_t *homes_json(const struct offload_traffic *traffic)
{
    json_t *homes = json_object();

    for (unsigned home = 0; homes != NULL && home < OFFLOAD_HOME_COUNT; home++) {
        if (traffic->home_bytes[home] > 0)
            (void)json_object_set_new(homes, offload_home_name((enum offload_home)home),
                                      json_real(traffic->home_bytes[home]));
    }
    return homes;
}

/* null: not known. */
static json_t *known_json(double number, bool is_known)
{
    return is_known ? json_real(number) : json_null();
}

/* What takes time is known when the rates are. */
static json_t *step_json(const struct model_forecast_step *step, bool is_known)
{
    return json_pack("{s:I, s:f, s:o, s:f, s:f, s:f, s:f, s:f, s:o, s:o, s:o, s:o, s:o, s:o, s:b}",
                     "rows",
                     (json_int_t)step->row_count, "bytes_moved", step->moved_bytes,
                     "bytes_by_home", homes_json(&step->traffic), "link_bytes",
                     step->traffic.link_bytes, "peer_bytes", step->traffic.peer_bytes, "own_bytes",
                     step->traffic.own_bytes, "disk_bytes", step->traffic.disk_bytes, "compute_s",
                     step->compute_s, "link_s", known_json(step->link_s, is_known), "disk_s",
                     known_json(step->disk_s, is_known), "expert_s",
                     known_json(step->expert_s, is_known), "move_s",
                     known_json(step->move_s, is_known), "step_s",
                     known_json(step->step_s, is_known), "bound_s",
                     known_json(step->bound_s, is_known), "is_tried", step->is_tried);
}

static json_t *rate_json(double rate)
{
    return known_json(rate, rate > 0);
}

static json_t *rates_json(const struct model_rates *rates)
{
    json_t *json = json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:{s:f, s:f, s:f}, s:{}}",
                             "disk_bytes_per_s", rate_json(rates->disk_bytes_per_s),
                             "disk_spread_bytes_per_s", rate_json(rates->disk_spread_bytes_per_s),
                             "disk_beside_bytes_per_s", rate_json(rates->disk_beside_bytes_per_s),
                             "link_bytes_per_s",
                             rate_json(rates->link_bytes_per_s), "read_bytes_per_s",
                             rate_json(rates->read_bytes_per_s), "copy_bytes_per_s",
                             rate_json(rates->copy_bytes_per_s), "costs", "op_s",
                             rates->costs.op_s, "onload_s", rates->costs.onload_s, "pass_s",
                             rates->costs.pass_s, "matmul");

    for (size_t i = 0; json != NULL && i < DTYPE_COUNT; i++) {
        if (rates->matmul[i].one_row_bytes_per_s > 0)
            (void)json_object_set_new(
                json_object_get(json, "matmul"), dtype_info((enum dtype)i)->name,
                json_pack("{s:f, s:f, s:f, s:f}", "one_row_bytes_per_s",
                          rates->matmul[i].one_row_bytes_per_s, "product_s",
                          rates->matmul[i].product_s, "tiny_product_s",
                          rates->matmul[i].tiny_s, "many_rows_flops_per_s",
                          rates->matmul[i].many_rows_flops_per_s));
    }
    return json;
}

/* null: there are none, or none moves. */
static json_t *experts_json(const struct offload_traffic *traffic)
{
    if (traffic->expert_hit_rate < 0)
        return json_null();
    return json_pack("{s:f, s:b, s:I}", "hit_rate", traffic->expert_hit_rate, "is_known",
                     traffic->expert_tokens_known > 0, "tokens",
                     (json_int_t)traffic->expert_tokens_known);
}

json_t *model_forecast_json(const struct model_rates *rates, const struct model_forecast *forecast)
{
    const bool is_known = forecast->lacks == NULL;

    return json_pack("{s:o, s:s?, s:o, s:o, s:o, s:I, s:o, s:o, s:o, s:o, s:o}", "rates",
                     rates_json(rates), "lacks", forecast->lacks, "experts",
                     experts_json(&forecast->decode.traffic), "decode",
                     step_json(&forecast->decode, is_known), "prefill",
                     step_json(&forecast->prefill, is_known), "prompt_tokens",
                     (json_int_t)forecast->prompt_tokens, "prompt_s",
                     known_json(forecast->prompt_s, is_known), "decode_tokens_per_s",
                     known_json(forecast->decode_tokens_per_s, is_known),
                     "decode_tokens_per_s_most",
                     known_json(forecast->decode_tokens_per_s_most, is_known),
                     "decode_bound_tokens_per_s",
                     known_json(forecast->decode_bound_tokens_per_s, is_known),
                     "prefill_tokens_per_s",
                     known_json(forecast->prefill_tokens_per_s, is_known));
}

/* Adds "1.2 GiB from host" to the others. */
static void add_source(double bytes, const char *source, char *text, size_t text_size)
{
    const size_t used = strlen(text);
    char size[24];

    if (bytes > 0)
        (void)snprintf(text + used, text_size - used, "%s%s from %s", used == 0 ? " (" : ", ",
                       size_format((uint64_t)bytes, size, sizeof(size)), source);
}

/* " (1.2 GiB from host, 307 MiB from disk)"; "" when nothing moves. */
static void homes_describe(const struct offload_traffic *traffic, char *text, size_t text_size)
{
    size_t used;

    text[0] = '\0';
    for (unsigned home = 0; home < OFFLOAD_HOME_COUNT; home++) {
        if (home != OFFLOAD_HOME_SHARDED)
            add_source(traffic->home_bytes[home], offload_home_name((enum offload_home)home), text,
                       text_size);
    }
    add_source(traffic->own_bytes, "own shards", text, text_size);
    add_source(traffic->peer_bytes, "other ranks' shards", text, text_size);
    used = strlen(text);
    if (used > 0)
        (void)snprintf(text + used, text_size - used, ")");
}

static void experts_describe(const struct offload_traffic *traffic, const struct log *log)
{
    if (traffic->expert_hit_rate < 0)
        return;
    if (traffic->expert_tokens_known > 0)
        log_line(log, LOG_INFO,
                 "experts: of those that a token chooses %.1f %% will be there, if routers go on "
                 "as in the last %u tokens of earlier runs", traffic->expert_hit_rate * 100,
                 (unsigned)traffic->expert_tokens_known);
    else
        log_line(log, LOG_INFO,
                 "experts: what routers favour is not known before the model has run; the forecast "
                 "goes from evenly chosen experts, of which %.1f %% are there, to all being there",
                 traffic->expert_hit_rate * 100);
}

/* "1.2 GB/s", or that it is not known. */
static const char *rate_describe(double rate, char *text, size_t text_size)
{
    if (rate <= 0)
        return "not measured";
    (void)snprintf(text, text_size, "%.3g GB/s", rate * 1e-9);
    return text;
}

void model_forecast_log(const struct model_rates *rates, const struct model_forecast *forecast,
                        const struct log *log)
{
    const struct model_forecast_step *decode = &forecast->decode;
    char moved[24], prompt_moved[24], homes[160], most[32] = "", rate[4][24];

    (void)size_format((uint64_t)decode->moved_bytes, moved, sizeof(moved));
    homes_describe(&decode->traffic, homes, sizeof(homes));
    (void)size_format((uint64_t)forecast->prefill.moved_bytes, prompt_moved, sizeof(prompt_moved));
    log_line(log, LOG_INFO,
             "rates: memory %s, disk %s, link %s%s%s",
             rate_describe(rates->read_bytes_per_s, rate[0], sizeof(rate[0])),
             rate_describe(rates->disk_bytes_per_s, rate[1], sizeof(rate[1])),
             rate_describe(rates->link_bytes_per_s, rate[2], sizeof(rate[2])),
             decode->traffic.own_bytes > 0 ? ", copies within the device " : "",
             decode->traffic.own_bytes > 0
                 ? rate_describe(rates->copy_bytes_per_s, rate[3], sizeof(rate[3]))
                 : "");
    experts_describe(&decode->traffic, log);
    if (forecast->lacks != NULL) {
        log_line(log, LOG_INFO,
                 "no forecast: a token moves %s%s, and the %s's rate could not be measured", moved,
                 homes, forecast->lacks);
        return;
    }
    if (forecast->decode_tokens_per_s_most > forecast->decode_tokens_per_s)
        (void)snprintf(most, sizeof(most), " to %.3g", forecast->decode_tokens_per_s_most);
    log_line(log, LOG_INFO,
             "forecast: a token moves %s%s in %.3g s and computes %.3g s: %.3g%s tokens/s%s; the "
             "bound is %.3g tokens/s", moved, homes, decode->move_s, decode->compute_s,
             forecast->decode_tokens_per_s, most, decode->is_tried ? ", as tried out" : "",
             forecast->decode_bound_tokens_per_s);
    if (forecast->prompt_tokens > 0)
        log_line(log, LOG_INFO,
                 "forecast: a prompt of %u tokens, %u at once, moves %s each time: %.3g s, %.3g "
                 "tokens/s", (unsigned)forecast->prompt_tokens,
                 (unsigned)forecast->prefill.row_count, prompt_moved, forecast->prompt_s,
                 forecast->prefill_tokens_per_s);
}
