/* fleet/link.h - one socket between the front end and a rank: frames in, frames out, no blocking.
 *
 * Whoever has something to send appends it, and what the socket takes at once goes out at once;
 * the rest is for the thread that polls the socket, which is the only one that reads. A peer that
 * doesn't take its frames has a broken link once FLEET__OUT_BYTES_MAX wait for it.
 *
 * Threads: send from any; the others from the polling thread. */
#ifndef LIGHTER_FLEET_LINK_H
#define LIGHTER_FLEET_LINK_H

#include <pthread.h>
#include <stdatomic.h>

#include "fleet/message.h"

#define FLEET__OUT_BYTES_MAX (256 * MIB)

struct fleet__link {
    int fd;                  /* -1: none; set once */
    size_t frame_bytes_max;  /* of a frame that is read; the polling thread's, as is `in` */
    struct buf in;
    size_t in_used;          /* bytes of `in` that have been handed out */
    pthread_mutex_t lock;    /* guards what follows; no other lock is taken under it */
    struct buf out;
    size_t out_sent;
    bool is_broken;
};

/* Takes the fd, makes it non-blocking. */
void fleet__link_init(struct fleet__link *link, int fd, size_t frame_bytes_max);
void fleet__link_deinit(struct fleet__link *link);

/* Sends a message; takes json. STATUS_PEER: the link is broken, nothing will arrive. */
enum status fleet__link_send(struct fleet__link *link, json_t *json, struct err *err);
/* Sends a frame that has been written already. */
enum status fleet__link_send_frame(struct fleet__link *link, const struct buf *frame,
                                   struct err *err);
/* True while the polling thread should wait for POLLOUT and then call flush. */
bool fleet__link_wants_out(struct fleet__link *link);
enum status fleet__link_flush(struct fleet__link *link, struct err *err);

/* Reads what is there, some of it at least. STATUS_PEER when the other side has hung up. */
enum status fleet__link_fill(struct fleet__link *link, struct err *err);
/* The next message that is there; *json_out is NULL when there is none, else the caller's. */
enum status fleet__link_next(struct fleet__link *link, enum fleet__op *op_out, json_t **json_out,
                             struct err *err);

#endif
