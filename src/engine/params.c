/* engine/params.c - SGLang's sampling parameters: names, defaults, ranges.
 *
 * The names are those of SamplingParams in SGLang's python/sglang/srt/sampling/sampling_params.py.
 * What is wrong is refused by name: a field that nobody knows with the nearest that exists, a
 * field of SGLang's that this program can't do with a sentence that says so. As there, null means
 * the default, but for max_new_tokens, where it means as many as fit. */
#include "engine/engine.h"

#include <float.h>
#include <inttypes.h>
#include <string.h>

#include "base/json.h"
#include "base/nearest.h"
#include "base/utf8.h"

#define WHAT "sampling_params"
#define NAME_SHOWN_BYTES_MAX 64 /* of an unknown name, in the message */

void sampling_params_init(struct sampling_params *params)
{
    *params = (struct sampling_params){
        .max_new_tokens = 128,
        .temperature = 1,
        .top_p = 1,
        .top_k = -1,
        .repetition_penalty = 1,
        .skip_special_tokens = true,
    };
}

/* -- reading ----------------------------------------------------------------------------------- */

static const char *const known[] = {
    "max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k", "min_p",
    "frequency_penalty", "presence_penalty", "repetition_penalty", "stop", "stop_token_ids",
    "ignore_eos", "skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim", "n",
    "seed", "sampling_seed",
};

static const char *const unsupported[] = {
    "stop_regex", "json_schema", "regex", "ebnf", "structural_tag", "custom_params",
    "stream_interval", "logit_bias",
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static bool is_in(const char *name, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return false;
}

static enum status unknown_name(const char *name, struct err *err)
{
    size_t size = strlen(name);

    if (size > NAME_SHOWN_BYTES_MAX)
        size = NAME_SHOWN_BYTES_MAX - utf8_incomplete_tail(name, NAME_SHOWN_BYTES_MAX);
    return err_set(err, STATUS_BAD_INPUT, WHAT ": there is no \"%.*s\"; the nearest name is \"%s\"",
                   (int)size, name, nearest_name(name, known, COUNT(known)));
}

static enum status check_names(const json_t *json, struct err *err)
{
    const char *key;
    const json_t *value;

    json_object_foreach((json_t *)json, key, value) {
        if (is_in(key, known, COUNT(known)))
            continue;
        if (!is_in(key, unsupported, COUNT(unsupported)))
            return unknown_name(key, err);
        if (!json_is_null(value))
            return err_set(err, STATUS_BAD_INPUT,
                           WHAT ": \"%s\" is not supported by this server; leave it out or "
                           "send null", key);
    }
    return STATUS_OK;
}

static enum status read_stop_string(const json_t *value, struct sampling_params *params,
                                    struct err *err)
{
    if (!json_is_string(value))
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": \"stop\"[%zu] is %s, a string is wanted", params->stop_count,
                       json_kind(value));
    if (strlen(json_string_value(value)) != json_string_length(value))
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": \"stop\"[%zu] has a NUL character inside", params->stop_count);
    if (params->stop_count == ENGINE_STOP_STRINGS_MAX)
        return err_set(err, STATUS_BAD_INPUT, WHAT ": \"stop\" has more than %d strings",
                       ENGINE_STOP_STRINGS_MAX);
    params->stop[params->stop_count++] = json_string_value(value);
    return STATUS_OK;
}

static enum status read_stop(const json_t *json, struct sampling_params *params, struct err *err)
{
    const json_t *stop = json_object_get(json, "stop");
    enum status st = STATUS_OK;

    if (stop == NULL)
        return STATUS_OK;
    params->stop_count = 0;
    if (json_is_null(stop))
        return STATUS_OK;
    if (json_is_string(stop))
        return read_stop_string(stop, params, err);
    if (!json_is_array(stop))
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": \"stop\" is %s, a string or an array of strings is wanted",
                       json_kind(stop));
    for (size_t i = 0; i < json_array_size(stop) && st == STATUS_OK; i++)
        st = read_stop_string(json_array_get(stop, i), params, err);
    return st;
}

static enum status read_stop_ids(const json_t *json, struct sampling_params *params,
                                 struct err *err)
{
    const json_t *ids = json_object_get(json, "stop_token_ids");

