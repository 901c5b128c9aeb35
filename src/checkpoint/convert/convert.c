/* checkpoint/convert/convert.c - carries a plan out: a partial file, pieces, and how far it is.
 *
 *     NAME.part.gguf   [ header | data of the tensors, in order | two slots ]
 *                                                                 ^ where NAME.gguf will end
 *
 * Several files look so each, but that only the first has slots. The slots say in turn how far the
 * work is: up to which piece everything is on the disk. A slot
 * counts when its sum is right, and the one with the higher number before the other, so that a
 * write that was cut in half leaves the slot before it. Both name the plan and the files that the
 * data comes of by a fingerprint; another one, and everything begins anew. At the end the slots are
 * cut off. */
#include "checkpoint/convert/convert.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/size.h"
#include "base/thread_pool.h"
#include "checkpoint/chunk.h"
#include "checkpoint/convert/plan.h"
#include "checkpoint/internal.h"

#define SUFFIX ".gguf"
#define PART_INFIX ".part"
#define SLOT_BYTES 64
#define SLOT_MAGIC "LIGHTERQ"
#define VERSION 1                       /* of what the same plan's data is made like */
#define READ_BYTES (256 * KIB)          /* of each thread, for what is read */
#define PIECE_ELEMENTS_MAX (UINT64_C(1) << 20)
#define PIECE_ELEMENTS_MIN (UINT64_C(1) << 12)
#define STEP_PIECES 4                   /* of each thread, between two looks at the clock */

static_assert(PIECE_ELEMENTS_MIN % 256 == 0, "pieces hold whole blocks");

/* A place in the plan: the next unit to be written. */
struct place {
    uint64_t tensor, segment, unit;     /* segment counts within the tensor */
};

struct slot {
    char magic[8];
    uint64_t number, fingerprint;
    struct place place;
    uint64_t sum;                       /* of all before */
};
static_assert(sizeof(struct slot) <= SLOT_BYTES, "a slot holds it");

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

/* One of the files that are made. */
struct out_file {
    char *out, *part;                   /* its place, and where it is until it is whole */
    int fd;                             /* -1: not open */
};

struct convert {
    const struct ckpt *ckpt;
    const struct convert_options *options;
    struct convert_plan plan;
    struct out_file *files;             /* [plan.summary.file_count] */
    uint64_t fingerprint, slot_number;
    struct place done;                  /* everything before it is written */
    uint64_t done_bytes;                /* of the data, up to there */
    bool is_placed;                     /* renamed */
    uint64_t piece_elements;
    struct scratch *scratches;          /* [summary.thread_count] */
    struct thread_pool *pool;
    struct piece *pieces;               /* of the step under way */
    size_t piece_count;
    pthread_mutex_t lock;               /* guards what follows */
    enum status status;                 /* of the first piece that failed */
    struct err err;
};

/* --- the fingerprint -------------------------------------------------------------------------- */

/* FNV-1a, 64 bits. */
static uint64_t mix(uint64_t sum, const void *bytes, size_t size)
{
    const uint8_t *const at = bytes;

    for (size_t i = 0; i < size; i++)
        sum = (sum ^ at[i]) * UINT64_C(0x100000001B3);
    return sum;
}

/* Of the heads, which name every tensor with its type, and of the files that are read. */
static enum status find_fingerprint(struct convert *convert, struct err *err)
{
    uint64_t sum = UINT64_C(0xCBF29CE484222325);

    for (size_t i = 0; i < convert->plan.summary.file_count; i++)
        sum = mix(sum, convert->plan.files[i].head.data, convert->plan.files[i].head.size);
    for (uint32_t i = 0; i < convert->ckpt->file_count; i++) {
        const struct file *const file = &convert->ckpt->files[i];
        struct stat info;
        uint64_t numbers[4];
        if (fstat(file->fd, &info) != 0)
            return err_set(err, STATUS_IO, "%s: %s", file->path, strerror(errno));
        numbers[0] = VERSION;
        numbers[1] = (uint64_t)info.st_size;
        numbers[2] = (uint64_t)info.st_mtim.tv_sec;
        numbers[3] = (uint64_t)info.st_mtim.tv_nsec;
        sum = mix(sum, numbers, sizeof(numbers));
    }
    convert->fingerprint = sum;
    return STATUS_OK;
}

/* --- the partial files ------------------------------------------------------------------------ */

