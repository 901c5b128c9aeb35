/* fleet/dial.c - see dial.h. */
#include "fleet/dial.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#define LISTEN_BACKLOG 128

/* -- tokens ------------------------------------------------------------------------------------ */

enum status fleet__tokens_make(struct fleet__tokens *tokens_out, struct err *err)
{
    unsigned char bytes[FLEET__TOKEN_HEX];

    if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes))
        return err_set(err, STATUS_IO, "the system gives no random numbers for a token");
    for (size_t i = 0; i < FLEET__TOKEN_HEX / 2; i++) {
        (void)snprintf(tokens_out->of_rank + 2 * i, 3, "%02x", bytes[i]);
        (void)snprintf(tokens_out->of_front + 2 * i, 3, "%02x", bytes[FLEET__TOKEN_HEX / 2 + i]);
    }
    return STATUS_OK;
}

bool fleet__token_equal(const char *a, const char *b)
{
    unsigned char differ = 0;

    for (size_t i = 0; i < FLEET__TOKEN_HEX; i++)
        differ |= (unsigned char)(a[i] ^ b[i]);
    return differ == 0;
}

/* -- the front end's side ---------------------------------------------------------------------- */

enum status fleet__listen(bool every_address, int *fd_out, struct err *err)
{
    struct sockaddr_in address = { .sin_family = AF_INET };
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    address.sin_addr.s_addr = htonl(every_address ? INADDR_ANY : INADDR_LOOPBACK);
    if (fd >= 0 && bind(fd, (const struct sockaddr *)&address, sizeof(address)) == 0 &&
        listen(fd, LISTEN_BACKLOG) == 0) {
        *fd_out = fd;
        return STATUS_OK;
    }
    (void)err_set(err, STATUS_UNAVAILABLE, "no socket for the ranks: %s", strerror(errno));
    if (fd >= 0)
        (void)close(fd);
    return STATUS_UNAVAILABLE;
}

/* Appends the addresses of the interfaces that are up, loopback or the others. */
static enum status append_addresses(const struct ifaddrs *list, bool loopback, unsigned port,
                                    struct buf *out, struct err *err)
{
    enum status st = STATUS_OK;

    for (const struct ifaddrs *at = list; at != NULL && st == STATUS_OK; at = at->ifa_next) {
        char text[INET_ADDRSTRLEN];
        struct sockaddr_in address;

        if (at->ifa_addr == NULL || at->ifa_addr->sa_family != AF_INET ||
            (at->ifa_flags & IFF_UP) == 0 || ((at->ifa_flags & IFF_LOOPBACK) != 0) != loopback)
            continue;
        memcpy(&address, at->ifa_addr, sizeof(address));
        if (inet_ntop(AF_INET, &address.sin_addr, text, sizeof(text)) != NULL &&
            out->size + sizeof(text) + 8 < FLEET__FRONT_BYTES_MAX)
            st = buf_printf(out, err, " %s:%u", text, port);
    }
    return st;
}

enum status fleet__front_write(const struct fleet__tokens *tokens, int listen_fd,
                               bool every_address, char front_out[FLEET__FRONT_BYTES_MAX],
                               struct err *err)
{
    struct sockaddr_in bound = { 0 };
    socklen_t bound_size = sizeof(bound);
    struct ifaddrs *list = NULL;
    struct buf line;
    enum status st;

    if (getsockname(listen_fd, (struct sockaddr *)&bound, &bound_size) != 0 ||
        (every_address && getifaddrs(&list) != 0))
        return err_set(err, STATUS_UNAVAILABLE, "this machine's addresses are not known: %s",
                       strerror(errno));
    buf_init(&line, FLEET__FRONT_BYTES_MAX - 1);
    st = buf_printf(&line, err, "%s%s", tokens->of_rank, tokens->of_front);
    if (st == STATUS_OK && every_address)
        st = append_addresses(list, false, ntohs(bound.sin_port), &line, err);
    if (st == STATUS_OK)
        st = buf_printf(&line, err, " 127.0.0.1:%u", ntohs(bound.sin_port));
    if (list != NULL)
        freeifaddrs(list);
    if (st == STATUS_OK)
        memcpy(front_out, line.data, line.size + 1);
    buf_deinit(&line);
    return st;
}

/* -- the rank's side --------------------------------------------------------------------------- */

enum status fleet__front_read(const char *front, struct fleet__tokens *tokens_out,
                              const char **addresses_out, struct err *err)
{
    const size_t span = strspn(front, "0123456789abcdef");

    if (span != 2 * FLEET__TOKEN_HEX || front[span] != ' ')
        return err_set(err, STATUS_BAD_INPUT,
                       "this subcommand is for `lighter serve`, which starts it by itself");
    *tokens_out = (struct fleet__tokens){ 0 };
    memcpy(tokens_out->of_rank, front, FLEET__TOKEN_HEX);
    memcpy(tokens_out->of_front, front + FLEET__TOKEN_HEX, FLEET__TOKEN_HEX);
    *addresses_out = front + span;
    return STATUS_OK;
}

/* A connected socket, or -1. */
static int connect_to(const struct addrinfo *address, int timeout_ms)
{
    const int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct pollfd wait = { .fd = fd, .events = POLLOUT };
    socklen_t size = sizeof(int);
    int error = 0;
    const int on = 1;

    if (fd < 0)
        return -1;
    if ((connect(fd, address->ai_addr, address->ai_addrlen) == 0 ||
         (errno == EINPROGRESS && poll(&wait, 1, timeout_ms) == 1)) &&
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0) {
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        return fd;
    }
    (void)close(fd);
    return -1;
}

enum status fleet__dial(const char **at, int timeout_ms, int *fd_out, struct err *err)
{
    const struct addrinfo hints = {
        .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV,
    };
    const char *begin = *at + strspn(*at, " ");
    const size_t size = strcspn(begin, " ");
    struct addrinfo *address = NULL;
    char host[64];
    const char *port;

    *fd_out = -1;
    if (size == 0)
        return err_set(err, STATUS_UNAVAILABLE, "no address is left");
    *at = begin + size;
    if (size >= sizeof(host))
        return STATUS_OK;
    memcpy(host, begin, size);
    host[size] = '\0';
    if (strrchr(host, ':') == NULL)
        return STATUS_OK;
    port = strrchr(host, ':') + 1;
    *strrchr(host, ':') = '\0';
    if (getaddrinfo(host, port, &hints, &address) != 0)
        return STATUS_OK;
    *fd_out = connect_to(address, timeout_ms);
    freeaddrinfo(address);
    return STATUS_OK;
}

void fleet__machine(char out[FLEET__HOST_BYTES_MAX])
{
    char boot[40] = "", space[40] = "";
    const int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);

    if (fd >= 0) {
        const ssize_t got = read(fd, boot, sizeof(boot) - 1);
        boot[got > 0 ? strcspn(boot, "\n") : 0] = '\0';
        (void)close(fd);
    }
    if (readlink("/proc/self/ns/pid", space, sizeof(space) - 1) < 0)
        space[0] = '\0';
    (void)snprintf(out, FLEET__HOST_BYTES_MAX, "%s %s", boot, space);
}
