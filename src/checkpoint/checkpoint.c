/* checkpoint/checkpoint.c - the table of formats, and what is the same for all of them: the list of
 * tensors with its checks, finding and reading. */
#include "checkpoint/checkpoint.h"

#include <assert.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/memory_left.h"
#include "base/size.h"
#include "checkpoint/internal.h"
#include "checkpoint/hf/packed.h"

#define LARGE_SHARE 8 /* of the memory that is left: a checkpoint of more than an eighth is large */

/* Every format that is read. */
static const struct ckpt_format *const formats[] = {
    &ckpt__format_hf,
    &ckpt__format_gguf,
};
#define FORMAT_COUNT (sizeof(formats) / sizeof(formats[0]))

enum status ckpt__create(const char *path, struct ckpt **ckpt_out, struct err *err)
{
    struct ckpt *ckpt = calloc(1, sizeof(*ckpt));
    enum status st = STATUS_OK;

    if (ckpt == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory to open it", path);
    ckpt->path = strdup(path);
    if (ckpt->path == NULL)
        st = err_set(err, STATUS_NO_MEMORY, "%s: no memory to open it", path);
    if (st == STATUS_OK)
        st = map_create(0, &ckpt->tensor_by_name, err);
    if (st != STATUS_OK) {
        ckpt_close(ckpt);
        return st;
    }
    *ckpt_out = ckpt;
    return STATUS_OK;
}

static enum status refuse(const char *path, struct err *err)
{
    const char *const dot = strrchr(path, '.');

    if (!file_exists(path))
        return err_set(err, STATUS_UNAVAILABLE, "%s: there is no such file or folder", path);
    if (dot != NULL && strcmp(dot, ".safetensors") == 0)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: one file of a model; give the folder that also holds its config.json",
                       path);
    return err_set(err, STATUS_BAD_INPUT,
                   "%s: this kind of file is not supported; a model is %s or %s", path,
                   formats[0]->what, formats[1]->what);
}

enum status ckpt__read_past_cache(struct ckpt *ckpt, struct err *err)
{
    struct bulk_file *bulk = calloc(ckpt->file_count, sizeof(*bulk));
    uint32_t count = 0;

    if (bulk == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for %" PRIu32 " files", ckpt->path,
                       ckpt->file_count);
    while (count < ckpt->file_count && bulk_file_open(&ckpt->files[count], &bulk[count]))
        count++;
    if (count == ckpt->file_count) {
        ckpt->bulk = bulk;
        return STATUS_OK;
    }
    while (count > 0)
        bulk_file_close(&bulk[--count]);
    free(bulk);
    return STATUS_OK;
}

/* Beside the memory that is left, in which the page cache would hold it a second time. */
static bool is_large(const struct ckpt *ckpt)
{
    const uint64_t left_bytes = memory_left_bytes();
    uint64_t size_bytes = 0;

    for (uint32_t i = 0; i < ckpt->file_count; i++)
        size_bytes += ckpt->files[i].size_bytes; /* cannot overflow: there are CKPT_FILES_MAX */
    return size_bytes > left_bytes / LARGE_SHARE;
}

enum status ckpt_open(const char *path, struct ckpt **ckpt_out, struct err *err)
{
    const struct ckpt_format *format = NULL;
    struct ckpt *ckpt = NULL;
    enum status st;

    assert(path != NULL && ckpt_out != NULL);
    for (size_t i = 0; i < FORMAT_COUNT && format == NULL; i++)
        if (formats[i]->matches(path))
            format = formats[i];
    if (format == NULL)
        return refuse(path, err);
    st = ckpt__create(path, &ckpt, err);
    if (st != STATUS_OK)
        return st;
    assert(ckpt != NULL);
    ckpt->format = format;
    st = format->open(ckpt, err);
    if (st == STATUS_OK && is_large(ckpt))
        st = ckpt__read_past_cache(ckpt, err);
    if (st != STATUS_OK) {
        ckpt_close(ckpt);
        return st;
    }
    assert(json_is_object(ckpt->config));
    *ckpt_out = ckpt;
    return STATUS_OK;
}

