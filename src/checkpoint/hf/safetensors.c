/* checkpoint/hf/safetensors.c - the header of one safetensors file.
 *
 * The format (https://github.com/huggingface/safetensors, README.md, "Format"; checked as its
 * implementation 0.8 does, safetensors/src/tensor.rs):
 *
 *     8 bytes     N, the header's size, little endian; at most 100 MB
 *     N bytes     a JSON object in UTF-8 that starts with '{' and may end in white space:
 *                   "NAME": { "dtype": "BF16", "shape": [2, 3], "data_offsets": [BEGIN, END] }, ...
 *                   "__metadata__": { "KEY": "VALUE", ... }      (optional, strings only)
 *     the rest    the tensors' bytes, little endian, row major; offsets count from here
 *
 * The tensors cover the rest completely: they neither overlap nor leave holes, and END - BEGIN is
 * what dtype and shape come to. All of that is checked before a tensor is added. */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/json.h"
#include "base/size.h"
#include "checkpoint/internal.h"
#include "checkpoint/members.h"

#define ENTRY_BYTES_MAX 4096 /* of a tensor's JSON; a usual one takes some 80 */
#define METADATA_NAME "__metadata__"

/* Every dtype that the format knows, with its bits. */
static const struct {
    const char *name;
    uint32_t bits;
    enum dtype dtype; /* DTYPE_COUNT: none of ours */
} dtypes[] = {
    { "F32", 32, DTYPE_F32 },        { "F16", 16, DTYPE_F16 },       { "BF16", 16, DTYPE_BF16 },
    { "I32", 32, DTYPE_I32 },        { "BOOL", 8, DTYPE_COUNT },     { "F4", 4, DTYPE_COUNT },
    { "F6_E2M3", 6, DTYPE_COUNT },   { "F6_E3M2", 6, DTYPE_COUNT },  { "U8", 8, DTYPE_COUNT },
    { "I8", 8, DTYPE_COUNT },        { "F8_E5M2", 8, DTYPE_COUNT },  { "F8_E4M3", 8, DTYPE_COUNT },
    { "F8_E8M0", 8, DTYPE_COUNT },   { "F8_E4M3FNUZ", 8, DTYPE_COUNT },
    { "F8_E5M2FNUZ", 8, DTYPE_COUNT }, { "I16", 16, DTYPE_COUNT },   { "U16", 16, DTYPE_COUNT },
    { "U32", 32, DTYPE_COUNT },      { "F64", 64, DTYPE_COUNT },     { "I64", 64, DTYPE_COUNT },
    { "U64", 64, DTYPE_COUNT },      { "C64", 64, DTYPE_COUNT },
};
#define NO_DTYPE (sizeof(dtypes) / sizeof(dtypes[0]))

static size_t find_dtype(const char *name)
{
    size_t i = 0;

    while (i < NO_DTYPE && strcmp(name, dtypes[i].name) != 0)
        i++;
    return i;
}

enum status safetensors__header_bytes(const struct file *file,
                                      const uint8_t prefix[SAFETENSORS_PREFIX_BYTES],
                                      size_t *size_bytes_out, struct err *err)
{
    uint64_t size_bytes = 0;

    for (size_t i = 0; i < SAFETENSORS_PREFIX_BYTES; i++)
        size_bytes |= (uint64_t)prefix[i] << (8 * i);
    if (size_bytes > SAFETENSORS_HEADER_BYTES_MAX)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: not a safetensors file: its first 8 bytes announce a header of %" PRIu64
                       " bytes, at most %u are allowed",
                       file->path, size_bytes, SAFETENSORS_HEADER_BYTES_MAX);
    if (size_bytes > file->size_bytes - SAFETENSORS_PREFIX_BYTES)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: truncated: a header of %" PRIu64 " bytes is announced, %" PRIu64
                       " bytes follow",
                       file->path, size_bytes, file->size_bytes - SAFETENSORS_PREFIX_BYTES);
    *size_bytes_out = (size_t)size_bytes;
    return STATUS_OK;
}

