/* server/update.c - POST /update_weights_from_disk: other weights while requests run.
 *
 *     {"model_path": "...", "weight_version": "...", "abort_all_requests": false,
 *      "in_flight": "finish" | "pause", "load_format": "auto", "flush_cache": true, ...}
 *     -> {"success": true, "message": "...", "num_paused_requests": 0}
 *
 * Source of the names: SGLang, python/sglang/srt/managers/io_struct.py,
 * UpdateWeightFromDiskReqInput and -Output; "in_flight" is ours, and its default is what SGLang
 * does. A failure is 400 with "success": false, and the old weights go on serving.
 *
 * An update takes as long as reading the checkpoint twice, so a thread of its own does it, one
 * update at a time, while the connection that asked is suspended:
 *
 *     IDLE --begin--> RUNNING --thread--> DONE --the connection, or stop--> IDLE
 *
 * A client that leaves meanwhile misses the answer; the update goes on. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "server/internal.h"

#define WHAT "/update_weights_from_disk"

/* Keys that are taken and change nothing: there is no graph to capture, no other cache to empty. */
static const char *const labels[] = { "flush_cache", "torch_empty_cache", "recapture_cuda_graph",
                                      "keep_pause", "token_step" };

static bool is_one_of(const char *text, const char *const *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(text, list[i]) == 0)
            return true;
    }
    return false;
}

static enum status keys_check(const json_t *json, struct err *err)
{
    static const char *const known[] = { "model_path", "weight_version", "abort_all_requests",
                                         "in_flight", "load_format", "is_async" };
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)json, key, value) {
        if (!is_one_of(key, known, sizeof(known) / sizeof(known[0])) &&
            !is_one_of(key, labels, sizeof(labels) / sizeof(labels[0])))
            return err_set(err, STATUS_BAD_INPUT, WHAT ": there is no field \"%.64s\"", key);
    }
    return STATUS_OK;
}

enum status server__update_parse(const json_t *json, struct engine_update *update_out,
                                 struct err *err)
{
    struct engine_update update = { 0 };
    const char *load_format = "auto", *in_flight = "finish";
    bool is_async = false;
    enum status st = json_is_object(json) ? keys_check(json, err)
                                          : err_set(err, STATUS_BAD_INPUT,
                                                    WHAT ": the body must be an object, it is %s",
                                                    json_kind(json));

    if (st == STATUS_OK)
        st = json_get_string(json, "model_path", WHAT, &update.model_path, err);
    if (st == STATUS_OK && (update.model_path == NULL || update.model_path[0] == '\0'))
        st = err_set(err, STATUS_BAD_INPUT, WHAT ": \"model_path\" is missing");
    if (st == STATUS_OK)
        st = json_get_string(json, "weight_version", WHAT, &update.weight_version, err);
    if (st == STATUS_OK)
        st = json_get_bool(json, "abort_all_requests", WHAT, &update.abort_all, err);
    if (st == STATUS_OK)
        st = json_get_bool(json, "is_async", WHAT, &is_async, err);
    if (st == STATUS_OK)
        st = json_get_string(json, "load_format", WHAT, &load_format, err);
    if (st == STATUS_OK)
        st = json_get_string(json, "in_flight", WHAT, &in_flight, err);
    if (st != STATUS_OK)
        return st;
    if (is_async)
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": \"is_async\" is not supported: the answer comes when it is done");
    if (strcmp(load_format, "auto") != 0 && strcmp(load_format, "safetensors") != 0 &&
        strcmp(load_format, "gguf") != 0)
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": \"load_format\" is \"%.32s\"; auto, safetensors and gguf are read",
                       load_format);
    if (strcmp(in_flight, "finish") != 0 && strcmp(in_flight, "pause") != 0)
        return err_set(err, STATUS_BAD_INPUT,
                       WHAT ": \"in_flight\" is \"%.32s\"; it is \"finish\" or \"pause\"",
                       in_flight);
    update.pause = strcmp(in_flight, "pause") == 0;
    *update_out = update;
    return STATUS_OK;
}

static json_t *reply_json(bool success, const char *message, uint32_t paused_count)
{
    return json_pack("{s:b, s:s, s:i}", "success", success, "message", message,
                     "num_paused_requests", (int)paused_count);
}

/* Shows from now on what serves from now on. */
static void remember(struct server *server, const struct engine_update *update)
{
    char *path = strdup(update->model_path);
    char *version = update->weight_version != NULL ? strdup(update->weight_version) : NULL;

    (void)pthread_mutex_lock(&server->lock);
    if (path != NULL) {
        free(server->model_path);
        server->model_path = path;
    }
    if (version != NULL) {
        free(server->weight_version);
        server->weight_version = version;
    }
    (void)pthread_mutex_unlock(&server->lock);
}

