/* device/shared.c - see shared.h. The pieces are few: one or two for each rank of a node. */
#include "device/shared.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/segment.h"

struct device__shared_piece {
    struct device__shared_piece *next;
    struct segment segment;
};

static_assert(sizeof(struct segment_handle) <= sizeof(((struct device_handle *)0)->opaque),
              "a handle has room for a segment's");

static struct device__shared_piece *piece_create(const char *device_name, struct err *err)
{
    struct device__shared_piece *piece = calloc(1, sizeof(*piece));

    if (piece == NULL)
        (void)err_set(err, STATUS_NO_MEMORY, "%s: no memory to note a shared piece", device_name);
    return piece;
}

/* Keeps the piece, or frees it after a failure. */
static void piece_keep(struct device__shared *shared, struct device__shared_piece *piece,
                       enum status st)
{
    if (st != STATUS_OK) {
        free(piece);
        return;
    }
    piece->next = shared->first;
    shared->first = piece;
}

enum status device__shared_create(struct device__shared *shared, const char *device_name,
                                  uint64_t size_bytes, void *address, void **memory_out,
                                  struct device_handle *handle_out, struct err *err)
{
    struct device__shared_piece *piece = piece_create(device_name, err);
    struct segment_handle handle;
    enum status st;

    if (piece == NULL)
        return STATUS_NO_MEMORY;
    st = segment_create(device_name, size_bytes, address, &piece->segment, err);
    if (st == STATUS_OK) {
        segment_handle(&piece->segment, &handle);
        memcpy(handle_out->opaque, &handle, sizeof(handle));
        *memory_out = piece->segment.memory;
    }
    piece_keep(shared, piece, st);
    return st;
}

enum status device__shared_open(struct device__shared *shared, const char *device_name,
                                const struct device_handle *handle, const void **memory_out,
                                struct err *err)
{
    struct device__shared_piece *piece = piece_create(device_name, err);
    struct segment_handle segment_handle;
    enum status st;

    if (piece == NULL)
        return STATUS_NO_MEMORY;
    memcpy(&segment_handle, handle->opaque, sizeof(segment_handle));
    st = segment_open(device_name, &segment_handle, handle->size_bytes, &piece->segment, err);
    if (st == STATUS_OK)
        *memory_out = piece->segment.memory;
    piece_keep(shared, piece, st);
    return st;
}

void device__shared_close(struct device__shared *shared, const void *memory)
{
    struct device__shared_piece **link = &shared->first;
    struct device__shared_piece *piece;

    while (*link != NULL && (*link)->segment.memory != memory)
        link = &(*link)->next;
    piece = *link;
    assert(piece != NULL);
    *link = piece->next;
    segment_close(&piece->segment);
    free(piece);
}

bool device__shared_holds(const struct device__shared *shared, const void *pointer,
                          uint64_t size_bytes)
{
    for (const struct device__shared_piece *p = shared->first; p != NULL; p = p->next) {
        const uint64_t offset = (uintptr_t)pointer - (uintptr_t)p->segment.memory;

        if (offset <= p->segment.size_bytes && size_bytes <= p->segment.size_bytes - offset)
            return true;
    }
    return false;
}
