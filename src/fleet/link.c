/* fleet/link.c - see link.h. */
#include "fleet/link.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define READ_BYTES 65536

void fleet__link_init(struct fleet__link *link, int fd, size_t frame_bytes_max)
{
    *link = (struct fleet__link){ .fd = fd, .frame_bytes_max = frame_bytes_max };
    buf_init(&link->in, FLEET__FRAME_BYTES_MAX + READ_BYTES + 4);
    buf_init(&link->out, FLEET__OUT_BYTES_MAX);
    pthread_mutex_init(&link->lock, NULL);
    (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

void fleet__link_deinit(struct fleet__link *link)
{
    if (link->fd >= 0)
        (void)close(link->fd);
    link->fd = -1;
    buf_deinit(&link->in);
    buf_deinit(&link->out);
    pthread_mutex_destroy(&link->lock);
}

/* -- out --------------------------------------------------------------------------------------- */

/* With the lock held. */
static enum status flush(struct fleet__link *link, struct err *err)
{
    while (link->out_sent < link->out.size && !link->is_broken) {
        const ssize_t sent = send(link->fd, link->out.data + link->out_sent,
                                  link->out.size - link->out_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0)
            link->out_sent += (size_t)sent;
        else if (errno == EAGAIN || errno == EWOULDBLOCK)
            return STATUS_OK;
        else if (errno != EINTR)
            link->is_broken = true;
    }
    if (link->is_broken)
        return err_set(err, STATUS_PEER, "the other process has closed its socket");
    buf_clear(&link->out);
    link->out_sent = 0;
    return STATUS_OK;
}

/* With the lock held: drops what has been sent, once that is most of it. */
static void compact(struct fleet__link *link)
{
    if (link->out_sent < READ_BYTES || link->out_sent < link->out.size / 2)
        return;
    memmove(link->out.data, link->out.data + link->out_sent, link->out.size - link->out_sent);
    link->out.size -= link->out_sent;
    link->out_sent = 0;
}

enum status fleet__link_send(struct fleet__link *link, json_t *json, struct err *err)
{
    enum status st;

    pthread_mutex_lock(&link->lock);
    compact(link);
    st = fleet__frame_write(json, &link->out, err);
    if (st == STATUS_OK)
        st = flush(link, err);
    else
        link->is_broken = true; /* something is missing now */
    pthread_mutex_unlock(&link->lock);
    return st;
}

enum status fleet__link_send_frame(struct fleet__link *link, const struct buf *frame,
                                   struct err *err)
{
    enum status st;

    pthread_mutex_lock(&link->lock);
    compact(link);
    st = buf_append(&link->out, frame->data, frame->size, err);
    if (st == STATUS_OK)
        st = flush(link, err);
    else
        link->is_broken = true;
    pthread_mutex_unlock(&link->lock);
    return st;
}

bool fleet__link_wants_out(struct fleet__link *link)
{
    bool wants;

    pthread_mutex_lock(&link->lock);
    wants = link->is_broken || link->out_sent < link->out.size;
    pthread_mutex_unlock(&link->lock);
    return wants;
}

enum status fleet__link_flush(struct fleet__link *link, struct err *err)
{
    enum status st;

    pthread_mutex_lock(&link->lock);
    st = flush(link, err);
    pthread_mutex_unlock(&link->lock);
    return st;
}

/* -- in ---------------------------------------------------------------------------------------- */

enum status fleet__link_fill(struct fleet__link *link, struct err *err)
{
    struct buf *in = &link->in;
    enum status st;
    ssize_t got;

    if (link->in_used > 0) {
        memmove(in->data, in->data + link->in_used, in->size - link->in_used);
        in->size -= link->in_used;
        link->in_used = 0;
    }
    st = buf_reserve(in, in->size + READ_BYTES, err);
    if (st != STATUS_OK)
        return st;
    do {
        got = recv(link->fd, in->data + in->size, READ_BYTES, MSG_DONTWAIT);
    } while (got < 0 && errno == EINTR);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return STATUS_OK;
    if (got < 0)
        return err_set(err, STATUS_PEER, "the connection failed: %s", strerror(errno));
    if (got == 0)
        return err_set(err, STATUS_PEER, "the connection was closed");
    in->size += (size_t)got;
    in->data[in->size] = '\0';
    return STATUS_OK;
}

enum status fleet__link_next(struct fleet__link *link, enum fleet__op *op_out, json_t **json_out,
                             struct err *err)
{
    const size_t size = link->in.size - link->in_used;
    const char *data;
    size_t used = 0;
    bool whole = false;
    enum status st;

    *json_out = NULL;
    if (size == 0)
        return STATUS_OK;
    data = link->in.data + link->in_used;
    st = fleet__frame_find(data, size, link->frame_bytes_max, &whole, &used, err);
    if (st != STATUS_OK || !whole)
        return st;
    st = fleet__frame_read(data, used, op_out, json_out, err);
    link->in_used += used;
    return st;
}
