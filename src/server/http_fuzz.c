/* server/http_fuzz.c - bytes of a connection, from outside, through libmicrohttpd, the routes, the
 * parser and a call, with the answers read back: never a crash, a hang, or something left behind.
 *
 * The engine is testing_engine.h's, without a thread; libmicrohttpd is driven from here, so that a
 * run depends on its input alone. The bytes come through a pair of sockets, some inputs in small
 * pieces. */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/testing_engine.h"
#include "server/internal.h"

#define ROUNDS_MAX 100000

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool right)
{
    if (!right)
        abort();
}

/* One turn of everybody: the server, the engine, the client. False when the server has closed. */
static bool turn(struct server *server, struct engine *engine, int fd)
{
    char sink[4096];
    ssize_t got;

    server__http_run(server);
    testing_engine_step(engine);
    do {
        got = recv(fd, sink, sizeof(sink), MSG_DONTWAIT);
    } while (got > 0);
    return got != 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
}

/* Sends the input, taking turns; false when the server has closed before its end. */
static bool feed(struct server *server, struct engine *engine, int fd, const uint8_t *data,
                 size_t size)
{
    const size_t piece = size % 3 != 0 ? size : 1 + (size_t)data[size / 2] % 64;

    for (size_t at = 0; at < size;) {
        const size_t left = size - at < piece ? size - at : piece;
        const ssize_t sent = send(fd, data + at, left, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent > 0)
            at += (size_t)sent;
        else if (errno != EAGAIN && errno != EWOULDBLOCK)
            return false;
        if (!turn(server, engine, fd))
            return false;
    }
    return true;
}

static void run(struct server *server, struct engine *engine, const uint8_t *data, size_t size)
{
    size_t rounds = 0;
    int fds[2];
    bool open;

    check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    check(fcntl(fds[1], F_SETFL, O_NONBLOCK) == 0);
    check(server__http_add(server, fds[1], NULL) == STATUS_OK);
    open = feed(server, engine, fds[0], data, size);
    /* Every third client waits for its answer, the others leave at once. */
    for (int i = 0; open && size % 3 == 0 && i < 80; i++)
        open = turn(server, engine, fds[0]);
    (void)shutdown(fds[0], SHUT_WR);
    for (int i = 0; open && i < 80; i++)
        open = turn(server, engine, fds[0]);
    (void)close(fds[0]);
    while (server->conn_count > 0) {
        server__http_run(server);
        testing_engine_step(engine);
        check(rounds++ < ROUNDS_MAX);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct server_options options;
    struct engine *engine = testing_engine_create(false);
    struct fleet *fleet = NULL;
    struct server *server = NULL;

    check(engine != NULL);
    server_options_init(&options);
    options.body_bytes_max = 2048;
    options.prompt_count_max = 4;
    options.chat = &testing_chat;
    check(fleet_create_local(engine, &fleet, NULL) == STATUS_OK);
    check(server__create(fleet, &testing_tokenizer, &options, NULL, &server, NULL) == STATUS_OK);
    check(server__http_start(server, NULL) == STATUS_OK);
    run(server, engine, data, size);
    check(server->bodies_bytes == 0);
    check(server->answering_count == 0);
    server_destroy(server);
    fleet_destroy(fleet);
    testing_engine_destroy(engine);
    return 0;
}
