/* device/op_exact_test.c - a row's result has the same bits alone, in any batch, however a prompt
 * is cut, on any number of threads and wherever its keys lie.
 *
 * Method: each op is run once for all rows by one thread of the processor, and by the device itself
 * where that has kernels of its own; then every device with the same kernels runs it again in
 * chunks of many sizes, and the bytes are compared. Sizes are
 * chosen to cross the kernels' tiles: rows by 4, 6 and 24, weight rows by 8 and 12, keys by 64 and
 * by 256.
 * NPUs promise none of that (docs/ascend.md). */
#include "device/test_harness.h"

#include <math.h>

#include "device/cpu/kernels.h"

static const uint32_t chunks[] = { 1, 2, 5, 7, 25, 1000 };

/* Runs rows [first, first + count) of a problem and writes their outputs to out. */
struct problem {
    uint32_t row_count, out_width;
    void (*run)(struct harness *h, const void *data, uint32_t first, uint32_t count, float *out);
    const void *data;
    enum dtype weights; /* that a device must have operators for, or is left out */
    bool takes_long;    /* in every third of the chunks, and not on each device */
};

static void check_chunks(struct harness *h, const struct problem *p, const float *wanted)
{
    float *out = calloc((size_t)p->row_count * p->out_width, sizeof(*out));

    assert_non_null(out);
    for (size_t c = 0; c < sizeof(chunks) / sizeof(chunks[0]); c += p->takes_long ? 3 : 1) {
        for (uint32_t first = 0; first < p->row_count; first += chunks[c]) {
            const uint32_t left = p->row_count - first;
            const uint32_t count = left < chunks[c] ? left : chunks[c];
            p->run(h, p->data, first, count, out + (size_t)first * p->out_width);
            harness_clear(h);
        }
        for (size_t i = 0; i < (size_t)p->row_count * p->out_width; i++) {
            uint32_t got_bits, wanted_bits;
            memcpy(&got_bits, &out[i], sizeof(got_bits));
            memcpy(&wanted_bits, &wanted[i], sizeof(wanted_bits));
            if (got_bits != wanted_bits)
                fail_msg("chunks of %u: row %zu, element %zu is %a, not %a", chunks[c],
                         i / p->out_width, i % p->out_width, out[i], wanted[i]);
        }
    }
    free(out);
}

/* The device, in chunks, against the bits that `one` gives for all rows at once. */
static void check_against(const struct problem *p, const struct harness_config *one,
                          const struct harness_config *const *configs, size_t count)
{
    float *wanted = calloc((size_t)p->row_count * p->out_width, sizeof(*wanted));
    struct harness h;

    assert_non_null(wanted);
    harness_open(&h, one);
    if (!has_weights(&h, p->weights))
        count = 0;
    else
        p->run(&h, p->data, 0, p->row_count, wanted);
    harness_close(&h);
    for (size_t i = 0; i < count; i++) {
        harness_open(&h, configs[i]);
        check_chunks(&h, p, wanted);
        harness_close(&h);
    }
    free(wanted);
}

/* Where the processor rounds x to BF16 if it is told to: with that, too. */
static void check_rounding(const struct problem *p)
{
    static const struct harness_config one = { "cpu:bf16-products=on", NULL, 1, false, false },
                                       many = { "cpu:bf16-products=on", NULL, 3, false, false };
    const struct harness_config *const config = &many;

    if (p->weights == DTYPE_BF16 && cpu_kernels_select_bf16() != NULL)
        check_against(p, &one, &config, 1);
}

/* The processor's fastest kernels alone, with many threads, which may cut the work otherwise. */
static void check_threads(const struct problem *p)
{
    static const struct harness_config one = { "cpu", NULL, 1, false, false },
                                       two = { "cpu", NULL, 2, false, false },
                                       three = { "cpu", NULL, 3, false, false },
                                       twelve = { "cpu", NULL, 12, false, false };
    static const struct harness_config *const many[] = { &two, &three, &twelve };

    check_against(p, &one, many, 3);
}

