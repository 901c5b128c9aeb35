/* checkpoint/testing.c - see testing.h. */
#include "checkpoint/testing.h"

#include <dirent.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"

static _Noreturn void stop(const char *what)
{
    perror(what);
    abort();
}

static void path_of(char path[PATH_MAX], const char *folder, const char *name)
{
    if ((size_t)snprintf(path, PATH_MAX, "%s/%s", folder, name) >= PATH_MAX)
        stop(name);
}

char *ckpt_testing_folder(void)
{
    const char *const parent = getenv("TMPDIR");
    char path[PATH_MAX];
    char *copy;

    path_of(path, parent != NULL && parent[0] != '\0' ? parent : "/tmp", "lighter-test-XXXXXX");
    if (mkdtemp(path) == NULL)
        stop(path);
    copy = strdup(path);
    if (copy == NULL)
        stop("strdup");
    return copy;
}

void ckpt_testing_remove(char *folder)
{
    const struct dirent *entry;
    DIR *open_folder;

    if (folder == NULL)
        return;
    open_folder = opendir(folder);
    if (open_folder == NULL)
        stop(folder);
    while ((entry = readdir(open_folder)) != NULL) {
        char path[PATH_MAX];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        path_of(path, folder, entry->d_name);
        if (unlink(path) != 0 && rmdir(path) != 0)
            stop(path);
    }
    (void)closedir(open_folder);
    if (rmdir(folder) != 0)
        stop(folder);
    free(folder);
}

void ckpt_testing_write_file(const char *folder, const char *name, const void *bytes, size_t size)
{
    char path[PATH_MAX];
    FILE *file;

    path_of(path, folder, name);
    file = fopen(path, "wb");
    if (file == NULL || fwrite(bytes, 1, size, file) != size || fclose(file) != 0)
        stop(path);
}

void ckpt_testing_write_config(const char *folder, const char *json)
{
    ckpt_testing_write_file(folder, "config.json", json, strlen(json));
}

/* Tensors' names are written as they are: they must need no escapes. */
static void append_entry(struct buf *out, const struct ckpt_testing_tensor *tensor, uint64_t begin,
                         uint64_t size_bytes, const char *before)
{
    struct err err;
    char shape[96];

    if (buf_printf(out, &err,
                   "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%" PRIu64 ",%" PRIu64
                   "]}",
                   before, tensor->name, dtype_info(tensor->dtype)->name,
                   tensor_shape_format(tensor->rank, tensor->shape, shape, sizeof(shape)), begin,
                   begin + size_bytes) != STATUS_OK)
        stop(err.message);
}

static uint64_t bytes_of(const struct ckpt_testing_tensor *tensor)
{
    uint64_t count = 0;
    uint64_t bytes = 0;

    if (!tensor_element_count(tensor->rank, tensor->shape, &count) ||
        !dtype_bytes(tensor->dtype, count, &bytes))
        stop(tensor->name);
    return bytes;
}

uint8_t *ckpt_testing_safetensors(const struct ckpt_testing_tensor *tensors, size_t tensor_count,
                                  size_t *size_out)
{
    struct buf out;
    struct err err;
    uint64_t at = 0;
    uint64_t header_bytes;

    buf_init(&out, SIZE_MAX / 2);
    if (buf_append(&out, "\0\0\0\0\0\0\0\0{", 9, &err) != STATUS_OK)
        stop(err.message);
    for (size_t i = 0; i < tensor_count; i++) {
        append_entry(&out, &tensors[i], at, bytes_of(&tensors[i]), i == 0 ? "" : ",");
        at += bytes_of(&tensors[i]);
    }
    if (buf_append(&out, "}", 1, &err) != STATUS_OK)
        stop(err.message);
    while (out.size % 8 != 0)
        if (buf_append(&out, " ", 1, &err) != STATUS_OK)
            stop(err.message);
    header_bytes = out.size - 8;
    for (size_t i = 0; i < 8; i++)
        out.data[i] = (char)(header_bytes >> (8 * i));
    for (size_t i = 0; i < tensor_count; i++)
        if (buf_append(&out, tensors[i].data, (size_t)bytes_of(&tensors[i]), &err) != STATUS_OK)
            stop(err.message);
    *size_out = out.size;
    return (uint8_t *)out.data;
}

