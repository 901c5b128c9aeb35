/* model/config.c - see config.h. */
#include "model/config.h"

#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "model/internal.h"

uint32_t model__read_count_or(struct config_reader *reader, const char *key, uint32_t min,
                              uint32_t max, uint32_t fallback)
{
    int64_t value = fallback;

    if (reader->status == STATUS_OK)
        reader->status = json_get_int(reader->json, key, reader->what, min, max, &value,
                                      reader->err);
    return (uint32_t)value;
}

uint32_t model__read_count(struct config_reader *reader, const char *key, uint32_t max)
{
    int64_t value = 1;

    if (reader->status == STATUS_OK)
        reader->status = json_get_int_required(reader->json, key, reader->what, 1, max, &value,
                                               reader->err);
    return (uint32_t)value;
}

bool model__read_bool(struct config_reader *reader, const char *key, bool fallback)
{
    bool value = fallback;

    if (reader->status == STATUS_OK)
        reader->status = json_get_bool(reader->json, key, reader->what, &value, reader->err);
    return value;
}

double model__read_double(struct config_reader *reader, const char *key, double min, double max,
                          double fallback)
{
    double value = fallback;

    if (reader->status == STATUS_OK)
        reader->status = json_get_double(reader->json, key, reader->what, min, max, &value,
                                         reader->err);
    return value;
}

const char *model__read_string(struct config_reader *reader, const char *key, const char *fallback)
{
    const char *value = fallback;

    if (reader->status == STATUS_OK)
        reader->status = json_get_string(reader->json, key, reader->what, &value, reader->err);
    return value;
}

bool model__read_has(const struct config_reader *reader, const char *key)
{
    const json_t *value = json_object_get(reader->json, key);

    return value != NULL && !json_is_null(value);
}

bool model__read_is_null(const struct config_reader *reader, const char *key)
{
    return json_is_null(json_object_get(reader->json, key));
}

void model__read_refuse(struct config_reader *reader, const char *format, ...)
{
    char sentence[512];
    va_list args;

    if (reader->status != STATUS_OK)
        return;
    va_start(args, format);
    (void)vsnprintf(sentence, sizeof(sentence), format, args);
    va_end(args);
    reader->status = err_set(reader->err, STATUS_BAD_INPUT, "%s: %s", reader->what, sentence);
}

bool model__config_layer_has_experts(const struct model_config *config, uint32_t layer)
{
    assert(layer < config->layer_count);
    return config->has_experts[layer];
}

/* "llama, mistral, ..." */
static void list_model_types(char *out, size_t out_size)
{
    const char *const *names = model_architectures();
    size_t used = 0;

    for (size_t i = 0; names[i] != NULL && used < out_size; i++)
        used += (size_t)snprintf(out + used, out_size - used, "%s%s", i == 0 ? "" : ", ",
                                 model__arch_find(names[i], NULL)->model_type);
}

static void read_architecture(struct config_reader *reader, struct model_config *config)
{
    const json_t *list = NULL;
    const char *architecture = NULL;
    const char *model_type = model__read_string(reader, "model_type", NULL);
    char known[384];

    if (reader->status == STATUS_OK)
        reader->status = json_get_array(reader->json, "architectures", reader->what, &list,
                                        reader->err);
    if (reader->status != STATUS_OK)
        return;
    if (json_array_size(list) > 0) {
        architecture = json_string_value(json_array_get(list, 0));
        if (architecture == NULL) {
            model__read_refuse(reader, "\"architectures\" holds %s, a string is wanted",
                               json_kind(json_array_get(list, 0)));
            return;
        }
    }
    config->arch = model__arch_find(architecture, model_type);
    if (config->arch == NULL) {
        list_model_types(known, sizeof(known));
        if (architecture == NULL && model_type == NULL)
            model__read_refuse(reader, "neither \"architectures\" nor \"model_type\" says what "
                               "the model is; these run: %s", known);
        else
            model__read_refuse(reader, "%s \"%.64s\" is not known; these run: %s",
                               architecture != NULL ? "the architecture" : "the model type",
                               architecture != NULL ? architecture : model_type, known);
        return;
    }
    (void)snprintf(config->architecture, sizeof(config->architecture), "%s",
                   config->arch->architecture);
    (void)snprintf(config->model_type, sizeof(config->model_type), "%s",
                   config->arch->model_type);
}

static void refuse_what_is_not_built(struct config_reader *reader,
                                     const struct model_config *config)
{
    const char *act = model__read_string(reader, "hidden_act", "silu");

    if (reader->status != STATUS_OK)
        return;
    assert(config->arch != NULL);
    if (!config->arch->reads_activation &&
        strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0)
        model__read_refuse(reader, "\"hidden_act\" is \"%.32s\", only \"silu\" is built", act);
}

/* One id, a list of ids, or null. Ids outside the vocabulary can never be produced and are left
 * out. */
