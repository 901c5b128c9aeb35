/* checkpoint/gguf/meta.c - the key-value pairs of a GGUF file.
 *
 *     pair     key (string), u32 type, value
 *     string   u64 size, bytes
 *     array    u32 type of the items, u64 count, items one behind the other
 *
 * Numbers and strings are kept. Of an array only its place is kept, since vocabularies have
 * hundreds of thousands of items; it is walked once, so that one that does not end inside the file
 * is refused here. Memory is bounded by GGUF_PAIRS_MAX and GGUF_KEPT_BYTES_MAX whatever the file
 * announces. Arrays of arrays, which the format allows, no program writes; they are refused. */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/gguf/gguf.h"

static const struct {
    const char *name;
    uint32_t bytes;   /* 0: not of one size */
    bool is_signed, is_integer;
} types[GGUF_TYPE_COUNT] = {
    [GGUF_UINT8] = { "uint8", 1, false, true },    [GGUF_INT8] = { "int8", 1, true, true },
    [GGUF_UINT16] = { "uint16", 2, false, true },  [GGUF_INT16] = { "int16", 2, true, true },
    [GGUF_UINT32] = { "uint32", 4, false, true },  [GGUF_INT32] = { "int32", 4, true, true },
    [GGUF_UINT64] = { "uint64", 8, false, true },  [GGUF_INT64] = { "int64", 8, true, true },
    [GGUF_FLOAT32] = { "float32", 4, true, false }, [GGUF_FLOAT64] = { "float64", 8, true, false },
    [GGUF_BOOL] = { "bool", 1, false, false },     [GGUF_STRING] = { "string", 0, false, false },
    [GGUF_ARRAY] = { "array", 0, false, false },
};

const char *gguf__type_name(enum gguf_type type)
{
    return types[type].name;
}

/* --- bytes ------------------------------------------------------------------------------------ */

enum status gguf__take(struct gguf_reader *reader, void *dst, uint64_t size, const char *what,
                       struct err *err)
{
    const struct file *const file = reader->file;
    uint8_t *to = dst;

    if (size > file->size_bytes - reader->at)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: truncated: %s at byte %" PRIu64 " takes %" PRIu64 " bytes, %" PRIu64
                       " are left",
                       file->path, what, reader->at, size, file->size_bytes - reader->at);
    if (dst == NULL) {
        reader->at += size;
        return STATUS_OK;
    }
    while (size > 0) {
        size_t piece;
        if (reader->at < reader->window_at ||
            reader->at - reader->window_at >= reader->window_size) {
            const uint64_t left = file->size_bytes - reader->at;
            const size_t window_size =
                left < GGUF_WINDOW_BYTES ? (size_t)left : (size_t)GGUF_WINDOW_BYTES;
            const enum status st =
                file_read_at(file, reader->at, reader->window, window_size, err);
            reader->window_size = st == STATUS_OK ? window_size : 0;
            reader->window_at = reader->at;
            if (st != STATUS_OK)
                return st;
        }
        piece = reader->window_size - (size_t)(reader->at - reader->window_at);
        piece = piece < size ? piece : (size_t)size;
        memcpy(to, reader->window + (reader->at - reader->window_at), piece);
        to += piece;
        reader->at += piece;
        size -= piece;
    }
    return STATUS_OK;
}

