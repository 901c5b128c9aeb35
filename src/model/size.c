/* model/size.c - what a model takes on its device, and how large a cache the budget allows.
 *
 *     weights that stay | slots of what moves | scratch | page tables | keys and values
 *
 * The first three follow from the model and the options. A page of the cache costs its keys and
 * values in every layer, and a column in each sequence's page table until a context's worth of
 * pages exists. The cache gets what was asked for, or as many pages as fit.
 *
 * Layers with a window have pages of their own, as many as the others, but no more than all
 * sequences can use at once: then they are never what a request waits for. Where no layer keeps
 * all, they are what is counted, and a sequence may be longer than they have room for. */
#include <inttypes.h>
#include <stdio.h>

#include "base/size.h"
#include "model/internal.h"

#define ROWS_MAX (1u << 16)
#define SEQUENCES_MAX (1u << 16)
#define PAGE_SIZE_MAX (1u << 16)
#define IMPOSSIBLE_BYTES (UINT64_C(1) << 60)

uint64_t model__numbers_per_row(const struct model_config *config, uint64_t kinds)
{
    /* id, position, sequence, wanted row of logits; slots; temperature */
    return 4 + kinds + (config->temperature_floor != 0 ? 1 : 0);
}

static uint64_t ones_count(const struct model_config *config, uint64_t row_count)
{
    return !config->qk_norm_plain && !config->weighs_inputs ? 0
           : row_count > config->head_dim                   ? row_count
                                                            : config->head_dim;
}

uint64_t model__slice_scratch(const struct model_config *config, const struct model_sizes *sizes,
                              char *base, struct model_buffers *buffers)
{
    const uint64_t rows = sizes->row_count;
    const uint64_t logits_rows = rows < LOGITS_ROWS_AT_ONCE ? rows : LOGITS_ROWS_AT_ONCE;
    struct slicer common = { base, 0 }, attention, ffn;

    buffers->iota = model__slice(&common,
                                 rows * config->arch->iota_per_row(config) * sizeof(int32_t));
    buffers->frequencies = model__slice(&common, config->rope_pair_count * sizeof(float));
    buffers->rope_table = model__slice(&common,
                                       rows * config->rope_pair_count * 2 * sizeof(float));
    if (config->has_sliding_rope) {
        buffers->sliding_frequencies =
            model__slice(&common, config->rope_pair_count * sizeof(float));
        buffers->sliding_rope_table =
            model__slice(&common, rows * config->rope_pair_count * 2 * sizeof(float));
    }
    buffers->x = model__slice(&common, rows * config->hidden_size * sizeof(float));
    buffers->normed = model__slice(&common, rows * config->hidden_size * sizeof(float));
    buffers->ordered = model__slice(&common, rows * config->ordered_width * sizeof(float));
    buffers->addition = model__slice(&common, model__adds_apart(config)
                                                  ? rows * config->hidden_size * sizeof(float)
                                                  : 0);
    buffers->ones = model__slice(&common, ones_count(config, rows) * sizeof(float));
    buffers->gathered = model__slice(&common, logits_rows * config->hidden_size * sizeof(float));
    buffers->logits = model__slice(&common, logits_rows * config->vocab_size * sizeof(float));
    attention = (struct slicer){ base == NULL ? NULL : base + common.used_bytes, 0 };
    ffn = attention;
    config->arch->slice_attention(&attention, config, rows, buffers);
    config->arch->slice_ffn(&ffn, config, rows, buffers);
    common.used_bytes += attention.used_bytes > ffn.used_bytes ? attention.used_bytes
                                                               : ffn.used_bytes;
    buffers->metadata = model__slice(&common, sizes->metadata_bytes);
    return common.used_bytes;
}

static uint64_t pages_for(uint64_t token_count, uint64_t page_size)
{
    return (token_count + page_size - 1) / page_size;
}

/* All pages that there could be use for. */
static uint64_t pages_useful(const struct model_config *config, const struct model_sizes *sizes)
{
    const uint64_t count =
        sizes->sequence_count * pages_for(config->context_length, sizes->page_size);

    /* slots are counted in int32_t */
    return count > INT32_MAX / sizes->page_size ? INT32_MAX / sizes->page_size : count;
}

/* Of how many layers there are, and what a sequence takes in those with a window. */
static void count_layers(const struct model_config *config, struct model_sizes *sizes)
{
    const uint64_t context_pages = pages_for(config->context_length, sizes->page_size);
    const uint64_t window_layers = model__window_layer_count(config);
    uint64_t each;

    sizes->kv[KV_ALL].layer_count = config->layer_count - window_layers;
    sizes->kv[KV_WINDOW].layer_count = window_layers;
    if (window_layers == 0)
        return;
    each = model__window_pages(config, sizes->row_count, sizes->page_size);
    sizes->window_pages_each = each < context_pages ? each : context_pages;
}

