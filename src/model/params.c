/* model/params.c - the list of a model's parameters, each with the loader that fills it.
 *
 * Architectures write it down layer by layer; here names are made, dtypes chosen, tensors looked
 * up, and everything that can be wrong with a checkpoint is found before memory is taken. The
 * memory of the list itself is bounded by the checkpoint's: a parameter that names a tensor which
 * is not there stops the building at once, so a config.json that promises a million layers costs
 * nothing. */
#include <assert.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "model/internal.h"
#include "tensor/quant.h"

#define NAME_BYTES_MAX 192
#define TEXT_PART "language_model."

/* What checkpoints' names have more than parameters' have. */
enum root { ROOT_PLAIN, ROOT_IN_FRONT, ROOT_BEHIND };

struct param_source {
    char *name;
    struct loader_part part; /* .tensor is `name` */
};

/* Which parameters are what a role names. */
struct role_slot {
    uint32_t first, count; /* PARAM_NONE and 0: none */
};

struct params {
    const struct ckpt *ckpt;
    const struct model_config *config;
    enum status status;
    struct err *err;            /* valid during model__params_create only */
    bool has_dtype;
    enum dtype dtype;           /* of matrices, when has_dtype */
    enum root root;
    struct offload_param_desc *descs;
    size_t count, capacity;     /* the descs' names are owned here */
    uint32_t *orders;           /* [count]: which parameter is the order of its columns, or NONE */
    size_t order_capacity;
    struct role_slot (*layers)[ROLE_COUNT]; /* [layer_count + 1]: the last is outside the layers */
    uint32_t ordered_width;
    struct map *used;           /* names of the checkpoint tensors that are asked for */
    /* The parameter between begin and end. */
    struct param_spec open;
    char open_name[NAME_BYTES_MAX];
    uint64_t open_elements, open_offset;
    struct param_source *sources;
    size_t source_count, source_capacity;
};

static void fail_memory(struct params *params)
{
    if (params->status == STATUS_OK)
        params->status = err_set(params->err, STATUS_NO_MEMORY,
                                 "%s: no memory for the list of parameters",
                                 ckpt_path(params->ckpt));
}

/* Room for one more than count: the array, perhaps moved, or NULL when there is no memory. */
static void *grow(void *array, size_t count, size_t *capacity, size_t element_size)
{
    const size_t wanted = *capacity == 0 ? 64 : 2 * *capacity;
    void *grown;

    if (count < *capacity)
        return array;
    grown = reallocarray(array, wanted, element_size);
    if (grown != NULL)
        *capacity = wanted;
    return grown;
}

static struct role_slot *role_slot(const struct params *params, int32_t layer,
                                   enum model_role role)
{
    const uint32_t row =
        layer == OFFLOAD_NO_LAYER ? params->config->layer_count : (uint32_t)layer;

    assert(row <= params->config->layer_count);
    assert(role < ROLE_COUNT);
    return &params->layers[row][role];
}

static void format_name(int32_t layer, char *out, size_t out_size, const char *name)
{
    if (layer == OFFLOAD_NO_LAYER)
        (void)snprintf(out, out_size, "%s", name);
    else
        (void)snprintf(out, out_size, "model.layers.%" PRId32 ".%s", layer, name);
}

/* A checkpoint's name of the tensor. Where the language model is a part of it, it has that part's
 * name in front, as published, or behind "model.", as transformers 5 writes it. */
static void format_source(const struct params *params, int32_t layer, char *out, size_t out_size,
                          const char *name)
{
    static const char root[] = "model.";
    char plain[NAME_BYTES_MAX - sizeof(root) - sizeof(TEXT_PART)];

    format_name(layer, plain, sizeof(plain), name);
    if (params->root == ROOT_IN_FRONT)
        (void)snprintf(out, out_size, TEXT_PART "%s", plain);
    else if (params->root == ROOT_BEHIND && strncmp(plain, root, sizeof(root) - 1) == 0)
        (void)snprintf(out, out_size, "%s" TEXT_PART "%s", root, plain + sizeof(root) - 1);
    else
        (void)snprintf(out, out_size, "%s", plain);
}

