/* server/parse.c - the body of POST /generate: bytes become a request, or a sentence why not.
 *
 *     text              a prompt, or a list of them  \  one of the two
 *     input_ids         ids, or a list of lists      /
 *     sampling_params   an object, or a list of as many as there are prompts (see engine.h)
 *     stream            false; true: server-sent events
 *     rid               a name for the request; for a list of prompts a list of names, or one that
 *                       is made into NAME_0, NAME_1, ...; missing: made up
 *
 * The names and their meaning are those of SGLang's GenerateReqInput (python/sglang/srt/managers/
 * io_struct.py). Its other fields are known by name: those that change nothing here are taken,
 * those that would change the answer are refused unless they say what holds anyway. A name that is
 * not SGLang's either is refused with the nearest that is. */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/json.h"
#include "base/nearest.h"
#include "server/internal.h"

#define WHAT "request"

enum field_use {
    FIELD_READ,     /* by this file */
    FIELD_IGNORED,  /* labels and hints that change no answer */
    FIELD_REFUSED,  /* unless off: null, false, empty, or the number beside it */
};

static const struct field {
    const char *name;
    enum field_use use;
    int64_t off_number;
} fields[] = {
    { "text", FIELD_READ, 0 },
    { "input_ids", FIELD_READ, 0 },
    { "sampling_params", FIELD_READ, 0 },
    { "stream", FIELD_READ, 0 },
    { "rid", FIELD_READ, 0 },
    { "log_metrics", FIELD_IGNORED, 0 },
    { "no_logs", FIELD_IGNORED, 0 },
    { "custom_labels", FIELD_IGNORED, 0 },
    { "session_id", FIELD_IGNORED, 0 },
    { "conversation_id", FIELD_IGNORED, 0 },
    { "routing_key", FIELD_IGNORED, 0 },
    { "extra_key", FIELD_IGNORED, 0 },
    { "cache_salt", FIELD_IGNORED, 0 },
    { "external_trace_header", FIELD_IGNORED, 0 },
    { "received_time", FIELD_IGNORED, 0 },
    { "return_text_in_logprobs", FIELD_IGNORED, 0 },
    { "modalities", FIELD_IGNORED, 0 },
    { "logprob_start_len", FIELD_REFUSED, -1 },
    { "return_logprob", FIELD_REFUSED, 0 },
    { "top_logprobs_num", FIELD_REFUSED, 0 },
    { "token_ids_logprob", FIELD_REFUSED, 0 },
    { "return_sampling_mask", FIELD_REFUSED, 0 },
    { "return_flat_raw_top_logprobs", FIELD_REFUSED, 0 },
    { "return_flat_raw_top_logprobs_b64", FIELD_REFUSED, 0 },
    { "return_hidden_states", FIELD_REFUSED, 0 },
    { "return_routed_experts", FIELD_REFUSED, 0 },
    { "routed_experts_start_len", FIELD_REFUSED, 0 },
    { "return_indexer_topk", FIELD_REFUSED, 0 },
    { "return_bytes", FIELD_REFUSED, 0 },
    { "return_entropy", FIELD_REFUSED, 0 },
    { "return_prompt_token_ids", FIELD_REFUSED, 0 },
    { "input_embeds", FIELD_REFUSED, 0 },
    { "image_data", FIELD_REFUSED, 0 },
    { "video_data", FIELD_REFUSED, 0 },
    { "audio_data", FIELD_REFUSED, 0 },
    { "mm_hashes", FIELD_REFUSED, 0 },
    { "mm_content_hashes", FIELD_REFUSED, 0 },
    { "use_audio_in_video", FIELD_REFUSED, 0 },
    { "video_config", FIELD_REFUSED, 0 },
    { "images_config", FIELD_REFUSED, 0 },
    { "max_dynamic_patch", FIELD_REFUSED, 0 },
    { "min_dynamic_patch", FIELD_REFUSED, 0 },
    { "image_max_dynamic_patch", FIELD_REFUSED, 0 },
    { "video_max_dynamic_patch", FIELD_REFUSED, 0 },
    { "need_wait_for_mm_inputs", FIELD_REFUSED, 0 },
    { "num_items_assigned", FIELD_REFUSED, 0 },
    { "encoder_urls", FIELD_REFUSED, 0 },
    { "session_params", FIELD_REFUSED, 0 },
    { "lora_path", FIELD_REFUSED, 0 },
    { "lora_id", FIELD_REFUSED, 0 },
    { "custom_logit_processor", FIELD_REFUSED, 0 },
    { "positional_embed_overrides", FIELD_REFUSED, 0 },
    { "multi_item_delimiter_indices", FIELD_REFUSED, 0 },
    { "bootstrap_host", FIELD_REFUSED, 0 },
    { "bootstrap_port", FIELD_REFUSED, 0 },
    { "bootstrap_room", FIELD_REFUSED, 0 },
    { "bootstrap_pair_key", FIELD_REFUSED, 0 },
    { "decode_tp_size", FIELD_REFUSED, 0 },
    { "routed_dp_rank", FIELD_REFUSED, 0 },
    { "data_parallel_rank", FIELD_REFUSED, 0 },
    { "disagg_prefill_dp_rank", FIELD_REFUSED, 0 },
    { "kv_router_hint", FIELD_REFUSED, 0 },
    { "http_worker_ipc", FIELD_REFUSED, 0 },
    { "background", FIELD_REFUSED, 0 },
    { "require_reasoning", FIELD_REFUSED, 0 },
    { "max_thinking_tokens", FIELD_REFUSED, 0 },
    { "priority", FIELD_REFUSED, 0 },
};
#define FIELD_COUNT (sizeof(fields) / sizeof(fields[0]))

