/* device/measure.h - what a device does in a short while, for those who plan.
 *
 * Each function takes memory from the device for a moment, works for about time_ns for each rate,
 * and gives all of it back. Figures are of now: on a shared machine they drift.
 *
 * Threads: as device.h's. */
#ifndef LIGHTER_DEVICE_MEASURE_H
#define LIGHTER_DEVICE_MEASURE_H

#include "device/device.h"

struct device_matmul_rates {
    double one_row_bytes_per_s;    /* weights read by a product with one row */
    double product_s, product_bytes; /* what each such product takes beside; its weights, or more */
    double tiny_s, tiny_bytes;     /* all that a product of so few takes */
    double many_rows_flops_per_s;  /* multiply-adds count twice; DEVICE_MEASURE_ROWS rows */
};

#define DEVICE_MEASURE_ROWS 64
#define DEVICE_MEASURE_NS UINT64_C(200000000) /* a good time_ns */

/* Of OP_MATMUL with weights of this type. memory_bytes_max: of the device's memory, to be used at
 * most; with little of it, caches flatter the figures, as they do a model that is no larger. */
enum status device_measure_matmul(struct device *device, enum dtype dtype,
                                  uint64_t memory_bytes_max, uint64_t time_ns,
                                  struct device_matmul_rates *rates_out, struct err *err);
/* What a pass takes beside its bytes, of operators' kinds alike. */
struct device_costs {
    double op_s;                   /* each operator that has hardly anything to do */
    double onload_s;               /* each copy that waits for its slot and is waited for */
    double pass_s;                 /* bringing a few numbers, taking some back, and waiting */
};
enum status device_measure_costs(struct device *device, uint64_t time_ns,
                                 struct device_costs *costs_out, struct err *err);
/* Keeps the device busy with products of one row, as decoding does, on a thread of its own from
 * begin to end. end: NULL is fine. */
struct device_busy;
enum status device_busy_begin(struct device *device, enum dtype dtype, uint64_t memory_bytes_max,
                              struct device_busy **busy_out, struct err *err);
void device_busy_end(struct device_busy *busy);
/* Of copies from host memory. 0: the device's memory is the host's. */
enum status device_measure_link(struct device *device, uint64_t memory_bytes_max,
                                uint64_t time_ns, double *bytes_per_s_out, struct err *err);
/* Of copies of piece_bytes from one place of the device's memory to another, as from a rank's own
 * shards into slots: read all over what memory_bytes_max allows, written to two places in turn. */
enum status device_measure_copy(struct device *device, uint64_t piece_bytes,
                                uint64_t memory_bytes_max, uint64_t time_ns,
                                double *bytes_per_s_out, struct err *err);

#endif
