/* model/rope.c - the frequencies of rotary position embedding, from both styles of configuration.
 *
 * Old files say "rope_theta" beside a "rope_scaling" object, newer ones (transformers 5) one
 * "rope_parameters" object that holds both. The kinds and their arithmetic are those of
 * transformers 5.23, modeling_rope_utils.py, step by step in float, because a frequency that
 * differs in its last bit is seen after some thousand positions:
 *
 *   default  Su et al. 2021, RoFormer: theta^(-2i/d)
 *   linear   the same divided by `factor`
 *   dynamic  NTK-aware, which changes theta only past max_position_embeddings; as no longer context
 *            is served, it is the default here
 *   yarn     Peng et al. 2023, arXiv 2309.00071, section 3: low frequencies are divided by
 *            `factor`, high ones kept, a ramp between
 *   llama3   Llama 3.1: the same idea with bounds given as wavelengths
 *   longrope Ding et al. 2024, arXiv 2402.13753: each frequency divided by a factor of its own, of
 *            one list for contexts as long as the model was trained with, of another for longer
 *
 * A GGUF file says more, as "gguf_rope": whether the rotated pairs are adjacent, and "factors", by
 * which the frequencies are divided.
 *
 * LongRoPE's list follows from the context that is served, as in llama.cpp and vLLM. (transformers
 * looks at each request's length, and computes the whole text anew when it grows past the border.)
 * What is not in this list is refused. */
#include <math.h>
#include <string.h>

#include "base/json.h"
#include "model/config.h"

#define PI 3.14159265358979323846
/* In newer files, where ropes differ by layer, "rope_parameters" holds an object for each kind. */
#define FULL "full_attention"
#define SLIDING "sliding_attention"

/* What an object says, before its kind's own settings. */
struct rope_kind {
    const char *name;
    double theta, factor;
    double partial; /* the share of a head's elements that is rotated */
    bool has_factor;
    double context; /* positions that the model was trained on, before scaling */
};

static float angular_step(double theta, uint32_t i, uint32_t pair_count)
{
    return powf((float)theta, (float)(2 * i) / (float)(2 * pair_count));
}

static void fill_default(double theta, double factor, struct model_config *config)
{
    for (uint32_t i = 0; i < config->rope_pair_count; i++)
        config->rope_frequencies[i] =
            1.0f / angular_step(theta, i, config->rope_pair_count) / (float)factor;
}

static void fill_llama3(struct config_reader *rope, const struct rope_kind *kind,
                        struct model_config *config)
{
    const double low = model__read_double(rope, "low_freq_factor", 1e-6, 1e6, 0.0);
    const double high = model__read_double(rope, "high_freq_factor", 1e-6, 1e6, 0.0);

    if (low == 0.0 || high < low) {
        model__read_refuse(rope, "rope kind \"llama3\" needs a \"low_freq_factor\" that is not "
                           "above \"high_freq_factor\", found %g and %g", low, high);
        return;
    }
    fill_default(kind->theta, 1.0, config);
    for (uint32_t i = 0; i < config->rope_pair_count; i++) {
        const float frequency = config->rope_frequencies[i];
        const float wavelength = (float)(2 * PI) / frequency;
        const float turns = (float)kind->context / wavelength;
        const float smooth = (turns - (float)low) / (float)(high - low);

        if (wavelength > (float)(kind->context / low))
            config->rope_frequencies[i] = frequency / (float)kind->factor;
        else if (wavelength >= (float)(kind->context / high) && high > low)
            config->rope_frequencies[i] =
                (1.0f - smooth) * frequency / (float)kind->factor + smooth * frequency;
    }
}

/* 0.1 m ln(s) + 1: arXiv 2309.00071, equation 22, with DeepSeek's weight m. */
static double yarn_mscale(double scale, double mscale)
{
    return scale <= 1.0 ? 1.0 : 0.1 * mscale * log(scale) + 1.0;
}

/* The pair whose wavelength makes `rotations` turns within the context. */
static double yarn_pair_of(double rotations, double dim, double theta, double context)
{
    return dim * log(context / (rotations * 2 * PI)) / (2 * log(theta));
}

static void fill_yarn(struct config_reader *rope, const struct rope_kind *kind,
                      struct model_config *config)
{
    const double factor = kind->factor;
    const double dim = 2.0 * config->rope_pair_count;
    const double mscale = model__read_double(rope, "mscale", -1e3, 1e3, 0.0);
    const double mscale_all_dim = model__read_double(rope, "mscale_all_dim", -1e3, 1e3, 0.0);
    const bool has_factor = model__read_has(rope, "attention_factor");
    const bool truncate = model__read_bool(rope, "truncate", true);
    double scale = model__read_double(rope, "attention_factor", 0.0, 1e3, 1.0);
    double beta_fast = model__read_double(rope, "beta_fast", 0.0, 1e6, 32.0);
    double beta_slow = model__read_double(rope, "beta_slow", 0.0, 1e6, 1.0);
    double low, high;

