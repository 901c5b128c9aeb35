/* fleet/remote_thread.c - the front end's thread for its ranks: hellos, answers, beats, deaths.
 *
 *     DOWN --hello--> LOADING --ready, and no update runs--> UP
 *      ^-- peer_lost: its socket closes, it is silent, it talks nonsense, another takes its number
 *
 * Silence: each side sends a beat every quarter of a second, from a thread that does little else
 * and so waits for a processor no longer than the scheduler's turns take. A rank is given up after
 * 1.7 seconds without a byte, and looked at every tenth of one, so that its end is noticed within
 * two; but when this thread itself was kept from running meanwhile, so may have been the ranks, and
 * what they sent waits to be read: their time then begins anew. A silent rank on this machine is
 * killed, so that it does not wake up and hold what its successor needs.
 *
 * Weights: a rank is told in its welcome what to load. One that gets ready when an update has been
 * decided since is hung up on, and started again by whoever did so first. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "fleet/remote_internal.h"

static uint32_t rank_of(const struct fleet__remote *remote, const struct fleet__peer *peer)
{
    return (uint32_t)(peer - remote->peers);
}

static void link_free(struct fleet__link *link)
{
    if (link == NULL)
        return;
    fleet__link_deinit(link);
    free(link);
}

/* -- deaths ------------------------------------------------------------------------------------ */

static void peer_lost(struct fleet__remote *remote, struct fleet__peer *peer, const char *why)
{
    struct fleet__request *lost = NULL;
    struct fleet__link *link;
    uint32_t count = 0;
    char message[400];
    bool expected;

    pthread_mutex_lock(&remote->lock);
    expected = remote->leaving || remote->stopping;
    link = peer->link;
    peer->link = NULL;
    (void)snprintf(peer->why, sizeof(peer->why), "%s", why);
    while (peer->requests.first != NULL) {
        struct fleet__request *request = peer->requests.first;
        fleet__take_out(remote, request);
        request->next = lost;
        lost = request;
        count++;
    }
    if (peer->state == FLEET__UP) {
        remote->lost_count += count;
        remote->has_died = true;
    }
    if (peer->state == FLEET__LOADING && !peer->is_ready && remote->is_serving &&
        !remote->has_failed) {
        /* What waits must not wait for ever for ranks that never get there. */
        remote->has_failed = true;
        (void)err_set(&remote->failure, STATUS_PEER, "rank %u died while it was loading: %s",
                      rank_of(remote, peer), why);
    }
    peer->state = FLEET__DOWN;
    peer->is_ready = false;
    free(peer->shares);
    peer->shares = NULL;
    fleet__update_lost(remote, peer);
    pthread_cond_broadcast(&remote->changed);
    pthread_mutex_unlock(&remote->lock);
    link_free(link);
    (void)snprintf(message, sizeof(message),
                   "rank %u (process %" PRId64 " on %.60s) has died, and this request with it: "
                   "%.200s", rank_of(remote, peer), peer->hello.pid, peer->hello.host, why);
    if (!expected)
        log_line(remote->log, LOG_WARN,
                 "rank %u (process %" PRId64 " on %.60s) has died: %.200s; requests that end with "
                 "it: %u", rank_of(remote, peer), peer->hello.pid, peer->hello.host, why,
                 count);
    while (lost != NULL) {
        struct fleet__request *request = lost;
        lost = request->next;
        fleet__abort(remote, request, STATUS_PEER, message);
    }
}

/* -- what ranks say ---------------------------------------------------------------------------- */

