/* base/trace.c - a ring of spans, and the file they become.
 *
 *     {"displayTimeUnit": "ms", "otherData": {...}, "traceEvents": [
 *       {"ph": "M", "name": "process_name", "pid": RANK, ...},          who is who
 *       {"ph": "X", "name": "layers.3.ffn", "pid": RANK, "tid": ROW, "ts": us, "dur": us, ...},
 *     ...]}
 *
 * Times are microseconds with three digits behind the point, so that the file has every
 * nanosecond; they count from clock_now_ns's own zero, so that files of several processes of one
 * machine fit together. A row's number is 1000 times its lane's, and one for each row of it. */
#include "base/trace.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"

#define ROWS_MAX 256 /* of a lane; more overlapping spans than that are not shown, and counted */

struct trace {
    struct trace_span *spans; /* [span_count_max]; the k-th is at k mod that */
    size_t span_count_max;
    uint64_t added_count;
    uint32_t rank;
    char **names;             /* [name_count] */
    uint32_t name_count, name_capacity;
};

static const struct {
    const char *name, *category;
} lanes[TRACE_LANE_COUNT] = {
    [TRACE_STEP] = { "steps", "step" },     [TRACE_COMPUTE] = { "compute", "compute" },
    [TRACE_STALL] = { "stalls", "stall" },  [TRACE_COPY] = { "copies", "copy" },
    [TRACE_DISK] = { "disk reads", "disk" },
};

enum status trace_create(const struct trace_options *options, struct trace **trace_out,
                         struct err *err)
{
    struct trace *trace = calloc(1, sizeof(*trace));

    if (trace != NULL) {
        trace->span_count_max =
            options->span_count_max > 0 ? options->span_count_max : TRACE_SPANS_DEFAULT;
        trace->rank = options->rank;
        trace->spans = calloc(trace->span_count_max, sizeof(*trace->spans));
    }
    if (trace == NULL || trace->spans == NULL) {
        trace_destroy(trace);
        return err_set(err, STATUS_NO_MEMORY, "no memory for a trace");
    }
    *trace_out = trace;
    return STATUS_OK;
}

void trace_destroy(struct trace *trace)
{
    if (trace == NULL)
        return;
    for (uint32_t i = 0; i < trace->name_count; i++)
        free(trace->names[i]);
    free(trace->names);
    free(trace->spans);
    free(trace);
}

enum status trace_name(struct trace *trace, const char *text, uint32_t *name_out, struct err *err)
{
    char *copy;

