/* fleet/request_message.c - a request and a piece of its answer as messages; see message.h.
 *
 * Sampling parameters travel under SGLang's names, so that the engine's own reader checks them
 * again where they arrive. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "fleet/message.h"

#define WHAT "a message between ranks"

static json_t *ids_json(const int32_t *ids, size_t count)
{
    json_t *list = json_array();

    for (size_t i = 0; i < count; i++)
        (void)json_array_append_new(list, json_integer(ids[i]));
    return list;
}

/* *ids_out is the caller's to free; NULL when there are none. */
static enum status ids_read(const json_t *json, const char *key, int32_t **ids_out,
                            size_t *count_out, struct err *err)
{
    const json_t *list = NULL;
    enum status st = json_get_array(json, key, WHAT, &list, err);
    const size_t count = json_array_size(list);
    int32_t *ids = NULL;

    if (st != STATUS_OK)
        return st;
    if (count > 0)
        ids = calloc(count, sizeof(*ids));
    if (count > 0 && ids == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu ids", count);
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_array_get(list, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) > INT32_MAX) {
            free(ids);
            return err_set(err, STATUS_BAD_INPUT, WHAT ": \"%s\"[%zu] is not an id", key, i);
        }
        ids[i] = (int32_t)json_integer_value(id);
    }
    *ids_out = ids;
    *count_out = count;
    return STATUS_OK;
}

/* -- submit ------------------------------------------------------------------------------------ */

static json_t *params_json(const struct sampling_params *params)
{
    json_t *stop = json_array();
    json_t *json;

    for (size_t i = 0; i < params->stop_count; i++)
        (void)json_array_append_new(stop, json_string(params->stop[i]));
    json = json_pack("{s:I, s:f, s:f, s:I, s:f, s:f, s:f, s:f, s:b, s:b, s:b, s:o, s:o}",
                     "min_new_tokens", (json_int_t)params->min_new_tokens,
                     "temperature", params->temperature, "top_p", params->top_p,
                     "top_k", (json_int_t)params->top_k, "min_p", params->min_p,
                     "frequency_penalty", params->frequency_penalty,
                     "presence_penalty", params->presence_penalty,
                     "repetition_penalty", params->repetition_penalty,
                     "ignore_eos", (int)params->ignore_eos,
                     "skip_special_tokens", (int)params->skip_special_tokens,
                     "no_stop_trim", (int)params->no_stop_trim, "stop", stop,
                     "stop_token_ids", ids_json(params->stop_ids, params->stop_id_count));
    if (json != NULL)
        (void)json_object_set_new(json, "max_new_tokens",
                                  params->max_new_tokens == SAMPLING_NEW_TOKENS_ALL
                                      ? json_null()
                                      : json_integer(params->max_new_tokens));
    return json;
}

json_t *fleet__submit_json(uint64_t id, const struct engine_request *request)
{
    json_t *json = fleet__message_id(FLEET__SUBMIT, id);

    if (json == NULL)
        return NULL;
    (void)json_object_set_new(json, "ids", ids_json(request->prompt_ids, request->prompt_count));
    (void)json_object_set_new(json, "params", params_json(request->params));
    (void)json_object_set_new(json, "stream", json_boolean(request->token_by_token));
    if (request->params->wants_logprobs)
        (void)json_object_set_new(json, "logprobs",
                                  json_integer(request->params->top_logprob_count));
    if (request->params->has_seed)
        (void)json_object_set_new(json, "seed", json_integer((json_int_t)request->params->seed));
    return json;
}

enum status fleet__submit_read(const json_t *json, struct fleet__submit *submit_out,
                               struct err *err)
{
    struct fleet__submit submit = { 0 };
    const json_t *params = NULL;
    int64_t seed = 0;
    int64_t top_count = -1;
    enum status st = fleet__id_read(json, &submit.id, err);

    sampling_params_init(&submit.params);
    if (st == STATUS_OK)
        st = json_get_object(json, "params", WHAT, &params, err);
    if (st == STATUS_OK)
        st = sampling_params_read(&submit.params, params, err);
    if (st == STATUS_OK)
        st = json_get_bool(json, "stream", WHAT, &submit.token_by_token, err);
    if (st == STATUS_OK)
        st = json_get_int(json, "seed", WHAT, INT64_MIN, INT64_MAX, &seed, err);
    if (st == STATUS_OK)
        st = json_get_int(json, "logprobs", WHAT, 0, ENGINE_TOP_LOGPROBS_MAX, &top_count, err);
    if (st == STATUS_OK)
        st = ids_read(json, "ids", &submit.ids, &submit.id_count, err);
    if (st != STATUS_OK)
        return st;
    submit.params.wants_logprobs = top_count >= 0;
    submit.params.top_logprob_count = top_count >= 0 ? (uint32_t)top_count : 0;
    submit.params.has_seed = json_is_integer(json_object_get(json, "seed"));
    submit.params.seed = (uint64_t)seed;
    *submit_out = submit;
    return STATUS_OK;
}

