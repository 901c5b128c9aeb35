/* server/prepare.c - a body that asks for text becomes a call: read, tokenized, submitted.
 *
 * Small bodies are prepared by the connection's HTTP thread. A large one takes long (megabytes of
 * text are tokenized in seconds), and the thread has other connections whose tokens are to be sent:
 * so one thread of its own prepares the large ones, one after the other, while their connections
 * are suspended. That also bounds memory, of which JSON takes many times the body's bytes.
 *
 *     route --server__prepare_later--> queue --prepare_thread--> server__prepare --> resumed
 *
 * A queued connection is suspended, so it can't end; a client that leaves meanwhile is noticed by
 * the watcher (conn->hung_up), and its body is dropped unread when its turn comes. */
#include <assert.h>
#include <string.h>

#include "server/internal.h"

void server__prepare(struct conn *conn, struct MHD_Connection *connection)
{
    struct server *server = conn->server;
    const struct generate_limits limits = {
        .prompt_count_max = server->options.prompt_count_max,
        .prompt_token_count_max = fleet_model_info(server->fleet)->context_length,
    };
    const struct openai_context context = {
        .tokenizer = server->tokenizer,
        .chat = server->options.chat,
        .why_no_chat = server->options.why_no_chat,
        .is_chat = conn->api == API_CHAT,
    };
    struct generate_request request;
    struct call *call = NULL;
    enum status st;

    if (conn->api == API_SGLANG)
        st = server__generate_parse(conn->body.data, conn->body.size, &limits, &request,
                                    &conn->prepare_err);
    else
        st = server__openai_parse(conn->body.data, conn->body.size, &limits, &context, &request,
                                  &conn->prepare_err);
    server__conn_drop_body(conn);
    if (st == STATUS_OK) {
        st = server__call_create(server->fleet, server->tokenizer,
                                 server->options.served_model_name,
                                 request.is_openai ? CALL_OPENAI : CALL_GENERATE, &request,
                                 connection, &call, &conn->prepare_err);
        server__generate_request_deinit(&request);
    }
    conn->prepare_status = st;
    if (st == STATUS_OK)
        server__conn_attach(conn, call);
}

/* With server->lock held. */
static void finish(struct conn *conn)
{
    assert(conn->preparing);
    conn->preparing = false;
    MHD_resume_connection(conn->connection);
}

static void *prepare_thread(void *user)
{
    struct server *server = user;

    (void)pthread_mutex_lock(&server->lock);
    while (!server->stopping || server->prepare_first != NULL) {
        struct conn *conn = server->prepare_first;
        bool unwanted;
        if (conn == NULL) {
            (void)pthread_cond_wait(&server->prepare_wake, &server->lock);
            continue;
        }
        server->prepare_first = conn->prepare_next;
        if (server->prepare_first == NULL)
            server->prepare_last = NULL;
        unwanted = server->stopping || conn->hung_up;
        (void)pthread_mutex_unlock(&server->lock);
        if (unwanted)
            conn->prepare_status = err_set(&conn->prepare_err, STATUS_CANCELED,
                                           "the server is shutting down");
        else
            server__prepare(conn, conn->connection);
        (void)pthread_mutex_lock(&server->lock);
        finish(conn);
    }
    (void)pthread_mutex_unlock(&server->lock);
    return NULL;
}

bool server__prepare_later(struct conn *conn, struct MHD_Connection *connection)
{
    struct server *server = conn->server;
    bool stopping;

    (void)pthread_mutex_lock(&server->lock);
    stopping = server->stopping;
    if (!stopping) {
        conn->connection = connection;
        conn->preparing = true;
        conn->prepare_next = NULL;
        if (server->prepare_last != NULL)
            server->prepare_last->prepare_next = conn;
        else
            server->prepare_first = conn;
        server->prepare_last = conn;
        (void)pthread_cond_signal(&server->prepare_wake);
        MHD_suspend_connection(connection); /* before `finish`, which needs the lock */
    }
    (void)pthread_mutex_unlock(&server->lock);
    return !stopping;
}

enum status server__prepare_start(struct server *server, struct err *err)
{
    const int error = pthread_create(&server->preparer, NULL, prepare_thread, server);

    if (error != 0)
        return err_set(err, STATUS_UNAVAILABLE, "no thread for preparing requests: %s",
                       strerror(error));
    server->preparer_started = true;
    return STATUS_OK;
}

void server__prepare_stop(struct server *server)
{
    if (!server->preparer_started)
        return;
    (void)pthread_mutex_lock(&server->lock);
    server->stopping = true;
    (void)pthread_cond_signal(&server->prepare_wake);
    (void)pthread_mutex_unlock(&server->lock);
    (void)pthread_join(server->preparer, NULL);
    server->preparer_started = false;
}
