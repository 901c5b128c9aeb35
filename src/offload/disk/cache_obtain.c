/* offload/disk/cache_obtain.c - a cache file that is right: the one that is there, or a new one.
 *
 * Processes that want the same file lock its folder (flock, which ends with the process, however it
 * ends). Who gets the lock looks again, since the one before may just have made the file. */
#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/size.h"
#include "offload/disk/cache_internal.h"

#define FOLDER_TRIES_MAX 10
#define LOCK_TRY_NS 50000000                    /* between two tries to get the lock */
#define LOCK_SAY_NS (UINT64_C(10) * 1000000000) /* between two lines that say we wait */

/* All that obtaining needs, so that it need not be passed one by one. */
struct request {
    const char *path;
    const struct cache_hash *fingerprint;
    const struct cache_unit *units;
    size_t unit_count;
    const struct cache_producer *producer;
    enum disk_use direct;
    const struct log *log;
};

enum status cache_folders_create(const char *path, struct err *err)
{
    char *const folder = strdup(path);
    enum status st = STATUS_OK;

    if (folder == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for its folder's name", path);
    for (char *slash = strchr(folder + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        const int error = mkdir(folder, 0700) == 0 ? 0 : errno;
        if (error != 0 && error != EEXIST && !file_is_directory(folder)) {
            st = err_set(err, STATUS_IO, "%s: creating it for cache files: %s (another place: "
                         "--offload-cache-dir)", folder, strerror(error));
            break;
        }
        *slash = '/';
    }
    free(folder);
    return st;
}

static int open_folder(const char *path)
{
    const char *const slash = strrchr(path, '/');
    char *const folder = slash != NULL ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    const int fd = folder != NULL ? open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

    free(folder);
    return fd;
}

/* Waits for the lock. False: this file system has none, so nothing keeps others from writing. */
static bool lock_folder(int fd, const struct request *request)
{
    uint64_t said_ns = 0;

    while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        const uint64_t now_ns = clock_now_ns();

        if (errno != EWOULDBLOCK && errno != EINTR)
            return false;
        if (said_ns == 0 || now_ns - said_ns >= LOCK_SAY_NS) {
            log_line(request->log, LOG_INFO, "disk: waiting for another process that makes %s",
                     request->path);
            said_ns = now_ns;
        }
        clock_sleep_until_ns(now_ns + LOCK_TRY_NS);
    }
    return true;
}

/* With the lock, temporaries in the folder are of writers that died. */
static void remove_temporaries(int folder_fd, const struct log *log)
{
    const int fd = dup(folder_fd);
    DIR *const folder = fd >= 0 ? fdopendir(fd) : NULL;
    struct dirent *entry;

    if (folder == NULL) {
        if (fd >= 0)
            (void)close(fd);
        return;
    }
    rewinddir(folder);
    while ((entry = readdir(folder)) != NULL) {
        const size_t length = strlen(entry->d_name);
        if (length < 4 || strcmp(entry->d_name + length - 4, ".tmp") != 0 ||
            strstr(entry->d_name, ".units.") == NULL)
            continue;
        if (unlinkat(folder_fd, entry->d_name, 0) == 0)
            log_line(log, LOG_INFO, "disk: removed %s, which another process left unfinished",
                     entry->d_name);
    }
    (void)closedir(folder);
}

/* Files of other layouts (another dtype, another program) stay; whoever wonders about the room can
 * read here where it went. */
static void tell_of_others(int folder_fd, const struct request *request)
{
    const char *const slash = strrchr(request->path, '/');
    const char *const name = slash != NULL ? slash + 1 : request->path;
    const int fd = dup(folder_fd);
    DIR *const folder = fd >= 0 ? fdopendir(fd) : NULL;
    struct dirent *entry;
    struct stat info;
    uint64_t bytes = 0;
    char size[24];

    if (folder == NULL) {
        if (fd >= 0)
            (void)close(fd);
        return;
    }
    rewinddir(folder);
    while ((entry = readdir(folder)) != NULL) {
        const size_t length = strlen(entry->d_name);
        if (length > 6 && strcmp(entry->d_name + length - 6, ".units") == 0 &&
            strcmp(entry->d_name, name) != 0 && fstatat(folder_fd, entry->d_name, &info, 0) == 0)
            bytes += (uint64_t)info.st_size;
    }
    (void)closedir(folder);
    if (bytes != 0)
        log_line(request->log, LOG_INFO, "disk: other cache files of this model take %s in %.*s; "
                 "they may be deleted", size_format(bytes, size, sizeof(size)),
                 slash != NULL ? (int)(slash - request->path) : 1,
                 slash != NULL ? request->path : ".");
}

static enum status open_it(const struct request *request, struct cache_file **cache_out,
                           struct err *err)
{
    return cache_file_open(request->path, request->fingerprint, request->units,
                           request->unit_count, request->direct, cache_out, err);
}

static enum status make_it(const struct request *request, struct err *err)
{
    struct cache_writer *writer = NULL;
    enum status st = cache_writer_create(request->path, request->fingerprint, request->units,
                                         request->unit_count, &writer, err);

