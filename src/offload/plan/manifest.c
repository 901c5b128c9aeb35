/* offload/plan/manifest.c - every unit, its home and its bytes.
 *
 * A row is what lies outside the layers, or what of one part of one layer shares a home: its unit,
 * or units, when it has moving parameters, and what stays. As JSON each row is complete, with the
 * names of its parameters; as text, equal rows share a line:
 * "layers 3, 7, 11: ffn at home on the host, 3 x 12 MiB".
 *
 * May be asked for by any thread: what can change, the units' homes, is read under the lock. */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/size.h"
#include "offload/internal.h"

#define LINE_BYTES_MAX 1000   /* a log line is cut at 1 KiB */
#define LAYERS_BYTES_MAX 800  /* of that, the list of layers */

struct row {
    int32_t layer;            /* OFFLOAD_NO_LAYER: outside */
    enum offload_part part;
    size_t unit;              /* OFFLOAD_NO_UNIT: stays */
    bool is_rest;             /* stays, while a unit of the same part moves */
    bool is_experts;          /* each a unit of its own */
    enum offload_home home;
    uint64_t bytes;
    size_t param_count;       /* 0: no such row */
    const struct offload__param *last_param; /* that was counted */
    bool logged;
};

/* What stays; its units, by home; its experts, by home. */
#define ROWS_PER_PART (1 + 2 * (size_t)OFFLOAD_HOME_COUNT)

/* Rows of one offload. */
struct rows {
    struct row *rows;
    size_t count;
    enum offload_home *homes; /* [unit_count], of one moment */
};

static size_t place_of(const struct rows *rows, const struct offload__param *param, size_t unit)
{
    const size_t first =
        1 + ((size_t)param->layer * OFFLOAD_PART_COUNT + param->part) * ROWS_PER_PART;

    if (param->layer == OFFLOAD_NO_LAYER)
        return 0;
    if (unit == OFFLOAD_NO_UNIT)
        return first;
    return first + 1 + (param->is_expert ? OFFLOAD_HOME_COUNT : 0) + rows->homes[unit];
}

/* The lock belongs to a const offload in every report; taking it changes nothing that they tell. */
static pthread_mutex_t *lock_of(const struct offload *offload)
{
    return (pthread_mutex_t *)&offload->lock;
}

/* Adds so many of the parameter's bytes to the row of what stays, or of what the unit is in; a row
 * counts a parameter once. */
static void row_add(struct rows *rows, const struct offload__param *param, size_t unit,
                    uint64_t bytes)
{
    struct row *row = &rows->rows[place_of(rows, param, unit)];

    row->layer = param->layer;
    row->part = param->part;
    row->home = unit == OFFLOAD_NO_UNIT ? OFFLOAD_HOME_DEVICE : rows->homes[unit];
    row->is_experts = param->is_expert;
    row->unit = unit;
    row->bytes += bytes;
    if (row->param_count == 0 || row->last_param != param)
        row->param_count++;
    row->last_param = param;
}

/* Adds the parameter to the row of what stays, of what moves, or, cut in pieces, to several. */
static void row_add_param(const struct offload *offload, struct rows *rows, size_t index)
{
    const struct offload__param *param = &offload->params[index];

    if (index == offload->lookup_param) {
        row_add(rows, param, OFFLOAD_NO_UNIT, offload__lookup_bytes(offload, param));
        return;
    }
    if (param->segment_count == 0 || param->unit != OFFLOAD_NO_UNIT) {
        row_add(rows, param, param->unit, size_align_up(param->size_bytes, DEVICE_ALIGNMENT));
        return;
    }
    for (size_t k = 0; k < param->segment_count; k++) {
        const struct offload__segment *segment = &offload->segments[param->segment_first + k];

        row_add(rows, param, segment->unit, segment->size_bytes);
    }
}

static void rows_destroy(struct rows *rows)
{
    free(rows->homes);
    free(rows->rows);
}

static enum status rows_create(const struct offload *offload, struct rows *rows_out,
                               struct err *err)
{
    const size_t count = 1 + (size_t)offload->layer_count * OFFLOAD_PART_COUNT * ROWS_PER_PART;
    struct rows rows = { calloc(count, sizeof(*rows.rows)), count,
                         calloc(offload->unit_count + 1, sizeof(*rows.homes)) };