void fleet__submit_deinit(struct fleet__submit *submit)
{
    free(submit->ids);
    submit->ids = NULL;
}

/* -- output ------------------------------------------------------------------------------------ */

/* Infinities have no JSON. */
static json_t *logprob_json(float logprob)
{
    return json_real(logprob > -1e30f && logprob < 1e30f ? (double)logprob : -1e30);
}

/* [[logprob, id, logprob, id, logprob, ...], ...] */
static json_t *logprobs_json(const struct token_logprobs *logprobs, size_t count)
{
    json_t *list = json_array();

    for (size_t i = 0; i < count; i++) {
        json_t *one = json_array();

        (void)json_array_append_new(one, logprob_json(logprobs[i].logprob));
        for (uint32_t k = 0; k < logprobs[i].top_count; k++) {
            (void)json_array_append_new(one, json_integer(logprobs[i].top[k].id));
            (void)json_array_append_new(one, logprob_json(logprobs[i].top[k].logprob));
        }
        (void)json_array_append_new(list, one);
    }
    return list;
}

static bool logprobs_of(const json_t *list, struct token_logprobs *out)
{
    const size_t size = json_array_size(list);

    if (size % 2 != 1 || size / 2 > ENGINE_TOP_LOGPROBS_MAX ||
        !json_is_real(json_array_get(list, 0)))
        return false;
    out->logprob = (float)json_real_value(json_array_get(list, 0));
    out->top_count = (uint32_t)(size / 2);
    for (uint32_t k = 0; k < out->top_count; k++) {
        const json_t *id = json_array_get(list, 2 * (size_t)k + 1);
        const json_t *logprob = json_array_get(list, 2 * (size_t)k + 2);

        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) > INT32_MAX || !json_is_real(logprob))
            return false;
        out->top[k].id = (int32_t)json_integer_value(id);
        out->top[k].logprob = (float)json_real_value(logprob);
    }
    return true;
}

/* As many as there are ids; NULL when there are none at all. */
static enum status logprobs_read(const json_t *json, size_t id_count,
                                 struct token_logprobs **out, struct err *err)
{
    const json_t *list = NULL;
    struct token_logprobs *read;
    enum status st = json_get_array(json, "logprobs", WHAT, &list, err);

    if (st != STATUS_OK || list == NULL)
        return st;
    if (json_array_size(list) != id_count)
        return err_set(err, STATUS_BAD_INPUT, WHAT ": %zu log probabilities of %zu ids",
                       json_array_size(list), id_count);
    read = calloc(id_count + 1, sizeof(*read));
    if (read == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu log probabilities", id_count);
    for (size_t i = 0; i < id_count; i++) {
        if (!logprobs_of(json_array_get(list, i), &read[i])) {
            free(read);
            return err_set(err, STATUS_BAD_INPUT, WHAT ": \"logprobs\"[%zu] makes no sense", i);
        }
    }
    *out = read;
    return STATUS_OK;
}

json_t *fleet__output_json(uint64_t id, const struct engine_output *output)
{
    json_t *json = fleet__message_id(FLEET__OUTPUT, id);

    if (json == NULL)
        return NULL;
    if (output->text_size > 0)
        (void)json_object_set_new(json, "text", fleet__text_json(output->text, output->text_size));
    (void)json_object_set_new(json, "ids", ids_json(output->ids, output->id_count));
    if (output->logprobs != NULL)
        (void)json_object_set_new(json, "logprobs",
                                  logprobs_json(output->logprobs, output->id_count));
    (void)json_object_set_new(json, "prompt_tokens",
                              json_integer((json_int_t)output->prompt_token_count));
    (void)json_object_set_new(json, "completion_tokens",
                              json_integer((json_int_t)output->completion_token_count));
    (void)json_object_set_new(json, "queue_s", json_real(output->queue_s));
    (void)json_object_set_new(json, "e2e_s", json_real(output->e2e_s));
    if (output->garbage)
        (void)json_object_set_new(json, "garbage", json_true());
    if (output->weight_version != NULL)
        (void)json_object_set_new(json, "weight_version",
                                  fleet__text_json(output->weight_version,
                                                   strlen(output->weight_version)));
    if (output->finish == FINISH_NONE)
        return json;
    (void)json_object_set_new(json, "finish", json_integer(output->finish));
    (void)json_object_set_new(json, "matched_id", json_integer(output->matched_id));
    if (output->matched_text != NULL)
        (void)json_object_set_new(json, "matched_text",
                                  fleet__text_json(output->matched_text,
                                                   strlen(output->matched_text)));
    if (output->finish == FINISH_ABORT) {
        (void)json_object_set_new(json, "status", json_integer(output->status));
        (void)json_object_set_new(json, "message",
                                  fleet__text_json(output->message, strlen(output->message)));
    }
    return json;
}

/* What a last piece has beside the others. */
static enum status ending_read(const json_t *json, struct engine_output *output, struct err *err)
{
    int64_t finish = FINISH_NONE, matched = -1, status = STATUS_OK;
    enum status st = json_get_int(json, "finish", WHAT, FINISH_NONE, FINISH_ABORT, &finish, err);