    /* As transformers has it, 0 counts as not given. */
    beta_fast = beta_fast == 0.0 ? 32.0 : beta_fast;
    beta_slow = beta_slow == 0.0 ? 1.0 : beta_slow;
    if (!has_factor)
        scale = mscale != 0.0 && mscale_all_dim != 0.0
                    ? yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)
                    : yarn_mscale(factor, 1.0);
    if (!isfinite(scale) || kind->theta <= 1.0) {
        model__read_refuse(rope, "rope kind \"yarn\" needs a theta above 1 and a finite attention "
                           "factor, found %g and %g", kind->theta, scale);
        return;
    }
    low = yarn_pair_of(beta_fast, dim, kind->theta, kind->context);
    high = yarn_pair_of(beta_slow, dim, kind->theta, kind->context);
    low = fmax(truncate ? floor(low) : low, 0.0);
    high = fmin(truncate ? ceil(high) : high, dim - 1.0);
    if (low == high)
        high += 0.001; /* a ramp of no width would divide by zero */
    for (uint32_t i = 0; i < config->rope_pair_count; i++) {
        const float step = angular_step(kind->theta, i, config->rope_pair_count);
        const float ramp = fminf(fmaxf(((float)i - (float)low) / (float)(high - low), 0.0f), 1.0f);
        const float kept = 1.0f - ramp;

        config->rope_frequencies[i] =
            1.0f / ((float)factor * step) * (1.0f - kept) + 1.0f / step * kept;
    }
    config->rope_scale = (float)scale;
}

/* A list with a divisor above 0 for each frequency. */
static void read_divisors(struct config_reader *rope, const char *key, float *divisors,
                          uint32_t count)
{
    const json_t *list = NULL;

    if (rope->status == STATUS_OK)
        rope->status = json_get_array(rope->json, key, rope->what, &list, rope->err);
    if (rope->status != STATUS_OK)
        return;
    if (json_array_size(list) != count) {
        model__read_refuse(rope, "\"%s\" has %zu factors of the rope's frequencies, %u are wanted",
                           key, json_array_size(list), count);
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        divisors[i] = (float)json_number_value(json_array_get(list, i));
        if (!(divisors[i] > 0.0f) || !isfinite(divisors[i]))
            model__read_refuse(rope, "entry %u of \"%s\" is not a number above 0", i, key);
    }
}

static void fill_longrope(struct config_reader *rope, const struct rope_kind *kind,
                          struct model_config *config)
{
    const double factor = kind->has_factor ? kind->factor : config->context_length / kind->context;
    const double scale = factor > 1.0 && kind->context > 1.0
                             ? sqrt(1.0 + log(factor) / log(kind->context)) : 1.0;

    config->rope_scale = (float)model__read_double(rope, "attention_factor", 0.0, 1e3, scale);
    config->rope_long_past = (uint32_t)kind->context;
    read_divisors(rope, "short_factor", config->rope_frequencies, config->rope_pair_count);
    read_divisors(rope, "long_factor", config->rope_long_frequencies, config->rope_pair_count);
    for (uint32_t i = 0; rope->status == STATUS_OK && i < config->rope_pair_count; i++) {
        const float step = angular_step(kind->theta, i, config->rope_pair_count);

        config->rope_frequencies[i] = 1.0f / (config->rope_frequencies[i] * step);
        config->rope_long_frequencies[i] = 1.0f / (config->rope_long_frequencies[i] * step);
    }
}

void model__choose_rope(struct model_config *config)
{
    if (config->rope_long_past != 0 && config->context_length > config->rope_long_past)
        memcpy(config->rope_frequencies, config->rope_long_frequencies,
               config->rope_pair_count * sizeof(config->rope_frequencies[0]));
}

/* "rope_parameters" or "rope_scaling", or NULL when there is neither; of one kind of layers, where
 * that is not NULL and they differ. */
