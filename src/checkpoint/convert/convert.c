/* checkpoint/convert/convert.c - carries a plan out, piece by piece, into partial files. */
#include "checkpoint/convert/convert.h"

#include <assert.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/size.h"
#include "base/thread_pool.h"
#include "checkpoint/chunk.h"
#include "checkpoint/convert/parts.h"
#include "checkpoint/internal.h"

#define READ_BYTES (256 * KIB)          /* of each thread, for what is read */
#define PIECE_ELEMENTS_MAX (UINT64_C(1) << 20)
#define PIECE_ELEMENTS_MIN (UINT64_C(1) << 12)
#define STEP_PIECES 4                   /* of each thread, between two looks at the clock */

static_assert(PIECE_ELEMENTS_MIN % 256 == 0, "pieces hold whole blocks");

struct piece {
    const struct plan_tensor *tensor;
    const struct plan_segment *segment; /* NULL: the tensor's values are there */
    uint64_t first_unit, unit_count;
};

/* What a thread works in. */
struct scratch {
    uint8_t *read, *result;
    float *values;
};

struct convert {
    const struct ckpt *ckpt;
    const struct convert_options *options;
    struct convert_plan plan;
    struct convert__parts parts;
    uint64_t done_bytes;                /* of the data, up to parts.done */
    uint64_t piece_elements;
    struct scratch *scratches;          /* [summary.thread_count] */
    struct thread_pool *pool;
    struct piece *pieces;               /* of the step under way */
    size_t piece_count;
    pthread_mutex_t lock;               /* guards what follows */
    enum status status;                 /* of the first piece that failed */
    struct err err;
};

/* --- pieces ----------------------------------------------------------------------------------- */

static uint64_t segment_count(const struct convert *convert, uint64_t tensor)
{
    const size_t count = convert->plan.tensors[tensor].segment_count;

    return count > 0 ? count : 1; /* values that are there are one piece */
}

/* The piece at the place, which moves behind it. False: there is none left. */
static bool next_piece(const struct convert *convert, struct convert__place *place,
                       struct piece *piece_out)
{
    const struct convert_plan *const plan = &convert->plan;
    const struct plan_tensor *tensor;
    const struct plan_segment *segment;
    uint64_t units;

    if (place->tensor >= plan->tensor_count)
        return false;
    tensor = &plan->tensors[place->tensor];
    segment = tensor->segment_count > 0
                  ? &plan->segments[tensor->first_segment + place->segment] : NULL;
    *piece_out = (struct piece){ tensor, segment, place->unit, 0 };
    if (segment != NULL) {
        units = convert->piece_elements / segment->unit_elements;
        units = units < segment->unit_count - place->unit ? units
                                                          : segment->unit_count - place->unit;
        assert(units > 0);
        piece_out->unit_count = units;
        place->unit += units;
    }
    if (segment == NULL || place->unit == segment->unit_count) {
        place->unit = 0;
        if (++place->segment == segment_count(convert, place->tensor)) {
            place->segment = 0;
            place->tensor++;
        }
    }
    return true;
}

/* Where the piece lies in its file's data. */
static uint64_t piece_at(const struct piece *piece, uint64_t *size_bytes_out)
{
    const struct plan_segment *const segment = piece->segment;
    uint64_t at;

    if (segment == NULL) {
        *size_bytes_out = piece->tensor->size_bytes;
        return piece->tensor->at_bytes;
    }
    at = segment->dst_offset + piece->first_unit * segment->unit_elements;
    *size_bytes_out = dtype_row_bytes(piece->tensor->dtype,
                                      piece->unit_count * segment->unit_elements);
    return piece->tensor->at_bytes + dtype_row_bytes(piece->tensor->dtype, at);
}

/* The same in the data of all files. */
static uint64_t data_at(const struct convert *convert, const struct piece *piece,
                        uint64_t *size_bytes_out)
{
    return convert->plan.files[piece->tensor->file_index].before_bytes +
           piece_at(piece, size_bytes_out);
}

