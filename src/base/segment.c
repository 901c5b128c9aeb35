/* base/segment.c - see segment.h.
 *
 * The reader opens /proc/PID/fd/FD, which the kernel allows to processes of the same user (proc(5),
 * PTRACE_MODE_READ_FSCREDS). The link's text is the memfd's name, "/memfd:NAME (deleted)", and our
 * NAME holds the cookie: so a number that was given to another process meanwhile is found out
 * before a byte is read. A reader's file is open for reading, so that its mapping can't be made
 * writable by mprotect; to take over, the file is opened once more, and mapped over the old place
 * in one step (mmap(2), MAP_FIXED). */
#include "base/segment.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory_left.h"
#include "base/size.h"

#define NAME_BYTES 48
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static void cookie_name(uint64_t cookie, char name[NAME_BYTES])
{
    (void)snprintf(name, NAME_BYTES, "lighter-%016" PRIx64, cookie);
}

/* What can be known beforehand; RLIMIT_FSIZE would be told by a signal. */
static enum status check_room(const char *what, uint64_t size_bytes, struct err *err)
{
    const uint64_t left_bytes = memory_left_bytes();
    char wanted[24], left[24];
    struct rlimit limit;

    if (size_bytes > left_bytes || size_bytes > INT64_MAX)
        return err_set(err, STATUS_NO_MEMORY,
                       "%s: %s (%" PRIu64 " bytes) of shared memory are more than the %s that this "
                       "machine has left",
                       what, size_format(size_bytes, wanted, sizeof(wanted)), size_bytes,
                       size_format(left_bytes, left, sizeof(left)));
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
        size_bytes > limit.rlim_cur)
        return err_set(err, STATUS_NO_MEMORY,
                       "%s: %s of shared memory are more than this process may have in one file: "
                       "%s (ulimit -f)",
                       what, size_format(size_bytes, wanted, sizeof(wanted)),
                       size_format((uint64_t)limit.rlim_cur, left, sizeof(left)));
    return STATUS_OK;
}

/* Takes the pages, maps them and seals the file. */
static enum status fill(const char *what, void *address, struct segment *segment, struct err *err)
{
    const int fixed = address == NULL ? 0 : MAP_FIXED;
    char size[24];
    int problem = posix_fallocate(segment->fd, 0, (off_t)segment->size_bytes);

    if (problem != 0)
        return err_set(err, STATUS_NO_MEMORY, "%s: no %s of shared memory: %s", what,
                       size_format(segment->size_bytes, size, sizeof(size)), strerror(problem));
    segment->memory = mmap(address, segment->size_bytes, PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_POPULATE | fixed, segment->fd, 0);
    if (segment->memory == MAP_FAILED) {
        segment->memory = NULL;
        return err_set(err, STATUS_NO_MEMORY, "%s: %s of shared memory could not be mapped: %s",
                       what, size_format(segment->size_bytes, size, sizeof(size)),
                       strerror(errno));
    }
    if (fcntl(segment->fd, F_ADD_SEALS, SEALS) != 0)
        return err_set(err, STATUS_UNAVAILABLE,
                       "%s: shared memory could not be sealed: %s", what,
                       strerror(errno));
    return STATUS_OK;
}

enum status segment_create(const char *what, uint64_t size_bytes, void *address,
                           struct segment *segment_out, struct err *err)
{
    struct segment segment = { .size_bytes = size_bytes, .fd = -1, .placed = address != NULL };
    char name[NAME_BYTES];
    enum status st;

    assert(size_bytes > 0);
    assert((uintptr_t)address % 4096 == 0);
    st = check_room(what, size_bytes, err);
    if (st != STATUS_OK)
        return st;
    if (getrandom(&segment.cookie, sizeof(segment.cookie), 0) != sizeof(segment.cookie))
        return err_set(err, STATUS_UNAVAILABLE, "%s: no random number: %s", what, strerror(errno));
    cookie_name(segment.cookie, name);
    segment.fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (segment.fd < 0)
        return err_set(err, STATUS_NO_MEMORY, "%s: shared memory could not be created: %s", what,
                       strerror(errno));
    st = fill(what, address, &segment, err);
    if (st != STATUS_OK) {
        segment_close(&segment);
        return st;
    }
    *segment_out = segment;
    return STATUS_OK;
}

void segment_handle(const struct segment *segment, struct segment_handle *handle_out)
{
    assert(segment->fd >= 0);
    *handle_out = (struct segment_handle){
        .size_bytes = segment->size_bytes,
        .cookie = segment->cookie,
        .pid = getpid(),
        .fd = segment->fd,
    };
}

static int open_handle(const struct segment_handle *handle)
{
    char path[64];

    (void)snprintf(path, sizeof(path), "/proc/%" PRId64 "/fd/%" PRId64, handle->pid, handle->fd);
    return open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
}

