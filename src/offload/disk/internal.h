/* offload/disk/internal.h - what the files of the disk reader share, and nobody else sees.
 *
 * reader.c has the queues and the thread, piece.c cuts reads into pieces and judges how each ended,
 * uring.c and threads.c are the two engines that carry pieces out. */
#ifndef LIGHTER_OFFLOAD_DISK_INTERNAL_H
#define LIGHTER_OFFLOAD_DISK_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "offload/disk/reader.h"

struct disk_file {
    int fd;
    bool direct;
    char *path;
    uint64_t size_bytes;
    uint64_t device, inode; /* with mtime: is it still the same? */
    int64_t mtime_s, mtime_ns;
};

/* One pread's worth of a read, in one of the reader's `depth` places. Between begin and its return
 * from wait it is the engine's; else the reader's. */
struct disk__piece {
    struct disk_read *read; /* NULL: the place is free */
    const struct disk_file *file;
    enum disk_class class;
    uint64_t number;            /* from 1, as pieces are first started */
    uint64_t offset_bytes;      /* of the next attempt; a multiple of DISK_ALIGN, as is the size */
    uint64_t size_bytes;
    uint64_t needed_end_bytes;  /* reading up to here is enough: the extent's end */
    char *dst;
    uint32_t attempt_count, eio_count, again_count;
    uint64_t began_ns;
    uint64_t stall_ns;          /* the engine starts it only after so long */
    uint64_t attempt_bytes;     /* what the engine reads: size_bytes, or less to test */
    int32_t result;             /* set by the engine: bytes, or -errno */
    struct disk__piece *next;   /* the engine's */
    int64_t stall_spec[2];      /* the engine's: seconds, nanoseconds */
};

enum disk__verdict { DISK__PIECE_ENDED, DISK__PIECE_AGAIN, DISK__PIECE_FAILED };

/* Cuts the next piece off the read; false when none is left. The piece's read, file, class, place,
 * size and dst are set, the rest zeroed. */
bool disk__piece_cut(struct disk_read *read, uint64_t piece_bytes, struct disk__piece *piece_out);
/* Are there pieces that have not been cut off yet? */
bool disk__piece_is_left(struct disk_read *read);
/* Sets what the engine shall do for the next attempt, faults included. */
void disk__piece_prepare(struct disk__piece *piece, const struct disk_faults *faults);
/* After an attempt: is the piece at its end, must it be tried again (it then stands where to go on
 * from), or has it failed? *bytes_out: the bytes that this attempt brought. */
enum disk__verdict disk__piece_judge(struct disk__piece *piece, const struct disk_faults *faults,
                                     uint64_t *bytes_out, struct err *err);

/* From the rates of random reads: the best, and the depth and piece that a reader should use. */
void disk__measure_choose(struct disk_measured *measured);

struct disk__engine;

struct disk__engine_ops {
    const char *name;
    /* *depth: pieces wanted in flight; lowered to what the engine can do. */
    enum status (*create)(uint32_t *depth, struct disk__engine **engine_out, struct err *err);
    /* Nothing is in flight. NULL is fine. */
    void (*destroy)(struct disk__engine *engine);
    /* Reader's thread: takes the piece; no system call. It may start only with the next wait. */
    void (*begin)(struct disk__engine *engine, struct disk__piece *piece);
    /* Reader's thread: starts what was begun and blocks until a piece has ended or wake was called
     * since the last wait. Gives back 0 to piece_count_max pieces. */
    uint32_t (*wait)(struct disk__engine *engine, struct disk__piece **pieces_out,
                     uint32_t piece_count_max);
    /* Any thread: the wait that is under way, or the next, returns. */
    void (*wake)(struct disk__engine *engine);
};

extern const struct disk__engine_ops disk__uring;
extern const struct disk__engine_ops disk__threads;

/* disk_reader_create on this engine: for tests, which bring one that they control. */
enum status disk__reader_create_on(const struct disk__engine_ops *ops,
                                   const struct disk_reader_options *options,
                                   struct disk_reader **reader_out, struct err *err);

#endif