    if (ids == NULL)
        return STATUS_OK;
    params->stop_id_count = 0;
    if (json_is_null(ids))
        return STATUS_OK;
    if (!json_is_array(ids))
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": \"stop_token_ids\" is %s, an array of integers is wanted",
                       json_kind(ids));
    if (json_array_size(ids) > ENGINE_STOP_IDS_MAX)
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": \"stop_token_ids\" has %zu ids, at most %d are taken",
                       json_array_size(ids), ENGINE_STOP_IDS_MAX);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) > INT32_MAX)
            return err_set(err, STATUS_BAD_INPUT,
                           WHAT ": \"stop_token_ids\"[%zu] is not an integer from 0 to %" PRId32,
                           i, INT32_MAX);
        params->stop_ids[params->stop_id_count++] = (int32_t)json_integer_value(id);
    }
    return STATUS_OK;
}

static enum status read_seed(const json_t *json, struct sampling_params *params, struct err *err)
{
    static const char *const names[] = { "seed", "sampling_seed" };
    bool found = false;

    for (size_t i = 0; i < COUNT(names); i++) {
        const json_t *value = json_object_get(json, names[i]);
        int64_t seed = 0;
        enum status st;

        if (value == NULL || json_is_null(value))
            continue;
        st = json_get_int(json, names[i], WHAT, INT64_MIN, INT64_MAX, &seed, err);
        if (st != STATUS_OK)
            return st;
        if (found && params->seed != (uint64_t)seed)
            return err_set(err, STATUS_BAD_INPUT,
                           WHAT ": \"seed\" and \"sampling_seed\" differ; send one of them");
        found = true;
        params->has_seed = true;
        params->seed = (uint64_t)seed;
    }
    return STATUS_OK;
}

static enum status read_integers(const json_t *json, struct sampling_params *params,
                                 struct err *err)
{
    int64_t n = 1;
    enum status st;

    if (json_is_null(json_object_get(json, "max_new_tokens")))
        params->max_new_tokens = SAMPLING_NEW_TOKENS_ALL;
    st = json_get_int(json, "max_new_tokens", WHAT, INT64_MIN, INT64_MAX, &params->max_new_tokens,
                      err);
    if (st == STATUS_OK)
        st = json_get_int(json, "min_new_tokens", WHAT, INT64_MIN, INT64_MAX,
                          &params->min_new_tokens, err);
    if (st == STATUS_OK)
        st = json_get_int(json, "top_k", WHAT, INT64_MIN, INT64_MAX, &params->top_k, err);
    if (st == STATUS_OK)
        st = json_get_int(json, "n", WHAT, INT64_MIN, INT64_MAX, &n, err);
    if (st == STATUS_OK && n != 1)
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": \"n\" is %" PRId64 ", only 1 is supported; send the prompt as "
                       "often as answers are wanted", n);
    return st;
}

static enum status read_numbers(const json_t *json, struct sampling_params *params,
                                struct err *err)
{
    const struct {
        const char *name;
        double *out;
    } fields[] = {
        { "temperature", &params->temperature },
        { "top_p", &params->top_p },
        { "min_p", &params->min_p },
        { "frequency_penalty", &params->frequency_penalty },
        { "presence_penalty", &params->presence_penalty },
        { "repetition_penalty", &params->repetition_penalty },
    };
    enum status st = STATUS_OK;

    for (size_t i = 0; i < COUNT(fields) && st == STATUS_OK; i++)
        st = json_get_double(json, fields[i].name, WHAT, -DBL_MAX, DBL_MAX, fields[i].out, err);
    return st;
}

static enum status read_bools(const json_t *json, struct sampling_params *params, struct err *err)
{
    bool spaces; /* of no effect on tokenizer.json, which joins tokens by its own decoder */
    enum status st = json_get_bool(json, "ignore_eos", WHAT, &params->ignore_eos, err);

    if (st == STATUS_OK)
        st = json_get_bool(json, "skip_special_tokens", WHAT, &params->skip_special_tokens, err);
    if (st == STATUS_OK)
        st = json_get_bool(json, "no_stop_trim", WHAT, &params->no_stop_trim, err);
    if (st == STATUS_OK)
        st = json_get_bool(json, "spaces_between_special_tokens", WHAT, &spaces, err);
    return st;
}

enum status sampling_params_read(struct sampling_params *params, const json_t *json,
                                 struct err *err)
{
    struct sampling_params read = *params;
    enum status st;

    if (json == NULL || json_is_null(json))
        return STATUS_OK;
    if (!json_is_object(json))
        return err_set(err, STATUS_BAD_INPUT, WHAT " is %s, an object is wanted",
                       json_kind(json));
    st = check_names(json, err);
    if (st == STATUS_OK)
        st = read_integers(json, &read, err);
    if (st == STATUS_OK)
        st = read_numbers(json, &read, err);
    if (st == STATUS_OK)
        st = read_bools(json, &read, err);
    if (st == STATUS_OK)
        st = read_stop(json, &read, err);
    if (st == STATUS_OK)
        st = read_stop_ids(json, &read, err);
    if (st == STATUS_OK)
        st = read_seed(json, &read, err);
    if (st == STATUS_OK)
        *params = read;
    return st;
}

