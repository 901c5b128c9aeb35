/* device/cuda/error.c - what CUDA says when a call fails, as one sentence. */
#include <stdarg.h>
#include <stdio.h>

#include "device/cuda/internal.h"

enum status cuda__fail(const struct cuda_module *module, const char *device_name, int code,
                       struct err *err, const char *what, ...)
{
    char asked[160];
    va_list args;

    va_start(args, what);
    (void)vsnprintf(asked, sizeof(asked), what, args);
    va_end(args);
    return err_set(err, module->status_of(code), "%s: %s failed with %s: %s", device_name, asked,
                   module->error_name(code), module->error_text(code));
}
