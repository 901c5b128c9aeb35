/* checkpoint/gguf/gguf.c - GGUF files: their header, their tensors, and models split into several.
 *
 * The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; little endian):
 *
 *     "GGUF", u32 version (3; 2 is laid out the same), u64 tensor count, u64 pair count
 *     the metadata pairs                              meta.c
 *     for each tensor: name (u64 size, bytes), u32 number of dimensions, u64 each dimension,
 *                      innermost first; u32 type, u64 offset of its data
 *     zeros up to a multiple of general.alignment (32 when not given)
 *     the tensors' data; offsets count from here and are multiples of the alignment
 *
 * A split model is NAME-00001-of-0000N.gguf and so on. The first file has the metadata, each has
 * split.no (from 0), split.count and split.tensors.count, the number in all of them.
 *
 * As with safetensors, everything but the data is checked when a file is opened. Tensors get the
 * names of Hugging Face checkpoints while they are read (names.c), so messages that come later
 * have those. */
#include "checkpoint/gguf/gguf.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "checkpoint/gguf/tokenizer.h"

#define SUFFIX ".gguf"
#define DIMENSIONS_MAX 4
#define ALIGNMENT_MISSING 32u
#define ALIGNMENT_MAX (1u << 20)
#define LAYERS_MAX 65536u

static_assert(DIMENSIONS_MAX <= TENSOR_RANK_MAX, "a tensor holds as many dimensions");

/* Every type of ggml that files hold, by its number, from gguf-py 0.19's constants.py. */
static const struct ggml_type {
    const char *name; /* NULL: a number that is not in use */
    uint32_t block_elements, block_bytes;
    enum dtype dtype; /* DTYPE_COUNT: none of ours */
} ggml_types[] = {
    [0] = { "F32", 1, 4, DTYPE_F32 },        [1] = { "F16", 1, 2, DTYPE_F16 },
    [2] = { "Q4_0", 32, 18, DTYPE_Q4_0 },    [3] = { "Q4_1", 32, 20, DTYPE_Q4_1 },
    [6] = { "Q5_0", 32, 22, DTYPE_Q5_0 },   [7] = { "Q5_1", 32, 24, DTYPE_Q5_1 },
    [8] = { "Q8_0", 32, 34, DTYPE_Q8_0 },    [9] = { "Q8_1", 32, 40, DTYPE_COUNT },
    [10] = { "Q2_K", 256, 84, DTYPE_Q2_K }, [11] = { "Q3_K", 256, 110, DTYPE_Q3_K },
    [12] = { "Q4_K", 256, 144, DTYPE_Q4_K }, [13] = { "Q5_K", 256, 176, DTYPE_Q5_K },
    [14] = { "Q6_K", 256, 210, DTYPE_Q6_K }, [15] = { "Q8_K", 256, 292, DTYPE_COUNT },
    [16] = { "IQ2_XXS", 256, 66, DTYPE_COUNT }, [17] = { "IQ2_XS", 256, 74, DTYPE_COUNT },
    [18] = { "IQ3_XXS", 256, 98, DTYPE_COUNT }, [19] = { "IQ1_S", 256, 50, DTYPE_COUNT },
    [20] = { "IQ4_NL", 32, 18, DTYPE_IQ4_NL }, [21] = { "IQ3_S", 256, 110, DTYPE_COUNT },
    [22] = { "IQ2_S", 256, 82, DTYPE_COUNT }, [23] = { "IQ4_XS", 256, 136, DTYPE_IQ4_XS },
    [24] = { "I8", 1, 1, DTYPE_COUNT },      [25] = { "I16", 1, 2, DTYPE_COUNT },
    [26] = { "I32", 1, 4, DTYPE_I32 },       [27] = { "I64", 1, 8, DTYPE_COUNT },
    [28] = { "F64", 1, 8, DTYPE_COUNT },     [29] = { "IQ1_M", 256, 56, DTYPE_COUNT },
    [30] = { "BF16", 1, 2, DTYPE_BF16 },     [34] = { "TQ1_0", 256, 54, DTYPE_COUNT },
    [35] = { "TQ2_0", 256, 66, DTYPE_COUNT }, [39] = { "MXFP4", 32, 17, DTYPE_MXFP4 },
    [40] = { "NVFP4", 64, 36, DTYPE_COUNT }, [41] = { "Q1_0", 128, 18, DTYPE_COUNT },
};
#define GGML_TYPE_COUNT (sizeof(ggml_types) / sizeof(ggml_types[0]))

