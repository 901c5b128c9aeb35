/* server/http.c - libmicrohttpd's callbacks: connections, bodies, routes, answers.
 *
 * libmicrohttpd 0.9.75 (https://www.gnu.org/software/libmicrohttpd/) calls on_request several times
 * for a request: once when its headers are there, then for each piece of the body, then once more
 * with none left; after that again whenever a suspended connection was resumed. A connection:
 *
 *                 +-- answered at once --------------------+
 *                 |                                        v
 *     RECEIVING --+-- call_create --> WAITING -- ready --> SENDING
 *         ^                              | a stream's end     |
 *         +--------- on_completed -------+--------------------+
 *
 * A stream stays WAITING to its end. What is wrong with HTTP itself (a bad request line, headers
 * beyond SERVER_HEADER_BYTES_MAX) is answered by libmicrohttpd, with 4xx and a line of HTML. */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "server/internal.h"

#define NS_PER_S UINT64_C(1000000000)

enum method { METHOD_GET = 1, METHOD_POST = 2, METHOD_PUT = 4, METHOD_OTHER = 8 };

#define MODELS "/v1/models/"

static enum method method_of(const char *name)
{
    if (strcmp(name, MHD_HTTP_METHOD_GET) == 0 || strcmp(name, MHD_HTTP_METHOD_HEAD) == 0)
        return METHOD_GET;
    if (strcmp(name, MHD_HTTP_METHOD_POST) == 0)
        return METHOD_POST;
    return strcmp(name, MHD_HTTP_METHOD_PUT) == 0 ? METHOD_PUT : METHOD_OTHER;
}

/* ---- connections and their bodies ---- */

/* When a turn that begins now has taken too long. */
static uint64_t turn_deadline_ns(const struct server *server)
{
    const uint64_t turn_s = (uint64_t)server->options.idle_s_max + server->options.request_s_max;

    return clock_now_ns() + turn_s * NS_PER_S;
}

void server__conn_phase(struct conn *conn, enum conn_phase phase)
{
    struct server *server = conn->server;

    (void)pthread_mutex_lock(&server->lock);
    if (conn->phase == CONN_RECEIVING && phase != CONN_RECEIVING)
        server->answering_count++;
    if (conn->phase != CONN_RECEIVING && phase == CONN_RECEIVING) {
        assert(server->answering_count > 0);
        server->answering_count--;
        if (server->answering_count == 0)
            (void)pthread_cond_broadcast(&server->idle);
    }
    conn->phase = phase;
    conn->deadline_ns = turn_deadline_ns(server);
    (void)pthread_mutex_unlock(&server->lock);
}

void server__conn_drop_body(struct conn *conn)
{
    struct server *server = conn->server;

    buf_deinit(&conn->body);
    (void)pthread_mutex_lock(&server->lock);
    assert(server->bodies_bytes >= conn->body_accounted_bytes);
    server->bodies_bytes -= conn->body_accounted_bytes;
    (void)pthread_mutex_unlock(&server->lock);
    conn->body_accounted_bytes = 0;
}

/* Keeps a piece of the body, or decides to refuse the request and keeps nothing. */
static void take_body(struct conn *conn, const char *bytes, size_t size)
{
    struct server *server = conn->server;
    bool room;

    conn->body_seen_bytes += size;
    if (conn->refusal != 0)
        return;
    if (conn->body_seen_bytes > server->options.body_bytes_max) {
        conn->refusal = MHD_HTTP_CONTENT_TOO_LARGE;
        server__conn_drop_body(conn);
        return;
    }
    (void)pthread_mutex_lock(&server->lock);
    room = server->bodies_bytes + size <= SERVER_BODIES_BYTES_MAX;
    if (room)
        server->bodies_bytes += size;
    (void)pthread_mutex_unlock(&server->lock);
    if (room)
        conn->body_accounted_bytes += size;
    if (!room || buf_append(&conn->body, bytes, size, NULL) != STATUS_OK) {
        conn->refusal = MHD_HTTP_SERVICE_UNAVAILABLE;
        server__conn_drop_body(conn);
    }
}

