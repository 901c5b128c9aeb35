/* server/openai.c - the bodies of POST /v1/completions and /v1/chat/completions.
 *
 * OpenAI's fields, as its API reference says (https://platform.openai.com/docs/api-reference), and
 * beside them those that SGLang and vLLM take too: top_k, min_p, repetition_penalty, min_tokens,
 * stop_token_ids, ignore_eos, skip_special_tokens, no_stop_trim; in a chat chat_template_kwargs,
 * documents, add_generation_prompt, continue_final_message. As for /generate, fields that change
 * nothing here are taken, those that would change the answer are refused by name unless they say
 * what holds anyway.
 *
 * A request becomes a struct generate_request: "n" choices of a prompt are as many prompts.
 * Sampling parameters go by SGLang's names through the engine's reader. "model" may be any string:
 * one model is served, and the answer says which. */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/json.h"
#include "base/nearest.h"
#include "server/internal.h"

#define WHAT "request"
#define COMPLETION_TOKENS 16 /* OpenAI's default for completions; a chat has all that fit */

enum use {
    USE_READ = 1,       /* here */
    USE_SAMPLING = 2,   /* by the engine's reader, under `sampling` or its own name */
    USE_IGNORED = 4,    /* labels, and hints that change no answer */
    USE_REFUSED = 8,    /* unless off: null, false, 0, empty, or the string beside it */
};
enum where { BOTH, COMPLETION, CHAT };

static const struct field {
    const char *name;
    enum use use;
    enum where where;
    const char *other; /* of USE_SAMPLING: the engine's name; of USE_REFUSED: what is fine */
} fields[] = {
    { "model", USE_READ, BOTH, NULL },
    { "prompt", USE_READ, COMPLETION, NULL },
    { "messages", USE_READ, CHAT, NULL },
    { "tools", USE_READ, CHAT, NULL },
    { "tool_choice", USE_READ, CHAT, NULL },
    { "documents", USE_READ, CHAT, NULL },
    { "chat_template_kwargs", USE_READ, CHAT, NULL },
    { "reasoning_effort", USE_READ, CHAT, NULL },
    { "add_generation_prompt", USE_READ, CHAT, NULL },
    { "continue_final_message", USE_READ, CHAT, NULL },
    { "n", USE_READ, BOTH, NULL },
    { "best_of", USE_READ, COMPLETION, NULL },
    { "stream", USE_READ, BOTH, NULL },
    { "stream_options", USE_READ, BOTH, NULL },
    { "logprobs", USE_READ, BOTH, NULL },
    { "top_logprobs", USE_READ, CHAT, NULL },
    { "echo", USE_READ, COMPLETION, NULL },
    { "max_tokens", USE_READ, BOTH, NULL },
    { "max_completion_tokens", USE_READ, CHAT, NULL },
    { "seed", USE_READ, BOTH, NULL },
    { "response_format", USE_READ, BOTH, NULL },
    { "modalities", USE_READ, CHAT, NULL },
    { "min_tokens", USE_SAMPLING, BOTH, "min_new_tokens" },
    { "temperature", USE_SAMPLING, BOTH, NULL },
    { "top_p", USE_SAMPLING, BOTH, NULL },
    { "top_k", USE_SAMPLING, BOTH, NULL },
    { "min_p", USE_SAMPLING, BOTH, NULL },
    { "presence_penalty", USE_SAMPLING, BOTH, NULL },
    { "frequency_penalty", USE_SAMPLING, BOTH, NULL },
    { "repetition_penalty", USE_SAMPLING, BOTH, NULL },
    { "stop", USE_SAMPLING, BOTH, NULL },
    { "stop_token_ids", USE_SAMPLING, BOTH, NULL },
    { "ignore_eos", USE_SAMPLING, BOTH, NULL },
    { "skip_special_tokens", USE_SAMPLING, BOTH, NULL },
    { "no_stop_trim", USE_SAMPLING, BOTH, NULL },
    { "user", USE_IGNORED, BOTH, NULL },
    { "metadata", USE_IGNORED, BOTH, NULL },
    { "store", USE_IGNORED, BOTH, NULL },
    { "service_tier", USE_IGNORED, BOTH, NULL },
    { "safety_identifier", USE_IGNORED, BOTH, NULL },
    { "prompt_cache_key", USE_IGNORED, BOTH, NULL },
    { "prompt_cache_retention", USE_IGNORED, BOTH, NULL },
    { "prediction", USE_IGNORED, CHAT, NULL },
    { "parallel_tool_calls", USE_IGNORED, CHAT, NULL },
    { "logit_bias", USE_REFUSED, BOTH, NULL },
    { "suffix", USE_REFUSED, COMPLETION, NULL },
    { "functions", USE_REFUSED, CHAT, NULL },
    { "function_call", USE_REFUSED, CHAT, "none" },
    { "audio", USE_REFUSED, CHAT, NULL },
    { "web_search_options", USE_REFUSED, CHAT, NULL },
    { "verbosity", USE_REFUSED, CHAT, "medium" },
    { "moderation", USE_REFUSED, CHAT, NULL },
};
#define FIELD_COUNT (sizeof(fields) / sizeof(fields[0]))