bool gguf__find_type(enum dtype dtype, uint32_t *number_out)
{
    for (uint32_t number = 0; number < GGML_TYPE_COUNT; number++)
        if (ggml_types[number].name != NULL && ggml_types[number].dtype == dtype) {
            *number_out = number;
            return true;
        }
    return false;
}

/* One file while it is read. */
struct gguf_file {
    struct ckpt *ckpt;
    uint32_t file_index;
    struct gguf_reader *reader;
    uint64_t tensor_count, pair_count;
    uint64_t data_at;              /* byte where the tensors' data begins */
    uint64_t alignment;
    /* From the first file's metadata, for the tensors' names. */
    const char *arch;
    uint64_t layer_count;
};

static const char *path_of(const struct gguf_file *part)
{
    return part->ckpt->files[part->file_index].path;
}

/* --- the header ------------------------------------------------------------------------------- */

static enum status check_version(const char *path, uint32_t version, struct err *err)
{
    if (version == 2 || version == 3)
        return STATUS_OK;
    if (version == UINT32_C(3) << 24 || version == UINT32_C(2) << 24)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: a GGUF file in big endian; only little endian is read", path);
    return err_set(err, STATUS_BAD_INPUT, "%s: GGUF version %" PRIu32 ", 2 and 3 are read", path,
                   version);
}

static enum status read_header(struct gguf_reader *reader, uint64_t *tensor_count_out,
                               uint64_t *pair_count_out, struct err *err)
{
    const char *const path = reader->file->path;
    char magic[4];
    uint32_t version = 0;
    enum status st = gguf__take(reader, magic, sizeof(magic), "the header", err);

    if (st == STATUS_OK && memcmp(magic, "GGUF", 4) != 0)
        st = err_set(err, STATUS_BAD_INPUT,
                     "%s: not a GGUF file: it does not begin with \"GGUF\"", path);
    if (st == STATUS_OK)
        st = gguf__take_u32(reader, "the header", &version, err);
    if (st == STATUS_OK)
        st = check_version(path, version, err);
    if (st == STATUS_OK)
        st = gguf__take_u64(reader, "the header", tensor_count_out, err);
    if (st == STATUS_OK)
        st = gguf__take_u64(reader, "the header", pair_count_out, err);
    if (st == STATUS_OK && *tensor_count_out > CKPT_TENSORS_MAX)
        st = err_set(err, STATUS_BAD_INPUT,
                     "%s: announces %" PRIu64 " tensors, at most %d are read", path,
                     *tensor_count_out, CKPT_TENSORS_MAX);
    return st;
}

enum status gguf__open_meta(const struct file *file, struct gguf_reader *reader,
                            struct gguf_meta *meta_out, struct err *err)
{
    uint64_t tensor_count = 0, pair_count = 0;
    enum status st;

    *meta_out = (struct gguf_meta){ .count = 0 };
    reader->file = file;
    reader->at = reader->window_at = 0;
    reader->window_size = 0;
    st = read_header(reader, &tensor_count, &pair_count, err);
    return st == STATUS_OK ? gguf__meta_read(reader, pair_count, meta_out, err) : st;
}

static enum status read_alignment(const struct gguf_meta *meta, struct gguf_file *part,
                                  struct err *err)
{
    static const char key[] = "general.alignment";
    enum status st;

    part->alignment = ALIGNMENT_MISSING;
    st = gguf__get_count(meta, path_of(part), key, ALIGNMENT_MAX, &part->alignment, err);
    if (st == STATUS_OK &&
        (part->alignment == 0 || (part->alignment & (part->alignment - 1)) != 0))
        st = err_set(err, STATUS_BAD_INPUT, "%s: %s is %" PRIu64 ", a power of two is wanted",
                     path_of(part), key, part->alignment);
    return st;
}