static enum root find_root(const struct params *params)
{
    if (!params->config->arch->is_text_part)
        return ROOT_PLAIN;
    if (ckpt_find(params->ckpt, TEXT_PART "model.embed_tokens.weight") != NULL)
        return ROOT_IN_FRONT;
    return ckpt_find(params->ckpt, "model." TEXT_PART "embed_tokens.weight") != NULL ? ROOT_BEHIND
                                                                                     : ROOT_PLAIN;
}

void model__param_begin(struct params *params, const struct param_spec *spec)
{
    if (params->status != STATUS_OK)
        return;
    assert(params->source_count == 0);
    params->open = *spec;
    params->open_offset = 0;
    format_name(spec->layer, params->open_name, sizeof(params->open_name), spec->name);
    if (!tensor_element_count(spec->rank, spec->shape, &params->open_elements))
        params->status = err_set(params->err, STATUS_BAD_INPUT,
                                 "%s: the size of parameter %s overflows 64 bits",
                                 ckpt_path(params->ckpt), params->open_name);
}

bool model__param_source_exists(const struct params *params, int32_t layer, const char *name)
{
    char full[NAME_BYTES_MAX];

    format_source(params, layer, full, sizeof(full), name);
    return ckpt_find(params->ckpt, full) != NULL;
}

uint32_t model__param_source_rank(const struct params *params, int32_t layer, const char *name)
{
    const struct ckpt_tensor *tensor;
    char full[NAME_BYTES_MAX];

    format_source(params, layer, full, sizeof(full), name);
    tensor = ckpt_find(params->ckpt, full);
    return tensor != NULL ? tensor->rank : 0;
}

bool model__param_source_is_packed(const struct params *params, int32_t layer, const char *name)
{
    const struct ckpt_tensor *tensor;
    char full[NAME_BYTES_MAX];

    format_source(params, layer, full, sizeof(full), name);
    tensor = ckpt_find(params->ckpt, full);
    return tensor != NULL && tensor->packed != NULL;
}

void model__param_add_view(struct params *params, const struct loader_part *part,
                           const char *name)
{
    char full[NAME_BYTES_MAX];
    struct param_source *sources, *source;
    char *copy;

    if (params->status != STATUS_OK)
        return;
    format_source(params, params->open.layer, full, sizeof(full), name);
    if (ckpt_find(params->ckpt, full) == NULL) {
        params->status = err_set(params->err, STATUS_BAD_INPUT,
                                 "%s: the tensor %s is missing; the parameter %s is made of it",
                                 ckpt_path(params->ckpt), full, params->open_name);
        return;
    }
    sources = grow(params->sources, params->source_count, &params->source_capacity,
                   sizeof(sources[0]));
    params->sources = sources != NULL ? sources : params->sources;
    copy = strdup(full);
    if (sources == NULL || copy == NULL) {
        free(copy);
        fail_memory(params);
        return;
    }
    source = &sources[params->source_count];
    source->part = *part;
    source->name = copy;
    source->part.tensor = source->name;
    params->source_count++;
    params->status = map_set(params->used, full, strlen(full), 1, params->err);
}

void model__param_add(struct params *params, uint32_t rank, const uint64_t *shape,
                      const char *name_format, ...)
{
    struct loader_part part = { .rank = rank, .dst_offset = params->open_offset };
    char name[NAME_BYTES_MAX];
    uint64_t count = 1;
    va_list args;

    if (params->status != STATUS_OK)
        return;
    va_start(args, name_format);
    (void)vsnprintf(name, sizeof(name), name_format, args);
    va_end(args);
    for (uint32_t i = 0; i < rank; i++) {
        part.shape[i] = shape[i];
        count *= shape[i]; /* a part of the parameter, whose product was checked */
    }
    part.dims[0] = (struct loader_dim){ 1, 0, 0 };
    part.dims[1] = (struct loader_dim){ 1, 0, 0 };
    part.dims[2] = (struct loader_dim){ count, 1, 1 };
    params->open_offset += count;
    model__param_add_view(params, &part, name);
}

static bool is_quantised(enum dtype dtype)
{
    return dtype != DTYPE_COUNT && quant_is_quantised(dtype);
}

/* Whether all of the parameter's rows can be made of whole blocks of its sources. */
static bool keeps_blocks(const struct params *params, enum dtype dtype)
{
    const struct param_spec *spec = &params->open;

    if (spec->shape[spec->rank - 1] % dtype_info(dtype)->block_elements != 0)
        return false;
    for (size_t i = 0; i < params->source_count; i++)
        if (!loader_keeps_blocks(&params->sources[i].part, dtype))
            return false;
    return true;
}