/* How the piece is read: one view. */
static enum status make_loader(const struct piece *piece, enum dtype dtype,
                               struct loader **loader_out, struct err *err)
{
    const struct plan_segment *const segment = piece->segment;
    const struct ckpt_tensor *const source = segment->source;
    struct loader_part part = {
        .tensor = source->name, .rank = source->rank,
        .src_offset = segment->src_offset + piece->first_unit * segment->src_stride,
        .dims = { { piece->unit_count, segment->src_stride, segment->unit_elements },
                  segment->inner[0], segment->inner[1] },
    };
    enum status st = loader_create(dtype, piece->unit_count * segment->unit_elements, loader_out,
                                   err);

    memcpy(part.shape, source->shape, sizeof(part.shape));
    if (st == STATUS_OK) {
        st = loader_add(*loader_out, &part, err);
        if (st != STATUS_OK)
            loader_destroy(*loader_out);
    }
    return st;
}

static enum status read_piece(const struct convert *convert, const struct piece *piece,
                              enum dtype dtype, uint8_t *buffer, void *dst, struct err *err)
{
    struct loader *loader = NULL;
    struct chunk_walk walk;
    struct chunk chunk;
    enum status st = make_loader(piece, dtype, &loader, err);

    if (st != STATUS_OK)
        return st;
    chunk_walk_init(&walk, loader, convert->ckpt, READ_BYTES);
    while (st == STATUS_OK && chunk_walk_next(&walk, &chunk)) {
        uint8_t *const to = chunk.direct
                                ? (uint8_t *)dst + chunk.dst_first * dtype_info(dtype)->block_bytes
                                : buffer + chunk.buffer_at_bytes;
        st = ckpt_read(convert->ckpt, chunk.tensor, chunk.read_at_bytes, to, chunk.read_bytes,
                       err);
        if (st == STATUS_OK && !chunk.direct)
            chunk_convert(&chunk, buffer, dtype, dst);
    }
    loader_destroy(loader);
    return st;
}

/* From what was read, in F32. */
static void make_values(const struct piece *piece, float *values, void *result)
{
    const size_t count = (size_t)(piece->unit_count * piece->segment->unit_elements);

    for (size_t i = 0; piece->tensor->offset != 0.0f && i < count; i++)
        values[i] += piece->tensor->offset;
    dtype_convert(result, piece->tensor->dtype, values, DTYPE_F32, count);
}

static enum status do_piece(const struct convert *convert, const struct piece *piece,
                            const struct scratch *scratch, struct err *err)
{
    const enum dtype dtype = piece->tensor->dtype;
    const void *bytes = scratch->result;
    uint64_t size_bytes;
    const size_t file = piece->tensor->file_index;
    const uint64_t at = convert->plan.files[file].head.size + piece_at(piece, &size_bytes);
    enum status st = STATUS_OK;

    if (piece->segment == NULL) {
        bytes = piece->tensor->values;
    } else if (piece->segment->source->dtype == dtype && piece->tensor->offset == 0.0f) {
        st = read_piece(convert, piece, dtype, scratch->read, scratch->result, err);
    } else {
        st = read_piece(convert, piece, DTYPE_F32, scratch->read, scratch->values, err);
        if (st == STATUS_OK)
            make_values(piece, scratch->values, scratch->result);
    }
    return st == STATUS_OK ? convert__parts_write(&convert->parts, file, at, bytes, size_bytes,
                                                    err) : st;
}

static void run_piece(void *context, size_t index, uint32_t thread_index)
{
    struct convert *const convert = context;
    struct err err;
    const enum status st = do_piece(convert, &convert->pieces[index],
                                    &convert->scratches[thread_index], &err);

    if (st == STATUS_OK)
        return;
    (void)pthread_mutex_lock(&convert->lock);
    if (convert->status == STATUS_OK) {
        convert->status = st;
        convert->err = err;
    }
    (void)pthread_mutex_unlock(&convert->lock);
}

/* The divisors of a rope's frequencies are there as early as the metadata. */
static enum status do_factors(const struct convert *convert, struct err *err)
{
    struct convert__place place = { 0, 0, 0 };
    struct piece piece;
    enum status st = STATUS_OK;

    for (uint64_t i = 0; st == STATUS_OK && i < convert->plan.tensor_count; i++) {
        if (strncmp(convert->plan.tensors[i].name, CONVERT_FACTORS, strlen(CONVERT_FACTORS)) != 0)
            continue;
        for (place.tensor = i;
             st == STATUS_OK && place.tensor == i && next_piece(convert, &place, &piece);)
            st = do_piece(convert, &piece, &convert->scratches[0], err);
    }
    return st;
}

