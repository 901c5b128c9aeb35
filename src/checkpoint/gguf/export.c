/* checkpoint/gguf/export.c - a config.json as a GGUF file's metadata: config.c read backwards.
 *
 * What the format has no word for, or llama.cpp would take for something else, is refused: a file
 * that means another model is worse than none. Deepseek2 is written in the newer of its two forms:
 * latent attention as one key-value head of kv_lora_rank + qk_rope_head_dim elements, the published
 * sizes under the keys with _mla, and kv_b_proj in two tensors. */
#include "checkpoint/gguf/teller.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"

#define PI 3.14159265358979323846
#define COUNT_MAX UINT32_MAX

void teller__refuse(struct teller *teller, const char *format, ...)
{
    char sentence[384];
    va_list args;

    if (teller->header->status != STATUS_OK)
        return;
    va_start(args, format);
    (void)vsnprintf(sentence, sizeof(sentence), format, args);
    va_end(args);
    teller->header->status = err_set(teller->header->err, STATUS_BAD_INPUT, "%s: %s", teller->what,
                                     sentence);
}

/* --- reading config.json ---------------------------------------------------------------------- */

uint64_t teller__count_or(struct teller *teller, const char *key, uint64_t missing)
{
    int64_t count = (int64_t)missing;

    if (teller->header->status == STATUS_OK)
        teller->header->status = json_get_int(teller->config, key, teller->what, 0, COUNT_MAX,
                                              &count, teller->header->err);
    return (uint64_t)count;
}

uint64_t teller__count_of(struct teller *teller, const char *key)
{
    int64_t count = 1;

    if (teller->header->status == STATUS_OK)
        teller->header->status = json_get_int_required(teller->config, key, teller->what, 0,
                                                       COUNT_MAX, &count, teller->header->err);
    return (uint64_t)count;
}

double teller__number_in(struct teller *teller, const json_t *object, const char *key,
                         double missing)
{
    double number = missing;

    if (teller->header->status == STATUS_OK && object != NULL)
        teller->header->status = json_get_double(object, key, teller->what, -1e30, 1e30, &number,
                                                 teller->header->err);
    return number;
}

bool teller__bool_or(struct teller *teller, const char *key, bool missing)
{
    bool value = missing;

    if (teller->header->status == STATUS_OK)
        teller->header->status = json_get_bool(teller->config, key, teller->what, &value,
                                               teller->header->err);
    return value;
}

const char *teller__string_in(struct teller *teller, const json_t *object, const char *key,
                              const char *missing)
{
    const char *text = missing;

    if (teller->header->status == STATUS_OK && object != NULL)
        teller->header->status = json_get_string(object, key, teller->what, &text,
                                                 teller->header->err);
    return text;
}

bool teller__has(const json_t *object, const char *key)
{
    const json_t *const value = json_object_get(object, key);

    return value != NULL && !json_is_null(value);
}

bool teller__is_null(const json_t *object, const char *key)
{
    return json_is_null(json_object_get(object, key));
}

/* --- writing ---------------------------------------------------------------------------------- */

static const char *full_key(const struct teller *teller, const char *key, char out[128])
{
    (void)snprintf(out, 128, "%s.%s", teller->model->arch, key);
    return out;
}

void teller__put_count(struct teller *teller, const char *key, uint64_t count)
{
    char full[128];

    gguf__write_count(teller->header, full_key(teller, key, full), count);
}

void teller__put_number(struct teller *teller, const char *key, double number)
{
    char full[128];

    gguf__write_number(teller->header, full_key(teller, key, full), number);
}

void teller__put_bool(struct teller *teller, const char *key, bool value)
{
    char full[128];

    gguf__write_bool(teller->header, full_key(teller, key, full), value);
}

static void put_string(struct teller *teller, const char *key, const char *text)
{
    char full[128];

    gguf__write_string(teller->header, full_key(teller, key, full), text, strlen(text));
}

/* --- rope ------------------------------------------------------------------------------------- */

struct rope {
    uint64_t rotated;              /* elements of a head */
    double theta, factor;
    double context;                /* positions that the model was trained on, before scaling */
};

