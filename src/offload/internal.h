/* offload/internal.h - what the files of offload/ share.
 *
 *   offload.c   create and destroy, and what can be asked of an offload at any time
 *   load.c      memory, and filling it through the loaders
 *   late.c      a table that is loaded last, while passes run
 *   finish.c    what a device does to a parameter that has been loaded: its layout
 *   finisher.c  a thread that does it beside loading
 *   reload.c    filling one parameter again
 *   update.c    filling all of them from another checkpoint, or none
 *   rows.c      a parameter's rows where they are now, piece by piece
 *   fetch.c     one unit on its way from its home into a slot
 *   ring.c      the endless sequence of onloads through the slots
 *
 *   plan/       what stays and what moves
 *     options.c     options: defaults, names, and which combinations can be
 *     globs.c       --offload-params: comma-separated globs on parameter names, and what to say
 *                   when one matches nothing
 *     plan.c        which parameters move (V1, V2), and the units they form
 *     auto.c        what stays and what moves under a budget
 *     host_room.c   what a plan takes of host memory, and how much of it homes may have
 *     manifest.c    every unit, its home and its bytes
 *   home/       where units live that are off the device
 *     home.c        the table of homes (home.h), and the plainest of them
 *     disk.c        units that are read from files, past the page cache, each time
 *     segments.c    rows of parameters as they lie in files, and how records are laid out for them
 *     source.c      where what is on the disk lies: in one checkpoint, in another
 *     cached.c      units that are in a cache file, as the checkpoint has their bytes otherwise
 *     lookup.c      rows of a table on the disk, looked up by number
 *     shm.c         units whose records the ranks of a node share in host memory
 *     sharded.c     units of which each rank's device has a part; shard.c says which
 *     share.c       what the ranks of a node agree on, and when
 *   disk/       the reader, its measurements, and the cache file; knows nothing of units
 *   experts/    experts as units
 *     plan.c        their records and slots
 *     experts.c     which are asked for; fetches.c how they come; stream.c all in turn
 *     cache.c       which of them lie in which slots
 *     routing.c     what routers choose, remembered in a file (routing_file.h) for the next start
 *     preload.c     their favourites, brought at the start
 *   report/     what moved
 *     counters.c    and how long it took: collected by the engine's thread, published per pass
 *     snapshot.c    the counters of one moment, summed up
 *     report.c      the same as JSON, and checked against the schedule; log.c as lines
 *     timeline.c    the same as spans of a trace */
#ifndef LIGHTER_OFFLOAD_INTERNAL_H
#define LIGHTER_OFFLOAD_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "offload/disk/reader.h"
#include "offload/home/home.h"
#include "offload/offload.h"

#define OFFLOAD_SLOTS_MAX 65536
#define OFFLOAD_POISON 0xFF /* four or two of them are a NaN in F32, F16 and BF16; -1 in I32 */
#define OFFLOAD_EVENT_BYTES 256 /* of host memory for one; no device takes more */
#define OFFLOAD_NO_UNIT SIZE_MAX
#define OFFLOAD_NO_PARAM SIZE_MAX
#define OFFLOAD_NO_FILE UINT32_MAX

struct cache_hash;

struct offload__param {
    char *name;
    struct tensor tensor;     /* data: on the device, or NULL while the parameter is not there */
    uint64_t size_bytes;
    uint64_t offset_bytes;    /* in its unit's record, or in the block of what stays */
    int32_t layer;
    enum offload_part part;
    enum device_weight weight;
    bool default_selected;
    bool filled;              /* has contents: false only in a unit at home in meta */
    struct loader *loader;
    size_t unit;              /* index in offload.units; OFFLOAD_NO_UNIT: stays on the device, or
                                 its segments tell */
    bool by_rows, by_lookup;
    bool is_expert;           /* of the unit that is this expert of its layer */
    uint32_t expert;
    size_t segment_first, segment_count; /* in offload.segments, by rows; 0: it is in one piece */
};

/* Adjacent rows of one parameter that lie together, at home and on the device. A parameter without
 * segments lies in one piece. */