static enum status say_errno(const struct out_file *file, const char *what, int number,
                             struct err *err)
{
    return err_set(err, STATUS_IO, "%s: %s: %s%s", file->part, what, strerror(number),
                   number == ENOSPC || number == EFBIG || number == EDQUOT
                       ? "; make room and run the same again, and it goes on from here" : "");
}

static enum status write_at(const struct out_file *file, uint64_t offset_bytes,
                            const void *bytes, uint64_t size_bytes, struct err *err)
{
    const char *from = bytes;

    while (size_bytes > 0) {
        const ssize_t put = pwrite(file->fd, from, (size_t)size_bytes, (off_t)offset_bytes);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return say_errno(file, "writing", put < 0 ? errno : EIO, err);
        from += put;
        offset_bytes += (uint64_t)put;
        size_bytes -= (uint64_t)put;
    }
    return STATUS_OK;
}

/* Of a file when it is whole. */
static uint64_t file_bytes(const struct convert *convert, size_t index)
{
    return convert->plan.files[index].head.size + convert->plan.files[index].data_bytes;
}

static enum status flush(const struct convert *convert, struct err *err)
{
    for (size_t i = 0; i < convert->plan.summary.file_count; i++)
        if (fdatasync(convert->files[i].fd) != 0)
            return say_errno(&convert->files[i], "flushing", errno, err);
    return STATUS_OK;
}

static uint64_t slot_sum(const struct slot *slot)
{
    return mix(0, slot, offsetof(struct slot, sum));
}

/* Notes convert->done, once all before it is on the disk. */
static enum status save(struct convert *convert, struct err *err)
{
    struct slot slot = { .number = convert->slot_number + 1,
                         .fingerprint = convert->fingerprint, .place = convert->done };
    const uint64_t at = file_bytes(convert, 0) + slot.number % 2 * SLOT_BYTES;
    const enum status st = flush(convert, err);

    memcpy(slot.magic, SLOT_MAGIC, sizeof(slot.magic));
    slot.sum = slot_sum(&slot);
    if (st != STATUS_OK)
        return st;
    convert->slot_number = slot.number;
    return write_at(&convert->files[0], at, &slot, sizeof(slot), err);
}

/* Whether the file is one of this plan, and how far it is. */
static bool read_slots(struct convert *convert)
{
    bool found = false;

    for (uint64_t i = 0; i < 2; i++) {
        struct slot slot;
        const off_t at = (off_t)(file_bytes(convert, 0) + i * SLOT_BYTES);
        if (pread(convert->files[0].fd, &slot, sizeof(slot), at) != (ssize_t)sizeof(slot) ||
            memcmp(slot.magic, SLOT_MAGIC, sizeof(slot.magic)) != 0 ||
            slot.sum != slot_sum(&slot) || slot.fingerprint != convert->fingerprint ||
            slot.number <= convert->slot_number)
            continue;
        found = true;
        convert->slot_number = slot.number;
        convert->done = slot.place;
    }
    return found;
}

/* Empties a file, takes its room on the disk where the file system can, and writes the head. */
static enum status begin_file(struct convert *convert, size_t index, struct err *err)
{
    struct out_file *const file = &convert->files[index];
    const struct buf *const head = &convert->plan.files[index].head;
    const uint64_t size_bytes = file_bytes(convert, index) + (index == 0 ? 2 * SLOT_BYTES : 0);
    char size[32];

    if (file->fd < 0)
        file->fd = open(file->part, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file->fd < 0)
        return err_set(err, STATUS_IO, "%s: %s", file->part, strerror(errno));
    if (ftruncate(file->fd, 0) != 0)
        return say_errno(file, "emptying", errno, err);
    if (fallocate(file->fd, 0, 0, (off_t)size_bytes) != 0) {
        if (errno != EOPNOTSUPP && errno != ENOSYS)
            return err_set(err, STATUS_IO, "%s: there is no room for %s: %s", file->part,
                           size_format(size_bytes, size, sizeof(size)), strerror(errno));
        if (ftruncate(file->fd, (off_t)size_bytes) != 0)
            return say_errno(file, "making room", errno, err);
    }
    return write_at(file, 0, head->data, head->size, err);
}

static enum status begin_parts(struct convert *convert, struct err *err)
{
    enum status st = STATUS_OK;

    convert->done = (struct place){ 0, 0, 0 };
    for (size_t i = 0; st == STATUS_OK && i < convert->plan.summary.file_count; i++)
        st = begin_file(convert, i, err);
    return st == STATUS_OK ? save(convert, err) : st;
}

