/* offload/report/timeline.c - what moved and what waited, as spans of a trace (base/trace.h).
 *
 * Copies and stalls have their times from the counters (counters.c), so that the spans add up to
 * what the report says. The parts of layers are marked by two events each on the compute stream,
 * which are there only when something is traced. They are read when the pass has ended. */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "offload/internal.h"

struct part {
    struct event *began, *ended; /* on the compute stream */
    uint32_t name;
    bool has_begun, has_ended;   /* in this pass */
};

struct offload__timeline {
    struct trace *trace;         /* borrowed */
    struct part *parts;          /* [layer_count * OFFLOAD_PART_COUNT], as unit_of */
    uint32_t *unit_names;        /* [unit_count] */
};

static size_t part_count(const struct offload *offload)
{
    return (size_t)offload->layer_count * OFFLOAD_PART_COUNT;
}

static enum status parts_create(struct offload *offload, struct err *err)
{
    struct offload__timeline *timeline = offload->timeline;
    enum status st = STATUS_OK;

    for (size_t i = 0; i < part_count(offload) && st == STATUS_OK; i++) {
        struct part *part = &timeline->parts[i];
        char name[48];

        (void)snprintf(name, sizeof(name), "layers.%zu.%s", i / OFFLOAD_PART_COUNT,
                       offload_part_name((enum offload_part)(i % OFFLOAD_PART_COUNT)));
        st = trace_name(timeline->trace, name, &part->name, err);
        if (st == STATUS_OK)
            st = event_create(offload->device, &part->began, err);
        if (st == STATUS_OK)
            st = event_create(offload->device, &part->ended, err);
    }
    return st;
}

enum status offload__timeline_create(struct offload *offload, struct err *err)
{
    struct offload__timeline *timeline;
    enum status st;

    if (offload->options.trace == NULL)
        return STATUS_OK;
    timeline = offload->timeline = calloc(1, sizeof(*timeline));
    if (timeline != NULL) {
        timeline->trace = offload->options.trace;
        timeline->parts = calloc(part_count(offload) + 1, sizeof(*timeline->parts));
        timeline->unit_names = calloc(offload->unit_count + 1, sizeof(*timeline->unit_names));
    }
    if (timeline == NULL || timeline->parts == NULL || timeline->unit_names == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to trace %zu units",
                       offload->unit_count);
    st = parts_create(offload, err);
    for (size_t i = 0; i < offload->unit_count && st == STATUS_OK; i++)
        st = trace_name(timeline->trace, offload->units[i].name, &timeline->unit_names[i], err);
    return st;
}

void offload__timeline_destroy(struct offload *offload)
{
    struct offload__timeline *timeline = offload->timeline;

    if (timeline == NULL)
        return;
    for (size_t i = 0; timeline->parts != NULL && i < part_count(offload); i++) {
        event_destroy(timeline->parts[i].ended);
        event_destroy(timeline->parts[i].began);
    }
    free(timeline->unit_names);
    free(timeline->parts);
    free(timeline);
    offload->timeline = NULL;
}

enum status offload__timeline_mark(struct offload *offload, size_t place, bool begins,
                                   struct err *err)
{
    struct part *part;
    enum status st;

    if (offload->timeline == NULL)
        return STATUS_OK;
    assert(place < part_count(offload));
    part = &offload->timeline->parts[place];
    st = event_record(offload->compute, begins ? part->began : part->ended, err);
    if (st == STATUS_OK && begins)
        part->has_begun = true;
    else if (st == STATUS_OK)
        part->has_ended = true;
    return st;
}

void offload__timeline_pass_done(struct offload *offload)
{
    struct offload__timeline *timeline = offload->timeline;

    for (size_t i = 0; timeline != NULL && i < part_count(offload); i++) {
        const struct part *part = &timeline->parts[i];
        struct trace_span span = { .lane = TRACE_COMPUTE, .name = part->name };

        if (!part->has_begun || !part->has_ended)
            continue;
        span.began_ns = event_time_ns(part->began);
        span.ended_ns = event_time_ns(part->ended);
        if (span.ended_ns > span.began_ns)
            trace_add(timeline->trace, &span);
    }
    offload__timeline_pass_abort(offload);
}

void offload__timeline_pass_abort(struct offload *offload)
{
    struct offload__timeline *timeline = offload->timeline;

    for (size_t i = 0; timeline != NULL && i < part_count(offload); i++)
        timeline->parts[i].has_begun = timeline->parts[i].has_ended = false;
}

static void add(const struct offload *offload, size_t unit, enum trace_lane lane,
                uint64_t began_ns, uint64_t ended_ns, bool is_guess)
{
    struct trace_span span = {
        .lane = lane,
        .name = offload->timeline->unit_names[unit],
        .began_ns = began_ns,
        .ended_ns = ended_ns > began_ns ? ended_ns : began_ns,
        .bytes = offload->units[unit].size_bytes,
        .is_guess = is_guess,
    };

    trace_add(offload->timeline->trace, &span);
}

void offload__timeline_fetch(struct offload *offload, const struct offload__fetch *fetch)
{
    const struct offload__fetch_times *times = &fetch->times;

    if (offload->timeline == NULL)
        return;
    if (times->read_ended_ns != 0)
        add(offload, fetch->unit, TRACE_DISK, times->read_began_ns, times->read_ended_ns,
            fetch->is_guess);
    if (times->copy_ended_ns != 0)
        add(offload, fetch->unit, TRACE_COPY, times->copy_began_ns, times->copy_ended_ns,
            fetch->is_guess);
}

void offload__timeline_stall(struct offload *offload, size_t unit, uint64_t began_ns,
                             uint64_t ended_ns)
{
    if (offload->timeline != NULL)
        add(offload, unit, TRACE_STALL, began_ns, ended_ns, false);
}