/* --- tensors ---------------------------------------------------------------------------------- */

struct tensor_entry {
    char name[CKPT_NAME_BYTES_MAX + 1];
    size_t name_size;
    struct ckpt_tensor tensor;     /* its offset counts from data_at; no name */
    const struct ggml_type *type;
};

static enum status take_name(struct gguf_reader *reader, uint64_t index,
                             struct tensor_entry *entry, struct err *err)
{
    uint64_t size = 0;
    char what[64];
    enum status st;

    (void)snprintf(what, sizeof(what), "the entry of tensor %" PRIu64, index);
    st = gguf__take_u64(reader, what, &size, err);
    if (st == STATUS_OK && (size == 0 || size > CKPT_NAME_BYTES_MAX))
        st = err_set(err, STATUS_BAD_INPUT,
                     "%s: the name of tensor %" PRIu64 " has %" PRIu64
                     " bytes, 1 to %d are allowed",
                     reader->file->path, index, size, CKPT_NAME_BYTES_MAX);
    if (st == STATUS_OK)
        st = gguf__take(reader, entry->name, size, what, err);
    if (st != STATUS_OK)
        return st;
    entry->name[size] = '\0';
    entry->name_size = (size_t)size;
    for (size_t i = 0; i < size; i++)
        if ((unsigned char)entry->name[i] < 0x20 || entry->name[i] == 0x7F)
            return err_set(err, STATUS_BAD_INPUT,
                           "%s: the name of tensor %" PRIu64 " has the control character 0x%02X",
                           reader->file->path, index, (unsigned char)entry->name[i]);
    return STATUS_OK;
}

static enum status take_shape(struct gguf_reader *reader, const char *what,
                              struct ckpt_tensor *tensor, struct err *err)
{
    uint32_t rank = 0;
    enum status st = gguf__take_u32(reader, what, &rank, err);

    if (st == STATUS_OK && rank > DIMENSIONS_MAX)
        st = err_set(err, STATUS_BAD_INPUT, "%s: %s has %" PRIu32 " dimensions, at most %d are "
                     "read", reader->file->path, what, rank, DIMENSIONS_MAX);
    if (st != STATUS_OK)
        return st;
    tensor->rank = rank;
    for (uint32_t i = 0; i < TENSOR_RANK_MAX; i++)
        tensor->shape[i] = 1;
    for (uint32_t i = 0; st == STATUS_OK && i < rank; i++)
        st = gguf__take_u64(reader, what, &tensor->shape[rank - 1 - i], err);
    return st;
}

/* From shape and type; refuses rows of broken blocks and what overflows. */
static enum status measure(const char *path, const char *what, struct tensor_entry *entry,
                           struct err *err)
{
    struct ckpt_tensor *const tensor = &entry->tensor;
    const uint64_t row = tensor->rank == 0 ? 1 : tensor->shape[tensor->rank - 1];
    uint64_t count = 0;
    char shape[96];

    if (row % entry->type->block_elements != 0)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: %s is %s %s, whose rows of %" PRIu64
                       " elements are not whole blocks of %" PRIu32,
                       path, what, entry->type->name,
                       tensor_shape_format(tensor->rank, tensor->shape, shape, sizeof(shape)), row,
                       entry->type->block_elements);
    for (uint32_t i = 0; i < tensor->rank; i++)
        if (tensor->shape[i] == 0)
            return err_set(err, STATUS_BAD_INPUT, "%s: %s has the empty shape %s", path, what,
                           tensor_shape_format(tensor->rank, tensor->shape, shape, sizeof(shape)));
    if (!tensor_element_count(tensor->rank, tensor->shape, &count) ||
        !size_mul(count / entry->type->block_elements, entry->type->block_bytes,
                  &tensor->size_bytes))
        return err_set(err, STATUS_BAD_INPUT, "%s: the size of %s, %s %s, overflows", path, what,
                       entry->type->name,
                       tensor_shape_format(tensor->rank, tensor->shape, shape, sizeof(shape)));
    return STATUS_OK;
}