    if (rows.rows == NULL || rows.homes == NULL) {
        rows_destroy(&rows);
        return err_set(err, STATUS_NO_MEMORY, "no memory for a manifest of %zu rows", count);
    }
    (void)pthread_mutex_lock(lock_of(offload));
    for (size_t i = 0; i < offload->unit_count; i++)
        rows.homes[i] = offload->published_homes[i];
    (void)pthread_mutex_unlock(lock_of(offload));
    for (size_t i = 0; i < offload->param_count; i++)
        row_add_param(offload, &rows, i);
    for (size_t i = 1; i + ROWS_PER_PART <= count; i += ROWS_PER_PART) {
        size_t moving_count = 0;

        for (size_t k = 1; k < ROWS_PER_PART; k++)
            moving_count += rows.rows[i + k].param_count;
        rows.rows[i].is_rest = rows.rows[i].param_count > 0 && moving_count > 0;
    }
    *rows_out = rows;
    return STATUS_OK;
}

static bool rows_are_alike(const struct row *a, const struct row *b)
{
    return (a->layer == OFFLOAD_NO_LAYER) == (b->layer == OFFLOAD_NO_LAYER) && a->part == b->part &&
           (a->unit == OFFLOAD_NO_UNIT) == (b->unit == OFFLOAD_NO_UNIT) &&
           a->is_rest == b->is_rest && a->is_experts == b->is_experts && a->home == b->home &&
           a->bytes == b->bytes && b->param_count > 0;
}

/* Appends "3", "3-5" or, past the limit, "..." to a list. */
static enum status layers_append(struct buf *line, int32_t first, int32_t last, bool is_first,
                                 struct err *err)
{
    const char *const comma = is_first ? "" : ", ";

    if (line->size > LAYERS_BYTES_MAX)
        return line->data[line->size - 1] == '.' ? STATUS_OK : buf_printf(line, err, ", ...");
    if (first == last)
        return buf_printf(line, err, "%s%" PRId32, comma, first);
    return buf_printf(line, err, "%s%" PRId32 "%s%" PRId32, comma, first,
                      last == first + 1 ? ", " : "-", last);
}

/* Appends "layer 3" or "layers 0-2, 7" for all rows like rows[start], and marks them as logged. */
static enum status layers_list(const struct rows *rows, size_t start, struct buf *line,
                               size_t *alike_count_out, struct err *err)
{
    const struct row *like = &rows->rows[start];
    int32_t first = like->layer, last = first;
    size_t alike_count = 0;
    bool is_first = true;
    enum status st;

    for (size_t i = start; i < rows->count; i++) {
        if (rows_are_alike(like, &rows->rows[i])) {
            rows->rows[i].logged = true;
            alike_count++;
        }
    }
    st = buf_printf(line, err, alike_count == 1 ? "layer " : "layers ");
    for (size_t i = start + 1; st == STATUS_OK && i < rows->count; i++) {
        if (!rows_are_alike(like, &rows->rows[i]))
            continue;
        if (rows->rows[i].layer != last + 1) {
            st = layers_append(line, first, last, is_first, err);
            is_first = false;
            first = rows->rows[i].layer;
        }
        last = rows->rows[i].layer;
    }
    if (st == STATUS_OK)
        st = layers_append(line, first, last, is_first, err);
    *alike_count_out = alike_count;
    return st;
}

static const char *home_phrase(const struct offload *offload, enum offload_home home)
{
    const struct offload__home_ops *ops = offload__home(home);

    return offload__home_is_read(offload, home) ? ops->phrase_in_place : ops->phrase;
}

