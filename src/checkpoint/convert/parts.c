/* checkpoint/convert/parts.c - see parts.h. */
#include "checkpoint/convert/parts.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/size.h"
#include "checkpoint/internal.h"

#define SUFFIX ".gguf"
#define PART_INFIX ".part"
#define SLOT_BYTES 64
#define SLOT_MAGIC "LIGHTERQ"
#define VERSION 1                       /* of what the same plan's data is made like */

struct slot {
    char magic[8];
    uint64_t number, fingerprint;
    struct convert__place place;
    uint64_t sum;                       /* of all before */
};
static_assert(sizeof(struct slot) <= SLOT_BYTES, "a slot holds it");

/* --- the fingerprint -------------------------------------------------------------------------- */

/* FNV-1a, 64 bits. */
static uint64_t mix(uint64_t sum, const void *bytes, size_t size)
{
    const uint8_t *const at = bytes;

    for (size_t i = 0; i < size; i++)
        sum = (sum ^ at[i]) * UINT64_C(0x100000001B3);
    return sum;
}

/* Of the heads, which name every tensor with its type, and of the files that are read. */
static enum status find_fingerprint(struct convert__parts *parts, struct err *err)
{
    uint64_t sum = UINT64_C(0xCBF29CE484222325);

    for (size_t i = 0; i < parts->plan->summary.file_count; i++)
        sum = mix(sum, parts->plan->files[i].head.data, parts->plan->files[i].head.size);
    for (uint32_t i = 0; i < parts->ckpt->file_count; i++) {
        const struct file *const file = &parts->ckpt->files[i];
        struct stat info;
        uint64_t numbers[4];
        if (fstat(file->fd, &info) != 0)
            return err_set(err, STATUS_IO, "%s: %s", file->path, strerror(errno));
        numbers[0] = VERSION;
        numbers[1] = (uint64_t)info.st_size;
        numbers[2] = (uint64_t)info.st_mtim.tv_sec;
        numbers[3] = (uint64_t)info.st_mtim.tv_nsec;
        sum = mix(sum, numbers, sizeof(numbers));
    }
    parts->fingerprint = sum;
    return STATUS_OK;
}

/* --- paths ------------------------------------------------------------------------------------ */

enum status convert__parts_check_name(const char *out, struct err *err)
{
    const size_t size = strlen(out);

    if (size <= strlen(SUFFIX) || strcmp(out + size - strlen(SUFFIX), SUFFIX) != 0)
        return err_set(err, STATUS_BAD_INPUT, "--out: '%s' does not end in " SUFFIX
                       ", by which a GGUF file is known", out);
    return STATUS_OK;
}

/* A file must not become one of those that are read. */
static enum status check_apart(const struct convert__parts *parts, const char *out, struct err *err)
{
    struct stat info, source;

    for (uint32_t i = 0; stat(out, &info) == 0 && i < parts->ckpt->file_count; i++)
        if (fstat(parts->ckpt->files[i].fd, &source) == 0 && source.st_ino == info.st_ino &&
            source.st_dev == info.st_dev)
            return err_set(err, STATUS_BAD_INPUT, "--out: '%s' is a file of the model itself",
                           out);
    return STATUS_OK;
}

static char *make_path(const struct convert__parts *parts, const char *infix, size_t index)
{
    const char *const out = parts->out;
    const int stem = (int)(strlen(out) - strlen(SUFFIX));
    const size_t count = parts->plan->summary.file_count;
    char *path = NULL;
    const int size = count == 1 ? asprintf(&path, "%.*s%s" SUFFIX, stem, out, infix)
                                : asprintf(&path, "%.*s%s-%05zu-of-%05zu" SUFFIX, stem, out, infix,
                                           index + 1, count);

    return size >= 0 ? path : NULL;
}

static enum status find_paths(struct convert__parts *parts, struct err *err)
{
    const size_t count = parts->plan->summary.file_count;
    enum status st = STATUS_OK;

