/* server/watch.c - a thread that notices clients that have gone and those that dawdle.
 *
 * libmicrohttpd does not look at the socket of a suspended connection, so nobody else would notice
 * that a client has left while the engine works for it; and it ends a connection on which nothing
 * happens, but not one on which a byte comes every few seconds. So this thread waits on the sockets
 * of all connections whose answer is under way for the other end to close, and several times a
 * second shuts down those that have had their turn for too long. A client that closes only its
 * sending half counts as gone, as with most servers: the two can't be told apart.
 *
 * With no connection there is nothing to do, and the thread sleeps until one opens. */
#include <assert.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "server/internal.h"

struct watched {
    struct pollfd *fds;     /* the first is the server's wake_fd */
    uint64_t *serials;
    size_t count, capacity;
};

static bool watched_reserve(struct watched *watched, size_t capacity)
{
    struct pollfd *fds;
    uint64_t *serials;

    if (capacity <= watched->capacity)
        return true;
    fds = realloc(watched->fds, capacity * sizeof(*fds));
    if (fds != NULL)
        watched->fds = fds;
    serials = realloc(watched->serials, capacity * sizeof(*serials));
    if (serials != NULL)
        watched->serials = serials;
    if (fds == NULL || serials == NULL)
        return false;
    watched->capacity = capacity;
    return true;
}

static void watch(struct watched *watched, int fd, short events, uint64_t serial)
{
    watched->fds[watched->count] = (struct pollfd){ .fd = fd, .events = events };
    watched->serials[watched->count++] = serial;
}

/* With server->lock held: shuts down who is late, collects whom to wait for. Shutting down makes
 * libmicrohttpd see the connection's end. */
static void look(struct server *server, struct watched *watched)
{
    const uint64_t now_ns = clock_now_ns();
    /* Without memory for all, some departures are noticed later. */
    const bool room = watched_reserve(watched, (size_t)server->conn_count + 1);

    watched->count = 0;
    watch(watched, server->wake_fd, POLLIN, 0);
    for (struct conn *conn = server->conns; conn != NULL; conn = conn->next) {
        if (conn->hung_up)
            continue;
        if (conn->phase == CONN_WAITING) {
            if (room)
                watch(watched, conn->fd, POLLRDHUP, conn->serial);
        } else if (now_ns > conn->deadline_ns) {
            conn->hung_up = true;
            (void)shutdown(conn->fd, SHUT_RDWR);
        }
    }
}

/* With server->lock held. A serial that is no longer in the list was answered in the meantime. */
static void hang_up(struct server *server, uint64_t serial)
{
    for (struct conn *conn = server->conns; conn != NULL; conn = conn->next) {
        if (conn->serial != serial || conn->phase != CONN_WAITING)
            continue;
        conn->hung_up = true;
        if (conn->call != NULL)
            server__call_abandon(conn->call);
        log_line(server->log, LOG_DEBUG, "a client left before its answer was there");
    }
}

static void *watch_thread(void *user)
{
    struct server *server = user;
    struct watched watched = { 0 };
    uint64_t woken;

    (void)pthread_mutex_lock(&server->lock);
    while (!server->stopping && watched_reserve(&watched, 1)) {
        int timeout_ms;
        look(server, &watched);
        timeout_ms = server->conns != NULL ? SERVER_WATCH_MS : -1;
        (void)pthread_mutex_unlock(&server->lock);
        (void)poll(watched.fds, watched.count, timeout_ms);
        if ((watched.fds[0].revents & POLLIN) != 0 &&
            read(server->wake_fd, &woken, sizeof(woken)) < 0)
            woken = 0; /* somebody has read it before; nothing is lost */
        (void)pthread_mutex_lock(&server->lock);
        for (size_t i = 1; i < watched.count; i++) {
            if (watched.fds[i].revents != 0)
                hang_up(server, watched.serials[i]);
        }
    }
    (void)pthread_mutex_unlock(&server->lock);
    free(watched.fds);
    free(watched.serials);
    return NULL;
}

enum status server__watch_start(struct server *server, struct err *err)
{
    const int error = pthread_create(&server->watcher, NULL, watch_thread, server);

    if (error != 0)
        return err_set(err, STATUS_UNAVAILABLE, "no thread for the server's watcher: %s",
                       strerror(error));
    server->watcher_started = true;
    return STATUS_OK;
}

void server__watch_stop(struct server *server)
{
    const uint64_t one = 1;

    if (!server->watcher_started)
        return;
    (void)pthread_mutex_lock(&server->lock);
    server->stopping = true;
    (void)pthread_mutex_unlock(&server->lock);
    if (write(server->wake_fd, &one, sizeof(one)) < 0)
        assert(false); /* an eventfd with room takes it */
    (void)pthread_join(server->watcher, NULL);
    server->watcher_started = false;
}
