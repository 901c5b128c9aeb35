/* device/op.h - the operators a transformer needs, each a plain description that a device runs.
 *
 * An op is queued on a stream (device_launch) and copied there, so the struct itself may die at
 * once; what its pointers name must stay until the stream has passed it. All pointers are device
 * memory. Activations are F32, row major, with strides counted in elements; integers are int32_t.
 *
 * Weights are F32, F16, BF16 or quantised (tensor/quant.h), row behind row. Rows of quantised
 * weights are whole blocks: k_count, width and ffn_width are multiples of 32, or 256 by type. A
 * device may then quantise x too, in blocks of 32 elements with 8 bits each, so that each is off by
 * at most half of the block's largest magnitude / 127, and nothing else is less exact than F32
 * sums; in types with a minimum these are of scale * q and min apart. An element of x that is not
 * finite makes NaN of all that is computed from its block. Weights in FRACTAL_NZ
 * and ROWS_16 (tensor/layout.h) are what device_weight_layout asks for, and no other device is
 * given them.
 *
 * Exactness (charter, invariant 1): what an op writes for one row depends on that row's inputs
 * alone, bit for bit: not on how many rows there are, which rows they are, how threads share them,
 * or where in a buffer they lie. Every reduction therefore has one fixed order per device.
 *
 * Safety: ids, slots and positions are made by the engine and are right. Activations may hold any
 * bits, NaN and infinity included (weights can be garbage in the meta mode): no op may read or
 * write outside its operands because of them.
 *
 * To add an operator: a kind and a struct here, a kernel in each device, a case in the conformance
 * test. */
#ifndef LIGHTER_DEVICE_OP_H
#define LIGHTER_DEVICE_OP_H

#include <stdbool.h>
#include <stdint.h>

#include "tensor/dtype.h"
#include "tensor/layout.h"

enum op_kind {
    OP_EMBED,
    OP_RMS_NORM,
    OP_MATMUL,
    OP_ROPE_TABLE,
    OP_ROPE,
    OP_KV_WRITE,
    OP_ATTENTION,
    OP_SILU_MUL,
    OP_SCALE,
    OP_ROUTE,
    OP_MOE,
    OP_GATHER_ROWS,
    OP_GATHER_COLUMNS,
    OP_SOFT_CAP,
    OP_KIND_COUNT
};

/* What some families need and not every device has (device_info.op_features). A field that asks for
 * one is 0 or NULL where nothing is asked for. */
enum op_feature {
    OP_FEATURE_NORM_OFFSET = 1 << 0,    /* op_rms_norm.weight_offset */
    OP_FEATURE_WINDOW = 1 << 1,         /* op_attention.window */
    OP_FEATURE_SINKS = 1 << 2,          /* op_attention.sinks */
    OP_FEATURE_SOFT_CAP = 1 << 3,       /* op_attention.score_cap, op_soft_cap */
    OP_FEATURE_GATE_GELU = 1 << 4,      /* GATE_GELU_TANH */
    OP_FEATURE_GATE_CLAMPED = 1 << 5,   /* GATE_CLAMPED_SWISH */
    OP_FEATURE_EXPERT_BIAS = 1 << 6,    /* op_moe.w13_bias, w2_bias */
    OP_FEATURE_SCALE = 1 << 7,          /* op_scale */
    OP_FEATURE_CHUNKS = 1 << 8,         /* op_attention.chunked */
    OP_FEATURE_KV_NARROW = 1 << 9,      /* cache_dtype other than F32 */
    OP_FEATURE_COLUMNS = 1 << 10,       /* op_gather_columns */
    OP_FEATURE_EXPERT_ORDER = 1 << 11,  /* op_moe.w13_order, w2_order */
    OP_FEATURE_KV_BY_HEAD = 1 << 12,    /* a cache of several heads in op_cache_by_head's order, or
                                           whose pages have something between them */
    OP_FEATURES_ALL = (1 << 13) - 1
};