void ckpt_close(struct ckpt *ckpt)
{
    if (ckpt == NULL)
        return;
    for (size_t i = 0; i < ckpt->tensor_count; i++)
        free((char *)ckpt->tensors[i].name);
    for (uint32_t i = 0; i < ckpt->file_count; i++) {
        if (ckpt->bulk != NULL)
            bulk_file_close(&ckpt->bulk[i]);
        file_close(&ckpt->files[i]);
    }
    free(ckpt->bulk);
    map_destroy(ckpt->tensor_by_name);
    packed__destroy(ckpt->packed, ckpt->packed_count);
    free(ckpt->refusal);
    json_decref(ckpt->config);
    free(ckpt->tensors);
    free(ckpt->files);
    free(ckpt->path);
    free(ckpt);
}

enum status ckpt__add_file(struct ckpt *ckpt, struct file *file, struct err *err)
{
    struct file *files;

    if (ckpt->file_count == CKPT_FILES_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: more than %d files", ckpt->path, CKPT_FILES_MAX);
    files = realloc(ckpt->files, (ckpt->file_count + 1) * sizeof(*files));
    if (files == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for %" PRIu32 " files", ckpt->path,
                       ckpt->file_count + 1);
    ckpt->files = files;
    files[ckpt->file_count++] = *file;
    *file = (struct file){ .fd = -1 };
    return STATUS_OK;
}

static enum status check_name(const struct ckpt *ckpt, const char *file_path, const char *name,
                              size_t name_size, struct err *err)
{
    uint64_t other;

    if (name_size > CKPT_NAME_BYTES_MAX)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: a tensor's name, '%.40s...', has %zu bytes, at most %d are read",
                       file_path, name, name_size, CKPT_NAME_BYTES_MAX);
    for (size_t i = 0; i < name_size; i++)
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7F)
            return err_set(err, STATUS_BAD_INPUT,
                           "%s: a tensor's name has the control character 0x%02X at byte %zu",
                           file_path, (unsigned char)name[i], i);
    if (map_get(ckpt->tensor_by_name, name, name_size, &other)) {
        const char *other_path = ckpt->files[ckpt->tensors[other].file_index].path;
        return err_set(err, STATUS_BAD_INPUT, "%s: tensor '%s' is there twice%s%s", file_path, name,
                       other_path == file_path ? "" : ", also in ",
                       other_path == file_path ? "" : other_path);
    }
    return STATUS_OK;
}