static void check_problem(const struct problem *p)
{
    check_rounding(p);
    if (p->takes_long)
        check_threads(p);
    for (int scalar = 0; scalar < 2 && !p->takes_long; scalar++) {
        const struct harness_config one = { "cpu", scalar ? "scalar" : NULL, 1, false, false };
        const struct harness_config *alike[HARNESS_CONFIG_COUNT];
        size_t count = 0;

        for (size_t i = 0; i < HARNESS_CONFIG_COUNT; i++) {
            const struct harness_config *config = &harness_configs[i];
            if (!config->is_npu && !config->is_gpu &&
                (config->cpu_kernels != NULL) == (scalar != 0))
                alike[count++] = config;
        }
        check_against(p, &one, alike, count);
    }
    for (size_t i = 0; i < HARNESS_CONFIG_COUNT; i++) {
        const struct harness_config *config = &harness_configs[i];
        if (config->is_gpu)
            check_against(p, config, &config, 1);
    }
}

struct matmul_data {
    uint32_t n, k, batches;
    enum dtype dtype;
    const float *x;
    const void *weight;
};

static void matmul_run(struct harness *h, const void *data, uint32_t first, uint32_t count,
                       float *out)
{
    const struct matmul_data *d = data;
    const uint64_t k = (uint64_t)d->k * d->batches, n = (uint64_t)d->n * d->batches;
    struct op op = { .kind = OP_MATMUL };

    op.matmul = (struct op_matmul){
        .out = harness_put(h, out, count * n * 4),
        .x = harness_put(h, d->x + first * k, count * k * 4),
        .weight = harness_put(h, d->weight, dtype_row_bytes(d->dtype, d->n * k)),
        .weight_dtype = d->dtype,
        .row_count = count, .n_count = d->n, .k_count = d->k, .batch_count = d->batches,
        .out_row_stride = n, .x_row_stride = k,
        .out_batch_stride = d->n, .x_batch_stride = d->k,
    };
    harness_run(h, &op);
    harness_get(h, out, op.matmul.out, count * n * 4);
}

static void matmul_case(uint32_t rows, uint32_t n, uint32_t k, uint32_t batches, enum dtype dtype)
{
    struct harness random = { .random = 77 };
    float *x = random_floats(&random, (size_t)rows * k * batches);
    float *w = random_floats(&random, (size_t)n * k * batches);
    void *weight = rounded_to(w, dtype, (size_t)n * k * batches);
    const struct matmul_data data = { n, k, batches, dtype, x, weight };
    const struct problem problem = { rows, n * batches, matmul_run, &data, dtype, false };

    check_problem(&problem);
    free(x);
    free(w);
    free(weight);
}

/* Six weight rows at a time of the products of x with two matrices, in turns where they have to
 * make something else of x, and what lies at x changed afterwards: nothing made for one is taken
 * for another. */
