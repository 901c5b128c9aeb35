/* device/cpu/matmul_bf16.c - products with BF16 weights by AVX-512's instruction for them, for
 * which x is rounded to BF16, too: `--device cpu:bf16-products=on`.
 *
 * VDPBF16PS multiplies 32 pairs of numbers where an FMA multiplies 16, and weights need not become
 * F32 first. Each lane adds the products of two adjacent k: to matmul_tiles.h two BF16 numbers are
 * one element of 32 bits, and a row has half as many. Rounding and order are the processor's (Intel
 * SDM, VDPBF16PS): subnormal numbers count as 0.
 *
 * Rows of x are packed as BF16, CPU_PACK_ROWS together. Other weights, rows with an odd number of
 * elements, and rows that lie anywhere take the FMAs. */
#include "device/cpu/avx2.h"

static inline __m512 multiply_add(__m512 sum, __m512 x, __m512 weights)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)weights);
}

#include "device/cpu/matmul_tiles.h"

/* A row of packed x. A line more, since rows of a power of two would share the cache's sets. */
static uint64_t row_bytes(uint32_t k_count)
{
    return ((uint64_t)k_count * 2 + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES + LINE_BYTES;
}

uint64_t cpu__packed_bytes_bf16(enum dtype weight_dtype, uint32_t k_count)
{
    return weight_dtype == DTYPE_BF16 && k_count % 2 == 0 ? CPU_PACK_ROWS * row_bytes(k_count) : 0;
}

void cpu__pack_bf16(void *packed, const float *const *x_rows, uint32_t row_count, uint32_t k_count,
                    bool alone)
{
    const uint32_t whole = k_count / LANES * LANES;
    const __mmask16 mask = (__mmask16)((1u << (k_count - whole)) - 1);

    (void)alone;
    for (uint32_t r = 0; r < row_count; r++) {
        uint16_t *out = (uint16_t *)(void *)((char *)packed + r * row_bytes(k_count));
        for (uint32_t k = 0; k < whole; k += LANES)
            _mm256_store_si256((__m256i *)(void *)(out + k),
                               (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x_rows[r] + k)));
        _mm256_mask_storeu_epi16(
            out + whole, mask,
            (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x_rows[r] + whole)));
    }
}

/* The strip's rows of x are packed. */
static void multiply_packed(const struct cpu_strip *strip)
{
    const uint64_t stride = row_bytes(strip->k_count);
    const float *rows[CPU_STRIP_ROWS_MAX];
    struct cpu_strip pairs = *strip;

    for (uint32_t r = 0; r < strip->row_count; r++)
        rows[r] = (const float *)(const void *)((const char *)strip->x_packed + r * stride);
    pairs.x_rows = rows;
    pairs.weight_dtype = DTYPE_F32;
    pairs.k_count /= 2;
    pairs.weight_row_stride /= 2;
    multiply(&pairs, NULL, DTYPE_F32); /* which needs no panel */
}

/* Packs as many rows as have room at a time. */
static void pack_and_multiply(const struct cpu_strip *strip, void *scratch)
{
    const uint64_t most = CPU_STRIP_SCRATCH_BYTES / row_bytes(strip->k_count);
    struct cpu_strip part = *strip;

    part.x_packed = scratch;
    for (uint32_t row = 0; row < strip->row_count; row += part.row_count) {
        const uint32_t left = strip->row_count - row;
        part.row_count = left < most ? left : (uint32_t)most;
        part.out = strip->out + row * strip->out_row_stride;
        cpu__pack_bf16(scratch, strip->x_rows + row, part.row_count, strip->k_count, false);
        multiply_packed(&part);
    }
}

void cpu__matmul_bf16(const struct cpu_strip *strip, void *scratch)
{
    if (strip->weight_dtype != DTYPE_BF16 || strip->k_count % 2 != 0 ||
        row_bytes(strip->k_count) > CPU_STRIP_SCRATCH_BYTES)
        cpu__matmul_avx512(strip, scratch);
    else if (strip->x_packed != NULL)
        multiply_packed(strip);
    else
        pack_and_multiply(strip, scratch);
}
