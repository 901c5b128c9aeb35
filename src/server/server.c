/* server/server.c - the listening socket, and how a server starts, drains and stops.
 *
 *     create:  socket - preparer - libmicrohttpd's threads - watcher
 *     drain:   stop listening - refuse - the engine finishes - the answers are sent
 *     destroy: watcher - preparer - libmicrohttpd's threads, all resumed first - socket */
#include "server/server.h"

#include <assert.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "server/internal.h"

#define LISTEN_BACKLOG 512

void server_options_init(struct server_options *options)
{
    *options = (struct server_options){
        .host = "127.0.0.1",
        .port = 30000,
        .body_bytes_max = 8 * MIB,
        .connection_count_max = 256,
        .prompt_count_max = 256,
        .idle_s_max = 30,
        .request_s_max = 60,
    };
}

/* ---- the listening socket ---- */

/* A socket, or an errno below zero. */
static int listen_at(const struct addrinfo *address)
{
    const int on = 1;
    const int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int error;

    if (fd < 0)
        return -errno;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == 0 &&
        bind(fd, address->ai_addr, address->ai_addrlen) == 0 && listen(fd, LISTEN_BACKLOG) == 0)
        return fd;
    error = errno;
    (void)close(fd);
    return -error;
}

static enum status listen_open(struct server *server, struct err *err)
{
    const char *host = server->options.host;
    const struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE };
    struct addrinfo *addresses = NULL;
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } bound = { .v6 = { 0 } };
    socklen_t bound_size = sizeof(bound);
    int fd = -EADDRNOTAVAIL;
    char port[8];
    int failed;

    (void)snprintf(port, sizeof(port), "%u", server->options.port);
    failed = getaddrinfo(host, port, &hints, &addresses);
    if (failed != 0)
        return err_set(err, STATUS_UNAVAILABLE, "--host %s: %s", host, gai_strerror(failed));
    for (const struct addrinfo *at = addresses; at != NULL && fd < 0; at = at->ai_next)
        fd = listen_at(at);
    freeaddrinfo(addresses);
    if (fd < 0)
        return err_set(err, STATUS_UNAVAILABLE, "can't listen on %s port %u: %s", host,
                       server->options.port, strerror(-fd));
    server->listen_fd = fd;
    if (getsockname(fd, &bound.any, &bound_size) != 0)
        return err_set(err, STATUS_UNAVAILABLE, "%s: the port is not known: %s", host,
                       strerror(errno));
    server->port = ntohs(bound.any.sa_family == AF_INET6 ? bound.v6.sin6_port : bound.v4.sin_port);
    return STATUS_OK;
}

/* ---- create and destroy ---- */

static const char *copy_string(const char *text, const char *fallback)
{
    return strdup(text != NULL ? text : fallback != NULL ? fallback : "");
}

static bool copy_options(struct server_options *to, const struct server_options *from)
{
    *to = *from;
    to->host = copy_string(from->host, "127.0.0.1");
    to->model_path = copy_string(from->model_path, NULL);
    to->tokenizer_path = copy_string(from->tokenizer_path, from->model_path);
    to->served_model_name = copy_string(from->served_model_name, from->model_path);
    to->why_no_chat = copy_string(from->why_no_chat, "the model has no chat template");
    to->launch = from->launch == NULL ? NULL : json_deep_copy(from->launch);
    to->weight_version = NULL; /* the server has its own copy */
    return to->host != NULL && to->model_path != NULL && to->tokenizer_path != NULL &&
           to->served_model_name != NULL && to->why_no_chat != NULL &&
           (to->launch != NULL || from->launch == NULL);
}

static enum status check_options(const struct server_options *options, struct err *err)
{
    if (options->host == NULL || options->host[0] == '\0')
        return err_set(err, STATUS_BAD_INPUT, "--host is empty; 127.0.0.1 is this machine alone");
    if (options->body_bytes_max == 0 || options->connection_count_max == 0 ||
        options->prompt_count_max == 0 || options->idle_s_max == 0 || options->request_s_max == 0)
        return err_set(err, STATUS_BAD_INPUT, "every limit of the server must be at least 1");
    if (options->body_bytes_max > SERVER_BODIES_BYTES_MAX)
        return err_set(err, STATUS_BAD_INPUT,
                       "a body may have %zu bytes, but all bodies together %zu",
                       options->body_bytes_max, (size_t)SERVER_BODIES_BYTES_MAX);
    if (options->connection_count_max > 65536)
        return err_set(err, STATUS_BAD_INPUT, "%u connections; the most are 65536",
                       options->connection_count_max);
    return STATUS_OK;
}

