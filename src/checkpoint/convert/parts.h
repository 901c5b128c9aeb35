/* checkpoint/convert/parts.h - the partial files of a conversion, and how far it is. Only for files
 * of this room.
 *
 *     NAME.part.gguf   [ header | data of the tensors, in order | two slots ]
 *                                                                 ^ where NAME.gguf will end
 *
 * Several files look so each, but that only the first has slots. The slots say in turn how far the
 * work is: up to which piece everything is on the disk. A slot counts when its sum is right, and
 * the one with the higher number before the other, so that a write that was cut in half leaves the
 * slot before it. Both name the plan and the files that the data comes of by a fingerprint; another
 * one, and everything begins anew. At the end the slots are cut off. */
#ifndef LIGHTER_CHECKPOINT_CONVERT_PARTS_H
#define LIGHTER_CHECKPOINT_CONVERT_PARTS_H

#include "checkpoint/convert/plan.h"

/* A place in the plan: the next unit to be written. */
struct convert__place {
    uint64_t tensor, segment, unit;     /* segment counts within the tensor */
};

/* One of the files that are made. */
struct convert__file {
    char *out, *part;                   /* its place, and where it is until it is whole */
    int fd;                             /* -1: not open */
};

struct convert__parts {
    const struct ckpt *ckpt;
    const struct convert_plan *plan;
    const char *out;                    /* as it was asked for */
    struct convert__file *files;        /* [plan->summary.file_count] */
    uint64_t fingerprint, slot_number;
    struct convert__place done;         /* everything before it is written */
    bool is_placed;                     /* renamed */
};

/* Whether a file may have that name. Fails with STATUS_BAD_INPUT. */
enum status convert__parts_check_name(const char *out, struct err *err);

/* Finds the files' names, opens what an earlier run left of them, or begins them. `parts` is zero;
 * checkpoint, plan and `out` are borrowed. convert__parts_close frees what there is after a
 * failure, too. Fails with STATUS_BAD_INPUT (a file of the model itself), STATUS_BUSY (another
 * process writes it), STATUS_IO, STATUS_NO_MEMORY. */
enum status convert__parts_open(struct convert__parts *parts, const struct ckpt *ckpt,
                                const struct convert_plan *plan, const char *out, struct err *err);

/* Empties the files, takes their room on the disk, writes their heads. */
enum status convert__parts_begin(struct convert__parts *parts, struct err *err);

/* Writes into the index-th file. Threads may do so at once. */
enum status convert__parts_write(const struct convert__parts *parts, size_t index,
                                 uint64_t offset_bytes, const void *bytes, uint64_t size_bytes,
                                 struct err *err);

/* Notes parts->done, once all before it is on the disk. */
enum status convert__parts_save(struct convert__parts *parts, struct err *err);

/* Makes the partial files the whole ones. Of several the first comes last, and goes before another
 * of its name loses one of those behind it: so whole sets are seen, or none. */
enum status convert__parts_place(struct convert__parts *parts, struct err *err);

/* Closes the files, and removes them unless `keep` or they are in their place. */
void convert__parts_close(struct convert__parts *parts, bool keep);

#endif
