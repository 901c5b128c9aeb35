/* fleet/remote.c - the front end's requests: taken, queued, sent to ranks; see remote.h.
 *
 * A request goes to a rank that has room: fewer requests than it runs at once, and enough pages of
 * its KV cache for the prompt and all that may be generated, which is what its engine reserves. So
 * a rank starts at once whatever it is sent. Of those with room it is the one with the fewest
 * tokens under way, and of equal ones the one that was sent the fewest requests so far. First come,
 * first served: a request that fits nowhere yet holds up those behind it, so that it can't
 * starve. */
#include "fleet/remote.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "fleet/remote_internal.h"

void fleet_remote_options_init(struct fleet_remote_options *options)
{
    *options = (struct fleet_remote_options){ .rank_count = 2, .queue_count_max = 1024 };
}

static struct fleet__remote *remote_of(struct fleet *fleet)
{
    return (struct fleet__remote *)fleet;
}

void fleet__wake(struct fleet__remote *remote)
{
    const uint64_t one = 1;

    (void)!write(remote->wake_fd, &one, sizeof(one));
}

/* -- lists ------------------------------------------------------------------------------------- */

static void list_append(struct fleet__list *list, struct fleet__request *request)
{
    request->next = NULL;
    request->prev = list->last;
    if (list->last != NULL)
        list->last->next = request;
    else
        list->first = request;
    list->last = request;
    list->count++;
}

static void list_remove(struct fleet__list *list, struct fleet__request *request)
{
    if (request->next != NULL)
        request->next->prev = request->prev;
    else
        list->last = request->prev;
    if (request->prev != NULL)
        request->prev->next = request->next;
    else
        list->first = request->next;
    list->count--;
}

static struct fleet__request **bucket_of(struct fleet__remote *remote, uint64_t id)
{
    return &remote->buckets[id % FLEET__BUCKETS];
}

struct fleet__request *fleet__find(struct fleet__remote *remote, uint64_t id)
{
    struct fleet__request *request = *bucket_of(remote, id);

    while (request != NULL && request->id != id)
        request = request->bucket_next;
    return request;
}

void fleet__take_out(struct fleet__remote *remote, struct fleet__request *request)
{
    struct fleet__request **link = bucket_of(remote, request->id);

    while (*link != request)
        link = &(*link)->bucket_next;
    *link = request->bucket_next;
    if (request->peer != NULL) {
        list_remove(&request->peer->requests, request);
        request->peer->token_count -= request->token_count;
        request->peer->pages.all -= request->pages.all;
        request->peer->pages.window -= request->pages.window;
    } else {
        list_remove(&remote->queue, request);
        remote->queue_bytes -= request->frame.size;
    }
}

/* -- dispatch ---------------------------------------------------------------------------------- */

static bool all_up(const struct fleet__remote *remote)
{
    for (uint32_t i = 0; i < remote->options.rank_count; i++)
        if (remote->peers[i].state != FLEET__UP)
            return false;
    return true;
}

static bool has_room(const struct fleet__peer *peer, const struct fleet__request *request)
{
    if (peer->state != FLEET__UP || peer->is_cut)
        return false;
    return peer->requests.count == 0 ||
           (peer->requests.count < peer->running_max &&
            peer->pages.all + request->pages.all <= peer->pages_max.all &&
            peer->pages.window + request->pages.window <= peer->pages_max.window);
}

static struct fleet__peer *choose(const struct fleet__remote *remote,
                                  const struct fleet__request *request)
{
    struct fleet__peer *best = NULL;

    for (uint32_t i = 0; i < remote->options.rank_count; i++) {
        struct fleet__peer *peer = &remote->peers[i];
        if (has_room(peer, request) &&
            (best == NULL || peer->token_count < best->token_count ||
             (peer->token_count == best->token_count && peer->sent_count < best->sent_count)))
            best = peer;
    }
    return best;
}

bool fleet__dispatch(struct fleet__remote *remote)
{
    bool is_full = false;

    if (remote->options.needs_all && !all_up(remote))
        return false; /* whoever is still there will not be for long */
    if (fleet__update_holds(remote))
        return false;
    while (remote->queue.first != NULL) {
        struct fleet__request *request = remote->queue.first;
        struct fleet__peer *peer = choose(remote, request);

        if (peer == NULL)
            break;
        if (fleet__link_send_frame(peer->link, &request->frame, NULL) != STATUS_OK) {
            peer->is_cut = true; /* it never had the request, so that another may */
            continue;
        }
        is_full = is_full || fleet__link_wants_out(peer->link);
        list_remove(&remote->queue, request);
        remote->queue_bytes -= request->frame.size;
        buf_deinit(&request->frame);
        request->peer = peer;
        request->sent_ns = clock_now_ns();
        list_append(&peer->requests, request);
        peer->token_count += request->token_count;
        peer->pages.all += request->pages.all;
        peer->pages.window += request->pages.window;
        peer->sent_count++;
    }
    return is_full;
}

