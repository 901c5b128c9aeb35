/* device/cuda/testing.h - what tests ask of the stand-in of a GPU (tests/cuda/README.md).
 *
 * Where a GPU's own module lies in its place there is nothing to ask: it counts nothing and does
 * not fail on purpose. Only *_test.c files include this. A failure asserts through cmocka. */
#ifndef LIGHTER_DEVICE_CUDA_TESTING_H
#define LIGHTER_DEVICE_CUDA_TESTING_H

#include <dlfcn.h>
#include <stdbool.h>

#include "device/testing_libraries.h"

#define CUDA_ERROR_ILLEGAL_ADDRESS 700
#define CUDA_ERROR_NOT_SUPPORTED 801

/* A function of the stand-in's own, which is opened already or will be; false: a GPU's module. */
static inline bool standin_find(const char *name, void *function_out)
{
    char path[4200];
    void *module, *symbol;

    (void)snprintf(path, sizeof(path), "%s/tests/cuda/lighter_cuda.so",
                   testing_build_folder());
    module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    assert_non_null(module);
    symbol = dlsym(module, name);
    memcpy(function_out, &symbol, sizeof(symbol));
    return symbol != NULL;
}

static inline uint64_t standin_counter(const char *name)
{
    uint64_t (*function)(const char *);

    return standin_find("cuda_standin_counter", &function) ? function(name) : 0;
}

/* The nth call from now of a function of CUDA's fails; 0: none. False: none will. */
static inline bool standin_fail(const char *name, uint64_t nth, int code)
{
    void (*function)(const char *, uint64_t, int);

    if (!standin_find("cuda_standin_fail", &function))
        return false;
    function(name, nth, code);
    return true;
}

static inline bool standin_is_there(void)
{
    uint64_t (*function)(const char *);

    return standin_find("cuda_standin_counter", &function);
}

#endif