/* Names that people write beside "sampling_params" instead of inside. */
static const char *const sampling_names[] = {
    "max_new_tokens", "max_tokens", "temperature", "top_p", "top_k", "min_p", "stop",
    "stop_token_ids", "frequency_penalty", "presence_penalty", "repetition_penalty", "ignore_eos",
    "skip_special_tokens", "no_stop_trim", "seed", "sampling_seed", "n",
};

static bool is_off(const json_t *value, int64_t off_number)
{
    size_t index;
    json_t *item;

    switch (json_typeof(value)) {
    case JSON_NULL:
    case JSON_FALSE: return true;
    case JSON_STRING: return json_string_length(value) == 0;
    case JSON_OBJECT: return json_object_size(value) == 0;
    case JSON_INTEGER: return json_integer_value(value) == off_number;
    case JSON_ARRAY:
        json_array_foreach(value, index, item) {
            if (json_is_array(item) ? json_array_size(item) != 0 : !is_off(item, off_number))
                return false;
        }
        return true;
    default: return false;
    }
}

static enum status refuse_unknown(const char *name, struct err *err)
{
    const char *names[FIELD_COUNT];
    const char *nearest;

    for (size_t i = 0; i < sizeof(sampling_names) / sizeof(sampling_names[0]); i++) {
        if (strcmp(name, sampling_names[i]) == 0)
            return err_set(err, STATUS_BAD_INPUT,
                           WHAT ": \"%s\" belongs inside \"sampling_params\"", name);
    }
    for (size_t i = 0; i < FIELD_COUNT; i++)
        names[i] = fields[i].name;
    nearest = nearest_name(name, names, FIELD_COUNT);
    return err_set(err, STATUS_BAD_INPUT,
                   WHAT ": unknown field \"%.64s\"; the nearest known one is \"%s\"", name,
                   nearest);
}

static enum status check_fields(const json_t *json, struct err *err)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)json, name, value) {
        size_t i = 0;
        while (i < FIELD_COUNT && strcmp(fields[i].name, name) != 0)
            i++;
        if (i == FIELD_COUNT)
            return refuse_unknown(name, err);
        if (fields[i].use == FIELD_REFUSED && !is_off(value, fields[i].off_number))
            return err_set(err, STATUS_BAD_INPUT,
                           WHAT ": \"%s\" is not supported here; leave it out", name);
    }
    return STATUS_OK;
}

static enum status add_prompts(struct generate_request *request, size_t count,
                               const struct generate_limits *limits, const char *name,
                               struct err *err)
{
    if (count == 0)
        return err_set(err, STATUS_BAD_INPUT, WHAT ": \"%s\" is an empty list", name);
    if (count > limits->prompt_count_max)
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": \"%s\" holds %zu prompts, the limit is %zu in one request", name,
                       count, limits->prompt_count_max);
    request->prompts = calloc(count, sizeof(*request->prompts));
    if (request->prompts == NULL)
        return err_set(err, STATUS_NO_MEMORY, WHAT ": no memory for %zu prompts", count);
    request->prompt_count = count;
    return STATUS_OK;
}

static enum status read_text(struct generate_request *request, const json_t *text,
                             const struct generate_limits *limits, struct err *err)
{
    enum status st;

    request->is_list = json_is_array(text);
    if (!request->is_list && !json_is_string(text))
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": \"text\" is %s, a string or a list of strings is wanted",
                       json_kind(text));
    st = add_prompts(request, request->is_list ? json_array_size(text) : 1, limits, "text", err);
    for (size_t i = 0; i < request->prompt_count; i++) {
        const json_t *item = request->is_list ? json_array_get(text, i) : text;
        if (!json_is_string(item))
            return err_set(err, STATUS_BAD_INPUT, WHAT ": \"text\"[%zu] is %s, a string is wanted",
                           i, json_kind(item));
        request->prompts[i].text = json_string_value(item);
        request->prompts[i].text_size = json_string_length(item);
    }
    return st;
}