static enum status take_entry(struct gguf_file *part, uint64_t index, struct tensor_entry *entry,
                              struct err *err)
{
    struct gguf_reader *const reader = part->reader;
    char what[CKPT_NAME_BYTES_MAX + 16];
    uint32_t type = 0;
    enum status st = take_name(reader, index, entry, err);

    if (st != STATUS_OK)
        return st;
    (void)snprintf(what, sizeof(what), "tensor '%s'", entry->name);
    st = take_shape(reader, what, &entry->tensor, err);
    if (st == STATUS_OK)
        st = gguf__take_u32(reader, what, &type, err);
    if (st == STATUS_OK && (type >= GGML_TYPE_COUNT || ggml_types[type].name == NULL))
        st = err_set(err, STATUS_BAD_INPUT, "%s: %s has type %" PRIu32 ", which is not known",
                     reader->file->path, what, type);
    if (st == STATUS_OK)
        st = gguf__take_u64(reader, what, &entry->tensor.offset_bytes, err);
    if (st != STATUS_OK)
        return st;
    entry->type = &ggml_types[type];
    entry->tensor.dtype = entry->type->dtype;
    entry->tensor.dtype_name = entry->type->name;
    entry->tensor.file_index = part->file_index;
    st = measure(reader->file->path, what, entry, err);
    if (st == STATUS_OK && entry->tensor.offset_bytes % part->alignment != 0)
        st = err_set(err, STATUS_BAD_INPUT,
                     "%s: %s begins at byte %" PRIu64
                     " of the data, which is not a multiple of the alignment %" PRIu64,
                     reader->file->path, what, entry->tensor.offset_bytes, part->alignment);
    if (st == STATUS_OK && reader->at > GGUF_META_BYTES_MAX)
        st = err_set(err, STATUS_BAD_INPUT,
                     "%s: the entries of its tensors go past byte %" PRIu64 ", at most %" PRIu64
                     " bytes are read",
                     reader->file->path, reader->at, GGUF_META_BYTES_MAX);
    return st;
}

static enum status add_entry(struct gguf_file *part, const struct tensor_entry *entry,
                             struct err *err)
{
    const struct file *const file = &part->ckpt->files[part->file_index];
    struct ckpt_tensor tensor = entry->tensor;
    char name[CKPT_NAME_BYTES_MAX + 1];

    if (tensor.size_bytes > file->size_bytes - part->data_at ||
        tensor.offset_bytes > file->size_bytes - part->data_at - tensor.size_bytes)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: truncated: tensor '%s' has %" PRIu64 " bytes from %" PRIu64
                       " on, the file has %" PRIu64 " bytes of data",
                       file->path, entry->name, tensor.size_bytes, tensor.offset_bytes,
                       file->size_bytes - part->data_at);
    tensor.offset_bytes += part->data_at;
    gguf__tensor_name(part->arch, part->layer_count, entry->name, name, sizeof(name));
    return ckpt__add_tensor(part->ckpt, &tensor, name, strlen(name), err);
}

/* The entries are walked twice: where the data begins is known only behind the last one. */
static enum status read_tensors(struct gguf_file *part, struct err *err)
{
    const struct file *const file = &part->ckpt->files[part->file_index];
    const uint64_t entries_at = part->reader->at;
    const size_t first = part->ckpt->tensor_count;
    struct tensor_entry entry;
    enum status st = STATUS_OK;

    for (uint64_t i = 0; st == STATUS_OK && i < part->tensor_count; i++)
        st = take_entry(part, i, &entry, err);
    if (st != STATUS_OK)
        return st;
    part->data_at = size_align_up(part->reader->at, part->alignment);
    if (part->data_at > file->size_bytes)
        part->data_at = file->size_bytes; /* fine where there are no tensors */
    part->reader->at = entries_at;
    for (uint64_t i = 0; st == STATUS_OK && i < part->tensor_count; i++) {
        st = take_entry(part, i, &entry, err);
        if (st == STATUS_OK)
            st = add_entry(part, &entry, err);
    }
    return st == STATUS_OK ? ckpt__sort_file(part->ckpt, first, err) : st;
}

/* --- files ------------------------------------------------------------------------------------ */

/* Takes the file; reads its header and metadata. */
static enum status begin_file(struct gguf_file *part, struct file *file, struct gguf_meta *meta,
                              struct err *err)
{
    enum status st = ckpt__add_file(part->ckpt, file, err);

