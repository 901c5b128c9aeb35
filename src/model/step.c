/* model/step.c - one step: tokens in, keys and values into the cache, logits out.
 *
 *     upload ids, positions, sequences, slots, logits rows, page tables     one copy
 *     x = embed(ids);  rope table
 *     for each layer:  begin attention, x += attention(rms_norm(x)), end
 *                      begin ffn,       x += ffn(rms_norm(x)),       end
 *     for some rows at a time: gather, rms_norm, lm_head, copy out
 *     sync
 *
 * Per step: no allocation, no lock of ours; the one system call is the device's wait at the end.
 * Every operator's row depends on that row alone, so neither the rows beside it nor the chunk a
 * prompt was cut into change an answer. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "model/internal.h"

/* Copies count numbers to *next, moves it on, and returns where they will lie on the device. */
static const int32_t *put(struct model *model, int32_t **next, const int32_t *numbers,
                          uint64_t count)
{
    const uint64_t offset = (uint64_t)(*next - (int32_t *)model->staging);

    if (count > 0)
        memcpy(*next, numbers, count * sizeof(int32_t));
    *next += count;
    return model->buffers.metadata + offset;
}

/* How wide page tables are: the pages that the furthest position needs, rounded up to a power of
 * two, so that a step's operators are seldom others than those of the step before. What lies beyond
 * in the tables is never looked at. */
static uint32_t table_width(const struct model *model, const struct model_step *step)
{
    uint32_t needed, width = 1;
    int32_t last = 0;

    for (uint32_t i = 0; i < step->row_count; i++)
        last = step->positions[i] > last ? step->positions[i] : last;
    needed = (uint32_t)last / (uint32_t)model->sizes.page_size + 1;
    assert(needed <= step->page_count_max);
    assert(needed <= model->sizes.page_table_width);
    while (width < needed)
        width *= 2;
    return width < model->sizes.page_table_width ? width : (uint32_t)model->sizes.page_table_width;
}

/* The slots of a step's rows are of the cache, in each kind of layers that there is. */
static void check_slots(const struct model *model, const struct model_step *step)
{
    const struct model_sizes *sizes = &model->sizes;
    const bool windows = sizes->kv[KV_WINDOW].layer_count > 0;

    assert(!windows || (step->window_slots != NULL && step->window_pages != NULL));
    for (uint32_t i = 0; i < step->row_count; i++) {
        assert(step->slots[i] >= 0 &&
               (uint64_t)step->slots[i] < sizes->kv[KV_ALL].page_count * sizes->page_size);
        assert(!windows || (step->window_slots[i] >= 0 &&
                            (uint64_t)step->window_slots[i] <
                                sizes->kv[KV_WINDOW].page_count * sizes->page_size));
    }
}

static void check_step(const struct model *model, const struct model_step *step)
{
    const struct model_sizes *sizes = &model->sizes;

    assert(step->row_count >= 1 && step->row_count <= sizes->row_count);
    assert(step->sequence_count >= 1 && step->sequence_count <= sizes->sequence_count);
    assert(step->logits_row_count <= step->row_count);
    for (uint32_t i = 0; i < step->row_count; i++) {
        assert(step->token_ids[i] >= 0 && (uint32_t)step->token_ids[i] < model->info.vocab_size);
        assert(step->positions[i] >= 0 &&
               (uint32_t)step->positions[i] < model->info.context_length);
        assert(step->sequences[i] >= 0 && (uint32_t)step->sequences[i] < step->sequence_count);
    }
    check_slots(model, step);
    for (uint32_t i = 0; i < step->logits_row_count; i++)
        assert(step->logits_rows[i] >= 0 && (uint32_t)step->logits_rows[i] < step->row_count);
}

/* The tables of all sequences, as wide as this step has them. */
static const int32_t *put_pages(struct model_pass *pass, int32_t **next, const int32_t *pages,
                                const struct model_step *step)
{
    const uint32_t width = pass->page_count_max;
    const uint32_t there = width < step->page_count_max ? width : step->page_count_max;
    const int32_t *first =
        pass->model->buffers.metadata + (*next - (int32_t *)pass->model->staging);

    for (uint32_t i = 0; i < step->sequence_count; i++) {
        (void)put(pass->model, next, pages + (uint64_t)i * step->page_count_max, there);
        memset(*next, 0, (width - there) * sizeof(**next));
        *next += width - there;
    }
    return first;
}

