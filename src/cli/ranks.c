/* cli/ranks.c - see ranks.h.
 *
 *     lighter ranks N OPTIONS (guard.c) -- mpirun ... -- lighter rank OPTIONS (keeper.h) -- ranks
 *
 * LIGHTER_FRONT is in their environment, and LIGHTER_AGAIN once others have served. The guard's
 * standard input is a pipe of this process: when that ends, because this process stops the ranks or
 * is no more, the guard ends mpirun and cleans up behind it. */
#include "cli/ranks.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/guard.h"
#include "cli/rank.h"

#define LIVED_LONG_NS UINT64_C(10000000000)
#define BACKOFF_S_MAX 30
#define GUARD_MS 10000      /* more than a guard needs to end */

extern char **environ;

struct cli_ranks {
    struct fleet *fleet;     /* set once, as are those to has_thread */
    const struct log *log;
    char program[4096], count[16];
    char front[CLI_FRONT_BYTES_MAX + 32];
    const char **args, **environment; /* the guard's; with two places left at the latter's end */
    size_t environment_count;
    int wake_fd;
    pthread_t thread;
    bool has_thread;
    pthread_mutex_t lock;    /* guards what follows */
    bool serving, stopping;
};

static bool is_stopping(struct cli_ranks *ranks)
{
    bool stopping;

    pthread_mutex_lock(&ranks->lock);
    stopping = ranks->stopping;
    pthread_mutex_unlock(&ranks->lock);
    return stopping;
}

/* -- one mpirun -------------------------------------------------------------------------------- */

/* *fd_out: the other end of the guard's standard input. */
static pid_t spawn(struct cli_ranks *ranks, int *fd_out)
{
    sigset_t none;
    int fds[2];
    pid_t pid;

    if (pipe2(fds, O_CLOEXEC) != 0)
        return -1;
    pid = fork();
    if (pid == 0) {
        (void)sigemptyset(&none);
        (void)sigprocmask(SIG_SETMASK, &none, NULL);
        (void)signal(SIGPIPE, SIG_DFL);
        (void)dup2(fds[0], STDIN_FILENO);
        (void)dup2(STDERR_FILENO, STDOUT_FILENO);
        (void)execve(ranks->program, (char *const *)ranks->args,
                     (char *const *)ranks->environment);
        _exit(127);
    }
    (void)close(fds[0]);
    if (pid < 0)
        (void)close(fds[1]);
    *fd_out = fds[1];
    return pid;
}

/* Waits for the guard, or for stopping; then lets it end. Returns wait's status. */
static int wait_for(struct cli_ranks *ranks, pid_t pid, int fd)
{
    struct pollfd fds[2] = {
        { .fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN },
        { .fd = ranks->wake_fd, .events = POLLIN },
    };
    int status = 0;

    while (!is_stopping(ranks) && fds[0].revents == 0)
        (void)poll(fds, 2, -1);
    (void)close(fd);
    if (fds[0].revents == 0 && poll(fds, 1, GUARD_MS) <= 0)
        (void)kill(pid, SIGKILL);
    (void)close(fds[0].fd);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return status;
}

static void describe(int status, char *out, size_t out_size)
{
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
        (void)snprintf(out, out_size, "several ranks on this machine need Open MPI's mpirun, "
                                      "which is not there (Debian: openmpi-bin)");
    else if (WIFEXITED(status))
        (void)snprintf(out, out_size, "all ranks have ended: mpirun ended with %d",
                       WEXITSTATUS(status));
    else
        (void)snprintf(out, out_size, "all ranks have ended: mpirun was ended by signal %d",
                       WTERMSIG(status));
}

/* -- the thread -------------------------------------------------------------------------------- */

static void rest(struct cli_ranks *ranks, unsigned seconds)
{
    struct pollfd wait = { .fd = ranks->wake_fd, .events = POLLIN };

    if (seconds > 0 && !is_stopping(ranks))
        (void)poll(&wait, 1, (int)seconds * 1000);
}