    parts->files = calloc(count, sizeof(*parts->files));
    for (size_t i = 0; parts->files != NULL && i < count; i++)
        parts->files[i].fd = -1;
    for (size_t i = 0; parts->files != NULL && st == STATUS_OK && i < count; i++) {
        struct convert__file *const file = &parts->files[i];

        file->out = make_path(parts, "", i);
        file->part = make_path(parts, PART_INFIX, i);
        if (file->out == NULL || file->part == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for a path");
        st = check_apart(parts, file->out, err);
    }
    return parts->files != NULL ? st : err_set(err, STATUS_NO_MEMORY, "no memory for paths");
}

/* --- the partial files ------------------------------------------------------------------------ */

static enum status say_errno(const struct convert__file *file, const char *what, int number,
                             struct err *err)
{
    return err_set(err, STATUS_IO, "%s: %s: %s%s", file->part, what, strerror(number),
                   number == ENOSPC || number == EFBIG || number == EDQUOT
                       ? "; make room and run the same again, and it goes on from here" : "");
}

enum status convert__parts_write(const struct convert__parts *parts, size_t index,
                                 uint64_t offset_bytes, const void *bytes, uint64_t size_bytes,
                                 struct err *err)
{
    const struct convert__file *const file = &parts->files[index];
    const char *from = bytes;

    while (size_bytes > 0) {
        const ssize_t put = pwrite(file->fd, from, (size_t)size_bytes, (off_t)offset_bytes);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return say_errno(file, "writing", put < 0 ? errno : EIO, err);
        from += put;
        offset_bytes += (uint64_t)put;
        size_bytes -= (uint64_t)put;
    }
    return STATUS_OK;
}

/* Of a file when it is whole. */
static uint64_t file_bytes(const struct convert__parts *parts, size_t index)
{
    return parts->plan->files[index].head.size + parts->plan->files[index].data_bytes;
}

static enum status flush(const struct convert__parts *parts, struct err *err)
{
    for (size_t i = 0; i < parts->plan->summary.file_count; i++)
        if (fdatasync(parts->files[i].fd) != 0)
            return say_errno(&parts->files[i], "flushing", errno, err);
    return STATUS_OK;
}

static uint64_t slot_sum(const struct slot *slot)
{
    return mix(0, slot, offsetof(struct slot, sum));
}

enum status convert__parts_save(struct convert__parts *parts, struct err *err)
{
    struct slot slot = { .number = parts->slot_number + 1,
                         .fingerprint = parts->fingerprint, .place = parts->done };
    const uint64_t at = file_bytes(parts, 0) + slot.number % 2 * SLOT_BYTES;
    const enum status st = flush(parts, err);

    memcpy(slot.magic, SLOT_MAGIC, sizeof(slot.magic));
    slot.sum = slot_sum(&slot);
    if (st != STATUS_OK)
        return st;
    parts->slot_number = slot.number;
    return convert__parts_write(parts, 0, at, &slot, sizeof(slot), err);
}

/* Whether the file is one of this plan, and how far it is. */
static bool read_slots(struct convert__parts *parts)
{
    bool found = false;

    for (uint64_t i = 0; i < 2; i++) {
        struct slot slot;
        const off_t at = (off_t)(file_bytes(parts, 0) + i * SLOT_BYTES);
        if (pread(parts->files[0].fd, &slot, sizeof(slot), at) != (ssize_t)sizeof(slot) ||
            memcmp(slot.magic, SLOT_MAGIC, sizeof(slot.magic)) != 0 ||
            slot.sum != slot_sum(&slot) || slot.fingerprint != parts->fingerprint ||
            slot.number <= parts->slot_number)
            continue;
        found = true;
        parts->slot_number = slot.number;
        parts->done = slot.place;
    }
    return found;
}

/* Empties a file, takes its room on the disk where the file system can, and writes the head. */
static enum status begin_file(struct convert__parts *parts, size_t index, struct err *err)
{
    struct convert__file *const file = &parts->files[index];
    const struct buf *const head = &parts->plan->files[index].head;
    const uint64_t size_bytes = file_bytes(parts, index) + (index == 0 ? 2 * SLOT_BYTES : 0);
    char size[32];

    if (file->fd < 0)
        file->fd = open(file->part, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file->fd < 0)
        return err_set(err, STATUS_IO, "%s: %s", file->part, strerror(errno));
    if (ftruncate(file->fd, 0) != 0)
        return say_errno(file, "emptying", errno, err);
    if (fallocate(file->fd, 0, 0, (off_t)size_bytes) != 0) {
        if (errno != EOPNOTSUPP && errno != ENOSYS)
            return err_set(err, STATUS_IO, "%s: there is no room for %s: %s", file->part,
                           size_format(size_bytes, size, sizeof(size)), strerror(errno));
        if (ftruncate(file->fd, (off_t)size_bytes) != 0)
            return say_errno(file, "making room", errno, err);
    }
    return convert__parts_write(parts, index, 0, head->data, head->size, err);
}

enum status convert__parts_begin(struct convert__parts *parts, struct err *err)
{
    enum status st = STATUS_OK;