/* name: where the list stands, for messages. */
static enum status read_ids(struct generate_prompt *prompt, const json_t *list, const char *name,
                            const struct generate_limits *limits, struct err *err)
{
    const size_t count = json_array_size(list);

    if (!json_is_array(list))
        return err_set(err, STATUS_BAD_INPUT, WHAT ": %s is %s, a list of ids is wanted", name,
                       json_kind(list));
    if (count == 0)
        return err_set(err, STATUS_BAD_INPUT, WHAT ": %s is an empty list", name);
    if (count > limits->prompt_token_count_max)
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": %s holds %zu tokens, the model's context %zu", name, count,
                       limits->prompt_token_count_max);
    prompt->ids = calloc(count, sizeof(*prompt->ids));
    if (prompt->ids == NULL)
        return err_set(err, STATUS_NO_MEMORY, WHAT ": no memory for %zu ids", count);
    prompt->id_count = count;
    for (size_t i = 0; i < count; i++) {
        const json_t *item = json_array_get(list, i);
        const json_int_t id = json_integer_value(item);
        if (!json_is_integer(item))
            return err_set(err, STATUS_BAD_INPUT, WHAT ": %s[%zu] is %s, an id is wanted", name, i,
                           json_kind(item));
        if (id < 0 || id > INT32_MAX)
            return err_set(err, STATUS_BAD_INPUT, WHAT ": %s[%zu] is %" PRId64 ", no token's id",
                           name, i, (int64_t)id);
        prompt->ids[i] = (int32_t)id;
    }
    return STATUS_OK;
}

static enum status read_input_ids(struct generate_request *request, const json_t *ids,
                                  const struct generate_limits *limits, struct err *err)
{
    enum status st;
    char name[48];

    if (!json_is_array(ids))
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": \"input_ids\" is %s, a list of ids or of such lists is wanted",
                       json_kind(ids));
    request->is_list = json_is_array(json_array_get(ids, 0));
    st = add_prompts(request, request->is_list ? json_array_size(ids) : 1, limits, "input_ids",
                     err);
    for (size_t i = 0; i < request->prompt_count && st == STATUS_OK; i++) {
        const json_t *list = request->is_list ? json_array_get(ids, i) : ids;
        (void)snprintf(name, sizeof(name),
                       request->is_list ? "\"input_ids\"[%zu]" : "\"input_ids\"", i);
        st = read_ids(&request->prompts[i], list, name, limits, err);
    }
    return st;
}

static enum status read_prompts(struct generate_request *request,
                                const struct generate_limits *limits, struct err *err)
{
    const json_t *text = json_object_get(request->json, "text");
    const json_t *ids = json_object_get(request->json, "input_ids");
    enum status st;

    if (json_is_null(text))
        text = NULL;
    if (json_is_null(ids))
        ids = NULL;
    if (text != NULL && ids != NULL)
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": both \"text\" and \"input_ids\" are given, one of them is wanted");
    if (text != NULL)
        return read_text(request, text, limits, err);
    if (ids == NULL)
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": neither \"text\" nor \"input_ids\" is given, one of them is wanted");
    st = read_input_ids(request, ids, limits, err);
    /* As JSON the ids take ten times the memory that they take now. */
    (void)json_object_del(request->json, "input_ids");
    return st;
}

static enum status read_sampling(struct generate_request *request, struct err *err)
{
    const json_t *params = json_object_get(request->json, "sampling_params");
    const bool is_list = json_is_array(params);
    enum status st = STATUS_OK;

    if (params != NULL && !is_list && !json_is_object(params) && !json_is_null(params))
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": \"sampling_params\" is %s, an object or a list of them is wanted",
                       json_kind(params));
    if (is_list && !request->is_list)
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": \"sampling_params\" is a list, but there is a single prompt");
    if (is_list && json_array_size(params) != request->prompt_count)
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": \"sampling_params\" lists %zu, there are %zu prompts",
                       json_array_size(params), request->prompt_count);
    for (size_t i = 0; i < request->prompt_count && st == STATUS_OK; i++) {
        struct generate_prompt *prompt = &request->prompts[i];
        const json_t *one = is_list ? json_array_get(params, i) : params;
        if (is_list && !json_is_object(one) && !json_is_null(one))
            return err_set(err, STATUS_BAD_INPUT,
                           WHAT ": \"sampling_params\"[%zu] is %s, an object is wanted", i,
                           json_kind(one));
        sampling_params_init(&prompt->params);
        st = sampling_params_read(&prompt->params, json_is_null(one) ? NULL : one, err);
        if (st == STATUS_OK)
            st = sampling_params_check(&prompt->params, err);
        if (st != STATUS_OK && is_list)
            (void)err_prefix(err, st, "prompt %zu", i);
    }
    return st;
}

