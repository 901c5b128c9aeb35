/* model/predict.h - how fast a planned model will run, reckoned from what moves and what computes.
 *
 *     a step of R rows   computing  sum over weights used of  max(bytes / one-row rate,
 *                                                              2 R elements / many-rows rate)
 *                                   + what each product takes beside its bytes
 *                                   + keys and values read / read rate
 *                                   + operators that are no products, and the pass as a whole
 *                        link       bytes that are copied to the device / its rate
 *                                   + other ranks' shards / the rate between devices
 *                                   + the own shards / the rate of copies within the device
 *                                   + onloads that wait for a slot and are waited for
 *                        disk       bytes that are read from files / its rate for pieces here and
 *                                   there, which is another while the processors compute
 *                        takes      the longest of these: all three run beside each other, and what
 *                                   moves is spread over the pass. But where the processors are the
 *                                   device, they copy shards before they go on. And a token's
 *                                   experts are another matter: these
 *                                   are asked for when the router has chosen, and what the cache
 *                                   lacks of them is waited for, so that its time is added
 *
 * A small model, of which that is a poor picture, is tried out where it can be (model/trial.c):
 * then a step takes what it took.
 *
 * Which experts a router favours, it has to have been seen: a model's first run knows nothing of
 * it, and its forecast is a range, from evenly chosen experts to a cache that lacks none.
 *
 * The bound is what no program could beat on this machine: weights and keys read once at the read
 * rate, those weights that the device's budget cannot hold copied at the link's, and those of them
 * that the host's cannot hold either read at the disk's. */
#ifndef LIGHTER_MODEL_PREDICT_H
#define LIGHTER_MODEL_PREDICT_H

#include <jansson.h>

#include "device/measure.h"
#include "model/model.h"

/* What the machine does, in bytes and flops per second; 0: not known. */
struct model_rates {
    double disk_bytes_per_s, link_bytes_per_s;
    double disk_spread_bytes_per_s; /* of the disk, when pieces are read here and there */
    double disk_beside_bytes_per_s; /* the same while the processors compute */
    double read_bytes_per_s;  /* the device's memory */
    double copy_bytes_per_s;  /* from one place of it to another */
    struct device_matmul_rates matmul[DTYPE_COUNT];
    struct device_costs costs;
};

struct model_forecast_step {
    uint32_t row_count;
    double moved_bytes;        /* in a pass */
    struct offload_traffic traffic;
    double compute_s, link_s, disk_s;
    double expert_s;           /* of link_s and disk_s, what experts take that are waited for */
    double move_s;             /* the longer of link_s and disk_s */
    double step_s;
    double step_s_least;       /* the same when no expert is missing; else step_s */
    double bound_s;
    bool is_tried;             /* step_s and step_s_least are what a trial took */
};

struct model_forecast {
    struct model_forecast_step decode;  /* one token of one request */
    struct model_forecast_step prefill; /* a whole chunk of a prompt */
    uint32_t prompt_tokens;
    double prompt_s;                    /* of a prompt of so many tokens */
    double decode_tokens_per_s, decode_bound_tokens_per_s, prefill_tokens_per_s;
    double decode_tokens_per_s_most;    /* more than the former when it is not known what routers
                                           favour */
    const char *lacks;                  /* "disk", "link", "memory": a rate that is needed and not
                                           known, so that no time and no tokens/s mean anything;
                                           NULL: none */
};

/* Of a planned model, loaded or not. context_tokens: that a decoded token sees. */
void model_forecast(const struct model *model, const struct model_rates *rates,
                    uint32_t prompt_tokens, uint32_t context_tokens,
                    struct model_forecast *forecast_out);
/* What a trial has shown, of a step of one row and of the prompt's. */
void model_forecast_tried(struct model_forecast *forecast, double decode_s, double prefill_s);
/* The types of the model's matrices, marked. */
void model_dtypes(const struct model *model, bool used_out[DTYPE_COUNT]);

/* As JSON, which the caller owns, and as lines. */
json_t *model_forecast_json(const struct model_rates *rates,
                            const struct model_forecast *forecast);
void model_forecast_log(const struct model_rates *rates, const struct model_forecast *forecast,
                        const struct log *log);

#endif