static void conn_open(struct server *server, struct MHD_Connection *connection, void **context)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct conn *conn = calloc(1, sizeof(*conn));
    const uint64_t one = 1;

    *context = conn;
    if (conn == NULL)
        return; /* on_request closes it */
    conn->server = server;
    conn->fd = info->connect_fd;
    conn->phase = CONN_RECEIVING;
    conn->deadline_ns = turn_deadline_ns(server); /* before the watcher can see it */
    buf_init(&conn->body, server->options.body_bytes_max);
    (void)pthread_mutex_lock(&server->lock);
    conn->serial = server->next_serial++;
    conn->next = server->conns;
    if (conn->next != NULL)
        conn->next->prev = conn;
    server->conns = conn;
    server->conn_count++;
    (void)pthread_mutex_unlock(&server->lock);
    if (write(server->wake_fd, &one, sizeof(one)) < 0)
        return; /* the counter is full: the watcher is awake anyway */
}

static void conn_close(struct conn *conn)
{
    struct server *server = conn->server;

    assert(conn->call == NULL);
    server__conn_drop_body(conn);
    (void)pthread_mutex_lock(&server->lock);
    if (conn->prev != NULL)
        conn->prev->next = conn->next;
    else
        server->conns = conn->next;
    if (conn->next != NULL)
        conn->next->prev = conn->prev;
    server->conn_count--;
    (void)pthread_mutex_unlock(&server->lock);
    free(conn);
}

/* libmicrohttpd calls this before it closes the socket, so that a connection in the server's list
 * always has its own. */
static void on_connection(void *cls, struct MHD_Connection *connection, void **context,
                          enum MHD_ConnectionNotificationCode what)
{
    if (what == MHD_CONNECTION_NOTIFY_STARTED)
        conn_open(cls, connection, context);
    else if (*context != NULL)
        conn_close(*context);
}

/* A request is over, answered or not. */
static void on_completed(void *cls, struct MHD_Connection *connection, void **request,
                         enum MHD_RequestTerminationCode why)
{
    struct server *server = cls;
    struct conn *conn = *request;
    struct call *call;
    unsigned code;

    (void)connection;
    (void)why;
    if (conn == NULL)
        return;
    (void)pthread_mutex_lock(&server->lock);
    call = conn->call;
    conn->call = NULL;
    (void)pthread_mutex_unlock(&server->lock);
    server__call_release(call);
    server__conn_drop_body(conn);
    conn->refusal = 0;
    if (conn->updating) /* nobody took the answer */
        json_decref(server__update_end(server, &code));
    conn->prepared = conn->updating = false;
    conn->body_seen_bytes = 0;
    server__conn_phase(conn, CONN_RECEIVING);
    *request = NULL;
}

/* ---- answers ---- */

static bool is_draining(struct server *server)
{
    bool draining;

    (void)pthread_mutex_lock(&server->lock);
    draining = server->draining;
    (void)pthread_mutex_unlock(&server->lock);
    return draining;
}

/* Queues a response, taken, whose headers are added here. */
static enum MHD_Result respond(struct conn *conn, struct MHD_Connection *connection, unsigned code,
                               struct MHD_Response *response, const char *type)
{
    enum MHD_Result result = MHD_YES;

    if (response == NULL)
        return MHD_NO;
    if (type != NULL)
        result = MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    if (result == MHD_YES && code == MHD_HTTP_SERVICE_UNAVAILABLE)
        result = MHD_add_response_header(response, MHD_HTTP_HEADER_RETRY_AFTER,
                                         SERVER_RETRY_AFTER_S);
    if (result == MHD_YES && (conn->refusal != 0 || is_draining(conn->server)))
        result = MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
    if (result == MHD_YES)
        result = MHD_queue_response(connection, code, response);
    MHD_destroy_response(response);
    return result;
}

/* body is taken. */
static enum MHD_Result respond_text(struct conn *conn, struct MHD_Connection *connection,
                                    unsigned code, struct buf *body, const char *allow)
{
    struct MHD_Response *response =
        MHD_create_response_from_buffer(body->size, body->data, MHD_RESPMEM_MUST_FREE);

    if (response == NULL) {
        buf_deinit(body);
        return MHD_NO;
    }
    if (allow != NULL &&
        MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, allow) != MHD_YES) {
        MHD_destroy_response(response);
        return MHD_NO;
    }
    server__conn_phase(conn, CONN_SENDING);
    return respond(conn, connection, code, response, "application/json");
}

