/* engine/request.c - one request, from submit to its last piece.
 *
 * A request reserves its pages for prompt and answer before it starts, and all its memory too, so
 * that running it can only fail with the device. Two things take memory later, both seldom: the
 * text of an answer with unusually long tokens, whose buffer doubles, and whatever the tokenizer's
 * stream needs.
 *
 * What ends an answer, when several do so with the same id: a stop id before a stop string, and
 * both before the length. (SGLang looks at the length first; we tell the more useful reason.) */
#include "engine/internal.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"

#define SEED_STEP UINT64_C(0x9e3779b97f4a7c15) /* odd: every request's seed is another */

const char *finish_reason_name(enum finish_reason reason)
{
    switch (reason) {
    case FINISH_NONE: return "none";
    case FINISH_LENGTH: return "length";
    case FINISH_EOS:
    case FINISH_STOP: return "stop";
    case FINISH_ABORT: return "abort";
    }
    return "none";
}

static enum status check_prompt(const struct engine_request *desc,
                                const struct engine__limits *limits, struct err *err)
{
    if (desc->prompt_count == 0)
        return err_set(err, STATUS_BAD_INPUT, "the prompt has no tokens; at least one is needed");
    if (desc->prompt_count >= limits->context_length)
        return err_set(err, STATUS_BAD_INPUT,
                       "the prompt has %zu tokens, and the model's context is %u, the answer "
                       "included; a prompt of at most %u fits", desc->prompt_count,
                       limits->context_length, limits->context_length - 1);
    for (size_t i = 0; i < desc->prompt_count; i++) {
        const int32_t id = desc->prompt_ids[i];
        if (id < 0 || (uint32_t)id >= limits->vocab_size)
            return err_set(err, STATUS_BAD_INPUT,
                           "token %zu of the prompt is id %" PRId32 ", the vocabulary has ids 0 "
                           "to %u", i, id, limits->vocab_size - 1);
    }
    return STATUS_OK;
}

struct engine_pages engine__pages_for(const struct engine__limits *limits, uint64_t token_count)
{
    const uint32_t count = (uint32_t)((token_count + limits->page_size - 1) / limits->page_size);
    const uint32_t each = limits->window_pages_each;

    return (struct engine_pages){ count, count < each ? count : each };
}

/* Tokens of one sequence that the cache has room for. */
static uint64_t slots_max(const struct engine__limits *limits)
{
    const bool any_length = limits->page_count.window >= limits->window_pages_each;
    const uint32_t pages = any_length || limits->page_count.all < limits->page_count.window
                               ? limits->page_count.all
                               : limits->page_count.window;

    return (uint64_t)pages * limits->page_size;
}

/* Sets how many ids may come and how many pages that takes. */
static enum status fit(struct engine__request *request, const struct engine__limits *limits,
                       struct err *err)
{
    const uint32_t prompt_count = request->prompt_count;
    const int64_t wanted = request->params.max_new_tokens;
    uint32_t count = limits->context_length - prompt_count;

    if (wanted < (int64_t)count)
        count = (uint32_t)wanted;
    if (wanted == SAMPLING_NEW_TOKENS_ALL) {
        const uint64_t slots = slots_max(limits);
        if (slots >= prompt_count && slots - prompt_count + 1 < count)
            count = (uint32_t)(slots - prompt_count + 1);
    }
    /* the last id is never computed, so it needs no place in the cache */
    request->page_count =
        engine__pages_for(limits, (uint64_t)prompt_count + (count == 0 ? 0 : count - 1));
    if (!engine__pages_fit(&request->page_count, &limits->page_count)) {
        const bool is_window = request->page_count.all <= limits->page_count.all;

        return err_set(err, STATUS_BAD_INPUT,
                       "a prompt of %u tokens and %u new ones need %u pages of %u tokens in the "
                       "KV cache, which has %u; lower max_new_tokens, or give the cache more "
                       "memory", prompt_count, count,
                       is_window ? request->page_count.window : request->page_count.all,
                       limits->page_size,
                       is_window ? limits->page_count.window : limits->page_count.all);
    }
    request->new_count_max = count;
    return STATUS_OK;
}

static enum status choose_seed(struct engine__request *request, struct err *err)
{
    request->seed = request->params.seed;
    if (request->params.has_seed)
        return STATUS_OK;
    if (getrandom(&request->seed, sizeof(request->seed), 0) != sizeof(request->seed))
        return err_set(err, STATUS_IO, "the system gives no random numbers for a seed");
    return STATUS_OK;
}

static enum status fill(struct engine__request *request, const struct engine_request *desc,
                        const struct engine__limits *limits, const struct tokenizer *tokenizer,
                        struct err *err)
{
    const size_t prompt_bytes = desc->prompt_count * sizeof(*desc->prompt_ids);
    enum status st;