/* One more tensor of divisors of a rope's frequencies, which the caller fills. */
static struct gguf_factors *add_factors(struct teller *teller, const char *name, uint64_t rotated)
{
    struct gguf_model *const model = teller->model;
    struct gguf_factors *const factors = &model->factors[model->factor_count];

    assert(model->factor_count < sizeof(model->factors) / sizeof(model->factors[0]));
    if (rotated / 2 > GGUF_FACTORS_MAX)
        teller__refuse(teller, "its rope has %" PRIu64 " frequencies, at most %d are written",
                       rotated / 2, GGUF_FACTORS_MAX);
    if (teller->header->status != STATUS_OK)
        return NULL;
    factors->name = name;
    factors->count = rotated / 2;
    model->factor_count++;
    return factors;
}

/* Llama 3.1's kind has no words in the format, but a tensor of divisors. */
static void tell_llama3(struct teller *teller, const struct rope *rope)
{
    const double low = teller__number_in(teller, teller->rope, "low_freq_factor", 0.0);
    const double high = teller__number_in(teller, teller->rope, "high_freq_factor", 0.0);
    struct gguf_factors *factors;

    if (low <= 0.0 || high < low || rope->factor <= 0.0)
        teller__refuse(teller, "its rope of kind llama3 has factors that cannot be");
    factors = add_factors(teller, "rope_freqs.weight", rope->rotated);
    for (size_t i = 0; factors != NULL && i < factors->count; i++) {
        const double wavelength = 2 * PI *
                                  pow(rope->theta, 2.0 * (double)i / (double)rope->rotated);
        const double turns = rope->context / wavelength;
        const double smooth = high > low ? (turns - low) / (high - low) : turns >= low;
        const double kept = fmin(fmax(smooth, 0.0), 1.0);
        factors->values[i] = (float)(1.0 / ((1.0 - kept) / rope->factor + kept));
    }
}

/* A list of divisors, which is a tensor in the file. */
static void tell_list(struct teller *teller, const char *key, const char *name, uint64_t rotated)
{
    const json_t *const list = json_object_get(teller->rope, key);
    struct gguf_factors *const factors = add_factors(teller, name, rotated);

    if (json_array_size(list) != rotated / 2)
        teller__refuse(teller, "\"%s\" has %zu entries, %" PRIu64 " are wanted", key,
                       json_array_size(list), rotated / 2);
    for (size_t i = 0; teller->header->status == STATUS_OK && i < factors->count; i++)
        factors->values[i] = (float)json_number_value(json_array_get(list, i));
}

/* LongRoPE has two lists and a factor; that it is meant, readers see by the lists. */
static void tell_longrope(struct teller *teller, const struct rope *rope)
{
    const double longest = (double)teller__count_of(teller, "max_position_embeddings");
    const double times = teller__number_in(teller, teller->rope, "factor",
                                           rope->context > 0.0 ? longest / rope->context : 1.0);
    const double scale = times > 1.0 && rope->context > 1.0
                             ? sqrt(1.0 + log(times) / log(rope->context)) : 1.0;

    if (strcmp(teller->model->arch, "phi3") != 0)
        teller__refuse(teller, "its rope is of kind \"longrope\", for which GGUF's %s has no word",
                       teller->model->arch);
    teller__put_count(teller, "rope.scaling.original_context_length", (uint64_t)rope->context);
    teller__put_number(teller, "rope.scaling.attn_factor",
                       teller__number_in(teller, teller->rope, "attention_factor", scale));
    tell_list(teller, "long_factor", "rope_factors_long.weight", rope->rotated);
    tell_list(teller, "short_factor", "rope_factors_short.weight", rope->rotated);
}

/* llama.cpp has 0.1 ln(factor) + 1 for the factor on cos and sin, and reads what that is to be
 * multiplied with; yarn_attn_factor, which means the same, it does not look at. That the ramp is
 * not rounded to whole pairs is gpt-oss's, always. */