static enum status check_rid(const json_t *rid, struct err *err)
{
    if (!json_is_string(rid))
        return err_set(err, STATUS_BAD_INPUT, WHAT ": \"rid\" is or holds %s, a string is wanted",
                       json_kind(rid));
    if (json_string_length(rid) == 0 || json_string_length(rid) > SERVER_RID_BYTES_MAX)
        return err_set(err, STATUS_BAD_INPUT, WHAT ": a \"rid\" has %zu bytes, it may have 1 to %d",
                       json_string_length(rid), SERVER_RID_BYTES_MAX);
    if (strlen(json_string_value(rid)) != json_string_length(rid))
        return err_set(err, STATUS_BAD_INPUT, WHAT ": a \"rid\" has a NUL character inside");
    return STATUS_OK;
}

void server__make_name(char out[SERVER_NAME_HEX + 1])
{
    unsigned char bytes[SERVER_NAME_HEX / 2] = { 0 };

    (void)getrandom(bytes, sizeof(bytes), GRND_NONBLOCK); /* a name, not a secret */
    for (size_t i = 0; i < sizeof(bytes); i++)
        (void)snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}

static enum status read_rids(struct generate_request *request, struct err *err)
{
    const json_t *rid = json_object_get(request->json, "rid");
    const bool none = rid == NULL || json_is_null(rid);
    const bool is_list = json_is_array(rid);
    enum status st = STATUS_OK;

    if (is_list && !request->is_list)
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": \"rid\" is a list, but there is a single prompt");
    if (is_list && json_array_size(rid) != request->prompt_count)
        return err_set(err, STATUS_BAD_INPUT, WHAT ": \"rid\" lists %zu, there are %zu prompts",
                       json_array_size(rid), request->prompt_count);
    for (size_t i = 0; i < request->prompt_count; i++) {
        struct generate_prompt *prompt = &request->prompts[i];
        const json_t *one = is_list ? json_array_get(rid, i) : rid;
        if (none) {
            server__make_name(prompt->rid);
            continue;
        }
        st = check_rid(one, err);
        if (st != STATUS_OK)
            return st;
        if (request->is_list && !is_list)
            (void)snprintf(prompt->rid, sizeof(prompt->rid), "%s_%zu", json_string_value(one), i);
        else
            (void)snprintf(prompt->rid, sizeof(prompt->rid), "%s", json_string_value(one));
        for (size_t j = 0; j < i; j++) {
            if (strcmp(prompt->rid, request->prompts[j].rid) == 0)
                return err_set(err, STATUS_BAD_INPUT,
                               WHAT ": \"rid\" names prompts %zu and %zu alike", j, i);
        }
    }
    return STATUS_OK;
}

enum status server__generate_parse(const char *body, size_t size,
                                   const struct generate_limits *limits,
                                   struct generate_request *request_out, struct err *err)
{
    struct generate_request request = { 0 };
    enum status st;

    assert(body != NULL || size == 0);
    if (size == 0)
        return err_set(err, STATUS_BAD_INPUT, WHAT ": there is no body, a JSON object is wanted");
    st = json_read(body, size, WHAT, &request.json, err);
    if (st != STATUS_OK)
        return st;
    if (!json_is_object(request.json))
        st = err_set(err, STATUS_BAD_INPUT, WHAT ": the body is %s, an object is wanted",
                     json_kind(request.json));
    if (st == STATUS_OK)
        st = check_fields(request.json, err);
    if (st == STATUS_OK)
        st = json_get_bool(request.json, "stream", WHAT, &request.stream, err);
    if (st == STATUS_OK)
        st = read_prompts(&request, limits, err);
    if (st == STATUS_OK)
        st = read_sampling(&request, err);
    if (st == STATUS_OK)
        st = read_rids(&request, err);
    if (st != STATUS_OK) {
        server__generate_request_deinit(&request);
        return st;
    }
    *request_out = request;
    return STATUS_OK;
}

void server__generate_request_deinit(struct generate_request *request)
{
    for (size_t i = 0; i < request->prompt_count; i++)
        free(request->prompts[i].ids);
    free(request->prompts);
    json_decref(request->json);
    *request = (struct generate_request){ 0 };
}