/* In the shape of whose interface was asked. False: no memory. */
static bool error_body(const struct conn *conn, unsigned code, const char *type,
                       const char *message, struct buf *body)
{
    enum status st;

    buf_init(body, SERVER_ANSWER_BYTES_MAX);
    st = conn->api == API_SGLANG ? server__error_write(code, type, message, body, NULL)
                                 : server__openai_error_write(code, message, body, NULL);
    if (st != STATUS_OK)
        buf_deinit(body);
    return st == STATUS_OK;
}

static enum MHD_Result respond_error(struct conn *conn, struct MHD_Connection *connection,
                                     unsigned code, const char *type, const char *message)
{
    struct buf body;

    log_line(conn->server->log, LOG_DEBUG, "%u: %s", code, message);
    if (!error_body(conn, code, type, message, &body))
        return MHD_NO;
    return respond_text(conn, connection, code, &body, NULL);
}

static enum MHD_Result respond_status(struct conn *conn, struct MHD_Connection *connection,
                                      const struct err *err)
{
    return respond_error(conn, connection, server__status_code(err->status),
                         status_name(err->status), err->message);
}

/* json is taken; NULL: there was no memory for it. */
static enum MHD_Result respond_json_as(struct conn *conn, struct MHD_Connection *connection,
                                       unsigned code, json_t *json)
{
    char *text = json == NULL ? NULL : json_dumps(json, JSON_REAL_PRECISION(9));
    struct buf body;

    json_decref(json);
    if (text == NULL)
        return respond_error(conn, connection, MHD_HTTP_INTERNAL_SERVER_ERROR,
                             status_name(STATUS_NO_MEMORY), "no memory for the answer");
    buf_init(&body, SIZE_MAX);
    body.data = text;
    body.size = strlen(text);
    return respond_text(conn, connection, code, &body, NULL);
}

static enum MHD_Result respond_json(struct conn *conn, struct MHD_Connection *connection,
                                    json_t *json)
{
    return respond_json_as(conn, connection, MHD_HTTP_OK, json);
}

static enum MHD_Result respond_empty(struct conn *conn, struct MHD_Connection *connection)
{
    server__conn_phase(conn, CONN_SENDING);
    return respond(conn, connection, MHD_HTTP_OK,
                   MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT), NULL);
}

/* ---- the calls ---- */

/* Answers a call, or waits on. */
static enum MHD_Result continue_call(struct conn *conn, struct MHD_Connection *connection)
{
    struct buf body;
    struct err err;
    enum status st;

    switch (server__call_wait(conn->call)) {
    case CALL_SUSPENDED: return MHD_YES;
    case CALL_GONE: return MHD_NO;
    case CALL_READY: break;
    }
    st = server__call_failure(conn->call, &err);
    if (st == STATUS_OK && conn->call->kind == CALL_HEALTH)
        return respond_empty(conn, connection);
    buf_init(&body, SERVER_ANSWER_BYTES_MAX);
    if (st == STATUS_OK)
        st = server__call_write(conn->call, &body, &err);
    if (st != STATUS_OK) {
        buf_deinit(&body);
        return respond_status(conn, connection, &err);
    }
    return respond_text(conn, connection, MHD_HTTP_OK, &body, NULL);
}

static ssize_t on_read(void *cls, uint64_t at, char *dst, size_t size)
{
    (void)at;
    return server__call_read(cls, dst, size);
}

static void on_read_end(void *cls)
{
    server__call_unref(cls);
}

static enum MHD_Result start_stream(struct conn *conn, struct MHD_Connection *connection)
{
    struct MHD_Response *response;

    server__call_ref(conn->call);
    response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, SERVER_STREAM_BLOCK_BYTES,
                                                 on_read, conn->call, on_read_end);
    if (response == NULL) {
        server__call_unref(conn->call);
        return MHD_NO;
    }
    if (MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache") != MHD_YES) {
        MHD_destroy_response(response);
        return MHD_NO;
    }
    return respond(conn, connection, MHD_HTTP_OK, response, "text/event-stream; charset=utf-8");
}

void server__conn_attach(struct conn *conn, struct call *call)
{
    struct server *server = conn->server;

    (void)pthread_mutex_lock(&server->lock);
    assert(conn->call == NULL);
    conn->call = call;
    if (server->stopping || conn->hung_up)
        server__call_abandon(call);
    (void)pthread_mutex_unlock(&server->lock);
}

/* Goes on after preparing. */
static enum MHD_Result prepared(struct conn *conn, struct MHD_Connection *connection)
{
    conn->prepared = false;
    if (conn->prepare_status != STATUS_OK)
        return respond_status(conn, connection, &conn->prepare_err);
    return conn->call->stream ? start_stream(conn, connection) : continue_call(conn, connection);
}