static const json_t *field_value(const json_t *json, const char *name)
{
    const json_t *value = json_object_get(json, name);

    return json_is_null(value) ? NULL : value;
}

static bool is_off(const json_t *value, const char *fine)
{
    switch (json_typeof(value)) {
    case JSON_NULL:
    case JSON_FALSE: return true;
    case JSON_STRING: return json_string_length(value) == 0 ||
                             (fine != NULL && strcmp(json_string_value(value), fine) == 0);
    case JSON_OBJECT: return json_object_size(value) == 0;
    case JSON_ARRAY: return json_array_size(value) == 0;
    case JSON_INTEGER: return json_integer_value(value) == 0;
    default: return false;
    }
}

static enum status check_fields(const json_t *json, bool is_chat, struct err *err)
{
    const char *names[FIELD_COUNT];
    size_t name_count = 0;
    const char *name;
    json_t *value;

    for (size_t i = 0; i < FIELD_COUNT; i++) {
        if (fields[i].where == BOTH || (fields[i].where == CHAT) == is_chat)
            names[name_count++] = fields[i].name;
    }
    json_object_foreach((json_t *)json, name, value) {
        const struct field *field = NULL;

        for (size_t i = 0; i < FIELD_COUNT; i++) {
            if (strcmp(fields[i].name, name) == 0 &&
                (fields[i].where == BOTH || (fields[i].where == CHAT) == is_chat))
                field = &fields[i];
        }
        if (field == NULL)
            return err_set(err, STATUS_BAD_INPUT,
                           WHAT ": unknown field \"%.64s\"; the nearest known one is \"%s\"", name,
                           nearest_name(name, names, name_count));
        if (field->use == USE_REFUSED && !is_off(value, field->other))
            return err_set(err, STATUS_BAD_INPUT,
                           WHAT ": \"%s\" is not supported here; leave it out", name);
    }
    return STATUS_OK;
}

/* --- sampling --------------------------------------------------------------------------------- */

static enum status read_max_tokens(const json_t *json, bool is_chat, json_t *sampling,
                                   struct err *err)
{
    int64_t count = is_chat ? SAMPLING_NEW_TOKENS_ALL : COMPLETION_TOKENS;
    enum status st = json_get_int(json, "max_tokens", WHAT, 0, SAMPLING_NEW_TOKENS_ALL - 1, &count,
                                  err);

    if (st == STATUS_OK)
        st = json_get_int(json, "max_completion_tokens", WHAT, 0, SAMPLING_NEW_TOKENS_ALL - 1,
                          &count, err);
    if (st == STATUS_OK)
        (void)json_object_set_new(sampling, "max_new_tokens",
                                  count == SAMPLING_NEW_TOKENS_ALL ? json_null()
                                                                   : json_integer(count));
    return st;
}

/* A chat says whether, and how many beside each; a completion says how many. */
static enum status read_logprobs(const json_t *json, bool is_chat, struct sampling_params *params,
                                 struct err *err)
{
    int64_t count = is_chat ? 0 : -1;
    enum status st;

    if (!is_chat) {
        if (json_is_false(json_object_get(json, "logprobs")))
            return STATUS_OK;
        st = json_get_int(json, "logprobs", WHAT, 0, ENGINE_TOP_LOGPROBS_MAX, &count, err);
        params->wants_logprobs = st == STATUS_OK && count >= 0;
        params->top_logprob_count = params->wants_logprobs ? (uint32_t)count : 0;
        return st;
    }
    st = json_get_bool(json, "logprobs", WHAT, &params->wants_logprobs, err);
    if (st == STATUS_OK)
        st = json_get_int(json, "top_logprobs", WHAT, 0, ENGINE_TOP_LOGPROBS_MAX, &count, err);
    if (st == STATUS_OK && count > 0 && !params->wants_logprobs)
        return err_set(err, STATUS_BAD_INPUT, WHAT ": \"top_logprobs\" needs \"logprobs\": true");
    params->top_logprob_count = (uint32_t)count;
    return st;
}