static enum status on_ready(struct fleet__remote *remote, struct fleet__peer *peer,
                            const json_t *json, struct err *err)
{
    struct model_info info;
    const char *shares = NULL;
    uint32_t running_max = 0;
    bool differs;
    enum status st = fleet__ready_read(json, &info, &running_max, &shares, err);

    if (st != STATUS_OK)
        return st;
    pthread_mutex_lock(&remote->lock);
    if (!remote->has_info)
        remote->info = info;
    remote->has_info = true;
    differs = strcmp(remote->info.architecture, info.architecture) != 0 ||
              remote->info.vocab_size != info.vocab_size ||
              remote->info.context_length != info.context_length ||
              remote->info.kv_page_size != info.kv_page_size;
    if (!differs) {
        peer->is_ready = true;
        peer->shares = shares == NULL ? NULL : strdup(shares);
        peer->running_max = running_max;
        peer->pages_max = (struct engine_pages){ info.kv_page_count, info.kv_window_page_count };
    }
    pthread_mutex_unlock(&remote->lock);
    return differs ? err_set(err, STATUS_PEER, "it has another model than the ranks before it")
                   : STATUS_OK;
}

/* Takes in those who are ready, unless an update is to be decided first. */
static void take_in(struct fleet__remote *remote)
{
    bool is_up[FLEET_RANK_COUNT_MAX] = { false }, is_stale[FLEET_RANK_COUNT_MAX] = { false };
    bool any = false;

    pthread_mutex_lock(&remote->lock);
    for (uint32_t i = 0; i < remote->options.rank_count && !remote->update.is_running; i++) {
        struct fleet__peer *peer = &remote->peers[i];

        is_stale[i] = peer->is_ready && peer->weights_serial != remote->weights_serial;
        is_up[i] = peer->is_ready && !is_stale[i];
        if (!is_up[i])
            continue;
        any = true;
        peer->is_ready = false;
        peer->state = FLEET__UP;
        remote->has_failed = false;
        remote->has_started = true;
    }
    (void)fleet__dispatch(remote); /* full: the next turn looks */
    if (any)
        pthread_cond_broadcast(&remote->changed);
    pthread_mutex_unlock(&remote->lock);
    for (uint32_t i = 0; i < remote->options.rank_count; i++) {
        struct fleet__peer *peer = &remote->peers[i];

        if (is_up[i])
            log_line(remote->log, LOG_INFO, "rank %u (process %" PRId64 " on %s) is up", i,
                     peer->hello.pid, peer->hello.host);
        if (is_stale[i])
            peer_lost(remote, peer, "it has loaded weights that were updated meanwhile");
    }
}

/* It could not start. */
static enum status on_failed(struct fleet__remote *remote, const struct fleet__peer *peer,
                             const json_t *json, struct err *err)
{
    struct err said = { 0 };
    bool is_serving;
    enum status status = STATUS_OK;
    enum status st = fleet__status_read(json, &status, &said, err);

    if (st != STATUS_OK)
        return st;
    if (status == STATUS_OK)
        return err_set(err, STATUS_PEER, "it failed without an error");
    pthread_mutex_lock(&remote->lock);
    is_serving = remote->is_serving; /* else whoever starts the ranks says it */
    if (!remote->has_failed) {
        remote->failure = said;
        remote->has_failed = true;
        remote->bad_usage = json_is_true(json_object_get(json, "bad_usage"));
    }
    pthread_cond_broadcast(&remote->changed);
    pthread_mutex_unlock(&remote->lock);
    log_line(remote->log, is_serving ? LOG_WARN : LOG_DEBUG, "rank %u has failed: %s",
             rank_of(remote, peer), said.message);
    return STATUS_OK;
}

/* It has served, and failed as it left. */
static enum status on_left(struct fleet__remote *remote, const struct fleet__peer *peer,
                           const json_t *json, struct err *err)
{
    struct err said = { 0 };
    enum status status = STATUS_OK;
    enum status st = fleet__status_read(json, &status, &said, err);

    if (st != STATUS_OK)
        return st;
    pthread_mutex_lock(&remote->lock);
    if (!remote->leaving || status == STATUS_OK)
        st = err_set(err, STATUS_PEER, "it failed out of turn");
    else if (remote->left.status == STATUS_OK)
        (void)err_set(&remote->left, status, "rank %u: %s", rank_of(remote, peer), said.message);
    pthread_mutex_unlock(&remote->lock);
    return st;
}