static void tell_yarn(struct teller *teller, double factor)
{
    static const char *const same[][2] = { { "beta_fast", "rope.scaling.yarn_beta_fast" },
                                           { "beta_slow", "rope.scaling.yarn_beta_slow" } };
    const bool truncates = !json_is_false(json_object_get(teller->rope, "truncate"));
    const double mscale = teller__number_in(teller, teller->rope, "mscale", 0.0);
    const double all = teller__number_in(teller, teller->rope, "mscale_all_dim", 0.0);

    if (mscale != all)
        teller__refuse(teller, "its rope has an \"mscale\" of %g and an \"mscale_all_dim\" of %g; "
                       "GGUF files have one number for both", mscale, all);
    if (all != 0.0)
        teller__put_number(teller, "rope.scaling.yarn_log_multiplier", 0.1 * all);
    for (size_t i = 0; i < 2; i++)
        if (teller__has(teller->rope, same[i][0]))
            teller__put_number(teller, same[i][1],
                               teller__number_in(teller, teller->rope, same[i][0], 0.0));
    if (teller__has(teller->rope, "attention_factor"))
        teller__put_number(teller, "rope.scaling.attn_factor",
                           teller__number_in(teller, teller->rope, "attention_factor", 1.0) /
                               (factor > 1.0 ? 0.1 * log(factor) + 1.0 : 1.0));
    if (truncates == (strcmp(teller->model->arch, "gpt-oss") == 0))
        teller__refuse(teller, "its rope is YaRN with a \"truncate\" of %s, for which GGUF's %s "
                       "has no word", truncates ? "true" : "false", teller->model->arch);
}

static void tell_scaling(struct teller *teller, const struct rope *rope, const char *kind)
{
    put_string(teller, "rope.scaling.type", kind);
    if (teller__has(teller->rope, "factor"))
        teller__put_number(teller, "rope.scaling.factor", rope->factor);
    else
        teller__refuse(teller, "its rope of kind \"%s\" has no \"factor\"", kind);
    if (strcmp(kind, "yarn") == 0) {
        teller__put_count(teller, "rope.scaling.original_context_length", (uint64_t)rope->context);
        tell_yarn(teller, rope->factor);
    }
}

void teller__put_rope(struct teller *teller, uint64_t rotated, double theta_missing)
{
    struct rope rope = { .rotated = rotated };
    const char *kind = teller__string_in(teller, teller->rope, "type", "default");

    kind = teller__string_in(teller, teller->rope, "rope_type", kind);
    rope.theta = teller__number_in(teller, teller->config, "rope_theta", theta_missing);
    rope.theta = teller__number_in(teller, teller->rope, "rope_theta", rope.theta);
    rope.factor = teller__number_in(teller, teller->rope, "factor", 1.0);
    rope.context = (double)teller__count_or(teller, "max_position_embeddings", 0);
    rope.context = teller__number_in(teller, teller->rope, "original_max_position_embeddings",
                                     rope.context);
    rope.context = teller__number_in(teller, teller->config, "original_max_position_embeddings",
                                     rope.context);
    teller__put_number(teller, "rope.freq_base", rope.theta);
    teller__put_count(teller, "rope.dimension_count", rotated);
    if (strcmp(kind, "default") == 0 || strcmp(kind, "dynamic") == 0)
        return; /* dynamic only differs where contexts are longer than the model's */
    if (strcmp(kind, "llama3") == 0)
        tell_llama3(teller, &rope);
    else if (strcmp(kind, "longrope") == 0 || strcmp(kind, "su") == 0)
        tell_longrope(teller, &rope);
    else if (strcmp(kind, "linear") == 0 || strcmp(kind, "yarn") == 0)
        tell_scaling(teller, &rope, kind);
    else
        teller__refuse(teller, "its rope is of kind \"%.32s\"; default, dynamic, linear, yarn, "
                       "llama3 and longrope are written", kind);
}

/* --- what all have ---------------------------------------------------------------------------- */

static uint64_t size_of(struct teller *teller, const char *key, uint64_t missing)
{
    return missing == 0 ? teller__count_of(teller, key) : teller__count_or(teller, key, missing);
}