/* --- memory ----------------------------------------------------------------------------------- */

static uint64_t largest_unit(const struct convert_plan *plan)
{
    uint64_t largest = PIECE_ELEMENTS_MIN;

    for (size_t i = 0; i < plan->segment_count; i++)
        if (plan->segments[i].unit_elements > largest)
            largest = plan->segments[i].unit_elements;
    return largest;
}

static uint64_t scratch_bytes(uint64_t piece_elements)
{
    return READ_BYTES + 2 * piece_elements * sizeof(float);
}

/* As many threads as are asked for and the budget allows, and as large pieces. */
static enum status share_memory(struct convert *convert, struct err *err)
{
    struct convert_summary *const summary = &convert->plan.summary;
    const uint64_t budget = convert->options->memory_budget_bytes > 0
                                ? convert->options->memory_budget_bytes : CONVERT_MEMORY_BYTES;
    const uint64_t unit = size_align_up(largest_unit(&convert->plan), 64);
    const uint64_t least = summary->memory_bytes + scratch_bytes(unit);
    uint64_t left, threads = convert->options->thread_count;
    char wanted[32], given[32];

    assert(threads > 0);
    if (budget < least && convert->options->memory_budget_bytes > 0)
        return err_set(err, STATUS_NO_MEMORY, "--memory-budget %s is too small: tables, the "
                       "header and one thread's buffers take %s",
                       size_format(budget, given, sizeof(given)),
                       size_format(least, wanted, sizeof(wanted)));
    left = budget > summary->memory_bytes ? budget - summary->memory_bytes : 0;
    threads = threads < left / scratch_bytes(unit) ? threads : left / scratch_bytes(unit);
    threads = threads > 0 ? threads : 1;
    convert->piece_elements = unit;
    while (convert->piece_elements < PIECE_ELEMENTS_MAX &&
           threads * scratch_bytes(2 * convert->piece_elements) <= left)
        convert->piece_elements *= 2;
    summary->thread_count = (uint32_t)threads;
    summary->memory_bytes += threads * scratch_bytes(convert->piece_elements);
    return STATUS_OK;
}

static enum status take_memory(struct convert *convert, struct err *err)
{
    const uint32_t threads = convert->plan.summary.thread_count;
    const size_t bytes = (size_t)convert->piece_elements * sizeof(float);
    bool enough;

    convert->scratches = calloc(threads, sizeof(*convert->scratches));
    convert->pieces = calloc((size_t)threads * STEP_PIECES, sizeof(*convert->pieces));
    enough = convert->scratches != NULL && convert->pieces != NULL;
    for (uint32_t i = 0; enough && i < threads; i++) {
        struct scratch *const scratch = &convert->scratches[i];
        scratch->read = aligned_alloc(64, READ_BYTES);
        scratch->result = aligned_alloc(64, bytes);
        scratch->values = aligned_alloc(64, bytes);
        enough = scratch->read != NULL && scratch->result != NULL && scratch->values != NULL;
    }
    if (!enough)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the buffers of %" PRIu32 " threads",
                       threads);
    return thread_pool_create(threads, &convert->pool, err);
}

/* --- from the beginning to the end ------------------------------------------------------------ */

/* The data before the place, and whether there is such a place at all. */
static bool find_done_bytes(struct convert *convert)
{
    const struct convert_plan *const plan = &convert->plan;
    const struct convert__place *const place = &convert->parts.done;
    struct piece piece;
    uint64_t unused;

    if (place->tensor >= plan->tensor_count) {
        convert->done_bytes = plan->data_bytes;
        return place->tensor == plan->tensor_count;
    }
    if (place->segment >= segment_count(convert, place->tensor))
        return false;
    piece = (struct piece){ .tensor = &plan->tensors[place->tensor], .first_unit = place->unit };
    if (piece.tensor->segment_count > 0) {
        piece.segment = &plan->segments[piece.tensor->first_segment + place->segment];
        if (place->unit >= piece.segment->unit_count)
            return false;
    }
    convert->done_bytes = data_at(convert, &piece, &unused);
    return true;
}