static enum MHD_Result respond_draining(struct conn *conn, struct MHD_Connection *connection)
{
    return respond_error(conn, connection, MHD_HTTP_SERVICE_UNAVAILABLE,
                         status_name(STATUS_UNAVAILABLE), "the server is shutting down");
}

/* ---- routes ---- */

/* WAITING comes before the look at `draining`, so that server_drain, which looks at who is WAITING
 * after the engine has drained, misses nobody. */
static enum MHD_Result route_generate(struct conn *conn, struct MHD_Connection *connection)
{
    server__conn_phase(conn, CONN_WAITING);
    if (is_draining(conn->server))
        return respond_draining(conn, connection);
    conn->prepared = true;
    if (conn->body.size > SERVER_INLINE_BYTES)
        return server__prepare_later(conn, connection) ? MHD_YES : MHD_NO;
    server__prepare(conn, connection);
    return prepared(conn, connection);
}

static enum MHD_Result route_completions(struct conn *conn, struct MHD_Connection *connection)
{
    conn->api = API_COMPLETIONS;
    return route_generate(conn, connection);
}

static enum MHD_Result route_chat_completions(struct conn *conn,
                                              struct MHD_Connection *connection)
{
    conn->api = API_CHAT;
    return route_generate(conn, connection);
}

static json_t *model_json(const struct server *server)
{
    return json_pack("{s:s, s:s, s:I, s:s, s:s, s:n, s:I}", "id",
                     server->options.served_model_name, "object", "model", "created",
                     (json_int_t)server->start_s, "owned_by", "lighter", "root",
                     server->options.model_path, "parent", "max_model_len",
                     (json_int_t)fleet_model_info(server->fleet)->context_length);
}

static enum MHD_Result route_models(struct conn *conn, struct MHD_Connection *connection)
{
    return respond_json(conn, connection, json_pack("{s:s, s:[o]}", "object", "list", "data",
                                                    model_json(conn->server)));
}

/* /v1/models/NAME */
static enum MHD_Result route_model(struct conn *conn, struct MHD_Connection *connection,
                                   const char *name)
{
    char message[256];

    if (strcmp(name, conn->server->options.served_model_name) == 0)
        return respond_json(conn, connection, model_json(conn->server));
    (void)snprintf(message, sizeof(message), "the model '%.128s' does not exist; GET /v1/models "
                   "lists what does", name);
    return respond_error(conn, connection, MHD_HTTP_NOT_FOUND, "not found", message);
}

static enum MHD_Result route_health(struct conn *conn, struct MHD_Connection *connection)
{
    struct err err;

    if (is_draining(conn->server))
        return respond_draining(conn, connection);
    if (fleet_health(conn->server->fleet, &err) != STATUS_OK)
        return respond_error(conn, connection, MHD_HTTP_SERVICE_UNAVAILABLE,
                             status_name(STATUS_UNAVAILABLE), err.message);
    return respond_empty(conn, connection);
}

static enum MHD_Result route_health_generate(struct conn *conn, struct MHD_Connection *connection)
{
    const struct server *server = conn->server;
    const struct model_info *info = fleet_model_info(server->fleet);
    int32_t id = info->bos_id >= 0 ? info->bos_id : 0;
    struct generate_prompt prompt = { .ids = &id, .id_count = 1 };
    struct generate_request request = { .prompt_count = 1, .prompts = &prompt };
    struct call *call;

    server__conn_phase(conn, CONN_WAITING);
    if (is_draining(conn->server))
        return respond_draining(conn, connection);
    sampling_params_init(&prompt.params);
    prompt.params.max_new_tokens = 1;
    prompt.params.temperature = 0;
    conn->prepare_status = server__call_create(server->fleet, server->tokenizer, "", CALL_HEALTH,
                                               &request, connection, &call, &conn->prepare_err);
    if (conn->prepare_status == STATUS_OK)
        server__conn_attach(conn, call);
    return prepared(conn, connection);
}

static enum MHD_Result route_update_weights(struct conn *conn, struct MHD_Connection *connection)
{
    json_t *reply = NULL;
    unsigned code;

    server__conn_phase(conn, CONN_WAITING);
    if (is_draining(conn->server))
        return respond_draining(conn, connection);
    conn->updating = server__update_begin(conn->server, connection, &conn->body, &code, &reply);
    return conn->updating ? MHD_YES : respond_json_as(conn, connection, code, reply);
}

