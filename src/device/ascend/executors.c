/* device/ascend/executors.c - calls that were made before: see op_call.h.
 *
 * The first phase of a call takes the host tens of microseconds, the second hands kernels over. An
 * executor that aclSetAclOpExecutorRepeatable accepts goes through the second phase as often as one
 * likes, and aclSetTensorAddr gives its tensors other addresses between. So what the first phase
 * depends on is the key, and addresses are not part of it: slots, layers and steps change those
 * alone. CANN refuses executors that copy from elsewhere, or onto themselves (opbase, docs,
 * aclSetAclOpExecutorRepeatable); that is noted, so that it is asked once.
 *
 * The table has sets of EXECUTORS_WAYS entries, a key's by its hash; the one that was used longest
 * ago makes room. Scores of attention have a shape for each length of a sequence, so those come and
 * go, and what does not depend on lengths stays. */
#include "device/ascend/op_call.h"

#include <stdlib.h>
#include <string.h>

#include "base/size.h"

#define EXECUTORS_WAYS 4

struct ascend_executors {
    uint64_t set_count;
    uint64_t clock;               /* counts what is found and kept */
    struct ascend_made items[];   /* [set_count][EXECUTORS_WAYS] */
};

enum status ascend__executors_create(uint64_t count, struct ascend_executors **executors_out,
                                     struct err *err)
{
    const uint64_t set_count = (count + EXECUTORS_WAYS - 1) / EXECUTORS_WAYS;
    struct ascend_executors *executors =
        calloc(1, sizeof(*executors) +
                      set_count * EXECUTORS_WAYS * sizeof(struct ascend_made));

    if (executors == NULL)
        return err_set(err, STATUS_NO_MEMORY, "ascend: no memory to keep %llu executors",
                       (unsigned long long)count);
    executors->set_count = set_count;
    *executors_out = executors;
    return STATUS_OK;
}

void ascend__made_free(const struct ascend_cann *cann, struct ascend_made *made)
{
    if (made->executor != NULL)
        (void)cann->aclDestroyAclOpExecutor(made->executor);
    for (uint32_t i = 0; i < ASCEND_CALL_TENSORS_MAX; i++)
        if (made->tensors[i] != NULL)
            (void)cann->aclDestroyTensor(made->tensors[i]);
    if (made->scalar != NULL)
        (void)cann->aclDestroyScalar(made->scalar);
    memset(made, 0, sizeof(*made));
}

void ascend__executors_destroy(const struct ascend_cann *cann, struct ascend_executors *executors)
{
    if (executors == NULL)
        return;
    for (uint64_t i = 0; i < executors->set_count * EXECUTORS_WAYS; i++)
        ascend__made_free(cann, &executors->items[i]);
    free(executors);
}

/* ---- keys ---- */

/* A bit for each two views that have one address: an operator may do without a copy then. */
static uint32_t aliases(const struct ascend_made *made)
{
    uint32_t bits = 0;

    for (uint32_t i = 0; i < made->view_count; i++)
        for (uint32_t j = 0; j < i; j++)
            bits = bits << 1 | (made->views[i].data == made->views[j].data);
    return bits;
}

static bool views_agree(const struct ascend_view *a, const struct ascend_view *b)
{
    if (a->dtype != b->dtype || a->rank != b->rank || a->is_nz != b->is_nz)
        return false;
    for (uint32_t i = 0; i < a->rank; i++)
        if (a->dims[i] != b->dims[i] || a->strides[i] != b->strides[i])
            return false;
    return true;
}

static uint64_t bits_of(double number)
{
    uint64_t bits;

    memcpy(&bits, &number, sizeof(bits));
    return bits;
}

static bool agree(const struct ascend_made *a, const struct ascend_made *b)
{
    if (a->name == NULL || strcmp(a->name, b->name) != 0 || a->view_count != b->view_count ||
        bits_of(a->number) != bits_of(b->number) || aliases(a) != aliases(b))
        return false;
    for (uint32_t i = 0; i < a->view_count; i++)
        if (!views_agree(&a->views[i], &b->views[i]))
            return false;
    return true;
}

static uint64_t mix(uint64_t hash, uint64_t value)
{
    return (hash ^ value) * UINT64_C(0x9e3779b97f4a7c15) ^ hash >> 29;
}

static uint64_t hash_of(const struct ascend_made *made)
{
    uint64_t hash = mix(made->view_count, bits_of(made->number));

    for (const char *c = made->name; *c != '\0'; c++)
        hash = mix(hash, (unsigned char)*c);
    for (uint32_t i = 0; i < made->view_count; i++) {
        const struct ascend_view *view = &made->views[i];

        for (uint32_t d = 0; d < view->rank; d++)
            hash = mix(mix(hash, (uint64_t)view->dims[d]), (uint64_t)view->strides[d]);
    }
    return hash ^ hash >> 32;
}

static struct ascend_made *set_of(struct ascend_executors *executors,
                                  const struct ascend_made *made)
{
    return &executors->items[hash_of(made) % executors->set_count * EXECUTORS_WAYS];
}

struct ascend_made *ascend__executors_find(struct ascend_executors *executors,
                                           const struct ascend_made *wanted)
{
    struct ascend_made *set;

    if (executors->set_count == 0)
        return NULL;
    set = set_of(executors, wanted);
    for (int i = 0; i < EXECUTORS_WAYS; i++) {
        if (!agree(&set[i], wanted))
            continue;
        set[i].used = ++executors->clock;
        return &set[i];
    }
    return NULL;
}

/* ---- keeping ---- */

bool ascend__executors_aim(const struct ascend_cann *cann, struct ascend_made *made,
                           const struct ascend_made *wanted)
{
    for (uint32_t i = 0; i < made->view_count; i++) {
        if (made->views[i].data == wanted->views[i].data)
            continue;
        if (cann->aclSetTensorAddr(made->executor, i, made->tensors[i], wanted->views[i].data) !=
            ACL_SUCCESS)
            return false;
        made->views[i].data = wanted->views[i].data;
    }
    return true;
}

bool ascend__executors_keep(const struct ascend_cann *cann, struct ascend_executors *executors,
                            struct ascend_made *made)
{
    struct ascend_made *set, *oldest, noted;
    bool is_repeatable;

    if (executors->set_count == 0 || cann->aclSetAclOpExecutorRepeatable == NULL ||
        cann->aclSetTensorAddr == NULL)
        return false;
    is_repeatable = cann->aclSetAclOpExecutorRepeatable(made->executor) == ACL_SUCCESS;
    set = oldest = set_of(executors, made);
    for (int i = 1; i < EXECUTORS_WAYS; i++)
        if (set[i].used < oldest->used)
            oldest = &set[i];
    ascend__made_free(cann, oldest);
    noted = *made;
    if (!is_repeatable) {
        memset(noted.tensors, 0, sizeof(noted.tensors));
        noted.executor = NULL;
        noted.scalar = NULL;
    }
    *oldest = noted;
    oldest->used = ++executors->clock;
    return is_repeatable;
}
