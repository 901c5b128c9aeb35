/* checkpoint/gguf/header.c - see header.h. */
#include "checkpoint/gguf/header.h"

#include <assert.h>
#include <string.h>

#include "base/size.h"
#include "checkpoint/gguf/gguf.h"

#define VERSION 3u

void gguf__header_init(struct gguf_header *header, struct err *err)
{
    *header = (struct gguf_header){ .status = STATUS_OK, .err = err };
    buf_init(&header->pairs, GGUF_META_BYTES_MAX);
    buf_init(&header->tensors, GGUF_META_BYTES_MAX);
}

void gguf__header_deinit(struct gguf_header *header)
{
    buf_deinit(&header->pairs);
    buf_deinit(&header->tensors);
}

static void append(struct gguf_header *header, struct buf *to, const void *bytes, size_t size)
{
    if (header->status == STATUS_OK)
        header->status = buf_append(to, bytes, size, header->err);
}

/* Little endian, as all that this program reads and writes. */
static void append_integer(struct gguf_header *header, struct buf *to, uint64_t value, size_t size)
{
    uint8_t bytes[8];

    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(value >> 8 * i);
    append(header, to, bytes, size);
}

static void append_text(struct gguf_header *header, struct buf *to, const char *text, size_t size)
{
    append_integer(header, to, size, 8);
    append(header, to, text, size);
}

static void begin_pair(struct gguf_header *header, const char *key, enum gguf_type type)
{
    append_text(header, &header->pairs, key, strlen(key));
    append_integer(header, &header->pairs, type, 4);
    header->pair_count++;
}

void gguf__write_count(struct gguf_header *header, const char *key, uint64_t count)
{
    if (header->status == STATUS_OK && count > UINT32_MAX)
        header->status = err_set(header->err, STATUS_BAD_INPUT,
                                 "%s would be above what 32 bits hold", key);
    begin_pair(header, key, GGUF_UINT32);
    append_integer(header, &header->pairs, count, 4);
}

void gguf__write_number(struct gguf_header *header, const char *key, double number)
{
    const float single = (float)number;
    uint32_t bits;

    memcpy(&bits, &single, sizeof(bits));
    begin_pair(header, key, GGUF_FLOAT32);
    append_integer(header, &header->pairs, bits, 4);
}

void gguf__write_bool(struct gguf_header *header, const char *key, bool value)
{
    begin_pair(header, key, GGUF_BOOL);
    append_integer(header, &header->pairs, value ? 1 : 0, 1);
}

void gguf__write_string(struct gguf_header *header, const char *key, const char *text, size_t size)
{
    begin_pair(header, key, GGUF_STRING);
    append_text(header, &header->pairs, text, size);
}

void gguf__write_split(struct gguf_header *header, uint64_t number, uint64_t count,
                       uint64_t tensor_count)
{
    const size_t before = header->pairs.size;

    begin_pair(header, "split.no", GGUF_UINT16);
    append_integer(header, &header->pairs, number, 2);
    begin_pair(header, "split.count", GGUF_UINT16);
    append_integer(header, &header->pairs, count, 2);
    begin_pair(header, "split.tensors.count", GGUF_INT32);
    append_integer(header, &header->pairs, tensor_count, 4);
    assert(header->status != STATUS_OK ||
           header->pairs.size - before == GGUF_SPLIT_PAIRS_BYTES);
    (void)before;
}

uint64_t gguf__header_bytes(uint64_t pairs_bytes, uint64_t tensors_bytes)
{
    return size_align_up(4 + 4 + 8 + 8 + pairs_bytes + tensors_bytes, GGUF_ALIGNMENT);
}

uint64_t gguf__tensor_bytes(const char *name, uint32_t rank)
{
    return 8 + strlen(name) + 4 + 8 * (uint64_t)rank + 4 + 8;
}

void gguf__write_raw(struct gguf_header *header, const void *bytes, size_t size, uint64_t count)
{
    append(header, &header->pairs, bytes, size);
    header->pair_count += count;
}

void gguf__write_array(struct gguf_header *header, const char *key, uint32_t item_type,
                     uint64_t count)
{
    begin_pair(header, key, GGUF_ARRAY);
    append_integer(header, &header->pairs, item_type, 4);
    append_integer(header, &header->pairs, count, 8);
}

void gguf__write_text_item(struct gguf_header *header, const char *text, size_t size)
{
    append_text(header, &header->pairs, text, size);
}

void gguf__write_item(struct gguf_header *header, const void *item, size_t size)
{
    append(header, &header->pairs, item, size);
}

void gguf__write_tensor(struct gguf_header *header, const char *name, enum dtype dtype,
                      uint32_t rank, const uint64_t *shape, uint64_t size_bytes)
{
    uint32_t number = 0;
    const bool found = gguf__find_type(dtype, &number);

    assert(found);
    (void)found;
    append_text(header, &header->tensors, name, strlen(name));
    append_integer(header, &header->tensors, rank, 4);
    for (uint32_t i = 0; i < rank; i++)
        append_integer(header, &header->tensors, shape[rank - 1 - i], 8);
    append_integer(header, &header->tensors, number, 4);
    append_integer(header, &header->tensors, header->data_bytes, 8);
    header->data_bytes += size_align_up(size_bytes, GGUF_ALIGNMENT);
    header->tensor_count++;
}

enum status gguf__header_end(struct gguf_header *header, struct buf *out, struct err *err)
{
    static const char zeros[GGUF_ALIGNMENT];
    const size_t begun = out->size;

    header->err = err;
    append(header, out, "GGUF", 4);
    append_integer(header, out, VERSION, 4);
    append_integer(header, out, header->tensor_count, 8);
    append_integer(header, out, header->pair_count, 8);
    append(header, out, header->pairs.data, header->pairs.size);
    append(header, out, header->tensors.data, header->tensors.size);
    append(header, out, zeros,
           (size_t)(size_align_up(out->size - begun, GGUF_ALIGNMENT) - (out->size - begun)));
    return header->status;
}