    request->prompt_count = (uint32_t)desc->prompt_count;
    st = fit(request, limits, err);
    if (st == STATUS_OK)
        st = choose_seed(request, err);
    if (st == STATUS_OK)
        st = engine__output_init(&request->output, &request->params, tokenizer, err);
    if (st != STATUS_OK)
        return st;
    for (size_t i = 0; i < request->params.stop_count; i++)
        request->params.stop[i] = request->output.stops[i].text;
    request->prompt_ids = malloc(prompt_bytes);
    if (request->prompt_ids == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a prompt of %zu tokens",
                       desc->prompt_count);
    memcpy(request->prompt_ids, desc->prompt_ids, prompt_bytes);
    return STATUS_OK;
}

enum status engine__request_create(const struct engine_request *desc,
                                   const struct engine__limits *limits,
                                   const struct tokenizer *tokenizer,
                                   struct engine__request **request_out, struct err *err)
{
    struct engine__request *request;
    enum status st;

    assert(desc->on_output != NULL);
    st = sampling_params_check(desc->params, err);
    if (st == STATUS_OK)
        st = check_prompt(desc, limits, err);
    if (st != STATUS_OK)
        return st;
    request = calloc(1, sizeof(*request));
    if (request == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a request");
    request->params = *desc->params;
    request->on_output = desc->on_output;
    request->user = desc->user;
    request->token_by_token = desc->token_by_token;
    request->submit_ns = clock_now_ns();
    request->matched_id = -1;
    st = fill(request, desc, limits, tokenizer, err);
    if (st != STATUS_OK) {
        engine__request_destroy(request);
        return st;
    }
    *request_out = request;
    return STATUS_OK;
}

uint64_t engine_request_seed(uint64_t random_seed, uint64_t number)
{
    return random_seed ^ (number * SEED_STEP);
}

enum status engine_request_check(const struct engine_request *desc,
                                 const struct model_info *info, struct engine_pages *pages_out,
                                 struct err *err)
{
    const struct engine__limits limits = {
        .context_length = info->context_length, .vocab_size = info->vocab_size,
        .page_size = info->kv_page_size,
        .page_count = { info->kv_page_count, info->kv_window_page_count },
        .window_pages_each = info->kv_window_pages_each,
    };
    struct engine__request request = { .params = *desc->params };
    enum status st = sampling_params_check(desc->params, err);

    if (st == STATUS_OK)
        st = check_prompt(desc, &limits, err);
    if (st != STATUS_OK)
        return st;
    request.prompt_count = (uint32_t)desc->prompt_count;
    st = fit(&request, &limits, err);
    if (st == STATUS_OK)
        *pages_out = request.page_count;
    return st;
}

void engine__request_destroy(struct engine__request *request)
{
    if (request == NULL)
        return;
    engine__seen_deinit(&request->seen);
    engine__output_deinit(&request->output);
    free(request->prompt_ids);
    engine__places_deinit(&request->places);
    free(request->ids);
    free(request->logprobs);
    free(request);
}

enum status engine__request_start(struct engine__request *request,
                                  const struct engine__limits *limits,
                                  const struct tokenizer *tokenizer, struct engine__cache *cache,
                                  struct err *err)
{
    const uint32_t token_count = request->prompt_count + request->new_count_max;
    enum status st;