/* Vectors are F32: they are small, and what they scale or shift is F32. A matrix keeps the dtype
 * of its tensors. Where they differ, F32 holds them all exactly; but of quantised tensors, with
 * others of another kind or cut through their blocks, F16 is made, which rounds them by less than a
 * hundredth of what quantising did and takes half of F32's bytes. */
static enum dtype choose_dtype(const struct params *params)
{
    bool same = true, short_of_f32 = true;
    enum dtype dtype = DTYPE_F32;

    if (params->open.rank == 1)
        return DTYPE_F32;
    if (params->has_dtype)
        return params->dtype;
    for (size_t i = 0; i < params->source_count; i++) {
        const struct ckpt_tensor *tensor = ckpt_find(params->ckpt, params->sources[i].name);

        same = same && (i == 0 || tensor->dtype == dtype);
        short_of_f32 = short_of_f32 && (tensor->dtype == DTYPE_F16 || is_quantised(tensor->dtype));
        dtype = tensor->dtype;
    }
    /* Integers and unknown types are refused by loader_check, with the tensor's name. */
    if (same && (dtype == DTYPE_F16 || dtype == DTYPE_BF16 ||
                 (is_quantised(dtype) && keeps_blocks(params, dtype))))
        return dtype;
    return short_of_f32 ? DTYPE_F16 : DTYPE_F32;
}

static enum status make_loader(struct params *params, enum dtype dtype,
                               struct loader **loader_out)
{
    struct loader *loader = NULL;
    enum status st = loader_create(dtype, params->open_elements, &loader, params->err);

    for (size_t i = 0; st == STATUS_OK && i < params->source_count; i++)
        st = loader_add(loader, &params->sources[i].part, params->err);
    if (st != STATUS_OK) {
        loader_destroy(loader);
        return st;
    }
    *loader_out = loader;
    return STATUS_OK;
}

/* What ops read it as. */
static enum device_weight weight_kind(const struct param_spec *spec)
{
    if (spec->layer == OFFLOAD_NO_LAYER)
        return spec->role == ROLE_LM_HEAD ? DEVICE_WEIGHT_EXACT : DEVICE_WEIGHT_OTHER;
    switch (spec->role) {
    case ROLE_W13: return DEVICE_WEIGHT_GATE_UP;
    case ROLE_W2: return DEVICE_WEIGHT_DOWN;
    case ROLE_ROUTER: return DEVICE_WEIGHT_OTHER;
    default: return spec->rank == 2 ? DEVICE_WEIGHT_MATRIX : DEVICE_WEIGHT_OTHER;
    }
}

static void clear_sources(struct params *params)
{
    for (size_t i = 0; i < params->source_count; i++)
        free(params->sources[i].name);
    params->source_count = 0;
}

void model__param_end(struct params *params)
{
    const struct param_spec *spec = &params->open;
    struct offload_param_desc desc = { .rank = spec->rank, .layer = spec->layer,
                                       .part = spec->part, .default_selected = spec->moves,
                                       .weight = weight_kind(spec),
                                       .by_rows = weight_kind(spec) == DEVICE_WEIGHT_MATRIX,
                                       .by_lookup = spec->layer == OFFLOAD_NO_LAYER &&
                                                    spec->role == ROLE_EMBED &&
                                                    !params->config->tied_embeddings,
                                       .is_expert = spec->is_expert, .expert = spec->expert };
    struct offload_param_desc *descs;
    uint32_t *orders;
    char *name;

    if (params->status != STATUS_OK)
        return;
    descs = grow(params->descs, params->count, &params->capacity, sizeof(descs[0]));
    params->descs = descs != NULL ? descs : params->descs;
    orders = grow(params->orders, params->count, &params->order_capacity, sizeof(orders[0]));
    params->orders = orders != NULL ? orders : params->orders;
    name = strdup(params->open_name);
    if (descs == NULL || orders == NULL || name == NULL) {
        free(name);
        fail_memory(params);
        return;
    }
    desc.name = name;
    desc.dtype = choose_dtype(params);
    for (uint32_t i = 0; i < TENSOR_RANK_MAX; i++)
        desc.shape[i] = i < spec->rank ? spec->shape[i] : 1;
    params->status = make_loader(params, desc.dtype, &desc.loader);
    if (params->status != STATUS_OK) {
        free(name);
        return;
    }
    if (spec->is_part)
        role_slot(params, spec->layer, spec->role)->count++;
    else if (!spec->is_expert || spec->expert == 0) /* the others follow the first, in order */
        *role_slot(params, spec->layer, spec->role) =
            (struct role_slot){ (uint32_t)params->count, 1 };
    params->orders[params->count] = PARAM_NONE;
    params->descs[params->count++] = desc;
    clear_sources(params);
}

