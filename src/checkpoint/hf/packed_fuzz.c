/* checkpoint/hf/packed_fuzz.c - any config.json with any header of a safetensors file: quantised
 * weights that are put together, or refused.
 *
 * Of the input the first two bytes are the size of the file's data, what follows up to a zero byte
 * is config.json, and the rest the header. What is put together is read, in two parts. */
#include <stdlib.h>
#include <string.h>

#include "checkpoint/internal.h"
#include "checkpoint/testing.h"

#define READ_BYTES_MAX (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char *folder; /* made once; removed at exit */

static void remove_folder(void)
{
    ckpt_testing_remove(folder);
}

static void write_weights(const uint8_t *header, size_t header_size, size_t data_size)
{
    const size_t size = SAFETENSORS_PREFIX_BYTES + header_size + data_size;
    uint8_t *bytes = malloc(size);

    if (bytes == NULL)
        abort();
    for (size_t i = 0; i < SAFETENSORS_PREFIX_BYTES; i++)
        bytes[i] = (uint8_t)((uint64_t)header_size >> 8 * i);
    if (header_size > 0)
        memcpy(bytes + SAFETENSORS_PREFIX_BYTES, header, header_size);
    for (size_t i = 0; i < data_size; i++)
        bytes[SAFETENSORS_PREFIX_BYTES + header_size + i] = (uint8_t)(i * 37 % 64);
    ckpt_testing_write_file(folder, "model.safetensors", bytes, size);
    free(bytes);
}

static void read_tensor(const struct ckpt *ckpt, const struct ckpt_tensor *tensor)
{
    const struct dtype_info *info = dtype_info(tensor->dtype);
    const uint64_t half = tensor->size_bytes / info->block_bytes / 2 * info->block_bytes;
    uint8_t *bytes;
    struct err err;

    if (tensor->rank < 2 || tensor->shape[0] == 0 || tensor->size_bytes == 0 ||
        ckpt_find(ckpt, tensor->name) != tensor)
        abort();
    if (tensor->size_bytes > READ_BYTES_MAX)
        return;
    bytes = malloc(tensor->size_bytes);
    if (bytes == NULL)
        abort();
    ckpt_read_ahead(ckpt, tensor);
    if (ckpt_read(ckpt, tensor, 0, bytes, half, &err) == STATUS_OK)
        (void)ckpt_read(ckpt, tensor, half, bytes + half, tensor->size_bytes - half, &err);
    free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *end;
    struct ckpt *ckpt = NULL;
    struct err err;

    if (size < 2)
        return 0;
    if (folder == NULL) {
        folder = ckpt_testing_folder();
        if (atexit(remove_folder) != 0)
            abort();
    }
    end = memchr(data + 2, 0, size - 2);
    if (end == NULL)
        return 0;
    ckpt_testing_write_file(folder, "config.json", data + 2, (size_t)(end - data) - 2);
    write_weights(end + 1, size - (size_t)(end - data) - 1, data[0] | (size_t)data[1] << 8);
    if (ckpt_open(folder, &ckpt, &err) != STATUS_OK)
        return 0;
    for (size_t i = 0; i < ckpt_tensor_count(ckpt); i++)
        if (ckpt_tensor_at(ckpt, i)->packed != NULL)
            read_tensor(ckpt, ckpt_tensor_at(ckpt, i));
    ckpt_close(ckpt);
    return 0;
}
