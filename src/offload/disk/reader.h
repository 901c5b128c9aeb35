/* offload/disk/reader.h - many reads at once, past the page cache.
 *
 * A reader is one thread that keeps up to `depth` pieces of reads in flight, so that the disk never
 * waits for the program and no other thread waits for the disk. It drives an io_uring; where there
 * is none (an old kernel, a container that forbids it) a small pool of threads that call pread.
 *
 *     disk_read_submit    QUEUED  --first piece starts-->  RUNNING  --last piece ends-->  DONE
 *                            |                                |
 *     disk_read_drop         +--nothing in flight-> CANCELED <+  when the pieces in flight ended
 *
 * A read is a few extents of files. Each is cut into pieces of about `piece_bytes`; every piece of
 * every demanded read goes before any piece of a guessed one, and guesses keep fewer pieces in
 * flight, so that a demand that comes finds little in front of it. Within a class reads go in the
 * order in which they were submitted, and end in any order.
 *
 * Reads are of whole blocks of DISK_ALIGN bytes, as O_DIRECT wants. An extent may have any offset
 * and size: the reader reads the blocks around it, and so overwrites the bytes around dst that lie
 * in the same blocks, with what the file has there; what lies past the file's end is undefined.
 *
 * What can go wrong on a disk, and what happens: a piece that ends early is continued; EINTR and
 * EAGAIN are tried again; EIO is tried once more, then fails the read, with a sentence that names
 * file and place; a file that ends before an extent does fails it too; a disk that stalls only
 * delays. A read that failed is DONE with its status, and the reader goes on with the others.
 *
 * Threads: any thread may submit, drop, promote and wait. */
#ifndef LIGHTER_OFFLOAD_DISK_READER_H
#define LIGHTER_OFFLOAD_DISK_READER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/log.h"
#include "base/status.h"

#define DISK_ALIGN 4096
#define DISK_EXTENTS_MAX 8
#define DISK_DEPTH_MAX 128
#define DISK_PIECE_BYTES_MIN (UINT64_C(4) << 10)
#define DISK_PIECE_BYTES_MAX (UINT64_C(64) << 20)
#define DISK_DEPTH_DEFAULT 16
#define DISK_PIECE_BYTES_DEFAULT (UINT64_C(512) << 10)

enum disk_use { DISK_AUTO, DISK_ON, DISK_OFF };

/* ---- files ---- */

/* An open file, read past the page cache: with O_DIRECT, or where the file system has none (or
 * direct is DISK_OFF) through the cache, from which every piece is dropped again at once. */
struct disk_file;

/* direct: DISK_ON refuses what cannot be read directly. The path is copied. Only regular files. */
enum status disk_file_open(const char *path, enum disk_use direct, struct disk_file **file_out,
                           struct err *err);
/* NULL is fine. No read may be under way on it. */
void disk_file_close(struct disk_file *file);
const char *disk_file_path(const struct disk_file *file);
uint64_t disk_file_size_bytes(const struct disk_file *file); /* as it was when opened */
bool disk_file_is_direct(const struct disk_file *file);
/* STATUS_IO when the open file was written to, or its path now names another file, since it was
 * opened: what was read before and after need not fit together. */
enum status disk_file_check_unchanged(const struct disk_file *file, struct err *err);

/* ---- reads ---- */

enum disk_class {
    DISK_DEMAND, /* somebody waits, or will surely */
    DISK_GUESS,  /* uses bandwidth that would be idle */
    DISK_CLASS_COUNT,
};

enum disk_read_state { /* a zeroed read is idle */
    DISK_READ_IDLE,
    DISK_READ_QUEUED,
    DISK_READ_RUNNING,
    DISK_READ_DONE,     /* look at `status` */
    DISK_READ_CANCELED, /* dst's contents are undefined */
};

struct disk_extent {
    const struct disk_file *file; /* borrowed until the read has ended */
    uint64_t offset_bytes;
    uint64_t size_bytes; /* 0: nothing is read */
    void *dst;           /* (uintptr_t)dst % DISK_ALIGN == offset_bytes % DISK_ALIGN */
};

/* The caller's storage; stays put from submit until DONE or CANCELED, then may be used again. */
struct disk_read {
    /* set by the caller before submit */
    struct disk_extent extents[DISK_EXTENTS_MAX];
    uint32_t extent_count;
    enum disk_class class; /* then guarded by the reader's lock: promoting changes it */