struct offload__segment {
    size_t param, unit;       /* unit OFFLOAD_NO_UNIT: stays on the device */
    uint64_t row_first, row_count;
    uint64_t size_bytes;
    uint64_t offset_bytes;    /* in the unit's record, or in the block of what stays */
    uint32_t file_index;      /* home disk: where it lies in the checkpoint, or OFFLOAD_NO_FILE: it
                                 does not */
    uint64_t file_offset_bytes;
};

/* How the contents of a unit get to where the compute stream reads them. */
enum offload__path {
    OFFLOAD_PATH_FETCH,    /* from its home into a slot */
    OFFLOAD_PATH_NOTHING,  /* from meta: a slot, and nothing is copied into it */
    OFFLOAD_PATH_IN_PLACE, /* read at home; takes no slot */
};

/* Moving parameters of one part of one layer. Units lie in the order in which a pass uses them. */
struct offload__unit {
    char name[48];            /* "layers.3.ffn" */
    uint32_t layer;
    enum offload_part part;
    enum offload_home home;   /* owner: the engine's thread; others read published.home */
    uint64_t size_bytes;      /* of the record: what one onload moves */
    size_t *params;           /* indices, ascending */
    size_t param_count;
    size_t segment_first, segment_count; /* in offload.segments; 0: parameters are in one piece */
    bool is_cached;           /* home disk: in the cache file, not as such in the checkpoint */
    size_t cache_index;
    bool is_tile;             /* a part of one parameter; read by offload_rows_begin */
    void *record;             /* in host memory, where the home has it there; NULL: nowhere */
    bool has_come;            /* some time, since the load; owner: the engine's thread */
};

/* What computing stood waiting for. */
enum offload__stall {
    OFFLOAD_STALL_DISK,   /* reads of the unit */
    OFFLOAD_STALL_LINK,   /* copies of the unit, or of others before it */
    OFFLOAD_STALL_SLOT,   /* its copy had no slot to begin in while the link stood idle */
    OFFLOAD_STALL_ROUTER, /* the host had yet to learn which expert it is */
    OFFLOAD_STALL_COUNT
};
const char *offload__stall_name(enum offload__stall cause);

/* When a unit came last, and when computing reached it and could go on, on clock_now_ns's clock.
 * All 0: it has not come yet. */
struct offload__arrival {
    struct offload__fetch_times times;
    uint64_t needed_ns, ready_ns;
};

/* Numbers of one unit since the last reset. */
struct offload__unit_counters {
    uint64_t onloads, bytes_moved;           /* brought, whether demanded or guessed */
    uint64_t onloads_planned, bytes_planned; /* what the schedule demands; of an expert: what its
                                                misses, and guesses that were begun, come to */
    uint64_t guessed_bytes;                  /* of bytes_moved: begun before anybody asked */
    uint64_t guess_used_bytes;               /* of those: asked for later */
    uint64_t guess_wasted_bytes;             /* released, or canceled, before anybody asked */
    uint64_t reread_bytes;                   /* of bytes_moved: had been on the device before */
    uint64_t hits, misses;                   /* of an expert: it was there, or on its way, when it
                                                was asked for, or not */
    uint64_t copied_bytes, copy_ns;          /* that came by the copy stream, and the time it took
                                                */
    uint64_t read_bytes, read_ns;            /* from a disk */
    uint64_t stall_ns[OFFLOAD_STALL_COUNT];
    struct offload__arrival last;
};

struct offload__counters {
    uint64_t passes;
    uint64_t run_ns;            /* from the first begin to the last pass_done */
    uint64_t run_copy_ns;       /* of copy_ns, what lies inside the run */
    uint64_t run_copied_bytes;  /* the bytes that belong to run_copy_ns */
    uint64_t pass_began_ns, pass_ended_ns; /* of the last pass; 0: there was none */
};

/* What a cache of the planned size makes of the tokens that are remembered. */
struct offload__rehearsal {
    uint32_t token_count;                   /* 0: there are none */
    uint64_t asked_count, missed_count;     /* of experts */
    double missed_bytes[OFFLOAD_HOME_COUNT];
};

