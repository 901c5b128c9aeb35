/* device/ascend/load.c - opens CANN's libraries and finds the functions of cann.h in them.
 *
 * CANN is one per process: its libraries keep threads and global state, so they are opened once and
 * never closed, aclInit is called once and aclFinalize at exit. That is why this file, alone in the
 * program, has a mutable static.
 *
 * Each library is looked for in the folders that were given, then where the dynamic linker looks
 * (LD_LIBRARY_PATH, which CANN's set_env.sh sets), then where CANN installs itself. They depend on
 * each other, so they are opened in order and their symbols made global. The operators are in
 * libopapi.so; releases that have dropped it have several libraries instead, and the two ways must
 * not be mixed (ops-nn, "README", and op-plugin's order of search). */
#include <assert.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "device/ascend/internal.h"

#define SYMBOL_NAME(name) #name
#define FUNCTION(library, need, since, name)                                                       \
    { SYMBOL_NAME(name), library, since, offsetof(struct ascend_cann, name), need },
#define OPERATOR(library, need, since, name)                                                       \
    FUNCTION(library, need, since, aclnn##name##GetWorkspaceSize)                                  \
    FUNCTION(library, need, since, aclnn##name)
#define OF_ASCENDCL(need, since, type, name, parameters)                                           \
    FUNCTION(ASCEND_LIBRARY_ASCENDCL, need, since, name)
#define OF_NNOPBASE(need, since, type, name, parameters)                                           \
    FUNCTION(ASCEND_LIBRARY_NNOPBASE, need, since, name)
#define OF_MATH(need, since, type, name, parameters)                                               \
    FUNCTION(ASCEND_LIBRARY_OPAPI_MATH, need, since, name)
#define IN_MATH(need, since, name, ...) OPERATOR(ASCEND_LIBRARY_OPAPI_MATH, need, since, name)
#define IN_NN(need, since, name, ...) OPERATOR(ASCEND_LIBRARY_OPAPI_NN, need, since, name)

static const struct ascend_symbol symbols[] = {
    CANN_ASCENDCL(OF_ASCENDCL)
    CANN_NNOPBASE(OF_NNOPBASE)
    CANN_OPAPI_MATH(IN_MATH)
    CANN_OPAPI_FUNCTIONS(OF_MATH)
    CANN_OPAPI_NN(IN_NN)
};
#define SYMBOL_COUNT (sizeof(symbols) / sizeof(symbols[0]))

/* Guarded by `lock`, but for what does not change once `initialised` is set. */
static struct {
    pthread_mutex_t lock;
    struct ascend_library libraries[ASCEND_LIBRARY_COUNT];
    struct ascend_cann cann;
    bool initialised;
    pid_t pid;             /* that called aclInit; a fork must not finalise */
} process = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .libraries = {
        [ASCEND_LIBRARY_ASCENDCL] = { .name = "libascendcl.so", .other_name = "libacl_rt.so" },
        [ASCEND_LIBRARY_NNOPBASE] = { .name = "libnnopbase.so" },
        [ASCEND_LIBRARY_OPAPI] = { .name = "libopapi.so" },
        [ASCEND_LIBRARY_OPAPI_MATH] = { .name = "libopapi_math.so" },
        [ASCEND_LIBRARY_OPAPI_NN] = { .name = "libopapi_nn.so" },
    },
};

const struct ascend_symbol *ascend__symbols(size_t *count_out)
{
    *count_out = SYMBOL_COUNT;
    return symbols;
}

const struct ascend_library *ascend__library(enum ascend_library_id id)
{
    return &process.libraries[id];
}

/* Keeps what was opened, or why it was not: the reason of a file that exists tells more than that
 * of a name that was not found. */
static bool open_at(struct ascend_library *library, const char *path, bool exists)
{
    library->handle = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (library->handle != NULL) {
        (void)snprintf(library->path, sizeof(library->path), "%s", path);
        return true;
    }
    if (exists || library->problem[0] == '\0') {
        const char *reason = dlerror();

        (void)snprintf(library->problem, sizeof(library->problem), "%s",
                       reason != NULL ? reason : "no reason was given");
    }
    return false;
}

static bool open_in(struct ascend_library *library, const char *name, const char *folders)
{
    while (folders != NULL && *folders != '\0') {
        const int length = (int)strcspn(folders, ":");
        char path[ASCEND_PATH_BYTES];
        const int written = snprintf(path, sizeof(path), "%.*s/%s", length, folders, name);

        folders += length + (folders[length] == ':');
        if (length == 0 || written < 0 || (size_t)written >= sizeof(path) ||
            access(path, F_OK) != 0)
            continue;
        if (open_at(library, path, true))
            return true;
    }
    return false;
}

static bool open_library(enum ascend_library_id id, const char *library_path)
{
    static const char *const installed = "/usr/local/Ascend/ascend-toolkit/latest/lib64:"
                                         "/usr/local/Ascend/cann/lib64";
    struct ascend_library *library = &process.libraries[id];
    const char *const names[] = { library->name, library->other_name };

    if (library->handle != NULL)
        return true;
    library->problem[0] = '\0';
    for (size_t i = 0; i < 2 && names[i] != NULL; i++) {
        if (open_in(library, names[i], library_path) || open_at(library, names[i], false) ||
            open_in(library, names[i], installed))
            return true;
    }
    return false;
}

/* Where a symbol is looked for: operators in libopapi.so when there is one. */
static void *handle_for(enum ascend_library_id id)
{
    const bool split = process.libraries[ASCEND_LIBRARY_OPAPI].handle == NULL;

    if (id > ASCEND_LIBRARY_OPAPI && !split)
        id = ASCEND_LIBRARY_OPAPI;
    return process.libraries[id].handle;
}

const char *ascend__symbol_library(const struct ascend_symbol *symbol)
{
    const bool split = process.libraries[ASCEND_LIBRARY_OPAPI].handle == NULL &&
                       process.libraries[ASCEND_LIBRARY_OPAPI_MATH].handle != NULL;

    return process.libraries[symbol->library > ASCEND_LIBRARY_OPAPI && !split
                                 ? ASCEND_LIBRARY_OPAPI : symbol->library].name;
}

bool ascend__symbol_library_is_open(const struct ascend_symbol *symbol)
{
    return handle_for(symbol->library) != NULL;
}

bool ascend__symbol_is_there(const struct ascend_symbol *symbol)
{
    void *address;

    memcpy(&address, (const char *)&process.cann + symbol->offset, sizeof(address));
    return address != NULL;
}

/* Of operators that several libraries have, which one has it may change with the release. */
static void *find_symbol(const struct ascend_symbol *symbol)
{
    void *handle = handle_for(symbol->library);
    void *address = handle != NULL ? dlsym(handle, symbol->name) : NULL;

    for (int id = ASCEND_LIBRARY_OPAPI_MATH;
         address == NULL && symbol->library >= ASCEND_LIBRARY_OPAPI && id < ASCEND_LIBRARY_COUNT;
         id++) {
        handle = handle_for((enum ascend_library_id)id);
        address = handle != NULL ? dlsym(handle, symbol->name) : NULL;
    }
    return address;
}

void ascend__probe(const char *library_path)
{
    pthread_mutex_lock(&process.lock);
    if (!process.initialised) {
        (void)open_library(ASCEND_LIBRARY_ASCENDCL, library_path);
        (void)open_library(ASCEND_LIBRARY_NNOPBASE, library_path);
        if (!open_library(ASCEND_LIBRARY_OPAPI, library_path)) {
            (void)open_library(ASCEND_LIBRARY_OPAPI_MATH, library_path);
            (void)open_library(ASCEND_LIBRARY_OPAPI_NN, library_path);
        }
        for (size_t i = 0; i < SYMBOL_COUNT; i++) {
            void *address = find_symbol(&symbols[i]);

            memcpy((char *)&process.cann + symbols[i].offset, &address, sizeof(address));
        }
    }
    pthread_mutex_unlock(&process.lock);
}

static enum status refuse_library(enum ascend_library_id id, struct err *err)
{
    const struct ascend_library *library = &process.libraries[id];

    return err_set(err, STATUS_UNAVAILABLE,
                   "ascend: %s of CANN (8.1.RC1 or later) could not be opened: %.300s; source "
                   "CANN's set_env.sh, or set ASCEND_HOME_PATH to its folder", library->name,
                   library->problem);
}

/* The libraries and the required symbols, all of which a message names as far as it has room. */
static enum status check(struct err *err)
{
    char list[400] = "";
    size_t missing = 0, used = 0;

    for (int id = 0; id < ASCEND_LIBRARY_OPAPI; id++)
        if (process.libraries[id].handle == NULL)
            return refuse_library((enum ascend_library_id)id, err);
    if (process.libraries[ASCEND_LIBRARY_OPAPI].handle == NULL &&
        process.libraries[ASCEND_LIBRARY_OPAPI_MATH].handle == NULL)
        return refuse_library(ASCEND_LIBRARY_OPAPI, err);
    for (size_t i = 0; i < SYMBOL_COUNT; i++) {
        const struct ascend_symbol *symbol = &symbols[i];

        if (!symbol->required || ascend__symbol_is_there(symbol))
            continue;
        missing++;
        if (used < sizeof(list) - 100)
            used += (size_t)snprintf(list + used, sizeof(list) - used, "%s%s (%s, in CANN %s)",
                                     used == 0 ? "" : ", ", symbol->name,
                                     ascend__symbol_library(symbol), symbol->since);
    }
    if (missing == 0)
        return STATUS_OK;
    return err_set(err, STATUS_UNAVAILABLE,
                   "ascend: the installed CANN lacks %zu of the functions that are needed: %s%s; "
                   "`lighter inspect --device ascend` lists all", missing, list,
                   used >= sizeof(list) - 100 ? ", ..." : "");
}

/* At exit. */
static void finalize(void)
{
    if (process.initialised && process.pid == getpid())
        (void)process.cann.aclFinalize();
}

static enum status initialise(struct err *err)
{
    const int code = process.cann.aclInit(NULL);

    /* somebody else in this process has done it, and will undo it */
    if (code != ACL_SUCCESS && code != ACL_ERROR_REPEAT_INITIALIZE)
        return ascend__fail(&process.cann, "ascend", code, err, "aclInit");
    process.initialised = true;
    process.pid = getpid();
    if (code == ACL_SUCCESS && atexit(finalize) != 0)
        return err_set(err, STATUS_NO_MEMORY, "ascend: no memory to note what is to do at exit");
    return STATUS_OK;
}

enum status ascend__load(const char *library_path, const struct ascend_cann **cann_out,
                         struct err *err)
{
    enum status st = STATUS_OK;

    ascend__probe(library_path);
    pthread_mutex_lock(&process.lock);
    if (!process.initialised) {
        st = check(err);
        if (st == STATUS_OK)
            st = initialise(err);
    }
    pthread_mutex_unlock(&process.lock);
    if (st == STATUS_OK)
        *cann_out = &process.cann;
    return st;
}