static void add_same(struct params *params, const struct param_spec *spec)
{
    model__param_begin(params, spec);
    model__param_add(params, spec->rank, spec->shape, "%s", spec->name);
    model__param_end(params);
}

/* --- columns in another order ----------------------------------------------------------------- */

/* "mlp.down_proj.order" of "mlp.down_proj.weight". */
static void format_order(const char *weight, char *out, size_t out_size)
{
    const char *const suffix = strrchr(weight, '.');

    (void)snprintf(out, out_size, "%.*s.order",
                   suffix == NULL ? 0 : (int)(suffix - weight), weight);
}

/* The order of the matrix' columns in the checkpoint, or NULL. */
static const struct ckpt_tensor *find_order(const struct params *params, int32_t layer,
                                            const char *weight)
{
    char name[NAME_BYTES_MAX], full[NAME_BYTES_MAX];
    const struct ckpt_tensor *tensor;

    if (layer == OFFLOAD_NO_LAYER)
        return NULL;
    format_order(weight, name, sizeof(name));
    format_source(params, layer, full, sizeof(full), name);
    tensor = ckpt_find(params->ckpt, full);
    return tensor != NULL && ckpt_is_order(tensor) ? tensor : NULL;
}

/* Whether two orders, of which any may be missing, are the same one. After a failure, which the
 * list keeps, they are. */
static bool is_same_order(struct params *params, const struct ckpt_tensor *one,
                          const struct ckpt_tensor *other)
{
    float values[2][1024];

    if (one == NULL || other == NULL || one->size_bytes != other->size_bytes)
        return one == other;
    for (uint64_t at = 0; params->status == STATUS_OK && at < one->size_bytes;
         at += sizeof(values[0])) {
        const uint64_t left = one->size_bytes - at;
        const uint64_t take = left < sizeof(values[0]) ? left : sizeof(values[0]);

        params->status = ckpt_read(params->ckpt, one, at, values[0], take, params->err);
        if (params->status == STATUS_OK)
            params->status = ckpt_read(params->ckpt, other, at, values[1], take, params->err);
        if (params->status == STATUS_OK && memcmp(values[0], values[1], (size_t)take) != 0)
            return false;
    }
    return true;
}

/* Whether matrices that are multiplied with the same have their columns in several orders. */
static bool orders_differ(struct params *params, int32_t layer, const struct param_rows *sources,
                          size_t source_count)
{
    const struct ckpt_tensor *const first = find_order(params, layer, sources[0].name);
    bool differ = false;

    for (size_t i = 1; i < source_count; i++)
        differ = differ ||
                 !is_same_order(params, first, find_order(params, layer, sources[i].name));
    return differ;
}

/* Notes that the checkpoint's order of the matrix is of use. */
static void use_order(struct params *params, int32_t layer, const char *weight)
{
    char name[NAME_BYTES_MAX], full[NAME_BYTES_MAX];

    if (params->status != STATUS_OK)
        return;
    format_order(weight, name, sizeof(name));
    format_source(params, layer, full, sizeof(full), name);
    params->status = map_set(params->used, full, strlen(full), 1, params->err);
}

bool model__param_source_order(struct params *params, const struct param_spec *spec,
                               const char *source)
{
    const struct ckpt_tensor *const tensor = params->status == STATUS_OK
                                                 ? find_order(params, spec->layer, source) : NULL;
    struct param_spec order = { .name = spec->name, .layer = spec->layer, .role = spec->role,
                                .part = spec->part, .rank = 1 };
    char name[NAME_BYTES_MAX];

    if (tensor == NULL)
        return false;
    format_order(source, name, sizeof(name));
    order.shape[0] = tensor->shape[0];
    params->ordered_width = params->ordered_width > tensor->shape[0]
                                ? params->ordered_width : (uint32_t)tensor->shape[0];
    model__param_begin(params, &order);
    model__param_add(params, 1, order.shape, "%s", name);
    model__param_end(params);
    return params->status == STATUS_OK;
}