/* "__metadata__": free for its writers, but strings; or null. */
static enum status check_metadata(const char *file_path, const struct member *metadata,
                                  struct err *err)
{
    struct members members;
    struct member member;
    bool more = true;
    char what[512];
    enum status st;

    if (metadata->value_size == 4 && memcmp(metadata->value, "null", 4) == 0)
        return STATUS_OK;
    (void)snprintf(what, sizeof(what), "%s: " METADATA_NAME, file_path);
    members_init(&members, metadata->value, metadata->value_size, what);
    for (;;) {
        json_t *string;
        st = members_next(&members, &member, &more, err);
        if (st != STATUS_OK || !more)
            return st;
        st = members_string(&members, member.key, member.key_size, &string, err);
        if (st != STATUS_OK)
            return st;
        json_decref(string);
        st = members_string(&members, member.value, member.value_size, &string, err);
        if (st != STATUS_OK)
            return st;
        json_decref(string);
    }
}

static enum status read_dtype(const json_t *entry, const char *what, size_t *dtype_out,
                              struct err *err)
{
    const char *name = NULL;
    enum status st = json_get_string(entry, "dtype", what, &name, err);

    if (st != STATUS_OK)
        return st;
    if (name == NULL)
        return err_set(err, STATUS_BAD_INPUT, "%s: \"dtype\" is missing", what);
    *dtype_out = find_dtype(name);
    if (*dtype_out == NO_DTYPE)
        return err_set(err, STATUS_BAD_INPUT, "%s: dtype '%.40s' is unknown", what, name);
    return STATUS_OK;
}

/* Reads an array of `count_max` integers, 0 or more each, into out. */
static enum status read_sizes(const json_t *entry, const char *key, const char *what,
                              size_t count_max, uint64_t *out, size_t *count_out, struct err *err)
{
    const json_t *array = NULL;
    enum status st = json_get_array(entry, key, what, &array, err);

    if (st != STATUS_OK)
        return st;
    if (array == NULL)
        return err_set(err, STATUS_BAD_INPUT, "%s: \"%s\" is missing", what, key);
    if (json_array_size(array) > count_max)
        return err_set(err, STATUS_BAD_INPUT, "%s: \"%s\" has %zu numbers, at most %zu are read",
                       what, key, json_array_size(array), count_max);
    for (size_t i = 0; i < json_array_size(array); i++) {
        const json_t *const number = json_array_get(array, i);
        if (!json_is_integer(number))
            return err_set(err, STATUS_BAD_INPUT, "%s: \"%s\"[%zu] is %s, an integer is wanted",
                           what, key, i, json_kind(number));
        if (json_integer_value(number) < 0)
            return err_set(err, STATUS_BAD_INPUT, "%s: \"%s\"[%zu] is %" PRId64 ", below 0", what,
                           key, i, (int64_t)json_integer_value(number));
        out[i] = (uint64_t)json_integer_value(number);
    }
    *count_out = json_array_size(array);
    return STATUS_OK;
}

/* The bytes of tensor's shape in dtype. A zero makes the product 0 wherever it stands, so it is
 * looked for first: [2^40, 2^40, 0] is empty and does not overflow. */
static enum status shape_bytes(const struct ckpt_tensor *tensor, size_t dtype, const char *what,
                               uint64_t *bytes_out, struct err *err)
{
    uint64_t bits = dtypes[dtype].bits;
    char shape[96];

    for (uint32_t i = 0; i < tensor->rank; i++)
        if (tensor->shape[i] == 0)
            bits = 0;
    for (uint32_t i = 0; i < tensor->rank; i++)
        if (!size_mul(bits, tensor->shape[i], &bits))
            return err_set(err, STATUS_BAD_INPUT, "%s: the size of %s %s overflows", what,
                           dtypes[dtype].name,
                           tensor_shape_format(tensor->rank, tensor->shape, shape, sizeof(shape)));
    if (bits % 8 != 0)
        return err_set(err, STATUS_BAD_INPUT, "%s: %s %s is %" PRIu64 " bits, not whole bytes",
                       what, dtypes[dtype].name,
                       tensor_shape_format(tensor->rank, tensor->shape, shape, sizeof(shape)),
                       bits);
    *bytes_out = bits / 8;
    return STATUS_OK;
}