/* -- checking ---------------------------------------------------------------------------------- */

static enum status check_number(const char *name, double value, bool is_good, const char *wanted,
                                struct err *err)
{
    if (is_good)
        return STATUS_OK;
    return err_set(err, STATUS_BAD_INPUT, WHAT ": \"%s\" is %g, it must be %s", name, value,
                   wanted);
}

static enum status check_integers(const struct sampling_params *params, struct err *err)
{
    if (params->max_new_tokens < 0)
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": \"max_new_tokens\" is %" PRId64 ", it must be 0 or more",
                       params->max_new_tokens);
    if (params->min_new_tokens < 0 || params->min_new_tokens > params->max_new_tokens)
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": \"min_new_tokens\" is %" PRId64 ", it must be from 0 to "
                       "max_new_tokens, %" PRId64, params->min_new_tokens,
                       params->max_new_tokens);
    if (params->top_logprob_count > ENGINE_TOP_LOGPROBS_MAX)
        return err_set(err, STATUS_BAD_INPUT, WHAT ": %" PRIu32 " top log probabilities, at most "
                       "%d are told", params->top_logprob_count, ENGINE_TOP_LOGPROBS_MAX);
    if (params->top_k < 1 && params->top_k != -1)
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": \"top_k\" is %" PRId64 ", it must be 1 or more, or -1 for all",
                       params->top_k);
    return STATUS_OK;
}

static enum status check_stops(const struct sampling_params *params, struct err *err)
{
    if (params->stop_count > ENGINE_STOP_STRINGS_MAX)
        return err_set(err, STATUS_BAD_INPUT, WHAT ": \"stop\" has %zu strings, at most %d fit",
                       params->stop_count, ENGINE_STOP_STRINGS_MAX);
    if (params->stop_id_count > ENGINE_STOP_IDS_MAX)
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": \"stop_token_ids\" has %zu ids, at most %d fit",
                       params->stop_id_count, ENGINE_STOP_IDS_MAX);
    for (size_t i = 0; i < params->stop_count; i++) {
        const size_t size = strlen(params->stop[i]);
        if (size == 0 || size > ENGINE_STOP_STRING_BYTES_MAX)
            return err_set(err, STATUS_BAD_INPUT,
                           WHAT ": \"stop\"[%zu] has %zu bytes, it must have 1 to %d", i, size,
                           ENGINE_STOP_STRING_BYTES_MAX);
        if (!utf8_is_valid(params->stop[i], size))
            return err_set(err, STATUS_BAD_INPUT, WHAT ": \"stop\"[%zu] is not valid UTF-8", i);
    }
    for (size_t i = 0; i < params->stop_id_count; i++)
        if (params->stop_ids[i] < 0)
            return err_set(err, STATUS_BAD_INPUT,
                           WHAT ": \"stop_token_ids\"[%zu] is %" PRId32 ", it must be 0 or more",
                           i, params->stop_ids[i]);
    return STATUS_OK;
}

enum status sampling_params_check(const struct sampling_params *params, struct err *err)
{
    const double t = params->temperature, top_p = params->top_p, min_p = params->min_p;
    const double frequency = params->frequency_penalty, presence = params->presence_penalty;
    const double repetition = params->repetition_penalty;
    enum status st = check_integers(params, err);

    /* Comparisons are false for NaN. */
    if (st == STATUS_OK)
        st = check_number("temperature", t, t >= 0 && t <= DBL_MAX, "0 or more", err);
    if (st == STATUS_OK)
        st = check_number("top_p", top_p, top_p > 0 && top_p <= 1, "above 0 and at most 1", err);
    if (st == STATUS_OK)
        st = check_number("min_p", min_p, min_p >= 0 && min_p <= 1, "from 0 to 1", err);
    if (st == STATUS_OK)
        st = check_number("frequency_penalty", frequency, frequency >= -2 && frequency <= 2,
                          "from -2 to 2", err);
    if (st == STATUS_OK)
        st = check_number("presence_penalty", presence, presence >= -2 && presence <= 2,
                          "from -2 to 2", err);
    if (st == STATUS_OK)
        st = check_number("repetition_penalty", repetition, repetition > 0 && repetition <= 2,
                          "above 0 and at most 2; 1 is none", err);
    if (st == STATUS_OK)
        st = check_stops(params, err);
    return st;
}