static enum status on_output(struct fleet__remote *remote, struct fleet__peer *peer,
                             const json_t *json, struct err *err)
{
    struct fleet__output read;
    struct fleet__request *request;
    bool last, look_again = false;
    double waited_s;
    enum status st = fleet__output_read(json, &read, err);

    if (st != STATUS_OK)
        return st;
    last = read.output.finish != FINISH_NONE;
    pthread_mutex_lock(&remote->lock);
    request = fleet__find(remote, read.id);
    if (request != NULL && request->peer != peer)
        request = NULL;
    if (request != NULL && last) {
        fleet__take_out(remote, request);
        look_again = fleet__dispatch(remote);
    }
    pthread_mutex_unlock(&remote->lock);
    if (request == NULL) {
        fleet__output_deinit(&read);
        return err_set(err, STATUS_PEER, "it answered a request that it doesn't have");
    }
    if (look_again)
        fleet__wake(remote);
    waited_s = (double)(request->sent_ns - request->submit_ns) * 1e-9;
    read.output.queue_s += waited_s;
    read.output.e2e_s += waited_s;
    read.output.dp_rank = rank_of(remote, peer);
    request->told_count = read.output.completion_token_count;
    request->on_output(request->user, &read.output);
    if (last)
        fleet__request_free(remote, request);
    fleet__output_deinit(&read);
    return STATUS_OK;
}

static enum status on_report(struct fleet__remote *remote, struct fleet__peer *peer,
                             const json_t *json, struct err *err)
{
    json_t *report = json_object_get(json, "report");
    uint64_t serial = 0;
    enum status st = fleet__id_read(json, &serial, err);

    if (st != STATUS_OK)
        return st;
    pthread_mutex_lock(&remote->lock);
    json_decref(peer->report);
    peer->report = json_incref(report);
    peer->report_serial = serial;
    pthread_cond_broadcast(&remote->changed);
    pthread_mutex_unlock(&remote->lock);
    return STATUS_OK;
}

static enum status on_updated(struct fleet__remote *remote, struct fleet__peer *peer,
                              const json_t *json, struct err *err)
{
    struct fleet__step step;
    enum status st = fleet__step_read(json, &step, err);

    if (st != STATUS_OK)
        return st;
    pthread_mutex_lock(&remote->lock);
    st = fleet__update_come(remote, peer, &step, err);
    pthread_mutex_unlock(&remote->lock);
    return st;
}

static enum status on_message(struct fleet__remote *remote, struct fleet__peer *peer,
                              enum fleet__op op, const json_t *json, struct err *err)
{
    const bool is_up = peer->state == FLEET__UP; /* only this thread changes it, and the next */
    const bool is_loading = !is_up && !peer->is_ready;

    if (op == FLEET__BEAT)
        return STATUS_OK;
    if (op == FLEET__READY && is_loading)
        return on_ready(remote, peer, json, err);
    if (op == FLEET__FAILED && is_loading)
        return on_failed(remote, peer, json, err);
    if (op == FLEET__FAILED && is_up)
        return on_left(remote, peer, json, err);
    if (op == FLEET__OUTPUT && is_up)
        return on_output(remote, peer, json, err);
    if (op == FLEET__REPORT && is_up)
        return on_report(remote, peer, json, err);
    if (op == FLEET__UPDATED && is_up)
        return on_updated(remote, peer, json, err);
    return err_set(err, STATUS_PEER, "it sent something out of turn");
}

/* -- sockets ----------------------------------------------------------------------------------- */

/* Takes the messages that are there. `st` and `filled`: what filling said, which is believed only
 * after them. */