/* -- submit ------------------------------------------------------------------------------------ */

static enum status request_create(struct fleet__remote *remote, const struct engine_request *desc,
                                  struct fleet__request **request_out, struct err *err)
{
    const struct model_info *info = &remote->info;
    struct fleet__request *request;
    struct engine_pages pages = { 0 };
    enum status st = engine_request_check(desc, info, &pages, err);

    if (st != STATUS_OK)
        return st;
    request = calloc(1, sizeof(*request));
    if (request == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a request");
    buf_init(&request->frame, FLEET__FRAME_BYTES_MAX + 4);
    request->pages = pages;
    request->token_count = (uint64_t)pages.all * info->kv_page_size;
    request->prompt_count = desc->prompt_count;
    request->on_output = desc->on_output;
    request->user = desc->user;
    request->submit_ns = clock_now_ns();
    *request_out = request;
    return STATUS_OK;
}

/* With the lock held: why a new request is not taken. */
static enum status check_open(struct fleet__remote *remote, struct err *err)
{
    bool any = false;

    for (uint32_t i = 0; i < remote->options.rank_count; i++)
        any = any || remote->peers[i].state == FLEET__UP;
    if (remote->draining || remote->stopping)
        return err_set(err, STATUS_UNAVAILABLE, "the server is shutting down");
    if (!any && remote->has_failed)
        return err_set(err, STATUS_UNAVAILABLE, "no rank is up: %s", remote->failure.message);
    if (remote->queue.count < remote->options.queue_count_max &&
        (remote->queue.count == 0 || remote->queue_bytes <= FLEET__WAITING_BYTES_MAX))
        return STATUS_OK;
    remote->refused_count++;
    return err_set(err, STATUS_BUSY, "%u requests are waiting already; try again later",
                   remote->queue.count);
}

static enum status remote_submit(struct fleet *fleet, const struct engine_request *desc,
                                 uint64_t *id_out, struct err *err)
{
    struct fleet__remote *remote = remote_of(fleet);
    struct sampling_params params = *desc->params;
    struct engine_request copy = *desc;
    struct fleet__request *request = NULL;
    bool look_again = false;
    enum status st = request_create(remote, desc, &request, err);

    if (st != STATUS_OK)
        return st;
    pthread_mutex_lock(&remote->lock);
    request->id = ++remote->last_id;
    pthread_mutex_unlock(&remote->lock);
    copy.params = &params;
    if (remote->options.has_random_seed && !params.has_seed) {
        params.has_seed = true;
        params.seed = engine_request_seed(remote->options.random_seed, request->id);
    }
    st = fleet__frame_write(fleet__submit_json(request->id, &copy), &request->frame, err);
    pthread_mutex_lock(&remote->lock);
    if (st == STATUS_OK)
        st = check_open(remote, err);
    if (st == STATUS_OK) {
        struct fleet__request **bucket = bucket_of(remote, request->id);
        *id_out = request->id;
        request->bucket_next = *bucket;
        *bucket = request;
        list_append(&remote->queue, request);
        remote->queue_bytes += request->frame.size;
        remote->live_count++;
        look_again = fleet__dispatch(remote);
    }
    pthread_mutex_unlock(&remote->lock);
    if (look_again)
        fleet__wake(remote);
    if (st != STATUS_OK) {
        buf_deinit(&request->frame);
        free(request);
    }
    return st;
}

static void remote_cancel(struct fleet *fleet, uint64_t id)
{
    struct fleet__remote *remote = remote_of(fleet);
    struct fleet__request *request;

    pthread_mutex_lock(&remote->lock);
    request = fleet__find(remote, id);
    if (request != NULL && !request->canceled) {
        request->canceled = true;
        if (request->peer != NULL)
            (void)fleet__link_send(request->peer->link, fleet__message_id(FLEET__CANCEL, id),
                                   NULL);
    }
    pthread_mutex_unlock(&remote->lock);
    fleet__wake(remote); /* what waits is ended by the thread */
}

static void remote_drain(struct fleet *fleet)
{
    struct fleet__remote *remote = remote_of(fleet);

    pthread_mutex_lock(&remote->lock);
    remote->draining = true;
    while (remote->live_count > 0)
        pthread_cond_wait(&remote->changed, &remote->lock);
    pthread_mutex_unlock(&remote->lock);
}

void fleet__request_free(struct fleet__remote *remote, struct fleet__request *request)
{
    buf_deinit(&request->frame);
    free(request);
    pthread_mutex_lock(&remote->lock);
    if (--remote->live_count == 0)
        pthread_cond_broadcast(&remote->changed);
    pthread_mutex_unlock(&remote->lock);
}

void fleet__abort(struct fleet__remote *remote, struct fleet__request *request,
                  enum status status, const char *message)
{
    const uint64_t now_ns = clock_now_ns();
    const struct engine_output output = {
        .text = "", .prompt_token_count = request->prompt_count,
        .completion_token_count = request->told_count, .finish = FINISH_ABORT, .status = status,
        .message = message, .matched_id = -1,
        .queue_s = (double)((request->sent_ns > 0 ? request->sent_ns : now_ns) -
                            request->submit_ns) * 1e-9,
        .e2e_s = (double)(now_ns - request->submit_ns) * 1e-9,
        .dp_rank = request->peer == NULL ? 0 : (uint32_t)(request->peer - remote->peers),
    };