/* out[row_count][width] = table[ids[row]][width]; ids in [0, table_row_count). */
struct op_embed {
    float *out;
    const void *table;
    enum dtype table_dtype;
    const int32_t *ids;
    uint32_t row_count, width;
    uint32_t table_row_count;
    uint64_t out_row_stride;
};

/* For each row and each of group_count groups of `width` adjacent elements:
 * out = x / sqrt(mean(x^2) + epsilon) * (weight[width] + weight_offset). out may be x. The offset
 * is 1 where a family trains what is to be added to 1, else 0.
 * Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", equation 4. */
struct op_rms_norm {
    float *out;
    const float *x;
    const float *weight;
    uint32_t row_count, group_count, width;
    uint64_t out_row_stride, x_row_stride; /* groups are adjacent: group g starts at g * width */
    float epsilon, weight_offset;
};

/* For each batch b (heads, usually 1) and row t:
 * out[t][b][n] = sum over k of x[t][b][k] * weight[b][n][k]   (+ bias[n])   (+ out[t][b][n])
 * weight is [batch_count][n_count][k_count], packed. bias is F32[n_count] or NULL, batch_count 1
 * only. out must not overlap x. */
struct op_matmul {
    float *out;
    const float *x;
    const void *weight;
    const float *bias;
    enum dtype weight_dtype;
    enum layout weight_layout;
    uint32_t row_count, n_count, k_count, batch_count;
    uint64_t out_row_stride, x_row_stride;
    uint64_t out_batch_stride, x_batch_stride; /* ignored when batch_count is 1 */
    bool accumulate;                           /* add to what out holds */
    bool exact; /* results are compared with each other (logits, a router's): a device that would
                   round x to the weights' dtype or out shall not */
    bool same_x; /* x, with its rows and strides, is that of the last product on this stream, and
                    nothing has written to x since: a device may go on with what it made of it */
};

/* table[row][i] = { cos(a) * scale, sin(a) * scale }, a = (float)positions[row] * frequencies[i].
 * Made once per step and used by every layer. */
struct op_rope_table {
    float *table;              /* [row_count][pair_count][2] */
    const int32_t *positions;  /* [row_count] */
    const float *frequencies;  /* [pair_count], radians per position */
    uint32_t row_count, pair_count;
    float scale;               /* YaRN's attention factor; 1 elsewhere */
};

/* Rotates in place the pairs of each head's 2 * pair_count elements at x + head * head_stride:
 * elements (2i, 2i + 1) when interleaved, else (i, i + pair_count).
 * Su et al. 2021, "RoFormer", equation 34. */
struct op_rope {
    float *x;
    const float *table; /* of op_rope_table */
    uint32_t row_count, head_count, pair_count;
    uint64_t row_stride, head_stride;
    bool interleaved;
};

/* Where the heads of a token slot lie in a cache whose token slots are pages of page_size: in
 * elements, those of head h in slot s begin at
 *
 *     s / page_size * page + h * head + s % page_size * slot
 *
 * and are adjacent. There are two orders; with one head they are the same. On devices that have
 * OP_FEATURE_KV_BY_HEAD something else may lie between pages. */
struct op_cache_strides {
    uint64_t page, head, slot;
};

/* [page][head][slot][width]: what attention reads of a head lies together, a page at a time. Faster
 * on devices that have OP_FEATURE_KV_BY_HEAD. */
static inline struct op_cache_strides op_cache_by_head(uint64_t head_count, uint64_t page_size,
                                                       uint64_t width)
{
    return (struct op_cache_strides){ head_count * page_size * width, page_size * width, width };
}

/* [page][slot][head][width]: the token slots of all pages are rows of one matrix. Every device
 * knows this one. */
static inline struct op_cache_strides op_cache_by_slot(uint64_t head_count, uint64_t page_size,
                                                       uint64_t width)
{
    return (struct op_cache_strides){ head_count * page_size * width, width, head_count * width };
}