struct offload {
    struct device *device;
    const struct log *log;                  /* borrowed; may be NULL */
    struct offload_options options;         /* params_glob is not kept */
    struct disk_measured disk_known;        /* depth 0: nothing is known of the disk */
    struct offload__param *params;
    size_t param_count;
    uint64_t finish_bytes;                  /* memory that finishing any of them takes; 0: none */
    uint32_t layer_count;
    struct offload__unit *units;
    size_t unit_count, ring_count;          /* all; those that the ring moves, which are the first,
                                               in the order in which a pass uses them */
    struct offload__segment *segments;
    size_t segment_count, segment_capacity;
    size_t *unit_of;                        /* [layer_count][OFFLOAD_PART_COUNT] */
    size_t *expert_units;                   /* [layer_count]: unit of expert 0, or OFFLOAD_NO_UNIT;
                                               NULL: experts are no units */
    uint32_t expert_count;                  /* of each layer that has any */
    struct offload__routing *routing;       /* NULL: what routers choose is not remembered */
    struct offload__rehearsal rehearsal;
    struct offload__experts *experts;       /* experts.c's; NULL: experts are no units */
    struct offload_sizes sizes;
    bool in_place;                          /* the device's memory is the host's */
    const char *mode;                       /* "off", "cpu", "meta": as it was asked for */

    /* Taken by offload_load. */
    bool loaded;
    struct stream *compute;                 /* borrowed */
    struct stream *copy;
    uint8_t *resident;                      /* device memory of what stays */
    uint64_t charged_bytes;                 /* of host memory, for tables */
    uint8_t *slots;                         /* device memory, slot_count * slot_bytes */
    struct event **ended;                   /* [slot_count]: the slot's last reader, on compute */
    struct offload__fetch *onloads;         /* [2 * ring_count]; the k-th is at k mod that */
    struct event **stall_began, **stall_ended; /* [ring_count], on compute, around the wait */

    /* The endless sequence; owner: the engine's thread. */
    bool started;                           /* false: only a restart helps */
    struct err stopped;                     /* then: why the last one failed */
    bool torn;                              /* shared bytes may be of two versions: nothing helps */
    bool mixed;                             /* the same, of a live update that could not go back */
    uint64_t position;                      /* the next onload to be read */
    uint64_t pass_position;                 /* position at the start of this pass */
    uint64_t head;                          /* the next onload to be queued */
    uint64_t prepared;                      /* the next onload of which what needs no slot is to be
                                               begun; or less than head */
    uint64_t harvested;                     /* the next onload whose times are to be read */
    size_t lookup_param;                    /* OFFLOAD_NO_PARAM: no table is looked up */
    struct offload__lookup *lookup;         /* lookup.c's */
    struct offload__late *late;             /* late.c's; NULL: every table is there, or on the disk
                                               */
    struct offload__shm *shm;               /* home/shm.c's; NULL: no unit is at home there */
    struct offload__sharded *sharded;       /* home/sharded.c's; likewise */
    struct offload__cached *cached;         /* cached.c's; NULL: there is no cache file */
    struct offload__disk *disk;             /* home/disk.c's; NULL: no unit is at home there */
    size_t active;                          /* unit between begin and end, or OFFLOAD_NO_UNIT */
    uint8_t *active_base;                   /* where its record lies now */

    /* Counters; owner: the engine's thread. */
    struct offload__counters totals;
    struct offload__unit_counters *counters; /* [unit_count] */
    uint64_t run_began_ns;                  /* 0: no begin since the reset */
    uint64_t pass_began_ns;                 /* 0: no pass is under way */
    struct offload__timeline *timeline;     /* NULL: nothing is traced */
    uint64_t last_copied_ns;                /* when the copy that was told last had ended */
    bool has_warned;                        /* that the device replays nothing any more */

    /* What any thread may read. */
    pthread_mutex_t lock;                   /* guards published_*; for copies only */
    struct offload__counters published_totals;
    struct offload__unit_counters *published_counters; /* [unit_count] */
    uint64_t disk_base_bytes, disk_base_busy_ns; /* the reader's, at the last reset */
    struct device_replays replays_base;     /* the device's, likewise */
    enum offload_home *published_homes;     /* [unit_count] */
    atomic_bool garbage;                    /* orders nothing: a mark for answers */
};

