/* offload/experts/routing_file.c - see routing_file.h. */
#include "offload/experts/routing_file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/size.h"

#define VERSION 1
#define COUNT_SUM_MAX (UINT64_C(1) << 24) /* then all are halved */
#define FILE_BYTES_MAX (64 * MIB)

struct header {
    char magic[8];
    uint32_t version, layer_count, expert_count, top_k, trace_count, zero;
    struct cache_hash fingerprint, hash;
};

static const char magic[8] = { 'L', 'G', 'H', 'T', 'R', 'O', 'U', 'T' };

static size_t token_bytes(const struct routing_data *data)
{
    return (size_t)data->layer_count * data->top_k * sizeof(data->trace[0]);
}

static size_t counts_bytes(const struct routing_data *data)
{
    return (size_t)data->layer_count * data->expert_count * sizeof(data->counts[0]);
}

uint64_t routing_data_bytes(uint32_t layer_count, uint32_t expert_count, uint32_t top_k)
{
    return (uint64_t)layer_count * (expert_count * sizeof(uint32_t) +
                                    (uint64_t)ROUTING_TRACE_TOKENS * top_k * sizeof(uint16_t));
}

enum status routing_data_init(struct routing_data *data, uint32_t layer_count,
                              uint32_t expert_count, uint32_t top_k, struct err *err)
{
    assert(layer_count > 0 && expert_count > 0 && top_k > 0 && top_k <= expert_count);
    *data = (struct routing_data){ layer_count, expert_count, top_k, NULL, 0, NULL, 0, 0 };
    if (expert_count > ROUTING_EXPERTS_MAX ||
        (uint64_t)layer_count * expert_count > ROUTING_COUNTS_MAX ||
        routing_data_bytes(layer_count, expert_count, top_k) > FILE_BYTES_MAX / 2)
        return err_set(err, STATUS_UNAVAILABLE,
                       "choices among %" PRIu32 " experts in %" PRIu32 " layers are not remembered",
                       expert_count, layer_count);
    data->counts = calloc(1, counts_bytes(data));
    data->trace = calloc(ROUTING_TRACE_TOKENS, token_bytes(data));
    if (data->counts != NULL && data->trace != NULL)
        return STATUS_OK;
    routing_data_deinit(data);
    return err_set(err, STATUS_NO_MEMORY, "no memory for what routers choose");
}

void routing_data_deinit(struct routing_data *data)
{
    free(data->trace);
    free(data->counts);
    *data = (struct routing_data){ 0 };
}

void routing_data_clear(struct routing_data *data)
{
    memset(data->counts, 0, counts_bytes(data));
    data->count_sum = 0;
    data->trace_count = data->trace_next = 0;
}

const uint16_t *routing_data_token(const struct routing_data *data, uint32_t index)
{
    const uint32_t first = data->trace_next + ROUTING_TRACE_TOKENS - data->trace_count;

    assert(index < data->trace_count);
    return data->trace + (size_t)((first + index) % ROUTING_TRACE_TOKENS) * data->layer_count *
                             data->top_k;
}

void routing_data_push(struct routing_data *data, const uint16_t *choices)
{
    memcpy((uint8_t *)data->trace + data->trace_next * token_bytes(data), choices,
           token_bytes(data));
    data->trace_next = (data->trace_next + 1) % ROUTING_TRACE_TOKENS;
    if (data->trace_count < ROUTING_TRACE_TOKENS)
        data->trace_count++;
}

void routing_data_count(struct routing_data *data, uint32_t layer, uint32_t expert)
{
    const size_t count = (size_t)data->layer_count * data->expert_count;

    assert(layer < data->layer_count && expert < data->expert_count);
    data->counts[(size_t)layer * data->expert_count + expert]++;
    if (++data->count_sum < COUNT_SUM_MAX)
        return;
    data->count_sum = 0;
    for (size_t i = 0; i < count; i++) {
        data->counts[i] /= 2;
        data->count_sum += data->counts[i];
    }
}

/* -- the file --------------------------------------------------------------------------------- */

static struct cache_hash hash_of(uint8_t *bytes, size_t size)
{
    struct header *header = (struct header *)(void *)bytes;

    memset(&header->hash, 0, sizeof(header->hash));
    return cache_hash_of(bytes, size);
}

static enum status check(uint8_t *bytes, size_t size, const struct cache_hash *fingerprint,
                         const struct routing_data *data, struct err *err)
{
    struct header header;
    struct cache_hash hash;

    static_assert(sizeof(header) == 64, "the header is 64 bytes");
    if (size < sizeof(header))
        return err_set(err, STATUS_BAD_INPUT, "%zu bytes, a header needs %zu", size,
                       sizeof(header));
    memcpy(&header, bytes, sizeof(header));
    if (memcmp(header.magic, magic, sizeof(magic)) != 0 || header.version != VERSION)
        return err_set(err, STATUS_BAD_INPUT, "no file of routers' choices of version %d", VERSION);
    if (header.layer_count != data->layer_count || header.expert_count != data->expert_count ||
        header.top_k != data->top_k || header.trace_count > ROUTING_TRACE_TOKENS)
        return err_set(err, STATUS_BAD_INPUT,
                       "%" PRIu32 " of %" PRIu32 " experts in %" PRIu32 " layers, %" PRIu32
                       " tokens; wanted are %" PRIu32 " of %" PRIu32 " in %" PRIu32, header.top_k,
                       header.expert_count, header.layer_count, header.trace_count, data->top_k,
                       data->expert_count, data->layer_count);
    if (size != sizeof(header) + counts_bytes(data) + header.trace_count * token_bytes(data))
        return err_set(err, STATUS_BAD_INPUT, "%zu bytes are not what its header says", size);
    if (memcmp(&header.fingerprint, fingerprint, sizeof(*fingerprint)) != 0)
        return err_set(err, STATUS_BAD_INPUT, "it is of another checkpoint");
    hash = hash_of(bytes, size);
    if (memcmp(&hash, &header.hash, sizeof(hash)) != 0)
        return err_set(err, STATUS_BAD_INPUT, "its hash is wrong");
    return STATUS_OK;
}

