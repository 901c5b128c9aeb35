/* text/tokenizer/vocab.c - the model's tokens, found by string and by id.
 *
 * All strings lie in one block, so that 128k tokens cost a handful of allocations. The table of
 * strings has at least twice as many slots as tokens. */
#include "text/tokenizer/internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

/* FNV-1a (http://www.isthe.com/chongo/tech/comp/fnv/), with the high bits folded in. */
static uint32_t hash_string(const char *bytes, size_t size)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);

    for (size_t i = 0; i < size; i++)
        hash = (hash ^ (unsigned char)bytes[i]) * UINT64_C(0x100000001b3);
    hash *= UINT64_C(0x9e3779b97f4a7c15);
    return (uint32_t)(hash >> 32);
}

/* Checks every entry; the sums are what the block and the tables need. */
static enum status measure(const json_t *object, const char *what, size_t *bytes_out,
                           uint32_t *id_limit_out, struct err *err)
{
    size_t bytes = 0;
    json_int_t id_limit = 0;
    const char *key;
    json_t *value;

    if (json_object_size(object) > TOKEN_COUNT_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: vocab has %zu tokens, at most %zu are taken",
                       what, json_object_size(object), TOKEN_COUNT_MAX);
    json_object_foreach((json_t *)object, key, value) {
        const size_t size = strlen(key);
        const json_int_t id = json_integer_value(value);

        if (!json_is_integer(value) || id < 0 || id > TOKEN_ID_MAX)
            return err_set(err, STATUS_BAD_INPUT,
                           "%s: vocab: the id of \"%.64s\" is not an integer from 0 to %d", what,
                           key, TOKEN_ID_MAX);
        if (size > TOKEN_BYTES_MAX)
            return err_set(err, STATUS_BAD_INPUT,
                           "%s: vocab: token %" JSON_INTEGER_FORMAT
                           " has %zu bytes, at most %zu are taken",
                           what, id, size, TOKEN_BYTES_MAX);
        bytes += size;
        if (id >= id_limit)
            id_limit = id + 1;
    }
    if (bytes > UINT32_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: vocab: the tokens have more than 4 GiB", what);
    *bytes_out = bytes;
    *id_limit_out = (uint32_t)id_limit;
    return STATUS_OK;
}

static void insert(struct vocab *vocab, uint32_t index)
{
    const struct vocab_entry *entry = &vocab->entries[index];
    uint32_t i = hash_string(vocab->bytes + entry->offset, entry->size) & vocab->slot_mask;

    while (vocab->slots[i] != 0)
        i = (i + 1) & vocab->slot_mask;
    vocab->slots[i] = index + 1;
}

enum status vocab_init(struct vocab *vocab, const json_t *object, const char *what,
                       struct err *err)
{
    size_t bytes = 0;
    size_t slot_count = 16;
    uint32_t offset = 0;
    const char *key;
    json_t *value;
    enum status st;

    if (!json_is_object(object))
        return err_set(err, STATUS_BAD_INPUT, "%s: \"vocab\" is %s, an object is wanted", what,
                       json_kind(object));
    st = measure(object, what, &bytes, &vocab->id_limit, err);
    if (st != STATUS_OK)
        return st;
    while (slot_count < 2 * json_object_size(object))
        slot_count *= 2;
    vocab->slot_mask = (uint32_t)(slot_count - 1);
    vocab->bytes = malloc(bytes + 1);
    vocab->entries = calloc(json_object_size(object) + 1, sizeof(*vocab->entries));
    vocab->slots = calloc(slot_count, sizeof(*vocab->slots));
    vocab->by_id = calloc((size_t)vocab->id_limit + 1, sizeof(*vocab->by_id));
    if (vocab->bytes == NULL || vocab->entries == NULL || vocab->slots == NULL ||
        vocab->by_id == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for %zu tokens", what,
                       json_object_size(object));
    json_object_foreach((json_t *)object, key, value) {
        const uint32_t index = vocab->entry_count;
        const int32_t id = (int32_t)json_integer_value(value);

        vocab->entries[index] = (struct vocab_entry){ offset, (uint32_t)strlen(key), id };
        memcpy(vocab->bytes + offset, key, vocab->entries[index].size);
        offset += vocab->entries[index].size;
        insert(vocab, index);
        if (vocab->by_id[id] == 0) /* of two tokens with one id the first decodes */
            vocab->by_id[id] = index + 1;
        vocab->entry_count++;
    }
    vocab->bytes[offset] = '\0';
    return STATUS_OK;
}

void vocab_deinit(struct vocab *vocab)
{
    free(vocab->bytes);
    free(vocab->entries);
    free(vocab->slots);
    free(vocab->by_id);
    *vocab = (struct vocab){ 0 };
}

int32_t vocab_find(const struct vocab *vocab, const char *bytes, size_t size)
{
    uint32_t i = hash_string(bytes, size) & vocab->slot_mask;

    for (; vocab->slots[i] != 0; i = (i + 1) & vocab->slot_mask) {
        const struct vocab_entry *entry = &vocab->entries[vocab->slots[i] - 1];
        if (entry->size == size && memcmp(vocab->bytes + entry->offset, bytes, size) == 0)
            return entry->id;
    }
    return -1;
}

const char *vocab_string(const struct vocab *vocab, int32_t id, size_t *size_out)
{
    const struct vocab_entry *entry;

    if (id < 0 || (uint32_t)id >= vocab->id_limit || vocab->by_id[id] == 0)
        return NULL;
    entry = &vocab->entries[vocab->by_id[id] - 1];
    *size_out = entry->size;
    return vocab->bytes + entry->offset;
}