/* options.c */
bool offload__is_v1(const struct offload_options *options);
bool offload__is_v2(const struct offload_options *options);
/* What can be checked without knowing the parameters. */
enum status offload__options_check(const struct offload_options *options, uint32_t layer_count,
                                   const struct log *log, struct err *err);
enum status offload__options_check_auto(const struct offload_options *options,
                                        const struct log *log, struct err *err);
/* What depends on how many units move. */
enum status offload__options_check_units(const struct offload_options *options, size_t unit_count,
                                         struct err *err);

/* globs.c. Marks in selected_out[param_count] the parameters with eligible[i] whose name a glob
 * matches; each glob must match one. */
enum status offload__globs_match(const char *globs, const struct offload__param *params,
                                 size_t param_count, const bool *eligible, bool *selected_out,
                                 struct err *err);

/* plan.c. Sets moves_out[param_count]. Pure: no device, no state. */
enum status offload__plan(const struct offload__param *params, size_t param_count,
                          uint32_t layer_count, const struct offload_options *options,
                          const struct log *log, bool *moves_out, struct err *err);
/* Forms the units of what moves, lays out their records and the block of what stays, and fills
 * offload's units, unit_of and sizes. */
enum status offload__plan_units(struct offload *offload, const bool *moves, struct err *err);

/* Slots and sums, once the units are there. */
enum status offload__plan_sizes(struct offload *offload, struct err *err);
/* Appends size_bytes to a block of *size_bytes; *offset_out: where they lie. `name` for messages.
 * */
enum status offload__block_append(const char *name, uint64_t added_bytes, uint64_t *size_bytes,
                                  uint64_t *offset_out, struct err *err);
enum offload__path offload__path(const struct offload *offload, const struct offload__unit *unit);

/* Gives a unit at home on the disk its segments and its record. */
enum status offload__unit_lay_out_for_disk(struct offload *offload, struct offload__unit *unit,
                                           struct err *err);

/* experts/plan.c */
enum status offload__options_check_experts(const struct offload_options *options, struct err *err);
/* After the plan of all else: the units of experts, their records and slots. */
enum status offload__plan_experts(struct offload *offload, struct err *err);
/* Device memory without which experts cannot be units, or somewhat more. */
uint64_t offload__experts_bytes_min(const struct offload *offload);
/* Where the expert's matrices lie when its record is at `record`. */
struct op_moe_expert offload__expert_at(const struct offload *offload, size_t unit,
                                        const uint8_t *record);

/* Of experts, all of them at home on the host; and the largest as it lies in files, or more. */
uint64_t offload__experts_near_bytes(const struct offload *offload);
uint64_t offload__expert_bytes_max(const struct offload *offload);

/* routing.c. All but open and close do nothing, or have nothing, when nothing is remembered. */
#define OFFLOAD_TOP_K_MAX 64
/* When experts have their units; reads the file. */
void offload__routing_open(struct offload *offload);
/* Writes it, when there is enough that is new. */
void offload__routing_save(struct offload *offload);
void offload__routing_close(struct offload *offload);
/* Other weights serve now. */
void offload__routing_forget(struct offload *offload);
void offload__routing_pass(struct offload *offload, bool streams);
/* ids[row_count][top_k] of the ordinal-th layer with experts. */
void offload__routing_note(struct offload *offload, uint32_t ordinal, const int32_t *ids,
                           uint32_t row_count);
/* Experts by falling count, as ordinal * expert_count + expert; NULL: it is not known. */
const uint32_t *offload__routing_order(const struct offload *offload);
/* The share of tokens that choose it. */
double offload__routing_rate(const struct offload *offload, uint32_t key);
size_t offload__routing_unit(const struct offload *offload, uint32_t key);
/* Fills offload->rehearsal. The plan is made. */
void offload__routing_rehearse(struct offload *offload);
/* experts/preload.c */
enum status offload__experts_preload(struct offload *offload, const struct progress *progress,
                                     struct err *err);

/* segments.c */
/* Whether it is read from a file each time that it is needed. */
bool offload__segment_is_read(const struct offload *offload,
                              const struct offload__segment *segment);