    if (st != STATUS_OK)
        return st;
    part->file_index = part->ckpt->file_count - 1;
    part->reader->file = &part->ckpt->files[part->file_index];
    part->reader->at = part->reader->window_at = 0;
    part->reader->window_size = 0;
    st = read_header(part->reader, &part->tensor_count, &part->pair_count, err);
    if (st == STATUS_OK)
        st = gguf__meta_read(part->reader, part->pair_count, meta, err);
    return st == STATUS_OK ? read_alignment(meta, part, err) : st;
}

/* "-00001-of-00003.gguf": the length of what stands before it, 0 when the path does not end so. */
static size_t split_stem(const char *path, unsigned *number_out, unsigned *count_out)
{
    static const char pattern[] = "-00000-of-00000" SUFFIX;
    const size_t size = strlen(path);
    const char *tail;

    if (size <= sizeof(pattern) - 1)
        return 0;
    tail = path + size - (sizeof(pattern) - 1);
    for (size_t i = 0; i < sizeof(pattern) - 1; i++)
        if (pattern[i] == '0' ? tail[i] < '0' || tail[i] > '9' : tail[i] != pattern[i])
            return 0;
    *number_out = (unsigned)strtoul(tail + 1, NULL, 10);
    *count_out = (unsigned)strtoul(tail + 10, NULL, 10);
    return size - (sizeof(pattern) - 1);
}

static enum status open_split(const char *given, unsigned number, unsigned count,
                              struct file *file_out, struct err *err)
{
    unsigned unused;
    const size_t stem = split_stem(given, &unused, &unused);
    char *path = NULL;
    enum status st;

    if (asprintf(&path, "%.*s-%05u-of-%05u" SUFFIX, (int)stem, given, number, count) < 0)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for a path", given);
    if (!file_exists(path))
        st = err_set(err, STATUS_BAD_INPUT, "%s: file %u of %u, %s, is not there", given,
                     number, count, path);
    else
        st = file_open(path, file_out, err);
    free(path);
    return st;
}

enum status gguf__open_first(const char *path, struct file *file_out, struct err *err)
{
    unsigned number = 1, count = 1;

    if (split_stem(path, &number, &count) != 0 && number > 1 && number <= count)
        return open_split(path, 1, count, file_out, err);
    return file_open(path, file_out, err);
}

static enum status check_split(const struct gguf_meta *meta, const char *path, uint64_t number,
                               uint64_t count, struct err *err)
{
    uint64_t seen_number = UINT64_MAX, seen_count = UINT64_MAX;
    enum status st = gguf__get_count(meta, path, "split.no", INT32_MAX, &seen_number, err);

    if (st == STATUS_OK)
        st = gguf__get_count(meta, path, "split.count", INT32_MAX, &seen_count, err);
    if (st != STATUS_OK)
        return st;
    if (seen_number == UINT64_MAX || seen_count == UINT64_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: %s is missing, but it is file %" PRIu64
                       " of a split model", path,
                       seen_number == UINT64_MAX ? "split.no" : "split.count", number + 1);
    if (seen_number != number || seen_count != count)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: split.no %" PRIu64 " and split.count %" PRIu64
                       ", where %" PRIu64 " and %" PRIu64 " are wanted",
                       path, seen_number, seen_count, number, count);
    return STATUS_OK;
}

static enum status read_split(struct gguf_file *part, uint64_t number, uint64_t count,
                              struct err *err)
{
    struct file file = { .fd = -1 };
    struct gguf_meta meta = { .count = 0 };
    enum status st =
        open_split(part->ckpt->path, (unsigned)number + 1, (unsigned)count, &file, err);

    if (st == STATUS_OK)
        st = begin_file(part, &file, &meta, err);
    if (st == STATUS_OK)
        st = check_split(&meta, path_of(part), number, count, err);
    if (st == STATUS_OK)
        st = read_tensors(part, err);
    gguf__meta_deinit(&meta);
    file_close(&file);
    return st;
}

