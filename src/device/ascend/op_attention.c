/* device/ascend/op_attention.c - attention over the paged cache, in products and a softmax.
 *
 * Rows that are a run of positions of one sequence, a token or a part of a prompt, are computed
 * together, all heads at once. With G kv heads, r query heads to each, R rows, L keys:
 *
 *     K, V      = the sequence's pages, gathered by its page table     [L][G * width]
 *     Q         = q * scale                                            [G][R * r][k width]
 *     S         = Q K^T + mask                                         [G][R * r][L]
 *     out       = softmax(S) V                                         [G][R * r][v width]
 *
 * All of it in FLOAT. mask[i][j] hides the keys behind row i's position: -1e30 where j - i is more
 * than the first row's position, which softmax turns into 0; a single row needs none. How many rows
 * are taken at once is bounded by the size of S, and depends on nothing else.
 *
 * With a window, keys before the first row's are left out, pages before them are not gathered, and
 * a second mask hides what later rows no longer see. Rows of different chunks are not computed
 * together, so a chunk needs no mask of its own. A soft cap comes before the masks. Sinks are a
 * column more behind the scores, which the product with V leaves out.
 *
 * The host has to know positions and sequences: the model hands them over, and a launch without
 * them waits for a copy. */
#include <assert.h>

#include "device/ascend/op_call.h"

#define SCORES_BYTES (UINT64_C(16) << 20) /* of S at most, unless a row alone has more */
#define HIDDEN (-1e30f)

struct rows {
    const struct op_attention *op;
    uint32_t first, count;        /* of the op's rows */
    int32_t sequence;
    uint64_t position;            /* of the first */
    uint64_t gathered;            /* the position of the first key in keys and values */
    const float *keys, *values;   /* gathered; NULL: not yet */
};

struct run {
    const int32_t *sequences, *positions;
};

/* From the op, or copied to host memory. */
static struct run read_run(struct ascend_call *call, const struct op_attention *op)
{
    struct ascend_ops *ops = ascend__device_of(call->stream)->ops;
    struct stream *stream = &call->stream->base;
    const uint64_t bytes = (uint64_t)op->row_count * sizeof(int32_t);
    struct run run = { op->host_sequences, op->host_positions };
    void *memory = NULL;

    if (run.sequences != NULL && run.positions != NULL)
        return run;
    call->status = ascend__host_memory(ops, 2 * bytes, &memory, call->err);
    if (call->status != STATUS_OK)
        return run;
    run.sequences = memory;
    run.positions = run.sequences + op->row_count;
    call->status = ascend__copy_out(stream, (void *)run.sequences, op->sequences, bytes,
                                    call->err);
    if (call->status == STATUS_OK)
        call->status = ascend__copy_out(stream, (void *)run.positions, op->positions, bytes,
                                        call->err);
    if (call->status == STATUS_OK)
        call->status = ascend__stream_sync(stream, call->err);
    return run;
}

/* The rows from `first` on that are a run of positions of one sequence, and of one chunk. */
static struct rows next_rows(const struct op_attention *op, const struct run *run, uint32_t first)
{
    uint32_t count = 1;

    while (first + count < op->row_count &&
           run->sequences[first + count] == run->sequences[first] &&
           run->positions[first + count] == run->positions[first] + (int32_t)count &&
           !(op->chunked && run->positions[first + count] % (int32_t)op->window == 0))
        count++;
    return (struct rows){ .op = op, .first = first, .count = count,
                          .sequence = run->sequences[first],
                          .position = (uint64_t)run->positions[first] };
}

/* The first key that a row at this position sees. */
static uint64_t first_key(const struct op_attention *op, uint64_t position)
{
    if (op->window == 0)
        return 0;
    if (op->chunked)
        return position - position % op->window;
    return position + 1 > op->window ? position + 1 - op->window : 0;
}

