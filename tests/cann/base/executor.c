/* tests/cann/base/executor.c - executors: used once, unless they are made repeatable (3.1).
 *
 * A consumed executor is kept for a while as a husk, so that a second use is told instead of
 * reading freed memory. Kernels write garbage over their workspace, all of it, before they
 * compute. */
#include "nn.h"

#include <stdlib.h>
#include <string.h>

#define HUSKS 1024
#define GARBAGE 0x5C

struct launch {
    struct task task;
    struct aclOpExecutor *e;
    void *workspace;
};

static struct aclOpExecutor *husks[HUSKS]; /* guarded by lock */
static unsigned husk_next;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

struct aclOpExecutor *executor_new(const char *name)
{
    struct aclOpExecutor *e = calloc(1, sizeof(*e));

    if (e == NULL)
        return NULL;
    e->magic = EXECUTOR_MAGIC;
    e->name = name;
    standin_count("live_executors", 1);
    return e;
}

bool executor_add(struct aclOpExecutor *e, const struct aclTensor *t, enum role role)
{
    if (e->tensor_count == e->tensor_room) {
        const unsigned room = e->tensor_room * 2 + 16;
        struct aclTensor *tensors = realloc(e->tensors, room * sizeof(*tensors));
        uint8_t *roles = realloc(e->roles, room);
        if (tensors != NULL)
            e->tensors = tensors;
        if (roles != NULL)
            e->roles = roles;
        if (tensors == NULL || roles == NULL)
            return false;
        e->tensor_room = room;
    }
    e->roles[e->tensor_count] = (uint8_t)role;
    e->tensors[e->tensor_count] = *t;
    e->tensors[e->tensor_count].handle = t;
    e->tensors[e->tensor_count++].bytes = NULL;
    return true;
}

void executor_discard(struct aclOpExecutor *e)
{
    executor_free(e);
    standin_uncount("live_executors", 1);
}

void executor_free(struct aclOpExecutor *e)
{
    if (e == NULL)
        return;
    e->magic = 0;
    free(e->tensors);
    free(e->roles);
    free(e->array);
    free(e);
}

static void retire(struct aclOpExecutor *e)
{
    struct aclOpExecutor *old;

    free(e->tensors);
    free(e->roles);
    free(e->array);
    e->tensors = NULL;
    e->roles = NULL;
    e->array = NULL;
    e->is_consumed = true;
    pthread_mutex_lock(&lock);
    old = husks[husk_next];
    husks[husk_next] = e;
    husk_next = (husk_next + 1) % HUSKS;
    pthread_mutex_unlock(&lock);
    executor_free(old);
    standin_uncount("live_executors", 1);
}

__attribute__((destructor)) static void husks_free(void)
{
    for (unsigned i = 0; i < HUSKS; i++) {
        executor_free(husks[i]);
        husks[i] = NULL;
    }
}

static struct aclOpExecutor *executor_copy(const struct aclOpExecutor *from)
{
    struct aclOpExecutor *e = calloc(1, sizeof(*e));
    const size_t count = from->tensor_count;

    if (e == NULL)
        return NULL;
    *e = *from;
    e->tensors = calloc(count + 1, sizeof(*e->tensors));
    e->roles = calloc(count + 1, 1);
    e->array = calloc(from->array_count + 1, sizeof(*e->array));
    if (e->tensors == NULL || e->roles == NULL || e->array == NULL) {
        executor_free(e);
        return NULL;
    }
    memcpy(e->tensors, from->tensors, count * sizeof(*e->tensors));
    memcpy(e->roles, from->roles, count);
    if (from->array_count > 0)
        memcpy(e->array, from->array, from->array_count * sizeof(*e->array));
    return e;
}

/* The bytes that the elements of a tensor lie in, from `data` on: [*from_out, *from_out + size). */
static uint64_t extent(const struct aclTensor *t, int64_t *from_out)
{
    int64_t low = t->offset, high = low;

    *from_out = 0;
    if (tensor_count(t) == 0)
        return 0;
    if (t->format == ACL_FORMAT_FRACTAL_NZ)
        return (uint64_t)nz_element_count(t) * dtype_bytes(t->dtype);
    for (int i = 0; i < t->rank; i++) {
        const int64_t step = (t->dims[i] - 1) * t->strides[i];
        low += step < 0 ? step : 0;
        high += step > 0 ? step : 0;
    }
    *from_out = low * dtype_bytes(t->dtype);
    return (uint64_t)(high - low + 1) * dtype_bytes(t->dtype);
}

static bool tensor_pin(struct aclTensor *t, int device_id)
{
    int64_t from;
    const uint64_t size = extent(t, &from);
    uint8_t *bytes;

    if (size == 0)
        return true;
    bytes = standin_range_pin((uint8_t *)t->data + from, size, device_id);
    t->bytes = bytes != NULL ? bytes - from : NULL;
    return bytes != NULL;
}

static void tensor_unpin(struct aclTensor *t)
{
    int64_t from;

    if (t->bytes != NULL && extent(t, &from) > 0)
        standin_range_unpin((uint8_t *)t->data + from);
    t->bytes = NULL;
}