/* One line for rows[start] and all rows like it. */
static enum status line_log(const struct offload *offload, const struct rows *rows, size_t start,
                            const struct log *log, struct err *err)
{
    struct row *row = &rows->rows[start];
    size_t alike_count = 1;
    struct buf line;
    char size[24];
    enum status st;

    buf_init(&line, LINE_BYTES_MAX);
    (void)size_format(row->bytes, size, sizeof(size));
    if (row->layer == OFFLOAD_NO_LAYER) {
        row->logged = true;
        st = buf_printf(&line, err, "outside the layers: on the device, %zu parameter%s, %s",
                        row->param_count, row->param_count == 1 ? "" : "s", size);
    } else {
        st = layers_list(rows, start, &line, &alike_count, err);
        if (st == STATUS_OK)
            st = buf_printf(&line, err, ": %s%s %s, ", row->is_rest ? "rest of " : "",
                            row->is_experts ? "experts" : offload_part_name(row->part),
                            home_phrase(offload, row->home));
        if (st == STATUS_OK && alike_count > 1)
            st = buf_printf(&line, err, "%zu x ", alike_count);
        if (st == STATUS_OK)
            st = buf_printf(&line, err, "%s", size);
    }
    if (st == STATUS_OK)
        log_line(log, LOG_INFO, "%s", line.data);
    buf_deinit(&line);
    return st;
}

static void experts_log(const struct offload *offload, const struct log *log)
{
    const struct offload_sizes *sizes = &offload->sizes;
    char slot[24], all[24];

    (void)size_format(sizes->expert_slot_bytes, slot, sizeof(slot));
    (void)size_format(sizes->expert_bytes, all, sizeof(all));
    if (sizes->expert_slot_count == 0)
        log_line(log, LOG_INFO, "experts: %zu units, used in place",
                 offload->unit_count - offload->ring_count);
    else
        log_line(log, LOG_INFO, "experts: %zu units, cached in %" PRIu64 " slots of %s, %s in all",
                 offload->unit_count - offload->ring_count, sizes->expert_slot_count, slot, all);
}

/* "1.2 GiB at home on the host, 3 GiB at home on the disk": what moves, by home. */
static void homes_log(const struct offload *offload, const struct log *log)
{
    struct buf line;
    char size[24];
    bool any = false;

    buf_init(&line, LINE_BYTES_MAX);
    for (unsigned home = 0; home < OFFLOAD_HOME_COUNT; home++) {
        uint64_t bytes = 0;
        size_t count = 0;

        for (size_t i = 0; i < offload->unit_count; i++) {
            if ((unsigned)offload->units[i].home != home)
                continue;
            bytes += offload->units[i].size_bytes;
            count++;
        }
        if (count == 0)
            continue;
        (void)buf_printf(&line, NULL, "%s%s in %zu units %s", any ? ", " : "",
                         size_format(bytes, size, sizeof(size)), count,
                         home_phrase(offload, (enum offload_home)home));
        any = true;
    }
    if (any)
        log_line(log, LOG_INFO, "what moves: %s", line.data);
    buf_deinit(&line);
}

static void summary_log(const struct offload *offload, const struct log *log)
{
    const struct offload_sizes *sizes = &offload->sizes;
    char moving[24], resident[24], slot[24];

    (void)size_format(sizes->moving_bytes, moving, sizeof(moving));
    (void)size_format(sizes->resident_bytes, resident, sizeof(resident));
    (void)size_format(sizes->slot_bytes, slot, sizeof(slot));
    if (offload->unit_count == 0) {
        log_line(log, LOG_INFO, "weights: all on the device, %s; nothing is offloaded", resident);
    } else if (offload->ring_count == 0) {
        log_line(log, LOG_INFO, "weights: %s on the device, %s in experts that move one by one",
                 resident, moving);
    } else if (sizes->slot_count == 0) {
        log_line(log, LOG_INFO,
                 "weights: %s on the device; %zu units, %s, %s, because the device's memory is the "
                 "host's: nothing moves",
                 resident, offload->unit_count, moving,
                 offload__home(offload->units[0].home)->phrase_in_place);
    } else {
        log_line(log, LOG_INFO,
                 "weights: %s stay on the device; %zu units, %s, pass through %" PRIu64
                 " slots of %s, onloads start %" PRId64 " ahead", resident, offload->unit_count,
                 moving, sizes->slot_count, slot, offload->options.prefetch_step);
    }
    if (offload->lookup_param != OFFLOAD_NO_PARAM)
        log_line(log, LOG_INFO, "%s stays on the disk, its rows are looked up there, %s",
                 offload->params[offload->lookup_param].name,
                 size_format(offload->params[offload->lookup_param].size_bytes, moving,
                             sizeof(moving)));
    if (offload_has_experts(offload))
        experts_log(offload, log);
    if (offload->options.automatic)
        homes_log(offload, log);
    if (offload_is_garbage(offload))
        log_line(log, LOG_WARN,
                 "offload mode meta: the units have no contents, every answer will be garbage");
}