/* The sequence's pages of one cache from rows->gathered on, into `to`. */
static void gather(struct ascend_call *call, const struct rows *rows, const float *cache,
                   uint64_t stride, uint64_t page_count, float *to)
{
    const struct op_attention *op = rows->op;
    const uint64_t page = op->page_size * stride;
    const struct ascend_view pages =
        ascend__rows(cache, ACL_FLOAT, op->cache_row_count / op->page_size, page, page);
    const struct ascend_view index =
        ascend__vector(op->pages + (uint64_t)rows->sequence * op->page_count_max +
                           rows->gathered / op->page_size, ACL_INT32, page_count);
    const struct ascend_view out = ascend__rows(to, ACL_FLOAT, page_count, page, page);

    ascend__select(call, &pages, &index, &out);
}

/* What a part of the rows takes. */
struct part {
    float *q, *scores, *weights, *mask, *out;
    float *wide; /* the scores and the sinks; NULL: no sinks */
};

static struct part cut_part(struct ascend_cutter *cutter, const struct op_attention *op,
                            uint64_t count, uint64_t key_count)
{
    const uint64_t heads = count * op->head_count;
    struct part part;

    part.q = ascend__cut(cutter, heads * op->k_width * 4);
    part.scores = ascend__cut(cutter, heads * key_count * 4);
    part.wide = op->sinks != NULL ? ascend__cut(cutter, heads * (key_count + 1) * 4) : NULL;
    part.weights = ascend__cut(cutter, heads * (key_count + (op->sinks != NULL)) * 4);
    part.mask = count > 1 ? ascend__cut(cutter, 2 * count * key_count * 4) : NULL;
    part.out = ascend__cut(cutter, heads * op->v_width * 4);
    return part;
}

/* Four dimensions: kv heads, rows, query heads of each, width. */
static struct ascend_view heads_view(const float *data, const struct op_attention *op,
                                     uint64_t count, uint64_t width, uint64_t row_stride)
{
    const int64_t each = op->head_count / op->kv_head_count;

    return (struct ascend_view){
        .data = (void *)data, .dtype = ACL_FLOAT, .rank = 4,
        .dims = { op->kv_head_count, (int64_t)count, each, (int64_t)width },
        .strides = { each * (int64_t)width, (int64_t)row_stride, (int64_t)width, 1 },
    };
}

/* The same, one behind the other in that order. */
static struct ascend_view packed_view(float *data, const struct op_attention *op, uint64_t count,
                                      uint64_t width)
{
    struct ascend_view view = heads_view(data, op, count, width, 0);

    view.strides[1] = view.dims[2] * view.dims[3];
    view.strides[0] = view.dims[1] * view.strides[1];
    return view;
}

/* [kv heads][rows * heads of each][width] of packed memory. */
static struct ascend_view matrices(float *data, const struct op_attention *op, uint64_t count,
                                   uint64_t width)
{
    const uint64_t rows = count * (op->head_count / op->kv_head_count);

    return ascend__cube(data, (struct ascend_dims){ op->kv_head_count, rows * width },
                        (struct ascend_dims){ rows, width }, width);
}

/* A part's rows: the first is at this position, and key_count keys from first_key on are looked
 * at. */
struct span {
    uint64_t count, position, key_count;
};

/* Adds to the scores what hides later keys, and those before the window. */
static void hide(struct ascend_call *call, const struct op_attention *op, const struct part *part,
                 const struct span *span)
{
    const uint64_t count = span->count, key_count = span->key_count;
    const int64_t first = (int64_t)(span->position - first_key(op, span->position));
    const int64_t before = first - (int64_t)op->window;
    const struct ascend_view full =
        ascend__rows(part->mask, ACL_FLOAT, count, key_count, key_count);
    const struct ascend_view some =
        ascend__rows(part->mask + count * key_count, ACL_FLOAT, count, key_count, key_count);
    const struct ascend_view scores = packed_view(part->scores, op, count, key_count);
    const struct ascend_view mask = {
        .data = some.data, .dtype = ACL_FLOAT, .rank = 4,
        .dims = { 1, (int64_t)count, 1, (int64_t)key_count },
        .strides = { (int64_t)(count * key_count), (int64_t)key_count, (int64_t)key_count, 1 },
    };

    ASCEND_CALL(call, InplaceFillScalar, HIDDEN, ASCEND_VIEWS(&full), t[0], ascend__number(call));
    ASCEND_CALL(call, Triu, (double)first, ASCEND_VIEWS(&full, &some), t[0], first + 1, t[1]);
    ascend__add_to(call, &scores, &mask);
    if (op->window == 0 || before + (int64_t)count <= 0)
        return;
    ASCEND_CALL(call, Tril, (double)before, ASCEND_VIEWS(&full, &some), t[0], before, t[1]);
    ascend__add_to(call, &scores, &mask);
}

