/* tests/cann/device.c - the process, its devices, contexts, and peers (reference 1.1 and 1.4).
 *
 * A device is open from the first aclrtSetDevice to the last aclrtResetDevice, which frees all that
 * is left on it and reports it as leaked. Each open device has a default context that all threads
 * share; a thread has none until it calls aclrtSetDevice. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct device {
    unsigned use_count;
    struct context *contexts; /* the default one is among them */
    bool peers[DEVICES_MAX];  /* this device may reach that one */
};

pthread_mutex_t standin_world = PTHREAD_MUTEX_INITIALIZER;
static struct device devices[DEVICES_MAX]; /* guarded by world */
static bool is_initialized, is_finalized;  /* guarded by world */
static pid_t process; /* that called aclInit: nothing works in its forks. guarded by world */
static _Thread_local struct context *current;
static _Thread_local uint64_t current_epoch;
static uint64_t epoch = 1; /* of resets: older threads' contexts are gone; guarded by world */
static struct context *graveyard; /* destroyed, kept so that stale handles can be told */

struct context *standin_context(const char *function)
{
    struct context *context;

    pthread_mutex_lock(&standin_world);
    context = current_epoch == epoch && current != NULL && !current->is_dead ? current : NULL;
    pthread_mutex_unlock(&standin_world);
    if (context == NULL)
        standin_error(E_CONTEXT_NULL, "%s: this thread has no context; aclrtSetDevice makes one",
                      function);
    return context;
}

bool standin_is_open(void)
{
    bool open;

    pthread_mutex_lock(&standin_world);
    open = is_initialized && !is_finalized && process == getpid();
    pthread_mutex_unlock(&standin_world);
    return open;
}

int standin_physical_id(int device_id)
{
    const char *text = getenv("ASCEND_RT_VISIBLE_DEVICES");
    int index = 0;

    for (; text != NULL && *text != '\0'; index++) {
        char *end;
        const int id = (int)strtol(text, &end, 10);
        if (index == device_id)
            return id;
        text = *end == ',' ? end + 1 : end;
    }
    return device_id;
}

aclError aclInit(const char *config_path)
{
    int code = 0;

    (void)config_path;
    ENTER(aclInit);
    pthread_mutex_lock(&standin_world);
    if (is_initialized)
        code = standin_error(E_REPEAT_INITIALIZE, "aclInit: called before");
    is_initialized = true;
    process = getpid();
    pthread_mutex_unlock(&standin_world);
    return code;
}

/* Ends the streams of a context; world is not held. */
static void context_close(struct context *context, bool leaks)
{
    standin_streams_close(context, leaks);
    pthread_mutex_lock(&standin_world);
    context->is_dead = true;
    context->next = graveyard;
    graveyard = context;
    pthread_mutex_unlock(&standin_world);
}

static void device_close(int device_id, bool leaks)
{
    struct context *context;

    for (;;) {
        pthread_mutex_lock(&standin_world);
        context = devices[device_id].contexts;
        if (context != NULL)
            devices[device_id].contexts = context->next;
        pthread_mutex_unlock(&standin_world);
        if (context == NULL)
            break;
        context_close(context, leaks);
    }
    standin_events_close(device_id, leaks);
    standin_memory_close(device_id);
    pthread_mutex_lock(&standin_world);
    memset(&devices[device_id], 0, sizeof(devices[device_id]));
    pthread_mutex_unlock(&standin_world);
}

static void close_all(bool leaks)
{
    standin_ipc_close();
    for (int i = 0; i < DEVICES_MAX; i++) {
        if (devices[i].use_count > 0)
            device_close(i, leaks);
    }
    standin_host_close();
}

aclError aclFinalize(void)
{
    ENTER(aclFinalize);
    pthread_mutex_lock(&standin_world);
    if (!is_initialized || is_finalized) {
        pthread_mutex_unlock(&standin_world);
        return standin_error(is_finalized ? E_REPEAT_FINALIZE : E_UNINITIALIZE,
                             "aclFinalize: not initialized, or called before");
    }
    is_finalized = true;
    pthread_mutex_unlock(&standin_world);
    close_all(true);
    if (cann_standin_counter("live_executors") != 0)
        standin_leak("%llu executors of a first phase without a second",
                     (unsigned long long)cann_standin_counter("live_executors"));
    if (cann_standin_counter("live_tensors") != 0)
        standin_leak("%llu tensors, lists and scalars",
                     (unsigned long long)cann_standin_counter("live_tensors"));
    return 0;
}

void cann_standin_reset(void)
{
    standin_streams_hold(false);
    standin_settings.silent = true;
    close_all(false);
    pthread_mutex_lock(&standin_world);
    is_initialized = is_finalized = false;
    epoch++;
    while (graveyard != NULL) {
        struct context *next = graveyard->next;
        free(graveyard);
        graveyard = next;
    }
    pthread_mutex_unlock(&standin_world);
    standin_report_reset();
    standin_settings_load();
}

