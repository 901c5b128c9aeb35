/* fleet/testing_ranks.h - what the front end's tests share: requests and what they are told, ranks
 * that a test plays itself over a real socket, step by step, so that every order of events can be
 * had, and a real rank with an engine without a model.
 *
 * Waits have limits only so that a hang is a failure. Only *_test.c files include this. */
#ifndef LIGHTER_FLEET_TESTING_RANKS_H
#define LIGHTER_FLEET_TESTING_RANKS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#define TESTING_ENGINE_ALONE
#include "engine/testing_engine.h"
#include "fleet/dial.h"
#include "fleet/link.h"
#include "fleet/rank.h"
#include "fleet/remote.h"

#define WAIT_S 30
#define REQUESTS 64

/* ---- requests, and what they are told ---- */

struct asked {
    pthread_mutex_t lock; /* guards what follows */
    uint32_t piece_count, rank;
    enum finish_reason finish;
    enum status status;
    char message[512], text[256];
    uint64_t id;          /* the test's thread */
};
static struct asked asked[REQUESTS];

static inline void on_output(void *user, const struct engine_output *output)
{
    struct asked *own = user;

    pthread_mutex_lock(&own->lock);
    assert_int_equal(own->finish, FINISH_NONE);
    own->piece_count++;
    own->rank = output->dp_rank;
    own->finish = output->finish;
    own->status = output->status;
    (void)snprintf(own->message, sizeof(own->message), "%s", output->message);
    (void)strncat(own->text, output->text, sizeof(own->text) - strlen(own->text) - 1);
    pthread_mutex_unlock(&own->lock);
}

static inline enum status ask(struct fleet *fleet, uint32_t number, int64_t new_tokens,
                              struct err *err)
{
    const int32_t ids[3] = { (int32_t)number + 10, 5, 6 };
    struct sampling_params params;
    const struct engine_request request = {
        .prompt_ids = ids, .prompt_count = 3, .params = &params, .on_output = on_output,
        .user = &asked[number], .token_by_token = true,
    };

    sampling_params_init(&params);
    params.max_new_tokens = new_tokens;
    asked[number] = (struct asked){ .piece_count = 0 };
    pthread_mutex_init(&asked[number].lock, NULL);
    return fleet_submit(fleet, &request, &asked[number].id, err);
}

static inline struct asked told(uint32_t number)
{
    struct asked copy;

    pthread_mutex_lock(&asked[number].lock);
    copy = asked[number];
    pthread_mutex_unlock(&asked[number].lock);
    return copy;
}

static inline void nap(void)
{
    clock_sleep_until_ns(clock_now_ns() + 1000000);
}

static inline struct asked wait_end(uint32_t number)
{
    const uint64_t deadline_ns = clock_now_ns() + WAIT_S * UINT64_C(1000000000);

    while (told(number).finish == FINISH_NONE && clock_now_ns() < deadline_ns)
        nap();
    assert_int_not_equal(told(number).finish, FINISH_NONE);
    return told(number);
}

/* ---- ranks that the test plays ---- */

struct played {
    struct fleet__link link;
    uint64_t ids[REQUESTS];
    uint32_t count;        /* requests that have come */
    uint32_t canceled;
    uint64_t asked;        /* the number of the last report that it was asked for; 0: of none */
    bool left, closed;
    const char *shares;    /* what it says with ready; NULL */
    bool is_welcome;
    char given[64];        /* what the welcome says that others share; "" */
    char model[64], version[64]; /* that the welcome names; "": none */
    struct engine_update update; /* the last order; no strings */
    uint64_t update_id;    /* 0: none has come */
    struct fleet__step agreed; /* the last answer */
    uint32_t agreed_count;
};

static inline struct model_info small_model(void)
{
    return (struct model_info){
        .architecture = "A", .model_type = "a", .layer_count = 1, .vocab_size = 1000,
        .context_length = 64, .kv_page_size = 16, .kv_page_count = 8, .bos_id = 1,
    };
}

static inline int dial(struct fleet *fleet, struct fleet__tokens *tokens)
{
    const char *addresses = NULL;
    struct err err;
    int fd = -1;

    assert_int_equal(fleet__front_read(fleet_remote_front(fleet), tokens, &addresses, &err),
                     STATUS_OK);
    assert_int_equal(fleet__dial(&addresses, 5000, &fd, &err), STATUS_OK);
    assert_true(fd >= 0);
    return fd;
}

static inline void play_hello(struct played *rank, struct fleet *fleet, uint32_t number)
{
    struct fleet__hello hello = {
        .rank = number, .pid = 1000 + number, .host = "stage", .machine = "not this one",
    };
    struct fleet__tokens tokens;

    *rank = (struct played){ .count = 0 };
    fleet__link_init(&rank->link, dial(fleet, &tokens), FLEET__FRAME_BYTES_MAX);
    memcpy(hello.token, tokens.of_rank, sizeof(hello.token));
    assert_int_equal(fleet__link_send(&rank->link, fleet__hello_json(&hello), NULL), STATUS_OK);
}

