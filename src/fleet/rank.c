/* fleet/rank.c - see rank.h.
 *
 *     rank's thread     polls the socket: submit -> engine_submit, cancel, ask; beats
 *     engine's thread   on_output -> a message, as much of it sent at once as the socket takes
 *     caller            waits in fleet_rank_serve
 *
 * A token costs its engine one small message: some microseconds beside a step's milliseconds.
 *
 * A job is a request that the engine has. It is in the list from before engine_submit until its
 * last piece; the engine's thread takes it out and frees it. Cancelling looks the job up under the
 * lock and calls the engine without it: an id that has ended meanwhile means nothing to the
 * engine. */
#include "fleet/rank.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "fleet/dial.h"
#include "fleet/rank_internal.h"

#define DIAL_MS 2000
#define WELCOME_MS 5000
#define BEAT_MS 250
#define FRONT_SILENCE_NS UINT64_C(60000000000) /* a front end that is stopped may go on */

struct fleet__job {
    struct fleet_rank *rank;
    uint64_t id;                 /* the front end's */
    uint64_t engine_id;          /* rank's thread */
    struct fleet__job *next, **link; /* guarded by rank->lock */
};

/* -- requests ---------------------------------------------------------------------------------- */

static void job_add(struct fleet__job *job)
{
    struct fleet_rank *rank = job->rank;

    pthread_mutex_lock(&rank->lock);
    job->next = rank->jobs;
    job->link = &rank->jobs;
    if (job->next != NULL)
        job->next->link = &job->next;
    rank->jobs = job;
    pthread_mutex_unlock(&rank->lock);
}

static void job_end(struct fleet__job *job)
{
    struct fleet_rank *rank = job->rank;

    pthread_mutex_lock(&rank->lock);
    *job->link = job->next;
    if (job->next != NULL)
        job->next->link = job->link;
    pthread_mutex_unlock(&rank->lock);
    free(job);
}

static void wake(struct fleet_rank *rank)
{
    const uint64_t one = 1;

    (void)!write(rank->wake_fd, &one, sizeof(one));
}

void fleet__say(struct fleet_rank *rank, json_t *json)
{
    (void)fleet__link_send(&rank->link, json, NULL); /* broken: the thread will see it */
    if (fleet__link_wants_out(&rank->link))
        wake(rank);
}

/* Engine's thread. */
static void on_output(void *user, const struct engine_output *output)
{
    struct fleet__job *job = user;

    fleet__say(job->rank, fleet__output_json(job->id, output));
    if (output->finish != FINISH_NONE)
        job_end(job);
}

/* What was not taken ends like what was: with a last piece. */
static void refuse(struct fleet_rank *rank, uint64_t id, enum status status, const char *message)
{
    const struct engine_output output = {
        .text = "", .finish = FINISH_ABORT, .status = status, .message = message,
        .matched_id = -1,
    };

    fleet__say(rank, fleet__output_json(id, &output));
}

static enum status on_submit(struct fleet_rank *rank, const json_t *json, struct err *err)
{
    struct fleet__submit submit;
    struct fleet__job *job = NULL;
    struct err why;
    enum status st = fleet__submit_read(json, &submit, err);

    if (st != STATUS_OK)
        return st;
    job = calloc(1, sizeof(*job));
    if (job != NULL) {
        const struct engine_request request = {
            .prompt_ids = submit.ids, .prompt_count = submit.id_count, .params = &submit.params,
            .on_output = on_output, .user = job, .token_by_token = submit.token_by_token,
        };
        *job = (struct fleet__job){ .rank = rank, .id = submit.id };
        job_add(job);
        st = engine_submit(rank->engine, &request, &job->engine_id, &why);
        if (st != STATUS_OK) {
            job_end(job);
            refuse(rank, submit.id, st, why.message);
        }
    } else {
        refuse(rank, submit.id, STATUS_NO_MEMORY, "no memory for a request");
    }
    fleet__submit_deinit(&submit);
    return STATUS_OK;
}