aclError aclrtGetVersion(int32_t *major, int32_t *minor, int32_t *patch)
{
    ENTER(aclrtGetVersion);
    if (major == NULL || minor == NULL || patch == NULL)
        return standin_error(E_INVALID_PARAM, "aclrtGetVersion: a null argument");
    *major = 1;
    *minor = 13;
    *patch = 0;
    return 0;
}

aclError aclrtGetDeviceCount(uint32_t *count)
{
    ENTER(aclrtGetDeviceCount);
    if (count == NULL)
        return standin_error(E_INVALID_PARAM, "aclrtGetDeviceCount: a null argument");
    if (!standin_is_open())
        return standin_error(E_UNINITIALIZE, "aclrtGetDeviceCount: aclInit has not been called");
    *count = (uint32_t)standin_settings.device_count;
    return 0;
}

static struct context *context_new(int device_id, bool is_default)
{
    struct context *context = calloc(1, sizeof(*context));

    if (context == NULL)
        return NULL;
    context->device_id = device_id;
    context->is_default = is_default;
    context->next = devices[device_id].contexts;
    devices[device_id].contexts = context;
    return context;
}

static struct context *default_context(int device_id)
{
    struct context *context = devices[device_id].contexts;

    while (context != NULL && !context->is_default)
        context = context->next;
    return context;
}

aclError aclrtSetDevice(int32_t device_id)
{
    struct context *context;
    int code;

    ENTER(aclrtSetDevice);
    if (!standin_is_open())
        return standin_error(E_UNINITIALIZE, "aclrtSetDevice: aclInit has not been called");
    if (device_id < 0 || device_id >= standin_settings.device_count)
        return standin_error(E_DEVICE_ID, "aclrtSetDevice: device %d of %d", device_id,
                             standin_settings.device_count);
    code = standin_memory_open(device_id);
    if (code != 0)
        return code;
    pthread_mutex_lock(&standin_world);
    context = default_context(device_id);
    if (context == NULL)
        context = context_new(device_id, true);
    if (context != NULL) {
        devices[device_id].use_count++;
        current = context;
        current_epoch = epoch;
    }
    pthread_mutex_unlock(&standin_world);
    return context != NULL ? 0 : standin_error(E_MEMORY, "aclrtSetDevice: no memory");
}

static int reset_device(int device_id, bool force, const char *function)
{
    bool last;

    if (device_id < 0 || device_id >= standin_settings.device_count)
        return standin_error(E_DEVICE_ID, "%s: device %d of %d", function, device_id,
                             standin_settings.device_count);
    pthread_mutex_lock(&standin_world);
    if (devices[device_id].use_count == 0) {
        pthread_mutex_unlock(&standin_world);
        return standin_error(E_DEVICE_ID, "%s: device %d has not been set", function, device_id);
    }
    last = force || devices[device_id].use_count == 1;
    if (!last)
        devices[device_id].use_count--;
    pthread_mutex_unlock(&standin_world);
    if (last) {
        device_close(device_id, true);
        standin_report_write();
    }
    return 0;
}

aclError aclrtResetDevice(int32_t device_id)
{
    ENTER(aclrtResetDevice);
    return reset_device(device_id, false, "aclrtResetDevice");
}

aclError aclrtResetDeviceForce(int32_t device_id)
{
    ENTER(aclrtResetDeviceForce);
    return reset_device(device_id, true, "aclrtResetDeviceForce");
}

aclError aclrtGetDevice(int32_t *device_id)
{
    const struct context *context;

    ENTER(aclrtGetDevice);
    context = standin_context("aclrtGetDevice");
    if (context == NULL)
        return E_CONTEXT_NULL;
    if (device_id == NULL)
        return standin_error(E_INVALID_PARAM, "aclrtGetDevice: a null argument");
    *device_id = context->device_id;
    return 0;
}

aclError aclrtSynchronizeDevice(void)
{
    struct context *context;
    int code = 0;

    ENTER(aclrtSynchronizeDevice);
    context = standin_context("aclrtSynchronizeDevice");
    if (context == NULL)
        return E_CONTEXT_NULL;
    for (struct context *c = devices[context->device_id].contexts; c != NULL; c = c->next) {
        const int one = standin_streams_drain(c);
        code = code != 0 ? code : one;
    }
    return code;
}

const char *aclrtGetSocName(void)
{
    ENTER_OR(aclrtGetSocName, NULL);
    return standin_is_open() && standin_settings.soc[0] != '\0' ? standin_settings.soc : NULL;
}

aclError aclrtGetRunMode(aclrtRunMode *mode)
{
    ENTER(aclrtGetRunMode);
    if (mode == NULL)
        return standin_error(E_INVALID_PARAM, "aclrtGetRunMode: a null argument");
    *mode = ACL_HOST;
    return 0;
}

