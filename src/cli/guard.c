/* cli/guard.c - see guard.h.
 *
 *     mpirun -n N ... lighter rank OPTIONS
 *
 * It exists for the front end's sudden death. mpirun must then be told once, and once only (a
 * second SIGTERM makes it leave its files behind, and a parent with threads sends one for each of
 * them); and whatever it leaves all the same must be removed by somebody. So the guard gives mpirun
 * a folder of its own and removes that at the end.
 *
 * Guard and mpirun are in process groups of their own: a terminal's Ctrl-C does not reach them
 * while answers are being finished. The ranks talk over the loopback interface alone: what they say
 * through MPI is small, and needs no files in shared memory.
 *
 * When one of its processes fails, mpirun ends the others with SIGTERM and, if not told otherwise,
 * SIGKILL a second later. They have nothing to tidy up (a rank ends with its keeper, memory that
 * ranks share with its last holder), so that second would only hold up those who come next. */
#include "cli/guard.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/rank.h"

#define STOP_MS 2000 /* for each: by itself, after SIGTERM */
#define FOLDERS_OPEN_MAX 16

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *where)
{
    (void)info, (void)kind, (void)where;
    (void)remove(path);
    return 0;
}

static pid_t spawn(const char *const *args)
{
    const pid_t self = getpid();
    const pid_t pid = fork();

    if (pid == 0) {
        const int fd = open("/dev/null", O_RDONLY);
        (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
        (void)setpgid(0, 0);
        (void)dup2(fd, STDIN_FILENO);
        if (getppid() == self)
            (void)execvp("mpirun", (char *const *)args);
        _exit(127);
    }
    return pid;
}

/* Returns mpirun's exit status. */
static int wait_for(pid_t pid)
{
    struct pollfd fds[2] = {
        { .fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN },
        { .fd = STDIN_FILENO, .events = POLLIN },
    };
    int status = 0;

    while (fds[0].revents == 0 && fds[1].revents == 0)
        (void)poll(fds, 2, -1);
    if (fds[0].revents == 0 && poll(fds, 1, STOP_MS) <= 0) {
        (void)kill(pid, SIGTERM);
        if (poll(fds, 1, STOP_MS) <= 0)
            (void)kill(pid, SIGKILL);
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int cli_guard_run(const char *const *args, size_t count)
{
    const char *base = getenv("TMPDIR");
    const char *root = geteuid() == 0 ? "--allow-run-as-root" : "--quiet";
    char program[4096], folder[1024];
    const char *const own[] = {
        "mpirun", "-n", count > 0 ? args[0] : "1", "--oversubscribe", "--bind-to", "none",
        "--quiet", root, "--mca", "btl", "self,tcp", "--mca", "btl_tcp_if_include", "lo",
        "--mca", "oob_tcp_if_include", "lo", "--mca", "plm", "isolated",
        "--mca", "odls_base_sigkill_timeout", "0",
        "--mca", "orte_tmpdir_base", folder, program, CLI_RANK_COMMAND,
    };
    const size_t own_count = sizeof(own) / sizeof(own[0]);
    const char **all = calloc(own_count + count + 1, sizeof(*all));
    const ssize_t program_size = readlink("/proc/self/exe", program, sizeof(program) - 1);
    pid_t pid;
    int code;

    (void)setpgid(0, 0);
    if (all == NULL || count == 0 || program_size <= 0) {
        free(all);
        return 1;
    }
    program[program_size] = '\0';
    if (base == NULL || base[0] != '/' || strlen(base) > sizeof(folder) / 2)
        base = "/tmp";
    (void)snprintf(folder, sizeof(folder), "%s/lighter-ranks-XXXXXX", base);
    if (mkdtemp(folder) == NULL) {
        free(all);
        return 1;
    }
    memcpy(all, own, sizeof(own));
    memcpy(all + own_count, args + 1, (count - 1) * sizeof(*args));
    pid = spawn(all);
    code = pid > 0 ? wait_for(pid) : 1;
    (void)nftw(folder, remove_one, FOLDERS_OPEN_MAX, FTW_DEPTH | FTW_PHYS);
    free(all);
    return code;
}
