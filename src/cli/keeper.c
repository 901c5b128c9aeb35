/* cli/keeper.c - see keeper.h. */
#include "cli/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

#define LIVED_LONG_NS UINT64_C(10000000000) /* after which a death is not the last one's sequel */
#define BACKOFF_S_MAX 8

/* What a keeper knows of its rank's present life. */
struct watched {
    pid_t pid;
    bool ready;
    uint64_t ready_ns;
    int status;        /* of wait */
};

void cli_life_tell_front(const struct cli_life *life, const char *front)
{
    (void)dprintf(life->keeper_fd, "front %s\n", front);
}

void cli_life_tell_files(const struct cli_life *life, const struct cli_files *files)
{
    (void)dprintf(life->keeper_fd, "files %" PRIu64 " %" PRIu64 "\n", files->serial, files->stamp);
}

void cli_life_tell_ready(const struct cli_life *life)
{
    (void)dprintf(life->keeper_fd, "ready\n");
}

/* Takes the lines that are whole; returns how much of text[size] is left, at its beginning. */
static size_t take_lines(struct cli_keeper *keeper, struct watched *watched, char *text,
                         size_t size)
{
    struct cli_files files;
    char *begin = text;
    char *end;

    while ((end = memchr(begin, '\n', (size_t)(text + size - begin))) != NULL) {
        *end = '\0';
        if (strcmp(begin, "ready") == 0) {
            watched->ready = true;
            watched->ready_ns = clock_now_ns();
        } else if (strncmp(begin, "front ", 6) == 0 && strlen(begin + 6) < sizeof(keeper->front)) {
            memcpy(keeper->front, begin + 6, strlen(begin + 6) + 1);
        } else if (sscanf(begin, "files %" SCNu64 " %" SCNu64, &files.serial, &files.stamp) == 2) {
            keeper->files = files;
        }
        begin = end + 1;
    }
    size -= (size_t)(begin - text);
    memmove(text, begin, size);
    return size;
}

/* Reads what the rank says until it has ended. */
static void watch(struct cli_keeper *keeper, struct watched *watched, int fd)
{
    char text[CLI_FRONT_BYTES_MAX + 16];
    size_t size = 0;

    for (;;) {
        const ssize_t got = read(fd, text + size, sizeof(text) - size);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        size = take_lines(keeper, watched, text, size + (size_t)got);
        if (size == sizeof(text))
            size = 0; /* no line of ours is that long */
    }
    while (waitpid(watched->pid, &watched->status, 0) < 0 && errno == EINTR)
        ;
}

/* Starts a life and waits for its end. False: there is no process for it. */
static bool live_once(struct cli_keeper *keeper, bool first, struct watched *watched)
{
    const pid_t self = getpid();
    struct cli_life life = {
        .first = first, .memory_left_bytes = keeper->memory_left_bytes, .files = keeper->files,
    };
    int fds[2];

    *watched = (struct watched){ .pid = -1 };
    if (pipe2(fds, O_CLOEXEC) != 0)
        return false;
    watched->pid = fork();
    if (watched->pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != self)
            _exit(CLI_LIFE_ORPHAN);
        (void)close(fds[0]);
        life.keeper_fd = fds[1];
        memcpy(life.front, keeper->front, sizeof(life.front));
        _exit(keeper->live(keeper->user, &life));
    }
    (void)close(fds[1]);
    if (watched->pid > 0)
        watch(keeper, watched, fds[0]);
    (void)close(fds[0]);
    return watched->pid > 0;
}

int cli_keep(struct cli_keeper *keeper)
{
    bool ever_ready = false;
    unsigned backoff_s = 0;

    for (bool first = true;; first = false) {
        struct watched watched;
        int code;

        if (!live_once(keeper, first, &watched))
            return 1;
        ever_ready = ever_ready || watched.ready;
        code = WIFEXITED(watched.status) ? WEXITSTATUS(watched.status) : 1;
        if (code == CLI_LIFE_LEFT)
            return 0;
        if (!ever_ready || !keeper->restart)
            return code == CLI_LIFE_ORPHAN ? 0 : code;
        /* The front end is gone, or took this rank for dead: then it still answers the next one. */
        if (code == CLI_LIFE_ORPHAN && !watched.ready)
            return 0;
        if (watched.ready && clock_now_ns() - watched.ready_ns > LIVED_LONG_NS)
            backoff_s = 0;
        if (backoff_s > 0)
            (void)nanosleep(&(struct timespec){ .tv_sec = (time_t)backoff_s }, NULL);
        backoff_s = backoff_s == 0 ? 1 : backoff_s * 2 < BACKOFF_S_MAX ? backoff_s * 2
                                                                       : BACKOFF_S_MAX;
    }
}
