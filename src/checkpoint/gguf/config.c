/* checkpoint/gguf/config.c - a GGUF file's metadata as a Hugging Face config.json.
 *
 * Keys of GGUF are those of gguf-py 0.19 (constants.py), what they mean is what llama.cpp makes of
 * them; keys of config.json are what model/ reads. Where the two differ:
 *
 * - Vocabulary, tied embeddings and biases follow from the tensors, which have the last word.
 * - The converter permutes the rows of a llama's query and key matrices so that the rotated pairs
 *   are adjacent elements. "gguf_rope": { "interleaved": true } says so.
 * - Llama 3.1's scaling of frequencies is a tensor of divisors, rope_freqs.weight, which becomes
 *   "gguf_rope": { "factors": [...] }.
 * - LongRoPE's two lists of divisors are tensors too, and nothing else says that they are meant.
 * - yarn_log_multiplier is a tenth of mscale_all_dim, which equals mscale in every published
 *   model; the format has only one of the two.
 *
 * Only what the metadata says in a wrong way is refused here; ranges and what does not go together
 * are model/'s to judge. */
#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/gguf/maker.h"

#define FACTORS_MAX 4096
#define ROPE_FACTORS "rope_freqs.weight"
#define LONG_FACTORS "rope_factors_long.weight"
#define SHORT_FACTORS "rope_factors_short.weight"

void gguf__refuse(struct maker *maker, const char *format, ...)
{
    char sentence[512];
    va_list args;

    if (maker->status != STATUS_OK)
        return;
    va_start(args, format);
    (void)vsnprintf(sentence, sizeof(sentence), format, args);
    va_end(args);
    maker->status = err_set(maker->err, STATUS_BAD_INPUT, "%s: %s", maker->path, sentence);
}

void gguf__put(struct maker *maker, json_t *object, const char *key, json_t *value)
{
    if (maker->status != STATUS_OK)
        json_decref(value);
    else if (json_object_set_new(object, key, value) != 0) /* also when value is NULL */
        maker->status = err_set(maker->err, STATUS_NO_MEMORY, "%s: no memory for its metadata",
                                maker->path);
}

static const char *full_key(const struct maker *maker, const char *key, char *out, size_t out_size)
{
    (void)snprintf(out, out_size, "%s.%s", maker->arch, key);
    return out;
}

bool gguf__has(const struct maker *maker, const char *key)
{
    char full[128];

    return gguf__find(maker->meta, full_key(maker, key, full, sizeof(full))) != NULL;
}

uint64_t gguf__count_or(struct maker *maker, const char *key, uint64_t missing)
{
    char full[128];
    const struct gguf_value *value;
    uint64_t count = missing;

    full_key(maker, key, full, sizeof(full));
    value = gguf__find(maker->meta, full);
    if (maker->status != STATUS_OK || value == NULL)
        return missing;
    if (value->type != GGUF_ARRAY) {
        maker->status =
            gguf__get_count(maker->meta, maker->path, full, UINT32_MAX, &count, maker->err);
        return count;
    }
    if (!value->items_equal)
        gguf__refuse(maker, "%s differs from layer to layer (or is no array of integers), which is "
                     "not built", full);
    else if (value->too_large || value->integer < 0 || value->integer > UINT32_MAX)
        gguf__refuse(maker, "%s is an array of %" PRId64 ", which is out of range", full,
                     value->integer);
    else
        count = (uint64_t)value->integer;
    return count;
}

uint64_t gguf__count_of(struct maker *maker, const char *key)
{
    if (!gguf__has(maker, key))
        gguf__refuse(maker, "%s.%s is missing", maker->arch, key);
    return gguf__count_or(maker, key, 0);
}

