/* offload/disk/measure.c - what can this disk do, found out in less than half a second.
 *
 * Each pair of block size and depth gets an equal share of the time: `depth` blocks of random
 * places are kept in flight until it is over. Depths rise, so that on a slow disk, where the blocks
 * in flight would outlast the share, the deeper ones can be left out. Then one more share goes to
 * reading in order, as the ring of whole layers does, with what was chosen.
 *
 * The choice: rates are noisy, and more bytes in flight than needed only make demands wait behind
 * guesses; so of all pairs within 5 % of the best, the one with the fewest bytes in flight, and of
 * those alike the larger block, which costs less work per byte. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/size.h"
#include "offload/disk/internal.h"

#define FILE_BYTES_MIN (16 * MIB)
#define MEMORY_BYTES (32 * MIB)
#define DEPTH_LIMIT 32 /* 1 << (DISK_MEASURE_DEPTHS - 1) */
#define TIME_NS_DEFAULT UINT64_C(400000000)
#define GOOD_PERCENT 95

struct probe {
    struct disk_reader *reader;
    const struct disk_file *file;
    char *memory; /* [MEMORY_BYTES] */
    struct disk_read reads[DEPTH_LIMIT];
    uint64_t random; /* xorshift64* (Vigna 2016); any fixed start will do */
    uint64_t read_bytes;
};

static uint64_t next_random(struct probe *probe)
{
    probe->random ^= probe->random >> 12;
    probe->random ^= probe->random << 25;
    probe->random ^= probe->random >> 27;
    return probe->random * UINT64_C(2685821657736338717);
}

/* Where the next block is read: at random, or behind the last. */
static uint64_t next_offset(struct probe *probe, uint64_t block_bytes, bool sequential,
                            uint64_t *position_bytes)
{
    const uint64_t place_count = probe->file->size_bytes / block_bytes;
    uint64_t offset_bytes;

    if (!sequential)
        return next_random(probe) % place_count * block_bytes;
    offset_bytes = *position_bytes;
    *position_bytes += block_bytes;
    if (*position_bytes + block_bytes > probe->file->size_bytes)
        *position_bytes = 0;
    return offset_bytes;
}

/* Waits for a read if it is under way, and makes it idle; adds its bytes. */
static enum status collect(struct probe *probe, struct disk_read *read, uint64_t *bytes,
                           struct err *err)
{
    enum status st;

    if (atomic_load_explicit(&read->state, memory_order_relaxed) == DISK_READ_IDLE)
        return STATUS_OK;
    st = disk_read_wait(probe->reader, read, err);
    *bytes += read->bytes_read;
    atomic_store_explicit(&read->state, DISK_READ_IDLE, memory_order_relaxed);
    return st;
}

/* Keeps `depth` blocks in flight for time_ns; the rate over all, the last ones included. */
static enum status measure_rate(struct probe *probe, uint64_t block_bytes, uint32_t depth,
                                bool sequential, uint64_t time_ns, uint64_t *rate_out,
                                struct err *err)
{
    const uint64_t begin_ns = clock_now_ns();
    uint64_t position_bytes = 0, bytes = 0;
    enum status st = STATUS_OK;

    assert(depth <= DEPTH_LIMIT && block_bytes * depth <= MEMORY_BYTES);
    for (uint32_t i = 0; st == STATUS_OK && clock_now_ns() - begin_ns < time_ns;
         i = (i + 1) % depth) {
        struct disk_read *const read = &probe->reads[i];

        st = collect(probe, read, &bytes, err);
        if (st != STATUS_OK)
            break;
        read->extent_count = 1;
        read->extents[0] = (struct disk_extent){
            .file = probe->file,
            .offset_bytes = next_offset(probe, block_bytes, sequential, &position_bytes),
            .size_bytes = block_bytes,
            .dst = probe->memory + i * block_bytes,
        };
        disk_read_submit(probe->reader, read);
    }
    for (uint32_t i = 0; i < depth; i++) {
        const enum status last =
            collect(probe, &probe->reads[i], &bytes, st == STATUS_OK ? err : NULL);
        if (st == STATUS_OK)
            st = last;
    }
    probe->read_bytes += bytes;
    *rate_out = (uint64_t)((double)bytes * 1e9 / (double)(clock_now_ns() - begin_ns + 1));
    return st;
}

/* Would the blocks in flight alone take longer than the share, by the best rate so far? */
static bool takes_too_long(uint64_t in_flight_bytes, uint64_t best_rate, uint64_t share_ns)
{
    return best_rate != 0 &&
           (double)in_flight_bytes / (double)best_rate * 1e9 > (double)share_ns;
}

static enum status measure_all(struct probe *probe, uint64_t share_ns, struct disk_measured *out,
                               struct err *err)
{
    uint64_t best_rate = 0;