/* Appends segments of the parameter's rows that are in no file, each of at most max_bytes. */
enum status offload__segments_cut(struct offload *offload, size_t param, uint64_t max_bytes,
                                  struct err *err);
uint64_t offload__row_bytes(const struct offload__param *param);
/* Appends segments of the parameter's rows as they lie in the files of options.ckpt, each of at
 * most max_bytes (but at least a row), to offload.segments. *done_out: false, and nothing is
 * appended, when its bytes are not in the files as they shall be. */
enum status offload__segments_add(struct offload *offload, size_t param, uint64_t max_bytes,
                                  bool *done_out, struct err *err);
/* Lays segments out as reads past the page cache need them: each at the same place in its block as
 * in its file. Sets offset_bytes; *size_bytes_out: of a record that holds them. */
enum status offload__segments_lay_out(struct offload *offload, size_t first, size_t count,
                                      uint64_t *size_bytes_out, struct err *err);

/* Where the segments lie in the files of another checkpoint, which loader_check has passed:
 * segments_out[offload->segment_count], and sizes_out[unit_count] of the units' records then. */
enum status offload__segments_find(const struct offload *offload, const struct ckpt *ckpt,
                                   struct offload__segment *segments_out, uint64_t *sizes_out,
                                   struct err *err);

/* auto.c. Instead of offload__plan and offload__plan_units: what stays, and the tiles that move. */
enum status offload__plan_auto(struct offload *offload, struct err *err);

/* host_room.c */
/* The home on the host that auto chooses: shared where the node has several ranks. */
enum offload_home offload__near_home(const struct offload *offload);
/* Whether the parameter lies in the checkpoint's files as it is used, in whatever pieces. */
bool offload__param_is_plain(const struct offload__param *param, const struct ckpt *ckpt);
/* Host memory to read a parameter that has no place in host memory through; of all the most. */
uint64_t offload__bounce_bytes(const struct offload *offload, const struct ckpt *ckpt);
#define OFFLOAD_PIECE_BYTES (UINT64_C(4) << 20) /* of a parameter, read at once */

/* How much of what moves may be at home on the host. */
struct offload__host_room {
    uint64_t tile_count, tile_bytes;         /* of tiles that move, as they lie there */
    uint64_t tile_slot_bytes;
    uint64_t near_bytes;                     /* the answer, for tiles and experts together */
};
/* Before units are made; segments and slots are known. */
void offload__host_room(const struct offload *offload, struct offload__host_room *room);
/* Fills what sizes tell of host memory. The plan is made. */
void offload__host_sizes(struct offload *offload);

/* lookup.c */
/* Host memory to read rows into. */
uint64_t offload__lookup_host_bytes(const struct offload *offload,
                                    const struct offload__param *param);
/* Device memory for the rows of one lookup. */
uint64_t offload__lookup_bytes(const struct offload *offload, const struct offload__param *param);
enum status offload__lookup_open(struct offload *offload, struct err *err);
void offload__lookup_close(struct offload *offload);

/* late.c. By the engine's thread, or before there is one; what changes something does nothing where
 * no table is late. */
/* Host memory for the rows of a pass that are read by themselves, while options.ckpt's table is
 * late; 0: none will be. */
uint64_t offload__late_bytes(const struct offload *offload);
/* Whether this parameter is one that the first load leaves out. */
bool offload__late_is(const struct offload *offload, size_t param);
/* Finds out whether a table of this checkpoint is to be late, and takes memory for it. */
enum status offload__late_take(struct offload *offload, const struct ckpt *ckpt, struct err *err);
/* Starts the thread that loads it; all else is loaded. */
enum status offload__late_start(struct offload *offload, struct err *err);
/* Whether the parameter is not all there yet. */
bool offload__late_is_open(struct offload *offload, size_t param);
enum status offload__late_lookup(struct offload *offload, const int32_t *ids, uint32_t count,
                                 const void **rows_out, struct err *err);