bool model__param_has_order(const struct params *params, int32_t layer, const char *source)
{
    return find_order(params, layer, source) != NULL;
}

void model__param_share_order(struct params *params, int32_t layer, const char *source,
                              const char *other)
{
    const struct ckpt_tensor *const one = find_order(params, layer, source);
    const bool same = is_same_order(params, one, find_order(params, layer, other));
    char full[NAME_BYTES_MAX];

    if (params->status == STATUS_OK && !same) {
        format_source(params, layer, full, sizeof(full), source);
        params->status = err_set(params->err, STATUS_BAD_INPUT,
                                 "%s: '%s' has its columns in another order than an expert's other "
                                 "matrix that multiplies the same", ckpt_path(params->ckpt), full);
    }
    if (one != NULL)
        use_order(params, layer, source);
}

/* The order of a matrix that was added as that parameter, for model__pass_linear. */
static void add_order(struct params *params, const struct param_spec *spec, const char *source,
                      uint32_t matrix)
{
    char name[NAME_BYTES_MAX];
    struct param_spec order = *spec;

    format_order(spec->name, name, sizeof(name));
    order.name = name;
    order.role = ROLE_ORDER;
    if (model__param_source_order(params, &order, source))
        params->orders[matrix] = (uint32_t)params->count - 1;
}

uint32_t model__params_ordered_width(const struct params *params)
{
    return params->ordered_width;
}

void model__param_same(struct params *params, const struct param_spec *spec)
{
    add_same(params, spec);
    if (spec->rank == 2)
        add_order(params, spec, spec->name, (uint32_t)params->count - 1);
}

/* Whether the sources are of several types of which one is quantised, so that no parameter holds
 * them all as they are. Missing ones are told of when they are added. */
static bool are_mixed(const struct params *params, int32_t layer,
                      const struct param_rows *sources, size_t source_count)
{
    bool quantised = false, differ = false;
    enum dtype dtype = DTYPE_COUNT;

    for (size_t i = 0; i < source_count; i++) {
        const struct ckpt_tensor *tensor;
        char full[NAME_BYTES_MAX];

        format_source(params, layer, full, sizeof(full), sources[i].name);
        tensor = ckpt_find(params->ckpt, full);
        if (tensor == NULL)
            return false;
        quantised = quantised || is_quantised(tensor->dtype);
        differ = differ || (i > 0 && tensor->dtype != dtype);
        dtype = tensor->dtype;
    }
    return quantised && differ;
}

/* Each of the matrices as a parameter of its own; those of one order share it. */
static void add_parts(struct params *params, const struct param_spec *spec, uint64_t cols,
                      const struct param_rows *sources, size_t source_count)
{
    const uint32_t first = (uint32_t)params->count;
    struct param_spec part = *spec;

    part.rank = 2;
    part.shape[1] = cols;
    for (size_t i = 0; i < source_count; i++) {
        part.name = sources[i].name;
        part.shape[0] = sources[i].rows;
        part.is_part = i > 0;
        add_same(params, &part);
    }
    for (size_t i = 0; params->status == STATUS_OK && i < source_count; i++) {
        const struct ckpt_tensor *const order = find_order(params, spec->layer, sources[i].name);
        size_t same = 0;

        while (same < i && !is_same_order(params, order,
                                          find_order(params, spec->layer, sources[same].name)))
            same++;
        part.name = sources[i].name;
        if (same == i) {
            add_order(params, &part, sources[i].name, first + (uint32_t)i);
            continue;
        }
        params->orders[first + i] = params->orders[first + same];
        if (order != NULL)
            use_order(params, spec->layer, sources[i].name);
    }
}