static inline void play_ready(struct played *rank, uint32_t running_max)
{
    const struct model_info info = small_model();
    json_t *json = fleet__ready_json(&info, running_max, rank->shares);

    assert_int_equal(fleet__link_send(&rank->link, json, NULL), STATUS_OK);
}

static inline void play_welcome(struct played *rank, const json_t *json)
{
    struct fleet_rank_weights weights;
    const char *token = NULL, *shares = NULL;
    bool has_weights = false;

    assert_int_equal(fleet__welcome_read(json, &token, &has_weights, &weights, &shares, NULL),
                     STATUS_OK);
    rank->is_welcome = true;
    (void)snprintf(rank->given, sizeof(rank->given), "%s", shares == NULL ? "" : shares);
    if (!has_weights)
        return;
    assert_int_equal(weights.info.context_length, small_model().context_length);
    (void)snprintf(rank->model, sizeof(rank->model), "%s", weights.model_path);
    if (weights.weight_version != NULL)
        (void)snprintf(rank->version, sizeof(rank->version), "%s", weights.weight_version);
}

/* Takes what has come; beats all the while. */
static inline void play(struct played *rank)
{
    struct pollfd wait = { .fd = rank->link.fd, .events = POLLIN };
    enum fleet__op op = FLEET__BEAT;
    json_t *json = NULL;

    (void)fleet__link_send(&rank->link, fleet__message(FLEET__BEAT), NULL);
    if (poll(&wait, 1, 1) > 0 && fleet__link_fill(&rank->link, NULL) != STATUS_OK)
        rank->closed = true;
    while (fleet__link_next(&rank->link, &op, &json, NULL) == STATUS_OK && json != NULL) {
        if (op == FLEET__SUBMIT)
            assert_int_equal(fleet__id_read(json, &rank->ids[rank->count++], NULL), STATUS_OK);
        if (op == FLEET__ASK)
            assert_int_equal(fleet__id_read(json, &rank->asked, NULL), STATUS_OK);
        rank->canceled += op == FLEET__CANCEL;
        rank->left = rank->left || op == FLEET__LEAVE;
        if (op == FLEET__WELCOME)
            play_welcome(rank, json);
        if (op == FLEET__UPDATE)
            assert_int_equal(fleet__update_read(json, &rank->update_id, &rank->update, NULL),
                             STATUS_OK);
        rank->agreed_count += op == FLEET__AGREED;
        if (op == FLEET__AGREED)
            assert_int_equal(fleet__step_read(json, &rank->agreed, NULL), STATUS_OK);
        json_decref(json);
    }
}

static inline void play_until(struct played *ranks, uint32_t rank_count, uint32_t request_count)
{
    const uint64_t deadline_ns = clock_now_ns() + WAIT_S * UINT64_C(1000000000);
    uint32_t count;

    do {
        count = 0;
        for (uint32_t i = 0; i < rank_count; i++) {
            play(&ranks[i]);
            count += ranks[i].count;
        }
    } while (count < request_count && clock_now_ns() < deadline_ns);
    assert_int_equal(count, request_count);
}

static inline void play_output(struct played *rank, uint64_t id, const char *text, bool last)
{
    const struct engine_output output = {
        .text = text, .text_size = strlen(text), .finish = last ? FINISH_LENGTH : FINISH_NONE,
        .message = "", .matched_id = -1, .completion_token_count = 1,
    };

    assert_int_equal(fleet__link_send(&rank->link, fleet__output_json(id, &output), NULL),
                     STATUS_OK);
}

static inline void play_end(struct played *rank)
{
    fleet__link_deinit(&rank->link);
}

static inline struct fleet *create(uint32_t rank_count, uint32_t queue_max, bool needs_all)
{
    struct fleet_remote_options options;
    struct fleet *fleet = NULL;
    struct err err;

    fleet_remote_options_init(&options);
    options.rank_count = rank_count;
    options.queue_count_max = queue_max;
    options.needs_all = needs_all;
    if (fleet_create_remote(&options, NULL, &fleet, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return fleet;
}

/* A fleet whose ranks are all up. */
static inline struct fleet *start_as(struct played *ranks, uint32_t rank_count,
                                     uint32_t running_max, bool needs_all)
{
    struct fleet *fleet = create(rank_count, 16, needs_all);
    bool bad_usage = false;
    struct err err;

    for (uint32_t i = 0; i < rank_count; i++) {
        play_hello(&ranks[i], fleet, i);
        play_ready(&ranks[i], running_max);
    }
    assert_int_equal(fleet_remote_wait(fleet, &bad_usage, &err), STATUS_OK);
    return fleet;
}

static inline struct fleet *start(struct played *ranks, uint32_t rank_count, uint32_t running_max)
{
    return start_as(ranks, rank_count, running_max, false);
}

/* ---- a real one, with an engine without a model ---- */

static inline void gone(void *user, const char *why)
{
    (void)why;
    *(bool *)user = true;
}

static inline void *serve(void *user)
{
    void **own = user;
    bool finalize = false;
    struct err err;

    assert_int_equal(fleet_rank_serve(own[0], own[1], NULL, &finalize, &err), STATUS_OK);
    assert_true(finalize);
    testing_engine_destroy(own[1]);
    fleet_rank_destroy(own[0]);
    return NULL;
}

#endif
