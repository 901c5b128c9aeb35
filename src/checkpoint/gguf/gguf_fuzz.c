/* checkpoint/gguf/gguf_fuzz.c - any bytes as a GGUF file.
 *
 * They are put into a file without a name, as the reader asks for pieces of one. What is accepted
 * must be what checkpoint.h promises. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "checkpoint/gguf/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The tensors lie in the file without overlaps, and are found by their names. */
static void check_accepted(const struct ckpt *ckpt)
{
    uint64_t end_bytes = 0;

    if (!json_is_object(ckpt->config))
        abort();
    for (size_t i = 0; i < ckpt_tensor_count(ckpt); i++) {
        const struct ckpt_tensor *const tensor = ckpt_tensor_at(ckpt, i);
        uint64_t count, bytes;
        if (tensor->offset_bytes < end_bytes || tensor->rank > TENSOR_RANK_MAX ||
            ckpt_find(ckpt, tensor->name) != tensor)
            abort();
        end_bytes = tensor->offset_bytes + tensor->size_bytes;
        if (tensor->dtype != DTYPE_COUNT &&
            (!tensor_element_count(tensor->rank, tensor->shape, &count) ||
             !dtype_bytes(tensor->dtype, count, &bytes) || bytes != tensor->size_bytes))
            abort();
    }
    if (end_bytes > ckpt->files[0].size_bytes)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct file file = { .fd = memfd_create("fuzz.gguf", 0), .size_bytes = size };
    struct ckpt *ckpt = NULL;
    struct err err;

    file.path = strdup("fuzz.gguf");
    if (file.fd < 0 || file.path == NULL || write(file.fd, data, size) != (ssize_t)size ||
        ckpt__create("fuzz.gguf", &ckpt, &err) != STATUS_OK)
        abort();
    if (gguf__read(ckpt, &file, &err) == STATUS_OK)
        check_accepted(ckpt);
    else if (err.message[0] == '\0')
        abort();
    ckpt_close(ckpt);
    file_close(&file);
    return 0;
}