aclError aclrtCreateContext(aclrtContext *context_out, int32_t device_id)
{
    struct context *context;

    ENTER(aclrtCreateContext);
    if (context_out == NULL)
        return standin_error(E_INVALID_PARAM, "aclrtCreateContext: a null argument");
    if (!standin_is_open())
        return standin_error(E_UNINITIALIZE, "aclrtCreateContext: aclInit has not been called");
    if (device_id < 0 || device_id >= standin_settings.device_count)
        return standin_error(E_DEVICE_ID, "aclrtCreateContext: device %d of %d", device_id,
                             standin_settings.device_count);
    if (standin_memory_open(device_id) != 0)
        return E_MEMORY;
    pthread_mutex_lock(&standin_world);
    context = context_new(device_id, false);
    if (context != NULL) {
        devices[device_id].use_count += devices[device_id].use_count == 0;
        current = context;
        current_epoch = epoch;
    }
    pthread_mutex_unlock(&standin_world);
    *context_out = context;
    return context != NULL ? 0 : standin_error(E_MEMORY, "aclrtCreateContext: no memory");
}

/* The live context behind a handle; world is held. */
static struct context *context_known(const void *handle)
{
    for (int i = 0; i < DEVICES_MAX; i++) {
        for (struct context *c = devices[i].contexts; c != NULL; c = c->next) {
            if (c == handle)
                return c;
        }
    }
    return NULL;
}

aclError aclrtDestroyContext(aclrtContext handle)
{
    struct context *context, **link;

    ENTER(aclrtDestroyContext);
    pthread_mutex_lock(&standin_world);
    context = context_known(handle);
    if (context != NULL && !context->is_default) {
        link = &devices[context->device_id].contexts;
        while (*link != context)
            link = &(*link)->next;
        *link = context->next;
    }
    pthread_mutex_unlock(&standin_world);
    if (context == NULL || context->is_default)
        return standin_error(E_PARAM, "aclrtDestroyContext: not a context that was created");
    context_close(context, true);
    return 0;
}

aclError aclrtSetCurrentContext(aclrtContext handle)
{
    struct context *context;

    ENTER(aclrtSetCurrentContext);
    pthread_mutex_lock(&standin_world);
    context = context_known(handle);
    if (context != NULL) {
        current = context;
        current_epoch = epoch;
    }
    pthread_mutex_unlock(&standin_world);
    return context != NULL ? 0
                           : standin_error(E_PARAM, "aclrtSetCurrentContext: no such context");
}

aclError aclrtGetCurrentContext(aclrtContext *context_out)
{
    struct context *context;

    ENTER(aclrtGetCurrentContext);
    context = standin_context("aclrtGetCurrentContext");
    if (context == NULL)
        return E_CONTEXT_NULL;
    if (context_out == NULL)
        return standin_error(E_INVALID_PARAM, "aclrtGetCurrentContext: a null argument");
    *context_out = context;
    return 0;
}

/* ---- peers ---- */

bool standin_peer_enabled(int from, int to)
{
    bool enabled;

    pthread_mutex_lock(&standin_world);
    enabled = from == to || devices[from].peers[to];
    pthread_mutex_unlock(&standin_world);
    return enabled;
}

aclError aclrtDeviceCanAccessPeer(int32_t *can, int32_t device_id, int32_t peer_id)
{
    ENTER(aclrtDeviceCanAccessPeer);
    if (can == NULL)
        return standin_error(E_INVALID_PARAM, "aclrtDeviceCanAccessPeer: a null argument");
    if (device_id < 0 || device_id >= standin_settings.device_count || peer_id < 0 ||
        peer_id >= standin_settings.device_count || device_id == peer_id)
        return standin_error(E_DEVICE_ID, "aclrtDeviceCanAccessPeer: devices %d and %d of %d",
                             device_id, peer_id, standin_settings.device_count);
    *can = 1;
    return 0;
}

static int peer_set(const char *function, int peer_id, bool enabled)
{
    const struct context *context = standin_context(function);

    if (context == NULL)
        return E_CONTEXT_NULL;
    if (peer_id < 0 || peer_id >= standin_settings.device_count || peer_id == context->device_id)
        return standin_error(E_DEVICE_ID, "%s: device %d from device %d", function, peer_id,
                             context->device_id);
    pthread_mutex_lock(&standin_world);
    devices[context->device_id].peers[peer_id] = enabled;
    pthread_mutex_unlock(&standin_world);
    return 0;
}

aclError aclrtDeviceEnablePeerAccess(int32_t peer_id, uint32_t flags)
{
    ENTER(aclrtDeviceEnablePeerAccess);
    if (flags != 0)
        return standin_error(E_PARAM, "aclrtDeviceEnablePeerAccess: flags %u, not 0", flags);
    return peer_set("aclrtDeviceEnablePeerAccess", peer_id, true);
}

aclError aclrtDeviceDisablePeerAccess(int32_t peer_id)
{
    ENTER(aclrtDeviceDisablePeerAccess);
    return peer_set("aclrtDeviceDisablePeerAccess", peer_id, false);
}

aclError aclrtDeviceGetBareTgid(int32_t *pid)
{
    ENTER(aclrtDeviceGetBareTgid);
    if (pid == NULL)
        return standin_error(E_INVALID_PARAM, "aclrtDeviceGetBareTgid: a null argument");
    *pid = (int32_t)getpid();
    return 0;
}
