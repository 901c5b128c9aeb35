/* offload/finisher.c - a thread that finishes what has been loaded while the next is loaded.
 *
 *     loader's thread   load 1 - add - load 2 - add - load 3 - add -----------+- all is final
 *     finisher                       finish 1 - finish 2 -------- finish 3 ---+
 *
 * To change a layout takes a processor a tenth of the time that a disk takes for the bytes; one
 * after the other loading would be that much slower. Errors there are none: bytes are moved about
 * where they are. */
#include <assert.h>
#include <pthread.h>
#include <stdlib.h>

#include "offload/internal.h"

#define QUEUE_LENGTH 64

struct piece {
    const struct offload__param *param;
    uint8_t *bytes;
    uint64_t row_count;
};

struct offload__finisher {
    void *scratch;                  /* the thread's, while there are pieces */
    pthread_t thread;
    pthread_mutex_t lock;           /* guards what follows; no other is held with it */
    pthread_cond_t changed;         /* first, count or ending */
    struct piece pieces[QUEUE_LENGTH]; /* a ring */
    uint32_t first, count;          /* the first one stays there until it is finished */
    bool ending;
};

static void *thread_main(void *context)
{
    struct offload__finisher *finisher = context;

    (void)pthread_mutex_lock(&finisher->lock);
    for (;;) {
        struct piece piece;

        while (finisher->count == 0 && !finisher->ending)
            (void)pthread_cond_wait(&finisher->changed, &finisher->lock);
        if (finisher->count == 0)
            break;
        piece = finisher->pieces[finisher->first];
        (void)pthread_mutex_unlock(&finisher->lock);
        offload__finish_rows(piece.param, piece.bytes, piece.row_count, finisher->scratch);
        (void)pthread_mutex_lock(&finisher->lock);
        finisher->first = (finisher->first + 1) % QUEUE_LENGTH;
        finisher->count--;
        (void)pthread_cond_broadcast(&finisher->changed);
    }
    (void)pthread_mutex_unlock(&finisher->lock);
    return NULL;
}

enum status offload__finisher_create(void *scratch, struct offload__finisher **finisher_out,
                                     struct err *err)
{
    struct offload__finisher *finisher = calloc(1, sizeof(*finisher));

    if (finisher == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to change the layout of weights with");
    finisher->scratch = scratch;
    (void)pthread_mutex_init(&finisher->lock, NULL);
    (void)pthread_cond_init(&finisher->changed, NULL);
    if (pthread_create(&finisher->thread, NULL, thread_main, finisher) != 0) {
        (void)pthread_cond_destroy(&finisher->changed);
        (void)pthread_mutex_destroy(&finisher->lock);
        free(finisher);
        return err_set(err, STATUS_NO_MEMORY,
                       "cannot start a thread to change the layout of weights with");
    }
    *finisher_out = finisher;
    return STATUS_OK;
}

void offload__finisher_add(struct offload__finisher *finisher, const struct offload__param *param,
                           uint8_t *bytes, uint64_t row_count)
{
    (void)pthread_mutex_lock(&finisher->lock);
    while (finisher->count == QUEUE_LENGTH)
        (void)pthread_cond_wait(&finisher->changed, &finisher->lock);
    finisher->pieces[(finisher->first + finisher->count) % QUEUE_LENGTH] =
        (struct piece){ param, bytes, row_count };
    finisher->count++;
    (void)pthread_cond_broadcast(&finisher->changed);
    (void)pthread_mutex_unlock(&finisher->lock);
}

void offload__finisher_wait(struct offload__finisher *finisher)
{
    if (finisher == NULL)
        return;
    (void)pthread_mutex_lock(&finisher->lock);
    while (finisher->count > 0)
        (void)pthread_cond_wait(&finisher->changed, &finisher->lock);
    (void)pthread_mutex_unlock(&finisher->lock);
}

void offload__finisher_destroy(struct offload__finisher *finisher)
{
    if (finisher == NULL)
        return;
    (void)pthread_mutex_lock(&finisher->lock);
    finisher->ending = true;
    (void)pthread_cond_broadcast(&finisher->changed);
    (void)pthread_mutex_unlock(&finisher->lock);
    (void)pthread_join(finisher->thread, NULL);
    (void)pthread_cond_destroy(&finisher->changed);
    (void)pthread_mutex_destroy(&finisher->lock);
    free(finisher);
}