static void *update_thread(void *user)
{
    struct server *server = user;
    struct server_update *own = &server->update;
    struct engine_update update;
    uint32_t paused_count = 0;
    struct err err;
    enum status st = server__update_parse(own->request, &update, &err);

    if (st == STATUS_OK)
        st = fleet_update(server->fleet, &update, &paused_count, &err);
    if (st == STATUS_OK) {
        remember(server, &update);
        log_line(server->log, LOG_INFO, "the weights are now those of %s", update.model_path);
    } else {
        log_line(server->log, LOG_WARN, "the weights were not updated: %s", err.message);
    }
    (void)pthread_mutex_lock(&server->lock);
    own->code = st == STATUS_OK ? MHD_HTTP_OK : MHD_HTTP_BAD_REQUEST;
    own->reply = reply_json(st == STATUS_OK,
                            st == STATUS_OK ? "Succeeded to update model weights." : err.message,
                            paused_count);
    own->state = SERVER_UPDATE_DONE;
    if (own->connection != NULL)
        MHD_resume_connection(own->connection);
    own->connection = NULL;
    (void)pthread_mutex_unlock(&server->lock);
    return NULL;
}

/* With the lock held, when the thread has nothing left to do with it. */
static void forget(struct server_update *own)
{
    json_decref(own->request);
    json_decref(own->reply);
    *own = (struct server_update){ 0 };
}

/* Starts the thread; the connection is suspended then. */
static bool start(struct server *server, struct MHD_Connection *connection, json_t *request)
{
    struct server_update *own = &server->update;
    bool started = false;

    (void)pthread_mutex_lock(&server->lock);
    if (!server->stopping && own->state == SERVER_UPDATE_IDLE) {
        own->request = request;
        own->state = SERVER_UPDATE_RUNNING;
        own->connection = connection;
        started = pthread_create(&own->thread, NULL, update_thread, server) == 0;
        if (started) {
            own->has_thread = true;
            MHD_suspend_connection(connection); /* before the thread resumes it under the lock */
        } else {
            own->request = NULL;
            forget(own);
        }
    }
    (void)pthread_mutex_unlock(&server->lock);
    return started;
}

bool server__update_begin(struct server *server, struct MHD_Connection *connection,
                          const struct buf *body, unsigned *code_out, json_t **reply_out)
{
    struct engine_update update;
    json_t *request = NULL;
    struct err err;
    enum status st = STATUS_OK;

    *code_out = MHD_HTTP_BAD_REQUEST;
    st = json_read(body->data != NULL ? body->data : "", body->size, WHAT, &request, &err);
    if (st == STATUS_OK)
        st = server__update_parse(request, &update, &err);
    if (st == STATUS_OK && start(server, connection, request))
        return true;
    json_decref(request);
    *reply_out = reply_json(false, st != STATUS_OK ? err.message
                                                   : "another update of the weights is under way",
                            0);
    return false;
}

json_t *server__update_end(struct server *server, unsigned *code_out)
{
    struct server_update *own = &server->update;
    pthread_t thread;
    json_t *reply;

    (void)pthread_mutex_lock(&server->lock);
    assert(own->state == SERVER_UPDATE_DONE || server->stopping);
    if (own->state != SERVER_UPDATE_DONE) { /* server__update_abandon has woken this connection */
        (void)pthread_mutex_unlock(&server->lock);
        *code_out = MHD_HTTP_SERVICE_UNAVAILABLE;
        return reply_json(false, "the server is shutting down", 0);
    }
    *code_out = own->code;
    reply = json_incref(own->reply);
    thread = own->thread;
    own->has_thread = false;
    (void)pthread_mutex_unlock(&server->lock);
    (void)pthread_join(thread, NULL); /* it has given the lock back, or is about to */
    (void)pthread_mutex_lock(&server->lock);
    forget(own);
    (void)pthread_mutex_unlock(&server->lock);
    return reply;
}

void server__update_abandon(struct server *server)
{
    (void)pthread_mutex_lock(&server->lock);
    server->stopping = true;
    if (server->update.connection != NULL)
        MHD_resume_connection(server->update.connection);
    server->update.connection = NULL;
    (void)pthread_mutex_unlock(&server->lock);
}

void server__update_stop(struct server *server)
{
    if (server->update.has_thread)
        (void)pthread_join(server->update.thread, NULL);
    forget(&server->update);
}