static void pieces_of_matrices(struct harness *h, enum dtype first, enum dtype second)
{
    enum { ROWS = 37, N = 24, PIECE = 6, K = 96, X = ROWS * K, OUT = ROWS * N };
    const enum dtype dtypes[] = { first, second };
    float *contents[] = { random_floats(h, X), random_floats(h, X) };
    float *w = random_floats(h, (size_t)N * K), got[OUT], wanted[OUT];
    void *weights[] = { rounded_to(w, first, (size_t)N * K), rounded_to(w, second, (size_t)N * K) };
    struct op op = { .kind = OP_MATMUL, .matmul = {
        .x = harness_put(h, contents[0], X * 4), .out = harness_put(h, got, sizeof(got)),
        .row_count = ROWS, .k_count = K, .batch_count = 1, .out_row_stride = N, .x_row_stride = K,
    } };
    struct err err;

    for (uint32_t i = 0; i < 4; i++) {
        const enum dtype dtype = dtypes[i % 2];
        const uint64_t piece_bytes = dtype_row_bytes(dtype, PIECE * K);
        char *matrix = harness_put(h, weights[i % 2], N / PIECE * piece_bytes);
        float *out = op.matmul.out;
        if (i == 2)
            must(device_copy_in(h->stream, (void *)op.matmul.x, contents[1], X * 4, &err), &err);
        op.matmul.weight_dtype = dtype;
        op.matmul.n_count = PIECE;
        op.matmul.same_x = i % 2 == 1; /* as the other matrix's */
        for (uint32_t piece = 0; piece < N / PIECE; piece++) {
            op.matmul.out = out + piece * PIECE;
            op.matmul.weight = matrix + piece * piece_bytes;
            harness_run(h, &op);
            op.matmul.same_x = true;
        }
        op.matmul.out = out;
        harness_get(h, got, out, sizeof(got));
        op.matmul.weight = matrix;
        op.matmul.n_count = N;
        op.matmul.same_x = false;
        harness_run(h, &op);
        harness_get(h, wanted, out, sizeof(wanted));
        assert_memory_equal(got, wanted, sizeof(got));
    }
    harness_clear(h);
    free(contents[0]);
    free(contents[1]);
    free(w);
    free(weights[0]);
    free(weights[1]);
}

static void a_matrix_in_pieces_is_exact(void **state)
{
    static const enum dtype dtypes[] = { DTYPE_F16, DTYPE_Q8_0, DTYPE_BF16, DTYPE_F32 };

    (void)state;
    for (size_t i = 0; i < HARNESS_CONFIG_COUNT; i++) {
        struct harness h;
        harness_open(&h, &harness_configs[i]);
        for (size_t a = 0; a < 16 && !h.is_npu; a++) {
            if (has_weights(&h, dtypes[a / 4]) && has_weights(&h, dtypes[a % 4]))
                pieces_of_matrices(&h, dtypes[a / 4], dtypes[a % 4]);
        }
        harness_close(&h);
    }
}

static void matmul_is_exact(void **state)
{
    static const enum dtype dtypes[] = { DTYPE_F32, DTYPE_F16, DTYPE_BF16 };

    (void)state;
    for (size_t d = 0; d < 3; d++) {
        matmul_case(31, 29, 131, 1, dtypes[d]);
        matmul_case(26, 7, 36, 3, dtypes[d]);
    }
    matmul_case(140, 16, 24, 1, DTYPE_BF16); /* more rows than a strip has */
    matmul_case(140, 550, 40, 2, DTYPE_F16); /* and more weights than a run of them */
    matmul_case(31, 29, 160, 1, DTYPE_Q8_0);
    matmul_case(26, 7, 32, 3, DTYPE_Q8_0);
    matmul_case(31, 29, 160, 1, DTYPE_Q4_0);
    matmul_case(26, 7, 32, 3, DTYPE_Q4_0);
    matmul_case(140, 16, 64, 1, DTYPE_Q4_0);
    for (int dtype = DTYPE_Q4_1; dtype < DTYPE_COUNT; dtype++) {
        matmul_case(26, 11, 512, 1, (enum dtype)dtype);
        matmul_case(37, 5, 1280, 1, (enum dtype)dtype); /* a GPU's other kernel, and more slices */
    }
}

struct attention_data {
    uint32_t heads, kv_heads, k_width, v_width, context;
    const float *q, *k, *v; /* k and v by [sequence][position] */
    const int32_t *sequences, *positions;
    const float *sinks;     /* NULL: none */
    float score_cap;
    uint32_t window;
    bool chunked;
    enum dtype dtype;       /* of the cache */
};

enum { SEQUENCES = 2 };