static uint64_t little_endian(const uint8_t *bytes, size_t size)
{
    uint64_t value = 0;

    for (size_t i = 0; i < size; i++)
        value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

enum status gguf__take_u32(struct gguf_reader *reader, const char *what, uint32_t *out,
                           struct err *err)
{
    uint8_t bytes[4];
    const enum status st = gguf__take(reader, bytes, sizeof(bytes), what, err);

    if (st == STATUS_OK)
        *out = (uint32_t)little_endian(bytes, sizeof(bytes));
    return st;
}

enum status gguf__take_u64(struct gguf_reader *reader, const char *what, uint64_t *out,
                           struct err *err)
{
    uint8_t bytes[8];
    const enum status st = gguf__take(reader, bytes, sizeof(bytes), what, err);

    if (st == STATUS_OK)
        *out = little_endian(bytes, sizeof(bytes));
    return st;
}

/* --- values ----------------------------------------------------------------------------------- */

static enum status take_type(struct gguf_reader *reader, const char *what,
                             enum gguf_type *type_out, struct err *err)
{
    uint32_t type = 0;
    enum status st = gguf__take_u32(reader, what, &type, err);

    if (st == STATUS_OK && type >= GGUF_TYPE_COUNT)
        st = err_set(err, STATUS_BAD_INPUT, "%s: %s has type %" PRIu32 ", types end at %d",
                     reader->file->path, what, type, GGUF_TYPE_COUNT - 1);
    if (st == STATUS_OK)
        *type_out = (enum gguf_type)type;
    return st;
}

static enum status take_number(struct gguf_reader *reader, enum gguf_type type, const char *what,
                               struct gguf_value *value, struct err *err)
{
    uint8_t bytes[8];
    const size_t size = types[type].bytes;
    const enum status st = gguf__take(reader, bytes, size, what, err);
    uint64_t bits;
    float single;

    if (st != STATUS_OK)
        return st;
    bits = little_endian(bytes, size);
    if (type == GGUF_BOOL && bits > 1)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: %s is a boolean of value %" PRIu64 ", 0 or 1 is wanted",
                       reader->file->path, what, bits);
    if (type == GGUF_FLOAT64) {
        memcpy(&value->number, &bits, sizeof(value->number));
        return STATUS_OK;
    }
    if (type == GGUF_FLOAT32) {
        const uint32_t half = (uint32_t)bits;
        memcpy(&single, &half, sizeof(single));
        value->number = (double)single;
        return STATUS_OK;
    }
    if (types[type].is_signed && size < 8 && (bits >> (8 * size - 1) & 1) != 0)
        bits |= ~UINT64_C(0) << (8 * size);
    value->too_large = !types[type].is_signed && bits > INT64_MAX;
    memcpy(&value->integer, &bits, sizeof(bits));
    value->number = value->too_large ? (double)bits : (double)value->integer;
    return STATUS_OK;
}

static enum status take_string(struct gguf_reader *reader, const char *what,
                               struct gguf_meta *meta, struct gguf_value *value, struct err *err)
{
    uint64_t size = 0;
    enum status st = gguf__take_u64(reader, what, &size, err);

    if (st != STATUS_OK)
        return st;
    if (size > GGUF_STRING_BYTES_MAX || meta->kept_bytes + size > GGUF_KEPT_BYTES_MAX)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: %s is a string of %" PRIu64 " bytes; at most %u are read, and %u of "
                       "all strings together",
                       reader->file->path, what, size, GGUF_STRING_BYTES_MAX, GGUF_KEPT_BYTES_MAX);
    meta->kept_bytes += size;
    value->string = malloc((size_t)size + 1);
    if (value->string == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for %s", reader->file->path, what);
    value->string[size] = '\0';
    value->string_size = (size_t)size;
    return gguf__take(reader, value->string, size, what, err);
}

/* Walks an array's strings. */
static enum status pass_strings(struct gguf_reader *reader, uint64_t count, const char *what,
                                struct err *err)
{
    enum status st = STATUS_OK;

    for (uint64_t i = 0; st == STATUS_OK && i < count; i++) {
        uint64_t size = 0;
        st = gguf__take_u64(reader, what, &size, err);
        if (st == STATUS_OK && size > GGUF_STRING_BYTES_MAX)
            st = err_set(err, STATUS_BAD_INPUT,
                         "%s: item %" PRIu64 " of %s is a string of %" PRIu64
                         " bytes, at most %u are read",
                         reader->file->path, i, what, size, GGUF_STRING_BYTES_MAX);
        if (st == STATUS_OK)
            st = gguf__take(reader, NULL, size, what, err);
    }
    return st;
}

