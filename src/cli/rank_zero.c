/* cli/rank_zero.c - rank 0 under somebody's mpirun: the front end's child.
 *
 * mpirun's process is the front end, which serves HTTP and outlives its rank. Its child is forked
 * before there are threads, and waits for one line: where the front end listens. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/rank.h"

#define STOP_MS 5000

static int rank_zero_run(const struct cli_context *context, int fd)
{
    char front[CLI_FRONT_BYTES_MAX];
    size_t size = 0;

    for (;;) {
        const ssize_t got = read(fd, front + size, sizeof(front) - 1 - size);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        size += (size_t)got;
    }
    (void)close(fd);
    front[size] = '\0';
    return size == 0 ? 0 : cli_rank_keep(context, front);
}

enum status cli_rank_zero_start(const struct cli_context *context,
                                const struct cli_mpi_place *place,
                                struct cli_rank_zero *rank_zero_out, struct err *err)
{
    const pid_t self = getpid();
    int fds[2];
    pid_t pid;

    if (pipe2(fds, O_CLOEXEC) != 0)
        return err_set(err, STATUS_UNAVAILABLE, "no pipe for rank 0: %s", strerror(errno));
    pid = fork();
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        (void)close(fds[1]);
        _exit(getppid() == self ? rank_zero_run(context, fds[0]) : 1);
    }
    (void)close(fds[0]);
    if (pid < 0) {
        (void)close(fds[1]);
        return err_set(err, STATUS_UNAVAILABLE, "no process for rank 0: %s", strerror(errno));
    }
    *rank_zero_out = (struct cli_rank_zero){
        .pid = pid, .fd = fds[1], .several_nodes = place->node_size < place->size,
    };
    return STATUS_OK;
}

enum status cli_rank_zero_tell(struct cli_rank_zero *rank_zero, const char *front, struct err *err)
{
    const size_t size = strlen(front);
    const ssize_t written = write(rank_zero->fd, front, size);

    (void)close(rank_zero->fd);
    rank_zero->fd = -1;
    if (written != (ssize_t)size)
        return err_set(err, STATUS_PEER, "rank 0's process has ended: %s", strerror(errno));
    return STATUS_OK;
}

void cli_rank_zero_stop(struct cli_rank_zero *rank_zero)
{
    struct pollfd wait = { .fd = -1, .events = POLLIN };

    if (rank_zero->fd >= 0)
        (void)close(rank_zero->fd);
    rank_zero->fd = -1;
    if (rank_zero->pid == 0)
        return;
    wait.fd = (int)syscall(SYS_pidfd_open, rank_zero->pid, 0);
    if (poll(&wait, 1, STOP_MS) <= 0)
        (void)kill(rank_zero->pid, SIGKILL);
    (void)close(wait.fd);
    (void)waitpid(rank_zero->pid, NULL, 0);
    rank_zero->pid = 0;
}