    if (st == STATUS_OK)
        st = json_get_int(json, "matched_id", WHAT, -1, INT32_MAX, &matched, err);
    if (st == STATUS_OK)
        st = json_get_string(json, "matched_text", WHAT, &output->matched_text, err);
    if (st == STATUS_OK)
        st = json_get_int(json, "status", WHAT, STATUS_OK, STATUS_CANCELED, &status, err);
    if (st == STATUS_OK)
        st = json_get_string(json, "message", WHAT, &output->message, err);
    if (st == STATUS_OK && finish == FINISH_STOP && output->matched_text == NULL)
        st = err_set(err, STATUS_BAD_INPUT, WHAT ": a stop without its text");
    if (st != STATUS_OK)
        return st;
    output->finish = (enum finish_reason)finish;
    output->matched_id = (int32_t)matched;
    output->status = (enum status)status;
    if (output->finish == FINISH_ABORT && output->status == STATUS_OK)
        output->status = STATUS_PEER;
    return STATUS_OK;
}

enum status fleet__output_read(const json_t *json, struct fleet__output *output_out,
                               struct err *err)
{
    struct fleet__output read = { .output = { .message = "", .text = "", .matched_id = -1 } };
    struct engine_output *output = &read.output;
    const json_t *text = json_object_get(json, "text");
    int64_t prompt = 0, completion = 0;
    enum status st = fleet__id_read(json, &read.id, err);

    if (st == STATUS_OK && text != NULL && !json_is_string(text))
        st = err_set(err, STATUS_BAD_INPUT, WHAT ": \"text\" is %s", json_kind(text));
    if (st == STATUS_OK && text != NULL) { /* may hold a NUL, which json_get_string refuses */
        output->text = json_string_value(text);
        output->text_size = json_string_length(text);
    }
    if (st == STATUS_OK)
        st = json_get_int(json, "prompt_tokens", WHAT, 0, INT64_MAX, &prompt, err);
    if (st == STATUS_OK)
        st = json_get_int(json, "completion_tokens", WHAT, 0, INT64_MAX, &completion, err);
    if (st == STATUS_OK)
        st = json_get_double(json, "queue_s", WHAT, 0, 1e12, &output->queue_s, err);
    if (st == STATUS_OK)
        st = json_get_double(json, "e2e_s", WHAT, 0, 1e12, &output->e2e_s, err);
    if (st == STATUS_OK)
        st = json_get_bool(json, "garbage", WHAT, &output->garbage, err);
    if (st == STATUS_OK)
        st = json_get_string(json, "weight_version", WHAT, &output->weight_version, err);
    if (st == STATUS_OK)
        st = ending_read(json, output, err);
    if (st == STATUS_OK)
        st = ids_read(json, "ids", &read.ids, &output->id_count, err);
    if (st == STATUS_OK)
        st = logprobs_read(json, output->id_count, &read.logprobs, err);
    if (st != STATUS_OK) {
        free(read.ids);
        return st;
    }
    output->ids = read.ids;
    output->logprobs = read.logprobs;
    output->prompt_token_count = (uint64_t)prompt;
    output->completion_token_count = (uint64_t)completion;
    *output_out = read;
    return STATUS_OK;
}

void fleet__output_deinit(struct fleet__output *output)
{
    free(output->ids);
    free(output->logprobs);
    output->ids = NULL;
    output->logprobs = NULL;
}