/* STATUS_IO when the files have changed since all else was loaded. Any thread. */
enum status offload__late_check(const struct offload *offload, struct err *err);
/* A pass has ended, whether well or not: it is the disk's turn. */
void offload__late_pass_ended(struct offload *offload);
/* Waits until it is loaded, or could not be. */
void offload__late_settle(struct offload *offload);
/* It has been loaded by others, from whatever checkpoint. Settled before. */
void offload__late_filled(struct offload *offload);
/* Stops loading it. */
void offload__late_stop(struct offload *offload);

/* cached.c */
/* Opens the checkpoint's cache file of the units that need one, or makes it first. *cached_out:
 * NULL when none does. Of an offload's state it changes nothing. */
enum status offload__cached_open(struct offload *offload, const struct ckpt *ckpt,
                                 enum disk_use direct, struct offload__cached **cached_out,
                                 struct err *err);
void offload__cached_close(struct offload__cached *cached);
/* A hash of the checkpoint's files and of `layout`. */
enum status offload__fingerprint(const struct ckpt *ckpt, const struct cache_hash *layout,
                                 struct cache_hash *out, struct err *err);
/* Where the unit's record is; sets all but dst. */
void offload__cached_extent(const struct offload *offload, size_t unit, struct disk_extent *extent);
/* Checks a record that has been read, the first time; makes it anew when it is bad. */
enum status offload__cached_verify(struct offload *offload, size_t unit, uint8_t *bytes,
                                   struct err *err);

/* source.c. Where in a checkpoint, and its cache file, the bytes of what is on the disk lie. */
struct offload__source {
    const struct ckpt *ckpt;            /* borrowed */
    struct offload__segment *segments;  /* [segment_count], in the offload's order */
    uint64_t *unit_bytes;               /* [unit_count] */
    struct disk_file **files;
    uint32_t file_count;
    struct offload__cached *cached;
};
/* Of a zeroed source with a ckpt that the loaders fit. Any thread, while passes run. To be closed
 * also when it fails. */
enum status offload__source_open(struct offload *offload, struct offload__source *source,
                                 struct err *err);
void offload__source_close(const struct offload *offload, struct offload__source *source);
/* Reads every byte that the offload would once. */
enum status offload__source_read(struct offload *offload, const struct offload__source *source,
                                 struct err *err);
/* The offload's source and this one change places. The engine's thread, with nothing on its way. */
void offload__source_swap(struct offload *offload, struct offload__source *source);

/* home/disk.c. Opens the files that segments which are read from the disk lie in; *files_out is
 * set also when it fails. */
enum status offload__disk_files_open(const struct offload *offload, const struct ckpt *ckpt,
                                     const struct offload__segment *segments,
                                     struct disk_file ***files_out, uint32_t *count_out,
                                     struct err *err);
void offload__disk_files_close(struct disk_file **files, uint32_t count);
/* Exchanges the open files, and the checkpoint's. */
void offload__disk_files_swap(struct offload *offload, struct disk_file ***files,
                              uint32_t *count);
/* The largest record that a fetch can bring. */
uint64_t offload__disk_record_bytes(const struct offload *offload);
enum disk_use offload__disk_direct(const struct offload *offload);
/* Of a file that some unit or table is in; both NULL before the home is open. */
const struct disk_file *offload__disk_file(const struct offload *offload, uint32_t file_index);
struct disk_reader *offload__disk_reader(const struct offload *offload);

/* offload.c */
/* Recomputes `garbage` and publishes the homes. */
void offload__homes_changed(struct offload *offload);

/* home/disk.c. What the disk's reader has done so far; *bytes_per_s_out: measured, 0: not. False:
 * there is no reader. Any thread. */
bool offload__disk_usage(const struct offload *offload, uint64_t *bytes_out, uint64_t *busy_ns_out,
                         uint64_t *bytes_per_s_out);

/* home.c. fetch_begin of homes whose records lie in host memory. */
enum status offload__record_fetch(struct offload *offload, struct offload__fetch *fetch,
                                  struct err *err);
/* A part of such a record and `bytes` change places. */
void offload__record_swap(struct offload *offload, size_t unit, uint64_t offset_bytes,
                          uint8_t *bytes, uint64_t size_bytes);