static enum status read_seed(const json_t *json, struct sampling_params *params, struct err *err)
{
    int64_t seed = 0;
    enum status st = json_get_int(json, "seed", WHAT, INT64_MIN, INT64_MAX, &seed, err);

    params->has_seed = st == STATUS_OK && field_value(json, "seed") != NULL;
    params->seed = (uint64_t)seed;
    return st;
}

/* Into *params, whose strings are borrowed from the request's json. */
static enum status read_sampling(const json_t *json, bool is_chat, struct sampling_params *params,
                                 struct err *err)
{
    json_t *sampling = json_object();
    enum status st = STATUS_OK;

    for (size_t i = 0; i < FIELD_COUNT; i++) {
        json_t *value = json_object_get(json, fields[i].name);

        if (fields[i].use == USE_SAMPLING && value != NULL && !json_is_null(value))
            (void)json_object_set(sampling, fields[i].other != NULL ? fields[i].other
                                                                    : fields[i].name, value);
    }
    st = read_max_tokens(json, is_chat, sampling, err);
    if (st == STATUS_OK)
        st = sampling_params_read(params, sampling, err);
    if (st == STATUS_OK)
        st = read_logprobs(json, is_chat, params, err);
    if (st == STATUS_OK)
        st = read_seed(json, params, err);
    if (st == STATUS_OK)
        st = sampling_params_check(params, err);
    json_decref(sampling); /* strings stay: the request's json holds the values too */
    return st;
}

/* --- what both kinds have --------------------------------------------------------------------- */

static enum status read_style(const json_t *json, struct generate_request *request,
                              struct err *err)
{
    struct openai_style *style = &request->openai;
    const json_t *options = NULL;
    const json_t *format = NULL;
    const char *type = "text";
    int64_t count = 1;
    int64_t best_of = -1;
    enum status st = json_get_bool(json, "stream", WHAT, &request->stream, err);

    if (st == STATUS_OK)
        st = json_get_object(json, "stream_options", WHAT, &options, err);
    if (st == STATUS_OK && options != NULL && !request->stream)
        st = err_set(err, STATUS_BAD_INPUT, WHAT ": \"stream_options\" needs \"stream\": true");
    if (st == STATUS_OK && options != NULL)
        st = json_get_bool(options, "include_usage", "stream_options", &style->include_usage, err);
    if (st == STATUS_OK)
        st = json_get_int(json, "n", WHAT, 1, INT32_MAX, &count, err);
    if (st == STATUS_OK)
        st = json_get_int(json, "best_of", WHAT, 1, INT32_MAX, &best_of, err);
    if (st == STATUS_OK && best_of != -1 && best_of != count)
        st = err_set(err, STATUS_BAD_INPUT, WHAT ": \"best_of\" is %" PRId64 " and \"n\" %" PRId64
                     "; choosing among more than are answered is not supported", best_of, count);
    if (st == STATUS_OK)
        st = json_get_bool(json, "echo", WHAT, &style->echo, err);
    if (st == STATUS_OK)
        st = json_get_object(json, "response_format", WHAT, &format, err);
    if (st == STATUS_OK && format != NULL)
        st = json_get_string(format, "type", "response_format", &type, err);
    if (st == STATUS_OK && strcmp(type, "text") != 0)
        st = err_set(err, STATUS_BAD_INPUT, WHAT ": \"response_format\" of type \"%.32s\" is not "
                     "supported, only \"text\"", type);
    style->choice_count = (size_t)count;
    return st;
}

static enum status add_prompts(struct generate_request *request, size_t count,
                               const struct generate_limits *limits, struct err *err)
{
    const size_t choices = request->openai.choice_count;

    if (count == 0)
        return err_set(err, STATUS_BAD_INPUT, WHAT ": \"prompt\" is an empty list");
    if (count > limits->prompt_count_max || choices > limits->prompt_count_max / count)
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": %zu prompts with \"n\" = %zu, the limit is %zu answers in one "
                       "request", count, choices, limits->prompt_count_max);
    request->prompts = calloc(count * choices, sizeof(*request->prompts));
    if (request->prompts == NULL)
        return err_set(err, STATUS_NO_MEMORY, WHAT ": no memory for %zu prompts", count);
    request->prompt_count = count * choices;
    return STATUS_OK;
}

