/* cli/ask.c - see ask.h. */
#include "cli/ask.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/size.h"

#define STOP_LOOK_NS 50000000L
#define NS_PER_S 1000000000L
#define ANSWER_BYTES_MAX GIB

struct exchange {
    pthread_mutex_t lock;   /* guards everything below; no other lock is taken with it */
    pthread_cond_t arrived;
    struct cli_answer answer;
    bool done;
    enum status status;     /* of the engine's abort, or of storing a piece */
    struct err err;
};

void cli_answer_deinit(struct cli_answer *answer)
{
    buf_deinit(&answer->text);
    token_ids_deinit(&answer->ids);
    free(answer->matched_text);
    *answer = (struct cli_answer){ .matched_id = -1 };
}

/* Called with the lock held. */
static void store_finish(struct exchange *exchange, const struct engine_output *output)
{
    struct cli_answer *answer = &exchange->answer;

    answer->finish = output->finish;
    answer->matched_id = output->matched_id;
    if (output->matched_text != NULL) {
        answer->matched_text = strdup(output->matched_text);
        if (answer->matched_text == NULL && exchange->status == STATUS_OK)
            exchange->status = err_set(&exchange->err, STATUS_NO_MEMORY,
                                       "no memory for an answer");
    }
    if (output->finish == FINISH_ABORT && output->status != STATUS_CANCELED &&
        exchange->status == STATUS_OK)
        exchange->status = err_set(&exchange->err, output->status, "%s", output->message);
    exchange->done = true;
}

/* On the engine's thread. */
static void on_output(void *user, const struct engine_output *output)
{
    struct exchange *exchange = user;
    struct cli_answer *answer = &exchange->answer;

    (void)pthread_mutex_lock(&exchange->lock);
    if (exchange->status == STATUS_OK)
        exchange->status =
            buf_append(&answer->text, output->text, output->text_size, &exchange->err);
    for (size_t i = 0; i < output->id_count && exchange->status == STATUS_OK; i++)
        exchange->status = token_ids_push(&answer->ids, output->ids[i], &exchange->err);
    answer->prompt_token_count = output->prompt_token_count;
    answer->completion_token_count = output->completion_token_count;
    answer->queue_s = output->queue_s;
    answer->e2e_s = output->e2e_s;
    answer->garbage = output->garbage;
    if (output->finish != FINISH_NONE)
        store_finish(exchange, output);
    (void)pthread_cond_signal(&exchange->arrived);
    (void)pthread_mutex_unlock(&exchange->lock);
}

/* Hands on what has come since (*text_at, *id_at); false when the listener wants no more. The
 * pieces are copied out, since the answer's memory may move while nobody holds the lock. */
static bool hand_on(struct exchange *exchange, const struct cli_ask *ask, size_t *text_at,
                    size_t *id_at, struct buf *text, struct token_ids *ids)
{
    const struct cli_answer *answer = &exchange->answer;
    enum status st;
    bool more;

    buf_clear(text);
    ids->count = 0;
    st = buf_append(text, answer->text.data + *text_at, answer->text.size - *text_at,
                    &exchange->err);
    for (size_t i = *id_at; i < answer->ids.count && st == STATUS_OK; i++)
        st = token_ids_push(ids, answer->ids.ids[i], &exchange->err);
    if (st != STATUS_OK) {
        exchange->status = st;
        return false;
    }
    *text_at = answer->text.size;
    *id_at = answer->ids.count;
    (void)pthread_mutex_unlock(&exchange->lock);
    more = ask->on_piece(ask->user, text->data != NULL ? text->data : "", text->size, ids->ids,
                         ids->count);
    (void)pthread_mutex_lock(&exchange->lock);
    return more;
}

/* With the lock held: until something comes, or the flag is to be looked at. A signal's handler may
 * not signal the condition, so that one is looked for. */
static void wait_for_more(struct exchange *exchange, const struct cli_ask *ask)
{
    struct timespec until;

    if (ask->stop == NULL) {
        (void)pthread_cond_wait(&exchange->arrived, &exchange->lock);
        return;
    }
    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += STOP_LOOK_NS;
    until.tv_sec += until.tv_nsec / NS_PER_S;
    until.tv_nsec %= NS_PER_S;
    (void)pthread_cond_timedwait(&exchange->arrived, &exchange->lock, &until);
}

