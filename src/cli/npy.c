/* cli/npy.c - see npy.h.
 *
 *     "\x93NUMPY" 1 0 | header length, 2 bytes, little endian | header | data
 *
 * The header is a Python dictionary in ASCII, filled up with blanks and ended by a newline so that
 * the data starts at a multiple of 64. */
#include "cli/npy.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HEAD_BYTES 128
#define HEAD_FIXED_BYTES 10

static enum status write_all(FILE *file, const char *path, const float *values,
                             uint64_t row_count, uint64_t column_count, struct err *err)
{
    char head[HEAD_BYTES];
    int length;

    memset(head, ' ', sizeof(head));
    memcpy(head, "\x93NUMPY\x01\x00", 8);
    head[8] = (char)(HEAD_BYTES - HEAD_FIXED_BYTES);
    head[9] = 0;
    length = snprintf(head + HEAD_FIXED_BYTES, sizeof(head) - HEAD_FIXED_BYTES,
                      "{'descr': '<f4', 'fortran_order': False, 'shape': (%" PRIu64 ", %" PRIu64
                      "), }",
                      row_count, column_count);
    head[HEAD_FIXED_BYTES + length] = ' ';
    head[HEAD_BYTES - 1] = '\n';
    if (fwrite(head, 1, sizeof(head), file) != sizeof(head) ||
        fwrite(values, sizeof(float), row_count * column_count, file) != row_count * column_count)
        return err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
    return STATUS_OK;
}

enum status cli_npy_write(const char *path, const float *values, uint64_t row_count,
                          uint64_t column_count, struct err *err)
{
    const size_t part_size = strlen(path) + sizeof(".part");
    char *part = malloc(part_size);
    FILE *file;
    enum status st;

    if (part == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for its name", path);
    (void)snprintf(part, part_size, "%s.part", path);
    file = fopen(part, "wb");
    if (file == NULL) {
        st = err_set(err, STATUS_IO, "%s: %s", part, strerror(errno));
        free(part);
        return st;
    }
    st = write_all(file, path, values, row_count, column_count, err);
    if (fclose(file) != 0 && st == STATUS_OK)
        st = err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
    if (st == STATUS_OK && rename(part, path) != 0)
        st = err_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
    if (st != STATUS_OK)
        (void)unlink(part);
    free(part);
    return st;
}