static void launch_run(struct task *task, struct stream *stream)
{
    struct launch *launch = (struct launch *)task;
    struct aclOpExecutor *e = launch->e;
    const int device_id = standin_stream_device(stream);
    uint8_t *workspace = NULL;
    unsigned pinned = 0;
    bool good = true;

    if (e->workspace_bytes > 0) {
        workspace = standin_range_pin(launch->workspace, e->workspace_bytes, device_id);
        if (workspace == NULL) {
            standin_fault("%s: its workspace of %llu bytes is not there any more", e->name,
                          (unsigned long long)e->workspace_bytes);
            good = false;
        }
    }
    for (; good && pinned < e->tensor_count; pinned++) {
        struct aclTensor *t = &e->tensors[pinned];
        if (!tensor_pin(t, device_id)) {
            standin_fault("%s: tensor %u is not in this device's memory", e->name, pinned);
            good = false;
            break;
        }
    }
    if (good) {
        if (workspace != NULL)
            memset(workspace, GARBAGE, e->workspace_bytes);
        e->run(e);
    } else {
        standin_stream_poison(stream, E_AICORE_EXCEPTION);
    }
    for (unsigned i = 0; i < pinned; i++)
        tensor_unpin(&e->tensors[i]);
    if (workspace != NULL)
        standin_range_unpin(launch->workspace);
}

static void launch_drop(struct task *task)
{
    struct launch *launch = (struct launch *)task;

    executor_free(launch->e);
    free(launch);
}

static int check_executor(const char *function, const struct aclOpExecutor *e)
{
    if (e == NULL)
        return standin_error(E_NN_NULL, "%s: no executor", function);
    if (e->magic != EXECUTOR_MAGIC)
        return standin_error(E_NN_INVALID, "%s: not an executor, or destroyed", function);
    if (e->is_consumed)
        return standin_error(E_NN_INVALID, "%s: the executor was used before", function);
    return 0;
}

void executor_consume(struct aclOpExecutor *e)
{
    if (e != NULL && e->magic == EXECUTOR_MAGIC && !e->is_consumed && !e->is_repeatable)
        retire(e);
}

aclnnStatus executor_execute(const char *name, void *workspace, uint64_t workspace_bytes,
                             struct aclOpExecutor *e, aclrtStream handle)
{
    struct launch *launch = NULL;
    struct stream *stream;
    int code = check_executor(name, e);

    if (code != 0) {
        standin_count("executor_errors", 1);
        return code;
    }
    stream = standin_stream(handle, name, &code);
    if (stream == NULL)
        code = standin_error(E_NN_RUNTIME, "%s: no stream of this thread's context", name);
    else if (strcmp(name, e->name) != 0)
        code = standin_error(E_NN_INVALID, "%s: the executor is of %s", name, e->name);
    else if (workspace_bytes < e->workspace_bytes ||
             (workspace == NULL && e->workspace_bytes > 0))
        code = standin_error(E_NN_INVALID, "%s: a workspace of %llu bytes, not %llu", name,
                             (unsigned long long)workspace_bytes,
                             (unsigned long long)e->workspace_bytes);
    else if (e->workspace_bytes > 0 && (uintptr_t)workspace % 64 != 0)
        code = standin_error(E_NN_INVALID, "%s: the workspace is not 64-byte aligned", name);
    if (code == 0)
        launch = calloc(1, sizeof(*launch));
    if (launch != NULL && (launch->e = executor_copy(e)) != NULL) {
        launch->task.run = launch_run;
        launch->task.drop = launch_drop;
        launch->workspace = workspace;
        standin_stream_push(stream, &launch->task);
        standin_count("launches", 1);
    } else if (code == 0) {
        free(launch);
        code = standin_error(E_NN_RUNTIME, "%s: no memory", name);
    }
    executor_consume(e);
    return code;
}

aclnnStatus aclSetAclOpExecutorRepeatable(aclOpExecutor *e)
{
    int code;

    ENTER(aclSetAclOpExecutorRepeatable);
    code = check_executor("aclSetAclOpExecutorRepeatable", e);
    if (code == 0)
        e->is_repeatable = true;
    return code;
}

aclnnStatus aclDestroyAclOpExecutor(aclOpExecutor *e)
{
    int code;

    ENTER(aclDestroyAclOpExecutor);
    code = check_executor("aclDestroyAclOpExecutor", e);
    if (code == 0)
        retire(e);
    return code;
}

/* Index: among the tensors of the call, or among its inputs or outputs, in the order of the
 * signature. The tensor must be the one that was passed there. */
static aclnnStatus set_address(const char *function, struct aclOpExecutor *e, size_t index,
                               const aclTensor *tensor, void *address, unsigned roles)
{
    int code = check_executor(function, e);

    if (code != 0)
        return code;
    if (!e->is_repeatable)
        return standin_error(E_NN_INVALID, "%s: the executor is not repeatable", function);
    for (unsigned i = 0; i < e->tensor_count; i++) {
        if ((e->roles[i] & roles) == 0 || index-- != 0)
            continue;
        if (e->tensors[i].handle != tensor || tensor == NULL || address == NULL)
            return standin_error(E_NN_INVALID, "%s: not the tensor that the call had there",
                                 function);
        e->tensors[i].data = address;
        return 0;
    }
    return standin_error(E_NN_INVALID, "%s: %s has no such tensor", function, e->name);
}

aclnnStatus aclSetTensorAddr(aclOpExecutor *e, const size_t index, aclTensor *tensor, void *address)
{
    ENTER(aclSetTensorAddr);
    return set_address("aclSetTensorAddr", e, index, tensor, address, ROLE_BOTH);
}

aclnnStatus aclSetInputTensorAddr(aclOpExecutor *e, const size_t index, aclTensor *tensor,
                                  void *address)
{
    ENTER(aclSetInputTensorAddr);
    return set_address("aclSetInputTensorAddr", e, index, tensor, address, ROLE_INPUT);
}

aclnnStatus aclSetOutputTensorAddr(aclOpExecutor *e, const size_t index, aclTensor *tensor,
                                   void *address)
{
    ENTER(aclSetOutputTensorAddr);
    return set_address("aclSetOutputTensorAddr", e, index, tensor, address, ROLE_OUTPUT);
}
