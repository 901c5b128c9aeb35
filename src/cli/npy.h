/* cli/npy.h - writes NumPy's .npy files, version 1.0 (NEP 1): a two-dimensional float32 array. */
#ifndef LIGHTER_CLI_NPY_H
#define LIGHTER_CLI_NPY_H

#include <stdint.h>

#include "base/status.h"

/* values[row_count][column_count], row major. An existing file is replaced only once the new one is
 * complete. */
enum status cli_npy_write(const char *path, const float *values, uint64_t row_count,
                          uint64_t column_count, struct err *err);

#endif