static const json_t *rope_object(struct config_reader *reader, const char *layer_type)
{
    const json_t *object = NULL;

    if (reader->status == STATUS_OK)
        reader->status = json_get_object(reader->json, "rope_scaling", reader->what, &object,
                                         reader->err);
    /* transformers lets a "rope_scaling" that says anything override "rope_parameters" */
    if (reader->status == STATUS_OK && json_object_size(object) == 0)
        reader->status = json_get_object(reader->json, "rope_parameters", reader->what, &object,
                                         reader->err);
    if (reader->status == STATUS_OK && layer_type != NULL &&
        (json_object_get(object, FULL) != NULL || json_object_get(object, SLIDING) != NULL)) {
        const json_t *all = object;

        object = NULL;
        reader->status = json_get_object(all, layer_type, reader->what, &object, reader->err);
    }
    return object;
}

static void fill_kind(struct config_reader *rope, const struct rope_kind *kind,
                      struct model_config *config)
{
    const bool is_linear = strcmp(kind->name, "linear") == 0;
    const bool is_llama3 = strcmp(kind->name, "llama3") == 0;

    if (strcmp(kind->name, "default") == 0 || strcmp(kind->name, "dynamic") == 0)
        fill_default(kind->theta, 1.0, config);
    else if (strcmp(kind->name, "yarn") == 0)
        fill_yarn(rope, kind, config);
    else if (strcmp(kind->name, "longrope") == 0)
        fill_longrope(rope, kind, config);
    else if (!is_linear && !is_llama3)
        model__read_refuse(rope, "rope kind \"%.32s\" is not built; default, linear, dynamic, "
                           "yarn, llama3 and longrope are", kind->name);
    else if (!kind->has_factor)
        model__read_refuse(rope, "rope kind \"%s\" needs a \"factor\"", kind->name);
    else if (is_linear)
        fill_default(kind->theta, kind->factor, config);
    else
        fill_llama3(rope, kind, config);
}

/* Read from the object, with what stands beside it in the configuration for what it does not
 * say, and kind's theta for what neither says. */
static void read_kind(struct config_reader *reader, struct config_reader *rope,
                      const struct model_config *config, struct rope_kind *kind)
{
    uint32_t context;

    /* Old files call the kind "type"; transformers prefers "rope_type" when both are there. */
    kind->name = model__read_string(rope, "type", "default");
    kind->name = model__read_string(rope, "rope_type", kind->name);
    if (strcmp(kind->name, "su") == 0) /* as the first Phi-3 files have it */
        kind->name = "longrope";
    kind->theta = model__read_double(reader, "rope_theta", 1e-3, 1e15, kind->theta);
    kind->theta = model__read_double(rope, "rope_theta", 1e-3, 1e15, kind->theta);
    kind->has_factor = model__read_has(rope, "factor");
    kind->factor = model__read_double(rope, "factor", 1e-6, 1e6, 1.0);
    /* Here what stands beside the object has the last word, in transformers as well. */
    context = model__read_count_or(rope, "original_max_position_embeddings", 1,
                                   CONFIG_CONTEXT_MAX, config->context_length);
    context = model__read_count_or(reader, "original_max_position_embeddings", 1,
                                   CONFIG_CONTEXT_MAX, context);
    kind->context = context;
    if (!kind->has_factor && strcmp(kind->name, "yarn") == 0)
        kind->factor = config->context_length / kind->context;
    kind->partial = model__read_double(reader, "partial_rotary_factor", 0.0, 1.0, kind->partial);
    kind->partial = model__read_double(rope, "partial_rotary_factor", 0.0, 1.0, kind->partial);
    if (json_is_object(json_object_get(rope->json, FULL)) ||
        json_is_object(json_object_get(rope->json, SLIDING)))
        model__read_refuse(rope, "rope parameters that differ by layer are not built");
    if (rope->status == STATUS_OK)
        rope->status = reader->status;
}

/* A list of pair_count numbers, by which the frequencies are divided: Llama 3.1's scaling as its
 * converter to GGUF writes it. */
static void divide_frequencies(struct config_reader *layout, struct model_config *config)
{
    const json_t *factors = NULL;

    layout->status = json_get_array(layout->json, "factors", layout->what, &factors, layout->err);
    if (layout->status != STATUS_OK || factors == NULL)
        return;
    if (json_array_size(factors) != config->rope_pair_count)
        model__read_refuse(layout, "there are %zu divisors of the rope's frequencies, %u are "
                           "wanted", json_array_size(factors), config->rope_pair_count);
    for (uint32_t i = 0; layout->status == STATUS_OK && i < config->rope_pair_count; i++)
        config->rope_frequencies[i] /= (float)json_number_value(json_array_get(factors, i));
}

static void read_layout(struct config_reader *reader, struct config_reader *rope,
                        struct model_config *config)
{
    const json_t *object = NULL;
    struct config_reader layout;