    request->start_ns = clock_now_ns();
    st = engine__places_init(&request->places, &request->page_count, err);
    if (st != STATUS_OK)
        return st;
    request->ids = calloc((size_t)request->new_count_max + 1, sizeof(*request->ids));
    if (request->ids == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for an answer of %u tokens",
                       request->new_count_max);
    st = engine__seen_init(&request->seen, &request->params, request->prompt_ids,
                           request->prompt_count,
                           token_count < limits->vocab_size ? token_count : limits->vocab_size,
                           err);
    if (st == STATUS_OK)
        st = engine__output_start(&request->output, &request->params, tokenizer,
                                  request->token_by_token, err);
    if (st == STATUS_OK)
        engine__places_take(&request->places, cache);
    return st;
}

static bool contains(const int32_t *ids, size_t count, int32_t id)
{
    for (size_t i = 0; i < count; i++)
        if (ids[i] == id)
            return true;
    return false;
}

static bool is_stop_id(const struct engine__request *request, const struct engine__limits *limits,
                       int32_t id)
{
    return contains(request->params.stop_ids, request->params.stop_id_count, id) ||
           (!request->params.ignore_eos && contains(limits->eos_ids, limits->eos_count, id));
}

/* min_new_tokens: no stop id before them. */
static void forbid_stop_ids(const struct engine__request *request,
                            const struct engine__limits *limits, float *logits)
{
    for (size_t i = 0; i < request->params.stop_id_count; i++)
        if ((uint32_t)request->params.stop_ids[i] < limits->vocab_size)
            logits[request->params.stop_ids[i]] = -INFINITY;
    for (uint32_t i = 0; i < limits->eos_count; i++)
        if ((uint32_t)limits->eos_ids[i] < limits->vocab_size)
            logits[limits->eos_ids[i]] = -INFINITY;
}

void engine__request_abort(struct engine__request *request, enum status status,
                           const char *message)
{
    const char *stop;

    assert(status != STATUS_OK);
    assert(request->finish == FINISH_NONE);
    request->finish = FINISH_ABORT;
    request->status = status;
    (void)snprintf(request->message, sizeof(request->message), "%s", message);
    /* The text so far is told as far as there is memory for it. */
    (void)engine__output_finish(&request->output, &stop, NULL);
}

/* Ends the answer and lets go of the text that was held back; broken characters at its end become
 * U+FFFD, with which a stop string can still be complete. */
static void finish(struct engine__request *request, enum finish_reason reason)
{
    const char *stop;
    struct err err;

    assert(request->finish == FINISH_NONE);
    if (engine__output_finish(&request->output, &stop, &err) != STATUS_OK) {
        engine__request_abort(request, err.status, err.message);
        return;
    }
    request->finish = reason;
    if (stop != NULL && reason == FINISH_LENGTH) {
        request->finish = FINISH_STOP;
        request->matched_text = stop;
    }
}

void engine__request_finish_length(struct engine__request *request)
{
    finish(request, FINISH_LENGTH);
}

static enum status note_logprobs(struct engine__request *request, int32_t id,
                                 const float *logits, uint32_t count, struct err *err)
{
    if (request->id_count >= request->logprob_capacity) {
        const size_t capacity = request->logprob_capacity < 8 ? 16 : 2 * request->logprob_capacity;
        struct token_logprobs *grown = realloc(request->logprobs, capacity * sizeof(*grown));

        if (grown == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for %zu log probabilities", capacity);
        request->logprobs = grown;
        request->logprob_capacity = capacity;
    }
    engine__logprobs(logits, count, id, request->params.top_logprob_count,
                     &request->logprobs[request->id_count]);
    return STATUS_OK;
}

void engine__request_advance(struct engine__request *request, struct engine__sampler *sampler,
                             const struct engine__limits *limits, float *logits)
{
    const char *stop = NULL;
    bool is_stop;
    struct err err;
    int32_t id;

    assert(request->id_count < request->new_count_max);
    if (request->params.wants_logprobs) /* what is sampled from is overwritten */
        memcpy(sampler->untouched, logits, limits->vocab_size * sizeof(*logits));
    if ((int64_t)request->id_count < request->params.min_new_tokens)
        forbid_stop_ids(request, limits, logits);
    id = engine__sample(sampler, &request->params, &request->seen, request->seed,
                        request->id_count, logits);
    if (request->params.wants_logprobs &&
        note_logprobs(request, id, sampler->untouched, limits->vocab_size, &err) != STATUS_OK) {
        engine__request_abort(request, err.status, err.message);
        return;
    }
    request->ids[request->id_count++] = id;
    engine__seen_add(&request->seen, id);
    is_stop = is_stop_id(request, limits, id);
    if (!is_stop || request->output.keep_stop) {
        if (engine__output_push(&request->output, id, &stop, &err) != STATUS_OK) {
            engine__request_abort(request, err.status, err.message);
            return;
        }
    }
    if (is_stop) {
        request->matched_id = id;
        finish(request, FINISH_EOS);
    } else if (stop != NULL) {
        request->matched_text = stop;
        request->finish = FINISH_STOP;
    } else if (request->id_count == request->new_count_max) {
        finish(request, FINISH_LENGTH);
    }
}

void engine__request_tell(struct engine__request *request, const struct engine__weights *weights)
{
    const uint64_t now_ns = clock_now_ns();
    const uint64_t start_ns = request->start_ns != 0 ? request->start_ns : now_ns;
    struct buf *text = &request->output.text;
    struct engine_output output;

    if (request->finish == FINISH_NONE && !request->token_by_token)
        return;
    output = (struct engine_output){
        .text = text->data != NULL ? text->data : "",
        .text_size = text->size,
        .ids = request->id_count > 0 ? request->ids + request->told_count : NULL,
        .id_count = request->id_count - request->told_count,
        .logprobs = request->logprobs != NULL ? request->logprobs + request->told_count : NULL,
        .prompt_token_count = request->prompt_count,
        .completion_token_count = request->id_count,
        .finish = request->finish,
        .status = request->status,
        .message = request->message,
        .matched_id = request->matched_id,
        .matched_text = request->matched_text,
        .queue_s = (double)(start_ns - request->submit_ns) * 1e-9,
        .e2e_s = (double)(now_ns - request->submit_ns) * 1e-9,
        .garbage = weights->garbage,
        .weight_version = weights->version,
    };
    request->on_output(request->user, &output);
    request->told_count = request->id_count;
    buf_clear(text);
}