/* A cache of the sequences' keys or values, x[SEQUENCES * context][kv_heads][width]. */
static char *make_cache(const struct attention_data *d, const struct op_cache_strides *strides,
                        uint32_t page_size, const int32_t *pages, const float *x, uint32_t width)
{
    const uint32_t each = (d->context - 1) / page_size + 1;
    char *cache = calloc((size_t)SEQUENCES * each, dtype_row_bytes(d->dtype, strides->page));

    for (uint32_t i = 0; i < SEQUENCES * d->context; i++) {
        const uint32_t position = i % d->context;
        const size_t page = (size_t)pages[i / d->context * each + position / page_size];
        for (uint32_t head = 0; head < d->kv_heads; head++, x += width)
            dtype_convert(cache + dtype_row_bytes(d->dtype,
                                                  page * strides->page + head * strides->head +
                                                      position % page_size * strides->slot),
                          d->dtype, x, DTYPE_F32, width);
    }
    return cache;
}

static void attention_run(struct harness *h, const void *data, uint32_t first, uint32_t count,
                          float *out)
{
    static const uint32_t page_sizes[] = { 1, 5, 16, 64, 128 };
    const struct attention_data *d = data;
    const uint32_t page_size = page_sizes[(first * 7 + count) % 5];
    const uint32_t each = (d->context - 1) / page_size + 1, pages_count = SEQUENCES * each;
    struct op_cache_strides (*order)(uint64_t, uint64_t, uint64_t) =
        has_feature(h, OP_FEATURE_KV_BY_HEAD) && first % 3 != 1 ? op_cache_by_head
                                                                : op_cache_by_slot;
    const struct op_cache_strides k_strides = order(d->kv_heads, page_size, d->k_width);
    const struct op_cache_strides v_strides = order(d->kv_heads, page_size, d->v_width);
    int32_t *pages = scattered_pages(pages_count, first);
    char *k = make_cache(d, &k_strides, page_size, pages, d->k, d->k_width);
    char *v = make_cache(d, &v_strides, page_size, pages, d->v, d->v_width);
    struct op op = { .kind = OP_ATTENTION };

    op.attention = (struct op_attention){
        .out = harness_put(h, out, (uint64_t)count * d->heads * d->v_width * 4),
        .q = harness_put(h, d->q + (size_t)first * d->heads * d->k_width,
                         (uint64_t)count * d->heads * d->k_width * 4),
        .k_cache = harness_put(h, k, pages_count * dtype_row_bytes(d->dtype, k_strides.page)),
        .v_cache = harness_put(h, v, pages_count * dtype_row_bytes(d->dtype, v_strides.page)),
        .cache_dtype = d->dtype,
        .pages = harness_put(h, pages, (uint64_t)pages_count * 4),
        .sequences = harness_put(h, d->sequences + first, (uint64_t)count * 4),
        .positions = harness_put(h, d->positions + first, (uint64_t)count * 4),
        .host_sequences = d->sequences + first, .host_positions = d->positions + first,
        .row_count = count, .head_count = d->heads, .kv_head_count = d->kv_heads,
        .k_width = d->k_width, .v_width = d->v_width,
        .page_size = page_size, .page_count_max = each,
        .cache_row_count = pages_count * page_size,
        .out_row_stride = (uint64_t)d->heads * d->v_width,
        .q_row_stride = (uint64_t)d->heads * d->k_width,
        .k_strides = k_strides, .v_strides = v_strides,
        .scale = 0.25f, .score_cap = d->score_cap, .window = d->window,
        .chunked = d->chunked,
        .sinks = d->sinks == NULL ? NULL : harness_put(h, d->sinks, d->heads * 4),
    };
    harness_run(h, &op);
    harness_get(h, out, op.attention.out, (uint64_t)count * d->heads * d->v_width * 4);
    free(k);
    free(v);
    free(pages);
}