/* home/sharded.c. Device memory for a rank's shards, and its part of one unit. */
uint64_t offload__sharded_bytes(const struct offload *offload, uint32_t rank);
uint64_t offload__sharded_own(const struct offload *offload, size_t unit);

/* load.c. What filling every parameter from a checkpoint takes besides the homes; reaches from a
 * first load to a live update and back. */
struct offload__fill {
    struct offload *offload;            /* these three are set by the caller */
    const struct ckpt *ckpt;
    const struct progress *progress;
    struct loader_staging *staging;
    uint8_t *bounce;                    /* NULL: not needed */
    uint64_t bounce_bytes, charged_bytes;
    void *finish;                       /* [finish_bytes]; NULL: not needed */
    struct offload__finisher *finisher; /* NULL: not needed. `finish` is its own while it works */
    uint64_t done_bytes, total_bytes;   /* of the checkpoint */
};
/* Takes memory; to be undone also when it fails. */
enum status offload__fill_init(struct offload__fill *fill, struct err *err);
void offload__fill_deinit(struct offload__fill *fill);
/* Fills what is this process's to fill. When it fails, bytes of two checkpoints may be there. */
enum status offload__fill_run(struct offload__fill *fill, const struct ckpt *ckpt,
                              struct err *err);
/* Whether the parameter's bytes are for this process to load. */
bool offload__is_loaded_here(const struct offload *offload, const struct offload__param *param);
/* Reads no data. */
enum status offload__loaders_check(const struct offload *offload, const struct ckpt *ckpt,
                                   struct err *err);

/* finish.c */
/* Before the plan: the layout that the device needs the parameter in, and memory for finishing. */
void offload__layout_choose(struct offload *offload, struct offload__param *param);
/* When homes are known: the layouts that devices are faster with; says once what is kept in which,
 * and how many matrices keep ND although the device would want them otherwise. */
void offload__layouts_settle(struct offload *offload);
/* Makes final bytes of those that the loader has written, in place. `scratch`: the offload's
 * finish_bytes of memory. */
enum status offload__finish(const struct offload *offload, const struct offload__param *param,
                            uint8_t *bytes, void *scratch, struct err *err);
/* The same of some rows of it, in whole granules. */
void offload__finish_rows(const struct offload__param *param, uint8_t *bytes, uint64_t row_count,
                          void *scratch);
/* How many rows the parameter may be cut into the multiples of. */
uint64_t offload__row_granule(const struct offload__param *param);

/* finisher.c. Finishes rows of parameters in the order in which they are added; scratch as above,
 * borrowed. Adding waits where too many are waiting. One thread adds and waits. NULL is fine for
 * waiting and destroying. */
struct offload__finisher;
enum status offload__finisher_create(void *scratch, struct offload__finisher **finisher_out,
                                     struct err *err);
void offload__finisher_add(struct offload__finisher *finisher, const struct offload__param *param,
                           uint8_t *bytes, uint64_t row_count);
/* Until all that was added is final. */
void offload__finisher_wait(struct offload__finisher *finisher);
void offload__finisher_destroy(struct offload__finisher *finisher);

/* Gives back everything that offload_load took; waits for the streams. */
void offload__memory_free(struct offload *offload);

/* ring.c. Takes streams and events; `slots` must be there. */
enum status offload__ring_create(struct offload *offload, struct err *err);
void offload__ring_destroy(struct offload *offload);
/* Starts the sequence at the first unit: poisons or clears the slots and queues the first
 * prefetch_step onloads. Both streams must be idle. */
enum status offload__ring_start(struct offload *offload, struct err *err);
/* Fails when weights may be of two versions. */
enum status offload__torn_check(const struct offload *offload, struct err *err);
/* Waits for both streams; returns the first error. */
enum status offload__ring_sync(struct offload *offload, struct err *err);
/* Makes the unit, which is the next of the sequence, readable at active_base until it is released.
 * */
enum status offload__unit_acquire(struct offload *offload, size_t unit, struct err *err);
enum status offload__unit_release(struct offload *offload, size_t unit, struct err *err);
/* Waits until no read writes to a slot any more. */
void offload__ring_abandon(struct offload *offload);
/* Queues what is ahead of the next pass and belongs to `unit` once more, after its home has
 * changed. */