/* The files behind the first. */
static enum status read_splits(struct gguf_file *part, const struct gguf_meta *meta,
                               struct err *err)
{
    struct ckpt *const ckpt = part->ckpt;
    const char *const path = path_of(part);
    uint64_t count = 1, tensor_count = UINT64_MAX;
    unsigned number = 0, named_count = 0;
    enum status st = gguf__get_count(meta, path, "split.count", CKPT_FILES_MAX, &count, err);

    if (st == STATUS_OK)
        st = gguf__get_count(meta, path, "split.tensors.count", INT64_MAX, &tensor_count, err);
    if (st != STATUS_OK || count <= 1)
        return st;
    st = check_split(meta, path, 0, count, err);
    if (st != STATUS_OK)
        return st;
    if (split_stem(ckpt->path, &number, &named_count) == 0 || named_count != count)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: the first of %" PRIu64 " files, but its name does not end in "
                       "-00001-of-%05" PRIu64 SUFFIX ", by which the others are found",
                       path, count, count);
    for (uint64_t i = 1; st == STATUS_OK && i < count; i++)
        st = read_split(part, i, count, err);
    if (st == STATUS_OK && tensor_count != UINT64_MAX && tensor_count != ckpt->tensor_count)
        st = err_set(err, STATUS_BAD_INPUT,
                     "%s: split.tensors.count is %" PRIu64 ", the %" PRIu64 " files have %zu",
                     ckpt->path, tensor_count, count, ckpt->tensor_count);
    return st;
}

/* What the tensors' names depend on. */
static enum status read_architecture(struct gguf_file *part, const struct gguf_meta *meta,
                                     struct err *err)
{
    const char *const path = path_of(part);
    uint64_t predict_count = 0;
    char key[128];
    enum status st = gguf__get_string(meta, path, "general.architecture", &part->arch, err);

    if (st == STATUS_OK && (part->arch == NULL || strlen(part->arch) > 64))
        st = err_set(err, STATUS_BAD_INPUT, "%s: general.architecture is %s", path,
                     part->arch == NULL ? "missing" : "too long");
    if (st != STATUS_OK)
        return st;
    (void)snprintf(key, sizeof(key), "%s.block_count", part->arch);
    st = gguf__get_count(meta, path, key, LAYERS_MAX, &part->layer_count, err);
    (void)snprintf(key, sizeof(key), "%s.nextn_predict_layers", part->arch);
    if (st == STATUS_OK)
        st = gguf__get_count(meta, path, key, part->layer_count, &predict_count, err);
    part->layer_count -= predict_count;
    return st;
}

enum status gguf__read(struct ckpt *ckpt, struct file *file, struct err *err)
{
    struct gguf_file part = { .ckpt = ckpt };
    struct gguf_meta meta = { .count = 0 };
    enum status st;

    part.reader = malloc(sizeof(*part.reader));
    if (part.reader == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory to read it", file->path);
    st = begin_file(&part, file, &meta, err);
    if (st == STATUS_OK)
        st = read_architecture(&part, &meta, err);
    if (st == STATUS_OK)
        st = read_tensors(&part, err);
    if (st == STATUS_OK)
        st = read_splits(&part, &meta, err);
    if (st == STATUS_OK)
        st = gguf__config(ckpt, &meta, &ckpt->config, err);
    gguf__meta_deinit(&meta);
    free(part.reader);
    return st;
}

bool gguf_is_file(const char *path)
{
    const size_t size = strlen(path);

    return size > strlen(SUFFIX) && strcmp(path + size - strlen(SUFFIX), SUFFIX) == 0 &&
           file_exists(path) && !file_is_directory(path);
}

/* Of a split model any file may be given. */
static enum status gguf_open(struct ckpt *ckpt, struct err *err)
{
    struct file file = { .fd = -1 };
    enum status st = gguf__open_first(ckpt->path, &file, err);

    if (st == STATUS_OK)
        st = gguf__read(ckpt, &file, err);
    file_close(&file);
    return st;
}

const struct ckpt_format ckpt__format_gguf = {
    .name = "gguf",
    .what = "a GGUF file",
    .config_suffix = ": its metadata, read as a config.json",
    .matches = gguf_is_file,
    .open = gguf_open,
};