/* Walks an array's integers to see whether they are all the same. */
static enum status compare_items(struct gguf_reader *reader, const char *what,
                                 struct gguf_value *value, struct err *err)
{
    struct gguf_value item = { .type = value->item_type };
    enum status st = STATUS_OK;

    value->items_equal = value->item_count > 0;
    for (uint64_t i = 0; st == STATUS_OK && i < value->item_count; i++) {
        st = take_number(reader, value->item_type, what, &item, err);
        if (i == 0) {
            value->integer = item.integer;
            value->too_large = item.too_large;
        }
        value->items_equal = value->items_equal && item.integer == value->integer;
    }
    return st;
}

static enum status take_array(struct gguf_reader *reader, const char *what,
                              struct gguf_value *value, struct err *err)
{
    const struct file *const file = reader->file;
    uint64_t item_bytes;
    enum status st = take_type(reader, what, &value->item_type, err);

    if (st == STATUS_OK)
        st = gguf__take_u64(reader, what, &value->item_count, err);
    if (st != STATUS_OK)
        return st;
    if (value->item_type == GGUF_ARRAY)
        return err_set(err, STATUS_BAD_INPUT, "%s: %s is an array of arrays, which is not read",
                       file->path, what);
    value->items_at = reader->at;
    item_bytes = value->item_type == GGUF_STRING ? 8 : types[value->item_type].bytes;
    if (value->item_count > (file->size_bytes - reader->at) / item_bytes)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: truncated: %s announces %" PRIu64 " items of type %s, %" PRIu64
                       " bytes are left",
                       file->path, what, value->item_count, types[value->item_type].name,
                       file->size_bytes - reader->at);
    if (value->item_type == GGUF_STRING)
        return pass_strings(reader, value->item_count, what, err);
    if (types[value->item_type].is_integer && value->item_count <= GGUF_COMPARED_ITEMS_MAX)
        return compare_items(reader, what, value, err);
    return gguf__take(reader, NULL, value->item_count * item_bytes, what, err);
}

/* --- pairs ------------------------------------------------------------------------------------ */

/* Into key[GGUF_KEY_BYTES_MAX + 1]. */
static enum status take_key(struct gguf_reader *reader, uint64_t index, char *key,
                            size_t *key_size_out, struct err *err)
{
    uint64_t size = 0;
    char what[64];
    enum status st;

    (void)snprintf(what, sizeof(what), "key %" PRIu64 " of the metadata", index);
    st = gguf__take_u64(reader, what, &size, err);
    if (st == STATUS_OK && (size == 0 || size > GGUF_KEY_BYTES_MAX))
        st = err_set(err, STATUS_BAD_INPUT, "%s: %s has %" PRIu64 " bytes, 1 to %u are allowed",
                     reader->file->path, what, size, GGUF_KEY_BYTES_MAX);
    if (st == STATUS_OK)
        st = gguf__take(reader, key, size, what, err);
    if (st != STATUS_OK)
        return st;
    key[size] = '\0';
    for (uint64_t i = 0; i < size; i++)
        if ((unsigned char)key[i] < 0x20 || (unsigned char)key[i] >= 0x7F)
            return err_set(err, STATUS_BAD_INPUT, "%s: %s has the byte 0x%02X in it",
                           reader->file->path, what, (unsigned char)key[i]);
    *key_size_out = (size_t)size;
    return STATUS_OK;
}

static enum status read_pair(struct gguf_reader *reader, uint64_t index, struct gguf_meta *meta,
                             struct err *err)
{
    struct gguf_value *const value = &meta->values[meta->count];
    const uint64_t pair_at = reader->at;
    char key[GGUF_KEY_BYTES_MAX + 1];
    size_t key_size = 0;
    enum status st = take_key(reader, index, key, &key_size, err);