static enum status on_cancel(struct fleet_rank *rank, const json_t *json, struct err *err)
{
    uint64_t id = 0, engine_id = 0;
    bool found = false;
    enum status st = fleet__id_read(json, &id, err);

    if (st != STATUS_OK)
        return st;
    pthread_mutex_lock(&rank->lock);
    for (const struct fleet__job *job = rank->jobs; job != NULL && !found; job = job->next) {
        found = job->id == id;
        engine_id = job->engine_id;
    }
    pthread_mutex_unlock(&rank->lock);
    if (found)
        engine_cancel(rank->engine, engine_id);
    return STATUS_OK;
}

static enum status on_ask(struct fleet_rank *rank, const json_t *json, struct err *err)
{
    uint64_t id = 0;
    json_t *answer;
    enum status st = fleet__id_read(json, &id, err);

    if (st != STATUS_OK)
        return st;
    answer = fleet__message_id(FLEET__REPORT, id);
    if (answer != NULL)
        (void)json_object_set_new(answer, "report", engine_report_json(rank->engine));
    fleet__say(rank, answer);
    return STATUS_OK;
}

static void on_leave(struct fleet_rank *rank, const json_t *json)
{
    pthread_mutex_lock(&rank->lock);
    rank->leaving = true;
    rank->finalize = json_is_true(json_object_get(json, "finalize"));
    pthread_cond_broadcast(&rank->changed);
    pthread_mutex_unlock(&rank->lock);
}

static enum status on_message(struct fleet_rank *rank, enum fleet__op op, json_t *json,
                              struct err *err)
{
    bool ready;

    rank->heard_ns = clock_now_ns();
    if (op == FLEET__BEAT)
        return STATUS_OK;
    if (op == FLEET__LEAVE) {
        on_leave(rank, json);
        return STATUS_OK;
    }
    pthread_mutex_lock(&rank->lock);
    ready = rank->engine != NULL;
    pthread_mutex_unlock(&rank->lock);
    if (ready && op == FLEET__SUBMIT)
        return on_submit(rank, json, err);
    if (ready && op == FLEET__CANCEL)
        return on_cancel(rank, json, err);
    if (ready && op == FLEET__ASK)
        return on_ask(rank, json, err);
    if (ready && op == FLEET__UPDATE)
        return fleet__rank_on_update(rank, json, err);
    if (ready && op == FLEET__AGREED)
        return fleet__rank_on_agreed(rank, json, err);
    return err_set(err, STATUS_PEER, "the front end sent something out of turn");
}

/* -- the thread -------------------------------------------------------------------------------- */

static enum status read_all(struct fleet_rank *rank, struct err *err)
{
    enum status st = fleet__link_fill(&rank->link, err);

    while (st == STATUS_OK) {
        enum fleet__op op = FLEET__BEAT;
        json_t *json = NULL;

        st = fleet__link_next(&rank->link, &op, &json, err);
        if (st != STATUS_OK || json == NULL)
            break;
        st = on_message(rank, op, json, err);
        json_decref(json);
    }
    return st;
}

static bool is_stopping(struct fleet_rank *rank)
{
    bool stopping;

    pthread_mutex_lock(&rank->lock);
    stopping = rank->stopping;
    pthread_mutex_unlock(&rank->lock);
    return stopping;
}

/* Hands over to a new process when the engine can't go on and all it has said is sent. */
static void check_engine(struct fleet_rank *rank)
{
    struct engine *engine;
    struct err why;

    pthread_mutex_lock(&rank->lock);
    engine = rank->stopping ? NULL : rank->engine;
    pthread_mutex_unlock(&rank->lock);
    if (engine != NULL && !fleet__link_wants_out(&rank->link) &&
        engine_health(engine, &why) != STATUS_OK)
        rank->options.on_stopped(rank->options.user, why.message);
}

/* Rounded up; 0 when it is due. */
static int ms_until(uint64_t due_ns)
{
    const uint64_t now_ns = clock_now_ns();

    return now_ns >= due_ns ? 0 : (int)((due_ns - now_ns) / 1000000) + 1;
}

