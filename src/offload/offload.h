/* offload/offload.h - which weights live where, and when they move.
 *
 * A model describes its parameters in the order in which a pass uses them. The offloader puts those
 * that are selected into units, one for each (layer, part) that has any, gives every unit a home
 * and one contiguous record there, and everything else a place in device memory. During a pass the
 * model brackets each part of each layer:
 *
 *     offload_begin(layer, part)   its parameters' tensors have addresses from here
 *     ... device_launch ...
 *     offload_end(layer, part)     ... to here
 *
 * Both only queue work and return at once. Moving units form one endless sequence, pass after pass;
 * the k-th onload of the sequence goes to slot k mod slot_count:
 *
 *     copy stream:     wait(slot's last reader ended) - copy home -> slot - record(loaded)
 *     compute stream:  wait(loaded) - the part's ops - record(ended)
 *
 * At begin of the k-th, the onload of the (k + prefetch_step)-th is queued, so that at most
 * prefetch_step + 1 slots are in use and the next pass's first units are on the way before this
 * pass has ended.
 *
 *                     +-- offload_begin queues --+
 *     unit:  HOME ----------> LOADING ---------> RESIDENT ---- offload_end ----> HOME
 *
 * Nothing is written back: weights don't change. On a device whose memory is host memory, units at
 * home on the host are used in place and nothing moves.
 *
 * Threads: one (the engine's), but for offload_report_json, _log and _check, the manifest and
 * offload_is_garbage, which any thread may call. */
#ifndef LIGHTER_OFFLOAD_OFFLOAD_H
#define LIGHTER_OFFLOAD_OFFLOAD_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/log.h"
#include "base/progress.h"
#include "base/status.h"
#include "base/trace.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/loader.h"
#include "cluster/cluster.h"
#include "device/device.h"
#include "offload/disk/reader.h"
#include "tensor/tensor.h"

struct offload;

/* What a layer is divided into; a pass runs a layer's parts in this order. */
enum offload_part { OFFLOAD_PART_ATTENTION, OFFLOAD_PART_FFN, OFFLOAD_PART_COUNT };
const char *offload_part_name(enum offload_part part);

#define OFFLOAD_NO_LAYER (-1)

struct offload_param_desc {
    const char *name;        /* copied: "model.layers.3.mlp.experts.w13_weight" */
    enum dtype dtype;
    uint32_t rank;
    uint64_t shape[TENSOR_RANK_MAX];
    int32_t layer;           /* OFFLOAD_NO_LAYER: outside the layers; always on the device */
    enum offload_part part;  /* of its layer */
    enum device_weight weight; /* what it is to the ops that read it, which decides its layout */
    bool default_selected;   /* moved by V2 unless --offload-params says otherwise: the matrices of
                                the FFN, or the experts */
    bool by_rows;            /* read through offload_rows_begin or offload_row alone, so that its
                                rows
                                need not lie together */
    bool by_lookup;          /* a table outside the layers, read through offload_lookup when
                                offload_is_looked_up: an embedding */
    bool is_expert;          /* with options.experts: one of the two matrices of an expert, w13
                                (gate
                                over up) and then w2, which is a unit of its own */
    uint32_t expert;         /* which of its layer's */
    struct loader *loader;   /* taken by offload_create, also when it fails */
};

enum offload_home {
    OFFLOAD_HOME_DEVICE,
    OFFLOAD_HOME_HOST,
    OFFLOAD_HOME_SHM,
    OFFLOAD_HOME_SHARDED,
    OFFLOAD_HOME_DISK,
    OFFLOAD_HOME_META,
    OFFLOAD_HOME_COUNT
};
const char *offload_home_name(enum offload_home home);
/* "cpu", "meta", ...; others are STATUS_BAD_INPUT with what exists. */
enum status offload_mode_parse(const char *mode, enum offload_home *home_out, struct err *err);

