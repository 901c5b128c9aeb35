/* offload/late.c - a table that stays on the device and is loaded last, while passes run.
 *
 * Of an embedding a pass reads a row for each of its tokens; of other weights it reads everything.
 * So a model is ready without it, and what its first token waits for are bytes that it needs:
 *
 *     pass      reads the rows of its tokens by themselves, packed     | the table, as it lies
 *     thread    waits -> loader_load into the table's place -> ended   |
 *
 * The two share no byte: a pass touches the table's place only after the thread has ended and has
 * been joined. The thread leaves the disk to the first pass. It begins PAUSE_NS after that, or when
 * nobody has asked for IDLE_NS.
 *
 * When loading fails, which is logged, rows go on being read by themselves: a pass fails only where
 * its own cannot be read. Files that have changed since the start fail every pass until then, since
 * rows of two versions would be mixed.
 *
 * Only on a device whose memory is the host's, and where the table lies in one file as it is used.
 * Tables that are tied to the output are read whole in every pass; they are no such tables. */
#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"
#include "base/size.h"
#include "offload/internal.h"

#define IDLE_NS UINT64_C(500000000)
#define PAUSE_NS UINT64_C(20000000)
#define NEVER UINT64_MAX

struct offload__late {
    const struct offload *offload;
    size_t param;
    const struct ckpt *ckpt;        /* borrowed */
    uint64_t stamp;                 /* ckpt_stamp, when all else was loaded from it */
    struct loader_extent extent;    /* of the whole table */
    uint64_t row_bytes, rows_bytes; /* of one; of as many as a pass can have */
    void *rows;
    pthread_t thread;
    bool is_running, has_passed;    /* the thread is not joined yet; a pass has ended. Owner: the
                                       engine's thread */
    pthread_mutex_t lock;           /* guards begin_ns; no other is held with it */
    pthread_cond_t changed;         /* begin_ns, or stopping */
    uint64_t begin_ns;              /* when the thread shall begin; NEVER: not yet */
    atomic_bool stopping;           /* orders nothing */
    atomic_bool ended;              /* released by the thread: what it has written can be read */
    bool failed;                    /* the thread's, until it has ended */
};

/* The table of this checkpoint that is to be late, and where it lies; or OFFLOAD_NO_PARAM. */
static size_t choose(const struct offload *offload, const struct ckpt *ckpt,
                     struct loader_extent *extent_out)
{
    const struct offload_options *options = &offload->options;

    for (size_t i = 0; offload->in_place && options->lookup_row_max > 0 && i < offload->param_count;
         i++) {
        const struct offload__param *param = &offload->params[i];

        if (param->by_lookup && i != offload->lookup_param && param->unit == OFFLOAD_NO_UNIT &&
            param->segment_count == 0 && param->size_bytes >= options->late_bytes_min &&
            offload__param_is_plain(param, ckpt) &&
            loader_extent(param->loader, ckpt, 0, extent_out) &&
            extent_out->size_bytes == param->size_bytes)
            return i;
    }
    return OFFLOAD_NO_PARAM;
}

static uint64_t rows_bytes(const struct offload *offload, size_t param)
{
    return offload->options.lookup_row_max * offload__row_bytes(&offload->params[param]);
}

uint64_t offload__late_bytes(const struct offload *offload)
{
    struct loader_extent extent;
    const size_t param = choose(offload, offload->options.ckpt, &extent);

    return param == OFFLOAD_NO_PARAM ? 0 : rows_bytes(offload, param);
}

bool offload__late_is(const struct offload *offload, size_t param)
{
    return offload->late != NULL && offload->late->param == param;
}

enum status offload__late_take(struct offload *offload, const struct ckpt *ckpt, struct err *err)
{
    struct loader_extent extent = { 0 };
    const size_t param = choose(offload, ckpt, &extent);
    struct offload__late *late;
    pthread_condattr_t monotonic;
    enum status st;

    if (param == OFFLOAD_NO_PARAM)
        return STATUS_OK;
    late = calloc(1, sizeof(*late));
    if (late == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a table that is loaded last");
    late->offload = offload;
    late->param = param;
    late->ckpt = ckpt;
    late->stamp = ckpt_stamp(ckpt);
    late->extent = extent;
    late->row_bytes = offload__row_bytes(&offload->params[param]);
    late->rows_bytes = rows_bytes(offload, param);
    (void)pthread_mutex_init(&late->lock, NULL);
    (void)pthread_condattr_init(&monotonic);
    (void)pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&late->changed, &monotonic);
    (void)pthread_condattr_destroy(&monotonic);
    offload->late = late;
    st = device_host_alloc(offload->device, late->rows_bytes, &late->rows, err);
    return st == STATUS_OK ? st : err_prefix(err, st, "rows of %s", offload->params[param].name);
}

static void late_free(struct offload *offload)
{
    struct offload__late *late = offload->late;

    assert(!late->is_running);
    device_host_free(offload->device, late->rows, late->rows_bytes);
    (void)pthread_cond_destroy(&late->changed);
    (void)pthread_mutex_destroy(&late->lock);
    free(late);
    offload->late = NULL;
}

enum status offload__late_check(const struct offload *offload, struct err *err)
{
    const struct offload__late *late = offload->late;

    if (late == NULL || ckpt_stamp(late->ckpt) == late->stamp)
        return STATUS_OK;
    return err_set(err, STATUS_IO, "%s: written to since it was opened", ckpt_path(late->ckpt));
}

/* -- the thread ------------------------------------------------------------------------------- */

static bool is_stopping(const struct offload__late *late)
{
    return atomic_load_explicit(&late->stopping, memory_order_relaxed);
}

