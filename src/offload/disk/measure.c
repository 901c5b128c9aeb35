/* offload/disk/measure.c - what can this disk do, found out in less than half a second.
 *
 * Each pair of block size and depth gets an equal share of a bit more than half of the time, in
 * which `depth` blocks of random places are kept in flight; in two rounds, so that a moment when
 * somebody else uses the disk spoils no pair twice. Depths rise, so that on a slow disk, where the
 * blocks in flight would outlast the share, the deeper ones can be left out. The rest of the time
 * goes to reading in order, as the ring of whole layers does, with what was chosen.
 *
 * The choice: a single pair's rate is a few milliseconds' worth, and on a busy machine off by a
 * third. So pairs with the same bytes in flight are taken together, by their median; the fewest
 * bytes that come within 5 % of the best are what the disk needs. Twice that are kept in flight, at
 * least IN_FLIGHT_BYTES_MIN, which keep a disk of 1 GB/s busy for the 8 ms that the reader's thread
 * may have to wait for a processor. Too many would only make a demand wait for guesses, and a
 * reader keeps few of those in flight; too few leave the disk idle. Large pieces cost the processor
 * less per byte, so the largest block that leaves DEPTH_MIN of them. */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/size.h"
#include "offload/disk/internal.h"

#define DEPTH_LIMIT 32 /* 1 << (DISK_MEASURE_DEPTHS - 1) */
#define TIME_NS_DEFAULT UINT64_C(400000000)
#define TUNE_NS UINT64_C(200000000)
#define TUNE_SPREAD_NS UINT64_C(100000000)
#define GOOD_PERCENT 95
#define ROUNDS 2
#define PAIRS_PERCENT 60 /* of the time */
#define IN_FLIGHT_BYTES_MIN (8 * MIB)
#define DEPTH_MIN 8
#define SPREAD_READS_MIN 4 /* that a file has to have */

struct probe {
    struct disk_reader *reader;
    const struct disk_file *file;
    char *memory; /* [memory_bytes] */
    uint64_t memory_bytes;
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