void ckpt_testing_write_tensors(const char *folder, const char *name,
                                const struct ckpt_testing_tensor *tensors, size_t tensor_count)
{
    size_t size;
    uint8_t *const bytes = ckpt_testing_safetensors(tensors, tensor_count, &size);

    ckpt_testing_write_file(folder, name, bytes, size);
    free(bytes);
}

static void append(struct buf *out, const void *bytes, size_t size)
{
    struct err err;

    if (buf_append(out, bytes, size, &err) != STATUS_OK)
        stop(err.message);
}

static void append_number(struct buf *out, uint64_t value, size_t size)
{
    uint8_t bytes[8];

    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(value >> (8 * i));
    append(out, bytes, size);
}

static void append_string(struct buf *out, const char *text)
{
    append_number(out, strlen(text), 8);
    append(out, text, strlen(text));
}

static void append_booleans(struct buf *out, const char *digits)
{
    append_number(out, 7, 4);
    append_number(out, strlen(digits), 8);
    for (const char *at = digits; *at != '\0'; at++)
        append_number(out, *at == '1', 1);
}

static void append_pair(struct buf *out, const struct ckpt_testing_pair *pair)
{
    const float number = (float)pair->number;
    uint32_t bits;

    append_string(out, pair->key);
    append_number(out, pair->type, 4);
    memcpy(&bits, &number, sizeof(bits));
    if (pair->type == 8)
        append_string(out, pair->string);
    else if (pair->type == 9)
        append_booleans(out, pair->string);
    else if (pair->type == 6)
        append_number(out, bits, 4);
    else
        append_number(out, (uint64_t)pair->number, pair->type == 7 ? 1 : 4);
}

static void pad(struct buf *out, size_t alignment)
{
    while (out->size % alignment != 0)
        append(out, "", 1);
}

uint8_t *ckpt_testing_gguf(const struct ckpt_testing_pair *pairs, size_t pair_count,
                           const struct ckpt_testing_tensor *tensors, size_t tensor_count,
                           size_t *size_out)
{
    static const uint32_t types[DTYPE_COUNT] = {
        [DTYPE_F32] = 0, [DTYPE_F16] = 1, [DTYPE_BF16] = 30, [DTYPE_I32] = 26, [DTYPE_Q8_0] = 8,
        [DTYPE_Q4_0] = 2, [DTYPE_Q4_1] = 3, [DTYPE_Q5_0] = 6, [DTYPE_Q5_1] = 7, [DTYPE_Q2_K] = 10,
        [DTYPE_Q3_K] = 11, [DTYPE_Q4_K] = 12, [DTYPE_Q5_K] = 13, [DTYPE_Q6_K] = 14,
        [DTYPE_IQ4_NL] = 20, [DTYPE_IQ4_XS] = 23, [DTYPE_MXFP4] = 39,
    };
    struct buf out;
    uint64_t at = 0;

    buf_init(&out, SIZE_MAX / 2);
    append(&out, "GGUF\3\0\0\0", 8);
    append_number(&out, tensor_count, 8);
    append_number(&out, pair_count, 8);
    for (size_t i = 0; i < pair_count; i++)
        append_pair(&out, &pairs[i]);
    for (size_t i = 0; i < tensor_count; i++) {
        append_string(&out, tensors[i].name);
        append_number(&out, tensors[i].rank, 4);
        for (uint32_t d = tensors[i].rank; d-- > 0;)
            append_number(&out, tensors[i].shape[d], 8);
        append_number(&out, types[tensors[i].dtype], 4);
        append_number(&out, at, 8);
        at = (at + bytes_of(&tensors[i]) + 31) / 32 * 32;
    }
    for (size_t i = 0; i < tensor_count; i++) {
        pad(&out, 32);
        append(&out, tensors[i].data, (size_t)bytes_of(&tensors[i]));
    }
    *size_out = out.size;
    return (uint8_t *)out.data;
}

void ckpt_testing_write_gguf(const char *folder, const char *name,
                             const struct ckpt_testing_pair *pairs, size_t pair_count,
                             const struct ckpt_testing_tensor *tensors, size_t tensor_count)
{
    size_t size;
    uint8_t *const bytes = ckpt_testing_gguf(pairs, pair_count, tensors, tensor_count, &size);

    ckpt_testing_write_file(folder, name, bytes, size);
    free(bytes);
}
