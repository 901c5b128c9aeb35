/* device/cuda/product_blocks.h - quantised weights on their way through shared memory: only for
 * product_*.cu.
 *
 * A segment is some blocks of k, for all of a tile's rows. Its bytes are copied to shared memory in
 * pieces of 16, from the 16 bytes below where a row's begin, whose distance is kept. */
#ifndef LIGHTER_DEVICE_CUDA_PRODUCT_BLOCKS_H
#define LIGHTER_DEVICE_CUDA_PRODUCT_BLOCKS_H

#include "device/cuda/product.h"
#include "device/cuda/quant_read.h"

template <int dtype> struct block_segment {
    static constexpr uint32_t blocks = quant_type<dtype>::elements > 32 ? 1 : 4;
    static constexpr uint32_t bytes = blocks * quant_type<dtype>::bytes;
    static constexpr uint32_t pieces = (bytes + 30) / 16; /* of 16 bytes, at most */
    static constexpr uint32_t stride = (pieces | 1) * 16; /* odd: rows begin in other banks */
};

/* Begins to copy the blocks of rows [n0, n0 + n_count). */
template <int dtype>
__device__ static inline void fetch_rows(unsigned char *to, const struct product *p,
                                         const struct product_group *group, uint32_t n0,
                                         uint32_t n_count, uint32_t first_block,
                                         uint32_t block_count, uint32_t thread, uint32_t threads)
{
    constexpr uint32_t pieces = block_segment<dtype>::pieces;

#pragma unroll 1
    for (uint32_t i = thread; i < n_count * pieces; i += threads) {
        const uint32_t n = i / pieces, piece = i % pieces;
        const uint8_t *from = product_weight_row(p, group, n0 + n) +
                              (uint64_t)first_block * quant_type<dtype>::bytes;
        const uint32_t before = (uint32_t)((uintptr_t)from % 16);

        if (piece * 16 < before + block_count * quant_type<dtype>::bytes)
            gpu_copy_16(to + n * block_segment<dtype>::stride + piece * 16,
                        from - before + piece * 16);
    }
    gpu_copy_commit();
}

/* Where block `block` of the segment lies for row n of the tile. */
template <int dtype>
__device__ static inline struct quant_shared block_at(const unsigned char *tile,
                                                      const struct product *p,
                                                      const struct product_group *group,
                                                      uint32_t n0, uint32_t n,
                                                      uint32_t first_block, uint32_t block)
{
    /* of where the segment begins only the distance from a multiple of 16: 32 bits are enough */
    const uint32_t before = ((uint32_t)(uintptr_t)group->weight +
                             min(n0 + n, p->n_count - 1) * (uint32_t)p->weight_row_bytes +
                             first_block * quant_type<dtype>::bytes) % 16;

    return { (const uint32_t *)tile, n * block_segment<dtype>::stride + before +
                                         block * quant_type<dtype>::bytes };
}

#endif