    if (trace->name_count == trace->name_capacity) {
        const uint32_t capacity = trace->name_capacity == 0 ? 64 : trace->name_capacity * 2;
        char **names = capacity > TRACE_NAMES_MAX
                           ? NULL : realloc(trace->names, capacity * sizeof(*names));

        if (names == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for the names of a trace");
        trace->names = names;
        trace->name_capacity = capacity;
    }
    copy = strdup(text);
    if (copy == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the names of a trace");
    trace->names[trace->name_count] = copy;
    *name_out = trace->name_count++;
    return STATUS_OK;
}

void trace_add(struct trace *trace, const struct trace_span *span)
{
    if (trace == NULL)
        return;
    assert(span->name < trace->name_count && (unsigned)span->lane < TRACE_LANE_COUNT);
    assert(span->ended_ns >= span->began_ns);
    trace->spans[trace->added_count++ % trace->span_count_max] = *span;
}

size_t trace_span_count(const struct trace *trace)
{
    return trace->added_count < trace->span_count_max ? (size_t)trace->added_count
                                                      : trace->span_count_max;
}

uint64_t trace_dropped_count(const struct trace *trace)
{
    return trace->added_count - trace_span_count(trace);
}

/* -- writing ----------------------------------------------------------------------------------- */

struct writer {
    FILE *file;
    const struct trace *trace;
    const struct trace_span **sorted; /* by lane, then by time */
    size_t count;
    uint64_t hidden_count;            /* for want of rows */
    size_t stall_first, stall_end;    /* of `sorted`: the stalls, of which none overlap much */
    bool any;                         /* an event has been written */
};

static int by_lane_and_time(const void *a, const void *b)
{
    const struct trace_span *left = *(const struct trace_span *const *)a;
    const struct trace_span *right = *(const struct trace_span *const *)b;

    if (left->lane != right->lane)
        return left->lane < right->lane ? -1 : 1;
    if (left->began_ns != right->began_ns)
        return left->began_ns < right->began_ns ? -1 : 1;
    if (left->ended_ns != right->ended_ns)
        return left->ended_ns < right->ended_ns ? -1 : 1;
    return 0;
}

static void string_write(FILE *file, const char *text)
{
    (void)fputc('"', file);
    for (; *text != '\0'; text++) {
        if (*text == '"' || *text == '\\')
            (void)fputc('\\', file);
        if ((unsigned char)*text >= 0x20)
            (void)fputc(*text, file);
    }
    (void)fputc('"', file);
}

static void comma_write(struct writer *writer)
{
    (void)fputs(writer->any ? ",\n" : "\n", writer->file);
    writer->any = true;
}

static unsigned row_number(enum trace_lane lane, unsigned row)
{
    return ((unsigned)lane + 1) * 1000 + row;
}

static void event_write(struct writer *writer, const struct trace_span *span, unsigned row,
                        uint64_t began_ns, uint64_t ended_ns)
{
    FILE *file = writer->file;
    const char *comma = "";

    comma_write(writer);
    (void)fprintf(file,
                  "{\"ph\":\"X\",\"pid\":%" PRIu32 ",\"tid\":%u,\"ts\":%" PRIu64 ".%03u,"
                  "\"dur\":%" PRIu64 ".%03u,\"cat\":\"%s\",\"name\":",
                  writer->trace->rank, row_number(span->lane, row), began_ns / 1000,
                  (unsigned)(began_ns % 1000), (ended_ns - began_ns) / 1000,
                  (unsigned)((ended_ns - began_ns) % 1000), lanes[span->lane].category);
    string_write(file, writer->trace->names[span->name]);
    (void)fputs(",\"args\":{", file);
    if (span->bytes > 0) {
        (void)fprintf(file, "\"bytes\":%" PRIu64, span->bytes);
        comma = ",";
    }
    if (span->rows > 0) {
        (void)fprintf(file, "%s\"rows\":%" PRIu32, comma, span->rows);
        comma = ",";
    }
    if (span->is_guess)
        (void)fprintf(file, "%s\"guess\":true", comma);
    (void)fputs("}}", file);
}

static void row_name_write(struct writer *writer, enum trace_lane lane, unsigned row)
{
    const unsigned number = row_number(lane, row);

    comma_write(writer);
    (void)fprintf(writer->file,
                  "{\"ph\":\"M\",\"pid\":%" PRIu32 ",\"tid\":%u,\"name\":\"thread_name\","
                  "\"args\":{\"name\":\"%s", writer->trace->rank, number, lanes[lane].name);
    if (row > 0)
        (void)fprintf(writer->file, " %u", row + 1);
    (void)fprintf(writer->file,
                  "\"}},\n{\"ph\":\"M\",\"pid\":%" PRIu32 ",\"tid\":%u,"
                  "\"name\":\"thread_sort_index\",\"args\":{\"sort_index\":%u}}",
                  writer->trace->rank, number, number);
}

/* A span of computing, without the stalls inside it. *stall_at: those before it end before it. */
static void computing_write(struct writer *writer, const struct trace_span *span, unsigned row,
                            size_t *stall_at)
{
    uint64_t from_ns = span->began_ns;

    while (*stall_at < writer->stall_end &&
           writer->sorted[*stall_at]->ended_ns <= span->began_ns)
        (*stall_at)++;
    for (size_t i = *stall_at; i < writer->stall_end; i++) {
        const struct trace_span *stall = writer->sorted[i];

        if (stall->began_ns >= span->ended_ns)
            break;
        if (stall->began_ns > from_ns)
            event_write(writer, span, row, from_ns, stall->began_ns);
        from_ns = stall->ended_ns > from_ns ? stall->ended_ns : from_ns;
    }
    if (from_ns < span->ended_ns)
        event_write(writer, span, row, from_ns, span->ended_ns);
}

/* Each span goes to the first row that is free when it begins. */
static void lane_write(struct writer *writer, enum trace_lane lane, size_t first, size_t end)
{
    uint64_t free_ns[ROWS_MAX] = { 0 };
    unsigned row_count = 0;
    size_t stall_at = writer->stall_first;

    for (size_t i = first; i < end; i++) {
        const struct trace_span *span = writer->sorted[i];
        unsigned row = 0;

        while (row < row_count && free_ns[row] > span->began_ns)
            row++;
        if (row == ROWS_MAX) {
            writer->hidden_count++;
            continue;
        }
        if (row == row_count)
            row_name_write(writer, lane, row_count++);
        free_ns[row] = span->ended_ns;
        if (lane == TRACE_COMPUTE)
            computing_write(writer, span, row, &stall_at);
        else
            event_write(writer, span, row, span->began_ns, span->ended_ns);
    }
}

static void all_write(struct writer *writer)
{
    const struct trace *trace = writer->trace;
    size_t firsts[TRACE_LANE_COUNT + 1] = { 0 };

    for (size_t i = 0; i < writer->count; i++)
        firsts[writer->sorted[i]->lane + 1]++;
    for (unsigned lane = 0; lane < TRACE_LANE_COUNT; lane++)
        firsts[lane + 1] += firsts[lane];
    writer->stall_first = firsts[TRACE_STALL];
    writer->stall_end = firsts[TRACE_STALL + 1];

    (void)fputs("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[", writer->file);
    comma_write(writer);
    (void)fprintf(writer->file,
                  "{\"ph\":\"M\",\"pid\":%" PRIu32 ",\"tid\":0,\"name\":\"process_name\","
                  "\"args\":{\"name\":\"lighter rank %" PRIu32 "\"}},\n"
                  "{\"ph\":\"M\",\"pid\":%" PRIu32 ",\"tid\":0,\"name\":\"process_sort_index\","
                  "\"args\":{\"sort_index\":%" PRIu32 "}}",
                  trace->rank, trace->rank, trace->rank, trace->rank);
    for (unsigned lane = 0; lane < TRACE_LANE_COUNT; lane++)
        lane_write(writer, (enum trace_lane)lane, firsts[lane], firsts[lane + 1]);
    (void)fprintf(writer->file,
                  "\n],\"otherData\":{\"spans\":%zu,\"dropped_spans\":%" PRIu64 "}}\n",
                  writer->count, trace_dropped_count(trace) + writer->hidden_count);
}

/* The name of a file beside `path` while it is not whole; NULL: no memory. */
static char *part_name(const char *path)
{
    const size_t size = strlen(path) + 32;
    char *part = malloc(size);

    if (part != NULL)
        (void)snprintf(part, size, "%s.part-%ld", path, (long)getpid());
    return part;
}

static enum status file_write(struct writer *writer, const char *part, const char *path,
                              struct err *err)
{
    enum status st = STATUS_OK;
    bool failed;

    writer->file = fopen(part, "w");
    if (writer->file == NULL)
        return err_set(err, STATUS_IO, "%s: %s", part, strerror(errno));
    all_write(writer);
    failed = ferror(writer->file) != 0;
    failed = fclose(writer->file) != 0 || failed;
    if (failed || rename(part, path) != 0)
        st = err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
    if (st != STATUS_OK)
        (void)unlink(part);
    return st;
}

enum status trace_check_path(const char *path, struct err *err)
{
    char *part = part_name(path);
    FILE *file;
    enum status st = STATUS_OK;

    if (file_is_directory(path)) {
        free(part);
        return err_set(err, STATUS_BAD_INPUT, "%s is a folder; a trace is a file", path);
    }
    if (part == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for its name", path);
    file = fopen(part, "w");
    if (file == NULL)
        st = err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
    else
        (void)fclose(file);
    (void)unlink(part);
    free(part);
    return st;
}

enum status trace_write(const struct trace *trace, const char *path, struct err *err)
{
    struct writer writer = { .trace = trace, .count = trace_span_count(trace) };
    char *part = part_name(path);
    enum status st;

    writer.sorted = malloc((writer.count + 1) * sizeof(void *));
    if (part == NULL || writer.sorted == NULL) {
        st = err_set(err, STATUS_NO_MEMORY, "%s: no memory to write %zu spans", path, writer.count);
    } else {
        for (size_t i = 0; i < writer.count; i++)
            writer.sorted[i] = &trace->spans[i];
        qsort(writer.sorted, writer.count, sizeof(void *), by_lane_and_time);
        st = file_write(&writer, part, path, err);
    }
    free(writer.sorted);
    free(part);
    return st;
}