/* `prompt` rows of a prompt from position `first` on, a short one's, and two that decode. */
static void attention_rows_from(uint32_t first, uint32_t prompt, uint32_t heads, uint32_t kv_heads,
                                uint32_t k_width, uint32_t v_width, uint32_t window, bool chunked,
                                enum dtype dtype, void (*check)(const struct problem *))
{
    enum { ROWS_MAX = 128 };
    const uint32_t context = first + prompt + 7, row_count = prompt + 5;
    struct harness random = { .random = 99 };
    int32_t sequences[ROWS_MAX], positions[ROWS_MAX];
    float *q = random_floats(&random, (size_t)row_count * heads * k_width);
    float *k = random_floats(&random, (size_t)SEQUENCES * context * kv_heads * k_width);
    float *v = random_floats(&random, (size_t)SEQUENCES * context * kv_heads * v_width);
    const struct attention_data data = {
        heads, kv_heads, k_width, v_width, context, q, k, v, sequences, positions,
        window > 0 ? q : NULL, window > 0 ? 3 : 0, window, chunked, /* capped, and with sinks */
        dtype,
    };
    const struct problem problem = { row_count, heads * v_width, attention_run, &data,
                                     DTYPE_F32, first > 100 };

    assert_true(row_count <= ROWS_MAX);
    for (int32_t t = 0; t < (int32_t)row_count; t++) {
        const int32_t behind = t - (int32_t)prompt;
        sequences[t] = behind < 0 ? 0 : 1;
        positions[t] = behind < 0   ? (int32_t)first + t
                       : behind < 3 ? behind : 3 + ((int32_t)first - 40) * (behind - 3);
    }
    /* Seen by the prompt's last row alone, and by those from row 10 on: others stay as they are. */
    k[(first + prompt - 1) * kv_heads * k_width] = 1e30f; /* overflows its scores */
    v[(first + 10) * kv_heads * v_width] = INFINITY;
    check(&problem);
    free(q);
    free(k);
    free(v);
}

static void attention_case_from(uint32_t first, uint32_t heads, uint32_t kv_heads,
                                uint32_t k_width, uint32_t v_width, uint32_t window, bool chunked,
                                enum dtype dtype)
{
    attention_rows_from(first, 33, heads, kv_heads, k_width, v_width, window, chunked, dtype,
                        check_problem);
}

/* A prompt that crosses two tiles of keys. */
static void attention_case(uint32_t heads, uint32_t kv_heads, uint32_t k_width, uint32_t v_width,
                           uint32_t window, bool chunked, enum dtype dtype)
{
    attention_case_from(100, heads, kv_heads, k_width, v_width, window, chunked, dtype);
}

/* On a GPU a row's keys may be parts of 256 for as many blocks, as room allows at once or in
 * rounds: rows on both sides of 256, of 512, of 1024, alone and too many to be cut. */
static void attention_in_parts_is_exact(void **state)
{
    (void)state;
    attention_case_from(239, 7, 7, 16, 16, 0, false, DTYPE_F32);
    attention_case_from(496, 6, 2, 20, 29, 0, false, DTYPE_F16);
    attention_case_from(496, 2, 1, 32, 160, 0, false, DTYPE_Q8_0);
    attention_case_from(239, 9, 1, 288, 264, 0, false, DTYPE_F16);
    attention_case_from(520, 6, 2, 20, 29, 270, false, DTYPE_F32);
    attention_case_from(1008, 3, 1, 24, 20, 0, false, DTYPE_F32);
}

/* On a GPU rows of a prompt share what they read, in tiles of 64 queries, of wide heads 32, and
 * others are alone: all of a tile's kinds, as the host and as the device itself sees them. */
static void attention_in_tiles_is_exact(void **state)
{
    (void)state;
    attention_rows_from(101, 96, 8, 2, 128, 128, 0, false, DTYPE_F32, check_problem);
    attention_rows_from(101, 96, 2, 2, 64, 64, 0, false, DTYPE_F16, check_problem);
    attention_rows_from(250, 96, 10, 2, 100, 72, 130, false, DTYPE_F16, check_problem);
    attention_rows_from(250, 96, 8, 1, 128, 64, 40, true, DTYPE_Q8_0, check_problem);
    attention_rows_from(101, 96, 4, 2, 256, 256, 0, false, DTYPE_F32, check_problem);
    attention_rows_from(250, 96, 10, 1, 130, 256, 130, false, DTYPE_F16, check_problem);
    attention_rows_from(250, 96, 2, 1, 256, 192, 40, true, DTYPE_Q8_0, check_problem);
    attention_case_from(239, 231, 7, 16, 16, 0, false, DTYPE_F32); /* parts, but one block's */
}