/* Of queries in layers without positions: in single precision, as transformers has it. */
static void put_temperatures(struct model_pass *pass, int32_t **next, const struct model_step *step)
{
    const struct model_config *config = pass->config;
    void *device = pass->model->buffers.metadata + (*next - (int32_t *)pass->model->staging);
    void *host = *next;
    float *temperatures = host;

    pass->temperatures = device;
    for (uint32_t i = 0; i < step->row_count; i++) {
        const float turns = floorf(((float)step->positions[i] + 1.0f) /
                                   (float)config->temperature_floor);

        temperatures[i] = log1pf(turns) * config->temperature_scale + 1.0f;
    }
    *next += step->row_count;
}

static void upload(struct model_pass *pass, const struct model_step *step)
{
    struct model *model = pass->model;
    int32_t *next = model->staging;
    uint64_t size_bytes;

    pass->row_count = step->row_count;
    pass->page_count_max = table_width(model, step);
    pass->token_ids = put(model, &next, step->token_ids, step->row_count);
    pass->positions = put(model, &next, step->positions, step->row_count);
    pass->sequences = put(model, &next, step->sequences, step->row_count);
    pass->host_positions = step->positions;
    pass->host_sequences = step->sequences;
    pass->slots[KV_ALL] = put(model, &next, step->slots, step->row_count);
    pass->logits_rows = put(model, &next, step->logits_rows, step->logits_row_count);
    pass->pages[KV_ALL] = put_pages(pass, &next, step->pages, step);
    if (model->sizes.kv[KV_WINDOW].layer_count > 0) {
        pass->slots[KV_WINDOW] = put(model, &next, step->window_slots, step->row_count);
        pass->pages[KV_WINDOW] = put_pages(pass, &next, step->window_pages, step);
    }
    if (pass->config->temperature_floor != 0)
        put_temperatures(pass, &next, step);
    size_bytes = (uint64_t)((char *)next - (char *)model->staging);
    assert(size_bytes <= model->sizes.metadata_bytes);
    pass->status = device_copy_in(model->stream, model->buffers.metadata, model->staging,
                                  size_bytes, pass->err);
}

/* A table that is at home on the disk, or not all there yet: the step's rows of it are brought, and
 * read in order. */
static void look_up(struct model_pass *pass, size_t index, const struct model_step *step,
                    struct op_embed *rows)
{
    if (pass->status == STATUS_OK)
        pass->status = offload_lookup(pass->model->offload, index, step->token_ids,
                                      step->row_count, &rows->table, pass->err);
    rows->ids = pass->buffers->iota;
    rows->table_row_count = step->row_count;
}

static void embed(struct model_pass *pass, const struct model_step *step)
{
    const struct model_config *config = pass->config;
    const uint32_t index =
        model__params_index(pass->model->params, OFFLOAD_NO_LAYER, ROLE_EMBED);
    const bool is_looked_up = offload_is_looked_up(pass->model->offload, index);
    const struct tensor *table = offload_tensor(pass->model->offload, index);
    struct op rows = { .kind = OP_EMBED, .embed = {
        .out = pass->buffers->x, .table = table->data, .table_dtype = table->dtype,
        .ids = pass->token_ids, .row_count = pass->row_count, .width = config->hidden_size,
        .table_row_count = (uint32_t)table->shape[0],
        .out_row_stride = config->hidden_size,
    } };
    struct op rope = { .kind = OP_ROPE_TABLE, .rope_table = {
        .table = pass->buffers->rope_table, .positions = pass->positions,
        .frequencies = pass->buffers->frequencies, .row_count = pass->row_count,
        .pair_count = config->rope_pair_count, .scale = config->rope_scale,
    } };

    if (is_looked_up)
        look_up(pass, index, step, &rows.embed);
    model__pass_launch(pass, &rows);
    model__pass_scale(pass, pass->buffers->x, config->hidden_size, config->embedding_scale);
    model__pass_launch(pass, &rope);
    if (!config->has_sliding_rope)
        return;
    rope.rope_table.table = pass->buffers->sliding_rope_table;
    rope.rope_table.frequencies = pass->buffers->sliding_frequencies;
    rope.rope_table.scale = 1.0f;
    model__pass_launch(pass, &rope);
}