enum status ckpt__add_tensor(struct ckpt *ckpt, const struct ckpt_tensor *tensor, const char *name,
                             size_t name_size, struct err *err)
{
    const struct file *file = &ckpt->files[tensor->file_index];
    char *copy;
    enum status st = check_name(ckpt, file->path, name, name_size, err);

    assert(tensor->size_bytes <= file->size_bytes);
    assert(tensor->offset_bytes <= file->size_bytes - tensor->size_bytes);
    if (st != STATUS_OK)
        return st;
    if (ckpt->tensor_count == CKPT_TENSORS_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: more than %d tensors", ckpt->path,
                       CKPT_TENSORS_MAX);
    if (ckpt->tensor_count == ckpt->tensor_capacity) {
        const size_t capacity = ckpt->tensor_capacity == 0 ? 64 : ckpt->tensor_capacity * 2;
        struct ckpt_tensor *tensors = realloc(ckpt->tensors, capacity * sizeof(*tensors));
        if (tensors == NULL)
            return err_set(err, STATUS_NO_MEMORY, "%s: no memory for %zu tensors", ckpt->path,
                           capacity);
        ckpt->tensors = tensors;
        ckpt->tensor_capacity = capacity;
    }
    copy = strndup(name, name_size);
    if (copy == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for a tensor's name", file->path);
    st = map_set(ckpt->tensor_by_name, name, name_size, ckpt->tensor_count, err);
    if (st != STATUS_OK) {
        free(copy);
        return st;
    }
    ckpt->tensors[ckpt->tensor_count] = *tensor;
    ckpt->tensors[ckpt->tensor_count].name = copy;
    ckpt->tensors[ckpt->tensor_count].packed = NULL; /* formats know nothing of it */
    ckpt->tensor_count++;
    return STATUS_OK;
}

/* By offset; of those at one place the empty ones first, so that they do not look as if they lay
 * inside the one that has bytes. */
static int compare_offsets(const void *a, const void *b)
{
    const struct ckpt_tensor *const x = a;
    const struct ckpt_tensor *const y = b;

    if (x->offset_bytes != y->offset_bytes)
        return x->offset_bytes < y->offset_bytes ? -1 : 1;
    if (x->size_bytes != y->size_bytes)
        return x->size_bytes < y->size_bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

enum status ckpt__sort_file(struct ckpt *ckpt, size_t first, struct err *err)
{
    struct ckpt_tensor *const tensors = ckpt->tensors;

    if (first == ckpt->tensor_count)
        return STATUS_OK;
    qsort(tensors + first, ckpt->tensor_count - first, sizeof(*tensors), compare_offsets);
    for (size_t i = first; i < ckpt->tensor_count; i++) {
        enum status st = map_set(ckpt->tensor_by_name, tensors[i].name, strlen(tensors[i].name), i,
                                 err);
        if (st != STATUS_OK)
            return st;
    }
    for (size_t i = first + 1; i < ckpt->tensor_count; i++) {
        const struct ckpt_tensor *const before = &tensors[i - 1];
        const uint64_t end_bytes = before->offset_bytes + before->size_bytes;
        if (tensors[i].offset_bytes < end_bytes)
            return err_set(err, STATUS_BAD_INPUT,
                           "%s: tensor '%s' at byte %" PRIu64
                           " overlaps '%s', which ends at %" PRIu64,
                           ckpt->files[before->file_index].path, tensors[i].name,
                           tensors[i].offset_bytes, before->name, end_bytes);
    }
    return STATUS_OK;
}

const char *ckpt_path(const struct ckpt *ckpt)
{
    return ckpt->path;
}

const char *ckpt_format_name(const struct ckpt *ckpt)
{
    return ckpt->format->name;
}

const json_t *ckpt_config(const struct ckpt *ckpt)
{
    return ckpt->config;
}

const char *ckpt_config_suffix(const struct ckpt *ckpt)
{
    return ckpt->format->config_suffix;
}

const char *ckpt_packing(const struct ckpt *ckpt)
{
    return ckpt->packing;
}

const char *ckpt_refusal(const struct ckpt *ckpt)
{
    return ckpt->refusal;
}

size_t ckpt_tensor_count(const struct ckpt *ckpt)
{
    return ckpt->tensor_count;
}

const struct ckpt_tensor *ckpt_tensor_at(const struct ckpt *ckpt, size_t index)
{
    assert(index < ckpt->tensor_count);
    return &ckpt->tensors[index];
}

const struct ckpt_tensor *ckpt_find(const struct ckpt *ckpt, const char *name)
{
    uint64_t index;

    return map_get(ckpt->tensor_by_name, name, strlen(name), &index) ? &ckpt->tensors[index] : NULL;
}

uint32_t ckpt_file_count(const struct ckpt *ckpt)
{
    return ckpt->file_count;
}

const char *ckpt_file_path(const struct ckpt *ckpt, uint32_t file_index)
{
    assert(file_index < ckpt->file_count);
    return ckpt->files[file_index].path;
}

/* FNV-1a (http://www.isthe.com/chongo/tech/comp/fnv), of 64 bits. */
static uint64_t hash_number(uint64_t hash, uint64_t number)
{
    for (unsigned shift = 0; shift < 64; shift += 8)
        hash = (hash ^ (number >> shift & 0xff)) * UINT64_C(0x100000001b3);
    return hash;
}

uint64_t ckpt_stamp(const struct ckpt *ckpt)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);

    for (uint32_t i = 0; i < ckpt->file_count; i++) {
        struct stat about = { .st_size = 0 };

        (void)fstat(ckpt->files[i].fd, &about); /* of an open file: cannot fail */
        hash = hash_number(hash, (uint64_t)about.st_ino);
        hash = hash_number(hash, (uint64_t)about.st_size);
        hash = hash_number(hash, (uint64_t)about.st_mtim.tv_sec);
        hash = hash_number(hash, (uint64_t)about.st_mtim.tv_nsec);
    }
    return hash;
}