enum status routing_parse(const uint8_t *bytes, size_t size, const struct cache_hash *fingerprint,
                          struct routing_data *data, struct err *err)
{
    const size_t choice_count = (size_t)data->layer_count * data->top_k;
    uint8_t *copy = malloc(size + sizeof(struct header));
    struct header header;
    enum status st;

    routing_data_clear(data);
    if (copy == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu bytes", size);
    memcpy(copy, bytes, size);
    st = check(copy, size, fingerprint, data, err);
    if (st != STATUS_OK) {
        free(copy);
        return st;
    }
    memcpy(&header, bytes, sizeof(header));
    memcpy(data->counts, copy + sizeof(header), counts_bytes(data));
    memcpy(data->trace, copy + sizeof(header) + counts_bytes(data),
           header.trace_count * token_bytes(data));
    free(copy);
    for (size_t i = 0; i < (size_t)data->layer_count * data->expert_count; i++)
        data->count_sum += data->counts[i];
    for (size_t i = 0; i < header.trace_count * choice_count; i++) {
        if (data->trace[i] >= data->expert_count) {
            const unsigned expert = data->trace[i];

            routing_data_clear(data);
            return err_set(err, STATUS_BAD_INPUT, "expert %u of %" PRIu32, expert,
                           data->expert_count);
        }
    }
    data->trace_count = header.trace_count;
    data->trace_next = header.trace_count % ROUTING_TRACE_TOKENS;
    return STATUS_OK;
}

enum status routing_format(const struct routing_data *data, const struct cache_hash *fingerprint,
                           struct buf *out, struct err *err)
{
    struct header header = { .version = VERSION, .layer_count = data->layer_count,
                             .expert_count = data->expert_count, .top_k = data->top_k,
                             .trace_count = data->trace_count, .fingerprint = *fingerprint };
    struct cache_hash hash;
    enum status st;

    memcpy(header.magic, magic, sizeof(magic));
    st = buf_append(out, &header, sizeof(header), err);
    if (st == STATUS_OK)
        st = buf_append(out, data->counts, counts_bytes(data), err);
    for (uint32_t i = 0; i < data->trace_count && st == STATUS_OK; i++)
        st = buf_append(out, routing_data_token(data, i), token_bytes(data), err);
    if (st != STATUS_OK)
        return st;
    hash = hash_of((uint8_t *)out->data, out->size);
    memcpy((uint8_t *)out->data + offsetof(struct header, hash), &hash, sizeof(hash));
    return STATUS_OK;
}

enum status routing_file_read(const char *path, const struct cache_hash *fingerprint,
                              struct routing_data *data, struct err *err)
{
    struct buf bytes;
    enum status st;

    routing_data_clear(data);
    buf_init(&bytes, FILE_BYTES_MAX);
    st = file_read_all(path, &bytes, err);
    if (st == STATUS_OK) {
        st = routing_parse((const uint8_t *)bytes.data, bytes.size, fingerprint, data, err);
        if (st != STATUS_OK)
            st = err_prefix(err, st, "%s", path);
    }
    buf_deinit(&bytes);
    return st;
}

static enum status write_all(const char *path, const struct buf *bytes, struct err *err)
{
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    size_t done = 0;

    if (fd < 0)
        return err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
    while (done < bytes->size) {
        const ssize_t wrote = write(fd, bytes->data + done, bytes->size - done);

        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote <= 0) {
            (void)err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
            (void)close(fd);
            return STATUS_IO;
        }
        done += (size_t)wrote;
    }
    if (close(fd) != 0)
        return err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
    return STATUS_OK;
}

enum status routing_file_write(const char *path, const struct cache_hash *fingerprint,
                               const struct routing_data *data, struct err *err)
{
    struct buf bytes;
    char *temporary = NULL;
    enum status st;

    if (asprintf(&temporary, "%s.%ld.tmp", path, (long)getpid()) < 0)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for its name", path);
    buf_init(&bytes, FILE_BYTES_MAX);
    st = cache_folders_create(path, err);
    if (st == STATUS_OK)
        st = routing_format(data, fingerprint, &bytes, err);
    if (st == STATUS_OK)
        st = write_all(temporary, &bytes, err);
    if (st == STATUS_OK && rename(temporary, path) != 0)
        st = err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
    if (st != STATUS_OK)
        (void)unlink(temporary);
    buf_deinit(&bytes);
    free(temporary);
    return st;
}
