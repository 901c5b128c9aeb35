/* offload/testing_faults.h - makes the n-th call fail, for tests of offload/.
 *
 * The functions below stand between offload/ and what it calls (the Makefile's --wrap), so a test
 * that includes this must be linked so. */
#ifndef LIGHTER_OFFLOAD_TESTING_FAULTS_H
#define LIGHTER_OFFLOAD_TESTING_FAULTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/checkpoint.h"
#include "device/device.h"

/* Calls until one fails; 0: none does. Reads of the checkpoint, which may be made by any thread,
 * are counted apart; of all other calls, only those of the test's thread are counted, because those
 * of other threads come in another order each time. */
enum fault_kind { FAULT_CALLS, FAULT_READS, FAULT_KIND_COUNT };

static _Thread_local uint64_t calls_countdown;
static _Atomic uint64_t reads_countdown;

static void fault_arm(enum fault_kind kind, uint64_t n)
{
    calls_countdown = kind == FAULT_CALLS ? n : 0;
    atomic_store(&reads_countdown, kind == FAULT_READS ? n : 0);
}

/* True when the n-th call has not come. */
static bool fault_disarm(void)
{
    const bool waiting = calls_countdown > 0 || atomic_load(&reads_countdown) > 0;

    fault_arm(FAULT_CALLS, 0);
    return waiting;
}

static bool fault_now(void)
{
    return calls_countdown > 0 && --calls_countdown == 0;
}

static bool fault_read_now(void)
{
    return atomic_load(&reads_countdown) > 0 && atomic_fetch_sub(&reads_countdown, 1) == 1;
}

#define FAULTY(result, name, params, args, on_fault)                                              \
    FAULTY_WHEN(fault_now, result, name, params, args, on_fault)
#define FAULTY_WHEN(now, result, name, params, args, on_fault)                                    \
    result __real_##name params;                                                                  \
    result __wrap_##name params;                                                                  \
    result __wrap_##name params                                                                   \
    {                                                                                             \
        return now() ? (on_fault) : __real_##name args;                                     \
    }
#define INJECTED(st) err_set(err, st, "a fault put in by a test")

FAULTY(void *, calloc, (size_t count, size_t size), (count, size), NULL)
FAULTY(void *, malloc, (size_t size), (size), NULL)
FAULTY(void *, realloc, (void *memory, size_t size), (memory, size), NULL)
FAULTY(char *, strdup, (const char *text), (text), NULL)
FAULTY(enum status, device_alloc,
       (struct device *device, enum device_use use, uint64_t size_bytes, void **memory_out,
        struct err *err),
       (device, use, size_bytes, memory_out, err), INJECTED(STATUS_NO_MEMORY))
FAULTY(enum status, device_host_alloc,
       (struct device *device, uint64_t size_bytes, void **memory_out, struct err *err),
       (device, size_bytes, memory_out, err), INJECTED(STATUS_NO_MEMORY))
FAULTY(enum status, stream_create,
       (struct device *device, enum stream_kind kind, struct stream **stream_out, struct err *err),
       (device, kind, stream_out, err), INJECTED(STATUS_DEVICE))
FAULTY(enum status, event_create,
       (struct device *device, struct event **event_out, struct err *err),
       (device, event_out, err), INJECTED(STATUS_DEVICE))
FAULTY(enum status, event_record, (struct stream *stream, struct event *event, struct err *err),
       (stream, event, err), INJECTED(STATUS_DEVICE))
FAULTY(enum status, stream_wait, (struct stream *stream, struct event *event, struct err *err),
       (stream, event, err), INJECTED(STATUS_DEVICE))
FAULTY(enum status, device_copy_in,
       (struct stream *stream, void *dst, const void *src, uint64_t size_bytes, struct err *err),
       (stream, dst, src, size_bytes, err), INJECTED(STATUS_DEVICE))
FAULTY(enum status, device_fill,
       (struct stream *stream, void *dst, uint8_t value, uint64_t size_bytes, struct err *err),
       (stream, dst, value, size_bytes, err), INJECTED(STATUS_DEVICE))
FAULTY_WHEN(fault_read_now, enum status, ckpt_read,
       (const struct ckpt *ckpt, const struct ckpt_tensor *tensor, uint64_t offset_bytes, void *dst,
        uint64_t size_bytes, struct err *err),
       (ckpt, tensor, offset_bytes, dst, size_bytes, err), INJECTED(STATUS_IO))
FAULTY_WHEN(fault_read_now, enum status, ckpt_read_file,
       (const struct ckpt *ckpt, uint32_t file_index, uint64_t offset_bytes, void *dst,
        uint64_t size_bytes, struct err *err),
       (ckpt, file_index, offset_bytes, dst, size_bytes, err), INJECTED(STATUS_IO))
/* By a loader's threads. */
FAULTY_WHEN(fault_read_now, enum status, ckpt__read_much,
       (const struct ckpt *ckpt, const struct ckpt_tensor *tensor, uint64_t offset_bytes, void *dst,
        uint64_t size_bytes, uint8_t *buffer, struct err *err),
       (ckpt, tensor, offset_bytes, dst, size_bytes, buffer, err), INJECTED(STATUS_IO))

#endif
