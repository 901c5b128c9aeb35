/* bench/disk.c - how near the disk reader comes to what the disk gives.
 *
 * Reads a file for some seconds, blocks at random places or all in order, keeping a number of reads
 * under way as the offloader does, and says how much came per second. What the disk gives is for
 * another program to say: scripts/bench_disk runs fio in turn with this one.
 *
 *     make bench && build/bench/disk FILE random|sequential BLOCK READS SECONDS [SETTINGS]
 *     build/bench/disk FILE measure
 *
 * BLOCK is like 1200KiB, SETTINGS are those of --offload-disk. A line of CSV: what, block in bytes,
 * reads under way, depth, piece in bytes, MB/s (10^6), mean depth, share of time with anything in
 * flight, processor seconds per GB. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "base/size.h"
#include "offload/disk/reader.h"

#define READS_MAX 64

struct bench {
    const struct disk_file *file;
    struct disk_reader *reader;
    bool sequential;
    uint64_t block_bytes, position_bytes, random;
    uint32_t read_count;
    char *memory;
    struct disk_read reads[READS_MAX];
};

static void stop(const struct err *err)
{
    fprintf(stderr, "%s\n", err->message);
    exit(1);
}

/* xorshift64* (Vigna 2016) */
static uint64_t next_random(struct bench *bench)
{
    bench->random ^= bench->random >> 12;
    bench->random ^= bench->random << 25;
    bench->random ^= bench->random >> 27;
    return bench->random * UINT64_C(2685821657736338717);
}

static void submit(struct bench *bench, uint32_t index)
{
    struct disk_read *const read = &bench->reads[index];
    const uint64_t place_count = disk_file_size_bytes(bench->file) / bench->block_bytes;
    const uint64_t place = bench->sequential ? bench->position_bytes++ : next_random(bench);

    read->extent_count = 1;
    read->extents[0] = (struct disk_extent){
        .file = bench->file,
        .offset_bytes = place % place_count * bench->block_bytes,
        .size_bytes = bench->block_bytes,
        .dst = bench->memory + index * bench->block_bytes,
    };
    disk_read_submit(bench->reader, read);
}

static double processor_seconds(void)
{
    struct rusage usage;

    (void)getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void run(struct bench *bench, double seconds)
{
    const uint64_t begin_ns = clock_now_ns();
    const uint64_t end_ns = begin_ns + (uint64_t)(seconds * 1e9);
    const double begin_processor = processor_seconds();
    struct disk_counters counters;
    double took_s;
    struct err err;

    for (uint32_t i = 0; i < bench->read_count; i++)
        submit(bench, i);
    for (uint32_t i = 0, last = 0; last < bench->read_count; i = (i + 1) % bench->read_count) {
        if (disk_read_wait(bench->reader, &bench->reads[i], &err) != STATUS_OK)
            stop(&err);
        if (clock_now_ns() < end_ns)
            submit(bench, i);
        else
            last++;
    }
    took_s = (double)(clock_now_ns() - begin_ns) / 1e9;
    disk_reader_counters(bench->reader, &counters);
    printf("%s,%" PRIu64 ",%" PRIu32 ",%" PRIu32 ",%" PRIu64 ",%.1f,%.1f,%.3f,%.3f\n",
           bench->sequential ? "sequential" : "random", bench->block_bytes, bench->read_count,
           disk_reader_depth(bench->reader), disk_reader_piece_bytes(bench->reader),
           (double)counters.classes[DISK_DEMAND].read_bytes / 1e6 / took_s,
           (double)counters.in_flight_ns / (double)(counters.busy_ns + 1),
           (double)counters.busy_ns / (double)(counters.elapsed_ns + 1),
           (processor_seconds() - begin_processor) /
               ((double)counters.classes[DISK_DEMAND].read_bytes / 1e9));
}

static void measure(const struct disk_file *file)
{
    const struct disk_measure_options options = { .block_count = 0 };
    struct disk_measured measured;
    struct err err;

    if (disk_measure(file, &options, &measured, &err) != STATUS_OK)
        stop(&err);
    printf("block");
    for (int d = 0; d < DISK_MEASURE_DEPTHS; d++)
        printf(",depth %d", 1 << d);
    for (uint32_t b = 0; b < measured.block_count; b++) {
        printf("\n%" PRIu64, measured.block_bytes[b]);
        for (int d = 0; d < DISK_MEASURE_DEPTHS; d++)
            printf(",%.0f", (double)measured.random_bytes_per_s[b][d] / 1e6);
    }
    printf("\nrandom %.0f MB/s, sequential %.0f MB/s; chosen: depth %" PRIu32 ", pieces of %" PRIu64
           "; %.0f MB read in %.0f ms\n", (double)measured.random_bytes_per_s_best / 1e6,
           (double)measured.sequential_bytes_per_s / 1e6,
           measured.depth, measured.piece_bytes, (double)measured.read_bytes / 1e6,
           (double)measured.took_ns / 1e6);
}

int main(int argc, char **argv)
{
    struct disk_reader_options options = { .depth = 0 };
    struct bench bench = { .random = clock_now_ns() | 1 };
    struct disk_file *file = NULL;
    uint64_t memory_bytes;
    struct err err;

    if (argc != 3 && argc != 6 && argc != 7) {
        fprintf(stderr, "usage: disk FILE measure\n"
                        "       disk FILE random|sequential BLOCK READS SECONDS [SETTINGS]\n");
        return 2;
    }
    if (disk_reader_options_parse(argc == 7 ? argv[6] : NULL, "SETTINGS", &options, &err) !=
            STATUS_OK || disk_file_open(argv[1], options.direct, &file, &err) != STATUS_OK)
        stop(&err);
    bench.file = file;
    if (argc == 3) {
        measure(file);
        disk_file_close(file);
        return 0;
    }
    bench.sequential = strcmp(argv[2], "sequential") == 0;
    bench.read_count = (uint32_t)strtoul(argv[4], NULL, 10);
    if (size_parse(argv[3], "BLOCK", &bench.block_bytes, &err) != STATUS_OK ||
        disk_reader_create(&options, &bench.reader, &err) != STATUS_OK)
        stop(&err);
    if (bench.read_count < 1 || bench.read_count > READS_MAX || bench.block_bytes < DISK_ALIGN ||
        bench.block_bytes % DISK_ALIGN != 0 || bench.block_bytes > disk_file_size_bytes(file) ||
        bench.block_bytes > GIB) {
        fprintf(stderr, "BLOCK must be a multiple of %d and fit the file, READS 1 to %d\n",
                DISK_ALIGN, READS_MAX);
        return 2;
    }
    memory_bytes = bench.read_count * bench.block_bytes;
    bench.memory = mmap(NULL, memory_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                        0);
    if (bench.memory == MAP_FAILED)
        return 1;
    /* In large pages, as slots are: the kernel handles each page that it reads into by itself. */
    (void)madvise(bench.memory, memory_bytes, MADV_HUGEPAGE);
    memset(bench.memory, 1, memory_bytes); /* so that the pages are there */
    run(&bench, strtod(argv[5], NULL));
    disk_reader_destroy(bench.reader);
    disk_file_close(file);
    (void)munmap(bench.memory, memory_bytes);
    return 0;
}