struct offload_options {
    /* V1: parameters in model order go home until this many bytes are gone. 0: off. */
    uint64_t cpu_offload_bytes;
    /* V2: of every group_size layers the last num_in_group have their selected parameters moved.
     * group_size 0: off. */
    int64_t group_size, num_in_group;
    int64_t prefetch_step;        /* >= 1 */
    enum offload_home home;       /* of what moves; with `automatic`: of what does not fit */
    /* Auto: as much as the budget holds stays on the device; of the rest, pieces of tile_bytes
     * move, spread evenly over the layers. Instead of V1 and V2. */
    bool automatic;
    uint64_t weight_budget_bytes; /* auto, experts: for what stays and the slots */
    uint64_t *weight_budget_smallest_out; /* set where that is too small: the one that would do.
                                       NULL: nobody asks */
    /* Auto, on a device with a link: host memory for homes, and for all else that the offload takes
     * of it. What does not fit there is at home on the disk. */
    uint64_t host_budget_bytes;
    uint64_t tile_bytes;          /* auto: of a piece, about; 0: chosen */
    uint32_t lookup_row_max;      /* rows of one offload_lookup; 0: tables stay on the device, and
                                     are loaded like all else */
    uint64_t late_bytes_min;      /* a table that is looked up, of as many bytes, is loaded last,
                                     while passes run, on a device whose memory is the host's; 0:
                                     each */
    struct cluster *cluster;      /* borrowed; the ranks of its node share homes shm and sharded.
                                     NULL: this process alone */
    const char *inherited;        /* offload_share_text of a rank of this machine that is ready: if
                                     its plan is the same, what is at home in shm is there already.
                                     Borrowed until offload_load has returned; NULL */
    const struct ckpt *ckpt;      /* borrowed; homes on the disk read its files. NULL: none will do
                                     */
    const char *disk;             /* --offload-disk: see disk_reader_options_parse. Borrowed until
                                     offload_load has returned; NULL: defaults */
    bool forgets;                 /* what routers choose is not remembered for the next start */
    const char *cache_dir;        /* folder for cache files, of what the checkpoint has otherwise
                                     than
                                     it is used. Borrowed likewise; NULL: there is none */
    const char *params_glob;      /* NULL: default_selected. Comma-separated globs on names */
    int64_t slot_count;           /* 0: prefetch_step + 1 */
    /* Experts: those that are described as such move one by one, from `home`, when they are
     * chosen. */
    bool experts;
    int64_t expert_slot_count;    /* 0: what weight_budget_bytes leaves */
    uint32_t expert_top_k;        /* chosen for each row; the model's */
    uint32_t row_count_max;       /* of a pass; the model's */
    struct trace *trace;          /* borrowed until offload_destroy; NULL: nothing is traced */
    bool poison;                  /* fill released slots with signalling NaN; on in debug builds */
    /* Faults, put in on purpose by tests. */
    bool fault_skip_loaded_wait;  /* compute does not wait for the copy */
    bool fault_skip_ended_wait;   /* the copy does not wait for the last reader */
    bool fault_meta_loses_loader; /* what is at home in meta can't be loaded any more */
    bool fault_meta_is_cast;      /* it is finished, though it has no bytes */
    bool fault_late_waits;        /* such a table is not loaded before somebody waits for it */
    bool fault_skip_contiguous;   /* finishing takes a transposed matrix for a contiguous one */
};

/* V2's and V1's settings as SGLang's defaults: V1 and V2 off, num_in_group 1, prefetch_step 1. */
void offload_options_init(struct offload_options *options);

/* What options come to for these parameters, before any memory is taken. */
struct offload_sizes {
    uint64_t resident_bytes;      /* device memory for what stays */
    uint64_t slot_bytes;          /* of one slot: the largest unit's record */
    uint64_t slot_count;          /* 0, like slot_bytes: no unit needs one, all are used in place */
    uint64_t shard_bytes;         /* device memory for this rank's part of units at home in shards
                                     */
    uint64_t moving_bytes;        /* the units' records in total. Home host: what the homes take,
                                     and what moves in a pass unless used in place; home meta:
                                     neither */
    uint64_t unit_count;          /* that move */
    uint64_t expert_slot_count;   /* 0, like expert_slot_bytes: none are needed */
    uint64_t expert_slot_bytes;   /* of one: the largest expert's record */
    uint64_t expert_list_bytes;   /* device memory for lists of experts */
    uint64_t expert_bytes;        /* device memory for both */
    /* Host memory. What ranks share counts where it is made. */
    uint64_t host_home_bytes;     /* homes */
    uint64_t host_staging_bytes;  /* what is read from the disk on its way to the device */
    uint64_t host_table_bytes;    /* lists of onloads, reads and experts */
    uint64_t host_load_bytes;     /* while weights are loaded, at the start and when updated */
    uint64_t host_bytes;          /* all of these */
};