    for (uint32_t d = 0; d < DISK_MEASURE_DEPTHS; d++) {
        for (uint32_t b = 0; b < out->block_count; b++) {
            const uint32_t depth = UINT32_C(1) << d;
            const uint64_t in_flight_bytes = out->block_bytes[b] * depth;
            uint64_t *const rate = &out->random_bytes_per_s[b][d];
            enum status st;

            if (in_flight_bytes > MEMORY_BYTES || out->block_bytes[b] > probe->file->size_bytes ||
                takes_too_long(in_flight_bytes, best_rate, share_ns))
                continue;
            st = measure_rate(probe, out->block_bytes[b], depth, false, share_ns, rate, err);
            if (st != STATUS_OK)
                return st;
            if (*rate > best_rate)
                best_rate = *rate;
        }
    }
    return STATUS_OK;
}

static void choose(struct disk_measured *out)
{
    uint64_t best_rate = 0, fewest_bytes = UINT64_MAX;

    for (uint32_t b = 0; b < out->block_count; b++) {
        for (uint32_t d = 0; d < DISK_MEASURE_DEPTHS; d++) {
            if (out->random_bytes_per_s[b][d] > best_rate)
                best_rate = out->random_bytes_per_s[b][d];
        }
    }
    for (uint32_t b = 0; b < out->block_count; b++) {
        for (uint32_t d = 0; d < DISK_MEASURE_DEPTHS; d++) {
            const uint64_t rate = out->random_bytes_per_s[b][d];
            const uint64_t in_flight_bytes = out->block_bytes[b] << d;
            if (rate == 0 || rate / GOOD_PERCENT < best_rate / 100 ||
                in_flight_bytes > fewest_bytes ||
                (in_flight_bytes == fewest_bytes && out->block_bytes[b] < out->piece_bytes))
                continue;
            fewest_bytes = in_flight_bytes;
            out->depth = UINT32_C(1) << d;
            out->piece_bytes = out->block_bytes[b];
        }
    }
}

static void set_blocks(const struct disk_measure_options *options, struct disk_measured *out)
{
    static const uint64_t usual_bytes[] = { 128 * KIB, 256 * KIB, 512 * KIB, 1 * MIB };
    const bool usual = options->block_count == 0;

    assert(options->block_count <= DISK_MEASURE_BLOCKS_MAX);
    out->block_count = usual ? sizeof(usual_bytes) / sizeof(usual_bytes[0]) : options->block_count;
    for (uint32_t i = 0; i < out->block_count; i++) {
        out->block_bytes[i] = usual ? usual_bytes[i] : options->block_bytes[i];
        assert(out->block_bytes[i] != 0 && out->block_bytes[i] % DISK_ALIGN == 0 &&
               out->block_bytes[i] <= DISK_PIECE_BYTES_MAX);
    }
}

enum status disk_measure(const struct disk_file *file, const struct disk_measure_options *options,
                         struct disk_measured *measured_out, struct err *err)
{
    const uint64_t time_ns = options->time_ns != 0 ? options->time_ns : TIME_NS_DEFAULT;
    const struct disk_reader_options reader_options = {
        .depth = DEPTH_LIMIT, .piece_bytes = DISK_PIECE_BYTES_MAX, .uring = options->uring,
    };
    struct disk_measured measured = { .depth = 0 };
    struct probe probe = { .file = file, .random = UINT64_C(0x9E3779B97F4A7C15) };
    const uint64_t begin_ns = clock_now_ns();
    uint64_t share_ns;
    enum status st;

    if (file->size_bytes < FILE_BYTES_MIN)
        return err_set(err, STATUS_UNAVAILABLE, "%s is too small to measure its disk by",
                       file->path);
    set_blocks(options, &measured);
    share_ns = time_ns / (measured.block_count * DISK_MEASURE_DEPTHS + 2);
    probe.memory = aligned_alloc(DISK_ALIGN, MEMORY_BYTES);
    if (probe.memory == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to measure the disk of %s with",
                       file->path);
    st = disk_reader_create(&reader_options, &probe.reader, err);
    if (st == STATUS_OK)
        st = measure_all(&probe, share_ns, &measured, err);
    if (st == STATUS_OK) {
        choose(&measured);
        st = measure_rate(&probe, measured.piece_bytes, measured.depth, true, share_ns * 2,
                          &measured.sequential_bytes_per_s, err);
    }
    disk_reader_destroy(probe.reader);
    free(probe.memory);
    if (st != STATUS_OK)
        return st;
    measured.read_bytes = probe.read_bytes;
    measured.took_ns = clock_now_ns() - begin_ns;
    *measured_out = measured;
    return STATUS_OK;
}