    parts->done = (struct convert__place){ 0, 0, 0 };
    for (size_t i = 0; st == STATUS_OK && i < parts->plan->summary.file_count; i++)
        st = begin_file(parts, i, err);
    return st == STATUS_OK ? convert__parts_save(parts, err) : st;
}

/* Opens the files behind the first, whose slots say how far they are. What a run that ended between
 * its last renamings has put in its place already is taken back. False: they are not as they
 * were. */
static bool open_others(struct convert__parts *parts)
{
    for (size_t i = 1; i < parts->plan->summary.file_count; i++) {
        struct convert__file *const file = &parts->files[i];
        struct stat info;

        if (parts->done.tensor == parts->plan->tensor_count && stat(file->part, &info) != 0 &&
            stat(file->out, &info) == 0 && (uint64_t)info.st_size == file_bytes(parts, i))
            (void)rename(file->out, file->part);
        file->fd = open(file->part, O_RDWR | O_CLOEXEC);
        if (file->fd < 0 || fstat(file->fd, &info) != 0 ||
            (uint64_t)info.st_size != file_bytes(parts, i))
            return false;
    }
    return true;
}

/* Opens the first file and holds it against other processes, and the others then. One that was
 * renamed or removed meanwhile by the process that held it is not it any more. */
static enum status open_all(struct convert__parts *parts, struct err *err)
{
    struct convert__file *const file = &parts->files[0];
    struct stat held, named;

    file->fd = open(file->part, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file->fd < 0)
        return err_set(err, STATUS_IO, "%s: %s", file->part, strerror(errno));
    if (flock(file->fd, LOCK_EX | LOCK_NB) != 0 || fstat(file->fd, &held) != 0 ||
        stat(file->part, &named) != 0 || held.st_ino != named.st_ino) {
        (void)close(file->fd);
        file->fd = -1;
        return err_set(err, STATUS_BUSY, "%s: another process is writing it", file->part);
    }
    if (read_slots(parts) && open_others(parts))
        return STATUS_OK;
    return convert__parts_begin(parts, err);
}

enum status convert__parts_open(struct convert__parts *parts, const struct ckpt *ckpt,
                                const struct convert_plan *plan, const char *out, struct err *err)
{
    enum status st;

    *parts = (struct convert__parts){ .ckpt = ckpt, .plan = plan, .out = out };
    st = find_paths(parts, err);
    if (st == STATUS_OK)
        st = find_fingerprint(parts, err);
    return st == STATUS_OK ? open_all(parts, err) : st;
}

/* The folder's entries are on the disk, if that can be. */
static void flush_folder(const struct convert__parts *parts)
{
    const char *const out = parts->files[0].out;
    const char *const slash = strrchr(out, '/');
    char folder[PATH_MAX] = ".";
    int fd;

    if (slash != NULL)
        (void)snprintf(folder, sizeof(folder), "%.*s", (int)(slash - out + 1), out);
    fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        (void)close(fd);
    }
}

enum status convert__parts_place(struct convert__parts *parts, struct err *err)
{
    const size_t count = parts->plan->summary.file_count;
    enum status st = convert__parts_save(parts, err);

    if (st != STATUS_OK)
        return st;
    if (count > 1 && unlink(parts->files[0].out) != 0 && errno != ENOENT)
        return err_set(err, STATUS_IO, "%s: cannot be replaced: %s", parts->files[0].out,
                       strerror(errno));
    for (size_t i = count; i-- > 0;) {
        const struct convert__file *const file = &parts->files[i];

        if (i == 0 && ftruncate(file->fd, (off_t)file_bytes(parts, 0)) != 0)
            return say_errno(file, "cutting off", errno, err);
        if (fsync(file->fd) != 0)
            return say_errno(file, "flushing", errno, err);
        if (rename(file->part, file->out) != 0)
            return err_set(err, STATUS_IO, "%s: cannot be renamed to %s: %s", file->part,
                           file->out, strerror(errno));
    }
    parts->is_placed = true;
    flush_folder(parts);
    return STATUS_OK;
}

void convert__parts_close(struct convert__parts *parts, bool keep)
{
    for (size_t i = 0; parts->files != NULL && i < parts->plan->summary.file_count; i++) {
        const struct convert__file *const file = &parts->files[i];

        if (file->fd >= 0 && !parts->is_placed && !keep)
            (void)unlink(file->part);
        if (file->fd >= 0)
            (void)close(file->fd);
        free(file->part);
        free(file->out);
    }
    free(parts->files);
}