static void run_part(struct model_pass *pass, uint32_t layer, enum offload_part part)
{
    const struct model_config *config = pass->config;
    const struct pass_norm norm = {
        .out = pass->buffers->normed, .x = pass->buffers->x, .row_stride = config->hidden_size,
        .group_count = 1, .epsilon = config->norm_epsilon, .layer = (int32_t)layer,
        .weight = part == OFFLOAD_PART_ATTENTION ? ROLE_INPUT_NORM : ROLE_POST_NORM,
    };

    if (pass->status == STATUS_OK)
        pass->status = offload_begin(pass->model->offload, layer, part, pass->err);
    if (pass->status != STATUS_OK)
        return;
    model__pass_norm(pass, &norm);
    if (part == OFFLOAD_PART_ATTENTION)
        config->arch->attention(pass, layer);
    else
        config->arch->ffn(pass, layer);
    if (pass->status == STATUS_OK)
        pass->status = offload_end(pass->model->offload, layer, part, pass->err);
}

/* Logits of `count` wanted rows from `first` on, into out. */
static void some_logits(struct model_pass *pass, uint32_t first, uint32_t count, float *out)
{
    const struct model_config *config = pass->config;
    const struct model_buffers *buffers = pass->buffers;
    const uint32_t row_count = pass->row_count;
    const struct op gather = { .kind = OP_GATHER_ROWS, .gather_rows = {
        .out = buffers->gathered, .x = buffers->x, .rows = pass->logits_rows + first,
        .row_count = count, .width = config->hidden_size, .x_row_count = row_count,
        .out_row_stride = config->hidden_size,
        .x_row_stride = config->hidden_size,
    } };
    const struct pass_norm norm = {
        .out = buffers->gathered, .x = buffers->gathered, .row_stride = config->hidden_size,
        .group_count = 1, .epsilon = config->norm_epsilon, .layer = OFFLOAD_NO_LAYER,
        .weight = ROLE_NORM,
    };
    const struct pass_linear head = {
        .out = buffers->logits, .x = buffers->gathered, .layer = OFFLOAD_NO_LAYER,
        .weight = ROLE_LM_HEAD, .bias = ROLE_COUNT,
    };
    const struct op cap = { .kind = OP_SOFT_CAP, .soft_cap = {
        .x = buffers->logits, .row_count = count, .width = config->vocab_size,
        .row_stride = config->vocab_size, .cap = config->logits_cap,
    } };

    model__pass_launch(pass, &gather);
    pass->row_count = count;
    model__pass_norm(pass, &norm);
    model__pass_linear(pass, &head);
    model__pass_scale(pass, buffers->logits, config->vocab_size, config->logits_scale);
    if (config->logits_cap > 0)
        model__pass_launch(pass, &cap);
    pass->row_count = row_count;
    if (pass->status == STATUS_OK)
        pass->status = device_copy_out(pass->model->stream, out, buffers->logits,
                                       (uint64_t)count * config->vocab_size * sizeof(float),
                                       pass->err);
}

enum status model_forward(struct model *model, const struct model_step *step, float *logits_out,
                          struct err *err)
{
    struct model_pass pass = { .model = model, .config = &model->config,
                               .buffers = &model->buffers, .status = STATUS_OK, .err = err };
    struct err ignored;

    assert(err != NULL);
    check_step(model, step);
    upload(&pass, step);
    embed(&pass, step);
    if (pass.status == STATUS_OK)
        pass.status = offload_experts_pass(model->offload, step->row_count, err);
    for (uint32_t layer = 0; pass.status == STATUS_OK && layer < model->config.layer_count;
         layer++) {
        run_part(&pass, layer, OFFLOAD_PART_ATTENTION);
        run_part(&pass, layer, OFFLOAD_PART_FFN);
    }
    for (uint32_t first = 0; pass.status == STATUS_OK && first < step->logits_row_count;
         first += LOGITS_ROWS_AT_ONCE) {
        const uint32_t left = step->logits_row_count - first;

        some_logits(&pass, first, left < LOGITS_ROWS_AT_ONCE ? left : LOGITS_ROWS_AT_ONCE,
                    logits_out + (uint64_t)first * model->config.vocab_size);
    }
    if (pass.status == STATUS_OK)
        pass.status = stream_sync(model->stream, err);
    model->stopped.status = STATUS_OK;
    if (pass.status == STATUS_OK)
        offload_pass_done(model->offload);
    else if (offload_pass_abort(model->offload, &ignored) != STATUS_OK)
        model->stopped = *err; /* the first failure is the answer */
    return pass.status;
}

enum status model_health(const struct model *model, struct err *err)
{
    const struct err *stopped = &model->stopped;

    return stopped->status == STATUS_OK ? STATUS_OK
                                        : err_set(err, stopped->status, "%s", stopped->message);
}
