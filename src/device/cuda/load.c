/* device/cuda/load.c - opens lighter_cuda.so.
 *
 * CUDA's runtime, which is linked into the module, is one per process and keeps threads and state,
 * so the module is opened once and never closed. That is why this file has a mutable static. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "device/cuda/internal.h"

/* Guarded by `lock`, but for what does not change once `module` is set. */
static struct {
    pthread_mutex_t lock;
    const struct cuda_module *module;
    char path[CUDA_PATH_BYTES];
} process = { .lock = PTHREAD_MUTEX_INITIALIZER };

const char *cuda__load_path(void)
{
    return process.module != NULL ? process.path : NULL;
}

static enum status open_file(const char *path, struct err *err)
{
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const struct cuda_module *module;

    if (handle == NULL)
        return err_set(err, STATUS_UNAVAILABLE, "cuda: %.200s cannot be opened: %.300s", path,
                       dlerror());
    module = dlsym(handle, CUDA_MODULE_SYMBOL);
    if (module == NULL || module->version != CUDA_MODULE_VERSION) {
        (void)dlclose(handle);
        return err_set(err, STATUS_UNAVAILABLE, "cuda: %.200s belongs to another version of this "
                       "program: build both together", path);
    }
    (void)snprintf(process.path, sizeof(process.path), "%s", path);
    process.module = module;
    return STATUS_OK;
}

/* The first of the folders that has the file; false: none. */
static bool find_in(const char *folders, char path[CUDA_PATH_BYTES])
{
    while (folders != NULL && *folders != '\0') {
        const int length = (int)strcspn(folders, ":");
        const int written = snprintf(path, CUDA_PATH_BYTES, "%.*s/%s", length, folders,
                                     CUDA_MODULE_NAME);

        folders += length + (folders[length] == ':');
        if (length > 0 && written > 0 && written < CUDA_PATH_BYTES && access(path, F_OK) == 0)
            return true;
    }
    return false;
}

static bool find_beside_program(char path[CUDA_PATH_BYTES])
{
    char folder[CUDA_PATH_BYTES];
    const ssize_t size = readlink("/proc/self/exe", folder, sizeof(folder) - 1);
    char *slash;

    if (size <= 0)
        return false;
    folder[size] = '\0';
    slash = strrchr(folder, '/');
    if (slash == NULL)
        return false;
    *slash = '\0';
    return find_in(folder, path);
}

enum status cuda__load(const char *library_path, const struct cuda_module **module_out,
                       struct err *err)
{
    enum status st = STATUS_OK;
    char path[CUDA_PATH_BYTES];

    pthread_mutex_lock(&process.lock);
    if (process.module == NULL) {
        if (find_in(library_path, path) || find_beside_program(path))
            st = open_file(path, err);
        else
            st = err_set(err, STATUS_UNAVAILABLE, "cuda: this build has no " CUDA_MODULE_NAME
                         " beside the program: `make` builds it where CUDA's nvcc is installed, in "
                         "PATH or in /usr/local/cuda");
    }
    if (st == STATUS_OK)
        *module_out = process.module;
    pthread_mutex_unlock(&process.lock);
    return st;
}