/* cache[slots[row]][head][0 .. width) = x[row][head * width + ..], converted as dtype_convert does
 * it; slots are distinct. cache_dtype is F32, F16 or Q8_0, whose width and strides are whole
 * blocks. */
struct op_kv_write {
    void *cache;
    enum dtype cache_dtype;
    const float *x;
    const int32_t *slots;   /* [row_count] token slots of the cache */
    uint32_t row_count;
    uint32_t head_count, width; /* of each head */
    uint32_t page_size;
    uint32_t cache_row_count;   /* token slots: whole pages */
    struct op_cache_strides strides;
    uint64_t x_row_stride;
};

/* Causal attention over a paged cache. Row t is a query of sequence s = sequences[t] at position
 * p = positions[t]; it sees that sequence's keys at positions 0..p. The key at position j lies in
 * token slot pages[s * page_count_max + j / page_size] * page_size + j % page_size.
 * Query head h uses kv head h / (head_count / kv_head_count):
 * out[t][h][v_width] = sum_j softmax_j(scale * q[t][h] . k[j][kv]) v[j][kv].
 * With a window it sees the keys at positions p - window + 1 .. p only; entries of the page table
 * that lie wholly before are not looked at, and nothing of what their pages hold matters. A window
 * that is chunked does not slide: positions p - p % window .. p are seen. With a
 * score_cap a score s becomes score_cap * tanh(s / score_cap). With sinks the softmax's sum has one
 * more term, exp(sinks[h]), to which no value belongs (gpt-oss, arXiv 2508.10925, section 2.2).
 * The cache holds F32, F16 or Q8_0; what is computed is the same, bit for bit, as if it held the
 * values of its elements in F32. In Q8_0 strides and widths are whole blocks, but for v_width where
 * values are a part of their keys.
 * Multi-head latent attention in its absorbed form (DeepSeek-V2, arXiv 2405.04434, section 2.1) is
 * this with one kv head, k_width = latent + rope width and v_cache = k_cache, v_width = latent. */
struct op_attention {
    float *out;
    const float *q;
    const void *k_cache, *v_cache;
    enum dtype cache_dtype;     /* of both */
    const int32_t *pages;       /* [sequence_count][page_count_max] */
    const int32_t *sequences;   /* [row_count] */
    const int32_t *positions;   /* [row_count] */
    const int32_t *host_sequences, *host_positions; /* the same in host memory, to be looked at
                                                       during the launch; NULL: a device that
                                                       needs them there waits and copies them */
    uint32_t row_count, head_count, kv_head_count;
    uint32_t k_width, v_width;  /* per head */
    uint32_t page_size, page_count_max;
    uint32_t cache_row_count;   /* token slots: whole pages */
    uint64_t out_row_stride, q_row_stride;             /* heads are adjacent: h * width */
    struct op_cache_strides k_strides, v_strides;
    float scale;
    float score_cap;            /* 0: none */
    const float *sinks;         /* [head_count] or NULL */
    uint32_t window;            /* 0: none */
    bool chunked;               /* of a window */
};

/* How an FFN's gate g and up u become one. */
enum op_gate {
    GATE_SILU,          /* g / (1 + exp(-g)) * u: SwiGLU, Shazeer 2020, arXiv 2002.05202 */
    GATE_GELU_TANH,     /* 0.5 g (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3))) * u: GeGLU, with the
                           approximation of Hendrycks and Gimpel 2016, arXiv 1606.08415 */
    GATE_CLAMPED_SWISH, /* g' / (1 + exp(-1.702 g')) * (u' + 1), g' = min(g, 7), u' = u within
                           -7 .. 7; NaN stays: gpt-oss */
    GATE_COUNT
};