    if (st != STATUS_OK)
        return st;
    if (map_get(meta->index_by_key, key, key_size, NULL))
        return err_set(err, STATUS_BAD_INPUT, "%s: the key %s is there twice", reader->file->path,
                       key);
    st = map_set(meta->index_by_key, key, key_size, meta->count, err);
    if (st != STATUS_OK)
        return st;
    memset(value, 0, sizeof(*value));
    meta->count++;
    st = take_type(reader, key, &value->type, err);
    if (st != STATUS_OK)
        return st;
    if (value->type == GGUF_STRING)
        st = take_string(reader, key, meta, value, err);
    else if (value->type == GGUF_ARRAY)
        st = take_array(reader, key, value, err);
    else
        st = take_number(reader, value->type, key, value, err);
    value->pair_at = pair_at;
    value->pair_bytes = reader->at - pair_at;
    return st;
}

enum status gguf__meta_read(struct gguf_reader *reader, uint64_t pair_count,
                            struct gguf_meta *meta_out, struct err *err)
{
    size_t capacity = 0;
    enum status st;

    *meta_out = (struct gguf_meta){ .count = 0 };
    if (pair_count > GGUF_PAIRS_MAX)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: announces %" PRIu64 " metadata pairs, at most %u are read",
                       reader->file->path, pair_count, GGUF_PAIRS_MAX);
    st = map_create(0, &meta_out->index_by_key, err);
    for (uint64_t i = 0; st == STATUS_OK && i < pair_count; i++) {
        if (meta_out->count == capacity) {
            struct gguf_value *values;
            capacity = capacity == 0 ? 64 : 2 * capacity;
            values = reallocarray(meta_out->values, capacity, sizeof(*values));
            if (values == NULL)
                return err_set(err, STATUS_NO_MEMORY, "%s: no memory for %zu metadata pairs",
                               reader->file->path, capacity);
            meta_out->values = values;
        }
        st = read_pair(reader, i, meta_out, err);
        if (st == STATUS_OK && reader->at > GGUF_META_BYTES_MAX)
            st = err_set(err, STATUS_BAD_INPUT,
                         "%s: its metadata goes past byte %" PRIu64 ", at most %" PRIu64
                         " bytes are read",
                         reader->file->path, reader->at, GGUF_META_BYTES_MAX);
    }
    return st;
}

void gguf__meta_deinit(struct gguf_meta *meta)
{
    for (size_t i = 0; i < meta->count; i++)
        free(meta->values[i].string);
    free(meta->values);
    map_destroy(meta->index_by_key);
    *meta = (struct gguf_meta){ .count = 0 };
}

const struct gguf_value *gguf__find(const struct gguf_meta *meta, const char *key)
{
    uint64_t index;

    return map_get(meta->index_by_key, key, strlen(key), &index) ? &meta->values[index] : NULL;
}

enum status gguf__get_count(const struct gguf_meta *meta, const char *path, const char *key,
                            uint64_t max, uint64_t *out, struct err *err)
{
    const struct gguf_value *const value = gguf__find(meta, key);

    if (value == NULL)
        return STATUS_OK;
    if (!types[value->type].is_integer)
        return err_set(err, STATUS_BAD_INPUT, "%s: %s is of type %s, an integer is wanted", path,
                       key, types[value->type].name);
    if (value->too_large || value->integer < 0 || (uint64_t)value->integer > max)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: %s is %.0f, it must be from 0 to %" PRIu64, path, key, value->number,
                       max);
    *out = (uint64_t)value->integer;
    return STATUS_OK;
}

enum status gguf__get_string(const struct gguf_meta *meta, const char *path, const char *key,
                             const char **out, struct err *err)
{
    const struct gguf_value *const value = gguf__find(meta, key);

    if (value == NULL)
        return STATUS_OK;
    if (value->type != GGUF_STRING)
        return err_set(err, STATUS_BAD_INPUT, "%s: %s is of type %s, a string is wanted", path,
                       key, types[value->type].name);
    if (strlen(value->string) != value->string_size)
        return err_set(err, STATUS_BAD_INPUT, "%s: %s has a NUL in it", path, key);
    *out = value->string;
    return STATUS_OK;
}