enum status convert_open(const struct ckpt *ckpt, const struct convert_options *options,
                         struct convert **convert_out, struct err *err)
{
    struct convert *const convert = calloc(1, sizeof(*convert));
    enum status st;

    assert(convert_has_type(options->type) && options->rule_count <= CONVERT_RULES_MAX);
    if (convert == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory to convert it", ckpt_path(ckpt));
    convert->ckpt = ckpt;
    convert->options = options;
    (void)pthread_mutex_init(&convert->lock, NULL);
    st = convert__parts_check_name(options->out, err);
    if (st == STATUS_OK)
        st = convert__plan_make(ckpt, options, &convert->plan, err);
    if (st == STATUS_OK)
        st = share_memory(convert, err);
    if (st == STATUS_OK)
        st = take_memory(convert, err);
    if (st == STATUS_OK)
        st = convert__parts_open(&convert->parts, ckpt, &convert->plan, options->out, err);
    if (st == STATUS_OK && !find_done_bytes(convert))
        st = convert__parts_begin(&convert->parts, err);
    if (st == STATUS_OK)
        st = do_factors(convert, err);
    if (st != STATUS_OK) {
        convert_close(convert);
        return st;
    }
    convert->plan.summary.resumed_bytes = convert->done_bytes;
    *convert_out = convert;
    return STATUS_OK;
}

const char *convert_part_path(const struct convert *convert)
{
    return convert->parts.files[0].part;
}

const char *convert_out_path(const struct convert *convert)
{
    return convert->parts.files[0].out;
}

const struct convert_summary *convert_summary(const struct convert *convert)
{
    return &convert->plan.summary;
}

/* The next pieces, all of them at once; true when there were any. */
static bool take_step(struct convert *convert, struct convert__place *place, uint64_t *bytes_out)
{
    uint64_t size_bytes = 0;

    convert->piece_count = 0;
    while (convert->piece_count < (size_t)convert->plan.summary.thread_count * STEP_PIECES &&
           next_piece(convert, place, &convert->pieces[convert->piece_count]))
        convert->piece_count++;
    if (convert->piece_count == 0)
        return false;
    *bytes_out = data_at(convert, &convert->pieces[convert->piece_count - 1], &size_bytes);
    *bytes_out += size_bytes;
    return true;
}

enum status convert_run(struct convert *convert, const struct progress *progress, struct err *err)
{
    const uint64_t total_bytes = convert->plan.data_bytes;
    const uint64_t interval_ns = (uint64_t)convert->options->save_interval_ms * 1000000;
    uint64_t saved_ns = clock_now_ns(), bytes = convert->done_bytes;
    struct convert__place place = convert->parts.done;
    enum status st = STATUS_OK;

    progress_update(progress, "converting", bytes, total_bytes);
    while (st == STATUS_OK && take_step(convert, &place, &bytes)) {
        thread_pool_run(convert->pool, convert->piece_count, run_piece, convert);
        st = convert->status;
        if (st != STATUS_OK) {
            *err = convert->err;
            break;
        }
        convert->parts.done = place;
        convert->done_bytes = bytes;
        if (clock_now_ns() - saved_ns >= interval_ns) {
            st = convert__parts_save(&convert->parts, err);
            saved_ns = clock_now_ns();
        }
        if (st == STATUS_OK && bytes < total_bytes)
            progress_update(progress, "converting", bytes, total_bytes);
    }
    if (st != STATUS_OK) {
        (void)convert__parts_save(&convert->parts, NULL); /* what is done is kept, if it can be */
        return st;
    }
    st = convert__parts_place(&convert->parts, err);
    if (st == STATUS_OK)
        progress_update(progress, "converting", total_bytes, total_bytes);
    return st;
}

void convert_close(struct convert *convert)
{
    if (convert == NULL)
        return;
    convert__parts_close(&convert->parts, convert->done_bytes > 0);
    thread_pool_destroy(convert->pool);
    for (uint32_t i = 0; convert->scratches != NULL && i < convert->plan.summary.thread_count;
         i++) {
        free(convert->scratches[i].read);
        free(convert->scratches[i].result);
        free(convert->scratches[i].values);
    }
    free(convert->scratches);
    free(convert->pieces);
    convert__plan_deinit(&convert->plan);
    (void)pthread_mutex_destroy(&convert->lock);
    free(convert);
}