/* out[row][i] = gate(x[row][i], x[row][width + i]). */
struct op_silu_mul {
    float *out;
    const float *x;
    uint32_t row_count, width;
    uint64_t out_row_stride, x_row_stride;
    enum op_gate gate;
};

/* out[row][i] = factor * f(row) * x[row][i]   (+ out[row][i]), where f(row) is row_factors[row], or
 * its sigmoid, or 1 where there are none. out may be x, else it must not overlap it. */
struct op_scale {
    float *out;
    const float *x;
    const float *row_factors;  /* [row_count] or NULL */
    uint32_t row_count, width;
    uint64_t out_row_stride, x_row_stride;
    float factor;
    bool sigmoid;              /* of the rows' factors */
    bool accumulate;           /* add to what out holds */
};

#define OP_ROUTE_EXPERTS_MAX 1024 /* of one layer */

enum route_scoring { ROUTE_SOFTMAX, ROUTE_SIGMOID };
enum route_groups { ROUTE_GROUP_MAX, ROUTE_GROUP_TOP2_SUM };

/* Chooses top_k experts for each row. score = softmax or sigmoid of the logits; choice = score +
 * correction_bias. With group_count > 1 the experts fall into group_count equal runs, a run is
 * rated by its best choice (V2) or the sum of its best two (V3), and only the best kept_group_count
 * runs are eligible. The top_k eligible experts by choice are taken, best first, ties to the lower
 * index; weight = score, divided by (the sum of the taken + 1e-20) when normalise, times scale. NaN
 * ranks last. ids are always distinct and in range. DeepSeek-V2 section 2.2; DeepSeek-V3 (arXiv
 * 2412.19437) section 2.1.2. */
struct op_route {
    int32_t *ids;                  /* [row_count][top_k] */
    float *weights;                /* [row_count][top_k] */
    const float *logits;           /* [row_count][expert_count] */
    const float *correction_bias;  /* [expert_count] or NULL */
    uint32_t row_count, expert_count, top_k; /* expert_count <= OP_ROUTE_EXPERTS_MAX */
    uint32_t group_count, kept_group_count;
    enum route_scoring scoring;
    enum route_groups groups;
    bool normalise;
    float scale;
};

/* One expert's matrices, wherever they lie: gate and up [ffn_width][width] and down
 * [width][ffn_width], each packed and in device memory, at an address that suits its elements. */
struct op_moe_expert {
    const void *gate, *up, *down;
    int32_t id;
};

/* out[t] += sum over j, in order, of weights[t][j] * (down[e] . act(g, u) (+ w2_bias[e])), where
 * e = ids[t][j], g and u are gate[e] . x[t] and up[e] . x[t] (+ w13_bias[e]), and act is `gate`'s
 * formula, silu(g) * u in most families. Each expert that is hit is read once for all its rows.
 *
 * gate and up are of weight_dtype, down of down_dtype: files that mix types often give down more
 * bits. The experts are either stacked: w13 [expert_count][2 * ffn_width][width] (gate over up), w2
 * [expert_count][width][ffn_width], packed; or listed one by one, and then the op may be queued as
 * several launches, each with some of the experts, as they become available:
 *
 *     { .experts = those at hand, .unfinished = true }     sorts the rows, computes
 *     { .experts = others, .continued = true, .unfinished = true }     computes
 *     { .experts = the last ones, .continued = true }      computes, and adds to out
 *
 * scratch keeps the results in between. The launches agree in everything but these fields. Every
 * expert that is hit is in exactly one list; those that are not hit are skipped. As the sum is made
 * at the end, in the order of the choice, its bits don't depend on the lists. */