/* Sets the pages of both kinds of layers. */
static void share_pages(const struct model_config *config, uint64_t page_count,
                        struct model_sizes *sizes)
{
    const uint64_t window_most = sizes->sequence_count * sizes->window_pages_each;

    sizes->kv[KV_ALL].page_count =
        sizes->kv[KV_ALL].layer_count > 0 ? page_count : pages_useful(config, sizes);
    sizes->kv[KV_WINDOW].page_count = page_count < window_most ? page_count : window_most;
}

/* Fills what depends on the number of pages; returns the bytes that scratch and cache take then, or
 * IMPOSSIBLE_BYTES when that is more than 64 bits hold. */
static uint64_t with_pages(const struct model_config *config, uint64_t page_count,
                           struct model_sizes *sizes)
{
    const struct kv_widths widths = config->arch->kv_widths(config);
    const uint64_t context_pages = pages_for(config->context_length, sizes->page_size);
    const uint64_t kinds = sizes->kv[KV_WINDOW].layer_count > 0 ? 2 : 1;
    struct model_buffers buffers;

    share_pages(config, page_count, sizes);
    page_count = sizes->kv[KV_ALL].page_count;
    sizes->page_table_width = page_count < context_pages ? page_count : context_pages;
    sizes->metadata_bytes =
        (model__numbers_per_row(config, kinds) * sizes->row_count +
         kinds * sizes->sequence_count * sizes->page_table_width) * sizeof(int32_t);
    sizes->kv_bytes = 0;
    for (int kind = 0; kind < KV_KIND_COUNT; kind++) {
        const uint64_t pages = sizes->kv[kind].page_count;
        const uint64_t slots = sizes->page_size * (sizes->kv_by_page ? 1 : pages);
        /* strides are whole elements: a page, perhaps of blocks of 34 bytes, is not rounded up */
        const uint64_t alignment = sizes->kv_by_page ? 1 : DEVICE_ALIGNMENT;
        uint64_t bytes;

        sizes->kv[kind].k_bytes =
            size_align_up(dtype_row_bytes(config->kv_dtype, slots * widths.k), alignment);
        sizes->kv[kind].v_bytes =
            size_align_up(dtype_row_bytes(config->kv_dtype, slots * widths.v), alignment);
        bytes = (sizes->kv[kind].k_bytes + sizes->kv[kind].v_bytes) *
                (sizes->kv_by_page ? pages : 1);
        /* slots and widths are below 2^31 and 2^23, layers can be 2^10 */
        if (!size_mul(bytes, sizes->kv[kind].layer_count, &bytes) ||
            bytes > IMPOSSIBLE_BYTES - sizes->kv_bytes)
            bytes = IMPOSSIBLE_BYTES - sizes->kv_bytes;
        sizes->kv[kind].bytes = size_align_up(bytes, DEVICE_ALIGNMENT);
        sizes->kv_bytes += sizes->kv[kind].bytes;
    }
    sizes->scratch_bytes = model__slice_scratch(config, sizes, NULL, &buffers);
    sizes->gathered_bytes = sizes->gathers_cache
                                ? sizes->page_table_width * sizes->page_size *
                                      model__kv_slot_bytes(config) : 0;
    return sizes->scratch_bytes + sizes->kv_bytes + sizes->gathered_bytes;
}

static enum status check_options(const struct model_options *options, struct err *err)
{
    const struct {
        const char *name;
        uint32_t value, max;
    } all[] = {
        { "rows in one step", options->step_row_count_max, ROWS_MAX },
        { "sequences in one step", options->step_sequence_count_max, SEQUENCES_MAX },
        { "tokens in a page of the cache", options->kv_page_size, PAGE_SIZE_MAX },
    };

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        if (all[i].value < 1 || all[i].value > all[i].max)
            return err_set(err, STATUS_BAD_INPUT, "%s: %u, it must be from 1 to %u", all[i].name,
                           all[i].value, all[i].max);
    if (options->kv_token_count > INT32_MAX)
        return err_set(err, STATUS_BAD_INPUT,
                       "token slots in the cache: %" PRIu64 ", it must be at most %d",
                       options->kv_token_count, INT32_MAX);
    return STATUS_OK;
}

static enum status refuse(const struct model_options *options, const struct offload_sizes *weights,
                          const struct model_sizes *sizes,
                          const struct device_memory_report *memory, uint64_t needed_bytes,
                          struct err *err)
{
    char text[6][32], shards[64] = "", host[64] = "";
    const uint64_t smallest_bytes = memory->used_bytes + needed_bytes;