static void read_eos(struct config_reader *reader, struct model_config *config)
{
    const json_t *value = json_object_get(reader->json, "eos_token_id");
    const size_t count = json_is_array(value) ? json_array_size(value) : 1;

    if (value == NULL || json_is_null(value))
        return;
    if (count > MODEL_EOS_MAX) {
        model__read_refuse(reader, "\"eos_token_id\" lists %zu ids, at most %d are allowed", count,
                           MODEL_EOS_MAX);
        return;
    }
    config->eos_count = 0;
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_is_array(value) ? json_array_get(value, i) : value;

        if (!json_is_integer(id)) {
            model__read_refuse(reader, "\"eos_token_id\" holds %s, integers are wanted",
                               json_kind(id));
            return;
        }
        if (json_integer_value(id) >= 0 && json_integer_value(id) < config->vocab_size)
            config->eos_ids[config->eos_count++] = (int32_t)json_integer_value(id);
    }
}

static void read_special_ids(struct config_reader *reader, struct model_config *config)
{
    int64_t bos = config->bos_id;

    if (reader->status == STATUS_OK)
        reader->status = json_get_int(reader->json, "bos_token_id", reader->what, -1, INT32_MAX,
                                      &bos, reader->err);
    config->bos_id = bos < config->vocab_size ? (int32_t)bos : -1;
    if (reader->status == STATUS_OK)
        read_eos(reader, config);
}

/* What has other parts too has the language model's configuration in one of its own. */
static void enter_text_part(struct config_reader *reader)
{
    const json_t *text = NULL;

    reader->status = json_get_object(reader->json, "text_config", reader->what, &text, reader->err);
    if (reader->status == STATUS_OK && text == NULL)
        model__read_refuse(reader, "there is no \"text_config\"");
    if (reader->status == STATUS_OK)
        reader->json = text;
}

static void read_sizes(struct config_reader *reader, struct model_config *config)
{
    static const struct config_missing none = { 0 };
    const struct config_missing *missing =
        reader->status == STATUS_OK && config->arch->missing != NULL ? config->arch->missing
                                                                     : &none;
    const struct {
        const char *key;
        uint32_t *out;
        uint32_t max, missing;
    } all[] = {
        { "num_hidden_layers", &config->layer_count, CONFIG_LAYERS_MAX, missing->layer_count },
        { "vocab_size", &config->vocab_size, CONFIG_VOCAB_MAX, missing->vocab_size },
        { "hidden_size", &config->hidden_size, CONFIG_HIDDEN_MAX, missing->hidden_size },
        { "num_attention_heads", &config->head_count, CONFIG_HEADS_MAX, missing->head_count },
        { "intermediate_size", &config->ffn_width, CONFIG_FFN_MAX, missing->ffn_width },
        { "max_position_embeddings", &config->context_length, CONFIG_CONTEXT_MAX,
          missing->context_length },
    };

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        *all[i].out = all[i].missing == 0
                          ? model__read_count(reader, all[i].key, all[i].max)
                          : model__read_count_or(reader, all[i].key, 1, all[i].max,
                                                 all[i].missing);
}

enum status model__config_read(const json_t *json, const char *what,
                               struct model_config *config_out, struct err *err)
{
    /* cppcheck-suppress ctuuninitvar; only its address is taken */
    struct config_reader reader = { json, what, err, STATUS_OK };
    struct model_config config = { .bos_id = -1 };

    if (!json_is_object(json))
        return err_set(err, STATUS_BAD_INPUT, "%s: it is %s, an object is wanted", what,
                       json_kind(json));
    read_architecture(&reader, &config);
    refuse_what_is_not_built(&reader, &config);
    if (reader.status == STATUS_OK) {
        assert(config.arch != NULL);
        if (config.arch->is_text_part)
            enter_text_part(&reader);
    }
    read_sizes(&reader, &config);
    config.norm_epsilon = (float)model__read_double(&reader, "rms_norm_eps", 0.0, 1.0, 1e-6);
    config.tied_embeddings = model__read_bool(&reader, "tie_word_embeddings", false);
    config.rope_scale = 1.0f;
    config.embedding_scale = config.residual_scale = config.logits_scale = 1.0f;
    if (reader.status == STATUS_OK) {
        assert(config.arch != NULL);
        config.arch->read_config(&reader, &config);
    }
    read_special_ids(&reader, &config);
    reader.json = json; /* beside a text part there may be such ids too */
    read_special_ids(&reader, &config);
    if (reader.status == STATUS_OK)
        *config_out = config;
    return reader.status;
}

enum status model__config_read_generation(const json_t *json, const char *what,
                                          struct model_config *config, struct err *err)
{
    /* cppcheck-suppress ctuuninitvar; only its address is taken */
    struct config_reader reader = { json, what, err, STATUS_OK };

    if (!json_is_object(json))
        return err_set(err, STATUS_BAD_INPUT, "%s: it is %s, an object is wanted", what,
                       json_kind(json));
    read_special_ids(&reader, config);
    return reader.status;
}