    /* set by the reader; `state` orders the others: read them once it says DONE or CANCELED */
    _Atomic(enum disk_read_state) state;
    enum status status;
    struct err err; /* when status is not STATUS_OK */
    uint64_t submit_ns, began_ns, ended_ns; /* base/clock; began_ns is 0 if no piece started */
    uint64_t bytes_read; /* whole blocks, as they came from the disk */

    struct {
        struct disk_read *next, *previous; /* in a queue, while pieces are yet to start */
        bool queued;
        bool dropped;          /* no further piece is started */
        uint32_t extent_index; /* where the next piece starts: this extent, */
        uint64_t started_bytes; /* and so far into its blocks */
        uint32_t in_flight_count;
    } own; /* guarded by the reader's lock */
};

/* ---- the reader ---- */

/* Faults for tests. Pieces are counted from 1 as they are first started; 0 is never. */
struct disk_faults {
    uint64_t eio_piece;    /* fails with EIO, */
    uint32_t eio_count;    /* this many times */
    uint64_t short_piece;  /* its first attempt reads only half */
    uint64_t end_piece;    /* meets the end of the file in its first block */
    uint64_t stall_piece;  /* starts only after */
    uint64_t stall_ns;
};

struct disk_reader_options {
    uint32_t depth;       /* pieces in flight; 0: DISK_DEPTH_DEFAULT */
    uint32_t guess_depth; /* pieces in flight above which no guess starts; 0: a quarter of depth */
    uint64_t piece_bytes; /* 0: DISK_PIECE_BYTES_DEFAULT; a multiple of DISK_ALIGN */
    enum disk_use direct; /* for those who open files; the reader does not look at it */
    enum disk_use uring;  /* DISK_AUTO: threads where the kernel has none */
    const struct log *log; /* borrowed; may be NULL */
    uint64_t bytes_per_s;  /* set by disk_reader_options_tune; 0: not measured */
    struct disk_faults faults;
};

/* Reads "depth=16,piece=512KiB,guess-depth=4,direct=on|off|auto,uring=on|off|auto" and, for tests,
 * "eio=N" or "eio=N:TIMES", "short=N", "end=N", "stall=N:3s" over what *options holds. `what` names
 * the option in messages. NULL and "" change nothing. On failure *options is unchanged. */
enum status disk_reader_options_parse(const char *text, const char *what,
                                      struct disk_reader_options *options, struct err *err);

struct disk_reader;

/* Starts the thread. The caller owns *reader_out. */
enum status disk_reader_create(const struct disk_reader_options *options,
                               struct disk_reader **reader_out, struct err *err);
/* Drops what is queued, waits for what is in flight, ends the thread. NULL is fine. Nobody may be
 * in a call on the reader; the reads have all ended afterwards. */
void disk_reader_destroy(struct disk_reader *reader);

/* Queues the read and returns at once; never fails, never waits for the disk. */
void disk_read_submit(struct disk_reader *reader, struct disk_read *read);

/* True once the read is DONE or CANCELED: its fields may then be read and its storage used again.
 * No lock, no system call. False for an idle one. */
bool disk_read_is_done(const struct disk_read *read);

/* Blocks until the read has ended; STATUS_CANCELED if it was dropped. The sentence names file and
 * place. `err` may be NULL. */
enum status disk_read_wait(struct disk_reader *reader, struct disk_read *read, struct err *err);

/* Asks for no more of the read and returns at once. It ends CANCELED once the pieces in flight have
 * ended, which is at once if there are none; or DONE if all its pieces had been started. */
void disk_read_drop(struct disk_reader *reader, struct disk_read *read);

/* Drops the read and waits for the pieces in flight: nothing of it is written any more. True:
 * it is CANCELED, or was idle. False: it was too late, the read is DONE as it would have been. */
bool disk_read_cancel(struct disk_reader *reader, struct disk_read *read);

/* A guess that is now demanded: what has not started of it goes to the end of the demands. Does
 * nothing to a demand, nor to a read that has ended. */
void disk_read_promote(struct disk_reader *reader, struct disk_read *read);

/* ---- what it did ---- */

struct disk_class_counters {
    uint64_t submitted_count, done_count, failed_count, canceled_count; /* reads */
    uint64_t piece_count;
    uint64_t read_bytes; /* by the class that each piece had when it started */
    uint64_t busy_ns;    /* time with at least one piece of this class in flight */
};

