/* offload/home/share.c - see share.h. */
#include "offload/home/share.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cluster/cluster.h"
#include "offload/internal.h"

#define MESSAGE_BYTES 256
#define FNV_OFFSET UINT64_C(0xcbf29ce484222325) /* Fowler, Noll and Vo's hash, 64 bits, 1a */
#define FNV_PRIME UINT64_C(0x100000001b3)

struct plan {
    uint64_t hash;               /* of all that ranks must agree on */
    uint64_t unit_count, moving_bytes;
    uint32_t is_shared;          /* some unit has a shared home */
    char device[sizeof(((struct device_handle *)0)->device)];
};

struct words {                   /* of one rank, at one meeting */
    uint32_t step, status;
    char message[MESSAGE_BYTES]; /* when status is a failure */
    union {
        struct plan plan;
        struct offload__share_offer offer;
    };
};

static_assert(sizeof(struct words) <= CLUSTER_BLOB_BYTES_MAX, "words fit into one message");

uint32_t offload__share_rank(const struct offload *offload)
{
    const struct cluster *cluster = offload->options.cluster;

    return cluster == NULL ? 0 : cluster_place(cluster)->node_rank;
}

uint32_t offload__share_count(const struct offload *offload)
{
    const struct cluster *cluster = offload->options.cluster;

    return cluster == NULL ? 1 : cluster_place(cluster)->node_size;
}

bool offload__has_shared_home(const struct offload *offload)
{
    for (size_t i = 0; i < offload->unit_count; i++) {
        if (offload__home(offload->units[i].home)->is_shared)
            return true;
    }
    return false;
}

bool offload__is_shared(const struct offload *offload)
{
    return offload__share_count(offload) > 1 && offload__has_shared_home(offload);
}

/* Gives each rank all ranks' words, and finds who has failed. */
static enum status meet(struct offload *offload, struct words *own, enum status st,
                        struct words *all_out, bool *told_out, struct err *err)
{
    const uint32_t count = offload__share_count(offload), rank = offload__share_rank(offload);
    struct err problem;
    enum status met;

    *told_out = false;
    own->status = (uint32_t)st;
    if (st != STATUS_OK && err != NULL) {
        memcpy(own->message, err->message, MESSAGE_BYTES - 1);
        own->message[MESSAGE_BYTES - 1] = '\0';
    }
    met = cluster_allgather(offload->options.cluster, CLUSTER_NODE, own, sizeof(*own), all_out,
                            CLUSTER_WAIT_LOAD_S, &problem);
    if (met != STATUS_OK && st == STATUS_OK)
        return err_set(err, met, "weights that the ranks of this node share: %s", problem.message);
    if (met != STATUS_OK)
        return st;
    *told_out = true;
    for (uint32_t i = 0; i < count && st == STATUS_OK; i++) {
        all_out[i].message[MESSAGE_BYTES - 1] = '\0';
        if (all_out[i].step != own->step)
            st = err_set(err, STATUS_PEER,
                         "weights that the ranks of this node share: rank %" PRIu32 " of them is "
                         "at step %" PRIu32 ", rank %" PRIu32 " at step %" PRIu32, i,
                         all_out[i].step, rank, own->step);
        else if (all_out[i].status != STATUS_OK)
            st = err_set(err, STATUS_PEER, "rank %" PRIu32 " of this node has failed: %s", i,
                         all_out[i].message);
    }
    return st;
}

/* Memory for the words of all ranks; STATUS_NO_MEMORY can't be told to the others, who will see
 * this process end. */
static struct words *words_create(const struct offload *offload, struct err *err)
{
    struct words *all = calloc(offload__share_count(offload), sizeof(*all));

    if (all == NULL)
        (void)err_set(err, STATUS_NO_MEMORY, "no memory for what %" PRIu32 " ranks say",
                      offload__share_count(offload));
    return all;
}

enum status offload__share_meet(struct offload *offload, enum offload__share_step step,
                                enum status own, bool *told_out, struct err *err)
{
    struct words words = { .step = step };
    struct words *all;
    bool told = true;

    if (offload__is_shared(offload)) {
        all = words_create(offload, err);
        if (all == NULL)
            return STATUS_NO_MEMORY;
        own = meet(offload, &words, own, all, &told, err);
        free(all);
    }
    if (told_out != NULL)
        *told_out = told;
    return own;
}

static uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ ((const uint8_t *)bytes)[i]) * FNV_PRIME;
    return hash;
}