    if (rope->status == STATUS_OK)
        rope->status = json_get_object(reader->json, "gguf_rope", reader->what, &object,
                                       reader->err);
    if (rope->status != STATUS_OK || object == NULL)
        return;
    layout = (struct config_reader){ object, reader->what, reader->err, STATUS_OK };
    config->rope_interleaved = model__read_bool(&layout, "interleaved", false);
    if (layout.status == STATUS_OK)
        divide_frequencies(&layout, config);
    rope->status = layout.status;
}

static void check_frequencies(struct config_reader *rope, const struct model_config *config)
{
    for (uint32_t i = 0; i < config->rope_pair_count; i++)
        if (!isfinite(config->rope_frequencies[i]) || !isfinite(config->rope_long_frequencies[i]))
            model__read_refuse(rope, "frequency %u of the rope is not finite", (unsigned)i);
}

/* How many pairs of a head's pair_count are rotated. */
static uint32_t rotated_pairs(struct config_reader *rope, const struct rope_kind *kind,
                              bool may_be_partial, uint32_t pair_count)
{
    const double wanted = 2.0 * pair_count * kind->partial;
    const uint32_t count = (uint32_t)(wanted + 1e-6); /* a GGUF file's is a quotient */

    if (kind->partial != 1.0 && !may_be_partial)
        model__read_refuse(rope, "\"partial_rotary_factor\" is %g, this architecture has 1",
                           kind->partial);
    else if (count < 2 || count % 2 != 0)
        model__read_refuse(rope, "\"partial_rotary_factor\" %g has %u elements of a head rotated, "
                           "which must be even and 2 or more", kind->partial, count);
    return count / 2;
}

void model__read_rope(struct config_reader *reader, uint32_t pair_count,
                      const struct rope_missing *missing, struct model_config *config,
                      double *scaling_out)
{
    const json_t *object = rope_object(reader, missing->by_layer ? FULL : NULL);
    json_t *empty = object == NULL ? json_object() : NULL;
    struct config_reader rope = { object != NULL ? object : empty, reader->what, reader->err,
                                  reader->status };
    struct rope_kind kind = { .name = "default", .theta = missing->theta,
                              .partial = missing->partial == 0.0 ? 1.0 : missing->partial };
    double mscale;

    config->rope_scale = 1.0f;
    read_kind(reader, &rope, config, &kind);
    config->rope_pair_count = rotated_pairs(&rope, &kind, missing->partial != 0.0, pair_count);
    if (rope.status == STATUS_OK)
        fill_kind(&rope, &kind, config);
    read_layout(reader, &rope, config);
    if (rope.status == STATUS_OK)
        check_frequencies(&rope, config);
    if (rope.status == STATUS_OK && scaling_out != NULL) {
        mscale = model__read_double(&rope, "mscale_all_dim", -1e3, 1e3, 0.0);
        mscale = mscale != 0.0 && strcmp(kind.name, "default") != 0
                     ? yarn_mscale(kind.factor, mscale) : 1.0;
        *scaling_out = mscale * mscale;
    }
    if (reader->status == STATUS_OK)
        reader->status = rope.status;
    json_decref(empty);
}

void model__read_sliding_rope(struct config_reader *reader, double theta_missing,
                              struct model_config *config)
{
    double theta = model__read_double(reader, "rope_local_base_freq", 1e-3, 1e15, theta_missing);
    const json_t *all = NULL, *object = NULL;
    struct config_reader rope;

    if (reader->status == STATUS_OK)
        reader->status = json_get_object(reader->json, "rope_parameters", reader->what, &all,
                                         reader->err);
    if (reader->status == STATUS_OK && all != NULL)
        reader->status = json_get_object(all, SLIDING, reader->what, &object, reader->err);
    if (reader->status == STATUS_OK && object != NULL) {
        rope = (struct config_reader){ object, reader->what, reader->err, STATUS_OK };
        theta = model__read_double(&rope, "rope_theta", 1e-3, 1e15, theta);
        if (strcmp(model__read_string(&rope, "rope_type", "default"), "default") != 0)
            model__read_refuse(&rope, "the rope of layers with a window is not of the kind "
                               "\"default\", which is the only one that is built");
        reader->status = rope.status;
    }
    config->has_sliding_rope = true;
    for (uint32_t i = 0; i < config->rope_pair_count; i++) {
        config->rope_sliding_frequencies[i] =
            1.0f / angular_step(theta, i, config->rope_pair_count);
        if (!isfinite(config->rope_sliding_frequencies[i]))
            model__read_refuse(reader, "frequency %u of the rope of layers with a window is not "
                               "finite", i);
    }
}