double gguf__number_or(struct maker *maker, const char *key, double missing)
{
    char full[128];
    const struct gguf_value *value;

    full_key(maker, key, full, sizeof(full));
    value = gguf__find(maker->meta, full);
    if (maker->status != STATUS_OK || value == NULL)
        return missing;
    if (value->type == GGUF_BOOL || value->type == GGUF_STRING || value->type == GGUF_ARRAY)
        gguf__refuse(maker, "%s is of type %s, a number is wanted", full,
                     gguf__type_name(value->type));
    else if (!isfinite(value->number))
        gguf__refuse(maker, "%s is not finite", full);
    return value->number;
}

bool gguf__bool_or(struct maker *maker, const char *key, bool missing)
{
    char full[128];
    const struct gguf_value *value;

    full_key(maker, key, full, sizeof(full));
    value = gguf__find(maker->meta, full);
    if (maker->status != STATUS_OK || value == NULL)
        return missing;
    if (value->type != GGUF_BOOL)
        gguf__refuse(maker, "%s is of type %s, a boolean is wanted", full,
                     gguf__type_name(value->type));
    return value->integer != 0;
}

bool gguf__is_array(const struct maker *maker, const char *key)
{
    char full[128];
    const struct gguf_value *const value =
        gguf__find(maker->meta, full_key(maker, key, full, sizeof(full)));

    return value != NULL && value->type == GGUF_ARRAY;
}

/* One item of an array for each layer: a byte of a boolean, or four of an integer. */
static json_t *read_layer_types(struct maker *maker, const struct gguf_value *value,
                                const char *windowed)
{
    const size_t each = value->item_type == GGUF_BOOL ? 1 : sizeof(uint32_t);
    const size_t count = (size_t)value->item_count;
    uint8_t *const items = malloc(count * each + 1);
    json_t *types = json_array();

    if (items == NULL || types == NULL) {
        json_decref(types);
        types = NULL; /* gguf__put says so */
    } else {
        maker->status = file_read_at(&maker->ckpt->files[0], value->items_at, items, count * each,
                                     maker->err);
    }
    for (size_t i = 0; types != NULL && maker->status == STATUS_OK && i < count; i++) {
        bool is_windowed = false;

        for (size_t byte = 0; byte < each; byte++)
            is_windowed = is_windowed || items[i * each + byte] != 0;
        (void)json_array_append_new(types,
                                    json_string(is_windowed ? windowed : "full_attention"));
    }
    free(items);
    return types;
}

void gguf__put_layer_types(struct maker *maker, const char *key, const char *windowed)
{
    const uint64_t layers = gguf__count_of(maker, "block_count");
    const struct gguf_value *value;
    char full[128];

    value = gguf__find(maker->meta, full_key(maker, key, full, sizeof(full)));
    if (maker->status != STATUS_OK || value == NULL)
        return;
    if (value->type != GGUF_ARRAY ||
        (value->item_type != GGUF_BOOL && value->item_type != GGUF_INT32 &&
         value->item_type != GGUF_UINT32))
        gguf__refuse(maker, "%s is of type %s, an array of booleans is wanted", full,
                     gguf__type_name(value->type == GGUF_ARRAY ? value->item_type : value->type));
    else if (value->item_count != layers)
        gguf__refuse(maker, "%s has %" PRIu64 " items, and the model %" PRIu64 " layers", full,
                     value->item_count, layers);
    else
        gguf__put(maker, maker->config, "layer_types", read_layer_types(maker, value, windowed));
}

void gguf__put_count(struct maker *maker, const char *key, uint64_t count)
{
    gguf__put(maker, maker->config, key, json_integer((json_int_t)count));
}

void gguf__put_number(struct maker *maker, const char *key, double number)
{
    gguf__put(maker, maker->config, key, json_real(number));
}

void gguf__put_bool(struct maker *maker, const char *key, bool value)
{
    gguf__put(maker, maker->config, key, json_boolean(value));
}

void gguf__put_names(struct maker *maker, const char *architecture, const char *model_type)
{
    gguf__put(maker, maker->config, "architectures", json_pack("[s]", architecture));
    gguf__put(maker, maker->config, "model_type", json_string(model_type));
}

/* --- rope ------------------------------------------------------------------------------------- */