/* Opens the files behind the first, whose slots say how far they are. What a run that ended between
 * its last renamings has put in its place already is taken back. False: they are not as they
 * were. */
static bool open_others(struct convert *convert)
{
    for (size_t i = 1; i < convert->plan.summary.file_count; i++) {
        struct out_file *const file = &convert->files[i];
        struct stat info;

        if (convert->done.tensor == convert->plan.tensor_count && stat(file->part, &info) != 0 &&
            stat(file->out, &info) == 0 && (uint64_t)info.st_size == file_bytes(convert, i))
            (void)rename(file->out, file->part);
        file->fd = open(file->part, O_RDWR | O_CLOEXEC);
        if (file->fd < 0 || fstat(file->fd, &info) != 0 ||
            (uint64_t)info.st_size != file_bytes(convert, i))
            return false;
    }
    return true;
}

/* Opens the first file and holds it against other processes, and the others then. One that was
 * renamed or removed meanwhile by the process that held it is not it any more. */
static enum status open_parts(struct convert *convert, struct err *err)
{
    struct out_file *const file = &convert->files[0];
    struct stat held, named;

    file->fd = open(file->part, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file->fd < 0)
        return err_set(err, STATUS_IO, "%s: %s", file->part, strerror(errno));
    if (flock(file->fd, LOCK_EX | LOCK_NB) != 0 || fstat(file->fd, &held) != 0 ||
        stat(file->part, &named) != 0 || held.st_ino != named.st_ino) {
        (void)close(file->fd);
        file->fd = -1;
        return err_set(err, STATUS_BUSY, "%s: another process is writing it", file->part);
    }
    if (read_slots(convert) && open_others(convert))
        return STATUS_OK;
    return begin_parts(convert, err);
}

/* --- pieces ----------------------------------------------------------------------------------- */

static uint64_t segment_count(const struct convert *convert, uint64_t tensor)
{
    const size_t count = convert->plan.tensors[tensor].segment_count;

    return count > 0 ? count : 1; /* values that are there are one piece */
}

/* The piece at the place, which moves behind it. False: there is none left. */
static bool next_piece(const struct convert *convert, struct place *place, struct piece *piece_out)
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
    return st == STATUS_OK ? write_at(&convert->files[file], at, bytes, size_bytes, err) : st;
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
    struct place place = { 0, 0, 0 };
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

static enum status check_out(const struct convert *convert, struct err *err)
{
    const char *const out = convert->options->out;
    const size_t size = strlen(out);

    if (size <= strlen(SUFFIX) || strcmp(out + size - strlen(SUFFIX), SUFFIX) != 0)
        return err_set(err, STATUS_BAD_INPUT, "--out: '%s' does not end in " SUFFIX
                       ", by which a GGUF file is known", out);
    return STATUS_OK;
}

/* A file must not become one of those that are read. */
static enum status check_apart(const struct convert *convert, const char *out, struct err *err)
{
    struct stat info, source;

    for (uint32_t i = 0; stat(out, &info) == 0 && i < convert->ckpt->file_count; i++)
        if (fstat(convert->ckpt->files[i].fd, &source) == 0 && source.st_ino == info.st_ino &&
            source.st_dev == info.st_dev)
            return err_set(err, STATUS_BAD_INPUT, "--out: '%s' is a file of the model itself",
                           out);
    return STATUS_OK;
}

static char *make_path(const struct convert *convert, const char *infix, size_t index)
{
    const char *const out = convert->options->out;
    const int stem = (int)(strlen(out) - strlen(SUFFIX));
    const size_t count = convert->plan.summary.file_count;
    char *path = NULL;
    const int size = count == 1 ? asprintf(&path, "%.*s%s" SUFFIX, stem, out, infix)
                                : asprintf(&path, "%.*s%s-%05zu-of-%05zu" SUFFIX, stem, out, infix,
                                           index + 1, count);

    return size >= 0 ? path : NULL;
}

static enum status find_paths(struct convert *convert, struct err *err)
{
    const size_t count = convert->plan.summary.file_count;
    enum status st = STATUS_OK;

