/* checkpoint/gguf_export.c - a config.json as a GGUF file's metadata: gguf_config.c read backwards.
 *
 * What the format has no word for, or llama.cpp would take for something else, is refused: a file
 * that means another model is worse than none. Deepseek2 is written in the newer of its two forms:
 * latent attention as one key-value head of kv_lora_rank + qk_rope_head_dim elements, the published
 * sizes under the keys with _mla, and kv_b_proj in two tensors. */
#include "checkpoint/gguf_teller.h"

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

/* Llama 3.1's kind has no words in the format, but a tensor of divisors. */
static void tell_llama3(struct teller *teller, uint64_t rotated, double theta, double factor,
                        double context)
{
    struct gguf_model *const model = teller->model;
    const double low = teller__number_in(teller, teller->rope, "low_freq_factor", 0.0);
    const double high = teller__number_in(teller, teller->rope, "high_freq_factor", 0.0);

    if (low <= 0.0 || high <= low || factor <= 0.0 || rotated / 2 > GGUF_ROPE_FACTORS_MAX) {
        teller__refuse(teller, "its rope of kind llama3 has factors that cannot be");
        return;
    }
    model->rope_factor_count = rotated / 2;
    for (size_t i = 0; i < model->rope_factor_count; i++) {
        const double wavelength = 2 * PI * pow(theta, 2.0 * (double)i / (double)rotated);
        const double smooth = (context / wavelength - low) / (high - low);
        const double kept = fmin(fmax(smooth, 0.0), 1.0);
        model->rope_factors[i] = (float)(1.0 / ((1.0 - kept) / factor + kept));
    }
}

static void tell_yarn(struct teller *teller)
{
    static const char *const same[][2] = { { "beta_fast", "rope.scaling.yarn_beta_fast" },
                                           { "beta_slow", "rope.scaling.yarn_beta_slow" },
                                           { "attention_factor",
                                             "rope.scaling.yarn_attn_factor" } };
    const double mscale = teller__number_in(teller, teller->rope, "mscale", 0.0);
    const double all = teller__number_in(teller, teller->rope, "mscale_all_dim", 0.0);

    if (mscale != all)
        teller__refuse(teller, "its rope has an \"mscale\" of %g and an \"mscale_all_dim\" of %g; "
                       "GGUF files have one number for both", mscale, all);
    if (all != 0.0)
        teller__put_number(teller, "rope.scaling.yarn_log_multiplier", 0.1 * all);
    for (size_t i = 0; i < 3; i++)
        if (teller__has(teller->rope, same[i][0]))
            teller__put_number(teller, same[i][1],
                               teller__number_in(teller, teller->rope, same[i][0], 0.0));
    if (json_is_false(json_object_get(teller->rope, "truncate")))
        teller__refuse(teller, "its rope is YaRN with a \"truncate\" of false, for which GGUF "
                       "files have no word");
}

void teller__put_rope(struct teller *teller, uint64_t rotated, double theta_missing)
{
    const char *kind = teller__string_in(teller, teller->rope, "type", "default");
    double theta, factor, context;

    kind = teller__string_in(teller, teller->rope, "rope_type", kind);
    theta = teller__number_in(teller, teller->config, "rope_theta", theta_missing);
    theta = teller__number_in(teller, teller->rope, "rope_theta", theta);
    factor = teller__number_in(teller, teller->rope, "factor", 1.0);
    context = (double)teller__count_or(teller, "max_position_embeddings", 0);
    context = teller__number_in(teller, teller->rope, "original_max_position_embeddings", context);
    context = teller__number_in(teller, teller->config, "original_max_position_embeddings",
                                context);
    teller__put_number(teller, "rope.freq_base", theta);
    teller__put_count(teller, "rope.dimension_count", rotated);
    if (strcmp(kind, "default") == 0 || strcmp(kind, "dynamic") == 0)
        return; /* dynamic only differs where contexts are longer than the model's */
    if (strcmp(kind, "llama3") == 0) {
        tell_llama3(teller, rotated, theta, factor, context);
        return;
    }
    if (strcmp(kind, "linear") != 0 && strcmp(kind, "yarn") != 0) {
        teller__refuse(teller, "its rope is of kind \"%.32s\"; default, dynamic, linear, yarn and "
                       "llama3 are written", kind);
        return;
    }
    put_string(teller, "rope.scaling.type", kind);
    if (teller__has(teller->rope, "factor"))
        teller__put_number(teller, "rope.scaling.factor", factor);
    else
        teller__refuse(teller, "its rope of kind \"%s\" has no \"factor\"", kind);
    if (strcmp(kind, "yarn") == 0) {
        teller__put_count(teller, "rope.scaling.original_context_length", (uint64_t)context);
        tell_yarn(teller);
    }
}

static void tell_common(struct teller *teller)
{
    struct gguf_model *const model = teller->model;

    model->layer_count = teller__count_of(teller, "num_hidden_layers");
    model->head_count = teller__count_of(teller, "num_attention_heads");
    model->tied_embeddings = teller__bool_or(teller, "tie_word_embeddings", false);
    teller__put_count(teller, "block_count", model->layer_count);
    teller__put_count(teller, "context_length",
                      teller__count_of(teller, "max_position_embeddings"));
    teller__put_count(teller, "embedding_length", teller__count_of(teller, "hidden_size"));
    teller__put_count(teller, "feed_forward_length", teller__count_of(teller, "intermediate_size"));
    teller__put_count(teller, "attention.head_count", model->head_count);
    teller__put_number(teller, "attention.layer_norm_rms_epsilon",
                       teller__number_in(teller, teller->config, "rms_norm_eps", 1e-6));
    teller__put_count(teller, "vocab_size", teller__count_of(teller, "vocab_size"));
}

enum status gguf__export_config(const struct ckpt *ckpt, struct gguf_model *model,
                                struct gguf_header *header)
{
    struct teller teller = { .ckpt = ckpt, .config = ckpt_config(ckpt), .model = model,
                             .header = header };
    const char *const model_type =
        json_string_value(json_object_get(teller.config, "model_type"));
    const struct teller_family *family = teller__families;

    assert(header->err != NULL);
    (void)snprintf(teller.what, sizeof(teller.what), "%s%s", ckpt_path(ckpt),
                   ckpt_config_suffix(ckpt));
    while (family->model_type != NULL &&
           (model_type == NULL || strcmp(family->model_type, model_type) != 0))
        family++;
    if (family->model_type == NULL) {
        char known[256] = "";
        for (size_t i = 0, used = 0;
             teller__families[i].model_type != NULL && used < sizeof(known); i++)
            used += (size_t)snprintf(known + used, sizeof(known) - used, "%s%s", i > 0 ? ", " : "",
                                     teller__families[i].model_type);
        teller__refuse(&teller, "\"model_type\" is \"%.64s\", which is not written as GGUF; these "
                       "are: %s", model_type != NULL ? model_type : "", known);
        return header->status;
    }
    *model = (struct gguf_model){ .ckpt = ckpt, .arch = family->arch };
    teller.rope = json_object_get(teller.config, "rope_scaling");
    if (json_object_size(teller.rope) == 0)
        teller.rope = json_object_get(teller.config, "rope_parameters");
    if (!json_is_object(teller.rope))
        teller.rope = NULL;
    gguf__write_string(header, "general.architecture", model->arch, strlen(model->arch));
    gguf__write_string(header, "general.type", "model", 5);
    tell_common(&teller);
    family->tell(&teller);
    return header->status;
}