/* A tensor of divisors of the frequencies, when there is one. */
static json_t *read_factors(struct maker *maker, const char *name)
{
    const struct ckpt_tensor *const tensor = ckpt_find(maker->ckpt, name);
    float values[FACTORS_MAX];
    json_t *list;

    if (maker->status != STATUS_OK || tensor == NULL)
        return NULL;
    if (tensor->dtype != DTYPE_F32 || tensor->rank != 1 || tensor->shape[0] > FACTORS_MAX) {
        gguf__refuse(maker, "tensor '%s' is of type %s with %" PRIu64
                     " elements, an F32 vector of at most %d is wanted", name, tensor->dtype_name,
                     tensor->shape[0], FACTORS_MAX);
        return NULL;
    }
    maker->status = ckpt_read(maker->ckpt, tensor, 0, values, tensor->size_bytes, maker->err);
    list = maker->status == STATUS_OK ? json_array() : NULL;
    for (uint64_t i = 0; maker->status == STATUS_OK && i < tensor->shape[0]; i++) {
        if (!isfinite(values[i]) || values[i] <= 0.0f)
            gguf__refuse(maker, "element %" PRIu64 " of tensor '%s' is %g, above 0 is wanted", i,
                         name, (double)values[i]);
        else if (json_array_append_new(list, json_real((double)values[i])) != 0)
            maker->status = err_set(maker->err, STATUS_NO_MEMORY,
                                    "%s: no memory for its metadata", maker->path);
    }
    return list;
}

static void put_layout(struct maker *maker, bool interleaved)
{
    json_t *const object = json_object();
    json_t *const factors = read_factors(maker, ROPE_FACTORS);

    gguf__put(maker, object, "interleaved", json_boolean(interleaved));
    if (factors != NULL)
        gguf__put(maker, object, "factors", factors);
    gguf__put(maker, maker->config, "gguf_rope", object);
}

static void put_yarn(struct maker *maker, json_t *scaling, double factor)
{
    static const char *const same[][2] = { { "rope.scaling.yarn_beta_fast", "beta_fast" },
                                           { "rope.scaling.yarn_beta_slow", "beta_slow" } };
    const double log_multiplier = gguf__number_or(maker, "rope.scaling.yarn_log_multiplier", 0.0);
    double attention = gguf__number_or(maker, "rope.scaling.attn_factor", 1.0);

    for (size_t i = 0; i < 2; i++)
        if (gguf__has(maker, same[i][0]))
            gguf__put(maker, scaling, same[i][1],
                      json_real(gguf__number_or(maker, same[i][0], 0.0)));
    if (gguf__number_or(maker, "rope.scaling.yarn_ext_factor", 1.0) != 1.0)
        gguf__refuse(maker, "%s.rope.scaling.yarn_ext_factor is not 1, which is not built",
                     maker->arch);
    if (log_multiplier != 0.0) {
        /* In single precision, where a tenth of the number was made. */
        const double mscale = (double)((float)log_multiplier / 0.1f);
        gguf__put(maker, scaling, "mscale", json_real(mscale));
        gguf__put(maker, scaling, "mscale_all_dim", json_real(mscale));
    }
    if (gguf__has(maker, "rope.scaling.yarn_attn_factor"))
        attention = gguf__number_or(maker, "rope.scaling.yarn_attn_factor", 1.0);
    else if (attention != 1.0)
        attention *= factor > 1.0 ? 0.1 * log(factor) + 1.0 : 1.0;
    else
        return;
    gguf__put(maker, scaling, "attention_factor", json_real(attention));
}

/* LongRoPE, which files tell by its tensors alone. */
static void put_longrope(struct maker *maker, json_t *scaling)
{
    gguf__put(maker, scaling, "rope_type", json_string("longrope"));
    gguf__put(maker, scaling, "long_factor", read_factors(maker, LONG_FACTORS));
    gguf__put(maker, scaling, "short_factor", read_factors(maker, SHORT_FACTORS));
    if (gguf__has(maker, "rope.scaling.attn_factor"))
        gguf__put(maker, scaling, "attention_factor",
                  json_real(gguf__number_or(maker, "rope.scaling.attn_factor", 1.0)));
}

