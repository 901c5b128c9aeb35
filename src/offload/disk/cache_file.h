/* offload/disk/cache_file.h - final bytes in a file of our own, where the checkpoint has others.
 *
 * A unit's home on disk is the checkpoint itself when its bytes lie there as the device wants them.
 * Where they must be converted, transposed or fused first, that is done once, and the outcome is
 * kept in a cache file, from which units are then read like from a checkpoint.
 *
 * The file, version 1, all numbers little endian, hashes XXH3-128 in canonical form:
 *
 *     0    "LIGHTERC"
 *     8    u32 version, u32 0
 *     16   fingerprint[16]      of the checkpoint and of what was made of it
 *     32   u64 file size
 *     40   u64 unit count
 *     48   u64 table size
 *     56   u64 0
 *     64   hash[16] of the table
 *     80   zeros
 *     112  hash[16] of bytes 0 to 112
 *     128  table: for each unit  u64 offset, u64 size, hash[16] of its bytes, u32 name size, u32 0,
 *                                name, zeros up to a multiple of 8
 *     ...  the units' bytes, in the table's order, each at the next multiple of 4096
 *
 * A file is made under a temporary name in the same folder, brought to the disk, and then renamed:
 * under its own name there is never an unfinished one. Who writes holds a lock on the folder, so
 * that of several processes that want the file one makes it and the others wait; temporaries that
 * are found by the holder are of writers that died, and are removed. A file system without locks
 * costs only that: each makes its own, and the last one stays.
 *
 * Opening trusts nothing: sizes and places are checked against the real file, header and table have
 * hashes, and a unit's bytes are checked by whoever reads them first (cache_file_verify). */
#ifndef LIGHTER_OFFLOAD_DISK_CACHE_FILE_H
#define LIGHTER_OFFLOAD_DISK_CACHE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/log.h"
#include "base/status.h"
#include "offload/disk/reader.h"

#define CACHE_NAME_BYTES_MAX 512
#define CACHE_UNITS_MAX (UINT64_C(1) << 20)
#define CACHE_TABLE_BYTES_MAX (UINT64_C(256) << 20)

struct cache_hash {
    uint8_t bytes[16];
};

/* XXH3-128. */
struct cache_hash cache_hash_of(const void *bytes, size_t size);

/* ---- what a file is for, and where it is ---- */

/* Of the checkpoint's files (their real paths, sizes and times of change) and of `layout`: a hash
 * of everything else that the units' bytes depend on, such as names, dtypes, sizes and offsets. */
enum status cache_fingerprint(const char *const *paths, size_t path_count,
                              const struct cache_hash *layout, struct cache_hash *fingerprint_out,
                              struct err *err);

/* The folder of all cache files: `option` if given; else $XDG_CACHE_HOME/lighter (if that is an
 * absolute path), else $HOME/.cache/lighter. The caller frees *folder_out. */
enum status cache_folder(const char *option, const char *xdg_cache_home, const char *home,
                         char **folder_out, struct err *err);

/* FOLDER/NAME-HASH/LAYOUT.SUFFIX: NAME is the last part of the checkpoint's path, HASH is of its
 * real path, so that two models of one name are kept apart; LAYOUT is of the layout. The caller
 * frees *path_out. Creates nothing. */
enum status cache_path(const char *folder, const char *checkpoint_path,
                       const struct cache_hash *layout, const char *suffix, char **path_out,
                       struct err *err);
/* mkdir -p of the folder that the path is in; only the user may look into what is created. */
enum status cache_folders_create(const char *path, struct err *err);

/* ---- reading ---- */

struct cache_unit {
    const char *name; /* of at most CACHE_NAME_BYTES_MAX bytes */
    uint64_t offset_bytes; /* in the file; set by the file, not looked at when one is made */
    uint64_t size_bytes;
    struct cache_hash hash; /* likewise */
};

struct cache_file;

/* Opens and checks all but the units' bytes. `units` must be the file's, in this order, by name and
 * size. STATUS_UNAVAILABLE when the file is not there, STATUS_BAD_INPUT when it is not what it
 * should be: the sentence says why, and the file can be made again. */
enum status cache_file_open(const char *path, const struct cache_hash *fingerprint,
                            const struct cache_unit *units, size_t unit_count, enum disk_use direct,
                            struct cache_file **cache_out, struct err *err);
/* NULL is fine. No read may be under way. */
void cache_file_close(struct cache_file *cache);

size_t cache_file_unit_count(const struct cache_file *cache);
/* Valid until close. */
const struct cache_unit *cache_file_unit(const struct cache_file *cache, size_t unit_index);
/* For the extents of reads; valid until close. */
const struct disk_file *cache_file_disk_file(const struct cache_file *cache);

/* Checks a unit's bytes the first time they are read; once found good, returns STATUS_OK at once.
 * STATUS_IO names unit and file. Any thread. */
enum status cache_file_verify(struct cache_file *cache, size_t unit_index, const void *bytes,
                              struct err *err);

/* Removes the file's name, if it is still this file's, so that the next start makes it again: for
 * when verify has failed. The open file stays readable. */
void cache_file_discard(struct cache_file *cache);

/* ---- making ---- */

/* Takes the units' bytes, one unit after the other. */
struct cache_writer;

/* Sets out a temporary file beside `path`, with room on the disk for all. The folder must be there.
 * Everything given is borrowed until destroy, names included. */
enum status cache_writer_create(const char *path, const struct cache_hash *fingerprint,
                                const struct cache_unit *units, size_t unit_count,
                                struct cache_writer **writer_out, struct err *err);
/* Removes the temporary file unless it has been finished. NULL is fine. */
void cache_writer_destroy(struct cache_writer *writer);
/* The next size_bytes of the current unit; a full one makes way for the next. Not past the last. */
enum status cache_writer_append(struct cache_writer *writer, const void *bytes, uint64_t size_bytes,
                                struct err *err);
/* All units are full: brings the file to the disk and gives it its name. */
enum status cache_writer_finish(struct cache_writer *writer, struct err *err);

/* Who makes the bytes: appends all of one unit. Called once for each unit, in order. */
struct cache_producer {
    enum status (*produce)(void *user, size_t unit_index, struct cache_writer *writer,
                           struct err *err);
    void *user;
};

/* Opens the file; if it is missing or not as it should be, says so in the log, makes it, and opens
 * that. Creates the folders that are missing. Waits while another process makes it. */
enum status cache_file_obtain(const char *path, const struct cache_hash *fingerprint,
                              const struct cache_unit *units, size_t unit_count,
                              const struct cache_producer *producer, enum disk_use direct,
                              const struct log *log, struct cache_file **cache_out,
                              struct err *err);

#endif