/* On a processor parts of 512 keys get tasks of their own where there are threads without one, as
 * many at once as there is room for. */
static void attention_shared_out_is_exact(void **state)
{
    (void)state;
    attention_rows_from(1300, 3, 8, 2, 20, 24, 0, false, DTYPE_F32, check_threads);
    attention_rows_from(1010, 40, 4, 1, 64, 64, 0, false, DTYPE_F16, check_threads);
    attention_rows_from(1500, 3, 6, 2, 20, 29, 700, false, DTYPE_F32, check_threads);
    attention_rows_from(1500, 3, 16, 1, 32, 32, 600, true, DTYPE_Q8_0, check_threads);
    attention_rows_from(2100, 1, 64, 1, 16, 512, 0, false, DTYPE_F32, check_threads);
    attention_rows_from(2100, 7, 4, 1, 16, 2040, 0, false, DTYPE_F32, check_threads); /* rounds */
}

static void attention_is_exact(void **state)
{
    (void)state;
    attention_case(6, 2, 20, 29, 0, false, DTYPE_F32);
    attention_case(5, 5, 16, 16, 0, false, DTYPE_F32);
    attention_case(36, 1, 40, 33, 0, false, DTYPE_F32);
    attention_case(6, 2, 20, 29, 50, false, DTYPE_F32);
    attention_case(36, 1, 40, 33, 7, false, DTYPE_F32);
    attention_case(6, 2, 20, 29, 11, true, DTYPE_F32);
    attention_case(6, 2, 20, 29, 50, false, DTYPE_F16);
    attention_case(9, 1, 40, 33, 0, false, DTYPE_F16);
    attention_case(6, 2, 32, 32, 0, false, DTYPE_Q8_0);
}

struct moe_data {
    uint32_t top_k, experts, width, ffn;
    enum dtype dtype, down_dtype;
    const float *x, *weights;
    const void *w13, *w2;
    const int32_t *ids;
};

enum { MOE_EXPERTS_MAX = 16 };

/* Experts one by one, each matrix anywhere; in `launch_count` launches, every launch_count-th of
 * them in each, and then those that nobody asked for too. */
static void moe_run_listed(struct harness *h, const struct moe_data *d, const struct op *whole,
                           uint32_t launch_count)
{
    const uint64_t bytes = dtype_row_bytes(d->dtype, (uint64_t)d->width * d->ffn);
    const uint64_t down_bytes = dtype_row_bytes(d->down_dtype, (uint64_t)d->width * d->ffn);

    assert_true(d->experts <= MOE_EXPERTS_MAX);
    for (uint32_t launch = 0; launch < launch_count; launch++) {
        struct op_moe_expert list[MOE_EXPERTS_MAX];
        struct op op = *whole;

        for (uint32_t e = launch; e < d->experts; e += launch_count) {
            struct op_moe_expert *expert = &list[op.moe.expert_list_count++];
            expert->down = harness_put(h, (const char *)d->w2 + e * down_bytes, down_bytes);
            expert->up = harness_put(h, (const char *)d->w13 + (2 * e + 1) * bytes, bytes);
            expert->gate = harness_put(h, (const char *)d->w13 + 2 * e * bytes, bytes);
            expert->id = (int32_t)e;
        }
        op.moe.experts = harness_put(h, list, op.moe.expert_list_count * sizeof(*list));
        op.moe.continued = launch > 0;
        op.moe.unfinished = launch + 1 < launch_count;
        harness_run(h, &op);
    }
}