static void turn_wait(struct offload__late *late)
{
    (void)pthread_mutex_lock(&late->lock);
    while (!is_stopping(late) && clock_now_ns() < late->begin_ns) {
        const struct timespec begin = { .tv_sec = (time_t)(late->begin_ns / 1000000000),
                                        .tv_nsec = (long)(late->begin_ns % 1000000000) };

        if (late->begin_ns == NEVER)
            (void)pthread_cond_wait(&late->changed, &late->lock);
        else
            (void)pthread_cond_timedwait(&late->changed, &late->lock, &begin);
    }
    (void)pthread_mutex_unlock(&late->lock);
}

static enum status fill(struct offload__late *late, struct err *err)
{
    const struct offload *offload = late->offload;
    const struct offload__param *param = &offload->params[late->param];
    const uint64_t staging_bytes = loader_staging_bytes(late->ckpt);
    struct loader_staging *staging = NULL;
    enum status st = device_host_charge(offload->device, staging_bytes, err);

    if (st != STATUS_OK)
        return st;
    st = loader_staging_create(late->ckpt, &staging, err);
    if (st == STATUS_OK) {
        loader_staging_heed(staging, &late->stopping);
        st = loader_load(param->loader, late->ckpt, offload->resident + param->offset_bytes,
                         staging, NULL, NULL, 0, err);
    }
    loader_staging_destroy(staging);
    device_host_discharge(offload->device, staging_bytes);
    if (st == STATUS_OK)
        st = offload__late_check(offload, err);
    if (offload->disk != NULL)
        ckpt_drop_cache(late->ckpt); /* as after all else was loaded */
    return st;
}

static void *thread_main(void *context)
{
    struct offload__late *late = context;
    struct err err;

    turn_wait(late);
    late->failed = is_stopping(late) || fill(late, &err) != STATUS_OK;
    if (late->failed && !is_stopping(late))
        log_line(late->offload->log, LOG_ERROR,
                 "%s: %s; its rows will be read each time that they are needed",
                 late->offload->params[late->param].name, err.message);
    atomic_store_explicit(&late->ended, true, memory_order_release);
    return NULL;
}

enum status offload__late_start(struct offload *offload, struct err *err)
{
    struct offload__late *late = offload->late;
    const struct offload__param *param;
    char size[24];

    if (late == NULL)
        return STATUS_OK;
    param = &offload->params[late->param];
    late->begin_ns = offload->options.fault_late_waits ? NEVER : clock_now_ns() + IDLE_NS;
    if (pthread_create(&late->thread, NULL, thread_main, late) != 0)
        return err_set(err, STATUS_NO_MEMORY, "cannot start a thread to load %s with", param->name);
    late->is_running = true;
    log_line(offload->log, LOG_INFO,
             "%s, %s, is loaded from now on; until it is there, steps read the rows that they need",
             param->name, size_format(param->size_bytes, size, sizeof(size)));
    return STATUS_OK;
}

/* -- the engine's side ------------------------------------------------------------------------ */

static void begin_at(struct offload__late *late, uint64_t begin_ns)
{
    (void)pthread_mutex_lock(&late->lock);
    late->begin_ns = begin_ns;
    (void)pthread_cond_signal(&late->changed);
    (void)pthread_mutex_unlock(&late->lock);
}

static void join(struct offload__late *late)
{
    if (late->is_running)
        (void)pthread_join(late->thread, NULL);
    late->is_running = false;
}

void offload__late_filled(struct offload *offload)
{
    if (offload->late == NULL)
        return;
    offload->params[offload->late->param].tensor.data =
        offload->resident + offload->params[offload->late->param].offset_bytes;
    late_free(offload);
}

bool offload__late_is_open(struct offload *offload, size_t param)
{
    struct offload__late *late = offload->late;

    if (!offload__late_is(offload, param))
        return false;
    if (!atomic_load_explicit(&late->ended, memory_order_acquire) || late->failed)
        return true;
    join(late);
    offload__late_filled(offload);
    return false;
}

enum status offload__late_lookup(struct offload *offload, const int32_t *ids, uint32_t count,
                                 const void **rows_out, struct err *err)
{
    struct offload__late *late = offload->late;
    const struct loader_extent *table = &late->extent;
    enum status st = offload__late_check(offload, err);

    if (!late->has_passed)
        begin_at(late, NEVER); /* unless it has begun */
    for (uint32_t i = 0; i < count && count > 1 && st == STATUS_OK; i++)
        ckpt_read_file_ahead(late->ckpt, table->file_index,
                             table->file_offset_bytes + (uint64_t)ids[i] * late->row_bytes,
                             late->row_bytes);
    for (uint32_t i = 0; i < count && st == STATUS_OK; i++)
        st = ckpt_read_file(late->ckpt, table->file_index,
                            table->file_offset_bytes + (uint64_t)ids[i] * late->row_bytes,
                            (uint8_t *)late->rows + i * late->row_bytes, late->row_bytes, err);
    *rows_out = late->rows;
    return st == STATUS_OK ? st
                           : err_prefix(err, st, "%s", offload->params[late->param].name);
}

void offload__late_pass_ended(struct offload *offload)
{
    struct offload__late *late = offload->late;

    if (late == NULL || late->has_passed || offload->options.fault_late_waits)
        return;
    late->has_passed = true;
    begin_at(late, clock_now_ns() + PAUSE_NS);
}

void offload__late_settle(struct offload *offload)
{
    struct offload__late *late = offload->late;

    if (late == NULL)
        return;
    begin_at(late, 0);
    join(late);
    if (!late->failed)
        offload__late_filled(offload);
}

void offload__late_stop(struct offload *offload)
{
    struct offload__late *late = offload->late;

    if (late == NULL)
        return;
    atomic_store_explicit(&late->stopping, true, memory_order_relaxed);
    begin_at(late, 0);
    join(late);
    late_free(offload);
}