enum status server__create(struct fleet *fleet, const struct tokenizer *tokenizer,
                           const struct server_options *options, const struct log *log,
                           struct server **server_out, struct err *err)
{
    struct server *server = NULL;
    pthread_condattr_t attributes;
    enum status st = check_options(options, err);

    if (st != STATUS_OK)
        return st;
    server = calloc(1, sizeof(*server));
    if (server == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a server");
    server->fleet = fleet;
    server->tokenizer = tokenizer;
    server->start_s = time(NULL);
    server->log = log;
    server->listen_fd = -1;
    server->wake_fd = -1;
    server->next_serial = 1;
    (void)pthread_mutex_init(&server->lock, NULL);
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&server->idle, &attributes);
    (void)pthread_condattr_destroy(&attributes);
    (void)pthread_cond_init(&server->prepare_wake, NULL);
    server->model_path = (char *)copy_string(options->model_path, NULL);
    server->weight_version = (char *)copy_string(options->weight_version, "default");
    if (!copy_options(&server->options, options) || server->model_path == NULL ||
        server->weight_version == NULL) {
        server_destroy(server);
        return err_set(err, STATUS_NO_MEMORY, "no memory for a server's options");
    }
    server->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (server->wake_fd < 0) {
        server_destroy(server);
        return err_set(err, STATUS_UNAVAILABLE, "no eventfd: %s", strerror(errno));
    }
    *server_out = server;
    return STATUS_OK;
}

enum status server_create(struct fleet *fleet, const struct tokenizer *tokenizer,
                          const struct server_options *options, const struct log *log,
                          struct server **server_out, struct err *err)
{
    struct server *server = NULL;
    enum status st = server__create(fleet, tokenizer, options, log, &server, err);

    assert(fleet != NULL);
    if (st != STATUS_OK)
        return st;
    assert(server != NULL);
    st = listen_open(server, err);
    if (st == STATUS_OK)
        st = server__prepare_start(server, err);
    if (st == STATUS_OK)
        st = server__http_start(server, err);
    if (st == STATUS_OK)
        st = server__watch_start(server, err);
    if (st != STATUS_OK) {
        server_destroy(server);
        return st;
    }
    log_line(log, LOG_INFO, strchr(server->options.host, ':') != NULL
                                ? "listening on http://[%s]:%u"
                                : "listening on http://%s:%u",
             server->options.host, server->port);
    *server_out = server;
    return STATUS_OK;
}

void server_destroy(struct server *server)
{
    if (server == NULL)
        return;
    server__watch_stop(server);
    server__prepare_stop(server);
    server__update_abandon(server);
    server__http_stop(server);
    server__update_stop(server);
    assert(server->conns == NULL);
    if (server->listen_fd >= 0)
        (void)close(server->listen_fd);
    if (server->wake_fd >= 0)
        (void)close(server->wake_fd);
    (void)pthread_cond_destroy(&server->prepare_wake);
    (void)pthread_cond_destroy(&server->idle);
    (void)pthread_mutex_destroy(&server->lock);
    free(server->model_path);
    free(server->weight_version);
    free((void *)server->options.host);
    free((void *)server->options.model_path);
    free((void *)server->options.tokenizer_path);
    free((void *)server->options.served_model_name);
    free((void *)server->options.why_no_chat);
    json_decref((json_t *)server->options.launch);
    free(server);
}

uint16_t server_port(const struct server *server)
{
    return server->port;
}

void server_drain(struct server *server)
{
    struct timespec until;

    (void)pthread_mutex_lock(&server->lock);
    server->draining = true;
    (void)pthread_mutex_unlock(&server->lock);
    if (server->listen_fd >= 0 && MHD_quiesce_daemon(server->daemon) != MHD_INVALID_SOCKET) {
        (void)close(server->listen_fd);
        server->listen_fd = -1;
    }
    fleet_drain(server->fleet);
    /* What was generated is still to be sent; a client that does not take it is cut off. */
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)server->options.idle_s_max + (time_t)server->options.request_s_max;
    (void)pthread_mutex_lock(&server->lock);
    while (server->answering_count > 0 &&
           pthread_cond_timedwait(&server->idle, &server->lock, &until) == 0)
        ;
    (void)pthread_mutex_unlock(&server->lock);
}