static enum MHD_Result updated(struct conn *conn, struct MHD_Connection *connection)
{
    unsigned code;
    json_t *reply = server__update_end(conn->server, &code);

    conn->updating = false;
    return respond_json_as(conn, connection, code, reply);
}

/* What is served now: an update changes it. */
static void served_json(struct server *server, json_t **path_out, json_t **version_out)
{
    (void)pthread_mutex_lock(&server->lock);
    *path_out = json_string(server->model_path);
    *version_out = json_string(server->weight_version);
    (void)pthread_mutex_unlock(&server->lock);
}

static enum MHD_Result route_model_info(struct conn *conn, struct MHD_Connection *connection)
{
    struct server *server = conn->server;
    const struct model_info *info = fleet_model_info(server->fleet);
    json_t *path, *version;

    served_json(server, &path, &version);
    return respond_json(
        conn, connection,
        json_pack("{s:o, s:s, s:s, s:b, s:n, s:o, s:s, s:[s], s:i, s:i, s:i, s:I, s:I, s:s, s:b}",
                  "model_path", path,
                  "tokenizer_path", server->options.tokenizer_path,
                  "served_model_name", server->options.served_model_name,
                  "is_generation", 1, "preferred_sampling_params", "weight_version", version,
                  "model_type", info->model_type, "architectures", info->architecture,
                  "context_length", (int)info->context_length, "vocab_size", (int)info->vocab_size,
                  "layer_count", (int)info->layer_count,
                  "parameter_count", (json_int_t)info->parameter_count,
                  "weight_bytes", (json_int_t)info->weight_bytes,
                  "weight_dtype", dtype_info(info->weight_dtype)->name,
                  "has_tokenizer", server->tokenizer != NULL));
}

static enum MHD_Result route_server_info(struct conn *conn, struct MHD_Connection *connection)
{
    struct server *server = conn->server;
    json_t *json = server->options.launch == NULL ? json_object()
                                                  : json_deep_copy(server->options.launch);
    json_t *fleet = fleet_report_json(server->fleet);
    json_t *path, *version, *own;

    served_json(server, &path, &version);
    own = json_pack("{s:o, s:o, s:s, s:s, s:s, s:i, s:i}", "model_path", path, "weight_version",
                    version, "tokenizer_path", server->options.tokenizer_path,
                    "served_model_name", server->options.served_model_name, "host",
                    server->options.host, "port", (int)server->port, "pid", (int)getpid());

    if (json != NULL && (json_object_update(json, own) != 0 ||
                         json_object_update(json, fleet) != 0)) {
        json_decref(json);
        json = NULL;
    }
    json_decref(fleet);
    json_decref(own);
    return respond_json(conn, connection, json);
}

static enum MHD_Result route_metrics(struct conn *conn, struct MHD_Connection *connection)
{
    json_t *fleet = fleet_report_json(conn->server->fleet);
    struct MHD_Response *response;
    struct buf body;
    struct err err;
    enum status st;

    buf_init(&body, SERVER_ANSWER_BYTES_MAX);
    st = server__metrics_write(fleet, &body, &err);
    json_decref(fleet);
    if (st != STATUS_OK) {
        buf_deinit(&body);
        return respond_status(conn, connection, &err);
    }
    response = MHD_create_response_from_buffer(body.size, body.data, MHD_RESPMEM_MUST_FREE);
    if (response == NULL) {
        buf_deinit(&body);
        return MHD_NO;
    }
    server__conn_phase(conn, CONN_SENDING);
    return respond(conn, connection, MHD_HTTP_OK, response,
                   "text/plain; version=0.0.4; charset=utf-8");
}

static enum MHD_Result route_root(struct conn *conn, struct MHD_Connection *connection);