/* What kind of scaling is meant; "none" where there is none. */
static const char *scaling_kind(struct maker *maker, double factor)
{
    const char *kind = "none";
    char key[128];

    full_key(maker, "rope.scaling.type", key, sizeof(key));
    maker->status = gguf__get_string(maker->meta, maker->path, key, &kind, maker->err);
    if (gguf__has_tensor(maker, LONG_FACTORS) && gguf__has_tensor(maker, SHORT_FACTORS))
        return "longrope";
    if (strcmp(kind, "none") == 0 && gguf__has(maker, "rope.scale_linear") && factor != 1.0)
        return "linear"; /* files before 2023-11 say only that */
    return kind;
}

void gguf__put_rope(struct maker *maker, uint64_t head_dim, bool interleaved)
{
    const uint64_t rotated = gguf__count_or(maker, "rope.dimension_count", head_dim);
    const double factor = gguf__number_or(maker, "rope.scaling.factor",
                                          gguf__number_or(maker, "rope.scale_linear", 0.0));
    const char *kind;
    json_t *scaling;

    if (maker->status != STATUS_OK)
        return;
    kind = scaling_kind(maker, factor);
    if (rotated > head_dim)
        gguf__refuse(maker, "%s.rope.dimension_count is %" PRIu64 ", but a head has only %" PRIu64
                     " elements", maker->arch, rotated, head_dim);
    if (head_dim > 0)
        gguf__put_number(maker, "partial_rotary_factor", (double)rotated / (double)head_dim);
    gguf__put_number(maker, "rope_theta", gguf__number_or(maker, "rope.freq_base", 10000.0));
    put_layout(maker, interleaved);
    if (maker->status != STATUS_OK || strcmp(kind, "none") == 0)
        return;
    scaling = json_object();
    if (strcmp(kind, "longrope") == 0)
        put_longrope(maker, scaling);
    else
        gguf__put(maker, scaling, "rope_type", json_string(kind));
    if (factor != 0.0)
        gguf__put(maker, scaling, "factor", json_real(factor));
    if (gguf__has(maker, "rope.scaling.original_context_length"))
        gguf__put(maker, scaling, "original_max_position_embeddings",
                  json_integer((json_int_t)gguf__count_of(
                      maker, "rope.scaling.original_context_length")));
    if (strcmp(kind, "yarn") == 0)
        put_yarn(maker, scaling, factor);
    gguf__put(maker, maker->config, "rope_scaling", scaling);
}

/* --- what all have ---------------------------------------------------------------------------- */

bool gguf__has_tensor(const struct maker *maker, const char *name)
{
    return ckpt_find(maker->ckpt, name) != NULL;
}

static void put_ids(struct maker *maker)
{
    static const char *const ends[] = { "tokenizer.ggml.eos_token_id",
                                        "tokenizer.ggml.eot_token_id",
                                        "tokenizer.ggml.eom_token_id" };
    json_t *const list = json_array();
    uint64_t id = UINT64_MAX;

    for (size_t i = 0; maker->status == STATUS_OK && i < sizeof(ends) / sizeof(ends[0]); i++) {
        id = UINT64_MAX;
        maker->status =
            gguf__get_count(maker->meta, maker->path, ends[i], UINT32_MAX, &id, maker->err);
        if (maker->status == STATUS_OK && id < UINT32_MAX)
            (void)json_array_append_new(list, json_integer((json_int_t)id));
    }
    gguf__put(maker, maker->config, "eos_token_id", list);
    id = UINT64_MAX;
    if (maker->status == STATUS_OK)
        maker->status = gguf__get_count(maker->meta, maker->path, "tokenizer.ggml.bos_token_id",
                                        UINT32_MAX, &id, maker->err);
    if (id < INT32_MAX)
        gguf__put_count(maker, "bos_token_id", id);
}