/* What a pass is expected to move. */
struct offload_traffic {
    double disk_bytes;            /* read from files */
    double link_bytes;            /* copied to the device; what came from a file and is copied
                                     counts
                                     twice, once in each */
    double peer_bytes;            /* copied from other ranks' devices */
    double own_bytes;             /* copied from the device's own shards into a slot */
    double home_bytes[OFFLOAD_HOME_COUNT]; /* the same by home */
    double onloads;               /* units that are copied to the device */
    double disk_reads;            /* units that are read from files */
    uint32_t slot_count;          /* one is used, the others may be on their way; 0: none */
    double expert_disk_bytes, expert_link_bytes, expert_peer_bytes, expert_own_bytes; /* of the
                                     above: experts */
    double expert_hit_rate;       /* of the experts that are asked for; below 0: none are */
    uint32_t expert_tokens_known; /* from so many tokens' choices; 0: were all chosen alike often */
};
/* In a pass of so many rows, when the sequence is under way and caches are full. Of one row's
 * experts: as they were chosen when the model ran before, where that is remembered. Also before
 * offload_load. */
void offload_traffic(const struct offload *offload, uint32_t row_count,
                     struct offload_traffic *traffic_out);

/* Checks the options against the parameters and plans: which units, homes, slots. Bad combinations
 * are STATUS_BAD_INPUT with the reason and the nearest setting that works. Takes no device memory.
 * Takes the descs' loaders. `layer_count` as the model has. The caller owns *offload_out. */
enum status offload_create(struct device *device, const struct offload_param_desc *params,
                           size_t param_count, uint32_t layer_count,
                           const struct offload_options *options, const struct log *log,
                           struct offload **offload_out, struct err *err);
void offload_destroy(struct offload *offload);
/* Before offload_destroy, where ranks leave together: gives back what it has of peers' memory, so
 * that each rank can free its own once all have come so far. No pass may follow. */
void offload_peers_close(struct offload *offload);
void offload_sizes(const struct offload *offload, struct offload_sizes *sizes_out);
/* Before offload_load: what is known of the disk with homes; depth 0, or when this is not called:
 * nothing, and offload_load measures it. */
void offload_disk_known(struct offload *offload, const struct disk_measured *measured);

/* Takes memory, checks every loader, loads every parameter into its home or onto the device, and
 * starts the first onloads. compute: the stream on which the model launches; borrowed until
 * destroy. At most one parameter is in memory twice. A table that is looked up may be loaded
 * afterwards (options.late_bytes_min): where there is one, ckpt is borrowed until destroy, or until
 * an update has been committed. */
enum status offload_load(struct offload *offload, struct stream *compute, const struct ckpt *ckpt,
                         const struct progress *progress, struct err *err);

/* The tensor of params[index]. Its data is valid always for what stays, between begin and end of
 * its part for what moves (NULL otherwise). The address can differ from pass to pass. */
const struct tensor *offload_tensor(const struct offload *offload, size_t index);
size_t offload_param_count(const struct offload *offload);
bool offload_param_moves(const struct offload *offload, size_t index);

/* The rows of a matrix (its last dimension is a row, the others count them) in the order in which
 * they come: from `row` on, as many as lie together. Between begin and end of the parameter's part;
 * ops that read them are launched before offload_rows_end, and all rows are asked for, in order,
 * once in a pass. Parameters of a part are read in the order in which they were described. Rows of
 * a parameter that does not move come at once. */
struct offload_rows {
    const void *data;        /* device memory */
    uint64_t first, count;
    size_t unit;             /* offload's own */
};
enum status offload_rows_begin(struct offload *offload, size_t index, uint64_t row,
                               struct offload_rows *rows_out, struct err *err);
enum status offload_rows_end(struct offload *offload, const struct offload_rows *rows,
                             struct err *err);
/* Where a row lies now, of a parameter whose unit is its whole part: between begin and end of that,
 * or always when it does not move. Rows that lie together in the checkpoint lie together here. */
const void *offload_row(const struct offload *offload, size_t index, uint64_t row);

/* Whether rows of this table are to be brought by offload_lookup, because it is at home on the
 * disk, or not all of it is there yet. offload_tensor has no data then. The engine's thread, before
 * each pass. */
bool offload_is_looked_up(struct offload *offload, size_t index);
/* Brings rows ids[0 .. count) of the table, packed, to *rows_out in device memory, for ops that are
 * launched on the compute stream afterwards and until the next lookup. `ids`: host memory, in
 * range. Waits for the disk. Between passes or at the beginning of one. */
enum status offload_lookup(struct offload *offload, size_t index, const int32_t *ids,
                           uint32_t count, const void **rows_out, struct err *err);