enum status offload__ring_renew(struct offload *offload, size_t unit, struct err *err);

/* experts.c. Takes memory, events and fetches; the homes must be open. */
enum status offload__experts_create(struct offload *offload, struct err *err);
void offload__experts_destroy(struct offload *offload);
/* Waits until no read writes to a slot any more, and forgets what the slots hold. */
void offload__experts_abandon(struct offload *offload);
/* The unit's home holds other bytes now. Between passes, with both streams synced. */
void offload__experts_forget(struct offload *offload, size_t unit);
/* A pass has ended and the streams are synced: reads the times of what was copied. */
void offload__experts_harvest(struct offload *offload);
/* As many reads of experts can be under way. */
uint32_t offload__experts_fetch_count(const struct offload *offload);
/* The most of it that reading into staging memory needs, when experts are slot_bytes large. */
uint64_t offload__experts_staging_max(uint64_t slot_bytes, uint64_t slot_count);
/* Host memory that the device copies lists of experts from and to; and for tables. */
uint64_t offload__experts_copied_bytes(const struct offload *offload);
uint64_t offload__experts_host_bytes(const struct offload *offload);

/* home/disk.c. Host memory for staging records, and for what describes reads. */
uint64_t offload__disk_staging_bytes(const struct offload *offload);
uint64_t offload__disk_table_bytes(const struct offload *offload);

/* home/disk.c. STATUS_IO when a file is no longer what it was. */
enum status offload__disk_check(const struct offload *offload, struct err *err);

/* counters.c */
/* A pass is under way from now on, unless it is already. */
void offload__count_pass_begin(struct offload *offload);
void offload__count_pass_end(struct offload *offload);
/* An onload has begun. */
void offload__count_onload(struct offload *offload, size_t unit, uint64_t bytes);
/* The same, of what nobody has asked for yet. */
void offload__count_guess(struct offload *offload, size_t unit, uint64_t bytes);
/* Somebody has asked for what was guessed; or nobody has, and it is released or canceled. */
void offload__count_guess_used(struct offload *offload, size_t unit);
void offload__count_guess_wasted(struct offload *offload, size_t unit);
/* An expert was asked for. */
void offload__count_asked(struct offload *offload, size_t unit, bool was_there);
/* Computing waited for the unit; times on clock_now_ns's clock. */
void offload__count_stall(struct offload *offload, size_t unit, enum offload__stall cause,
                          uint64_t began_ns, uint64_t ended_ns);
/* Computing waited from began_ns to ended_ns for a fetch that offload__count_arrived has seen:
 * shares the time out among the causes. */
void offload__count_wait(struct offload *offload, const struct offload__fetch *fetch,
                         uint64_t began_ns, uint64_t ended_ns);
/* Takes in the times of a fetch; false: it has not arrived yet. `wait`: wait for it. Once for each
 * fetch, in the order of their copies. */
bool offload__count_arrived(struct offload *offload, struct offload__fetch *fetch, bool wait);
/* One more onload of the unit is due by the schedule. */
void offload__count_planned(struct offload *offload, size_t unit);
/* Reads the times of the pass that has ended, and of what has arrived since for the next. */
void offload__counters_harvest(struct offload *offload);
void offload__counters_publish(struct offload *offload);

/* timeline.c. Everything does nothing when options.trace is NULL. */
enum status offload__timeline_create(struct offload *offload, struct err *err);
void offload__timeline_destroy(struct offload *offload);
/* Marks on the compute stream: its part of the layer begins or ends. */
enum status offload__timeline_mark(struct offload *offload, size_t place, bool begins,
                                   struct err *err);
/* The compute stream has been synced: tells the parts of this pass. */
void offload__timeline_pass_done(struct offload *offload);
/* Forgets this pass's marks. */
void offload__timeline_pass_abort(struct offload *offload);
void offload__timeline_fetch(struct offload *offload, const struct offload__fetch *fetch);
void offload__timeline_stall(struct offload *offload, size_t unit, uint64_t began_ns,
                             uint64_t ended_ns);

#endif