    request->on_output(request->user, &output);
    fleet__request_free(remote, request);
}

/* -- what the server asks ---------------------------------------------------------------------- */

static const struct model_info *remote_model_info(const struct fleet *fleet)
{
    const struct fleet__remote *remote = (const struct fleet__remote *)fleet;

    assert(remote->has_info);
    return &remote->info;
}

static enum status remote_health(struct fleet *fleet, struct err *err)
{
    struct fleet__remote *remote = remote_of(fleet);
    enum status st = STATUS_UNAVAILABLE;
    const char *why = "they are being started again";

    pthread_mutex_lock(&remote->lock);
    if (remote->has_failed)
        why = remote->failure.message;
    for (uint32_t i = 0; i < remote->options.rank_count; i++)
        st = remote->peers[i].state == FLEET__UP ? STATUS_OK : st;
    if (st != STATUS_OK)
        st = err_set(err, st, "no rank is up: %.600s", why);
    pthread_mutex_unlock(&remote->lock);
    return st;
}

/* -- who starts the ranks ---------------------------------------------------------------------- */

const char *fleet_remote_front(const struct fleet *fleet)
{
    return ((const struct fleet__remote *)fleet)->front;
}

enum status fleet_remote_wait(struct fleet *fleet, bool *bad_usage_out, struct err *err)
{
    struct fleet__remote *remote = remote_of(fleet);
    enum status st = STATUS_OK;

    pthread_mutex_lock(&remote->lock);
    while (!all_up(remote) && !remote->has_failed)
        pthread_cond_wait(&remote->changed, &remote->lock);
    *bad_usage_out = remote->bad_usage;
    remote->is_serving = !remote->has_failed;
    if (remote->has_failed)
        st = err_set(err, remote->failure.status, "%s", remote->failure.message);
    pthread_mutex_unlock(&remote->lock);
    return st;
}

void fleet_remote_ended(struct fleet *fleet, const char *why)
{
    struct fleet__remote *remote = remote_of(fleet);

    pthread_mutex_lock(&remote->lock);
    if (!remote->has_failed && !(remote->is_serving && remote->has_started)) {
        remote->has_failed = true;
        (void)err_set(&remote->failure, STATUS_PEER, "%s", why);
    }
    remote->has_started = false;
    pthread_cond_broadcast(&remote->changed);
    pthread_mutex_unlock(&remote->lock);
    fleet__wake(remote);
}

/* The lock is held. */
static uint32_t connected_count(const struct fleet__remote *remote)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < remote->options.rank_count; i++)
        count += remote->peers[i].link != NULL;
    return count;
}

enum status fleet_remote_leave(struct fleet *fleet, struct err *err)
{
    struct fleet__remote *remote = remote_of(fleet);
    const uint64_t until_ns = clock_now_ns() + FLEET__LEAVE_NS;
    const struct timespec until = {
        .tv_sec = (time_t)(until_ns / 1000000000), .tv_nsec = (long)(until_ns % 1000000000),
    };
    struct err left;

