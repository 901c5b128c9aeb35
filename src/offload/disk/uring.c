/* offload/disk/uring.c - the engine that has the kernel carry pieces out: io_uring (liburing).
 *
 * Only the reader's thread touches the ring. To wake it, others write to an event counter that the
 * ring polls. A piece that shall stall (a test's fault) is linked behind a timeout, so that the
 * stall is the read's and not the thread's. */
#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "offload/disk/internal.h"

struct disk__engine {
    struct io_uring ring;
    int event_fd;
    bool polling; /* the event counter's poll is in the ring */
};

static_assert(sizeof(struct __kernel_timespec) == sizeof(((struct disk__piece *)0)->stall_spec),
              "a piece has room for its timeout");

/* Some sandboxes let a ring be made and forbid to use it; some kernels know no IORING_OP_READ. */
static int try_ring(struct io_uring *ring)
{
    struct io_uring_probe *const probe = io_uring_get_probe_ring(ring);
    struct io_uring_cqe *cqe = NULL;
    const bool has_read = probe != NULL && io_uring_opcode_supported(probe, IORING_OP_READ);
    int rc;

    io_uring_free_probe(probe);
    if (!has_read)
        return -ENOSYS;
    io_uring_prep_nop(io_uring_get_sqe(ring));
    rc = io_uring_submit(ring);
    if (rc < 0)
        return rc;
    rc = io_uring_wait_cqe(ring, &cqe);
    if (rc < 0)
        return rc;
    io_uring_cqe_seen(ring, cqe);
    return 0;
}

static void uring_destroy(struct disk__engine *engine)
{
    if (engine == NULL)
        return;
    io_uring_queue_exit(&engine->ring);
    (void)close(engine->event_fd);
    free(engine);
}

static enum status uring_create(uint32_t *depth, struct disk__engine **engine_out, struct err *err)
{
    struct disk__engine *const engine = calloc(1, sizeof(*engine));
    int rc;

    if (engine == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for an io_uring");
    engine->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (engine->event_fd < 0) {
        rc = -errno;
        free(engine);
        return err_set(err, STATUS_UNAVAILABLE, "no event counter for an io_uring: %s",
                       strerror(-rc));
    }
    /* Each piece may need two entries, the poll one. */
    rc = io_uring_queue_init(*depth * 2 + 1, &engine->ring, 0);
    if (rc == 0) {
        rc = try_ring(&engine->ring);
        if (rc != 0)
            io_uring_queue_exit(&engine->ring);
    }
    if (rc != 0) {
        (void)close(engine->event_fd);
        free(engine);
        return err_set(err, STATUS_UNAVAILABLE, "this system has no io_uring to use: %s",
                       strerror(-rc));
    }
    *engine_out = engine;
    return STATUS_OK;
}

static void uring_begin(struct disk__engine *engine, struct disk__piece *piece)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&engine->ring);

    assert(sqe != NULL);
    if (piece->stall_ns != 0) {
        const struct __kernel_timespec stall = {
            .tv_sec = (int64_t)(piece->stall_ns / 1000000000),
            .tv_nsec = (int64_t)(piece->stall_ns % 1000000000),
        };
        memcpy(piece->stall_spec, &stall, sizeof(stall));
        io_uring_prep_timeout(sqe, (struct __kernel_timespec *)(void *)piece->stall_spec, 0, 0);
        io_uring_sqe_set_data(sqe, NULL);
        sqe->flags |= IOSQE_IO_HARDLINK; /* the read starts although a timeout "fails" */
        sqe = io_uring_get_sqe(&engine->ring);
        assert(sqe != NULL);
    }
    io_uring_prep_read(sqe, piece->file->fd, piece->dst, (unsigned)piece->attempt_bytes,
                       piece->offset_bytes);
    io_uring_sqe_set_data(sqe, piece);
}

/* Submits what was begun and waits for anything to end. The kernel may be short of something for a
 * moment; nothing is lost, the entries stay in the queue. */
static void submit_and_wait(struct disk__engine *engine)
{
    static const struct timespec moment = { .tv_nsec = 1000000 };
    int rc;

    for (;;) {
        rc = io_uring_submit_and_wait(&engine->ring, 1);
        if (rc >= 0)
            return;
        assert(rc == -EINTR || rc == -EAGAIN || rc == -EBUSY || rc == -ENOMEM);
        if (rc == -EBUSY && io_uring_cq_ready(&engine->ring) != 0)
            return; /* make room first */
        if (rc != -EINTR)
            (void)nanosleep(&moment, NULL);
    }
}

static uint32_t uring_wait(struct disk__engine *engine, struct disk__piece **pieces_out,
                           uint32_t piece_count_max)
{
    uint32_t count = 0;
    struct io_uring_cqe *cqe = NULL;

    if (!engine->polling) {
        struct io_uring_sqe *const sqe = io_uring_get_sqe(&engine->ring);
        assert(sqe != NULL);
        io_uring_prep_poll_add(sqe, engine->event_fd, POLLIN);
        io_uring_sqe_set_data(sqe, engine);
        engine->polling = true;
    }
    submit_and_wait(engine);
    while (count < piece_count_max && io_uring_peek_cqe(&engine->ring, &cqe) == 0) {
        void *const data = io_uring_cqe_get_data(cqe);
        if (data == engine) {
            uint64_t ignored;
            (void)!read(engine->event_fd, &ignored, sizeof(ignored));
            engine->polling = false;
        } else if (data != NULL) {
            struct disk__piece *const piece = data;
            piece->result = cqe->res;
            pieces_out[count++] = piece;
        }
        io_uring_cqe_seen(&engine->ring, cqe);
    }
    return count;
}

static void uring_wake(struct disk__engine *engine)
{
    const uint64_t one = 1;

    (void)!write(engine->event_fd, &one, sizeof(one)); /* full means that it is awake already */
}

const struct disk__engine_ops disk__uring = {
    .name = "io_uring",
    .create = uring_create,
    .destroy = uring_destroy,
    .begin = uring_begin,
    .wait = uring_wait,
    .wake = uring_wake,
};