static void tell_common(struct teller *teller, const struct teller_missing *missing)
{
    struct gguf_model *const model = teller->model;
    const char *const ffn_key = missing->ffn_key != NULL ? missing->ffn_key : "intermediate_size";

    model->layer_count = size_of(teller, "num_hidden_layers", missing->layer_count);
    model->head_count = size_of(teller, "num_attention_heads", missing->head_count);
    model->tied_embeddings = teller__bool_or(teller, "tie_word_embeddings",
                                             missing->tied_embeddings);
    model->hidden_size = size_of(teller, "hidden_size", missing->hidden_size);
    teller__put_count(teller, "block_count", model->layer_count);
    teller__put_count(teller, "context_length",
                      size_of(teller, "max_position_embeddings", missing->context_length));
    teller__put_count(teller, "embedding_length", model->hidden_size);
    teller__put_count(teller, "feed_forward_length", size_of(teller, ffn_key, missing->ffn_width));
    teller__put_count(teller, "attention.head_count", model->head_count);
    teller__put_number(teller, "attention.layer_norm_rms_epsilon",
                       teller__number_in(teller, teller->config, "rms_norm_eps",
                                         missing->norm_epsilon > 0 ? missing->norm_epsilon : 1e-6));
    teller__put_count(teller, "vocab_size", size_of(teller, "vocab_size", missing->vocab_size));
}

static const struct teller_family *find_family(struct teller *teller)
{
    const char *const model_type =
        json_string_value(json_object_get(teller->config, "model_type"));
    const struct teller_family *family = teller__families;
    char known[384] = "";

    while (family->model_type != NULL &&
           (model_type == NULL || strcmp(family->model_type, model_type) != 0))
        family++;
    if (family->model_type != NULL)
        return family;
    for (size_t i = 0, used = 0; teller__families[i].model_type != NULL && used < sizeof(known);
         i++)
        used += (size_t)snprintf(known + used, sizeof(known) - used, "%s%s", i > 0 ? ", " : "",
                                 teller__families[i].model_type);
    teller__refuse(teller, "\"model_type\" is \"%.64s\", which is not written as GGUF; these are: "
                   "%s", model_type != NULL ? model_type : "", known);
    return NULL;
}

/* As it was published, and as transformers 5 writes it. */
static void enter_text_part(struct teller *teller)
{
    struct gguf_model *const model = teller->model;

    teller->config = json_object_get(teller->config, "text_config");
    if (!json_is_object(teller->config))
        teller__refuse(teller, "there is no \"text_config\"");
    if (ckpt_find(teller->ckpt, "language_model.model.embed_tokens.weight") != NULL) {
        model->part = "language_model.";
        model->part_plain = "";
    } else if (ckpt_find(teller->ckpt, "model.language_model.embed_tokens.weight") != NULL) {
        model->part = "model.language_model.";
        model->part_plain = "model.";
    }
}

bool gguf__plain_name(const struct gguf_model *model, const char *name, char *out, size_t out_size)
{
    const size_t size = model->part != NULL ? strlen(model->part) : 0;
    const bool is_inside = size > 0 && strncmp(name, model->part, size) == 0;

    if (is_inside)
        (void)snprintf(out, out_size, "%s%s", model->part_plain, name + size);
    else
        (void)snprintf(out, out_size, "%s", name);
    return is_inside || model->part == NULL || strcmp(name, "lm_head.weight") == 0;
}

enum status gguf__export_config(const struct ckpt *ckpt, struct gguf_model *model,
                                struct gguf_header *header)
{
    static const struct teller_missing nothing = { 0 };
    struct teller teller = { .ckpt = ckpt, .config = ckpt_config(ckpt), .model = model,
                             .header = header };
    const struct teller_family *family;

    assert(header->err != NULL);
    (void)snprintf(teller.what, sizeof(teller.what), "%s%s", ckpt_path(ckpt),
                   ckpt_config_suffix(ckpt));
    family = find_family(&teller);
    if (family == NULL)
        return header->status;
    *model = (struct gguf_model){ .ckpt = ckpt, .arch = family->arch };
    if (family->is_text_part)
        enter_text_part(&teller);
    if (header->status != STATUS_OK)
        return header->status;
    teller.rope = json_object_get(teller.config, "rope_scaling");
    if (json_object_size(teller.rope) == 0)
        teller.rope = json_object_get(teller.config, "rope_parameters");
    if (!json_is_object(teller.rope))
        teller.rope = NULL;
    gguf__write_string(header, "general.architecture", model->arch, strlen(model->arch));
    gguf__write_string(header, "general.type", "model", 5);
    tell_common(&teller, family->missing != NULL ? family->missing : &nothing);
    family->tell(&teller);
    return header->status;
}