/* The softmax's input: the scores, or with sinks one column more. */
static const float *widen(struct ascend_call *call, const struct op_attention *op,
                          const struct part *part, const struct span *span)
{
    const uint64_t keys = span->key_count;
    const int64_t each = op->head_count / op->kv_head_count;
    const struct ascend_view scores = packed_view(part->scores, op, span->count, keys);
    const struct ascend_view sinks = {
        .data = (void *)op->sinks, .dtype = ACL_FLOAT, .rank = 4,
        .dims = { op->kv_head_count, 1, each, 1 }, .strides = { each, each, 1, 1 },
    };
    struct ascend_view wide = packed_view(part->wide, op, span->count, keys + 1);

    if (op->sinks == NULL)
        return part->scores;
    wide.dims[3] = (int64_t)keys;
    ascend__copy(call, &wide, &scores);
    wide.dims[3] = 1;
    wide.data = part->wide + keys;
    ascend__copy(call, &wide, &sinks);
    return part->wide;
}

/* scores -> weights, [kv heads][rows of heads][keys], perhaps with a sink behind the keys. */
static struct ascend_view weigh(struct ascend_call *call, const struct op_attention *op,
                                const struct part *part, const struct span *span)
{
    const uint64_t width = span->key_count + (op->sinks != NULL);
    const struct ascend_view capped =
        matrices(part->scores, op, span->count, span->key_count);
    struct ascend_view weights = matrices(part->weights, op, span->count, width), scores;

    if (op->score_cap > 0)
        ascend__cap(call, &capped, op->score_cap);
    if (span->count > 1)
        hide(call, op, part, span);
    scores = weights;
    scores.data = (void *)widen(call, op, part, span);
    ASCEND_CALL(call, Softmax, 0, ASCEND_VIEWS(&scores, &weights), t[0], -1, t[1]);
    weights.dims[2] = (int64_t)span->key_count;
    return weights;
}