static enum status read_entry(const json_t *entry, const char *what, uint64_t data_bytes,
                              struct ckpt_tensor *tensor_out, struct err *err)
{
    struct ckpt_tensor tensor = { .name = NULL };
    uint64_t offsets[2];
    uint64_t bytes = 0;
    size_t count;
    size_t dtype = NO_DTYPE;
    char shape[96];
    enum status st = read_dtype(entry, what, &dtype, err);

    if (st != STATUS_OK)
        return st;
    tensor.dtype = dtypes[dtype].dtype;
    tensor.dtype_name = dtypes[dtype].name;
    for (size_t i = 0; i < TENSOR_RANK_MAX; i++)
        tensor.shape[i] = 1;
    st = read_sizes(entry, "shape", what, TENSOR_RANK_MAX, tensor.shape, &count, err);
    if (st != STATUS_OK)
        return st;
    tensor.rank = (uint32_t)count;
    st = shape_bytes(&tensor, dtype, what, &bytes, err);
    if (st != STATUS_OK)
        return st;
    st = read_sizes(entry, "data_offsets", what, 2, offsets, &count, err);
    if (st != STATUS_OK)
        return st;
    if (count != 2)
        return err_set(err, STATUS_BAD_INPUT, "%s: \"data_offsets\" has %zu numbers, 2 are wanted",
                       what, count);
    if (offsets[0] > offsets[1] || offsets[1] > data_bytes)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: bytes %" PRIu64 " to %" PRIu64 " are not inside the file's %" PRIu64
                       " bytes of data",
                       what, offsets[0], offsets[1], data_bytes);
    if (offsets[1] - offsets[0] != bytes)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: has %" PRIu64 " bytes (%" PRIu64 " to %" PRIu64
                       "), %s %s takes %" PRIu64,
                       what, offsets[1] - offsets[0], offsets[0], offsets[1], dtypes[dtype].name,
                       tensor_shape_format(tensor.rank, tensor.shape, shape, sizeof(shape)), bytes);
    tensor.offset_bytes = offsets[0];
    tensor.size_bytes = bytes;
    *tensor_out = tensor;
    return STATUS_OK;
}

/* Parses and adds one member that is a tensor. Offsets of data start at data_offset_bytes. */
static enum status add_member(struct ckpt *ckpt, uint32_t file_index, uint64_t data_offset_bytes,
                              const struct member *member, const json_t *name, struct err *err)
{
    const struct file *const file = &ckpt->files[file_index];
    struct ckpt_tensor tensor;
    json_t *entry;
    char what[768];
    enum status st;

    (void)snprintf(what, sizeof(what), "%s: tensor '%.*s'", file->path, CKPT_NAME_BYTES_MAX,
                   json_string_value(name));
    if (member->value_size > ENTRY_BYTES_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: its entry has %zu bytes, at most %d are read",
                       what, member->value_size, ENTRY_BYTES_MAX);
    if (member->value[0] != '{')
        return err_set(err, STATUS_BAD_INPUT, "%s: its entry is not an object", what);
    st = json_read(member->value, member->value_size, what, &entry, err);
    if (st != STATUS_OK)
        return st;
    st = read_entry(entry, what, file->size_bytes - data_offset_bytes, &tensor, err);
    json_decref(entry);
    if (st != STATUS_OK)
        return st;
    tensor.file_index = file_index;
    tensor.offset_bytes += data_offset_bytes;
    return ckpt__add_tensor(ckpt, &tensor, json_string_value(name), json_string_length(name), err);
}

