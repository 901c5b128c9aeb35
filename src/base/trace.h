/* base/trace.h - what ran when: spans of time on lanes, written as a timeline.
 *
 * While the program runs a span is 40 bytes put into a ring of fixed size: no lock, no allocation,
 * no system call. When the ring is full the oldest spans are dropped, and how many is said. At the
 * end the spans are written in the Trace Event Format ("Trace Event Format", Google, 2016: complete
 * events, "ph":"X"), which Perfetto and chrome://tracing open: a rank is a process, a lane a
 * thread. Spans that overlap, as reads from a disk do, go to as many rows of their lane as it
 * takes, so that no two of a row overlap; computing is shown without the stalls inside it.
 *
 * Threads: one at a time. The engine's thread adds; whoever writes does so after it has ended. */
#ifndef LIGHTER_BASE_TRACE_H
#define LIGHTER_BASE_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct trace;

enum trace_lane {
    TRACE_STEP,    /* the engine's: a forward pass, sampling */
    TRACE_COMPUTE, /* parts of layers, on the compute stream */
    TRACE_STALL,   /* the compute stream, or the host, waits for a unit */
    TRACE_COPY,    /* a unit on the copy stream */
    TRACE_DISK,    /* a unit read from the disk */
    TRACE_LANE_COUNT
};

struct trace_options {
    uint32_t rank;           /* shown as the process; 0 when there is one */
    size_t span_count_max;   /* 0: TRACE_SPANS_DEFAULT */
};
#define TRACE_SPANS_DEFAULT (UINT32_C(1) << 19) /* 20 MiB, of which only what is written is taken */
#define TRACE_NAMES_MAX (UINT32_C(1) << 20)

struct trace_span {
    uint64_t began_ns, ended_ns; /* base/clock */
    uint64_t bytes;              /* 0: not said */
    uint32_t name;               /* of trace_name */
    uint32_t rows;               /* of a step; 0: not said */
    enum trace_lane lane;
    bool is_guess;               /* nobody had asked for it by the time it came */
};

/* The caller owns *trace_out. */
enum status trace_create(const struct trace_options *options, struct trace **trace_out,
                         struct err *err);
void trace_destroy(struct trace *trace);

/* A name that spans can have; the text is copied. Not while something runs: it allocates. */
enum status trace_name(struct trace *trace, const char *text, uint32_t *name_out, struct err *err);
/* NULL is fine: nothing is traced. */
void trace_add(struct trace *trace, const struct trace_span *span);

size_t trace_span_count(const struct trace *trace);      /* that are kept */
uint64_t trace_dropped_count(const struct trace *trace); /* since the start */

/* Whether trace_write to this path has a chance: a file can be made in its folder. */
enum status trace_check_path(const char *path, struct err *err);
/* Writes what is kept, to a file beside `path` that then takes its name, so that no reader ever
 * finds half a trace. */
enum status trace_write(const struct trace *trace, const char *path, struct err *err);

#endif