struct disk_counters {
    struct disk_class_counters classes[DISK_CLASS_COUNT];
    uint64_t elapsed_ns;    /* since the reader was created: read_bytes over it is the rate of the
                               whole run, not only of the time when something was read */
    uint64_t busy_ns;       /* time with at least one piece in flight */
    uint64_t in_flight_ns;  /* each piece's time in flight; over busy_ns: the mean depth */
    uint64_t slowest_ns;    /* the longest that a piece took */
    uint32_t in_flight_max;
    uint64_t retry_count;   /* pieces tried again after EIO, EINTR or EAGAIN */
    uint64_t short_count;   /* pieces that were continued after a short read */
    uint64_t promoted_count;
};

void disk_reader_counters(struct disk_reader *reader, struct disk_counters *counters_out);

/* What the reader settled on: "io_uring" or "threads", and its depth and piece size. */
const char *disk_reader_engine_name(const struct disk_reader *reader);
uint32_t disk_reader_depth(const struct disk_reader *reader);
uint64_t disk_reader_piece_bytes(const struct disk_reader *reader);

/* ---- measuring ---- */

#define DISK_MEASURE_BLOCKS_MAX 8
#define DISK_MEASURE_DEPTHS 6 /* 1, 2, 4, 8, 16, 32 */

struct disk_measure_options {
    uint64_t block_bytes[DISK_MEASURE_BLOCKS_MAX]; /* multiples of DISK_ALIGN */
    uint32_t block_count; /* 0: 128 KiB, 256 KiB, 512 KiB, 1 MiB */
    uint64_t time_ns;     /* 0: 400 ms, about; a slow disk takes somewhat longer */
    uint64_t memory_bytes; /* to read into; 0: DISK_MEASURE_BYTES. At least 1 MiB */
    uint64_t spread_bytes; /* of disk_measure_spread's reads; 0: DISK_SPREAD_BYTES */
    uint32_t spread_depth; /* how many of them are under way; 0: as many as memory holds */
    enum disk_use uring;
};
#define DISK_MEASURE_BYTES (UINT64_C(32) << 20)
#define DISK_MEASURE_FILE_BYTES_MIN (UINT64_C(16) << 20) /* smaller files say nothing of a disk */

struct disk_measured {
    uint64_t sequential_bytes_per_s; /* one after the other, with `depth` and `piece_bytes` */
    uint64_t random_bytes_per_s[DISK_MEASURE_BLOCKS_MAX][DISK_MEASURE_DEPTHS]; /* 0: not tried */
    uint64_t block_bytes[DISK_MEASURE_BLOCKS_MAX];
    uint32_t block_count;
    uint64_t random_bytes_per_s_best; /* the best that the disk does over all of them */
    uint64_t spread_bytes_per_s;      /* by disk_measure_spread; 0: it was not called */
    uint32_t depth;       /* what a reader should use: enough in flight to reach that rate */
    uint64_t piece_bytes;
    uint64_t read_bytes, took_ns;
};

/* Reads the file here and there for a moment, into memory_bytes of memory. A file smaller
 * than 16 MiB is too small to say anything about its disk: STATUS_UNAVAILABLE. */
enum status disk_measure(const struct disk_file *file, const struct disk_measure_options *options,
                         struct disk_measured *measured_out, struct err *err);
/* What reads of spread_bytes at random places bring, as tiles and experts are read, with the
 * depth and the pieces that were chosen before, 0 where there was no choice; for options->time_ns,
 * which is long beside one of disk_measure's: a rate that lasts. Any file that has a few of such
 * reads will do. */
#define DISK_SPREAD_BYTES (UINT64_C(4) << 20)
enum status disk_measure_spread(const struct disk_file *file,
                               const struct disk_measure_options *options,
                               const struct disk_measured *measured, uint64_t *bytes_per_s_out,
                               struct err *err);

/* Sets depth and piece_bytes to what was measured where both are left open (0), and says so in the
 * options' log. bytes_per_s becomes the spread rate, else that of reading in order. */
void disk_reader_options_apply(struct disk_reader_options *options,
                               const struct disk_measured *measured);
/* Sets depth and piece_bytes by a shorter measurement (300 ms) where both are left open (0), and
 * says so in the options' log; where the disk can't be measured they stay open. */
void disk_reader_options_tune(struct disk_reader_options *options, const struct disk_file *file);

#endif
