/* device/selftest_internal.h - what the checks of selftest.c and selftest_ops.c share; only for
 * these two.
 *
 * A bed is a device with memory that is freed by itself and random numbers that are the same on
 * every device. Its first failure stays, and what follows does nothing, so that a check reads as if
 * nothing could fail. */
#ifndef LIGHTER_DEVICE_SELFTEST_INTERNAL_H
#define LIGHTER_DEVICE_SELFTEST_INTERNAL_H

#include "device/device.h"

#define BED_BUFFERS_MAX 24
#define SELFTEST_SHAPE 8
#define SELFTEST_OUT_MAX (1u << 16) /* elements that a check compares */

struct bed {
    struct device *device;
    struct stream *stream;
    struct {
        void *memory;
        uint64_t size_bytes;
    } buffers[BED_BUFFERS_MAX];
    uint32_t buffer_count;
    uint64_t random;
    struct err err;              /* status STATUS_OK: nothing has failed */
};

/* Device memory with these bytes, or zeros when bytes is NULL; NULL after a failure. */
void *device__bed_put(struct bed *bed, const void *bytes, uint64_t size_bytes);
void device__bed_launch(struct bed *bed, const struct op *op);
/* Waits. */
void device__bed_get(struct bed *bed, void *bytes, const void *memory, uint64_t size_bytes);
/* Random numbers in [-1, 1) in device memory, as `dtype`, count of them. */
void *device__bed_random(struct bed *bed, enum dtype dtype, uint64_t count);
/* [0, limit) */
uint32_t device__bed_number(struct bed *bed, uint32_t limit);

/* One check of an op. run fills out, at most SELFTEST_OUT_MAX elements, and returns how many;
 * `rows` and `first` cut it: only rows [first, first + rows) of shape[0] are computed. */
struct selftest_op {
    const char *name;
    uint64_t (*run)(struct bed *bed, const struct selftest_op *op, uint32_t first, uint32_t rows,
                    float *out);
    enum dtype dtype;            /* of its weights; DTYPE_F32 where it has none */
    uint32_t shape[SELFTEST_SHAPE];
    bool cut;                    /* rows can be computed one by one */
};
extern const struct selftest_op device__selftest_ops[];
extern const size_t device__selftest_op_count;

#endif