static void moe_run(struct harness *h, const void *data, uint32_t first, uint32_t count, float *out)
{
    const struct moe_data *d = data;
    const uint64_t matrix = (uint64_t)d->experts * d->width * d->ffn;
    const uint32_t launch_count = (first * 3 + count) % 4; /* 0: stacked */
    const uint64_t scratch_bytes =
        op_moe_scratch_bytes(count, d->top_k, d->experts, d->width, d->ffn);
    void *scratch = calloc(1, scratch_bytes);
    struct op op = { .kind = OP_MOE };

    memset(out, 0, (size_t)count * d->width * sizeof(*out));
    memset(scratch, 0xff, scratch_bytes); /* NaN: what is not computed shows */
    op.moe = (struct op_moe){
        .out = harness_put(h, out, (uint64_t)count * d->width * 4),
        .x = harness_put(h, d->x + (size_t)first * d->width, (uint64_t)count * d->width * 4),
        .ids = harness_put(h, d->ids + (size_t)first * d->top_k, (uint64_t)count * d->top_k * 4),
        .weights =
            harness_put(h, d->weights + (size_t)first * d->top_k, (uint64_t)count * d->top_k * 4),
        .weight_dtype = d->dtype, .down_dtype = d->down_dtype,
        .scratch = harness_put(h, scratch, scratch_bytes),
        .row_count = count, .top_k = d->top_k, .expert_count = d->experts, .width = d->width,
        .ffn_width = d->ffn, .out_row_stride = d->width, .x_row_stride = d->width,
    };
    if (launch_count == 0) {
        op.moe.w13 = harness_put(h, d->w13, dtype_row_bytes(d->dtype, 2 * matrix));
        op.moe.w2 = harness_put(h, d->w2, dtype_row_bytes(d->down_dtype, matrix));
        harness_run(h, &op);
    } else {
        moe_run_listed(h, d, &op, launch_count);
    }
    harness_get(h, out, op.moe.out, (uint64_t)count * d->width * 4);
    free(scratch);
}

static void moe_case(uint32_t width, uint32_t ffn, enum dtype dtype, enum dtype down_dtype)
{
    enum { ROWS = 37, TOP_K = 3, EXPERTS = 7 };
    const size_t matrix = (size_t)EXPERTS * width * ffn;
    struct harness random = { .random = 5 };
    float *x = random_floats(&random, (size_t)ROWS * width);
    float *weights = random_floats(&random, ROWS * TOP_K);
    float *w13 = random_floats(&random, 2 * matrix), *w2 = random_floats(&random, matrix);
    void *w13_bytes = rounded_to(w13, dtype, 2 * matrix);
    void *w2_bytes = rounded_to(w2, down_dtype, matrix);
    int32_t ids[ROWS * TOP_K];
    const struct moe_data data = { TOP_K, EXPERTS, width, ffn, dtype, down_dtype, x, weights,
                                   w13_bytes, w2_bytes, ids };
    const struct problem problem = { ROWS, width, moe_run, &data, DTYPE_F32, false };

    for (int32_t t = 0; t < ROWS; t++) {
        const int32_t expert = (int32_t)(random_bits(&random) % EXPERTS);
        for (int32_t j = 0; j < TOP_K; j++) /* most rows share expert 0, in different places */
            ids[t * TOP_K + j] = (expert * (j != t % TOP_K) + j * 2) % EXPERTS;
        for (int32_t j = 1; j < TOP_K; j++) {
            while (ids[t * TOP_K + j] == ids[t * TOP_K] ||
                   (j == 2 && ids[t * TOP_K + 2] == ids[t * TOP_K + 1]))
                ids[t * TOP_K + j] = (ids[t * TOP_K + j] + 1) % EXPERTS;
        }
    }
    check_problem(&problem);
    free(x);
    free(weights);
    free(w13);
    free(w2);
    free(w13_bytes);
    free(w2_bytes);
}