void model__param_stack(struct params *params, const struct param_spec *spec, uint64_t cols,
                        const struct param_rows *sources, size_t source_count)
{
    struct param_spec full = *spec;

    full.rank = cols == 0 ? 1 : 2;
    full.shape[0] = 0;
    full.shape[1] = cols;
    if (full.rank == 2 && params->status == STATUS_OK &&
        ((!params->has_dtype && are_mixed(params, spec->layer, sources, source_count)) ||
         orders_differ(params, spec->layer, sources, source_count))) {
        add_parts(params, spec, cols, sources, source_count);
        return;
    }
    for (size_t i = 0; i < source_count; i++)
        full.shape[0] += sources[i].rows;
    model__param_begin(params, &full);
    for (size_t i = 0; i < source_count; i++) {
        const uint64_t shape[2] = { sources[i].rows, cols };

        model__param_add(params, full.rank, shape, "%s", sources[i].name);
    }
    model__param_end(params);
    if (full.rank != 2)
        return;
    add_order(params, spec, sources[0].name, (uint32_t)params->count - 1);
    for (size_t i = 1; i < source_count; i++)
        if (find_order(params, spec->layer, sources[i].name) != NULL)
            use_order(params, spec->layer, sources[i].name); /* the same */
}

static void describe_all(struct params *params)
{
    const struct model_config *config = params->config;
    const struct param_spec embed = {
        .name = "model.embed_tokens.weight", .layer = OFFLOAD_NO_LAYER, .role = ROLE_EMBED,
        .rank = 2, .shape = { config->vocab_size, config->hidden_size },
    };
    const struct param_spec norm = {
        .name = "model.norm.weight", .layer = OFFLOAD_NO_LAYER, .role = ROLE_NORM,
        .rank = 1, .shape = { config->hidden_size },
    };
    const struct param_spec head = {
        .name = "lm_head.weight", .layer = OFFLOAD_NO_LAYER, .role = ROLE_LM_HEAD,
        .rank = 2, .shape = { config->vocab_size, config->hidden_size },
    };

    model__param_same(params, &embed);
    for (uint32_t layer = 0; params->status == STATUS_OK && layer < config->layer_count; layer++)
        config->arch->describe_layer(params, config, layer);
    model__param_same(params, &norm);
    if (config->tied_embeddings) {
        if (params->status == STATUS_OK)
            *role_slot(params, OFFLOAD_NO_LAYER, ROLE_LM_HEAD) =
                *role_slot(params, OFFLOAD_NO_LAYER, ROLE_EMBED);
    } else {
        model__param_same(params, &head);
    }
}

/* An operator has one layout for all of an expert's matrices; devices choose theirs by dtype, and
 * alike for all that have runs. */
static void keep_mixed_experts_plain(struct params *params)
{
    const struct model_config *config = params->config;
    const size_t count = config->expert_units ? 2 * (size_t)config->expert_count : 2;

    for (uint32_t layer = 0; layer < config->layer_count; layer++) {
        const uint32_t first = role_slot(params, (int32_t)layer, ROLE_W13)->first;
        const bool mixed = first != PARAM_NONE &&
                           params->descs[first].dtype != params->descs[first + 1].dtype &&
                           !(quant_has_runs(params->descs[first].dtype) &&
                             quant_has_runs(params->descs[first + 1].dtype));

        for (size_t i = 0; mixed && i < count; i++)
            params->descs[first + i].weight = DEVICE_WEIGHT_OTHER;
    }
}

static enum status read_dtype(struct params *params, const char *dtype, struct err *err)
{
    if (dtype == NULL || strcmp(dtype, "auto") == 0)
        return STATUS_OK;
    if (!dtype_parse(dtype, &params->dtype) || params->dtype == DTYPE_I32 ||
        dtype_info(params->dtype)->block_elements > 1)
        return err_set(err, STATUS_BAD_INPUT,
                       "--dtype \"%.32s\" is not known; auto, float32, bfloat16 and float16 are",
                       dtype);
    params->has_dtype = true;
    return STATUS_OK;
}

enum status model__params_create(const struct ckpt *ckpt, const struct model_config *config,
                                 const char *dtype, struct params **params_out, struct err *err)
{
    struct params *params = calloc(1, sizeof(*params));
    enum status st;

    if (params == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for the list of parameters",
                       ckpt_path(ckpt));
    params->ckpt = ckpt;
    params->config = config;
    params->err = err;
    params->root = find_root(params);
    st = read_dtype(params, dtype, err);
    if (st == STATUS_OK)
        st = map_create(ckpt_tensor_count(ckpt), &params->used, err);
    if (st != STATUS_OK)
        goto fail;
    params->layers = malloc((config->layer_count + 1) * sizeof(params->layers[0]));
    if (params->layers == NULL)
        fail_memory(params);
    else
        memset(params->layers, 0xff, (config->layer_count + 1) * sizeof(params->layers[0]));
    describe_all(params);
    st = params->status;
    if (st != STATUS_OK)
        goto fail;
    keep_mixed_experts_plain(params);
    params->err = NULL;
    *params_out = params;
    return STATUS_OK;
fail:
    model__params_destroy(params);
    return st;
}

