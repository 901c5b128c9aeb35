/* checkpoint/hf/packed_config.c - "quantization_config" of a config.json: which of the ways to
 * quantise weights that packed.h knows.
 *
 * Lists of modules that are not quantised are not read: what a checkpoint holds of a module says
 * the same. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/json.h"
#include "checkpoint/hf/packed.h"

/* [rows, columns]. */
static enum status read_block(const json_t *object, const char *key, const char *what,
                              struct packed_config *config, struct err *err)
{
    const json_t *size = json_object_get(object, key);
    int64_t sides[2];

    if (size == NULL || json_is_null(size))
        return STATUS_OK;
    if (!json_is_array(size) || json_array_size(size) != 2)
        return err_set(err, STATUS_BAD_INPUT, "%s: \"%s\" is not an array of two numbers", what,
                       key);
    for (size_t i = 0; i < 2; i++) {
        sides[i] = json_integer_value(json_array_get(size, i));
        if (!json_is_integer(json_array_get(size, i)) || sides[i] < 1 || sides[i] > INT32_MAX)
            return err_set(err, STATUS_BAD_INPUT, "%s: \"%s\"[%zu] is not a size", what, key, i);
    }
    if (sides[1] % QUANT_F8_ELEMENTS != 0)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: \"%s\" has blocks of %lld columns; multiples of %d are read", what, key,
                       (long long)sides[1], QUANT_F8_ELEMENTS);
    config->block_rows = (uint64_t)sides[0];
    config->block_columns = (uint64_t)sides[1];
    return STATUS_OK;
}

static enum status read_fp8(const json_t *object, const char *what, struct packed_config *config,
                            struct err *err)
{
    const char *format = "e4m3";
    enum status st = json_get_string(object, "fmt", what, &format, err);

    if (st == STATUS_OK && strcasecmp(format, "e4m3") != 0 && strcmp(format, "float8_e4m3fn") != 0)
        return err_set(err, STATUS_BAD_INPUT, "%s: \"fmt\" is \"%.32s\", only e4m3 is read", what,
                       format);
    config->has_f8 = true;
    return st == STATUS_OK ? read_block(object, "weight_block_size", what, config, err) : st;
}

/* The size of a group, under one of two names; -1 means all columns. */
static enum status read_group(const json_t *object, const char *key, const char *other_key,
                              const char *what, struct packed_config *config, struct err *err)
{
    int64_t size = 128;
    enum status st = json_get_int(object, key, what, -1, INT32_MAX, &size, err);

    if (st == STATUS_OK && json_object_get(object, key) == NULL)
        st = json_get_int(object, other_key, what, -1, INT32_MAX, &size, err);
    if (st != STATUS_OK)
        return st;
    if (size == 0 || (size > 0 && size % PACKED_GROUP != 0))
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: groups of %lld columns; multiples of %d, and -1, are read", what,
                       (long long)size, PACKED_GROUP);
    config->group_size = size < 0 ? 0 : (uint64_t)size;
    return STATUS_OK;
}

/* Four, or eight where there may be eight. */
static enum status read_bits(const json_t *object, const char *key, const char *other_key,
                             const char *what, bool may_be_8, uint32_t *bits_out, struct err *err)
{
    int64_t bits = 4;
    enum status st = json_get_int(object, key, what, 1, 64, &bits, err);

    if (st == STATUS_OK && json_object_get(object, key) == NULL)
        st = json_get_int(object, other_key, what, 1, 64, &bits, err);
    if (st == STATUS_OK && bits != 4 && !(may_be_8 && bits == 8))
        st = err_set(err, STATUS_BAD_INPUT, "%s: weights of %lld bits; %s", what, (long long)bits,
                     may_be_8 ? "4 and 8 are read" : "4 are read");
    *bits_out = (uint32_t)bits;
    return st;
}

static enum status read_gptq(const json_t *object, const char *what, struct packed_config *config,
                             struct err *err)
{
    const char *format = "gptq";
    bool marlin = false;
    enum status st = read_bits(object, "bits", "wbits", what, true, &config->bits, err);

    config->symmetric = true;
    if (st == STATUS_OK)
        st = read_group(object, "group_size", "groupsize", what, config, err);
    if (st == STATUS_OK)
        st = json_get_string(object, "checkpoint_format", what, &format, err);
    if (st == STATUS_OK)
        st = json_get_bool(object, "is_marlin_format", what, &marlin, err);
    if (st == STATUS_OK)
        st = json_get_bool(object, "sym", what, &config->symmetric, err);
    if (st != STATUS_OK)
        return st;
    config->zeros_less_one = strcmp(format, "gptq") == 0;
    if (marlin || (!config->zeros_less_one && strcmp(format, "gptq_v2") != 0))
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: \"checkpoint_format\" is \"%.32s\"; gptq and gptq_v2 are read", what,
                       marlin ? "marlin" : format);
    if (config->bits == 8 && !config->symmetric)
        return err_set(err, STATUS_BAD_INPUT, "%s: \"sym\" is false; weights of 8 bits are read "
                       "where all zero points are 128", what);
    config->has_gptq = true;
    config->name = config->zeros_less_one ? "gptq" : "gptq_v2";
    return STATUS_OK;
}

static enum status read_awq(const json_t *object, const char *what, struct packed_config *config,
                            struct err *err)
{
    const char *version = "gemm";
    enum status st = read_bits(object, "bits", "w_bit", what, false, &config->bits, err);

    if (st == STATUS_OK)
        st = read_group(object, "group_size", "q_group_size", what, config, err);
    if (st == STATUS_OK)
        st = json_get_string(object, "version", what, &version, err);
    if (st == STATUS_OK && strcasecmp(version, "gemm") != 0)
        st = err_set(err, STATUS_BAD_INPUT, "%s: \"version\" is \"%.32s\", only gemm is read", what,
                     version);
    config->has_awq = true;
    config->name = "awq";
    return st;
}