/* The other choices of a prompt are copies of the first, each with a seed of its own. */
static enum status copy_choices(struct generate_request *request, const struct sampling_params *of,
                                struct err *err)
{
    const size_t choices = request->openai.choice_count;

    for (size_t i = 0; i < request->prompt_count; i++) {
        const struct generate_prompt *first = &request->prompts[i - i % choices];
        struct generate_prompt *prompt = &request->prompts[i];

        server__make_name(prompt->rid);
        prompt->params = *of;
        prompt->params.seed += i % choices;
        if (prompt == first)
            continue;
        prompt->text = first->text;
        prompt->text_size = first->text_size;
        if (first->ids == NULL)
            continue;
        prompt->ids = malloc(first->id_count * sizeof(*prompt->ids));
        if (prompt->ids == NULL)
            return err_set(err, STATUS_NO_MEMORY, WHAT ": no memory for %zu ids", first->id_count);
        memcpy(prompt->ids, first->ids, first->id_count * sizeof(*prompt->ids));
        prompt->id_count = first->id_count;
    }
    return STATUS_OK;
}

/* --- completions ------------------------------------------------------------------------------ */

static enum status read_ids(struct generate_prompt *prompt, const json_t *list,
                            const struct generate_limits *limits, struct err *err)
{
    const size_t count = json_array_size(list);

    if (count == 0 || count > limits->prompt_token_count_max)
        return err_set(err, STATUS_BAD_INPUT, WHAT ": \"prompt\" holds a list of %zu tokens, it "
                       "may have 1 to %zu", count, limits->prompt_token_count_max);
    prompt->ids = calloc(count, sizeof(*prompt->ids));
    if (prompt->ids == NULL)
        return err_set(err, STATUS_NO_MEMORY, WHAT ": no memory for %zu ids", count);
    prompt->id_count = count;
    for (size_t i = 0; i < count; i++) {
        const json_t *item = json_array_get(list, i);

        if (!json_is_integer(item) || json_integer_value(item) < 0 ||
            json_integer_value(item) > INT32_MAX)
            return err_set(err, STATUS_BAD_INPUT, WHAT ": \"prompt\": item %zu of a list of ids "
                           "is no id", i);
        prompt->ids[i] = (int32_t)json_integer_value(item);
    }
    return STATUS_OK;
}

/* "text", ["text", ...], [1, 2, 3], or [[1, 2], ...] */
static enum status read_prompts(const json_t *json, const struct generate_limits *limits,
                                struct generate_request *request, struct err *err)
{
    const json_t *prompt = field_value(json, "prompt");
    const bool is_list = json_is_array(prompt) && !json_is_integer(json_array_get(prompt, 0));
    enum status st;

    if (!json_is_string(prompt) && !json_is_array(prompt))
        return err_set(err, STATUS_BAD_INPUT, WHAT ": \"prompt\" is %s, a string, a list of ids, "
                       "or a list of these is wanted", json_kind(prompt));
    st = add_prompts(request, is_list ? json_array_size(prompt) : 1, limits, err);
    for (size_t i = 0; i < request->prompt_count && st == STATUS_OK;
         i += request->openai.choice_count) {
        struct generate_prompt *out = &request->prompts[i];
        const json_t *item = is_list ? json_array_get(prompt, i / request->openai.choice_count)
                                     : prompt;

        if (json_is_string(item)) {
            out->text = json_string_value(item);
            out->text_size = json_string_length(item);
        } else if (!json_is_array(item)) {
            st = err_set(err, STATUS_BAD_INPUT, WHAT ": \"prompt\" holds %s, a string or a list "
                         "of ids is wanted", json_kind(item));
        } else if (request->openai.echo) {
            st = err_set(err, STATUS_BAD_INPUT, WHAT ": \"echo\" needs a \"prompt\" of text");
        } else {
            st = read_ids(out, item, limits, err);
        }
    }
    return st;
}

/* --- chats ------------------------------------------------------------------------------------ */

/* Where the template wants a string, a list of texts becomes lines. */
static enum status flatten_content(json_t *message, bool takes_parts, size_t index,
                                   struct err *err)
{
    const json_t *content = json_object_get(message, "content");
    const json_t *part;
    struct buf text;
    size_t i;
    enum status st = STATUS_OK;