void model__params_destroy(struct params *params)
{
    if (params == NULL)
        return;
    clear_sources(params);
    free(params->sources);
    for (size_t i = 0; i < params->count; i++) {
        loader_destroy(params->descs[i].loader);
        free((char *)params->descs[i].name);
    }
    free(params->descs);
    free(params->orders);
    free(params->layers);
    map_destroy(params->used);
    free(params);
}

static bool is_vision(const char *name)
{
    static const char *const parts[] = { "vision_tower.", "vision_model.",
                                         "multi_modal_projector." };

    if (strncmp(name, "model.", 6) == 0)
        name += 6;
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
        if (strncmp(name, parts[i], strlen(parts[i])) == 0)
            return true;
    return false;
}

/* Whether it is the bias of a quantised matrix, and zero: tools that quantise add such to matrices
 * without one. */
static bool is_zero_bias(const struct params *params, const struct ckpt_tensor *tensor)
{
    const size_t size = strlen(tensor->name);
    char name[NAME_BYTES_MAX];
    const struct ckpt_tensor *weight;
    uint8_t bytes[4096];

    if (size < 5 || strcmp(tensor->name + size - 5, ".bias") != 0)
        return false;
    (void)snprintf(name, sizeof(name), "%.*s.weight", (int)(size - 5), tensor->name);
    weight = ckpt_find(params->ckpt, name);
    if (weight == NULL || weight->packed == NULL || tensor->rank != 1 ||
        tensor->shape[0] != weight->shape[0])
        return false;
    for (uint64_t at = 0; at < tensor->size_bytes; at += sizeof(bytes)) {
        const uint64_t left = tensor->size_bytes - at;
        const size_t count = left < sizeof(bytes) ? left : sizeof(bytes);

        if (ckpt_read(params->ckpt, tensor, at, bytes, count, NULL) != STATUS_OK)
            return false;
        for (size_t i = 0; i < count; i++)
            if (bytes[i] != 0)
                return false;
    }
    return true;
}

/* True for a tensor that a right checkpoint may hold although nothing here reads it. */
static bool is_of_no_use(const struct params *params, const struct ckpt_tensor *tensor,
                         struct params_skipped *skipped)
{
    const struct model_config *config = params->config;
    const char *name = tensor->name;
    static const char layers[] = "model.layers.";
    unsigned long layer;

    /* Old Llama conversions wrote the frequencies, which follow from config.json. */
    if (fnmatch("*.rotary_emb.inv_freq", name, 0) == 0) {
        skipped->inv_freq_count++;
        return true;
    }
    /* Of a GGUF file: they have come with its metadata. */
    if (strcmp(name, "rope_freqs.weight") == 0 || strcmp(name, "rope_factors_long.weight") == 0 ||
        strcmp(name, "rope_factors_short.weight") == 0)
        return true;
    if (config->tied_embeddings && (strcmp(name, "lm_head.weight") == 0 ||
                                    strcmp(name, TEXT_PART "lm_head.weight") == 0)) {
        skipped->tied_count++;
        return true;
    }
    if (ckpt_is_unused_scale(name)) {
        skipped->scale_count++;
        return true;
    }
    if (is_zero_bias(params, tensor)) {
        skipped->zero_bias_count++;
        return true;
    }
    if (config->arch->is_text_part && is_vision(name)) {
        skipped->vision_count++;
        return true;
    }
    if (strncmp(name, layers, sizeof(layers) - 1) != 0)
        return false;
    layer = strtoul(name + sizeof(layers) - 1, NULL, 10);
    if (layer < config->layer_count ||
        layer - config->layer_count >= config->predict_layer_count)
        return false;
    skipped->predict_count++;
    return true;
}

static enum status check_nothing_left(const struct params *params,
                                      struct params_skipped *skipped, struct err *err)
{
    const struct ckpt_tensor *first = NULL;
    char shape[96];
    size_t left = 0;