static const struct route {
    const char *path;
    unsigned methods;
    const char *allow;
    enum MHD_Result (*answer)(struct conn *conn, struct MHD_Connection *connection);
} routes[] = {
    { "/", METHOD_GET, "GET, HEAD", route_root },
    { "/generate", METHOD_POST | METHOD_PUT, "POST, PUT", route_generate },
    { "/health", METHOD_GET, "GET, HEAD", route_health },
    { "/health_generate", METHOD_GET, "GET, HEAD", route_health_generate },
    { "/get_model_info", METHOD_GET, "GET, HEAD", route_model_info },
    { "/update_weights_from_disk", METHOD_POST, "POST", route_update_weights },
    { "/get_server_info", METHOD_GET, "GET, HEAD", route_server_info },
    { "/metrics", METHOD_GET, "GET, HEAD", route_metrics },
    { "/v1/models", METHOD_GET, "GET, HEAD", route_models },
    { "/v1/completions", METHOD_POST, "POST", route_completions },
    { "/v1/chat/completions", METHOD_POST, "POST", route_chat_completions },
};
#define ROUTE_COUNT (sizeof(routes) / sizeof(routes[0]))

/* Browsers get the page, all others the list of what there is. */
static enum MHD_Result route_root(struct conn *conn, struct MHD_Connection *connection)
{
    const char *accept = MHD_lookup_connection_value(connection, MHD_HEADER_KIND,
                                                     MHD_HTTP_HEADER_ACCEPT);
    json_t *paths;

    if (accept != NULL && strstr(accept, "text/html") != NULL) {
        server__conn_phase(conn, CONN_SENDING);
        return respond(conn, connection, MHD_HTTP_OK,
                       MHD_create_response_from_buffer(server__page_size, (void *)server__page,
                                                       MHD_RESPMEM_PERSISTENT),
                       "text/html; charset=utf-8");
    }
    paths = json_object();

    for (size_t i = 0; i < ROUTE_COUNT; i++)
        (void)json_object_set_new(paths, routes[i].path, json_string(routes[i].allow));
    return respond_json(conn, connection,
                        json_pack("{s:s, s:s, s:o}", "program", "lighter", "model",
                                  conn->server->options.served_model_name, "endpoints", paths));
}

static enum MHD_Result route(struct conn *conn, struct MHD_Connection *connection, const char *path,
                             const char *method)
{
    char message[256];

    for (size_t i = 0; i < ROUTE_COUNT; i++) {
        struct buf body;
        if (strcmp(path, routes[i].path) != 0)
            continue;
        if ((routes[i].methods & method_of(method)) != 0)
            return routes[i].answer(conn, connection);
        (void)snprintf(message, sizeof(message), "%s takes %s, not %.32s", path, routes[i].allow,
                       method);
        if (!error_body(conn, MHD_HTTP_METHOD_NOT_ALLOWED, "method not allowed", message, &body))
            return MHD_NO;
        return respond_text(conn, connection, MHD_HTTP_METHOD_NOT_ALLOWED, &body, routes[i].allow);
    }
    if (strncmp(path, MODELS, strlen(MODELS)) == 0 && method_of(method) == METHOD_GET)
        return route_model(conn, connection, path + strlen(MODELS));
    (void)snprintf(message, sizeof(message), "there is nothing at %.128s; GET / lists what is",
                   path);
    return respond_error(conn, connection, MHD_HTTP_NOT_FOUND, "not found", message);
}

/* ---- requests ---- */

static enum MHD_Result refuse(struct conn *conn, struct MHD_Connection *connection)
{
    const struct server_options *options = &conn->server->options;
    char message[160];

    if (conn->refusal == MHD_HTTP_CONTENT_TOO_LARGE) {
        (void)snprintf(message, sizeof(message), "the body is larger than the limit of %zu bytes",
                       options->body_bytes_max);
        return respond_error(conn, connection, conn->refusal, "too large", message);
    }
    (void)snprintf(message, sizeof(message),
                   "too many requests at once: the limits are %" PRIu32
                   " connections and %" PRIu64 " bytes of bodies",
                   options->connection_count_max, (uint64_t)SERVER_BODIES_BYTES_MAX);
    return respond_error(conn, connection, conn->refusal, status_name(STATUS_BUSY), message);
}

/* The headers are here. What they announce may be refused already. An answer that is given before
 * the body has come makes libmicrohttpd close the connection, and a client that is still sending
 * may then miss it: so a body that is a little too large is read to its end first. */
static enum MHD_Result begin_request(struct conn *conn, struct MHD_Connection *connection)
{
    struct server *server = conn->server;
    const uint64_t limit = server->options.body_bytes_max;
    const char *length = MHD_lookup_connection_value(connection, MHD_HEADER_KIND,
                                                     MHD_HTTP_HEADER_CONTENT_LENGTH);
    const char *expect = MHD_lookup_connection_value(connection, MHD_HEADER_KIND,
                                                     MHD_HTTP_HEADER_EXPECT);
    const uint64_t length_bytes = length == NULL ? 0 : strtoull(length, NULL, 10);
    bool crowded;