    for (size_t i = 0; i < request->unit_count && st == STATUS_OK; i++)
        st = request->producer->produce(request->producer->user, i, writer, err);
    if (st == STATUS_OK)
        st = cache_writer_finish(writer, err);
    cache_writer_destroy(writer);
    return st;
}

/* With the lock, or where there is none: looks again, then makes the file and opens it. */
static enum status make_and_open(const struct request *request, int folder_fd, bool locked,
                                 struct cache_file **cache_out, struct err *err)
{
    const uint64_t begin_ns = clock_now_ns();
    struct err why;
    enum status st = open_it(request, cache_out, &why);
    uint64_t bytes = 0;
    char size[24];

    if (st == STATUS_OK || st == STATUS_NO_MEMORY) {
        if (st != STATUS_OK)
            return err_set(err, st, "%s", why.message);
        return st;
    }
    if (locked)
        remove_temporaries(folder_fd, request->log);
    if (st == STATUS_UNAVAILABLE)
        log_line(request->log, LOG_INFO, "disk: making %s", request->path);
    else
        log_line(request->log, LOG_WARN, "disk: making it again: %s", why.message);
    st = make_it(request, err);
    if (st != STATUS_OK)
        return st;
    for (size_t i = 0; i < request->unit_count; i++)
        bytes += request->units[i].size_bytes;
    log_line(request->log, LOG_INFO, "disk: wrote %s in %.1f s",
             size_format(bytes, size, sizeof(size)), (double)(clock_now_ns() - begin_ns) / 1e9);
    tell_of_others(folder_fd, request);
    return open_it(request, cache_out, err);
}

/* Creates, opens and locks the folder. Whoever held the lock before may have failed and removed it:
 * then once more. */
static enum status take_folder(const struct request *request, int *fd_out, bool *locked_out,
                               struct err *err)
{
    for (int tries = 0; tries < FOLDER_TRIES_MAX; tries++) {
        struct stat info;
        enum status st = cache_folders_create(request->path, err);
        int fd;

        if (st != STATUS_OK)
            return st;
        fd = open_folder(request->path);
        if (fd < 0 && errno == ENOENT)
            continue;
        if (fd < 0)
            break;
        *locked_out = lock_folder(fd, request);
        if (fstat(fd, &info) == 0 && info.st_nlink != 0) {
            *fd_out = fd;
            return STATUS_OK;
        }
        (void)close(fd);
        errno = ENOENT;
    }
    return err_set(err, STATUS_IO, "%s: its folder: %s (another place: --offload-cache-dir)",
                   request->path, strerror(errno));
}

/* With the lock: nothing of a file that could not be made stays. */
static void remove_empty_folder(const char *path)
{
    const char *const slash = strrchr(path, '/');
    char *const folder = slash != NULL ? strndup(path, (size_t)(slash - path)) : NULL;

    if (folder != NULL)
        (void)rmdir(folder); /* refused when there is anything in it */
    free(folder);
}

enum status cache_file_obtain(const char *path, const struct cache_hash *fingerprint,
                              const struct cache_unit *units, size_t unit_count,
                              const struct cache_producer *producer, enum disk_use direct,
                              const struct log *log, struct cache_file **cache_out,
                              struct err *err)
{
    const struct request request = { path, fingerprint, units, unit_count, producer, direct, log };
    int folder_fd = -1;
    bool locked = false;
    enum status st = open_it(&request, cache_out, err);

    if (st == STATUS_OK || st == STATUS_NO_MEMORY)
        return st;
    st = take_folder(&request, &folder_fd, &locked, err);
    if (st != STATUS_OK)
        return st;
    st = make_and_open(&request, folder_fd, locked, cache_out, err);
    if (st != STATUS_OK && locked)
        remove_empty_folder(path);
    (void)close(folder_fd);
    return st;
}