static void peer_take(struct fleet__remote *remote, struct fleet__peer *peer, enum status st,
                      const struct err *filled)
{
    struct err err = { 0 };

    if (st != STATUS_OK)
        err = *filled;
    peer->heard_ns = clock_now_ns();
    for (;;) {
        enum fleet__op op = FLEET__BEAT;
        json_t *json = NULL;
        struct err nonsense;
        const enum status next = fleet__link_next(peer->link, &op, &json, &nonsense);

        if (next != STATUS_OK || json == NULL) {
            if (next != STATUS_OK && st == STATUS_OK)
                err = nonsense;
            st = st == STATUS_OK ? next : st;
            break;
        }
        if (on_message(remote, peer, op, json, &nonsense) != STATUS_OK && st == STATUS_OK) {
            st = STATUS_PEER;
            err = nonsense;
        }
        json_decref(json);
    }
    if (st != STATUS_OK)
        peer_lost(remote, peer, err.message);
}

static void peer_read(struct fleet__remote *remote, struct fleet__peer *peer)
{
    struct err err;
    const enum status st = fleet__link_fill(peer->link, &err);

    peer_take(remote, peer, st, &err);
}

static void accept_one(struct fleet__remote *remote)
{
    const int fd = accept4(remote->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    struct fleet__pending *place = NULL;
    const int on = 1;

    for (size_t i = 0; i < FLEET__PENDING_MAX && place == NULL; i++)
        if (remote->pending[i].link == NULL)
            place = &remote->pending[i];
    if (fd < 0)
        return;
    if (place != NULL)
        place->link = calloc(1, sizeof(*place->link));
    if (place == NULL || place->link == NULL) {
        (void)close(fd);
        return;
    }
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    fleet__link_init(place->link, fd, FLEET__HELLO_BYTES_MAX);
    place->deadline_ns = clock_now_ns() + FLEET__HELLO_NS;
}

/* What somebody who starts now can have of a rank of his machine. While an update runs it may be in
 * between two weights. */
static const char *shares_for(const struct fleet__remote *remote,
                              const struct fleet__hello *hello)
{
    for (uint32_t i = 0; i < remote->options.rank_count && !remote->update.is_running; i++) {
        const struct fleet__peer *peer = &remote->peers[i];

        if (peer->state == FLEET__UP && peer->shares != NULL && i != hello->rank &&
            strcmp(peer->hello.machine, hello->machine) == 0)
            return peer->shares;
    }
    return NULL;
}

static void welcome(struct fleet__remote *remote, struct fleet__pending *pending,
                    const struct fleet__hello *hello)
{
    struct fleet__peer *peer = &remote->peers[hello->rank];
    struct fleet_rank_weights weights;
    const char *shares;
    bool has_weights;

    if (peer->link != NULL)
        peer_lost(remote, peer, "another process has taken its place");
    pthread_mutex_lock(&remote->lock);
    has_weights = fleet__update_weights(remote, &weights);
    shares = shares_for(remote, hello);
    (void)fleet__link_send(pending->link,
                           fleet__welcome_json(remote->tokens.of_front,
                                               has_weights ? &weights : NULL, shares), NULL);
    pending->link->frame_bytes_max = FLEET__FRAME_BYTES_MAX;
    peer->heard_ns = clock_now_ns();
    peer->restart_count += peer->hello.pid != 0;
    peer->hello = *hello;
    peer->link = pending->link;
    peer->is_cut = false;
    peer->state = FLEET__LOADING;
    peer->weights_serial = remote->weights_serial;
    peer->was_given_shares = shares != NULL;
    json_decref(peer->report);
    peer->report = NULL;
    peer->asked_serial = 0;
    pthread_mutex_unlock(&remote->lock);
    pending->link = NULL;
    log_line(remote->log, LOG_DEBUG, "rank %u is process %" PRId64 " on %s", hello->rank,
             hello->pid, hello->host);
    peer_take(remote, peer, STATUS_OK, NULL); /* what came behind the hello */
}

static void pending_read(struct fleet__remote *remote, struct fleet__pending *pending)
{
    enum fleet__op op = FLEET__BEAT;
    struct fleet__hello hello;
    json_t *json = NULL;
    struct err err;
    enum status st = fleet__link_fill(pending->link, &err);

    if (st == STATUS_OK)
        st = fleet__link_next(pending->link, &op, &json, &err);
    if (st == STATUS_OK && json == NULL)
        return;
    if (st == STATUS_OK && op != FLEET__HELLO)
        st = err_set(&err, STATUS_PEER, "it did not say hello");
    if (st == STATUS_OK)
        st = fleet__hello_read(json, &hello, &err);
    if (st == STATUS_OK && (!fleet__token_equal(hello.token, remote->tokens.of_rank) ||
                            hello.rank >= remote->options.rank_count))
        st = err_set(&err, STATUS_PEER, "a stranger");
    json_decref(json);
    if (st == STATUS_OK) {
        welcome(remote, pending, &hello);
        return;
    }
    log_line(remote->log, LOG_WARN, "a connection to the ranks' port was closed: %s", err.message);
    link_free(pending->link);
    pending->link = NULL;
}

/* -- time -------------------------------------------------------------------------------------- */

static void check_silence(struct fleet__remote *remote, struct fleet__peer *peer, uint64_t now_ns,
                          bool was_late)
{
    const uint64_t ms_max =
        peer->state == FLEET__UP ? FLEET__SILENCE_MS : FLEET__SILENCE_LOADING_MS;
    char why[64];

    if (was_late)
        peer->heard_ns = now_ns;
    if (now_ns - peer->heard_ns < ms_max * 1000000)
        return;
    if (strcmp(peer->hello.machine, remote->machine) == 0 && peer->hello.pid != getpid())
        (void)kill((pid_t)peer->hello.pid, SIGKILL);
    (void)snprintf(why, sizeof(why), "it has been silent for %.1f seconds%s",
                   (double)ms_max * 1e-3, peer->state == FLEET__UP ? "" : ", loading");
    peer_lost(remote, peer, why);
}

/* Gives up who is silent. Whoever was told to leave has nothing more to say. */
static void listen_for_all(struct fleet__remote *remote, uint64_t now_ns)
{
    const bool was_late = now_ns - remote->turn_ns > FLEET__LATE_NS;
    bool leaving;

    remote->turn_ns = now_ns;
    pthread_mutex_lock(&remote->lock);
    leaving = remote->leaving;
    pthread_mutex_unlock(&remote->lock);
    for (uint32_t i = 0; i < remote->options.rank_count && !leaving; i++)
        if (remote->peers[i].link != NULL)
            check_silence(remote, &remote->peers[i], now_ns, was_late);
}

static void beat(struct fleet__remote *remote, uint64_t now_ns)
{
    if (now_ns - remote->beat_ns < FLEET__BEAT_MS * UINT64_C(1000000))
        return;
    remote->beat_ns = now_ns;
    for (uint32_t i = 0; i < remote->options.rank_count; i++)
        if (remote->peers[i].link != NULL)
            (void)fleet__link_send(remote->peers[i].link, fleet__message(FLEET__BEAT), NULL);
    for (size_t i = 0; i < FLEET__PENDING_MAX; i++) {
        struct fleet__pending *pending = &remote->pending[i];
        if (pending->link != NULL && now_ns > pending->deadline_ns) {
            link_free(pending->link);
            pending->link = NULL;
        }
    }
}

/* Ends what waits and is not wanted any more, or can't be served. */
static void sweep_queue(struct fleet__remote *remote)
{
    struct fleet__request *list = NULL;
    char why[sizeof(remote->failure.message)] = "";
    bool any = false, hopeless;

    pthread_mutex_lock(&remote->lock);
    for (uint32_t i = 0; i < remote->options.rank_count; i++)
        any = any || remote->peers[i].state == FLEET__UP;
    hopeless = remote->stopping || (!any && remote->has_failed);
    if (hopeless)
        (void)snprintf(why, sizeof(why), "%s",
                       remote->stopping ? "the server is shutting down"
                                        : remote->failure.message);
    for (struct fleet__request *at = remote->queue.first, *next; at != NULL; at = next) {
        next = at->next;
        if (!hopeless && !at->canceled && !at->for_update)
            continue;
        fleet__take_out(remote, at);
        at->next = list;
        list = at;
    }
    pthread_mutex_unlock(&remote->lock);
    while (list != NULL) {
        struct fleet__request *request = list;
        list = request->next;
        if (request->canceled)
            fleet__abort(remote, request, STATUS_CANCELED, "the request was canceled");
        else if (request->for_update)
            fleet__abort(remote, request, STATUS_CANCELED,
                         "the request was aborted for an update of the weights");
        else
            fleet__abort(remote, request, STATUS_UNAVAILABLE, why);
    }
}

/* -- the thread -------------------------------------------------------------------------------- */

static short events_of(struct fleet__link *link)
{
    return (short)(POLLIN | (fleet__link_wants_out(link) ? POLLOUT : 0));
}

/* Waits for whatever happens next, for FLEET__TURN_MS at most, and sees to it. */
static void turn(struct fleet__remote *remote)
{
    struct pollfd fds[2 + FLEET__PENDING_MAX + FLEET_RANK_COUNT_MAX];
    const nfds_t count = 2 + FLEET__PENDING_MAX + remote->options.rank_count;
    uint64_t drained, now_ns;

    fds[0] = (struct pollfd){ .fd = remote->wake_fd, .events = POLLIN };
    fds[1] = (struct pollfd){ .fd = remote->listen_fd, .events = POLLIN };
    for (nfds_t i = 2; i < count; i++) {
        struct fleet__link *link = i < 2 + FLEET__PENDING_MAX
                                       ? remote->pending[i - 2].link
                                       : remote->peers[i - 2 - FLEET__PENDING_MAX].link;
        fds[i] = (struct pollfd){ .fd = link == NULL ? -1 : link->fd };
        fds[i].events = link == NULL ? 0 : events_of(link);
    }
    (void)poll(fds, count, FLEET__TURN_MS);
    if (fds[0].revents != 0)
        (void)!read(remote->wake_fd, &drained, sizeof(drained));
    for (nfds_t i = 2 + FLEET__PENDING_MAX; i < count; i++) {
        struct fleet__peer *peer = &remote->peers[i - 2 - FLEET__PENDING_MAX];
        if ((fds[i].revents & POLLOUT) != 0)
            (void)fleet__link_flush(peer->link, NULL); /* broken: reading says so too */
        if ((fds[i].revents & ~POLLOUT) != 0)
            peer_read(remote, peer);
    }
    for (nfds_t i = 2; i < 2 + FLEET__PENDING_MAX; i++)
        if (fds[i].revents != 0)
            pending_read(remote, &remote->pending[i - 2]);
    if (fds[1].revents != 0)
        accept_one(remote);
    now_ns = clock_now_ns();
    listen_for_all(remote, now_ns);
    beat(remote, now_ns);
    sweep_queue(remote);
    take_in(remote);
}

static bool is_stopping(struct fleet__remote *remote)
{
    bool stopping;

    pthread_mutex_lock(&remote->lock);
    stopping = remote->stopping;
    pthread_mutex_unlock(&remote->lock);
    return stopping;
}

void *fleet__remote_thread(void *user)
{
    struct fleet__remote *remote = user;

    remote->turn_ns = clock_now_ns();
    while (!is_stopping(remote))
        turn(remote);
    for (uint32_t i = 0; i < remote->options.rank_count; i++)
        if (remote->peers[i].link != NULL)
            peer_lost(remote, &remote->peers[i], "the server is shutting down");
    for (size_t i = 0; i < FLEET__PENDING_MAX; i++)
        link_free(remote->pending[i].link);
    sweep_queue(remote);
    return NULL;
}