/* One pass over all layers in order: begin and end for every part of every layer that has
 * parameters, each once. A part without moving parameters costs nothing. When either fails, the
 * pass must be abandoned. */
enum status offload_begin(struct offload *offload, uint32_t layer, enum offload_part part,
                          struct err *err);
enum status offload_end(struct offload *offload, uint32_t layer, enum offload_part part,
                        struct err *err);
/* After the compute stream has been synced at the end of a pass: adds the pass to the counters. */
void offload_pass_done(struct offload *offload);
/* Abandons a pass that failed midway, so that the next one starts at layer 0. Waits for both
 * streams. When the device has failed for good this fails too, and so does every later begin. */
enum status offload_pass_abort(struct offload *offload, struct err *err);

/* Loads one parameter again through its loader, in place, whatever its home, between passes. A unit
 * whose home is meta gets a home on the host first, so that the bytes have somewhere to be, and
 * zeros for its other parameters until they are loaded. The old bytes stay when anything fails.
 * STATUS_UNAVAILABLE for what is at home on the disk. What is at home in shm or sharded is loaded
 * again by all ranks of the node together: each must call, in the same order. Should one end just
 * while bytes change places, passes of the others fail from then on, since some may be new. */
enum status offload_reload(struct offload *offload, size_t index, const struct ckpt *ckpt,
                           struct err *err);

/* Experts as units. A layer whose experts are units is computed in turns: each gives those experts
 * that are there, first what the cache holds, then what arrives; all turns of a layer together give
 * each expert that was chosen once. Between offload_begin and _end of the layer's FFN:
 *
 *     offload_experts_begin(layer, ids)          reads what was chosen, asks for what is missing
 *     offload_experts_guess(ids)                 may be: what the next such layer may choose
 *     do offload_experts_next(&turn)
 *        ... launches of OP_MOE with turn.experts ...
 *        offload_experts_done()
 *     while (!turn.is_last)
 *
 * A pass of many rows hits nearly all experts; it streams all of them in a fixed order instead and
 * never reads the ids. */
#define OFFLOAD_GUESS_ROWS_MAX 8 /* of more rows the experts are too many to guess */
bool offload_has_experts(const struct offload *offload);
/* A pass of row_count rows begins. */
enum status offload_experts_pass(struct offload *offload, uint32_t row_count, struct err *err);
/* ids: device memory, [row_count][expert_top_k], written by ops that are queued. Waits for them. */
enum status offload_experts_begin(struct offload *offload, uint32_t layer, const int32_t *ids,
                                  struct err *err);
/* Whether a guess of what `layer` will choose would be of use now. */
bool offload_experts_wants_guess(const struct offload *offload, uint32_t layer);
/* ids as above, but of `layer`, the next one with experts, as far as its router can tell. */
enum status offload_experts_guess(struct offload *offload, uint32_t layer, const int32_t *ids,
                                  struct err *err);
struct offload_experts_turn {
    const struct op_moe_expert *experts; /* device memory, [expert_count], ids ascending */
    uint32_t expert_count;
    bool is_first, is_last;
};
/* Waits until there is one, where nothing else can be computed. */
enum status offload_experts_next(struct offload *offload, struct offload_experts_turn *turn_out,
                                 struct err *err);
enum status offload_experts_done(struct offload *offload, struct err *err);

/* Live update: all parameters anew from another checkpoint of the same model, each through its own
 * loader and in place, whatever its home; or none. Two steps:
 *
 *     prepare   any thread, while passes run: every loader is checked against the checkpoint, what
 *               is on the disk is found in its files, cache files are made, and every byte is read
 *               once, so that what is wrong with it is found here. Changes nothing
 *     commit    the engine's thread, between passes: loads. When that fails the old checkpoint,
 *               which must still be open and its files there, is loaded back; when that fails too
 *               every later pass does, with a sentence that says so
 *
 * What is at home in meta gets a home on the host. One update at a time, and none while
 * offload_load, _reload or _destroy runs.
 *
 * Ranks that switch together, whether they share homes or not, do so by a meeting that the caller
 * brings: commit comes to each step with how it fares, waits there, and goes on with what all have
 * agreed on. Every rank comes to every step that the answers lead it to:
 *
 *     HELD --ok--> CHANGED --ok--> ENDED
 *       |             +---failed--> RESTORED --> ENDED
 *       +---failed--> ENDED
 */
