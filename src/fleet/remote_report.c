/* fleet/remote_report.c - what the ranks report, asked for and put together.
 *
 * Every rank is asked, and has a second to answer; of one that does not, the last report is shown,
 * and marked so. */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "fleet/remote_internal.h"

static const char *const state_names[] = {
    [FLEET__DOWN] = "down", [FLEET__LOADING] = "loading", [FLEET__UP] = "up",
};

/* Counters that have a meaning as a sum over ranks. */
static const char *const summed[] = {
    "running", "running_max", "waiting", "submitted", "finished", "aborted", "refused_busy",
    "steps", "rows", "failed_steps", "prompt_tokens", "completion_tokens",
};

/* The lock is held. Who has got up since was not asked. */
static bool is_missing(const struct fleet__remote *remote, uint64_t serial)
{
    for (uint32_t i = 0; i < remote->options.rank_count; i++) {
        const struct fleet__peer *peer = &remote->peers[i];

        if (peer->state == FLEET__UP && peer->asked_serial >= serial &&
            peer->report_serial < serial)
            return true;
    }
    return false;
}

/* The lock is held; waits without it. */
static uint64_t ask_all(struct fleet__remote *remote)
{
    const uint64_t until_ns = clock_now_ns() + FLEET__REPORT_NS;
    const struct timespec until = {
        .tv_sec = (time_t)(until_ns / 1000000000), .tv_nsec = (long)(until_ns % 1000000000),
    };
    const uint64_t serial = ++remote->last_serial;

    for (uint32_t i = 0; i < remote->options.rank_count; i++) {
        struct fleet__peer *peer = &remote->peers[i];

        if (peer->state != FLEET__UP)
            continue;
        peer->asked_serial = serial;
        (void)fleet__link_send(peer->link, fleet__message_id(FLEET__ASK, serial), NULL);
    }
    while (is_missing(remote, serial) && !remote->stopping &&
           pthread_cond_timedwait(&remote->changed, &remote->lock, &until) != ETIMEDOUT)
        ;
    return serial;
}

static json_t *peer_json(const struct fleet__remote *remote, uint32_t rank, uint64_t serial)
{
    const struct fleet__peer *peer = &remote->peers[rank];
    json_t *json = json_pack("{s:I, s:s, s:I, s:o, s:I, s:I, s:I, s:I}", "dp_rank",
                             (json_int_t)rank, "state", state_names[peer->state], "pid",
                             (json_int_t)peer->hello.pid, "host",
                             fleet__text_json(peer->hello.host, strlen(peer->hello.host)),
                             "restarts", (json_int_t)peer->restart_count, "sent",
                             (json_int_t)peer->sent_count, "outstanding_requests",
                             (json_int_t)peer->requests.count, "outstanding_tokens",
                             (json_int_t)peer->token_count);

    if (json == NULL)
        return NULL;
    if (peer->why[0] != '\0')
        (void)json_object_set_new(json, "last_death",
                                  fleet__text_json(peer->why, strlen(peer->why)));
    if (peer->report != NULL)
        (void)json_object_set(json, "report", peer->report);
    if (peer->report != NULL && peer->report_serial < serial)
        (void)json_object_set_new(json, "report_is_old", json_true());
    return json;
}

/* Sums, and what waits here. */
static json_t *engine_json(const struct fleet__remote *remote)
{
    json_t *json = json_object();

    for (size_t i = 0; i < sizeof(summed) / sizeof(summed[0]); i++) {
        json_int_t sum = 0;
        for (uint32_t rank = 0; rank < remote->options.rank_count; rank++)
            sum += json_integer_value(json_object_get(remote->peers[rank].report, summed[i]));
        if (strcmp(summed[i], "waiting") == 0)
            sum += (json_int_t)remote->queue.count;
        if (strcmp(summed[i], "refused_busy") == 0)
            sum += (json_int_t)remote->refused_count;
        if (strcmp(summed[i], "aborted") == 0)
            sum += (json_int_t)remote->lost_count;
        (void)json_object_set_new(json, summed[i], json_integer(sum));
    }
    for (uint32_t rank = 0; rank < remote->options.rank_count; rank++)
        (void)json_object_set(json, "weight_version",
                              json_object_get(remote->peers[rank].report, "weight_version"));
    (void)json_object_set_new(json, "waiting_max", json_integer(remote->options.queue_count_max));
    (void)json_object_set_new(json, "lost_with_a_rank",
                              json_integer((json_int_t)remote->lost_count));
    return json;
}

json_t *fleet__remote_report(struct fleet *fleet)
{
    struct fleet__remote *remote = (struct fleet__remote *)fleet;
    json_t *ranks = json_array(), *json;
    uint64_t serial;

    pthread_mutex_lock(&remote->lock);
    serial = ask_all(remote);
    for (uint32_t i = 0; i < remote->options.rank_count; i++)
        (void)json_array_append_new(ranks, peer_json(remote, i, serial));
    json = json_pack("{s:o, s:I, s:o, s:s*}", "engine", engine_json(remote), "dp_size",
                     (json_int_t)remote->options.rank_count, "ranks", ranks, "update_waits_for",
                     remote->update.is_running ? fleet__step_name(remote->update.step) : NULL);
    pthread_mutex_unlock(&remote->lock);
    return json;
}