static void *rank_thread(void *user)
{
    struct fleet_rank *rank = user;
    uint64_t due_ns = 0, drained; /* of the next beat */
    enum status st = STATUS_OK;
    struct err err;

    rank->heard_ns = clock_now_ns();
    while (!is_stopping(rank) && st == STATUS_OK) {
        struct pollfd fds[2] = {
            { .fd = rank->link.fd, .events = POLLIN },
            { .fd = rank->wake_fd, .events = POLLIN },
        };

        if (fleet__link_wants_out(&rank->link))
            fds[0].events |= POLLOUT;
        (void)poll(fds, 2, ms_until(due_ns));
        if (fds[1].revents != 0)
            (void)!read(rank->wake_fd, &drained, sizeof(drained));
        if (ms_until(due_ns) == 0) {
            due_ns = clock_now_ns() + BEAT_MS * UINT64_C(1000000);
            fleet__say(rank, fleet__message(FLEET__BEAT));
        }
        if (fleet__link_wants_out(&rank->link))
            st = fleet__link_flush(&rank->link, &err);
        if (st == STATUS_OK && (fds[0].revents & ~POLLOUT) != 0)
            st = read_all(rank, &err);
        check_engine(rank);
        if (st == STATUS_OK && clock_now_ns() - rank->heard_ns > FRONT_SILENCE_NS)
            st = err_set(&err, STATUS_PEER, "the front end has been silent for too long");
    }
    if (st != STATUS_OK && !is_stopping(rank))
        rank->options.on_gone(rank->options.user, err.message);
    return NULL;
}

/* -- connecting -------------------------------------------------------------------------------- */

static json_t *own_hello(const struct fleet_rank_options *options,
                         const struct fleet__tokens *tokens)
{
    struct fleet__hello hello = { .rank = options->rank, .pid = getpid() };

    memcpy(hello.token, tokens->of_rank, sizeof(hello.token));
    if (gethostname(hello.host, sizeof(hello.host) - 1) != 0)
        hello.host[0] = '\0';
    fleet__machine(hello.machine);
    return fleet__hello_json(&hello);
}

/* Hello, and the welcome of somebody who knows the token. */
static enum status greet(struct fleet_rank *rank, const struct fleet__tokens *tokens,
                         struct err *err)
{
    const uint64_t deadline_ns = clock_now_ns() + WELCOME_MS * UINT64_C(1000000);
    struct fleet__link *link = &rank->link;
    enum status st = fleet__link_send(link, own_hello(&rank->options, tokens), err);

    while (st == STATUS_OK && clock_now_ns() < deadline_ns) {
        struct pollfd wait = { .fd = link->fd, .events = POLLIN };
        enum fleet__op op = FLEET__BEAT;
        const char *token = NULL;
        json_t *json = NULL;

        if (poll(&wait, 1, BEAT_MS) > 0)
            st = fleet__link_fill(link, err);
        if (st == STATUS_OK)
            st = fleet__link_next(link, &op, &json, err);
        if (json == NULL)
            continue;
        if (op == FLEET__WELCOME &&
            fleet__welcome_read(json, &token, &rank->has_weights, &rank->weights,
                                &rank->shares, err) == STATUS_OK &&
            fleet__token_equal(token, tokens->of_front)) {
            rank->welcome = json;
            return STATUS_OK;
        }
        json_decref(json);
        st = err_set(err, STATUS_PEER, "somebody else listens there");
    }
    return st != STATUS_OK ? st : err_set(err, STATUS_PEER, "no answer within %d ms", WELCOME_MS);
}

static enum status connect_any(struct fleet_rank *rank, struct err *err)
{
    struct fleet__tokens tokens;
    const char *addresses = "", *at;
    enum status st = fleet__front_read(rank->options.front, &tokens, &addresses, err);