enum offload_update_step {
    OFFLOAD_UPDATE_PREPARED,     /* for whoever prepares: it is checked and read */
    OFFLOAD_UPDATE_HELD,         /* nobody reads weights any more; nothing has changed */
    OFFLOAD_UPDATE_CHANGED,      /* the new bytes are there; the answer decides */
    OFFLOAD_UPDATE_RESTORED,     /* the old bytes are there again. The answer is a failure when any
                                    rank could not do so, or has ended since HELD */
    OFFLOAD_UPDATE_ENDED,        /* `own`: whether passes can run; nobody is waited for, and the
                                    answer means nothing */
    OFFLOAD_UPDATE_STEP_COUNT
};
struct offload_meeting {
    /* `own` is a failure with its sentence in err, or STATUS_OK. Returns what all agree on, which
     * is a failure with a sentence when anybody failed. Passes must not run afterwards when the
     * answer does not come. */
    enum status (*meet)(void *user, enum offload_update_step step, enum status own,
                        struct err *err);
    void *user;
};

/* Where another process of this machine, which starts later and alone, finds what this one has at
 * home in shm: a line for offload_options.inherited, valid as long as the offload is. False:
 * nothing is at home there. After offload_load. */
#define OFFLOAD_SHARE_TEXT_BYTES 192
bool offload_share_text(const struct offload *offload, char text[OFFLOAD_SHARE_TEXT_BYTES]);

struct offload_update;
/* STATUS_UNAVAILABLE: the server would have to be started with it. `ckpt` is borrowed by the
 * update, and by the offload from a commit that succeeds until another has. */
enum status offload_update_prepare(struct offload *offload, const struct ckpt *ckpt,
                                   struct offload_update **update_out, struct err *err);
/* meeting: NULL, and no others, when this rank is alone. */
enum status offload_update_commit(struct offload_update *update,
                                  const struct offload_meeting *meeting, struct err *err);
/* NULL is fine. Any thread, when no commit runs. */
void offload_update_destroy(struct offload_update *update);

/* True while any parameter of any unit has no contents: answers are garbage. */
bool offload_is_garbage(const struct offload *offload);

/* The manifest: every unit, its home and its bytes; as text, a line per run of equal units, and as
 * a JSON array of {name, home, in_place, bytes, layer, part, params: [...]}, which the caller owns.
 * Parts of which nothing moves are in it too, at home on the device. */
enum status offload_manifest_log(const struct offload *offload, const struct log *log,
                                 struct err *err);
json_t *offload_manifest_json(const struct offload *offload);

/* What moved since the start (or the last reset): see docs/offloading.md. A JSON object
 * the caller owns:
 *   mode ("off", "cpu", "meta"), device, passes, run_s, compute_s, copy_s, stall_s, onloads,
 *   bytes_moved, bytes_planned (units' bytes x passes, plus what is prefetched for the next one),
 *   bytes_moved_from: {host, ...: by home},
 *   sharing: null, or when ranks share a home {rank, ranks (of the node), shard_bytes,
 *             bytes_moved_own, bytes_moved_peers (of those from shards)},
 *   link: {bytes_per_s_set, bytes_per_s_reached (while copying), busy_share_of_run,
 *          use_share_of_run},
 *   disk: {bytes_per_s_measured, bytes_read, busy_s, bytes_per_s_reached, busy_share_of_run,
 *          use_share_of_run},
 *   homes: {host: {units, bytes, onloads, bytes_moved, bytes_demanded, bytes_guessed_used,
 *          bytes_guessed_wasted, bytes_reread, hits, misses, hit_rate, stall_s}, ...},
 *   memory: {budget_bytes, used_bytes, peak_bytes, host_budget_bytes, host_used_bytes,
 *            host_peak_bytes},
 *   stalls: {disk, link, slot, router} in seconds, bound: {moving_s, share_of_run},
 *   units: [{name, home, in_place, units, bytes, onloads, bytes_moved, bytes_reread, copy_s,
 *           read_s, stall_s, hit_rate}], one for all tiles or experts of a part, garbage */
json_t *offload_report_json(const struct offload *offload);
/* Starts counting afresh, between passes. */
void offload_report_reset(struct offload *offload);
/* The same for people, some lines. */
void offload_report_log(const struct offload *offload, const struct log *log);
/* STATUS_DEVICE with the numbers when bytes moved differ from what the schedule demands. */
enum status offload_report_check(const struct offload *offload, struct err *err);

#endif
