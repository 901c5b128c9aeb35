/* device/cpu/kernels.c - chooses a table of kernels for this processor. */
#include "device/cpu/kernels.h"

const struct cpu_kernels *cpu_kernels_select(bool force_scalar)
{
    if (force_scalar)
        return &cpu_kernels_scalar;
    return &cpu_kernels_scalar;
}