enum status offload_manifest_log(const struct offload *offload, const struct log *log,
                                 struct err *err)
{
    struct rows rows;
    enum status st = rows_create(offload, &rows, err);

    if (st != STATUS_OK)
        return st;
    summary_log(offload, log);
    for (size_t i = 0; i < rows.count && st == STATUS_OK; i++) {
        if (rows.rows[i].param_count > 0 && !rows.rows[i].logged)
            st = line_log(offload, &rows, i, log, err);
    }
    rows_destroy(&rows);
    return st;
}

static json_t *row_name(const struct offload *offload, const struct row *row)
{
    if (row->layer == OFFLOAD_NO_LAYER)
        return json_string("outside");
    if (row->is_experts)
        return json_sprintf("layers.%" PRId32 ".experts", row->layer);
    if (row->unit != OFFLOAD_NO_UNIT && !offload->units[row->unit].is_tile)
        return json_string(offload->units[row->unit].name);
    return json_sprintf("layers.%" PRId32 ".%s%s", row->layer, offload_part_name(row->part),
                        row->is_rest ? ".rest" : "");
}

static json_t *row_json(const struct offload *offload, const struct row *row)
{
    const bool outside = row->layer == OFFLOAD_NO_LAYER;

    return json_pack("{s:o, s:s, s:I, s:o, s:o, s:b, s:[]}", "name", row_name(offload, row), "home",
                     offload_home_name(row->home), "bytes", (json_int_t)row->bytes, "layer",
                     outside ? json_null() : json_integer(row->layer), "part",
                     outside ? json_null() : json_string(offload_part_name(row->part)), "in_place",
                     offload__home_is_read(offload, row->home), "params");
}

static bool name_append(const struct rows *rows, const struct offload__param *param, size_t unit,
                        json_t **row_jsons)
{
    return json_array_append_new(
               json_object_get(row_jsons[place_of(rows, param, unit)], "params"),
               json_string(param->name)) == 0;
}

/* Appends the parameter's name to the rows that it is in. */
static bool param_name_append(const struct offload *offload, const struct rows *rows, size_t index,
                              json_t **row_jsons)
{
    const struct offload__param *param = &offload->params[index];
    bool is_in[ROWS_PER_PART] = { false }, ok = true;

    if (index == offload->lookup_param)
        return name_append(rows, param, OFFLOAD_NO_UNIT, row_jsons);
    if (param->segment_count == 0 || param->unit != OFFLOAD_NO_UNIT)
        return name_append(rows, param, param->unit, row_jsons);
    for (size_t k = 0; ok && k < param->segment_count; k++) {
        const size_t unit = offload->segments[param->segment_first + k].unit;
        const size_t place = unit == OFFLOAD_NO_UNIT ? 0 : 1 + (size_t)rows->homes[unit];

        if (!is_in[place])
            ok = name_append(rows, param, unit, row_jsons);
        is_in[place] = true;
    }
    return ok;
}

json_t *offload_manifest_json(const struct offload *offload)
{
    json_t *array = json_array(), **row_jsons = NULL;
    struct rows rows = { 0 };
    bool ok;

    ok = array != NULL && rows_create(offload, &rows, NULL) == STATUS_OK;
    if (ok)
        row_jsons = calloc(rows.count + 1, sizeof(json_t *));
    ok = ok && row_jsons != NULL;
    for (size_t i = 0; ok && i < rows.count; i++) {
        if (rows.rows[i].param_count == 0)
            continue;
        row_jsons[i] = row_json(offload, &rows.rows[i]); /* owned by the array */
        ok = json_array_append_new(array, row_jsons[i]) == 0;
    }
    for (size_t i = 0; ok && i < offload->param_count; i++)
        ok = param_name_append(offload, &rows, i, row_jsons);
    free(row_jsons);
    rows_destroy(&rows);
    if (!ok) {
        json_decref(array);
        return NULL;
    }
    return array;
}