    pthread_mutex_lock(&remote->lock);
    remote->leaving = true;
    for (uint32_t i = 0; i < remote->options.rank_count; i++) {
        json_t *json = NULL;
        if (remote->peers[i].link == NULL)
            continue;
        json = fleet__message(FLEET__LEAVE);
        (void)json_object_set_new(json, "finalize",
                                  json_boolean(all_up(remote) && !remote->has_died));
        (void)fleet__link_send(remote->peers[i].link, json, NULL);
    }
    while (connected_count(remote) > 0 &&
           pthread_cond_timedwait(&remote->changed, &remote->lock, &until) != ETIMEDOUT)
        ;
    left = remote->left;
    pthread_mutex_unlock(&remote->lock);
    return left.status == STATUS_OK ? STATUS_OK : err_set(err, left.status, "%s", left.message);
}

/* -- create and destroy ------------------------------------------------------------------------ */

static void peer_deinit(struct fleet__peer *peer)
{
    json_decref(peer->report);
    free(peer->shares);
}

static void remote_destroy(struct fleet *fleet)
{
    struct fleet__remote *remote = remote_of(fleet);

    if (remote->has_thread) {
        pthread_mutex_lock(&remote->lock);
        remote->stopping = true;
        pthread_mutex_unlock(&remote->lock);
        fleet__wake(remote);
        pthread_join(remote->thread, NULL);
    }
    assert(remote->live_count == 0);
    if (remote->listen_fd >= 0)
        (void)close(remote->listen_fd);
    if (remote->wake_fd >= 0)
        (void)close(remote->wake_fd);
    for (uint32_t i = 0; remote->peers != NULL && i < remote->options.rank_count; i++)
        peer_deinit(&remote->peers[i]);
    free(remote->peers);
    free(remote->model_path);
    free(remote->weight_version);
    pthread_cond_destroy(&remote->changed);
    pthread_mutex_destroy(&remote->lock);
    free(remote);
}

static const struct fleet_ops remote_ops = {
    .destroy = remote_destroy,
    .submit = remote_submit,
    .cancel = remote_cancel,
    .drain = remote_drain,
    .model_info = remote_model_info,
    .report_json = fleet__remote_report,
    .update = fleet__remote_update,
    .health = remote_health,
};

static enum status remote_start(struct fleet__remote *remote, struct err *err)
{
    const bool every = remote->options.every_address;
    enum status st = fleet__tokens_make(&remote->tokens, err);

    remote->peers = calloc(remote->options.rank_count, sizeof(*remote->peers));
    if (remote->peers == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %u ranks",
                       remote->options.rank_count);
    if (st == STATUS_OK)
        st = fleet__listen(every, &remote->listen_fd, err);
    if (st == STATUS_OK)
        st = fleet__front_write(&remote->tokens, remote->listen_fd, every, remote->front, err);
    if (st != STATUS_OK)
        return st;
    remote->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (remote->wake_fd < 0)
        return err_set(err, STATUS_UNAVAILABLE, "no eventfd: %s", strerror(errno));
    fleet__machine(remote->machine);
    if (pthread_create(&remote->thread, NULL, fleet__remote_thread, remote) != 0)
        return err_set(err, STATUS_NO_MEMORY, "no thread for the ranks");
    remote->has_thread = true;
    return STATUS_OK;
}

enum status fleet_create_remote(const struct fleet_remote_options *options, const struct log *log,
                                struct fleet **fleet_out, struct err *err)
{
    struct fleet__remote *remote;
    pthread_condattr_t attributes;
    enum status st;

    if (options->rank_count == 0 || options->rank_count > FLEET_RANK_COUNT_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%u ranks; from 1 to %d are possible",
                       options->rank_count, FLEET_RANK_COUNT_MAX);
    remote = calloc(1, sizeof(*remote));
    if (remote == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a fleet");
    remote->fleet.ops = &remote_ops;
    remote->options = *options;
    remote->log = log;
    remote->listen_fd = -1;
    remote->wake_fd = -1;
    pthread_mutex_init(&remote->lock, NULL);
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&remote->changed, &attributes);
    (void)pthread_condattr_destroy(&attributes);
    st = remote_start(remote, err);
    if (st != STATUS_OK) {
        remote_destroy(&remote->fleet);
        return st;
    }
    *fleet_out = &remote->fleet;
    return STATUS_OK;
}