static void moe_is_exact(void **state)
{
    (void)state;
    moe_case(43, 26, DTYPE_F32, DTYPE_F32);
    moe_case(64, 32, DTYPE_Q8_0, DTYPE_Q8_0);
    moe_case(32, 96, DTYPE_Q4_0, DTYPE_Q5_1);
    moe_case(256, 32, DTYPE_Q4_K, DTYPE_BF16);
    moe_case(128, 32, DTYPE_F8_E4M3, DTYPE_INT4);
    moe_case(32, 128, DTYPE_INT4, DTYPE_F8_E4M3);
    moe_case(144, 48, DTYPE_F8_E4M3_16, DTYPE_F8_E4M3_16);
}

struct row_data {
    uint32_t width;
    const float *x;
};

static void norm_run(struct harness *h, const void *data, uint32_t first, uint32_t count,
                     float *out)
{
    const struct row_data *d = data;
    struct op op = { .kind = OP_RMS_NORM };

    op.rms_norm = (struct op_rms_norm){
        .out = harness_put(h, out, (uint64_t)count * d->width * 4),
        .x = harness_put(h, d->x + (size_t)first * d->width, (uint64_t)count * d->width * 4),
        .weight = harness_put(h, d->x, (uint64_t)d->width * 4),
        .row_count = count, .group_count = 1, .width = d->width,
        .out_row_stride = d->width, .x_row_stride = d->width, .epsilon = 1e-5f,
    };
    harness_run(h, &op);
    harness_get(h, out, op.rms_norm.out, (uint64_t)count * d->width * 4);
}

/* Softmax of one row over as many experts as d->width; `out` is its ids and weights. */
static void route_run(struct harness *h, const void *data, uint32_t first, uint32_t count,
                      float *out)
{
    enum { TOP_K = 6 };
    const struct row_data *d = data;
    int32_t ids[TOP_K * 100];
    float weights[TOP_K * 100];
    struct op op = { .kind = OP_ROUTE };

    op.route = (struct op_route){
        .ids = harness_put(h, out, (uint64_t)count * TOP_K * 4),
        .weights = harness_put(h, out, (uint64_t)count * TOP_K * 4),
        .logits = harness_put(h, d->x + (size_t)first * d->width, (uint64_t)count * d->width * 4),
        .row_count = count, .expert_count = d->width, .top_k = TOP_K, .group_count = 1,
        .scoring = ROUTE_SOFTMAX, .normalise = true, .scale = 1.5f,
    };
    harness_run(h, &op);
    harness_get(h, ids, op.route.ids, (uint64_t)count * TOP_K * 4);
    harness_get(h, weights, op.route.weights, (uint64_t)count * TOP_K * 4);
    for (uint32_t i = 0; i < count * TOP_K; i++) {
        out[i / TOP_K * 2 * TOP_K + i % TOP_K] = (float)ids[i];
        out[i / TOP_K * 2 * TOP_K + TOP_K + i % TOP_K] = weights[i];
    }
}

static void norms_and_routes_are_exact(void **state)
{
    enum { ROWS = 33, WIDTH = 61 };
    struct harness random = { .random = 3 };
    float *x = random_floats(&random, ROWS * WIDTH);
    const struct row_data data = { WIDTH, x };
    const struct problem norm = { ROWS, WIDTH, norm_run, &data, DTYPE_F32, false };
    const struct problem route = { ROWS, 12, route_run, &data, DTYPE_F32, false };

    (void)state;
    check_problem(&norm);
    check_problem(&route);
    free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matmul_is_exact),
        cmocka_unit_test(a_matrix_in_pieces_is_exact),
        cmocka_unit_test(attention_is_exact),
        cmocka_unit_test(attention_in_parts_is_exact),
        cmocka_unit_test(attention_in_tiles_is_exact),
        cmocka_unit_test(attention_shared_out_is_exact),
        cmocka_unit_test(moe_is_exact),
        cmocka_unit_test(norms_and_routes_are_exact),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