/* Returns once the engine has said its last word. */
static void listen_to_end(struct exchange *exchange, const struct cli_ask *ask,
                          struct engine *engine, uint64_t id)
{
    struct buf text;
    struct token_ids ids = { 0 };
    size_t text_at = 0;
    size_t id_at = 0;
    bool listening = ask->on_piece != NULL;
    bool stop = false;
    bool canceled = false;

    buf_init(&text, ANSWER_BYTES_MAX);
    (void)pthread_mutex_lock(&exchange->lock);
    for (;;) {
        const bool fresh = exchange->answer.text.size > text_at ||
                           exchange->answer.ids.count > id_at;

        if (listening && fresh && exchange->status == STATUS_OK) {
            listening = hand_on(exchange, ask, &text_at, &id_at, &text, &ids);
            stop = !listening;
            continue;
        }
        if (exchange->done)
            break;
        if (ask->stop != NULL && *ask->stop != 0)
            stop = true;
        if ((stop || exchange->status != STATUS_OK) && !canceled) {
            canceled = true;
            (void)pthread_mutex_unlock(&exchange->lock);
            engine_cancel(engine, id); /* takes the engine's lock: not with ours held */
            (void)pthread_mutex_lock(&exchange->lock);
            continue;
        }
        wait_for_more(exchange, ask);
    }
    (void)pthread_mutex_unlock(&exchange->lock);
    buf_deinit(&text);
    token_ids_deinit(&ids);
}

enum status cli_ask(struct engine *engine, const struct cli_ask *ask,
                    struct cli_answer *answer_out, struct err *err)
{
    struct exchange exchange = { .answer = { .matched_id = -1 } };
    const struct engine_request request = {
        .prompt_ids = ask->ids,
        .prompt_count = ask->count,
        .params = ask->params,
        .on_output = on_output,
        .user = &exchange,
        .token_by_token = ask->on_piece != NULL,
    };
    uint64_t id = 0;
    enum status st;

    (void)pthread_mutex_init(&exchange.lock, NULL);
    (void)pthread_cond_init(&exchange.arrived, NULL);
    buf_init(&exchange.answer.text, ANSWER_BYTES_MAX);
    st = engine_submit(engine, &request, &id, err);
    if (st == STATUS_OK) {
        listen_to_end(&exchange, ask, engine, id);
        st = exchange.status;
        if (st != STATUS_OK)
            err_set(err, st, "%s", exchange.err.message);
    }
    (void)pthread_cond_destroy(&exchange.arrived);
    (void)pthread_mutex_destroy(&exchange.lock);
    if (st == STATUS_OK)
        *answer_out = exchange.answer;
    else
        cli_answer_deinit(&exchange.answer);
    return st;
}

json_t *cli_answer_finish_json(const struct cli_answer *answer)
{
    const char *type = finish_reason_name(answer->finish);

    if (answer->finish == FINISH_LENGTH)
        return json_pack("{s:s, s:I}", "type", type, "length",
                         (json_int_t)answer->completion_token_count);
    if (answer->finish == FINISH_STOP && answer->matched_text != NULL)
        return json_pack("{s:s, s:s}", "type", type, "matched", answer->matched_text);
    if (answer->finish == FINISH_EOS)
        return json_pack("{s:s, s:i}", "type", type, "matched", (int)answer->matched_id);
    return json_pack("{s:s}", "type", type);
}

json_t *cli_answer_meta_json(const struct cli_answer *answer)
{
    return json_pack("{s:o, s:I, s:I, s:f, s:f, s:b}", "finish_reason",
                     cli_answer_finish_json(answer), "prompt_tokens",
                     (json_int_t)answer->prompt_token_count, "completion_tokens",
                     (json_int_t)answer->completion_token_count, "queue_time", answer->queue_s,
                     "e2e_latency", answer->e2e_s, "garbage", answer->garbage);
}