    if (weights->shard_bytes > 0)
        (void)snprintf(shards, sizeof(shards), "this rank's shards %s, ",
                       size_format(weights->shard_bytes, text[0], sizeof(text[0])));
    if (options->budget_is_host)
        (void)snprintf(host, sizeof(host), "homes and loading %s, ",
                       size_format(weights->host_bytes, text[0], sizeof(text[0])));
    return err_set(err, STATUS_NO_MEMORY,
                   "the device's memory budget of %s%s is too small: weights that stay take %s, %s"
                   "slots %" PRIu64 " x %s, %sscratch %s, the smallest KV cache (%" PRIu64
                   " tokens) %s; the smallest budget that would do is %" PRIu64 " bytes (%s)%s",
                   size_format(memory->budget_bytes, text[0], sizeof(text[0])),
                   options->budget_is_host ? " (what this machine has free, less a margin)" : "",
                   size_format(weights->resident_bytes, text[1], sizeof(text[1])), shards,
                   weights->slot_count,
                   size_format(weights->slot_bytes, text[2], sizeof(text[2])), host,
                   size_format(sizes->scratch_bytes + sizes->gathered_bytes, text[3],
                               sizeof(text[3])),
                   sizes->kv[sizes->kv[KV_ALL].layer_count > 0 ? KV_ALL : KV_WINDOW].page_count *
                       sizes->page_size,
                   size_format(sizes->kv_bytes, text[4], sizeof(text[4])), smallest_bytes,
                   size_format(smallest_bytes, text[5], sizeof(text[5])),
                   options->offload.automatic
                       ? "" : "; with --offload-mode auto what does not fit moves");
}

/* What its operators may take while they run counts as taken. */
static void report_memory(const struct device *device, struct device_memory_report *report_out)
{
    const uint64_t workspace_bytes = device_info(device)->workspace_bytes;

    device_memory_report(device, report_out);
    report_out->used_bytes += workspace_bytes;
}

static struct model_sizes sizes_of(const struct model_config *config,
                                   const struct model_options *options,
                                   const struct device *device)
{
    const struct device_info *info = device_info(device);
    struct model_sizes sizes = { .row_count = options->step_row_count_max,
                                 .sequence_count = options->step_sequence_count_max,
                                 .page_size = options->kv_page_size,
                                 .gathers_cache = info->gathers_cache,
                                 .kv_by_page = info->memory_is_lazy &&
                                               (info->op_features & OP_FEATURE_KV_BY_HEAD) != 0 };

    count_layers(config, &sizes);
    return sizes;
}

/* The most pages whose cost is at most `bytes`, from fits (known to fit) to at_most. */
static uint64_t most_pages(const struct model_config *config, struct model_sizes *sizes,
                           uint64_t fits, uint64_t at_most, uint64_t bytes)
{
    uint64_t too_many = at_most + 1;

    while (too_many - fits > 1) {
        const uint64_t middle = fits + (too_many - fits) / 2;

        if (with_pages(config, middle, sizes) <= bytes)
            fits = middle;
        else
            too_many = middle;
    }
    return fits;
}

enum status model__sizes_plan(const struct model_config *config,
                              const struct model_options *options,
                              const struct offload_sizes *weights, struct device *device,
                              struct model_sizes *sizes_out, struct err *err)
{
    struct device_memory_report memory;
    uint64_t weight_bytes, free_bytes, wanted, at_most;
    struct model_sizes sizes;
    enum status st = check_options(options, err);

    if (st != STATUS_OK)
        return st;
    sizes = sizes_of(config, options, device);
    report_memory(device, &memory);
    weight_bytes = weights->resident_bytes + weights->shard_bytes +
                   weights->slot_count * weights->slot_bytes + weights->expert_bytes;
    if (options->budget_is_host && !options->offload.automatic) /* whose few are in the margin */
        weight_bytes += weights->host_bytes;
    free_bytes = memory.budget_bytes > memory.used_bytes
                     ? memory.budget_bytes - memory.used_bytes : 0;
    wanted = options->kv_token_count == 0 ? 1 : pages_for(options->kv_token_count,
                                                          sizes.page_size);
    at_most = pages_useful(config, &sizes);
    at_most = options->kv_token_count != 0 || at_most < wanted ? wanted : at_most;
    if (weight_bytes + with_pages(config, wanted, &sizes) > free_bytes)
        return refuse(options, weights, &sizes, &memory,
                      weight_bytes + sizes.scratch_bytes + sizes.gathered_bytes + sizes.kv_bytes,
                      err);
    wanted = most_pages(config, &sizes, wanted, at_most, free_bytes - weight_bytes);
    (void)with_pages(config, wanted, &sizes);
    *sizes_out = sizes;
    return STATUS_OK;
}

#define CACHE_SHARE 8 /* of the budget, for a cache whose size nobody asked for: one part in so
                         many */

/* What tokens cost: each in the layers that keep all, and the first window_tokens_max in the others
 * too. */
struct cache_cost {
    uint64_t bytes, window_bytes, window_tokens_max;
};