    convert->files = calloc(count, sizeof(*convert->files));
    for (size_t i = 0; convert->files != NULL && i < count; i++)
        convert->files[i].fd = -1;
    for (size_t i = 0; convert->files != NULL && st == STATUS_OK && i < count; i++) {
        struct out_file *const file = &convert->files[i];

        file->out = make_path(convert, "", i);
        file->part = make_path(convert, PART_INFIX, i);
        if (file->out == NULL || file->part == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for a path");
        st = check_apart(convert, file->out, err);
    }
    return convert->files != NULL ? st : err_set(err, STATUS_NO_MEMORY, "no memory for paths");
}

/* The data before the place, and whether there is such a place at all. */
static bool find_done_bytes(struct convert *convert)
{
    const struct convert_plan *const plan = &convert->plan;
    const struct place *const place = &convert->done;
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
    st = check_out(convert, err);
    if (st == STATUS_OK)
        st = convert__plan_make(ckpt, options, &convert->plan, err);
    if (st == STATUS_OK)
        st = find_paths(convert, err);
    if (st == STATUS_OK)
        st = share_memory(convert, err);
    if (st == STATUS_OK)
        st = take_memory(convert, err);
    if (st == STATUS_OK)
        st = find_fingerprint(convert, err);
    if (st == STATUS_OK)
        st = open_parts(convert, err);
    if (st == STATUS_OK && !find_done_bytes(convert))
        st = begin_parts(convert, err);
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
    return convert->files[0].part;
}

const char *convert_out_path(const struct convert *convert)
{
    return convert->files[0].out;
}

const struct convert_summary *convert_summary(const struct convert *convert)
{
    return &convert->plan.summary;
}

/* The folder's entries are on the disk, if that can be. */
static void flush_folder(const struct convert *convert)
{
    const char *const out = convert->files[0].out;
    const char *const slash = strrchr(out, '/');
    char folder[PATH_MAX] = ".";
    int fd;

    if (slash != NULL)
        (void)snprintf(folder, sizeof(folder), "%.*s", (int)(slash - out + 1), out);
    fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        (void)close(fd);
    }
}

/* Makes the partial files the whole ones. Of several the first comes last, and goes before another
 * of its name loses one of those behind it: so whole sets are seen, or none. */
static enum status put_in_place(struct convert *convert, struct err *err)
{
    const size_t count = convert->plan.summary.file_count;
    enum status st = save(convert, err);

    if (st != STATUS_OK)
        return st;
    if (count > 1 && unlink(convert->files[0].out) != 0 && errno != ENOENT)
        return err_set(err, STATUS_IO, "%s: cannot be replaced: %s", convert->files[0].out,
                       strerror(errno));
    for (size_t i = count; i-- > 0;) {
        const struct out_file *const file = &convert->files[i];

        if (i == 0 && ftruncate(file->fd, (off_t)file_bytes(convert, 0)) != 0)
            return say_errno(file, "cutting off", errno, err);
        if (fsync(file->fd) != 0)
            return say_errno(file, "flushing", errno, err);
        if (rename(file->part, file->out) != 0)
            return err_set(err, STATUS_IO, "%s: cannot be renamed to %s: %s", file->part,
                           file->out, strerror(errno));
    }
    convert->is_placed = true;
    flush_folder(convert);
    return STATUS_OK;
}

/* The next pieces, all of them at once; true when there were any. */
static bool take_step(struct convert *convert, struct place *place, uint64_t *bytes_out)
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
    struct place place = convert->done;
    enum status st = STATUS_OK;

    progress_update(progress, "converting", bytes, total_bytes);
    while (st == STATUS_OK && take_step(convert, &place, &bytes)) {
        thread_pool_run(convert->pool, convert->piece_count, run_piece, convert);
        st = convert->status;
        if (st != STATUS_OK) {
            *err = convert->err;
            break;
        }
        convert->done = place;
        convert->done_bytes = bytes;
        if (clock_now_ns() - saved_ns >= interval_ns) {
            st = save(convert, err);
            saved_ns = clock_now_ns();
        }
        if (st == STATUS_OK && bytes < total_bytes)
            progress_update(progress, "converting", bytes, total_bytes);
    }
    if (st != STATUS_OK) {
        (void)save(convert, NULL); /* what is done is kept, if it can be */
        return st;
    }
    st = put_in_place(convert, err);
    if (st == STATUS_OK)
        progress_update(progress, "converting", total_bytes, total_bytes);
    return st;
}

void convert_close(struct convert *convert)
{
    if (convert == NULL)
        return;
    for (size_t i = 0; convert->files != NULL && i < convert->plan.summary.file_count; i++) {
        const struct out_file *const file = &convert->files[i];

        if (file->fd >= 0 && !convert->is_placed && convert->done_bytes == 0)
            (void)unlink(file->part);
        if (file->fd >= 0)
            (void)close(file->fd);
        free(file->part);
        free(file->out);
    }
    free(convert->files);
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