    for (size_t i = 0; i < ckpt_tensor_count(params->ckpt); i++) {
        const struct ckpt_tensor *tensor = ckpt_tensor_at(params->ckpt, i);

        if (tensor->packed != NULL && tensor->dtype == DTYPE_F16)
            skipped->widened_count++;
        if (map_get(params->used, tensor->name, strlen(tensor->name), NULL) ||
            is_of_no_use(params, tensor, skipped))
            continue;
        first = first == NULL ? tensor : first;
        left++;
    }
    if (left == 0)
        return STATUS_OK;
    return err_set(err, STATUS_BAD_INPUT,
                   "%s: the tensor %.200s %s is unexpected: %s has no use for it (%zu such "
                   "tensors)%s",
                   ckpt_file_path(params->ckpt, first->file_index), first->name,
                   tensor_shape_format(first->rank, first->shape, shape, sizeof(shape)),
                   params->config->architecture, left,
                   ckpt_is_order(first) ? "; columns in another order (\"desc_act\") are not built "
                                          "for that matrix" : "");
}

/* One operator reads all of a layer's experts, so each of an expert's matrices needs one dtype.
 * Stacks have; the matrices of experts that are units follow each other. */
static enum status check_experts(const struct params *params, struct err *err)
{
    const struct model_config *config = params->config;
    const size_t count = config->expert_units ? 2 * (size_t)config->expert_count : 0;

    for (uint32_t layer = 0; layer < config->layer_count; layer++) {
        const uint32_t first = role_slot(params, (int32_t)layer, ROLE_W13)->first;

        for (size_t i = 2; first != PARAM_NONE && i < count; i++) {
            const struct offload_param_desc *a = &params->descs[first + i % 2];
            const struct offload_param_desc *b = &params->descs[first + i];

            if (a->dtype != b->dtype)
                return err_set(err, STATUS_BAD_INPUT,
                               "%s: %s is %s and %s is %s; give one --dtype for both",
                               ckpt_path(params->ckpt), a->name, dtype_info(a->dtype)->name,
                               b->name, dtype_info(b->dtype)->name);
        }
    }
    return STATUS_OK;
}

enum status model__params_check(struct params *params, struct params_skipped *skipped_out,
                                struct err *err)
{
    struct params_skipped skipped = { 0 };
    enum status st = STATUS_OK;

    for (size_t i = 0; st == STATUS_OK && i < params->count; i++)
        st = loader_check(params->descs[i].loader, params->ckpt, params->descs[i].name, err);
    if (st == STATUS_OK)
        st = check_experts(params, err);
    if (st == STATUS_OK)
        st = check_nothing_left(params, &skipped, err);
    if (st == STATUS_OK)
        *skipped_out = skipped;
    return st;
}

void model__params_describe(const struct params *params, struct model_info *info)
{
    uint64_t elements_of[DTYPE_COUNT] = { 0 };

    info->parameter_count = 0;
    info->weight_bytes = 0;
    info->weight_dtype = DTYPE_F32;
    for (size_t i = 0; i < params->count; i++) {
        const struct offload_param_desc *desc = &params->descs[i];
        uint64_t elements = 0;
        uint64_t bytes = 0;

        /* The checkpoint's files hold them all, so the sums do not overflow. */
        (void)tensor_element_count(desc->rank, desc->shape, &elements);
        (void)dtype_bytes(desc->dtype, elements, &bytes);
        info->parameter_count += elements;
        info->weight_bytes += bytes;
        elements_of[desc->dtype] += elements;
        if (elements_of[desc->dtype] > elements_of[info->weight_dtype])
            info->weight_dtype = desc->dtype;
    }
}

size_t model__params_count(const struct params *params)
{
    return params->count;
}

const struct offload_param_desc *model__params_descs(const struct params *params)
{
    return params->descs;
}

void model__params_forget_loaders(struct params *params)
{
    for (size_t i = 0; i < params->count; i++)
        params->descs[i].loader = NULL;
}

uint32_t model__params_index(const struct params *params, int32_t layer, enum model_role role)
{
    return role_slot(params, layer, role)->first;
}

uint32_t model__params_order(const struct params *params, uint32_t index)
{
    return params->orders[index];
}

uint32_t model__params_part_count(const struct params *params, int32_t layer,
                                  enum model_role role)
{
    const struct role_slot *slot = role_slot(params, layer, role);

    return slot->first == PARAM_NONE ? 0 : slot->count;
}