/* One of compressed-tensors' groups of modules: how their weights are. */
static enum status read_scheme(const json_t *group, const char *what, struct packed_config *config,
                               struct err *err)
{
    const json_t *weights = NULL;
    const char *type = "int";
    int64_t bits = 8;
    enum status st = json_get_object(group, "weights", what, &weights, err);

    if (st != STATUS_OK || weights == NULL)
        return st;
    st = json_get_string(weights, "type", what, &type, err);
    if (st == STATUS_OK)
        st = json_get_int(weights, "num_bits", what, 1, 64, &bits, err);
    if (st != STATUS_OK)
        return st;
    if (strcmp(type, "float") == 0 && bits == 8) {
        config->has_f8 = true;
        return read_block(weights, "block_structure", what, config, err);
    }
    if (strcmp(type, "int") != 0 || (bits != 8 && bits != 4))
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: weights of type %.32s with %lld bits; int with 8 or 4 and float with 8 "
                       "are read", what, type, (long long)bits);
    config->has_int8 = config->has_int8 || bits == 8;
    config->has_compressed = config->has_compressed || bits == 4;
    return STATUS_OK;
}

/* "format": how the tensors lie; packed numbers of 8 bits and sparse ones are not known. */
static enum status check_formats(const json_t *object, const char *what,
                                 const struct packed_config *config, struct err *err)
{
    static const char *const formats[] = { "pack-quantized", "int-quantized", "float-quantized",
                                           "naive-quantized", "mixed-precision" };
    const json_t *sparsity = json_object_get(object, "sparsity_config");
    const char *format = "naive-quantized", *sparse = "dense";
    size_t i = 0;
    enum status st = json_get_string(object, "format", what, &format, err);

    if (st == STATUS_OK && json_is_object(sparsity))
        st = json_get_string(sparsity, "format", what, &sparse, err);
    if (st != STATUS_OK)
        return st;
    while (i < sizeof(formats) / sizeof(formats[0]) && strcmp(format, formats[i]) != 0)
        i++;
    if (i == sizeof(formats) / sizeof(formats[0]))
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: \"format\" is \"%.32s\"; pack-quantized, int-quantized, "
                       "float-quantized, naive-quantized and mixed-precision are read", what,
                       format);
    if (strcmp(format, "pack-quantized") == 0 && (config->has_int8 || config->has_f8))
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: packed weights of 8 bits; packed ones of 4 bits are read", what);
    if (strcmp(sparse, "dense") != 0)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: \"sparsity_config\" has the format \"%.32s\"; sparse weights are not "
                       "read", what, sparse);
    return STATUS_OK;
}

static enum status read_compressed(const json_t *object, const char *what,
                                   struct packed_config *config, struct err *err)
{
    const json_t *groups = NULL;
    const json_t *group;
    const char *key;
    enum status st = json_get_object(object, "config_groups", what, &groups, err);

    if (st != STATUS_OK)
        return st;
    if (groups == NULL)
        return err_set(err, STATUS_BAD_INPUT, "%s: \"config_groups\" is missing", what);
    json_object_foreach((json_t *)groups, key, group)
    {
        if (!json_is_object(group))
            return err_set(err, STATUS_BAD_INPUT, "%s: \"config_groups\": \"%.32s\" is %s, an "
                           "object is wanted", what, key, json_kind(group));
        st = read_scheme(group, what, config, err);
        if (st != STATUS_OK)
            return st;
    }
    return check_formats(object, what, config, err);
}

static enum status read_method(const json_t *object, const char *what,
                               struct packed_config *config, struct err *err)
{
    const char *method = NULL;
    enum status st = json_get_string(object, "quant_method", what, &method, err);

    if (st != STATUS_OK)
        return st;
    if (method == NULL)
        return err_set(err, STATUS_BAD_INPUT, "%s: \"quant_method\" is missing", what);
    config->quantised = true;
    config->name = "scaled";
    if (strcmp(method, "fp8") == 0 || strcmp(method, "fbgemm_fp8") == 0)
        return read_fp8(object, what, config, err);
    if (strcmp(method, "mxfp4") == 0) {
        config->name = "mxfp4";
        config->has_mxfp4 = true;
        return STATUS_OK;
    }
    if (strcmp(method, "gptq") == 0)
        return read_gptq(object, what, config, err);
    if (strcmp(method, "awq") == 0)
        return read_awq(object, what, config, err);
    if (strcmp(method, "compressed-tensors") == 0)
        return read_compressed(object, what, config, err);
    return err_set(err, STATUS_BAD_INPUT,
                   "%s: \"quant_method\" is \"%.32s\", a way to quantise weights that is not "
                   "known; fp8, fbgemm_fp8, mxfp4, gptq, awq and compressed-tensors are", what,
                   method);
}

enum status packed__config_read(const json_t *config, const char *what,
                                struct packed_config *config_out, struct err *err)
{
    static const char *const keys[] = { "quantization_config", "compression_config" };

    *config_out = (struct packed_config){ .quantised = false };
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        const json_t *object = json_object_get(config, keys[i]);
        char where[512];

        if (object == NULL || json_is_null(object))
            continue;
        if (!json_is_object(object))
            return err_set(err, STATUS_BAD_INPUT, "%s: \"%s\" is %s, an object is wanted", what,
                           keys[i], json_kind(object));
        (void)snprintf(where, sizeof(where), "%s: \"%s\"", what, keys[i]);
        return read_method(object, where, config_out, err);
    }
    return STATUS_OK;
}
