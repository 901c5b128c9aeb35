/* checkpoint/hf/safetensors_fuzz.c - any bytes as a safetensors file.
 *
 * They are taken twice: as they are, so that the length before the header is tried; and with a
 * length that fits and some bytes of data, so that changes to the header reach the checks behind
 * it. What is accepted must be what checkpoint.h promises. */
#include <stdlib.h>
#include <string.h>

#include "checkpoint/internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The tensors lie in the file, one behind the other, and are found by their names. */
static void check_accepted(const struct ckpt *ckpt, uint64_t data_offset_bytes)
{
    uint64_t end_bytes = data_offset_bytes;

    for (size_t i = 0; i < ckpt_tensor_count(ckpt); i++) {
        const struct ckpt_tensor *const tensor = ckpt_tensor_at(ckpt, i);
        uint64_t count;
        if (tensor->offset_bytes != end_bytes || tensor->rank > TENSOR_RANK_MAX ||
            ckpt_find(ckpt, tensor->name) != tensor)
            abort();
        end_bytes += tensor->size_bytes;
        if (tensor->dtype != DTYPE_COUNT && tensor->size_bytes > 0 &&
            (!tensor_element_count(tensor->rank, tensor->shape, &count) ||
             count * dtype_info(tensor->dtype)->block_bytes != tensor->size_bytes))
            abort();
    }
    if (end_bytes != ckpt->files[0].size_bytes)
        abort();
}

static void parse(const uint8_t *header, size_t size, uint64_t file_bytes)
{
    struct file file = { .fd = -1, .size_bytes = file_bytes, .path = strdup("fuzz.safetensors") };
    char *const copy = malloc(size + 1); /* of just this size, so that reading past it is seen */
    struct ckpt *ckpt = NULL;
    struct err err;

    if (copy == NULL || ckpt__create("fuzz", &ckpt, &err) != STATUS_OK ||
        ckpt__add_file(ckpt, &file, &err) != STATUS_OK)
        abort();
    memcpy(copy, header, size);
    if (safetensors__parse(ckpt, 0, copy, size, &err) == STATUS_OK)
        check_accepted(ckpt, SAFETENSORS_PREFIX_BYTES + (uint64_t)size);
    ckpt_close(ckpt);
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[] = "fuzz.safetensors";
    const struct file file = { .fd = -1, .size_bytes = size, .path = path };
    size_t header_bytes;
    size_t text_bytes;
    struct err err;

    if (size < SAFETENSORS_PREFIX_BYTES)
        return 0;
    if (safetensors__header_bytes(&file, data, &header_bytes, &err) == STATUS_OK)
        parse(data + SAFETENSORS_PREFIX_BYTES, header_bytes, size);
    text_bytes = size - SAFETENSORS_PREFIX_BYTES;
    parse(data + SAFETENSORS_PREFIX_BYTES, text_bytes, size + 24);
    return 0;
}