/* Rows [first, first + count) of the run. */
static void attend(struct ascend_call *call, const struct rows *rows, const struct part *part,
                   uint32_t first, uint64_t count)
{
    const struct op_attention *op = rows->op;
    const int8_t math = ascend__cube_math(ascend__device_of(call->stream)->ops, ACL_FLOAT);
    const uint64_t kv = op->kv_head_count, row = rows->first + first;
    const uint64_t position = rows->position + first, from = first_key(op, position);
    const struct span span = { count, position, position + count - from };
    const uint64_t skipped = from - rows->gathered;
    const struct ascend_view q = heads_view(op->q + row * op->q_row_stride, op, count,
                                            op->k_width, op->q_row_stride);
    const struct ascend_view out = heads_view(op->out + row * op->out_row_stride, op, count,
                                              op->v_width, op->out_row_stride);
    const struct ascend_view q_packed = packed_view(part->q, op, count, op->k_width);
    const struct ascend_view out_packed = packed_view(part->out, op, count, op->v_width);
    const struct ascend_view q_rows = matrices(part->q, op, count, op->k_width);
    const struct ascend_view scores = matrices(part->scores, op, count, span.key_count);
    const struct ascend_view out_rows = matrices(part->out, op, count, op->v_width);
    const struct ascend_view values =
        ascend__cube(rows->values + skipped * op->v_strides.slot,
                     (struct ascend_dims){ kv, op->v_width },
                     (struct ascend_dims){ span.key_count, op->v_strides.slot }, op->v_width);
    struct ascend_view keys =
        ascend__cube(rows->keys + skipped * op->k_strides.slot,
                     (struct ascend_dims){ kv, op->k_width },
                     (struct ascend_dims){ op->k_width, 1 }, span.key_count);
    struct ascend_view weights;

    keys.strides[2] = (int64_t)op->k_strides.slot; /* transposed */
    ascend__copy(call, &q_packed, &q);
    ASCEND_CALL(call, InplaceMuls, op->scale, ASCEND_VIEWS(&q_packed), t[0], ascend__number(call));
    ASCEND_CALL(call, BatchMatMul, 0, ASCEND_VIEWS(&q_rows, &keys, &scores), t[0], t[1], t[2],
                math);
    weights = weigh(call, op, part, &span);
    ASCEND_CALL(call, BatchMatMul, 0, ASCEND_VIEWS(&weights, &values, &out_rows), t[0], t[1], t[2],
                math);
    ascend__copy(call, &out, &out_packed);
}

static void attend_run(struct ascend_call *call, struct rows *rows)
{
    const struct op_attention *op = rows->op;
    const uint64_t first_page = first_key(op, rows->position) / op->page_size;
    const uint64_t key_count = rows->position + rows->count - first_page * op->page_size;
    const uint64_t page_count = (key_count - 1) / op->page_size + 1;
    const uint64_t row_bytes = op->head_count * key_count * 4;
    const uint64_t most = SCORES_BYTES / row_bytes > 0 ? SCORES_BYTES / row_bytes : 1;
    const uint64_t each = rows->count < most ? rows->count : most;
    const uint64_t slots = page_count * op->page_size;
    const bool latent = op->v_cache == op->k_cache &&
                        op->v_strides.slot == op->k_strides.slot;
    float *keys = NULL, *values = NULL;
    void *memory = NULL;
    struct part part = { NULL, NULL, NULL, NULL, NULL, NULL };

    for (int pass = 0; pass < 2 && call->status == STATUS_OK; pass++) {
        struct ascend_cutter cutter = { memory, 0 };

        keys = ascend__cut(&cutter, slots * op->k_strides.slot * 4);
        values = latent ? keys : ascend__cut(&cutter, slots * op->v_strides.slot * 4);
        part = cut_part(&cutter, op, each, key_count);
        if (pass == 0)
            call->status = ascend__scratch(call->stream, cutter.used_bytes, &memory, call->err);
    }
    if (call->status != STATUS_OK)
        return;
    rows->gathered = first_page * op->page_size;
    gather(call, rows, op->k_cache, op->k_strides.slot, page_count, keys);
    if (!latent)
        gather(call, rows, op->v_cache, op->v_strides.slot, page_count, values);
    rows->keys = keys;
    rows->values = values;
    for (uint32_t first = 0; first < rows->count && call->status == STATUS_OK;
         first += (uint32_t)each) {
        const uint64_t left = rows->count - first;

        attend(call, rows, &part, first, left < each ? left : each);
    }
}

void ascend__op_attention(struct ascend_call *call, const struct op_attention *op)
{
    const struct run run = read_run(call, op);

    assert(op->cache_row_count >= op->page_size);
    assert(op->k_strides.page == op->page_size * op->k_strides.slot);
    assert(op->v_strides.page == op->page_size * op->v_strides.slot);
    assert(op->kv_head_count == 1 ||
           (op->k_strides.head == op->k_width && op->v_strides.head == op->v_width));
    for (uint32_t first = 0; first < op->row_count && call->status == STATUS_OK;) {
        struct rows rows = next_rows(op, &run, first);

        attend_run(call, &rows);
        first += rows.count;
    }
}