    if (st != STATUS_OK)
        return st;
    for (at = addresses;;) {
        struct err why;
        int fd = -1;

        if (fleet__dial(&at, DIAL_MS, &fd, &why) != STATUS_OK)
            break;
        if (fd < 0)
            continue;
        fleet__link_init(&rank->link, fd, FLEET__FRAME_BYTES_MAX);
        if (greet(rank, &tokens, &why) == STATUS_OK)
            return STATUS_OK;
        fleet__link_deinit(&rank->link);
    }
    return err_set(err, STATUS_PEER, "rank %u finds no front end at%s", rank->options.rank,
                   addresses);
}

static void rank_free(struct fleet_rank *rank)
{
    if (rank->link.fd >= 0)
        fleet__link_deinit(&rank->link);
    if (rank->wake_fd >= 0)
        (void)close(rank->wake_fd);
    json_decref(rank->welcome);
    pthread_cond_destroy(&rank->changed);
    pthread_mutex_destroy(&rank->lock);
    free(rank);
}

const struct fleet_rank_weights *fleet_rank_weights(const struct fleet_rank *rank)
{
    return rank->has_weights ? &rank->weights : NULL;
}

const char *fleet_rank_shares(const struct fleet_rank *rank)
{
    return rank->shares;
}

enum status fleet_rank_connect(const struct fleet_rank_options *options,
                               struct fleet_rank **rank_out, struct err *err)
{
    struct fleet_rank *rank = calloc(1, sizeof(*rank));
    enum status st = STATUS_OK;

    if (rank == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a rank");
    rank->options = *options;
    rank->link.fd = -1;
    pthread_mutex_init(&rank->lock, NULL);
    pthread_cond_init(&rank->changed, NULL);
    rank->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (rank->wake_fd < 0)
        st = err_set(err, STATUS_UNAVAILABLE, "no eventfd: %s", strerror(errno));
    if (st == STATUS_OK)
        st = connect_any(rank, err);
    rank->options.front = NULL;
    if (st == STATUS_OK && pthread_create(&rank->thread, NULL, rank_thread, rank) != 0)
        st = err_set(err, STATUS_NO_MEMORY, "no thread for a rank's socket");
    if (st != STATUS_OK) {
        rank_free(rank);
        return st;
    }
    rank->has_thread = true;
    *rank_out = rank;
    return STATUS_OK;
}

/* -- serving ----------------------------------------------------------------------------------- */

static void thread_stop(struct fleet_rank *rank)
{
    if (!rank->has_thread)
        return;
    pthread_mutex_lock(&rank->lock);
    rank->stopping = true;
    pthread_cond_broadcast(&rank->changed);
    pthread_mutex_unlock(&rank->lock);
    wake(rank);
    pthread_join(rank->thread, NULL);
    rank->has_thread = false;
    fleet__rank_update_stop(rank);
}

void fleet_rank_fail(struct fleet_rank *rank, enum status status, const char *message,
                     bool bad_usage)
{
    json_t *json = fleet__status_json(FLEET__FAILED, 0, status, message);

    if (json != NULL)
        (void)json_object_set_new(json, "bad_usage", json_boolean(bad_usage));
    fleet__say(rank, json);
    thread_stop(rank);
}

enum status fleet_rank_serve(struct fleet_rank *rank, struct engine *engine, const char *shares,
                             bool *finalize_out, struct err *err)
{
    json_t *report = engine_report_json(engine);
    const json_int_t running_max = json_integer_value(json_object_get(report, "running_max"));

    json_decref(report);
    if (running_max < 1)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a report");
    pthread_mutex_lock(&rank->lock);
    assert(rank->engine == NULL);
    rank->engine = engine;
    pthread_mutex_unlock(&rank->lock);
    fleet__say(rank, fleet__ready_json(engine_model_info(engine), (uint32_t)running_max, shares));
    pthread_mutex_lock(&rank->lock);
    while (!rank->leaving)
        pthread_cond_wait(&rank->changed, &rank->lock);
    *finalize_out = rank->finalize;
    pthread_mutex_unlock(&rank->lock);
    thread_stop(rank);
    return STATUS_OK;
}

void fleet_rank_destroy(struct fleet_rank *rank)
{
    if (rank == NULL)
        return;
    thread_stop(rank);
    rank_free(rank);
}