/* Why /proc/PID/fd/FD could not be opened. */
static enum status refuse_open(const char *what, const struct segment_handle *handle, int problem,
                               struct err *err)
{
    if (problem == EACCES || problem == EPERM)
        return err_set(err, STATUS_PEER,
                       "%s: this process may not look into process %" PRId64
                       ", which made the memory: both must run as the same user",
                       what, handle->pid);
    if (problem == ENOENT && handle->pid > 0 && handle->pid <= INT_MAX &&
        kill((pid_t)handle->pid, 0) == 0)
        return err_set(err, STATUS_PEER,
                       "%s: process %" PRId64 " has ended or given the memory back", what,
                       handle->pid);
    if (problem == ENOENT)
        return err_set(err, STATUS_PEER,
                       "%s: process %" PRId64 ", which made the memory, is gone, or runs in "
                       "another container",
                       what, handle->pid);
    return err_set(err, STATUS_PEER, "%s: the memory of process %" PRId64 " can't be opened: %s",
                   what, handle->pid, strerror(problem));
}

/* That the open file is the memory that is meant, as large as it should be. */
static enum status check_opened(const char *what, const struct segment_handle *handle,
                                int fd, uint64_t size_bytes, struct err *err)
{
    char path[64], name[NAME_BYTES], wanted[NAME_BYTES + 32], link[NAME_BYTES + 32];
    struct stat info;
    ssize_t length;

    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    length = readlink(path, link, sizeof(link) - 1);
    cookie_name(handle->cookie, name);
    (void)snprintf(wanted, sizeof(wanted), "/memfd:%s (deleted)", name);
    link[length < 0 ? 0 : length] = '\0';
    if (strcmp(link, wanted) != 0)
        return err_set(err, STATUS_PEER,
                       "%s: process %" PRId64 " is not the one that made the memory: that one is "
                       "gone",
                       what, handle->pid);
    if (fstat(fd, &info) != 0)
        return err_set(err, STATUS_PEER, "%s: %s", what, strerror(errno));
    if ((uint64_t)info.st_size != size_bytes)
        return err_set(err, STATUS_PEER,
                       "%s: process %" PRId64 " shares %" PRIu64 " bytes, where %" PRIu64
                       " are expected",
                       what, handle->pid, (uint64_t)info.st_size, size_bytes);
    return STATUS_OK;
}

enum status segment_open(const char *what, const struct segment_handle *handle,
                         uint64_t size_bytes, struct segment *segment_out, struct err *err)
{
    struct segment segment = { .size_bytes = size_bytes, .cookie = handle->cookie };
    enum status st;

    assert(size_bytes > 0);
    if (handle->size_bytes != size_bytes)
        return err_set(err, STATUS_PEER,
                       "%s: process %" PRId64 " shares %" PRIu64 " bytes, where %" PRIu64
                       " are expected",
                       what, handle->pid, handle->size_bytes, size_bytes);
    segment.fd = open_handle(handle);
    if (segment.fd < 0)
        return refuse_open(what, handle, errno, err);
    st = check_opened(what, handle, segment.fd, size_bytes, err);
    if (st == STATUS_OK) {
        segment.memory = mmap(NULL, size_bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, segment.fd,
                              0);
        if (segment.memory == MAP_FAILED)
            st = err_set(err, STATUS_NO_MEMORY, "%s: shared memory could not be mapped: %s", what,
                         strerror(errno));
    }
    if (st != STATUS_OK) {
        (void)close(segment.fd);
        return st;
    }
    *segment_out = segment;
    return STATUS_OK;
}

bool segment_is_there(const struct segment_handle *handle)
{
    const int fd = open_handle(handle);
    bool is_there;

    if (fd < 0)
        return false;
    is_there = check_opened("memory", handle, fd, handle->size_bytes, NULL) == STATUS_OK;
    (void)close(fd);
    return is_there;
}

enum status segment_take_over(const char *what, struct segment *segment, struct err *err)
{
    char path[64];
    void *place = MAP_FAILED;
    int fd;

    assert(segment->memory != NULL && segment->fd >= 0);
    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", segment->fd);
    fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd >= 0)
        place = mmap(segment->memory, segment->size_bytes, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_POPULATE | MAP_FIXED, fd, 0);
    if (fd >= 0)
        (void)close(fd);
    if (place == MAP_FAILED)
        return err_set(err, STATUS_PEER, "%s: shared memory could not be taken over: %s", what,
                       strerror(errno));
    return STATUS_OK;
}

void segment_close(struct segment *segment)
{
    if (segment->memory == NULL && segment->size_bytes == 0)
        return; /* zeroed: its fd means nothing */
    if (segment->memory != NULL && segment->placed) {
        void *const place = mmap(segment->memory, segment->size_bytes, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
        assert(place == segment->memory); /* it takes nothing that was not there */
        (void)place;
    } else if (segment->memory != NULL) {
        (void)munmap(segment->memory, segment->size_bytes);
    }
    if (segment->fd >= 0)
        (void)close(segment->fd);
    *segment = (struct segment){ .fd = -1 };
}