    (void)pthread_mutex_lock(&server->lock);
    crowded = server->conn_count > server->options.connection_count_max;
    (void)pthread_mutex_unlock(&server->lock);
    if (crowded)
        conn->refusal = MHD_HTTP_SERVICE_UNAVAILABLE;
    else if (length_bytes > limit)
        conn->refusal = MHD_HTTP_CONTENT_TOO_LARGE;
    if (conn->refusal != 0 && (expect != NULL || length_bytes / 2 > limit))
        return refuse(conn, connection);
    return MHD_YES;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *connection, const char *path,
                                  const char *method, const char *version, const char *body,
                                  size_t *body_size, void **request)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct conn *conn = info->socket_context;

    (void)cls;
    (void)version;
    if (conn == NULL)
        return MHD_NO;
    if (*request == NULL) {
        *request = conn;
        conn->api = strncmp(path, "/v1/", 4) == 0 ? API_OPENAI : API_SGLANG;
        return begin_request(conn, connection);
    }
    if (*body_size > 0) {
        take_body(conn, body, *body_size);
        *body_size = 0;
        return conn->body_seen_bytes / 2 > conn->server->options.body_bytes_max ? MHD_NO : MHD_YES;
    }
    if (conn->prepared)
        return prepared(conn, connection);
    if (conn->updating)
        return updated(conn, connection);
    if (conn->call != NULL)
        return continue_call(conn, connection);
    if (conn->refusal != 0)
        return refuse(conn, connection);
    return route(conn, connection, path, method);
}

/* ---- libmicrohttpd itself ---- */

static void on_log(void *cls, const char *format, va_list args)
{
    const struct server *server = cls;
    char line[512];

    (void)vsnprintf(line, sizeof(line), format, args);
    line[strcspn(line, "\r\n")] = '\0';
    log_line(server->log, LOG_DEBUG, "libmicrohttpd: %s", line);
}

enum status server__http_start(struct server *server, struct err *err)
{
    const bool listens = server->listen_fd >= 0;
    const unsigned flags = MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG | MHD_USE_ITC |
                           (listens ? MHD_USE_POLL_INTERNAL_THREAD : MHD_USE_NO_LISTEN_SOCKET);
    struct MHD_OptionItem extra[] = {
        { MHD_OPTION_LISTEN_SOCKET, server->listen_fd, NULL },
        { MHD_OPTION_THREAD_POOL_SIZE, SERVER_THREADS, NULL },
        { MHD_OPTION_END, 0, NULL },
    };

    if (!listens)
        extra[0].option = MHD_OPTION_END;
    server->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, server, MHD_OPTION_EXTERNAL_LOGGER, on_log, server,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, server, MHD_OPTION_NOTIFY_CONNECTION,
        on_connection, server, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)SERVER_HEADER_BYTES_MAX,
        MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)(server->options.connection_count_max + SERVER_REFUSAL_CONNECTIONS),
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)server->options.idle_s_max,
        MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_ARRAY, extra, MHD_OPTION_END);
    if (server->daemon == NULL)
        return err_set(err, STATUS_UNAVAILABLE, "the HTTP server can't be started");
    return STATUS_OK;
}

void server__http_stop(struct server *server)
{
    if (server->daemon == NULL)
        return;
    /* libmicrohttpd may not be stopped while a connection is suspended. No call is suspended any
     * more once `stopping` is set: server__conn_attach looks at it. */
    (void)pthread_mutex_lock(&server->lock);
    server->stopping = true;
    for (struct conn *conn = server->conns; conn != NULL; conn = conn->next) {
        if (conn->call != NULL)
            server__call_abandon(conn->call);
    }
    (void)pthread_mutex_unlock(&server->lock);
    MHD_stop_daemon(server->daemon);
    server->daemon = NULL;
}

enum status server__http_add(struct server *server, int fd, struct err *err)
{
    const struct sockaddr address = { .sa_family = AF_UNIX };

    if (MHD_add_connection(server->daemon, fd, &address, sizeof(address)) != MHD_YES)
        return err_set(err, STATUS_UNAVAILABLE, "the HTTP server takes no connection");
    return STATUS_OK;
}

void server__http_run(struct server *server)
{
    (void)MHD_run(server->daemon);
}
