/* checkpoint/load.c - carries a loader out. */
#include <assert.h>
#include <stdlib.h>

#include "base/size.h"
#include "checkpoint/loader.h"

#define STAGING_BYTES (4 * MIB)

struct loader_staging {
    uint8_t *bytes; /* [STAGING_BYTES] */
};

enum status loader_staging_create(struct loader_staging **staging_out, struct err *err)
{
    struct loader_staging *staging = calloc(1, sizeof(*staging));

    if (staging != NULL)
        staging->bytes = aligned_alloc(64, STAGING_BYTES);
    if (staging == NULL || staging->bytes == NULL) {
        loader_staging_destroy(staging);
        return err_set(err, STATUS_NO_MEMORY, "no memory to load weights through");
    }
    *staging_out = staging;
    return STATUS_OK;
}

void loader_staging_destroy(struct loader_staging *staging)
{
    if (staging == NULL)
        return;
    free(staging->bytes);
    free(staging);
}

/* One row of a part: dims[2] at indices i, j. */
static enum status load_row(const struct ckpt *ckpt, const struct ckpt_tensor *tensor,
                            const struct loader_part *part, uint64_t src, uint64_t dst,
                            enum dtype dtype, uint8_t *out, struct loader_staging *staging,
                            struct err *err)
{
    const struct loader_dim *const dim = &part->dims[2];
    const uint64_t src_size = dtype_info(tensor->dtype)->block_bytes;
    const uint64_t dst_size = dtype_info(dtype)->block_bytes;
    const uint64_t stride = dim->count == 1 || dim->src_stride == 0 ? 1 : dim->src_stride;
    const uint64_t fit = 1 + (STAGING_BYTES / src_size - 1) / stride;

    for (uint64_t k = 0; k < dim->count; k += fit) {
        const uint64_t count = dim->count - k < fit ? dim->count - k : fit;
        const uint64_t span = dim->src_stride == 0 ? 1 : (count - 1) * stride + 1;
        const enum status st = ckpt_read(ckpt, tensor, (src + k * dim->src_stride) * src_size,
                                         staging->bytes, span * src_size, err);
        if (st != STATUS_OK)
            return st;
        if (dim->src_stride == 1 && dim->dst_stride == 1) {
            dtype_convert(out + (dst + k) * dst_size, dtype, staging->bytes, tensor->dtype, count);
            continue;
        }
        for (uint64_t n = 0; n < count; n++)
            dtype_convert(out + (dst + (k + n) * dim->dst_stride) * dst_size, dtype,
                          staging->bytes + n * dim->src_stride * src_size, tensor->dtype, 1);
    }
    return STATUS_OK;
}

enum status loader_load(const struct loader *loader, const struct ckpt *ckpt, void *dst,
                        struct loader_staging *staging, const struct progress *progress,
                        uint64_t *done_bytes, uint64_t total_bytes, struct err *err)
{
    for (size_t p = 0; p < loader_part_count(loader); p++) {
        const struct loader_part *const part = loader_part_at(loader, p);
        const struct loader_dim *const dims = part->dims;
        const struct ckpt_tensor *const tensor = ckpt_find(ckpt, part->tensor);
        assert(tensor != NULL);
        for (uint64_t i = 0; i < dims[0].count; i++) {
            for (uint64_t j = 0; j < dims[1].count; j++) {
                const enum status st = load_row(
                    ckpt, tensor, part,
                    part->src_offset + i * dims[0].src_stride + j * dims[1].src_stride,
                    part->dst_offset + i * dims[0].dst_stride + j * dims[1].dst_stride,
                    loader_dtype(loader), dst, staging, err);
                if (st != STATUS_OK)
                    return st;
            }
        }
        if (done_bytes != NULL) {
            *done_bytes += dims[0].count * dims[1].count * dims[2].count *
                           dtype_info(tensor->dtype)->block_bytes;
            progress_update(progress, "loading", *done_bytes, total_bytes);
        }
    }
    return STATUS_OK;
}
