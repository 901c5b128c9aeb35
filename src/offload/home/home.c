/* offload/home/home.c - the table of homes, and the plainest two: host and meta. */
#include "offload/home/home.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "offload/internal.h"

#define SWAP_BYTES 16384

static const struct offload__home_ops *const homes[OFFLOAD_HOME_COUNT] = {
    [OFFLOAD_HOME_DEVICE] = &offload__home_device,
    [OFFLOAD_HOME_HOST] = &offload__home_host,
    [OFFLOAD_HOME_SHM] = &offload__home_shm,
    [OFFLOAD_HOME_SHARDED] = &offload__home_sharded,
    [OFFLOAD_HOME_DISK] = &offload__home_disk,
    [OFFLOAD_HOME_META] = &offload__home_meta,
};

const struct offload__home_ops *offload__home(enum offload_home home)
{
    assert((unsigned)home < OFFLOAD_HOME_COUNT);
    return homes[home];
}

bool offload__home_is_read(const struct offload *offload, enum offload_home home)
{
    return offload->in_place && offload__home(home)->is_host_memory;
}

/* -- host: each unit's record is memory of its own that the device can copy from ------------- */

static enum status host_open(struct offload *offload, struct err *err)
{
    for (size_t i = 0; i < offload->unit_count; i++) {
        struct offload__unit *unit = &offload->units[i];
        enum status st;

        if (unit->home != OFFLOAD_HOME_HOST)
            continue;
        st = device_host_alloc(offload->device, unit->size_bytes, &unit->record, err);
        if (st != STATUS_OK)
            return err_prefix(err, st, "home of %s on the host", unit->name);
    }
    return STATUS_OK;
}

static void host_close(struct offload *offload)
{
    for (size_t i = 0; i < offload->unit_count; i++) {
        struct offload__unit *unit = &offload->units[i];

        if (unit->home != OFFLOAD_HOME_HOST)
            continue;
        device_host_free(offload->device, unit->record, unit->size_bytes);
        unit->record = NULL;
    }
}

static uint8_t *host_record(struct offload *offload, size_t unit)
{
    return offload->units[unit].record;
}

void offload__record_swap(struct offload *offload, size_t unit, uint64_t offset_bytes,
                          uint8_t *bytes, uint64_t size_bytes)
{
    uint8_t *place = (uint8_t *)offload->units[unit].record + offset_bytes;
    uint8_t chunk[SWAP_BYTES];

    while (size_bytes > 0) {
        const size_t n = size_bytes < SWAP_BYTES ? (size_t)size_bytes : SWAP_BYTES;

        memcpy(chunk, place, n);
        memcpy(place, bytes, n);
        memcpy(bytes, chunk, n);
        place += n;
        bytes += n;
        size_bytes -= n;
    }
}

static enum status host_swap(struct offload *offload, size_t unit, uint64_t offset_bytes,
                             uint8_t *bytes, uint64_t size_bytes, struct err *err)
{
    (void)err;
    offload__record_swap(offload, unit, offset_bytes, bytes, size_bytes);
    return STATUS_OK;
}

enum status offload__record_fetch(struct offload *offload, struct offload__fetch *fetch,
                                  struct err *err)
{
    const struct offload__unit *unit = &offload->units[fetch->unit];
    enum status st = offload__copy_begin(offload, fetch, err);

    if (st == STATUS_OK)
        st = device_copy_in(offload->copy, fetch->dst, unit->record, unit->size_bytes, err);
    return st == STATUS_OK ? offload__copy_end(offload, fetch, err) : st;
}

const struct offload__home_ops offload__home_device = {
    .name = "device",
    .phrase = "on the device",
    .has_contents = true,
};

const struct offload__home_ops offload__home_host = {
    .name = "host",
    .mode = "cpu",
    .phrase = "at home on the host",
    .phrase_in_place = "at home on the host, used in place",
    .has_contents = true,
    .is_host_memory = true,
    .open = host_open,
    .close = host_close,
    .record = host_record,
    .swap = host_swap,
    .fetch_begin = offload__record_fetch,
};

const struct offload__home_ops offload__home_meta = {
    .name = "meta",
    .mode = "meta",
    .phrase = "at home in meta (no contents)",
};