    if (!json_is_array(content))
        return STATUS_OK;
    buf_init(&text, SERVER_BODIES_BYTES_MAX);
    json_array_foreach((json_t *)content, i, part) {
        const json_t *piece = json_object_get(part, "text");
        const char *type = json_string_value(json_object_get(part, "type"));

        if (type == NULL || strcmp(type, "text") != 0 || !json_is_string(piece))
            st = err_set(err, STATUS_BAD_INPUT, WHAT ": \"messages\"[%zu]: part %zu of its "
                         "content is of type \"%.32s\"; only \"text\" is supported", index, i,
                         type != NULL ? type : "");
        if (st == STATUS_OK && i > 0)
            st = buf_append(&text, "\n", 1, err);
        if (st == STATUS_OK)
            st = buf_append(&text, json_string_value(piece), json_string_length(piece), err);
        if (st != STATUS_OK)
            break;
    }
    if (st == STATUS_OK && !takes_parts)
        (void)json_object_set_new(message, "content", json_stringn(text.size > 0 ? text.data : "",
                                                                   text.size));
    buf_deinit(&text);
    return st;
}

/* A client has a call's arguments as JSON in a string; templates want what it says. */
static void read_arguments(const json_t *message)
{
    const json_t *calls = json_object_get(message, "tool_calls");
    const json_t *one;
    size_t index;

    json_array_foreach((json_t *)calls, index, one) {
        json_t *function = json_object_get(one, "function");
        const json_t *text = json_object_get(function, "arguments");
        json_t *arguments;

        if (!json_is_string(text))
            continue;
        arguments = json_loadb(json_string_value(text), json_string_length(text),
                               JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
        if (json_is_object(arguments))
            (void)json_object_set(function, "arguments", arguments);
        json_decref(arguments);
    }
}

static enum status prepare_messages(const json_t *json, bool takes_parts, struct err *err)
{
    const json_t *messages = field_value(json, "messages");
    json_t *message;
    size_t index;
    enum status st = STATUS_OK;

    if (!json_is_array(messages))
        return err_set(err, STATUS_BAD_INPUT, WHAT ": \"messages\" is %s, an array is wanted",
                       json_kind(messages));
    json_array_foreach((json_t *)messages, index, message) {
        if (!json_is_string(json_object_get(message, "role")))
            return err_set(err, STATUS_BAD_INPUT, WHAT ": \"messages\"[%zu] is %s without a "
                           "string \"role\"", index, json_kind(message));
        st = flatten_content(message, takes_parts, index, err);
        if (st != STATUS_OK)
            return st;
        read_arguments(message);
    }
    return STATUS_OK;
}

/* "none" hides the tools; what would force a call needs a grammar. */
static enum status read_tools(const json_t *json, const json_t **tools_out, struct err *err)
{
    const json_t *choice = field_value(json, "tool_choice");
    const char *name = json_string_value(choice);
    enum status st = json_get_array(json, "tools", WHAT, tools_out, err);

    if (st != STATUS_OK)
        return st;
    if (choice != NULL && (name == NULL || (strcmp(name, "auto") != 0 &&
                                            strcmp(name, "none") != 0)))
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": \"tool_choice\" may be \"auto\" or \"none\" here");
    if (json_array_size(*tools_out) == 0 || (name != NULL && strcmp(name, "none") == 0))
        *tools_out = NULL;
    return STATUS_OK;
}

static enum status read_modalities(const json_t *json, struct err *err)
{
    const json_t *list = NULL;
    enum status st = json_get_array(json, "modalities", WHAT, &list, err);

    for (size_t i = 0; i < json_array_size(list) && st == STATUS_OK; i++) {
        const char *name = json_string_value(json_array_get(list, i));

        if (name == NULL || strcmp(name, "text") != 0)
            st = err_set(err, STATUS_BAD_INPUT, WHAT ": \"modalities\" may hold \"text\" alone");
    }
    return st;
}

/* The ids of the conversation, into the first prompt. */
static enum status read_chat(const json_t *json, const struct generate_limits *limits,
                             const struct openai_context *context,
                             struct generate_request *request, struct err *err)
{
    struct chat_request chat = { .messages = json_object_get(json, "messages") };
    const json_t *effort = field_value(json, "reasoning_effort");
    const json_t *kwargs = NULL;
    json_t *extra = NULL;
    struct token_ids ids = { 0 };
    enum status st;