static void put_common(struct maker *maker)
{
    const struct ckpt_tensor *const embed = ckpt_find(maker->ckpt, "model.embed_tokens.weight");
    const uint64_t predict_count = gguf__count_or(maker, "nextn_predict_layers", 0);
    const uint64_t layer_count = gguf__count_of(maker, "block_count");

    if (predict_count > layer_count)
        gguf__refuse(maker, "%s.nextn_predict_layers is %" PRIu64 ", but there are %" PRIu64
                     " layers", maker->arch, predict_count, layer_count);
    if (embed == NULL || embed->rank != 2)
        gguf__refuse(maker, "tensor 'token_embd.weight' %s",
                     embed == NULL ? "is missing" : "is not a matrix");
    gguf__put_count(maker, "num_hidden_layers", layer_count - predict_count);
    gguf__put_count(maker, "num_nextn_predict_layers", predict_count);
    gguf__put_count(maker, "hidden_size", gguf__count_of(maker, "embedding_length"));
    gguf__put_count(maker, "num_attention_heads", gguf__count_of(maker, "attention.head_count"));
    gguf__put_count(maker, "intermediate_size", gguf__count_of(maker, "feed_forward_length"));
    gguf__put_count(maker, "max_position_embeddings", gguf__count_of(maker, "context_length"));
    if (!gguf__has(maker, "attention.layer_norm_rms_epsilon"))
        gguf__refuse(maker, "%s.attention.layer_norm_rms_epsilon is missing", maker->arch);
    gguf__put(maker, maker->config, "rms_norm_eps",
              json_real(gguf__number_or(maker, "attention.layer_norm_rms_epsilon", 0.0)));
    if (embed != NULL)
        gguf__put_count(maker, "vocab_size", embed->shape[0]);
    gguf__put_bool(maker, "tie_word_embeddings", !gguf__has_tensor(maker, "lm_head.weight"));
    put_ids(maker);
}

void gguf__put_heads(struct maker *maker, bool interleaved)
{
    const uint64_t heads = gguf__count_of(maker, "attention.head_count");
    const uint64_t hidden = gguf__count_of(maker, "embedding_length");
    const uint64_t head_dim =
        gguf__count_or(maker, "attention.key_length", heads > 0 ? hidden / heads : 0);
    const uint64_t value_dim = gguf__count_or(maker, "attention.value_length", head_dim);

    if (value_dim != head_dim)
        gguf__refuse(maker, "%s.attention.value_length is %" PRIu64 " and key_length %" PRIu64
                     "; heads of two widths are not built", maker->arch, value_dim, head_dim);
    gguf__put_count(maker, "num_key_value_heads",
                    gguf__count_or(maker, "attention.head_count_kv", heads));
    gguf__put_count(maker, "head_dim", head_dim);
    gguf__put_rope(maker, head_dim, interleaved);
}

enum status gguf__config(const struct ckpt *ckpt, const struct gguf_meta *meta,
                         json_t **config_out, struct err *err)
{
    struct maker maker = { .ckpt = ckpt, .meta = meta, .path = ckpt->files[0].path, .err = err };
    const struct gguf_family *family = gguf__families;

    maker.status = gguf__get_string(meta, maker.path, "general.architecture", &maker.arch, err);
    if (maker.status != STATUS_OK)
        return maker.status;
    assert(maker.arch != NULL); /* read_architecture */
    while (family->arch != NULL && strcmp(family->arch, maker.arch) != 0)
        family++;
    maker.config = json_object();
    if (maker.config == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for its metadata", maker.path);
    if (family->arch != NULL) {
        put_common(&maker);
        family->make(&maker);
    } else {
        gguf__put_names(&maker, maker.arch, maker.arch); /* whoever reads it refuses the name */
    }
    if (maker.status != STATUS_OK) {
        json_decref(maker.config);
        return maker.status;
    }
    *config_out = maker.config;
    return STATUS_OK;
}