struct op_moe {
    float *out;
    const float *x;
    const int32_t *ids;      /* [row_count][top_k], distinct within a row */
    const float *weights;    /* [row_count][top_k] */
    const void *w13, *w2;    /* stacked; not looked at when `experts` is there */
    const struct op_moe_expert *experts; /* [expert_list_count], device memory, ids ascending;
                                            NULL: stacked */
    enum dtype weight_dtype, down_dtype;
    enum layout weight_layout; /* of gate and up, which are one matrix: up lies behind gate */
    enum layout down_layout; /* FRACTAL_NZ for both or for none */
    void *scratch;           /* op_moe_scratch_bytes of it, 64-byte aligned */
    uint32_t row_count, top_k, expert_count, width, ffn_width;
    uint32_t expert_list_count;
    bool continued;          /* a launch before this one has sorted the rows */
    bool unfinished;         /* a launch after this one adds to out */
    uint64_t out_row_stride, x_row_stride;
    enum op_gate gate;
    const float *w13_bias;   /* [expert_count][2 * ffn_width], gate before up, or NULL; of all */
    const float *w2_bias;    /* [expert_count][width] or NULL; experts, listed or not */
    const float *w13_order;  /* [expert_count][width] or NULL: which element of x is multiplied with
                                a column of gate and up, as in op_gather_columns */
    const float *w2_order;   /* [expert_count][ffn_width] or NULL: the same of act(g, u) and down */
};

/* What op_moe needs, the same on every device. */
static inline uint64_t op_moe_scratch_bytes(uint64_t row_count, uint64_t top_k,
                                            uint64_t expert_count, uint64_t width,
                                            uint64_t ffn_width)
{
    /* per routed row: gate and up, their product, the expert's output, two indices; per row: x,
     * quantised; per expert where its rows end, and an entry of the list of hits; and 64 bytes of
     * alignment for each of the parts */
    return row_count * top_k * (4 * (3 * ffn_width + width) + 8) + row_count * (width / 32 * 44) +
           expert_count * 8 + 9 * 64;
}

/* out[row] = x[rows[row]]. */
struct op_gather_rows {
    float *out;
    const float *x;
    const int32_t *rows; /* [row_count] */
    uint32_t row_count, width;
    uint32_t x_row_count;
    uint64_t out_row_stride, x_row_stride;
};

/* A column by its number in F32, in which parameters that are vectors are held; what is none, as
 * garbage may be, counts as 0. For CUDA too. */
#ifdef __CUDACC__
__host__ __device__
#endif
static inline uint32_t op_column(float number, uint32_t width)
{
    return number >= 0 && number < (float)width ? (uint32_t)number : 0;
}

/* out[row][i] = x[row][columns[i]]. The columns are below x_width. out is not x. */
struct op_gather_columns {
    float *out;
    const float *x;
    const float *columns; /* [width] */
    uint32_t row_count, width;
    uint32_t x_width;
    uint64_t out_row_stride, x_row_stride;
};

/* x[row][i] = cap * tanh(x[row][i] / cap), in place. Gemma 2, arXiv 2408.00118, section 2. */
struct op_soft_cap {
    float *x;
    uint32_t row_count, width;
    uint64_t row_stride;
    float cap;
};

struct op {
    enum op_kind kind;
    union {
        struct op_embed embed;
        struct op_rms_norm rms_norm;
        struct op_matmul matmul;
        struct op_rope_table rope_table;
        struct op_rope rope;
        struct op_kv_write kv_write;
        struct op_attention attention;
        struct op_silu_mul silu_mul;
        struct op_scale scale;
        struct op_route route;
        struct op_moe moe;
        struct op_gather_rows gather_rows;
        struct op_gather_columns gather_columns;
        struct op_soft_cap soft_cap;
    };
};

/* "matmul", "moe", ...: for messages and traces. */
const char *op_kind_name(enum op_kind kind);
/* The op's row_count. An op without rows is legal and does nothing. */
uint32_t op_row_count(const struct op *op);
/* Of OP_FEATURE_*, those that the op asks for. */
uint32_t op_features(const struct op *op);
/* Of one: "attention with a sliding window": for messages. */
const char *op_feature_name(enum op_feature feature);

#endif