/* The file's tensors, sorted, must cover its data from data_offset_bytes to the end. */
static enum status check_holes(const struct ckpt *ckpt, const struct file *file, size_t first,
                               uint64_t data_offset_bytes, struct err *err)
{
    uint64_t end_bytes = data_offset_bytes;

    for (size_t i = first; i < ckpt->tensor_count; i++) {
        const struct ckpt_tensor *const tensor = &ckpt->tensors[i];
        if (tensor->offset_bytes != end_bytes)
            return err_set(err, STATUS_BAD_INPUT,
                           "%s: no tensor covers the %" PRIu64
                           " bytes before tensor '%s' at %" PRIu64,
                           file->path, tensor->offset_bytes - end_bytes, tensor->name,
                           tensor->offset_bytes);
        end_bytes += tensor->size_bytes;
    }
    if (end_bytes != file->size_bytes)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: the tensors end at byte %" PRIu64 ", the file at %" PRIu64, file->path,
                       end_bytes, file->size_bytes);
    return STATUS_OK;
}

enum status safetensors__parse(struct ckpt *ckpt, uint32_t file_index, const char *header,
                               size_t size_bytes, struct err *err)
{
    const struct file *const file = &ckpt->files[file_index];
    const uint64_t data_offset_bytes = SAFETENSORS_PREFIX_BYTES + (uint64_t)size_bytes;
    const size_t first = ckpt->tensor_count;
    struct members members;
    struct member member;
    bool metadata_seen = false;
    char what[512];
    enum status st;

    assert(data_offset_bytes <= file->size_bytes);
    (void)snprintf(what, sizeof(what), "%s: header", file->path);
    members_init(&members, header, size_bytes, what);
    for (;;) {
        json_t *name = NULL;
        bool more;
        st = members_next(&members, &member, &more, err);
        if (st != STATUS_OK)
            return st;
        if (!more)
            break;
        st = members_string(&members, member.key, member.key_size, &name, err);
        if (st != STATUS_OK)
            return st;
        if (strcmp(json_string_value(name), METADATA_NAME) != 0)
            st = add_member(ckpt, file_index, data_offset_bytes, &member, name, err);
        else if (metadata_seen)
            st = err_set(err, STATUS_BAD_INPUT, "%s: " METADATA_NAME " is there twice", what);
        else
            st = check_metadata(file->path, &member, err);
        metadata_seen |= strcmp(json_string_value(name), METADATA_NAME) == 0;
        json_decref(name);
        if (st != STATUS_OK)
            return st;
    }
    st = ckpt__sort_file(ckpt, first, err);
    return st == STATUS_OK ? check_holes(ckpt, file, first, data_offset_bytes, err) : st;
}

enum status safetensors__read(struct ckpt *ckpt, uint32_t file_index, struct err *err)
{
    const struct file *const file = &ckpt->files[file_index];
    uint8_t prefix[SAFETENSORS_PREFIX_BYTES];
    struct buf header;
    size_t size_bytes = 0;
    enum status st;

    if (file->size_bytes < SAFETENSORS_PREFIX_BYTES)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: not a safetensors file: %" PRIu64 " bytes, at least %u are needed",
                       file->path, file->size_bytes, SAFETENSORS_PREFIX_BYTES);
    st = file_read_at(file, 0, prefix, sizeof(prefix), err);
    if (st == STATUS_OK)
        st = safetensors__header_bytes(file, prefix, &size_bytes, err);
    if (st != STATUS_OK)
        return st;
    buf_init(&header, SAFETENSORS_HEADER_BYTES_MAX);
    st = buf_reserve(&header, size_bytes, err);
    if (st == STATUS_OK)
        st = file_read_at(file, SAFETENSORS_PREFIX_BYTES, header.data, size_bytes, err);
    if (st == STATUS_OK)
        st = safetensors__parse(ckpt, file_index, header.data, size_bytes, err);
    buf_deinit(&header);
    return st;
}