    assert(depth <= DEPTH_LIMIT && block_bytes * depth <= probe->memory_bytes);
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

/* One share for each pair, added to what the rounds before brought. */
static enum status measure_pairs(struct probe *probe, uint64_t share_ns, uint64_t *best_rate,
                                 struct disk_measured *out, struct err *err)
{
    for (uint32_t d = 0; d < DISK_MEASURE_DEPTHS; d++) {
        for (uint32_t b = 0; b < out->block_count; b++) {
            const uint32_t depth = UINT32_C(1) << d;
            const uint64_t in_flight_bytes = out->block_bytes[b] * depth;
            uint64_t *const rate = &out->random_bytes_per_s[b][d];
            uint64_t now = 0;
            enum status st;

            if (in_flight_bytes > probe->memory_bytes ||
                out->block_bytes[b] > probe->file->size_bytes ||
                takes_too_long(in_flight_bytes, *best_rate, share_ns))
                continue;
            st = measure_rate(probe, out->block_bytes[b], depth, false, share_ns, &now, err);
            if (st != STATUS_OK)
                return st;
            *rate = *rate == 0 ? now : (*rate + now) / 2;
            if (now > *best_rate)
                *best_rate = now;
        }
    }
    return STATUS_OK;
}

static int compare_rates(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* The median over the pairs with more than bytes / 2, at most bytes in flight; 0: there is none. */
static uint64_t median_rate(const struct disk_measured *measured, uint64_t bytes)
{
    uint64_t rates[DISK_MEASURE_BLOCKS_MAX * DISK_MEASURE_DEPTHS];
    size_t count = 0;

    for (uint32_t b = 0; b < measured->block_count; b++) {
        for (uint32_t d = 0; d < DISK_MEASURE_DEPTHS; d++) {
            const uint64_t in_flight_bytes = measured->block_bytes[b] << d;

            if (in_flight_bytes <= bytes && in_flight_bytes > bytes / 2 &&
                measured->random_bytes_per_s[b][d] != 0)
                rates[count++] = measured->random_bytes_per_s[b][d];
        }
    }
    if (count == 0)
        return 0;
    qsort(rates, count, sizeof(rates[0]), compare_rates);
    return (rates[(count - 1) / 2] + rates[count / 2]) / 2;
}

void disk__measure_choose(struct disk_measured *out)
{
    uint64_t best_rate = 0, in_flight_bytes = IN_FLIGHT_BYTES_MIN;

    for (uint64_t bytes = DISK_ALIGN; bytes <= DISK_MEASURE_BYTES; bytes *= 2) {
        if (median_rate(out, bytes) > best_rate)
            best_rate = median_rate(out, bytes);
    }
    for (uint64_t bytes = DISK_ALIGN; bytes <= DISK_MEASURE_BYTES; bytes *= 2) {
        if (median_rate(out, bytes) / GOOD_PERCENT >= best_rate / 100) {
            in_flight_bytes = bytes * 2 > IN_FLIGHT_BYTES_MIN ? bytes * 2 : IN_FLIGHT_BYTES_MIN;
            break;
        }
    }
    out->piece_bytes = out->block_bytes[0];
    for (uint32_t b = 1; b < out->block_count; b++) {
        const uint64_t bytes = out->block_bytes[b];

        if (bytes <= in_flight_bytes / DEPTH_MIN ? bytes > out->piece_bytes
                                                 : bytes < out->piece_bytes)
            out->piece_bytes = bytes;
    }
    out->random_bytes_per_s_best = best_rate;
    out->depth = (uint32_t)(in_flight_bytes / out->piece_bytes);
    if (out->depth < DEPTH_MIN)
        out->depth = DEPTH_MIN;
    if (out->depth > DISK_DEPTH_MAX)
        out->depth = DISK_DEPTH_MAX;
}

/* In order, with what was chosen, or what of it this disk can do in the time. */
static enum status measure_sequential(struct probe *probe, uint64_t time_ns, uint64_t best_rate,
                                      struct disk_measured *out, struct err *err)
{
    uint64_t block_bytes = out->piece_bytes;
    uint32_t depth = out->depth < DEPTH_LIMIT ? out->depth : DEPTH_LIMIT;

    if (takes_too_long(block_bytes, best_rate, time_ns))
        block_bytes = out->block_bytes[0];
    while (depth > 1 && (depth * block_bytes > probe->memory_bytes ||
                         takes_too_long(depth * block_bytes, best_rate, time_ns)))
        depth /= 2;
    return measure_rate(probe, block_bytes, depth, true, time_ns, &out->sequential_bytes_per_s,
                        err);
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

/* Memory in large pages, as slots are, and there before the first read; and a reader. */
static enum status probe_open(struct probe *probe, const struct disk_measure_options *options,
                              uint64_t file_bytes_min, uint32_t depth, uint64_t piece_bytes,
                              struct err *err)
{
    const struct disk_reader_options reader_options = {
        .depth = depth, .piece_bytes = piece_bytes, .uring = options->uring,
    };

    probe->memory_bytes = options->memory_bytes != 0 ? options->memory_bytes : DISK_MEASURE_BYTES;
    assert(probe->memory_bytes >= 1 * MIB);
    if (probe->file->size_bytes < file_bytes_min)
        return err_set(err, STATUS_UNAVAILABLE, "%s is too small to measure its disk by",
                       probe->file->path);
    probe->memory = mmap(NULL, probe->memory_bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (probe->memory == MAP_FAILED) {
        probe->memory = NULL;
        return err_set(err, STATUS_NO_MEMORY, "no memory to measure the disk of %s with",
                       probe->file->path);
    }
    (void)madvise(probe->memory, probe->memory_bytes, MADV_HUGEPAGE);
    memset(probe->memory, 0, probe->memory_bytes);
    return disk_reader_create(&reader_options, &probe->reader, err);
}

static void probe_close(struct probe *probe)
{
    disk_reader_destroy(probe->reader);
    if (probe->memory != NULL)
        (void)munmap(probe->memory, probe->memory_bytes);
}

enum status disk_measure(const struct disk_file *file, const struct disk_measure_options *options,
                         struct disk_measured *measured_out, struct err *err)
{
    const uint64_t time_ns = options->time_ns != 0 ? options->time_ns : TIME_NS_DEFAULT;
    struct disk_measured measured = { .depth = 0 };
    struct probe probe = { .file = file, .random = UINT64_C(0x9E3779B97F4A7C15) };
    const uint64_t begin_ns = clock_now_ns();
    uint64_t share_ns, best_rate = 0;
    enum status st = probe_open(&probe, options, DISK_MEASURE_FILE_BYTES_MIN, DEPTH_LIMIT,
                                DISK_PIECE_BYTES_MAX, err);

    set_blocks(options, &measured);
    share_ns = time_ns * PAIRS_PERCENT / 100 /
               (measured.block_count * DISK_MEASURE_DEPTHS * ROUNDS);
    for (int round = 0; round < ROUNDS && st == STATUS_OK; round++)
        st = measure_pairs(&probe, share_ns, &best_rate, &measured, err);
    if (st == STATUS_OK) {
        disk__measure_choose(&measured);
        st = measure_sequential(&probe, time_ns * (100 - PAIRS_PERCENT) / 100, best_rate, &measured,
                                err);
    }
    probe_close(&probe);
    if (st != STATUS_OK)
        return st;
    measured.read_bytes = probe.read_bytes;
    measured.took_ns = clock_now_ns() - begin_ns;
    *measured_out = measured;
    return STATUS_OK;
}

enum status disk_measure_spread(const struct disk_file *file,
                                const struct disk_measure_options *options,
                                const struct disk_measured *measured, uint64_t *bytes_per_s_out,
                                struct err *err)
{
    struct probe probe = { .file = file, .random = UINT64_C(0x9E3779B97F4A7C15) };
    uint64_t block_bytes = options->spread_bytes != 0 ? options->spread_bytes : DISK_SPREAD_BYTES;
    enum status st = probe_open(&probe, options, SPREAD_READS_MIN * block_bytes, measured->depth,
                                measured->piece_bytes, err);
    uint64_t depth;

    if (block_bytes > probe.memory_bytes)
        block_bytes = probe.memory_bytes;
    depth = probe.memory_bytes / block_bytes;
    if (depth > DEPTH_LIMIT)
        depth = DEPTH_LIMIT;
    if (options->spread_depth != 0 && depth > options->spread_depth)
        depth = options->spread_depth;
    if (st == STATUS_OK)
        st = measure_rate(&probe, block_bytes, (uint32_t)depth, false, options->time_ns,
                          bytes_per_s_out, err);
    probe_close(&probe);
    return st;
}

void disk_reader_options_apply(struct disk_reader_options *options,
                               const struct disk_measured *measured)
{
    char piece[24];

    if (options->depth != 0 || options->piece_bytes != 0)
        return;
    options->depth = measured->depth;
    options->piece_bytes = measured->piece_bytes;
    options->bytes_per_s = measured->spread_bytes_per_s > 0 ? measured->spread_bytes_per_s
                                                            : measured->sequential_bytes_per_s;
    log_line(options->log, LOG_INFO, "disk: measured %.0f MB/s; reading with depth=%" PRIu32
             ",piece=%s", (double)options->bytes_per_s / 1e6, measured->depth,
             size_format(measured->piece_bytes, piece, sizeof(piece)));
}

void disk_reader_options_tune(struct disk_reader_options *options, const struct disk_file *file)
{
    const struct disk_measure_options how = { .time_ns = TUNE_NS, .uring = options->uring };
    const struct disk_measure_options spread = {
        .time_ns = TUNE_SPREAD_NS, .uring = options->uring,
    };
    struct disk_measured measured;
    struct err why;

    if (options->depth != 0 || options->piece_bytes != 0)
        return;
    if (disk_measure(file, &how, &measured, &why) != STATUS_OK) {
        log_line(options->log, LOG_DEBUG, "disk: not measured: %s", why.message);
        return;
    }
    (void)disk_measure_spread(file, &spread, &measured, &measured.spread_bytes_per_s, NULL);
    disk_reader_options_apply(options, &measured);
}