static struct cache_cost cost_of(const struct model_config *config,
                                 const struct model_options *options)
{
    const uint64_t layer_bytes = model__kv_slot_bytes(config);
    struct model_sizes sizes = { .row_count = options->step_row_count_max,
                                 .sequence_count = options->step_sequence_count_max,
                                 .page_size = options->kv_page_size };

    count_layers(config, &sizes);
    return (struct cache_cost){
        layer_bytes * sizes.kv[KV_ALL].layer_count, layer_bytes * sizes.kv[KV_WINDOW].layer_count,
        sizes.sequence_count * sizes.window_pages_each * sizes.page_size,
    };
}

static uint64_t bytes_for(const struct cache_cost *cost, uint64_t tokens)
{
    return tokens * cost->bytes + cost->window_bytes * (tokens < cost->window_tokens_max
                                                            ? tokens : cost->window_tokens_max);
}

/* The most tokens that cost no more, of at_most. */
static uint64_t tokens_for(const struct cache_cost *cost, uint64_t bytes, uint64_t at_most)
{
    if (bytes < bytes_for(cost, cost->window_tokens_max))
        return bytes / (cost->bytes + cost->window_bytes);
    if (cost->bytes == 0)
        return at_most;
    return (bytes - cost->window_bytes * cost->window_tokens_max) / cost->bytes;
}

/* Tokens for such a cache. */
static uint64_t default_tokens(const struct model_config *config,
                               const struct model_options *options, uint64_t budget_bytes)
{
    const uint64_t context = config->context_length;
    const uint64_t most = context * options->step_sequence_count_max;
    const struct cache_cost cost = cost_of(config, options);
    uint64_t tokens = tokens_for(&cost, budget_bytes / CACHE_SHARE, most);

    tokens = tokens < context ? context : tokens;
    tokens = tokens > most ? most : tokens;
    tokens = tokens > INT32_MAX ? INT32_MAX : tokens;
    /* even one context may be more than a small budget can spare */
    while (tokens > options->kv_page_size && bytes_for(&cost, tokens) > budget_bytes / 4)
        tokens /= 2;
    return tokens;
}

/* What a budget leaves for weights; 0: nothing. */
static uint64_t weight_bytes_of(const struct model_config *config,
                                const struct model_options *options, uint64_t budget_bytes,
                                const struct device_memory_report *memory,
                                struct model_sizes *sizes)
{
    uint64_t tokens = options->kv_token_count, other_bytes;

    if (tokens == 0)
        tokens = default_tokens(config, options, budget_bytes);
    other_bytes = memory->used_bytes +
                  with_pages(config, pages_for(tokens, sizes->page_size), sizes);
    return budget_bytes > other_bytes ? budget_bytes - other_bytes : 0;
}

#define STEPS_MAX 64 /* each leaves at most a quarter of the gap, which is the cache's */

uint64_t model__sizes_smallest(const struct model_config *config,
                               const struct model_options *options, uint64_t weight_bytes,
                               struct device *device)
{
    struct model_sizes sizes = sizes_of(config, options, device);
    struct device_memory_report memory;
    uint64_t budget_bytes = weight_bytes, left_bytes;

    report_memory(device, &memory);
    for (int step = 0; step < STEPS_MAX; step++) {
        left_bytes = weight_bytes_of(config, options, budget_bytes, &memory, &sizes);
        if (left_bytes >= weight_bytes)
            break;
        budget_bytes += weight_bytes - left_bytes;
    }
    return budget_bytes;
}

bool model__sizes_give_way(const struct model_config *config, const struct model_options *asked,
                           struct device *device, uint64_t weight_bytes,
                           struct model_options *options)
{
    const uint64_t smallest_bytes = model__sizes_smallest(config, asked, weight_bytes, device);
    struct model_sizes sizes = sizes_of(config, options, device);
    struct device_memory_report memory;

    report_memory(device, &memory);
    if (asked->kv_token_count != 0 || smallest_bytes > memory.budget_bytes)
        return false;
    options->kv_token_count = default_tokens(config, asked, smallest_bytes);
    options->offload.weight_budget_bytes =
        weight_bytes_of(config, options, memory.budget_bytes, &memory, &sizes);
    return true;
}

enum status model__sizes_leave(const struct model_config *config, struct model_options *options,
                               struct device *device, uint64_t *weight_bytes_out, struct err *err)
{
    const enum status st = check_options(options, err);
    struct device_memory_report memory;
    struct model_sizes sizes;

    if (st != STATUS_OK)
        return st;
    sizes = sizes_of(config, options, device);
    report_memory(device, &memory);
    if (options->kv_token_count == 0)
        options->kv_token_count = default_tokens(config, options, memory.budget_bytes);
    *weight_bytes_out = weight_bytes_of(config, options, memory.budget_bytes, &memory, &sizes);
    return STATUS_OK;
}
