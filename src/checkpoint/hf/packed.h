/* checkpoint/hf/packed.h - quantised weights that a safetensors checkpoint holds in several
 * tensors.
 *
 * A module X is listed as one tensor X.weight whose rows are blocks (tensor/quant.h), put together
 * when they are read; so nothing above this room sees what it was made of. N rows, K columns (and
 * of MXFP4 E matrices, which are listed as X [E, N, K]):
 *
 *     FP8, INT8    X.weight [N, K] F8_E4M3 or I8, and X.weight_scale_inv or X.weight_scale: for
 *                  each block of rows and columns one (DeepSeek: 128 x 128), each row one, or one
 *     compressed   X.weight_packed [N, K/8] I32, X.weight_scale [N, K/G], with zero points also
 *                  X.weight_zero_point [N/8, K/G] I32; X.weight_shape [2] I64 says N, K
 *     GPTQ         X.qweight [K/8, N] I32, X.scales [K/G, N], X.qzeros [K/G, N/8] I32, X.g_idx
 *                  [K]; with 8 bits K/4 and N/4
 *     AWQ          X.qweight [K, N/8] I32, X.scales [K/G, N], X.qzeros [K/G, N/8] I32
 *     MXFP4        X_blocks [E, N, K/32, 16] U8, X_scales [E, N, K/32] U8
 *
 * Eight numbers of 4 bits, or four of 8, are in an I32, the first in the low bits; of AWQ's eight
 * columns in the order 0, 2, 4, 6, 1, 3, 5, 7. MXFP4 has two in a byte, the first in the low bits,
 * and exponents as scales (tensor/quant.h). Elsewhere a weight is scale * (number - zero point),
 * where compressed-tensors without zero points have 8. GPTQ's zero points are stored less 1,
 * borrowing from the next in the word, unless "checkpoint_format" is "gptq_v2". G columns share a
 * scale.
 *
 * X.g_idx says which group a column is in. A row's blocks have a scale each, so where a group's
 * columns are not neighbours (GPTQ's desc_act), X.weight has them by group, and there is one tensor
 * more: X.order [K] F32 says which column of x is multiplied with each. compressed-tensors' must be
 * neighbours.
 *
 * What becomes of it:
 *
 *     FP8          F8_E4M3, scales in F32: exact; where rows are not whole blocks of 128,
 *                  F8_E4M3_16, in which each 16 have their scale beside them; where they are not
 *                  whole blocks of 16 either, F16, which rounds by at most 2^-12
 *     INT8         Q8_0, scales in F16
 *     GPTQ, 8 bits Q8_0, where the configuration says that all zero points are 128; scales in F16
 *     4 bits       Q4_0 where the configuration says that all zero points are 8, INT4 elsewhere;
 *                  scales in F16
 *     MXFP4        MXFP4: exact
 *
 * F16 holds every F16 scale, and every BF16 one from 2^-17 to 65280; a smaller one becomes the
 * nearest, off by at most 2^-25, and one in F32 is rounded by at most 2^-11 of itself.
 *
 * Sources: transformers 5.24 (integrations/finegrained_fp8.py, mxfp4.py), AutoGPTQ 0.7
 * (qlinear_cuda.py) and GPTQModel 4 (utils/model.py, convert_gptq_v1_to_v2_format_module) for zero
 * points, AutoAWQ 0.2 (modules/linear/gemm.py), compressed-tensors 0.12 (compressors/). */
#ifndef LIGHTER_CHECKPOINT_HF_PACKED_H
#define LIGHTER_CHECKPOINT_HF_PACKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "checkpoint/internal.h"
#include "tensor/quant.h"

#define PACKED_COLUMNS_MAX (UINT64_C(1) << 20)
#define PACKED_GROUP 32 /* columns of a block of 4 bits, and of Q8_0; groups are multiples */
#define PACKED_ORDERED_MAX 32768 /* columns of a row in another order */

enum packed_kind {
    PACKED_F8, PACKED_INT8, PACKED_COMPRESSED, PACKED_GPTQ, PACKED_AWQ, PACKED_MXFP4,
    PACKED_ORDER              /* X.order; its weight is X.g_idx */
};

/* What config.json says of all modules. */
struct packed_config {
    bool quantised;           /* false: nothing, and there is nothing else here */
    bool has_f8, has_int8, has_compressed, has_gptq, has_awq; /* what to look for */
    bool has_mxfp4;
    uint64_t group_size;      /* of GPTQ and AWQ; 0: all columns */
    uint32_t bits;            /* of GPTQ: 4 or 8 */
    uint64_t block_rows, block_columns; /* of FP8 scales; 0: none */
    bool zeros_less_one;      /* GPTQ's */
    bool symmetric;
    const char *name;         /* "gptq", "gptq_v2", ...; static */
};

/* BAD_INPUT: says why such weights are not read. `what` names the file. */
enum status packed__config_read(const json_t *config, const char *what,
                                struct packed_config *config_out, struct err *err);

struct packed {
    enum packed_kind kind;
    /* The tensors it is made of, with names of their own; .name is NULL: there is none. */
    struct ckpt_tensor weight, scales, zeros, order, shape;
    enum dtype dtype;
    uint64_t row_count, column_count;
    uint32_t bits;            /* of a weight, where words hold several: 4 or 8 */
    uint64_t matrix_count;    /* of MXFP4, whose rows are all in row_count; else 0 */
    uint64_t scale_rows, scale_columns; /* of the matrix, that share a scale */
    bool zeros_less_one;
    /* [column_count] GPTQ's columns by group; NULL: they are so in the file. A PACKED_ORDER owns
     * it. */
    uint32_t *columns;
    size_t place;             /* of the weights among the checkpoint's tensors, before */
};

/* Replaces what a Hugging Face checkpoint has of quantised modules, as above. BAD_INPUT: they are
 * not as they should be; the tensors are as they were. */
enum status packed__compose(struct ckpt *ckpt, const char *config_path, struct err *err);
void packed__destroy(struct packed *packed, size_t count);

/* Puts whole blocks together: from offset_bytes of the tensor on. Takes CKPT_READ_BYTES_MAX for as
 * long as it works. Refuses E4M3's NaN, scales that F16 does not hold, and a zero point that is not
 * the one that was said. */
enum status packed__read(const struct ckpt *ckpt, const struct packed *packed,
                         uint64_t offset_bytes, void *dst, uint64_t size_bytes, struct err *err);
/* Which bytes of the weights that is about; of those in another order as many. */
void packed__span(const struct packed *packed, uint64_t offset_bytes, uint64_t size_bytes,
                  uint64_t *file_offset_out, uint64_t *size_out);
/* Reads which group each column is in. *columns_out, the caller's, is the columns by group, or NULL
 * where that is how they lie. Groups must be as large as each other. */
enum status packed__read_order(const struct ckpt *ckpt, const struct packed *packed,
                               uint32_t **columns_out, struct err *err);

#endif