    if (context->chat == NULL)
        return err_set(err, STATUS_BAD_INPUT, "%s", context->why_no_chat);
    st = prepare_messages(json, chat_takes_parts(context->chat), err);
    if (st == STATUS_OK)
        st = read_tools(json, &chat.tools, err);
    if (st == STATUS_OK)
        st = read_modalities(json, err);
    if (st == STATUS_OK)
        st = json_get_array(json, "documents", WHAT, &chat.documents, err);
    if (st == STATUS_OK)
        st = json_get_object(json, "chat_template_kwargs", WHAT, &kwargs, err);
    if (st == STATUS_OK)
        st = json_get_bool(json, "continue_final_message", WHAT, &chat.continue_final_message, err);
    chat.add_generation_prompt = !chat.continue_final_message;
    if (st == STATUS_OK)
        st = json_get_bool(json, "add_generation_prompt", WHAT, &chat.add_generation_prompt, err);
    if (st == STATUS_OK)
        st = add_prompts(request, 1, limits, err);
    if (st != STATUS_OK)
        return st;
    extra = kwargs != NULL ? json_copy((json_t *)kwargs) : json_object();
    if (effort != NULL && json_object_get(extra, "reasoning_effort") == NULL)
        (void)json_object_set(extra, "reasoning_effort", (json_t *)effort);
    chat.extra = extra;
    st = chat_encode(context->chat, &chat, &ids, err);
    if (st == STATUS_OK && ids.count == 0)
        st = err_set(err, STATUS_BAD_INPUT, WHAT ": the chat template makes no tokens of "
                     "\"messages\"");
    request->prompts[0].ids = ids.ids;
    request->prompts[0].id_count = ids.count;
    json_decref(extra);
    return st;
}

/* --- the body --------------------------------------------------------------------------------- */

static enum status read_request(const struct generate_limits *limits,
                                const struct openai_context *context,
                                struct generate_request *request, struct err *err)
{
    const json_t *json = request->json;
    const char *model = NULL;
    struct sampling_params params;
    enum status st = STATUS_OK;

    sampling_params_init(&params);
    if (!json_is_object(json))
        st = err_set(err, STATUS_BAD_INPUT, WHAT ": the body is %s, an object is wanted",
                     json_kind(json));
    if (st == STATUS_OK)
        st = check_fields(json, context->is_chat, err);
    if (st == STATUS_OK)
        st = json_get_string(json, "model", WHAT, &model, err);
    if (st == STATUS_OK)
        st = read_style(json, request, err);
    if (st == STATUS_OK)
        st = read_sampling(json, context->is_chat, &params, err);
    if (st == STATUS_OK && context->tokenizer == NULL)
        st = err_set(err, STATUS_BAD_INPUT, "the model has no tokenizer: only /generate with "
                     "\"input_ids\" can be asked");
    if (st == STATUS_OK && request->openai.echo && params.wants_logprobs)
        st = err_set(err, STATUS_BAD_INPUT, WHAT ": \"echo\" with \"logprobs\" is not supported");
    if (st != STATUS_OK)
        return st;
    request->openai.has_logprobs = params.wants_logprobs;
    st = context->is_chat ? read_chat(json, limits, context, request, err)
                          : read_prompts(json, limits, request, err);
    return st == STATUS_OK ? copy_choices(request, &params, err) : st;
}

enum status server__openai_parse(const char *body, size_t size,
                                 const struct generate_limits *limits,
                                 const struct openai_context *context,
                                 struct generate_request *request_out, struct err *err)
{
    struct generate_request request = { .is_openai = true };
    char name[SERVER_NAME_HEX + 1];
    enum status st;

    if (size == 0)
        return err_set(err, STATUS_BAD_INPUT, WHAT ": there is no body, a JSON object is wanted");
    st = json_read(body, size, WHAT, &request.json, err);
    if (st != STATUS_OK)
        return st;
    server__make_name(name);
    request.is_list = true;
    request.openai.is_chat = context->is_chat;
    request.openai.created_s = time(NULL);
    (void)snprintf(request.openai.id, sizeof(request.openai.id), "%s-%s",
                   context->is_chat ? "chatcmpl" : "cmpl", name);
    st = read_request(limits, context, &request, err);
    if (st != STATUS_OK) {
        server__generate_request_deinit(&request);
        return st;
    }
    request.is_list = request.prompt_count > 1;
    *request_out = request;
    return STATUS_OK;
}