enum status ckpt_read(const struct ckpt *ckpt, const struct ckpt_tensor *tensor,
                      uint64_t offset_bytes, void *dst, uint64_t size_bytes, struct err *err)
{
    enum status st;

    assert(size_bytes <= tensor->size_bytes);
    assert(offset_bytes <= tensor->size_bytes - size_bytes);
    if (tensor->packed != NULL)
        st = packed__read(ckpt, tensor->packed, offset_bytes, dst, size_bytes, err);
    else
        st = file_read_at(&ckpt->files[tensor->file_index], tensor->offset_bytes + offset_bytes,
                          dst, size_bytes, err);
    return st == STATUS_OK ? st : err_prefix(err, st, "tensor '%s'", tensor->name);
}

enum status ckpt__read_much(const struct ckpt *ckpt, const struct ckpt_tensor *tensor,
                            uint64_t offset_bytes, void *dst, uint64_t size_bytes, uint8_t *buffer,
                            struct err *err)
{
    if (ckpt->bulk != NULL && buffer != NULL && tensor->packed == NULL) {
        const struct bulk_file *const bulk = &ckpt->bulk[tensor->file_index];
        const uint64_t at_bytes = tensor->offset_bytes + offset_bytes;

        assert(size_bytes <= tensor->size_bytes);
        assert(offset_bytes <= tensor->size_bytes - size_bytes);
        if (!bulk_file_is_cached(bulk, at_bytes, size_bytes) &&
            bulk_file_read(bulk, at_bytes, dst, size_bytes, buffer))
            return STATUS_OK;
    }
    return ckpt_read(ckpt, tensor, offset_bytes, dst, size_bytes, err);
}

enum status ckpt_read_file(const struct ckpt *ckpt, uint32_t file_index, uint64_t offset_bytes,
                           void *dst, uint64_t size_bytes, struct err *err)
{
    assert(file_index < ckpt->file_count);
    return file_read_at(&ckpt->files[file_index], offset_bytes, dst, size_bytes, err);
}

void ckpt_read_file_ahead(const struct ckpt *ckpt, uint32_t file_index, uint64_t offset_bytes,
                          uint64_t size_bytes)
{
    assert(file_index < ckpt->file_count);
    (void)posix_fadvise(ckpt->files[file_index].fd, (off_t)offset_bytes, (off_t)size_bytes,
                        POSIX_FADV_WILLNEED);
}

void ckpt_drop_cache(const struct ckpt *ckpt)
{
    for (uint32_t i = 0; i < ckpt->file_count; i++)
        (void)posix_fadvise(ckpt->files[i].fd, 0, 0, POSIX_FADV_DONTNEED);
}

void ckpt_read_ahead(const struct ckpt *ckpt, const struct ckpt_tensor *tensor)
{
    uint64_t offset_bytes = tensor->offset_bytes, size_bytes = tensor->size_bytes;

    if (ckpt->bulk != NULL && tensor->packed == NULL)
        return;
    if (tensor->packed != NULL)
        packed__span(tensor->packed, offset_bytes - tensor->packed->weight.offset_bytes,
                     tensor->size_bytes, &offset_bytes, &size_bytes);
    if (size_bytes > 0)
        ckpt_read_file_ahead(ckpt, tensor->file_index, offset_bytes, size_bytes);
}