uint64_t offload__share_hash(const struct offload *offload)
{
    uint64_t hash = FNV_OFFSET;

    for (size_t i = 0; i < offload->unit_count; i++) {
        const struct offload__unit *unit = &offload->units[i];

        hash = hash_bytes(hash, unit->name, strlen(unit->name) + 1);
        hash = hash_bytes(hash, &unit->home, sizeof(unit->home));
        hash = hash_bytes(hash, &unit->size_bytes, sizeof(unit->size_bytes));
        if (unit->is_tile) {
            const struct offload__segment *segment = &offload->segments[unit->segment_first];

            hash = hash_bytes(hash, &segment->row_first, sizeof(segment->row_first));
            hash = hash_bytes(hash, &segment->row_count, sizeof(segment->row_count));
        }
        for (size_t k = 0; k < unit->param_count; k++) {
            const struct offload__param *param = &offload->params[unit->params[k]];

            hash = hash_bytes(hash, param->name, strlen(param->name) + 1);
            hash = hash_bytes(hash, &param->tensor.dtype, sizeof(param->tensor.dtype));
            hash = hash_bytes(hash, &param->size_bytes, sizeof(param->size_bytes));
            hash = hash_bytes(hash, &param->offset_bytes, sizeof(param->offset_bytes));
        }
    }
    return hash;
}

static enum status plans_compare(const struct offload *offload, const struct words *all,
                                 struct err *err)
{
    const uint32_t count = offload__share_count(offload);
    const struct plan *first = &all[0].plan;
    bool is_shared = false;

    for (uint32_t i = 0; i < count; i++)
        is_shared = is_shared || all[i].plan.is_shared;
    for (uint32_t i = 1; i < count && is_shared; i++) {
        const struct plan *plan = &all[i].plan;

        if (plan->hash == first->hash &&
            strncmp(plan->device, first->device, sizeof(plan->device)) == 0)
            continue;
        return err_set(err, STATUS_PEER,
                       "ranks that share weights need the same model, offload options and kind of "
                       "device: rank %" PRIu32 " of this node moves %" PRIu64 " units of %" PRIu64
                       " bytes in all on '%.*s', rank 0 moves %" PRIu64 " of %" PRIu64
                       " on '%.*s'%s",
                       i, plan->unit_count, plan->moving_bytes, (int)sizeof(plan->device) - 1,
                       plan->device, first->unit_count, first->moving_bytes,
                       (int)sizeof(first->device) - 1, first->device,
                       plan->unit_count == first->unit_count &&
                               plan->moving_bytes == first->moving_bytes
                           ? " (not the same ones, or not to the same home)"
                           : "");
    }
    return STATUS_OK;
}

enum status offload__share_plan(struct offload *offload, enum status own, struct err *err)
{
    struct words words = { .step = OFFLOAD_SHARE_PLANNED };
    struct words *all;
    bool told;

    if (offload__share_count(offload) == 1)
        return own;
    all = words_create(offload, err);
    if (all == NULL)
        return STATUS_NO_MEMORY;
    words.plan = (struct plan){
        .hash = offload__share_hash(offload),
        .unit_count = offload->unit_count,
        .moving_bytes = offload->sizes.moving_bytes,
        .is_shared = offload__has_shared_home(offload),
    };
    memcpy(words.plan.device, device_info(offload->device)->kind, sizeof(words.plan.device));
    own = meet(offload, &words, own, all, &told, err);
    if (own == STATUS_OK)
        own = plans_compare(offload, all, err);
    free(all);
    return own;
}

static enum status connect_homes(struct offload *offload, const struct words *all, struct err *err)
{
    const uint32_t count = offload__share_count(offload);
    struct offload__share_offer *offers = calloc(count, sizeof(*offers));
    enum status st = STATUS_OK;

    if (offers == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the offers of %" PRIu32 " ranks",
                       count);
    for (uint32_t i = 0; i < count; i++)
        offers[i] = all[i].offer;
    for (unsigned home = 0; st == STATUS_OK && home < OFFLOAD_HOME_COUNT; home++) {
        if (offload__home((enum offload_home)home)->connect != NULL)
            st = offload__home((enum offload_home)home)->connect(offload, offers, err);
    }
    free(offers);
    return st;
}

enum status offload__share_connect(struct offload *offload, enum status own, struct err *err)
{
    struct words words = { .step = OFFLOAD_SHARE_OPENED };
    struct words *all;
    bool told;

    if (!offload__is_shared(offload))
        return own;
    all = words_create(offload, err);
    if (all == NULL)
        return STATUS_NO_MEMORY;
    for (unsigned home = 0; own == STATUS_OK && home < OFFLOAD_HOME_COUNT; home++) {
        if (offload__home((enum offload_home)home)->offer != NULL)
            offload__home((enum offload_home)home)->offer(offload, &words.offer);
    }
    own = meet(offload, &words, own, all, &told, err);
    if (own == STATUS_OK)
        own = offload__share_meet(offload, OFFLOAD_SHARE_CONNECTED,
                                  connect_homes(offload, all, err), NULL, err);
    free(all);
    return own;
}
