/* device/measure_costs.c - see measure.h: what a pass takes beside the bytes it reads and moves.
 *
 * Of a large model it is little, of a small one nearly all. So nothing here is large: operators of
 * one short row, copies of a few KiB. Each cost is a chain's: as many of one kind as take about the
 * time that is given, and one wait at the end, which is a pass's way of queueing. */
#include <stdlib.h>

#include "base/clock.h"
#include "base/size.h"
#include "device/measure.h"

#define WIDTH 256u
#define ROW_BYTES (WIDTH * sizeof(float))
#define COPY_BYTES (4 * KIB)
#define CHAIN 64 /* links between two waits: as many as a small model's pass has */

struct costs {
    struct device *device;
    struct stream *compute, *copy;
    struct event *copied, *computed;
    char *memory;    /* the device's: weight, x, out, and what is copied to */
    void *host;
    struct op op;
};

static void costs_close(struct costs *costs)
{
    event_destroy(costs->computed);
    event_destroy(costs->copied);
    stream_destroy(costs->copy);
    stream_destroy(costs->compute);
    device_host_free(costs->device, costs->host, COPY_BYTES);
    device_free(costs->device, DEVICE_USE_SCRATCH, costs->memory, 3 * ROW_BYTES + COPY_BYTES);
}

static enum status costs_open(struct costs *costs, struct err *err)
{
    void *memory = NULL;
    enum status st = device_alloc(costs->device, DEVICE_USE_SCRATCH, 3 * ROW_BYTES + COPY_BYTES,
                                  &memory, err);

    costs->memory = memory;
    if (st == STATUS_OK)
        st = device_host_alloc(costs->device, COPY_BYTES, &costs->host, err);
    if (st == STATUS_OK)
        st = stream_create(costs->device, STREAM_COMPUTE, &costs->compute, err);
    if (st == STATUS_OK)
        st = stream_create(costs->device, STREAM_COPY, &costs->copy, err);
    if (st == STATUS_OK)
        st = event_create(costs->device, &costs->copied, err);
    if (st == STATUS_OK)
        st = event_create(costs->device, &costs->computed, err);
    if (st == STATUS_OK)
        st = device_fill(costs->compute, costs->memory, 0, 3 * ROW_BYTES + COPY_BYTES, err);
    if (st == STATUS_OK)
        st = stream_sync(costs->compute, err);
    costs->op = (struct op){ .kind = OP_RMS_NORM, .rms_norm = {
        .weight = (const float *)(const void *)costs->memory,
        .x = (const float *)(const void *)(costs->memory + ROW_BYTES),
        .out = (float *)(void *)(costs->memory + 2 * ROW_BYTES), .row_count = 1, .group_count = 1,
        .width = WIDTH, .out_row_stride = WIDTH, .x_row_stride = WIDTH, .epsilon = 1e-5f,
    } };
    return st;
}

static enum status operators(struct costs *costs, struct err *err)
{
    enum status st = STATUS_OK;

    for (int i = 0; st == STATUS_OK && i < CHAIN; i++)
        st = device_launch(costs->compute, &costs->op, err);
    return st;
}

/* Each copy waits for the operator before it, as for its slot, and the next operator for it. */
static enum status onloads(struct costs *costs, struct err *err)
{
    enum status st = STATUS_OK;

    for (int i = 0; st == STATUS_OK && i < CHAIN; i++) {
        st = stream_wait(costs->copy, costs->computed, err);
        if (st == STATUS_OK)
            st = device_copy_in(costs->copy, costs->memory + 3 * ROW_BYTES, costs->host,
                                COPY_BYTES, err);
        if (st == STATUS_OK)
            st = event_record(costs->copy, costs->copied, err);
        if (st == STATUS_OK)
            st = stream_wait(costs->compute, costs->copied, err);
        if (st == STATUS_OK)
            st = device_launch(costs->compute, &costs->op, err);
        if (st == STATUS_OK)
            st = event_record(costs->compute, costs->computed, err);
    }
    return st;
}

/* Numbers in, an operator, numbers out. */
static enum status pass(struct costs *costs, struct err *err)
{
    enum status st = device_copy_in(costs->compute, costs->memory + ROW_BYTES, costs->host,
                                    ROW_BYTES, err);

    if (st == STATUS_OK)
        st = device_launch(costs->compute, &costs->op, err);
    if (st == STATUS_OK)
        st = device_copy_out(costs->compute, costs->host, costs->memory + 2 * ROW_BYTES, ROW_BYTES,
                             err);
    return st;
}

/* Of one run and its wait, averaged; the first only warms up. */
static enum status time_of(struct costs *costs,
                           enum status (*run)(struct costs *costs, struct err *err),
                           uint64_t time_ns, double *seconds_out, struct err *err)
{
    uint64_t began_ns = 0, now_ns = 0, count = 0;
    enum status st = STATUS_OK;

    for (uint64_t i = 0; st == STATUS_OK && (i < 2 || now_ns - began_ns < time_ns); i++) {
        st = run(costs, err);
        if (st == STATUS_OK)
            st = stream_sync(costs->compute, err);
        now_ns = clock_now_ns();
        if (i == 0)
            began_ns = now_ns;
        else
            count++;
    }
    if (st == STATUS_OK)
        *seconds_out = (double)(now_ns - began_ns) * 1e-9 / (double)count;
    return st;
}

static double without(double seconds, double less)
{
    return seconds > less ? seconds - less : 0;
}

enum status device_measure_costs(struct device *device, uint64_t time_ns,
                                 struct device_costs *costs_out, struct err *err)
{
    const bool copies = !device_info(device)->memory_is_host;
    struct costs costs = { .device = device };
    double chain_s = 0, onloads_s = 0, pass_s = 0;
    enum status st = costs_open(&costs, err);

    if (st == STATUS_OK)
        st = time_of(&costs, operators, time_ns, &chain_s, err);
    if (st == STATUS_OK)
        st = time_of(&costs, pass, time_ns, &pass_s, err);
    if (st == STATUS_OK && copies)
        st = time_of(&costs, onloads, time_ns, &onloads_s, err);
    if (st == STATUS_OK)
        *costs_out = (struct device_costs){
            .op_s = chain_s / CHAIN,
            .pass_s = without(pass_s, chain_s / CHAIN),
            .onload_s = without(onloads_s, chain_s) / CHAIN,
        };
    costs_close(&costs);
    return st;
}