static void *ranks_thread(void *user)
{
    struct cli_ranks *ranks = user;
    unsigned backoff_s = 0;
    bool goes_on = true;

    while (goes_on && !is_stopping(ranks)) {
        const uint64_t started_ns = clock_now_ns();
        char why[200] = "no process for the ranks";
        int fd = -1;
        const pid_t pid = spawn(ranks, &fd);

        if (pid > 0)
            describe(wait_for(ranks, pid, fd), why, sizeof(why));
        if (is_stopping(ranks))
            break;
        fleet_remote_ended(ranks->fleet, why);
        pthread_mutex_lock(&ranks->lock);
        goes_on = ranks->serving;
        pthread_mutex_unlock(&ranks->lock);
        if (clock_now_ns() - started_ns > LIVED_LONG_NS)
            backoff_s = 0;
        if (goes_on)
            log_line(ranks->log, LOG_WARN, "%s; starting them again in %u seconds", why,
                     backoff_s);
        ranks->environment[ranks->environment_count] = CLI_RANK_AGAIN "=1";
        rest(ranks, backoff_s);
        backoff_s = backoff_s == 0 ? 1 : backoff_s * 2 < BACKOFF_S_MAX ? backoff_s * 2
                                                                       : BACKOFF_S_MAX;
    }
    return NULL;
}

/* -- start and stop ---------------------------------------------------------------------------- */

static enum status make_args(struct cli_ranks *ranks, const char *const *args, size_t arg_count,
                             struct err *err)
{
    const char *const own[] = { ranks->program, CLI_RANKS_COMMAND, ranks->count };
    const size_t own_count = sizeof(own) / sizeof(own[0]);
    size_t count = 0;

    while (environ[count] != NULL)
        count++;
    ranks->args = calloc(own_count + arg_count + 1, sizeof(*ranks->args));
    ranks->environment = calloc(count + 3, sizeof(*ranks->environment));
    if (ranks->args == NULL || ranks->environment == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the ranks' arguments");
    memcpy(ranks->args, own, sizeof(own));
    if (arg_count > 0)
        memcpy(ranks->args + own_count, args, arg_count * sizeof(*args));
    ranks->environment[0] = ranks->front;
    memcpy(ranks->environment + 1, environ, count * sizeof(*environ));
    ranks->environment_count = count + 1;
    return STATUS_OK;
}

static void ranks_free(struct cli_ranks *ranks)
{
    if (ranks->wake_fd >= 0)
        (void)close(ranks->wake_fd);
    pthread_mutex_destroy(&ranks->lock);
    free(ranks->args);
    free(ranks->environment);
    free(ranks);
}

enum status cli_ranks_start(struct fleet *fleet, uint32_t rank_count, const char *const *args,
                            size_t arg_count, const struct log *log, struct cli_ranks **ranks_out,
                            struct err *err)
{
    struct cli_ranks *ranks = calloc(1, sizeof(*ranks));
    enum status st;

    if (ranks == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the ranks' processes");
    ranks->fleet = fleet;
    ranks->log = log;
    pthread_mutex_init(&ranks->lock, NULL);
    (void)snprintf(ranks->count, sizeof(ranks->count), "%u", rank_count);
    (void)snprintf(ranks->front, sizeof(ranks->front), CLI_RANK_FRONT "=%s",
                   fleet_remote_front(fleet));
    ranks->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (ranks->wake_fd < 0 || readlink("/proc/self/exe", ranks->program,
                                       sizeof(ranks->program) - 1) <= 0)
        st = err_set(err, STATUS_UNAVAILABLE, "the program's own path is not known: %s",
                     strerror(errno));
    else
        st = make_args(ranks, args, arg_count, err);
    if (st == STATUS_OK && pthread_create(&ranks->thread, NULL, ranks_thread, ranks) != 0)
        st = err_set(err, STATUS_NO_MEMORY, "no thread to wait for mpirun");
    if (st != STATUS_OK) {
        ranks_free(ranks);
        return st;
    }
    ranks->has_thread = true;
    *ranks_out = ranks;
    return STATUS_OK;
}

void cli_ranks_serving(struct cli_ranks *ranks)
{
    pthread_mutex_lock(&ranks->lock);
    ranks->serving = true;
    pthread_mutex_unlock(&ranks->lock);
}

void cli_ranks_stop(struct cli_ranks *ranks)
{
    const uint64_t one = 1;

    if (ranks == NULL)
        return;
    pthread_mutex_lock(&ranks->lock);
    ranks->stopping = true;
    pthread_mutex_unlock(&ranks->lock);
    (void)!write(ranks->wake_fd, &one, sizeof(one));
    (void)pthread_join(ranks->thread, NULL);
    ranks_free(ranks);
}
